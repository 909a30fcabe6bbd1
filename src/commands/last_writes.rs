//! Owns the position of this user's last writes, kept in a file: `list` shows what `send` stored a moment ago, through another
//! server too.
//!
//! `send` adds the position of its answer; `list` asks for a listing that covers it. A position is kept for ten minutes: after
//! that, either the messages have spread, or the node that took them is away. Nothing depends on the file: if it cannot be
//! read, written or locked, the commands go on without it and print nothing. Positions of several networks are kept apart.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::sleep;

use crate::{api::position::Position, config::Sources};

const FILE_NAME: &str = "sent";
/// Older positions are ignored, and removed at the next write.
const AGE_MAX: Duration = Duration::from_secs(600);
/// Beyond this, the network that was written to longest ago is dropped.
const NETWORKS_MAX: usize = 8;
/// The rest of a longer file is ignored, and cut off at the next write.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Other commands lock the file for less than a millisecond. After this many attempts a command goes on without the file, so
/// a process that is stopped while it holds the lock does not block others.
const LOCK_TRIES: u32 = 50;
/// Pause between two attempts.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// The file with the positions of this user's last writes.
#[derive(Debug)]
pub struct LastWrites {
    dir: Option<PathBuf>,
}

/// One line of the file: the writes to one network.
#[derive(Debug, PartialEq, Eq)]
struct LastWrite {
    /// Unix time of the last of them.
    second: u64,
    position: Position,
}

impl LastWrites {
    pub fn of(sources: &Sources) -> Self {
        LastWrites { dir: sources.state_dir() }
    }

    /// The position that a read must cover to show the last writes, of the network that was written to last.
    pub async fn position(&self) -> Option<Position> {
        let mut file = File::open(self.dir.as_ref()?.join(FILE_NAME)).ok()?;
        lock(|| file.try_lock_shared()).await.ok()?;
        read(&mut file).ok()?.into_iter().max_by_key(|line| line.second).map(|line| line.position)
    }

    /// Adds the position of a write that was answered now.
    pub async fn add(&self, position: &Position) {
        let second = now();
        self.change(|lines| {
            let same_network = lines.iter_mut().find_map(|line| line.position.join(position).then_some(line));
            match same_network {
                Some(line) => line.second = second,
                None => lines.push(LastWrite { second, position: position.clone() }),
            }
        })
        .await;
    }

    /// Removes what this position covers: a read has waited for it in vain, and the next read should not wait again.
    pub async fn forget(&self, position: &Position) {
        self.change(|lines| lines.retain(|line| !position.covers(&line.position))).await;
    }

    async fn change(&self, change: impl FnOnce(&mut Vec<LastWrite>)) {
        let Some(dir) = &self.dir else { return };
        if let Err(error) = change_in(dir, change).await {
            tracing::debug!(%error, dir = %dir.display(), "the position of the last write is not kept");
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

    /// Neither too old nor in the future. The latter happens after the clock was set back.
    fn is_recent(&self, now: u64) -> bool {
        now.checked_sub(self.second).is_some_and(|age| age <= AGE_MAX.as_secs())
    }
}

/// The recent lines. A line that cannot be parsed is skipped.
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
    reason = "the age of a position is measured by the clock of this machine"
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

    fn last_writes() -> (tempfile::TempDir, LastWrites) {
        let parent = tempfile::tempdir().expect("temp dir");
        let dir = Some(parent.path().join("not/there/yet"));
        (parent, LastWrites { dir })
    }

    #[tokio::test]
    async fn positions_are_joined_by_network_and_the_last_network_counts() {
        let (_dir, last_writes) = last_writes();
        assert_eq!(last_writes.position().await, None);
        last_writes.add(&position(1, &[(1, 5)])).await;
        last_writes.add(&position(1, &[(2, 3)])).await;
        let both = position(1, &[(1, 5), (2, 3)]);
        assert_eq!(last_writes.position().await, Some(both.clone()));
        last_writes.forget(&position(1, &[(1, 5)])).await;
        assert_eq!(last_writes.position().await, Some(both.clone()), "more was sent meanwhile");
        last_writes.forget(&both).await;
        assert_eq!(last_writes.position().await, None);
    }

    #[tokio::test]
    async fn lines_that_are_old_or_in_the_future_or_malformed_are_ignored() {
        let (_dir, last_writes) = last_writes();
        last_writes.add(&position(1, &[(1, 5)])).await;
        let text = position(1, &[(9, 9)]).to_text();
        let (old, future) = (now() - AGE_MAX.as_secs() - 1, now() + 60);
        let path = last_writes.dir.as_ref().expect("a directory").join(FILE_NAME);
        fs::write(path, format!("{old} {text}\n{future} {text}\nnonsense\n7\n\u{0}")).expect("written");
        assert_eq!(last_writes.position().await, None);
        last_writes.add(&position(2, &[(1, 1)])).await;
        assert_eq!(last_writes.position().await, Some(position(2, &[(1, 1)])));
    }

    #[tokio::test]
    async fn concurrent_writes_are_all_kept() {
        let (_dir, last_writes) = last_writes();
        let all: Vec<_> = (1..=8).map(|origin| (origin, 1)).collect();
        let adding = all.iter().map(|one| {
            let (last_writes, position) = (&last_writes, position(1, &[*one]));
            async move { last_writes.add(&position).await }
        });
        futures_util::future::join_all(adding).await;
        assert_eq!(last_writes.position().await, Some(position(1, &all)));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_no_error_and_delays_little() {
        let (_dir, last_writes) = last_writes();
        last_writes.add(&position(1, &[(1, 5)])).await;
        let path = last_writes.dir.as_ref().expect("a directory").join(FILE_NAME);
        let stopped = File::open(path).expect("it was added");
        stopped.lock().expect("it is free");
        last_writes.add(&position(1, &[(1, 6)])).await;
        assert_eq!(last_writes.position().await, None, "another command has it");
        for dir in [None, Some(PathBuf::from("/dev/null/nowhere"))] {
            let last_writes = LastWrites { dir };
            last_writes.add(&position(1, &[(1, 5)])).await;
            assert_eq!(last_writes.position().await, None);
        }
    }
}
