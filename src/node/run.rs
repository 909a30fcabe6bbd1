//! Owns a node's life: open the store, start what must go on, and end everything in order.
//!
//! The stop order: no more connections, open requests finish, exchanges end, the writer commits what it has, the indexer
//! ends, the databases close. `kill -9` loses nothing acknowledged; the order is politeness. Whatever must go
//! on and ends early ends the node with its reason.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::mesh::Mesh;
use super::pid::PidFile;
use super::writer::Writer;
use super::{Bounds, Error, Node, http, now_ms, replicate};
use crate::chain::wire::Hello;
use crate::config::NodeConfig;
use crate::serve;
use crate::store::Store;

/// Runs a node on this listener until `stop`.
pub async fn run(config: NodeConfig, listener: TcpListener, stop: CancellationToken) -> Result<(), Error> {
    let (dir, network) = (config.store_dir.clone(), config.network.clone());
    let opening = tokio::task::spawn_blocking(move || Store::open(&dir, &network, now_ms()));
    let (store, logs) =
        opening.await.map_err(|error| Error::Ended(format!("opening the store: {error}")))??;
    tracing::info!(
        node = config.node_id,
        store = %config.store_dir.display(),
        messages = store.counts().messages,
        origins = logs.vector().origins(),
        "the store is open"
    );
    let pid = PidFile::write(&config.store_dir);
    let (writer, watched, writing) = Writer::start(store.clone(), logs, config.store_dir.clone(), now_ms)?;
    let (indexing, indexer_ended) = start_indexer(store.clone())?;
    let mesh = Arc::new(Mesh::new(&config, hello(&config, &store)));
    let node =
        Node { config: Arc::new(config), store, writer, logs: watched, mesh, bounds: Bounds::default() };
    announce(&node);
    let mut links = JoinSet::new();
    for index in 0..node.mesh.links() {
        links.spawn(replicate::link(node.clone(), index, stop.clone()));
    }

    // Whether the writer is alive shows in its signal: the sending end is gone once the thread is.
    let mut signal = node.logs.clone();
    let writer_ended = async move { while signal.changed().await.is_ok() {} };
    let serving = serve::serve(listener, http::routes(node.clone()), stop.clone());
    tokio::pin!(serving);
    let ended = tokio::select! {
        () = &mut serving => Ok(()),
        () = writer_ended => Err(Error::Ended("the writer ended; the log says why".into())),
        _ = indexer_ended => Err(Error::Ended("the indexer ended; the log says why".into())),
        why = link_ended(&mut links, &stop) => Err(Error::Ended(why)),
    };
    if ended.is_err() {
        stop.cancel();
        serving.await;
    }
    links.shutdown().await;
    drop(pid); // while the store is still ours
    close(node, writing, indexing).await;
    ended
}

fn announce(node: &Node) {
    let config = node.config();
    tracing::info!(node = config.node_id, address = %config.advertise, network = config.network, "serving");
    if config.peers.is_empty() {
        tracing::warn!("this node has no peers: its messages are on no other machine");
    }
    if !config.listen.is_loopback() {
        tracing::warn!(
            listen = %config.listen,
            "listening beyond this machine without authentication: whoever reaches this port can read and write everything"
        );
    }
}

/// Who this node is to its peers, as of this opening of its store.
fn hello(config: &NodeConfig, store: &Store) -> Hello {
    Hello {
        network: Hello::network_hash(&config.network),
        node_id: config.node_id,
        store_id: store.id().0,
        open_id: Uuid::now_v7().into_bytes(),
        address: config.advertise.to_string(),
    }
}

/// Waits for a link that ends although the node does not.
async fn link_ended(links: &mut JoinSet<()>, stop: &CancellationToken) -> String {
    loop {
        match links.join_next().await {
            Some(Err(error)) => return format!("the exchanges with a peer ended: {error}"),
            Some(Ok(())) if !stop.is_cancelled() => return "the exchanges with a peer ended".into(),
            Some(Ok(())) => {}
            None => std::future::pending().await,
        }
    }
}

/// The thread that indexes behind the acknowledgements.
///
/// The second value is dropped when it ends.
fn start_indexer(store: Arc<Store>) -> std::io::Result<(JoinHandle<()>, oneshot::Receiver<()>)> {
    let (alive, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("indexer".into()).spawn(move || {
        let _alive = alive;
        while store.wait_for_index_work() {
            // A failing index costs speed, not messages: the writer takes the work over when the tail is full.
            if let Err(error) = store.index_behind() {
                tracing::error!(%error, "indexing failed");
            }
        }
    })?;
    Ok((thread, ended))
}

async fn close(node: Node, writing: JoinHandle<()>, indexing: JoinHandle<()>) {
    node.writer.stop();
    node.store.stop_indexing();
    let store = node.store.clone();
    drop(node);
    let closing = tokio::task::spawn_blocking(move || {
        for (name, thread) in [("writer", writing), ("indexer", indexing)] {
            if thread.join().is_err() {
                tracing::error!("the {name} panicked");
            }
        }
        drop(store);
    });
    if let Err(error) = closing.await {
        tracing::error!(%error, "closing the store");
    }
}
