//! Owns how far a reader or a store is in every log: origin -> seq, without hashes, in a form that stays small when
//! encoded.
//!
//! A network that has run for years has thousands of logs of which a few grow. So a frontier is encoded as the
//! difference to a *frontier snapshot*: an entry of some log that says how far its writer was in all logs. A snapshot
//! is exchanged and stored like any other entry, so it means the same on every node that has it. A snapshot that is too
//! long for one entry is a chain of entries, each the difference to the one before. Snapshots carry no message and are
//! never listed.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::bytes::{ByteReader, put_varint};
use super::ids::Origin;
use super::kind::EntryKind;
use super::message::Digest;
use super::vector::Vector;

/// Changes in one snapshot, so that its record stays below the largest record. More of them become a chain.
pub const SNAPSHOT_CHANGES_MAX: usize = 2_000;
/// The longest chain that is looked up. A longer one is invalid: this program starts a new chain before that.
pub const CHAIN_COUNT_MAX: usize = 64;
const VERSION: u8 = 1;

type Map = OrdMap<Origin, u64>;

/// The id of a snapshot: a hash of its digest, so that its position does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub [u8; 16]);

impl SnapshotId {
    pub fn of(digest: Digest) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"chatchain snapshot 2").update(&digest.0);
        SnapshotId(*hasher.finalize().as_bytes().first_chunk().expect("32 bytes have 16"))
    }
}

/// A snapshot with its base resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontierSnapshot {
    pub id: SnapshotId,
    /// The number of snapshots that it is based on.
    pub depth: usize,
    map: Map,
}

/// How far each log is covered. A clone is cheap.
#[derive(Debug, Clone, Default)]
pub struct Frontier {
    map: Map,
    /// The snapshot that it is encoded as a difference to.
    base: Option<Arc<FrontierSnapshot>>,
}

impl PartialEq for Frontier {
    fn eq(&self, other: &Self) -> bool {
        self.map == other.map
    }
}

impl Eq for Frontier {}

impl FromIterator<(Origin, u64)> for Frontier {
    fn from_iter<I: IntoIterator<Item = (Origin, u64)>>(seqs: I) -> Self {
        Frontier { map: seqs.into_iter().filter(|(_, seq)| *seq > 0).collect(), base: None }
    }
}

impl Frontier {
    pub fn of(vector: &Vector) -> Self {
        vector.iter().map(|(origin, span)| (origin, span.head.seq)).collect()
    }

    pub fn at(snapshot: Arc<FrontierSnapshot>) -> Self {
        Frontier { map: snapshot.map.clone(), base: Some(snapshot) }
    }

    /// The last seq that is covered of a log, 0 if none is.
    pub fn seq(&self, origin: Origin) -> u64 {
        self.map.get(&origin).copied().unwrap_or(0)
    }

    /// Covers a log up to this seq, if it did not already.
    pub fn raise(&mut self, origin: Origin, seq: u64) {
        if seq > self.seq(origin) {
            self.map.insert(origin, seq);
        }
    }

    /// Covers no more of a log than this.
    pub fn lower(&mut self, origin: Origin, seq: u64) {
        if seq < self.seq(origin) {
            self.set(origin, seq);
        }
    }

    /// Covers a log up to this seq, no more and no less.
    pub fn set(&mut self, origin: Origin, seq: u64) {
        if seq == 0 {
            self.map.remove(&origin)
        } else {
            self.map.insert(origin, seq)
        };
    }

    /// All logs of which something is covered, by origin.
    pub fn iter(&self) -> impl Iterator<Item = (Origin, u64)> + '_ {
        self.map.iter().map(|(origin, seq)| (*origin, *seq))
    }

    /// The logs in which this covers more than `other`, in time proportional to the differences where both share
    /// history.
    pub fn beyond(&self, other: &Frontier) -> Vec<(Origin, u64)> {
        more(&other.map, &self.map)
    }

    /// The snapshot that it is encoded as a difference to.
    pub fn base(&self) -> Option<&Arc<FrontierSnapshot>> {
        self.base.as_ref()
    }

    /// The differences to the base; 0 where the base covers a log and this does not.
    pub fn changes(&self) -> Vec<(Origin, u64)> {
        match &self.base {
            Some(base) => differences(&base.map, &self.map),
            None => self.iter().collect(),
        }
    }

    /// The differences to `other`; 0 where only `other` covers a log.
    pub fn changes_to(&self, other: &Frontier) -> Vec<(Origin, u64)> {
        differences(&other.map, &self.map)
    }

    /// New snapshots that encode this frontier: a chain if it is too much for one. They are based on the present base,
    /// unless that is a long chain.
    pub fn snapshots(&self) -> Vec<(SnapshotContent, Arc<FrontierSnapshot>)> {
        let base = self.base.clone().filter(|base| base.depth < CHAIN_COUNT_MAX / 2);
        let whole = Frontier { base: base.clone(), ..self.clone() };
        let (mut before, mut chain) = (base, Vec::new());
        for changes in whole.changes().chunks(SNAPSHOT_CHANGES_MAX) {
            let base = before.as_ref().map(|before| before.id);
            let content = SnapshotContent { base, changes: changes.to_vec() };
            let snapshot = Arc::new(content.clone().snapshot(before.as_deref()));
            before = Some(snapshot.clone());
            chain.push((content, snapshot));
        }
        chain
    }

    #[must_use]
    pub fn based_on(self, snapshot: &Arc<FrontierSnapshot>) -> Self {
        Frontier { base: Some(snapshot.clone()), ..self }
    }
}

/// The logs in which `now` is further than `before`.
fn more(before: &Map, now: &Map) -> Vec<(Origin, u64)> {
    let differences = before.diff(now).filter_map(|item| match item {
        DiffItem::Add(origin, seq) => Some((*origin, *seq)),
        DiffItem::Update { old: (_, old), new: (origin, new) } if new > old => Some((*origin, *new)),
        DiffItem::Update { .. } | DiffItem::Remove(..) => None,
    });
    differences.collect()
}

/// All differences of `now` to `before`; 0 for a log that only `before` covers.
fn differences(before: &Map, now: &Map) -> Vec<(Origin, u64)> {
    let differences = before.diff(now).map(|item| match item {
        DiffItem::Add(origin, seq) | DiffItem::Update { new: (origin, seq), .. } => (*origin, *seq),
        DiffItem::Remove(origin, _) => (*origin, 0),
    });
    differences.collect()
}

/// The content of a snapshot entry: its base and the differences to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotContent {
    /// The snapshot that this one is a difference to.
    pub base: Option<SnapshotId>,
    /// The logs that differ and how far they are; 0: not covered.
    pub changes: Vec<(Origin, u64)>,
}

impl SnapshotContent {
    /// The content bytes: `version u8 | 0, or 1 and id 16 | count | (origin 16, seq)*`, numbers as LEB128.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self.base {
            None => out.push(0),
            Some(id) => {
                out.push(1);
                out.extend_from_slice(&id.0);
            }
        }
        put_positions(&mut out, &self.changes);
        out
    }

    pub fn digest(&self) -> Digest {
        Digest::of(EntryKind::Snapshot, &self.encode())
    }

    /// Reads the content; `None` if it is not one that this program knows.
    pub fn decode(content: &[u8]) -> Option<Self> {
        let mut rest = ByteReader::new(content);
        (rest.u8()? == VERSION).then_some(())?;
        let base = match rest.u8()? {
            0 => None,
            1 => Some(SnapshotId(rest.array()?)),
            _ => return None,
        };
        let changes = rest.positions()?;
        rest.end(SnapshotContent { base, changes })
    }

    /// The snapshot with this content and this base.
    pub fn snapshot(self, base: Option<&FrontierSnapshot>) -> FrontierSnapshot {
        let id = SnapshotId::of(self.digest());
        let map = base.map(|base| base.map.clone()).unwrap_or_default();
        let mut frontier = Frontier { map, base: None };
        self.changes.into_iter().for_each(|(origin, seq)| frontier.set(origin, seq));
        FrontierSnapshot { id, depth: base.map_or(0, |base| base.depth + 1), map: frontier.map }
    }
}

/// Appends a position in a log: the origin, then the seq as LEB128.
pub(super) fn put_position(out: &mut Vec<u8>, origin: Origin, seq: u64) {
    out.extend_from_slice(&origin.0);
    put_varint(out, seq);
}

/// Appends positions: their number as LEB128, then each.
pub(super) fn put_positions(out: &mut Vec<u8>, positions: &[(Origin, u64)]) {
    put_varint(out, positions.len() as u64);
    for (origin, seq) in positions {
        put_position(out, *origin, *seq);
    }
}

impl ByteReader<'_> {
    /// What [`put_position`] wrote.
    pub(super) fn position(&mut self) -> Option<(Origin, u64)> {
        Some((Origin(self.array()?), self.varint()?))
    }

    /// What [`put_positions`] wrote.
    pub(super) fn positions(&mut self) -> Option<Vec<(Origin, u64)>> {
        let count = usize::try_from(self.varint()?).ok()?;
        // Each takes 17 bytes at least; a false count allocates nothing.
        (count <= self.rest().len() / 17).then_some(())?;
        (0..count).map(|_| self.position()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn origin(n: u8) -> Origin {
        Origin([n; 16])
    }

    fn seqs(list: &[(u8, u64)]) -> Frontier {
        list.iter().map(|(n, seq)| (origin(*n), *seq)).collect()
    }

    /// Frozen: the content of a snapshot, version 1. May be added to, never changed.
    #[test]
    fn the_content_of_a_snapshot_is_frozen() {
        let content = SnapshotContent {
            base: Some(SnapshotId([7; 16])),
            changes: vec![(origin(1), 5), (origin(2), 127)],
        };
        let hex = crate::chain::hex(&content.encode());
        assert_eq!(
            hex,
            concat!(
                "010107070707070707070707070707070707",
                "02",
                "0101010101010101010101010101010105",
                "020202020202020202020202020202027f"
            )
        );
        assert_eq!(SnapshotContent::decode(&content.encode()), Some(content));
        assert_eq!(SnapshotContent::decode(&[2, 0, 0]), None);
    }

    #[test]
    fn changes_to_a_snapshot_restore_the_frontier() {
        let first = SnapshotContent { base: None, changes: vec![(origin(1), 5), (origin(2), 9)] };
        let first = first.snapshot(None);
        let second = SnapshotContent { base: Some(first.id), changes: vec![(origin(2), 12)] };
        let second = Arc::new(second.snapshot(Some(&first)));
        assert_eq!(second.depth, 1);
        let mut now = Frontier::at(second.clone());
        assert_eq!(now, seqs(&[(1, 5), (2, 12)]));
        now.raise(origin(3), 1);
        now.raise(origin(1), 4);
        assert_eq!(now.changes(), [(origin(3), 1)]);
        now.lower(origin(2), 11);
        now.lower(origin(1), 0);
        assert_eq!(now.changes(), [(origin(1), 0), (origin(2), 11), (origin(3), 1)]);
        assert_eq!(seqs(&[(1, 5), (2, 13)]).based_on(&second).changes(), [(origin(2), 13)]);
    }

    #[test]
    fn a_large_frontier_is_a_chain_of_snapshots_and_a_long_chain_starts_again() {
        let name = |n: u32| Origin([n.to_be_bytes(); 4].concat().try_into().expect("16 bytes"));
        let mut all: Frontier = (0..5_000).map(|n| (name(n), 1)).collect();
        let chain = all.snapshots();
        assert_eq!(chain.len(), 3);
        let mut last = chain[2].1.clone();
        assert_eq!(Frontier::at(last.clone()), all);
        assert!(chain.iter().all(|(content, _)| content.encode().len() < 60_000));
        let mut lengths = Vec::new();
        for n in 0..100 {
            all.raise(name(n), 2);
            all = all.based_on(&last);
            let chain = all.snapshots();
            lengths.push(chain.len());
            last = chain.last().expect("one at least").1.clone();
            assert!(last.depth < CHAIN_COUNT_MAX, "{n}");
        }
        assert!(lengths.contains(&1) && lengths.contains(&3), "{lengths:?}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = SnapshotContent::decode(&bytes);
        }
    }
}
