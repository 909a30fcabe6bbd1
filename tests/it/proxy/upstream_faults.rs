//! Nodes behind the proxy are killed, paused, blackholed and slowed under a steady load: no send fails, and few are
//! late.
//!
//! The bounds are on the latency that a fault adds: each test first measures the latency of this machine without
//! faults.

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
/// Time between two faults.
const FAULT_INTERVAL: Duration = Duration::from_secs(2);
const PER_SECOND: u32 = 500;
/// Latency that may be added while up to three of four nodes are silent, for 6 s each.
const SILENCE_COST_MAX: Duration = Duration::from_millis(1_500);
/// Latency that other tests on the same machine may add.
const NOISE: Duration = Duration::from_millis(100);

/// Four nodes and their proxy under load.
struct LoadedCluster {
    cluster: Cluster,
    /// The number of the next message to send.
    next: u64,
}

impl LoadedCluster {
    fn new() -> Self {
        Self::of(Cluster::prepare(4))
    }

    fn of(mut cluster: Cluster) -> Self {
        cluster.start_all();
        cluster.start_proxy();
        LoadedCluster { cluster, next: 0 }
    }

    /// Starts a load on the proxy for this many seconds.
    fn load(&mut self, seconds: u64) -> Load {
        let numbers = self.next..self.next + seconds * u64::from(PER_SECOND);
        self.next = numbers.end;
        Load::start(self.cluster.proxy(), numbers, PER_SECOND)
    }

    /// The latencies without faults.
    fn normal(&mut self) -> Latencies {
        self.load(2).finish(); // warms up connections, caches and the proxy's statistics
        self.load(3).finish()
    }
}

/// Calls `inject` with 0, 1, 2 … every `FAULT_INTERVAL` until the load is over.
fn at_intervals(load: &Load, mut inject: impl FnMut(usize)) {
    let began = Instant::now();
    for count in 0.. {
        let at = FAULT_INTERVAL * u32::try_from(count).expect("few faults");
        eventually_blocking(LONG, "the next fault", || began.elapsed() >= at || load.is_over());
        if load.is_over() {
            return;
        }
        inject(count);
    }
}

#[test]
fn killing_nodes_in_turn_fails_no_send_and_delays_few() {
    let mut loaded = LoadedCluster::new();
    let normal = loaded.normal();
    let load = loaded.load(9);
    at_intervals(&load, |count| {
        loaded.cluster.kill9(count % 4);
        loaded.cluster.spawn_node(count % 4);
    });
    let killed = load.finish();
    measure::say(&format!("a node killed every {FAULT_INTERVAL:?}: {killed:.1?}; before: {normal:.1?}"));
    assert!(killed.p99 < normal.p99 + Duration::from_millis(300), "{killed:?}, normally {normal:?}");
    for i in 0..4 {
        loaded.cluster.wait_ready(i);
    }
    loaded.cluster.converge(LONG, loaded.next);
}

/// Silences the next node at each interval, for three intervals. So three of four nodes are silent most of the time.
fn silence_in_turn(load: &Load, mut change: impl FnMut(usize, Silence)) {
    at_intervals(load, |count| {
        if count >= 3 {
            change((count - 3) % 4, Silence::Ends);
        }
        change(count % 4, Silence::Begins);
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    Begins,
    Ends,
}

#[test]
fn pausing_nodes_in_turn_fails_no_send_and_delays_few() {
    let mut loaded = LoadedCluster::new();
    let normal = loaded.normal();
    let load = loaded.load(13);
    silence_in_turn(&load, |i, silence| match silence {
        Silence::Begins => loaded.cluster.process(i).freeze(),
        Silence::Ends => loaded.cluster.process(i).thaw(),
    });
    let paused = load.finish();
    (0..4).for_each(|i| loaded.cluster.process(i).thaw());
    measure::say(&format!(
        "a node paused every {FAULT_INTERVAL:?} for 6 s: {paused:.1?}; before: {normal:.1?}"
    ));
    assert!(paused.p99 < normal.p99 + SILENCE_COST_MAX, "{paused:?}, normally {normal:?}");
    loaded.cluster.converge(LONG, loaded.next);
}

#[test]
fn blackholing_nodes_in_turn_fails_no_send_and_delays_few() {
    let guard = match Network::create(4) {
        Ok(guard) => guard,
        Err(why) => {
            return measure::say(&format!("skipped: blackholed nodes need a network of their own: {why}"));
        }
    };
    let network = guard.network();
    let set_link = |i, up| network.link(i, up).expect("our own network");
    network.inside(|| {
        let mut loaded = LoadedCluster::of(Cluster::prepare_in(network, 4));
        set_link(3, false);
        assert_silent(&loaded, 3);
        set_link(3, true);
        loaded.cluster.wait_ready(3);
        let normal = loaded.normal();
        let load = loaded.load(13);
        silence_in_turn(&load, |i, silence| set_link(i, silence == Silence::Ends));
        let blackholed = load.finish();
        (0..4).for_each(|i| set_link(i, true));
        measure::say(&format!(
            "a node blackholed every {FAULT_INTERVAL:?} for 6 s: {blackholed:.1?}; before: {normal:.1?}"
        ));
        assert!(blackholed.p99 < normal.p99 + SILENCE_COST_MAX, "{blackholed:?}, normally {normal:?}");
        loaded.cluster.converge(LONG, loaded.next);
    });
}

/// A connection attempt to this node times out; it is not even refused.
fn assert_silent(loaded: &LoadedCluster, i: usize) {
    let connected = TcpStream::connect_timeout(&loaded.cluster.node(i), Duration::from_millis(500));
    assert_eq!(connected.expect_err("its link is down").kind(), ErrorKind::TimedOut);
}

#[test]
fn a_node_with_a_slow_disk_is_avoided() {
    let mut loaded = LoadedCluster::new();
    let normal = loaded.normal();
    let Some(strace) = slow_disk(loaded.cluster.process(0).id()) else {
        measure::say("skipped: a slow disk needs root and `strace`");
        return;
    };
    let slow = loaded.load(8).finish();
    drop(strace);
    measure::say(&format!("one of four nodes needs 2 s for an fsync: {slow:.1?}; before: {normal:.1?}"));
    assert!(slow.p99 < (normal.p99 * 2).max(normal.p99 + NOISE), "{slow:?}, normally {normal:?}");
}

#[test]
fn hedging_stays_within_its_budget_if_all_disks_are_slow() {
    let mut loaded = LoadedCluster::new();
    let normal = loaded.normal();
    loaded.cluster.converge(LONG, loaded.next);
    let before = entries(&loaded.cluster);
    let straces: Vec<_> = (0..4).filter_map(|i| slow_disk(loaded.cluster.process(i).id())).collect();
    if straces.len() < 4 {
        measure::say("skipped: slow disks need root and `strace`");
        return;
    }
    let slow = loaded.load(6).finish();
    drop(straces);
    loaded.cluster.converge(LONG, loaded.next);
    let (asked, offered) = (entries(&loaded.cluster) - before, slow.count);
    measure::say(&format!(
        "all disks slow: {asked} entries of {offered} sends, {slow:.1?}; before: {normal:.1?}"
    ));
    assert!(asked * 10 <= offered * 12, "{asked} of {offered}");
}

/// The number of log entries. A message that several nodes accepted has several entries.
fn entries(cluster: &Cluster) -> usize {
    let total = cluster.statuses()[0]["scrub"]["total"].as_u64().expect("a count");
    usize::try_from(total).expect("few")
}

/// Delays every fsync of this process by 2 s until the returned process is dropped. None without root or `strace`.
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
fn the_proxy_discovers_a_node_that_is_not_configured() {
    let mut cluster = Cluster::start_with_proxy(1);
    let joined = cluster.join(&[0]);
    let upstreams = |cluster: &Cluster| {
        let answer = crate::support::http::get(cluster.proxy(), "/nodes").expect("answered").json();
        let found = answer["upstreams"].as_array().expect("a list").clone();
        let up = found.iter().filter(|upstream| upstream["state"] == "up");
        up.map(|upstream| upstream["address"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    let both = [cluster.node(0), cluster.node(joined)].map(|addr| addr.to_string());
    eventually_blocking(LONG, "each node to be an upstream once", || {
        let up = upstreams(&cluster);
        if up == both { Ok(()) } else { Err(up) }
    });
    cluster.kill9(0);
    Load::start(cluster.proxy(), 0..20, 20).finish();
    assert_eq!(cluster.statuses()[0]["messages"], 20, "the discovered node stored the messages");
}
