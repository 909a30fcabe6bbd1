//! All integration tests, in one program so that it links once: real processes, the API, the command line, tidiness.
//!
//! They know ChatChain from outside. Each starts what it needs with `support` and leaves nothing behind.

mod cli;
mod corpus;
mod durability;
mod network;
mod outage;
mod scale;
mod support;
mod tidy;
mod up;
