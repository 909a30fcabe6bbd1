//! Owns where the two files of a store lie, and how redb opens them.
//!
//! A directory in life; memory in the simulation, which can then pull the plug between any two writes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use redb::{Builder, Database, DatabaseError, StorageError};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::OpenError;

/// The truth.
pub const LOG: &str = "log.redb";
/// What is derived from it.
pub const INDEX: &str = "index.redb";

/// For the moment in which an empty file is made.
const MAKING_CACHE_BYTES: usize = 1 << 20;

/// Where files lie.
pub trait Files {
    /// Opens a file, or makes it. `afresh`: empty, in place of whatever is there.
    fn database(&self, name: &str, cache_bytes: usize, afresh: bool) -> Result<Database, OpenError>;

    /// How a file is called in sentences.
    fn path(&self, name: &str) -> PathBuf;
}

/// A directory on disk.
#[derive(Debug, Clone, Copy)]
pub struct Directory<'a>(pub &'a Path);

impl Files for Directory<'_> {
    fn database(&self, name: &str, cache_bytes: usize, afresh: bool) -> Result<Database, OpenError> {
        let path = self.path(name);
        if afresh || !path.exists() {
            self.make(&path, afresh)?;
        }
        self.open(&path, cache_bytes)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Directory<'_> {
    fn open(&self, path: &Path, cache_bytes: usize) -> Result<Database, OpenError> {
        Builder::new().set_cache_size(cache_bytes).create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(self.0.to_owned()),
            DatabaseError::Storage(StorageError::Io(source))
                if source.kind() != io::ErrorKind::InvalidData =>
            {
                OpenError::Directory { path: path.to_owned(), source }
            }
            other => OpenError::Broken { path: path.to_owned(), why: other.to_string() },
        })
    }

    /// Puts an empty database there, whole or not at all: a power failure while redb makes a file leaves one that it
    /// does not open again. Unless `afresh`, a file that another process has made meanwhile stays.
    fn make(&self, path: &Path, afresh: bool) -> Result<(), OpenError> {
        let unfinished = path.with_extension("unfinished");
        let _ = fs::remove_file(&unfinished); // of a process that was killed here; if it cannot go, opening says so
        drop(self.open(&unfinished, MAKING_CACHE_BYTES)?);
        let flags = if afresh { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let moved = match renameat_with(CWD, &unfinished, CWD, path, flags) {
            // A file system that cannot refuse to replace.
            Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&unfinished, path),
            Err(Errno::EXIST) => fs::remove_file(&unfinished),
            moved => moved.map_err(io::Error::from),
        };
        moved.map_err(|source| OpenError::Directory { path: path.to_owned(), source })
    }
}
