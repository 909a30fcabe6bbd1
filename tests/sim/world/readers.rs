//! Owns the feed readers: each continues at any node that is up, and keeps nothing but its last cursor.
//!
//! No reader may miss a message or get an entry twice. A reader may get a message twice if it has two entries: two
//! nodes accepted it, or a log was cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chatchain::chain::cursor::{self, ReadState, Scope};
use chatchain::chain::frontier::Frontier;
use chatchain::chain::ids::EntryKey;
use chatchain::chain::message::Content;
use chatchain::store::history::feed_scan::FeedScan;

use super::machine::Key;
use super::{Event, World, index};

/// Two readers visit different nodes.
const READERS: usize = 2;
const SCOPE: Scope = Scope { network: [1; 8], filter: [0; 8] };

/// A reader that follows the feed from the first message on.
#[derive(Debug, Default)]
pub(super) struct Reader {
    seen: ReadState,
    received: BTreeMap<Key, BTreeSet<EntryKey>>,
}

impl World {
    /// Starts the readers.
    pub(super) fn start_readers(&mut self) {
        for reader in 0..READERS {
            self.readers.push(Reader::default());
            self.after(500, Event::Read { reader });
        }
    }

    /// A reader continues at a random node.
    pub(super) fn read_on(&mut self, reader: usize) {
        let (node, most) = (self.any(), 1 + index(self.below(40)));
        if self.machines[node].up.is_some() {
            self.read_at(reader, node, most);
        }
        if !self.calm {
            let delay = self.below(2_000);
            self.after(delay, Event::Read { reader });
        }
    }

    fn read_at(&mut self, reader: usize, node: usize, most: usize) {
        let run = self.machines[node].up.as_ref().expect("is up");
        let (logs, store) = (Arc::new(run.committer.logs().clone()), run.store.clone());
        let until = Frontier::of(logs.vector());
        let Reader { seen, mut received } = std::mem::take(&mut self.readers[reader]);
        // Other events handle a failing disk; the reader tries again later.
        let Ok(mut follow) = FeedScan::new(&store, logs, seen.clone(), until) else {
            self.readers[reader] = Reader { seen, received };
            return;
        };
        let (mut count, mut at) = (0, None);
        while !follow.is_done() && count < most {
            let Ok(found) = follow.next_chunk(most - count, usize::MAX) else { break };
            for next in found {
                let content = Content::decode(next.entry.content()).expect("readable");
                let place = next.entry.key();
                // A copy of a running machine reuses seqs, so a reader may get both versions of an entry.
                let is_new = received.entry((content.id, next.entry.digest())).or_default().insert(place);
                if !is_new && !self.was_cloned && !self.ledger.is_forked(place.origin, place.seq) {
                    self.violation(format!(
                        "reader {reader} gets message {} twice, at {place:?}",
                        content.id
                    ));
                }
                (count, at) = (count + 1, Some(place));
            }
        }
        let seen = match at {
            _ if follow.is_done() => follow.state_at_end(),
            Some(at) => follow.state_at(at),
            None => seen,
        };
        // The reader keeps only the encoded cursor, if it is short enough to encode.
        let kept = cursor::payload(&seen).map(|core| {
            let cursor = cursor::decode(&cursor::encode(&core, SCOPE), SCOPE).expect("is one");
            cursor.expand(|_| None).expect("without snapshots there is nothing to look up")
        });
        if let Some(kept) = &kept
            && *kept != seen
        {
            self.violation(format!("a cursor decodes to {kept:?}, but was made from {seen:?}"));
        }
        self.readers[reader] = Reader { seen: kept.unwrap_or(seen), received };
    }

    /// All nodes have all messages: a reader that reads to the end of any node must have them all.
    pub(super) fn check_readers(&mut self, shown: &BTreeSet<Key>) {
        for reader in 0..self.readers.len() {
            let node = self.any();
            self.read_at(reader, node, usize::MAX);
            let received = &self.readers[reader].received;
            // Entries read from one version of a forked log count for the other version until both are compared. If one
            // version is lost before that, they are never compared.
            let is_version_lost = self.machines.iter().any(|machine| machine.destroyed.is_some());
            let is_due = |key: &&Key| {
                let is_sent =
                    self.ledger.sent.get(&key.0).is_some_and(|contents| contents.contains_key(&key.1));
                is_sent && !(is_version_lost && self.ledger.in_forks.contains(key))
            };
            let missed = shown.iter().filter(is_due).find(|key| !received.contains_key(key));
            if let Some((id, _)) = missed {
                self.violation(format!("reader {reader} missed message {id}"));
            }
        }
    }
}
