//! Owns the scan over the messages of one user in display order, through the index.
//!
//! Between `listing` and `index`. It merges the keys of the memtable with those of the index file. The memtable is read
//! once, before the file; an entry that is flushed during the scan is in both, and is returned once. Must not know
//! filters: names can share a hash, so the listing compares them.

use std::collections::VecDeque;

use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::store::history::Readers;
use crate::store::index::IndexReader;
use crate::store::index::memtable::NameHash;
use crate::store::{Store, StoreError};

/// Rows of the index file that are read first: enough for most pages.
const FILE_ROWS_FIRST: usize = 64;
/// Rows of the index file that are read at a time after that.
const FILE_ROWS_MAX: usize = 512;

#[derive(Debug)]
pub(in crate::store) struct UserScan {
    name: NameHash,
    roles: u8,
    backward: bool,
    memtable: VecDeque<EntryKey>,
    file: VecDeque<EntryKey>,
    /// Where the next read of the file continues.
    file_from: Option<EntryKey>,
    file_rows: usize,
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
        let (file_rows, file_done, unread) = (FILE_ROWS_FIRST, false, None);
        UserScan { name, roles, backward, memtable, file, file_from: from, file_rows, file_done, unread }
    }

    /// Skips a damaged entry, which the last read has met.
    pub(in crate::store) fn skip(&mut self, origin: Origin, seq: u64) {
        self.unread = self.unread.filter(|key| (key.origin, key.seq) != (origin, seq));
    }

    /// The next entry within `logs`, and whether it has another copy.
    pub(super) fn next(
        &mut self,
        logs: &Logs,
        readers: &mut Readers<'_>,
    ) -> Result<Option<(Entry, bool)>, StoreError> {
        while let Some(key) =
            self.unread.take().map_or_else(|| self.next_key(&mut readers.index), |key| Ok(Some(key)))?
        {
            let EntryKey { origin, seq, .. } = key;
            if logs.covers(key) {
                self.unread = Some(key);
                let entry = readers.log.get(origin, seq)?;
                self.unread = None;
                let has_copy = !readers.index.copied_seqs(origin, seq, seq)?.is_empty();
                return Ok(Some((entry, has_copy)));
            }
        }
        Ok(None)
    }

    fn next_key(&mut self, index: &mut IndexReader<'_>) -> Result<Option<EntryKey>, StoreError> {
        while self.file.is_empty() && !self.file_done {
            let (name, from) = ((self.name, self.roles), self.file_from);
            let (keys, next) = index.file_keys(name, from, self.backward, self.file_rows)?;
            self.file_rows = FILE_ROWS_MAX;
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
