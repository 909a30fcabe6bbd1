//! Owns the actions of clients: new messages, batches, retries, sends to several nodes, other content under a used id.
//!
//! A client knows only the answers it received. A message without an answer is retried with the same id at any node.

use std::collections::{BTreeMap, BTreeSet};

use chatchain::chain::clock::AHEAD_MS_MAX;
use chatchain::chain::ids::EntryKey;
use chatchain::chain::kind::EntryKind;
use chatchain::chain::message::{Digest, Message, UncheckedMessage};
use chatchain::chain::vector::Vector;
use chatchain::replica::write_ops::{NewMessage, Rejection, SendOutcome};
use uuid::Uuid;

use super::machine::{Key, Request};
use super::network::name;
use super::{Event, World, index};

/// The actions of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Fresh,
    Batch,
    /// Repeats an unanswered message, or else an acknowledged one.
    Again,
    /// Sends another content with a used id.
    Conflict,
    /// Sends one message to several nodes at the same time.
    Everywhere,
    /// Sends one message twice in a request.
    Twice,
}

/// The messages of a node before it committed a batch.
pub(super) struct Before {
    pub(super) copies: BTreeMap<Key, usize>,
    pub(super) vector: Vector,
}

impl World {
    pub(super) fn client(&mut self) {
        if self.calm {
            return;
        }
        let op = match self.below(100) {
            0..55 => Op::Fresh,
            55..65 => Op::Batch,
            65..82 => Op::Again,
            82..90 => Op::Conflict,
            90..97 => Op::Everywhere,
            _ => Op::Twice,
        };
        let node = self.any();
        self.act(op, node);
        let delay = self.below(2 * self.plan.client_every_ms);
        self.after(delay, Event::Client);
    }

    /// A client acts at this node.
    pub fn act(&mut self, op: Op, node: usize) {
        match op {
            Op::Fresh => {
                let key = self.invent(None);
                self.send(node, &[key]);
            }
            Op::Batch => {
                let count = 2 + self.below(20);
                let keys: Vec<Key> = (0..count).map(|_| self.invent(None)).collect();
                self.send(node, &keys);
            }
            Op::Again => {
                if let Some(key) = self.earlier() {
                    self.send(node, &[key]);
                }
            }
            Op::Conflict => {
                if let Some((id, _)) = self.earlier() {
                    let key = self.invent(Some(id));
                    self.send(node, &[key]);
                }
            }
            Op::Everywhere => {
                let key = self.invent(None);
                for node in self.honest() {
                    if self.dice.one_in(2) {
                        self.send(node, &[key]);
                    }
                }
            }
            Op::Twice => {
                let key = self.invent(None);
                self.send(node, &[key, key]);
            }
        }
    }

    /// A new message, with this id or a new one.
    pub(super) fn invent(&mut self, id: Option<Uuid>) -> Key {
        let id = id.unwrap_or_else(|| Uuid::from_bytes(self.bytes()));
        let number = self.dice.roll();
        let text = format!("text {number} ").repeat(index(1 + number % 12));
        let (sender, recipient) = (format!("user{}", number % 5), "#room".to_owned());
        let message =
            Message::new(UncheckedMessage { id, sender, recipient, text, timestamp: None }).expect("valid");
        let content = message.encode();
        let digest = Digest::of(EntryKind::Message, &content);
        self.ledger.sent.entry(id).or_default().insert(digest, content);
        (id, digest)
    }

    /// A message that a client repeats: usually an unanswered one, else an acknowledged one.
    fn earlier(&mut self) -> Option<Key> {
        if !self.ledger.unanswered.is_empty() && !self.dice.one_in(4) {
            let at = index(self.below(self.ledger.unanswered.len() as u64));
            return Some(self.ledger.unanswered.swap_remove(at));
        }
        let count = self.ledger.acknowledged.len() as u64;
        let at = index(self.below(count));
        self.ledger.acknowledged.keys().nth(at).copied()
    }

    /// Sends a request with these messages to a node.
    pub(super) fn send(&mut self, node: usize, keys: &[Key]) {
        let ids: Vec<String> = keys.iter().take(3).map(|(id, _)| short(*id)).collect();
        let what = format!("{} ({} in all) to node {node}", ids.join(" "), keys.len());
        if self.machines[node].up.is_none() {
            self.say(format!("a client sends {what}, which is down"));
            return self.ledger.unanswered.extend(keys);
        }
        self.say(format!("a client sends {what}"));
        let messages = keys.iter().map(|(id, digest)| {
            let content = self.ledger.sent[id][digest].clone();
            NewMessage { id: *id, digest: *digest, content }
        });
        let messages = messages.collect();
        let answer_is_lost = !self.calm && self.dice.one_in(8);
        let run = self.machines[node].up.as_mut().expect("is up");
        run.inbox.push(Request { messages, answer_is_lost });
        self.write_soon(node);
    }

    /// These requests will never be answered.
    pub(super) fn no_answer(&mut self, requests: Vec<Request>) {
        for request in requests {
            self.ledger
                .unanswered
                .extend(request.messages.iter().map(|message| (message.id, message.digest)));
        }
    }

    /// Checks a node's answers against the ledger, and delivers them to the clients.
    pub(super) fn outcomes(
        &mut self,
        node: usize,
        before: &Before,
        requests: &[Request],
        outcomes: &[Vec<SendOutcome>],
    ) {
        let mut batch = BTreeSet::new();
        for (request, outcomes) in requests.iter().zip(outcomes) {
            for (message, outcome) in request.messages.iter().zip(outcomes) {
                let key = (message.id, message.digest);
                let was_there = before.copies.contains_key(&key) || batch.contains(&key);
                self.outcome(node, key, was_there, *outcome);
                let of_id = (key.0, Digest([0; 32]))..=(key.0, Digest([0xff; 32]));
                let other = before.copies.range(of_id.clone()).map(|(other, _)| other);
                let stands_for_other = other.chain(batch.range(of_id)).any(|other| *other != key);
                if stands_for_other && !was_there && matches!(outcome, SendOutcome::Stored { .. }) {
                    let id = short(key.0);
                    self.violation(format!(
                        "node {node} accepts a second content for the id {id}, which it has"
                    ));
                }
                if before.copies.contains_key(&key) {
                    self.check_no_copy_is_made(node, before, key, *outcome);
                }
                if matches!(outcome, SendOutcome::Stored { .. }) {
                    batch.insert(key);
                }
                let is_open = matches!(outcome, SendOutcome::NotStored(why) if *why != Rejection::Conflict);
                if is_open || request.answer_is_lost {
                    self.ledger.unanswered.push(key);
                }
            }
        }
    }

    /// The answer to a duplicate names an existing entry, not a new one in the node's own log.
    fn check_no_copy_is_made(&self, node: usize, before: &Before, key: Key, outcome: SendOutcome) {
        let SendOutcome::Stored { key: place, .. } = outcome else { return };
        let own = self.machines[node].up.as_ref().expect("is up").committer.logs().own();
        if own == Some(place.origin) && place.seq > before.vector.seq(place.origin) {
            self.violation(format!("node {node} stores {} a second time", short(key.0)));
        }
    }

    fn outcome(&mut self, node: usize, key: Key, was_there: bool, outcome: SendOutcome) {
        let id = short(key.0);
        match outcome {
            SendOutcome::Stored { key: place, duplicate } => {
                let again = if duplicate { " again" } else { "" };
                let log = name(place.origin);
                self.say(format!("node {node} has {id}{again}, as entry {} of log {log}", place.seq));
                if !self.machines[node].held.has(&key) {
                    self.violation(format!("node {node} acknowledges {id}, which is not on its disk"));
                }
                self.check_stamp(node, place, duplicate);
                if was_there && !duplicate {
                    self.violation(format!("node {node} stores {id} a second time"));
                }
                if self.ledger.acknowledged.insert(key, false).is_none() {
                    self.tally.acknowledged += 1;
                }
                self.check_holders(node, place, key);
            }
            SendOutcome::NotStored(Rejection::Conflict) => {
                self.say(format!("node {node} refuses {id}: its id has another content"));
                if self.ledger.contents(key.0) < 2 {
                    self.violation(format!("node {node} reports a conflict for {id}, which has one content"));
                }
            }
            SendOutcome::NotStored(why) => {
                self.say(format!("node {node} does not store {id}: {why:?}"));
                if self.calm {
                    self.violation(format!("node {node} has no fault and does not store a message: {why:?}"));
                }
            }
        }
    }

    /// What a node accepts is stamped at most as far ahead of its clock as it follows the stamps of others.
    fn check_stamp(&self, node: usize, place: EntryKey, is_duplicate: bool) {
        let latest = self.machines[node].read_clock(self.now) + AHEAD_MS_MAX + 1;
        if !is_duplicate && place.stamp.ms() > latest {
            self.violation(format!(
                "node {node} stamps entry {} of {} in the future",
                place.seq, place.origin
            ));
        }
    }

    /// Every node that is reported to have a copy has it, unless its disk was lost after its last report.
    fn check_holders(&mut self, node: usize, place: EntryKey, key: Key) {
        if self.ledger.cloned {
            return; // two nodes with the same store id are not told apart yet
        }
        if self.ledger.is_forked(place.origin, place.seq) {
            return; // a peer's vector does not say which version of a forked log it has
        }
        let holders = self.machines[node].up.as_ref().expect("is up").roster.borrow().holders(place);
        for (peer, said) in holders.into_iter().filter(|(peer, _)| !self.is_bad(*peer)) {
            let machine = &self.machines[peer];
            // A vector also covers damaged entries, so they count as copies whether the damage is detected or not.
            let is_damaged = machine.held.damaged.contains(&(place.origin, place.seq));
            let is_excused = is_damaged || machine.destroyed.is_some_and(|at| at >= said);
            if !is_excused && !machine.held.keeps(&key) {
                let id = short(key.0);
                self.violation(format!(
                    "node {node} reports a copy of {id} on node {peer}, where there is none"
                ));
            }
        }
    }

    /// Sends a message to a node, which must accept it in the calm phase.
    pub(super) fn send_final_message(&mut self, node: usize) {
        let key = self.invent(None);
        self.send(node, &[key]);
    }
}

fn short(id: Uuid) -> String {
    id.simple().to_string()[..6].to_owned()
}
