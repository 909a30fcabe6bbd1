//! Owns what to do about entries that are damaged or missing here: which peer to ask, and when to give up.
//!
//! Before: a read found damage, or a gap follows a head. After: each exchange asks its peer for the missing entries. An
//! entry that no peer has is given up after a while: the log is cut before it, so that the entries after it can be
//! read again. That loses nothing that any node has, because a node that returns with the entry brings it in a branch.

use std::collections::{BTreeMap, BTreeSet};

use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::chain::sync::wire::EntryRange;
use crate::chain::vector::Vector;
use crate::store::log::damage::Damage;

/// Time after which an entry is given up if every peer has answered [`ANSWERED_AFTER_MS`] or later after the damage was
/// found, and none has the entry.
pub const GIVE_UP_MS: u64 = 10_000;
/// Earlier answers do not count: the peer may not have been asked yet.
const ANSWERED_AFTER_MS: u64 = GIVE_UP_MS / 2;
/// Time after which an entry is given up although some peer has not answered.
pub const GIVE_UP_AWAY_MS: u64 = 60_000;
/// Ranges requested in one exchange. Further ones are requested in the next.
const RANGES_MAX: usize = 256;

/// The entries that are damaged or missing here. Times are milliseconds of a monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Repair {
    /// Each missing entry, and since when; or since the last repair of any entry, if that was later.
    missing: BTreeMap<(Origin, u64), u64>,
    /// When each peer's last exchange completed.
    answered: BTreeMap<usize, u64>,
}

impl Repair {
    /// Takes over what is damaged or missing now. Damage after a cut is dropped: a read that began before the cut may
    /// have recorded it later, and no peer repairs it.
    pub fn update(&mut self, damage: &Damage, logs: &Logs, now_ms: u64) {
        for (origin, seq) in damage.all() {
            if seq > logs.vector().limit(origin) {
                damage.remove(origin, seq);
            }
        }
        let is_within = |(origin, seq): &(Origin, u64)| *seq <= logs.vector().seq(*origin);
        let damage = damage.all().into_iter().filter(is_within);
        let gaps = logs.detached().map(|(origin, _)| (origin, logs.vector().seq(origin) + 1));
        let now: BTreeSet<_> = damage.chain(gaps).collect();
        // While repairs continue, nothing is given up: an exchange brings only a part of what may be missing.
        let is_progressing = self.missing.keys().any(|key| !now.contains(key));
        let since = |key| match self.missing.get(&key) {
            Some(since) if !is_progressing => *since,
            _ => now_ms,
        };
        self.missing = now.into_iter().map(|key| (key, since(key))).collect();
    }

    /// Damaged entries within our logs that this peer may have. Entries after a head are requested anyway.
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

    pub fn answered(&mut self, peer: usize, now_ms: u64) {
        self.answered.insert(peer, now_ms);
    }

    /// Where to cut logs because no peer has what is missing. `peers`: all there are.
    pub fn given_up(&self, peers: &[usize], now_ms: u64) -> Vec<(Origin, u64)> {
        let all_since =
            |since: u64| peers.iter().all(|peer| self.answered.get(peer).is_some_and(|at| *at > since));
        let mut given_up: BTreeMap<Origin, u64> = BTreeMap::new();
        for ((origin, seq), since) in &self.missing {
            let age = now_ms.saturating_sub(*since);
            if age >= GIVE_UP_AWAY_MS || (age >= GIVE_UP_MS && all_since(since + ANSWERED_AFTER_MS)) {
                given_up.entry(*origin).or_insert(*seq); // the first of each log, for they are sorted
            }
        }
        given_up.into_iter().collect()
    }

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

    fn damaged(seqs: &[u64]) -> (Repair, Vector) {
        let (list, mut logs) = (Damage::default(), Logs::default());
        for seq in seqs {
            list.add(A, *seq);
        }
        for _ in 0..9 {
            logs.assign(crate::chain::message::Digest([0; 32]), 0, || A);
        }
        let mut repair = Repair::default();
        repair.update(&list, &logs, 1_000);
        (repair, logs.vector().clone())
    }

    #[test]
    fn a_peer_is_asked_for_what_it_may_have() {
        let (repair, mine) = damaged(&[2, 3, 4, 7, 9, 12]);
        let asked: Vec<_> =
            repair.ranges(&mine, Some(&vector(8))).iter().map(|range| (range.first, range.last)).collect();
        assert_eq!(asked, [(2, 4), (7, 7)]);
        assert_eq!(repair.ranges(&mine, None), []);
    }

    #[test]
    fn damage_after_a_cut_is_dropped() {
        let (list, mut logs) = (Damage::default(), Logs::default());
        logs.assign(crate::chain::message::Digest([0; 32]), 0, || A);
        logs.cut(A, 1, None);
        list.add(A, 1);
        let mut repair = Repair::default();
        repair.update(&list, &logs, 1_000);
        assert_eq!((list.count(), repair.count()), (0, 0));
    }

    #[test]
    fn an_entry_is_given_up_once_all_peers_were_asked_or_after_a_minute() {
        let (mut repair, _) = damaged(&[7, 3]);
        repair.answered(0, 9_000);
        assert_eq!(repair.given_up(&[0, 1], 1_000 + GIVE_UP_MS), [], "one was not asked");
        assert_eq!(repair.given_up(&[0, 1], 1_000 + GIVE_UP_AWAY_MS), [(A, 3)]);
        repair.answered(1, 9_000);
        assert_eq!(repair.given_up(&[0, 1], GIVE_UP_MS), []);
        assert_eq!(repair.given_up(&[0, 1], 1_000 + GIVE_UP_MS), [(A, 3)]);
    }

    /// Thousands of entries may be damaged at once, or many logs have a gap that a long catch-up comes to one by one.
    #[test]
    fn nothing_is_given_up_while_repairs_continue() {
        let damage = Damage::default();
        let mut logs = Logs::default();
        for seq in 1..=9 {
            damage.add(A, seq);
            logs.assign(crate::chain::message::Digest([0; 32]), 0, || A);
        }
        let mut repair = Repair::default();
        let mut now = 0;
        for seq in 1..=8 {
            repair.update(&damage, &logs, now);
            repair.answered(0, now);
            assert_eq!(repair.given_up(&[0], now), [], "at {now}");
            damage.remove(A, seq);
            now += GIVE_UP_MS / 2;
        }
        repair.update(&damage, &logs, now);
        now += GIVE_UP_MS;
        repair.answered(0, now);
        repair.update(&damage, &logs, now);
        assert_eq!(repair.given_up(&[0], now), [(A, 9)]);
    }
}
