//! Owns what a reader of the feed has seen, and the bytes by which it is told so and comes back: the cursor.
//!
//! A reader has seen a beginning of every log ([`Seen::full`]), and of a walk in display order everything up to a place
//! ([`Walk`]). Both mean the same on every node, whatever it holds: an entry is covered or it is not. So a cursor can be
//! small although logs are many: the ends of a walk are milestones with a few changes, and one place says the rest.
//! A reader that moves to a node which lacks a part of an earlier walk keeps that walk until the node has it. Nothing that is
//! stamped after the last thing it saw is covered: a copy of a running machine may use places a second time.
//!
//! A position is how much somebody's read must cover. It is written alike, but is no cursor, and neither serves as the
//! other. Both carry the network and a check; a cursor also what its filter was.

use super::bytes::{ByteReader, put_varint};
use super::clock::Stamp;
use super::frontier::{Frontier, SnapshotId, put_position, put_positions};
use super::ids::{EntryKey, Origin};

/// A cursor's bytes; as text it then stays below 1 KiB. What would be longer is not written.
pub const CURSOR_BYTES_MAX: usize = 760;
/// Walks in a cursor. A reader that would need more waits until the node has what an earlier one speaks of.
pub const WALKS_MAX: usize = 4;

const CURSOR: u8 = 0x11;
const POSITION: u8 = 0x21;
const CHECK_BYTES: usize = 4;

/// A walk through everything in `until`, in display order, up to and with `at`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialScan {
    /// What is walked through.
    pub until: Frontier,
    /// How far.
    pub at: EntryKey,
}

impl PartialScan {
    /// Whether it has come past this entry.
    pub fn covers(&self, place: EntryKey) -> bool {
        place <= self.at && place.seq <= self.until.seq(place.origin)
    }
}

/// What a reader has seen. See the head of this file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadState {
    /// The beginning of every log,
    pub full: Frontier,
    /// as far as it is stamped no later than this.
    pub last: Stamp,
    /// Besides, what walks have come past.
    pub scans: Vec<PartialScan>,
}

impl ReadState {
    /// Everything in these logs up to there, and nothing else. `last`: the largest stamp among it.
    pub fn all(full: Frontier, last: Stamp) -> Self {
        ReadState { full, last, scans: Vec::new() }
    }

    /// Where the beginnings end in display order.
    pub fn end(&self) -> EntryKey {
        EntryKey { stamp: self.last, origin: Origin([0xff; 16]), seq: u64::MAX }
    }

    /// Whether an entry is among it.
    pub fn covers(&self, place: EntryKey) -> bool {
        let is_beginning = place.seq <= self.full.seq(place.origin) && place.stamp <= self.last;
        is_beginning || self.scans.iter().any(|walk| walk.covers(place))
    }

    /// What is left to be remembered of it by a reader who has besides seen all of `held`: what lies beyond that.
    #[must_use]
    pub fn beyond(&self, held: &Frontier) -> Vec<PartialScan> {
        let full = self.full.beyond(held);
        let full =
            (!full.is_empty()).then(|| PartialScan { until: full.into_iter().collect(), at: self.end() });
        let walks = self.scans.iter().filter_map(|walk| {
            let beyond = walk.until.beyond(held);
            // Where only a few logs are meant, those are written; where many, what they were a difference to.
            let until = match beyond.len() {
                0 => return None,
                1..=FEW => beyond.into_iter().collect(),
                _ => walk.until.clone(),
            };
            Some(PartialScan { until, at: walk.at })
        });
        full.into_iter().chain(walks).collect()
    }
}

/// Logs that are rather written down than kept as a difference.
const FEW: usize = 4;

/// Which network and filter a cursor is for, as short hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// The first bytes of a hash of the network's name.
    pub network: [u8; 8],
    /// The same of the filter as it is written.
    pub filter: [u8; 8],
}

impl Scope {
    /// For this network, by the hash that exchanges carry, and a filter as it is written.
    pub fn new(network: [u8; 8], filter: &str) -> Self {
        let filter = *blake3::hash(filter.as_bytes()).as_bytes().first_chunk().expect("32 bytes have 8");
        Scope { network, filter }
    }
}

/// Seqs as they were written: a difference to something that has to be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontierDelta {
    /// To what.
    pub to: DeltaBase,
    /// How far logs are where that is otherwise; 0: not covered.
    pub changes: Vec<(Origin, u64)>,
}

/// What a difference is one to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaBase {
    /// Nothing: all is written.
    Nothing,
    /// The milestone of this name.
    Snapshot(SnapshotId),
    /// In a walk: the beginning of every log, which stands before it.
    Full,
}

/// A cursor as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// See [`Seen::full`].
    pub full: FrontierDelta,
    /// See [`Seen::last`].
    pub last: Stamp,
    /// See [`Seen::walks`].
    pub scans: Vec<(FrontierDelta, EntryKey)>,
}

/// Why bytes are not a cursor or a position that can be used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCursor {
    /// Not written by us, or cut.
    #[error("it is not one, or it is incomplete")]
    Malformed,
    /// A position where a cursor is wanted, or the other way round.
    #[error("it is a position and a cursor is wanted, or the other way round")]
    OtherUse,
    /// Of another network.
    #[error("it is of another network")]
    Network,
    /// Made with another filter.
    #[error("it was made with another filter")]
    Filter,
}

/// The part of a cursor that does not depend on the filter; `None`: it would be too long. Shared by all who read alike.
pub fn payload(seen: &ReadState) -> Option<Vec<u8>> {
    match seen.scans.split_last() {
        None => {
            let mut out = Vec::with_capacity(128);
            put_state(&mut out, seen);
            out.push(0);
            (out.len() <= CORE_BYTES_MAX).then_some(out)
        }
        Some((last, others)) => {
            let before = ReadState { scans: others.to_vec(), ..seen.clone() };
            Some(payload_at(&scan_payload(&before, &last.until)?, last.at))
        }
    }
}

/// The core of a cursor on a walk, without the place up to which it has come: all that its cursors share.
pub fn scan_payload(before: &ReadState, until: &Frontier) -> Option<Vec<u8>> {
    let count = before.scans.len() + 1;
    if count > WALKS_MAX {
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
    for walk in &before.scans {
        put_until(&mut out, &walk.until);
        put_key(&mut out, walk.at);
    }
    put_until(&mut out, until);
    (out.len() + PLACE_BYTES_MAX <= CORE_BYTES_MAX).then_some(out)
}

/// The core of a cursor on a walk that has come up to this place.
pub fn payload_at(scan_payload: &[u8], at: EntryKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(scan_payload.len() + PLACE_BYTES_MAX);
    out.extend_from_slice(scan_payload);
    put_key(&mut out, at);
    out
}

const CORE_BYTES_MAX: usize = CURSOR_BYTES_MAX - HEAD_BYTES - CHECK_BYTES;
/// A stamp, an origin and the longest number.
const PLACE_BYTES_MAX: usize = 8 + 16 + 10;

fn put_state(out: &mut Vec<u8>, seen: &ReadState) {
    put_delta(out, &delta_of(&seen.full));
    out.extend_from_slice(&seen.last.0.to_be_bytes());
}

fn put_key(out: &mut Vec<u8>, at: EntryKey) {
    out.extend_from_slice(&at.stamp.0.to_be_bytes());
    put_position(out, at.origin, at.seq);
}

fn delta_of(seqs: &Frontier) -> FrontierDelta {
    let to = seqs.base().map_or(DeltaBase::Nothing, |base| DeltaBase::Snapshot(base.id));
    FrontierDelta { to, changes: seqs.changes() }
}

fn put_delta(out: &mut Vec<u8>, difference: &FrontierDelta) {
    match difference.to {
        DeltaBase::Nothing => out.push(0),
        DeltaBase::Full => out.push(2),
        DeltaBase::Snapshot(name) => {
            out.push(1);
            out.extend_from_slice(&name.0);
        }
    }
    put_positions(out, &difference.changes);
}

const HEAD_BYTES: usize = 17;

/// A cursor's bytes, of its core.
pub fn encode(core: &[u8], purpose: Scope) -> Vec<u8> {
    encode_kind(CURSOR, core, purpose)
}

fn encode_kind(kind: u8, core: &[u8], purpose: Scope) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + core.len() + CHECK_BYTES);
    out.push(kind);
    out.extend_from_slice(&purpose.network);
    out.extend_from_slice(&purpose.filter);
    out.extend_from_slice(core);
    let check = check(&out);
    out.extend_from_slice(&check);
    out
}

fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    *blake3::hash(bytes).as_bytes().first_chunk().expect("32 bytes have 4")
}

/// Reads a cursor that was made for this purpose.
pub fn decode(bytes: &[u8], purpose: Scope) -> Result<Cursor, InvalidCursor> {
    let core = decode_kind(CURSOR, bytes, purpose)?;
    read_core(core).ok_or(InvalidCursor::Malformed)
}

/// The core of a cursor that was opened.
pub fn payload_of(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(HEAD_BYTES..bytes.len().checked_sub(CHECK_BYTES)?)
}

fn decode_kind(kind: u8, bytes: &[u8], purpose: Scope) -> Result<&[u8], InvalidCursor> {
    let (sealed, check_bytes) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(InvalidCursor::Malformed)?;
    let (head, core) = sealed.split_first_chunk::<HEAD_BYTES>().ok_or(InvalidCursor::Malformed)?;
    match head {
        _ if check(sealed) != *check_bytes => Err(InvalidCursor::Malformed),
        [CURSOR | POSITION, ..] if head[0] != kind => Err(InvalidCursor::OtherUse),
        _ if head[0] != kind => Err(InvalidCursor::Malformed),
        _ if head[1..9] != purpose.network => Err(InvalidCursor::Network),
        _ if head[9..] != purpose.filter => Err(InvalidCursor::Filter),
        _ => Ok(core),
    }
}

fn read_core(core: &[u8]) -> Option<Cursor> {
    let mut rest = ByteReader::new(core);
    let full = rest.difference(false)?;
    let last = Stamp(rest.u64()?);
    let count = usize::from(rest.u8()?);
    (count <= WALKS_MAX).then_some(())?;
    let mut walks = Vec::new();
    for _ in 0..count {
        let until = rest.difference(true)?;
        let stamp = Stamp(rest.u64()?);
        let (origin, seq) = rest.position()?;
        walks.push((until, EntryKey { stamp, origin, seq }));
    }
    rest.end(Cursor { full, last, scans: walks })
}

impl ByteReader<'_> {
    fn difference(&mut self, is_walk: bool) -> Option<FrontierDelta> {
        let to = match self.u8()? {
            0 => DeltaBase::Nothing,
            1 => DeltaBase::Snapshot(SnapshotId(self.array()?)),
            2 if is_walk => DeltaBase::Full,
            _ => return None,
        };
        Some(FrontierDelta { to, changes: self.positions()? })
    }
}

impl Cursor {
    /// The milestones that have to be looked up.
    pub fn snapshots(&self) -> impl Iterator<Item = SnapshotId> + '_ {
        let all = std::iter::once(&self.full).chain(self.scans.iter().map(|(until, _)| until));
        all.filter_map(|difference| match difference.to {
            DeltaBase::Snapshot(name) => Some(name),
            DeltaBase::Nothing | DeltaBase::Full => None,
        })
    }

    /// What it says, given the milestones; `None`: one of them is not there.
    pub fn expand(self, milestone: impl Fn(SnapshotId) -> Option<Frontier>) -> Option<ReadState> {
        let expand = |difference: FrontierDelta, full: Option<&Frontier>| {
            let mut seqs = match difference.to {
                DeltaBase::Nothing => Frontier::default(),
                DeltaBase::Full => full?.clone(),
                DeltaBase::Snapshot(name) => milestone(name)?,
            };
            difference.changes.into_iter().for_each(|(origin, seq)| seqs.set(origin, seq));
            Some(seqs)
        };
        let full = expand(self.full, None)?;
        let walks = self.scans.into_iter().map(|(until, at)| {
            let until = expand(until, Some(&full))?;
            Some(PartialScan { until, at })
        });
        let walks = walks.collect::<Option<_>>()?;
        Some(ReadState { full, last: self.last, scans: walks })
    }
}

/// The bytes of a position that covers these entries; as many of the last ones as there is room for, which is a weaker
/// word and still a true one.
pub fn position(network: [u8; 8], seqs: impl IntoIterator<Item = (Origin, u64)>) -> Vec<u8> {
    let room = CURSOR_BYTES_MAX - HEAD_BYTES - CHECK_BYTES - 2;
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
    let mut core = Vec::with_capacity(list.len() + 2);
    put_varint(&mut core, count);
    core.extend_from_slice(&list);
    encode_kind(POSITION, &core, Scope { network, filter: [0; 8] })
}

/// Reads a position of this network.
pub fn read_position(bytes: &[u8], network: [u8; 8]) -> Result<Vec<(Origin, u64)>, InvalidCursor> {
    let mut rest = ByteReader::new(decode_kind(POSITION, bytes, Scope { network, filter: [0; 8] })?);
    let all = rest.positions();
    all.and_then(|all| rest.end(all)).ok_or(InvalidCursor::Malformed)
}

/// Of which network a position says that it is. Whether it is one, is seen by who reads it.
pub fn network_of_position(bytes: &[u8]) -> Option<[u8; 8]> {
    bytes.get(1..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests;
