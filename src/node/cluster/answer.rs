//! Owns the answering side of exchanges: `POST /sync`.
//!
//! The flow: the request is read and decoded -> `replica::exchange` says what it leads to -> the writer commits that ->
//! the answer is read from the store. The asking side is `sync`; a [side push](super::side_push) is answered there.

use axum::body::Body as HttpBody;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use crate::api::error::{ErrorCode, Problem};
use crate::api::media;
use crate::api::query::refuse_any;
use crate::chain::sync::wire::{self, Malformed, SyncMessage};
use crate::node::cluster::side_push;
use crate::node::cluster::sync::{admit_runs, read_runs, take_new_store_id};
use crate::node::{Node, now_ms};
use crate::replica::repair::AskedIn;
use crate::replica::{exchange, pace};
use crate::serve;

/// A request longer than this is refused. Requests of nodes stay well below.
const BODY_BYTES_MAX: usize = 8 << 20;
/// Memory for all answers that wait for their readers. Beyond it an answer has one entry, so that exchanges go on.
pub const ANSWERS_BYTES_MAX: u32 = 128 << 20;
/// An answer of at most this many bytes is not counted.
const SMALL_BYTES: usize = 4 << 10;

pub async fn post(
    node: Node,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: HttpBody,
) -> Result<Response, Problem> {
    refuse_any(query.as_deref())?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(|value| media::is(value, media::BINARY)) {
        let detail = format!("an exchange has the Content-Type {}", media::BINARY);
        return Err(Problem::new(ErrorCode::UnsupportedMediaType, detail));
    }
    let bytes = serve::read_body(body, BODY_BYTES_MAX, &node.limits.bodies).await?;
    let (length, whole) = (bytes.len(), bytes.clone());
    let decoded = node.limits.compute(length, move || SyncMessage::decode(&whole)).await?;
    let mut request = decoded.map_err(|error| {
        let code = match error {
            Malformed::Protocol(_) => ErrorCode::UnsupportedProtocol,
            Malformed::Magic | Malformed::Layout => ErrorCode::InvalidMessage,
        };
        Problem::new(code, error.to_string())
    })?;
    if request.hello.network != node.cluster.network {
        let detail = format!("this node belongs to the network {:?}", node.config.network);
        return Err(Problem::new(ErrorCode::WrongNetwork, detail));
    }
    let budget = budget_of(&request);
    let asks = request.wants_any || !request.wants.is_empty();
    let share = node.limits.answers.share(if asks { budget } else { 0 });
    // While too much waits for slow readers, an answer has one entry, so that every exchange goes on.
    request.budget = Some(if share.is_some() { u32::try_from(budget).expect("a few MiB") } else { 0 });
    let reply = answer(&node, request, bytes).await?;
    let reply = node.limits.compute(wire::run_bytes(&reply.runs), move || reply.encode()).await?;
    drop(share);
    let reply = hold(&node, reply)?;
    Ok(([(header::CONTENT_TYPE, media::BINARY)], HttpBody::from(reply)).into_response())
}

/// Bytes of records that the answer should have.
fn budget_of(request: &SyncMessage) -> usize {
    request.budget.map_or(pace::BYTES_MAX, |budget| pace::BYTES_MAX.min(budget as usize))
}

/// Counts an answer among those that wait for their readers.
fn hold(node: &Node, reply: Vec<u8>) -> Result<Bytes, Problem> {
    if reply.len() <= SMALL_BYTES {
        return Ok(reply.into());
    }
    let share = node.limits.answers.share(reply.len());
    let detail = "too many bytes of answers wait for slow readers";
    share.map(|share| share.hold(reply)).ok_or_else(|| Problem::new(ErrorCode::Overloaded, detail))
}

/// Answers an exchange. `_bytes` keeps the request's share of the memory budget until its records are stored.
pub async fn answer(node: &Node, mut request: SyncMessage, _bytes: Bytes) -> Result<SyncMessage, Problem> {
    let cluster = &node.cluster;
    if cluster.roster().is_own(&request.hello) {
        return Ok(SyncMessage::quiet(cluster.hello(), [0; 16], now_ms()));
    }
    if request.hello.is_copied(cluster.roster().own()) {
        take_new_store_id(node, &request.hello.address).await;
        let detail = "this node runs with a copy of your store, and takes a new store id";
        return Err(Problem::new(ErrorCode::Overloaded, detail));
    }
    if request.entries_only {
        return side_push::answer(node, request).await;
    }
    let mut responder = cluster.sessions().take(&request.hello);
    let damage = node.store.log().damage();
    let (maintenance, runs) = exchange::on_request(&mut responder, &node.logs(), damage, &mut request);
    let clone_address = cluster.roster().clone_address(&request, now_ms());
    if let Some(address) = clone_address {
        take_new_store_id(node, &address).await;
    }
    cluster.on_request(&request, responder.theirs(), node.logs().vector());
    for maintenance in maintenance {
        node.writer.maintain(maintenance).await;
    }
    let admitted = admit_runs(node, &request.hello.address, responder.theirs(), None, runs).await;
    if let Some(why) = admitted.iter().find_map(|(_, admitted)| admitted.not_stored) {
        cluster.sessions().put_back(&request.hello, responder);
        return Err(why.into());
    }
    let logs = node.logs();
    cluster.on_stored(&request.hello, responder.theirs(), logs.vector());
    let budget = budget_of(&request);
    let wanted = exchange::reads_for(&request, &logs, responder.theirs());
    let runs = read_runs(node, wanted, budget).await;
    let runs = runs.map_err(|error| Problem::new(ErrorCode::StorageFailed, error))?;
    let repairs =
        cluster.repairs_to_request(node, AskedIn::Answer(request.hello.member_id()), responder.theirs());
    let mut reply =
        exchange::answer(&mut responder, &logs, &request, runs, repairs, (cluster.hello(), now_ms()));
    cluster.add_members_to_reply(&request, &mut reply);
    cluster.sessions().put_back(&request.hello, responder);
    Ok(reply)
}
