//! Owns the rules of the logs: which entry comes next, and which entry of a peer may be taken in.
//!
//! [`Logs`] is what a store knows of every log: its head and its range of stamps, and which origin this
//! process may append to. It never continues a log it finds: [`Logs::assign`] appends only to an origin that
//! was minted since the store was opened. So a restored backup, a rolled-back disk or a copied directory can
//! never use a position twice. A log that is cut ends before its cut for ever; what it had from there on stands in
//! branches. A clone is cheap, so a batch is decided on a clone and thrown away if its commit fails.

use super::clock::{Clock, Stamp};
use super::ids::{EntryKey, Origin};
use super::message::Digest;
use super::record::Entry;
use super::vector::{Head, Vector};
use crate::fault::Fault;

/// The chain's hash is kept for every entry whose seq is a multiple of this, besides the head.
pub const CHECKPOINT_EVERY: u64 = 1024;

/// The stamps of a log's first and last entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StampRange {
    /// Of entry 1.
    pub first: Stamp,
    /// Of the head.
    pub last: Stamp,
}

/// What a store holds when it is opened.
#[derive(Debug, Clone, Default)]
pub struct LogsOnDisk {
    /// Its logs, each without gaps from entry 1 to its head.
    pub heads: Vec<(Origin, Head, StampRange)>,
    /// Where logs are cut.
    pub cuts: Vec<(Origin, u64)>,
    /// Logs of which it also holds entries behind a gap, up to this seq.
    pub detached: Vec<(Origin, u64)>,
}

/// All logs of one store. See the head of this file.
#[derive(Debug, Clone, Default)]
pub struct Logs {
    vector: Vector,
    stamps: imbl::OrdMap<Origin, StampRange>,
    /// Logs with entries behind a gap, up to where. They are in no vector and in no listing until the gap is filled.
    detached: imbl::OrdMap<Origin, u64>,
    clock: Clock,
    own: Option<Origin>,
}

/// Why an entry of a peer is not taken in. It concerns that log on that link, nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// Entries between the head and this one are missing.
    #[error("entry {got} does not follow entry {head}")]
    Gap {
        /// What we have.
        head: u64,
        /// What came.
        got: u64,
    },
    /// Stamps of a log only increase.
    #[error("entry {0} is not stamped later than the one before it")]
    Stamp(u64),
    /// What came after the last good entry is damaged.
    #[error("what follows entry {0} is damaged")]
    Broken(u64),
    /// The content is not what the digest says.
    #[error("entry {0} does not match its digest")]
    Digest(u64),
    /// The peer's chain says something else than ours at the same place.
    #[error("the hash chains differ at entry {0}: the log is forked")]
    Fork(u64),
}

impl Logs {
    /// What was found in a store. Nothing of it will be appended to.
    pub fn restore(found: LogsOnDisk, now_ms: u64) -> Self {
        let mut logs = Logs { detached: found.detached.into_iter().collect(), ..Logs::default() };
        for (origin, head, range) in found.heads {
            logs.vector.insert(origin, head);
            logs.stamps.insert(origin, range);
            logs.clock.adopt(range.last, now_ms);
        }
        if Fault::OldOrigin.is_planted() {
            logs.own = logs.vector.iter().map(|(origin, _)| origin).last();
        }
        for (origin, seq) in found.cuts {
            let head = logs.vector.get(origin).copied();
            logs.vector.cut(origin, seq, head);
        }
        logs
    }

    /// Gives a message of a client the next place in this process's own log. `mint` names a new log and is
    /// called with the first message, and again if the wall clock was set far back.
    pub fn assign(&mut self, digest: Digest, now_ms: u64, mint: impl FnOnce() -> Origin) -> EntryKey {
        let tick = self.clock.tick(now_ms);
        let origin = match self.own {
            Some(own) if !tick.set_back => own,
            _ => *self.own.insert(mint()),
        };
        let seq = self.vector.seq(origin) + 1;
        let place = EntryKey { stamp: tick.stamp, origin, seq };
        self.append(place, digest);
        place
    }

    /// Takes in a peer's entry if it is the next one of its log. `Ok(false)`: we have that place already.
    /// If it continues our own log, somebody else appends to it too (this machine was cloned while it ran): we leave it.
    pub fn admit(&mut self, entry: &Entry, now_ms: u64) -> Result<bool, AdmitError> {
        let EntryKey { stamp, origin, seq } = entry.key();
        let head = self.vector.seq(origin);
        if seq <= head || seq > self.vector.limit(origin) {
            return Ok(false); // behind a cut nothing is news: what was there stands in a branch
        }
        if seq != head + 1 && !Fault::AcceptGap.is_planted() {
            return Err(AdmitError::Gap { head, got: seq });
        }
        if self.stamps.get(&origin).is_some_and(|range| stamp <= range.last) {
            return Err(AdmitError::Stamp(seq));
        }
        if !entry.content_matches_digest() {
            return Err(AdmitError::Digest(seq));
        }
        self.clock.adopt(stamp, now_ms);
        self.append(entry.key(), entry.digest());
        self.abandon(origin);
        Ok(true)
    }

    /// Cuts a log: `before` is the entry before the cut, as its head and its stamp. The caller has seen to it that what
    /// the log had from there on stands in branches.
    pub fn cut(&mut self, origin: Origin, seq: u64, before: Option<(Head, Stamp)>) {
        self.vector.cut(origin, seq, before.map(|(head, _)| head));
        if let Some(last) = self.detached.remove(&origin)
            && seq > self.vector.seq(origin) + 2
        {
            self.detached.insert(origin, last.min(seq - 1)); // what lies between the gap and the cut
        }
        match (before, self.stamps.get(&origin).copied()) {
            (Some((_, last)), Some(range)) => self.stamps.insert(origin, StampRange { last, ..range }),
            _ => self.stamps.remove(&origin),
        };
        self.abandon(origin);
    }

    /// Puts an entry that is moved at the end of its branch, where its new place says.
    pub fn append_moved(&mut self, place: EntryKey, digest: Digest) {
        assert_eq!(place.seq, self.vector.seq(place.origin) + 1, "a branch has no gaps either");
        self.append(place, digest);
        self.abandon(place.origin);
    }

    fn append(&mut self, place: EntryKey, digest: Digest) {
        let EntryKey { stamp, origin, seq } = place;
        let hash = self.vector.hash(origin).next(seq, stamp, digest);
        self.vector.insert(origin, Head { seq, hash });
        let first = self.stamps.get(&origin).map_or(stamp, |range| range.first);
        self.stamps.insert(origin, StampRange { first, last: stamp });
    }

    /// The heads of all logs.
    pub fn vector(&self) -> &Vector {
        &self.vector
    }

    /// Whether an entry is within its log. What the store has beside that was cut off, or is behind a gap.
    pub fn covers(&self, place: EntryKey) -> bool {
        place.seq <= self.vector.seq(place.origin)
    }

    /// A log's last entry, as its head and its stamp.
    pub fn last(&self, origin: Origin) -> Option<(Head, Stamp)> {
        Some((*self.vector.get(origin)?, self.stamps.get(&origin)?.last))
    }

    /// The stamps of a log, if it has entries.
    pub fn stamps(&self, origin: Origin) -> Option<StampRange> {
        self.stamps.get(&origin).copied()
    }

    /// All logs with their stamps, by origin.
    pub fn ranges(&self) -> impl Iterator<Item = (Origin, StampRange)> + '_ {
        self.stamps.iter().map(|(origin, range)| (*origin, *range))
    }

    /// The log this process appends to, once it accepted a message.
    pub fn own(&self) -> Option<Origin> {
        self.own
    }

    /// If this is the own log, leaves it: the next message begins another. For when somebody else appends to it, or
    /// what the store holds of it is in doubt.
    pub fn abandon(&mut self, origin: Origin) {
        if self.own == Some(origin) {
            self.own = None;
        }
    }

    /// Leaves the own log, whichever it is.
    pub fn abandon_own(&mut self) {
        self.own = None;
    }

    /// Logs of which entries are held behind a gap, and up to where.
    pub fn detached(&self) -> impl Iterator<Item = (Origin, u64)> + '_ {
        self.detached.iter().map(|(origin, last)| (*origin, *last))
    }

    /// Up to where entries of a log are held behind a gap.
    pub fn detached_until(&self, origin: Origin) -> Option<u64> {
        self.detached.get(&origin).copied()
    }

    /// Nothing of a log is behind a gap any more.
    pub fn attach(&mut self, origin: Origin) {
        self.detached.remove(&origin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::record::EntryKind;

    const A: Origin = Origin([1; 16]);
    const B: Origin = Origin([2; 16]);
    const NOW: u64 = 1_700_000_000_000;

    fn record(origin: Origin, seq: u64, stamp: u64) -> Entry {
        let (key, content) = (EntryKey { stamp: Stamp(stamp), origin, seq }, b"content");
        Entry::new(key, EntryKind::Message, Digest::of(content), content)
    }

    #[test]
    fn a_log_that_was_found_is_never_continued() {
        let mut before = Logs::default();
        before.assign(Digest::of(b"x"), NOW, || A);
        let heads = vec![(A, *before.vector().get(A).expect("has A"), before.stamps(A).expect("has A"))];
        let mut after = Logs::restore(LogsOnDisk { heads, ..LogsOnDisk::default() }, NOW);
        let place = after.assign(Digest::of(b"y"), NOW, || B);
        assert_eq!((place.origin, place.seq), (B, 1));
        assert!(place.stamp > after.stamps(A).expect("has A").last, "found stamps are adopted");
    }

    #[test]
    fn a_log_counts_without_gaps_and_its_stamps_increase() {
        let mut logs = Logs::default();
        let places: Vec<_> = (0..5).map(|_| logs.assign(Digest::of(b"x"), NOW, || A)).collect();
        assert_eq!(places.iter().map(|p| p.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(places.is_sorted_by(|a, b| a.stamp < b.stamp));
    }

    #[test]
    fn a_clock_set_back_begins_a_new_log() {
        let mut logs = Logs::default();
        logs.assign(Digest::of(b"x"), NOW, || A);
        let place = logs.assign(Digest::of(b"x"), NOW / 2, || B);
        assert_eq!((place.origin, place.seq, place.stamp.ms()), (B, 1, NOW / 2));
    }

    #[test]
    fn only_the_next_entry_of_a_peer_is_admitted() {
        let mut logs = Logs::default();
        assert_eq!(logs.admit(&record(A, 2, 9), NOW), Err(AdmitError::Gap { head: 0, got: 2 }));
        assert_eq!(logs.admit(&record(A, 1, 9), NOW), Ok(true));
        assert_eq!(logs.admit(&record(A, 1, 9), NOW), Ok(false));
        assert_eq!(logs.admit(&record(A, 2, 9), NOW), Err(AdmitError::Stamp(2)));
        let forged = Entry::new(record(A, 2, 10).key(), EntryKind::Message, Digest::of(b"other"), b"content");
        assert_eq!(logs.admit(&forged, NOW), Err(AdmitError::Digest(2)));
        assert_eq!(logs.vector().seq(A), 1);
    }

    #[test]
    fn behind_a_cut_nothing_enters_and_its_own_process_leaves_it() {
        let mut logs = Logs::default();
        let first = logs.assign(Digest::of(b"x"), NOW, || A);
        let head = *logs.vector().get(A).expect("has A");
        logs.assign(Digest::of(b"x"), NOW, || A);
        logs.cut(A, 2, Some((head, first.stamp)));
        assert_eq!((logs.vector().seq(A), logs.stamps(A).expect("has A").last), (1, first.stamp));
        assert_eq!(logs.admit(&record(A, 2, u64::MAX), NOW), Ok(false));
        assert_eq!(logs.assign(Digest::of(b"x"), NOW, || B).origin, B);
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
