//! Changes a log without the knowledge of its store, for tests.

use super::*;

/// Marks the file as written by a newer program.
pub(in crate::store) fn pretend_newer(path: &std::path::Path) {
    let db = redb::Database::open(path).expect("opens");
    let tx = db.begin_write().expect("begins");
    let newer = (meta::FORMAT + 1).to_be_bytes();
    tx.open_table(meta::META).expect("opens").insert("format", newer.as_slice()).expect("inserts");
    tx.commit().expect("commits");
}

/// Replaces the bytes of an entry, as damage does.
pub(crate) fn overwrite(log: &LogFile, origin: Origin, seq: u64, bytes: &[u8]) {
    let tx = log.db.begin_write().expect("begins");
    tx.open_table(log_table(&table_name(origin))).expect("opens").insert(seq, bytes).expect("inserts");
    tx.commit().expect("commits");
}

/// Writes a cut, as damage does.
pub(in crate::store) fn put_cut(log: &LogFile, origin: Origin, seq: u64) {
    let tx = log.db.begin_write().expect("begins");
    tx.open_table(CUTS).expect("opens").insert(origin.0, seq).expect("inserts");
    tx.commit().expect("commits");
}

/// Removes an entry, as damage does.
pub(crate) fn take_away(log: &LogFile, origin: Origin, seq: u64) {
    let tx = log.db.begin_write().expect("begins");
    tx.open_table(log_table(&table_name(origin))).expect("opens").remove(seq).expect("removes");
    tx.commit().expect("commits");
}
