//! Owns what to do about entries that are damaged or missing here: whom to ask, and when to stop asking.
//!
//! A wound is an entry within a log that does not check; a gap is the place after a head behind which loose entries
//! wait. Each peer is asked for them with every exchange. What nobody has is given up after a while: the log is cut
//! there, so that what stands behind it is read again. That loses nothing that anybody still has, for whoever comes back
//! with the rest brings it in a branch.

use std::collections::{BTreeMap, BTreeSet};

use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::chain::sync::wire::EntryRange;
use crate::chain::vector::Vector;
use crate::store::log::damage::Damage;

/// After this long an entry is given up that no peer has, if all of them were asked meanwhile.
pub const GIVE_UP_MS: u64 = 10_000;
/// After this long it is given up although some peer has not answered.
pub const GIVE_UP_AWAY_MS: u64 = 60_000;
/// Ranges in one exchange; the rest is asked for with the next.
const RANGES_MAX: usize = 256;

/// See the head of this file. Times are milliseconds of a clock that only goes forward.
#[derive(Debug, Clone, Default)]
pub struct Repair {
    /// What is missing, and since when; since the last time that anything was healed, if that is later.
    missing: BTreeMap<(Origin, u64), u64>,
    /// When each peer's last exchange was through.
    answered: BTreeMap<usize, u64>,
}

impl Repair {
    /// Takes note of what is damaged or missing now. A wound behind a cut is none: a read that began before the cut may
    /// have noted it after it, and nobody will ever mend it.
    pub fn update(&mut self, wounds: &Damage, logs: &Logs, now_ms: u64) {
        for (origin, seq) in wounds.all() {
            if seq > logs.vector().limit(origin) {
                wounds.remove(origin, seq);
            }
        }
        let is_within = |(origin, seq): &(Origin, u64)| *seq <= logs.vector().seq(*origin);
        let wounds = wounds.all().into_iter().filter(is_within);
        let gaps = logs.detached().map(|(origin, _)| (origin, logs.vector().seq(origin) + 1));
        let now: BTreeSet<_> = wounds.chain(gaps).collect();
        // While healing gets on, nothing is hopeless: much may be missing, and an exchange brings only a part of it.
        let gets_on = self.missing.keys().any(|place| !now.contains(place));
        let since = |place| match self.missing.get(&place) {
            Some(since) if !gets_on => *since,
            _ => now_ms,
        };
        self.missing = now.into_iter().map(|place| (place, since(place))).collect();
    }

    /// Entries within our logs that this peer may have whole. What is missing behind a head is pulled anyway.
    pub fn ranges(&self, mine: &Vector, theirs: Option<&Vector>) -> Vec<EntryRange> {
        let mut ranges: Vec<EntryRange> = Vec::new();
        for (origin, seq) in self.missing.keys().copied() {
            let has_it = theirs.is_some_and(|theirs| theirs.seq(origin) >= seq);
            if !has_it || seq > mine.seq(origin) {
                continue;
            }
            match ranges.last_mut() {
                Some(range) if range.origin == origin && range.last + 1 == seq => range.last = seq,
                _ => ranges.push(EntryRange { origin, first: seq, last: seq }),
            }
            if ranges.len() > RANGES_MAX {
                ranges.pop();
                break;
            }
        }
        ranges
    }

    /// An exchange with this peer is through: it had its chance.
    pub fn answered(&mut self, peer: usize, now_ms: u64) {
        self.answered.insert(peer, now_ms);
    }

    /// Where logs are to be cut, since nobody has what is missing. `peers`: all there are.
    pub fn given_up(&self, peers: &[usize], now_ms: u64) -> Vec<(Origin, u64)> {
        let all_since =
            |since: u64| peers.iter().all(|peer| self.answered.get(peer).is_some_and(|at| *at > since));
        let mut hopeless: BTreeMap<Origin, u64> = BTreeMap::new();
        for ((origin, seq), since) in &self.missing {
            let age = now_ms.saturating_sub(*since);
            if age >= GIVE_UP_AWAY_MS || (age >= GIVE_UP_MS && all_since(since + GIVE_UP_MS / 2)) {
                hopeless.entry(*origin).or_insert(*seq); // the first of each log, for they are sorted
            }
        }
        hopeless.into_iter().collect()
    }

    /// Number of places that are damaged or missing.
    pub fn count(&self) -> usize {
        self.missing.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ids::ChainHash;
    use crate::chain::vector::Head;

    const A: Origin = Origin([1; 16]);

    fn vector(seq: u64) -> Vector {
        let mut vector = Vector::default();
        vector.insert(A, Head { seq, hash: ChainHash([0; 32]) });
        vector
    }

    fn heal(wounds: &[u64]) -> (Repair, Vector) {
        let (list, mut logs) = (Damage::default(), Logs::default());
        for seq in wounds {
            list.add(A, *seq);
        }
        for _ in 0..9 {
            logs.assign(crate::chain::message::Digest([0; 32]), 0, || A);
        }
        let mut heal = Repair::default();
        heal.update(&list, &logs, 1_000);
        (heal, logs.vector().clone())
    }

    #[test]
    fn a_peer_is_asked_for_what_it_may_have() {
        let (heal, mine) = heal(&[2, 3, 4, 7, 9, 12]);
        let asked: Vec<_> =
            heal.ranges(&mine, Some(&vector(8))).iter().map(|range| (range.first, range.last)).collect();
        assert_eq!(asked, [(2, 4), (7, 7)]);
        assert_eq!(heal.ranges(&mine, None), []);
    }

    #[test]
    fn a_wound_that_is_noted_behind_a_cut_is_forgotten() {
        let (list, mut logs) = (Damage::default(), Logs::default());
        logs.assign(crate::chain::message::Digest([0; 32]), 0, || A);
        logs.cut(A, 1, None);
        list.add(A, 1);
        let mut heal = Repair::default();
        heal.update(&list, &logs, 1_000);
        assert_eq!((list.count(), heal.count()), (0, 0));
    }

    #[test]
    fn an_entry_is_given_up_once_everybody_was_asked_or_was_away_for_long() {
        let (mut heal, _) = heal(&[7, 3]);
        heal.answered(0, 9_000);
        assert_eq!(heal.given_up(&[0, 1], 1_000 + GIVE_UP_MS), [], "one was not asked");
        assert_eq!(heal.given_up(&[0, 1], 1_000 + GIVE_UP_AWAY_MS), [(A, 3)]);
        heal.answered(1, 9_000);
        assert_eq!(heal.given_up(&[0, 1], GIVE_UP_MS), []);
        assert_eq!(heal.given_up(&[0, 1], 1_000 + GIVE_UP_MS), [(A, 3)]);
    }

    /// Thousands of entries may be damaged at once, or many logs have a gap that a long catch-up comes to one by one.
    #[test]
    fn nothing_is_given_up_while_healing_gets_on() {
        let wounds = Damage::default();
        let mut logs = Logs::default();
        for seq in 1..=9 {
            wounds.add(A, seq);
            logs.assign(crate::chain::message::Digest([0; 32]), 0, || A);
        }
        let mut heal = Repair::default();
        let mut now = 0;
        for seq in 1..=8 {
            heal.update(&wounds, &logs, now);
            heal.answered(0, now);
            assert_eq!(heal.given_up(&[0], now), [], "at {now}");
            wounds.remove(A, seq);
            now += GIVE_UP_MS / 2;
        }
        heal.update(&wounds, &logs, now);
        now += GIVE_UP_MS;
        heal.answered(0, now);
        heal.update(&wounds, &logs, now);
        assert_eq!(heal.given_up(&[0], now), [(A, 9)]);
    }
}
