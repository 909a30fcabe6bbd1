//! Owns how a batch is decided: which message is new, a duplicate or a conflict, which entry of a peer follows.
//!
//! Decided on a copy of the logs, against everything known of the ids: the index, its tail, and what the same batch
//! adds. Nothing is written here; if the commit fails, the draft is thrown away and nothing has happened.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::inbox::{AdmitJob, Admitted, Intake, Outcome, WhyNot};
use crate::chain::log::{self, Logs};
use crate::chain::message::Content;
use crate::chain::place::{Origin, Place};
use crate::chain::record::{Kind, Record};
use crate::chain::vector::Head;
use crate::store::index::Lookup;
use crate::store::log::NewEntry;
use crate::store::{Error, Standing};

/// What there is still room for on the disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Messages of clients.
    pub(super) clients: bool,
    /// Entries of peers; more precious, hence refused later.
    pub(super) peers: bool,
}

/// A commit being put together.
pub(super) struct Draft<'a> {
    logs: Logs,
    room: Room,
    now_ms: u64,
    lookup: Lookup<'a>,
    /// What was looked up for peers' entries. Shared, for a peer can send one id in thousands of entries.
    looked_up: HashMap<[u8; 16], Arc<[Standing]>>,
    entries: Vec<NewEntry>,
    /// What clients add with this batch, by id.
    by_id: HashMap<[u8; 16], Vec<Standing>>,
}

impl<'a> Draft<'a> {
    /// A draft on top of `logs`. `now_ms` is the wall clock.
    pub(super) fn new(logs: Logs, lookup: Lookup<'a>, room: Room, now_ms: u64) -> Self {
        let (looked_up, entries, by_id) = (HashMap::new(), Vec::new(), HashMap::new());
        Draft { logs, room, now_ms, lookup, looked_up, entries, by_id }
    }

    /// The state after the commit, and what it writes.
    pub(super) fn into_batch(self) -> (Logs, Vec<NewEntry>) {
        (self.logs, self.entries)
    }

    /// Decides a client's message. One that is stored already is so also where there is no room for more.
    pub(super) fn send(&mut self, message: &Intake) -> Result<Outcome, Error> {
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
        if !self.room.clients {
            return Ok(Outcome::NotStored(WhyNot::Full));
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
    pub(super) fn admit(&mut self, job: &AdmitJob) -> Result<Admitted, Error> {
        if !self.room.peers {
            return Ok(Admitted { new: 0, refused: None, not_stored: Some(WhyNot::Full) });
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::message::Digest;
    use crate::store::Store;

    const ROOM: Room = Room { clients: true, peers: true };
    const NONE: Room = Room { clients: false, peers: false };

    fn intake(id: u128, text: &str) -> Intake {
        let content = text.as_bytes().to_vec();
        Intake { id: Uuid::from_u128(id), digest: Digest::of(&content), content }
    }

    #[test]
    fn what_is_stored_is_a_duplicate_also_on_a_full_disk() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (store, logs) = Store::open(dir.path(), "test", 0).expect("opens");
        let mut draft = Draft::new(logs, store.lookup(), ROOM, 0);
        let stored = draft.send(&intake(1, "one")).expect("decides");
        let Outcome::Stored { place, duplicate: false } = stored else { panic!("{stored:?}") };
        draft.room = NONE;
        let again = draft.send(&intake(1, "one")).expect("decides");
        assert_eq!(again, Outcome::Stored { place, duplicate: true });
        let conflict = draft.send(&intake(1, "other")).expect("decides");
        assert_eq!(conflict, Outcome::NotStored(WhyNot::Conflict));
        let new = draft.send(&intake(2, "two")).expect("decides");
        assert_eq!(new, Outcome::NotStored(WhyNot::Full));
        assert_eq!(draft.into_batch().1.len(), 1);
    }
}
