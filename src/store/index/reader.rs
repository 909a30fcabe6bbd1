//! Owns reading the index: memtable and file together.
//!
//! Every answer reads the memtable, then the file as of that moment or later, and drops what it finds in both (see the
//! invariant of `memtable`). So it misses nothing and may contain newer entries. `file_keys` reads the file alone. A
//! file that fails once fails every later read, so the first failure is recorded and the store is opened again.
//!
//! The rows of the file have no checksum. [`IndexReader::has_rows_of`] compares them with the log for the scrub: it
//! derives the rows from the entry again, as they were derived when the entry was added.

use std::cell::OnceCell;
use std::ops::Bound::{Excluded, Included};

use redb::{
    AccessGuard, Key, ReadOnlyTable, ReadTransaction, ReadableDatabase, TableDefinition, TableError, Value,
};
use uuid::Uuid;

use super::Index;
use super::copies::{CopyScan, IdKey};
use super::memtable::{IndexEntry, NameHash};
use super::tables::{BY_ID, BY_USER, COPIES, CopyKey, IndexRows, UserKey};
use crate::chain::clock::Stamp;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::message::Digest;
use crate::chain::record::Entry;
use crate::store::engine::catch_panic::catch_panic;
use crate::store::{StoreError, StoredCopy};

/// Reads of the index that share one transaction while they can. Short-lived: it pins pages.
pub struct IndexReader<'a> {
    pub(super) index: &'a Index,
    /// The file as of one moment, and the memtable's epoch at that moment.
    pub(super) tables: Option<(u64, Tables)>,
}

/// The tables, each opened when it is first read: to open one takes as long as several look-ups.
pub(super) struct Tables {
    tx: ReadTransaction,
    by_id: OnceCell<ReadOnlyTable<IdKey, ()>>,
    by_user: OnceCell<ReadOnlyTable<UserKey, u8>>,
    copies: OnceCell<ReadOnlyTable<CopyKey, ()>>,
}

impl IndexReader<'_> {
    /// The next copy of a scan.
    pub fn next_copy(&mut self, scan: &mut CopyScan) -> Result<Option<StoredCopy>, StoreError> {
        Ok(self.copy_in(scan)?.map(|key| scan.pass(key)))
    }

    /// The first copy of a message that `logs` cover and that is wanted. Every copy is offered until one is.
    pub fn find_copy(
        &mut self,
        id: Uuid,
        digest: Digest,
        logs: &Logs,
        mut is_wanted: impl FnMut(EntryKey) -> bool,
    ) -> Result<Option<EntryKey>, StoreError> {
        let mut scan = CopyScan::of_content(*id.as_bytes(), digest);
        while let Some(copy) = self.next_copy(&mut scan)? {
            if logs.covers(copy.key) && is_wanted(copy.key) {
                return Ok(Some(copy.key));
            }
        }
        Ok(None)
    }

    pub(super) fn copy_in(&mut self, scan: &CopyScan) -> Result<Option<IdKey>, StoreError> {
        let (in_memtable, epoch) = {
            let memtable = self.index.memtable();
            (memtable.copy_in(scan), memtable.epoch())
        };
        let in_file = self.read(epoch, |tables| {
            let next = tables.by_id()?.range::<IdKey>(scan.range())?.next().transpose()?;
            Ok(next.map(|(key, _)| key.value()))
        })?;
        Ok(in_memtable.into_iter().chain(in_file).min())
    }

    /// Which of `first..=last` of a log have another copy, ascending.
    pub(in crate::store) fn copied_seqs(
        &mut self,
        origin: Origin,
        first: u64,
        last: u64,
    ) -> Result<Vec<u64>, StoreError> {
        let (mut seqs, epoch) = {
            let memtable = self.index.memtable();
            (memtable.copied_seqs(origin, first, last).collect::<Vec<u64>>(), memtable.epoch())
        };
        self.read(epoch, |tables| {
            for row in tables.copies()?.range((origin.0, first)..=(origin.0, last))? {
                seqs.push(row?.0.value().1);
            }
            Ok(())
        })?;
        seqs.sort_unstable();
        seqs.dedup();
        Ok(seqs)
    }

    /// Up to `rows` entries of the file in which `name` has one of `roles`, after (backward: before) `from`. Second:
    /// the last entry looked at, from which the next call continues; `None` at the end.
    pub(in crate::store) fn file_keys(
        &mut self,
        (name, roles): (NameHash, u8),
        from: Option<EntryKey>,
        backward: bool,
        rows: usize,
    ) -> Result<(Vec<EntryKey>, Option<EntryKey>), StoreError> {
        let index = self.index;
        let epoch = index.memtable().epoch();
        self.read(epoch, |tables| {
            let bound = |key: EntryKey| Excluded((name.0, key.stamp.0, key.origin.0, key.seq));
            let (mut low, mut high) =
                (Included((name.0, 0, [0; 16], 0)), Included((name.0, u64::MAX, [0xff; 16], u64::MAX)));
            if let Some(from) = from {
                *(if backward { &mut high } else { &mut low }) = bound(from);
            }
            let range = tables.by_user()?.range::<UserKey>((low, high))?;
            let mut range: Box<dyn Iterator<Item = UserRow>> =
                if backward { Box::new(range.rev()) } else { Box::new(range) };
            let (mut keys, mut last) = (Vec::new(), from);
            for _ in 0..rows {
                let Some(row) = range.next() else { return Ok((keys, None)) };
                let (row_key, row_roles) = row?;
                let (of, stamp, origin, seq) = row_key.value();
                let key = EntryKey { stamp: Stamp(stamp), origin: Origin(origin), seq };
                // A scan that continues from a row out of order would never end.
                let is_in_order = last.is_none_or(|last| if backward { key < last } else { key > last });
                if of != name.0 || !is_in_order {
                    index.invalidate();
                    return Err(StoreError::IndexRowMisplaced);
                }
                last = Some(key);
                if row_roles.value() & roles != 0 {
                    keys.push(key);
                }
            }
            Ok((keys, last))
        })
    }

    /// Whether the index has all rows of an entry: by its id, by both names, and the mark that it has a copy if `logs`
    /// cover one. What is in the memtable is right: it was never on a disk.
    pub fn has_rows_of(&mut self, entry: &Entry, logs: &Logs) -> Result<bool, StoreError> {
        let indexed = IndexEntry::new(entry);
        let (Some(id), here) = (indexed.id, indexed.copy) else { return Ok(true) };
        let (origin, seq) = (here.key.origin, here.key.seq);
        let (is_in_memtable, is_marked, epoch) = {
            let memtable = self.index.memtable();
            let is_in_memtable = memtable.copy_in(&CopyScan::of_copy(id, &here)).is_some();
            let is_marked = memtable.copied_seqs(origin, seq, seq).next().is_some();
            (is_in_memtable, is_marked, memtable.epoch())
        };
        let known = self.read(epoch, |tables| {
            if !is_in_memtable && !tables.have(&IndexRows::of(std::iter::once(&indexed)))? {
                return Ok(Some(false));
            }
            // Listings show messages only, so only their copies are marked.
            let is_marked =
                is_marked || indexed.names.is_none() || tables.copies()?.get((origin.0, seq))?.is_some();
            Ok(is_marked.then_some(true))
        })?;
        if let Some(known) = known {
            return Ok(known);
        }
        let mut scan = CopyScan::of_content(id, here.digest);
        while let Some(other) = self.next_copy(&mut scan)? {
            if other.key != here.key && logs.covers(other.key) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the file for an answer whose first part came from the memtable in this epoch. What the memtable dropped
    /// after an older transaction began is in neither of them, so such a transaction is not used.
    fn read<T>(
        &mut self,
        epoch: u64,
        work: impl FnOnce(&Tables) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let current = self.tables.take().filter(|(of, _)| *of == epoch);
        let read = catch_panic(|| {
            let tables = if let Some((_, tables)) = current {
                tables
            } else {
                let (by_id, by_user, copies) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
                Tables { tx: self.index.db.begin_read()?, by_id, by_user, copies }
            };
            Ok((work(&tables)?, tables))
        });
        let (answer, tables) = read.inspect_err(|error| {
            let _only_the_first_counts = self.index.read_failure.set(error.to_string());
        })?;
        self.tables = Some((epoch, tables));
        Ok(answer)
    }
}

impl Tables {
    fn by_id(&self) -> Result<&ReadOnlyTable<IdKey, ()>, TableError> {
        opened(&self.by_id, &self.tx, BY_ID)
    }

    fn by_user(&self) -> Result<&ReadOnlyTable<UserKey, u8>, TableError> {
        opened(&self.by_user, &self.tx, BY_USER)
    }

    fn copies(&self) -> Result<&ReadOnlyTable<CopyKey, ()>, TableError> {
        opened(&self.copies, &self.tx, COPIES)
    }

    fn have(&self, rows: &IndexRows) -> Result<bool, StoreError> {
        for key in &rows.by_id {
            if self.by_id()?.get(*key)?.is_none() {
                return Ok(false);
            }
        }
        for (key, roles) in &rows.by_user {
            if self.by_user()?.get(*key)?.is_none_or(|found| found.value() != *roles) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn opened<'a, K: Key + 'static, V: Value + 'static>(
    table: &'a OnceCell<ReadOnlyTable<K, V>>,
    tx: &ReadTransaction,
    definition: TableDefinition<'_, K, V>,
) -> Result<&'a ReadOnlyTable<K, V>, TableError> {
    if let Some(table) = table.get() {
        return Ok(table);
    }
    let opened = tx.open_table(definition)?;
    Ok(table.get_or_init(|| opened))
}

type UserRow = Result<(AccessGuard<'static, UserKey>, AccessGuard<'static, u8>), redb::StorageError>;
