//! All integration tests, in one program so that it links once: real processes, the API, the command line, tidiness.
//!
//! They know ChatChain from outside. Each starts what it needs with `support` and leaves nothing behind.

mod api;
mod cli;
mod cluster;
mod durability;
mod feed;
mod proxy;
mod readme;
mod support;
mod tidy;
