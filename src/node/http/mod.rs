//! Owns which handler of a node serves which path. Any other path answers `not_found`.

pub(super) mod acks;
mod feed;
mod forget;
mod history;
mod page;
mod position;
mod range;
mod read;
pub(super) mod send;
pub(super) mod status;
mod streamed;

use axum::Router;
use axum::routing::{delete, get, post};

use super::slot::NodeSlot;
use crate::api::path;
use crate::node::cluster::answer;
use crate::serve;

/// All paths of a node.
pub fn routes(slot: NodeSlot) -> Router {
    Router::new()
        .route(path::MESSAGES, post(send::post).get(history::get))
        .route(path::MESSAGE, get(history::get_one))
        .route(path::FEED, get(feed::get))
        .route(path::NODES, get(status::nodes))
        .route(path::NODE, delete(forget::delete))
        .route(path::NETWORK, get(status::network))
        .route(path::SYNC, post(answer::post))
        .route(path::LIVEZ, get(serve::live))
        .route(path::READYZ, get(status::ready))
        .with_state(slot)
}
