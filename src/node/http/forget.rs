//! Owns `DELETE /nodes/{id}` at a node: an operator removes a node that is gone for good from the members.

use axum::extract::RawQuery;
use axum::http::{StatusCode, Uri};
use axum::response::Response;

use crate::api::error::{ErrorCode, Problem};
use crate::api::network::ForgetAnswer;
use crate::api::query;
use crate::node::Node;
use crate::node::cluster::roster::ForgetOutcome;
use crate::serve;

/// `DELETE /nodes/{id}`. The answer says whether the mark is on disk here; the exchanges spread it in any case.
pub async fn delete(node: Node, uri: Uri, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(raw.as_deref())?;
    let node_id = query::path_node(uri.path())?;
    let (code, detail) = match node.cluster.forget(node_id) {
        ForgetOutcome::Done => {
            let stored = node.cluster.store_members(&node).await.is_ok();
            return Ok(serve::json(StatusCode::OK, &ForgetAnswer { node_id, forgotten: true, stored }));
        }
        ForgetOutcome::IsUp => (ErrorCode::NodeIsUp, "is up, and would come back at once; stop it first"),
        ForgetOutcome::Unknown => (
            ErrorCode::NotFound,
            "is not known here; if a list of `nodes` or `--peers` names it, take it out there",
        ),
    };
    Err(Problem::new(code, format!("node {node_id} {detail}")))
}
