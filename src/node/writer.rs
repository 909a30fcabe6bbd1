//! Owns all writing to the logs: one thread that takes what waits, decides, commits, tells.
//!
//! The order is the promise: decide every item against what is known (`draft`), commit durably, move the change
//! signal, answer the waiters. So nothing is acknowledged or advertised that is not on disk. A batch is decided on a
//! copy of the state, which replaces the state only once the commit succeeded.
//! Any failure of the storage ends writing until the node is started again: what a failed fsync left in the
//! page cache must not be believed. Reading goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::draft::{Draft, Room};
use super::inbox::{AdmitJob, Admitted, Batch, Inbox, Intake, Next, Outcome, Refused, SendJob, WhyNot};
use crate::chain::log::Logs;
use crate::chain::vector::Head;
use crate::store::{Error, Store};

/// A quiet writer makes the next start fast after this long.
const SETTLE_AFTER: Duration = Duration::from_secs(2);
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
    failed: Arc<AtomicBool>,
}

/// The writing side: what the thread owns.
struct Pen {
    store: Arc<Store>,
    logs: Logs,
    signal: watch::Sender<Arc<Logs>>,
    inbox: Arc<Inbox>,
    failed: Arc<AtomicBool>,
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
    ) -> std::io::Result<(Self, watch::Receiver<Arc<Logs>>, std::thread::JoinHandle<()>)> {
        let inbox = Arc::new(Inbox::default());
        let failed = Arc::new(AtomicBool::new(false));
        let (signal, watched) = watch::channel(Arc::new(logs.clone()));
        let free = FreeSpace { dir, measured: None };
        let pen = Pen { store, logs, signal, inbox: inbox.clone(), failed: failed.clone(), free, now_ms };
        let thread = std::thread::Builder::new().name("writer".into()).spawn(move || pen.run())?;
        Ok((Writer { inbox, failed }, watched, thread))
    }

    /// Stores messages; one outcome each, in order. When it answers, what is stored is on disk.
    pub async fn send(&self, messages: Vec<Intake>) -> Vec<Outcome> {
        let count = messages.len();
        let (reply, outcome) = oneshot::channel();
        let why_not = match self.inbox.push_send(SendJob { messages, reply }) {
            Ok(()) => match outcome.await {
                Ok(outcomes) => return outcomes,
                Err(_) => WhyNot::Failed,
            },
            Err(Refused::Full) => WhyNot::Overloaded,
            Err(Refused::Stopped) => WhyNot::Failed,
        };
        vec![Outcome::NotStored(why_not); count]
    }

    /// Takes in records of one log from a peer.
    pub async fn admit(&self, before: Head, claimed: Option<Head>, records: Vec<Bytes>) -> Admitted {
        let (reply, admitted) = oneshot::channel();
        let why_not = match self.inbox.push_admit(AdmitJob { before, claimed, records, reply }) {
            Ok(()) => match admitted.await {
                Ok(admitted) => return admitted,
                Err(_) => WhyNot::Failed,
            },
            Err(Refused::Full) => WhyNot::Overloaded,
            Err(Refused::Stopped) => WhyNot::Failed,
        };
        Admitted { new: 0, refused: None, not_stored: Some(why_not) }
    }

    /// Whether writing still works.
    pub fn is_writable(&self) -> bool {
        !self.failed.load(Ordering::Relaxed)
    }

    /// Nothing more is taken in. What waits is written; then the thread ends.
    pub fn stop(&self) {
        self.inbox.stop();
    }
}

impl Pen {
    fn run(mut self) {
        let mut settled = false;
        loop {
            match self.inbox.next(SETTLE_AFTER) {
                Next::Batch(batch) => {
                    self.write(batch);
                    settled = false;
                }
                Next::Idle if !settled => {
                    self.settle();
                    settled = true;
                }
                Next::Idle => {}
                Next::Stopped => break,
            }
        }
        self.settle();
    }

    fn settle(&self) {
        if !self.failed.load(Ordering::Relaxed)
            && let Err(error) = self.store.settle()
        {
            self.fail(&error);
        }
    }

    fn fail(&self, error: &Error) {
        tracing::error!(%error, "writing failed; this node stores nothing more until it is started again");
        self.failed.store(true, Ordering::Relaxed);
    }

    fn write(&mut self, batch: Batch) {
        if self.failed.load(Ordering::Relaxed) {
            return refuse(batch, WhyNot::Failed);
        }
        match self.try_write(&batch) {
            Ok((outcomes, admitted)) => {
                // A waiter that has gone needs no answer; what it sent is stored all the same.
                for (job, outcomes) in batch.sends.into_iter().zip(outcomes) {
                    let _gone = job.reply.send(outcomes);
                }
                for (job, admitted) in batch.admits.into_iter().zip(admitted) {
                    let _gone = job.reply.send(admitted);
                }
            }
            Err(error) => {
                self.fail(&error);
                refuse(batch, WhyNot::Failed);
            }
        }
    }

    fn try_write(&mut self, batch: &Batch) -> Result<(Vec<Vec<Outcome>>, Vec<Admitted>), Error> {
        let free = self.free.bytes();
        let room = Room { clients: free >= FREE_BYTES_CLIENTS, peers: free >= FREE_BYTES_PEERS };
        let store = self.store.clone();
        let mut draft = Draft::new(self.logs.clone(), store.lookup(), room, (self.now_ms)());
        let mut outcomes = Vec::with_capacity(batch.sends.len());
        for job in &batch.sends {
            let decided = job.messages.iter().map(|message| draft.send(message));
            outcomes.push(decided.collect::<Result<Vec<_>, _>>()?);
        }
        let admitted = batch.admits.iter().map(|job| draft.admit(job)).collect::<Result<Vec<_>, _>>()?;
        let (logs, entries) = draft.into_batch();
        if !entries.is_empty() {
            self.store.commit(&entries, &logs)?;
            self.signal.send_replace(Arc::new(logs.clone()));
        }
        self.logs = logs;
        Ok((outcomes, admitted))
    }
}

fn refuse(batch: Batch, why: WhyNot) {
    for job in batch.sends {
        let _gone = job.reply.send(vec![Outcome::NotStored(why); job.messages.len()]);
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
