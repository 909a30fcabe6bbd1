//! Owns the file of `list --cursor-file`: one cursor, with which the next run goes on.
//!
//! The file is replaced as a whole by a rename, so a reader finds the old cursor or the new one, whatever ends the
//! program. Only a regular file is replaced, never a link or a device. What cannot work is refused before anything is
//! printed.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process,
};

use color_eyre::eyre::{Result, WrapErr};

use crate::{api::feed::from_text, config::ConfigError};

/// Checks the file. Returns its path after all links, and the cursor in it; `None` if the file is absent or empty.
pub fn open(file: &Path) -> Result<(PathBuf, Option<String>), ConfigError> {
    let path = resolve(file)?;
    let cursor = read(&path)?;
    let name = temporary_name(&path);
    let written = fs::File::create(&name).and_then(|_| fs::remove_file(&name));
    written.map_err(|error| {
        ConfigError::new(format!("cannot write beside the cursor file {}: {error}", path.display()))
    })?;
    Ok((path, cursor))
}

/// Replaces the cursor in a file that was opened.
pub fn save(file: &Path, cursor: &str) -> Result<()> {
    write(file, cursor).wrap_err_with(|| format!("cannot save the cursor in {}", file.display()))
}

/// The file that a path means after all links. A pipe has no name there, and is refused before it is opened: that could
/// wait for ever.
fn resolve(file: &Path) -> Result<PathBuf, ConfigError> {
    let shown = file.display();
    let real = match fs::metadata(file) {
        Ok(there) if there.is_file() => fs::canonicalize(file),
        Ok(_) => {
            return Err(ConfigError::new(format!(
                "{shown} is not a regular file, and only a regular file can hold a cursor"
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.is_symlink() => Ok(file.to_owned()),
        Err(error) => Err(error),
    };
    real.map_err(|error| ConfigError::new(format!("cannot read the cursor file {shown}: {error}")))
}

fn read(file: &Path) -> Result<Option<String>, ConfigError> {
    match fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) if from_text(text.trim()).is_some() => Ok(Some(text.trim().to_owned())),
        Ok(_) => Err(ConfigError::new(format!(
            "{} holds no cursor of a feed; name another file, or remove this one to start again",
            file.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(ConfigError::new(format!("cannot read the cursor file {}: {error}", file.display())))
        }
    }
}

fn write(file: &Path, cursor: &str) -> io::Result<()> {
    let name = temporary_name(file);
    let replace = || {
        let mut new = fs::File::create(&name)?;
        if let Ok(old) = fs::metadata(file) {
            new.set_permissions(old.permissions())?;
        }
        writeln!(new, "{cursor}")?;
        new.sync_data()?;
        fs::rename(&name, file)
    };
    replace().inspect_err(|_| {
        let _ = fs::remove_file(&name); // it may not exist yet
    })
}

/// Differs from process to process: several may run with the same cursor file.
fn temporary_name(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.new", process::id()));
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    };

    use super::*;

    #[test]
    fn a_cursor_is_replaced_as_a_whole_and_read_back() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("seen");
        assert_eq!(read(&file), Ok(None));
        for cursor in ["AbC-", "AAAA"] {
            write(&file, cursor).expect("writes");
            assert_eq!(read(&file), Ok(Some(cursor.into())));
        }
        assert!(read(dir.path()).is_err(), "a directory is no cursor file");
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 1);
    }

    #[test]
    fn links_devices_and_permissions_stay_what_they_are() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (file, link) = (dir.path().join("seen"), dir.path().join("link"));
        fs::write(&file, "").expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("is ours");
        symlink(&file, &link).expect("links");
        write(&resolve(&link).expect("a file"), "AAAA").expect("writes");
        assert!(link.is_symlink());
        assert_eq!(read(&file), Ok(Some("AAAA".into())));
        assert_eq!(fs::metadata(&file).expect("is there").permissions().mode() & 0o777, 0o600);
        let socket = dir.path().join("socket");
        let _bound = UnixListener::bind(&socket).expect("binds");
        assert!(resolve(&socket).is_err() && resolve(dir.path()).is_err());
        let absent = dir.path().join("absent");
        assert_eq!(resolve(&absent), Ok(absent.clone()));
        let dangling = dir.path().join("dangling");
        symlink(&absent, &dangling).expect("links");
        assert!(resolve(&dangling).is_err(), "the link would be replaced");
    }

    #[test]
    fn a_failed_write_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().expect("temp dir");
        let taken = dir.path().join("taken");
        fs::create_dir(&taken).expect("is made");
        assert!(write(&taken, "AAAA").is_err());
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 1);
    }
}
