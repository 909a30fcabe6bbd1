//! Owns moving a log's entries to branches when the log is cut before them.
//!
//! Before: the [committer](super::committer) has a fork or a damaged entry that no peer has. After: the log ends at its
//! cut, and [`purge`](super::purge) removes the old rows.
//!
//! A branch is a log whose id is a hash of its first entry, so all nodes that hold the same entries choose the same id
//! without an exchange. Entries are copied in pieces, so that a long log does not delay sends; the log ends at its cut
//! only after all of them are copied. So each message is in some log at every moment, and after a crash the next cut
//! finds the copies. A damaged entry ends a branch; the next intact entry begins another.

use super::decide::Staged;
use crate::chain::clock::Stamp;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::chain::vector::Head;
use crate::store::log::LogReader;
use crate::store::{Store, StoreError};

/// Entries that one commit moves. Further ones wait for the next commit.
const PIECE_COUNT: usize = 2_000;
/// Bytes that one commit moves; as above.
const PIECE_BYTES: usize = 2 << 20;

/// A cut begins only if this much is free after it, so that entries of peers are still stored.
const FREE_BYTES_LEFT: u64 = 32 << 20;

#[derive(Debug, Clone)]
pub(super) struct CutInProgress {
    pub(super) origin: Origin,
    pub(super) seq: u64,
    /// The next entry to copy.
    next: u64,
    /// The branch that it goes to, and how many entries that branch has so far. `None`: it begins a branch.
    branch: Option<(Origin, u64)>,
    /// Some of the entries that are cut off are damaged.
    drops_damaged: bool,
}

impl CutInProgress {
    pub(super) fn new(origin: Origin, seq: u64) -> Self {
        CutInProgress { origin, seq, next: seq, branch: None, drops_damaged: false }
    }

    pub(super) fn has_copied(&self) -> bool {
        self.next > self.seq
    }

    /// Whether the disk has room for a second copy of all that is moved: it is purged only after the cut.
    pub(super) fn has_room(&self, store: &Store, logs: &Logs) -> bool {
        let (vector, origin) = (logs.vector(), self.origin);
        let last = vector.seq(origin).max(logs.detached_until(origin).unwrap_or(0));
        let (moved, all) = ((last + 1).saturating_sub(self.seq), vector.entries().max(1));
        moved == 0 || fits(store.free_bytes(), store.log_file_bytes(), moved, all)
    }

    /// Copies one piece. `true`: the cut is complete.
    pub(super) fn step(&mut self, staged: &mut Staged<'_>) -> Result<bool, StoreError> {
        let mut reader = staged.reader()?;
        if !self.has_copied() {
            self.head_before(&staged.logs, &mut reader)?; // if it is damaged, nothing is copied in vain
        }
        let logs = &staged.logs;
        let last = logs.vector().seq(self.origin).max(logs.detached_until(self.origin).unwrap_or(0));
        let mut bytes = 0;
        for _ in 0..PIECE_COUNT {
            if self.next > last {
                return self.finish(staged, &mut reader);
            }
            if bytes >= PIECE_BYTES {
                break;
            }
            if let Some(entry) = reader.peek(self.origin, self.next)? {
                bytes += entry.size();
                self.copy(staged, &mut reader, &entry)?;
            } else {
                self.branch = None;
                let span = staged.logs.vector().get(self.origin);
                self.drops_damaged |= span.is_some_and(|span| span.holds(self.next));
                // A gap may have any length: skip to just before the next row.
                let row = reader.row_from(self.origin, self.next + 1)?;
                self.next = row.unwrap_or(u64::MAX).min(last + 1) - 1;
            }
            self.next += 1;
        }
        Ok(false)
    }

    fn copy(
        &mut self,
        staged: &mut Staged<'_>,
        reader: &mut LogReader,
        entry: &Entry,
    ) -> Result<(), StoreError> {
        let (stamp, log_type, leaf) = (entry.stamp(), entry.log_type(), entry.leaf());
        let first = || (Origin::branch(entry.key(), log_type, leaf), 0);
        let branch_type = log_type.of_branch();
        let (mut branch, mut passed) = self.branch.unwrap_or_else(first);
        loop {
            let key = EntryKey { stamp, origin: branch, seq: passed + 1 };
            let vector = staged.logs.vector();
            // A peer may have begun a log of this id that is no branch.
            let is_branch = vector.get(branch).is_none_or(|span| span.log_type == branch_type);
            let is_free = is_branch && passed == vector.seq(branch) && key.seq <= vector.limit(branch);
            if is_free {
                staged.append_moved(key, entry)?;
                break;
            }
            // An earlier attempt or a peer may have put the same entry there.
            let there = reader.peek(branch, key.seq)?.filter(|there| staged.logs.covers(there.key()));
            if is_branch && there.is_some_and(|there| there.is_same_as(entry)) {
                break;
            }
            // The branch itself is forked, damaged or cut: the entry goes where a cut of the branch would move it.
            (branch, passed) = (Origin::branch(key, log_type, leaf), 0);
        }
        self.branch = Some((branch, passed + 1));
        Ok(())
    }

    /// Everything is copied: ends the log.
    fn finish(&self, staged: &mut Staged<'_>, reader: &mut LogReader) -> Result<bool, StoreError> {
        let before = self.head_before(&staged.logs, reader)?;
        staged.cut(self.origin, self.seq, before, self.drops_damaged);
        Ok(true)
    }

    /// The head that the log has after the cut, and its stamp. `None`: no entry is left.
    fn head_before(&self, logs: &Logs, reader: &mut LogReader) -> Result<Option<(Head, Stamp)>, StoreError> {
        let seq = self.seq - 1;
        let span = logs.vector().get(self.origin).copied();
        Ok(match span {
            Some(span) if span.holds(seq) && seq < span.head.seq => {
                let entry = reader.get(self.origin, seq)?;
                Some((Head { seq, hash: reader.hash_at(self.origin, span.floor, seq)? }, entry.stamp()))
            }
            Some(span) if seq >= span.head.seq => logs.last(self.origin),
            // No entry is left. The stamp of the floor is not known; it is before that of the first entry.
            Some(span) if seq == span.floor.seq && seq > 0 => {
                logs.stamps(self.origin).map(|range| (span.floor, Stamp(range.first.0.saturating_sub(1))))
            }
            _ => None,
        })
    }
}

/// Whether `moved` of `all` entries fit a second time. `file`: the bytes of all.
fn fits(free: u64, file: u64, moved: u64, all: u64) -> bool {
    let copy = u128::from(file) * u128::from(moved.min(all)) / u128::from(all.max(1));
    u128::from(free) >= copy + copy / 4 + u128::from(FREE_BYTES_LEFT) // a quarter more for the index and free pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_cut_only_if_its_entries_fit_twice() {
        let gib = 1 << 30;
        assert!(fits(gib, gib, 100, 1_000), "a tenth of the file");
        assert!(!fits(gib, gib, 1_000, 1_000), "all of it");
        assert!(fits(2 * gib, gib, 1_000, 1_000));
        assert!(!fits(20 * gib, 30 * gib, 1 << 40, 1_000), "never more than all");
        assert!(fits(FREE_BYTES_LEFT, 0, 0, 0));
    }
}
