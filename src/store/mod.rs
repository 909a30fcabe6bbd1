//! What a node keeps on disk: the only folder that knows redb. Blocking throughout; no tokio, no HTTP.
//!
//! Two files: `log.redb` is the truth (logs only, one durable commit per batch, see [`log`]); `index.redb` is
//! derived from it (by id, by user, further copies, see [`index`]) and may be deleted at any time. [`listing`]
//! merges the logs into history. A damaged `log.redb` is set aside and what it holds salvaged ([`recover`]); so is one that
//! the disk does not give any more, once whoever opens it has tried often enough ([`Trust::Unreadable`]). That processes
//! ended badly with a store has its pages checked ([`session`]).
//!
//! Invariants: whoever commits is the only one to do so ([`Store::commit`] is called by the node's writer
//! alone); [`Logs`] handed to readers list durable entries only; every record is checked on every read.

pub mod engine;
mod error;
pub mod history;
pub mod index;
pub mod log;
pub mod recovery;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::message::Digest;
use crate::store::engine::files::{self, Directory, Files};
use crate::store::recovery::Recovery;
use crate::store::recovery::crash_count::CrashCount;
pub use engine::open_policy::OpenPolicy;
pub use error::{OpenError, StoreError};
use index::Index;
use log::{Log, WriteBatch};

/// The store's directory, its parent and the one above may just have been made.
const SYNCED_LEVELS: usize = 3;

/// The random name of one store. It stays with the files; two running stores must not share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(pub [u8; 16]);

/// Where one copy of a message stands, and which content it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredCopy {
    /// Its place.
    pub place: EntryKey,
    /// Its content's digest: copies of one id with different digests are a conflict.
    pub digest: Digest,
}

/// Numbers for people. `messages` counts distinct (id, content).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Distinct (id, content).
    pub messages: u64,
    /// Ids that stand for more than one content.
    pub conflicts: u64,
    /// Entries that this program cannot read; a newer one can.
    pub unreadable: u64,
}

/// One node's store, open. Reads go on from any thread; see the head of this file for writing.
#[derive(Debug)]
pub struct Store {
    log: Log,
    index: Index,
    recovery: Option<Recovery>,
    damaged_files: Vec<PathBuf>,
    /// Ends when the databases are closed, hence behind them.
    crash_count: CrashCount,
    /// Let go when the session has ended, hence last.
    _lock: Option<File>,
}

impl Store {
    /// Opens or makes the store in `dir`, and brings its index up to date. The logs found are returned as they
    /// are on disk; none of them will be appended to. `now_ms` is the wall clock.
    pub fn open(dir: &Path, network: &str, now_ms: u64) -> Result<(Arc<Self>, Logs), OpenError> {
        Self::open_with(dir, network, now_ms, OpenPolicy::Default)
    }

    /// As [`Store::open`], with more checks or fewer.
    pub fn open_with(
        dir: &Path,
        network: &str,
        now_ms: u64,
        trust: OpenPolicy,
    ) -> Result<(Arc<Self>, Logs), OpenError> {
        let usable = |source| OpenError::Directory { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(usable)?;
        let opened = Self::open_in(&Directory(dir.to_owned()), network, now_ms, trust)?;
        dir.ancestors().take(SYNCED_LEVELS).for_each(files::sync_directory);
        Ok(opened)
    }

    /// As [`Store::open_with`], wherever the files lie.
    pub fn open_in(
        files: &dyn Files,
        network: &str,
        now_ms: u64,
        trust: OpenPolicy,
    ) -> Result<(Arc<Self>, Logs), OpenError> {
        let lock = files.lock()?;
        let crash_count = CrashCount::start(files, trust);
        let trust = crash_count.policy();
        if let Some(count) = crash_count.exits_to_report() {
            tracing::warn!(
                count,
                "the last runs on the store ended badly (crashed or killed): checking every page"
            );
        }
        if trust.checks_every_page() {
            files.drop_page_cache(files::LOG);
            files.drop_page_cache(files::INDEX);
        }
        let opened = match Self::open_files(files, network, now_ms, trust) {
            // Where not every page was checked, damage may have led behind the end of a file.
            Err(error) if !trust.checks_every_page() && files::is_previous_io_error(&error) => {
                tracing::warn!(%error, "checking every page of the store");
                Self::open_files(files, network, now_ms, OpenPolicy::FullCheck)?
            }
            opened => opened?,
        };
        let (recovery::OpenedLog { log, recovery, set_aside, .. }, logs, index) = opened;
        crash_count.opened();
        let store = Store { log, index, recovery, damaged_files: set_aside, crash_count, _lock: lock };
        Ok((Arc::new(store), logs))
    }

    fn open_files(
        files: &dyn Files,
        network: &str,
        now_ms: u64,
        trust: OpenPolicy,
    ) -> Result<(recovery::OpenedLog, Logs, Index), OpenError> {
        let mut opened = recovery::open_log(files, network, now_ms, trust)?;
        let mut logs = Logs::restore(opened.found.clone(), now_ms);
        let index = match Index::open(files, &opened.log, &logs, trust) {
            Err(error) if opened.recovery.is_none() && recovery::must_salvage(files, trust, &error)? => {
                opened = recovery::salvage_opened(files, network, now_ms, trust, opened, &error)?;
                logs = Logs::restore(opened.found.clone(), now_ms);
                Index::open(files, &opened.log, &logs, trust)?
            }
            index => index?,
        };
        Ok((opened, logs, index))
    }

    /// What was salvaged at this opening, if its log was damaged.
    pub fn recovery(&self) -> Option<&Recovery> {
        self.recovery.as_ref()
    }

    /// How many processes in a row ended badly with it, if they were so many that every page was checked at this opening.
    pub fn unclean_exits_before(&self) -> Option<u32> {
        self.crash_count.exits_to_report()
    }

    /// Whether both files were written to since they were opened. Whoever has used the store for long enough besides may
    /// call it proven.
    pub fn has_written_both(&self) -> bool {
        self.crash_count.has_written_both()
    }

    /// Sees to it that a bad end of this process does not count against the store.
    pub fn mark_healthy(&self) {
        self.crash_count.mark_healthy();
    }

    /// Sees to it that no bad end counts against the store once it is closed, for the process ends in order.
    pub fn will_stop_cleanly(&self) {
        self.crash_count.will_stop_cleanly();
    }

    /// Whether the index was made at this opening: there was none, or it could not be used.
    pub fn has_new_index(&self) -> bool {
        self.index.is_new()
    }

    /// Damaged files that were there at this opening, for an operator to look at and remove.
    pub fn damaged_files(&self) -> &[PathBuf] {
        &self.damaged_files
    }

    /// The store's name.
    pub fn id(&self) -> StoreId {
        self.log.id()
    }

    /// Writes a change durably: when this returns, all of it is on disk. `logs` is the state after it.
    /// On an error nothing of it may be believed. Called by the writer alone.
    pub fn commit(&self, change: WriteBatch, logs: &Logs) -> Result<(), StoreError> {
        self.index.make_room()?; // before the log has it: what is on disk must not be reported as failed
        if change.drops_unreadable {
            self.index.mark_dangling()?; // likewise: after it, nobody could tell
        }
        self.log.commit(&change, logs)?;
        self.index.add_committed(change);
        self.crash_count.committed();
        Ok(())
    }

    /// Removes a piece of what a log still has behind its cut, which must be durable: from the index first, which is found
    /// by it, then from the log. `false`: nothing was left. Called by the writer alone.
    pub fn purge(&self, origin: Origin, cut: u64) -> Result<bool, StoreError> {
        let Some(piece) = self.log.next_purge_piece(origin, cut)? else { return Ok(false) };
        self.log.purged().add(origin, cut);
        if self.index.purge(&piece.entries, origin, cut)? {
            self.log.remove_piece(&piece)?;
        }
        Ok(true)
    }

    /// Whether the index may count messages that were lost with a cut.
    pub fn may_have_dangling(&self) -> bool {
        self.index.may_have_dangling()
    }

    /// Looks through a part of the index for them, and takes them out. Called by the writer alone.
    pub fn purge_dangling(&self, logs: &Logs) -> Result<(), StoreError> {
        self.index.purge_dangling(logs, self.log.purged())
    }

    /// Makes the next start fast, also after a `kill -9`. For quiet moments: it costs two more fsyncs.
    pub fn commit_for_fast_open(&self) -> Result<(), StoreError> {
        self.log.commit_for_fast_open()
    }

    /// Moves what has gathered in memory into the index file. Called by one thread, the indexer.
    pub fn flush_index(&self) -> Result<bool, StoreError> {
        let holds_a_commit = self.crash_count.has_committed();
        let more = self.index.flush()?;
        if holds_a_commit {
            self.crash_count.indexed();
        }
        Ok(more)
    }

    /// Waits until there is something worth indexing; `false` when the store is being closed.
    pub fn wait_for_index_work(&self) -> bool {
        self.index.wait_for_work()
    }

    /// Ends the indexer's waiting. What it has not written is found again at the next start.
    pub fn stop_indexing(&self) {
        self.index.stop();
    }

    /// The index was found wrong: the next opening builds it anew.
    pub fn invalidate_index(&self) {
        if let Err(error) = self.index.invalidate() {
            tracing::error!(%error, "the index cannot even be marked as wrong");
        }
    }

    /// Gives the store another name, which holds from the next opening on.
    pub fn renew_id(&self) -> Result<(), StoreError> {
        let name = self.log.renew_id()?;
        self.index.set_id(name)
    }

    /// The index with the rows of a batch on top, while the batch is decided.
    pub fn overlay(&self) -> index::IndexOverlay<'_> {
        self.index.overlay()
    }

    /// Begins to check the index against entries.
    pub fn audit(&self) -> index::Audit<'_> {
        self.index.audit()
    }

    /// All copies of an id that `logs` cover, in no order; of every content it stands for.
    pub fn stored_copies(&self, id: Uuid, logs: &Logs) -> Result<Vec<StoredCopy>, StoreError> {
        let mut standings = self.index.standings(*id.as_bytes())?;
        standings.retain(|standing| logs.covers(standing.place));
        Ok(standings)
    }

    /// The first copy of an id in display order, of whichever content.
    pub fn first_copy(&self, id: Uuid, logs: &Logs) -> Result<Option<StoredCopy>, StoreError> {
        let first = self.stored_copies(id, logs)?.into_iter().min_by_key(|standing| standing.place);
        self.check_not_purged(logs)?;
        Ok(first)
    }

    /// What was looked up within these logs before this is all that there was, unless one was cut since and swept.
    fn check_not_purged(&self, logs: &Logs) -> Result<(), StoreError> {
        match self.log.purged().purged_entry_of(logs) {
            Some((origin, seq)) => Err(StoreError::CutOff { origin, seq }),
            None => Ok(()),
        }
    }

    /// The logs, to read.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Whether the engine failed while something was read, and how: then the store must be opened anew.
    pub fn read_failure(&self) -> Option<&str> {
        self.log.damage().engine_failure().or_else(|| self.index.read_failure())
    }

    fn index(&self) -> &Index {
        &self.index
    }

    /// Numbers for people.
    pub fn counts(&self) -> Counts {
        self.index.counts()
    }
}

#[cfg(test)]
mod tests;
