//! Owns the socket of a connection: its two sides, for the HTTP library, when the last byte came, and the notice that the
//! client left.
//!
//! Both sides borrow one socket, so that a third reader can watch it. Must not know requests.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Interval at which a connection is watched on which there is input that waits for the end of an answer.
const WATCH_EVERY: Duration = Duration::from_millis(50);

/// Reads from or writes to a socket. Dropping it closes nothing.
pub(super) struct SocketSide<'a> {
    pub(super) socket: &'a TcpStream,
    pub(super) last_read: &'a LastRead,
}

/// When the last byte came on a connection, or when it began.
pub(super) struct LastRead(Mutex<Instant>);

impl Default for LastRead {
    fn default() -> Self {
        LastRead(Mutex::new(Instant::now()))
    }
}

impl LastRead {
    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // no code under the lock panics
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.lock().elapsed()
    }
}

impl AsyncRead for SocketSide<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_read_ready(context))?;
            // Into the buffer as it is: to clear it first costs 2 % of a send.
            match self.socket.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    *self.last_read.lock() = Instant::now();
                    return Poll::Ready(read.map(drop));
                }
            }
        }
    }
}

impl SocketSide<'_> {
    fn poll_io(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(context))?;
            match write(self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for SocketSide<'_> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_io(context, |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_io(context, |socket| socket.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match SockRef::from(self.socket).shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            shut_down => shut_down,
        })
    }
}

/// Returns when the client has closed its sending side, or the connection broke. What a client that closed both sides
/// sends is the same.
pub(super) async fn client_left(socket: &TcpStream) {
    while socket.ready(Interest::READABLE).await.is_ok_and(|ready| !ready.is_read_closed()) {
        sleep(WATCH_EVERY).await;
    }
}
