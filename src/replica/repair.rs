//! Owns what to do about entries that are damaged or missing here: which peer to ask, and when to give up.
//!
//! Before: a read found damage, or a gap follows a head. After: each exchange asks its peer for the missing entries. An
//! entry is given up only if every other member has answered since and none has it: then the log is cut before it, so
//! that the entries after it can be read again. A member that is away may have the only good copy, so the entry waits
//! for it until an operator starts or forgets that member. Times are milliseconds of a monotonic clock.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::write_ops::Maintenance;
use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::chain::members::MemberId;
use crate::chain::sync::wire::EntryRange;
use crate::chain::vector::Vector;
use crate::fault::Fault;
use crate::store::log::damage::Damage;

/// Time after which an entry may be given up. The own log is abandoned after the same time: until then, readers of the
/// feed wait for the repair of an entry.
pub const GIVE_UP_MS: u64 = 10_000;
/// The same for a node that knows no other member. A salvage drops the members, and peers ask at least every 30 s.
pub const GIVE_UP_ALONE_MS: u64 = 40_000;
/// A request sent earlier after the damage was found does not count: what an earlier answer brought may not be written.
const ASKED_AFTER_MS: u64 = GIVE_UP_MS / 2;
/// Ranges requested in one exchange. The next one continues after them: the first ones may be those that no peer has.
const RANGES_MAX: usize = 256;
/// Kinds of messages whose last range is kept. At the bound all begin with the first range again.
const ASKED_MAX: usize = 1_024;

/// The entries that are damaged or missing here.
#[derive(Debug, Clone, Default)]
pub struct Repair {
    missing: BTreeMap<(Origin, u64), Missing>,
    /// The last entry that was asked for, where not all fitted into one message.
    asked: BTreeMap<AskedIn, (Origin, u64)>,
}

#[derive(Debug, Clone)]
struct Missing {
    /// When it was found, or when any entry was repaired, if that was later.
    since: u64,
    /// The members that have answered since and do not have it.
    lacking: BTreeSet<MemberId>,
}

/// Which messages ask a peer for entries: each kind continues where its last one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AskedIn {
    /// Requests to the peer with this number.
    Request(usize),
    /// Answers to this member.
    Answer(MemberId),
}

/// What a peer answered: `member`, to a request sent at `asked_ms`.
#[derive(Debug)]
pub struct PeerAnswer<'a> {
    pub member: MemberId,
    pub asked_ms: u64,
    /// The ranges that the request asked for.
    pub wants: &'a [EntryRange],
    /// What the peer has, as its answer says.
    pub theirs: Option<&'a Vector>,
    /// The peer has more than fits into one answer.
    pub more: bool,
}

impl Repair {
    /// Takes over what is damaged or missing now. Damage after a cut or up to a floor is dropped: a read that began
    /// before may have recorded it later, and no peer repairs it.
    pub fn update(&mut self, damage: &Damage, logs: &Logs, now_ms: u64) {
        for (origin, seq) in damage.all() {
            if seq > logs.vector().limit(origin) || seq <= logs.vector().floor(origin) {
                damage.remove(origin, seq);
            }
        }
        let is_within = |(origin, seq): &(Origin, u64)| *seq <= logs.vector().seq(*origin);
        let damage = damage.all().into_iter().filter(is_within);
        let gaps = logs.detached().map(|(origin, _)| (origin, logs.vector().seq(origin) + 1));
        let now: BTreeSet<_> = damage.chain(gaps).collect();
        // While repairs continue, nothing is given up: an exchange brings only a part of what may be missing.
        let is_progressing = self.missing.keys().any(|key| !now.contains(key));
        let mut before = if is_progressing { BTreeMap::new() } else { std::mem::take(&mut self.missing) };
        let new = || Missing { since: now_ms, lacking: BTreeSet::new() };
        self.missing = now.into_iter().map(|key| (key, before.remove(&key).unwrap_or_else(new))).collect();
    }

    /// Damaged entries within our logs that this peer may have. Entries after a head are requested anyway.
    pub fn ranges(&mut self, asked: AskedIn, mine: &Vector, theirs: Option<&Vector>) -> Vec<EntryRange> {
        let after = self.asked.remove(&asked);
        let bound = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.missing.range((bound, Bound::Unbounded));
        let before = after.into_iter().flat_map(|after| self.missing.range(..=after));
        let mut ranges: Vec<EntryRange> = Vec::new();
        for (origin, seq) in rest.chain(before).map(|(place, _)| *place) {
            let has_it = theirs.is_some_and(|theirs| holds(theirs, origin, seq));
            if !has_it || seq > mine.seq(origin) {
                continue;
            }
            match ranges.last_mut() {
                Some(range) if range.origin == origin && range.last + 1 == seq => range.last = seq,
                _ => ranges.push(EntryRange { origin, first: seq, last: seq }),
            }
            if ranges.len() > RANGES_MAX {
                ranges.pop();
                if self.asked.len() >= ASKED_MAX {
                    self.asked.clear();
                }
                self.asked.extend(ranges.last().map(|range| (asked, (range.origin, range.last))));
                break;
            }
        }
        ranges
    }

    /// Records which of the missing entries a peer lacks: those that its vector does not cover, and those that it was
    /// asked for. If it has them, an earlier answer has repaired them.
    pub fn on_answer(&mut self, answer: &PeerAnswer<'_>) {
        let Some(theirs) = answer.theirs.filter(|_| !answer.more) else { return };
        let is_asked = |origin, seq| {
            let covers = |want: &EntryRange| want.origin == origin && (want.first..=want.last).contains(&seq);
            answer.wants.iter().any(covers)
        };
        for ((origin, seq), missing) in &mut self.missing {
            let is_lacking = !holds(theirs, *origin, *seq) || is_asked(*origin, *seq);
            if is_lacking && answer.asked_ms >= missing.since + ASKED_AFTER_MS {
                missing.lacking.insert(answer.member);
            }
        }
    }

    /// What is to be committed because entries are not repaired in time: the own log is abandoned, so that readers of
    /// the feed get what is sent from now on, and logs are cut where no member has what is missing. `members`: all
    /// others; `None` is one whose id is not known yet.
    pub fn overdue(
        &self,
        own: Option<Origin>,
        members: &[Option<MemberId>],
        now_ms: u64,
    ) -> Vec<Maintenance> {
        let is_due = |missing: &Missing, after| now_ms.saturating_sub(missing.since) >= after;
        let damaged_own = |((origin, _), missing): (&(Origin, u64), &Missing)| {
            (Some(*origin) == own && is_due(missing, GIVE_UP_MS)).then_some(*origin)
        };
        let mut overdue: Vec<_> =
            self.missing.iter().find_map(damaged_own).map(Maintenance::Abandon).into_iter().collect();
        let after = if members.is_empty() { GIVE_UP_ALONE_MS } else { GIVE_UP_MS };
        // A log is cut at its first missing entry only: that may come from a member that is away, and a cut after it
        // needs it. They are sorted.
        let mut last = None;
        for ((origin, seq), missing) in &self.missing {
            let is_first = last.replace(*origin) != Some(*origin);
            let early = Fault::GiveUpEarly.is_planted() && is_due(missing, 6 * GIVE_UP_MS);
            let is_lacked = early || members.iter().all(|member| missing.lacks(*member));
            if is_first && is_due(missing, after) && is_lacked {
                overdue.push(Maintenance::Cut(*origin, *seq));
            }
        }
        overdue
    }

    /// How many entries wait for an answer of this member: it may have the only intact copy.
    pub fn waiting_for(&self, member: Option<MemberId>, now_ms: u64) -> usize {
        let is_waiting =
            |missing: &&Missing| now_ms.saturating_sub(missing.since) >= GIVE_UP_MS && !missing.lacks(member);
        self.missing.values().filter(is_waiting).count()
    }

    pub fn count(&self) -> usize {
        self.missing.len()
    }
}

fn holds(vector: &Vector, origin: Origin, seq: u64) -> bool {
    vector.get(origin).is_some_and(|span| span.holds(seq))
}

impl Missing {
    fn lacks(&self, member: Option<MemberId>) -> bool {
        member.is_some_and(|member| self.lacking.contains(&member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ids::{ChainHash, Leaf};
    use crate::chain::kind::LogType;
    use crate::chain::vector::Head;

    const A: Origin = Origin([1; 16]);

    fn vector(seq: u64) -> Vector {
        let mut vector = Vector::default();
        vector.set_head(A, LogType::MESSAGES, Head { seq, hash: ChainHash([0; 32]) });
        vector
    }

    fn damaged(seqs: &[u64]) -> (Repair, Vector) {
        let (list, mut logs) = (Damage::default(), Logs::default());
        for seq in seqs {
            list.add(A, *seq);
        }
        for _ in 0..9 {
            logs.assign(Leaf([0; 32]), 0, || A);
        }
        let mut repair = Repair::default();
        repair.update(&list, &logs, 1_000);
        (repair, logs.vector().clone())
    }

    #[test]
    fn a_peer_is_asked_for_what_it_may_have() {
        let (mut repair, mine) = damaged(&[2, 3, 4, 7, 9, 12]);
        let asked: Vec<_> = repair
            .ranges(AskedIn::Request(1), &mine, Some(&vector(8)))
            .iter()
            .map(|range| (range.first, range.last))
            .collect();
        assert_eq!(asked, [(2, 4), (7, 7)]);
        assert_eq!(repair.ranges(AskedIn::Request(1), &mine, None), []);
    }

    /// The peers that answer may lack the first ones.
    #[test]
    fn every_damaged_entry_is_asked_of_every_peer() {
        let (list, mut logs) = (Damage::default(), Logs::default());
        for seq in 1..=1_400 {
            logs.assign(Leaf([0; 32]), 0, || A);
            if seq % 2 == 1 {
                list.add(A, seq);
            }
        }
        let mut repair = Repair::default();
        repair.update(&list, &logs, 1_000);
        let kinds = [AskedIn::Request(1), AskedIn::Answer(member(1)), AskedIn::Request(2)];
        let mut asked = vec![BTreeSet::new(); kinds.len()];
        for _ in 0..3 {
            for (kind, asked) in kinds.into_iter().zip(&mut asked) {
                let ranges = repair.ranges(kind, logs.vector(), Some(&vector(1_400)));
                assert_eq!(ranges.len(), RANGES_MAX);
                asked.extend(ranges.iter().map(|range| range.first));
            }
        }
        assert_eq!(asked.iter().map(BTreeSet::len).collect::<Vec<_>>(), [700; 3]);
    }

    /// A cut needs the hash before it, and the entry that waits may still come.
    #[test]
    fn a_log_is_cut_at_its_first_missing_entry_only() {
        let (mut repair, _) = damaged(&[3, 7]);
        let (members, asked) = ([Some(member(0)), Some(member(1))], 1_000 + ASKED_AFTER_MS);
        repair.on_answer(&answer(0, asked, &[NINE], &vector(9)));
        let seven = [EntryRange { origin: A, first: 7, last: 7 }];
        repair.on_answer(&answer(1, asked, &seven, &vector(9)));
        assert_eq!(cuts(&repair, &members, YEAR), [], "one member may have entry 3");
        repair.on_answer(&answer(1, asked, &[NINE], &vector(9)));
        assert_eq!(cuts(&repair, &members, YEAR), [(A, 3)]);
    }

    #[test]
    fn damage_after_a_cut_is_dropped() {
        let (list, mut logs) = (Damage::default(), Logs::default());
        logs.assign(Leaf([0; 32]), 0, || A);
        logs.cut(A, 1, None);
        list.add(A, 1);
        let mut repair = Repair::default();
        repair.update(&list, &logs, 1_000);
        assert_eq!((list.count(), repair.count()), (0, 0));
    }

    fn member(node_id: u16) -> MemberId {
        MemberId { node_id, store_id: [0; 16] }
    }

    fn answer<'a>(
        node_id: u16,
        asked_ms: u64,
        wants: &'a [EntryRange],
        theirs: &'a Vector,
    ) -> PeerAnswer<'a> {
        PeerAnswer { member: member(node_id), asked_ms, wants, theirs: Some(theirs), more: false }
    }

    fn cuts(repair: &Repair, members: &[Option<MemberId>], now_ms: u64) -> Vec<(Origin, u64)> {
        let cut = |maintenance| match maintenance {
            Maintenance::Cut(origin, seq) => (origin, seq),
            other => panic!("{other:?}"),
        };
        repair.overdue(None, members, now_ms).into_iter().map(cut).collect()
    }

    const YEAR: u64 = 365 * 86_400_000;
    const NINE: EntryRange = EntryRange { origin: A, first: 1, last: 9 };

    #[test]
    fn an_entry_is_given_up_once_every_member_lacks_it() {
        let (mut repair, _) = damaged(&[7, 3]);
        let members = [Some(member(0)), Some(member(1))];
        let asked = 1_000 + ASKED_AFTER_MS;
        repair.on_answer(&answer(0, asked, &[NINE], &vector(9)));
        assert_eq!(cuts(&repair, &members, YEAR), [], "one has not answered");
        assert_eq!(repair.waiting_for(members[0], YEAR), 0);
        assert_eq!((repair.waiting_for(members[1], YEAR), repair.waiting_for(None, YEAR)), (2, 2));
        repair.on_answer(&answer(1, asked - 1, &[NINE], &vector(9)));
        assert_eq!(cuts(&repair, &members, YEAR), [], "the first answer may have brought it");
        repair.on_answer(&answer(1, asked, &[], &vector(9)));
        assert_eq!(cuts(&repair, &members, YEAR), [], "it has the log and was not asked for the entries");
        repair.on_answer(&PeerAnswer { more: true, ..answer(1, asked, &[NINE], &vector(9)) });
        assert_eq!(cuts(&repair, &members, YEAR), [], "its answer was not all of it");
        repair.on_answer(&PeerAnswer { theirs: None, ..answer(1, asked, &[NINE], &vector(9)) });
        assert_eq!(cuts(&repair, &members, YEAR), [], "it did not say what it has");
        repair.on_answer(&answer(1, asked, &[], &vector(2)));
        assert_eq!(cuts(&repair, &members, 999 + GIVE_UP_MS), []);
        assert_eq!(cuts(&repair, &members, 1_000 + GIVE_UP_MS), [(A, 3)]);
        assert_eq!(cuts(&repair, &[members[0], None], YEAR), [], "a member that was never met may have it");
        assert_eq!(cuts(&repair, &[], 999 + GIVE_UP_ALONE_MS), []);
        assert_eq!(cuts(&repair, &[], 1_000 + GIVE_UP_ALONE_MS), [(A, 3)]);
    }

    #[test]
    fn the_own_log_is_abandoned_while_a_damaged_entry_of_it_waits() {
        let (repair, _) = damaged(&[3]);
        let overdue = |now_ms| format!("{:?}", repair.overdue(Some(A), &[None], now_ms));
        assert_eq!(overdue(999 + GIVE_UP_MS), "[]");
        assert_eq!(overdue(1_000 + GIVE_UP_MS), format!("[Abandon({A:?})]"));
    }

    /// Thousands of entries may be damaged at once, or many logs have a gap that a long catch-up comes to one by one.
    #[test]
    fn nothing_is_given_up_while_repairs_continue() {
        let damage = Damage::default();
        let mut logs = Logs::default();
        for seq in 1..=9 {
            damage.add(A, seq);
            logs.assign(Leaf([0; 32]), 0, || A);
        }
        let (mut repair, members) = (Repair::default(), [Some(member(0))]);
        let mut now = 0;
        for seq in 1..=8 {
            repair.update(&damage, &logs, now);
            repair.on_answer(&answer(0, now, &[NINE], &vector(9)));
            assert_eq!(cuts(&repair, &members, now), [], "at {now}");
            damage.remove(A, seq);
            now += GIVE_UP_MS / 2;
        }
        repair.update(&damage, &logs, now);
        now += GIVE_UP_MS;
        repair.on_answer(&answer(0, now, &[NINE], &vector(9)));
        repair.update(&damage, &logs, now);
        assert_eq!(cuts(&repair, &members, now), [(A, 9)]);
    }
}
