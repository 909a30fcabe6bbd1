//! Owns making a new `log.redb` of all intact records in damaged files.
//!
//! Called by `recovery`; reads through [`record_scan`](super::record_scan) and [`lossy_file`]. First, every record goes to its
//! log's table, in batches, so memory does not grow with their number. Second, the beginning of each log up to its first gap
//! becomes the log, with head and chain; entries behind a gap stay in the table as detached.
//!
//! Invariants: if different records claim one key, the first keeps it and each other one begins a branch, so none is lost. The
//! file is complete once its `meta` says whose store it is, which is written last. The damaged files are not changed, and
//! without `accept_loss` nothing is made of them if the disk cannot read a part: it may read it later.

use std::collections::BTreeMap;

use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};

use crate::chain::ids::{ChainHash, EntryKey, Origin};
use crate::chain::logs::{CHECKPOINT_EVERY, StampRange};
use crate::chain::record::Entry;
use crate::chain::vector::Head;
use crate::store::engine::files::{self, Files, OpenMode, SALVAGING};
use crate::store::log::{CHAIN, DETACHED, HEADS, encode_head, log_table, make_meta, table_name, tables};
use crate::store::recovery::lossy_file::{self, LossyFile};
use crate::store::recovery::record_scan::RecordScan;
use crate::store::{OpenError, StoreError};

/// redb's page cache while the file is written.
const CACHE_BYTES: usize = 32 << 20;
/// Bytes of records in one transaction. Larger ones save fsyncs, which already cost little compared with the rest.
const BATCH_BYTES: usize = 4 << 20;

/// What was found in the damaged files and what became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Distinct records.
    pub records: u64,
    /// Logs whose first entry was found.
    pub logs: u64,
    /// Entries of these logs up to their first gap.
    pub entries: u64,
    /// Entries behind a gap.
    pub detached: u64,
    /// Entries missing in the gaps.
    pub missing: u64,
    /// Records whose key another record has; each begins a branch.
    pub conflicting: u64,
    /// Bytes that the disk cannot read.
    pub unread_bytes: u64,
}

/// Makes the file [`SALVAGING`] of all intact records in `sources`. If two records claim one key, the one in the earlier source
/// keeps it. With `accept_loss`, what the disk cannot read is skipped; without it, that is an error.
pub(in crate::store) fn salvage(
    files: &dyn Files,
    sources: &[String],
    network: &str,
    accept_loss: bool,
) -> Result<Salvaged, OpenError> {
    let path = files.path(SALVAGING);
    let db = files.database(SALVAGING, CACHE_BYTES, OpenMode::Replace)?;
    let salvage =
        Salvage { files, db: &db, batch: BTreeMap::new(), batch_bytes: 0, done: Salvaged::default() };
    let done = salvage.run(sources, network, accept_loss);
    let closed = db.close().map_err(|error| files::classify_error(path, error.into()));
    let done = done.and_then(|done| closed.map(|()| done));
    if done.is_err() {
        let _ = files.remove(SALVAGING); // the disk may be full
    }
    done
}

/// A salvage that is under way.
struct Salvage<'a> {
    files: &'a dyn Files,
    db: &'a Database,
    batch: BTreeMap<Origin, Vec<Entry>>,
    batch_bytes: usize,
    done: Salvaged,
}

impl Salvage<'_> {
    fn run(mut self, sources: &[String], network: &str, accept_loss: bool) -> Result<Salvaged, OpenError> {
        for source in sources {
            self.scan_source(source, accept_loss)?;
        }
        self.write_batch()?;
        let finished = self.build_logs().and_then(|()| make_meta(self.db, network));
        finished.map_err(|error| error.while_opening(self.files.path(SALVAGING)))?;
        Ok(self.done)
    }

    fn scan_source(&mut self, source: &str, accept_loss: bool) -> Result<(), OpenError> {
        let files = self.files;
        let unreadable = |error| lossy_file::read_error(files.path(source), error);
        let file = LossyFile::new(files, source, accept_loss).map_err(unreadable)?;
        let mut scan = RecordScan::new(file);
        while let Some(entry) = scan.next_entry().map_err(unreadable)? {
            self.batch_bytes += entry.size();
            self.batch.entry(entry.origin()).or_default().push(entry);
            if self.batch_bytes >= BATCH_BYTES {
                self.write_batch()?;
            }
        }
        self.done.unread_bytes += scan.source().unread_bytes().map_err(unreadable)?;
        Ok(())
    }

    fn write_batch(&mut self) -> Result<(), OpenError> {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        self.write_logs(batch).map_err(|error| error.while_opening(self.files.path(SALVAGING)))
    }

    fn write_logs(&mut self, logs: BTreeMap<Origin, Vec<Entry>>) -> Result<(), StoreError> {
        let tx = self.db.begin_write()?;
        let mut branches = Vec::new();
        for (origin, entries) in logs {
            branches.extend(self.write_entries(&tx, origin, entries)?);
        }
        while let Some(first) = branches.pop() {
            let before = self.done.records;
            branches.extend(self.write_entries(&tx, first.origin(), vec![first])?);
            self.done.conflicting += self.done.records - before;
        }
        Ok(tx.commit()?)
    }

    /// Writes entries to free keys. Returns those whose key another record has, each as the first entry of a branch.
    fn write_entries(
        &mut self,
        tx: &WriteTransaction,
        origin: Origin,
        entries: Vec<Entry>,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut branches = Vec::new();
        let mut table = tx.open_table(log_table(&table_name(origin)))?;
        for entry in entries {
            let is_other = match table.get(entry.seq())? {
                Some(known) if known.value() == entry.bytes() => continue,
                known => known.is_some(),
            };
            if is_other {
                let origin = Origin::branch(entry.key(), entry.digest());
                branches.push(entry.moved_to(EntryKey { origin, seq: 1, ..entry.key() }));
            } else {
                table.insert(entry.seq(), entry.bytes().as_ref())?;
                self.done.records += 1;
            }
        }
        Ok(branches)
    }

    /// Writes the heads, chains and detached ends of all logs.
    fn build_logs(&mut self) -> Result<(), StoreError> {
        let tx = self.db.begin_write()?;
        {
            let (mut heads, mut chain, mut detached) =
                (tx.open_table(HEADS)?, tx.open_table(CHAIN)?, tx.open_table(DETACHED)?);
            for origin in tables(self.db)? {
                let log = RebuiltLog::of(self.db, origin)?;
                for (seq, hash) in &log.checkpoints {
                    chain.insert((origin.0, *seq), hash.0)?;
                }
                if let Some(range) = log.range {
                    heads.insert(origin.0, encode_head(origin, &log.head, range).as_slice())?;
                    self.done.logs += 1;
                    self.done.entries += log.head.seq;
                }
                if log.detached > 0 {
                    detached.insert(origin.0, log.last)?;
                    self.done.detached += log.detached;
                    self.done.missing =
                        self.done.missing.saturating_add(log.last - log.head.seq - log.detached);
                }
            }
        }
        tx.commit()?;
        Ok(())
    }
}

/// What the rows of one log contain.
struct RebuiltLog {
    head: Head,
    range: Option<StampRange>,
    checkpoints: Vec<(u64, ChainHash)>,
    detached: u64,
    last: u64,
}

impl RebuiltLog {
    fn of(db: &Database, origin: Origin) -> Result<Self, StoreError> {
        let head = Head { seq: 0, hash: ChainHash::genesis(origin) };
        let mut log = RebuiltLog { head, range: None, checkpoints: Vec::new(), detached: 0, last: 0 };
        let table = db.begin_read()?.open_table(log_table(&table_name(origin)))?;
        for row in table.iter()? {
            let (key, bytes) = row?;
            log.last = key.value();
            let damaged = |_| StoreError::Damaged { origin, seq: log.last };
            let entry = Entry::check(bytes.value()).map_err(damaged)?;
            let follows = log.range.is_none_or(|range| range.last < entry.stamp());
            if log.detached > 0 || log.last != log.head.seq + 1 || !follows {
                log.detached += 1;
                continue;
            }
            log.head = log.head.followed_by(&entry);
            let first = log.range.map_or(entry.stamp(), |range| range.first);
            log.range = Some(StampRange { first, last: entry.stamp() });
            if log.head.seq.is_multiple_of(CHECKPOINT_EVERY) {
                log.checkpoints.push((log.head.seq, log.head.hash));
            }
        }
        Ok(log)
    }
}

#[cfg(test)]
mod tests;
