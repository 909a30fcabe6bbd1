//! Owns the file `pid` in the store's directory: the process id of the node that has the store open.
//!
//! It is for people and scripts that signal one node of several: `kill $(cat data/node-2/pid)`. No code reads it: the
//! lock on the store says whether it is open. `run` writes the file at its start, also if the store does not open yet,
//! and removes it before it releases the lock. After `kill -9` the file stays until the next process replaces it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FILE_NAME: &str = "pid";

/// The file. Dropping it removes the file.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes the file.
    pub fn write(store_dir: &Path) -> Self {
        let file = PidFile(store_dir.join(FILE_NAME));
        file.write_again();
        file
    }

    /// Writes the file again: the directory may be another one now. A failure is only logged: no message depends on it.
    pub fn write_again(&self) {
        let line = format!("{}\n", std::process::id());
        if fs::read_to_string(&self.0).is_ok_and(|there| there == line) {
            return; // a full disk would leave an empty file
        }
        let file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&self.0);
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            tracing::warn!(path = %self.0.display(), %error, "cannot write the process id");
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // missing if it could not be written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_process_id_until_it_is_dropped() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("pid");
        fs::write(&path, "left by a killed process").expect("a file");
        let file = PidFile::write(dir.path());
        assert_eq!(fs::read_to_string(&path).expect("a file"), format!("{}\n", std::process::id()));
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_not_an_error() {
        drop(PidFile::write(Path::new("/nowhere/at/all")));
    }
}
