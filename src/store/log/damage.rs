//! Owns what counts as damage in a row of a log, the list of damaged entries that are not repaired yet, and the first
//! read that redb failed, after which the node opens the store again.
//!
//! A reader or a repair adds an entry that must exist and is missing or fails its checksum. The commit that repairs an
//! entry, or cuts its log there or earlier, removes the entry from the list; `replica` removes one that turns out to be
//! intact or cut off. In memory only: after a restart, the next read or the scrub finds the entry again. Must not know
//! how entries are repaired.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::chain::ids::Origin;
use crate::chain::record::Entry;
use crate::store::StoreError;

/// Entries listed at most. Further ones are found again after these are repaired.
const DAMAGED_ENTRIES_MAX: usize = 65_536;

/// The entry in a row, if its checksum holds and it names this origin and seq.
pub(super) fn checked_entry(origin: Origin, seq: u64, bytes: &[u8]) -> Result<Entry, StoreError> {
    match Entry::check(bytes) {
        Ok(entry) if (entry.origin(), entry.seq(), entry.size()) == (origin, seq, bytes.len()) => Ok(entry),
        _ => Err(StoreError::Damaged { origin, seq }),
    }
}

/// The damaged entries of one open store, and the first failure of the engine.
#[derive(Debug, Default)]
pub struct Damage {
    /// Each with when it was found.
    entries: Mutex<BTreeMap<(Origin, u64), Instant>>,
    engine_failure: OnceLock<String>,
}

impl Damage {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Origin, u64), Instant>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner) // a panic cannot leave half an insert
    }

    pub fn add(&self, origin: Origin, seq: u64) {
        let mut entries = self.lock();
        if entries.len() < DAMAGED_ENTRIES_MAX && !entries.contains_key(&(origin, seq)) {
            entries.insert((origin, seq), Instant::now());
            tracing::error!(%origin, seq, "an entry is damaged");
        }
    }

    /// Records that the engine failed while reading: the file or the disk is damaged, not one entry.
    pub(in crate::store) fn engine_failed(&self, error: &StoreError) {
        let _only_the_first_counts = self.engine_failure.set(error.to_string());
    }

    /// How the engine failed, if it did.
    pub fn engine_failure(&self) -> Option<&str> {
        self.engine_failure.get().map(String::as_str)
    }

    pub fn remove(&self, origin: Origin, seq: u64) {
        self.lock().remove(&(origin, seq));
    }

    pub fn remove_from(&self, origin: Origin, seq: u64) {
        self.lock().retain(|(of, at), _| *of != origin || *at < seq);
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    pub fn all(&self) -> Vec<(Origin, u64)> {
        self.lock().keys().copied().collect()
    }

    /// Entries that were found at least this long ago.
    pub fn found_before(&self, age: Duration) -> BTreeSet<(Origin, u64)> {
        self.lock().iter().filter(|(_, found)| found.elapsed() >= age).map(|(entry, _)| *entry).collect()
    }

    pub fn within(&self, origin: Origin, first: u64, last: u64) -> Vec<u64> {
        if first > last {
            return Vec::new();
        }
        self.lock().range((origin, first)..=(origin, last)).map(|((_, seq), _)| *seq).collect()
    }
}
