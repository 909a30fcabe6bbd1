//! Owns what clients do: fresh messages, batches, the same again, the same elsewhere, other content under an old id.
//!
//! A client knows only what it was told. What it was not told it sends again, through any node, with the same id.

use std::collections::{BTreeMap, BTreeSet};

use chatchain::chain::ids::EntryKey;
use chatchain::chain::message::{Digest, Message, UncheckedMessage};
use chatchain::chain::vector::Vector;
use chatchain::replica::write_ops::{NewMessage, Rejection, SendOutcome};
use uuid::Uuid;

use super::machine::{Key, Request};
use super::network::name;
use super::{Event, World, index};

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Fresh,
    Batch,
    /// What was never answered, else anything.
    Again,
    /// Other content with an id that is used.
    Conflict,
    /// One message to several nodes at once.
    Everywhere,
    /// One message twice in a request.
    Twice,
}

/// What a node held before it wrote a batch.
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

    /// A client acts, through this node.
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
                for node in 0..self.machines.len() {
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

    /// A message nobody has sent, with this id or a new one.
    pub(super) fn invent(&mut self, id: Option<Uuid>) -> Key {
        let id = id.unwrap_or_else(|| Uuid::from_bytes(self.bytes()));
        let number = self.dice.roll();
        let text = format!("text {number} ").repeat(index(1 + number % 12));
        let (sender, recipient) = (format!("user{}", number % 5), "#room".to_owned());
        let message =
            Message::new(UncheckedMessage { id, sender, recipient, text, timestamp: None }).expect("valid");
        let content = message.encode();
        let digest = Digest::of(&content);
        self.ledger.sent.entry(id).or_default().insert(digest, content);
        (id, digest)
    }

    /// What a client would send again: what it had no answer for, else anything.
    fn earlier(&mut self) -> Option<Key> {
        if !self.ledger.open.is_empty() && !self.dice.one_in(4) {
            let at = index(self.below(self.ledger.open.len() as u64));
            return Some(self.ledger.open.swap_remove(at));
        }
        let count = self.ledger.acknowledged.len() as u64;
        let at = index(self.below(count));
        self.ledger.acknowledged.keys().nth(at).copied()
    }

    /// A request with these messages goes to a node.
    pub(super) fn send(&mut self, node: usize, keys: &[Key]) {
        let ids: Vec<String> = keys.iter().take(3).map(|(id, _)| short(*id)).collect();
        let what = format!("{} ({} in all) to node {node}", ids.join(" "), keys.len());
        if self.machines[node].up.is_none() {
            self.say(format!("a client sends {what}, which is down"));
            return self.ledger.open.extend(keys);
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

    /// Nobody will ever say what became of these.
    pub(super) fn no_answer(&mut self, requests: Vec<Request>) {
        for request in requests {
            self.ledger.open.extend(request.messages.iter().map(|message| (message.id, message.digest)));
        }
    }

    /// Holds a node's answers against what is known, and tells the clients.
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
                    self.wrong(format!("node {node} lets a second content have the id {id}, which it knows"));
                }
                if before.copies.contains_key(&key) {
                    self.check_no_copy_is_made(node, before, key, *outcome);
                }
                if matches!(outcome, SendOutcome::Stored { .. }) {
                    batch.insert(key);
                }
                let is_open = matches!(outcome, SendOutcome::NotStored(why) if *why != Rejection::Conflict);
                if is_open || request.answer_is_lost {
                    self.ledger.open.push(key);
                }
            }
        }
    }

    /// A duplicate is answered with a place that was there, not with one in the node's own log that is new.
    fn check_no_copy_is_made(&self, node: usize, before: &Before, key: Key, outcome: SendOutcome) {
        let SendOutcome::Stored { place, .. } = outcome else { return };
        let own = self.machines[node].up.as_ref().expect("is up").pen.logs().own();
        if own == Some(place.origin) && place.seq > before.vector.seq(place.origin) {
            self.wrong(format!("node {node} stores {} a second time", short(key.0)));
        }
    }

    fn outcome(&mut self, node: usize, key: Key, was_there: bool, outcome: SendOutcome) {
        let id = short(key.0);
        match outcome {
            SendOutcome::Stored { place, duplicate } => {
                let again = if duplicate { " again" } else { "" };
                let log = name(place.origin);
                self.say(format!("node {node} has {id}{again}, as entry {} of log {log}", place.seq));
                if !self.machines[node].held.has(&key) {
                    self.wrong(format!("node {node} says that it has {id}, and its disk does not"));
                }
                if was_there && !duplicate {
                    self.wrong(format!("node {node} stores {id} a second time"));
                }
                if self.ledger.acknowledged.insert(key, false).is_none() {
                    self.tally.acknowledged += 1;
                }
                self.check_holders(node, place, key);
            }
            SendOutcome::NotStored(Rejection::Conflict) => {
                self.say(format!("node {node} refuses {id}: its id stands for other content"));
                if self.ledger.contents(key.0) < 2 {
                    self.wrong(format!("node {node} sees a conflict of {id} with itself"));
                }
            }
            SendOutcome::NotStored(why) => {
                self.say(format!("node {node} does not store {id}: {why:?}"));
                if self.calm {
                    self.wrong(format!("node {node} works, and does not store a message: {why:?}"));
                }
            }
        }
    }

    /// Whoever is said to have it on disk has it, unless its disk was destroyed since its last word.
    fn check_holders(&mut self, node: usize, place: EntryKey, key: Key) {
        if self.ledger.cloned {
            return; // two live stores of one name are not told apart yet
        }
        let holders = self.machines[node].up.as_ref().expect("is up").book.borrow().holders(place);
        for (peer, said) in holders {
            let machine = &self.machines[peer];
            // A vector covers damaged entries too: whether they are found yet or not, they are counted as copies.
            let is_damaged = machine.held.spoilt.contains(&(place.origin, place.seq));
            let is_excused = is_damaged || machine.destroyed.is_some_and(|at| at >= said);
            if !is_excused && !machine.held.keeps(&key) {
                let id = short(key.0);
                self.wrong(format!("node {node} says that {id} is on node {peer}, where it is not"));
            }
        }
    }

    /// In calm every node takes a message.
    pub(super) fn last_words(&mut self, node: usize) {
        let key = self.invent(None);
        self.send(node, &[key]);
    }
}

fn short(id: Uuid) -> String {
    id.simple().to_string()[..6].to_owned()
}
