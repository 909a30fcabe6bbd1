//! Owns finding frontier snapshots by their id. A snapshot is an entry, indexed under its id like a message.
//! Also says which trailing entries of the logs are nothing but snapshots.

use std::sync::Arc;

use crate::chain::frontier::{CHAIN_COUNT_MAX, Frontier, FrontierSnapshot, SnapshotContent, SnapshotId};
use crate::chain::ids::EntryKey;
use crate::chain::kind::EntryKind;
use crate::store::index::CopyScan;
use crate::store::{Store, StoreError};

impl Store {
    /// The snapshot with this id, resolved through the snapshots it builds on; `None` if one of them is missing here.
    pub fn snapshot(&self, id: SnapshotId) -> Result<Option<Arc<FrontierSnapshot>>, StoreError> {
        let (mut contents, mut next) = (Vec::new(), Some(id));
        while let Some(id) = next {
            let Some((_, content)) = self.snapshot_entry(id)? else { return Ok(None) };
            next = content.base;
            contents.push(content);
            if contents.len() > CHAIN_COUNT_MAX {
                return Ok(None);
            }
        }
        let resolve =
            |base: Option<FrontierSnapshot>, content: SnapshotContent| Some(content.snapshot(base.as_ref()));
        Ok(contents.into_iter().rev().fold(None, resolve).map(Arc::new))
    }

    /// `until` without the snapshots at the end of each log, but not less than `before`. Otherwise nodes would answer
    /// each other's snapshots for ever.
    pub fn without_trailing_snapshots(
        &self,
        before: &Frontier,
        mut until: Frontier,
    ) -> Result<Frontier, StoreError> {
        let mut reader = self.log.read()?;
        for (origin, mut last) in until.beyond(before) {
            while last > before.seq(origin)
                && reader.peek(origin, last)?.is_some_and(|entry| entry.kind() == EntryKind::Snapshot)
            {
                last -= 1;
            }
            until.lower(origin, last);
        }
        Ok(until)
    }

    /// The entry of a snapshot, if it is here.
    pub fn snapshot_key(&self, id: SnapshotId) -> Result<Option<EntryKey>, StoreError> {
        Ok(self.snapshot_entry(id)?.map(|(key, _)| key))
    }

    fn snapshot_entry(&self, id: SnapshotId) -> Result<Option<(EntryKey, SnapshotContent)>, StoreError> {
        let (mut index, mut scan) = (self.index.reader(), CopyScan::of_id(id.0));
        while let Some(copy) = index.next_copy(&mut scan)? {
            if SnapshotId::of(copy.digest) != id {
                scan.skip_content();
                continue; // a message whose sender chose the id of a snapshot
            }
            let EntryKey { origin, seq, .. } = copy.key;
            let Some(entry) = self.log.read()?.peek(origin, seq)? else { continue };
            let is_it = entry.kind() == EntryKind::Snapshot && entry.digest() == copy.digest;
            if let Some(content) = SnapshotContent::decode(entry.content()).filter(|_| is_it) {
                return Ok(Some((copy.key, content)));
            }
        }
        Ok(None)
    }
}
