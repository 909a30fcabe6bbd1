//! Owns who may come in: everybody where there are no keys, else who shows one.
//!
//! It is asked before anything else, so that a stranger learns neither which paths there are nor what they take, and it
//! takes the body away from strangers before the HTTP library reads more of it than came with the head. A stranger gets
//! one answer per connection, always the same. Two paths are open, for whatever watches processes has no key.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use hyper::body::Incoming;

use crate::api::{
    error::{ErrorCode, Problem},
    key::{self, Keys},
    path,
};

/// What strangers may ask.
const OPEN: [&str; 2] = [path::LIVEZ, path::READYZ];

/// The keys that open, if there is a lock at all.
#[derive(Debug, Clone)]
pub(super) struct Auth(Option<Keys>);

/// What whoever asks may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everything: they have shown a key, or there is no lock.
    Authenticated,
    /// What they ask is open to everybody, but they have shown no key.
    PublicPath,
    /// Nothing.
    Unauthenticated,
}

impl Auth {
    pub(super) fn new(keys: Option<Keys>) -> Self {
        Self(keys)
    }

    /// Whether there are strangers at all.
    pub(super) fn is_open(&self) -> bool {
        self.0.is_none()
    }

    /// Judges a request by its head alone, and takes its body away unless they are known.
    pub(super) fn admit(&self, request: Request<Incoming>) -> (Access, Request<Option<Incoming>>) {
        let standing = if self.0.as_ref().is_none_or(|keys| keys.accepts(authorization(request.headers()))) {
            Access::Authenticated
        } else if OPEN.contains(&request.uri().path()) {
            Access::PublicPath
        } else {
            Access::Unauthenticated
        };
        (standing, request.map(|body| Some(body).filter(|_| standing == Access::Authenticated)))
    }
}

/// The header, if there is exactly one: of two that differ, others might believe the other one.
fn authorization(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
}

/// What a stranger is told.
pub(super) fn refusal() -> Problem {
    Problem::new(ErrorCode::Unauthorized, key::REFUSAL)
}

/// Ends the connection with this answer, and says that a key would help (RFC 9110, 11.6.1: also in other answers than a
/// 401). By that a proxy notices, before a request depends on it, that a node does not take its key.
pub(super) fn dismiss(response: &mut Response) {
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}
