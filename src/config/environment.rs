//! Owns the environment: its variables, and the login name of the user.
//!
//! A variable is bytes. One that holds a path is used as it is; one that holds text must be UTF-8, and is refused
//! otherwise: a setting that is skipped could leave a server open. An empty variable counts as unset.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use super::{ConfigError, settings};

const NO_SENDER: &str = "the message has no sender: give --from NAME or set CHATCHAIN_USER";

#[derive(Debug, Default)]
pub struct Environment {
    variables: BTreeMap<OsString, OsString>,
    /// Login name of the process's user in /etc/passwd. In a container, USER and LOGNAME are often unset.
    login: Option<OsString>,
}

impl Environment {
    pub fn of_process() -> Self {
        let passwd = fs::read("/etc/passwd").unwrap_or_default();
        let login = login_name(&passwd, rustix::process::getuid().as_raw());
        Environment { variables: std::env::vars_os().collect(), login }
    }

    /// Refuses a setting that must be text and is not.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let is_text =
            |name: &&str| !settings::PATH_VARIABLES.contains(name) && *name != settings::KEY_VARIABLE;
        let mut names = settings::SETTINGS.iter().map(|setting| setting.env).filter(is_text);
        names
            .find(|name| self.get(name).is_some_and(|value| value.to_str().is_none()))
            .map_or(Ok(()), |name| Err(not_utf8(name)))
    }

    /// The text of a variable.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.to_str()
    }

    pub(super) fn path(&self, name: &str) -> Option<&Path> {
        self.get(name).map(Path::new)
    }

    /// A directory of the user: the one that the variable names, else this one below the home directory. The XDG base
    /// directory specification wants a relative path ignored.
    pub(super) fn user_dir(&self, name: &str, below_home: &str) -> Option<PathBuf> {
        let named = self.path(name).filter(|path| path.is_absolute()).map(PathBuf::from);
        named.or_else(|| Some(self.path("HOME")?.join(below_home)))
    }

    /// Removes a variable, so that the rest may be printed.
    pub(super) fn take(&mut self, name: &str) -> Option<OsString> {
        self.variables.remove(OsStr::new(name)).filter(|value| !value.is_empty())
    }

    /// The login name of the user.
    pub(super) fn login_name(&self) -> Result<String, ConfigError> {
        let name = self.get("USER").or_else(|| self.get("LOGNAME")).or(self.login.as_deref());
        let name = name.ok_or_else(|| ConfigError::new(NO_SENDER))?;
        name.to_str().map(str::to_owned).ok_or_else(|| {
            ConfigError::new("your login name is not UTF-8, so it cannot be the sender: give --from NAME or set CHATCHAIN_USER")
        })
    }

    fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }
}

pub(super) fn not_utf8(variable: &str) -> ConfigError {
    ConfigError(format!("{variable} is not UTF-8 text"))
}

/// The name of a user in the bytes of `/etc/passwd`.
fn login_name(passwd: &[u8], uid: u32) -> Option<OsString> {
    let accounts = passwd.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':'));
    let mut names = accounts.filter_map(|mut fields| {
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id == uid.to_string().as_bytes() && !name.is_empty()).then_some(name)
    });
    names.next().map(|name| OsString::from_vec(name.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    impl Environment {
        pub fn of<N: AsRef<[u8]>, V: AsRef<[u8]>>(
            variables: impl IntoIterator<Item = (N, V)>,
            passwd: &str,
        ) -> Self {
            let owned = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
            let variables =
                variables.into_iter().map(|(name, value)| (owned(name.as_ref()), owned(value.as_ref())));
            Environment { variables: variables.collect(), login: login_name(passwd.as_bytes(), 7) }
        }
    }

    #[test]
    fn a_text_that_is_not_utf8_is_refused_and_a_path_is_not() {
        for setting in settings::SETTINGS.iter().filter(|setting| !setting.env.is_empty()) {
            let checked = Environment::of([(setting.env, b"cl\xe9")], "").check();
            if settings::PATH_VARIABLES.contains(&setting.env) || setting.env == settings::KEY_VARIABLE {
                assert_eq!(checked, Ok(()), "{}", setting.env);
            } else {
                assert_eq!(checked, Err(not_utf8(setting.env)));
            }
        }
    }

    #[test]
    fn the_login_name_is_that_of_the_user() {
        let passwd =
            b"root:x:0:0::/root:/bin/sh\nr\xe9mi:x:7:7::/:\nshort:x\n\n:x:9:9::/:\nann:x:8:8::/:".as_slice();
        let check = |uid, want: Option<&[u8]>| {
            assert_eq!(login_name(passwd, uid).as_deref(), want.map(OsStr::from_bytes), "{uid}");
        };
        check(8, Some(b"ann"));
        check(7, Some(b"r\xe9mi"));
        check(9, None);
        check(10, None);
    }

    #[test]
    fn a_login_name_that_is_not_utf8_is_named_as_the_reason() {
        let name = |user: &[u8]| {
            Environment::of([("USER", user)], "ann:x:7:7").login_name().map_err(|e| e.to_string())
        };
        assert_eq!(name(b"ben"), Ok("ben".into()));
        assert_eq!(name(b""), Ok("ann".into()));
        assert!(name(b"r\xe9mi").is_err_and(|why| why.contains("not UTF-8") && why.contains("--from")));
    }

    #[test]
    fn directories_of_the_user_are_absolute_or_below_home() {
        let dir = |xdg: &str, home: &str| {
            Environment::of([("XDG_STATE_HOME", xdg), ("HOME", home)], "")
                .user_dir("XDG_STATE_HOME", ".local/state")
        };
        assert_eq!(dir("/x", "/h"), Some("/x".into()));
        assert_eq!(dir("", "/h"), Some("/h/.local/state".into()));
        assert_eq!(dir("x", "/h"), Some("/h/.local/state".into()));
        assert_eq!(dir("", ""), None);
    }
}
