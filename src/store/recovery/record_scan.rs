//! Owns the search for records in bytes that are no database any more.
//!
//! A record stands for itself, and redb keeps each in one piece, so a file can be read from its beginning to its end
//! and every record in it found, whatever became of the pages around it. The memory this takes does not depend on
//! the file. One record may be found often: redb leaves old copies of its pages behind.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::chain::ids::Origin;
use crate::chain::record::{Entry, MAGIC, RECORD_BYTES_MAX};

/// Bytes looked at together. A record at their end is looked at again, together with what follows it.
const WINDOW_BYTES: usize = 1 << 20;

/// Called with each entry that is found. An error ends the search.
type OnEntry<'a, E> = dyn FnMut(Entry) -> Result<(), E> + 'a;

/// Finds every entry whose record passes its check and whose content matches its digest, in the order of the file.
pub(in crate::store) fn scan<E: From<io::Error>>(
    source: &mut dyn Read,
    found: &mut OnEntry<'_, E>,
) -> Result<(), E> {
    let (mut window, mut filled, mut ended) = (vec![0; WINDOW_BYTES], 0, false);
    while !ended {
        while filled < window.len() && !ended {
            match source.read(&mut window[filled..]) {
                Ok(count) => (filled, ended) = (filled + count, count == 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let rest = scan_window(&window[..filled], ended, found)?;
        window.copy_within(rest..filled, 0);
        filled -= rest;
    }
    Ok(())
}

/// Finds what lies in the window as a whole, and says where that begins which needs another look.
fn scan_window<E>(window: &[u8], ended: bool, found: &mut OnEntry<'_, E>) -> Result<usize, E> {
    let mut at = 0;
    while let Some(skipped) = window[at..].iter().position(|byte| *byte == MAGIC[0]) {
        at += skipped;
        let rest = &window[at..];
        if rest.len() < RECORD_BYTES_MAX && !ended {
            return Ok(at);
        }
        match Entry::check(rest) {
            // Nothing is looked for inside of a record: a sender may have written what looks like another one.
            // At the largest number nothing can stand: what says so was never ours.
            Ok(entry) if is_seq(entry.seq()) && entry.content_matches_digest() => {
                at += entry.size();
                found(entry)?;
            }
            _ => at += 1,
        }
    }
    Ok(window.len())
}

fn is_seq(seq: u64) -> bool {
    (1..u64::MAX).contains(&seq)
}

/// Whether there is any record.
pub(in crate::store) fn has_record(source: &mut dyn Read) -> io::Result<bool> {
    /// Ends the search at the first one.
    struct End(Option<io::Error>);
    impl From<io::Error> for End {
        fn from(error: io::Error) -> Self {
            End(Some(error))
        }
    }
    match scan(source, &mut |_| Err(End(None))) {
        Ok(()) => Ok(false),
        Err(End(None)) => Ok(true),
        Err(End(Some(error))) => Err(error),
    }
}

/// Which places were seen, in a bit for each where seqs lie close together.
#[derive(Debug, Default)]
pub(in crate::store) struct SeenEntries(BTreeMap<(Origin, u64), u64>);

impl SeenEntries {
    /// Notes a place; `false` if it was seen before.
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
    use crate::chain::message::Digest;
    use crate::chain::record::EntryKind;

    fn record(seq: u64, content: &[u8]) -> Vec<u8> {
        let (origin, stamp, digest) = (Origin([7; 16]), Stamp(seq), Digest::of(content));
        Entry::new(EntryKey { stamp, origin, seq }, EntryKind::Message, digest, content).bytes().to_vec()
    }

    /// Gives its bytes in pieces of an odd size, as a pipe does.
    struct ScanWindow<'a>(&'a [u8]);

    impl Read for ScanWindow<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let most = out.len().min(77_777);
            self.0.read(&mut out[..most])
        }
    }

    fn seqs(bytes: &[u8]) -> Vec<u64> {
        let mut seqs = Vec::new();
        let found = &mut |entry: Entry| {
            seqs.push(entry.seq());
            Ok::<_, io::Error>(())
        };
        scan(&mut ScanWindow(bytes), found).expect("reads");
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
        assert!(has_record(&mut bytes.as_slice()).expect("reads"));
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
        assert!(!has_record(&mut &bytes[..80]).expect("reads"));
    }

    /// Otherwise a sender could put entries of anybody into a log that is salvaged.
    #[test]
    fn nothing_is_found_inside_of_a_record() {
        assert_eq!(seqs(&record(1, &record(2, b"inner"))), [1]);
    }

    #[test]
    fn a_place_is_new_once() {
        let mut seen = SeenEntries::default();
        let places = [(1, 5), (1, 6), (2, 5), (1, 5), (1, u64::MAX), (1, u64::MAX)];
        let new = places.map(|(name, seq)| seen.insert(Origin([name; 16]), seq));
        assert_eq!(new, [true, true, true, false, true, false]);
    }
}
