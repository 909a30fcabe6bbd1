//! A simulation of many requests and a few nodes in virtual time: the latency that a fault costs, and the requests it
//! adds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;
use crate::api::network::Readiness;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const SEND: RequestClass =
    RequestClass { traffic: TrafficClass::Write, is_quick: true, client_wait: Duration::ZERO };

/// How a node reacts to a request.
#[derive(Debug, Clone, Copy)]
enum Reaction {
    After(Duration),
    /// Silence.
    Never,
    Refused,
}

use Reaction::{After, Never, Refused};

/// How a node reacts at a moment.
type Node = fn(Duration) -> Reaction;

/// The result of a run.
#[derive(Debug)]
struct Outcome {
    offered: usize,
    asks: Vec<usize>,
    failed: usize,
    times: Vec<Duration>,
}

impl Outcome {
    fn p99(&mut self) -> Duration {
        self.times.sort_unstable();
        self.times[self.times.len() * 99 / 100]
    }

    fn attempts_per_request(&self) -> f64 {
        let count = |count: usize| f64::from(u32::try_from(count).expect("few"));
        count(self.asks.iter().sum()) / count(self.offered)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Answer { request: usize, attempt: usize, began: Duration, refused: bool },
    Probed { id: usize, began: Duration },
    ProbeLate { id: usize, began: Duration },
    Probe,
    Wake { request: usize },
    Arrive { request: usize },
}

struct World {
    nodes: Vec<Node>,
    /// Probes need no disk: a node may answer probes and no sends.
    probes: Node,
    strategy: Strategy,
    class: RequestClass,
    state: ProxyState,
    plans: Vec<Option<(RequestPlan, Duration)>>,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    outcome: Outcome,
}

/// Sends this many requests to these nodes, 500 per second.
fn run(strategy: Strategy, class: RequestClass, nodes: &[Node], offered: usize) -> Outcome {
    run_with(strategy, class, nodes, |_| After(MS), offered)
}

fn run_with(
    strategy: Strategy,
    class: RequestClass,
    nodes: &[Node],
    probes: Node,
    offered: usize,
) -> Outcome {
    let addr = |port: usize| format!("127.0.0.1:{port}").parse::<Addr>().expect("valid");
    let upstreams = Upstreams::new((1..=nodes.len()).map(addr).collect(), addr(99));
    let outcome = Outcome { offered, asks: vec![0; nodes.len()], failed: 0, times: Vec::new() };
    let mut world = World {
        nodes: nodes.to_vec(),
        probes,
        strategy,
        class,
        state: ProxyState::new(upstreams),
        plans: (0..offered).map(|_| None).collect(),
        events: BinaryHeap::new(),
        outcome,
    };
    for request in 0..offered {
        world.schedule(2 * MS * u32::try_from(request).expect("few"), Event::Arrive { request });
    }
    world.schedule(MS, Event::Probe);
    while let Some(Reverse((now, event))) = world.events.pop() {
        world.handle(now, event);
    }
    world.outcome
}

impl World {
    fn schedule(&mut self, at: Duration, event: Event) {
        self.events.push(Reverse((at, event)));
    }

    fn handle(&mut self, now: Duration, event: Event) {
        match event {
            Event::Arrive { request } => {
                let plan = RequestPlan::new(self.class, self.strategy, &mut self.state, now);
                self.plans[request] = Some((plan, now));
                self.advance(request, now);
            }
            Event::Wake { request } => self.advance(request, now),
            Event::Answer { request, attempt, began, refused } => {
                self.answer(request, attempt, began, refused, now);
            }
            Event::Probe => {
                for (id, _) in self.state.upstreams.take_due_probes(now, 0.5) {
                    match self.probed(id, now) {
                        After(took) if took < S => {
                            self.schedule(now + took, Event::Probed { id, began: now });
                        }
                        Refused => self.state.upstreams.failed(id, now, "refused".into()),
                        After(_) | Never => self.schedule(now + S, Event::ProbeLate { id, began: now }),
                    }
                }
                if self.outcome.times.len() + self.outcome.failed < self.outcome.offered {
                    self.schedule(now + 50 * MS, Event::Probe);
                }
            }
            Event::Probed { id, began } => {
                let ready = Readiness::ready();
                self.state.upstreams.probe_answered(id, now, now.saturating_sub(began), &ready);
            }
            Event::ProbeLate { id, began } => {
                self.state.upstreams.probe_timed_out(id, began, now, "silent".into());
            }
        }
    }

    /// A node that answers no sends answers no probes either, unless only its disk is slow.
    fn probed(&self, id: usize, now: Duration) -> Reaction {
        match (self.nodes[id])(now) {
            After(_) => (self.probes)(now),
            other => other,
        }
    }

    fn advance(&mut self, request: usize, now: Duration) {
        loop {
            let Some((plan, _)) = &mut self.plans[request] else { return };
            match plan.step(&mut self.state, now) {
                NextStep::Ask { attempt, upstream: id, .. } => {
                    self.outcome.asks[id] += 1;
                    if self.class.client_wait.is_zero() {
                        self.state.upstreams.request_started(id, self.class.traffic);
                    }
                    let (took, refused) = match (self.nodes[id])(now) {
                        After(took) => (took, false),
                        Refused => (MS / 10, true),
                        Never => continue,
                    };
                    self.schedule(now + took, Event::Answer { request, attempt, began: now, refused });
                }
                NextStep::Wait(until) => {
                    return self.schedule(until.max(now + MS / 10), Event::Wake { request });
                }
                NextStep::Over => {
                    self.outcome.failed += 1;
                    self.end(request);
                    return;
                }
            }
        }
    }

    fn answer(&mut self, request: usize, attempt: usize, began: Duration, refused: bool, now: Duration) {
        let Some((plan, since)) = &mut self.plans[request] else { return };
        let id = plan.attempts[attempt].upstream;
        if refused {
            plan.failed(attempt, true);
            self.state.upstreams.request_ended(id, self.class.traffic);
            self.state.upstreams.failed(id, now, "refused".into());
            return self.advance(request, now);
        }
        let took = self.class.is_latency_sample().then_some(now.saturating_sub(began));
        self.state.upstreams.answered(id, self.class.traffic, now, took);
        plan.won(attempt, &mut self.state, now);
        self.outcome.times.push(now.saturating_sub(*since));
        self.end(request);
    }

    fn end(&mut self, request: usize) {
        let (plan, _) = self.plans[request].take().expect("under way");
        for attempt in
            plan.attempts.iter().filter(|attempt| attempt.is_running && self.class.client_wait.is_zero())
        {
            self.state.upstreams.request_ended(attempt.upstream, self.class.traffic);
        }
    }
}

fn quick(_: Duration) -> Reaction {
    After(4 * MS)
}

fn slow(_: Duration) -> Reaction {
    After(2 * S)
}

#[test]
fn with_nothing_wrong_each_request_is_asked_once() {
    let mut outcome = run(Strategy::Hedge, SEND, &[quick as Node; 4], 5_000);
    assert_eq!(
        (outcome.attempts_per_request(), outcome.failed, outcome.p99()),
        (1.0, 0, 4 * MS),
        "{:?}",
        outcome.asks
    );
}

#[test]
fn a_slow_writer_gets_a_request_now_and_then() {
    let mut outcome = run(Strategy::Hedge, SEND, &[slow, quick, quick, quick], 10_000);
    assert!(outcome.asks[0] < 30, "{:?}", outcome.asks);
    assert!(outcome.p99() <= 8 * MS && outcome.failed == 0, "{:?}", outcome.p99());
}

#[test]
fn where_all_become_slow_little_more_is_asked_than_was_offered() {
    fn becomes_slow(now: Duration) -> Reaction {
        if now < 4 * S { After(4 * MS) } else { After(2 * S) }
    }
    fn stalls(now: Duration) -> Reaction {
        if now < 4 * S { After(4 * MS) } else { After(1_500 * MS) }
    }
    for (node, probes) in [(slow as Node, quick as Node), (becomes_slow, quick), (becomes_slow, stalls)] {
        for strategy in [Strategy::Hedge, Strategy::Failover] {
            let outcome = run_with(strategy, SEND, &[node; 4], probes, 10_000);
            assert_eq!(outcome.failed, 0, "{strategy}");
            assert!(outcome.attempts_per_request() < 1.2, "{strategy}: {:?}", outcome.asks);
        }
    }
}

#[test]
fn a_node_that_falls_silent_delays_a_few_requests() {
    fn falls_silent(now: Duration) -> Reaction {
        if now < 4 * S { After(4 * MS) } else { Never }
    }
    for strategy in [Strategy::Hedge, Strategy::Failover, Strategy::Race] {
        let mut outcome = run(strategy, SEND, &[falls_silent, quick, quick, quick], 10_000);
        let slowest = *outcome.times.iter().max().expect("some");
        assert_eq!(outcome.failed, 0, "{strategy}");
        assert!(outcome.p99() <= 8 * MS && slowest < 1_200 * MS, "{strategy}: {slowest:?}");
    }
}

#[test]
fn the_last_node_may_fall_silent_as_another_comes_back() {
    fn comes_back(now: Duration) -> Reaction {
        if now < 6 * S { Never } else { After(4 * MS) }
    }
    fn leaves(now: Duration) -> Reaction {
        if now < 6 * S { After(4 * MS) } else { Never }
    }
    fn away(_: Duration) -> Reaction {
        Never
    }
    let mut outcome = run(Strategy::Hedge, SEND, &[away, comes_back, away, leaves], 5_000);
    assert_eq!(outcome.failed, 0);
    assert!(outcome.p99() < 1_300 * MS, "{:?}", outcome.p99());
}

#[test]
fn refused_connections_cost_nothing() {
    fn refuses(_: Duration) -> Reaction {
        Refused
    }
    let mut outcome = run(Strategy::Failover, SEND, &[refuses, refuses, refuses, quick], 2_000);
    assert!(outcome.failed == 0 && outcome.p99() <= 5 * MS, "{outcome:?}");
    assert!(outcome.attempts_per_request() < 1.01, "{:?}", outcome.asks);
    let outcome = run(Strategy::Hedge, SEND, &[refuses as Node; 4], 10);
    assert_eq!((outcome.failed, outcome.asks.iter().sum::<usize>()), (10, 40), "all are asked, once");
}

#[test]
fn a_race_asks_two_nodes_for_every_request() {
    let outcome = run(Strategy::Race, SEND, &[quick as Node; 4], 2_000);
    assert_eq!(outcome.asks.iter().sum::<usize>(), 4_000);
    let outcome = run(Strategy::Race, SEND, &[quick], 100);
    assert_eq!(outcome.asks, [100]);
}

#[test]
fn a_wait_that_the_client_asked_for_is_no_reason_to_hedge() {
    let waiting = RequestClass { client_wait: 3 * S, ..SEND };
    let mut outcome = run(Strategy::Hedge, waiting, &[slow, quick, quick, quick], 2_000);
    assert_eq!(
        (outcome.asks[0], outcome.failed, outcome.p99()),
        (2_000, 0, 2 * S),
        "and its latency says nothing about the node"
    );
    assert!((outcome.attempts_per_request() - 1.0).abs() < f64::EPSILON);
}

#[test]
fn without_answers_a_request_ends_in_time_and_sooner_once_all_are_down() {
    fn away(_: Duration) -> Reaction {
        Never
    }
    let upstreams =
        Upstreams::new(vec!["127.0.0.1:1".parse().expect("valid")], "127.0.0.1:9".parse().expect("valid"));
    let mut state = ProxyState::new(upstreams);
    let ends = |state: &mut ProxyState, now: Duration| {
        let mut plan = RequestPlan::new(SEND, Strategy::Hedge, state, now);
        assert!(matches!(plan.step(state, now), NextStep::Ask { .. }));
        (1..1_000)
            .map(|count| now + count * 100 * MS)
            .find(|now| plan.step(state, *now) == NextStep::Over)
            .map(|at| at.saturating_sub(now))
    };
    assert_eq!(ends(&mut state, S), Some(10 * S));
    state.upstreams.failed(0, S, "silent".into());
    assert_eq!(ends(&mut state, 2 * S), Some(10 * S));
    assert_eq!(ends(&mut state, 9 * S), Some(S));
    let outcome = run_with(Strategy::Hedge, SEND, &[away as Node; 4], away, 1_000);
    assert_eq!(outcome.failed, 1_000);
    assert!(outcome.attempts_per_request() < 1.3, "{:?}", outcome.asks);
}
