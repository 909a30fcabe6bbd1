//! Slow, broken and hostile HTTP clients: each gets an answer or is disconnected, stores nothing, and delays no other
//! client.
//!
//! The tests send raw bytes to a node and to the proxy. A head that cannot be parsed gets the HTTP library's plain 400,
//! 414 or 431; every other request an answer of the contract.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::eventually::eventually_blocking;
use crate::support::http::{Connection, Head, Response, encode};
use crate::support::servers::{JSON, NDJSON, Servers, check_refusal, get, post};

const GOOD: &str = r#"{"sender":"a","recipient":"b","text":"c"}"#;
const FRAMED: &str = "content-type: application/json\r\nhost: x\r\n";

fn open(addr: SocketAddr) -> Connection {
    Connection::open(addr).expect("connected")
}

/// Sends these bytes, closes the sending side, and reads one answer.
#[track_caller]
fn send_and_end(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> std::io::Result<Response> {
    let mut connection = open(addr);
    connection.send(bytes.as_ref())?;
    connection.end()?;
    connection.receive("POST")
}

#[track_caller]
fn still_serves(servers: &Servers, stored: u64) {
    for (server, addr) in servers.both() {
        assert_eq!(get(addr, "/livez").status(), 200, "{server}");
        assert_eq!(post(addr, "/messages", &[JSON], GOOD).status(), 201, "{server}");
    }
    assert_eq!(servers.count(), stored + 2);
}

#[test]
fn a_body_cut_half_way_stores_nothing() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        let cut = |framing: &str, body: &str| {
            send_and_end(addr, format!("POST /messages HTTP/1.1\r\n{FRAMED}{framing}\r\n\r\n{body}"))
        };
        let length = GOOD.len();
        for (framing, body) in [
            (format!("content-length: {length}"), &GOOD[..length - 1]),
            (format!("content-length: {}", length + 1), GOOD),
            (format!("content-length: {length}"), ""),
            ("transfer-encoding: chunked".into(), "5\r\n{\"sen"),
            ("transfer-encoding: chunked".into(), &*format!("{length:x}\r\n{GOOD}\r\n")),
            ("transfer-encoding: chunked".into(), &*format!("{length:x}\r\n{GOOD}\r\n0\r\n")),
            ("transfer-encoding: chunked".into(), &*format!("{length:x}\r\n{GOOD}\r\nzz\r\n")),
            ("transfer-encoding: chunked".into(), ""),
        ] {
            // The server may just close the connection; if it answers, the answer is a refusal.
            if let Ok(answer) = cut(&framing, body) {
                check_refusal(
                    &format!("{server} {framing} {body}"),
                    &answer,
                    400,
                    "invalid_json",
                    "ended early",
                );
            }
        }
    }
    still_serves(&servers, 0);
}

#[test]
fn a_batch_cut_half_way_stores_none_of_its_lines() {
    let servers = Servers::start();
    for (_, addr) in servers.both() {
        let lines = format!("{GOOD}\n").repeat(1000);
        let head = format!(
            "POST /messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
            lines.len() + 1
        );
        drop(send_and_end(addr, head + &lines));
    }
    still_serves(&servers, 0);
}

#[test]
fn chunked_bodies_are_accepted_and_limited() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        let chunk = |chunk: &[u8]| format!("{:x};x=y\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk));
        let chunks = GOOD.as_bytes().chunks(7).map(chunk).collect::<Vec<_>>().concat();
        let answer = send_and_end(
            addr,
            format!(
                "POST /messages HTTP/1.1\r\n{FRAMED}transfer-encoding: chunked\r\n\r\n{chunks}0\r\nx-trailer: y\r\n\r\n"
            ),
        );
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 201, "{server}: {}", answer.text());
        let long = format!("20001\r\n{}\r\n0\r\n\r\n", " ".repeat(128 * 1024 + 1));
        let answer = send_and_end(
            addr,
            format!("POST /messages HTTP/1.1\r\n{FRAMED}transfer-encoding: chunked\r\n\r\n{long}"),
        );
        check_refusal(server, &answer.expect("an answer"), 413, "too_large", "131072");
    }
    assert_eq!(servers.count(), 2);
}

#[test]
fn expect_100_continue_is_answered() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        let mut connection = open(addr);
        let head = format!(
            "POST /messages HTTP/1.1\r\n{FRAMED}expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            GOOD.len()
        );
        connection.send(head.as_bytes()).expect("sent");
        assert_eq!(connection.head().expect("an interim answer").status, 100, "{server}");
        connection.send(GOOD.as_bytes()).expect("sent");
        assert_eq!(connection.receive("POST").expect("an answer").status(), 201, "{server}");

        // A request that is refused anyway is refused before the client sends the body.
        let mut connection = open(addr);
        let head = "POST /messages HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n";
        connection.send(head.as_bytes()).expect("sent");
        check_refusal(
            server,
            &connection.receive("POST").expect("an answer"),
            415,
            "unsupported_media_type",
            "text/plain",
        );
    }
    assert_eq!(servers.count(), 2);
}

/// The target of these requests is not a path.
#[test]
fn a_refusal_shows_the_target_of_a_request() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        for (method, target, shown) in
            [("CONNECT", "host:1", "`host:1`"), ("OPTIONS", "*", "`*`"), ("GET", "http://host:1/x", "`/x`")]
        {
            let mut connection = open(addr);
            let head = format!("{method} {target} HTTP/1.1\r\nhost: x\r\n\r\n");
            connection.send(head.as_bytes()).expect("sent");
            let answer = connection.receive("GET").expect("an answer");
            check_refusal(&format!("{server} {method} {target}"), &answer, 404, "not_found", shown);
        }
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        let mut requests = Vec::new();
        for i in 0..20 {
            let body =
                json!({ "sender": "a", "recipient": "b", "text": format!("{server} {i}") }).to_string();
            requests.extend(encode(addr, "POST", "/messages", &[JSON], body.as_bytes()));
            requests.extend(encode(addr, "GET", "/nothing", &[], b""));
            requests.extend(encode(addr, "HEAD", "/messages", &[], b""));
        }
        requests.extend(encode(addr, "GET", "/livez", &[("connection", "close")], b""));
        let mut connection = open(addr);
        connection.send(&requests).expect("sent");
        for i in 0..20 {
            let sent = connection.receive("POST").expect("an answer");
            assert_eq!(sent.json()["text"], format!("{server} {i}"));
            check_refusal(
                server,
                &connection.receive("GET").expect("an answer"),
                404,
                "not_found",
                "/nothing",
            );
            assert_eq!(connection.receive("HEAD").expect("an answer").status(), 200, "{server}");
        }
        assert_eq!(connection.receive("GET").expect("an answer").status(), 200, "{server}");
    }
    assert_eq!(servers.count(), 40);
}

#[test]
fn two_hundred_idle_connections_delay_no_request() {
    let servers = Servers::start();
    let mut idle = Vec::new();
    for (_, addr) in servers.both() {
        for i in 0..200 {
            let mut connection = open(addr);
            // Nothing, half a head, half a body, or one whole request; then silence.
            let begun = [
                "",
                "GET /mess",
                "POST /messages HTTP/1.1\r\ncontent-length: 9\r\ncontent-type: application/json\r\n\r\n{",
                "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n",
            ];
            connection.send(begun[i % begun.len()].as_bytes()).expect("sent");
            idle.push(connection);
        }
    }
    let began = Instant::now();
    for i in 0..50 {
        for (server, addr) in servers.both() {
            let answer = post(
                addr,
                "/messages",
                &[JSON],
                json!({ "sender": "a", "recipient": "b", "text": format!("{i}") }).to_string(),
            );
            assert_eq!(answer.status(), 201, "{server}");
        }
    }
    // Far above the normal duration, and far below what waiting for each idle connection would take.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?} for 100 sends", began.elapsed());
    assert_eq!(servers.count(), 100);
    drop(idle);
}

/// The limits of the contract: 5 s for a head, 30 s for a request.
#[test]
fn unfinished_requests_time_out() {
    let servers = Servers::start();
    let began = Instant::now();
    let mut heads: Vec<_> = servers.both().iter().map(|(server, addr)| (*server, open(*addr))).collect();
    let mut bodies: Vec<_> = servers.both().iter().map(|(server, addr)| (*server, open(*addr))).collect();
    for (_, connection) in &mut heads {
        connection.send(b"POST /messages HTTP/1.1\r\nhost: x\r\ncontent-ty").expect("sent");
    }
    for (_, connection) in &mut bodies {
        connection
            .send(
                format!(
                    "POST /messages HTTP/1.1\r\n{FRAMED}content-length: {}\r\n\r\n{}",
                    GOOD.len(),
                    &GOOD[..9]
                )
                .as_bytes(),
            )
            .expect("sent");
    }
    for (server, connection) in &mut heads {
        connection.receive("POST").expect_err(server);
        assert!((4..25).contains(&began.elapsed().as_secs()), "{server}: after {:?}", began.elapsed());
    }
    for (server, connection) in &mut bodies {
        let answer = connection.receive("POST").expect("an answer");
        check_refusal(server, &answer, 504, "timeout", "30 seconds");
        assert!((29..55).contains(&began.elapsed().as_secs()), "{server}: after {:?}", began.elapsed());
    }
    still_serves(&servers, 0);
}

#[test]
fn a_head_that_cannot_be_parsed_gets_a_plain_status() {
    let servers = Servers::start();
    let long = "x".repeat(300_000);
    let many = "x: y\r\n".repeat(5_000);
    let table = [
        ("\r\n\r\n\r\nnonsense\r\n\r\n".to_owned(), &[400][..]),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}".to_owned(), &[400]),
        ("GET /livez\r\n\r\n".to_owned(), &[400]),
        ("GET /livez HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), &[400]),
        ("GET /livez HTTP/1.1\r\nbad name: x\r\n\r\n".to_owned(), &[400]),
        ("GET /a b HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), &[400]),
        ("POST /messages HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_owned(), &[400]),
        (
            "POST /messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx"
                .to_owned(),
            &[400],
        ),
        (format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n"), &[414, 431]),
        (format!("GET /messages?text={long} HTTP/1.1\r\nhost: x\r\n\r\n"), &[414, 431]),
        (format!("GET /livez HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n"), &[431]),
        (format!("GET /livez HTTP/1.1\r\nhost: x\r\n{many}\r\n"), &[431]),
    ];
    for (server, addr) in servers.both() {
        for (bytes, statuses) in &table {
            let start: String = bytes.chars().take(60).collect();
            let mut connection = open(addr);
            let sent = connection.send(bytes.as_bytes()); // the server may answer before it has read all bytes
            let answer =
                connection.receive("POST").unwrap_or_else(|e| panic!("{server} {start:?}: {e}, {sent:?}"));
            assert!(statuses.contains(&answer.status()), "{server} {start:?}: {}", answer.status());
        }
    }
    still_serves(&servers, 0);
}

/// A request that only the node refuses must not mark the node as down, which would affect other clients.
#[test]
fn a_head_that_only_the_proxy_accepts_does_not_mark_the_node_down() {
    let servers = Servers::start();
    let upstream = || get(servers.proxy(), "/nodes").json()["upstreams"][0].clone();
    let mut statuses = std::collections::BTreeSet::new();
    // A server accepts at most 100 header fields, and the proxy adds some to each request.
    for count in 85..=100 {
        let mut headers = vec![("x-padding", "y"); count];
        headers.push(JSON);
        let answer = post(servers.proxy(), "/messages", &headers, GOOD);
        statuses.insert(answer.status());
        assert_eq!(
            (&upstream()["state"], &upstream()["error"]),
            (&json!("up"), &json!(null)),
            "{count} fields"
        );
    }
    assert_eq!(statuses.into_iter().collect::<Vec<_>>(), [201, 431]);
    // The URL is longer behind the proxy, which encodes these quotes as %27.
    for count in [10_000, 20_000, 21_840, 30_000, 60_000, 66_000] {
        let path = format!("/messages?text={}", "'".repeat(count));
        let (node, proxy) = (get(servers.node(), &path), get(servers.proxy(), &path));
        let shown = (proxy.status(), proxy.text());
        let grew = matches!(shown.0, 400 | 414 | 431);
        assert!(
            (node.status(), node.text()) == shown || (grew && count > 20_000),
            "{count} quotes: {shown:?}"
        );
        assert_eq!(
            (&upstream()["state"], &upstream()["error"]),
            (&json!("up"), &json!(null)),
            "{count} quotes"
        );
    }
}

#[test]
fn older_and_unusual_requests_are_answered() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        let get = |line: &str| {
            let mut connection = open(addr);
            connection
                .send(format!("{line}\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
                .expect("sent");
            connection.head().map(|head| head.status)
        };
        for line in ["GET /livez HTTP/1.1", "GET http://elsewhere:1/livez HTTP/1.1", "GET /livez? HTTP/1.1"] {
            assert_eq!(get(line).expect("an answer"), 200, "{server} {line}");
        }
        for line in ["OPTIONS * HTTP/1.1", "CONNECT x:1 HTTP/1.1", "GET * HTTP/1.1", "\u{1F30D} / HTTP/1.1"] {
            let status = get(line).expect("an answer");
            assert!(matches!(status, 400 | 404 | 405), "{server} {line}: {status}");
        }
        let mut connection = open(addr);
        connection
            .send(b"GET /livez HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n")
            .expect("sent");
        assert_eq!(
            connection.receive("GET").expect("an answer").status(),
            200,
            "{server}: answers without the upgrade"
        );
    }
    still_serves(&servers, 0);
}

#[test]
fn stalled_readers_delay_no_request_and_miss_nothing() {
    let servers = Servers::start();
    let line = json!({ "sender": "a", "recipient": "b", "text": "x".repeat(3000) }).to_string() + "\n";
    for _ in 0..2 {
        assert_eq!(post(servers.node(), "/messages", &[NDJSON], line.repeat(2000)).status(), 200);
    }
    let mut readers = Vec::new();
    for (server, addr) in servers.both() {
        for _ in 0..5 {
            let mut connection = open(addr);
            connection.send(&encode(addr, "GET", "/messages", &[], b"")).expect("sent");
            assert_eq!(connection.head().expect("an answer").status, 200, "{server}");
            readers.push((server, connection));
        }
    }
    for (server, addr) in servers.both().iter().cycle().take(50) {
        assert_eq!(post(*addr, "/messages", &[JSON], GOOD).status(), 201, "{server}");
    }
    // A listing holds all messages that existed at its start, however late it is read.
    for index in [0, 9] {
        let (server, connection) = &mut readers[index];
        let chunked = Head { status: 200, headers: vec![("transfer-encoding".into(), "chunked".into())] };
        let mut body = Vec::new();
        connection.body("GET", &chunked).and_then(|mut rest| rest.read_to_end(&mut body)).expect(server);
        assert!(body.ends_with(b"}]\n"), "{server}");
        assert_eq!(body.windows(6).filter(|bytes| *bytes == b"\"seq\":").count(), 4000, "{server}");
    }
    assert_eq!(servers.count(), 4050);
}

#[test]
fn servers_exit_cleanly_with_connections_open() {
    let mut servers = Servers::start();
    let addrs = servers.both().map(|(_, addr)| addr);
    let begun = [
        "",
        "GET /liv",
        "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n",
        "POST /messages HTTP/1.1\r\ncontent-length: 99\r\n",
    ];
    let stuck = format!("POST /messages HTTP/1.1\r\n{FRAMED}content-length: 99\r\n\r\n{{");
    let mut held = Vec::new();
    for addr in addrs {
        for bytes in begun.iter().copied().chain([&*stuck]).cycle().take(50) {
            let mut connection = open(addr);
            connection.send(bytes.as_bytes()).expect("sent");
            held.push(connection);
        }
    }
    let asked = Instant::now();
    servers.cluster.stop_proxy();
    servers.cluster.stop(0);
    assert!(asked.elapsed() < Duration::from_secs(20), "stopped after {:?}", asked.elapsed());
}

/// A client that sends a message every few seconds, over a link with long round trips.
#[test]
fn a_connection_that_was_idle_for_a_while_is_open_still() {
    const IDLE: Duration = Duration::from_secs(8);
    let servers = Servers::start();
    let mut connections = servers.both().map(|(_, addr)| (addr, Connection::open(addr).expect("connected")));
    for _ in 0..2 {
        for (addr, connection) in &mut connections {
            connection.send(&encode(*addr, "GET", "/livez", &[], b"")).expect("sent");
            assert_eq!(connection.receive("GET").expect("an answer").status(), 200);
        }
        let since = Instant::now();
        eventually_blocking(2 * IDLE, "a while", || since.elapsed() >= IDLE);
    }
}
