//! Servers with few file descriptors: feeds beyond what they allow are refused, and everything else goes on. A server
//! without a free one blames itself.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;

use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::http::{self, Connection, Head, Response, encode};
use crate::support::measure;
use crate::support::messages::numbered;
use crate::support::process::Process;
use crate::support::relay::{Condition, LinkSettings, Relay};
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
    // The proxy may ask another node than the one that stored it.
    eventually_blocking(SOON, "the message", || get(addr, &format!("/messages/{id}")).status() == 200);
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

#[test]
fn silent_connections_delay_others_by_little() {
    /// For 100 connections.
    const FEW: u32 = 200;
    /// Without a crowd, a client has 5 s for a request head.
    const DELAY_MAX: Duration = Duration::from_millis(3_500);
    let mut cluster = Cluster::prepare(1);
    cluster.limit_descriptors(FEW);
    cluster.start_all();
    let addr = cluster.node(0);
    let silent: Vec<_> = (0..400).map(|_| Connection::open(addr).expect("connected")).collect();
    let began = Instant::now();
    let sent = post(addr, "/messages", &[JSON], numbered(1).to_string());
    let took = began.elapsed();
    assert_eq!(sent.status(), 201, "{}", sent.text());
    measure::say(&format!("a send beside {} silent connections took {took:.1?}", silent.len()));
    assert!(took < DELAY_MAX, "{took:?}");
}

/// The soft limit is often 1,024, for old programs.
#[test]
fn a_server_raises_its_soft_limit() {
    const FEEDS: usize = 400;
    if getrlimit(Resource::Nofile).maximum.is_some_and(|most| most < 4 * FEEDS as u64) {
        measure::say("skipped: the hard limit of file descriptors is too low");
        return;
    }
    let mut cluster = Cluster::prepare(1);
    cluster.limit_descriptors_softly(256);
    cluster.start_all();
    cluster.start_proxy();
    for addr in [cluster.node(0), cluster.proxy()] {
        assert_eq!(open_feeds(addr, FEEDS).1, 0, "refused at {addr}");
    }
}

/// Lets a process open no further file descriptor. Gives the limit that it had.
fn exhaust(process: &Process) -> Rlimit {
    set_limit(process, Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) })
}

fn set_limit(process: &Process, limit: Rlimit) -> Rlimit {
    let pid = Pid::from_raw(i32::try_from(process.id()).expect("a process id"));
    prlimit(pid, Resource::Nofile, limit).expect("our own child")
}

fn fast_link() -> LinkSettings {
    LinkSettings { rate: 100 << 20, round_trip: Duration::ZERO, loss: 0, cut_after: None }
}

/// Asks on a connection that is open.
#[track_caller]
fn ask(connection: &mut Connection, addr: SocketAddr, method: &str, path: &str, body: &[u8]) -> Response {
    connection.send(&encode(addr, method, path, &[JSON], body)).expect("sent");
    connection.receive(method).expect("an answer")
}

const LACK: &str = "this process has no free file descriptor";

#[test]
fn a_node_without_a_descriptor_for_an_exchange_blames_no_peer() {
    lack_descriptors(true);
}

#[test]
fn a_node_without_a_descriptor_does_not_call_a_peer_down_that_it_cannot_ask() {
    lack_descriptors(false);
}

/// Takes the free descriptors of a node. `peer_asks`: its peer goes on to ask it.
fn lack_descriptors(peer_asks: bool) {
    /// Without contact for 10 s, a peer counts as down.
    const WATCHED: Duration = Duration::from_secs(13);
    const SHORTER: Duration = Duration::from_secs(11);
    const ATTEMPTS: usize = 4;
    let mut cluster = Cluster::prepare(2);
    let relay = Relay::start(fast_link(), [cluster.node(0), cluster.node(1)]);
    let own = cluster.node(0);
    cluster.readdress(0, vec![relay.addr(1)], own);
    cluster.readdress(1, vec![own], relay.addr(1));
    cluster.start_all();
    let mut connection = Connection::open(own).expect("connected");
    let peer = |answer: Response| answer.json()["peers"][0].clone();
    let names_lack = |peer: &Value| peer["error"].as_str().is_some_and(|error| error.contains(LACK));
    // Its connection may end during an exchange, which is the fault of the link. Then it is tried again.
    let before = (0..ATTEMPTS).find_map(|_| {
        eventually_blocking(SOON, "exchanges that work", || {
            let peer = peer(ask(&mut connection, own, "GET", "/nodes", b""));
            peer["state"] == "up" && peer["error"].is_null()
        });
        let before = exhaust(cluster.process(0));
        relay.set_condition(Condition::Down); // ends the connections that there are
        let lacking = eventually_blocking(SOON, "an exchange that cannot begin", || {
            Some(peer(ask(&mut connection, own, "GET", "/nodes", b""))).filter(names_lack)
        });
        if lacking["state"] == "up" {
            return Some(before);
        }
        set_limit(cluster.process(0), before);
        relay.set_condition(Condition::Up);
        None
    });
    let before = before.expect("the peer is not blamed");
    if !peer_asks {
        cluster.kill9(1); // it would go on to ask
    }
    relay.set_condition(Condition::Up);
    let began = Instant::now();
    eventually_blocking(2 * WATCHED, "time in which a peer would be down", || {
        let peer = peer(ask(&mut connection, own, "GET", "/nodes", b""));
        assert!(names_lack(&peer), "{peer}");
        assert!(
            peer["state"] == if peer_asks { "up" } else { "suspect" } || began.elapsed() < SHORTER,
            "{peer}"
        );
        assert_ne!(peer["state"], "down", "{peer}");
        began.elapsed() >= WATCHED
    });
    set_limit(cluster.process(0), before);
    if peer_asks {
        eventually_blocking(SOON, "exchanges again", || {
            let peer = peer(ask(&mut connection, own, "GET", "/nodes", b""));
            peer["state"] == "up" && peer["error"].is_null()
        });
    }
}

/// Also if it knows its node by a name, which it has to look up.
#[test]
fn a_proxy_without_a_descriptor_for_a_node_blames_no_node() {
    let mut cluster = Cluster::prepare(1);
    let relay = Relay::start(fast_link(), [cluster.node(0), cluster.node(0)]);
    cluster.readdress(0, Vec::new(), relay.addr(0));
    cluster.start_all();
    for host in ["localhost", "127.0.0.1"] {
        let addr = cluster.proxy();
        let mut command = cluster.command();
        let node = format!("{host}:{}", relay.addr(0).port());
        command.args(["proxy", "--listen", &addr.to_string(), "--nodes", &node]);
        let mut proxy = Process::spawn("proxy", command);
        eventually_blocking(SOON, "the proxy", || get_if_up(addr, "/readyz"));
        let mut connection = Connection::open(addr).expect("connected");
        let liveness = |status: &Value| -> Vec<Value> {
            let upstreams = status["upstreams"].as_array().expect("a list");
            upstreams.iter().map(|upstream| upstream["state"].clone()).collect()
        };
        let mut status = || ask(&mut connection, addr, "GET", "/nodes", b"").json();
        eventually_blocking(SOON, "the node", || liveness(&status()).iter().all(|state| state == "up"));
        let mut feeds: Vec<_> = (0..8).map(|_| Connection::open(addr).expect("connected")).collect();
        let before = exhaust(&proxy);
        // Feeds take the connections to the node that are there.
        for feed in &mut feeds {
            feed.send(&encode(addr, "GET", "/feed", &[], b"")).expect("sent");
        }
        let (began, mut refused) = (Instant::now(), 0);
        eventually_blocking(SOON, "refusals during several probes", || {
            let status = ask(&mut connection, addr, "GET", "/nodes", b"").json();
            assert!(liveness(&status).iter().all(|state| state == "up"), "{host}: {status}");
            let answer = ask(&mut connection, addr, "GET", "/messages?limit=1", b"");
            if answer.status() != 200 {
                check_refusal(host, &answer, 503, "overloaded", LACK);
                refused += 1;
            }
            refused > 0 && began.elapsed() >= Duration::from_secs(4)
        });
        drop(feeds);
        set_limit(&proxy, before);
        let sent = ask(&mut connection, addr, "POST", "/messages", numbered(7).to_string().as_bytes());
        assert!([200, 201].contains(&sent.status()), "{host}: {}", sent.text());
        assert!(proxy.stop().success());
    }
}

fn get_if_up(addr: SocketAddr, path: &str) -> bool {
    http::get(addr, path).is_ok_and(|answer| answer.status() == 200)
}
