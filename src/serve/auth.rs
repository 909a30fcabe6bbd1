//! Owns authentication: which requests carry a key, and which connections are dropped for others that may.
//!
//! Before it: the accept loop. After it: `request`. A request is judged by its head alone, before a route is looked up, so
//! a client without a key learns neither which paths exist nor what they take. Must not know what a path does.
//!
//! Invariants: without keys every request is accepted; the body of a request without a key is not read; a connection
//! serves at most one request without a key; connections without a key never keep out a client with a key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use crate::api::path;
use crate::api::error::{ErrorCode, Problem};
use crate::api::key::{self, Keys};

/// The keys that are accepted. None: every request is.
#[derive(Debug, Clone)]
pub(super) struct Auth(Option<Keys>);

/// What a request may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everything: the request carries a key, or the server has none.
    Authenticated,
    /// The path needs no key, and the request carries none.
    PublicPath,
    /// Nothing.
    Unauthenticated,
}

impl Auth {
    pub(super) fn new(keys: Option<Keys>) -> Self {
        Self(keys)
    }

    /// Whether the server has no keys, and accepts every request.
    pub(super) fn is_open(&self) -> bool {
        self.0.is_none()
    }

    /// Judges a request by its head, and removes its body unless it is authenticated.
    pub(super) fn admit(&self, request: Request<Incoming>) -> (Access, Request<Option<Incoming>>) {
        let access = if self.0.as_ref().is_none_or(|keys| keys.accepts(authorization(request.headers()))) {
            Access::Authenticated
        } else if path::needs_key(request.uri().path()) {
            Access::Unauthenticated
        } else {
            Access::PublicPath
        };
        (access, request.map(|body| Some(body).filter(|_| access == Access::Authenticated)))
    }
}

/// The header, if there is exactly one: another server might pick the other one of two.
fn authorization(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
}

/// The answer to every request without access.
pub(super) fn refusal() -> Problem {
    Problem::new(ErrorCode::Unauthorized, key::REFUSAL)
}

/// Makes this the last answer of its connection, and says that a key is needed (RFC 9110, 11.6.1, which allows that in
/// answers other than 401). By this header a proxy notices in a probe that a node does not accept the proxy's key.
pub(super) fn mark_unauthenticated(response: &mut Response) {
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// The connections on which no key was shown yet. All clones are the same set.
///
/// At the bound the oldest one is dropped: a client with a key shows it at once, so the oldest is the least likely to.
#[derive(Debug, Clone)]
pub(super) struct UnauthenticatedConnections {
    open: Arc<Mutex<OpenConnections>>,
    count_max: usize,
}

#[derive(Debug, Default)]
struct OpenConnections {
    last_number: u64,
    /// By number, so in the order of their arrival.
    by_number: BTreeMap<u64, CancellationToken>,
}

impl UnauthenticatedConnections {
    pub(super) fn new(count_max: usize) -> Self {
        Self { open: Arc::default(), count_max }
    }

    /// Adds a connection. `is_open`: the server has no keys, so the connection does not count.
    pub(super) fn add(&self, is_open: bool) -> UnauthenticatedConnection {
        let dropped = CancellationToken::new();
        let mut open = self.lock();
        open.last_number += 1;
        let number = open.last_number;
        if !is_open {
            if open.by_number.len() >= self.count_max
                && let Some((_, oldest)) = open.by_number.pop_first()
            {
                oldest.cancel();
            }
            open.by_number.insert(number, dropped.clone());
        }
        UnauthenticatedConnection { set: self.clone(), number, dropped }
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner) // no code under the lock panics
    }
}

/// One connection of the set, until a key is shown on it or this is dropped.
#[derive(Debug)]
pub(super) struct UnauthenticatedConnection {
    set: UnauthenticatedConnections,
    number: u64,
    dropped: CancellationToken,
}

impl UnauthenticatedConnection {
    /// A key was shown: the connection leaves the set.
    pub(super) fn authenticated(&self) {
        self.set.lock().by_number.remove(&self.number);
    }

    /// Returns when the connection must end because of a newer one.
    pub(super) async fn must_end(&self) {
        self.dropped.cancelled().await;
    }
}

impl Drop for UnauthenticatedConnection {
    fn drop(&mut self) {
        self.authenticated(); // a connection that ended takes no place either
    }
}
