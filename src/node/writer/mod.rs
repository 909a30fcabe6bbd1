//! Owns all writing to the logs: one thread that takes what waits, decides, commits, tells.
//!
//! The order is the promise: decide and commit durably (`replica::pen`), move the change signal, answer the waiters. So
//! nothing is acknowledged or advertised that is not on disk.
//! Any failure of the storage ends writing and raises the alarm: what a failed fsync left in the page cache must not be
//! believed, so the node closes the store and opens it anew.

pub(super) mod inbox;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::store_fault::StoreFault;
use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::node::writer::inbox::{
    AdmitJob, Inbox, InboxBatch, InboxRefusal, MaintenanceJob, NextJob, SendJob,
};
use crate::replica::committer::Committer;
use crate::replica::write_ops::{
    self, Admitted, Committed, Maintenance, NewMessage, PeerRecords, Rejection, SendOutcome, Space,
};
use crate::store::{Store, StoreError};

/// A quiet writer makes the next start fast after this long.
const IDLE_COMMIT_AFTER: Duration = Duration::from_secs(2);
/// Below this much free space clients' messages get `storage_full`.
const FREE_BYTES_CLIENTS: u64 = 64 << 20;
/// Below this much free space peers' entries are not taken in either.
const FREE_BYTES_PEERS: u64 = 32 << 20;
/// How long a measurement of free space is believed.
const FREE_BYTES_AGE: Duration = Duration::from_millis(250);

/// The way to the writer. Cheap to clone; the thread ends with [`Writer::stop`].
#[derive(Debug, Clone)]
pub struct Writer {
    inbox: Arc<Inbox>,
    fault: StoreFault,
    /// The durable state of all logs; the thread replaces it with every commit.
    pub logs: watch::Receiver<Arc<Logs>>,
}

/// The writing side: what the thread owns.
struct WriterThread {
    committer: Committer,
    signal: watch::Sender<Arc<Logs>>,
    inbox: Arc<Inbox>,
    fault: StoreFault,
    free: FreeSpace,
    now_ms: fn() -> u64,
}

impl Writer {
    /// Starts the thread. The signal carries the durable state after every commit.
    pub fn start(
        store: Arc<Store>,
        logs: Logs,
        dir: PathBuf,
        now_ms: fn() -> u64,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let inbox = Arc::new(Inbox::default());
        let fault = StoreFault::default();
        let (signal, watched) = watch::channel(Arc::new(logs.clone()));
        let free = FreeSpace { dir, measured: None };
        // Ordered by time, so that new logs are created at the right edge of the list of tables.
        let mint = Box::new(|| Origin(Uuid::now_v7().into_bytes()));
        let pen = Committer::new(store, logs, mint);
        let desk =
            WriterThread { committer: pen, signal, inbox: inbox.clone(), fault: fault.clone(), free, now_ms };
        let thread = std::thread::Builder::new().name("writer".into()).spawn(move || desk.run())?;
        Ok((Writer { inbox, fault, logs: watched }, thread))
    }

    /// Stores messages; one outcome each, in order. When it answers, what is stored is on disk.
    pub async fn send(&self, messages: Vec<NewMessage>) -> Vec<SendOutcome> {
        let count = messages.len();
        let (reply, outcome) = oneshot::channel();
        let why_not = match self.inbox.push_send(SendJob { messages, reply }) {
            Ok(()) => match outcome.await {
                Ok(outcomes) => return outcomes,
                Err(_) => Rejection::Failed,
            },
            Err(InboxRefusal::Full) => Rejection::Overloaded,
            Err(InboxRefusal::Stopped) => Rejection::Failed,
        };
        vec![SendOutcome::NotStored(why_not); count]
    }

    /// Takes in records of one log from a peer.
    pub async fn admit(&self, admit: PeerRecords) -> Admitted {
        let (reply, admitted) = oneshot::channel();
        let why_not = match self.inbox.push_admit(AdmitJob { admit, reply }) {
            Ok(()) => match admitted.await {
                Ok(admitted) => return admitted,
                Err(_) => Rejection::Failed,
            },
            Err(InboxRefusal::Full) => Rejection::Overloaded,
            Err(InboxRefusal::Stopped) => Rejection::Failed,
        };
        Admitted { new: 0, refused: None, not_stored: Some(why_not) }
    }

    /// Begins what keeps logs whole. What cannot be done now is found again later, so nobody is told.
    pub async fn maintain(&self, care: Maintenance) {
        let (reply, begun) = oneshot::channel();
        if self.inbox.push_care(MaintenanceJob { care, reply }).is_ok() {
            let _not_now = begun.await;
        }
    }

    /// Whether writing still works.
    pub fn is_writable(&self) -> bool {
        !self.fault.is_raised()
    }

    /// For whoever sees that the store must not be believed.
    pub fn fault(&self) -> &StoreFault {
        &self.fault
    }

    /// Nothing more is taken in. What waits is written; then the thread ends.
    pub fn stop(&self) {
        self.inbox.stop();
    }
}

impl WriterThread {
    fn run(mut self) {
        let mut settled = false;
        loop {
            let idle = if self.has_more() { Duration::ZERO } else { IDLE_COMMIT_AFTER };
            match self.inbox.next(idle) {
                NextJob::Batch(batch) => {
                    self.write(batch);
                    settled = false;
                }
                NextJob::Idle if self.has_more() => {
                    self.write(InboxBatch::default());
                    settled = false;
                }
                NextJob::Idle if !settled => {
                    self.commit_for_fast_open();
                    settled = true;
                }
                NextJob::Idle => {}
                NextJob::Stopped => break,
            }
        }
        self.commit_for_fast_open();
    }

    /// There is something to go on with, and it can be.
    fn has_more(&mut self) -> bool {
        self.committer.has_more() && !self.fault.is_raised() && self.space().peers
    }

    fn commit_for_fast_open(&self) {
        if !self.fault.is_raised()
            && let Err(error) = self.committer.store().commit_for_fast_open()
        {
            self.fail(&error);
        }
    }

    fn fail(&self, error: &StoreError) {
        tracing::error!(%error, "writing failed; nothing more is stored until the store is open again");
        self.fault.raise(error.to_string());
    }

    fn space(&mut self) -> Space {
        let free = self.free.bytes();
        Space { clients: free >= FREE_BYTES_CLIENTS, peers: free >= FREE_BYTES_PEERS }
    }

    fn write(&mut self, batch: InboxBatch) {
        if self.fault.is_raised() {
            return refuse(batch, Rejection::Failed);
        }
        match self.try_write(&batch) {
            Ok(written) => {
                // A waiter that has gone needs no answer; what it sent is stored all the same.
                for job in batch.care {
                    let _gone = job.reply.send(());
                }
                for (job, outcomes) in batch.sends.into_iter().zip(written.sends) {
                    let _gone = job.reply.send(outcomes);
                }
                for (job, admitted) in batch.admits.into_iter().zip(written.admits) {
                    let _gone = job.reply.send(admitted);
                }
            }
            Err(error) => {
                self.fail(&error);
                refuse(batch, Rejection::Failed);
            }
        }
    }

    fn try_write(&mut self, batch: &InboxBatch) -> Result<Committed, StoreError> {
        let room = self.space();
        let asked = write_ops::WriteOps {
            care: batch.care.iter().map(|job| &job.care).collect(),
            sends: batch.sends.iter().map(|job| job.messages.as_slice()).collect(),
            admits: batch.admits.iter().map(|job| &job.admit).collect(),
        };
        let written = self.committer.write(&asked, room, (self.now_ms)())?;
        if written.changed {
            self.signal.send_replace(Arc::new(self.committer.logs().clone()));
        }
        Ok(written)
    }
}

fn refuse(batch: InboxBatch, why: Rejection) {
    for job in batch.sends {
        let _gone = job.reply.send(vec![SendOutcome::NotStored(why); job.messages.len()]);
    }
    for job in batch.admits {
        let _gone = job.reply.send(Admitted { new: 0, refused: None, not_stored: Some(why) });
    }
}

/// Free space of the file system, measured now and then.
struct FreeSpace {
    dir: PathBuf,
    measured: Option<(Instant, u64)>,
}

impl FreeSpace {
    fn bytes(&mut self) -> u64 {
        match self.measured {
            Some((at, bytes)) if at.elapsed() < FREE_BYTES_AGE => bytes,
            _ => {
                // Unknown is not full: the write itself will tell.
                let bytes = rustix::fs::statvfs(&self.dir).map_or(u64::MAX, |fs| fs.f_bavail * fs.f_frsize);
                self.measured = Some((Instant::now(), bytes));
                bytes
            }
        }
    }
}
