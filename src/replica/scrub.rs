//! Owns the slow walk over everything a store holds, which finds damage before a reader does.
//!
//! Log by log, entry by entry: the record's check (which every read makes), the chain against its checkpoints and the
//! head, and whether the index has every row that it should have for the entry. A step reads a bounded part; whoever drives it decides how often. What
//! it finds damaged is noted among the wounds like any other; what it can put right itself, it says.

use super::jobs::Care;
use crate::chain::log::{CHECKPOINT_EVERY, Logs};
use crate::chain::place::{ChainHash, Origin};
use crate::store::log::Most;
use crate::store::{Error, Store};

/// Entries of one step.
const STEP_COUNT: usize = 1_000;
/// Bytes of one step.
const STEP_BYTES: usize = 1 << 20;

/// Where the walk is. Default: before its first round.
#[derive(Debug, Clone, Default)]
pub struct Scrub {
    at: Option<At>,
    /// Entries looked at in this round.
    checked: u64,
    /// That round is through, and the next one not begun.
    ended: bool,
}

/// Within a log.
#[derive(Debug, Clone)]
struct At {
    origin: Origin,
    next: u64,
    /// The chain before `next`; unknown behind damage, until the next checkpoint.
    hash: Option<ChainHash>,
    /// The last place where the chain was what it should be.
    good: u64,
    /// Checkpoints since then that are not what the entries say.
    wrong: Vec<(u64, ChainHash)>,
}

/// What a step did.
#[derive(Debug, Default)]
pub struct Step {
    /// Bytes of records that were read.
    pub bytes: usize,
    /// To be written.
    pub care: Vec<Care>,
    /// The index lacks a row of an entry, or has it otherwise: it must be built anew.
    pub index_lacks: Option<(Origin, u64)>,
    /// That was the last of this round.
    pub round_ends: bool,
}

impl Scrub {
    /// Entries looked at in this round.
    pub fn checked(&self) -> u64 {
        self.checked
    }

    /// Looks at the next part of `logs`.
    pub fn step(&mut self, store: &Store, logs: &Logs) -> Result<Step, Error> {
        let mut step = Step::default();
        let Some(mut at) = self.at.take().or_else(|| At::after(None, logs)) else {
            step.round_ends = true;
            return Ok(step);
        };
        if self.ended {
            (self.checked, self.ended) = (0, false);
        }
        let head = logs.vector().get(at.origin).copied();
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
        self.at = At::after(Some(at.origin), logs);
        if self.at.is_none() {
            (self.ended, step.round_ends) = (true, true);
        }
        Ok(step)
    }
}

impl At {
    /// At the beginning of the log after this one.
    fn after(origin: Option<Origin>, logs: &Logs) -> Option<Self> {
        let mut origins = logs.vector().iter().map(|(origin, _)| origin);
        let origin = origins.find(|next| origin.is_none_or(|origin| *next > origin))?;
        Some(At { origin, next: 1, hash: Some(ChainHash::genesis(origin)), good: 0, wrong: Vec::new() })
    }

    fn read(
        &mut self,
        store: &Store,
        logs: &Logs,
        last: u64,
        step: &mut Step,
        checked: &mut u64,
    ) -> Result<(), Error> {
        let mut reader = store.log().read()?;
        let most = Most { rows: STEP_COUNT, bytes: STEP_BYTES };
        let entries = match reader.forward(self.origin, self.next, last, most) {
            Ok(entries) => entries,
            Err(Error::Damaged { .. }) => {
                (self.hash, self.next) = (None, self.next + 1);
                *checked += 1;
                return Ok(());
            }
            // The log was cut since these were its logs: what is left of it is looked at in the next round.
            Err(Error::CutOff { .. }) => {
                (self.hash, self.next) = (None, last + 1);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let audit = store.audit();
        for entry in entries {
            step.bytes += entry.record.len();
            *checked += 1;
            let record = entry.record();
            self.hash = self.hash.map(|hash| hash.next(record.seq, record.stamp, record.digest));
            if self.next.is_multiple_of(CHECKPOINT_EVERY) {
                self.compare(reader.checkpoint(self.origin, self.next)?);
            }
            let is_due = logs.covers(entry.place) && !audit.knows(&entry, logs)?;
            if is_due && !store.log().swept().covers(self.origin, self.next) {
                step.index_lacks.get_or_insert((self.origin, self.next));
            }
            self.next += 1;
        }
        Ok(())
    }

    fn compare(&mut self, kept: Option<ChainHash>) {
        match (kept, self.hash) {
            (Some(kept), Some(hash)) if kept == hash => (self.good, self.wrong) = (self.next, Vec::new()),
            (_, Some(hash)) => self.wrong.push((self.next, hash)),
            // Behind damage the checkpoint is where the chain is known again.
            (kept, None) => self.hash = kept,
        }
    }

    /// The head says whether checkpoints are wrong or entries are.
    fn end(&mut self, head: ChainHash, step: &mut Step) {
        match self.hash {
            Some(hash) if hash == head => {
                let wrong = self.wrong.drain(..).map(|(seq, hash)| Care::Checkpoint(self.origin, seq, hash));
                step.care.extend(wrong);
            }
            Some(_) => {
                tracing::error!(origin = %self.origin, after = self.good, "the chain of a log does not hold");
                step.care.push(Care::Cut(self.origin, self.good + 1));
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use uuid::Uuid;

    use crate::chain::clock::Stamp;
    use crate::chain::message::{Digest, Draft, Message};
    use crate::chain::record::{Kind, Record};
    use crate::chain::vector::Head;
    use crate::replica::jobs::{Admit, Batch, Intake, Room};
    use crate::replica::pen::Pen;
    use crate::store::index::{Row, damage};

    const NOW: u64 = 1_700_000_000_000;
    const A: Origin = Origin([1; 16]);
    const B: Origin = Origin([2; 16]);

    fn content(id: u128) -> Vec<u8> {
        let (sender, recipient, text) = ("ann".into(), "bob".into(), "hello".into());
        let draft = Draft { id: Uuid::from_u128(id), sender, recipient, text, timestamp: None };
        Message::new(draft).expect("valid").encode()
    }

    /// Messages in log A, of which the first stands in log B as well.
    fn store_in(dir: &tempfile::TempDir, messages: u128) -> Pen {
        let (store, logs) = Store::open(dir.path(), "test", NOW).expect("opens");
        let mut pen = Pen::new(store, logs, Box::new(|| A));
        let sent: Vec<Intake> = (1..=messages)
            .map(|id| {
                let content = content(id);
                Intake { id: Uuid::from_u128(id), digest: Digest::of(&content), content }
            })
            .collect();
        for part in sent.chunks(5_000) {
            let batch = Batch { sends: vec![part], ..Batch::default() };
            pen.write(&batch, Room::ALL, NOW).expect("writes");
        }
        let (content, stamp) = (content(1), Stamp((NOW + 1) << 16));
        let digest = Digest::of(&content);
        let copy = Record { origin: B, seq: 1, stamp, digest, kind: Kind::Message, content: &content };
        let before = Head { seq: 0, hash: ChainHash::genesis(B) };
        let admit = Admit { before, claimed: None, records: vec![copy.encode().into()] };
        let batch = Batch { admits: vec![&admit], ..Batch::default() };
        assert_eq!(pen.write(&batch, Room::ALL, NOW).expect("writes").admits[0].new, 1);
        pen
    }

    fn index(store: &Arc<Store>) {
        while store.index_behind().expect("indexes") {}
    }

    /// What the index is found to lack in a whole round.
    fn round(pen: &Pen) -> Option<(Origin, u64)> {
        let mut scrub = Scrub::default();
        loop {
            let step = scrub.step(pen.store(), pen.logs()).expect("reads");
            if step.index_lacks.is_some() || step.round_ends {
                return step.index_lacks;
            }
        }
    }

    #[test]
    fn every_row_of_the_index_that_is_missing_or_wrong_is_noticed() {
        let missing = [Row::Id, Row::Sender, Row::Recipient, Row::Copy].map(|row| (row, false));
        let wrong = [Row::Id, Row::Sender, Row::Recipient].map(|row| (row, true));
        for (origin, seq) in [(A, 1), (B, 1)] {
            for (row, is_altered) in missing.into_iter().chain(wrong) {
                let dir = tempfile::tempdir().expect("temp dir");
                let pen = store_in(&dir, 3);
                assert_eq!(round(&pen), None, "all is in the tail");
                index(pen.store());
                assert_eq!(round(&pen), None, "all is in the file");
                let entry = pen.store().log().read().expect("reads").get(origin, seq).expect("is there");
                damage(pen.store(), &entry, row, is_altered);
                assert_eq!(round(&pen), Some((origin, seq)), "{row:?} {is_altered}");
            }
        }
    }
}
