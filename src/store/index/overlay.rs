//! Owns the copies of each id that a batch sees while it is decided: those in the index, and those that the batch adds.
//!
//! The committer decides a batch against the overlay, and the overlay makes the rows of the batch. After the commit the
//! rows go into the memtable. The committer alone adds to the index, so what the overlay read stays true until the
//! batch is committed. Nothing is written here: dropping the overlay undoes it.

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};

use super::IndexReader;
use super::memtable::IndexEntry;
use crate::chain::ids::ChainHash;
use crate::chain::record::Entry;
use crate::store::log::NewRow;
use crate::store::{StoreError, StoredCopy};

/// The index as it will be after the batch, as far as the batch looks at it.
pub struct IndexOverlay<'a> {
    pub(super) reader: IndexReader<'a>,
    pub(super) by_id: HashMap<[u8; 16], IdCopies>,
}

/// All copies of one id.
#[derive(Debug)]
pub struct IdCopies {
    pub committed: Vec<StoredCopy>,
    /// The copies that the batch adds.
    pub staged: Vec<StoredCopy>,
}

impl IndexOverlay<'_> {
    /// All copies of an id.
    pub fn copies(&mut self, id: [u8; 16]) -> Result<&mut IdCopies, StoreError> {
        match self.by_id.entry(id) {
            Occupied(copies) => Ok(copies.into_mut()),
            Vacant(slot) => {
                let committed = self.reader.copies(id)?;
                Ok(slot.insert(IdCopies { committed, staged: Vec::new() }))
            }
        }
    }

    /// Stages an entry at the end of its log, where the chain then has this hash.
    pub fn append(&mut self, entry: Entry, hash: ChainHash) -> Result<NewRow, StoreError> {
        let index = Some(self.stage(&entry)?);
        Ok(NewRow { entry, hash: Some(hash), index })
    }

    /// Stages an entry that replaces a damaged one.
    pub fn repair(&mut self, entry: Entry) -> Result<NewRow, StoreError> {
        let is_indexed = match IndexEntry::new(&entry).id {
            Some(id) => self.copies(id)?.committed.iter().any(|copy| copy.key == entry.key()),
            None => false,
        };
        let index = if is_indexed { None } else { Some(self.stage(&entry)?) };
        Ok(NewRow { entry, hash: None, index })
    }

    pub(super) fn stage(&mut self, entry: &Entry) -> Result<IndexEntry, StoreError> {
        let mut index_entry = IndexEntry::new(entry);
        if let Some(id) = index_entry.id.filter(|_| index_entry.names.is_some()) {
            let copies = self.copies(id)?;
            index_entry.compare_with(copies.committed.iter().chain(&copies.staged));
            copies.staged.push(index_entry.copy);
        }
        Ok(index_entry)
    }

    /// Removes a staged row.
    pub fn unstage(&mut self, row: &NewRow) {
        let id = row.index.as_ref().and_then(|index_entry| index_entry.id);
        if let Some(copies) = id.and_then(|id| self.by_id.get_mut(&id)) {
            copies.staged.retain(|copy| copy.key != row.entry.key());
        }
    }
}
