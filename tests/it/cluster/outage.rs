//! Most of the network is down or silent: the remaining nodes store and list, and no request waits for the others.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use crate::support::address::{Blackhole, free_addr};
use crate::support::cluster::Cluster;
use crate::support::http::{self, Connection};
use crate::support::measure::{self, percentile};
use crate::support::messages::{Sent, common_history, numbered, outcome, parse};
use crate::support::process::{Finished, run};

const LONG: Duration = Duration::from_secs(60);
/// A command must end within this although most of the network is down. Takes about a second on an idle machine.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(4);

/// Runs a client command with these servers. Fails the test if it takes longer than `COMMAND_TIME_MAX`.
#[track_caller]
fn cli(cluster: &Cluster, servers: &[SocketAddr], args: &[&str]) -> Finished {
    let mut command = cluster.command();
    for server in servers {
        command.args(["--server", &server.to_string()]);
    }
    command.args(args);
    let began = Instant::now();
    let done = run(command, "");
    assert!(began.elapsed() < COMMAND_TIME_MAX, "{args:?} took {:?}: {done:?}", began.elapsed());
    done
}

fn nodes(cluster: &Cluster) -> Vec<SocketAddr> {
    (0..cluster.count()).map(|i| cluster.node(i)).collect()
}

#[test]
fn send_and_list_work_with_three_of_four_nodes_down() {
    let mut cluster = Cluster::start_with_proxy(4);
    let (proxy, nodes) = ([cluster.proxy()], nodes(&cluster));
    let mut sent = Vec::new();
    for survivor in [3, 0, 1] {
        cluster.start_all();
        for i in (0..4).filter(|i| *i != survivor) {
            cluster.kill9(i);
        }
        for (route, servers) in [("through the proxy", &proxy[..]), ("directly", &nodes[..])] {
            let text = format!("node {survivor} alone, {route}");
            let done = cli(&cluster, servers, &["send", "--from", "a", "--to", "b", &text]);
            assert_eq!(done.code, Some(0), "{text}: {done:?}");
            let listed = cli(&cluster, servers, &["list", "--text", &text, "-o", "ndjson"]);
            assert_eq!(listed.code, Some(0), "{text}: {listed:?}");
            let listed: serde_json::Value = serde_json::from_str(&listed.stdout).expect("one message");
            assert_eq!(
                (&listed["text"], listed["id"].as_str()),
                (&text.as_str().into(), done.stdout.lines().next())
            );
            let status = cli(&cluster, servers, &["status", "--check"]);
            assert_eq!(status.code, Some(3), "{text}: {status:?}");
            assert!(status.stdout.contains("1 of 4 nodes up, writable"), "{status:?}");
            sent.push(text);
        }
    }
    cluster.start_all();
    cluster.converge(LONG, sent.len() as u64);
    let mut texts: Vec<_> = parse(&common_history(&cluster)).iter().map(|m| m["text"].clone()).collect();
    texts.sort_by_key(ToString::to_string);
    sent.sort();
    assert_eq!(texts, sent);
}

#[test]
fn commands_exit_soon_with_code_5_and_advice_if_all_nodes_are_down() {
    let mut cluster = Cluster::start_with_proxy(4);
    let (proxy, nodes) = ([cluster.proxy()], nodes(&cluster));
    for i in 0..4 {
        cluster.kill9(i);
    }
    let send = ["send", "--from", "a", "--to", "b", "hi"];
    let mut slowest = Duration::ZERO;
    for (route, servers) in [("through the proxy", &proxy[..]), ("directly", &nodes[..])] {
        for args in [&send[..], &["list"], &["status"]] {
            let began = Instant::now();
            let done = cli(&cluster, servers, args);
            slowest = slowest.max(began.elapsed());
            assert_eq!((done.code, done.stdout.as_str()), (Some(5), ""), "{args:?} {route}: {done:?}");
            for part in ["chatchain up", &nodes[0].to_string()] {
                assert!(done.stderr.contains(part), "{args:?} {route} does not say {part}: {}", done.stderr);
            }
        }
    }
    let began = Instant::now();
    let answer = http::post_json(cluster.proxy(), "/messages", &numbered(1)).expect("answered");
    assert!(began.elapsed() < COMMAND_TIME_MAX, "{:?}", began.elapsed());
    assert_eq!((answer.status(), &answer.json()["code"]), (503, &"no_node_available".into()));
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    measure::say(&format!("all four nodes down: the slowest of six commands ended after {slowest:.1?}"));
}

#[test]
fn sends_never_wait_for_a_peer() {
    const SENDS: u64 = 1_000;
    // Peers that refuse connections, that do not answer at all, and that accept a connection and send nothing.
    let holes: Vec<_> = (0..3).map(|_| Blackhole::open()).collect();
    let silent: Vec<_> = (0..3).map(|_| TcpListener::bind(free_addr()).expect("a free address")).collect();
    let silent = silent.iter().map(|listener| (listener, listener.local_addr().expect("bound")));
    let (_listening, silent): (Vec<_>, Vec<_>) = silent.unzip();
    let kinds = [
        ("no peers", vec![]),
        ("absent peers", (0..3).map(|_| free_addr()).collect()),
        ("blackholed peers", holes.iter().map(|hole| hole.addr).collect()),
        ("silent peers", silent),
    ];
    let mut cluster = Cluster::prepare(0);
    let mut targets: Vec<_> = kinds
        .into_iter()
        .map(|(kind, peers)| {
            let node = cluster.join_peers(peers);
            let addr = cluster.node(node);
            (kind, addr, Connection::open(addr).expect("connected"), Vec::new())
        })
        .collect();
    // In turn, so that other load on the machine affects all targets alike.
    for number in 0..SENDS {
        let body = numbered(number).to_string().into_bytes();
        for (kind, addr, connection, times) in &mut targets {
            let request =
                http::encode(*addr, "POST", "/messages", &[("content-type", "application/json")], &body);
            let began = Instant::now();
            connection.send(&request).expect("sent");
            let answer = connection.receive("POST").expect("answered");
            times.push(began.elapsed());
            assert_eq!(outcome(&answer), Sent::New, "{kind}");
        }
    }
    let figures: Vec<_> = targets
        .iter()
        .map(|(kind, _, _, times)| (*kind, [0.5, 0.99, 1.0].map(|share| percentile(times, share))))
        .collect();
    measure::say(&format!("latency of {SENDS} sends, p50 p99 max: {figures:.1?}"));
    let [p50, p99, _] = figures[0].1;
    for (kind, [median, tail, worst]) in &figures {
        assert!(*median < p50.mul_f64(1.5) + Duration::from_millis(1), "{kind}: {figures:?}");
        assert!(*tail < p99.mul_f64(3.0) + Duration::from_millis(20), "{kind}: {figures:?}");
        assert!(*worst < Duration::from_secs(2), "{kind}: {figures:?}");
    }
}
