//! A locked network of real processes: everything works with the key, nothing without it, and the key is never told.
//!
//! Knows how keys are given and shown, and nothing of how they are compared; that is tested beside the code.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::http::{self, Response};
use crate::support::process::{Finished, Process, chatchain, run};
use crate::support::servers::{check_refusal, get};

const LONG: Duration = Duration::from_secs(60);
pub const KEY: &str = "the-key-of-this-network";
/// As like the key as can be.
const WRONG: &str = "the-key-of-this-networ";
pub const PATHS: [(&str, &str); 9] = [
    ("POST", "/messages"),
    ("GET", "/messages"),
    ("GET", "/messages/0199a0e0-0000-7000-8000-000000000001"),
    ("GET", "/nodes"),
    ("GET", "/network"),
    ("POST", "/sync"),
    ("DELETE", "/messages"),
    ("GET", "/"),
    ("GET", "/nothing?key=the-key-of-this-network"),
];

/// The processes in this directory have these keys from their next start on.
fn give_keys(dir: &Path, keys: &str) {
    std::fs::write(dir.join("config.toml"), "key_file = 'network.key'").expect("a config.toml");
    let path = dir.join("network.key");
    std::fs::write(&path, keys.replace(',', "\n")).expect("a key file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("our own file");
}

/// A network of `n` nodes and a proxy behind one lock.
pub fn locked(n: usize, keys: &str) -> Cluster {
    let mut cluster = Cluster::prepare(n);
    give_keys(cluster.dir(), keys);
    cluster.start_all();
    cluster.start_proxy();
    cluster
}

/// Asks with this key, if any.
#[track_caller]
fn ask(addr: SocketAddr, (method, path): (&str, &str), key: Option<&str>, body: &[u8]) -> Response {
    let bearer = key.map(|key| format!("Bearer {key}"));
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
    http::request(addr, method, path, &headers, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

#[track_caller]
fn nodes(addr: SocketAddr, key: &str) -> Value {
    let answer = ask(addr, ("GET", "/nodes"), Some(key), b"");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.json()
}

/// A client from elsewhere, with this key if any.
fn from_elsewhere(server: SocketAddr, key: Option<&str>, args: &[&str], input: &[u8]) -> Finished {
    let mut command = chatchain(&std::env::temp_dir());
    command.args(args).args(["--server", &server.to_string()]);
    command.envs(key.map(|key| ("CHATCHAIN_KEY", key)));
    run(command, input)
}

const SEND: [&str; 6] = ["send", "--from", "ann", "--to", "bob", "hi"];

#[test]
fn with_the_key_everything_works_and_without_it_nothing() {
    let cluster = locked(2, KEY);
    let sent = cluster.cli(&SEND);
    assert_eq!((sent.code, sent.stderr.as_str()), (Some(0), ""));
    eventually_blocking(LONG, "nodes that agree", || cluster.cli(&["status", "--check"]).code == Some(0));
    let status = cluster.cli(&["status"]).stdout;
    assert!(status.ends_with("2 of 2 nodes up, writable, converged\n"), "{status}");

    let message = json!({ "sender": "eve", "recipient": "bob", "text": "let me in" }).to_string();
    for addr in [cluster.node(0), cluster.node(1), cluster.proxy()] {
        for key in [None, Some(WRONG), Some("")] {
            for path in PATHS {
                let body = if path.0 == "POST" { message.as_bytes() } else { b"" };
                let answer = ask(addr, path, key, body);
                check_refusal(&format!("{path:?} at {addr}"), &answer, 401, "unauthorized", "locked");
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            }
        }
        for open in ["/livez", "/readyz"] {
            assert_eq!(get(addr, open).status(), 200);
        }
        let listed = from_elsewhere(addr, Some(&format!("{KEY} a-key-for-tomorrow")), &["list"], b"");
        assert!(listed.stdout.ends_with("ann -> bob  hi\n"), "{listed:?}");
        assert_eq!(listed.stdout.lines().count(), 1, "strangers stored nothing: {listed:?}");
    }
}

#[test]
fn a_command_without_the_key_says_what_to_do() {
    let cluster = locked(1, KEY);
    let line =
        json!({ "sender": "a", "recipient": "b", "text": "x".repeat(10_000), "timestamp": 1 }).to_string();
    let file = format!("{line}\n").repeat(700); // far more than what the system holds between the two
    let commands: [(&[&str], &[u8]); 4] =
        [(&SEND, b""), (&["list"], b""), (&["status"], b""), (&["send", "--file", "-"], file.as_bytes())];
    for addr in [cluster.node(0), cluster.proxy()] {
        for (args, input) in commands {
            for key in [None, Some(WRONG)] {
                let done = from_elsewhere(addr, key, args, input);
                assert_eq!((done.code, done.stdout.as_str()), (Some(1), ""), "{args:?}: {done:?}");
                for part in ["this network is locked", "(unauthorized)", "CHATCHAIN_KEY", "`key_file`"] {
                    assert!(done.stderr.contains(part), "{args:?}: {:?} lacks {part:?}", done.stderr);
                }
                assert!(!done.stderr.contains(WRONG), "{}", done.stderr);
            }
        }
    }
    assert_eq!(nodes(cluster.node(0), KEY)["messages"], 0);
}

#[test]
fn sync_from_a_stranger_stores_nothing() {
    let mut cluster = Cluster::prepare(1);
    give_keys(cluster.dir(), KEY);
    cluster.start_all();
    let inside = cluster.node(0);
    assert_eq!(cluster.cli(&SEND).code, Some(0));
    for keys in [None, Some(WRONG)] {
        let mut outside = Cluster::prepare(0);
        if let Some(keys) = keys {
            give_keys(outside.dir(), keys);
        }
        outside.join_peers(vec![inside]);
        for _ in 0..3 {
            assert_eq!(outside.cli(&["send", "--from", "eve", "--to", "bob", "let me in"]).code, Some(0));
        }
        let status = || ask(outside.node(0), ("GET", "/nodes"), keys, b"").json();
        eventually_blocking(LONG, "a refusal", || {
            let error = status()["peers"][0]["error"].to_string();
            if error.contains("(unauthorized)") { Ok(()) } else { Err(error) }
        });
        assert_eq!(
            (&status()["messages"], &status()["origins"]),
            (&json!(3), &json!(1)),
            "and learns nothing"
        );
    }
    let status = nodes(inside, KEY);
    assert_eq!((&status["messages"], &status["origins"]), (&json!(1), &json!(1)));
    assert_eq!(status["peers"], json!([]), "a stranger is nobody's peer");
}

#[test]
fn the_key_is_not_told_by_logs_errors_or_the_process_list() {
    let cluster = Cluster::prepare(1);
    give_keys(cluster.dir(), KEY);
    let mut command = cluster.node_command(0);
    command.env("RUST_LOG", "trace");
    let node = Process::spawn("node", command);
    let mut command = cluster.command();
    let (listen, upstream) = (cluster.proxy().to_string(), cluster.node(0).to_string());
    command.args(["proxy", "--listen", &listen, "--nodes", &upstream]).env("RUST_LOG", "trace");
    let proxy = Process::spawn("proxy", command);
    let loud = [&SEND[..], &["-vv"]].concat();
    let mut said = String::new();
    eventually_blocking(LONG, "a send", || {
        let sent = from_elsewhere(cluster.proxy(), Some(KEY), &loud, b"");
        said += &(sent.stdout + &sent.stderr);
        sent.code == Some(0)
    });
    let failed = from_elsewhere(cluster.node(0), Some(&format!("{KEY}x")), &["list", "-vv"], b"");
    assert_eq!(failed.code, Some(1));
    said += &failed.stderr;
    assert!(proxy.stderr().contains("TRACE"), "the HTTP client tells all it does");
    for server in [&node, &proxy] {
        let (log, line) = (server.stderr(), std::fs::read(format!("/proc/{}/cmdline", server.id())));
        assert!(log.contains("answered"), "{log}");
        said += &log;
        said += &String::from_utf8_lossy(&line.expect("it runs"));
    }
    assert!(!said.contains(KEY), "{said}");
}

/// Old, then both, then the new one first, then the new one alone; one process at a time, with a client a step ahead or behind.
#[test]
fn a_key_is_exchanged_without_an_outage() {
    const OLD: &str = "the-key-of-last-year";
    const NEW: &str = "the-key-of-this-year";
    let steps = [OLD.to_owned(), format!("{OLD},{NEW}"), format!("{NEW},{OLD}"), NEW.to_owned()];
    let mut cluster = locked(2, OLD);
    let mut count = 0;
    for step in steps.windows(2) {
        give_keys(cluster.dir(), &step[1]);
        let mut send_with_both = |cluster: &Cluster| {
            for keys in step {
                let server = cluster.proxy();
                // Without the proxy, whoever knows the nodes asks them.
                let up = get_any(&[server, cluster.node(0), cluster.node(1)]);
                let sent = from_elsewhere(up, Some(keys), &SEND, b"");
                assert_eq!(sent.code, Some(0), "{step:?}: {sent:?}");
                count += 1;
            }
        };
        for node in 0..2 {
            cluster.stop(node);
            send_with_both(&cluster);
            cluster.start_node(node);
            send_with_both(&cluster);
        }
        cluster.stop_proxy();
        send_with_both(&cluster);
        cluster.start_proxy();
        send_with_both(&cluster);
        let shown = step[1].split(',').next().expect("a key");
        eventually_blocking(LONG, "nodes that agree", || {
            let seen: Vec<_> =
                (0..2).map(|node| nodes(cluster.node(node), shown)["messages"].clone()).collect();
            if seen == [json!(count), json!(count)] { Ok(()) } else { Err(format!("{seen:?}, not {count}")) }
        });
    }
    let late = from_elsewhere(cluster.proxy(), Some(OLD), &SEND, b"");
    assert_eq!(late.code, Some(1), "the old key is worth nothing: {late:?}");
}

/// The first of them that answers.
#[track_caller]
fn get_any(addrs: &[SocketAddr]) -> SocketAddr {
    let answers = |addr: &&SocketAddr| http::get(**addr, "/livez").is_ok();
    *addrs.iter().find(answers).expect("somebody answers")
}
