//! A power failure between any two writes of a store must lose no acknowledged message.
//!
//! A workload runs once on a disk that records every step. Then, for every step, the power fails at that step in four
//! ways. The store must open on the remaining bytes and hold every acknowledged message and no message that was not
//! sent, each once and unchanged, in logs with valid hash chains. The same holds for a power failure during recovery.

use std::collections::BTreeMap;
use std::sync::Arc;

use chatchain::chain::filter::Filter;
use chatchain::chain::ids::{ChainHash, Leaf, Origin};
use chatchain::chain::kind::{EntryKind, LogType};
use chatchain::chain::logs::Logs;
use chatchain::chain::message::{Content, Digest, Message, UncheckedMessage};
use chatchain::chain::record::Entry;
use chatchain::store::history::listing::Listing;
use chatchain::store::index::CopyScan;
use chatchain::store::log::WriteBatch;
use chatchain::store::{OpenPolicy, Store};
use uuid::Uuid;

use crate::disk::{Dice, Disk, DurabilityModel, Step, Unsynced};

const NOW: u64 = 1_700_000_000_000;
/// Commits of the workload.
const COMMITS: u64 = 300;
/// At one of this many cuts, the recovery is cut as well, at each of its own steps.
const RECOVERY_EVERY: usize = 97;

fn open(disk: &Disk, policy: OpenPolicy) -> (Arc<Store>, Logs) {
    Store::open_in(disk, "sim", NOW, policy).expect("a store opens after a power failure")
}

fn message(number: u128) -> Message {
    let text = format!("message {number} ").repeat(1 + usize::try_from(number % 23).expect("small"));
    let (id, sender) = (Uuid::from_u128(number), format!("user{}", number % 5));
    let draft = UncheckedMessage { id, sender, recipient: "#room".into(), text, timestamp: None };
    Message::new(draft).expect("valid")
}

/// Commits these messages to the node's own log, as the writer does.
fn commit(disk: &Disk, store: &Store, logs: &mut Logs, numbers: &[u128], origin: u64) {
    let (mut entries, mut overlay) = (Vec::new(), store.index().overlay());
    for number in numbers {
        let content = message(*number).encode();
        let digest = Digest::of(EntryKind::Message, &content);
        let mint = || Origin(u128::from(origin).to_be_bytes());
        let place = logs.assign(Leaf::of(EntryKind::Message, "", digest), NOW, mint);
        let entry = Entry::new(place, EntryKind::Message, digest, &content);
        entries
            .push(overlay.append(entry, logs.vector().hash(place.origin, LogType::MESSAGES)).expect("reads"));
    }
    disk.note(Step::Attempted(numbers.to_vec()));
    store.commit(WriteBatch { entries, ..WriteBatch::default() }, logs).expect("commits");
    disk.note(Step::Acknowledged(numbers.to_vec()));
}

/// Commits batches of one to five messages. Sometimes the index is flushed, or the store is reopened.
fn workload(seed: u64) -> Disk {
    let disk = Disk::default();
    let mut dice = Dice(seed);
    let (mut store, mut logs) = open(&disk, OpenPolicy::Default);
    let (mut number, mut opened) = (0, 1);
    for _ in 0..COMMITS {
        let numbers: Vec<u128> = (0..=dice.roll() % 5)
            .map(|_| {
                number += 1;
                number
            })
            .collect();
        commit(&disk, &store, &mut logs, &numbers, opened);
        if dice.one_in(20) {
            while store.flush_index().expect("indexes") {}
        }
        if dice.one_in(30) {
            store.commit_for_fast_open().expect("settles");
        }
        if dice.one_in(60) {
            drop(store);
            opened += 1;
            (store, logs) = open(&disk, OpenPolicy::Default);
        }
    }
    drop(store);
    disk
}

/// The messages attempted before a cut, and whether each was acknowledged.
type Known = BTreeMap<u128, bool>;

fn learn(known: &mut Known, step: &Step) {
    match step {
        Step::Attempted(numbers) => known.extend(numbers.iter().map(|number| (*number, false))),
        Step::Acknowledged(numbers) => known.extend(numbers.iter().map(|number| (*number, true))),
        _ => {}
    }
}

/// Opens the store on the remaining bytes and compares it with the known messages. Gives the steps of the recovery.
fn check(disk: &Disk, known: &Known, policy: OpenPolicy, what: &str) -> Vec<Step> {
    let (store, logs) = open(disk, policy);
    assert_eq!(store.recovery(), None, "{what}: a power failure must not cause a salvage");
    let recovery = disk.steps();
    let mut listing = Listing::new(&store, Arc::new(logs.clone()), Filter::default(), None, false)
        .expect("a listing starts");
    let mut found = BTreeMap::new();
    let mut chains: BTreeMap<Origin, ChainHash> = BTreeMap::new();
    while !listing.is_done() {
        for entry in listing.next_chunk(1_000).unwrap_or_else(|error| panic!("{what}: {error}")) {
            let content = Content::decode(entry.content()).expect("readable");
            let number = content.id.as_u128();
            assert_eq!(entry.content(), message(number).encode(), "{what}: message {number} has changed");
            assert_eq!(found.insert(number, entry.key()), None, "{what}: message {number} is listed twice");
            let hash = chains
                .entry(entry.origin())
                .or_insert_with(|| ChainHash::genesis(entry.origin(), entry.log_type()));
            *hash = hash.next(entry.seq(), entry.stamp(), entry.leaf());
        }
    }
    for (number, acknowledged) in known {
        assert!(
            !acknowledged || found.contains_key(number),
            "{what}: the acknowledged message {number} is lost"
        );
    }
    for (number, place) in &found {
        assert!(known.contains_key(number), "{what}: message {number} was never attempted");
        let mut scan = CopyScan::of_id(Uuid::from_u128(*number).into_bytes());
        let mut index = store.index().reader();
        let copies = std::iter::from_fn(|| index.next_copy(&mut scan).expect("reads")).map(|copy| copy.key);
        let copies: Vec<_> = copies.filter(|key| logs.covers(*key)).collect();
        assert_eq!(copies, [*place], "{what}: the index has the wrong copies of {number}");
    }
    for (origin, span) in logs.vector().iter() {
        assert_eq!(
            chains.get(&origin),
            Some(&span.head.hash),
            "{what}: the hash chain of {origin} is broken"
        );
    }
    assert_eq!(store.counts().messages, found.len() as u64, "{what}: the count is wrong");
    recovery
}

fn in_all_ways(cut: usize) -> [Unsynced; 4] {
    let seed = cut as u64;
    [Unsynced::Kept, Unsynced::Lost, Unsynced::Some(seed), Unsynced::Torn(seed)]
}

/// The number of threads that check cuts in parallel.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn acknowledged_messages_survive_a_power_failure_at_any_step() {
    let steps = workload(1).steps();
    let share = threads();
    std::thread::scope(|scope| {
        for mine in 0..share {
            let steps = &steps;
            scope.spawn(move || {
                let (mut durability, mut known) = (DurabilityModel::default(), Known::new());
                for (cut, step) in steps.iter().enumerate() {
                    if cut % share == mine {
                        for unsynced in in_all_ways(cut) {
                            let disk = durability.after_power_failure(unsynced);
                            // A large store is opened without a check of every page.
                            disk.seems_large(cut % 2 != 0);
                            let policy = OpenPolicy::Default;
                            check(
                                &disk,
                                &known,
                                policy,
                                &format!("cut at step {cut}, unsynced {unsynced:?}"),
                            );
                        }
                    }
                    durability.take(step);
                    learn(&mut known, step);
                }
            });
        }
    });
}

#[test]
fn acknowledged_messages_survive_a_power_failure_during_recovery() {
    let steps = workload(2).steps();
    let (mut durability, mut known) = (DurabilityModel::default(), Known::new());
    for (cut, step) in steps.iter().enumerate() {
        if cut % RECOVERY_EVERY == 0 {
            for unsynced in in_all_ways(cut) {
                let disk = durability.after_power_failure(unsynced);
                let mut second = DurabilityModel::new(disk.bytes());
                let recovery = check(
                    &disk,
                    &known,
                    OpenPolicy::Default,
                    &format!("cut at step {cut}, unsynced {unsynced:?}"),
                );
                for (again, step) in recovery.iter().enumerate() {
                    let what = format!("cut at step {cut}, unsynced {unsynced:?}, and again at step {again}");
                    check(
                        &second.after_power_failure(Unsynced::Torn(again as u64)),
                        &known,
                        OpenPolicy::Default,
                        &what,
                    );
                    second.take(step);
                }
            }
        }
        durability.take(step);
        learn(&mut known, step);
    }
}
