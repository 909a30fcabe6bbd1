//! Owns the readers of the feed: each goes on at whichever node is up, with nothing but the cursor it was given last.
//!
//! None may miss a message, and none gets an entry twice. A message may come twice where it stands twice: two nodes accepted
//! it, or a log was cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chatchain::chain::cursor::{self, ReadState, Scope};
use chatchain::chain::frontier::Frontier;
use chatchain::chain::ids::EntryKey;
use chatchain::chain::message::Content;
use chatchain::store::history::feed_scan::FeedScan;

use super::machine::Key;
use super::{Event, World, index};

/// Enough to move about differently.
const READERS: usize = 2;
const PURPOSE: Scope = Scope { network: [1; 8], filter: [0; 8] };

/// Somebody who follows the feed from the very first message.
#[derive(Debug, Default)]
pub(super) struct Reader {
    seen: ReadState,
    given: BTreeMap<Key, BTreeSet<EntryKey>>,
}

impl World {
    /// Readers begin to read.
    pub(super) fn seat_readers(&mut self) {
        for reader in 0..READERS {
            self.readers.push(Reader::default());
            self.after(500, Event::Read { reader });
        }
    }

    /// A reader reads on somewhere.
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
        let (logs, store) = (Arc::new(run.pen.logs().clone()), run.store.clone());
        let until = Frontier::of(logs.vector());
        let Reader { seen, mut given } = std::mem::take(&mut self.readers[reader]);
        // A disk that fails now is looked at by others; who reads comes again.
        let Ok(mut follow) = FeedScan::new(&store, logs, seen.clone(), until) else {
            self.readers[reader] = Reader { seen, given };
            return;
        };
        let (mut count, mut at) = (0, None);
        while !follow.is_done() && count < most {
            let Ok(found) = follow.next_chunk(most - count, usize::MAX) else { break };
            for next in found {
                let content = Content::decode(next.entry.content()).expect("readable");
                let place = next.entry.key();
                // A copy of a running machine uses places a second time; whoever saw one version may see the other.
                let is_new = given.entry((content.id, next.entry.digest())).or_default().insert(place);
                if !is_new && !self.was_cloned {
                    self.wrong(format!("reader {reader} gets message {} twice, from {place:?}", content.id));
                }
                (count, at) = (count + 1, Some(place));
            }
        }
        let seen = match at {
            _ if follow.is_done() => follow.state_at_end(),
            Some(at) => follow.state_at(at),
            None => seen,
        };
        // It keeps nothing but the bytes, where they are short enough.
        let kept = cursor::payload(&seen).map(|core| {
            let cursor = cursor::decode(&cursor::encode(&core, PURPOSE), PURPOSE).expect("is one");
            cursor.expand(|_| None).expect("without milestones there is nothing to look up")
        });
        if let Some(kept) = &kept
            && *kept != seen
        {
            self.wrong(format!("a cursor says {kept:?}, and was made of {seen:?}"));
        }
        self.readers[reader] = Reader { seen: kept.unwrap_or(seen), given };
    }

    /// Everything is on every node: readers that read to the end there have it all.
    pub(super) fn check_readers(&mut self, shown: &BTreeSet<Key>) {
        for reader in 0..self.readers.len() {
            let node = self.any();
            self.read_at(reader, node, usize::MAX);
            let given = &self.readers[reader].given;
            // What was read of one version of a log counts for the other, until they are compared; if one of them is lost
            // before that, they never are.
            let missed = shown.iter().find(|key| !given.contains_key(key)).filter(|_| !self.was_cloned);
            if let Some((id, _)) = missed {
                self.wrong(format!("reader {reader} missed message {id}"));
            }
        }
    }
}
