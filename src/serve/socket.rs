//! Owns the socket of a connection: its two sides, for the HTTP library, whether bytes move on them, and the notice that
//! the client left.
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
    pub(super) progress: &'a Progress,
}

/// When bytes moved on a connection.
pub(super) struct Progress(Mutex<LastMoves>);

struct LastMoves {
    read: Instant,
    /// Since when the client has accepted nothing of what is to be written.
    write_blocked: Option<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        Progress(Mutex::new(LastMoves { read: Instant::now(), write_blocked: None }))
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, LastMoves> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // no code under the lock panics
    }

    /// The time since the last byte came, or since the connection began.
    pub(super) fn since_read(&self) -> Duration {
        self.lock().read.elapsed()
    }

    /// How long the client has accepted nothing; zero while nothing is to be written.
    pub(super) fn write_blocked(&self) -> Duration {
        self.lock().write_blocked.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn wrote(&self, is_blocked: bool) {
        let blocked = &mut self.lock().write_blocked;
        *blocked = is_blocked.then(|| blocked.unwrap_or_else(Instant::now));
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
                    self.progress.lock().read = Instant::now();
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
            if self.socket.poll_write_ready(context)?.is_pending() {
                self.progress.wrote(true);
                return Poll::Pending;
            }
            match write(self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.progress.wrote(false);
                    return Poll::Ready(written);
                }
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
