//! Owns what is known of one node for one sort of request: how fast it answers, and whether it answers at all.
//!
//! Sends, reads and probes are told apart, for they fail apart: a node whose disk takes two seconds for an fsync still
//! reads at once, and says that it is ready. Pure, as all of `upstreams`.

use std::time::Duration;

/// Answers faster than this count as equally fast.
const LATENCY_FLOOR: Duration = Duration::from_millis(5);
/// What is known of a node's speed counts half after this time, so that a slow one is tried again.
const LATENCY_HALF_LIFE: Duration = Duration::from_secs(5);
/// How much of a faster sample enters the mean. A slower one replaces it: peaks are believed at once.
const LATENCY_WEIGHT: f64 = 0.3;
/// After a refusal that another node may not repeat (a full disk), a node is asked later than others for so long.
const REFUSING: Duration = Duration::from_secs(2);
/// After so many lost hedges in a row a node is slow.
const LOST_MAX: u32 = 3;
/// A hedge is lost only where the node had so many times as long as the one that answered.
const LOST_FACTOR: u32 = 2;
/// A slow node is tried again after this, then after twice as long each time.
const TRIAL_MIN: Duration = Duration::from_secs(1);
const TRIAL_MAX: Duration = Duration::from_secs(30);

/// A sort of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Lane {
    /// Needs the disk.
    Write,
    /// Does not.
    Read,
    /// The proxy's own question.
    Probe,
}

/// What is known of a node in a lane.
#[derive(Debug, Default)]
pub(super) struct UpstreamStats {
    latency: Option<Latency>,
    in_flight: u32,
    /// Hedges lost since the last answer.
    lost: u32,
    /// When it last answered, and what then was measured.
    pub(super) answered: Option<Duration>,
    measured: Option<(Duration, Duration)>,
    refusing_until: Option<Duration>,
    slow: Option<Slow>,
}

#[derive(Debug, Clone, Copy)]
struct Latency {
    seconds: f64,
    at: Duration,
}

/// Others answer, and this one does not.
#[derive(Debug)]
struct Slow {
    trial_at: Duration,
    pause: Duration,
}

impl UpstreamStats {
    pub(super) fn began(&mut self) {
        self.in_flight += 1;
    }

    pub(super) fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// It answered. `usual` is what others need.
    pub(super) fn note_answer(&mut self, now: Duration, took: Option<Duration>, usual: Duration) {
        self.answered = Some(now);
        self.refusing_until = None;
        self.lost = 0;
        if let Some(took) = took {
            self.sample(now, took);
            self.measured = Some((now, took));
            if took <= usual {
                self.slow = None;
            }
        }
    }

    /// Peak-sensitive exponentially weighted mean, as in Finagle's "peak EWMA" balancer.
    pub(super) fn sample(&mut self, now: Duration, took: Duration) {
        let (new, old) = (took.as_secs_f64(), self.latency.map_or(0.0, |latency| latency.aged(now)));
        let seconds = if new > old { new } else { old + LATENCY_WEIGHT * (new - old) };
        self.latency = Some(Latency { seconds, at: now });
    }

    /// Another one answered after `won`, this one had not after `waited`. True if that was one too many.
    pub(super) fn note_lost(&mut self, now: Duration, waited: Duration, won: Duration) -> bool {
        if waited < won * LOST_FACTOR {
            return false;
        }
        self.sample(now, waited);
        self.lost += 1;
        self.lost >= LOST_MAX
    }

    pub(super) fn note_refusal(&mut self, now: Duration) {
        self.answered = Some(now);
        self.refusing_until = Some(now + REFUSING);
    }

    /// Whether it answered since then, and needed at most a `factor`-th of `silence` for it.
    pub(super) fn is_proof_against(&self, since: Duration, silence: Duration, factor: u32) -> bool {
        self.measured.is_some_and(|(at, took)| at > since && took * factor <= silence)
    }

    pub(super) fn is_slow(&self) -> bool {
        self.slow.is_some()
    }

    /// True if it was not known to be.
    pub(super) fn set_slow(&mut self, now: Duration) -> bool {
        let is_new = self.slow.is_none();
        self.slow.get_or_insert(Slow { trial_at: now + TRIAL_MIN, pause: TRIAL_MIN });
        is_new
    }

    /// It came back: what was held against it is of another time.
    pub(super) fn forgive(&mut self) {
        (self.slow, self.lost, self.latency) = (None, 0, None);
    }

    pub(super) fn is_trial_due(&self, now: Duration) -> bool {
        self.slow.as_ref().is_some_and(|slow| slow.trial_at <= now)
    }

    /// A request tries it. The next one not before a longer pause.
    pub(super) fn begin_trial(&mut self, now: Duration) {
        if let Some(slow) = &mut self.slow {
            slow.pause = (slow.pause * 2).min(TRIAL_MAX);
            slow.trial_at = now + slow.pause;
        }
    }

    pub(super) fn is_refusing(&self, now: Duration) -> bool {
        self.refusing_until.is_some_and(|until| now < until)
    }

    /// How long an answer is expected to take, in doublings of what counts as fast.
    pub(super) fn cost(&self, now: Duration) -> u32 {
        let floor = LATENCY_FLOOR.as_secs_f64();
        let mut cost = self.latency_aged(now).as_secs_f64().max(floor) * f64::from(self.in_flight + 1);
        let mut doublings = 0;
        while cost >= 2.0 * floor {
            cost /= 2.0;
            doublings += 1;
        }
        doublings
    }

    pub(super) fn latency_aged(&self, now: Duration) -> Duration {
        Duration::from_secs_f64(self.latency.map_or(0.0, |latency| latency.aged(now)))
    }

    pub(super) fn latency_ms(&self) -> Option<f64> {
        self.latency.map(|latency| (latency.seconds * 1e6).round() / 1e3)
    }
}

impl Latency {
    fn aged(self, now: Duration) -> f64 {
        let age = now.saturating_sub(self.at).as_secs_f64();
        self.seconds * 0.5_f64.powf(age / LATENCY_HALF_LIFE.as_secs_f64())
    }
}
