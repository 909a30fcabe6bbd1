//! Owns the position of this user's last writes, kept in a file: `list` shows what `send` stored a moment ago, through
//! another server too.
//!
//! `send` adds the position of its answer; `list` asks for a listing that covers it. A position is kept for ten
//! minutes: after that, either the messages have spread, or the node that took them is away. Nothing depends on the
//! file: if it cannot be read, written or locked, the commands go on without it and print nothing.
//!
//! Two networks can have one name. So a position is kept with the addresses to which its user sent, and counts for
//! commands that ask one of them.

use std::{
    cmp::Reverse,
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::PathBuf,
    time::Duration,
};

use tokio::time::sleep;

use super::now;
use crate::api::{address::Addr, position::Position};

const FILE_NAME: &str = "sent";
/// Older positions are ignored, and removed at the next write.
const AGE_MAX: Duration = Duration::from_secs(600);
/// Beyond this, the network that was written to longest ago is dropped.
const NETWORKS_MAX: usize = 8;
/// Of the addresses of one network, the ones used before are dropped first.
const ADDRS_MAX: usize = 64;
/// The rest of a longer file is ignored, and cut off at the next write.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Other commands lock the file for less than a millisecond. After this many attempts a command goes on without the
/// file, so a process that is stopped while it holds the lock does not block others.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub struct LastWrites {
    dir: Option<PathBuf>,
    /// The addresses of one network, as the user names it.
    addrs: Vec<Addr>,
}

/// One line of the file: the writes to one network.
#[derive(Debug)]
struct LastWrite {
    /// Unix time of the last of them.
    second: i64,
    position: Position,
    addrs: Vec<Addr>,
}

impl LastWrites {
    pub fn new(dir: Option<PathBuf>, addrs: Vec<Addr>) -> Self {
        LastWrites { dir, addrs }
    }

    /// The position that a read must cover to show the last writes.
    pub async fn position(&self) -> Option<Position> {
        let (_, lines) = self.open(false).await.ok()?;
        let ours = lines.into_iter().filter(|line| self.knows(line));
        ours.max_by_key(|line| line.second).map(|line| line.position)
    }

    fn knows(&self, line: &LastWrite) -> bool {
        line.addrs.iter().any(|addr| self.addrs.contains(addr))
    }

    /// Adds the position of a write that was answered now.
    pub async fn add(&self, position: &Position) {
        let second = now().as_second();
        self.change(|lines| {
            let mut new = LastWrite { second, position: position.clone(), addrs: self.addrs.clone() };
            lines.retain(|line| {
                let is_same = self.knows(line) && new.position.join(&line.position);
                if is_same {
                    new.addrs.extend(line.addrs.iter().filter(|addr| !self.addrs.contains(addr)).cloned());
                }
                !is_same
            });
            new.addrs.truncate(ADDRS_MAX);
            lines.push(new);
        })
        .await;
    }

    /// Removes what this position covers: a read has waited for it in vain, and the next read should not wait again.
    pub async fn forget(&self, position: &Position) {
        self.change(|lines| lines.retain(|line| !self.knows(line) || !position.covers(&line.position))).await;
    }

    async fn change(&self, change: impl FnOnce(&mut Vec<LastWrite>)) {
        let replace = async {
            let (mut file, mut lines) = self.open(true).await?;
            change(&mut lines);
            lines.sort_by_key(|line| Reverse(line.second));
            lines.truncate(NETWORKS_MAX);
            file.rewind()?;
            file.set_len(0)?;
            let text = lines.iter().map(LastWrite::to_line).collect::<String>();
            file.write_all(text.as_bytes())
        };
        if let Err(error) = replace.await {
            tracing::debug!(%error, dir = ?self.dir, "the position of the last write is not kept");
        }
    }

    /// Opens and locks the file, and reads its recent lines. A line that cannot be parsed is skipped.
    async fn open(&self, create: bool) -> io::Result<(File, Vec<LastWrite>)> {
        let dir = self.dir.as_ref().ok_or(io::ErrorKind::NotFound)?;
        if create {
            fs::create_dir_all(dir)?;
        }
        let path = dir.join(FILE_NAME);
        if fs::metadata(&path).is_ok_and(|there| !there.is_file()) {
            return Err(io::ErrorKind::InvalidInput.into()); // the open of a pipe could wait for ever
        }
        let mut options = File::options();
        let file = options.read(true).write(create).create(create).truncate(false).open(path)?;
        lock(|| if create { file.try_lock() } else { file.try_lock_shared() }).await?;
        let mut bytes = Vec::new();
        (&file).take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter_map(LastWrite::parse).filter(LastWrite::is_recent).collect();
        Ok((file, lines))
    }
}

impl LastWrite {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (second, position) = (words.next()?.parse().ok()?, Position::parse(words.next()?)?);
        Some(LastWrite {
            second,
            position,
            addrs: words.map(|word| word.parse().ok()).collect::<Option<_>>()?,
        })
    }

    /// The time, the position and the addresses.
    fn to_line(&self) -> String {
        let addrs = self.addrs.iter().map(|addr| format!(" {addr}"));
        format!("{} {}{}\n", self.second, self.position.to_text(), addrs.collect::<String>())
    }

    /// Neither too old nor in the future. The latter happens after the clock was set back.
    fn is_recent(&self) -> bool {
        let age = now().as_second().checked_sub(self.second).and_then(|age| u64::try_from(age).ok());
        age.is_some_and(|age| age <= AGE_MAX.as_secs())
    }
}

async fn lock(try_lock: impl Fn() -> Result<(), TryLockError>) -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        match try_lock() {
            Err(TryLockError::WouldBlock) => sleep(LOCK_PAUSE).await,
            result => return result.map_err(io::Error::from),
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
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
        (parent, LastWrites { dir, addrs: addrs(&["proxy:8080", "10.0.0.1:1"]) })
    }

    fn addrs(texts: &[&str]) -> Vec<Addr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[tokio::test]
    async fn positions_of_one_network_are_joined() {
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
    async fn networks_of_one_name_are_kept_apart_by_their_addresses() {
        let (_dir, one) = last_writes();
        let with = |texts: &[&str]| LastWrites::new(one.dir.clone(), addrs(texts));
        one.add(&position(1, &[(1, 5)])).await;
        let other = with(&["proxy:9080"]);
        assert_eq!(other.position().await, None);
        other.add(&position(1, &[(2, 3)])).await;
        assert_eq!(one.position().await, Some(position(1, &[(1, 5)])));
        assert_eq!(with(&["10.0.0.1:1"]).position().await, Some(position(1, &[(1, 5)])));
        // A user who names addresses of both takes them for one network.
        let both = with(&["proxy:9080", "proxy:8080"]);
        both.add(&position(1, &[(3, 1)])).await;
        let joined = Some(position(1, &[(1, 5), (2, 3), (3, 1)]));
        assert_eq!([one.position().await, other.position().await], [joined.clone(), joined]);
    }

    #[tokio::test]
    async fn lines_that_are_old_or_in_the_future_or_malformed_are_ignored() {
        let (_dir, last_writes) = last_writes();
        last_writes.add(&position(1, &[(1, 5)])).await;
        let text = position(1, &[(9, 9)]).to_text();
        let (old, future) = (now().as_second() - 601, now().as_second() + 60);
        let path = last_writes.dir.as_ref().expect("a directory").join(FILE_NAME);
        fs::write(
            path,
            format!("{old} {text} proxy:8080\n{future} {text} proxy:8080\n{old} {text}\nnonsense\n7\n\u{0}"),
        )
        .expect("written");
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
            let last_writes = LastWrites { dir, addrs: addrs(&["proxy:8080"]) };
            last_writes.add(&position(1, &[(1, 5)])).await;
            assert_eq!(last_writes.position().await, None);
        }
    }
}
