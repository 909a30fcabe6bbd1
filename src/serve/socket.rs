//! Owns a socket with a timeout for writes, and with an optional delay before it closes.
//!
//! A reader that accepts no bytes for the given time is disconnected: a stalled stream holds memory and a connection slot.
//! Reads are bounded elsewhere (timeouts for the head and the answer). Closing a socket with unread input sends RST,
//! which loses the answer. Where the input must not be read, the socket half-closes and waits briefly instead.
//! Must not know HTTP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Whether a socket waits briefly before it closes. All clones belong to one socket.
#[derive(Debug, Clone, Default)]
pub(super) struct Linger(Arc<AtomicBool>);

impl Linger {
    pub(super) fn enable(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A socket with a timeout for writes.
pub(super) struct WriteTimeout<S> {
    socket: S,
    limit: Duration,
    /// Created by the first write that waits, then reused.
    deadline: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
    linger: (Linger, Duration),
    /// Created when the delay before closing begins.
    close_at: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeout<S> {
    pub(super) fn new(socket: S, limit: Duration, linger: (Linger, Duration)) -> Self {
        Self { socket, limit, deadline: None, is_waiting: false, linger, close_at: None }
    }

    /// Turns a write that is pending for too long into an error.
    fn check_deadline<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.is_waiting = false;
            return write;
        }
        let until = Instant::now() + self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if !self.is_waiting {
            deadline.as_mut().reset(until);
            self.is_waiting = true;
        }
        deadline
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the reader takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.check_deadline(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.check_deadline(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
        let (Linger(lingers), time) = &self.linger;
        if !lingers.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let until = Instant::now() + *time;
        self.close_at.get_or_insert_with(|| Box::pin(sleep_until(until))).as_mut().poll(cx).map(Ok)
    }
}
