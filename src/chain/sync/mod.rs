//! Owns the exchange: the messages that two nodes send each other until both hold the same. Values in, values out.
//!
//! One side is the [`Initiator`], the other the [`Responder`]; every node is both, with every peer. A message carries
//! the digest of the sender's vector. If the other side's digest is equal, the exchange is complete. Otherwise heads
//! are sent as changes to the last vector that both sides agreed on; if that is unknown, all of them.
//!
//! Who sends what: a node pushes the entries of its own log to every peer at once, so in a full mesh each message
//! crosses each link once. Entries of other logs are pulled by the node that lacks them, or pushed after two timer
//! rounds without progress, so one-way reachability is enough. Repeating a message is harmless.
//!
//! Invariant: what is known of a peer is its latest message, and is dropped with a new incarnation of the peer.

pub mod bisect;
pub mod run;
pub mod wire;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::ids::Origin;
use super::vector::Vector;
use crate::fault::Fault;
use wire::{EntryRange, Heads, Incarnation, ShortDigest, SyncMessage, short};

/// Timer rounds without progress after which a node that is not the owner sends or requests entries.
const ROUNDS: u8 = 2;

/// The logs that one side lacks entries of: their last seq there, and for how many timer rounds it has not grown.
#[derive(Debug, Clone, Default)]
struct StallCounter(BTreeMap<Origin, (u64, u8)>);

impl StallCounter {
    /// Counts one round for each log of `lacking` (log and last seq), and drops the others.
    fn count(&mut self, lacking: impl Iterator<Item = (Origin, u64)>) {
        let before = std::mem::take(&mut self.0);
        for (origin, seq) in lacking {
            let rounds = match before.get(&origin) {
                Some((then, rounds)) if *then == seq => rounds.saturating_add(1),
                _ => 1,
            };
            self.0.insert(origin, (seq, rounds));
        }
    }

    fn is_due(&self, origin: Origin) -> bool {
        self.0.get(&origin).is_some_and(|(_, rounds)| *rounds >= ROUNDS)
    }
}

/// Logs that have the same length and other hashes on both sides, and that length.
pub fn forks(mine: &Vector, theirs: &Vector) -> Vec<(Origin, u64)> {
    let changes = theirs.changes_since(mine).into_iter();
    let forked = changes.filter(|(origin, theirs)| {
        mine.head(*origin).is_some_and(|head| head.seq == theirs.head.seq && head.hash != theirs.head.hash)
    });
    forked.map(|(origin, theirs)| (origin, theirs.head.seq)).collect()
}

/// The ranges that a peer with this vector lacks, the most urgent first.
pub fn missing_ranges(mine: &Vector, theirs: &Vector) -> Vec<EntryRange> {
    let range = |(origin, last, theirs): (Origin, u64, u64)| EntryRange { origin, first: theirs + 1, last };
    let mut ranges: Vec<EntryRange> = mine.leads(theirs).into_iter().map(range).collect();
    ranges.sort_by_key(|range| urgency(mine, range.origin));
    ranges
}

/// The order in which logs are exchanged: control logs before all others, since they say who may read and write; then
/// newer logs, whose ids are larger, before older ones, so that what is said now comes first.
fn urgency(vector: &Vector, origin: Origin) -> (bool, Reverse<Origin>) {
    let is_control = vector.get(origin).is_some_and(|span| span.log_type.is_control);
    (!is_control, Reverse(origin))
}

/// Cuts that a peer has and we do not, or that lie before ours.
pub fn new_cuts(mine: &Vector, theirs: &Vector) -> Vec<(Origin, u64)> {
    let cuts = theirs.cuts_since(mine).into_iter();
    cuts.filter(|(origin, seq)| mine.cut_of(*origin).is_none_or(|mine| *seq < mine)).collect()
}

/// The initiator's state of the exchanges with one peer.
#[derive(Debug, Clone, Default)]
pub struct Initiator {
    peer: Option<Incarnation>,
    /// The peer's vector, as its latest message says.
    theirs: Option<Vector>,
    /// All that the peer ever had; used by a planted fault only.
    had: Vector,
    /// Our vector as the peer last confirmed it: the base of the next heads.
    confirmed: Option<Vector>,
    /// The peer's vector is unknown: request all heads.
    need_full: bool,
    they_lack: StallCounter,
    we_lack: StallCounter,
}

/// The next request, without its sender and its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangePlan {
    /// Our vector, whose digest is sent.
    pub mine: Vector,
    /// The part of it that the peer does not know.
    pub heads: Option<Heads>,
    pub push: Vec<EntryRange>,
    pub wants: Vec<EntryRange>,
    pub need_full: bool,
}

/// What to do after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextExchange {
    /// Start again at once: there is more to exchange.
    Again,
    /// Wait for a change or the timer.
    Wait,
}

impl Initiator {
    /// Plans a request. `on_timer`: the timer starts it, not a change. `skip`: logs that are not requested yet, because
    /// their owner pushes them or another peer is asked.
    pub fn start(
        &mut self,
        mine: &Vector,
        own: Option<Origin>,
        on_timer: bool,
        skip: impl Fn(Origin) -> bool,
    ) -> ExchangePlan {
        let mut plan = ExchangePlan {
            mine: mine.clone(),
            heads: Heads::since(mine, self.confirmed.as_ref()),
            push: Vec::new(),
            wants: Vec::new(),
            need_full: self.need_full,
        };
        let Some(theirs) = &self.theirs else { return plan };
        let (they_lack, we_lack) = (mine.leads(theirs), theirs.leads(mine));
        if on_timer {
            self.they_lack.count(they_lack.iter().map(|(origin, _, theirs)| (*origin, *theirs)));
            self.we_lack.count(we_lack.iter().map(|(origin, _, mine)| (*origin, *mine)));
        }
        for (origin, last, theirs) in they_lack {
            if Some(origin) == own || self.they_lack.is_due(origin) {
                plan.push.push(EntryRange { origin, first: theirs + 1, last });
            }
        }
        // After the control logs our own log: senders wait for the acks of its entries.
        plan.push.sort_by_key(|range| {
            let (is_after_control, newest) = urgency(mine, range.origin);
            (is_after_control, Some(range.origin) != own, newest)
        });
        for (origin, last, mine) in we_lack {
            if !skip(origin) || self.we_lack.is_due(origin) {
                plan.wants.push(EntryRange { origin, first: mine + 1, last });
            }
        }
        plan.wants.sort_by_key(|range| urgency(theirs, range.origin));
        plan
    }

    /// What the peer said of itself by a request, if no answer of it has come yet.
    pub fn learn(&mut self, theirs: &Vector) {
        self.theirs.get_or_insert_with(|| theirs.clone());
    }

    /// Takes the answer to a plan.
    pub fn on_reply(&mut self, plan: ExchangePlan, reply: &SyncMessage) -> NextExchange {
        let is_restarted = self.peer.is_some_and(|peer| peer != reply.hello.incarnation());
        if is_restarted && !Fault::OldHeads.is_planted() {
            *self = Initiator::default();
        }
        let before = self.theirs.take();
        let is_first = before.is_none();
        self.peer = Some(reply.hello.incarnation());
        self.theirs = vector_of(reply, before, &plan.mine);
        self.need_full = self.theirs.is_none();
        if let (true, Some(theirs)) = (Fault::OldHeads.is_planted(), &mut self.theirs) {
            theirs.merge(&std::mem::take(&mut self.had));
            self.had = theirs.clone();
        }
        self.confirmed = (!reply.need_full).then_some(plan.mine);
        if self.need_full || reply.need_full || is_first { NextExchange::Again } else { NextExchange::Wait }
    }

    /// The peer's vector, as its latest message says.
    pub fn theirs(&self) -> Option<&Vector> {
        self.theirs.as_ref()
    }
}

/// The vector of the sender of `message`. `known`: what it was before; `mine`: ours. `None`: the message has only
/// changes to a vector that is not known here.
fn vector_of(message: &SyncMessage, known: Option<Vector>, mine: &Vector) -> Option<Vector> {
    match (&message.heads, known) {
        _ if message.digest == short(mine.digest()) => Some(mine.clone()),
        (Some(heads), known) => apply(heads, known.as_ref(), message.digest),
        (None, known) => known.filter(|known| message.digest == short(known.digest())),
    }
}

/// The vector that heads describe, if its digest is the one that came with them.
fn apply(heads: &Heads, known: Option<&Vector>, digest: ShortDigest) -> Option<Vector> {
    let mut vector = match (heads.base, known) {
        (None, _) => Vector::default(),
        (Some(base), Some(known)) if base == short(known.digest()) => known.clone(),
        (Some(_), _) => return None,
    };
    for (origin, seq) in &heads.cuts {
        // Unless the log is cut at its first entry or before its floor, the head that is left comes with the other
        // heads.
        let before = vector.head(*origin).filter(|_| *seq > vector.floor(*origin).max(1));
        vector.cut(*origin, *seq, before);
    }
    for (origin, span) in &heads.changes {
        vector.insert(*origin, *span);
    }
    let is_cut = |(origin, seq): (Origin, u64)| vector.seq(origin) < seq;
    (short(vector.digest()) == digest && heads.cuts.iter().copied().all(is_cut)).then_some(vector)
}

/// The responder's state of the exchanges with one incarnation of a peer.
#[derive(Debug, Clone, Default)]
pub struct Responder {
    theirs: Option<Vector>,
    /// Our vector as the last answer described it: the base of the next heads.
    sent: Option<Vector>,
}

impl Responder {
    /// Takes a request. `mine`: our vector before the request's entries are admitted.
    pub fn on_request(&mut self, mine: &Vector, request: &SyncMessage) {
        if request.need_full {
            self.sent = None;
        }
        self.theirs = vector_of(request, self.theirs.take(), mine);
    }

    /// Completes an answer. `mine`: our durable vector after the request's entries were admitted.
    pub fn answer(&mut self, mine: &Vector, request: &SyncMessage, reply: &mut SyncMessage) {
        reply.digest = short(mine.digest());
        reply.need_full = self.theirs.is_none();
        if reply.digest != request.digest || request.need_full {
            reply.heads = Heads::since(mine, self.sent.as_ref());
        }
        self.sent = Some(mine.clone());
    }

    /// The peer's vector, as its latest message says.
    pub fn theirs(&self) -> Option<&Vector> {
        self.theirs.as_ref()
    }
}

#[cfg(test)]
mod tests;
