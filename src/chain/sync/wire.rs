//! Owns the bytes of an exchange: the body of `POST /sync` in both directions.
//!
//! Big-endian. A fixed head, then sections, each `tag u8 | length u32 | bytes`. An unknown section is skipped, so that
//! sections can be added. A quiet message has no sections. Runs come last, each complete in itself, so that the
//! receiver can store them while the rest is on its way.

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};

use crate::chain::bytes::ByteReader;
use crate::chain::ids::Origin;
use crate::chain::members::{self, MEMBERS_MAX, Member, MemberId, MembersDigest};
use crate::chain::record::Entry;
use crate::chain::sync::run;
use crate::chain::vector::{LogSpan, Vector, VectorDigest};

pub use crate::chain::sync::run::Run;

/// The newest protocol this program speaks; another one is refused.
pub const PROTOCOL: u16 = 2;
/// An address in an exchange is at most this long; a longer one is malformed.
pub const ADDRESS_BYTES_MAX: usize = 255;
const MAGIC: [u8; 4] = *b"ChSy";

const NEED_FULL: u8 = 1;
const MORE: u8 = 2;
const GUEST: u8 = 4;
const WANTS_ANY: u8 = 8;
const ENTRIES_ONLY: u8 = 16;

const HEADS: u8 = 1;
const OWN: u8 = 2;
const WANTS: u8 = 3;
const RUN: u8 = 4;
const CUTS: u8 = 5;
const MEMBERS: u8 = 6;
const MEMBERS_DIGEST: u8 = 7;
const PACKED: u8 = 8;
const BUDGET: u8 = 9;

/// Bytes of runs that are packed together, before packing: a part of all, within these bounds. More pack better;
/// fewer arrive sooner, and are lost if the link is cut.
const PACKED_BYTES_MIN: usize = 4 << 10;
const PACKED_BYTES_MAX: usize = 256 << 10;
/// A section is at most this long: as long as a whole request.
const SECTION_BYTES_MAX: usize = 8 << 20;
/// The runs of one message are at most this long without packing, and so are their records; a message with more is
/// malformed. Nodes send a quarter of it.
const RUN_BYTES_MAX: usize = 16 << 20;

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
    /// It exchanges like a node and is never a member (a backup).
    pub is_guest: bool,
}

impl Hello {
    pub fn member_id(&self) -> MemberId {
        MemberId { node_id: self.node_id, store_id: self.store_id }
    }

    pub fn incarnation(&self) -> Incarnation {
        Incarnation { store_id: self.store_id, incarnation_id: self.incarnation_id }
    }

    /// Whether two processes run with copies of one store, and we must take another store id: the one that opened it
    /// later must, or, if a running machine was cloned, one of the two. A guest may have a copy, for it never counts as
    /// a second store.
    pub fn is_copied(&self, ours: &Hello) -> bool {
        let age = |hello: &Hello| (hello.incarnation_id, hello.node_id, hello.address.clone());
        !self.is_guest && self.store_id == ours.store_id && age(self) < age(ours)
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
    pub changes: Vec<(Origin, LogSpan)>,
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

/// One message of an exchange, either way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the wire, independent of the others")]
pub struct SyncMessage {
    pub hello: Hello,
    /// The sender's wall clock, as it is: Unix milliseconds.
    pub clock_ms: u64,
    pub digest: ShortDigest,
    /// The sender does not know the other's vector and requests all heads.
    pub need_full: bool,
    /// More was wanted than fits into the message.
    pub more: bool,
    /// The part of the sender's vector that the other does not know.
    pub heads: Option<Heads>,
    /// The log that the sender appends to.
    pub own: Option<Origin>,
    /// The entries that the sender requests, the most urgent first.
    pub wants: Vec<EntryRange>,
    /// The sender does not know what the other has, and requests whatever it lacks.
    pub wants_any: bool,
    /// Neither side's vector travels, so that the message may overtake others of the two: a request has runs alone, and
    /// its answer the heads of their logs.
    pub entries_only: bool,
    /// How many bytes of records the answer should have; the answering side has a bound of its own.
    pub budget: Option<u32>,
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
    pub fn quiet(hello: Hello, digest: ShortDigest, clock_ms: u64) -> Self {
        SyncMessage {
            hello,
            clock_ms,
            digest,
            need_full: false,
            more: false,
            heads: None,
            own: None,
            wants: Vec::new(),
            wants_any: false,
            entries_only: false,
            budget: None,
            runs: Vec::new(),
            members_digest: None,
            members: Vec::new(),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let Hello { network, node_id, store_id, incarnation_id, address, is_guest } = &self.hello;
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&PROTOCOL.to_be_bytes());
        let flags = [
            (self.need_full, NEED_FULL),
            (self.more, MORE),
            (*is_guest, GUEST),
            (self.wants_any, WANTS_ANY),
            (self.entries_only, ENTRIES_ONLY),
        ];
        out.push(flags.iter().map(|(is_set, flag)| if *is_set { *flag } else { 0 }).sum());
        out.extend_from_slice(network);
        out.extend_from_slice(&node_id.to_be_bytes());
        out.extend_from_slice(store_id);
        out.extend_from_slice(incarnation_id);
        out.extend_from_slice(&self.clock_ms.to_be_bytes());
        let address = &address.as_bytes()[..address.len().min(ADDRESS_BYTES_MAX)];
        out.push(u8::try_from(address.len()).expect("cut just now"));
        out.extend_from_slice(address);
        out.extend_from_slice(&self.digest);
        if let Some(heads) = &self.heads {
            section(&mut out, HEADS, |out| {
                out.push(u8::from(heads.base.is_some()));
                out.extend_from_slice(&heads.base.unwrap_or_default());
                for (origin, span) in &heads.changes {
                    out.extend_from_slice(&origin.0);
                    span.put(out);
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
        if let Some(budget) = self.budget {
            section(&mut out, BUDGET, |out| out.extend_from_slice(&budget.to_be_bytes()));
        }
        self.encode_members(&mut out);
        put_runs(&mut out, &self.runs);
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

    /// Reads a whole message. The place of entries in the log and the chain are not checked: admission does that.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = SyncDecoder::default();
        decoder.push(bytes);
        let mut runs = Vec::new();
        while let Some(run) = decoder.next_run()? {
            runs.push(run);
        }
        if decoder.message.is_some() && !decoder.buffer.is_empty() {
            return Err(Malformed::Layout);
        }
        Ok(SyncMessage { runs, ..decoder.head()? })
    }

    fn decode_head(reader: &mut ByteReader<'_>) -> Result<Self, Malformed> {
        match reader.array() {
            Some(MAGIC) => {}
            _ => return Err(Malformed::Magic),
        }
        match reader.u16() {
            Some(PROTOCOL) => Self::decode_hello(reader).ok_or(Malformed::Layout),
            Some(other) => Err(Malformed::Protocol(other)),
            None => Err(Malformed::Layout),
        }
    }

    fn decode_hello(reader: &mut ByteReader<'_>) -> Option<Self> {
        let flags = reader.u8()?;
        let (network, node_id) = (reader.array()?, reader.u16()?);
        let (store_id, incarnation_id) = (reader.array()?, reader.array()?);
        let clock_ms = reader.u64()?;
        let address_length = reader.u8()?;
        let address = reader.str(address_length.into())?.to_owned();
        let is_guest = flags & GUEST != 0;
        let hello = Hello { network, node_id, store_id, incarnation_id, address, is_guest };
        let mut message = SyncMessage::quiet(hello, reader.array()?, clock_ms);
        (message.need_full, message.more) = (flags & NEED_FULL != 0, flags & MORE != 0);
        message.wants_any = flags & WANTS_ANY != 0;
        message.entries_only = flags & ENTRIES_ONLY != 0;
        Some(message)
    }

    /// Takes in a section. `None`: it is malformed.
    fn decode_section(&mut self, tag: u8, mut section: ByteReader<'_>) -> Option<()> {
        match tag {
            HEADS => self.heads = Some(section.heads()?),
            OWN => self.own = Some(Origin(section.array().and_then(|own| section.end(own))?)),
            WANTS => self.wants = section.all(ByteReader::range)?,
            MEMBERS_DIGEST => {
                self.members_digest = Some(section.array().and_then(|digest| section.end(digest))?);
            }
            BUDGET => self.budget = Some(section.u32().and_then(|budget| section.end(budget))?),
            MEMBERS => self.members = section.members()?,
            CUTS => self.heads.as_mut()?.cuts = section.all(ByteReader::cut)?,
            _ => {} // a section that a newer program adds can be skipped
        }
        Some(())
    }
}

/// Bytes of the records of these runs.
pub fn run_bytes(runs: &[Run]) -> usize {
    runs.iter().flat_map(|run| &run.entries).map(Entry::size).sum()
}

/// Appends runs, packed together as far as that makes them smaller.
fn put_runs(out: &mut Vec<u8>, runs: &[Run]) {
    let all = run_bytes(runs);
    let (most, mut raw) =
        ((all / run::PARTS_PER_MESSAGE).clamp(PACKED_BYTES_MIN, PACKED_BYTES_MAX), Vec::new());
    for (at, run) in runs.iter().enumerate() {
        section(&mut raw, RUN, |raw| run.put(raw));
        if raw.len() < most && at + 1 < runs.len() {
            continue;
        }
        match run::pack(&raw) {
            Some(packed) => section(out, PACKED, |out| out.extend_from_slice(&packed)),
            None => out.extend_from_slice(&raw),
        }
        raw.clear();
    }
}

/// Reads a message while its bytes arrive. Runs come last, so they can be stored before the message is complete.
#[derive(Debug, Default)]
pub struct SyncDecoder {
    buffer: BytesMut,
    /// Everything but the runs; complete once a run was read, or at the end.
    message: Option<SyncMessage>,
    runs: VecDeque<Run>,
    /// Bytes of runs so far, unpacked or as records, whichever is more.
    run_bytes: usize,
}

impl SyncDecoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that were pushed and not read yet.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The next run that is complete. `None`: more bytes are needed.
    pub fn next_run(&mut self) -> Result<Option<Run>, Malformed> {
        while self.runs.is_empty() && self.read_part()? {}
        Ok(self.runs.pop_front())
    }

    /// Everything but the runs, after a run was read or all bytes were pushed.
    pub fn head(&self) -> Result<SyncMessage, Malformed> {
        match &self.message {
            Some(message) if self.run_bytes > 0 || self.buffer.is_empty() => Ok(message.clone()),
            Some(_) => Err(Malformed::Layout),
            None => SyncMessage::decode_head(&mut ByteReader::new(&self.buffer)),
        }
    }

    /// Reads the head or one section. `false`: it is not complete yet.
    fn read_part(&mut self) -> Result<bool, Malformed> {
        let mut reader = ByteReader::new(&self.buffer);
        let Some(message) = &mut self.message else {
            // A head that is cut off may still be completed; one of another program is refused at once.
            match SyncMessage::decode_head(&mut reader) {
                Err(Malformed::Layout) => return Ok(false),
                Err(_) if self.buffer.len() < MAGIC.len() => return Ok(false),
                head => self.message = Some(head?),
            }
            let left = reader.rest().len();
            self.consume_all_but(left);
            return Ok(true);
        };
        let (Some(tag), Some(length)) = (reader.u8(), reader.u32()) else { return Ok(false) };
        if length as usize > SECTION_BYTES_MAX {
            return Err(Malformed::Layout);
        }
        let Some(section) = reader.slice(length as usize) else { return Ok(false) };
        let left = reader.rest().len();
        match tag {
            RUN | PACKED => {
                let most = RUN_BYTES_MAX.saturating_sub(self.run_bytes);
                let (runs, bytes) = read_runs(tag, section, most).ok_or(Malformed::Layout)?;
                self.run_bytes += bytes;
                self.runs.extend(runs);
            }
            tag if self.run_bytes == 0 => {
                message.decode_section(tag, ByteReader::new(section)).ok_or(Malformed::Layout)?;
            }
            _ => return Err(Malformed::Layout),
        }
        self.consume_all_but(left);
        Ok(true)
    }

    fn consume_all_but(&mut self, left: usize) {
        self.buffer.advance(self.buffer.len() - left);
    }
}

/// The runs of a section, and how many bytes they take: at least one, at most `most` and one.
fn read_runs(tag: u8, section: &[u8], most: usize) -> Option<(Vec<Run>, usize)> {
    if tag == RUN {
        let (run, bytes) = Run::read(ByteReader::new(section), most)?;
        return (section.len() <= most).then_some((vec![run], bytes.max(section.len()) + 1));
    }
    let raw = run::unpack(section, most)?;
    let (mut reader, mut runs, mut records) = (ByteReader::new(&raw), Vec::new(), 0);
    (!reader.is_empty()).then_some(())?; // any number of empty ones would fit into a message
    while !reader.is_empty() {
        let (tag, length) = (reader.u8()?, reader.u32()?);
        let section = reader.slice(length as usize)?;
        (tag == RUN).then_some(())?;
        let (run, bytes) = Run::read(ByteReader::new(section), most - records)?;
        records += bytes;
        runs.push(run);
    }
    Some((runs, raw.len().max(records) + 1))
}

fn section(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - at - 4).expect("bodies are bounded far below 4 GiB");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

impl ByteReader<'_> {
    fn heads(&mut self) -> Option<Heads> {
        let (has_base, base) = (self.u8()?, self.array()?);
        let changes = self.all(|reader| {
            let origin = Origin(reader.array()?);
            Some((origin, LogSpan::read(reader, origin)?))
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::clock::Stamp;
    use crate::chain::ids::{ChainHash, EntryKey};
    use crate::chain::kind::{EntryKind, LogType};
    use crate::chain::message::Digest;
    use crate::chain::vector::Head;
    use proptest::prelude::*;

    const A: Origin = Origin([1; 16]);

    fn hello() -> Hello {
        Hello {
            network: Hello::network_hash("test"),
            node_id: 2,
            store_id: [3; 16],
            incarnation_id: [4; 16],
            address: "127.0.0.1:8083".into(),
            is_guest: false,
        }
    }

    fn entry(seq: u64) -> Entry {
        let (key, content) = (EntryKey { stamp: Stamp(seq), origin: A, seq }, b"content");
        Entry::new(key, EntryKind::Message, Digest::of(EntryKind::Message, content), content)
    }

    fn member(store: u8) -> (MemberId, Member) {
        let member = Member { incarnation_id: [4; 16], forget_count: 1, address: "127.0.0.1:8084".into() };
        (MemberId { node_id: 3, store_id: [store; 16] }, member)
    }

    fn span(seq: u64) -> LogSpan {
        LogSpan::whole(A, LogType::MESSAGES, Head { seq, hash: ChainHash([5; 32]) })
    }

    fn full() -> SyncMessage {
        let before = Head { seq: 6, hash: ChainHash([5; 32]) };
        let entries = vec![entry(7), entry(8)];
        SyncMessage {
            need_full: true,
            more: true,
            wants_any: true,
            heads: Some(Heads { base: Some([6; 16]), changes: vec![(A, span(9))], cuts: vec![(A, 10)] }),
            own: Some(A),
            wants: vec![EntryRange { origin: A, first: 3, last: 9 }],
            budget: Some(1 << 20),
            members_digest: Some([8; 8]),
            members: vec![member(9), member(8)],
            runs: vec![Run { origin: A, log_type: LogType::MESSAGES, before, entries, is_damaged: false }],
            ..SyncMessage::quiet(hello(), [7; 16], 11)
        }
    }

    #[test]
    fn decode_gives_back_what_was_encoded() {
        for body in [full(), SyncMessage::quiet(hello(), [7; 16], 11)] {
            assert_eq!(SyncMessage::decode(&body.encode()), Ok(body));
        }
    }

    /// Frozen: the bytes of protocol 2. May be added to, never changed.
    #[test]
    fn protocol_2_is_frozen() {
        let body = SyncMessage {
            heads: Some(Heads { base: Some([6; 16]), changes: vec![(A, span(9))], cuts: vec![(A, 10)] }),
            own: Some(A),
            wants: vec![EntryRange { origin: A, first: 3, last: 9 }],
            budget: Some(1 << 20),
            members_digest: Some([8; 8]),
            members: vec![member(9)],
            runs: vec![Run { entries: Vec::new(), ..full().runs.remove(0) }],
            ..SyncMessage::quiet(hello(), [7; 16], 11)
        };
        assert_eq!(
            crate::chain::hex(&body.encode()),
            concat!(
                "436853790002004878ca0425c739fa00020303030303030303030303030303030304040404040404040404040404",
                "040404000000000000000b0e3132372e302e302e313a383038330707070707070707070707070707070701000000",
                "46010606060606060606060606060606060601010101010101010101010101010101000000000905050505050505",
                "05050505050505050505050505050505050505050505050505050000001801010101010101010101010101010101",
                "000000000000000a0200000010010101010101010101010101010101010300000020010101010101010101010101",
                "01010101000000000000000300000000000000090900000004001000000700000008080808080808080806000000",
                "330003090909090909090909090909090909090404040404040404040404040404040400010e3132372e302e302e",
                "313a38303834040000005b0101010101010101010101010101010100000000000000000000060505050505050505",
                "05050505050505050505050505050505050505050505050505050505050505050505050505050505050505050505",
                "05050505050505050505"
            )
        );
    }

    #[test]
    fn a_quiet_exchange_is_small() {
        let answer = SyncMessage::quiet(hello(), [0; 16], u64::MAX);
        let request = SyncMessage { members_digest: Some([8; 8]), ..answer.clone() };
        assert!(request.encode().len() + answer.encode().len() <= 200);
    }

    #[test]
    fn a_run_that_changed_on_its_way_is_known_as_such() {
        let mut bytes = full().encode();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let body = SyncMessage::decode(&bytes).expect("the frame is intact");
        assert!(body.runs[0].is_damaged && body.runs[0].entries.is_empty());
    }

    #[test]
    fn runs_are_read_as_they_arrive_and_nothing_else_comes_after_them() {
        let mut message = full();
        message.runs = (0..3).flat_map(|_| full().runs).collect();
        let bytes = message.encode();
        let (mut decoder, mut runs) = (SyncDecoder::default(), 0);
        for byte in &bytes {
            decoder.push(&[*byte]);
            while let Some(run) = decoder.next_run().expect("reads") {
                assert_eq!(run, message.runs[runs]);
                assert_eq!(decoder.head().expect("is complete").wants, message.wants);
                runs += 1;
            }
        }
        assert_eq!((runs, decoder.head().is_ok()), (3, true));
        let mut after = bytes;
        section(&mut after, OWN, |out| out.extend_from_slice(&A.0));
        assert_eq!(SyncMessage::decode(&after), Err(Malformed::Layout));
    }

    #[test]
    fn many_runs_are_packed_and_a_bomb_is_refused() {
        let message = SyncMessage { runs: vec![full().runs.remove(0); 500], ..full() };
        let bytes = message.encode();
        assert!(bytes.len() < 10_000, "{}", bytes.len());
        assert_eq!(SyncMessage::decode(&bytes), Ok(message));
        let bomb = run::pack(&vec![0; RUN_BYTES_MAX + 1]).expect("is smaller");
        let mut bytes = SyncMessage::quiet(hello(), [7; 16], 11).encode();
        section(&mut bytes, PACKED, |out| out.extend_from_slice(&bomb));
        assert_eq!(SyncMessage::decode(&bytes), Err(Malformed::Layout));
    }

    /// An entry without content takes four bytes in a run, and a hundred in memory.
    #[test]
    fn a_bomb_of_tiny_entries_is_refused() {
        let mut many = Vec::new();
        section(&mut many, RUN, |out| {
            Run { entries: Vec::new(), ..full().runs.remove(0) }.put(out);
            (0..500_000).for_each(|_| out.extend_from_slice(&[200, 0, 1, 0]));
        });
        let mut bytes = SyncMessage::quiet(hello(), [7; 16], 11).encode();
        let bomb = run::pack(&many).expect("is smaller");
        assert!(bomb.len() < 10_000);
        section(&mut bytes, PACKED, |out| out.extend_from_slice(&bomb));
        assert_eq!(SyncMessage::decode(&bytes), Err(Malformed::Layout));
    }

    #[test]
    fn foreign_bytes_and_other_versions_have_errors_of_their_own() {
        assert_eq!(SyncMessage::decode(b"GET / HTTP/1.1"), Err(Malformed::Magic));
        assert_eq!(SyncMessage::decode(&[]), Err(Malformed::Magic));
        let mut bytes = full().encode();
        bytes[5] = 9;
        assert_eq!(SyncMessage::decode(&bytes), Err(Malformed::Protocol(9)));
    }

    #[test]
    fn an_unknown_section_is_skipped() {
        let mut bytes = SyncMessage::quiet(hello(), [7; 16], 11).encode();
        section(&mut bytes, 200, |out| out.extend_from_slice(b"from the future"));
        assert_eq!(SyncMessage::decode(&bytes), Ok(SyncMessage::quiet(hello(), [7; 16], 11)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(at: proptest::sample::Index, bytes in proptest::collection::vec(any::<u8>(), 1..40)) {
            let mut body = full().encode();
            let at = at.index(body.len());
            body.splice(at..(at + bytes.len()).min(body.len()), bytes);
            let _ = SyncMessage::decode(&body);
            body.truncate(at);
            let _ = SyncMessage::decode(&body);
        }
    }
}
