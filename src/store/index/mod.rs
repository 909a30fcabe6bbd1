//! Owns `index.redb`: messages by id, by user, and which entries have further copies. Derived from the log.
//!
//! After a commit and before its acknowledgements, `Store::commit` adds the entries to the memtable. Later the indexer
//! thread writes them to the file in large transactions, each with the watermark of every log it covers. Readers ask
//! both ([`reader`]). Entries that are cut off are removed again ([`purge`]). Must not know filters, cursors or peers.
//!
//! Tables: `meta` (name -> bytes), `watermark` (origin -> seq), `by_id` (id, digest, stamp, origin, seq -> ()),
//! `by_user` (name hash, stamp, origin, seq -> roles), `copies` and `holes` (origin, seq -> ()). On disk,
//! `holes` are the unindexed entries, and the key `lost` in `meta` marks dangling rows.
//!
//! Invariants: the file has every entry up to its watermarks except the unindexed ones (`holes`); the memtable has the
//! rest. The file is rebuilt if it belongs to another store, has another format, or covers more than the log has.

mod copies;
#[cfg(test)]
pub(crate) mod fake;
pub(super) mod memtable;
mod overlay;
mod purge;
mod reader;
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound::{self, Unbounded};
use std::sync::{
    Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use std::time::Duration;

use super::log::{LogFile, ReadLimit, WriteBatch};
use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::store::engine::catch_panic::{GuardedDb, catch_panic};
use crate::store::engine::files::{self, FileIdentity, Files, OpenMode};
use crate::store::index::memtable::Memtable;
use crate::store::{Counts, OpenError, OpenPolicy, StoreError, StoreId, recovery};
pub use copies::CopyScan;
use copies::IdKey;
pub(super) use memtable::IndexEntry;
pub use overlay::IndexOverlay;
pub use reader::IndexReader;
use tables::IndexRows;

/// redb's page cache for the index. Ids are random, so it needs more than the log does.
const CACHE_BYTES: usize = 64 << 20;
/// Entries in one transaction. A larger one makes the random writes cheaper per entry.
const FLUSH_COUNT: usize = 16_384;
/// Entries in the memtable at most. At the bound the committer flushes before it continues: sends become slower, and
/// memory stays bounded.
const MEMTABLE_COUNT_MAX: usize = 131_072;
/// Free disk space that a flush leaves for the log. The writer refuses everything while there is less than twice this.
const FLUSH_LEAVES_BYTES: u64 = 16 << 20;
/// Disk space that a flush may need for one entry: a new page for each of its four rows.
const FLUSH_ENTRY_BYTES: u64 = 16 << 10;
/// Entries that are flushed at a time from a memtable that is full, although the disk is full as well.
const FLUSH_COUNT_MIN: usize = 256;
/// Unindexed entries that are kept in memory, or read from the file, at a time. At the bound they are written to the
/// file.
const UNINDEXED_COUNT_MAX: usize = 16_384;
/// How long fewer than [`FLUSH_COUNT`] entries wait for more before they are flushed.
const FLUSH_IDLE: Duration = Duration::from_secs(1);

/// The open index: the file and the memtable above it.
#[derive(Debug)]
pub struct Index {
    db: GuardedDb,
    files: Box<dyn Files>,
    memtable: RwLock<Memtable>,
    /// Damaged entries that were found while the index caught up with the log, and that the file does not list yet.
    unindexed: Mutex<BTreeSet<(Origin, u64)>>,
    /// Of file and memtable together.
    counts: Mutex<Counts>,
    /// Of the file alone. Held by every write to the file, so that writes run one at a time.
    flushed_counts: Mutex<Counts>,
    /// Where the search for dangling rows continues; `None`: the file has no dangling rows (see [`purge`]).
    dangling_scan: Mutex<Option<Bound<IdKey>>>,
    work: Mutex<IndexerWork>,
    wake: Condvar,
    /// The first failure of a read.
    read_failure: OnceLock<String>,
    is_new: bool,
}

/// What the indexer thread waits for.
#[derive(Debug, Default)]
struct IndexerWork {
    waiting: usize,
    stopped: bool,
}

/// Locks a mutex that a panic may have poisoned: every assignment under these locks leaves a valid state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Index {
    /// Opens the file next to `log`, or rebuilds it, and indexes the entries that it does not cover. An error means
    /// that the log cannot be read or the disk fails: nothing in a new index can be damaged.
    pub(in crate::store) fn open(
        files: &dyn Files,
        log: &LogFile,
        logs: &Logs,
        policy: OpenPolicy,
    ) -> Result<Self, OpenError> {
        let corrupt = |error: StoreError| error.while_opening(files.path(files::INDEX));
        if !policy.rebuilds_index() {
            let open_existing = || {
                let mode = recovery::open_mode(files, files::INDEX, policy);
                let db = GuardedDb::new(files.database(files::INDEX, CACHE_BYTES, mode)?);
                Self::use_existing(files, db, log, logs).map_err(corrupt)
            };
            match catch_panic(|| Ok(open_existing())).map_err(corrupt).flatten() {
                Ok(Some(index)) => return Ok(index),
                Err(error @ OpenError::InUse(_)) => return Err(error),
                Err(error) if error.is_unwritable() => return Err(error), // a new index needs more space
                // A new index would not make the log readable.
                Err(OpenError::Io { source, .. }) if log.damage().engine_failure().is_some() => {
                    return Err(OpenError::Io { path: files.path(files::LOG), source });
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "rebuilding the index"),
            }
        }
        let db = GuardedDb::new(files.database(files::INDEX, CACHE_BYTES, OpenMode::Replace)?);
        db.write(|tx| tables::write_meta(tx, log)).map_err(corrupt)?;
        let index = Index { is_new: true, ..Self::new(files, db, Counts::default(), None) };
        index.catch_up(log, logs).map_err(corrupt)?;
        Ok(index)
    }

    /// Whether there is a file that covers entries of a log. A file that cannot be read covers none.
    pub(in crate::store) fn covers_entries(files: &dyn Files) -> bool {
        let read = || {
            let opened = files.database(files::INDEX, CACHE_BYTES, OpenMode::Unchecked);
            let Ok(opened) = opened else { return Ok(false) };
            GuardedDb::new(opened).read(|tx| Ok(tables::read_watermarks(tx)?.values().any(|seq| *seq > 0)))
        };
        files.len(files::INDEX).is_ok_and(|len| len.is_some_and(|len| len > 0))
            && catch_panic(read).unwrap_or(false)
    }

    /// `None`: the file is new, or cannot serve this log.
    fn use_existing(
        files: &dyn Files,
        db: GuardedDb,
        log: &LogFile,
        logs: &Logs,
    ) -> Result<Option<Self>, StoreError> {
        let read = db.read(|tx| {
            let Some(counts) = tables::read_meta(tx, log)? else { return Ok(None) };
            Ok(Some((counts, tables::read_watermarks(tx)?, tables::has_dangling_mark(tx)?)))
        });
        let Some((counts, marks, has_mark)) = read? else { return Ok(None) };
        // Rows of entries that were cut off are allowed: readers check every key against the vector.
        let limit = |origin: &Origin| logs.vector().limit(*origin);
        if marks.iter().any(|(origin, seq)| *seq.min(&limit(origin)) > logs.vector().seq(*origin)) {
            return Ok(None);
        }
        // An earlier program made a cut, did not purge it, and left no mark.
        let is_unpurged = marks.iter().any(|(origin, seq)| *seq > limit(origin));
        let index = Self::new(files, db, counts, (is_unpurged || has_mark).then_some(Unbounded));
        index.catch_up(log, logs)?;
        Ok(Some(index))
    }

    fn new(files: &dyn Files, db: GuardedDb, counts: Counts, dangling_scan: Option<Bound<IdKey>>) -> Self {
        Index {
            db,
            files: files.boxed(),
            memtable: RwLock::default(),
            unindexed: Mutex::default(),
            counts: Mutex::new(counts),
            flushed_counts: Mutex::new(counts),
            dangling_scan: Mutex::new(dangling_scan),
            work: Mutex::default(),
            wake: Condvar::new(),
            read_failure: OnceLock::new(),
            is_new: false,
        }
    }

    /// Adds every entry above the watermarks, and the unindexed ones that are intact now. A damaged entry is listed as
    /// unindexed; its repair adds it.
    fn catch_up(&self, log: &LogFile, logs: &Logs) -> Result<(), StoreError> {
        let marks = self.db.read(tables::read_watermarks)?;
        self.add_unindexed(log, logs, &marks)?;
        let limit = ReadLimit { rows: 1_000, bytes: 1 << 20 };
        for (origin, span) in logs.vector().iter() {
            let (head, mark) = (span.head, marks.get(&origin).copied().unwrap_or(0));
            let mut next = mark.max(span.floor.seq) + 1;
            while next <= head.seq {
                let entries = match log.read()?.forward(origin, next, head.seq, limit) {
                    Err(StoreError::Damaged { seq, .. }) => {
                        self.list_unindexed(origin, seq)?;
                        next = seq + 1;
                        continue;
                    }
                    entries => entries?,
                };
                next += entries.len() as u64;
                let mut overlay = self.overlay();
                for entry in entries {
                    self.add_entry(overlay.stage(&entry)?);
                }
                self.flush_if_large()?;
            }
        }
        Ok(())
    }

    /// Adds the entries below the watermarks that the file lists as unindexed, if they are intact now.
    fn add_unindexed(
        &self,
        log: &LogFile,
        logs: &Logs,
        marks: &BTreeMap<Origin, u64>,
    ) -> Result<(), StoreError> {
        let mut from = Bound::Unbounded;
        loop {
            let rows = self.db.read(|tx| tables::read_unindexed(tx, from, UNINDEXED_COUNT_MAX))?;
            let Some(last) = rows.last() else { return Ok(()) };
            from = Bound::Excluded(*last);
            for (origin, seq) in rows.into_iter().map(|(origin, seq)| (Origin(origin), seq)) {
                // One above the watermark is read with its log. One after the head was cut off, and one up to the
                // floor is not kept.
                let mark = marks.get(&origin).copied().unwrap_or(0);
                if seq > mark || !logs.vector().get(origin).is_some_and(|span| span.holds(seq)) {
                    continue;
                }
                match log.read()?.get(origin, seq) {
                    Ok(entry) => self.add_entry(self.overlay().stage(&entry)?),
                    Err(StoreError::Damaged { .. }) => {} // the file goes on to list it
                    Err(error) => return Err(error),
                }
                self.flush_if_large()?;
            }
        }
    }

    fn list_unindexed(&self, origin: Origin, seq: u64) -> Result<(), StoreError> {
        let _one_write_at_a_time = lock(&self.flushed_counts);
        let mut unindexed = lock(&self.unindexed);
        unindexed.insert((origin, seq));
        if unindexed.len() >= UNINDEXED_COUNT_MAX {
            self.db.write(|tx| tables::put_unindexed(tx, &unindexed))?;
            unindexed.clear();
        }
        Ok(())
    }

    fn flush_if_large(&self) -> Result<(), StoreError> {
        if self.memtable().len() >= FLUSH_COUNT {
            self.flush()?;
        }
        self.make_room() // the flush does nothing while the disk is full
    }

    pub(in crate::store) fn identity(&self) -> FileIdentity {
        self.db.identity
    }

    fn add_entry(&self, entry: IndexEntry) {
        lock(&self.counts).add(entry.counts);
        self.memtable_mut().push(entry);
    }

    /// Flushes until the memtable has room for a batch.
    pub(in crate::store) fn make_room(&self) -> Result<(), StoreError> {
        while self.memtable().len() >= MEMTABLE_COUNT_MAX {
            self.flush_most(self.flush_count_max().max(FLUSH_COUNT_MIN))?;
        }
        Ok(())
    }

    /// Entries that can be flushed without the risk that the disk becomes full: after a failed write, redb does not
    /// even read until the file is opened again.
    fn flush_count_max(&self) -> usize {
        let count = self.files.free_bytes().saturating_sub(FLUSH_LEAVES_BYTES) / FLUSH_ENTRY_BYTES;
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// Adds the entries of a batch that is durable in the log.
    pub(in crate::store) fn add_committed(&self, batch: WriteBatch) {
        for entry in batch.entries.into_iter().chain(batch.repaired).filter_map(|row| row.index) {
            // The file lists a repaired entry as unindexed until it has it, so a crash before the flush loses nothing.
            self.add_entry(entry);
        }
        let waiting = self.memtable().len();
        lock(&self.work).waiting = waiting;
        if waiting >= FLUSH_COUNT {
            self.wake.notify_all();
        }
    }

    /// Waits until there is something to flush. `false`: the store is being closed. Called by the indexer thread.
    pub fn wait_for_work(&self) -> bool {
        let idle = |work: &mut IndexerWork| !work.stopped && work.waiting < FLUSH_COUNT;
        let waited = self.wake.wait_timeout_while(lock(&self.work), FLUSH_IDLE, idle);
        let (work, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !work.stopped
    }

    /// Ends the indexer thread's waiting. What it has not flushed is indexed at the next opening.
    pub fn stop(&self) {
        lock(&self.work).stopped = true;
        self.wake.notify_all();
    }

    /// Writes the oldest part of the memtable to the file, if the disk has room. `true` if there is more to write now.
    pub(in crate::store) fn flush(&self) -> Result<bool, StoreError> {
        self.flush_most(self.flush_count_max())
    }

    fn flush_most(&self, most: usize) -> Result<bool, StoreError> {
        let mut flushed_counts = lock(&self.flushed_counts);
        // Only a flush drops entries, and only one runs at a time.
        let count = self.memtable().len().min(FLUSH_COUNT).min(most);
        if count == 0 {
            lock(&self.work).waiting = 0; // on a full disk, the indexer waits before it looks again
            return Ok(false);
        }
        let rows = IndexRows::of(self.memtable().oldest(count));
        let mut counts = *flushed_counts;
        counts.add(rows.counts);
        // If the write fails, the indexer waits before it tries again, however much there is to flush.
        lock(&self.work).waiting = 0;
        let mut unindexed = lock(&self.unindexed);
        self.db.write(|tx| rows.write(tx, counts, &unindexed))?;
        unindexed.clear();
        drop(unindexed);
        *flushed_counts = counts;
        self.memtable_mut().drop_oldest(count);
        let left = self.memtable().len();
        lock(&self.work).waiting = left;
        Ok(left > 0)
    }

    /// Marks the file as wrong: the next opening rebuilds it.
    pub fn invalidate(&self) {
        let _one_write_at_a_time = lock(&self.flushed_counts);
        if let Err(error) = self.db.write(|tx| tables::set_meta(tx, tables::FORMAT_NAME, None)) {
            tracing::error!(%error, "the index is wrong and cannot be marked as such");
        }
    }

    /// Ties the file to a log whose store id has changed.
    pub(in crate::store) fn set_id(&self, id: StoreId) -> Result<(), StoreError> {
        let _one_write_at_a_time = lock(&self.flushed_counts);
        self.db.write(|tx| tables::set_meta(tx, tables::STORE_ID_NAME, Some(&id.0)))
    }

    /// How reading the file failed, if it did.
    pub(in crate::store) fn read_failure(&self) -> Option<&str> {
        self.read_failure.get().map(String::as_str)
    }

    /// Whether this opening made the file: it was missing or unusable.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    pub(in crate::store) fn counts(&self) -> Counts {
        *lock(&self.counts)
    }

    pub fn reader(&self) -> IndexReader<'_> {
        IndexReader { index: self, tables: None }
    }

    pub fn overlay(&self) -> IndexOverlay<'_> {
        IndexOverlay { reader: self.reader(), staged: BTreeSet::new(), known: HashMap::new() }
    }

    pub(in crate::store) fn memtable(&self) -> RwLockReadGuard<'_, Memtable> {
        self.memtable.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn memtable_mut(&self) -> RwLockWriteGuard<'_, Memtable> {
        self.memtable.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn however_many_entries_are_damaged_few_of_them_are_kept_in_memory() {
        const COUNT: u64 = 40_000;
        let dir = tempfile::tempdir().expect("temp dir");
        let (store, _) = Store::open(dir.path(), "test", 0).expect("opens");
        let index = store.index();
        for seq in 1..=COUNT {
            index.list_unindexed(Origin([1; 16]), seq).expect("writes");
            assert!(lock(&index.unindexed).len() < UNINDEXED_COUNT_MAX);
        }
        let (mut from, mut in_file) = (Unbounded, 0);
        while let Ok(rows) = index.db.read(|tx| tables::read_unindexed(tx, from, 1_000))
            && let Some(last) = rows.last()
        {
            (from, in_file) = (Bound::Excluded(*last), in_file + rows.len());
        }
        assert_eq!(in_file + lock(&index.unindexed).len(), 40_000);
    }
}
