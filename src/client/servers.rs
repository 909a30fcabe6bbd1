//! Owns the calls of the API for commands: each is sent to several servers in turn, until one can answer.
//!
//! Before it: `commands`. After it: [`Client`]. A command asks the proxy first, then the nodes that it knows. A final
//! refusal, which any server would repeat, is the answer; after any other error the next server is asked.
//! Must not know reqwest.
//!
//! Invariant: all attempts of a send carry the same id, so it is stored once.

use std::{
    marker::PhantomData,
    mem,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Answer, Client, ClientError, Request, limit, lines::LineBuffer};
use crate::api::{
    address::Addr,
    batch::BatchAnswer,
    error::ErrorCode,
    feed::{FeedLine, FeedQuery},
    header, media,
    message::{ListedMessage, SendAnswer, SendRequest},
    network::{ForgetAnswer, NetworkStatus, NodeId},
    path,
    position::Position,
    query::ListQuery,
};

/// For one server to answer; then the next one is asked.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// The same for a batch, which takes longer.
const BATCH_ATTEMPT_MAX: Duration = Duration::from_secs(30);
/// For all servers together; then the call fails with the errors so far.
const TOTAL_MAX: Duration = Duration::from_secs(60);
/// For nodes that open their stores to finish that; then `starting` is the answer.
const STARTING_MAX: Duration = Duration::from_secs(5);
/// The pause before such nodes are asked again. Most stores open within it.
const STARTING_PAUSE: Duration = Duration::from_millis(250);
/// A longer answer about one message or one network is invalid.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A longer line of a listing is invalid. A text in which every byte is escaped, with its names, is shorter.
const LINE_BYTES_MAX: usize = 256 * 1024;

/// Several servers. The one that answered last is asked first.
#[derive(Debug)]
pub struct Servers {
    client: Client,
    addrs: Vec<Addr>,
    /// Index of the server that answered last. A hint: a stale one costs an attempt.
    preferred: AtomicUsize,
}

/// The answer to a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acked<T> {
    pub answer: T,
    /// The message is stored, but fewer copies than requested were confirmed in time.
    pub below_acks: bool,
    /// The position that a read must cover to show it.
    pub position: Option<Position>,
}

impl ClientError {
    /// Whether a message that was sent is surely not stored.
    pub fn surely_not_stored(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoDescriptor { .. } => true,
            Self::Lost { .. } | Self::Timeout { .. } | Self::Malformed { .. } => false,
            Self::Problem { problem, .. } => problem.code.surely_no_effect(),
            Self::NoAnswer { tried } => tried.iter().all(Self::surely_not_stored),
        }
    }

    /// Whether no node was reached: no server answered, or a proxy found no node.
    pub fn no_node(&self) -> bool {
        match self {
            Self::NoAnswer { tried } => tried.iter().all(Self::no_node),
            Self::Unreachable { .. } | Self::Lost { .. } | Self::Timeout { .. } => true,
            Self::Problem { problem, .. } => problem.code == ErrorCode::NoNodeAvailable,
            Self::Malformed { .. } | Self::NoDescriptor { .. } => false,
        }
    }
}

impl Servers {
    /// `addrs`: at least one address; they are tried in this order.
    pub fn new(client: Client, addrs: Vec<Addr>) -> Self {
        Self { client, addrs, preferred: AtomicUsize::default() }
    }

    /// The next call begins with another server: the answer of the last one broke.
    pub fn prefer_next(&self) {
        let next = (self.preferred.load(Ordering::Relaxed) + 1) % self.addrs.len();
        self.preferred.store(next, Ordering::Relaxed);
    }

    /// Sends one message. A message without an id gets one here. `acks` goes into the query unchanged.
    pub async fn send(
        &self,
        mut message: SendRequest,
        acks: Option<&str>,
    ) -> Result<Acked<SendAnswer>, ClientError> {
        message.id.get_or_insert_with(Uuid::now_v7);
        let body = serde_json::to_vec(&message).expect("strings and numbers serialise");
        self.post(Request::post(messages_path(acks), media::JSON, body), ATTEMPT_MAX).await
    }

    /// Sends a batch of lines. `key` is the root of the ids of lines without one, so all attempts have the same ids.
    pub async fn send_batch(
        &self,
        lines: Bytes,
        key: Uuid,
        acks: Option<&str>,
    ) -> Result<Acked<BatchAnswer>, ClientError> {
        let mut request = Request::post(messages_path(acks), media::NDJSON, lines);
        let key = key.to_string().parse().expect("a UUID is a header value");
        request.headers.insert(header::IDEMPOTENCY_KEY, key);
        self.post(request, BATCH_ATTEMPT_MAX).await
    }

    /// Lists history, oldest first, one message at a time. A truncated listing ends with an error. The server waits
    /// briefly until it covers `position`.
    pub async fn list(
        &self,
        query: &ListQuery,
        position: Option<&Position>,
    ) -> Result<LineStream<ListedMessage>, ClientError> {
        let mut request = lines_request(path::MESSAGES, &query.to_query_string());
        if let Some(position) = position {
            let position = position.to_text().parse().expect("base64 is a header value");
            request.headers.insert(header::POSITION, position);
        }
        let open = async |answer: Answer| Ok(LineStream::new(answer));
        match self.ask(&request, ATTEMPT_MAX, open).await {
            // The position may be one of another network.
            Err(ClientError::Problem { problem, .. })
                if position.is_some() && problem.code == ErrorCode::InvalidQuery =>
            {
                request.headers.remove(header::POSITION);
                self.ask(&request, ATTEMPT_MAX, open).await
            }
            answer => answer,
        }
    }

    /// Opens the feed. It ends when the server ends; the caller opens another one with the last cursor.
    pub async fn feed(&self, query: &FeedQuery) -> Result<FeedStream, ClientError> {
        let request = lines_request(path::FEED, &query.to_query_string());
        self.ask(&request, ATTEMPT_MAX, async |answer| Ok(LineStream::new(answer))).await
    }

    pub async fn network(&self) -> Result<NetworkStatus, ClientError> {
        self.ask_whole(&Request::get(path::NETWORK)).await
    }

    pub async fn forget(&self, node_id: NodeId) -> Result<ForgetAnswer, ClientError> {
        self.ask_whole(&Request::delete(format!("{}{node_id}", path::NODES_PREFIX))).await
    }

    async fn ask_whole<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        self.ask(request, ATTEMPT_MAX, async |answer| answer.json(ANSWER_BYTES_MAX).await).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        request: Request,
        attempt: Duration,
    ) -> Result<Acked<T>, ClientError> {
        let whole = async |answer: Answer| {
            let (below_acks, position) = (answer.status() == 202, position_of(&answer));
            Ok(Acked { answer: answer.json(ANSWER_BYTES_MAX).await?, below_acks, position })
        };
        self.ask(&request, attempt, whole).await
    }

    /// The first success or final refusal, else the errors of all servers. `read` reads the part of the answer that
    /// must arrive within the attempt. Servers that only refuse because they start are asked again.
    async fn ask<T>(
        &self,
        request: &Request,
        attempt: Duration,
        read: impl AsyncFn(Answer) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let (began, mut earlier) = (Instant::now(), Vec::new());
        loop {
            match self.ask_each(request, attempt, began + TOTAL_MAX, &read, &mut earlier).await {
                Err(e) if e.is_starting() && began.elapsed() < STARTING_MAX => sleep(STARTING_PAUSE).await,
                result => return result,
            }
        }
    }

    async fn ask_each<T>(
        &self,
        request: &Request,
        attempt: Duration,
        deadline: Instant,
        read: &impl AsyncFn(Answer) -> Result<T, ClientError>,
        earlier: &mut Vec<ClientError>,
    ) -> Result<T, ClientError> {
        let start = self.preferred.load(Ordering::Relaxed);
        let mut tried = Vec::new();
        for index in (0..self.addrs.len()).map(|step| (start + step) % self.addrs.len()) {
            let addr = &self.addrs[index];
            let within = attempt.min(deadline.saturating_duration_since(Instant::now()));
            let attempt =
                async { read(self.client.forward(addr, request, within).await?.accepted().await?).await };
            match limit(addr, within, attempt).await {
                Err(e) if e.retryable() => tried.push(e),
                result => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return result;
                }
            }
        }
        if request.is_send() {
            // No refusal says that a message is not stored while another server may have stored it.
            earlier.extend(tried.extract_if(.., |e| !e.surely_not_stored()));
            if !earlier.is_empty() {
                tried.splice(0..0, mem::take(earlier));
                return Err(ClientError::NoAnswer { tried });
            }
        }
        Err(combined_error(tried))
    }
}

/// A GET request for an answer in lines.
fn lines_request(path: &str, query: &str) -> Request {
    let separator = if query.is_empty() { "" } else { "?" };
    let mut request = Request::get(format!("{path}{separator}{query}"));
    request.headers.insert("accept", media::NDJSON.parse().expect("a header value"));
    request
}

fn position_of(answer: &Answer) -> Option<Position> {
    Position::parse(answer.headers().get(header::POSITION)?.to_str().ok()?)
}

fn messages_path(acks: Option<&str>) -> String {
    match acks {
        Some(acks) => format!("{}?acks={acks}", path::MESSAGES),
        None => path::MESSAGES.into(),
    }
}

/// A node's refusal if there is one: it tells more than the errors of the servers that did not answer. That a node
/// starts tells less than another refusal.
fn combined_error(mut tried: Vec<ClientError>) -> ClientError {
    let is_refusal = |e: &ClientError| e.problem().is_some() && !e.no_node();
    let other = tried.iter().position(|e| is_refusal(e) && !e.is_starting());
    match other.or_else(|| tried.iter().position(is_refusal)) {
        Some(index) => tried.swap_remove(index),
        None => ClientError::NoAnswer { tried },
    }
}

pub type FeedStream = LineStream<FeedLine>;

/// A listing or a feed that is being received: one JSON value `T` per line.
pub struct LineStream<T> {
    pub addr: Addr,
    /// What the listing covers; of a feed, what a listing must cover so that both together have every message. `None`
    /// if the server sent no position.
    pub position: Option<Position>,
    /// How many entries a listing leaves out because they are damaged at the server.
    pub missing: u64,
    body: BoxStream<'static, Result<Bytes, ClientError>>,
    buffer: LineBuffer,
    values: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> LineStream<T> {
    fn new(answer: Answer) -> Self {
        let (addr, position) = (answer.addr.clone(), position_of(&answer));
        let missing =
            answer.headers().get(header::MISSING).and_then(|count| count.to_str().ok()?.parse().ok());
        let (missing, body) = (missing.unwrap_or(0), answer.into_stream().boxed());
        Self { addr, position, missing, body, buffer: LineBuffer::default(), values: PhantomData }
    }

    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        let Some(line) = self.next_line().await? else { return Ok(None) };
        serde_json::from_slice(&line).map(Some).map_err(|e| self.malformed(e.to_string()))
    }

    /// The next line, without the line end.
    async fn next_line(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(line) = self.buffer.next_line() {
                return Ok(Some(line));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(self.malformed("a line of the listing is too long".into()));
            }
            match self.body.next().await {
                Some(chunk) => self.buffer.push(&chunk?),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(self.malformed("the listing ends within a line".into())),
            }
        }
    }

    fn malformed(&self, why: String) -> ClientError {
        ClientError::Malformed { addr: self.addr.clone(), why }
    }
}

#[cfg(test)]
mod tests;
