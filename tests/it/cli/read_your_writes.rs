//! Read your writes: a user who sends through one server and lists through another finds the message, and
//! `list --follow` misses nothing between its listing and its feed.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::messages::{number, send_all};
use crate::support::process::{Finished, Process, run};

const SOON: Duration = Duration::from_secs(30);

/// A command with a state directory, in which the program remembers the user's last writes. All nodes are configured.
fn command(cluster: &Cluster, server: SocketAddr, args: &[&str]) -> std::process::Command {
    let mut command = cluster.command();
    let nodes: Vec<_> = (0..cluster.count()).map(|i| cluster.node(i).to_string()).collect();
    command.env("CHATCHAIN_NODES", nodes.join(","));
    command.env("CHATCHAIN_STATE_DIR", cluster.dir().join("state"));
    command.args(args).args(["--server", &server.to_string()]);
    command
}

#[track_caller]
fn done(cluster: &Cluster, server: SocketAddr, args: &[&str]) -> Finished {
    let done = run(command(cluster, server, args), "");
    assert_eq!(done.code, Some(0), "{done:?}");
    done
}

#[test]
fn list_shows_a_message_just_sent_through_another_server() {
    let mut cluster = Cluster::start(2);
    for round in 0..12 {
        let text = format!("round {round}");
        cluster.process(1).freeze();
        done(&cluster, cluster.node(0), &["send", "--from", "a", "--to", "b", &text]);
        // `list` starts before node 1 has received the message, so it has to wait.
        let list = Process::spawn("list", command(&cluster, cluster.node(1), &["list", "--limit", "1"]));
        cluster.process(1).thaw();
        let listed = list.finish(SOON);
        assert_eq!((listed.code, listed.stderr.as_str()), (Some(0), ""));
        assert!(listed.stdout.trim_end().ends_with(&text), "{listed:?}");
    }
}

#[test]
fn list_warns_once_if_own_writes_are_missing() {
    let mut apart = Cluster::prepare(0);
    apart.join(&[]);
    apart.join(&[]);
    let file = apart.dir().join("lines");
    std::fs::write(&file, r#"{"sender":"a","recipient":"b","text":"c","timestamp":1}"#).expect("a file");
    let file = file.display().to_string();
    for send in [&["send", "--from", "a", "--to", "b", "hi"][..], &["send", "--file", &file]] {
        done(&apart, apart.node(0), send);
        let listed = done(&apart, apart.node(0), &["list"]);
        assert!(!listed.stderr.contains("what you sent"), "{listed:?}");
        let listed = done(&apart, apart.node(1), &["list"]);
        assert!(listed.stderr.contains("some of what you sent last is not at"), "{listed:?}");
        assert!(!done(&apart, apart.node(1), &["list"]).stderr.contains("what you sent"));
    }
}

#[test]
fn writes_to_another_network_do_not_affect_list() {
    let cluster = Cluster::start(1);
    done(&cluster, cluster.node(0), &["send", "--from", "a", "--to", "b", "hi"]);
    for name in ["others", "chatchain"] {
        let mut others = Cluster::prepare(0);
        std::fs::write(others.dir().join("config.toml"), format!("network = '{name}'")).expect("a file");
        others.join(&[]);
        let listed = done(&cluster, others.node(0), &["list"]);
        assert_eq!((listed.stdout.as_str(), listed.stderr.trim_end()), ("", "no messages match"), "{name}");
    }
}

/// A relay in front of two nodes: forwards the first `GET /feed` to the first node, every other request to the second.
fn split_feed_from_listing(first: SocketAddr, second: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addr = listener.local_addr()?;
    std::thread::spawn(move || {
        let mut feeds = 0;
        for client in listener.incoming() {
            let mut client = client?;
            let mut head = vec![0; 4096];
            let length = client.read(&mut head)?;
            feeds += usize::from(head.starts_with(b"GET /feed"));
            let is_first = head.starts_with(b"GET /feed") && feeds == 1;
            let mut server = TcpStream::connect(if is_first { first } else { second })?;
            let lines = head[..length].strip_suffix(b"\r\n").unwrap_or_default();
            server.write_all(&[lines, b"connection: close\r\n\r\n"].concat())?; // so that each request is a new connection
            std::thread::spawn(move || {
                io::copy(&mut server, &mut client)?;
                client.shutdown(Shutdown::Both)
            });
        }
        Ok::<_, io::Error>(())
    });
    Ok(addr)
}

#[test]
fn follow_does_not_trust_a_listing_that_lags_behind_the_start_of_the_feed() {
    let mut cluster = Cluster::prepare(0);
    cluster.join(&[]);
    cluster.join(&[]);
    send_all(cluster.node(0), 0..5);
    send_all(cluster.node(1), 10..12);
    let relay = split_feed_from_listing(cluster.node(0), cluster.node(1)).expect("a port");
    let follower = Process::spawn("list", command(&cluster, relay, &["list", "--follow", "-o", "ndjson"]));
    let shown = || {
        let text = follower.stdout();
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        lines.map(|line| number(&line)).collect::<BTreeSet<u64>>()
    };
    let wait_for = |want: BTreeSet<u64>| {
        eventually_blocking(SOON, "all messages", || {
            let shown = shown();
            if shown == want { Ok(()) } else { Err(format!("{shown:?}; {}", follower.stderr())) }
        });
    };
    wait_for((10..12).collect());
    assert_eq!(follower.stderr(), "");
    // A third node now brings the messages of the first node to the second.
    cluster.join(&[0, 1]);
    wait_for((0..5).chain(10..12).collect());
}
