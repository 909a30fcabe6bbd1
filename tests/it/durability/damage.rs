//! A log that is damaged while its node is down: the node starts without help and keeps every intact entry.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use chatchain::chain::ids::Origin;
use chatchain::chain::record::Entry;
use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::messages::{history, send_all, tally};
use crate::support::rng::SeededRng;

/// Longer than a node waits for peers before it gives missing entries up.
const LONG: Duration = Duration::from_secs(90);
/// The number of messages in each log.
const MESSAGES: u64 = 500;
const LOGS: u64 = 4;

/// The seqs of the intact records per log, and the offsets of the first and the last of them.
fn intact(bytes: &[u8]) -> (BTreeMap<Origin, BTreeSet<u64>>, usize, usize) {
    let mut found = BTreeMap::<Origin, BTreeSet<u64>>::new();
    let offsets: Vec<usize> = (0..bytes.len())
        .filter(|at| {
            let entry = Entry::check(&bytes[*at..]);
            entry.is_ok_and(|entry| found.entry(entry.origin()).or_default().insert(entry.seq()))
        })
        .collect();
    (found, offsets[0], offsets[offsets.len() - 1])
}

fn verify(cluster: &Cluster) -> (Option<i32>, Value, String) {
    let done = cluster.cli(&["verify", "-o", "json"]);
    (done.code, serde_json::from_str(&done.stdout).expect("JSON"), done.stderr)
}

/// The number of damaged log files that the node has kept.
fn kept_damaged_logs(dir: &Path) -> usize {
    let files = std::fs::read_dir(dir).expect("a directory").map(|file| file.expect("a file").file_name());
    files.filter(|name| name.to_string_lossy().starts_with("log.redb.damaged-")).count()
}

#[test]
fn a_log_overwritten_in_the_middle_is_salvaged_and_verify_reports_it() {
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
    let mut rng = SeededRng::new();
    let span = first + (last - first) / 4..first + (last - first) / 2;
    bytes[span].iter_mut().for_each(|byte| *byte = u8::try_from(rng.within(0..256)).expect("a byte"));
    std::fs::write(&log, &bytes).expect("writes");
    let (code, damaged, said) = verify(&cluster);
    assert_eq!((code, &damaged[0]["whole"]), (Some(1), &json!(false)));
    assert!(said.contains("node-0: "), "{said}");
    assert!(
        !said.contains("application panicked") && said.lines().count() < 5,
        "one sentence for each fault: {said}"
    );

    cluster.start_node(0);
    let (intact, ..) = intact(&bytes);
    let prefix = |seqs: &BTreeSet<u64>| (1..=MESSAGES).take_while(|seq| seqs.contains(seq)).count() as u64;
    let listed: u64 = intact.values().map(prefix).sum();
    let all: u64 = intact.values().map(|seqs| seqs.len() as u64).sum();
    assert!(listed > 0 && all < MESSAGES * LOGS, "{listed} of {all}");
    assert!(
        tally(&history(cluster.node(0))).len() as u64 >= listed,
        "entries before the first gap of a log are listed at once"
    );
    // No peer has the missing entries: after a while the entries after a gap become a log of their own.
    eventually_blocking(LONG, "all intact entries to be listed", || {
        let history = tally(&history(cluster.node(0)));
        history.len() as u64 == all && history.values().all(|times| *times == 1)
    });
    assert_eq!(kept_damaged_logs(&cluster.node_dir(0)), 1);
    let shows_damage = || {
        let done = cluster.cli(&["status"]);
        (done.stdout + &done.stderr).contains("its store was damaged")
    };
    assert!(shows_damage());
    let kept = cluster.node_dir(0).read_dir().expect("a directory").map(|file| file.expect("a file").path());
    let kept = kept.filter(|path| path.to_string_lossy().contains("damaged-")).collect::<Vec<_>>();
    assert_eq!(kept.len(), 1);
    std::fs::rename(&kept[0], kept[0].with_file_name("elsewhere")).expect("renames");
    assert!(!shows_damage(), "the operator has dealt with it");
    std::fs::rename(kept[0].with_file_name("elsewhere"), &kept[0]).expect("renames");

    cluster.stop(0);
    let (code, salvaged, said) = verify(&cluster);
    let counts = ["entries", "loose", "damaged", "missing"].map(|name| salvaged[0][name].as_u64());
    assert_eq!((code, counts), (Some(0), [Some(all), Some(0), Some(0), Some(0)]), "{said}");
    assert!(said.contains("may be removed"), "{said}");
}

/// The storage engine panics on many kinds of damage.
#[test]
fn verify_says_what_damage_it_finds_in_sentences() {
    const PAGE_BYTES: u64 = 4096;
    let mut cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..4 * MESSAGES);
    cluster.stop(0);
    let log = cluster.node_dir(0).join("log.redb");
    let bytes = std::fs::read(&log).expect("reads");
    for seed in 0..40 {
        let (mut rng, mut damaged) = (SeededRng::of(seed), bytes.clone());
        for _ in 0..20 {
            let at = PAGE_BYTES * rng.within(1..bytes.len() as u64 / PAGE_BYTES) + rng.within(0..64);
            damaged[usize::try_from(at).expect("a small file")] ^=
                u8::try_from(rng.within(1..256)).expect("a byte");
        }
        std::fs::write(&log, &damaged).expect("writes");
        let done = cluster.cli(&["verify"]);
        let said = &done.stderr;
        assert!(matches!(done.code, Some(0 | 1)), "seed {seed}: {done:?}");
        assert!(!said.contains("application panicked") && said.lines().count() < 5, "seed {seed}: {said}");
    }
}

#[test]
fn verify_refuses_a_directory_without_a_store() {
    let cluster = Cluster::prepare(1);
    let done = cluster.cli(&["verify", "--data-dir", "."]);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.contains("holds no store; name one"), "{done:?}");
}
