//! Owns the errors of a store: why it cannot be opened, and why a read or a commit failed.
//!
//! Each [`OpenError`] is a sentence for the operator that names the file. A [`StoreError`] says what a caller can do:
//! ask a peer for a damaged entry, read again after a cut, or open the store again. Callers see errors of redb only as
//! one of these two.

use std::path::PathBuf;

use rustix::io::Errno;

use super::engine::files;
use crate::chain::ids::Origin;
use crate::error_text::without_numbers;

/// A store that was absent is opened once its log has not changed for this time. A copy that is not complete yet looks
/// like a damaged log, and would be salvaged.
pub const SETTLED_SECONDS: u64 = 5;

/// Why a store cannot be opened. Each variant is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it cannot be created, read or written; not damage, unless the disk failed.
    #[error("the data directory {} cannot be used: {}", path.display(), without_numbers(source))]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the data directory {} is in use by another process; stop that one first", .0.display())]
    InUse(PathBuf),
    /// This process had the store open, and its files are gone. No new store is made in their place.
    #[error("the store in {} is gone: the directory was removed, or its disk is not mounted; put it back, or restart the node to begin with an empty store", .0.display())]
    Gone(PathBuf),
    /// The store was absent and is being put back.
    #[error("{} is being written; it is opened once it has not changed for {SETTLED_SECONDS} s", .0.display())]
    Settling(PathBuf),
    /// The log is damaged, and the disk has no room for a new file of its records.
    #[error("{} is damaged, and a new file of its intact records needs at least {needed} bytes, of which {free} are free: free the rest, or move the data directory to a larger disk", path.display())]
    NoRoom { path: PathBuf, needed: u64, free: u64 },
    #[error("{} is not a regular file but a directory, a pipe or a device: move it away, or use another data directory", .0.display())]
    NotAFile(PathBuf),
    /// What is stored there is on another disk, probably; a new file in its place would hide it.
    #[error("{} is a link to a file that is not there: mount the disk that it is on, or remove the link to begin anew", .0.display())]
    LinkToNothing(PathBuf),
    #[error("{} has format {found}, and this program reads format {known} only: use a chatchain of that format, or another data directory", path.display())]
    OtherFormat { path: PathBuf, found: u32, known: u32 },
    #[error("{} belongs to the network {found:?}, not to {wanted:?}; set `network` to that or use another data directory", path.display())]
    OtherNetwork { path: PathBuf, found: String, wanted: String },
    /// The disk cannot read a file, or a part of it.
    #[error("{} cannot be read: {}", path.display(), without_numbers(why))]
    BadSectors { path: PathBuf, why: String },
    /// The bytes of the file are wrong.
    #[error("{} cannot be opened: {why}", path.display())]
    Corrupt { path: PathBuf, why: String },
}

impl OpenError {
    /// Whether the error may pass without a change of the configuration: the disk fails, is full or is not mounted yet, or
    /// the file system became read-only after an error.
    pub fn is_transient(&self) -> bool {
        self.is_disk_error() || self.is_unwritable() || self.is_absence()
    }

    /// Whether the files are elsewhere, or are being put back.
    pub fn is_absence(&self) -> bool {
        matches!(self, OpenError::Gone(_) | OpenError::LinkToNothing(_) | OpenError::Settling(_))
    }

    /// Whether the disk is full or read-only: then no other file can be written either.
    pub fn is_unwritable(&self) -> bool {
        let is_unwritable =
            |source| matches!(Errno::from_io_error(source), Some(Errno::NOSPC | Errno::DQUOT | Errno::ROFS));
        match self {
            OpenError::NoRoom { .. } => true,
            OpenError::Io { source, .. } => is_unwritable(source),
            _ => false,
        }
    }

    /// Whether the disk failed to read or to write; the engine does not say which.
    pub fn is_disk_error(&self) -> bool {
        match self {
            OpenError::BadSectors { .. } => true,
            OpenError::Io { source, .. } => files::is_bad_sector(source),
            _ => false,
        }
    }
}

/// Why a read or a commit failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine or the disk failed.
    #[error("storage failed: {}", without_numbers(.0))]
    Storage(#[from] Box<redb::Error>),
    /// The engine panicked; most likely the file is damaged.
    #[error("storage failed: the storage engine panicked: {0}")]
    EnginePanicked(String),
    /// The path leads to another file than the open one, or to none. What is written is gone with the next opening.
    #[error("{} was removed or replaced", .0.display())]
    FileGone(PathBuf),
    /// The store failed, was closed, and is being opened again.
    #[error("the store is being opened again")]
    Closed,
    /// A row of the index breaks the order of its table.
    #[error("the index is damaged: a row is out of order")]
    IndexRowMisplaced,
    /// An entry that must exist is missing or fails its check.
    #[error("entry {seq} of log {origin} is damaged")]
    Damaged { origin: Origin, seq: u64 },
    /// The entry was removed because its log was cut after the reader took its vector. The entry is in a branch now.
    #[error("log {origin} was cut meanwhile: its entry {seq} has moved to another log")]
    CutOff { origin: Origin, seq: u64 },
}

impl StoreError {
    /// This error as the reason why a file does not open.
    pub(in crate::store) fn while_opening(self, path: PathBuf) -> OpenError {
        match self {
            StoreError::Storage(error) => files::classify_error(path, *error),
            other => OpenError::Corrupt { path, why: other.to_string() },
        }
    }
}

/// redb has one error type per operation; here all of them mean that storage failed.
macro_rules! storage_errors {
    ($($kind:ty),*) => {$(
        impl From<$kind> for StoreError {
            fn from(error: $kind) -> Self {
                StoreError::Storage(Box::new(error.into()))
            }
        }
    )*};
}
storage_errors!(
    redb::DatabaseError,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::SetDurabilityError
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_shown_without_their_number() {
        let full = || std::io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error());
        let opening = OpenError::Io { path: "d".into(), source: full() };
        let writing = StoreError::Storage(Box::new(redb::Error::Io(full())));
        let bad = OpenError::BadSectors { path: "d".into(), why: format!("the disk: {}", full()) };
        for shown in [opening.to_string(), writing.to_string(), bad.to_string()] {
            assert!(shown.ends_with("No space left on device"), "{shown}");
        }
    }
}
