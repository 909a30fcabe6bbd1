//! Node directories that were wiped, restored from a backup or copied: all nodes converge, and `status` reports the
//! event.

use std::time::Duration;

use crate::support::cluster::{Cluster, copy_dir};
use crate::support::eventually::eventually_blocking;
use crate::support::messages::{assert_holds, common_history, send_all};

const LONG: Duration = Duration::from_secs(60);

/// The output of `chatchain status`, which includes the warnings.
fn status_output(cluster: &Cluster) -> String {
    let server = cluster.node(0).to_string();
    let done = cluster.cli(&["status", "--server", &server]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    done.stdout + &done.stderr
}

#[track_caller]
fn wait_for_warning(cluster: &Cluster, warning: &str) {
    eventually_blocking(LONG, warning, || {
        let shown = status_output(cluster);
        if shown.contains(warning) { Ok(()) } else { Err(shown) }
    });
}

#[test]
fn a_wiped_node_recovers_all_messages_and_the_others_warn() {
    let mut cluster = Cluster::start(3);
    send_all(cluster.node(2), 0..300);
    cluster.converge(LONG, 300);
    cluster.kill9(2);
    std::fs::remove_dir_all(cluster.node_dir(2)).expect("removed");
    cluster.start_node(2);
    send_all(cluster.node(2), 300..310);
    cluster.converge(LONG, 310);
    assert_holds(&common_history(&cluster), 0..310);
    wait_for_warning(&cluster, "node 2 came back with another store");
}

#[test]
fn a_node_restored_from_a_backup_recovers_the_rest_and_the_others_warn() {
    let mut cluster = Cluster::start(3);
    send_all(cluster.node(2), 0..100);
    cluster.converge(LONG, 100);
    cluster.stop(2);
    let older = cluster.dir().join("older");
    copy_dir(&cluster.node_dir(2), &older);
    cluster.start_node(2);
    send_all(cluster.node(2), 100..400);
    cluster.converge(LONG, 400);
    cluster.kill9(2);
    std::fs::remove_dir_all(cluster.node_dir(2)).expect("removed");
    copy_dir(&older, &cluster.node_dir(2));
    cluster.start_node(2);
    cluster.converge(LONG, 400);
    assert_holds(&common_history(&cluster), 0..400);
    wait_for_warning(&cluster, "node 2 came back with 300 entries fewer than it had");
}

#[test]
fn of_two_nodes_with_copies_of_one_store_the_later_one_takes_a_new_id() {
    let mut cluster = Cluster::start(2);
    send_all(cluster.node(1), 0..100);
    cluster.converge(LONG, 100);
    cluster.stop(1);
    let copy = cluster.node_dir(2);
    copy_dir(&cluster.node_dir(1), &copy);
    cluster.start_node(1);
    let third = cluster.join(&[0, 1]);
    send_all(cluster.node(1), 100..200);
    eventually_blocking(LONG, "the copy to accept messages under its new id", || {
        let shown = status_output(&cluster);
        // Readiness alone is not enough: the copy is also ready before it has met the original.
        let ready = crate::support::http::get(cluster.node(third), "/readyz").expect("answered");
        if shown.contains("took a new store id") && ready.status() == 200 { Ok(()) } else { Err(shown) }
    });
    send_all(cluster.node(third), 200..300);
    cluster.converge(LONG, 300);
    assert_holds(&common_history(&cluster), 0..300);
}
