//! Owns the removal of what a cut log still has in its table behind its cut: rows and checkpoints, a piece at a time.
//!
//! A piece is the last rows of the table, so what is left is always a run from the cut on, and whoever goes on after a
//! crash begins with the end of it. The room is used again by later commits. Nothing here asks whether the rows are still
//! needed: the caller knows the cut to be durable.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use redb::{ReadableDatabase, ReadableTableMetadata};

use super::super::StoreError;
use super::reader::checked;
use super::{CHAIN, Log, log_table, table_name};
use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::store::engine::catch_panic::catch_engine_panic;

/// Rows that one commit removes at the most.
const PIECE_ROWS_MAX: usize = 1_000;
/// Bytes of rows that one commit removes; as above.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// The last rows behind a cut.
#[derive(Debug)]
pub(in super::super) struct PurgePiece {
    origin: Origin,
    /// From here on everything goes.
    first: u64,
    /// Those that can be read.
    pub(in super::super) entries: Vec<Entry>,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Purged(RwLock<BTreeMap<Origin, u64>>);

impl Purged {
    /// From now on rows of this log from `cut` on may be gone.
    pub(in crate::store) fn add(&self, origin: Origin, cut: u64) {
        let mut swept = self.0.write().unwrap_or_else(PoisonError::into_inner); // no change of a map stops half-way
        let from = swept.entry(origin).or_insert(cut);
        *from = cut.min(*from);
    }

    /// Whether this row may be gone.
    pub fn covers(&self, origin: Origin, seq: u64) -> bool {
        let swept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        swept.get(&origin).is_some_and(|from| *from <= seq)
    }

    /// An entry that `logs` cover and that may be gone: they are from before its cut.
    pub fn purged_entry_of(&self, logs: &Logs) -> Option<(Origin, u64)> {
        let swept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = swept.iter().map(|(origin, from)| (*origin, *from));
        all.find(|(origin, from)| *from <= logs.vector().seq(*origin))
    }
}

impl Log {
    /// What of a log at or behind `cut` is to be removed next; `None`: nothing is left.
    pub(in super::super) fn next_purge_piece(
        &self,
        origin: Origin,
        cut: u64,
    ) -> Result<Option<PurgePiece>, StoreError> {
        catch_engine_panic(|| {
            let tx = self.db.begin_read()?;
            let (mut first, mut entries, mut bytes) = (None, Vec::new(), 0);
            match tx.open_table(log_table(&table_name(origin))) {
                Err(redb::TableError::TableDoesNotExist(_)) => {}
                table => {
                    for row in table?.range(cut..)?.rev().take(PIECE_ROWS_MAX) {
                        let (seq, record) = row?;
                        let (seq, record) = (seq.value(), record.value());
                        first = Some(seq);
                        entries.extend(checked(origin, seq, record).ok());
                        bytes += record.len();
                        if bytes >= PIECE_BYTES_MAX {
                            break;
                        }
                    }
                }
            }
            let mut checkpoints = tx.open_table(CHAIN)?.range((origin.0, cut)..=(origin.0, u64::MAX))?;
            let first = first.or(checkpoints.next().is_some().then_some(cut));
            Ok(first.map(|first| PurgePiece { origin, first, entries }))
        })
    }

    /// Removes it, durably; a table that is empty then goes as well.
    pub(in super::super) fn remove_piece(&self, piece: &PurgePiece) -> Result<(), StoreError> {
        catch_engine_panic(|| {
            let PurgePiece { origin, first, .. } = *piece;
            let name = table_name(origin);
            let tx = self.db.begin_write()?;
            let is_empty = {
                let mut table = tx.open_table(log_table(&name))?;
                table.retain_in(first.., |_, _| false)?;
                table.is_empty()?
            };
            if is_empty {
                tx.delete_table(log_table(&name))?;
            }
            tx.open_table(CHAIN)?.retain_in((origin.0, first)..=(origin.0, u64::MAX), |_, _| false)?;
            Ok(tx.commit()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use redb::ReadableTable;

    use super::super::tables;
    use super::*;
    use crate::store::Store;

    const A: Origin = Origin([1; 16]);

    /// What is left: the first row, checkpoints, and whether there is a table.
    fn left(log: &Log) -> (Option<u64>, Vec<u64>, bool) {
        let row = log.read().expect("reads").row_from(A, 1).expect("reads");
        let chain = log.db.begin_read().expect("begins").open_table(CHAIN).expect("opens");
        let checkpoints = chain.iter().expect("reads").map(|row| row.expect("reads").0.value().1);
        (row, checkpoints.collect(), !tables(&log.db).expect("reads").is_empty())
    }

    #[test]
    fn all_from_the_cut_on_goes_in_pieces_and_an_empty_table_with_it() {
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
        let sweep = |cut| {
            let pieces = std::iter::from_fn(|| log.next_purge_piece(A, cut).expect("reads"));
            pieces.inspect(|piece| log.remove_piece(piece).expect("removes")).count()
        };
        assert_eq!((sweep(2_501), sweep(1_025)), (0, 2));
        assert_eq!(left(log), (Some(1), vec![1_024], true), "what is before the cut stays");
        assert_eq!((sweep(1), sweep(1)), (2, 0));
        assert_eq!(left(log), (None, Vec::new(), false));
    }
}
