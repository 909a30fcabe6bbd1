//! The command line as people and scripts use it: exit codes, error messages, and the split of standard output and
//! error.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{
    address::free_addr,
    cluster::Cluster,
    eventually::eventually_blocking,
    process::{Finished, Process, chatchain, move_clock, run},
};

const LONG: Duration = Duration::from_secs(20);

/// Runs the program in a directory of its own with this `config.toml`.
fn alone(config: Option<&str>, args: &[&str]) -> Finished {
    let dir = tempfile::tempdir().expect("a temporary directory");
    if let Some(config) = config {
        std::fs::write(dir.path().join("config.toml"), config).expect("a config.toml");
    }
    let mut command = chatchain(dir.path());
    command.args(args);
    run(command, "")
}

/// The program exits with this code, prints nothing on standard output, and these parts on standard error.
#[track_caller]
fn check(config: Option<&str>, args: &[&str], code: i32, parts: &[&str]) {
    let done = alone(config, args);
    assert_eq!(done.code, Some(code), "{done:?}");
    assert_eq!(done.stdout, "");
    for part in parts {
        assert!(done.stderr.contains(part), "{:?} lacks {part:?}", done.stderr);
    }
    for dump in ["panicked", "Error {", "BACKTRACE", "Location:"] {
        assert!(!done.stderr.contains(dump), "{:?} is a debug dump", done.stderr);
    }
}

#[test]
fn wrong_usage_is_code_2() {
    check(None, &["send", "hi"], 2, &["--to"]);
    check(None, &["send", "--to", "a", "--file", "x"], 2, &["--to", "--file"]);
    check(None, &["list", "--limit", "0"], 2, &["--limit"]);
    check(None, &["status", "--chekc"], 2, &["--check"]);
    check(None, &["send", "--room", "", "hi"], 2, &["--room"]);
    check(None, &["list", "--room", ""], 2, &["--room"]);
    check(None, &["lits"], 2, &["list"]);
    check(None, &["list", "--since", "yesterday"], 2, &["--since", "2h"]);
    check(None, &["node"], 2, &["--node-id"]);
    check(None, &["node", "--node-id", "9"], 2, &["no node 9", "--listen"]);
    check(None, &["node", "--node-id", "0", "--listen", "0.0.0.0:0"], 2, &["--advertise"]);
    check(None, &["list", "--server", "nonsense"], 2, &["--server", "nonsense", "host:port"]);
}

#[test]
fn wrong_configuration_is_code_2_and_names_its_line() {
    check(Some("\nnetwrk = 'x'"), &["list"], 2, &["config.toml line 2", "`netwrk`", "`network`"]);
    check(Some("[node]\nsync_interval = 'soon'"), &["node", "--node-id", "0"], 2, &["line 2", "500ms"]);
    check(Some("network = "), &["list"], 2, &["config.toml line 1", "TOML"]);
    check(None, &["list", "--config", "missing.toml"], 2, &["missing.toml"]);
}

#[test]
fn a_key_is_made_and_one_that_cannot_be_used_is_code_2() {
    let make = |args: &[&str]| alone(None, &[&["key"], args].concat());
    let (one, two) = (make(&[]), make(&[]));
    assert_eq!((one.code, one.stderr.as_str()), (Some(0), ""));
    assert!(one.stdout.trim_end().bytes().all(|b| b.is_ascii_hexdigit()), "{one:?}");
    assert_eq!((one.stdout.len(), one.stdout == two.stdout), (65, false));
    let json: Value = serde_json::from_str(&make(&["-o", "json"]).stdout).expect("JSON");
    assert_eq!(json["key"].as_str().map(str::len), Some(64));
    assert!(make(&["--help"]).stdout.contains("umask 077; chatchain key > network.key"));

    let config = "key_file = 'network.key'";
    for args in [&["list"] as &[&str], &["node", "--node-id", "0"], &["proxy"], &["up"]] {
        check(Some(config), args, 2, &["cannot read the key file network.key", "line 1", "chatchain key"]);
    }
    assert_eq!(
        alone(Some(config), &["key"]).code,
        Some(0),
        "`chatchain key` must work before the key file exists"
    );
    assert_eq!(alone(Some(config), &["verify"]).code, alone(None, &["verify"]).code);
}

#[test]
fn help_and_version_are_data_and_success() {
    for command in [&["--help"] as &[&str], &["send", "--help"], &["--version"], &["up", "--help"]] {
        let done = alone(None, command);
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{command:?}");
        assert!(done.stdout.contains("chatchain"), "{command:?}");
    }
}

#[test]
fn an_unreachable_server_is_code_5_with_advice() {
    let server = free_addr().to_string();
    for command in [&["send", "--to", "a", "--from", "b", "hi"] as &[&str], &["list"], &["status"]] {
        let args: Vec<_> = command.iter().copied().chain(["--server", &server]).collect();
        check(None, &args, 5, &[&server, "refused", "chatchain up", "--server"]);
    }
    let config = format!("nodes = []\n[proxy]\nlisten = '{server}'");
    check(Some(&config), &["list"], 5, &[&server]);
}

#[test]
fn an_import_to_an_unreachable_server_fails_at_once() {
    let server = free_addr().to_string();
    let mut command = chatchain(&std::env::temp_dir());
    command.args(["send", "--file", "-", "--server", &server]);
    let done = run(command, r#"{"sender":"a","recipient":"b","text":"c","timestamp":1}"#);
    assert_eq!(done.code, Some(5), "{done:?}");
}

#[test]
fn a_node_that_cannot_start_says_why() {
    let cluster = Cluster::start(1);
    let taken = cluster.node(0).to_string();
    check(None, &["node", "--node-id", "1", "--listen", &taken], 1, &[&taken, "another process", "--listen"]);

    let data_dir = cluster.data_dir();
    let data_dir = data_dir.to_str().expect("a plain path");
    let other = free_addr().to_string();
    let args = ["node", "--node-id", "0", "--listen", &other, "--data-dir", data_dir];
    check(None, &args, 1, &[data_dir, "in use by another process"]);

    let file = cluster.dir().join("file");
    std::fs::write(&file, "").expect("a file");
    let file = file.to_str().expect("a plain path");
    let args = ["node", "--node-id", "0", "--listen", &other, "--data-dir", file];
    check(None, &args, 1, &[file]);
}

#[test]
fn send_prints_the_id_and_list_the_message() {
    let cluster = Cluster::start(1);
    let sent = cluster.cli(&["send", "--from", "user1", "--to", "user2", "hi"]);
    assert_eq!(sent.code, Some(0), "{sent:?}");
    let id = sent.stdout.trim();
    let piped = cluster
        .cli_with_input(&["send", "--from", "user1", "--room", "ops", "-", "-o", "json"], b"two\nlines\n");
    let answer: Value = serde_json::from_str(&piped.stdout).expect("JSON");
    assert_eq!((&answer["recipient"], &answer["text"]), (&"#ops".into(), &"two\nlines".into()));

    let listed = cluster.cli(&["list"]);
    let texts: Vec<_> = listed.stdout.lines().map(|line| line.split_once("  ").expect("columns").1).collect();
    assert_eq!(texts[..2], ["user1 -> user2  hi", "user1 -> #ops   two"]);
    assert_eq!((texts.len(), texts[2].trim_start()), (3, "lines"));
    let listed = cluster.cli(&["list", "--room", "ops", "--since", "1h", "-o", "json"]);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["id"]), (Some(1), &answer["id"]));
    let listed = cluster.cli(&["list", "--to", "user2", "-o", "ndjson"]);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("one line");
    assert_eq!(listed["id"], id);
}

#[test]
fn times_are_local_or_in_utc() {
    let cluster = Cluster::start(1);
    let message = ["send", "--from", "ana", "--to", "ben", "--timestamp", "1697913600", "hi"];
    assert_eq!(cluster.cli(&message).code, Some(0));
    let list = |zone: &str, more: &[&str]| {
        let mut command = cluster.command();
        command.args(["--server", &cluster.node(0).to_string(), "list"]).args(more).env("TZ", zone);
        run(command, "").stdout
    };
    // A zone of nine hours east, as POSIX writes it: no file says more about it.
    assert_eq!(list("JST-9", &[]), "2023-10-22 03:40:00  ana -> ben  hi\n");
    assert_eq!(list("JST-9", &["--utc"]), "2023-10-21 18:40:00Z  ana -> ben  hi\n");
}

#[test]
fn a_text_search_matches_alike_in_history_and_feed() {
    let cluster = Cluster::start(1);
    let search = ["list", "--text", "STRASSE ΣΟΦΟΣ", "-o", "ndjson"];
    let search_on = [&search[..], &["--cursor-file", "seen"]].concat();
    assert_eq!(cluster.cli(&search_on).stdout, "");
    for text in ["Straße σοφος", "strasse σοφοσ", "Straße σοφ"] {
        assert_eq!(cluster.cli(&["send", "--from", "a", "--to", "b", text]).code, Some(0));
    }
    let found = cluster.cli(&search).stdout;
    assert_eq!(found.lines().count(), 2, "{found}");
    assert_eq!(cluster.cli(&search_on).stdout, found);
    let (composed, decomposed) = ("caf\u{e9}", "cafe\u{301}");
    for text in [composed, decomposed] {
        assert_eq!(cluster.cli(&["send", "--from", "a", "--to", "b", text]).code, Some(0));
    }
    for wanted in ["CAF\u{c9}", "CAFE\u{301}", composed, decomposed] {
        let found = cluster.cli(&["list", "--text", wanted, "-o", "ndjson"]).stdout;
        assert_eq!(found.lines().count(), 2, "{wanted}: {found}");
    }
}

#[test]
fn a_command_that_waits_for_news_ends_with_its_reader() {
    let cluster = Cluster::start(1);
    assert_eq!(cluster.cli(&["send", "--from", "a", "--to", "b", "hi"]).code, Some(0));
    let server = cluster.node(0).to_string();
    for args in [&["list", "--follow", "--server", &server][..], &["status", "--watch", "--server", &server]]
    {
        let mut command = chatchain(cluster.dir());
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("started");
        let mut reader = BufReader::new(child.stdout.take().expect("piped"));
        reader.read_line(&mut String::new()).expect("a line");
        drop(reader);
        let ended = eventually_blocking(LONG, "the end", || child.try_wait().expect("our own child"));
        assert_eq!(ended.code(), Some(0), "{args:?}");
    }
}

#[test]
fn message_text_cannot_control_the_terminal() {
    let cluster = Cluster::start(1);
    let evil = "\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{202e}\r\u{7f}";
    let sent = cluster.cli(&["send", "--from", "a", "--to", "b", evil]);
    assert_eq!(sent.code, Some(0), "{sent:?}");
    for format in ["table", "json", "ndjson"] {
        let listed = cluster.cli(&["list", "-o", format]);
        let is_control_code = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!listed.stdout.contains(is_control_code), "{format}: {:?}", listed.stdout);
        assert!(listed.stdout.contains("31m"), "{format}: {:?}", listed.stdout);
    }
}

#[test]
fn a_sender_that_nobody_sees_is_refused_by_the_server_and_before_a_file_is_sent() {
    let cluster = Cluster::start(1);
    let sent = cluster.cli(&["send", "--from", "\u{200b}\u{2060}", "--to", "b", "hi"]);
    assert_eq!((sent.code, sent.stdout.as_str()), (Some(1), ""), "{sent:?}");
    assert!(sent.stderr.contains("`sender` has only invisible characters"), "{sent:?}");
    let line = "{\"sender\":\"\u{3164}\",\"recipient\":\"b\",\"text\":\"c\"}";
    let mut command = chatchain(cluster.dir());
    command.args(["send", "--file", "-", "--server", &free_addr().to_string()]);
    let refused = run(command, line);
    assert_eq!(refused.code, Some(1), "no server is asked: {refused:?}");
    assert!(refused.stderr.contains("line 1 is rejected: `sender` has only invisible"), "{refused:?}");
}

#[test]
fn the_same_id_is_one_message_and_another_content_is_refused() {
    let cluster = Cluster::start(1);
    let id = "00000000-0000-0000-0000-000000000007";
    let send =
        |text: &str| cluster.cli(&["send", "--from", "a", "--to", "b", "--id", id, text, "-o", "json"]);
    for duplicate in [false, true] {
        let answer: Value = serde_json::from_str(&send("hi").stdout).expect("JSON");
        assert_eq!(answer["duplicate"], duplicate);
    }
    let refused = send("ho");
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
    assert!(refused.stderr.contains("id_conflict"), "{}", refused.stderr);
    let refused = cluster.cli(&["send", "--from", "a", "--to", "b", "--timestamp", "1697913600000", "hi"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("milliseconds"), "{}", refused.stderr);
}

#[test]
fn a_file_is_imported_once_however_often_it_is_sent() {
    let cluster = Cluster::start(1);
    let message =
        |text: &str| format!(r##"{{"sender":"a","recipient":"#r","text":"{text}","timestamp":1}}"##);
    let lines: Vec<_> = (0..2500).map(|n| message(&(n / 2).to_string())).collect();
    let file = cluster.dir().join("messages.ndjson");
    std::fs::write(&file, lines.join("\n")).expect("a file");
    let file = file.to_str().expect("a plain path");

    let first = cluster.cli(&["send", "--file", file]);
    assert_eq!(first.stdout, "2,500 sent: 2,500 accepted, 0 duplicates, 0 rejected\n", "{first:?}");
    assert_eq!((first.code, first.stderr.as_str()), (Some(0), ""));
    let again = cluster.cli_with_input(&["send", "--file", "-", "-o", "json"], lines.join("\r\n").as_bytes());
    let counts: Value = serde_json::from_str(&again.stdout).expect("JSON");
    assert_eq!(counts, serde_json::json!({"sent": 2500, "accepted": 0, "duplicates": 2500, "rejected": 0}));

    let listed = cluster.cli(&["list", "--limit", "10000", "-o", "ndjson"]);
    let texts =
        listed.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["text"].clone());
    let want: Vec<Value> = (0..2500).map(|n| (n / 2).to_string().into()).collect();
    assert_eq!(texts.collect::<Vec<_>>(), want, "history is in the order of the file");
    // The fields that the server added are ignored.
    let back = cluster.cli_with_input(&["send", "--file", "-"], listed.stdout.as_bytes());
    assert_eq!(back.stdout, "2,500 sent: 0 accepted, 2,500 duplicates, 0 rejected\n", "{back:?}");
}

#[test]
fn what_can_be_read_of_a_damaged_file_is_sent_and_counted() {
    let cluster = Cluster::start(1);
    let server = cluster.node(0).to_string();
    let lines = |count: u64| -> Vec<u8> { crate::support::messages::lines(0..count) };
    for (count, cut) in [(40, 4), (3_000, 4), (4_500, 9)] {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&lines(count)).expect("in memory");
        let whole = encoder.finish().expect("in memory");
        std::fs::write(cluster.dir().join("cut.gz"), &whole[..whole.len() - cut]).expect("a file");
        let done = cluster.cli(&["send", "--file", "cut.gz", "--server", &server]);
        assert_eq!(done.code, Some(1), "{done:?}");
        let said = done.stderr.lines().last().unwrap_or_default();
        let sent =
            said.split(" sent: ").next().unwrap_or_default().trim_start_matches("error: stopped after ");
        let (sent, stored) =
            (sent.replace(',', "").parse::<u64>(), crate::support::messages::history(cluster.node(0)));
        let stored = crate::support::messages::parse(&stored).len() as u64;
        assert_eq!(sent, Ok(stored), "{said}");
        assert!(stored + 40 >= count && said.contains("cannot read on after line"), "{stored}: {said}");
    }
}

#[test]
fn the_lines_of_a_slow_file_are_sent_at_once_and_a_signal_says_how_far_it_came() {
    let cluster = Cluster::start(1);
    let mut command = chatchain(cluster.dir());
    command.args(["send", "--file", "-", "--server", &cluster.node(0).to_string()]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let mut stdin = child.stdin.take().expect("piped");
    let line = |n: u8| format!(r#"{{"sender":"a","recipient":"b","text":"{n}","timestamp":1}}"#);
    for n in 1..=2 {
        writeln!(stdin, "{}", line(n)).expect("read");
        let listed = || cluster.cli(&["list", "-o", "ndjson"]).stdout.lines().count() == usize::from(n);
        eventually_blocking(LONG, "the line", listed);
    }
    write!(stdin, "{}", &line(3)[..9]).expect("read");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .expect("sent");
    let done = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("2 sent: 2 accepted") && said.contains("a signal came after line 2"), "{said}");
    drop(stdin);
}

#[test]
fn lines_that_are_rejected_for_the_same_reason_are_counted() {
    let cluster = Cluster::start(1);
    let done =
        cluster.cli_with_input(&["send", "--file", "-"], "{\"sender\":\"a\"}\n".repeat(500).as_bytes());
    assert_eq!((done.code, done.stderr.lines().count()), (Some(1), 2), "{done:?}");
    assert!(done.stderr.contains("line 1 is rejected") && done.stderr.contains("499 more lines"), "{done:?}");
    let done = cluster.cli_with_input(&["send", "--file", "-"], "a;b;c\n".repeat(500).as_bytes());
    assert_eq!((done.code, done.stderr.lines().count(), done.stdout.as_str()), (Some(1), 1, ""), "{done:?}");
    assert!(done.stderr.contains("none of the first 100 lines is JSON"), "{done:?}");
}

#[test]
fn rejected_lines_are_reported_by_line_number() {
    let cluster = Cluster::start(1);
    let input = [
        r#"{"sender":"a","recipient":"b","text":"c","timestamp":1,"id":"00000000-0000-0000-0000-000000000001"}"#,
        "",
        "{",
        r#"{"sender":"a","recipient":"b","text":"other","id":"00000000-0000-0000-0000-000000000001"}"#,
        r#"{"sender":"a","recipient":"b","text":"fresh"}"#,
    ];
    let done = cluster.cli_with_input(&["send", "--file", "-"], input.join("\n").as_bytes());
    assert_eq!(done.code, Some(1), "{done:?}");
    assert_eq!(done.stdout, "4 sent: 2 accepted, 0 duplicates, 2 rejected\n");
    for part in [
        "line 3 is rejected",
        "(invalid_json)",
        "line 4 is rejected",
        "(id_conflict)",
        "not safe for 1 line:",
    ] {
        assert!(done.stderr.contains(part), "{:?} lacks {part:?}", done.stderr);
    }
}

#[test]
fn a_closed_standard_output_is_not_a_failure() {
    let cluster = Cluster::start(1);
    let line =
        r#"{"sender":"a","recipient":"b","text":"TEXT","timestamp":1}"#.replace("TEXT", &"x".repeat(10_000));
    let file = format!("{line}\n").repeat(100);
    assert_eq!(cluster.cli_with_input(&["send", "--file", "-"], file.as_bytes()).code, Some(0));
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatchain"));
    command.args(["list", "--limit", "100", "--server", &cluster.node(0).to_string()]);
    // The output is far larger than a pipe buffer, and the reading end is closed.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    drop(child.stdout.take());
    let done = child.wait_with_output().expect("ended");
    assert_eq!((done.status.code(), String::from_utf8_lossy(&done.stderr).as_ref()), (Some(0), ""));
}

/// Otherwise they would be the newest messages for a year.
#[test]
fn messages_of_a_clock_that_was_ahead_are_listed_apart_and_hide_no_others() {
    let mut cluster = Cluster::prepare(1);
    let mut command = cluster.node_command(0);
    move_clock(&mut command, cluster.dir(), 365);
    let mut ahead = Process::spawn("a node of the future", command);
    let send = |cluster: &Cluster, text| cluster.cli(&["send", "--from", "a", "--to", "b", text]).code;
    eventually_blocking(LONG, "the node to store a message", || send(&cluster, "ahead") == Some(0));
    assert_eq!(ahead.stop().code(), Some(0));
    cluster.start_node(0);
    assert_eq!(send(&cluster, "now"), Some(0));
    let listed = cluster.cli(&["list", "--limit", "1"]);
    let lines: Vec<_> = listed.stdout.lines().collect();
    let [now, apart, ahead] = lines[..] else { panic!("{listed:?}") };
    assert!(now.ends_with("now") && apart.contains("5 minutes") && ahead.ends_with("ahead"), "{listed:?}");
    let status = cluster.cli(&["status"]);
    assert!(status.stderr.contains("in the future"), "{status:?}");
}

/// The server accepts each request and ends the feed at once, as a node does whose store cannot be read.
#[test]
fn follow_pauses_before_it_reopens_a_feed_that_keeps_ending() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let _head = lines.find(String::is_empty);
            drop((&stream).write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")); // the client may have closed the connection
        }
    });
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = chatchain(dir.path());
    command.args(["list", "--follow", "--server", &server]);
    let (began, mut follower) = (Instant::now(), Process::spawn("list", command));
    eventually_blocking(LONG, "the feed to be reopened", || follower.stderr().lines().count() >= 6);
    assert!(began.elapsed() >= Duration::from_millis(1_500), "{:?}", began.elapsed());
    follower.interrupt();
    assert_eq!(follower.wait(LONG).code(), Some(0));
}

#[test]
fn a_node_exits_cleanly_on_sigint() {
    let mut cluster = Cluster::start(1);
    // The node is ready before it has logged its last warning.
    eventually_blocking(LONG, "the warning", || cluster.process(0).stderr().contains("no peers"));
    cluster.process(0).interrupt();
    let status = cluster.process(0).wait(LONG);
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_node_exits_cleanly_when_its_terminal_is_closed() {
    let mut cluster = Cluster::start(1);
    cluster.process(0).hang_up();
    assert_eq!(cluster.process(0).wait(LONG).code(), Some(0));
    assert!(!cluster.node_dir(0).join("unproven").exists(), "the store was not closed");
}

#[test]
fn a_node_under_nohup_outlives_its_terminal() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = chatchain(dir.path());
    let mut command = Command::new("sh");
    command
        .current_dir(dir.path())
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(program.get_program());
    command.args(["node", "--node-id", "0", "--listen", &free_addr().to_string()]);
    let mut node = Process::spawn("node", command);
    node.eventually_says("no peers");
    node.hang_up();
    node.terminate(); // if SIGHUP stopped the node as well, this is its second signal, and the code is 1
    assert_eq!(node.wait(LONG).code(), Some(0));
    assert_eq!(node.stderr().matches("stopping").count(), 1, "{}", node.stderr());
}

#[test]
fn status_is_a_table_and_check_is_an_exit_code() {
    let mut cluster = Cluster::start(2);
    assert_eq!(cluster.cli(&["send", "--from", "a", "--to", "b", "hi"]).code, Some(0));
    eventually_blocking(LONG, "a healthy network", || cluster.cli(&["status", "--check"]).code == Some(0));
    let status = cluster.cli(&["status"]);
    let lines: Vec<_> = status.stdout.lines().collect();
    assert!(lines[0].starts_with("NODE  STATE  ADDRESS"), "{status:?}");
    assert_eq!((lines.len(), lines[3]), (4, "2 of 2 nodes up, writable, converged"), "{status:?}");
    assert!(!status.stdout.contains('\u{1b}'), "no colors without a terminal");
    assert!(cluster.cli(&["status", "--color", "always"]).stdout.contains("\u{1b}[32m2 of 2"));

    cluster.kill9(1);
    eventually_blocking(LONG, "an unhealthy network", || cluster.cli(&["status", "--check"]).code == Some(3));
    let status = cluster.cli(&["status", "-o", "json"]);
    let network: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!((status.code, &network["up"], &network["total"]), (Some(0), &1.into(), &2.into()));
}
