//! Owns `log.redb`: every record, the heads, the sparse hash chain, and the store's name.
//!
//! One table per log, keyed by seq, so that every log is written at its own right edge, where redb packs
//! pages well, and so that an old log costs nothing until it is read. Nothing else is in the acknowledging
//! commit but the head of each log that grew and every 1,024th chain hash. A read is short: one redb
//! transaction, bounded rows, no waiting inside. An entry that does not check is noted as a wound, to be mended.
//!
//! Tables: `meta` (name -> bytes), `heads` (origin -> seq, hash, first and last stamp, check), `chain`
//! (origin, seq -> hash), `cuts` (origin -> seq), `loose` (origin -> seq), `members`, `met`, and `log/<origin in hex>` (seq -> record).
//! Rows of a log behind its head are not of the log: behind a gap they are loose, behind a cut they are left over until
//! they are swept, which a crash may interrupt. A log's table with rows in it has a row in `heads`, `loose` or `cuts`.

pub mod damage;
mod members;
mod meta;
pub mod purge;
mod reader;
pub(super) mod write_batch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableHandle, WriteTransaction,
};
use twox_hash::XxHash3_64;
use uuid::Uuid;

use crate::chain::clock::Stamp;
use crate::chain::ids::{ChainHash, Origin};
use crate::chain::logs::{CHECKPOINT_EVERY, Logs, LogsOnDisk, StampRange};
use crate::chain::members::Membership;
use crate::chain::vector::Head;
use crate::fault::Fault;
use crate::store::engine::catch_panic::{GuardedDb, catch_engine_panic, catch_panic};
use crate::store::engine::files;
use crate::store::engine::files::{Files, OpenMode};
use crate::store::log::damage::Damage;
use crate::store::log::purge::Purged;
pub use crate::store::log::write_batch::{NewRow, WriteBatch};
use crate::store::recovery::lossy_file;
use crate::store::recovery::lossy_file::LossyFile;
use crate::store::recovery::record_scan;
use crate::store::{OpenError, StoreError, StoreId};
pub(in crate::store) use meta::write_new as make_meta;
pub use reader::{LogReader, ReadLimit};

/// redb's own page cache. Kept small: the system's page cache holds the file, and a listing must not fill ours.
const CACHE_BYTES: usize = 12 << 20;

pub(in crate::store) const HEADS: TableDefinition<[u8; 16], &[u8]> = TableDefinition::new("heads");
pub(in crate::store) const CHAIN: TableDefinition<([u8; 16], u64), [u8; 32]> = TableDefinition::new("chain");
pub(in crate::store) const DETACHED: TableDefinition<[u8; 16], u64> = TableDefinition::new("loose");
const CUTS: TableDefinition<[u8; 16], u64> = TableDefinition::new("cuts");

/// Name of the table that holds a log.
pub(in crate::store) fn table_name(origin: Origin) -> String {
    format!("log/{}", Uuid::from_bytes(origin.0).simple())
}

/// The logs that have a table.
pub(in crate::store) fn tables(db: &Database) -> Result<Vec<Origin>, StoreError> {
    let tx = db.begin_read()?;
    let tables = tx.list_tables()?;
    let origin = |name: &str| Some(Origin(Uuid::try_parse(name.strip_prefix("log/")?).ok()?.into_bytes()));
    Ok(tables.filter_map(|table| origin(table.name())).collect())
}

/// The open file. See the head of this file.
#[derive(Debug)]
pub struct Log {
    db: GuardedDb,
    id: StoreId,
    membership: Membership,
    damage: Arc<Damage>,
    purged: Arc<Purged>,
}

/// Why a file does not open. Where redb has it open already, it stays so until this is dropped, because closing it
/// writes to it.
#[derive(Debug)]
pub(in crate::store) struct NotOpen {
    pub(in crate::store) error: OpenError,
    pub(in crate::store) db: Option<GuardedDb>,
}

impl From<OpenError> for NotOpen {
    fn from(error: OpenError) -> Self {
        NotOpen { error, db: None }
    }
}

impl Log {
    /// Opens or makes the file and says which logs are in it. Without a network: of whichever, and it is not made.
    pub(in crate::store) fn open(
        files: &dyn Files,
        network: Option<&str>,
        how: OpenMode,
    ) -> Result<(Self, LogsOnDisk), NotOpen> {
        let path = files.path(files::LOG);
        let broken = |why: String| OpenError::Corrupt { path: path.clone(), why };
        let opened = catch_panic(|| files.database(files::LOG, CACHE_BYTES, how));
        let db = GuardedDb::new(opened.unwrap_or_else(|panic| Err(broken(panic.to_string())))?);
        let read = || -> Result<(StoreId, Membership, LogsOnDisk), OpenError> {
            let not_readable = |error: StoreError| match error {
                StoreError::Storage(error) => files::classify_error(path.clone(), *error),
                other => broken(other.to_string()),
            };
            let meta = match (meta::read(&db).map_err(not_readable)?, network) {
                (Some(meta), _) => meta,
                (None, Some(network)) if !holds_records(files)? => {
                    meta::write_new(&db, network).map_err(not_readable)?
                }
                (None, _) => return Err(broken("it does not say whose store it is".into())),
            };
            meta.check_ours(&path, network)?;
            let kept = members::read(&db).map_err(not_readable)?;
            Ok((meta.id, kept, find_logs(&db).map_err(not_readable)?))
        };
        match catch_panic(read).unwrap_or_else(|panic| Err(broken(panic.to_string()))) {
            Ok((id, kept, found)) => {
                Ok((Log { db, id, membership: kept, damage: Arc::default(), purged: Arc::default() }, found))
            }
            Err(error) => Err(NotOpen { error, db: Some(db) }),
        }
    }

    /// The entries that were found damaged.
    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    /// The rows behind cuts that may be gone.
    pub fn purged(&self) -> &Purged {
        &self.purged
    }

    /// Who belonged to the network when the file was opened, and who was where.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The store's name.
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// Writes a change and the heads it leads to; one durable commit.
    pub fn commit(&self, change: &WriteBatch, logs: &Logs) -> Result<(), StoreError> {
        catch_engine_panic(|| self.write(change, logs))
    }

    fn write(&self, change: &WriteBatch, logs: &Logs) -> Result<(), StoreError> {
        let mut tx = self.db.begin_write()?;
        let is_own = |row: &NewRow| logs.own() == Some(row.entry.origin());
        let is_early = if change.entries.iter().any(is_own) { Fault::EarlyAck } else { Fault::EarlyHead };
        if is_early.is_planted() {
            tx.set_durability(Durability::None)?;
        }
        put_entries(&tx, &change.entries)?;
        put_entries(&tx, &change.repaired)?;
        {
            let mut touched: BTreeSet<Origin> = change.cuts.iter().map(|(origin, _)| *origin).collect();
            touched.extend(change.entries.iter().map(|row| row.entry.origin()));
            let mut heads = tx.open_table(HEADS)?;
            for origin in touched {
                match (logs.vector().get(origin), logs.stamps(origin)) {
                    (Some(head), Some(range)) => {
                        heads.insert(origin.0, encode_head(origin, head, range).as_slice())?;
                    }
                    _ => drop(heads.remove(origin.0)?), // cut at its first entry
                }
            }
        }
        for (origin, seq) in &change.cuts {
            tx.open_table(CUTS)?.insert(origin.0, *seq)?;
        }
        for origin in &change.detached {
            let mut loose = tx.open_table(DETACHED)?;
            match logs.detached_until(*origin) {
                Some(last) => drop(loose.insert(origin.0, last)?),
                None => drop(loose.remove(origin.0)?),
            }
        }
        for (origin, seq, hash) in &change.checkpoints {
            tx.open_table(CHAIN)?.insert((origin.0, *seq), hash.0)?;
        }
        if let Some(kept) = &change.members {
            members::write(&tx, kept)?;
        }
        tx.commit()?;
        for row in &change.repaired {
            self.damage.remove(row.entry.origin(), row.entry.seq());
        }
        for (origin, seq) in &change.cuts {
            self.damage.remove_from(*origin, *seq);
        }
        Ok(())
    }

    /// Whether a log's entries up to this one are all there and its chain holds over them. Reads all of them.
    pub fn is_sound(&self, origin: Origin, last: u64) -> Result<bool, StoreError> {
        let mut hash = ChainHash::genesis(origin);
        let mut next = 1;
        while next <= last {
            let mut reader = self.read()?;
            for entry in reader.forward(origin, next, last, ReadLimit { rows: 1_000, bytes: 1 << 20 })? {
                hash = hash.next(next, entry.stamp(), entry.digest());
                let is_checkpoint = next % CHECKPOINT_EVERY == 0;
                if is_checkpoint && reader.checkpoint(origin, next)?.is_some_and(|kept| kept != hash) {
                    return Ok(false);
                }
                next += 1;
            }
        }
        Ok(true)
    }

    /// Writes another name for the store, and gives it.
    pub(in crate::store) fn renew_id(&self) -> Result<StoreId, StoreError> {
        catch_engine_panic(|| {
            let network = meta::read(&self.db)?.ok_or_else(|| malformed_table("meta"))?.network;
            Ok(meta::write_new(&self.db, &network)?.id)
        })
    }

    /// Commits with redb's allocator state, so that the next open need not walk the file.
    pub fn commit_for_fast_open(&self) -> Result<(), StoreError> {
        catch_engine_panic(|| {
            let mut tx = self.db.begin_write()?;
            tx.set_quick_repair(true);
            Ok(tx.commit()?)
        })
    }

    /// Begins a read. Keep it short: it pins pages.
    pub fn read(&self) -> Result<LogReader, StoreError> {
        let begin = || Ok(LogReader::new(self.db.begin_read()?, self.damage.clone(), self.purged.clone()));
        catch_engine_panic(begin).inspect_err(|error| self.damage.engine_failed(error))
    }
}

fn put_entries(tx: &WriteTransaction, rows: &[NewRow]) -> Result<(), StoreError> {
    let mut by_origin: BTreeMap<Origin, Vec<&NewRow>> = BTreeMap::new();
    for row in rows {
        by_origin.entry(row.entry.origin()).or_default().push(row);
    }
    // One table at a time is open: one that is when redb panics over another may end the process, for it would panic again
    // while it is put away.
    for (origin, rows) in by_origin {
        let name = table_name(origin);
        {
            let mut table = tx.open_table(log_table(&name))?;
            for row in &rows {
                table.insert(row.entry.seq(), row.entry.bytes().as_ref())?;
            }
        }
        for row in rows.iter().filter(|row| row.entry.seq().is_multiple_of(CHECKPOINT_EVERY)) {
            if let Some(hash) = row.hash {
                tx.open_table(CHAIN)?.insert((origin.0, row.entry.seq()), hash.0)?;
            }
        }
    }
    Ok(())
}

pub(in crate::store) fn log_table(name: &str) -> TableDefinition<'_, u64, &'static [u8]> {
    TableDefinition::new(name)
}

/// Whether there are records in a file that has no tables of ours: then it lost them, and is not new.
fn holds_records(files: &dyn Files) -> Result<bool, OpenError> {
    let looked =
        LossyFile::new(files, files::LOG, false).and_then(|mut bytes| record_scan::has_record(&mut bytes));
    looked.map_err(|error| lossy_file::read_error(files.path(files::LOG), error))
}

fn malformed_table(table: &str) -> StoreError {
    redb::StorageError::Corrupted(format!("the table `{table}` is not as we write it")).into()
}

/// All logs. A log of which only the table is left lost its row: then the file is damaged, though redb did not notice.
fn find_logs(db: &Database) -> Result<LogsOnDisk, StoreError> {
    let tx = db.begin_read()?;
    let mut found = LogsOnDisk::default();
    for row in tx.open_table(HEADS)?.iter()? {
        let (key, value) = row?;
        let origin = Origin(key.value());
        let (head, range) = decode_head(origin, value.value()).ok_or_else(|| malformed_table("heads"))?;
        found.heads.push((origin, head, range));
    }
    for (definition, list) in [(CUTS, &mut found.cuts), (DETACHED, &mut found.detached)] {
        let table = match tx.open_table(definition) {
            Err(redb::TableError::TableDoesNotExist(_)) => continue, // never needed so far
            table => table?,
        };
        for row in table.iter()? {
            let (origin, seq) = row?;
            list.push((Origin(origin.value()), seq.value()));
        }
    }
    check_ends(&found)?;
    let mut known: BTreeSet<Origin> = found.heads.iter().map(|(origin, ..)| *origin).collect();
    known.extend(found.detached.iter().map(|(origin, _)| *origin));
    let cut: BTreeSet<Origin> = found.cuts.iter().map(|(origin, _)| *origin).collect();
    for origin in tables(db)? {
        let is_known = known.remove(&origin) || cut.contains(&origin);
        if !is_known && tx.open_table(log_table(&table_name(origin)))?.first()?.is_some() {
            return Err(malformed_table("heads"));
        }
    }
    if known.is_empty() { Ok(found) } else { Err(malformed_table("heads")) }
}

/// Whether cuts and loose ends are where they can be: their rows carry no check. What is wrong is salvaged, which forgets
/// the cuts; peers that know them bring them back.
fn check_ends(found: &LogsOnDisk) -> Result<(), StoreError> {
    let heads: BTreeMap<Origin, u64> =
        found.heads.iter().map(|(origin, head, _)| (*origin, head.seq)).collect();
    if found.cuts.iter().any(|(origin, cut)| *cut <= heads.get(origin).copied().unwrap_or(0)) {
        return Err(malformed_table("cuts"));
    }
    if found.detached.iter().any(|(_, last)| *last == u64::MAX) {
        return Err(malformed_table("loose"));
    }
    Ok(())
}

const HEAD_BYTES: usize = 56;

fn head_check(origin: Origin, bytes: &[u8]) -> [u8; 8] {
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&origin.0), bytes).to_be_bytes()
}

pub(in crate::store) fn encode_head(origin: Origin, head: &Head, range: StampRange) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + 8);
    out.extend_from_slice(&head.seq.to_be_bytes());
    out.extend_from_slice(&head.hash.0);
    out.extend_from_slice(&range.first.0.to_be_bytes());
    out.extend_from_slice(&range.last.0.to_be_bytes());
    let check = head_check(origin, &out);
    out.extend_from_slice(&check);
    out
}

fn decode_head(origin: Origin, bytes: &[u8]) -> Option<(Head, StampRange)> {
    let (body, check) = bytes.split_at_checked(HEAD_BYTES)?;
    if check != head_check(origin, body) {
        return None;
    }
    let number = |at: usize| body[at..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
    let hash = ChainHash(*body[8..].first_chunk()?);
    let range = StampRange { first: Stamp(number(40)?), last: Stamp(number(48)?) };
    Some((Head { seq: number(0)?, hash }, range))
}

/// Makes the file say that a newer program wrote it.
#[cfg(test)]
pub(in crate::store) fn pretend_newer(path: &std::path::Path) {
    let db = Database::open(path).expect("opens");
    meta::pretend_newer(&db);
}

/// Replaces an entry's bytes, as damage would.
#[cfg(test)]
pub(crate) fn overwrite(log: &Log, origin: Origin, seq: u64, bytes: &[u8]) {
    let tx = log.db.begin_write().expect("begins");
    tx.open_table(log_table(&table_name(origin))).expect("opens").insert(seq, bytes).expect("inserts");
    tx.commit().expect("commits");
}

/// Writes where a log is cut, as damage would.
#[cfg(test)]
pub(in crate::store) fn put_cut(log: &Log, origin: Origin, seq: u64) {
    let tx = log.db.begin_write().expect("begins");
    tx.open_table(CUTS).expect("opens").insert(origin.0, seq).expect("inserts");
    tx.commit().expect("commits");
}

/// Takes an entry away, as damage would.
#[cfg(test)]
pub(crate) fn take_away(log: &Log, origin: Origin, seq: u64) {
    let tx = log.db.begin_write().expect("begins");
    tx.open_table(log_table(&table_name(origin))).expect("opens").remove(seq).expect("removes");
    tx.commit().expect("commits");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: a row of `heads` in format 1. May be added to, never changed.
    #[test]
    fn a_row_of_heads_in_format_1_is_frozen() {
        let (origin, head) = (Origin([7; 16]), Head { seq: 17, hash: ChainHash([5; 32]) });
        let range = StampRange { first: Stamp(1), last: Stamp(2) };
        let row = encode_head(origin, &head, range);
        assert_eq!(decode_head(origin, &row), Some((head, range)));
        assert_eq!(decode_head(Origin([8; 16]), &row), None, "a row belongs to its log");
        assert_eq!(
            crate::chain::hex(&row),
            concat!(
                "000000000000001105050505050505050505050505050505050505050505050505050505050505050000000000",
                "00000100000000000000029d5f182fcdf0cb45"
            )
        );
    }
}
