//! Owns the check of a whole store that no process has open: every record, every chain, every head.
//!
//! Called by `chatchain verify`. Must not repair: it changes nothing but what redb changes when it opens a file. A log that
//! cannot be opened is searched for the records that a salvage would find, and is not salvaged.

use std::io;
use std::path::{Path, PathBuf};

use crate::chain::ids::{ChainHash, Origin};
use crate::chain::logs::{CHECKPOINT_EVERY, LogsOnDisk, StampRange};
use crate::chain::record::Entry;
use crate::chain::vector::Head;
use crate::store::engine::files::{Directory, Files, LOG, OpenMode};
use crate::store::log::{Log, LogReader, NotOpen, ReadLimit};
use crate::store::recovery::lossy_file::{self, LossyFile};
use crate::store::recovery::record_scan::{RecordScan, SeenEntries};
use crate::store::{OpenError, recovery};

/// The most that one transaction reads; the next one continues.
const MOST: ReadLimit = ReadLimit { rows: 1_000, bytes: 1 << 20 };

/// Prefix of the directories of stores in a `data_dir`.
const STORE: &str = "node-";

/// The result for one store.
#[derive(Debug)]
pub enum Verified {
    /// The log was read completely.
    Read(VerifyReport),
    /// The log cannot be opened.
    NotOpened {
        /// Why not.
        why: String,
        /// Entries whose record is intact in the raw bytes: what its node would salvage.
        intact: u64,
        /// Bytes that the disk cannot read.
        unread_bytes: u64,
    },
}

/// What is in a log that was read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Logs.
    pub logs: u64,
    /// Intact entries in them.
    pub entries: u64,
    /// Bytes of the intact entries.
    pub bytes: u64,
    /// Damaged entries.
    pub damaged: u64,
    /// Missing entries below a head.
    pub missing: u64,
    /// Intact entries behind a gap that a salvage left; they are in no log yet.
    pub detached: u64,
    /// Intact entries that only a newer program can read.
    pub unreadable: u64,
    /// The first damaged or missing entry.
    pub first_bad: Option<BadEntry>,
    /// Damaged files of an earlier salvage that an operator may remove.
    pub set_aside: Vec<PathBuf>,
}

/// A damaged or missing entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadEntry {
    /// Its log.
    pub origin: Origin,
    /// Its seq.
    pub seq: u64,
    /// What is wrong with it.
    pub why: String,
}

impl VerifyReport {
    /// Nothing is damaged and nothing is missing.
    pub fn is_whole(&self) -> bool {
        self.damaged == 0 && self.missing == 0
    }
}

/// The store in this directory, or the stores in the directories below it.
pub fn stores_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let is_store = |dir: &Path| {
        dir.join(LOG).exists()
            || recovery::damaged_files(&Directory(dir.to_owned())).is_ok_and(|a| !a.is_empty())
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
    let set_aside = recovery::damaged_files(&files)?;
    match recovery::open_existing(&files, None, OpenMode::Unchecked, true) {
        Ok((log, found)) => {
            let mut report = read(&log, &found);
            report.set_aside = set_aside.iter().map(|name| files.path(name)).collect();
            if !report.is_whole() {
                leave_open(log);
            }
            Ok(Verified::Read(report))
        }
        Err(NotOpen { error: OpenError::Corrupt { why, .. }, db }) => {
            leave_open(db);
            not_opened(&files, set_aside, why)
        }
        Err(NotOpen { error, db }) if error.is_disk_error() => {
            leave_open(db);
            not_opened(&files, set_aside, error.to_string())
        }
        Err(NotOpen { error, .. }) => Err(error),
    }
}

/// Opens the log in `dir`, checks every page and does nothing else. The caller wants to know how the process ends.
pub fn open_log_only(dir: &Path) -> Result<(), OpenError> {
    let files = Directory(dir.to_owned());
    let _lock = files.lock()?;
    let opened = recovery::open_existing(&files, None, OpenMode::Checked, true);
    opened.map(drop).map_err(|NotOpen { error, db }| {
        leave_open(db);
        error
    })
}

/// Leaves a damaged database open: closing it writes to it. The program ends soon anyway.
fn leave_open<T>(database: T) {
    std::mem::forget(database);
}

fn not_opened(files: &dyn Files, mut names: Vec<String>, why: String) -> Result<Verified, OpenError> {
    names.push(LOG.into());
    let (mut seen, mut intact, mut unread_bytes) = (SeenEntries::default(), 0, 0);
    let mut look = |name: &str| -> io::Result<()> {
        if files.len(name)?.is_none() {
            return Ok(());
        }
        let mut scan = RecordScan::new(LossyFile::new(files, name, true)?);
        while let Some(entry) = scan.next_entry()? {
            intact += u64::from(seen.insert(entry.origin(), entry.seq()));
        }
        unread_bytes += scan.source().unread_bytes()?;
        Ok(())
    };
    for name in &names {
        look(name).map_err(|error| lossy_file::read_error(files.path(name), error))?;
    }
    Ok(Verified::NotOpened { why, intact, unread_bytes })
}

fn read(log: &Log, found: &LogsOnDisk) -> VerifyReport {
    let mut report = VerifyReport { logs: found.heads.len() as u64, ..VerifyReport::default() };
    for (origin, head, range) in &found.heads {
        let mut walk = LogVerifier::new(*origin, *head, &mut report);
        walk.all(log);
        walk.check_end(*range);
    }
    for (origin, last) in &found.detached {
        let head = found.heads.iter().find(|(of, ..)| of == origin).map_or(0, |(_, head, _)| head.seq);
        read_loose(log, *origin, head + 1, *last, &mut report);
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
    fn new(origin: Origin, head: Head, report: &'a mut VerifyReport) -> Self {
        let hash = Some(ChainHash::genesis(origin));
        LogVerifier { origin, head, next: 1, hash, stamps: None, report }
    }

    fn all(&mut self, log: &Log) {
        while self.next <= self.head.seq {
            let read = log.read().and_then(|mut reader| {
                let rows = reader.rows(self.origin, self.next, self.head.seq, MOST)?;
                Ok((reader, rows))
            });
            let left = self.head.seq - self.next + 1;
            match read {
                // The tree is damaged, so it is unknown which of the remaining entries can be read.
                Err(error) => {
                    self.set_first_bad(self.next, &error.to_string());
                    self.report.damaged += left;
                    self.skip_to(self.head.seq);
                }
                Ok((_, rows)) if rows.is_empty() => self.add_missing(self.head.seq),
                Ok((reader, rows)) => rows.iter().for_each(|(seq, bytes)| self.row(&reader, *seq, bytes)),
            }
        }
    }

    fn row(&mut self, reader: &LogReader, seq: u64, bytes: &[u8]) {
        if seq > self.next {
            self.add_missing(seq - 1);
        }
        let entry = match check(self.origin, seq, bytes) {
            Ok(entry) if self.stamps.is_none_or(|range| entry.stamp() > range.last) => entry,
            other => {
                self.set_first_bad(
                    seq,
                    other.err().unwrap_or("it is not stamped later than the one before it"),
                );
                self.report.damaged += 1;
                return self.skip_to(seq);
            }
        };
        let first = self.stamps.map_or(entry.stamp(), |range| range.first);
        self.stamps = Some(StampRange { first, last: entry.stamp() });
        self.hash = self.hash.map(|hash| hash.next(seq, entry.stamp(), entry.digest()));
        self.next = seq + 1;
        self.report.entries += 1;
        self.report.bytes += bytes.len() as u64;
        self.report.unreadable += u64::from(entry.needs_newer_program());
        if seq.is_multiple_of(CHECKPOINT_EVERY) {
            self.check_chain(reader, seq);
        }
    }

    /// Compares the chain with the stored checkpoint. After a damaged entry, the chain continues from the checkpoint.
    fn check_chain(&mut self, reader: &LogReader, seq: u64) {
        let kept = reader.checkpoint(self.origin, seq);
        match (&kept, self.hash) {
            (Ok(Some(kept)), hash) if hash.is_none_or(|hash| hash == *kept) => {}
            (Err(error), _) => self.add_damaged(seq, &error.to_string()),
            _ => self.add_damaged(seq, "the chain's hash that was kept of it is another one"),
        }
        self.hash = self.hash.or(kept.ok().flatten());
    }

    fn check_end(&mut self, range: StampRange) {
        let head = self.head;
        if self.hash.is_some_and(|hash| hash != head.hash) {
            self.add_damaged(head.seq, "the chain does not lead to the head's hash");
        } else if self.hash.is_some() && self.stamps != Some(range) {
            self.add_damaged(head.seq, "the head says other stamps than the entries");
        }
    }

    /// Counts everything from `next` up to `last` as missing.
    fn add_missing(&mut self, last: u64) {
        self.set_first_bad(self.next, "it is missing");
        self.report.missing += last - self.next + 1;
        self.skip_to(last);
    }

    /// Continues after `last`, without the chain's hash.
    fn skip_to(&mut self, last: u64) {
        (self.hash, self.next) = (None, last + 1);
    }

    fn add_damaged(&mut self, seq: u64, why: &str) {
        self.set_first_bad(seq, why);
        self.report.damaged += 1;
    }

    fn set_first_bad(&mut self, seq: u64, why: &str) {
        note_bad(self.report, self.origin, seq, why);
    }
}

fn note_bad(report: &mut VerifyReport, origin: Origin, seq: u64, why: &str) {
    report.first_bad.get_or_insert_with(|| BadEntry { origin, seq, why: why.to_owned() });
}

/// Checks entries behind a gap, each by itself: their chain is unknown.
fn read_loose(log: &Log, origin: Origin, first: u64, last: u64, report: &mut VerifyReport) {
    let mut next = first;
    while next <= last {
        let rows = match log.read().and_then(|mut reader| reader.rows(origin, next, last, MOST)) {
            Ok(rows) if rows.is_empty() => return,
            Ok(rows) => rows,
            Err(error) => {
                report.damaged += 1;
                return note_bad(report, origin, next, &error.to_string());
            }
        };
        for (seq, bytes) in rows {
            next = seq.saturating_add(1);
            match check(origin, seq, &bytes) {
                Ok(_) => report.detached += 1,
                Err(why) => {
                    report.damaged += 1;
                    note_bad(report, origin, seq, why);
                }
            }
        }
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
