//! Owns the bytes of an entry: the record, which stands for itself.
//!
//! The same bytes lie in the store, travel between nodes, and can be recognised in a raw file without the
//! database around them. The check is verified by [`Record::parse`], and there is no other way to look inside
//! a record; so damaged bytes are never served, synced or counted. The header is fixed for ever.
//!
//! Layout, big-endian, [`HEADER_BYTES`] + content + [`CHECK_BYTES`]:
//! `magic 8 | version u8 | kind u8 | zero u16 | content length u32 | origin 16 | seq u64 | stamp u64 |
//! digest 32 | content | XXH3-64 over all before it`.

use twox_hash::XxHash3_64;

use super::clock::Stamp;
use super::ids::Origin;
use super::message::{Content, Digest};
use crate::fault::Fault;

/// An entry with everything around it is at most this long; a longer one is damaged by definition.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Bytes before the content.
pub const HEADER_BYTES: usize = 80;
/// Bytes after the content.
pub const CHECK_BYTES: usize = 8;
/// What every record begins with.
pub const MAGIC: [u8; 8] = *b"\xc7ChatChn";
const VERSION: u8 = 1;

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A message's content.
    Message,
    /// Nothing: the body was erased, the place in the chain stays. Reserved; nothing writes it yet.
    Erased,
    /// How far its writer was in all logs, so that a reader's cursor can be short. See [`seqs`](super::seqs).
    Milestone,
    /// Something that a newer program wrote: kept and passed on as it is.
    Newer(u8),
}

impl EntryKind {
    fn byte(self) -> u8 {
        match self {
            EntryKind::Message => 1,
            EntryKind::Erased => 2,
            EntryKind::Milestone => 3,
            EntryKind::Newer(byte) => byte,
        }
    }

    /// `None`: no program of ours writes that.
    fn of(byte: u8) -> Option<Self> {
        match byte {
            0 => None,
            1 => Some(EntryKind::Message),
            2 => Some(EntryKind::Erased),
            3 => Some(EntryKind::Milestone),
            newer => Some(EntryKind::Newer(newer)),
        }
    }
}

/// A checked look at a record's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The log it stands in.
    pub origin: Origin,
    /// Its place there, from 1.
    pub seq: u64,
    /// When the origin accepted it.
    pub stamp: Stamp,
    /// Digest of the content, also after the content was erased.
    pub digest: Digest,
    /// What it carries.
    pub kind: EntryKind,
    /// The content bytes.
    pub content: &'a [u8],
}

/// Why bytes are not a record. They are damaged, or never were one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecord {
    /// Shorter than they say they are.
    #[error("the record is cut off")]
    Short,
    /// Another magic, version, kind or length than a record can have.
    #[error("the record's header is not one")]
    Header,
    /// The check does not fit the bytes.
    #[error("the record's check does not match its bytes")]
    Check,
}

impl<'a> Record<'a> {
    /// The bytes of this record.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.content.len() + CHECK_BYTES);
        let length = u32::try_from(self.content.len()).expect("content is far below 4 GiB");
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.push(self.kind.byte());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.origin.0);
        out.extend_from_slice(&self.seq.to_be_bytes());
        out.extend_from_slice(&self.stamp.0.to_be_bytes());
        out.extend_from_slice(&self.digest.0);
        out.extend_from_slice(self.content);
        let check = XxHash3_64::oneshot(&out);
        out.extend_from_slice(&check.to_be_bytes());
        out
    }

    /// Reads the record at the start of `bytes` and says how long it is.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, usize), InvalidRecord> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(InvalidRecord::Short)?;
        let [kind_byte, zero_1, zero_2] = [header[9], header[10], header[11]];
        let kind = EntryKind::of(kind_byte).ok_or(InvalidRecord::Header)?;
        let length = u32::from_be_bytes(part(header, 12)) as usize;
        let is_header = header[..8] == MAGIC && header[8] == VERSION && zero_1 == 0 && zero_2 == 0;
        if !is_header || HEADER_BYTES + length + CHECK_BYTES > RECORD_BYTES_MAX {
            return Err(InvalidRecord::Header);
        }
        let (content, rest) = rest.split_at_checked(length).ok_or(InvalidRecord::Short)?;
        let check = rest.first_chunk::<CHECK_BYTES>().ok_or(InvalidRecord::Short)?;
        let is_damaged = XxHash3_64::oneshot(&bytes[..HEADER_BYTES + length]) != u64::from_be_bytes(*check);
        if is_damaged && !Fault::SkipCheck.is_planted() {
            return Err(InvalidRecord::Check);
        }
        let record = Record {
            origin: Origin(part(header, 16)),
            seq: u64::from_be_bytes(part(header, 32)),
            stamp: Stamp(u64::from_be_bytes(part(header, 40))),
            digest: Digest(part(header, 48)),
            kind,
            content,
        };
        Ok((record, HEADER_BYTES + length + CHECK_BYTES))
    }

    /// Whether the content is what the digest says. The check already excludes accidents; this is asked where
    /// a record comes from somebody else.
    pub fn content_matches_digest(&self) -> bool {
        match self.kind {
            EntryKind::Message | EntryKind::Milestone => Digest::of(self.content) == self.digest,
            EntryKind::Erased => self.content.is_empty(),
            // What it means is not known, so what its digest is of is not either; the check holds it together.
            EntryKind::Newer(_) => true,
        }
    }

    /// What it says, to whom, by whom, if it is a message that this program can read. See also [`Record::is_unreadable`].
    pub fn message(&self) -> Option<Content<'a>> {
        if self.kind == EntryKind::Message { Content::decode(self.content).ok() } else { None }
    }

    /// Whether a newer program is needed to know what it is. Neither shown nor passed over by readers.
    pub fn is_unreadable(&self) -> bool {
        match self.kind {
            EntryKind::Message => Content::decode(self.content).is_err(),
            EntryKind::Erased | EntryKind::Milestone => false,
            EntryKind::Newer(_) => true,
        }
    }
}

fn part<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    *header[at..].first_chunk().expect("offsets lie within the header")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(content: &[u8]) -> Record<'_> {
        Record {
            origin: Origin([7; 16]),
            seq: 17,
            stamp: Stamp(0x0102_0304_0506_0708),
            digest: Digest::of(content),
            kind: EntryKind::Message,
            content,
        }
    }

    /// Frozen: the bytes of a version 1 record. May be added to, never changed.
    #[test]
    fn record_version_1_is_frozen() {
        assert_eq!(
            crate::chain::hex(&record(b"hi").encode()),
            "c74368617443686e0101000000000002070707070707070707070707070707070000000000000011010203040506070885052e9aab1b67b6622d94a08441b09fd5b7aca61ee360416d70de5da67d86ca68695b46b346b41e4349"
        );
    }

    #[test]
    fn what_a_newer_program_wrote_is_kept_as_it_is_and_not_understood() {
        let bytes = Record { kind: EntryKind::Newer(9), ..record(b"hi") }.encode();
        let (read, _) = Record::parse(&bytes).expect("its check holds");
        assert_eq!((read.kind, read.message(), read.is_unreadable()), (EntryKind::Newer(9), None, true));
        assert_eq!(read.encode(), bytes);
        assert!(Record::parse(&Record { kind: EntryKind::Newer(0), ..record(b"hi") }.encode()).is_err());
    }

    proptest! {
        #[test]
        fn parse_gives_back_what_was_encoded(content in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = record(&content).encode();
            prop_assert_eq!(Record::parse(&bytes), Ok((record(&content), bytes.len())));
        }

        #[test]
        fn any_flipped_bit_is_noticed(content in proptest::collection::vec(any::<u8>(), 0..60), at: proptest::sample::Index) {
            let mut bytes = record(&content).encode();
            let bit = at.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Record::parse(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::parse(&bytes);
            let mut framed = MAGIC.to_vec();
            framed.extend_from_slice(&bytes);
            prop_assert!(Record::parse(&framed).is_err());
        }
    }
}
