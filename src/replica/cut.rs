//! Owns the way of a log's entries into branches, when the log is cut before them.
//!
//! A branch is a log like any other; its name is a hash of its first entry, so all who hold the same entries agree on
//! it without talking. Entries are copied in pieces, so that a long log does not hold up sends; only when all of them
//! stand in branches does the log end at its cut. So at every moment each message is in some log, and a crash in
//! between costs nothing: the next cut finds what was copied. An entry that is damaged ends a branch; the next intact
//! one begins another. The old rows are removed once the cut is durable, which is not done here.

use super::decide::Staged;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::record::Entry;
use crate::chain::vector::Head;
use crate::store::StoreError;
use crate::store::log::LogReader;

/// Entries that one commit moves at the most.
const PIECE_COUNT: usize = 2_000;
/// Bytes that one commit moves; as above.
const PIECE_BYTES: usize = 2 << 20;

/// A cut that is being made.
#[derive(Debug, Clone)]
pub(super) struct CutInProgress {
    pub(super) origin: Origin,
    pub(super) seq: u64,
    /// The next entry to be copied.
    next: u64,
    /// The branch it goes to, and how many entries of the branch are passed. `None`: it begins a branch.
    branch: Option<(Origin, u64)>,
    /// Some of its entries could not be read.
    loses_entries: bool,
}

impl CutInProgress {
    pub(super) fn new(origin: Origin, seq: u64) -> Self {
        CutInProgress { origin, seq, next: seq, branch: None, loses_entries: false }
    }

    /// Something was copied already.
    pub(super) fn has_copied(&self) -> bool {
        self.next > self.seq
    }

    /// Does one piece. `true`: the cut is made.
    pub(super) fn step(&mut self, draft: &mut Staged<'_>) -> Result<bool, StoreError> {
        let mut reader = draft.reader()?;
        let logs = draft.logs();
        let last = logs.vector().seq(self.origin).max(logs.detached_until(self.origin).unwrap_or(0));
        let mut bytes = 0;
        for _ in 0..PIECE_COUNT {
            if self.next > last {
                return self.finish(draft, &mut reader);
            }
            if bytes >= PIECE_BYTES {
                break;
            }
            if let Some(entry) = reader.peek(self.origin, self.next)? {
                bytes += entry.size();
                self.copy(draft, &mut reader, &entry)?;
            } else {
                self.branch = None;
                self.loses_entries |= self.next <= draft.logs().vector().seq(self.origin);
                // A gap may be of any length: the next row is the one before the next step.
                let row = reader.row_from(self.origin, self.next + 1)?;
                self.next = row.unwrap_or(u64::MAX).min(last + 1) - 1;
            }
            self.next += 1;
        }
        Ok(false)
    }

    fn copy(
        &mut self,
        draft: &mut Staged<'_>,
        reader: &mut LogReader,
        entry: &Entry,
    ) -> Result<(), StoreError> {
        let (stamp, digest) = (entry.stamp(), entry.digest());
        let (mut branch, mut passed) =
            self.branch.unwrap_or_else(|| (Origin::branch(entry.key(), digest), 0));
        loop {
            let place = EntryKey { stamp, origin: branch, seq: passed + 1 };
            let vector = draft.logs().vector();
            let is_free = passed == vector.seq(branch) && place.seq <= vector.limit(branch);
            if is_free {
                draft.append_moved(place, entry)?;
                break;
            }
            // It was copied before, or came from a peer: then it is the same.
            let there = reader.peek(branch, place.seq)?.filter(|there| draft.logs().covers(there.key()));
            if there.is_some_and(|there| (there.stamp(), there.digest()) == (stamp, digest)) {
                break;
            }
            // The branch is forked itself, damaged, or cut: what differs goes where a cut of it would put it.
            (branch, passed) = (Origin::branch(place, digest), 0);
        }
        self.branch = Some((branch, passed + 1));
        Ok(())
    }

    /// All is copied: the log ends.
    fn finish(&self, draft: &mut Staged<'_>, reader: &mut LogReader) -> Result<bool, StoreError> {
        let before = self.seq - 1;
        let held = draft.logs().vector().seq(self.origin);
        let before = if before == 0 || held == 0 {
            None
        } else if before >= held {
            draft.logs().last(self.origin)
        } else {
            let entry = reader.get(self.origin, before)?;
            Some((Head { seq: before, hash: reader.hash_at(self.origin, before)? }, entry.stamp()))
        };
        draft.cut(self.origin, self.seq, before, self.loses_entries);
        Ok(true)
    }
}
