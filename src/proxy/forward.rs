//! Owns how one request meets the nodes: one after the other, and more than one where that takes too long.
//!
//! A connection that is refused or lost moves on at once; no answer within the hedge wait also asks the next
//! one, and the first success wins. Every attempt carries the same bytes. A refusal that no other node would
//! take back is the answer; any other refusal is kept for the case that nobody does better. Bodies of answers
//! are passed on as they come and never held.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::upstreams::{Candidate, Upstreams};
use crate::{
    api::{
        address::Addr,
        error::{ErrorCode, Problem},
        key::Keys,
        network::UpstreamStatus,
    },
    client::{Answer, Client, ClientError, Request},
};

/// A node's refusal is a few lines; a larger one is not understood.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// What a node's HTTP library says to a head that it does not take, such as one that was just small enough for the
/// proxy: the fault of the request, so it must not count against the node and everybody else who asks it.
const BARE: [StatusCode; 3] =
    [StatusCode::BAD_REQUEST, StatusCode::URI_TOO_LONG, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE];

/// How long a kind of request may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Until a second node is asked too.
    pub(super) second: Duration,
    /// Until every further one is asked too. A constant for now; in time from the measured p95.
    pub(super) hedge: Duration,
    /// Until all nodes together count as not available. Below the 30 s in which a server must begin its answer.
    pub(super) total: Duration,
    /// Whether the time to the answer says how fast the node is. That of a batch or a search does not.
    pub(super) measures: bool,
}

impl Patience {
    /// How long this one, the `count`-th (from 0) to be asked, has before the next one is asked too.
    fn after(self, asked: Candidate, count: usize) -> Duration {
        match count {
            _ if asked.aside => Duration::ZERO, // nobody better is left: ask all of these together
            0 => self.second,
            _ => self.hedge,
        }
    }
}

/// The way to the nodes. Owns the only mutable state of a proxy.
#[derive(Debug)]
pub(super) struct Forwarder {
    client: Client,
    upstreams: Mutex<Upstreams>,
    began: Instant,
}

/// What came of asking one node.
struct Attempt {
    place: usize,
    outcome: Outcome,
}

enum Outcome {
    /// This is the answer.
    Final(Response),
    /// The answer, if no other node has a better one.
    Refused(Response),
    /// No answer.
    Failed,
}

impl Forwarder {
    pub(super) fn new(addrs: Vec<Addr>, keys: Option<&Keys>) -> Self {
        let upstreams = Mutex::new(Upstreams::new(addrs));
        Self { client: Client::new(keys), upstreams, began: Instant::now() }
    }

    pub(super) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn status(&self) -> Vec<UpstreamStatus> {
        self.upstreams().status(self.uptime())
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.upstreams().warnings()
    }

    /// Carries a request to whichever node answers.
    pub(super) async fn forward(&self, request: &Request, patience: Patience) -> Result<Response, Problem> {
        let order = self.upstreams().order(self.uptime());
        let mut waiting = order.iter().enumerate();
        let mut running = FuturesUnordered::new();
        let mut newest = None;
        let mut refusal = None;
        let next = sleep(Duration::ZERO);
        let end = sleep(patience.total);
        tokio::pin!(next, end);
        while !running.is_empty() || waiting.len() > 0 {
            tokio::select! {
                biased;
                Some(Attempt { place, outcome }) = running.next() => {
                    match outcome {
                        Outcome::Final(response) => return Ok(response),
                        Outcome::Refused(response) => refusal = Some(response),
                        Outcome::Failed => {}
                    }
                    newest = newest.filter(|(newest, _)| *newest != place);
                    next.as_mut().reset(Instant::now());
                }
                () = &mut next, if waiting.len() > 0 => {
                    self.note_late(newest);
                    let (count, candidate) = waiting.next().expect("one is waiting");
                    newest = Some((candidate.place, self.uptime()));
                    running.push(self.attempt(candidate.place, request, patience));
                    next.as_mut().reset(Instant::now() + patience.after(*candidate, count));
                }
                () = &mut end => break,
            }
        }
        refusal.ok_or_else(|| {
            let complaints = self.upstreams().complaints();
            let detail = format!("none of {} nodes answers ({complaints})", order.len());
            Problem::new(ErrorCode::NoNodeAvailable, detail)
        })
    }

    fn note_late(&self, newest: Option<(usize, Duration)>) {
        if let Some((place, since)) = newest {
            let now = self.uptime();
            self.upstreams().late(place, now, now.saturating_sub(since));
        }
    }

    async fn attempt(&self, place: usize, request: &Request, patience: Patience) -> Attempt {
        let _in_flight = InFlight::begin(self, place);
        let addr = self.upstreams().addr(place).clone();
        let asked = Instant::now();
        let outcome = match self.client.forward(&addr, request, patience.total).await {
            Ok(answer) if answer.status().is_success() => {
                self.note_answer(place, patience.measures.then(|| asked.elapsed()));
                Outcome::Final(passed_on(answer))
            }
            Ok(answer) => self.judge_refusal(place, answer).await,
            // It cannot be sent to any node, which is no node's fault.
            Err(ClientError::Problem { problem, .. }) => Outcome::Final(problem.into_response()),
            Err(e) => self.note_failure(place, &e),
        };
        Attempt { place, outcome }
    }

    async fn judge_refusal(&self, place: usize, answer: Answer) -> Outcome {
        let (addr, status, headers) = (answer.addr().clone(), answer.status(), answer.headers().clone());
        let body = match answer.bytes(REFUSAL_BYTES_MAX).await {
            Ok(body) => body,
            Err(e) => return self.note_failure(place, &e),
        };
        if body.is_empty() && BARE.contains(&status) {
            self.note_answer(place, None);
            return Outcome::Final(respond(status, &headers, Body::empty()));
        }
        let Ok(problem) = serde_json::from_slice::<Problem>(&body) else {
            let why = format!("{status}, without a reason");
            return self.note_failure(place, &ClientError::Malformed { addr, why });
        };
        if problem.code == ErrorCode::Unauthorized {
            return self.note_locked_out(place); // the client's key was taken here; the mistake is between servers
        }
        let response = respond(status, &headers, Body::from(body));
        if problem.retryable {
            self.upstreams().refused(place, self.uptime(), problem.to_string());
            Outcome::Refused(response)
        } else {
            self.note_answer(place, None);
            Outcome::Final(response)
        }
    }

    fn note_answer(&self, place: usize, took: Option<Duration>) {
        let mut upstreams = self.upstreams();
        if upstreams.answered(place, self.uptime(), took) {
            info!(node = %upstreams.addr(place), "a node answers again");
        }
    }

    fn note_failure(&self, place: usize, e: &ClientError) -> Outcome {
        let mut upstreams = self.upstreams();
        if upstreams.failed(place, self.uptime(), e.why()) {
            warn!(node = %upstreams.addr(place), why = e.why(), "a node does not answer and is asked last until it does");
        }
        Outcome::Failed
    }

    fn note_locked_out(&self, place: usize) -> Outcome {
        let mut upstreams = self.upstreams();
        if upstreams.locked_out(place) {
            warn!(node = %upstreams.addr(place), "a node does not take the key of this proxy and is asked last until it does");
        }
        Outcome::Failed
    }

    /// Asks every node whether it is ready, so that one is known to be back before a request depends on it.
    pub(super) async fn probe(&self, within: Duration) {
        let places: Vec<usize> = self.upstreams().order(self.uptime()).iter().map(|one| one.place).collect();
        let mut probes: FuturesUnordered<_> =
            places.into_iter().map(|place| self.probe_one(place, within)).collect();
        while probes.next().await.is_some() {}
    }

    async fn probe_one(&self, place: usize, within: Duration) {
        let addr = self.upstreams().addr(place).clone();
        let asked = Instant::now();
        match self.client.readyz(&addr, within).await {
            Ok(ready) => {
                self.note_answer(place, Some(asked.elapsed()));
                if !(ready.readable && ready.writable) {
                    let why = "it says that it cannot store just now".to_owned();
                    self.upstreams().refused(place, self.uptime(), why);
                }
            }
            Err(e) if e.locked_out() => {
                self.note_locked_out(place);
            }
            Err(e) => {
                self.note_failure(place, &e);
            }
        }
    }

    fn upstreams(&self) -> MutexGuard<'_, Upstreams> {
        // Every change is one small step: a panic elsewhere leaves nothing half-done.
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request for as long as it waits for its answer, also when it is given up.
struct InFlight<'a> {
    forwarder: &'a Forwarder,
    place: usize,
}

impl<'a> InFlight<'a> {
    fn begin(forwarder: &'a Forwarder, place: usize) -> Self {
        forwarder.upstreams().began(place);
        Self { forwarder, place }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.forwarder.upstreams().ended(self.place);
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
pub(super) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
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
