//! Owns the request to close the store and open it again, and why.
//!
//! A failed write or fsync raises it, and so do a wrong index and a new store id. A failed read is recorded in the store, and
//! `run` looks for it. After a fault nothing is written. `run` closes the store and opens it again, with a new fault.

use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

/// Whether the store failed since it was opened. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct StoreFault(Arc<FaultState>);

#[derive(Debug, Default)]
struct FaultState {
    why: OnceLock<String>,
    notify: Notify,
}

impl StoreFault {
    /// Raises the fault. Only the first reason is kept.
    pub fn raise(&self, why: String) {
        if self.0.why.set(why).is_ok() {
            self.0.notify.notify_one();
        }
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        self.0.why.get().is_some()
    }

    /// Waits until it is raised, and gives the reason. For one waiter only.
    pub async fn raised(&self) -> String {
        loop {
            if let Some(why) = self.0.why.get() {
                return why.clone();
            }
            self.0.notify.notified().await;
        }
    }
}
