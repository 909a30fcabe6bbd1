//! Owns the bytes of an entry: the record.
//!
//! A record can be recognized in a raw file without the database around it. An [`Entry`] is the only access to a record, and building an entry verifies the checksum once;
//! so damaged bytes are never served, sent or counted. The header never changes.
//!
//! Layout, big-endian, [`HEADER_BYTES`] + content + [`CHECKSUM_BYTES`]:
//! `magic 8 | version u8 | kind u8 | log type 3 | account length u16 | content length u16 | origin 16 | seq u64 |
//! stamp u64 | digest 32 | account | content | XXH3-64 over all before it`.
//!
//! Between nodes an entry travels without digest and checksum (see [`wire`](super::sync::wire)): the receiver computes
//! both.

use std::fmt;

use bytes::Bytes;
use twox_hash::XxHash3_64;

use super::clock::Stamp;
use super::ids::{EntryKey, Leaf, Origin};
use super::kind::{EntryKind, LogType};
use super::message::{Content, Digest};
use crate::fault::Fault;

/// The largest record. A longer one counts as damaged.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Bytes before the content.
const HEADER_BYTES: usize = 81;
/// Bytes after the content.
const CHECKSUM_BYTES: usize = 8;
/// The longest account, in Unicode scalar values.
pub const ACCOUNT_CHARS_MAX: usize = 64;
/// The first bytes of every record.
pub const MAGIC: [u8; 8] = *b"\xc7ChatChn";
/// The format of records and stores. A store of another one is refused.
pub const FORMAT: u8 = 2;

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

/// What an entry is, without its place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryBody<'a> {
    pub kind: EntryKind,
    /// The account that posted it; empty if none did.
    pub account: &'a str,
    /// The digest of kind and content.
    pub digest: Digest,
    pub content: &'a [u8],
}

impl EntryBody<'_> {
    /// Whether a log of this type can have such an entry.
    pub fn fits(&self, log_type: LogType) -> bool {
        let bytes = HEADER_BYTES + self.account.len() + self.content.len() + CHECKSUM_BYTES;
        self.kind.belongs_in(log_type) && is_account(self.account) && bytes <= RECORD_BYTES_MAX
    }
}

impl Entry {
    /// Encodes an entry of a log of messages, without an account. `digest` is that of kind and content;
    /// [`Entry::content_matches_digest`] tells.
    pub fn new(key: EntryKey, kind: EntryKind, digest: Digest, content: &[u8]) -> Self {
        Entry::encode(key, LogType::MESSAGES, &EntryBody { kind, account: "", digest, content })
    }

    /// Encodes an entry. The caller vouches that [`EntryBody::fits`].
    pub fn encode(key: EntryKey, log_type: LogType, body: &EntryBody<'_>) -> Self {
        let EntryBody { kind, account, digest, content } = *body;
        let mut out = Vec::with_capacity(HEADER_BYTES + account.len() + content.len() + CHECKSUM_BYTES);
        let length =
            |bytes: &[u8]| u16::try_from(bytes.len()).expect("an entry is at most 64 KiB").to_be_bytes();
        out.extend_from_slice(&MAGIC);
        out.push(FORMAT);
        out.push(kind.byte());
        out.extend_from_slice(&log_type.bytes());
        out.extend_from_slice(&length(account.as_bytes()));
        out.extend_from_slice(&length(content));
        out.extend_from_slice(&key.origin.0);
        out.extend_from_slice(&key.seq.to_be_bytes());
        out.extend_from_slice(&key.stamp.0.to_be_bytes());
        out.extend_from_slice(&digest.0);
        out.extend_from_slice(account.as_bytes());
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

    /// The same entry in a branch of its log.
    #[must_use]
    pub fn moved_to(&self, key: EntryKey) -> Self {
        Entry::encode(key, self.log_type().of_branch(), &self.body())
    }

    /// All but its place.
    pub fn body(&self) -> EntryBody<'_> {
        EntryBody {
            kind: self.kind(),
            account: self.account(),
            digest: self.digest(),
            content: self.content(),
        }
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

    /// The type of its log.
    pub fn log_type(&self) -> LogType {
        LogType::of(part(&self.bytes, 10)).expect("was checked")
    }

    pub fn origin(&self) -> Origin {
        Origin(part(&self.bytes, 17))
    }

    pub fn seq(&self) -> u64 {
        u64::from_be_bytes(part(&self.bytes, 33))
    }

    /// When the origin accepted the entry.
    pub fn stamp(&self) -> Stamp {
        Stamp(u64::from_be_bytes(part(&self.bytes, 41)))
    }

    /// The digest of kind and content.
    pub fn digest(&self) -> Digest {
        Digest(part(&self.bytes, 49))
    }

    /// The account that posted it; empty if none did. Two entries that differ in it are not the same entry, but may be
    /// copies of one message.
    pub fn account(&self) -> &str {
        let account = &self.bytes[HEADER_BYTES..self.content_at()];
        std::str::from_utf8(account).expect("was checked")
    }

    pub fn content(&self) -> &[u8] {
        &self.bytes[self.content_at()..self.bytes.len() - CHECKSUM_BYTES]
    }

    fn content_at(&self) -> usize {
        HEADER_BYTES + usize::from(u16::from_be_bytes(part(&self.bytes, 13)))
    }

    /// What the chain covers besides the key.
    pub fn leaf(&self) -> Leaf {
        Leaf::of(self.kind(), self.account(), self.digest())
    }

    /// Whether this is the same entry in another place.
    pub fn is_same_as(&self, other: &Entry) -> bool {
        (self.stamp(), self.leaf()) == (other.stamp(), other.leaf())
    }

    /// Whether kind and content have the digest that the header names. The checksum excludes accidents; this excludes
    /// forgery, so it is asked of entries that come from a peer or a damaged file. An entry without its content fails,
    /// too.
    pub fn content_matches_digest(&self) -> bool {
        Digest::of(self.kind(), self.content()) == self.digest()
    }

    /// The message, if the entry carries one that this program can read. See also [`Entry::needs_newer_program`].
    pub fn message(&self) -> Option<Content<'_>> {
        if self.kind() == EntryKind::Message { Content::decode(self.content()).ok() } else { None }
    }

    /// Whether only a newer program can read the entry. Listings omit such an entry; a feed waits before it.
    pub fn needs_newer_program(&self) -> bool {
        match self.kind() {
            EntryKind::Message => Content::decode(self.content()).is_err(),
            kind => kind.needs_newer_program(),
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
    let [account_length, content_length] =
        [13, 15].map(|at| usize::from(u16::from_be_bytes(part(header, at))));
    let length = HEADER_BYTES + account_length + content_length + CHECKSUM_BYTES;
    let kind_and_type = EntryKind::of(header[9]).zip(LogType::of(part(header, 10)));
    let is_header = header[..8] == MAGIC
        && header[8] == FORMAT
        && kind_and_type.is_some_and(|(kind, log_type)| kind.belongs_in(log_type));
    if !is_header || length > RECORD_BYTES_MAX {
        return Err(InvalidRecord::Header);
    }
    let record = bytes.get(..length).ok_or(InvalidRecord::Short)?;
    let (covered, checksum) = record.split_last_chunk::<CHECKSUM_BYTES>().ok_or(InvalidRecord::Short)?;
    if XxHash3_64::oneshot(covered) != u64::from_be_bytes(*checksum) && !Fault::SkipCheck.is_planted() {
        return Err(InvalidRecord::Checksum);
    }
    let account = &record[HEADER_BYTES..HEADER_BYTES + account_length];
    if !std::str::from_utf8(account).is_ok_and(is_account) {
        return Err(InvalidRecord::Header);
    }
    Ok(length)
}

fn is_account(account: &str) -> bool {
    account.chars().count() <= ACCOUNT_CHARS_MAX
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
        Entry::new(KEY, kind, Digest::of(kind, content), content)
    }

    fn with_account(account: &str) -> Entry {
        let (kind, content) = (EntryKind::Message, b"hi");
        let digest = Digest::of(kind, content);
        let log_type = LogType { keep_days: 30, ..LogType::MESSAGES };
        Entry::encode(KEY, log_type, &EntryBody { kind, account, digest, content })
    }

    /// Frozen: the bytes of a format 2 record. May be added to, never changed.
    #[test]
    fn a_record_of_format_2_is_frozen() {
        let read = Entry::check(with_account("ana").bytes()).expect("its checksum matches");
        assert_eq!((read.account(), read.content(), read.log_type().keep_days), ("ana", &b"hi"[..], 30));
        assert_eq!(
            crate::chain::hex(with_account("ana").bytes()),
            concat!(
                "c74368617443686e020100001e000300020707070707070707070707070707070700000000000000110102030405",
                "0607083b6cd9a830e28bfdd0bb9b049a3130144e14964ce2492e072434baf9d6396a61616e616869d4ee4b07b549",
                "0a13"
            )
        );
    }

    #[test]
    fn an_entry_of_an_unknown_kind_is_kept_unchanged_and_not_read() {
        for (kind, must_be_understood) in [(9, true), (127, true), (128, false)] {
            let unknown = entry(EntryKind::Other(kind), b"hi");
            let read = Entry::check(unknown.bytes()).expect("its checksum matches");
            assert_eq!((read.kind(), read.message()), (EntryKind::Other(kind), None));
            assert_eq!(read.needs_newer_program(), must_be_understood);
            assert_eq!(read, unknown);
        }
        assert!(Entry::check(entry(EntryKind::Other(0), b"hi").bytes()).is_err());
        assert!(
            Entry::check(entry(EntryKind::Other(4), b"hi").bytes()).is_err(),
            "accounts are in control logs only"
        );
    }

    /// Otherwise a peer could send a message under another kind. Both nodes would have equal heads, and the message would
    /// not be shown.
    #[test]
    fn the_digest_covers_the_kind_and_the_chain_the_account() {
        let message = entry(EntryKind::Message, b"hi");
        for kind in [EntryKind::Snapshot, EntryKind::Other(3), EntryKind::Other(200)] {
            let posing = Entry::new(KEY, kind, message.digest(), b"hi");
            assert!(!posing.content_matches_digest());
        }
        assert!(!Entry::new(KEY, EntryKind::Message, message.digest(), b"").content_matches_digest());
        assert!(!with_account("ana").is_same_as(&with_account("ben")));
        assert!(with_account("").is_same_as(&message));
        assert_eq!(with_account("ana").digest(), with_account("ben").digest());
    }

    #[test]
    fn an_account_has_at_most_64_characters() {
        assert!(Entry::check(with_account(&"é".repeat(64)).bytes()).is_ok());
        assert_eq!(Entry::check(with_account(&"é".repeat(65)).bytes()), Err(InvalidRecord::Header));
    }

    proptest! {
        #[test]
        fn check_gives_back_what_was_encoded(content in proptest::collection::vec(any::<u8>(), 0..300)) {
            let entry = entry(EntryKind::Message, &content);
            prop_assert_eq!(Entry::check(entry.bytes()), Ok(entry.clone()));
            prop_assert_eq!((entry.key(), entry.kind()), (KEY, EntryKind::Message));
            prop_assert_eq!((entry.digest(), entry.content()), (Digest::of(EntryKind::Message, &content), content.as_slice()));
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
