//! A simulated world: two to seven machines, their network, clients and faults, all driven by one seed.
//!
//! One thread, no sockets, no real time: events happen at simulated milliseconds. The nodes run the real store and
//! replica code, driven as `node` drives it, and exchange the real bytes. After a phase of faults comes a calm phase
//! without faults, in which the world must converge; then all messages are checked against the ledger. A violation
//! panics. The trace, one line per event, shows what led to it.

mod bad_peer;
mod check;
mod clients;
mod faults;
mod ledger;
mod link_quality;
mod machine;
mod network;
mod node;
mod readers;
mod roster;
mod scripting;
mod side_push;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::disk::Dice;
use bad_peer::BadPeer;
use ledger::Ledger;
use machine::Machine;
use network::{Network, Packet};
use readers::Reader;

pub use bad_peer::Attack;
pub use clients::Op;
pub use faults::Fault;
pub use link_quality::{HalfOpen, LinkQuality};
pub use machine::Stop;

/// The start of every world, in Unix milliseconds.
pub const BASE_MS: u64 = 1_700_000_000_000;
/// A calm world must converge within this time.
const CALM_MS_MAX: u64 = 200_000;

/// One line for each event.
pub type Trace = Arc<Mutex<Vec<String>>>;

/// A scheduled event. Events for an earlier incarnation of a node are dropped.
enum Event {
    /// A link starts an exchange: its timer has fired, or its backoff has ended.
    Exchange { node: usize, incarnation: u64, peer: usize, token: u64, on_timer: bool },
    /// A packet arrives.
    Packet(Packet),
    /// A node answers a request that it has admitted before.
    Answer { node: usize, incarnation: u64, answer: Box<network::Answering> },
    /// The initiator of an exchange gives up.
    Fails { node: usize, incarnation: u64, peer: usize, exchange: u64, why: &'static str },
    /// The writer commits its inbox.
    Write { node: usize, incarnation: u64 },
    /// The index is flushed.
    Index { node: usize, incarnation: u64 },
    /// A node checks its damaged entries.
    Repair { node: usize, incarnation: u64 },
    /// A client acts.
    Client,
    /// A client lists the whole history of a node.
    List { node: usize },
    /// A reader of the feed continues.
    Read { reader: usize },
    /// A random fault happens.
    Fault,
    /// All links of the network work again.
    NetworkRestored,
    /// A machine starts.
    Start { node: usize },
    /// The bad peer answers this request, or sends a request of its own.
    BadPeer { packet: Option<Packet> },
}

/// Counts of what happened in a world.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub acknowledged: u64,
    pub lost: u64,
    pub crashes: u64,
    pub faults: u64,
    pub exchanges: u64,
    pub cuts: u64,
    pub salvages: u64,
    pub listings: u64,
    /// Entries of a bad peer that nodes admitted, counted at each node.
    pub forged: u64,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.crashes += other.crashes;
        self.faults += other.faults;
        self.exchanges += other.exchanges;
        self.cuts += other.cuts;
        self.salvages += other.salvages;
        self.listings += other.listings;
        self.forged += other.forged;
    }
}

/// The parameters of a world.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub machines: usize,
    /// The duration of the phase with faults.
    pub trouble_ms: u64,
    /// Average milliseconds between two client actions. 0: clients do nothing by themselves.
    pub client_every_ms: u64,
    /// Average milliseconds between two faults.
    pub fault_every_ms: u64,
    /// The kinds of faults that happen.
    pub faults: Vec<Fault>,
    /// Packets lost, per thousand.
    pub loss: u64,
    /// The longest normal delay of a packet.
    pub delay_ms: u64,
    /// A further machine is a bad peer with these attacks.
    pub attacks: Vec<Attack>,
}

impl Plan {
    /// Draws all parameters from the seed. Each world has some kinds of faults.
    pub fn from_seed(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9) ^ 0x5eed);
        let machines = [2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 6, 7][index(dice.roll() % 12)];
        let mut faults: Vec<Fault> = Fault::ALL.iter().copied().filter(|_| dice.one_in(2)).collect();
        if faults.is_empty() {
            faults.push(Fault::ALL[index(dice.roll()) % Fault::ALL.len()]);
        }
        Plan {
            seed,
            machines,
            trouble_ms: 5_000 + dice.roll() % 40_000,
            client_every_ms: 100 + dice.roll() % 900,
            fault_every_ms: 500 + dice.roll() % 4_000,
            faults,
            loss: [0, 0, 10, 100, 300][index(dice.roll() % 5)],
            delay_ms: [2, 20, 200, 2_000][index(dice.roll() % 4)],
            attacks: Self::any_attacks(&mut dice),
        }
    }

    /// One world in six has a bad peer.
    fn any_attacks(dice: &mut Dice) -> Vec<Attack> {
        if !dice.one_in(6) {
            return Vec::new();
        }
        let mut attacks: Vec<Attack> = Attack::ALL.iter().copied().filter(|_| dice.one_in(2)).collect();
        attacks.push(Attack::ALL[index(dice.roll()) % Attack::ALL.len()]);
        attacks
    }

    /// No client actions and no faults happen by themselves.
    pub fn quiet(seed: u64, machines: usize) -> Self {
        let (faults, attacks) = (Vec::new(), Vec::new());
        Plan {
            seed,
            machines,
            trouble_ms: 0,
            client_every_ms: 0,
            fault_every_ms: 0,
            faults,
            loss: 0,
            delay_ms: 5,
            attacks,
        }
    }
}

/// A small number as an index.
fn index(number: u64) -> usize {
    usize::try_from(number % (1 << 31)).expect("fits")
}

/// All machines, their network, and the queue of future events.
pub struct World {
    plan: Plan,
    now: u64,
    dice: Dice,
    queue: BTreeMap<(u64, u64), Event>,
    number: u64,
    machines: Vec<Machine>,
    network: Network,
    ledger: Ledger,
    readers: Vec<Reader>,
    /// It is the last machine, which has no node.
    bad_peer: Option<BadPeer>,
    /// A machine was copied while it ran, so two processes may have written to one log.
    was_cloned: bool,
    calm: bool,
    trace: Trace,
    pub tally: Tally,
}

impl World {
    pub fn new(plan: Plan, trace: Trace) -> Self {
        let machines = plan.machines + usize::from(!plan.attacks.is_empty());
        let mut world = World {
            now: 0,
            dice: Dice(plan.seed),
            queue: BTreeMap::new(),
            number: 0,
            machines: (0..machines).map(|_| Machine::new()).collect(),
            network: Network::new(machines, plan.loss, plan.delay_ms),
            ledger: Ledger::default(),
            readers: Vec::new(),
            bad_peer: None,
            was_cloned: false,
            calm: false,
            trace,
            tally: Tally::default(),
            plan,
        };
        if !world.plan.attacks.is_empty() {
            world.start_bad_peer();
        }
        for node in world.honest() {
            world.start(node);
        }
        world
    }

    /// Adds a line to the trace.
    fn say(&self, what: impl AsRef<str>) {
        let line = format!("{:>7} ms  {}", self.now, what.as_ref());
        self.trace.lock().expect("no thread panics with the lock").push(line);
    }

    /// Reports a violation.
    #[track_caller]
    fn violation(&self, what: impl AsRef<str>) -> ! {
        self.say(format!("VIOLATION: {}", what.as_ref()));
        panic!("{}", what.as_ref());
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.number += 1;
        self.queue.insert((self.now + ms, self.number), event);
    }

    /// A random number below `most`.
    fn below(&mut self, most: u64) -> u64 {
        self.dice.roll() % most.max(1)
    }

    /// A random machine that is an honest node.
    fn any(&mut self) -> usize {
        let count = self.honest().len() as u64;
        index(self.below(count))
    }

    /// Runs all events up to a time.
    pub fn run_until(&mut self, moment: u64) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > moment {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.happen(event);
        }
        self.now = moment;
    }

    /// Runs all events of the next `ms` milliseconds.
    pub fn pass(&mut self, ms: u64) {
        self.run_until(self.now + ms);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Exchange { node, incarnation, peer, token, on_timer } => {
                if self.is_current(node, incarnation) {
                    self.begin_exchange(node, peer, token, on_timer);
                }
            }
            Event::Packet(packet) => self.arrives(packet),
            Event::Answer { node, incarnation, answer } => {
                if self.is_current(node, incarnation) {
                    self.answer(node, *answer);
                }
            }
            Event::Fails { node, incarnation, peer, exchange, why } => {
                if self.is_current(node, incarnation) {
                    self.exchange_fails(node, peer, exchange, why);
                }
            }
            Event::Write { node, incarnation } => {
                if self.is_current(node, incarnation) {
                    self.write_due(node);
                }
            }
            Event::Index { node, incarnation } => {
                if self.is_current(node, incarnation) {
                    self.write_index(node);
                }
            }
            Event::Repair { node, incarnation } => {
                if self.is_current(node, incarnation) {
                    self.repair(node);
                }
            }
            Event::Client => self.client(),
            Event::List { node } => self.list_due(node),
            Event::Read { reader } => self.read_on(reader),
            Event::Fault => self.fault(),
            Event::NetworkRestored => {
                self.network.join_all();
                self.say("the network is whole");
            }
            Event::Start { node } => self.start(node),
            Event::BadPeer { packet: Some(request) } => self.bad_peer_answers(&request),
            Event::BadPeer { packet: None } => self.bad_peer_asks(),
        }
    }

    fn is_current(&self, node: usize, incarnation: u64) -> bool {
        self.machines[node].up.is_some() && self.machines[node].incarnations == incarnation
    }

    /// Runs the whole world: the phase with faults, the calm phase, and the checks.
    pub fn run(&mut self) {
        self.say(format!("{:?}", self.plan));
        if self.plan.client_every_ms > 0 {
            self.after(10, Event::Client);
            self.after(1_000, Event::List { node: 0 });
            self.start_readers();
        }
        if !self.plan.faults.is_empty() {
            self.after(self.plan.fault_every_ms, Event::Fault);
        }
        self.pass(self.plan.trouble_ms);
        self.converge();
    }

    /// The calm phase: all faults end except wrong clocks, and the world must converge. Then everything is checked.
    pub fn converge(&mut self) {
        self.calm = true;
        self.say("calm");
        self.network.calm();
        if let Some(bad_peer) = &mut self.bad_peer {
            bad_peer.is_calm = true;
        }
        for node in self.honest() {
            self.machines[node].space = chatchain::replica::write_ops::Space::ALL;
            self.machines[node].disk.fail_after(None);
            self.start(node);
        }
        let end = self.now + CALM_MS_MAX;
        for node in self.honest() {
            self.send_final_message(node);
        }
        while !self.has_converged() {
            if self.now >= end {
                self.violation(format!("not converged after {CALM_MS_MAX} ms of calm: {}", self.state()));
            }
            self.pass(1_000);
        }
        self.say("converged");
        self.check_everything();
        self.calm = false;
    }
}
