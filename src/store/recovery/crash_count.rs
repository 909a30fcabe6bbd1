//! Owns what a store remembers of those who had it open: how many in a row ended badly before they had proven that it can be
//! used.
//!
//! Damage can make redb end the process in ways that no guard catches: it overflows the stack on pages that lead back to
//! themselves, panics while it puts away what a panic left, or asks for more memory than there is. And it does so again
//! at every start. So before anything of a store is opened it is noted that somebody does ([`UNPROVEN`]). The note goes when he
//! ends in order or has proven the store ([`Session::prove`]); whoever finds enough notes of others has every page checked.
//!
//! A kill or a power failure leaves the note as well; it says nothing of the file. Therefore notes cost time and no more:
//! nothing is salvaged because of them. That the note cannot be written stops nobody either.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::store::OpenPolicy;
use crate::store::engine::files::{CRASH_MARKER, Directory, Files};

/// So many sessions in a row must have ended badly before every page is checked. One is a `kill -9` or a power failure, after
/// which a start is to be fast; that damage ends the process again is seen from the second on.
pub const SESSIONS_MAX: u32 = 2;

/// The note is longer only if it is not ours.
const NOTE_BYTES_MAX: usize = 32;

/// How many sessions in a row ended badly, the one that goes on included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UncleanExits {
    /// Before they had proven anything.
    pub sessions: u32,
    /// Of these, so many openings in a row for which every page was checked, and which did not come to their end.
    pub openings: u32,
}

impl UncleanExits {
    /// What the store in this directory remembers. Between two sessions nobody else changes it.
    pub fn of(dir: &Path) -> Self {
        Self::read(&Directory(dir.to_owned())).unwrap_or_default() // whoever opens the store says why not
    }

    fn read(files: &dyn Files) -> io::Result<Self> {
        let mut note = [0; NOTE_BYTES_MAX];
        match files.open_raw(CRASH_MARKER).and_then(|file| file.read_at(0, &mut note)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(UncleanExits::default()),
            read => Ok(Self::parse(&note[..read?])),
        }
    }

    /// Where it is not as we write it, somebody wrote it all the same.
    fn parse(note: &[u8]) -> Self {
        let words = std::str::from_utf8(note).unwrap_or_default();
        let numbers: Option<Vec<u32>> = words.split_whitespace().map(|word| word.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[sessions, openings]) => UncleanExits { sessions, openings },
            _ => UncleanExits { sessions: 1, openings: 0 },
        }
    }

    fn write(self, files: &dyn Files) -> io::Result<()> {
        match self {
            UncleanExits { sessions: 0, openings: 0 } => files.remove(CRASH_MARKER),
            UncleanExits { sessions, openings } => {
                files.replace(CRASH_MARKER, format!("{sessions} {openings}\n").as_bytes())
            }
        }
    }
}

/// One opening of a store, until it is closed. To be dropped when nothing of the store is open any more.
#[derive(Debug)]
pub(in crate::store) struct CrashCount {
    files: Box<dyn Files>,
    trust: OpenPolicy,
    /// Those of others.
    before: UncleanExits,
    note: Mutex<CrashMarker>,
    committed: AtomicBool,
    indexed: AtomicBool,
}

#[derive(Debug)]
struct CrashMarker {
    now: UncleanExits,
    /// What it will be when the store is closed. That a session is not the last of its process, which opens the store anew
    /// because it failed, neither proves the store nor is it a bad end: then it is what it was before.
    at_close: UncleanExits,
}

impl CrashCount {
    /// Begins, for whoever would open the store with this trust; [`Session::trust`] says what is right.
    pub(in crate::store) fn begin(files: &dyn Files, asked: OpenPolicy) -> Self {
        let before = UncleanExits::read(files).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read how the last sessions with the store ended");
            UncleanExits::default()
        });
        let trust = match asked {
            OpenPolicy::Default | OpenPolicy::Blind if before.sessions >= SESSIONS_MAX => {
                OpenPolicy::FullCheck
            }
            asked => asked,
        };
        let openings = if trust.is_doubt() { before.openings.saturating_add(1) } else { before.openings };
        let session = CrashCount {
            files: files.boxed(),
            trust,
            before,
            note: Mutex::new(CrashMarker { now: before, at_close: before }),
            committed: AtomicBool::new(false),
            indexed: AtomicBool::new(false),
        };
        session.write(UncleanExits { sessions: before.sessions.saturating_add(1), openings });
        session
    }

    /// How much the store is to be trusted.
    pub(in crate::store) fn trust(&self) -> OpenPolicy {
        self.trust
    }

    /// How many others ended badly, if they were so many that every page was checked.
    pub(in crate::store) fn bad_ends_before(&self) -> Option<u32> {
        Some(self.before.sessions).filter(|sessions| *sessions >= SESSIONS_MAX)
    }

    /// The opening came to its end.
    pub(in crate::store) fn is_open(&self) {
        let now = {
            let mut note = self.lock();
            note.at_close.openings = 0;
            note.now
        };
        if now.openings > 0 {
            self.write(UncleanExits { openings: 0, ..now });
        }
    }

    /// A change was committed, and the index has taken note of it.
    pub(in crate::store) fn has_committed(&self) {
        self.committed.store(true, Ordering::Release);
    }

    /// Whether a change was committed: what is indexed from now on holds it.
    pub(in crate::store) fn committed(&self) -> bool {
        self.committed.load(Ordering::Acquire)
    }

    /// Something that was committed in this session is in the index file.
    pub(in crate::store) fn has_indexed(&self) {
        self.indexed.store(true, Ordering::Release);
    }

    /// Whether both files were written to, which is where damage mostly shows.
    pub(in crate::store) fn is_tried(&self) -> bool {
        self.committed() && self.indexed.load(Ordering::Acquire)
    }

    /// The store can be used: however this process ends, nobody has to check it for that.
    pub(in crate::store) fn prove(&self) {
        self.ends_in_order();
        self.write(UncleanExits::default());
    }

    /// The process ends as it should, once the store is closed.
    pub(in crate::store) fn ends_in_order(&self) {
        self.lock().at_close = UncleanExits::default();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, CrashMarker> {
        self.note.lock().unwrap_or_else(PoisonError::into_inner) // plain numbers
    }

    fn write(&self, want: UncleanExits) {
        let mut note = self.lock();
        if note.now == want {
            return;
        }
        match want.write(&*self.files) {
            Ok(()) => note.now = want,
            Err(error) => tracing::warn!(%error, "cannot note how sessions with the store end"),
        }
    }
}

impl Drop for CrashCount {
    fn drop(&mut self) {
        let at_close = self.lock().at_close;
        self.write(at_close);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session that ends as a killed process does.
    fn dies(files: &Directory, opens: bool) -> OpenPolicy {
        let session = CrashCount::begin(files, OpenPolicy::Default);
        if opens {
            session.is_open();
        }
        let trust = session.trust();
        std::mem::forget(session);
        trust
    }

    fn check(work: impl FnOnce(&Directory)) {
        let dir = tempfile::tempdir().expect("temp dir");
        work(&Directory(dir.path().to_owned()));
    }

    fn note(files: &Directory) -> Option<String> {
        std::fs::read_to_string(files.path(CRASH_MARKER)).ok()
    }

    #[test]
    fn every_page_is_checked_from_the_third_session_on_that_follows_bad_ends() {
        check(|files| {
            let trusts: Vec<_> = (0..5).map(|_| dies(files, true)).collect();
            assert_eq!(trusts[..2], [OpenPolicy::Default; 2]);
            assert_eq!(trusts[2..], [OpenPolicy::FullCheck; 3]);
            assert_eq!(note(files).as_deref(), Some("5 0\n"));
            assert_eq!(CrashCount::begin(files, OpenPolicy::AcceptLoss).trust(), OpenPolicy::AcceptLoss);
        });
    }

    #[test]
    fn openings_that_end_the_process_are_counted_until_one_comes_to_its_end() {
        check(|files| {
            for want in ["1 0\n", "2 0\n", "3 1\n", "4 2\n"] {
                dies(files, false);
                assert_eq!(note(files).as_deref(), Some(want));
            }
            dies(files, true);
            assert_eq!(note(files).as_deref(), Some("5 0\n"));
        });
    }

    #[test]
    fn an_end_in_order_is_the_end_of_it_and_so_is_proof() {
        check(|files| {
            dies(files, true);
            let session = CrashCount::begin(files, OpenPolicy::Default);
            session.is_open();
            session.ends_in_order();
            assert_eq!(note(files).as_deref(), Some("2 0\n"), "not before the store is closed");
            drop(session);
            assert_eq!(note(files), None);
            let session = CrashCount::begin(files, OpenPolicy::Default);
            session.prove();
            assert_eq!(note(files), None);
            std::mem::forget(session);
            assert_eq!(dies(files, true), OpenPolicy::Default);
            assert_eq!(note(files).as_deref(), Some("1 0\n"));
        });
    }

    #[test]
    fn a_store_that_is_only_opened_anew_neither_ended_badly_nor_is_proven() {
        check(|files| {
            dies(files, true);
            for asked in [OpenPolicy::Default, OpenPolicy::FullCheck, OpenPolicy::FullCheck] {
                let session = CrashCount::begin(files, asked);
                assert_eq!(session.bad_ends_before(), None);
                session.is_open();
                assert_eq!(note(files).as_deref(), Some("2 0\n"));
                drop(session);
                assert_eq!(note(files).as_deref(), Some("1 0\n"));
            }
            drop(CrashCount::begin(files, OpenPolicy::Default)); // it does not open, and the process lives
            assert_eq!(note(files).as_deref(), Some("1 0\n"));
        });
    }

    #[test]
    fn it_is_tried_once_both_files_were_written_to() {
        check(|files| {
            let session = CrashCount::begin(files, OpenPolicy::Default);
            session.has_committed();
            assert!(!session.is_tried());
            session.has_indexed();
            assert!(session.is_tried());
        });
    }

    #[test]
    fn what_is_not_as_we_write_it_counts_as_one() {
        for note in ["", "\n", "7", "7 0 0", "-1 0", "many", "99999999999 0", &"1 ".repeat(NOTE_BYTES_MAX)] {
            assert_eq!(
                UncleanExits::parse(note.as_bytes()),
                UncleanExits { sessions: 1, openings: 0 },
                "{note:?}"
            );
        }
        assert_eq!(UncleanExits::parse(b"7 3\n"), UncleanExits { sessions: 7, openings: 3 });
    }

    #[test]
    fn a_directory_that_cannot_be_written_stops_nobody() {
        let session = CrashCount::begin(&Directory("/nowhere/at/all".into()), OpenPolicy::Default);
        assert_eq!((session.trust(), session.bad_ends_before()), (OpenPolicy::Default, None));
        session.prove();
    }
}
