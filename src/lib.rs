//! ChatChain: a chat and message log that keeps working while any one of its nodes does.

pub mod api;
pub mod chain;
pub mod cli;
pub mod client;
pub mod commands;
pub mod config;
pub mod node;
pub mod output;
pub mod proxy;
pub mod serve;
pub mod store;
