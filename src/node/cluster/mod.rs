//! Owns what this node does with what it knows of the others: who is told of news, the open doors, who is asked for what.
//!
//! Who they are stands in the book, and what each of them holds in its peer.
//!
//! One lock, never held across a wait. What is known of a peer is its latest word; it is dropped when the
//! peer's store was opened anew, so that nobody is counted as holding what it may have lost.

pub(super) mod peer;
pub(super) mod roster;
pub(super) mod sync;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::incidents::Incidents;
use super::maintenance::ScrubProgress;
use crate::api::address::Addr;
use crate::api::network::{NodeId, PeerStatus};
use crate::api::time::Time;
use crate::chain::ids::Origin;
use crate::chain::members::{Member, MemberId, Members, Membership};
use crate::chain::sync::Responder;
use crate::chain::sync::wire::{EntryRange, Hello, SyncMessage};
use crate::chain::vector::Vector;
use crate::client::Client;
use crate::config::NodeConfig;
use crate::node::cluster::peer::{Incarnation, Peer};
use crate::node::cluster::roster::{ForgetOutcome, Roster};
use crate::replica::repair::Repair;
use crate::replica::write_ops::Maintenance;

/// Stores that may have a door here at the same time. At the bound the one unused for longest is closed,
/// which costs its peer one full vector.
const SESSIONS_MAX: usize = 256;
/// Heads that all open doors may remember together; beyond it they are closed as above. It bounds what peers can make
/// us keep by claiming logs that nobody has, to some 100 MB, and is far above what honest ones need.
const SESSION_HEADS_MAX: usize = 1 << 20;
/// A peer that was heard of within this time is expected to push its own log.
const OWNER_ACTIVE_TIME: Duration = Duration::from_secs(5);
/// A node that has just started is about to hear from its peers.
const STARTUP_TIME: Duration = Duration::from_secs(3);
/// For so long one peer alone is asked for a log.
const CLAIM_TIME: Duration = Duration::from_secs(5);

/// See the head of this file.
pub struct Cluster {
    /// The network, by the hash of its name.
    pub network: [u8; 8],
    /// The way to the others.
    pub client: Client,
    /// When this process began to serve.
    pub started: Instant,
    /// What happened.
    pub incidents: Incidents,
    /// How far the scrub is.
    pub scrub: ScrubProgress,
    roster: Mutex<Roster>,
    sessions: Mutex<SyncSessions>,
    repair: Mutex<Repair>,
    /// Counts the times that a peer said something new of what it holds.
    copies_changed: watch::Sender<u64>,
    /// Counts the times that members came or went.
    members_changed: watch::Sender<u64>,
    /// The members as they are on disk.
    stored_members: tokio::sync::Mutex<Membership>,
}

/// Which peer is asked for its status, and what was known of it then.
#[derive(Debug, Clone, Copy)]
pub struct PeerToAsk {
    number: usize,
    node_id: Option<NodeId>,
    incarnation: Option<Incarnation>,
}

#[derive(Default)]
struct SyncSessions {
    responders: HashMap<Incarnation, (Responder, Instant)>,
    claims: HashMap<Origin, (usize, Instant)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change below is complete before anything that could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// A mesh that knows the configured peers and who was a member before.
    /// `started`: when the process began to serve.
    pub fn new(
        config: &NodeConfig,
        hello: Hello,
        kept: &Membership,
        started: Instant,
        notes: Incidents,
    ) -> Self {
        Cluster {
            network: hello.network,
            client: Client::new(config.keys.as_ref()),
            started,
            incidents: notes,
            scrub: ScrubProgress::default(),
            roster: Mutex::new(Roster::new(hello, &config.peers, kept.clone())),
            sessions: Mutex::default(),
            repair: Mutex::default(),
            copies_changed: watch::Sender::new(0),
            members_changed: watch::Sender::new(0),
            stored_members: tokio::sync::Mutex::new(kept.clone()),
        }
    }

    /// Who we are.
    pub fn hello(&self) -> Hello {
        lock(&self.roster).own().clone()
    }

    /// The peers that are asked, by number.
    pub fn peer_numbers(&self) -> BTreeSet<usize> {
        lock(&self.roster).numbers()
    }

    /// Where a peer is, and what wakes the link to it. `None`: it is not asked any more.
    pub fn peer_address(&self, number: usize) -> Option<(Addr, Arc<Notify>)> {
        lock(&self.roster).peer(number).map(|peer| (peer.addr.clone(), peer.wake.clone()))
    }

    /// Changes when members come or go.
    pub fn members_changed(&self) -> watch::Receiver<u64> {
        self.members_changed.subscribe()
    }

    /// Has the members as they are now written to disk, if they changed since the last time.
    pub async fn store_members(&self, node: &super::Node) {
        let mut stored = self.stored_members.lock().await; // one after the other, or an older list could come last
        let now = lock(&self.roster).membership();
        if *stored != now {
            node.writer.maintain(Maintenance::Members(now.clone())).await;
            *stored = now;
        }
    }

    /// Says in a request who the members are: briefly, or all of it.
    pub fn add_members_to_request(&self, request: &mut SyncMessage, in_full: bool) {
        let book = lock(&self.roster);
        request.members_digest = Some(book.members().digest());
        if in_full {
            request.members = list(book.members());
        }
    }

    /// Says in an answer who the members are, where the asker knows others.
    pub fn add_members_to_reply(&self, request: &SyncMessage, reply: &mut SyncMessage) {
        let book = lock(&self.roster);
        let digest = request.members_digest;
        if digest.is_some_and(|digest| digest != book.members().digest()) {
            reply.members = list(book.members());
        }
    }

    /// Whether a peer whose answer listed these members lacks some.
    pub fn has_members_missing_in(&self, reply: &SyncMessage) -> bool {
        let said: Members = reply.members.iter().cloned().collect();
        !reply.members.is_empty() && said.digest() != lock(&self.roster).members().digest()
    }

    /// Forgets a node.
    pub fn forget(&self, node_id: NodeId) -> ForgetOutcome {
        let forgetting = lock(&self.roster).forget(node_id);
        self.tell_of_members(forgetting == ForgetOutcome::Done);
        forgetting
    }

    fn tell_of_members(&self, is_news: bool) {
        if is_news {
            lock(&self.roster).wake_all();
            self.members_changed.send_modify(|count| *count += 1);
        }
    }

    /// Whether a message comes from this very process.
    pub fn is_self(&self, body: &SyncMessage) -> bool {
        lock(&self.roster).is_own(&body.hello)
    }

    /// Whether a message comes from another process with a copy of this store, and it is on us to take a new name.
    pub fn is_clone(&self, body: &SyncMessage) -> bool {
        body.hello.is_copied(lock(&self.roster).own())
    }

    /// Where another process runs with a copy of this store under our node id, by what a message says of the members. It
    /// is on us to take a new name: to the others the two are one, so the other one may never meet us.
    pub fn clone_address(&self, body: &SyncMessage) -> Option<String> {
        lock(&self.roster).clone_address(body).map(ToOwned::to_owned)
    }

    /// A peer turned out to be this node. Where the configuration says so, it is not shown as a peer; else it is a member
    /// at whose address this node is now.
    pub fn on_self_found(&self, number: usize) {
        let mut book = lock(&self.roster);
        if let Some(peer) = book.peer(number) {
            peer.is_self = peer.configured;
            peer.error = Some("this node itself answers there".into());
        }
        book.reconcile();
    }

    /// A peer answered an exchange. An error if it is another one than the one that was asked.
    pub fn on_answer(
        &self,
        number: usize,
        reply: &SyncMessage,
        theirs: Option<&Vector>,
        rtt: Duration,
        now_ms: u64,
    ) -> Result<(), String> {
        self.repair().answered(number, self.uptime_ms());
        let mut book = lock(&self.roster);
        let members = book.learn_members(reply);
        let Some(peer) = book.peer(number) else {
            self.tell_of_news(book, members, false);
            return Ok(());
        };
        if peer.expected_member.is_some_and(|name| name != reply.hello.name()) {
            let why = format!("node {} answers at {}", reply.hello.node_id, peer.addr);
            self.tell_of_news(book, members, false);
            return Err(why);
        }
        let is_met = peer.node_id != Some(reply.hello.node_id);
        let is_news = peer.on_message(reply, theirs, &self.incidents);
        peer.last_answer = Some(Instant::now());
        (peer.last_sync, peer.rtt, peer.error) = (Some(Time(now_ms)), Some(rtt), None);
        peer.is_self = false;
        let before = book.numbers();
        book.on_identified(number, &reply.hello);
        let moved = before != book.numbers();
        self.tell_of_news(book, members || is_met || moved, is_news);
        Ok(())
    }

    fn tell_of_news(&self, book: MutexGuard<'_, Roster>, members: bool, held: bool) {
        drop(book);
        self.tell(held);
        self.tell_of_members(members);
    }

    /// An exchange with a peer failed.
    pub fn on_failure(&self, number: usize, why: String) {
        let mut book = lock(&self.roster);
        let Some(peer) = book.peer(number) else { return };
        peer.error = Some(why);
        let before = book.numbers();
        book.reconcile(); // it may be asked at another address now
        let moved = before != book.numbers();
        self.tell_of_news(book, moved, false);
    }

    /// A peer spoke to us: it is not to be waited for any longer.
    pub fn on_request(&self, request: &SyncMessage, theirs: Option<&Vector>) {
        let mut book = lock(&self.roster);
        let members = book.learn_members(request);
        let Some(peer) = book.peer_of_sender(&request.hello) else {
            return self.tell_of_news(book, members, false);
        };
        let is_news = peer.on_message(request, theirs, &self.incidents);
        peer.last_request = Some(Instant::now());
        if peer.error.is_some() || peer.last_answer.is_none() {
            peer.wake.notify_one();
        }
        self.tell_of_news(book, members, is_news);
    }

    fn tell(&self, is_news: bool) {
        if is_news {
            self.copies_changed.send_modify(|count| *count += 1);
        }
    }

    /// Changes when a peer may hold more than before.
    pub fn copies_changed(&self) -> watch::Receiver<u64> {
        self.copies_changed.subscribe()
    }

    /// Takes the state of a peer's exchanges with us, to be given back with [`Mesh::close_door`].
    pub fn open_door(&self, body: &SyncMessage) -> Responder {
        let key = (body.hello.store_id, body.hello.open_id);
        lock(&self.sessions).responders.remove(&key).map(|(door, _)| door).unwrap_or_default()
    }

    /// See [`Mesh::open_door`].
    pub fn close_door(&self, body: &SyncMessage, door: Responder) {
        let mut desk = lock(&self.sessions);
        let heads = |door: &Responder| door.theirs().map_or(0, Vector::origins);
        let mut sum = heads(&door) + desk.responders.values().map(|(door, _)| heads(door)).sum::<usize>();
        while desk.responders.len() >= SESSIONS_MAX
            || (sum > SESSION_HEADS_MAX && !desk.responders.is_empty())
        {
            let oldest = desk.responders.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            let closed = oldest.and_then(|key| desk.responders.remove(&key));
            sum -= closed.map_or(0, |(door, _)| heads(&door));
        }
        let key = (body.hello.store_id, body.hello.open_id);
        desk.responders.insert(key, (door, Instant::now()));
    }

    /// Whether a log's owner is about to push it to us.
    pub fn owner_pushes(&self, origin: Origin) -> bool {
        let starting = self.started.elapsed() < STARTUP_TIME;
        let pushes = |peer: &Peer| {
            let heard = peer.last_request.is_some_and(|heard| heard.elapsed() < OWNER_ACTIVE_TIME);
            peer.own_log == Some(origin) && (heard || (starting && peer.last_answer.is_some()))
        };
        lock(&self.roster).any(pushes)
    }

    /// Whether this link may ask for a log now; if so, others do not for a while.
    pub fn claim(&self, origin: Origin, index: usize) -> bool {
        let mut desk = lock(&self.sessions);
        match desk.claims.get(&origin) {
            Some((other, since)) if *other != index && since.elapsed() < CLAIM_TIME => false,
            _ => {
                desk.claims.insert(origin, (index, Instant::now()));
                true
            }
        }
    }

    /// The link is done asking.
    pub fn release(&self, index: usize) {
        lock(&self.sessions)
            .claims
            .retain(|_, (holder, since)| *holder != index && since.elapsed() < CLAIM_TIME);
    }

    /// Milliseconds since this process began to serve: a clock that only goes forward.
    pub fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Damaged entries that a peer with this vector may have whole.
    pub fn repairs_to_request(&self, node: &super::Node, theirs: Option<&Vector>) -> Vec<EntryRange> {
        let wounds = node.store.log().damage();
        if wounds.count() == 0 {
            return Vec::new();
        }
        let logs = node.logs();
        let mut heal = self.repair();
        heal.look(wounds, &logs, self.uptime_ms());
        heal.ranges(logs.vector(), theirs)
    }

    /// Number of entries that are damaged or missing here, as far as found.
    pub fn damaged(&self, node: &super::Node) -> u64 {
        let mut heal = self.repair();
        heal.look(node.store.log().damage(), &node.logs(), self.uptime_ms());
        heal.count() as u64
    }

    /// Where logs are to be cut, since nobody has what is missing there.
    pub fn unrepairable(&self, node: &super::Node) -> Vec<(Origin, u64)> {
        if self.damaged(node) == 0 {
            return Vec::new();
        }
        let peers: Vec<usize> = lock(&self.roster).nodes().into_iter().map(|(number, _)| number).collect();
        self.repair().hopeless(&peers, self.uptime_ms())
    }

    /// What is done about damage here.
    pub fn repair(&self) -> MutexGuard<'_, Repair> {
        self.repair.lock().unwrap_or_else(PoisonError::into_inner) // each change of it is complete
    }

    /// A log of which a peer has other content than we.
    pub fn report_fork(&self, origin: Origin, peer: &str) {
        self.incidents
            .add(format!("log {origin} was forked: {peer} had other content than this node; both are kept"));
    }

    /// An entry that nobody has any more.
    pub fn report_lost_entry(&self, origin: Origin, seq: u64) {
        self.incidents
            .add(format!("entry {seq} of log {origin} was damaged here, and no peer had it: it is lost"));
    }

    /// What an operator should know of the peers.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.incidents.lines();
        let book = lock(&self.roster);
        if book.nodes().is_empty() {
            warnings.push("this node has no peers: its messages are on no other machine".into());
        }
        for (id, addrs) in book.duplicate_ids() {
            let addrs = addrs.join(" and ");
            warnings
                .push(format!("there is more than one node {id}: {addrs}; give each a --node-id of its own"));
        }
        warnings
    }

    /// How many nodes there are, this one included.
    pub fn node_count(&self) -> usize {
        lock(&self.roster).node_count()
    }

    /// The nodes that are known to have a message on disk. `copies`: where it stands, once or more often; `here`: this node
    /// has it; `mine`: our logs. A node counts once, under however many addresses, and so does a store.
    pub fn holders(&self, copies: &[EntryRange], here: bool, mine: &Vector) -> Vec<NodeId> {
        let book = lock(&self.roster);
        let mut found: Vec<(NodeId, [u8; 16])> = Vec::new();
        if here {
            found.push((book.own().node_id, book.own().store_id));
        }
        for peer in book.visible() {
            let (Some(id), Some((store, _))) = (peer.node_id, peer.incarnation) else { continue };
            let is_counted = found.iter().any(|(other, name)| *other == id || *name == store);
            if !is_counted && copies.iter().any(|copy| peer.holds(copy, mine)) {
                found.push((id, store));
            }
        }
        found.into_iter().map(|(id, _)| id).collect()
    }

    /// Everything any known node is known to have.
    pub fn union(&self, mine: &Vector) -> Vector {
        let mut union = mine.clone();
        for theirs in lock(&self.roster).visible().filter_map(|peer| peer.vector.as_ref()) {
            union.merge(theirs);
        }
        union
    }

    /// The peers as they are shown, each with how many entries of `all` it lacks.
    pub fn statuses(&self, all: &Vector) -> Vec<PeerStatus> {
        self.surveyed(all).into_iter().map(|(status, _)| status).collect()
    }

    /// The same, each with what its status may be [seen](Mesh::seen) by.
    pub fn surveyed(&self, all: &Vector) -> Vec<(PeerStatus, PeerToAsk)> {
        let book = lock(&self.roster);
        let rows = book.nodes().into_iter().map(|(number, peer)| {
            let seen = PeerToAsk { number, node_id: peer.node_id, incarnation: peer.incarnation };
            (peer.status(all), seen)
        });
        rows.collect()
    }

    /// A peer, when it was asked for its status, had exactly this.
    pub fn on_status(&self, of: PeerToAsk, node_id: NodeId, has: &Vector) {
        let mut book = lock(&self.roster);
        let Some(peer) = book.peer(of.number) else { return };
        if (peer.node_id, peer.incarnation) == (of.node_id, of.incarnation) && of.node_id == Some(node_id) {
            peer.status_vector = Some(has.clone());
        }
    }
}

fn list(members: &Members) -> Vec<(MemberId, Member)> {
    members.iter().map(|(name, member)| (name, member.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ids::ChainHash;
    use crate::chain::sync::wire::{Heads, short};
    use crate::chain::vector::Head;

    fn addr(port: u16) -> Addr {
        format!("127.0.0.1:{port}").parse().expect("an address")
    }

    #[test]
    fn doors_remember_a_bounded_number_of_heads_together() {
        let head = Head { seq: 1, hash: ChainHash([1; 32]) };
        let name = |n: u32| Origin([n.to_be_bytes(); 4].concat().try_into().expect("16 bytes"));
        let count = u32::try_from(SESSION_HEADS_MAX / 8).expect("fits");
        let heads =
            Heads { base: None, changes: (0..count).map(|n| (name(n), head)).collect(), cuts: Vec::new() };
        let mut vector = Vector::default();
        heads.changes.iter().for_each(|(origin, head)| vector.insert(*origin, *head));
        let hello = Hello {
            network: [0; 8],
            node_id: 2,
            store_id: [0; 16],
            open_id: [0; 16],
            address: addr(2).to_string(),
        };
        let mut body =
            SyncMessage { heads: Some(heads), ..SyncMessage::quiet(hello.clone(), short(vector.digest())) };
        let mut door = Responder::default();
        door.on_request(&Vector::default(), &body);
        let config = NodeConfig {
            node_id: 1,
            network: "test".into(),
            listen: addr(1),
            advertise: addr(1),
            peers: Vec::new(),
            store_dir: ".".into(),
            sync_interval: Duration::from_secs(1),
            scrub_interval: Duration::from_hours(1),
            keys: None,
        };
        let mesh = Cluster::new(&config, hello, &Membership::default(), Instant::now(), Incidents::default());
        for n in 0..20 {
            body.hello.store_id = [n; 16];
            mesh.close_door(&body, door.clone());
        }
        assert_eq!(lock(&mesh.sessions).responders.len(), 8);
    }
}
