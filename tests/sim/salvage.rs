//! Damaged files: what a store recovers when some of its bytes have changed.
//!
//! A workload makes files; then a seed damages them, and a store is opened on them. Whatever the damage: the store does
//! not panic, a read gives the original bytes or an error, and a salvaged log holds exactly the records whose checksum
//! is still valid somewhere in the raw bytes. This test finds those records independently, in the simplest way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chatchain::chain::filter::Filter;
use chatchain::chain::ids::{ChainHash, Leaf, Origin};
use chatchain::chain::kind::{EntryKind, LogType};
use chatchain::chain::logs::Logs;
use chatchain::chain::message::{Content, Digest, Message, UncheckedMessage};
use chatchain::chain::record::{Entry, MAGIC};
use chatchain::store::engine::files::{INDEX, LOG};
use chatchain::store::history::listing::Listing;
use chatchain::store::log::WriteBatch;
use chatchain::store::{OpenPolicy, Store, StoreError};
use uuid::Uuid;

use crate::disk::{Dice, Disk, DurabilityModel, Images, Unsynced};

pub const NOW: u64 = 1_795_362_480_000;
pub const PAGE_BYTES: usize = 4096;
/// The number of damaged images for each kind of damage.
pub const SEEDS: u64 = 40;

/// The bytes of records by log and seq. Only a forked log has two different records at one seq.
pub type Records = BTreeMap<(Origin, u64), Vec<u8>>;

fn message(number: u128) -> Message {
    let text = format!("message {number} ").repeat(1 + usize::try_from(number % 37).expect("small"));
    let (id, sender) = (Uuid::from_u128(number), format!("user{}", number % 5));
    Message::new(UncheckedMessage { id, sender, recipient: "#room".into(), text, timestamp: None })
        .expect("valid")
}

/// Commits a message: to the node's own log, or to another log that the node admits.
fn commit(store: &Store, logs: &mut Logs, other: Option<&mut Logs>, number: u128) {
    let content = message(number).encode();
    let digest = Digest::of(EntryKind::Message, &content);
    let leaf = Leaf::of(EntryKind::Message, "", digest);
    let mint = || Origin((number << 64 | 7).to_be_bytes());
    let is_other = other.is_some();
    let place = match other {
        Some(other) => other.assign(leaf, NOW, mint),
        None => logs.assign(leaf, NOW, mint),
    };
    let entry = Entry::new(place, EntryKind::Message, digest, &content);
    if is_other {
        assert_eq!(logs.admit(&entry, NOW), Ok(true));
    }
    let row = store
        .index()
        .overlay()
        .append(entry, logs.vector().hash(place.origin, LogType::MESSAGES))
        .expect("reads");
    store.commit(WriteBatch { entries: vec![row], ..WriteBatch::default() }, logs).expect("commits");
}

/// Commits messages to several logs: the node's own log, which changes, and two logs of other nodes.
fn workload(seed: u64, commits: u64) -> (Disk, Arc<Store>, Logs) {
    let disk = Disk::default();
    let (store, mut logs) = Store::open_in(&disk, "sim", NOW, OpenPolicy::Default).expect("opens");
    let mut dice = Dice(seed);
    let mut others = [Logs::default(), Logs::default()];
    for number in 1..=u128::from(commits * 5) {
        let other = usize::try_from(dice.roll() % 4).expect("small");
        commit(&store, &mut logs, others.get_mut(other), number);
        if dice.one_in(60) {
            logs.own().into_iter().for_each(|own| logs.abandon(own));
        }
        if dice.one_in(75) {
            while store.flush_index().expect("indexes") {}
        }
        if dice.one_in(100) {
            store.commit_for_fast_open().expect("settles");
        }
    }
    (disk, store, logs)
}

/// Every valid record in the bytes, found by trying each offset.
pub fn records_in(bytes: &[u8]) -> Records {
    let mut found = Records::new();
    for at in 0..bytes.len() {
        if bytes[at] == MAGIC[0]
            && let Ok(entry) = Entry::check(&bytes[at..])
            && entry.content_matches_digest()
        {
            let bytes = entry.bytes().to_vec();
            let before = found.insert((entry.origin(), entry.seq()), bytes.clone());
            assert!(before.is_none_or(|before| before == bytes), "one seq has only one record");
        }
    }
    found
}

/// Damages the bytes as `kind` says. Gives a description.
fn damage(bytes: &mut Vec<u8>, kind: u64, dice: &mut Dice) -> String {
    let mut below = |most: usize| usize::try_from(dice.roll()).expect("64 bits") % most.max(1);
    match kind {
        0 => {
            let bits: Vec<usize> = (0..=below(20)).map(|_| below(bytes.len() * 8)).collect();
            for bit in &bits {
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            format!("flipped bits {bits:?}")
        }
        1 => {
            let page = below(bytes.len() / PAGE_BYTES);
            bytes[page * PAGE_BYTES..][..PAGE_BYTES].fill(0);
            format!("zeroed page {page}")
        }
        2 => {
            let length = below(bytes.len());
            bytes.truncate(length);
            format!("cut to {length} bytes")
        }
        3 => {
            let garbage: Vec<u8> =
                (0..PAGE_BYTES).map(|_| u8::try_from(below(256)).expect("a byte")).collect();
            bytes[..PAGE_BYTES].copy_from_slice(&garbage);
            "overwrote the first page".into()
        }
        // The header of redb, from which it finds all other pages.
        4 => {
            let bit = below(320 * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            format!("flipped bit {bit} of the header")
        }
        // As 0, but only in pages in use: most of a small file is free.
        _ => {
            let used: Vec<usize> =
                (0..bytes.len() / PAGE_BYTES).filter(|page| bytes[page * PAGE_BYTES] != 0).collect();
            let page = used[below(used.len())];
            let bits: Vec<usize> = (0..=below(20)).map(|_| below(256 * 8)).collect();
            for bit in &bits {
                bytes[page * PAGE_BYTES + bit / 8] ^= 1 << (bit % 8);
            }
            format!("flipped bits {bits:?} of page {page}")
        }
    }
}

/// The results of opening and reading damaged stores.
#[derive(Debug, Default)]
pub struct Outcome {
    pub salvaged: u64,
    pub noticed_by_reading: u64,
    unnoticed: u64,
    /// Entries that are lost because redb fell back to the commit before the newest one.
    rolled_back: u64,
}

/// What the store can read: entries up to the heads, and detached ones. Gives also whether anything was refused.
pub fn readable(store: &Arc<Store>, logs: &Logs, what: &str) -> (Records, bool) {
    let (mut found, mut refused) = (Records::new(), false);
    let highest = logs.vector().iter().map(|(origin, span)| (origin, span.head.seq));
    let highest: BTreeMap<Origin, u64> = highest.chain(logs.detached()).collect();
    for (origin, last) in highest {
        let mut hash = Some(ChainHash::genesis(origin, LogType::MESSAGES));
        for seq in 1..=last {
            let got = store.log().read().and_then(|mut reader| reader.get(origin, seq));
            let is_detached = seq > logs.vector().seq(origin);
            let Ok(entry) = got else {
                refused |= !is_detached;
                hash = None;
                continue;
            };
            assert_eq!((entry.origin(), entry.seq()), (origin, seq), "{what}");
            hash = hash.filter(|_| !is_detached).map(|hash| hash.next(seq, entry.stamp(), entry.leaf()));
            if let (Some(hash), Some(head)) = (hash, logs.vector().head(origin))
                && head.seq == seq
            {
                assert_eq!(hash, head.hash, "{what}: the hash chain of {origin} is broken");
            }
            found.insert((origin, seq), entry.bytes().to_vec());
        }
    }
    (found, refused)
}

/// Lists all messages, whose content must be the original one.
fn list(store: &Arc<Store>, logs: &Logs, filter: Filter) -> Result<BTreeSet<u128>, StoreError> {
    let mut listing = Listing::new(store, Arc::new(logs.clone()), filter, None, false)?;
    let mut numbers = BTreeSet::new();
    while !listing.is_done() {
        for entry in listing.next_chunk(1_000)? {
            let content = Content::decode(entry.content()).expect("readable");
            assert_eq!(entry.content(), message(content.id.as_u128()).encode());
            numbers.insert(content.id.as_u128());
        }
    }
    Ok(numbers)
}

/// Opens the store on damaged bytes. Compares what it reads with the records before the damage and the intact ones.
pub fn check(disk: &Disk, truth: &Records, intact: &Records, policy: OpenPolicy, what: &str) -> Outcome {
    let opened = Store::open_in(disk, "sim", NOW, policy);
    let (store, logs) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
    let (found, refused) = readable(&store, &logs, what);
    for (place, bytes) in &found {
        assert_eq!(Some(bytes), truth.get(place), "{what}: wrong bytes at {place:?}");
    }
    let listed = list(&store, &logs, Filter::default());
    let entries = logs.vector().entries();
    let mut outcome = Outcome::default();
    if store.recovery().is_some() {
        outcome.salvaged = 1;
        assert_eq!(&found, intact, "{what}: not exactly the intact records");
        assert_eq!(listed.expect("lists").len() as u64, entries, "{what}");
        assert!(!refused, "{what}: a salvaged log can be read as a whole");
    } else {
        // A row that a lookup does not find may still be found by an iteration.
        let listed = listed.map_or(entries, |listed| listed.len() as u64);
        assert_eq!(listed, entries, "{what}: the listing lacks entries without an error");
        outcome.noticed_by_reading = u64::from(refused);
        outcome.unnoticed = u64::from(!refused);
        outcome.rolled_back = truth.len() as u64 - entries;
    }
    outcome
}

pub fn in_parallel(work: impl Fn(u64) -> Outcome + Sync, count: u64) -> Outcome {
    let share = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let part = |mine| (0..count).filter(move |seed| seed % share == mine);
    let sum = |a: Outcome, b: Outcome| Outcome {
        salvaged: a.salvaged + b.salvaged,
        noticed_by_reading: a.noticed_by_reading + b.noticed_by_reading,
        unnoticed: a.unnoticed + b.unnoticed,
        rolled_back: a.rolled_back.max(b.rolled_back),
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..share)
            .map(|mine| scope.spawn(move || part(mine).map(work).fold(Outcome::default(), sum)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no violation")).fold(Outcome::default(), sum)
    })
}

/// The files of a store, closed cleanly and killed, the records in them, and the number of entries of its newest
/// commit.
pub struct Sample {
    pub closed: Images,
    pub killed: Images,
    pub truth: Records,
    newest: u64,
}

pub fn sample(seed: u64) -> Sample {
    let (disk, store, mut logs) = workload(seed, 60);
    let before = logs.vector().entries();
    for number in 1_000_000..1_000_003 {
        commit(&store, &mut logs, None, number);
    }
    let newest = 1;
    assert_eq!(logs.vector().entries(), before + 3);
    let killed = disk.bytes();
    drop(store);
    let truth = records_in(&killed[LOG]);
    assert_eq!(truth.len() as u64, before + 3);
    Sample { closed: disk.bytes(), killed, truth, newest }
}

#[test]
fn damage_to_the_log_loses_no_intact_record_and_no_wrong_bytes_are_read() {
    let sample = sample(1);
    let mut all = Vec::new();
    for kind in 0..6 {
        for (is_large, is_closed) in [(false, true), (false, false), (true, true), (true, false)] {
            let work = |seed| {
                let mut damaged = if is_closed { sample.closed.clone() } else { sample.killed.clone() };
                let log = damaged.get_mut(LOG).expect("exists");
                let how = damage(log, kind, &mut Dice(seed));
                let what = format!("seed {seed}, large: {is_large}, closed cleanly: {is_closed}: {how}");
                let intact = records_in(log);
                let disk = Disk::new(damaged);
                disk.seems_large(is_large);
                check(&disk, &sample.truth, &intact, OpenPolicy::Default, &what)
            };
            let outcome = in_parallel(work, SEEDS);
            // redb gives the newest commit up if its pages are damaged, because a power failure looks the same.
            assert!(outcome.rolled_back <= if is_closed { 0 } else { sample.newest }, "{kind}: {outcome:?}");
            assert!(is_large || outcome.noticed_by_reading == 0, "{kind}: {outcome:?}");
            all.push(outcome);
        }
    }
    assert!(all.iter().any(|outcome| outcome.noticed_by_reading > 0), "{all:?}");
    assert!(all.iter().all(|outcome| outcome.salvaged > 0), "{all:?}");
}

#[test]
fn a_log_that_is_not_a_database_is_salvaged() {
    let sample = sample(2);
    let whole = &sample.closed[LOG];
    let zeros = vec![0; whole.len()];
    let nothing_before = whole[..100].to_vec();
    for (bytes, what) in
        [(Vec::new(), "empty"), (vec![0; 4096], "zeros"), (zeros, "all zeros"), (nothing_before, "short")]
    {
        for (policy, is_large) in
            [(OpenPolicy::Default, false), (OpenPolicy::Default, true), (OpenPolicy::FullCheck, false)]
        {
            let mut damaged = sample.closed.clone();
            damaged.insert(LOG.into(), bytes.clone());
            let disk = Disk::new(damaged);
            disk.seems_large(is_large);
            assert_eq!(check(&disk, &sample.truth, &Records::new(), policy, what).salvaged, 1);
            assert!(disk.bytes().values().any(|kept| *kept == bytes), "{what}: the damaged log is kept");
        }
    }
}

/// The name under which a salvage keeps the damaged log in these tests.
pub const KEPT_LOG: &str = "log.redb.damaged-20261122T154800Z";

#[test]
fn kept_damaged_logs_are_salvaged_again_if_the_log_is_missing() {
    let sample = sample(3);
    let mut damaged = sample.closed.clone();
    damaged.get_mut(LOG).expect("exists")[..PAGE_BYTES].fill(0);
    let disk = Disk::new(damaged);
    assert_eq!(check(&disk, &sample.truth, &sample.truth, OpenPolicy::Default, "the first time").salvaged, 1);
    // The new log is damaged within the same second, and then removed.
    let mut again = disk.bytes();
    again.get_mut(LOG).expect("exists").truncate(5_000);
    let disk = Disk::new(again);
    assert_eq!(
        check(&disk, &sample.truth, &sample.truth, OpenPolicy::Default, "the second time").salvaged,
        1
    );
    let mut files = disk.bytes();
    files.remove(LOG);
    let names: Vec<_> = files.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["index.redb".to_owned(), KEPT_LOG.into(), format!("{KEPT_LOG}-2")]);
    let disk = Disk::new(files);
    assert_eq!(check(&disk, &sample.truth, &sample.truth, OpenPolicy::Default, "the third time").salvaged, 1);
    let (store, _) = Store::open_in(&disk, "sim", NOW, OpenPolicy::Default).expect("opens");
    assert_eq!(store.recovery(), None, "a second opening needs no salvage");
    assert_eq!(store.damaged_files().len(), 2, "kept logs are reported as long as they exist");
}

#[test]
fn damage_to_the_index_loses_nothing() {
    let sample = sample(4);
    for kind in 0..6 {
        let work = |seed| {
            let mut dice = Dice(seed);
            let mut damaged = if dice.one_in(2) { sample.closed.clone() } else { sample.killed.clone() };
            let how = damage(damaged.get_mut(INDEX).expect("exists"), kind, &mut dice);
            let what = format!("seed {seed}: {how}");
            let disk = Disk::new(damaged);
            disk.seems_large(!dice.one_in(2));
            let outcome = check(&disk, &sample.truth, &sample.truth, OpenPolicy::Default, &what);
            assert_eq!((outcome.salvaged, outcome.rolled_back), (0, 0), "{what}");
            outcome
        };
        in_parallel(work, SEEDS);
    }
}

#[test]
fn a_power_failure_during_a_salvage_loses_nothing() {
    let sample = sample(5);
    let mut damaged = sample.closed.clone();
    let log = damaged.get_mut(LOG).expect("exists");
    log[..PAGE_BYTES].fill(0);
    // Also damage one record in the middle.
    let starts: Vec<usize> = (0..log.len()).filter(|at| log[*at..].starts_with(&MAGIC)).collect();
    log[starts[starts.len() / 2] + 100] ^= 1;
    let intact = records_in(log);
    let mut durability = DurabilityModel::new(damaged.clone());
    let disk = Disk::new(damaged);
    assert_eq!(check(&disk, &sample.truth, &intact, OpenPolicy::Default, "undisturbed").salvaged, 1);
    let (_, logs) = Store::open_in(&disk, "sim", NOW, OpenPolicy::Default).expect("opens");
    let digest = logs.vector().digest();
    for (cut, step) in disk.steps().iter().enumerate() {
        let seed = cut as u64;
        for unsynced in [Unsynced::Kept, Unsynced::Lost, Unsynced::Some(seed), Unsynced::Torn(seed)] {
            let what = format!("cut at step {cut}, unsynced {unsynced:?}");
            let disk = durability.after_power_failure(unsynced);
            let (store, logs) = Store::open_in(&disk, "sim", NOW, OpenPolicy::Default)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(logs.vector().digest(), digest, "{what}");
            assert_eq!(readable(&store, &logs, &what).0, intact, "{what}");
            let listed = list(&store, &logs, Filter::default()).expect("lists");
            assert_eq!(listed.len() as u64, logs.vector().entries(), "{what}");
        }
        durability.take(step);
    }
}
