//! Owns one machine of a world: its disk, its clock, and the node that runs on it while it is up.
//!
//! A model of the disk ([`Held`]) records which messages it must hold. Every opening of the store is checked against
//! it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chatchain::chain::ids::Origin;
use chatchain::chain::message::Digest;
use chatchain::chain::sync::Responder;
use chatchain::chain::sync::wire::{EntryRange, Hello};
use chatchain::chain::vector::Vector;
use chatchain::replica::committer::Committer;
use chatchain::replica::exchange::{Exchange, PlannedRequest};
use chatchain::replica::repair::Repair;
use chatchain::replica::scrub::Scrub;
use chatchain::replica::write_ops::{NewMessage, Space};
use chatchain::store::Store;
use uuid::Uuid;

use super::roster::Roster;
use crate::disk::{Disk, DurabilityModel, Images, Unsynced};

/// The identity of a message: its id and the digest of its content.
pub type Key = (Uuid, Digest);
/// A store id and the incarnation id of one run on it.
pub type Opening = ([u8; 16], [u8; 16]);

/// The intact entries on a disk.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// The message of each entry; `None` if it has none that this program can read.
    pub entries: BTreeMap<(Origin, u64), Option<Key>>,
    /// The number of entries of each message.
    pub copies: BTreeMap<Key, usize>,
    /// The entries after gaps: not visible in any log, but not lost.
    pub detached: BTreeMap<(Origin, u64), Option<Key>>,
    /// Entries whose bytes were damaged and are not repaired yet.
    pub damaged: BTreeSet<(Origin, u64)>,
}

impl Held {
    pub fn insert(&mut self, place: (Origin, u64), key: Option<Key>) {
        self.damaged.remove(&place);
        if self.entries.insert(place, key).is_none()
            && let Some(key) = key
        {
            *self.copies.entry(key).or_default() += 1;
        }
    }

    /// Whether the message is on the disk, in a log or after a gap.
    pub fn keeps(&self, key: &Key) -> bool {
        self.has(key) || self.detached.values().flatten().any(|detached| detached == key)
    }

    /// The bytes of the entry are lost.
    pub fn remove(&mut self, place: (Origin, u64)) {
        self.detached.remove(&place);
        self.forget(place);
    }

    /// The entry is no longer part of its log.
    fn forget(&mut self, place: (Origin, u64)) {
        let Some(Some(key)) = self.entries.remove(&place) else { return };
        let copies = self.copies.get_mut(&key).expect("was counted");
        *copies -= 1;
        if *copies == 0 {
            self.copies.remove(&key);
        }
    }

    pub fn has(&self, key: &Key) -> bool {
        self.copies.contains_key(key)
    }

    /// Removes all entries of a log from this seq on.
    pub fn cut(&mut self, origin: Origin, seq: u64) {
        let places: Vec<_> =
            self.entries.range((origin, seq)..=(origin, u64::MAX)).map(|(p, _)| *p).collect();
        for place in places {
            self.forget(place);
        }
        self.detached.retain(|(of, at), _| *of != origin || *at < seq); // these entries are now in branches, and may be damaged there
        self.damaged.retain(|(of, at)| *of != origin || *at < seq);
    }
}

/// A copy of a disk that was taken while the node ran.
#[derive(Debug, Clone, Default)]
pub struct Backup {
    pub bytes: Images,
    pub held: Held,
    pub may_fall_back: bool,
}

/// The state of a link between exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Waits for the timer, a change, or a request of the peer.
    Wait,
    /// Waits for a random part of a growing backoff, or a request of the peer.
    BackOff,
    /// An exchange is running.
    Busy,
}

/// The link to one peer.
pub struct PeerLink {
    pub exchange: Exchange,
    /// The running exchange and its number.
    pub in_flight: Option<(u64, PlannedRequest)>,
    /// The running side push, by its number as an exchange.
    pub side_push: Option<u64>,
    /// The ranges that its request asks for, and when it was sent.
    pub asked: (Vec<EntryRange>, u64),
    /// Events for this link with another token are out of date.
    pub token: u64,
    pub pause: Pause,
    /// The peer has sent a request during an exchange, so the next exchange starts at once.
    pub permit: bool,
    pub failures: u32,
    pub idle_rounds: u32,
}

impl Default for PeerLink {
    fn default() -> Self {
        PeerLink {
            exchange: Exchange::default(),
            in_flight: None,
            side_push: None,
            asked: (Vec::new(), 0),
            token: 0,
            pause: Pause::Wait,
            permit: false,
            failures: 0,
            idle_rounds: 0,
        }
    }
}

/// A client's request that waits for the writer.
#[derive(Debug)]
pub struct Request {
    pub messages: Vec<NewMessage>,
    /// The answer does not reach the client.
    pub answer_is_lost: bool,
}

/// A running node.
pub struct Running {
    pub store: Arc<Store>,
    pub committer: Committer,
    pub hello: Hello,
    pub started: u64,
    pub links: Vec<PeerLink>,
    pub roster: RefCell<Roster>,
    pub responders: BTreeMap<Opening, Responder>,
    pub repair: Repair,
    pub scrub: Scrub,
    pub inbox: Vec<Request>,
    /// The vector up to which entries were checked.
    pub seen: Vector,
    /// The messages that were listed in this incarnation.
    pub listed: BTreeSet<Key>,
    /// A write event is scheduled.
    pub write_is_due: bool,
}

/// How a node stops.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    /// The process is killed; the operating system keeps its writes.
    Kill,
    /// The power fails.
    Power(Unsynced),
    /// The node closes its files and exits.
    Cleanly,
}

/// A machine with its disk, its model of the disk, and its clock.
pub struct Machine {
    pub disk: Disk,
    pub durability: DurabilityModel,
    pub held: Held,
    pub up: Option<Running>,
    /// The number of incarnations so far, which identifies the current one.
    pub incarnations: u64,
    /// Offset of the clock from the world's, in milliseconds.
    pub clock: i64,
    /// Drift of the clock, in parts per million.
    pub drift: i64,
    pub space: Space,
    pub backup: Option<Backup>,
    /// When the disk last lost data.
    pub destroyed: Option<u64>,
    /// The next opening checks no pages, so that only a read detects damage.
    pub trusts_pages: bool,
    /// The machine answers requests but cannot connect to others.
    pub cannot_connect: bool,
    /// The newest pages may be damaged after a crash: then redb silently falls back by one commit.
    pub may_fall_back: bool,
    /// The entries that the last commit repaired. They are damaged again if that commit is lost.
    pub repaired_last: BTreeSet<(Origin, u64)>,
    /// The vector in the last message to a peer.
    pub advertised: Vector,
}

impl Machine {
    pub fn new() -> Self {
        Machine {
            disk: Disk::default(),
            durability: DurabilityModel::default(),
            held: Held::default(),
            up: None,
            incarnations: 0,
            clock: 0,
            drift: 0,
            space: Space::ALL,
            backup: None,
            destroyed: None,
            trusts_pages: false,
            cannot_connect: false,
            may_fall_back: false,
            repaired_last: BTreeSet::new(),
            advertised: Vector::default(),
        }
    }

    /// Applies the latest steps of the disk to the model of durable data.
    pub fn record_steps(&mut self) {
        for step in self.disk.take_steps() {
            self.durability.take(&step);
        }
    }

    /// Stops the node. Nothing it writes afterwards reaches the disk.
    pub fn stop(&mut self, how: Stop) {
        self.record_steps();
        self.disk.fail_after(if matches!(how, Stop::Cleanly) { None } else { Some(0) });
        drop(self.up.take());
        match how {
            Stop::Cleanly => self.record_steps(),
            Stop::Kill => self.disk = Disk::new(self.disk.bytes()),
            Stop::Power(unsynced) => {
                self.disk = self.durability.after_power_failure(unsynced);
                self.durability = DurabilityModel::new(self.disk.bytes());
            }
        }
    }

    /// A copy of the disk and its model.
    pub fn copy_of_disk(&self) -> Backup {
        Backup { bytes: self.disk.bytes(), held: self.held.clone(), may_fall_back: self.may_fall_back }
    }

    /// Replaces the disk with this copy.
    pub fn replace_disk(&mut self, backup: Backup, now: u64) {
        let Backup { bytes, held, may_fall_back } = backup;
        self.may_fall_back = may_fall_back;
        assert!(self.up.is_none(), "disks are replaced while the machine is off");
        self.disk = Disk::new(bytes.clone());
        self.durability = DurabilityModel::new(bytes);
        self.trusts_pages = false;
        self.held = held;
        self.advertised = Vector::default();
        self.destroyed = Some(now);
    }

    pub fn read_clock(&self, world: u64) -> u64 {
        let drifted = i64::try_from(world).expect("short") * self.drift / 1_000_000;
        super::BASE_MS.saturating_add(world).saturating_add_signed(self.clock + drifted)
    }
}
