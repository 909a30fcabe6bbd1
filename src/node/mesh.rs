//! Owns what this node knows of the others: its book of peers, the open doors, who is being asked for what.
//!
//! One lock, never held across a wait. What is known of a peer is its latest word; it is dropped when the
//! peer's store was opened anew, so that nobody is counted as holding what it may have lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::care::Progress;
use super::notes::Notes;
use super::peer::{Opening, Peer, SUSPECT};
use crate::api::address::Addr;
use crate::api::network::{NodeId, PeerStatus};
use crate::api::time::Time;
use crate::chain::place::Origin;
use crate::chain::sync::Door;
use crate::chain::vector::Vector;
use crate::chain::wire::{Body, Hello, Range};
use crate::client::Client;
use crate::config::NodeConfig;
use crate::replica::heal::Heal;

/// Stores that may have a door here at the same time. At the bound the one unused for longest is closed,
/// which costs its peer one full vector.
const DOORS_MAX: usize = 256;
/// Peers that were not configured but came by themselves. At the bound the one silent for longest makes room; if none
/// is silent, further ones are served without being listed.
const STRANGERS_MAX: usize = 64;
/// Heads that all open doors may remember together; beyond it they are closed as above. It bounds what peers can make
/// us keep by claiming logs that nobody has, to some 100 MB, and is far above what honest ones need.
const DOOR_HEADS_MAX: usize = 1 << 20;
/// A peer that was heard of within this time is expected to push its own log.
const HEARD: Duration = Duration::from_secs(5);
/// A node that has just started is about to hear from its peers.
const STARTING: Duration = Duration::from_secs(3);
/// For so long one peer alone is asked for a log.
const CLAIM: Duration = Duration::from_secs(5);

/// See the head of this file.
pub struct Mesh {
    /// Who we are.
    pub hello: Hello,
    /// The way to the others.
    pub client: Client,
    /// When this process began to serve.
    pub started: Instant,
    /// What happened.
    pub notes: Notes,
    /// How far the scrub is.
    pub scrub: Progress,
    book: Mutex<Book>,
    heal: Mutex<Heal>,
    /// Counts the times that a peer said something new of what it holds.
    held: watch::Sender<u64>,
}

#[derive(Default)]
struct Book {
    peers: Vec<Peer>,
    doors: HashMap<Opening, (Door, Instant)>,
    claims: HashMap<Origin, (usize, Instant)>,
}

impl Book {
    fn strangers(&self) -> usize {
        self.peers.iter().filter(|peer| !peer.configured).count()
    }

    /// Makes room in a full list of strangers, so that those who came once do not shut out those who come now.
    fn forget_a_silent_stranger(&mut self) {
        if self.strangers() < STRANGERS_MAX {
            return;
        }
        let silent = |peer: &Peer| peer.heard.is_none_or(|heard| heard.elapsed() >= SUSPECT);
        let strangers = self.peers.iter().enumerate().filter(|(_, peer)| !peer.configured && silent(peer));
        if let Some((index, _)) = strangers.min_by_key(|(_, peer)| peer.heard) {
            self.peers.remove(index); // configured ones stand before it and keep their index
        }
    }
}

fn lock(mutex: &Mutex<Book>) -> MutexGuard<'_, Book> {
    // Every change below is complete before anything that could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mesh {
    /// A mesh that knows only the configured peers.
    /// `started`: when the process began to serve.
    pub fn new(config: &NodeConfig, hello: Hello, started: Instant, notes: Notes) -> Self {
        let peers =
            config.peers.iter().map(|peer| Peer::new(peer.addr.clone(), true, peer.node_id)).collect();
        let book = Mutex::new(Book { peers, ..Book::default() });
        Mesh {
            hello,
            client: Client::new(config.keys.as_ref()),
            started,
            notes,
            scrub: Progress::default(),
            book,
            heal: Mutex::default(),
            held: watch::Sender::new(0),
        }
    }

    /// How many peers are asked: the configured ones, by index.
    pub fn links(&self) -> usize {
        lock(&self.book).peers.iter().filter(|peer| peer.configured).count()
    }

    /// Where a peer is, and what wakes the link to it.
    pub fn link(&self, index: usize) -> (Addr, Arc<Notify>) {
        let book = lock(&self.book);
        (book.peers[index].addr.clone(), book.peers[index].wake.clone())
    }

    /// Whether a message comes from this very process.
    pub fn is_self(&self, body: &Body) -> bool {
        body.hello.is_ours(&self.hello)
    }

    /// Whether a message comes from another process with a copy of this store, and it is on us to take a new name.
    pub fn is_copied(&self, body: &Body) -> bool {
        body.hello.is_copied(&self.hello)
    }

    /// A peer turned out to be this node; it is not shown as a peer.
    pub fn found_self(&self, index: usize) {
        lock(&self.book).peers[index].is_self = true;
    }

    /// A peer answered an exchange.
    pub fn answered(&self, index: usize, reply: &Body, theirs: Option<&Vector>, rtt: Duration, now_ms: u64) {
        self.heal().answered(index, self.running_ms());
        let mut book = lock(&self.book);
        let peer = &mut book.peers[index];
        let is_news = peer.spoke(reply, theirs, &self.notes);
        peer.answered = Some(Instant::now());
        (peer.last_sync, peer.rtt, peer.error) = (Some(Time(now_ms)), Some(rtt), None);
        peer.is_self = false;
        // It may have come by itself before, under the address that it tells rather than the configured one.
        book.peers.retain(|peer| peer.configured || !peer.is_store(&reply.hello));
        drop(book);
        self.tell(is_news);
    }

    fn tell(&self, is_news: bool) {
        if is_news {
            self.held.send_modify(|count| *count += 1);
        }
    }

    /// Changes when a peer may hold more than before.
    pub fn held(&self) -> watch::Receiver<u64> {
        self.held.subscribe()
    }

    /// An exchange with a peer failed.
    pub fn failed(&self, index: usize, why: String) {
        lock(&self.book).peers[index].error = Some(why);
    }

    /// A peer spoke to us: it is not to be waited for any longer.
    pub fn heard(&self, request: &Body, theirs: Option<&Vector>) {
        let Ok(addr) = request.hello.address.parse::<Addr>() else { return };
        let mut book = lock(&self.book);
        let known = |peer: &Peer| peer.is_store(&request.hello) || peer.addr == addr;
        let index = if let Some(index) = book.peers.iter().position(known) {
            index
        } else {
            book.forget_a_silent_stranger();
            if book.strangers() >= STRANGERS_MAX {
                return;
            }
            // It may be one that is configured under another name and is not waited for at the moment.
            let unmet = book.peers.iter().filter(|peer| peer.configured && peer.opening.is_none());
            unmet.for_each(|peer| peer.wake.notify_one());
            book.peers.push(Peer::new(addr, false, Some(request.hello.node_id)));
            book.peers.len() - 1
        };
        let peer = &mut book.peers[index];
        let is_news = peer.spoke(request, theirs, &self.notes);
        peer.heard = Some(Instant::now());
        if peer.error.is_some() || peer.answered.is_none() {
            peer.wake.notify_one();
        }
        drop(book);
        self.tell(is_news);
    }

    /// Takes the state of a peer's exchanges with us, to be given back with [`Mesh::close_door`].
    pub fn open_door(&self, body: &Body) -> Door {
        let key = (body.hello.store_id, body.hello.open_id);
        lock(&self.book).doors.remove(&key).map(|(door, _)| door).unwrap_or_default()
    }

    /// See [`Mesh::open_door`].
    pub fn close_door(&self, body: &Body, door: Door) {
        let mut book = lock(&self.book);
        let heads = |door: &Door| door.theirs().map_or(0, Vector::origins);
        let mut sum = heads(&door) + book.doors.values().map(|(door, _)| heads(door)).sum::<usize>();
        while book.doors.len() >= DOORS_MAX || (sum > DOOR_HEADS_MAX && !book.doors.is_empty()) {
            let oldest = book.doors.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            let closed = oldest.and_then(|key| book.doors.remove(&key));
            sum -= closed.map_or(0, |(door, _)| heads(&door));
        }
        let key = (body.hello.store_id, body.hello.open_id);
        book.doors.insert(key, (door, Instant::now()));
    }

    /// Whether a log's owner is about to push it to us.
    pub fn owner_pushes(&self, origin: Origin) -> bool {
        let starting = self.started.elapsed() < STARTING;
        let pushes = |peer: &Peer| {
            let heard = peer.heard.is_some_and(|heard| heard.elapsed() < HEARD);
            peer.own == Some(origin) && (heard || (starting && peer.answered.is_some()))
        };
        lock(&self.book).peers.iter().any(pushes)
    }

    /// Whether this link may ask for a log now; if so, others do not for a while.
    pub fn claim(&self, origin: Origin, index: usize) -> bool {
        let mut book = lock(&self.book);
        match book.claims.get(&origin) {
            Some((other, since)) if *other != index && since.elapsed() < CLAIM => false,
            _ => {
                book.claims.insert(origin, (index, Instant::now()));
                true
            }
        }
    }

    /// The link is done asking.
    pub fn release(&self, index: usize) {
        lock(&self.book).claims.retain(|_, (holder, since)| *holder != index && since.elapsed() < CLAIM);
    }

    /// Milliseconds since this process began to serve: a clock that only goes forward.
    pub fn running_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Damaged entries that a peer with this vector may have whole.
    pub fn mends(&self, node: &super::Node, theirs: Option<&Vector>) -> Vec<Range> {
        let wounds = node.store().log().wounds();
        if wounds.count() == 0 {
            return Vec::new();
        }
        let logs = node.logs();
        let mut heal = self.heal();
        heal.look(wounds, &logs, self.running_ms());
        heal.ranges(logs.vector(), theirs)
    }

    /// Number of entries that are damaged or missing here, as far as found.
    pub fn damaged(&self, node: &super::Node) -> u64 {
        let mut heal = self.heal();
        heal.look(node.store().log().wounds(), &node.logs(), self.running_ms());
        heal.count() as u64
    }

    /// Where logs are to be cut, since nobody has what is missing there.
    pub fn hopeless(&self, node: &super::Node) -> Vec<(Origin, u64)> {
        if self.damaged(node) == 0 {
            return Vec::new();
        }
        let peers = self.links();
        self.heal().hopeless(peers, self.running_ms())
    }

    /// What is done about damage here.
    pub fn heal(&self) -> MutexGuard<'_, Heal> {
        self.heal.lock().unwrap_or_else(PoisonError::into_inner) // each change of it is complete
    }

    /// A log of which a peer has other content than we.
    pub fn forked(&self, origin: Origin, peer: &str) {
        self.notes
            .add(format!("log {origin} was forked: {peer} had other content than this node; both are kept"));
    }

    /// An entry that nobody has any more.
    pub fn lost(&self, origin: Origin, seq: u64) {
        self.notes
            .add(format!("entry {seq} of log {origin} was damaged here, and no peer had it: it is lost"));
    }

    /// What an operator should know of the peers.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.notes.lines();
        if lock(&self.book).peers.is_empty() {
            warnings.push("this node has no peers: its messages are on no other machine".into());
        }
        warnings
    }

    /// How many nodes there are, this one included.
    pub fn members(&self) -> usize {
        let book = lock(&self.book);
        let mut ids = vec![self.hello.node_id];
        let mut unmet = 0;
        for peer in book.peers.iter().filter(|peer| !peer.is_self) {
            match peer.node_id {
                Some(id) if ids.contains(&id) => {}
                Some(id) => ids.push(id),
                None => unmet += 1,
            }
        }
        ids.len() + unmet
    }

    /// The nodes that are known to have a message on disk. `copies`: where it stands, once or more often; `here`: this node
    /// has it; `mine`: our logs. A node counts once, under however many addresses, and so does a store.
    pub fn holders(&self, copies: &[Range], here: bool, mine: &Vector) -> Vec<NodeId> {
        let book = lock(&self.book);
        let mut found: Vec<(NodeId, [u8; 16])> = Vec::new();
        if here {
            found.push((self.hello.node_id, self.hello.store_id));
        }
        for peer in book.peers.iter().filter(|peer| !peer.is_self) {
            let (Some(id), Some((store, _))) = (peer.node_id, peer.opening) else { continue };
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
        for theirs in lock(&self.book).peers.iter().filter_map(|peer| peer.theirs.as_ref()) {
            union.merge(theirs);
        }
        union
    }

    /// The peers as they are shown, each with how many entries of `all` it lacks.
    pub fn statuses(&self, all: &Vector) -> Vec<PeerStatus> {
        let book = lock(&self.book);
        book.peers.iter().filter(|peer| !peer.is_self).map(|peer| peer.status(all)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::place::ChainHash;
    use crate::chain::vector::Head;
    use crate::chain::wire::{Heads, short};

    fn addr(port: u16) -> Addr {
        format!("127.0.0.1:{port}").parse().expect("an address")
    }

    #[test]
    fn a_full_list_of_silent_strangers_makes_room_for_who_comes_now() {
        let mut book = Book::default();
        book.peers.push(Peer::new(addr(1), true, None));
        book.peers.extend((0..STRANGERS_MAX).map(|_| Peer::new(addr(2), false, None)));
        book.forget_a_silent_stranger();
        assert_eq!((book.strangers(), book.peers.len()), (STRANGERS_MAX - 1, STRANGERS_MAX));
        book.peers.push(Peer { heard: Some(Instant::now()), ..Peer::new(addr(3), false, None) });
        book.peers.retain(|peer| peer.heard.is_some());
        book.forget_a_silent_stranger();
        assert_eq!(book.strangers(), 1, "who speaks stays");
    }

    #[test]
    fn doors_remember_a_bounded_number_of_heads_together() {
        let head = Head { seq: 1, hash: ChainHash([1; 32]) };
        let name = |n: u32| Origin([n.to_be_bytes(); 4].concat().try_into().expect("16 bytes"));
        let count = u32::try_from(DOOR_HEADS_MAX / 8).expect("fits");
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
        let mut body = Body { heads: Some(heads), ..Body::quiet(hello.clone(), short(vector.digest())) };
        let mut door = Door::default();
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
        let mesh = Mesh::new(&config, hello, Instant::now(), Notes::default());
        for n in 0..20 {
            body.hello.store_id = [n; 16];
            mesh.close_door(&body, door.clone());
        }
        assert_eq!(lock(&mesh.book).doors.len(), 8);
    }
}
