//! Owns the crash marker of a store: a file that counts the unclean exits in a row.
//!
//! Before anything of a store is opened, the file [`CRASH_MARKER`] counts this process as one that exits uncleanly. A
//! clean stop removes it, and so does [`CrashCount::mark_healthy`] once the store has proved usable. What a count
//! means: see `open_rules`. It also notices the first writes of this process, which [`CrashCount::mark_healthy`] waits
//! for. A marker that cannot be read or written is a warning and stops nothing.
//!
//! The file holds two decimal numbers, `count unfinished_checks`; it is absent if both are 0.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::store::OpenPolicy;
use crate::store::engine::files::{CRASH_MARKER, Files};
use crate::store::recovery::open_rules::{OpenHistory, UncleanExits};

/// Bytes read of the marker. A longer one was not written by this program.
const MARKER_BYTES_MAX: usize = 32;

impl UncleanExits {
    /// What the marker says. Only valid while no process has the store open. A marker that cannot be read counts as
    /// none.
    pub fn read(files: &dyn Files) -> Self {
        let mut marker = [0; MARKER_BYTES_MAX];
        match files.open_raw(CRASH_MARKER).and_then(|file| file.read_at(0, &mut marker)) {
            Ok(len) => Self::parse(&marker[..len]),
            Err(error) => {
                // Without a directory there is no marker; the opening says what is wrong with the directory.
                if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
                    tracing::warn!(%error, "cannot read the crash marker");
                }
                UncleanExits::default()
            }
        }
    }

    /// A marker in another format counts as one exit.
    fn parse(marker: &[u8]) -> Self {
        let words = std::str::from_utf8(marker).unwrap_or_default();
        let numbers: Option<Vec<u32>> = words.split_whitespace().map(|word| word.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[count, unfinished_checks]) => UncleanExits { count, unfinished_checks },
            _ => UncleanExits { count: 1, unfinished_checks: 0 },
        }
    }

    /// Writes the marker. Called outside this file to take back an opening that this process gives up: nothing was
    /// acknowledged, so its end is no bad one.
    pub fn write(self, files: &dyn Files) {
        let UncleanExits { count, unfinished_checks } = self;
        let written = if self == UncleanExits::default() {
            files.remove(CRASH_MARKER)
        } else {
            files.replace(CRASH_MARKER, format!("{count} {unfinished_checks}\n").as_bytes())
        };
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write the crash marker");
        }
    }
}

/// The marker while this process has the store open. Dropped after the databases are closed.
#[derive(Debug)]
pub struct CrashCount {
    files: Box<dyn Files>,
    /// How the store is opened.
    pub(in crate::store) policy: OpenPolicy,
    before: UncleanExits,
    /// What the marker says after the store is closed. If the process opens the store again because it failed, this
    /// opening counts neither as unclean nor as healthy: the marker says again what it said before.
    after_close: Mutex<UncleanExits>,
    /// A batch is in the log and in the memtable.
    pub(in crate::store) has_committed: AtomicBool,
    /// A flush after that commit wrote the memtable to the index file.
    pub(in crate::store) has_indexed: AtomicBool,
}

impl CrashCount {
    /// Chooses the policy and writes the marker for it. [`OpenPolicy::Default`] leaves the choice to the marker:
    /// earlier unclean exits may demand a stricter one.
    pub(in crate::store) fn start(files: &dyn Files, asked: OpenPolicy) -> Self {
        let before = UncleanExits::read(files);
        let policy = match asked {
            OpenPolicy::Default => OpenHistory::new(before).next_policy(),
            asked => asked,
        };
        let is_check = u32::from(policy.is_strict());
        let now = UncleanExits {
            count: before.count.saturating_add(1),
            unfinished_checks: before.unfinished_checks.saturating_add(is_check),
        };
        now.write(files);
        CrashCount {
            files: files.boxed(),
            policy,
            before,
            after_close: Mutex::new(before),
            has_committed: AtomicBool::new(false),
            has_indexed: AtomicBool::new(false),
        }
    }

    /// The unclean exits in a row before this opening, if they are why every page is checked.
    pub fn exits_to_report(&self) -> Option<u32> {
        let policy = OpenHistory::new(self.before).next_policy();
        policy.is_strict().then_some(self.before.count)
    }

    /// Records that the store is open: a check of every page has finished.
    pub(in crate::store) fn opened(&self) {
        let UncleanExits { count, unfinished_checks } = self.before;
        if unfinished_checks > 0 || self.policy.is_strict() {
            UncleanExits { count: count.saturating_add(1), unfinished_checks: 0 }.write(&*self.files);
        }
        self.set_after_close(UncleanExits { count, unfinished_checks: 0 });
    }

    /// Whether both files were written to since the opening. Most damage shows at the first write.
    pub fn has_written_both(&self) -> bool {
        self.has_indexed.load(Ordering::Acquire)
    }

    /// Removes the marker: the store is usable, however this process ends.
    pub fn mark_healthy(&self) {
        self.will_stop_cleanly();
        UncleanExits::default().write(&*self.files);
    }

    /// The process ends cleanly once the store is closed.
    pub fn will_stop_cleanly(&self) {
        self.set_after_close(UncleanExits::default());
    }

    fn set_after_close(&self, exits: UncleanExits) {
        *self.after_close.lock().unwrap_or_else(PoisonError::into_inner) = exits; // two numbers
    }
}

impl Drop for CrashCount {
    fn drop(&mut self) {
        self.after_close.get_mut().unwrap_or_else(PoisonError::into_inner).write(&*self.files);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::engine::files::Directory;

    /// A run that ends as a killed process does.
    fn run_and_crash(files: &Directory, opens: bool) -> OpenPolicy {
        let run = CrashCount::start(files, OpenPolicy::Default);
        if opens {
            run.opened();
        }
        let policy = run.policy;
        std::mem::forget(run);
        policy
    }

    fn check(work: impl FnOnce(&Directory)) {
        let dir = tempfile::tempdir().expect("temp dir");
        work(&Directory(dir.path().to_owned()));
    }

    fn marker(files: &Directory) -> Option<String> {
        std::fs::read_to_string(files.path(CRASH_MARKER)).ok()
    }

    #[test]
    fn every_page_is_checked_after_two_unclean_exits() {
        check(|files| {
            let policies: Vec<_> = (0..5).map(|_| run_and_crash(files, true)).collect();
            assert_eq!(policies[..2], [OpenPolicy::Default; 2]);
            assert_eq!(policies[2..], [OpenPolicy::FullCheck; 3]);
            assert_eq!(marker(files).as_deref(), Some("5 0\n"));
            assert_eq!(CrashCount::start(files, OpenPolicy::AcceptLoss).policy, OpenPolicy::AcceptLoss);
        });
    }

    #[test]
    fn checks_that_do_not_finish_are_counted_until_one_finishes() {
        check(|files| {
            for want in ["1 0\n", "2 0\n", "3 1\n", "4 2\n"] {
                run_and_crash(files, false);
                assert_eq!(marker(files).as_deref(), Some(want));
            }
            run_and_crash(files, true);
            assert_eq!(marker(files).as_deref(), Some("5 0\n"));
        });
    }

    #[test]
    fn a_clean_stop_removes_the_marker_and_so_does_a_healthy_store() {
        check(|files| {
            run_and_crash(files, true);
            let run = CrashCount::start(files, OpenPolicy::Default);
            run.opened();
            run.will_stop_cleanly();
            assert_eq!(marker(files).as_deref(), Some("2 0\n"), "not before the store is closed");
            drop(run);
            assert_eq!(marker(files), None);
            let run = CrashCount::start(files, OpenPolicy::Default);
            run.mark_healthy();
            assert_eq!(marker(files), None);
            std::mem::forget(run);
            assert_eq!(run_and_crash(files, true), OpenPolicy::Default);
            assert_eq!(marker(files).as_deref(), Some("1 0\n"));
        });
    }

    #[test]
    fn a_store_that_is_only_opened_again_counts_neither_as_unclean_nor_as_healthy() {
        check(|files| {
            run_and_crash(files, true);
            for asked in [OpenPolicy::Default, OpenPolicy::FullCheck, OpenPolicy::FullCheck] {
                let run = CrashCount::start(files, asked);
                assert_eq!(run.exits_to_report(), None);
                run.opened();
                assert_eq!(marker(files).as_deref(), Some("2 0\n"));
                drop(run);
                assert_eq!(marker(files).as_deref(), Some("1 0\n"));
            }
            drop(CrashCount::start(files, OpenPolicy::Default)); // it does not open, and the process lives
            assert_eq!(marker(files).as_deref(), Some("1 0\n"));
        });
    }

    #[test]
    fn a_store_has_proved_usable_once_both_files_were_written_to() {
        check(|files| {
            let run = CrashCount::start(files, OpenPolicy::Default);
            run.has_committed.store(true, Ordering::Release);
            assert!(!run.has_written_both());
            run.has_indexed.store(true, Ordering::Release);
            assert!(run.has_written_both());
        });
    }

    #[test]
    fn a_marker_in_another_format_counts_as_one_unclean_exit() {
        for marker in
            ["", "\n", "7", "7 0 0", "-1 0", "many", "99999999999 0", &"1 ".repeat(MARKER_BYTES_MAX)]
        {
            let want = UncleanExits { count: 1, unfinished_checks: 0 };
            assert_eq!(UncleanExits::parse(marker.as_bytes()), want, "{marker:?}");
        }
        assert_eq!(UncleanExits::parse(b"7 3\n"), UncleanExits { count: 7, unfinished_checks: 3 });
    }

    #[test]
    fn a_directory_that_cannot_be_written_stops_nothing() {
        let run = CrashCount::start(&Directory("/nowhere/at/all".into()), OpenPolicy::Default);
        assert_eq!((run.policy, run.exits_to_report()), (OpenPolicy::Default, None));
        run.mark_healthy();
    }
}
