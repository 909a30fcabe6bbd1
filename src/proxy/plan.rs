//! Owns the course of one request: whom it has asked, when it asks somebody else, and when it gives up.
//!
//! Pure: `forward` carries out the steps, and `now` is the time since the proxy began. Three reasons to ask one more: nobody who
//! was asked is expected to answer (the first such failover is free, further ones have a budget), the answer is late by
//! the measure of recent ones (a hedge, from a budget), or the strategy says so. Waiting that the client asked for is no
//! reason. Budgets bind what is asked of nodes, never how long a request may wait.

use std::time::Duration;

use super::{
    budget::{Bucket, Filling},
    latency_window::LatencyWindow,
    upstreams::{Candidate, Lane, Upstreams},
};
use crate::{api::address::Addr, config::Strategy};

/// A search may take 2 s, a batch a few fsyncs; another node would not be faster.
const HEDGE_LONG: Duration = Duration::from_secs(3);
/// A node that is silent for so long may be set aside, if others answer far sooner.
const SILENT_QUICK: Duration = Duration::from_millis(500);
const SILENT_LONG: Duration = Duration::from_secs(3);
/// To the first byte. A node that is silent for so long is not waited for alone any more, whatever the others do.
const FIRST_BYTE_QUICK: Duration = Duration::from_secs(5);
const FIRST_BYTE_LONG: Duration = Duration::from_secs(10);
/// If no node answers a single send or a lookup for so long, none is available.
const TOTAL_QUICK: Duration = Duration::from_secs(10);
/// The same for a listing or a batch, and where the client asked to wait. Less than the 30 s within which a server must
/// begin its answer.
const TOTAL_LONG: Duration = Duration::from_secs(25);
/// The same where no node has answered anything for a while, not even probes: a moment, in case one is just back.
const TOTAL_DOWN: Duration = Duration::from_secs(1);
/// How often a waiting request looks whether the nodes it waits for have been set aside, or others have come back.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A request in twenty may be hedged: about those that are later than the 95th percentile.
const HEDGES: Filling = Filling { most: 10.0, per_request: 0.05, per_second: 0.0 };
/// Second and later retries: a tenth of the requests. The floor is for where requests are few and nodes need not be spared.
const RETRIES: Filling = Filling { most: 20.0, per_request: 0.1, per_second: 10.0 };

/// What a request is, as far as its course depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestClass {
    /// What it needs of a node.
    pub(super) lane: Lane,
    /// A matter of milliseconds: one message. The time that it takes says how fast a node is.
    pub(super) is_quick: bool,
    /// How long its client asked to wait.
    pub(super) asked: Duration,
}

/// Everything that all requests know together.
#[derive(Debug)]
pub(super) struct ProxyState {
    pub(super) upstreams: Upstreams,
    hedges: Bucket,
    retries: Bucket,
    writes: LatencyWindow,
    reads: LatencyWindow,
}

/// One request.
#[derive(Debug)]
pub(super) struct RequestPlan {
    nature: RequestClass,
    strategy: Strategy,
    end: Duration,
    asks: Vec<Ask>,
    failovers: usize,
    /// The last failure cost no node anything, so the next try is free.
    refunded: bool,
}

#[derive(Debug)]
struct Ask {
    place: usize,
    at: Duration,
    running: bool,
    /// It was set aside already when it was asked.
    aside: bool,
    /// It is tried, so that all know whether it is still slow.
    trial: bool,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextStep {
    /// Ask this node. `ticket` names the attempt.
    Ask { ticket: usize, place: usize, addr: Addr },
    /// Nothing before this moment, unless an attempt ends.
    Wait(Duration),
    /// It has gone on for too long, or there is nobody left to ask.
    Over,
}

/// How likely it is that one of the running attempts is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prospect {
    Good,
    /// It has not failed, but it should not be waited for alone.
    Poor,
    /// All failed, or were set aside since they were asked.
    None,
}

impl RequestClass {
    /// Whether the time to its answer says anything of the node.
    pub(super) fn measures(self) -> bool {
        self.is_quick && self.asked.is_zero()
    }

    fn pick<T>(self, quick: T, long: T) -> T {
        if self.is_quick { quick } else { long }
    }

    fn total(self) -> Duration {
        (self.pick(TOTAL_QUICK, TOTAL_LONG) + self.asked).min(TOTAL_LONG)
    }
}

impl ProxyState {
    pub(super) fn new(upstreams: Upstreams) -> Self {
        let (hedges, retries) = (Bucket::new(HEDGES), Bucket::new(RETRIES));
        Self { upstreams, hedges, retries, writes: LatencyWindow::default(), reads: LatencyWindow::default() }
    }

    /// A node answered, and took so long if that says anything.
    pub(super) fn answered(&mut self, place: usize, lane: Lane, now: Duration, took: Option<Duration>) {
        self.upstreams.answered(place, lane, now, took);
        match (lane, took) {
            (Lane::Write, Some(took)) => self.writes.note(took),
            (Lane::Read, Some(took)) => self.reads.note(took),
            (Lane::Probe, _) | (_, None) => {}
        }
    }

    fn hedge_delay(&self, nature: RequestClass) -> Duration {
        let recent = if nature.lane == Lane::Write { &self.writes } else { &self.reads };
        nature.pick(recent.hedge_delay(), HEDGE_LONG)
    }
}

impl RequestPlan {
    /// A client brought a request.
    pub(super) fn new(
        nature: RequestClass,
        strategy: Strategy,
        outlook: &mut ProxyState,
        now: Duration,
    ) -> Self {
        outlook.hedges.offered();
        outlook.retries.offered();
        let total = if outlook.upstreams.all_down(now) { TOTAL_DOWN } else { nature.total() };
        Self { nature, strategy, end: now + total, asks: Vec::new(), failovers: 0, refunded: false }
    }

    /// What to do now.
    pub(super) fn step(&mut self, outlook: &mut ProxyState, now: Duration) -> NextStep {
        if now >= self.end {
            return NextStep::Over;
        }
        let prospect = self.prospect(outlook, now);
        let Some((candidate, trial)) = self.candidate(outlook, now) else {
            let is_waiting = self.asks.iter().any(|ask| ask.running);
            return if is_waiting { NextStep::Wait(self.end.min(now + LOOK_EVERY)) } else { NextStep::Over };
        };
        let is_due = match prospect {
            _ if self.asks.is_empty() => true,
            Prospect::Good => self.may_hedge(outlook, now),
            Prospect::Poor | Prospect::None => {
                self.may_fail_over(prospect == Prospect::None && !candidate.aside, outlook, now)
            }
        };
        if !is_due {
            let delay = self.hedge_at(outlook).filter(|at| *at > now);
            return NextStep::Wait(self.end.min(delay.unwrap_or(now + LOOK_EVERY)));
        }
        self.note_late(outlook, now);
        let Candidate { place, addr, aside } = candidate;
        self.asks.push(Ask { place, at: now, running: true, aside: aside && !trial, trial });
        NextStep::Ask { ticket: self.asks.len() - 1, place, addr }
    }

    /// An attempt ended without an answer that counts. Free: the node cannot have done anything for it.
    pub(super) fn failed(&mut self, ticket: usize, free: bool) {
        self.asks[ticket].running = false;
        self.refunded |= free;
    }

    /// An attempt brought the answer; the others are given up.
    pub(super) fn won(&self, ticket: usize, outlook: &mut ProxyState, now: Duration) {
        let took = now.saturating_sub(self.asks[ticket].at);
        let others = self.asks.iter().enumerate().filter(|(other, ask)| *other != ticket && ask.running);
        for (_, ask) in others.filter(|_| self.nature.measures()) {
            outlook.upstreams.lost(ask.place, self.nature.lane, now, now.saturating_sub(ask.at), took);
        }
    }

    fn prospect(&self, outlook: &mut ProxyState, now: Duration) -> Prospect {
        let mut best = Prospect::None;
        for ask in self.asks.iter().filter(|ask| ask.running) {
            let here = self.prospect_of(ask, outlook, now);
            best = match (best, here) {
                (Prospect::Good, _) | (_, Prospect::Good) => Prospect::Good,
                (Prospect::Poor, _) | (_, Prospect::Poor) => Prospect::Poor,
                (Prospect::None, Prospect::None) => Prospect::None,
            };
        }
        best
    }

    fn prospect_of(&self, ask: &Ask, outlook: &mut ProxyState, now: Duration) -> Prospect {
        let RequestClass { lane, asked, .. } = self.nature;
        let since = ask.at + asked;
        if ask.trial {
            let is_over = now >= since + outlook.hedge_delay(self.nature);
            return if is_over { Prospect::None } else { Prospect::Good };
        }
        if ask.aside {
            return Prospect::Poor;
        }
        if now >= since {
            outlook.upstreams.waits(ask.place, lane, since, now, self.nature.pick(SILENT_QUICK, SILENT_LONG));
        }
        let first_byte = self.nature.pick(FIRST_BYTE_QUICK, FIRST_BYTE_LONG);
        if outlook.upstreams.is_aside(ask.place, lane) || outlook.upstreams.is_back_since(ask.place, ask.at) {
            Prospect::None
        } else if now >= since + first_byte {
            Prospect::Poor
        } else {
            Prospect::Good
        }
    }

    /// The best that was not asked yet, or not since it came back. Whether asking it is a trial.
    fn candidate(&self, outlook: &mut ProxyState, now: Duration) -> Option<(Candidate, bool)> {
        let lane = self.nature.lane;
        if self.asks.is_empty()
            && self.nature.measures()
            && let Some(trial) = outlook.upstreams.take_trial(lane, now)
        {
            return Some((trial, true));
        }
        let is_open = |candidate: &Candidate| {
            let last = self.asks.iter().rfind(|ask| ask.place == candidate.place);
            last.is_none_or(|ask| outlook.upstreams.is_back_since(candidate.place, ask.at))
        };
        let candidate = outlook.upstreams.order(lane, now).into_iter().find(is_open)?;
        Some((candidate, false))
    }

    fn may_hedge(&self, outlook: &mut ProxyState, now: Duration) -> bool {
        let is_race = self.strategy == Strategy::Race && self.asks.len() == 1;
        is_race || self.hedge_at(outlook).is_some_and(|at| at <= now) && outlook.hedges.take(now)
    }

    /// When the answer is late. With `failover` it never is: a node fails or is waited for.
    fn hedge_at(&self, outlook: &ProxyState) -> Option<Duration> {
        let last = self.asks.last()?;
        let delay = outlook.hedge_delay(self.nature);
        (last.trial || self.strategy != Strategy::Failover).then(|| last.at + self.nature.asked + delay)
    }

    /// Free the first time, if there is hope: what was asked is lost, and who is next is expected to answer.
    fn may_fail_over(&mut self, hopeful: bool, outlook: &mut ProxyState, now: Duration) -> bool {
        let is_first = self.failovers == 0 && hopeful;
        let refunded = std::mem::take(&mut self.refunded);
        if !refunded {
            if !is_first && !outlook.retries.take(now) {
                return false;
            }
            self.failovers += 1;
        }
        true
    }

    fn note_late(&self, outlook: &mut ProxyState, now: Duration) {
        let measures = self.nature.measures();
        if let Some(last) = self.asks.last().filter(|last| last.running && measures) {
            outlook.upstreams.late(last.place, self.nature.lane, now, now.saturating_sub(last.at));
        }
    }
}

#[cfg(test)]
mod tests;
