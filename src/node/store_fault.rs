//! Owns the request to close the store and open it again, and why.
//!
//! A failed write or fsync raises it, and so do a file that was removed, a wrong index, and a failed read of the live
//! feed. Other failed reads are recorded in the store, and `run` looks for them. A new store id raises it as well, but
//! says nothing against the store. After a fault nothing is written to the log file. `run` closes the store and opens it
//! again, with a new fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::SetOnce;

/// Whether the store must be opened again. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct StoreFault(Arc<FaultState>);

#[derive(Debug, Default)]
struct FaultState {
    why: SetOnce<String>,
    is_suspect: AtomicBool,
}

impl StoreFault {
    /// Raises the fault. Only the first reason is kept.
    pub fn raise(&self, why: String) {
        self.0.is_suspect.store(true, Ordering::SeqCst);
        let _first_reason_stays = self.0.why.set(why);
    }

    /// Raises it although the store is in order: it has a new id, and is opened again with that.
    pub fn raise_for_new_id(&self, why: String) {
        let _first_reason_stays = self.0.why.set(why);
    }

    /// Whether the store failed: it is checked when it is opened again.
    pub fn is_suspect(&self) -> bool {
        self.0.is_suspect.load(Ordering::SeqCst)
    }

    pub fn is_raised(&self) -> bool {
        self.0.why.initialized()
    }

    pub fn reason(&self) -> Option<String> {
        self.0.why.get().cloned()
    }

    /// Waits until it is raised, and gives the reason.
    pub async fn raised(&self) -> String {
        self.0.why.wait().await.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_id_says_nothing_against_the_store_and_a_failure_after_it_does() {
        let fault = StoreFault::default();
        fault.raise_for_new_id("a copy runs".into());
        assert!(fault.is_raised() && !fault.is_suspect());
        fault.raise("the disk failed".into());
        assert!(fault.is_suspect());
        assert_eq!(fault.reason().as_deref(), Some("a copy runs"), "the first reason stays");
    }
}
