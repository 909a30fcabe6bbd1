//! Owns the rules of the logs: which entry comes next, and which entry of a peer is admitted.
//!
//! [`Logs`] is what a store has of every log: its head, its range of stamps, and the origin that this process appends
//! to.
//!
//! Invariants: [`Logs::assign`] appends only to a log that this process began after it opened the store. So a restored
//! backup, a rolled-back disk or a copied directory never uses a position twice. A log that is cut ends before its cut
//! for ever; its entries from there on are in branches. A clone is cheap: a batch is decided on a clone, which is
//! dropped if its commit fails.

use super::clock::{Clock, Stamp};
use super::ids::{EntryKey, Leaf, Origin};
use super::kind::LogType;
use super::record::Entry;
use super::vector::{Head, LogSpan, Vector};
use crate::fault::Fault;

/// The chain's hash is stored for the head and for every entry whose seq is a multiple of this.
pub const CHECKPOINT_EVERY: u64 = 1024;

/// The stamps of a log's first and last entry here. Of a log without entries: both that of its floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StampRange {
    pub first: Stamp,
    pub last: Stamp,
}

/// The logs as they are read when a store is opened.
#[derive(Debug, Clone, Default)]
pub struct LogsOnDisk {
    /// The logs, each without gaps from its floor to its head.
    pub spans: Vec<(Origin, LogSpan, StampRange)>,
    /// Where logs are cut.
    pub cuts: Vec<(Origin, u64)>,
    /// Logs with detached entries, and the last seq of those.
    pub detached: Vec<(Origin, u64)>,
}

/// All logs of one store.
#[derive(Debug, Clone, Default)]
pub struct Logs {
    vector: Vector,
    stamps: imbl::OrdMap<Origin, StampRange>,
    /// Logs with detached entries (entries behind a gap), and the last seq of those. Detached entries are in no vector
    /// and in no listing until the gap is filled.
    detached: imbl::OrdMap<Origin, u64>,
    clock: Clock,
    own: Option<Origin>,
}

/// Why an entry of a peer is not admitted. The exchange leaves out that log on that link; the other logs go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// Entries between the head and this one are missing.
    #[error("entry {got} does not follow entry {head}")]
    Gap { head: u64, got: u64 },
    #[error("entry {0} is not stamped later than the one before it")]
    Stamp(u64),
    #[error("the record after entry {0} is damaged")]
    Damaged(u64),
    #[error("entry {0} does not match its digest")]
    Digest(u64),
    #[error("entry {0} is of a log of another type")]
    LogType(u64),
    #[error("peers began too many logs here; this one has to wait")]
    TooManyLogs,
    /// The peer's chain has another hash than ours at this seq.
    #[error("the hash chains differ at entry {0}: the log is forked")]
    Fork(u64),
}

impl Logs {
    /// The logs of a store that was just opened. None of them is appended to.
    pub fn restore(found: LogsOnDisk, now_ms: u64) -> Self {
        let mut logs = Logs { detached: found.detached.into_iter().collect(), ..Logs::default() };
        for (origin, span, range) in found.spans {
            logs.vector.insert(origin, span);
            logs.stamps.insert(origin, range);
            logs.clock.adopt(range.last, now_ms);
        }
        if Fault::OldOrigin.is_planted() {
            logs.own = logs.vector.iter().map(|(origin, _)| origin).last();
        }
        for (origin, seq) in found.cuts {
            let head = logs.vector.head(origin);
            logs.vector.cut(origin, seq, head);
        }
        logs
    }

    /// Assigns the next position in this process's own log. `new_origin` creates the id of a new log; it is called with
    /// the first entry, after the own log was abandoned, and if the wall clock was set far back.
    pub fn assign(&mut self, leaf: Leaf, now_ms: u64, new_origin: impl FnOnce() -> Origin) -> EntryKey {
        let tick = self.clock.tick(now_ms);
        let origin = match self.own {
            Some(own) if !tick.set_back => own,
            _ => *self.own.insert(new_origin()),
        };
        let seq = self.vector.seq(origin) + 1;
        let key = EntryKey { stamp: tick.stamp, origin, seq };
        self.append(key, LogType::MESSAGES, leaf);
        key
    }

    /// Admits a peer's entry if it is the next one of its log. `Ok(false)`: that position is taken or cut off. If the
    /// entry continues our own log, another process appends to it too (the machine was cloned while it ran), so it is
    /// abandoned.
    pub fn admit(&mut self, entry: &Entry, now_ms: u64) -> Result<bool, AdmitError> {
        let EntryKey { stamp, origin, seq } = entry.key();
        let head = self.vector.seq(origin);
        if seq <= head || seq > self.vector.limit(origin) {
            return Ok(false); // entries from a cut on are in branches
        }
        if seq != head + 1 && !Fault::AcceptGap.is_planted() {
            return Err(AdmitError::Gap { head, got: seq });
        }
        if self.stamps.get(&origin).is_some_and(|range| stamp <= range.last) {
            return Err(AdmitError::Stamp(seq));
        }
        if self.vector.get(origin).is_some_and(|span| span.log_type != entry.log_type()) {
            return Err(AdmitError::LogType(seq));
        }
        if !entry.content_matches_digest() {
            return Err(AdmitError::Digest(seq));
        }
        self.clock.adopt(stamp, now_ms);
        self.append(entry.key(), entry.log_type(), entry.leaf());
        self.abandon(origin);
        Ok(true)
    }

    /// Cuts a log. `before`: the entry before the cut, as head and stamp. The caller has copied the entries from there
    /// on to branches.
    pub fn cut(&mut self, origin: Origin, seq: u64, before: Option<(Head, Stamp)>) {
        self.vector.cut(origin, seq, before.map(|(head, _)| head));
        if let Some(last) = self.detached.remove(&origin)
            && seq > self.vector.seq(origin) + 2
        {
            self.detached.insert(origin, last.min(seq - 1)); // the entries between the gap and the cut
        }
        match (before, self.stamps.get(&origin).copied()) {
            (Some((_, last)), Some(range)) => {
                self.stamps.insert(origin, StampRange { first: range.first.min(last), last })
            }
            _ => self.stamps.remove(&origin),
        };
        self.abandon(origin);
    }

    /// Appends a moved entry to its branch.
    pub fn append_moved(&mut self, key: EntryKey, entry: &Entry) {
        assert_eq!(key.seq, self.vector.seq(key.origin) + 1, "a branch has no gaps either");
        self.append(key, entry.log_type().of_branch(), entry.leaf());
        self.abandon(key.origin);
    }

    fn append(&mut self, key: EntryKey, log_type: LogType, leaf: Leaf) {
        let EntryKey { stamp, origin, seq } = key;
        let hash = self.vector.hash(origin, log_type).next(seq, stamp, leaf);
        let is_first = self.vector.floor(origin) + 1 == seq;
        self.vector.set_head(origin, log_type, Head { seq, hash });
        let first = self.stamps.get(&origin).filter(|_| !is_first).map_or(stamp, |range| range.first);
        self.stamps.insert(origin, StampRange { first, last: stamp });
    }

    pub fn vector(&self) -> &Vector {
        &self.vector
    }

    /// Whether an entry is within its log: neither before its floor, nor cut off, nor detached.
    pub fn covers(&self, key: EntryKey) -> bool {
        self.vector.get(key.origin).is_some_and(|span| span.holds(key.seq))
    }

    /// A log's first and last key here, if it has entries.
    pub fn ends(&self, origin: Origin) -> Option<(EntryKey, EntryKey)> {
        let (span, StampRange { first, last }) = (self.vector.get(origin)?, *self.stamps.get(&origin)?);
        let ends = [(first, span.floor.seq + 1), (last, span.head.seq)];
        let [first, last] = ends.map(|(stamp, seq)| EntryKey { stamp, origin, seq });
        (first.seq <= last.seq).then_some((first, last))
    }

    /// A log's last entry, as its head and its stamp.
    pub fn last(&self, origin: Origin) -> Option<(Head, Stamp)> {
        Some((self.vector.head(origin)?, self.stamps.get(&origin)?.last))
    }

    /// The ends of every log that readers are shown: control logs carry no messages.
    pub fn readable(&self) -> impl Iterator<Item = (EntryKey, EntryKey)> + '_ {
        let logs = self.vector.iter().filter(|(_, span)| !span.log_type.is_control);
        logs.filter_map(|(origin, _)| self.ends(origin))
    }

    /// The stamps of a log, if it is known.
    pub fn stamps(&self, origin: Origin) -> Option<StampRange> {
        self.stamps.get(&origin).copied()
    }

    pub fn ranges(&self) -> impl Iterator<Item = (Origin, StampRange)> + '_ {
        self.stamps.iter().map(|(origin, range)| (*origin, *range))
    }

    /// The log this process appends to, once it accepted a message.
    pub fn own(&self) -> Option<Origin> {
        self.own
    }

    /// If this is the own log, abandons it: the next message begins another log. For when another process appends to
    /// it, or its entries in the store are damaged.
    pub fn abandon(&mut self, origin: Origin) {
        if self.own == Some(origin) {
            self.own = None;
        }
    }

    /// Logs with detached entries, and the last seq of those.
    pub fn detached(&self) -> impl Iterator<Item = (Origin, u64)> + '_ {
        self.detached.iter().map(|(origin, last)| (*origin, *last))
    }

    /// The last seq of a log's detached entries, if it has any.
    pub fn detached_until(&self, origin: Origin) -> Option<u64> {
        self.detached.get(&origin).copied()
    }

    /// A log has no detached entries any more.
    pub fn attach(&mut self, origin: Origin) {
        self.detached.remove(&origin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::kind::EntryKind;
    use crate::chain::message::Digest;
    use crate::chain::record::EntryBody;

    const A: Origin = Origin([1; 16]);
    const B: Origin = Origin([2; 16]);
    const NOW: u64 = 1_700_000_000_000;

    fn record(origin: Origin, seq: u64, stamp: u64) -> Entry {
        let (key, content) = (EntryKey { stamp: Stamp(stamp), origin, seq }, b"content");
        Entry::new(key, EntryKind::Message, Digest::of(EntryKind::Message, content), content)
    }

    fn leaf(content: &[u8]) -> Leaf {
        Leaf::of(EntryKind::Message, "", Digest::of(EntryKind::Message, content))
    }

    /// Otherwise a peer could continue an honest log with entries that no listing shows.
    #[test]
    fn an_entry_of_another_type_does_not_continue_a_log() {
        let mut logs = Logs::default();
        assert_eq!(logs.admit(&record(A, 1, 9), NOW), Ok(true));
        let next = record(A, 2, 10);
        let other = Entry::encode(next.key(), LogType { keep_days: 1, ..LogType::MESSAGES }, &next.body());
        assert_eq!(logs.admit(&other, NOW), Err(AdmitError::LogType(2)));
    }

    /// A peer that has the content under another kind, or none of it, does not get it in.
    #[test]
    fn an_entry_that_poses_as_another_kind_or_lacks_its_content_is_refused() {
        let (mut logs, entry) = (Logs::default(), record(A, 1, 9));
        let bodies = [
            EntryBody { kind: EntryKind::Other(200), ..entry.body() },
            EntryBody { kind: EntryKind::Snapshot, ..entry.body() },
            EntryBody { content: b"", ..entry.body() },
        ];
        for body in bodies {
            let posing = Entry::encode(entry.key(), LogType::MESSAGES, &body);
            assert_eq!(logs.admit(&posing, NOW), Err(AdmitError::Digest(1)));
        }
        assert_eq!(logs.admit(&entry, NOW), Ok(true));
    }

    #[test]
    fn a_log_with_a_floor_is_covered_from_there_on() {
        let floor = Head { seq: 1_024, hash: crate::chain::ids::ChainHash([3; 32]) };
        let span = LogSpan { floor, head: floor, log_type: LogType::MESSAGES };
        let stamps = StampRange { first: Stamp(7), last: Stamp(7) };
        let mut logs =
            Logs::restore(LogsOnDisk { spans: vec![(A, span, stamps)], ..LogsOnDisk::default() }, NOW);
        assert_eq!((logs.ends(A), logs.covers(record(A, 1_024, 7).key())), (None, false));
        assert_eq!(logs.admit(&record(A, 1_026, 9), NOW), Err(AdmitError::Gap { head: 1_024, got: 1_026 }));
        let (first, second) = (record(A, 1_025, 8), record(A, 1_026, 9));
        assert_eq!([logs.admit(&first, NOW), logs.admit(&second, NOW)], [Ok(true), Ok(true)]);
        assert_eq!(logs.ends(A), Some((first.key(), second.key())));
        assert_eq!(logs.vector().head(A), Some(floor.followed_by(&first).followed_by(&second)));
        assert_eq!(logs.vector().entries(), 2);
        logs.cut(A, 1_026, Some((floor.followed_by(&first), first.stamp())));
        assert_eq!(logs.ends(A), Some((first.key(), first.key())));
        logs.cut(A, 1_025, Some((floor, Stamp(7))));
        assert_eq!((logs.ends(A), logs.vector().entries()), (None, 0));
    }

    #[test]
    fn a_log_found_at_opening_is_never_continued() {
        let mut before = Logs::default();
        before.assign(leaf(b"x"), NOW, || A);
        let spans = vec![(A, *before.vector().get(A).expect("has A"), before.stamps(A).expect("has A"))];
        let mut after = Logs::restore(LogsOnDisk { spans, ..LogsOnDisk::default() }, NOW);
        let key = after.assign(leaf(b"y"), NOW, || B);
        assert_eq!((key.origin, key.seq), (B, 1));
        assert!(key.stamp > after.stamps(A).expect("has A").last, "stamps of logs on disk are adopted");
    }

    #[test]
    fn seqs_have_no_gaps_and_stamps_increase() {
        let mut logs = Logs::default();
        let keys: Vec<_> = (0..5).map(|_| logs.assign(leaf(b"x"), NOW, || A)).collect();
        assert_eq!(keys.iter().map(|p| p.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(keys.is_sorted_by(|a, b| a.stamp < b.stamp));
    }

    #[test]
    fn a_clock_set_back_begins_a_new_log() {
        let mut logs = Logs::default();
        logs.assign(leaf(b"x"), NOW, || A);
        let key = logs.assign(leaf(b"x"), NOW / 2, || B);
        assert_eq!((key.origin, key.seq, key.stamp.ms()), (B, 1, NOW / 2));
    }

    #[test]
    fn only_the_next_entry_of_a_peer_is_admitted() {
        let mut logs = Logs::default();
        assert_eq!(logs.admit(&record(A, 2, 9), NOW), Err(AdmitError::Gap { head: 0, got: 2 }));
        assert_eq!(logs.admit(&record(A, 1, 9), NOW), Ok(true));
        assert_eq!(logs.admit(&record(A, 1, 9), NOW), Ok(false));
        assert_eq!(logs.admit(&record(A, 2, 9), NOW), Err(AdmitError::Stamp(2)));
        let forged = Entry::new(record(A, 2, 10).key(), EntryKind::Message, Digest([0; 32]), b"content");
        assert_eq!(logs.admit(&forged, NOW), Err(AdmitError::Digest(2)));
        assert_eq!(logs.vector().seq(A), 1);
    }

    #[test]
    fn a_cut_log_admits_no_entry_from_the_cut_on_and_is_abandoned() {
        let mut logs = Logs::default();
        let first = logs.assign(leaf(b"x"), NOW, || A);
        let head = logs.vector().head(A).expect("has A");
        logs.assign(leaf(b"x"), NOW, || A);
        logs.cut(A, 2, Some((head, first.stamp)));
        assert_eq!((logs.vector().seq(A), logs.stamps(A).expect("has A").last), (1, first.stamp));
        assert_eq!(logs.admit(&record(A, 2, u64::MAX), NOW), Ok(false));
        assert_eq!(logs.assign(leaf(b"x"), NOW, || B).origin, B);
        logs.cut(A, 1, None);
        assert_eq!((logs.vector().get(A), logs.stamps(A)), (None, None));
    }

    #[test]
    fn equal_logs_have_equal_hashes_and_unequal_ones_do_not() {
        let (mut left, mut right) = (Logs::default(), Logs::default());
        for seq in 1..=3 {
            left.admit(&record(A, seq, seq), NOW).expect("next");
            right.admit(&record(A, seq, seq), NOW).expect("next");
        }
        assert_eq!(left.vector().digest(), right.vector().digest());
        left.admit(&record(A, 4, 4), NOW).expect("next");
        right.admit(&record(A, 4, 5), NOW).expect("next");
        assert_ne!(left.vector().digest(), right.vector().digest());
    }
}
