//! The proxy before small nodes that answer, refuse, hang, break and are not there.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request as Received,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{any, get},
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::forward::{Forwarder, Patience};
use crate::{
    api::{
        address::Addr,
        error::{ErrorCode, Problem},
        media,
        network::{ProxyStatus, State},
    },
    client::{Answer, Client, Request, fake::Site},
    config::{ProxyConfig, Strategy},
};

const MESSAGE: &str = r#"{"sender":"a","recipient":"b","text":"c"}"#;
const ID: &str = "01990000-0000-7000-8000-000000000001";
/// Longer than anything here takes.
const WITHIN: Duration = Duration::from_secs(20);

/// What a node was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heard {
    node: &'static str,
    line: String,
    key: Option<String>,
    body: String,
}

/// A site with a proxy, and what its nodes heard.
struct Network {
    site: Site,
    tell: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
    nodes: Vec<Addr>,
}

impl Network {
    fn new() -> Self {
        let (tell, heard) = mpsc::channel(100);
        Self { site: Site::default(), tell, heard, nodes: Vec::new() }
    }

    /// A node that answers everything with `answer`, after it has told what it was asked.
    async fn node(&mut self, name: &'static str, answer: Answering) {
        let tell = self.tell.clone();
        let handler = async move |received: Received| -> Response {
            let (parts, body) = received.into_parts();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
            let line = format!("{} {}", parts.method, parts.uri);
            let key = parts.headers.get("idempotency-key").map(|key| text(key.as_bytes()));
            let body = text(&to_bytes(body, 1 << 20).await.expect("reads"));
            tell.try_send(Heard { node: name, line, key, body }).expect("room");
            answer().await
        };
        let ready = get(async || r#"{"readable":true,"writable":true}"#);
        let app = Router::new().route("/readyz", ready).route("/{*path}", any(handler));
        self.nodes.push(self.site.app(app).await);
    }

    /// A node that is not there.
    fn nobody(&mut self) {
        self.nodes.push(self.site.nobody());
    }

    /// The way to the nodes without the probing around it, so that the order of asking is known.
    fn forwarder(&self) -> Forwarder {
        Forwarder::new(self.nodes.clone(), Strategy::Hedge)
    }

    /// Starts the proxy before the nodes.
    async fn proxy(&mut self) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr: Addr = listener.local_addr().expect("bound").into();
        let (network, nodes) = ("test".to_owned(), self.nodes.clone());
        let config = ProxyConfig { network, listen: addr.clone(), nodes, strategy: Strategy::Hedge };
        let running = super::run(config, listener, CancellationToken::new());
        self.site.tasks.spawn(async { running.await.expect("serves") });
        Door { client: Client::new(), addr }
    }

    /// What has been heard so far.
    fn heard(&mut self) -> Vec<Heard> {
        std::iter::from_fn(|| self.heard.try_recv().ok()).collect()
    }
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

type Answering = Arc<dyn Fn() -> BoxFuture<'static, Response> + Send + Sync>;

fn says(status: u16, body: &'static str) -> Answering {
    let status = StatusCode::from_u16(status).expect("a status");
    Arc::new(move || async move { (status, body).into_response() }.boxed())
}

fn refuses(code: ErrorCode) -> Answering {
    Arc::new(move || async move { Problem::new(code, "on purpose").into_response() }.boxed())
}

fn hangs() -> Answering {
    Arc::new(|| pending().boxed())
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

/// A hedge that is never met: what passes with it did not wait for one.
const NO_HEDGE: Patience =
    Patience { hedge: Duration::from_secs(3600), total: Duration::from_secs(3600), measures: true };
/// A hedge that is met soon.
const HEDGE: Patience = Patience { hedge: Duration::from_millis(200), ..NO_HEDGE };

fn sending() -> Request {
    Request::post("/messages", media::JSON, MESSAGE)
}

#[tokio::test]
async fn whoever_is_there_answers_and_refused_connections_cost_no_wait() {
    let mut network = Network::new();
    network.nobody();
    network.nobody();
    network.node("third", says(201, "stored")).await;
    let forwarder = network.forwarder();
    let response = forwarder.forward(&sending(), NO_HEDGE).await.expect("answered");
    assert_eq!(response.status(), 201);
    assert_eq!(to_bytes(response.into_body(), 100).await.expect("whole"), "stored");
    let heard = network.heard();
    assert_eq!((heard.len(), heard[0].line.as_str(), heard[0].body.as_str()), (1, "POST /messages", MESSAGE));
}

#[tokio::test]
async fn a_silent_node_costs_only_the_hedge_wait_and_all_attempts_are_the_same() {
    let mut network = Network::new();
    network.node("first", hangs()).await;
    network.node("second", hangs()).await;
    network.node("third", says(201, "stored")).await;
    let forwarder = network.forwarder();
    let mut request = sending();
    request.headers.insert("idempotency-key", ID.parse().expect("a header value"));
    assert_eq!(forwarder.forward(&request, HEDGE).await.expect("answered").status(), 201);
    let heard = network.heard();
    assert_eq!(heard.iter().map(|heard| heard.node).collect::<Vec<_>>(), ["first", "second", "third"]);
    for heard in heard {
        assert_eq!((heard.key.as_deref(), heard.body.as_str()), (Some(ID), MESSAGE));
    }
    assert_eq!(forwarder.forward(&request, NO_HEDGE).await.expect("answered").status(), 201);
    assert_eq!(network.heard()[0].node, "third", "who was late is not asked first again");
}

#[tokio::test]
async fn nodes_that_never_answer_are_not_available() {
    let mut network = Network::new();
    network.node("first", hangs()).await;
    network.node("second", hangs()).await;
    let patience = Patience { hedge: Duration::from_millis(10), total: Duration::from_secs(1), ..NO_HEDGE };
    let problem = network.forwarder().forward(&sending(), patience).await.expect_err("no answer");
    assert_eq!(problem.code, ErrorCode::NoNodeAvailable);
    assert_eq!(network.heard().len(), 2);
}

#[tokio::test]
async fn a_key_is_added_only_where_nothing_names_the_message() {
    let mut network = Network::new();
    network.node("only", says(201, "stored")).await;
    let door = network.proxy().await;
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
async fn a_refusal_that_another_node_may_not_repeat_is_not_the_answer() {
    for code in [ErrorCode::StorageFull, ErrorCode::StorageFailed, ErrorCode::Overloaded, ErrorCode::Timeout]
    {
        let mut network = Network::new();
        network.node("full", refuses(code)).await;
        network.node("good", says(200, "stored")).await;
        let forwarder = network.forwarder();
        assert_eq!(forwarder.forward(&sending(), NO_HEDGE).await.expect("answered").status(), 200);
        assert_eq!(network.heard().len(), 2);
        forwarder.forward(&sending(), NO_HEDGE).await.expect("answered");
        assert_eq!(network.heard()[0].node, "good", "who refused is asked later for a while");
    }
}

#[tokio::test]
async fn when_all_refuse_the_client_is_told_why() {
    let mut network = Network::new();
    network.node("full", refuses(ErrorCode::StorageFull)).await;
    network.nobody();
    let door = network.proxy().await;
    let answer = door.send(MESSAGE).await;
    check_refusal(answer.status(), &text(answer).await, ErrorCode::StorageFull);
}

#[tokio::test]
async fn a_refusal_that_all_would_repeat_is_passed_on_as_it_is() {
    for code in
        [ErrorCode::InvalidMessage, ErrorCode::IdConflict, ErrorCode::NotFound, ErrorCode::InvalidQuery]
    {
        let mut network = Network::new();
        network.node("strict", refuses(code)).await;
        network.node("other", says(200, "unasked")).await;
        let response = network.forwarder().forward(&sending(), NO_HEDGE).await.expect("answered");
        assert_eq!((response.status().as_u16(), network.heard().len()), (code.status(), 1));
        assert_eq!(response.headers()["content-type"], media::PROBLEM);
        let body = to_bytes(response.into_body(), 10_000).await.expect("whole");
        assert_eq!(body, Problem::new(code, "on purpose").to_json());
    }
}

#[tokio::test]
async fn without_any_node_the_answer_comes_at_once_and_says_when_to_come_back() {
    let mut network = Network::new();
    for _ in 0..4 {
        network.nobody();
    }
    let door = network.proxy().await;
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
    let mut network = Network::new();
    network.node("web", says(404, "<html>")).await;
    network.node("good", says(200, "[]")).await;
    let door = network.proxy().await;
    assert_eq!(text(door.get("/messages").await).await, "[]");
}

#[tokio::test]
async fn an_answer_is_passed_on_as_it_comes() {
    let mut network = Network::new();
    let (piece, pieces) = mpsc::channel::<Result<&'static str, std::io::Error>>(1);
    let pieces = Arc::new(Mutex::new(Some(pieces)));
    let answer = move || {
        let mut pieces = pieces.lock().expect("not poisoned").take().expect("asked once");
        let stream = futures_util::stream::poll_fn(move |cx| pieces.poll_recv(cx));
        async { Body::from_stream(stream).into_response() }.boxed()
    };
    network.node("only", Arc::new(answer)).await;
    let door = network.proxy().await;
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
    let mut network = Network::new();
    network.node("only", says(200, "unasked")).await;
    let door = network.proxy().await;
    for path in ["/feed", "/messages/17", "/messages/%2E%2E", "/metrics"] {
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
    let mut network = Network::new();
    network.node("there", says(200, "[]")).await;
    network.nobody();
    let forwarder = Forwarder::new(network.nodes.clone(), Strategy::Hedge);
    assert!(forwarder.status().iter().all(|status| status.state == State::Suspect), "nobody was asked yet");
    forwarder.probe(WITHIN).await;
    let [there, away] = &forwarder.status()[..] else { panic!("two upstreams") };
    assert_eq!((there.state, &there.error), (State::Up, &None));
    assert_eq!((away.state, away.error.as_deref()), (State::Suspect, Some("connection refused")));

    let door = network.proxy().await;
    let status: ProxyStatus = serde_json::from_str(&text(door.get("/nodes").await).await).expect("a status");
    let addrs: Vec<_> = status.upstreams.into_iter().map(|upstream| upstream.address).collect();
    assert_eq!((status.state, addrs), (State::Up, network.nodes.clone()));
    assert_eq!(status.warnings, Vec::<String>::new());
    let answer = door.get("/network").await;
    assert_eq!((text(answer).await.as_str(), network.heard()[0].line.as_str()), ("[]", "GET /network"));
}
