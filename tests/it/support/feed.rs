//! Readers of the feed: one event after the other, or as somebody who follows along whatever happens to the servers.

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

/// A feed brings something at least every 15 s.
const STEP_TIME: Duration = Duration::from_secs(20);
/// A server that does not accept within this time is passed over.
const CONNECT_TIME: Duration = Duration::from_secs(1);

/// How events are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Events,
    Lines,
}

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `message`, `caught-up`, `bookmark`, or `comment`.
    pub kind: String,
    pub cursor: String,
    /// With a message.
    pub message: Value,
}

/// Reads a feed until `each` says no. Gives the head; an error if it ends before. What is refused has no events.
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

/// The same for long ones: lines as they come, for to understand a million takes longer than to send them.
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
    let mut connection = Connection::open_within(addr, CONNECT_TIME, STEP_TIME)?;
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

/// By the rules of the HTML standard, as far as ours are used.
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

/// Everything up to the next `caught-up`, with the cursor after it.
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

/// What a follower was given.
#[derive(Debug, Default, Clone)]
pub struct Given {
    /// Each message's number, with how often and when first.
    pub numbers: BTreeMap<u64, (u64, Option<Instant>)>,
    pub cursor: String,
    /// How often it had to begin again.
    pub opened: u64,
    /// What was said to keep it: comments, and bookmarks that moved nothing.
    pub comments: u64,
}

/// Somebody who follows, at one of these addresses after the other, from now on.
pub struct Follower {
    given: Arc<Mutex<Given>>,
    wanted: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Follower {
    pub fn start(addrs: Vec<SocketAddr>, format: Format) -> Self {
        let (given, wanted) = (Arc::<Mutex<Given>>::default(), Arc::new(AtomicU64::new(u64::MAX)));
        let (mine, enough) = (given.clone(), wanted.clone());
        let thread = std::thread::spawn(move || {
            for turn in 0.. {
                let addr = addrs[turn % addrs.len()];
                let is_there = || TcpStream::connect_timeout(&addr, CONNECT_TIME).is_ok();
                if addrs.len() > 1 && !is_there() {
                    continue;
                }
                eventually_blocking(STEP_TIME, "somebody listens", is_there);
                if !follow(addr, format, &mine, &enough) {
                    return;
                }
            }
        });
        Follower { given, wanted, thread }
    }

    /// What it was given so far.
    pub fn given(&self) -> Given {
        self.given.lock().expect("it does not panic").clone()
    }

    /// Whether it has connected and heard where it is.
    pub fn has_begun(&self) -> bool {
        !self.given().cursor.is_empty()
    }

    /// Lets it end with the event after it has so many different messages.
    pub fn end_with(&self, count: u64) {
        self.wanted.store(count, Ordering::SeqCst);
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

/// One connection. `false`: it was the last.
fn follow(addr: SocketAddr, format: Format, mine: &Mutex<Given>, enough: &AtomicU64) -> bool {
    let mut given = mine.lock().expect("nobody panics");
    given.opened += 1;
    let query = if given.cursor.is_empty() { String::new() } else { format!("?cursor={}", given.cursor) };
    drop(given);
    let mut goes_on = true;
    let read = read(addr, &query, format, |event| {
        let mut given = mine.lock().expect("nobody panics");
        if event.kind == "message" {
            let number = messages::number(&event.message);
            let (times, first) = given.numbers.entry(number).or_default();
            *times += 1;
            first.get_or_insert_with(Instant::now);
        }
        given.comments += u64::from(event.kind == "comment" || event.kind == "bookmark");
        if event.kind != "comment" {
            given.cursor = event.cursor;
        }
        goes_on = (given.numbers.len() as u64) < enough.load(Ordering::SeqCst);
        goes_on
    });
    match read {
        Ok(head) => assert!([200, 503].contains(&head.status), "{}", head.status),
        Err(error) => assert_ne!(error.kind(), io::ErrorKind::InvalidData, "{error}"),
    }
    goes_on
}
