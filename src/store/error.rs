//! Owns the errors of a store: why it cannot be opened, and why a read or a commit failed.

use std::path::PathBuf;

use rustix::io::Errno;

use super::engine::files;
use crate::chain::ids::Origin;

/// Why a store cannot be opened. Each is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made or used.
    #[error("the data directory {} cannot be used: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error("the data directory {} is in use by another process; stop that one first", .0.display())]
    InUse(PathBuf),
    /// Written by a newer program.
    #[error("{} has format {found}; this program knows formats up to {known}: use a newer chatchain", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What we can read.
        known: u32,
    },
    /// It belongs to another network.
    #[error("{} belongs to the network {found:?}, not to {wanted:?}; set `network` to that or use another data directory", path.display())]
    OtherNetwork {
        /// The file.
        path: PathBuf,
        /// The network it was made for.
        found: String,
        /// The network of the configuration.
        wanted: String,
    },
    /// The disk does not give a file, or not all of it.
    #[error("{} cannot be read: {why}", path.display())]
    DiskUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system says, or how much of it.
        why: String,
    },
    /// The file is not what we wrote.
    #[error("{} cannot be opened: {why}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl OpenError {
    /// Whether it can be otherwise a moment later without anybody changing the configuration: the disk fails or is full, or
    /// its file system lets nobody write since it met an error.
    pub fn is_transient(&self) -> bool {
        let passing = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS];
        let passes = |source| Errno::from_io_error(source).is_some_and(|errno| passing.contains(&errno));
        self.is_disk_error() || matches!(self, OpenError::Directory { source, .. } if passes(source))
    }

    /// Whether the disk would not read or would not write; the engine does not say which.
    pub fn is_disk_error(&self) -> bool {
        match self {
            OpenError::DiskUnreadable { .. } => true,
            OpenError::Directory { source, .. } => files::is_unreadable(source),
            _ => false,
        }
    }
}

/// Why a read or a commit failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine or the disk failed.
    #[error("storage failed: {0}")]
    Storage(#[from] Box<redb::Error>),
    /// The engine gave up over what it read; most likely the file is damaged.
    #[error("storage failed: the storage engine cannot make sense of it: {0}")]
    EnginePanicked(String),
    /// The store was closed, because it failed; it is opened anew.
    #[error("the store is being opened anew")]
    Closed,
    /// A row of the index is not where it must be.
    #[error("the index is damaged: a row is not in its place")]
    IndexRowMisplaced,
    /// An entry that must be there does not check, or is not there.
    #[error("entry {seq} of log {origin} is damaged")]
    Damaged {
        /// Its log.
        origin: Origin,
        /// Its place.
        seq: u64,
    },
    /// An entry was removed, because its log was cut after whoever reads looked at the logs. It stands in a branch.
    #[error("log {origin} was cut meanwhile: its entry {seq} has moved to another log")]
    CutOff {
        /// Its log.
        origin: Origin,
        /// Its former place.
        seq: u64,
    },
}

/// redb has one error type per operation; here they all mean that storage failed.
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
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::SetDurabilityError
);
