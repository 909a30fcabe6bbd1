//! A node: its store, its one writer, its HTTP paths, and its exchanges with peers.
//!
//! [`Node`] is the handle that request handlers get. [`run`](run::run) starts everything and ends it in order. The head
//! of the crate names the files of each flow. A node knows nothing of the proxy.

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
use std::sync::atomic::AtomicBool;

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::api::error::{ErrorCode, Problem};
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
    #[error(transparent)]
    Open(#[from] crate::store::OpenError),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    #[error("{0}")]
    Ended(String),
}

/// Short reads, and chunks of feeds, that run at the same time. At the bound the next one waits: readers must not take
/// all threads from exchanges, nor all processors from sends.
const READERS_MAX: usize = 4;
/// The same for chunks of long reads: searches and whole listings share at most half of the processors, so that a short
/// read finds one that is free. At the bound they take turns.
const SCANS_MAX: usize = 2;

/// Bytes that are parsed or hashed where they are, in about a millisecond. More go to a blocking thread.
const INLINE_BYTES_MAX: usize = 128 << 10;

/// Readers that may keep an open iterator between chunks: a buffer of up to a megabyte each (four for a large page),
/// and some 150 bytes for each log. At the bound the others seek again for each chunk, which is slower.
const ITERATORS_MAX: usize = 32;

/// Resources that all requests of a node share. Each has a bound, so no request can use up all of one.
#[derive(Clone)]
struct Limits {
    bodies: Budget,
    /// Memory for the answers of exchanges.
    answers: Budget,
    readers: Arc<Semaphore>,
    scans: Arc<Semaphore>,
    computations: Arc<Semaphore>,
    iterators: Arc<Semaphore>,
    /// A listing was aborted by damage, so the next one checks all of history before it answers.
    check_history: Arc<AtomicBool>,
}

impl Limits {
    fn new() -> Self {
        let semaphore = |count| Arc::new(Semaphore::new(count));
        let (readers, iterators) = (semaphore(READERS_MAX), semaphore(ITERATORS_MAX));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let scans = semaphore((processors / 2).clamp(1, SCANS_MAX));
        let computations = semaphore(processors);
        let check_history = Arc::default();
        Limits {
            bodies: Budget::new(BODIES_BYTES_MAX),
            answers: Budget::new(cluster::answer::ANSWERS_BYTES_MAX),
            readers,
            scans,
            computations,
            iterators,
            check_history,
        }
    }
}

impl Limits {
    /// Runs work whose CPU time grows with these bytes. If they are many, it runs on a blocking thread, as many at a
    /// time as there are processors: on a worker of the runtime it would delay all requests of that worker.
    async fn compute<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        if bytes <= INLINE_BYTES_MAX {
            return Ok(work());
        }
        let permit = self.computations.clone().acquire_owned().await;
        let computing = move || {
            let _permit = permit; // kept to the end of the work even if its request was dropped
            work()
        };
        tokio::task::spawn_blocking(computing).await.map_err(|error| {
            tracing::error!(%error, "a computation panicked");
            Problem::new(ErrorCode::Internal, "a mistake in this server, which its log describes")
        })
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

    /// The nodes that are known to have a message on disk, whose copies are these entries.
    fn durable_on(&self, copies: &[EntryRange]) -> Vec<NodeId> {
        let damage = self.store.log().damage();
        let is_undamaged = |copy: &EntryRange| damage.within(copy.origin, copy.first, copy.last).is_empty();
        self.cluster.holders(copies, copies.iter().any(is_undamaged))
    }
}

/// Runs this on a blocking thread. A panic there is an error as well.
async fn blocking<T: Send + 'static, E: ToString + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// The same for work that can take minutes. The work asks from time to time whether the caller still waits, and ends if
/// not.
async fn blocking_while_awaited<T: Send + 'static, E: ToString + Send + 'static>(
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    let awaited = CancellationToken::new();
    let ended = awaited.clone();
    let _cancels_when_dropped = awaited.drop_guard();
    blocking(move || work(&|| !ended.is_cancelled())).await
}

/// The wall clock, in Unix milliseconds. The only code that reads it.
#[expect(clippy::disallowed_methods, reason = "the one place: below `node`, `now` is an argument")]
fn now_ms() -> u64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_1970.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
