//! Owns what is done about a `log.redb` that does not open: it is set aside, and a new one is made of every record in it
//! that checks.
//!
//! Nothing is ever deleted here that held a record. The new file is complete before the damaged one gives its name
//! away; should the power fail between the two renames, or somebody remove `log.redb` alone, the next start salvages
//! again, from all files that were set aside. Only wrong bytes lead here, and bytes that the disk does not give when
//! whoever opens the store has lost patience ([`Trust::Unreadable`]): a disk that would not read or write, a file in use,
//! of another network or of a newer program is refused as it is.

pub mod crash_count;
pub(super) mod lossy_file;
pub mod open_rules;
pub(super) mod record_scan;
pub mod salvage;
pub mod verify;

use std::io;
use std::path::PathBuf;

use crate::chain::logs::LogsOnDisk;
use crate::store::engine::files::{Files, LOG, OpenMode, SALVAGING};
use crate::store::log::{Log, NotOpen};
use crate::store::recovery::salvage::{SalvageJob, Salvaged, salvage};
use crate::store::{OpenError, OpenPolicy};

/// A file up to this size is checked at every opening, which takes about half a second at the most when the system has
/// it in memory. redb trusts the pages of a larger one: damage shows when something is read, or when it writes to pages
/// that it wrongly takes for free.
const CHECKED_BYTES_MAX: u64 = 512 << 20;

/// How a file that was set aside is called, before the time.
const DAMAGED_PREFIX: &str = "log.redb.damaged-";

/// What was done because `log.redb` could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// What was wrong, as a sentence.
    pub why: String,
    /// Where the damaged file is now; `None` if there was none.
    pub set_aside: Option<PathBuf>,
    /// What became of the records in it, and in those set aside earlier.
    pub salvaged: Salvaged,
}

/// An open log, and how it came to be open.
pub(in crate::store) struct OpenedLog {
    pub(in crate::store) log: Log,
    pub(in crate::store) found: LogsOnDisk,
    pub(in crate::store) recovery: Option<Recovery>,
    pub(in crate::store) set_aside: Vec<PathBuf>,
}

/// How a file is opened with this trust in it.
pub(in crate::store) fn open_mode(files: &dyn Files, name: &str, trust: OpenPolicy) -> OpenMode {
    match trust {
        trust if trust.checks_every_page() => OpenMode::Checked,
        OpenPolicy::Default
            if files.len(name).is_ok_and(|len| len.is_some_and(|len| len <= CHECKED_BYTES_MAX)) =>
        {
            OpenMode::Checked
        }
        _ => OpenMode::Unchecked,
    }
}

/// Opens or makes the log, or salvages what is left of it.
pub(in crate::store) fn open_log(
    files: &dyn Files,
    network: &str,
    now_ms: u64,
    trust: OpenPolicy,
) -> Result<OpenedLog, OpenError> {
    let aside = damaged_files(files)?;
    let opened = match trust {
        OpenPolicy::SalvageLog if files.len(LOG).is_ok_and(|len| len.is_some()) => {
            Err(OpenError::Corrupt { path: files.path(LOG), why: "whoever opens it ends with it".into() }
                .into())
        }
        _ => open_as_is(files, Some(network), open_mode(files, LOG, trust), !aside.is_empty()),
    };
    match opened {
        Ok((log, found)) => Ok(OpenedLog { log, found, recovery: None, set_aside: paths(files, &aside) }),
        // What is open of it stays open meanwhile: closing it would write to it.
        Err(NotOpen { ref error, .. }) if must_salvage(files, trust, error)? => {
            open_salvaged(files, network, now_ms, trust, error, aside)
        }
        Err(NotOpen { error, .. }) => Err(error),
    }
}

/// Whether a log that does not open for this reason is to be salvaged. If it is the disk, only what is proved: that a part
/// of the file cannot be read. A disk that would not write has lost nothing.
pub(in crate::store) fn must_salvage(
    files: &dyn Files,
    trust: OpenPolicy,
    error: &OpenError,
) -> Result<bool, OpenError> {
    match error {
        OpenError::Corrupt { .. } => Ok(true),
        error if trust == OpenPolicy::AcceptLoss && error.is_disk_error() => {
            Ok(files.len(LOG).is_ok_and(|len| len.is_some()) && !lossy_file::is_whole(files, LOG)?)
        }
        _ => Ok(false),
    }
}

/// Salvages a log that could be opened, but not be read. It stays open meanwhile, too.
pub(in crate::store) fn salvage_opened(
    files: &dyn Files,
    network: &str,
    now_ms: u64,
    trust: OpenPolicy,
    opened: OpenedLog,
    error: &OpenError,
) -> Result<OpenedLog, OpenError> {
    let salvaged = open_salvaged(files, network, now_ms, trust, error, damaged_files(files)?);
    drop(opened);
    salvaged
}

fn open_salvaged(
    files: &dyn Files,
    network: &str,
    now_ms: u64,
    trust: OpenPolicy,
    error: &OpenError,
    mut aside: Vec<String>,
) -> Result<OpenedLog, OpenError> {
    let why = &match error {
        OpenError::Corrupt { why, .. } => why.clone(),
        OpenError::Directory { source, .. } => format!("the disk does not give all of it: {source}"),
        other => other.to_string(),
    };
    tracing::warn!(why, path = %files.path(LOG).display(), "the log is damaged: salvaging what is left of it");
    let salvaging = SalvageJob { network, goes_on: trust == OpenPolicy::AcceptLoss };
    let recovery = Some(salvage_and_replace(files, salvaging, now_ms, why, &mut aside)?);
    let opened = Log::open(files, Some(network), OpenMode::Unchecked);
    let (log, found) = opened.map_err(|not_open| not_open.error)?;
    Ok(OpenedLog { log, found, recovery, set_aside: paths(files, &aside) })
}

fn paths(files: &dyn Files, names: &[String]) -> Vec<PathBuf> {
    names.iter().map(|name| files.path(name)).collect()
}

/// Opens the log, if its file is one at all. Without a network as [`Log::open`].
pub(in crate::store) fn open_as_is(
    files: &dyn Files,
    network: Option<&str>,
    how: OpenMode,
    some_aside: bool,
) -> Result<(Log, LogsOnDisk), NotOpen> {
    let path = files.path(LOG);
    let broken = |why: &str| OpenError::Corrupt { path: path.clone(), why: why.into() };
    match files.len(LOG) {
        Err(source) => Err(OpenError::Directory { path, source }.into()),
        Ok(None) if some_aside => Err(broken("it is missing").into()),
        // redb would take it for a new one. Ours are put in place whole.
        Ok(Some(0)) => Err(broken("it is empty").into()),
        Ok(_) => Log::open(files, network, how),
    }
}

fn salvage_and_replace(
    files: &dyn Files,
    salvaging: SalvageJob<'_>,
    now_ms: u64,
    why: &str,
    aside: &mut Vec<String>,
) -> Result<Recovery, OpenError> {
    let moving = |source: io::Error| OpenError::Directory { path: files.path(LOG), source };
    let is_there = files.len(LOG).map_err(moving)?.is_some();
    // The newest first: its records keep their places.
    let mut sources: Vec<String> = aside.iter().rev().cloned().collect();
    if is_there {
        sources.insert(0, LOG.into());
    }
    let salvaged = salvage(files, &sources, salvaging)?;
    let mut moved = None;
    if is_there {
        let name = free_name(aside, now_ms);
        files.rename(LOG, &name).map_err(moving)?;
        moved = Some(files.path(&name));
        aside.push(name);
    }
    files.rename(SALVAGING, LOG).map_err(moving)?;
    let Salvaged {
        records,
        logs,
        entries,
        detached: loose,
        missing: holes,
        conflicting: different,
        unread_bytes,
    } = salvaged;
    tracing::warn!(
        records, logs, entries, loose, holes, different, unread_bytes, set_aside = ?moved,
        "the log was salvaged; the damaged file is kept until somebody removes it"
    );
    Ok(Recovery { why: why.to_owned(), set_aside: moved, salvaged })
}

/// The names of the files that were set aside, oldest first.
pub(in crate::store) fn damaged_files(files: &dyn Files) -> Result<Vec<String>, OpenError> {
    let unreadable = |source| OpenError::Directory { path: files.path(LOG), source };
    let mut names = files.names().map_err(unreadable)?;
    names.retain(|name| name.starts_with(DAMAGED_PREFIX));
    names.sort_by_key(|name| (name.len(), name.clone())); // of one second: the plain one, then -2, …
    names.sort_by_key(|name| name.get(..DAMAGED_PREFIX.len() + TIME_BYTES).map(str::to_owned));
    Ok(names)
}

/// `20261122T154800Z`.
const TIME_BYTES: usize = 16;

fn free_name(taken: &[String], now_ms: u64) -> String {
    let time =
        jiff::Timestamp::from_millisecond(i64::try_from(now_ms).unwrap_or(i64::MAX)).unwrap_or_default();
    let first = format!("{DAMAGED_PREFIX}{}", time.strftime("%Y%m%dT%H%M%SZ"));
    let mut names =
        std::iter::once(first.clone()).chain((2..).map(|number: u64| format!("{first}-{number}")));
    names.find(|name| !taken.contains(name)).expect("numbers do not end")
}
