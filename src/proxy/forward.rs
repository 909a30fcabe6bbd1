//! Owns how one request meets the nodes: it carries out the steps of its course, and tells what came of each.
//!
//! Every attempt carries the same bytes, and the first success wins. A refusal that no other node would take back is
//! the answer; any other refusal is kept for the case that nobody does better. Bodies of answers are passed on as
//! they come and never held. Whom to ask, and when, is for `course` and `upstreams` to say.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{
    plan::{NextStep, ProxyState, RequestClass, RequestPlan},
    upstreams::{Lane, Upstreams},
};
use crate::{
    api::{
        address::Addr,
        error::{ErrorCode, Problem},
        key::Keys,
        network::UpstreamStatus,
    },
    client::{Answer, Client, ClientError, Request},
    config::Strategy,
};

/// A node's refusal is a few lines; a larger one is not understood.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// An attempt ends when its request does. This only bounds it in the client, above everything that a request may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(30);

/// What a node's HTTP library says to a head that it does not take, such as one that was just small enough for the
/// proxy: the fault of the request, so it must not count against the node and everybody else who asks it.
const BARE: [StatusCode; 3] =
    [StatusCode::BAD_REQUEST, StatusCode::URI_TOO_LONG, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE];

/// The way to the nodes. Owns the only mutable state of a proxy.
#[derive(Debug)]
pub(super) struct Forwarder {
    pub(super) client: Client,
    strategy: Strategy,
    outlook: Mutex<ProxyState>,
    began: Instant,
}

/// What came of asking one node.
struct Attempt {
    ticket: usize,
    outcome: AttemptOutcome,
}

enum AttemptOutcome {
    /// This is the answer.
    Final(Response),
    /// The answer, if no other node has a better one.
    Refused(Response),
    /// No answer. Free: there was no connection, so it cost the node nothing.
    Failed { free: bool },
}

impl Forwarder {
    /// `own`: where the proxy itself is found.
    pub(super) fn new(addrs: Vec<Addr>, own: Addr, strategy: Strategy, keys: Option<&Keys>) -> Self {
        let outlook = Mutex::new(ProxyState::new(Upstreams::new(addrs, own)));
        Self { client: Client::new(keys), strategy, outlook, began: Instant::now() }
    }

    pub(super) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn status(&self) -> Vec<UpstreamStatus> {
        self.outlook().upstreams.status(self.uptime())
    }

    /// What an operator should mend.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.outlook().upstreams.warnings()
    }

    /// Whether a node is not expected to answer, or not soon.
    pub(super) fn is_aside(&self, place: usize) -> bool {
        self.outlook().upstreams.is_aside(place, Lane::Read)
    }

    /// Whether another node that is expected to answer has more.
    pub(super) fn is_behind(&self, place: usize) -> bool {
        self.outlook().upstreams.is_behind(place)
    }

    /// Carries a request to whichever node answers.
    pub(super) async fn forward(&self, request: &Request, nature: RequestClass) -> Result<Response, Problem> {
        let mut course = RequestPlan::new(nature, self.strategy, &mut self.outlook(), self.uptime());
        let mut running = FuturesUnordered::new();
        let mut refusal = None;
        loop {
            let step = course.step(&mut self.outlook(), self.uptime());
            let until = match step {
                NextStep::Ask { ticket, place, addr } => {
                    running.push(self.attempt(ticket, place, addr, request, nature));
                    continue;
                }
                NextStep::Wait(until) => until,
                NextStep::Over => break,
            };
            tokio::select! {
                biased;
                Some(Attempt { ticket, outcome }) = running.next() => match outcome {
                    AttemptOutcome::Final(response) => {
                        course.won(ticket, &mut self.outlook(), self.uptime());
                        return Ok(response);
                    }
                    AttemptOutcome::Refused(response) => {
                        refusal = Some(response);
                        course.failed(ticket, false);
                    }
                    AttemptOutcome::Failed { free } => course.failed(ticket, free),
                },
                () = sleep_until(self.began + until) => {}
            }
        }
        refusal.ok_or_else(|| {
            let outlook = self.outlook();
            let (count, complaints) = (outlook.upstreams.count(), outlook.upstreams.complaints());
            let detail = format!("none of {count} nodes answers ({complaints})");
            Problem::new(ErrorCode::NoNodeAvailable, detail)
        })
    }

    async fn attempt(
        &self,
        ticket: usize,
        place: usize,
        addr: Addr,
        request: &Request,
        nature: RequestClass,
    ) -> Attempt {
        let _in_flight = InFlight::begin(self, place, nature);
        let asked = Instant::now();
        let outcome = match self.client.forward(&addr, request, ATTEMPT_MAX).await {
            Ok(answer) if answer.status().is_success() => {
                self.note_answer(place, nature.lane, nature.measures().then(|| asked.elapsed()));
                let mut response = passed_on(answer);
                response.extensions_mut().insert(ServedBy(place));
                AttemptOutcome::Final(response)
            }
            Ok(answer) => self.judge_refusal(place, nature.lane, answer).await,
            // It cannot be sent to any node, which is no node's fault.
            Err(ClientError::Problem { problem, .. }) => AttemptOutcome::Final(problem.into_response()),
            Err(e) => self.note_failure(place, &e),
        };
        Attempt { ticket, outcome }
    }

    async fn judge_refusal(&self, place: usize, lane: Lane, answer: Answer) -> AttemptOutcome {
        let (addr, status, headers) = (answer.addr().clone(), answer.status(), answer.headers().clone());
        let body = match answer.bytes(REFUSAL_BYTES_MAX).await {
            Ok(body) => body,
            Err(e) => return self.note_failure(place, &e),
        };
        if body.is_empty() && BARE.contains(&status) {
            self.note_answer(place, lane, None);
            return AttemptOutcome::Final(respond(status, &headers, Body::empty()));
        }
        let Ok(problem) = serde_json::from_slice::<Problem>(&body) else {
            let why = format!("{status}, without a reason");
            return self.note_failure(place, &ClientError::Malformed { addr, why });
        };
        if problem.code == ErrorCode::Unauthorized {
            // The client's key was taken here; the mistake is between servers.
            self.outlook().upstreams.locked_out(place, self.uptime());
            return AttemptOutcome::Failed { free: true };
        }
        let response = respond(status, &headers, Body::from(body));
        if problem.retryable {
            self.outlook().upstreams.refused(place, lane, self.uptime(), problem.to_string());
            AttemptOutcome::Refused(response)
        } else {
            self.note_answer(place, lane, None);
            AttemptOutcome::Final(response)
        }
    }

    fn note_answer(&self, place: usize, lane: Lane, took: Option<Duration>) {
        self.outlook().answered(place, lane, self.uptime(), took);
    }

    fn note_failure(&self, place: usize, e: &ClientError) -> AttemptOutcome {
        self.outlook().upstreams.failed(place, self.uptime(), e.why());
        AttemptOutcome::Failed { free: matches!(e, ClientError::Unreachable { .. }) }
    }

    /// What all requests know together. Held for one small step, never over an await.
    pub(super) fn outlook(&self) -> MutexGuard<'_, ProxyState> {
        // Every change is one small step: a panic elsewhere leaves nothing half-done.
        self.outlook.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which node an answer comes from, beside the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ServedBy(pub(super) usize);

/// Counts a request for as long as it waits for its answer, also when it is given up. Waiting that its client asked for
/// is no load, and does not count.
struct InFlight<'a> {
    forwarder: &'a Forwarder,
    place: usize,
    lane: Option<Lane>,
}

impl<'a> InFlight<'a> {
    fn begin(forwarder: &'a Forwarder, place: usize, nature: RequestClass) -> Self {
        let lane = nature.asked.is_zero().then_some(nature.lane);
        if let Some(lane) = lane {
            forwarder.outlook().upstreams.began(place, lane);
        }
        Self { forwarder, place, lane }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(lane) = self.lane {
            self.forwarder.outlook().upstreams.ended(self.place, lane);
        }
    }
}

/// Headers that belong to one connection (RFC 9110, 7.6.1), or that the next hop makes itself.
const OF_THE_CONNECTION: [HeaderName; 11] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::HOST,
    header::EXPECT,
    // Each server has a lock of its own, and who asks it shows their own key.
    header::AUTHORIZATION,
    header::WWW_AUTHENTICATE,
];

/// What is passed on of a request's or an answer's headers.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let passes = |name: &HeaderName| {
        !OF_THE_CONNECTION.contains(name)
            && name != "keep-alive"
            && !named.iter().any(|other| name == other.as_str())
    };
    headers
        .iter()
        .filter(|(name, _)| passes(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// A request as it is passed on.
pub(super) fn asking(
    method: Method,
    path: &str,
    query: Option<String>,
    headers: &HeaderMap,
    body: Bytes,
) -> Request {
    let mut headers = end_to_end(headers);
    headers.remove(header::CONTENT_LENGTH); // of the body as it was framed; the client frames it anew
    let path_and_query = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    Request { method, path_and_query, headers, body }
}

fn passed_on(answer: Answer) -> Response {
    let (status, headers) = (answer.status(), answer.headers().clone());
    respond(status, &headers, Body::from_stream(answer.into_stream()))
}

fn respond(status: StatusCode, headers: &HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = end_to_end(headers);
    response
}

#[cfg(test)]
mod tests;
