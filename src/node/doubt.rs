//! Owns with how much trust a node first opens its store after openings that ended the process.
//!
//! That a process ended while it checked every page does not say why: damage may have ended it, or somebody who would
//! not wait so long. Only for the first reason may a log be given up. So when it has happened often enough, another process
//! opens the log before this one does, and how it ends is the answer.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::process::Signal;
use tokio::process::Command;

use crate::store::OpenPolicy;
use crate::store::recovery::crash_count::UncleanExits;

/// So many openings in a row, for which every page was checked, must have ended the process before it is found out whether
/// it is the log that ends it. One may be a kill, and finding out takes as long as an opening.
const OPENINGS_MAX: u32 = 2;

/// How a process ends that gives up, or that the system ends because of what it does. Nobody else sends these.
const OF_ITSELF: [Signal; 3] = [Signal::ABORT, Signal::SEGV, Signal::BUS];

/// With how much trust the store in this directory is opened.
pub async fn trust(store_dir: &Path) -> OpenPolicy {
    let openings = UncleanExits::of(store_dir).openings;
    if openings < OPENINGS_MAX {
        return OpenPolicy::Default; // the store itself knows of other bad ends
    }
    tracing::warn!(
        openings,
        "the last openings of the store ended badly: another process tries to open the log"
    );
    match only_open(store_dir).await {
        Ok(status) if ended_of_itself(status) => {
            tracing::error!(%status, "whoever opens the log ends with it: it is given up");
            OpenPolicy::SalvageLog
        }
        // If it was damage, then to the index.
        Ok(_) => OpenPolicy::RebuildIndex,
        Err(error) => {
            tracing::warn!(%error, "no other process can be started");
            OpenPolicy::RebuildIndex
        }
    }
}

async fn only_open(store_dir: &Path) -> io::Result<ExitStatus> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["verify", "--only-open", "--data-dir"]).arg(store_dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.status().await
}

fn ended_of_itself(status: ExitStatus) -> bool {
    status.signal().is_some_and(|signal| OF_ITSELF.iter().any(|of_itself| of_itself.as_raw() == signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(script: &str, want: bool) {
        let status = std::process::Command::new("/bin/sh").args(["-c", script]).status().expect("a shell");
        assert_eq!(ended_of_itself(status), want, "{script}: {status}");
    }

    #[test]
    fn only_a_process_that_gives_up_speaks_against_the_log() {
        check("kill -ABRT $$", true);
        check("kill -SEGV $$", true);
        check("kill -KILL $$", false);
        check("kill -TERM $$", false);
        check("exit 1", false);
        check("exit 134", false);
        check("exit 0", false);
    }

    #[tokio::test]
    async fn a_store_of_which_nothing_bad_is_known_is_opened_as_usual() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert_eq!(trust(dir.path()).await, OpenPolicy::Default);
        std::fs::write(dir.path().join("unproven"), "7 1\n").expect("written");
        assert_eq!(trust(dir.path()).await, OpenPolicy::Default);
    }
}
