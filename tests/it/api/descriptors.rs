//! Servers with few file descriptors: feeds beyond what they allow are refused, and everything else goes on.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::http::{Connection, Head, encode};
use crate::support::measure;
use crate::support::messages::numbered;
use crate::support::servers::{JSON, check_refusal, get, post};

/// The usual soft limit; here the hard one as well.
const DESCRIPTORS: u32 = 1_024;
const SOON: Duration = Duration::from_secs(30);

/// Opens feeds. Gives the connections of those that are open, and how many were refused, each with a code.
fn open_feeds(addr: SocketAddr, count: usize) -> (Vec<Connection>, usize) {
    let (mut feeds, mut refused) = (Vec::new(), 0);
    let opened: Vec<_> = (0..count)
        .map(|i| {
            let mut feed = Connection::open(addr).unwrap_or_else(|error| panic!("feed {i}: {error}"));
            feed.send(&encode(addr, "GET", "/feed", &[], b"")).expect("sent");
            feed
        })
        .collect();
    for mut feed in opened {
        let head: Head = feed.head().expect("an answer");
        if head.status == 200 {
            feeds.push(feed);
            continue;
        }
        assert_eq!((head.status, head.header("retry-after")), (503, Some("1")), "{head:?}");
        let mut body = Vec::new();
        feed.body("GET", &head).expect("a body").read_to_end(&mut body).expect("a whole body");
        let text = String::from_utf8(body).expect("UTF-8");
        assert!(text.contains("\"code\":\"overloaded\""), "{text}");
        refused += 1;
    }
    (feeds, refused)
}

/// Everything but feeds is served as usual.
#[track_caller]
fn serves(cluster: &Cluster, addr: SocketAddr, number: u64) {
    assert_eq!(get(addr, "/livez").status(), 200);
    assert_eq!(get(addr, "/readyz").status(), 200);
    let sent = post(addr, "/messages", &[JSON], numbered(number).to_string());
    assert_eq!(sent.status(), 201, "{}", sent.text());
    let id = sent.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(get(addr, &format!("/messages/{id}")).status(), 200);
    for node in 0..cluster.count() {
        let addr = cluster.node(node);
        eventually_blocking(SOON, "the message to reach every node", || {
            get(addr, &format!("/messages/{id}")).status() == 200
        });
    }
    let network = get(addr, "/network").json();
    let states: Vec<_> = network["nodes"].as_array().expect("rows").iter().map(|row| &row["state"]).collect();
    assert!(states.iter().all(|state| **state == "up"), "{network}");
}

#[test]
fn more_feeds_than_descriptors_stop_neither_a_node_nor_the_proxy() {
    let mut cluster = Cluster::prepare(2);
    cluster.limit_descriptors(DESCRIPTORS);
    cluster.start_all();
    cluster.start_proxy();
    let (node, proxy) = (cluster.node(0), cluster.proxy());

    let (feeds, refused) = open_feeds(node, 1_500);
    measure::say(&format!("of 1,500 feeds at a node with {DESCRIPTORS} descriptors: {} open", feeds.len()));
    assert!(feeds.len() >= 500 && refused >= 400, "{} {refused}", feeds.len());
    serves(&cluster, node, 1);
    serves(&cluster, proxy, 2);
    let refused = get(node, "/feed");
    check_refusal("one more", &refused, 503, "overloaded", "feeds");
    drop(feeds);
    eventually_blocking(SOON, "place for a feed", || open_feeds(node, 1).1 == 0);

    let (feeds, refused) = open_feeds(proxy, 900);
    measure::say(&format!("of 900 feeds at a proxy with {DESCRIPTORS} descriptors: {} open", feeds.len()));
    assert!(feeds.len() >= 250 && refused >= 300, "{} {refused}", feeds.len());
    serves(&cluster, proxy, 3);
    let upstreams = get(proxy, "/nodes").json();
    assert!(
        upstreams["upstreams"].as_array().expect("a list").iter().all(|one| one["state"] == "up"),
        "{upstreams}"
    );
}

#[test]
fn idle_connections_make_place_for_others() {
    let mut cluster = Cluster::prepare(1);
    cluster.limit_descriptors(DESCRIPTORS);
    cluster.start_all();
    let addr = cluster.node(0);
    let idle: Vec<_> = (0..1_500)
        .map(|i| {
            let mut connection = Connection::open(addr).expect("connected");
            connection.send(&encode(addr, "GET", "/livez", &[], b"")).expect("sent");
            let answer = connection.receive("GET").unwrap_or_else(|error| panic!("connection {i}: {error}"));
            assert_eq!(answer.status(), 200);
            connection
        })
        .collect();
    serves(&cluster, addr, 1);
    drop(idle);
}
