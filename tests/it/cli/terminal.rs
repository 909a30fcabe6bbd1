//! Output of a malicious server cannot control the client's terminal.
//!
//! A fake server answers with escape sequences in every text field. Escape sequences in messages of a real server are
//! tested in `commands`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::json;

use crate::support::cluster::Cluster;
use crate::support::process::{Finished, chatchain, run};

const EVIL: &str = "x\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{202e}\r\u{7f}\u{0}y";

/// Answers every request with these bytes until the test ends.
fn fake(status: &'static str, kind: &'static str, body: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            drop(answer(stream, status, kind, &body)); // the client may have closed the connection
        }
    });
    addr
}

fn answer(stream: TcpStream, status: &str, kind: &str, body: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    reader.by_ref().take(length).read_to_end(&mut Vec::new())?;
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    reader.get_mut().write_all((head + body).as_bytes())
}

/// Runs the command in every output format. Its output holds the server's text without any control character.
#[track_caller]
fn check(server: SocketAddr, args: &[&str], code: i32) {
    for format in ["table", "json", "ndjson"] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = chatchain(dir.path());
        command.args(["--server", &server.to_string(), "-o", format, "-v"]).args(args);
        let Finished { code: ended, stdout, stderr } = run(command, "");
        assert_eq!(ended, Some(code), "{args:?} {format}: {stderr}");
        assert!(stdout.contains("31m") || stderr.contains("31m"), "{args:?} {format}: {stdout} {stderr}");
        let is_control_code = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
        assert!(!stdout.contains(is_control_code), "{args:?} {format}: {stdout:?}");
        assert!(!stderr.contains(is_control_code), "{args:?} {format}: {stderr:?}");
    }
}

/// Runs a command on a terminal of this kind, and returns what it writes there. A command that does not end by itself is
/// interrupted once it has written `until`.
fn on_terminal(kind: Option<&str>, args: &[&str], until: Option<&str>) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).and_then(|()| unlockpt(&terminal)).expect("our own terminal");
    let name = ptsname(&terminal, Vec::new()).expect("a name");
    let end = File::options()
        .read(true)
        .write(true)
        .open(OsStr::from_bytes(name.as_bytes()))
        .expect("its other end");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = chatchain(dir.path());
    command.args(args).env_remove("TERM").envs(kind.map(|kind| ("TERM", kind))).stdin(Stdio::null());
    command.stdout(end.try_clone().expect("a copy")).stderr(end);
    let mut child = command.spawn().expect("started");
    drop(command); // it holds the other end open
    let (mut terminal, mut written, mut part) = (File::from(terminal), String::new(), [0; 4096]);
    // Reading fails once the child has closed its end.
    while let Ok(count @ 1..) = terminal.read(&mut part) {
        written += &String::from_utf8_lossy(&part[..count]);
        if until.is_some_and(|until| written.contains(until)) {
            kill_process(Pid::from_child(&child), Signal::INT).expect("our own child");
        }
    }
    child.wait().expect("our own child");
    written
}

#[test]
fn a_terminal_without_escape_codes_gets_none() {
    let cluster = Cluster::start(1);
    let server = cluster.node(0).to_string();
    let file = cluster.dir().join("messages");
    std::fs::write(&file, r#"{"sender":"a","recipient":"b","text":"c","timestamp":1}"#).expect("written");
    let file = file.to_str().expect("a plain path");
    for (args, until) in [
        (&["guide", "http"][..], None),
        (&["status", "--server", "127.0.0.1:1"], None),
        (&["--help"], None),
        (&["nonsense"], None),
        (&["status", "--watch", "--server", &server], Some("1 of 1 nodes up")),
        (&["send", "--file", file, "--server", &server], None), // it shows a progress bar
    ] {
        assert!(on_terminal(Some("xterm"), args, until).contains('\u{1b}'), "{args:?}");
        for kind in [Some("dumb"), Some(""), None] {
            let written = on_terminal(kind, args, until);
            assert!(!written.is_empty() && !written.contains('\u{1b}'), "{kind:?} {args:?}: {written:?}");
        }
    }
}

#[test]
fn status_fields_cannot_control_the_terminal() {
    let row = json!({
        "node_id": 0, "address": "127.0.0.1:1", "state": "up", "version": EVIL, "uptime_seconds": 1, "messages": 1, "behind": 0,
        "digest": EVIL, "last_sync": null, "rtt_ms": 0.1, "error": EVIL,
    });
    let network = json!({ "nodes": [row], "up": 1, "total": 1, "writable": true, "converged": true, "warnings": [EVIL] });
    check(fake("200 OK", "application/json", network.to_string()), &["status"], 0);
}

#[test]
fn a_refusal_cannot_control_the_terminal() {
    let problem = json!({ "type": EVIL, "title": EVIL, "status": 422, "detail": EVIL, "code": "invalid_message", "retryable": false });
    let server = fake("422 Unprocessable Content", "application/problem+json", problem.to_string());
    check(server, &["send", "--from", "a", "--to", "b", "c"], 1);
    check(server, &["list"], 1);
    check(server, &["status"], 1);
}

#[test]
fn messages_of_a_server_cannot_control_the_terminal() {
    let message = json!({
        "id": "00000000-0000-0000-0000-000000000000", "sender": EVIL, "recipient": EVIL, "text": EVIL, "timestamp": 253_402_300_799_u64,
        "accepted_at": "2026-11-22T12:31:14.123Z", "origin": "00000000-0000-0000-0000-000000000000", "seq": 1,
    });
    check(fake("200 OK", "application/x-ndjson", format!("{message}\n")), &["list"], 0);
}

#[test]
fn a_malformed_answer_cannot_control_the_terminal() {
    let nonsense = format!("{{\"nodes\":\"{EVIL} 31m\"}}");
    for kind in ["application/json", "text/html"] {
        let server = fake("200 OK", kind, nonsense.clone());
        for args in [&["status"][..], &["list"]] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let mut command = chatchain(dir.path());
            command.args(["--server", &server.to_string(), "-v"]).args(args);
            let done = run(command, "");
            assert!(matches!(done.code, Some(1 | 5)), "{done:?}");
            assert!(!done.stderr.contains(|c: char| c.is_control() && c != '\n'), "{done:?}");
        }
    }
}
