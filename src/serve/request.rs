//! Owns the handling of one request: deadline, panics, tracing, and refusals in the shape of the contract.
//!
//! Before it: `auth`. After it: the routes of a node or the proxy. Must not know what an answer says.
//!
//! Invariant: a request without access reaches neither a route nor a handler.

use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt, StreamExt, stream};
use hyper::body::Body as _;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, error};

use super::auth::{self, Access};
use super::body::SharedBody;
use crate::api::error::{ErrorCode, Problem};
use crate::api::explain_invalid::quote;
use crate::api::feed::{FeedFormat, FeedQuery};
use crate::api::header::LAST_EVENT_ID;
use crate::api::json;
use crate::api::key;
use crate::api::media;
use crate::api::network::Liveness;
use crate::api::path;
use crate::api::query::refuse_any;

/// How long a read or a feed without anything to send goes on after its client closed the sending side. Most such clients
/// are gone, and only a write would show it. Without this bound the search of a gone client goes on, and its feed keeps
/// a slot.
const LEFT_MAX: Duration = Duration::from_millis(50);

/// An answer with this value as JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    json_bytes(status, json::to_vec(value))
}

/// An answer that is JSON already.
pub fn json_bytes(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, media::JSON)], with_newline(body)).into_response()
}

/// Appends a newline, so that in a terminal the prompt after the answer begins a new line.
fn with_newline(mut json: Vec<u8>) -> Vec<u8> {
    json.push(b'\n');
    json
}

/// `GET /livez`: a process that runs this is alive.
pub async fn live(RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    refuse_any(raw.as_deref())?;
    Ok(json(StatusCode::OK, &Liveness { live: true }))
}

/// Whether the client prefers an answer as lines of JSON to one of the media type `default`.
pub fn wants_ndjson(headers: &HeaderMap, default: &str) -> bool {
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    media::wants_ndjson(&accepts.collect::<Vec<_>>().join(","), default)
}

/// What a `GET /feed` asks for, the format of its events, and the media type of that format.
pub fn feed_request(
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<(FeedQuery, FeedFormat, &'static str), Problem> {
    let last_id = headers.get(LAST_EVENT_ID).map(|value| value.to_str().unwrap_or("?"));
    let query = FeedQuery::parse(query.unwrap_or(""), last_id)?;
    let wants_lines = wants_ndjson(headers, media::EVENTS);
    let (format, media) =
        if wants_lines { (FeedFormat::Lines, media::NDJSON) } else { (FeedFormat::Events, media::EVENTS) };
    Ok((query, format, media))
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = with_newline(self.to_json());
        let mut response = (status, [(header::CONTENT_TYPE, media::PROBLEM)], body).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Adds refusals of unknown paths and methods. axum adds the `Allow` header.
pub fn with_refusals(app: Router) -> Router {
    app.method_not_allowed_fallback(async |method: Method, uri: Uri| {
        let detail = format!("{} does not take {method}; the Allow header says what it takes", target(&uri));
        Problem::new(ErrorCode::MethodNotAllowed, detail)
    })
    .fallback(async |uri: Uri| {
        Problem::new(ErrorCode::NotFound, format!("there is no {} here", target(&uri)))
    })
}

/// What a request asks for, in backticks: its path, or the address that CONNECT names.
fn target(uri: &Uri) -> String {
    if uri.path().is_empty() { quote(&uri.to_string()) } else { quote(uri.path()) }
}

/// The refusal of a feed beyond the bound. It closes its connection, which takes a descriptor as well.
fn too_many_feeds() -> Response {
    let detail = "this server has as many feeds as its limits allow; another server may take one more";
    let mut response = Problem::new(ErrorCode::Overloaded, detail).into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A body that has this slot until it ends.
fn holding(body: Body, slot: OwnedSemaphorePermit) -> Body {
    Body::from_stream(body.into_data_stream().inspect(move |_| {
        let _held = &slot;
    }))
}

/// Returns when a read is given up: its client has left, or does not say that it has not.
async fn is_given_up(left: &CancellationToken) {
    left.cancelled().await;
    sleep(LEFT_MAX).await;
}

/// A body that is aborted when it is given up.
fn until_given_up(body: Body, left: CancellationToken) -> Body {
    let parts = stream::unfold(Some(body.into_data_stream()), move |body| {
        let left = left.clone();
        async move {
            let mut body = body?;
            tokio::select! {
                biased;
                part = body.next() => part.map(|part| (part, Some(body))),
                () = is_given_up(&left) => {
                    let gone = io::Error::from(io::ErrorKind::ConnectionAborted);
                    Some((Err(axum::Error::new(gone)), None))
                }
            }
        }
    });
    Body::from_stream(parts)
}

/// What the answer to a request needs of its server and its connection.
pub struct Shared {
    pub app: Router,
    pub feeds: Arc<Semaphore>,
    /// Time to begin the answer.
    pub limit: Duration,
    /// The client has closed its sending side.
    pub left: CancellationToken,
}

/// Answers one request. Never fails: an error is an answer as well.
pub async fn answer(
    shared: Shared,
    access: Access,
    request: Request<SharedBody>,
) -> Result<Response, Infallible> {
    let (Shared { app, feeds, limit, left }, started) = (shared, Instant::now());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    // A send goes on in any case, and other requests are answered soon.
    let needs_client = method.is_safe() && matches!(&*path, path::MESSAGES | path::FEED);
    // With `Expect: 100-continue` (RFC 9110, 10.1.1) the client has not sent the body of a refused request.
    let expects_continue = request.headers().contains_key(header::EXPECT);
    let (head, body) = request.into_parts();
    let feed = (method == Method::GET && path == path::FEED).then(|| feeds.try_acquire_owned());
    let mut response = if access == Access::Unauthenticated {
        Problem::new(ErrorCode::Unauthorized, key::REFUSAL).into_response()
    } else if let Some(Err(_)) = feed {
        too_many_feeds()
    } else {
        let answer = app.oneshot(Request::from_parts(head, Body::new(body.clone())));
        let answer = timeout(limit, AssertUnwindSafe(answer).catch_unwind());
        let answered = tokio::select! {
            biased;
            answered = answer => Some(answered),
            () = is_given_up(&left), if needs_client => None,
        };
        match answered {
            Some(Ok(Ok(Ok(response)))) if needs_client && response.body().size_hint().exact().is_none() => {
                response.map(|body| until_given_up(body, left))
            }
            Some(Ok(Ok(Ok(response)))) => response,
            None => {
                let detail = "the client closed its side of the connection, and the answer takes longer";
                Problem::new(ErrorCode::Timeout, detail).into_response()
            }
            Some(Ok(Err(_))) => {
                error!("{method} {path}: the handler panicked");
                let detail = "a bug in this server, which its log describes; other requests are not affected";
                Problem::new(ErrorCode::Internal, detail).into_response()
            }
            Some(Err(_)) => {
                let detail = format!("not received and answered within {} seconds", limit.as_secs_f32());
                Problem::new(ErrorCode::Timeout, detail).into_response()
            }
        }
    };
    if !response.status().is_success() && !expects_continue {
        body.discard_rest().await;
    }
    if let Some(Ok(slot)) = feed
        && response.status().is_success()
    {
        response = response.map(|body| holding(body, slot));
    }
    if access != Access::Authenticated {
        auth::mark_unauthenticated(&mut response);
    }
    debug!(%method, path, status = response.status().as_u16(), ms = started.elapsed().as_millis(), "answered");
    Ok(response)
}
