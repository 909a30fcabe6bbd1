//! Owns the plan of one request: which upstreams it has asked, when it asks one more, and when it gives up.
//!
//! Pure: `forward` carries out the steps, and `now` is the time since the proxy started. Must not know sockets or
//! bodies. There are three reasons to ask one more upstream: no asked upstream is expected to answer (a failover: the
//! first is free, further ones take from a budget); the answer is late, measured by recent answers (a hedge, from a
//! budget of its own); or the strategy says so. Waiting that the client asked for is no reason.
//!
//! Invariant: budgets limit what nodes are asked, never how long a request may wait.

use std::time::Duration;

use super::budget::{Refill, TokenBucket};
use super::upstreams::{Candidate, TrafficClass, UpstreamId, Upstreams};
use crate::api::address::Addr;
use crate::config::Strategy;

/// Hedge delay of long requests: a search may take 2 s, a batch several fsyncs, and another node would not be faster.
const HEDGE_LONG: Duration = Duration::from_secs(3);
/// An upstream that is silent for this long is ejected if others answer far sooner.
const SILENT_QUICK: Duration = Duration::from_millis(500);
const SILENT_LONG: Duration = Duration::from_secs(3);
/// Time to the first byte. After it, a request does not wait for this upstream alone, whatever the others do.
const FIRST_BYTE_QUICK: Duration = Duration::from_secs(5);
const FIRST_BYTE_LONG: Duration = Duration::from_secs(10);
/// A single send or lookup that no node answers for this long ends with `no_node_available`.
const TOTAL_QUICK: Duration = Duration::from_secs(10);
/// The same for a listing or a batch, and the limit where the client asked to wait. Less than the 30 s within which a
/// server must begin its answer.
const TOTAL_LONG: Duration = Duration::from_secs(25);
/// The same while all upstreams are down, by probes too: a moment, in case one has just recovered.
const TOTAL_DOWN: Duration = Duration::from_secs(1);
/// Interval at which a waiting request checks whether upstreams were ejected or have recovered.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// One request in twenty may be hedged: about those that are later than the 95th percentile.
const HEDGES: Refill = Refill { tokens_max: 10.0, per_request: 0.05, per_second: 0.0 };
/// Second and later retries: a tenth of the requests. The rate per second lets a quiet proxy retry at all.
const RETRIES: Refill = Refill { tokens_max: 20.0, per_request: 0.1, per_second: 10.0 };

/// What the plan depends on of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestClass {
    pub traffic: TrafficClass,
    /// It concerns one message and takes milliseconds, so its latency measures the node.
    pub is_quick: bool,
    /// How long the client asked to wait.
    pub client_wait: Duration,
}

/// The state that all requests share.
#[derive(Debug)]
pub struct ProxyState {
    pub upstreams: Upstreams,
    hedges: TokenBucket,
    retries: TokenBucket,
}

#[derive(Debug)]
pub struct RequestPlan {
    class: RequestClass,
    strategy: Strategy,
    deadline: Duration,
    attempts: Vec<Attempt>,
    failovers: usize,
    /// The last failure cost no node anything, so the next failover is free.
    is_refunded: bool,
}

/// One upstream that was asked.
#[derive(Debug)]
struct Attempt {
    upstream: UpstreamId,
    started: Duration,
    is_running: bool,
    /// The upstream was ejected already when it was asked.
    was_ejected: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Ask this upstream. `attempt` identifies the attempt in `failed` and `won`.
    Ask { attempt: usize, upstream: UpstreamId, addr: Addr },
    /// Nothing before this moment, unless an attempt ends.
    Wait(Duration),
    /// Give up: the deadline has passed, or no upstream is left to ask.
    Over,
}

/// The chance that a running attempt is answered. Ordered: the best of all attempts counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Prospect {
    /// All attempts failed, or their upstreams were ejected since.
    None,
    /// An attempt has not failed, but a request should not wait for it alone.
    Poor,
    Good,
}

impl RequestClass {
    /// Whether the time to the answer measures the node.
    pub fn is_latency_sample(self) -> bool {
        self.is_quick && self.client_wait.is_zero()
    }

    fn pick<T>(self, quick: T, long: T) -> T {
        if self.is_quick { quick } else { long }
    }

    fn total(self) -> Duration {
        (self.pick(TOTAL_QUICK, TOTAL_LONG) + self.client_wait).min(TOTAL_LONG)
    }
}

impl ProxyState {
    pub fn new(upstreams: Upstreams) -> Self {
        Self { upstreams, hedges: TokenBucket::new(HEDGES), retries: TokenBucket::new(RETRIES) }
    }
}

impl RequestPlan {
    pub fn new(class: RequestClass, strategy: Strategy, state: &mut ProxyState, now: Duration) -> Self {
        state.hedges.request_arrived();
        state.retries.request_arrived();
        let total = if state.upstreams.all_down(now) { TOTAL_DOWN } else { class.total() };
        let (attempts, failovers, is_refunded) = (Vec::new(), 0, false);
        Self { class, strategy, deadline: now + total, attempts, failovers, is_refunded }
    }

    pub fn step(&mut self, state: &mut ProxyState, now: Duration) -> NextStep {
        if now >= self.deadline {
            return NextStep::Over;
        }
        let prospect = self.prospect(state, now);
        let Some(candidate) = self.candidate(state, now) else {
            let is_waiting = self.attempts.iter().any(|attempt| attempt.is_running);
            let until = self.deadline.min(now + CHECK_EVERY);
            return if is_waiting { NextStep::Wait(until) } else { NextStep::Over };
        };
        let is_due = match prospect {
            _ if self.attempts.is_empty() => true,
            Prospect::Good => self.may_hedge(state, now),
            Prospect::Poor | Prospect::None => {
                self.may_fail_over(prospect == Prospect::None && !candidate.is_ejected, state, now)
            }
        };
        if !is_due {
            let hedge_at = self.hedge_at(state).filter(|at| *at > now);
            return NextStep::Wait(self.deadline.min(hedge_at.unwrap_or(now + CHECK_EVERY)));
        }
        self.record_late(state, now);
        let Candidate { id: upstream, addr, is_ejected } = candidate;
        self.attempts.push(Attempt { upstream, started: now, is_running: true, was_ejected: is_ejected });
        NextStep::Ask { attempt: self.attempts.len() - 1, upstream, addr }
    }

    /// An attempt ended without a final answer. `is_free`: the node had no work with it.
    pub fn failed(&mut self, attempt: usize, is_free: bool) {
        self.attempts[attempt].is_running = false;
        self.is_refunded |= is_free;
    }

    /// An attempt brought the answer; the other attempts are canceled.
    pub fn won(&self, winner: usize, state: &mut ProxyState, now: Duration) {
        for (other, attempt) in self.attempts.iter().enumerate() {
            if other != winner && attempt.is_running && self.class.is_latency_sample() {
                state.upstreams.hedge_lost(attempt.upstream, self.class.traffic, attempt.started, now);
            }
        }
    }

    fn prospect(&self, state: &mut ProxyState, now: Duration) -> Prospect {
        let running = self.attempts.iter().filter(|attempt| attempt.is_running);
        running.map(|attempt| self.prospect_of(attempt, state, now)).max().unwrap_or(Prospect::None)
    }

    fn prospect_of(&self, attempt: &Attempt, state: &mut ProxyState, now: Duration) -> Prospect {
        if attempt.was_ejected {
            return Prospect::Poor;
        }
        let RequestClass { traffic, client_wait, .. } = self.class;
        let (upstream, since) = (attempt.upstream, attempt.started + client_wait);
        if now >= since {
            let silence_min = self.class.pick(SILENT_QUICK, SILENT_LONG);
            state.upstreams.still_waiting(upstream, traffic, since, now, silence_min);
        }
        if state.upstreams.is_ejected(upstream, traffic, now)
            || state.upstreams.recovered_since(upstream, attempt.started)
        {
            Prospect::None
        } else if now >= since + self.class.pick(FIRST_BYTE_QUICK, FIRST_BYTE_LONG) {
            Prospect::Poor
        } else {
            Prospect::Good
        }
    }

    /// The best upstream that was not asked yet, or that recovered after it was asked.
    fn candidate(&self, state: &ProxyState, now: Duration) -> Option<Candidate> {
        let is_left = |candidate: &Candidate| {
            let last = self.attempts.iter().rfind(|attempt| attempt.upstream == candidate.id);
            last.is_none_or(|attempt| state.upstreams.recovered_since(candidate.id, attempt.started))
        };
        state.upstreams.ranked(self.class.traffic, now).into_iter().find(is_left)
    }

    fn may_hedge(&self, state: &mut ProxyState, now: Duration) -> bool {
        let is_race = self.strategy == Strategy::Race && self.attempts.len() == 1;
        is_race || self.hedge_at(state).is_some_and(|at| at <= now) && state.hedges.take(now)
    }

    /// When the answer counts as late. Never with the strategy `failover`, which only reacts to failures.
    fn hedge_at(&self, state: &ProxyState) -> Option<Duration> {
        let last = self.attempts.last().filter(|_| self.strategy != Strategy::Failover)?;
        let delay = self.class.pick(state.upstreams.hedge_delay(self.class.traffic), HEDGE_LONG);
        Some(last.started + self.class.client_wait + delay)
    }

    /// The first failover is free if it can help: the attempts are lost, and the candidate is expected to answer.
    fn may_fail_over(&mut self, can_help: bool, state: &mut ProxyState, now: Duration) -> bool {
        if std::mem::take(&mut self.is_refunded) {
            return true;
        }
        let is_free = self.failovers == 0 && can_help;
        if !is_free && !state.retries.take(now) {
            return false;
        }
        self.failovers += 1;
        true
    }

    fn record_late(&self, state: &mut ProxyState, now: Duration) {
        let is_sample = self.class.is_latency_sample();
        if let Some(last) = self.attempts.last().filter(|last| last.is_running && is_sample) {
            state.upstreams.hedged(last.upstream, self.class.traffic, now, now.saturating_sub(last.started));
        }
    }
}

#[cfg(test)]
mod tests;
