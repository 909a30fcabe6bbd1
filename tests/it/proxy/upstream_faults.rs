//! Nodes die, stop, vanish and stall behind the proxy while it carries a steady load: no send fails, and few are late.
//!
//! What a fault adds to a latency is judged, not the latency: how fast this machine is without it is measured first.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::load::{Latencies, Load};
use crate::support::measure;
use crate::support::network::Network;
use crate::support::process::Process;

const LONG: Duration = Duration::from_secs(60);
/// Between two faults.
const TURN: Duration = Duration::from_secs(2);
const PER_SECOND: u32 = 500;
/// What it may cost that three of four nodes are silent, for 6 s each.
const AWAY_COST_MAX: Duration = Duration::from_millis(1_500);
/// What the scheduler of a machine that runs other tests beside this one may add, fault or not.
const NOISE: Duration = Duration::from_millis(100);

/// Four nodes and their proxy under load, and where its numbers go on.
struct Stage {
    cluster: Cluster,
    next: u64,
}

impl Stage {
    fn new() -> Self {
        Self::of(Cluster::prepare(4))
    }

    fn of(mut cluster: Cluster) -> Self {
        cluster.start_all();
        cluster.start_proxy();
        Stage { cluster, next: 0 }
    }

    /// Begins to load the proxy for so many seconds.
    fn load(&mut self, seconds: u64) -> Load {
        let numbers = self.next..self.next + seconds * u64::from(PER_SECOND);
        self.next = numbers.end;
        Load::start(self.cluster.proxy(), numbers, PER_SECOND)
    }

    /// How it is without faults.
    fn normal(&mut self) -> Latencies {
        self.load(2).finish(); // connections, caches, and what the proxy measures
        self.load(3).finish()
    }
}

/// Calls for one turn after the other, until the load is over.
fn in_turns(load: &Load, mut turn: impl FnMut(usize)) {
    let began = Instant::now();
    for count in 0.. {
        let at = TURN * u32::try_from(count).expect("few turns");
        eventually_blocking(LONG, "the next turn", || began.elapsed() >= at || load.is_over());
        if load.is_over() {
            return;
        }
        turn(count);
    }
}

#[test]
fn nodes_killed_in_turn_cost_no_send_and_little_time() {
    let mut stage = Stage::new();
    let normal = stage.normal();
    let load = stage.load(9);
    in_turns(&load, |turn| {
        stage.cluster.kill9(turn % 4);
        stage.cluster.spawn_node(turn % 4);
    });
    let killed = load.finish();
    measure::say(&format!("a node killed every {TURN:?}: {killed:.1?}; before: {normal:.1?}"));
    assert!(killed.p99 < normal.p99 + Duration::from_millis(300), "{killed:?}, normally {normal:?}");
    for i in 0..4 {
        stage.cluster.wait_ready(i);
    }
    stage.cluster.converge(LONG, stage.next);
}

/// In every turn the next node goes, for three turns, so that only one goes on; and at its end another comes back.
fn three_away(load: &Load, mut change: impl FnMut(usize, Change)) {
    in_turns(load, |turn| {
        if turn >= 3 {
            change((turn - 3) % 4, Change::Returns);
        }
        change(turn % 4, Change::Goes);
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Goes,
    Returns,
}

#[test]
fn nodes_stopped_in_turn_cost_no_send_and_little_time() {
    let mut stage = Stage::new();
    let normal = stage.normal();
    let load = stage.load(13);
    three_away(&load, |i, change| match change {
        Change::Goes => stage.cluster.process(i).freeze(),
        Change::Returns => stage.cluster.process(i).thaw(),
    });
    let stopped = load.finish();
    (0..4).for_each(|i| stage.cluster.process(i).thaw());
    measure::say(&format!("a node stopped every {TURN:?} for 6 s: {stopped:.1?}; before: {normal:.1?}"));
    assert!(stopped.p99 < normal.p99 + AWAY_COST_MAX, "{stopped:?}, normally {normal:?}");
    stage.cluster.converge(LONG, stage.next);
}

#[test]
fn nodes_blackholed_in_turn_cost_no_send_and_little_time() {
    let guard = match Network::create(4) {
        Ok(guard) => guard,
        Err(why) => {
            return measure::say(&format!("blackholed nodes: skipped, for there is no network: {why}"));
        }
    };
    let network = guard.network();
    let plug = |i, up| network.link(i, up).expect("our own network");
    network.inside(|| {
        let mut stage = Stage::of(Cluster::prepare_in(network, 4));
        plug(3, false);
        assert_silent(&stage, 3);
        plug(3, true);
        stage.cluster.wait_ready(3);
        let normal = stage.normal();
        let load = stage.load(13);
        three_away(&load, |i, change| plug(i, change == Change::Returns));
        let vanished = load.finish();
        (0..4).for_each(|i| plug(i, true));
        measure::say(&format!(
            "a node blackholed every {TURN:?} for 6 s: {vanished:.1?}; before: {normal:.1?}"
        ));
        assert!(vanished.p99 < normal.p99 + AWAY_COST_MAX, "{vanished:?}, normally {normal:?}");
        stage.cluster.converge(LONG, stage.next);
    });
}

/// Who wants to connect to this node hears nothing, not even that nobody hears them.
fn assert_silent(stage: &Stage, i: usize) {
    let heard = TcpStream::connect_timeout(&stage.cluster.node(i), Duration::from_millis(500));
    assert_eq!(heard.expect_err("its cable is out").kind(), ErrorKind::TimedOut);
}

#[test]
fn a_node_with_a_slow_disk_is_left_to_itself() {
    let mut stage = Stage::new();
    let normal = stage.normal();
    let Some(strace) = slow_disk(stage.cluster.process(0).id()) else {
        measure::say("a slow disk: skipped, for it needs root and `strace`");
        return;
    };
    let slow = stage.load(8).finish();
    drop(strace);
    measure::say(&format!("one of four nodes needs 2 s for an fsync: {slow:.1?}; before: {normal:.1?}"));
    assert!(slow.p99 < (normal.p99 * 2).max(normal.p99 + NOISE), "{slow:?}, normally {normal:?}");
}

#[test]
fn where_all_disks_are_slow_little_more_is_asked_than_was_offered() {
    let mut stage = Stage::new();
    let normal = stage.normal();
    stage.cluster.converge(LONG, stage.next);
    let before = entries(&stage.cluster);
    let straces: Vec<_> = (0..4).filter_map(|i| slow_disk(stage.cluster.process(i).id())).collect();
    if straces.len() < 4 {
        measure::say("slow disks: skipped, for they need root and `strace`");
        return;
    }
    let slow = stage.load(6).finish();
    drop(straces);
    stage.cluster.converge(LONG, stage.next);
    let (asked, offered) = (entries(&stage.cluster) - before, slow.count);
    measure::say(&format!(
        "all disks slow: {asked} entries of {offered} sends, {slow:.1?}; before: {normal:.1?}"
    ));
    assert!(asked * 10 <= offered * 12, "{asked} of {offered}");
}

/// How often a message was taken by a node: an entry for each time, also where several nodes took one message.
fn entries(cluster: &Cluster) -> usize {
    let total = cluster.statuses()[0]["scrub"]["total"].as_u64().expect("a count");
    usize::try_from(total).expect("few")
}

/// Every fsync of this process takes 2 s as long as what this gives lives. None where that cannot be done.
fn slow_disk(pid: u32) -> Option<Process> {
    if !rustix::process::geteuid().is_root() || Command::new("strace").arg("-V").output().is_err() {
        return None;
    }
    let mut strace = Command::new("strace");
    strace.args(["-f", "-p", &pid.to_string(), "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]);
    strace.args(["-e", "inject=fdatasync,fsync:delay_enter=2000000"]);
    let mut strace = Process::spawn("strace", strace);
    eventually_blocking(LONG, "strace to attach or to say why not", || {
        strace.stderr().contains("attached") || strace.ended().is_some()
    });
    strace.ended().is_none().then_some(strace)
}

#[test]
fn a_node_that_the_proxy_was_not_told_of_is_found() {
    let mut cluster = Cluster::start_with_proxy(1);
    let joined = cluster.join(&[0]);
    let upstreams = |cluster: &Cluster| {
        let answer = crate::support::http::get(cluster.proxy(), "/nodes").expect("answered").json();
        let found = answer["upstreams"].as_array().expect("a list").clone();
        let up = found.iter().filter(|upstream| upstream["state"] == "up");
        up.map(|upstream| upstream["address"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    let both = [cluster.node(0), cluster.node(joined)].map(|addr| addr.to_string());
    eventually_blocking(LONG, "both to be upstreams, once each", || {
        let up = upstreams(&cluster);
        if up == both { Ok(()) } else { Err(up) }
    });
    cluster.kill9(0);
    Load::start(cluster.proxy(), 0..20, 20).finish();
    assert_eq!(cluster.statuses()[0]["messages"], 20, "who was not configured took them");
}
