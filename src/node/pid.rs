//! Owns the file `pid` in the store's directory: the process id of the node that has the store open.
//!
//! It is for people and scripts that signal one node of several: `kill $(cat data/node-2/pid)`. No code acts on it: the
//! lock on the store says whether it is open. `run` writes the file before the address answers, unless another process
//! has the store open, and removes its own file at the end. After `kill -9` the file stays until the next process
//! replaces it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::store::engine::files::{self, Directory, Files as _};

const FILE_NAME: &str = "pid";

/// The file. Dropping it removes the file if it still names this process.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes the file, unless another process has the store open or there is no store yet.
    pub fn write(store_dir: &Path) -> Self {
        let file = PidFile(store_dir.join(FILE_NAME));
        if Directory(store_dir.to_owned()).lock().is_ok() {
            let _ = file.try_write(); // `write_again` reports what is wrong
        }
        file
    }

    /// Writes the file again: the directory may be another one now. A failure is only logged: no message depends on it.
    /// Called while no other process has the store open.
    pub fn write_again(&self) {
        if let Err(error) = self.try_write() {
            tracing::warn!(path = %self.0.display(), %error, "cannot write the process id");
        }
    }

    fn try_write(&self) -> io::Result<()> {
        if self.names_this_process() {
            return Ok(()); // a full disk would leave an empty file
        }
        files::check_regular(&self.0)?;
        // Renamed into its place, so that no reader sees an empty file, and a link is not followed.
        let dir = self.0.parent().expect("the file is in a directory");
        Directory(dir.to_owned()).replace(FILE_NAME, this_process().as_bytes())
    }

    fn names_this_process(&self) -> bool {
        files::check_regular(&self.0).is_ok()
            && fs::read_to_string(&self.0).is_ok_and(|there| there == this_process())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.names_this_process() {
            let _ = fs::remove_file(&self.0); // the next process replaces a file that stays
        }
    }
}

fn this_process() -> String {
    format!("{}\n", std::process::id())
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
    fn what_a_link_leads_to_is_not_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (target, link) = (dir.path().join("other"), dir.path().join("pid"));
        fs::write(&target, "text").expect("a file");
        std::os::unix::fs::symlink(&target, &link).expect("a link");
        let file = PidFile::write(dir.path());
        assert_eq!(fs::read_to_string(&link).expect("a file"), this_process());
        assert_eq!(fs::read_to_string(&target).expect("a file"), "text");
        drop(file);
    }

    #[test]
    fn the_file_of_a_process_that_has_the_store_open_stays() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("pid");
        fs::write(&path, "4711\n").expect("a file");
        let lock = Directory(dir.path().to_owned()).lock().expect("free");
        drop(PidFile::write(dir.path()));
        assert_eq!(fs::read_to_string(&path).expect("a file"), "4711\n");
        drop(lock);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_not_an_error() {
        drop(PidFile::write(Path::new("/nowhere/at/all")));
    }
}
