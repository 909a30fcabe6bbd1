//! All integration tests, in one program so that it links once: real processes, the API, the command line, tidiness.
//!
//! They know ChatChain from outside. Each starts what it needs with `support` and leaves nothing behind.

mod api_acks;
mod api_batch;
mod api_clients;
mod api_copies;
mod api_history;
mod api_pages;
mod api_refusals;
mod api_send;
mod api_status;
mod api_sync;
mod bad_ends;
mod chaos;
mod cli;
mod corpus;
mod damage;
mod disk;
mod durability;
mod feed;
mod feed_load;
mod healing;
mod lock;
mod lock_alike;
mod members;
mod network;
mod node_start;
mod outage;
mod own_writes;
mod readme;
mod scale;
mod support;
mod terminal;
mod tidy;
mod up;
mod upstream_faults;
