//! The calls of the API, asked of the first of several servers that can answer.
//!
//! A command does not care who answers: the proxy first, then the nodes it knows. A refusal that no other
//! server would take back is the answer; everything else moves on to the next. A send that is repeated
//! always brings the same id, so it is stored once. Knows nothing of reqwest.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{Answer, Client, ClientError, Request, lines::LineBuffer};
use crate::api::{
    address::Addr,
    batch::BatchAnswer,
    error::ErrorCode,
    feed::{FeedLine, FeedQuery},
    header, media,
    message::{ListedMessage, SendAnswer, SendRequest},
    network::{ForgetAnswer, NetworkStatus, NodeId, NodeStatus, ProxyStatus},
    path,
    position::Position,
    query::ListQuery,
};

/// For the head of one server's answer; then the next is asked.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// The same for a batch, of which a server does more before it answers.
const BATCH_ATTEMPT_MAX: Duration = Duration::from_secs(30);
/// For all servers together; then what was found out is the answer.
const TOTAL_MAX: Duration = Duration::from_secs(60);
/// An answer about one message or one network is far smaller; a larger one is not understood.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// One line of a listing is at most this long: a text in which every byte is escaped, and its names.
const LINE_BYTES_MAX: usize = 256 * 1024;

/// Servers in the order in which they are tried, beginning with the one that answered last. Clones share that.
#[derive(Debug, Clone)]
pub struct Servers {
    client: Client,
    addrs: Vec<Addr>,
    /// Which of them answered last. Only a hint: a stale one costs an attempt.
    first: Arc<AtomicUsize>,
}

/// The answer to a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acked<T> {
    /// What the server says.
    pub answer: T,
    /// Stored, but fewer copies than asked were confirmed in time.
    pub below_acks: bool,
    /// What a read must cover to show it.
    pub position: Option<Position>,
}

/// The answer to `GET /nodes`.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(untagged)]
pub enum NodesAnswer {
    /// Of a node.
    Node(NodeStatus),
    /// Of a proxy.
    Proxy(ProxyStatus),
}

impl ClientError {
    /// Whether no node could be reached: nobody answered, or a proxy that finds none.
    pub fn no_node(&self) -> bool {
        match self {
            Self::NoAnswer { tried } => tried.iter().all(Self::no_node),
            Self::Unreachable { .. } | Self::Lost { .. } | Self::Timeout { .. } => true,
            Self::Problem { problem, .. } => problem.code == ErrorCode::NoNodeAvailable,
            Self::Malformed { .. } => false,
        }
    }
}

impl Servers {
    /// At least one address; they are tried in this order.
    pub fn new(client: Client, addrs: Vec<Addr>) -> Self {
        Self { client, addrs, first: Arc::default() }
    }

    /// Who is asked.
    pub fn addrs(&self) -> &[Addr] {
        &self.addrs
    }

    /// Sends one message. Without an id it gets one here, before the first attempt. `acks` is passed on as it is.
    pub async fn send(
        &self,
        mut message: SendRequest,
        acks: Option<&str>,
    ) -> Result<Acked<SendAnswer>, ClientError> {
        message.id.get_or_insert_with(Uuid::now_v7);
        let body = serde_json::to_vec(&message).expect("strings and numbers serialise");
        self.post(Request::post(messages_path(acks), media::JSON, body), ATTEMPT_MAX).await
    }

    /// Sends a batch of lines. `key` makes the ids of lines without one, so that every attempt brings the same.
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

    /// Asks for history, oldest first, one message at a time. A listing that breaks ends with an error. The server waits
    /// for a moment until it covers the position, if one is given.
    pub async fn list(
        &self,
        query: &ListQuery,
        position: Option<&Position>,
    ) -> Result<MessageStream, ClientError> {
        let mut request = asking(path::MESSAGES, &query.to_query_string());
        if let Some(position) = position {
            let position = position.to_text().parse().expect("base64 is a header value");
            request.headers.insert(header::POSITION, position);
        }
        let begin = async |answer: Answer| Ok(MessageStream::begin(answer));
        match self.first(&request, ATTEMPT_MAX, begin).await {
            // It may be a position of another network, of which nothing is to be found here.
            Err(ClientError::Problem { problem, .. })
                if position.is_some() && problem.code == ErrorCode::InvalidQuery =>
            {
                request.headers.remove(header::POSITION);
                self.first(&request, ATTEMPT_MAX, begin).await
            }
            answer => answer,
        }
    }

    /// Opens the feed, as one event after the other.
    pub async fn feed(&self, query: &FeedQuery) -> Result<FeedStream, ClientError> {
        let request = asking(path::FEED, &query.to_query_string());
        let begin = async |answer: Answer| Ok(FeedStream { lines: MessageStream::begin(answer) });
        self.first(&request, ATTEMPT_MAX, begin).await
    }

    /// Asks for one message.
    pub async fn message(&self, id: Uuid) -> Result<SendAnswer, ClientError> {
        self.get(format!("{}{id}", path::MESSAGES_PREFIX)).await
    }

    /// Asks how a server sees the others.
    pub async fn nodes(&self) -> Result<NodesAnswer, ClientError> {
        self.get(path::NODES.into()).await
    }

    /// Asks for the whole network.
    pub async fn network(&self) -> Result<NetworkStatus, ClientError> {
        self.get(path::NETWORK.into()).await
    }

    /// Has a node forgotten.
    pub async fn forget(&self, node_id: NodeId) -> Result<ForgetAnswer, ClientError> {
        let request = Request::delete(format!("{}{node_id}", path::NODES_PREFIX));
        let whole = async |answer: Answer| answer.json(ANSWER_BYTES_MAX).await;
        self.first(&request, ATTEMPT_MAX, whole).await
    }

    async fn get<T: DeserializeOwned>(&self, path: String) -> Result<T, ClientError> {
        let whole = async |answer: Answer| answer.json(ANSWER_BYTES_MAX).await;
        self.first(&Request::get(path), ATTEMPT_MAX, whole).await
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
        self.first(&request, attempt, whole).await
    }

    /// The first success, or the first refusal that others would repeat; else what all of them said. `take` is
    /// what of the answer must have come within the attempt.
    async fn first<T>(
        &self,
        request: &Request,
        attempt: Duration,
        take: impl AsyncFn(Answer) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let deadline = Instant::now() + TOTAL_MAX;
        let begin = self.first.load(Ordering::Relaxed);
        let mut tried = Vec::new();
        for place in (0..self.addrs.len()).map(|step| (begin + step) % self.addrs.len()) {
            let addr = &self.addrs[place];
            let within = attempt.min(deadline.saturating_duration_since(Instant::now()));
            let ask =
                async { take(self.client.forward(addr, request, within).await?.accepted().await?).await };
            let late = |_| Err(ClientError::Timeout { addr: addr.clone(), after: within });
            match timeout(within, ask).await.unwrap_or_else(late) {
                Err(e) if e.retryable() => tried.push(e),
                decided => {
                    self.first.store(place, Ordering::Relaxed);
                    return decided;
                }
            }
        }
        Err(summary(tried))
    }
}

/// Asks for lines.
fn asking(path: &str, query: &str) -> Request {
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

/// A refusal of a node says more than that others did not answer.
fn summary(mut tried: Vec<ClientError>) -> ClientError {
    match tried.iter().position(|e| e.problem().is_some() && !e.no_node()) {
        Some(place) => tried.swap_remove(place),
        None => ClientError::NoAnswer { tried },
    }
}

/// A listing under way.
pub struct MessageStream {
    addr: Addr,
    position: Option<Position>,
    body: BoxStream<'static, Result<Bytes, ClientError>>,
    buffer: LineBuffer,
}

impl MessageStream {
    fn begin(answer: Answer) -> Self {
        let (addr, position) = (answer.addr().clone(), position_of(&answer));
        Self { addr, position, body: answer.into_stream().boxed(), buffer: LineBuffer::default() }
    }

    /// Who answers.
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// What it covers, if the server says so.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// The next message, as the bytes of its line without the line's end.
    pub async fn next_line(&mut self) -> Result<Option<Bytes>, ClientError> {
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

    /// The next message.
    pub async fn next(&mut self) -> Result<Option<ListedMessage>, ClientError> {
        let Some(line) = self.next_line().await? else { return Ok(None) };
        serde_json::from_slice(&line).map(Some).map_err(|e| self.malformed(e.to_string()))
    }

    fn malformed(&self, why: String) -> ClientError {
        ClientError::Malformed { addr: self.addr.clone(), why }
    }
}

/// A feed under way. It ends when the server does; whoever follows opens another with the last cursor.
pub struct FeedStream {
    lines: MessageStream,
}

impl FeedStream {
    /// What a listing must cover so that it and this feed together have everything.
    pub fn position(&self) -> Option<&Position> {
        self.lines.position()
    }

    /// The next event.
    pub async fn next(&mut self) -> Result<Option<FeedLine>, ClientError> {
        let Some(line) = self.lines.next_line().await? else { return Ok(None) };
        serde_json::from_slice(&line).map(Some).map_err(|e| self.lines.malformed(e.to_string()))
    }
}

#[cfg(test)]
mod tests;
