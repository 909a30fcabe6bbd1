//! Owns one connection: from the accepted socket to its end.
//!
//! hyper reads the requests and writes the answers; `request` answers them. Beside that, signals from elsewhere may end
//! the connection: it must make place for others, the client left, the server stops. They are polled only when one of
//! them is there, and not at every byte.

use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::extract::Request;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::join;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::auth::{Access, ConnectionAuth};
use super::body::{BodyWatch, SharedBody};
use super::request::Shared;
use super::socket::{LastRead, SocketSide};
use super::{ConnectionLimits, Server, head_timer, request, socket};

/// A longer request head gets the HTTP library's 431, without a body.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Limit of unsent bytes in the kernel per connection. Without it, each stalled reader would hold megabytes.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// What a connection hears from elsewhere.
enum Signal {
    /// The client has closed its sending side.
    ClientLeft,
    /// A newer connection without a key takes the place of this one.
    MustEnd,
    /// No slot is free.
    Crowded,
    /// The server stops.
    Stop,
}

/// Serves one connection to its end.
pub(super) async fn run(server: Server, socket: TcpStream, _slot: OwnedSemaphorePermit) {
    let Server { limits, app, auth, feeds, crowded, stop } = server;
    if let Err(e) = socket.set_nodelay(true) {
        debug!("cannot set TCP_NODELAY: {e}"); // slower, not wrong
    }
    if let Err(e) = SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
        debug!("cannot set TCP_NOTSENT_LOWAT: {e}"); // more memory, not wrong
    }
    let (auth, is_body_unread) = (auth.connection(), AtomicBool::new(false));
    let (last_read, requests) = (LastRead::default(), Requests::default());
    let left = CancellationToken::new();
    let side = || SocketSide { socket: &socket, last_read: &last_read };
    let (reader, timer) = head_timer::head_timer(side(), limits.head, limits.idle);
    let mut writer = TimeoutWriter::new(side());
    writer.set_timeout(Some(limits.write));
    // Admitted before the future is made: the HTTP library reads the body before it first polls the future.
    let service = service_fn(|request: Request<Incoming>| {
        let has_body = !request.body().is_end_stream();
        let (access, request) = auth.admit(request);
        if access != Access::Authenticated && has_body {
            is_body_unread.store(true, Ordering::Relaxed);
        }
        let request = request.map(SharedBody::new);
        requests.begin(request.body());
        let shared =
            Shared { app: app.clone(), feeds: feeds.clone(), limit: limits.answer, left: left.clone() };
        request::answer(shared, access, request)
    });
    let connection = http1::Builder::new()
        .timer(timer)
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_BYTES_MAX)
        // A client may close its sending side (`nc -N`) and still wait for the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(join(reader, Box::pin(writer))), service);
    tokio::pin!(connection);
    let mut signals = Signals::new(&socket, &auth, &stop, &crowded);
    let ended = loop {
        let signal = tokio::select! {
            biased;
            ended = &mut connection => break ended,
            signal = signals.next() => signal,
        };
        match signal {
            Signal::ClientLeft => left.cancel(),
            Signal::MustEnd => return,
            Signal::Crowded if requests.is_stalled(&last_read, limits) => return,
            Signal::Crowded => {
                if requests.has_any() {
                    connection.as_mut().graceful_shutdown(); // at once if it is idle
                }
                signals.expect_crowded();
            }
            Signal::Stop => {
                connection.as_mut().graceful_shutdown();
                break connection.await;
            }
        }
    };
    match ended {
        Err(e) => debug!("a connection ended early: {e}"),
        // The socket is half-closed now, and closes at the end of this function.
        Ok(()) if is_body_unread.load(Ordering::Relaxed) => {
            let _either = timeout(limits.linger, auth.must_end()).await;
        }
        Ok(()) => {}
    }
}

/// The signals that have not come yet.
struct Signals<'a> {
    pending: FuturesUnordered<Pin<Box<dyn Future<Output = Signal> + Send + 'a>>>,
    crowded: &'a Notify,
}

impl<'a> Signals<'a> {
    fn new(
        socket: &'a TcpStream,
        auth: &'a ConnectionAuth,
        stop: &'a CancellationToken,
        crowded: &'a Notify,
    ) -> Self {
        let signals = Signals { pending: FuturesUnordered::new(), crowded };
        signals.expect(socket::client_left(socket), Signal::ClientLeft);
        signals.expect(auth.must_end(), Signal::MustEnd);
        signals.expect(stop.cancelled(), Signal::Stop);
        signals.expect_crowded();
        signals
    }

    /// This signal comes more than once.
    fn expect_crowded(&self) {
        self.expect(self.crowded.notified(), Signal::Crowded);
    }

    fn expect(&self, event: impl Future<Output = ()> + Send + 'a, signal: Signal) {
        self.pending.push(Box::pin(event.map(|()| signal)));
    }

    async fn next(&mut self) -> Signal {
        match self.pending.next().await {
            Some(signal) => signal,
            None => pending().await,
        }
    }
}

/// The requests of a connection, as far as they decide whether it makes place for others.
struct Requests {
    accepted: Instant,
    /// The body of the last request; `None` before the first one.
    last_body: Mutex<Option<BodyWatch>>,
}

impl Default for Requests {
    fn default() -> Self {
        Requests { accepted: Instant::now(), last_body: Mutex::default() }
    }
}

impl Requests {
    fn last_body(&self) -> MutexGuard<'_, Option<BodyWatch>> {
        self.last_body.lock().unwrap_or_else(PoisonError::into_inner) // no code under the lock panics
    }

    fn begin(&self, body: &SharedBody) {
        *self.last_body() = Some(body.watch());
    }

    fn has_any(&self) -> bool {
        self.last_body().is_some()
    }

    /// Whether the client keeps a slot without doing its part: it has not sent a request yet, or sends no more of its
    /// body. Nothing of a request with half a body is stored. A reader is not judged: the kernel does not tell whether
    /// a slow one reads on until it has read 64 KiB.
    fn is_stalled(&self, last_read: &LastRead, limits: ConnectionLimits) -> bool {
        match &*self.last_body() {
            // A client that is about to send a request does so within a round trip.
            None => self.accepted.elapsed() >= limits.crowded_head,
            Some(body) => body.is_unfinished() && last_read.elapsed() >= limits.crowded_stall,
        }
    }
}
