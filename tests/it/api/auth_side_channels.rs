//! Rejected credentials, however similar to the key, all get the same bytes after the same time.
//!
//! A server closes the connection after it refused a request, so every request here uses its own connection. The
//! duration of the comparison itself is measured beside its code, to nanoseconds; here, that of the whole request.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::auth::{KEY, PATHS, start_with_keys};
use crate::support::cluster::Cluster;
use crate::support::http::{Connection, encode};
use crate::support::measure::{self, percentile};
use crate::support::rng::SeededRng;
use crate::support::servers::JSON;

/// Tolerance between the medians of different headers, beyond 25 %. A disk read or a request to another process takes
/// longer than this.
const NOISE: Duration = Duration::from_micros(20);
const MESSAGE: &str = r#"{"sender":"eve","recipient":"bob","text":"let me in"}"#;

/// Rejected credentials: a description, and raw header lines.
fn credentials() -> Vec<(&'static str, Vec<u8>)> {
    let line = |value: &[u8]| [b"authorization: ", value, b"\r\n"].concat();
    let bearer = |key: &str| line(format!("Bearer {key}").as_bytes());
    let (all_but_the_last, count) = (&KEY[..KEY.len() - 1], KEY.len());
    vec![
        ("nothing", Vec::new()),
        ("an empty header", line(b"")),
        ("an empty key", bearer("")),
        ("a wrong key of the same length", bearer(&"x".repeat(count))),
        ("all but the last character", bearer(&format!("{all_but_the_last}x"))),
        ("a prefix", bearer(all_but_the_last)),
        ("an extension", bearer(&format!("{KEY}x"))),
        ("a very long one", bearer(&KEY.repeat(100))),
        ("another scheme", line(format!("Basic {KEY}").as_bytes())),
        ("no scheme", line(KEY.as_bytes())),
        ("garbage", line(b";=,\"{ ]\\ %00")),
        ("a key that is not UTF-8", line(&[b"Bearer ", KEY.as_bytes(), b"\xff\xfe"].concat())),
        ("the key in two headers", bearer(KEY).repeat(2)),
        ("the key and a wrong key", [bearer(KEY), bearer(all_but_the_last)].concat()),
    ]
}

fn request(addr: SocketAddr, (method, path): (&str, &str), credential: &[u8], body: &str) -> Vec<u8> {
    let mut request = encode(addr, method, path, &[JSON], body.as_bytes());
    let line = request.windows(2).position(|bytes| bytes == b"\r\n").expect("a request line") + 2;
    request.splice(line..line, credential.iter().copied());
    request
}

/// All bytes up to the end of the connection, without the date.
#[track_caller]
fn answer(addr: SocketAddr, request: &[u8]) -> String {
    let mut connection = Connection::open(addr).expect("connected");
    connection.send(request).expect("sent");
    let answer = String::from_utf8(connection.rest().expect("answered")).expect("text");
    let lines = answer.split_inclusive("\r\n");
    assert_eq!(lines.clone().filter(|line| line.starts_with("date: ")).count(), 1, "{answer}");
    lines.filter(|line| !line.starts_with("date: ")).collect()
}

fn servers(cluster: &Cluster) -> [(&'static str, SocketAddr); 2] {
    [("node", cluster.node(0)), ("proxy", cluster.proxy())]
}

#[test]
fn every_rejected_credential_gets_the_same_bytes() {
    let cluster = start_with_keys(1, KEY);
    let mut first = None;
    for (server, addr) in servers(&cluster) {
        for path in PATHS {
            let bodies: &[&str] = if path.0 == "POST" { &["", MESSAGE, &"x".repeat(40_000)] } else { &[""] };
            for (body, (what, credential)) in
                bodies.iter().flat_map(|body| credentials().into_iter().map(move |s| (body, s)))
            {
                let answer = answer(addr, &request(addr, path, &credential, body));
                let first = first.get_or_insert_with(|| answer.clone());
                assert_eq!(answer, *first, "{what} at the {server}, {path:?}, {} bytes", body.len());
            }
        }
    }
    let first = first.expect("at least one request");
    assert!(first.starts_with("HTTP/1.1 401 ") && first.contains("this network is locked"), "{first}");
}

/// The answers of public paths do not reveal how close a credential is to the key either.
#[test]
fn public_paths_answer_every_credential_alike() {
    let cluster = start_with_keys(1, KEY);
    for (server, addr) in servers(&cluster) {
        for path in ["/livez", "/readyz"] {
            let answers = credentials().into_iter().map(|(what, credential)| {
                (what, answer(addr, &request(addr, ("GET", path), &credential, "")))
            });
            let answers: Vec<_> = answers.collect();
            let (_, first) = &answers[0];
            assert!(first.starts_with("HTTP/1.1 200 "), "{first}");
            for (what, answer) in &answers {
                assert_eq!(answer, first, "{what} at the {server}, {path}");
            }
        }
    }
}

/// The median response time for each credential. The order of requests is random in each round, so that a disturbance
/// of the machine affects all credentials alike.
fn medians(addr: SocketAddr, credentials: &[Vec<u8>], rng: &mut SeededRng) -> Vec<Duration> {
    const ROUNDS: usize = 200;
    let requests: Vec<_> =
        credentials.iter().map(|credential| request(addr, ("GET", "/messages"), credential, "")).collect();
    let mut order: Vec<_> = (0..requests.len()).collect();
    let mut times = vec![Vec::new(); requests.len()];
    for _ in 0..ROUNDS {
        order.sort_by_cached_key(|_| rng.number());
        let mut connections: Vec<_> =
            order.iter().map(|_| Connection::open(addr).expect("connected")).collect();
        for (which, connection) in order.iter().zip(&mut connections) {
            let began = Instant::now();
            connection.send(&requests[*which]).expect("sent");
            let answer = connection.receive("GET").expect("answered");
            times[*which].push(began.elapsed());
            assert_eq!(answer.status(), 401);
        }
    }
    times.iter().map(|times| percentile(times, 0.5)).collect()
}

#[test]
fn every_rejected_credential_takes_equally_long() {
    let cluster = start_with_keys(1, KEY);
    let mut rng = SeededRng::new();
    // Reading a header of kilobytes takes measurably longer, whatever its content.
    let short = credentials().into_iter().filter(|(_, line)| line.len() < 100);
    let (names, lines): (Vec<_>, Vec<_>) = short.unzip();
    for (server, addr) in servers(&cluster) {
        // On a busy machine single attempts may fail, but not all ten.
        let mut seen = Vec::new();
        let alike = (0..10).any(|_| {
            let times = medians(addr, &lines, &mut rng);
            let (least, most) = (times.iter().min().expect("some"), times.iter().max().expect("some"));
            measure::say(&format!(
                "the {server} refuses after {least:.1?} to {most:.1?}, for every credential"
            ));
            let alike = *most < least.mul_f64(1.25) + NOISE;
            seen = names.iter().zip(times).collect();
            alike
        });
        assert!(alike, "at the {server}: {seen:.1?}");
    }
}
