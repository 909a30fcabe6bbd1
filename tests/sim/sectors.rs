//! Bad sectors: what a store recovers from a disk on which some sectors can never be read again.
//!
//! Opening a store with a bad sector fails on every attempt and changes nothing, because the disk may recover. Only
//! with `OpenPolicy::AcceptLoss` a new log is made: of every record outside the unreadable blocks, and of nothing else.

use std::collections::BTreeSet;

use chatchain::store::engine::files::{CRASH_MARKER, INDEX, LOG};
use chatchain::store::{OpenError, OpenPolicy, Store, StoreError};

use crate::disk::{Dice, Disk, Images};
use crate::salvage::{
    KEPT_LOG, NOW, Outcome, PAGE_BYTES, Records, SEEDS, Sample, check, in_parallel, readable, records_in,
    sample,
};

const SECTOR_BYTES: usize = 512;

fn open(disk: &Disk, policy: OpenPolicy) -> Result<(), OpenError> {
    Store::open_in(disk, "sim", NOW, policy).map(drop)
}

/// Makes a few sectors of the log unreadable. Gives their pages, and the intact records outside those pages.
fn make_sectors_unreadable(disk: &Disk, dice: &mut Dice) -> (BTreeSet<usize>, Records) {
    let mut log = disk.bytes()[LOG].clone();
    let mut below = |most: usize| usize::try_from(dice.roll()).expect("64 bits") % most;
    // Only pages in use: most of a small file is free.
    let used: Vec<usize> = (0..log.len() / PAGE_BYTES).filter(|page| log[page * PAGE_BYTES] != 0).collect();
    let mut pages = BTreeSet::new();
    for _ in 0..=below(4) {
        let page = used[below(used.len())];
        let start = page * PAGE_BYTES + below(PAGE_BYTES / SECTOR_BYTES) * SECTOR_BYTES;
        disk.make_unreadable(LOG, start..start + SECTOR_BYTES);
        pages.insert(page);
    }
    for page in &pages {
        log[page * PAGE_BYTES..][..PAGE_BYTES].fill(0);
    }
    (pages, records_in(&log))
}

/// Whether opening a log with unreadable parts fails. If it fails, it must have changed nothing.
fn refused(disk: &Disk, policy: OpenPolicy, what: &str) -> bool {
    let Err(error) = open(disk, policy) else { return false };
    assert!(error.is_disk_error() && error.is_transient(), "{what}: {error}");
    assert!(error.to_string().contains("Input/output error"), "{what}: {error}");
    let files = disk.bytes();
    let kept: Vec<&str> = files.keys().map(|name| &**name).filter(|name| *name != CRASH_MARKER).collect();
    assert_eq!(kept, [INDEX, LOG], "{what}: a failed opening must not change the files");
    true
}

fn images(sample: &Sample, is_closed: bool) -> Images {
    if is_closed { sample.closed.clone() } else { sample.killed.clone() }
}

#[test]
fn every_record_outside_unreadable_blocks_is_recovered_unchanged() {
    let sample = sample(11);
    for is_closed in [true, false] {
        let work = |seed| {
            let disk = Disk::new(images(&sample, is_closed));
            let (pages, intact) = make_sectors_unreadable(&disk, &mut Dice(seed));
            let what = format!("seed {seed}, closed cleanly: {is_closed}: pages {pages:?}");
            let again = [OpenPolicy::Default, OpenPolicy::FullCheck, OpenPolicy::FullCheck]
                .map(|policy| refused(&disk, policy, &what));
            let outcome = if again == [true; 3] {
                check(&disk, &sample.truth, &intact, OpenPolicy::AcceptLoss, &what)
            } else {
                assert_eq!(again, [false; 3], "{what}");
                check(&disk, &sample.truth, &sample.truth, OpenPolicy::AcceptLoss, &what)
            };
            assert_eq!(outcome.salvaged, u64::from(again[0]), "{what}");
            // The sectors that are still unreadable belong to a file that is no longer used.
            assert!(!refused(&Disk::new(disk.bytes()), OpenPolicy::Default, &what));
            let (store, logs) = Store::open_in(&disk, "sim", NOW, OpenPolicy::FullCheck).expect("opens");
            assert_eq!(store.recovery(), None, "{what}: a second opening needs no salvage");
            assert!(!readable(&store, &logs, &what).1);
            outcome
        };
        assert!(in_parallel(work, SEEDS).salvaged > SEEDS / 2);
    }
}

#[test]
fn a_disk_that_recovers_is_not_salvaged_after_any_number_of_failures() {
    let sample = sample(12);
    for is_closed in [true, false] {
        let work = |seed| {
            let disk = Disk::new(images(&sample, is_closed));
            let (pages, _) = make_sectors_unreadable(&disk, &mut Dice(seed));
            let what = format!("seed {seed}, closed cleanly: {is_closed}: pages {pages:?}");
            for _ in 0..9 {
                refused(&disk, OpenPolicy::FullCheck, &what);
            }
            disk.fix_bad_sectors();
            let policy = if seed % 2 == 0 { OpenPolicy::FullCheck } else { OpenPolicy::AcceptLoss };
            let outcome = check(&disk, &sample.truth, &sample.truth, policy, &what);
            assert_eq!((outcome.salvaged, outcome.noticed_by_reading), (0, 0), "{what}");
            outcome
        };
        in_parallel(work, SEEDS);
    }
}

#[test]
fn an_entirely_unreadable_log_is_not_given_up() {
    let sample = sample(13);
    let disk = Disk::new(sample.closed.clone());
    disk.make_unreadable(LOG, 0..sample.closed[LOG].len());
    for policy in [OpenPolicy::Default, OpenPolicy::FullCheck, OpenPolicy::AcceptLoss] {
        let error = open(&disk, policy).expect_err("gives nothing");
        assert!(error.is_disk_error(), "{error}");
    }
    assert!(
        open(&disk, OpenPolicy::AcceptLoss).expect_err("gives nothing").to_string().contains("gives nothing")
    );
    disk.fix_bad_sectors();
    assert_eq!(
        check(&disk, &sample.truth, &sample.truth, OpenPolicy::AcceptLoss, "after the disk recovered")
            .salvaged,
        0
    );
}

#[test]
fn a_salvage_on_a_disk_whose_writes_fail_loses_nothing() {
    let sample = sample(14);
    let disk = Disk::new(sample.closed.clone());
    let (_, intact) = make_sectors_unreadable(&disk, &mut Dice(3));
    assert!(refused(&disk, OpenPolicy::Default, "at first"));
    let log = disk.bytes()[LOG].clone();
    for changes in 0.. {
        disk.fail_after(Some(changes));
        let opened = open(&disk, OpenPolicy::AcceptLoss);
        disk.fail_after(None);
        match opened {
            Ok(()) => break,
            Err(_) => {
                assert!(disk.bytes().values().any(|bytes| *bytes == log), "{changes}: the old log is kept");
            }
        }
        // The next attempt, on a copy of the disk.
        let retried = Disk::new(disk.bytes());
        let whole = check(&retried, &sample.truth, &sample.truth, OpenPolicy::Default, &format!("{changes}"));
        assert!(whole.salvaged == 0 || retried.bytes().contains_key(KEPT_LOG), "{changes}");
    }
    let (store, logs) = Store::open_in(&disk, "sim", NOW, OpenPolicy::Default).expect("opens");
    assert_eq!(readable(&store, &logs, "in the end").0, intact);
}

#[test]
fn a_disk_whose_writes_fail_causes_no_salvage() {
    let sample = sample(15);
    let disk = Disk::new(sample.killed.clone());
    disk.fail_after(Some(0));
    open(&disk, OpenPolicy::AcceptLoss).expect_err("writes what it repairs");
    disk.fail_after(None);
    assert_eq!(check(&disk, &sample.truth, &sample.truth, OpenPolicy::AcceptLoss, "again").salvaged, 0);
}

#[test]
fn an_unreadable_index_is_rebuilt() {
    let sample = sample(16);
    let work = |seed| {
        let disk = Disk::new(images(&sample, seed % 2 == 0));
        let len = disk.bytes()[INDEX].len();
        let start = usize::try_from(Dice(seed).roll()).expect("64 bits") % (len / PAGE_BYTES) * PAGE_BYTES;
        disk.make_unreadable(INDEX, if seed == 0 { 0..len } else { start..start + SECTOR_BYTES });
        let what = format!("seed {seed}: {start}");
        disk.seems_large(seed % 3 == 0);
        let outcome = check(&disk, &sample.truth, &sample.truth, OpenPolicy::Default, &what);
        assert_eq!(outcome.salvaged, 0, "{what}");
        outcome
    };
    in_parallel(work, SEEDS);
}

/// The log is missing, so the damaged log of an earlier salvage is needed again, and now has a bad sector itself.
#[test]
fn a_kept_damaged_log_with_a_bad_sector_is_salvaged_again() {
    let sample = sample(17);
    let mut files = sample.closed.clone();
    let log = files.remove(LOG).expect("exists");
    files.insert(KEPT_LOG.into(), log.clone());
    let disk = Disk::new(files);
    let bad = 20 * PAGE_BYTES;
    disk.make_unreadable(KEPT_LOG, bad..bad + 1);
    for _ in 0..3 {
        let error = open(&disk, OpenPolicy::FullCheck).expect_err("cannot read it");
        assert!(error.is_disk_error() && error.to_string().contains(KEPT_LOG), "{error}");
    }
    let mut left = log;
    left[bad..bad + PAGE_BYTES].fill(0);
    assert_eq!(
        check(&disk, &sample.truth, &records_in(&left), OpenPolicy::AcceptLoss, "the kept log").salvaged,
        1
    );
    let disk = Disk::new(disk.bytes());
    assert_eq!(check(&disk, &sample.truth, &sample.truth, OpenPolicy::Default, "the new one").salvaged, 0);
}

#[test]
fn a_sector_that_fails_while_the_store_is_open_leads_to_a_salvage() {
    let sample = sample(18);
    let work = |seed| {
        let disk = Disk::new(sample.closed.clone());
        disk.disable_cache();
        disk.seems_large(true);
        let (store, logs) = Store::open_in(&disk, "sim", NOW, OpenPolicy::Default).expect("opens");
        let (pages, intact) = make_sectors_unreadable(&disk, &mut Dice(seed));
        let what = format!("seed {seed}: pages {pages:?}");
        let failed = logs.vector().iter().any(|(origin, span)| {
            (1..=span.head.seq).any(|seq| {
                let read = store.log().read().and_then(|mut reader| reader.get(origin, seq));
                matches!(read, Err(StoreError::Storage(_)))
            })
        });
        assert_eq!(failed, store.read_failure().is_some(), "{what}");
        drop(store);
        if !failed || !refused(&disk, OpenPolicy::FullCheck, &what) {
            return Outcome::default();
        }
        let outcome = check(&disk, &sample.truth, &intact, OpenPolicy::AcceptLoss, &what);
        assert_eq!(outcome.salvaged, 1, "{what}");
        outcome
    };
    let salvaged = in_parallel(work, SEEDS).salvaged;
    assert!(salvaged > SEEDS / 4, "{salvaged}");
}
