//! Owns `GET /messages` and `GET /messages/{id}` at a node: history, in pages or as one stream.
//!
//! The flow: wait for the position that the request brings -> `store::history::listing`, a chunk at a time on blocking
//! threads (`http::read`) -> JSON. The next chunk is read when the client has taken the last one, so memory does not
//! depend on the length of history.
//!
//! A listing shows the vector at its start. If a log is cut meanwhile, the listing starts again on the new vector as
//! long as nothing of the answer was sent. After that it is aborted: half a history must not look like all of it.
//!
//! Damaged entries that no peer sends in time are left out, and a header says how many. Damage that is found after the
//! header was sent aborts the answer, and before the next such answer all of history is checked.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::RawQuery;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::api::error::{ErrorCode, Problem};
use crate::api::header::{MISSING, POSITION};
use crate::api::query::{self, Anchor, ListQuery};
use crate::api::{media, path};
use crate::chain::clock::Stamp;
use crate::chain::filter::Filter;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::node::Node;
use crate::node::http::read::{REPAIR_TIME, ReadFailure, retry_while_repairing};
use crate::node::http::send::view;
use crate::node::http::{acks, position};
use crate::serve;
use crate::store::history::listing::{Listing, Skips, damaged_between};
use crate::store::{Store, StoreError};

/// A page stops searching after this long. It then holds what was found, and a link to go on.
const SEARCH_TIME: Duration = Duration::from_secs(2);
/// How long it is searched for messages beyond a page. If that does not tell, the page gets the link.
const PROBE_TIME: Duration = Duration::from_millis(100);
/// The search for damage before a listing ends after this long, so that the answer begins in time.
const CHECK_TIME: Duration = Duration::from_secs(20);
/// Bytes of entries that a page keeps until they are sent. Further entries are read a second time.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// The same for a page without an iterator permit.
const PAGE_BYTES_FEW: usize = 128 << 10;
/// Messages in one chunk of an answer, at most.
const CHUNK_COUNT: usize = 1_000;
/// The same for an answer without an iterator permit.
const CHUNK_COUNT_FEW: usize = 100;

/// `GET /messages/{id}`.
pub async fn get_one(
    node: Node,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    query::refuse_any(query.as_deref())?;
    let id = query::path_id(uri.path())?;
    position::wait_for(&node, &headers).await?;
    let reading = |_| {
        let cloned = node.clone();
        node.limits.read(move || one(&cloned, id))
    };
    retry_while_repairing(&node.store, reading).await
}

fn one(node: &Node, id: Uuid) -> Result<Response, ReadFailure> {
    let first = node.store.first_copy(id, &node.logs())?.ok_or_else(|| not_found(id))?;
    let entry = node.store.log().read()?.get(first.key.origin, first.key.seq)?;
    let content = entry.message().ok_or_else(|| not_found(id))?;
    let mut json = Vec::with_capacity(512);
    let copies = node.store.copies(id, first.digest, &node.logs())?.into_iter();
    let copies: Vec<_> = copies.map(acks::range_of).collect();
    view(&content, entry.key()).write_answer_json(&node.durable_on(&copies), None, &mut json);
    Ok(serve::json_bytes(StatusCode::OK, json))
}

fn not_found(id: Uuid) -> Problem {
    Problem::new(ErrorCode::NotFound, format!("no message with the id {id} is known here"))
}

/// `GET /messages`.
pub async fn get(node: Node, RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Problem> {
    let query = ListQuery::parse(query.as_deref().unwrap_or(""))?;
    let wanted = position::wait_for(&node, &headers).await?;
    // Taken before the listing, so that it covers no more than the listing does.
    let covered = position::of_logs(&node, &node.logs(), &wanted);
    let format = if serve::wants_ndjson(&headers, media::JSON) { BodyFormat::Lines } else { BodyFormat::Array };
    if query.limit.is_none() && node.limits.check_history.load(Ordering::Relaxed) {
        find_damage(&node).await?;
    }
    let reading = |is_last| {
        let (reader, query) = (node.clone(), query.clone());
        node.limits.read(move || match query.limit {
            None => stream_all(&reader, &query, format, is_last),
            Some(limit) => page(&reader, &query, limit as usize, format, is_last),
        })
    };
    let mut response = retry_while_repairing(&node.store, reading).await?;
    response.headers_mut().insert(POSITION, covered);
    Ok(response)
}

/// Reads all of history, so that a listing can say at its start how many entries it leaves out. For the listing after
/// one that met damage when part of its answer was sent.
async fn find_damage(node: &Node) -> Result<(), Problem> {
    let (weak, logs, began) = (Arc::downgrade(&node.store), node.logs(), Instant::now());
    let opening = move || {
        let store = weak.upgrade().ok_or(StoreError::Closed)?;
        Ok(Listing::new(&store, logs, Filter::default(), None, false)?.skipping(Skips::All))
    };
    let mut listing = node.limits.read(opening).await?;
    while !listing.is_done() && began.elapsed() < CHECK_TIME {
        let reading = move || Ok(listing.next_chunk(CHUNK_COUNT).map(|_| listing)?);
        listing = node.limits.read(reading).await?;
    }
    node.limits.check_history.store(false, Ordering::Relaxed);
    Ok(())
}

/// The damaged entries that an attempt leaves out: those that peers had time to send. The last attempt leaves out all.
fn skips(node: &Node, is_last: bool) -> Skips {
    if is_last {
        return Skips::All;
    }
    Skips::These(node.store.log().damage().found_before(REPAIR_TIME))
}

/// The damaged entries between two keys. An error if peers had no time to send one of them.
fn left_out(
    node: &Node,
    logs: &Logs,
    (after, before): (Option<EntryKey>, Option<EntryKey>),
    is_last: bool,
) -> Result<BTreeSet<(Origin, u64)>, StoreError> {
    let damaged = damaged_between(&node.store, logs, after, before)?;
    let Skips::These(skipped) = skips(node, is_last) else { return Ok(damaged) };
    match damaged.difference(&skipped).next() {
        Some((origin, seq)) => Err(StoreError::Damaged { origin: *origin, seq: *seq }),
        None => Ok(damaged),
    }
}

fn add_missing(response: &mut Response, missing: usize) {
    if missing > 0 {
        response.headers_mut().insert(MISSING, missing.into());
    }
}

/// Everything that matches, oldest first.
fn stream_all(
    node: &Node,
    query: &ListQuery,
    format: BodyFormat,
    is_last: bool,
) -> Result<Response, ReadFailure> {
    let (before, after) = bounds(query, anchors(node, query)?);
    let logs = node.logs();
    let mut listing = listing(node, logs.clone(), query, after, false)?.until(before);
    listing = listing.skipping(skips(node, is_last));
    let mut encoder = MessageEncoder::new(format);
    // The first chunk is read before the status is sent, so that its failure can still become an error status.
    let permit = node.limits.iterator();
    let first = listing.next_chunk(chunk_count(permit.as_ref()))?;
    encoder.push_all(&first);
    // From here on, no further entry can be left out: the header with their number is sent.
    let left_out = left_out(node, &logs, (after, before), is_last)?;
    let missing = left_out.len();
    let mut listing = listing.skipping(Skips::These(left_out));
    let mut response = streamed(node, encoder, move |encoder| {
        while !listing.is_done() {
            let entries = listing.next_chunk(chunk_count(permit.as_ref()))?;
            if !entries.is_empty() {
                encoder.push_all(&entries);
                if permit.is_none() {
                    listing.release_buffers();
                }
                return Ok(true);
            }
        }
        Ok(false)
    });
    add_missing(&mut response, missing);
    Ok(response)
}

fn listing(
    node: &Node,
    logs: Arc<Logs>,
    query: &ListQuery,
    from: Option<EntryKey>,
    backward: bool,
) -> Result<Listing, StoreError> {
    Listing::new(&node.store, logs, query.filter.clone(), from, backward)
}

/// The keys that bound a listing: those of its anchors, and of the times of acceptance. Display order is the order of
/// these times.
fn bounds(
    query: &ListQuery,
    (before, after): (Option<EntryKey>, Option<EntryKey>),
) -> (Option<EntryKey>, Option<EntryKey>) {
    // Before all entries of its millisecond.
    let first_at = |second: u64| {
        let ms = second.saturating_mul(1_000).min(u64::MAX >> 16);
        EntryKey { stamp: Stamp::at(ms), origin: Origin([0; 16]), seq: 0 }
    };
    let earlier = query.accepted_before.map(first_at);
    (earlier.into_iter().chain(before).min(), query.accepted_since.map(first_at).max(after))
}

fn anchors(node: &Node, query: &ListQuery) -> Result<(Option<EntryKey>, Option<EntryKey>), ReadFailure> {
    let key = |anchor: Option<Anchor>| anchor.map(|anchor| key_of(node, anchor)).transpose();
    Ok((key(query.before)?, key(query.after)?))
}

fn key_of(node: &Node, anchor: Anchor) -> Result<EntryKey, ReadFailure> {
    match anchor {
        Anchor::Id(id) => Ok(node.store.first_copy(id, &node.logs())?.ok_or_else(|| not_found(id))?.key),
        Anchor::Entry(origin, seq) => {
            let origin = Origin(origin.into_bytes());
            if !node.logs().vector().get(origin).is_some_and(|span| span.holds(seq)) {
                let detail = format!("no entry {anchor} is known here");
                return Err(Problem::new(ErrorCode::NotFound, detail).into());
            }
            Ok(node.store.log().read()?.get(origin, seq)?.key())
        }
    }
}

/// The entries of a page. Beyond the bytes that a page may keep, only the key is here.
type PageEntries = VecDeque<(EntryKey, Option<Entry>)>;

/// At most `limit` messages: the newest, or those next to an anchor. Between two anchors, the newest. A page is
/// complete before it is sent, because it is found newest first and sent oldest first.
fn page(
    node: &Node,
    query: &ListQuery,
    limit: usize,
    format: BodyFormat,
    is_last: bool,
) -> Result<Response, ReadFailure> {
    let (before, after) = anchors(node, query)?;
    let forward = after.is_some() && before.is_none();
    let (end, start) = bounds(query, (before, after));
    let (from, until) = if forward { (start, end) } else { (end, start) };
    let logs = node.logs();
    let listing = listing(node, logs.clone(), query, from, !forward)?.until(until);
    let mut listing = listing.skipping(skips(node, is_last));
    let permit = node.limits.iterator();
    let bytes_max = if permit.is_some() { PAGE_BYTES_MAX } else { PAGE_BYTES_FEW };
    let (mut entries, has_more) = collect(&mut listing, limit, bytes_max)?;
    let (nearest, farthest) = (entries.front().map(|(key, _)| *key), entries.back().map(|(key, _)| *key));
    let beyond =
        has_more.then_some(listing.last_seen().filter(|_| entries.len() < limit).or(farthest)).flatten();
    let end = if has_more { beyond } else { until };
    let range = if forward { (from, end) } else { (end, from) };
    let missing = left_out(node, &logs, range, is_last)?.len();
    // Between two anchors the search goes from the newer to the older one, so nothing newer is left out.
    let may_go_back = forward || (before.is_some() && after.is_none());
    let back = nearest.filter(|_| may_go_back && is_beyond(node, query, nearest, forward));
    let (older, newer) = if forward { (back, beyond) } else { (beyond, back) };
    if !forward {
        entries.make_contiguous().reverse();
    }
    let links = links(query, older, newer);
    let store = Arc::downgrade(&node.store);
    let mut response = streamed(node, MessageEncoder::new(format), move |encoder| {
        let store = store.upgrade().ok_or(StoreError::Closed)?;
        send_entries(&store, &mut entries, chunk_count(permit.as_ref()), encoder)
    });
    if let Some(links) = links {
        response.headers_mut().insert(header::LINK, links);
    }
    add_missing(&mut response, missing);
    Ok(response)
}

/// The entries of a page in the listing's direction, and whether there are more, or time ran out before that was known.
fn collect(listing: &mut Listing, limit: usize, bytes_max: usize) -> Result<(PageEntries, bool), StoreError> {
    let (began, mut bytes, mut entries) = (Instant::now(), 0, PageEntries::new());
    while !listing.is_done() {
        for entry in listing.next_chunk(limit + 1 - entries.len())? {
            if entries.len() == limit {
                return Ok((entries, true));
            }
            bytes += entry.size();
            entries.push_back((entry.key(), (bytes <= bytes_max).then_some(entry)));
        }
        if began.elapsed() >= SEARCH_TIME && !listing.is_done() {
            return Ok((entries, true));
        }
    }
    Ok((entries, false))
}

/// Whether a matching message lies beyond a key. If that is not known in time, the answer is yes: a link to an empty
/// page does less harm than a missing link.
fn is_beyond(node: &Node, query: &ListQuery, key: Option<EntryKey>, backward: bool) -> bool {
    let began = Instant::now();
    let Ok(listing) = listing(node, node.logs(), query, key, backward) else { return true };
    let (end, start) = bounds(query, (None, None));
    let mut listing = listing.until(if backward { start } else { end });
    while !listing.is_done() {
        match listing.next_chunk(1) {
            Ok(found) if found.is_empty() && began.elapsed() < PROBE_TIME => {}
            Ok(found) => return !found.is_empty() || !listing.is_done(),
            Err(_) => return true,
        }
    }
    false
}

fn links(query: &ListQuery, older: Option<EntryKey>, newer: Option<EntryKey>) -> Option<HeaderValue> {
    let anchor = |key: EntryKey| Anchor::Entry(Uuid::from_bytes(key.origin.0), key.seq);
    let link = |before, after, rel| {
        let query = ListQuery { before, after, ..query.clone() };
        format!("<{}?{}>; rel=\"{rel}\"", path::MESSAGES, query.to_query_string())
    };
    // Pages between two anchors stay between them.
    let end = query.before.and(query.after);
    let prev = older.map(|key| link(Some(anchor(key)), end, "prev"));
    let next = newer.map(|key| link(None, Some(anchor(key)), "next"));
    let links: Vec<String> = prev.into_iter().chain(next).collect();
    if links.is_empty() { None } else { HeaderValue::try_from(links.join(", ")).ok() }
}

/// Encodes the next messages of a page. True if there may be more.
fn send_entries(
    store: &Store,
    keys: &mut PageEntries,
    most: usize,
    encoder: &mut MessageEncoder,
) -> Result<bool, StoreError> {
    for count in 0..most {
        let Some((key, entry)) = keys.front_mut() else { return Ok(count > 0) };
        let entry = match entry.take() {
            Some(entry) => entry,
            None => match store.log().read()?.get(key.origin, key.seq) {
                Err(StoreError::Damaged { .. }) if count > 0 => return Ok(true), // the next chunk begins with it
                entry => entry?,
            },
        };
        encoder.push_all(std::slice::from_ref(&entry));
        keys.pop_front();
    }
    Ok(true)
}

fn chunk_count(permit: Option<&OwnedSemaphorePermit>) -> usize {
    if permit.is_some() { CHUNK_COUNT } else { CHUNK_COUNT_FEW }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyFormat {
    Array,
    Lines,
}

struct MessageEncoder {
    format: BodyFormat,
    out: Vec<u8>,
    began: bool,
}

impl MessageEncoder {
    fn new(format: BodyFormat) -> Self {
        let out = if format == BodyFormat::Array { b"[".to_vec() } else { Vec::new() };
        MessageEncoder { format, out, began: false }
    }

    fn push_all(&mut self, entries: &[Entry]) {
        for entry in entries {
            let Some(content) = entry.message() else { continue };
            if self.format == BodyFormat::Array && self.began {
                self.out.extend_from_slice(b",\n");
            }
            self.began = true;
            view(&content, entry.key()).write_json(&mut self.out);
            if self.format == BodyFormat::Lines {
                self.out.push(b'\n');
            }
        }
    }

    /// The bytes since the last call. `is_end`: they end the body.
    fn take(&mut self, is_end: bool) -> Bytes {
        if is_end && self.format == BodyFormat::Array {
            self.out.extend_from_slice(b"]\n");
        }
        std::mem::take(&mut self.out).into_boxed_slice().into() // shrunk: it may wait in a buffer
    }
}

/// An answer whose body is encoded step by step: each step runs on a blocking thread, once the client has taken what
/// came before. A step returns false when there is no more. A step that meets damage is retried; one that fails aborts
/// the answer, so that half a history is never taken for all of it.
fn streamed(
    node: &Node,
    encoder: MessageEncoder,
    step: impl FnMut(&mut MessageEncoder) -> Result<bool, StoreError> + Send + 'static,
) -> Response {
    let (limits, store) = (node.limits.clone(), Arc::downgrade(&node.store));
    let media = if encoder.format == BodyFormat::Lines { media::NDJSON } else { media::JSON };
    let progress = Arc::new(Mutex::new((step, encoder)));
    let body = stream::try_unfold(Some((progress, limits, store)), move |state| async move {
        let Some((progress, limits, weak)) = state else { return Ok(None) };
        let store = weak.upgrade().ok_or(StoreError::Closed)?;
        let stepping = |_| {
            let progress = progress.clone();
            limits.read(move || {
                // Only one step runs at a time. After one that panicked the answer is aborted.
                let (step, encoder) = &mut *progress.lock().unwrap_or_else(PoisonError::into_inner);
                let goes_on = step(encoder).map_err(|error| match error {
                    // No reason to retry here: part of the answer is sent already.
                    StoreError::CutOff { .. } => ReadFailure::Problem(error.into()),
                    error => error.into(),
                })?;
                Ok((encoder.take(!goes_on), goes_on))
            })
        };
        let stepped = retry_while_repairing(&store, stepping).await;
        if stepped.as_ref().is_err_and(|problem| problem.code == ErrorCode::Damaged) {
            limits.check_history.store(true, Ordering::Relaxed);
        }
        let (bytes, goes_on) = stepped?;
        drop(store); // not held while the client takes its time
        Ok::<_, Problem>(Some((bytes, goes_on.then_some((progress, limits, weak)))))
    });
    ([(header::CONTENT_TYPE, media)], Body::from_stream(body)).into_response()
}
