//! Ids that two nodes accepted before they met: copies of one message are one message, two contents are a conflict.
//!
//! Each node takes its part while the other is away; then both must say the same of what has come together.

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

/// Node 0 takes the first of these messages while node 1 is away, and the other way round; then they meet.
#[track_caller]
fn meet(parts: [&[Value]; 2], distinct: u64) -> Cluster {
    let mut cluster = apart(parts);
    cluster.start_all();
    cluster.converge(LONG, distinct);
    cluster
}

/// The same, but both are down.
#[track_caller]
fn apart(parts: [&[Value]; 2]) -> Cluster {
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

/// The same bytes on both nodes. Gives the messages.
#[track_caller]
fn agreed(cluster: &Cluster, path: &str) -> Vec<Value> {
    let answers = [0, 1].map(|node| get(cluster.node(node), path));
    assert_eq!(answers[0].text(), answers[1].text(), "{path}");
    array(&answers[0])
}

#[test]
fn a_message_that_two_nodes_accepted_is_one_message() {
    let (id, other) = (Uuid::now_v7(), Uuid::now_v7());
    let cluster =
        meet([&[message("a", id), message("b", other)], &[message("b", other), message("a", id)]], 2);
    let listed = agreed(&cluster, "/messages");
    let texts: Vec<_> = listed.iter().map(|m| m["text"].as_str().expect("text")).collect();
    assert_eq!(texts, ["a", "b"], "in the order of their first copies");
    for path in [
        "/messages?limit=9",
        "/messages?sender=ann",
        "/messages?user=bob&with=ann",
        "/messages?recipient=bob&limit=2",
    ] {
        assert_eq!(agreed(&cluster, path), listed, "{path}");
    }
    let first = format!("/messages?after={id}&limit=1");
    assert_eq!(agreed(&cluster, &first), listed[1..]);
    assert_eq!(agreed(&cluster, &format!("/messages?before={other}&user=ann")), listed[..1]);
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
fn two_contents_of_an_id_are_both_kept_and_either_may_be_repeated() {
    let id = Uuid::now_v7();
    let (one, other) = (message("one", id), message("other", id));
    let cluster = meet([std::slice::from_ref(&one), std::slice::from_ref(&other)], 2);
    let listed = agreed(&cluster, "/messages");
    let texts: Vec<_> = listed.iter().map(|m| m["text"].as_str().expect("text")).collect();
    assert_eq!(texts, ["one", "other"]);
    assert_eq!(agreed(&cluster, "/messages?user=ann"), listed);
    assert_eq!(agreed(&cluster, "/messages?text=OTHER&limit=1"), listed[1..]);
    // By its id means the first in display order.
    assert_eq!(agreed(&cluster, &format!("/messages?after={id}")), listed[1..]);
    assert_eq!(agreed(&cluster, &format!("/messages?before={id}")), Vec::<Value>::new());
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

/// An earlier copy may arrive while somebody walks: the link names the copy that was shown, which stays where it is.
#[test]
fn a_walk_misses_nothing_when_an_earlier_copy_arrives() {
    let id = Uuid::now_v7();
    let (shared, other) = (message("shared", id), |text: &str| message(text, Uuid::now_v7()));
    let mut cluster =
        apart([&[other("a"), shared.clone()], &[other("x"), other("y"), shared.clone(), other("z")]]);
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
