//! Owns the request to close the store and open it again, and why.
//!
//! A failed write or fsync raises it, and so do a file that was removed, a wrong index, a failed read of the live feed and a new store id. Other
//! failed reads are recorded in the store, and `run` looks for them. After a fault nothing is written to the log file.
//! `run` closes the store and opens it again, with a new fault.

use std::sync::Arc;

use tokio::sync::SetOnce;

/// Whether the store failed since it was opened. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct StoreFault(Arc<SetOnce<String>>);

impl StoreFault {
    /// Raises the fault. Only the first reason is kept.
    pub fn raise(&self, why: String) {
        let _first_reason_stays = self.0.set(why);
    }

    pub fn is_raised(&self) -> bool {
        self.0.initialized()
    }

    pub fn reason(&self) -> Option<String> {
        self.0.get().cloned()
    }

    /// Waits until it is raised, and gives the reason.
    pub async fn raised(&self) -> String {
        self.0.wait().await.clone()
    }
}
