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

use super::forks::Verdict;
use super::runs::{ReadRuns, Wanted, within};
use super::write_ops::{Admitted, Maintenance};
use crate::chain::ids::Origin;
use crate::chain::logs::{AdmitError, Logs};
use crate::chain::record::Entry;
use crate::chain::sync::bisect::Bisection;
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
    probes: Vec<(Origin, EntryRange)>,
    before: Option<Vector>,
}

/// What an answer leads to.
#[derive(Debug)]
pub struct ReplyActions {
    /// Whether to start again.
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
    /// Plans a request.
    pub fn plan(&mut self, logs: &Logs, trigger: Trigger<'_>) -> PlannedRequest {
        let Trigger { on_timer, now_ms, skip, repair } = trigger;
        self.backoff.retain(|_, until| *until > now_ms);
        let mut plan = self.initiator.start(logs.vector(), logs.own(), on_timer, skip);
        let is_left_out =
            |origin: &Origin| self.backoff.contains_key(origin) || self.bisections.contains_key(origin);
        plan.push.retain(|push| !is_left_out(&push.origin));
        plan.wants.retain(|want| !is_left_out(&want.origin));
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
            repair,
            own: logs.own(),
            probes,
            before: self.initiator.theirs().cloned(),
        }
    }

    /// Builds the request from what was read for it.
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
        // Our own log comes first. If it could not be read, it is damaged and is left out for a while as well.
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
        damage: &Damage,
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
            self.bisections.clear(); // a new incarnation of the peer: what it held before is not relied on
        }
        for (origin, range) in probes {
            let is_answer = |run: &Run| {
                run.origin == origin && run.before.seq == range.first - 1 && run.entries.len() == 1
            };
            match (runs.iter().position(is_answer), self.bisections.remove(&origin)) {
                (Some(at), Some(search)) => actions.probes.push((origin, search, runs.remove(at))),
                _ => self.back_off(origin), // no answer: damaged there, or cut off
            }
        }
        let repaired = take_repairs(&mut runs, logs, damage);
        if !repaired.is_empty() {
            actions.maintenance.push(Maintenance::Repair(repaired));
        }
        actions.runs = runs;
        // The peer could not use our answer, or the entries are damaged here too: wait for the timer.
        let asks_for_more = !self.peer_wants.is_empty() && self.peer_wants != self.served_wants;
        if asks_for_more || !self.bisections.is_empty() {
            next = NextExchange::Again;
        }
        actions.next = next;
        actions
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
                Some(_) => {
                    self.backoff.insert(*origin, until);
                }
                None => {}
            }
        }
        let unset = self.backoff.values_mut().filter(|until| **until == u64::MAX);
        unset.for_each(|unset| *unset = until);
        new
    }

    /// Continues or ends a bisection. Returns what is to be committed.
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

    /// The peer's vector, as its latest message says.
    pub fn theirs(&self) -> Option<&Vector> {
        self.initiator.theirs()
    }

    /// Whether the peer lacks entries of our own log and accepts them.
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
}

/// Cuts that the peer has and we do not.
fn new_cuts(logs: &Logs, theirs: &Vector) -> impl Iterator<Item = Maintenance> {
    sync::new_cuts(logs.vector(), theirs).into_iter().map(|(origin, seq)| Maintenance::Cut(origin, seq))
}

/// Takes the runs that lie within our logs, and returns the entries among them that are damaged here.
fn take_repairs(runs: &mut Vec<Run>, logs: &Logs, damage: &Damage) -> Vec<Entry> {
    let mut entries = Vec::new();
    runs.retain_mut(|run| {
        let last = run.before.seq.saturating_add(run.entries.len() as u64);
        let is_repair = !run.entries.is_empty() && last <= logs.vector().seq(run.origin);
        if is_repair {
            for seq in damage.within(run.origin, run.before.seq + 1, last) {
                let at = usize::try_from(seq - run.before.seq - 1).expect("a run is in memory");
                entries.push(run.entries[at].clone());
            }
        }
        !is_repair
    });
    entries
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
    let repaired = take_repairs(&mut runs, logs, damage);
    if !repaired.is_empty() {
        maintenance.push(Maintenance::Repair(repaired));
    }
    (maintenance, runs)
}

pub fn reads_for(request: &SyncMessage, logs: &Logs) -> Vec<Wanted> {
    let ranges = within(&request.wants, logs.vector()).into_iter();
    ranges.map(|range| Wanted { range, before: None, known: false }).collect()
}

/// The answer. `logs`: ours after the request's runs were committed. `repair`: damaged entries that the peer may have.
pub fn answer(
    responder: &mut Responder,
    logs: &Logs,
    request: &SyncMessage,
    read: ReadRuns,
    repair: Vec<EntryRange>,
    hello: Hello,
) -> SyncMessage {
    let mut reply = SyncMessage::quiet(hello, [0; 16]);
    (reply.runs, reply.more) = (read.runs, read.more);
    responder.answer(logs.vector(), request, &mut reply);
    reply.own = if reply.heads.is_some() { logs.own() } else { None };
    reply.wants = repair;
    reply
}
