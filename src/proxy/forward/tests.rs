//! One request and several nodes, without probes, so that the order of attempts is known.

use axum::body::to_bytes;

use super::*;
use crate::api::media;
use crate::api::network::NodeState;
use crate::proxy::fake::{FakeNodes, ID, MESSAGE, answers, hangs, refuses};
use crate::proxy::prober;

const SEND: RequestClass =
    RequestClass { traffic: TrafficClass::Write, is_quick: true, client_wait: Duration::ZERO };

fn sending() -> Request {
    Request::post("/messages", media::JSON, MESSAGE)
}

/// Without hedges, so a test that passes did not wait for a hedge delay.
fn forwarder(network: &FakeNodes) -> Forwarder {
    with(network, Strategy::Failover)
}

fn with(network: &FakeNodes, strategy: Strategy) -> Forwarder {
    let own = "127.0.0.1:1".parse().expect("an address");
    Forwarder::new(network.nodes.clone(), own, strategy, None)
}

#[tokio::test]
async fn a_node_that_listens_answers_and_refused_connections_cost_no_wait() {
    let mut network = FakeNodes::new();
    network.add_absent();
    network.add_absent();
    network.add("third", answers(201, "stored")).await;
    let forwarder = forwarder(&network);
    let response = forwarder.forward(&sending(), SEND).await.expect("answered");
    assert_eq!(response.status(), 201);
    assert_eq!(to_bytes(response.into_body(), 100).await.expect("whole"), "stored");
    let received = network.take_received();
    assert_eq!(
        (received.len(), received[0].line.as_str(), received[0].body.as_str()),
        (1, "POST /messages", MESSAGE)
    );
}

#[tokio::test]
async fn a_silent_node_costs_only_the_hedge_wait_and_all_attempts_are_the_same() {
    let mut network = FakeNodes::new();
    network.add("first", hangs()).await;
    network.add("second", hangs()).await;
    network.add("third", answers(201, "stored")).await;
    let forwarder = with(&network, Strategy::Hedge);
    let mut request = sending();
    request.headers.insert("idempotency-key", ID.parse().expect("a header value"));
    assert_eq!(forwarder.forward(&request, SEND).await.expect("answered").status(), 201);
    let received = network.take_received();
    assert_eq!(
        received.iter().map(|received| received.node).collect::<Vec<_>>(),
        ["first", "second", "third"]
    );
    for received in received {
        assert_eq!((received.key.as_deref(), received.body.as_str()), (Some(ID), MESSAGE));
    }
    assert_eq!(forwarder.forward(&request, SEND).await.expect("answered").status(), 201);
    assert_eq!(network.take_received()[0].node, "third", "a late node is not asked first again");
}

#[tokio::test]
async fn two_nodes_race() {
    let mut network = FakeNodes::new();
    network.add("first", hangs()).await;
    network.add("second", answers(201, "stored")).await;
    network.add("third", answers(201, "stored")).await;
    let forwarder = with(&network, Strategy::Race);
    assert_eq!(forwarder.forward(&sending(), SEND).await.expect("answered").status(), 201);
    let received: Vec<_> = network.take_received().into_iter().map(|received| received.node).collect();
    assert!(received.contains(&"second") && !received.contains(&"third"), "{received:?}");
}

#[tokio::test]
async fn a_refusal_that_another_node_may_not_repeat_is_not_the_answer() {
    for code in [ErrorCode::StorageFull, ErrorCode::StorageFailed, ErrorCode::Overloaded, ErrorCode::Timeout]
    {
        let mut network = FakeNodes::new();
        network.add("full", refuses(code)).await;
        network.add("good", answers(200, "stored")).await;
        let forwarder = forwarder(&network);
        assert_eq!(forwarder.forward(&sending(), SEND).await.expect("answered").status(), 200);
        assert_eq!(network.take_received().len(), 2);
        forwarder.forward(&sending(), SEND).await.expect("answered");
        assert_eq!(
            network.take_received()[0].node,
            "good",
            "a node that refused is asked after the others for a while"
        );
    }
}

#[tokio::test]
async fn a_refusal_hides_no_node_that_may_have_stored_the_message() {
    for code in [ErrorCode::StorageFull, ErrorCode::Starting, ErrorCode::Overloaded] {
        let mut network = FakeNodes::new();
        network.add("lost", answers(502, "")).await;
        network.add("full", refuses(code)).await;
        let answer = forwarder(&network).forward(&sending(), SEND).await;
        let problem = answer.expect_err("it may be stored");
        assert!(!problem.code.surely_no_effect(), "{problem}");
    }
}

#[tokio::test]
async fn a_refusal_that_all_would_repeat_is_passed_on_as_it_is() {
    for code in
        [ErrorCode::InvalidMessage, ErrorCode::IdConflict, ErrorCode::NotFound, ErrorCode::InvalidQuery]
    {
        let mut network = FakeNodes::new();
        network.add("strict", refuses(code)).await;
        network.add("other", answers(200, "not asked")).await;
        let response = forwarder(&network).forward(&sending(), SEND).await.expect("answered");
        assert_eq!((response.status().as_u16(), network.take_received().len()), (code.status(), 1));
        assert_eq!(response.headers()["content-type"], media::PROBLEM);
        let body = to_bytes(response.into_body(), 10_000).await.expect("whole");
        assert_eq!(body.trim_ascii_end(), Problem::new(code, "on purpose").to_json());
    }
}

#[tokio::test]
async fn nodes_are_seen_as_probes_find_them() {
    let mut network = FakeNodes::new();
    network.add("there", answers(200, "[]")).await;
    network.add_absent();
    let forwarder = forwarder(&network);
    assert!(
        forwarder
            .state()
            .upstreams
            .status(forwarder.uptime())
            .iter()
            .all(|status| status.state == NodeState::Suspect),
        "no upstream was asked yet"
    );
    for (id, addr) in network.nodes.iter().cloned().enumerate() {
        prober::probe(&forwarder, id, addr).await;
    }
    let [there, away] = &forwarder.state().upstreams.status(forwarder.uptime())[..] else {
        panic!("two upstreams")
    };
    assert_eq!((there.state, &there.error), (NodeState::Up, &None));
    assert_eq!((away.state, away.error.as_deref()), (NodeState::Suspect, Some("connection refused")));
}
