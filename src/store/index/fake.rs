//! Changes an index without the knowledge of its store, for tests.

use redb::ReadableTableMetadata;

use super::memtable::{IndexEntry, NameHash};
use super::tables::{BY_ID, BY_USER, COPIES, IndexRows, UNINDEXED};
use crate::chain::record::Entry;
use crate::store::Store;

/// Keeps all others from writing to the file until it is dropped.
pub(crate) fn hold_writes(store: &Store) -> redb::WriteTransaction {
    store.index.db.begin_write().expect("begins")
}

/// How many unindexed entries the file lists.
pub(crate) fn unindexed_count(store: &Store) -> u64 {
    let tx = store.index.db.begin_write().expect("begins");
    tx.open_table(UNINDEXED).expect("opens").len().expect("counts")
}

/// A row that the index has for an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) enum IndexRow {
    Id,
    Sender,
    Recipient,
    Copy,
}

/// Removes a row of an entry from the file, or replaces it by a wrong one, as damage does. A mark of a copy can only be
/// removed.
pub(crate) fn damage(store: &Store, entry: &Entry, row: IndexRow, is_altered: bool) {
    let indexed = IndexEntry::new(entry);
    let rows = IndexRows::of(std::iter::once(&indexed));
    let tx = store.index.db.begin_write().expect("begins");
    let by_user = |name: NameHash| {
        let mut table = tx.open_table(BY_USER).expect("opens");
        let (key, roles) = rows.by_user.iter().find(|(key, _)| key.0 == name.0).expect("has a row");
        table.remove(*key).expect("removes").expect("was there");
        if is_altered {
            table.insert(*key, roles ^ 3).expect("inserts");
        }
    };
    match row {
        IndexRow::Sender => by_user(indexed.names.expect("is a message")[0]),
        IndexRow::Recipient => by_user(indexed.names.expect("is a message")[1]),
        IndexRow::Copy => {
            let mut table = tx.open_table(COPIES).expect("opens");
            table.remove((entry.origin().0, entry.seq())).expect("removes").expect("was there");
        }
        IndexRow::Id => {
            let mut table = tx.open_table(BY_ID).expect("opens");
            let (id, digest, stamp, origin, seq) = rows.by_id[0];
            table.remove(rows.by_id[0]).expect("removes").expect("was there");
            if is_altered {
                table.insert((id, digest, stamp + 1, origin, seq), ()).expect("inserts");
            }
        }
    }
    tx.commit().expect("commits");
}
