//! Owns the life of a node: open the store, start its threads and tasks, and end all of them in order.
//!
//! - The address answers from the start. While the store opens for the first time, all but `/livez` is refused as
//!   `starting`.
//! - The order at the end: no more connections, open requests finish, exchanges end, the writer commits what waits, the
//!   indexer ends, the databases close. `kill -9` loses nothing that was acknowledged; the order only makes the next
//!   start fast.
//! - A thread or task that ends early ends the node, with the reason. If it raised the store fault, only the store is
//!   opened again.
//! - A store that fails is closed while the address keeps answering. It is opened again every second until that works
//!   (see `recovery`), as a new incarnation, which appends to a new log.

use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
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
use crate::chain::members::MemberId;
use crate::chain::sync::wire::Hello;
use crate::config::NodeConfig;
use crate::node::cluster::{roster, sync};
use crate::node::{Limits, Node, NodeError, blocking, http, live_feed, maintenance, now_ms, status};
use crate::serve;
use crate::store::{OpenError, Store};

/// How long closing the store waits for requests that still read it. After it the node ends with an error.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(60);
/// How long a stop waits for an opening of the store that is under way. A large store takes minutes, in which a service
/// manager would kill the process.
const OPENING_TIME_MAX: Duration = Duration::from_secs(1);
/// Poll interval for storage read errors, for files that were removed, and for threads that ended early.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Runs a node on this listener until `stop`.
pub async fn run(
    config: NodeConfig,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), NodeError> {
    let (config, started, incidents) = (Arc::new(config), Instant::now(), Incidents::default());
    let (slot, pid) = (NodeSlot::new(SlotState::Starting), PidFile::write(&config.store_dir));
    let serving = serve::serve(listener, http::routes(slot.clone()), config.keys.clone(), 1, stop.clone());
    tokio::pin!(serving);
    let mut store_opener = StoreOpener::new(config.clone());
    let Some(opened) = open_first(&mut store_opener, serving.as_mut()).await? else {
        return Ok(());
    };
    let start = |opened| OpenNode::start(&config, opened, started, incidents.clone(), stop.child_token());
    let mut open_node = match opened {
        Ok(opened) => {
            log_start(&config, opened.0.log().membership().members.count()); // before the exchanges log anything
            let node = start(opened)?;
            slot.set(SlotState::Open(node.node.clone()));
            Some(node)
        }
        // The error may pass, so opening is retried as after a failure. Until then the address says what is wrong.
        Err(error) if error.is_transient() => {
            log_start(&config, 0);
            tracing::error!(%error, "the store does not open");
            slot.set(SlotState::Closed(error.to_string(), Box::new(status::unopened(&config))));
            None
        }
        Err(error) => return Err(error.into()),
    };
    let ended = loop {
        let Some(current) = &mut open_node else {
            tokio::select! {
                () = &mut serving => break Ok(()),
                opened = store_opener.reopen(&slot) => {
                    let started = start(opened)?;
                    slot.set(SlotState::Open(started.node.clone()));
                    open_node = Some(started);
                }
            }
            continue;
        };
        pid.write_again();
        let why = tokio::select! {
            () = &mut serving => break Ok(()),
            failed = current.wait_for_store_failure() => match failed {
                Ok(why) => why,
                Err(ended) => break Err(ended),
            },
        };
        if current.is_store_suspect() {
            store_opener.store_failed();
        }
        incidents.add(format!("node {} opened its store again: {why}", config.node_id));
        let failed = open_node.take().expect("ended just now");
        slot.set(SlotState::Closed(why, Box::new(status::status(&failed.node))));
        // `serving` is polled meanwhile, or no connection would be accepted.
        let closing = failed.end();
        tokio::pin!(closing);
        tokio::select! {
            () = &mut serving => return closing.await,
            closed = &mut closing => closed?,
        }
    };
    if ended.is_err() {
        stop.cancel();
        serving.await;
    }
    drop(slot);
    drop(pid); // before the lock on the store is released
    match open_node {
        Some(open_node) => open_node.end_for_good(ended.is_ok()).await?,
        None => store_opener.give_up(),
    }
    ended
}

/// Opens the store for the first time, while the address answers already. `None`: the node was stopped meanwhile. If the
/// store opens soon after that, it is closed in order.
async fn open_first(
    store_opener: &mut StoreOpener,
    serving: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<Result<OpenedStore, OpenError>>, NodeError> {
    let opened_after_stop = {
        let opening = store_opener.open();
        tokio::pin!(opening);
        tokio::select! {
            opened = &mut opening => return opened.map(Some),
            () = serving => tokio::time::timeout(OPENING_TIME_MAX, opening).await.ok().transpose()?,
        }
    };
    match opened_after_stop {
        Some(Ok((store, _))) => store.crash_count().will_stop_cleanly(),
        Some(Err(_)) => {}
        None => store_opener.give_up(),
    }
    Ok(None)
}

/// A node while its store is open, with its threads and tasks. Each incarnation has a new one.
struct OpenNode {
    node: Node,
    writing: JoinHandle<()>,
    indexing: JoinHandle<()>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl OpenNode {
    fn start(
        config: &Arc<NodeConfig>,
        (store, logs): OpenedStore,
        started: Instant,
        incidents: Incidents,
        feeds_end: CancellationToken,
    ) -> Result<Self, NodeError> {
        let cluster = Arc::new(Cluster::new(
            config,
            identity(config, &store),
            store.log().membership(),
            started,
            incidents,
        ));
        let (writer, writing) = Writer::start(store.clone(), logs)?;
        let indexing = start_indexer(store.clone(), writer.fault.clone())?;
        let live_feed = Arc::new(LiveFeed::new(feeds_end));
        let node = Node { config: config.clone(), store, writer, cluster, live_feed, limits: Limits::new() };
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(sync::run(node.clone(), stop.clone()));
        tasks.spawn(maintenance::run(node.clone()));
        tasks.spawn(live_feed::run(node.clone()));
        Ok(OpenNode { node, writing, indexing, tasks, stop })
    }

    /// Waits until the store must not be trusted any more, and returns why. An error if a thread or task ended early.
    async fn wait_for_store_failure(&mut self) -> Result<String, NodeError> {
        let (store, fault) = (&self.node.store, &self.node.writer.fault);
        let polled = async {
            loop {
                if let Some(why) = store.read_failure() {
                    return Ok(format!("reading failed: {why}"));
                }
                let checked = store.clone();
                if let Err(why) = blocking(move || checked.check_paths()).await {
                    return Ok(why);
                }
                for (name, thread) in [("writer", &self.writing), ("indexer", &self.indexing)] {
                    if thread.is_finished() {
                        return Err(format!("the {name} ended; the log says why"));
                    }
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        let ended = tokio::select! {
            biased;
            why = fault.raised() => return Ok(why),
            polled = polled => match polled {
                Ok(why) => {
                    fault.raise(why.clone());
                    return Ok(why);
                }
                Err(ended) => ended,
            },
            ended = self.tasks.join_next() => match ended {
                Some(Err(error)) => format!("a background task ended: {error}"),
                _ => "a background task ended; the log says why".into(),
            },
        };
        // A thread or task that raised the fault ended because of it.
        if fault.is_raised() { Ok(fault.raised().await) } else { Err(NodeError::Ended(ended)) }
    }

    /// Whether what was written or read of the store may be wrong.
    fn is_store_suspect(&self) -> bool {
        self.node.writer.fault.is_suspect() || self.node.store.read_failure().is_some()
    }

    /// Ends all of it at the end of the process. If that comes `in_order`, the store need not be checked at the next start.
    async fn end_for_good(self, in_order: bool) -> Result<(), NodeError> {
        if in_order {
            self.node.store.crash_count().will_stop_cleanly();
        }
        self.end().await
    }

    /// Ends all of it, in order: exchanges, writer, indexer, store.
    async fn end(mut self) -> Result<(), NodeError> {
        self.stop.cancel();
        self.node.live_feed.stop.cancel();
        self.tasks.shutdown().await;
        self.node.writer.stop();
        self.node.store.index().stop();
        let store = Arc::downgrade(&self.node.store);
        drop(self.node);
        let (writing, indexing) = (self.writing, self.indexing);
        let joining = tokio::task::spawn_blocking(move || {
            for (name, thread) in [("writer", writing), ("indexer", indexing)] {
                if thread.join().is_err() {
                    tracing::error!("the {name} panicked");
                }
            }
        });
        joining.await.expect("joining does not panic");
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

/// `members`: how many the store knows. The node itself is among them if the store was open before.
fn log_start(config: &NodeConfig, members: usize) {
    tracing::info!(node = config.node_id, address = %config.advertise, network = config.network, "serving");
    if config.peers.is_empty() && members < 2 {
        tracing::warn!("this node has no peers: its messages are on no other machine");
    }
    if !config.listen.is_loopback() && config.keys.is_none() {
        tracing::warn!(
            listen = %config.listen,
            "listening beyond this machine without a key: everyone who reaches this port can read and write everything"
        );
    }
}

/// How this node introduces itself to peers, as this incarnation. The incarnation id is above the last one at this
/// address, even if the clock was set back: peers take a smaller one for outdated.
fn identity(config: &NodeConfig, store: &Store) -> Hello {
    let member = MemberId { node_id: config.node_id, store_id: store.id().0 };
    let (known, address) = (&store.log().membership().members, config.advertise.to_string());
    let last = roster::last_incarnation_id(known, member, &address, now_ms());
    let incarnation_id = Uuid::now_v7().as_u128().max(last.saturating_add(1)).to_be_bytes();
    Hello {
        network: Hello::network_hash(&config.network),
        node_id: config.node_id,
        store_id: store.id().0,
        incarnation_id,
        address,
        is_guest: false,
    }
}

/// Starts the thread that indexes entries after they were acknowledged.
fn start_indexer(store: Arc<Store>, fault: StoreFault) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("indexer".into()).spawn(move || {
        while store.index().wait_for_work() {
            if let Err(error) = store.flush_index() {
                tracing::error!(%error, "indexing failed");
                fault.raise(format!("the index cannot be written: {error}"));
                return;
            }
        }
    })
}
