//! Owns the bytes of an entry: the record.
//!
//! The same bytes lie in the store and travel between nodes, and a record can be recognized in a raw file without the
//! database around it. An [`Entry`] is the only access to a record, and building an entry verifies the checksum once;
//! so damaged bytes are never served, sent or counted. The header never changes.
//!
//! Layout, big-endian, [`HEADER_BYTES`] + content + [`CHECKSUM_BYTES`]:
//! `magic 8 | version u8 | kind u8 | zero u16 | content length u32 | origin 16 | seq u64 | stamp u64 |
//! digest 32 | content | XXH3-64 over all before it`.

use std::fmt;

use bytes::Bytes;
use twox_hash::XxHash3_64;

use super::clock::Stamp;
use super::ids::{EntryKey, Origin};
use super::message::{Content, Digest};
use crate::fault::Fault;

/// The largest record. A longer one counts as damaged.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Bytes before the content.
const HEADER_BYTES: usize = 80;
/// Bytes after the content.
const CHECKSUM_BYTES: usize = 8;
/// The first bytes of every record.
pub const MAGIC: [u8; 8] = *b"\xc7ChatChn";
const VERSION: u8 = 1;

/// What an entry carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A message's content.
    Message,
    /// No content: it was erased, and the position in the hash chain stays. Reserved; no program writes it yet.
    Erased,
    /// A frontier snapshot: how far its writer was in all logs. It keeps cursors short, see
    /// [`frontier`](super::frontier).
    Snapshot,
    /// A kind that a newer program defines. The entry is kept and passed on unchanged.
    Newer(u8),
}

impl EntryKind {
    fn byte(self) -> u8 {
        match self {
            EntryKind::Message => 1,
            EntryKind::Erased => 2,
            EntryKind::Snapshot => 3,
            EntryKind::Newer(byte) => byte,
        }
    }

    /// `None`: no version of this program writes that byte.
    fn of(byte: u8) -> Option<Self> {
        match byte {
            0 => None,
            1 => Some(EntryKind::Message),
            2 => Some(EntryKind::Erased),
            3 => Some(EntryKind::Snapshot),
            newer => Some(EntryKind::Newer(newer)),
        }
    }
}

/// One entry of a log: the bytes of its record, whose checksum was verified. It cannot be built from other bytes, so
/// no caller checks it again. A clone shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    bytes: Bytes,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecord {
    #[error("the record is cut off")]
    Short,
    /// The magic, the version, the kind or the length is not one that a record can have.
    #[error("the record has an invalid header")]
    Header,
    #[error("the record's checksum does not match its bytes")]
    Checksum,
}

impl Entry {
    /// Encodes an entry. `digest` is that of `content`; [`Entry::content_matches_digest`] tells.
    pub fn new(key: EntryKey, kind: EntryKind, digest: Digest, content: &[u8]) -> Self {
        let mut out = Vec::with_capacity(HEADER_BYTES + content.len() + CHECKSUM_BYTES);
        let length = u32::try_from(content.len()).expect("content is far below 4 GiB");
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.push(kind.byte());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&key.origin.0);
        out.extend_from_slice(&key.seq.to_be_bytes());
        out.extend_from_slice(&key.stamp.0.to_be_bytes());
        out.extend_from_slice(&digest.0);
        out.extend_from_slice(content);
        let checksum = XxHash3_64::oneshot(&out);
        out.extend_from_slice(&checksum.to_be_bytes());
        Entry { bytes: out.into() }
    }

    /// Checks the record at the start of `bytes` and copies it. Bytes after the record are ignored.
    pub fn check(bytes: &[u8]) -> Result<Self, InvalidRecord> {
        let length = checked_length(bytes)?;
        Ok(Entry { bytes: Bytes::copy_from_slice(&bytes[..length]) })
    }

    /// Checks the record at the start of `part`, which is a part of `whole`. The entry shares the memory of `whole`.
    pub fn check_shared(whole: &Bytes, part: &[u8]) -> Result<Self, InvalidRecord> {
        let length = checked_length(part)?;
        Ok(Entry { bytes: whole.slice_ref(&part[..length]) })
    }

    /// The same kind, digest and content in another place.
    #[must_use]
    pub fn moved_to(&self, key: EntryKey) -> Self {
        Entry::new(key, self.kind(), self.digest(), self.content())
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    pub fn kind(&self) -> EntryKind {
        EntryKind::of(self.bytes[9]).expect("was checked")
    }

    pub fn key(&self) -> EntryKey {
        EntryKey { stamp: self.stamp(), origin: self.origin(), seq: self.seq() }
    }

    pub fn origin(&self) -> Origin {
        Origin(part(&self.bytes, 16))
    }

    pub fn seq(&self) -> u64 {
        u64::from_be_bytes(part(&self.bytes, 32))
    }

    /// When the origin accepted the entry.
    pub fn stamp(&self) -> Stamp {
        Stamp(u64::from_be_bytes(part(&self.bytes, 40)))
    }

    /// The digest of the content. An erased entry keeps the digest of what it carried.
    pub fn digest(&self) -> Digest {
        Digest(part(&self.bytes, 48))
    }

    pub fn content(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..self.bytes.len() - CHECKSUM_BYTES]
    }

    /// Whether the content has the digest that the header names. The checksum excludes accidents; this excludes
    /// forgery, so it is asked of entries that come from a peer or a damaged file.
    pub fn content_matches_digest(&self) -> bool {
        match self.kind() {
            EntryKind::Message | EntryKind::Snapshot => Digest::of(self.content()) == self.digest(),
            EntryKind::Erased => self.content().is_empty(),
            // A newer program defines what the digest covers; this one cannot compare.
            EntryKind::Newer(_) => true,
        }
    }

    /// The message, if the entry carries one that this program can read. See also [`Entry::needs_newer_program`].
    pub fn message(&self) -> Option<Content<'_>> {
        if self.kind() == EntryKind::Message { Content::decode(self.content()).ok() } else { None }
    }

    /// Whether only a newer program can read the entry. Listings omit such an entry; a feed waits before it.
    pub fn needs_newer_program(&self) -> bool {
        match self.kind() {
            EntryKind::Message => Content::decode(self.content()).is_err(),
            EntryKind::Erased | EntryKind::Snapshot => false,
            EntryKind::Newer(_) => true,
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key())
            .field("digest", &self.digest())
            .finish_non_exhaustive()
    }
}

/// The length of the record at the start of `bytes`, if its checksum matches.
fn checked_length(bytes: &[u8]) -> Result<usize, InvalidRecord> {
    let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(InvalidRecord::Short)?;
    let content_length = u32::from_be_bytes(part(header, 12)) as usize;
    let length = HEADER_BYTES + content_length + CHECKSUM_BYTES;
    let is_header = header[..8] == MAGIC
        && header[8] == VERSION
        && EntryKind::of(header[9]).is_some()
        && header[10..12] == [0, 0];
    if !is_header || length > RECORD_BYTES_MAX {
        return Err(InvalidRecord::Header);
    }
    let record = bytes.get(..length).ok_or(InvalidRecord::Short)?;
    let (covered, checksum) = record.split_last_chunk::<CHECKSUM_BYTES>().ok_or(InvalidRecord::Short)?;
    if XxHash3_64::oneshot(covered) != u64::from_be_bytes(*checksum) && !Fault::SkipCheck.is_planted() {
        return Err(InvalidRecord::Checksum);
    }
    Ok(length)
}

/// The `N` bytes of a header from `at` on.
fn part<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    *header[at..].first_chunk().expect("offsets lie within the header")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: EntryKey = EntryKey { stamp: Stamp(0x0102_0304_0506_0708), origin: Origin([7; 16]), seq: 17 };

    fn entry(kind: EntryKind, content: &[u8]) -> Entry {
        Entry::new(KEY, kind, Digest::of(content), content)
    }

    /// Frozen: the bytes of a version 1 record. May be added to, never changed.
    #[test]
    fn record_version_1_is_frozen() {
        assert_eq!(
            crate::chain::hex(entry(EntryKind::Message, b"hi").bytes()),
            "c74368617443686e0101000000000002070707070707070707070707070707070000000000000011010203040506070885052e9aab1b67b6622d94a08441b09fd5b7aca61ee360416d70de5da67d86ca68695b46b346b41e4349"
        );
    }

    #[test]
    fn an_entry_of_a_newer_kind_is_kept_unchanged_and_not_read() {
        let newer = entry(EntryKind::Newer(9), b"hi");
        let read = Entry::check(newer.bytes()).expect("its checksum matches");
        assert_eq!(
            (read.kind(), read.message(), read.needs_newer_program()),
            (EntryKind::Newer(9), None, true)
        );
        assert_eq!(read, newer);
        assert!(Entry::check(entry(EntryKind::Newer(0), b"hi").bytes()).is_err());
    }

    proptest! {
        #[test]
        fn check_gives_back_what_was_encoded(content in proptest::collection::vec(any::<u8>(), 0..300)) {
            let entry = entry(EntryKind::Message, &content);
            prop_assert_eq!(Entry::check(entry.bytes()), Ok(entry.clone()));
            prop_assert_eq!((entry.key(), entry.kind()), (KEY, EntryKind::Message));
            prop_assert_eq!((entry.digest(), entry.content()), (Digest::of(&content), content.as_slice()));
        }

        #[test]
        fn any_flipped_bit_is_noticed(content in proptest::collection::vec(any::<u8>(), 0..60), at: proptest::sample::Index) {
            let mut bytes = entry(EntryKind::Message, &content).bytes().to_vec();
            let bit = at.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Entry::check(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Entry::check(&bytes);
            let mut framed = MAGIC.to_vec();
            framed.extend_from_slice(&bytes);
            prop_assert!(Entry::check(&framed).is_err());
        }
    }
}
