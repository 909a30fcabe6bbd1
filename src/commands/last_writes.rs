//! Owns what this user sent last, kept from one command to the next: what `send` stored through one server, `list` finds
//! through another.
//!
//! Kept is a position, as servers answer it, and for a while only: by then it has spread, or what was sent waits on a node that
//! is away. It is a comfort. Where it cannot be kept or read nothing is said, for the commands work without it.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

use crate::api::position::Position;
use crate::config::Sources;

const FILE_NAME: &str = "sent";
/// What was sent longer ago than this is not waited for.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// Networks that are remembered, those that were sent to last.
const NETWORKS_MAX: usize = 8;
/// A longer file is not ours, and begun anew.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Other commands have the file for less than a millisecond each. One that is stopped while it has it keeps nobody.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// See the head of this file.
#[derive(Debug)]
pub struct LastWrites {
    dir: Option<PathBuf>,
}

/// What was sent to one network, and when last.
#[derive(Debug, PartialEq, Eq)]
struct LastWrite {
    second: u64,
    position: Position,
}

impl LastWrites {
    pub fn of(sources: &Sources) -> Self {
        LastWrites { dir: sources.state_dir() }
    }

    /// What a read must cover to show what was sent last, to the network that it was sent to.
    pub async fn position(&self) -> Option<Position> {
        let mut file = File::open(self.dir.as_ref()?.join(FILE_NAME)).ok()?;
        lock(|| file.try_lock_shared()).await.ok()?;
        read(&mut file).ok()?.into_iter().max_by_key(|line| line.second).map(|line| line.position)
    }

    /// This was sent now.
    pub async fn add(&self, position: &Position) {
        let second = now();
        self.change(|lines| {
            let joined = lines.iter_mut().find_map(|line| line.position.join(position).then_some(line));
            match joined {
                Some(line) => line.second = second,
                None => lines.push(LastWrite { second, position: position.clone() }),
            }
        })
        .await;
    }

    /// What this covers was waited for, and will not be again.
    pub async fn forget(&self, position: &Position) {
        self.change(|lines| lines.retain(|line| !position.covers(&line.position))).await;
    }

    async fn change(&self, change: impl FnOnce(&mut Vec<LastWrite>)) {
        let Some(dir) = &self.dir else { return };
        if let Err(error) = change_in(dir, change).await {
            tracing::debug!(%error, dir = %dir.display(), "what was sent last is not remembered");
        }
    }
}

async fn change_in(dir: &Path, change: impl FnOnce(&mut Vec<LastWrite>)) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let file = File::options().read(true).write(true).create(true).truncate(false).open(dir.join(FILE_NAME));
    let mut file = file?;
    lock(|| file.try_lock()).await?;
    let mut lines = read(&mut file)?;
    change(&mut lines);
    lines.sort_by_key(|line| std::cmp::Reverse(line.second));
    lines.truncate(NETWORKS_MAX);
    let text: String = lines.iter().map(ToString::to_string).collect();
    file.seek(SeekFrom::Start(0))?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

impl fmt::Display for LastWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.second, self.position.to_text())
    }
}

impl LastWrite {
    fn parse(line: &str) -> Option<Self> {
        let (second, position) = line.split_once(' ')?;
        Some(LastWrite { second: second.parse().ok()?, position: Position::parse(position)? })
    }

    /// Neither old nor, by a clock that was set back, of the future.
    fn is_recent(&self, now: u64) -> bool {
        now.checked_sub(self.second).is_some_and(|age| age <= KEPT_FOR.as_secs())
    }
}

/// The lines that count. What is not as we write it is passed over.
fn read(file: &mut File) -> io::Result<Vec<LastWrite>> {
    let (mut bytes, now) = (Vec::new(), now());
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().filter_map(LastWrite::parse).filter(|line| line.is_recent(now)).collect())
}

async fn lock(try_lock: impl Fn() -> Result<(), TryLockError>) -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        match try_lock() {
            Err(TryLockError::WouldBlock) => sleep(LOCK_PAUSE).await,
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long something is kept is counted from the clock of whoever keeps it"
)]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::cursor;
    use crate::chain::ids::Origin;

    fn position(network: u8, seqs: &[(u8, u64)]) -> Position {
        let seqs = seqs.iter().map(|(origin, seq)| (Origin([*origin; 16]), *seq));
        let text = crate::api::feed::to_text(&cursor::position([network; 8], seqs));
        Position::parse(&text).expect("a position")
    }

    fn memory() -> (tempfile::TempDir, LastWrites) {
        let parent = tempfile::tempdir().expect("temp dir");
        let dir = Some(parent.path().join("not/there/yet"));
        (parent, LastWrites { dir })
    }

    #[tokio::test]
    async fn what_was_sent_is_joined_by_network_and_asked_of_the_last_one() {
        let (_dir, memory) = memory();
        assert_eq!(memory.position().await, None);
        memory.add(&position(1, &[(1, 5)])).await;
        memory.add(&position(1, &[(2, 3)])).await;
        let both = position(1, &[(1, 5), (2, 3)]);
        assert_eq!(memory.position().await, Some(both.clone()));
        memory.forget(&position(1, &[(1, 5)])).await;
        assert_eq!(memory.position().await, Some(both.clone()), "more was sent meanwhile");
        memory.forget(&both).await;
        assert_eq!(memory.position().await, None);
    }

    #[tokio::test]
    async fn what_is_old_or_of_the_future_or_not_ours_does_not_count() {
        let (_dir, memory) = memory();
        memory.add(&position(1, &[(1, 5)])).await;
        let text = position(1, &[(9, 9)]).to_text();
        let (old, future) = (now() - KEPT_FOR.as_secs() - 1, now() + 60);
        let path = memory.dir.as_ref().expect("a directory").join(FILE_NAME);
        fs::write(path, format!("{old} {text}\n{future} {text}\nnonsense\n7\n\u{0}")).expect("written");
        assert_eq!(memory.position().await, None);
        memory.add(&position(2, &[(1, 1)])).await;
        assert_eq!(memory.position().await, Some(position(2, &[(1, 1)])));
    }

    #[tokio::test]
    async fn many_at_once_keep_all_of_it() {
        let (_dir, memory) = memory();
        let all: Vec<_> = (1..=8).map(|origin| (origin, 1)).collect();
        let adding = all.iter().map(|one| {
            let (memory, position) = (&memory, position(1, &[*one]));
            async move { memory.add(&position).await }
        });
        futures_util::future::join_all(adding).await;
        assert_eq!(memory.position().await, Some(position(1, &all)));
    }

    #[tokio::test]
    async fn where_nothing_can_be_kept_nothing_is_and_nobody_waits_long() {
        let (_dir, memory) = memory();
        memory.add(&position(1, &[(1, 5)])).await;
        let path = memory.dir.as_ref().expect("a directory").join(FILE_NAME);
        let stopped = File::open(path).expect("it was added");
        stopped.lock().expect("nobody else has it");
        memory.add(&position(1, &[(1, 6)])).await;
        assert_eq!(memory.position().await, None, "another command has it");
        for dir in [None, Some(PathBuf::from("/dev/null/nowhere"))] {
            let memory = LastWrites { dir };
            memory.add(&position(1, &[(1, 5)])).await;
            assert_eq!(memory.position().await, None);
        }
    }
}
