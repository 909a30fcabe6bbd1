//! Owns the search for records in the raw bytes of a file that may not be a database any more.
//!
//! redb keeps each record in one piece, and each record carries its own checksum. So a file is read from its beginning
//! to its end, and every intact record in it is found, whatever happened to the pages around it. One record may be
//! found several times, because redb leaves old copies of its pages. Must not know what becomes of the records.
//!
//! Invariant: the scan needs the same memory for every file. [`SeenEntries`], which counts distinct entries, grows with
//! their number.

use std::collections::BTreeMap;
use std::io::{self, Read};

use twox_hash::XxHash3_64;

use crate::chain::ids::Origin;
use crate::chain::record::{Entry, FORMAT, MAGIC, RECORD_BYTES_MAX};

/// Bytes searched at a time. A record that may go beyond their end is searched again with the bytes that follow.
const WINDOW_BYTES: usize = 1 << 20;

/// A search through bytes, from their beginning to their end.
pub(in crate::store) struct RecordScan<R> {
    source: R,
    window: Vec<u8>,
    /// The next byte to search, and the end of the bytes read.
    at: usize,
    filled: usize,
    has_ended: bool,
}

impl<R: Read> RecordScan<R> {
    pub(in crate::store) fn new(source: R) -> Self {
        RecordScan { source, window: vec![0; WINDOW_BYTES], at: 0, filled: 0, has_ended: false }
    }

    /// The next entry whose record passes its check and whose content matches its digest; `None` at the end.
    pub(in crate::store) fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            let rest = &self.window[self.at..self.filled];
            self.at += rest.iter().position(|byte| *byte == MAGIC[0]).unwrap_or(rest.len());
            let rest = &self.window[self.at..self.filled];
            if rest.len() < RECORD_BYTES_MAX && !self.has_ended {
                self.fill()?;
                continue;
            }
            if rest.is_empty() {
                return Ok(None);
            }
            match Entry::check(rest) {
                // The search continues after the record: a sender may have written what looks like a record inside.
                // No log reaches the largest seq, so a record that claims it is not ours.
                Ok(entry) if (1..u64::MAX).contains(&entry.seq()) && entry.content_matches_digest() => {
                    self.at += entry.size();
                    return Ok(Some(entry));
                }
                _ => self.at += 1,
            }
        }
    }

    /// Moves the rest to the front of the window and fills the window.
    fn fill(&mut self) -> io::Result<()> {
        self.window.copy_within(self.at..self.filled, 0);
        (self.at, self.filled) = (0, self.filled - self.at);
        while self.filled < self.window.len() && !self.has_ended {
            match self.source.read(&mut self.window[self.filled..]) {
                Ok(count) => (self.filled, self.has_ended) = (self.filled + count, count == 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What is searched.
    pub(in crate::store) fn source(&self) -> &R {
        &self.source
    }
}

/// The format of the first record in these bytes: ours, or 1, whose records lack the type of the log.
pub(in crate::store) fn first_format(mut source: impl Read) -> io::Result<Option<u32>> {
    let mut window = Vec::new();
    loop {
        let count = source.by_ref().take(WINDOW_BYTES as u64).read_to_end(&mut window)?;
        for at in (0..window.len()).filter(|at| window[*at..].starts_with(&MAGIC)) {
            if Entry::check(&window[at..]).is_ok() {
                return Ok(Some(FORMAT.into()));
            }
            if is_format_1(&window[at..]) {
                return Ok(Some(1));
            }
        }
        if count == 0 {
            return Ok(None);
        }
        // A record may go beyond the window.
        window.drain(..window.len().saturating_sub(RECORD_BYTES_MAX));
    }
}

/// Whether these bytes begin with a record of format 1: 80 bytes of header with the content's length at 12, the
/// content, and XXH3-64 over all before it.
fn is_format_1(bytes: &[u8]) -> bool {
    let Some(length) = bytes.get(12..16).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes)
    else {
        return false;
    };
    let checked = bytes.get(..80 + length as usize + 8).and_then(|record| record.split_last_chunk());
    bytes[8] == 1
        && checked.is_some_and(|(covered, check)| XxHash3_64::oneshot(covered).to_be_bytes() == *check)
}

/// The entries seen so far: one bit each, where seqs are close together.
#[derive(Debug, Default)]
pub(in crate::store) struct SeenEntries(BTreeMap<(Origin, u64), u64>);

impl SeenEntries {
    /// Adds an entry; `false` if it was seen before.
    pub(in crate::store) fn insert(&mut self, origin: Origin, seq: u64) -> bool {
        let (bits, bit) = (self.0.entry((origin, seq / 64)).or_default(), 1 << (seq % 64));
        let is_new = *bits & bit == 0;
        *bits |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::clock::Stamp;
    use crate::chain::ids::EntryKey;
    use crate::chain::kind::EntryKind;
    use crate::chain::message::Digest;

    fn record(seq: u64, content: &[u8]) -> Vec<u8> {
        let (origin, stamp, digest) = (Origin([7; 16]), Stamp(seq), Digest::of(EntryKind::Message, content));
        Entry::new(EntryKey { stamp, origin, seq }, EntryKind::Message, digest, content).bytes().to_vec()
    }

    /// Returns its bytes in pieces of an odd size, as a pipe does.
    struct OddPieces<'a>(&'a [u8]);

    impl Read for OddPieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let most = out.len().min(77_777);
            self.0.read(&mut out[..most])
        }
    }

    fn seqs(bytes: &[u8]) -> Vec<u64> {
        let mut seqs = Vec::new();
        let mut scan = RecordScan::new(OddPieces(bytes));
        while let Some(entry) = scan.next_entry().expect("reads") {
            seqs.push(entry.seq());
        }
        seqs
    }

    #[test]
    fn every_record_is_found_wherever_a_window_ends() {
        let mut bytes = Vec::new();
        for seq in 1..=200 {
            bytes.extend_from_slice(&MAGIC[..usize::try_from(seq % 9).expect("small")]);
            bytes.extend(record(seq, &vec![b'x'; usize::try_from(seq * 321).expect("small")]));
        }
        assert!(bytes.len() > 5 * WINDOW_BYTES);
        assert_eq!(seqs(&bytes), (1..=200).collect::<Vec<_>>());
    }

    #[test]
    fn what_does_not_check_is_not_found_and_hides_nothing() {
        let mut bytes = record(1, b"damaged");
        bytes[90] ^= 1;
        bytes.extend(record(2, b"good"));
        let third = record(3, b"x");
        let third = Entry::check(&third).expect("parses");
        let other = Entry::new(third.key(), third.kind(), Digest([0; 32]), third.content());
        bytes.extend(other.bytes()); // its check holds, its digest does not
        bytes.extend(record(0, b"no seq"));
        bytes.extend_from_slice(&record(4, b"cut off")[..80]);
        assert_eq!(seqs(&bytes), [2]);
        assert!(seqs(&bytes[..80]).is_empty());
    }

    /// Otherwise a sender could put entries into the logs of other nodes through a salvage.
    #[test]
    fn nothing_is_found_inside_of_a_record() {
        assert_eq!(seqs(&record(1, &record(2, b"inner"))), [1]);
    }

    #[test]
    fn an_entry_is_new_once() {
        let mut seen = SeenEntries::default();
        let keys = [(1, 5), (1, 6), (2, 5), (1, 5), (1, u64::MAX), (1, u64::MAX)];
        let new = keys.map(|(name, seq)| seen.insert(Origin([name; 16]), seq));
        assert_eq!(new, [true, true, true, false, true, false]);
    }
}
