//! Owns the rules for how a store is opened after failures and crashes. Pure: no files, no processes, no clock.
//!
//! The first row that applies decides:
//!
//! | what happened before | the store opens with | what the operator reads |
//! |---|---|---|
//! | 5 openings in a row in this process met a disk error (and again after each 5 more) | `AcceptLoss` | warning: its store was damaged, with the number of unreadable bytes |
//! | an opening, a read or a write failed since the last opening that worked in this process | `FullCheck` | a warning that the node opened its store again, and why; at its start, log lines |
//! | 2 full checks in a row crashed or were killed; a trial process crashes on the log, too | `SalvageLog` | warning: its log was damaged |
//! | 2 full checks in a row crashed or were killed; a trial process does not crash | `RebuildIndex` | warning: the log was in order, the index was rebuilt |
//! | 2 unclean exits in a row (a crash or a kill) | `FullCheck` | a log line; a warning if anything was damaged |
//! | a clean stop, a single crash or kill, or a new store id | `Default` | nothing |

use crate::store::{OpenError, OpenPolicy};

/// Unclean exits in a row after which every page is checked. One is a `kill -9` or a power failure, after which a start
/// must be fast. Damage that makes redb abort (a stack overflow on pages that form a cycle, a panic while panicking, an
/// allocation beyond memory) does so again at every start, so it is seen from the second exit on.
const UNCLEAN_EXITS_BEFORE_CHECK: u32 = 2;

/// Full checks in a row that did not finish, after which a trial process opens the log first. A kill leaves the same
/// trace as a crash and says nothing about the files, so a log is salvaged only if a process that opens it crashes by
/// itself. The trial takes as long as an opening.
const UNFINISHED_CHECKS_BEFORE_TRIAL: u32 = 2;

/// Openings in a row that fail with a disk error, after which the next one gives up what the disk does not read. A disk
/// error may pass within seconds (a cable, a controller); a bad sector never does.
const DISK_ERRORS_BEFORE_LOSS: u32 = 5;

/// Processes in a row that exited without a clean stop and without marking the store healthy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UncleanExits {
    /// All of them.
    pub count: u32,
    /// The last of them that were checking every page of the store and did not finish.
    pub unfinished_checks: u32,
}

/// What happened before an opening.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenHistory {
    unclean_exits: UncleanExits,
    /// After the trial that [`OpenHistory::needs_trial`] asks for: whether a process that opened the log, and did
    /// nothing else, crashed by itself. One that reports an error, is killed or cannot be started says nothing against
    /// the log.
    pub trial_crashed: Option<bool>,
    /// An opening, a read or a write failed since the last opening that worked in this process.
    has_failed: bool,
    /// Openings in a row in this process that failed with a disk error.
    disk_errors: u32,
}

impl OpenHistory {
    /// The state at the start of a process.
    pub fn new(unclean_exits: UncleanExits) -> Self {
        OpenHistory { unclean_exits, ..OpenHistory::default() }
    }

    /// The store failed while it was open.
    pub fn store_failed(&mut self) {
        (self.has_failed, self.disk_errors) = (true, 0);
    }

    /// The store is open: what happened before is dealt with.
    pub fn opened(&mut self) {
        *self = OpenHistory::default();
    }

    pub fn opening_failed(&mut self, error: &OpenError) {
        self.has_failed = true;
        self.disk_errors = if error.is_disk_error() { self.disk_errors + 1 } else { 0 };
    }

    /// Whether a trial process must open the log before this process does.
    pub fn needs_trial(&self) -> bool {
        self.unclean_exits.unfinished_checks >= UNFINISHED_CHECKS_BEFORE_TRIAL && self.trial_crashed.is_none()
    }

    /// How the store is opened next.
    pub fn next_policy(&self) -> OpenPolicy {
        let accepts_loss = self.disk_errors > 0 && self.disk_errors.is_multiple_of(DISK_ERRORS_BEFORE_LOSS);
        match self.trial_crashed {
            _ if accepts_loss => OpenPolicy::AcceptLoss,
            _ if self.has_failed => OpenPolicy::FullCheck,
            Some(true) => OpenPolicy::SalvageLog,
            Some(false) => OpenPolicy::RebuildIndex,
            None if self.unclean_exits.count >= UNCLEAN_EXITS_BEFORE_CHECK => OpenPolicy::FullCheck,
            None => OpenPolicy::Default,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK_FAILS: i32 = 5;
    const DISK_IS_FULL: i32 = 28;

    fn exits(count: u32, unfinished_checks: u32) -> OpenHistory {
        OpenHistory::new(UncleanExits { count, unfinished_checks })
    }

    /// How the store is opened after each of these errors.
    fn policies_after(errors: &[i32]) -> Vec<OpenPolicy> {
        let mut history = OpenHistory::default();
        let after = |number: &i32| {
            let source = std::io::Error::from_raw_os_error(*number);
            history.opening_failed(&OpenError::Io { path: "log.redb".into(), source });
            history.next_policy()
        };
        errors.iter().map(after).collect()
    }

    #[test]
    fn unclean_exits_have_every_page_checked_and_nothing_salvaged() {
        for (count, policy) in
            [(0, OpenPolicy::Default), (1, OpenPolicy::Default), (2, OpenPolicy::FullCheck)]
        {
            assert_eq!(exits(count, 0).next_policy(), policy, "{count}");
        }
        assert_eq!(exits(7, 1).next_policy(), OpenPolicy::FullCheck);
        assert!(!exits(7, 1).needs_trial());
    }

    #[test]
    fn only_a_trial_that_crashed_has_the_log_salvaged() {
        let history = exits(7, 2);
        assert!(history.needs_trial());
        for (crashed, policy) in [(true, OpenPolicy::SalvageLog), (false, OpenPolicy::RebuildIndex)] {
            let history = OpenHistory { trial_crashed: Some(crashed), ..history };
            assert!(!history.needs_trial());
            assert_eq!(history.next_policy(), policy);
        }
    }

    #[test]
    fn every_fifth_disk_error_in_a_row_accepts_loss() {
        let (check, accept) = (vec![OpenPolicy::FullCheck; 4], OpenPolicy::AcceptLoss);
        let want = [check.clone(), vec![accept], check, vec![accept]].concat();
        assert_eq!(policies_after(&[DISK_FAILS; 10]), want);
    }

    #[test]
    fn a_full_disk_in_between_restarts_the_count() {
        let is_check = |policy: &OpenPolicy| *policy == OpenPolicy::FullCheck;
        assert!(policies_after(&[DISK_IS_FULL; 9]).iter().all(is_check));
        let errors = [[DISK_FAILS; 4].as_slice(), &[DISK_IS_FULL], &[DISK_FAILS; 4]].concat();
        assert!(policies_after(&errors).iter().all(is_check));
    }

    #[test]
    fn an_opening_that_works_ends_what_happened_before() {
        let mut history = OpenHistory { trial_crashed: Some(true), ..exits(7, 2) };
        for _ in 0..2 {
            history.opened();
            assert_eq!(history.next_policy(), OpenPolicy::Default);
            history.store_failed();
            assert_eq!(history.next_policy(), OpenPolicy::FullCheck);
        }
    }

    #[test]
    fn a_store_that_failed_while_open_is_checked_whatever_happened_before() {
        let mut history = OpenHistory { trial_crashed: Some(true), ..exits(7, 2) };
        history.store_failed();
        assert_eq!(history.next_policy(), OpenPolicy::FullCheck);
    }
}
