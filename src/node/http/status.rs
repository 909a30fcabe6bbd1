//! Owns `GET /nodes`, `GET /network` and `GET /readyz` at a node; what they say is decided in `node::status`.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;

use crate::api::error::Problem;
use crate::api::network::{NodeState, NodeStatus, Readiness};
use crate::api::query;
use crate::node::slot::{self, NodeSlot, SlotState};
use crate::node::{Node, status};
use crate::serve;

/// `GET /nodes`: this node's own status. While its store is closed: the last one, suspect, and why it is closed.
pub async fn nodes(State(slot): State<NodeSlot>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(raw.as_deref())?;
    let status = match slot.state() {
        SlotState::Open(node) => status::status(&node),
        SlotState::Starting => return Err(slot::starting()),
        SlotState::Closed(why, mut last) => {
            let (state, node_id) = (NodeState::Suspect, last.node_id);
            last.warnings.retain(|warning| !warning.starts_with(&format!("node {node_id} cannot write")));
            last.warnings
                .insert(0, format!("node {node_id} has closed its store, and tries to open it again: {why}"));
            NodeStatus { state, ..*last }
        }
    };
    Ok(serve::json(StatusCode::OK, &status))
}

/// `GET /network`: all nodes, each by its own status if it answers.
pub async fn network(node: Node, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(raw.as_deref())?;
    Ok(serve::json(StatusCode::OK, &*node.cluster.surveys.network(&node).await))
}

/// `GET /readyz`: 200 if messages can be stored here, else 503.
pub async fn ready(State(slot): State<NodeSlot>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(raw.as_deref())?;
    let ready = match slot.state() {
        SlotState::Open(node) => match node.writer.fault.reason() {
            None => Readiness::ready(),
            Some(why) => Readiness { readable: true, writable: false, reasons: vec![why] },
        },
        SlotState::Starting => {
            Readiness { readable: false, writable: false, reasons: vec![slot::starting_reason()] }
        }
        SlotState::Closed(why, _) => Readiness { readable: false, writable: false, reasons: vec![why] },
    };
    let status = if ready.writable { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok(serve::json(status, &ready))
}
