//! Owns the vector: which entries of every log a store holds, and whether two stores hold the same.
//!
//! A vector lists durable entries only: for each log its type, its floor and its head. Equal heads prove equal logs. A
//! log is held from its floor on; no code may assume that its first entry is here. A vector also lists the cuts (origin -> seq): a log has no entry from its cut on, on any node. A cut is never undone, and
//! of two cuts the smaller counts, so all nodes reach the same cuts in whatever order they learn them. Both are sorted
//! maps with structural sharing, because a vector is copied with every commit and compared with every exchange, and of
//! thousands of logs a few grow.

use imbl::ordmap::DiffItem;

use super::bytes::{ByteReader, put_varint};
use super::ids::{ChainHash, Origin};
use super::kind::LogType;
use super::record::Entry;

/// A place in a log that its hash chain proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub seq: u64,
    /// The chain's hash there.
    pub hash: ChainHash,
}

impl Head {
    /// Before the first entry of a log.
    pub fn genesis(origin: Origin, log_type: LogType) -> Self {
        Head { seq: 0, hash: ChainHash::genesis(origin, log_type) }
    }

    /// The head of the same log with one more entry.
    #[must_use]
    pub fn followed_by(self, entry: &Entry) -> Self {
        Head { seq: entry.seq(), hash: self.hash.next(entry.seq(), entry.stamp(), entry.leaf()) }
    }
}

/// What a store holds of one log: the entries after the floor, up to the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSpan {
    pub log_type: LogType,
    /// The last entry that is not kept any more. Its seq is 0 until retention is built.
    pub floor: Head,
    /// The last entry; the floor if there is none.
    pub head: Head,
}

impl LogSpan {
    /// A log from its first entry on.
    pub fn whole(origin: Origin, log_type: LogType, head: Head) -> Self {
        LogSpan { log_type, floor: Head::genesis(origin, log_type), head }
    }

    /// Whether the entry with this seq is held.
    pub fn holds(&self, seq: u64) -> bool {
        seq > self.floor.seq && seq <= self.head.seq
    }

    /// Appends the span as it travels: `log type 3 | floor seq | floor hash 32, unless the seq is 0 | head seq | head
    /// hash 32`, numbers as LEB128.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.log_type.bytes());
        put_varint(out, self.floor.seq);
        if self.floor.seq > 0 {
            out.extend_from_slice(&self.floor.hash.0);
        }
        put_varint(out, self.head.seq);
        out.extend_from_slice(&self.head.hash.0);
    }

    /// Reads what [`LogSpan::put`] wrote of the log `origin`.
    pub fn read(reader: &mut ByteReader<'_>, origin: Origin) -> Option<Self> {
        let log_type = LogType::of(reader.array()?)?;
        let floor = match reader.varint()? {
            0 => Head::genesis(origin, log_type),
            seq => Head { seq, hash: ChainHash(reader.array()?) },
        };
        let head = Head { seq: reader.varint()?, hash: ChainHash(reader.array()?) };
        (head.seq > 0 && head.seq >= floor.seq).then_some(LogSpan { log_type, floor, head })
    }
}

/// What a store holds of all logs, and where logs are cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vector {
    logs: imbl::OrdMap<Origin, LogSpan>,
    cuts: imbl::OrdMap<Origin, u64>,
}

/// A hash over a vector's sorted logs, and its cuts if it has any.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VectorDigest(pub [u8; 32]);

impl std::fmt::Display for VectorDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&blake3::Hash::from(self.0).to_hex())
    }
}

impl std::fmt::Debug for VectorDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Vector {
    pub fn insert(&mut self, origin: Origin, span: LogSpan) {
        self.logs.insert(origin, span);
    }

    pub fn remove(&mut self, origin: Origin) {
        self.logs.remove(&origin);
    }

    /// Sets the head of a log, which begins with its first entry if it is new.
    pub fn set_head(&mut self, origin: Origin, log_type: LogType, head: Head) {
        match self.logs.get_mut(&origin) {
            Some(span) => span.head = head,
            None => drop(self.logs.insert(origin, LogSpan::whole(origin, log_type, head))),
        }
    }

    /// What is held of a log, if it is known.
    pub fn get(&self, origin: Origin) -> Option<&LogSpan> {
        self.logs.get(&origin)
    }

    pub fn head(&self, origin: Origin) -> Option<Head> {
        self.logs.get(&origin).map(|span| span.head)
    }

    /// A log's last seq, 0 if it has no entries.
    pub fn seq(&self, origin: Origin) -> u64 {
        self.logs.get(&origin).map_or(0, |span| span.head.seq)
    }

    /// The seq before a log's first entry here.
    pub fn floor(&self, origin: Origin) -> u64 {
        self.logs.get(&origin).map_or(0, |span| span.floor.seq)
    }

    /// The chain's hash at a log's head. Of an unknown log, which would be of this type: its first hash.
    pub fn hash(&self, origin: Origin, log_type: LogType) -> ChainHash {
        self.head(origin).map_or_else(|| ChainHash::genesis(origin, log_type), |head| head.hash)
    }

    /// Cuts a log and sets its head, the entry before the cut; without one, nothing of the log is left. The caller
    /// vouches for that head.
    pub fn cut(&mut self, origin: Origin, seq: u64, before: Option<Head>) {
        let earlier = self.cuts.get(&origin).copied().unwrap_or(u64::MAX);
        self.cuts.insert(origin, seq.min(earlier));
        let span = self.logs.remove(&origin).zip(before);
        if let Some((span, head)) = span.filter(|(span, head)| head.seq >= span.floor.seq) {
            self.logs.insert(origin, LogSpan { head, ..span });
        }
    }

    /// Where a log is cut, if it is.
    pub fn cut_of(&self, origin: Origin) -> Option<u64> {
        self.cuts.get(&origin).copied()
    }

    /// The last seq that a log can have: any number, unless it is cut.
    pub fn limit(&self, origin: Origin) -> u64 {
        self.cuts.get(&origin).map_or(u64::MAX, |cut| cut - 1)
    }

    pub fn origins(&self) -> usize {
        self.logs.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Origin, LogSpan)> + '_ {
        self.logs.iter().map(|(origin, span)| (*origin, *span))
    }

    pub fn cuts(&self) -> impl Iterator<Item = (Origin, u64)> + '_ {
        self.cuts.iter().map(|(origin, seq)| (*origin, *seq))
    }

    /// The logs that differ from `base`, in time proportional to their number where both share history.
    /// A log is removed only by a cut before its first entry, which is a difference of the cuts.
    pub fn changes_since(&self, base: &Vector) -> Vec<(Origin, LogSpan)> {
        changes(&base.logs, &self.logs)
    }

    /// The cuts that `base` does not have, or has at another seq.
    pub fn cuts_since(&self, base: &Vector) -> Vec<(Origin, u64)> {
        changes(&base.cuts, &self.cuts)
    }

    /// Logs in which this vector covers entries that `other` lacks and no cut excludes: each with the last of them and
    /// the seq before the first of them.
    fn missing_in(&self, other: &Vector) -> impl Iterator<Item = (Origin, u64, u64)> {
        let lead = |(origin, span): (Origin, LogSpan)| {
            let last = span.head.seq.min(other.limit(origin)).min(self.limit(origin));
            (origin, last, other.seq(origin).max(span.floor.seq))
        };
        self.changes_since(other).into_iter().map(lead).filter(|(_, last, before)| last > before)
    }

    /// Logs that `other` can continue from this vector: each with the last entry that no cut excludes, and the other's
    /// last seq. A log whose floor is after the other's end has a gap there.
    pub fn leads(&self, other: &Vector) -> Vec<(Origin, u64, u64)> {
        self.missing_in(other).filter(|(origin, _, before)| *before == other.seq(*origin)).collect()
    }

    /// Number of entries that this vector covers and `other` does not. A peer may claim any number: it saturates.
    pub fn ahead_of(&self, other: &Vector) -> u64 {
        self.missing_in(other).map(|(_, last, before)| last - before).fold(0, u64::saturating_add)
    }

    /// Raises every head to at least that of `other`, as far as neither has cut the log.
    pub fn merge(&mut self, other: &Vector) {
        for (origin, theirs) in other.changes_since(&self.clone()) {
            let floor = self.get(origin).map_or(theirs.floor, |ours| ours.floor);
            if theirs.head.seq > self.seq(origin) {
                self.insert(origin, LogSpan { floor, ..theirs });
            }
        }
        for (origin, _) in self.cuts_since(other).into_iter().chain(other.cuts_since(self)) {
            let cut = self.limit(origin).min(other.limit(origin)) + 1;
            let before = self.head(origin).filter(|_| cut > 1);
            // The hash before the cut is not known. It is not used: a union is only counted.
            self.cut(origin, cut, before.map(|head| Head { seq: head.seq.min(cut - 1), ..head }));
        }
    }

    /// Number of entries in all logs; saturates, as above.
    pub fn entries(&self) -> u64 {
        self.logs.values().map(|span| span.head.seq - span.floor.seq).fold(0, u64::saturating_add)
    }

    /// The hash that two stores compare. Linear in the number of logs.
    pub fn digest(&self) -> VectorDigest {
        let mut hasher = blake3::Hasher::new();
        for (origin, LogSpan { log_type, floor, head }) in &self.logs {
            hasher.update(&origin.0);
            hasher.update(&log_type.bytes());
            for Head { seq, hash } in [floor, head] {
                hasher.update(&seq.to_be_bytes());
                hasher.update(&hash.0);
            }
        }
        let logs = VectorDigest(*hasher.finalize().as_bytes());
        if self.cuts.is_empty() {
            return logs;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"cuts");
        hasher.update(&logs.0);
        for (origin, seq) in &self.cuts {
            hasher.update(&origin.0);
            hasher.update(&seq.to_be_bytes());
        }
        VectorDigest(*hasher.finalize().as_bytes())
    }
}

/// The entries of `now` that `base` lacks or has with another value.
fn changes<V: Copy + PartialEq>(
    base: &imbl::OrdMap<Origin, V>,
    now: &imbl::OrdMap<Origin, V>,
) -> Vec<(Origin, V)> {
    base.diff(now)
        .filter_map(|item| match item {
            DiffItem::Add(origin, value) | DiffItem::Update { new: (origin, value), .. } => {
                Some((*origin, *value))
            }
            DiffItem::Remove(..) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(heads: &[(u8, u64)]) -> Vector {
        let mut vector = Vector::default();
        for &(name, seq) in heads {
            let head = Head { seq, hash: ChainHash([name; 32]) };
            vector.set_head(Origin([name; 16]), LogType::MESSAGES, head);
        }
        vector
    }

    #[test]
    fn changes_are_the_heads_that_differ_from_the_base() {
        let base = vector(&[(1, 5), (2, 5), (4, 1)]);
        let changed = vector(&[(1, 5), (2, 7), (3, 1)]);
        let names: Vec<_> =
            changed.changes_since(&base).iter().map(|(o, span)| (o.0[0], span.head.seq)).collect();
        assert_eq!(names, [(2, 7), (3, 1)]);
        assert_eq!(changed.ahead_of(&base), 3);
        assert_eq!(base.ahead_of(&changed), 1);
    }

    #[test]
    fn type_and_floor_are_in_the_digest_and_entries_below_a_floor_do_not_count() {
        let (a, whole) = (Origin([1; 16]), vector(&[(1, 9)]));
        let span = *whole.get(a).expect("has it");
        let with = |span| {
            let mut other = whole.clone();
            other.insert(a, span);
            other
        };
        let control = with(LogSpan { log_type: LogType { is_control: true, ..LogType::MESSAGES }, ..span });
        let floored = with(LogSpan { floor: Head { seq: 4, hash: ChainHash([4; 32]) }, ..span });
        let digests = [&whole, &control, &floored].map(Vector::digest);
        assert!(digests[0] != digests[1] && digests[1] != digests[2] && digests[0] != digests[2]);
        assert_eq!((floored.entries(), floored.ahead_of(&Vector::default())), (5, 5));
        assert_eq!(floored.leads(&Vector::default()), [], "what it has does not follow an empty log");
        assert_eq!(floored.leads(&vector(&[(1, 4)])), [(a, 9, 4)]);
        assert_eq!((whole.ahead_of(&floored), floored.ahead_of(&whole)), (0, 0));
    }

    /// Frozen: a span on the wire and on disk. May be added to, never changed.
    #[test]
    fn the_bytes_of_a_span_are_frozen() {
        let (a, log_type) = (Origin([1; 16]), LogType { is_control: true, is_branch: false, keep_days: 7 });
        let whole = LogSpan::whole(a, log_type, Head { seq: 300, hash: ChainHash([5; 32]) });
        let floored = LogSpan { floor: Head { seq: 4, hash: ChainHash([4; 32]) }, ..whole };
        for (span, hex) in [
            (whole, format!("01000700ac02{}", "05".repeat(32))),
            (floored, format!("01000704{}ac02{}", "04".repeat(32), "05".repeat(32))),
        ] {
            let mut bytes = Vec::new();
            span.put(&mut bytes);
            assert_eq!(
                (crate::chain::hex(&bytes), LogSpan::read(&mut ByteReader::new(&bytes), a)),
                (hex, Some(span))
            );
        }
    }

    #[test]
    fn merging_raises_heads_and_never_lowers_them() {
        let mut union = vector(&[(1, 5), (2, 5)]);
        union.merge(&vector(&[(1, 3), (2, 9), (3, 1)]));
        assert_eq!(union, vector(&[(1, 5), (2, 9), (3, 1)]));
        assert_eq!(union.entries(), 15);
    }

    #[test]
    fn the_digest_depends_on_content_not_on_the_order_of_insertion() {
        let one = vector(&[(1, 5), (2, 5)]);
        let two = vector(&[(2, 5), (1, 5)]);
        assert_eq!(one.digest(), two.digest());
        assert_ne!(one.digest(), vector(&[(1, 5), (2, 6)]).digest());
    }

    #[test]
    fn a_cut_changes_the_digest_and_of_two_the_smaller_counts() {
        let (one, mut cut) = (vector(&[(1, 5), (2, 5)]), vector(&[(1, 5), (2, 5)]));
        cut.cut(Origin([3; 16]), 7, None);
        assert_ne!(one.digest(), cut.digest());
        let mut other = cut.clone();
        cut.cut(Origin([3; 16]), 4, None);
        other.cut(Origin([3; 16]), 4, None);
        other.cut(Origin([3; 16]), 7, None);
        assert_eq!((cut.cut_of(Origin([3; 16])), cut.digest()), (Some(4), other.digest()));
    }

    #[test]
    fn entries_from_a_cut_on_count_as_missing_nowhere() {
        let (all, mut cut) = (vector(&[(1, 9), (2, 5)]), vector(&[(1, 3), (2, 5)]));
        let (a, before) = (Origin([1; 16]), Head { seq: 3, hash: ChainHash([1; 32]) });
        cut.cut(a, 6, Some(before));
        assert_eq!(all.leads(&cut), [(a, 5, 3)]);
        assert_eq!((all.ahead_of(&cut), cut.ahead_of(&all)), (2, 0));
        let (mut one, mut two) = (all.clone(), cut.clone());
        one.merge(&cut);
        two.merge(&all);
        assert_eq!((one.seq(a), two.seq(a), one.limit(a), two.limit(a)), (5, 5, 5, 5));
        cut.cut(a, 1, None);
        assert_eq!((cut.seq(a), all.leads(&cut)), (0, Vec::new()));
    }
}
