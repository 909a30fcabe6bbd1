//! Owns what a reader of the feed has not seen yet: a walk through it in display order, up to what a store holds.
//!
//! Whatever the reader saw elsewhere counts: of each log a beginning is covered, and the walk takes the rest. A second copy
//! of a message is passed over where another one is covered or was walked past. An entry that is damaged, or that only a
//! newer program understands, holds its log: the walk goes on with the others and its end is before that entry,
//! so no reader is ever led past it. Read in chunks, as a [listing](super::listing) is.

use std::iter;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::chain::clock::Stamp;
use crate::chain::cursor;
use crate::chain::cursor::{PartialScan, ReadState};
use crate::chain::frontier::Frontier;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::fault::Fault;
use crate::store::history::merge::Merge;
use crate::store::log::LogReader;
use crate::store::{Store, StoreError};

/// Entries looked at in one chunk; then the transaction ends.
const CHUNK_ROWS: usize = 1_000;
/// Bytes of records in one chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// How long one chunk may pin pages.
const CHUNK_TIME: Duration = Duration::from_millis(20);

/// A message for the reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedItem {
    /// The entry that brings it.
    pub entry: Entry,
    /// Where its earliest copy stands here.
    pub first: EntryKey,
}

/// See the head of this file.
#[derive(Debug)]
pub struct FeedScan {
    /// Not held between chunks: a slow reader must not keep a store open that is to be closed.
    store: Weak<Store>,
    logs: Arc<Logs>,
    before: ReadState,
    until: Frontier,
    merge: Merge,
    at: Option<EntryKey>,
    is_blocked: bool,
    done: bool,
    /// The core that this walk's cursors share, and with how many earlier walks.
    core: Option<(usize, Option<Vec<u8>>)>,
}

impl FeedScan {
    /// What is in `logs` and was not seen before. `until`: how far `logs` are, or less.
    pub fn new(
        store: &Arc<Store>,
        logs: Arc<Logs>,
        before: ReadState,
        until: Frontier,
    ) -> Result<Self, StoreError> {
        let mut until = until;
        let (mut holds, mut parts) = (false, Vec::new());
        let mut reader = store.log().read()?;
        for (origin, last) in until.beyond(&before.full) {
            // It may have been cut shorter since.
            let last = last.min(logs.vector().seq(origin));
            match covered(&before, &logs, &mut reader, origin, last)? {
                Covered::UpTo(covered) if covered < last => parts.push((origin, covered + 1, last)),
                Covered::UpTo(_) => {}
                Covered::UpToDamage(covered) => {
                    until.lower(origin, covered.max(before.full.seq(origin)));
                    holds = true;
                }
            }
        }
        let merge = Merge::of_ranges(store, &logs, parts)?;
        let store = Arc::downgrade(store);
        Ok(FeedScan {
            store,
            logs,
            before,
            until,
            merge,
            at: None,
            is_blocked: holds,
            done: false,
            core: None,
        })
    }

    /// The next messages, at most `most` and no further one once there are so many bytes; maybe none although there are
    /// more. See [`Follow::is_done`].
    pub fn next_chunk(&mut self, most: usize, most_bytes: usize) -> Result<Vec<FeedItem>, StoreError> {
        let began = Instant::now();
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        let mut reader = store.log().read()?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        for _ in 0..CHUNK_ROWS {
            if found.len() >= most || bytes >= most_bytes.min(CHUNK_BYTES) || began.elapsed() >= CHUNK_TIME {
                break;
            }
            let (entry, has_copy) = match self.merge.next(&store, &mut reader) {
                Ok(Some(next)) => next,
                Ok(None) => {
                    self.done = true;
                    break;
                }
                // Damaged, or cut off meanwhile: what was moved stands in a branch, which the next walk knows.
                Err(StoreError::Damaged { origin, seq } | StoreError::CutOff { origin, seq }) => {
                    self.block_log(origin, seq);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if entry.is_unreadable() {
                self.block_log(entry.origin(), entry.seq());
                continue;
            }
            bytes += entry.size();
            found.extend(self.deliver(&store, entry, has_copy)?);
        }
        Ok(found)
    }

    /// Ends this log's part of the walk before an entry that cannot be given.
    fn block_log(&mut self, origin: Origin, seq: u64) {
        self.merge.drop_log(origin);
        (self.is_blocked, self.core) = (true, None);
        if !Fault::PastGap.is_planted() {
            self.until.lower(origin, (seq - 1).max(self.before.full.seq(origin)));
        }
    }

    /// Walks past an entry. Gives it if the reader has not had its message.
    fn deliver(
        &mut self,
        store: &Store,
        entry: Entry,
        has_copy: bool,
    ) -> Result<Option<FeedItem>, StoreError> {
        let before_it = self.at.replace(entry.key());
        let Some(content) = entry.message() else { return Ok(None) };
        let mut first = entry.key();
        if has_copy {
            let walked = |place: EntryKey| {
                before_it.is_some_and(|at| place <= at) && place.seq <= self.until.seq(place.origin)
            };
            let copies = store.stored_copies(content.id, &self.logs)?.into_iter();
            for copy in copies.filter(|copy| copy.digest == entry.digest() && copy.key != entry.key()) {
                if self.before.covers(copy.key) || walked(copy.key) {
                    return Ok(None);
                }
                first = first.min(copy.key);
            }
        }
        Ok(Some(FeedItem { entry, first }))
    }

    /// Everything that can be given was.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Some log waits for an entry that cannot be given now.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// The place of the last entry walked past.
    pub fn at(&self) -> Option<EntryKey> {
        self.at
    }

    /// What the reader has seen once it was given everything up to this place.
    pub fn state_at(&self, at: EntryKey) -> ReadState {
        let mut seen = self.before_at(at);
        seen.scans.push(PartialScan { until: self.until.clone(), at });
        seen
    }

    /// What the reader saw before, without the walks that this one has come past: they need not be remembered twice.
    fn before_at(&self, at: EntryKey) -> ReadState {
        let mut seen = self.before.clone();
        seen.scans.retain(|walk| walk.at > at || !walk.until.beyond(&self.until).is_empty());
        seen
    }

    /// The core of a cursor that says [`Follow::seen_at`], where it is short enough.
    pub fn core_at(&mut self, at: EntryKey) -> Option<Vec<u8>> {
        let later = self.before.scans.iter().filter(|walk| walk.at > at).count();
        if self.core.as_ref().is_none_or(|(of, _)| *of != later) {
            self.core = Some((later, cursor::scan_payload(&self.before_at(at), &self.until)));
        }
        let (_, core) = self.core.as_ref()?;
        Some(cursor::payload_at(core.as_ref()?, at))
    }

    /// What it has seen at the end of the walk.
    pub fn state_at_end(&self) -> ReadState {
        let walks = self.before.beyond(&self.until);
        ReadState {
            full: self.until.clone(),
            last: self.before.last.max(last_stamp(&self.logs)),
            scans: walks,
        }
    }
}

/// The largest stamp in these logs.
pub fn last_stamp(logs: &Logs) -> Stamp {
    logs.ranges().map(|(_, range)| range.last).max().unwrap_or_default()
}

/// How much of a log a reader has seen.
enum Covered {
    UpTo(u64),
    /// And whether it saw more cannot be told before the next entry is mended.
    UpToDamage(u64),
}

/// How much of a log's first `last` entries was seen: of each walk that is a beginning, too, for stamps increase.
fn covered(
    seen: &ReadState,
    logs: &Logs,
    reader: &mut LogReader,
    origin: Origin,
    last: u64,
) -> Result<Covered, StoreError> {
    let mut covered = 0;
    let walks = seen.scans.iter().map(|PartialScan { until, at }| (until, *at));
    for (until, at) in iter::once((&seen.full, seen.end())).chain(walks) {
        let until = until.seq(origin).min(last);
        if until <= covered {
            continue;
        }
        let Some(range) = logs.stamps(origin) else { continue };
        let head = logs.vector().seq(origin);
        let is_before = EntryKey { stamp: range.first, origin, seq: 1 } <= at;
        if is_before {
            let all = EntryKey { stamp: range.last, origin, seq: head } <= at;
            match if all { Covered::UpTo(until) } else { scanned(reader, origin, until, at)? } {
                Covered::UpTo(seq) => covered = covered.max(seq),
                Covered::UpToDamage(seq) => return Ok(Covered::UpToDamage(covered.max(seq))),
            }
        }
    }
    Ok(Covered::UpTo(covered))
}

/// How many of a log's first `until` entries stand before this place.
fn scanned(reader: &mut LogReader, origin: Origin, until: u64, at: EntryKey) -> Result<Covered, StoreError> {
    let mut search = until;
    loop {
        match reader.first_after(origin, search, at) {
            Ok(after) if after <= search || search == until => return Ok(Covered::UpTo(after - 1)),
            Ok(_) => return Ok(Covered::UpToDamage(search)),
            Err(StoreError::Damaged { seq, .. } | StoreError::CutOff { seq, .. }) => search = seq - 1,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
