//! Owns what requests meet at a node's address: the node while its store is open, else why it is not.
//!
//! A store that failed is closed and opened anew while the address keeps answering; so a handler asks here for the node
//! each time, and holds it only as long as its request. What is closed refuses with `storage_failed`.

use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::Node;
use crate::api::error::{ErrorCode, Problem};
use crate::api::network::NodeStatus;

/// See the head of this file. Clones are the same seat.
#[derive(Clone)]
pub struct NodeSlot(Arc<RwLock<SlotState>>);

/// Who sits there.
#[derive(Clone)]
pub enum SlotState {
    /// The node, whose store is open.
    Open(Node),
    /// Nobody: why, and the node's last word on itself.
    Closed(String, Box<NodeStatus>),
}

impl NodeSlot {
    /// A seat that this node takes.
    pub fn open_with(node: Node) -> Self {
        NodeSlot(Arc::new(RwLock::new(SlotState::Open(node))))
    }

    /// A seat that nobody has taken yet, and why.
    pub fn closed(why: String, unopened: NodeStatus) -> Self {
        NodeSlot(Arc::new(RwLock::new(SlotState::Closed(why, Box::new(unopened)))))
    }

    /// What is there now.
    pub fn state(&self) -> SlotState {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The node whose store is open again takes it.
    pub fn open(&self, node: Node) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = SlotState::Open(node);
    }

    /// The node gives it up, with its last word on itself.
    pub fn close(&self, why: String, last: NodeStatus) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = SlotState::Closed(why, Box::new(last));
    }

    /// Nobody can take it, for this reason now.
    pub fn set_reason(&self, why: String) {
        if let SlotState::Closed(was, _) = &mut *self.0.write().unwrap_or_else(PoisonError::into_inner) {
            *was = why;
        }
    }
}

impl FromRequestParts<NodeSlot> for Node {
    type Rejection = Problem;

    async fn from_request_parts(_: &mut Parts, seat: &NodeSlot) -> Result<Self, Problem> {
        match seat.state() {
            SlotState::Open(node) => Ok(node),
            SlotState::Closed(why, _) => {
                let detail = format!("this node's storage failed, and it is opened anew: {why}");
                Err(Problem::new(ErrorCode::StorageFailed, detail))
            }
        }
    }
}
