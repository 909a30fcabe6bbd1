//! Owns removing the index rows of a log from its cut on, and keeping the counts right.
//!
//! Rows are removed from the file only. If the memtable has the id of such an entry, it is flushed first, because the
//! counts that its copy adds assume that the older copy exists. Called by the committer alone, so nothing is added
//! meanwhile. Removing a row that is missing changes nothing, so after a crash the piece is simply removed again.
//!
//! The rows of an entry are derived from its record. A damaged entry that left its log with a cut has no record, so its
//! rows dangle: they name a key that no log covers. Such a cut sets a mark in the file; while it is set, all of `by_id`
//! is searched for keys that cuts removed, a part at a time. Dangling rows in `by_user` stay, because readers skip
//! them. The index is not rebuilt instead: with ten million messages a rebuild takes minutes, and a bad peer can cause
//! one cut after another.

use std::collections::BTreeMap;
use std::ops::Bound::{self, Excluded, Unbounded};

use redb::{ReadableTable, Table, WriteTransaction};

use super::super::{Counts, StoreError, StoredCopy};
use super::copies::{CopyScan, IdKey};
use super::tables::{self, BY_ID, BY_USER, COPIES, DANGLING_NAME, IndexRows, UserKey};
use super::{Index, lock};
use crate::chain::frontier::SnapshotId;
use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::chain::message::Digest;
use crate::chain::record::Entry;
use crate::store::index::memtable::IndexEntry;
use crate::store::log::purge::Purged;

const SCAN_ROWS: usize = 4_096;

#[derive(Debug, Default)]
struct PurgedRows {
    /// Sorted, so that the rows of one id are together.
    by_id: Vec<IdKey>,
    by_user: Vec<UserKey>,
    /// The last entry of each log that stays, which becomes its watermark: if the log falls back to its state before
    /// the cut, the entries after it are indexed again.
    marks: BTreeMap<Origin, u64>,
}

impl PurgedRows {
    /// Removes the rows and writes the counts without them. Returns what the counts lose.
    fn remove(&self, tx: &WriteTransaction, counts: Counts) -> Result<Counts, StoreError> {
        let mut less = Counts::default();
        let mut by_id = tx.open_table(BY_ID)?;
        for keys in self.by_id.chunk_by(|one, next| one.0 == next.0) {
            let id = keys[0].0;
            // Frontier snapshots are found by an id of their own and are not counted.
            let is_message = |digest: Digest| SnapshotId::of(digest).0 != id;
            let (mut gone, mut left) = (0, 0);
            for keys in keys.chunk_by(|one, next| one.1 == next.1) {
                let (digest, mut is_removed) = (Digest(keys[0].1), false);
                for key in keys {
                    is_removed |= by_id.remove(*key)?.is_some();
                }
                let is_left = next_copy(&by_id, &mut CopyScan::of_content(id, digest))?.is_some();
                gone += u64::from(is_removed && !is_left && is_message(digest));
            }
            let mut scan = CopyScan::of_id(id);
            while left < 2
                && let Some(copy) = next_copy(&by_id, &mut scan)?
            {
                left += u64::from(is_message(copy.digest));
                scan.skip_content();
            }
            less.messages += gone;
            less.conflicts += u64::from(left < 2 && left + gone >= 2);
        }
        drop(by_id);
        let mut copies = tx.open_table(COPIES)?;
        for (.., origin, seq) in &self.by_id {
            copies.remove((*origin, *seq))?;
        }
        drop(copies);
        let mut by_user = tx.open_table(BY_USER)?;
        for key in &self.by_user {
            by_user.remove(*key)?;
        }
        drop(by_user);
        tables::lower_watermarks(tx, &self.marks)?;
        tables::put_counts(tx, counts.minus(less))?;
        Ok(less)
    }
}

fn next_copy(by_id: &Table<IdKey, ()>, scan: &mut CopyScan) -> Result<Option<StoredCopy>, StoreError> {
    let next = by_id.range::<IdKey>(scan.range())?.next().transpose()?;
    Ok(next.map(|(key, _)| scan.pass(key.value())))
}

impl Index {
    /// Removes entries of a log that is cut at `cut`. `false`: not yet, a part of the memtable was flushed instead.
    pub(in crate::store) fn purge(
        &self,
        entries: &[Entry],
        origin: Origin,
        cut: u64,
    ) -> Result<bool, StoreError> {
        let indexed: Vec<IndexEntry> = entries.iter().map(IndexEntry::new).collect();
        let rows = IndexRows::of(indexed.iter());
        self.remove_rows(&PurgedRows {
            by_id: rows.by_id,
            by_user: rows.by_user.iter().map(|(key, _)| *key).collect(),
            marks: BTreeMap::from([(origin, cut - 1)]),
        })
    }

    fn remove_rows(&self, rows: &PurgedRows) -> Result<bool, StoreError> {
        let memtable = self.memtable();
        let is_in_memtable =
            rows.by_id.iter().any(|(id, ..)| memtable.copy_in(&CopyScan::of_id(*id)).is_some());
        drop(memtable);
        if is_in_memtable {
            self.flush()?;
            return Ok(false);
        }
        let mut flushed_counts = lock(&self.flushed_counts);
        let less = self.db.write(|tx| rows.remove(tx, *flushed_counts))?;
        *flushed_counts = flushed_counts.minus(less);
        let mut counts = lock(&self.counts);
        *counts = counts.minus(less);
        Ok(true)
    }

    /// Marks the file: a cut is about to leave dangling rows in it.
    pub(in crate::store) fn mark_dangling(&self) -> Result<(), StoreError> {
        self.set_dangling(Some(Unbounded))
    }

    fn set_dangling(&self, scan: Option<Bound<IdKey>>) -> Result<(), StoreError> {
        let _one_write_at_a_time = lock(&self.flushed_counts);
        let mark = scan.is_some().then_some(&[][..]);
        self.db.write(|tx| tables::set_meta(tx, DANGLING_NAME, mark))?;
        *lock(&self.dangling_scan) = scan;
        Ok(())
    }

    /// Whether the file may have dangling rows: the counts may include messages that no log has.
    pub fn may_have_dangling(&self) -> bool {
        lock(&self.dangling_scan).is_some()
    }

    /// Searches the next part of `by_id` for keys that the cuts of `logs` removed, and removes their rows.
    /// Called by the writer alone.
    pub fn purge_dangling(&self, logs: &Logs, purged: &Purged) -> Result<(), StoreError> {
        let Some(from) = *lock(&self.dangling_scan) else { return Ok(()) };
        let keys: Vec<IdKey> = self.db.read(|tx| {
            let table = tx.open_table(BY_ID)?;
            let rows = table.range::<IdKey>((from, Unbounded))?.take(SCAN_ROWS);
            rows.map(|row| Ok(row?.0.value())).collect()
        })?;
        let next = keys.last().copied().filter(|_| keys.len() == SCAN_ROWS);
        let mut rows = PurgedRows::default();
        for key in keys {
            let (.., origin, seq) = key;
            let origin = Origin(origin);
            let limit = logs.vector().limit(origin);
            if seq > limit {
                purged.add(origin, limit + 1);
                rows.by_id.push(key);
                rows.marks.insert(origin, limit);
            }
        }
        if !rows.by_id.is_empty() && !self.remove_rows(&rows)? {
            return Ok(()); // the next call searches the same part
        }
        match next {
            Some(next) => *lock(&self.dangling_scan) = Some(Excluded(next)),
            None => self.set_dangling(None)?,
        }
        Ok(())
    }
}
