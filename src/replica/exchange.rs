//! Owns both sides of an exchange with one peer, above [`chain::sync`](crate::chain::sync): what is read from the store
//! for a message, and what a message leads to.
//!
//! Before: the node's sync task has a trigger or a request. The initiator is an [`Exchange`]: [`plan`](Exchange::plan),
//! [`runs::read`](super::runs::read), the request, [`on_reply`](Exchange::on_reply), and for the runs of the answer, as
//! they arrive, [`on_runs`](Exchange::on_runs), the writer and [`on_admitted`](Exchange::on_admitted). The responder is
//! [`on_request`], the writer, and [`answer`]. After: the [committer](super::committer) decides and commits what came.
//!
//! Invariants: a log that one side refuses is left out on this link for a while, and all other logs go on. Where two
//! copies of a log differ, the initiator bisects to the first entry that differs; [`forks`](super::forks) compares the
//! entries.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::runs::{ReadRuns, Wanted, within};
use super::write_ops::{Admitted, Maintenance};
use crate::chain::ids::Origin;
use crate::chain::logs::{AdmitError, Logs};
use crate::chain::sync::bisect::{Bisection, BisectionOutcome};
use crate::chain::sync::wire::{EntryRange, Hello, Run, SyncMessage, short};
use crate::chain::sync::{self, ExchangePlan, Initiator, NextExchange, Responder};
use crate::chain::vector::{Head, Vector};
use crate::store::log::damage::Damage;

/// How long a log is left out on a link after one side refused it.
const BACKOFF_MS: u64 = 30_000;
/// Cuts that one message of a peer may cause. Further ones follow with the next message.
const CUTS_PER_MESSAGE_MAX: usize = 1_024;
/// Bisections at the same time on one link. Further forks wait for a later exchange.
const BISECTIONS_MAX: usize = 64;

/// The initiator's side of all exchanges with one peer.
#[derive(Debug, Clone, Default)]
pub struct Exchange {
    initiator: Initiator,
    /// Logs that are left out, and until when.
    backoff: HashMap<Origin, u64>,
    bisections: BTreeMap<Origin, Bisection>,
    /// The ranges that the peer requested in its last answer.
    peer_wants: Vec<EntryRange>,
    /// The ranges that it requested before that and that we have.
    served_wants: Vec<EntryRange>,
    /// Our own log's head after the last push; saves computing its hash.
    own_head_sent: Option<(Origin, Head)>,
    /// Logs that the last request had entries of.
    pushed: BTreeSet<Origin>,
    /// The log that the peer appends to, as its answers say.
    peer_own: Option<Origin>,
}

/// Why an exchange starts, and what it must respect.
pub struct Trigger<'a> {
    /// The timer starts it, not a change.
    pub on_timer: bool,
    /// Milliseconds of a clock that only goes forward.
    pub now_ms: u64,
    /// Logs that are not requested yet, because their owner pushes them or another peer is asked.
    pub skip: &'a dyn Fn(Origin) -> bool,
    /// The last seq of a log that the peer has by any of its messages; the largest number if it pulls the log from
    /// here now. Nothing up to there is pushed.
    pub peer_has: &'a dyn Fn(Origin) -> u64,
    /// Damaged entries that this peer may have.
    pub repair: Vec<EntryRange>,
}

/// A request before its entries are read.
#[derive(Debug, Clone)]
pub struct PlannedRequest {
    plan: ExchangePlan,
    /// Entries to read: those to push, and those that the peer requested.
    pub reads: Vec<Wanted>,
    repair: Vec<EntryRange>,
    own: Option<Origin>,
    /// One entry of each log that is bisected.
    probes: Vec<EntryRange>,
    before: Option<Vector>,
}

/// An answer that is being taken in: its runs may arrive one after the other.
#[derive(Debug)]
pub struct Reply {
    next: NextExchange,
    /// The entries that bisections asked for and that have not come.
    probes: Vec<EntryRange>,
    before: Option<Vector>,
}

/// What some runs of an answer lead to.
#[derive(Debug)]
pub struct RunActions {
    /// Entries for damaged ones; to be committed first.
    pub repair: Option<Maintenance>,
    /// To be committed after that, in order.
    pub runs: Vec<Run>,
    /// Entries that bisections asked for; compare each with [`judge`](super::forks::judge).
    pub probes: Vec<(Origin, Bisection, Run)>,
}

impl Exchange {
    pub fn plan(&mut self, logs: &Logs, trigger: Trigger<'_>) -> PlannedRequest {
        let Trigger { on_timer, now_ms, skip, peer_has, repair } = trigger;
        self.backoff.retain(|_, until| *until > now_ms);
        let mut plan = self.initiator.start(logs.vector(), logs.own(), on_timer, skip);
        let before = self.initiator.theirs().cloned();
        self.leave_out_floors(logs.vector(), now_ms);
        plan.push.retain_mut(|push| {
            push.first = push.first.max(peer_has(push.origin).saturating_add(1));
            push.first <= push.last && !self.is_left_out(push.origin)
        });
        plan.wants.retain(|want| !self.is_left_out(want.origin));
        let pushes = plan.push.iter().map(|range| {
            let span = logs.vector().get(range.origin).expect("what is pushed is here");
            // What it has by another message has a hash that is not known here.
            let theirs = before.as_ref().filter(|theirs| theirs.seq(range.origin) + 1 == range.first);
            let before = theirs.map(|theirs| theirs.hash(range.origin, span.log_type));
            let known = self.own_head_sent.is_some_and(|(origin, head)| {
                origin == range.origin && head.seq == range.first - 1 && Some(head.hash) == before
            });
            Wanted { range: *range, before, known }
        });
        let mut reads: Vec<Wanted> = pushes.collect();
        self.served_wants = std::mem::take(&mut self.peer_wants);
        reads.extend(self.served_wants.iter().copied().map(Wanted::by_peer));
        let probes = self.bisections.iter().map(|(origin, bisection)| {
            let seq = bisection.asks();
            EntryRange { origin: *origin, first: seq, last: seq }
        });
        PlannedRequest { plan, reads, repair, own: logs.own(), probes: probes.collect(), before }
    }

    pub fn request(
        &mut self,
        hello: Hello,
        clock_ms: u64,
        planned: &PlannedRequest,
        read: ReadRuns,
    ) -> SyncMessage {
        let plan = &planned.plan;
        let mut body = SyncMessage::quiet(hello, short(plan.mine.digest()), clock_ms);
        (body.heads, body.need_full) = (plan.heads.clone(), plan.need_full);
        body.wants_any = planned.before.is_none();
        body.own = if plan.heads.is_some() { planned.own } else { None };
        body.wants.clone_from(&plan.wants);
        body.wants.extend(&planned.repair);
        body.wants.extend(&planned.probes);
        for (origin, seq) in read.forks {
            self.start_bisection(origin, seq);
        }
        // If our own log could not be read, it is damaged and is left out for a while as well.
        let own = plan.push.iter().map(|push| push.origin).find(|origin| Some(*origin) == planned.own);
        self.pushed = read.runs.iter().map(|run| run.origin).chain(own).collect();
        for run in read.runs.iter().filter(|run| Some(run.origin) == planned.own) {
            let head = plan.mine.head(run.origin).filter(|head| head.seq == run.last_seq());
            self.own_head_sent = head.map(|head| (run.origin, head));
        }
        (body.runs, body.more) = (read.runs, read.more);
        body
    }

    /// Takes an answer without its runs. `logs` are ours now. Returns the cuts to be committed before the runs.
    pub fn on_reply(
        &mut self,
        planned: PlannedRequest,
        reply: &SyncMessage,
        logs: &Logs,
    ) -> (Reply, Vec<Maintenance>) {
        let PlannedRequest { plan, probes, before, .. } = planned;
        self.peer_wants = within(&reply.wants, logs.vector());
        let next = self.initiator.on_reply(plan, reply);
        let mut cuts = Vec::new();
        if let Some(theirs) = self.initiator.theirs() {
            cuts.extend(new_cuts(logs, theirs));
            for (origin, seq) in sync::forks(logs.vector(), theirs) {
                self.start_bisection(origin, seq);
            }
        } else {
            self.bisections.clear(); // a new incarnation of the peer: what it held before is not relied on
            self.peer_own = None;
        }
        self.peer_own = reply.own.or(self.peer_own);
        (Reply { next, probes, before }, cuts)
    }

    /// Takes runs of an answer, all of them or those that have arrived.
    pub fn on_runs(
        &mut self,
        reply: &mut Reply,
        mut runs: Vec<Run>,
        logs: &Logs,
        damage: &Damage,
    ) -> RunActions {
        let mut probes = Vec::new();
        reply.probes.retain(|EntryRange { origin, first, .. }| {
            let is_answer =
                |run: &Run| run.origin == *origin && run.before.seq == first - 1 && run.entries.len() == 1;
            let Some(at) = runs.iter().position(is_answer) else { return true };
            let run = runs.remove(at);
            // A bisection that began after the request asks for another entry.
            let asked = self.bisections.get(origin).is_some_and(|bisection| bisection.asks() == *first);
            if let Some(bisection) = asked.then(|| self.bisections.remove(origin)).flatten() {
                probes.push((*origin, bisection, run));
            }
            false
        });
        let repair = take_repairs(&mut runs, logs, damage);
        RunActions { repair, runs, probes }
    }

    /// Takes the outcomes of the commits: logs that were refused are left out for a while. Returns the number of new
    /// entries.
    pub fn on_admitted(&mut self, admitted: &[(Origin, Admitted)], now_ms: u64) -> u64 {
        let mut new = 0;
        for (origin, admitted) in admitted {
            new += admitted.new;
            match admitted.refused {
                Some(AdmitError::Fork(seq)) if seq > 0 => self.start_bisection(*origin, seq),
                Some(_) => drop(self.backoff.insert(*origin, now_ms + BACKOFF_MS)),
                None => {}
            }
        }
        new
    }

    /// Takes the end of an answer. `is_whole`: it was not cut off.
    pub fn on_reply_end(&mut self, reply: &Reply, is_whole: bool, now_ms: u64) -> NextExchange {
        let until = now_ms + BACKOFF_MS;
        if let (Some(before), Some(now)) = (&reply.before, self.initiator.theirs()) {
            for origin in self.pushed.iter().filter(|origin| before.seq(**origin) == now.seq(**origin)) {
                if !self.bisections.contains_key(origin) {
                    tracing::warn!(%origin, "the peer refuses the entries of a log");
                    self.backoff.insert(*origin, until);
                }
            }
        }
        for EntryRange { origin, .. } in reply.probes.iter().filter(|_| is_whole) {
            self.bisections.remove(origin);
            self.backoff.insert(*origin, until); // no answer: damaged there, or cut off
        }
        // If the peer wants the same again, it could not use our answer, or the entries are damaged here too: wait for
        // the timer.
        let asks_for_more = !self.peer_wants.is_empty() && self.peer_wants != self.served_wants;
        if asks_for_more || !is_whole || !self.bisections.is_empty() {
            NextExchange::Again
        } else {
            reply.next
        }
    }

    /// Continues or ends a bisection. Returns what is to be committed.
    pub fn on_bisected(
        &mut self,
        origin: Origin,
        outcome: BisectionOutcome,
        now_ms: u64,
    ) -> Option<Maintenance> {
        match outcome {
            BisectionOutcome::Closer(bisection) => drop(self.bisections.insert(origin, bisection)),
            BisectionOutcome::Fork(seq) => return Some(Maintenance::Cut(origin, seq)),
            BisectionOutcome::Inconclusive => drop(self.backoff.insert(origin, now_ms + BACKOFF_MS)),
        }
        None
    }

    /// Starts a bisection of a log whose hashes differ at this seq.
    fn start_bisection(&mut self, origin: Origin, seq: u64) {
        if self.backoff.contains_key(&origin) || self.bisections.len() >= BISECTIONS_MAX || seq == 0 {
            return;
        }
        self.bisections.entry(origin).or_insert_with(|| {
            tracing::warn!(%origin, seq, "a log is forked on a peer: searching for the first entry that differs");
            Bisection::below(seq)
        });
    }

    /// Has bisections begin above the floors of both sides. Where nothing is left to compare, the log is left out for a
    /// while.
    fn leave_out_floors(&mut self, mine: &Vector, now_ms: u64) {
        let theirs = self.initiator.theirs();
        self.bisections.retain(|origin, bisection| {
            let floor = mine.floor(*origin).max(theirs.map_or(0, |theirs| theirs.floor(*origin)));
            let goes_on = bisection.begin_above(floor);
            if !goes_on {
                self.backoff.insert(*origin, now_ms + BACKOFF_MS);
            }
            goes_on
        });
    }

    fn is_left_out(&self, origin: Origin) -> bool {
        self.backoff.contains_key(&origin) || self.bisections.contains_key(&origin)
    }

    /// What the peer said of itself by a request; used until an answer comes.
    pub fn learn(&mut self, theirs: &Vector) {
        self.initiator.learn(theirs);
    }

    /// The peer's vector, as its latest message says.
    pub fn theirs(&self) -> Option<&Vector> {
        self.initiator.theirs()
    }

    /// Whether the peer lacks entries of our own log and accepts them. `peer_has`: as in [`Trigger`].
    pub fn has_own_to_push(&self, logs: &Logs, peer_has: impl Fn(Origin) -> u64) -> bool {
        let (Some(theirs), Some(own)) = (self.initiator.theirs(), logs.own()) else { return false };
        logs.vector().seq(own) > theirs.seq(own).max(peer_has(own)) && !self.is_left_out(own)
    }

    /// The log that the peer appends to, as its answers say.
    pub fn peer_own(&self) -> Option<Origin> {
        self.peer_own
    }

    /// Our own log's head after the last push.
    pub fn own_head_sent(&self) -> Option<(Origin, Head)> {
        self.own_head_sent
    }

    /// Entries of our own log that the peer lacks.
    pub fn own_lag(&self, logs: &Logs) -> u64 {
        let (Some(theirs), Some(own)) = (self.initiator.theirs(), logs.own()) else { return 0 };
        logs.vector().seq(own).saturating_sub(theirs.seq(own))
    }
}

/// Cuts that the peer has and we do not.
fn new_cuts(logs: &Logs, theirs: &Vector) -> impl Iterator<Item = Maintenance> {
    let cuts = sync::new_cuts(logs.vector(), theirs).into_iter().take(CUTS_PER_MESSAGE_MAX);
    cuts.map(|(origin, seq)| Maintenance::ClaimedCut(origin, seq))
}

/// Takes the runs that lie within our logs, and the entries among them that are damaged here.
fn take_repairs(runs: &mut Vec<Run>, logs: &Logs, damage: &Damage) -> Option<Maintenance> {
    let mut entries = Vec::new();
    runs.retain_mut(|run| {
        let last = run.last_seq();
        let is_repair = !run.entries.is_empty() && last <= logs.vector().seq(run.origin);
        if is_repair {
            for seq in damage.within(run.origin, run.before.seq + 1, last) {
                let at = usize::try_from(seq - run.before.seq - 1).expect("a run is in memory");
                entries.push(run.entries[at].clone());
            }
        }
        !is_repair
    });
    (!entries.is_empty()).then_some(Maintenance::Repair(entries))
}

/// What a request leads to before it is answered: the maintenance is committed first, then the runs.
pub fn on_request(
    responder: &mut Responder,
    logs: &Logs,
    damage: &Damage,
    request: &mut SyncMessage,
) -> (Vec<Maintenance>, Vec<Run>) {
    responder.on_request(logs.vector(), request);
    let mut maintenance: Vec<Maintenance> =
        responder.theirs().into_iter().flat_map(|theirs| new_cuts(logs, theirs)).collect();
    let mut runs = std::mem::take(&mut request.runs);
    maintenance.extend(take_repairs(&mut runs, logs, damage));
    (maintenance, runs)
}

/// What a request asks for. `theirs`: the peer's vector, if its messages say so.
pub fn reads_for(request: &SyncMessage, logs: &Logs, theirs: Option<&Vector>) -> Vec<Wanted> {
    let mut wants = within(&request.wants, logs.vector());
    if let Some(theirs) = theirs.filter(|_| request.wants_any) {
        wants.extend(sync::missing_ranges(logs.vector(), theirs));
    }
    wants.into_iter().map(Wanted::by_peer).collect()
}

/// The answer. `logs`: ours after the request's runs were committed. `repair`: damaged entries that the peer may have.
pub fn answer(
    responder: &mut Responder,
    logs: &Logs,
    request: &SyncMessage,
    read: ReadRuns,
    repair: Vec<EntryRange>,
    (hello, clock_ms): (Hello, u64),
) -> SyncMessage {
    let mut reply = SyncMessage::quiet(hello, [0; 16], clock_ms);
    (reply.runs, reply.more) = (read.runs, read.more);
    responder.answer(logs.vector(), request, &mut reply);
    reply.own = if reply.heads.is_some() { logs.own() } else { None };
    reply.wants = repair;
    reply
}
