//! What both servers do alike: accept connections, keep strangers out, bound what all may cost, refuse in one shape, drain.
//!
//! `axum::serve` sets no header timeout, no connection limit and no TCP_NODELAY, hence this thin accept loop on
//! hyper. It owns every connection task. Knows nothing of messages beyond their size; routes and handlers are
//! the caller's, who also brings the listener and the stop signal.

mod answer;
mod auth;
mod body;
mod socket;
mod unauthenticated;

use std::{io, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

pub use answer::{json, live};
use auth::{Access, Auth};
pub use body::{BODIES_BYTES_MAX, Budget, SendKind, idempotency_key, read_body};
use socket::{Linger, WriteTimeout};
use unauthenticated::UnauthenticatedConnections;

use crate::api::key::Keys;

/// A request's head larger than this gets the HTTP library's bare 431.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// So much that was not sent yet the kernel keeps for a connection: else it would be megabytes for each reader that stops.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;
/// How long to wait after an accept that failed for want of something, such as file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// What connections may cost. A value only so that tests need not wait for the real ones.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// At the bound no further connection is accepted until one ends; the kernel's backlog holds the next.
    connections: usize,
    /// Of these, on how many nobody may have shown a key yet, where one is needed. At the bound, the one that has waited
    /// longest for that is cut off.
    strangers: usize,
    /// For the head of a request, also of the next one on an idle connection; then the connection ends.
    head: Duration,
    /// To receive a request and to begin its answer; then `timeout`.
    answer: Duration,
    /// For one write to be taken by the reader; then the connection ends.
    write: Duration,
    /// For a stranger who still sends to read why nobody listens; then the connection ends, whatever was read.
    linger: Duration,
    /// For open requests after the stop signal; then their connections are cut.
    drain: Duration,
}

const LIMITS: Limits = Limits {
    connections: 10_000,
    strangers: 1_000,
    head: Duration::from_secs(5),
    answer: Duration::from_secs(30),
    write: Duration::from_secs(30),
    linger: Duration::from_secs(1),
    drain: Duration::from_secs(5),
};

/// Serves `app` until `stop`, then lets open requests finish for a few seconds. With `keys` only to those who show one;
/// else to everybody. Unknown paths and methods are refused here, so `app` needs no fallback. Streams that never end
/// must watch `stop` themselves.
pub async fn serve(listener: TcpListener, app: Router, keys: Option<Keys>, stop: CancellationToken) {
    serve_within(LIMITS, listener, app, keys, stop).await;
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    app: Router,
    keys: Option<Keys>,
    stop: CancellationToken,
) {
    let (app, lock, strangers) =
        (answer::with_refusals(app), Auth::new(keys), UnauthenticatedConnections::new(limits.strangers));
    let server = Server { limits, app, lock, strangers, stop };
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            () = server.stop.cancelled() => break,
        };
        match accepted {
            Ok((socket, slot)) => {
                connections.spawn(server.clone().connection(socket, slot));
            }
            Err(e) if is_of_the_peer(&e) => debug!("a connection ended before it was accepted: {e}"),
            Err(e) => {
                warn!("cannot accept connections: {e}");
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop(listener); // whoever comes now is refused at once, and asks another server
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if timeout(limits.drain, drained).await.is_err() {
        debug!("cutting {} connections that did not end in time", connections.len());
        connections.shutdown().await;
    }
}

/// Waits for a free slot first: a connection that cannot be served is better left to the kernel's backlog.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
    let (socket, _) = listener.accept().await?;
    Ok((socket, slot))
}

/// Errors that concern one connection, not the listener.
fn is_of_the_peer(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(e.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn report(ended: Result<(), JoinError>) {
    if let Err(e) = ended
        && e.is_panic()
    {
        error!("a connection ended by a panic while streaming: {e}");
    }
}

/// What every connection shares.
#[derive(Clone)]
struct Server {
    limits: Limits,
    app: Router,
    lock: Auth,
    strangers: UnauthenticatedConnections,
    stop: CancellationToken,
}

impl Server {
    /// Serves one connection to its end.
    async fn connection(self, socket: TcpStream, _slot: OwnedSemaphorePermit) {
        let Server { limits, app, lock, strangers, stop } = self;
        if let Err(e) = socket.set_nodelay(true) {
            debug!("cannot set TCP_NODELAY: {e}"); // slower, not wrong
        }
        if let Err(e) = SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
            debug!("cannot set TCP_NOTSENT_LOWAT: {e}"); // more memory, not wrong
        }
        let stranger = Arc::new(strangers.enter(lock.is_open()));
        let waiting = stranger.clone();
        let linger = Linger::default();
        let socket = WriteTimeout::new(socket, limits.write, (linger.clone(), limits.linger));
        // Not within the future: until that is polled for the first time, the library already reads on.
        let service = service_fn(move |request: Request<Incoming>| {
            let sends_on = !request.body().is_end_stream();
            let admitted = lock.admit(request);
            match admitted.0 {
                Access::Authenticated => stranger.becomes_known(),
                Access::PublicPath | Access::Unauthenticated if sends_on => linger.at_the_end(),
                Access::PublicPath | Access::Unauthenticated => {}
            }
            answer::answer(app.clone(), admitted, limits.answer)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(HEAD_BYTES_MAX)
            // A client may say that it has sent everything (`nc -N`) and still wants its answer.
            .half_close(true)
            .serve_connection(TokioIo::new(socket), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = waiting.makes_room() => return,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(e) = ended {
            debug!("a connection ended early: {e}");
        }
    }
}

#[cfg(test)]
mod tests;
