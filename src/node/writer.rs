//! Owns all writing to the logs: one thread that takes what waits, decides, commits, tells.
//!
//! The order is the promise: decide every item against what is known, commit durably, move the change signal,
//! answer the waiters. So nothing is acknowledged or advertised that is not on disk. A batch is decided on a
//! copy of the state, which replaces the state only once the commit succeeded.
//! Any failure of the storage ends writing until the node is started again: what a failed fsync left in the
//! page cache must not be believed. Reading goes on.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::inbox::{AdmitJob, Admitted, Batch, Inbox, Intake, Next, Outcome, Refused, SendJob, WhyNot};
use crate::chain::log::{self, Logs};
use crate::chain::message::Content;
use crate::chain::place::{Origin, Place};
use crate::chain::record::{Kind, Record};
use crate::chain::vector::Head;
use crate::store::index::Lookup;
use crate::store::log::NewEntry;
use crate::store::{Error, Standing, Store};

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
        let free = self.free.bytes();
        if self.failed.load(Ordering::Relaxed) {
            return refuse(batch, WhyNot::Failed, WhyNot::Failed);
        }
        if free < FREE_BYTES_PEERS {
            return refuse(batch, WhyNot::Full, WhyNot::Full);
        }
        match self.try_write(&batch, free >= FREE_BYTES_CLIENTS) {
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
                refuse(batch, WhyNot::Failed, WhyNot::Failed);
            }
        }
    }

    fn try_write(
        &mut self,
        batch: &Batch,
        takes_sends: bool,
    ) -> Result<(Vec<Vec<Outcome>>, Vec<Admitted>), Error> {
        let now_ms = (self.now_ms)();
        let store = self.store.clone();
        let lookup = store.lookup();
        let mut draft = Draft {
            logs: self.logs.clone(),
            now_ms,
            lookup,
            looked_up: HashMap::new(),
            entries: Vec::new(),
            by_id: HashMap::new(),
        };
        let mut outcomes = Vec::with_capacity(batch.sends.len());
        for job in &batch.sends {
            let decide = |message: &Intake| {
                if takes_sends { draft.send(message) } else { Ok(Outcome::NotStored(WhyNot::Full)) }
            };
            outcomes.push(job.messages.iter().map(decide).collect::<Result<Vec<_>, _>>()?);
        }
        let admitted = batch.admits.iter().map(|job| draft.admit(job)).collect::<Result<Vec<_>, _>>()?;
        let Draft { logs, entries, .. } = draft;
        if !entries.is_empty() {
            self.store.commit(&entries, &logs)?;
            self.signal.send_replace(Arc::new(logs.clone()));
        }
        self.logs = logs;
        Ok((outcomes, admitted))
    }
}

/// A commit being put together.
struct Draft<'a> {
    logs: Logs,
    now_ms: u64,
    lookup: Lookup<'a>,
    /// What was looked up for peers' entries. Shared, for a peer can send one id in thousands of entries.
    looked_up: HashMap<[u8; 16], Arc<[Standing]>>,
    entries: Vec<NewEntry>,
    /// What clients add with this batch, by id.
    by_id: HashMap<[u8; 16], Vec<Standing>>,
}

impl Draft<'_> {
    fn send(&mut self, message: &Intake) -> Result<Outcome, Error> {
        let id = message.id.into_bytes();
        let known = self.lookup.standings(id)?;
        let batch = self.by_id.entry(id).or_default();
        let all = || known.iter().chain(batch.iter());
        let copies = all().filter(|standing| standing.digest == message.digest);
        if let Some(place) = copies.map(|standing| standing.place).min() {
            return Ok(Outcome::Stored { place, duplicate: true });
        }
        if all().next().is_some() {
            return Ok(Outcome::NotStored(WhyNot::Conflict));
        }
        let place = self.logs.assign(message.digest, self.now_ms, mint);
        let Place { origin, seq, stamp } = place;
        let record = Record {
            origin,
            seq,
            stamp,
            digest: message.digest,
            kind: Kind::Message,
            content: &message.content,
        };
        batch.push(Standing { place, digest: message.digest });
        let (record, hash) = (record.encode(), self.logs.vector().hash(origin));
        self.entries.push(NewEntry { place, hash, record, known: known.into() });
        Ok(Outcome::Stored { place, duplicate: false })
    }

    /// Takes the good prefix of a run.
    fn admit(&mut self, job: &AdmitJob) -> Result<Admitted, Error> {
        let (logs, count) = (self.logs.clone(), self.entries.len());
        let mut admitted = Admitted { new: 0, refused: None, not_stored: None };
        // The peer's chain, also over what is here already: where it passes our head, it must have our hash.
        let mut chain = job.before;
        for bytes in &job.records {
            let (record, _) = Record::parse(bytes).expect("the exchange hands on checked records only");
            match self.admit_one(chain, job.claimed, &record, bytes) {
                Ok(new) => {
                    admitted.new += u64::from(new);
                    chain = chain.followed_by(&record);
                }
                Err(AdmitError::Storage(error)) => return Err(error),
                Err(AdmitError::Refused(refused)) => {
                    admitted.refused = Some(refused);
                    if matches!(refused, log::Refused::Fork(_)) {
                        // Where the chain stops being the peer's is not known: nothing of the run is believed.
                        (self.logs, admitted.new) = (logs, 0);
                        self.entries.truncate(count);
                        if self.logs.own() == Some(record.origin) {
                            self.logs.leave_own(); // two processes append to it: whoever notices begins anew
                        }
                    }
                    break;
                }
            }
        }
        Ok(admitted)
    }

    fn look_up(&mut self, id: [u8; 16]) -> Result<Arc<[Standing]>, Error> {
        if let Some(known) = self.looked_up.get(&id) {
            return Ok(known.clone());
        }
        let known: Arc<[Standing]> = self.lookup.standings(id)?.into();
        self.looked_up.insert(id, known.clone());
        Ok(known)
    }

    fn admit_one(
        &mut self,
        before: Head,
        claimed: Option<Head>,
        record: &Record<'_>,
        bytes: &Bytes,
    ) -> Result<bool, AdmitError> {
        let Record { origin, seq, stamp, .. } = *record;
        let (head, hash) = (self.logs.vector().seq(origin), self.logs.vector().hash(origin));
        if before.seq == head && before.hash != hash {
            return Err(AdmitError::Refused(log::Refused::Fork(head)));
        }
        if !self.logs.admit(record, self.now_ms).map_err(AdmitError::Refused)? {
            return Ok(false);
        }
        let hash = self.logs.vector().hash(origin);
        if claimed.is_some_and(|claimed| claimed.seq == seq && claimed.hash != hash) {
            return Err(AdmitError::Refused(log::Refused::Fork(seq)));
        }
        let known = match Content::decode(record.content) {
            Ok(content) => self.look_up(content.id.into_bytes()).map_err(AdmitError::Storage)?,
            Err(_unreadable) => Arc::default(),
        };
        let place = Place { stamp, origin, seq };
        self.entries.push(NewEntry { place, hash, record: bytes.to_vec(), known });
        Ok(true)
    }
}

enum AdmitError {
    Refused(log::Refused),
    Storage(Error),
}

/// A new origin: ordered by time, so that new logs are created at the right edge of the list of tables.
fn mint() -> Origin {
    Origin(Uuid::now_v7().into_bytes())
}

fn refuse(batch: Batch, clients: WhyNot, peers: WhyNot) {
    for job in batch.sends {
        let _gone = job.reply.send(vec![Outcome::NotStored(clients); job.messages.len()]);
    }
    for job in batch.admits {
        let _gone = job.reply.send(Admitted { new: 0, refused: None, not_stored: Some(peers) });
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
