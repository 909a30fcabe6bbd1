//! `GET /feed` and `list --follow`: whoever follows along, at whichever node, misses nothing.

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
use crate::support::servers::{check_refusal, get};

/// A cursor is at most this long.
const CURSOR_MAX: usize = 1024;
const SOON: Duration = Duration::from_secs(30);

fn numbers(messages: &[Value]) -> Vec<u64> {
    let mut numbers: Vec<_> = messages.iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_feed_gives_what_a_listing_lists_in_both_formats_and_resumes_on_every_node() {
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
            assert!(cursor.len() <= CURSOR_MAX);
            let node = cluster.node(read % 3);
            let (rest, same_end) = catch_up(node, &format!("?cursor={cursor}"), Format::Lines);
            assert_eq!(rest, all[read + 1..], "after {read}");
            assert_eq!(same_end, end, "on every node alike");
        }
        assert_eq!(catch_up(cluster.node(2), "", format).0, Vec::<Value>::new(), "from now on");
    }
}

#[test]
fn a_filter_is_of_the_feed_and_of_its_cursor() {
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
fn what_is_no_cursor_of_this_network_is_refused_in_words() {
    let cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..3);
    let node = cluster.node(0);
    let listed = get(node, "/messages");
    let position = listed.header("chatchain-position").expect("a position").to_owned();
    let (_, cursor) = catch_up(node, "?from=start", Format::Lines);
    let check = |query: &str, code, part| {
        check_refusal(query, &get(node, &format!("/feed?{query}")), 400, code, part);
    };
    check("cursor=abc", "cursor_invalid", "it is not one");
    check(&format!("cursor={}", &cursor[..cursor.len() - 4]), "cursor_invalid", "it is not one");
    check(&format!("cursor={position}"), "cursor_invalid", "position");
    check(&format!("cursor={}", "A".repeat(CURSOR_MAX + 4)), "cursor_invalid", "it is not one");
    check("from=yesterday", "invalid_query", "`from`");
    check(&format!("cursor={cursor}&from=start"), "invalid_query", "leave `from` out");
    check("limit=3", "invalid_query", "`limit` is unknown");
    let header = [("last-event-id", "nonsense")];
    let refused = http::request(node, "GET", "/feed?from=start", &header, b"").expect("answered");
    check_refusal("the header wins", &refused, 400, "cursor_invalid", "it is not one");
    let refused =
        http::request(node, "GET", "/messages", &[("chatchain-position", &cursor)], b"").expect("answered");
    check_refusal("a cursor is no position", &refused, 400, "invalid_query", "ChatChain-Position");
}

/// Whoever sends to one node and then reads at another finds what was sent, if it says so.
#[test]
fn a_position_makes_a_read_cover_what_was_written_elsewhere() {
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

/// A cursor refers to what all nodes know, so it stays short whatever lies behind.
#[test]
fn a_cursor_with_five_thousand_logs_behind_it_is_short_and_resumes_on_every_node() {
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
    assert!(longest <= CURSOR_MAX, "{longest}");
    // The entry that the cursors refer to comes to the others like any other.
    for (read, cursor) in &kept {
        for node in 0..3 {
            let (rest, end) = catch_up(cluster.node(node), &format!("?cursor={cursor}"), Format::Lines);
            assert_eq!(numbers(&rest), (*read..COUNT).collect::<Vec<_>>(), "after {read}, at node {node}");
            assert!(end.len() <= CURSOR_MAX);
        }
    }
    measure::say(&format!(
        "{COUNT} messages in 5,000 logs were followed with cursors of at most {longest} bytes"
    ));
}

/// With one more log than these, the time for a milestone has come, and everything can still be said without.
const LOGS_WITHOUT_MILESTONE: u64 = 12;

/// Two nodes with so many logs, and somebody who follows at the first.
fn before_the_milestone() -> (Cluster, Follower) {
    let mut cluster = Cluster::prepare(0);
    scale::build(&cluster.node_dir(0), LOGS_WITHOUT_MILESTONE, |number| number);
    cluster.join(&[]);
    cluster.join(&[0]);
    cluster.converge(SOON, LOGS_WITHOUT_MILESTONE);
    let follower = Follower::start(vec![cluster.node(0)], Format::Lines);
    eventually_blocking(SOON, "it follows", || follower.has_begun());
    (cluster, follower)
}

/// What a follower at the first node has for a cursor after this message, which is sent there.
fn cursor_after(cluster: &Cluster, follower: &Follower, number: u64) -> String {
    send(cluster.node(0), &numbered(number));
    eventually_blocking(SOON, "it is told", || follower.received().numbers.contains_key(&number));
    follower.received().cursor
}

#[test]
fn a_cursor_outlives_the_node_that_gave_it() {
    let (mut cluster, follower) = before_the_milestone();
    let numbers = LOGS_WITHOUT_MILESTONE..LOGS_WITHOUT_MILESTONE + 3;
    cluster.kill9(1);
    let cursors: Vec<_> = numbers.map(|number| cursor_after(&cluster, &follower, number)).collect();
    follower.end_with(0);
    cluster.kill9(0);
    cluster.start_node(1);
    for cursor in cursors {
        let (rest, _) = catch_up(cluster.node(1), &format!("?cursor={cursor}"), Format::Lines);
        assert_eq!(rest, Vec::<Value>::new(), "all that node 1 has was seen");
    }
}

#[test]
fn once_another_node_has_the_milestone_cursors_refer_to_it() {
    let (mut cluster, follower) = before_the_milestone();
    let first = cursor_after(&cluster, &follower, LOGS_WITHOUT_MILESTONE);
    let mut last = LOGS_WITHOUT_MILESTONE;
    let short = eventually_blocking(SOON, "a cursor that says little", || {
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

/// Nodes are killed and stopped in turn, somebody sends all the time, and eight follow.
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
    eventually_blocking(SOON, "all follow", || followers.iter().all(Follower::has_begun));
    eventually_blocking(SOON, "the commands follow", || files.iter().all(|file| file.exists()));
    let mut rng = SeededRng::new();
    let sent = send_amid_faults(&mut cluster, &mut rng, seconds, RATE);
    for follower in &followers {
        follower.end_with(sent.len() as u64);
    }
    // One that has them all ends with the next event.
    let last = *sent.last().expect("some") + 1;
    eventually_blocking(SOON, "everybody has everything", || {
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
        // Where it was last, there is nothing before the end on any node.
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
        eventually_blocking(SOON, "the command has everything", || {
            let seen = listed();
            sent.iter().all(|n| seen.contains(n))
        });
    }
    measure::say(&format!(
        "{} messages in {seconds} s to 8 followers, none missed; {opened} connections, {repeats} repeats",
        sent.len()
    ));
}

/// While the proxy lives, its readers have one feed, whatever happens behind it.
#[test]
fn a_feed_through_the_proxy_survives_the_nodes_behind_it_without_a_repeat() {
    let mut cluster = Cluster::start_with_proxy(3);
    let followers =
        [Format::Events, Format::Lines].map(|format| Follower::start(vec![cluster.proxy()], format));
    eventually_blocking(SOON, "all follow", || followers.iter().all(Follower::has_begun));
    let mut sent = 0;
    let has_all =
        |sent: u64| followers.iter().all(|follower| follower.received().numbers.len() as u64 == sent);
    for round in 0..6 {
        let (killed, other) = (round % 3, (round + 1) % 3);
        send_all(cluster.node(killed), sent..sent + 20);
        // The same by way of another node: maybe two copies of one message.
        (sent..sent + 10).for_each(|n| drop(http::post_json(cluster.node(other), "/messages", &numbered(n))));
        sent += 20;
        eventually_blocking(SOON, "all have it", || has_all(sent));
        cluster.kill9(killed);
        send_all(cluster.node(other), sent..sent + 20);
        sent += 20;
        eventually_blocking(SOON, "all have it without that node", || has_all(sent));
        cluster.start_node(killed);
    }
    for node in 0..3 {
        cluster.kill9(node);
    }
    eventually_blocking(SOON, "they hear that nobody answers", || {
        followers.iter().all(|follower| follower.received().comments > 0)
    });
    cluster.start_node(1);
    send_all(cluster.node(1), sent..sent + 20);
    eventually_blocking(SOON, "all have the rest", || has_all(sent + 20));
    for follower in &followers {
        let received = follower.received();
        let repeats = received.numbers.values().filter(|(times, _)| *times > 1).count();
        assert_eq!((received.opened, repeats), (1, 0));
    }
}

/// Two nodes that never exchange anything, as where a disk is full or a link is cut. Whichever is behind the feed falls behind.
#[test]
fn a_feed_through_the_proxy_leaves_a_node_that_gets_nothing_any_more() {
    let mut cluster = Cluster::prepare(0);
    for _ in 0..2 {
        cluster.join(&[]);
    }
    cluster.start_proxy();
    let follower = Follower::start(vec![cluster.proxy()], Format::Events);
    eventually_blocking(SOON, "it follows", || follower.has_begun());
    for (node, numbers) in [(1, 0..3), (0, 3..9)] {
        send_all(cluster.node(node), numbers.clone());
        let has_all = || follower.received().numbers.len() as u64 == numbers.end;
        eventually_blocking(SOON, "it has what the other node has", has_all);
    }
    let received = follower.received();
    let repeats = received.numbers.values().filter(|(times, _)| *times > 1).count();
    assert_eq!((received.opened, repeats), (1, 0));
}

/// Sends at a steady rate, to whichever node takes it, while every three seconds one is killed or stopped. Gives what
/// was acknowledged.
fn send_amid_faults(cluster: &mut Cluster, rng: &mut SeededRng, seconds: u64, rate: u64) -> Vec<u64> {
    let began = Instant::now();
    let (mut sent, mut next_fault) = (Vec::new(), Duration::from_secs(1));
    let mut hurt: Option<(usize, bool)> = None;
    for n in 0..seconds * rate {
        let due = began + Duration::from_secs(n) / u32::try_from(rate).expect("small");
        eventually_blocking(SOON, "its time has come", || Instant::now() >= due);
        if n == seconds * rate / 3 || n == seconds * rate * 2 / 3 {
            cluster.kill9_proxy();
            cluster.start_proxy();
        }
        if began.elapsed() >= next_fault {
            next_fault += Duration::from_millis(1_500);
            match hurt.take() {
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
                    hurt = Some((node, killed));
                }
            }
        }
        let out = hurt.map(|(node, _)| node);
        let first = usize::try_from(n % 3).expect("small");
        let node = (first..first + 3).map(|node| node % 3).find(|node| Some(*node) != out);
        send(cluster.node(node.expect("two are left")), &numbered(n));
        sent.push(n);
    }
    match hurt {
        Some((node, true)) => cluster.start_node(node),
        Some((node, false)) => cluster.process(node).thaw(),
        None => {}
    }
    sent
}

/// Whatever comes at once, who waits at the end gets all of it, with a cursor of its own for each message.
#[test]
fn a_burst_reaches_who_waits_and_each_of_its_cursors_is_the_message_s_own() {
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
            begun.recv().expect("it follows");
            reader
        });
        send_all(cluster.node(0), sent..want);
        for (reader, addr) in readers.into_iter().zip(servers) {
            let (mut found, cursors) = reader.join().expect("it reads");
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
