//! Owns how entries that are behind a cut are taken out of the index, and how the counts stay true of the rest.
//!
//! What is taken out is taken out of the file only: an entry whose id the tail knows as well waits until the file has all
//! of it, for what a newer copy adds to the counts was worked out with the older one there. Called by the writer alone,
//! so nothing is noted meanwhile. To take out what is not there changes nothing, so a crash in between is made good by
//! doing it again.
//!
//! Whoever reads a log's rows finds those of the index by them. Of an entry that was lost with a cut nothing can be read;
//! so a mark in the file has all of `by_id` looked through for places behind cuts. What stays in `by_user` of such an entry
//! leads to a place that no log covers, and harms nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{self, Excluded, Unbounded};
use std::sync::atomic::Ordering;

use redb::{Database, ReadableDatabase, ReadableTable};

use super::super::{Counts, StoreError};
use super::tables::{self, BY_ID, BY_USER, COPIES, IdKey, IndexRows, UserKey};
use super::{Index, lock};
use crate::chain::frontier::SnapshotId;
use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::chain::message::Digest;
use crate::chain::record::Entry;
use crate::store::engine::catch_panic::catch_engine_panic;
use crate::store::index::memtable::IndexEntry;
use crate::store::log::purge::Purged;

/// Rows of `by_id` looked at together.
const SCAN_ROWS: usize = 4_096;

/// What is to be taken out.
#[derive(Debug, Default)]
struct PurgedRows {
    by_id: BTreeMap<[u8; 16], Vec<([u8; 16], u64)>>,
    by_user: Vec<UserKey>,
    /// The last entry of each log that stays. The index does not cover more: should the log fall back to what it was
    /// before the cut, it is indexed again.
    marks: BTreeMap<Origin, u64>,
}

impl PurgedRows {
    fn add(&mut self, (id, origin, seq): IdKey) {
        self.by_id.entry(id).or_default().push((origin, seq));
    }

    /// Takes it out. Gives what the counts lose with it; they are written with it.
    fn remove(&self, db: &Database, counts: Counts) -> Result<Counts, StoreError> {
        let tx = db.begin_write()?;
        let mut less = Counts::default();
        {
            let mut by_id = tx.open_table(BY_ID)?;
            for (id, places) in &self.by_id {
                // Milestones are found by a name of their own, and not counted.
                let counts = |digest: &[u8; 32]| SnapshotId::of(Digest(*digest)).0 != *id;
                let mut gone = BTreeSet::new();
                for (origin, seq) in places {
                    let digest = by_id.remove((*id, *origin, *seq))?.map(|value| value.value().1);
                    gone.extend(digest.filter(counts));
                }
                if gone.is_empty() {
                    continue;
                }
                let mut left = BTreeSet::new();
                for row in by_id.range((*id, [0; 16], 0)..=(*id, [0xff; 16], u64::MAX))? {
                    left.extend(Some(row?.1.value().1).filter(counts));
                }
                let lost = gone.difference(&left).count();
                less.messages += lost as u64;
                less.conflicts += u64::from(left.len() < 2 && left.len() + lost >= 2);
            }
        }
        {
            let mut copies = tx.open_table(COPIES)?;
            for place in self.by_id.values().flatten() {
                copies.remove(*place)?;
            }
        }
        {
            let mut by_user = tx.open_table(BY_USER)?;
            for key in &self.by_user {
                by_user.remove(*key)?;
            }
        }
        tables::lower_watermarks(&tx, &self.marks)?;
        tables::put_counts(&tx, counts.minus(less))?;
        tx.commit()?;
        Ok(less)
    }
}

impl Index {
    /// Takes out entries of a log that is cut at `cut`. `false`: not yet, the tail is shorter now.
    pub(in super::super) fn purge(
        &self,
        entries: &[Entry],
        origin: Origin,
        cut: u64,
    ) -> Result<bool, StoreError> {
        let mut gone = PurgedRows { marks: BTreeMap::from([(origin, cut - 1)]), ..PurgedRows::default() };
        for entry in entries {
            let rows = IndexRows::of(std::iter::once(&IndexEntry::new(entry)));
            rows.by_id.iter().for_each(|(key, _)| gone.add(*key));
            gone.by_user.extend(rows.by_user.iter().map(|(key, _)| *key));
        }
        self.remove_rows(&gone)
    }

    fn remove_rows(&self, gone: &PurgedRows) -> Result<bool, StoreError> {
        let is_in_tail = {
            let tail = self.read_memtable();
            gone.by_id.keys().any(|id| !tail.standings(id).is_empty())
        };
        if is_in_tail {
            self.flush()?;
            return Ok(false);
        }
        let mut flushed = lock(&self.flushed_counts);
        let less = catch_engine_panic(|| gone.remove(&self.db, *flushed))?;
        *flushed = flushed.minus(less);
        let mut counts = lock(&self.counts);
        *counts = counts.minus(less);
        Ok(true)
    }

    /// Entries are about to be lost with a cut: see [`Index::look_for_lost`].
    pub(in super::super) fn mark_dangling(&self) -> Result<(), StoreError> {
        let _flushed = lock(&self.flushed_counts);
        catch_engine_panic(|| tables::set_dangling_mark(&self.db, true))?;
        *lock(&self.dangling_scan_from) = Unbounded;
        self.may_have_dangling.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether there may be entries in it that were lost.
    pub(in super::super) fn may_have_dangling(&self) -> bool {
        self.may_have_dangling.load(Ordering::Relaxed)
    }

    /// Looks through the next part of `by_id` for places behind the cuts of `logs`, and takes them out.
    pub(in super::super) fn purge_dangling(&self, logs: &Logs, swept: &Purged) -> Result<(), StoreError> {
        let from = *lock(&self.dangling_scan_from);
        let (keys, next) = catch_engine_panic(|| self.keys_from(from))?;
        let mut gone = PurgedRows::default();
        for (id, origin, seq) in keys {
            let limit = logs.vector().limit(Origin(origin));
            if seq > limit {
                swept.add(Origin(origin), limit + 1);
                gone.add((id, origin, seq));
                gone.marks.insert(Origin(origin), limit);
            }
        }
        if !gone.by_id.is_empty() && !self.remove_rows(&gone)? {
            return Ok(()); // the same part is looked at again
        }
        if let Some(next) = next {
            *lock(&self.dangling_scan_from) = Excluded(next);
            return Ok(());
        }
        let _flushed = lock(&self.flushed_counts);
        catch_engine_panic(|| tables::set_dangling_mark(&self.db, false))?;
        self.may_have_dangling.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Also the last of them, unless the table ends with it.
    fn keys_from(&self, from: Bound<IdKey>) -> Result<(Vec<IdKey>, Option<IdKey>), StoreError> {
        let table = self.db.begin_read()?.open_table(BY_ID)?;
        let mut keys = Vec::new();
        for row in table.range::<IdKey>((from, Unbounded))?.take(SCAN_ROWS) {
            keys.push(row?.0.value());
        }
        let next = keys.last().copied().filter(|_| keys.len() == SCAN_ROWS);
        Ok((keys, next))
    }
}
