//! Owns what happens when the log file (`log.redb`) does not open: it is set aside, and a new one is made of every
//! intact record in it.
//!
//! Called by `Store::open_in`; calls `log` to open and [`mod@salvage`] to make the new file. Must not know why a policy
//! was chosen (see [`open_rules`]).
//!
//! Invariants: no file that held a record is ever deleted. The new file is complete before the damaged one is renamed.
//! If the power fails between the two renames, or an operator removes `log.redb` alone, the next opening salvages
//! again, from all files that were set aside. A salvage follows from wrong bytes, also if they are only found when the
//! index is built, from an empty file, from a missing file beside set-aside ones or a filled index, from bad sectors under
//! [`OpenPolicy::AcceptLoss`], and from [`OpenPolicy::SalvageLog`]. A disk that does not write, a file in use, of
//! another network or of a newer program is an error.

pub mod crash_count;
pub(super) mod lossy_file;
pub mod open_rules;
pub(super) mod record_scan;
pub mod salvage;
pub mod verify;

use std::io;
use std::path::PathBuf;

use crate::chain::logs::LogsOnDisk;
use crate::chain::record::FORMAT;
use crate::store::engine::files::{Files, INDEX, LOG, OpenMode, SALVAGING};
use crate::store::index::Index;
use crate::store::log::{LogFile, NotOpen};
use crate::store::recovery::lossy_file::LossyFile;
use crate::store::recovery::salvage::{Salvaged, salvage};
use crate::store::{OpenError, OpenPolicy};

/// Files up to this size are checked at every opening, which takes half a second at most if the system has them in
/// memory. redb trusts the pages of a larger one: damage shows when something is read, or when redb writes to pages
/// that it wrongly takes for free.
const CHECKED_BYTES_MAX: u64 = 512 << 20;

/// Name of a file that was set aside, before the time.
const DAMAGED_PREFIX: &str = "log.redb.damaged-";

pub(in crate::store) const MISSING: &str = "it is missing";
/// All of the log is lost, or its disk is not mounted. The node takes what its peers have, and its operator must know.
const MISSING_BESIDE_INDEX: &str = "it is missing, although its index is there";

/// A salvage that was needed at this opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// What was wrong, as a sentence.
    pub why: String,
    /// What became of the records in it, and in the files set aside earlier.
    pub salvaged: Salvaged,
}

pub(in crate::store) struct OpenedLog {
    pub(in crate::store) log: LogFile,
    pub(in crate::store) found: LogsOnDisk,
    pub(in crate::store) recovery: Option<Recovery>,
    pub(in crate::store) damaged_files: Vec<PathBuf>,
}

pub(in crate::store) fn open_mode(files: &dyn Files, name: &str, policy: OpenPolicy) -> OpenMode {
    let is_small = files.len(name).is_ok_and(|len| len.is_some_and(|len| len <= CHECKED_BYTES_MAX));
    if is_small || policy.is_strict() { OpenMode::Checked } else { OpenMode::Unchecked }
}

/// Whether there is a log, or one that was set aside.
pub(in crate::store) fn has_store(files: &dyn Files) -> Result<bool, OpenError> {
    let unreadable = |source| OpenError::Io { path: files.path(LOG), source };
    if files.len(LOG).map_err(unreadable)?.is_some() {
        return Ok(true);
    }
    match files.names() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false), // no directory
        names => Ok(names.map_err(unreadable)?.iter().any(|name| name.starts_with(DAMAGED_PREFIX))),
    }
}

/// Fails if there is no regular file where one of the databases belongs.
pub(in crate::store) fn check_regular(files: &dyn Files) -> Result<(), OpenError> {
    [LOG, INDEX].into_iter().try_for_each(|name| files.check_regular(name))
}

/// Fails if the log is of an earlier format. Nothing is written before: the program that wrote the file may still read
/// it.
pub(in crate::store) fn check_format(files: &dyn Files) -> Result<(), OpenError> {
    // A missing or unreadable file is looked at again when it is opened.
    let source = LossyFile::new(files, LOG, true).ok();
    let known = u32::from(FORMAT);
    match source.map(record_scan::first_format) {
        Some(Ok(Some(found))) if found != known => {
            Err(OpenError::OtherFormat { path: files.path(LOG), found, known })
        }
        _ => Ok(()),
    }
}

/// Opens the log, if there is a file that can be one. Without a network: as [`LogFile::open`]. `must_exist`: what it
/// means that there is none; without that one is created.
pub(in crate::store) fn open_existing(
    files: &dyn Files,
    network: Option<&str>,
    mode: OpenMode,
    must_exist: Option<&str>,
) -> Result<(LogFile, LogsOnDisk), NotOpen> {
    let path = files.path(LOG);
    let corrupt = |why: &str| OpenError::Corrupt { path: path.clone(), why: why.into() };
    match (files.len(LOG), must_exist) {
        (Err(source), _) => Err(OpenError::Io { path, source }.into()),
        (Ok(None), Some(why)) => Err(corrupt(why).into()),
        // redb would make a new one of it. Our files are never empty: they are put in place when they are complete.
        (Ok(Some(0)), _) => Err(corrupt("it is empty").into()),
        (Ok(_), _) => LogFile::open(files, network, mode),
    }
}

pub(in crate::store) struct Opening<'a> {
    pub(in crate::store) files: &'a dyn Files,
    pub(in crate::store) network: &'a str,
    pub(in crate::store) now_ms: u64,
    pub(in crate::store) policy: OpenPolicy,
}

impl Opening<'_> {
    /// Opens or creates the log, or salvages it.
    pub(in crate::store) fn open_log(&self) -> Result<OpenedLog, OpenError> {
        let damaged = damaged_files(self.files)?;
        let opened = if self.policy == OpenPolicy::SalvageLog && self.has_log() {
            let why = "a process that opens it crashes".into();
            Err(OpenError::Corrupt { path: self.files.path(LOG), why }.into())
        } else {
            let mode = open_mode(self.files, LOG, self.policy);
            let must_exist = match damaged.is_empty() {
                false => Some(MISSING),
                true if !self.has_log() && Index::covers_entries(self.files) => Some(MISSING_BESIDE_INDEX),
                true => None,
            };
            open_existing(self.files, Some(self.network), mode, must_exist)
        };
        match opened {
            Ok((log, found)) => {
                Ok(OpenedLog { log, found, recovery: None, damaged_files: self.paths(&damaged) })
            }
            // The database, if it is open, stays open meanwhile: closing it writes to the file.
            Err(NotOpen { ref error, .. }) if self.must_salvage(error)? => self.salvage_log(error),
            Err(NotOpen { error, .. }) => Err(error),
        }
    }

    fn has_log(&self) -> bool {
        self.files.len(LOG).is_ok_and(|len| len.is_some())
    }

    /// Whether a log that does not open because of this error is salvaged. A disk error leads to it only if the file
    /// has a bad sector: a disk that does not write has lost nothing.
    pub(in crate::store) fn must_salvage(&self, error: &OpenError) -> Result<bool, OpenError> {
        match error {
            OpenError::Corrupt { .. } => Ok(true),
            error if self.policy == OpenPolicy::AcceptLoss && error.is_disk_error() => {
                Ok(self.has_log() && !lossy_file::is_whole(self.files, LOG)?)
            }
            _ => Ok(false),
        }
    }

    /// Sets the log aside and opens a new one of what is intact in it and in the files set aside earlier.
    pub(in crate::store) fn salvage_log(&self, error: &OpenError) -> Result<OpenedLog, OpenError> {
        let why = match error {
            OpenError::Corrupt { why, .. } => why.clone(),
            OpenError::Io { source, .. } => format!("the disk cannot read all of it: {source}"),
            other => other.to_string(),
        };
        let path = self.files.path(LOG);
        tracing::warn!(why, path = %path.display(), "the log is damaged: salvaging the intact records");
        let failed = |source: io::Error| OpenError::Io { path: path.clone(), source };
        let mut damaged = damaged_files(self.files)?;
        // Newest first: its records keep their keys.
        let mut sources: Vec<String> = damaged.iter().rev().cloned().collect();
        let has_log = self.files.len(LOG).map_err(failed)?.is_some();
        if has_log {
            sources.insert(0, LOG.into());
        }
        self.check_room(&sources)?;
        let accept_loss = self.policy == OpenPolicy::AcceptLoss;
        let salvaged = salvage(self.files, &sources, self.network, accept_loss)?;
        if has_log {
            let name = free_name(&damaged, self.now_ms);
            self.files.rename(LOG, &name).map_err(failed)?;
            damaged.push(name);
        }
        self.files.rename(SALVAGING, LOG).map_err(failed)?;
        tracing::warn!(?salvaged, damaged_files = ?damaged, "the log was salvaged; the damaged files are kept");
        let opened = LogFile::open(self.files, Some(self.network), OpenMode::Unchecked);
        let (log, found) = opened.map_err(|not_open| not_open.error)?;
        let recovery = Some(Recovery { why, salvaged });
        Ok(OpenedLog { log, found, recovery, damaged_files: self.paths(&damaged) })
    }

    /// Fails if the disk certainly has no room for the records of these files, before all of them are read.
    fn check_room(&self, sources: &[String]) -> Result<(), OpenError> {
        let (mut needed, free) = (0, self.files.free_bytes());
        for source in sources {
            let path = || self.files.path(source);
            let len = self.files.len(source).map_err(|source| OpenError::Io { path: path(), source })?;
            needed = needed.max(len.unwrap_or(0) / 2); // a file grows in doublings: up to half of it may be empty
        }
        let path = self.files.path(LOG);
        if free < needed { Err(OpenError::NoRoom { path, needed, free }) } else { Ok(()) }
    }

    fn paths(&self, names: &[String]) -> Vec<PathBuf> {
        names.iter().map(|name| self.files.path(name)).collect()
    }
}

/// The names of the damaged files that were set aside, oldest first.
pub(in crate::store) fn damaged_files(files: &dyn Files) -> Result<Vec<String>, OpenError> {
    let unreadable = |source| OpenError::Io { path: files.path(LOG), source };
    let mut names = files.names().map_err(unreadable)?;
    names.retain(|name| name.starts_with(DAMAGED_PREFIX));
    // Within one second: the plain name, then -2, …
    let time = |name: &str| name.get(..DAMAGED_PREFIX.len() + TIME_BYTES).map(str::to_owned);
    names.sort_by_key(|name| (time(name), name.len(), name.clone()));
    Ok(names)
}

/// Length of `20261122T154800Z`.
const TIME_BYTES: usize = 16;

fn free_name(taken: &[String], now_ms: u64) -> String {
    let time =
        jiff::Timestamp::from_millisecond(i64::try_from(now_ms).unwrap_or(i64::MAX)).unwrap_or_default();
    let first = format!("{DAMAGED_PREFIX}{}", time.strftime("%Y%m%dT%H%M%SZ"));
    let name = |number: u64| if number == 1 { first.clone() } else { format!("{first}-{number}") };
    (1..=u64::MAX).map(name).find(|name| !taken.contains(name)).expect("fewer names are taken")
}
