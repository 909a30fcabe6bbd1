//! The cost of feed readers for a node: many followers, many stalled readers, and a slow reader.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::cluster::scale;
use crate::support::cluster::Cluster;
use crate::support::eventually::{eventually, eventually_blocking};
use crate::support::feed::{Follower, Format, read, read_lines};
use crate::support::http;
use crate::support::measure::{self, percentile};
use crate::support::messages::{self, Sent, numbered, send};

const SOON: Duration = Duration::from_secs(30);
const FOLLOWERS: u64 = 1_000;
/// The number of followers that measure delivery times; the others only read.
const MEASURING_FOLLOWERS: u64 = 100;
const RATE: u64 = 200;
const LOAD_SECONDS: u64 = 8;
/// Memory that each follower may cost a node.
const FOLLOWER_KIB_MAX: u64 = 32;
/// Alone on two processors it takes a tenth of a second; here other tests run beside it, and the build is not
/// optimized.
const DELIVERY_MAX: Duration = Duration::from_millis(500);

/// Memory that a slow follower and the sends beside it may cost a node, of which the sends may take half. The unread
/// part of the feed is about 350 MiB.
const SLOW_KIB_MAX: u64 = 16 * 1024;
const MEDIAN_AND_P99: [f64; 2] = [0.5, 0.99];
/// Time that other tests on the same machine may add to the median and the p99, beyond a factor of two.
const NOISE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(100)];

/// When each message was sent, and how long its deliveries took.
struct Deliveries {
    sent: Vec<Mutex<Option<Instant>>>,
    took: Mutex<Vec<Duration>>,
    /// The number of deliveries, over all messages and followers.
    arrived: AtomicU64,
    /// The number of followers that have started.
    begun: AtomicU64,
}

/// Reads a feed until `count` messages have arrived.
async fn follow(addr: SocketAddr, measures: bool, count: u64, deliveries: Arc<Deliveries>) {
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
            deliveries.begun.fetch_add(1, Ordering::SeqCst);
        }
        let now = Instant::now();
        for part in text[..whole].split("\"text\":\"message ").skip(1) {
            arrived += 1;
            if measures {
                let number = part.split(' ').next().and_then(|number| number.parse::<usize>().ok());
                let sent = deliveries.sent[number.expect("a number")].lock().expect("no task panics");
                let took = now.duration_since(sent.expect("sent before it arrived"));
                deliveries.took.lock().expect("no task panics").push(took);
            }
        }
        let whole = rest.len().min(whole);
        rest.drain(..whole);
    }
    deliveries.arrived.fetch_add(arrived, Ordering::SeqCst);
}

#[test]
fn a_thousand_followers_get_messages_soon_and_cost_little() {
    let mut cluster = Cluster::start(1);
    let (addr, pid) = (cluster.node(0), cluster.process(0).id());
    let count = RATE * LOAD_SECONDS;
    let deliveries = Arc::new(Deliveries {
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
        followers
            .spawn_on(follow(addr, i < MEASURING_FOLLOWERS, count, deliveries.clone()), runtime.handle());
    }
    let all_begun = || async { deliveries.begun.load(Ordering::SeqCst) == FOLLOWERS };
    runtime.block_on(eventually(SOON, "all followers to start", all_begun));
    let began = Instant::now();
    let mut connection = http::Connection::open(addr).expect("connected");
    for n in 0..count {
        let due = began + Duration::from_secs(n) / u32::try_from(RATE).expect("small");
        eventually_blocking(SOON, "the time of the next send", || Instant::now() >= due);
        let body = numbered(n).to_string();
        let request =
            http::encode(addr, "POST", "/messages", &[("content-type", "application/json")], body.as_bytes());
        *deliveries.sent[usize::try_from(n).expect("small")].lock().expect("no task panics") =
            Some(Instant::now());
        connection.send(&request).expect("sent");
        assert_eq!(connection.receive("POST").expect("answered").status(), 201);
    }
    let cost = scale::memory(pid, "VmRSS").saturating_sub(before);
    runtime.block_on(async {
        while let Some(ended) = followers.join_next().await {
            ended.expect("the follower got all messages");
        }
    });
    assert_eq!(deliveries.arrived.load(Ordering::SeqCst), FOLLOWERS * count);
    let took = std::mem::take(&mut *deliveries.took.lock().expect("no task panics"));
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

/// All start at the first message and stop reading: more readers than may keep an open iterator over thousands of logs.
#[test]
fn many_stalled_readers_cost_little_memory() {
    const COUNT: u64 = 50_000;
    const MANY: usize = 600;
    for (path, is_message) in [("/feed?from=start", "event: message"), ("/messages", "{\"id\"")] {
        let mut cluster = Cluster::prepare(1);
        scale::build(&cluster.node_dir(0), COUNT, |number| number / 10);
        cluster.start_node(0);
        let (addr, pid) = (cluster.node(0), cluster.process(0).id());
        let before = scale::memory(pid, "VmRSS");
        let accept = if path == "/messages" { "application/x-ndjson" } else { "text/event-stream" };
        let mut stopped: Vec<_> = (0..MANY)
            .map(|_| {
                let mut connection = http::Connection::open(addr).expect("connected");
                let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\naccept: {accept}\r\n\r\n");
                connection.send(request.as_bytes()).expect("sent");
                let head = connection.head().expect("an answer");
                (connection, head)
            })
            .collect();
        let mut cost = 0;
        eventually_blocking(SOON, "the memory of the node to stop growing", || {
            let last = std::mem::replace(&mut cost, scale::memory(pid, "VmRSS").saturating_sub(before));
            last == cost
        });
        // The last reader continues: it has no open iterator, because it came after the limit was reached.
        let (connection, head) = stopped.last_mut().expect("many");
        let lines = BufReader::new(connection.body("GET", head).expect("a body")).lines();
        let lines =
            lines.map(|line| line.expect("whole lines")).take_while(|line| line != "event: caught-up");
        assert_eq!(lines.filter(|line| line.starts_with(is_message)).count() as u64, COUNT);
        let each = cost / MANY as u64;
        measure::say(&format!("{MANY} readers of {path} that stopped amid 5,000 logs: {each} KiB each"));
        assert!(each < 320, "{each} KiB");
    }
}

/// p50 and p99 of the duration of sends, and of the time from the start of a send to its delivery at a follower.
#[derive(Debug)]
struct FeedLatencies {
    sends: [Duration; 2],
    deliveries: [Duration; 2],
}

impl FeedLatencies {
    /// Sends these messages one after the other and waits until the follower has them.
    fn measure(addr: SocketAddr, follower: &Follower, numbers: Range<u64>) -> Self {
        let mut sent = Vec::new();
        for number in numbers {
            let began = Instant::now();
            assert_eq!(send(addr, &numbered(number)), Sent::New);
            sent.push((number, began, began.elapsed()));
        }
        let received = eventually_blocking(SOON, "the follower to have all messages", || {
            let received = follower.received().numbers;
            sent.iter().all(|(number, ..)| received.contains_key(number)).then_some(received)
        });
        let delivery = |(number, began, _): &(u64, Instant, _)| {
            let (times, first) = received[number];
            assert_eq!(times, 1, "message {number}");
            first.expect("received").duration_since(*began)
        };
        let deliveries: Vec<_> = sent.iter().map(delivery).collect();
        let sends: Vec<_> = sent.iter().map(|(.., took)| *took).collect();
        FeedLatencies {
            sends: MEDIAN_AND_P99.map(|share| percentile(&sends, share)),
            deliveries: MEDIAN_AND_P99.map(|share| percentile(&deliveries, share)),
        }
    }

    #[track_caller]
    fn assert_no_worse_than(&self, other: &FeedLatencies) {
        for (here, there) in [(self.sends, other.sends), (self.deliveries, other.deliveries)] {
            for ((here, there), noise) in here.into_iter().zip(there).zip(NOISE) {
                assert!(here < there * 2 + noise, "{self:?}, alone {other:?}");
            }
        }
    }
}

/// The numbered messages that have arrived; each may arrive once.
struct SeenNumbers(Vec<bool>);

impl SeenNumbers {
    fn none_of(count: u64) -> Self {
        SeenNumbers(vec![false; usize::try_from(count).expect("small")])
    }

    fn see(&mut self, number: u64) {
        let seen = self.0.get_mut(usize::try_from(number).expect("small")).expect("a message that was sent");
        assert!(!std::mem::replace(seen, true), "message {number} comes twice");
    }

    /// Takes a line of a feed. False if it is the `caught-up` line.
    fn see_line(&mut self, line: &str) -> bool {
        let number = line.split_once("\"text\":\"message ").and_then(|(_, rest)| rest.split(' ').next());
        match number {
            Some(number) => self.see(number.parse().expect("a number")),
            None => assert!(!line.starts_with("{\"event\":\"message\""), "{line}"),
        }
        !line.starts_with("{\"event\":\"caught-up\"")
    }

    fn assert_all(&self) {
        let missing: Vec<_> = (0..self.0.len()).filter(|number| !self.0[*number]).collect();
        assert!(missing.is_empty(), "{} messages are missing, such as {}", missing.len(), missing[0]);
    }
}

/// The follower reads one message per second of a long history.
#[test]
fn a_slow_follower_costs_little_and_delays_no_other_follower() {
    const BACKLOG: u64 = 1_000_000;
    const SENDS: u64 = 400;
    const TOTAL: u64 = BACKLOG + 2 * SENDS;
    let mut cluster = Cluster::prepare(1);
    scale::build(&cluster.node_dir(0), BACKLOG, |number| number % 5);
    cluster.start_node(0);
    let (addr, pid) = (cluster.node(0), cluster.process(0).id());
    let other = Follower::start(vec![addr], Format::Lines);
    eventually_blocking(SOON, "the follower to start", || other.has_begun());
    other.end_with(2 * SENDS);
    let alone = FeedLatencies::measure(addr, &other, BACKLOG..BACKLOG + SENDS);
    let before = scale::memory(pid, "VmRSS");
    scale::reset_peak_memory(pid);
    let (mut seen, mut after_five, mut beside) = (SeenNumbers::none_of(TOTAL), 0, None);
    let (mut taken, mut cursor) = (0, String::new());
    let began = Instant::now();
    read(addr, "?from=start", Format::Lines, |event| {
        seen.see(messages::number(&event.message));
        (taken, cursor) = (taken + 1, event.cursor);
        if taken == 5 {
            after_five = scale::memory(pid, "VmRSS");
            beside = Some(FeedLatencies::measure(addr, &other, BACKLOG + SENDS..TOTAL));
        }
        let due = began + Duration::from_secs(taken);
        eventually_blocking(SOON, "the time of the next read", || Instant::now() >= due);
        taken < 10
    })
    .expect("a feed");
    let peak = scale::memory(pid, "VmHWM");
    read_lines(addr, &format!("?cursor={cursor}"), |line| seen.see_line(&line)).expect("a feed");
    seen.assert_all();
    let (beside, [growth, later]) =
        (beside.expect("it read five messages"), [before, after_five].map(|then| peak.saturating_sub(then)));
    measure::say(&format!(
        "a follower that reads one message per second of {BACKLOG}: {growth} KiB more, {later} KiB of them after its fifth; {beside:.1?} beside it, {alone:.1?} before"
    ));
    assert!(growth < SLOW_KIB_MAX && later < SLOW_KIB_MAX / 2, "{growth} and {later} KiB");
    beside.assert_no_worse_than(&alone);
}
