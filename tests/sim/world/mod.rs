//! A world: two to seven machines, a network between them, clients, faults, and one seed that decides everything.
//!
//! One thread, no sockets, no real time: events in simulated milliseconds. The nodes are the real store and the real
//! replica code, driven as `node` drives them; what travels between them are the real bytes. After a phase of faults
//! comes calm, in which the world must converge; then everything is held against what is known of it.
//! What is wrong panics; the trace, one line for each event, says how it came to it.

mod book;
mod check;
mod clients;
mod faults;
mod ledger;
mod machine;
mod network;
mod node;
mod readers;
mod scripting;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::disk::Dice;
use ledger::Ledger;
use machine::Machine;
use network::{Letter, Network};
use readers::Reader;

pub use clients::Op;
pub use faults::Fault;
pub use machine::Stop;

/// When every world begins, in Unix milliseconds.
pub const BASE_MS: u64 = 1_700_000_000_000;
/// Calm worlds converge within this time.
const CALM_MS_MAX: u64 = 200_000;

/// One line for each event.
pub type Trace = Arc<Mutex<Vec<String>>>;

/// What happens next somewhere. `life` names an opening: what was meant for an earlier one is dropped.
enum Event {
    /// A link's timer, or the end of its back-off.
    Exchange { node: usize, life: u64, peer: usize, token: u64, on_timer: bool },
    /// Something arrives.
    Letter(Letter),
    /// A request was taken in; now it is answered.
    Answer { node: usize, life: u64, answer: Box<network::Answering> },
    /// The asking side gives up.
    Fails { node: usize, life: u64, peer: usize, exchange: u64, why: &'static str },
    /// The writer looks into its inbox.
    Write { node: usize, life: u64 },
    /// The index is written.
    Index { node: usize, life: u64 },
    /// What is damaged is looked at.
    Heal { node: usize, life: u64 },
    /// A client acts.
    Client,
    /// Somebody lists everything.
    Look { node: usize },
    /// A reader of the feed reads on.
    Read { reader: usize },
    /// Something goes wrong.
    Fault,
    /// The network is whole again.
    Mended,
    /// A machine is switched on.
    Start { node: usize },
}

/// What a world had in it.
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
    }
}

/// How a world is made.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub machines: usize,
    /// How long things go wrong.
    pub trouble_ms: u64,
    /// Milliseconds between two actions of clients, at the average. 0: they do nothing by themselves.
    pub client_every_ms: u64,
    /// Milliseconds between two faults, at the average.
    pub fault_every_ms: u64,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Of a thousand messages on the wire, so many are lost.
    pub loss: u64,
    /// The longest usual way of a message.
    pub delay_ms: u64,
}

impl Plan {
    /// All of it decided by the seed: each world has some of the faults.
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
        }
    }

    /// Nothing happens by itself.
    pub fn quiet(seed: u64, machines: usize) -> Self {
        let faults = Vec::new();
        Plan {
            seed,
            machines,
            trouble_ms: 0,
            client_every_ms: 0,
            fault_every_ms: 0,
            faults,
            loss: 0,
            delay_ms: 5,
        }
    }
}

/// A small number as an index.
fn index(number: u64) -> usize {
    usize::try_from(number % (1 << 31)).expect("fits")
}

/// See the head of this file.
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
    /// A machine was copied while it ran, so two processes may have used one place.
    was_cloned: bool,
    calm: bool,
    trace: Trace,
    pub tally: Tally,
}

impl World {
    pub fn new(plan: Plan, trace: Trace) -> Self {
        let mut world = World {
            now: 0,
            dice: Dice(plan.seed),
            queue: BTreeMap::new(),
            number: 0,
            machines: (0..plan.machines).map(|_| Machine::new()).collect(),
            network: Network::new(plan.machines, plan.loss, plan.delay_ms),
            ledger: Ledger::default(),
            readers: Vec::new(),
            was_cloned: false,
            calm: false,
            trace,
            tally: Tally::default(),
            plan,
        };
        for node in 0..world.machines.len() {
            world.start(node);
        }
        world
    }

    /// One line of the trace.
    fn say(&self, what: impl AsRef<str>) {
        let line = format!("{:>7} ms  {}", self.now, what.as_ref());
        self.trace.lock().expect("nobody panics while writing a line").push(line);
    }

    /// Something is wrong.
    #[track_caller]
    fn wrong(&self, what: impl AsRef<str>) -> ! {
        self.say(format!("WRONG: {}", what.as_ref()));
        panic!("{}", what.as_ref());
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.number += 1;
        self.queue.insert((self.now + ms, self.number), event);
    }

    /// A number below `most`.
    fn below(&mut self, most: u64) -> u64 {
        self.dice.roll() % most.max(1)
    }

    /// A machine.
    fn any(&mut self) -> usize {
        let count = self.machines.len() as u64;
        index(self.below(count))
    }

    /// Everything up to a moment happens.
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

    /// So much time passes.
    pub fn pass(&mut self, ms: u64) {
        self.run_until(self.now + ms);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Exchange { node, life, peer, token, on_timer } => {
                if self.lives(node, life) {
                    self.begin_exchange(node, peer, token, on_timer);
                }
            }
            Event::Letter(letter) => self.arrives(letter),
            Event::Answer { node, life, answer } => {
                if self.lives(node, life) {
                    self.answer(node, *answer);
                }
            }
            Event::Fails { node, life, peer, exchange, why } => {
                if self.lives(node, life) {
                    self.exchange_fails(node, peer, exchange, why);
                }
            }
            Event::Write { node, life } => {
                if self.lives(node, life) {
                    self.write_due(node);
                }
            }
            Event::Index { node, life } => {
                if self.lives(node, life) {
                    self.write_index(node);
                }
            }
            Event::Heal { node, life } => {
                if self.lives(node, life) {
                    self.heal(node);
                }
            }
            Event::Client => self.client(),
            Event::Look { node } => self.look(node),
            Event::Read { reader } => self.read_on(reader),
            Event::Fault => self.fault(),
            Event::Mended => {
                self.network.join_all();
                self.say("the network is whole");
            }
            Event::Start { node } => self.start(node),
        }
    }

    fn lives(&self, node: usize, life: u64) -> bool {
        self.machines[node].up.is_some() && self.machines[node].lives == life
    }

    /// From the first event to the last check.
    pub fn run(&mut self) {
        self.say(format!("{:?}", self.plan));
        if self.plan.client_every_ms > 0 {
            self.after(10, Event::Client);
            self.after(1_000, Event::Look { node: 0 });
            self.seat_readers();
        }
        if !self.plan.faults.is_empty() {
            self.after(self.plan.fault_every_ms, Event::Fault);
        }
        self.pass(self.plan.trouble_ms);
        self.converge();
    }

    /// Calm: everything works, except that clocks stay wrong. Then all is checked.
    pub fn converge(&mut self) {
        self.calm = true;
        self.say("calm");
        self.network.calm();
        for node in 0..self.machines.len() {
            self.machines[node].room = chatchain::replica::write_ops::Space::ALL;
            self.machines[node].disk.is_good_for(None);
            self.start(node);
        }
        let end = self.now + CALM_MS_MAX;
        for node in 0..self.machines.len() {
            self.last_words(node);
        }
        while !self.has_converged() {
            if self.now >= end {
                self.wrong(format!("not converged after {CALM_MS_MAX} ms of calm: {}", self.state()));
            }
            self.pass(1_000);
        }
        self.say("converged");
        self.check_everything();
        self.calm = false;
    }
}
