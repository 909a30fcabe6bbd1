//! Owns which part of history a request lists: its anchors and times as keys, and the damaged entries that are left out.
//!
//! Called by `history` and `page`. Must not know how the messages are sent.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::response::Response;
use uuid::Uuid;

use crate::api::error::{ErrorCode, Problem};
use crate::api::header::MISSING;
use crate::api::query::{Anchor, ListQuery};
use crate::chain::clock::Stamp;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::node::Node;
use crate::node::http::read::{REPAIR_TIME, ReadFailure};
use crate::store::StoreError;
use crate::store::history::listing::{Listing, Skips, damaged_between};

/// The damaged entries that an attempt leaves out: those that peers had time to send. The last attempt leaves out all.
pub fn skips(node: &Node, is_last: bool) -> Skips {
    if is_last {
        return Skips::All;
    }
    Skips::These(node.store.log().damage().found_before(REPAIR_TIME))
}

/// The damaged entries between two keys. An error if peers had no time to send one of them.
pub fn left_out(
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

pub fn add_missing(response: &mut Response, missing: usize) {
    if missing > 0 {
        response.headers_mut().insert(MISSING, missing.into());
    }
}

pub fn listing(
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
pub fn bounds(
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

pub fn anchors(node: &Node, query: &ListQuery) -> Result<(Option<EntryKey>, Option<EntryKey>), ReadFailure> {
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
pub fn not_found(id: Uuid) -> Problem {
    Problem::new(ErrorCode::NotFound, format!("no message with the id {id} is known here"))
}
