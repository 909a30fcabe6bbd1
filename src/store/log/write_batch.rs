//! Owns the rows that one commit writes to the log.
//!
//! `replica` decides its `WriteOps` and puts the rows together; [`LogFile::commit`](super::LogFile::commit) writes them
//! atomically. A batch has no heads: they come from the state of the logs after it.

use crate::chain::ids::{ChainHash, Origin};
use crate::chain::members::Membership;
use crate::chain::record::Entry;
use crate::store::index::IndexEntry;

/// An entry to be written. [`IndexOverlay`](crate::store::index::IndexOverlay) makes it.
#[derive(Debug)]
pub struct NewRow {
    pub entry: Entry,
    /// `h(seq)` of its log; `None` for a repaired entry, whose hash the chain has already.
    pub(in crate::store) hash: Option<ChainHash>,
    /// What the index adds for the entry; `None` if the index has it already.
    pub(in crate::store) index: Option<IndexEntry>,
}

/// The rows of one commit.
#[derive(Debug, Default)]
pub struct WriteBatch {
    /// New entries, ascending within each log.
    pub entries: Vec<NewRow>,
    /// Intact records for entries that are damaged here.
    pub repaired: Vec<NewRow>,
    /// Logs to cut, each at its first removed seq.
    pub cuts: Vec<(Origin, u64)>,
    /// Logs that have fewer detached entries than before.
    pub detached: Vec<Origin>,
    /// A cut drops damaged entries, which could not be moved to a branch.
    pub drops_damaged: bool,
    /// Corrected checkpoints of the chain.
    pub checkpoints: Vec<(Origin, u64, ChainHash)>,
    /// The members of the network, if they changed.
    pub members: Option<Membership>,
}

impl WriteBatch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        let WriteBatch { entries, repaired, cuts, detached, drops_damaged: _, checkpoints, members } = self;
        let is_same_log = cuts.is_empty() && detached.is_empty() && checkpoints.is_empty();
        entries.is_empty() && repaired.is_empty() && is_same_log && members.is_none()
    }
}
