//! Owns `log.redb`: every record, the head of every log, the sparse hash chain, and the store's id.
//!
//! After `replica` decided a batch, [`LogFile::commit`] writes it. Must not read the index, nor know who reads.
//!
//! Every log has its own table, keyed by seq: each is written at its right edge, where redb packs pages well, and an
//! old log costs nothing until it is read. A commit of a send adds only the records, the head of the log, and every
//! 1,024th chain hash.
//!
//! Tables: `meta` (name -> bytes), `heads` (origin -> span, first and last stamp, check), `chain` (origin, seq ->
//! hash), `cuts` (origin -> seq), `loose` (origin -> last detached seq), `members`, `met`, and `log/<origin in hex>`
//! (seq -> record). On disk, `loose` means detached, and `met` the node last seen at each address.
//!
//! Invariants: rows after a log's head do not belong to the log: after a gap they are detached, after a cut they are
//! waiting to be purged. A log's table that has rows has a row in `heads`, `loose` or `cuts`.

pub mod damage;
#[cfg(test)]
pub(crate) mod fake;
mod members;
mod meta;
pub mod purge;
mod reader;
pub(super) mod write_batch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redb::{
    Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableHandle,
    WriteTransaction,
};
use twox_hash::XxHash3_64;
use uuid::Uuid;

use crate::chain::bytes::ByteReader;
use crate::chain::clock::Stamp;
use crate::chain::ids::Origin;
use crate::chain::logs::{CHECKPOINT_EVERY, Logs, LogsOnDisk, StampRange};
use crate::chain::members::Membership;
use crate::chain::vector::{Head, LogSpan};
use crate::fault::Fault;
use crate::store::engine::catch_panic::{GuardedDb, catch_panic, open_if_exists};
use crate::store::engine::files::{self, FileIdentity, Files, OpenMode};
use crate::store::log::damage::Damage;
use crate::store::log::purge::Purged;
pub use crate::store::log::write_batch::{NewRow, WriteBatch};
use crate::store::recovery::lossy_file::{self, LossyFile};
use crate::store::recovery::record_scan::RecordScan;
use crate::store::{OpenError, StoreError, StoreId};
pub(in crate::store) use meta::write_new as write_meta;
pub use reader::{LogReader, ReadLimit};

/// redb's page cache for the log. Small, because the system's page cache has the file too.
const CACHE_BYTES: usize = 12 << 20;

pub(in crate::store) const HEADS: TableDefinition<[u8; 16], &[u8]> = TableDefinition::new("heads");
pub(in crate::store) const CHAIN: TableDefinition<([u8; 16], u64), [u8; 32]> = TableDefinition::new("chain");
pub(in crate::store) const DETACHED: TableDefinition<[u8; 16], u64> = TableDefinition::new("loose");
const CUTS: TableDefinition<[u8; 16], u64> = TableDefinition::new("cuts");

pub(in crate::store) fn table_name(origin: Origin) -> String {
    format!("log/{}", Uuid::from_bytes(origin.0).simple())
}

pub(in crate::store) fn tables(tx: &ReadTransaction) -> Result<Vec<Origin>, StoreError> {
    let tables = tx.list_tables()?;
    let origin = |name: &str| Some(Origin(Uuid::try_parse(name.strip_prefix("log/")?).ok()?.into_bytes()));
    Ok(tables.filter_map(|table| origin(table.name())).collect())
}

#[derive(Debug)]
pub struct LogFile {
    db: GuardedDb,
    id: StoreId,
    membership: Membership,
    damage: Arc<Damage>,
    purged: Arc<Purged>,
}

/// Why a file does not open. If redb has opened it already, it stays open until this is dropped, because closing it
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

impl LogFile {
    /// Opens or creates the file and returns which logs are in it. Without a network, any network is right, and a
    /// missing file is not created.
    pub(in crate::store) fn open(
        files: &dyn Files,
        network: Option<&str>,
        how: OpenMode,
    ) -> Result<(Self, LogsOnDisk), NotOpen> {
        let path = files.path(files::LOG);
        let unreadable = |error: StoreError| error.while_opening(path.clone());
        let opened = catch_panic(|| Ok(files.database(files::LOG, CACHE_BYTES, how)));
        let db = GuardedDb::new(opened.map_err(unreadable)??);
        let read = || -> Result<(StoreId, Membership, LogsOnDisk), OpenError> {
            let meta = match (db.read(meta::read).map_err(unreadable)?, network) {
                (Some(meta), _) => meta,
                (None, Some(network)) if !has_records(files)? => {
                    db.write(|tx| meta::write_new(tx, network)).map_err(unreadable)?
                }
                (None, _) => {
                    let why = "it does not say whose store it is".into();
                    return Err(OpenError::Corrupt { path: path.clone(), why });
                }
            };
            meta.check_ours(&path, network)?;
            let (membership, found) =
                db.read(|tx| Ok((members::read(tx)?, find_logs(tx)?))).map_err(unreadable)?;
            Ok((meta.id, membership, found))
        };
        match read() {
            Ok((id, membership, found)) => {
                Ok((LogFile { db, id, membership, damage: Arc::default(), purged: Arc::default() }, found))
            }
            Err(error) => Err(NotOpen { error, db: Some(db) }),
        }
    }

    pub(in crate::store) fn identity(&self) -> FileIdentity {
        self.db.identity
    }

    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    pub fn purged(&self) -> &Purged {
        &self.purged
    }

    /// The members of the network and their last addresses, as of the opening.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    pub fn id(&self) -> StoreId {
        self.id
    }

    /// Writes a batch and the heads after it, which `logs` has, in one durable commit.
    pub fn commit(&self, batch: &WriteBatch, logs: &Logs) -> Result<(), StoreError> {
        self.db.write(|tx| write(tx, batch, logs))?;
        for row in &batch.repaired {
            self.damage.remove(row.entry.origin(), row.entry.seq());
        }
        for (origin, seq) in &batch.cuts {
            self.damage.remove_from(*origin, *seq);
        }
        Ok(())
    }

    /// Whether the entries of a log up to `last` match the stored checkpoints of the chain. Reads all of them, so a
    /// damaged one is an error. Of a long log that takes minutes: it ends early once `is_awaited` is false.
    pub fn matches_chain(
        &self,
        origin: Origin,
        floor: Head,
        last: u64,
        is_awaited: &dyn Fn() -> bool,
    ) -> Result<bool, StoreError> {
        let (mut hash, mut next) = (floor.hash, floor.seq + 1);
        while next <= last {
            if !is_awaited() {
                return Err(StoreError::Closed);
            }
            let mut reader = self.read()?;
            for entry in reader.forward(origin, next, last, ReadLimit { rows: 1_000, bytes: 1 << 20 })? {
                hash = hash.next(next, entry.stamp(), entry.leaf());
                let is_checkpoint = next % CHECKPOINT_EVERY == 0;
                if is_checkpoint && reader.checkpoint(origin, next)?.is_some_and(|stored| stored != hash) {
                    return Ok(false);
                }
                next += 1;
            }
        }
        Ok(true)
    }

    /// Writes a new id for the store and returns it.
    pub(in crate::store) fn renew_id(&self) -> Result<StoreId, StoreError> {
        let network = self.db.read(meta::read)?.ok_or_else(|| malformed_table("meta"))?.network;
        Ok(self.db.write(|tx| meta::write_new(tx, &network))?.id)
    }

    /// Commits with redb's allocator state, so that the next opening does not read the whole file.
    pub fn commit_for_fast_open(&self) -> Result<(), StoreError> {
        self.db.write(|tx| {
            tx.set_quick_repair(true);
            Ok(())
        })
    }

    /// A read, for a short time: it pins pages.
    pub fn read(&self) -> Result<LogReader, StoreError> {
        let tx = catch_panic(|| Ok(self.db.begin_read()?))
            .inspect_err(|error| self.damage.engine_failed(error))?;
        Ok(LogReader {
            tx,
            tables: BTreeMap::new(),
            damage: self.damage.clone(),
            purged: self.purged.clone(),
        })
    }
}

fn write(tx: &mut WriteTransaction, batch: &WriteBatch, logs: &Logs) -> Result<(), StoreError> {
    let is_own = |row: &NewRow| logs.own() == Some(row.entry.origin());
    let early_fault = if batch.entries.iter().any(is_own) { Fault::EarlyAck } else { Fault::EarlyHead };
    if early_fault.is_planted() {
        tx.set_durability(Durability::None)?;
    }
    put_entries(tx, &batch.entries)?;
    put_entries(tx, &batch.repaired)?;
    let cut = batch.cuts.iter().map(|(origin, _)| *origin);
    let changed: BTreeSet<Origin> = cut.chain(batch.entries.iter().map(|row| row.entry.origin())).collect();
    let mut heads = tx.open_table(HEADS)?;
    for origin in changed {
        match (logs.vector().get(origin), logs.stamps(origin)) {
            (Some(span), Some(range)) => {
                heads.insert(origin.0, encode_span(origin, span, range).as_slice())?;
            }
            _ => drop(heads.remove(origin.0)?), // the log was cut at its first entry
        }
    }
    drop(heads);
    for (origin, seq) in &batch.cuts {
        tx.open_table(CUTS)?.insert(origin.0, *seq)?;
    }
    for origin in &batch.detached {
        let mut detached = tx.open_table(DETACHED)?;
        match logs.detached_until(*origin) {
            Some(last) => drop(detached.insert(origin.0, last)?),
            None => drop(detached.remove(origin.0)?),
        }
    }
    for (origin, seq, hash) in &batch.checkpoints {
        tx.open_table(CHAIN)?.insert((origin.0, *seq), hash.0)?;
    }
    if let Some(membership) = &batch.members {
        members::write(tx, membership)?;
    }
    Ok(())
}

fn put_entries(tx: &WriteTransaction, rows: &[NewRow]) -> Result<(), StoreError> {
    let mut by_origin: BTreeMap<Origin, Vec<&NewRow>> = BTreeMap::new();
    for row in rows {
        by_origin.entry(row.entry.origin()).or_default().push(row);
    }
    for (origin, rows) in by_origin {
        let name = table_name(origin);
        let mut table = tx.open_table(log_table(&name))?;
        for row in &rows {
            table.insert(row.entry.seq(), row.entry.bytes().as_ref())?;
        }
        drop(table);
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

/// Whether a file without our tables has records: then it lost the tables and is not new.
fn has_records(files: &dyn Files) -> Result<bool, OpenError> {
    let first = LossyFile::new(files, files::LOG, false).and_then(|file| RecordScan::new(file).next_entry());
    Ok(first.map_err(|error| lossy_file::read_error(files.path(files::LOG), error))?.is_some())
}

fn malformed_table(table: &str) -> StoreError {
    redb::StorageError::Corrupted(format!("the table `{table}` is not as we write it")).into()
}

/// All logs in the file. A log that has a table with rows and no other row means that the file is damaged, although
/// redb found nothing.
fn find_logs(tx: &ReadTransaction) -> Result<LogsOnDisk, StoreError> {
    let mut found = LogsOnDisk::default();
    for row in tx.open_table(HEADS)?.iter()? {
        let (key, value) = row?;
        let origin = Origin(key.value());
        let (span, range) = decode_span(origin, value.value()).ok_or_else(|| malformed_table("heads"))?;
        found.spans.push((origin, span, range));
    }
    for (definition, list) in [(CUTS, &mut found.cuts), (DETACHED, &mut found.detached)] {
        let Some(table) = open_if_exists(tx, definition)? else { continue }; // nothing was cut or detached yet
        for row in table.iter()? {
            let (origin, seq) = row?;
            list.push((Origin(origin.value()), seq.value()));
        }
    }
    // The rows of cuts and detached ends have no checksum. An impossible one leads to a salvage, which drops all cuts;
    // peers send them again.
    let heads: BTreeMap<Origin, u64> =
        found.spans.iter().map(|(origin, span, _)| (*origin, span.head.seq)).collect();
    if found.cuts.iter().any(|(origin, cut)| *cut <= heads.get(origin).copied().unwrap_or(0)) {
        return Err(malformed_table("cuts"));
    }
    if found.detached.iter().any(|(_, last)| *last == u64::MAX) {
        return Err(malformed_table("loose"));
    }
    let has_entries = |(_, span, _): &&(Origin, LogSpan, StampRange)| span.head.seq > span.floor.seq;
    let mut known: BTreeSet<Origin> =
        found.spans.iter().filter(has_entries).map(|(origin, ..)| *origin).collect();
    known.extend(found.detached.iter().map(|(origin, _)| *origin));
    let cut: BTreeSet<Origin> = found.cuts.iter().map(|(origin, _)| *origin).collect();
    for origin in tables(tx)? {
        let is_known = known.remove(&origin) || heads.contains_key(&origin) || cut.contains(&origin);
        if !is_known && tx.open_table(log_table(&table_name(origin)))?.first()?.is_some() {
            return Err(malformed_table("heads"));
        }
    }
    if known.is_empty() { Ok(found) } else { Err(malformed_table("heads")) }
}

/// A row and its checksum, which covers the key too, so that a row under a wrong key fails.
fn with_check(key: &[u8], mut row: Vec<u8>) -> Vec<u8> {
    row.extend_from_slice(&row_check(key, &row));
    row
}

/// The row without its checksum; `None` if that fails.
fn checked<'a>(key: &[u8], bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (row, check) = bytes.split_last_chunk()?;
    (row_check(key, row) == *check).then_some(row)
}

fn row_check(key: &[u8], row: &[u8]) -> [u8; 8] {
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(key), row).to_be_bytes()
}

pub(in crate::store) fn encode_span(origin: Origin, span: &LogSpan, range: StampRange) -> Vec<u8> {
    let mut row = Vec::with_capacity(64);
    span.put(&mut row);
    row.extend_from_slice(&range.first.0.to_be_bytes());
    row.extend_from_slice(&range.last.0.to_be_bytes());
    with_check(&origin.0, row)
}

fn decode_span(origin: Origin, bytes: &[u8]) -> Option<(LogSpan, StampRange)> {
    let mut reader = ByteReader::new(checked(&origin.0, bytes)?);
    let span = LogSpan::read(&mut reader, origin)?;
    let range = StampRange { first: Stamp(reader.u64()?), last: Stamp(reader.u64()?) };
    reader.end((span, range))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ids::ChainHash;
    use crate::chain::kind::LogType;

    /// Frozen: a row of `heads` in format 2. May be added to, never changed.
    #[test]
    fn a_row_of_heads_in_format_2_is_frozen() {
        let (origin, head) = (Origin([7; 16]), Head { seq: 17, hash: ChainHash([5; 32]) });
        let span = LogSpan::whole(origin, LogType::MESSAGES, head);
        let range = StampRange { first: Stamp(1), last: Stamp(2) };
        let row = encode_span(origin, &span, range);
        assert_eq!(decode_span(origin, &row), Some((span, range)));
        assert_eq!(decode_span(Origin([8; 16]), &row), None, "a row belongs to its log");
        assert_eq!(
            crate::chain::hex(&row),
            concat!(
                "00000000110505050505050505050505050505050505050505050505050505050505050505000000000000000100",
                "00000000000002e4b33c1ccc8f2d3d"
            )
        );
    }
}
