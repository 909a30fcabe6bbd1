//! A socket whose writes must make progress, and which may outlive its last answer for a moment.
//!
//! A reader that takes nothing for the given time is cut off, however little it would cost to keep it: a
//! stalled stream holds memory and a connection slot. Reading is bounded elsewhere (head and answer timeouts).
//! Whoever still sends when a socket is closed gets a reset, by which the answer is lost. Where what they send must not be
//! read, the socket is kept for a while instead, unread, with its writing side closed.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// Whether a socket is kept for a while at its end. All clones are of one socket.
#[derive(Debug, Clone, Default)]
pub(super) struct Linger(Arc<AtomicBool>);

impl Linger {
    /// It is, from now on.
    pub(super) fn at_the_end(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The socket, and the deadline of the write that is pending.
pub(super) struct WriteTimeout<S> {
    socket: S,
    limit: Duration,
    /// Made with the first write that has to wait, then reused.
    deadline: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    linger: (Linger, Duration),
    /// Made when it begins to linger.
    end: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeout<S> {
    pub(super) fn new(socket: S, limit: Duration, linger: (Linger, Duration)) -> Self {
        Self { socket, limit, deadline: None, waiting: false, linger, end: None }
    }

    /// Turns a write that has been pending for too long into an error.
    fn watch<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.waiting = false;
            return write;
        }
        let until = Instant::now() + self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if !self.waiting {
            deadline.as_mut().reset(until);
            self.waiting = true;
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
        self.watch(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.watch(cx, write)
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
        self.end.get_or_insert_with(|| Box::pin(sleep_until(until))).as_mut().poll(cx).map(Ok)
    }
}
