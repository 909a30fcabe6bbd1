//! Owns the configuration file: which file is read, and from its text the settings, which know the line they stand on.
//!
//! The keys are those of [`settings::SETTINGS`]; any other key is refused. Values stay text here: what they mean is
//! decided only after [`super::Sources`] has chosen the source that wins. Every refusal names the file, the line and
//! the remedy.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{ConfigError, Environment, SourcedValue, settings, text_file};
use crate::api::network::NodeId;

/// Read from the working directory if it exists. Other programs have files of this name, too.
pub const FILE_NAME: &str = "config.toml";
/// Read before [`FILE_NAME`], from the working directory.
const OWN_FILE_NAME: &str = "chatchain.toml";
/// A longer file is refused.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// A key is taken for a mistyped one of ours if this many edits make it one. For a short key, it is one edit after the
/// first letter: other edits make `node` of `name` and `mode`, which many programs have.
const EDITS_MAX: usize = 2;
const SHORT_KEY_CHARS_MAX: usize = 5;

/// The file to read.
#[derive(Debug, Default)]
pub(super) struct FoundFile {
    /// Its path and its text; `None` if there is none.
    pub file: Option<(PathBuf, String)>,
    /// The first file that was passed over.
    pub passed_over: Option<PassedOver>,
}

/// The place of a file that was found without a name from the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The working directory, with a name of our own.
    Own,
    /// The working directory, with a name that other programs use, too.
    Shared,
    /// The directory of the user.
    OfUser,
}

/// A file without which a client goes on, and a server does not.
#[derive(Debug)]
pub(super) struct PassedOver {
    path: PathBuf,
    place: Place,
    /// Follows the name of the file in a sentence.
    why: String,
}

impl PassedOver {
    /// For the user of a client.
    pub fn note(&self) -> String {
        let also =
            if self.place == Place::Shared { format!(", or call it {OWN_FILE_NAME}") } else { String::new() };
        let (file, why) = (self.shown(), &self.why);
        format!("{file} is passed over: it {why}; name the configuration with --config FILE{also}")
    }

    /// For the user of a server.
    pub fn refusal(&self) -> ConfigError {
        let also = if self.place == Place::Shared { ", or start in another directory" } else { "" };
        let (file, why) = (self.shown(), &self.why);
        ConfigError(format!("{file} {why}; name the configuration with --config FILE{also}"))
    }

    fn shown(&self) -> String {
        let here = if self.place == Place::OfUser { "" } else { " in this directory" };
        format!("{}{here}", self.path.display())
    }
}

/// Finds and reads the file: the one that the flag or the variable names, else the first of those in the working
/// directory and in the user's directory for configuration.
pub(super) fn find(named: Option<&Path>, env: &Environment) -> Result<FoundFile, ConfigError> {
    let mut found = FoundFile::default();
    if let Some(path) = named.or_else(|| env.path("CHATCHAIN_CONFIG")) {
        let read = text_file::read_named(path, FILE_BYTES_MAX).map_err(|error| unreadable(path, &error))?;
        found.file = Some((path.to_owned(), checked_text(path, read.bytes)?));
        return Ok(found);
    }
    let here = [(Place::Own, OWN_FILE_NAME.into()), (Place::Shared, FILE_NAME.into())];
    let of_user = env.user_dir("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("chatchain").join(FILE_NAME));
    for (place, path) in here.into_iter().chain(of_user.map(|path| (Place::OfUser, path))) {
        let why = match read_unnamed(&path) {
            Ok(None) => continue,
            Ok(Some(bytes)) => {
                let foreign = why_foreign(&path, &bytes).filter(|_| place == Place::Shared);
                let Some(why) = foreign else {
                    let text = checked_text(&path, bytes)?;
                    found.file = Some((path, text));
                    break;
                };
                why
            }
            Err(error) if may_lack(place, &error) => format!("cannot be read ({error})"),
            Err(error) => return Err(unreadable(&path, &error)),
        };
        found.passed_over.get_or_insert(PassedOver { path, place, why });
    }
    Ok(found)
}

/// Reads a file that need not exist. `None` also if the user may not see whether it exists: the home directory of
/// another user, which `sudo -u` and containers leave in HOME, holds nothing for this user.
fn read_unnamed(path: &Path) -> io::Result<Option<Vec<u8>>> {
    if fs::symlink_metadata(path)
        .is_err_and(|error| is_absent(&error) || error.kind() == ErrorKind::PermissionDenied)
    {
        return Ok(None);
    }
    match text_file::read_regular(path, FILE_BYTES_MAX) {
        Ok(read) => Ok(Some(read.bytes)),
        Err(error) if is_absent(&error) => Err(io::Error::new(error.kind(), "it is a link to nothing")),
        Err(error) => Err(error),
    }
}

/// Whether a client goes on without a file that cannot be read for this reason.
fn may_lack(place: Place, error: &io::Error) -> bool {
    match place {
        Place::Own => false,
        Place::Shared => true,
        Place::OfUser => error.kind() == ErrorKind::PermissionDenied || is_absent(error),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    ConfigError(format!(
        "cannot read the configuration file {}: {error}; name another one with --config FILE",
        path.display()
    ))
}

fn is_absent(error: &io::Error) -> bool {
    use ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidFilename)
}

fn checked_text(path: &Path, bytes: Vec<u8>) -> Result<String, ConfigError> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
        ParsedFile { path, text: &text }.error(valid..valid, "this is not UTF-8 text")
    })
}

/// Why a file in the working directory belongs to another program; `None` if it may be ours.
fn why_foreign(path: &Path, bytes: &[u8]) -> Option<String> {
    let text = checked_text(path, bytes.to_owned());
    let parsed = text.as_ref().map_err(ConfigError::clone).and_then(|text| ParsedFile { path, text }.table());
    match parsed {
        Ok(table) => {
            let mut keys = table.get_ref().keys().peekable();
            let is_foreign = keys.peek().is_some() && !keys.any(|key| is_like_ours(key.get_ref()));
            is_foreign.then(|| "belongs to another program (no key of ChatChain)".into())
        }
        Err(error) => {
            let is_foreign = !has_line_of_ours(&String::from_utf8_lossy(bytes));
            is_foreign.then(|| format!("has no key of ChatChain ({error})"))
        }
    }
}

/// Whether a key is one of ours or a mistyped one.
fn is_like_ours(key: &str) -> bool {
    let known = settings::file_keys().flat_map(|known| known.split('.')).chain(settings::SECTIONS);
    known.into_iter().any(|known| {
        let edits = strsim::damerau_levenshtein(key, known);
        let is_short = known.len() <= SHORT_KEY_CHARS_MAX;
        if is_short { edits <= 1 && key.chars().next() == known.chars().next() } else { edits <= EDITS_MAX }
    })
}

/// Whether a line of a text that is not TOML begins with a key or a table of ours. The lines of other tables do not
/// count.
fn has_line_of_ours(text: &str) -> bool {
    let mut is_in_table = false;
    text.trim_start_matches('\u{feff}').lines().any(|line| {
        let line = line.trim_start();
        let is_table = line.starts_with('[');
        is_in_table |= is_table;
        let name = line.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '[' | '"' | '\''));
        let name = name.split(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '-')).next();
        let mut known = settings::file_keys().filter_map(|key| key.split('.').next());
        is_table == is_in_table && known.any(|known| name == Some(known))
    })
}

#[derive(Debug, Default)]
pub(super) struct FileSettings {
    /// The directory of the file, to which its paths are relative.
    pub dir: PathBuf,
    /// All settings but `nodes`, by the name of their environment variable.
    pub values: BTreeMap<&'static str, SourcedValue>,
    /// The nodes' numbers and addresses.
    pub nodes: Option<Vec<(NodeId, SourcedValue)>>,
}

type TomlKey<'i> = Spanned<Cow<'i, str>>;
type TomlValue<'i> = Spanned<DeValue<'i>>;

/// Reads the text of the file at this path.
pub(super) fn read(path: &Path, text: &str) -> Result<FileSettings, ConfigError> {
    let dir = path.parent().unwrap_or(Path::new("")).to_owned();
    let file = ParsedFile { path, text };
    let table = file.table()?;
    let mut settings = FileSettings { dir, ..FileSettings::default() };
    for (key, value) in table.get_ref() {
        let name = key.get_ref().as_ref();
        match value.get_ref() {
            _ if name == "nodes" => settings.nodes = Some(file.nodes(value)?),
            DeValue::Table(section) if settings::SECTIONS.contains(&name) => {
                for (key, value) in section {
                    file.setting(&mut settings, &format!("{name}.{}", key.get_ref()), key, value)?;
                }
            }
            _ if settings::SECTIONS.contains(&name) => {
                return Err(file.error(key.span(), format!("`{name}` is a table: write `[{name}]`")));
            }
            _ => file.setting(&mut settings, name, key, value)?,
        }
    }
    Ok(settings)
}

struct ParsedFile<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> ParsedFile<'a> {
    fn table(&self) -> Result<Spanned<DeTable<'a>>, ConfigError> {
        DeTable::parse(self.text).map_err(|error| {
            let message = error.message().replace('\n', "; ");
            self.error(error.span().unwrap_or(0..0), format!("this is not TOML: {message}"))
        })
    }

    fn setting(
        &self,
        settings: &mut FileSettings,
        name: &str,
        key: &TomlKey<'_>,
        value: &TomlValue<'_>,
    ) -> Result<(), ConfigError> {
        let Some(setting) = settings::SETTINGS.iter().find(|setting| setting.key == name) else {
            let nearest = settings::nearest(name, settings::file_keys().chain(settings::SECTIONS));
            return Err(self.error(key.span(), format!("unknown key `{name}`; did you mean `{nearest}`?")));
        };
        settings.values.insert(setting.env, self.string(name, value, setting.default)?);
        Ok(())
    }

    /// `nodes` as an array, where the position is the node's number, or as a table that names the numbers.
    fn nodes(&self, value: &TomlValue<'_>) -> Result<Vec<(NodeId, SourcedValue)>, ConfigError> {
        let address =
            |id: NodeId, value| Ok((id, self.string(&format!("nodes.{id}"), value, "127.0.0.1:8081")?));
        match value.get_ref() {
            DeValue::Array(array) => (0..).zip(array.iter()).map(|(id, value)| address(id, value)).collect(),
            DeValue::Table(table) => {
                let entry = |(key, value): (&TomlKey<'_>, _)| {
                    let name = key.get_ref();
                    let why = || format!("`nodes` has the key `{name}`; its keys are node ids such as 0");
                    address(name.parse().map_err(|_| self.error(key.span(), why()))?, value)
                };
                table.iter().map(entry).collect()
            }
            _ => Err(self.error(
                value.span(),
                "`nodes` must be an array such as [\"127.0.0.1:8081\"] or a table such as { 0 = \"127.0.0.1:8081\" }",
            )),
        }
    }

    /// The text of a value. A value of another type is refused, with an example of a text.
    fn string(&self, name: &str, value: &TomlValue<'_>, example: &str) -> Result<SourcedValue, ConfigError> {
        let DeValue::String(text) = value.get_ref() else {
            let kind = value.get_ref().type_str();
            let why =
                format!("`{name}` must be text in quotes such as {example:?}, not a value of type {kind}");
            return Err(self.error(value.span(), why));
        };
        let source = format!("`{name}` in {}", self.line_of(value.span()));
        Ok(SourcedValue { text: text.to_string(), source })
    }

    fn error(&self, span: Range<usize>, why: impl AsRef<str>) -> ConfigError {
        ConfigError(format!("{}: {}", self.line_of(span), why.as_ref()))
    }

    fn line_of(&self, span: Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        format!("{} line {line}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_key_of_ours_is_foreign() {
        let check = |text: &str, want: bool| {
            let why = why_foreign(Path::new(FILE_NAME), text.as_bytes());
            assert_eq!(why.is_some(), want, "{text}: {why:?}");
        };
        check(
            "baseURL = 'https://example.org/'\nlanguageCode = 'en'\ntitle = 'x'\n[params]\nnetwork = 'x'",
            true,
        );
        check("[menu]\nmain = 1", true);
        for foreign in [
            "name = 'x'",
            "title = 'x'",
            "log = 'debug'",
            "[tls]\ncert = 'x'",
            "[name]",
            "core = 1",
            "mode = 'x'",
            "code = 1",
        ] {
            check(foreign, true);
        }
        check("ndoe = 1", false);
        check("name = 'x'\nnode = 1", false);
        check("title = 'x'\nnetwork = 'x'", false);
        check("netwrk = 'x'", false);
        check("[prxy]", false);
        check("data_dir = 'x'", false);
        check("", false);
        check("# nothing is set", false);
        for broken in
            ["title = ", "[params]\nnetwork = x y", "{ \"title\": 1 }", "networks: 2", "node-id: 1 2"]
        {
            check(broken, true);
        }
        for broken in [
            "network = ",
            "title = \nkey_file = 'x'",
            "[[node",
            "[a]\n[ 'proxy' ",
            "\u{feff}nodes = [",
            "node.x =",
        ] {
            check(broken, false);
        }
    }
}
