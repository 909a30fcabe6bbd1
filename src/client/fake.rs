//! Fake servers for tests: they send given answers or invalid bytes, or do not listen.
//!
//! Written on bare sockets, because the client must not know the servers of this program.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

use crate::api::{
    address::Addr,
    error::{ErrorCode, Problem},
};

/// Fake servers that run as long as the test.
#[derive(Default)]
pub(super) struct FakeServers {
    tasks: JoinSet<()>,
    unlistened: Vec<TcpSocket>,
}

/// A status and a body.
pub(super) type Reply = (u16, String);

/// A refusal.
pub(super) fn refusal(code: ErrorCode) -> Reply {
    (code.status(), String::from_utf8(Problem::new(code, "on purpose").to_json()).expect("UTF-8"))
}

impl FakeServers {
    /// A server that answers every request with `answer(method and path, body)`.
    pub(super) async fn server(
        &mut self,
        answer: impl Fn(String, String) -> Reply + Send + Sync + 'static,
    ) -> Addr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound").into();
        self.tasks.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (line, body) = receive(&mut socket).await;
                let (status, body) = answer(line, body);
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\nlocation: /x\r\n\r\n"
                );
                let _ = socket.write_all((head + &body).as_bytes()).await; // the client may be gone
            }
        });
        addr
    }

    /// A server that answers every request with these bytes and closes.
    pub(super) async fn raw(&mut self, bytes: &'static [u8]) -> Addr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound").into();
        self.tasks.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                receive(&mut socket).await;
                let _ = socket.write_all(bytes).await;
            }
        });
        addr
    }

    /// An address at which nothing listens while the test runs.
    pub(super) fn absent(&mut self) -> Addr {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("binds");
        let addr = socket.local_addr().expect("bound").into();
        self.unlistened.push(socket);
        addr
    }
}

/// Reads one request: its method and path, and its body.
async fn receive(socket: &mut TcpStream) -> (String, String) {
    let mut received = String::new();
    loop {
        if let Some((head, body)) = received.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().expect("a number")) {
                let line = head.lines().next().expect("a request line").trim_end_matches(" HTTP/1.1");
                return (line.to_owned(), body.to_owned());
            }
        }
        let mut piece = [0; 4096];
        let count = socket.read(&mut piece).await.expect("reads");
        assert!(count > 0, "the request ends early: {received:?}");
        received.push_str(std::str::from_utf8(&piece[..count]).expect("UTF-8"));
    }
}
