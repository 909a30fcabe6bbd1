//! Cursors: encoding and decoding, which entries they cover, which bytes are refused.

use super::*;
use std::sync::Arc;

use super::super::frontier::{FrontierSnapshot, SnapshotContent};
use proptest::prelude::*;

fn origin(n: u16) -> Origin {
    Origin([n.to_be_bytes(); 8].concat().try_into().expect("16 bytes"))
}

fn key(stamp: u64, n: u16, seq: u64) -> EntryKey {
    EntryKey { stamp: Stamp(stamp), origin: origin(n), seq }
}

fn seqs(list: &[(u16, u64)]) -> Frontier {
    list.iter().map(|(n, seq)| (origin(*n), *seq)).collect()
}

const SCOPE: Scope = Scope { network: [1; 8], filter: [2; 8] };

fn restored(seen: &ReadState, known: &[Arc<FrontierSnapshot>]) -> Option<ReadState> {
    let bytes = encode(&payload(seen).expect("fits"), SCOPE);
    assert!(bytes.len() <= CURSOR_BYTES_MAX, "{}", bytes.len());
    let find = |name| {
        let found = known.iter().find(|snapshot| snapshot.id == name);
        found.map(|snapshot| Frontier::at(snapshot.clone()))
    };
    decode(&bytes, SCOPE).expect("decodes").expand(find)
}

#[test]
fn what_was_seen_comes_back_from_its_bytes() {
    let full = seqs(&[(1, 5), (2, 300)]);
    let mut until = full.clone();
    until.raise(origin(2), 400);
    until.raise(origin(3), 1);
    let other = PartialScan { until: seqs(&[(9, 9)]), at: key(3, 9, 2) };
    for scans in [vec![], vec![PartialScan { until, at: key(77, 2, 350) }, other]] {
        let seen = ReadState { full: full.clone(), last: Stamp(70), scans };
        assert_eq!(restored(&seen, &[]), Some(seen));
    }
}

#[test]
fn an_entry_is_covered_by_a_prefix_or_by_a_scan_that_passed_it() {
    let scan = PartialScan { until: seqs(&[(1, 9), (2, 4)]), at: key(100, 1, 7) };
    let seen = ReadState { full: seqs(&[(1, 5)]), last: Stamp(90), scans: vec![scan] };
    let covered = [key(90, 1, 5), key(100, 1, 7), key(99, 2, 4)];
    let not = [key(101, 1, 5), key(101, 1, 8), key(100, 2, 3), key(99, 2, 5), key(1, 3, 1)];
    assert!(covered.iter().all(|key| seen.covers(*key)), "{seen:?}");
    assert!(!not.iter().any(|key| seen.covers(*key)), "{seen:?}");
}

#[test]
fn a_scan_is_kept_until_the_node_has_its_entries() {
    let scan = PartialScan { until: seqs(&[(1, 9), (2, 4)]), at: key(100, 1, 7) };
    let seen = ReadState { full: seqs(&[(1, 5), (3, 2)]), last: Stamp(90), scans: vec![scan] };
    let held = seqs(&[(1, 9), (2, 2), (3, 1)]);
    let left = ReadState { full: held.clone(), last: Stamp(95), scans: seen.beyond(&held) };
    assert_eq!(left.scans.len(), 2);
    for covered in [key(1, 3, 2), key(99, 2, 4)] {
        assert!(left.covers(covered), "{covered:?}");
    }
    assert!(!left.covers(key(101, 2, 4)) && !left.covers(key(1, 3, 3)));
    assert_eq!(seen.beyond(&seqs(&[(1, 9), (2, 4), (3, 2)])), []);
}

#[test]
fn thousands_of_logs_are_a_snapshot_and_what_changed_since() {
    let all: Vec<_> = (0..5_000).map(|n| (origin(n), u64::from(n) + 1)).collect();
    let snapshot = SnapshotContent { base: None, changes: all }.snapshot(None);
    let snapshot = Arc::new(snapshot);
    let mut full = Frontier::at(snapshot.clone());
    let from_the_start = ReadState {
        scans: vec![PartialScan { until: full.clone(), at: key(5, 6, 7) }],
        ..ReadState::default()
    };
    assert_eq!(restored(&from_the_start, std::slice::from_ref(&snapshot)), Some(from_the_start));
    (0..10).for_each(|n| full.raise(origin(n), 9_999));
    let mut until = full.clone();
    (5..15).for_each(|n| until.raise(origin(n), 10_005));
    let seen = ReadState { full, last: Stamp(70), scans: vec![PartialScan { until, at: key(77, 7, 7) }] };
    assert_eq!(restored(&seen, std::slice::from_ref(&snapshot)), Some(seen.clone()));
    assert_eq!(restored(&seen, &[]), None, "a node without the snapshot cannot expand the cursor");
    assert_eq!(
        payload(&ReadState::all(seqs(&(0..100).map(|n| (n, 1)).collect::<Vec<_>>()), Stamp(9))),
        None,
        "too long"
    );
}

#[test]
fn a_cursor_of_another_scope_and_a_damaged_one_have_different_errors() {
    let bytes = encode(&payload(&ReadState::default()).expect("fits"), SCOPE);
    let check = |scope, bytes: &[u8], want| assert_eq!(decode(bytes, scope).err(), want);
    check(SCOPE, &bytes, None);
    check(Scope { network: [3; 8], ..SCOPE }, &bytes, Some(InvalidCursor::Network));
    check(Scope { filter: [3; 8], ..SCOPE }, &bytes, Some(InvalidCursor::Filter));
    check(SCOPE, &bytes[1..], Some(InvalidCursor::Malformed));
    check(SCOPE, b"", Some(InvalidCursor::Malformed));
    let position = position(SCOPE.network, [(origin(1), 17)]);
    check(SCOPE, &position, Some(InvalidCursor::OtherUse));
    assert_eq!(read_position(&bytes, SCOPE.network), Err(InvalidCursor::OtherUse));
    assert_eq!(read_position(&position, SCOPE.network), Ok(vec![(origin(1), 17)]));
}

#[test]
fn a_position_of_too_many_logs_names_the_first_of_them() {
    let bytes = position([1; 8], (0..1_000).map(|n| (origin(n), 1_000_000)));
    assert!(bytes.len() <= CURSOR_BYTES_MAX);
    let read = read_position(&bytes, [1; 8]).expect("reads");
    assert!(read.len() > 30 && read[0] == (origin(0), 1_000_000), "{}", read.len());
}

/// Frozen: readers keep cursors for years. May be added to, never changed.
#[test]
fn a_cursor_of_version_1_is_frozen() {
    let full = seqs(&[(1, 5)]);
    let mut until = full.clone();
    until.raise(origin(2), 300);
    let seen = ReadState { full, last: Stamp(2), scans: vec![PartialScan { until, at: key(3, 2, 299) }] };
    let hex = crate::chain::hex(&encode(&payload(&seen).expect("fits"), SCOPE));
    assert_eq!(
        hex,
        concat!(
            "11010101010101010102020202020202020001000100010001000100010001000100010500000000000000020102010002",
            "0002000200020002000200020002ac02000000000000000300020002000200020002000200020002ab020aa32d31"
        )
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes, SCOPE);
        let _ = decode_payload(&bytes);
        let _ = read_position(&bytes, [0; 8]);
    }
}
