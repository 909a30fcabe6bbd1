//! Owns `GET /messages` and `GET /messages/{id}` at a node: history, in pages or as one stream.
//!
//! A listing is of the vector at its start. One under which a log is cut is begun again on the new one if nothing of its
//! answer was sent, else it is aborted, as by damage. Everything that touches the store runs on blocking threads, a
//! chunk at a time, and only as fast as the reader takes it: memory does not depend on the length of history.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::RawQuery;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use crate::api::error::{ErrorCode, Problem};
use crate::api::header::POSITION;
use crate::api::query;
use crate::api::query::{Anchor, ListQuery};
use crate::api::{media, path};
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::record::Entry;
use crate::node::Node;
use crate::node::http::send::view;
use crate::node::http::{acks, position};
use crate::serve;
use crate::store::history::listing::Listing;
use crate::store::{Store, StoreError};

/// A page stops looking after this long; it then says how to go on.
const SEARCH_TIME: Duration = Duration::from_secs(2);
/// How long to look whether there is anything beyond a page. Undecided counts as yes.
const PROBE_TIME: Duration = Duration::from_millis(100);
/// Bytes of records that a page keeps while it is put together. Those beyond are read a second time.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// The same, of a page that has no place among those who keep their way.
const PAGE_BYTES_FEW: usize = 128 << 10;
/// How long a read waits for damage to be mended.
const DAMAGE_TIME: Duration = Duration::from_secs(2);
/// How often it looks whether that is so.
const DAMAGE_PAUSE: Duration = Duration::from_millis(50);
/// Messages per chunk of an answer, at the most.
const CHUNK_COUNT: usize = 1_000;
/// The same, of an answer that has no place among those who keep their way.
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
    let reading = retry_while_repairing(&node.store, || {
        let node = node.clone();
        blocking(node.limits.readers.clone(), move || one(&node, id))
    });
    reading.await
}

fn one(node: &Node, id: Uuid) -> Result<Response, ReadFailure> {
    let first = node.store.first_copy(id, &node.logs())?.ok_or_else(|| not_found(id))?;
    let entry = node.store.log().read()?.get(first.place.origin, first.place.seq)?;
    let content = entry.message().ok_or_else(|| not_found(id))?;
    let mut json = Vec::with_capacity(512);
    let copies = node.store.stored_copies(id, &node.logs())?.into_iter();
    let copies: Vec<_> =
        copies.filter(|copy| copy.digest == first.digest).map(|copy| acks::range_of(copy.place)).collect();
    view(&content, entry.key()).write_answer_json(&node.durable_on(&copies), None, &mut json);
    Ok(serve::json(StatusCode::OK, json))
}

fn not_found(id: Uuid) -> Problem {
    Problem::new(ErrorCode::NotFound, format!("no message with the id {id} is known here"))
}

/// `GET /messages`.
pub async fn get(node: Node, RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Problem> {
    let query = ListQuery::parse(query.as_deref().unwrap_or(""))?;
    let asked = position::wait_for(&node, &headers).await?;
    // Taken before the listing begins, so that it covers no more than the listing does.
    let covered = position::of_logs(&node, &node.logs(), &asked);
    let accepts = headers.get_all(header::ACCEPT).iter();
    let ndjson = accepts.filter_map(|value| value.to_str().ok()).any(media::wants_ndjson);
    let format = if ndjson { BodyFormat::Lines } else { BodyFormat::Array };
    let listing = retry_while_repairing(&node.store, || {
        let (node, query) = (node.clone(), query.clone());
        blocking(node.limits.readers.clone(), move || match query.limit {
            None => stream_all(&node, &query, format),
            Some(limit) => page(&node, &query, limit as usize, format),
        })
    });
    let mut response = listing.await?;
    response.headers_mut().insert(POSITION, covered);
    Ok(response)
}

impl From<ReadFailure> for Problem {
    fn from(failed: ReadFailure) -> Self {
        match failed {
            ReadFailure::Problem(problem) => problem,
            ReadFailure::CutOff(error) => error.into(),
        }
    }
}

/// Why a read came to nothing.
pub(in crate::node) enum ReadFailure {
    Problem(Problem),
    /// A log was cut after its vector was taken: begun again, it reads what moved where it is now.
    CutOff(StoreError),
}

impl From<Problem> for ReadFailure {
    fn from(problem: Problem) -> Self {
        ReadFailure::Problem(problem)
    }
}

impl From<StoreError> for ReadFailure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::CutOff { .. } => ReadFailure::CutOff(error),
            error => ReadFailure::Problem(error.into()),
        }
    }
}

/// Repeats a read that meets damage for a moment, in which a peer may help, and one under which a log was cut. Then it
/// fails: nothing is ever skipped.
async fn retry_while_repairing<T, Read: Future<Output = Result<T, ReadFailure>>>(
    store: &Arc<Store>,
    read: impl Fn() -> Read,
) -> Result<T, Problem> {
    let began = Instant::now();
    loop {
        let failed = match read().await {
            Ok(done) => return Ok(done),
            Err(failed) => failed,
        };
        let may_pass = match &failed {
            ReadFailure::Problem(problem) => {
                problem.code == ErrorCode::StorageFailed && store.log().damage().count() > 0
            }
            ReadFailure::CutOff(_) => true,
        };
        if !may_pass || began.elapsed() >= DAMAGE_TIME {
            return Err(failed.into());
        }
        tokio::time::sleep(DAMAGE_PAUSE).await;
    }
}

/// Everything that matches, oldest first.
fn stream_all(node: &Node, query: &ListQuery, format: BodyFormat) -> Result<Response, ReadFailure> {
    let (before, after) = anchors(node, query)?;
    let mut listing = listing(node, query, after, false)?.until(before);
    let mut encoder = MessageEncoder::new(format);
    // The first chunk is read before the status is sent, so that a failure can still be one.
    let way = node.limits.iterators.clone().try_acquire_owned().ok();
    let first = listing.next_chunk(chunk_count(way.as_ref()))?;
    encoder.push_all(&first);
    Ok(streamed(node, format, encoder, (listing, way), |(listing, way), encoder| {
        while !listing.is_done() {
            let entries = listing.next_chunk(chunk_count(way.as_ref()))?;
            if !entries.is_empty() {
                encoder.push_all(&entries);
                if way.is_none() {
                    listing.release_buffers();
                }
                return Ok(true);
            }
        }
        Ok(false)
    }))
}

fn listing(
    node: &Node,
    query: &ListQuery,
    from: Option<EntryKey>,
    backward: bool,
) -> Result<Listing, StoreError> {
    Listing::new(&node.store, node.logs(), query.filter.clone(), from, backward)
}

/// The places of `before` and `after`.
fn anchors(node: &Node, query: &ListQuery) -> Result<(Option<EntryKey>, Option<EntryKey>), ReadFailure> {
    let place = |mark: Option<Anchor>| mark.map(|mark| place_of(node, mark)).transpose();
    Ok((place(query.before)?, place(query.after)?))
}

fn place_of(node: &Node, mark: Anchor) -> Result<EntryKey, ReadFailure> {
    match mark {
        Anchor::Id(id) => Ok(node.store.first_copy(id, &node.logs())?.ok_or_else(|| not_found(id))?.place),
        Anchor::Entry(origin, seq) => {
            let origin = Origin(origin.into_bytes());
            if !(1..=node.logs().vector().seq(origin)).contains(&seq) {
                let detail = format!("no entry {mark} is known here");
                return Err(Problem::new(ErrorCode::NotFound, detail).into());
            }
            Ok(node.store.log().read()?.get(origin, seq)?.key())
        }
    }
}

/// A part of history, put together before it is sent, since it is found newest first and sent oldest first.
#[derive(Default)]
struct Page {
    /// Oldest first. Records beyond the bytes that it may keep are left out here.
    entries: Vec<(EntryKey, Option<Entry>)>,
    /// The entry from which older ones can be asked for.
    older: Option<EntryKey>,
    /// The entry from which newer ones can be asked for.
    newer: Option<EntryKey>,
}

/// At most `limit` messages: the newest, or those next to an anchor. Between two anchors, the newest.
fn page(node: &Node, query: &ListQuery, limit: usize, format: BodyFormat) -> Result<Response, ReadFailure> {
    let (before, after) = anchors(node, query)?;
    let forward = after.is_some() && before.is_none();
    let (from, until) = if forward { (after, None) } else { (before, after) };
    let mut listing = listing(node, query, from, !forward)?.until(until);
    let way = node.limits.iterators.clone().try_acquire_owned().ok();
    let bytes_max = if way.is_some() { PAGE_BYTES_MAX } else { PAGE_BYTES_FEW };
    let mut page = Page::default();
    let go_on = collect(&mut listing, limit, bytes_max, &mut page)?;
    let (first, last) = (page.entries.first(), page.entries.last());
    let (nearest, farthest) = (first.map(|(place, _)| *place), last.map(|(place, _)| *place));
    let beyond =
        go_on.then_some(listing.last_seen().filter(|_| page.entries.len() < limit).or(farthest)).flatten();
    if forward {
        page.newer = beyond;
        page.older = nearest.filter(|_| is_beyond(node, query, nearest, true));
    } else {
        page.older = beyond;
        // Between two anchors a walk goes from the newer to the older one: nothing of it is beyond.
        let may_go_back = before.is_some() && after.is_none();
        page.newer = nearest.filter(|_| may_go_back && is_beyond(node, query, nearest, false));
        page.entries.reverse();
    }
    let links = links(query, &page);
    let places: VecDeque<_> = page.entries.into();
    let state = (Arc::downgrade(&node.store), places, way);
    let mut response =
        streamed(node, format, MessageEncoder::new(format), state, |(store, places, way), encoder| {
            let store = store.upgrade().ok_or(StoreError::Closed)?;
            send_places(&store, places, chunk_count(way.as_ref()), encoder)
        });
    if let Some(links) = links {
        response.headers_mut().insert(header::LINK, links);
    }
    Ok(response)
}

/// Fills the page in the listing's direction. Whether there is more, or time ran out before that was known.
fn collect(
    listing: &mut Listing,
    limit: usize,
    bytes_max: usize,
    page: &mut Page,
) -> Result<bool, StoreError> {
    let began = Instant::now();
    let mut bytes = 0;
    while !listing.is_done() {
        let wanted = limit + 1 - page.entries.len();
        for entry in listing.next_chunk(wanted)? {
            if page.entries.len() == limit {
                return Ok(true);
            }
            bytes += entry.size();
            page.entries.push((entry.key(), (bytes <= bytes_max).then_some(entry)));
        }
        if began.elapsed() >= SEARCH_TIME && !listing.is_done() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether anything that matches lies beyond a place. Not knowing in time counts as yes: a link that leads to
/// an empty page does less harm than one that is missing.
fn is_beyond(node: &Node, query: &ListQuery, place: Option<EntryKey>, backward: bool) -> bool {
    let began = Instant::now();
    let Ok(mut listing) = listing(node, query, place, backward) else { return true };
    while !listing.is_done() {
        match listing.next_chunk(1) {
            Ok(found) if found.is_empty() && began.elapsed() < PROBE_TIME => {}
            Ok(found) => return !found.is_empty() || !listing.is_done(),
            Err(_) => return true,
        }
    }
    false
}

fn links(query: &ListQuery, page: &Page) -> Option<HeaderValue> {
    let mark = |place: EntryKey| Anchor::Entry(Uuid::from_bytes(place.origin.0), place.seq);
    let link = |before, after, rel| {
        let query = ListQuery { before, after, ..query.clone() };
        format!("<{}?{}>; rel=\"{rel}\"", path::MESSAGES, query.to_query_string())
    };
    // A walk between two anchors stays between them.
    let end = query.before.and(query.after);
    let prev = page.older.map(|place| link(Some(mark(place)), end, "prev"));
    let next = page.newer.map(|place| link(None, Some(mark(place)), "next"));
    let links: Vec<String> = prev.into_iter().chain(next).collect();
    if links.is_empty() { None } else { HeaderValue::try_from(links.join(", ")).ok() }
}

/// Encodes the next few messages of a page. Whether there may be more.
fn send_places(
    store: &Store,
    places: &mut VecDeque<(EntryKey, Option<Entry>)>,
    most: usize,
    encoder: &mut MessageEncoder,
) -> Result<bool, StoreError> {
    for count in 0..most {
        let Some((place, entry)) = places.front_mut() else { return Ok(count > 0) };
        let entry = match entry.take() {
            Some(entry) => entry,
            None => match store.log().read()?.get(place.origin, place.seq) {
                Err(StoreError::Damaged { .. }) if count > 0 => return Ok(true), // the next step begins with it
                entry => entry?,
            },
        };
        encoder.push_all(std::slice::from_ref(&entry));
        places.pop_front();
    }
    Ok(true)
}

fn chunk_count(way: Option<&OwnedSemaphorePermit>) -> usize {
    if way.is_some() { CHUNK_COUNT } else { CHUNK_COUNT_FEW }
}

/// How messages are put into a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyFormat {
    Array,
    Lines,
}

/// Messages as they go out.
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

    fn end(&mut self) {
        if self.format == BodyFormat::Array {
            self.out.extend_from_slice(b"]\n");
        }
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.out).into_boxed_slice().into() // it may wait for long
    }
}

/// An answer whose body is encoded step by step, each step on a blocking thread and only once the reader has
/// taken what came before. A step gives `false` when there is no more. One that meets damage is repeated for a moment;
/// one that fails aborts the answer, so that half a history is never taken for all of it.
fn streamed<S: Send + 'static>(
    node: &Node,
    format: BodyFormat,
    encoder: MessageEncoder,
    state: S,
    step: fn(&mut S, &mut MessageEncoder) -> Result<bool, StoreError>,
) -> Response {
    let (readers, store) = (node.limits.readers.clone(), Arc::downgrade(&node.store));
    let walk = Arc::new(Mutex::new((state, encoder)));
    let body = stream::try_unfold(Some((walk, readers, store)), move |state| async move {
        let Some((walk, readers, weak)) = state else { return Ok(None) };
        let store = weak.upgrade().ok_or(StoreError::Closed)?;
        let stepping = retry_while_repairing(&store, || {
            let walk = walk.clone();
            blocking(readers.clone(), move || {
                // One step at a time; after one that panicked the answer is aborted.
                let (state, encoder) = &mut *walk.lock().unwrap_or_else(PoisonError::into_inner);
                let goes_on = step(state, encoder).map_err(Problem::from)?; // it has begun, and cannot begin again
                if !goes_on {
                    encoder.end();
                }
                Ok((encoder.take(), goes_on))
            })
        });
        let (bytes, goes_on) = stepping.await?;
        drop(store); // not held while the reader takes its time
        Ok::<_, Problem>(Some((bytes, goes_on.then_some((walk, readers, weak)))))
    });
    let media = if format == BodyFormat::Lines { media::NDJSON } else { media::JSON };
    ([(header::CONTENT_TYPE, media)], Body::from_stream(body)).into_response()
}

/// Runs what touches the disk where it holds up nobody, a few at a time.
pub(in crate::node) async fn blocking<T: Send + 'static>(
    readers: Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, ReadFailure> + Send + 'static,
) -> Result<T, ReadFailure> {
    let turn = readers.acquire_owned().await;
    let in_turn = move || {
        let _turn = turn; // kept also when nobody waits for the answer any more
        work()
    };
    tokio::task::spawn_blocking(in_turn).await.unwrap_or_else(|error| {
        tracing::error!(%error, "reading panicked");
        Err(Problem::new(ErrorCode::Internal, "a mistake in this server, which its log describes").into())
    })
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if let StoreError::CutOff { .. } = error {
            tracing::warn!(%error, "a read is not gone on with");
        } else {
            tracing::error!(%error, "reading failed");
        }
        Problem::new(ErrorCode::StorageFailed, format!("this node cannot read its store: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_read_under_which_a_log_was_cut_is_begun_again_and_ends_some_time() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (store, _) = Store::open(dir.path(), "test", 0).expect("opens");
        let times = &AtomicU32::new(0);
        let read = |fails: u32| {
            move || async move {
                let cut_off = StoreError::CutOff { origin: Origin([1; 16]), seq: 7 };
                if times.fetch_add(1, Ordering::Relaxed) < fails { Err(cut_off.into()) } else { Ok("all") }
            }
        };
        assert_eq!(retry_while_repairing(&store, read(1)).await.expect("is begun again"), "all");
        let problem = retry_while_repairing(&store, read(u32::MAX)).await.expect_err("again and again");
        assert_eq!(problem.code, ErrorCode::StorageFailed);
        assert!(problem.to_string().contains("was cut meanwhile"), "{problem}");
    }
}
