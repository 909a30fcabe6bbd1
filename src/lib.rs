//! ChatChain: a chat and message log that keeps working while any one of its nodes does.

pub mod api;
pub mod chain;
pub mod client;
pub mod serve;
pub mod store;
