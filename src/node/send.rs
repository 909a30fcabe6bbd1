//! Owns `POST /messages` at a node: from the request to the disk to the answer.
//!
//! The flow: headers and query are checked before the body is read; the body becomes checked messages; the
//! writer stores them and answers once they are on disk; then the sender is told.

use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use uuid::Uuid;

use super::{Node, position};
use crate::api::batch::{self, BatchAnswer, Rejected};
use crate::api::error::{ErrorCode, Problem};
use crate::api::header::POSITION;
use crate::api::message::{self, MessageView};
use crate::api::query::SendQuery;
use crate::api::{path, time::Time};
use crate::chain::message::{Content, Digest, Message};
use crate::chain::place::Place;
use crate::replica::jobs::{Intake, Outcome, WhyNot};
use crate::serve::{self, SendKind};
use crate::store::listing::shown_timestamp;

/// `POST /messages`.
pub async fn post(
    node: Node,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    SendQuery::parse(query.as_deref().unwrap_or(""))?;
    let kind = SendKind::of(&headers)?;
    let key = serve::idempotency_key(&headers)?;
    let body = serve::read_body(body, kind.limit(), node.budget()).await?;
    match kind {
        SendKind::One => one(&node, message::parse_send(&body, key, Uuid::now_v7)?).await,
        SendKind::Batch => many(&node, &body, key).await,
    }
}

fn intake(message: &Message) -> Intake {
    let content = message.encode();
    Intake { id: message.fields().id, digest: Digest::of(&content), content }
}

async fn one(node: &Node, message: Message) -> Result<Response, Problem> {
    let outcome = node.writer().send(vec![intake(&message)]).await.pop();
    let (place, duplicate) = match outcome.expect("one outcome per message") {
        Outcome::Stored { place, duplicate } => (place, duplicate),
        Outcome::NotStored(why) => return Err(why.into()),
    };
    let content = message.encode();
    let content = Content::decode(&content).expect("was encoded just now");
    let mut json = Vec::with_capacity(512);
    view(&content, place).write_answer_json(&node.durable_on(place), Some(duplicate), &mut json);
    let status = if duplicate { StatusCode::OK } else { StatusCode::CREATED };
    let mut response = serve::json(status, json);
    let location = format!("{}{}", path::MESSAGES_PREFIX, content.id.hyphenated());
    let location = location.try_into().expect("a UUID is a header value");
    response.headers_mut().insert(header::LOCATION, location);
    response.headers_mut().insert(POSITION, position::of_places(node, [place]));
    Ok(response)
}

async fn many(node: &Node, body: &[u8], key: Option<Uuid>) -> Result<Response, Problem> {
    let mut answer = BatchAnswer::default();
    let (mut numbers, mut messages) = (Vec::new(), Vec::new());
    for line in batch::parse_batch(body, key, Uuid::now_v7)? {
        match line.message {
            Ok(message) => {
                numbers.push(line.number);
                messages.push(intake(&message));
            }
            Err(problem) => answer.rejected.push(Rejected::new(line.number, problem)),
        }
    }
    let outcomes = if messages.is_empty() { Vec::new() } else { node.writer().send(messages).await };
    let mut places = Vec::new();
    for (number, outcome) in numbers.into_iter().zip(outcomes) {
        if let Outcome::Stored { place, .. } = outcome {
            places.push(place);
        }
        match outcome {
            Outcome::Stored { duplicate: false, .. } => answer.accepted += 1,
            Outcome::Stored { duplicate: true, .. } => answer.duplicates += 1,
            Outcome::NotStored(why) => answer.rejected.push(Rejected::new(number, why.into())),
        }
    }
    answer.rejected.sort_by_key(|rejected| rejected.line);
    let json = serde_json::to_vec(&answer).expect("numbers and strings serialise");
    let mut response = serve::json(StatusCode::OK, json);
    response.headers_mut().insert(POSITION, position::of_places(node, places));
    Ok(response)
}

/// How a stored message is shown.
pub fn view<'a>(content: &Content<'a>, place: Place) -> MessageView<'a> {
    MessageView {
        id: content.id,
        sender: content.sender,
        recipient: content.recipient,
        text: content.text,
        timestamp: shown_timestamp(content, place),
        accepted_at: Time(place.stamp.ms()),
        origin: Uuid::from_bytes(place.origin.0),
        seq: place.seq,
    }
}

impl From<WhyNot> for Problem {
    fn from(why: WhyNot) -> Self {
        let (code, detail) = match why {
            WhyNot::Conflict => {
                (ErrorCode::IdConflict, "this id already stands for a message with other content")
            }
            WhyNot::Overloaded => (ErrorCode::Overloaded, "too many messages wait to be written"),
            WhyNot::Full => (ErrorCode::StorageFull, "the disk of this node is nearly full"),
            WhyNot::Failed => (ErrorCode::StorageFailed, "this node cannot write to its disk"),
        };
        Problem::new(code, detail)
    }
}
