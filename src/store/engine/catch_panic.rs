//! Owns turning a panic of redb into an error, and the transactions of an open database.
//!
//! redb may panic on bytes that it did not write. Damage to a file must not end the process, so the read or write that
//! panicked counts as failed.
//!
//! Invariant: every call on an open database goes through here. Who opens a file that may be damaged guards the
//! opening. One table at a time is open in a write: if redb panicked over another table, it would panic again while the
//! open one is dropped, which aborts the process.

use std::cell::Cell;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::{
    Database, Key, ReadOnlyTable, ReadTransaction, ReadableDatabase, TableDefinition, Value, WriteTransaction,
};

use crate::store::StoreError;
use crate::store::engine::files::{FileIdentity, OpenedFile};

thread_local! {
    /// How many calls of [`catch_panic`] this thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether a panic of this thread becomes an error, so that it needs no report of its own.
pub fn becomes_error() -> bool {
    DEPTH.get() > 0
}

/// Runs the work and returns its panic as an error. After a panic, nothing that the work changed may be used.
pub fn catch_panic<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    DEPTH.set(DEPTH.get() + 1);
    let done = catch_unwind(AssertUnwindSafe(work));
    DEPTH.set(DEPTH.get() - 1);
    done.unwrap_or_else(|payload| {
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| payload.downcast_ref::<&str>().copied());
        Err(StoreError::EnginePanicked(message.unwrap_or("no message").to_owned()))
    })
}

/// Opens a table that a file of an earlier program, or a new one, may lack.
pub fn open_if_exists<K: Key + 'static, V: Value + 'static>(
    tx: &ReadTransaction,
    table: TableDefinition<K, V>,
) -> Result<Option<ReadOnlyTable<K, V>>, StoreError> {
    match tx.open_table(table) {
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        table => Ok(Some(table?)),
    }
}

/// An open database. Closing it writes to the file, so closing can panic, too.
#[derive(Debug)]
pub struct GuardedDb {
    /// `None` once it is closed.
    db: Option<Database>,
    /// The file that was opened.
    pub identity: FileIdentity,
}

impl GuardedDb {
    pub fn new(OpenedFile { db, identity }: OpenedFile) -> Self {
        GuardedDb { db: Some(db), identity }
    }

    /// Closes the file. Dropping closes it as well, but only logs an error.
    pub fn close(mut self) -> Result<(), StoreError> {
        let db = self.db.take();
        catch_panic(|| Ok(db.map_or(Ok(()), Database::close)?))
    }

    /// Runs the work in one read transaction.
    pub fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        catch_panic(|| work(&self.begin_read()?))
    }

    /// Runs the work in one write transaction and commits it, durably unless the work says otherwise.
    pub fn write<T>(
        &self,
        work: impl FnOnce(&mut WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        catch_panic(|| {
            let mut tx = self.begin_write()?;
            let done = work(&mut tx)?;
            tx.commit()?;
            Ok(done)
        })
    }
}

impl Deref for GuardedDb {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.db.as_ref().expect("taken only in drop")
    }
}

impl Drop for GuardedDb {
    fn drop(&mut self) {
        let db = self.db.take();
        let close = || {
            drop(db);
            Ok(())
        };
        if let Err(error) = catch_panic(close) {
            tracing::warn!(%error, "closing a database failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        let panicked =
            catch_panic(|| -> Result<(), StoreError> { panic!("page {}", 7) }).expect_err("panicked");
        assert!(panicked.to_string().ends_with("panicked: page 7"), "{panicked}");
        assert_eq!(catch_panic(|| Ok(7)).expect("did not"), 7);
        assert!(!becomes_error());
        assert!(catch_panic(|| Ok(becomes_error())).expect("did not"));
    }
}
