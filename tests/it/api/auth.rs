//! A network with a key: requests with the key are served, all others are refused, and the key never appears in output.
//!
//! Covers how keys are configured and sent. How they are compared is tested beside the code.

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
/// All but the last character of the key.
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

/// Configures these comma-separated keys for the processes that start in this directory.
fn give_keys(dir: &Path, keys: &str) {
    std::fs::write(dir.join("config.toml"), "key_file = 'network.key'").expect("a config.toml");
    let path = dir.join("network.key");
    std::fs::write(&path, keys.replace(',', "\n")).expect("a key file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("our own file");
}

/// A network of `n` nodes and a proxy with these keys.
pub fn start_with_keys(n: usize, keys: &str) -> Cluster {
    let mut cluster = Cluster::prepare(n);
    give_keys(cluster.dir(), keys);
    cluster.start_all();
    cluster.start_proxy();
    cluster
}

/// Sends a request with this key, or without one.
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

/// Runs a client command in another directory, with this key or without one.
fn client(server: SocketAddr, key: Option<&str>, args: &[&str], input: &[u8]) -> Finished {
    let mut command = chatchain(&std::env::temp_dir());
    command.args(args).args(["--server", &server.to_string()]);
    command.envs(key.map(|key| ("CHATCHAIN_KEY", key)));
    run(command, input)
}

const SEND: [&str; 6] = ["send", "--from", "ann", "--to", "bob", "hi"];

#[test]
fn only_requests_with_the_key_are_served() {
    let cluster = start_with_keys(2, KEY);
    let sent = cluster.cli(&SEND);
    assert_eq!((sent.code, sent.stderr.as_str()), (Some(0), ""));
    eventually_blocking(LONG, "nodes to converge", || cluster.cli(&["status", "--check"]).code == Some(0));
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
        let listed = client(addr, Some(&format!("{KEY} a-key-for-tomorrow")), &["list"], b"");
        assert!(listed.stdout.ends_with("ann -> bob  hi\n"), "{listed:?}");
        assert_eq!(listed.stdout.lines().count(), 1, "requests without the key stored nothing: {listed:?}");
    }
}

#[test]
fn a_command_without_the_key_gives_advice() {
    let cluster = start_with_keys(1, KEY);
    let line =
        json!({ "sender": "a", "recipient": "b", "text": "x".repeat(10_000), "timestamp": 1 }).to_string();
    let file = format!("{line}\n").repeat(700); // far more than the socket buffers hold
    let commands: [(&[&str], &[u8]); 4] =
        [(&SEND, b""), (&["list"], b""), (&["status"], b""), (&["send", "--file", "-"], file.as_bytes())];
    for addr in [cluster.node(0), cluster.proxy()] {
        for (args, input) in commands {
            for key in [None, Some(WRONG)] {
                let done = client(addr, key, args, input);
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
fn an_unauthenticated_sync_stores_nothing() {
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
            "the outside node received nothing"
        );
    }
    let status = nodes(inside, KEY);
    assert_eq!((&status["messages"], &status["origins"]), (&json!(1), &json!(1)));
    assert_eq!(status["peers"], json!([]), "an unauthenticated node is not a peer");
}

#[test]
fn the_key_never_appears_in_logs_errors_or_the_process_list() {
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
    eventually_blocking(LONG, "a successful send", || {
        let sent = client(cluster.proxy(), Some(KEY), &loud, b"");
        said += &(sent.stdout + &sent.stderr);
        sent.code == Some(0)
    });
    let failed = client(cluster.node(0), Some(&format!("{KEY}x")), &["list", "-vv"], b"");
    assert_eq!(failed.code, Some(1));
    said += &failed.stderr;
    assert!(proxy.stderr().contains("TRACE"), "the HTTP client logs at trace level");
    for server in [&node, &proxy] {
        let (log, line) = (server.stderr(), std::fs::read(format!("/proc/{}/cmdline", server.id())));
        assert!(log.contains("answered"), "{log}");
        said += &log;
        said += &String::from_utf8_lossy(&line.expect("it runs"));
    }
    assert!(!said.contains(KEY), "{said}");
}

/// Each step restarts one process after the other: the old key, both keys, the new key first, the new key alone.
/// Clients with the keys of the previous and of the next step must be served at all times.
#[test]
fn a_key_is_rotated_without_an_outage() {
    const OLD: &str = "the-key-of-last-year";
    const NEW: &str = "the-key-of-this-year";
    let steps = [OLD.to_owned(), format!("{OLD},{NEW}"), format!("{NEW},{OLD}"), NEW.to_owned()];
    let mut cluster = start_with_keys(2, OLD);
    let mut count = 0;
    for step in steps.windows(2) {
        give_keys(cluster.dir(), &step[1]);
        let mut send_with_both = |cluster: &Cluster| {
            for keys in step {
                let server = cluster.proxy();
                // While the proxy is down, clients use a node.
                let up = get_any(&[server, cluster.node(0), cluster.node(1)]);
                let sent = client(up, Some(keys), &SEND, b"");
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
        eventually_blocking(LONG, "all messages on both nodes", || {
            let seen: Vec<_> =
                (0..2).map(|node| nodes(cluster.node(node), shown)["messages"].clone()).collect();
            if seen == [json!(count), json!(count)] { Ok(()) } else { Err(format!("{seen:?}, not {count}")) }
        });
    }
    let late = client(cluster.proxy(), Some(OLD), &SEND, b"");
    assert_eq!(late.code, Some(1), "the old key is refused: {late:?}");
}

/// The first of these servers that answers.
#[track_caller]
fn get_any(addrs: &[SocketAddr]) -> SocketAddr {
    let answers = |addr: &&SocketAddr| http::get(**addr, "/livez").is_ok();
    *addrs.iter().find(answers).expect("at least one server answers")
}
