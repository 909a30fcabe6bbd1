//! Owns `log.redb`: every record, the heads, the sparse hash chain, and the store's name.
//!
//! One table per log, keyed by seq, so that every log is written at its own right edge, where redb packs
//! pages well, and so that an old log costs nothing until it is read. Nothing else is in the acknowledging
//! commit but the head of each log that grew and every 1,024th chain hash. A read is short: one redb
//! transaction, bounded rows, no waiting inside.
//!
//! Tables: `meta` (name -> bytes), `heads` (origin -> seq, hash, first and last stamp, check), `chain`
//! (origin, seq -> hash), `log/<origin in hex>` (seq -> record), and `loose` (origin -> highest seq that a salvage
//! left behind a hole). A log's table with rows in it has a row in `heads` or `loose`.

mod meta;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableHandle,
};
use twox_hash::XxHash3_64;
use uuid::Uuid;

use super::files::{self, Files, Opening};
use super::guard::{Open, guard, guarded};
use super::{Error, OpenError, StoreId, raw};
use crate::chain::clock::Stamp;
use crate::chain::log::{CHECKPOINT_EVERY, Logs, StampRange};
use crate::chain::place::{ChainHash, Origin, Place};
use crate::chain::record::Record;
use crate::chain::vector::Head;
pub(super) use meta::make as make_meta;

/// redb's own page cache. Kept small: the system's page cache holds the file, and a listing must not fill ours.
const CACHE_BYTES: usize = 12 << 20;

pub(super) const HEADS: TableDefinition<[u8; 16], &[u8]> = TableDefinition::new("heads");
pub(super) const CHAIN: TableDefinition<([u8; 16], u64), [u8; 32]> = TableDefinition::new("chain");
pub(super) const LOOSE: TableDefinition<[u8; 16], u64> = TableDefinition::new("loose");

/// Name of the table that holds a log.
pub(super) fn table_name(origin: Origin) -> String {
    format!("log/{}", Uuid::from_bytes(origin.0).simple())
}

/// The logs that have a table.
pub(super) fn tables(db: &Database) -> Result<Vec<Origin>, Error> {
    let tx = db.begin_read()?;
    let tables = tx.list_tables()?;
    let origin = |name: &str| Some(Origin(Uuid::try_parse(name.strip_prefix("log/")?).ok()?.into_bytes()));
    Ok(tables.filter_map(|table| origin(table.name())).collect())
}

/// An entry to be written: its place, the chain's hash there, its record.
#[derive(Debug)]
pub struct NewEntry {
    /// Where it stands.
    pub place: Place,
    /// `h(seq)` of its log.
    pub hash: ChainHash,
    /// Its bytes.
    pub record: Vec<u8>,
    /// All copies of its id that were known when it was decided.
    pub known: Arc<[super::Standing]>,
}

/// An entry as read, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// Its bytes.
    pub record: Vec<u8>,
}

impl Entry {
    /// A look at the record.
    pub fn record(&self) -> Record<'_> {
        Record::parse(&self.record).expect("was checked when it was read").0
    }
}

/// The open file. See the head of this file.
#[derive(Debug)]
pub struct Log {
    db: Open,
    id: StoreId,
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The logs, each from entry 1 to its head.
    pub(super) logs: Vec<(Origin, Head, StampRange)>,
    /// Logs with entries that stand behind a hole, and the highest seq of those.
    pub(super) loose: Vec<(Origin, u64)>,
}

/// Why a file does not open. Where redb has it open already, it stays so until this is dropped, because closing it
/// writes to it.
#[derive(Debug)]
pub(super) struct NotOpen {
    pub(super) error: OpenError,
    pub(super) db: Option<Open>,
}

impl From<OpenError> for NotOpen {
    fn from(error: OpenError) -> Self {
        NotOpen { error, db: None }
    }
}

impl Log {
    /// Opens or makes the file and says which logs are in it. Without a network: of whichever, and it is not made.
    pub(super) fn open(
        files: &dyn Files,
        network: Option<&str>,
        how: Opening,
    ) -> Result<(Self, Found), NotOpen> {
        let path = files.path(files::LOG);
        let broken = |why: String| OpenError::Broken { path: path.clone(), why };
        let opened = guard(|| files.database(files::LOG, CACHE_BYTES, how));
        let db = Open::new(opened.unwrap_or_else(|panic| Err(broken(panic.to_string())))?);
        let read = || -> Result<(StoreId, Found), OpenError> {
            let not_readable = |error: Error| match error {
                Error::Storage(error) => files::why_not(path.clone(), *error),
                other => broken(other.to_string()),
            };
            let meta = match (meta::read(&db).map_err(not_readable)?, network) {
                (Some(meta), _) => meta,
                (None, Some(network)) if !holds_records(files)? => {
                    meta::make(&db, network).map_err(not_readable)?
                }
                (None, _) => return Err(broken("it does not say whose store it is".into())),
            };
            meta.check_ours(&path, network)?;
            Ok((meta.id, find(&db).map_err(not_readable)?))
        };
        match guard(read).unwrap_or_else(|panic| Err(broken(panic.to_string()))) {
            Ok((id, found)) => Ok((Log { db, id }, found)),
            Err(error) => Err(NotOpen { error, db: Some(db) }),
        }
    }

    /// The store's name.
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// Writes entries (ascending within each log) and the heads they lead to; one durable commit.
    pub fn commit(&self, entries: &[NewEntry], logs: &Logs) -> Result<(), Error> {
        guarded(|| self.write(entries, logs))
    }

    fn write(&self, entries: &[NewEntry], logs: &Logs) -> Result<(), Error> {
        let mut by_origin: BTreeMap<Origin, Vec<&NewEntry>> = BTreeMap::new();
        for entry in entries {
            by_origin.entry(entry.place.origin).or_default().push(entry);
        }
        let tx = self.db.begin_write()?;
        {
            let mut heads = tx.open_table(HEADS)?;
            for (origin, entries) in by_origin {
                let name = table_name(origin);
                let mut table = tx.open_table(log_table(&name))?;
                for entry in entries {
                    table.insert(entry.place.seq, entry.record.as_slice())?;
                    if entry.place.seq % CHECKPOINT_EVERY == 0 {
                        tx.open_table(CHAIN)?.insert((origin.0, entry.place.seq), entry.hash.0)?;
                    }
                }
                let head = logs.vector().get(origin).expect("a log with new entries has a head");
                let range = logs.stamps(origin).expect("a log with new entries has stamps");
                heads.insert(origin.0, encode_head(origin, head, range).as_slice())?;
            }
        }
        tx.commit()?;
        Ok(())
    }

    /// Commits with redb's allocator state, so that the next open need not walk the file.
    pub fn settle(&self) -> Result<(), Error> {
        guarded(|| {
            let mut tx = self.db.begin_write()?;
            tx.set_quick_repair(true);
            Ok(tx.commit()?)
        })
    }

    /// Begins a read. Keep it short: it pins pages.
    pub fn read(&self) -> Result<Reader, Error> {
        guarded(|| Ok(Reader { tx: self.db.begin_read()?, tables: BTreeMap::new() }))
    }
}

/// A short look at the logs as of one moment. Not to be held across a wait.
pub struct Reader {
    tx: ReadTransaction,
    tables: BTreeMap<Origin, ReadOnlyTable<u64, &'static [u8]>>,
}

impl Reader {
    fn table(&mut self, origin: Origin, seq: u64) -> Result<&ReadOnlyTable<u64, &'static [u8]>, Error> {
        use std::collections::btree_map::Entry::{Occupied, Vacant};
        match self.tables.entry(origin) {
            Occupied(table) => Ok(table.into_mut()),
            Vacant(slot) => match self.tx.open_table(log_table(&table_name(origin))) {
                Ok(table) => Ok(slot.insert(table)),
                Err(redb::TableError::TableDoesNotExist(_)) => Err(Error::Damaged { origin, seq }),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// One entry. That it exists must be known from a vector: its absence is damage.
    pub fn get(&mut self, origin: Origin, seq: u64) -> Result<Entry, Error> {
        guarded(|| match self.table(origin, seq)?.get(seq)? {
            Some(bytes) => checked(origin, seq, bytes.value()),
            None => Err(Error::Damaged { origin, seq }),
        })
    }

    /// Entries `first..=last` in ascending order, stopping early after `rows` entries or once `bytes` are
    /// reached (but never before one entry), and before an entry that is damaged or missing: only where that is the
    /// first one, it is an error.
    pub fn forward(
        &mut self,
        origin: Origin,
        first: u64,
        last: u64,
        most: Most,
    ) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        if first <= last {
            guarded(|| {
                let range = self.table(origin, first)?.range(first..=last)?;
                take_rows(origin, (first..=last).zip(range), most, &mut entries)
            })?;
            if entries.is_empty() {
                return Err(Error::Damaged { origin, seq: first });
            }
        }
        Ok(entries)
    }

    /// Entries `last`, `last - 1`, … `first`: as [`Reader::forward`], the other way round.
    pub fn backward(
        &mut self,
        origin: Origin,
        first: u64,
        last: u64,
        most: Most,
    ) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        if first <= last {
            guarded(|| {
                let range = self.table(origin, last)?.range(first..=last)?.rev();
                take_rows(origin, (first..=last).rev().zip(range), most, &mut entries)
            })?;
            if entries.is_empty() {
                return Err(Error::Damaged { origin, seq: last });
            }
        }
        Ok(entries)
    }

    /// Rows of `first..=last` as they lie there, unchecked, at least one if there is any: for whoever looks for damage.
    pub(super) fn rows(
        &mut self,
        origin: Origin,
        first: u64,
        last: u64,
        most: Most,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        guarded(|| {
            let (mut rows, mut bytes) = (Vec::new(), 0);
            for row in self.table(origin, first)?.range(first..=last)?.take(most.rows) {
                let (seq, record) = row?;
                bytes += record.value().len();
                rows.push((seq.value(), record.value().to_vec()));
                if bytes >= most.bytes {
                    break;
                }
            }
            Ok(rows)
        })
    }

    /// `h(seq)`: from the nearest checkpoint at or below it, by reading the entries between.
    pub fn hash_at(&mut self, origin: Origin, seq: u64) -> Result<ChainHash, Error> {
        let checkpoint = seq - seq % CHECKPOINT_EVERY;
        let mut hash = match checkpoint {
            0 => ChainHash::genesis(origin),
            _ => self.checkpoint(origin, checkpoint)?.ok_or(Error::Damaged { origin, seq: checkpoint })?,
        };
        let most = Most { rows: usize::MAX, bytes: 1 << 20 };
        let mut next = checkpoint + 1;
        while next <= seq {
            for entry in self.forward(origin, next, seq, most)? {
                hash = hash.next(next, entry.place.stamp, entry.record().digest);
                next += 1;
            }
        }
        Ok(hash)
    }

    /// What `chain` says of a checkpoint.
    pub(super) fn checkpoint(&self, origin: Origin, seq: u64) -> Result<Option<ChainHash>, Error> {
        guarded(|| {
            let hash = self.tx.open_table(CHAIN)?.get((origin.0, seq))?;
            Ok(hash.map(|hash| ChainHash(hash.value())))
        })
    }

    /// The first seq in `1..=last` whose place is after `place`, else `last + 1`. Stamps of a log increase, so
    /// this is a binary search.
    pub fn first_after(&mut self, origin: Origin, last: u64, place: Place) -> Result<u64, Error> {
        let (mut low, mut high) = (1, last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(origin, middle)?.place > place {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low)
    }
}

/// How much one read takes at the most.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    /// Entries.
    pub rows: usize,
    /// Bytes of records; one entry comes in any case.
    pub bytes: usize,
}

type Row<'a> = Result<(redb::AccessGuard<'a, u64>, redb::AccessGuard<'a, &'static [u8]>), redb::StorageError>;

fn take_rows<'a>(
    origin: Origin,
    rows: impl Iterator<Item = (u64, Row<'a>)>,
    most: Most,
    entries: &mut Vec<Entry>,
) -> Result<(), Error> {
    let mut bytes = 0;
    for (seq, row) in rows.take(most.rows) {
        let (key, value) = row?;
        let is_hole = key.value() != seq;
        let entry = match checked(origin, seq, value.value()) {
            Ok(entry) if !is_hole => entry,
            _ if entries.is_empty() => return Err(Error::Damaged { origin, seq }),
            _ => break, // what comes before it is good; the next read begins with it and fails
        };
        bytes += entry.record.len();
        entries.push(entry);
        if bytes >= most.bytes {
            break;
        }
    }
    Ok(())
}

pub(super) fn checked(origin: Origin, seq: u64, bytes: &[u8]) -> Result<Entry, Error> {
    match Record::parse(bytes) {
        Ok((record, length)) if record.origin == origin && record.seq == seq && length == bytes.len() => {
            Ok(Entry { place: Place { stamp: record.stamp, origin, seq }, record: bytes.to_vec() })
        }
        _ => Err(Error::Damaged { origin, seq }),
    }
}

pub(super) fn log_table(name: &str) -> TableDefinition<'_, u64, &'static [u8]> {
    TableDefinition::new(name)
}

/// Whether there are records in a file that has no tables of ours: then it lost them, and is not new.
fn holds_records(files: &dyn Files) -> Result<bool, OpenError> {
    let looked = files.raw(files::LOG).and_then(|mut bytes| raw::any(&mut bytes));
    looked.map_err(|source| OpenError::Directory { path: files.path(files::LOG), source })
}

fn not_ours(table: &str) -> Error {
    redb::StorageError::Corrupted(format!("the table `{table}` is not as we write it")).into()
}

/// All logs. A log of which only the table is left lost its row: then the file is damaged, though redb did not notice.
fn find(db: &Database) -> Result<Found, Error> {
    let tx = db.begin_read()?;
    let mut found = Found::default();
    for row in tx.open_table(HEADS)?.iter()? {
        let (key, value) = row?;
        let origin = Origin(key.value());
        let (head, range) = decode_head(origin, value.value()).ok_or_else(|| not_ours("heads"))?;
        found.logs.push((origin, head, range));
    }
    match tx.open_table(LOOSE) {
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        table => {
            for row in table?.iter()? {
                let (key, value) = row?;
                found.loose.push((Origin(key.value()), value.value()));
            }
        }
    }
    let mut known: BTreeSet<Origin> = found.logs.iter().map(|(origin, ..)| *origin).collect();
    known.extend(found.loose.iter().map(|(origin, _)| *origin));
    for origin in tables(db)? {
        if !known.remove(&origin) && tx.open_table(log_table(&table_name(origin)))?.first()?.is_some() {
            return Err(not_ours("heads"));
        }
    }
    if known.is_empty() { Ok(found) } else { Err(not_ours("heads")) }
}

const HEAD_BYTES: usize = 56;

fn head_check(origin: Origin, bytes: &[u8]) -> [u8; 8] {
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&origin.0), bytes).to_be_bytes()
}

pub(super) fn encode_head(origin: Origin, head: &Head, range: StampRange) -> Vec<u8> {
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
pub(super) fn pretend_newer(path: &std::path::Path) {
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

/// Takes an entry away, as damage would.
#[cfg(test)]
pub(super) fn remove(log: &Log, origin: Origin, seq: u64) {
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
