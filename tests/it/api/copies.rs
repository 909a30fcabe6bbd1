//! One id accepted by two nodes: equal contents are one message, different contents are a conflict.
//!
//! Each node accepts its messages while the other is down. After they converge, both must answer alike.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::cluster::Cluster;
use crate::support::http::Response;
use crate::support::servers::{JSON, array, check_refusal, get, post};

const LONG: Duration = Duration::from_secs(30);

fn send(addr: SocketAddr, message: &Value) -> Response {
    post(addr, "/messages", &[JSON], message.to_string())
}

/// Each node accepts its part of these messages while the other is down; then both start and converge.
#[track_caller]
fn accept_apart_and_converge(parts: [&[Value]; 2], distinct: u64) -> Cluster {
    let mut cluster = accept_apart(parts);
    cluster.start_all();
    cluster.converge(LONG, distinct);
    cluster
}

/// Each node accepts its part of these messages while the other is down. Both are down at the end.
#[track_caller]
fn accept_apart(parts: [&[Value]; 2]) -> Cluster {
    let mut cluster = Cluster::prepare(2);
    for (node, messages) in parts.into_iter().enumerate() {
        cluster.start_node(node);
        for message in messages {
            let answer = send(cluster.node(node), message);
            assert_eq!(answer.status(), 201, "{}", answer.text());
        }
        cluster.stop(node);
    }
    cluster
}

fn message(text: &str, id: Uuid) -> Value {
    json!({ "sender": "ann", "recipient": "bob", "text": text, "id": id })
}

/// The listing at this path. Panics unless both nodes give the same bytes.
#[track_caller]
fn common_listing(cluster: &Cluster, path: &str) -> Vec<Value> {
    let answers = [0, 1].map(|node| get(cluster.node(node), path));
    assert_eq!(answers[0].text(), answers[1].text(), "{path}");
    array(&answers[0])
}

#[test]
fn a_message_that_two_nodes_accepted_is_one_message() {
    let (id, other) = (Uuid::now_v7(), Uuid::now_v7());
    let cluster = accept_apart_and_converge(
        [&[message("a", id), message("b", other)], &[message("b", other), message("a", id)]],
        2,
    );
    let listed = common_listing(&cluster, "/messages");
    let texts: Vec<_> = listed.iter().map(|m| m["text"].as_str().expect("text")).collect();
    assert_eq!(texts, ["a", "b"], "in the order of their first copies");
    for path in [
        "/messages?limit=9",
        "/messages?sender=ann",
        "/messages?user=bob&with=ann",
        "/messages?recipient=bob&limit=2",
    ] {
        assert_eq!(common_listing(&cluster, path), listed, "{path}");
    }
    let first = format!("/messages?after={id}&limit=1");
    assert_eq!(common_listing(&cluster, &first), listed[1..]);
    assert_eq!(common_listing(&cluster, &format!("/messages?before={other}&user=ann")), listed[..1]);
    for node in [0, 1] {
        let status = &cluster.statuses()[node];
        assert_eq!(
            (&status["messages"], &status["conflicts"], &status["origins"]),
            (&json!(2), &json!(0), &json!(2))
        );
        let again = send(cluster.node(node), &message("a", id));
        assert_eq!((again.status(), &again.json()["duplicate"]), (200, &json!(true)));
        for field in ["accepted_at", "origin", "seq", "timestamp"] {
            assert_eq!(again.json()[field], listed[0][field], "{field} is that of the first copy");
        }
    }
    cluster.converge(LONG, 2);
}

#[test]
fn both_contents_of_a_conflicting_id_are_kept_and_can_be_retried() {
    let id = Uuid::now_v7();
    let (one, other) = (message("one", id), message("other", id));
    let cluster = accept_apart_and_converge([std::slice::from_ref(&one), std::slice::from_ref(&other)], 2);
    let listed = common_listing(&cluster, "/messages");
    let texts: Vec<_> = listed.iter().map(|m| m["text"].as_str().expect("text")).collect();
    assert_eq!(texts, ["one", "other"]);
    assert_eq!(common_listing(&cluster, "/messages?user=ann"), listed);
    assert_eq!(common_listing(&cluster, "/messages?text=OTHER&limit=1"), listed[1..]);
    // An id stands for its first message in display order.
    assert_eq!(common_listing(&cluster, &format!("/messages?after={id}")), listed[1..]);
    assert_eq!(common_listing(&cluster, &format!("/messages?before={id}")), Vec::<Value>::new());
    for node in [0, 1] {
        let addr = cluster.node(node);
        assert_eq!(cluster.statuses()[node]["conflicts"], 1, "node {node}");
        assert_eq!(get(addr, &format!("/messages/{id}")).json()["text"], "one", "node {node}");
        for (i, message) in [&one, &other].into_iter().enumerate() {
            let again = send(addr, message);
            assert_eq!((again.status(), &again.json()["text"]), (200, &message["text"]), "node {node}");
            assert_eq!(again.json()["origin"], listed[i]["origin"], "node {node}");
        }
        check_refusal(
            "a third content",
            &send(addr, &message("third", id)),
            409,
            "id_conflict",
            "other content",
        );
    }
    cluster.converge(LONG, 2);
}

/// An earlier copy can arrive during a walk. The link names the copy that was shown, whose position does not change.
#[test]
fn a_walk_misses_nothing_when_an_earlier_copy_arrives() {
    let id = Uuid::now_v7();
    let (shared, other) = (message("shared", id), |text: &str| message(text, Uuid::now_v7()));
    let mut cluster =
        accept_apart([&[other("a"), shared.clone()], &[other("x"), other("y"), shared.clone(), other("z")]]);
    cluster.start_node(1);
    let page = get(cluster.node(1), "/messages?limit=2");
    let texts = |page: &Response| -> Vec<String> {
        array(page).iter().map(|m| m["text"].as_str().expect("text").to_owned()).collect()
    };
    assert_eq!(texts(&page), ["shared", "z"]);
    let link = page.header("link").and_then(|link| link.split(['<', '>']).nth(1)).expect("a link").to_owned();
    cluster.start_node(0);
    cluster.converge(LONG, 5);
    for node in [0, 1] {
        let older = get(cluster.node(node), &link.replace("limit=2", "limit=9"));
        assert_eq!(texts(&older), ["a", "shared", "x", "y"], "node {node}: a repeat, but no miss");
    }
}
