//! The whole proxy before small nodes, as its clients see it.

use std::{pin::pin, sync::Mutex, time::Instant};

use axum::response::IntoResponse;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::{sync::mpsc, time::timeout};

use super::*;
use crate::{
    api::{address::Addr, error::ErrorCode, key::Keys, media},
    client::{Answer, Client, Request},
    config::Strategy,
    proxy::fake::{FakeNodes, ID, MESSAGE, refuses, says},
};

/// Longer than anything here takes.
const WITHIN: Duration = Duration::from_secs(20);

/// Starts the proxy before the nodes, behind the same lock.
async fn proxy(nodes: &mut FakeNodes) -> Door {
    let keys = nodes.keys.clone();
    proxy_with(nodes, keys).await
}

async fn proxy_with(nodes: &mut FakeNodes, keys: Option<Keys>) -> Door {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr: Addr = listener.local_addr().expect("bound").into();
    let (network, listen, nodes_of_it) = ("test".to_owned(), addr.clone(), nodes.nodes.clone());
    let client = Client::new(keys.as_ref());
    let config = ProxyConfig { network, listen, nodes: nodes_of_it, strategy: Strategy::Hedge, keys };
    let running = run(config, listener, CancellationToken::new());
    nodes.tasks.spawn(async { running.await.expect("serves") });
    Door { client, addr }
}

/// The proxy, as a client sees it.
struct Door {
    client: Client,
    addr: Addr,
}

impl Door {
    async fn ask(&self, request: Request) -> Answer {
        self.client.forward(&self.addr, &request, WITHIN).await.expect("the proxy answers")
    }

    async fn send(&self, body: &'static str) -> Answer {
        self.ask(Request::post("/messages", media::JSON, body)).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Request::get(path)).await
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
async fn a_key_is_added_only_where_nothing_names_the_message() {
    let mut network = FakeNodes::new();
    network.node("only", says(201, "stored")).await;
    let door = proxy(&mut network).await;
    let with_id: &'static str =
        r#"{"sender":"a","recipient":"b","text":"c","id":"01990000-0000-7000-8000-000000000001"}"#;
    door.send(with_id).await;
    assert_eq!(network.heard()[0].key, None);
    let mut keyed = Request::post("/messages?timeout=1s", media::JSON, MESSAGE);
    keyed.headers.insert("idempotency-key", ID.parse().expect("a header value"));
    door.ask(keyed).await;
    let heard = network.heard();
    assert_eq!((heard[0].key.as_deref(), heard[0].line.as_str()), (Some(ID), "POST /messages?timeout=1s"));
    door.ask(Request::post("/messages", media::NDJSON, with_id)).await;
    assert!(network.heard()[0].key.is_some(), "lines without id need it");
}

#[tokio::test]
async fn when_all_refuse_the_client_is_told_why() {
    let mut network = FakeNodes::new();
    network.node("full", refuses(ErrorCode::StorageFull)).await;
    network.nobody();
    let door = proxy(&mut network).await;
    let answer = door.send(MESSAGE).await;
    check_refusal(answer.status(), &text(answer).await, ErrorCode::StorageFull);
}

#[tokio::test]
async fn without_any_node_the_answer_comes_at_once_and_says_when_to_come_back() {
    let mut network = FakeNodes::new();
    for _ in 0..4 {
        network.nobody();
    }
    let door = proxy(&mut network).await;
    for _ in 0..2 {
        let began = Instant::now();
        let answer = door.send(MESSAGE).await;
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(answer.headers()["retry-after"], "1");
        let (status, body) = (answer.status(), text(answer).await);
        check_refusal(status, &body, ErrorCode::NoNodeAvailable);
        assert!(body.contains("none of 4 nodes answers (127.0.0.1:"), "{body}");
    }
    assert_eq!(door.get("/readyz").await.status(), 200, "the proxy itself is ready");
}

#[tokio::test]
async fn another_program_on_a_nodes_port_is_not_believed() {
    let mut network = FakeNodes::new();
    network.node("web", says(404, "<html>")).await;
    network.node("good", says(200, "[]")).await;
    let door = proxy(&mut network).await;
    assert_eq!(text(door.get("/messages").await).await, "[]");
}

#[tokio::test]
async fn an_answer_is_passed_on_as_it_comes() {
    let mut network = FakeNodes::new();
    let (piece, pieces) = mpsc::channel::<Result<&'static str, std::io::Error>>(1);
    let pieces = Arc::new(Mutex::new(Some(pieces)));
    let answer = move || {
        let mut pieces = pieces.lock().expect("not poisoned").take().expect("asked once");
        let stream = futures_util::stream::poll_fn(move |cx| pieces.poll_recv(cx));
        async { Body::from_stream(stream).into_response() }.boxed()
    };
    network.node("only", Arc::new(answer)).await;
    let door = proxy(&mut network).await;
    let answer = door.get("/messages?user=a+b&text=%26").await;
    assert_eq!(network.heard()[0].line, "GET /messages?user=a+b&text=%26");
    let mut body = answer.into_stream().boxed();
    for text in ["one", "two"] {
        piece.send(Ok(text)).await.expect("the node streams");
        assert_eq!(body.next().await.expect("more").expect("whole"), text);
    }
    piece.send(Err(std::io::Error::other("the node dies"))).await.expect("the node streams");
    assert!(body.next().await.expect("an end").is_err(), "a cut answer does not look complete");
}

#[tokio::test]
async fn what_the_proxy_does_not_have_is_not_found() {
    let mut network = FakeNodes::new();
    network.node("only", says(200, "unasked")).await;
    let door = proxy(&mut network).await;
    for path in ["/metrics", "/messages/17", "/messages/%2E%2E", "/metrics"] {
        let answer = door.get(path).await;
        check_refusal(answer.status(), &text(answer).await, ErrorCode::NotFound);
    }
    let answer = door.ask(Request::post("/sync", media::BINARY, "x")).await;
    check_refusal(answer.status(), &text(answer).await, ErrorCode::NotFound);
    let answer = door.ask(Request::post("/messages", "text/plain", "x")).await;
    check_refusal(answer.status(), &text(answer).await, ErrorCode::UnsupportedMediaType);
    assert_eq!(network.heard(), []);
}

#[tokio::test]
async fn the_proxy_says_how_it_sees_its_nodes() {
    let mut network = FakeNodes::new();
    network.node("there", says(200, "[]")).await;
    network.nobody();
    let door = proxy(&mut network).await;
    let status: ProxyStatus = serde_json::from_str(&text(door.get("/nodes").await).await).expect("a status");
    let nodes = network.nodes.clone();
    let addrs: Vec<_> = status.upstreams.into_iter().map(|upstream| upstream.address).collect();
    assert_eq!((status.state, addrs), (network::NodeState::Up, nodes));
    assert_eq!(status.warnings, Vec::<String>::new());
    let answer = door.get("/network").await;
    assert_eq!((text(answer).await.as_str(), network.heard()[0].line.as_str()), ("[]", "GET /network"));
}

fn keys(list: &str) -> Option<Keys> {
    let keys = Keys::from_list(list).ok();
    assert!(keys.is_some(), "{list} is no list of keys");
    keys
}

#[tokio::test]
async fn a_client_shows_its_key_to_the_proxy_and_the_proxy_its_own_to_the_nodes() {
    let mut network = FakeNodes::locked(keys("the-key-that-nodes-take"));
    network.node("only", says(201, "stored")).await;
    let mut door = proxy_with(&mut network, keys("the-key-that-nodes-take,the-key-of-clients")).await;
    for (of_client, status) in
        [("the-key-of-clients", 201), ("the-key-that-nodes-take", 201), ("a-key-of-nobody-here", 401)]
    {
        door.client = Client::new(keys(of_client).as_ref());
        assert_eq!(door.send(MESSAGE).await.status(), status, "{of_client}");
    }
    door.client = Client::new(None);
    let answer = door.get("/nothing").await;
    check_refusal(answer.status(), &text(answer).await, ErrorCode::Unauthorized);
    assert_eq!(network.heard().len(), 2, "strangers get no further than the proxy");
}

#[tokio::test]
async fn a_node_that_does_not_take_the_proxys_key_is_passed_over_and_said() {
    let mut network = FakeNodes::locked(keys("a-key-of-yesterday"));
    network.node("other", says(200, "unheard")).await;
    network.keys = keys("a-key-of-today-is-this");
    network.node("good", says(200, "[]")).await;
    let door = proxy(&mut network).await;
    for _ in 0..2 {
        assert_eq!(text(door.get("/messages").await).await, "[]");
        let status: ProxyStatus =
            serde_json::from_str(&text(door.get("/nodes").await).await).expect("a status");
        let error = status.upstreams[0].error.as_deref().unwrap_or_default();
        assert!(error.contains("does not take the key of this proxy"), "{status:?}");
        assert!(status.warnings[0].contains(&network.nodes[0].to_string()), "{status:?}");
    }
}

#[tokio::test]
async fn if_no_node_takes_the_proxys_key_it_is_not_the_client_who_is_refused() {
    let mut network = FakeNodes::locked(keys("a-key-of-yesterday"));
    network.node("other", says(200, "unheard")).await;
    for own in [None, keys("a-key-of-today-is-this")] {
        let door = proxy_with(&mut network, own).await;
        let answer = door.send(MESSAGE).await;
        let (status, body) = (answer.status(), text(answer).await);
        check_refusal(status, &body, ErrorCode::NoNodeAvailable);
        assert!(body.contains("does not take the key of this proxy"), "{body}");
    }
    assert_eq!(network.heard(), []);
}

/// As of a node whose store cannot be read.
#[tokio::test]
async fn a_feed_that_ends_again_and_again_is_not_asked_for_without_a_pause() {
    let ends =
        || async { Body::from_stream(stream::empty::<Result<Bytes, ProxyError>>()).into_response() }.boxed();
    let mut network = FakeNodes::new();
    network.node("only", Arc::new(ends)).await;
    let door = proxy(&mut network).await;
    let mut feed = pin!(door.get("/feed?from=start").await.into_stream());
    let second = Duration::from_secs(1);
    assert!(timeout(second, feed.next()).await.is_err(), "the reader is kept");
    let feeds = network.heard().into_iter().filter(|heard| heard.line.contains("/feed")).count();
    assert!((2..=6).contains(&feeds), "{feeds}");
}
