//! The status paths: `/livez`, `/readyz`, `/nodes` and `/network` have the fields of the contract.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::http::post_json;
use crate::support::servers::{Servers, check_refusal, get, keys};

const LONG: Duration = Duration::from_secs(30);
const NODE: [&str; 14] = [
    "node_id",
    "address",
    "version",
    "state",
    "uptime_seconds",
    "messages",
    "digest",
    "origins",
    "conflicts",
    "damaged",
    "unreadable",
    "warnings",
    "peers",
    "scrub",
];
const PEER: [&str; 7] = ["node_id", "address", "state", "last_sync", "rtt_ms", "behind", "error"];
const NETWORK: [&str; 6] = ["nodes", "up", "total", "writable", "converged", "warnings"];
const ROW: [&str; 11] = [
    "node_id",
    "address",
    "state",
    "version",
    "uptime_seconds",
    "messages",
    "behind",
    "digest",
    "last_sync",
    "rtt_ms",
    "error",
];

/// The object at a path. Panics unless it has exactly these fields in this order.
#[track_caller]
fn object(addr: SocketAddr, path: &str, fields: &[&str]) -> Value {
    let answer = get(addr, path);
    assert_eq!(
        (answer.status(), answer.header("content-type")),
        (200, Some("application/json")),
        "{path}: {}",
        answer.text()
    );
    assert_eq!(keys(answer.text()), fields, "{path}");
    answer.json()
}

/// The raw text of the first object in the array of this name.
fn first_of(addr: SocketAddr, path: &str, array: &str) -> String {
    let text = get(addr, path).text().to_owned();
    let (_, rest) = text.split_once(&format!("\"{array}\":[")).expect("the array");
    let end = rest.find('}').expect("objects without objects inside");
    rest[..=end].to_owned()
}

#[track_caller]
fn is_time(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no time"));
    assert!(text.len() == 24 && text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok(), "{text}");
}

#[test]
fn livez_and_readyz_report_liveness_and_readiness() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        object(addr, "/livez", &["live"]);
        assert_eq!(
            object(addr, "/readyz", &["readable", "writable", "reasons"]),
            json!({ "readable": true, "writable": true, "reasons": [] }),
            "{server}"
        );
    }
}

#[test]
fn a_node_describes_itself() {
    let servers = Servers::start();
    let empty = object(servers.node(), "/nodes", &NODE);
    let digest = |status: &Value| status["digest"].as_str().expect("text").to_owned();
    assert!(digest(&empty).len() >= 32 && digest(&empty).bytes().all(|b| b.is_ascii_hexdigit()), "{empty}");
    assert_eq!((&empty["node_id"], &empty["address"]), (&json!(0), &json!(servers.node().to_string())));
    assert_eq!(
        (&empty["state"], &empty["messages"], &empty["origins"]),
        (&json!("up"), &json!(0), &json!(0))
    );
    assert!(empty["uptime_seconds"].is_u64() && empty["version"].is_string(), "{empty}");
    assert_eq!(empty["peers"], json!([]));
    assert_eq!(
        empty["warnings"].as_array().map(Vec::len),
        Some(1),
        "a node without peers warns about it: {empty}"
    );

    servers.store(&json!({ "sender": "a", "recipient": "b", "text": "c" }));
    let one = object(servers.node(), "/nodes", &NODE);
    assert_eq!((&one["messages"], &one["origins"]), (&json!(1), &json!(1)));
    assert_ne!(digest(&one), digest(&empty));
}

#[test]
fn the_proxy_describes_its_upstreams() {
    let mut servers = Servers::start();
    let fields = ["version", "state", "uptime_seconds", "warnings", "upstreams"];
    let upstream = |servers: &Servers| object(servers.proxy(), "/nodes", &fields)["upstreams"][0].clone();
    eventually_blocking(LONG, "the node to be up", || upstream(&servers)["state"] == "up");
    assert_eq!(
        keys(&first_of(servers.proxy(), "/nodes", "upstreams")),
        ["address", "state", "rtt_ms", "error"]
    );
    let up = upstream(&servers);
    assert_eq!((&up["address"], &up["error"]), (&json!(servers.node().to_string()), &Value::Null));
    servers.cluster.kill9(0);
    eventually_blocking(LONG, "the node to be down", || upstream(&servers)["state"] == "down");
    assert!(upstream(&servers)["error"].is_string());
}

#[test]
fn nodes_see_each_other_and_the_network_is_one_row_per_node() {
    let mut cluster = Cluster::start_with_proxy(3);
    post_json(cluster.node(1), "/messages", &json!({ "sender": "a", "recipient": "b", "text": "c" }))
        .expect("stored");
    let digest = cluster.converge(LONG, 1);
    let servers = [cluster.node(0), cluster.node(2), cluster.proxy()];
    for addr in servers {
        let network = eventually_blocking(LONG, "all nodes to be up and converged", || {
            let network = object(addr, "/network", &NETWORK);
            let behind = |row: &Value| row["behind"] == 0 && row["state"] == "up";
            let rows = network["nodes"].as_array().expect("an array");
            if network["converged"] == true && rows.iter().all(behind) { Ok(network) } else { Err(network) }
        });
        assert_eq!(keys(&first_of(addr, "/network", "nodes")), ROW);
        assert_eq!(
            (&network["up"], &network["total"], &network["writable"]),
            (&json!(3), &json!(3), &json!(true))
        );
        assert_eq!(network["warnings"], json!([]));
        for (i, row) in network["nodes"].as_array().expect("an array").iter().enumerate() {
            assert_eq!((&row["node_id"], &row["address"]), (&json!(i), &json!(cluster.node(i).to_string())));
            assert_eq!(
                (&row["messages"], &row["digest"], &row["error"]),
                (&json!(1), &json!(digest), &Value::Null),
                "{row}"
            );
        }
    }
    let status = eventually_blocking(LONG, "an exchange with both peers", || {
        let status = object(cluster.node(0), "/nodes", &NODE);
        let peers = status["peers"].as_array().expect("an array");
        if peers.iter().all(|peer| peer["last_sync"].is_string() && peer["behind"] == 0) {
            Ok(status)
        } else {
            Err(status)
        }
    });
    assert_eq!(keys(&first_of(cluster.node(0), "/nodes", "peers")), PEER);
    assert_eq!(status["peers"].as_array().map(Vec::len), Some(2));
    for peer in status["peers"].as_array().expect("an array") {
        is_time(&peer["last_sync"]);
        assert!(peer["rtt_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{peer}");
        assert_eq!((&peer["state"], &peer["error"]), (&json!("up"), &Value::Null), "{peer}");
    }

    cluster.kill9(2);
    for addr in [cluster.node(0), cluster.proxy()] {
        let network = eventually_blocking(LONG, "node 2 to be down", || {
            let network = object(addr, "/network", &NETWORK);
            if network["up"] == 2 && network["nodes"][2]["state"] == "down" {
                Ok(network)
            } else {
                Err(network)
            }
        });
        assert_eq!(
            (&network["total"], &network["writable"], &network["converged"]),
            (&json!(3), &json!(true), &json!(true)),
            "the running nodes are converged"
        );
        assert!(network["nodes"][2]["error"].is_string(), "{network}");
    }
}

#[test]
fn without_nodes_the_proxy_is_live_and_refuses_at_once() {
    let mut servers = Servers::start();
    servers.cluster.kill9(0);
    let proxy = servers.proxy();
    object(proxy, "/livez", &["live"]);
    object(proxy, "/readyz", &["readable", "writable", "reasons"]);
    let sent = post_json(proxy, "/messages", &json!({ "sender": "a", "recipient": "b", "text": "c" }))
        .expect("an answer");
    for answer in [
        sent,
        get(proxy, "/messages"),
        get(proxy, "/messages/00000000-0000-0000-0000-000000000000"),
        get(proxy, "/network"),
    ] {
        check_refusal("all nodes down", &answer, 503, "no_node_available", "none of 1 nodes");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
}

/// A peer configured under another spelling of its address is one peer, and its copy counts once.
#[test]
fn a_node_under_two_spellings_of_its_address_is_one_peer() {
    let mut cluster = Cluster::prepare(2);
    let (one, other) = (cluster.node(0), cluster.node(1));
    let mapped = |addr: SocketAddr| match addr.ip() {
        std::net::IpAddr::V4(ip) => SocketAddr::from((ip.to_ipv6_mapped(), addr.port())).to_string(),
        std::net::IpAddr::V6(_) => panic!("the harness has IPv4 addresses"),
    };
    cluster.spawn_node_with(1, &[&mapped(one)]);
    cluster.wait_ready(1);
    cluster.start_node(0);
    let sent = post_json(one, "/messages", &json!({ "sender": "a", "recipient": "b", "text": "c" }))
        .expect("stored")
        .json();
    cluster.converge(LONG, 1);
    eventually_blocking(LONG, "each node to have one peer", || {
        let statuses = cluster.statuses();
        let met = |status: &Value| {
            let peers = status["peers"].as_array().expect("an array");
            peers.len() == 1 && peers[0]["behind"] == 0 && peers[0]["error"].is_null()
        };
        if statuses.iter().all(met) { Ok(()) } else { Err(statuses) }
    });
    let copies = get(other, &format!("/messages/{}", sent["id"].as_str().expect("text"))).json();
    assert_eq!(copies["durable_on"], json!([1, 0]));
}

/// A server that answers each request after `pause` with a refusal, and counts those for its status.
fn slow_peer(pause: Duration) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (addr, asked) = (listener.local_addr().expect("bound"), Arc::new(AtomicUsize::new(0)));
    let counter = asked.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, counter) = (socket.expect("a client"), counter.clone());
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && socket.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                }
                let is_status = head.starts_with(b"GET /nodes ");
                counter.fetch_add(usize::from(is_status), Ordering::SeqCst);
                let since = Instant::now();
                eventually_blocking(LONG, "the pause", || !is_status || since.elapsed() >= pause);
                let _ended =
                    socket.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            });
        }
    });
    (addr, asked)
}

#[test]
fn concurrent_requests_for_the_network_ask_each_peer_twice_at_most() {
    let (peer, asked) = slow_peer(Duration::from_millis(500));
    let mut cluster = Cluster::prepare(0);
    let node = cluster.join_peers(vec![peer]);
    let addr = cluster.node(node);
    let began = Instant::now();
    let asking: Vec<_> = (0..100).map(|_| std::thread::spawn(move || get(addr, "/network"))).collect();
    for answer in asking {
        let answer = answer.join().expect("answered");
        assert_eq!((answer.status(), &answer.json()["total"]), (200, &json!(2)));
    }
    // The first request begins a round; the others come meanwhile, and share the next one.
    assert!(asked.load(Ordering::SeqCst) <= 2, "{asked:?}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(get(addr, "/network").status(), 200);
    assert!(asked.load(Ordering::SeqCst) <= 3, "{asked:?}");
}
