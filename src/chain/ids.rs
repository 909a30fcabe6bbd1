//! Owns what identifies things in logs: the origin, the key of an entry, a hash in the chain.
//!
//! `h(0) = BLAKE3(origin | type | keep days)` and `h(n) = BLAKE3(h(n-1) | seq | stamp | leaf)`, where `leaf =
//! BLAKE3(kind | account length | account | digest)`. Equal hashes at equal seqs prove that the logs are equal up to
//! there. The chain covers an entry through its leaf, so content, digest and account can be erased without breaking the
//! chain, and nothing is left from which a short text could be guessed.

use std::fmt;

use super::clock::Stamp;
use super::kind::{EntryKind, LogType};
use super::message::Digest;

/// The random id of one append-only log. Not the id of a node: a node begins a log with each run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(pub [u8; 16]);

impl Origin {
    /// The id of the branch that begins with the entry that had the key `first`: a hash of that key, the leaf and the
    /// type of the branch, so that all nodes that hold the entry choose the same id without an exchange.
    pub fn branch(first: EntryKey, log_type: LogType, leaf: Leaf) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"chatchain branch 2");
        hasher.update(&first.stamp.0.to_be_bytes());
        hasher.update(&first.origin.0);
        hasher.update(&first.seq.to_be_bytes());
        hasher.update(&log_type.of_branch().bytes());
        hasher.update(&leaf.0);
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

/// What the chain covers of an entry besides its key: a hash of its kind, its account and its digest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Leaf(pub [u8; 32]);

impl Leaf {
    pub fn of(kind: EntryKind, account: &str, digest: Digest) -> Self {
        let length = u16::try_from(account.len()).expect("an account has at most 64 characters");
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[kind.byte()]);
        hasher.update(&length.to_be_bytes());
        hasher.update(account.as_bytes());
        hasher.update(&digest.0);
        Leaf(*hasher.finalize().as_bytes())
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", blake3::Hash::from(self.0).to_hex())
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
    pub fn genesis(origin: Origin, log_type: LogType) -> Self {
        let mut bytes = [0; 16 + LogType::BYTES];
        bytes[..16].copy_from_slice(&origin.0);
        bytes[16..].copy_from_slice(&log_type.bytes());
        ChainHash(*blake3::hash(&bytes).as_bytes())
    }

    /// `h(n)` from `h(n-1)` and entry `n`.
    #[must_use]
    pub fn next(self, seq: u64, stamp: Stamp, leaf: Leaf) -> Self {
        let mut bytes = [0; 80];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..40].copy_from_slice(&seq.to_be_bytes());
        bytes[40..48].copy_from_slice(&stamp.0.to_be_bytes());
        bytes[48..].copy_from_slice(&leaf.0);
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
    fn the_id_of_a_branch_is_frozen_and_depends_on_key_type_and_leaf() {
        let (first, leaf) = (EntryKey { stamp: Stamp(3), origin: Origin([7; 16]), seq: 17 }, Leaf([5; 32]));
        let name = Origin::branch(first, LogType::MESSAGES, leaf);
        assert_eq!(name.to_string(), "052f0c05-9705-83a6-15b7-fac814191796");
        let others = [
            (EntryKey { stamp: Stamp(4), ..first }, LogType::MESSAGES, leaf),
            (EntryKey { origin: Origin([8; 16]), ..first }, LogType::MESSAGES, leaf),
            (EntryKey { seq: 18, ..first }, LogType::MESSAGES, leaf),
            (first, LogType { is_control: true, ..LogType::MESSAGES }, leaf),
            (first, LogType { keep_days: 1, ..LogType::MESSAGES }, leaf),
            (first, LogType::MESSAGES, Leaf([6; 32])),
        ];
        assert!(
            others.iter().all(|(first, log_type, leaf)| Origin::branch(*first, *log_type, *leaf) != name)
        );
    }

    /// Frozen: the hashes of format 2. May be added to, never changed.
    #[test]
    fn the_chain_is_frozen() {
        let genesis = ChainHash::genesis(Origin([7; 16]), LogType { keep_days: 30, ..LogType::MESSAGES });
        let leaf = Leaf::of(EntryKind::Message, "ana", Digest([5; 32]));
        let next = genesis.next(1, Stamp(2), leaf);
        assert_eq!(
            [genesis.0, leaf.0, next.0].map(|hash| crate::chain::hex(&hash[..8])),
            ["5fcfb1445384db22", "22e69f9ae23198c7", "a7fd0dcd6e4f8fda"]
        );
        assert_ne!(Leaf::of(EntryKind::Message, "", Digest([5; 32])), leaf);
        assert_ne!(Leaf::of(EntryKind::Snapshot, "ana", Digest([5; 32])), leaf);
    }
}
