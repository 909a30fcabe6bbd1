//! Owns the word that a store must not be believed any more, and who waits for it.
//!
//! Whoever sees a write, an fsync or a read of the engine fail raises it, once for each opening of a store. From then on
//! nothing is written; the node closes the store and opens it anew (see `run`).

use std::sync::Arc;
use std::sync::OnceLock;

use tokio::sync::Notify;

/// See the head of this file. Clones are the same alarm.
#[derive(Debug, Clone, Default)]
pub struct StoreFault(Arc<FaultState>);

#[derive(Debug, Default)]
struct FaultState {
    why: OnceLock<String>,
    notify: Notify,
}

impl StoreFault {
    /// The first reason counts.
    pub fn raise(&self, why: String) {
        if self.0.why.set(why).is_ok() {
            self.0.notify.notify_one();
        }
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        self.0.why.get().is_some()
    }

    /// Waits until it is raised, and says why. For one waiter.
    pub async fn raised(&self) -> String {
        loop {
            if let Some(why) = self.0.why.get() {
                return why.clone();
            }
            self.0.notify.notified().await;
        }
    }
}
