//! Reads of history: which messages a listing or a feed shows, in display order.
//!
//! The node asks `listing` and `feed_scan`. A feed reads through `merge` (all logs), a listing through `merge` or, for one
//! user, `user_scan` (the index). `snapshots` finds frontier snapshots, which no listing shows.

pub mod feed_scan;
pub mod listing;
mod merge;
mod snapshots;
mod user_scan;
