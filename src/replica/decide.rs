//! Owns how a batch is decided: which message is new, a duplicate or a conflict, which entry of a peer follows.
//!
//! Decided on a copy of the logs, against everything known of the ids: the index, its tail, and what the same batch
//! adds. Nothing is written here; if the commit fails, the draft is thrown away and nothing has happened.
//! A copy counts only if its record checks now: what is damaged is never the reason to call a message stored.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::write_ops::{Admitted, NewMessage, PeerRecords, Rejection, SendOutcome, Space};
use crate::chain::clock::Stamp;
use crate::chain::frontier::SnapshotContent;
use crate::chain::ids::{ChainHash, EntryKey, Origin};
use crate::chain::logs::{self, Logs};
use crate::chain::members::Membership;
use crate::chain::message::Digest;
use crate::chain::record::{EntryKind, Record};
use crate::chain::vector::Head;
use crate::fault::Fault;
use crate::store::index::Lookup;
use crate::store::log::{LogReader, NewRow, WriteBatch};
use crate::store::{Store, StoreError, StoredCopy};

/// Loose entries that one commit takes into their log at the most.
const ABSORB_COUNT: usize = 2_000;

/// Gives the names of new logs, each another.
pub type Mint = dyn FnMut() -> Origin + Send;

/// A commit being put together.
pub(super) struct Staged<'a> {
    store: &'a Store,
    mint: &'a mut Mint,
    logs: Logs,
    room: Space,
    now_ms: u64,
    lookup: Lookup<'a>,
    /// What was looked up for peers' entries. Shared, for a peer can send one id in thousands of entries.
    looked_up: HashMap<[u8; 16], Arc<[StoredCopy]>>,
    change: WriteBatch,
    /// What clients and cuts add with this batch, by id.
    by_id: HashMap<[u8; 16], Vec<StoredCopy>>,
    /// Forks that showed in two records side by side.
    pub(super) forks: BTreeSet<(Origin, u64)>,
}

impl<'a> Staged<'a> {
    /// A draft on top of `logs`. `now_ms` is the wall clock.
    pub(super) fn new(logs: Logs, store: &'a Store, mint: &'a mut Mint, room: Space, now_ms: u64) -> Self {
        Staged {
            store,
            mint,
            logs,
            room,
            now_ms,
            lookup: store.lookup(),
            looked_up: HashMap::new(),
            change: WriteBatch::default(),
            by_id: HashMap::new(),
            forks: BTreeSet::new(),
        }
    }

    /// The state after the commit, and what it writes.
    pub(super) fn into_change(self) -> (Logs, WriteBatch) {
        (self.logs, self.change)
    }

    pub(super) fn logs(&self) -> &Logs {
        &self.logs
    }

    /// What is committed.
    pub(super) fn reader(&self) -> Result<LogReader, StoreError> {
        self.store.log().read()
    }

    /// If this is the log that clients' messages go to, they go to another from now on.
    pub(super) fn leave(&mut self, origin: Origin) {
        self.logs.abandon(origin);
    }

    /// Decides a client's message. One that is stored already is so also where there is no room for more.
    pub(super) fn send(&mut self, message: &NewMessage) -> Result<SendOutcome, StoreError> {
        let id = message.id.into_bytes();
        let known = self.lookup.standings(id)?;
        let batch = self.by_id.get(&id).map_or(&[][..], Vec::as_slice);
        let covered = || known.iter().filter(|standing| self.logs.covers(standing.place));
        let mut copies: Vec<EntryKey> =
            batch.iter().filter(|s| s.digest == message.digest).map(|s| s.place).collect();
        let mut was_stored = !copies.is_empty();
        for standing in covered().filter(|standing| standing.digest == message.digest) {
            was_stored = true;
            if self.is_intact(standing, message)? {
                copies.push(standing.place);
            }
        }
        if let Some(place) = copies.into_iter().min() {
            return Ok(SendOutcome::Stored { place, duplicate: true });
        }
        let stands_for_other = !was_stored && (covered().next().is_some() || !batch.is_empty());
        if stands_for_other && !Fault::SecondWins.is_planted() {
            return Ok(SendOutcome::NotStored(Rejection::Conflict));
        }
        if !self.room.clients {
            return Ok(SendOutcome::NotStored(Rejection::Full));
        }
        let place = self.logs.assign(message.digest, self.now_ms, &mut *self.mint);
        let EntryKey { origin, seq, stamp } = place;
        let (digest, content) = (message.digest, &message.content);
        let record = Record { origin, seq, stamp, digest, kind: EntryKind::Message, content };
        self.by_id.entry(id).or_default().push(StoredCopy { place, digest });
        let (record, hash) = (record.encode(), self.logs.vector().hash(origin));
        self.change.entries.push(NewRow { place, hash, record, known: known.into() });
        // Every copy was damaged: now there is one that is not.
        Ok(SendOutcome::Stored { place, duplicate: was_stored })
    }

    /// Puts a milestone at the end of the own log.
    pub(super) fn milestone(&mut self, content: &SnapshotContent) {
        if !self.room.clients {
            return;
        }
        let content = content.encode();
        let digest = Digest::of(&content);
        let place = self.logs.assign(digest, self.now_ms, &mut *self.mint);
        let EntryKey { origin, seq, stamp } = place;
        let record =
            Record { origin, seq, stamp, digest, kind: EntryKind::Milestone, content: &content }.encode();
        let (hash, known) = (self.logs.vector().hash(origin), Arc::default());
        self.change.entries.push(NewRow { place, hash, record, known });
    }

    /// Whether a copy that the index knows is there, and is this message.
    fn is_intact(&self, standing: &StoredCopy, message: &NewMessage) -> Result<bool, StoreError> {
        let EntryKey { origin, seq, .. } = standing.place;
        match self.reader()?.get(origin, seq) {
            Ok(entry) => Ok(entry.place == standing.place && entry.record().digest == message.digest),
            Err(StoreError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the good prefix of a run.
    pub(super) fn admit(&mut self, job: &PeerRecords) -> Result<Admitted, StoreError> {
        if !self.room.peers {
            return Ok(Admitted { new: 0, refused: None, not_stored: Some(Rejection::Full) });
        }
        let (logs, count) = (self.logs.clone(), self.change.entries.len());
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
                Err(StageError::Storage(error)) => return Err(error),
                Err(StageError::Refused(refused)) => {
                    admitted.refused = Some(refused);
                    if matches!(refused, logs::AdmitError::Fork(_)) {
                        // Where the chain stops being the peer's is not known: nothing of the run is believed.
                        (self.logs, admitted.new) = (logs, 0);
                        self.change.entries.truncate(count);
                        self.logs.abandon(record.origin); // two processes append to it: whoever notices begins anew
                    }
                    break;
                }
            }
        }
        Ok(admitted)
    }

    fn look_up(&mut self, id: [u8; 16]) -> Result<Arc<[StoredCopy]>, StoreError> {
        if let Some(known) = self.looked_up.get(&id) {
            return Ok(known.clone());
        }
        let known: Arc<[StoredCopy]> = self.lookup.standings(id)?.into();
        self.looked_up.insert(id, known.clone());
        Ok(known)
    }

    /// All that is known of a record's id.
    fn known_of(&mut self, record: &Record<'_>) -> Result<Arc<[StoredCopy]>, StoreError> {
        match record.message() {
            Some(content) => self.look_up(content.id.into_bytes()),
            None => Ok(Arc::default()),
        }
    }

    fn admit_one(
        &mut self,
        before: Head,
        claimed: Option<Head>,
        record: &Record<'_>,
        bytes: &Bytes,
    ) -> Result<bool, StageError> {
        let Record { origin, seq, .. } = *record;
        let (head, hash) = (self.logs.vector().seq(origin), self.logs.vector().hash(origin));
        if before.seq == head && before.hash != hash {
            return Err(StageError::Refused(logs::AdmitError::Fork(head)));
        }
        if seq > head && self.is_loose_otherwise(record)? {
            self.forks.insert((origin, seq));
            return Err(StageError::Refused(logs::AdmitError::Fork(head)));
        }
        if !self.logs.admit(record, self.now_ms).map_err(StageError::Refused)? {
            return Ok(false);
        }
        let hash = self.logs.vector().hash(origin);
        if claimed.is_some_and(|claimed| claimed.seq == seq && claimed.hash != hash) {
            return Err(StageError::Refused(logs::AdmitError::Fork(seq)));
        }
        self.note_new(record, hash, bytes.to_vec())?;
        Ok(true)
    }

    fn note_new(&mut self, record: &Record<'_>, hash: ChainHash, bytes: Vec<u8>) -> Result<(), StoreError> {
        let place = EntryKey { stamp: record.stamp, origin: record.origin, seq: record.seq };
        let known = self.known_of(record)?;
        self.change.entries.push(NewRow { place, hash, record: bytes, known });
        Ok(())
    }

    /// Whether another entry than this is held in its place, behind a gap.
    fn is_loose_otherwise(&self, record: &Record<'_>) -> Result<bool, StoreError> {
        let Record { origin, seq, stamp, digest, .. } = *record;
        if self.logs.detached_until(origin).is_none_or(|last| seq > last) {
            return Ok(false);
        }
        let held = self.reader()?.peek(origin, seq)?;
        Ok(held.is_some_and(|held| (held.place.stamp, held.record().digest) != (stamp, digest)))
    }

    /// Takes in loose entries of a log that follow its head now. `true`: there may be more.
    pub(super) fn absorb(&mut self, origin: Origin) -> Result<bool, StoreError> {
        let mut reader = self.reader()?;
        for _ in 0..ABSORB_COUNT {
            let next = self.logs.vector().seq(origin) + 1;
            let Some(last) = self.logs.detached_until(origin) else { return Ok(false) };
            if next > last {
                self.logs.attach(origin);
                self.change.detached.push(origin);
                return Ok(false);
            }
            let Some(entry) = reader.peek(origin, next)? else { return Ok(false) };
            let record = entry.record();
            match self.logs.admit(&record, self.now_ms) {
                Ok(true) => {
                    let hash = self.logs.vector().hash(origin);
                    self.note_new(&record, hash, entry.record.clone())?;
                }
                Ok(false) => return Ok(false), // it is behind a cut, which moves it
                Err(_) => {
                    self.forks.insert((origin, next)); // what was filled in is of another fork
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Puts a record at the end of a branch. Sends of this batch must know it: its old place may be cut off with the same
    /// commit, and the index learns of the new one only after it.
    pub(super) fn append_moved(&mut self, place: EntryKey, record: &Record<'_>) -> Result<(), StoreError> {
        self.logs.append_moved(place, record.digest);
        if let Some(content) = record.message() {
            let standing = StoredCopy { place, digest: record.digest };
            self.by_id.entry(content.id.into_bytes()).or_default().push(standing);
        }
        let moved = Record { origin: place.origin, seq: place.seq, ..*record };
        let hash = self.logs.vector().hash(place.origin);
        self.note_new(&moved, hash, moved.encode())
    }

    /// Ends a log before `seq`. `loses`: not all that it had from there on could be moved.
    pub(super) fn cut(&mut self, origin: Origin, seq: u64, before: Option<(Head, Stamp)>, loses: bool) {
        if self.logs.detached_until(origin).is_some() {
            self.change.detached.push(origin);
        }
        self.logs.cut(origin, seq, before);
        self.change.cuts.push((origin, seq));
        self.change.drops_unreadable |= loses;
    }

    /// Writes records in place of damaged ones. The caller has held them against the chain.
    pub(super) fn mend(&mut self, record: &Record<'_>, bytes: &Bytes) -> Result<(), StoreError> {
        let place = EntryKey { stamp: record.stamp, origin: record.origin, seq: record.seq };
        let known = self.known_of(record)?;
        // Written beside its row, not to the chain's: its hash is not asked for.
        let hash = self.logs.vector().hash(record.origin);
        self.change.repaired.push(NewRow { place, hash, record: bytes.to_vec(), known });
        Ok(())
    }

    /// Writes who belongs to the network.
    pub(super) fn members(&mut self, kept: &Membership) {
        self.change.members = Some(kept.clone());
    }

    /// Writes a checkpoint of the chain anew, unless it was cut off since it was found wrong.
    pub(super) fn checkpoint(&mut self, origin: Origin, seq: u64, hash: ChainHash) {
        if seq <= self.logs.vector().seq(origin) {
            self.change.checkpoints.push((origin, seq, hash));
        }
    }
}

enum StageError {
    Refused(logs::AdmitError),
    Storage(StoreError),
}

impl From<StoreError> for StageError {
    fn from(error: StoreError) -> Self {
        StageError::Storage(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    use crate::chain::message::Digest;
    use crate::store::Store;

    const ROOM: Space = Space { clients: true, peers: true };
    const NONE: Space = Space { clients: false, peers: false };

    fn intake(id: u128, text: &str) -> NewMessage {
        let content = text.as_bytes().to_vec();
        NewMessage { id: Uuid::from_u128(id), digest: Digest::of(&content), content }
    }

    #[test]
    fn what_is_stored_is_a_duplicate_also_on_a_full_disk() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (store, logs) = Store::open(dir.path(), "test", 0).expect("opens");
        let mut mint = || Origin([1; 16]);
        let mut draft = Staged::new(logs, &store, &mut mint, ROOM, 0);
        let stored = draft.send(&intake(1, "one")).expect("decides");
        let SendOutcome::Stored { place, duplicate: false } = stored else { panic!("{stored:?}") };
        draft.room = NONE;
        let again = draft.send(&intake(1, "one")).expect("decides");
        assert_eq!(again, SendOutcome::Stored { place, duplicate: true });
        let conflict = draft.send(&intake(1, "other")).expect("decides");
        assert_eq!(conflict, SendOutcome::NotStored(Rejection::Conflict));
        let new = draft.send(&intake(2, "two")).expect("decides");
        assert_eq!(new, SendOutcome::NotStored(Rejection::Full));
        assert_eq!(draft.into_change().1.entries.len(), 1);
    }
}
