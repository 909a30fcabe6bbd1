//! `GET /feed` and `list --follow`: a follower misses no message, and its cursor is valid on every node.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::scale;
use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::feed::{Event, Follower, Format, catch_up, read};
use crate::support::http;
use crate::support::measure;
use crate::support::messages::{number, numbered, send, send_all};
use crate::support::process::Process;
use crate::support::rng::SeededRng;
use crate::support::servers::{Servers, check_refusal, get};

const CURSOR_BYTES_MAX: usize = 1024;
const SOON: Duration = Duration::from_secs(30);

fn numbers(messages: &[Value]) -> Vec<u64> {
    let mut numbers: Vec<_> = messages.iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_feed_equals_the_listing_in_both_formats_and_resumes_on_every_node() {
    let cluster = Cluster::start(3);
    for n in 0..30 {
        send(cluster.node(usize::try_from(n % 3).expect("small")), &numbered(n));
    }
    cluster.converge(SOON, 30);
    for format in [Format::Events, Format::Lines] {
        let (all, end) = catch_up(cluster.node(0), "?from=start", format);
        assert_eq!(all, get(cluster.node(1), "/messages").json().as_array().expect("a list").clone());
        let mut cursors = Vec::new();
        read(cluster.node(0), "?from=start", format, |Event { cursor, .. }| {
            cursors.push(cursor);
            cursors.len() < 30
        })
        .expect("a feed");
        for (read, cursor) in cursors.iter().enumerate() {
            assert!(cursor.len() <= CURSOR_BYTES_MAX);
            let node = cluster.node(read % 3);
            let (rest, same_end) = catch_up(node, &format!("?cursor={cursor}"), Format::Lines);
            assert_eq!(rest, all[read + 1..], "after {read}");
            assert_eq!(same_end, end, "all nodes give the same cursor");
        }
        assert_eq!(
            catch_up(cluster.node(2), "", format).0,
            Vec::<Value>::new(),
            "without a cursor a feed starts at the end"
        );
    }
}

#[test]
fn the_head_of_a_feed_has_a_position_and_forbids_buffering() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        for query in ["", "?from=start"] {
            let head = read(addr, query, Format::Events, |_| false).expect("a feed");
            assert_eq!(head.header("x-accel-buffering"), Some("no"), "{server} {query}");
            assert!(head.header("chatchain-position").is_some(), "{server} {query}: {head:?}");
        }
    }
}

#[test]
fn a_filter_applies_to_the_feed_and_is_part_of_its_cursor() {
    let cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..70);
    let node = cluster.node(0);
    let check = |query: &str, wanted: &dyn Fn(u64) -> bool| {
        let (found, cursor) = catch_up(node, &format!("?from=start&{query}"), Format::Lines);
        assert_eq!(numbers(&found), (0..70).filter(|n| wanted(*n)).collect::<Vec<_>>(), "{query}");
        assert_eq!(
            catch_up(node, &format!("?cursor={cursor}&{query}"), Format::Events).0,
            Vec::<Value>::new()
        );
        cursor
    };
    let cursor = check("sender=user3", &|n| n % 7 == 3);
    check("recipient=user1", &|n| n % 5 == 1);
    check("user=user2", &|n| n % 7 == 2 || n % 5 == 2);
    check("user=user2&with=user4", &|n| (n % 7 == 2 && n % 5 == 4) || (n % 7 == 4 && n % 5 == 2));
    let refused = get(node, &format!("/feed?cursor={cursor}&sender=user4"));
    check_refusal("another filter", &refused, 400, "cursor_invalid", "another filter");
}

#[test]
fn an_invalid_cursor_is_refused_with_its_reason() {
    let cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..3);
    let node = cluster.node(0);
    let listed = get(node, "/messages");
    let position = listed.header("chatchain-position").expect("a position").to_owned();
    let (_, cursor) = catch_up(node, "?from=start", Format::Lines);
    let check = |query: &str, code, part| {
        check_refusal(query, &get(node, &format!("/feed?{query}")), 400, code, part);
    };
    check("cursor=abc", "cursor_invalid", "it is malformed or incomplete");
    check(
        &format!("cursor={}", &cursor[..cursor.len() - 4]),
        "cursor_invalid",
        "it is malformed or incomplete",
    );
    check(&format!("cursor={position}"), "cursor_invalid", "position");
    check(
        &format!("cursor={}", "A".repeat(CURSOR_BYTES_MAX + 4)),
        "cursor_invalid",
        "it is malformed or incomplete",
    );
    check("from=yesterday", "invalid_query", "`from`");
    check(&format!("cursor={cursor}&from=start"), "invalid_query", "leave `from` out");
    check("limit=3", "invalid_query", "`limit` is unknown");
    let header = [("last-event-id", "nonsense")];
    let refused = http::request(node, "GET", "/feed?from=start", &header, b"").expect("answered");
    check_refusal("the header wins", &refused, 400, "cursor_invalid", "it is malformed or incomplete");
    let refused =
        http::request(node, "GET", "/messages", &[("chatchain-position", &cursor)], b"").expect("answered");
    check_refusal("a cursor as a position", &refused, 400, "invalid_query", "ChatChain-Position");
}

/// A client that passes the position of its send finds the message on every node.
#[test]
fn a_read_with_a_position_shows_writes_to_other_nodes() {
    let cluster = Cluster::start(3);
    for n in 0..60 {
        let sent = http::post_json(cluster.node(0), "/messages", &numbered(n)).expect("answered");
        let position = sent.header("chatchain-position").expect("a position");
        let other = cluster.node(1 + usize::try_from(n % 2).expect("small"));
        let header = [("chatchain-position", position)];
        let listed = http::request(other, "GET", "/messages?limit=1", &header, b"").expect("answered");
        assert_eq!(numbers(&crate::support::servers::array(&listed)), [n]);
    }
}

/// A cursor refers to a frontier snapshot that all nodes have, so its length does not grow with the number of logs.
#[test]
fn a_cursor_over_five_thousand_logs_is_short_and_resumes_on_every_node() {
    const COUNT: u64 = 20_000;
    let mut cluster = Cluster::prepare(0);
    scale::build(&cluster.node_dir(0), COUNT, |number| number / (COUNT / 5_000));
    cluster.join(&[]);
    cluster.join(&[0]);
    cluster.join(&[0, 1]);
    cluster.converge(Duration::from_secs(60), COUNT);
    let (mut longest, mut kept) = (0, Vec::new());
    let mut count = 0;
    read(cluster.node(0), "?from=start", Format::Lines, |Event { cursor, kind, .. }| {
        longest = longest.max(cursor.len());
        count += u64::from(kind == "message");
        if [100, COUNT / 2, COUNT].contains(&count) && kind == "message" {
            kept.push((count, cursor));
        }
        kind != "caught-up"
    })
    .expect("a feed");
    assert_eq!((count, kept.len()), (COUNT, 3));
    assert!(longest <= CURSOR_BYTES_MAX, "{longest}");
    // The other nodes receive the snapshot that the cursors refer to as an ordinary entry.
    for (read, cursor) in &kept {
        for node in 0..3 {
            let (rest, end) = catch_up(cluster.node(node), &format!("?cursor={cursor}"), Format::Lines);
            assert_eq!(numbers(&rest), (*read..COUNT).collect::<Vec<_>>(), "after {read}, at node {node}");
            assert!(end.len() <= CURSOR_BYTES_MAX);
        }
    }
    measure::say(&format!(
        "{COUNT} messages in 5,000 logs were followed with cursors of at most {longest} bytes"
    ));
}

/// The largest number of logs for which a node writes no frontier snapshot, and a cursor lists every log itself.
const LOGS_WITHOUT_SNAPSHOT: u64 = 12;

/// Two nodes with the most logs that need no snapshot, and a follower at the first.
fn before_the_snapshot() -> (Cluster, Follower) {
    let mut cluster = Cluster::prepare(0);
    scale::build(&cluster.node_dir(0), LOGS_WITHOUT_SNAPSHOT, |number| number);
    cluster.join(&[]);
    cluster.join(&[0]);
    cluster.converge(SOON, LOGS_WITHOUT_SNAPSHOT);
    let follower = Follower::start(vec![cluster.node(0)], Format::Lines);
    eventually_blocking(SOON, "the follower to start", || follower.has_begun());
    (cluster, follower)
}

/// Sends this message to the first node. Gives the cursor of the follower there after it has the message.
fn cursor_after(cluster: &Cluster, follower: &Follower, number: u64) -> String {
    send(cluster.node(0), &numbered(number));
    eventually_blocking(SOON, "the follower to get the message", || {
        follower.received().numbers.contains_key(&number)
    });
    follower.received().cursor
}

#[test]
fn a_cursor_stays_valid_after_its_node_is_gone() {
    let (mut cluster, follower) = before_the_snapshot();
    let numbers = LOGS_WITHOUT_SNAPSHOT..LOGS_WITHOUT_SNAPSHOT + 3;
    cluster.kill9(1);
    let cursors: Vec<_> = numbers.map(|number| cursor_after(&cluster, &follower, number)).collect();
    follower.end_with(0);
    cluster.kill9(0);
    cluster.start_node(1);
    for cursor in cursors {
        let (rest, _) = catch_up(cluster.node(1), &format!("?cursor={cursor}"), Format::Lines);
        assert_eq!(rest, Vec::<Value>::new(), "the cursor covers all messages of node 1");
    }
}

#[test]
fn cursors_refer_to_a_snapshot_once_another_node_has_it() {
    let (mut cluster, follower) = before_the_snapshot();
    let first = cursor_after(&cluster, &follower, LOGS_WITHOUT_SNAPSHOT);
    let mut last = LOGS_WITHOUT_SNAPSHOT;
    let short = eventually_blocking(SOON, "a short cursor", || {
        last += 1;
        let cursor = cursor_after(&cluster, &follower, last);
        (cursor.len() * 2 < first.len()).then_some(cursor)
    });
    follower.end_with(0);
    let rest = last + 1..last + 4;
    send_all(cluster.node(1), rest.clone());
    cluster.kill9(0);
    let (found, _) = catch_up(cluster.node(1), &format!("?cursor={short}"), Format::Lines);
    assert!(numbers(&found).ends_with(&rest.collect::<Vec<_>>()), "{found:?}");
}

/// Eight followers read while nodes are killed and paused in turn and messages arrive at a steady rate.
#[test]
fn followers_miss_nothing_while_nodes_are_killed_and_stopped() {
    const RATE: u64 = 200;
    let seconds = std::env::var("CHATCHAIN_FEED_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(15);
    let mut cluster = Cluster::start_with_proxy(3);
    let nodes: Vec<_> = (0..3).map(|i| cluster.node(i)).collect();
    let turned = |by: usize| nodes.iter().cycle().skip(by).take(3).copied().collect::<Vec<_>>();
    let followers: Vec<_> = (0..6)
        .map(|i| match i {
            0..3 => Follower::start(vec![cluster.proxy()], Format::Events),
            _ => Follower::start(turned(i), Format::Lines),
        })
        .collect();
    let files = [cluster.dir().join("seen-0"), cluster.dir().join("seen-1")];
    let mut commands: Vec<Process> = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let mut command = cluster.command();
        command.args(["list", "--follow", "-q", "-o", "ndjson", "--cursor-file"]).arg(file);
        for node in turned(i) {
            command.arg("--server").arg(node.to_string());
        }
        commands.push(Process::spawn(&format!("list-{i}"), command));
    }
    eventually_blocking(SOON, "all followers to start", || followers.iter().all(Follower::has_begun));
    eventually_blocking(SOON, "the commands to start", || files.iter().all(|file| file.exists()));
    let mut rng = SeededRng::new();
    let sent = send_amid_faults(&mut cluster, &mut rng, seconds, RATE);
    for follower in &followers {
        follower.end_with(sent.len() as u64);
    }
    // A follower that has all messages stops at the next event.
    let last = *sent.last().expect("some") + 1;
    eventually_blocking(SOON, "all followers to have all messages", || {
        followers.iter().all(|follower| follower.received().numbers.len() as u64 >= sent.len() as u64)
    });
    send(cluster.node(0), &numbered(last));
    let (mut repeats, mut opened) = (0, 0);
    for follower in &followers {
        let received = follower.received();
        let missed: Vec<_> = sent.iter().filter(|n| !received.numbers.contains_key(n)).collect();
        assert!(missed.is_empty(), "missed {missed:?}");
        repeats += received.numbers.values().map(|(times, _)| times - 1).sum::<u64>();
        opened += received.opened;
        // From its last cursor on, no node has a message that the follower lacks.
        for node in &nodes {
            let (rest, _) = catch_up(*node, &format!("?cursor={}", received.cursor), Format::Lines);
            assert!(numbers(&rest).iter().all(|n| *n >= last || received.numbers.contains_key(n)));
        }
    }
    for command in commands {
        let listed = || {
            let text = command.stdout();
            let seen: std::collections::BTreeSet<u64> = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .map(|line| number(&line))
                .collect();
            seen
        };
        eventually_blocking(SOON, "the command to have all messages", || {
            let seen = listed();
            sent.iter().all(|n| seen.contains(n))
        });
    }
    measure::say(&format!(
        "{} messages in {seconds} s to 8 followers, none missed; {opened} connections, {repeats} repeats",
        sent.len()
    ));
}

/// A reader at the proxy keeps one connection while nodes behind the proxy fail.
#[test]
fn a_proxy_feed_survives_its_nodes_without_a_repeat() {
    let mut cluster = Cluster::start_with_proxy(3);
    let followers =
        [Format::Events, Format::Lines].map(|format| Follower::start(vec![cluster.proxy()], format));
    eventually_blocking(SOON, "all followers to start", || followers.iter().all(Follower::has_begun));
    let mut sent = 0;
    let has_all =
        |sent: u64| followers.iter().all(|follower| follower.received().numbers.len() as u64 == sent);
    for round in 0..6 {
        let (killed, other) = (round % 3, (round + 1) % 3);
        send_all(cluster.node(killed), sent..sent + 20);
        // Also to another node, so that there may be two copies of a message.
        (sent..sent + 10).for_each(|n| drop(http::post_json(cluster.node(other), "/messages", &numbered(n))));
        sent += 20;
        eventually_blocking(SOON, "all followers to have the messages", || has_all(sent));
        cluster.kill9(killed);
        send_all(cluster.node(other), sent..sent + 20);
        sent += 20;
        eventually_blocking(SOON, "all followers to have the messages without that node", || has_all(sent));
        cluster.start_node(killed);
    }
    for node in 0..3 {
        cluster.kill9(node);
    }
    eventually_blocking(SOON, "comments while no node answers", || {
        followers.iter().all(|follower| follower.received().comments > 0)
    });
    cluster.start_node(1);
    send_all(cluster.node(1), sent..sent + 20);
    eventually_blocking(SOON, "all followers to have the last messages", || has_all(sent + 20));
    for follower in &followers {
        let received = follower.received();
        let repeats = received.numbers.values().filter(|(times, _)| *times > 1).count();
        assert_eq!((received.opened, repeats), (1, 0));
    }
}

/// Two nodes that never exchange, as if a disk were full or a link cut. The node that the proxy reads from falls
/// behind.
#[test]
fn a_proxy_feed_leaves_a_node_that_receives_nothing_new() {
    let mut cluster = Cluster::prepare(0);
    for _ in 0..2 {
        cluster.join(&[]);
    }
    cluster.start_proxy();
    let follower = Follower::start(vec![cluster.proxy()], Format::Events);
    eventually_blocking(SOON, "the follower to start", || follower.has_begun());
    for (node, numbers) in [(1, 0..3), (0, 3..9)] {
        send_all(cluster.node(node), numbers.clone());
        let has_all = || follower.received().numbers.len() as u64 == numbers.end;
        eventually_blocking(SOON, "the follower to have the messages of this node", has_all);
    }
    let received = follower.received();
    let repeats = received.numbers.values().filter(|(times, _)| *times > 1).count();
    assert_eq!((received.opened, repeats), (1, 0));
}

/// Sends at a steady rate to nodes that are up, while every three seconds a node is killed or paused. Gives the numbers
/// of the acknowledged messages.
fn send_amid_faults(cluster: &mut Cluster, rng: &mut SeededRng, seconds: u64, rate: u64) -> Vec<u64> {
    let began = Instant::now();
    let (mut sent, mut next_fault) = (Vec::new(), Duration::from_secs(1));
    // A node with a fault, and whether it was killed rather than paused.
    let mut faulty: Option<(usize, bool)> = None;
    for n in 0..seconds * rate {
        let due = began + Duration::from_secs(n) / u32::try_from(rate).expect("small");
        eventually_blocking(SOON, "the time of the next send", || Instant::now() >= due);
        if n == seconds * rate / 3 || n == seconds * rate * 2 / 3 {
            cluster.kill9_proxy();
            cluster.start_proxy();
        }
        if began.elapsed() >= next_fault {
            next_fault += Duration::from_millis(1_500);
            match faulty.take() {
                Some((node, true)) => cluster.start_node(node),
                Some((node, false)) => cluster.process(node).thaw(),
                None => {
                    let (node, killed) =
                        (usize::try_from(rng.within(0..3)).expect("small"), rng.within(0..2) == 0);
                    if killed {
                        cluster.kill9(node);
                    } else {
                        cluster.process(node).freeze();
                    }
                    faulty = Some((node, killed));
                }
            }
        }
        let out = faulty.map(|(node, _)| node);
        let first = usize::try_from(n % 3).expect("small");
        let node = (first..first + 3).map(|node| node % 3).find(|node| Some(*node) != out);
        send(cluster.node(node.expect("two are left")), &numbered(n));
        sent.push(n);
    }
    match faulty {
        Some((node, true)) => cluster.start_node(node),
        Some((node, false)) => cluster.process(node).thaw(),
        None => {}
    }
    sent
}

/// Followers that wait at the end of the feed get every message of a burst, each with its own cursor.
#[test]
fn a_burst_reaches_waiting_followers_with_one_cursor_per_message() {
    let cluster = Cluster::start_with_proxy(2);
    let servers = [cluster.node(0), cluster.proxy(), cluster.node(1)];
    let mut sent = 0;
    for burst in [300, 2_000, 2_049, 6_000] {
        let want = sent + burst;
        let readers = servers.map(|addr| {
            let (tell, begun) = std::sync::mpsc::sync_channel(2);
            let reader = std::thread::spawn(move || {
                let (mut found, mut cursors) = (Vec::new(), Vec::new());
                read(addr, "", Format::Lines, |event| {
                    match event.kind.as_str() {
                        "message" => {
                            found.push(number(&event.message));
                            cursors.push(event.cursor);
                        }
                        _ => drop(tell.try_send(())),
                    }
                    (found.len() as u64) < burst
                })
                .expect("a feed");
                (found, cursors)
            });
            begun.recv().expect("the reader started");
            reader
        });
        send_all(cluster.node(0), sent..want);
        for (reader, addr) in readers.into_iter().zip(servers) {
            let (mut found, cursors) = reader.join().expect("the reader has read all");
            for at in [0, burst / 2, burst - 1] {
                let at = usize::try_from(at).expect("small");
                let (rest, _) = catch_up(cluster.node(0), &format!("?cursor={}", cursors[at]), Format::Lines);
                let mut rest = numbers(&rest);
                rest.extend(&found[..=at]);
                rest.sort_unstable();
                assert_eq!(rest, (sent..want).collect::<Vec<_>>(), "after {at} of {burst} at {addr}");
            }
            found.sort_unstable();
            assert_eq!(found, (sent..want).collect::<Vec<_>>(), "{burst} at {addr}");
        }
        sent = want;
    }
}
