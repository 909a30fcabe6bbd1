//! Owns the entries that are durable in the log but not yet in the index file: a bounded queue in memory that
//! answers the same questions as the index does.
//!
//! Entries leave it only after the index file holds them. So whoever asks the tail first and the file second
//! misses nothing, and may see one entry in both.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::chain::frontier::SnapshotId;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::message::Digest;
use crate::chain::record::{Entry, EntryKind};
use crate::store::{Counts, StoredCopy};

/// A message's side that a name stands on; a row of the index carries the sides of one name as bits.
pub(in crate::store) const SENDER: u8 = 1;
/// See [`SENDER`].
pub(in crate::store) const RECIPIENT: u8 = 2;

/// What a name is found by. Different names may share one; whoever reads compares the name itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct NameHash(pub(in crate::store) [u8; 8]);

impl NameHash {
    pub(in crate::store) fn of(name: &str) -> Self {
        NameHash(twox_hash::XxHash3_64::oneshot(name.as_bytes()).to_be_bytes())
    }
}

/// What the index keeps of one entry, worked out once, when the entry is noted.
#[derive(Debug)]
pub(in crate::store) struct IndexEntry {
    pub(in crate::store) copy: StoredCopy,
    /// What it is found by: a message by its id, a milestone by its name. `None`: by nothing.
    pub(in crate::store) id: Option<[u8; 16]>,
    /// It is a message, with a sender and a recipient.
    pub(in crate::store) is_message: bool,
    pub(in crate::store) sender: NameHash,
    pub(in crate::store) recipient: NameHash,
    /// Places that are known to have another copy of the same message since this entry; at most two.
    pub(in crate::store) copies: Vec<(Origin, u64)>,
    /// What this entry adds to the counts.
    pub(in crate::store) adds: Counts,
}

impl IndexEntry {
    /// For an entry of which no other copy is known.
    pub(in crate::store) fn new(entry: &Entry) -> Self {
        let copy = StoredCopy { place: entry.key(), digest: entry.digest() };
        let copies = Vec::new();
        let Some(content) = entry.message() else {
            let adds = Counts { unreadable: u64::from(entry.is_unreadable()), ..Counts::default() };
            let no_name = NameHash([0; 8]);
            let id = (entry.kind() == EntryKind::Snapshot).then(|| SnapshotId::of(copy.digest).0);
            return IndexEntry {
                copy,
                id,
                is_message: false,
                sender: no_name,
                recipient: no_name,
                copies,
                adds,
            };
        };
        IndexEntry {
            copy,
            id: Some(*content.id.as_bytes()),
            is_message: true,
            sender: NameHash::of(content.sender),
            recipient: NameHash::of(content.recipient),
            copies,
            adds: Counts { messages: 1, ..Counts::default() },
        }
    }

    /// Compares a message with all copies of its id that were indexed before.
    pub(in crate::store) fn compare(&mut self, before: &[StoredCopy]) {
        let same = before.iter().filter(|other| other.digest == self.copy.digest);
        self.copies = same.map(|other| (other.place.origin, other.place.seq)).take(2).collect();
        let is_new = self.copies.is_empty();
        if self.copies.len() == 2 {
            self.copies.clear(); // the later of them marked both
        }
        if !is_new {
            self.copies.push((self.copy.place.origin, self.copy.place.seq));
        }
        let contents: BTreeSet<Digest> = before.iter().map(|other| other.digest).collect();
        self.adds = Counts {
            messages: u64::from(is_new),
            conflicts: u64::from(is_new && contents.len() == 1),
            unreadable: 0,
        };
    }

    /// The sides on which the name stands, 0 if on none.
    pub(in crate::store) fn sides(&self, name: NameHash) -> u8 {
        let side = |hash, side| if self.is_message && hash == name { side } else { 0 };
        side(self.sender, SENDER) | side(self.recipient, RECIPIENT)
    }
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(in crate::store) struct Memtable {
    entries: VecDeque<IndexEntry>,
    by_id: HashMap<[u8; 16], Vec<StoredCopy>>,
    copies: BTreeSet<(Origin, u64)>,
    epoch: u64,
}

impl Memtable {
    pub(in crate::store) fn push(&mut self, noted: IndexEntry) {
        if let Some(id) = noted.id {
            self.by_id.entry(id).or_default().push(noted.copy);
        }
        self.copies.extend(&noted.copies);
        self.entries.push_back(noted);
    }

    pub(in crate::store) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The oldest `count` entries, to be written to the file.
    pub(in crate::store) fn oldest(&self, count: usize) -> impl Iterator<Item = &IndexEntry> {
        self.entries.iter().take(count)
    }

    /// Lets go of the oldest `count` entries: the file has them.
    pub(in crate::store) fn drop_oldest(&mut self, count: usize) {
        self.epoch += 1;
        for noted in self.entries.drain(..count) {
            for place in &noted.copies {
                self.copies.remove(place);
            }
            let Some(id) = noted.id else { continue };
            if let Some(standings) = self.by_id.get_mut(&id) {
                standings.retain(|standing| standing.place != noted.copy.place);
                if standings.is_empty() {
                    self.by_id.remove(&id);
                }
            }
        }
    }

    /// How often entries were let go. Whoever looked into the file before that must look again.
    pub(in crate::store) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(in crate::store) fn standings(&self, id: &[u8; 16]) -> &[StoredCopy] {
        self.by_id.get(id).map_or(&[], Vec::as_slice)
    }

    /// Which of `first..=last` of a log have another copy.
    pub(in crate::store) fn copies(
        &self,
        origin: Origin,
        first: u64,
        last: u64,
    ) -> impl Iterator<Item = u64> + '_ {
        self.copies.range((origin, first)..=(origin, last)).map(|(_, seq)| *seq)
    }

    /// The places where a name stands on one of `sides`, in no order.
    pub(in crate::store) fn keys_of(&self, name: NameHash, sides: u8) -> impl Iterator<Item = EntryKey> + '_ {
        self.entries.iter().filter(move |noted| noted.sides(name) & sides != 0).map(|noted| noted.copy.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::clock::Stamp;
    use crate::chain::message::{Message, UncheckedMessage};

    /// A peer can make a log of nothing but one message; what is kept of each copy must not grow with their number.
    #[test]
    fn every_copy_is_marked_and_costs_the_same() {
        let (sender, recipient, text) = ("a".into(), "b".into(), "c".into());
        let draft = UncheckedMessage { id: uuid::Uuid::nil(), sender, recipient, text, timestamp: None };
        let content = Message::new(draft).expect("valid").encode();
        let (origin, digest) = (Origin([1; 16]), Digest::of(&content));
        let (mut tail, mut known) = (Memtable::default(), Vec::new());
        for seq in 1..=20 {
            let place = EntryKey { stamp: Stamp(seq), origin, seq };
            let mut noted = IndexEntry::new(&Entry::new(place, EntryKind::Message, digest, &content));
            noted.compare(&known);
            assert!(noted.copies.len() <= 2 && noted.copies.capacity() <= 4);
            tail.push(noted);
            known.push(StoredCopy { place, digest });
        }
        assert_eq!(tail.copies(origin, 1, 20).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    }
}
