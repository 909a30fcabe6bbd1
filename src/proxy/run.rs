//! Owns a proxy's life and its paths: which request is passed on, and what may be said without asking a node.
//!
//! Only what must be known to pass a request on safely is looked at here: its kind (for the size of its body)
//! and whether it brings an id. Everything else is for the nodes to judge.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri},
    response::Response,
    routing::{delete, get, post},
};
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Proxy, ProxyError, feed,
    forward::{Forwarder, asking},
    plan::RequestClass,
    prober::watch,
    upstreams::Lane,
};
use crate::{
    api::{
        error::Problem,
        header::{IDEMPOTENCY_KEY, POSITION},
        message::names_id,
        network::{self, ProxyStatus, Readiness},
        path, query,
    },
    config::ProxyConfig,
    serve::{self, BODIES_BYTES_MAX, Budget, SendKind, idempotency_key, json, read_body},
};

/// How long a node waits until it covers the position that a reader brings.
const POSITION_WAIT: Duration = Duration::from_secs(1);
/// What an operator should know of a proxy that others can reach; who binds its listener warns at the start.
const OPEN_WARNING: &str = "listening beyond this machine without a key: whoever reaches this port can read \
                            and write everything";

/// Runs a proxy on this listener until `stop`.
pub async fn run(
    config: ProxyConfig,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), ProxyError> {
    let ProxyConfig { network, listen, nodes, strategy, keys } = config;
    tracing::info!(address = %listen, network, nodes = nodes.len(), %strategy, "serving as a proxy");
    let mut warnings = Vec::new();
    if !listen.is_loopback() && keys.is_none() {
        warnings.push(OPEN_WARNING.to_owned());
    }
    let forwarder = Arc::new(Forwarder::new(nodes, listen, strategy, keys.as_ref()));
    let proxy = Proxy {
        forwarder: forwarder.clone(),
        budget: Budget::new(BODIES_BYTES_MAX),
        warnings: warnings.into(),
        stop: stop.clone(),
    };
    tokio::select! {
        () = serve::serve(listener, routes(proxy), keys, stop) => Ok(()),
        () = watch(&forwarder) => Err(ProxyError::Ended("watching the nodes")),
    }
}

fn routes(proxy: Proxy) -> Router {
    Router::new()
        .route(path::MESSAGES, post(send).get(list))
        .route("/messages/{id}", get(message))
        .route(path::FEED, get(feed::get))
        .route(path::NETWORK, get(whole_network))
        .route(path::NODES, get(nodes))
        .route("/nodes/{id}", delete(forget))
        .route(path::LIVEZ, get(serve::live))
        .route(path::READYZ, get(ready))
        .with_state(proxy)
}

async fn send(
    State(proxy): State<Proxy>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let kind = SendKind::of(&headers)?;
    let key = idempotency_key(&headers)?;
    let body = read_body(body, kind.limit(), &proxy.budget).await?;
    let asked = query.as_deref().map_or(Duration::ZERO, query::acks_wait);
    let mut request = asking(Method::POST, path::MESSAGES, query, &headers, body);
    if key.is_none() && !(kind == SendKind::One && names_id(&request.body)) {
        // So that all attempts, and both sides of a hedge, mean one message.
        let key = HeaderValue::try_from(Uuid::now_v7().to_string()).expect("a UUID is a header value");
        request.headers.insert(IDEMPOTENCY_KEY, key);
    }
    let nature = RequestClass { lane: Lane::Write, is_quick: kind == SendKind::One, asked };
    proxy.forwarder.forward(&request, nature).await
}

async fn list(
    State(proxy): State<Proxy>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let request = asking(Method::GET, path::MESSAGES, query, &headers, Bytes::new());
    proxy.forwarder.forward(&request, reading(false, &headers)).await
}

async fn message(
    State(proxy): State<Proxy>,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // Checked here because a URL is tidied on its way: "/messages/.." would become another path.
    let path = format!("{}{}", path::MESSAGES_PREFIX, query::path_id(uri.path())?);
    let request = asking(Method::GET, &path, query, &headers, Bytes::new());
    proxy.forwarder.forward(&request, reading(true, &headers)).await
}

async fn whole_network(
    State(proxy): State<Proxy>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let request = asking(Method::GET, path::NETWORK, query, &headers, Bytes::new());
    proxy.forwarder.forward(&request, reading(false, &headers)).await
}

async fn forget(
    State(proxy): State<Proxy>,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let path = format!("{}{}", path::NODES_PREFIX, query::path_node(uri.path())?);
    let request = asking(Method::DELETE, &path, query, &headers, Bytes::new());
    let nature = RequestClass { lane: Lane::Write, is_quick: true, asked: Duration::ZERO };
    proxy.forwarder.forward(&request, nature).await
}

async fn nodes(State(proxy): State<Proxy>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(query.as_deref())?;
    let status = ProxyStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: network::NodeState::Up,
        uptime_seconds: proxy.forwarder.uptime().as_secs(),
        warnings: [proxy.warnings.to_vec(), proxy.forwarder.warnings()].concat(),
        upstreams: proxy.forwarder.status(),
    };
    Ok(json(StatusCode::OK, serde_json::to_vec(&status).expect("a status serialises")))
}

/// A proxy is ready when it serves: what it can do without nodes is to say so, and to find them again.
async fn ready(RawQuery(query): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(query.as_deref())?;
    let ready = Readiness { readable: true, writable: true };
    Ok(json(StatusCode::OK, serde_json::to_vec(&ready).expect("booleans serialise")))
}

/// Of a listing, or of one message, which is quick. A position is a wait that the reader asked for.
fn reading(is_quick: bool, headers: &HeaderMap) -> RequestClass {
    let asked = if headers.contains_key(POSITION) { POSITION_WAIT } else { Duration::ZERO };
    RequestClass { lane: Lane::Read, is_quick, asked }
}

#[cfg(test)]
mod tests;
