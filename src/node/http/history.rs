//! Owns `GET /messages` and `GET /messages/{id}` at a node: history, in pages or as one stream.
//!
//! The flow: wait for the position that the request brings -> `store::history::listing`, a chunk at a time on blocking
//! threads (`http::read`) -> JSON. The next chunk is read when the client has taken the last one, so memory does not
//! depend on the length of history. The first chunk is a short read; further ones take turns with other long reads, and
//! none is read once the client is gone.
//!
//! A listing shows the vector at its start. If a log is cut meanwhile, the listing starts again on the new vector as
//! long as nothing of the answer was sent. After that it is aborted: half a history must not look like all of it.
//!
//! Damaged entries that no peer sends in time are left out, and a header says how many. Damage that is found after the
//! header was sent aborts the answer, and before the next such answer all of history is checked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::extract::RawQuery;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use uuid::Uuid;

use crate::api::error::Problem;
use crate::api::header::POSITION;
use crate::api::media;
use crate::api::query::{self, ListQuery};
use crate::chain::filter::Filter;
use crate::node::Node;
use crate::node::http::page::page;
use crate::node::http::range::{add_missing, anchors, bounds, left_out, listing, not_found, skips};
use crate::node::http::read::{ReadFailure, retry_while_repairing};
use crate::node::http::send::view;
use crate::node::http::streamed::{BodyFormat, CHUNK_COUNT, MessageEncoder, chunk_count, streamed};
use crate::node::http::{acks, position};
use crate::serve;
use crate::store::StoreError;
use crate::store::history::listing::{Listing, Skips};

/// The search for damage before a listing ends after this long, so that the answer begins in time.
const CHECK_TIME: Duration = Duration::from_secs(20);

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

/// `GET /messages`.
pub async fn get(node: Node, RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Problem> {
    let query = ListQuery::parse(query.as_deref().unwrap_or(""))?;
    let wanted = position::wait_for(&node, &headers).await?;
    // Taken before the listing, so that it covers no more than the listing does.
    let covered = position::of_logs(&node, &node.logs(), &wanted);
    let format =
        if serve::wants_ndjson(&headers, media::JSON) { BodyFormat::Lines } else { BodyFormat::Array };
    if query.limit.is_none() && node.limits.check_history.load(Ordering::Relaxed) {
        find_damage(&node).await?;
    }
    let (node, query) = (&node, &query);
    let reading = async |is_last| match query.limit {
        None => stream_all(node, query, format, is_last).await,
        Some(limit) => page(node, query, limit as usize, format, is_last).await,
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
        listing = node.limits.scan(reading).await?;
    }
    node.limits.check_history.store(false, Ordering::Relaxed);
    Ok(())
}

/// Everything that matches, oldest first.
async fn stream_all(
    node: &Node,
    query: &ListQuery,
    format: BodyFormat,
    is_last: bool,
) -> Result<Response, ReadFailure> {
    let permit = node.limits.iterator();
    let (count, keeps_buffers) = (chunk_count(permit.as_ref()), permit.is_some());
    let (reader, query) = (node.clone(), query.clone());
    let opening = move || {
        let (before, after) = bounds(&query, anchors(&reader, &query)?);
        let logs = reader.logs();
        let mut listing = listing(&reader, logs.clone(), &query, after, false)?.until(before);
        listing = listing.skipping(skips(&reader, is_last));
        let mut encoder = MessageEncoder::new(format);
        // Read before the status is sent, so that its failure can still become an error status.
        encoder.push_all(&listing.first_chunk(count)?);
        if !keeps_buffers {
            listing.release_buffers(); // many may wait for their turn
        }
        Ok((encoder, listing, left_out(&reader, &logs, (after, before), is_last)?))
    };
    let (encoder, listing, left_out) = node.limits.read(opening).await?;
    // From here on, no further entry can be left out: the header with their number is sent.
    let missing = left_out.len();
    let mut listing = listing.skipping(Skips::These(left_out));
    let mut response = streamed(node, encoder, true, move |encoder| {
        if !listing.is_done() {
            encoder.push_all(&listing.next_chunk(count)?);
        }
        if permit.is_none() {
            listing.release_buffers();
        }
        Ok(!listing.is_done())
    });
    add_missing(&mut response, missing);
    Ok(response)
}
