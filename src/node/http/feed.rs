//! Owns `GET /feed` at a node: one reader's path from its cursor through the store to the live feed.
//!
//! A reader that is behind reads the store, a chunk at a time. At the end it reads the ring of `live_feed` with all
//! other readers; if it falls out of the ring, it reads the store again. Nothing is queued for a reader: a chunk is
//! read when the client has taken the last one. Every event carries a cursor that any node of the network understands:
//! the one after the event, or an earlier one if that is too long.
//!
//! Invariant: the read state covers a message only if it, or another copy of it, was sent or filtered out.

use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::api::error::{ErrorCode, Problem};
use crate::api::feed::{FeedEvent, FeedFormat, FeedQuery, cursor_invalid, from_text, to_text};
use crate::api::header::{ACCEL_BUFFERING, POSITION};
use crate::chain::cursor::{self, Cursor, PartialScan, ReadState, Scope};
use crate::chain::filter::Filter;
use crate::chain::frontier::{Frontier, SnapshotId};
use crate::node::http::position;
use crate::node::http::send::view;
use crate::node::live_feed::{BLOCKED_POLL_INTERVAL, LiveFeed, RingEnd, RingItem, RingRead};
use crate::node::{Limits, Node};
use crate::serve;
use crate::store::history::feed_scan::{FeedItem, FeedScan};
use crate::store::{Store, StoreError};

/// A reader that was sent nothing for this long gets a bookmark: its current cursor.
const QUIET_MAX: Duration = Duration::from_secs(15);
/// How long a node waits for entries that a cursor covers and this node lacks. After it the feed starts all the same,
/// or answers `cursor_unknown` if the cursor cannot be read without them.
const AHEAD_MAX: Duration = Duration::from_secs(2);
/// Messages in one chunk of the answer.
const CHUNK_COUNT: usize = 256;
/// Bytes of a chunk after which no further message is added.
const CHUNK_BYTES: usize = 32 << 10;
/// Pause between two chunks of a reader, for each reader there is: thousands of readers must leave processors to sends.
const PACE_PER_READER: Duration = Duration::from_micros(25);
/// The longest such pause.
const PACE_MAX: Duration = Duration::from_millis(50);

pub async fn get(node: Node, RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Problem> {
    let (query, format, media) = serve::feed_request(query.as_deref(), &headers)?;
    let scope = Scope::new(node.cluster.network, &query.filter_string());
    let advanced = node.live_feed.enter();
    let resumed = match &query.cursor {
        Some(text) => Some(resume(&node, text, scope).await?),
        None => query.from_start.then(|| (ReadState::default(), None)),
    };
    let end = node.live_feed.advance(&node).await?;
    // For a client that lists what came before: it covers everything that this feed skips.
    let position = position::of_logs(&node, &end.logs, &[]);
    let (at, seen, payload) = match resumed {
        Some((seen, payload)) => (ReadingFrom::Store(None), seen, payload),
        None => (ReadingFrom::Ring(end.index), ReadState::all(end.until, end.last), None),
    };
    let Some(payload) = payload.or_else(|| cursor::payload(&seen).map(Bytes::from)) else {
        let detail =
            "this node cannot write a cursor now, because its store takes no writes; ask another node";
        return Err(Problem::new(ErrorCode::CursorUnknown, detail));
    };
    let mut reader = FeedReader {
        store: Arc::downgrade(&node.store),
        limits: node.limits.clone(),
        live_feed: node.live_feed.clone(),
        advanced,
        query,
        scope,
        format,
        at,
        seen,
        scans_elsewhere: Vec::new(),
        payload,
        caught_up: false,
        last_sent: Instant::now(),
    };
    // Before the status is sent, so that a failure can still become an error status.
    if matches!(reader.at, ReadingFrom::Store(_)) {
        let scan = reader.seek().await?;
        reader.keep(scan);
    }
    let body = stream::unfold(reader, async |mut reader| Some((reader.next_chunk().await?, reader)));
    let headers = [(header::CONTENT_TYPE, media), (header::CACHE_CONTROL, "no-store")];
    let mut response = (headers, [(ACCEL_BUFFERING, "no")], Body::from_stream(body)).into_response();
    response.headers_mut().insert(POSITION, position);
    Ok(response)
}

/// The read state of a client's cursor, once this node has the entries that it covers or has waited for them. Also the
/// cursor's payload, if it can be used again as it is.
async fn resume(node: &Node, text: &str, scope: Scope) -> Result<(ReadState, Option<Bytes>), Problem> {
    let bytes = from_text(text).ok_or_else(|| cursor_invalid(cursor::InvalidCursor::Malformed))?;
    let cursor = cursor::decode(&bytes, scope).map_err(cursor_invalid)?;
    let payload = cursor::payload_of(&bytes).map(Bytes::copy_from_slice);
    let (deadline, mut signal) = (Instant::now() + AHEAD_MAX, node.logs_signal());
    let seen = loop {
        if let Some(seen) = expand(node, cursor.clone()).await? {
            break seen;
        }
        if timeout_at(deadline, signal.changed()).await.is_err() {
            let detail =
                "this node lacks the entry that the cursor refers to; it comes with the next exchanges";
            return Err(Problem::new(ErrorCode::CursorUnknown, detail));
        }
    };
    loop {
        // Cloned, since a commit waits for the lock of the signal.
        let logs = signal.borrow_and_update().clone();
        let is_here = seen.beyond(&Frontier::of(logs.vector())).is_empty();
        if is_here || timeout_at(deadline, signal.changed()).await.is_err() {
            break;
        }
    }
    Ok((seen, payload))
}

async fn expand(node: &Node, cursor: Cursor) -> Result<Option<ReadState>, Problem> {
    let store = node.store.clone();
    let expanding = move || {
        let mut snapshots = Vec::new();
        for id in cursor.snapshots() {
            snapshots.extend(store.snapshot(id)?);
        }
        let find =
            |id: SnapshotId| snapshots.iter().find(|snapshot| snapshot.id == id).cloned().map(Frontier::at);
        Ok(cursor.expand(find))
    };
    Ok(node.limits.read(expanding).await?)
}

/// An open scan of the store, up to the end of the ring as it was when the scan was opened.
type OpenScan = (Box<FeedScan>, RingEnd);

/// Where a reader reads next.
enum ReadingFrom {
    /// The store; with the open scan, if the reader may keep it.
    Store(Option<(OpenScan, OwnedSemaphorePermit)>),
    /// The store, once a blocked log may be readable.
    Blocked,
    /// The ring, from this index on.
    Ring(u64),
}

/// One reader of the feed, from request to disconnect.
struct FeedReader {
    store: Weak<Store>,
    limits: Limits,
    live_feed: Arc<LiveFeed>,
    advanced: watch::Receiver<()>,
    query: FeedQuery,
    scope: Scope,
    format: FeedFormat,
    at: ReadingFrom,
    /// What it has seen, as of the end of the last chunk.
    seen: ReadState,
    /// Scans of its cursor that another node began and that cover entries beyond the ring's state. While it reads the
    /// ring, messages that they cover are skipped.
    scans_elsewhere: Vec<PartialScan>,
    /// The payload of the last cursor that was short enough to be written.
    payload: Bytes,
    caught_up: bool,
    last_sent: Instant,
}

impl FeedReader {
    /// The next chunk of the answer. `None`: the node ends.
    async fn next_chunk(&mut self) -> Option<Result<Bytes, Problem>> {
        let (live_feed, mut out) = (self.live_feed.clone(), Vec::new());
        while out.is_empty() {
            let step = tokio::select! {
                biased;
                () = live_feed.stop.cancelled() => return None,
                step = self.step(&mut out) => step,
            };
            if let Err(problem) = step {
                return Some(Err(problem));
            }
            if out.is_empty() && self.last_sent.elapsed() >= QUIET_MAX {
                self.refresh_payload();
                self.write_event(FeedEvent::Bookmark, &mut out);
            }
        }
        self.last_sent = Instant::now();
        Some(Ok(out.into_boxed_slice().into())) // shrunk: it may wait in a buffer
    }

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
                match self.live_feed.after(index, CHUNK_COUNT) {
                    RingRead::Items(items) => self.read_ring(index, &items, out),
                    RingRead::Gone => self.at = ReadingFrom::Store(None),
                    RingRead::Nothing(seen) => {
                        self.scans_elsewhere.retain(|scan| !scan.until.beyond(&seen.full).is_empty());
                        self.seen = ReadState { scans: self.scans_elsewhere.clone(), ..seen };
                        if out.is_empty() {
                            self.wait(QUIET_MAX).await;
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// Waits until there may be something new, or a bookmark is due.
    async fn wait(&mut self, most: Duration) {
        let until = (self.last_sent + QUIET_MAX).min(Instant::now() + most);
        let _either = timeout_at(until, self.advanced.changed()).await;
    }

    async fn pace(&self) {
        let readers = u32::try_from(self.live_feed.readers()).unwrap_or(u32::MAX);
        let pace = PACE_PER_READER.saturating_mul(readers).min(PACE_MAX);
        sleep_until(self.last_sent + pace).await;
    }

    /// Opens a scan of the store from what was seen to the present end of the ring.
    async fn seek(&self) -> Result<OpenScan, Problem> {
        let (store, end, seen) = (self.store.clone(), self.live_feed.end(), self.seen.clone());
        let (logs, until) = (end.logs.clone(), end.until.clone());
        let finding = move || {
            let store = store.upgrade().ok_or(StoreError::Closed)?;
            Ok(FeedScan::new(&store, logs, seen, until)?)
        };
        let scan: FeedScan = self.limits.read(finding).await?;
        Ok((Box::new(scan), end))
    }

    /// Keeps the scan for the next chunk if the reader gets a permit for that.
    fn keep(&mut self, scan: OpenScan) {
        self.at = ReadingFrom::Store(self.limits.iterator().map(|permit| (scan, permit)));
    }

    async fn read_store(&mut self, out: &mut Vec<u8>) -> Result<(), Problem> {
        let (mut scan, end) = match std::mem::replace(&mut self.at, ReadingFrom::Store(None)) {
            ReadingFrom::Store(Some((scan, _))) => scan,
            _ => self.seek().await?,
        };
        let (found, mut scan) =
            self.limits.read(move || Ok((scan.next_chunk(CHUNK_COUNT / 4, CHUNK_BYTES)?, scan))).await?;
        for FeedItem { entry, first } in found {
            let Some(content) = entry.message() else { continue };
            if !self.query.filter.matches(&content, entry.key()) {
                continue;
            }
            let mut json = Vec::new();
            view(&content, first).write_json(&mut json);
            if let Some(payload) = scan.core_at(entry.key()) {
                self.payload = payload.into();
            }
            self.write_event(FeedEvent::Message(&json), out);
        }
        self.seen = if scan.is_done() {
            scan.state_at_end()
        } else {
            scan.at().map_or_else(|| self.seen.clone(), |at| scan.state_at(at))
        };
        self.refresh_payload();
        match (scan.is_done(), scan.is_blocked()) {
            (false, _) => self.keep((scan, end)),
            (true, true) => self.at = ReadingFrom::Blocked,
            (true, false) => {
                self.scans_elsewhere.clone_from(&self.seen.scans);
                self.at = ReadingFrom::Ring(end.index);
            }
        }
        Ok(())
    }

    fn read_ring(&mut self, index: u64, items: &[Arc<RingItem>], out: &mut Vec<u8>) {
        let (mut taken, scans) = (0, std::mem::take(&mut self.scans_elsewhere));
        for item in items {
            taken += 1;
            let entry = &item.item.entry;
            let content = entry.message().expect("the ring holds messages only");
            let is_new = !scans.iter().any(|scan| scan.covers(entry.key()));
            if is_new && self.query.filter.matches(&content, entry.key()) {
                self.write_ring_item(item, &scans, out);
            }
            if out.len() >= CHUNK_BYTES {
                break;
            }
        }
        let last: &RingItem = &items[taken - 1];
        self.seen = with(last.read_state(), &scans);
        self.at = ReadingFrom::Ring(index + taken as u64);
        self.payload = payload_of(last, &scans).unwrap_or_else(|| self.payload.clone());
        self.scans_elsewhere = scans;
    }

    fn write_ring_item(&mut self, item: &RingItem, scans: &[PartialScan], out: &mut Vec<u8>) {
        // Readers without a filter share one encoded event.
        let is_shared = scans.is_empty() && self.query.filter == Filter::default();
        if let Some(frame) = is_shared.then(|| item.frame(self.format, self.scope)).flatten() {
            out.extend_from_slice(frame);
            return;
        }
        if let Some(payload) = payload_of(item, scans) {
            self.payload = payload;
        }
        self.write_event(FeedEvent::Message(&item.json), out);
    }

    fn write_caught_up(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.caught_up, true) {
            self.refresh_payload();
            self.write_event(FeedEvent::CaughtUp, out);
        }
    }

    fn refresh_payload(&mut self) {
        if let Some(payload) = cursor::payload(&self.seen) {
            self.payload = payload.into();
        }
    }

    fn write_event(&self, event: FeedEvent<'_>, out: &mut Vec<u8>) {
        let cursor = to_text(&cursor::encode(&self.payload, self.scope));
        event.write(self.format, &cursor, out);
    }
}

fn with(mut seen: ReadState, scans: &[PartialScan]) -> ReadState {
    // The scan that continues must be the last one.
    seen.scans.splice(0..0, scans.iter().cloned());
    seen
}

fn payload_of(item: &RingItem, scans: &[PartialScan]) -> Option<Bytes> {
    if scans.is_empty() {
        return item.payload().cloned();
    }
    cursor::payload(&with(item.read_state(), scans)).map(Bytes::from)
}
