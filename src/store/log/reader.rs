//! Owns reading the logs: short, within one redb transaction, every record checked.
//!
//! An entry that a vector covers must be there: one that is not, or does not check, is [`Error::Damaged`] and noted as a
//! wound, unless the vector is from before a cut and the entry was swept: then it is [`Error::CutOff`]. A panic of redb
//! ends here as an error.

use std::collections::BTreeMap;
use std::sync::Arc;

use redb::{ReadOnlyTable, ReadTransaction};

use super::super::StoreError;
use super::{CHAIN, log_table, table_name};
use crate::chain::ids::{ChainHash, EntryKey, Origin};
use crate::chain::logs::CHECKPOINT_EVERY;
use crate::chain::record::Entry;
use crate::fault::Fault;
use crate::store::engine::catch_panic::catch_engine_panic;
use crate::store::log::damage::Damage;
use crate::store::log::purge::Purged;

/// A short look at the logs as of one moment. Not to be held across a wait.
pub struct LogReader {
    tx: ReadTransaction,
    tables: BTreeMap<Origin, ReadOnlyTable<u64, &'static [u8]>>,
    wounds: Arc<Damage>,
    swept: Arc<Purged>,
}

impl LogReader {
    pub(super) fn new(tx: ReadTransaction, wounds: Arc<Damage>, swept: Arc<Purged>) -> Self {
        LogReader { tx, tables: BTreeMap::new(), wounds, swept }
    }

    fn table(&mut self, origin: Origin, seq: u64) -> Result<&ReadOnlyTable<u64, &'static [u8]>, StoreError> {
        use std::collections::btree_map::Entry::{Occupied, Vacant};
        match self.tables.entry(origin) {
            Occupied(table) => Ok(table.into_mut()),
            Vacant(slot) => match self.tx.open_table(log_table(&table_name(origin))) {
                Ok(table) => Ok(slot.insert(table)),
                Err(redb::TableError::TableDoesNotExist(_)) => Err(StoreError::Damaged { origin, seq }),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// A read of an entry that must be there, with a note of it if it is damaged.
    fn noted<T>(&self, read: Result<T, StoreError>) -> Result<T, StoreError> {
        match &read {
            Ok(_) => {}
            Err(StoreError::Damaged { origin, seq }) if self.swept.covers(*origin, *seq) => {
                return Err(StoreError::CutOff { origin: *origin, seq: *seq });
            }
            Err(StoreError::Damaged { origin, seq }) => self.wounds.add(*origin, *seq),
            Err(error) => self.wounds.engine_failed(error),
        }
        read
    }

    /// One entry. That it exists must be known from a vector: its absence is damage.
    pub fn get(&mut self, origin: Origin, seq: u64) -> Result<Entry, StoreError> {
        let read = self.read(origin, seq);
        self.noted(read)
    }

    /// One entry, if it is there and not damaged. For what no vector covers.
    pub fn peek(&mut self, origin: Origin, seq: u64) -> Result<Option<Entry>, StoreError> {
        match self.read(origin, seq) {
            Ok(entry) => Ok(Some(entry)),
            Err(StoreError::Damaged { .. }) => Ok(None),
            failed => self.noted(failed.map(Some)),
        }
    }

    fn read(&mut self, origin: Origin, seq: u64) -> Result<Entry, StoreError> {
        catch_engine_panic(|| match self.table(origin, seq)?.get(seq)? {
            Some(bytes) => checked(origin, seq, bytes.value()),
            None => Err(StoreError::Damaged { origin, seq }),
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
        most: ReadLimit,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        if first <= last {
            let read = catch_engine_panic(|| {
                let range = self.table(origin, first)?.range(first..=last)?;
                take_rows(origin, (first..=last).zip(range), most, &mut entries)
            });
            self.noted(read)?;
            if entries.is_empty() {
                return self.noted(Err(StoreError::Damaged { origin, seq: first }));
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
        most: ReadLimit,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        if first <= last {
            let read = catch_engine_panic(|| {
                let range = self.table(origin, last)?.range(first..=last)?.rev();
                take_rows(origin, (first..=last).rev().zip(range), most, &mut entries)
            });
            self.noted(read)?;
            if entries.is_empty() {
                return self.noted(Err(StoreError::Damaged { origin, seq: last }));
            }
        }
        Ok(entries)
    }

    /// The seq of the first row from here on, whatever is in it.
    pub fn row_from(&mut self, origin: Origin, seq: u64) -> Result<Option<u64>, StoreError> {
        let read = catch_engine_panic(|| match self.table(origin, seq) {
            Err(StoreError::Damaged { .. }) => Ok(None), // it has no table
            table => Ok(table?.range(seq..)?.next().transpose()?.map(|(key, _)| key.value())),
        });
        self.noted(read)
    }

    /// Rows of `first..=last` as they lie there, unchecked, at least one if there is any: for whoever looks for damage.
    pub(in super::super) fn rows(
        &mut self,
        origin: Origin,
        first: u64,
        last: u64,
        most: ReadLimit,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        catch_engine_panic(|| {
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

    /// The chain's hash as it was kept for a checkpoint. It carries no check of its own.
    pub fn checkpoint(&self, origin: Origin, seq: u64) -> Result<Option<ChainHash>, StoreError> {
        let kept =
            |tx: &ReadTransaction| Ok(tx.open_table(CHAIN)?.get((origin.0, seq))?.map(|hash| hash.value()));
        self.noted(catch_engine_panic(|| kept(&self.tx))).map(|kept| kept.map(ChainHash))
    }

    /// `h(seq)`: from the nearest checkpoint at or below it, by reading the entries between.
    pub fn hash_at(&mut self, origin: Origin, seq: u64) -> Result<ChainHash, StoreError> {
        let mut checkpoint = seq - seq % CHECKPOINT_EVERY;
        let mut hash = ChainHash::genesis(origin);
        while checkpoint > 0 {
            if let Some(kept) = self.checkpoint(origin, checkpoint)? {
                hash = kept;
                break;
            }
            checkpoint -= CHECKPOINT_EVERY; // it is missing: the one before serves as well
        }
        let most = ReadLimit { rows: usize::MAX, bytes: 1 << 20 };
        let mut next = checkpoint + 1;
        while next <= seq {
            for entry in self.forward(origin, next, seq, most)? {
                hash = hash.next(next, entry.stamp(), entry.digest());
                next += 1;
            }
        }
        Ok(hash)
    }

    /// The first seq in `1..=last` whose place is after `place`, else `last + 1`. Stamps of a log increase, so
    /// this is a binary search.
    pub fn first_after(&mut self, origin: Origin, last: u64, place: EntryKey) -> Result<u64, StoreError> {
        let (mut low, mut high) = (1, last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(origin, middle)?.key() > place {
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
pub struct ReadLimit {
    /// Entries.
    pub rows: usize,
    /// Bytes of records; one entry comes in any case.
    pub bytes: usize,
}

type RowResult<'a> =
    Result<(redb::AccessGuard<'a, u64>, redb::AccessGuard<'a, &'static [u8]>), redb::StorageError>;

fn take_rows<'a>(
    origin: Origin,
    rows: impl Iterator<Item = (u64, RowResult<'a>)>,
    most: ReadLimit,
    entries: &mut Vec<Entry>,
) -> Result<(), StoreError> {
    let mut bytes = 0;
    for (seq, row) in rows.take(most.rows) {
        let (key, value) = row?;
        let is_hole = key.value() != seq;
        let entry = match checked(origin, seq, value.value()) {
            Ok(entry) if !is_hole => entry,
            _ if Fault::SkipDamage.is_planted() => continue,
            _ if entries.is_empty() => return Err(StoreError::Damaged { origin, seq }),
            _ => break, // what comes before it is good; the next read begins with it and fails
        };
        bytes += entry.size();
        entries.push(entry);
        if bytes >= most.bytes {
            break;
        }
    }
    Ok(())
}

pub(super) fn checked(origin: Origin, seq: u64, bytes: &[u8]) -> Result<Entry, StoreError> {
    match Entry::check(bytes) {
        Ok(entry) if (entry.origin(), entry.seq(), entry.size()) == (origin, seq, bytes.len()) => Ok(entry),
        _ => Err(StoreError::Damaged { origin, seq }),
    }
}
