//! Owns the pages of `GET /messages`: the newest messages that match, or those next to an anchor, and the links to go on.
//!
//! Called by `history`; the search reads the store chunk by chunk, and `streamed` sends the page. Between two chunks,
//! other reads take their turn, and the search ends if its client is gone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, header};
use axum::response::Response;
use tokio::time::timeout;
use uuid::Uuid;

use crate::api::path;
use crate::api::query::{Anchor, ListQuery};
use crate::chain::ids::EntryKey;
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::node::Node;
use crate::node::http::range::{add_missing, anchors, bounds, left_out, listing, skips};
use crate::node::http::read::ReadFailure;
use crate::node::http::streamed::{BodyFormat, MessageEncoder, chunk_count, streamed};
use crate::store::history::listing::Listing;
use crate::store::{Store, StoreError};

/// A page stops searching after this long. It then holds what was found, and a link to go on.
const SEARCH_TIME: Duration = Duration::from_secs(2);
/// How long it is searched for messages beyond a page. If that does not tell, the page gets the link.
const PROBE_TIME: Duration = Duration::from_millis(100);
/// Bytes of entries that a page keeps until they are sent. Further entries are read a second time.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// The same for a page without an iterator permit.
const PAGE_BYTES_FEW: usize = 128 << 10;

/// The entries of a page. Beyond the bytes that a page may keep, only the key is here.
type PageEntries = VecDeque<(EntryKey, Option<Entry>)>;

/// A page while it is searched for.
struct PageSearch {
    listing: Listing,
    logs: Arc<Logs>,
    limit: usize,
    bytes_max: usize,
    /// Newer entries are searched for, not older ones.
    forward: bool,
    /// Entries nearer to the start of the search than the page may match as well.
    may_go_back: bool,
    from: Option<EntryKey>,
    until: Option<EntryKey>,
    /// In the listing's direction.
    entries: PageEntries,
    bytes: usize,
    /// There are more messages, or time ran out before that was known.
    has_more: bool,
}

impl PageSearch {
    fn open(node: &Node, query: &ListQuery, limit: usize, is_last: bool) -> Result<Self, ReadFailure> {
        let (before, after) = anchors(node, query)?;
        let forward = after.is_some() && before.is_none();
        let (end, start) = bounds(query, (before, after));
        let (from, until) = if forward { (start, end) } else { (end, start) };
        let logs = node.logs();
        let listing = listing(node, logs.clone(), query, from, !forward)?.until(until);
        Ok(PageSearch {
            listing: listing.skipping(skips(node, is_last)),
            logs,
            limit,
            bytes_max: PAGE_BYTES_MAX,
            forward,
            // Between two anchors the search goes from the newer to the older one, so nothing newer is left out.
            may_go_back: forward || (before.is_some() && after.is_none()),
            from,
            until,
            entries: PageEntries::new(),
            bytes: 0,
            has_more: false,
        })
    }

    fn is_over(&self) -> bool {
        self.has_more || self.listing.is_done()
    }

    /// How many messages to search for: one more than the page, to know whether there are more.
    fn wanted(&self) -> usize {
        self.limit + 1 - self.entries.len()
    }

    /// Adds what a chunk found. Without `keeps_buffers`, the next chunk seeks again: many may wait for their turn.
    fn add(&mut self, found: Vec<Entry>, keeps_buffers: bool) {
        if !keeps_buffers {
            self.listing.release_buffers();
        }
        for entry in found {
            if self.entries.len() == self.limit {
                self.has_more = true;
                return;
            }
            self.bytes += entry.size();
            self.entries.push_back((entry.key(), (self.bytes <= self.bytes_max).then_some(entry)));
        }
    }

    fn nearest(&self) -> Option<EntryKey> {
        self.entries.front().map(|(key, _)| *key)
    }

    /// Where the next page continues.
    fn beyond(&self) -> Option<EntryKey> {
        let farthest = self.entries.back().map(|(key, _)| *key);
        let last_seen = self.listing.last_seen().filter(|_| self.entries.len() < self.limit);
        self.has_more.then_some(last_seen.or(farthest)).flatten()
    }

    /// The entries between which this page lists everything.
    fn range(&self) -> (Option<EntryKey>, Option<EntryKey>) {
        let end = if self.has_more { self.beyond() } else { self.until };
        if self.forward { (self.from, end) } else { (end, self.from) }
    }
}

/// At most `limit` messages: the newest, or those next to an anchor. Between two anchors, the newest. A page is
/// complete before it is sent, because it is found newest first and sent oldest first.
pub async fn page(
    node: &Node,
    query: &ListQuery,
    limit: usize,
    format: BodyFormat,
    is_last: bool,
) -> Result<Response, ReadFailure> {
    let (began, permit) = (Instant::now(), node.limits.iterator());
    let keeps_buffers = permit.is_some();
    let bytes_max = if keeps_buffers { PAGE_BYTES_MAX } else { PAGE_BYTES_FEW };
    let (reader, asked) = (node.clone(), query.clone());
    let opening = move || {
        let mut search = PageSearch { bytes_max, ..PageSearch::open(&reader, &asked, limit, is_last)? };
        let found = search.listing.first_chunk(search.wanted())?;
        search.add(found, keeps_buffers);
        Ok(search)
    };
    let mut search = node.limits.read(opening).await?;
    while !search.is_over() {
        if began.elapsed() >= SEARCH_TIME {
            search.has_more = true;
            break;
        }
        let searching = move || {
            let found = search.listing.next_chunk(search.wanted())?;
            search.add(found, keeps_buffers);
            Ok(search)
        };
        search = node.limits.scan(searching).await?;
    }
    let (reader, logs, range) = (node.clone(), search.logs.clone(), search.range());
    let missing = if node.store.log().damage().count() == 0 {
        0
    } else {
        node.limits.read(move || Ok(left_out(&reader, &logs, range, is_last)?.len())).await?
    };
    let back = match search.nearest().filter(|_| search.may_go_back) {
        Some(key) if is_beyond(node, query, key, search.forward).await => Some(key),
        _ => None,
    };
    let beyond = search.beyond();
    let (older, newer) = if search.forward { (back, beyond) } else { (beyond, back) };
    let mut entries = search.entries;
    if !search.forward {
        entries.make_contiguous().reverse();
    }
    let links = links(query, older, newer);
    let store = Arc::downgrade(&node.store);
    let mut response = streamed(node, MessageEncoder::new(format), false, move |encoder| {
        let store = store.upgrade().ok_or(StoreError::Closed)?;
        send_entries(&store, &mut entries, chunk_count(permit.as_ref()), encoder)
    });
    if let Some(links) = links {
        response.headers_mut().insert(header::LINK, links);
    }
    add_missing(&mut response, missing);
    Ok(response)
}

/// Whether a matching message lies beyond a key. If that is not known in time, the answer is yes: a link to an empty
/// page does less harm than a missing link.
async fn is_beyond(node: &Node, query: &ListQuery, key: EntryKey, backward: bool) -> bool {
    let (reader, query) = (node.clone(), query.clone());
    let opening = move || {
        let (end, start) = bounds(&query, (None, None));
        let listing = listing(&reader, reader.logs(), &query, Some(key), backward)?;
        let mut listing = listing.until(if backward { start } else { end });
        let found = listing.first_chunk(1)?;
        listing.release_buffers(); // as in a page that may not keep them
        Ok((found, listing))
    };
    let searching = async {
        let (mut found, mut listing) = node.limits.read(opening).await?;
        while found.is_empty() && !listing.is_done() {
            (found, listing) = node.limits.scan(move || Ok((listing.next_chunk(1)?, listing))).await?;
        }
        Ok::<bool, ReadFailure>(!found.is_empty())
    };
    timeout(PROBE_TIME, searching).await.map_or(true, |found| found.unwrap_or(true))
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
        let Some((key, entry)) = keys.front_mut() else { break };
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
    Ok(!keys.is_empty())
}
