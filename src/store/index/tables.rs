//! Owns the tables of `index.redb` and the rows that entries of the memtable become.
//!
//! The rows of one flush are sorted, so that redb writes every tree from left to right. Invariant: watermarks and
//! counts are written in the transaction of the rows they describe, so they are always true of the file.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use redb::{Key, ReadTransaction, ReadableTable, TableDefinition, Value, WriteTransaction};

use super::super::log::LogFile;
use super::super::{Counts, StoreError};
use crate::chain::ids::Origin;
use crate::store::engine::catch_panic::open_if_exists;
use crate::store::index::copies::{IdKey, id_key};
use crate::store::index::memtable::{IndexEntry, NameHash};

/// The layout of `index.redb`. A file with another one is rebuilt.
const FORMAT: u32 = 2;

pub(super) type UserKey = ([u8; 8], u64, [u8; 16], u64);
pub(super) type CopyKey = ([u8; 16], u64);

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
pub(super) const FORMAT_NAME: &str = "format";
pub(super) const STORE_ID_NAME: &str = "store_id";
/// In `meta`: there may be dangling rows. See [`purge`](super::purge).
pub(super) const DANGLING_NAME: &str = "lost";
const COUNTS_NAME: &str = "counts";
const WATERMARK: TableDefinition<[u8; 16], u64> = TableDefinition::new("watermark");
pub(super) const BY_ID: TableDefinition<IdKey, ()> = TableDefinition::new("by_id");
pub(super) const BY_USER: TableDefinition<UserKey, u8> = TableDefinition::new("by_user");
pub(super) const COPIES: TableDefinition<CopyKey, ()> = TableDefinition::new("copies");
/// Entries at or below a watermark that were damaged when the watermark passed them: the file does not have them.
pub(super) const UNINDEXED: TableDefinition<CopyKey, ()> = TableDefinition::new("holes");

/// The rows of some entries, sorted.
#[derive(Default)]
pub(super) struct IndexRows {
    pub(super) by_id: Vec<IdKey>,
    pub(super) by_user: Vec<(UserKey, u8)>,
    copies: Vec<CopyKey>,
    entries: Vec<CopyKey>,
    watermarks: BTreeMap<Origin, u64>,
    pub(super) counts: Counts,
}

impl IndexRows {
    pub(super) fn of<'a>(entries: impl Iterator<Item = &'a IndexEntry>) -> Self {
        let mut rows = IndexRows::default();
        for entry in entries {
            rows.counts.add(entry.counts);
            let key = entry.copy.key;
            let mark = rows.watermarks.entry(key.origin).or_default();
            *mark = key.seq.max(*mark);
            rows.entries.push((key.origin.0, key.seq));
            let Some(id) = entry.id else { continue };
            rows.by_id.push(id_key(id, &entry.copy));
            let user_key = |name: NameHash| (name.0, key.stamp.0, key.origin.0, key.seq);
            rows.by_user
                .extend(entry.names.iter().flatten().map(|name| (user_key(*name), entry.roles(*name))));
            rows.copies.extend(entry.copies.iter().map(|(origin, seq)| (origin.0, *seq)));
        }
        rows.by_id.sort_unstable();
        rows.by_user.sort_unstable();
        rows.by_user.dedup(); // a message to oneself
        rows
    }

    /// Writes the rows. `unindexed`: entries that the watermarks pass and that are not among the rows.
    pub(super) fn write(
        &self,
        tx: &WriteTransaction,
        counts: Counts,
        unindexed: &BTreeSet<(Origin, u64)>,
    ) -> Result<(), StoreError> {
        insert_all(tx, BY_ID, self.by_id.iter().map(|key| (*key, ())))?;
        insert_all(tx, BY_USER, self.by_user.iter().copied())?;
        insert_all(tx, COPIES, self.copies.iter().map(|key| (*key, ())))?;
        put_unindexed(tx, unindexed)?;
        let mut unindexed = tx.open_table(UNINDEXED)?;
        for key in &self.entries {
            unindexed.remove(*key)?;
        }
        drop(unindexed);
        let mut watermark = tx.open_table(WATERMARK)?;
        for (origin, seq) in &self.watermarks {
            // A repaired entry is below the watermark.
            let before = watermark.get(origin.0)?.map_or(0, |before| before.value());
            watermark.insert(origin.0, before.max(*seq))?;
        }
        drop(watermark);
        put_counts(tx, counts)
    }
}

fn insert_all<'k, 'v, K: Key + 'static, V: Value + 'static>(
    tx: &WriteTransaction,
    table: TableDefinition<K, V>,
    rows: impl Iterator<Item = (impl Borrow<K::SelfType<'k>>, impl Borrow<V::SelfType<'v>>)>,
) -> Result<(), StoreError> {
    let mut table = tx.open_table(table)?;
    for (key, value) in rows {
        table.insert(key, value)?;
    }
    Ok(())
}

pub(super) fn put_counts(tx: &WriteTransaction, counts: Counts) -> Result<(), StoreError> {
    set_meta(tx, COUNTS_NAME, Some(&encode_counts(counts)))
}

/// Lowers the watermarks of these logs to these seqs.
pub(super) fn lower_watermarks(
    tx: &WriteTransaction,
    marks: &BTreeMap<Origin, u64>,
) -> Result<(), StoreError> {
    let mut watermark = tx.open_table(WATERMARK)?;
    for (origin, seq) in marks {
        let before = watermark.get(origin.0)?.map(|before| before.value());
        if before.is_some_and(|before| before > *seq) {
            watermark.insert(origin.0, *seq)?;
        }
    }
    Ok(())
}

impl Counts {
    pub(super) fn add(&mut self, more: Counts) {
        self.messages += more.messages;
        self.conflicts += more.conflicts;
        self.unreadable += more.unreadable;
    }

    pub(super) fn minus(self, less: Counts) -> Self {
        Counts {
            messages: self.messages.saturating_sub(less.messages),
            conflicts: self.conflicts.saturating_sub(less.conflicts),
            unreadable: self.unreadable.saturating_sub(less.unreadable),
        }
    }
}

fn encode_counts(Counts { messages, conflicts, unreadable }: Counts) -> Vec<u8> {
    [messages, conflicts, unreadable].map(u64::to_be_bytes).concat()
}

fn decode_counts(bytes: &[u8]) -> Option<Counts> {
    let number = |at: usize| Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    Some(Counts { messages: number(0)?, conflicts: number(8)?, unreadable: number(16)? })
}

/// The counts of a file that belongs to this log and has our format; `None` if the file must be rebuilt.
pub(super) fn read_meta(tx: &ReadTransaction, log: &LogFile) -> Result<Option<Counts>, StoreError> {
    let Some(table) = open_if_exists(tx, META)? else { return Ok(None) };
    let is = |name: &str, want: &[u8]| -> Result<bool, StoreError> {
        Ok(table.get(name)?.is_some_and(|value| value.value() == want))
    };
    if !is(FORMAT_NAME, &FORMAT.to_be_bytes())? || !is(STORE_ID_NAME, &log.id().0)? {
        return Ok(None);
    }
    Ok(table.get(COUNTS_NAME)?.and_then(|value| decode_counts(value.value())))
}

/// Makes an empty database an index of this log.
pub(super) fn write_meta(tx: &WriteTransaction, log: &LogFile) -> Result<(), StoreError> {
    set_meta(tx, FORMAT_NAME, Some(&FORMAT.to_be_bytes()))?;
    set_meta(tx, STORE_ID_NAME, Some(&log.id().0))?;
    put_counts(tx, Counts::default())?;
    tx.open_table(WATERMARK)?;
    tx.open_table(BY_ID)?;
    tx.open_table(BY_USER)?;
    tx.open_table(COPIES)?;
    Ok(())
}

/// Writes or removes a value of `meta`.
pub(super) fn set_meta(tx: &WriteTransaction, name: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
    let mut meta = tx.open_table(META)?;
    match value {
        Some(value) => drop(meta.insert(name, value)?),
        None => drop(meta.remove(name)?),
    }
    Ok(())
}

pub(super) fn has_dangling_mark(tx: &ReadTransaction) -> Result<bool, StoreError> {
    Ok(tx.open_table(META)?.get(DANGLING_NAME)?.is_some())
}

pub(super) fn read_watermarks(tx: &ReadTransaction) -> Result<BTreeMap<Origin, u64>, StoreError> {
    let mut marks = BTreeMap::new();
    for row in tx.open_table(WATERMARK)?.iter()? {
        let (origin, seq) = row?;
        marks.insert(Origin(origin.value()), seq.value());
    }
    Ok(marks)
}

pub(super) fn put_unindexed(
    tx: &WriteTransaction,
    entries: &BTreeSet<(Origin, u64)>,
) -> Result<(), StoreError> {
    insert_all(tx, UNINDEXED, entries.iter().map(|(origin, seq)| ((origin.0, *seq), ())))
}

/// Up to `rows` unindexed entries from this row on.
pub(super) fn read_unindexed(
    tx: &ReadTransaction,
    from: Bound<CopyKey>,
    rows: usize,
) -> Result<Vec<CopyKey>, StoreError> {
    let Some(table) = open_if_exists(tx, UNINDEXED)? else { return Ok(Vec::new()) };
    let range = table.range::<CopyKey>((from, Bound::Unbounded))?.take(rows);
    range.map(|row| Ok(row?.0.value())).collect()
}
