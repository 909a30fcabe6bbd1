//! The server against raw sockets, with limits that are short enough to be reached.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::api::error::Problem;

const SHORT: Duration = Duration::from_millis(50);

/// Long enough never to be reached by accident.
const LONG: ConnectionLimits = ConnectionLimits {
    connections: 100,
    feeds: 100,
    unauthenticated: 100,
    head: Duration::from_secs(60),
    crowded_head: Duration::from_secs(60),
    crowded_stall: Duration::from_secs(60),
    idle: Duration::from_secs(60),
    answer: Duration::from_secs(60),
    write: Duration::from_secs(60),
    linger: Duration::from_secs(60),
    drain: Duration::from_secs(60),
};

struct Served {
    addr: SocketAddr,
    stop: CancellationToken,
    task: JoinSet<()>,
}

async fn start(limits: ConnectionLimits, app: Router) -> Served {
    start_with_keys(limits, app, None).await
}

async fn start_with_keys(limits: ConnectionLimits, app: Router, keys: Option<Keys>) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    let stop = CancellationToken::new();
    let mut task = JoinSet::new();
    task.spawn(serve_within(limits, listener, app, keys, stop.clone()));
    Served { addr, stop, task }
}

impl Served {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.expect("connects")
    }

    /// Sends these bytes and reads until the server closes.
    async fn exchange(&self, request: &str) -> String {
        let mut socket = self.connect().await;
        socket.write_all(request.as_bytes()).await.expect("writes");
        read_all(&mut socket).await
    }
}

async fn read_all(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.expect("reads");
    String::from_utf8(answer).expect("UTF-8")
}

fn request(line: &str, headers: &str, body: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n{body}")
}

/// An app that stores what it could read, with a body limit of ten bytes and a budget of fifteen.
fn storing(stored: Arc<AtomicUsize>) -> Router {
    let budget = Budget::new(15);
    let store = async move |body: Body| -> Result<Response, Problem> {
        let bytes = read_body(body, 10, &budget).await?;
        stored.fetch_add(bytes.len(), Ordering::SeqCst);
        Ok(json_bytes(axum::http::StatusCode::CREATED, bytes.to_vec()))
    };
    Router::new().route("/messages", post(store).get(async || "[]")).route("/livez", get(live))
}

#[track_caller]
fn check(answer: &str, parts: &[&str]) {
    for part in parts {
        assert!(answer.contains(part), "{answer:?} lacks {part:?}");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused_as_problems() {
    let served = start(LONG, storing(Arc::default())).await;
    let answer = served.exchange(&request("GET /nothing?x=1", "", "")).await;
    check(
        &answer,
        &["HTTP/1.1 404 ", "application/problem+json", r#""code":"not_found""#, "`/nothing` here"],
    );
    let answer = served.exchange(&request("DELETE /messages", "", "")).await;
    check(&answer, &["HTTP/1.1 405 ", "application/problem+json", r#""code":"method_not_allowed""#]);
    let answer = answer.to_lowercase();
    check(&answer, &["allow: ", "get", "head", "post"]);
    let answer = served.exchange(&request("HEAD /livez", "", "")).await;
    check(&answer, &["HTTP/1.1 200 ", "content-length: 14"]);
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    check(&served.exchange("nonsense\r\n\r\n").await, &["HTTP/1.1 400 "]);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_however_it_is_framed() {
    let stored = Arc::new(AtomicUsize::new(0));
    let served = start(LONG, storing(stored.clone())).await;
    for (headers, body) in [
        ("Content-Length: 11\r\n", "12345678901"),
        ("Transfer-Encoding: chunked\r\n", "6\r\n123456\r\n5\r\n78901\r\n0\r\n\r\n"),
    ] {
        let answer = served.exchange(&request("POST /messages", headers, body)).await;
        check(&answer, &["HTTP/1.1 413 ", r#""code":"too_large""#]);
    }
    assert_eq!(stored.load(Ordering::SeqCst), 0);
    let chunked =
        request("POST /messages", "Transfer-Encoding: chunked\r\n", "6\r\n123456\r\n4\r\n7890\r\n0\r\n\r\n");
    check(&served.exchange(&chunked).await, &["HTTP/1.1 201 ", "\r\n\r\n1234567890"]);
    assert_eq!(stored.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn a_sender_that_still_writes_sees_why_its_body_is_too_long() {
    let served = start(LONG, storing(Arc::default())).await;
    let long = "x".repeat(4 * 1024 * 1024);
    let headers = format!("Content-Length: {}\r\n", long.len());
    check(&served.exchange(&request("POST /messages", &headers, &long)).await, &["HTTP/1.1 413 "]);
}

#[tokio::test]
async fn a_sender_that_still_writes_sees_why_its_body_is_not_read() {
    let served = start(LONG, Router::new()).await;
    let part = vec![b'x'; 64 * 1024];
    for _ in 0..20 {
        let mut socket = served.connect().await;
        let head =
            format!("POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 48 * part.len());
        socket.write_all(head.as_bytes()).await.expect("writes");
        for _ in 0..48 {
            socket.write_all(&part).await.expect("the server takes what it does not want");
            tokio::task::yield_now().await; // so that the server may answer at any moment between
        }
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 404");
    }
}

#[tokio::test]
async fn a_body_cut_half_way_stores_nothing() {
    let stored = Arc::new(AtomicUsize::new(0));
    let served = start(LONG, storing(stored.clone())).await;
    for headers in ["Content-Length: 10\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut socket = served.connect().await;
        let cut = request("POST /messages", headers, "5\r\n12345\r\n");
        socket.write_all(&cut.as_bytes()[..cut.len() - 4]).await.expect("writes");
        socket.shutdown().await.expect("closes its side");
        let _ = read_all(&mut socket).await;
    }
    assert_eq!(stored.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn held_bodies_count_against_the_budget_until_dropped() {
    let budget = Budget::new(15);
    let held = read_body(Body::from("1234567890"), 10, &budget).await.expect("fits");
    let clone = held.clone();
    drop(held);
    let refused = read_body(Body::from("123456"), 10, &budget).await.expect_err("does not fit");
    let response = refused.into_response();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (503, &"1".parse().expect("valid"))
    );
    drop(clone);
    assert_eq!(read_body(Body::from("123456"), 10, &budget).await.expect("fits"), "123456");
}

/// Clients that send a message every few seconds keep their connection.
#[tokio::test]
async fn an_idle_connection_lives_longer_than_a_head_that_does_not_come() {
    let served =
        start(ConnectionLimits { head: SHORT, idle: 20 * SHORT, ..LONG }, storing(Arc::default())).await;
    let mut socket = TcpStream::connect(served.addr).await.expect("connects");
    let request = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut answer = [0; 4096];
    for _ in 0..2 {
        tokio::io::AsyncWriteExt::write_all(&mut socket, request).await.expect("writes");
        let count = tokio::io::AsyncReadExt::read(&mut socket, &mut answer).await.expect("reads");
        assert!(answer[..count].starts_with(b"HTTP/1.1 200"));
        let idle = tokio::time::timeout(4 * SHORT, socket.readable()).await;
        assert!(idle.is_err(), "nothing more comes, and the connection is not closed");
    }
    let began = std::time::Instant::now();
    tokio::io::AsyncWriteExt::write_all(&mut socket, &request[..9]).await.expect("writes");
    assert_eq!(tokio::io::AsyncReadExt::read(&mut socket, &mut answer).await.expect("is closed"), 0);
    assert!(began.elapsed() < 10 * SHORT, "the head is late, the connection was not idle for too long");
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let served = start(ConnectionLimits { head: SHORT, ..LONG }, storing(Arc::default())).await;
    assert_eq!(served.exchange("GET /livez HTTP/1.1\r\nHost:").await, "");
    assert_eq!(served.exchange("").await, "");
}

#[tokio::test]
async fn connections_without_a_whole_head_make_place_for_others_and_a_slow_body_stays() {
    let limits = ConnectionLimits { connections: 4, crowded_head: SHORT, ..LONG };
    let served = start(limits, storing(Arc::default())).await;
    let mut slow = served.connect().await;
    slow.write_all(request("POST /messages", "Content-Length: 8\r\n", "1234").as_bytes())
        .await
        .expect("writes");
    let mut others = Vec::new();
    for i in 0..12 {
        let mut other = served.connect().await;
        other.write_all(&b"GET /livez HTT"[..i]).await.expect("writes");
        others.push(other);
    }
    let quick = request("GET /livez", "", "");
    let answer = tokio::time::timeout(LONG.head / 2, served.exchange(&quick)).await;
    check(&answer.expect("place within a moment"), &["HTTP/1.1 200 "]);
    slow.write_all(b"5678").await.expect("writes");
    check(&read_all(&mut slow).await, &["HTTP/1.1 201 ", "12345678"]);
}

#[tokio::test]
async fn bodies_that_stop_make_place_for_others() {
    let stored = Arc::new(AtomicUsize::new(0));
    let limits = ConnectionLimits { connections: 4, crowded_stall: SHORT, ..LONG };
    let served = start(limits, storing(stored.clone())).await;
    let mut stopped = Vec::new();
    for i in 0..12 {
        let mut other = served.connect().await;
        let (headers, body) = match i % 3 {
            0 => ("Content-Length: 8\r\n", ""),
            1 => ("Content-Length: 8\r\n", "1234"),
            _ => ("Transfer-Encoding: chunked\r\n", "4\r\n1234\r\n"),
        };
        other.write_all(request("POST /messages", headers, body).as_bytes()).await.expect("writes");
        stopped.push(other);
    }
    let quick = request("GET /livez", "", "");
    let answer = tokio::time::timeout(LONG.head / 2, served.exchange(&quick)).await;
    check(&answer.expect("place within a moment"), &["HTTP/1.1 200 "]);
    assert_eq!(stored.load(Ordering::SeqCst), 0);
}

/// Otherwise a few busy clients would keep the stalled ones in their slots.
#[tokio::test]
async fn stalled_connections_make_place_however_often_others_end() {
    let limits = ConnectionLimits { connections: 4, crowded_stall: SHORT, ..LONG };
    let served = start(limits, storing(Arc::default())).await;
    let half = request("POST /messages", "Content-Length: 8\r\n", "1234");
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut other = served.connect().await;
        other.write_all(half.as_bytes()).await.expect("writes");
        stalled.push(other);
    }
    let mut busy = JoinSet::new();
    let quick = request("GET /livez", "", "");
    for _ in 0..4 {
        let (addr, quick) = (served.addr, quick.clone());
        busy.spawn(async move {
            loop {
                let mut socket = TcpStream::connect(addr).await.expect("connects");
                socket.write_all(quick.as_bytes()).await.expect("writes");
                read_all(&mut socket).await;
            }
        });
    }
    for mut other in stalled {
        let closed = tokio::time::timeout(LONG.head / 2, read_all(&mut other)).await;
        assert_eq!(closed.expect("it makes place"), "");
    }
}

#[tokio::test]
async fn however_crowded_a_client_that_did_its_part_gets_its_answer() {
    let (reached, mut watch) = mpsc::channel::<()>(4);
    let go = Arc::new(Notify::new());
    let (budget, gate) = (Budget::new(100), go.clone());
    let slow = async move |body: Body| -> Result<Response, Problem> {
        let bytes = read_body(body, 10, &budget).await?;
        reached.send(()).await.expect("the test listens");
        gate.notified().await;
        Ok(json_bytes(axum::http::StatusCode::CREATED, bytes.to_vec()))
    };
    let limits = ConnectionLimits { connections: 2, crowded_head: SHORT, crowded_stall: SHORT, ..LONG };
    let served = start(limits, Router::new().route("/slow", post(slow)).route("/livez", get(live))).await;
    let mut waiting = Vec::new();
    for (headers, body) in
        [("Content-Length: 4\r\n", "1234"), ("Transfer-Encoding: chunked\r\n", "4\r\n1234\r\n0\r\n\r\n")]
    {
        let mut client = served.connect().await;
        client.write_all(request("POST /slow", headers, body).as_bytes()).await.expect("writes");
        watch.recv().await.expect("reached");
        waiting.push(client);
    }
    let quick = request("GET /livez", "", "");
    tokio::time::timeout(SHORT * 10, served.exchange(&quick)).await.expect_err("no place");
    for mut client in waiting {
        go.notify_one();
        check(&read_all(&mut client).await, &["HTTP/1.1 201 ", "1234"]);
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_a_timeout() {
    let hang = Router::new().route("/hang", get(std::future::pending::<()>));
    let served = start(ConnectionLimits { answer: SHORT, ..LONG }, hang.merge(storing(Arc::default()))).await;
    check(&served.exchange(&request("GET /hang", "", "")).await, &["HTTP/1.1 504 ", r#""code":"timeout""#]);
    let slow = request("POST /messages", "Content-Length: 10\r\n", "1234");
    check(&served.exchange(&slow).await, &["HTTP/1.1 504 ", r#""code":"timeout""#]);
}

#[tokio::test]
async fn a_handler_that_panics_answers_and_the_server_lives() {
    let panicking = async || -> Response { panic!("on purpose") };
    let served = start(LONG, storing(Arc::default()).route("/panic", get(panicking))).await;
    check(&served.exchange(&request("GET /panic", "", "")).await, &["HTTP/1.1 500 ", r#""code":"internal""#]);
    check(&served.exchange(&request("GET /livez", "", "")).await, &["HTTP/1.1 200 ", r#"{"live":true}"#]);
}

#[tokio::test]
async fn a_reader_that_accepts_no_bytes_is_disconnected() {
    let (alive, mut watch) = mpsc::channel::<()>(1);
    let endless = async move || {
        let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
        let alive = alive.clone();
        alive.send(()).await.expect("the test listens");
        let stream = futures_util::stream::repeat_with(move || {
            let _keep = &alive;
            Ok::<_, io::Error>(chunk.clone())
        });
        Body::from_stream(stream)
    };
    let app = Router::new().route("/endless", get(endless));
    let served = start(ConnectionLimits { write: SHORT, ..LONG }, app).await;
    let mut socket = served.connect().await;
    socket.write_all(request("GET /endless", "", "").as_bytes()).await.expect("writes");
    watch.recv().await.expect("the answer began");
    // The connection ends although the socket stays open, long before the drain would cut it.
    served.stop.cancel();
    let began = std::time::Instant::now();
    let Served { mut task, .. } = served;
    task.join_next().await.expect("one task").expect("no panic");
    assert!(watch.recv().await.is_none() && began.elapsed() < LONG.drain / 2);
    drop(socket);
}

const KEY: &str = "a-key-that-is-not-guessed";
const WITH_KEY: &str = "Authorization: Bearer a-key-that-is-not-guessed\r\n";

/// A server with two keys, and the number of bytes that it stored.
async fn with_keys(limits: ConnectionLimits) -> (Served, Arc<AtomicUsize>) {
    let stored = Arc::new(AtomicUsize::new(0));
    let keys = Keys::from_list(&format!("another-key-for-later,{KEY}")).expect("keys");
    (start_with_keys(limits, storing(stored.clone()), Some(keys)).await, stored)
}

#[tokio::test]
async fn without_a_valid_key_every_path_gives_the_same_refusal() {
    let (served, stored) = with_keys(ConnectionLimits { linger: SHORT, ..LONG }).await;
    let shown: Vec<String> = ["", "Bearer", "Bearer ", "Basic x", "Bearer a-key-that-is-not-guesse"]
        .into_iter()
        .chain([
            "Bearer a-key-that-is-not-guessex",
            "Bearer a-key-that-is-not-guessed2",
            "a-key-that-is-not-guessed",
        ])
        .map(|value| format!("Authorization: {value}\r\n"))
        .chain([
            String::new(),
            format!("{WITH_KEY}{WITH_KEY}"),
            format!("Authorization: Bearer {}\r\n", KEY.repeat(999)),
        ])
        .collect();
    let mut answers = std::collections::BTreeSet::new();
    for headers in &shown {
        for line in
            ["GET /messages", "POST /messages", "DELETE /messages", "GET /nothing", "GET /", "OPTIONS *"]
        {
            let answer = served.exchange(&request(line, headers, "")).await;
            answers.insert(
                answer.lines().filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("\n"),
            );
        }
    }
    for path in [
        "/livez/",
        "/%6civez",
        "//livez",
        "/livez/..",
        "/LIVEZ",
        "/messages?key=a-key-that-is-not-guessed",
        "/sync",
    ] {
        let answer =
            served.exchange(&request(&format!("POST {path}"), "Content-Length: 5\r\n", "12345")).await;
        answers
            .insert(answer.lines().filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("\n"));
    }
    let answers: Vec<_> = answers.into_iter().collect();
    assert_eq!(answers.len(), 1, "{answers:#?}");
    check(
        &answers[0],
        &["HTTP/1.1 401 ", "www-authenticate: Bearer", "connection: close", "application/problem+json"],
    );
    check(&answers[0], &[r#""code":"unauthorized""#, r#""retryable":false"#, "`Authorization: Bearer KEY`"]);
    assert_eq!(stored.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn each_key_gives_access_to_everything() {
    let (served, stored) = with_keys(LONG).await;
    for key in [WITH_KEY, "authorization: bearer another-key-for-later\r\n"] {
        let send = request("POST /messages", &format!("{key}Content-Length: 5\r\n"), "12345");
        check(&served.exchange(&send).await, &["HTTP/1.1 201 ", "12345"]);
        check(&served.exchange(&request("GET /nothing", key, "")).await, &["HTTP/1.1 404 "]);
        let answer = served.exchange(&request("GET /livez", key, "")).await;
        check(&answer, &["HTTP/1.1 200 "]);
        assert!(!answer.contains("www-authenticate"), "{answer}");
    }
    assert_eq!(stored.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn health_checks_need_no_key_and_take_no_body() {
    let (served, _) = with_keys(ConnectionLimits { linger: SHORT, ..LONG }).await;
    for headers in ["", "Authorization: Bearer a-key-of-another-network\r\n"] {
        // The connection could be kept alive, but a client without a key gets one answer per connection.
        let answer = served.exchange(&format!("GET /livez HTTP/1.1\r\nHost: x\r\n{headers}\r\n")).await;
        check(
            &answer,
            &["HTTP/1.1 200 ", r#"{"live":true}"#, "www-authenticate: Bearer", "connection: close"],
        );
    }
    let long = request("POST /livez", &format!("Content-Length: {}\r\n", 1 << 30), "");
    check(&served.exchange(&long).await, &["HTTP/1.1 405 "]);
}

#[tokio::test]
async fn the_body_of_an_unauthenticated_request_is_not_read() {
    let (mut served, stored) = with_keys(LONG).await;
    let head = format!("POST /messages HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n", 1_usize << 30);
    let mut socket = served.connect().await;
    socket.write_all(format!("{head}\r\n").as_bytes()).await.expect("writes");
    let part = vec![b'x'; 64 * 1024];
    // More than the kernel buffers of both sides hold: sending all of it requires a server that reads.
    let sending = async { while socket.write_all(&part).await.is_ok() {} };
    assert!(
        timeout(4 * SHORT, sending).await.is_err(),
        "the server reads the body, or closed before the answer was read"
    );
    check(&read_all(&mut socket).await, &["HTTP/1.1 401 "]);
    served.stop.cancel();
    drop(socket);

    let (again, _) = with_keys(ConnectionLimits { linger: SHORT, ..LONG }).await;
    let answer = again.exchange(&format!("{head}Expect: 100-continue\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "the client is not asked to continue: {answer}");
    again.stop.cancel();
    assert_eq!(stored.load(Ordering::SeqCst), 0);
    served.task.shutdown().await;
}

#[tokio::test]
async fn the_oldest_unauthenticated_connection_is_dropped_for_a_newer_one() {
    let (served, _) = with_keys(ConnectionLimits { unauthenticated: 2, ..LONG }).await;
    let mut known = served.connect().await;
    let ask = format!("GET /livez HTTP/1.1\r\nHost: x\r\n{WITH_KEY}\r\n");
    known.write_all(ask.as_bytes()).await.expect("writes");
    let mut byte = [0];
    known.read_exact(&mut byte).await.expect("answered, and kept alive");
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(served.connect().await);
    }
    for longest in &mut silent[..3] {
        assert_eq!(read_all(longest).await, "", "cut off");
    }
    for newest in &mut silent[3..] {
        assert!(timeout(SHORT, read_all(newest)).await.is_err(), "there is room for two");
    }
    check(&served.exchange(&request("GET /messages", WITH_KEY, "")).await, &["HTTP/1.1 200 "]);
    known.write_all(request("GET /messages", WITH_KEY, "").as_bytes()).await.expect("writes");
    check(&read_all(&mut known).await, &["HTTP/1.1 200 OK", "[]"]);

    let open = start(ConnectionLimits { unauthenticated: 1, ..LONG }, storing(Arc::default())).await;
    let mut silent = [open.connect().await, open.connect().await];
    assert!(timeout(SHORT, read_all(&mut silent[0])).await.is_err(), "without keys no connection counts");
}

#[tokio::test]
async fn an_unauthenticated_client_that_keeps_sending_is_disconnected() {
    let (mut served, _) = with_keys(ConnectionLimits { connections: 1, linger: SHORT, ..LONG }).await;
    let mut socket = served.connect().await;
    let head = request("POST /messages", &format!("Content-Length: {}\r\n", 1_usize << 30), "");
    socket.write_all(head.as_bytes()).await.expect("writes");
    // The only connection is free again, although the client has not closed it.
    check(&served.exchange(&request("GET /livez", WITH_KEY, "")).await, &["HTTP/1.1 200 "]);
    let part = vec![b'x'; 64 * 1024];
    while socket.write_all(&part).await.is_ok() {}
    served.stop.cancel();
    served.task.join_next().await.expect("one task").expect("no panic");
}

#[tokio::test]
async fn the_next_connection_waits_when_all_slots_are_taken() {
    let served = start(ConnectionLimits { connections: 1, ..LONG }, storing(Arc::default())).await;
    let mut first = served.connect().await;
    let half = request("POST /messages", "Content-Length: 8\r\n", "1234");
    first.write_all(half.as_bytes()).await.expect("writes");
    let second = request("GET /livez", "", "");
    let second = served.exchange(&second);
    tokio::pin!(second);
    assert!(timeout(SHORT, &mut second).await.is_err());
    drop(first);
    check(&second.await, &["HTTP/1.1 200 "]);
}

#[tokio::test]
async fn open_requests_finish_after_stop_and_no_new_ones_begin() {
    let (enter, mut entered) = mpsc::channel::<oneshot::Sender<()>>(1);
    let wait = async move || {
        let (go, going) = oneshot::channel();
        enter.send(go).await.expect("the test listens");
        going.await.expect("the test lets it go");
        "done"
    };
    let mut served = start(LONG, Router::new().route("/wait", get(wait))).await;
    let mut socket = served.connect().await;
    let mut idle = served.connect().await;
    socket.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
    let go = entered.recv().await.expect("the handler began");
    served.stop.cancel();
    assert_eq!(read_all(&mut idle).await, "", "an idle connection is closed at once");
    assert!(TcpStream::connect(served.addr).await.is_err(), "the listener is closed");
    go.send(()).expect("the handler waits");
    check(&read_all(&mut socket).await, &["HTTP/1.1 200 ", "done"]);
    served.task.join_next().await.expect("one task").expect("no panic");
}

#[tokio::test]
async fn a_request_that_never_ends_is_closed_after_the_drain() {
    let hang = Router::new().route("/hang", get(std::future::pending::<()>));
    let mut served =
        start(ConnectionLimits { drain: SHORT, ..LONG }, hang.merge(storing(Arc::default()))).await;
    let mut socket = served.connect().await;
    socket
        .write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("writes");
    let mut byte = [0];
    socket.read_exact(&mut byte).await.expect("the first is answered");
    served.stop.cancel();
    served.task.join_next().await.expect("one task").expect("no panic");
}

/// `printf … | nc -N`: the client sends its request, closes its sending side, and reads on.
#[tokio::test]
async fn a_client_that_closed_its_sending_side_gets_all_but_an_answer_with_long_silences() {
    use futures_util::{StreamExt, stream};
    let after = |time| async move {
        let _late = timeout(time, std::future::pending::<()>()).await;
        "part;"
    };
    let slow = move || after(5 * SHORT);
    let parts = move |time| {
        let parts = stream::iter(0..10).then(move |_| after(time)).map(Ok::<_, io::Error>);
        async move { Body::from_stream(parts) }
    };
    let app = Router::new()
        .route("/livez", get(live))
        .route("/network", get(slow))
        .route("/messages", post(slow).get(move || parts(SHORT / 5)))
        .route("/feed", get(move || parts(5 * SHORT)));
    let served = start(LONG, app).await;
    let ask = async |line: &str| {
        let mut socket = served.connect().await;
        socket.write_all(request(line, "", "").as_bytes()).await.expect("writes");
        socket.shutdown().await.expect("closes its side");
        read_all(&mut socket).await
    };
    check(&ask("GET /livez").await, &["HTTP/1.1 200 ", "true"]);
    check(&ask("GET /network").await, &["HTTP/1.1 200 ", "part;"]);
    check(&ask("POST /messages").await, &["HTTP/1.1 200 ", "part;"]);
    let listed = ask("GET /messages").await;
    assert!(listed.matches("part;").count() == 10 && listed.ends_with("0\r\n\r\n"), "{listed}");
    let feed = ask("GET /feed").await;
    assert!(!feed.contains("part;") && !feed.ends_with("0\r\n\r\n"), "a feed ends before a silence: {feed}");

    let silent = Router::new().route("/messages", get(std::future::pending::<()>));
    let served = start(LONG, silent).await;
    let mut socket = served.connect().await;
    socket.write_all(request("GET /messages", "", "").as_bytes()).await.expect("writes");
    socket.shutdown().await.expect("closes its side");
    check(&read_all(&mut socket).await, &["HTTP/1.1 504 ", r#""code":"timeout""#, "closed its side"]);
}
