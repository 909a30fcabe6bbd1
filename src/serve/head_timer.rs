//! Owns how long a connection waits for a request head: briefly once its first byte came, and longer while the
//! connection is idle between two requests.
//!
//! hyper has one timeout for both, and takes its timer from us. So the timer knows when the first byte of a head came:
//! [`HeadReader`] notes it. Must not know requests.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use tokio::io::{AsyncRead, ReadBuf};

/// What the reader and the timer of one connection share.
#[derive(Debug, Clone, Default)]
struct HeadState(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// A request has been read: the connection may be idle for longer.
    is_reused: bool,
    /// When the first byte of the head that is awaited came.
    began: Option<tokio::time::Instant>,
}

impl HeadState {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // no code under the lock panics
    }
}

/// A reader of a connection, and hyper's timer for its request heads: `head` from the first byte of a head on, and for
/// the first head of all; `idle` between two requests.
pub(super) fn head_timer<R>(reader: R, head: Duration, idle: Duration) -> (HeadReader<R>, HeadTimer) {
    let state = HeadState::default();
    (HeadReader { reader, state: state.clone() }, HeadTimer { state, head, idle })
}

pub(super) struct HeadReader<R> {
    reader: R,
    state: HeadState,
}

impl<R: AsyncRead + Unpin> AsyncRead for HeadReader<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.reader).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.state.lock().began.get_or_insert_with(tokio::time::Instant::now);
        }
        read
    }
}

pub(super) struct HeadTimer {
    state: HeadState,
    head: Duration,
    idle: Duration,
}

impl Timer for HeadTimer {
    fn sleep(&self, _duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now())
    }

    /// Called when hyper begins to wait for a head. It knows one duration only, which is not used.
    fn sleep_until(&self, _deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let mut state = self.state.lock();
        state.began = None;
        let most = if std::mem::replace(&mut state.is_reused, true) { self.idle } else { self.head };
        drop(state);
        let until = tokio::time::Instant::now() + most;
        let (state, head) = (self.state.clone(), self.head);
        Box::pin(HeadSleep { sleep: Box::pin(tokio::time::sleep_until(until)), until, state, head })
    }
}

/// Ends when the head is late.
struct HeadSleep {
    sleep: Pin<Box<tokio::time::Sleep>>,
    /// When it is late if no byte of it comes.
    until: tokio::time::Instant,
    state: HeadState,
    head: Duration,
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let began = self.state.lock().began;
        let until = began.map_or(self.until, |began| began + self.head);
        if self.sleep.deadline() != until {
            self.sleep.as_mut().reset(until);
        }
        self.sleep.as_mut().poll(context)
    }
}
