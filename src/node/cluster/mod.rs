//! Owns what this node knows of the other nodes, and wakes the tasks that depend on it.
//!
//! Parts: the roster (who the members are, and one peer for each address that is asked), the sync sessions, and the
//! repair of damage here with the help of peers. `sync` runs the exchanges and reports their results here.
//!
//! Each part has one lock, which is not held across an await. Only the lock on the stored members is held while they
//! are written, so that an older list is not written last.

pub(super) mod answer;
mod arriving_answer;
mod failure;
pub(super) mod peer;
pub(super) mod roster;
mod sessions;
mod side_push;
pub(super) mod sync;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::Node;
use super::incidents::Incidents;
use super::now_ms;
use super::status::Surveys;
use crate::api::address::Addr;
use crate::api::network::{NodeId, NodeState, PeerStatus, ScrubStatus};
use crate::api::time::Time;
use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::chain::members::{Member, MemberId, Members, Membership};
use crate::chain::sync::missing_ranges;
use crate::chain::sync::wire::{EntryRange, Hello, Incarnation, SyncMessage};
use crate::chain::vector::{Head, LogSpan, Vector};
use crate::client::{Client, ClientError};
use crate::config::NodeConfig;
use crate::node::cluster::peer::Peer;
use crate::node::cluster::roster::{ForgetOutcome, Roster};
use crate::node::cluster::sessions::SyncSessions;
use crate::replica::committer::LOGS_MAX;
use crate::replica::repair::{AskedIn, PeerAnswer, Repair};
use crate::replica::write_ops::{Maintenance, Rejection};

/// A peer that sent a request within this time is expected to push its own log. After it, the log is pulled.
const OWNER_ACTIVE_TIME: Duration = Duration::from_secs(5);
/// A peer that lacks more entries of this node's own log than this, and pulls them, is not pushed them.
const AWAITED_COUNT_MAX: u64 = 100;
/// For this long after the start, every peer that answered is expected to push its own log.
const STARTUP_TIME: Duration = Duration::from_secs(3);

/// The state of this node's exchanges with all others, while its store is open.
pub struct Cluster {
    /// The network, by the hash of its name.
    pub network: [u8; 8],
    pub client: Client,
    /// When this process began to serve.
    pub started: Instant,
    /// Warnings that outlive this incarnation.
    pub incidents: Incidents,
    pub surveys: Surveys,
    scrub: Mutex<ScrubStatus>,
    roster: Mutex<Roster>,
    sessions: Mutex<SyncSessions>,
    repair: Mutex<Repair>,
    /// Changes when a peer may hold more than before, so that a message may have more holders.
    pub holders_changed: watch::Sender<()>,
    /// Changes when members or peers come or go.
    pub members_changed: watch::Sender<()>,
    /// The members as they are on disk.
    stored_members: tokio::sync::Mutex<Membership>,
}

/// A peer as it is shown, and what identifies it until its own status has arrived.
pub struct PeerSnapshot {
    number: usize,
    incarnation: Option<Incarnation>,
    pub status: PeerStatus,
}

fn list(members: &Members) -> Vec<(MemberId, Member)> {
    members.iter().map(|(id, member)| (id, member.clone())).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is complete before anything that could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// `membership`: the members as the store has them. `started`: when the process began to serve.
    pub fn new(
        config: &NodeConfig,
        hello: Hello,
        membership: &Membership,
        started: Instant,
        incidents: Incidents,
    ) -> Self {
        Cluster {
            network: hello.network,
            client: Client::new(config.keys.as_ref()),
            started,
            incidents,
            surveys: Surveys::default(),
            scrub: Mutex::default(),
            roster: Mutex::new(Roster::new(hello, &config.peers, membership.clone())),
            sessions: Mutex::default(),
            repair: Mutex::default(),
            holders_changed: watch::Sender::new(()),
            members_changed: watch::Sender::new(()),
            stored_members: tokio::sync::Mutex::new(membership.clone()),
        }
    }

    /// Who the members and peers are. Take the guard for one statement: methods of `Cluster` lock it, too.
    pub fn roster(&self) -> MutexGuard<'_, Roster> {
        lock(&self.roster)
    }

    pub fn hello(&self) -> Hello {
        self.roster().own().clone()
    }

    /// The exchanges that are under way. Take the guard for one statement.
    pub fn sessions(&self) -> MutexGuard<'_, SyncSessions> {
        lock(&self.sessions)
    }

    /// The progress of the scrub. Take the guard for one statement.
    pub fn scrub(&self) -> MutexGuard<'_, ScrubStatus> {
        lock(&self.scrub)
    }

    /// A peer's address, and what wakes the task that asks it. `None`: it is not asked any more.
    pub fn peer_address(&self, number: usize) -> Option<(Addr, Arc<Notify>)> {
        self.roster().peer(number).map(|peer| (peer.addr.clone(), peer.wake.clone()))
    }

    /// Milliseconds since this process began to serve: a clock that only goes forward.
    pub fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Writes the members to disk if they changed since the last time.
    pub async fn store_members(&self, node: &Node) -> Result<(), Rejection> {
        let mut stored = self.stored_members.lock().await; // one write at a time: an older list must not come last
        let now = self.roster().membership();
        if *stored != now {
            node.writer.try_maintain(Maintenance::Members(now.clone())).await?;
            *stored = now;
        }
        Ok(())
    }

    /// Puts the digest of the members into a request. `in_full`: the members as well.
    pub fn add_members_to_request(&self, request: &mut SyncMessage, in_full: bool) {
        let roster = self.roster();
        request.members_digest = Some(roster.members().digest());
        if in_full {
            request.members = list(roster.members());
        }
    }

    /// Puts the members into a reply if the request's digest shows that the peer has other ones.
    pub fn add_members_to_reply(&self, request: &SyncMessage, reply: &mut SyncMessage) {
        let roster = self.roster();
        if request.members_digest.is_some_and(|digest| digest != roster.members().digest()) {
            reply.members = list(roster.members());
        }
    }

    /// Whether a peer whose reply listed these members lacks some that this node knows.
    pub fn has_members_missing_in(&self, reply: &SyncMessage) -> bool {
        let listed: Members = reply.members.iter().cloned().collect();
        !reply.members.is_empty() && listed.digest() != self.roster().members().digest()
    }

    /// Forgets a node: marks all its stores that are not up.
    pub fn forget(&self, node_id: NodeId) -> ForgetOutcome {
        let mut roster = self.roster();
        let outcome = roster.forget(node_id);
        self.notify(&roster, outcome == ForgetOutcome::Done, false);
        outcome
    }

    /// Wakes the tasks that wait for changed members or peers, and the sends that wait for further copies.
    fn notify(&self, roster: &Roster, members_changed: bool, holders_changed: bool) {
        if members_changed {
            roster.peers().for_each(|peer| peer.wake.notify_one());
            self.members_changed.send_replace(());
        }
        if holders_changed {
            self.holders_changed.send_replace(());
        }
    }

    /// A peer turned out to be this node. A configured address is then not shown as a peer. A learned one stays a peer:
    /// it is a member at whose address this node is now.
    pub fn on_self_found(&self, number: usize) {
        let mut roster = self.roster();
        if let Some(peer) = roster.peer(number) {
            peer.is_self = peer.configured;
            (peer.error, peer.answering) = (Some("this node itself answers there".into()), None);
        }
        roster.reconcile();
    }

    /// A peer answered an exchange. An error if another node answered than the one that was asked.
    pub fn on_answer(
        &self,
        number: usize,
        reply: &SyncMessage,
        theirs: Option<&Vector>,
        mine: &Vector,
        rtt: Duration,
    ) -> Result<(), String> {
        let mut roster = self.roster();
        let (mut members_changed, mut holders_changed) =
            (roster.on_answered(number, &reply.hello, now_ms()), false);
        members_changed |= roster.learn_members(reply, now_ms());
        let mut result = Ok(());
        if let Some(peer) = roster.peer(number) {
            if reply.hello.is_guest {
                result = Err(format!("a guest answers at {}; it is no node of the network", peer.addr));
            } else if peer.expected_member.is_some_and(|id| id != reply.hello.member_id()) {
                result = Err(format!("node {} answers at {}", reply.hello.node_id, peer.addr));
            } else {
                members_changed |= peer.node_id != Some(reply.hello.node_id);
                holders_changed = peer.on_message(reply, theirs, mine, &self.incidents);
                peer.last_answer = Some(Instant::now());
                (peer.last_sync, peer.rtt) = (Some(Time(now_ms())), Some(rtt));
                (peer.error, peer.own_lack) = (None, None);
                peer.is_self = false;
                members_changed |= roster.on_identified(number, &reply.hello);
            }
        }
        roster.bound_heads();
        self.notify(&roster, members_changed, holders_changed);
        result
    }

    /// All of a peer's answer has come: what it was asked for and did not send, it lacks. `asked`: when it was asked.
    pub fn on_whole_answer(
        &self,
        wants: &[EntryRange],
        reply: &SyncMessage,
        theirs: Option<&Vector>,
        asked: Instant,
    ) {
        let took_ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (member, asked_ms) = (reply.hello.member_id(), self.uptime_ms().saturating_sub(took_ms));
        lock(&self.repair).on_answer(&PeerAnswer { member, asked_ms, wants, theirs, more: reply.more });
    }

    /// An exchange with a peer failed. Its member may be asked at another address from now on.
    pub fn on_failure(&self, number: usize, why: String) {
        let mut roster = self.roster();
        let Some(peer) = roster.peer(number) else { return };
        (peer.error, peer.own_lack, peer.answering) = (Some(why), None, None);
        let peers_changed = roster.reconcile();
        self.notify(&roster, peers_changed, false);
    }

    /// This node cannot ask a peer, which is not the peer's fault.
    pub fn on_own_lack(&self, number: usize, error: &ClientError) {
        let before = self.roster().peer(number).map(|peer| peer.own_lack.replace(error.why()));
        if before == Some(None) {
            tracing::warn!(%error, "exchanges must wait");
        }
    }

    /// A peer had no room for what was pushed to it.
    pub fn on_full(&self, number: usize) {
        if let Some(peer) = self.roster().peer(number) {
            peer.last_full = Some(Instant::now());
        }
    }

    /// The last seq of a log that a peer said it has, by a request or an answer; the largest number if it is pulling
    /// the log from here, if a side push is on its way, or if its disk is full. If it lacks only a few entries of this node's own log, they
    /// are pushed although it pulls: sends wait for that.
    pub fn peer_has(&self, number: usize, origin: Origin, logs: &Logs) -> u64 {
        let mut roster = self.roster();
        let Some(peer) = roster.peer(number) else { return 0 };
        let has = peer.vector.as_ref().map_or(0, |theirs| theirs.seq(origin));
        let is_own = logs.own() == Some(origin);
        let is_awaited = is_own && logs.vector().seq(origin) <= has.saturating_add(AWAITED_COUNT_MAX);
        let is_on_its_way = (is_own && peer.is_pushed_own) || (peer.pulls(origin) && !is_awaited);
        if is_on_its_way || peer.is_full() { u64::MAX } else { has }
    }

    /// What a peer said that it has, by a request or an answer.
    pub fn vector_of(&self, number: usize) -> Option<Vector> {
        self.roster().peer(number)?.vector.clone()
    }

    /// A part of a peer's answer has arrived.
    pub fn on_progress(&self, number: usize) {
        self.sessions().renew(number);
        if let Some(peer) = self.roster().peer(number) {
            peer.last_answer = Some(Instant::now());
        }
    }

    /// A peer sent a request. If exchanges with it failed, the next one need not wait any longer.
    pub fn on_request(&self, request: &SyncMessage, theirs: Option<&Vector>, mine: &Vector) {
        let mut roster = self.roster();
        let (members_changed, mut holders_changed) = (roster.learn_members(request, now_ms()), false);
        if let Some(peer) = roster.peer_of_sender(&request.hello) {
            holders_changed = peer.on_message(request, theirs, mine, &self.incidents);
            peer.last_request = Some(Instant::now());
            let wants = request.wants.iter().map(|want| want.origin);
            let any = theirs.filter(|_| request.wants_any).map(|theirs| missing_ranges(mine, theirs));
            peer.pulled = wants.chain(any.into_iter().flatten().map(|range| range.origin)).collect();
            if peer.error.is_some() || peer.last_answer.is_none() {
                peer.wake.notify_one();
            }
        } else if !request.hello.is_guest {
            // It may have replaced the store that answered at its address: asking there tells.
            let is_there = |peer: &&Peer| peer.addr.to_string() == request.hello.address;
            roster.peers().filter(is_there).for_each(|peer| peer.wake.notify_one());
        }
        roster.bound_heads();
        self.notify(&roster, members_changed, holders_changed);
    }

    /// The entries that came with a peer's request are stored: more of its heads may be ours now.
    pub fn on_stored(&self, hello: &Hello, theirs: Option<&Vector>, mine: &Vector) {
        let (mut roster, Some(theirs)) = (self.roster(), theirs) else { return };
        let Some(peer) = roster.peer_of_sender(hello) else { return };
        let holders_changed = peer.incarnation == Some(hello.incarnation()) && peer.compare(theirs, mine);
        self.notify(&roster, false, holders_changed);
    }

    /// A peer's head of this node's own log, unless it is known that the peer has what this node has up to there.
    pub fn unverified_own(&self, number: usize, theirs: &Vector, logs: &Logs) -> Option<(Origin, Head)> {
        let own = logs.own()?;
        let head = theirs.head(own).filter(|head| head.seq < logs.vector().seq(own))?;
        let is_known = self.roster().peer(number)?.verified_seq(own) >= head.seq;
        (!is_known).then_some((own, head))
    }

    /// This node has the same hash at this head of a peer.
    pub fn on_verified(&self, number: usize, incarnation: Incarnation, origin: Origin, span: LogSpan) {
        let mut roster = self.roster();
        if let Some(peer) = roster.peer(number).filter(|peer| peer.incarnation == Some(incarnation)) {
            peer.on_verified(origin, span);
        }
        self.notify(&roster, false, true);
    }

    /// A peer's own status has arrived, and its digest says that it has exactly this.
    pub fn on_status(&self, of: &PeerSnapshot, node_id: NodeId, vector: &Vector) {
        if let Some(peer) = self.roster().peer(of.number)
            && peer.incarnation == of.incarnation
            && peer.node_id == Some(node_id)
        {
            peer.status_vector = Some(vector.clone());
        }
    }

    /// Whether a log's owner is about to push it, so that no other peer has to be asked for it.
    pub fn owner_pushes(&self, origin: Origin) -> bool {
        let is_starting = self.started.elapsed() < STARTUP_TIME;
        let pushes = |peer: &Peer| {
            let is_active = peer.last_request.is_some_and(|at| at.elapsed() < OWNER_ACTIVE_TIME);
            peer.own_log == Some(origin) && (is_active || (is_starting && peer.last_answer.is_some()))
        };
        self.roster().peers().any(pushes)
    }

    /// Damaged entries of this node that a peer with this vector may have undamaged.
    pub fn repairs_to_request(
        &self,
        node: &Node,
        asked: AskedIn,
        theirs: Option<&Vector>,
    ) -> Vec<EntryRange> {
        if node.store.log().damage().count() == 0 {
            return Vec::new();
        }
        self.inspect_damage(node).ranges(asked, node.logs().vector(), theirs)
    }

    /// Number of entries that are damaged or missing here, as far as found.
    pub fn damaged(&self, node: &Node) -> u64 {
        self.inspect_damage(node).count() as u64
    }

    /// What is to be committed because damage was not repaired in time.
    pub fn overdue_repairs(&self, node: &Node) -> Vec<Maintenance> {
        let members: Vec<_> = self.roster().others().into_iter().map(|(member, _)| member).collect();
        self.inspect_damage(node).overdue(node.logs().own(), &members, self.uptime_ms())
    }

    /// For each node that is away and may have the only intact copy of damaged entries: what an operator can do.
    fn repair_warnings(&self, node: &Node) -> Vec<String> {
        let (repair, roster) = (self.inspect_damage(node), self.roster());
        let warning = |(member, peer): (Option<MemberId>, &Peer)| {
            let count = repair.waiting_for(member, self.uptime_ms());
            if count == 0 || peer.state() == NodeState::Up {
                return None;
            }
            let (own, addr) = (roster.own().node_id, &peer.addr);
            let (who, else_) = match peer.node_id {
                Some(id) => (format!("node {id} ({addr})"), format!("`chatchain forget --node-id {id}`")),
                None => {
                    (format!("the node at {addr}"), "take that address out of `nodes` and `--peers`".into())
                }
            };
            Some(format!(
                "node {own}: {count} entries are damaged, and no node that answers has them; start {who}, which may \
                 have them; if it is gone for good, {else_}: then they are given up"
            ))
        };
        roster.others().into_iter().filter_map(warning).collect()
    }

    fn inspect_damage(&self, node: &Node) -> MutexGuard<'_, Repair> {
        let mut repair = lock(&self.repair);
        repair.update(node.store.log().damage(), &node.logs(), self.uptime_ms());
        repair
    }

    /// What an operator should know of the peers.
    pub fn warnings(&self, node: &Node) -> Vec<String> {
        let mut warnings = self.incidents.lines();
        warnings.extend(self.repair_warnings(node));
        if node.logs().vector().origins() >= LOGS_MAX {
            warnings.push(format!("this store holds {LOGS_MAX} logs, and takes new logs of no other node"));
        }
        let roster = self.roster();
        warnings.extend(roster.non_members());
        if roster.nodes().is_empty() {
            warnings.push("this node has no peers: its messages are on no other machine".into());
        }
        for (id, addrs) in roster.duplicate_ids() {
            let addrs = addrs.join(" and ");
            warnings
                .push(format!("there is more than one node {id}: {addrs}; give each a --node-id of its own"));
        }
        warnings
    }

    /// The nodes that are known to have a message on disk. `copies`: the entries that hold it. `here`: this node is one
    /// of them. A node counts once, however many addresses it has; so does a store, however many nodes claim it.
    pub fn holders(&self, copies: &[EntryRange], here: bool) -> Vec<NodeId> {
        let roster = self.roster();
        let own = (roster.own().node_id, roster.own().store_id);
        let mut found: Vec<(NodeId, [u8; 16])> = here.then_some(own).into_iter().collect();
        for peer in roster.visible() {
            let (Some(id), Some(incarnation)) = (peer.node_id, peer.incarnation) else { continue };
            let store = incarnation.store_id;
            let is_counted = found.iter().any(|(other, other_store)| *other == id || *other_store == store);
            if !is_counted && copies.iter().any(|copy| peer.holds(copy)) {
                found.push((id, store));
            }
        }
        found.into_iter().map(|(id, _)| id).collect()
    }

    /// Everything that any known node is known to have.
    pub fn union(&self, mine: &Vector) -> Vector {
        let mut union = mine.clone();
        for theirs in self.roster().visible().filter_map(|peer| peer.vector.as_ref()) {
            union.merge(theirs);
        }
        union
    }

    /// The peers as they are shown, each with how many entries of `all` it lacks.
    pub fn peers(&self, all: &Vector) -> Vec<PeerSnapshot> {
        let roster = self.roster();
        let snapshot = |(number, peer): (usize, &Peer)| PeerSnapshot {
            number,
            incarnation: peer.incarnation,
            status: peer.status(all),
        };
        roster.nodes().into_iter().map(snapshot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that was opened this many hours from now.
    fn hello(node_id: NodeId, store: u8, hours: u64) -> Hello {
        let incarnation_id = (u128::from(now_ms() + hours * 3_600_000) << 80).to_be_bytes();
        let (store_id, address) = ([store; 16], format!("127.0.0.1:{node_id}"));
        Hello { network: [0; 8], node_id, store_id, incarnation_id, address, is_guest: false }
    }

    fn message_from(hello: Hello) -> SyncMessage {
        SyncMessage::quiet(hello, [0; 16], 0)
    }

    /// Node 1, which knows node 2 because that sent a request, or because it is configured.
    fn cluster(is_configured: bool) -> Cluster {
        let addr = |node_id: NodeId| format!("127.0.0.1:{node_id}").parse::<Addr>().expect("an address");
        let configured = crate::config::ConfiguredPeer { node_id: None, addr: addr(2) };
        let config = NodeConfig {
            node_id: 1,
            network: "test".into(),
            listen: addr(1),
            advertise: addr(1),
            peers: is_configured.then_some(configured).into_iter().collect(),
            store_dir: "unused".into(),
            sync_interval: Duration::from_secs(1),
            scrub_interval: Duration::from_secs(1),
            keys: None,
        };
        let (started, incidents) = (Instant::now(), Incidents::default());
        let cluster = Cluster::new(&config, hello(1, 1, 0), &Membership::default(), started, incidents);
        cluster.on_request(&message_from(hello(2, 2, 0)), None, &Vector::default());
        cluster
    }

    /// The number of the peer at the address of node 2.
    fn number(cluster: &Cluster) -> usize {
        let mut roster = cluster.roster();
        let numbers = roster.numbers();
        let is_there = |number: &usize| roster.peer(*number).is_some_and(|peer| peer.addr.port() == 2);
        numbers.into_iter().find(is_there).expect("is asked")
    }

    fn answer(cluster: &Cluster, hello: &Hello) -> Result<(), String> {
        let message = message_from(hello.clone());
        cluster.on_answer(number(cluster), &message, None, &Vector::default(), Duration::ZERO)
    }

    /// Node 3 says that node 2 has this store.
    fn claim(cluster: &Cluster, claimed: &Hello) {
        let (incarnation_id, address) = (claimed.incarnation_id, claimed.address.clone());
        let mut message = message_from(hello(3, 3, 0));
        message.members = vec![(claimed.member_id(), Member { incarnation_id, forget_count: 0, address })];
        cluster.on_request(&message, None, &Vector::default());
    }

    #[test]
    fn the_store_that_answers_at_an_address_outranks_what_others_claim() {
        for is_configured in [false, true] {
            let (cluster, real, invented) = (cluster(is_configured), hello(2, 2, 0), hello(2, 9, 20));
            let knows = |hello: &Hello| cluster.roster().members().get(hello.member_id()).is_some();
            claim(&cluster, &invented);
            assert!(knows(&invented) && !knows(&real), "it was not asked yet");
            for _ in 0..2 {
                assert_eq!(answer(&cluster, &real), Ok(()));
                assert!(knows(&real) && !knows(&invented), "it answered");
                claim(&cluster, &hello(2, 10, 23));
                assert!(knows(&real) && !knows(&hello(2, 10, 23)), "its exchanges work");
                cluster.on_failure(number(&cluster), "refused".into());
                claim(&cluster, &invented);
                assert!(knows(&invented), "it may have a new store");
            }
            assert_eq!(answer(&cluster, &hello(2, 11, 0)), Ok(()), "it has a new store");
            assert!(knows(&hello(2, 11, 0)) && !knows(&real) && !knows(&invented));
            let _another_store = answer(&cluster, &hello(2, 12, 48));
            assert!(knows(&hello(2, 11, 0)) && !knows(&hello(2, 12, 48)), "its clock is wrong");
        }
    }

    #[test]
    fn a_request_does_not_say_which_store_is_at_an_address_that_answers() {
        let (cluster, real, invented) = (cluster(true), hello(2, 2, 0), hello(2, 9, 20));
        let store = || cluster.roster().peer(0).and_then(|peer| peer.incarnation).map(|open| open.store_id);
        assert_eq!(answer(&cluster, &real), Ok(()));
        cluster.on_request(&message_from(invented.clone()), None, &Vector::default());
        assert_eq!(store(), Some(real.store_id));
        cluster.on_failure(0, "refused".into());
        cluster.on_request(&message_from(invented.clone()), None, &Vector::default());
        assert_eq!(store(), Some(invented.store_id));
    }
}
