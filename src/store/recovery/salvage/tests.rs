//! What a salvage makes of the records in a file that is no database.

use std::path::Path;

use super::*;
use crate::chain::clock::Stamp;
use crate::chain::ids::Leaf;
use crate::chain::kind::{EntryKind, LogType};
use crate::chain::message::Digest;
use crate::store::engine::files::{Directory, LOG};
use crate::store::{OpenPolicy, Store};

const A: Origin = Origin([1; 16]);
const B: Origin = Origin([2; 16]);

fn record(origin: Origin, seq: u64, stamp: u64, content: &[u8]) -> Vec<u8> {
    let (stamp, digest) = (Stamp(stamp), Digest::of(EntryKind::Message, content));
    Entry::new(EntryKey { stamp, origin, seq }, EntryKind::Message, digest, content).bytes().to_vec()
}

/// Opens a store whose log file is these records between other bytes.
fn open(dir: &Path, records: &[Vec<u8>]) -> (std::sync::Arc<Store>, crate::chain::logs::Logs) {
    let bytes = [b"no database at all".as_slice(), &records.concat()].concat();
    std::fs::write(dir.join(LOG), bytes).expect("writes");
    Store::open(dir, "test", 0).expect("opens")
}

#[test]
fn the_entries_before_the_first_gap_are_the_log_and_the_rest_is_detached() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut records: Vec<_> = (1..=3000).map(|seq| record(A, seq, seq, b"a")).collect();
    records.remove(2499); // entry 2500
    records.push(record(A, 3005, 3005, b"a"));
    records.extend([record(B, 2, 2, b"no first entry")]);
    records.reverse();
    records.extend_from_within(..100); // old copies
    let (store, logs) = open(dir.path(), &records);
    let (span, mut reader) = (*logs.vector().get(A).expect("is there"), store.log().read().expect("reads"));
    assert_eq!((span.head.seq, logs.vector().origins()), (2499, 1));
    assert_eq!(reader.hash_at(A, span.floor, 2499).expect("computes"), span.head.hash);
    for checkpoint in [1024, 2048] {
        assert!(reader.checkpoint(A, checkpoint).expect("reads").is_some());
    }
    assert_eq!(logs.detached().collect::<Vec<_>>(), [(A, 3005), (B, 2)]);
    for (origin, seq) in [(A, 2501), (A, 3000), (A, 3005), (B, 2)] {
        assert_eq!(reader.get(origin, seq).expect("is there").seq(), seq);
    }
    assert!(reader.get(A, 2500).is_err() && reader.get(B, 1).is_err());
    let recovery = store.recovery().expect("was salvaged");
    let want = Salvaged {
        records: 3001,
        logs: 1,
        entries: 2499,
        detached: 502,
        missing: 6,
        conflicting: 0,
        unread_bytes: 0,
    };
    assert_eq!(recovery.salvaged, want);
    assert_eq!(store.damaged_files().len(), 1);
    drop((reader, store));
    let (store, logs) = Store::open_with(dir.path(), "test", 0, OpenPolicy::FullCheck).expect("opens");
    assert_eq!((logs.detached().count(), logs.vector().entries(), store.recovery()), (2, 2499, None));
}

#[test]
fn different_records_of_one_key_are_all_kept() {
    let dir = tempfile::tempdir().expect("temp dir");
    let other = record(A, 2, 20, b"other");
    let third = record(A, 2, 20, b"third");
    let records = [record(A, 1, 1, b"a"), record(A, 2, 2, b"b"), other.clone(), third, other];
    let (store, logs) = open(dir.path(), &records);
    assert_eq!(logs.vector().seq(A), 2);
    let mut reader = store.log().read().expect("reads");
    assert_eq!(reader.get(A, 2).expect("is there").bytes(), &records[1], "the first one keeps the key");
    for content in [b"other", b"third"] {
        let key = EntryKey { stamp: Stamp(20), origin: A, seq: 2 };
        let digest = Digest::of(EntryKind::Message, content);
        let branch = Origin::branch(key, LogType::MESSAGES, Leaf::of(EntryKind::Message, "", digest));
        let there = reader.get(branch, 1).expect("is there");
        assert_eq!(
            (there.content(), there.stamp(), there.log_type().is_branch),
            (content.as_slice(), Stamp(20), true)
        );
        assert_eq!(logs.vector().seq(branch), 1);
    }
    let want = Salvaged {
        records: 4,
        logs: 3,
        entries: 4,
        detached: 0,
        missing: 0,
        conflicting: 2,
        unread_bytes: 0,
    };
    assert_eq!(store.recovery().expect("was salvaged").salvaged, want);
}

#[test]
fn an_entry_that_is_not_stamped_later_is_detached() {
    let dir = tempfile::tempdir().expect("temp dir");
    let records = [record(A, 1, 5, b"a"), record(A, 2, 5, b"b"), record(A, 3, 6, b"c")];
    let (_store, logs) = open(dir.path(), &records);
    assert_eq!((logs.vector().seq(A), logs.detached().collect::<Vec<_>>()), (1, vec![(A, 3)]));
}

#[test]
fn only_wrong_bytes_lead_to_a_salvage() {
    let dir = tempfile::tempdir().expect("temp dir");
    drop(Store::open(dir.path(), "test", 0).expect("opens"));
    let whole = std::fs::read(dir.path().join(LOG)).expect("reads");
    assert!(Store::open(dir.path(), "other", 0).is_err());
    let held = Directory(dir.path().to_owned()).lock().expect("is free");
    std::fs::write(dir.path().join(LOG), b"").expect("writes");
    let in_use = Store::open(dir.path(), "test", 0).expect_err("another process salvages it");
    assert!(matches!(in_use, OpenError::InUse(_)), "{in_use}");
    drop(held);
    std::fs::remove_file(dir.path().join(LOG)).expect("removes");
    std::fs::create_dir(dir.path().join(LOG)).expect("makes");
    let error = Store::open(dir.path(), "test", 0).expect_err("a directory is no file");
    assert!(matches!(error, OpenError::NotAFile(_)), "{error}");
    std::fs::remove_dir(dir.path().join(LOG)).expect("removes");
    std::fs::write(dir.path().join(LOG), whole).expect("writes");
    let (store, _) = Store::open(dir.path(), "test", 0).expect("opens");
    assert!(store.damaged_files().is_empty() && store.recovery().is_none());
}

#[test]
fn a_damaged_name_of_the_network_is_damage_and_not_another_network() {
    let dir = tempfile::tempdir().expect("temp dir");
    drop(Store::open(dir.path(), "a network", 0).expect("opens"));
    let mut bytes = std::fs::read(dir.path().join(LOG)).expect("reads");
    let keys: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"a network")).collect();
    assert!(!keys.is_empty());
    for at in keys {
        bytes[at] = b'b';
    }
    std::fs::write(dir.path().join(LOG), bytes).expect("writes");
    let (store, _) = Store::open(dir.path(), "a network", 0).expect("opens");
    assert!(store.recovery().is_some());
}

#[test]
fn a_log_without_a_head_is_noticed_though_the_database_is_intact() {
    let dir = tempfile::tempdir().expect("temp dir");
    drop(open(dir.path(), &[record(A, 1, 1, b"a"), record(B, 1, 2, b"b")]));
    let db = redb::Database::open(dir.path().join(LOG)).expect("opens");
    let tx = db.begin_write().expect("begins");
    tx.open_table(HEADS).expect("opens").remove(A.0).expect("removes").expect("was there");
    tx.commit().expect("commits");
    drop(db);
    let (store, logs) = Store::open(dir.path(), "test", 0).expect("opens");
    assert!(store.recovery().is_some());
    assert_eq!((logs.vector().seq(A), logs.vector().seq(B)), (1, 1));
}

/// A cut in such a log would have to count beyond it.
#[test]
fn a_record_with_an_impossible_seq_is_not_salvaged() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (_, logs) = open(dir.path(), &[record(A, u64::MAX, 9, b"a"), record(A, 3, 3, b"a")]);
    assert_eq!(logs.detached().collect::<Vec<_>>(), [(A, 3)]);
}
