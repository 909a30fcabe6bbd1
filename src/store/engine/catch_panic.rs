//! Owns turning a panic of redb into an error.
//!
//! redb may panic on bytes that it did not write. Damage to a file must not end the process, so the read or write that
//! panicked counts as failed. Invariant: every call into redb goes through here.

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::Database;

use crate::store::StoreError;

/// The message of a panic in redb.
#[derive(Debug, thiserror::Error)]
#[error("the storage engine panicked: {0}")]
pub(in crate::store) struct EnginePanic(pub(in crate::store) String);

/// Runs the work and returns its panic as an error. After a panic, nothing that the work changed may be used.
pub(in crate::store) fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, EnginePanic> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| payload.downcast_ref::<&str>().copied());
        EnginePanic(message.unwrap_or("no message").to_owned())
    })
}

/// As [`catch_panic`], for work that returns a [`StoreError`].
pub(in crate::store) fn catch_engine_panic<T>(
    work: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    catch_panic(work).unwrap_or_else(|panic| Err(StoreError::EnginePanicked(panic.0)))
}

/// An open database. Closing it writes to the file, so closing can panic, too.
#[derive(Debug)]
pub(in crate::store) struct GuardedDb(Option<Database>);

impl GuardedDb {
    pub(in crate::store) fn new(db: Database) -> Self {
        GuardedDb(Some(db))
    }
}

impl Deref for GuardedDb {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.0.as_ref().expect("taken only in drop")
    }
}

impl Drop for GuardedDb {
    fn drop(&mut self) {
        let db = self.0.take();
        if let Err(panic) = catch_panic(|| drop(db)) {
            tracing::warn!(%panic, "closing a database failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        let panicked =
            catch_engine_panic(|| -> Result<(), StoreError> { panic!("page {}", 7) }).expect_err("panicked");
        assert!(panicked.to_string().ends_with("panicked: page 7"), "{panicked}");
        assert_eq!(catch_engine_panic(|| Ok(7)).expect("did not"), 7);
    }
}
