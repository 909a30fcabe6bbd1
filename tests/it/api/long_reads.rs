//! Long requests beside short ones: searches that scan all of history delay no page, and end when their clients leave;
//! large batches delay no request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::scale;
use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::http::{Connection, encode};
use crate::support::measure::{self, percentile};
use crate::support::servers::{NDJSON, post};

const MESSAGES: u64 = 300_000;
const SEARCHES: usize = 20;
const PAGES: usize = 200;
const SOON: Duration = Duration::from_secs(60);
/// No text has this.
const NOTHING: &str = "/messages?text=zqxjkvbzqxjkvb";
const PAGE_MAX: Duration = Duration::from_millis(100);
/// After a page that takes longer, no further one is asked for.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// A search ends this long after its client left.
const END_MAX: Duration = Duration::from_millis(100);
/// Time that other tests on the same machine may add. A page that waits for a search takes seconds.
const NOISE: Duration = Duration::from_millis(50);

/// Median and p99 of pages of the newest 50 messages, one after the other on one connection.
fn pages(cluster: &Cluster) -> [Duration; 2] {
    let addr = cluster.node(0);
    let mut connection = Connection::open(addr).expect("connected");
    let mut took = Vec::new();
    for _ in 0..PAGES {
        let began = Instant::now();
        connection.send(&encode(addr, "GET", "/messages?limit=50", &[], b"")).expect("sent");
        let page = connection.receive("GET").expect("a page");
        took.push(began.elapsed());
        assert_eq!((page.status(), page.json().as_array().map(Vec::len)), (200, Some(50)));
        if began.elapsed() > WAIT_MAX {
            break; // that is enough to fail
        }
    }
    [percentile(&took, 0.5), percentile(&took, 0.99)]
}

#[test]
fn twenty_searches_for_nothing_delay_no_page_and_end_with_their_clients() {
    let mut cluster = Cluster::prepare(1);
    scale::build(&cluster.node_dir(0), MESSAGES, |number| number % 4);
    cluster.start_all();
    let (addr, pid) = (cluster.node(0), cluster.process(0).id());
    pages(&cluster);
    let alone = pages(&cluster);

    // Half of them have a limit and would answer after two seconds; they search again.
    let stop = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        for i in 0..SEARCHES {
            let path = if i % 2 == 0 { NOTHING.to_owned() } else { format!("{NOTHING}&limit=50") };
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let mut connection = Connection::open(addr).expect("connected");
                    connection.send(&encode(addr, "GET", &path, &[], b"")).expect("sent");
                    assert_eq!(connection.receive("GET").expect("an answer").status(), 200);
                }
            });
        }
        let beside = pages(&cluster);
        stop.store(true, Ordering::SeqCst);
        beside
    });
    measure::say(&format!(
        "pages of 50, median and p99: {alone:.1?} alone, {beside:.1?} beside {SEARCHES} searches"
    ));
    assert!(beside[0] <= alone[0] * 3 + NOISE, "{alone:?} {beside:?}");
    assert!(beside[1] <= PAGE_MAX + NOISE, "{alone:?} {beside:?}");

    let searches: Vec<_> = (0..SEARCHES)
        .map(|i| {
            let mut connection = Connection::open(addr).expect("connected");
            let path = if i % 2 == 0 { NOTHING.to_owned() } else { format!("{NOTHING}&limit=50") };
            connection.send(&encode(addr, "GET", &path, &[], b"")).expect("sent");
            connection
        })
        .collect();
    let began = scale::cpu_time(pid);
    let is_searching = || scale::cpu_time(pid) > began + Duration::from_millis(50);
    eventually_blocking(SOON, "the searches to begin", is_searching);
    drop(searches);
    let left = Instant::now();
    eventually_blocking(SOON, "the time to end", || left.elapsed() >= END_MAX);
    let (since, before) = (Instant::now(), scale::cpu_time(pid));
    eventually_blocking(SOON, "a second", || since.elapsed() >= Duration::from_secs(1));
    let cost = scale::cpu_time(pid).saturating_sub(before);
    measure::say(&format!(
        "{SEARCHES} searches whose clients left cost {cost:?} of CPU time in the next second"
    ));
    assert!(cost <= Duration::from_millis(60), "{cost:?}");
}

#[test]
fn large_batches_delay_no_health_check() {
    const SENDERS: usize = 4;
    const CHECKS: usize = 100;
    let cluster = Cluster::start(1);
    let addr = cluster.node(0);
    // Refused lines: they cost the node what parsing costs, and nothing else.
    let line = format!(r#"{{"sender":"","recipient":"b","text":"{}"}}"#, "x\\n".repeat(270));
    let batch = format!("{line}\n").repeat(9_500);
    assert!(batch.len() > 7 << 20 && batch.len() < 8 << 20, "{}", batch.len());
    let stop = AtomicBool::new(false);
    let took = std::thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let answer = post(addr, "/messages", &[NDJSON], &batch);
                    assert_eq!(answer.status(), 200);
                }
            });
        }
        let mut connection = Connection::open(addr).expect("connected");
        let mut took = Vec::new();
        for _ in 0..CHECKS {
            let began = Instant::now();
            connection.send(&encode(addr, "GET", "/livez", &[], b"")).expect("sent");
            assert_eq!(connection.receive("GET").expect("an answer").status(), 200);
            took.push(began.elapsed());
            eventually_blocking(SOON, "a moment", || began.elapsed() >= Duration::from_millis(20));
        }
        stop.store(true, Ordering::SeqCst);
        took
    });
    let shares = [0.5, 0.9, 1.0].map(|share| percentile(&took, share));
    measure::say(&format!("/livez beside {SENDERS} senders of 8 MiB: median, p90, longest: {shares:.1?}"));
    assert!(shares[1] <= Duration::from_millis(30), "{shares:?}");
}
