//! Owns how a batch is decided: which message is new, a duplicate or a conflict, and which entry of a peer follows.
//!
//! Before: the [committer](super::committer) has a batch. After: it commits the [`WriteBatch`] and keeps the new logs.
//! A batch is decided on a copy of the logs and on an [`IndexOverlay`]. Nothing is written here, so dropping the staged
//! batch undoes it.
//!
//! Invariant: a copy of a message counts as stored only if its record passes its check now.

use std::collections::BTreeSet;

use super::write_ops::{Admitted, NewMessage, PeerRecords, Rejection, SendOutcome, Space};
use crate::chain::clock::Stamp;
use crate::chain::frontier::SnapshotContent;
use crate::chain::ids::{ChainHash, EntryKey, Leaf, Origin};
use crate::chain::kind::EntryKind;
use crate::chain::logs::{AdmitError, Logs};
use crate::chain::message::Digest;
use crate::chain::record::Entry;
use crate::chain::vector::Head;
use crate::fault::Fault;
use crate::store::index::{CopyScan, IndexOverlay};
use crate::store::log::{LogReader, WriteBatch};
use crate::store::{Store, StoreError, StoredCopy};

/// Entries that one commit reads to repair logs, and to attach detached entries; each. Further ones wait for the next
/// commit.
const PIECE_COUNT: usize = 2_000;
/// Bytes of records; as above.
const PIECE_BYTES: usize = 2 << 20;

/// What one commit may still read for work that can wait, of all logs together.
#[derive(Debug)]
pub(super) struct PieceLeft {
    count: usize,
    bytes: usize,
}

impl PieceLeft {
    pub(super) fn new() -> Self {
        PieceLeft { count: PIECE_COUNT, bytes: PIECE_BYTES }
    }

    pub(super) fn take(&mut self, entry: &Entry) {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(entry.size());
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.count == 0 || self.bytes == 0
    }
}

/// Creates the id of a new log, a different one with each call.
pub type NewOrigin = dyn FnMut() -> Origin + Send;

/// A batch while it is decided.
pub(super) struct Staged<'a> {
    store: &'a Store,
    new_origin: &'a mut NewOrigin,
    /// The logs after the commit.
    pub(super) logs: Logs,
    space: Space,
    pub(super) now_ms: u64,
    index: IndexOverlay<'a>,
    pub(super) batch: WriteBatch,
    /// Forks found by comparing two entries at one place of a log.
    pub(super) forks: BTreeSet<(Origin, u64)>,
}

impl<'a> Staged<'a> {
    /// An empty batch on top of `logs`. `now_ms` is the wall clock.
    pub(super) fn new(
        logs: Logs,
        store: &'a Store,
        new_origin: &'a mut NewOrigin,
        space: Space,
        now_ms: u64,
    ) -> Self {
        let (index, batch, forks) = (store.index().overlay(), WriteBatch::default(), BTreeSet::new());
        Staged { store, new_origin, logs, space, now_ms, index, batch, forks }
    }

    pub(super) fn reader(&self) -> Result<LogReader, StoreError> {
        self.store.log().read()
    }

    /// Decides a client's message. A duplicate is reported as stored even on a full disk.
    pub(super) fn send(&mut self, message: &NewMessage) -> Result<SendOutcome, StoreError> {
        let id = message.id.into_bytes();
        let (mut was_stored, mut scan) = (false, CopyScan::of_content(id, message.digest));
        while let Some((copy, is_staged)) = self.next_copy(&mut scan)? {
            was_stored = true;
            if is_staged || self.is_intact(&copy)? {
                return Ok(SendOutcome::Stored { key: copy.key, duplicate: true });
            }
        }
        let is_conflict = !was_stored && self.next_copy(&mut CopyScan::of_id(id))?.is_some();
        if is_conflict && !Fault::SecondWins.is_planted() {
            return Ok(SendOutcome::NotStored(Rejection::Conflict));
        }
        if !self.space.clients {
            return Ok(SendOutcome::NotStored(Rejection::Full));
        }
        let key = self.assign(EntryKind::Message, message.digest, &message.content)?;
        // If it was stored, every copy was damaged: now there is an intact one.
        Ok(SendOutcome::Stored { key, duplicate: was_stored })
    }

    /// The next copy of a scan that the batch adds or that its logs cover, and whether the batch adds it.
    fn next_copy(&mut self, scan: &mut CopyScan) -> Result<Option<(StoredCopy, bool)>, StoreError> {
        while let Some((copy, is_staged)) = self.index.next_copy(scan)? {
            if is_staged || self.logs.covers(copy.key) {
                return Ok(Some((copy, is_staged)));
            }
        }
        Ok(None)
    }

    pub(super) fn append_snapshot(&mut self, content: &SnapshotContent) -> Result<(), StoreError> {
        if self.space.clients {
            self.assign(EntryKind::Snapshot, content.digest(), &content.encode())?;
        }
        Ok(())
    }

    /// Appends an entry to this process's own log.
    fn assign(&mut self, kind: EntryKind, digest: Digest, content: &[u8]) -> Result<EntryKey, StoreError> {
        let key = self.logs.assign(Leaf::of(kind, "", digest), self.now_ms, &mut *self.new_origin);
        self.append(Entry::new(key, kind, digest, content))?;
        Ok(key)
    }

    /// Stages an entry that is now the head of its log.
    fn append(&mut self, entry: Entry) -> Result<(), StoreError> {
        let hash = self.logs.vector().hash(entry.origin(), entry.log_type());
        self.batch.entries.push(self.index.append(entry, hash)?);
        Ok(())
    }

    /// Whether a copy that the index has is in the log and undamaged.
    fn is_intact(&self, copy: &StoredCopy) -> Result<bool, StoreError> {
        let EntryKey { origin, seq, .. } = copy.key;
        match self.reader()?.get(origin, seq) {
            Ok(entry) => Ok(entry.key() == copy.key && entry.digest() == copy.digest),
            Err(StoreError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Admits the longest valid prefix of a run.
    pub(super) fn admit(&mut self, run: &PeerRecords) -> Result<Admitted, StoreError> {
        if !self.space.peers {
            return Ok(Admitted { new: 0, refused: None, not_stored: Some(Rejection::Full) });
        }
        let (logs, count) = (self.logs.clone(), self.batch.entries.len());
        let mut admitted = Admitted { new: 0, refused: None, not_stored: None };
        // The peer's chain also over entries that are here already: at our head it must have our hash.
        let mut chain = run.before;
        for entry in &run.entries {
            match self.admit_one(chain, run.claimed, entry)? {
                Ok(new) => {
                    admitted.new += u64::from(new);
                    chain = chain.followed_by(entry);
                }
                Err(refused) => {
                    admitted.refused = Some(refused);
                    if matches!(refused, AdmitError::Fork(_)) {
                        // Which entries belong to which fork is not known: nothing of the run is admitted.
                        (self.logs, admitted.new) = (logs, 0);
                        for row in self.batch.entries.drain(count..) {
                            self.index.unstage(&row);
                        }
                        self.logs.abandon(entry.origin()); // if it is our own, another process appends to it too
                    }
                    break;
                }
            }
        }
        Ok(admitted)
    }

    /// As [`Logs::admit`], and stages the entry.
    fn admit_one(
        &mut self,
        before: Head,
        claimed: Option<Head>,
        entry: &Entry,
    ) -> Result<Result<bool, AdmitError>, StoreError> {
        let EntryKey { origin, seq, .. } = entry.key();
        let vector = self.logs.vector();
        let (head, hash) = (vector.seq(origin), vector.hash(origin, entry.log_type()));
        if before.seq == head && before.hash != hash {
            return Ok(Err(AdmitError::Fork(head)));
        }
        if seq > head && self.conflicts_with_detached(entry)? {
            self.forks.insert((origin, seq));
            return Ok(Err(AdmitError::Fork(head)));
        }
        let admitted = self.logs.admit(entry, self.now_ms);
        if admitted == Ok(true) {
            let hash = self.logs.vector().hash(origin, entry.log_type());
            if claimed.is_some_and(|claimed| claimed.seq == seq && claimed.hash != hash) {
                return Ok(Err(AdmitError::Fork(seq)));
            }
            self.append(entry.clone())?;
        }
        Ok(admitted)
    }

    /// Whether a detached entry at the same place differs from this one.
    fn conflicts_with_detached(&self, entry: &Entry) -> Result<bool, StoreError> {
        let EntryKey { origin, seq, .. } = entry.key();
        if self.logs.detached_until(origin).is_none_or(|last| seq > last) {
            return Ok(false);
        }
        let detached = self.reader()?.peek(origin, seq)?;
        Ok(detached.is_some_and(|other| !other.is_same_as(entry)))
    }

    /// Attaches detached entries of a log that follow its head now. `true`: there may be more.
    pub(super) fn attach_detached(
        &mut self,
        origin: Origin,
        left: &mut PieceLeft,
    ) -> Result<bool, StoreError> {
        let mut reader = self.reader()?;
        while !left.is_used_up() {
            let next = self.logs.vector().seq(origin) + 1;
            let Some(last) = self.logs.detached_until(origin) else { return Ok(false) };
            if next > last {
                self.logs.attach(origin);
                self.batch.detached.push(origin);
                return Ok(false);
            }
            let Some(entry) = reader.peek(origin, next)? else { return Ok(false) };
            left.take(&entry);
            match self.logs.admit(&entry, self.now_ms) {
                Ok(true) => self.append(entry)?,
                Ok(false) => return Ok(false), // cut off: the cut moves it to a branch
                Err(_) => {
                    self.forks.insert((origin, next)); // the entries that filled the gap are of another fork
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Moves an entry to the end of a branch. The overlay shows it to the sends of this batch, since the same commit
    /// may cut off the old copy.
    pub(super) fn append_moved(&mut self, key: EntryKey, entry: &Entry) -> Result<(), StoreError> {
        self.logs.append_moved(key, entry);
        self.append(entry.moved_to(key))
    }

    /// Ends a log before `seq`. `drops_damaged`: some of the entries from there on are damaged and are dropped.
    pub(super) fn cut(
        &mut self,
        origin: Origin,
        seq: u64,
        before: Option<(Head, Stamp)>,
        drops_damaged: bool,
    ) {
        if self.logs.detached_until(origin).is_some() {
            self.batch.detached.push(origin);
        }
        self.logs.cut(origin, seq, before);
        self.batch.cuts.push((origin, seq));
        self.batch.drops_damaged |= drops_damaged;
    }

    /// Replaces a damaged entry. The caller has compared it with the chain.
    pub(super) fn repair(&mut self, entry: Entry) -> Result<(), StoreError> {
        self.batch.repaired.push(self.index.repair(entry)?);
        Ok(())
    }

    /// Corrects a checkpoint of the chain, unless it was cut off since it was found wrong.
    pub(super) fn checkpoint(&mut self, origin: Origin, seq: u64, hash: ChainHash) {
        if seq <= self.logs.vector().seq(origin) {
            self.batch.checkpoints.push((origin, seq, hash));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    use crate::chain::message::{Message, UncheckedMessage};
    use crate::store::Store;

    const SPACE: Space = Space { clients: true, peers: true };
    const NONE: Space = Space { clients: false, peers: false };

    fn new_message(id: u128, text: &str) -> NewMessage {
        let (sender, recipient, text) = ("a".into(), "b".into(), text.into());
        let message = UncheckedMessage { id: Uuid::from_u128(id), sender, recipient, text, timestamp: None };
        let content = Message::new(message).expect("valid").encode();
        NewMessage { id: Uuid::from_u128(id), digest: Digest::of(EntryKind::Message, &content), content }
    }

    #[test]
    fn a_duplicate_is_reported_as_stored_on_a_full_disk() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (store, logs) = Store::open(dir.path(), "test", 0).expect("opens");
        let mut new_origin = || Origin([1; 16]);
        let mut staged = Staged::new(logs, &store, &mut new_origin, SPACE, 0);
        let stored = staged.send(&new_message(1, "one")).expect("decides");
        let SendOutcome::Stored { key, duplicate: false } = stored else { panic!("{stored:?}") };
        staged.space = NONE;
        let again = staged.send(&new_message(1, "one")).expect("decides");
        assert_eq!(again, SendOutcome::Stored { key, duplicate: true });
        let conflict = staged.send(&new_message(1, "other")).expect("decides");
        assert_eq!(conflict, SendOutcome::NotStored(Rejection::Conflict));
        let new = staged.send(&new_message(2, "two")).expect("decides");
        assert_eq!(new, SendOutcome::NotStored(Rejection::Full));
        assert_eq!(staged.batch.entries.len(), 1);
    }
}
