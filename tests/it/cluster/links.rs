//! Does an exchange use what a bad link carries? Each measurement of a link is a row, judged by the goals below.
//!
//! A row first measures what plain TCP carries over such a link in a given time. Then an empty node gets a backlog of
//! that size over the same link, while a client at each end sends a message per second for most of the time. Another
//! one sends to a node alone on the same machine at the same time, so that a slow machine is not taken for a slow link.
//! Three rows are tests; `scripts/links.sh` measures all. Only the nodes use the link; clients reach each node directly.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::feed::{self, Format};
use crate::support::load::{Latencies, Load};
use crate::support::measure;
use crate::support::messages::{id, numbered, send_all, send_lines};
use crate::support::plain_tcp;
use crate::support::relay::{LinkSettings, Relay};
use crate::support::rng::SeededRng;

/// An exchange carries at least this share of what plain TCP carries.
const SHARE_MIN: f64 = 0.7;
/// Both directions together take at most this multiple of the messages as lines of JSON.
const BYTES_FACTOR_MAX: f64 = 1.3;
/// After the nodes are equal, both are quiet after this.
const QUIET_AFTER_MAX: Duration = Duration::from_secs(5);
/// A message that is sent meanwhile is at the other end after this and two round trips.
const DELIVERY_MAX: Duration = Duration::from_secs(5);
/// Sends take at most twice as long as those to the node alone, and this.
const SEND_NOISE: Duration = Duration::from_millis(20);
/// No send takes longer than the slowest one to the node alone, by more than this.
const SLOWEST_SEND_NOISE: Duration = Duration::from_millis(500);

/// Nodes that exchange nothing but that they are equal send at most this many bytes within `QUIET_WINDOW`.
const QUIET_BYTES: u64 = 4 * 1024;
const QUIET_WINDOW: Duration = Duration::from_secs(2);
/// Messages per second to the node alone: so many that one of them meets each stall of the machine.
const ALONE_PER_SECOND: u32 = 20;
/// The messages of the backlog are long, so the bytes that a record adds to a text matter little.
const TEXT_BYTES: usize = 500;
const BATCH_LINES: usize = 5_000;
/// Rows that `scripts/links.sh` measures at the same time. Most of a row is waiting.
const ROWS_AT_ONCE: usize = 4;
/// A row lasts at least this many round trips, of which plain TCP takes two to begin.
const ROUND_TRIPS_MIN: u32 = 6;
const SECONDS_VARIABLE: &str = "CHATCHAIN_LINKS_SECONDS";
const KIB: u32 = 1024;
const CUT_AFTER: u64 = 64 * 1024;

/// What was measured of one link.
struct Row {
    link: LinkSettings,
    /// For how long plain TCP was measured, and the bytes that it carried.
    plain: (Duration, u64),
    /// Messages that both nodes should hold, and as how many bytes of JSON lines: all, and those for the empty node.
    count: u64,
    bytes: u64,
    bytes_for_empty: u64,
    /// How many messages the node that was empty held at the end, and when it was equal to the other one.
    stored: u64,
    took: Option<Duration>,
    /// Bytes on the link until then.
    carried: u64,
    quiet_after: Option<Duration>,
    alone: Latencies,
    sends: [Latencies; 2],
    /// The slowest message toward each end. None if one did not arrive.
    deliveries: [Option<Duration>; 2],
}

/// What was measured while the link was in use.
struct Run {
    numbers: [std::ops::Range<u64>; 2],
    took: Option<Duration>,
    stored: u64,
    carried: u64,
    quiet_after: Option<Duration>,
    alone: Latencies,
    sends: [Latencies; 2],
    deliveries: [Option<Duration>; 2],
}

fn link(kib: u32, round_trip: f64, loss: u64, cut_after: Option<u64>) -> LinkSettings {
    LinkSettings { rate: kib * KIB, round_trip: Duration::from_secs_f64(round_trip), loss, cut_after }
}

fn bytes_of(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().map(|number| numbered(number).to_string().len() as u64 + 1).sum()
}

/// A message of the backlog, whose text compresses little.
fn long(number: u64) -> String {
    let mut rng = SeededRng::of(number);
    let letters: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let text = (0..TEXT_BYTES).map(|_| char::from(letters[usize::from(rng.number().to_be_bytes()[0] % 64)]));
    let mut message = numbered(number);
    message["text"] = text.collect::<String>().into();
    format!("{message}\n")
}

/// When each message first came through a node's feed, by its id. None until the feed has begun.
type Arrivals = Arc<Mutex<Option<BTreeMap<String, Instant>>>>;

/// Watches a node's feed from its end on, until the node ends.
fn watch_feed(node: SocketAddr) -> Arrivals {
    let arrivals = Arrivals::default();
    let shared = Arc::clone(&arrivals);
    std::thread::spawn(move || {
        feed::read(node, "", Format::Lines, |event| {
            let mut arrived = shared.lock().expect("no reader panics with the lock");
            let arrived = arrived.get_or_insert_default();
            if let Some(id) = event.message["id"].as_str() {
                arrived.entry(id.to_owned()).or_insert_with(Instant::now);
            }
            true
        })
    });
    arrivals
}

fn ratio(part: u64, whole: u64) -> f64 {
    let [part, whole] = [part, whole].map(|count| f64::from(u32::try_from(count).expect("few")));
    part / whole.max(1.0)
}

/// Two nodes that reach each other only over a link, none started.
fn linked(settings: LinkSettings) -> (Cluster, Relay) {
    let mut cluster = Cluster::prepare(2);
    let relay = Relay::start(settings, [cluster.node(0), cluster.node(1)]);
    for i in 0..2 {
        cluster.readdress(i, vec![relay.addr(1 - i)], relay.addr(i));
    }
    (cluster, relay)
}

/// Measures an exchange over a link against plain TCP over the same link in this time.
fn measure(settings: LinkSettings, time: Duration) -> Row {
    let plain = plain_tcp::bytes_carried(settings, time);
    let (mut cluster, relay) = linked(settings);
    cluster.start_node(0);
    let (mut first, mut bytes) = (0, 0);
    let mut backlog = Vec::new();
    while bytes < plain {
        backlog.push(long(first));
        bytes += backlog[backlog.len() - 1].len() as u64;
        first += 1;
    }
    for batch in backlog.chunks(BATCH_LINES) {
        let sent = send_lines(cluster.node(0), batch.concat().as_bytes());
        assert_eq!(sent, (batch.len() as u64, 0), "all of a batch are new");
    }
    let run = run(&mut cluster, &relay, first, time);
    let bytes_for_empty = bytes + bytes_of(run.numbers[0].clone());
    Row {
        link: settings,
        plain: (time, plain),
        count: run.numbers[1].end,
        bytes: bytes_for_empty + bytes_of(run.numbers[1].clone()),
        bytes_for_empty,
        stored: run.stored,
        took: run.took,
        carried: run.carried,
        quiet_after: run.quiet_after,
        alone: run.alone,
        sends: run.sends,
        deliveries: run.deliveries,
    }
}

/// Starts the empty node, and measures until both nodes are equal and quiet. Gives up after three times the time.
fn run(cluster: &mut Cluster, relay: &Relay, first: u64, time: Duration) -> Run {
    let nodes = [cluster.node(0), cluster.node(1)];
    let sends = time.as_secs() * 2 / 3; // the last ones must not decide when the nodes are equal
    let numbers = [first..first + sends, first + sends..first + 2 * sends];
    let alone = Cluster::start(1);
    let began = Instant::now();
    cluster.start_node(1);
    let feeds = nodes.map(watch_feed);
    let arrived = |i: usize| feeds[i].lock().expect("no reader panics with the lock").clone();
    eventually_blocking(time, "both feeds", || (0..2).all(|i| arrived(i).is_some()));
    // What is sent before the first contact is a part of the backlog.
    eventually_blocking(time, "the first contact", || {
        cluster.statuses().iter().all(|status| !status["peers"][0]["last_sync"].is_null())
    });
    let load_alone = Load::start(alone.node(0), 0..sends * u64::from(ALONE_PER_SECOND), ALONE_PER_SECOND);
    let loads = [0, 1].map(|i| Load::start(nodes[i], numbers[i].clone(), 1));
    let total = numbers[1].end;
    let given_up = time * 3 + Duration::from_secs(10);
    let poll = || {
        let statuses = cluster.statuses();
        let equal = statuses.iter().all(|s| s["messages"] == total && s["digest"] == statuses[0]["digest"]);
        let stored = statuses[1]["messages"].as_u64().expect("a count");
        let took = equal.then(|| began.elapsed());
        (equal || began.elapsed() > given_up).then_some((took, stored))
    };
    let (took, stored) = eventually_blocking(given_up * 2, "equal nodes, or the time to give up", poll);
    let carried = relay.bytes_toward(0) + relay.bytes_toward(1);
    let quiet_after = took.map(|_| quiet_after(relay));
    let finished = loads.map(Load::finish_each);
    let alone = load_alone.finish();
    let deliveries = [0, 1].map(|toward: usize| {
        let arrived = arrived(toward).unwrap_or_default();
        let sent = finished[1 - toward].1.iter();
        let took =
            sent.map(|(number, due)| Some(arrived.get(&id(*number).to_string())?.duration_since(*due)));
        took.collect::<Option<Vec<_>>>().and_then(|times| times.into_iter().max())
    });
    let sends = finished.map(|(latencies, _)| latencies);
    Run { numbers, took, stored, carried, quiet_after, alone, sends, deliveries }
}

/// The end of the last window in which the link carried more than the nodes exchange when they are equal.
fn quiet_after(relay: &Relay) -> Duration {
    let began = Instant::now();
    let carried = || relay.bytes_toward(0) + relay.bytes_toward(1);
    let (mut last, mut quiet_after) = (carried(), Duration::ZERO);
    let mut window_end = QUIET_WINDOW;
    let until = QUIET_AFTER_MAX * 2;
    eventually_blocking(until * 2, "the end of the measure", || {
        if began.elapsed() >= window_end {
            let now = carried();
            if now - last > QUIET_BYTES {
                quiet_after = window_end;
            }
            (last, window_end) = (now, window_end + QUIET_WINDOW);
        }
        began.elapsed() > until
    });
    quiet_after
}

impl Row {
    /// Bytes of messages that the exchange carried to the empty node in a second, as a share of plain TCP's.
    fn share(&self) -> Option<f64> {
        let (time, plain) = self.plain;
        let slower = self.took?.as_secs_f64() / time.as_secs_f64();
        Some(ratio(self.bytes_for_empty, plain) / slower)
    }

    /// The goals that this row misses.
    fn misses(&self) -> Vec<String> {
        let mut misses = Vec::new();
        let mut goal = |met: bool, missed: &str| {
            if !met {
                misses.push(missed.to_owned());
            }
        };
        goal(self.took.is_some(), "never equal");
        goal(self.share().is_none_or(|share| share >= SHARE_MIN), "slower than plain TCP");
        goal(ratio(self.carried, self.bytes) <= BYTES_FACTOR_MAX, "too many bytes");
        goal(self.quiet_after.is_none_or(|after| after <= QUIET_AFTER_MAX), "not quiet");
        for (end, sends) in ["full", "empty"].into_iter().zip(&self.sends) {
            let as_fast = sends.p50 <= self.alone.p50 * 2 + SEND_NOISE;
            let slowest = sends.max <= self.alone.max + SLOWEST_SEND_NOISE;
            goal(as_fast && slowest, &format!("slow sends at the {end} node"));
        }
        let delivery_max = DELIVERY_MAX + self.link.round_trip * 2;
        for (end, slowest) in ["full", "empty"].into_iter().zip(self.deliveries) {
            let in_time = slowest.is_some_and(|slowest| slowest <= delivery_max);
            goal(in_time, &format!("late messages at the {end} node"));
        }
        misses
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LinkSettings { rate, round_trip, loss, cut_after } = self.link;
        let cut = cut_after.map_or("-".into(), |bytes| format!("{} KiB", bytes / 1024));
        let seconds = |time: Option<Duration>| time.map_or("-".into(), |time| format!("{time:.1?}"));
        let (time, plain) = self.plain;
        let cells = [
            format!("{} KiB/s", rate / KIB),
            format!("{round_trip:?}"),
            format!("{loss} %"),
            cut,
            format!("{:.1} KiB/s", ratio(plain, u64::from(KIB)) / time.as_secs_f64()),
            self.share().map_or("-".into(), |share| format!("{:.0} %", share * 100.0)),
            format!("{} of {}", self.stored, self.count),
            format!("{:.2}", ratio(self.carried, self.bytes)),
            seconds(self.quiet_after),
            [self.alone, self.sends[0], self.sends[1]]
                .map(|sends| format!("{:.1?}/{:.0?}", sends.p50, sends.max))
                .join(" "),
            self.deliveries.map(seconds).join(" "),
            self.misses().join(", "),
        ];
        f.write_str(&cells.join(" | "))
    }
}

#[track_caller]
fn check(settings: LinkSettings, seconds: u64) {
    let row = measure(settings, Duration::from_secs(seconds));
    measure::say(&format!("link: {row}"));
    assert_eq!(row.misses(), Vec::<String>::new(), "{row}");
}

#[test]
fn a_fast_near_link_is_used() {
    check(link(300, 0.05, 0, None), 10);
}

#[test]
fn a_link_that_is_cut_again_and_again_is_used() {
    check(link(64, 1.0, 0, Some(CUT_AFTER)), 20);
}

#[test]
fn a_slow_far_link_with_losses_is_used() {
    check(link(8, 5.0, 5, None), 30);
}

/// All rows of the table. Lines that begin with `link:` go to standard error.
#[test]
#[ignore = "takes half an hour: run scripts/links.sh"]
fn all_links_are_used() {
    let seconds = std::env::var(SECONDS_VARIABLE).ok().map_or(30, |value| value.parse().expect("seconds"));
    let mut links = Vec::new();
    for kib in [8, 64, 300] {
        for round_trip in [0.05, 1.0, 5.0] {
            for (loss, cut_after) in [(0, None), (5, None), (0, Some(CUT_AFTER)), (5, Some(CUT_AFTER))] {
                links.push(link(kib, round_trip, loss, cut_after));
            }
        }
    }
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(settings) = links.get(next.fetch_add(1, Ordering::Relaxed)) {
            let time = Duration::from_secs(seconds).max(settings.round_trip * ROUND_TRIPS_MIN);
            let row = measure(*settings, time);
            measure::say(&format!("link: {row}"));
            if !row.misses().is_empty() {
                missed.lock().expect("no row panics with the lock").push(row.to_string());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..ROWS_AT_ONCE {
            scope.spawn(work);
        }
    });
    let missed = missed.into_inner().expect("no row panics with the lock");
    assert!(
        missed.is_empty(),
        "{} of {} links miss a goal:\n{}",
        missed.len(),
        links.len(),
        missed.join("\n")
    );
}

#[test]
fn an_empty_node_gets_20_000_messages_over_a_slow_link() {
    const COUNT: u64 = 20_000;
    let (mut cluster, relay) = linked(link(64, 0.05, 0, None));
    cluster.start_node(0);
    send_all(cluster.node(0), 0..COUNT);
    let began = Instant::now();
    cluster.start_node(1);
    cluster.converge(Duration::from_secs(120), COUNT);
    let carried = relay.bytes_toward(1);
    measure::say(&format!("{COUNT} messages over 64 KiB/s in {:.1?}, {carried} bytes", began.elapsed()));
}

/// The empty node has a fast link to a third node, which holds everything too.
#[test]
fn a_push_ends_when_the_peer_has_got_the_entries_elsewhere() {
    const COUNT: u64 = 100_000;
    const MEASURED: Duration = Duration::from_secs(20);
    let mut cluster = Cluster::prepare(3);
    let (full, empty, third) = (0, 1, 2);
    let relay = Relay::start(link(10_000, 0.05, 0, None), [cluster.node(full), cluster.node(empty)]);
    cluster.readdress(full, vec![relay.addr(empty), cluster.node(third)], relay.addr(full));
    cluster.readdress(empty, vec![relay.addr(full), cluster.node(third)], relay.addr(empty));
    cluster.readdress(third, vec![cluster.node(full)], cluster.node(third));
    cluster.start_node(full);
    send_all(cluster.node(full), 0..COUNT);
    cluster.start_node(third);
    cluster.converge(Duration::from_secs(60), COUNT);
    relay.set_rate(128 * KIB);
    let began = Instant::now();
    cluster.start_node(empty);
    cluster.converge(Duration::from_secs(120), COUNT);
    let (took, before) = (began.elapsed(), relay.bytes_toward(empty));
    let began = Instant::now();
    eventually_blocking(MEASURED * 2, "the end of the measure", || began.elapsed() >= MEASURED);
    let after = relay.bytes_toward(empty) - before;
    measure::say(&format!(
        "an empty node had {COUNT} messages after {took:.1?} and {before} bytes; {after} bytes in the next {MEASURED:?}"
    ));
    assert!(after < 256 * 1024, "{after} bytes in {MEASURED:?} for a node that has everything");
}
