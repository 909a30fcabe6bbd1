//! Owns runs, the consecutive entries of one log in an exchange, and their bytes.
//!
//! Entries travel without digest and checksum: the receiver computes both, follows the chain, and compares its hash
//! after the last entry with the one that closes the run. So bytes that changed on the way, and a sender that made a
//! mistake, spoil one run, which is asked for again; they never look like a fork. Whether the run continues our log is
//! decided by [`Logs`](crate::chain::logs::Logs).
//!
//! Layout: `origin 16 | log type 3 | seq before u64, hash before 32 | hash after 32 | entries`, an entry: `kind u8 |
//! account length | account | stamp, as the difference to the one before | content length | content`, numbers as LEB128.
//! Runs are packed together: `raw length u32 | zstd frame`, if that makes them smaller.

use crate::chain::bytes::{ByteReader, put_varint};
use crate::chain::clock::Stamp;
use crate::chain::ids::{ChainHash, EntryKey, Origin};
use crate::chain::kind::{EntryKind, LogType};
use crate::chain::message::Digest;
use crate::chain::record::{Entry, EntryBody};
use crate::chain::vector::Head;
use crate::fault::Fault;

/// zstd's level: higher ones cost more time than the bytes are worth on a fast link.
const ZSTD_LEVEL: i32 = 3;
/// A frame that needs a larger window is refused: 8 MiB.
const WINDOW_LOG_MAX: u32 = 23;
/// Fewer bytes are not worth a frame.
const PACKED_FROM_BYTES: usize = 200;

/// A message has this many parts or more, so that its receiver loses little if the link is cut.
pub const PARTS_PER_MESSAGE: usize = 32;

/// Consecutive entries of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub origin: Origin,
    pub log_type: LogType,
    /// The sender's head just before the first entry; seq 0 has the log's first hash.
    pub before: Head,
    /// The entries, ascending from `before.seq + 1`.
    pub entries: Vec<Entry>,
    /// The entries did not lead to the hash that closes the run, so there are none here.
    pub is_damaged: bool,
}

impl Run {
    /// Our head after the last entry.
    pub fn after(&self) -> Head {
        self.entries.iter().fold(self.before, Head::followed_by)
    }

    pub fn last_seq(&self) -> u64 {
        self.before.seq.saturating_add(self.entries.len() as u64)
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.origin.0);
        out.extend_from_slice(&self.log_type.bytes());
        out.extend_from_slice(&self.before.seq.to_be_bytes());
        out.extend_from_slice(&self.before.hash.0);
        out.extend_from_slice(&self.after().hash.0);
        let mut before = Stamp::default();
        for entry in &self.entries {
            let EntryBody { kind, account, content, .. } = entry.body();
            out.push(kind.byte());
            put_varint(out, account.len() as u64);
            out.extend_from_slice(account.as_bytes());
            put_varint(out, entry.stamp().0.wrapping_sub(before.0));
            put_varint(out, content.len() as u64);
            out.extend_from_slice(content);
            before = entry.stamp();
        }
    }

    /// Reads what [`Run::put`] wrote, and counts the bytes of its records: an entry may be much shorter here. `None`: the
    /// layout is wrong, or the records have more than `most` bytes.
    pub(super) fn read(mut reader: ByteReader<'_>, most: usize) -> Option<(Self, usize)> {
        let (origin, log_type) = (Origin(reader.array()?), LogType::of(reader.array()?)?);
        let before = Head { seq: reader.u64()?, hash: ChainHash(reader.array()?) };
        let after = ChainHash(reader.array()?);
        let (mut head, mut stamp, mut entries) = (before, Stamp::default(), Vec::new());
        let mut bytes = 0;
        while !reader.is_empty() {
            let kind = EntryKind::of(reader.u8()?)?;
            let length = usize::try_from(reader.varint()?).ok()?;
            let account = reader.str(length)?;
            stamp = Stamp(stamp.0.wrapping_add(reader.varint()?));
            let length = usize::try_from(reader.varint()?).ok()?;
            let content = reader.slice(length)?;
            let body = EntryBody { kind, account, digest: Digest::of(kind, content), content };
            let key = EntryKey { stamp, origin, seq: head.seq.checked_add(1)? };
            if !body.fits(log_type) {
                return None;
            }
            let entry = Entry::encode(key, log_type, &body);
            head = head.followed_by(&entry);
            bytes += entry.size();
            if bytes > most {
                return None;
            }
            entries.push(entry);
        }
        let is_damaged = head.hash != after && !Fault::SkipChain.is_planted();
        if is_damaged {
            entries.clear();
        }
        Some((Run { origin, log_type, before, entries, is_damaged }, bytes))
    }
}

/// The packed form of these bytes; `None`: it would not be smaller.
pub(super) fn pack(raw: &[u8]) -> Option<Vec<u8>> {
    if raw.len() < PACKED_FROM_BYTES {
        return None;
    }
    let length = u32::try_from(raw.len()).ok()?;
    let frame = zstd::bulk::compress(raw, ZSTD_LEVEL).ok()?;
    let packed = [&length.to_be_bytes(), frame.as_slice()].concat();
    (packed.len() < raw.len()).then_some(packed)
}

/// The bytes that [`pack`] packed, if they are at most `most`.
pub(super) fn unpack(packed: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut reader = ByteReader::new(packed);
    let length = usize::try_from(reader.u32()?).ok().filter(|length| *length <= most)?;
    let mut decompressor = zstd::bulk::Decompressor::new().ok()?;
    decompressor.set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(WINDOW_LOG_MAX)).ok()?;
    let raw = decompressor.decompress(reader.rest(), length).ok()?;
    (raw.len() == length).then_some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Origin = Origin([1; 16]);

    fn run(texts: &[&str]) -> Run {
        let mut entries = Vec::new();
        for (seq, text) in (7..).zip(texts) {
            let (kind, content) = (EntryKind::Message, text.as_bytes());
            let body = EntryBody { kind, account: "ana", digest: Digest::of(kind, content), content };
            let key = EntryKey { stamp: Stamp(1_000 * seq), origin: A, seq };
            entries.push(Entry::encode(key, LogType::MESSAGES, &body));
        }
        let before = Head { seq: 6, hash: ChainHash([5; 32]) };
        Run { origin: A, log_type: LogType::MESSAGES, before, entries, is_damaged: false }
    }

    fn bytes(run: &Run) -> Vec<u8> {
        let mut out = Vec::new();
        run.put(&mut out);
        out
    }

    /// Frozen: the bytes of a run in protocol 2. May be added to, never changed.
    #[test]
    fn a_run_is_frozen() {
        let bytes = bytes(&run(&["hi", "ho"]));
        assert_eq!(
            crate::chain::hex(&bytes),
            concat!(
                "01010101010101010101010101010101",
                "000000",
                "0000000000000006",
                "0505050505050505050505050505050505050505050505050505050505050505",
                "f2517d711778a02fb7e6118e35acb4e59b5558b4548d92eca883555fa4e5d84f",
                "0103616e61d836026869",
                "0103616e61e80702686f"
            )
        );
        let (read, size) = Run::read(ByteReader::new(&bytes), 188).expect("the layout is right");
        assert_eq!((read, size), (run(&["hi", "ho"]), 188));
        assert_eq!(Run::read(ByteReader::new(&bytes), 187), None);
    }

    #[test]
    fn a_run_that_does_not_lead_to_its_last_hash_has_no_entries() {
        let good = bytes(&run(&["hi", "ho"]));
        for at in [30, 60, 80, good.len() - 1] {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            let (read, _) = Run::read(ByteReader::new(&bytes), 1_000).expect("the layout is right");
            assert!(read.is_damaged && read.entries.is_empty(), "at {at}");
        }
    }

    #[test]
    fn packed_bytes_are_read_back_up_to_a_bound() {
        let raw = bytes(&run(&["the same text"; 50]));
        let packed = pack(&raw).expect("it is smaller");
        assert!(packed.len() * 3 < raw.len());
        assert_eq!(unpack(&packed, raw.len()), Some(raw.clone()));
        assert_eq!(unpack(&packed, raw.len() - 1), None);
        let mut claims_less = packed.clone();
        claims_less[3] ^= 1;
        assert_eq!(unpack(&claims_less, usize::MAX), None);
        assert_eq!(pack(&raw[..100]), None);
    }
}
