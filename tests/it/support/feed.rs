//! Feed readers for tests: a single connection, event by event, and a follower that reconnects when a server fails.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::eventually::eventually_blocking;
use super::http::{Connection, Head};
use super::messages;

/// Read timeout. A feed sends an event or a comment at least every 15 s.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// A server that does not accept a connection within this time is skipped.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The format of a feed: server-sent events or NDJSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Events,
    Lines,
}

/// One event of a feed.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `message`, `caught-up`, `bookmark`, or `comment`.
    pub kind: String,
    pub cursor: String,
    /// Null unless the kind is `message`.
    pub message: Value,
}

/// Reads a feed until `each` returns false. Gives the head of the answer; an error if the feed ends first. An answer
/// other than 200 has no events.
pub fn read(
    addr: SocketAddr,
    query: &str,
    format: Format,
    each: impl FnMut(Event) -> bool,
) -> io::Result<Head> {
    match format {
        Format::Events => read_by(addr, query, "text/event-stream", block, each),
        Format::Lines => read_by(addr, query, "application/x-ndjson", |body| event(&line(body)?), each),
    }
}

/// As `read`, but gives raw lines: parsing a million events takes longer than sending them.
pub fn read_lines(addr: SocketAddr, query: &str, each: impl FnMut(String) -> bool) -> io::Result<Head> {
    read_by(addr, query, "application/x-ndjson", line, each)
}

fn read_by<T>(
    addr: SocketAddr,
    query: &str,
    accept: &str,
    next: fn(&mut dyn BufRead) -> io::Result<T>,
    mut each: impl FnMut(T) -> bool,
) -> io::Result<Head> {
    let mut connection = Connection::open_within(addr, CONNECT_TIMEOUT, READ_TIMEOUT)?;
    let request = format!("GET /feed{query} HTTP/1.1\r\nhost: {addr}\r\naccept: {accept}\r\n\r\n");
    connection.send(request.as_bytes())?;
    let head = connection.head()?;
    let mut body = BufReader::new(connection.body("GET", &head)?);
    while head.status == 200 && each(next(&mut body)?) {}
    Ok(head)
}

fn line(body: &mut dyn BufRead) -> io::Result<String> {
    let mut line = String::new();
    match body.read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line),
    }
}

fn event(line: &str) -> io::Result<Event> {
    let mut event: Value = serde_json::from_str(line)?;
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let (kind, cursor) = (text(&event["event"]), text(&event["cursor"]));
    Ok(Event { kind, cursor, message: event["message"].take() })
}

/// Parses one server-sent event as the HTML standard defines it, limited to the fields that ChatChain sends.
fn block(body: &mut dyn BufRead) -> io::Result<Event> {
    let (mut kind, mut cursor, mut data) = (None, String::new(), None);
    loop {
        let line = line(body)?;
        match line.trim_end_matches('\n').split_once(':') {
            _ if line == "\n" => break,
            Some(("", _)) => kind = Some("comment".to_owned()),
            Some(("id", id)) => id.trim_start().clone_into(&mut cursor),
            Some(("event", event)) => kind = Some(event.trim_start().to_owned()),
            Some(("data", text)) => data = Some(serde_json::from_str(text)?),
            _ => panic!("{line:?} in a feed"),
        }
    }
    let kind = kind.unwrap_or_else(|| if data.is_some() { "message" } else { "bookmark" }.into());
    Ok(Event { kind, cursor, message: data.unwrap_or_default() })
}

/// All messages up to the next `caught-up` event, and the cursor of that event.
#[track_caller]
pub fn catch_up(addr: SocketAddr, query: &str, format: Format) -> (Vec<Value>, String) {
    let (mut found, mut last) = (Vec::new(), String::new());
    let head = read(addr, query, format, |event| {
        last = event.cursor;
        match event.kind.as_str() {
            "message" => found.push(event.message),
            "caught-up" => return false,
            other => assert_eq!(other, "bookmark"),
        }
        true
    });
    assert_eq!(head.expect("a feed").status, 200);
    (found, last)
}

/// What a follower has received.
#[derive(Debug, Default, Clone)]
pub struct Received {
    /// For each message number: how often it was received, and when first.
    pub numbers: BTreeMap<u64, (u64, Option<Instant>)>,
    pub cursor: String,
    /// The number of connections opened.
    pub opened: u64,
    /// The number of comments and bookmarks, which keep the connection alive.
    pub comments: u64,
}

/// A thread that follows the feed from its end on, and tries the next address whenever a connection ends.
pub struct Follower {
    received: Arc<Mutex<Received>>,
    wanted: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Follower {
    pub fn start(addrs: Vec<SocketAddr>, format: Format) -> Self {
        let (received, wanted) = (Arc::<Mutex<Received>>::default(), Arc::new(AtomicU64::new(u64::MAX)));
        let (shared, wanted_count) = (received.clone(), wanted.clone());
        let thread = std::thread::spawn(move || {
            for turn in 0.. {
                let addr = addrs[turn % addrs.len()];
                let is_there = || TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT).is_ok();
                if addrs.len() > 1 && !is_there() {
                    continue;
                }
                eventually_blocking(READ_TIMEOUT, "a server that accepts connections", is_there);
                if !follow(addr, format, &shared, &wanted_count) {
                    return;
                }
            }
        });
        Follower { received, wanted, thread }
    }

    /// What the follower has received so far.
    pub fn received(&self) -> Received {
        self.received.lock().expect("no follower panics with the lock").clone()
    }

    /// Whether the follower is connected and has its first cursor.
    pub fn has_begun(&self) -> bool {
        !self.received().cursor.is_empty()
    }

    /// Makes the follower stop at the first event after which it has `count` different messages.
    pub fn end_with(&self, count: u64) {
        self.wanted.store(count, Ordering::SeqCst);
    }

    /// Whether the follower has stopped.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Follows over one connection until it ends. False if the follower has all the messages it wants.
fn follow(addr: SocketAddr, format: Format, shared: &Mutex<Received>, wanted_count: &AtomicU64) -> bool {
    let mut received = shared.lock().expect("no follower panics with the lock");
    received.opened += 1;
    let query =
        if received.cursor.is_empty() { String::new() } else { format!("?cursor={}", received.cursor) };
    drop(received);
    let mut goes_on = true;
    let read = read(addr, &query, format, |event| {
        let mut received = shared.lock().expect("no follower panics with the lock");
        if event.kind == "message" {
            let number = messages::number(&event.message);
            let (times, first) = received.numbers.entry(number).or_default();
            *times += 1;
            first.get_or_insert_with(Instant::now);
        }
        received.comments += u64::from(event.kind == "comment" || event.kind == "bookmark");
        if event.kind != "comment" {
            received.cursor = event.cursor;
        }
        goes_on = (received.numbers.len() as u64) < wanted_count.load(Ordering::SeqCst);
        goes_on
    });
    match read {
        Ok(head) => assert!([200, 503].contains(&head.status), "{}", head.status),
        Err(error) => assert_ne!(error.kind(), io::ErrorKind::InvalidData, "{error}"),
    }
    goes_on
}
