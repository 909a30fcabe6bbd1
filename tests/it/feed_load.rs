//! What many readers of the feed cost a node, and one that reads slowly.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::scale;
use crate::support::cluster::Cluster;
use crate::support::eventually::{eventually, eventually_blocking};
use crate::support::feed::{Format, read};
use crate::support::http;
use crate::support::measure::{self, percentile};
use crate::support::messages::{numbered, send};

const SOON: Duration = Duration::from_secs(30);
const FOLLOWERS: u64 = 1_000;
/// Of all followers, so many look at what they get, and when; the others only take it.
const WATCHERS: u64 = 100;
const RATE: u64 = 200;
const LOAD_SECONDS: u64 = 8;
/// Each follower may cost a node so much.
const FOLLOWER_KIB_MAX: u64 = 32;
/// Alone on two processors it is a tenth of a second; here other tests run beside it, and the build is not optimised.
const DELIVERY_MAX: Duration = Duration::from_millis(500);

/// When each message was sent, and how long its ways took.
struct Ways {
    sent: Vec<Mutex<Option<Instant>>>,
    took: Mutex<Vec<Duration>>,
    /// Of all messages to all followers.
    arrived: AtomicU64,
    begun: AtomicU64,
}

/// Takes a feed as it comes, until everything has arrived.
async fn follow(addr: SocketAddr, watches: bool, count: u64, ways: Arc<Ways>) {
    let mut stream = TcpStream::connect(addr).await.expect("connected");
    let request = format!("GET /feed HTTP/1.1\r\nhost: {addr}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let (mut buffer, mut rest, mut arrived) = (vec![0; 16 << 10], Vec::new(), 0);
    while arrived < count {
        let read = stream.read(&mut buffer).await.expect("a feed that goes on");
        assert!(read > 0, "the feed ended after {arrived} messages");
        rest.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&rest);
        let whole = text.rfind("\n\n").map_or(0, |end| end + 2);
        if text[..whole].contains("caught-up") {
            ways.begun.fetch_add(1, Ordering::SeqCst);
        }
        let now = Instant::now();
        for part in text[..whole].split("\"text\":\"message ").skip(1) {
            arrived += 1;
            if watches {
                let number = part.split(' ').next().and_then(|number| number.parse::<usize>().ok());
                let sent = ways.sent[number.expect("a number")].lock().expect("nobody panics");
                let took = now.duration_since(sent.expect("it was sent before"));
                ways.took.lock().expect("nobody panics").push(took);
            }
        }
        let whole = rest.len().min(whole);
        rest.drain(..whole);
    }
    ways.arrived.fetch_add(arrived, Ordering::SeqCst);
}

#[test]
fn a_thousand_followers_are_told_soon_and_cost_little() {
    let mut cluster = Cluster::start(1);
    let (addr, pid) = (cluster.node(0), cluster.process(0).id());
    let count = RATE * LOAD_SECONDS;
    let ways = Arc::new(Ways {
        sent: (0..count).map(|_| Mutex::default()).collect(),
        took: Mutex::default(),
        arrived: AtomicU64::new(0),
        begun: AtomicU64::new(0),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let before = scale::memory(pid, "VmRSS");
    let mut followers = JoinSet::new();
    for i in 0..FOLLOWERS {
        followers.spawn_on(follow(addr, i < WATCHERS, count, ways.clone()), runtime.handle());
    }
    let all_begun = || async { ways.begun.load(Ordering::SeqCst) == FOLLOWERS };
    runtime.block_on(eventually(SOON, "all follow", all_begun));
    let began = Instant::now();
    let mut connection = http::Connection::open(addr).expect("connected");
    for n in 0..count {
        let due = began + Duration::from_secs(n) / u32::try_from(RATE).expect("small");
        eventually_blocking(SOON, "its time has come", || Instant::now() >= due);
        let body = numbered(n).to_string();
        let request =
            http::encode(addr, "POST", "/messages", &[("content-type", "application/json")], body.as_bytes());
        *ways.sent[usize::try_from(n).expect("small")].lock().expect("nobody panics") = Some(Instant::now());
        connection.send(&request).expect("sent");
        assert_eq!(connection.receive("POST").expect("answered").status(), 201);
    }
    let cost = scale::memory(pid, "VmRSS").saturating_sub(before);
    runtime.block_on(async {
        while let Some(ended) = followers.join_next().await {
            ended.expect("it took everything");
        }
    });
    assert_eq!(ways.arrived.load(Ordering::SeqCst), FOLLOWERS * count);
    let took = std::mem::take(&mut *ways.took.lock().expect("nobody panics"));
    let at = |share| percentile(&took, share);
    measure::say(&format!(
        "{FOLLOWERS} followers, {RATE} messages/s for {LOAD_SECONDS} s: delivery p50 {:.1?}, p99 {:.1?}, longest {:.1?}; {} KiB each",
        at(0.5),
        at(0.99),
        at(1.0),
        cost / FOLLOWERS
    ));
    assert!(cost < FOLLOWERS * FOLLOWER_KIB_MAX, "{cost} KiB");
    assert!(at(0.99) < DELIVERY_MAX, "{:?}", at(0.99));
}

/// All begin at the very first message and stop reading: more than keep their way through thousands of logs.
#[test]
fn many_followers_that_stop_in_the_middle_of_the_store_cost_little_together() {
    const COUNT: u64 = 50_000;
    const MANY: usize = 600;
    let mut cluster = Cluster::prepare(1);
    scale::build(&cluster.node_dir(0), COUNT, |number| number / 10);
    cluster.start_node(0);
    let (addr, pid) = (cluster.node(0), cluster.process(0).id());
    let before = scale::memory(pid, "VmRSS");
    let mut stopped: Vec<_> = (0..MANY)
        .map(|_| {
            let mut connection = http::Connection::open(addr).expect("connected");
            let request = format!("GET /feed?from=start HTTP/1.1\r\nhost: {addr}\r\n\r\n");
            connection.send(request.as_bytes()).expect("sent");
            let head = connection.head().expect("a feed");
            (connection, head)
        })
        .collect();
    let mut cost = 0;
    eventually_blocking(SOON, "no more is written to them", || {
        let last = std::mem::replace(&mut cost, scale::memory(pid, "VmRSS").saturating_sub(before));
        last == cost
    });
    // One of those that came last, and hence keep nothing, reads on.
    let (connection, head) = stopped.last_mut().expect("many");
    let lines = BufReader::new(connection.body("GET", head).expect("a body")).lines();
    let events = lines.map(|line| line.expect("a feed")).take_while(|line| line != "event: caught-up");
    let count = events.filter(|line| line == "event: message").count() as u64;
    assert_eq!(count, COUNT);
    measure::say(&format!("{MANY} followers that stopped amid 5,000 logs: {} KiB each", cost / MANY as u64));
    assert!(cost < MANY as u64 * 320, "{cost} KiB");
}

/// Behind it lies a long history, of which it takes a message a second.
#[test]
fn a_slow_follower_costs_a_node_little_and_nobody_else_anything() {
    const BACKLOG: u64 = 300_000;
    let mut cluster = Cluster::prepare(1);
    scale::build(&cluster.node_dir(0), BACKLOG, |number| number % 5);
    cluster.start_node(0);
    let (addr, pid) = (cluster.node(0), cluster.process(0).id());
    let sends = |from: u64| {
        let times = (from..from + 100).map(|n| {
            let began = Instant::now();
            send(addr, &numbered(n));
            began.elapsed()
        });
        percentile(&times.collect::<Vec<_>>(), 0.5)
    };
    let alone = sends(BACKLOG);
    let before = scale::memory(pid, "VmRSS");
    scale::forget_the_peak(pid);
    let (mut taken, mut cursor, mut beside) = (0_u64, String::new(), Duration::ZERO);
    let began = Instant::now();
    read(addr, "?from=start", Format::Lines, |event| {
        (taken, cursor) = (taken + 1, event.cursor);
        if taken == 5 {
            beside = sends(BACKLOG + 100);
        }
        let due = began + Duration::from_secs(taken);
        eventually_blocking(SOON, "its second has passed", || Instant::now() >= due);
        taken < 10
    })
    .expect("a feed");
    let growth = scale::memory(pid, "VmHWM").saturating_sub(before);
    // From there on, nothing is missing.
    let mut rest = 0;
    read(addr, &format!("?cursor={cursor}"), Format::Lines, |event| {
        rest += u64::from(event.kind == "message");
        event.kind != "caught-up"
    })
    .expect("a feed");
    assert_eq!(taken + rest, BACKLOG + 200);
    measure::say(&format!(
        "a follower that takes a message a second of {BACKLOG}: {growth} KiB more; sends took {alone:.2?} before, {beside:.2?} beside it"
    ));
    assert!(growth < 24 * 1024, "{growth} KiB");
}
