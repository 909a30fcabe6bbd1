//! Owns a node's life: open the store, start what must go on, and end everything in order.
//!
//! The stop order: no more connections, open requests finish, exchanges end, the writer commits what it has, the indexer
//! ends, the databases close. `kill -9` loses nothing acknowledged; the order is politeness. Whatever must go
//! on and ends early ends the node with its reason. A store that fails is closed while the address keeps answering, and
//! opened again every second until that works (see `recovery`): with another open id, and another log for what is sent from
//! then on.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::cluster::Cluster;
use super::incidents::Incidents;
use super::live_feed::LiveFeed;
use super::pid::PidFile;
use super::recovery::{OpenedStore, StoreOpener};
use super::slot::{NodeSlot, SlotState};
use super::store_fault::StoreFault;
use super::writer::Writer;
use crate::chain::members::{self, MemberId};
use crate::chain::sync::wire::Hello;
use crate::config::NodeConfig;
use crate::node::cluster::sync;
use crate::node::{Limits, Node, NodeError, http, live_feed, maintenance, now_ms, status};
use crate::serve;
use crate::store::Store;

/// Whoever still reads a store that is being closed has so long to end; streams do within their own time. Then the node
/// ends with that reason.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether a reader saw the engine fail.
const READ_FAULT_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Runs a node on this listener until `stop`.
pub async fn run(
    config: NodeConfig,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), NodeError> {
    let (config, started, notes) = (Arc::new(config), Instant::now(), Incidents::default());
    let mut opener = StoreOpener::new(config.clone()).await;
    let begin = |opened| OpenNode::start(&config, opened, started, notes.clone(), stop.child_token());
    let (seat, mut life) = match opener.open().await? {
        Ok(opened) => {
            log_start(&config, opened.0.log().membership().members.count()); // before the exchanges have something to say
            let life = begin(opened)?;
            (NodeSlot::new(SlotState::Open(life.node.clone())), Some(life))
        }
        // As later on: the disk may come to its senses, and until then the address says what is wrong.
        Err(error) if error.is_transient() => {
            log_start(&config, 0);
            tracing::error!(%error, "the store does not open");
            (NodeSlot::new(SlotState::Closed(error.to_string(), Box::new(status::unopened(&config)))), None)
        }
        Err(error) => return Err(error.into()),
    };
    let pid = PidFile::write(&config.store_dir);
    let serving = serve::serve(listener, http::routes(seat.clone()), config.keys.clone(), stop.clone());
    tokio::pin!(serving);
    let ended = loop {
        let Some(current) = &mut life else {
            tokio::select! {
                () = &mut serving => break Ok(()),
                opened = opener.reopen(&seat) => life = Some(begin(opened)?),
            }
            seat.open(life.as_ref().expect("begun just now").node.clone());
            continue;
        };
        let why = tokio::select! {
            () = &mut serving => break Ok(()),
            why = current.ended() => why,
        };
        match why {
            EndReason::TaskEnded(why) => break Err(NodeError::Ended(why)),
            EndReason::StoreFailed(why) => {
                opener.store_failed();
                notes.add(format!("node {} opened its store anew: {why}", config.node_id));
                let life = life.take().expect("it ended just now");
                seat.close(why, status::status(&life.node));
                // The address answers meanwhile: without being polled, it accepts nobody.
                let closing = life.end();
                tokio::pin!(closing);
                tokio::select! {
                    () = &mut serving => return closing.await,
                    closed = &mut closing => closed?,
                }
            }
        }
    };
    if ended.is_err() {
        stop.cancel();
        serving.await;
    }
    drop(seat);
    drop(pid); // while the store is still ours
    if let Some(life) = life {
        if ended.is_ok() {
            life.node.store.will_stop_cleanly();
        }
        life.end().await?;
    }
    ended
}

/// Why a life ends although nobody stopped it.
enum EndReason {
    /// Something that must go on did not.
    TaskEnded(String),
    /// The store must not be believed.
    StoreFailed(String),
}

/// What goes on while a store is open: from one opening to the next everything begins anew.
struct OpenNode {
    node: Node,
    writing: JoinHandle<()>,
    indexing: JoinHandle<()>,
    indexer_ended: oneshot::Receiver<()>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl OpenNode {
    fn start(
        config: &Arc<NodeConfig>,
        (store, logs): OpenedStore,
        started: Instant,
        notes: Incidents,
        feeds_end: CancellationToken,
    ) -> Result<Self, NodeError> {
        let cluster = Arc::new(Cluster::new(
            config,
            identity(config, &store),
            store.log().membership(),
            started,
            notes,
        ));
        let (writer, writing) = Writer::start(store.clone(), logs, config.store_dir.clone(), now_ms)?;
        let (indexing, indexer_ended) = start_indexer(store.clone(), writer.fault().clone())?;
        let live_feed = Arc::new(LiveFeed::new(feeds_end));
        let node = Node { config: config.clone(), store, writer, cluster, live_feed, limits: Limits::new() };
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(sync::run(node.clone(), stop.clone()));
        tasks.spawn(maintenance::run(node.clone()));
        tasks.spawn(live_feed::run(node.clone()));
        tasks.spawn(maintenance::mark_healthy_later(node.clone()));
        Ok(OpenNode { node, writing, indexing, indexer_ended, tasks, stop })
    }

    /// Waits for the end of something that must go on.
    async fn ended(&mut self) -> EndReason {
        // Whether the writer is alive shows in its signal: the sending end is gone once the thread is.
        let mut signal = self.node.logs_signal();
        let writer_ended = async move { while signal.changed().await.is_ok() {} };
        let alarm = self.node.writer.fault().clone();
        let store = self.node.store.clone();
        let reads_failed = async move {
            loop {
                if let Some(why) = store.read_failure() {
                    return format!("reading failed: {why}");
                }
                tokio::time::sleep(READ_FAULT_POLL_INTERVAL).await;
            }
        };
        tokio::select! {
            biased;
            why = reads_failed => EndReason::StoreFailed(why),
            why = alarm.raised() => EndReason::StoreFailed(why),
            () = writer_ended => EndReason::TaskEnded("the writer ended; the log says why".into()),
            _ = &mut self.indexer_ended => EndReason::TaskEnded("the indexer ended; the log says why".into()),
            why = task_ended(&mut self.tasks, &alarm) => why,
        }
    }

    /// Ends all of it, in order: exchanges, writer, indexer, store.
    async fn end(mut self) -> Result<(), NodeError> {
        self.stop.cancel();
        self.node.live_feed.stop().cancel();
        self.tasks.shutdown().await;
        self.node.writer.stop();
        self.node.store.stop_indexing();
        let store = Arc::downgrade(&self.node.store);
        drop(self.node);
        let (writing, indexing) = (self.writing, self.indexing);
        let closing = tokio::task::spawn_blocking(move || {
            for (name, thread) in [("writer", writing), ("indexer", indexing)] {
                if thread.join().is_err() {
                    tracing::error!("the {name} panicked");
                }
            }
        });
        if let Err(error) = closing.await {
            tracing::error!(%error, "closing the store");
        }
        let began = Instant::now();
        while store.strong_count() > 0 {
            if began.elapsed() > CLOSE_TIME_MAX {
                return Err(NodeError::Ended("the store cannot be closed: something still reads it".into()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// `members`: those that its store knows, itself among them if it was open before.
fn log_start(config: &NodeConfig, members: usize) {
    tracing::info!(node = config.node_id, address = %config.advertise, network = config.network, "serving");
    if config.peers.is_empty() && members < 2 {
        tracing::warn!("this node has no peers: its messages are on no other machine");
    }
    if !config.listen.is_loopback() && config.keys.is_none() {
        tracing::warn!(
            listen = %config.listen,
            "listening beyond this machine without a key: whoever reaches this port can read and write everything"
        );
    }
}

/// Who this node is to its peers, as of this opening of its store.
fn identity(config: &NodeConfig, store: &Store) -> Hello {
    Hello {
        network: Hello::network_hash(&config.network),
        node_id: config.node_id,
        store_id: store.id().0,
        open_id: next_open_id(store, config),
        address: config.advertise.to_string(),
    }
}

/// Later than the last one at this place, also if the clock was set back: a smaller one would be taken for an old word.
fn next_open_id(store: &Store, config: &NodeConfig) -> [u8; 16] {
    let name = MemberId { node_id: config.node_id, store_id: store.id().0 };
    let last = members::latest(store.log().membership().members.iter(), name, &config.advertise.to_string());
    let last = last.map_or(0, u128::from_be_bytes);
    Uuid::now_v7().as_u128().max(last.saturating_add(1)).to_be_bytes()
}

/// Waits for a task that ends although the node does not.
async fn task_ended(tasks: &mut JoinSet<()>, alarm: &StoreFault) -> EndReason {
    match tasks.join_next().await {
        _ if alarm.is_raised() => EndReason::StoreFailed(alarm.raised().await),
        Some(Err(error)) => EndReason::TaskEnded(format!("a background task ended: {error}")),
        Some(Ok(())) => EndReason::TaskEnded("a background task ended; the log says why".into()),
        None => std::future::pending().await,
    }
}

/// The thread that indexes behind the acknowledgements.
///
/// The second value is dropped when it ends.
fn start_indexer(
    store: Arc<Store>,
    alarm: StoreFault,
) -> std::io::Result<(JoinHandle<()>, oneshot::Receiver<()>)> {
    let (alive, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("indexer".into()).spawn(move || {
        let _alive = alive;
        while store.wait_for_index_work() {
            if let Err(error) = store.flush_index() {
                tracing::error!(%error, "indexing failed");
                alarm.raise(format!("the index cannot be written: {error}"));
                return;
            }
        }
    })?;
    Ok((thread, ended))
}
