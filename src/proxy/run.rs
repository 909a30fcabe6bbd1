//! Owns the lifetime of a proxy and its routes: which requests are forwarded, and which ones the proxy answers itself.
//!
//! Before it: `serve`. After it: `forward`, or `feed`. Reads of a request only what safe forwarding needs: its kind
//! (which bounds its body) and whether it has an id. Nodes judge the rest.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::Response;
use axum::routing::{delete, get, post};
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::forward::{Forwarder, upstream_request};
use super::plan::RequestClass;
use super::upstreams::TrafficClass;
use super::{Proxy, feed, prober};
use crate::api::error::Problem;
use crate::api::header::{IDEMPOTENCY_KEY, POSITION};
use crate::api::message::names_id;
use crate::api::network::{self, ProxyStatus, Readiness};
use crate::api::{path, query};
use crate::config::ProxyConfig;
use crate::serve::{self, BODIES_BYTES_MAX, Budget, SendKind, idempotency_key, json, read_body};

/// How long a node waits until it covers the position of a reader.
const POSITION_WAIT: Duration = Duration::from_secs(1);
/// The warning of a proxy without a key that other machines can reach. The command warns at the start as well.
const OPEN_WARNING: &str = "listening beyond this machine without a key: anyone who reaches this port can read \
                            and write everything";

/// Runs a proxy on this listener until `stop`. It cannot fail.
pub async fn run(
    config: ProxyConfig,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let ProxyConfig { network, listen, nodes, strategy, keys } = config;
    tracing::info!(address = %listen, network, nodes = nodes.len(), %strategy, "serving as a proxy");
    let open_warning = (!listen.is_loopback() && keys.is_none()).then_some(OPEN_WARNING);
    let forwarder = Arc::new(Forwarder::new(nodes, listen, strategy, keys.as_ref()));
    let budget = Budget::new(BODIES_BYTES_MAX);
    let proxy = Proxy { forwarder: forwarder.clone(), budget, open_warning, stop: stop.clone() };
    tokio::select! {
        // One descriptor for the client, one for its node.
        () = serve::serve(listener, routes(proxy), keys, 2, stop) => Ok(()),
        never = prober::run(&forwarder) => match never {},
    }
}

fn routes(proxy: Proxy) -> Router {
    Router::new()
        .route(path::MESSAGES, post(send).get(read))
        .route(path::MESSAGE, get(read))
        .route(path::FEED, get(feed::get))
        .route(path::NETWORK, get(read))
        .route(path::NODES, get(nodes))
        .route(path::NODE, delete(forget))
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
    let client_wait = query.as_deref().map_or(Duration::ZERO, query::acks_wait);
    let mut request = upstream_request(Method::POST, path::MESSAGES, query, &headers, body);
    if key.is_none() && !(kind == SendKind::One && names_id(&request.body)) {
        // All attempts, hedges included, must store one message.
        let key = HeaderValue::try_from(Uuid::now_v7().to_string()).expect("a UUID is a header value");
        request.headers.insert(IDEMPOTENCY_KEY, key);
    }
    let class = RequestClass { traffic: TrafficClass::Write, is_quick: kind == SendKind::One, client_wait };
    proxy.forwarder.forward(&request, class).await
}

async fn read(
    State(proxy): State<Proxy>,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let is_message = uri.path().starts_with(path::MESSAGES_PREFIX);
    let path = if is_message {
        // Parsed here because the HTTP client normalizes a URL: "/messages/.." would become another path.
        &format!("{}{}", path::MESSAGES_PREFIX, query::path_id(uri.path())?)
    } else {
        uri.path()
    };
    let request = upstream_request(Method::GET, path, query, &headers, Bytes::new());
    // With a position, the client asks the node to wait for the entries that the position covers.
    let client_wait = if headers.contains_key(POSITION) { POSITION_WAIT } else { Duration::ZERO };
    let class = RequestClass { traffic: TrafficClass::Read, is_quick: is_message, client_wait };
    proxy.forwarder.forward(&request, class).await
}

async fn forget(
    State(proxy): State<Proxy>,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let path = format!("{}{}", path::NODES_PREFIX, query::path_node(uri.path())?);
    let request = upstream_request(Method::DELETE, &path, query, &headers, Bytes::new());
    let class = RequestClass { traffic: TrafficClass::Write, is_quick: true, client_wait: Duration::ZERO };
    proxy.forwarder.forward(&request, class).await
}

async fn nodes(State(proxy): State<Proxy>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(query.as_deref())?;
    let now = proxy.forwarder.uptime();
    let upstreams = &proxy.forwarder.state().upstreams;
    let status = ProxyStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: network::NodeState::Up,
        uptime_seconds: now.as_secs(),
        warnings: proxy.open_warning.map(str::to_owned).into_iter().chain(upstreams.warnings()).collect(),
        upstreams: upstreams.status(now),
    };
    Ok(json(StatusCode::OK, &status))
}

/// A proxy that serves is ready, also without nodes: it answers `no_node_available` and keeps looking for them.
async fn ready(RawQuery(query): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(query.as_deref())?;
    Ok(json(StatusCode::OK, &Readiness::ready()))
}

#[cfg(test)]
mod tests;
