//! Owns where the files of a store lie, how redb opens them, and how else they are read, moved and locked.
//!
//! A directory in life; memory in the simulation, which can then pull the plug between any two writes. What is renamed
//! or removed here is so for good, also through a power failure, when the call returns.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use redb::{Builder, Database, DatabaseError};
use rustix::fs::{Advice, CWD, FlockOperation, RenameFlags, fadvise, flock, renameat_with};
use rustix::io::Errno;

use crate::store::OpenError;

/// The truth.
pub const LOG: &str = "log.redb";
/// What is derived from it.
pub const INDEX: &str = "index.redb";
/// A log that is being made of what was salvaged; it becomes [`LOG`] when it is complete.
pub const SALVAGING: &str = "log.salvaging";

/// What is remembered of those who had the store open (see [`session`](super::session)); mostly it is not there.
pub const CRASH_MARKER: &str = "unproven";

/// How a file is called while it is made, behind its name.
const UNFINISHED: &str = "unfinished";

/// For the moment in which an empty file is made.
const MAKING_CACHE_BYTES: usize = 1 << 20;

/// How a database is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// As it lies there, made if it does not.
    Unchecked,
    /// With every page of it checked first.
    Checked,
    /// Empty, in place of whatever is there.
    Replace,
}

/// Where files lie.
pub trait Files: fmt::Debug + Send + Sync {
    /// The same files, for as long as somebody needs them.
    fn boxed(&self) -> Box<dyn Files>;

    /// Opens a database.
    fn database(&self, name: &str, cache_bytes: usize, how: OpenMode) -> Result<Database, OpenError>;

    /// How a file is called in sentences.
    fn path(&self, name: &str) -> PathBuf;

    /// Keeps everybody else away as long as it is held. `None` where nobody else can be.
    fn lock(&self) -> Result<Option<File>, OpenError>;

    /// The names of all files.
    fn names(&self) -> io::Result<Vec<String>>;

    /// How long a file is; `None`: there is none.
    fn len(&self, name: &str) -> io::Result<Option<u64>>;

    /// The bytes of a file as they lie there.
    fn open_raw(&self, name: &str) -> io::Result<Box<dyn FileBytes>>;

    /// Puts a file there, in place of whatever is called so: whole or not at all.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Gives a file another name, which must be free.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file, if it is there.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Forgets what the system keeps of a file in memory, so that what is read next comes from the disk.
    fn drop_page_cache(&self, name: &str);
}

/// The bytes of a file, to be had from anywhere: what cannot be read must not hide what lies behind it.
#[expect(clippy::len_without_is_empty, reason = "nobody asks")]
pub trait FileBytes {
    /// How many there are.
    fn len(&self) -> io::Result<u64>;

    /// Reads some of those from `offset` on, as many as `out` has room for at the most; 0 behind the last.
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

/// Whether this is what a system says of a disk that does not give what it should have: as file systems put it, as a
/// driver does ("critical medium error"), and where a file system's own checks failed.
pub fn is_unreadable(error: &io::Error) -> bool {
    let of_the_disk = [Errno::IO, Errno::NODATA, Errno::BADMSG];
    Errno::from_io_error(error).is_some_and(|errno| of_the_disk.contains(&errno))
}

/// A directory on disk.
#[derive(Debug, Clone)]
pub struct Directory(pub PathBuf);

impl Files for Directory {
    fn boxed(&self) -> Box<dyn Files> {
        Box::new(self.clone())
    }

    fn database(&self, name: &str, cache_bytes: usize, how: OpenMode) -> Result<Database, OpenError> {
        let path = self.path(name);
        let afresh = how == OpenMode::Replace;
        if afresh || !path.exists() {
            self.make_empty(&path, afresh)?;
        }
        self.open(&path, cache_bytes, how == OpenMode::Checked)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn lock(&self) -> Result<Option<File>, OpenError> {
        let dir =
            File::open(&self.0).map_err(|source| OpenError::Directory { path: self.0.clone(), source })?;
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(OpenError::InUse(self.0.clone())),
            // A file system that cannot lock a directory: what redb locks must do.
            Err(_) => Ok(None),
            Ok(()) => Ok(Some(dir)),
        }
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

    fn open_raw(&self, name: &str) -> io::Result<Box<dyn FileBytes>> {
        Ok(Box::new(File::open(self.path(name))?))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        let unfinished = path.with_extension(UNFINISHED);
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&unfinished, &path)?;
        sync_directory(&self.0);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from), self.path(to));
        match renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
            // A file system that cannot refuse to replace.
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
        // Where it is not there or the system will not, there is nothing to be done about it.
        if let Ok(file) = File::open(self.path(name)) {
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
}

impl Directory {
    fn open(&self, path: &Path, cache_bytes: usize, check: bool) -> Result<Database, OpenError> {
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes).set_check_integrity_on_open(check);
        builder.create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(self.0.clone()),
            other => classify_error(path.to_owned(), other.into()),
        })
    }

    /// Puts an empty database there, whole or not at all: a power failure while redb makes a file leaves one that it
    /// does not open again. Unless `afresh`, a file that another process has made meanwhile stays.
    fn make_empty(&self, path: &Path, afresh: bool) -> Result<(), OpenError> {
        let unfinished = path.with_extension(UNFINISHED);
        let _ = fs::remove_file(&unfinished); // of a process that was killed here; if it cannot go, opening says so
        drop(self.open(&unfinished, MAKING_CACHE_BYTES, false)?);
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

/// What an error of redb says of a file: that its bytes are wrong, or that the disk or the system would not have it
/// read or written, which is no damage of the file.
pub fn classify_error(path: PathBuf, error: redb::Error) -> OpenError {
    let is_about_bytes =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof);
    match error {
        redb::Error::Io(source) if !is_about_bytes(&source) => OpenError::Directory { path, source },
        redb::Error::PreviousIo => OpenError::Directory { path, source: io::Error::other(error) },
        other => OpenError::Corrupt { path, why: other.to_string() },
    }
}

/// Whether redb only says that an earlier read or write failed. Which one, it told nobody; it may have been a read behind
/// the end of the file, for damaged pages point anywhere.
pub(in crate::store) fn is_previous_io_error(error: &OpenError) -> bool {
    let OpenError::Directory { source, .. } = error else { return false };
    let said = source.get_ref().and_then(|inner| inner.downcast_ref::<redb::Error>());
    matches!(said, Some(redb::Error::PreviousIo))
}

/// What was renamed is safe from a power failure only once the directory is. Where a system cannot do that, or we may
/// not read it, it is no worse than without.
pub(in crate::store) fn sync_directory(dir: &Path) {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    if let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
        tracing::debug!(dir = %dir.display(), %error, "cannot sync a directory");
    }
}
