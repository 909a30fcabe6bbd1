//! Owns what must be true of a world: now and then of one node, and of all of them once it is calm.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use chatchain::chain::filter::Filter;
use chatchain::chain::message::{Content, Digest};
use chatchain::chain::record::Entry;
use chatchain::store::StoreError;
use chatchain::store::history::listing::Listing;
use uuid::Uuid;

use super::machine::Key;
use super::network::name;
use super::{Event, World};

impl World {
    /// Everything that a node shows, in order.
    fn list(&self, node: usize) -> Result<Vec<Entry>, StoreError> {
        let run = self.machines[node].up.as_ref().expect("is up");
        let logs = Arc::new(run.pen.logs().clone());
        let mut listing = Listing::new(&run.store, logs, Filter::default(), None, false)?;
        let mut entries = Vec::new();
        while !listing.is_done() {
            entries.extend(listing.next_chunk(10_000)?);
        }
        Ok(entries)
    }

    /// Somebody lists everything at a node: each message once, as it was sent, and nothing less than before.
    pub(super) fn look(&mut self, node: usize) {
        if self.machines[node].up.is_some() {
            self.look_at(node);
        }
        if !self.calm {
            let (node, delay) = (self.any(), self.dice.roll() % 5_000);
            self.after(delay, Event::Look { node });
        }
    }

    /// The same; `None` if it met damage.
    pub(super) fn look_at(&mut self, node: usize) -> Option<Vec<Entry>> {
        self.tally.listings += 1;
        let entries = match self.list(node) {
            Ok(entries) => entries,
            Err(StoreError::Damaged { origin, seq }) => {
                self.say(format!("node {node} meets damage: entry {seq} of log {}", name(origin)));
                let machine = &self.machines[node];
                if !machine.held.spoilt.contains(&(origin, seq)) {
                    self.wrong(format!("node {node} calls entry {seq} of {origin} damaged, and it is not"));
                }
                return None;
            }
            Err(error) => self.wrong(format!("node {node} cannot list: {error}")),
        };
        let mut shown = BTreeSet::new();
        for entry in &entries {
            let id = Content::decode(entry.content()).expect("we sent nothing else").id;
            let sent = self.ledger.sent.get(&id).and_then(|contents| contents.get(&entry.digest()));
            if sent.is_none_or(|sent| sent != entry.content()) {
                self.wrong(format!("node {node} shows message {id}, which nobody sent like that"));
            }
            if !shown.insert((id, entry.digest())) {
                self.wrong(format!("node {node} shows message {id} twice"));
            }
        }
        let machine = &mut self.machines[node];
        let run = machine.up.as_mut().expect("is up");
        let missing = run.listed.difference(&shown).next().copied();
        let unlisted = machine.held.copies.keys().find(|key| !shown.contains(key)).copied();
        run.listed = shown;
        if let Some((id, _)) = missing {
            self.wrong(format!("node {node} showed message {id} before and does not now"));
        }
        if let Some((id, _)) = unlisted {
            self.wrong(format!("node {node} has message {id} and does not show it"));
        }
        Some(entries)
    }

    /// Whether all nodes hold the same, and none is busy with it.
    pub(super) fn has_converged(&mut self) -> bool {
        let mut digests = BTreeSet::new();
        for machine in &self.machines {
            let Some(run) = &machine.up else { return false };
            let logs = run.pen.logs();
            let is_busy = run.pen.has_more() || logs.detached().next().is_some() || !run.inbox.is_empty();
            if is_busy || run.store.log().damage().count() > 0 {
                return false;
            }
            digests.insert(logs.vector().digest().0);
        }
        if digests.len() != 1 {
            return false;
        }
        // What is damaged and was not read yet is found now, as the scrub would.
        (0..self.machines.len()).all(|node| self.look_at(node).is_some())
    }

    /// How far the nodes are apart, in words.
    pub(super) fn state(&self) -> String {
        let mut words = String::new();
        for (node, machine) in self.machines.iter().enumerate() {
            let Some(run) = &machine.up else {
                write!(words, "node {node} is down; ").expect("writes");
                continue;
            };
            let logs = run.pen.logs();
            let heads: Vec<String> =
                logs.vector().iter().map(|(origin, head)| format!("{}:{}", name(origin), head.seq)).collect();
            let cuts: Vec<String> =
                logs.vector().cuts().map(|(origin, seq)| format!("{}:{seq}", name(origin))).collect();
            let loose: Vec<String> =
                logs.detached().map(|(origin, to)| format!("{}:{to}", name(origin))).collect();
            let wounds = run.store.log().damage().all();
            let (heads, cuts, loose) = (heads.join(" "), cuts.join(" "), loose.join(" "));
            let digest = &logs.vector().digest().to_string()[..6];
            write!(words, "node {node} {digest} [{heads}] cuts [{cuts}] loose [{loose}] wounds {wounds:?}; ")
                .expect("writes");
        }
        words
    }

    /// Calm has come: all show the same, byte for byte, and nothing that was acknowledged is missing.
    pub(super) fn check_everything(&mut self) {
        let first = self.look_at(0).expect("nothing is damaged any more");
        for node in 1..self.machines.len() {
            let other = self.look_at(node).expect("nothing is damaged any more");
            if other != first {
                self.wrong(format!("node {node} and node 0 have equal digests and show different histories"));
            }
        }
        let mut contents: BTreeMap<Uuid, BTreeSet<Digest>> = BTreeMap::new();
        let mut everything: BTreeSet<Key> = BTreeSet::new();
        for entry in &first {
            let id = Content::decode(entry.content()).expect("readable").id;
            contents.entry(id).or_default().insert(entry.digest());
            everything.insert((id, entry.digest()));
        }
        self.check_readers(&everything);
        let shown = |(id, digest): &Key| contents.get(id).is_some_and(|digests| digests.contains(digest));
        let acknowledged = self.ledger.acknowledged.iter();
        let missing: Vec<_> = acknowledged.filter(|(key, _)| !shown(key)).collect();
        if let Some(((id, _), _)) = missing.iter().find(|(_, excused)| !**excused) {
            self.wrong(format!("message {id} was acknowledged, a disk with it survived, and it is nowhere"));
        }
        self.tally.lost += missing.len() as u64;
        let conflicts = contents.values().filter(|digests| digests.len() > 1).count() as u64;
        for node in 0..self.machines.len() {
            let counts = self.machines[node].up.as_ref().expect("is up").store.counts();
            if (counts.messages, counts.conflicts) != (first.len() as u64, conflicts) {
                let (messages, found) = (counts.messages, counts.conflicts);
                self.wrong(format!(
                    "node {node} counts {messages} messages and {found} conflicts; it shows {} and {conflicts}",
                    first.len()
                ));
            }
            self.check_swept(node);
        }
    }

    /// Nothing is left behind a cut.
    fn check_swept(&self, node: usize) {
        let run = self.machines[node].up.as_ref().expect("is up");
        let mut reader = run.store.log().read().expect("a running store can be read");
        for (origin, cut) in run.pen.logs().vector().cuts() {
            if let Some(seq) = reader.row_from(origin, cut).expect("a running store can be read") {
                self.wrong(format!("node {node} has row {seq} of log {origin} left, which is cut at {cut}"));
            }
        }
    }

    /// After a disk lost something: what is on no disk any more is not asked for in the end.
    pub(super) fn excuse_what_is_lost(&mut self) {
        let machines = &self.machines;
        for (key, excused) in &mut self.ledger.acknowledged {
            *excused |= !machines.iter().any(|machine| machine.held.keeps(key));
        }
    }
}
