//! Owns the checks of a world: of single nodes during the faults, and of all nodes once they have converged.

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
    /// The whole listing of a node.
    fn list(&self, node: usize) -> Result<Vec<Entry>, StoreError> {
        let run = self.machines[node].up.as_ref().expect("is up");
        let logs = Arc::new(run.committer.logs().clone());
        let mut listing = Listing::new(&run.store, logs, Filter::default(), None, false)?;
        let mut entries = Vec::new();
        while !listing.is_done() {
            entries.extend(listing.next_chunk(10_000)?);
        }
        Ok(entries)
    }

    /// Lists a node: each message once and unchanged, and all messages that it listed before.
    pub(super) fn list_due(&mut self, node: usize) {
        if self.machines[node].up.is_some() {
            self.list_and_check(node);
        }
        if !self.calm {
            let (node, delay) = (self.any(), self.dice.roll() % 5_000);
            self.after(delay, Event::List { node });
        }
    }

    /// Lists a node and checks the listing. `None` if the node reports damage.
    pub(super) fn list_and_check(&mut self, node: usize) -> Option<Vec<Entry>> {
        self.tally.listings += 1;
        let entries = match self.list(node) {
            Ok(entries) => entries,
            Err(StoreError::Damaged { origin, seq }) => {
                self.say(format!("node {node} finds damage: entry {seq} of log {}", name(origin)));
                let machine = &self.machines[node];
                if !machine.held.damaged.contains(&(origin, seq)) {
                    self.violation(format!(
                        "node {node} reports entry {seq} of {origin} as damaged, which it is not"
                    ));
                }
                return None;
            }
            Err(error) => self.violation(format!("node {node} cannot list: {error}")),
        };
        let mut shown = BTreeSet::new();
        for entry in &entries {
            let id = Content::decode(entry.content()).expect("an encoded message").id;
            if !self.ledger.is_known((id, entry.digest()), entry.content()) {
                self.violation(format!("node {node} lists message {id} with a content that was never sent"));
            }
            if !shown.insert((id, entry.digest())) {
                self.violation(format!("node {node} lists message {id} twice"));
            }
        }
        let machine = &mut self.machines[node];
        let run = machine.up.as_mut().expect("is up");
        let missing = run.listed.difference(&shown).next().copied();
        let unlisted = machine.held.copies.keys().find(|key| !shown.contains(key)).copied();
        run.listed = shown;
        if let Some((id, _)) = missing {
            self.violation(format!("node {node} listed message {id} before and does not now"));
        }
        if let Some((id, _)) = unlisted {
            self.violation(format!("node {node} has message {id} and does not list it"));
        }
        Some(entries)
    }

    /// Whether all nodes have the same digest and no work left.
    pub(super) fn has_converged(&mut self) -> bool {
        let mut digests = BTreeSet::new();
        for machine in &self.machines[self.honest()] {
            let Some(run) = &machine.up else { return false };
            let logs = run.committer.logs();
            let is_busy =
                run.committer.has_more() || logs.detached().next().is_some() || !run.inbox.is_empty();
            if is_busy || run.store.log().damage().count() > 0 {
                return false;
            }
            digests.insert(logs.vector().digest().0);
        }
        if digests.len() != 1 {
            return false;
        }
        // Reading everything finds damage that was not read yet, as the scrub does.
        self.honest().all(|node| self.reads_control_logs(node) && self.list_and_check(node).is_some())
    }

    /// Reads the logs that no listing reads. False if there is damage.
    fn reads_control_logs(&self, node: usize) -> bool {
        let run = self.machines[node].up.as_ref().expect("is up");
        let mut logs = run.committer.logs().vector().iter().filter(|(_, span)| span.log_type.is_control);
        logs.all(|(origin, span)| {
            match run.store.log().matches_chain(origin, span.floor, span.head.seq, &|| true) {
                Ok(matches) => matches,
                Err(StoreError::Damaged { .. }) => false,
                Err(error) => self.violation(format!("node {node} cannot read log {origin}: {error}")),
            }
        })
    }

    /// The logs of each node, for a failure message.
    pub(super) fn state(&self) -> String {
        let mut words = String::new();
        for (node, machine) in self.machines.iter().enumerate() {
            let Some(run) = &machine.up else {
                write!(words, "node {node} is down; ").expect("writes");
                continue;
            };
            let logs = run.committer.logs();
            let heads: Vec<String> = logs
                .vector()
                .iter()
                .map(|(origin, span)| format!("{}:{}", name(origin), span.head.seq))
                .collect();
            let cuts: Vec<String> =
                logs.vector().cuts().map(|(origin, seq)| format!("{}:{seq}", name(origin))).collect();
            let detached: Vec<String> =
                logs.detached().map(|(origin, to)| format!("{}:{to}", name(origin))).collect();
            let damage = run.store.log().damage().all();
            let (heads, cuts, detached) = (heads.join(" "), cuts.join(" "), detached.join(" "));
            let digest = &logs.vector().digest().to_string()[..6];
            write!(
                words,
                "node {node} {digest} [{heads}] cuts [{cuts}] detached [{detached}] damage {damage:?}; "
            )
            .expect("writes");
        }
        words
    }

    /// Checks a converged world: all nodes list the same bytes, and no acknowledged message is missing.
    pub(super) fn check_everything(&mut self) {
        let first = self.list_and_check(0).expect("all damage is repaired");
        for node in self.honest().skip(1) {
            let other = self.list_and_check(node).expect("all damage is repaired");
            if other != first {
                self.violation(format!(
                    "node {node} and node 0 have equal digests and list different histories"
                ));
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
            self.violation(format!(
                "the acknowledged message {id} is not listed, although a disk with it survived"
            ));
        }
        self.tally.lost += missing.len() as u64;
        let conflicts = contents.values().filter(|digests| digests.len() > 1).count() as u64;
        for node in self.honest() {
            let counts = self.machines[node].up.as_ref().expect("is up").store.counts();
            if (counts.messages, counts.conflicts) != (first.len() as u64, conflicts) {
                let (messages, found) = (counts.messages, counts.conflicts);
                self.violation(format!(
                    "node {node} counts {messages} messages and {found} conflicts; it lists {} and {conflicts}",
                    first.len()
                ));
            }
            self.check_purged(node);
            self.check_chains(node);
        }
    }

    /// No row is left after a cut.
    fn check_purged(&self, node: usize) {
        let run = self.machines[node].up.as_ref().expect("is up");
        let mut reader = run.store.log().read().expect("a running store can be read");
        for (origin, cut) in run.committer.logs().vector().cuts() {
            if let Some(seq) = reader.row_from(origin, cut).expect("a running store can be read") {
                self.violation(format!(
                    "node {node} still has row {seq} of log {origin}, which is cut at {cut}"
                ));
            }
        }
    }

    /// The entries of each log lead to the hash of its head.
    fn check_chains(&self, node: usize) {
        let run = self.machines[node].up.as_ref().expect("is up");
        let mut reader = run.store.log().read().expect("a running store can be read");
        for (origin, span) in run.committer.logs().vector().iter() {
            let mut head = span.floor;
            for seq in span.floor.seq + 1..=span.head.seq {
                let entry =
                    reader.peek(origin, seq).expect("a running store can be read").expect("is intact");
                head = head.followed_by(&entry);
            }
            if head != span.head {
                self.violation(format!(
                    "node {node} has entries in log {origin} that do not match its chain"
                ));
            }
        }
    }

    /// After a disk lost data: excuses the acknowledged messages that are on no disk any more.
    pub(super) fn excuse_lost_messages(&mut self) {
        let machines = &self.machines;
        for (key, excused) in &mut self.ledger.acknowledged {
            *excused |= !machines.iter().any(|machine| machine.held.keeps(key));
        }
    }
}
