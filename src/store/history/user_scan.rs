//! Owns the walk over one user's messages in display order, by way of the index.
//!
//! What the index file holds and what is still in its tail are merged by place; an entry that moved from the
//! one to the other while the walk was under way is met twice and given once.

use std::collections::VecDeque;

use crate::chain::ids::EntryKey;
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::store::index::FileScan;
use crate::store::index::memtable::NameHash;
use crate::store::log::LogReader;
use crate::store::{Store, StoreError};

/// Rows of the index read at once.
const ROWS: usize = 512;

/// See the head of this file.
#[derive(Debug)]
pub(in crate::store) struct UserScan {
    name: NameHash,
    sides: u8,
    backward: bool,
    /// Taken before the file is looked at for the first time.
    tail: VecDeque<EntryKey>,
    file: VecDeque<EntryKey>,
    /// Where the file goes on, unless it is at its end.
    file_from: Option<EntryKey>,
    file_done: bool,
}

impl UserScan {
    /// The places after (backward: before) `from` where `name` stands on one of `sides`.
    pub(in crate::store) fn new(
        store: &Store,
        name: &str,
        sides: u8,
        from: Option<EntryKey>,
        backward: bool,
    ) -> Self {
        let name = NameHash::of(name);
        let mut tail = store.index().memtable_keys(name, sides);
        tail.retain(|place| from.is_none_or(|from| if backward { *place < from } else { *place > from }));
        if backward {
            tail.reverse();
        }
        let (tail, file) = (tail.into(), VecDeque::new());
        UserScan { name, sides, backward, tail, file, file_from: from, file_done: false }
    }

    /// The next entry within `logs`, and whether it has another copy.
    pub(in crate::store) fn next(
        &mut self,
        store: &Store,
        logs: &Logs,
        reader: &mut LogReader,
    ) -> Result<Option<(Entry, bool)>, StoreError> {
        while let Some(EntryKey { origin, seq, .. }) = self.next_place(store)? {
            if seq <= logs.vector().seq(origin) {
                let has_copy = !store.index().copies(origin, seq, seq)?.is_empty();
                return Ok(Some((reader.get(origin, seq)?, has_copy)));
            }
        }
        Ok(None)
    }

    fn next_place(&mut self, store: &Store) -> Result<Option<EntryKey>, StoreError> {
        while self.file.is_empty() && !self.file_done {
            let scan = FileScan { from: self.file_from, backward: self.backward, rows: ROWS };
            let found = store.index().file_keys(self.name, self.sides, scan)?;
            self.file.extend(found.places);
            self.file_done = found.next.is_none();
            self.file_from = found.next;
        }
        let place = match (self.tail.front(), self.file.front()) {
            (Some(tail), Some(file)) if (tail < file) ^ self.backward => *tail,
            (_, Some(file)) => *file,
            (tail, None) => match tail {
                Some(tail) => *tail,
                None => return Ok(None),
            },
        };
        for places in [&mut self.tail, &mut self.file] {
            if places.front() == Some(&place) {
                places.pop_front();
            }
        }
        Ok(Some(place))
    }
}
