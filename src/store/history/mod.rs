//! Reads of history: which messages a listing or a feed shows, in display order.
//!
//! The node asks `listing` and `feed_scan`. A feed reads through `merge` (all logs), a listing through `merge` or, for
//! one user, `user_scan` (the index). `snapshots` finds frontier snapshots, which no listing shows.

use std::time::Duration;

use crate::store::index::IndexReader;
use crate::store::log::LogReader;
use crate::store::{Store, StoreError};

pub mod feed_scan;
pub mod listing;
mod merge;
mod snapshots;
mod user_scan;

/// What one chunk reads with.
struct Readers<'a> {
    log: LogReader,
    index: IndexReader<'a>,
}

impl<'a> Readers<'a> {
    fn new(store: &'a Store) -> Result<Self, StoreError> {
        Ok(Readers { log: store.log().read()?, index: store.index().reader() })
    }
}

/// Entries read in one chunk of a listing or feed scan at most; the next chunk continues.
const CHUNK_ROWS: usize = 1_000;
/// Bytes of the records that one chunk returns; the next chunk continues.
const CHUNK_BYTES: usize = 256 << 10;
/// How long one chunk may pin pages; the next chunk continues.
const CHUNK_TIME: Duration = Duration::from_millis(20);
/// The same for the first chunk of a listing, which other short reads wait for. Most pages need less.
const FIRST_CHUNK_TIME: Duration = Duration::from_millis(5);
