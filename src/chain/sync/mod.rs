//! Owns the exchange: what two nodes say to each other until both hold the same. Values in, values out.
//!
//! One side starts ([`Link`]), the other answers ([`Door`]); every node does both, with every peer. A message
//! carries the digest of the speaker's vector. If the other's is equal, that is all. Otherwise heads travel as
//! changes against the last vector both sides agreed on; in doubt, all of them.
//!
//! Who sends what: a node pushes entries of its own log at once to every peer, so in a full mesh each message
//! crosses each link once. Entries of other logs are pulled by whoever lacks them, or pushed to who lacks them
//! in two timer rounds without getting on, so that one-way reachability is enough. Repeating is free.
//!
//! Invariant: what is known of a peer is its latest word, and is dropped when its store was opened anew.

pub mod bisect;
pub mod wire;

use std::collections::BTreeMap;

use super::ids::Origin;
use super::vector::{Head, Vector};
use crate::chain::sync::wire::{EntryRange, Heads, Incarnation, ShortDigest, SyncMessage, short};
use crate::fault::Fault;

/// Timer rounds in which somebody must lack the same entries before another than their owner sends them.
const ROUNDS: u8 = 2;

/// What is lacking, and for how many timer rounds nothing of it has moved.
#[derive(Debug, Clone, Default)]
struct StallCounter(BTreeMap<Origin, (u64, u8)>);

impl StallCounter {
    /// Counts one round for each of `lacking` (log, and how far it is there), and forgets the others.
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

/// Logs of which both hold the same length with other content, and that length.
pub fn forks(mine: &Vector, theirs: &Vector) -> Vec<(Origin, u64)> {
    let changes = theirs.changes_since(mine).into_iter();
    let forked = changes.filter(|(origin, head)| mine.seq(*origin) == head.seq);
    forked.map(|(origin, head)| (origin, head.seq)).collect()
}

/// Cuts that a peer knows and we do not, or that lie before ours.
pub fn new_cuts(mine: &Vector, theirs: &Vector) -> Vec<(Origin, u64)> {
    let cuts = theirs.cuts_since(mine).into_iter();
    cuts.filter(|(origin, seq)| mine.cut_of(*origin).is_none_or(|mine| *seq < mine)).collect()
}

/// The starting side of exchanges with one peer.
#[derive(Debug, Clone, Default)]
pub struct Initiator {
    peer: Option<Incarnation>,
    /// The peer's vector by its latest word.
    theirs: Option<Vector>,
    /// Our vector as the peer last confirmed to know it.
    told: Option<Vector>,
    /// All that the peer ever had; nothing but a planted mistake asks for it.
    had: Vector,
    /// We lost track of theirs.
    need_full: bool,
    they_lack: StallCounter,
    we_lack: StallCounter,
}

/// What the next request says, besides who speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangePlan {
    /// Our vector, whose digest is sent.
    pub mine: Vector,
    /// What the peer does not know of it.
    pub heads: Option<Heads>,
    /// Entries to push.
    pub push: Vec<EntryRange>,
    /// Entries to ask for.
    pub wants: Vec<EntryRange>,
    /// Ask for all heads.
    pub need_full: bool,
}

/// What to do after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextExchange {
    /// Start again at once: there is more to say.
    Again,
    /// Wait for a change or the timer.
    Wait,
}

impl Initiator {
    /// Plans a request. `on_timer`: this is a timer's round, not a change's. `leave`: logs that need not be
    /// asked for yet, because their owner pushes them to us or another peer is being asked.
    pub fn start(
        &mut self,
        mine: &Vector,
        own: Option<Origin>,
        on_timer: bool,
        leave: impl Fn(Origin) -> bool,
    ) -> ExchangePlan {
        let mut plan = ExchangePlan {
            mine: mine.clone(),
            heads: Heads::since(mine, self.told.as_ref()),
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
        // Our own log first: those are the entries that somebody waits for.
        plan.push.sort_by_key(|range| Some(range.origin) != own);
        for (origin, last, mine) in we_lack {
            if !leave(origin) || self.we_lack.is_due(origin) {
                plan.wants.push(EntryRange { origin, first: mine + 1, last });
            }
        }
        plan
    }

    /// Takes note of the answer to a plan.
    pub fn on_reply(&mut self, plan: ExchangePlan, reply: &SyncMessage) -> NextExchange {
        let is_anew = self.peer.is_some_and(|peer| peer != reply.hello.incarnation());
        if is_anew && !Fault::OldHeads.is_planted() {
            *self = Initiator::default();
        }
        let is_first = self.theirs.is_none();
        self.peer = Some(reply.hello.incarnation());
        let in_doubt = reply.need_full || !self.note_theirs(&plan.mine, reply);
        if let (true, Some(theirs)) = (Fault::OldHeads.is_planted(), &mut self.theirs) {
            theirs.merge(&std::mem::take(&mut self.had));
            self.had = theirs.clone();
        }
        self.told = (!reply.need_full).then_some(plan.mine);
        if in_doubt || is_first { NextExchange::Again } else { NextExchange::Wait }
    }

    /// Whether their vector is known for sure now.
    fn note_theirs(&mut self, mine: &Vector, reply: &SyncMessage) -> bool {
        let theirs = if reply.digest == short(mine.digest()) {
            Some(mine.clone())
        } else {
            match (&reply.heads, self.theirs.take()) {
                (Some(heads), known) => apply(heads, known.as_ref(), reply.digest),
                (None, Some(known)) => (reply.digest == short(known.digest())).then_some(known),
                (None, None) => None,
            }
        };
        self.need_full = theirs.is_none();
        self.theirs = theirs;
        !self.need_full
    }

    /// The peer's vector by its latest word.
    pub fn theirs(&self) -> Option<&Vector> {
        self.theirs.as_ref()
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
        // Unless the log is cut at its first entry, the head that is left comes with the other heads.
        let before = vector.get(*origin).copied().filter(|_| *seq > 1);
        vector.cut(*origin, *seq, before);
    }
    for (origin, head) in &heads.changes {
        vector.insert(*origin, *head);
    }
    let is_cut = |(origin, seq): (Origin, u64)| vector.seq(origin) < seq;
    (short(vector.digest()) == digest && heads.cuts.iter().copied().all(is_cut)).then_some(vector)
}

/// The answering side of exchanges with one opening of one peer's store.
#[derive(Debug, Clone, Default)]
pub struct Responder {
    theirs: Option<Vector>,
    told: Option<Vector>,
}

impl Responder {
    /// Takes note of a request. `mine` is our vector before anything of it is admitted.
    pub fn on_request(&mut self, mine: &Vector, request: &SyncMessage) {
        if request.need_full {
            self.told = None;
        }
        self.theirs = match (&request.heads, self.theirs.take()) {
            (Some(heads), known) => apply(heads, known.as_ref(), request.digest),
            (None, Some(known)) if request.digest == short(known.digest()) => Some(known),
            (None, _) => (request.digest == short(mine.digest())).then(|| mine.clone()),
        };
    }

    /// Completes an answer: `mine` is our durable vector after what came was admitted.
    pub fn answer(&mut self, mine: &Vector, request: &SyncMessage, reply: &mut SyncMessage) {
        reply.digest = short(mine.digest());
        reply.need_full = self.theirs.is_none();
        if reply.digest != request.digest || request.need_full {
            reply.heads = Heads::since(mine, self.told.as_ref());
        }
        self.told = Some(mine.clone());
    }

    /// The peer's vector by its latest word.
    pub fn theirs(&self) -> Option<&Vector> {
        self.theirs.as_ref()
    }
}

/// The head that a vector claims for a log, to be held against what arrives of it.
pub fn claimed(theirs: Option<&Vector>, origin: Origin) -> Option<Head> {
    theirs.and_then(|theirs| theirs.get(origin)).copied()
}

#[cfg(test)]
mod tests;
