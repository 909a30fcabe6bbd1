//! Owns the way from a milestone's name to what it says. They are entries like any other, found by the index.

use std::sync::Arc;

use crate::chain::frontier::{CHAIN_COUNT_MAX, Frontier, FrontierSnapshot, SnapshotContent, SnapshotId};
use crate::chain::ids::EntryKey;
use crate::chain::record::EntryKind;
use crate::store::{Store, StoreError};

impl Store {
    /// The milestone of this name, and those that it builds on: `None` if they are not all here.
    pub fn snapshot(&self, name: SnapshotId) -> Result<Option<Arc<FrontierSnapshot>>, StoreError> {
        let (mut contents, mut next) = (Vec::new(), Some(name));
        while let Some(name) = next {
            let Some((_, content)) = self.snapshot_entry(name)? else { return Ok(None) };
            next = content.base;
            contents.push(content);
            if contents.len() > CHAIN_COUNT_MAX {
                return Ok(None);
            }
        }
        let mut milestone: Option<FrontierSnapshot> = None;
        for content in contents.into_iter().rev() {
            milestone = Some(content.snapshot(milestone.as_ref()));
        }
        Ok(milestone.map(Arc::new))
    }

    /// The same without the milestones at the end of each log, as far as that is beyond `before`.
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

    /// Where it stands, if it is here.
    pub fn snapshot_key(&self, name: SnapshotId) -> Result<Option<EntryKey>, StoreError> {
        Ok(self.snapshot_entry(name)?.map(|(place, _)| place))
    }

    fn snapshot_entry(&self, name: SnapshotId) -> Result<Option<(EntryKey, SnapshotContent)>, StoreError> {
        for standing in self.index.reader().copies(name.0)? {
            if SnapshotId::of(standing.digest) != name {
                continue; // a message whose id somebody chose so
            }
            let EntryKey { origin, seq, .. } = standing.key;
            let Some(entry) = self.log.read()?.peek(origin, seq)? else { continue };
            let is_it = entry.kind() == EntryKind::Snapshot && entry.digest() == standing.digest;
            if let Some(content) = SnapshotContent::decode(entry.content()).filter(|_| is_it) {
                return Ok(Some((standing.key, content)));
            }
        }
        Ok(None)
    }
}
