//! Owns the ground truth of a world: which messages were sent and acknowledged, and which entry was ever at which seq.

use std::collections::{BTreeMap, BTreeSet};

use chatchain::chain::clock::Stamp;
use chatchain::chain::ids::{EntryKey, Leaf, Origin};
use chatchain::chain::message::Digest;
use chatchain::chain::record::Entry;
use uuid::Uuid;

use super::machine::Key;

/// The messages and entries of a world, against which nodes are checked.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Contents that clients sent, by id.
    pub sent: BTreeMap<Uuid, BTreeMap<Digest, Vec<u8>>>,
    /// The acknowledged messages, and whether every disk with the message has been lost since.
    pub acknowledged: BTreeMap<Key, bool>,
    /// Messages for which no client got an answer.
    pub unanswered: Vec<Key>,
    /// The messages that a bad peer invented, by id, and the digests of its other entries.
    invented: BTreeMap<Uuid, BTreeMap<Digest, Vec<u8>>>,
    unreadable: BTreeSet<Digest>,
    /// The first seq of each log that a bad peer forged.
    forged: BTreeMap<Origin, u64>,
    /// Messages with an entry in a forked log.
    pub in_forks: BTreeSet<Key>,
    places: BTreeMap<(Origin, u64), (Stamp, Leaf)>,
    /// The log from which each branch starts.
    parents: BTreeMap<Origin, Origin>,
    /// Logs that two processes appended to.
    pub forked: BTreeSet<Origin>,
    /// Two nodes ran with the same store id.
    pub cloned: bool,
}

impl Ledger {
    /// Whether two entries may have this seq in this log: two processes appended to it, or a bad peer forged entries of
    /// it, or it is a branch of such a log.
    pub fn is_forked(&self, mut origin: Origin, seq: u64) -> bool {
        let mut is_forged = self.forged.get(&origin).is_some_and(|first| *first <= seq);
        loop {
            if is_forged || self.forked.contains(&origin) {
                return true;
            }
            match self.parents.get(&origin) {
                Some(parent) => origin = *parent,
                None => return false,
            }
            is_forged = self.forged.contains_key(&origin);
        }
    }

    /// A bad peer made this entry, and nodes may admit it.
    pub fn forge(&mut self, entry: &Entry) {
        let first = self.forged.entry(entry.origin()).or_insert(entry.seq());
        *first = entry.seq().min(*first);
        if let Some(content) = entry.message() {
            let contents = self.invented.entry(content.id).or_default();
            contents.insert(entry.digest(), entry.content().to_vec());
        } else {
            self.unreadable.insert(entry.digest());
        }
    }

    /// Whether a client sent this message, or a bad peer invented it.
    pub fn is_known(&self, (id, digest): Key, content: &[u8]) -> bool {
        [&self.sent, &self.invented].iter().any(|messages| {
            messages.get(&id).and_then(|contents| contents.get(&digest)).is_some_and(|known| known == content)
        })
    }

    /// Records an entry of a node's log. Its message must have been sent, and no other entry may ever have had this seq
    /// in this log. `None`: a bad peer made the entry, and it is no message.
    pub fn observe(&mut self, entry: &Entry) -> Result<Option<Key>, String> {
        let (EntryKey { stamp, origin, seq }, digest, leaf) = (entry.key(), entry.digest(), entry.leaf());
        let key = entry.message().map(|content| (content.id, digest));
        let is_known = match key {
            Some(key) => self.is_known(key, entry.content()),
            None => self.unreadable.contains(&digest),
        };
        if !is_known {
            return Err(format!("entry {seq} of {origin} holds {key:?} with a content that was never sent"));
        }
        let is_forked = self.is_forked(origin, seq);
        self.in_forks.extend(key.filter(|_| is_forked));
        let before = self.places.insert((origin, seq), (stamp, leaf));
        if before == Some((stamp, leaf)) {
            return Ok(key);
        }
        if before.is_some() && !is_forked {
            return Err(format!("seq {seq} of {origin} was used twice: {before:?} and {:?}", (stamp, leaf)));
        }
        self.parents.entry(Origin::branch(entry.key(), entry.log_type(), leaf)).or_insert(origin);
        Ok(key)
    }

    /// Whether only a bad peer made such an entry.
    pub fn is_invented(&self, entry: &Entry) -> bool {
        let sent = entry.message().and_then(|content| self.sent.get(&content.id));
        sent.is_none_or(|contents| !contents.contains_key(&entry.digest()))
    }

    /// The number of contents that were sent or invented with an id.
    pub fn contents(&self, id: Uuid) -> usize {
        let contents = [&self.sent, &self.invented].into_iter().filter_map(|messages| messages.get(&id));
        contents.flat_map(BTreeMap::keys).collect::<BTreeSet<_>>().len()
    }
}
