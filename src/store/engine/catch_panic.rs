//! Owns the one place where a panic of redb ends: bytes that redb did not write may make it panic, and damage to a
//! file must not end the process. Whatever was being read or written then counts as failed.

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::Database;

use crate::store::StoreError;

/// What redb said when it panicked.
#[derive(Debug, thiserror::Error)]
#[error("the storage engine cannot make sense of it: {0}")]
pub(in crate::store) struct EnginePanic(pub(in crate::store) String);

/// Does the work, whose panic is an answer like any other. What the work changed must not be believed after one.
pub(in crate::store) fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, EnginePanic> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let words = payload.downcast_ref::<String>().map(String::as_str);
        let words =
            words.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("it does not say why");
        EnginePanic(words.to_owned())
    })
}

/// As [`guard`], for what fails with [`Error`] anyway.
pub(in crate::store) fn catch_engine_panic<T>(
    work: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    catch_panic(work).unwrap_or_else(|panic| Err(StoreError::EnginePanicked(panic.0)))
}

/// An open database. Closing it writes to the file, which can go wrong as everything else.
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
        self.0.as_ref().expect("it is taken only to be dropped")
    }
}

impl Drop for GuardedDb {
    fn drop(&mut self) {
        let db = self.0.take();
        if let Err(panic) = catch_panic(|| drop(db)) {
            tracing::warn!(%panic, "a database was not closed in order");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        let panicked =
            catch_engine_panic(|| -> Result<(), StoreError> { panic!("page {}", 7) }).expect_err("panicked");
        assert!(panicked.to_string().ends_with("cannot make sense of it: page 7"), "{panicked}");
        assert_eq!(catch_engine_panic(|| Ok(7)).expect("did not"), 7);
    }
}
