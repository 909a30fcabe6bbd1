//! Owns the merge of all logs into display order, forward or backward, from any key.
//!
//! Between `listing` or `feed_scan` and the log reader. The stamps of a log increase, so every log is in display order and no
//! index by time is needed. Must not know filters or cursors.
//!
//! Invariant: a log that the merge has not reached costs one key in a sorted set. Its first (backward: last) key is known from
//! memory, so thousands of old logs are not opened to show the newest fifty messages.

use std::collections::{BTreeSet, VecDeque};

use crate::chain::clock::Stamp;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::store::log::{LogReader, ReadLimit};
use crate::store::{Store, StoreError};

/// Entries buffered by one merge, shared by all logs it has reached: with more logs, each buffers fewer.
const BUFFER_ROWS: usize = 4_096;
/// Bytes buffered for one log; a larger read is cut there.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes buffered for all logs together by a feed scan, of which thousands may run at a time.
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

#[derive(Debug)]
pub(in crate::store) struct Merge {
    backward: bool,
    inputs: Vec<MergeInput>,
    /// The next key of every input that is not at its end. After damage, a lower bound of it.
    next: BTreeSet<(EntryKey, usize)>,
    /// Inputs that have rows.
    buffered: usize,
    is_small: bool,
}

impl Merge {
    /// A merge of everything in `logs` after (backward: before) `from`.
    pub(in crate::store) fn new(
        store: &Store,
        logs: &Logs,
        from: Option<EntryKey>,
        backward: bool,
    ) -> Result<Self, StoreError> {
        let (mut runs, mut next) = (Vec::new(), Vec::new());
        let mut reader = store.log().read()?;
        for (origin, range) in logs.ranges() {
            let head = logs.vector().seq(origin);
            let first_place = EntryKey { stamp: range.first, origin, seq: 1 };
            let last_place = EntryKey { stamp: range.last, origin, seq: head };
            let (first, last) = match from {
                None => (1, head),
                Some(from) if backward && last_place < from => (1, head),
                Some(from) if backward && first_place >= from => continue,
                Some(from) if !backward && first_place > from => (1, head),
                Some(from) if !backward && last_place <= from => continue,
                Some(from) => {
                    let after = reader.first_after(origin, head, from)?;
                    if backward { (1, before(&mut reader, origin, after, from)?) } else { (after, head) }
                }
            };
            let key = match if backward { last } else { first } {
                1 => first_place,
                seq if seq == head => last_place,
                seq => reader.get(origin, seq)?.key(),
            };
            next.push((key, runs.len()));
            runs.push(MergeInput { origin, first, last, rows: VecDeque::new() });
        }
        // Collected at once, which packs the set.
        Ok(Merge { backward, inputs: runs, next: next.into_iter().collect(), buffered: 0, is_small: false })
    }

    /// A forward merge of these ranges, each `(origin, first, last)`, with small buffers.
    pub(in crate::store) fn of_ranges(
        store: &Store,
        logs: &Logs,
        parts: impl IntoIterator<Item = (Origin, u64, u64)>,
    ) -> Result<Self, StoreError> {
        let (mut runs, mut next) = (Vec::new(), Vec::new());
        let mut reader = store.log().read()?;
        for (origin, first, last) in parts {
            let stamp = match logs.stamps(origin) {
                Some(range) if first == 1 => range.first,
                Some(range) if first == logs.vector().seq(origin) => range.last,
                // A damaged entry gets a lower bound of its stamp, and is met when the merge reaches that.
                Some(range) => reader.peek(origin, first)?.map_or(range.first, |entry| entry.stamp()),
                None => continue,
            };
            next.push((EntryKey { stamp, origin, seq: first }, runs.len()));
            runs.push(MergeInput { origin, first, last, rows: VecDeque::new() });
        }
        Ok(Merge {
            backward: false,
            inputs: runs,
            next: next.into_iter().collect(),
            buffered: 0,
            is_small: true,
        })
    }

    /// Skips the rest of a log.
    pub(in crate::store) fn drop_log(&mut self, origin: Origin) {
        let Some(index) = self.inputs.iter().position(|run| run.origin == origin) else { return };
        self.next.retain(|(_, of)| *of != index);
        if !self.inputs[index].rows.is_empty() {
            self.inputs[index].rows.clear();
            self.buffered -= 1;
        }
    }

    /// The next entry, and whether it has another copy.
    pub(in crate::store) fn next(
        &mut self,
        store: &Store,
        reader: &mut LogReader,
    ) -> Result<Option<(Entry, bool)>, StoreError> {
        loop {
            let first = if self.backward { self.next.pop_last() } else { self.next.pop_first() };
            let Some((key, index)) = first else { return Ok(None) };
            match self.take(key, index, store, reader) {
                Ok(None) => {} // its key was a lower bound
                Ok(row) => return Ok(row),
                Err(error) => {
                    self.next.insert((key, index)); // a retry finds it again
                    return Err(error);
                }
            }
        }
    }

    /// The next row of an input, whose key is `place` or later. `None`: it is later, and is in `next` under its key now.
    fn take(
        &mut self,
        key: EntryKey,
        index: usize,
        store: &Store,
        reader: &mut LogReader,
    ) -> Result<Option<(Entry, bool)>, StoreError> {
        if self.inputs[index].rows.is_empty() {
            self.buffered += 1;
            let filled = self.fill(index, store, reader);
            if filled.is_err() {
                self.buffered -= 1;
            }
            filled?;
        }
        match self.inputs[index].rows.front().map(|(entry, _)| entry.key()) {
            Some(front) if front == key => {}
            Some(front) if front.seq == key.seq => {
                self.next.insert((front, index));
                return Ok(None);
            }
            _ => return Err(damaged(key)),
        }
        let row = self.inputs[index].rows.pop_front();
        let run = &self.inputs[index];
        let is_read = run.rows.is_empty() && run.first <= run.last;
        let next = match if is_read { self.fill(index, store, reader) } else { Ok(()) } {
            Ok(()) => self.inputs[index].rows.front().map(|(next, _)| next.key()),
            // The damaged entry is met later: its key is not before the next possible stamp.
            Err(StoreError::Damaged { .. } | StoreError::CutOff { .. }) => Some(self.after(key)),
            Err(error) => return Err(error),
        };
        if self.inputs[index].rows.is_empty() {
            self.buffered -= 1;
        }
        self.next.extend(next.map(|next| (next, index)));
        Ok(row)
    }

    /// The smallest (backward: largest) key that the next entry of a log can have.
    fn after(&self, EntryKey { stamp, origin, seq }: EntryKey) -> EntryKey {
        if self.backward {
            EntryKey { stamp: Stamp(stamp.0.saturating_sub(1)), origin, seq: seq - 1 }
        } else {
            EntryKey { stamp: Stamp(stamp.0.saturating_add(1)), origin, seq: seq + 1 }
        }
    }

    fn fill(&mut self, index: usize, store: &Store, reader: &mut LogReader) -> Result<(), StoreError> {
        let rows = (BUFFER_ROWS / self.buffered.max(1)).max(2);
        let bytes = if self.is_small { SMALL_BUFFER_BYTES / self.buffered.max(1) } else { BUFFER_BYTES };
        let most = ReadLimit { rows, bytes };
        let run = &mut self.inputs[index];
        let entries = if self.backward {
            let entries = reader.backward(run.origin, run.first, run.last, most)?;
            run.last -= entries.len() as u64;
            entries
        } else {
            let entries = reader.forward(run.origin, run.first, run.last, most)?;
            run.first += entries.len() as u64;
            entries
        };
        let (Some(one), Some(other)) = (entries.first(), entries.last()) else { return Ok(()) };
        let (low, high) = (one.seq().min(other.seq()), one.seq().max(other.seq()));
        let copies = store.index().reader().copied_seqs(run.origin, low, high)?;
        run.rows.extend(entries.into_iter().map(|entry| {
            let has_copy = copies.binary_search(&entry.seq()).is_ok();
            (entry, has_copy)
        }));
        Ok(())
    }
}

fn damaged(key: EntryKey) -> StoreError {
    StoreError::Damaged { origin: key.origin, seq: key.seq }
}

/// The last seq strictly before `from`, given the first one after it.
fn before(reader: &mut LogReader, origin: Origin, after: u64, from: EntryKey) -> Result<u64, StoreError> {
    let last = after - 1;
    if last >= 1 && reader.get(origin, last)?.key() == from { Ok(last - 1) } else { Ok(last) }
}
