//! Owns the background read of all logs of a store, which finds damage before a reader does.
//!
//! For each entry of each log: the record's checksum (as every read), the chain against its checkpoints and the
//! head, and whether the index has every row that the entry needs. A step reads a bounded part; the caller decides how
//! often. Damage that a step finds is recorded like that of any read; what the committer can correct is returned.

use super::write_ops::Maintenance;
use crate::chain::ids::{ChainHash, Origin};
use crate::chain::logs::{CHECKPOINT_EVERY, Logs};
use crate::chain::vector::Head;
use crate::store::log::ReadLimit;
use crate::store::{Store, StoreError};

/// Entries read in one step. The next step continues.
const STEP_COUNT: usize = 1_000;
/// Bytes read in one step; as above.
const STEP_BYTES: usize = 1 << 20;

/// The state of the scrub. Default: before its first round.
#[derive(Debug, Clone, Default)]
pub struct Scrub {
    at: Option<ScrubPosition>,
    /// Entries checked in this round.
    checked: u64,
}

/// Within a log.
#[derive(Debug, Clone)]
struct ScrubPosition {
    origin: Origin,
    next: u64,
    /// The chain's hash before `next`; unknown after damage, until the next checkpoint.
    hash: Option<ChainHash>,
    /// The last seq at which the chain matched.
    good: u64,
    /// Checkpoints after it that differ from what the entries give.
    wrong: Vec<(u64, ChainHash)>,
}

/// What a step did.
#[derive(Debug, Default)]
pub struct ScrubStep {
    /// Bytes of records that were read.
    pub bytes: usize,
    /// To be committed.
    pub maintenance: Vec<Maintenance>,
    /// An entry of which the index lacks a row or has a wrong one: the index must be rebuilt.
    pub index_lacks: Option<(Origin, u64)>,
    /// This was the last step of the round.
    pub round_ends: bool,
}

impl Scrub {
    pub fn checked(&self) -> u64 {
        self.checked
    }

    /// Reads the next part of `logs`.
    pub fn step(&mut self, store: &Store, logs: &Logs) -> Result<ScrubStep, StoreError> {
        let mut step = ScrubStep::default();
        let at = self.at.take().or_else(|| {
            self.checked = 0; // a round begins
            ScrubPosition::after(None, logs)
        });
        let Some(mut at) = at else {
            step.round_ends = true;
            return Ok(step);
        };
        let head = logs.vector().head(at.origin);
        let last = head.map_or(0, |head| head.seq); // it may have been cut since
        if at.next <= last {
            at.read(store, logs, last, &mut step, &mut self.checked)?;
        }
        if at.next <= last {
            self.at = Some(at);
            return Ok(step);
        }
        if let Some(head) = head.filter(|head| head.seq + 1 == at.next) {
            at.end(head.hash, &mut step);
        }
        self.at = ScrubPosition::after(Some(at.origin), logs);
        step.round_ends = self.at.is_none();
        Ok(step)
    }
}

impl ScrubPosition {
    /// At the beginning of the log after this one.
    fn after(origin: Option<Origin>, logs: &Logs) -> Option<Self> {
        let mut spans = logs.vector().iter();
        let (origin, span) = spans.find(|(next, _)| origin.is_none_or(|origin| *next > origin))?;
        let Head { seq: good, hash } = span.floor;
        Some(ScrubPosition { origin, next: good + 1, hash: Some(hash), good, wrong: Vec::new() })
    }

    fn read(
        &mut self,
        store: &Store,
        logs: &Logs,
        last: u64,
        step: &mut ScrubStep,
        checked: &mut u64,
    ) -> Result<(), StoreError> {
        let mut reader = store.log().read()?;
        let most = ReadLimit { rows: STEP_COUNT, bytes: STEP_BYTES };
        let entries = match reader.forward(self.origin, self.next, last, most) {
            Ok(entries) => entries,
            Err(StoreError::Damaged { .. }) => {
                (self.hash, self.next) = (None, self.next + 1);
                *checked += 1;
                return Ok(());
            }
            // The log was cut meanwhile: the next round reads what is left of it.
            Err(StoreError::CutOff { .. }) => {
                (self.hash, self.next) = (None, last + 1);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut index = store.index().reader();
        for entry in entries {
            step.bytes += entry.size();
            *checked += 1;
            self.hash = self.hash.map(|hash| hash.next(entry.seq(), entry.stamp(), entry.leaf()));
            if self.next.is_multiple_of(CHECKPOINT_EVERY) {
                self.compare(reader.checkpoint(self.origin, self.next)?);
            }
            let is_due = logs.covers(entry.key()) && !index.has_rows_of(&entry, logs)?;
            if is_due && !store.log().purged().covers(self.origin, self.next) {
                step.index_lacks.get_or_insert((self.origin, self.next));
            }
            self.next += 1;
        }
        Ok(())
    }

    fn compare(&mut self, stored: Option<ChainHash>) {
        match (stored, self.hash) {
            (Some(stored), Some(hash)) if stored == hash => (self.good, self.wrong) = (self.next, Vec::new()),
            (_, Some(hash)) => self.wrong.push((self.next, hash)),
            // After damage the chain continues from the checkpoint.
            (stored, None) => self.hash = stored,
        }
    }

    /// Compares with the head, which tells whether the checkpoints are wrong or the entries.
    fn end(&mut self, head: ChainHash, step: &mut ScrubStep) {
        match self.hash {
            Some(hash) if hash == head => {
                let wrong =
                    self.wrong.drain(..).map(|(seq, hash)| Maintenance::Checkpoint(self.origin, seq, hash));
                step.maintenance.extend(wrong);
            }
            Some(_) => {
                tracing::error!(origin = %self.origin, after = self.good, "the chain of a log does not match its head");
                step.maintenance.push(Maintenance::Cut(self.origin, self.good + 1));
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::kind::EntryKind;
    use std::sync::Arc;
    use uuid::Uuid;

    use crate::chain::clock::Stamp;
    use crate::chain::ids::EntryKey;
    use crate::chain::message::{Digest, Message, UncheckedMessage};
    use crate::chain::record::Entry;
    use crate::chain::vector::Head;
    use crate::replica::committer::Committer;
    use crate::replica::write_ops::{NewMessage, PeerRecords, Space, WriteOps};
    use crate::store::index::fake::{IndexRow, damage};

    const NOW: u64 = 1_700_000_000_000;
    const A: Origin = Origin([1; 16]);
    const B: Origin = Origin([2; 16]);

    fn content(id: u128) -> Vec<u8> {
        let (sender, recipient, text) = ("ann".into(), "bob".into(), "hello".into());
        let draft = UncheckedMessage { id: Uuid::from_u128(id), sender, recipient, text, timestamp: None };
        Message::new(draft).expect("valid").encode()
    }

    /// Messages in log A; the first is in log B as well.
    fn store_in(dir: &tempfile::TempDir, messages: u128) -> Committer {
        let (store, logs) = Store::open(dir.path(), "test", NOW).expect("opens");
        let mut committer = Committer::new(store, logs, Box::new(|| A));
        let sent: Vec<NewMessage> = (1..=messages)
            .map(|id| {
                let content = content(id);
                NewMessage {
                    id: Uuid::from_u128(id),
                    digest: Digest::of(EntryKind::Message, &content),
                    content,
                }
            })
            .collect();
        for part in sent.chunks(5_000) {
            let batch = WriteOps { sends: vec![part], ..WriteOps::default() };
            committer.commit(&batch, Space::ALL, NOW).expect("writes");
        }
        let (content, stamp) = (content(1), Stamp((NOW + 1) << 16));
        let key = EntryKey { stamp, origin: B, seq: 1 };
        let copy = Entry::new(key, EntryKind::Message, Digest::of(EntryKind::Message, &content), &content);
        let before = Head::genesis(B, crate::chain::kind::LogType::MESSAGES);
        let admit = PeerRecords { before, claimed: None, owner: None, entries: vec![copy] };
        let batch = WriteOps { admits: vec![&admit], ..WriteOps::default() };
        assert_eq!(committer.commit(&batch, Space::ALL, NOW).expect("writes").admits[0].new, 1);
        committer
    }

    fn index(store: &Arc<Store>) {
        while store.flush_index().expect("indexes") {}
    }

    /// What the index lacks, as a whole round finds it.
    fn round(committer: &Committer) -> Option<(Origin, u64)> {
        let mut scrub = Scrub::default();
        loop {
            let step = scrub.step(committer.store(), committer.logs()).expect("reads");
            if step.index_lacks.is_some() || step.round_ends {
                return step.index_lacks;
            }
        }
    }

    #[test]
    fn every_missing_or_wrong_row_of_the_index_is_noticed() {
        let missing =
            [IndexRow::Id, IndexRow::Sender, IndexRow::Recipient, IndexRow::Copy].map(|row| (row, false));
        let wrong = [IndexRow::Id, IndexRow::Sender, IndexRow::Recipient].map(|row| (row, true));
        for (origin, seq) in [(A, 1), (B, 1)] {
            for (row, is_altered) in missing.into_iter().chain(wrong) {
                let dir = tempfile::tempdir().expect("temp dir");
                let committer = store_in(&dir, 3);
                assert_eq!(round(&committer), None, "all is in the memtable");
                index(committer.store());
                assert_eq!(round(&committer), None, "all is in the file");
                let entry =
                    committer.store().log().read().expect("reads").get(origin, seq).expect("is there");
                damage(committer.store(), &entry, row, is_altered);
                assert_eq!(round(&committer), Some((origin, seq)), "{row:?} {is_altered}");
            }
        }
    }
}
