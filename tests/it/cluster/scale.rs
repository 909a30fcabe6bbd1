//! The cost of a large store: memory for a long listing, time for a start and for many logs.
//!
//! The only tests of real processes that use the crate's own code: they build stores that would take months to fill.

use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use chatchain::chain::clock::Stamp;
use chatchain::chain::ids::{EntryKey, Origin};
use chatchain::chain::kind::{EntryKind, LogType};
use chatchain::chain::message::{Digest, Message, UncheckedMessage};
use chatchain::chain::record::Entry;
use chatchain::store::Store;
use chatchain::store::log::WriteBatch;
use uuid::Uuid;

use crate::support::cluster::Cluster;
use crate::support::http::Connection;
use crate::support::measure::{self, percentile};
use crate::support::messages::{assert_holds, id, listing, numbered, send_all};

/// The stamp of the first message. Each further one is a millisecond later.
const BEGAN_MS: u64 = 1_700_000_000_000;
const COMMIT_COUNT: u64 = 20_000;
const LISTED: u64 = 300_000;
const MILLION: u64 = 1_000_000;
const READY_TIME: Duration = Duration::from_secs(2);
/// Less than the length of the listing. What is measured, 12 to 33 MiB, is pages of the file that the engine keeps, and
/// what the heap of each thread keeps: more where many threads compete for few cores.
const GROWTH_KIB_MAX: u64 = 48 * 1024;

/// Builds a store of numbered messages. `log_of` gives the log of each message.
pub fn build(dir: &Path, count: u64, log_of: impl Fn(u64) -> u64) {
    let (store, mut logs) = Store::open(dir, "chatchain", BEGAN_MS).expect("opens");
    let mut names: HashMap<u64, Origin> = HashMap::new();
    let mut entries = Vec::new();
    for number in 0..count {
        let origin = *names.entry(log_of(number)).or_insert_with(|| Origin(Uuid::now_v7().into_bytes()));
        let content = message(number).encode();
        let (seq, digest) = (logs.vector().seq(origin) + 1, Digest::of(EntryKind::Message, &content));
        let stamp = Stamp::at(BEGAN_MS + number);
        let key = EntryKey { stamp, origin, seq };
        let entry = Entry::new(key, EntryKind::Message, digest, &content);
        assert_eq!(logs.admit(&entry, BEGAN_MS), Ok(true));
        entries.push(
            store
                .index()
                .overlay()
                .append(entry, logs.vector().hash(origin, LogType::MESSAGES))
                .expect("reads"),
        );
        if entries.len() as u64 == COMMIT_COUNT || number + 1 == count {
            store
                .commit(WriteBatch { entries: std::mem::take(&mut entries), ..WriteBatch::default() }, &logs)
                .expect("commits");
        }
    }
    while store.flush_index().expect("indexes") {}
    store.commit_for_fast_open().expect("commits");
}

fn message(number: u64) -> Message {
    let fields = numbered(number);
    let text = |field: &str| fields[field].as_str().expect("text").to_owned();
    let (sender, recipient, text) = (text("sender"), text("recipient"), text("text"));
    Message::new(UncheckedMessage { id: id(number), sender, recipient, text, timestamp: None })
        .expect("valid")
}

/// A field of `/proc/PID/status`, in KiB.
pub fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let words = line.and_then(|line| line.split_whitespace().next());
    words.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{name} in {status}"))
}

/// The CPU time that a process has used.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // User and system time are the fields 14 and 15, in hundredths of a second; field 2 is a name in parentheses.
    let fields = stat.rsplit(") ").next().expect("fields").split(' ').skip(11).take(2);
    Duration::from_millis(fields.map(|ticks| ticks.parse::<u64>().expect("ticks") * 10).sum())
}

/// Resets `VmHWM`, the peak memory of the process.
pub fn reset_peak_memory(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("our own process");
}

/// Reads a whole listing without keeping it. Gives the number of lines, each of which holds a message.
fn count_listed(addr: SocketAddr, query: &str) -> usize {
    let mut connection = Connection::open(addr).expect("connected");
    connection
        .send(format!("GET /messages{query} HTTP/1.1\r\nhost: {addr}\r\n\r\n").as_bytes())
        .expect("sent");
    let head = connection.head().expect("answered");
    assert_eq!(head.status, 200);
    let mut body = connection.body("GET", &head).expect("a body");
    let (mut buffer, mut lines) = (vec![0; 64 * 1024], 0);
    loop {
        match body.read(&mut buffer).expect("a complete body") {
            0 => return lines,
            count => lines += buffer[..count].split(|byte| *byte == b'\n').count() - 1,
        }
    }
}

#[test]
fn listing_300_000_messages_takes_little_memory() {
    let mut cluster = Cluster::prepare(1);
    // The stamps of the logs interleave, so that a listing reads all of them at the same time.
    build(&cluster.node_dir(0), LISTED, |number| number % 5);
    cluster.start_node(0);
    let (addr, pid) = (cluster.node(0), cluster.process(0).id());
    for _ in 0..5 {
        assert_holds(&listing(addr, "?limit=50"), LISTED - 50..LISTED);
    }
    let before = memory(pid, "VmRSS");
    let mut figures = Vec::new();
    for (query, want) in [("", LISTED), ("", LISTED), ("?text=message", LISTED), ("?limit=10000", 10_000)] {
        reset_peak_memory(pid);
        let began = Instant::now();
        assert_eq!(count_listed(addr, query) as u64, want, "{query}");
        let growth = memory(pid, "VmHWM").saturating_sub(before);
        figures.push(format!("{query:?}: {:.1?}, {growth} KiB more", began.elapsed()));
        assert!(growth < GROWTH_KIB_MAX, "from {before} KiB: {figures:?}");
    }
    measure::say(&format!("{LISTED} messages listed by a node of {before} KiB; {}", figures.join("; ")));
}

#[test]
fn a_node_with_a_million_messages_is_ready_within_two_seconds_of_kill9() {
    let mut cluster = Cluster::prepare(1);
    build(&cluster.node_dir(0), MILLION, |number| number % 5);
    // The fastest of three starts: tests beside this one may hold up any single start.
    let mut fastest = Duration::MAX;
    for round in 0..3 {
        cluster.start_node(0);
        let first = MILLION + round * 1_000;
        send_all(cluster.node(0), first..first + 1_000);
        cluster.kill9(0);
        let began = Instant::now();
        cluster.start_node(0);
        fastest = fastest.min(began.elapsed());
        assert_eq!(cluster.statuses()[0]["messages"], first + 1_000);
        cluster.stop(0);
    }
    measure::say(&format!("ready {fastest:.1?} after a start with {MILLION} messages, killed amid sends"));
    assert!(fastest < READY_TIME, "{fastest:?}");
}

#[test]
fn five_thousand_old_logs_list_as_fast_as_five() {
    const COUNT: u64 = 100_000;
    // The nodes do not know each other; otherwise they would exchange their messages.
    let mut alone = Cluster::prepare(0);
    for (i, logs) in [5, 5_000].into_iter().enumerate() {
        build(&alone.node_dir(i), COUNT, |number| number / (COUNT / logs));
        assert_eq!(alone.join(&[]), i);
        assert_eq!(alone.statuses()[i]["origins"], logs);
    }
    let middle = id(COUNT / 2);
    let listings = [
        ("newest 50", "?limit=50".to_owned(), 40),
        ("50 from the middle", format!("?limit=50&before={middle}"), 40),
        ("one user's newest 50", "?user=user1&limit=50".to_owned(), 40),
        ("everything", String::new(), 5),
    ];
    let mut figures = Vec::new();
    for (what, query, times) in listings {
        let nodes = [alone.node(0), alone.node(1)];
        let listed = nodes.map(|addr| count_listed(addr, &query));
        assert_eq!(listed[0], listed[1], "{what}");
        assert!(listed[0] >= 50, "{what}: {listed:?}");
        let mut took = [Vec::new(), Vec::new()];
        for _ in 0..times {
            for (addr, took) in nodes.into_iter().zip(&mut took) {
                let began = Instant::now();
                count_listed(addr, &query);
                took.push(began.elapsed());
            }
        }
        figures.push((what, took.map(|took| percentile(&took, 0.5))));
    }
    measure::say(&format!("{COUNT} messages in 5 and in 5,000 logs, medians: {figures:.1?}"));
    for (_, [five, thousands]) in &figures {
        assert!(*thousands < five.mul_f64(3.0) + Duration::from_millis(2), "{figures:?}");
    }
}

#[test]
fn a_new_node_copies_five_thousand_old_logs() {
    const COUNT: u64 = 100_000;
    let mut cluster = Cluster::prepare(0);
    build(&cluster.node_dir(0), COUNT, |number| number / (COUNT / 5_000));
    let first = cluster.join(&[]);
    let began = Instant::now();
    cluster.join(&[first]);
    cluster.converge(Duration::from_secs(60), COUNT);
    measure::say(&format!("{COUNT} messages in 5,000 logs reached a new node in {:.1?}", began.elapsed()));
}
