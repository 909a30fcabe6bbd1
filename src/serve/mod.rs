//! The HTTP server of nodes and of the proxy: accepts connections, authenticates, limits, refuses, and drains at the
//! end.
//!
//! `connection` serves what this file accepts. Each request goes through `auth`, `request` and the caller's routes, which
//! use `body`. `axum::serve` has no header timeout, no connection limit and no TCP_NODELAY, hence this accept loop on
//! hyper. The caller brings the listener, the routes and the stop signal. Must not know messages beyond their size.
//!
//! Invariant: every connection is a task of one `JoinSet`; none outlives [`serve`].

mod auth;
mod body;
mod connection;
mod head_timer;
mod request;
mod socket;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rustix::process::{Resource, getrlimit};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use auth::Auth;
pub use body::{BODIES_BYTES_MAX, Budget, SendKind, idempotency_key, read_body};
pub use request::{feed_request, json, json_bytes, live, wants_ndjson};

use crate::api::key::Keys;

/// Pause after a failed accept, for instance without free file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Descriptors for files, for connections to other servers, and for what a library opens.
const DESCRIPTORS_RESERVED: usize = 128;
/// While no slot is free, connections that are idle or stall are closed at this interval.
const CROWDED_EVERY: Duration = Duration::from_millis(100);

/// A value, so that tests can use short times.
#[derive(Debug, Clone, Copy)]
struct ConnectionLimits {
    /// At the bound connections that are idle between two requests are closed, and no further connection is accepted
    /// until one ends; the kernel's backlog holds the next ones.
    connections: usize,
    /// At the bound a feed is refused as `overloaded`: feeds last, and the rest of the connections is for everything
    /// else.
    feeds: usize,
    /// Connections on which no key was shown yet, where one is needed. At the bound the oldest of them is dropped.
    unauthenticated: usize,
    /// To receive a request head, from its first byte on, and for the first one to begin; then the connection ends.
    head: Duration,
    /// The same for the first head while no slot is free; then the connection makes place for another one.
    crowded_head: Duration,
    /// For the client to send some more of a body while no slot is free; then the connection makes place for another
    /// one.
    crowded_stall: Duration,
    /// For the next request to begin on an idle connection; then the connection ends.
    idle: Duration,
    /// To receive a request and to begin the answer; then the answer is `timeout`.
    answer: Duration,
    /// For the reader to accept one write; then the connection ends: a stalled stream holds memory and a slot.
    write: Duration,
    /// For an unauthenticated client that is still sending to read the refusal; then the connection ends. Its body must
    /// not be read, and closing a socket with unread input sends RST, which loses the answer. So the socket half-closes
    /// first.
    linger: Duration,
    /// For open requests after the stop signal; then their connections are closed.
    drain: Duration,
}

const LIMITS: ConnectionLimits = ConnectionLimits {
    connections: 10_000,
    feeds: 7_500,
    unauthenticated: 1_000,
    head: Duration::from_secs(5),
    crowded_head: Duration::from_millis(500),
    crowded_stall: Duration::from_secs(3),
    idle: Duration::from_secs(75),
    answer: Duration::from_secs(30),
    write: Duration::from_secs(30),
    linger: Duration::from_secs(1),
    drain: Duration::from_secs(5),
};

impl ConnectionLimits {
    /// These limits, or what this many file descriptors allow, `each` for a connection.
    fn for_descriptors(self, count: usize, each: usize) -> Self {
        let connections = count.saturating_sub(DESCRIPTORS_RESERVED).max(count / 2) / each;
        let connections = connections.clamp(1, self.connections);
        let feeds = self.feeds.min((connections * 3 / 4).max(1));
        // Clients without a key must leave slots to those with one.
        let unauthenticated = self.unauthenticated.min((connections / 2).max(1));
        ConnectionLimits { connections, feeds, unauthenticated, ..self }
    }
}

/// Serves `app` until `stop`, then lets open requests finish for a few seconds. With `keys`, a request needs one of
/// them. Unknown paths and methods are refused here, so `app` needs no fallback. Endless streams must watch `stop`
/// themselves. `descriptors_each`: how many file descriptors a connection takes.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    keys: Option<Keys>,
    descriptors_each: usize,
    stop: CancellationToken,
) {
    let descriptors = getrlimit(Resource::Nofile).current.and_then(|count| usize::try_from(count).ok());
    let limits = LIMITS.for_descriptors(descriptors.unwrap_or(usize::MAX), descriptors_each);
    if limits.connections < LIMITS.connections / 2 {
        warn!(
            descriptors,
            connections = limits.connections,
            feeds = limits.feeds,
            "the limit of file descriptors allows few connections; raise it (ulimit -n, LimitNOFILE)"
        );
    }
    serve_within(limits, listener, app, keys, stop).await;
}

async fn serve_within(
    limits: ConnectionLimits,
    listener: TcpListener,
    app: Router,
    keys: Option<Keys>,
    stop: CancellationToken,
) {
    let (app, auth) = (request::with_refusals(app), Auth::new(keys, limits.unauthenticated));
    let feeds = Arc::new(Semaphore::new(limits.feeds));
    let server = Server { limits, app, auth, feeds, crowded: Arc::default(), stop };
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    // A connection that was accepted and has no slot yet. Further ones stay in the kernel's backlog.
    let mut waiting = None;
    let mut crowded_ticks = interval(CROWDED_EVERY);
    crowded_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept(), if waiting.is_none() => match accepted {
                Ok((socket, _)) => waiting = Some(socket),
                Err(e) if concerns_one_connection(&e) => debug!("a connection ended before it was accepted: {e}"),
                Err(e) => {
                    warn!("cannot accept connections: {e}");
                    sleep(ACCEPT_BACKOFF).await;
                }
            },
            Ok(slot) = slots.clone().acquire_owned(), if waiting.is_some() => {
                let socket = waiting.take().expect("checked above");
                connections.spawn(connection::run(server.clone(), socket, slot));
            }
            // Not restarted by connections that end: others that stall would keep their slots meanwhile.
            _ = crowded_ticks.tick(), if waiting.is_some() && slots.available_permits() == 0 => {
                server.crowded.notify_waiters();
            }
            Some(ended) = connections.join_next() => report(ended),
            () = server.stop.cancelled() => break,
        }
    }
    drop((listener, waiting)); // new clients are refused at once, and can ask another server
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if timeout(limits.drain, drained).await.is_err() {
        debug!("closing {} connections that did not end in time", connections.len());
        connections.shutdown().await;
    }
}

/// Errors that concern one connection, not the listener.
fn concerns_one_connection(e: &io::Error) -> bool {
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

/// What all connections share.
#[derive(Clone)]
struct Server {
    limits: ConnectionLimits,
    app: Router,
    auth: Auth,
    /// Feeds that may be opened.
    feeds: Arc<Semaphore>,
    /// Notified when no slot is free.
    crowded: Arc<Notify>,
    stop: CancellationToken,
}

#[cfg(test)]
mod tests;
