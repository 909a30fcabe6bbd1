//! From a request to its response: deadline, panics, tracing, and refusals in the one shape of the contract.
//!
//! Who asks is known already; a stranger's request meets neither the routes nor a handler. Knows nothing of what an
//! answer says.

use std::{convert::Infallible, panic::AssertUnwindSafe, time::Duration};

use axum::{
    Router,
    extract::{RawQuery, Request},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};
use tower::ServiceExt;
use tracing::{debug, error};

use super::{
    auth::{self, Access},
    body::DrainableBody,
};
use crate::api::{
    error::{ErrorCode, Problem},
    explain_invalid::quote,
    media,
    network::Liveness,
    query::refuse_any,
};

/// A JSON answer.
pub fn json(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, media::JSON)], line(body)).into_response()
}

/// Ends it with a newline: people read answers in terminals, too, and there the next prompt begins a line.
fn line(mut json: Vec<u8>) -> Vec<u8> {
    json.push(b'\n');
    json
}

/// `GET /livez`: who can run this, lives.
pub async fn live(RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    refuse_any(raw.as_deref())?;
    Ok(json(StatusCode::OK, serde_json::to_vec(&Liveness { live: true }).expect("a boolean serialises")))
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = line(self.to_json());
        let mut response = (status, [(header::CONTENT_TYPE, media::PROBLEM)], body).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The app, refusing unknown paths and methods as the contract says. axum adds the `Allow` header.
pub(super) fn with_refusals(app: Router) -> Router {
    app.method_not_allowed_fallback(async |method: Method, uri: Uri| {
        let detail =
            format!("{} does not take {method}; the Allow header says what it takes", quote(uri.path()));
        Problem::new(ErrorCode::MethodNotAllowed, detail)
    })
    .fallback(async |uri: Uri| {
        Problem::new(ErrorCode::NotFound, format!("there is no {} here", quote(uri.path())))
    })
}

/// Answers one request of somebody with this standing. Never fails: what goes wrong is an answer too.
pub(super) async fn answer(
    app: Router,
    (standing, request): (Access, Request<Option<Incoming>>),
    limit: Duration,
) -> Result<Response, Infallible> {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match standing {
        Access::Authenticated | Access::PublicPath => ask(app, request, limit, (&method, &path)).await,
        Access::Unauthenticated => auth::refusal().into_response(),
    };
    if standing != Access::Authenticated {
        auth::dismiss(&mut response);
    }
    debug!(%method, path, status = response.status().as_u16(), ms = began.elapsed().as_millis(), "answered");
    Ok(response)
}

async fn ask(
    app: Router,
    request: Request<Option<Incoming>>,
    limit: Duration,
    (method, path): (&Method, &str),
) -> Response {
    // A client that asks first (RFC 9110, 10.1.1) has not begun to send a body that is refused.
    let asks_first = request.headers().contains_key(header::EXPECT);
    let lender = DrainableBody::default();
    let request = request.map(|body| lender.lend(body));
    let answer = AssertUnwindSafe(app.oneshot(request)).catch_unwind();
    let response = match timeout(limit, answer).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Err(_)) => {
            error!("{method} {path}: the handler panicked");
            let detail = "a mistake in this server, which its log describes; other requests are not affected";
            Problem::new(ErrorCode::Internal, detail).into_response()
        }
        Err(_) => {
            let detail = format!("not received and answered within {} seconds", limit.as_secs_f32());
            Problem::new(ErrorCode::Timeout, detail).into_response()
        }
    };
    if !response.status().is_success() && !asks_first {
        lender.discard_rest().await;
    }
    response
}
