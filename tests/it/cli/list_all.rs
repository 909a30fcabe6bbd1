//! `list --all` and `send --file`: what one network lists, another one takes in, and nothing changes on the way.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::address::free_addr;
use crate::support::cluster::Cluster;
use crate::support::corpus::{MESSAGES, corpus};
use crate::support::eventually::eventually_blocking;
use crate::support::messages::{Sent, number, send, send_all};
use crate::support::process::Process;
use crate::support::relay::{LinkSettings, Relay};

const LONG: Duration = Duration::from_secs(300);

/// Runs a command of a cluster until it succeeds. Gives what it printed.
#[track_caller]
fn run(cluster: &Cluster, args: &[&str]) -> [String; 2] {
    let mut command = cluster.command();
    command.args(args);
    let done = Process::spawn("command", command).finish(LONG);
    assert_eq!(done.code, Some(0), "{args:?}: {done:?}");
    [done.stdout, done.stderr]
}

/// Messages that programs have changed or refused on their way: each field at its bounds, and characters that end lines
/// or strings, are invisible, or look like escapes.
fn odd_messages() -> Vec<Value> {
    let texts = [
        "\u{2028}a\u{2029}b\u{85}c\u{b}d\u{c}e".to_owned(),
        "\\u0000 \u{2400} \u{1} \u{7f} %00 \0".replace('\0', "\u{fffd}"),
        "x".repeat(16_384),
        "\u{1}".repeat(16_384),
        "\u{10ffff}".repeat(4_096),
        "\u{feff}".into(),
        " \t\n\r\n".into(),
        "\"}\n{\"sender\":\"x\"".into(),
        "e\u{301} \u{e9} \u{1f3f4}\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f} \u{202e}".into(),
    ];
    let name = "\u{1f600}".repeat(64);
    let of_text = |(i, text): (usize, &String)| {
        let mut message = json!({"sender": name, "recipient": "#\u{202e}b", "text": text});
        match i % 3 {
            0 => message["timestamp"] = 0.into(),
            1 => message["timestamp"] = 253_402_300_799_u64.into(),
            _ => {} // the server's
        }
        message
    };
    texts.iter().enumerate().map(of_text).collect()
}

/// The part of a listed line that the sender decides, and the mark of a timestamp that is not the sender's.
#[track_caller]
fn decided(line: &str) -> (&str, bool) {
    let is_servers = line.ends_with(",\"timestamp_from\":\"server\"}");
    let end = if is_servers { ",\"timestamp\":" } else { ",\"accepted_at\":" };
    (&line[..line.rfind(end).expect("a listed message")], is_servers)
}

#[test]
fn what_one_network_lists_another_one_takes_in_unchanged() {
    let (from, to) = (Cluster::start(1), Cluster::start(1));
    let servers = [&from, &to].map(|cluster| cluster.node(0).to_string());
    let odd = odd_messages();
    for message in &odd {
        assert_eq!(send(from.node(0), message), Sent::New, "{message}");
    }
    let mut count = odd.len() as u64;
    if let Some(real) = corpus() {
        std::fs::write(from.dir().join("real"), real).expect("a file");
        run(&from, &["send", "--file", "real", "--server", &servers[0]]);
        count += MESSAGES;
    }
    let list = ["list", "--all", "-o", "ndjson", "--server"];
    let exported = run(&from, &[&list[..], &[&servers[0]]].concat());
    assert_eq!((exported[0].lines().count() as u64, exported[1].as_str()), (count, ""));
    std::fs::write(to.dir().join("exported"), &exported[0]).expect("a file");
    for (accepted, duplicates) in [(count, 0), (0, count)] {
        let printed = run(&to, &["send", "--file", "exported", "-o", "json", "--server", &servers[1]]);
        let tally: Value = serde_json::from_str(&printed[0]).expect("a tally");
        let want = json!({"sent": count, "accepted": accepted, "duplicates": duplicates, "rejected": 0});
        assert_eq!(tally, want, "{}", printed[1]);
    }
    let [imported, _] = run(&to, &[&list[..], &[&servers[1]]].concat());
    assert_eq!(imported.lines().count() as u64, count);
    for (before, after) in exported[0].lines().zip(imported.lines()) {
        assert_eq!(decided(before), decided(after));
    }
}

#[test]
fn a_listing_that_breaks_goes_on_at_another_server_without_a_gap() {
    const COUNT: u64 = 5_000;
    let mut apart = Cluster::prepare(0);
    apart.join(&[]);
    apart.join(&[]);
    // The second node accepted the same messages in the opposite order.
    send_all(apart.node(0), 0..COUNT);
    send_all(apart.node(1), (0..COUNT).rev());
    let cut =
        LinkSettings { rate: 100 << 20, round_trip: Duration::ZERO, loss: 0, cut_after: Some(300 << 10) };
    let relay = Relay::start(cut, [apart.node(0), free_addr()]);
    let servers = ["--server", &relay.addr(0).to_string(), "--server", &apart.node(1).to_string()];
    for format in ["ndjson", "json", "table"] {
        let args = [&["list", "--all", "-o", format][..], &servers].concat();
        let [printed, said] = run(&apart, &args);
        let numbers: Vec<u64> = match format {
            "json" => {
                let array: Vec<Value> = serde_json::from_str(&printed).expect("an array");
                array.iter().map(number).collect()
            }
            "ndjson" => {
                printed.lines().map(|line| number(&serde_json::from_str(line).expect("JSON"))).collect()
            }
            _ => {
                let text = |line: &str| line.split("  message ").nth(1)?.split(' ').next()?.parse().ok();
                printed.lines().filter_map(text).collect()
            }
        };
        assert_eq!(numbers.len() as u64, COUNT, "{format}: {said}");
        assert_eq!(numbers.into_iter().collect::<BTreeSet<_>>(), (0..COUNT).collect(), "{format}: {said}");
        assert_eq!(said.matches("the listing was interrupted").count(), 1, "{said}");
    }
    // If no server gives the rest, the command fails. What was printed is no array.
    let mut command = apart.command();
    command.args(["list", "--all", "-o", "json", servers[0], servers[1]]);
    let done = Process::spawn("list", command).finish(LONG);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(
        done.stderr.contains("error: stopped after ") && !done.stdout.ends_with("]\n"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_list_with_a_cursor_that_a_signal_ends_says_so_and_can_be_continued() {
    const COUNT: u64 = 3_000;
    let cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..COUNT);
    let slow = LinkSettings { rate: 100 << 10, round_trip: Duration::ZERO, loss: 0, cut_after: None };
    let relay = Relay::start(slow, [cluster.node(0), free_addr()]);
    let list = |server: &str| {
        let mut command = cluster.command();
        command.args(["list", "--all", "-o", "ndjson", "--cursor-file", "seen", "--server", server]);
        Process::spawn("list", command)
    };
    let begun = list(&relay.addr(0).to_string());
    eventually_blocking(LONG, "some messages", || !begun.stdout().is_empty());
    begun.interrupt();
    let begun = begun.finish(LONG);
    assert_eq!((begun.code, begun.stderr.lines().count()), (Some(1), 1), "{}", begun.stderr);
    let rest = list(&cluster.node(0).to_string()).finish(LONG);
    let printed = [begun.stdout, rest.stdout].concat();
    let numbers = printed.lines().map(|line| number(&serde_json::from_str(line).expect("JSON")));
    assert_eq!(numbers.collect::<Vec<_>>(), (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn all_is_everything_that_matches_from_the_start_of_history() {
    let mut cluster = Cluster::start(1);
    let server = cluster.node(0).to_string();
    let list =
        |args: &[&str]| run(&cluster, &[&["list", "--server", &server, "-o", "ndjson"][..], args].concat());
    let numbers = |printed: &str| -> Vec<u64> {
        printed.lines().map(|line| number(&serde_json::from_str(line).expect("JSON"))).collect()
    };
    assert_eq!(run(&cluster, &["list", "--all", "--server", &server]), ["", "no messages match\n"]);
    assert_eq!(run(&cluster, &["list", "--all", "-o", "json", "--server", &server])[0], "[]\n");
    send_all(cluster.node(0), 0..200);
    assert_eq!(numbers(&list(&["--all"])[0]), (0..200).collect::<Vec<_>>());
    assert_eq!(
        numbers(&list(&["--all", "--text", "MESSAGE 11"])[0]),
        [11, 110, 111, 112, 113, 114, 115, 116, 117, 118, 119]
    );
    assert_eq!(numbers(&list(&[])[0]), (150..200).collect::<Vec<_>>());

    // With a cursor file, a further run goes on where the last one ended.
    let seen = cluster.dir().join("seen").display().to_string();
    let continued = ["--all", "--cursor-file", &seen];
    assert_eq!(numbers(&list(&continued)[0]), (0..200).collect::<Vec<_>>());
    send_all(cluster.node(0), 200..203);
    assert_eq!(numbers(&list(&continued)[0]), [200, 201, 202]);
    let mut command = cluster.command();
    command.args(["list", "--all", "--follow", "--text", "ge 20", "-o", "ndjson", "--server", &server]);
    let follower = Process::spawn("list", command);
    let printed = || numbers(&follower.stdout());
    eventually_blocking(LONG, "all messages", || printed() == [20, 200, 201, 202]);
    send_all(cluster.node(0), 203..205);
    eventually_blocking(LONG, "new ones", || printed() == [20, 200, 201, 202, 203, 204]);
    drop(follower);

    let limited = cluster.cli(&["list", "--all", "--limit", "7"]);
    assert_eq!(limited.code, Some(2), "{limited:?}");
    cluster.stop(0);
    let gone = cluster.cli(&["list", "--all", "--server", &server]);
    assert_eq!((gone.code, gone.stderr.lines().count()), (Some(5), 1), "{gone:?}");
}
