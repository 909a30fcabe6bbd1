//! Exchanges between nodes: all nodes end with the same messages, one per id, however the messages reach them.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::http::{self, Connection};
use crate::support::measure;
use crate::support::messages::{
    Sent, assert_holds, common_history, history, id, listing, numbered, outcome, parse, send, send_all,
};

/// For conditions that normally hold after one or two exchanges, one second apart.
const LONG: Duration = Duration::from_secs(60);
/// A node that missed 100,000 messages must have converged after this. Takes seconds on an idle machine.
const CATCH_UP: Duration = Duration::from_secs(60);

/// Two nodes that have not met: the first holds what `first` sends and is down, the second is up and empty.
fn unmet_nodes(first: impl Fn(&Cluster)) -> Cluster {
    let mut cluster = Cluster::prepare(2);
    cluster.start_node(0);
    first(&cluster);
    cluster.kill9(0);
    cluster.start_node(1);
    cluster
}

fn with_text(number: u64, text: &str) -> Value {
    let mut message = numbered(number);
    message["text"] = text.into();
    message
}

/// A node's answer to `GET /messages/{id}` without `durable_on`, which differs between nodes.
fn look_up(cluster: &Cluster, i: usize, number: u64) -> Value {
    let answer = http::get(cluster.node(i), &format!("/messages/{}", id(number))).expect("answered");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let mut message = answer.json();
    message.as_object_mut().expect("an object").remove("durable_on");
    message
}

#[test]
fn the_same_id_sent_to_two_nodes_that_then_sync_is_one_message() {
    let mut cluster = unmet_nodes(|cluster| assert_eq!(send(cluster.node(0), &numbered(1)), Sent::New));
    assert_eq!(send(cluster.node(1), &numbered(1)), Sent::New, "node 1 has not seen node 0's copy");
    cluster.start_node(0);
    cluster.converge(LONG, 1);
    for (i, status) in cluster.statuses().iter().enumerate() {
        assert_eq!((&status["origins"], &status["conflicts"]), (&json!(2), &json!(0)), "both logs: {status}");
        assert_eq!(look_up(&cluster, i, 1), look_up(&cluster, 0, 1));
        assert_eq!(send(cluster.node(i), &numbered(1)), Sent::Duplicate);
        assert_holds(&listing(cluster.node(i), "?sender=user1"), [1]);
        assert_holds(&listing(cluster.node(i), "?limit=5"), [1]);
    }
    assert_holds(&common_history(&cluster), [1]);
    assert_eq!(cluster.converge(LONG, 1), cluster.converge(LONG, 1), "reading changed nothing");
}

#[test]
fn the_same_id_sent_to_all_four_nodes_at_the_same_moment_is_one_message() {
    const TIMES: u64 = 1_000;
    let cluster = Cluster::start(4);
    let together = Barrier::new(4);
    let send_all_times = |i: usize| {
        let addr = cluster.node(i);
        let mut connection = Connection::open(addr).expect("connected");
        let mut new = 0;
        for number in 0..TIMES {
            let body = numbered(number).to_string();
            let headers = [("content-type", "application/json")];
            let request = http::encode(addr, "POST", "/messages", &headers, body.as_bytes());
            together.wait();
            connection.send(&request).expect("sent");
            match outcome(&connection.receive("POST").expect("answered")) {
                Sent::New => new += 1,
                Sent::Duplicate => {}
                Sent::Conflict => panic!("the same content is no conflict"),
            }
        }
        new
    };
    let accepted: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|i| scope.spawn(move || send_all_times(i))).collect();
        threads.into_iter().map(|thread| thread.join().expect("answered")).collect()
    });
    let all: u64 = accepted.iter().sum();
    assert!(all > TIMES, "no two nodes accepted the same id, so nothing was tested");
    cluster.converge(LONG, TIMES);
    assert_holds(&common_history(&cluster), 0..TIMES);
    for status in cluster.statuses() {
        assert_eq!(status["conflicts"], 0, "{status}");
    }
    measure::say(&format!("{TIMES} ids sent to four nodes at once: accepted {accepted:?}, listed once each"));
}

#[test]
fn both_contents_of_a_conflicting_id_are_kept_listed_and_counted_on_both_nodes() {
    let mut cluster = unmet_nodes(|cluster| {
        send_all(cluster.node(0), 0..10);
        assert_eq!(send(cluster.node(0), &with_text(77, "one")), Sent::New);
    });
    assert_eq!(send(cluster.node(1), &with_text(77, "other")), Sent::New);
    cluster.start_node(0);
    cluster.converge(LONG, 12);
    let all = parse(&common_history(&cluster));
    let texts: Vec<_> = all.iter().filter(|message| message["id"] == id(77).to_string()).collect();
    assert_eq!(texts.iter().map(|message| &message["text"]).collect::<Vec<_>>(), ["one", "other"]);
    for i in 0..2 {
        let addr = cluster.node(i);
        assert_eq!(cluster.statuses()[i]["conflicts"], 1);
        assert_eq!(
            &look_up(&cluster, i, 77),
            texts[0],
            "an id stands for its first message in display order"
        );
        assert_eq!(send(addr, &with_text(77, "one")), Sent::Duplicate, "a retry of either");
        assert_eq!(send(addr, &with_text(77, "other")), Sent::Duplicate, "a retry of either");
        assert_eq!(send(addr, &with_text(77, "third")), Sent::Conflict);
    }
    cluster.converge(LONG, 12);
}

#[test]
fn a_node_that_missed_100_000_messages_catches_up_within_seconds() {
    let mut cluster = Cluster::start(3);
    send_all(cluster.node(2), 0..1_000);
    cluster.converge(LONG, 1_000);
    cluster.kill9(2);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (i, numbers) in [(0, 1_000..51_000), (1, 51_000..101_000)] {
            let addr = cluster.node(i);
            scope.spawn(move || send_all(addr, numbers));
        }
    });
    cluster.converge(CATCH_UP, 101_000);
    let sent = began.elapsed();
    cluster.start_node(2);
    let began = Instant::now();
    cluster.converge(CATCH_UP, 101_000);
    measure::say(&format!(
        "100,000 messages sent to two of three nodes in {sent:.1?}; the third converged {:.1?} after its start",
        began.elapsed()
    ));
    assert_holds(&common_history(&cluster), 0..101_000);
}

#[test]
fn a_new_node_with_one_peer_converges_with_all_nodes() {
    let mut cluster = Cluster::start(4);
    for i in 0..4 {
        let from = i as u64 * 100;
        send_all(cluster.node(i), from..from + 100);
    }
    let fifth = cluster.join(&[2]);
    cluster.converge(LONG, 400);
    send_all(cluster.node(fifth), 400..450);
    send_all(cluster.node(0), 450..500);
    cluster.converge(LONG, 500);
    assert_holds(&common_history(&cluster), 0..500);
    // The survivors hold all messages, also those that the killed nodes accepted.
    cluster.kill9(2);
    cluster.kill9(0);
    assert_holds(&history(cluster.node(fifth)), 0..500);
    assert_holds(&history(cluster.node(3)), 0..500);
}

#[test]
fn nodes_in_a_line_relay_both_ways_and_after_the_middle_one_returns() {
    let mut cluster = Cluster::prepare(0);
    let a = cluster.join(&[]);
    let b = cluster.join(&[a]);
    let c = cluster.join(&[b]);
    send_all(cluster.node(a), 0..100);
    send_all(cluster.node(c), 100..200);
    cluster.converge(LONG, 200);
    // Both ends accept messages while the middle node is down.
    cluster.kill9(b);
    send_all(cluster.node(a), 200..300);
    send_all(cluster.node(c), 300..400);
    cluster.start_node(b);
    cluster.converge(LONG, 400);
    assert_holds(&common_history(&cluster), 0..400);
}

/// One peer's answer never ends, another peer's answer stalls after its first byte. Status shows the error of each.
#[test]
fn endless_and_stalled_answers_of_peers_delay_no_other_exchange() {
    let listen = || std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let (endless, stuck) = (listen(), listen());
    let bad = [&endless, &stuck].map(|listener| listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n\r\n";
        for mut stream in endless.incoming().flatten() {
            drop(stream.read(&mut [0; 1024])); // an answer before the request would be another fault
            let mut piece: &[u8] = head;
            while stream.write_all(piece).is_ok() {
                piece = &[7; 8 * 1024];
            }
        }
    });
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in stuck.incoming().flatten() {
            drop(stream.read(&mut [0; 1024])); // as above
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n7"));
            kept.push(stream);
        }
    });
    let mut cluster = Cluster::prepare(0);
    let first = cluster.join(&[]);
    let peers = bad.into_iter().chain([cluster.node(first)]).collect();
    let second = cluster.join_peers(peers);
    send_all(cluster.node(first), 0..1_000);
    cluster.converge(Duration::from_secs(10), 1_000);
    eventually_blocking(Duration::from_secs(30), "status to show the error of each peer", || {
        let status = &cluster.statuses()[second];
        let peers = status["peers"].as_array().expect("peers").iter();
        let why = |addr: SocketAddr| {
            let peer = peers.clone().find(|peer| peer["address"] == addr.to_string());
            peer.and_then(|peer| peer["error"].as_str()).unwrap_or_default().to_owned()
        };
        let [endless, stuck] = bad.map(why);
        if endless.contains("is not an exchange") && stuck.contains("no answer within") {
            Ok(())
        } else {
            Err((endless, stuck))
        }
    });
}
