//! Owns the ground truth of a world: which messages were sent and acknowledged, and which entry was ever at which seq.

use std::collections::{BTreeMap, BTreeSet};

use chatchain::chain::clock::Stamp;
use chatchain::chain::ids::{EntryKey, Leaf, Origin};
use chatchain::chain::message::{Content, Digest};
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
    places: BTreeMap<(Origin, u64), (Stamp, Leaf)>,
    /// The log from which each branch starts.
    parents: BTreeMap<Origin, Origin>,
    /// Logs that two processes appended to.
    pub forked: BTreeSet<Origin>,
    /// Two nodes ran with the same store id.
    pub cloned: bool,
}

impl Ledger {
    pub fn is_forked(&self, mut origin: Origin) -> bool {
        loop {
            if self.forked.contains(&origin) {
                return true;
            }
            match self.parents.get(&origin) {
                Some(parent) => origin = *parent,
                None => return false,
            }
        }
    }

    /// Records an entry of a node's log. Its message must have been sent, and no other entry may ever have had this seq
    /// in this log.
    pub fn observe(&mut self, entry: &Entry) -> Result<Key, String> {
        let (EntryKey { stamp, origin, seq }, digest, leaf) = (entry.key(), entry.digest(), entry.leaf());
        let id = Content::decode(entry.content()).map_err(|error| error.to_string())?.id;
        let sent = self.sent.get(&id).and_then(|contents| contents.get(&digest));
        if sent.is_none_or(|sent| sent != entry.content()) {
            return Err(format!(
                "entry {seq} of {origin} holds message {id} with a content that was never sent"
            ));
        }
        let before = self.places.insert((origin, seq), (stamp, leaf));
        if before == Some((stamp, leaf)) {
            return Ok((id, digest));
        }
        if before.is_some() && !self.is_forked(origin) {
            return Err(format!("seq {seq} of {origin} was used twice: {before:?} and {:?}", (stamp, leaf)));
        }
        self.parents.entry(Origin::branch(entry.key(), entry.log_type(), leaf)).or_insert(origin);
        Ok((id, digest))
    }

    pub fn contents(&self, id: Uuid) -> usize {
        self.sent.get(&id).map_or(0, BTreeMap::len)
    }
}
