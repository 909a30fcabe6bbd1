//! Owns the copies of each id that a batch sees while it is decided: those in the index, and those that the batch adds.
//!
//! The committer decides a batch against the overlay, and the overlay makes the rows of the batch. After the commit the
//! rows go into the memtable. The committer alone adds to the index, so what the overlay read stays true until the
//! batch is committed. Nothing is written here: dropping the overlay undoes it.

use std::collections::{BTreeSet, HashMap};

use super::IndexReader;
use super::copies::{CopyScan, IdKey, id_key};
use super::memtable::IndexEntry;
use crate::chain::ids::ChainHash;
use crate::chain::record::Entry;
use crate::store::log::NewRow;
use crate::store::{StoreError, StoredCopy};

/// The index as it will be after the batch, as far as the batch looks at it.
pub struct IndexOverlay<'a> {
    pub(super) reader: IndexReader<'a>,
    /// The copies that the batch adds.
    pub(super) staged: BTreeSet<IdKey>,
    /// Whether the index has any copy of an id. Most ids are new and are looked up twice.
    pub(super) known: HashMap<[u8; 16], bool>,
}

impl IndexOverlay<'_> {
    /// The next copy of a scan, and whether the batch adds it.
    pub fn next_copy(&mut self, scan: &mut CopyScan) -> Result<Option<(StoredCopy, bool)>, StoreError> {
        let staged = self.staged.range(scan.range()).next().copied();
        let indexed = if self.is_known(scan.id())? { self.reader.copy_in(scan)? } else { None };
        let next = staged.into_iter().chain(indexed).min();
        Ok(next.map(|key| (scan.pass(key), staged == Some(key))))
    }

    fn is_known(&mut self, id: [u8; 16]) -> Result<bool, StoreError> {
        if let Some(is_known) = self.known.get(&id) {
            return Ok(*is_known);
        }
        let is_known = self.reader.copy_in(&CopyScan::of_id(id))?.is_some();
        self.known.insert(id, is_known);
        Ok(is_known)
    }

    /// Stages an entry at the end of its log, where the chain then has this hash.
    pub fn append(&mut self, entry: Entry, hash: ChainHash) -> Result<NewRow, StoreError> {
        let index = Some(self.stage(&entry)?);
        Ok(NewRow { entry, hash: Some(hash), index })
    }

    /// Stages an entry that replaces a damaged one.
    pub fn repair(&mut self, entry: Entry) -> Result<NewRow, StoreError> {
        let IndexEntry { id, copy, .. } = IndexEntry::new(&entry);
        let is_indexed = match id {
            Some(id) => self.reader.copy_in(&CopyScan::of_copy(id, &copy))?.is_some(),
            None => false,
        };
        let index = if is_indexed { None } else { Some(self.stage(&entry)?) };
        Ok(NewRow { entry, hash: None, index })
    }

    pub(super) fn stage(&mut self, entry: &Entry) -> Result<IndexEntry, StoreError> {
        let mut index_entry = IndexEntry::new(entry);
        if let Some(id) = index_entry.id.filter(|_| index_entry.names.is_some()) {
            let copy = index_entry.copy;
            let (mut same, mut contents) = (Vec::new(), 0);
            let mut scan = CopyScan::of_content(id, copy.digest);
            while same.len() < 2
                && let Some((other, _)) = self.next_copy(&mut scan)?
            {
                same.push(other);
            }
            let mut scan = CopyScan::of_id(id);
            while contents < 2 && self.next_copy(&mut scan)?.is_some() {
                contents += 1;
                scan.skip_content();
            }
            index_entry.compare_with(&same, contents);
            self.staged.insert(id_key(id, &copy));
        }
        Ok(index_entry)
    }

    /// Removes a staged row.
    pub fn unstage(&mut self, row: &NewRow) {
        if let Some(IndexEntry { id: Some(id), copy, .. }) = &row.index {
            self.staged.remove(&id_key(*id, copy));
        }
    }
}
