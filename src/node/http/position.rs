//! Owns positions: how far a read must reach, so that a client sees on any node what it sent to another one.
//!
//! An answer's header says which entries it covers. A request that brings the header back waits until this node covers
//! them, too. A node that cannot catch up in time answers with what it has, and its own position says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use tokio::time::timeout;

use crate::api::error::{ErrorCode, Problem};
use crate::api::feed::{from_text, to_text};
use crate::api::header::POSITION;
use crate::chain::cursor::{self, InvalidCursor};
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::node::Node;

/// How long a read waits for the entries that it must cover. Then it is answered without them.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Logs that a position names at most: those that grew last. The bound keeps the header short.
const LOGS_MAX: usize = 40;

/// Waits until the logs cover the request's position, for at most [`WAIT_MAX`]. Returns that position.
pub async fn wait_for(node: &Node, headers: &HeaderMap) -> Result<Vec<(Origin, u64)>, Problem> {
    let Some(value) = headers.get(POSITION) else { return Ok(Vec::new()) };
    let bytes = value.to_str().ok().and_then(from_text).ok_or(InvalidCursor::Malformed);
    let read = bytes.and_then(|bytes| cursor::read_position(&bytes, node.cluster.network));
    let wanted = read.map_err(|why| {
        let detail = format!("the header ChatChain-Position cannot be used: {why}");
        Problem::new(ErrorCode::InvalidQuery, detail)
    })?;
    let mut signal = node.logs_signal();
    let covers = |logs: &Arc<Logs>| wanted.iter().all(|(origin, seq)| covered(logs, *origin, *seq) >= *seq);
    let _in_time = timeout(WAIT_MAX, signal.wait_for(covers)).await.is_ok();
    Ok(wanted)
}

/// How far a log is covered, if it is asked for up to `asked`. A log that was cut before that is covered as well: the
/// entries after the cut are in a branch.
fn covered(logs: &Logs, origin: Origin, asked: u64) -> u64 {
    let seq = logs.vector().seq(origin);
    if seq >= asked.min(logs.vector().limit(origin)) { seq.max(asked) } else { seq }
}

/// The header for an answer that covers these entries.
pub fn of_keys(node: &Node, keys: impl IntoIterator<Item = EntryKey>) -> HeaderValue {
    let mut last = BTreeMap::new();
    for EntryKey { origin, seq, .. } in keys {
        let known = last.entry(origin).or_insert(seq);
        *known = seq.max(*known);
    }
    value(node, last)
}

/// The header for an answer that covers these logs. It always names the logs that were asked for.
pub fn of_logs(node: &Node, logs: &Logs, asked: &[(Origin, u64)]) -> HeaderValue {
    let is_asked = |origin: Origin| asked.iter().any(|(of, _)| *of == origin);
    let others = logs.ranges().filter(|(origin, _)| !is_asked(*origin));
    let mut newest: Vec<_> = others.map(|(origin, range)| (range.last, origin)).collect();
    if newest.len() > LOGS_MAX {
        newest.select_nth_unstable_by(LOGS_MAX, |left, right| right.cmp(left));
        newest.truncate(LOGS_MAX);
    }
    newest.sort_unstable_by(|left, right| right.cmp(left));
    let asked = asked.iter().map(|(origin, seq)| (*origin, covered(logs, *origin, *seq)));
    let newest = newest.into_iter().map(|(_, origin)| (origin, logs.vector().seq(origin)));
    value(node, asked.filter(|(_, seq)| *seq > 0).chain(newest))
}

fn value(node: &Node, seqs: impl IntoIterator<Item = (Origin, u64)>) -> HeaderValue {
    let bytes = cursor::position(node.cluster.network, seqs);
    to_text(&bytes).try_into().expect("base64 is a header value")
}
