//! Membership: members become known to all nodes, survive restarts, move, are replaced, share a node id, are forgotten.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::cluster::{Cluster, copy_dir};
use crate::support::eventually::eventually_blocking;
use crate::support::http::{self, Response};
use crate::support::messages::{assert_holds, common_history, numbered, send_all};
use crate::support::servers::{JSON, check_refusal, get, post};

const LONG: Duration = Duration::from_secs(60);

/// The peers in a node's status: node id, address, state.
fn peers(status: &Value) -> Vec<(u64, String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let peer =
        |peer: &Value| (peer["node_id"].as_u64().unwrap_or(99), text(&peer["address"]), text(&peer["state"]));
    let mut peers: Vec<_> = status["peers"].as_array().expect("an array").iter().map(peer).collect();
    peers.sort();
    peers
}

/// Waits until every running node shows exactly these members besides itself: node id, and whether the member is up.
#[track_caller]
fn wait_for_members(cluster: &Cluster, nodes: &[(u64, bool)]) {
    eventually_blocking(LONG, &format!("all nodes to show {nodes:?}"), || {
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

/// Nodes each of which has only the node before it as a configured peer.
#[track_caller]
fn start_in_line(n: usize) -> Cluster {
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
fn one_configured_peer_is_enough_and_members_survive_a_restart() {
    let mut cluster = start_in_line(5);
    wait_for_members(&cluster, &all_up(5));
    // Nodes 0 and 4 are not configured as peers of each other, so they know each other only from their stores.
    send_all(cluster.node(4), 0..50);
    cluster.converge(LONG, 50);
    (0..5).for_each(|i| cluster.stop(i));
    for i in [0, 4] {
        cluster.start_node(i);
    }
    wait_for_members(&cluster, &[(0, true), (1, false), (2, false), (3, false), (4, true)]);
    send_all(cluster.node(0), 50..100);
    cluster.converge(LONG, 100);
    cluster.start_all();
    wait_for_members(&cluster, &all_up(5));
    cluster.converge(LONG, 100);
    assert_holds(&common_history(&cluster), 0..100);
    let sent = acks_all(cluster.node(2), 100);
    assert_eq!((sent.status(), sent.json()["durable_on"].as_array().map(Vec::len)), (201, Some(5)));
    let network = get(cluster.node(3), "/network").json();
    assert_eq!((&network["total"], &network["up"]), (&json!(5), &json!(5)), "{network}");
}

#[test]
fn a_node_that_moved_is_found_at_its_new_address() {
    let mut cluster = start_in_line(3);
    wait_for_members(&cluster, &all_up(3));
    cluster.stop(2);
    let from = cluster.node_dir(2);
    let moved = cluster.move_node(2);
    assert!(from.exists());
    wait_for_members(&cluster, &all_up(3));
    for status in &cluster.statuses()[..2] {
        let shown = peers(status).into_iter().find(|(id, ..)| *id == 2).expect("shown once");
        assert_eq!(shown.1, moved.to_string());
    }
    send_all(cluster.node(0), 0..10);
    cluster.converge(LONG, 10);
}

/// The other nodes have the old address in their configuration, where no node answers any more.
#[test]
fn a_configured_node_that_moved_is_shown_once() {
    let mut cluster = Cluster::start(3);
    wait_for_members(&cluster, &all_up(3));
    cluster.kill9(2);
    let moved = cluster.move_node(2).to_string();
    wait_for_members(&cluster, &all_up(3));
    eventually_blocking(LONG, "the new address", || {
        cluster.statuses()[..2].iter().all(|status| peers(status).iter().any(|(_, addr, _)| *addr == moved))
    });
    assert_eq!(acks_all(cluster.node(0), 1).status(), 201);
    // After a restart node 0 cannot tell which node its unreachable configured address belongs to.
    cluster.kill9(0);
    cluster.start_node(0);
    wait_for_members(&cluster, &all_up(3));
    assert_eq!(acks_all(cluster.node(0), 2).status(), 201);
    cluster.kill9(2);
    wait_for_members(&cluster, &[(0, true), (1, true), (2, false)]);
    assert_eq!(forget(cluster.node(1), 2).status(), 200);
    wait_for_members(&cluster, &all_up(2));
    cluster.kill9(0);
    cluster.start_node(0);
    wait_for_members(&cluster, &all_up(2));
}

#[test]
fn a_wiped_node_is_the_same_member_with_another_store() {
    let mut cluster = start_in_line(3);
    send_all(cluster.node(2), 0..10);
    wait_for_members(&cluster, &all_up(3));
    cluster.converge(LONG, 10);
    cluster.kill9(2);
    std::fs::remove_dir_all(cluster.node_dir(2)).expect("removed");
    cluster.start_node(2);
    wait_for_members(&cluster, &all_up(3));
    cluster.converge(LONG, 10);
    assert_eq!(acks_all(cluster.node(0), 10).status(), 201);
}

/// Sends a node a sync request with this sender: node id, incarnation id and address.
#[track_caller]
fn send_sync_as(to: SocketAddr, node: u16, opened: [u8; 16], address: SocketAddr) {
    let address = address.to_string();
    let network = blake3::hash(b"chatchain");
    let length = u8::try_from(address.len()).expect("short");
    let parts: [&[u8]; 11] = [
        b"ChSy",
        &2_u16.to_be_bytes(),
        &[0],
        &network.as_bytes()[..8],
        &node.to_be_bytes(),
        &[1; 16],
        &opened,
        &[0; 8],
        &[length],
        address.as_bytes(),
        &[0; 16],
    ];
    let answer = post(to, "/sync", &[("content-type", "application/octet-stream")], parts.concat());
    assert_eq!(answer.status(), 200, "{}", answer.text());
}

/// The peer's own exchanges with the node suffice, so the node does not log every second that its exchanges fail.
#[test]
fn a_peer_that_can_be_reached_in_one_direction_only_is_logged_once() {
    let mut cluster = start_in_line(1);
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let addr = mute.local_addr().expect("is bound");
    let node = cluster.node(0);
    let fail = || {
        send_sync_as(node, 7, [1; 16], addr);
        drop(mute.accept().expect("the node tries to exchange"));
    };
    // Not in the first seconds, in which the peer may still start.
    eventually_blocking(LONG, "a report", || {
        fail();
        cluster.process(0).stderr().contains("exchanges fail")
    });
    (0..5).for_each(|_| fail());
    let complaints = cluster.process(0).stderr().matches("exchanges fail").count();
    assert_eq!(complaints, 1, "{}", cluster.process(0).stderr());
}

/// Incarnations are ordered by the clock at the opening of the store, and the clock of this one was ahead.
#[test]
fn an_incarnation_from_a_clock_ahead_is_replaced() {
    let mut cluster = start_in_line(3);
    wait_for_members(&cluster, &all_up(3));
    cluster.kill9(2);
    let half_a_day_ahead = uuid::Uuid::now_v7().as_u128() + ((12 * 3_600_000) << 80);
    send_sync_as(cluster.node(1), 2, half_a_day_ahead.to_be_bytes(), cluster.node(2));
    eventually_blocking(LONG, "both nodes to see node 2 down", || {
        cluster.statuses().iter().all(|status| peers(status).iter().any(|(id, _, up)| *id == 2 && up != "up"))
    });
    cluster.start_node(2);
    wait_for_members(&cluster, &all_up(3));
    assert_eq!(acks_all(cluster.node(0), 1).status(), 201);
    (0..3).for_each(|i| cluster.kill9(i));
    cluster.start_all();
    wait_for_members(&cluster, &all_up(3));
    assert_eq!(acks_all(cluster.node(2), 2).status(), 201);
}

/// Node 7 announced an address at which node 1 answers: the address was given to another machine, or node 7 has moved.
#[test]
fn a_node_that_answers_at_the_address_of_another_is_not_mistaken_for_it() {
    let cluster = start_in_line(2);
    wait_for_members(&cluster, &all_up(2));
    send_sync_as(cluster.node(0), 7, [1; 16], cluster.node(1));
    let want = [(0, true), (1, true), (7, false)];
    wait_for_members(&cluster, &want);
    for i in 0..2 {
        let network = get(cluster.node(i), "/network").json();
        let row = |row: &Value| (row["node_id"].as_u64().unwrap_or(99), row["state"] == "up");
        let rows: Vec<_> = network["nodes"].as_array().expect("rows").iter().map(row).collect();
        assert_eq!((rows.as_slice(), &network["up"]), (&want[..], &json!(2)), "{network}");
        assert!(network["nodes"][2]["error"].to_string().contains("node 1 answers at"), "{network}");
    }
}

/// The two nodes have the same member id and learn of each other's address only through node 0.
#[test]
fn a_copied_store_that_runs_under_the_same_node_id_is_reported() {
    let mut cluster = start_in_line(2);
    wait_for_members(&cluster, &all_up(2));
    cluster.stop(1);
    let copy = cluster.data_dir().join("instance-2").join("node-1");
    copy_dir(&cluster.node_dir(1), &copy);
    cluster.start_node(1);
    wait_for_members(&cluster, &all_up(2));
    assert_eq!(cluster.join_as(1, &[0]), 2);
    eventually_blocking(LONG, "both nodes to be named", || {
        let warnings = get(cluster.node(0), "/nodes").json()["warnings"].to_string();
        if warnings.contains("more than one node 1") { Ok(()) } else { Err(warnings) }
    });
}

#[test]
fn two_live_nodes_with_one_node_id_are_reported_with_both_addresses() {
    let mut cluster = start_in_line(2);
    let other = cluster.join_as(1, &[0]);
    let (first, second) = (cluster.node(1).to_string(), cluster.node(other).to_string());
    for path in ["/nodes", "/network"] {
        eventually_blocking(LONG, "both nodes to be named", || {
            let warnings = get(cluster.node(0), path).json()["warnings"].to_string();
            let named = warnings.contains("more than one node 1")
                && warnings.contains(&first)
                && warnings.contains(&second);
            if named { Ok(()) } else { Err(warnings) }
        });
    }
}

#[test]
fn a_forgotten_node_is_gone_everywhere_until_it_returns() {
    let mut cluster = start_in_line(4);
    cluster.start_proxy();
    wait_for_members(&cluster, &all_up(4));
    send_all(cluster.node(3), 0..10);
    cluster.converge(LONG, 10);
    check_refusal("up", &forget(cluster.node(0), 3), 409, "node_is_up", "node 3 is up");
    check_refusal("itself", &forget(cluster.node(0), 0), 409, "node_is_up", "node 0 is up");
    check_refusal("unknown", &forget(cluster.node(0), 77), 404, "not_found", "node 77");
    check_refusal("no number", &forget_path(cluster.node(0), "/nodes/x"), 404, "not_found", "`x`");
    cluster.kill9(3);
    wait_for_members(&cluster, &[(0, true), (1, true), (2, true), (3, false)]);
    let below = post(cluster.node(0), "/messages?acks=all&timeout=100ms", &[JSON], numbered(10).to_string());
    assert_eq!(below.status(), 202);

    let done = cluster.cli(&["forget", "--node-id", "3"]);
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "node 3 is forgotten\n"), "{done:?}");
    wait_for_members(&cluster, &all_up(3));
    let again = forget(cluster.node(1), 3);
    assert_eq!(
        (again.status(), again.json()),
        (200, json!({ "node_id": 3, "forgotten": true, "stored": true }))
    );
    let sent = acks_all(cluster.node(0), 11);
    assert_eq!((sent.status(), sent.json()["durable_on"].as_array().map(Vec::len)), (201, Some(3)));
    (0..3).for_each(|i| cluster.stop(i));
    (0..3).for_each(|i| cluster.start_node(i));
    wait_for_members(&cluster, &all_up(3));
    assert_holds(&common_history(&cluster), 0..12);

    cluster.start_node(3);
    wait_for_members(&cluster, &all_up(4));
    cluster.converge(LONG, 12);
    assert_eq!(acks_all(cluster.node(0), 12).status(), 201);
}

fn forget_path(addr: SocketAddr, path: &str) -> Response {
    http::request(addr, "DELETE", path, &[], b"").expect("an answer")
}

/// The node was only unreachable, and does not know that it was forgotten.
#[test]
fn a_node_that_was_forgotten_while_it_ran_rejoins() {
    let mut cluster = start_in_line(3);
    wait_for_members(&cluster, &all_up(3));
    cluster.process(2).freeze();
    eventually_blocking(LONG, "node 2 not to be up", || {
        let shown = [0, 1].map(|i| peers(&get(cluster.node(i), "/nodes").json()));
        shown.iter().flatten().all(|(id, _, state)| *id != 2 || state != "up")
    });
    assert_eq!(forget(cluster.node(0), 2).status(), 200);
    cluster.process(2).thaw();
    wait_for_members(&cluster, &all_up(3));
    send_all(cluster.node(2), 0..10);
    cluster.converge(LONG, 10);
}
