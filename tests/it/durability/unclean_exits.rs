//! Nodes that were killed repeatedly, or crashed on their store: the next start checks the store, reports it, and loses
//! nothing.

use std::path::Path;
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::messages::{assert_holds, history, send_all};
use crate::support::rng::SeededRng;

const LONG: Duration = Duration::from_secs(60);
/// A node is killed within this time after its start, mostly before its store is open.
const KILLED_WITHIN: Duration = Duration::from_millis(80);
const KILLS: usize = 12;

fn warnings(cluster: &Cluster) -> String {
    cluster.statuses()[0]["warnings"].to_string()
}

fn files(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir).expect("a directory");
    let mut names: Vec<_> =
        files.map(|file| file.expect("a file").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// Writes the marker file that this many unclean exits leave, `openings` of them during a full check.
fn pretend_unclean_exits(cluster: &Cluster, sessions: u32, openings: u32) {
    let note = format!("{sessions} {openings}\n");
    std::fs::write(cluster.node_dir(0).join("unproven"), note).expect("written");
}

#[test]
fn two_kills_cause_a_full_check_and_a_clean_exit_resets_the_count() {
    let mut cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..100);
    cluster.kill9(0);
    cluster.start_node(0);
    assert!(!warnings(&cluster).contains("ended badly"), "one kill gives no warning");
    cluster.kill9(0);
    cluster.start_node(0);
    let log = cluster.process(0).stderr();
    assert!(
        log.contains("the last runs on the store ended badly (crashed or killed): checking every page"),
        "{log}"
    );
    assert!(!warnings(&cluster).contains("ended badly"), "the check found nothing, so there is no warning");
    send_all(cluster.node(0), 100..110);
    cluster.stop(0);
    assert_eq!(files(&cluster.node_dir(0)), ["index.redb", "log.redb"]);
    cluster.start_node(0);
    assert!(!warnings(&cluster).contains("ended badly"), "{}", warnings(&cluster));
    assert_holds(&history(cluster.node(0)), 0..110);
}

#[test]
fn a_damaged_store_is_salvaged_after_two_unclean_exits_and_reported() {
    let mut cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..500);
    cluster.stop(0);
    let log = cluster.node_dir(0).join("log.redb");
    let mut bytes = std::fs::read(&log).expect("reads");
    bytes[..4096].fill(0);
    std::fs::write(&log, &bytes).expect("writes");
    pretend_unclean_exits(&cluster, 2, 0);
    cluster.start_node(0);
    let shown = warnings(&cluster);
    assert!(
        shown.contains("its last 2 runs ended badly") && shown.contains("its log was damaged"),
        "{shown}"
    );
    assert!(shown.contains("500 entries were salvaged"), "{shown}");
    assert_holds(&history(cluster.node(0)), 0..500);
}

#[test]
fn a_log_that_a_child_process_can_open_is_kept_after_any_number_of_crashes() {
    let mut cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..500);
    cluster.stop(0);
    pretend_unclean_exits(&cluster, 40, 38);
    cluster.start_node(0);
    let said = cluster.process(0).stderr();
    assert!(said.contains("a trial process opens the log"), "{said}");
    let shown = warnings(&cluster);
    assert!(shown.contains("its log was in order, and its index was built anew"), "{shown}");
    assert_holds(&history(cluster.node(0)), 0..500);
    assert_eq!(files(&cluster.node_dir(0)), ["index.redb", "log.redb", "pid", "unproven"]);
}

#[test]
fn repeated_kills_during_the_start_cause_no_salvage() {
    let (mut cluster, mut rng) = (Cluster::start(1), SeededRng::new());
    send_all(cluster.node(0), 0..500);
    cluster.kill9(0);
    for _ in 0..KILLS {
        let began = std::time::Instant::now();
        let moment = rng.duration(KILLED_WITHIN);
        cluster.spawn_node(0);
        eventually_blocking(LONG, "the time of the kill", || began.elapsed() >= moment);
        cluster.kill9(0);
    }
    cluster.start_node(0);
    let said = cluster.process(0).stderr();
    assert!(said.contains("ended badly"), "{said}");
    assert_holds(&history(cluster.node(0)), 0..500);
    let names = files(&cluster.node_dir(0));
    assert!(!names.iter().any(|name| name.contains("damaged")), "{names:?}");
}
