//! Owns how a new `log.redb` is made of every record that is found in damaged files.
//!
//! First every record goes to its place in its log's table, in batches, so memory does not grow with their number. Then
//! each log's beginning without a hole becomes the log, with head and chain; what stands behind a hole stays where it
//! is and is called loose. No message is lost where two different records claim one place: the one found first
//! keeps it, each other one begins a branch. The file is complete once it says whose store it is, and that
//! is written last. Nothing here changes the damaged files, and nothing is made of what they hold if the disk may give
//! more of them later (see `patchy`).

use std::collections::BTreeMap;
use std::io;

use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};

use crate::chain::ids::{ChainHash, EntryKey, Origin};
use crate::chain::logs::{CHECKPOINT_EVERY, StampRange};
use crate::chain::record::Entry;
use crate::chain::vector::Head;
use crate::store::engine::files;
use crate::store::engine::files::{Files, OpenMode, SALVAGING};
use crate::store::log::{CHAIN, DETACHED, HEADS, encode_head, log_table, make_meta, table_name, tables};
use crate::store::recovery::lossy_file;
use crate::store::recovery::lossy_file::LossyFile;
use crate::store::recovery::record_scan;
use crate::store::{OpenError, StoreError};

/// redb's page cache while the file is made.
const CACHE_BYTES: usize = 32 << 20;
/// Records written in one transaction. More would make the fsyncs rarer, which already cost little beside the rest.
const BATCH_BYTES: usize = 4 << 20;

/// What was found in the damaged files and what became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Different records.
    pub records: u64,
    /// Logs that have a beginning.
    pub logs: u64,
    /// Entries in them.
    pub entries: u64,
    /// Entries behind a hole.
    pub detached: u64,
    /// Entries that are missing below the last loose one, in all logs.
    pub missing: u64,
    /// Records whose place another record had; each begins a branch.
    pub conflicting: u64,
    /// Bytes of the files that the disk does not give any more: what was in them is not known.
    pub unread_bytes: u64,
}

/// For whom a file is made, and from what.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct SalvageJob<'a> {
    /// The network it belongs to.
    pub(in crate::store) network: &'a str,
    /// What the disk does not give is passed over. Else it is an error.
    pub(in crate::store) goes_on: bool,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Reading(#[from] io::Error),
    #[error(transparent)]
    Writing(#[from] StoreError),
    #[error(transparent)]
    Source(#[from] OpenError),
}

/// Makes the file [`SALVAGING`] of everything in `sources`. Of records that claim one place, that in the earlier
/// source keeps it.
pub(in crate::store) fn salvage(
    files: &dyn Files,
    sources: &[String],
    salvaging: SalvageJob<'_>,
) -> Result<Salvaged, OpenError> {
    let path = files.path(SALVAGING);
    let db = files.database(SALVAGING, CACHE_BYTES, OpenMode::Replace)?;
    let done = Salvage::new(&db).of(files, sources, salvaging).map_err(|failure| match failure {
        Failure::Reading(error) => lossy_file::read_error(path.clone(), error),
        Failure::Source(error) => error,
        Failure::Writing(StoreError::Storage(error)) => files::classify_error(path.clone(), *error),
        Failure::Writing(error) => OpenError::Corrupt { path: path.clone(), why: error.to_string() },
    });
    let closed = db.close().map_err(|error| files::classify_error(path.clone(), error.into()));
    let done = done.and_then(|done| closed.map(|()| done));
    if done.is_err() {
        // The disk may be full, and the room is needed.
        let _ = files.remove(SALVAGING);
    }
    done
}

struct Salvage<'a> {
    db: &'a Database,
    batch: BTreeMap<Origin, Vec<Entry>>,
    batch_bytes: usize,
    done: Salvaged,
}

impl<'a> Salvage<'a> {
    fn new(db: &'a Database) -> Self {
        Salvage { db, batch: BTreeMap::new(), batch_bytes: 0, done: Salvaged::default() }
    }

    fn of(
        mut self,
        files: &dyn Files,
        sources: &[String],
        salvaging: SalvageJob<'_>,
    ) -> Result<Salvaged, Failure> {
        for source in sources {
            self.scan_source(files, source, salvaging.goes_on).map_err(|failure| match failure {
                Failure::Reading(error) => lossy_file::read_error(files.path(source), error).into(),
                other => other,
            })?;
        }
        self.write_batch()?;
        self.build_logs()?;
        make_meta(self.db, salvaging.network)?;
        Ok(self.done)
    }

    fn scan_source(&mut self, files: &dyn Files, source: &str, goes_on: bool) -> Result<(), Failure> {
        let mut file = LossyFile::new(files, source, goes_on)?;
        record_scan::scan(&mut file, &mut |entry| -> Result<(), Failure> {
            self.batch_bytes += entry.size();
            self.batch.entry(entry.origin()).or_default().push(entry);
            if self.batch_bytes >= BATCH_BYTES {
                self.write_batch()?;
            }
            Ok(())
        })?;
        self.done.unread_bytes += file.unread_bytes()?;
        Ok(())
    }

    fn write_batch(&mut self) -> Result<(), StoreError> {
        let tx = self.db.begin_write()?;
        let mut branches = Vec::new();
        for (origin, entries) in std::mem::take(&mut self.batch) {
            branches.extend(self.write_entries(&tx, origin, entries)?);
        }
        while let Some(first) = branches.pop() {
            let before = self.done.records;
            branches.extend(self.write_entries(&tx, first.origin(), vec![first])?);
            self.done.conflicting += self.done.records - before;
        }
        tx.commit()?;
        self.batch_bytes = 0;
        Ok(())
    }

    /// Puts rows where nothing is. Gives what found another record in its place, as the first entry of a branch.
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

    /// The second pass: makes logs of the rows.
    fn build_logs(&mut self) -> Result<(), StoreError> {
        let tx = self.db.begin_write()?;
        {
            let (mut heads, mut chain, mut loose) =
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
                if log.loose > 0 {
                    loose.insert(origin.0, log.last)?;
                    self.done.detached += log.loose;
                    self.done.missing = self.done.missing.saturating_add(log.last - log.head.seq - log.loose);
                }
            }
        }
        tx.commit()?;
        Ok(())
    }
}

/// What the rows of one log come to.
struct RebuiltLog {
    head: Head,
    range: Option<StampRange>,
    checkpoints: Vec<(u64, ChainHash)>,
    loose: u64,
    last: u64,
}

impl RebuiltLog {
    fn of(db: &Database, origin: Origin) -> Result<Self, StoreError> {
        let head = Head { seq: 0, hash: ChainHash::genesis(origin) };
        let mut log = RebuiltLog { head, range: None, checkpoints: Vec::new(), loose: 0, last: 0 };
        let table = db.begin_read()?.open_table(log_table(&table_name(origin)))?;
        for row in table.iter()? {
            let (key, bytes) = row?;
            log.last = key.value();
            let damaged = |_| StoreError::Damaged { origin, seq: log.last };
            let entry = Entry::check(bytes.value()).map_err(damaged)?;
            let follows = log.range.is_none_or(|range| range.last < entry.stamp());
            if log.loose > 0 || log.last != log.head.seq + 1 || !follows {
                log.loose += 1;
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
