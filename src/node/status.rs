//! Owns what a node says of itself: `GET /nodes` and `GET /readyz`.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::Node;
use crate::api::error::Problem;
use crate::api::network::{self, NodeStatus, Ready};
use crate::api::query;
use crate::serve;

/// `GET /nodes`.
pub async fn nodes(State(node): State<Node>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(raw.as_deref())?;
    let json = serde_json::to_vec(&status(&node)).expect("numbers and strings serialise");
    Ok(serve::json(StatusCode::OK, json))
}

/// This node's word on itself.
pub fn status(node: &Node) -> NodeStatus {
    let logs = node.logs();
    let counts = node.store().counts();
    NodeStatus {
        node_id: node.config().node_id,
        address: node.config().advertise.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: network::State::Up,
        uptime_seconds: node.started.elapsed().as_secs(),
        messages: counts.messages,
        digest: logs.vector().digest().to_string(),
        origins: logs.vector().origins() as u64,
        conflicts: counts.conflicts,
        damaged: 0,
        unreadable: counts.unreadable,
        warnings: warnings(node),
        peers: Vec::new(),
    }
}

fn warnings(node: &Node) -> Vec<String> {
    let mut warnings = Vec::new();
    let listen = &node.config().listen;
    if !listen.is_loopback() {
        warnings.push(format!(
            "node {} listens on {listen}, beyond this machine, and there is no authentication yet: whoever \
             reaches it can read and write everything",
            node.config().node_id
        ));
    }
    if !node.writer().is_writable() {
        warnings.push(format!("node {} cannot write to its disk", node.config().node_id));
    }
    warnings
}

/// `GET /readyz`: whether it can store and read here.
pub async fn ready(State(node): State<Node>) -> Response {
    let ready = Ready { readable: true, writable: node.writer().is_writable() };
    let status = if ready.writable { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    serve::json(status, serde_json::to_vec(&ready).expect("booleans serialise"))
}
