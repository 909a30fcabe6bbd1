//! Owns `index.redb`: by id, by user, and which entries have further copies. All of it is derived from the log.
//!
//! It is written behind the acknowledgement, in large transactions, each with the per-log watermark it covers;
//! what lies above the watermark is in the [`tail`](super::tail). Whoever looks up asks the tail first and the
//! file second, because entries leave the tail only once the file has them. Deleting the file costs a rebuild.
//!
//! Tables: `meta` (name -> bytes), `watermark` (origin -> seq), `by_id` (id, origin, seq -> stamp, digest),
//! `by_user` (name hash, stamp, origin, seq -> sides), `copies` and `holes` (origin, seq -> ()). The file is rebuilt when it
//! belongs to another store, knows more than the log does, or has another format. Its rows carry no check; the scrub holds
//! them against the log ([`audit`]). What a cut leaves behind is taken out again ([`forget`]).

mod audit;
pub(super) mod memtable;
mod overlay;
mod purge;
mod tables;

use std::collections::BTreeSet;
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::sync::atomic::AtomicBool;
use std::sync::{
    Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use std::time::Duration;

use redb::{ReadOnlyTable, ReadableDatabase};

use super::log::{Log, ReadLimit, WriteBatch};
use crate::chain::clock::Stamp;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::message::Digest;
use crate::store::engine::catch_panic::{GuardedDb, catch_engine_panic, catch_panic};
use crate::store::engine::files;
use crate::store::engine::files::{Files, OpenMode};
use crate::store::index::memtable::{Memtable, NameHash};
use crate::store::{Counts, OpenError, OpenPolicy, StoreError, StoreId, StoredCopy, recovery};
pub use audit::Audit;
pub(super) use memtable::IndexEntry;
pub use overlay::IndexOverlay;
use tables::{BY_ID, BY_USER, COPIES, IdKey, IndexRows, UserKey};
#[cfg(test)]
pub(crate) use tables::{IndexRow, damage};

/// redb's page cache for the index; random ids need more of it than the log does.
const CACHE_BYTES: usize = 64 << 20;
/// Entries written to the file at once; a larger batch makes the random part of the work cheaper per entry.
const FLUSH_COUNT: usize = 16_384;
/// Entries in the tail at the most. At the bound the writer indexes before it goes on, so sends become slower,
/// and memory stays bounded.
const MEMTABLE_COUNT_MAX: usize = 131_072;
/// How long a few entries may wait for more of them before they are written.
const FLUSH_IDLE: Duration = Duration::from_secs(1);

/// The open file and the tail above it.
#[derive(Debug)]
pub struct Index {
    db: GuardedDb,
    memtable: RwLock<Memtable>,
    /// Damaged entries that neither file nor tail has, although later ones of their logs are there.
    unindexed: Mutex<BTreeSet<(Origin, u64)>>,
    /// Of file and tail together.
    counts: Mutex<Counts>,
    /// Of the file alone; held while flushing, so that one flush runs at a time.
    flushed_counts: Mutex<Counts>,
    /// There may be entries in the file that were lost with a cut: see [`forget`].
    may_have_dangling: AtomicBool,
    /// From where on they are looked for.
    dangling_scan_from: Mutex<Bound<IdKey>>,
    work: Mutex<IndexerWork>,
    wake: Condvar,
    /// How the engine failed when something was read, if it did.
    read_failure: OnceLock<String>,
    is_new: bool,
}

#[derive(Debug, Default)]
struct IndexerWork {
    waiting: usize,
    stopped: bool,
}

/// A poisoned lock means that a thread panicked between two assignments here; none of them can leave half a
/// state, so the data is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_error(files: &dyn Files, error: StoreError) -> OpenError {
    let path = files.path(files::INDEX);
    match error {
        StoreError::Storage(error) => files::classify_error(path, *error),
        other => OpenError::Corrupt { path, why: other.to_string() },
    }
}

impl Index {
    /// Opens the file beside `log`, rebuilds it where needed, and notes what it does not cover. If it is broken even so,
    /// the log is: a new index has nothing in it that could be.
    pub(in crate::store) fn open(
        files: &dyn Files,
        log: &Log,
        logs: &Logs,
        trust: OpenPolicy,
    ) -> Result<Self, OpenError> {
        let opened = if trust.rebuilds_index() {
            Ok(Ok(None))
        } else {
            catch_panic(|| Self::open_as_is(files, log, logs, trust))
        };
        match opened.unwrap_or_else(|panic| Err(open_error(files, StoreError::EnginePanicked(panic.0)))) {
            Ok(Some(index)) => return Ok(index),
            Err(error @ OpenError::InUse(_)) => return Err(error),
            // Another index would not make it readable.
            Err(OpenError::Directory { source, .. }) if log.damage().engine_failure().is_some() => {
                return Err(OpenError::Directory { path: files.path(files::LOG), source });
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "rebuilding the index"),
        }
        let mut index = Self::make_empty(files, log)?;
        index.is_new = true;
        catch_engine_panic(|| index.catch_up(log, logs)).map_err(|error| open_error(files, error))?;
        Ok(index)
    }

    /// `None`: it is new, or cannot serve this log.
    fn open_as_is(
        files: &dyn Files,
        log: &Log,
        logs: &Logs,
        trust: OpenPolicy,
    ) -> Result<Option<Self>, OpenError> {
        let how = recovery::open_mode(files, files::INDEX, trust);
        let db = GuardedDb::new(files.database(files::INDEX, CACHE_BYTES, how)?);
        let Some(counts) = tables::read_meta(&db, log).map_err(|error| open_error(files, error))? else {
            return Ok(None);
        };
        let marks = tables::read_watermarks(&db).map_err(|error| open_error(files, error))?;
        // What stood behind a cut is found under its old place and in its branch; whoever looks up knows the logs.
        let knows_more = marks
            .iter()
            .any(|(origin, seq)| *seq.min(&logs.vector().limit(*origin)) > logs.vector().seq(*origin));
        if knows_more {
            return Ok(None);
        }
        // Or a cut was made and never swept: by an earlier program, which left no mark.
        let is_left = marks.iter().any(|(origin, seq)| *seq > logs.vector().limit(*origin));
        let may_have_lost =
            is_left || tables::has_dangling_mark(&db).map_err(|error| open_error(files, error))?;
        let index = Self::new(db, counts, may_have_lost);
        index.catch_up(log, logs).map_err(|error| open_error(files, error))?;
        Ok(Some(index))
    }

    /// Begins an empty file in place of whatever is there.
    fn make_empty(files: &dyn Files, log: &Log) -> Result<Self, OpenError> {
        let db = GuardedDb::new(files.database(files::INDEX, CACHE_BYTES, OpenMode::Replace)?);
        tables::write_meta(&db, log).map_err(|error| open_error(files, error))?;
        Ok(Self::new(db, Counts::default(), false))
    }

    fn new(db: GuardedDb, counts: Counts, may_have_lost: bool) -> Self {
        Index {
            db,
            memtable: RwLock::default(),
            unindexed: Mutex::default(),
            counts: Mutex::new(counts),
            flushed_counts: Mutex::new(counts),
            may_have_dangling: AtomicBool::new(may_have_lost),
            dangling_scan_from: Mutex::new(Unbounded),
            work: Mutex::default(),
            wake: Condvar::new(),
            read_failure: OnceLock::new(),
            is_new: false,
        }
    }

    /// Notes every entry above the watermarks, and those below that were damaged and are whole now. One that is damaged
    /// is left out: what is known of it is gone, and what brings it back notes it.
    fn catch_up(&self, log: &Log, logs: &Logs) -> Result<(), StoreError> {
        for (origin, seq) in tables::read_unindexed(&self.db)? {
            if seq > logs.vector().seq(origin) {
                continue; // cut off
            }
            match log.read()?.get(origin, seq) {
                Ok(entry) => self.add_entry(self.overlay().stage(&entry)?),
                Err(StoreError::Damaged { .. }) => drop(lock(&self.unindexed).insert((origin, seq))),
                Err(error) => return Err(error),
            }
        }
        let marks = tables::read_watermarks(&self.db)?;
        let most = ReadLimit { rows: 1_000, bytes: 1 << 20 };
        for (origin, head) in logs.vector().iter() {
            let mut next = marks.get(&origin).copied().unwrap_or(0) + 1;
            while next <= head.seq {
                let entries = match log.read()?.forward(origin, next, head.seq, most) {
                    Err(StoreError::Damaged { seq, .. }) => {
                        lock(&self.unindexed).insert((origin, seq));
                        next = seq + 1; // it is noted, and indexed once it is mended
                        continue;
                    }
                    entries => entries?,
                };
                next += entries.len() as u64;
                let mut overlay = self.overlay();
                for entry in entries {
                    self.add_entry(overlay.stage(&entry)?);
                }
                if self.read_memtable().len() >= FLUSH_COUNT {
                    self.flush()?;
                }
            }
        }
        Ok(())
    }

    fn add_entry(&self, noted: IndexEntry) {
        lock(&self.counts).add(noted.adds);
        self.write_memtable().push(noted);
    }

    /// Sees to it that the tail has room for a batch.
    pub(in crate::store) fn make_room(&self) -> Result<(), StoreError> {
        while self.read_memtable().len() >= MEMTABLE_COUNT_MAX {
            self.flush()?;
        }
        Ok(())
    }

    /// Takes over the entries of a batch that the log has just made durable.
    pub(in crate::store) fn add_committed(&self, batch: WriteBatch) {
        for noted in batch.entries.into_iter().chain(batch.repaired).filter_map(|row| row.index) {
            // The file keeps its hole until it has the entry: a crash before that must not lose it.
            lock(&self.unindexed).remove(&(noted.copy.place.origin, noted.copy.place.seq));
            self.add_entry(noted);
        }
        let waiting = self.read_memtable().len();
        lock(&self.work).waiting = waiting;
        if waiting >= FLUSH_COUNT {
            self.wake.notify_all();
        }
    }

    /// Waits for a full batch, or for a small one to have waited long enough. `false`: stopped.
    pub(in crate::store) fn wait_for_work(&self) -> bool {
        let idle = |work: &mut IndexerWork| !work.stopped && work.waiting < FLUSH_COUNT;
        let waited = self.wake.wait_timeout_while(lock(&self.work), FLUSH_IDLE, idle);
        let (work, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !work.stopped
    }

    pub(in crate::store) fn stop(&self) {
        lock(&self.work).stopped = true;
        self.wake.notify_all();
    }

    /// Writes the oldest part of the tail to the file. `true` if there is more.
    pub(in crate::store) fn flush(&self) -> Result<bool, StoreError> {
        let mut flushed = lock(&self.flushed_counts);
        let (rows, count) = {
            let tail = self.read_memtable();
            let count = tail.len().min(FLUSH_COUNT);
            (IndexRows::of(tail.oldest(count)), count)
        };
        if count == 0 {
            return Ok(false);
        }
        let mut counts = *flushed;
        counts.add(rows.counts);
        // If this fails, the indexer waits before it tries again, however much there is to do.
        lock(&self.work).waiting = 0;
        let holes = lock(&self.unindexed).clone();
        catch_engine_panic(|| rows.write(&self.db, counts, &holes))?;
        *flushed = counts;
        let left = {
            let mut tail = self.write_memtable();
            tail.drop_oldest(count);
            tail.len()
        };
        lock(&self.work).waiting = left;
        Ok(left > 0)
    }

    /// Has the next opening build the file anew.
    pub(in crate::store) fn invalidate(&self) -> Result<(), StoreError> {
        let _flushed = lock(&self.flushed_counts);
        catch_engine_panic(|| tables::invalidate(&self.db))
    }

    /// Has the file go with a log of another name.
    pub(in crate::store) fn set_id(&self, name: StoreId) -> Result<(), StoreError> {
        let _flushed = lock(&self.flushed_counts);
        catch_engine_panic(|| tables::set_id(&self.db, name))
    }

    /// Reads from the file, and notes it if that fails: the engine then refuses everything, until the file is opened anew.
    fn read<T>(&self, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        catch_engine_panic(work).inspect_err(|error| {
            let _later_ones_say_the_same = self.read_failure.set(error.to_string());
        })
    }

    /// Whether reading the file failed, and how.
    pub(in crate::store) fn read_failure(&self) -> Option<&str> {
        self.read_failure.get().map(String::as_str)
    }

    /// Whether the file was made at this opening.
    pub(in crate::store) fn is_new(&self) -> bool {
        self.is_new
    }

    pub(in crate::store) fn counts(&self) -> Counts {
        *lock(&self.counts)
    }

    pub(in crate::store) fn standings(&self, id: [u8; 16]) -> Result<Vec<StoredCopy>, StoreError> {
        self.lookup().copies(id)
    }

    /// Begins look-ups: one transaction for many of them. Short-lived, as it pins pages.
    fn lookup(&self) -> Lookup<'_> {
        Lookup { index: self, file: None }
    }

    /// Begins to decide a batch.
    pub fn overlay(&self) -> IndexOverlay<'_> {
        IndexOverlay::new(self.lookup())
    }

    /// Begins to check whether it has what it must have: as with [`Index::lookup`].
    pub fn audit(&self) -> Audit<'_> {
        Audit::new(self)
    }

    fn read_memtable(&self) -> RwLockReadGuard<'_, Memtable> {
        self.memtable.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_memtable(&self) -> RwLockWriteGuard<'_, Memtable> {
        self.memtable.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of `first..=last` of a log have another copy, ascending.
    pub(in crate::store) fn copies(
        &self,
        origin: Origin,
        first: u64,
        last: u64,
    ) -> Result<Vec<u64>, StoreError> {
        let mut copies: Vec<u64> = self.read_memtable().copies(origin, first, last).collect();
        self.read(|| {
            let table = self.db.begin_read()?.open_table(COPIES)?;
            for row in table.range((origin.0, first)..=(origin.0, last))? {
                copies.push(row?.0.value().1);
            }
            Ok(())
        })?;
        copies.sort_unstable();
        copies.dedup();
        Ok(copies)
    }

    /// The places in the tail where a name stands on one of `sides`, in display order.
    pub(in crate::store) fn memtable_keys(&self, name: NameHash, sides: u8) -> Vec<EntryKey> {
        let mut places: Vec<EntryKey> = self.read_memtable().keys_of(name, sides).collect();
        places.sort_unstable();
        places
    }

    /// Up to `rows` places in the file where a name stands on one of `sides`, after (or, backward, before)
    /// `from`. Also the last place looked at, to go on from; `None` at the end.
    pub(in crate::store) fn file_keys(
        &self,
        name: NameHash,
        sides: u8,
        scan: FileScan,
    ) -> Result<FilePlaces, StoreError> {
        let found = self.read(|| self.look_up_places(name, sides, scan));
        if matches!(found, Err(StoreError::IndexRowMisplaced))
            && let Err(error) = self.invalidate()
        {
            tracing::error!(%error, "the index cannot even be marked as wrong");
        }
        found
    }

    fn look_up_places(&self, name: NameHash, sides: u8, scan: FileScan) -> Result<FilePlaces, StoreError> {
        let table = self.db.begin_read()?.open_table(BY_USER)?;
        let key = |place: EntryKey| (name.0, place.stamp.0, place.origin.0, place.seq);
        let (low, high) = ((name.0, 0, [0; 16], 0), (name.0, u64::MAX, [0xff; 16], u64::MAX));
        let mut found = FilePlaces::default();
        let (mut looked_at, mut last) = (0, scan.from);
        let mut take = |row: Result<(redb::AccessGuard<'_, UserKey>, redb::AccessGuard<'_, u8>), _>| {
            let (key, value) = row?;
            let (of, stamp, origin, seq) = key.value();
            let place = EntryKey { stamp: Stamp(stamp), origin: Origin(origin), seq };
            // Rows carry no check, and whoever goes on from one that leads back never comes to an end.
            let goes_on = |last: EntryKey| if scan.backward { place < last } else { place > last };
            if of != name.0 || !last.is_none_or(goes_on) {
                return Err(StoreError::IndexRowMisplaced);
            }
            last = Some(place);
            if value.value() & sides != 0 {
                found.places.push(place);
            }
            looked_at += 1;
            found.next = (looked_at == scan.rows).then_some(place);
            Ok::<bool, StoreError>(looked_at < scan.rows)
        };
        if scan.backward {
            let end = scan.from.map_or(Included(high), |place| Excluded(key(place)));
            for row in table.range::<UserKey>((Included(low), end))?.rev() {
                if !take(row)? {
                    break;
                }
            }
        } else {
            let start = scan.from.map_or(Included(low), |place| Excluded(key(place)));
            for row in table.range::<UserKey>((start, Included(high)))? {
                if !take(row)? {
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// Where to look in the file for a name.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct FileScan {
    pub(in crate::store) from: Option<EntryKey>,
    pub(in crate::store) backward: bool,
    pub(in crate::store) rows: usize,
}

/// What was found there.
#[derive(Debug, Default)]
pub(in crate::store) struct FilePlaces {
    pub(in crate::store) places: Vec<EntryKey>,
    pub(in crate::store) next: Option<EntryKey>,
}

/// Look-ups by id that share one transaction while they can. See [`Index::lookup`].
pub(in crate::store) struct Lookup<'a> {
    index: &'a Index,
    /// The table as of one moment, and how often the tail had let entries go when it was opened.
    file: Option<(u64, IdTable)>,
}

type IdTable = ReadOnlyTable<IdKey, (u64, [u8; 32])>;

impl Lookup<'_> {
    /// All copies of an id.
    fn copies(&mut self, id: [u8; 16]) -> Result<Vec<StoredCopy>, StoreError> {
        let index = self.index;
        let (mut copies, let_go) = {
            let tail = index.read_memtable();
            (tail.standings(&id).to_vec(), tail.epoch())
        };
        index.read(|| self.look_into_file(id, let_go, &mut copies))?;
        Ok(copies)
    }

    fn look_into_file(
        &mut self,
        id: [u8; 16],
        let_go: u64,
        copies: &mut Vec<StoredCopy>,
    ) -> Result<(), StoreError> {
        // What the tail let go after the transaction began is in neither: then it must begin anew.
        let table = match self.file.take() {
            Some((then, table)) if then == let_go => table,
            _ => self.index.db.begin_read()?.open_table(BY_ID)?,
        };
        for row in table.range((id, [0; 16], 0)..=(id, [0xff; 16], u64::MAX))? {
            let (key, value) = row?;
            let ((_, origin, seq), (stamp, digest)) = (key.value(), value.value());
            let place = EntryKey { stamp: Stamp(stamp), origin: Origin(origin), seq };
            if !copies.iter().any(|known| known.place == place) {
                copies.push(StoredCopy { place, digest: Digest(digest) });
            }
        }
        self.file = Some((let_go, table));
        Ok(())
    }
}
