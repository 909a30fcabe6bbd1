//! Owns what one commit writes.
//!
//! A change is put together by whoever decides, and written as a whole or not at all. It says nothing of heads: those
//! are taken from the state of the logs after it.

use crate::chain::ids::{ChainHash, Origin};
use crate::chain::members::Membership;
use crate::chain::record::Entry;
use crate::store::index::IndexEntry;

/// An entry to be written. [`IndexOverlay`](crate::store::index::IndexOverlay) makes it.
#[derive(Debug)]
pub struct NewRow {
    /// The entry.
    pub entry: Entry,
    /// `h(seq)` of its log; `None` for a repaired entry, whose hash the chain has already.
    pub(in crate::store) hash: Option<ChainHash>,
    /// What the index adds for the entry; `None` if the index has it already.
    pub(in crate::store) index: Option<IndexEntry>,
}

/// What one commit writes. The heads of all logs it names are written as the state after it has them.
#[derive(Debug, Default)]
pub struct WriteBatch {
    /// Entries that follow the heads, ascending within each log.
    pub entries: Vec<NewRow>,
    /// Entries that are damaged here, as a peer has them.
    pub repaired: Vec<NewRow>,
    /// Logs that are cut now, and where.
    pub cuts: Vec<(Origin, u64)>,
    /// Logs of which less is behind a gap than before.
    pub detached: Vec<Origin>,
    /// With one of the cuts, entries that could not be read leave their log, and stand nowhere else.
    pub drops_unreadable: bool,
    /// Checkpoints of the chain that were found wrong, as they are.
    pub checkpoints: Vec<(Origin, u64, ChainHash)>,
    /// Who belongs to the network now, where that has changed.
    pub members: Option<Membership>,
}

impl WriteBatch {
    /// Nothing is to be written.
    pub fn is_empty(&self) -> bool {
        let WriteBatch {
            entries,
            repaired: mended,
            cuts,
            detached: loose,
            drops_unreadable: _,
            checkpoints,
            members,
        } = self;
        entries.is_empty()
            && mended.is_empty()
            && cuts.is_empty()
            && loose.is_empty()
            && checkpoints.is_empty()
            && members.is_none()
    }
}
