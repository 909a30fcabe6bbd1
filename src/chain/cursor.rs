//! Owns what a reader of the feed has seen ([`ReadState`]), and the bytes that a reader resumes from: the cursor.
//!
//! A reader has seen a prefix of every log ([`ReadState::full`]), and of each scan in display order the entries up to a
//! key ([`PartialScan`]). Whether an entry is covered does not depend on the node, so a cursor means the same
//! everywhere. A cursor stays small with many logs: it is a base snapshot, the logs that differ from it, and one key
//! per scan. A reader that moves to a node which lacks a part of an earlier scan keeps that scan until the node has it.
//! No entry with a stamp later than the last one seen is covered, because a clone of a running machine may use
//! positions a second time.
//!
//! A position says how much a read must cover. It has the same form as a cursor, and neither is accepted as the other.
//! Both carry the network and a checksum; a cursor also carries its filter.

use super::bytes::{ByteReader, put_varint};
use super::clock::Stamp;
use super::frontier::{Frontier, SnapshotId, put_position, put_positions};
use super::ids::{EntryKey, Origin};

/// The longest cursor; its text is below 1 KiB. A longer one is not written, and the reader keeps its last one.
pub const CURSOR_BYTES_MAX: usize = 760;
/// Partial scans in a cursor. A reader that needs more waits until the node has the entries of an earlier scan.
pub const SCANS_MAX: usize = 4;

const CURSOR: u8 = 0x11;
const POSITION: u8 = 0x21;
const CHECKSUM_BYTES: usize = 4;

/// A scan of everything in `until`, in display order, up to `at` and including it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialScan {
    pub until: Frontier,
    /// The last entry that was scanned.
    pub at: EntryKey,
}

impl PartialScan {
    /// Whether the scan has passed this entry.
    pub fn covers(&self, key: EntryKey) -> bool {
        key <= self.at && key.seq <= self.until.seq(key.origin)
    }
}

/// What a reader has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadState {
    /// A prefix of every log.
    pub full: Frontier,
    /// Entries of `full` with a later stamp do not count as seen.
    pub last: Stamp,
    /// The entries that these scans have passed count as seen, too.
    pub scans: Vec<PartialScan>,
}

impl ReadState {
    /// Exactly this frontier. `last`: the largest stamp in it.
    pub fn all(full: Frontier, last: Stamp) -> Self {
        ReadState { full, last, scans: Vec::new() }
    }

    /// The end of the prefixes in display order.
    pub fn end(&self) -> EntryKey {
        EntryKey { stamp: self.last, origin: Origin([0xff; 16]), seq: u64::MAX }
    }

    /// Whether the reader has seen an entry.
    pub fn covers(&self, key: EntryKey) -> bool {
        let is_in_prefix = key.seq <= self.full.seq(key.origin) && key.stamp <= self.last;
        is_in_prefix || self.scans.iter().any(|scan| scan.covers(key))
    }

    /// The parts beyond `held`: what is still to be remembered once the reader has seen all of `held`.
    #[must_use]
    pub fn beyond(&self, held: &Frontier) -> Vec<PartialScan> {
        let full = self.full.beyond(held);
        let full =
            (!full.is_empty()).then(|| PartialScan { until: full.into_iter().collect(), at: self.end() });
        let scans = self.scans.iter().filter_map(|scan| {
            let beyond = scan.until.beyond(held);
            // A few logs are written in full; many stay a difference to their base.
            let until = match beyond.len() {
                0 => return None,
                1..=FULL_LOGS_MAX => beyond.into_iter().collect(),
                _ => scan.until.clone(),
            };
            Some(PartialScan { until, at: scan.at })
        });
        full.into_iter().chain(scans).collect()
    }
}

/// Up to this many logs are written in full instead of as a difference.
const FULL_LOGS_MAX: usize = 4;

/// The network and the filter that a cursor is for, as short hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// The first bytes of a hash of the network's name.
    pub network: [u8; 8],
    /// The same of the filter in its one written form.
    pub filter: [u8; 8],
}

impl Scope {
    /// The scope of a network, by the hash that exchanges carry, and a filter in its one written form.
    pub fn new(network: [u8; 8], filter: &str) -> Self {
        let filter = *blake3::hash(filter.as_bytes()).as_bytes().first_chunk().expect("32 bytes have 8");
        Scope { network, filter }
    }
}

/// A frontier as it is written: a difference to a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontierDelta {
    pub to: DeltaBase,
    /// The logs that differ and how far they are; 0: not covered.
    pub changes: Vec<(Origin, u64)>,
}

/// The base of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaBase {
    /// None: all logs are written.
    Nothing,
    Snapshot(SnapshotId),
    /// For a scan: the prefixes, which are written before it.
    Full,
}

/// A decoded cursor, its snapshots not yet looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub full: FrontierDelta,
    pub last: Stamp,
    pub scans: Vec<(FrontierDelta, EntryKey)>,
}

/// Why bytes are not a cursor or a position that can be used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCursor {
    #[error("it is malformed or incomplete")]
    Malformed,
    #[error("it is a position and a cursor is wanted, or the other way round")]
    OtherUse,
    #[error("it is of another network")]
    Network,
    #[error("it was made with another filter")]
    Filter,
}

/// The payload of a cursor: the part that does not depend on the filter, so readers at the same place share it. `None`:
/// it would be too long.
pub fn payload(seen: &ReadState) -> Option<Vec<u8>> {
    match seen.scans.split_last() {
        None => {
            let mut out = Vec::with_capacity(128);
            put_state(&mut out, seen);
            out.push(0);
            (out.len() <= PAYLOAD_BYTES_MAX).then_some(out)
        }
        Some((last, others)) => {
            let before = ReadState { scans: others.to_vec(), ..seen.clone() };
            Some(payload_at(&scan_payload(&before, &last.until)?, last.at))
        }
    }
}

/// The payload of the cursors within a scan, without the key: the part that they share.
pub fn scan_payload(before: &ReadState, until: &Frontier) -> Option<Vec<u8>> {
    let count = before.scans.len() + 1;
    if count > SCANS_MAX {
        return None;
    }
    let mut out = Vec::with_capacity(128);
    put_state(&mut out, before);
    out.push(u8::try_from(count).ok()?);
    let put_until = |out: &mut Vec<u8>, until: &Frontier| {
        let (by_itself, to_full) = (delta_of(until), until.changes_to(&before.full));
        let to_full = FrontierDelta { to: DeltaBase::Full, changes: to_full };
        let is_shorter = to_full.changes.len() <= by_itself.changes.len();
        put_delta(out, if is_shorter { &to_full } else { &by_itself });
    };
    for scan in &before.scans {
        put_until(&mut out, &scan.until);
        put_key(&mut out, scan.at);
    }
    put_until(&mut out, until);
    (out.len() + KEY_BYTES_MAX <= PAYLOAD_BYTES_MAX).then_some(out)
}

/// The payload of the cursor within a scan at this key.
pub fn payload_at(scan_payload: &[u8], at: EntryKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(scan_payload.len() + KEY_BYTES_MAX);
    out.extend_from_slice(scan_payload);
    put_key(&mut out, at);
    out
}

const PAYLOAD_BYTES_MAX: usize = CURSOR_BYTES_MAX - HEAD_BYTES - CHECKSUM_BYTES;
/// The longest key: a stamp, an origin and a seq.
const KEY_BYTES_MAX: usize = 8 + 16 + 10;

fn put_state(out: &mut Vec<u8>, seen: &ReadState) {
    put_delta(out, &delta_of(&seen.full));
    out.extend_from_slice(&seen.last.0.to_be_bytes());
}

fn put_key(out: &mut Vec<u8>, at: EntryKey) {
    out.extend_from_slice(&at.stamp.0.to_be_bytes());
    put_position(out, at.origin, at.seq);
}

fn delta_of(frontier: &Frontier) -> FrontierDelta {
    let to = frontier.base().map_or(DeltaBase::Nothing, |base| DeltaBase::Snapshot(base.id));
    FrontierDelta { to, changes: frontier.changes() }
}

fn put_delta(out: &mut Vec<u8>, delta: &FrontierDelta) {
    match delta.to {
        DeltaBase::Nothing => out.push(0),
        DeltaBase::Full => out.push(2),
        DeltaBase::Snapshot(id) => {
            out.push(1);
            out.extend_from_slice(&id.0);
        }
    }
    put_positions(out, &delta.changes);
}

const HEAD_BYTES: usize = 17;

/// The cursor with this payload.
pub fn encode(payload: &[u8], scope: Scope) -> Vec<u8> {
    encode_kind(CURSOR, payload, scope)
}

fn encode_kind(kind: u8, payload: &[u8], scope: Scope) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + payload.len() + CHECKSUM_BYTES);
    out.push(kind);
    out.extend_from_slice(&scope.network);
    out.extend_from_slice(&scope.filter);
    out.extend_from_slice(payload);
    let checksum = checksum(&out);
    out.extend_from_slice(&checksum);
    out
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *blake3::hash(bytes).as_bytes().first_chunk().expect("32 bytes have 4")
}

/// Reads a cursor of this scope.
pub fn decode(bytes: &[u8], scope: Scope) -> Result<Cursor, InvalidCursor> {
    let payload = decode_kind(CURSOR, bytes, scope)?;
    decode_payload(payload).ok_or(InvalidCursor::Malformed)
}

/// The payload of a cursor that was decoded.
pub fn payload_of(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(HEAD_BYTES..bytes.len().checked_sub(CHECKSUM_BYTES)?)
}

fn decode_kind(kind: u8, bytes: &[u8], scope: Scope) -> Result<&[u8], InvalidCursor> {
    let (covered, checksum_bytes) =
        bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(InvalidCursor::Malformed)?;
    let (head, payload) = covered.split_first_chunk::<HEAD_BYTES>().ok_or(InvalidCursor::Malformed)?;
    match head {
        _ if checksum(covered) != *checksum_bytes => Err(InvalidCursor::Malformed),
        [CURSOR | POSITION, ..] if head[0] != kind => Err(InvalidCursor::OtherUse),
        _ if head[0] != kind => Err(InvalidCursor::Malformed),
        _ if head[1..9] != scope.network => Err(InvalidCursor::Network),
        _ if head[9..] != scope.filter => Err(InvalidCursor::Filter),
        _ => Ok(payload),
    }
}

fn decode_payload(payload: &[u8]) -> Option<Cursor> {
    let mut rest = ByteReader::new(payload);
    let full = rest.delta(false)?;
    let last = Stamp(rest.u64()?);
    let count = usize::from(rest.u8()?);
    (count <= SCANS_MAX).then_some(())?;
    let mut scans = Vec::new();
    for _ in 0..count {
        let until = rest.delta(true)?;
        let stamp = Stamp(rest.u64()?);
        let (origin, seq) = rest.position()?;
        scans.push((until, EntryKey { stamp, origin, seq }));
    }
    rest.end(Cursor { full, last, scans })
}

impl ByteReader<'_> {
    fn delta(&mut self, is_scan: bool) -> Option<FrontierDelta> {
        let to = match self.u8()? {
            0 => DeltaBase::Nothing,
            1 => DeltaBase::Snapshot(SnapshotId(self.array()?)),
            2 if is_scan => DeltaBase::Full,
            _ => return None,
        };
        Some(FrontierDelta { to, changes: self.positions()? })
    }
}

impl Cursor {
    pub fn snapshots(&self) -> impl Iterator<Item = SnapshotId> + '_ {
        let all = std::iter::once(&self.full).chain(self.scans.iter().map(|(until, _)| until));
        all.filter_map(|delta| match delta.to {
            DeltaBase::Snapshot(id) => Some(id),
            DeltaBase::Nothing | DeltaBase::Full => None,
        })
    }

    /// Resolves the snapshots; `None`: one of them is missing here.
    pub fn expand(self, snapshot: impl Fn(SnapshotId) -> Option<Frontier>) -> Option<ReadState> {
        let expand = |delta: FrontierDelta, full: Option<&Frontier>| {
            let mut frontier = match delta.to {
                DeltaBase::Nothing => Frontier::default(),
                DeltaBase::Full => full?.clone(),
                DeltaBase::Snapshot(id) => snapshot(id)?,
            };
            delta.changes.into_iter().for_each(|(origin, seq)| frontier.set(origin, seq));
            Some(frontier)
        };
        let full = expand(self.full, None)?;
        let scans = self.scans.into_iter().map(|(until, at)| {
            let until = expand(until, Some(&full))?;
            Some(PartialScan { until, at })
        });
        let scans = scans.collect::<Option<_>>()?;
        Some(ReadState { full, last: self.last, scans })
    }
}

/// The bytes of a position that covers these entries, as many as fit. Leaving some out promises less and stays true.
pub fn position(network: [u8; 8], seqs: impl IntoIterator<Item = (Origin, u64)>) -> Vec<u8> {
    let room = CURSOR_BYTES_MAX - HEAD_BYTES - CHECKSUM_BYTES - 2;
    let (mut list, mut count) = (Vec::new(), 0);
    for (origin, seq) in seqs {
        let before = list.len();
        put_position(&mut list, origin, seq);
        if list.len() > room {
            list.truncate(before);
            break;
        }
        count += 1;
    }
    let mut payload = Vec::with_capacity(list.len() + 2);
    put_varint(&mut payload, count);
    payload.extend_from_slice(&list);
    encode_kind(POSITION, &payload, Scope { network, filter: [0; 8] })
}

/// Reads a position of this network.
pub fn read_position(bytes: &[u8], network: [u8; 8]) -> Result<Vec<(Origin, u64)>, InvalidCursor> {
    let mut rest = ByteReader::new(decode_kind(POSITION, bytes, Scope { network, filter: [0; 8] })?);
    let all = rest.positions();
    all.and_then(|all| rest.end(all)).ok_or(InvalidCursor::Malformed)
}

/// The network that a position names. Whether the bytes are a position is checked when it is read.
pub fn network_of_position(bytes: &[u8]) -> Option<[u8; 8]> {
    bytes.get(1..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests;
