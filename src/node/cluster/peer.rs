//! Owns what this node knows of one other: where it is, which opening of which store speaks there, and what it holds.
//!
//! What is known is the peer's latest word. It is dropped when its store was opened anew, so that nobody is counted as
//! holding what it may have lost. Who the others are, and when they are asked, is not known here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::api::address::Addr;
use crate::api::network::{NodeId, NodeState, PeerStatus};
use crate::api::time::Time;
use crate::chain::ids::Origin;
use crate::chain::members::MemberId;
use crate::chain::sync::wire::{EntryRange, ShortDigest, SyncMessage};
use crate::chain::vector::Vector;
use crate::node::incidents::Incidents;

/// Damaged entries of a peer that are remembered, as ranges; no honest one asks for more at once.
const DAMAGED_MAX: usize = 256;
/// A peer that failed, but answered within this time, is suspect rather than down.
pub const SUSPECT_TIME: Duration = Duration::from_secs(10);

/// A store, as of one opening.
pub type Incarnation = ([u8; 16], [u8; 16]);

/// What is known of one peer.
pub struct Peer {
    pub addr: Addr,
    /// The configuration names it; the others are members that were learned of.
    pub configured: bool,
    /// The member that is asked here, if it was learned of.
    pub expected_member: Option<MemberId>,
    /// Who is here by the configuration, else who was here last.
    pub expected_id: Option<NodeId>,
    pub node_id: Option<NodeId>,
    pub incarnation: Option<Incarnation>,
    pub vector: Option<Vector>,
    /// Of what it had by its last word.
    pub digest: Option<ShortDigest>,
    /// What it had when it was asked for its status. To be shown, and for nothing else: that answer does not say which
    /// opening of its store gave it.
    pub status_vector: Option<Vector>,
    /// What it had by its last word before its store was opened anew, until it says what it has now.
    pub vector_before_restart: Option<Vector>,
    pub own_log: Option<Origin>,
    /// Entries below its heads that it asked for: they are damaged there, and no copies.
    pub damaged: Vec<EntryRange>,
    /// It spoke to us.
    pub last_request: Option<Instant>,
    /// It answered us.
    pub last_answer: Option<Instant>,
    pub last_sync: Option<Time>,
    pub rtt: Option<Duration>,
    pub error: Option<String>,
    /// It is this node itself.
    pub is_self: bool,
    /// Wakes the link to it.
    pub wake: Arc<Notify>,
}

impl Peer {
    pub fn new(addr: Addr, configured: bool, node_id: Option<NodeId>) -> Self {
        Peer {
            addr,
            configured,
            expected_member: None,
            expected_id: node_id,
            node_id,
            incarnation: None,
            vector: None,
            digest: None,
            status_vector: None,
            vector_before_restart: None,
            own_log: None,
            damaged: Vec::new(),
            last_request: None,
            last_answer: None,
            last_sync: None,
            rtt: None,
            error: None,
            is_self: false,
            wake: Arc::default(),
        }
    }

    /// It spoke. `theirs`: what it has, where that is known from its words; else what it had before, unless its store was
    /// opened anew. Whether it may have more than before.
    pub fn on_message(&mut self, body: &SyncMessage, theirs: Option<&Vector>, notes: &Incidents) -> bool {
        let before = (self.vector.is_some(), self.digest, self.damaged.clone());
        self.identify(body, notes);
        if let Some(theirs) = theirs {
            self.merge_vector(theirs, notes);
            self.digest = Some(body.digest);
        }
        before != (self.vector.is_some(), self.digest, self.damaged.clone())
    }

    /// Notes who speaks. Of a store that was opened anew nothing is known any more.
    fn identify(&mut self, body: &SyncMessage, notes: &Incidents) {
        let opening = (body.hello.store_id, body.hello.open_id);
        let is_same_node = self.node_id == Some(body.hello.node_id);
        let before = self.incarnation.replace(opening);
        if before != Some(opening) {
            let had = self.vector.take().or(self.vector_before_restart.take());
            (self.own_log, self.digest, self.status_vector) = (None, None, None);
            match before {
                Some((store, _)) if store == opening.0 => self.vector_before_restart = had,
                Some(_) if is_same_node => {
                    notes.add(format!("node {} came back with another store", body.hello.node_id));
                }
                _ => {}
            }
        }
        self.node_id = Some(body.hello.node_id);
        self.own_log = body.own.or(self.own_log);
        self.damaged = body.wants.iter().take(DAMAGED_MAX).copied().collect();
    }

    /// Whether all of these entries are on its disk, as far as it says. `mine`: our logs. Where they show that its log is
    /// another one of that name, it holds other entries than these.
    pub fn holds(&self, entries: &EntryRange, mine: &Vector) -> bool {
        let Some(theirs) = self.vector.as_ref().and_then(|theirs| theirs.get(entries.origin)) else {
            return false;
        };
        let is_other =
            mine.get(entries.origin).is_some_and(|mine| mine.seq == theirs.seq && mine.hash != theirs.hash);
        let is_damaged = |range: &EntryRange| {
            range.origin == entries.origin && range.first <= entries.last && entries.first <= range.last
        };
        theirs.seq >= entries.last && !is_other && !self.damaged.iter().any(is_damaged)
    }

    /// Notes what it has. As long as its store is open nothing goes from it, so a word that was overtaken by a later one
    /// takes nothing back.
    fn merge_vector(&mut self, theirs: &Vector, notes: &Incidents) {
        let before = self.vector.replace(theirs.clone());
        if let (Some(before), Some(now)) = (before, &mut self.vector) {
            now.merge(&before);
        }
        let less = self.vector_before_restart.take().map_or(0, |had| had.ahead_of(theirs));
        if less > 0 {
            let node = self.node_id.map_or_else(|| self.addr.to_string(), |id| id.to_string());
            notes.add(format!(
                "node {node} came back with {less} entries fewer than it had, and gets them back"
            ));
        }
    }

    /// Which member it is, as far as is known.
    pub fn member_id(&self) -> Option<MemberId> {
        let met = || Some(MemberId { node_id: self.node_id?, store_id: self.incarnation?.0 });
        self.expected_member.or_else(met)
    }

    /// Who was found at this address is found at another one now.
    pub fn reset(&mut self) {
        let (addr, wake) = (self.addr.clone(), self.wake.clone());
        let error = self.error.take();
        *self = Peer { error, wake, ..Peer::new(addr, true, self.node_id) };
    }

    pub fn state(&self) -> NodeState {
        let recently = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < SUSPECT_TIME);
        match (&self.error, recently(self.last_answer) || recently(self.last_request)) {
            (None, true) => NodeState::Up,
            (Some(_), true) => NodeState::Suspect,
            (_, false) => NodeState::Down,
        }
    }

    /// As it is shown, with how many entries of `all` it lacks.
    pub fn status(&self, all: &Vector) -> PeerStatus {
        PeerStatus {
            node_id: self.node_id,
            address: self.addr.clone(),
            state: self.state(),
            last_sync: self.last_sync,
            rtt_ms: self.rtt.map(|rtt| (rtt.as_secs_f64() * 1e5).round() / 100.0),
            behind: [&self.vector, &self.status_vector]
                .into_iter()
                .flatten()
                .map(|has| all.ahead_of(has))
                .min(),
            error: self.error.clone(),
        }
    }
}
