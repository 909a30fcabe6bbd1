//! All integration tests, in one program so that it links once: one folder per area.
//!
//! The tests run real processes and know ChatChain from outside. Each starts its processes with `support` and leaves
//! nothing behind. `tidy` checks the sources, `readme` runs the commands of the README.

mod api;
mod cli;
mod cluster;
mod durability;
mod feed;
mod proxy;
mod readme;
mod support;
mod tidy;
