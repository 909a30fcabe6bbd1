//! Owns the tables of `index.redb` and how a part of the tail becomes rows in them.
//!
//! Rows of one flush are sorted first, so that every tree is walked once from left to right; the watermarks and
//! the counts go into the same transaction, so that they are always true of the file.

use std::collections::{BTreeMap, BTreeSet};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::super::log::Log;
use super::super::{Counts, StoreError, StoreId, StoredCopy};
use crate::chain::ids::Origin;
use crate::store::index::memtable::{IndexEntry, NameHash};

/// The layout of `index.redb`. Any other is rebuilt.
const FORMAT: u32 = 1;

pub(super) type IdKey = ([u8; 16], [u8; 16], u64);
pub(super) type UserKey = ([u8; 8], u64, [u8; 16], u64);

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// In `meta`: see [`mark_lost`].
const DANGLING: &str = "lost";
const WATERMARK: TableDefinition<[u8; 16], u64> = TableDefinition::new("watermark");
pub(super) const BY_ID: TableDefinition<IdKey, (u64, [u8; 32])> = TableDefinition::new("by_id");
pub(super) const BY_USER: TableDefinition<UserKey, u8> = TableDefinition::new("by_user");
pub(super) const COPIES: TableDefinition<([u8; 16], u64), ()> = TableDefinition::new("copies");
/// Entries at or below a watermark that were damaged when it passed them: the file does not have them.
const UNINDEXED: TableDefinition<([u8; 16], u64), ()> = TableDefinition::new("holes");

/// What a part of the tail becomes in the file, sorted, so that the trees are walked in order.
#[derive(Default)]
pub(super) struct IndexRows {
    pub(super) by_id: Vec<(IdKey, (u64, [u8; 32]))>,
    pub(super) by_user: Vec<(UserKey, u8)>,
    copies: Vec<([u8; 16], u64)>,
    entries: Vec<(Origin, u64)>,
    watermarks: BTreeMap<Origin, u64>,
    pub(super) counts: Counts,
}

impl IndexRows {
    pub(super) fn of<'a>(entries: impl Iterator<Item = &'a IndexEntry>) -> Self {
        let mut rows = IndexRows::default();
        for noted in entries {
            rows.counts.add(noted.adds);
            let StoredCopy { place, digest } = noted.copy;
            let mark = rows.watermarks.entry(place.origin).or_default();
            *mark = place.seq.max(*mark);
            rows.entries.push((place.origin, place.seq));
            let Some(id) = noted.id else { continue };
            rows.by_id.push(((id, place.origin.0, place.seq), (place.stamp.0, digest.0)));
            let mut add = |name: NameHash| {
                let key = (name.0, place.stamp.0, place.origin.0, place.seq);
                let sides = noted.sides(name);
                rows.by_user.extend((sides != 0).then_some((key, sides)));
            };
            add(noted.sender);
            if noted.recipient != noted.sender {
                add(noted.recipient);
            }
            rows.copies.extend(noted.copies.iter().map(|(origin, seq)| (origin.0, *seq)));
        }
        rows.by_id.sort_unstable();
        rows.by_user.sort_unstable();
        rows
    }

    /// `holes`: entries that the watermarks pass and that are not among these.
    pub(super) fn write(
        &self,
        db: &Database,
        counts: Counts,
        holes: &BTreeSet<(Origin, u64)>,
    ) -> Result<(), StoreError> {
        let tx = db.begin_write()?;
        // One table after the other: one that is still open when redb panics over the next may end the process, for it
        // would panic again while it is put away.
        {
            let mut by_id = tx.open_table(BY_ID)?;
            for (key, value) in &self.by_id {
                by_id.insert(*key, *value)?;
            }
        }
        {
            let mut by_user = tx.open_table(BY_USER)?;
            for (key, value) in &self.by_user {
                by_user.insert(*key, *value)?;
            }
        }
        {
            let mut copies = tx.open_table(COPIES)?;
            for key in &self.copies {
                copies.insert(*key, ())?;
            }
        }
        {
            let mut watermark = tx.open_table(WATERMARK)?;
            for (origin, seq) in &self.watermarks {
                // An entry that was mended lies below it.
                let before = watermark.get(origin.0)?.map_or(0, |before| before.value());
                watermark.insert(origin.0, before.max(*seq))?;
            }
        }
        {
            let mut table = tx.open_table(UNINDEXED)?;
            for (origin, seq) in holes {
                table.insert((origin.0, *seq), ())?;
            }
            for (origin, seq) in &self.entries {
                table.remove((origin.0, *seq))?;
            }
        }
        put_counts(&tx, counts)?;
        tx.commit()?;
        Ok(())
    }
}

pub(super) fn put_counts(tx: &WriteTransaction, counts: Counts) -> Result<(), StoreError> {
    tx.open_table(META)?.insert("counts", encode_counts(counts).as_slice())?;
    Ok(())
}

/// Has the file cover no more of these logs than up to here.
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

fn encode_counts(counts: Counts) -> [u8; 24] {
    let mut out = [0; 24];
    out[..8].copy_from_slice(&counts.messages.to_be_bytes());
    out[8..16].copy_from_slice(&counts.conflicts.to_be_bytes());
    out[16..].copy_from_slice(&counts.unreadable.to_be_bytes());
    out
}

fn decode_counts(bytes: &[u8]) -> Option<Counts> {
    let number = |at: usize| Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    Some(Counts { messages: number(0)?, conflicts: number(8)?, unreadable: number(16)? })
}

/// The counts of a file that belongs to this log and has our format; `None` if it must be rebuilt.
pub(super) fn read_meta(db: &Database, log: &Log) -> Result<Option<Counts>, StoreError> {
    let table = match db.begin_read()?.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    let is = |name: &str, want: &[u8]| -> Result<bool, StoreError> {
        Ok(table.get(name)?.is_some_and(|value| value.value() == want))
    };
    if !is("format", &FORMAT.to_be_bytes())? || !is("store_id", &log.id().0)? {
        return Ok(None);
    }
    Ok(table.get("counts")?.and_then(|value| decode_counts(value.value())))
}

pub(super) fn write_meta(db: &Database, log: &Log) -> Result<(), StoreError> {
    let tx = db.begin_write()?;
    {
        let mut meta = tx.open_table(META)?;
        meta.insert("format", FORMAT.to_be_bytes().as_slice())?;
        meta.insert("store_id", log.id().0.as_slice())?;
        meta.insert("counts", encode_counts(Counts::default()).as_slice())?;
    }
    tx.open_table(WATERMARK)?;
    tx.open_table(BY_ID)?;
    tx.open_table(BY_USER)?;
    tx.open_table(COPIES)?;
    tx.commit()?;
    Ok(())
}

/// Says whose index this is.
pub(super) fn set_id(db: &Database, name: StoreId) -> Result<(), StoreError> {
    let tx = db.begin_write()?;
    tx.open_table(META)?.insert("store_id", name.0.as_slice())?;
    tx.commit()?;
    Ok(())
}

/// Says whether there may be entries in it that were lost.
pub(super) fn set_dangling_mark(db: &Database, may_be: bool) -> Result<(), StoreError> {
    let tx = db.begin_write()?;
    if may_be {
        tx.open_table(META)?.insert(DANGLING, [].as_slice())?;
    } else {
        tx.open_table(META)?.remove(DANGLING)?;
    }
    tx.commit()?;
    Ok(())
}

/// Whether the file says that.
pub(super) fn has_dangling_mark(db: &Database) -> Result<bool, StoreError> {
    Ok(db.begin_read()?.open_table(META)?.get(DANGLING)?.is_some())
}

/// Takes away what the file says of itself, so that it is not believed.
pub(super) fn invalidate(db: &Database) -> Result<(), StoreError> {
    let tx = db.begin_write()?;
    tx.open_table(META)?.remove("format")?;
    tx.commit()?;
    Ok(())
}

pub(super) fn read_watermarks(db: &Database) -> Result<BTreeMap<Origin, u64>, StoreError> {
    let table = db.begin_read()?.open_table(WATERMARK)?;
    let mut marks = BTreeMap::new();
    for row in table.iter()? {
        let (origin, seq) = row?;
        marks.insert(Origin(origin.value()), seq.value());
    }
    Ok(marks)
}

/// The entries that were damaged when the watermarks passed them.
pub(super) fn read_unindexed(db: &Database) -> Result<BTreeSet<(Origin, u64)>, StoreError> {
    let table = match db.begin_read()?.open_table(UNINDEXED) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(BTreeSet::new()),
        table => table?,
    };
    let mut holes = BTreeSet::new();
    for row in table.iter()? {
        let (origin, seq) = row?.0.value();
        holes.insert((Origin(origin), seq));
    }
    Ok(holes)
}

/// A row that the index has for an entry.
#[cfg(test)]
#[derive(Debug, Clone, Copy)]
pub(crate) enum IndexRow {
    Id,
    Sender,
    Recipient,
    Copy,
}

/// Takes a row of an entry out of the file, or puts a wrong one in its place, as damage would. A mark can only be missing.
#[cfg(test)]
pub(crate) fn damage(
    store: &super::super::Store,
    entry: &crate::chain::record::Entry,
    row: IndexRow,
    is_altered: bool,
) {
    let noted = IndexEntry::new(entry);
    let rows = IndexRows::of(std::iter::once(&noted));
    let tx = store.index.db.begin_write().expect("begins");
    let by_user = |name: NameHash| {
        let mut table = tx.open_table(BY_USER).expect("opens");
        let (key, sides) = rows.by_user.iter().find(|(key, _)| key.0 == name.0).expect("has a row");
        table.remove(*key).expect("removes").expect("was there");
        if is_altered {
            table.insert(*key, sides ^ 3).expect("inserts");
        }
    };
    match row {
        IndexRow::Sender => by_user(noted.sender),
        IndexRow::Recipient => by_user(noted.recipient),
        IndexRow::Copy => {
            let mut table = tx.open_table(COPIES).expect("opens");
            table.remove((entry.origin().0, entry.seq())).expect("removes").expect("was there");
        }
        IndexRow::Id => {
            let mut table = tx.open_table(BY_ID).expect("opens");
            let (key, (stamp, digest)) = rows.by_id[0];
            table.remove(key).expect("removes").expect("was there");
            if is_altered {
                table.insert(key, (stamp + 1, digest)).expect("inserts");
            }
        }
    }
    tx.commit().expect("commits");
}
