//! The plan of an episode: which faults happen when, as a pure function of the seed and the allowed kinds of faults.
//!
//! Knows neither processes nor clocks. A fault has one or two steps, of which the second undoes the first. Until a
//! fault is undone, no other fault affects its nodes, except those that affect all nodes. `faults` skips a step that is
//! not possible, for example to freeze a node that is down.

use std::fmt;
use std::time::Duration;

use crate::support::rng::SeededRng;

/// The most nodes of an episode: 5 of the plan, and a copy of one that may join.
pub const NODES_MAX: usize = 6;
/// The first fault starts this long after the clients.
const LEAD_MS: u64 = 1_000;
const FAULT_MS_MIN: u64 = 600;
const FAULT_MS_MAX: u64 = 3_500;
const PAUSE_MS_MAX: u64 = 1_500;
/// Pause before and after damage to all nodes, so that they can converge first and start again afterwards.
const QUIET_MS: u64 = 1_000;

/// A kind of fault, by the name that the flags use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Kind {
    /// `kill -9` of one node.
    Kill,
    /// `kill -9` of all nodes at the same moment.
    KillAll,
    /// A node is paused (SIGSTOP) for seconds.
    Freeze,
    /// A node is killed again and again while it starts.
    RestartLoop,
    /// `kill -9` of the proxy.
    KillProxy,
    /// A node's network link is down.
    LinkDown,
    /// A node cannot send to another one, but can receive from it.
    OneWay,
    /// Two nodes cannot reach each other, but both reach all others.
    Pair,
    /// Two groups of nodes cannot reach each other; clients reach both.
    Split,
    /// A node's disk is full for a while.
    DiskFull,
    /// A node's file system is read-only for a while, as after an error.
    ReadOnly,
    /// Each fsync of a node takes long.
    SlowSync,
    /// Each fsync of a node fails.
    FailSync,
    /// A node has to reopen its store, and each read of its files fails.
    FailRead,
    /// A node loses its directory.
    Wipe,
    /// A node's directory is restored from an older copy.
    Rollback,
    /// A copy of a node's directory is started as a further node.
    Copy,
    /// A node's index.redb is damaged.
    DamageIndex,
    /// A node's log.redb is damaged.
    DamageLog,
    /// The log.redb of every node is damaged, each in a different part.
    DamageAll,
}

impl Kind {
    pub const ALL: [Kind; 20] = [
        Kind::Kill,
        Kind::KillAll,
        Kind::Freeze,
        Kind::RestartLoop,
        Kind::KillProxy,
        Kind::LinkDown,
        Kind::OneWay,
        Kind::Pair,
        Kind::Split,
        Kind::DiskFull,
        Kind::ReadOnly,
        Kind::SlowSync,
        Kind::FailSync,
        Kind::FailRead,
        Kind::Wipe,
        Kind::Rollback,
        Kind::Copy,
        Kind::DamageIndex,
        Kind::DamageLog,
        Kind::DamageAll,
    ];

    /// What this kind of fault needs from the machine.
    pub fn needs(self) -> Option<Need> {
        match self {
            Kind::LinkDown | Kind::OneWay | Kind::Pair | Kind::Split => Some(Need::Namespaces),
            Kind::DiskFull => Some(Need::Mounts),
            Kind::ReadOnly => Some(Need::Remounts),
            Kind::SlowSync | Kind::FailSync | Kind::FailRead => Some(Need::Strace),
            _ => None,
        }
    }

    /// Whether this kind of fault affects the node on the small file system.
    fn is_of_small_disk(self) -> bool {
        matches!(self, Kind::DiskFull | Kind::ReadOnly)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = clap::ValueEnum::to_possible_value(self).expect("no kind is hidden");
        f.write_str(named.get_name())
    }
}

/// A capability that not every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Network namespaces: root and `ip`.
    Namespaces,
    /// A small file system: root and `mount`.
    Mounts,
    /// `strace`, and a kernel that lets it attach.
    Strace,
    /// Both: a file system can become read-only only when no file is open for writing.
    Remounts,
}

/// All decisions that are made before an episode starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    pub clients: usize,
    /// The node whose directory is on a small file system.
    pub small_disk: Option<usize>,
    /// In the order of their times.
    pub steps: Vec<Step>,
    /// When the phase without faults begins.
    pub calm: Duration,
}

/// One action at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub at: Duration,
    pub kind: Kind,
    pub action: Action,
}

/// What is done to nodes, which are identified by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Kill(usize),
    KillAll,
    Start(usize),
    StartAll,
    Freeze(usize),
    Thaw(usize),
    /// The node is killed and started, and killed again after each of these pauses; finally it stays up.
    RestartLoop(usize, Vec<Duration>),
    KillProxy,
    StartProxy,
    LinkDown(usize),
    LinkUp(usize),
    /// In each pair, the first node cannot send to the second.
    Block(Vec<(usize, usize)>),
    Unblock(Vec<(usize, usize)>),
    /// The number of MiB that stay free.
    Fill(usize, u64),
    Free(usize),
    ReadOnly(usize),
    Writable(usize),
    SlowSync(usize, Duration),
    FailSync(usize),
    FailRead(usize),
    Untrace(usize),
    Wipe(usize),
    /// A copy of the directory is taken. True: the process is frozen meanwhile; false: killed and started again.
    BackUp(usize, bool),
    Restore(usize),
    Copy(usize, bool),
    DamageIndex(usize, Vec<Damage>),
    DamageLog(usize, StopMode, Vec<Damage>),
    DamageAll(StopMode, Vec<Vec<Damage>>),
}

/// How nodes end before their files are damaged. After a kill, the whole file is checked when it is opened; after a
/// clean stop it is not, and the damage is found when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    Killed,
    Stopped,
}

/// Damage to a file. `at` is a position in units of 1/65,536 of its length, or of its records in file order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    FlipByte { at: u16, mask: u8 },
    FlipRecord { at: u16, mask: u8 },
    ZeroPage { at: u16 },
    Truncate { at: u16 },
}

impl Plan {
    /// The plan of this seed, with only these kinds of faults.
    pub fn draw(seed: u64, calm: Duration, kinds: &[Kind]) -> Plan {
        let mut rng = SeededRng::of(seed.wrapping_mul(0x9E37_79B9).wrapping_add(17));
        let nodes = 3 + pick(&mut rng, 3);
        let clients = 4 + pick(&mut rng, 4);
        let small_disk = pick(&mut rng, nodes);
        let mut draw = PlanBuilder {
            rng,
            nodes,
            small_disk,
            end: u64::try_from(calm.as_millis()).unwrap_or(u64::MAX),
            busy: vec![0; nodes],
            net_busy: 0,
            copied: false,
            damaged_all: false,
            steps: Vec::new(),
        };
        draw.fill(kinds);
        let mut steps = draw.steps;
        steps.sort_by_key(|step| step.at);
        let small_disk = steps.iter().any(|s| s.kind.is_of_small_disk()).then_some(small_disk);
        Plan { seed, nodes, clients, small_disk, steps, calm }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seed, nodes, clients, calm, .. } = self;
        writeln!(f, "seed {seed}: {nodes} nodes, a proxy, {clients} clients, calm after {calm:?}")?;
        for Step { at, kind, action } in &self.steps {
            writeln!(f, "  {:6.3} s  {kind}: {action:?}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

/// A random index below `count`.
pub fn pick(rng: &mut SeededRng, count: usize) -> usize {
    let most = u64::try_from(count).expect("few");
    usize::try_from(rng.within(0..most)).expect("below count")
}

struct PlanBuilder {
    rng: SeededRng,
    nodes: usize,
    small_disk: usize,
    end: u64,
    /// For each node: until when a fault affects it, in milliseconds.
    busy: Vec<u64>,
    /// Until when a partition lasts. Only one at a time, so that undoing one does not undo another.
    net_busy: u64,
    copied: bool,
    damaged_all: bool,
    steps: Vec<Step>,
}

impl PlanBuilder {
    /// Draws kinds without replacement, like cards from a shuffled pack, so that a few episodes cover all kinds.
    fn fill(&mut self, kinds: &[Kind]) {
        let mut pack: Vec<Kind> = Vec::new();
        let mut now = LEAD_MS + self.rng.within(0..PAUSE_MS_MAX);
        while !kinds.is_empty() && now + FAULT_MS_MIN < self.end {
            if pack.is_empty() {
                pack = kinds.to_vec();
                for i in (1..pack.len()).rev() {
                    pack.swap(i, pick(&mut self.rng, i + 1));
                }
            }
            let kind = pack.pop().expect("a filled pack");
            let until = (now + self.rng.within(FAULT_MS_MIN..FAULT_MS_MAX)).min(self.end);
            now = self.fault(kind, now, until).max(now) + self.rng.within(100..PAUSE_MS_MAX);
        }
    }

    /// Plans one fault, if a node is free for it. Gives the earliest time of the next fault.
    fn fault(&mut self, kind: Kind, now: u64, until: u64) -> u64 {
        use Action as A;
        match kind {
            Kind::KillProxy => self.pair(kind, (now, A::KillProxy), (until, A::StartProxy)),
            Kind::KillAll => {
                self.busy.fill(until);
                self.pair(kind, (now, A::KillAll), (until, A::StartAll));
            }
            Kind::OneWay | Kind::Pair | Kind::Split => self.partition(kind, now, until),
            Kind::DamageAll => return self.damage_all(now),
            Kind::Copy if self.copied => {}
            _ if kind.is_of_small_disk() && self.busy[self.small_disk] > now => {}
            Kind::ReadOnly => {
                let node = self.small_disk;
                self.busy[node] = until;
                self.pair(kind, (now, A::ReadOnly(node)), (until, A::Writable(node)));
            }
            Kind::DiskFull => {
                let node = self.small_disk;
                self.busy[node] = until;
                let left = [10, 45][pick(&mut self.rng, 2)];
                self.pair(kind, (now, A::Fill(node, left)), (until, A::Free(node)));
            }
            _ => {
                let idle: Vec<_> = (0..self.nodes).filter(|i| self.busy[*i] <= now).collect();
                if !idle.is_empty() {
                    let node = idle[pick(&mut self.rng, idle.len())];
                    self.busy[node] = until;
                    self.one_node(kind, node, now, until);
                }
            }
        }
        now
    }

    fn one_node(&mut self, kind: Kind, node: usize, now: u64, until: u64) {
        use Action as A;
        let coin = pick(&mut self.rng, 2) == 0;
        match kind {
            Kind::Freeze => self.pair(kind, (now, A::Freeze(node)), (until, A::Thaw(node))),
            Kind::LinkDown => self.pair(kind, (now, A::LinkDown(node)), (until, A::LinkUp(node))),
            Kind::Wipe => self.step(kind, now, A::Wipe(node)),
            Kind::Copy => {
                self.copied = true;
                self.step(kind, now, A::Copy(node, coin));
            }
            Kind::Rollback => self.pair(kind, (now, A::BackUp(node, coin)), (until, A::Restore(node))),
            Kind::SlowSync => {
                let delay = Duration::from_millis(self.rng.within(20..400));
                self.pair(kind, (now, A::SlowSync(node, delay)), (until, A::Untrace(node)));
            }
            Kind::FailSync => self.pair(kind, (now, A::FailSync(node)), (until, A::Untrace(node))),
            Kind::FailRead => self.pair(kind, (now, A::FailRead(node)), (until, A::Untrace(node))),
            Kind::RestartLoop => {
                let count = 2 + pick(&mut self.rng, 5);
                let pauses = (0..count).map(|_| self.rng.duration(Duration::from_millis(300))).collect();
                self.step(kind, now, A::RestartLoop(node, pauses));
            }
            Kind::DamageIndex => {
                let damage = self.draw_damage(0, u16::MAX, true);
                self.step(kind, now, A::DamageIndex(node, damage));
            }
            Kind::DamageLog => {
                let damage = self.draw_damage(0, u16::MAX, true);
                let end = if coin { StopMode::Killed } else { StopMode::Stopped };
                self.step(kind, now, A::DamageLog(node, end, damage));
            }
            _ => self.pair(kind, (now, A::Kill(node)), (until, A::Start(node))),
        }
    }

    fn partition(&mut self, kind: Kind, now: u64, until: u64) {
        if self.net_busy > now {
            return;
        }
        self.net_busy = until;
        let mut order: Vec<_> = (0..self.nodes).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, pick(&mut self.rng, i + 1));
        }
        let (one, other) = match kind {
            Kind::Split => order.split_at(1 + pick(&mut self.rng, self.nodes - 1)),
            _ => (&order[..1], &order[1..2]),
        };
        let there = one.iter().flat_map(|a| other.iter().map(|b| (*a, *b)));
        let ways: Vec<_> = match kind {
            Kind::OneWay => there.collect(),
            _ => there.flat_map(|(a, b)| [(a, b), (b, a)]).collect(),
        };
        self.pair(kind, (now, Action::Block(ways.clone())), (until, Action::Unblock(ways)));
    }

    /// Plans damage to all nodes, after all other faults have ended. The next fault waits until the nodes have started.
    fn damage_all(&mut self, now: u64) -> u64 {
        let at = self.busy.iter().copied().max().unwrap_or(now).max(self.net_busy).max(now) + QUIET_MS;
        if self.damaged_all || at >= self.end {
            return now;
        }
        self.damaged_all = true;
        // Each node is damaged in a different part of its file, so that every part is intact on the other nodes.
        let share = u16::try_from(usize::from(u16::MAX) / self.nodes).expect("a part of it");
        let mut all = Vec::new();
        for node in 0..self.nodes {
            let first = share * u16::try_from(node).expect("few");
            all.push(self.draw_damage(first, first + share - 1, node + 1 == self.nodes));
        }
        let end = [StopMode::Killed, StopMode::Stopped][pick(&mut self.rng, 2)];
        self.step(Kind::DamageAll, at, Action::DamageAll(end, all));
        self.busy.fill(at + QUIET_MS);
        at + QUIET_MS
    }

    /// Several flips, mostly in records, and perhaps a zeroed page or a missing end.
    fn draw_damage(&mut self, first: u16, last: u16, may_truncate: bool) -> Vec<Damage> {
        let rng = &mut self.rng;
        let mut at = || {
            let at = u16::try_from(rng.within(first.into()..u64::from(last) + 1)).expect("within u16");
            (at, 1 << pick(rng, 8), pick(rng, 4))
        };
        let flips = 1 + usize::from(at().0) % 6;
        let mut damage: Vec<_> = (0..flips)
            .map(|_| match at() {
                (at, mask, 0) => Damage::FlipByte { at, mask },
                (at, mask, _) => Damage::FlipRecord { at, mask },
            })
            .collect();
        match at() {
            (at, _, 0) => damage.push(Damage::ZeroPage { at }),
            // Keep the first half: losing more would be like losing the directory, which is another kind of fault.
            (at, _, 1) if may_truncate => damage.push(Damage::Truncate { at: at.max(last / 2) }),
            _ => {}
        }
        damage
    }

    fn pair(&mut self, kind: Kind, begin: (u64, Action), end: (u64, Action)) {
        self.step(kind, begin.0, begin.1);
        self.step(kind, end.0, end.1);
    }

    fn step(&mut self, kind: Kind, at: u64, action: Action) {
        self.steps.push(Step { at: Duration::from_millis(at), kind, action });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const CALM: Duration = Duration::from_secs(20);

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        for seed in 0..50 {
            let plan = Plan::draw(seed, CALM, &Kind::ALL);
            assert_eq!(plan, Plan::draw(seed, CALM, &Kind::ALL));
            assert_ne!(plan.steps, Plan::draw(seed + 1, CALM, &Kind::ALL).steps);
        }
    }

    #[test]
    fn a_few_episodes_cover_every_kind() {
        let seen: BTreeSet<_> =
            (1..=5).flat_map(|seed| Plan::draw(seed, CALM, &Kind::ALL).steps).map(|step| step.kind).collect();
        assert_eq!(seen, BTreeSet::from(Kind::ALL));
    }

    #[test]
    fn only_allowed_kinds_are_drawn_and_all_end_before_the_calm() {
        for kind in Kind::ALL {
            let plan = Plan::draw(7, CALM, &[kind]);
            assert!(!plan.steps.is_empty(), "{kind}");
            assert!(plan.steps.iter().all(|step| step.kind == kind && step.at <= CALM), "{plan}");
            assert_eq!(plan.small_disk.is_some(), kind.is_of_small_disk());
        }
        assert_eq!(Plan::draw(7, CALM, &[]).steps, []);
    }

    #[test]
    fn damage_to_all_nodes_hits_different_parts() {
        let places = |one: &Damage| match *one {
            Damage::FlipByte { at, .. }
            | Damage::FlipRecord { at, .. }
            | Damage::ZeroPage { at }
            | Damage::Truncate { at } => at,
        };
        for seed in 0..50 {
            let plan = Plan::draw(seed, CALM, &[Kind::DamageAll]);
            let Some(Action::DamageAll(_, all)) = plan.steps.first().map(|step| &step.action) else {
                panic!("{plan}")
            };
            assert_eq!(all.len(), plan.nodes);
            for pair in all.windows(2) {
                let [before, after] = [&pair[0], &pair[1]];
                assert!(before.iter().map(places).max() < after.iter().map(places).min(), "{plan}");
            }
        }
    }
}
