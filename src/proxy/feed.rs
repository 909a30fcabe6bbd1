//! Owns `GET /feed` at the proxy: a feed that continues when its node does not.
//!
//! Before it: `run`. After it: `forward`, which picks a node. The proxy asks nodes for the feed as lines, and writes
//! each event in the reader's format. When the node ends the feed, is silent, is ejected or falls behind, the proxy
//! asks for the feed again with the last cursor, at any node that answers. While no node answers, or none knows the
//! cursor yet, the reader stays connected and gets a comment now and then.
//!
//! Invariant: a message that the reader has is not sent again by another node, as far as the last messages are
//! remembered; a node may hold another copy of it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Proxy;
use super::forward::{ServedBy, upstream_request};
use super::plan::RequestClass;
use super::upstreams::{TrafficClass, UpstreamId};
use crate::api::error::Problem;
use crate::api::feed::{FeedEvent, FeedEventKind, FeedFormat};
use crate::api::header::{ACCEL_BUFFERING, LAST_EVENT_ID};
use crate::api::message::ListedMessage;
use crate::api::{media, path};
use crate::client::lines::LineBuffer;
use crate::serve;

/// A node may wait this long for the entries that a cursor refers to before it answers. Not a reason to hedge.
const CURSOR_WAIT: Duration = Duration::from_secs(2);
/// Interval at which the state of the feed's node is checked while the node is silent.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// Nodes send something at least every 15 s; after this silence the feed is asked for again.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// The same for a node that is ejected.
const SILENCE_EJECTED_MAX: Duration = Duration::from_secs(1);
/// The same for a node that lacks messages which another one has. Its disk may be full, or it may reach no peer; a node
/// that catches up is not silent.
const SILENCE_BEHIND_MAX: Duration = Duration::from_secs(3);
/// A reader without a node gets a comment at this interval.
const COMMENT_EVERY: Duration = Duration::from_secs(5);
/// Pause before nodes are asked again, after none answered or after the feed ended as soon as it was open.
const RETRY: Duration = Duration::from_millis(250);
/// A longer event ends the feed of that node. A text in which every byte is escaped, its names and its cursor are less.
const EVENT_BYTES_MAX: usize = 256 * 1024;
/// Messages that are remembered per reader. A message that another node repeats after more than these is sent twice.
const RECENT_COUNT: usize = 1_024;

/// `GET /feed`.
pub async fn get(
    State(proxy): State<Proxy>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // Parsed here as well, so that an invalid request is refused although no node answers.
    let (parsed, format, media) = serve::feed_request(query.as_deref(), &headers)?;
    let is_from_now = parsed.cursor.is_none() && !parsed.from_start;
    let mut relay = Relay {
        proxy,
        query,
        headers,
        format,
        body: None,
        node: None,
        cursor: parsed.cursor,
        lines: LineBuffer::default(),
        recent: VecDeque::new(),
        has_moved: false,
        is_caught_up: false,
        connected_at: Instant::now(),
        received_at: Instant::now(),
        sent_at: Instant::now(),
    };
    let answer = relay.ask().await?;
    if answer.status() != StatusCode::OK {
        return Ok(answer);
    }
    let mut headers = relay.attach(answer);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    // Also set by the node, but an nginx in between takes it out.
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    // "Now" is a cursor of the first node. If that were lost, another node would begin at a later moment.
    let (mut first, until) = (Vec::new(), Instant::now() + CURSOR_WAIT);
    while is_from_now && relay.cursor.is_none() && Instant::now() < until {
        let Some(chunk) = relay.step().await else { break };
        first.extend_from_slice(&chunk);
    }
    let rest = stream::unfold(relay, |mut relay| async move { Some((relay.next_chunk().await?, relay)) });
    let first = stream::iter((!first.is_empty()).then(|| Bytes::from(first)));
    let body = first.chain(rest).map(Ok::<_, Problem>);
    let mut response = Body::from_stream(body).into_response();
    *response.headers_mut() = headers;
    Ok(response)
}

/// One event, as a node writes it in a line.
#[derive(Deserialize)]
struct EventLine<'a> {
    event: FeedEventKind,
    #[serde(borrow)]
    cursor: Cow<'a, str>,
    /// The bytes of the message, which are sent on unchanged.
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

/// One reader's feed.
struct Relay {
    proxy: Proxy,
    query: Option<String>,
    headers: HeaderMap,
    format: FeedFormat,
    /// The feed of the current node; None while there is no node.
    body: Option<BodyDataStream>,
    node: Option<UpstreamId>,
    /// The cursor after the last event that was sent.
    cursor: Option<String>,
    lines: LineBuffer,
    /// Hashes of the last messages.
    recent: VecDeque<u64>,
    /// The feed was continued at another node, which may send messages that the reader has.
    has_moved: bool,
    /// The reader got `caught-up`, which it gets once.
    is_caught_up: bool,
    connected_at: Instant,
    received_at: Instant,
    sent_at: Instant,
}

impl Relay {
    /// The next bytes for the reader. None ends the feed.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        let stop = self.proxy.stop.clone();
        loop {
            let chunk = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                chunk = self.step() => chunk?,
            };
            if !chunk.is_empty() {
                self.sent_at = Instant::now();
                return Some(chunk);
            }
        }
    }

    async fn step(&mut self) -> Option<Bytes> {
        let Some(body) = &mut self.body else { return self.reconnect().await };
        match timeout(CHECK_EVERY, body.next()).await {
            Ok(Some(Ok(chunk))) => {
                self.received_at = Instant::now();
                self.lines.push(&chunk);
                return Some(self.relay_lines());
            }
            Ok(Some(Err(_)) | None) => self.disconnect(),
            Err(_) if self.received_at.elapsed() >= self.silence_max() => self.disconnect(),
            Err(_) => {}
        }
        Some(Bytes::new())
    }

    /// How long the node may be silent.
    fn silence_max(&self) -> Duration {
        let (now, state) = (self.proxy.forwarder.uptime(), self.proxy.forwarder.state());
        match self.node {
            Some(id) if state.upstreams.is_ejected(id, TrafficClass::Read, now) => SILENCE_EJECTED_MAX,
            Some(id) if state.upstreams.is_behind(id, now) => SILENCE_BEHIND_MAX,
            _ => SILENCE_MAX,
        }
    }

    /// Asks nodes for the feed after the last cursor.
    async fn ask(&mut self) -> Result<Response, Problem> {
        let no_body = Bytes::new();
        let mut request =
            upstream_request(Method::GET, path::FEED, self.query.clone(), &self.headers, no_body);
        request.headers.insert(header::ACCEPT, HeaderValue::from_static(media::NDJSON));
        if let Some(cursor) = self.cursor.as_ref().and_then(|cursor| HeaderValue::from_str(cursor).ok()) {
            request.headers.insert(LAST_EVENT_ID, cursor);
        }
        let class = RequestClass { traffic: TrafficClass::Read, is_quick: false, client_wait: CURSOR_WAIT };
        self.proxy.forwarder.forward(&request, class).await
    }

    /// Takes the feed from this answer from now on. Returns the answer's headers.
    fn attach(&mut self, answer: Response) -> HeaderMap {
        let (parts, body) = answer.into_parts();
        self.node = parts.extensions.get::<ServedBy>().map(|served| served.0);
        self.body = Some(body.into_data_stream());
        (self.connected_at, self.received_at) = (Instant::now(), Instant::now());
        parts.headers
    }

    /// Leaves the node. A partial event is dropped; the next node sends it whole.
    fn disconnect(&mut self) {
        (self.body, self.node, self.has_moved) = (None, None, true);
        self.lines = LineBuffer::default();
    }

    /// Asks for the feed again. None: it was refused for good.
    async fn reconnect(&mut self) -> Option<Bytes> {
        sleep_until(self.connected_at + RETRY).await;
        match self.ask().await {
            Ok(answer) if answer.status() == StatusCode::OK => {
                self.attach(answer);
                return Some(Bytes::new());
            }
            // A node accepted this request before and refuses it now, so another attempt would not help.
            Ok(answer) if answer.status().is_client_error() => return None,
            Err(problem) if !problem.retryable => return None,
            Ok(_) | Err(_) => {}
        }
        sleep(RETRY).await;
        Some(if self.sent_at.elapsed() >= COMMENT_EVERY { self.comment() } else { Bytes::new() })
    }

    /// Tells the reader that the connection is alive.
    fn comment(&self) -> Bytes {
        match (self.format, &self.cursor) {
            (FeedFormat::Events, _) => {
                Bytes::from_static(b": no node can go on with it now; one will as soon as it can\n\n")
            }
            (FeedFormat::Lines, Some(cursor)) => {
                let mut out = Vec::new();
                FeedEvent::Bookmark.write(FeedFormat::Lines, cursor, &mut out);
                out.into()
            }
            (FeedFormat::Lines, None) => Bytes::from_static(b"\n"),
        }
    }

    /// Takes all complete lines, and writes their events for the reader.
    fn relay_lines(&mut self) -> Bytes {
        let mut out = Vec::new();
        while let Some(line) = self.lines.next_line() {
            match serde_json::from_slice::<EventLine>(&line) {
                Ok(event) => self.relay_event(event, &mut out),
                Err(_) if line.is_empty() => {}
                Err(error) => {
                    tracing::warn!(%error, "a node sends an invalid event: its feed is left");
                    self.disconnect();
                }
            }
        }
        if self.lines.len() > EVENT_BYTES_MAX {
            tracing::warn!("a node sends an event that is too long: its feed is left");
            self.disconnect();
        }
        out.into()
    }

    fn relay_event(&mut self, event: EventLine<'_>, out: &mut Vec<u8>) {
        let (mut is_repeated, cursor) = (false, event.cursor.into_owned());
        let written = match (event.event, event.message) {
            (FeedEventKind::Message, Some(message)) => {
                is_repeated = self.was_sent(message.get());
                FeedEvent::Message(message.get().as_bytes())
            }
            (FeedEventKind::CaughtUp, _) => {
                is_repeated = std::mem::replace(&mut self.is_caught_up, true);
                FeedEvent::CaughtUp
            }
            (FeedEventKind::Message, None) | (FeedEventKind::Bookmark, _) => FeedEvent::Bookmark,
        };
        if !is_repeated {
            written.write(self.format, &cursor, out);
        }
        self.cursor = Some(cursor);
    }

    /// Whether the reader got this message before, as far as it is remembered. Remembers it.
    fn was_sent(&mut self, message: &str) -> bool {
        let Some(hash) = content_hash(message) else { return false };
        // A single node sends no message twice.
        if self.has_moved && self.recent.contains(&hash) {
            return true;
        }
        if self.recent.len() == RECENT_COUNT {
            self.recent.pop_front();
        }
        self.recent.push_back(hash);
        false
    }
}

/// A hash of what the sender set. The copies of a message differ in the rest, and in a timestamp that the sender did
/// not set.
fn content_hash(message: &str) -> Option<u64> {
    let message: ListedMessage = serde_json::from_str(message).ok()?;
    let timestamp = message.timestamp_from.is_none().then_some(message.timestamp);
    let mut hasher = DefaultHasher::new();
    (message.id, message.sender, message.recipient, message.text, timestamp).hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copy accepted in the second that the origin names. Without a timestamp of the sender, that second is shown.
    fn message(text: &str, timestamp: Option<u64>, origin: u8) -> String {
        let source = if timestamp.is_none() { r#","timestamp_from":"server""# } else { "" };
        let timestamp = timestamp.unwrap_or(origin.into());
        format!(
            r#"{{"id":"01990000-0000-7000-8000-000000000001","sender":"a","recipient":"b","text":{text},"timestamp":{timestamp},"accepted_at":"1970-01-01T00:00:0{origin}.000Z","origin":"0199{origin:04}-0000-7000-8000-000000000002","seq":{origin}{source}}}"#
        )
    }

    #[test]
    fn copies_of_a_message_have_one_hash_and_other_messages_have_another() {
        let tricky = r#""\",\"timestamp\":1""#;
        let hash =
            |text, timestamp, origin| content_hash(&message(text, timestamp, origin)).expect("a message");
        assert_eq!(hash(tricky, Some(7), 1), hash(tricky, Some(7), 2), "another copy");
        assert_eq!(
            hash(tricky, Some(1), 1),
            hash(tricky, Some(1), 2),
            "accepted once in the sender's second"
        );
        assert_eq!(hash(tricky, None, 1), hash(tricky, None, 2), "without a timestamp of the sender");
        assert_ne!(hash(tricky, Some(7), 1), hash(tricky, Some(8), 1));
        assert_ne!(hash(tricky, Some(7), 1), hash(r#""other""#, Some(7), 1));
        assert_eq!(content_hash("{}"), None);
    }

    #[test]
    fn an_event_line_keeps_the_bytes_of_its_message() {
        let message = message(r#""\u2028""#, Some(7), 1);
        let line = format!(r#"{{"event":"message","cursor":"AbC","message":{message}}}"#);
        let event: EventLine = serde_json::from_str(&line).expect("an event");
        assert_eq!(
            (event.cursor.as_ref(), event.message.expect("a message").get()),
            ("AbC", message.as_str())
        );
        let newer: EventLine =
            serde_json::from_str(r#"{"event":"held","cursor":"AbC","node":1}"#).expect("an event");
        assert_eq!((newer.event, newer.message.is_none()), (FeedEventKind::Bookmark, true));
    }
}
