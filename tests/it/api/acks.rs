//! Sends with `acks`: which copies they wait for, for how long, and what the answer says.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::cluster::{Cluster, copy_dir};
use crate::support::eventually::eventually_blocking;
use crate::support::http::{self, Connection, Response};
use crate::support::measure;
use crate::support::messages::{id, lines, numbered, send_all};
use crate::support::servers::{JSON, NDJSON, check_refusal, get, post};

const LONG: Duration = Duration::from_secs(60);

fn send(addr: SocketAddr, query: &str, number: u64) -> Response {
    post(addr, &format!("/messages?{query}"), &[JSON], numbered(number).to_string())
}

fn send_lines(addr: SocketAddr, query: &str, numbers: std::ops::Range<u64>) -> Response {
    post(addr, &format!("/messages?{query}"), &[NDJSON], lines(numbers))
}

/// The `durable_on` of an answer, sorted.
fn durable_on(answer: &Response) -> Vec<u64> {
    let mut ids: Vec<u64> = serde_json::from_value(answer.json()["durable_on"].clone()).expect("numbers");
    ids.sort_unstable();
    ids
}

/// The answer has this status and this `durable_on`.
#[track_caller]
fn check(answer: &Response, status: u16, nodes: &[u64]) {
    assert_eq!((answer.status(), durable_on(answer).as_slice()), (status, nodes), "{}", answer.text());
}

/// Nodes that have exchanged with all others, so that each knows what the others hold.
#[track_caller]
fn converged(n: usize) -> Cluster {
    let cluster = Cluster::start(n);
    eventually_blocking(LONG, "all nodes to have exchanged", || {
        let met = |status: &Value| {
            let peers = status["peers"].as_array().expect("an array");
            peers.len() == n - 1 && peers.iter().all(|peer| peer["behind"] == 0 && peer["state"] == "up")
        };
        cluster.statuses().iter().all(met)
    });
    cluster
}

#[test]
fn acks_all_waits_for_every_member_and_a_timeout_gives_202() {
    let mut cluster = converged(3);
    let addr = cluster.node(0);
    check(&send(addr, "acks=all&timeout=20s", 1), 201, &[0, 1, 2]);
    assert!(durable_on(&send(addr, "acks=quorum&timeout=20s", 2)).len() >= 2);
    assert_eq!(send(addr, "acks=3&timeout=20s", 3).status(), 201);
    check_refusal(
        "too many",
        &send(addr, "acks=4", 4),
        400,
        "invalid_query",
        "knows 3 nodes, itself included",
    );
    assert_eq!(get(addr, &format!("/messages/{}", id(4))).status(), 404, "the refused message is not stored");

    cluster.kill9(2);
    let began = Instant::now();
    check(&send(addr, "acks=all&timeout=500ms", 5), 202, &[0, 1]);
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(500) && waited < Duration::from_secs(5), "{waited:?}");
    assert_eq!(send(addr, "acks=quorum&timeout=20s", 6).status(), 201);
    let again = send(addr, "acks=all&timeout=0s", 5);
    check(&again, 202, &[0, 1]);
    assert_eq!(again.json()["duplicate"], true);

    cluster.start_node(2);
    check(&send(addr, "acks=all&timeout=20s", 7), 201, &[0, 1, 2]);
    check(&send(addr, "acks=all&timeout=20s", 5), 200, &[0, 1, 2]);
    check(&get(addr, &format!("/messages/{}", id(5))), 200, &[0, 1, 2]);
}

#[test]
fn a_batch_with_one_line_below_its_acks_gives_202() {
    let mut cluster = converged(2);
    let addr = cluster.node(0);
    let answer = send_lines(addr, "acks=all&timeout=20s", 0..500);
    assert_eq!((answer.status(), &answer.json()["accepted"]), (200, &json!(500)), "{}", answer.text());
    cluster.kill9(1);
    let answer = send_lines(addr, "acks=all&timeout=100ms", 400..600);
    assert_eq!(answer.status(), 202, "{}", answer.text());
    assert_eq!((&answer.json()["accepted"], &answer.json()["duplicates"]), (&json!(100), &json!(100)));
    assert_eq!(
        send_lines(addr, "acks=all&timeout=0s", 0..500).status(),
        200,
        "these lines have all their copies"
    );
    assert_eq!(send_lines(addr, "acks=1", 600..700).status(), 200);
    let refused = post(addr, "/messages?acks=all", &[NDJSON], "{}\n");
    assert_eq!(refused.status(), 200, "nothing was stored, so nothing lacks copies: {}", refused.text());
    cluster.start_node(1);
    assert_eq!(send_lines(addr, "acks=2&timeout=20s", 400..700).status(), 200);
}

/// Each node has accepted the message into its own log, so no single log with it is on both nodes at first.
#[test]
fn durable_on_counts_the_copies_in_every_log() {
    let mut cluster = Cluster::prepare(2);
    for i in [0, 1] {
        cluster.start_node(i);
        assert_eq!(send(cluster.node(i), "acks=1", 1).status(), 201);
        cluster.stop(i);
    }
    cluster.start_all();
    for i in [0, 1] {
        check(&send(cluster.node(i), "acks=all&timeout=20s", 1), 200, &[0, 1]);
        check(&get(cluster.node(i), &format!("/messages/{}", id(1))), 200, &[0, 1]);
    }
}

#[test]
fn durable_on_omits_a_node_that_lost_the_message_in_a_rollback() {
    let mut cluster = converged(2);
    let addr = cluster.node(0);
    check(&send(addr, "acks=all&timeout=20s", 1), 201, &[0, 1]);
    cluster.stop(1);
    let older = cluster.dir().join("older");
    copy_dir(&cluster.node_dir(1), &older);
    cluster.start_node(1);
    check(&send(addr, "acks=all&timeout=20s", 2), 201, &[0, 1]);
    cluster.kill9(1);
    std::fs::remove_dir_all(cluster.node_dir(1)).expect("removed");
    copy_dir(&older, &cluster.node_dir(1));
    // Node 0 is down, so node 1 cannot copy the message back before it reports what it has.
    cluster.kill9(0);
    cluster.start_node(1);
    let lost = get(cluster.node(1), &format!("/messages/{}", id(2)));
    assert_eq!(lost.status(), 404, "{}", lost.text());
    cluster.start_node(0);
    check(&send(addr, "acks=all&timeout=20s", 2), 200, &[0, 1]);
    assert_eq!(
        get(cluster.node(1), &format!("/messages/{}", id(2))).status(),
        200,
        "node 1 has the message again"
    );
}

#[test]
fn a_waiting_send_does_not_delay_a_shutdown() {
    let mut cluster = converged(2);
    let addr = cluster.node(0);
    cluster.kill9(1);
    let waiting = std::thread::spawn(move || send(addr, "acks=all&timeout=20s", 1));
    eventually_blocking(LONG, "the message to be stored", || {
        get(addr, &format!("/messages/{}", id(1))).status() == 200
    });
    let began = Instant::now();
    cluster.stop(0);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    check(&waiting.join().expect("answered"), 202, &[0]);
}

#[test]
fn send_exits_with_code_6_below_the_requested_acks() {
    let mut cluster = converged(2);
    let send = |cluster: &Cluster, acks: &str| {
        cluster.cli(&["send", "--from", "a", "--to", "b", "--acks", acks, "hi"])
    };
    assert_eq!(send(&cluster, "all").code, Some(0));
    cluster.kill9(1);
    let below = send(&cluster, "quorum");
    assert_eq!((below.code, below.stdout.trim().len()), (Some(6), 36), "{below:?}");
    assert!(below.stderr.contains("fewer nodes than asked"), "{below:?}");
    let line = r#"{"sender":"a","recipient":"b","text":"c","timestamp":1}"#;
    let file = cluster.cli_with_input(&["send", "--file", "-", "--acks", "2"], line.as_bytes());
    assert_eq!(file.code, Some(6), "{file:?}");
    assert_eq!(file.stdout, "1 sent: 1 accepted, 0 duplicates, 0 rejected\n");
    let many = send(&cluster, "9");
    assert_eq!(many.code, Some(1), "{many:?}");
    assert!(many.stderr.contains("knows 2 nodes"), "{many:?}");
}

/// A node pushes new entries at once, so a quorum costs one exchange.
#[test]
fn a_quorum_takes_about_one_extra_round_trip() {
    const TIMES: u64 = 200;
    let cluster = converged(3);
    let addr = cluster.node(0);
    send_all(addr, 1_000..1_100);
    let timed = |acks: &str, numbers: std::ops::Range<u64>| {
        let mut connection = Connection::open(addr).expect("connected");
        let times: Vec<Duration> = numbers
            .map(|number| {
                let path = format!("/messages?acks={acks}&timeout=20s");
                let body = numbered(number).to_string();
                let request = http::encode(
                    addr,
                    "POST",
                    &path,
                    &[("content-type", "application/json")],
                    body.as_bytes(),
                );
                let began = Instant::now();
                connection.send(&request).expect("sent");
                assert_eq!(connection.receive("POST").expect("answered").status(), 201);
                began.elapsed()
            })
            .collect();
        measure::percentile(&times, 0.5)
    };
    let (one, quorum, all) =
        (timed("1", 0..TIMES), timed("quorum", TIMES..2 * TIMES), timed("all", 2 * TIMES..3 * TIMES));
    measure::say(&format!(
        "median of {TIMES} sends one after the other, of three nodes: acks=1 {one:.1?}, quorum {quorum:.1?}, all {all:.1?}"
    ));
    assert!(
        quorum < Duration::from_millis(500),
        "a quorum must not wait for the sync timer of 1 s: {quorum:?}"
    );
}
