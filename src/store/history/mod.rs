//! Reads of history: which messages a listing or a feed shows, in display order.
//!
//! `listing` and `feed_scan` are asked by the node; both read through `merge` (all logs) or `user_scan` (the index).

pub mod feed_scan;
pub mod listing;
mod merge;
mod snapshots;
mod user_scan;
