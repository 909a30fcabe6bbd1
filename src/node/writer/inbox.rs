//! Owns what waits for the writer: messages of clients, records of peers, and maintenance, each in a bounded queue.
//!
//! A full queue refuses at once: a client gets `overloaded`, and a peer sends its records again with a later exchange.
//! Jobs that arrive while the writer is busy form the next batch; there is no timer. No one holds the lock while it
//! waits.
//!
//! Before it: `writer`, which waits for the replies. After it: the writer's thread, which takes the batches.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::chain::record::Entry;
use crate::replica::write_ops::{Admitted, Maintenance, NewMessage, PeerRecords, Rejection, SendOutcome};

/// Messages of clients that may wait. At the bound a send is answered `overloaded`.
const CLIENT_COUNT_MAX: usize = 65_536;
/// Bytes of clients' messages that may wait. At the bound, as above.
const CLIENT_BYTES_MAX: usize = 64 << 20;
/// Pieces of peers' runs that may wait. At the bound an exchange is answered `overloaded` and its peer backs off.
const PEER_PIECES_MAX: usize = 1_024;
/// Maintenance jobs that may wait. At the bound they are dropped; a later exchange or scrub finds them again.
const MAINTENANCE_COUNT_MAX: usize = 1_024;
/// Bytes in one commit, unless a single job is larger. Larger commits would save few fsyncs and add latency.
const COMMIT_BYTES_MAX: usize = 2 << 20;
/// Bytes of a commit that clients may use while peers wait: peers get at least a quarter.
const COMMIT_CLIENT_BYTES_MAX: usize = COMMIT_BYTES_MAX / 4 * 3;

/// What is to be written, and the channel for the result. If no one waits for the result any more, it is written all
/// the same.
#[derive(Debug)]
pub struct Job<Op, Reply> {
    pub op: Op,
    pub reply: oneshot::Sender<Reply>,
}

/// The messages of one request, in its order; one outcome for each.
pub type SendJob = Job<Vec<NewMessage>, Vec<SendOutcome>>;
/// One piece of a peer's run.
pub type AdmitJob = Job<PeerRecords, Admitted>;
/// Maintenance of the store. The reply comes after the next commit. Checkpoints, snapshots and members are then written;
/// repairs and cuts have only begun.
pub type MaintenanceJob = Job<Maintenance, Result<(), Rejection>>;

/// The jobs that the writer takes at once.
#[derive(Debug, Default)]
pub struct InboxBatch {
    pub maintenance: Vec<MaintenanceJob>,
    pub sends: Vec<SendJob>,
    pub admits: Vec<AdmitJob>,
}

/// What the writer does next.
#[derive(Debug)]
pub enum NextJob {
    Batch(InboxBatch),
    /// Nothing arrived for the time given.
    Idle,
    /// Everything is written, and nothing more will come.
    Stopped,
}

#[derive(Debug, Default)]
struct Queues {
    sends: VecDeque<SendJob>,
    send_count: usize,
    send_bytes: usize,
    admits: VecDeque<AdmitJob>,
    maintenance: VecDeque<MaintenanceJob>,
    stopped: bool,
}

#[derive(Debug, Default)]
pub struct Inbox {
    queues: Mutex<Queues>,
    wake: Condvar,
}

fn send_bytes(messages: &[NewMessage]) -> usize {
    messages.iter().map(|message| message.content.len()).sum()
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner) // each change is complete before a panic
    }

    /// Queues the messages of one request. The receiver gets their outcomes.
    pub fn push_send(
        &self,
        messages: Vec<NewMessage>,
    ) -> Result<oneshot::Receiver<Vec<SendOutcome>>, Rejection> {
        let (count, bytes) = (messages.len(), send_bytes(&messages));
        self.push(messages, |queues| {
            let (count, bytes) = (queues.send_count + count, queues.send_bytes + bytes);
            if count > CLIENT_COUNT_MAX || bytes > CLIENT_BYTES_MAX {
                return None;
            }
            (queues.send_count, queues.send_bytes) = (count, bytes);
            Some(&mut queues.sends)
        })
    }

    pub fn push_admit(&self, records: PeerRecords) -> Result<oneshot::Receiver<Admitted>, Rejection> {
        self.push(records, |queues| Some(&mut queues.admits).filter(|queue| queue.len() < PEER_PIECES_MAX))
    }

    pub fn push_maintenance(
        &self,
        maintenance: Maintenance,
    ) -> Result<oneshot::Receiver<Result<(), Rejection>>, Rejection> {
        self.push(maintenance, |queues| {
            Some(&mut queues.maintenance).filter(|queue| queue.len() < MAINTENANCE_COUNT_MAX)
        })
    }

    /// `queue` returns the job's queue if the job fits.
    fn push<Op, Reply>(
        &self,
        op: Op,
        queue: impl FnOnce(&mut Queues) -> Option<&mut VecDeque<Job<Op, Reply>>>,
    ) -> Result<oneshot::Receiver<Reply>, Rejection> {
        let (reply, outcome) = oneshot::channel();
        let mut queues = self.lock();
        if queues.stopped {
            return Err(Rejection::Failed);
        }
        queue(&mut queues).ok_or(Rejection::Overloaded)?.push_back(Job { op, reply });
        drop(queues);
        self.wake.notify_one();
        Ok(outcome)
    }

    /// From now on nothing more is queued. What waits is still written.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.wake.notify_one();
    }

    /// Waits for work, at most `idle` long.
    pub fn next(&self, idle: Duration) -> NextJob {
        let nothing = |queues: &mut Queues| queues.is_empty() && !queues.stopped;
        let waited = self.wake.wait_timeout_while(self.lock(), idle, nothing);
        let (mut queues, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if !queues.is_empty() {
            return NextJob::Batch(queues.take());
        }
        if queues.stopped { NextJob::Stopped } else { NextJob::Idle }
    }
}

impl Queues {
    fn is_empty(&self) -> bool {
        self.sends.is_empty() && self.admits.is_empty() && self.maintenance.is_empty()
    }

    fn take(&mut self) -> InboxBatch {
        let maintenance = self.maintenance.drain(..).collect();
        let mut batch = InboxBatch { maintenance, ..InboxBatch::default() };
        let client_bytes_max =
            if self.admits.is_empty() { COMMIT_BYTES_MAX } else { COMMIT_CLIENT_BYTES_MAX };
        let mut bytes = 0;
        while bytes < client_bytes_max {
            let Some(job) = self.sends.pop_front() else { break };
            let job_bytes = send_bytes(&job.op);
            self.send_count -= job.op.len();
            self.send_bytes -= job_bytes;
            bytes += job_bytes;
            batch.sends.push(job);
        }
        // One large request may exceed the whole commit. Peers get their quarter all the same.
        let mut peer_bytes_left = COMMIT_BYTES_MAX.saturating_sub(bytes).max(COMMIT_BYTES_MAX / 4);
        while peer_bytes_left > 0 {
            let Some(job) = self.admits.pop_front() else { break };
            let job_bytes = job.op.entries.iter().map(Entry::size).sum();
            peer_bytes_left = peer_bytes_left.saturating_sub(job_bytes);
            batch.admits.push(job);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::clock::Stamp;
    use crate::chain::ids::{ChainHash, EntryKey, Origin};
    use crate::chain::kind::EntryKind;
    use crate::chain::message::Digest;
    use crate::chain::record::RECORD_BYTES_MAX;
    use crate::chain::vector::Head;
    use uuid::Uuid;

    fn send(bytes: usize) -> Vec<NewMessage> {
        vec![NewMessage { id: Uuid::nil(), digest: Digest([0; 32]), content: vec![0; bytes] }]
    }

    fn admit(bytes: usize) -> PeerRecords {
        let before = Head { seq: 0, hash: ChainHash([0; 32]) };
        let key = EntryKey { stamp: Stamp(1), origin: Origin([1; 16]), seq: 1 };
        let entry = |content: &[u8]| Entry::new(key, EntryKind::Message, Digest([0; 32]), content);
        // Two to the n bytes at most each, so that they add up.
        let size = bytes.min(RECORD_BYTES_MAX / 2);
        let content = vec![0; size.saturating_sub(entry(&[]).size())];
        PeerRecords {
            before,
            claimed: None,
            owner: None,
            entries: vec![entry(&content); bytes.div_ceil(size)],
        }
    }

    #[track_caller]
    fn check(inbox: &Inbox, want: (usize, usize)) {
        match inbox.next(Duration::ZERO) {
            NextJob::Batch(batch) => assert_eq!((batch.sends.len(), batch.admits.len()), want),
            other => panic!("wanted a batch, got {other:?}"),
        }
    }

    #[test]
    fn peers_get_at_least_a_quarter_of_every_commit_and_clients_the_rest() {
        let inbox = Inbox::default();
        for _ in 0..20 {
            inbox.push_send(send(COMMIT_BYTES_MAX / 8)).expect("fits");
            inbox.push_admit(admit(COMMIT_BYTES_MAX / 8)).expect("fits");
        }
        check(&inbox, (6, 2));
        check(&inbox, (6, 2));
        check(&inbox, (6, 2));
        check(&inbox, (2, 6));
        check(&inbox, (0, 8));
        assert!(matches!(inbox.next(Duration::ZERO), NextJob::Idle));
    }

    #[test]
    fn a_full_inbox_refuses_and_a_stopped_one_empties() {
        let inbox = Inbox::default();
        inbox.push_send(send(CLIENT_BYTES_MAX)).expect("fits");
        assert_eq!(inbox.push_send(send(1)).err(), Some(Rejection::Overloaded));
        inbox.push_admit(admit(1)).expect("fits in the queue of peers");
        inbox.stop();
        assert_eq!(inbox.push_send(send(1)).err(), Some(Rejection::Failed));
        check(&inbox, (1, 1));
        assert!(matches!(inbox.next(Duration::ZERO), NextJob::Stopped));
    }
}
