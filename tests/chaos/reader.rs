//! A reader of an episode: polls listings of random servers during the faults, and checks every listed message.
//!
//! A truncated listing is checked as far as it was received: a server must never list a wrong message. A missing
//! message is no violation here; its age is recorded as staleness.

use std::collections::HashSet;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use crate::client::Server;
use crate::history::History;
use crate::judge::{Listed, Token, Violation, ViolationKind, check_listing};
use crate::pace;
use crate::schedule::pick;
use crate::support::http::Connection;
use crate::support::rng::SeededRng;

const PAUSE_MAX: Duration = Duration::from_millis(500);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
const STEP_TIMEOUT: Duration = Duration::from_secs(4);

/// A listing as far as it was received.
pub struct Reading {
    pub messages: Vec<Listed>,
    pub bytes: Vec<u8>,
    /// Whether the listing is complete.
    pub whole: bool,
}

/// Reads a listing, or the received part of it. An error if the request was refused or not answered.
pub fn read(addr: SocketAddr, query: &str) -> io::Result<Reading> {
    let mut connection = Connection::open_within(addr, CONNECT_TIMEOUT, STEP_TIMEOUT)?;
    let request =
        format!("GET /messages{query} HTTP/1.1\r\nhost: {addr}\r\naccept: application/x-ndjson\r\n\r\n");
    connection.send(request.as_bytes())?;
    let head = connection.head()?;
    let mut bytes = Vec::new();
    let end = connection.body("GET", &head)?.read_to_end(&mut bytes);
    if head.status != 200 {
        return Err(io::Error::other(format!("{}: {}", head.status, String::from_utf8_lossy(&bytes))));
    }
    // A truncated last line is ignored.
    let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..complete].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let messages = lines.map(serde_json::from_slice).collect::<Result<_, _>>();
    let messages = messages.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok(Reading { messages, bytes, whole: end.is_ok() })
}

/// Reads until the episode is over.
pub fn run(number: u64, seed: u64, history: &History, servers: &[Server]) {
    let mut rng = SeededRng::of(seed.wrapping_mul(1_000_003).wrapping_add(1_000_000 + number));
    while !history.is_over() {
        let server = servers[pick(&mut rng, servers.len())];
        let query = match rng.within(0..5) {
            0 => String::new(),
            1 => format!("?user=user{}", rng.within(1..9)),
            _ => format!("?limit={}", rng.within(1..500)),
        };
        let began = history.now();
        let reading = history.run_request(|| read(server.addr, &query));
        match reading {
            Ok(reading) => look(history, server, &query, began, &reading),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                let detail = format!("{server:?}{query}: not a listing: {e}");
                history.found([Violation::new(ViolationKind::Changed, detail)]);
            }
            Err(_) => {} // the server is down
        }
        pace::pause(rng.duration(PAUSE_MAX));
    }
}

fn look(history: &History, server: Server, query: &str, began: u64, reading: &Reading) {
    let (seen, wrongs) =
        history.show(|attempts| check_listing(attempts, &format!("{server:?}{query}"), &reading.messages));
    history.found(wrongs);
    if query.is_empty() && reading.whole {
        let oldest = oldest_missing(history, &seen, began);
        history.read_was_stale_by(oldest.map_or(0, |acked| began - acked));
    }
}

/// The earliest acknowledgment, before `began`, of a message that is not in `seen`.
fn oldest_missing(history: &History, seen: &HashSet<Token>, began: u64) -> Option<u64> {
    history.show(|attempts| {
        let numbered = (0..).zip(attempts).flat_map(|(client, list)| {
            (0..).zip(*list).map(move |(number, attempt)| ((client, number), attempt))
        });
        let acked = numbered.filter_map(|(token, attempt)| Some((token, attempt.acked.as_ref()?.at)));
        acked.filter(|(token, at)| *at < began && !seen.contains(token)).map(|(_, at)| at).min()
    })
}
