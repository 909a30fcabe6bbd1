//! Owns the scan over the messages of one user in display order, through the index.
//!
//! Between `listing` and `index`. It merges the keys of the memtable with those of the index file. The memtable is read
//! once, before the file; an entry that is flushed during the scan is in both, and is returned once. Must not know
//! filters: names can share a hash, so the listing compares them.

use std::collections::VecDeque;

use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::store::index::memtable::NameHash;
use crate::store::log::LogReader;
use crate::store::{Store, StoreError};

/// Rows of the index file read at a time.
const FILE_ROWS: usize = 512;

#[derive(Debug)]
pub(in crate::store) struct UserScan {
    name: NameHash,
    roles: u8,
    backward: bool,
    memtable: VecDeque<EntryKey>,
    file: VecDeque<EntryKey>,
    /// Where the next read of the file continues.
    file_from: Option<EntryKey>,
    file_done: bool,
    /// A key whose entry could not be read. The next read begins with it.
    unread: Option<EntryKey>,
}

impl UserScan {
    /// The messages after (backward: before) `from` in which `name` has one of `roles`.
    pub(in crate::store) fn new(
        store: &Store,
        name: &str,
        roles: u8,
        from: Option<EntryKey>,
        backward: bool,
    ) -> Self {
        let name = NameHash::of(name);
        let mut keys = store.index().memtable().keys_of(name, roles);
        keys.retain(|key| from.is_none_or(|from| if backward { *key < from } else { *key > from }));
        if backward {
            keys.reverse();
        }
        let (memtable, file) = (keys.into(), VecDeque::new());
        let (file_done, unread) = (false, None);
        UserScan { name, roles, backward, memtable, file, file_from: from, file_done, unread }
    }

    /// Skips a damaged entry, which the last read has met.
    pub(in crate::store) fn skip(&mut self, origin: Origin, seq: u64) {
        self.unread = self.unread.filter(|key| (key.origin, key.seq) != (origin, seq));
    }

    /// The next entry within `logs`, and whether it has another copy.
    pub(in crate::store) fn next(
        &mut self,
        store: &Store,
        logs: &Logs,
        reader: &mut LogReader,
    ) -> Result<Option<(Entry, bool)>, StoreError> {
        while let Some(key) = self.unread.take().map_or_else(|| self.next_key(store), |key| Ok(Some(key)))? {
            let EntryKey { origin, seq, .. } = key;
            if logs.covers(key) {
                self.unread = Some(key);
                let entry = reader.get(origin, seq)?;
                self.unread = None;
                let has_copy = !store.index().reader().copied_seqs(origin, seq, seq)?.is_empty();
                return Ok(Some((entry, has_copy)));
            }
        }
        Ok(None)
    }

    fn next_key(&mut self, store: &Store) -> Result<Option<EntryKey>, StoreError> {
        while self.file.is_empty() && !self.file_done {
            let (name, from) = ((self.name, self.roles), self.file_from);
            let (keys, next) = store.index().reader().file_keys(name, from, self.backward, FILE_ROWS)?;
            self.file.extend(keys);
            (self.file_done, self.file_from) = (next.is_none(), next);
        }
        let fronts = [&self.memtable, &self.file].into_iter().filter_map(VecDeque::front);
        let next = if self.backward { fronts.max() } else { fronts.min() }.copied();
        for keys in [&mut self.memtable, &mut self.file] {
            if keys.front().copied() == next {
                keys.pop_front();
            }
        }
        Ok(next)
    }
}
