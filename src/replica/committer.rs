//! Owns one commit: decides what is written to the logs, commits it durably, and only then reports the outcomes.
//!
//! Before: the node's writer collects [`WriteOps`]. After: [`Staged`] decides, [`Store::commit`] writes, and the writer
//! answers with [`Committed`]. Threads, queues and callers are not known here.
//!
//! Invariants: a batch is decided on a copy of the logs, which replaces them after the commit, so no outcome is
//! reported for a message that is not on disk. Work that needs many commits (cutting a long log, attaching detached
//! entries, repairs) continues with each batch, in pieces. Rows are purged after the answers, in pieces as well
//! ([`Committer::purge`]). After an error the committer must not be used: the store is reopened.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::allowance::Allowance;
use super::cut::CutInProgress;
use super::decide::{NewOrigin, PieceLeft, Staged};
use super::purge::Purger;
use super::write_ops::{Admitted, Committed, Maintenance, PeerRecords, Space, WriteOps};
use crate::chain::ids::Origin;
use crate::chain::logs::{AdmitError, CHECKPOINT_EVERY, Logs};
use crate::chain::record::Entry;
use crate::chain::vector::LogSpan;
use crate::store::{Store, StoreError};

/// Cuts in a store. Honest networks have a handful, but a peer can invent any number, a cut stays for ever, and all of
/// them must fit into one exchange. At the bound no further log is cut, so forked logs stay different.
const CUTS_MAX: usize = 65_536;
/// Logs in a store. A log stays for ever, a peer can invent any number, and the heads of all logs and cuts must fit into
/// one message of an exchange. At the bound peers begin no further log; this node still does. A network comes there
/// after decades: a node begins a log with each run.
pub const LOGS_MAX: usize = 100_000;
/// New logs that peers may begin here at once, and then one in each of the periods. At the bound a further log is
/// refused and asked for again later.
const NEW_LOGS_MAX: u64 = 65_536;
const NEW_LOG_EVERY_MS: u64 = 1_000;
/// The same for each peer's own log alone, as it comes from the peer's own address: invented logs of others keep out no
/// node that starts.
const OWN_LOGS_MAX: u64 = 8;
const OWN_LOG_EVERY_MS: u64 = 60_000;
/// Peers whose own logs are counted. At the bound all counts begin again.
const OWNERS_MAX: usize = 1_024;
/// The same for cuts: for those that peers claim, which cost a peer nothing, and as many for logs that are found forked
/// or damaged here. At the bound a further cut is dropped; a later exchange finds it again.
const NEW_CUTS_MAX: u64 = 1_024;
const NEW_CUT_EVERY_MS: u64 = 10_000;
/// Claimed cuts in the queue; twice as many of all. At the bound a further cut is dropped; a later exchange finds it
/// again.
const CUTS_QUEUED_MAX: usize = 1_024;
/// Entries of peers that wait until all entries between two checkpoints of the chain are there. At the bound all are
/// dropped and requested again.
const CANDIDATES_MAX: usize = 4_096;

/// The only writer of an open store.
pub struct Committer {
    store: Arc<Store>,
    logs: Logs,
    new_origin: Box<NewOrigin>,
    cuts_in_progress: VecDeque<CutInProgress>,
    purger: Purger,
    attaching: BTreeSet<Origin>,
    new_logs: Allowance,
    own_logs: BTreeMap<usize, Allowance>,
    new_cuts: Allowance,
    claimed_cuts: Allowance,
    /// Cuts that were dropped since the last commit, for lack of an allowance.
    dropped_cuts: usize,
    /// The last cut that the disk had no room for.
    cut_without_room: Option<(Origin, u64)>,
    candidates: BTreeMap<(Origin, u64), Entry>,
    /// Where candidates wait: each log, and the number of its part between two checkpoints of the chain.
    segments: BTreeSet<(Origin, u64)>,
}

impl Committer {
    /// The committer of a store that was just opened. `new_origin` creates the ids of new logs.
    pub fn new(store: Arc<Store>, logs: Logs, new_origin: Box<NewOrigin>) -> Self {
        let attaching = logs.detached().map(|(origin, _)| origin).collect();
        let (purger, cuts_in_progress) = (Purger::of(&logs), VecDeque::new());
        let (candidates, segments) = (BTreeMap::new(), BTreeSet::new());
        let new_logs = Allowance::new(NEW_LOGS_MAX, NEW_LOG_EVERY_MS);
        let [new_cuts, claimed_cuts] = [(); 2].map(|()| Allowance::new(NEW_CUTS_MAX, NEW_CUT_EVERY_MS));
        Committer {
            store,
            logs,
            new_origin,
            cuts_in_progress,
            purger,
            attaching,
            new_logs,
            own_logs: BTreeMap::new(),
            new_cuts,
            claimed_cuts,
            dropped_cuts: 0,
            cut_without_room: None,
            candidates,
            segments,
        }
    }

    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Whether work is left that continues with the next batch, even an empty one.
    pub fn has_more(&self) -> bool {
        let has_left = !self.purger.is_done() || self.store.index().may_have_dangling();
        let has_begun = !self.cuts_in_progress.is_empty() || !self.segments.is_empty();
        has_left || has_begun || !self.attaching.is_empty()
    }

    /// Decides a batch and commits it. When this returns, all of it is on disk.
    pub fn commit(&mut self, ops: &WriteOps<'_>, space: Space, now_ms: u64) -> Result<Committed, StoreError> {
        let store = self.store.clone();
        let mut new_origin =
            std::mem::replace(&mut self.new_origin, Box::new(|| unreachable!("it is given back")));
        let mut staged = Staged::new(self.logs.clone(), &store, &mut *new_origin, space, now_ms);
        let decided = self.decide(&mut staged, ops, space);
        let Staged { logs, batch, forks, .. } = staged;
        self.new_origin = new_origin;
        let mut committed = decided?;
        for (origin, seq) in forks {
            self.enqueue_cut(origin, seq, false, now_ms);
        }
        match std::mem::take(&mut self.dropped_cuts) {
            0 => {}
            count => tracing::error!(count, "too many logs are to be cut: some stay forked for now"),
        }
        // The own log can be abandoned without a write.
        committed.changed = !batch.is_empty() || logs.own() != self.logs.own();
        let cuts: Vec<Origin> = batch.cuts.iter().map(|(origin, _)| *origin).collect();
        if !batch.is_empty() {
            store.commit(batch, &logs)?;
        }
        self.logs = logs;
        self.purger.logs.extend(cuts);
        Ok(committed)
    }

    /// Purges a piece of what cuts left. Called after the answers of each batch, since it writes as well. `is_busy`:
    /// the batch had messages of clients.
    pub fn purge(&mut self, space: Space, is_busy: bool) -> Result<(), StoreError> {
        if space.peers { self.purger.step(&self.store, &self.logs, is_busy) } else { Ok(()) }
    }

    fn decide(
        &mut self,
        staged: &mut Staged<'_>,
        ops: &WriteOps<'_>,
        space: Space,
    ) -> Result<Committed, StoreError> {
        let mut committed = Committed::default();
        for op in &ops.maintenance {
            match op {
                // An exchange brings repairs again, the scrub finds checkpoints again, and members are written with
                // their next change.
                op if op.needs_space() && !space.peers => {}
                Maintenance::ClaimedCut(origin, seq) => {
                    self.enqueue_cut(*origin, *seq, true, staged.now_ms);
                }
                Maintenance::Cut(origin, seq) => {
                    self.enqueue_cut(*origin, *seq, false, staged.now_ms);
                    // If the cut must wait, at least the next messages reach every peer.
                    staged.logs.abandon(*origin);
                }
                Maintenance::Abandon(origin) => staged.logs.abandon(*origin),
                Maintenance::Repair(records) => self.collect_repairs(staged, records)?,
                Maintenance::Checkpoint(origin, seq, hash) => staged.checkpoint(*origin, *seq, *hash),
                Maintenance::Members(members) => staged.batch.members = Some(members.clone()),
                Maintenance::Snapshots(contents) => {
                    contents.iter().try_for_each(|content| staged.append_snapshot(content))?;
                }
            }
        }
        if space.peers {
            self.continue_repairs(staged)?;
            self.continue_cut(staged)?;
        }
        for messages in &ops.sends {
            let outcomes = messages.iter().map(|message| staged.send(message));
            committed.sends.push(outcomes.collect::<Result<_, _>>()?);
        }
        for admit in &ops.admits {
            let begins = begins_log(&staged.logs, admit);
            if begins && !self.may_begin(&staged.logs, admit.owner, staged.now_ms) {
                let refused = Some(AdmitError::TooManyLogs);
                committed.admits.push(Admitted { new: 0, refused, not_stored: None });
                continue;
            }
            let admitted = staged.admit(admit)?;
            if begins && admitted.new > 0 {
                self.count_begun(admit.owner, staged.now_ms);
            }
            committed.admits.push(admitted);
            let origin = admit.entries.first().map(Entry::origin);
            self.attaching.extend(origin.filter(|origin| staged.logs.detached_until(*origin).is_some()));
        }
        if space.peers && self.cuts_in_progress.is_empty() {
            let mut left = PieceLeft::new();
            for origin in std::mem::take(&mut self.attaching) {
                if staged.attach_detached(origin, &mut left)? {
                    self.attaching.insert(origin);
                }
            }
        }
        Ok(committed)
    }

    /// Whether a peer may begin a log that is new here.
    fn may_begin(&mut self, logs: &Logs, owner: Option<usize>, now_ms: u64) -> bool {
        let own_logs = owner.map(|owner| self.own_logs_of(owner));
        let may = own_logs.is_some_and(|own| own.has(now_ms)) || self.new_logs.has(now_ms);
        may && logs.vector().origins() < LOGS_MAX
    }

    fn count_begun(&mut self, owner: Option<usize>, now_ms: u64) {
        let is_own = owner.is_some_and(|owner| self.own_logs_of(owner).take(now_ms));
        let _counted = is_own || self.new_logs.take(now_ms);
    }

    fn own_logs_of(&mut self, owner: usize) -> &mut Allowance {
        if self.own_logs.len() >= OWNERS_MAX && !self.own_logs.contains_key(&owner) {
            self.own_logs.clear();
        }
        self.own_logs.entry(owner).or_insert_with(|| Allowance::new(OWN_LOGS_MAX, OWN_LOG_EVERY_MS))
    }

    fn enqueue_cut(&mut self, origin: Origin, seq: u64, is_claimed: bool, now_ms: u64) {
        let is_done = self.logs.vector().cut_of(origin).is_some_and(|cut| cut <= seq);
        let is_under_way =
            self.cuts_in_progress.iter().any(|cutting| cutting.origin == origin && cutting.seq <= seq);
        if is_done || is_under_way {
            return;
        }
        let (allowance, queued_max) = if is_claimed {
            (&mut self.claimed_cuts, CUTS_QUEUED_MAX)
        } else {
            (&mut self.new_cuts, 2 * CUTS_QUEUED_MAX)
        };
        let has_place = self.cuts_in_progress.len() < queued_max && allowance.has(now_ms);
        if !has_place || self.logs.vector().cuts().count() >= CUTS_MAX {
            self.dropped_cuts += 1;
            return;
        }
        let _counted = allowance.take(now_ms);
        self.cuts_in_progress.push_back(CutInProgress::new(origin, seq));
    }

    fn continue_cut(&mut self, staged: &mut Staged<'_>) -> Result<(), StoreError> {
        let Some(mut cutting) = self.cuts_in_progress.pop_front() else { return Ok(()) };
        staged.logs.abandon(cutting.origin);
        // Purge first: a log that is cut repeatedly would otherwise be stored once more with every cut.
        if !cutting.has_copied() && !self.purger.is_done() {
            self.cuts_in_progress.push_front(cutting);
            return Ok(());
        }
        if !cutting.has_copied() && !cutting.has_room(&self.store, &staged.logs) {
            let place = (cutting.origin, cutting.seq);
            if self.cut_without_room.replace(place) != Some(place) {
                let (origin, seq) = place;
                tracing::error!(%origin, seq, "the disk has no room to move the entries after a cut: it is put off");
            }
            return Ok(()); // an exchange or the repair finds it again
        }
        match cutting.step(staged) {
            Ok(true) => tracing::warn!(origin = %cutting.origin, seq = cutting.seq, "a log is cut"),
            Ok(false) => self.cuts_in_progress.push_front(cutting),
            // The entry before the cut is damaged: it is repaired first, or the log is cut before it.
            Err(StoreError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Collects entries of peers for damaged ones. They are written once the chain between two checkpoints matches with
    /// them; an entry that no chain confirms replaces nothing.
    fn collect_repairs(&mut self, staged: &mut Staged<'_>, entries: &[Entry]) -> Result<(), StoreError> {
        let mut reader = staged.reader()?;
        for entry in entries {
            let (origin, seq) = (entry.origin(), entry.seq());
            let is_ours = self
                .logs
                .vector()
                .get(origin)
                .is_some_and(|span| span.holds(seq) && span.log_type == entry.log_type());
            if !is_ours || !entry.content_matches_digest() {
                continue;
            }
            if reader.peek(origin, seq)?.is_some() {
                self.store.log().damage().remove(origin, seq); // a read that failed once, or repaired meanwhile
                continue;
            }
            if self.candidates.len() >= CANDIDATES_MAX {
                self.candidates.clear();
            }
            self.candidates.insert((origin, seq), entry.clone());
            self.segments.insert((origin, (seq - 1) / CHECKPOINT_EVERY));
        }
        Ok(())
    }

    /// Repairs one segment, and more while they are small.
    fn continue_repairs(&mut self, staged: &mut Staged<'_>) -> Result<(), StoreError> {
        let mut left = PieceLeft::new();
        while !left.is_used_up()
            && let Some((origin, number)) = self.segments.pop_first()
        {
            self.repair_segment(staged, origin, number, &mut left)?;
        }
        Ok(())
    }

    /// Repairs the entries between two checkpoints, if that makes them match the chain.
    fn repair_segment(
        &mut self,
        staged: &mut Staged,
        origin: Origin,
        number: u64,
        left: &mut PieceLeft,
    ) -> Result<(), StoreError> {
        let Some(LogSpan { floor, head, .. }) = self.logs.vector().get(origin).copied() else {
            return Ok(()); // cut off meanwhile
        };
        let (begin, end) = (number * CHECKPOINT_EVERY, (number + 1) * CHECKPOINT_EVERY);
        let (first, last) = (begin.max(floor.seq) + 1, head.seq.min(end));
        if first > last {
            return Ok(()); // as above
        }
        let mut reader = staged.reader()?;
        let before = if begin <= floor.seq { Some(floor.hash) } else { reader.checkpoint(origin, begin)? };
        let after = if last == head.seq { Some(head.hash) } else { reader.checkpoint(origin, last)? };
        let (Some(mut hash), Some(after)) = (before, after) else { return Ok(()) };
        let mut repaired = Vec::new();
        for seq in first..=last {
            let entry = match (reader.peek(origin, seq)?, self.candidates.get(&(origin, seq))) {
                (Some(entry), _) => entry,
                (None, Some(candidate)) => {
                    repaired.push(candidate.clone());
                    candidate.clone()
                }
                (None, None) => {
                    self.store.log().damage().add(origin, seq);
                    return Ok(()); // more is damaged than was sent; the rest is requested too
                }
            };
            left.take(&entry);
            hash = hash.next(seq, entry.stamp(), entry.leaf());
        }
        self.candidates.retain(|(of, seq), _| *of != origin || !(first..=last).contains(seq));
        if hash != after {
            tracing::warn!(%origin, first, last, "a peer's entries for damaged ones do not match the hash chain");
            return Ok(());
        }
        tracing::info!(%origin, first, last, entries = repaired.len(), "damaged entries are repaired");
        repaired.into_iter().try_for_each(|entry| staged.repair(entry))
    }
}

/// Whether these entries of a peer begin a log that is new here.
fn begins_log(logs: &Logs, admit: &PeerRecords) -> bool {
    let Some(first) = admit.entries.first() else { return false };
    let (origin, seq) = (first.origin(), first.seq());
    logs.vector().get(origin).is_none() && (1..=logs.vector().limit(origin)).contains(&seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    use crate::chain::clock::Stamp;
    use crate::chain::filter::Filter;
    use crate::chain::ids::EntryKey;
    use crate::chain::kind::{EntryKind, LogType};
    use crate::chain::message::{self, Digest, Message};
    use crate::chain::vector::Head;
    use crate::replica::write_ops::{NewMessage, Rejection, SendOutcome};
    use crate::store::engine::files::{Directory, Files, INDEX, LOG};
    use crate::store::history::listing::Listing;
    use crate::store::index::CopyScan;
    use crate::store::log::fake::overwrite;

    const NOW: u64 = 1_700_000_000_000;

    fn new_message(id: u128, text: &str) -> NewMessage {
        let (sender, recipient, text) = ("a".into(), "b".into(), text.into());
        let staged =
            message::UncheckedMessage { id: Uuid::from_u128(id), sender, recipient, text, timestamp: None };
        let content = Message::new(staged).expect("valid").encode();
        NewMessage { id: Uuid::from_u128(id), digest: Digest::of(EntryKind::Message, &content), content }
    }

    fn write(
        committer: &mut Committer,
        maintenance: Vec<&Maintenance>,
        messages: &[NewMessage],
    ) -> Vec<SendOutcome> {
        let batch = WriteOps { maintenance, sends: vec![messages], admits: Vec::new() };
        let outcomes = committer.commit(&batch, Space::ALL, NOW).expect("writes").sends.remove(0);
        committer.purge(Space::ALL, true).expect("purges");
        outcomes
    }

    /// Goes on with all that is left, as the writer does while nothing waits.
    fn go_on(committer: &mut Committer, space: Space) {
        committer.commit(&WriteOps::default(), space, NOW).expect("writes");
        committer.purge(space, false).expect("purges");
    }

    /// The committer of a store in `dir`.
    fn open(dir: &tempfile::TempDir) -> Committer {
        let (store, logs) = Store::open(dir.path(), "test", NOW).expect("opens");
        let mut names = u8::try_from(logs.vector().origins()).expect("few");
        let new_origin = move || {
            names += 1;
            Origin([names; 16])
        };
        Committer::new(store, logs, Box::new(new_origin))
    }

    /// This many messages with a text of 900 bytes, indexed. Returns their log.
    fn fill(committer: &mut Committer, messages: u128) -> Origin {
        let all: Vec<NewMessage> = (0..messages).map(|id| new_message(id, &"x".repeat(900))).collect();
        for part in all.chunks(500) {
            write(committer, Vec::new(), part);
        }
        while committer.store().flush_index().expect("indexes") {}
        committer.logs().own().expect("has begun one")
    }

    /// Finishes all work that is left.
    fn finish(committer: &mut Committer) {
        while committer.has_more() {
            go_on(committer, Space::ALL);
        }
    }

    fn cut(committer: &mut Committer, origin: Origin, seq: u64) {
        write(committer, vec![&Maintenance::Cut(origin, seq)], &[]);
        while committer.logs().vector().cut_of(origin) != Some(seq) {
            go_on(committer, Space::ALL);
        }
    }

    fn row_from(committer: &Committer, origin: Origin, seq: u64) -> Option<u64> {
        committer.store().log().read().expect("reads").row_from(origin, seq).expect("reads")
    }

    fn list(committer: &Committer, logs: &Logs, filter: Filter) -> Result<usize, StoreError> {
        let mut listing = Listing::new(committer.store(), Arc::new(logs.clone()), filter, None, false)?;
        let mut count = 0;
        while !listing.is_done() {
            count += listing.next_chunk(1_000)?.len();
        }
        Ok(count)
    }

    /// A peer can invent logs without end. Those that are here go on, and this node's own begins.
    #[test]
    fn peers_begin_a_number_of_logs_and_then_one_in_a_while() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut committer = open(&dir);
        (committer.new_logs, committer.new_cuts) = (Allowance::new(2, 1_000), Allowance::new(2, 1_000));
        let admit = |name, seq, before| {
            let key = EntryKey { stamp: Stamp((NOW << 16) + seq), origin: Origin([name; 16]), seq };
            let content = new_message(u128::from(name), "invented").content;
            let digest = Digest::of(EntryKind::Message, &content);
            let entries = vec![Entry::new(key, EntryKind::Message, digest, &content)];
            PeerRecords { before, claimed: None, owner: None, entries }
        };
        let first = |name| admit(name, 1, Head::genesis(Origin([name; 16]), LogType::MESSAGES));
        let mut commit = |admits: &[PeerRecords], now_ms| {
            let ops = WriteOps { admits: admits.iter().collect(), ..WriteOps::default() };
            let admitted = committer.commit(&ops, Space::ALL, now_ms).expect("writes").admits;
            admitted.into_iter().map(|admitted| (admitted.new, admitted.refused)).collect::<Vec<_>>()
        };
        let (one, two, three) = (first(101), first(102), first(103));
        let (stored, refused) = ((1, None), (0, Some(AdmitError::TooManyLogs)));
        assert_eq!(commit(&[one.clone(), two, three.clone()], NOW), [stored, stored, refused]);
        let next = admit(101, 2, one.before.followed_by(&one.entries[0]));
        assert_eq!(commit(&[next, three.clone()], NOW + 999), [stored, refused]);
        assert_eq!(commit(&[three], NOW + 1_000), [stored]);
        // What cannot be stored takes nothing from others, and the invented logs of others nothing from an owner.
        let after_a_gap =
            admit(104, 2, Head { seq: 1, ..Head::genesis(Origin([104; 16]), LogType::MESSAGES) });
        let gap = commit(&[after_a_gap], NOW + 2_000)[0].1;
        assert!(gap.is_some() && gap != refused.1, "{gap:?}");
        assert_eq!(commit(&[first(105), first(106)], NOW + 2_000), [stored, refused]);
        let own = PeerRecords { owner: Some(3), ..first(106) };
        assert_eq!(commit(&[own, first(107)], NOW + 2_000), [stored, refused]);
        for name in 110..120 {
            let cut = Maintenance::Cut(Origin([name; 16]), 1);
            write(&mut committer, vec![&cut], &[new_message(u128::from(name), "mine")]);
        }
        finish(&mut committer);
        assert_eq!(committer.logs().vector().cuts().count(), 2);
        assert_eq!(committer.store().counts().messages, 15);
    }

    /// A message has room for a thousand invented cuts, and a fork that is not cut keeps messages from a peer.
    #[test]
    fn cuts_that_peers_claim_keep_no_fork_from_being_cut() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut committer = open(&dir);
        let own = fill(&mut committer, 3);
        for round in 0..3 {
            let claimed: Vec<Maintenance> = (0..1_000_u16)
                .map(|number| {
                    let mut name = [round; 16];
                    name[..2].copy_from_slice(&number.to_be_bytes());
                    Maintenance::ClaimedCut(Origin(name), 1)
                })
                .collect();
            write(&mut committer, claimed.iter().collect(), &[]);
            finish(&mut committer);
        }
        write(&mut committer, vec![&Maintenance::Cut(own, 2)], &[]);
        finish(&mut committer);
        assert_eq!(committer.logs().vector().cut_of(own), Some(2));
        // If a fork of the own log cannot be cut now, at least the next messages are in another log.
        committer.new_cuts = Allowance::new(0, u64::MAX);
        write(&mut committer, Vec::new(), &[new_message(7, "the next log")]);
        let own = committer.logs().own().expect("has begun one");
        write(&mut committer, vec![&Maintenance::Cut(own, 1)], &[]);
        assert_eq!((committer.logs().vector().cut_of(own), committer.logs().own()), (None, None));
    }

    /// What a malicious peer could request: cut a log, then the branch that results, and so on.
    #[test]
    fn cutting_branch_after_branch_does_not_make_the_files_grow() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut committer = open(&dir);
        let mut origin = fill(&mut committer, 4_000);
        let size = |name| Directory(dir.path().to_owned()).len(name).expect("is there").expect("is there");
        let size = || size(LOG) + size(INDEX);
        let (before, mut after) = (size(), Vec::new());
        for round in 1..=16 {
            write(&mut committer, vec![&Maintenance::Cut(origin, 1)], &[]);
            finish(&mut committer);
            while committer.store().flush_index().expect("indexes") {}
            let mut logs = committer.logs().vector().iter().map(|(origin, _)| origin);
            origin = logs.next().expect("a branch");
            assert_eq!((logs.next(), committer.logs().vector().cuts().count()), (None, round));
            after.push(size());
        }
        assert!(after[15] <= 3 * before && after[15] == after[7], "{before} bytes, then {after:?}");
        assert_eq!(committer.store().counts().messages, 4_000);
        assert_eq!(list(&committer, committer.logs(), Filter::default()).expect("lists"), 4_000);
        let mut scan = CopyScan::of_id(Uuid::from_u128(7).into_bytes());
        let mut index = committer.store().index().reader();
        let copies = std::iter::from_fn(|| index.next_copy(&mut scan).expect("reads"));
        assert_eq!(copies.count(), 1, "the index drops the old copies as well");
    }

    /// A peer may send entries of 256 ranges at once, and each makes the node read 1,024 entries.
    #[test]
    fn one_commit_repairs_a_part_and_the_next_ones_the_rest() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut committer = open(&dir);
        let origin = fill(&mut committer, 6_000);
        let seqs = [1, 1_500, 2_500, 3_500, 4_500, 5_500];
        let store = committer.store().clone();
        let read = |seq| store.log().read().expect("reads").get(origin, seq);
        let entries: Vec<Entry> = seqs.iter().map(|seq| read(*seq).expect("intact")).collect();
        for seq in seqs {
            overwrite(store.log(), origin, seq, b"not a record");
            assert!(read(seq).is_err());
        }
        let repair = Maintenance::Repair(entries);
        write(&mut committer, vec![&repair], &[new_message(9_999, "does not wait for all of it")]);
        assert_eq!(seqs.iter().filter(|seq| read(**seq).is_ok()).count(), 2);
        finish(&mut committer);
        assert!(seqs.iter().all(|seq| read(*seq).is_ok()));
        assert_eq!(store.log().damage().count(), 0);
    }

    /// A salvage can leave any number of entries after a gap.
    #[test]
    fn one_commit_attaches_a_part_of_the_detached_entries_and_the_next_ones_the_rest() {
        const COUNT: u64 = 5_000;
        let dir = tempfile::tempdir().expect("temp dir");
        let origin = Origin([200; 16]);
        let entry = |seq: u64| {
            let key = EntryKey { stamp: Stamp((NOW << 16) + seq), origin, seq };
            let content = new_message(u128::from(seq), "salvaged").content;
            Entry::new(key, EntryKind::Message, Digest::of(EntryKind::Message, &content), &content)
        };
        let records = (1..=COUNT).filter(|seq| *seq != 3).flat_map(|seq| entry(seq).bytes().to_vec());
        let no_database: Vec<u8> = records.collect();
        Directory(dir.path().to_owned()).replace(LOG, &no_database).expect("writes");
        let mut committer = open(&dir);
        let seq = |committer: &Committer| committer.logs().vector().seq(origin);
        assert_eq!(seq(&committer), 2);
        let before = committer.logs().vector().head(origin).expect("is there");
        let third = PeerRecords { before, claimed: None, owner: None, entries: vec![entry(3)] };
        let ops = WriteOps { admits: vec![&third], ..WriteOps::default() };
        committer.commit(&ops, Space::ALL, NOW).expect("writes");
        assert_eq!(seq(&committer), 3 + 2_000);
        finish(&mut committer);
        assert_eq!(seq(&committer), COUNT);
    }

    /// Otherwise it would be copied again with each exchange that brings the cut.
    #[test]
    fn nothing_is_copied_while_a_cut_waits_for_a_damaged_entry_before_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut committer = open(&dir);
        let origin = fill(&mut committer, 3_000);
        overwrite(committer.store().log(), origin, 8, b"not a record");
        write(&mut committer, vec![&Maintenance::Cut(origin, 12)], &[]);
        finish(&mut committer);
        assert_eq!(
            (committer.logs().vector().cut_of(origin), committer.logs().vector().origins()),
            (None, 1)
        );
    }

    #[test]
    fn repairs_of_a_log_that_is_cut_meanwhile_are_dropped() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut committer = open(&dir);
        let origin = fill(&mut committer, 3_000);
        let entry = |seq| committer.store().log().read().expect("reads").get(origin, seq).expect("intact");
        let entries = [1, 1_500, 2_500].map(entry).to_vec();
        for seq in [1, 1_500, 2_500] {
            overwrite(committer.store().log(), origin, seq, b"not a record");
        }
        write(&mut committer, vec![&Maintenance::Repair(entries), &Maintenance::Cut(origin, 1)], &[]);
        finish(&mut committer);
        assert_eq!(committer.logs().vector().cut_of(origin), Some(1));
    }

    #[test]
    fn a_purge_waits_for_clients_and_for_space_and_continues_after_the_next_opening() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut committer = open(&dir);
        let origin = fill(&mut committer, 3_500);
        cut(&mut committer, origin, 1_001);
        write(&mut committer, Vec::new(), &[new_message(9_999, "a client comes first")]);
        committer
            .commit(&WriteOps::default(), Space::ALL, NOW)
            .expect("commits, and purges nothing before the answers");
        go_on(&mut committer, Space { clients: true, peers: false });
        assert_eq!(
            row_from(&committer, origin, 3_500),
            Some(3_500),
            "the memtable had the same ids, or nothing was done yet"
        );
        while row_from(&committer, origin, 3_500).is_some() {
            go_on(&mut committer, Space::ALL);
        }
        assert_eq!(row_from(&committer, origin, 1_001), Some(1_001), "that was one piece of several");
        drop(committer);

        let mut committer = open(&dir);
        assert_eq!(row_from(&committer, origin, 1_001), Some(1_001));
        finish(&mut committer);
        assert_eq!((row_from(&committer, origin, 1), row_from(&committer, origin, 1_001)), (Some(1), None));
        drop(committer);
        for _ in 0..2 {
            let mut committer = open(&dir);
            finish(&mut committer);
            assert_eq!(committer.store().counts().messages, 3_501);
            assert_eq!(list(&committer, committer.logs(), Filter::default()).expect("lists"), 3_501);
        }
    }

    #[test]
    fn a_listing_of_what_was_before_a_cut_fails_once_it_is_purged_and_calls_nothing_damaged() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut committer = open(&dir);
        let origin = fill(&mut committer, 30);
        let before = Arc::new(committer.logs().clone());
        let by_name = || Filter { recipient: Some("b".into()), ..Filter::default() };
        let mut begun = [Filter::default(), by_name()].map(|filter| {
            Listing::new(committer.store(), before.clone(), filter, None, false).expect("begins")
        });
        for listing in &mut begun {
            assert_eq!(listing.next_chunk(7).expect("reads").len(), 7);
        }
        write(&mut committer, vec![&Maintenance::Cut(origin, 11)], &[]);
        finish(&mut committer);
        for listing in &mut begun {
            for _ in 0..2 {
                let next = listing.next_chunk(100);
                assert!(matches!(next, Err(StoreError::CutOff { .. })), "{next:?}");
            }
        }
        for filter in [Filter::default(), by_name()] {
            assert!(matches!(list(&committer, &before, filter.clone()), Err(StoreError::CutOff { .. })));
            assert_eq!(list(&committer, committer.logs(), filter).expect("lists"), 30);
        }
        let moved = committer.store().first_copy(Uuid::from_u128(20), &before);
        assert!(matches!(moved, Err(StoreError::CutOff { .. })), "it is not unknown: {moved:?}");
        assert_eq!(committer.store().log().damage().count(), 0);
    }

    #[test]
    fn a_damaged_message_that_a_cut_drops_is_not_counted_any_more() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut committer = open(&dir);
        let origin = fill(&mut committer, 30);
        overwrite(committer.store().log(), origin, 11, b"not a record");
        cut(&mut committer, origin, 11);
        assert_eq!(committer.store().counts().messages, 30, "it is unknown which it was");
        drop(committer); // before it was looked for
        for _ in 0..2 {
            let mut committer = open(&dir);
            finish(&mut committer);
            assert_eq!(committer.store().counts().messages, 29);
            assert_eq!(list(&committer, committer.logs(), Filter::default()).expect("lists"), 29);
            let again = write(&mut committer, Vec::new(), &[new_message(11, &"x".repeat(900))]);
            assert!(matches!(again[0], SendOutcome::Stored { duplicate: true, .. }), "another: {again:?}");
        }
    }

    /// One commit cuts the old entries off and adds the moved ones, which the index does not have yet.
    #[test]
    fn what_a_cut_moves_is_known_to_the_sends_of_the_same_batch() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (store, logs) = Store::open(dir.path(), "test", NOW).expect("opens");
        let mut names = 0;
        let new_origin = move || {
            names += 1;
            Origin([names; 16])
        };
        let mut committer = Committer::new(store, logs, Box::new(new_origin));
        let stored = write(&mut committer, Vec::new(), &[new_message(1, "one"), new_message(2, "two")]);
        let SendOutcome::Stored { key, duplicate: false } = stored[0] else { panic!("{stored:?}") };
        let cut = Maintenance::Cut(key.origin, 1);
        let again = write(&mut committer, vec![&cut], &[new_message(1, "one"), new_message(2, "other")]);
        assert_eq!(committer.logs().vector().cut_of(key.origin), Some(1), "with this batch");
        assert!(matches!(again[0], SendOutcome::Stored { duplicate: true, .. }), "{again:?}");
        assert_eq!(again[1], SendOutcome::NotStored(Rejection::Conflict));
    }

    /// A peer can name a log that does not exist.
    #[test]
    fn cuts_that_a_peer_invents_wait_in_a_bounded_queue() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (store, logs) = Store::open(dir.path(), "test", NOW).expect("opens");
        let mut committer = Committer::new(store, logs, Box::new(|| Origin([1; 16])));
        let name = |number: u16| Origin([number.to_be_bytes(); 8].concat().try_into().expect("16 bytes"));
        let invented: Vec<Maintenance> = (0..3_000).map(|number| Maintenance::Cut(name(number), 1)).collect();
        write(&mut committer, invented.iter().collect(), &[]);
        assert!(committer.cuts_in_progress.len() < CUTS_QUEUED_MAX, "{}", committer.cuts_in_progress.len());
        while committer.has_more() {
            write(&mut committer, Vec::new(), &[]);
        }
        assert_eq!(committer.logs().vector().cuts().count(), CUTS_QUEUED_MAX);
    }
}
