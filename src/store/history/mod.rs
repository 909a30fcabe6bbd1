//! Reads of history: the merge of all logs in display order, for listings, for one user and for feeds.

pub mod feed_scan;
pub mod listing;
mod merge;
mod snapshots;
mod user_scan;
