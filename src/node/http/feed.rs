//! Owns `GET /feed` at a node: each reader's way through the store to the ring, and what it is told on the way.
//!
//! A reader is behind and reads the store, a walk at a time, or has come to the ring's end and reads the ring with all
//! others; falling behind, it reads the store again. It is sent only what it takes: between two pieces nothing of the
//! store is held. Every event carries the cursor after it, which any node of the network understands.

use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::api::error::{ErrorCode, Problem};
use crate::api::feed::{FeedEvent, FeedFormat, FeedQuery, cursor_invalid, from_text, to_text};
use crate::api::header::{LAST_EVENT_ID, POSITION};
use crate::api::media;
use crate::chain::cursor;
use crate::chain::cursor::{Cursor, PartialScan, ReadState, Scope};
use crate::chain::frontier::{Frontier, SnapshotId};
use crate::node::Node;
use crate::node::http::history::{ReadFailure, blocking};
use crate::node::http::position;
use crate::node::http::send::view;
use crate::node::live_feed::{CountedReader, LiveFeed, RingEnd, RingItem, RingRead};
use crate::store::history::feed_scan::{FeedItem, FeedScan};
use crate::store::{Store, StoreError};

/// A reader that was sent nothing for so long is sent where it is.
const QUIET_MAX: Duration = Duration::from_secs(15);
/// How long a node waits for what a cursor speaks of and it does not have yet.
const AHEAD_MAX: Duration = Duration::from_secs(2);
/// How often a log is looked at that waits for an entry to be mended.
const BLOCKED_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Messages in one piece of the answer.
const PIECE_COUNT: usize = 256;
/// Bytes of a piece beyond which no further message is put into it.
const PIECE_BYTES: usize = 32 << 10;
/// So long, for each reader, a reader is left alone after a piece, so that a thousand of them share the processors.
const PACE_PER_READER: Duration = Duration::from_micros(25);
/// And no longer than this.
const PACE_MAX: Duration = Duration::from_millis(50);

/// `GET /feed`.
pub async fn get(node: Node, RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Problem> {
    let last_id = headers.get(LAST_EVENT_ID).map(|value| value.to_str().unwrap_or("?"));
    let query = FeedQuery::parse(query.as_deref().unwrap_or(""), last_id)?;
    let accepts = headers.get_all(header::ACCEPT).iter();
    let lines = accepts.filter_map(|value| value.to_str().ok()).any(media::wants_ndjson);
    let format = if lines { FeedFormat::Lines } else { FeedFormat::Events };
    let purpose = Scope::new(node.cluster.network, &query.filter_string());
    let entered = node.live_feed.enter();
    let seen = match &query.cursor {
        Some(text) => Some(resume(&node, text, purpose).await?),
        None => query.from_start.then(|| (ReadState::default(), None)),
    };
    let reader = FeedReader::begin(&node, entered, query, purpose, format, seen).await?;
    // For who lists what came before: it covers at least what this reader is not given.
    let position = position::of_logs(&node, &node.live_feed.end().logs, &[]);
    let body = stream::unfold(reader, |mut reader| async move {
        let piece = reader.next_piece().await?;
        Some((piece, reader))
    });
    let media = if lines { media::NDJSON } else { media::EVENTS };
    let headers = [(header::CONTENT_TYPE, media), (header::CACHE_CONTROL, "no-store")];
    let mut response = (headers, Body::from_stream(body)).into_response();
    response.headers_mut().insert(POSITION, position);
    Ok(response)
}

/// What a cursor says that somebody brings, once this node has what it speaks of, or has waited for it.
async fn resume(node: &Node, text: &str, purpose: Scope) -> Result<(ReadState, Option<Bytes>), Problem> {
    let bytes = from_text(text).ok_or_else(|| cursor_invalid(cursor::InvalidCursor::Malformed))?;
    let cursor = cursor::open(&bytes, purpose).map_err(cursor_invalid)?;
    let core = cursor::core_of(&bytes).map(Bytes::copy_from_slice);
    let (until, mut signal) = (Instant::now() + AHEAD_MAX, node.logs_signal());
    let mut seen = expand(node, cursor.clone()).await?;
    loop {
        let logs = signal.borrow_and_update().clone();
        let is_here = seen.as_ref().is_some_and(|seen| seen.beyond(&Frontier::of(logs.vector())).is_empty());
        let waited = !is_here && timeout_at(until, signal.changed()).await.is_err();
        match seen {
            Some(seen) if is_here || waited => return Ok((seen, core)),
            Some(_) => {}
            None if waited => {
                let detail =
                    "this node lacks the entry that the cursor refers to; it comes with the next exchanges";
                return Err(Problem::new(ErrorCode::CursorUnknown, detail));
            }
            None => seen = expand(node, cursor.clone()).await?,
        }
    }
}

async fn expand(node: &Node, cursor: Cursor) -> Result<Option<ReadState>, Problem> {
    let store = node.store.clone();
    let expanding = move || {
        let mut milestones = Vec::new();
        for name in cursor.milestones() {
            milestones.extend(store.snapshot(name)?);
        }
        let find = |name: SnapshotId| {
            let found = milestones.iter().find(|milestone| milestone.name == name);
            found.map(|milestone| Frontier::at(milestone.clone()))
        };
        Ok(cursor.expand(find))
    };
    Ok(blocking(node.limits.readers.clone(), expanding).await?)
}

/// A way through the store, up to the end of the ring as it was then.
type KeptIterator = (Box<FeedScan>, RingEnd);

/// Where a reader reads.
enum ReadingFrom {
    /// It goes through the store. Its way, where that is kept.
    Store(Option<(KeptIterator, OwnedSemaphorePermit)>),
    /// Something cannot be given now, and it waits for it.
    Blocked,
    /// It reads the ring from this index on.
    Ring(u64),
}

/// One reader. See the head of this file.
struct FeedReader {
    store: Weak<Store>,
    readers: Arc<Semaphore>,
    iterators: Arc<Semaphore>,
    live_feed: Arc<LiveFeed>,
    moved: watch::Receiver<u64>,
    query: FeedQuery,
    /// It wants everything, so what it is told can be shared.
    wants_all: bool,
    scope: Scope,
    format: FeedFormat,
    at: ReadingFrom,
    /// What it has seen, as of the end of the last piece.
    seen: ReadState,
    /// While it reads the ring: what of it lies beyond all that this node has, for it was seen elsewhere.
    scans_elsewhere: Vec<PartialScan>,
    /// The core of the last cursor that could be written.
    core: Bytes,
    caught_up: bool,
    last_sent: Instant,
    _entered: CountedReader,
}

impl FeedReader {
    /// A reader that has seen this, or everything up to now.
    async fn begin(
        node: &Node,
        entered: CountedReader,
        query: FeedQuery,
        purpose: Scope,
        format: FeedFormat,
        seen: Option<(ReadState, Option<Bytes>)>,
    ) -> Result<Self, Problem> {
        let hub = node.live_feed.clone();
        let end = hub.advance(node).await?;
        let (at, seen, core) = match seen {
            None => (ReadingFrom::Ring(end.index), ReadState::all(end.until, end.last), None),
            Some((seen, core)) => (ReadingFrom::Store(None), seen, core),
        };
        let Some(core) = core.or_else(|| cursor::core(&seen).map(Bytes::from)) else {
            let detail = "this node cannot say now where its logs end, for it cannot write; others may";
            return Err(Problem::new(ErrorCode::CursorUnknown, detail));
        };
        let mut reader = FeedReader {
            store: Arc::downgrade(&node.store),
            readers: node.limits.readers.clone(),
            iterators: node.limits.iterators.clone(),
            moved: hub.moved(),
            live_feed: hub,
            wants_all: query.filter_string().is_empty(),
            query,
            scope: purpose,
            format,
            at,
            seen,
            scans_elsewhere: Vec::new(),
            core,
            caught_up: false,
            last_sent: Instant::now(),
            _entered: entered,
        };
        if matches!(reader.at, ReadingFrom::Store(_)) {
            let way = reader.seek().await?;
            reader.keep(way);
        }
        Ok(reader)
    }

    /// The next piece of the answer; `None`: the node ends.
    async fn next_piece(&mut self) -> Option<Result<Bytes, Problem>> {
        let (hub, mut out) = (self.live_feed.clone(), Vec::new());
        loop {
            let step = tokio::select! {
                biased;
                () = hub.stop().cancelled() => return None,
                step = self.step(&mut out) => step,
            };
            match step {
                Err(problem) => return Some(Err(problem)),
                Ok(()) if !out.is_empty() => break,
                Ok(()) if self.last_sent.elapsed() >= QUIET_MAX => {
                    self.refresh_core();
                    self.write_event(FeedEvent::Bookmark, &mut out);
                    break;
                }
                Ok(()) => {}
            }
        }
        self.last_sent = Instant::now();
        Some(Ok(out.into_boxed_slice().into())) // a piece may wait for long in a buffer
    }

    /// Reads on, or waits for a moment.
    async fn step(&mut self, out: &mut Vec<u8>) -> Result<(), Problem> {
        match self.at {
            ReadingFrom::Store(_) => self.read_store(out).await,
            ReadingFrom::Blocked => {
                self.wait(BLOCKED_POLL_INTERVAL).await;
                self.read_store(out).await
            }
            ReadingFrom::Ring(index) => {
                self.write_caught_up(out);
                self.pace().await;
                match self.live_feed.after(index, PIECE_COUNT) {
                    RingRead::Items(items) => self.read_ring(index, &items, out),
                    RingRead::Gone => self.at = ReadingFrom::Store(None),
                    RingRead::Nothing(seen) => {
                        self.scans_elsewhere.retain(|walk| !walk.until.beyond(&seen.full).is_empty());
                        self.seen = ReadState { walks: self.scans_elsewhere.clone(), ..seen };
                        if out.is_empty() {
                            self.wait(QUIET_MAX).await;
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// Until there may be something new, or this reader has to be told where it is.
    async fn wait(&mut self, most: Duration) {
        let until = (self.last_sent + QUIET_MAX).min(Instant::now() + most);
        let _either = timeout_at(until, self.moved.changed()).await;
    }

    async fn pace(&self) {
        let readers = u32::try_from(self.live_feed.readers()).unwrap_or(u32::MAX);
        let pace = PACE_PER_READER.saturating_mul(readers).min(PACE_MAX);
        sleep_until(self.last_sent + pace).await;
    }

    /// The way through the store from what was seen to the end of the ring as it is now.
    async fn seek(&self) -> Result<KeptIterator, Problem> {
        let (store, end, seen) = (self.store.clone(), self.live_feed.end(), self.seen.clone());
        let (logs, until) = (end.logs.clone(), end.until.clone());
        let finding = move || {
            let store = store.upgrade().ok_or(StoreError::Closed)?;
            Ok(FeedScan::new(&store, logs, seen, until)?)
        };
        let follow: FeedScan = blocking(self.readers.clone(), finding).await?;
        Ok((Box::new(follow), end))
    }

    /// Goes on there with the next piece. Whether all of it is remembered depends on how many others do.
    fn keep(&mut self, way: KeptIterator) {
        let place = self.iterators.clone().try_acquire_owned();
        self.at = ReadingFrom::Store(place.ok().map(|place| (way, place)));
    }

    /// A part of the way through the store.
    async fn read_store(&mut self, out: &mut Vec<u8>) -> Result<(), Problem> {
        let (mut follow, end) = match std::mem::replace(&mut self.at, ReadingFrom::Store(None)) {
            ReadingFrom::Store(Some((way, _))) => way,
            _ => self.seek().await?,
        };
        let reading = move || -> Result<_, ReadFailure> {
            let found = follow.next_chunk(PIECE_COUNT / 4, PIECE_BYTES)?;
            Ok((follow, found))
        };
        let (mut follow, found) = blocking(self.readers.clone(), reading).await?;
        for FeedItem { entry, first } in found {
            let Some(content) =
                entry.message().filter(|content| self.query.filter.matches(content, entry.key()))
            else {
                continue;
            };
            let mut json = Vec::new();
            view(&content, first).write_json(&mut json);
            if let Some(core) = follow.core_at(entry.key()) {
                self.core = core.into();
            }
            self.write_event(FeedEvent::Message(&json), out);
        }
        self.seen = if follow.is_done() {
            follow.state_at_end()
        } else {
            follow.at().map_or_else(|| self.seen.clone(), |at| follow.state_at(at))
        };
        self.refresh_core();
        match (follow.is_done(), follow.is_blocked()) {
            (false, _) => self.keep((follow, end)),
            (true, true) => self.at = ReadingFrom::Blocked,
            (true, false) => {
                self.scans_elsewhere.clone_from(&self.seen.walks);
                self.at = ReadingFrom::Ring(end.index);
            }
        }
        Ok(())
    }

    /// Takes messages from the ring.
    fn read_ring(&mut self, index: u64, items: &[Arc<RingItem>], out: &mut Vec<u8>) {
        let (mut taken, walks) = (0, std::mem::take(&mut self.scans_elsewhere));
        for item in items {
            taken += 1;
            let FeedItem { entry, .. } = item.next();
            let content = entry.message().expect("the ring holds messages only");
            let is_new = !walks.iter().any(|walk| walk.covers(entry.key()));
            if is_new && self.query.filter.matches(&content, entry.key()) {
                self.write_ring_item(item, &walks, out);
            }
            if out.len() >= PIECE_BYTES {
                break;
            }
        }
        let last: &RingItem = &items[taken - 1];
        self.seen = with(last.seen(), &walks);
        self.at = ReadingFrom::Ring(index + taken as u64);
        self.core = core_of(last, &walks).unwrap_or_else(|| self.core.clone());
        self.scans_elsewhere = walks;
    }

    fn write_ring_item(&mut self, item: &RingItem, walks: &[PartialScan], out: &mut Vec<u8>) {
        let is_shared = walks.is_empty() && self.wants_all;
        if let Some(frame) = is_shared.then(|| item.frame(self.format, self.scope)).flatten() {
            out.extend_from_slice(frame);
            return;
        }
        if let Some(core) = core_of(item, walks) {
            self.core = core;
        }
        self.write_event(FeedEvent::Message(item.json()), out);
    }

    fn write_caught_up(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.caught_up, true) {
            self.refresh_core();
            self.write_event(FeedEvent::CaughtUp, out);
        }
    }

    fn refresh_core(&mut self) {
        if let Some(core) = cursor::core(&self.seen) {
            self.core = core.into();
        }
    }

    fn write_event(&self, event: FeedEvent<'_>, out: &mut Vec<u8>) {
        let cursor = to_text(&cursor::seal(&self.core, self.scope));
        event.write(self.format, &cursor, out);
    }
}

fn with(mut seen: ReadState, walks: &[PartialScan]) -> ReadState {
    // The walk that goes on stands last.
    seen.walks.splice(0..0, walks.iter().cloned());
    seen
}

fn core_of(item: &RingItem, walks: &[PartialScan]) -> Option<Bytes> {
    if walks.is_empty() {
        return item.core().cloned();
    }
    cursor::core(&with(item.seen(), walks)).map(Bytes::from)
}
