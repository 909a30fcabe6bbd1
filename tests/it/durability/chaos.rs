//! Runs the unit tests of the pure parts of the chaos program, which has no test harness of its own.
#![allow(dead_code, reason = "most of these files is used only by the chaos program")]

#[path = "../../chaos/damage.rs"]
mod damage;
#[path = "../../chaos/judge.rs"]
mod judge;
#[path = "../../chaos/schedule.rs"]
mod schedule;
