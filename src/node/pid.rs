//! The file `pid` beside a store: the number of the process that has it open.
//!
//! For people and scripts that want to signal one node of several: `kill $(cat data/node-2/pid)`. Nothing here reads
//! it; that a store is open is known by the lock on it. Whoever holds that lock writes the file, and takes it away
//! before giving the lock up. After `kill -9` it stays, until the next process writes its own number.

use std::fs;
use std::path::{Path, PathBuf};

/// Its name in the store's directory.
const FILE_NAME: &str = "pid";

/// The file, while it says the truth.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes it. Failing is worth a warning only: no message depends on it.
    pub fn write(store_dir: &Path) -> Self {
        let path = store_dir.join(FILE_NAME);
        if let Err(error) = fs::write(&path, format!("{}\n", std::process::id())) {
            tracing::warn!(path = %path.display(), %error, "cannot write the process id");
        }
        PidFile(path)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // If it was never written, there is nothing to take away.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_this_process_while_it_lives() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("pid");
        fs::write(&path, "of one that was killed").expect("a file");
        let file = PidFile::write(dir.path());
        assert_eq!(fs::read_to_string(&path).expect("a file"), format!("{}\n", std::process::id()));
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_no_failure() {
        drop(PidFile::write(Path::new("/nowhere/at/all")));
    }
}
