//! Owns the order in which the index has the copies of an id: by content, then in display order.
//!
//! A peer can send a log of nothing but one message, and any number of contents with one id. So nothing reads all
//! copies of an id: a scan finds one copy after the other, each with one search, and may skip the rest of a content.
//! Must not know where the rows are: in the memtable, in the file, or in a batch that is being decided.

use std::ops::Bound::{self, Excluded, Included};

use crate::chain::clock::Stamp;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::message::Digest;
use crate::store::StoredCopy;

/// Id, digest, stamp, origin, seq.
pub(super) type IdKey = ([u8; 16], [u8; 32], u64, [u8; 16], u64);

pub(super) fn id_key(id: [u8; 16], copy: &StoredCopy) -> IdKey {
    let EntryKey { stamp, origin, seq } = copy.key;
    (id, copy.digest.0, stamp.0, origin.0, seq)
}

fn last_of(id: [u8; 16], digest: [u8; 32]) -> IdKey {
    (id, digest, u64::MAX, [0xff; 16], u64::MAX)
}

/// A scan over copies of one id.
#[derive(Debug, Clone, Copy)]
pub struct CopyScan {
    from: Bound<IdKey>,
    last: IdKey,
}

impl CopyScan {
    /// Over the copies of every content.
    pub fn of_id(id: [u8; 16]) -> Self {
        CopyScan { from: Included((id, [0; 32], 0, [0; 16], 0)), last: last_of(id, [0xff; 32]) }
    }

    pub fn of_content(id: [u8; 16], digest: Digest) -> Self {
        CopyScan { from: Included((id, digest.0, 0, [0; 16], 0)), last: last_of(id, digest.0) }
    }

    /// Over this copy alone.
    pub(super) fn of_copy(id: [u8; 16], copy: &StoredCopy) -> Self {
        let key = id_key(id, copy);
        CopyScan { from: Included(key), last: key }
    }

    pub(super) fn id(&self) -> [u8; 16] {
        self.last.0
    }

    /// Where the next copy is searched for.
    pub(super) fn range(&self) -> (Bound<IdKey>, Bound<IdKey>) {
        (self.from, Included(self.last))
    }

    /// Goes on after this copy.
    pub(super) fn pass(&mut self, key: IdKey) -> StoredCopy {
        self.from = Excluded(key);
        let (_, digest, stamp, origin, seq) = key;
        let key = EntryKey { stamp: Stamp(stamp), origin: Origin(origin), seq };
        StoredCopy { key, digest: Digest(digest) }
    }

    /// Skips the other copies of the content that was found last.
    pub fn skip_content(&mut self) {
        if let Excluded((id, digest, ..)) = self.from {
            self.from = Excluded(last_of(id, digest));
        }
    }
}
