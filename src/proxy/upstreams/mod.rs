//! Owns what the proxy thinks of its nodes: who looks up, how fast each answers, in which order to ask them.
//!
//! Values in, values out: no sockets and no clock, `now` is the time since the proxy began. An upstream that
//! fails is asked last, not never; one that is only slow is set aside as long as another one is left. Speed only
//! separates what differs clearly: among equals the first one stays the first, so one user's requests mostly meet
//! the same node and find there what was just sent. Places never change; a place that is gone is passed over.

mod discovery;
mod stats;

use std::{collections::BTreeMap, time::Duration};

use stats::UpstreamStats;
use tracing::{info, warn};

use discovery::StatusReport;
pub(super) use stats::Lane;

use crate::api::{
    address::{self, Addr},
    network::{NodeState, Readiness, UpstreamStatus},
};

/// A node that fails for longer than this is shown as down, before as suspect.
const DOWN_AFTER: Duration = Duration::from_secs(3);
/// An answer within this is no sign of a slow node, however fast the others are.
const PROMPT: Duration = Duration::from_millis(500);
/// A silent node is set aside only if another one answers in a fraction of that silence: where all are slow, nobody is
/// better, and asking somebody else makes it worse.
const SILENCE_FACTOR: u32 = 4;
/// How often a node in use is probed: so late is one found to be gone that nobody asks.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// One that is set aside is probed again after this part of the time for which it has been: its return is noticed
/// within a twentieth of its absence.
const BACK_OFF_PART: u32 = 20;
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// Why a node that answers is of no use.
const LOCKED_OUT: &str = "it does not take the key of this proxy; give all servers the same key";

/// All upstreams: those configured, in their order, then those learned.
#[derive(Debug)]
pub(super) struct Upstreams {
    all: BTreeMap<usize, Upstream>,
    /// Where clients find the proxy itself: never an upstream.
    own: Addr,
    next_place: usize,
    round: discovery::DiscoveryRounds,
}

#[derive(Debug)]
struct Upstream {
    addr: Addr,
    health: Health,
    /// It answers, but does not take our key, which only an operator can mend. Asked late, and probed.
    is_locked_out: bool,
    /// Since when it is in use without a break.
    back_since: Duration,
    write: UpstreamStats,
    read: UpstreamStats,
    probe: UpstreamStats,
    probe_at: Duration,
    error: Option<String>,
    word: StatusReport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// Never asked; as good as up.
    Unknown,
    Up,
    /// Set aside: asked last, and probed.
    Aside {
        since: Duration,
    },
}

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Which one.
    pub(super) place: usize,
    /// Where it is.
    pub(super) addr: Addr,
    /// It is not expected to answer, or not soon.
    pub(super) aside: bool,
}

impl Upstreams {
    pub(super) fn new(addrs: Vec<Addr>, own: Addr) -> Self {
        let all: BTreeMap<_, _> =
            addrs.into_iter().map(|addr| Upstream::new(addr, Health::Unknown)).enumerate().collect();
        let next_place = all.len();
        Self { all, own, next_place, round: discovery::DiscoveryRounds::default() }
    }

    /// All of them, the most promising first.
    pub(super) fn order(&self, lane: Lane, now: Duration) -> Vec<Candidate> {
        let mut order: Vec<_> =
            self.all.iter().map(|(place, upstream)| (upstream.rank(lane, now), *place)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, place)| self.candidate(place, lane)).collect()
    }

    fn candidate(&self, place: usize, lane: Lane) -> Candidate {
        let upstream = &self.all[&place];
        Candidate { place, addr: upstream.addr.clone(), aside: upstream.is_aside(lane) }
    }

    /// A slow one that a request should try, for it may be slow no longer. Whoever does so counts as the trial.
    pub(super) fn take_trial(&mut self, lane: Lane, now: Duration) -> Option<Candidate> {
        if !self.all.values().any(|upstream| !upstream.is_aside(lane)) {
            return None;
        }
        let is_due = |upstream: &Upstream| !upstream.is_gone() && upstream.pace(lane).is_trial_due(now);
        let (&place, upstream) = self.all.iter_mut().find(|(_, upstream)| is_due(upstream))?;
        upstream.pace_mut(lane).begin_trial(now);
        Some(self.candidate(place, lane))
    }

    /// A request goes to it. Must be followed by `ended`.
    pub(super) fn began(&mut self, place: usize, lane: Lane) {
        if let Some(pace) = self.pace(place, lane) {
            pace.began();
        }
    }

    /// A request to it is over, however.
    pub(super) fn ended(&mut self, place: usize, lane: Lane) {
        if let Some(pace) = self.pace(place, lane) {
            pace.ended();
        }
    }

    /// It answered, and took so long if that says anything.
    pub(super) fn answered(&mut self, place: usize, lane: Lane, now: Duration, took: Option<Duration>) {
        let others = self.all.iter().filter(|(other, upstream)| **other != place && !upstream.is_aside(lane));
        let fastest = others.map(|(_, upstream)| upstream.pace(lane).latency_aged(now)).min();
        let usual = PROMPT.max(fastest.unwrap_or(Duration::MAX / 2) * 2);
        let Some(upstream) = self.all.get_mut(&place) else { return };
        upstream.return_to_use(now);
        upstream.is_locked_out = false;
        upstream.pace_mut(lane).note_answer(now, took, usual);
        if !upstream.is_slow() {
            upstream.error = None;
        }
    }

    /// It has not answered for so long; somebody else is asked too.
    pub(super) fn late(&mut self, place: usize, lane: Lane, now: Duration, waited: Duration) {
        if let Some(pace) = self.pace(place, lane) {
            pace.sample(now, waited);
        }
    }

    /// It had waited for so long when another one answered, which took `won`.
    pub(super) fn lost(&mut self, place: usize, lane: Lane, now: Duration, waited: Duration, won: Duration) {
        if self.pace(place, lane).is_some_and(|pace| pace.note_lost(now, waited, won)) {
            self.set_slow(place, lane, now, "other nodes answer sooner, again and again".into());
        }
    }

    /// A request to it has waited since then. If others answer meanwhile, and soon, it is set aside.
    pub(super) fn waits(
        &mut self,
        place: usize,
        lane: Lane,
        since: Duration,
        now: Duration,
        least: Duration,
    ) {
        if let Some(silence) = self.silence(place, lane, since, now)
            && silence >= least
        {
            let why = format!("no answer within {} s, while others answer", silence.as_secs_f32());
            self.set_slow(place, lane, now, why);
        }
    }

    /// For how long it has been silent while others answer.
    fn silence(&self, place: usize, lane: Lane, since: Duration, now: Duration) -> Option<Duration> {
        let since = self.all.get(&place)?.pace(lane).answered.map_or(since, |answered| since.max(answered));
        let silence = now.saturating_sub(since);
        let mut others = self.all.iter().filter(|(other, _)| **other != place);
        others
            .any(|(_, other)| {
                !other.is_aside(lane) && other.pace(lane).is_proof_against(since, silence, SILENCE_FACTOR)
            })
            .then_some(silence)
    }

    /// Never the last one.
    fn set_slow(&mut self, place: usize, lane: Lane, now: Duration, why: String) {
        if !self.all.iter().any(|(other, upstream)| *other != place && !upstream.is_aside(lane)) {
            return;
        }
        let Some(upstream) = self.all.get_mut(&place) else { return };
        if upstream.pace_mut(lane).set_slow(now) && !upstream.is_gone() {
            warn!(node = %upstream.addr, why, "a node is slow and is asked last until it is not");
            upstream.error = Some(why);
        }
    }

    /// Whether no request should wait for it alone any more.
    pub(super) fn is_aside(&self, place: usize, lane: Lane) -> bool {
        self.all.get(&place).is_none_or(|upstream| upstream.is_aside(lane))
    }

    /// Whether it lacks messages, while another one that is expected to answer does not.
    pub(super) fn is_behind(&self, place: usize) -> bool {
        let is_better = |upstream: &Upstream| !upstream.word.is_behind && !upstream.is_aside(Lane::Read);
        self.all.get(&place).is_some_and(|upstream| upstream.word.is_behind)
            && self.all.values().any(is_better)
    }

    /// Whether it was away, and came back after this moment: what was asked before is lost.
    pub(super) fn is_back_since(&self, place: usize, asked: Duration) -> bool {
        self.all.get(&place).is_some_and(|upstream| !upstream.is_gone() && upstream.back_since > asked)
    }

    /// Whether nobody has answered anything for a while.
    pub(super) fn all_down(&self, now: Duration) -> bool {
        self.all.values().all(|upstream| upstream.is_down(now))
    }

    /// It answered with a refusal that another one may not repeat.
    pub(super) fn refused(&mut self, place: usize, lane: Lane, now: Duration, why: String) {
        let Some(upstream) = self.all.get_mut(&place) else { return };
        upstream.return_to_use(now);
        upstream.pace_mut(lane).note_refusal(now);
        upstream.error = Some(why);
    }

    /// It does not take our key.
    pub(super) fn locked_out(&mut self, place: usize, now: Duration) {
        let Some(upstream) = self.all.get_mut(&place) else { return };
        upstream.return_to_use(now);
        if !std::mem::replace(&mut upstream.is_locked_out, true) {
            warn!(node = %upstream.addr, "a node does not take the key of this proxy and is asked last until it does");
        }
        upstream.error = Some(LOCKED_OUT.into());
    }

    /// What an operator should mend.
    pub(super) fn warnings(&self) -> Vec<String> {
        let locked_out = self.all.values().filter(|upstream| upstream.is_locked_out);
        locked_out.map(|upstream| format!("{}: {LOCKED_OUT}", upstream.addr)).collect()
    }

    /// It did not answer.
    pub(super) fn failed(&mut self, place: usize, now: Duration, why: String) {
        let Some(upstream) = self.all.get_mut(&place) else { return };
        if !upstream.is_gone() {
            warn!(node = %upstream.addr, why, "a node does not answer and is asked last until it does");
            upstream.health = Health::Aside { since: now };
            upstream.probe_at = now + BACK_OFF_MIN;
        }
        upstream.error = Some(why);
    }

    /// Whom to probe now. Each is due again later than that: `chance` (0 to 1) keeps them out of step.
    pub(super) fn take_due(&mut self, now: Duration, chance: f64) -> Vec<(usize, Addr)> {
        let due = self.all.iter_mut().filter(|(_, upstream)| upstream.probe_at <= now);
        due.map(|(place, upstream)| {
            upstream.probe_at = now + upstream.pause(now).mul_f64(0.75 + chance / 2.0);
            (*place, upstream.addr.clone())
        })
        .collect()
    }

    /// It said what it can do.
    pub(super) fn probed(&mut self, place: usize, now: Duration, took: Duration, ready: Readiness) {
        self.answered(place, Lane::Probe, now, Some(took));
        let why = "it says that it cannot store just now".to_owned();
        if !ready.writable {
            self.refused(place, Lane::Write, now, why.clone());
        }
        if !ready.readable {
            self.refused(place, Lane::Read, now, why);
        }
    }

    /// A probe of then has no answer yet. Where others answer theirs, or nothing was heard of it for long, it is gone.
    pub(super) fn probe_waits(&mut self, place: usize, began: Duration, now: Duration, why: String) {
        let Some(upstream) = self.all.get(&place) else { return };
        let heard = [&upstream.write, &upstream.read, &upstream.probe].map(|pace| pace.answered).into_iter();
        let heard = heard.flatten().max().unwrap_or_default();
        let is_long_ago = now.saturating_sub(heard) >= DOWN_AFTER;
        if heard < began && (is_long_ago || self.silence(place, Lane::Probe, began, now).is_some()) {
            self.failed(place, now, why);
        }
    }

    /// Why the last requests failed, for a sentence.
    pub(super) fn complaints(&self) -> String {
        let why = |upstream: &Upstream| upstream.error.as_deref().unwrap_or("no answer yet").to_owned();
        address::complaints(self.all.values().map(|upstream| (&upstream.addr, why(upstream))))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    pub(super) fn status(&self, now: Duration) -> Vec<UpstreamStatus> {
        self.all.values().map(|upstream| upstream.status(now)).collect()
    }

    fn pace(&mut self, place: usize, lane: Lane) -> Option<&mut UpstreamStats> {
        Some(self.all.get_mut(&place)?.pace_mut(lane))
    }
}

impl Upstream {
    fn new(addr: Addr, health: Health) -> Self {
        let (write, read, probe) =
            (UpstreamStats::default(), UpstreamStats::default(), UpstreamStats::default());
        let (back_since, probe_at) = (Duration::ZERO, Duration::ZERO);
        let (error, word, is_locked_out) = (None, StatusReport::default(), false);
        Self { addr, health, is_locked_out, back_since, write, read, probe, probe_at, error, word }
    }

    /// Smaller is better. Speeds are compared by their power of two; equals keep their order.
    fn rank(&self, lane: Lane, now: Duration) -> (u8, bool, u32) {
        let pace = self.pace(lane);
        let class = match self.health {
            Health::Aside { .. } => 3,
            _ if pace.is_slow() || self.is_locked_out => 2,
            _ if pace.is_refusing(now) => 1,
            Health::Unknown | Health::Up => 0,
        };
        (class, lane == Lane::Read && self.word.is_behind, pace.cost(now))
    }

    fn is_gone(&self) -> bool {
        matches!(self.health, Health::Aside { .. })
    }

    fn is_slow(&self) -> bool {
        self.write.is_slow() || self.read.is_slow()
    }

    fn is_aside(&self, lane: Lane) -> bool {
        self.is_gone() || self.is_locked_out || self.pace(lane).is_slow()
    }

    fn is_down(&self, now: Duration) -> bool {
        matches!(self.health, Health::Aside { since } if now.saturating_sub(since) > DOWN_AFTER)
    }

    fn return_to_use(&mut self, now: Duration) {
        if self.is_gone() {
            info!(node = %self.addr, "a node answers again");
            self.back_since = now;
            self.probe_at = now + PROBE_EVERY;
            self.word.is_asked_for = true;
            [&mut self.write, &mut self.read, &mut self.probe].into_iter().for_each(UpstreamStats::forgive);
        }
        self.health = Health::Up;
    }

    /// Between two probes.
    fn pause(&self, now: Duration) -> Duration {
        match self.health {
            Health::Unknown | Health::Up => PROBE_EVERY,
            Health::Aside { since } => {
                (now.saturating_sub(since) / BACK_OFF_PART).clamp(BACK_OFF_MIN, BACK_OFF_MAX)
            }
        }
    }

    fn pace(&self, lane: Lane) -> &UpstreamStats {
        match lane {
            Lane::Write => &self.write,
            Lane::Read => &self.read,
            Lane::Probe => &self.probe,
        }
    }

    fn pace_mut(&mut self, lane: Lane) -> &mut UpstreamStats {
        match lane {
            Lane::Write => &mut self.write,
            Lane::Read => &mut self.read,
            Lane::Probe => &mut self.probe,
        }
    }

    fn status(&self, now: Duration) -> UpstreamStatus {
        let state = match self.health {
            Health::Aside { .. } if self.is_down(now) => NodeState::Down,
            Health::Aside { .. } | Health::Unknown => NodeState::Suspect,
            Health::Up if self.is_slow() || self.is_locked_out => NodeState::Suspect,
            Health::Up => NodeState::Up,
        };
        UpstreamStatus {
            address: self.addr.clone(),
            state,
            rtt_ms: self.probe.latency_ms().or(self.read.latency_ms()).or(self.write.latency_ms()),
            error: self.error.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
