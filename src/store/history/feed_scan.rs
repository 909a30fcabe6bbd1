//! Owns a feed scan: the messages that a reader has not seen, in display order, up to a frontier.
//!
//! Called by the node's feed; reads through `merge`, in chunks as a [listing](super::listing). The reader's state,
//! which may come from another node, covers a beginning of each log, and the scan reads the rest.
//!
//! Invariants: a copy of a message is skipped if another copy is covered or was scanned. An entry of a branch is skipped
//! only if another copy was scanned and none is covered: a covered one may have been skipped itself, because of an entry
//! that the reader never got. A damaged entry, or one of a
//! newer kind, blocks its log: the scan continues with the other logs and ends before that entry, so the reader's
//! position never passes an entry that it was not given.

use std::iter;
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::chain::clock::Stamp;
use crate::chain::cursor;
use crate::chain::cursor::{PartialScan, ReadState};
use crate::chain::frontier::Frontier;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::fault::Fault;
use crate::store::history::merge::Merge;
use crate::store::history::{CHUNK_BYTES, CHUNK_ROWS, CHUNK_TIME, Readers};
use crate::store::index::IndexReader;
use crate::store::log::LogReader;
use crate::store::{COPIES_MAX, Store, StoreError};

/// A message for the reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedItem {
    pub entry: Entry,
    /// The key of its first copy here.
    pub first: EntryKey,
}

#[derive(Debug)]
pub struct FeedScan {
    /// Weak, so that a slow reader does not keep a store open that must close.
    store: Weak<Store>,
    logs: Arc<Logs>,
    before: ReadState,
    until: Frontier,
    merge: Merge,
    at: Option<EntryKey>,
    is_blocked: bool,
    done: bool,
    /// The payload that the cursors of this scan share, and the number of earlier scans in it.
    shared_payload: Option<(usize, Option<Vec<u8>>)>,
}

impl FeedScan {
    /// Everything up to `until` that `before` does not cover. `until` is at most the frontier of `logs`.
    pub fn new(
        store: &Arc<Store>,
        logs: Arc<Logs>,
        before: ReadState,
        mut until: Frontier,
    ) -> Result<Self, StoreError> {
        let (mut is_blocked, mut ranges) = (false, Vec::new());
        let mut reader = store.log().read()?;
        for (origin, last) in until.beyond(&before.full) {
            if logs.vector().get(origin).is_some_and(|span| span.log_type.is_control) {
                continue; // no messages
            }
            // The log may have been cut since.
            let last = last.min(logs.vector().seq(origin));
            match covered(&before, &logs, &mut reader, origin, last)? {
                Covered::UpTo(covered) if covered < last => ranges.push((origin, covered + 1, last)),
                Covered::UpTo(_) => {}
                Covered::UpToDamage(covered) => {
                    until.lower(origin, covered.max(before.full.seq(origin)));
                    is_blocked = true;
                }
            }
        }
        let merge = Merge::of_ranges(&mut reader, &logs, ranges)?;
        let (store, at, done, shared_payload) = (Arc::downgrade(store), None, false, None);
        Ok(FeedScan { store, logs, before, until, merge, at, is_blocked, done, shared_payload })
    }

    /// The next messages, at most `most`, and no further one after `most_bytes`. May be empty although there are more:
    /// see [`FeedScan::is_done`].
    pub fn next_chunk(&mut self, most: usize, most_bytes: usize) -> Result<Vec<FeedItem>, StoreError> {
        let began = Instant::now();
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        let mut readers = Readers::new(&store)?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        for _ in 0..CHUNK_ROWS {
            if found.len() >= most || bytes >= most_bytes.min(CHUNK_BYTES) || began.elapsed() >= CHUNK_TIME {
                break;
            }
            let (entry, has_copy) = match self.merge.next(&mut readers) {
                Ok(Some(next)) => next,
                Ok(None) => {
                    self.done = true;
                    break;
                }
                // If the log was cut meanwhile, its entries moved to a branch, which the next scan reads.
                Err(StoreError::Damaged { origin, seq } | StoreError::CutOff { origin, seq }) => {
                    self.block_log(origin, seq);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if entry.needs_newer_program() {
                self.block_log(entry.origin(), entry.seq());
                continue;
            }
            bytes += entry.size();
            found.extend(self.deliver(&mut readers.index, entry, has_copy)?);
        }
        Ok(found)
    }

    /// Ends the scan of a log before an entry that cannot be returned.
    fn block_log(&mut self, origin: Origin, seq: u64) {
        self.merge.drop_log(origin);
        (self.is_blocked, self.shared_payload) = (true, None);
        if !Fault::PastGap.is_planted() {
            self.until.lower(origin, (seq - 1).max(self.before.full.seq(origin)));
        }
    }

    /// Scans an entry. Returns it if the reader has not seen its message.
    fn deliver(
        &mut self,
        index: &mut IndexReader<'_>,
        entry: Entry,
        has_copy: bool,
    ) -> Result<Option<FeedItem>, StoreError> {
        let before_it = self.at.replace(entry.key());
        if entry.message().is_none() {
            return Ok(None);
        }
        let mut first = entry.key();
        if has_copy && self.is_known_copy(index, &entry, before_it, &mut first)? {
            return Ok(None);
        }
        Ok(Some(FeedItem { entry, first }))
    }

    /// Whether the reader has another copy of this message. `scanned`: the last entry of this scan before it.
    fn is_known_copy(
        &self,
        index: &mut IndexReader<'_>,
        entry: &Entry,
        scanned: Option<EntryKey>,
        first: &mut EntryKey,
    ) -> Result<bool, StoreError> {
        let Some(content) = entry.message() else { return Ok(false) };
        let is_scanned =
            |key: EntryKey| scanned.is_some_and(|at| key <= at) && key.seq <= self.until.seq(key.origin);
        let (mut looked_at, mut is_passed, mut is_in_scan) = (0, false, false);
        let is_last = |key: EntryKey| {
            *first = key.min(*first);
            if key == entry.key() {
                return false;
            }
            looked_at += 1;
            is_passed |= self.before.covers(key);
            is_in_scan |= is_scanned(key);
            if entry.log_type().is_branch {
                is_passed || looked_at == COPIES_MAX
            } else {
                is_passed || is_in_scan
            }
        };
        let ended_by = index.find_copy(content.id, entry.digest(), &self.logs, is_last)?;
        Ok(if entry.log_type().is_branch {
            // A copy that an earlier scan passed may have been skipped, because of an entry in a version of the cut
            // log that another node had, and so may each copy of this scan.
            is_in_scan && ended_by.is_none()
        } else {
            ended_by.is_some()
        })
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether a log is blocked by an entry that cannot be returned now.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    pub fn at(&self) -> Option<EntryKey> {
        self.at
    }

    /// The reader's state after it received everything up to this key.
    pub fn state_at(&self, at: EntryKey) -> ReadState {
        let mut seen = self.before_at(at);
        seen.scans.push(PartialScan { until: self.until.clone(), at });
        seen
    }

    /// What the reader saw before, without the scans that this one has passed: it covers what they cover.
    fn before_at(&self, at: EntryKey) -> ReadState {
        let mut seen = self.before.clone();
        seen.scans.retain(|scan| scan.at > at || !scan.until.beyond(&self.until).is_empty());
        seen
    }

    /// The payload of a cursor for [`FeedScan::state_at`], if it is short enough.
    pub fn core_at(&mut self, at: EntryKey) -> Option<Vec<u8>> {
        let later = self.before.scans.iter().filter(|scan| scan.at > at).count();
        if self.shared_payload.as_ref().is_none_or(|(of, _)| *of != later) {
            self.shared_payload = Some((later, cursor::scan_payload(&self.before_at(at), &self.until)));
        }
        let (_, shared_payload) = self.shared_payload.as_ref()?;
        Some(cursor::payload_at(shared_payload.as_ref()?, at))
    }

    /// The reader's state at the end of the scan.
    pub fn state_at_end(&self) -> ReadState {
        let last = self.before.last.max(last_stamp(&self.logs));
        ReadState { full: self.until.clone(), last, scans: self.before.beyond(&self.until) }
    }
}

/// The largest stamp in these logs.
pub fn last_stamp(logs: &Logs) -> Stamp {
    logs.ranges().map(|(_, range)| range.last).max().unwrap_or_default()
}

/// The beginning of a log that a reader has seen.
enum Covered {
    UpTo(u64),
    /// Whether it saw more is unknown until the next entry is repaired.
    UpToDamage(u64),
}

/// How much of a log's first `last` entries the reader saw. What a scan covers is a beginning too, because stamps
/// increase.
fn covered(
    seen: &ReadState,
    logs: &Logs,
    reader: &mut LogReader,
    origin: Origin,
    last: u64,
) -> Result<Covered, StoreError> {
    // What is before the floor is gone; no reader waits for it.
    let mut covered = logs.vector().floor(origin).min(last);
    let Some((first, head)) = logs.ends(origin) else { return Ok(Covered::UpTo(last)) };
    let scans = seen.scans.iter().map(|PartialScan { until, at }| (until, *at));
    for (until, at) in iter::once((&seen.full, seen.end())).chain(scans) {
        let until = until.seq(origin).min(last);
        if until <= covered || at < first {
            continue;
        }
        match if head <= at { Covered::UpTo(until) } else { scanned(reader, first, until, at)? } {
            Covered::UpTo(seq) => covered = covered.max(seq),
            Covered::UpToDamage(seq) => return Ok(Covered::UpToDamage(covered.max(seq))),
        }
    }
    Ok(Covered::UpTo(covered))
}

/// The last of a log's entries, from `first` on up to `until`, that is not after this key.
fn scanned(reader: &mut LogReader, first: EntryKey, until: u64, at: EntryKey) -> Result<Covered, StoreError> {
    let mut search = until;
    loop {
        match reader.first_after(first.origin, first.seq, search, at) {
            Ok(after) if after <= search || search == until => return Ok(Covered::UpTo(after - 1)),
            Ok(_) => return Ok(Covered::UpToDamage(search)),
            Err(StoreError::Damaged { seq, .. } | StoreError::CutOff { seq, .. }) => search = seq - 1,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
