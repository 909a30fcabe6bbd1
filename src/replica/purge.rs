//! Owns when the rows of cut logs are purged.
//!
//! Before: a cut is durable, and its log's old rows are still there. After: [`Store::purge`] removes a piece of them.
//! Clients' messages go before each piece. A process that ends leaves the rest to the next one, which looks once at
//! each cut log. When no rows are left, index rows without an entry are searched for.

use std::collections::BTreeSet;

use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::store::{Store, StoreError};

/// Cut logs without rows that one step looks at. Further ones wait for the next step.
const LOOKS_MAX: usize = 256;
/// Batches with clients' messages that go before one piece. With more, the rows of a long log would stay for hours on a
/// busy node, and later cuts would wait.
const BUSY_MAX: u32 = 16;

/// The cut logs that may have rows from their cuts on.
#[derive(Debug, Default)]
pub(super) struct Purger {
    /// Each with a durable cut.
    pub(super) logs: BTreeSet<Origin>,
    busy: u32,
}

impl Purger {
    /// Starts with all cut logs: an earlier process may have ended at any point.
    pub(super) fn of(logs: &Logs) -> Self {
        Purger { logs: logs.vector().cuts().map(|(origin, _)| origin).collect(), busy: 0 }
    }

    /// Whether no log has rows left to purge.
    pub(super) fn is_done(&self) -> bool {
        self.logs.is_empty()
    }

    /// Removes one piece. `logs`: the durable ones; `is_busy`: the last batch had messages of clients.
    pub(super) fn step(&mut self, store: &Store, logs: &Logs, is_busy: bool) -> Result<(), StoreError> {
        if is_busy && self.busy < BUSY_MAX {
            self.busy += 1;
            return Ok(());
        }
        self.busy = 0;
        for _ in 0..LOOKS_MAX {
            let Some(origin) = self.logs.first().copied() else { break };
            if let Some(cut) = logs.vector().cut_of(origin)
                && store.purge(origin, cut)?
            {
                return Ok(());
            }
            self.logs.remove(&origin);
        }
        if self.is_done() && store.index().may_have_dangling() {
            store.index().purge_dangling(logs, store.log().purged())?;
        }
        Ok(())
    }
}
