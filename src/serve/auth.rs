//! Owns authentication: which requests carry a key, and which connections are dropped for others that may.
//!
//! Before it: the accept loop. After it: `request`. A request is judged by its head alone, before a route is looked up,
//! so a client without a key learns neither which paths exist nor what they take. Must not know what a path does.
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

use crate::api::key::Keys;
use crate::api::path;

/// The keys that are accepted, and the connections on which none was shown yet. Clones share both.
#[derive(Clone)]
pub struct Auth {
    /// `None`: every request is accepted, and no connection counts as unauthenticated.
    keys: Option<Keys>,
    unauthenticated: Arc<Mutex<UnauthenticatedConnections>>,
    unauthenticated_max: usize,
}

#[derive(Default)]
struct UnauthenticatedConnections {
    last_number: u64,
    /// By number, so in the order of their arrival.
    by_number: BTreeMap<u64, CancellationToken>,
}

/// What a request may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything: the request carries a key, or the server has none.
    Authenticated,
    /// The path needs no key, and the request carries none.
    PublicPath,
    /// Nothing.
    Unauthenticated,
}

impl Auth {
    pub fn new(keys: Option<Keys>, unauthenticated_max: usize) -> Self {
        Self { keys, unauthenticated: Arc::default(), unauthenticated_max }
    }

    /// Counts a new connection as unauthenticated. At the bound the oldest one is dropped: a client with a key shows it
    /// at once, so the oldest is the least likely to.
    pub fn connection(&self) -> ConnectionAuth {
        let dropped = CancellationToken::new();
        let mut unauthenticated = self.unauthenticated();
        unauthenticated.last_number += 1;
        let number = unauthenticated.last_number;
        if self.keys.is_some() {
            if unauthenticated.by_number.len() >= self.unauthenticated_max
                && let Some((_, oldest)) = unauthenticated.by_number.pop_first()
            {
                oldest.cancel();
            }
            unauthenticated.by_number.insert(number, dropped.clone());
        }
        ConnectionAuth { auth: self.clone(), number, dropped }
    }

    fn unauthenticated(&self) -> MutexGuard<'_, UnauthenticatedConnections> {
        self.unauthenticated.lock().unwrap_or_else(PoisonError::into_inner) // no code under the lock panics
    }
}

/// One connection. It counts as unauthenticated until a key is shown on it or this is dropped.
pub struct ConnectionAuth {
    auth: Auth,
    number: u64,
    dropped: CancellationToken,
}

impl ConnectionAuth {
    /// Judges a request by its head, and removes its body unless it is authenticated.
    pub fn admit(&self, request: Request<Incoming>) -> (Access, Request<Option<Incoming>>) {
        let keys = self.auth.keys.as_ref();
        if keys.is_none_or(|keys| keys.accepts(authorization(request.headers()))) {
            self.auth.unauthenticated().by_number.remove(&self.number);
            return (Access::Authenticated, request.map(Some));
        }
        let needs_key = path::needs_key(request.uri().path());
        let access = if needs_key { Access::Unauthenticated } else { Access::PublicPath };
        (access, request.map(|_| None))
    }

    /// Returns when the connection must end because of a newer one.
    pub async fn must_end(&self) {
        self.dropped.cancelled().await;
    }
}

impl Drop for ConnectionAuth {
    fn drop(&mut self) {
        self.auth.unauthenticated().by_number.remove(&self.number);
    }
}

/// The header, if there is exactly one: another server might pick the other one of two.
fn authorization(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
}

/// Makes this the last answer of its connection, and says that a key is needed (RFC 9110, 11.6.1, which allows that in
/// answers other than 401). By this header a proxy notices in a probe that a node does not accept the proxy's key.
pub fn mark_unauthenticated(response: &mut Response) {
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}
