//! Owns the thread that commits, and its queue: it takes a batch from the inbox, commits it, and answers.
//!
//! The order is the promise: `replica::committer` decides and commits durably, then the change signal moves, then the
//! waiters are answered. So nothing is acknowledged or advertised that is not on disk.
//!
//! Any storage error ends writing and raises the store fault, and so does a file that was removed or replaced. The node then closes the store and opens it again,
//! because after a failed fsync the page cache may hold data that never reaches the disk.
//!
//! Before it: `http::send`, `cluster::sync`, `maintenance` and `live_feed`. After it: `replica::committer`, which
//! decides. While nothing waits, the thread goes on with unfinished maintenance, then makes the commit that lets the
//! next opening be fast.

mod inbox;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::now_ms;
use super::store_fault::StoreFault;
use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::node::writer::inbox::{Inbox, InboxBatch, NextJob};
use crate::replica::committer::Committer;
use crate::replica::write_ops::{
    self, Admitted, Committed, Maintenance, NewMessage, PeerRecords, Rejection, SendOutcome, Space,
};
use crate::store::{Store, StoreError};

/// Idle time after which the writer makes the commit that lets the next opening be fast.
const IDLE_COMMIT_AFTER: Duration = Duration::from_secs(2);
/// Free disk space below which messages of clients get `storage_full`.
const FREE_BYTES_CLIENTS: u64 = 64 << 20;
/// Free disk space below which nothing is written: entries of peers are refused, too, and maintenance waits. The rest
/// is a reserve for a commit that has begun. After a write that fails, the store must be closed, and nothing is read
/// meanwhile.
const FREE_BYTES_PEERS: u64 = 32 << 20;

/// A handle to the writer's thread. Cheap to clone; the thread ends after [`Writer::stop`].
#[derive(Debug, Clone)]
pub struct Writer {
    inbox: Arc<Inbox>,
    /// Raised by any task that sees the store fail.
    pub fault: StoreFault,
    /// The durable state of all logs; the thread replaces it with every commit.
    pub logs: watch::Receiver<Arc<Logs>>,
}

struct WriterThread {
    committer: Committer,
    signal: watch::Sender<Arc<Logs>>,
    inbox: Arc<Inbox>,
    fault: StoreFault,
}

impl Writer {
    /// Starts the thread. The signal carries the durable state after every commit.
    pub fn start(store: Arc<Store>, logs: Logs) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let inbox = Arc::new(Inbox::default());
        let fault = StoreFault::default();
        let (signal, watched) = watch::channel(Arc::new(logs.clone()));
        // Ids ordered by time: new logs go to the right edge of the list of tables.
        let new_origin = Box::new(|| Origin(Uuid::now_v7().into_bytes()));
        let committer = Committer::new(store, logs, new_origin);
        let thread = WriterThread { committer, signal, inbox: inbox.clone(), fault: fault.clone() };
        let thread = std::thread::Builder::new().name("writer".into()).spawn(move || thread.run())?;
        Ok((Writer { inbox, fault, logs: watched }, thread))
    }

    /// Stores messages; one outcome each, in order. When it returns, stored messages are on disk.
    pub async fn send(&self, messages: Vec<NewMessage>) -> Vec<SendOutcome> {
        let count = messages.len();
        let outcomes = reply(self.inbox.push_send(messages)).await;
        outcomes.unwrap_or_else(|why| vec![SendOutcome::NotStored(why); count])
    }

    /// Admits records of one log from a peer.
    pub async fn admit(&self, records: PeerRecords) -> Admitted {
        let admitted = reply(self.inbox.push_admit(records)).await;
        admitted.unwrap_or_else(|why| Admitted { new: 0, refused: None, not_stored: Some(why) })
    }

    /// Begins maintenance of the store. The result is ignored: where it is still needed, an exchange, the scrub or the
    /// caller asks again.
    pub async fn maintain(&self, maintenance: Maintenance) {
        let _not_now = self.try_maintain(maintenance).await;
    }

    /// The same. An error if nothing was done.
    pub async fn try_maintain(&self, maintenance: Maintenance) -> Result<(), Rejection> {
        reply(self.inbox.push_maintenance(maintenance)).await?
    }

    /// From now on nothing more is queued. What waits is committed; then the thread ends.
    pub fn stop(&self) {
        self.inbox.stop();
    }
}

/// Waits for the reply to what was queued. A job that is dropped without a reply has failed.
async fn reply<T>(queued: Result<oneshot::Receiver<T>, Rejection>) -> Result<T, Rejection> {
    queued?.await.map_err(|_| Rejection::Failed)
}

impl WriterThread {
    fn run(mut self) {
        let mut is_idle_committed = false;
        loop {
            let idle = if self.has_more() { Duration::ZERO } else { IDLE_COMMIT_AFTER };
            match self.inbox.next(idle) {
                NextJob::Batch(batch) => self.process(batch),
                NextJob::Idle if self.has_more() => self.process(InboxBatch::default()),
                NextJob::Idle if is_idle_committed => continue,
                NextJob::Idle => {
                    self.commit_for_fast_open();
                    is_idle_committed = true;
                    continue;
                }
                NextJob::Stopped => break,
            }
            is_idle_committed = false;
        }
        self.commit_for_fast_open();
    }

    /// Whether unfinished maintenance can go on now.
    fn has_more(&self) -> bool {
        self.committer.has_more() && !self.fault.is_raised() && self.space().peers
    }

    fn commit_for_fast_open(&self) {
        if !self.fault.is_raised()
            && self.space().peers
            && let Err(error) = self.committer.store().commit_for_fast_open()
        {
            self.fail(&error);
        }
    }

    fn fail(&self, error: &StoreError) {
        tracing::error!(%error, "writing failed; nothing more is stored until the store is open again");
        self.fault.raise(error.to_string());
    }

    /// Measured for each commit: it costs a microsecond, and another process may fill the disk at any time.
    fn space(&self) -> Space {
        let bytes = self.committer.store().free_bytes();
        Space { clients: bytes >= FREE_BYTES_CLIENTS, peers: bytes >= FREE_BYTES_PEERS }
    }

    fn process(&mut self, batch: InboxBatch) {
        if self.fault.is_raised() {
            return; // dropping the jobs says that they failed
        }
        let space = self.space();
        let is_busy = !batch.sends.is_empty();
        match self.commit(&batch, space) {
            Ok(committed) => {
                for job in batch.maintenance {
                    let is_skipped = job.op.needs_space() && !space.peers;
                    let _no_waiter = job.reply.send(if is_skipped { Err(Rejection::Full) } else { Ok(()) });
                }
                for (job, outcomes) in batch.sends.into_iter().zip(committed.sends) {
                    let _no_waiter = job.reply.send(outcomes);
                }
                for (job, admitted) in batch.admits.into_iter().zip(committed.admits) {
                    let _no_waiter = job.reply.send(admitted);
                }
                // After the answers: no one waits for it.
                if let Err(error) = self.committer.purge(self.space(), is_busy) {
                    self.fail(&error);
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    fn commit(&mut self, batch: &InboxBatch, space: Space) -> Result<Committed, StoreError> {
        let ops = write_ops::WriteOps {
            maintenance: batch.maintenance.iter().map(|job| &job.op).collect(),
            sends: batch.sends.iter().map(|job| job.op.as_slice()).collect(),
            admits: batch.admits.iter().map(|job| &job.op).collect(),
        };
        let committed = self.committer.commit(&ops, space, now_ms())?;
        // Nothing is acknowledged or advertised that is only in a file that was removed.
        self.committer.store().check_paths()?;
        if committed.changed {
            self.signal.send_replace(Arc::new(self.committer.logs().clone()));
        }
        Ok(committed)
    }
}
