//! Damages the files of a stopped node, and finds the records that are still intact in the raw bytes.
//!
//! The search knows nothing of the database: it tries every offset that starts like a record, with the library's own
//! checksum, because an intact record must be recovered. It does not depend on what the program reads from the file.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use chatchain::chain::kind::EntryKind;
use chatchain::chain::message::Content;
use chatchain::chain::record::{Entry, MAGIC};

use super::judge::{Token, token};
use super::schedule::Damage;

const PAGE_BYTES: usize = 4096;

/// Damages a file. Damage outside the file is skipped.
pub fn damage_file(path: &Path, damage: &[Damage]) -> io::Result<()> {
    let mut bytes = fs::read(path)?;
    for one in damage {
        apply(&mut bytes, *one);
    }
    fs::write(path, bytes)
}

fn apply(bytes: &mut Vec<u8>, one: Damage) {
    let of = |at: u16, length: usize| usize::from(at) * length / (usize::from(u16::MAX) + 1);
    match one {
        Damage::FlipByte { at, mask } => {
            let at = of(at, bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= mask;
            }
        }
        Damage::FlipRecord { at, mask } => {
            let records = records(bytes);
            match records.get(of(at, records.len())) {
                Some((start, length)) => bytes[start + usize::from(at) % length] ^= mask,
                None => apply(bytes, Damage::FlipByte { at, mask }),
            }
        }
        Damage::ZeroPage { at } => {
            let start = of(at, bytes.len()) / PAGE_BYTES * PAGE_BYTES;
            let end = (start + PAGE_BYTES).min(bytes.len());
            bytes[start..end].fill(0);
        }
        Damage::Truncate { at } => bytes.truncate(of(at, bytes.len())),
    }
}

/// The messages of all records in a file with a valid checksum.
pub fn intact(path: &Path) -> io::Result<HashSet<Token>> {
    let bytes = fs::read(path)?;
    let found = records(&bytes).into_iter().filter_map(|(start, _)| {
        let entry = Entry::check(&bytes[start..]).ok()?;
        token(Content::decode(entry.content()).ok()?.text)
    });
    Ok(found.collect())
}

/// The offset and the length of each record.
fn records(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = bytes[at..].iter().position(|byte| *byte == MAGIC[0]) {
        let start = at + next;
        let length = match Entry::check(&bytes[start..]) {
            Ok(entry) => {
                found.push((start, entry.size()));
                entry.size()
            }
            Err(_) => 1,
        };
        at = start + length;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use chatchain::chain::clock::Stamp;
    use chatchain::chain::ids::{EntryKey, Origin};
    use chatchain::chain::message::{Digest, Message, UncheckedMessage};

    /// A file with three records among other bytes.
    fn file() -> Vec<u8> {
        let mut bytes = vec![7; 100];
        for n in 0..3 {
            let text = format!("0.{n}: hello");
            let draft = UncheckedMessage {
                id: uuid::Uuid::nil(),
                sender: "a".into(),
                recipient: "b".into(),
                text,
                timestamp: None,
            };
            let content = Message::new(draft).expect("within the limits").encode();
            let key = EntryKey { stamp: Stamp(5), origin: Origin([1; 16]), seq: n + 1 };
            let entry =
                Entry::new(key, EntryKind::Message, Digest::of(EntryKind::Message, &content), &content);
            bytes.extend(entry.bytes());
            bytes.extend(MAGIC); // starts like a record, and is none
        }
        bytes
    }

    #[track_caller]
    fn check(damage: &[Damage], want: &[u32]) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        fs::write(&path, file()).expect("written");
        damage_file(&path, damage).expect("readable");
        let want = want.iter().map(|n| (0, *n)).collect();
        assert_eq!(intact(&path).expect("readable"), want);
    }

    #[test]
    fn exactly_the_intact_records_are_found() {
        check(&[], &[0, 1, 2]);
        check(&[Damage::FlipRecord { at: 40_000, mask: 1 }], &[0, 2]);
        check(&[Damage::FlipByte { at: 0, mask: 1 }], &[0, 1, 2]);
        check(&[Damage::Truncate { at: 60_000 }], &[0, 1]);
        check(&[Damage::ZeroPage { at: 9 }], &[]);
    }
}
