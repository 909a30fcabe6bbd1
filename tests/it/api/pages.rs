//! Pages of `GET /messages`: following the `Link` headers lists the whole history in both directions.
//!
//! A walk follows only the links, as a client does, and its messages are compared with the listing without `limit`.

use std::net::SocketAddr;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::cluster::Cluster;
use crate::support::servers::{NDJSON, Servers, array, get, post};

const COUNT: usize = 61;

fn store(addr: SocketAddr, from: usize, to: usize) {
    let line = |i: usize| {
        let (sender, recipient) = (["ann", "bob", "eve"][i * i % 3], ["bob", "#ops"][i % 2]);
        let text = format!("number {i}");
        json!({ "sender": sender, "recipient": recipient, "text": text, "timestamp": i % 10 }).to_string()
    };
    let body: Vec<_> = (from..to).map(line).collect();
    let answer = post(addr, "/messages", &[NDJSON], body.join("\n"));
    assert_eq!(answer.json()["accepted"], to - from, "{}", answer.text());
}

/// The targets of a page's `Link` header.
#[derive(Debug, Default)]
struct Links {
    prev: Option<String>,
    next: Option<String>,
}

/// Parses a `Link` header strictly: relative targets under `/messages`, each direction at most once.
#[track_caller]
fn links(header: Option<&str>) -> Links {
    let mut links = Links::default();
    for link in header.unwrap_or_default().split(", ").filter(|link| !link.is_empty()) {
        let (target, rel) = link
            .strip_prefix('<')
            .and_then(|link| link.split_once(">; "))
            .unwrap_or_else(|| panic!("{link}"));
        assert!(target.starts_with("/messages?") && target.is_ascii(), "{link}");
        let slot = match rel {
            "rel=\"prev\"" => &mut links.prev,
            "rel=\"next\"" => &mut links.next,
            _ => panic!("{link}"),
        };
        assert_eq!(slot.replace(target.to_owned()), None, "{link} is there twice");
    }
    links
}

#[track_caller]
fn page(addr: SocketAddr, path: &str) -> (Vec<Value>, Links) {
    let answer = get(addr, path);
    let found = array(&answer);
    (found, links(answer.header("link")))
}

/// Walks backward or forward from this page to the end. Gives all messages of the pages, oldest first.
#[track_caller]
fn walk(addrs: &[SocketAddr], start: &str, backward: bool, limit: usize) -> Vec<Value> {
    let mut seen: Vec<Value> = Vec::new();
    let mut path = start.to_owned();
    for addr in addrs.iter().cycle().take(10 * COUNT) {
        let (found, links) = page(*addr, &path);
        assert!(found.len() <= limit, "{path}: {} messages", found.len());
        let at = if backward { 0 } else { seen.len() };
        seen.splice(at..at, found);
        match if backward { links.prev } else { links.next } {
            Some(next) => path = next,
            None => return seen,
        }
    }
    panic!("the walk from {start} does not end: {} messages so far", seen.len());
}

/// Walks from the newest page to the oldest and back, and asks each page at the next of these servers in turn.
#[track_caller]
fn check(servers: &[SocketAddr], filter: &str, limits: &[usize]) {
    let whole = array(&get(servers[0], &format!("/messages?{filter}")));
    assert!(whole.len() > 1, "{filter} finds too little to walk");
    let all = array(&get(servers[0], "/messages"));
    for limit in limits {
        let newest = format!("/messages?{filter}&limit={limit}");
        assert_eq!(walk(servers, &newest, true, *limit), whole, "{newest}, to the oldest");
        let oldest =
            format!("/messages?after={}&{filter}&limit={limit}", all[0]["id"].as_str().expect("text"));
        let rest = whole.strip_prefix(&all[..1]).unwrap_or(&whole);
        assert_eq!(walk(servers, &oldest, false, *limit), rest, "{oldest}, to the newest");
        // From the middle, both ways: only the anchor itself is missing.
        let anchor = all[all.len() / 2]["id"].as_str().expect("text");
        let mut both =
            walk(servers, &format!("/messages?{filter}&limit={limit}&before={anchor}"), true, *limit);
        both.extend(all.iter().filter(|m| m["id"] == anchor && whole.contains(m)).cloned());
        both.extend(walk(
            servers,
            &format!("/messages?{filter}&limit={limit}&after={anchor}"),
            false,
            *limit,
        ));
        assert_eq!(both, whole, "{filter} from {anchor}, limit {limit}");
    }
}

#[test]
fn following_the_links_lists_every_message_once() {
    let servers = Servers::start();
    store(servers.node(), 0, COUNT);
    let addrs = servers.both().map(|(_, addr)| addr);
    check(&addrs, "", &[1, 7, COUNT - 1, COUNT, COUNT + 1, 10_000]);
    for filter in [
        "sender=ann",
        "user=bob",
        "user=ann&with=bob",
        "text=NUMBER+1",
        "since=3&until=7",
        "recipient=%23ops&since=5",
        "text=1&user=bob&until=9",
    ] {
        check(&addrs, filter, &[1, 4, 1000]);
    }
}

#[test]
fn a_page_links_only_where_there_is_more() {
    let servers = Servers::start();
    store(servers.node(), 0, 10);
    let ids: Vec<String> =
        servers.history().iter().map(|m| m["id"].as_str().expect("text").to_owned()).collect();
    let at = |i: usize| &ids[i];
    for (server, addr) in servers.both() {
        let check = |query: String, want: std::ops::Range<usize>, prev: bool, next: bool| {
            let (found, links) = page(addr, &format!("/messages?{query}"));
            let found: Vec<_> = found.iter().map(|m| m["id"].as_str().expect("text")).collect();
            assert_eq!(found, ids[want], "{server} {query}");
            assert_eq!(
                (links.prev.is_some(), links.next.is_some()),
                (prev, next),
                "{server} {query}: {links:?}"
            );
        };
        check("limit=3".into(), 7..10, true, false);
        check("limit=10".into(), 0..10, false, false);
        check("limit=11".into(), 0..10, false, false);
        check(format!("limit=3&before={}", at(5)), 2..5, true, true);
        check(format!("limit=5&before={}", at(5)), 0..5, false, true);
        check(format!("limit=3&before={}", at(9)), 6..9, true, true);
        check(format!("limit=3&after={}", at(5)), 6..9, true, true);
        check(format!("limit=4&after={}", at(5)), 6..10, true, false);
        check(format!("limit=2&after={}", at(0)), 1..3, true, true);
        // Between two anchors: the first page is the newest, and the walk stays between the anchors.
        check(format!("limit=3&after={}&before={}", at(1), at(8)), 5..8, true, false);
        check(format!("limit=6&after={}&before={}", at(1), at(8)), 2..8, false, false);
        check(format!("after={}&before={}", at(1), at(8)), 2..8, false, false);
        check(format!("limit=2&after={}&before={}", at(8), at(1)), 0..0, false, false);
        let between = format!("/messages?limit=2&after={}&before={}", at(1), at(8));
        let walked = walk(&[addr], &between, true, 2);
        assert!(walked.iter().map(|m| m["id"].as_str().expect("text")).eq(&ids[2..8]), "{server}");
    }
}

#[test]
fn a_page_past_either_end_is_empty() {
    let servers = Servers::start();
    store(servers.node(), 0, 10);
    let history = servers.history();
    let id = |i: usize| history[i]["id"].as_str().expect("text");
    for (server, addr) in servers.both() {
        let (found, before) = page(addr, &format!("/messages?limit=3&before={}", id(0)));
        assert_eq!((found.len(), &before.prev), (0, &None), "{server}");
        let (found, after) = page(addr, &format!("/messages?limit=3&after={}", id(9)));
        assert_eq!((found.len(), &after.next), (0, &None), "{server}");
    }
    // A client that polls for new messages uses its last message as the anchor.
    store(servers.node(), 10, 12);
    let (found, _) = page(servers.proxy(), &format!("/messages?limit=3&after={}", id(9)));
    assert_eq!(found, servers.history()[10..]);
}

#[test]
fn a_link_keeps_every_filter_of_its_request() {
    let servers = Servers::start();
    for i in 0..5 {
        servers.store(&json!({ "sender": "a>b \"c\"; d, e&f=g%h", "recipient": "\u{1F30D}+ +", "text": format!("<{i}>"), "timestamp": i }));
    }
    let query = "/messages?sender=a%3Eb+%22c%22%3B%20d%2C%20e%26f%3Dg%25h&recipient=%F0%9F%8C%8D%2B+%2b&since=1970-01-01T00:00:01Z&text=%3c&limit=2";
    for (server, addr) in servers.both() {
        let found = walk(&[addr], query, true, 2);
        assert_eq!(found, servers.history()[1..], "{server}");
    }
}

#[test]
fn a_walk_passes_conflicting_ids() {
    let mut cluster = Cluster::prepare(2);
    let id = Uuid::now_v7();
    // While the other node is down, each node accepts the id with its own content, and other messages around it.
    for node in 0..2 {
        cluster.start_node(node);
        store(cluster.node(node), 0, 3);
        let body =
            json!({ "sender": "a", "recipient": "b", "text": format!("from {node}"), "id": id }).to_string();
        post(cluster.node(node), "/messages", &[NDJSON], body);
        store(cluster.node(node), 3, 6);
        cluster.stop(node);
    }
    cluster.start_all();
    cluster.converge(std::time::Duration::from_secs(30), 14);
    assert_eq!(cluster.statuses()[0]["conflicts"], 1);
    let addrs = [cluster.node(0), cluster.node(1)];
    let whole = array(&get(addrs[0], "/messages"));
    assert_eq!(whole.len(), 14);
    for limit in [1, 2, 3] {
        assert_eq!(
            walk(&addrs, &format!("/messages?limit={limit}"), true, limit),
            whole,
            "backward by {limit}"
        );
        let start = format!("/messages?limit={limit}&after={}", whole[0]["id"].as_str().expect("text"));
        assert_eq!(walk(&addrs, &start, false, limit), whole[1..], "forward by {limit}");
    }
}
