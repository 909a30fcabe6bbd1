//! Owns `POST /messages` at a node: from the request to the disk to the answer.
//!
//! The flow: headers and query are checked before the body is read -> the body becomes checked messages -> the writer
//! stores them, and replies once they are on disk -> `acks` waits for further copies if they are asked for -> the
//! answer.
//!
//! Before it: `serve`. After it: `writer`.

use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use uuid::Uuid;

use crate::api::batch::{self, BatchAnswer, Rejected};
use crate::api::error::{ErrorCode, Problem};
use crate::api::header::POSITION;
use crate::api::message::{self, MessageView, TimestampSource};
use crate::api::path;
use crate::api::query::SendQuery;
use crate::api::time::Time;
use crate::chain::ids::EntryKey;
use crate::chain::kind::EntryKind;
use crate::chain::message::{Content, Digest, Message};
use crate::node::Node;
use crate::node::http::acks::{self, AckPolicy};
use crate::node::http::position;
use crate::replica::write_ops::{NewMessage, Rejection, SendOutcome};
use crate::serve::{self, SendKind};

pub async fn post(
    node: Node,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let acks = AckPolicy::of(SendQuery::parse(query.as_deref().unwrap_or(""))?, &node)?;
    let kind = SendKind::of(&headers)?;
    let idempotency_id = serve::idempotency_key(&headers)?;
    let body = serve::read_body(body, kind.limit(), &node.limits.bodies).await?;
    match kind {
        SendKind::One => one(&node, body, idempotency_id, acks).await,
        SendKind::Batch => many(&node, body, idempotency_id, acks).await,
    }
}

fn new_message(message: &Message) -> NewMessage {
    let content = message.encode();
    NewMessage { id: message.fields().id, digest: Digest::of(EntryKind::Message, &content), content }
}

async fn one(
    node: &Node,
    body: Bytes,
    idempotency_id: Option<Uuid>,
    policy: AckPolicy,
) -> Result<Response, Problem> {
    let message = message::parse_send(&body, idempotency_id, Uuid::now_v7)?;
    let new = new_message(&message);
    let digest = new.digest;
    let outcome = node.writer.send(vec![new]).await.pop();
    let (key, duplicate) = match outcome.expect("one outcome per message") {
        SendOutcome::Stored { key, duplicate } => (key, duplicate),
        SendOutcome::NotStored(why) => return Err(why.into()),
    };
    drop(body); // gives its share of the memory budget back before the wait
    let copies = if duplicate {
        acks::all_copies(node, vec![(message.fields().id, digest, key)]).await
    } else {
        vec![vec![acks::range_of(key)]]
    };
    policy.wait(node, &copies).await;
    let durable_on = node.durable_on(&copies[0]);
    let content = message.encode();
    let content = Content::decode(&content).expect("was encoded just now");
    let mut json = Vec::with_capacity(512);
    view(&content, key).write_answer_json(&durable_on, Some(duplicate), &mut json);
    let status = match (policy.is_met_by(durable_on.len()), duplicate) {
        (false, _) => StatusCode::ACCEPTED,
        (true, true) => StatusCode::OK,
        (true, false) => StatusCode::CREATED,
    };
    let mut response = serve::json_bytes(status, json);
    let location = format!("{}{}", path::MESSAGES_PREFIX, content.id.hyphenated());
    let location = location.try_into().expect("a UUID is a header value");
    response.headers_mut().insert(header::LOCATION, location);
    response.headers_mut().insert(POSITION, position::of_keys(node, [key]));
    Ok(response)
}

/// The lines of a batch.
#[derive(Default)]
struct ParsedBatch {
    messages: Vec<NewMessage>,
    /// Number, id and digest of each message.
    lines: Vec<(u64, Uuid, Digest)>,
    /// The other lines.
    rejected: Vec<Rejected>,
}

impl ParsedBatch {
    fn of(body: &[u8], idempotency_id: Option<Uuid>) -> Result<Self, Problem> {
        let mut parsed = ParsedBatch::default();
        for line in batch::parse_batch(body, idempotency_id, Uuid::now_v7)? {
            match line.message {
                Ok(message) => {
                    let message = new_message(&message);
                    parsed.lines.push((line.number, message.id, message.digest));
                    parsed.messages.push(message);
                }
                Err(problem) => parsed.rejected.push(Rejected::new(line.number, problem)),
            }
        }
        Ok(parsed)
    }
}

async fn many(
    node: &Node,
    body: Bytes,
    idempotency_id: Option<Uuid>,
    policy: AckPolicy,
) -> Result<Response, Problem> {
    let (length, whole) = (body.len(), body.clone());
    let parsing = move || ParsedBatch::of(&whole, idempotency_id);
    let ParsedBatch { lines, messages, rejected } = node.limits.compute(length, parsing).await??;
    let mut answer = BatchAnswer { rejected, ..BatchAnswer::default() };
    let outcomes = if messages.is_empty() { Vec::new() } else { node.writer.send(messages).await };
    drop(body); // as above
    let (mut new, mut known) = (Vec::new(), Vec::new());
    for ((number, id, digest), outcome) in lines.into_iter().zip(outcomes) {
        match outcome {
            SendOutcome::Stored { key, duplicate: false } => new.push(key),
            SendOutcome::Stored { key, duplicate: true } => known.push((id, digest, key)),
            SendOutcome::NotStored(why) => answer.rejected.push(Rejected::new(number, why.into())),
        }
    }
    (answer.accepted, answer.duplicates) = (new.len() as u64, known.len() as u64);
    answer.rejected.sort_by_key(|rejected| rejected.line);
    let covered = position::of_keys(node, new.iter().copied().chain(known.iter().map(|(.., key)| *key)));
    let mut status = StatusCode::OK;
    if policy.needs_peers() {
        let mut copies = acks::ranges_by_log(new);
        copies.extend(acks::all_copies(node, known).await);
        policy.wait(node, &copies).await;
        if !policy.is_met(node, &copies) {
            // again, since a peer may have lost entries meanwhile
            status = StatusCode::ACCEPTED;
        }
    }
    let mut response = serve::json(status, &answer);
    response.headers_mut().insert(POSITION, covered);
    Ok(response)
}

/// A stored message as it is shown.
pub fn view<'a>(content: &Content<'a>, key: EntryKey) -> MessageView<'a> {
    MessageView {
        id: content.id,
        sender: content.sender,
        recipient: content.recipient,
        text: content.text,
        timestamp: content.shown_timestamp(key.stamp),
        accepted_at: Time(key.stamp.ms()),
        origin: Uuid::from_bytes(key.origin.0),
        seq: key.seq,
        timestamp_from: content.timestamp.is_none().then_some(TimestampSource::Server),
    }
}

impl From<Rejection> for Problem {
    fn from(why: Rejection) -> Self {
        let (code, detail) = match why {
            Rejection::Conflict => {
                (ErrorCode::IdConflict, "this id already stands for a message with other content")
            }
            Rejection::Overloaded => (ErrorCode::Overloaded, "too many messages wait to be written"),
            Rejection::Full => (ErrorCode::StorageFull, "the disk of this node is nearly full"),
            Rejection::Failed => (ErrorCode::StorageFailed, "this node cannot write to its disk"),
        };
        Problem::new(code, detail)
    }
}
