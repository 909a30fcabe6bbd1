//! Owns a proxy's life and its paths: which request is passed on, and what may be said without asking a node.
//!
//! Only what must be known to pass a request on safely is looked at here: its kind (for the size of its body)
//! and whether it brings an id. Everything else is for the nodes to judge.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::Response,
    routing::{delete, get, post},
};
use bytes::Bytes;
use tokio::{
    net::TcpListener,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Error,
    forward::{Forwarder, Patience, end_to_end},
};
use crate::{
    api::{
        error::Problem,
        header::IDEMPOTENCY_KEY,
        message::names_id,
        network::{self, ProxyStatus, Ready},
        path, query,
    },
    client::Request,
    config::{ProxyConfig, Strategy},
    serve::{self, BODIES_BYTES_MAX, Budget, SendKind, idempotency_key, json, read_body},
};

/// A single send or a lookup is a matter of milliseconds; a node that is silent for so long may be gone.
const HEDGE_QUICK: Duration = Duration::from_millis(300);
/// A search may take 2 s, a batch a few fsyncs; another node would not be faster.
const HEDGE_LONG: Duration = Duration::from_secs(3);
/// With the strategy `failover` nobody is hedged, but a node that is silent for so long has failed.
const FAILOVER_AFTER: Duration = Duration::from_secs(5);
/// If no node answers a single send or a lookup for so long, none is available.
const TOTAL_QUICK: Duration = Duration::from_secs(10);
/// The same for a listing or a batch. Less than the 30 s within which a server must begin its answer.
const TOTAL_LONG: Duration = Duration::from_secs(25);
/// How often every node is asked whether it is ready: so late is a returning node noticed without requests.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A node that is silent for so long does not answer.
const PROBE_MAX: Duration = Duration::from_secs(1);
/// What an operator should know of a proxy that others can reach; who binds its listener warns at the start.
const OPEN_WARNING: &str = "listening beyond this machine without a key: whoever reaches this port can read \
                            and write everything";

/// What handlers need.
#[derive(Clone)]
struct Proxy {
    forwarder: Arc<Forwarder>,
    quick: Patience,
    long: Patience,
    budget: Budget,
    warnings: Arc<[String]>,
}

/// Runs a proxy on this listener until `stop`.
pub async fn run(config: ProxyConfig, listener: TcpListener, stop: CancellationToken) -> Result<(), Error> {
    let ProxyConfig { network, listen, nodes, strategy, keys } = config;
    tracing::info!(address = %listen, network, nodes = nodes.len(), %strategy, "serving as a proxy");
    let mut warnings = Vec::new();
    if !listen.is_loopback() && keys.is_none() {
        warnings.push(OPEN_WARNING.to_owned());
    }
    let forwarder = Arc::new(Forwarder::new(nodes, keys.as_ref()));
    let proxy = Proxy {
        forwarder: forwarder.clone(),
        quick: patience(strategy, HEDGE_QUICK, TOTAL_QUICK, true),
        long: patience(strategy, HEDGE_LONG, TOTAL_LONG, false),
        budget: Budget::new(BODIES_BYTES_MAX),
        warnings: warnings.into(),
    };
    tokio::select! {
        () = serve::serve(listener, routes(proxy), keys, stop) => Ok(()),
        () = keep_probing(&forwarder) => Err(Error::Ended("probing the nodes")),
    }
}

fn patience(strategy: Strategy, hedge: Duration, total: Duration, measures: bool) -> Patience {
    let (second, hedge) = match strategy {
        Strategy::Failover => (FAILOVER_AFTER, FAILOVER_AFTER),
        Strategy::Hedge => (hedge, hedge),
        Strategy::Race => (Duration::ZERO, hedge),
    };
    Patience { second, hedge, total, measures }
}

async fn keep_probing(forwarder: &Forwarder) {
    let mut tick = interval(PROBE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        forwarder.probe(PROBE_MAX).await;
    }
}

fn routes(proxy: Proxy) -> Router {
    Router::new()
        .route(path::MESSAGES, post(send).get(list))
        .route("/messages/{id}", get(message))
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
    let mut request = asking(Method::POST, path::MESSAGES, query, &headers, body);
    if key.is_none() && !(kind == SendKind::One && names_id(&request.body)) {
        // So that all attempts, and both sides of a hedge, mean one message.
        let key = HeaderValue::try_from(Uuid::now_v7().to_string()).expect("a UUID is a header value");
        request.headers.insert(IDEMPOTENCY_KEY, key);
    }
    let patience = match kind {
        SendKind::One => proxy.quick,
        SendKind::Batch => proxy.long,
    };
    proxy.forwarder.forward(&request, patience).await
}

async fn list(
    State(proxy): State<Proxy>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let request = asking(Method::GET, path::MESSAGES, query, &headers, Bytes::new());
    proxy.forwarder.forward(&request, proxy.long).await
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
    proxy.forwarder.forward(&request, proxy.quick).await
}

async fn whole_network(
    State(proxy): State<Proxy>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let request = asking(Method::GET, path::NETWORK, query, &headers, Bytes::new());
    proxy.forwarder.forward(&request, proxy.long).await
}

async fn forget(
    State(proxy): State<Proxy>,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let path = format!("{}{}", path::NODES_PREFIX, query::path_node(uri.path())?);
    let request = asking(Method::DELETE, &path, query, &headers, Bytes::new());
    proxy.forwarder.forward(&request, proxy.quick).await
}

async fn nodes(State(proxy): State<Proxy>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(query.as_deref())?;
    let status = ProxyStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: network::State::Up,
        uptime_seconds: proxy.forwarder.uptime().as_secs(),
        warnings: [proxy.warnings.to_vec(), proxy.forwarder.warnings()].concat(),
        upstreams: proxy.forwarder.status(),
    };
    Ok(json(StatusCode::OK, serde_json::to_vec(&status).expect("a status serialises")))
}

/// A proxy is ready when it serves: what it can do without nodes is to say so, and to find them again.
async fn ready(RawQuery(query): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(query.as_deref())?;
    let ready = Ready { readable: true, writable: true };
    Ok(json(StatusCode::OK, serde_json::to_vec(&ready).expect("booleans serialise")))
}

fn asking(method: Method, path: &str, query: Option<String>, headers: &HeaderMap, body: Bytes) -> Request {
    let mut headers = end_to_end(headers);
    headers.remove(header::CONTENT_LENGTH); // of the body as it was framed; the client frames it anew
    let path_and_query = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    Request { method, path_and_query, headers, body }
}

#[cfg(test)]
mod tests;
