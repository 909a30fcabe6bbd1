//! Owns the writer's inbox: what waits to be written, within bounds, clients before peers.
//!
//! Two queues under one lock that is never held across a wait of somebody else. Full means refused at once:
//! a client gets `overloaded`, a peer comes again with its next exchange. Batches form by themselves while
//! the writer is busy; there is no timer.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::chain::record::Entry;
use crate::replica::write_ops::{Admitted, Maintenance, NewMessage, PeerRecords, SendOutcome};

/// Messages of clients that may wait. At the bound a send is answered `overloaded`.
const CLIENT_COUNT_MAX: usize = 65_536;
/// Bytes of clients' messages that may wait; as above.
const CLIENT_BYTES_MAX: usize = 64 << 20;
/// Runs of peers that may wait. At the bound an exchange is answered `overloaded` and its peer backs off.
const PEER_RUNS_MAX: usize = 1_024;
/// Cuts and repairs that may wait. At the bound they are found again with a later exchange.
const MAINTENANCE_COUNT_MAX: usize = 1_024;
/// Bytes in one commit, unless a single job is larger. Larger batches save few fsyncs and add latency.
const COMMIT_BYTES_MAX: usize = 2 << 20;
/// What clients may take of a commit while peers wait: peers get at least a quarter.
const COMMIT_CLIENT_BYTES_MAX: usize = COMMIT_BYTES_MAX / 4 * 3;

/// Messages of one request.
#[derive(Debug)]
pub struct SendJob {
    /// In the order of the request.
    pub messages: Vec<NewMessage>,
    /// Gets one outcome per message.
    pub reply: oneshot::Sender<Vec<SendOutcome>>,
}

/// A run of a peer.
#[derive(Debug)]
pub struct AdmitJob {
    /// The run.
    pub admit: PeerRecords,
    /// Gets what became of it.
    pub reply: oneshot::Sender<Admitted>,
}

/// What keeps logs whole.
#[derive(Debug)]
pub struct MaintenanceJob {
    /// What is to be done.
    pub care: Maintenance,
    /// Hears when it is begun, and done if it is small.
    pub reply: oneshot::Sender<()>,
}

/// What one commit will hold.
#[derive(Debug, Default)]
pub struct InboxBatch {
    /// What keeps logs whole.
    pub care: Vec<MaintenanceJob>,
    /// Of clients.
    pub sends: Vec<SendJob>,
    /// Of peers.
    pub admits: Vec<AdmitJob>,
}

/// What the writer does next.
#[derive(Debug)]
pub enum NextJob {
    /// Write this.
    Batch(InboxBatch),
    /// Nothing came for the time given.
    Idle,
    /// Everything is written and nothing more will come.
    Stopped,
}

/// The inbox does not take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxRefusal {
    /// Too much waits already.
    Full,
    /// The node is stopping.
    Stopped,
}

#[derive(Debug, Default)]
struct Queues {
    sends: VecDeque<SendJob>,
    send_count: usize,
    send_bytes: usize,
    admits: VecDeque<AdmitJob>,
    care: VecDeque<MaintenanceJob>,
    stopped: bool,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Inbox {
    queues: Mutex<Queues>,
    wake: Condvar,
}

fn send_bytes(job: &SendJob) -> usize {
    job.messages.iter().map(|message| message.content.len()).sum()
}

fn admit_bytes(job: &AdmitJob) -> usize {
    job.admit.entries.iter().map(Entry::size).sum()
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        // A push or a take cannot stop half-way, so what a panicking thread leaves is whole.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a request's messages.
    pub fn push_send(&self, job: SendJob) -> Result<(), InboxRefusal> {
        let bytes = send_bytes(&job);
        let mut queues = self.lock();
        if queues.stopped {
            return Err(InboxRefusal::Stopped);
        }
        let fits = queues.send_count + job.messages.len() <= CLIENT_COUNT_MAX
            && queues.send_bytes + bytes <= CLIENT_BYTES_MAX;
        if !fits {
            return Err(InboxRefusal::Full);
        }
        queues.send_count += job.messages.len();
        queues.send_bytes += bytes;
        queues.sends.push_back(job);
        drop(queues);
        self.wake.notify_one();
        Ok(())
    }

    /// Takes in a peer's records.
    pub fn push_admit(&self, job: AdmitJob) -> Result<(), InboxRefusal> {
        let mut queues = self.lock();
        if queues.stopped {
            return Err(InboxRefusal::Stopped);
        }
        if queues.admits.len() >= PEER_RUNS_MAX {
            return Err(InboxRefusal::Full);
        }
        queues.admits.push_back(job);
        drop(queues);
        self.wake.notify_one();
        Ok(())
    }

    /// Takes in what keeps logs whole.
    pub fn push_care(&self, job: MaintenanceJob) -> Result<(), InboxRefusal> {
        let mut queues = self.lock();
        if queues.stopped {
            return Err(InboxRefusal::Stopped);
        }
        if queues.care.len() >= MAINTENANCE_COUNT_MAX {
            return Err(InboxRefusal::Full);
        }
        queues.care.push_back(job);
        drop(queues);
        self.wake.notify_one();
        Ok(())
    }

    /// No more is taken in; what waits is still written.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.wake.notify_one();
    }

    /// Waits for work, at most `idle` long.
    pub fn next(&self, idle: Duration) -> NextJob {
        let nothing = |queues: &mut Queues| queues.is_empty() && !queues.stopped;
        let waited = self.wake.wait_timeout_while(self.lock(), idle, nothing);
        let (mut queues, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let is_empty = queues.is_empty();
        let batch = queues.take();
        match (is_empty, queues.stopped) {
            (false, _) => NextJob::Batch(batch),
            (true, true) => NextJob::Stopped,
            (true, false) => NextJob::Idle,
        }
    }
}

impl Queues {
    fn is_empty(&self) -> bool {
        self.sends.is_empty() && self.admits.is_empty() && self.care.is_empty()
    }

    fn take(&mut self) -> InboxBatch {
        let mut batch = InboxBatch { care: self.care.drain(..).collect(), ..InboxBatch::default() };
        let client_bytes_max =
            if self.admits.is_empty() { COMMIT_BYTES_MAX } else { COMMIT_CLIENT_BYTES_MAX };
        let mut bytes = 0;
        while bytes < client_bytes_max {
            let Some(job) = self.sends.pop_front() else { break };
            let job_bytes = send_bytes(&job);
            self.send_count -= job.messages.len();
            self.send_bytes -= job_bytes;
            bytes += job_bytes;
            batch.sends.push(job);
        }
        // One large request may have used all of it: the quarter of the peers is theirs all the same.
        let mut peer_bytes_left = COMMIT_BYTES_MAX.saturating_sub(bytes).max(COMMIT_BYTES_MAX / 4);
        while peer_bytes_left > 0 {
            let Some(job) = self.admits.pop_front() else { break };
            peer_bytes_left = peer_bytes_left.saturating_sub(admit_bytes(&job));
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
    use crate::chain::message::Digest;
    use crate::chain::record::EntryKind;
    use crate::chain::vector::Head;
    use uuid::Uuid;

    fn send(bytes: usize) -> SendJob {
        let intake = NewMessage { id: Uuid::nil(), digest: Digest([0; 32]), content: vec![0; bytes] };
        SendJob { messages: vec![intake], reply: oneshot::channel().0 }
    }

    fn admit(bytes: usize) -> AdmitJob {
        let before = Head { seq: 0, hash: ChainHash([0; 32]) };
        let key = EntryKey { stamp: Stamp(1), origin: Origin([1; 16]), seq: 1 };
        let entry = |content: &[u8]| Entry::new(key, EntryKind::Message, Digest([0; 32]), content);
        let content = vec![0; bytes.saturating_sub(entry(&[]).size())];
        let admit = PeerRecords { before, claimed: None, entries: vec![entry(&content)] };
        AdmitJob { admit, reply: oneshot::channel().0 }
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
        assert_eq!(inbox.push_send(send(1)), Err(InboxRefusal::Full));
        inbox.push_admit(admit(1)).expect("peers have a queue of their own");
        inbox.stop();
        assert_eq!(inbox.push_send(send(1)), Err(InboxRefusal::Stopped));
        check(&inbox, (1, 1));
        assert!(matches!(inbox.next(Duration::ZERO), NextJob::Stopped));
    }
}
