//! Owns the question whether the index has every row that it must have for an entry, none of which carries a check.
//!
//! What the index should have is worked out of the entry anew, as when it was noted. An entry that is in the tail is not
//! looked for in the file: what is noted in memory has not been on a disk. Asked for entries in turn, so one transaction
//! serves many, and neighbours lie on the same pages.

use std::cell::RefCell;

use redb::{ReadOnlyTable, ReadTransaction, ReadableDatabase};

use super::super::{StoreError, StoredCopy};
use super::Index;
use super::tables::{BY_ID, BY_USER, COPIES, IdKey, IndexRows, UserKey};
use crate::chain::clock::Stamp;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::message::Digest;
use crate::chain::record::Entry;
use crate::store::engine::catch_panic::catch_engine_panic;
use crate::store::index::memtable::IndexEntry;

/// The tables as of one moment.
struct AuditTables {
    by_id: ReadOnlyTable<IdKey, (u64, [u8; 32])>,
    by_user: ReadOnlyTable<UserKey, u8>,
    copies: ReadOnlyTable<([u8; 16], u64), ()>,
}

impl AuditTables {
    fn open(tx: &ReadTransaction) -> Result<Self, StoreError> {
        Ok(AuditTables {
            by_id: tx.open_table(BY_ID)?,
            by_user: tx.open_table(BY_USER)?,
            copies: tx.open_table(COPIES)?,
        })
    }

    fn have(&self, rows: &IndexRows) -> Result<bool, StoreError> {
        for (key, value) in &rows.by_id {
            if self.by_id.get(*key)?.is_none_or(|found| found.value() != *value) {
                return Ok(false);
            }
        }
        for (key, sides) in &rows.by_user {
            if self.by_user.get(*key)?.is_none_or(|found| found.value() != *sides) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether another copy of this entry is known that `logs` cover.
    fn have_copy(&self, id: [u8; 16], here: StoredCopy, logs: &Logs) -> Result<bool, StoreError> {
        for row in self.by_id.range((id, [0; 16], 0)..=(id, [0xff; 16], u64::MAX))? {
            let (key, value) = row?;
            let ((_, origin, seq), (stamp, digest)) = (key.value(), value.value());
            let place = EntryKey { stamp: Stamp(stamp), origin: Origin(origin), seq };
            if is_copy(&StoredCopy { place, digest: Digest(digest) }, here, logs) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn is_copy(other: &StoredCopy, here: StoredCopy, logs: &Logs) -> bool {
    other.digest == here.digest && other.place != here.place && logs.covers(other.place)
}

/// See the head of this file. Short-lived, as it pins pages.
pub struct Audit<'a> {
    index: &'a Index,
    /// And how often the tail had let entries go when they were opened.
    file: RefCell<Option<(u64, AuditTables)>>,
}

impl<'a> Audit<'a> {
    pub(in super::super) fn new(index: &'a Index) -> Self {
        Audit { index, file: RefCell::default() }
    }

    /// Whether the index has all rows of an entry: by its id, by both names, and that it has a copy if `logs` cover one.
    pub fn has_rows_of(&self, entry: &Entry, logs: &Logs) -> Result<bool, StoreError> {
        let noted = IndexEntry::new(entry);
        let (Some(id), here) = (noted.id, noted.copy) else { return Ok(true) };
        let EntryKey { origin, seq, .. } = here.place;
        let (is_noted, has_copy, is_marked, let_go) = {
            let tail = self.index.read_memtable();
            let standings = tail.standings(&id);
            let has_copy = standings.iter().any(|other| is_copy(other, here, logs));
            let is_marked = tail.copies(origin, seq, seq).next().is_some();
            (standings.contains(&here), has_copy, is_marked, tail.epoch())
        };
        catch_engine_panic(|| {
            // As with look-ups: what the tail let go after the transaction began is in neither.
            let mut file = self.file.borrow_mut();
            let tables = match file.take() {
                Some((then, tables)) if then == let_go => tables,
                _ => AuditTables::open(&self.index.db.begin_read()?)?,
            };
            let (_, tables) = file.insert((let_go, tables));
            if !is_noted && !tables.have(&IndexRows::of(std::iter::once(&noted)))? {
                return Ok(false);
            }
            // Of other entries than messages no copy is marked: nobody lists them.
            let is_marked = !noted.is_message || is_marked || tables.copies.get((origin.0, seq))?.is_some();
            Ok(is_marked || !(has_copy || tables.have_copy(id, here, logs)?))
        })
    }
}
