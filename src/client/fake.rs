//! Servers for tests: they answer as told, refuse, break or are not there.

use axum::{
    Router,
    body::to_bytes,
    extract::Request,
    response::{IntoResponse, Response},
    routing::any,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{api::address::Addr, serve};

/// Servers that live as long as the test.
#[derive(Default)]
pub(crate) struct Site {
    pub(crate) tasks: JoinSet<()>,
    held: Vec<TcpSocket>,
}

impl Site {
    /// A server with these paths.
    pub(crate) async fn app(&mut self, app: Router) -> Addr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound").into();
        self.tasks.spawn(serve::serve(listener, app, CancellationToken::new()));
        addr
    }

    /// A server that answers every request with `answer(method and path, body)`.
    pub(crate) async fn server<R: IntoResponse>(
        &mut self,
        answer: impl Fn(String, String) -> R + Clone + Send + Sync + 'static,
    ) -> Addr {
        let handler = async move |received: Request| -> Response {
            let line = format!("{} {}", received.method(), received.uri());
            let body = to_bytes(received.into_body(), 1 << 20).await.expect("reads");
            answer(line, String::from_utf8(body.to_vec()).expect("UTF-8")).into_response()
        };
        self.app(Router::new().route("/{*path}", any(handler))).await
    }

    /// A server that says these bytes to everybody and closes.
    pub(crate) async fn raw(&mut self, bytes: &'static [u8]) -> Addr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound").into();
        self.tasks.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.read(&mut [0; 1024]).await; // the request, which is not looked at
                let _ = socket.write_all(bytes).await;
            }
        });
        addr
    }

    /// An address at which nobody listens, and nobody else will as long as the test lives.
    pub(crate) fn nobody(&mut self) -> Addr {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("binds");
        let addr = socket.local_addr().expect("bound").into();
        self.held.push(socket);
        addr
    }
}
