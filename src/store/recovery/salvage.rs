//! Owns making a new `log.redb` of all intact records in damaged files.
//!
//! Called by `recovery`; reads through [`record_scan`](super::record_scan) and [`lossy_file`]. First, every record goes
//! to its log's table, in batches, so memory does not grow with their number. Second, the beginning of each log up to
//! its first gap becomes the log, with head and chain; entries after a gap stay in the table as detached.
//!
//! Invariants: if different records claim one place of a log, the first keeps it and each other one begins a branch, so
//! none is lost. The file is complete once it has its `meta`, which the last commit writes together with the heads. The
//! damaged files are not changed, and without `accept_loss` a bad sector in them is an error: the disk may read it
//! later.

use redb::{ReadableDatabase, ReadableTable, WriteTransaction};

use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::{CHECKPOINT_EVERY, Logs};
use crate::chain::record::Entry;
use crate::store::engine::catch_panic::GuardedDb;
use crate::store::engine::files::{Files, OpenMode, SALVAGING};
use crate::store::log::{CHAIN, DETACHED, HEADS, encode_span, log_table, table_name, tables, write_meta};
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
    /// Entries after a gap.
    pub detached: u64,
    /// Entries missing in the gaps.
    pub missing: u64,
    /// Records whose place another record has; each begins a branch.
    pub conflicting: u64,
    /// Bytes in bad sectors.
    pub unread_bytes: u64,
}

/// Makes the file [`SALVAGING`] of all intact records in `sources`. If two records claim one place, the one in the
/// earlier source keeps it. With `accept_loss`, bad sectors are skipped; without it, they are an error.
pub(in crate::store) fn salvage(
    files: &dyn Files,
    sources: &[String],
    network: &str,
    accept_loss: bool,
) -> Result<Salvaged, OpenError> {
    let db = GuardedDb::new(files.database(SALVAGING, CACHE_BYTES, OpenMode::Replace)?);
    let mut salvage =
        Salvage { files, db: &db, batch: Vec::new(), batch_bytes: 0, done: Salvaged::default() };
    let salvaged = salvage.run(sources, network, accept_loss);
    let done = salvage.done;
    let closed = db.close().map_err(|error| error.while_opening(files.path(SALVAGING)));
    if let Err(error) = salvaged.and(closed) {
        let _ = files.remove(SALVAGING); // the disk may be full
        return Err(error);
    }
    Ok(done)
}

/// A salvage that is under way.
struct Salvage<'a> {
    files: &'a dyn Files,
    db: &'a GuardedDb,
    batch: Vec<Entry>,
    batch_bytes: usize,
    done: Salvaged,
}

impl Salvage<'_> {
    fn run(&mut self, sources: &[String], network: &str, accept_loss: bool) -> Result<(), OpenError> {
        let path = self.files.path(SALVAGING);
        for source in sources {
            self.scan_source(source, accept_loss)?;
        }
        let written = self.write_batch().and_then(|()| self.build_logs(network));
        written.map_err(|error| error.while_opening(path))
    }

    fn scan_source(&mut self, source: &str, accept_loss: bool) -> Result<(), OpenError> {
        let files = self.files;
        let unreadable = |error| lossy_file::read_error(files.path(source), error);
        let file = LossyFile::new(files, source, accept_loss).map_err(unreadable)?;
        let mut scan = RecordScan::new(file);
        while let Some(entry) = scan.next_entry().map_err(unreadable)? {
            self.batch_bytes += entry.size();
            self.batch.push(entry);
            if self.batch_bytes >= BATCH_BYTES {
                self.write_batch().map_err(|error| error.while_opening(files.path(SALVAGING)))?;
            }
        }
        self.done.unread_bytes += scan.source().unread_bytes().map_err(unreadable)?;
        Ok(())
    }

    fn write_batch(&mut self) -> Result<(), StoreError> {
        self.batch_bytes = 0;
        let (db, batch) = (self.db, std::mem::take(&mut self.batch));
        db.write(|tx| {
            let mut branches = self.write_entries(tx, batch)?;
            let before = self.done.records;
            while !branches.is_empty() {
                branches = self.write_entries(tx, branches)?;
            }
            self.done.conflicting += self.done.records - before;
            Ok(())
        })
    }

    /// Writes entries to free places. Returns those whose place another record has, each as the first entry of a
    /// branch.
    fn write_entries(
        &mut self,
        tx: &WriteTransaction,
        mut entries: Vec<Entry>,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut branches = Vec::new();
        entries.sort_by_key(Entry::origin); // stable: of two records with one key, the one found first is written
        for entries in entries.chunk_by(|one, next| one.origin() == next.origin()) {
            let mut table = tx.open_table(log_table(&table_name(entries[0].origin())))?;
            for entry in entries {
                let is_same = table.get(entry.seq())?.map(|other| other.value() == entry.bytes());
                match is_same {
                    Some(true) => {}
                    Some(false) => {
                        let origin = Origin::branch(entry.key(), entry.log_type(), entry.leaf());
                        branches.push(entry.moved_to(EntryKey { origin, seq: 1, ..entry.key() }));
                    }
                    None => {
                        table.insert(entry.seq(), entry.bytes().as_ref())?;
                        self.done.records += 1;
                    }
                }
            }
        }
        Ok(branches)
    }

    /// Writes the heads, chains and detached ends of all logs, and the `meta` that completes the file.
    fn build_logs(&mut self, network: &str) -> Result<(), StoreError> {
        let (db, done) = (self.db, &mut self.done);
        db.write(|tx| {
            let written = db.begin_read()?; // as of before this transaction
            write_meta(tx, network)?;
            for origin in tables(&written)? {
                let (mut logs, mut detached, mut last) = (Logs::default(), 0, 0);
                for row in written.open_table(log_table(&table_name(origin)))?.iter()? {
                    let (seq, record) = row?;
                    last = seq.value();
                    let damaged = |_| StoreError::Damaged { origin, seq: last };
                    match logs.admit(&Entry::check(record.value()).map_err(damaged)?, 0) {
                        Ok(true) => {
                            let head =
                                logs.vector().head(origin).filter(|_| last.is_multiple_of(CHECKPOINT_EVERY));
                            if let Some(head) = head {
                                tx.open_table(CHAIN)?.insert((origin.0, last), head.hash.0)?;
                            }
                        }
                        _ => detached += 1,
                    }
                }
                if let (Some(span), Some(range)) = (logs.vector().get(origin), logs.stamps(origin)) {
                    tx.open_table(HEADS)?.insert(origin.0, encode_span(origin, span, range).as_slice())?;
                    done.logs += 1;
                    done.entries += span.head.seq;
                }
                if detached > 0 {
                    tx.open_table(DETACHED)?.insert(origin.0, last)?;
                    done.detached += detached;
                    done.missing = done.missing.saturating_add(last - logs.vector().seq(origin) - detached);
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
