//! A node whose log was damaged while it was down: it starts by itself, with everything that is intact.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use chatchain::chain::ids::Origin;
use chatchain::chain::record::Entry;
use serde_json::{Value, json};

use crate::support::chance::Chance;
use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::messages::{history, send_all, tally};

/// More than a node waits for peers that it does not have.
const LONG: Duration = Duration::from_secs(60);
/// Sent to each of so many logs.
const MESSAGES: u64 = 500;
const LOGS: u64 = 4;

/// The seqs of every log whose record is intact, and where the first and the last record lie.
fn intact(bytes: &[u8]) -> (BTreeMap<Origin, BTreeSet<u64>>, usize, usize) {
    let mut found = BTreeMap::<Origin, BTreeSet<u64>>::new();
    let places: Vec<usize> = (0..bytes.len())
        .filter(|at| {
            let entry = Entry::check(&bytes[*at..]);
            entry.is_ok_and(|entry| found.entry(entry.origin()).or_default().insert(entry.seq()))
        })
        .collect();
    (found, places[0], places[places.len() - 1])
}

fn verify(cluster: &Cluster) -> (Option<i32>, Value, String) {
    let done = cluster.cli(&["verify", "-o", "json"]);
    (done.code, serde_json::from_str(&done.stdout).expect("JSON"), done.stderr)
}

fn set_aside(dir: &Path) -> usize {
    let files = std::fs::read_dir(dir).expect("a directory").map(|file| file.expect("a file").file_name());
    files.filter(|name| name.to_string_lossy().starts_with("log.redb.damaged-")).count()
}

#[test]
fn a_log_overwritten_in_the_middle_is_salvaged_by_its_node_and_verify_says_so() {
    let mut cluster = Cluster::start(1);
    for part in 0..LOGS {
        send_all(cluster.node(0), part * MESSAGES..(part + 1) * MESSAGES);
        cluster.stop(0);
        cluster.start_node(0);
    }
    let (code, busy, said) = verify(&cluster);
    assert_eq!((code, &busy[0]["whole"]), (Some(1), &json!(false)));
    assert!(said.contains("in use by another process"), "{said}");
    cluster.stop(0);
    let (code, whole, said) = verify(&cluster);
    assert_eq!((code, &whole[0]["entries"], said.as_str()), (Some(0), &json!(MESSAGES * LOGS), ""));

    let log = cluster.node_dir(0).join("log.redb");
    let mut bytes = std::fs::read(&log).expect("reads");
    let (_, first, last) = intact(&bytes);
    let mut chance = Chance::new();
    let span = first + (last - first) / 4..first + (last - first) / 2;
    bytes[span].iter_mut().for_each(|byte| *byte = u8::try_from(chance.within(0..256)).expect("a byte"));
    std::fs::write(&log, &bytes).expect("writes");
    let (code, damaged, said) = verify(&cluster);
    assert_eq!((code, &damaged[0]["whole"]), (Some(1), &json!(false)));
    assert!(said.contains("node-0: "), "{said}");

    cluster.start_node(0);
    let (intact, ..) = intact(&bytes);
    let prefix = |seqs: &BTreeSet<u64>| (1..=MESSAGES).take_while(|seq| seqs.contains(seq)).count() as u64;
    let listed: u64 = intact.values().map(prefix).sum();
    let all: u64 = intact.values().map(|seqs| seqs.len() as u64).sum();
    assert!(listed > 0 && all < MESSAGES * LOGS, "{listed} of {all}");
    assert!(tally(&history(cluster.node(0))).len() as u64 >= listed, "what follows no gap is there at once");
    // Nobody has what is missing: after a while what stands behind it is a log of its own.
    eventually_blocking(LONG, "all that is intact to be listed", || {
        let history = tally(&history(cluster.node(0)));
        history.len() as u64 == all && history.values().all(|times| *times == 1)
    });
    assert_eq!(set_aside(&cluster.node_dir(0)), 1);

    cluster.stop(0);
    let (code, salvaged, said) = verify(&cluster);
    let counts = ["entries", "loose", "damaged", "missing"].map(|name| salvaged[0][name].as_u64());
    assert_eq!((code, counts), (Some(0), [Some(all), Some(0), Some(0), Some(0)]), "{said}");
    assert!(said.contains("may be removed"), "{said}");
}

#[test]
fn a_directory_without_a_store_cannot_be_verified() {
    let cluster = Cluster::prepare(1);
    let done = cluster.cli(&["verify", "--data-dir", "."]);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.contains("holds no store; name one"), "{done:?}");
}
