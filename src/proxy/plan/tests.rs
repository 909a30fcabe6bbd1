//! Many requests and a few nodes in a time of their own: what a fault costs, and how much more is asked for it.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;
use crate::api::network::Readiness;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const SEND: RequestClass =
    RequestClass { traffic: TrafficClass::Write, is_quick: true, client_wait: Duration::ZERO };

/// How a node takes a send that reaches it at a moment.
#[derive(Debug, Clone, Copy)]
enum Taken {
    After(Duration),
    /// Not at all, and nobody says so.
    Never,
    Refused,
}

use Taken::{After, Never, Refused};

/// What a node does at a moment.
type Node = fn(Duration) -> Taken;

/// What came of it all.
#[derive(Debug)]
struct Ending {
    offered: usize,
    asks: Vec<usize>,
    failed: usize,
    times: Vec<Duration>,
}

impl Ending {
    fn p99(&mut self) -> Duration {
        self.times.sort_unstable();
        self.times[self.times.len() * 99 / 100]
    }

    fn asks_per_request(&self) -> f64 {
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
    /// Probes need no disk: a node may answer them and no send.
    probes: Node,
    strategy: Strategy,
    class: RequestClass,
    state: ProxyState,
    plans: Vec<Option<(RequestPlan, Duration)>>,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    ending: Ending,
}

/// Offers so many requests to these nodes, 500 a second.
fn run(strategy: Strategy, class: RequestClass, nodes: &[Node], offered: usize) -> Ending {
    run_with(strategy, class, nodes, |_| After(MS), offered)
}

fn run_with(strategy: Strategy, class: RequestClass, nodes: &[Node], probes: Node, offered: usize) -> Ending {
    let addr = |port: usize| format!("127.0.0.1:{port}").parse::<Addr>().expect("valid");
    let upstreams = Upstreams::new((1..=nodes.len()).map(addr).collect(), addr(99));
    let ending = Ending { offered, asks: vec![0; nodes.len()], failed: 0, times: Vec::new() };
    let mut world = World {
        nodes: nodes.to_vec(),
        probes,
        strategy,
        class,
        state: ProxyState::new(upstreams),
        plans: (0..offered).map(|_| None).collect(),
        events: BinaryHeap::new(),
        ending,
    };
    for request in 0..offered {
        world.plan(2 * MS * u32::try_from(request).expect("few"), Event::Arrive { request });
    }
    world.plan(MS, Event::Probe);
    while let Some(Reverse((now, event))) = world.events.pop() {
        world.meet(now, event);
    }
    world.ending
}

impl World {
    fn plan(&mut self, at: Duration, event: Event) {
        self.events.push(Reverse((at, event)));
    }

    fn meet(&mut self, now: Duration, event: Event) {
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
                        After(took) if took < S => self.plan(now + took, Event::Probed { id, began: now }),
                        Refused => self.state.upstreams.failed(id, now, "refused".into()),
                        After(_) | Never => self.plan(now + S, Event::ProbeLate { id, began: now }),
                    }
                }
                if self.ending.times.len() + self.ending.failed < self.ending.offered {
                    self.plan(now + 50 * MS, Event::Probe);
                }
            }
            Event::Probed { id, began } => {
                let ready = Readiness { readable: true, writable: true };
                self.state.upstreams.probe_answered(id, now, now.saturating_sub(began), ready);
            }
            Event::ProbeLate { id, began } => {
                self.state.upstreams.probe_timed_out(id, began, now, "silent".into());
            }
        }
    }

    /// A node that takes no sends takes no probes, unless it is only its disk.
    fn probed(&self, id: usize, now: Duration) -> Taken {
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
                    self.ending.asks[id] += 1;
                    if self.class.client_wait.is_zero() {
                        self.state.upstreams.request_started(id, self.class.traffic);
                    }
                    let (took, refused) = match (self.nodes[id])(now) {
                        After(took) => (took, false),
                        Refused => (MS / 10, true),
                        Never => continue,
                    };
                    self.plan(now + took, Event::Answer { request, attempt, began: now, refused });
                }
                NextStep::Wait(until) => return self.plan(until.max(now + MS / 10), Event::Wake { request }),
                NextStep::Over => {
                    self.ending.failed += 1;
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
        self.state.answered(id, self.class.traffic, now, took);
        plan.won(attempt, &mut self.state, now);
        self.ending.times.push(now.saturating_sub(*since));
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

fn quick(_: Duration) -> Taken {
    After(4 * MS)
}

fn slow(_: Duration) -> Taken {
    After(2 * S)
}

#[test]
fn with_nothing_wrong_each_request_is_asked_once() {
    let mut ending = run(Strategy::Hedge, SEND, &[quick as Node; 4], 5_000);
    assert_eq!(
        (ending.asks_per_request(), ending.failed, ending.p99()),
        (1.0, 0, 4 * MS),
        "{:?}",
        ending.asks
    );
}

#[test]
fn a_slow_writer_gets_a_trial_now_and_then() {
    let mut ending = run(Strategy::Hedge, SEND, &[slow, quick, quick, quick], 10_000);
    assert!(ending.asks[0] < 30, "{:?}", ending.asks);
    assert!(ending.p99() <= 8 * MS && ending.failed == 0, "{:?}", ending.p99());
}

#[test]
fn where_all_become_slow_little_more_is_asked_than_was_offered() {
    fn tires(now: Duration) -> Taken {
        if now < 4 * S { After(4 * MS) } else { After(2 * S) }
    }
    fn stalls(now: Duration) -> Taken {
        if now < 4 * S { After(4 * MS) } else { After(1_500 * MS) }
    }
    for (node, probes) in [(slow as Node, quick as Node), (tires, quick), (tires, stalls)] {
        for strategy in [Strategy::Hedge, Strategy::Failover] {
            let ending = run_with(strategy, SEND, &[node; 4], probes, 10_000);
            assert_eq!(ending.failed, 0, "{strategy}");
            assert!(ending.asks_per_request() < 1.2, "{strategy}: {:?}", ending.asks);
        }
    }
}

#[test]
fn a_node_that_falls_silent_costs_a_few_requests_a_moment() {
    fn falls_silent(now: Duration) -> Taken {
        if now < 4 * S { After(4 * MS) } else { Never }
    }
    for strategy in [Strategy::Hedge, Strategy::Failover, Strategy::Race] {
        let mut ending = run(strategy, SEND, &[falls_silent, quick, quick, quick], 10_000);
        let slowest = *ending.times.iter().max().expect("some");
        assert_eq!(ending.failed, 0, "{strategy}");
        assert!(ending.p99() <= 8 * MS && slowest < 1_200 * MS, "{strategy}: {slowest:?}");
    }
}

#[test]
fn the_last_node_may_fall_silent_as_another_comes_back() {
    fn comes_back(now: Duration) -> Taken {
        if now < 6 * S { Never } else { After(4 * MS) }
    }
    fn leaves(now: Duration) -> Taken {
        if now < 6 * S { After(4 * MS) } else { Never }
    }
    fn away(_: Duration) -> Taken {
        Never
    }
    let mut ending = run(Strategy::Hedge, SEND, &[away, comes_back, away, leaves], 5_000);
    assert_eq!(ending.failed, 0);
    assert!(ending.p99() < 1_300 * MS, "{:?}", ending.p99());
}

#[test]
fn who_refuses_connections_costs_nothing() {
    fn refuses(_: Duration) -> Taken {
        Refused
    }
    let mut ending = run(Strategy::Failover, SEND, &[refuses, refuses, refuses, quick], 2_000);
    assert!(ending.failed == 0 && ending.p99() <= 5 * MS, "{ending:?}");
    assert!(ending.asks_per_request() < 1.01, "{:?}", ending.asks);
    let ending = run(Strategy::Hedge, SEND, &[refuses as Node; 4], 10);
    assert_eq!((ending.failed, ending.asks.iter().sum::<usize>()), (10, 40), "all are asked, once");
}

#[test]
fn a_race_asks_two_whatever_it_costs() {
    let ending = run(Strategy::Race, SEND, &[quick as Node; 4], 2_000);
    assert_eq!(ending.asks.iter().sum::<usize>(), 4_000);
    let ending = run(Strategy::Race, SEND, &[quick], 100);
    assert_eq!(ending.asks, [100]);
}

#[test]
fn waiting_that_was_asked_for_is_no_reason_to_ask_another_one() {
    let waiting = RequestClass { client_wait: 3 * S, ..SEND };
    let mut ending = run(Strategy::Hedge, waiting, &[slow, quick, quick, quick], 2_000);
    assert_eq!(
        (ending.asks[0], ending.failed, ending.p99()),
        (2_000, 0, 2 * S),
        "and says nothing of the node"
    );
    assert!((ending.asks_per_request() - 1.0).abs() < f64::EPSILON);
}

#[test]
fn where_nobody_answers_it_ends_in_time_and_sooner_once_that_is_known() {
    fn away(_: Duration) -> Taken {
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
    let ending = run_with(Strategy::Hedge, SEND, &[away as Node; 4], away, 1_000);
    assert_eq!(ending.failed, 1_000);
    assert!(ending.asks_per_request() < 1.3, "{:?}", ending.asks);
}
