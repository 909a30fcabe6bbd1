//! A store and its logs together: what is decided, committed, exchanged and repaired, step by step.
//!
//! Everything here takes values and returns values: no threads, no tokio, no sockets, no clock. A node calls it from
//! its threads and tasks; the simulation calls the same code from a seed. Only the [`committer`] writes logs;
//! [`exchange`] is both sides of an exchange with one peer; [`repair`] decides what to do about damage.

mod allowance;
pub mod committer;
mod cut;
mod decide;
pub mod exchange;
pub mod forks;
pub mod pace;
mod purge;
pub mod repair;
pub mod runs;
pub mod scrub;
pub mod write_ops;

#[cfg(test)]
mod tests;
