//! Owns what identifies things in logs: the origin, the key of an entry, a hash in the chain.
//!
//! `h(0) = BLAKE3(origin)` and `h(n) = BLAKE3(h(n-1) | seq | stamp | digest)`. Equal hashes at equal seqs prove that
//! the logs are equal up to there. The chain covers content through its digest, so content can be erased without
//! breaking the chain.

use std::fmt;

use super::clock::Stamp;
use super::message::Digest;

/// The random id of one append-only log. Not the id of a node: a node begins a log with each run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(pub [u8; 16]);

impl Origin {
    /// The id of the branch that begins with the entry that had the key `first`: a hash of that key and the digest, so
    /// that all nodes that hold the entry choose the same id without an exchange.
    pub fn branch(first: EntryKey, digest: Digest) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"chatchain branch 1");
        hasher.update(&first.stamp.0.to_be_bytes());
        hasher.update(&first.origin.0);
        hasher.update(&first.seq.to_be_bytes());
        hasher.update(&digest.0);
        Origin(*hasher.finalize().as_bytes().first_chunk().expect("32 bytes have 16"))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A hash in the chain of a log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainHash(pub [u8; 32]);

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", blake3::Hash::from(self.0).to_hex())
    }
}

impl ChainHash {
    /// `h(0)`, before the first entry.
    pub fn genesis(origin: Origin) -> Self {
        ChainHash(*blake3::hash(&origin.0).as_bytes())
    }

    /// `h(n)` from `h(n-1)` and entry `n`.
    #[must_use]
    pub fn next(self, seq: u64, stamp: Stamp, digest: Digest) -> Self {
        let mut bytes = [0; 80];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..40].copy_from_slice(&seq.to_be_bytes());
        bytes[40..48].copy_from_slice(&stamp.0.to_be_bytes());
        bytes[48..].copy_from_slice(&digest.0);
        ChainHash(*blake3::hash(&bytes).as_bytes())
    }
}

/// The key of an entry. History is sorted by it: this is the display order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryKey {
    /// When the origin accepted the entry.
    pub stamp: Stamp,
    pub origin: Origin,
    pub seq: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: every store must give a branch the same id, today and later.
    #[test]
    fn the_id_of_a_branch_is_frozen_and_depends_on_key_and_digest() {
        let (first, digest) =
            (EntryKey { stamp: Stamp(3), origin: Origin([7; 16]), seq: 17 }, Digest([5; 32]));
        let name = Origin::branch(first, digest);
        assert_eq!(name.to_string(), "a5fb801a-8c10-c2de-6872-75238e6244fe");
        let others = [
            (EntryKey { stamp: Stamp(4), ..first }, digest),
            (EntryKey { origin: Origin([8; 16]), ..first }, digest),
            (EntryKey { seq: 18, ..first }, digest),
            (first, Digest([6; 32])),
        ];
        assert!(others.iter().all(|(first, digest)| Origin::branch(*first, *digest) != name));
    }
}
