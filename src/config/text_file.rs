//! Owns the reading of the files of the configuration: bounded in size, and in time.
//!
//! A file that the program found by itself may belong to another program, and is opened only if it is a regular file:
//! opening a pipe can wait for ever. A file that is named may be a pipe, as in `--config <(…)`.

use std::{fs, io, io::Read, os::unix::fs::PermissionsExt, path::Path, sync::mpsc, thread, time::Duration};

use crate::output::eprint_line;

/// How long a program may take to write a pipe, such as one that asks for a passphrase.
const PIPE_WAIT_MAX: Duration = Duration::from_secs(60);

/// After this time the user is told what the program waits for.
const PIPE_NOTE_AFTER: Duration = Duration::from_secs(1);

/// The bytes and the permissions of a file.
#[derive(Debug)]
pub(super) struct Contents {
    pub bytes: Vec<u8>,
    pub mode: u32,
}

/// Reads a file that the program found by itself. A longer file than `bytes_max` is refused.
pub(super) fn read_regular(path: &Path, bytes_max: u64) -> io::Result<Contents> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    read(path, bytes_max)
}

/// Reads a file that the user named. A longer file than `bytes_max` is refused; it holds something else, or, as a
/// device, has no end.
pub(super) fn read_named(path: &Path, bytes_max: u64) -> io::Result<Contents> {
    if fs::metadata(path)?.is_file() {
        read(path, bytes_max)
    } else {
        read_within(PIPE_WAIT_MAX, path, bytes_max)
    }
}

/// A thread of its own reads, because opening a pipe without a writer cannot be interrupted. The thread then lives as
/// long as the process.
fn read_within(wait: Duration, path: &Path, bytes_max: u64) -> io::Result<Contents> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let owned = path.to_owned();
    thread::Builder::new().spawn(move || sender.send(read(&owned, bytes_max)))?;
    let soon = wait.min(PIPE_NOTE_AFTER);
    if let Ok(contents) = receiver.recv_timeout(soon) {
        return contents;
    }
    let left = wait.saturating_sub(soon);
    let path = path.display();
    eprint_line(&format!(
        "waiting up to {} s for a program that writes {path}, which is a pipe",
        left.as_secs()
    ));
    let late = |_| io::Error::other(format!("it is not complete after {} s", wait.as_secs()));
    receiver.recv_timeout(left).map_err(late)?
}

fn read(path: &Path, bytes_max: u64) -> io::Result<Contents> {
    let file = fs::File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("it is longer than {bytes_max} bytes")));
    }
    Ok(Contents { bytes, mode })
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    #[test]
    fn a_pipe_is_read_for_a_limited_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Two pipes: the reader that was late still waits for the first, and would take the text.
        let [unwritten, pipe] = ["unwritten", "pipe"].map(|name| dir.path().join(name));
        for path in [&unwritten, &pipe] {
            mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).expect("a pipe");
        }
        let late = read_within(Duration::from_millis(1), &unwritten, 9).expect_err("nobody writes");
        assert_eq!(late.to_string(), "it is not complete after 0 s");
        assert!(read_regular(&pipe, 9).is_err_and(|why| why.to_string().contains("regular")));
        let target = pipe.clone();
        let writer = thread::spawn(move || fs::write(target, "text"));
        assert_eq!(read_named(&pipe, 9).expect("is written").bytes, b"text");
        writer.join().expect("no panic").expect("is written");
    }
}
