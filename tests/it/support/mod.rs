//! The test harness: starts real ChatChain processes and sends them requests.
//!
//! Knows only the command line, the HTTP API and the directories of ChatChain. It uses none of the crate's own code, so
//! that a test cannot share a bug with the program. Its calls block; only `eventually` sleeps.
#![allow(dead_code, reason = "each test program uses its part of the harness")]

pub mod address;
pub mod cluster;
pub mod corpus;
pub mod eventually;
pub mod feed;
pub mod http;
pub mod load;
pub mod measure;
pub mod messages;
pub mod network;
pub mod plain_tcp;
pub mod process;
pub mod relay;
pub mod rng;
pub mod servers;
