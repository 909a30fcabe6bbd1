//! The pure parts of the chaos program, here for their unit tests: that program has no test harness to run them.
#![allow(dead_code, reason = "most of it is used only there")]

#[path = "../../chaos/damage.rs"]
mod damage;
#[path = "../../chaos/judge.rs"]
mod judge;
#[path = "../../chaos/schedule.rs"]
mod schedule;
