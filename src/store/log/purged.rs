//! Owns which rows behind cuts are being removed, since the store was opened.
//!
//! It is noted before the first of them goes. So whoever misses a row there can tell that from damage, and a listing of
//! a vector from before the cut learns that it can no longer be whole.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use crate::chain::ids::Origin;
use crate::chain::logs::Logs;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Purged(RwLock<BTreeMap<Origin, u64>>);

impl Purged {
    /// From now on rows of this log from `cut` on may be gone.
    pub(in crate::store) fn add(&self, origin: Origin, cut: u64) {
        let mut swept = self.0.write().unwrap_or_else(PoisonError::into_inner); // no change of a map stops half-way
        let from = swept.entry(origin).or_insert(cut);
        *from = cut.min(*from);
    }

    /// Whether this row may be gone.
    pub fn covers(&self, origin: Origin, seq: u64) -> bool {
        let swept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        swept.get(&origin).is_some_and(|from| *from <= seq)
    }

    /// An entry that `logs` cover and that may be gone: they are from before its cut.
    pub fn purged_entry_of(&self, logs: &Logs) -> Option<(Origin, u64)> {
        let swept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = swept.iter().map(|(origin, from)| (*origin, *from));
        all.find(|(origin, from)| *from <= logs.vector().seq(*origin))
    }
}
