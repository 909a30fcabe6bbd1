//! Small nodes for tests of the proxy: they answer, refuse, hang and are not there.
//!
//! They tell what they were asked, in the order in which they were asked, except for probes.

use std::{future::pending, sync::Arc};

use axum::{
    Router,
    body::to_bytes,
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{any, get},
};
use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{
        address::Addr,
        error::{ErrorCode, Problem},
        key::Keys,
    },
    serve,
};

pub(super) const MESSAGE: &str = r#"{"sender":"a","recipient":"b","text":"c"}"#;
pub(super) const ID: &str = "01990000-0000-7000-8000-000000000001";
/// What a node was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReceivedRequest {
    pub(super) node: &'static str,
    pub(super) line: String,
    pub(super) key: Option<String>,
    pub(super) body: String,
}

/// Nodes, and what they heard.
pub(super) struct FakeNodes {
    pub(super) tasks: JoinSet<()>,
    held: Vec<TcpSocket>,
    tell: mpsc::Sender<ReceivedRequest>,
    heard: mpsc::Receiver<ReceivedRequest>,
    pub(super) nodes: Vec<Addr>,
    /// What opens the nodes that are made from now on.
    pub(super) keys: Option<Keys>,
}

impl FakeNodes {
    pub(super) fn new() -> Self {
        let (tell, heard) = mpsc::channel(100);
        Self { tasks: JoinSet::new(), held: Vec::new(), tell, heard, nodes: Vec::new(), keys: None }
    }

    /// The same, with nodes that only these keys open.
    pub(super) fn locked(keys: Option<Keys>) -> Self {
        Self { keys, ..Self::new() }
    }

    /// A node that answers everything with `answer`, after it has told what it was asked.
    pub(super) async fn node(&mut self, name: &'static str, answer: Answering) {
        let tell = self.tell.clone();
        let handler = async move |received: Request| -> Response {
            let (parts, body) = received.into_parts();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
            let line = format!("{} {}", parts.method, parts.uri);
            let key = parts.headers.get("idempotency-key").map(|key| text(key.as_bytes()));
            let body = text(&to_bytes(body, 1 << 20).await.expect("reads"));
            tell.try_send(ReceivedRequest { node: name, line, key, body }).expect("room");
            answer().await
        };
        let ready = get(async || r#"{"readable":true,"writable":true}"#);
        let app = Router::new().route("/readyz", ready).route("/{*path}", any(handler));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        self.nodes.push(listener.local_addr().expect("bound").into());
        self.tasks.spawn(serve::serve(listener, app, self.keys.clone(), CancellationToken::new()));
    }

    /// A node that is not there, and nobody else is as long as the test lives.
    pub(super) fn nobody(&mut self) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("binds");
        self.nodes.push(socket.local_addr().expect("bound").into());
        self.held.push(socket);
    }

    /// What has been heard so far.
    pub(super) fn heard(&mut self) -> Vec<ReceivedRequest> {
        std::iter::from_fn(|| self.heard.try_recv().ok()).collect()
    }
}

pub(super) type Answering = Arc<dyn Fn() -> BoxFuture<'static, Response> + Send + Sync>;

pub(super) fn says(status: u16, body: &'static str) -> Answering {
    let status = StatusCode::from_u16(status).expect("a status");
    Arc::new(move || async move { (status, body).into_response() }.boxed())
}

pub(super) fn refuses(code: ErrorCode) -> Answering {
    Arc::new(move || async move { Problem::new(code, "on purpose").into_response() }.boxed())
}

pub(super) fn hangs() -> Answering {
    Arc::new(|| pending().boxed())
}
