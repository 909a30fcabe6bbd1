//! Owns the list of entries that were found damaged and are not mended yet.
//!
//! Whoever reads an entry that must be there and does not check, adds it; whoever rewrites it from a peer takes it off,
//! and so does a cut before it. In memory only: what is forgotten with the process is found again by the next read or
//! by the scrub.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::chain::ids::Origin;
use crate::store::StoreError;

/// Wounds that are remembered. Further ones are found again once these are mended.
const DAMAGED_ENTRIES_MAX: usize = 65_536;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Damage {
    entries: Mutex<BTreeSet<(Origin, u64)>>,
    engine_failure: OnceLock<String>,
}

impl Damage {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(Origin, u64)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner) // no change of a set stops half-way
    }

    /// This entry is damaged.
    pub fn add(&self, origin: Origin, seq: u64) {
        let mut wounds = self.lock();
        if wounds.len() < DAMAGED_ENTRIES_MAX && wounds.insert((origin, seq)) {
            tracing::error!(%origin, seq, "an entry is damaged");
        }
    }

    /// The engine failed while reading: it is not one entry that is damaged, but the file or the disk.
    pub(in crate::store) fn engine_failed(&self, error: &StoreError) {
        let _later_ones_say_the_same = self.engine_failure.set(error.to_string());
    }

    /// Whether that happened, and how.
    pub fn engine_failure(&self) -> Option<&str> {
        self.engine_failure.get().map(String::as_str)
    }

    /// This entry is whole again.
    pub fn remove(&self, origin: Origin, seq: u64) {
        self.lock().remove(&(origin, seq));
    }

    /// From here on the log has ended.
    pub fn remove_from(&self, origin: Origin, seq: u64) {
        self.lock().retain(|(of, at)| *of != origin || *at < seq);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// All of them, by log and seq.
    pub fn all(&self) -> Vec<(Origin, u64)> {
        self.lock().iter().copied().collect()
    }

    /// Those of one log within these bounds.
    pub fn within(&self, origin: Origin, first: u64, last: u64) -> Vec<u64> {
        if first > last {
            return Vec::new();
        }
        self.lock().range((origin, first)..=(origin, last)).map(|(_, seq)| *seq).collect()
    }
}
