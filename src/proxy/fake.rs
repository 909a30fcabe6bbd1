//! Fake nodes for tests of the proxy: they answer, refuse, hang, or do not listen.
//!
//! They record all requests except probes, in the order of their arrival.

use std::future::pending;
use std::sync::Arc;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::address::Addr;
use crate::api::error::{ErrorCode, Problem};
use crate::api::key::Keys;
use crate::serve;

pub const MESSAGE: &str = r#"{"sender":"a","recipient":"b","text":"c"}"#;
pub const ID: &str = "01990000-0000-7000-8000-000000000001";

/// A request that a fake node received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedRequest {
    pub node: &'static str,
    pub line: String,
    pub key: Option<String>,
    pub body: String,
}

/// Fake nodes, and the requests that they received.
pub struct FakeNodes {
    pub tasks: JoinSet<()>,
    unlistened: Vec<TcpSocket>,
    record: mpsc::Sender<ReceivedRequest>,
    received: mpsc::Receiver<ReceivedRequest>,
    pub nodes: Vec<Addr>,
    /// The keys of the nodes that are added from now on.
    pub keys: Option<Keys>,
}

impl FakeNodes {
    pub fn new() -> Self {
        let (record, received) = mpsc::channel(100);
        let (tasks, unlistened, nodes) = (JoinSet::new(), Vec::new(), Vec::new());
        Self { tasks, unlistened, record, received, nodes, keys: None }
    }

    /// The same, with nodes that need one of these keys.
    pub fn with_keys(keys: Option<Keys>) -> Self {
        Self { keys, ..Self::new() }
    }

    /// Adds a node that records each request and answers it with `answer`.
    pub async fn add(&mut self, name: &'static str, answer: FakeAnswer) {
        let record = self.record.clone();
        let handler = async move |received: Request| -> Response {
            let (parts, body) = received.into_parts();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
            let line = format!("{} {}", parts.method, parts.uri);
            let key = parts.headers.get("idempotency-key").map(|key| text(key.as_bytes()));
            let body = text(&to_bytes(body, 1 << 20).await.expect("reads"));
            record.try_send(ReceivedRequest { node: name, line, key, body }).expect("room");
            answer().await
        };
        let ready = get(async || r#"{"readable":true,"writable":true}"#);
        let app = Router::new().route("/readyz", ready).route("/{*path}", any(handler));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        self.nodes.push(listener.local_addr().expect("bound").into());
        self.tasks.spawn(serve::serve(listener, app, self.keys.clone(), 1, CancellationToken::new()));
    }

    /// Adds an address at which nothing listens while the test runs.
    pub fn add_absent(&mut self) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("binds");
        self.nodes.push(socket.local_addr().expect("bound").into());
        self.unlistened.push(socket);
    }

    /// Takes the requests that were received so far.
    pub fn take_received(&mut self) -> Vec<ReceivedRequest> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }
}

pub type FakeAnswer = Arc<dyn Fn() -> BoxFuture<'static, Response> + Send + Sync>;

pub fn answers(status: u16, body: &'static str) -> FakeAnswer {
    let status = StatusCode::from_u16(status).expect("a status");
    Arc::new(move || async move { (status, body).into_response() }.boxed())
}

pub fn refuses(code: ErrorCode) -> FakeAnswer {
    Arc::new(move || async move { Problem::new(code, "on purpose").into_response() }.boxed())
}

pub fn hangs() -> FakeAnswer {
    Arc::new(|| pending().boxed())
}
