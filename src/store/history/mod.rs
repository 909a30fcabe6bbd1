//! Reads of history: which messages a listing or a feed shows, in display order.
//!
//! The node asks `listing` and `feed_scan`. A feed reads through `merge` (all logs), a listing through `merge` or, for
//! one user, `user_scan` (the index). `snapshots` finds frontier snapshots, which no listing shows.

use std::time::Duration;

pub mod feed_scan;
pub mod listing;
mod merge;
mod snapshots;
mod user_scan;

/// Entries read in one chunk of a listing or feed scan at most; the next chunk continues.
const CHUNK_ROWS: usize = 1_000;
/// Bytes of the records that one chunk returns; the next chunk continues.
const CHUNK_BYTES: usize = 256 << 10;
/// How long one chunk may pin pages; the next chunk continues.
const CHUNK_TIME: Duration = Duration::from_millis(20);
