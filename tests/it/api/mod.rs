//! Does every HTTP path answer as the contract says, at a node and through the proxy alike?
//!
//! One file per question of a client: what is stored, what is listed, what is refused, and which requests need a key.

mod acks;
mod auth;
mod auth_side_channels;
mod batch;
mod copies;
mod descriptors;
mod history;
mod hostile_clients;
mod long_reads;
mod pages;
mod refusals;
mod send;
mod status;
mod sync;
