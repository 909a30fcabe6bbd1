//! Owns the search for the first entry in which two copies of a log differ. Values in, values out.
//!
//! Two nodes hold different content at the same positions of one log: a machine was cloned while it ran, or entries
//! were forged. Equal hashes prove equal logs up to there, so the first difference is found by bisection: each step
//! asks the peer for one entry and the hash before it. The result rests on two records, not on a hash: the peer's entry
//! passes its check, follows a position up to which both logs are equal, and differs from ours.

use crate::chain::clock::Stamp;
use crate::chain::ids::{ChainHash, Leaf};

/// A bisection of one log with one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bisection {
    /// Both are equal up to this seq, or one does not keep the entries up to it.
    equal: u64,
    /// The hashes differ at this seq.
    differs: u64,
}

/// An entry as one side has it: the hash before it, and what the chain covers of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainedEntry {
    /// `h(seq - 1)`.
    pub before: ChainHash,
    pub stamp: Stamp,
    pub leaf: Leaf,
}

/// The outcome of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BisectionOutcome {
    Closer(Bisection),
    /// This entry is the first that differs: the log is forked here.
    Fork(u64),
    /// The entries are equal where the hashes are not: the chain of one side is damaged.
    Inconclusive,
}

impl Bisection {
    /// Starts below a seq at which the hashes differ.
    pub fn below(differs: u64) -> Self {
        Bisection { equal: 0, differs }
    }

    /// Leaves out the entries up to `floor`, which one side does not keep. `false`: no entry is left that both could
    /// compare.
    pub fn begin_above(&mut self, floor: u64) -> bool {
        self.equal = self.equal.max(floor);
        self.equal < self.differs
    }

    pub fn asks(&self) -> u64 {
        self.equal + (self.differs - self.equal) / 2 + 1
    }

    /// Compares that entry on both sides.
    pub fn compare(self, ours: ChainedEntry, theirs: ChainedEntry) -> BisectionOutcome {
        let asked = self.asks();
        if ours.before != theirs.before {
            if asked == 1 {
                return BisectionOutcome::Fork(1); // the logs have one id and two types
            }
            let differs = asked - 1;
            return if differs > self.equal {
                BisectionOutcome::Closer(Bisection { differs, ..self })
            } else {
                BisectionOutcome::Inconclusive // an earlier step found them equal there, or nothing before it is kept
            };
        }
        if (ours.stamp, ours.leaf) != (theirs.stamp, theirs.leaf) {
            return BisectionOutcome::Fork(asked);
        }
        if asked >= self.differs {
            BisectionOutcome::Inconclusive
        } else {
            BisectionOutcome::Closer(Bisection { equal: asked, ..self })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ids::Origin;
    use crate::chain::kind::{EntryKind, LogType};
    use crate::chain::message::Digest;
    use proptest::prelude::*;

    fn sides(texts: &[u32]) -> Vec<ChainedEntry> {
        let mut before = ChainHash::genesis(Origin([1; 16]), LogType::MESSAGES);
        let mut sides = Vec::new();
        for (seq, text) in (1..).zip(texts) {
            let digest = Digest::of(EntryKind::Message, &text.to_be_bytes());
            let (stamp, leaf) = (Stamp(seq), Leaf::of(EntryKind::Message, "", digest));
            sides.push(ChainedEntry { before, stamp, leaf });
            before = before.next(seq, stamp, leaf);
        }
        sides
    }

    fn search(ours: &[ChainedEntry], theirs: &[ChainedEntry]) -> (BisectionOutcome, usize) {
        let mut search = Bisection::below(ours.len().min(theirs.len()) as u64);
        for step in 1.. {
            let at = usize::try_from(search.asks()).expect("small") - 1;
            match search.compare(ours[at], theirs[at]) {
                BisectionOutcome::Closer(closer) => search = closer,
                end => return (end, step),
            }
        }
        unreachable!("the loop only ends by returning")
    }

    proptest! {
        #[test]
        fn the_first_different_entry_is_found_in_few_steps(length in 1_u32..2_000, at: proptest::sample::Index) {
            let fork = at.index(length as usize);
            let ours: Vec<u32> = (0..length).collect();
            let theirs: Vec<u32> = (0..length).map(|n| if n as usize >= fork { n + 7_000 } else { n }).collect();
            let (found, steps) = search(&sides(&ours), &sides(&theirs));
            prop_assert_eq!(found, BisectionOutcome::Fork(fork as u64 + 1));
            prop_assert!(steps <= 12, "{} steps", steps);
        }

        #[test]
        fn equal_entries_with_a_wrong_hash_are_doubt(length in 1_u32..500, at: proptest::sample::Index) {
            let ours = sides(&(0..=length).collect::<Vec<_>>());
            let mut theirs = ours.clone();
            theirs[1 + at.index(length as usize)].before = ChainHash([9; 32]);
            let (found, _) = search(&ours, &theirs);
            prop_assert_eq!(found, BisectionOutcome::Inconclusive);
        }
    }
}
