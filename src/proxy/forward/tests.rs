//! One request and several nodes, without the probing around it, so that the order of asking is known.

use axum::body::to_bytes;

use super::*;
use crate::{
    api::{media, network::NodeState},
    proxy::{
        fake::{FakeNodes, ID, MESSAGE, hangs, refuses, says},
        prober,
    },
};

const SEND: RequestClass =
    RequestClass { traffic: TrafficClass::Write, is_quick: true, client_wait: Duration::ZERO };

fn sending() -> Request {
    Request::post("/messages", media::JSON, MESSAGE)
}

/// One that hedges nobody: what passes with it did not wait for that.
fn forwarder(network: &FakeNodes) -> Forwarder {
    with(network, Strategy::Failover)
}

fn with(network: &FakeNodes, strategy: Strategy) -> Forwarder {
    let own = "127.0.0.1:1".parse().expect("an address");
    Forwarder::new(network.nodes.clone(), own, strategy, None)
}

#[tokio::test]
async fn whoever_is_there_answers_and_refused_connections_cost_no_wait() {
    let mut network = FakeNodes::new();
    network.nobody();
    network.nobody();
    network.node("third", says(201, "stored")).await;
    let forwarder = forwarder(&network);
    let response = forwarder.forward(&sending(), SEND).await.expect("answered");
    assert_eq!(response.status(), 201);
    assert_eq!(to_bytes(response.into_body(), 100).await.expect("whole"), "stored");
    let heard = network.heard();
    assert_eq!((heard.len(), heard[0].line.as_str(), heard[0].body.as_str()), (1, "POST /messages", MESSAGE));
}

#[tokio::test]
async fn a_silent_node_costs_only_the_hedge_wait_and_all_attempts_are_the_same() {
    let mut network = FakeNodes::new();
    network.node("first", hangs()).await;
    network.node("second", hangs()).await;
    network.node("third", says(201, "stored")).await;
    let forwarder = with(&network, Strategy::Hedge);
    let mut request = sending();
    request.headers.insert("idempotency-key", ID.parse().expect("a header value"));
    assert_eq!(forwarder.forward(&request, SEND).await.expect("answered").status(), 201);
    let heard = network.heard();
    assert_eq!(heard.iter().map(|heard| heard.node).collect::<Vec<_>>(), ["first", "second", "third"]);
    for heard in heard {
        assert_eq!((heard.key.as_deref(), heard.body.as_str()), (Some(ID), MESSAGE));
    }
    assert_eq!(forwarder.forward(&request, SEND).await.expect("answered").status(), 201);
    assert_eq!(network.heard()[0].node, "third", "who was late is not asked first again");
}

#[tokio::test]
async fn two_nodes_race() {
    let mut network = FakeNodes::new();
    network.node("first", hangs()).await;
    network.node("second", says(201, "stored")).await;
    network.node("third", says(201, "stored")).await;
    let forwarder = with(&network, Strategy::Race);
    assert_eq!(forwarder.forward(&sending(), SEND).await.expect("answered").status(), 201);
    let heard: Vec<_> = network.heard().into_iter().map(|heard| heard.node).collect();
    assert!(heard.contains(&"second") && !heard.contains(&"third"), "{heard:?}");
}

#[tokio::test]
async fn a_refusal_that_another_node_may_not_repeat_is_not_the_answer() {
    for code in [ErrorCode::StorageFull, ErrorCode::StorageFailed, ErrorCode::Overloaded, ErrorCode::Timeout]
    {
        let mut network = FakeNodes::new();
        network.node("full", refuses(code)).await;
        network.node("good", says(200, "stored")).await;
        let forwarder = forwarder(&network);
        assert_eq!(forwarder.forward(&sending(), SEND).await.expect("answered").status(), 200);
        assert_eq!(network.heard().len(), 2);
        forwarder.forward(&sending(), SEND).await.expect("answered");
        assert_eq!(network.heard()[0].node, "good", "who refused is asked later for a while");
    }
}

#[tokio::test]
async fn a_refusal_that_all_would_repeat_is_passed_on_as_it_is() {
    for code in
        [ErrorCode::InvalidMessage, ErrorCode::IdConflict, ErrorCode::NotFound, ErrorCode::InvalidQuery]
    {
        let mut network = FakeNodes::new();
        network.node("strict", refuses(code)).await;
        network.node("other", says(200, "unasked")).await;
        let response = forwarder(&network).forward(&sending(), SEND).await.expect("answered");
        assert_eq!((response.status().as_u16(), network.heard().len()), (code.status(), 1));
        assert_eq!(response.headers()["content-type"], media::PROBLEM);
        let body = to_bytes(response.into_body(), 10_000).await.expect("whole");
        assert_eq!(body.trim_ascii_end(), Problem::new(code, "on purpose").to_json());
    }
}

#[tokio::test]
async fn nodes_are_seen_as_probes_find_them() {
    let mut network = FakeNodes::new();
    network.node("there", says(200, "[]")).await;
    network.nobody();
    let forwarder = forwarder(&network);
    assert!(
        forwarder.status().iter().all(|status| status.state == NodeState::Suspect),
        "nobody was asked yet"
    );
    for (id, addr) in network.nodes.iter().cloned().enumerate() {
        prober::probe(&forwarder, id, addr).await;
    }
    let [there, away] = &forwarder.status()[..] else { panic!("two upstreams") };
    assert_eq!((there.state, &there.error), (NodeState::Up, &None));
    assert_eq!((away.state, away.error.as_deref()), (NodeState::Suspect, Some("connection refused")));
}
