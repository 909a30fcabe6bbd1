//! Owns what this node knows of one other: its address, which incarnation of which store answers there, and what it
//! holds.
//!
//! All of it is what the peer said; of an open store, what it said last and what it held before are united. When the
//! peer opens its store again, what it holds is dropped: a peer must not count as a holder of entries it may have lost.
//! Its address, its node id and the times of contact stay. Which peers there are, and when they are asked, is not known
//! here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::api::address::Addr;
use crate::api::network::{NodeId, NodeState, PeerStatus};
use crate::api::time::Time;
use crate::chain::ids::Origin;
use crate::chain::members::MemberId;
use crate::chain::sync::wire::{EntryRange, Incarnation, ShortDigest, SyncMessage};
use crate::chain::vector::{LogSpan, Vector};
use crate::node::incidents::Incidents;

/// Damaged ranges of a peer that are kept. Further ones of the same message are ignored: an honest peer asks for no
/// more of them in one exchange.
const DAMAGED_MAX: usize = 256;
/// Nothing is pushed for this long to a peer whose disk was full. It may still have what this node lacks.
const FULL_TIME: Duration = Duration::from_secs(30);
/// A peer whose last exchange failed, but that was in contact within this time, is suspect. After it, the peer is down.
pub const SUSPECT_TIME: Duration = Duration::from_secs(10);

pub struct Peer {
    pub addr: Addr,
    /// The configuration names this address. Otherwise the peer is a member that was learned of.
    pub configured: bool,
    /// The member that is asked here, if it was learned of.
    pub expected_member: Option<MemberId>,
    /// The node that is here by the configuration, else the node that was seen here last.
    pub expected_id: Option<NodeId>,
    pub node_id: Option<NodeId>,
    pub incarnation: Option<Incarnation>,
    pub vector: Option<Vector>,
    /// What it certainly has as this node has it: where its head had the hash that this node has there. Only this
    /// counts as copies, since a log may be forked.
    verified: Vector,
    /// The digest of what it holds, as its message gives it.
    pub digest: Option<ShortDigest>,
    /// What it had when its status was asked for. Only shown: a status does not say which incarnation gave it.
    pub status_vector: Option<Vector>,
    /// What it had before it opened its store again, until it says what it has now.
    pub vector_before_restart: Option<Vector>,
    /// The log that it appends to.
    pub own_log: Option<Origin>,
    /// Entries that it asked for last although its heads cover them: they are damaged there, or it compares them after
    /// a fork. It does not count as a holder of them.
    pub damaged: Vec<EntryRange>,
    /// The logs that its last request asked for.
    pub pulled: BTreeSet<Origin>,
    /// New entries of this node's own log are on their way to it.
    pub is_pushed_own: bool,
    /// When it last had no room for what was pushed to it.
    pub last_full: Option<Instant>,
    /// The member that answered last at this address, if it advertises it and no exchange failed since.
    pub answering: Option<MemberId>,
    pub last_request: Option<Instant>,
    pub last_answer: Option<Instant>,
    pub last_sync: Option<Time>,
    pub rtt: Option<Duration>,
    pub error: Option<String>,
    /// Why this node cannot ask it at the moment, if that says nothing about the peer.
    pub own_lack: Option<String>,
    pub is_self: bool,
    /// Wakes the task that asks it.
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
            verified: Vector::default(),
            digest: None,
            status_vector: None,
            vector_before_restart: None,
            own_log: None,
            damaged: Vec::new(),
            pulled: BTreeSet::new(),
            is_pushed_own: false,
            last_full: None,
            answering: None,
            last_request: None,
            last_answer: None,
            last_sync: None,
            rtt: None,
            error: None,
            own_lack: None,
            is_self: false,
            wake: Arc::default(),
        }
    }

    /// Takes in a request or reply of the peer. `theirs`: what it has now, if its messages say so; without it, what it
    /// had before still holds, unless it opened its store again. True if it may hold more than before.
    pub fn on_message(
        &mut self,
        body: &SyncMessage,
        theirs: Option<&Vector>,
        mine: &Vector,
        incidents: &Incidents,
    ) -> bool {
        let before = (self.vector.is_some(), self.digest, self.damaged.clone());
        self.identify(body, incidents);
        let mut holds_more = false;
        if let Some(theirs) = theirs {
            self.merge_vector(theirs, mine, incidents);
            self.digest = Some(body.digest);
            holds_more = self.compare(theirs, mine);
        }
        let is_covered = |want: &&EntryRange| {
            self.vector.as_ref().is_none_or(|theirs| want.first <= theirs.seq(want.origin))
        };
        self.damaged = body.wants.iter().filter(is_covered).take(DAMAGED_MAX).copied().collect();
        holds_more || before != (self.vector.is_some(), self.digest, self.damaged.clone())
    }

    /// Notes the logs that have the same head in both vectors. True if that is news.
    pub fn compare(&mut self, theirs: &Vector, mine: &Vector) -> bool {
        let mut verified = mine.clone();
        for (origin, _) in mine.changes_since(theirs) {
            match self.verified.get(origin) {
                Some(before) => verified.insert(origin, *before),
                None => verified.remove(origin),
            }
        }
        let is_news = !verified.changes_since(&self.verified).is_empty();
        self.verified = verified;
        is_news
    }

    /// Its head of this log has the hash that this node has there.
    pub fn on_verified(&mut self, origin: Origin, span: LogSpan) {
        if self.verified.seq(origin) < span.head.seq {
            self.verified.insert(origin, span);
        }
    }

    /// The last seq of a log up to which it certainly has what this node has.
    pub fn verified_seq(&self, origin: Origin) -> u64 {
        self.verified.seq(origin)
    }

    /// The same incarnation has these logs so far, besides what it said before. True if it may hold more than before.
    pub fn on_spans(
        &mut self,
        incarnation: Incarnation,
        spans: impl IntoIterator<Item = (Origin, LogSpan)>,
        mine: &Vector,
    ) -> bool {
        let Some(vector) = self.vector.as_mut().filter(|_| self.incarnation == Some(incarnation)) else {
            return false;
        };
        let mut is_new = false;
        for (origin, span) in spans {
            let is_cut = vector.cut_of(origin).is_some_and(|cut| span.head.seq >= cut);
            if span.head.seq > vector.seq(origin) && !is_cut {
                vector.insert(origin, span);
                is_new = true;
            }
            if mine.head(origin) == Some(span.head) && self.verified.seq(origin) < span.head.seq {
                self.verified.insert(origin, span);
                is_new = true;
            }
        }
        is_new
    }

    fn identify(&mut self, body: &SyncMessage, incidents: &Incidents) {
        let incarnation = body.hello.incarnation();
        let is_same_node = self.node_id == Some(body.hello.node_id);
        let before = self.incarnation.replace(incarnation);
        if before != Some(incarnation) {
            let last_known = self.vector.take().or(self.vector_before_restart.take());
            (self.own_log, self.digest, self.status_vector) = (None, None, None);
            self.verified = Vector::default();
            match before {
                Some(before) if before.store_id == incarnation.store_id => {
                    self.vector_before_restart = last_known;
                }
                Some(_) if is_same_node => {
                    incidents.add(format!("node {} came back with another store", body.hello.node_id));
                }
                _ => {}
            }
        }
        self.node_id = Some(body.hello.node_id);
        self.own_log = body.own.or(self.own_log);
    }

    /// Whether its disk was full a moment ago.
    pub fn is_full(&self) -> bool {
        self.last_full.is_some_and(|at| at.elapsed() < FULL_TIME)
    }

    /// Whether it pulls this log from here at the moment.
    pub fn pulls(&self, origin: Origin) -> bool {
        let is_recent = |at: Instant| at.elapsed() < SUSPECT_TIME + 4 * self.rtt.unwrap_or_default();
        self.pulled.contains(&origin) && self.last_request.is_some_and(is_recent)
    }

    /// Whether all of these entries are on its disk, as far as it says.
    pub fn holds(&self, entries: &EntryRange) -> bool {
        let is_damaged = |range: &EntryRange| {
            range.origin == entries.origin && range.first <= entries.last && entries.first <= range.last
        };
        let span = self.verified.get(entries.origin);
        span.is_some_and(|span| span.holds(entries.first) && span.holds(entries.last))
            && !self.damaged.iter().any(is_damaged)
    }

    /// Adds what the peer says it has. An open store loses nothing, so a message that arrives late takes nothing back;
    /// but of logs that are not here only the last message counts, since a peer can name any number.
    fn merge_vector(&mut self, theirs: &Vector, mine: &Vector, incidents: &Incidents) {
        if let (Some(before), now) = (self.vector.take(), self.vector.insert(theirs.clone())) {
            for (origin, span) in before.changes_since(theirs) {
                if mine.get(origin).is_some()
                    && span.head.seq > now.seq(origin)
                    && theirs.cut_of(origin).is_none()
                {
                    now.insert(origin, span);
                }
            }
        }
        let less = self.vector_before_restart.take().map_or(0, |had| had.ahead_of(theirs));
        if less > 0 {
            let node = self.node_id.map_or_else(|| self.addr.to_string(), |id| id.to_string());
            incidents.add(format!(
                "node {node} came back with {less} entries fewer than it had, and gets them back"
            ));
        }
    }

    /// Which member it is, as far as is known.
    pub fn member_id(&self) -> Option<MemberId> {
        let identified = || Some(MemberId { node_id: self.node_id?, store_id: self.incarnation?.store_id });
        self.expected_member.or_else(identified)
    }

    /// The member at this configured address has moved. Nothing but the address and the last error is kept.
    pub fn reset(&mut self) {
        let (addr, wake) = (self.addr.clone(), self.wake.clone());
        let error = self.error.take();
        *self = Peer { error, wake, ..Peer::new(addr, true, self.node_id) };
    }

    /// `Up`: in contact, and the last exchange worked. `Suspect`: it failed, but the peer was in contact within
    /// [`SUSPECT_TIME`]. `Down`: no contact for longer than that, unless this node could not ask.
    pub fn state(&self) -> NodeState {
        // Round trips of several seconds are normal on some links.
        let longest = SUSPECT_TIME + 4 * self.rtt.unwrap_or_default();
        let recently = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < longest);
        match (&self.error, recently(self.last_answer) || recently(self.last_request)) {
            (None, true) => NodeState::Up,
            (Some(_), true) => NodeState::Suspect,
            (None, false) if self.own_lack.is_some() => NodeState::Suspect,
            (_, false) => NodeState::Down,
        }
    }

    /// The peer as it is shown, with how many entries of `all` it lacks.
    pub fn status(&self, all: &Vector) -> PeerStatus {
        let known = [&self.vector, &self.status_vector].into_iter().flatten();
        PeerStatus {
            node_id: self.node_id,
            address: self.addr.clone(),
            state: self.state(),
            last_sync: self.last_sync,
            rtt_ms: self.rtt.map(|rtt| (rtt.as_secs_f64() * 1e5).round() / 100.0),
            behind: known.map(|has| all.ahead_of(has)).min(),
            error: self.own_lack.as_ref().or(self.error.as_ref()).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ids::ChainHash;
    use crate::chain::kind::LogType;
    use crate::chain::sync::wire::{Hello, short};
    use crate::chain::vector::Head;

    const A: Origin = Origin([1; 16]);

    #[test]
    fn a_peer_with_many_pulls_is_no_holder_of_its_damaged_entries() {
        let mut theirs = Vector::default();
        theirs.set_head(A, LogType::MESSAGES, Head { seq: 9, hash: ChainHash([5; 32]) });
        let hello = Hello {
            network: [0; 8],
            node_id: 2,
            store_id: [2; 16],
            incarnation_id: [1; 16],
            address: "127.0.0.1:8083".into(),
            is_guest: false,
        };
        let pull = |n: u16| EntryRange {
            origin: Origin([n.to_be_bytes(); 8].concat().try_into().expect("16 bytes")),
            first: 1,
            last: 5,
        };
        let mut request = SyncMessage::quiet(hello, short(theirs.digest()), 0);
        request.wants = (1_000..1_300).map(pull).collect();
        request.wants.push(EntryRange { origin: A, first: 4, last: 4 });
        let mut peer = Peer::new("127.0.0.1:8083".parse().expect("an address"), true, None);
        peer.on_message(&request, Some(&theirs), &theirs, &Incidents::default());
        let holds = |seq| peer.holds(&EntryRange { origin: A, first: seq, last: seq });
        assert_eq!((holds(3), holds(4), holds(5)), (true, false, true));
    }
}
