//! A client of an episode: sends messages at a steady rate, through the proxy and to nodes, and records the answers.
//!
//! It sends single messages and batches; with an id, with an `Idempotency-Key`, or with neither. A request without a
//! clear answer is repeated with the same bytes at another server, and sometimes an acknowledged one is too; a request
//! without id and key is never repeated. Only a failed connection and a node's own refusal count as "not stored".

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::history::History;
use crate::judge::{Sent, Token, mark};
use crate::pace;
use crate::schedule::pick;
use crate::support::http::{self, Connection, Response};
use crate::support::rng::SeededRng;

/// Messages per second that all clients of an episode together try to send.
const RATE: u64 = 900;
const BATCH_LINES: Range<u64> = 10..60;
/// After this many tries that reached a server without an acknowledgment, a request stays unknown.
const TRIES_MAX: u32 = 12;
/// After the episode, requests without a clear answer are repeated for this long.
const LAST_TRIES: Duration = Duration::from_secs(8);
const RETRY_AFTER_MAX: Duration = Duration::from_millis(800);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
const STEP_TIMEOUT: Duration = Duration::from_secs(3);
/// Percentage of acknowledged requests that are sent once more.
const AGAIN_PERCENT: u64 = 4;

/// A server that clients can use.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// None: the proxy.
    pub node: Option<usize>,
    pub addr: SocketAddr,
}

pub struct Client<'a> {
    number: u16,
    rate: f64,
    rng: SeededRng,
    history: &'a History,
    servers: &'a [Server],
    open: HashMap<SocketAddr, Connection>,
    waiting: VecDeque<Request>,
    made: u32,
}

/// One request with its messages, always sent as the same bytes.
struct Request {
    tokens: Range<u32>,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    batch: bool,
    may_repeat: bool,
    tries: u32,
    last_server: Option<SocketAddr>,
    not_before: Instant,
    acked: bool,
}

/// What an answer says about one message.
enum SendResult {
    Stored(Vec<usize>),
    Unknown,
    /// Not stored by this try.
    Refused,
}

impl<'a> Client<'a> {
    pub fn new(number: usize, of: usize, seed: u64, history: &'a History, servers: &'a [Server]) -> Self {
        let number = u16::try_from(number).expect("few");
        let rate = f64::from(u32::try_from(RATE).expect("a small number"))
            / f64::from(u32::try_from(of).expect("few"));
        let rng = SeededRng::of(seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number)));
        let (open, waiting) = (HashMap::new(), VecDeque::new());
        Client { number, rate, rng, history, servers, open, waiting, made: 0 }
    }

    /// Sends until the episode is over, and then repeats the requests without a clear answer.
    pub fn run(mut self) {
        while !self.history.is_over() {
            let due = self.history.began().elapsed().as_secs_f64() * self.rate;
            if let Some(request) = self.next_waiting() {
                self.deliver(request);
            } else if f64::from(self.made) < due {
                let request = self.new_request();
                self.deliver(request);
            } else {
                pace::pause(Duration::from_millis(5));
            }
        }
        let end = Instant::now() + LAST_TRIES;
        while Instant::now() < end && !self.waiting.is_empty() && !pace::is_interrupted() {
            match self.next_waiting() {
                Some(request) => self.deliver(request),
                None => pace::pause(Duration::from_millis(5)),
            }
        }
    }

    fn next_waiting(&mut self) -> Option<Request> {
        let now = Instant::now();
        let at = self.waiting.iter().position(|request| request.not_before <= now)?;
        self.waiting.remove(at)
    }

    /// A request with new messages, which are recorded.
    fn new_request(&mut self) -> Request {
        let form = self.rng.within(0..100);
        let batch = form >= 70;
        let count = if batch { self.rng.within(BATCH_LINES) } else { 1 };
        let key = matches!(form, 50..65 | 90..100).then(|| self.uuid());
        let first = self.made;
        let mut sent: Vec<_> =
            (0..count).map(|_| self.message(form < 50 || (70..90).contains(&form))).collect();
        let lines: Vec<_> = sent.iter().map(|sent| body(sent).to_string()).collect();
        let media = if batch { "application/x-ndjson" } else { "application/json" };
        let mut headers = vec![("content-type", media.to_owned())];
        if let Some(key) = &key {
            headers.push(("idempotency-key", key.clone()));
            if !batch {
                sent[0].id = Some(key.clone());
            }
        }
        let may_repeat = key.is_some() || sent[0].id.is_some();
        self.history.invoke(self.number, sent);
        Request {
            tokens: first..self.made,
            headers,
            body: lines.join("\n").into_bytes(),
            batch,
            may_repeat,
            tries: 0,
            last_server: None,
            not_before: Instant::now(),
            acked: false,
        }
    }

    fn message(&mut self, with_id: bool) -> Sent {
        let token = (self.number, self.made);
        self.made += 1;
        let name = |n: u64| if n.is_multiple_of(3) { format!("#room{n}") } else { format!("user{n}") };
        Sent {
            id: with_id.then(|| self.uuid()),
            sender: format!("user{}", self.rng.within(0..9)),
            recipient: name(self.rng.within(0..9)),
            text: format!("{} {}", mark(token), self.prose()),
            timestamp: (self.rng.within(0..3) == 0).then(|| self.rng.within(0..2_000_000_000)),
        }
    }

    /// A text, mostly short. Sometimes with characters that JSON escapes or that have several bytes.
    fn prose(&mut self) -> String {
        const WORDS: [&str; 12] = [
            "disk",
            "full",
            "on",
            "web3",
            "\"ok\"",
            "\\",
            "line\nbreak",
            "tab\t",
            "größe",
            "日本",
            "🚢",
            "e\u{301}",
        ];
        let words = match self.rng.within(0..200) {
            0 => self.rng.within(500..2_000),
            1..20 => self.rng.within(20..80),
            _ => self.rng.within(0..12),
        };
        let words: Vec<_> = (0..words).map(|_| WORDS[pick(&mut self.rng, WORDS.len())]).collect();
        words.join(" ") + "."
    }

    fn uuid(&mut self) -> String {
        let [high, low] = [self.rng.number(), self.rng.number()];
        uuid::Uuid::from_u64_pair(high, low).to_string()
    }

    /// Sends a request once, records the answer, and perhaps schedules a repeat.
    fn deliver(&mut self, mut request: Request) {
        let server = self.server(request.last_server);
        request.last_server = Some(server.addr);
        let history = self.history;
        let answer = history.run_request(|| self.post(server, &request));
        request.tries += u32::from(!matches!(answer, Ok(None)));
        let results = match answer {
            Ok(Some(answer)) => self.read(server, &request, &answer),
            Ok(None) => all(&request, || SendResult::Refused),
            Err(_) => all(&request, || SendResult::Unknown),
        };
        let mut stored = 0;
        for (number, result) in request.tokens.clone().zip(&results) {
            let token: Token = (self.number, number);
            match result {
                SendResult::Stored(on) => {
                    stored += 1;
                    history.ok(token, on);
                }
                SendResult::Unknown => history.unknown(token),
                SendResult::Refused => {}
            }
        }
        let newly =
            stored == results.len() && !std::mem::replace(&mut request.acked, stored == results.len());
        let again = if newly { self.rng.within(0..100) < AGAIN_PERCENT } else { stored < results.len() };
        if again && request.may_repeat && request.tries < TRIES_MAX {
            request.not_before = Instant::now() + self.rng.duration(RETRY_AFTER_MAX);
            self.waiting.push_back(request);
        }
    }

    /// The proxy or a random node, but not the server of the last try.
    fn server(&mut self, last: Option<SocketAddr>) -> Server {
        loop {
            let server = match self.rng.within(0..2) {
                0 => self.servers[0],
                _ => self.servers[pick(&mut self.rng, self.servers.len())],
            };
            if Some(server.addr) != last {
                return server;
            }
        }
    }

    /// Sends a request. None if there was no connection, so nothing was sent.
    fn post(&mut self, server: Server, request: &Request) -> std::io::Result<Option<Response>> {
        let mut connection = match self.open.remove(&server.addr) {
            Some(connection) => connection,
            None => match Connection::open_within(server.addr, CONNECT_TIMEOUT, STEP_TIMEOUT) {
                Ok(connection) => connection,
                Err(_) => return Ok(None),
            },
        };
        let headers: Vec<_> = request.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        connection.send(&http::encode(server.addr, "POST", "/messages", &headers, &request.body))?;
        let answer = connection.receive("POST")?;
        if answer.header("connection") != Some("close") {
            self.open.insert(server.addr, connection);
        }
        Ok(Some(answer))
    }

    fn read(&self, server: Server, request: &Request, answer: &Response) -> Vec<SendResult> {
        let Ok(json) = serde_json::from_slice::<Value>(&answer.body) else {
            self.history
                .broke_contract(format!("{server:?}: not JSON: {:?}", String::from_utf8_lossy(&answer.body)));
            return all(request, || SendResult::Unknown);
        };
        match answer.status() {
            200..=202 if request.batch => self.read_batch(server, request, &json),
            200..=202 => vec![self.read_single(server, request, &json)],
            _ => all(request, || self.refusal(server, request, &json)),
        }
    }

    fn read_single(&self, server: Server, request: &Request, json: &Value) -> SendResult {
        let named = json["durable_on"].as_array().map(|on| on.iter().filter_map(Value::as_u64));
        let on: Vec<_> = named.into_iter().flatten().filter_map(|node| usize::try_from(node).ok()).collect();
        if on.is_empty() || server.node.is_some_and(|node| !on.contains(&node)) {
            self.history.broke_contract(format!("{server:?}: no valid durable_on: {json}"));
        }
        let (client, number) = (usize::from(self.number), request.tokens.start);
        let same = self.history.show(|attempts| {
            let sent = &attempts[client][usize::try_from(number).expect("a recorded number")].sent;
            sent.id.as_ref().is_none_or(|id| json["id"] == **id)
                && json["text"] == *sent.text
                && json["sender"] == *sent.sender
                && json["recipient"] == *sent.recipient
        });
        if !same {
            self.history.broke_contract(format!("{server:?}: answered another message: {json}"));
        }
        SendResult::Stored(on)
    }

    fn read_batch(&self, server: Server, request: &Request, json: &Value) -> Vec<SendResult> {
        let on: Vec<_> = server.node.into_iter().collect();
        let mut results = all(request, || SendResult::Stored(on.clone()));
        let rejected = json["rejected"].as_array().map(Vec::as_slice).unwrap_or_default();
        for line in rejected {
            let at = line["line"].as_u64().and_then(|line| usize::try_from(line).ok()).unwrap_or_default();
            match results.get_mut(at.wrapping_sub(1)) {
                Some(result) => *result = self.refusal(server, request, line),
                None => {
                    self.history
                        .broke_contract(format!("{server:?}: rejects a line that was not sent: {line}"));
                }
            }
        }
        let counted = json["accepted"].as_u64().zip(json["duplicates"].as_u64());
        let counted = counted.and_then(|(new, old)| usize::try_from(new + old).ok());
        if counted != Some(results.len() - rejected.len()) {
            self.history.broke_contract(format!("{server:?}: {} lines, but {json}", results.len()));
            return all(request, || SendResult::Unknown);
        }
        results
    }

    /// All our messages are valid, so only a fault of the server is a valid reason for a refusal.
    fn refusal(&self, server: Server, request: &Request, problem: &Value) -> SendResult {
        match problem["code"].as_str() {
            // The node itself refused before it stored anything. The proxy may have asked another node as well.
            Some("storage_full" | "overloaded" | "starting") if server.node.is_some() => SendResult::Refused,
            Some(
                "storage_full" | "overloaded" | "starting" | "storage_failed" | "no_node_available"
                | "timeout",
            ) => SendResult::Unknown,
            _ => {
                let token = (self.number, request.tokens.start);
                self.history.broke_contract(format!("{server:?}: refused {token:?}: {problem}"));
                SendResult::Unknown
            }
        }
    }
}

fn all(request: &Request, result: impl Fn() -> SendResult) -> Vec<SendResult> {
    request.tokens.clone().map(|_| result()).collect()
}

fn body(sent: &Sent) -> Value {
    let mut json = json!({"sender": sent.sender, "recipient": sent.recipient, "text": sent.text});
    if let Some(id) = &sent.id {
        json["id"] = id.as_str().into();
    }
    if let Some(timestamp) = sent.timestamp {
        json["timestamp"] = timestamp.into();
    }
    json
}
