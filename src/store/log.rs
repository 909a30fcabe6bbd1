//! Owns `log.redb`: every record, the heads, the sparse hash chain, and the store's name.
//!
//! One table per log, keyed by seq, so that every log is written at its own right edge, where redb packs
//! pages well, and so that an old log costs nothing until it is read. Nothing else is in the acknowledging
//! commit but the head of each log that grew and every 1,024th chain hash. A read is short: one redb
//! transaction, bounded rows, no waiting inside. An entry that does not check is noted as a wound, to be mended.
//!
//! Tables: `meta` (name -> bytes), `heads` (origin -> seq, hash, first and last stamp, check), `chain`
//! (origin, seq -> hash), `cuts` (origin -> seq), `loose` (origin -> seq), and `log/<origin in hex>` (seq -> record).
//! Rows of a log behind its head are not of the log: behind a gap they are loose, behind a cut they are left over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};
use twox_hash::XxHash3_64;
use uuid::Uuid;

pub use super::change::{Change, NewEntry};
use super::files::{self, Files};
use super::wounds::Wounds;
use super::{Error, OpenError, StoreId};
use crate::chain::clock::Stamp;
use crate::chain::log::{CHECKPOINT_EVERY, Found, Logs, StampRange};
use crate::chain::place::{ChainHash, Origin, Place};
use crate::chain::record::Record;
use crate::chain::vector::Head;

/// The newest layout of `log.redb` that this program knows. A newer one is refused.
pub const FORMAT: u32 = 1;
/// redb's own page cache. Kept small: the system's page cache holds the file, and a listing must not fill ours.
const CACHE_BYTES: usize = 12 << 20;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const HEADS: TableDefinition<[u8; 16], &[u8]> = TableDefinition::new("heads");
const CHAIN: TableDefinition<([u8; 16], u64), [u8; 32]> = TableDefinition::new("chain");
const CUTS: TableDefinition<[u8; 16], u64> = TableDefinition::new("cuts");
const LOOSE: TableDefinition<[u8; 16], u64> = TableDefinition::new("loose");

/// Name of the table that holds a log.
fn table_name(origin: Origin) -> String {
    format!("log/{}", Uuid::from_bytes(origin.0).simple())
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
    db: Database,
    id: StoreId,
    wounds: Arc<Wounds>,
}

impl Log {
    /// Opens or makes the file and gives the heads of all logs in it.
    pub fn open(files: &dyn Files, network: &str) -> Result<(Self, Found), OpenError> {
        let db = files.database(files::LOG, CACHE_BYTES, false)?;
        let path = files.path(files::LOG);
        let broken = |error: Error| OpenError::Broken { path: path.clone(), why: error.to_string() };
        let meta = read_or_make_meta(&db, network).map_err(broken)?;
        if meta.format > FORMAT {
            return Err(OpenError::Newer { path, found: meta.format, known: FORMAT });
        }
        if meta.network != network {
            let (found, wanted) = (meta.network, network.to_owned());
            return Err(OpenError::Network { path, found, wanted });
        }
        let found = read_found(&db).map_err(broken)?;
        Ok((Log { db, id: meta.id, wounds: Arc::default() }, found))
    }

    /// The entries that were found damaged.
    pub fn wounds(&self) -> &Wounds {
        &self.wounds
    }

    /// The store's name.
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// Writes a change and the heads it leads to; one durable commit.
    pub fn commit(&self, change: &Change, logs: &Logs) -> Result<(), Error> {
        let tx = self.db.begin_write()?;
        put_entries(&tx, &change.entries, true)?;
        put_entries(&tx, &change.mended, false)?;
        {
            let mut touched: BTreeSet<Origin> = change.cuts.iter().map(|(origin, _)| *origin).collect();
            touched.extend(change.entries.iter().map(|entry| entry.place.origin));
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
        for origin in &change.loose {
            let mut loose = tx.open_table(LOOSE)?;
            match logs.loose_until(*origin) {
                Some(last) => drop(loose.insert(origin.0, last)?),
                None => drop(loose.remove(origin.0)?),
            }
        }
        for (origin, seq, hash) in &change.checkpoints {
            tx.open_table(CHAIN)?.insert((origin.0, *seq), hash.0)?;
        }
        tx.commit()?;
        for entry in &change.mended {
            self.wounds.healed(entry.place.origin, entry.place.seq);
        }
        for (origin, seq) in &change.cuts {
            self.wounds.cut(*origin, *seq);
        }
        Ok(())
    }

    /// Whether a log's entries up to this one are all there and its chain holds over them. Reads all of them.
    pub fn is_sound(&self, origin: Origin, last: u64) -> Result<bool, Error> {
        let mut hash = ChainHash::genesis(origin);
        let mut next = 1;
        while next <= last {
            let mut reader = self.read()?;
            for entry in reader.forward(origin, next, last, Most { rows: 1_000, bytes: 1 << 20 })? {
                hash = hash.next(next, entry.place.stamp, entry.record().digest);
                let is_checkpoint = next % CHECKPOINT_EVERY == 0;
                if is_checkpoint && reader.checkpoint(origin, next)?.is_some_and(|kept| kept != hash) {
                    return Ok(false);
                }
                next += 1;
            }
        }
        Ok(true)
    }

    /// Commits with redb's allocator state, so that the next open need not walk the file.
    pub fn settle(&self) -> Result<(), Error> {
        let mut tx = self.db.begin_write()?;
        tx.set_quick_repair(true);
        tx.commit()?;
        Ok(())
    }

    /// Begins a read. Keep it short: it pins pages.
    pub fn read(&self) -> Result<Reader, Error> {
        Ok(Reader { tx: self.db.begin_read()?, tables: BTreeMap::new(), wounds: self.wounds.clone() })
    }
}

/// `follow`: the entries come with the chain's hashes; else they only take the place of damaged ones.
fn put_entries(tx: &WriteTransaction, entries: &[NewEntry], follow: bool) -> Result<(), Error> {
    let mut by_origin: BTreeMap<Origin, Vec<&NewEntry>> = BTreeMap::new();
    for entry in entries {
        by_origin.entry(entry.place.origin).or_default().push(entry);
    }
    for (origin, entries) in by_origin {
        let name = table_name(origin);
        let mut table = tx.open_table(log_table(&name))?;
        for entry in entries {
            table.insert(entry.place.seq, entry.record.as_slice())?;
            if follow && entry.place.seq % CHECKPOINT_EVERY == 0 {
                tx.open_table(CHAIN)?.insert((origin.0, entry.place.seq), entry.hash.0)?;
            }
        }
    }
    Ok(())
}

/// A short look at the logs as of one moment. Not to be held across a wait.
pub struct Reader {
    tx: ReadTransaction,
    tables: BTreeMap<Origin, ReadOnlyTable<u64, &'static [u8]>>,
    wounds: Arc<Wounds>,
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

    /// A read of an entry that must be there, with a note of it if it is damaged.
    fn noted<T>(&self, read: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Damaged { origin, seq }) = &read {
            self.wounds.add(*origin, *seq);
        }
        read
    }

    /// One entry. That it exists must be known from a vector: its absence is damage.
    pub fn get(&mut self, origin: Origin, seq: u64) -> Result<Entry, Error> {
        let read = self.read(origin, seq);
        self.noted(read)
    }

    /// One entry, if it is there and not damaged. For what no vector covers.
    pub fn peek(&mut self, origin: Origin, seq: u64) -> Result<Option<Entry>, Error> {
        match self.read(origin, seq) {
            Ok(entry) => Ok(Some(entry)),
            Err(Error::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&mut self, origin: Origin, seq: u64) -> Result<Entry, Error> {
        match self.table(origin, seq)?.get(seq)? {
            Some(bytes) => checked(origin, seq, bytes.value()),
            None => Err(Error::Damaged { origin, seq }),
        }
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
            let read = self.table(origin, first).and_then(|table| {
                let rows = (first..=last).zip(table.range(first..=last)?);
                take_rows(origin, rows, most, &mut entries)
            });
            self.noted(read)?;
            if entries.is_empty() {
                return self.noted(Err(Error::Damaged { origin, seq: first }));
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
            let read = self.table(origin, last).and_then(|table| {
                let rows = (first..=last).rev().zip(table.range(first..=last)?.rev());
                take_rows(origin, rows, most, &mut entries)
            });
            self.noted(read)?;
            if entries.is_empty() {
                return self.noted(Err(Error::Damaged { origin, seq: last }));
            }
        }
        Ok(entries)
    }

    /// The chain's hash as it was kept for a checkpoint. It carries no check of its own.
    pub fn checkpoint(&self, origin: Origin, seq: u64) -> Result<Option<ChainHash>, Error> {
        Ok(self.tx.open_table(CHAIN)?.get((origin.0, seq))?.map(|hash| ChainHash(hash.value())))
    }

    /// `h(seq)`: from the nearest checkpoint at or below it, by reading the entries between.
    pub fn hash_at(&mut self, origin: Origin, seq: u64) -> Result<ChainHash, Error> {
        let mut checkpoint = seq - seq % CHECKPOINT_EVERY;
        let mut hash = ChainHash::genesis(origin);
        while checkpoint > 0 {
            if let Some(kept) = self.checkpoint(origin, checkpoint)? {
                hash = kept;
                break;
            }
            checkpoint -= CHECKPOINT_EVERY; // it is missing: the one before serves as well
        }
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

fn checked(origin: Origin, seq: u64, bytes: &[u8]) -> Result<Entry, Error> {
    match Record::parse(bytes) {
        Ok((record, length)) if record.origin == origin && record.seq == seq && length == bytes.len() => {
            Ok(Entry { place: Place { stamp: record.stamp, origin, seq }, record: bytes.to_vec() })
        }
        _ => Err(Error::Damaged { origin, seq }),
    }
}

fn log_table(name: &str) -> TableDefinition<'_, u64, &'static [u8]> {
    TableDefinition::new(name)
}

struct Meta {
    format: u32,
    id: StoreId,
    network: String,
}

fn read_or_make_meta(db: &Database, network: &str) -> Result<Meta, Error> {
    let tx = db.begin_write()?;
    let meta = {
        let mut table = tx.open_table(META)?;
        let read =
            |name| -> Result<Option<Vec<u8>>, Error> { Ok(table.get(name)?.map(|v| v.value().to_vec())) };
        let found = (read("format")?, read("store_id")?, read("network")?);
        if let (Some(format), Some(id), Some(network)) = found {
            let (Ok(format), Ok(id), Ok(network)) =
                (format.try_into(), id.try_into(), String::from_utf8(network))
            else {
                return Err(redb::StorageError::Corrupted("the table `meta` is not ours".into()).into());
            };
            return Ok(Meta { format: u32::from_be_bytes(format), id: StoreId(id), network });
        }
        let id = StoreId(Uuid::now_v7().into_bytes());
        table.insert("format", FORMAT.to_be_bytes().as_slice())?;
        table.insert("store_id", id.0.as_slice())?;
        table.insert("network", network.as_bytes())?;
        tx.open_table(HEADS)?;
        tx.open_table(CHAIN)?;
        Meta { format: FORMAT, id, network: network.to_owned() }
    };
    tx.commit()?;
    Ok(meta)
}

fn read_found(db: &Database) -> Result<Found, Error> {
    let tx = db.begin_read()?;
    let mut found = Found::default();
    for row in tx.open_table(HEADS)?.iter()? {
        let (key, value) = row?;
        let origin = Origin(key.value());
        let (head, range) =
            decode_head(origin, value.value()).ok_or(Error::Damaged { origin, seq: u64::MAX })?;
        found.heads.push((origin, head, range));
    }
    for (definition, list) in [(CUTS, &mut found.cuts), (LOOSE, &mut found.loose)] {
        let table = match tx.open_table(definition) {
            Err(redb::TableError::TableDoesNotExist(_)) => continue, // never needed so far
            table => table?,
        };
        for row in table.iter()? {
            let (origin, seq) = row?;
            list.push((Origin(origin.value()), seq.value()));
        }
    }
    Ok(found)
}

const HEAD_BYTES: usize = 56;

fn head_check(origin: Origin, bytes: &[u8]) -> [u8; 8] {
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&origin.0), bytes).to_be_bytes()
}

fn encode_head(origin: Origin, head: &Head, range: StampRange) -> Vec<u8> {
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
    let tx = db.begin_write().expect("begins");
    let newer = (FORMAT + 1).to_be_bytes();
    tx.open_table(META).expect("opens").insert("format", newer.as_slice()).expect("inserts");
    tx.commit().expect("commits");
}

/// Replaces an entry's bytes, as damage would.
#[cfg(test)]
pub(crate) fn overwrite(log: &Log, origin: Origin, seq: u64, bytes: &[u8]) {
    let tx = log.db.begin_write().expect("begins");
    tx.open_table(log_table(&table_name(origin))).expect("opens").insert(seq, bytes).expect("inserts");
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
