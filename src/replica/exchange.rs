//! Owns one peer's side of syncing, above `chain::sync`: what is read from the store for it, and what its words lead to.
//!
//! The starting side is an [`Exchange`]: [`plan`](Exchange::plan) (no disk), [`read`] (disk), the wire,
//! [`on_reply`](Exchange::on_reply), which says what is to be written, and [`settle`](Exchange::settle) with what became
//! of that. The answering side is [`heard`] and [`answer`]. A log that one side refuses rests on this link for a while;
//! everything else goes on. Where two copies of a log differ, the starting side looks for the entry where they begin to.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::write_ops::{Admitted, Maintenance, PeerRecords};
use crate::chain::ids::{ChainHash, Origin};
use crate::chain::logs::{AdmitError, Logs};
use crate::chain::record::Entry;
use crate::chain::sync::bisect::{Bisection, BisectionOutcome, ChainedEntry};
use crate::chain::sync::wire::{EntryRange, Hello, Run, SyncMessage, short};
use crate::chain::sync::{self, ExchangePlan, Initiator, NextExchange, Responder};
use crate::chain::vector::{Head, Vector};
use crate::store::log::ReadLimit;
use crate::store::log::damage::Damage;
use crate::store::{Store, StoreError};

/// Records in one message of an exchange. What does not fit goes with the next.
const RUN_BYTES_MAX: usize = 4 << 20;
/// Records handed to the writer at once, so that clients' commits come between those of a long catch-up.
pub const PIECE_COUNT: usize = 1_000;
/// A log refused on a link, by us or by the peer, rests there for this long.
const REST_MS: u64 = 30_000;
/// Forks looked into at the same time on one link; further ones wait.
const SEARCHES_MAX: usize = 64;

/// The starting side of exchanges with one peer.
#[derive(Debug, Clone, Default)]
pub struct Exchange {
    initiator: Initiator,
    /// Until when a log rests.
    backoff: HashMap<Origin, u64>,
    bisections: BTreeMap<Origin, Bisection>,
    /// What the peer asked for in its last answer.
    peer_wants: Vec<EntryRange>,
    /// What it had asked for before, as far as we could send it.
    served_wants: Vec<EntryRange>,
    /// Our own log's head at the end of the last push, so that its hash need not be worked out again.
    own_head_sent: Option<(Origin, Head)>,
    /// Logs of which entries were in the last request.
    pushed: BTreeSet<Origin>,
}

/// When and why an exchange is started.
pub struct Trigger<'a> {
    /// This is a timer's round, not a change's.
    pub on_timer: bool,
    /// Milliseconds of a clock that only goes forward.
    pub now_ms: u64,
    /// Logs that need not be asked for yet, because their owner pushes them or another peer is being asked.
    pub skip: &'a dyn Fn(Origin) -> bool,
    /// Damaged entries that this peer may have.
    pub repair: Vec<EntryRange>,
}

/// A request before its entries were read.
#[derive(Debug, Clone)]
pub struct PlannedRequest {
    plan: ExchangePlan,
    /// Entries to read: pushes and what the peer asked for.
    pub reads: Vec<Wanted>,
    repair: Vec<EntryRange>,
    own: Option<Origin>,
    probes: Vec<(Origin, EntryRange)>,
    before: Option<Vector>,
}

/// Entries to be read, and what the asker holds before them, where that is known.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Which.
    pub range: EntryRange,
    /// The hash before the first must be this.
    pub before: Option<ChainHash>,
    /// `before` is known to be ours as well.
    pub known: bool,
}

/// What was read.
#[derive(Debug, Default)]
pub struct ReadRuns {
    /// The entries.
    pub runs: Vec<Run>,
    /// There is more than fits.
    pub more: bool,
    /// Logs of which the asker holds something else, at these seqs.
    pub forks: Vec<(Origin, u64)>,
}

/// What an answer leads to.
#[derive(Debug)]
pub struct ReplyActions {
    /// Whether to start again.
    pub next: NextExchange,
    /// To be written first.
    pub maintenance: Vec<Maintenance>,
    /// To be written then, in order; each is one run in pieces.
    pub runs: Vec<Run>,
    /// To be judged with [`judge`].
    pub probes: Vec<(Origin, Bisection, Run)>,
    before: Option<Vector>,
}

impl Exchange {
    /// Plans a request.
    pub fn plan(&mut self, logs: &Logs, occasion: Trigger<'_>) -> PlannedRequest {
        let Trigger { on_timer, now_ms, skip: leave, repair: mend } = occasion;
        self.backoff.retain(|_, until| *until > now_ms);
        let mut plan = self.initiator.start(logs.vector(), logs.own(), on_timer, leave);
        let is_still =
            |origin: &Origin| self.backoff.contains_key(origin) || self.bisections.contains_key(origin);
        plan.push.retain(|push| !is_still(&push.origin));
        plan.wants.retain(|want| !is_still(&want.origin));
        let mut reads = Vec::new();
        for push in &plan.push {
            let theirs = self.initiator.theirs().map(|theirs| theirs.hash(push.origin));
            let known = self.own_head_sent.is_some_and(|(origin, head)| {
                origin == push.origin && head.seq == push.first - 1 && Some(head.hash) == theirs
            });
            reads.push(Wanted { range: *push, before: theirs, known });
        }
        self.served_wants = std::mem::take(&mut self.peer_wants);
        reads.extend(self.served_wants.iter().map(|range| Wanted {
            range: *range,
            before: None,
            known: false,
        }));
        let probes = self.bisections.iter().map(|(origin, search)| {
            let (origin, seq) = (*origin, search.asks());
            (origin, EntryRange { origin, first: seq, last: seq })
        });
        let probes = probes.collect();
        PlannedRequest {
            plan,
            reads,
            repair: mend,
            own: logs.own(),
            probes,
            before: self.initiator.theirs().cloned(),
        }
    }

    /// The request, with what was read for it.
    pub fn request(&mut self, hello: Hello, planned: &PlannedRequest, read: ReadRuns) -> SyncMessage {
        let plan = &planned.plan;
        let mut body = SyncMessage::quiet(hello, short(plan.mine.digest()));
        (body.heads, body.need_full) = (plan.heads.clone(), plan.need_full);
        body.own = if plan.heads.is_some() { planned.own } else { None };
        body.wants.clone_from(&plan.wants);
        body.wants.extend(&planned.repair);
        body.wants.extend(planned.probes.iter().map(|(_, range)| *range));
        for (origin, seq) in read.forks {
            self.start_bisection(origin, seq);
        }
        // Our own log comes first; if it is not among what could be read, it is damaged and must rest as well.
        let own = plan.push.first().map(|push| push.origin).filter(|origin| Some(*origin) == planned.own);
        self.pushed = read.runs.iter().map(|run| run.origin).chain(own).collect();
        for run in &read.runs {
            let last = run.before.seq + run.entries.len() as u64;
            let head = plan.mine.get(run.origin).filter(|head| head.seq == last);
            if Some(run.origin) == planned.own {
                self.own_head_sent = head.map(|head| (run.origin, *head));
            }
        }
        (body.runs, body.more) = (read.runs, read.more);
        body
    }

    /// Takes the answer. `logs` are ours now.
    pub fn on_reply(
        &mut self,
        planned: PlannedRequest,
        mut reply: SyncMessage,
        logs: &Logs,
        wounds: &Damage,
    ) -> ReplyActions {
        let PlannedRequest { plan, probes, before, .. } = planned;
        let mut runs = std::mem::take(&mut reply.runs);
        self.peer_wants = within(&reply.wants, logs.vector());
        let mut next = self.initiator.on_reply(plan, &reply);
        let mut actions =
            ReplyActions { next, maintenance: Vec::new(), runs: Vec::new(), probes: Vec::new(), before };
        if let Some(theirs) = self.initiator.theirs() {
            actions.maintenance.extend(new_cuts(logs, theirs));
            for (origin, seq) in sync::forks(logs.vector(), theirs) {
                self.start_bisection(origin, seq);
            }
        } else {
            self.bisections.clear(); // the peer's store was opened anew: what it held before is not asked for
        }
        for (origin, range) in probes {
            let is_answer = |run: &Run| {
                run.origin == origin && run.before.seq == range.first - 1 && run.entries.len() == 1
            };
            match (runs.iter().position(is_answer), self.bisections.remove(&origin)) {
                (Some(at), Some(search)) => actions.probes.push((origin, search, runs.remove(at))),
                _ => self.back_off(origin), // it cannot say: damaged there, or gone
            }
        }
        let mended = take_repairs(&mut runs, logs, wounds);
        if !mended.is_empty() {
            actions.maintenance.push(Maintenance::Repair(mended));
        }
        actions.runs = runs;
        // Who asks for the same again could not use what we sent, or we have it damaged too: the timer is soon enough.
        let asks_anew = !self.peer_wants.is_empty() && self.peer_wants != self.served_wants;
        if asks_anew || !self.bisections.is_empty() {
            next = NextExchange::Again;
        }
        actions.next = next;
        actions
    }

    /// Notes what became of it all: what was refused rests here. Gives the number of new entries.
    pub fn on_committed(
        &mut self,
        actions: &ReplyActions,
        admitted: &[(Origin, Admitted)],
        now_ms: u64,
    ) -> u64 {
        let resting = now_ms + REST_MS;
        if let (Some(before), Some(now)) = (&actions.before, self.initiator.theirs()) {
            for origin in self.pushed.iter().filter(|origin| before.seq(**origin) == now.seq(**origin)) {
                if !self.bisections.contains_key(origin) {
                    tracing::warn!(%origin, "the peer does not take the entries of a log");
                    self.backoff.insert(*origin, resting);
                }
            }
        }
        let mut new = 0;
        for (origin, admitted) in admitted {
            new += admitted.new;
            match admitted.refused {
                Some(AdmitError::Fork(seq)) if seq > 0 => self.start_bisection(*origin, seq),
                Some(_) => {
                    self.backoff.insert(*origin, resting);
                }
                None => {}
            }
        }
        let rests = self.backoff.values_mut().filter(|until| **until == u64::MAX);
        rests.for_each(|until| *until = resting);
        new
    }

    /// Goes on with a search, or ends it. Gives what is to be written.
    pub fn on_verdict(&mut self, origin: Origin, verdict: Verdict) -> Option<Maintenance> {
        match verdict {
            Verdict::Closer(search) => {
                self.bisections.insert(origin, search);
                None
            }
            Verdict::Fork(seq) => Some(Maintenance::Cut(origin, seq)),
            Verdict::Inconclusive => {
                self.back_off(origin);
                None
            }
        }
    }

    /// A log whose hashes differ at this seq.
    fn start_bisection(&mut self, origin: Origin, seq: u64) {
        if self.backoff.contains_key(&origin) || self.bisections.len() >= SEARCHES_MAX || seq == 0 {
            return;
        }
        self.bisections.entry(origin).or_insert_with(|| {
            tracing::warn!(%origin, seq, "a peer has other content of a log: looking for where it begins");
            Bisection::below(seq)
        });
    }

    /// Until the end of this exchange sets its time.
    fn back_off(&mut self, origin: Origin) {
        self.backoff.insert(origin, u64::MAX);
    }

    /// The peer's vector by its latest word.
    pub fn theirs(&self) -> Option<&Vector> {
        self.initiator.theirs()
    }

    /// Whether there are entries of our own log that the peer lacks and takes.
    pub fn has_own_to_push(&self, logs: &Logs) -> bool {
        match (self.initiator.theirs(), logs.own()) {
            (Some(theirs), Some(own)) => {
                logs.vector().seq(own) > theirs.seq(own)
                    && !self.backoff.contains_key(&own)
                    && !self.bisections.contains_key(&own)
            }
            _ => false,
        }
    }

    /// Forks that are being looked into.
    pub fn bisecting(&self) -> impl Iterator<Item = Origin> + '_ {
        self.bisections.keys().copied()
    }
}

/// What a probe came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Ask for the next.
    Closer(Bisection),
    /// The log is forked here, and our own entries up to here are sound.
    Fork(u64),
    /// The entries do not say so, or ours are damaged.
    Inconclusive,
}

/// Holds a peer's entry against ours. Before a fork is believed, our own entries are verified again.
pub fn judge(store: &Store, origin: Origin, search: Bisection, run: &Run) -> Result<Verdict, StoreError> {
    let seq = run.before.seq + 1;
    let read = || -> Result<(ChainHash, Entry), StoreError> {
        let mut reader = store.log().read()?;
        Ok((reader.hash_at(origin, seq - 1)?, reader.get(origin, seq)?))
    };
    let Some((before, entry)) = undamaged(read())? else { return Ok(Verdict::Inconclusive) };
    let side = |before, entry: &Entry| ChainedEntry { before, stamp: entry.stamp(), digest: entry.digest() };
    let theirs = &run.entries[0];
    if !theirs.content_matches_digest() {
        return Ok(Verdict::Inconclusive);
    }
    match search.compare(side(before, &entry), side(run.before.hash, theirs)) {
        BisectionOutcome::Closer(closer) => Ok(Verdict::Closer(closer)),
        BisectionOutcome::Fork(seq) => {
            let sound = undamaged(store.log().is_sound(origin, seq))?.unwrap_or(false);
            Ok(if sound { Verdict::Fork(seq) } else { Verdict::Inconclusive })
        }
        BisectionOutcome::Inconclusive => {
            undamaged(store.log().is_sound(origin, seq))?;
            Ok(Verdict::Inconclusive)
        }
    }
}

/// Cuts that the peer knows and we do not.
fn new_cuts(logs: &Logs, theirs: &Vector) -> impl Iterator<Item = Maintenance> {
    sync::new_cuts(logs.vector(), theirs).into_iter().map(|(origin, seq)| Maintenance::Cut(origin, seq))
}

/// Of runs that lie within what we have, the records of entries that are damaged here.
fn take_repairs(runs: &mut Vec<Run>, logs: &Logs, wounds: &Damage) -> Vec<Entry> {
    let mut entries = Vec::new();
    runs.retain_mut(|run| {
        let last = run.before.seq.saturating_add(run.entries.len() as u64);
        let is_mend = !run.entries.is_empty() && last <= logs.vector().seq(run.origin);
        if is_mend {
            for seq in wounds.within(run.origin, run.before.seq + 1, last) {
                let at = usize::try_from(seq - run.before.seq - 1).expect("a run is in memory");
                entries.push(run.entries[at].clone());
            }
        }
        !is_mend
    });
    entries
}

/// What a request leads to, before it is answered: care first, then runs.
pub fn on_request(
    door: &mut Responder,
    logs: &Logs,
    wounds: &Damage,
    request: &mut SyncMessage,
) -> (Vec<Maintenance>, Vec<Run>) {
    door.on_request(logs.vector(), request);
    let mut care: Vec<Maintenance> =
        door.theirs().into_iter().flat_map(|theirs| new_cuts(logs, theirs)).collect();
    let mut runs = std::mem::take(&mut request.runs);
    let mended = take_repairs(&mut runs, logs, wounds);
    if !mended.is_empty() {
        care.push(Maintenance::Repair(mended));
    }
    (care, runs)
}

/// What of a request's wants is to be read.
pub fn reads_for(request: &SyncMessage, logs: &Logs) -> Vec<Wanted> {
    let ranges = within(&request.wants, logs.vector()).into_iter();
    ranges.map(|range| Wanted { range, before: None, known: false }).collect()
}

/// The answer. `logs` are ours after what came was written; `mend`: damaged entries that the peer may have.
pub fn answer(
    door: &mut Responder,
    logs: &Logs,
    request: &SyncMessage,
    read: ReadRuns,
    mend: Vec<EntryRange>,
    hello: Hello,
) -> SyncMessage {
    let mut reply = SyncMessage::quiet(hello, [0; 16]);
    (reply.runs, reply.more) = (read.runs, read.more);
    door.answer(logs.vector(), request, &mut reply);
    reply.own = if reply.heads.is_some() { logs.own() } else { None };
    reply.wants = mend;
    reply
}

/// A run in pieces, each to be held against our chain by itself.
pub fn pieces(run: &Run, theirs: Option<&Vector>) -> Vec<PeerRecords> {
    let claimed = sync::claimed(theirs, run.origin);
    let mut before = run.before;
    let mut pieces = Vec::new();
    for entries in run.entries.chunks(PIECE_COUNT) {
        pieces.push(PeerRecords { before, claimed, entries: entries.to_vec() });
        before = entries.iter().fold(before, Head::followed_by);
    }
    pieces
}

/// What became of a run, from what became of its pieces.
pub fn admitted(run: &Run, pieces: impl IntoIterator<Item = Admitted>) -> Admitted {
    let mut all = Admitted { new: 0, refused: None, not_stored: None };
    for piece in pieces {
        all.new += piece.new;
        all.refused = all.refused.or(piece.refused);
        all.not_stored = all.not_stored.or(piece.not_stored);
    }
    if run.broken.is_some() && all.not_stored.is_none() {
        let last = run.before.seq.saturating_add(run.entries.len() as u64);
        all.refused = all.refused.or(Some(AdmitError::Broken(last)));
    }
    all
}

/// What of the ranges we have.
fn within(wants: &[EntryRange], mine: &Vector) -> Vec<EntryRange> {
    let cut = wants.iter().map(|want| EntryRange { last: want.last.min(mine.seq(want.origin)), ..*want });
    cut.filter(|want| want.first <= want.last).collect()
}

/// Reads what was asked for or is pushed, within bounds. `go_on`: whether there is time for one more range.
pub fn read(store: &Store, ranges: &[Wanted], go_on: impl Fn() -> bool) -> Result<ReadRuns, StoreError> {
    let mut read = ReadRuns::default();
    let mut left = RUN_BYTES_MAX;
    for wanted in ranges {
        if left == 0 || !go_on() {
            read.more = true;
            return Ok(read);
        }
        let EntryRange { origin, first, last } = wanted.range;
        let before = match wanted {
            Wanted { before: Some(hash), known: true, .. } => Ok(*hash),
            _ => store.log().read()?.hash_at(origin, first - 1),
        };
        let Some(hash) = undamaged(before)? else { continue };
        if wanted.before.is_some_and(|theirs| theirs != hash) {
            read.forks.push((origin, first - 1));
            continue;
        }
        let mut run =
            Run { origin, before: Head { seq: first - 1, hash }, entries: Vec::new(), broken: None };
        let mut next = first;
        while next <= last && left > 0 {
            let most = ReadLimit { rows: PIECE_COUNT, bytes: left };
            let Some(entries) = undamaged(store.log().read()?.forward(origin, next, last, most))? else {
                break;
            };
            for entry in entries {
                left = left.saturating_sub(entry.size());
                next = entry.seq() + 1;
                run.entries.push(entry);
            }
        }
        if !run.entries.is_empty() {
            read.runs.push(run);
        }
        if next <= last && left == 0 {
            read.more = true;
            return Ok(read);
        }
    }
    Ok(read)
}

/// `None`: damaged, or moved by a cut meanwhile. It is never sent; what lies before it and the other logs are, so that one bad page here does not keep
/// a peer from all the rest.
fn undamaged<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Damaged { .. } | StoreError::CutOff { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
