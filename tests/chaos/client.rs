//! A client of an episode: sends messages at a steady rate, through the proxy and to nodes, and writes down what came of it.
//!
//! Single messages and batches; with an id, with an `Idempotency-Key`, or with neither. What has no clear answer is
//! sent again, the same bytes through somebody else; so is now and then what was acknowledged. Without id and key it is
//! not. Only a connection that never came about and a node's own refusal are taken for "not stored".

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

/// All clients of an episode together send so many messages a second, if they are let.
const RATE: u64 = 900;
const BATCH_LINES: Range<u64> = 10..60;
/// A parcel that somebody got and nobody acknowledged so many times stays unknown.
const TRIES_MAX: u32 = 12;
/// When the episode is over, what has no clear answer is tried for so long.
const LAST_TRIES: Duration = Duration::from_secs(8);
const RETRY_AFTER_MAX: Duration = Duration::from_millis(800);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
const STEP_TIMEOUT: Duration = Duration::from_secs(3);
/// Of 100 acknowledged parcels, so many are sent once more.
const AGAIN_PERCENT: u64 = 4;

/// Where clients may knock.
#[derive(Debug, Clone, Copy)]
pub struct Door {
    /// None: the proxy.
    pub node: Option<usize>,
    pub addr: SocketAddr,
}

pub struct Client<'a> {
    number: u16,
    rate: f64,
    rng: SeededRng,
    history: &'a History,
    doors: &'a [Door],
    open: HashMap<SocketAddr, Connection>,
    waiting: VecDeque<Parcel>,
    made: u32,
}

/// One request with its messages, always sent as the same bytes.
struct Parcel {
    tokens: Range<u32>,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    batch: bool,
    may_repeat: bool,
    tries: u32,
    last_door: Option<SocketAddr>,
    not_before: Instant,
    acked: bool,
}

/// What an answer says about one message.
enum Fate {
    Stored(Vec<usize>),
    Unknown,
    /// Not stored, here.
    Refused,
}

impl<'a> Client<'a> {
    pub fn new(number: usize, of: usize, seed: u64, history: &'a History, doors: &'a [Door]) -> Self {
        let number = u16::try_from(number).expect("few");
        let rate = f64::from(u32::try_from(RATE).expect("a small number"))
            / f64::from(u32::try_from(of).expect("few"));
        let rng = SeededRng::of(seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number)));
        let (open, waiting) = (HashMap::new(), VecDeque::new());
        Client { number, rate, rng, history, doors, open, waiting, made: 0 }
    }

    /// Sends until the episode is over, and then what is left.
    pub fn run(mut self) {
        while !self.history.is_over() {
            let due = self.history.began().elapsed().as_secs_f64() * self.rate;
            if let Some(parcel) = self.next_waiting() {
                self.deliver(parcel);
            } else if f64::from(self.made) < due {
                let parcel = self.parcel();
                self.deliver(parcel);
            } else {
                pace::rest(Duration::from_millis(5));
            }
        }
        let end = Instant::now() + LAST_TRIES;
        while Instant::now() < end && !self.waiting.is_empty() && !pace::is_interrupted() {
            match self.next_waiting() {
                Some(parcel) => self.deliver(parcel),
                None => pace::rest(Duration::from_millis(5)),
            }
        }
    }

    fn next_waiting(&mut self) -> Option<Parcel> {
        let now = Instant::now();
        let at = self.waiting.iter().position(|parcel| parcel.not_before <= now)?;
        self.waiting.remove(at)
    }

    /// New messages, written down.
    fn parcel(&mut self) -> Parcel {
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
        Parcel {
            tokens: first..self.made,
            headers,
            body: lines.join("\n").into_bytes(),
            batch,
            may_repeat,
            tries: 0,
            last_door: None,
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

    /// Mostly short; all that JSON must escape, and what takes several bytes, is in it now and then.
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

    /// One try, and what follows from it.
    fn deliver(&mut self, mut parcel: Parcel) {
        let door = self.door(parcel.last_door);
        parcel.last_door = Some(door.addr);
        let history = self.history;
        let answer = history.pass(|| self.post(door, &parcel));
        parcel.tries += u32::from(!matches!(answer, Ok(None)));
        let fates = match answer {
            Ok(Some(answer)) => self.read(door, &parcel, &answer),
            Ok(None) => all(&parcel, || Fate::Refused),
            Err(_) => all(&parcel, || Fate::Unknown),
        };
        let mut stored = 0;
        for (number, fate) in parcel.tokens.clone().zip(&fates) {
            let token: Token = (self.number, number);
            match fate {
                Fate::Stored(on) => {
                    stored += 1;
                    history.ok(token, on);
                }
                Fate::Unknown => history.unknown(token),
                Fate::Refused => {}
            }
        }
        let newly = stored == fates.len() && !std::mem::replace(&mut parcel.acked, stored == fates.len());
        let again = if newly { self.rng.within(0..100) < AGAIN_PERCENT } else { stored < fates.len() };
        if again && parcel.may_repeat && parcel.tries < TRIES_MAX {
            parcel.not_before = Instant::now() + self.rng.duration(RETRY_AFTER_MAX);
            self.waiting.push_back(parcel);
        }
    }

    /// The proxy or a node, but not the one that was just tried.
    fn door(&mut self, last: Option<SocketAddr>) -> Door {
        loop {
            let door = match self.rng.within(0..2) {
                0 => self.doors[0],
                _ => self.doors[pick(&mut self.rng, self.doors.len())],
            };
            if Some(door.addr) != last {
                return door;
            }
        }
    }

    /// None: nothing was sent.
    fn post(&mut self, door: Door, parcel: &Parcel) -> std::io::Result<Option<Response>> {
        let mut connection = match self.open.remove(&door.addr) {
            Some(connection) => connection,
            None => match Connection::open_within(door.addr, CONNECT_TIMEOUT, STEP_TIMEOUT) {
                Ok(connection) => connection,
                Err(_) => return Ok(None),
            },
        };
        let headers: Vec<_> = parcel.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        connection.send(&http::encode(door.addr, "POST", "/messages", &headers, &parcel.body))?;
        let answer = connection.receive("POST")?;
        if answer.header("connection") != Some("close") {
            self.open.insert(door.addr, connection);
        }
        Ok(Some(answer))
    }

    fn read(&self, door: Door, parcel: &Parcel, answer: &Response) -> Vec<Fate> {
        let Ok(json) = serde_json::from_slice::<Value>(&answer.body) else {
            self.history
                .misconduct(format!("{door:?}: not JSON: {:?}", String::from_utf8_lossy(&answer.body)));
            return all(parcel, || Fate::Unknown);
        };
        match answer.status() {
            200..=202 if parcel.batch => self.read_batch(door, parcel, &json),
            200..=202 => vec![self.read_single(door, parcel, &json)],
            _ => all(parcel, || self.refusal(door, parcel, &json)),
        }
    }

    fn read_single(&self, door: Door, parcel: &Parcel, json: &Value) -> Fate {
        let named = json["durable_on"].as_array().map(|on| on.iter().filter_map(Value::as_u64));
        let on: Vec<_> = named.into_iter().flatten().filter_map(|node| usize::try_from(node).ok()).collect();
        if on.is_empty() || door.node.is_some_and(|node| !on.contains(&node)) {
            self.history.misconduct(format!("{door:?}: durable where? {json}"));
        }
        let (client, number) = (usize::from(self.number), parcel.tokens.start);
        let same = self.history.show(|attempts| {
            let sent = &attempts[client][usize::try_from(number).expect("it was invoked")].sent;
            sent.id.as_ref().is_none_or(|id| json["id"] == **id)
                && json["text"] == *sent.text
                && json["sender"] == *sent.sender
                && json["recipient"] == *sent.recipient
        });
        if !same {
            self.history.misconduct(format!("{door:?}: answered another message: {json}"));
        }
        Fate::Stored(on)
    }

    fn read_batch(&self, door: Door, parcel: &Parcel, json: &Value) -> Vec<Fate> {
        let on: Vec<_> = door.node.into_iter().collect();
        let mut fates = all(parcel, || Fate::Stored(on.clone()));
        let rejected = json["rejected"].as_array().map(Vec::as_slice).unwrap_or_default();
        for line in rejected {
            let at = line["line"].as_u64().and_then(|line| usize::try_from(line).ok()).unwrap_or_default();
            match fates.get_mut(at.wrapping_sub(1)) {
                Some(fate) => *fate = self.refusal(door, parcel, line),
                None => {
                    self.history.misconduct(format!("{door:?}: rejects a line that was not sent: {line}"));
                }
            }
        }
        let counted = json["accepted"].as_u64().zip(json["duplicates"].as_u64());
        let counted = counted.and_then(|(new, old)| usize::try_from(new + old).ok());
        if counted != Some(fates.len() - rejected.len()) {
            self.history.misconduct(format!("{door:?}: {} lines, but {json}", fates.len()));
            return all(parcel, || Fate::Unknown);
        }
        fates
    }

    /// Nothing that we send is wrong, so only trouble of the server is a reason.
    fn refusal(&self, door: Door, parcel: &Parcel, problem: &Value) -> Fate {
        match problem["code"].as_str() {
            // Said by the node itself, before it stored anything. The proxy may have asked somebody else as well.
            Some("storage_full" | "overloaded") if door.node.is_some() => Fate::Refused,
            Some("storage_full" | "overloaded" | "storage_failed" | "no_node_available" | "timeout") => {
                Fate::Unknown
            }
            _ => {
                let token = (self.number, parcel.tokens.start);
                self.history.misconduct(format!("{door:?}: refused {token:?}: {problem}"));
                Fate::Unknown
            }
        }
    }
}

fn all(parcel: &Parcel, fate: impl Fn() -> Fate) -> Vec<Fate> {
    parcel.tokens.clone().map(|_| fate()).collect()
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
