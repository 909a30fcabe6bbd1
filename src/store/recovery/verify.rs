//! Owns the check of a log file that no process has open: every record, every chain, every head. The index is not read.
//!
//! Called by `chatchain verify`. Must not repair: it changes nothing but what redb changes when it opens a file. A log
//! that does not open is searched for the records that a salvage would find, and is not salvaged. Also owns what the
//! trial process of `node/recovery` does.

use std::io;
use std::path::{Path, PathBuf};

use crate::chain::ids::{ChainHash, Origin};
use crate::chain::kind::LogType;
use crate::chain::logs::{CHECKPOINT_EVERY, LogsOnDisk, StampRange};
use crate::chain::record::Entry;
use crate::chain::vector::{Head, LogSpan};
use crate::store::engine::files::{Directory, Files, INDEX, LOG, OpenMode};
use crate::store::log::{LogFile, LogReader, NotOpen, ReadLimit};
use crate::store::recovery::lossy_file::{self, LossyFile};
use crate::store::recovery::record_scan::{RecordScan, SeenEntries};
use crate::store::{OpenError, recovery};

/// The most that one transaction reads; the next one continues.
const CHUNK: ReadLimit = ReadLimit { rows: 1_000, bytes: 1 << 20 };

/// Prefix of the directories of stores in a `data_dir`.
const STORE: &str = "node-";

/// The result for one store.
#[derive(Debug)]
pub enum Verified {
    Read(VerifyReport),
    /// The log cannot be opened.
    NotOpened {
        why: String,
        /// Entries whose record is intact in the raw bytes: what its node would salvage.
        intact: u64,
        /// Bytes in bad sectors.
        unread_bytes: u64,
    },
}

/// What is in a log that was read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    pub logs: u64,
    /// Intact entries of the logs, and their bytes.
    pub entries: u64,
    pub bytes: u64,
    pub damaged: u64,
    /// Entries up to a head that have no row.
    pub missing: u64,
    /// Intact entries after a gap that a salvage left; they are in no log yet.
    pub detached: u64,
    /// Intact entries of a newer kind.
    pub unreadable: u64,
    /// The first damaged or missing entry.
    pub first_bad: Option<BadEntry>,
    /// Damaged files of an earlier salvage that an operator may remove.
    pub set_aside: Vec<PathBuf>,
}

/// A damaged or missing entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadEntry {
    pub origin: Origin,
    pub seq: u64,
    pub why: String,
}

impl VerifyReport {
    pub fn is_whole(&self) -> bool {
        self.damaged == 0 && self.missing == 0
    }
}

/// The store in this directory, or the stores in the directories below it.
pub fn stores_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let is_store = |dir: &Path| {
        [LOG, INDEX].iter().any(|name| dir.join(name).is_symlink() || dir.join(name).exists())
            || recovery::damaged_files(&Directory(dir.to_owned())).is_ok_and(|names| !names.is_empty())
    };
    if is_store(dir) {
        return Ok(vec![dir.to_owned()]);
    }
    let mut stores = Vec::new();
    for child in std::fs::read_dir(dir)? {
        let child = child?;
        if child.file_name().to_string_lossy().starts_with(STORE) && is_store(&child.path()) {
            stores.push(child.path());
        }
    }
    // node-2 before node-10.
    stores.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    Ok(stores)
}

/// Checks the store in `dir`.
pub fn verify(dir: &Path) -> Result<Verified, OpenError> {
    let files = Directory(dir.to_owned());
    let _lock = files.lock()?;
    files.check_regular(LOG)?;
    recovery::check_format(&files)?;
    let set_aside = recovery::damaged_files(&files)?;
    let must_exist = Some(recovery::MISSING);
    let NotOpen { error, db } = match recovery::open_existing(&files, None, OpenMode::Unchecked, must_exist) {
        Ok((log, found)) => {
            let mut report = read(&log, &found);
            report.set_aside = set_aside.iter().map(|name| files.path(name)).collect();
            if !report.is_whole() {
                std::mem::forget(log); // closing a damaged database writes to it; the program ends soon anyway
            }
            return Ok(Verified::Read(report));
        }
        Err(not_open) => not_open,
    };
    let why = match error {
        OpenError::Corrupt { why, .. } => why,
        error if error.is_disk_error() => error.to_string(),
        error => return Err(error),
    };
    std::mem::forget(db); // as above
    let (mut seen, mut intact, mut unread_bytes) = (SeenEntries::default(), 0, 0);
    let mut search = |name: &str| -> io::Result<()> {
        if files.len(name)?.is_none() {
            return Ok(());
        }
        let mut scan = RecordScan::new(LossyFile::new(&files, name, true)?);
        while let Some(entry) = scan.next_entry()? {
            intact += u64::from(seen.insert(entry.origin(), entry.seq()));
        }
        unread_bytes += scan.source().unread_bytes()?;
        Ok(())
    };
    for name in set_aside.iter().map(String::as_str).chain([LOG]) {
        search(name).map_err(|error| lossy_file::read_error(files.path(name), error))?;
    }
    Ok(Verified::NotOpened { why, intact, unread_bytes })
}

/// Opens the log in `dir`, checks every page and does nothing else. The caller runs this in a process of its own and
/// looks at its exit status.
pub fn open_log_only(dir: &Path) -> Result<(), OpenError> {
    let files = Directory(dir.to_owned());
    let _lock = files.lock()?;
    recovery::check_regular(&files)?;
    let opened = recovery::open_existing(&files, None, OpenMode::Checked, Some(recovery::MISSING));
    opened.map(drop).map_err(|NotOpen { error, db }| {
        std::mem::forget(db); // closing it writes to it
        error
    })
}

fn read(log: &LogFile, found: &LogsOnDisk) -> VerifyReport {
    let mut report = VerifyReport { logs: found.spans.len() as u64, ..VerifyReport::default() };
    for (origin, span, range) in &found.spans {
        let mut verifier = LogVerifier::new(*origin, *span, &mut report);
        verifier.read(log, span.head.seq);
        verifier.check_end(*range);
    }
    for (origin, last) in &found.detached {
        let span = found.spans.iter().find(|(of, ..)| of == origin).map(|(_, span, _)| *span);
        let nothing = Head::genesis(*origin, LogType::MESSAGES);
        let span = span.unwrap_or(LogSpan::whole(*origin, LogType::MESSAGES, nothing));
        let verifier = LogVerifier::new(*origin, span, &mut report);
        LogVerifier { next: span.head.seq + 1, ..verifier }.read(log, *last);
    }
    report
}

/// The check of one log.
struct LogVerifier<'a> {
    origin: Origin,
    head: Head,
    next: u64,
    /// The chain's hash before `next`; `None` after a damaged entry.
    hash: Option<ChainHash>,
    stamps: Option<StampRange>,
    report: &'a mut VerifyReport,
}

impl<'a> LogVerifier<'a> {
    fn new(origin: Origin, span: LogSpan, report: &'a mut VerifyReport) -> Self {
        let LogSpan { floor, head, .. } = span;
        LogVerifier { origin, head, next: floor.seq + 1, hash: Some(floor.hash), stamps: None, report }
    }

    /// Checks the rows from `next` to `last`.
    fn read(&mut self, log: &LogFile, last: u64) {
        while self.next <= last {
            let read = log.read().and_then(|mut reader| {
                let rows = reader.rows(self.origin, self.next, last, CHUNK)?;
                Ok((reader, rows))
            });
            match read {
                // The tree is damaged, so it is unknown which of the remaining entries can be read.
                Err(error) => {
                    let left = (self.head.seq + 1).saturating_sub(self.next).max(1);
                    self.add_damaged(self.next, left, &error.to_string());
                    return self.skip_to(last);
                }
                Ok((_, rows)) if rows.is_empty() => break,
                Ok((reader, rows)) => rows.iter().for_each(|(seq, bytes)| self.row(&reader, *seq, bytes)),
            }
        }
        self.add_missing(self.head.seq);
    }

    fn row(&mut self, reader: &LogReader, seq: u64, bytes: &[u8]) {
        self.add_missing(self.head.seq.min(seq - 1));
        let is_detached = seq > self.head.seq;
        let entry = match check(self.origin, seq, bytes) {
            Ok(entry) if is_detached || self.stamps.is_none_or(|range| entry.stamp() > range.last) => entry,
            other => {
                let why = other.err().unwrap_or("it is not stamped later than the one before it");
                self.add_damaged(seq, 1, why);
                return self.skip_to(seq);
            }
        };
        self.next = seq + 1;
        if is_detached {
            self.report.detached += 1; // its chain is unknown
            return;
        }
        let first = self.stamps.map_or(entry.stamp(), |range| range.first);
        self.stamps = Some(StampRange { first, last: entry.stamp() });
        self.hash = self.hash.map(|hash| hash.next(seq, entry.stamp(), entry.leaf()));
        self.report.entries += 1;
        self.report.bytes += bytes.len() as u64;
        self.report.unreadable += u64::from(entry.needs_newer_program());
        if seq.is_multiple_of(CHECKPOINT_EVERY) {
            self.check_chain(reader, seq);
        }
    }

    /// Compares the chain with the stored checkpoint. After a damaged entry, the chain continues from the checkpoint.
    fn check_chain(&mut self, reader: &LogReader, seq: u64) {
        let stored = reader.checkpoint(self.origin, seq);
        match (&stored, self.hash) {
            (Ok(Some(stored)), hash) if hash.is_none_or(|hash| hash == *stored) => {}
            (Err(error), _) => self.add_damaged(seq, 1, &error.to_string()),
            _ => self.add_damaged(seq, 1, "the stored checkpoint of the chain is missing or another one"),
        }
        self.hash = self.hash.or(stored.ok().flatten());
    }

    fn check_end(&mut self, range: StampRange) {
        let head = self.head;
        if self.hash.is_some_and(|hash| hash != head.hash) {
            self.add_damaged(head.seq, 1, "the chain does not lead to the head's hash");
        } else if self.hash.is_some() && self.stamps.is_some_and(|stamps| stamps != range) {
            self.add_damaged(head.seq, 1, "the head says other stamps than the entries");
        }
    }

    /// Counts everything from `next` up to `last` as missing.
    fn add_missing(&mut self, last: u64) {
        if self.next <= last {
            self.set_first_bad(self.next, "it is missing");
            self.report.missing += last - self.next + 1;
            self.skip_to(last);
        }
    }

    /// Continues after `last`, without the chain's hash.
    fn skip_to(&mut self, last: u64) {
        (self.hash, self.next) = (None, last + 1);
    }

    fn add_damaged(&mut self, seq: u64, count: u64, why: &str) {
        self.set_first_bad(seq, why);
        self.report.damaged += count;
    }

    fn set_first_bad(&mut self, seq: u64, why: &str) {
        let origin = self.origin;
        self.report.first_bad.get_or_insert_with(|| BadEntry { origin, seq, why: why.to_owned() });
    }
}

fn check(origin: Origin, seq: u64, bytes: &[u8]) -> Result<Entry, &'static str> {
    match Entry::check(bytes) {
        Err(_) => Err("its record does not check"),
        Ok(entry) if (entry.origin(), entry.seq(), entry.size()) != (origin, seq, bytes.len()) => {
            Err("the record of another entry is in its place")
        }
        Ok(entry) if !entry.content_matches_digest() => Err("its content does not match its digest"),
        Ok(entry) => Ok(entry),
    }
}

#[cfg(test)]
mod tests;
