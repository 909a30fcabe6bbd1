//! Owns the merge of all logs into display order, forward or backward, from any key.
//!
//! Between `listing` or `feed_scan` and the log reader. The stamps of a log increase, so every log is in display order
//! and no index by time is needed. Must not know filters or cursors.
//!
//! Invariant: a log that the merge has not reached costs one key in a sorted set. Its first (backward: last) key is
//! known from memory, unless the listing starts inside that log. So thousands of old logs are not opened to show the
//! newest fifty messages.

use std::collections::{BTreeSet, VecDeque};

use crate::chain::clock::Stamp;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::store::history::Readers;
use crate::store::log::{LogReader, ReadLimit};
use crate::store::{Store, StoreError};

/// Entries buffered by one merge, shared by all logs it has reached: with more logs, each buffers fewer.
const BUFFER_ROWS: usize = 4_096;
/// Bytes buffered for one log; a larger read is cut there.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes buffered for all logs together by a feed scan.
const SMALL_BUFFER_BYTES: usize = 128 << 10;

/// One log being merged.
#[derive(Debug)]
struct MergeInput {
    origin: Origin,
    /// Seqs to be read from the store.
    first: u64,
    last: u64,
    /// Entries read ahead, in the direction of the merge, each with whether it has another copy.
    rows: VecDeque<(Entry, bool)>,
}

#[derive(Debug, Default)]
pub(in crate::store) struct Merge {
    backward: bool,
    inputs: Vec<MergeInput>,
    /// The next key of every input that is not at its end. After damage, a lower bound of it.
    next: BTreeSet<(EntryKey, usize)>,
    /// Inputs that have rows.
    buffered: usize,
    /// For a feed scan, of which thousands may run at a time.
    is_for_feed: bool,
}

impl Merge {
    /// A merge of everything in `logs` after (backward: before) `from`.
    pub(in crate::store) fn new(
        store: &Store,
        logs: &Logs,
        from: Option<EntryKey>,
        backward: bool,
    ) -> Result<Self, StoreError> {
        let mut reader = store.log().read()?;
        let mut ranges = Vec::new();
        for (first, last) in logs.readable() {
            let EntryKey { origin, seq: head, .. } = last;
            let is_outside = |from| if backward { from <= first } else { from >= last };
            let (first, last) = match from {
                Some(from) if is_outside(from) => continue,
                Some(from) if !backward && from >= first => {
                    (reader.first_after(origin, first.seq, head, from)?, head)
                }
                Some(from) if backward && from <= last => {
                    let before = EntryKey { seq: from.seq.saturating_sub(1), ..from };
                    (first.seq, reader.first_after(origin, first.seq, head, before)? - 1)
                }
                _ => (first.seq, head),
            };
            ranges.push((origin, first, last));
        }
        Merge { backward, ..Merge::default() }.with_ranges(&mut reader, logs, ranges)
    }

    /// A forward merge of these ranges, each `(origin, first, last)`, with small buffers.
    pub(in crate::store) fn of_ranges(
        reader: &mut LogReader,
        logs: &Logs,
        ranges: Vec<(Origin, u64, u64)>,
    ) -> Result<Self, StoreError> {
        Merge { is_for_feed: true, ..Merge::default() }.with_ranges(reader, logs, ranges)
    }

    fn with_ranges(
        mut self,
        reader: &mut LogReader,
        logs: &Logs,
        ranges: Vec<(Origin, u64, u64)>,
    ) -> Result<Self, StoreError> {
        let mut next = Vec::new();
        for (origin, first, last) in ranges {
            let Some((lowest, highest)) = logs.ends(origin) else { continue };
            let seq = if self.backward { last } else { first };
            let stamp = match seq {
                seq if seq == lowest.seq => lowest.stamp,
                seq if seq == highest.seq => highest.stamp,
                // A damaged entry gets a bound of its stamp, and is met when the merge reaches that.
                seq => {
                    let bound = if self.backward { highest.stamp } else { lowest.stamp };
                    reader.peek(origin, seq)?.map_or(bound, |entry| entry.stamp())
                }
            };
            next.push((EntryKey { stamp, origin, seq }, self.inputs.len()));
            self.inputs.push(MergeInput { origin, first, last, rows: VecDeque::new() });
        }
        self.next = next.into_iter().collect(); // collected at once, which packs the set
        Ok(self)
    }

    /// Skips a damaged entry, which the last read has met.
    pub(in crate::store) fn skip(&mut self, origin: Origin, seq: u64) {
        let Some(index) = self.inputs.iter().position(|input| input.origin == origin) else { return };
        let Some(at) = self.next.iter().find(|(_, of)| *of == index).copied() else { return };
        self.next.remove(&at);
        let input = &mut self.inputs[index];
        let next = if self.backward {
            input.last = seq - 1;
            input.last
        } else {
            input.first = seq + 1;
            input.first
        };
        if (input.first..=input.last).contains(&next) {
            self.next.insert((EntryKey { seq: next, ..at.0 }, index));
        }
    }

    /// Skips the rest of a log.
    pub(in crate::store) fn drop_log(&mut self, origin: Origin) {
        let Some(index) = self.inputs.iter().position(|input| input.origin == origin) else { return };
        self.next.retain(|(_, of)| *of != index);
        if !self.inputs[index].rows.is_empty() {
            self.inputs[index].rows.clear();
            self.buffered -= 1;
        }
    }

    /// The next entry, and whether it has another copy.
    pub(super) fn next(&mut self, readers: &mut Readers<'_>) -> Result<Option<(Entry, bool)>, StoreError> {
        loop {
            let first = if self.backward { self.next.pop_last() } else { self.next.pop_first() };
            let Some((key, index)) = first else { return Ok(None) };
            match self.take(key, index, readers) {
                Ok(None) => {} // its key was a lower bound
                Ok(row) => return Ok(row),
                Err(error) => {
                    self.next.insert((key, index)); // a retry finds it again
                    return Err(error);
                }
            }
        }
    }

    /// The next row of an input, whose key is `key` or after it. `None`: after it, and `next` has the input's key now.
    fn take(
        &mut self,
        key: EntryKey,
        index: usize,
        readers: &mut Readers<'_>,
    ) -> Result<Option<(Entry, bool)>, StoreError> {
        if self.inputs[index].rows.is_empty() {
            self.fill(index, readers)?;
        }
        match self.front(index) {
            Some(front) if front == key => {}
            Some(front) if front.seq == key.seq => {
                self.next.insert((front, index));
                return Ok(None);
            }
            _ => return Err(StoreError::Damaged { origin: key.origin, seq: key.seq }),
        }
        let row = self.inputs[index].rows.pop_front();
        let mut next = self.front(index);
        if next.is_none() {
            self.buffered -= 1;
            next = match self.fill(index, readers) {
                Ok(()) => self.front(index),
                // The damaged entry is met later: its key is not before the next possible stamp.
                Err(StoreError::Damaged { .. } | StoreError::CutOff { .. }) => Some(self.after(key)),
                Err(error) => return Err(error),
            };
        }
        self.next.extend(next.map(|next| (next, index)));
        Ok(row)
    }

    fn front(&self, index: usize) -> Option<EntryKey> {
        self.inputs[index].rows.front().map(|(entry, _)| entry.key())
    }

    /// The smallest (backward: largest) key that the next entry of a log can have.
    fn after(&self, EntryKey { stamp, origin, seq }: EntryKey) -> EntryKey {
        if self.backward {
            EntryKey { stamp: Stamp(stamp.0.saturating_sub(1)), origin, seq: seq - 1 }
        } else {
            EntryKey { stamp: Stamp(stamp.0.saturating_add(1)), origin, seq: seq + 1 }
        }
    }

    /// Reads the next rows of an input that has none; none are left at its end.
    fn fill(&mut self, index: usize, readers: &mut Readers<'_>) -> Result<(), StoreError> {
        let share = self.buffered + 1;
        let bytes = if self.is_for_feed { SMALL_BUFFER_BYTES / share } else { BUFFER_BYTES };
        let limit = ReadLimit { rows: (BUFFER_ROWS / share).max(2), bytes };
        let input = &mut self.inputs[index];
        let entries = readers.log.range(input.origin, input.first..=input.last, self.backward, limit)?;
        let (Some(one), Some(other)) = (entries.first(), entries.last()) else { return Ok(()) };
        let (low, high) = (one.seq().min(other.seq()), one.seq().max(other.seq()));
        if self.backward {
            input.last = low - 1;
        } else {
            input.first = high + 1;
        }
        let copies = readers.index.copied_seqs(input.origin, low, high)?;
        input.rows.extend(entries.into_iter().map(|entry| {
            let has_copy = copies.binary_search(&entry.seq()).is_ok();
            (entry, has_copy)
        }));
        self.buffered += 1;
        Ok(())
    }
}
