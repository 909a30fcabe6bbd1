//! Owns one machine of a world: its disk, its clock, and, while it is up, the node that runs on it.
//!
//! What its disk holds is also kept as a model ([`Held`]), against which every opening is checked.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chatchain::chain::ids::Origin;
use chatchain::chain::message::Digest;
use chatchain::chain::sync::Responder;
use chatchain::chain::sync::wire::Hello;
use chatchain::chain::vector::Vector;
use chatchain::replica::committer::Committer;
use chatchain::replica::exchange::{Exchange, PlannedRequest};
use chatchain::replica::repair::Repair;
use chatchain::replica::scrub::Scrub;
use chatchain::replica::write_ops::{NewMessage, Space};
use chatchain::store::Store;
use uuid::Uuid;

use super::book::Book;
use crate::disk::{Disk, Images, Platter, Unsynced};

/// A message's identity.
pub type Key = (Uuid, Digest);
/// A store and its opening.
pub type Opening = ([u8; 16], [u8; 16]);

/// What is on a disk, intact, as far as logs cover it.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Which message stands where.
    pub entries: BTreeMap<(Origin, u64), Key>,
    /// How many copies of a message there are.
    pub copies: BTreeMap<Key, usize>,
    /// What stands behind gaps: in no log, but not lost.
    pub loose: BTreeMap<(Origin, u64), Key>,
    /// Entries whose bytes were spoilt and that are not whole again.
    pub spoilt: BTreeSet<(Origin, u64)>,
}

impl Held {
    pub fn insert(&mut self, place: (Origin, u64), key: Key) {
        self.spoilt.remove(&place);
        if self.entries.insert(place, key).is_none() {
            *self.copies.entry(key).or_default() += 1;
        }
    }

    /// Whether it is on the disk, if only behind a gap.
    pub fn keeps(&self, key: &Key) -> bool {
        self.has(key) || self.loose.values().any(|loose| loose == key)
    }

    /// Its bytes are gone.
    pub fn remove(&mut self, place: (Origin, u64)) {
        self.loose.remove(&place);
        self.forget(place);
    }

    /// It is in its log no more.
    fn forget(&mut self, place: (Origin, u64)) {
        let Some(key) = self.entries.remove(&place) else { return };
        let copies = self.copies.get_mut(&key).expect("was counted");
        *copies -= 1;
        if *copies == 0 {
            self.copies.remove(&key);
        }
    }

    pub fn has(&self, key: &Key) -> bool {
        self.copies.contains_key(key)
    }

    /// Forgets what a log held from here on.
    pub fn cut(&mut self, origin: Origin, seq: u64) {
        let places: Vec<_> =
            self.entries.range((origin, seq)..=(origin, u64::MAX)).map(|(p, _)| *p).collect();
        for place in places {
            self.forget(place);
        }
        self.loose.retain(|(of, at), _| *of != origin || *at < seq); // it stands in branches, and may be spoilt there
        self.spoilt.retain(|(of, at)| *of != origin || *at < seq);
    }
}

/// A copy of a disk that was taken while the node ran.
#[derive(Debug, Clone, Default)]
pub struct Backup {
    pub bytes: Images,
    pub held: Held,
    pub may_fall_back: bool,
}

/// What waits for a link's next exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// The timer, a change, or a word of the peer.
    Wait,
    /// A random part of a growing time, or a word of the peer.
    BackOff,
    /// An exchange is under way.
    Busy,
}

/// The link to one peer.
pub struct Talk {
    pub exchange: Exchange,
    /// The exchange under way.
    pub in_flight: Option<(u64, PlannedRequest)>,
    /// Events for this link that carry another number are out of date.
    pub token: u64,
    pub pause: Pause,
    /// The peer spoke to us while nobody waited.
    pub permit: bool,
    pub failures: u32,
    pub idle_rounds: u32,
}

impl Default for Talk {
    fn default() -> Self {
        Talk {
            exchange: Exchange::default(),
            in_flight: None,
            token: 0,
            pause: Pause::Wait,
            permit: false,
            failures: 0,
            idle_rounds: 0,
        }
    }
}

/// A client's request that waits to be written.
#[derive(Debug)]
pub struct Request {
    pub messages: Vec<NewMessage>,
    /// The answer does not reach the client.
    pub answer_is_lost: bool,
}

/// A node that runs.
pub struct Running {
    pub store: Arc<Store>,
    pub pen: Committer,
    pub hello: Hello,
    pub started: u64,
    pub talks: Vec<Talk>,
    pub book: RefCell<Book>,
    pub doors: BTreeMap<Opening, Responder>,
    pub heal: Repair,
    pub scrub: Scrub,
    pub inbox: Vec<Request>,
    /// The vector up to which entries were looked at.
    pub seen: Vector,
    /// What was listed in this life.
    pub listed: BTreeSet<Key>,
    /// The writer is to be called soon.
    pub write_is_due: bool,
}

/// How a node ends.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    /// The process is killed; the system keeps what was written.
    Kill,
    /// The power fails.
    Power(Unsynced),
    /// It is asked to, and closes its files.
    Cleanly,
}

/// See the head of this file.
pub struct Machine {
    pub disk: Disk,
    pub platter: Platter,
    pub held: Held,
    pub up: Option<Running>,
    /// Openings of its store so far.
    pub lives: u64,
    /// How far its clock is from the world's, in milliseconds.
    pub clock: i64,
    /// How much faster it goes, in millionths.
    pub drift: i64,
    pub room: Space,
    pub backup: Option<Backup>,
    /// When something on its disk was last destroyed.
    pub destroyed: Option<u64>,
    /// The next opening checks no pages, so that damage is met by whoever reads.
    pub opens_carelessly: bool,
    /// It can be asked, and answers, but not ask.
    pub reaches_nobody: bool,
    /// Its newest pages may be damaged after a crash: then redb silently goes back one commit.
    pub may_fall_back: bool,
    /// What the last commit made whole: it is damaged again without it.
    pub mended_last: BTreeSet<(Origin, u64)>,
    /// What its latest message said of its logs.
    pub advertised: Vector,
}

impl Machine {
    pub fn new() -> Self {
        Machine {
            disk: Disk::default(),
            platter: Platter::default(),
            held: Held::default(),
            up: None,
            lives: 0,
            clock: 0,
            drift: 0,
            room: Space::ALL,
            backup: None,
            destroyed: None,
            opens_carelessly: false,
            reaches_nobody: false,
            may_fall_back: false,
            mended_last: BTreeSet::new(),
            advertised: Vector::default(),
        }
    }

    /// Takes note of what was written since.
    pub fn fold(&mut self) {
        for step in self.disk.take_steps() {
            self.platter.take(&step);
        }
    }

    /// Ends the node. Nothing more of it reaches the disk.
    pub fn stop(&mut self, how: Stop) {
        self.fold();
        self.disk.is_good_for(if matches!(how, Stop::Cleanly) { None } else { Some(0) });
        drop(self.up.take());
        match how {
            Stop::Cleanly => self.fold(),
            Stop::Kill => self.disk = Disk::new(self.disk.bytes()),
            Stop::Power(unsynced) => {
                self.disk = self.platter.after_power_failure(unsynced);
                self.platter = Platter::new(self.disk.bytes());
            }
        }
    }

    /// What is on its disk now.
    pub fn copy_of_disk(&self) -> Backup {
        Backup { bytes: self.disk.bytes(), held: self.held.clone(), may_fall_back: self.may_fall_back }
    }

    /// Another disk, with this on it.
    pub fn replace_disk(&mut self, backup: Backup, now: u64) {
        let Backup { bytes, held, may_fall_back } = backup;
        self.may_fall_back = may_fall_back;
        assert!(self.up.is_none(), "disks are replaced while the machine is off");
        self.disk = Disk::new(bytes.clone());
        self.platter = Platter::new(bytes);
        self.opens_carelessly = false;
        self.held = held;
        self.advertised = Vector::default();
        self.destroyed = Some(now);
    }

    pub fn clock_says(&self, world: u64) -> u64 {
        let drifted = i64::try_from(world).expect("short") * self.drift / 1_000_000;
        super::BASE_MS.saturating_add(world).saturating_add_signed(self.clock + drifted)
    }
}
