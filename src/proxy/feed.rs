//! Owns `GET /feed` at the proxy: a feed that goes on when the node behind it does not.
//!
//! Events pass through as they come; of each only its cursor and what message it is are looked at. When the node ends it,
//! falls silent, is set aside or gets nothing any more, the feed is asked for again, at whichever node answers, with the
//! last cursor. Another node may have another copy of a message that this reader has had: the last ones are remembered, and
//! not given twice. With no node left, or none that knows yet what the cursor speaks of, the reader is kept, with a line now
//! and then.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Proxy;
use super::forward::{ServedBy, asking};
use super::plan::RequestClass;
use super::upstreams::Lane;
use crate::api::error::Problem;
use crate::api::feed::{FeedEvent, FeedFormat, FeedQuery};
use crate::api::header::LAST_EVENT_ID;
use crate::api::time::Time;
use crate::api::{media, path};

/// A node may wait so long for what a cursor speaks of before it answers: no reason to ask another one.
const AHEAD: Duration = Duration::from_secs(2);
/// How often it is looked whether the node behind a feed still counts as there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A node says something at least every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// One that does not answer others either is not waited for that long.
const SILENCE_OF_ASIDE_MAX: Duration = Duration::from_secs(1);
/// Nor is one that lacks what another has: its disk may be full, or it may reach none of the others. While it catches up, it
/// is not silent.
const SILENCE_OF_BEHIND_MAX: Duration = Duration::from_secs(3);
/// A reader for whom no node is there hears something this often.
const COMMENT_EVERY: Duration = Duration::from_secs(5);
/// How long before nodes are asked again, none of which answered, or one whose feed ended as soon as it was open.
const RETRY: Duration = Duration::from_millis(250);
/// One event is at most this long: a text in which every byte is escaped, its names and its cursor.
const EVENT_BYTES_MAX: usize = 256 * 1024;
/// Messages that are remembered for a reader, to be known again at another node.
const RECENT_COUNT: usize = 1_024;

/// `GET /feed`.
pub(super) async fn get(
    State(proxy): State<Proxy>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // Judged here, so that what no node would take is refused although none is there.
    let last_id = headers.get(LAST_EVENT_ID).map(|value| value.to_str().unwrap_or("?"));
    let parsed = FeedQuery::parse(query.as_deref().unwrap_or(""), last_id)?;
    let accepts = headers.get_all(header::ACCEPT).iter();
    let lines = accepts.filter_map(|value| value.to_str().ok()).any(media::wants_ndjson);
    let format = if lines { FeedFormat::Lines } else { FeedFormat::Events };
    let answer = ask(&proxy, query.clone(), &headers).await?;
    if answer.status() != StatusCode::OK {
        return Ok(answer);
    }
    let (parts, body) = answer.into_parts();
    let is_from_now = parsed.cursor.is_none() && !parsed.from_start;
    let mut relay = Relay {
        node: parts.extensions.get::<ServedBy>().copied(),
        events: Some(body.into_data_stream()),
        stop: proxy.stop.clone(),
        proxy,
        query,
        headers,
        format,
        cursor: parsed.cursor,
        buffer: BytesMut::new(),
        recent: VecDeque::new(),
        moved: false,
        caught_up: false,
        opened: Instant::now(),
        heard: Instant::now(),
        told: Instant::now(),
    };
    // "Now" is where the first node says it is; were that lost, another one would mean a later moment.
    let (mut first, until) = (BytesMut::new(), Instant::now() + AHEAD);
    while is_from_now && relay.cursor.is_none() && Instant::now() < until {
        let Some(piece) = relay.step().await else { break };
        first.extend_from_slice(&piece);
    }
    let rest = stream::unfold(relay, |mut relay| async move { Some((relay.next_piece().await?, relay)) });
    let first = stream::iter((!first.is_empty()).then(|| first.freeze()));
    let body = first.chain(rest).map(Ok::<_, Problem>);
    let mut response = Body::from_stream(body).into_response();
    (*response.headers_mut(), *response.status_mut()) = (parts.headers, parts.status);
    Ok(response)
}

async fn ask(proxy: &Proxy, query: Option<String>, headers: &HeaderMap) -> Result<Response, Problem> {
    let request = asking(Method::GET, path::FEED, query, headers, Bytes::new());
    let nature = RequestClass { lane: Lane::Read, is_quick: false, asked: AHEAD };
    proxy.forwarder.forward(&request, nature).await
}

/// One reader's feed. See the head of this file.
struct Relay {
    proxy: Proxy,
    query: Option<String>,
    headers: HeaderMap,
    format: FeedFormat,
    stop: CancellationToken,
    /// Where the events come from; `None`: from nowhere at the moment.
    events: Option<BodyDataStream>,
    node: Option<ServedBy>,
    /// After the last event that was passed on.
    cursor: Option<String>,
    /// The beginning of an event.
    buffer: BytesMut,
    /// What the last messages were.
    recent: VecDeque<u64>,
    /// Another node than before may give what the reader had.
    moved: bool,
    /// The reader was told that everything from before it came is through.
    caught_up: bool,
    opened: Instant,
    heard: Instant,
    told: Instant,
}

impl Relay {
    /// The next events as they go out; `None`: it is over.
    async fn next_piece(&mut self) -> Option<Bytes> {
        let stop = self.stop.clone();
        loop {
            let piece = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                piece = self.step() => piece?,
            };
            if !piece.is_empty() {
                self.told = Instant::now();
                return Some(piece);
            }
        }
    }

    async fn step(&mut self) -> Option<Bytes> {
        let Some(events) = &mut self.events else { return self.find_a_node().await };
        match timeout(LOOK_EVERY, events.next()).await {
            Ok(Some(Ok(chunk))) => {
                self.heard = Instant::now();
                self.buffer.extend_from_slice(&chunk);
                Some(self.whole_events())
            }
            Ok(Some(Err(_)) | None) => Some(self.leave()),
            Err(_) if self.heard.elapsed() >= self.patience() => Some(self.leave()),
            Err(_) => Some(Bytes::new()),
        }
    }

    /// How long the node may be silent.
    fn patience(&self) -> Duration {
        let forwarder = &self.proxy.forwarder;
        match self.node {
            Some(ServedBy(place)) if forwarder.is_aside(place) => SILENCE_OF_ASIDE_MAX,
            Some(ServedBy(place)) if forwarder.is_behind(place) => SILENCE_OF_BEHIND_MAX,
            _ => SILENCE_MAX,
        }
    }

    /// The node behind the feed is of no use any more; what came of an event is dropped, and comes again.
    fn leave(&mut self) -> Bytes {
        (self.events, self.node, self.moved) = (None, None, true);
        self.buffer.clear();
        Bytes::new()
    }

    /// Asks for the feed from where the reader is. `None`: that is refused for good.
    async fn find_a_node(&mut self) -> Option<Bytes> {
        sleep_until(self.opened + RETRY).await;
        let mut headers = self.headers.clone();
        if let Some(cursor) = self.cursor.as_ref().and_then(|cursor| HeaderValue::from_str(cursor).ok()) {
            headers.insert(LAST_EVENT_ID, cursor);
        }
        match ask(&self.proxy, self.query.clone(), &headers).await {
            Ok(answer) if answer.status() == StatusCode::OK => {
                let (parts, body) = answer.into_parts();
                self.node = parts.extensions.get::<ServedBy>().copied();
                self.events = Some(body.into_data_stream());
                (self.opened, self.heard) = (Instant::now(), Instant::now());
                return Some(Bytes::new());
            }
            // It was understood before; now it is not, so there is nothing to go on with.
            Ok(answer) if answer.status().is_client_error() => return None,
            Err(problem) if !problem.retryable => return None,
            Ok(_) | Err(_) => {}
        }
        sleep(RETRY).await;
        Some(if self.told.elapsed() >= COMMENT_EVERY { self.comment() } else { Bytes::new() })
    }

    /// Says that the reader is still there, and nothing else.
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

    /// Takes all whole events from the buffer, without those that the reader had.
    fn whole_events(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        while let Some(end) = end_of_event(&self.buffer, self.format) {
            let event = self.buffer.split_to(end);
            if let Some(cursor) = cursor_of(&event, self.format) {
                self.cursor = Some(cursor.to_owned());
            }
            let is_told = is_caught_up(&event) && std::mem::replace(&mut self.caught_up, true);
            if !is_told && !self.was_given(&event) {
                out.unsplit(event);
            }
        }
        if self.buffer.len() > EVENT_BYTES_MAX {
            tracing::warn!("a node sends an event without end; its feed is left");
            self.leave();
        }
        out.freeze()
    }

    /// Whether the reader had this message, as far as that is remembered; from now on it is.
    fn was_given(&mut self, event: &[u8]) -> bool {
        let Some(message) = message_of(event) else { return false };
        let mut hasher = DefaultHasher::new();
        (message, timestamp_of(event)).hash(&mut hasher);
        let hash = hasher.finish();
        // One node gives nothing twice.
        if self.moved && self.recent.contains(&hash) {
            return true;
        }
        if self.recent.len() == RECENT_COUNT {
            self.recent.pop_front();
        }
        self.recent.push_back(hash);
        false
    }
}

/// The length of the first event with its end, if all of it is there.
fn end_of_event(buffer: &[u8], format: FeedFormat) -> Option<usize> {
    match format {
        FeedFormat::Lines => buffer.iter().position(|byte| *byte == b'\n').map(|end| end + 1),
        FeedFormat::Events => buffer.windows(2).position(|two| two == b"\n\n").map(|end| end + 2),
    }
}

fn cursor_of(event: &[u8], format: FeedFormat) -> Option<&str> {
    let (before, after) = match format {
        FeedFormat::Lines => (&b"\"cursor\":\""[..], b'"'),
        FeedFormat::Events => (&b"id: "[..], b'\n'),
    };
    // It stands before everything that somebody else has written.
    let begin = event.windows(before.len()).position(|part| part == before)? + before.len();
    let end = event[begin..].iter().position(|byte| *byte == after)?;
    std::str::from_utf8(&event[begin..begin + end]).ok()
}

/// What the sender decided of a message: from its id to its text. Nothing in a text looks like what ends it, for there
/// every quotation mark is escaped.
fn message_of(event: &[u8]) -> Option<&[u8]> {
    let find = |part: &[u8], from: usize| {
        event[from..].windows(part.len()).position(|window| window == part).map(|at| from + at)
    };
    let begin = find(b"{\"id\":\"", 0)?;
    let end = find(b",\"timestamp\":", begin)?;
    Some(&event[begin..end])
}

/// The timestamp that the sender gave. If it gave none, the second of acceptance is shown, which each copy has its own.
fn timestamp_of(event: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(event).ok()?;
    let (_, rest) = text.split_once(",\"timestamp\":")?;
    let (timestamp, rest) = rest.split_once(",\"accepted_at\":\"")?;
    let accepted = rest.split_once('"')?.0.parse::<Time>().ok()?;
    timestamp.parse().ok().filter(|shown| *shown != accepted.0 / 1000)
}

fn is_caught_up(event: &[u8]) -> bool {
    event.starts_with(b"{\"event\":\"caught-up\"") || event.ends_with(b"\nevent: caught-up\ndata: {}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = br#"{"event":"message","cursor":"AbC","message":{"id":"x","sender":"a","recipient":"b","text":"\",\"timestamp\":1","timestamp":7,"seq":1}}
"#;
    const BLOCK: &[u8] =
        b"id: AbC\nevent: message\ndata: {\"id\":\"x\",\"text\":\"id: no\",\"timestamp\":7}\n\n";

    #[test]
    fn of_an_event_its_end_its_cursor_and_its_message_are_found() {
        assert_eq!(end_of_event(LINE, FeedFormat::Lines), Some(LINE.len()));
        assert_eq!(end_of_event(BLOCK, FeedFormat::Events), Some(BLOCK.len()));
        assert_eq!(end_of_event(&BLOCK[..BLOCK.len() - 1], FeedFormat::Events), None);
        assert_eq!(cursor_of(LINE, FeedFormat::Lines), Some("AbC"));
        assert_eq!(cursor_of(BLOCK, FeedFormat::Events), Some("AbC"));
        let message = message_of(LINE).expect("a message");
        assert!(message.ends_with(br#""text":"\",\"timestamp\":1""#), "{}", String::from_utf8_lossy(message));
        assert_eq!(message_of(BLOCK), Some(&br#"{"id":"x","text":"id: no""#[..]));
        assert_eq!(message_of(b"id: AbC\nevent: caught-up\ndata: {}\n\n"), None);
    }
}
