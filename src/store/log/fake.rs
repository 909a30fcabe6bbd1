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

/// Raises the floor of a log, as a retention would do: the entries and checkpoints up to there are gone.
pub(crate) fn raise_floor(log: &LogFile, origin: Origin, floor: u64) {
    let tx = log.db.begin_write().expect("begins");
    {
        let mut heads = tx.open_table(HEADS).expect("opens");
        let row = heads.get(origin.0).expect("reads").expect("is there").value().to_vec();
        let (span, range) = decode_span(origin, &row).expect("is ours");
        let mut reader = log.read().expect("reads");
        let hash = reader.hash_at(origin, span.floor, floor).expect("computes");
        let first = reader.get(origin, span.head.seq.min(floor + 1)).expect("is there").stamp();
        let span = LogSpan { floor: Head { seq: floor, hash }, ..span };
        let row = encode_span(origin, &span, StampRange { first, ..range });
        heads.insert(origin.0, row.as_slice()).expect("inserts");
        let mut table = tx.open_table(log_table(&table_name(origin))).expect("opens");
        table.retain_in(..=floor, |_, _| false).expect("removes");
        let mut chain = tx.open_table(CHAIN).expect("opens");
        chain.retain_in((origin.0, 0)..=(origin.0, floor), |_, _| false).expect("removes");
    }
    tx.commit().expect("commits");
}
