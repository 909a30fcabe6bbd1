//! Owns reading the logs as of one moment, in one redb transaction.
//!
//! Invariants: the checksum of a record is verified on every read. An entry that a vector covers must exist: one that
//! is missing or fails its checksum is [`StoreError::Damaged`] and is listed as damage, unless the vector is from
//! before a cut and the entry was purged: then it is [`StoreError::CutOff`].

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use redb::{ReadOnlyTable, ReadTransaction};

use super::{CHAIN, log_table, table_name};
use crate::chain::ids::{ChainHash, EntryKey, Origin};
use crate::chain::logs::CHECKPOINT_EVERY;
use crate::chain::record::Entry;
use crate::chain::vector::Head;
use crate::fault::Fault;
use crate::store::StoreError;
use crate::store::engine::catch_panic::{catch_panic, open_if_exists};
use crate::store::log::damage::Damage;
use crate::store::log::damage::checked_entry;
use crate::store::log::purge::Purged;

/// A read of the logs as of one moment. It pins pages, so it must not be held across a wait.
pub struct LogReader {
    pub(super) tx: ReadTransaction,
    pub(super) tables: BTreeMap<Origin, ReadOnlyTable<u64, &'static [u8]>>,
    pub(super) damage: Arc<Damage>,
    pub(super) purged: Arc<Purged>,
}

impl LogReader {
    fn table(&mut self, origin: Origin, seq: u64) -> Result<&ReadOnlyTable<u64, &'static [u8]>, StoreError> {
        use std::collections::btree_map::Entry::{Occupied, Vacant};
        match self.tables.entry(origin) {
            Occupied(table) => Ok(table.into_mut()),
            Vacant(slot) => match open_if_exists(&self.tx, log_table(&table_name(origin)))? {
                Some(table) => Ok(slot.insert(table)),
                None => Err(StoreError::Damaged { origin, seq }),
            },
        }
    }

    /// Records the failure of a read of what must exist: as damage, or as a failure of the engine.
    fn record_failure<T>(&self, read: Result<T, StoreError>) -> Result<T, StoreError> {
        match &read {
            Ok(_) => {}
            Err(StoreError::Damaged { origin, seq }) if self.purged.covers(*origin, *seq) => {
                return Err(StoreError::CutOff { origin: *origin, seq: *seq });
            }
            Err(StoreError::Damaged { origin, seq }) => self.damage.add(*origin, *seq),
            Err(error) => self.damage.engine_failed(error),
        }
        read
    }

    /// One entry, which a vector must cover: its absence is damage.
    pub fn get(&mut self, origin: Origin, seq: u64) -> Result<Entry, StoreError> {
        let read = self.read(origin, seq);
        self.record_failure(read)
    }

    /// One entry, if it exists and is intact. Otherwise it is not listed as damage.
    pub fn peek(&mut self, origin: Origin, seq: u64) -> Result<Option<Entry>, StoreError> {
        match self.read(origin, seq) {
            Ok(entry) => Ok(Some(entry)),
            Err(StoreError::Damaged { .. }) => Ok(None),
            failed => self.record_failure(failed.map(Some)),
        }
    }

    fn read(&mut self, origin: Origin, seq: u64) -> Result<Entry, StoreError> {
        catch_panic(|| match self.table(origin, seq)?.get(seq)? {
            Some(bytes) => checked_entry(origin, seq, bytes.value()),
            None => Err(StoreError::Damaged { origin, seq }),
        })
    }

    /// Entries `first..=last`, ascending. Stops after `limit`, but not before one entry, and before an entry that is
    /// damaged or missing; if that is the first one, it is an error.
    pub fn forward(
        &mut self,
        origin: Origin,
        first: u64,
        last: u64,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, StoreError> {
        self.range(origin, first..=last, false, limit)
    }

    /// As [`LogReader::forward`]; `backward`: from the last entry down to the first.
    pub(in super::super) fn range(
        &mut self,
        origin: Origin,
        seqs: RangeInclusive<u64>,
        backward: bool,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, StoreError> {
        if seqs.is_empty() {
            return Ok(Vec::new());
        }
        let start = if backward { *seqs.end() } else { *seqs.start() };
        let read = catch_panic(|| {
            let rows = self.table(origin, start)?.range(seqs.clone())?;
            let entries = if backward {
                take_rows(origin, seqs.rev().zip(rows.rev()), limit)?
            } else {
                take_rows(origin, seqs.zip(rows), limit)?
            };
            if entries.is_empty() { Err(StoreError::Damaged { origin, seq: start }) } else { Ok(entries) }
        });
        self.record_failure(read)
    }

    /// The seq of the first row from `seq` on, whatever the row contains.
    pub fn row_from(&mut self, origin: Origin, seq: u64) -> Result<Option<u64>, StoreError> {
        let read = catch_panic(|| match self.table(origin, seq) {
            Err(StoreError::Damaged { .. }) => Ok(None), // the log has no table
            table => Ok(table?.range(seq..)?.next().transpose()?.map(|(key, _)| key.value())),
        });
        self.record_failure(read)
    }

    /// Rows of `first..=last`, unchecked, at least one if there is any: for the search for damage.
    pub(in super::super) fn rows(
        &mut self,
        origin: Origin,
        first: u64,
        last: u64,
        limit: ReadLimit,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        catch_panic(|| {
            let (mut rows, mut bytes) = (Vec::new(), 0);
            for row in self.table(origin, first)?.range(first..=last)?.take(limit.rows) {
                let (seq, record) = row?;
                bytes += record.value().len();
                rows.push((seq.value(), record.value().to_vec()));
                if bytes >= limit.bytes {
                    break;
                }
            }
            Ok(rows)
        })
    }

    /// The stored hash of a checkpoint of the chain. Its row has no checksum.
    pub fn checkpoint(&self, origin: Origin, seq: u64) -> Result<Option<ChainHash>, StoreError> {
        let read =
            || Ok(self.tx.open_table(CHAIN)?.get((origin.0, seq))?.map(|hash| ChainHash(hash.value())));
        self.record_failure(catch_panic(read))
    }

    /// `h(seq)`, computed from the nearest checkpoint at or below `seq`, or the log's floor, and the entries between.
    pub fn hash_at(&mut self, origin: Origin, floor: Head, seq: u64) -> Result<ChainHash, StoreError> {
        let mut checkpoint = seq - seq % CHECKPOINT_EVERY;
        let mut hash = loop {
            if checkpoint <= floor.seq {
                checkpoint = floor.seq;
                break floor.hash;
            }
            if let Some(stored) = self.checkpoint(origin, checkpoint)? {
                break stored;
            }
            checkpoint -= CHECKPOINT_EVERY; // missing: use the one before
        };
        let limit = ReadLimit { rows: usize::MAX, bytes: 1 << 20 };
        let mut next = checkpoint + 1;
        while next <= seq {
            for entry in self.forward(origin, next, seq, limit)? {
                hash = hash.next(next, entry.stamp(), entry.leaf());
                next += 1;
            }
        }
        Ok(hash)
    }

    /// The first seq in `first..=last` whose key is after `key`, else `last + 1`. A binary search, because the stamps of
    /// a log increase. A damaged entry counts as after `key` unless an intact one that follows it is not.
    pub fn first_after(
        &mut self,
        origin: Origin,
        first: u64,
        last: u64,
        key: EntryKey,
    ) -> Result<u64, StoreError> {
        let (mut low, mut high) = (first, last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut at = middle;
            let intact = loop {
                match self.get(origin, at) {
                    Err(StoreError::Damaged { .. }) if at + 1 < high => at += 1,
                    Err(StoreError::Damaged { .. }) => break None,
                    entry => break Some(entry?),
                }
            };
            match intact {
                Some(entry) if entry.key() <= key => low = at + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }
}

/// The most that one read returns.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimit {
    pub rows: usize,
    /// Bytes of records. At the bound the read ends, but not before one entry.
    pub bytes: usize,
}

type RowResult<'a> =
    Result<(redb::AccessGuard<'a, u64>, redb::AccessGuard<'a, &'static [u8]>), redb::StorageError>;

/// Reads rows until the limit, or until an entry is damaged or missing.
fn take_rows<'a>(
    origin: Origin,
    rows: impl Iterator<Item = (u64, RowResult<'a>)>,
    limit: ReadLimit,
) -> Result<Vec<Entry>, StoreError> {
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for (seq, row) in rows.take(limit.rows) {
        let (key, value) = row?;
        let entry = match checked_entry(origin, seq, value.value()) {
            Ok(entry) if key.value() == seq => entry,
            _ if Fault::SkipDamage.is_planted() => continue,
            _ => break, // the next read starts with it and fails
        };
        bytes += entry.size();
        entries.push(entry);
        if bytes >= limit.bytes {
            break;
        }
    }
    Ok(entries)
}
