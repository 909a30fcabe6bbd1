//! Owns removing the rows of a log from its cut on, a piece at a time, and the list of entries that may already
//! be gone.
//!
//! `Store::purge` reads the next piece here, removes its rows from the index, and then removes the piece here. Must not
//! decide what is cut: the caller knows that the cut is durable.
//!
//! Invariants: a piece is the end of the table, so the rest always starts at the cut, and a purge continues after a
//! crash. A log is listed in [`Purged`] before its first row is removed.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use redb::ReadableTableMetadata;

use super::super::StoreError;
use super::damage::checked_entry;
use super::{CHAIN, LogFile, log_table, table_name};
use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::store::engine::catch_panic::open_if_exists;

/// Rows that one commit removes at most; the rest waits for the next commits.
const PIECE_ROWS_MAX: usize = 1_000;
/// Bytes of rows that one commit removes; the rest waits.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// The last rows of a cut log, to be removed together.
#[derive(Debug)]
pub(in super::super) struct PurgePiece {
    origin: Origin,
    /// All rows from here on are removed.
    first: u64,
    /// The intact entries among the rows.
    pub(in super::super) entries: Vec<Entry>,
}

/// For each log whose purge has begun since the store was opened: the first seq that may already be gone. A reader of
/// an older vector that misses a row distinguishes a purge from damage by it, and a listing learns that it is
/// incomplete.
#[derive(Debug, Default)]
pub struct Purged(RwLock<BTreeMap<Origin, u64>>);

impl Purged {
    /// Adds a log whose rows from `cut` on may be gone from now on.
    pub(in crate::store) fn add(&self, origin: Origin, cut: u64) {
        let mut purged = self.0.write().unwrap_or_else(PoisonError::into_inner); // a panic cannot leave half an insert
        let from = purged.entry(origin).or_insert(cut);
        *from = cut.min(*from);
    }

    pub fn covers(&self, origin: Origin, seq: u64) -> bool {
        let purged = self.0.read().unwrap_or_else(PoisonError::into_inner);
        purged.get(&origin).is_some_and(|from| *from <= seq)
    }

    /// An entry that `logs` cover and that may be gone, because `logs` are from before its cut.
    pub fn purged_entry_of(&self, logs: &Logs) -> Option<(Origin, u64)> {
        let purged = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = purged.iter().map(|(origin, from)| (*origin, *from));
        all.find(|(origin, from)| *from <= logs.vector().seq(*origin))
    }
}

impl LogFile {
    /// The next piece of a log to remove; `None` if no row is left from `cut` on.
    pub(in super::super) fn next_purge_piece(
        &self,
        origin: Origin,
        cut: u64,
    ) -> Result<Option<PurgePiece>, StoreError> {
        self.db.read(|tx| {
            let (mut first, mut entries, mut bytes) = (None, Vec::new(), 0);
            if let Some(table) = open_if_exists(tx, log_table(&table_name(origin)))? {
                for row in table.range(cut..)?.rev().take(PIECE_ROWS_MAX) {
                    let (seq, record) = row?;
                    let (seq, record) = (seq.value(), record.value());
                    first = Some(seq);
                    entries.extend(checked_entry(origin, seq, record).ok());
                    bytes += record.len();
                    if bytes >= PIECE_BYTES_MAX {
                        break;
                    }
                }
            }
            let mut checkpoints = tx.open_table(CHAIN)?.range((origin.0, cut)..=(origin.0, u64::MAX))?;
            let first = first.or(checkpoints.next().is_some().then_some(cut));
            Ok(first.map(|first| PurgePiece { origin, first, entries }))
        })
    }

    /// Removes a piece durably, and the table once it is empty.
    pub(in super::super) fn remove_piece(&self, piece: &PurgePiece) -> Result<(), StoreError> {
        let PurgePiece { origin, first, .. } = *piece;
        let name = table_name(origin);
        self.db.write(|tx| {
            let mut table = tx.open_table(log_table(&name))?;
            table.retain_in(first.., |_, _| false)?;
            let is_empty = table.is_empty()?;
            drop(table);
            if is_empty {
                tx.delete_table(log_table(&name))?;
            }
            tx.open_table(CHAIN)?.retain_in((origin.0, first)..=(origin.0, u64::MAX), |_, _| false)?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use redb::{ReadableDatabase, ReadableTable};

    use super::super::tables;
    use super::*;
    use crate::store::Store;

    const A: Origin = Origin([1; 16]);

    /// What is left: the first row, the checkpoints, and whether there is a table.
    fn left(log: &LogFile) -> (Option<u64>, Vec<u64>, bool) {
        let row = log.read().expect("reads").row_from(A, 1).expect("reads");
        let chain = log.db.begin_read().expect("begins").open_table(CHAIN).expect("opens");
        let checkpoints = chain.iter().expect("reads").map(|row| row.expect("reads").0.value().1);
        (row, checkpoints.collect(), !log.db.read(tables).expect("reads").is_empty())
    }

    #[test]
    fn all_rows_from_the_cut_on_are_removed_in_pieces_and_the_empty_table_too() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (store, _) = Store::open(dir.path(), "test", 0).expect("opens");
        let log = store.log();
        let tx = log.db.begin_write().expect("begins");
        {
            let name = table_name(A);
            let mut table = tx.open_table(log_table(&name)).expect("opens");
            for seq in 1..=2_500 {
                table.insert(seq, b"damaged, which is no reason to stay".as_slice()).expect("inserts");
            }
            let mut chain = tx.open_table(CHAIN).expect("opens");
            for seq in [1_024, 2_048] {
                chain.insert((A.0, seq), [0; 32]).expect("inserts");
            }
        }
        tx.commit().expect("commits");
        let purge = |cut| {
            let pieces = std::iter::from_fn(|| log.next_purge_piece(A, cut).expect("reads"));
            pieces.inspect(|piece| log.remove_piece(piece).expect("removes")).count()
        };
        assert_eq!((purge(2_501), purge(1_025)), (0, 2));
        assert_eq!(left(log), (Some(1), vec![1_024], true), "what is before the cut stays");
        assert_eq!((purge(1), purge(1)), (2, 0));
        assert_eq!(left(log), (None, Vec::new(), false));
    }
}
