//! Directories that were wiped, put back or copied: everybody ends with everything, and `status` says what happened.

use std::time::Duration;

use crate::support::cluster::{Cluster, copy_dir};
use crate::support::eventually::eventually_blocking;
use crate::support::messages::{assert_holds, common_history, send_all};

const LONG: Duration = Duration::from_secs(60);

/// The warnings that `chatchain status` shows.
fn told(cluster: &Cluster) -> String {
    let server = cluster.node(0).to_string();
    let done = cluster.cli(&["status", "--server", &server]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    done.stdout + &done.stderr
}

#[track_caller]
fn is_told(cluster: &Cluster, what: &str) {
    eventually_blocking(LONG, what, || {
        let told = told(cluster);
        if told.contains(what) { Ok(()) } else { Err(told) }
    });
}

#[test]
fn a_wiped_node_gets_everything_back_and_the_others_tell() {
    let mut cluster = Cluster::start(3);
    send_all(cluster.node(2), 0..300);
    cluster.converge(LONG, 300);
    cluster.kill9(2);
    std::fs::remove_dir_all(cluster.node_dir(2)).expect("removed");
    cluster.start_node(2);
    send_all(cluster.node(2), 300..310);
    cluster.converge(LONG, 310);
    assert_holds(&common_history(&cluster), 0..310);
    is_told(&cluster, "node 2 came back with another store");
}

#[test]
fn a_node_put_back_to_an_older_state_gets_the_rest_back_and_the_others_tell() {
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
    is_told(&cluster, "node 2 came back with 300 entries fewer than it had");
}

#[test]
fn of_two_nodes_with_copies_of_one_store_the_later_one_takes_another_name() {
    let mut cluster = Cluster::start(2);
    send_all(cluster.node(1), 0..100);
    cluster.converge(LONG, 100);
    cluster.stop(1);
    let copy = cluster.node_dir(2);
    copy_dir(&cluster.node_dir(1), &copy);
    cluster.start_node(1);
    let third = cluster.join(&[0, 1]);
    send_all(cluster.node(1), 100..200);
    eventually_blocking(LONG, "the copy to take messages of its own", || {
        let told = told(&cluster);
        // Only then: it is ready also before it has met the other.
        let ready = crate::support::http::get(cluster.node(third), "/readyz").expect("answered");
        if told.contains("took a new name") && ready.status() == 200 { Ok(()) } else { Err(told) }
    });
    send_all(cluster.node(third), 200..300);
    cluster.converge(LONG, 300);
    assert_holds(&common_history(&cluster), 0..300);
}
