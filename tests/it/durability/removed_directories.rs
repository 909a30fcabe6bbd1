//! Node directories that are removed, replaced or hidden by a mount while the node runs: nothing is acknowledged into
//! files that no path leads to, and no empty store takes the place of one that is gone.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, copy_dir};
use crate::support::eventually::eventually_blocking;
use crate::support::http;
use crate::support::messages::{assert_holds, history, numbered, send, send_all};

const LONG: Duration = Duration::from_secs(60);
/// A removed store is noticed within this time, without a request.
const NOTICE: Duration = Duration::from_secs(1);

/// Waits until the node is not ready, and returns the body of `/readyz`.
#[track_caller]
fn wait_unready(addr: SocketAddr, within: Duration) -> String {
    let began = Instant::now();
    let mut body = String::new();
    eventually_blocking(LONG, "the node to notice", || {
        let answer = http::get(addr, "/readyz").expect("answered");
        answer.text().clone_into(&mut body);
        answer.status() == 503
    });
    assert!(began.elapsed() <= within + Duration::from_millis(500), "{:?}", began.elapsed());
    body
}

#[track_caller]
fn assert_not_stored(addr: SocketAddr, number: u64) {
    let answer = http::post_json(addr, "/messages", &numbered(number)).expect("answered");
    assert_eq!((answer.status(), &answer.json()["code"]), (503, &"storage_failed".into()));
}

#[test]
fn nothing_is_acknowledged_into_a_removed_directory_and_no_store_is_made_in_its_place() {
    let mut cluster = Cluster::start(1);
    let (addr, dir, aside) = (cluster.node(0), cluster.node_dir(0), cluster.dir().join("aside"));
    send_all(addr, 0..100);
    std::fs::rename(&dir, &aside).expect("moved");
    assert_not_stored(addr, 100);
    let gone = "is gone: the directory was removed, or its disk is not mounted";
    eventually_blocking(LONG, "the reason", || {
        let answer = http::get(addr, "/readyz").expect("answered");
        assert_eq!(answer.status(), 503);
        let status = http::get(addr, "/nodes").expect("answered");
        answer.text().contains(gone) && status.text().contains(gone)
    });
    assert!(!dir.exists(), "an empty store would hide the loss");
    std::fs::create_dir(&dir).expect("an empty mount point");
    assert_not_stored(addr, 100);
    let mut attempts = || cluster.process(0).stderr().matches("the store does not open").count();
    let before = attempts();
    eventually_blocking(LONG, "three attempts to open it", || attempts() >= before + 3);
    assert_not_stored(addr, 100);
    assert_eq!(std::fs::read_dir(&dir).expect("a directory").count(), 0, "nothing is made in it");
    std::fs::remove_dir(&dir).expect("removed");
    std::fs::rename(&aside, &dir).expect("moved back");
    cluster.wait_ready(0);
    send(addr, &numbered(100)); // the outcome of the first send is unknown
    assert_holds(&history(addr), 0..101);
    let pid = std::fs::read_to_string(dir.join("pid")).expect("written again");
    assert_eq!(pid.trim(), cluster.process(0).id().to_string());
}

/// A part of a copy looks like a damaged log, from which the intact records would be taken.
#[test]
fn a_log_that_is_copied_back_is_opened_when_it_is_complete() {
    let mut cluster = Cluster::start(1);
    let (addr, dir) = (cluster.node(0), cluster.node_dir(0));
    send_all(addr, 0..2_000);
    let log = dir.join("log.redb");
    let bytes = std::fs::read(&log).expect("reads");
    std::fs::remove_file(&log).expect("removes");
    let mut copy = std::fs::File::create(&log).expect("creates");
    let pieces: Vec<_> = bytes.chunks(bytes.len() / 3).collect();
    for (done, piece) in pieces.iter().enumerate() {
        let mut says = || cluster.process(0).stderr().matches("is being written").count();
        eventually_blocking(LONG, "an attempt to open it", || says() > done);
        copy.write_all(piece).expect("writes");
    }
    cluster.wait_ready(0);
    assert_holds(&history(addr), 0..2_000);
    assert!(!cluster.process(0).stderr().contains("salvag"), "{}", cluster.process(0).stderr());
}

#[test]
fn a_removed_directory_is_noticed_without_a_send_and_a_restart_begins_with_an_empty_store() {
    let mut cluster = Cluster::start(2);
    send_all(cluster.node(0), 0..50);
    cluster.converge(LONG, 50);
    std::fs::remove_dir_all(cluster.node_dir(1)).expect("removed");
    let body = wait_unready(cluster.node(1), NOTICE);
    assert!(body.contains("log.redb was removed or replaced") || body.contains("is gone"), "{body}");
    assert!(!cluster.node_dir(1).join("log.redb").exists());
    cluster.stop(1);
    cluster.start_node(1);
    cluster.converge(LONG, 50);
}

#[test]
fn a_replaced_directory_is_opened_and_gets_from_peers_what_it_lacks() {
    let mut cluster = Cluster::start(2);
    let older = cluster.dir().join("older");
    send_all(cluster.node(1), 0..50);
    cluster.converge(LONG, 50);
    cluster.stop(1);
    copy_dir(&cluster.node_dir(1), &older);
    cluster.start_node(1);
    send_all(cluster.node(1), 50..100);
    cluster.converge(LONG, 100);
    std::fs::rename(cluster.node_dir(1), cluster.dir().join("newer")).expect("moved");
    std::fs::rename(&older, cluster.node_dir(1)).expect("moved");
    wait_unready(cluster.node(1), NOTICE);
    cluster.wait_ready(1);
    send_all(cluster.node(1), 100..110);
    cluster.converge(LONG, 110);
}

#[test]
fn a_removed_index_is_built_again() {
    let mut cluster = Cluster::start(1);
    let addr = cluster.node(0);
    send_all(addr, 0..50);
    std::fs::remove_file(cluster.node_dir(0).join("index.redb")).expect("removed");
    wait_unready(addr, NOTICE);
    cluster.wait_ready(0);
    send_all(addr, 50..60);
    assert_holds(&history(addr), 0..60);
}
