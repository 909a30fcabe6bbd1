//! Owns the bytes of an exchange: the body of `POST /sync` in both directions.
//!
//! Big-endian. A fixed head, then sections, each `tag u8 | length u32 | bytes`. An unknown section is skipped, so that
//! sections can be added. A quiet message has no sections. Records are sent as the store has them and are checked here,
//! one by one; a run ends before a damaged record.

use bytes::Bytes;

use crate::chain::bytes::ByteReader;
use crate::chain::ids::{ChainHash, Origin};
use crate::chain::members::{self, MEMBERS_MAX, Member, MemberId, MembersDigest};
use crate::chain::record::{Entry, InvalidRecord};
use crate::chain::vector::{Head, Vector, VectorDigest};

/// The newest protocol this program speaks; another one is refused.
pub const PROTOCOL: u16 = 1;
/// An address in an exchange is at most this long; a longer one is malformed.
pub const ADDRESS_BYTES_MAX: usize = 255;
const MAGIC: [u8; 4] = *b"ChSy";

const NEED_FULL: u8 = 1;
const MORE: u8 = 2;

const HEADS: u8 = 1;
const OWN: u8 = 2;
const WANTS: u8 = 3;
const RUN: u8 = 4;
const CUTS: u8 = 5;
const MEMBERS: u8 = 6;
const MEMBERS_DIGEST: u8 = 7;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The first bytes of a hash of the network's name.
    pub network: [u8; 8],
    pub node_id: u16,
    pub store_id: [u8; 16],
    /// The run of the process over the store, by time: later ones are larger. A peer drops what it knew of an earlier
    /// one.
    pub incarnation_id: [u8; 16],
    /// The address at which others reach it.
    pub address: String,
}

impl Hello {
    pub fn member_id(&self) -> MemberId {
        MemberId { node_id: self.node_id, store_id: self.store_id }
    }

    pub fn incarnation(&self) -> Incarnation {
        Incarnation { store_id: self.store_id, incarnation_id: self.incarnation_id }
    }

    /// Whether two processes run with copies of one store, and we must take another store id: the one that opened it
    /// later must, or, if a running machine was cloned, one of the two.
    pub fn is_copied(&self, ours: &Hello) -> bool {
        let age = |hello: &Hello| (hello.incarnation_id, hello.node_id, hello.address.clone());
        self.store_id == ours.store_id && age(self) < age(ours)
    }

    /// The short form of a network's name.
    pub fn network_hash(name: &str) -> [u8; 8] {
        *blake3::hash(name.as_bytes()).as_bytes().first_chunk().expect("32 bytes have 8")
    }
}

/// One run of a process over a store. What a peer knew or held in another incarnation is not relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Incarnation {
    pub store_id: [u8; 16],
    pub incarnation_id: [u8; 16],
}

/// The first half of a vector's digest: enough to notice a difference.
pub type ShortDigest = [u8; 16];

pub fn short(digest: VectorDigest) -> ShortDigest {
    *digest.0.first_chunk().expect("32 bytes have 16")
}

/// Heads, all of them or those that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heads {
    /// The vector that these are changes to; `None`: all heads are here.
    pub base: Option<ShortDigest>,
    pub changes: Vec<(Origin, Head)>,
    /// The cuts, all or those that changed.
    pub cuts: Vec<(Origin, u64)>,
}

impl Heads {
    /// The changes to `base`, or everything if there is no base; `None` if nothing changed.
    pub fn since(mine: &Vector, base: Option<&Vector>) -> Option<Self> {
        let Some(base) = base else {
            return Some(Heads { base: None, changes: mine.iter().collect(), cuts: mine.cuts().collect() });
        };
        let (changes, cuts) = (mine.changes_since(base), mine.cuts_since(base));
        if changes.is_empty() && cuts.is_empty() {
            return None;
        }
        Some(Heads { base: Some(short(base.digest())), changes, cuts })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRange {
    pub origin: Origin,
    pub first: u64,
    pub last: u64,
}

/// Consecutive entries of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub origin: Origin,
    /// The sender's head just before the first record; seq 0 has the log's first hash.
    pub before: Head,
    /// The entries, ascending from `before.seq + 1`.
    pub entries: Vec<Entry>,
    /// Why the run ends early: the next record is damaged.
    pub damaged: Option<InvalidRecord>,
}

/// One message of an exchange, either way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncMessage {
    pub hello: Hello,
    pub digest: ShortDigest,
    /// The sender does not know the other's vector and requests all heads.
    pub need_full: bool,
    /// More was wanted than fits into the message.
    pub more: bool,
    /// The part of the sender's vector that the other does not know.
    pub heads: Option<Heads>,
    /// The log that the sender appends to.
    pub own: Option<Origin>,
    /// The entries that the sender requests.
    pub wants: Vec<EntryRange>,
    /// Entries for the other.
    pub runs: Vec<Run>,
    /// The digest of all members that the sender knows. An answer has none.
    pub members_digest: Option<MembersDigest>,
    /// All members, if the other's digest differs.
    pub members: Vec<(MemberId, Member)>,
}

/// Why bytes are not a message of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("this is not an exchange of ChatChain")]
    Magic,
    #[error("the exchange has protocol version {0}; this node speaks {PROTOCOL}")]
    Protocol(u16),
    #[error("the exchange is malformed")]
    Layout,
}

impl SyncMessage {
    pub fn quiet(hello: Hello, digest: ShortDigest) -> Self {
        SyncMessage {
            hello,
            digest,
            need_full: false,
            more: false,
            heads: None,
            own: None,
            wants: Vec::new(),
            runs: Vec::new(),
            members_digest: None,
            members: Vec::new(),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let Hello { network, node_id, store_id, incarnation_id, address } = &self.hello;
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&PROTOCOL.to_be_bytes());
        out.push(if self.need_full { NEED_FULL } else { 0 } | if self.more { MORE } else { 0 });
        out.extend_from_slice(network);
        out.extend_from_slice(&node_id.to_be_bytes());
        out.extend_from_slice(store_id);
        out.extend_from_slice(incarnation_id);
        let address = &address.as_bytes()[..address.len().min(ADDRESS_BYTES_MAX)];
        out.push(u8::try_from(address.len()).expect("cut just now"));
        out.extend_from_slice(address);
        out.extend_from_slice(&self.digest);
        if let Some(heads) = &self.heads {
            section(&mut out, HEADS, |out| {
                out.push(u8::from(heads.base.is_some()));
                out.extend_from_slice(&heads.base.unwrap_or_default());
                for (origin, head) in &heads.changes {
                    out.extend_from_slice(&origin.0);
                    put_head(out, head);
                }
            });
            if !heads.cuts.is_empty() {
                section(&mut out, CUTS, |out| {
                    for (origin, seq) in &heads.cuts {
                        out.extend_from_slice(&origin.0);
                        out.extend_from_slice(&seq.to_be_bytes());
                    }
                });
            }
        }
        if let Some(own) = self.own {
            section(&mut out, OWN, |out| out.extend_from_slice(&own.0));
        }
        if !self.wants.is_empty() {
            section(&mut out, WANTS, |out| {
                for EntryRange { origin, first, last } in &self.wants {
                    out.extend_from_slice(&origin.0);
                    out.extend_from_slice(&first.to_be_bytes());
                    out.extend_from_slice(&last.to_be_bytes());
                }
            });
        }
        for run in &self.runs {
            section(&mut out, RUN, |out| {
                out.extend_from_slice(&run.origin.0);
                put_head(out, &run.before);
                run.entries.iter().for_each(|entry| out.extend_from_slice(entry.bytes()));
            });
        }
        self.encode_members(&mut out);
        out
    }

    fn encode_members(&self, out: &mut Vec<u8>) {
        if let Some(digest) = self.members_digest {
            section(out, MEMBERS_DIGEST, |out| out.extend_from_slice(&digest));
        }
        if !self.members.is_empty() {
            section(out, MEMBERS, |out| {
                self.members.iter().for_each(|(id, member)| members::put(out, *id, member));
            });
        }
    }

    /// Reads a message. The records are checked; their order within the log and the chain are not: admission does that.
    pub fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut reader = ByteReader::new(bytes);
        if reader.array() != Some(MAGIC) {
            return Err(Malformed::Magic);
        }
        match reader.u16() {
            Some(PROTOCOL) => Self::decode_protocol_1(reader, bytes).ok_or(Malformed::Layout),
            Some(other) => Err(Malformed::Protocol(other)),
            None => Err(Malformed::Layout),
        }
    }

    /// `whole` is the message that `reader` reads: entries share its memory.
    fn decode_protocol_1(mut reader: ByteReader<'_>, whole: &Bytes) -> Option<Self> {
        let flags = reader.u8()?;
        let (network, node_id) = (reader.array()?, reader.u16()?);
        let (store_id, incarnation_id) = (reader.array()?, reader.array()?);
        let address_length = reader.u8()?;
        let address = reader.str(address_length.into())?.to_owned();
        let hello = Hello { network, node_id, store_id, incarnation_id, address };
        let mut message = SyncMessage::quiet(hello, reader.array()?);
        (message.need_full, message.more) = (flags & NEED_FULL != 0, flags & MORE != 0);
        while !reader.is_empty() {
            let (tag, length) = (reader.u8()?, reader.u32()?);
            let mut section = ByteReader::new(reader.slice(length as usize)?);
            match tag {
                HEADS => message.heads = Some(section.heads()?),
                OWN => message.own = Some(Origin(section.array().and_then(|own| section.end(own))?)),
                WANTS => message.wants = section.all(ByteReader::range)?,
                RUN => message.runs.push(section.run(whole)?),
                MEMBERS_DIGEST => {
                    message.members_digest = Some(section.array().and_then(|digest| section.end(digest))?);
                }
                MEMBERS => message.members = section.members()?,
                CUTS => message.heads.as_mut()?.cuts = section.all(ByteReader::cut)?,
                _ => {} // a section that a newer program adds can be skipped
            }
        }
        Some(message)
    }
}

fn section(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - at - 4).expect("bodies are bounded far below 4 GiB");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn put_head(out: &mut Vec<u8>, head: &Head) {
    out.extend_from_slice(&head.seq.to_be_bytes());
    out.extend_from_slice(&head.hash.0);
}

impl ByteReader<'_> {
    fn head(&mut self) -> Option<Head> {
        Some(Head { seq: self.u64()?, hash: ChainHash(self.array()?) })
    }

    fn heads(&mut self) -> Option<Heads> {
        let (has_base, base) = (self.u8()?, self.array()?);
        let changes = self.all(|reader| {
            let (origin, head) = (Origin(reader.array()?), reader.head()?);
            (head.seq > 0).then_some((origin, head))
        })?;
        Some(Heads { base: (has_base == 1).then_some(base), changes, cuts: Vec::new() })
    }

    fn cut(&mut self) -> Option<(Origin, u64)> {
        let (origin, seq) = (Origin(self.array()?), self.u64()?);
        (seq > 0).then_some((origin, seq))
    }

    fn range(&mut self) -> Option<EntryRange> {
        let (origin, first, last) = (Origin(self.array()?), self.u64()?, self.u64()?);
        (first > 0 && last >= first).then_some(EntryRange { origin, first, last })
    }

    /// Items up to the end.
    fn all<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_empty() {
            items.push(item(self)?);
        }
        Some(items)
    }

    fn members(&mut self) -> Option<Vec<(MemberId, Member)>> {
        let mut members = Vec::new();
        while !self.is_empty() && members.len() < MEMBERS_MAX {
            members.push(members::read(self)?);
        }
        Some(members)
    }

    fn run(&mut self, whole: &Bytes) -> Option<Run> {
        let (origin, before) = (Origin(self.array()?), self.head()?);
        let mut run = Run { origin, before, entries: Vec::new(), damaged: None };
        let mut seq = before.seq;
        while !self.is_empty() {
            match Entry::check_shared(whole, self.rest()) {
                Ok(entry) if entry.origin() == origin && Some(entry.seq()) == seq.checked_add(1) => {
                    seq = entry.seq();
                    self.slice(entry.size())?;
                    run.entries.push(entry);
                }
                Ok(_) => return None,
                Err(why) => {
                    run.damaged = Some(why);
                    break;
                }
            }
        }
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::clock::Stamp;
    use crate::chain::ids::EntryKey;
    use crate::chain::message::Digest;
    use crate::chain::record::EntryKind;
    use proptest::prelude::*;

    const A: Origin = Origin([1; 16]);

    fn hello() -> Hello {
        Hello {
            network: Hello::network_hash("test"),
            node_id: 2,
            store_id: [3; 16],
            incarnation_id: [4; 16],
            address: "127.0.0.1:8083".into(),
        }
    }

    fn entry(seq: u64) -> Entry {
        let (key, content) = (EntryKey { stamp: Stamp(seq), origin: A, seq }, b"content");
        Entry::new(key, EntryKind::Message, Digest::of(content), content)
    }

    fn member(store: u8) -> (MemberId, Member) {
        let member = Member { incarnation_id: [4; 16], forget_count: 1, address: "127.0.0.1:8084".into() };
        (MemberId { node_id: 3, store_id: [store; 16] }, member)
    }

    fn full() -> SyncMessage {
        let head = |seq| Head { seq, hash: ChainHash([5; 32]) };
        SyncMessage {
            need_full: true,
            more: true,
            heads: Some(Heads { base: Some([6; 16]), changes: vec![(A, head(9))], cuts: vec![(A, 10)] }),
            own: Some(A),
            wants: vec![EntryRange { origin: A, first: 3, last: 9 }],
            members_digest: Some([8; 8]),
            members: vec![member(9), member(8)],
            runs: vec![Run { origin: A, before: head(6), entries: vec![entry(7), entry(8)], damaged: None }],
            ..SyncMessage::quiet(hello(), [7; 16])
        }
    }

    #[test]
    fn decode_gives_back_what_was_encoded() {
        for body in [full(), SyncMessage::quiet(hello(), [7; 16])] {
            assert_eq!(SyncMessage::decode(&body.encode().into()), Ok(body));
        }
    }

    /// Frozen: the bytes of protocol 1. May be added to, never changed.
    #[test]
    fn protocol_1_is_frozen() {
        let head = Head { seq: 9, hash: ChainHash([5; 32]) };
        let body = SyncMessage {
            heads: Some(Heads { base: Some([6; 16]), changes: vec![(A, head)], cuts: Vec::new() }),
            own: Some(A),
            wants: vec![EntryRange { origin: A, first: 3, last: 9 }],
            runs: vec![Run { origin: A, before: head, entries: Vec::new(), damaged: None }],
            ..SyncMessage::quiet(hello(), [7; 16])
        };
        assert_eq!(
            crate::chain::hex(&body.encode()),
            concat!(
                "436853790001004878ca0425c739fa000203030303030303030303030303030303040404040404040404040404",
                "040404040e3132372e302e302e313a383038330707070707070707070707070707070701000000490106060606",
                "060606060606060606060606010101010101010101010101010101010000000000000009050505050505050505",
                "050505050505050505050505050505050505050505050502000000100101010101010101010101010101010103",
                "000000200101010101010101010101010101010100000000000000030000000000000009040000003801010101",
                "010101010101010101010101000000000000000905050505050505050505050505050505050505050505050505",
                "05050505050505"
            )
        );
    }

    /// Frozen: what protocol 1 says of members. May be added to, never changed.
    #[test]
    fn members_in_protocol_1_are_frozen() {
        let quiet = SyncMessage::quiet(hello(), [7; 16]);
        let body = SyncMessage { members_digest: Some([8; 8]), members: vec![member(9)], ..quiet.clone() };
        assert_eq!(
            crate::chain::hex(&body.encode()[quiet.encode().len()..]),
            concat!(
                "070000000808080808080808080600000033000309090909090909090909090909090909040404040404040404",
                "0404040404040400010e3132372e302e302e313a38303834"
            )
        );
    }

    #[test]
    fn a_quiet_exchange_is_small() {
        let answer = SyncMessage::quiet(hello(), [0; 16]);
        let request = SyncMessage { members_digest: Some([8; 8]), ..answer.clone() };
        assert!(request.encode().len() + answer.encode().len() <= 200);
    }

    #[test]
    fn a_damaged_record_ends_its_run() {
        let mut bytes = SyncMessage { members_digest: None, members: Vec::new(), ..full() }.encode();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let body = SyncMessage::decode(&bytes.into()).expect("the frame is intact");
        assert_eq!(body.runs[0].entries, [entry(7)]);
        assert_eq!(body.runs[0].damaged, Some(InvalidRecord::Checksum));
    }

    #[test]
    fn foreign_bytes_and_other_versions_have_errors_of_their_own() {
        assert_eq!(SyncMessage::decode(&Bytes::from_static(b"GET / HTTP/1.1")), Err(Malformed::Magic));
        assert_eq!(SyncMessage::decode(&Bytes::new()), Err(Malformed::Magic));
        let mut bytes = full().encode();
        bytes[5] = 9;
        assert_eq!(SyncMessage::decode(&bytes.into()), Err(Malformed::Protocol(9)));
    }

    #[test]
    fn an_unknown_section_is_skipped() {
        let mut bytes = SyncMessage::quiet(hello(), [7; 16]).encode();
        section(&mut bytes, 200, |out| out.extend_from_slice(b"from the future"));
        assert_eq!(SyncMessage::decode(&bytes.into()), Ok(SyncMessage::quiet(hello(), [7; 16])));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(at: proptest::sample::Index, bytes in proptest::collection::vec(any::<u8>(), 1..40)) {
            let mut body = full().encode();
            let at = at.index(body.len());
            body.splice(at..(at + bytes.len()).min(body.len()), bytes);
            let _ = SyncMessage::decode(&body.clone().into());
            body.truncate(at);
            let _ = SyncMessage::decode(&body.into());
        }
    }
}
