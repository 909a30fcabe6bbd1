//! Owns the vector: which entries of every log a store holds, and whether two stores hold the same.
//!
//! A vector lists durable entries only, as heads (origin -> seq and chain hash). Equal heads prove equal logs. It also
//! lists the cuts (origin -> seq): a log has no entry from its cut on, on any node. A cut is never undone, and
//! of two cuts the smaller counts, so all nodes reach the same cuts in whatever order they learn them. Both are sorted
//! maps with structural sharing, because a vector is copied with every commit and compared with every exchange, and of
//! thousands of logs a few grow.

use imbl::ordmap::DiffItem;

use super::ids::{ChainHash, Origin};
use super::record::Entry;

/// A log's last entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub seq: u64,
    /// The chain's hash there.
    pub hash: ChainHash,
}

impl Head {
    /// The head of the same log with one more entry.
    #[must_use]
    pub fn followed_by(self, entry: &Entry) -> Self {
        Head { seq: entry.seq(), hash: self.hash.next(entry.seq(), entry.stamp(), entry.digest()) }
    }
}

/// The heads and the cuts of all logs of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vector {
    heads: imbl::OrdMap<Origin, Head>,
    cuts: imbl::OrdMap<Origin, u64>,
}

/// A hash over a vector's sorted heads, and its cuts if it has any.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VectorDigest(pub [u8; 32]);

impl std::fmt::Display for VectorDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&blake3::Hash::from(self.0).to_hex())
    }
}

impl std::fmt::Debug for VectorDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Vector {
    pub fn insert(&mut self, origin: Origin, head: Head) {
        self.heads.insert(origin, head);
    }

    /// A log's head, if it has entries.
    pub fn get(&self, origin: Origin) -> Option<&Head> {
        self.heads.get(&origin)
    }

    /// A log's last seq, 0 if it has no entries.
    pub fn seq(&self, origin: Origin) -> u64 {
        self.heads.get(&origin).map_or(0, |head| head.seq)
    }

    /// The chain's hash at a log's head.
    pub fn hash(&self, origin: Origin) -> ChainHash {
        self.heads.get(&origin).map_or_else(|| ChainHash::genesis(origin), |head| head.hash)
    }

    /// Cuts a log and sets its head, the entry before the cut. The caller vouches for that head.
    pub fn cut(&mut self, origin: Origin, seq: u64, before: Option<Head>) {
        let earlier = self.cuts.get(&origin).copied().unwrap_or(u64::MAX);
        self.cuts.insert(origin, seq.min(earlier));
        match before {
            Some(head) => self.heads.insert(origin, head),
            None => self.heads.remove(&origin),
        };
    }

    /// Where a log is cut, if it is.
    pub fn cut_of(&self, origin: Origin) -> Option<u64> {
        self.cuts.get(&origin).copied()
    }

    /// The last seq that a log can have: any number, unless it is cut.
    pub fn limit(&self, origin: Origin) -> u64 {
        self.cuts.get(&origin).map_or(u64::MAX, |cut| cut - 1)
    }

    pub fn origins(&self) -> usize {
        self.heads.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Origin, Head)> + '_ {
        self.heads.iter().map(|(origin, head)| (*origin, *head))
    }

    pub fn cuts(&self) -> impl Iterator<Item = (Origin, u64)> + '_ {
        self.cuts.iter().map(|(origin, seq)| (*origin, *seq))
    }

    /// The heads that differ from `base`, in time proportional to their number where both share history.
    /// A head is removed only by a cut at 1, which is a difference of the cuts.
    pub fn changes_since(&self, base: &Vector) -> Vec<(Origin, Head)> {
        changes(&base.heads, &self.heads)
    }

    /// The cuts that `base` does not have, or has at another seq.
    pub fn cuts_since(&self, base: &Vector) -> Vec<(Origin, u64)> {
        changes(&base.cuts, &self.cuts)
    }

    /// Logs in which this vector covers entries that `other` lacks and no cut excludes: each with the last of them and
    /// the other's last seq.
    pub fn leads(&self, other: &Vector) -> Vec<(Origin, u64, u64)> {
        let changes = self.changes_since(other).into_iter();
        let lead = |(origin, head): (Origin, Head)| {
            let last = head.seq.min(other.limit(origin)).min(self.limit(origin));
            (origin, last, other.seq(origin))
        };
        changes.map(lead).filter(|(_, last, other)| last > other).collect()
    }

    /// Number of entries that this vector covers and `other` does not. A peer may claim any number: it saturates.
    pub fn ahead_of(&self, other: &Vector) -> u64 {
        let leads = self.leads(other).into_iter();
        leads.map(|(_, last, other)| last - other).fold(0, u64::saturating_add)
    }

    /// Raises every head to at least that of `other`, as far as neither has cut the log.
    pub fn merge(&mut self, other: &Vector) {
        for (origin, head) in other.changes_since(&self.clone()) {
            if head.seq > self.seq(origin) {
                self.insert(origin, head);
            }
        }
        for (origin, _) in self.cuts_since(other).into_iter().chain(other.cuts_since(self)) {
            let cut = self.limit(origin).min(other.limit(origin)) + 1;
            let before = self.get(origin).copied().filter(|_| cut > 1);
            // The hash before the cut is not known. It is not used: a union is only counted.
            self.cut(origin, cut, before.map(|head| Head { seq: head.seq.min(cut - 1), ..head }));
        }
    }

    /// Number of entries in all logs; saturates, as above.
    pub fn entries(&self) -> u64 {
        self.heads.values().map(|head| head.seq).fold(0, u64::saturating_add)
    }

    /// The hash that two stores compare. Linear in the number of logs.
    pub fn digest(&self) -> VectorDigest {
        let mut hasher = blake3::Hasher::new();
        for (origin, head) in &self.heads {
            hasher.update(&origin.0);
            hasher.update(&head.seq.to_be_bytes());
            hasher.update(&head.hash.0);
        }
        let heads = VectorDigest(*hasher.finalize().as_bytes());
        if self.cuts.is_empty() {
            return heads;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"cuts");
        hasher.update(&heads.0);
        for (origin, seq) in &self.cuts {
            hasher.update(&origin.0);
            hasher.update(&seq.to_be_bytes());
        }
        VectorDigest(*hasher.finalize().as_bytes())
    }
}

/// The entries of `now` that `base` lacks or has with another value.
fn changes<V: Copy + PartialEq>(
    base: &imbl::OrdMap<Origin, V>,
    now: &imbl::OrdMap<Origin, V>,
) -> Vec<(Origin, V)> {
    base.diff(now)
        .filter_map(|item| match item {
            DiffItem::Add(origin, value) | DiffItem::Update { new: (origin, value), .. } => {
                Some((*origin, *value))
            }
            DiffItem::Remove(..) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(heads: &[(u8, u64)]) -> Vector {
        let mut vector = Vector::default();
        for &(name, seq) in heads {
            vector.insert(Origin([name; 16]), Head { seq, hash: ChainHash([name; 32]) });
        }
        vector
    }

    #[test]
    fn changes_are_the_heads_that_differ_from_the_base() {
        let base = vector(&[(1, 5), (2, 5), (4, 1)]);
        let changed = vector(&[(1, 5), (2, 7), (3, 1)]);
        let names: Vec<_> = changed.changes_since(&base).iter().map(|(o, h)| (o.0[0], h.seq)).collect();
        assert_eq!(names, [(2, 7), (3, 1)]);
        assert_eq!(changed.ahead_of(&base), 3);
        assert_eq!(base.ahead_of(&changed), 1);
    }

    #[test]
    fn merging_raises_heads_and_never_lowers_them() {
        let mut union = vector(&[(1, 5), (2, 5)]);
        union.merge(&vector(&[(1, 3), (2, 9), (3, 1)]));
        assert_eq!(union, vector(&[(1, 5), (2, 9), (3, 1)]));
        assert_eq!(union.entries(), 15);
    }

    #[test]
    fn the_digest_depends_on_content_not_on_the_order_of_insertion() {
        let one = vector(&[(1, 5), (2, 5)]);
        let two = vector(&[(2, 5), (1, 5)]);
        assert_eq!(one.digest(), two.digest());
        assert_ne!(one.digest(), vector(&[(1, 5), (2, 6)]).digest());
    }

    #[test]
    fn a_cut_changes_the_digest_and_of_two_the_smaller_counts() {
        let (one, mut cut) = (vector(&[(1, 5), (2, 5)]), vector(&[(1, 5), (2, 5)]));
        cut.cut(Origin([3; 16]), 7, None);
        assert_ne!(one.digest(), cut.digest());
        let mut other = cut.clone();
        cut.cut(Origin([3; 16]), 4, None);
        other.cut(Origin([3; 16]), 4, None);
        other.cut(Origin([3; 16]), 7, None);
        assert_eq!((cut.cut_of(Origin([3; 16])), cut.digest()), (Some(4), other.digest()));
    }

    #[test]
    fn entries_from_a_cut_on_count_as_missing_nowhere() {
        let (all, mut cut) = (vector(&[(1, 9), (2, 5)]), vector(&[(1, 3), (2, 5)]));
        let (a, before) = (Origin([1; 16]), Head { seq: 3, hash: ChainHash([1; 32]) });
        cut.cut(a, 6, Some(before));
        assert_eq!(all.leads(&cut), [(a, 5, 3)]);
        assert_eq!((all.ahead_of(&cut), cut.ahead_of(&all)), (2, 0));
        let (mut one, mut two) = (all.clone(), cut.clone());
        one.merge(&cut);
        two.merge(&all);
        assert_eq!((one.seq(a), two.seq(a), one.limit(a), two.limit(a)), (5, 5, 5, 5));
        cut.cut(a, 1, None);
        assert_eq!((cut.seq(a), all.leads(&cut)), (0, Vec::new()));
    }
}
