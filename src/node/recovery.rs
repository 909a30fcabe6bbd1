//! Owns opening a node's store: once at the start, and every second after it failed; less often if that costs much.
//!
//! Called by `run`; calls `Store::open_with`. `store/recovery/open_rules` decides which policy follows which failure;
//! this file has the thread, the timer and the trial process.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::process::Command;

use super::slot::NodeSlot;
use super::{NodeError, now_ms};
use crate::chain::logs::Logs;
use crate::config::NodeConfig;
use crate::store::engine::files::{Directory, FileIdentity};
use crate::store::recovery::open_rules::{OpenHistory, UncleanExits};
use crate::store::{OpenError, Store};

/// Pause before each attempt to open a store that failed.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);
/// The longest such pause.
const REOPEN_INTERVAL_MAX: Duration = Duration::from_secs(10 * 60);

/// Signals that a process sends itself or gets for its own memory access; an operator or a service manager sends
/// others.
const CRASH_SIGNALS: [Signal; 3] = [Signal::ABORT, Signal::SEGV, Signal::BUS];

/// The pause between an attempt that failed and the next one. `took`: the duration of the attempt. On a full disk an
/// attempt may read the whole log before it fails, so the pause grows with its duration.
fn pause_after(error: &OpenError, took: Duration) -> Duration {
    let growing = if error.is_unwritable() { took.saturating_mul(4) } else { REOPEN_INTERVAL };
    growing.clamp(REOPEN_INTERVAL, REOPEN_INTERVAL_MAX)
}

pub type OpenedStore = (Arc<Store>, Logs);

/// Opens the store of one node, and remembers why it failed, as long as the process runs.
pub struct StoreOpener {
    config: Arc<NodeConfig>,
    history: OpenHistory,
    /// This process had the store open. If it is gone, no new one is made in its place: the disk may come back.
    was_open: bool,
    /// The files of the store were absent at the last attempt, or changed shortly before it.
    was_absent: bool,
    /// The file of the log that was open last.
    log: Option<FileIdentity>,
    /// While an opening is under way: what the crash marker said before it.
    exits_before: Option<UncleanExits>,
}

impl StoreOpener {
    /// Reads how the last processes on the store ended.
    pub fn new(config: Arc<NodeConfig>) -> Self {
        let exits = UncleanExits::read(&Directory(config.store_dir.clone()));
        StoreOpener {
            config,
            history: OpenHistory::new(exits),
            was_open: false,
            was_absent: false,
            log: None,
            exits_before: None,
        }
    }

    /// Opens the store. If earlier processes crashed in it, a trial process opens the log first. After a stop the caller
    /// may drop this future and call [`StoreOpener::give_up`].
    pub async fn open(&mut self) -> Result<Result<OpenedStore, OpenError>, NodeError> {
        if self.history.needs_trial() {
            tracing::warn!("the last checks of the store did not finish: a trial process opens the log");
            self.history.trial_crashed = Some(trial_crashes(&self.config.store_dir).await);
        }
        self.exits_before = Some(UncleanExits::read(&Directory(self.config.store_dir.clone())));
        let (config, policy) = (self.config.clone(), self.history.next_policy());
        let (was_open, is_put_back, log) = (self.was_open, self.was_open || self.was_absent, self.log);
        let opening = move || {
            let (dir, network) = (&config.store_dir, &config.network);
            if is_put_back {
                Store::check_settled(dir, log, now_ms())?;
            }
            let open = if was_open { Store::open_again } else { Store::open_with };
            open(dir, network, now_ms(), policy)
        };
        let opened = tokio::task::spawn_blocking(opening).await;
        self.exits_before = None;
        let opened = opened.map_err(|error| NodeError::Ended(format!("opening the store: {error}")))?;
        self.was_open |= opened.is_ok();
        self.was_absent = opened.as_ref().is_err_and(OpenError::is_absence);
        match &opened {
            Ok((store, logs)) => {
                self.history.opened();
                self.log = Some(store.log_identity());
                tracing::info!(
                    node = self.config.node_id,
                    store = %self.config.store_dir.display(),
                    messages = store.counts().messages,
                    origins = logs.vector().origins(),
                    "the store is open"
                );
            }
            Err(error) => self.history.opening_failed(error),
        }
        Ok(opened)
    }

    /// Opens the store again after it failed or did not open. Retries until it opens; the slot says why it does not
    /// yet.
    pub async fn reopen(&mut self, slot: &NodeSlot) -> OpenedStore {
        let mut pause = REOPEN_INTERVAL;
        loop {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            let why = match self.open().await {
                Ok(Ok(opened)) => return opened,
                Ok(Err(error)) => {
                    pause = pause_after(&error, began.elapsed());
                    error.to_string()
                }
                Err(error) => error.to_string(),
            };
            tracing::error!(why, "the store does not open");
            slot.set_reason(why);
        }
    }

    /// Gives up an opening that is under way, because this process ends: the crash marker says again what it said
    /// before. The thread that opens the store goes on until the process is gone. If it finishes at this very moment,
    /// the end of this process counts as a kill.
    pub fn give_up(&self) {
        if let Some(exits) = self.exits_before {
            tracing::info!("the store is not open yet: this process ends without it");
            exits.write(&Directory(self.config.store_dir.clone()));
        }
    }

    /// Records that the store failed while it was open.
    pub fn store_failed(&mut self) {
        self.history.store_failed();
    }
}

/// Whether another process, which opens the log and does nothing else, crashes by itself.
async fn trial_crashes(store_dir: &Path) -> bool {
    let trial = async {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["verify", "--only-open", "--data-dir"]).arg(store_dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        command.status().await
    };
    match trial.await {
        Ok(status) if has_crashed(status) => {
            tracing::error!(%status, "a process that opens the log crashes: the log is salvaged without opening it");
            true
        }
        Ok(_) => false,
        Err(error) => {
            tracing::warn!(%error, "the trial process cannot be started");
            false
        }
    }
}

fn has_crashed(status: ExitStatus) -> bool {
    status.signal().is_some_and(|signal| CRASH_SIGNALS.iter().any(|crash| crash.as_raw() == signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_with_what_an_attempt_on_a_full_disk_costs() {
        let pause = |number: i32, seconds| {
            let source = std::io::Error::from_raw_os_error(number);
            let error = OpenError::Io { path: "log.redb".into(), source };
            pause_after(&error, Duration::from_secs(seconds)).as_secs()
        };
        let (disk_is_full, disk_fails) = (28, 5);
        assert_eq!([0, 30, 6_000].map(|seconds| pause(disk_is_full, seconds)), [1, 120, 600]);
        assert_eq!(pause(disk_fails, 30), 1, "it may pass within seconds");
    }

    #[track_caller]
    fn check(script: &str, want: bool) {
        let status = std::process::Command::new("/bin/sh").args(["-c", script]).status().expect("a shell");
        assert_eq!(has_crashed(status), want, "{script}: {status}");
    }

    #[test]
    fn only_a_process_that_crashes_by_itself_speaks_against_the_log() {
        check("kill -ABRT $$", true);
        check("kill -SEGV $$", true);
        check("kill -KILL $$", false);
        check("kill -TERM $$", false);
        check("exit 1", false);
        check("exit 134", false);
        check("exit 0", false);
    }
}
