//! Owns what is known of all messages of a world: what was sent, what was acknowledged, what ever stood where.

use std::collections::{BTreeMap, BTreeSet};

use chatchain::chain::clock::Stamp;
use chatchain::chain::ids::{EntryKey, Origin};
use chatchain::chain::message::{Content, Digest};
use chatchain::chain::record::Entry;
use uuid::Uuid;

use super::machine::Key;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Contents that clients sent, by id.
    pub sent: BTreeMap<Uuid, BTreeMap<Digest, Vec<u8>>>,
    /// What was acknowledged, and whether every disk that had it was destroyed since.
    pub acknowledged: BTreeMap<Key, bool>,
    /// What clients never got an answer for.
    pub open: Vec<Key>,
    places: BTreeMap<(Origin, u64), (Stamp, Digest)>,
    /// From which log a branch may come.
    parents: BTreeMap<Origin, Origin>,
    /// Logs that two processes appended to.
    pub forged: BTreeSet<Origin>,
    /// There were two live stores of one name.
    pub cloned: bool,
}

impl Ledger {
    pub fn is_forged(&self, mut origin: Origin) -> bool {
        loop {
            if self.forged.contains(&origin) {
                return true;
            }
            match self.parents.get(&origin) {
                Some(parent) => origin = *parent,
                None => return false,
            }
        }
    }

    /// Takes note of an entry that stands in a log somewhere. What it says must have been sent, and must be all that
    /// ever stands there.
    pub fn observe(&mut self, entry: &Entry) -> Result<Key, String> {
        let (EntryKey { stamp, origin, seq }, digest) = (entry.key(), entry.digest());
        let id = Content::decode(entry.content()).map_err(|error| error.to_string())?.id;
        let sent = self.sent.get(&id).and_then(|contents| contents.get(&digest));
        if sent.is_none_or(|sent| sent != entry.content()) {
            return Err(format!("entry {seq} of {origin} holds message {id}, which nobody sent like that"));
        }
        let before = self.places.insert((origin, seq), (stamp, digest));
        if before == Some((stamp, digest)) {
            return Ok((id, digest));
        }
        if before.is_some() && !self.is_forged(origin) {
            return Err(format!(
                "entry {seq} of {origin} was used twice: {before:?} and {:?}",
                (stamp, digest)
            ));
        }
        self.parents.entry(Origin::branch(EntryKey { stamp, origin, seq }, digest)).or_insert(origin);
        Ok((id, digest))
    }

    pub fn contents(&self, id: Uuid) -> usize {
        self.sent.get(&id).map_or(0, BTreeMap::len)
    }
}
