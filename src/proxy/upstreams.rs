//! Owns what the proxy thinks of its nodes: who looks up, how fast each answers, in which order to ask them.
//!
//! Values in, values out: no sockets and no clock, `now` is the time since the proxy began. An upstream that
//! fails is asked last, not never, hence the last one is always asked. Speed only separates what differs
//! clearly: among equals the first one stays the first, so one user's requests mostly meet the same node
//! and find there what was just sent.

use std::time::Duration;

use crate::api::{
    address::{self, Addr},
    network::{State, UpstreamStatus},
};

/// After a refusal that another node may not repeat (a full disk), a node is asked later than others for so long.
const REFUSING: Duration = Duration::from_secs(2);
/// A node that fails for longer than this is shown as down, before as suspect.
const DOWN_AFTER: Duration = Duration::from_secs(3);
/// Answers faster than this count as equally fast.
const LATENCY_FLOOR: Duration = Duration::from_millis(5);
/// What is known of a node's speed counts half after this time, so that a slow one is tried again.
const LATENCY_HALF_LIFE: Duration = Duration::from_secs(5);
/// How much of a faster sample enters the mean. A slower one replaces it: peaks are believed at once.
const LATENCY_WEIGHT: f64 = 0.3;

/// Why a node that answers is of no use.
const LOCKED_OUT: &str = "it does not take the key of this proxy; give all servers the same key";

/// All upstreams, in configured order.
#[derive(Debug)]
pub(super) struct Upstreams(Vec<Upstream>);

#[derive(Debug)]
struct Upstream {
    addr: Addr,
    health: Health,
    latency: Option<Latency>,
    in_flight: u32,
    error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// Never asked; as good as up.
    Unknown,
    Up,
    /// Answers, but refuses what others may take.
    Refusing {
        until: Duration,
    },
    /// Answers, but does not take our key, which only an operator can mend. Asked late, and probed.
    LockedOut,
    /// Set aside: asked last, and probed.
    Aside {
        since: Duration,
    },
}

#[derive(Debug, Clone, Copy)]
struct Latency {
    seconds: f64,
    at: Duration,
}

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Which one.
    pub(super) place: usize,
    /// It is not expected to answer.
    pub(super) aside: bool,
}

impl Upstreams {
    pub(super) fn new(addrs: Vec<Addr>) -> Self {
        let (health, latency) = (Health::Unknown, None);
        let upstream = |addr| Upstream { addr, health, latency, in_flight: 0, error: None };
        Self(addrs.into_iter().map(upstream).collect())
    }

    pub(super) fn addr(&self, place: usize) -> &Addr {
        &self.0[place].addr
    }

    /// All of them, the most promising first.
    pub(super) fn order(&self, now: Duration) -> Vec<Candidate> {
        let mut order: Vec<usize> = (0..self.0.len()).collect();
        order.sort_by_key(|place| self.0[*place].rank(now));
        let aside = |place: usize| matches!(self.0[place].health, Health::Aside { .. });
        order.into_iter().map(|place| Candidate { place, aside: aside(place) }).collect()
    }

    /// A request goes to it. Must be followed by `ended`.
    pub(super) fn began(&mut self, place: usize) {
        self.0[place].in_flight += 1;
    }

    /// A request to it is over, however.
    pub(super) fn ended(&mut self, place: usize) {
        self.0[place].in_flight -= 1;
    }

    /// It answered, and took so long if that says anything. True if it had been set aside.
    pub(super) fn answered(&mut self, place: usize, now: Duration, took: Option<Duration>) -> bool {
        let upstream = &mut self.0[place];
        if let Some(took) = took {
            upstream.sample(now, took);
        }
        upstream.error = None;
        let before = std::mem::replace(&mut upstream.health, Health::Up);
        matches!(before, Health::Aside { .. })
    }

    /// It has not answered for so long; somebody else is asked too.
    pub(super) fn late(&mut self, place: usize, now: Duration, waited: Duration) {
        self.0[place].sample(now, waited);
    }

    /// It answered with a refusal that another one may not repeat.
    pub(super) fn refused(&mut self, place: usize, now: Duration, why: String) {
        let upstream = &mut self.0[place];
        upstream.health = Health::Refusing { until: now + REFUSING };
        upstream.error = Some(why);
    }

    /// It does not take our key. True if that is new.
    pub(super) fn locked_out(&mut self, place: usize) -> bool {
        let upstream = &mut self.0[place];
        upstream.error = Some(LOCKED_OUT.into());
        std::mem::replace(&mut upstream.health, Health::LockedOut) != Health::LockedOut
    }

    /// What an operator should mend.
    pub(super) fn warnings(&self) -> Vec<String> {
        let locked_out = self.0.iter().filter(|upstream| upstream.health == Health::LockedOut);
        locked_out.map(|upstream| format!("{}: {LOCKED_OUT}", upstream.addr)).collect()
    }

    /// It did not answer. True if it was in use before.
    pub(super) fn failed(&mut self, place: usize, now: Duration, why: String) -> bool {
        let upstream = &mut self.0[place];
        upstream.error = Some(why);
        if matches!(upstream.health, Health::Aside { .. }) {
            return false;
        }
        upstream.health = Health::Aside { since: now };
        true
    }

    /// Why the last requests failed, for a sentence.
    pub(super) fn complaints(&self) -> String {
        let why = |upstream: &Upstream| upstream.error.as_deref().unwrap_or("no answer yet").to_owned();
        address::complaints(self.0.iter().map(|upstream| (&upstream.addr, why(upstream))))
    }

    pub(super) fn status(&self, now: Duration) -> Vec<UpstreamStatus> {
        self.0.iter().map(|upstream| upstream.status(now)).collect()
    }
}

impl Upstream {
    /// Smaller is better. Speeds are compared by their power of two; equals keep their order.
    fn rank(&self, now: Duration) -> (u8, u32) {
        let health = match self.health {
            Health::Aside { .. } => 2,
            Health::LockedOut => 1,
            Health::Refusing { until } if now < until => 1,
            Health::Unknown | Health::Up | Health::Refusing { .. } => 0,
        };
        let floor = LATENCY_FLOOR.as_secs_f64();
        let seconds = self.latency.map_or(0.0, |latency| latency.aged(now)).max(floor);
        let mut cost = seconds * f64::from(self.in_flight + 1);
        let mut doublings = 0;
        while cost >= 2.0 * floor {
            cost /= 2.0;
            doublings += 1;
        }
        (health, doublings)
    }

    /// Peak-sensitive exponentially weighted mean, as in Finagle's "peak EWMA" balancer.
    fn sample(&mut self, now: Duration, took: Duration) {
        let (new, old) = (took.as_secs_f64(), self.latency.map_or(0.0, |latency| latency.aged(now)));
        let seconds = if new > old { new } else { old + LATENCY_WEIGHT * (new - old) };
        self.latency = Some(Latency { seconds, at: now });
    }

    fn status(&self, now: Duration) -> UpstreamStatus {
        let state = match self.health {
            Health::Up | Health::Refusing { .. } => State::Up,
            Health::Aside { since } if now.saturating_sub(since) > DOWN_AFTER => State::Down,
            Health::Aside { .. } | Health::Unknown | Health::LockedOut => State::Suspect,
        };
        let to_micros = |latency: Latency| (latency.seconds * 1e6).round() / 1e3;
        UpstreamStatus {
            address: self.addr.clone(),
            state,
            rtt_ms: self.latency.map(to_micros),
            error: self.error.clone(),
        }
    }
}

impl Latency {
    fn aged(self, now: Duration) -> f64 {
        let age = now.saturating_sub(self.at).as_secs_f64();
        self.seconds * 0.5_f64.powf(age / LATENCY_HALF_LIFE.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    fn four() -> Upstreams {
        Upstreams::new((1..=4).map(|port| format!("127.0.0.1:{port}").parse().expect("valid")).collect())
    }

    #[track_caller]
    fn check(upstreams: &Upstreams, now: Duration, want: [usize; 4]) {
        let got: Vec<_> = upstreams.order(now).iter().map(|candidate| candidate.place).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn among_equals_the_first_stays_the_first() {
        let mut four = four();
        check(&four, S, [0, 1, 2, 3]);
        four.answered(0, S, Some(4 * MS));
        four.answered(1, S, Some(MS));
        check(&four, S, [0, 1, 2, 3]);
    }

    #[test]
    fn a_clearly_slower_one_is_asked_later_until_that_is_long_ago() {
        let mut four = four();
        four.late(0, S, 300 * MS);
        four.answered(2, S, Some(20 * MS));
        check(&four, S, [1, 3, 2, 0]);
        four.answered(0, S, Some(MS));
        check(&four, S, [1, 3, 2, 0]);
        check(&four, 60 * S, [0, 1, 2, 3]);
    }

    #[test]
    fn a_busy_one_is_asked_later() {
        let mut four = four();
        four.began(0);
        four.began(0);
        four.began(1);
        check(&four, S, [2, 3, 0, 1]);
        four.ended(0);
        four.ended(0);
        four.ended(1);
        check(&four, S, [0, 1, 2, 3]);
    }

    #[test]
    fn who_failed_is_asked_last_but_is_asked() {
        let mut four = four();
        assert!(four.failed(0, S, "refused".into()));
        assert!(!four.failed(0, S, "refused".into()), "said once");
        four.refused(1, S, "full".into());
        check(&four, S, [2, 3, 1, 0]);
        assert!(four.order(S)[3].aside && !four.order(S)[2].aside);
        check(&four, S + REFUSING, [1, 2, 3, 0]);
        assert!(four.answered(0, 9 * S, Some(MS)));
        assert!(!four.answered(0, 9 * S, Some(MS)), "said once");
        check(&four, 9 * S, [0, 1, 2, 3]);
    }

    #[test]
    fn who_does_not_take_our_key_is_asked_late_and_warned_of_until_it_does() {
        let mut four = four();
        assert!(four.locked_out(0) && !four.locked_out(0), "said once");
        check(&four, S, [1, 2, 3, 0]);
        check(&four, 60 * S, [1, 2, 3, 0]);
        let status = &four.status(60 * S)[0];
        assert_eq!((status.state, status.error.as_deref()), (State::Suspect, Some(LOCKED_OUT)));
        assert_eq!(four.warnings(), [format!("127.0.0.1:1: {LOCKED_OUT}")]);
        four.answered(0, 60 * S, None);
        check(&four, 60 * S, [0, 1, 2, 3]);
        assert!(four.warnings().is_empty());
    }

    #[test]
    fn when_all_failed_all_are_still_asked() {
        let mut four = four();
        for place in 0..4 {
            four.failed(place, S, "refused".into());
        }
        check(&four, S, [0, 1, 2, 3]);
        assert!(four.complaints().starts_with("127.0.0.1:1, 127.0.0.1:2, "));
        assert!(four.complaints().ends_with(": refused"));
    }

    #[test]
    fn states_are_told_as_they_are_known() {
        let mut four = four();
        four.answered(0, S, Some(2 * MS));
        four.refused(1, S, "full".into());
        four.failed(2, S, "refused".into());
        let states = |now| four.status(now).into_iter().map(|status| status.state).collect::<Vec<_>>();
        assert_eq!(states(S), [State::Up, State::Up, State::Suspect, State::Suspect]);
        assert_eq!(states(9 * S), [State::Up, State::Up, State::Down, State::Suspect]);
        assert_eq!(four.status(S)[0].rtt_ms, Some(2.0));
        assert_eq!(four.status(S)[2].error.as_deref(), Some("refused"));
    }
}
