//! Owns both sides of an exchange with one peer, above [`chain::sync`](crate::chain::sync): what is read from the store
//! for a message, and what a message leads to.
//!
//! Before: the node's sync task has a trigger or a request. The initiator is an [`Exchange`]: [`plan`](Exchange::plan),
//! [`runs::read`](super::runs::read), the request, [`on_reply`](Exchange::on_reply), the writer, and
//! [`on_committed`](Exchange::on_committed). The responder is [`on_request`], the writer, and [`answer`]. After: the
//! [committer](super::committer) decides and commits what came.
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
}

/// Why an exchange starts, and what it must respect.
pub struct Trigger<'a> {
    /// The timer starts it, not a change.
    pub on_timer: bool,
    /// Milliseconds of a clock that only goes forward.
    pub now_ms: u64,
    /// Logs that are not requested yet, because their owner pushes them or another peer is asked.
    pub skip: &'a dyn Fn(Origin) -> bool,
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

/// What an answer leads to.
#[derive(Debug)]
pub struct ReplyActions {
    pub next: NextExchange,
    /// To be committed first.
    pub maintenance: Vec<Maintenance>,
    /// To be committed after that, in order.
    pub runs: Vec<Run>,
    /// Entries that bisections asked for; compare each with [`judge`](super::forks::judge).
    pub probes: Vec<(Origin, Bisection, Run)>,
    before: Option<Vector>,
}

impl Exchange {
    pub fn plan(&mut self, logs: &Logs, trigger: Trigger<'_>) -> PlannedRequest {
        let Trigger { on_timer, now_ms, skip, repair } = trigger;
        self.backoff.retain(|_, until| *until > now_ms);
        let mut plan = self.initiator.start(logs.vector(), logs.own(), on_timer, skip);
        plan.push.retain(|push| !self.is_left_out(push.origin));
        plan.wants.retain(|want| !self.is_left_out(want.origin));
        let before = self.initiator.theirs().cloned();
        let pushes = plan.push.iter().map(|range| {
            let span = logs.vector().get(range.origin).expect("what is pushed is here");
            let before = before.as_ref().map(|theirs| theirs.hash(range.origin, span.log_type));
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
        body.own = if plan.heads.is_some() { planned.own } else { None };
        body.wants.clone_from(&plan.wants);
        body.wants.extend(&planned.repair);
        body.wants.extend(&planned.probes);
        for (origin, seq) in read.forks {
            self.start_bisection(origin, seq);
        }
        // Our own log comes first. If it could not be read, it is damaged and is left out for a while as well.
        let own = plan.push.first().map(|push| push.origin).filter(|origin| Some(*origin) == planned.own);
        self.pushed = read.runs.iter().map(|run| run.origin).chain(own).collect();
        for run in read.runs.iter().filter(|run| Some(run.origin) == planned.own) {
            let head = plan.mine.head(run.origin).filter(|head| head.seq == run.last_seq());
            self.own_head_sent = head.map(|head| (run.origin, head));
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
        damage: &Damage,
    ) -> ReplyActions {
        let PlannedRequest { plan, probes, before, .. } = planned;
        let mut runs = std::mem::take(&mut reply.runs);
        self.peer_wants = within(&reply.wants, logs.vector());
        let next = self.initiator.on_reply(plan, &reply);
        let (mut maintenance, mut answers) = (Vec::new(), Vec::new());
        if let Some(theirs) = self.initiator.theirs() {
            maintenance.extend(new_cuts(logs, theirs));
            for (origin, seq) in sync::forks(logs.vector(), theirs) {
                self.start_bisection(origin, seq);
            }
        } else {
            self.bisections.clear(); // a new incarnation of the peer: what it held before is not relied on
        }
        for EntryRange { origin, first, .. } in probes {
            let is_answer =
                |run: &Run| run.origin == origin && run.before.seq == first - 1 && run.entries.len() == 1;
            match (runs.iter().position(is_answer), self.bisections.remove(&origin)) {
                (Some(at), Some(bisection)) => answers.push((origin, bisection, runs.remove(at))),
                _ => self.back_off(origin), // no answer: damaged there, or cut off
            }
        }
        maintenance.extend(take_repairs(&mut runs, logs, damage));
        // If the peer wants the same again, it could not use our answer, or the entries are damaged here too: wait for
        // the timer.
        let asks_for_more = !self.peer_wants.is_empty() && self.peer_wants != self.served_wants;
        let is_again = asks_for_more || !self.bisections.is_empty();
        let next = if is_again { NextExchange::Again } else { next };
        ReplyActions { next, maintenance, runs, probes: answers, before }
    }

    /// Takes the outcomes of the commits: logs that were refused are left out for a while. Returns the number of new
    /// entries.
    pub fn on_committed(
        &mut self,
        actions: &ReplyActions,
        admitted: &[(Origin, Admitted)],
        now_ms: u64,
    ) -> u64 {
        let until = now_ms + BACKOFF_MS;
        if let (Some(before), Some(now)) = (&actions.before, self.initiator.theirs()) {
            for origin in self.pushed.iter().filter(|origin| before.seq(**origin) == now.seq(**origin)) {
                if !self.bisections.contains_key(origin) {
                    tracing::warn!(%origin, "the peer refuses the entries of a log");
                    self.backoff.insert(*origin, until);
                }
            }
        }
        let mut new = 0;
        for (origin, admitted) in admitted {
            new += admitted.new;
            match admitted.refused {
                Some(AdmitError::Fork(seq)) if seq > 0 => self.start_bisection(*origin, seq),
                Some(_) => drop(self.backoff.insert(*origin, until)),
                None => {}
            }
        }
        let unset = self.backoff.values_mut().filter(|until| **until == u64::MAX);
        unset.for_each(|unset| *unset = until);
        new
    }

    /// Continues or ends a bisection. Returns what is to be committed.
    pub fn on_bisected(&mut self, origin: Origin, outcome: BisectionOutcome) -> Option<Maintenance> {
        match outcome {
            BisectionOutcome::Closer(bisection) => drop(self.bisections.insert(origin, bisection)),
            BisectionOutcome::Fork(seq) => return Some(Maintenance::Cut(origin, seq)),
            BisectionOutcome::Inconclusive => self.back_off(origin),
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

    /// Leaves a log out; [`Exchange::on_committed`] sets until when.
    fn back_off(&mut self, origin: Origin) {
        self.backoff.insert(origin, u64::MAX);
    }

    fn is_left_out(&self, origin: Origin) -> bool {
        self.backoff.contains_key(&origin) || self.bisections.contains_key(&origin)
    }

    /// The peer's vector, as its latest message says.
    pub fn theirs(&self) -> Option<&Vector> {
        self.initiator.theirs()
    }

    /// Whether the peer lacks entries of our own log and accepts them.
    pub fn has_own_to_push(&self, logs: &Logs) -> bool {
        let (Some(theirs), Some(own)) = (self.initiator.theirs(), logs.own()) else { return false };
        logs.vector().seq(own) > theirs.seq(own) && !self.is_left_out(own)
    }
}

/// Cuts that the peer has and we do not.
fn new_cuts(logs: &Logs, theirs: &Vector) -> impl Iterator<Item = Maintenance> {
    sync::new_cuts(logs.vector(), theirs).into_iter().map(|(origin, seq)| Maintenance::Cut(origin, seq))
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

pub fn reads_for(request: &SyncMessage, logs: &Logs) -> Vec<Wanted> {
    within(&request.wants, logs.vector()).into_iter().map(Wanted::by_peer).collect()
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
