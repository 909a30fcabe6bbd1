//! A node: its store, its one writer, its HTTP and its exchanges with peers.
//!
//! [`Node`] is what handlers hold: a small handle, cheap to clone. [`run`](run::run) starts everything and ends
//! everything in order. The three flows here: a send goes http -> send -> writer -> store and back; a read goes
//! http -> history -> store (a feed: http -> feed -> store or hub); an exchange goes replicate -> chain::sync -> writer.

mod cluster;
mod http;
mod incidents;
mod live_feed;
mod maintenance;
mod pid;
mod recovery;
pub mod run;
mod slot;
mod status;
mod store_fault;
mod writer;

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use crate::api::network::NodeId;
use crate::chain::logs::Logs;
use crate::chain::sync::wire::EntryRange;
use crate::config::NodeConfig;
use crate::serve::{BODIES_BYTES_MAX, Budget};
use crate::store::Store;
use cluster::Cluster;
use live_feed::LiveFeed;
use writer::Writer;

pub use run::run;

/// Why a node cannot run, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its store cannot be opened.
    #[error(transparent)]
    Open(#[from] crate::store::OpenError),
    /// The system refused something at the start.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    /// Something that must go on ended.
    #[error("{0}")]
    Ended(String),
}

/// Steps through history that run at the same time. At the bound the next one waits its turn: long searches must not
/// take all threads from exchanges, nor all processors from sends.
const READERS_MAX: usize = 4;

/// Readers who keep their way through the store while they take what they were given: a buffer of up to a megabyte (a large
/// page of history: four), and some 150 bytes for each log. The others find it anew for each piece, which takes longer.
const ITERATORS_MAX: usize = 32;

/// Resources that all requests of a node share. Each has a bound, so no request can use up all of one.
#[derive(Clone)]
struct Limits {
    /// Memory for request bodies.
    bodies: Budget,
    readers: Arc<Semaphore>,
    iterators: Arc<Semaphore>,
}

impl Limits {
    fn new() -> Self {
        Limits {
            bodies: Budget::new(BODIES_BYTES_MAX),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
            iterators: Arc::new(Semaphore::new(ITERATORS_MAX)),
        }
    }
}

/// A handle to a node whose store is open. Cheap to clone; handlers hold it for one request only.
#[derive(Clone)]
pub struct Node {
    config: Arc<NodeConfig>,
    store: Arc<Store>,
    writer: Writer,
    cluster: Arc<Cluster>,
    live_feed: Arc<LiveFeed>,
    limits: Limits,
}

impl Node {
    /// The durable state of all logs.
    fn logs(&self) -> Arc<Logs> {
        self.writer.logs.borrow().clone()
    }

    /// Changes with every commit.
    fn logs_signal(&self) -> watch::Receiver<Arc<Logs>> {
        self.writer.logs.clone()
    }

    /// The nodes that are known to have a message on disk, which stands at any of these places.
    fn durable_on(&self, copies: &[EntryRange]) -> Vec<NodeId> {
        let wounds = self.store.log().damage();
        let is_whole = |copy: &EntryRange| wounds.within(copy.origin, copy.first, copy.last).is_empty();
        self.cluster.holders(copies, copies.iter().any(is_whole), self.logs().vector())
    }
}

/// The wall clock, in Unix milliseconds: the one place that reads it.
#[expect(clippy::disallowed_methods, reason = "the licensed place: below, `now` is an argument")]
fn now_ms() -> u64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_1970.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
