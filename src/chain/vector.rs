//! Owns the vector: which entries of every log a store holds, and whether two stores hold the same.
//!
//! A vector lists durable entries only, as heads (origin -> seq and chain hash). Equal heads prove equal logs.
//! It is a sorted map with structural sharing, because it is copied with every commit and compared with every
//! exchange, and a store may know thousands of logs of which four are growing.

use std::cmp::Ordering;

use imbl::ordmap::DiffItem;

use super::place::{ChainHash, Origin};
use super::record::Record;

/// A log's last entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its seq, at least 1.
    pub seq: u64,
    /// The chain's hash there.
    pub hash: ChainHash,
}

impl Head {
    /// The head of the same log with one more entry.
    #[must_use]
    pub fn followed_by(self, record: &Record<'_>) -> Self {
        Head { seq: record.seq, hash: self.hash.next(record.seq, record.stamp, record.digest) }
    }
}

/// The heads of all logs of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vector(imbl::OrdMap<Origin, Head>);

/// A hash over a vector's sorted heads.
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
    /// Sets a log's head.
    pub fn insert(&mut self, origin: Origin, head: Head) {
        self.0.insert(origin, head);
    }

    /// A log's head, if it has entries.
    pub fn get(&self, origin: Origin) -> Option<&Head> {
        self.0.get(&origin)
    }

    /// A log's last seq, 0 if it has no entries.
    pub fn seq(&self, origin: Origin) -> u64 {
        self.0.get(&origin).map_or(0, |head| head.seq)
    }

    /// The chain's hash at a log's head.
    pub fn hash(&self, origin: Origin) -> ChainHash {
        self.0.get(&origin).map_or_else(|| ChainHash::genesis(origin), |head| head.hash)
    }

    /// Number of logs.
    pub fn origins(&self) -> usize {
        self.0.len()
    }

    /// All heads, by origin.
    pub fn iter(&self) -> impl Iterator<Item = (Origin, Head)> + '_ {
        self.0.iter().map(|(origin, head)| (*origin, *head))
    }

    /// The heads that differ from `base`, in time proportional to their number where both share history.
    /// Heads are never removed, so those only in `base` are not differences of this vector.
    pub fn changes_since(&self, base: &Vector) -> Vec<(Origin, Head)> {
        base.0
            .diff(&self.0)
            .filter_map(|item| match item {
                DiffItem::Add(origin, head) | DiffItem::Update { new: (origin, head), .. } => {
                    Some((*origin, *head))
                }
                DiffItem::Remove(..) => None,
            })
            .collect()
    }

    /// Number of entries that this vector covers and `other` does not. A peer may claim any number: it saturates.
    pub fn ahead_of(&self, other: &Vector) -> u64 {
        let ahead = |(origin, head): (Origin, Head)| head.seq.saturating_sub(other.seq(origin));
        self.changes_since(other).into_iter().map(ahead).fold(0, u64::saturating_add)
    }

    /// Raises every head to at least that of `other`.
    pub fn merge(&mut self, other: &Vector) {
        for (origin, head) in other.changes_since(&self.clone()) {
            if head.seq.cmp(&self.seq(origin)) == Ordering::Greater {
                self.insert(origin, head);
            }
        }
    }

    /// Number of entries in all logs; saturates, as above.
    pub fn entries(&self) -> u64 {
        self.0.values().map(|head| head.seq).fold(0, u64::saturating_add)
    }

    /// The hash that two stores compare. Linear in the number of logs.
    pub fn digest(&self) -> VectorDigest {
        let mut hasher = blake3::Hasher::new();
        for (origin, head) in &self.0 {
            hasher.update(&origin.0);
            hasher.update(&head.seq.to_be_bytes());
            hasher.update(&head.hash.0);
        }
        VectorDigest(*hasher.finalize().as_bytes())
    }
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
    fn changes_are_what_the_base_lacks_or_has_otherwise() {
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
}
