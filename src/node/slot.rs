//! Owns what requests find at a node's address: the node while its store is open, else why it is closed.
//!
//! The address answers before the store is open for the first time, and a store that failed is closed and opened again
//! while the address keeps answering. So a handler takes the node from here with each request, and keeps it no longer.
//! Requests that need the store get `starting` before it is open, and `storage_failed` while it is closed.

use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::Node;
use crate::api::error::{ErrorCode, Problem};
use crate::api::network::NodeStatus;

/// The node that is served, if its store is open. Clones share it.
#[derive(Clone)]
pub struct NodeSlot(Arc<RwLock<SlotState>>);

#[derive(Clone)]
pub enum SlotState {
    /// The store is being opened for the first time.
    Starting,
    Open(Node),
    /// Why the store is closed, and the node's status as of when it was last open.
    Closed(String, Box<NodeStatus>),
}

impl NodeSlot {
    pub fn new(state: SlotState) -> Self {
        NodeSlot(Arc::new(RwLock::new(state)))
    }

    pub fn state(&self) -> SlotState {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opening the store failed for this reason.
    pub fn set_reason(&self, why: String) {
        if let SlotState::Closed(_, status) = self.state() {
            self.set(SlotState::Closed(why, status));
        }
    }

    pub fn set(&self, state: SlotState) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// Why a node is not ready while it starts.
const STARTING: &str = "this node opens its store";

/// The refusal of a node that starts.
pub fn starting() -> Problem {
    Problem::new(ErrorCode::Starting, STARTING)
}

/// The same as a reason of `/readyz`, which has no code.
pub fn starting_reason() -> String {
    format!("{}: {STARTING}", ErrorCode::Starting)
}

impl FromRequestParts<NodeSlot> for Node {
    type Rejection = Problem;

    async fn from_request_parts(_: &mut Parts, slot: &NodeSlot) -> Result<Self, Problem> {
        match slot.state() {
            SlotState::Open(node) => Ok(node),
            SlotState::Starting => Err(starting()),
            SlotState::Closed(why, _) => {
                let detail = format!("this node's storage failed, and it opens its store again: {why}");
                Err(Problem::new(ErrorCode::StorageFailed, detail))
            }
        }
    }
}
