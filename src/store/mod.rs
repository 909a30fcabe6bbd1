//! What a node keeps on disk: the only folder that knows redb. Everything here blocks; no tokio, no HTTP.
//!
//! | folder | the question it answers |
//! |---|---|
//! | [`engine`] | how redb opens the files, and what its failures mean |
//! | [`log`] | what is stored: `log.redb`, the source of truth, one durable commit per batch |
//! | [`index`] | where a message is: `index.redb`, derived from the log; may be deleted while the store is closed |
//! | [`history`] | which messages a listing or feed shows, in which order |
//! | [`recovery`] | how the store is opened, and what happens after crashes and damage; while it is open, only the crash count is used |
//!
//! In the flow of a send, `replica` decides a batch and [`Store::commit`] writes it; then the node acknowledges it.
//!
//! Invariants: the node's writer thread alone commits entries ([`Store::renew_id`] writes the id of a store that is
//! about to be closed); [`Logs`] that readers get cover durable entries only; the checksum of a record is verified
//! whenever it is read.

pub mod engine;
mod error;
pub mod history;
pub mod index;
pub mod log;
pub mod recovery;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use uuid::Uuid;

use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::message::Digest;
use crate::store::engine::files::{self, Directory, FileIdentity, Files};
use crate::store::recovery::crash_count::CrashCount;
use crate::store::recovery::{OpenedLog, Opening, Recovery, has_store};
pub use engine::open_policy::OpenPolicy;
pub use error::{OpenError, SETTLED_SECONDS, StoreError};
use index::{CopyScan, Index};
use log::{LogFile, WriteBatch};

/// Directories synced after an opening: the store's directory, its parent and the one above may be new.
const SYNCED_LEVELS: usize = 3;

/// Copies of a message that a request looks at. A peer can send any number of them; an honest network has a handful.
const COPIES_MAX: usize = 64;

/// The random id of one store, kept in its files. Two running stores must not share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(pub [u8; 16]);

/// One copy of a message: where it is and which content it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredCopy {
    pub key: EntryKey,
    /// The digest of its content. Copies of one id with different digests are a conflict.
    pub digest: Digest,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Distinct pairs of id and content.
    pub messages: u64,
    /// Ids with more than one content.
    pub conflicts: u64,
    /// Entries of a newer kind.
    pub unreadable: u64,
}

/// The open store of one node. Any thread may read; one commits entries.
#[derive(Debug)]
pub struct Store {
    log: LogFile,
    index: Index,
    files: Box<dyn Files>,
    recovery: Option<Recovery>,
    damaged_files: Vec<PathBuf>,
    /// Dropped after the databases, because it marks the store as closed.
    crash_count: CrashCount,
    /// Dropped last: until then no other process may open the store.
    _lock: Option<File>,
}

impl Store {
    /// Opens or creates the store in `dir` and brings its index up to date. The logs are returned as they are on disk;
    /// this process adds no message of its own to any of them. `now_ms` is the wall clock.
    pub fn open(dir: &Path, network: &str, now_ms: u64) -> Result<(Arc<Self>, Logs), OpenError> {
        Self::open_with(dir, network, now_ms, OpenPolicy::Default)
    }

    pub fn open_with(
        dir: &Path,
        network: &str,
        now_ms: u64,
        policy: OpenPolicy,
    ) -> Result<(Arc<Self>, Logs), OpenError> {
        let unusable = |source| OpenError::Io { path: dir.to_owned(), source };
        files::make_private_directory(dir).map_err(unusable)?;
        let opened = Self::open_in(&Directory(dir.to_owned()), network, now_ms, policy)?;
        dir.ancestors().take(SYNCED_LEVELS).for_each(files::sync_directory);
        Ok(opened)
    }

    /// As [`Store::open_with`], for a store that this process had open before: nothing is created if it is gone.
    pub fn open_again(
        dir: &Path,
        network: &str,
        now_ms: u64,
        policy: OpenPolicy,
    ) -> Result<(Arc<Self>, Logs), OpenError> {
        let files = Directory(dir.to_owned());
        recovery::check_regular(&files)?; // a link to nothing is not gone
        if has_store(&files)? {
            Self::open_with(dir, network, now_ms, policy)
        } else {
            Err(OpenError::Gone(dir.to_owned()))
        }
    }

    /// Fails while the log is being written, as a copy that is put back: it changed within the last seconds, and is not
    /// the `known` one.
    pub fn check_settled(dir: &Path, known: Option<FileIdentity>, now_ms: u64) -> Result<(), OpenError> {
        let files = Directory(dir.to_owned());
        let log = files.path(files::LOG);
        let changed = std::fs::metadata(&log).and_then(|found| found.modified());
        let is_new = |changed: SystemTime| {
            let changed = changed.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            changed.as_millis().abs_diff(now_ms.into()) < u128::from(SETTLED_SECONDS) * 1_000
        };
        let is_known = files.identity(files::LOG).ok() == known;
        if !is_known && changed.is_ok_and(is_new) { Err(OpenError::Settling(log)) } else { Ok(()) }
    }

    /// As [`Store::open_with`], for files in any place.
    pub fn open_in(
        files: &dyn Files,
        network: &str,
        now_ms: u64,
        policy: OpenPolicy,
    ) -> Result<(Arc<Self>, Logs), OpenError> {
        let lock = files.lock()?;
        recovery::check_regular(files)?;
        recovery::check_format(files)?;
        let crash_count = CrashCount::start(files, policy);
        let policy = crash_count.policy;
        if let Some(count) = crash_count.exits_to_report() {
            tracing::warn!(
                count,
                "the last runs on the store ended badly (crashed or killed): checking every page"
            );
        }
        if policy.is_strict() {
            files.drop_page_cache(files::LOG);
            files.drop_page_cache(files::INDEX);
        }
        let opening = Opening { files, network, now_ms, policy };
        let opened = match Self::open_files(&opening) {
            // In a file whose pages were not checked, damage may have led beyond its end.
            Err(error) if !policy.is_strict() && files::is_previous_io_error(&error) => {
                tracing::warn!(%error, "checking every page of the store");
                Self::open_files(&Opening { policy: OpenPolicy::FullCheck, ..opening })?
            }
            opened => opened?,
        };
        let (OpenedLog { log, recovery, damaged_files, .. }, logs, index) = opened;
        crash_count.opened();
        let files = files.boxed();
        let store = Store { log, index, files, recovery, damaged_files, crash_count, _lock: lock };
        Ok((Arc::new(store), logs))
    }

    fn open_files(opening: &Opening<'_>) -> Result<(OpenedLog, Logs, Index), OpenError> {
        let Opening { files, now_ms, policy, .. } = *opening;
        let mut opened = opening.open_log()?;
        let mut logs = Logs::restore(opened.found.clone(), now_ms);
        let index = match Index::open(files, &opened.log, &logs, policy) {
            Err(error) if opened.recovery.is_none() && opening.must_salvage(&error)? => {
                // The log stays open meanwhile: closing it writes to it.
                opened = opening.salvage_log(&error)?;
                logs = Logs::restore(opened.found.clone(), now_ms);
                Index::open(files, &opened.log, &logs, policy)?
            }
            index => index?,
        };
        Ok((opened, logs, index))
    }

    /// What was salvaged at this opening, if the log was damaged.
    pub fn recovery(&self) -> Option<&Recovery> {
        self.recovery.as_ref()
    }

    /// How earlier processes left the store, and how this one will.
    pub fn crash_count(&self) -> &CrashCount {
        &self.crash_count
    }

    /// Damaged files that a salvage kept, for an operator to remove.
    pub fn damaged_files(&self) -> &[PathBuf] {
        &self.damaged_files
    }

    /// Which file the log is in.
    pub fn log_identity(&self) -> FileIdentity {
        self.log.identity()
    }

    pub fn id(&self) -> StoreId {
        self.log.id()
    }

    pub fn log(&self) -> &LogFile {
        &self.log
    }

    pub fn index(&self) -> &Index {
        &self.index
    }

    pub fn counts(&self) -> Counts {
        self.index.counts()
    }

    /// Writes a batch durably: when this returns, all of it is on disk. `logs` is the state after it. After an error it
    /// is unknown what of the batch is on disk, so the store must be opened again. Called by the writer alone.
    pub fn commit(&self, batch: WriteBatch, logs: &Logs) -> Result<(), StoreError> {
        // Before the commit: an error after it would report entries as failed that are on disk.
        self.index.make_room()?;
        if batch.drops_damaged {
            self.index.mark_dangling()?; // after the commit, nothing would tell that rows dangle
        }
        self.log.commit(&batch, logs)?;
        self.index.add_committed(batch);
        self.crash_count.has_committed.store(true, Ordering::Release);
        Ok(())
    }

    /// Removes a piece of a log's rows from its cut on, which must be durable: first from the index, whose rows are
    /// derived from those of the log, then from the log. `false`: nothing was left. Called by the writer alone.
    pub fn purge(&self, origin: Origin, cut: u64) -> Result<bool, StoreError> {
        let Some(piece) = self.log.next_purge_piece(origin, cut)? else { return Ok(false) };
        self.log.purged().add(origin, cut);
        if self.index.purge(&piece.entries, origin, cut)? {
            self.log.remove_piece(&piece)?;
        }
        Ok(true)
    }

    /// Makes the next opening fast, also after a `kill -9`. Costs two fsyncs, so it is for quiet moments.
    pub fn commit_for_fast_open(&self) -> Result<(), StoreError> {
        self.log.commit_for_fast_open()
    }

    /// Moves entries from the memtable into the index file; `true` if there are more. Does nothing while the disk is
    /// full. Called by the indexer thread.
    pub fn flush_index(&self) -> Result<bool, StoreError> {
        let has_committed = self.crash_count.has_committed.load(Ordering::Acquire);
        let more = self.index.flush()?;
        self.crash_count.has_indexed.fetch_or(has_committed, Ordering::Release);
        Ok(more)
    }

    /// Gives the store another id, from the next opening on.
    pub fn renew_id(&self) -> Result<(), StoreError> {
        self.index.set_id(self.log.renew_id()?)
    }

    /// The first [`COPIES_MAX`] copies of a message that `logs` cover, in display order.
    pub fn copies(&self, id: Uuid, digest: Digest, logs: &Logs) -> Result<Vec<EntryKey>, StoreError> {
        let mut copies = Vec::new();
        let is_last = |key| {
            copies.push(key);
            copies.len() == COPIES_MAX
        };
        self.index.reader().find_copy(id, digest, logs, is_last)?;
        Ok(copies)
    }

    /// The first copy of an id in display order, of any content.
    pub fn first_copy(&self, id: Uuid, logs: &Logs) -> Result<Option<StoredCopy>, StoreError> {
        let (mut index, mut scan) = (self.index.reader(), CopyScan::of_id(*id.as_bytes()));
        let mut first: Option<StoredCopy> = None;
        while let Some(copy) = index.next_copy(&mut scan)? {
            if logs.covers(copy.key) {
                first = first.into_iter().chain([copy]).min_by_key(|copy| copy.key);
                scan.skip_content();
            }
        }
        self.check_not_purged(logs)?;
        Ok(first)
    }

    /// Fails if entries that `logs` cover may have been purged, so that an earlier look-up may lack them.
    fn check_not_purged(&self, logs: &Logs) -> Result<(), StoreError> {
        match self.log.purged().purged_entry_of(logs) {
            Some((origin, seq)) => Err(StoreError::CutOff { origin, seq }),
            None => Ok(()),
        }
    }

    /// Bytes of disk space that can still be written; `u64::MAX` if that is unknown.
    pub fn free_bytes(&self) -> u64 {
        self.files.free_bytes()
    }

    /// The bytes of the file of the logs, 0 if that is unknown.
    pub fn log_file_bytes(&self) -> u64 {
        self.files.len(files::LOG).ok().flatten().unwrap_or(0)
    }

    /// Fails if a path no longer leads to the file that is open: the file was removed or replaced, or its disk is not
    /// mounted there any more. Costs a few microseconds.
    pub fn check_paths(&self) -> Result<(), StoreError> {
        for (name, open) in [(files::LOG, self.log.identity()), (files::INDEX, self.index.identity())] {
            if self.files.identity(name).ok() != Some(open) {
                return Err(StoreError::FileGone(self.files.path(name)));
            }
        }
        Ok(())
    }

    /// How the engine failed while reading, if it did: then the store must be opened again.
    pub fn read_failure(&self) -> Option<&str> {
        self.log.damage().engine_failure().or_else(|| self.index.read_failure())
    }
}

#[cfg(test)]
mod tests;
