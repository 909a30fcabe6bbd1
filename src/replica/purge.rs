//! Owns when what is left behind cuts is removed.
//!
//! A cut that is made leaves its log's old rows where they are; they go a piece at a time, and clients' messages go
//! before each piece. What a process did not get to is found by the next one, with one look at each cut log. Behind that
//! comes the search for what the index still counts although it was lost with a cut.

use std::collections::BTreeSet;

use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::store::{Store, StoreError};

/// Cut logs that one step looks at, as long as nothing is left in them.
const LOOKS_MAX: usize = 256;
/// So many batches with clients' messages go before a piece. More would let the rows of a long log stay for hours on a
/// node that is never quiet, and the cuts after it wait.
const BUSY_MAX: u32 = 16;

/// Cut logs that may have rows behind their cuts.
#[derive(Debug, Default)]
pub(super) struct Purger {
    logs: BTreeSet<Origin>,
    busy: u32,
}

impl Purger {
    /// All logs that are cut: an earlier process may have ended at any point.
    pub(super) fn of(logs: &Logs) -> Self {
        Purger { logs: logs.vector().cuts().map(|(origin, _)| origin).collect(), busy: 0 }
    }

    /// The cut of this log is durable.
    pub(super) fn add(&mut self, origin: Origin) {
        self.logs.insert(origin);
    }

    /// Nothing is left behind any cut.
    pub(super) fn is_done(&self) -> bool {
        self.logs.is_empty()
    }

    /// Does one piece. `logs`: what is durable; `is_busy`: messages of clients were written just now.
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
        if self.is_done() && store.may_have_dangling() {
            store.purge_dangling(logs)?;
        }
        Ok(())
    }
}
