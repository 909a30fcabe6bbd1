//! Owns the attempts of one request: it carries out the steps of the request's plan, and reports their outcomes.
//!
//! Before it: `run` or `feed`. After it: `client`. `plan` decides when to ask one more upstream, `upstreams` which one.
//! The first success wins. A final refusal, which any node would repeat, is the answer; a retryable refusal is kept in
//! case no node does better.
//!
//! Invariants: every attempt carries the same bytes; the body of an answer is passed on as it arrives, never collected.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::plan::{NextStep, ProxyState, RequestClass, RequestPlan};
use super::upstreams::{TrafficClass, UpstreamId, Upstreams};
use crate::api::address::Addr;
use crate::api::error::{ErrorCode, Problem};
use crate::api::key::Keys;
use crate::client::{Answer, Client, ClientError, Request};
use crate::config::Strategy;

/// A longer refusal counts as a failure of the node.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// Limit of an attempt in the client. Above every request deadline, so a request always ends its attempts itself.
const ATTEMPT_MAX: Duration = Duration::from_secs(30);

/// How a node's HTTP library refuses a request head, without a body. The request is at fault (it may have been just
/// short enough for the proxy), so the refusal does not count against the node.
const BODYLESS_REFUSALS: [StatusCode; 3] =
    [StatusCode::BAD_REQUEST, StatusCode::URI_TOO_LONG, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE];

/// Forwards requests to upstreams. Owns the only mutable state of a proxy.
#[derive(Debug)]
pub struct Forwarder {
    pub client: Client,
    strategy: Strategy,
    state: Mutex<ProxyState>,
    started: Instant,
}

enum AttemptOutcome {
    Final(Response),
    /// The answer, unless another upstream has a better one.
    Refused(Response),
    /// No answer. `is_free`: there was no connection, so the node had no work.
    Failed {
        is_free: bool,
    },
}

impl Forwarder {
    /// `own` is the address of the proxy itself, which is never an upstream.
    pub fn new(addrs: Vec<Addr>, own: Addr, strategy: Strategy, keys: Option<&Keys>) -> Self {
        let state = Mutex::new(ProxyState::new(Upstreams::new(addrs, own)));
        Self { client: Client::new(keys), strategy, state, started: Instant::now() }
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Sends a request to upstreams until one gives a final answer.
    pub async fn forward(&self, request: &Request, class: RequestClass) -> Result<Response, Problem> {
        let mut plan = RequestPlan::new(class, self.strategy, &mut self.state(), self.uptime());
        let mut running = FuturesUnordered::new();
        let (mut refusal, mut may_be_stored) = (None, false);
        loop {
            let step = plan.step(&mut self.state(), self.uptime());
            let until = match step {
                NextStep::Ask { attempt, upstream, addr } => {
                    let outcome = self.attempt(upstream, addr, request, class);
                    running.push(async move { (attempt, outcome.await) });
                    continue;
                }
                NextStep::Wait(until) => until,
                NextStep::Over => break,
            };
            tokio::select! {
                biased;
                Some((attempt, outcome)) = running.next() => match outcome {
                    AttemptOutcome::Final(response) => {
                        plan.won(attempt, &mut self.state(), self.uptime());
                        return Ok(response);
                    }
                    AttemptOutcome::Refused(response) => {
                        refusal = Some(response);
                        plan.failed(attempt, false);
                    }
                    AttemptOutcome::Failed { is_free } => {
                        may_be_stored |= !is_free;
                        plan.failed(attempt, is_free);
                    }
                },
                () = sleep_until(self.started + until) => {}
            }
        }
        may_be_stored |= !running.is_empty();
        if refusal.is_some() && may_be_stored && class.traffic == TrafficClass::Write {
            // The refusal of one node does not say that another one stored nothing.
            let detail = "a node took the request and did not answer, and another one refuses it: it may be stored; \
                          repeat it with the same id";
            return Err(Problem::new(ErrorCode::Timeout, detail));
        }
        refusal.ok_or_else(|| {
            let state = self.state();
            let (count, errors) = (state.upstreams.count(), state.upstreams.error_summary());
            Problem::new(ErrorCode::NoNodeAvailable, format!("none of {count} nodes answers ({errors})"))
        })
    }

    async fn attempt(
        &self,
        id: UpstreamId,
        addr: Addr,
        request: &Request,
        class: RequestClass,
    ) -> AttemptOutcome {
        let _in_flight = class.client_wait.is_zero().then(|| InFlight::start(self, id, class.traffic));
        let started = Instant::now();
        match self.client.forward(&addr, request, ATTEMPT_MAX).await {
            Ok(answer) if answer.status().is_success() => {
                let latency = class.is_latency_sample().then(|| started.elapsed());
                self.state().upstreams.answered(id, class.traffic, self.uptime(), latency);
                let (status, headers) = (answer.status(), answer.headers().clone());
                let mut response = respond(status, &headers, Body::from_stream(answer.into_stream()));
                response.extensions_mut().insert(ServedBy(id));
                AttemptOutcome::Final(response)
            }
            Ok(answer) => self.handle_refusal(id, class.traffic, answer).await,
            // The request cannot be sent to any node, so no node is at fault.
            Err(ClientError::Problem { problem, .. }) => AttemptOutcome::Final(problem.into_response()),
            Err(e @ ClientError::NoDescriptor { .. }) => {
                let why = Problem::new(ErrorCode::Overloaded, e.why());
                AttemptOutcome::Refused(why.into_response())
            }
            Err(e) => self.record_failure(id, &e),
        }
    }

    async fn handle_refusal(&self, id: UpstreamId, class: TrafficClass, answer: Answer) -> AttemptOutcome {
        let (addr, status, headers) = (answer.addr().clone(), answer.status(), answer.headers().clone());
        let body = match answer.bytes(REFUSAL_BYTES_MAX).await {
            Ok(body) => body,
            Err(e) => return self.record_failure(id, &e),
        };
        let problem = serde_json::from_slice::<Problem>(&body);
        let response = respond(status, &headers, Body::from(body.clone()));
        match problem {
            Err(_) if body.is_empty() && BODYLESS_REFUSALS.contains(&status) => {}
            Err(_) => {
                let why = format!("{status}, without a reason");
                return self.record_failure(id, &ClientError::Malformed { addr, why });
            }
            Ok(problem) if problem.code == ErrorCode::Unauthorized => {
                // The client's key was accepted here, so the keys of the servers differ.
                self.state().upstreams.unauthorized(id, self.uptime());
                return AttemptOutcome::Failed { is_free: true };
            }
            Ok(problem) if problem.retryable => {
                self.state().upstreams.refused(id, class, self.uptime(), problem.to_string());
                return AttemptOutcome::Refused(response);
            }
            Ok(_) => {}
        }
        self.state().upstreams.answered(id, class, self.uptime(), None);
        AttemptOutcome::Final(response)
    }

    fn record_failure(&self, id: UpstreamId, e: &ClientError) -> AttemptOutcome {
        self.state().upstreams.failed(id, self.uptime(), e.why());
        AttemptOutcome::Failed { is_free: matches!(e, ClientError::Unreachable { .. }) }
    }

    /// The state that all requests share. Locked for one small step, never over an await.
    pub fn state(&self) -> MutexGuard<'_, ProxyState> {
        // Every change is one small step, so a panic elsewhere leaves a usable state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A response extension: the upstream that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedBy(pub UpstreamId);

/// Counts a request as load of its upstream while it waits for the answer, also if it is canceled. A request whose
/// client asked to wait is no load and has none.
struct InFlight<'a> {
    forwarder: &'a Forwarder,
    upstream: UpstreamId,
    class: TrafficClass,
}

impl<'a> InFlight<'a> {
    fn start(forwarder: &'a Forwarder, upstream: UpstreamId, class: TrafficClass) -> Self {
        forwarder.state().upstreams.request_started(upstream, class);
        Self { forwarder, upstream, class }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.forwarder.state().upstreams.request_ended(self.upstream, self.class);
    }
}

/// Headers that belong to one connection (RFC 9110, 7.6.1), or that the next server sets itself.
const HOP_BY_HOP: [HeaderName; 11] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::HOST,
    header::EXPECT,
    // Each server has keys of its own, and its client sends its own key.
    header::AUTHORIZATION,
    header::WWW_AUTHENTICATE,
];

/// The headers of a request or an answer that are forwarded.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = connection.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase());
    let named: HashSet<String> = named.collect(); // a head of 64 KiB can name thousands
    let passes = |name: &HeaderName| {
        !named.contains(name.as_str()) && !HOP_BY_HOP.contains(name) && name != "keep-alive"
    };
    let forwarded = headers.iter().filter(|(name, _)| passes(name));
    forwarded.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The request for an upstream.
pub fn upstream_request(
    method: Method,
    path: &str,
    query: Option<String>,
    headers: &HeaderMap,
    body: Bytes,
) -> Request {
    let mut headers = end_to_end(headers);
    headers.remove(header::CONTENT_LENGTH); // the client frames the body itself
    let path_and_query = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    Request { method, path_and_query, headers, body }
}

fn respond(status: StatusCode, headers: &HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = end_to_end(headers);
    response
}

#[cfg(test)]
mod tests;
