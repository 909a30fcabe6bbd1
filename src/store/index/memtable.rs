//! Owns the entries that are durable in the log and not yet in the index file, and answers the same questions as the
//! file.
//!
//! Also owns what the index derives from one entry ([`IndexEntry`]). Must not know the tables of the file.
//!
//! Invariant: an entry leaves the memtable only after the file has it. So a reader that asks the memtable first and the
//! file second misses nothing, and may see an entry in both.

use std::collections::{BTreeSet, VecDeque};

use crate::chain::frontier::SnapshotId;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::kind::EntryKind;
use crate::chain::record::Entry;
use crate::store::index::copies::{CopyScan, IdKey, id_key};
use crate::store::{Counts, StoredCopy};

/// Bits for the roles of a name in a message: sender, recipient.
pub(in crate::store) const SENDER: u8 = 1;
pub(in crate::store) const RECIPIENT: u8 = 2;

/// Hash under which a name is indexed. Names can collide, so a reader compares the name itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct NameHash(pub(in crate::store) [u8; 8]);

impl NameHash {
    pub(in crate::store) fn of(name: &str) -> Self {
        NameHash(twox_hash::XxHash3_64::oneshot(name.as_bytes()).to_be_bytes())
    }
}

/// What the index keeps of one entry.
#[derive(Debug)]
pub(in crate::store) struct IndexEntry {
    pub(in crate::store) copy: StoredCopy,
    /// The id of a message or of a frontier snapshot; `None` for other entries.
    pub(in crate::store) id: Option<[u8; 16]>,
    /// The sender and the recipient of a message; `None` for other entries.
    pub(in crate::store) names: Option<[NameHash; 2]>,
    /// Entries to mark as having another copy because of this entry; at most two.
    pub(in crate::store) copies: Vec<(Origin, u64)>,
    /// What the entry adds to the counts.
    pub(in crate::store) counts: Counts,
}

impl IndexEntry {
    /// For an entry without other copies.
    pub(in crate::store) fn new(entry: &Entry) -> Self {
        let copy = StoredCopy { key: entry.key(), digest: entry.digest() };
        let (mut counts, copies) = (Counts::default(), Vec::new());
        let Some(content) = entry.message() else {
            counts.unreadable = u64::from(entry.needs_newer_program());
            let id = (entry.kind() == EntryKind::Snapshot).then(|| SnapshotId::of(copy.digest).0);
            return IndexEntry { copy, id, names: None, copies, counts };
        };
        counts.messages = 1;
        let names = Some([content.sender, content.recipient].map(NameHash::of));
        IndexEntry { copy, id: Some(*content.id.as_bytes()), names, copies, counts }
    }

    /// Compares a message with the copies of its id that were indexed earlier. `same`: up to two of this content;
    /// `contents`: how many contents the id had, or 2 if there were more.
    pub(in crate::store) fn compare_with(&mut self, same: &[StoredCopy], contents: usize) {
        self.copies = same.iter().map(|other| (other.key.origin, other.key.seq)).collect();
        let is_new = self.copies.is_empty();
        if self.copies.len() == 2 {
            self.copies.clear(); // the second of them marked both
        }
        if !is_new {
            self.copies.push((self.copy.key.origin, self.copy.key.seq));
        }
        self.counts = Counts {
            messages: u64::from(is_new),
            conflicts: u64::from(is_new && contents == 1),
            unreadable: 0,
        };
    }

    /// The roles of this name; 0 if the message does not have it.
    pub(in crate::store) fn roles(&self, name: NameHash) -> u8 {
        let Some([sender, recipient]) = self.names else { return 0 };
        (u8::from(sender == name) * SENDER) | (u8::from(recipient == name) * RECIPIENT)
    }
}

/// The entries that the index file does not have yet, oldest first.
#[derive(Debug, Default)]
pub(in crate::store) struct Memtable {
    entries: VecDeque<IndexEntry>,
    by_id: BTreeSet<IdKey>,
    /// Entries that have another copy.
    copied: BTreeSet<(Origin, u64)>,
    epoch: u64,
}

impl Memtable {
    pub(in crate::store) fn push(&mut self, entry: IndexEntry) {
        if let Some(id) = entry.id {
            self.by_id.insert(id_key(id, &entry.copy));
        }
        self.copied.extend(&entry.copies);
        self.entries.push_back(entry);
    }

    pub(in crate::store) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(in crate::store) fn oldest(&self, count: usize) -> impl Iterator<Item = &IndexEntry> {
        self.entries.iter().take(count)
    }

    /// Drops the oldest `count` entries: the file has them.
    pub(in crate::store) fn drop_oldest(&mut self, count: usize) {
        self.epoch += 1;
        for entry in self.entries.drain(..count) {
            for key in &entry.copies {
                self.copied.remove(key);
            }
            if let Some(id) = entry.id {
                self.by_id.remove(&id_key(id, &entry.copy));
            }
        }
    }

    /// How often entries were dropped. What was read from the file in an earlier epoch may miss them.
    pub(in crate::store) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The next copy of a scan.
    pub(super) fn copy_in(&self, scan: &CopyScan) -> Option<IdKey> {
        self.by_id.range(scan.range()).next().copied()
    }

    /// Which of `first..=last` of a log have another copy.
    pub(in crate::store) fn copied_seqs(
        &self,
        origin: Origin,
        first: u64,
        last: u64,
    ) -> impl Iterator<Item = u64> + '_ {
        self.copied.range((origin, first)..=(origin, last)).map(|(_, seq)| *seq)
    }

    /// The entries in which a name has one of `roles`, in display order.
    pub(in crate::store) fn keys_of(&self, name: NameHash, roles: u8) -> Vec<EntryKey> {
        let found = self.entries.iter().filter(|entry| entry.roles(name) & roles != 0);
        let mut keys: Vec<EntryKey> = found.map(|entry| entry.copy.key).collect();
        keys.sort_unstable();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::clock::Stamp;
    use crate::chain::message::{Digest, Message, UncheckedMessage};

    /// A peer can make a log of nothing but one message; what is kept of each copy must not grow with their number.
    #[test]
    fn every_copy_is_marked_and_costs_the_same() {
        let (sender, recipient, text) = ("a".into(), "b".into(), "c".into());
        let draft = UncheckedMessage { id: uuid::Uuid::nil(), sender, recipient, text, timestamp: None };
        let content = Message::new(draft).expect("valid").encode();
        let (origin, digest) = (Origin([1; 16]), Digest::of(EntryKind::Message, &content));
        let (mut memtable, mut earlier) = (Memtable::default(), Vec::new());
        for seq in 1..=20 {
            let key = EntryKey { stamp: Stamp(seq), origin, seq };
            let mut indexed = IndexEntry::new(&Entry::new(key, EntryKind::Message, digest, &content));
            indexed.compare_with(&earlier, 1);
            assert!(indexed.copies.len() <= 2 && indexed.copies.capacity() <= 4);
            memtable.push(indexed);
            if earlier.len() < 2 {
                earlier.push(StoredCopy { key, digest });
            }
        }
        assert_eq!(memtable.copied_seqs(origin, 1, 20).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    }
}
