//! Does every HTTP path answer as the contract says, at a node and through the proxy alike?
//!
//! One file per question that a client of the API asks: what is stored, what is listed, what is refused, who may ask.

mod acks;
mod auth;
mod auth_side_channels;
mod batch;
mod copies;
mod history;
mod hostile_clients;
mod pages;
mod refusals;
mod send;
mod status;
mod sync;
