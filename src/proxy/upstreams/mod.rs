//! Owns the proxy's view of its upstreams: which ones answer, how fast, and in which order to ask them.
//!
//! Pure: no sockets and no clock; `now` is the time since the proxy started. Must not know requests: `plan` decides how
//! many upstreams a request asks, and when.
//!
//! Outlier ejection: an upstream that does not answer, or only long after another upstream, is ejected. It is asked
//! after all others, until a probe succeeds (does not answer), the proxy's key is accepted (unauthorized), or its time
//! is over (slow). Only clear differences of latency change the order: among equals the first stays the first, so the
//! requests of one user mostly reach one node, and find there what the user just sent.
//!
//! Invariants: no upstream is ejected for being slow while all others are ejected; an upstream's id never changes.

mod discovery;
mod stats;

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{info, warn};

use discovery::StatusReport;
pub use stats::TrafficClass;
use stats::UpstreamStats;

use super::latency_window::LatencyWindow;
use crate::api::address::{self, Addr};
use crate::api::network::{NodeState, Readiness, UpstreamStatus};

/// For an upstream that has not answered yet to start as well, from the start of the proxy on. Until then it is not
/// reported.
const FIRST_CONTACT_MAX: Duration = Duration::from_secs(5);
/// An upstream that fails for longer than this is shown as down; before that as suspect.
const DOWN_AFTER: Duration = Duration::from_secs(3);
/// An answer within this time is no sign of a slow node, however fast the other nodes are.
const PROMPT: Duration = Duration::from_millis(500);
/// An upstream is slow only if another one answers in this fraction of its waiting time. Where all upstreams are slow,
/// asking another one does not help and adds load.
const OUTPACED_FACTOR: u32 = 3;
/// Time between two probes of an upstream that answers: a dead node that gets no requests is noticed after this time.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A failing upstream is probed after this fraction of the time for which it fails: its return is noticed within a
/// twentieth of its absence.
const PROBE_BACKOFF_FRACTION: u32 = 20;
const PROBE_BACKOFF_MIN: Duration = Duration::from_millis(250);
const PROBE_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The error of an upstream that answers 401 to the proxy.
const UNAUTHORIZED: &str = "it does not take the key of this proxy; give all servers the same key";

/// Identifies an upstream for as long as the proxy runs.
pub type UpstreamId = usize;

/// All upstreams: the configured ones in their order, then the discovered ones.
#[derive(Debug)]
pub struct Upstreams {
    all: BTreeMap<UpstreamId, Upstream>,
    /// The recent answers of all upstreams, by traffic class.
    latencies: [LatencyWindow; 3],
    /// Address of the proxy itself, which is never an upstream.
    own: Addr,
    next_id: UpstreamId,
    /// When status reports were asked for last.
    last_round_at: Duration,
    /// The highest message count in the last round. A node with fewer messages now lacks some that are not new.
    messages_max: u64,
}

#[derive(Debug)]
struct Upstream {
    addr: Addr,
    health: Health,
    has_answered: bool,
    /// That it does not answer is in the log, once until it answers.
    is_reported: bool,
    /// It answers, but refuses the proxy's key. Only an operator can repair that.
    is_unauthorized: bool,
    /// When it last answered again after a failure.
    recovered_at: Duration,
    /// By traffic class.
    stats: [UpstreamStats; 3],
    next_probe_at: Duration,
    error: Option<String>,
    report: StatusReport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// Never asked; used like one that is up.
    Unknown,
    Up,
    /// Does not answer. Asked last, and probed.
    Failing {
        since: Duration,
    },
}

/// What can be expected of an upstream for a traffic class. Later variants are asked later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Usable,
    /// Refused lately, but answers at once.
    Refusing,
    /// Slow, or it refuses the proxy's key.
    Ejected,
    Failing,
}

/// An upstream that a request may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: UpstreamId,
    pub addr: Addr,
    /// It is not expected to answer, or not soon.
    pub is_ejected: bool,
}

impl Upstreams {
    pub fn new(addrs: Vec<Addr>, own: Addr) -> Self {
        let all: BTreeMap<_, _> =
            addrs.into_iter().map(|addr| Upstream::new(addr, Health::Unknown)).enumerate().collect();
        let next_id = all.len();
        let (latencies, last_round_at, messages_max) = (Default::default(), Duration::ZERO, 0);
        Self { all, latencies, own, next_id, last_round_at, messages_max }
    }

    /// All upstreams, the most promising first.
    pub fn ranked(&self, class: TrafficClass, now: Duration) -> Vec<Candidate> {
        let mut order: Vec<_> = self.all.iter().collect();
        order.sort_by_cached_key(|(_, upstream)| upstream.rank(class, now)); // stable: the first stays the first
        let candidate = |(id, upstream): (&UpstreamId, &Upstream)| {
            let (addr, is_ejected) = (upstream.addr.clone(), upstream.is_ejected(class, now));
            Candidate { id: *id, addr, is_ejected }
        };
        order.into_iter().map(candidate).collect()
    }

    /// A request is sent to the upstream. `request_ended` must follow.
    pub fn request_started(&mut self, id: UpstreamId, class: TrafficClass) {
        if let Some(stats) = self.stats_mut(id, class) {
            stats.in_flight += 1;
        }
    }

    /// A request to the upstream ended, with or without an answer.
    pub fn request_ended(&mut self, id: UpstreamId, class: TrafficClass) {
        if let Some(stats) = self.stats_mut(id, class) {
            stats.in_flight = stats.in_flight.saturating_sub(1);
        }
    }

    /// The upstream answered. `latency` is None where the time to the answer says nothing about the node.
    pub fn answered(
        &mut self,
        id: UpstreamId,
        class: TrafficClass,
        now: Duration,
        latency: Option<Duration>,
    ) {
        let others =
            self.all.iter().filter(|(other, upstream)| **other != id && !upstream.is_ejected(class, now));
        let fastest = others.map(|(_, upstream)| upstream.stats(class).latency_aged(now)).min();
        let prompt = PROMPT.max(fastest.unwrap_or(Duration::MAX / 2) * 2);
        let Some(upstream) = self.all.get_mut(&id) else { return };
        upstream.mark_up(now);
        upstream.is_unauthorized = false;
        upstream.stats_mut(class).record_answer(now, latency, prompt);
        if !upstream.is_slow() {
            upstream.error = None;
        }
        if let Some(latency) = latency {
            self.latencies[class as usize].record(latency);
        }
    }

    /// How long to wait for one upstream before a second one is asked.
    pub fn hedge_delay(&self, class: TrafficClass) -> Duration {
        self.latencies[class as usize].hedge_delay()
    }

    /// The upstream has not answered after this wait, and the request asks another one.
    pub fn hedged(&mut self, id: UpstreamId, class: TrafficClass, now: Duration, waited: Duration) {
        if let Some(stats) = self.stats_mut(id, class) {
            stats.record_latency(now, waited);
        }
    }

    /// Another upstream answered a request that waits for this one since `since`. Several lost hedges in a row eject.
    pub fn hedge_lost(&mut self, id: UpstreamId, class: TrafficClass, since: Duration, now: Duration) {
        if let Some(waited) = self.outpaced(id, class, since, now)
            && self.stats_mut(id, class).is_some_and(|stats| stats.record_lost_hedge(now, waited))
        {
            self.eject(id, class, now, "other nodes answer sooner, again and again".into());
        }
    }

    /// A request waits for this upstream since `since`. At least `min` of silence ejects if others answer meanwhile.
    pub fn still_waiting(
        &mut self,
        id: UpstreamId,
        class: TrafficClass,
        since: Duration,
        now: Duration,
        min: Duration,
    ) {
        if let Some(silence) = self.outpaced(id, class, since, now)
            && silence >= min
        {
            let why = format!("no answer within {} s, while others answer", silence.as_secs_f32());
            self.eject(id, class, now, why);
        }
    }

    /// How long the upstream has been silent, if another one was clearly faster since then. The one test for slow
    /// nodes.
    fn outpaced(
        &self,
        id: UpstreamId,
        class: TrafficClass,
        since: Duration,
        now: Duration,
    ) -> Option<Duration> {
        let since = self.all.get(&id)?.stats(class).answered_at.map_or(since, |answered| since.max(answered));
        let silence = now.saturating_sub(since);
        let mut others = self.all.iter().filter(|(other, _)| **other != id);
        let is_faster = |(_, other): (_, &Upstream)| {
            !other.is_ejected(class, now)
                && other.stats(class).answered_within(since, silence / OUTPACED_FACTOR)
        };
        others.any(is_faster).then_some(silence)
    }

    /// Ejects for one traffic class, unless all other upstreams are ejected.
    fn eject(&mut self, id: UpstreamId, class: TrafficClass, now: Duration, why: String) {
        let has_other =
            self.all.iter().any(|(other, upstream)| *other != id && !upstream.is_ejected(class, now));
        let Some(upstream) = self.all.get_mut(&id) else { return };
        let is_new = !upstream.stats(class).is_slow();
        if !has_other || upstream.is_ejected(class, now) {
            return;
        }
        upstream.stats_mut(class).eject(now);
        if is_new {
            warn!(node = %upstream.addr, why, "a node is slow: it is asked after the others until it is fast again");
        }
        upstream.error = Some(why);
    }

    /// Whether no request should wait for this upstream alone.
    pub fn is_ejected(&self, id: UpstreamId, class: TrafficClass, now: Duration) -> bool {
        self.all.get(&id).is_none_or(|upstream| upstream.is_ejected(class, now))
    }

    /// Whether the upstream lacks messages that another usable upstream has.
    pub fn is_behind(&self, id: UpstreamId, now: Duration) -> bool {
        let is_better =
            |upstream: &Upstream| !upstream.report.is_behind && !upstream.is_ejected(TrafficClass::Read, now);
        self.all.get(&id).is_some_and(|upstream| upstream.report.is_behind)
            && self.all.values().any(is_better)
    }

    /// Whether the upstream failed and recovered after this moment: requests sent before it are lost.
    pub fn recovered_since(&self, id: UpstreamId, moment: Duration) -> bool {
        self.all.get(&id).is_some_and(|upstream| !upstream.is_failing() && upstream.recovered_at > moment)
    }

    /// Whether all upstreams have been failing for a while.
    pub fn all_down(&self, now: Duration) -> bool {
        self.all.values().all(|upstream| upstream.is_down(now))
    }

    /// The upstream refused for a reason that may not hold for another one.
    pub fn refused(&mut self, id: UpstreamId, class: TrafficClass, now: Duration, why: String) {
        let Some(upstream) = self.all.get_mut(&id) else { return };
        upstream.mark_up(now);
        upstream.stats_mut(class).record_refusal(now);
        upstream.error = Some(why);
    }

    /// The upstream does not accept the proxy's key.
    pub fn unauthorized(&mut self, id: UpstreamId, now: Duration) {
        let Some(upstream) = self.all.get_mut(&id) else { return };
        upstream.mark_up(now);
        if !std::mem::replace(&mut upstream.is_unauthorized, true) {
            warn!(node = %upstream.addr, "a node does not take the key of this proxy: it is asked after the others");
        }
        upstream.error = Some(UNAUTHORIZED.into());
    }

    /// What an operator should repair.
    pub fn warnings(&self) -> Vec<String> {
        let unauthorized = self.all.values().filter(|upstream| upstream.is_unauthorized);
        unauthorized.map(|upstream| format!("{}: {UNAUTHORIZED}", upstream.addr)).collect()
    }

    /// The upstream did not answer.
    pub fn failed(&mut self, id: UpstreamId, now: Duration, why: String) {
        let Some(upstream) = self.all.get_mut(&id) else { return };
        let is_early = !upstream.has_answered && now < FIRST_CONTACT_MAX;
        if !is_early && !std::mem::replace(&mut upstream.is_reported, true) {
            warn!(node = %upstream.addr, why, "a node does not answer: it is asked last until it does");
        }
        if !upstream.is_failing() {
            upstream.health = Health::Failing { since: now };
            upstream.next_probe_at = now + PROBE_BACKOFF_MIN;
        }
        upstream.error = Some(why);
    }

    /// The upstreams to probe now. Schedules the next probe of each; `jitter` (0 to 1) keeps the probes apart.
    pub fn take_due_probes(&mut self, now: Duration, jitter: f64) -> Vec<(UpstreamId, Addr)> {
        let due = self.all.iter_mut().filter(|(_, upstream)| upstream.next_probe_at <= now);
        due.map(|(id, upstream)| {
            upstream.next_probe_at = now + upstream.probe_interval(now).mul_f64(0.75 + jitter / 2.0);
            (*id, upstream.addr.clone())
        })
        .collect()
    }

    /// A probe was answered.
    pub fn probe_answered(&mut self, id: UpstreamId, now: Duration, latency: Duration, ready: &Readiness) {
        self.answered(id, TrafficClass::Probe, now, Some(latency));
        for (can, class) in [(ready.writable, TrafficClass::Write), (ready.readable, TrafficClass::Read)] {
            if !can {
                let why = ready.reasons.first().map_or("it says that it is not ready", String::as_str);
                self.refused(id, class, now, why.into());
            }
        }
    }

    /// A probe that started at `since` timed out. The upstream fails if others answer their probes, or if it answered
    /// nothing for long; otherwise the cause may be the proxy's own network.
    pub fn probe_timed_out(&mut self, id: UpstreamId, since: Duration, now: Duration, why: String) {
        let Some(upstream) = self.all.get(&id) else { return };
        let last = upstream.stats.iter().filter_map(|stats| stats.answered_at).max().unwrap_or_default();
        let is_long_ago = now.saturating_sub(last) >= DOWN_AFTER;
        if last < since && (is_long_ago || self.outpaced(id, TrafficClass::Probe, since, now).is_some()) {
            self.failed(id, now, why);
        }
    }

    /// Why the last requests failed, as part of a sentence.
    pub fn error_summary(&self) -> String {
        let why = |upstream: &Upstream| upstream.error.as_deref().unwrap_or("no answer yet").to_owned();
        address::grouped_errors(self.all.values().map(|upstream| (&upstream.addr, why(upstream))))
    }

    pub fn count(&self) -> usize {
        self.all.len()
    }

    pub fn status(&self, now: Duration) -> Vec<UpstreamStatus> {
        self.all.values().map(|upstream| upstream.status(now)).collect()
    }

    fn stats_mut(&mut self, id: UpstreamId, class: TrafficClass) -> Option<&mut UpstreamStats> {
        Some(self.all.get_mut(&id)?.stats_mut(class))
    }
}

impl Upstream {
    fn new(addr: Addr, health: Health) -> Self {
        Self {
            addr,
            health,
            has_answered: false,
            is_reported: false,
            is_unauthorized: false,
            recovered_at: Duration::ZERO,
            stats: Default::default(),
            next_probe_at: Duration::ZERO,
            error: None,
            report: StatusReport::default(),
        }
    }

    fn condition(&self, class: TrafficClass, now: Duration) -> Condition {
        let stats = self.stats(class);
        match self.health {
            Health::Failing { .. } => Condition::Failing,
            _ if stats.is_ejected(now) || self.is_unauthorized => Condition::Ejected,
            _ if stats.is_refusing(now) => Condition::Refusing,
            Health::Unknown | Health::Up => Condition::Usable,
        }
    }

    /// Smaller is better. After an ejection one request at a time finds out whether the upstream is still slow, so that
    /// only this one is late if it is.
    fn rank(&self, class: TrafficClass, now: Duration) -> (Condition, bool, u32) {
        let is_behind = class == TrafficClass::Read && self.report.is_behind;
        let trial = if self.stats(class).is_on_trial() { Condition::Ejected } else { Condition::Usable };
        (self.condition(class, now).max(trial), is_behind, self.stats(class).cost(now))
    }

    fn is_ejected(&self, class: TrafficClass, now: Duration) -> bool {
        self.condition(class, now) >= Condition::Ejected
    }

    fn is_failing(&self) -> bool {
        matches!(self.health, Health::Failing { .. })
    }

    fn is_slow(&self) -> bool {
        self.stats.iter().any(UpstreamStats::is_slow)
    }

    fn is_down(&self, now: Duration) -> bool {
        matches!(self.health, Health::Failing { since } if now.saturating_sub(since) > DOWN_AFTER)
    }

    fn mark_up(&mut self, now: Duration) {
        self.has_answered = true;
        if std::mem::take(&mut self.is_reported) {
            info!(node = %self.addr, "a node answers again");
        }
        if self.is_failing() {
            self.recovered_at = now;
            self.next_probe_at = now + PROBE_EVERY;
            self.report.was_requested = false;
            self.stats.iter_mut().for_each(UpstreamStats::reset);
        }
        self.health = Health::Up;
    }

    fn probe_interval(&self, now: Duration) -> Duration {
        match self.health {
            Health::Unknown | Health::Up => PROBE_EVERY,
            Health::Failing { since } => (now.saturating_sub(since) / PROBE_BACKOFF_FRACTION)
                .clamp(PROBE_BACKOFF_MIN, PROBE_BACKOFF_MAX),
        }
    }

    fn stats(&self, class: TrafficClass) -> &UpstreamStats {
        &self.stats[class as usize]
    }

    fn stats_mut(&mut self, class: TrafficClass) -> &mut UpstreamStats {
        &mut self.stats[class as usize]
    }

    fn status(&self, now: Duration) -> UpstreamStatus {
        let state = match self.health {
            Health::Failing { .. } if self.is_down(now) => NodeState::Down,
            Health::Failing { .. } | Health::Unknown => NodeState::Suspect,
            Health::Up if self.is_slow() || self.is_unauthorized => NodeState::Suspect,
            Health::Up => NodeState::Up,
        };
        UpstreamStatus {
            address: self.addr.clone(),
            state,
            rtt_ms: self.stats.iter().find_map(UpstreamStats::latency_ms),
            error: self.error.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
