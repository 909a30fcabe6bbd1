//! Owns what the proxy knows of one upstream for one traffic class: its latency, its load, and whether it is ejected.
//!
//! Classes are kept apart because they fail apart: a node whose disk needs two seconds for an fsync still answers reads
//! and probes at once. Pure, as all of `upstreams`. Must not know the other upstreams: `upstreams` compares.

use std::time::Duration;

/// Faster answers count as equally fast, so that noise does not change the order of upstreams.
const LATENCY_FLOOR: Duration = Duration::from_millis(5);
/// A latency counts half after this time, so that a slow upstream is tried again.
const LATENCY_HALF_LIFE: Duration = Duration::from_secs(5);
/// Weight of a faster sample in the mean. A slower sample replaces the mean.
const LATENCY_WEIGHT: f64 = 0.3;
/// After a refusal that another node may not repeat (a full disk), an upstream is asked after the others for this long.
const REFUSING_FOR: Duration = Duration::from_secs(2);
/// This many lost hedges without an answer between them eject an upstream.
const LOST_HEDGES_MAX: u32 = 3;
/// Length of the first ejection. Each further one, without a prompt answer between, is twice as long, up to the
/// maximum.
const EJECTION_MIN: Duration = Duration::from_secs(1);
const EJECTION_MAX: Duration = Duration::from_secs(30);

/// Kinds of requests that an upstream can be good or bad at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficClass {
    /// A readiness probe of the proxy.
    Probe,
    /// Does not need the disk of the node.
    Read,
    /// Needs the disk.
    Write,
}

/// What is known of one upstream in one traffic class.
#[derive(Debug, Default)]
pub struct UpstreamStats {
    latency: Option<Latency>,
    pub in_flight: u32,
    /// Hedges lost since the last answer.
    lost_hedges: u32,
    /// When the last answer came.
    pub answered_at: Option<Duration>,
    /// When the last answer came whose latency was measured, and that latency.
    measured: Option<(Duration, Duration)>,
    refusing_until: Option<Duration>,
    /// Also after its end, until a prompt answer: then the next ejection is longer.
    ejection: Option<Ejection>,
}

#[derive(Debug, Clone, Copy)]
struct Latency {
    seconds: f64,
    at: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Ejection {
    until: Duration,
    length: Duration,
}

impl UpstreamStats {
    /// The upstream answered. `prompt`: a latency up to this is no sign of a slow node.
    pub fn record_answer(&mut self, now: Duration, latency: Option<Duration>, prompt: Duration) {
        self.answered_at = Some(now);
        self.refusing_until = None;
        self.lost_hedges = 0;
        if let Some(latency) = latency {
            self.record_latency(now, latency);
            self.measured = Some((now, latency));
            if latency <= prompt {
                self.ejection = None;
            }
        }
    }

    /// Peak-sensitive exponentially weighted mean, as in Finagle's "peak EWMA" balancer.
    pub fn record_latency(&mut self, now: Duration, sample: Duration) {
        let (new, old) = (sample.as_secs_f64(), self.latency.map_or(0.0, |latency| latency.aged(now)));
        let seconds = if new > old { new } else { old + LATENCY_WEIGHT * (new - old) };
        self.latency = Some(Latency { seconds, at: now });
    }

    /// Another upstream answered a hedged request first. True if this upstream should be ejected.
    pub fn record_lost_hedge(&mut self, now: Duration, waited: Duration) -> bool {
        self.record_latency(now, waited);
        self.lost_hedges += 1;
        self.lost_hedges >= LOST_HEDGES_MAX || self.ejection.is_some()
    }

    pub fn record_refusal(&mut self, now: Duration) {
        self.answered_at = Some(now);
        self.refusing_until = Some(now + REFUSING_FOR);
    }

    /// Whether an answer came after `since`, within at most this latency.
    pub fn answered_within(&self, since: Duration, latency_max: Duration) -> bool {
        self.measured.is_some_and(|(at, latency)| at > since && latency <= latency_max)
    }

    /// Ejects the upstream for a while; longer than the last time if no prompt answer came since then.
    pub fn eject(&mut self, now: Duration) {
        let length = self.ejection.map_or(EJECTION_MIN, |ejection| (ejection.length * 2).min(EJECTION_MAX));
        self.ejection = Some(Ejection { until: now + length, length });
    }

    pub fn is_ejected(&self, now: Duration) -> bool {
        self.ejection.is_some_and(|ejection| now < ejection.until)
    }

    /// Whether no prompt answer came since the last ejection.
    pub fn is_slow(&self) -> bool {
        self.ejection.is_some()
    }

    /// Whether the upstream is back from an ejection, and a first request finds out whether it is still slow.
    pub fn is_on_trial(&self) -> bool {
        self.ejection.is_some() && self.in_flight > 0
    }

    /// Drops what was measured before the node was away.
    pub fn reset(&mut self) {
        (self.ejection, self.lost_hedges, self.latency) = (None, 0, None);
    }

    pub fn is_refusing(&self, now: Duration) -> bool {
        self.refusing_until.is_some_and(|until| now < until)
    }

    /// The expected time to an answer, in doublings of the floor: only clear differences change the order.
    pub fn cost(&self, now: Duration) -> u32 {
        let floor = LATENCY_FLOOR.as_secs_f64();
        let mut cost = self.latency_aged(now).as_secs_f64().max(floor) * f64::from(self.in_flight + 1);
        let mut doublings = 0;
        while cost >= 2.0 * floor {
            cost /= 2.0;
            doublings += 1;
        }
        doublings
    }

    pub fn latency_aged(&self, now: Duration) -> Duration {
        Duration::from_secs_f64(self.latency.map_or(0.0, |latency| latency.aged(now)))
    }

    pub fn latency_ms(&self) -> Option<f64> {
        self.latency.map(|latency| (latency.seconds * 1e6).round() / 1e3)
    }
}

impl Latency {
    fn aged(self, now: Duration) -> f64 {
        let age = now.saturating_sub(self.at).as_secs_f64();
        self.seconds * 0.5_f64.powf(age / LATENCY_HALF_LIFE.as_secs_f64())
    }
}
