//! Owns the files of a store: how redb opens them, and how else they are read, renamed and locked.
//!
//! In production they are in a directory. The simulation keeps them in memory, so that it can simulate a power failure
//! between any two writes. Must not know what is in them.
//!
//! Invariant: when a rename, a removal or a replacement returns, it survives a power failure. A new database survives
//! once its directory is synced, which `Store::open_with` does at the end.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError};
use rustix::fs::{Advice, CWD, FlockOperation, RenameFlags, fadvise, flock, renameat_with, statvfs};
use rustix::io::Errno;

use crate::store::OpenError;

/// The logs: the source of truth.
pub const LOG: &str = "log.redb";
/// Derived from [`LOG`].
pub const INDEX: &str = "index.redb";
/// A new log while a salvage writes it; renamed to [`LOG`] once it is complete.
pub const SALVAGING: &str = "log.salvaging";
/// The crash marker (see `recovery/crash_count`). Absent after a clean stop.
pub const CRASH_MARKER: &str = "unproven";

/// Extension of a file while it is written.
const UNFINISHED: &str = "unfinished";

/// redb's page cache while an empty database is written.
const MAKING_CACHE_BYTES: usize = 1 << 20;

/// How a database is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Without checking its pages; created if it is missing.
    Unchecked,
    /// After every page was checked; created if it is missing.
    Checked,
    /// Empty; replaces an existing file.
    Replace,
}

/// Which file a path leads to. A file that replaces another one has another identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    pub device: u64,
    pub inode: u64,
}

impl FileIdentity {
    fn of(file: &fs::Metadata) -> Self {
        FileIdentity { device: file.dev(), inode: file.ino() }
    }
}

/// An open database, and which file it is in.
#[derive(Debug)]
pub struct OpenedFile {
    pub db: Database,
    pub identity: FileIdentity,
}

/// A place for files.
pub trait Files: fmt::Debug + Send + Sync {
    fn boxed(&self) -> Box<dyn Files>;

    fn database(&self, name: &str, cache_bytes: usize, how: OpenMode) -> Result<OpenedFile, OpenError>;

    fn path(&self, name: &str) -> PathBuf;

    /// Which file the path leads to now. An error if it leads to none.
    fn identity(&self, name: &str) -> io::Result<FileIdentity>;

    /// Locks the files against other processes while the result is held. `None`: this place needs no lock or has none.
    fn lock(&self) -> Result<Option<File>, OpenError>;

    /// Bytes that can still be written; `u64::MAX` if that is unknown.
    fn free_bytes(&self) -> u64;

    fn names(&self) -> io::Result<Vec<String>>;

    /// The length of a file in bytes; `None` if it is missing.
    fn len(&self, name: &str) -> io::Result<Option<u64>>;

    /// Fails if there is something else than a regular file: opening it, or reading from it, might take forever. Also
    /// fails if there is a link that leads to nothing.
    fn check_regular(&self, _name: &str) -> Result<(), OpenError> {
        Ok(()) // a place without pipes and devices
    }

    fn open_raw(&self, name: &str) -> io::Result<Box<dyn FileBytes>>;

    /// Writes a file atomically; replaces an existing one.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Renames a file. The new name must be free.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    fn remove(&self, name: &str) -> io::Result<()>;

    /// Drops a file from the system's page cache, so that the next read comes from the disk.
    fn drop_page_cache(&self, name: &str);
}

/// Random access to the raw bytes of a file, so that an unreadable part does not hide the rest.
#[expect(clippy::len_without_is_empty, reason = "not needed")]
pub trait FileBytes {
    fn len(&self) -> io::Result<u64>;

    /// Reads up to `out.len()` bytes from `offset` on; 0 at the end of the file.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize>;
}

impl FileBytes for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, out, offset)
    }
}

/// Whether this error means that the disk cannot read stored bytes: as file systems report it (`EIO`), as drivers do
/// (`ENODATA`, "critical medium error"), and after a failed checksum of the file system (`EBADMSG`).
pub fn is_bad_sector(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::NODATA | Errno::BADMSG))
}

#[derive(Debug, Clone)]
pub struct Directory(pub PathBuf);

impl Files for Directory {
    fn boxed(&self) -> Box<dyn Files> {
        Box::new(self.clone())
    }

    fn database(&self, name: &str, cache_bytes: usize, how: OpenMode) -> Result<OpenedFile, OpenError> {
        let path = self.path(name);
        let replaces = how == OpenMode::Replace;
        if replaces || !path.exists() {
            self.make_empty(&path, replaces)?;
        }
        self.open(&path, cache_bytes, how == OpenMode::Checked)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn identity(&self, name: &str) -> io::Result<FileIdentity> {
        Ok(FileIdentity::of(&fs::metadata(self.path(name))?))
    }

    fn lock(&self) -> Result<Option<File>, OpenError> {
        let dir = File::open(&self.0).map_err(|source| OpenError::Io { path: self.0.clone(), source })?;
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(OpenError::InUse(self.0.clone())),
            // This file system cannot lock a directory: redb's lock on each database remains.
            Err(_) => Ok(None),
            Ok(()) => Ok(Some(dir)),
        }
    }

    fn free_bytes(&self) -> u64 {
        statvfs(&self.0).map_or(u64::MAX, |fs| fs.f_bavail * fs.f_frsize)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.0)?.map(|file| Ok(file?.file_name().into_string().ok()));
        names.filter_map(Result::transpose).collect()
    }

    fn len(&self, name: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => Ok(Some(found?.len())),
        }
    }

    fn check_regular(&self, name: &str) -> Result<(), OpenError> {
        let path = self.path(name);
        let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
        let is_nothing = || fs::metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if is_link && is_nothing() {
            return Err(OpenError::LinkToNothing(path));
        }
        check_regular(&path).map_err(|_| OpenError::NotAFile(path))
    }

    fn open_raw(&self, name: &str) -> io::Result<Box<dyn FileBytes>> {
        let path = self.path(name);
        check_regular(&path)?;
        Ok(Box::new(File::open(path)?))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        let unfinished = path.with_extension(UNFINISHED);
        check_regular(&unfinished)?;
        let mut file = private().write(true).truncate(true).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&unfinished, &path)?;
        sync_directory(&self.0);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from), self.path(to));
        match renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
            // This file system does not support NOREPLACE.
            Err(Errno::INVAL | Errno::NOSYS) if !to.exists() => fs::rename(&from, &to)?,
            moved => moved?,
        }
        sync_directory(&self.0);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => sync_directory(&self.0),
        }
        Ok(())
    }

    fn drop_page_cache(&self, name: &str) {
        // Advice only: without the file or the system's support nothing changes.
        let path = self.path(name);
        if check_regular(&path).is_ok()
            && let Ok(file) = File::open(path)
        {
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
}

/// Fails if there is something else than a regular file. Without a file it is fine: one can be created.
pub fn check_regular(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
        }
        _ => Ok(()),
    }
}

/// Creates a file that only its owner can read: a key protects what is in it.
fn private() -> OpenOptions {
    let mut options = File::options();
    options.create(true).mode(0o600);
    options
}

/// Creates a directory that only its owner can read, and its parents. If it exists, other users lose their rights to it
/// and to its files: earlier programs let them read a store.
pub fn make_private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if let Err(error) = deny_others(path) {
        tracing::warn!(path = %path.display(), %error, "other users of this machine may be able to read this store");
    }
    Ok(())
}

/// The permissions of group and others.
const GROUP_AND_OTHERS: u32 = 0o077;

/// Takes the permissions of all users but the owner from a directory and its files.
fn deny_others(dir: &Path) -> io::Result<()> {
    let files = fs::read_dir(dir)?.map(|file| Ok(file?.path())).collect::<io::Result<Vec<_>>>()?;
    for path in [dir.to_owned()].into_iter().chain(files) {
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // removed meanwhile
            found => found?,
        };
        // The target of a link, and a device, may serve other programs.
        if !(found.is_file() || path == dir && found.is_dir()) {
            continue;
        }
        let mode = found.permissions().mode();
        if mode & GROUP_AND_OTHERS != 0 {
            fs::set_permissions(path, Permissions::from_mode(mode & !GROUP_AND_OTHERS))?;
        }
    }
    Ok(())
}

impl Directory {
    fn open(&self, path: &Path, cache_bytes: usize, check: bool) -> Result<OpenedFile, OpenError> {
        let failed = |source| OpenError::Io { path: path.to_owned(), source };
        check_regular(path).map_err(|_| OpenError::NotAFile(path.to_owned()))?;
        let file = private().read(true).write(true).truncate(false).open(path);
        let file = file.map_err(failed)?;
        let identity = FileIdentity::of(&file.metadata().map_err(failed)?);
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes).set_check_integrity_on_open(check);
        let opened = FileBackend::new(file).and_then(|file| builder.create_with_backend(file));
        let db = opened.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(self.0.clone()),
            other => classify_error(path.to_owned(), other.into()),
        })?;
        Ok(OpenedFile { db, identity })
    }

    /// Creates an empty database atomically: after a power failure while redb creates a file, redb cannot open it.
    /// Without `replaces`, a file that another process has created meanwhile stays.
    fn make_empty(&self, path: &Path, replaces: bool) -> Result<(), OpenError> {
        let unfinished = path.with_extension(UNFINISHED);
        let _ = fs::remove_file(&unfinished); // left by a process that was killed here; if this fails, opening reports it
        drop(self.open(&unfinished, MAKING_CACHE_BYTES, false)?);
        let flags = if replaces { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let moved = match renameat_with(CWD, &unfinished, CWD, path, flags) {
            // This file system does not support NOREPLACE.
            Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&unfinished, path),
            Err(Errno::EXIST) => fs::remove_file(&unfinished),
            moved => moved.map_err(io::Error::from),
        };
        moved.map_err(|source| OpenError::Io { path: path.to_owned(), source })
    }
}

/// What a redb error says about a file: its bytes are wrong, or the system could not read or write it, which is no
/// damage to the file.
pub fn classify_error(path: PathBuf, error: redb::Error) -> OpenError {
    let is_about_bytes =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof);
    match error {
        redb::Error::Io(source) if !is_about_bytes(&source) => OpenError::Io { path, source },
        redb::Error::PreviousIo => OpenError::Io { path, source: io::Error::other(error) },
        other => OpenError::Corrupt { path, why: other.to_string() },
    }
}

/// Whether redb only reports that an earlier read or write failed. The cause is unknown; it may be a read beyond the
/// end of the file, because damaged pages point anywhere.
pub(in crate::store) fn is_previous_io_error(error: &OpenError) -> bool {
    let OpenError::Io { source, .. } = error else { return false };
    let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<redb::Error>());
    matches!(inner, Some(redb::Error::PreviousIo))
}

/// Makes renames in this directory durable. A system that cannot sync a directory, or a directory that we may not read,
/// is not an error.
pub(in crate::store) fn sync_directory(dir: &Path) {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    if let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
        tracing::debug!(dir = %dir.display(), %error, "cannot sync a directory");
    }
}
