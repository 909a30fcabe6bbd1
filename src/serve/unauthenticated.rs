//! Owns the connections on which nobody has shown a key yet: how many there may be, and which one makes room for the next.
//!
//! Who knows the key shows it at once, so who has waited longest is the least likely to. Thus strangers who say nothing,
//! on as many connections as they like, keep nobody out. Where there is no lock, nobody is a stranger.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

/// All of them. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct UnauthenticatedConnections {
    waiting: Arc<Mutex<Waiting>>,
    most: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// In the order in which they came.
    connections: BTreeMap<u64, CancellationToken>,
}

impl Waiting {
    fn insert(&mut self, cut: &CancellationToken, most: usize) -> u64 {
        if self.connections.len() >= most
            && let Some((_, longest)) = self.connections.pop_first()
        {
            longest.cancel();
        }
        self.next += 1;
        self.connections.insert(self.next, cut.clone());
        self.next
    }
}

impl UnauthenticatedConnections {
    pub(super) fn new(most: usize) -> Self {
        Self { waiting: Arc::default(), most }
    }

    /// One more connection. One of somebody known takes no room.
    pub(super) fn enter(&self, known: bool) -> UnauthenticatedConnection {
        let cut = CancellationToken::new();
        let number = if known { 0 } else { self.lock().insert(&cut, self.most) };
        UnauthenticatedConnection { strangers: self.clone(), number, cut, known: known.into() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner) // nothing is done under it that could panic
    }
}

/// One of them, for as long as its connection lives.
#[derive(Debug)]
pub(super) struct UnauthenticatedConnection {
    strangers: UnauthenticatedConnections,
    number: u64,
    cut: CancellationToken,
    known: AtomicBool,
}

impl UnauthenticatedConnection {
    /// It is none any more.
    pub(super) fn becomes_known(&self) {
        if !self.known.swap(true, Ordering::Relaxed) {
            self.strangers.lock().connections.remove(&self.number);
        }
    }

    /// Waits until it has to end for others.
    pub(super) async fn makes_room(&self) {
        self.cut.cancelled().await;
    }
}

impl Drop for UnauthenticatedConnection {
    fn drop(&mut self) {
        self.becomes_known(); // whoever they were, they wait no more
    }
}
