//! Who belongs to the network: members that spread, stay, move, are replaced, share a number, and are forgotten.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::cluster::{Cluster, copy_dir};
use crate::support::eventually::eventually_blocking;
use crate::support::http::{self, Response};
use crate::support::messages::{assert_holds, common_history, numbered, send_all};
use crate::support::servers::{JSON, check_refusal, get, post};

const LONG: Duration = Duration::from_secs(60);

/// The peers that a node shows: number, address, state.
fn peers(status: &Value) -> Vec<(u64, String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let peer =
        |peer: &Value| (peer["node_id"].as_u64().unwrap_or(99), text(&peer["address"]), text(&peer["state"]));
    let mut peers: Vec<_> = status["peers"].as_array().expect("an array").iter().map(peer).collect();
    peers.sort();
    peers
}

/// Waits until every node that is up shows exactly these others, by number and whether they are up.
#[track_caller]
fn is_shown(cluster: &Cluster, nodes: &[(u64, bool)]) {
    eventually_blocking(LONG, &format!("everybody to show {nodes:?}"), || {
        let statuses = cluster.statuses();
        let fits = |status: &Value| {
            let own = status["node_id"].as_u64().expect("a number");
            let want: Vec<_> = nodes.iter().filter(|(id, _)| *id != own).copied().collect();
            let shown: Vec<_> = peers(status).into_iter().map(|(id, _, state)| (id, state == "up")).collect();
            shown == want
        };
        if statuses.iter().all(fits) { Ok(()) } else { Err(statuses.iter().map(peers).collect::<Vec<_>>()) }
    });
}

fn all_up(n: u64) -> Vec<(u64, bool)> {
    (0..n).map(|id| (id, true)).collect()
}

/// Nodes of which each knows only the one before it.
#[track_caller]
fn chain(n: usize) -> Cluster {
    let mut cluster = Cluster::prepare(0);
    cluster.join(&[]);
    for i in 1..n {
        cluster.join(&[i - 1]);
    }
    cluster
}

fn forget(addr: SocketAddr, node: u64) -> Response {
    http::request(addr, "DELETE", &format!("/nodes/{node}"), &[], b"").expect("an answer")
}

fn acks_all(addr: SocketAddr, number: u64) -> Response {
    post(addr, "/messages?acks=all&timeout=20s", &[JSON], numbered(number).to_string())
}

#[test]
fn one_known_peer_is_enough_and_who_was_met_is_known_after_a_restart() {
    let mut cluster = chain(5);
    is_shown(&cluster, &all_up(5));
    // None of the peers of the ends is configured there, so they are known from their stores.
    send_all(cluster.node(4), 0..50);
    cluster.converge(LONG, 50);
    (0..5).for_each(|i| cluster.stop(i));
    for i in [0, 4] {
        cluster.start_node(i);
    }
    is_shown(&cluster, &[(0, true), (1, false), (2, false), (3, false), (4, true)]);
    send_all(cluster.node(0), 50..100);
    cluster.converge(LONG, 100);
    cluster.start_all();
    is_shown(&cluster, &all_up(5));
    cluster.converge(LONG, 100);
    assert_holds(&common_history(&cluster), 0..100);
    let sent = acks_all(cluster.node(2), 100);
    assert_eq!((sent.status(), sent.json()["durable_on"].as_array().map(Vec::len)), (201, Some(5)));
    let network = get(cluster.node(3), "/network").json();
    assert_eq!((&network["total"], &network["up"]), (&json!(5), &json!(5)), "{network}");
}

#[test]
fn a_node_that_moved_is_found_at_its_new_address() {
    let mut cluster = chain(3);
    is_shown(&cluster, &all_up(3));
    cluster.stop(2);
    let from = cluster.node_dir(2);
    let moved = cluster.move_node(2);
    assert!(from.exists());
    is_shown(&cluster, &all_up(3));
    for status in &cluster.statuses()[..2] {
        let shown = peers(status).into_iter().find(|(id, ..)| *id == 2).expect("shown once");
        assert_eq!(shown.1, moved.to_string());
    }
    send_all(cluster.node(0), 0..10);
    cluster.converge(LONG, 10);
}

/// The others were told its old address by their configuration, and ask there in vain.
#[test]
fn a_configured_node_that_moved_is_shown_once() {
    let mut cluster = Cluster::start(3);
    is_shown(&cluster, &all_up(3));
    cluster.kill9(2);
    let moved = cluster.move_node(2).to_string();
    is_shown(&cluster, &all_up(3));
    eventually_blocking(LONG, "its new address", || {
        cluster.statuses()[..2].iter().all(|status| peers(status).iter().any(|(_, addr, _)| *addr == moved))
    });
    assert_eq!(acks_all(cluster.node(0), 1).status(), 201);
    // Nobody answers at the address that is configured for it, which says nothing of who that was.
    cluster.kill9(0);
    cluster.start_node(0);
    is_shown(&cluster, &all_up(3));
    assert_eq!(acks_all(cluster.node(0), 2).status(), 201);
    cluster.kill9(2);
    is_shown(&cluster, &[(0, true), (1, true), (2, false)]);
    assert_eq!(forget(cluster.node(1), 2).status(), 200);
    is_shown(&cluster, &all_up(2));
    cluster.kill9(0);
    cluster.start_node(0);
    is_shown(&cluster, &all_up(2));
}

#[test]
fn a_wiped_node_is_the_same_member_with_another_store() {
    let mut cluster = chain(3);
    send_all(cluster.node(2), 0..10);
    is_shown(&cluster, &all_up(3));
    cluster.converge(LONG, 10);
    cluster.kill9(2);
    std::fs::remove_dir_all(cluster.node_dir(2)).expect("removed");
    cluster.start_node(2);
    is_shown(&cluster, &all_up(3));
    cluster.converge(LONG, 10);
    assert_eq!(acks_all(cluster.node(0), 10).status(), 201);
}

/// Says something to a node in the name of a store of another one.
#[track_caller]
fn speak_as(to: SocketAddr, node: u16, opened: [u8; 16], address: SocketAddr) {
    let address = address.to_string();
    let network = blake3::hash(b"chatchain");
    let length = u8::try_from(address.len()).expect("short");
    let parts: [&[u8]; 10] = [
        b"ChSy",
        &1_u16.to_be_bytes(),
        &[0],
        &network.as_bytes()[..8],
        &node.to_be_bytes(),
        &[1; 16],
        &opened,
        &[length],
        address.as_bytes(),
        &[0; 16],
    ];
    let answer = post(to, "/sync", &[("content-type", "application/octet-stream")], parts.concat());
    assert_eq!(answer.status(), 200, "{}", answer.text());
}

/// Its exchanges with us are enough, so it is no news each second that ours with it fail.
#[test]
fn of_a_peer_that_can_only_speak_to_us_the_log_complains_once() {
    let mut cluster = chain(1);
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let addr = mute.local_addr().expect("is bound");
    for _ in 0..5 {
        speak_as(cluster.node(0), 7, [0x11; 16], addr);
        drop(mute.accept().expect("it tries to exchange"));
    }
    let complaints = cluster.process(0).stderr().matches("exchanges fail").count();
    assert_eq!(complaints, 1, "{}", cluster.process(0).stderr());
}

/// Openings are ordered by the clock of their time, and that one was ahead.
#[test]
fn a_store_opened_by_a_later_clock_is_replaced_all_the_same() {
    let mut cluster = chain(3);
    is_shown(&cluster, &all_up(3));
    cluster.kill9(2);
    speak_as(cluster.node(1), 2, [0xee; 16], cluster.node(2));
    eventually_blocking(LONG, "both to hear of it", || {
        cluster.statuses().iter().all(|status| peers(status).iter().any(|(id, _, up)| *id == 2 && up != "up"))
    });
    cluster.start_node(2);
    is_shown(&cluster, &all_up(3));
    assert_eq!(acks_all(cluster.node(0), 1).status(), 201);
    (0..3).for_each(|i| cluster.kill9(i));
    cluster.start_all();
    is_shown(&cluster, &all_up(3));
    assert_eq!(acks_all(cluster.node(2), 2).status(), 201);
}

/// Another machine was given its address, or it moved there itself and nobody has heard from it since.
#[test]
fn who_answers_at_the_address_of_another_node_is_not_taken_for_it() {
    let cluster = chain(2);
    is_shown(&cluster, &all_up(2));
    speak_as(cluster.node(0), 7, [0x11; 16], cluster.node(1));
    let want = [(0, true), (1, true), (7, false)];
    is_shown(&cluster, &want);
    for i in 0..2 {
        let network = get(cluster.node(i), "/network").json();
        let row = |row: &Value| (row["node_id"].as_u64().unwrap_or(99), row["state"] == "up");
        let rows: Vec<_> = network["nodes"].as_array().expect("rows").iter().map(row).collect();
        assert_eq!((rows.as_slice(), &network["up"]), (&want[..], &json!(2)), "{network}");
        assert!(network["nodes"][2]["error"].to_string().contains("node 1 answers at"), "{network}");
    }
}

/// Both would be the same member, and neither hears of the other's address but by hearsay.
#[test]
fn a_copy_of_a_running_node_with_its_number_is_reported_too() {
    let mut cluster = chain(2);
    is_shown(&cluster, &all_up(2));
    cluster.stop(1);
    let place = cluster.data_dir().join("place-2").join("node-1");
    copy_dir(&cluster.node_dir(1), &place);
    cluster.start_node(1);
    is_shown(&cluster, &all_up(2));
    assert_eq!(cluster.join_as(1, &[0]), 2);
    eventually_blocking(LONG, "both to be named", || {
        let told = get(cluster.node(0), "/nodes").json()["warnings"].to_string();
        if told.contains("more than one node 1") { Ok(()) } else { Err(told) }
    });
}

#[test]
fn two_live_nodes_of_one_number_are_reported_with_both_addresses() {
    let mut cluster = chain(2);
    let other = cluster.join_as(1, &[0]);
    let (first, second) = (cluster.node(1).to_string(), cluster.node(other).to_string());
    for path in ["/nodes", "/network"] {
        eventually_blocking(LONG, "both to be named", || {
            let told = get(cluster.node(0), path).json()["warnings"].to_string();
            let named =
                told.contains("more than one node 1") && told.contains(&first) && told.contains(&second);
            if named { Ok(()) } else { Err(told) }
        });
    }
}

#[test]
fn a_forgotten_node_is_gone_everywhere_until_it_speaks_again() {
    let mut cluster = chain(4);
    cluster.start_proxy();
    is_shown(&cluster, &all_up(4));
    send_all(cluster.node(3), 0..10);
    cluster.converge(LONG, 10);
    check_refusal("up", &forget(cluster.node(0), 3), 409, "node_is_up", "node 3 is up");
    check_refusal("itself", &forget(cluster.node(0), 0), 409, "node_is_up", "node 0 is up");
    check_refusal("nobody", &forget(cluster.node(0), 77), 404, "not_found", "node 77");
    check_refusal("no number", &forget_path(cluster.node(0), "/nodes/x"), 404, "not_found", "`x`");
    cluster.kill9(3);
    is_shown(&cluster, &[(0, true), (1, true), (2, true), (3, false)]);
    let below = post(cluster.node(0), "/messages?acks=all&timeout=100ms", &[JSON], numbered(10).to_string());
    assert_eq!(below.status(), 202);

    let done = cluster.cli(&["forget", "--node-id", "3"]);
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "node 3 is forgotten\n"), "{done:?}");
    is_shown(&cluster, &all_up(3));
    let again = forget(cluster.node(1), 3);
    assert_eq!((again.status(), again.json()), (200, json!({ "node_id": 3, "forgotten": true })));
    let sent = acks_all(cluster.node(0), 11);
    assert_eq!((sent.status(), sent.json()["durable_on"].as_array().map(Vec::len)), (201, Some(3)));
    (0..3).for_each(|i| cluster.stop(i));
    (0..3).for_each(|i| cluster.start_node(i));
    is_shown(&cluster, &all_up(3));
    assert_holds(&common_history(&cluster), 0..12);

    cluster.start_node(3);
    is_shown(&cluster, &all_up(4));
    cluster.converge(LONG, 12);
    assert_eq!(acks_all(cluster.node(0), 12).status(), 201);
}

fn forget_path(addr: SocketAddr, path: &str) -> Response {
    http::request(addr, "DELETE", path, &[], b"").expect("an answer")
}

/// It was only out of reach, and does not know that it was forgotten.
#[test]
fn a_node_that_was_forgotten_while_it_ran_says_that_it_is_there() {
    let mut cluster = chain(3);
    is_shown(&cluster, &all_up(3));
    cluster.process(2).freeze();
    eventually_blocking(LONG, "it to be missed", || {
        let shown = [0, 1].map(|i| peers(&get(cluster.node(i), "/nodes").json()));
        shown.iter().flatten().all(|(id, _, state)| *id != 2 || state != "up")
    });
    assert_eq!(forget(cluster.node(0), 2).status(), 200);
    cluster.process(2).thaw();
    is_shown(&cluster, &all_up(3));
    send_all(cluster.node(2), 0..10);
    cluster.converge(LONG, 10);
}
