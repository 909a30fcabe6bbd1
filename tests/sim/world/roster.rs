//! Owns what a simulated node knows of its peers: as `node::cluster`, with simulated time.

use std::collections::BTreeMap;

use chatchain::chain::ids::{EntryKey, Origin};
use chatchain::chain::sync::wire::SyncMessage;
use chatchain::chain::vector::{LogSpan, Vector};

use super::machine::Opening;

const HEARD_MS: u64 = 5_000;
const STARTING_MS: u64 = 3_000;
const CLAIM_MS: u64 = 5_000;

/// What a node knows of one peer.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    pub opening: Option<Opening>,
    pub theirs: Option<Vector>,
    /// When the peer sent that vector.
    pub said: u64,
    pub own: Option<Origin>,
    pub heard: Option<u64>,
    pub answered: Option<u64>,
    pub failed: bool,
    pub is_self: bool,
}

impl Peer {
    pub fn met(&mut self, body: &SyncMessage) {
        let opening = (body.hello.store_id, body.hello.incarnation_id);
        if self.opening.replace(opening) != Some(opening) {
            (self.theirs, self.own) = (None, None);
        }
        self.own = body.own.or(self.own);
    }

    /// It has these logs so far, as it said now, if this is the opening that is known.
    pub fn has(&mut self, opening: Opening, said: u64, spans: impl IntoIterator<Item = (Origin, LogSpan)>) {
        let Some(theirs) = self.theirs.as_mut().filter(|_| self.opening == Some(opening)) else { return };
        for (origin, span) in spans {
            let is_cut = theirs.cut_of(origin).is_some_and(|cut| span.head.seq >= cut);
            if span.head.seq > theirs.seq(origin) && !is_cut {
                theirs.insert(origin, span);
                self.said = said;
            }
        }
    }
}

/// The peers of a node, and which of them delivers which log.
#[derive(Debug, Default)]
pub struct Roster {
    pub peers: Vec<Peer>,
    claims: BTreeMap<Origin, (usize, u64)>,
}

impl Roster {
    pub fn new(peers: usize) -> Self {
        Roster { peers: vec![Peer::default(); peers], claims: BTreeMap::new() }
    }

    /// The index of the sender of a message: by its store id, else by its address.
    pub fn index_of(&self, body: &SyncMessage) -> usize {
        let is_store = |peer: &Peer| peer.opening.is_some_and(|(store, _)| store == body.hello.store_id);
        let address = usize::from(body.hello.node_id);
        (0..self.peers.len()).find(|at| is_store(&self.peers[*at]) || *at == address).unwrap_or(address)
    }

    pub fn owner_pushes(&self, origin: Origin, now: u64, started: u64) -> bool {
        let starting = now - started < STARTING_MS;
        self.peers.iter().any(|peer| {
            let heard = peer.heard.is_some_and(|heard| now - heard < HEARD_MS);
            peer.own == Some(origin) && (heard || (starting && peer.answered.is_some()))
        })
    }

    pub fn claim(&mut self, origin: Origin, index: usize, now: u64) -> bool {
        match self.claims.get(&origin) {
            Some((other, since)) if *other != index && now - since < CLAIM_MS => false,
            _ => {
                self.claims.insert(origin, (index, now));
                true
            }
        }
    }

    pub fn release(&mut self, index: usize, now: u64) {
        self.claims.retain(|_, (holder, since)| *holder != index && now - *since < CLAIM_MS);
    }

    /// The peers known to have an entry on disk, each with the time of its report.
    pub fn holders(&self, place: EntryKey) -> Vec<(usize, u64)> {
        let has = |peer: &Peer| {
            !peer.is_self && peer.theirs.as_ref().is_some_and(|theirs| theirs.seq(place.origin) >= place.seq)
        };
        let peers = self.peers.iter().enumerate().filter(|(_, peer)| has(peer));
        peers.map(|(index, peer)| (index, peer.said)).collect()
    }
}
