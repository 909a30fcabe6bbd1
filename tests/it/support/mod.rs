//! The harness: what integration tests need to run real ChatChain processes and talk to them.
//!
//! Knows ChatChain only from outside: its command line, its HTTP and its directories. It uses none of the crate's
//! own code, so that a test cannot share a bug with what it tests. Blocking throughout; only `eventually` sleeps.
#![allow(dead_code, reason = "each test file uses its part of the harness")]

pub mod address;
pub mod chance;
pub mod cluster;
pub mod corpus;
pub mod eventually;
pub mod feed;
pub mod http;
pub mod load;
pub mod measure;
pub mod messages;
pub mod network;
pub mod process;
pub mod servers;
