//! What happens to an episode's network, and when: a pure function of the seed and of the kinds that may be drawn.
//!
//! Knows neither processes nor time. A fault is one or two steps, the second undoes the first; the nodes that a fault
//! concerns are left alone by others until it is undone, except by those that hit everybody. A step that finds the
//! network not as expected (a node that is down cannot be frozen) is passed over by whoever carries it out.

use std::fmt;
use std::time::Duration;

use crate::support::rng::SeededRng;

/// Where nodes stop: 5 of the plan and the copy that may join them.
pub const NODES_MAX: usize = 6;
/// Faults begin so long after the clients, and end so long before the calm.
const LEAD_MS: u64 = 1_000;
const FAULT_MS_MIN: u64 = 600;
const FAULT_MS_MAX: u64 = 3_500;
const PAUSE_MS_MAX: u64 = 1_500;
/// Damage to all needs a network that has converged before, and has to be repaired before the calm.
const QUIET_MS: u64 = 1_000;

/// A kind of fault, by the name that the flags use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Kind {
    /// `kill -9` of one node.
    Kill,
    /// `kill -9` of all nodes at the same moment.
    KillAll,
    /// A node is stopped (SIGSTOP) for seconds.
    Freeze,
    /// A node is killed again and again while it starts.
    RestartLoop,
    /// `kill -9` of the proxy.
    KillProxy,
    /// A node's cable is pulled.
    LinkDown,
    /// A node cannot send to another; the way back is open.
    OneWay,
    /// Two nodes do not hear each other, but both hear the others.
    Pair,
    /// Two halves that do not hear each other; clients hear both.
    Split,
    /// A node's disk fills up, and is freed.
    DiskFull,
    /// A node's file system lets nobody write, as after an error, and then everybody.
    ReadOnly,
    /// Each fsync of a node takes long.
    SlowSync,
    /// Each fsync of a node fails.
    FailSync,
    /// A node has to open its store anew, and each read of its files fails.
    FailRead,
    /// A node loses its directory.
    Wipe,
    /// A node gets an older copy of its directory back.
    Rollback,
    /// A copy of a node's directory is started as a further node.
    Copy,
    /// A node's index.redb is damaged.
    DamageIndex,
    /// A node's log.redb is damaged.
    DamageLog,
    /// All nodes' log.redb are damaged, each elsewhere.
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

    /// What this machine must offer for it.
    pub fn needs(self) -> Option<Need> {
        match self {
            Kind::LinkDown | Kind::OneWay | Kind::Pair | Kind::Split => Some(Need::Namespaces),
            Kind::DiskFull => Some(Need::Mounts),
            Kind::ReadOnly => Some(Need::Remounts),
            Kind::SlowSync | Kind::FailSync | Kind::FailRead => Some(Need::Strace),
            _ => None,
        }
    }

    /// Whether it concerns the node on the small file system.
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

/// What not every machine lets us do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Network namespaces: root and `ip`.
    Namespaces,
    /// A small file system: root and `mount`.
    Mounts,
    /// `strace`, and a kernel that lets it attach.
    Strace,
    /// Both: a file system becomes read-only only once nobody has a file of it open to write.
    Remounts,
}

/// Everything that is decided before an episode begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    pub clients: usize,
    /// The node that lives on a small file system.
    pub small_disk: Option<usize>,
    /// In the order of their times.
    pub steps: Vec<Step>,
    /// When the calm begins.
    pub calm: Duration,
}

/// Something done to the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub at: Duration,
    pub kind: Kind,
    pub action: Action,
}

/// What is done. Nodes go by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Kill(usize),
    KillAll,
    Start(usize),
    StartAll,
    Freeze(usize),
    Thaw(usize),
    /// Killed so long after each of its starts, then started for good.
    RestartLoop(usize, Vec<Duration>),
    KillProxy,
    StartProxy,
    LinkDown(usize),
    LinkUp(usize),
    /// The first of each cannot send to the second.
    Block(Vec<(usize, usize)>),
    Unblock(Vec<(usize, usize)>),
    /// So many MiB stay free.
    Fill(usize, u64),
    Free(usize),
    ReadOnly(usize),
    Writable(usize),
    SlowSync(usize, Duration),
    FailSync(usize),
    FailRead(usize),
    Untrace(usize),
    Wipe(usize),
    /// A copy is taken; of a process that is frozen, else of one that was killed and is started again.
    BackUp(usize, bool),
    Restore(usize),
    Copy(usize, bool),
    DamageIndex(usize, Vec<Wound>),
    DamageLog(usize, End, Vec<Wound>),
    DamageAll(End, Vec<Vec<Wound>>),
}

/// How nodes end before their files are damaged. After the one, the file is checked as a whole when it is opened; after the
/// other it is not, and the damage is met when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Killed,
    Stopped,
}

/// Damage to a file. Places are parts of 65,536 of its length, or of its records in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wound {
    FlipByte { at: u16, mask: u8 },
    FlipRecord { at: u16, mask: u8 },
    ZeroPage { at: u16 },
    Truncate { at: u16 },
}

impl Plan {
    /// The plan of this seed, in which only these kinds are drawn.
    pub fn draw(seed: u64, calm: Duration, kinds: &[Kind]) -> Plan {
        let mut rng = SeededRng::of(seed.wrapping_mul(0x9E37_79B9).wrapping_add(17));
        let nodes = 3 + pick(&mut rng, 3);
        let clients = 4 + pick(&mut rng, 4);
        let small_disk = pick(&mut rng, nodes);
        let mut draw = Draw {
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

/// One of so many.
pub fn pick(rng: &mut SeededRng, count: usize) -> usize {
    let most = u64::try_from(count).expect("few");
    usize::try_from(rng.within(0..most)).expect("below count")
}

struct Draw {
    rng: SeededRng,
    nodes: usize,
    small_disk: usize,
    end: u64,
    /// Until when a fault concerns each node, in milliseconds.
    busy: Vec<u64>,
    /// One partition at a time, so that what is undone is what was done.
    net_busy: u64,
    copied: bool,
    damaged_all: bool,
    steps: Vec<Step>,
}

impl Draw {
    /// Kinds come like cards from a shuffled pack, so that a few episodes see all of them.
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
            let kind = pack.pop().expect("it was filled");
            let until = (now + self.rng.within(FAULT_MS_MIN..FAULT_MS_MAX)).min(self.end);
            now = self.fault(kind, now, until).max(now) + self.rng.within(100..PAUSE_MS_MAX);
        }
    }

    /// Plans one fault, if somebody is there whom it can hit. Answers when the next may begin.
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
                let wounds = self.wounds(0, u16::MAX, true);
                self.step(kind, now, A::DamageIndex(node, wounds));
            }
            Kind::DamageLog => {
                let wounds = self.wounds(0, u16::MAX, true);
                let end = if coin { End::Killed } else { End::Stopped };
                self.step(kind, now, A::DamageLog(node, end, wounds));
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

    /// Everything else is over by then, and begins again only when the nodes have had time to start.
    fn damage_all(&mut self, now: u64) -> u64 {
        let at = self.busy.iter().copied().max().unwrap_or(now).max(self.net_busy).max(now) + QUIET_MS;
        if self.damaged_all || at >= self.end {
            return now;
        }
        self.damaged_all = true;
        // Each node is hit in a part of its file that is no other's: elsewhere everything is intact.
        let share = u16::try_from(usize::from(u16::MAX) / self.nodes).expect("a part of it");
        let mut all = Vec::new();
        for node in 0..self.nodes {
            let first = share * u16::try_from(node).expect("few");
            all.push(self.wounds(first, first + share - 1, node + 1 == self.nodes));
        }
        let end = [End::Killed, End::Stopped][pick(&mut self.rng, 2)];
        self.step(Kind::DamageAll, at, Action::DamageAll(end, all));
        self.busy.fill(at + QUIET_MS);
        at + QUIET_MS
    }

    /// Several flips, mostly in records, and perhaps a zeroed page or a missing end.
    fn wounds(&mut self, first: u16, last: u16, may_truncate: bool) -> Vec<Wound> {
        let rng = &mut self.rng;
        let mut at = || {
            let at = u16::try_from(rng.within(first.into()..u64::from(last) + 1)).expect("within u16");
            (at, 1 << pick(rng, 8), pick(rng, 4))
        };
        let flips = 1 + usize::from(at().0) % 6;
        let mut wounds: Vec<_> = (0..flips)
            .map(|_| match at() {
                (at, mask, 0) => Wound::FlipByte { at, mask },
                (at, mask, _) => Wound::FlipRecord { at, mask },
            })
            .collect();
        match at() {
            (at, _, 0) => wounds.push(Wound::ZeroPage { at }),
            // Not the first half: that would be the loss of a directory, which is another fault.
            (at, _, 1) if may_truncate => wounds.push(Wound::Truncate { at: at.max(last / 2) }),
            _ => {}
        }
        wounds
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
    fn a_few_episodes_see_every_kind() {
        let seen: BTreeSet<_> =
            (1..=5).flat_map(|seed| Plan::draw(seed, CALM, &Kind::ALL).steps).map(|step| step.kind).collect();
        assert_eq!(seen, BTreeSet::from(Kind::ALL));
    }

    #[test]
    fn only_kinds_that_are_named_are_drawn_and_all_end_before_the_calm() {
        for kind in Kind::ALL {
            let plan = Plan::draw(7, CALM, &[kind]);
            assert!(!plan.steps.is_empty(), "{kind}");
            assert!(plan.steps.iter().all(|step| step.kind == kind && step.at <= CALM), "{plan}");
            assert_eq!(plan.small_disk.is_some(), kind.is_of_small_disk());
        }
        assert_eq!(Plan::draw(7, CALM, &[]).steps, []);
    }

    #[test]
    fn damage_to_all_hits_each_elsewhere() {
        let places = |wound: &Wound| match *wound {
            Wound::FlipByte { at, .. }
            | Wound::FlipRecord { at, .. }
            | Wound::ZeroPage { at }
            | Wound::Truncate { at } => at,
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
