//! A store and its logs in one hand: what is decided, committed, exchanged and mended, step by step.
//!
//! Everything here is called with values and returns values: no threads, no tokio, no sockets, no clock. A node drives
//! it from its threads and tasks; the simulation drives the same code from a seed. [`pen`] is the only one that writes
//! to a store; [`exchange`] is one peer's side of syncing; [`heal`] decides what to do about damage.

pub mod committer;
mod cut;
mod decide;
pub mod exchange;
pub mod forks;
mod purge;
pub mod repair;
pub mod runs;
pub mod scrub;
pub mod write_ops;
