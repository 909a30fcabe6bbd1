//! Nodes that were killed again and again, or whose store ends them: the next start looks closer, says so, and loses nothing.

use std::path::Path;
use std::time::Duration;

use crate::support::chance::Chance;
use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::messages::{assert_holds, history, send_all};

const LONG: Duration = Duration::from_secs(60);
/// A node is killed at the latest so long after its start, mostly before its store is open.
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

/// As so many processes leave it that ended badly, the last of them while they checked every page.
fn pretend(cluster: &Cluster, sessions: u32, openings: u32) {
    let note = format!("{sessions} {openings}\n");
    std::fs::write(cluster.node_dir(0).join("unproven"), note).expect("written");
}

#[test]
fn a_node_that_was_killed_twice_checks_its_store_and_forgets_it_with_an_end_in_order() {
    let mut cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..100);
    cluster.kill9(0);
    cluster.start_node(0);
    assert!(!warnings(&cluster).contains("ended badly"), "one kill says nothing");
    cluster.kill9(0);
    cluster.start_node(0);
    let log = cluster.process(0).stderr();
    assert!(
        log.contains("the last runs on the store ended badly (crashed or killed): checking every page"),
        "{log}"
    );
    assert!(!warnings(&cluster).contains("ended badly"), "nothing was wrong, so there is nothing to do");
    send_all(cluster.node(0), 100..110);
    cluster.stop(0);
    assert_eq!(files(&cluster.node_dir(0)), ["index.redb", "log.redb"]);
    cluster.start_node(0);
    assert!(!warnings(&cluster).contains("ended badly"), "{}", warnings(&cluster));
    assert_holds(&history(cluster.node(0)), 0..110);
}

#[test]
fn a_damaged_store_that_ended_two_processes_is_healed_and_its_node_says_so() {
    let mut cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..500);
    cluster.stop(0);
    let log = cluster.node_dir(0).join("log.redb");
    let mut bytes = std::fs::read(&log).expect("reads");
    bytes[..4096].fill(0);
    std::fs::write(&log, &bytes).expect("writes");
    pretend(&cluster, 2, 0);
    cluster.start_node(0);
    let told = warnings(&cluster);
    assert!(told.contains("its last 2 runs ended badly") && told.contains("its log was damaged"), "{told}");
    assert!(told.contains("500 entries were salvaged"), "{told}");
    assert_holds(&history(cluster.node(0)), 0..500);
}

#[test]
fn a_log_that_another_process_can_open_is_not_given_up_however_many_openings_ended_badly() {
    let mut cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..500);
    cluster.stop(0);
    pretend(&cluster, 40, 38);
    cluster.start_node(0);
    let said = cluster.process(0).stderr();
    assert!(said.contains("a trial process opens the log"), "{said}");
    let told = warnings(&cluster);
    assert!(told.contains("its log was in order, and its index was built anew"), "{told}");
    assert_holds(&history(cluster.node(0)), 0..500);
    assert_eq!(files(&cluster.node_dir(0)), ["index.redb", "log.redb", "pid", "unproven"]);
}

#[test]
fn kills_again_and_again_during_the_start_have_nothing_salvaged() {
    let (mut cluster, mut chance) = (Cluster::start(1), Chance::new());
    send_all(cluster.node(0), 0..500);
    cluster.kill9(0);
    for _ in 0..KILLS {
        let began = std::time::Instant::now();
        let moment = chance.duration(KILLED_WITHIN);
        cluster.spawn_node(0);
        eventually_blocking(LONG, "its moment", || began.elapsed() >= moment);
        cluster.kill9(0);
    }
    cluster.start_node(0);
    let said = cluster.process(0).stderr();
    assert!(said.contains("ended badly"), "{said}");
    assert_holds(&history(cluster.node(0)), 0..500);
    let names = files(&cluster.node_dir(0));
    assert!(!names.iter().any(|name| name.contains("damaged")), "{names:?}");
}
