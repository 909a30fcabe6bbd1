//! Owns a node's life: open the store, start what must go on, and end everything in order.
//!
//! The stop order: no more connections, open requests finish, the writer commits what it has, the indexer
//! ends, the databases close. `kill -9` loses nothing acknowledged; the order is politeness. Whatever must go
//! on and ends early ends the node with its reason.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::writer::Writer;
use super::{Error, Node, http, now_ms};
use crate::config::NodeConfig;
use crate::serve::{self, BODIES_BYTES_MAX, Budget};
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
    let (writer, watched, writing) = Writer::start(store.clone(), logs, config.store_dir.clone(), now_ms)?;
    let indexing = start_indexer(store.clone())?;
    let node = Node {
        config: Arc::new(config),
        store,
        writer,
        logs: watched,
        budget: Budget::new(BODIES_BYTES_MAX),
        started: Instant::now(),
    };
    announce(&node);

    // Whether the writer is alive shows in its signal: the sending end is gone once the thread is.
    let mut signal = node.logs.clone();
    let writer_ended = async move { while signal.changed().await.is_ok() {} };
    let serving = serve::serve(listener, http::routes(node.clone()), stop.clone());
    tokio::pin!(serving);
    let ended = tokio::select! {
        () = &mut serving => Ok(()),
        () = writer_ended => {
            stop.cancel();
            serving.await;
            Err(Error::Ended("the writer ended; the log says why".into()))
        }
    };
    close(node, writing, indexing).await;
    ended
}

fn announce(node: &Node) {
    let config = node.config();
    tracing::info!(node = config.node_id, address = %config.advertise, network = config.network, "serving");
    if !config.listen.is_loopback() {
        tracing::warn!(
            listen = %config.listen,
            "listening beyond this machine without authentication: whoever reaches this port can read and write everything"
        );
    }
}

/// The thread that indexes behind the acknowledgements.
fn start_indexer(store: Arc<Store>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("indexer".into()).spawn(move || {
        while store.wait_for_index_work() {
            // A failing index costs speed, not messages: the writer takes the work over when the tail is full.
            if let Err(error) = store.index_behind() {
                tracing::error!(%error, "indexing failed");
            }
        }
    })
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
