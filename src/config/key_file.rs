//! Owns the sources of the network's keys, and the rule that a server which other machines can reach needs a key.
//!
//! A key comes from the environment or from a file, never from a flag: every user of the machine can see the flags of a
//! process. The key file is read with the other sources. An error in it fails only the commands that need the keys, so
//! that `chatchain key` can make the file that is missing. No error quotes a key.

use std::{io, path::Path};

use super::{
    ConfigError, Environment, FILE_NAME, SourcedPath, Sources, environment::not_utf8, settings::KEY_VARIABLE,
    text_file,
};
use crate::api::{address::Addr, key::Keys};

const KEY_FILE: &str = "CHATCHAIN_KEY_FILE";

/// A longer file is refused.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// The permissions of group and others.
const GROUP_AND_OTHERS: u32 = 0o077;

impl Sources {
    /// The keys that the environment gives; `None` if it gives none.
    pub(super) fn keys_of_variable(env: &mut Environment) -> Result<Option<Keys>, ConfigError> {
        match (env.take(KEY_VARIABLE), env.path(KEY_FILE)) {
            (Some(_), Some(_)) => {
                Err(ConfigError(format!("{KEY_VARIABLE} and {KEY_FILE} are both set; unset one of them")))
            }
            (Some(value), None) => {
                let text = value.to_str().ok_or_else(|| not_utf8(KEY_VARIABLE))?;
                Keys::from_list(text).map(Some).map_err(|why| ConfigError(format!("{KEY_VARIABLE}: {why}")))
            }
            (None, _) => Ok(None),
        }
    }

    /// The key file that is to be read, if any.
    pub(super) fn named_key_file(&self) -> Option<SourcedPath> {
        self.path(KEY_FILE).filter(|_| self.keys == Ok(None))
    }

    /// The keys of a server. A server that other machines can reach must have keys.
    pub(super) fn keys_to_listen(&self, listen: &Addr, insecure: bool) -> Result<Option<Keys>, ConfigError> {
        let keys = self.keys.clone()?;
        if keys.is_none() && !listen.is_loopback() && !insecure {
            return Err(ConfigError(format!(
                "other machines may reach {listen}, and there is no key, so everybody who reaches it could read and \
                 write everything; make a key with `umask 077; chatchain key > network.key`, copy it to all \
                 machines of the network and set key_file = \"network.key\" in {FILE_NAME}, or give --insecure"
            )));
        }
        Ok(keys)
    }
}

/// Reads the key file that a setting names. Also returns a warning if other users of the machine can read or change the
/// file.
pub(super) fn read(
    SourcedPath { path, source }: &SourcedPath,
) -> (Result<Keys, ConfigError>, Option<String>) {
    let shown = path.display();
    let name = format!("the key file {shown} ({source})");
    match contents(path) {
        Ok((text, mode)) => {
            let keys = Keys::from_lines(&text).map_err(|why| ConfigError(format!("{name}: {why}")));
            let warning =
                format!("{name} can be read or changed by other users of this machine; chmod 600 {shown}");
            (keys, (mode & GROUP_AND_OTHERS != 0).then_some(warning))
        }
        Err(why) => {
            let remedy = "make one with `umask 077; chatchain key > network.key`";
            (Err(ConfigError(format!("cannot read {name}: {why}; {remedy}"))), None)
        }
    }
}

/// The text and the permissions of a file.
fn contents(path: &Path) -> io::Result<(String, u32)> {
    let text_file::Contents { bytes, mode } = text_file::read_named(path, FILE_BYTES_MAX)?;
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))?;
    Ok((text, mode))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const KEY: &str = "a-key-that-nobody-guesses";

    fn read(path: &Path) -> (Result<Keys, ConfigError>, Option<String>) {
        super::read(&SourcedPath { path: path.to_owned(), source: "`key_file`".into() })
    }

    #[track_caller]
    fn check_error(path: &Path, part: &str) {
        let file = read(path);
        let error = file.0.as_ref().expect_err("no keys").to_string();
        assert!(error.contains(part) && error.contains("`key_file`"), "{error:?} lacks {part:?}");
        assert!(!error.contains(KEY) && !error.contains('\n'), "{error:?}");
        assert!(!format!("{file:?}").contains(KEY));
    }

    #[test]
    fn keys_are_read_and_errors_name_the_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("network.key");
        check_error(&path, "chatchain key > network.key");
        check_error(dir.path(), "cannot read the key file");
        check_error(Path::new("/dev/zero"), "longer than 65536 bytes");
        for (text, part) in
            [("", "no key"), ("short", "line 1: a key has 16"), (&format!("{KEY} {KEY}"), "white")]
        {
            fs::write(&path, text).expect("written");
            check_error(&path, part);
        }
        fs::write(&path, b"\xff\xfe").expect("written");
        check_error(&path, "UTF-8");
        fs::write(&path, KEY).expect("written");
        assert_eq!(read(&path).0, Ok(Keys::from_list(KEY).expect("a key")));
    }

    #[test]
    fn a_file_that_other_users_can_read_causes_a_warning() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("network.key");
        fs::write(&path, KEY).expect("written");
        for (mode, warns) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o602, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("our own file");
            let warning = read(&path).1.unwrap_or_default();
            assert_eq!(warning.contains("chmod 600"), warns, "{mode:o}: {warning}");
        }
    }
}
