//! The whole proxy with fake nodes, as its clients see it.

use std::pin::pin;
use std::sync::Mutex;
use std::time::Instant;

use axum::response::IntoResponse;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::api::address::Addr;
use crate::api::error::ErrorCode;
use crate::api::key::Keys;
use crate::api::media;
use crate::client::{Answer, Client, Request};
use crate::config::Strategy;
use crate::proxy::fake::{FakeNodes, ID, MESSAGE, answers, refuses};

/// Longer than anything here takes.
const WITHIN: Duration = Duration::from_secs(20);

/// Starts a proxy for these nodes, with the same keys.
async fn proxy(nodes: &mut FakeNodes) -> ProxyUnderTest {
    let keys = nodes.keys.clone();
    proxy_with(nodes, keys).await
}

async fn proxy_with(nodes: &mut FakeNodes, keys: Option<Keys>) -> ProxyUnderTest {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr: Addr = listener.local_addr().expect("bound").into();
    let (network, listen, nodes_of_it) = ("test".to_owned(), addr.clone(), nodes.nodes.clone());
    let client = Client::new(keys.as_ref());
    let config = ProxyConfig { network, listen, nodes: nodes_of_it, strategy: Strategy::Hedge, keys };
    let running = run(config, listener, CancellationToken::new());
    nodes.tasks.spawn(async { running.await.expect("serves") });
    ProxyUnderTest { client, addr }
}

/// A proxy with a client of it.
struct ProxyUnderTest {
    client: Client,
    addr: Addr,
}

impl ProxyUnderTest {
    async fn request(&self, request: Request) -> Answer {
        self.client.forward(&self.addr, &request, WITHIN).await.expect("the proxy answers")
    }

    async fn send(&self, body: &'static str) -> Answer {
        self.request(Request::post("/messages", media::JSON, body)).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.request(Request::get(path)).await
    }
}

async fn text(answer: Answer) -> String {
    String::from_utf8(answer.bytes(1 << 20).await.expect("a whole body").to_vec()).expect("UTF-8")
}

/// The status, and the code of the refusal.
#[track_caller]
fn check_refusal(status: StatusCode, body: &str, code: ErrorCode) {
    let problem: Problem = serde_json::from_str(body).expect("a problem");
    assert_eq!((problem.code, status.as_u16()), (code, code.status()));
}

#[tokio::test]
async fn an_idempotency_key_is_added_only_to_a_message_without_id() {
    let mut network = FakeNodes::new();
    network.add("only", answers(201, "stored")).await;
    let tested = proxy(&mut network).await;
    let with_id: &'static str =
        r#"{"sender":"a","recipient":"b","text":"c","id":"01990000-0000-7000-8000-000000000001"}"#;
    tested.send(with_id).await;
    assert_eq!(network.take_received()[0].key, None);
    let mut keyed = Request::post("/messages?timeout=1s", media::JSON, MESSAGE);
    keyed.headers.insert("idempotency-key", ID.parse().expect("a header value"));
    tested.request(keyed).await;
    let received = network.take_received();
    assert_eq!(
        (received[0].key.as_deref(), received[0].line.as_str()),
        (Some(ID), "POST /messages?timeout=1s")
    );
    tested.request(Request::post("/messages", media::NDJSON, with_id)).await;
    assert!(network.take_received()[0].key.is_some(), "lines without id need it");
}

#[tokio::test]
async fn when_all_nodes_refuse_the_client_gets_a_refusal() {
    let mut network = FakeNodes::new();
    network.add("full", refuses(ErrorCode::StorageFull)).await;
    network.add_absent();
    let tested = proxy(&mut network).await;
    let answer = tested.send(MESSAGE).await;
    check_refusal(answer.status(), &text(answer).await, ErrorCode::StorageFull);
}

#[tokio::test]
async fn without_any_node_the_answer_comes_at_once_with_retry_after() {
    let mut network = FakeNodes::new();
    for _ in 0..4 {
        network.add_absent();
    }
    let tested = proxy(&mut network).await;
    for _ in 0..2 {
        let began = Instant::now();
        let answer = tested.send(MESSAGE).await;
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(answer.headers()["retry-after"], "1");
        let (status, body) = (answer.status(), text(answer).await);
        check_refusal(status, &body, ErrorCode::NoNodeAvailable);
        assert!(body.contains("none of 4 nodes answers (127.0.0.1:"), "{body}");
    }
    assert_eq!(tested.get("/readyz").await.status(), 200, "the proxy itself is ready");
}

#[tokio::test]
async fn an_answer_of_another_program_on_a_nodes_port_is_ignored() {
    let mut network = FakeNodes::new();
    network.add("web", answers(404, "<html>")).await;
    network.add("good", answers(200, "[]")).await;
    let tested = proxy(&mut network).await;
    assert_eq!(text(tested.get("/messages").await).await, "[]");
}

#[tokio::test]
async fn an_answer_is_passed_on_as_it_arrives() {
    let mut network = FakeNodes::new();
    let (piece, pieces) = mpsc::channel::<Result<&'static str, std::io::Error>>(1);
    let pieces = Arc::new(Mutex::new(Some(pieces)));
    let answer = move || {
        let mut pieces = pieces.lock().expect("not poisoned").take().expect("asked once");
        let stream = futures_util::stream::poll_fn(move |cx| pieces.poll_recv(cx));
        async { Body::from_stream(stream).into_response() }.boxed()
    };
    network.add("only", Arc::new(answer)).await;
    let tested = proxy(&mut network).await;
    let answer = tested.get("/messages?user=a+b&text=%26").await;
    assert_eq!(network.take_received()[0].line, "GET /messages?user=a+b&text=%26");
    let mut body = answer.into_stream().boxed();
    for text in ["one", "two"] {
        piece.send(Ok(text)).await.expect("the node streams");
        assert_eq!(body.next().await.expect("more").expect("whole"), text);
    }
    piece.send(Err(std::io::Error::other("the node dies"))).await.expect("the node streams");
    assert!(body.next().await.expect("an end").is_err(), "a cut answer does not look complete");
}

#[tokio::test]
async fn paths_that_the_proxy_does_not_have_are_not_found() {
    let mut network = FakeNodes::new();
    network.add("only", answers(200, "not asked")).await;
    let tested = proxy(&mut network).await;
    for path in ["/metrics", "/messages/17", "/messages/%2E%2E", "/metrics"] {
        let answer = tested.get(path).await;
        check_refusal(answer.status(), &text(answer).await, ErrorCode::NotFound);
    }
    let answer = tested.request(Request::post("/sync", media::BINARY, "x")).await;
    check_refusal(answer.status(), &text(answer).await, ErrorCode::NotFound);
    let answer = tested.request(Request::post("/messages", "text/plain", "x")).await;
    check_refusal(answer.status(), &text(answer).await, ErrorCode::UnsupportedMediaType);
    assert_eq!(network.take_received(), []);
}

#[tokio::test]
async fn the_proxy_reports_its_upstreams() {
    let mut network = FakeNodes::new();
    network.add("there", answers(200, "[]")).await;
    network.add_absent();
    let tested = proxy(&mut network).await;
    let status: ProxyStatus =
        serde_json::from_str(&text(tested.get("/nodes").await).await).expect("a status");
    let nodes = network.nodes.clone();
    let addrs: Vec<_> = status.upstreams.into_iter().map(|upstream| upstream.address).collect();
    assert_eq!((status.state, addrs), (network::NodeState::Up, nodes));
    assert_eq!(status.warnings, Vec::<String>::new());
    let answer = tested.get("/network").await;
    assert_eq!(
        (text(answer).await.as_str(), network.take_received()[0].line.as_str()),
        ("[]", "GET /network")
    );
}

fn keys(list: &str) -> Option<Keys> {
    let keys = Keys::from_list(list).ok();
    assert!(keys.is_some(), "{list} is no list of keys");
    keys
}

#[tokio::test]
async fn the_proxy_checks_the_clients_key_and_sends_its_own_to_the_nodes() {
    let mut network = FakeNodes::with_keys(keys("the-key-that-nodes-take"));
    network.add("only", answers(201, "stored")).await;
    let mut tested = proxy_with(&mut network, keys("the-key-that-nodes-take,the-key-of-clients")).await;
    for (of_client, status) in
        [("the-key-of-clients", 201), ("the-key-that-nodes-take", 201), ("a-key-of-no-network", 401)]
    {
        tested.client = Client::new(keys(of_client).as_ref());
        assert_eq!(tested.send(MESSAGE).await.status(), status, "{of_client}");
    }
    tested.client = Client::new(None);
    let answer = tested.get("/nothing").await;
    check_refusal(answer.status(), &text(answer).await, ErrorCode::Unauthorized);
    assert_eq!(network.take_received().len(), 2, "requests without a key reach no node");
}

#[tokio::test]
async fn a_node_that_refuses_the_proxys_key_is_skipped_and_reported() {
    let mut network = FakeNodes::with_keys(keys("a-key-of-yesterday"));
    network.add("other", answers(200, "not asked")).await;
    network.keys = keys("a-key-of-today-is-this");
    network.add("good", answers(200, "[]")).await;
    let tested = proxy(&mut network).await;
    for _ in 0..2 {
        assert_eq!(text(tested.get("/messages").await).await, "[]");
        let status: ProxyStatus =
            serde_json::from_str(&text(tested.get("/nodes").await).await).expect("a status");
        let error = status.upstreams[0].error.as_deref().unwrap_or_default();
        assert!(error.contains("does not take the key of this proxy"), "{status:?}");
        assert!(status.warnings[0].contains(&network.nodes[0].to_string()), "{status:?}");
    }
}

#[tokio::test]
async fn if_all_nodes_refuse_the_proxys_key_the_client_is_not_unauthorized() {
    let mut network = FakeNodes::with_keys(keys("a-key-of-yesterday"));
    network.add("other", answers(200, "not asked")).await;
    for own in [None, keys("a-key-of-today-is-this")] {
        let tested = proxy_with(&mut network, own).await;
        let answer = tested.send(MESSAGE).await;
        let (status, body) = (answer.status(), text(answer).await);
        check_refusal(status, &body, ErrorCode::NoNodeAvailable);
        assert!(body.contains("does not take the key of this proxy"), "{body}");
    }
    assert_eq!(network.take_received(), []);
}

/// Such as a feed of a node whose store cannot be read.
#[tokio::test]
async fn a_feed_that_ends_at_once_is_asked_for_again_after_a_pause() {
    let ends =
        || async { Body::from_stream(stream::empty::<Result<Bytes, Infallible>>()).into_response() }.boxed();
    let mut network = FakeNodes::new();
    network.add("only", Arc::new(ends)).await;
    let tested = proxy(&mut network).await;
    let mut feed = pin!(tested.get("/feed?from=start").await.into_stream());
    let second = Duration::from_secs(1);
    assert!(timeout(second, feed.next()).await.is_err(), "the reader stays connected");
    let feeds =
        network.take_received().into_iter().filter(|received| received.line.contains("/feed")).count();
    assert!((2..=6).contains(&feeds), "{feeds}");
}
