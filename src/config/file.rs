//! Owns the configuration file: which file is read, and from its text the settings, which know the line they stand on.
//!
//! The keys are those of [`settings::SETTINGS`]; any other key is refused. Values stay text here: what they mean is
//! decided only after [`super::Sources`] has chosen the source that wins. Every refusal names the file, the line and
//! the remedy.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{ConfigError, Environment, SourcedValue, settings};
use crate::api::network::NodeId;

/// Read from the working directory if it exists. Other programs have files of this name, too.
pub const FILE_NAME: &str = "config.toml";
/// Read before [`FILE_NAME`], from the working directory.
const OWN_FILE_NAME: &str = "chatchain.toml";
/// A key is taken for a mistyped one of ours if this many edits make it one, or one edit for a short key: two make
/// `node` of `name`, which many programs have.
const EDITS_MAX: usize = 2;
const SHORT_KEY_CHARS_MAX: usize = 5;

/// The file to read.
#[derive(Debug, Default)]
pub(super) struct FoundFile {
    /// Its path and its text; `None` if there is none.
    pub file: Option<(PathBuf, String)>,
    /// About a file in the working directory that belongs to another program.
    pub passed_over: Option<ConfigError>,
}

/// Finds and reads the file: the one that the flag or the variable names, else the first of those in the working
/// directory and in the user's directory for configuration.
pub(super) fn find(named: Option<&Path>, env: &Environment) -> Result<FoundFile, ConfigError> {
    let mut found = FoundFile::default();
    if let Some(path) = named.or_else(|| env.path("CHATCHAIN_CONFIG")) {
        let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        found.file = Some((path.to_owned(), text));
        return Ok(found);
    }
    let of_user = env.user_dir("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("chatchain").join(FILE_NAME));
    for path in [OWN_FILE_NAME, FILE_NAME].map(PathBuf::from).into_iter().chain(of_user) {
        match fs::read_to_string(&path) {
            Ok(text) if path == Path::new(FILE_NAME) && is_foreign(&text) => {
                found.passed_over = Some(ConfigError(format!(
                    "{FILE_NAME} in this directory has no key of ChatChain and is passed over: it seems to belong to \
                     another program; name the configuration with --config FILE, or call it {OWN_FILE_NAME}"
                )));
            }
            Ok(text) => {
                found.file = Some((path, text));
                break;
            }
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(unreadable(&path, &error)),
        }
    }
    Ok(found)
}

fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    ConfigError(format!("cannot read the configuration file {}: {error}", path.display()))
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidFilename)
}

/// Whether a file has keys and none of them is one of ours, nor a mistyped one. A file that is not TOML may be ours.
fn is_foreign(text: &str) -> bool {
    let Ok(table) = DeTable::parse(text) else { return false };
    let is_ours = |key: &str| {
        let known = settings::file_keys().flat_map(|known| known.split('.')).chain(settings::SECTIONS);
        known.into_iter().any(|known| {
            let edits = if known.len() > SHORT_KEY_CHARS_MAX { EDITS_MAX } else { 1 };
            strsim::damerau_levenshtein(key, known) <= edits
        })
    };
    let mut keys = table.get_ref().keys().peekable();
    keys.peek().is_some() && !keys.any(|key| is_ours(key.get_ref()))
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
pub(super) fn read(path: PathBuf, text: &str) -> Result<FileSettings, ConfigError> {
    let dir = path.parent().unwrap_or(Path::new("")).to_owned();
    let file = ParsedFile { path, text };
    let table = DeTable::parse(text).map_err(|error| {
        let message = error.message().replace('\n', "; ");
        file.error(error.span().unwrap_or(0..0), format!("this is not TOML: {message}"))
    })?;
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
    path: PathBuf,
    text: &'a str,
}

impl ParsedFile<'_> {
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
        let check = |text: &str, want: bool| assert_eq!(is_foreign(text), want, "{text}");
        check(
            "baseURL = 'https://example.org/'\nlanguageCode = 'en'\ntitle = 'x'\n[params]\nnetwork = 'x'",
            true,
        );
        check("[menu]\nmain = 1", true);
        for foreign in
            ["name = 'x'", "title = 'x'", "log = 'debug'", "[tls]\ncert = 'x'", "[name]", "core = 1"]
        {
            check(foreign, true);
        }
        check("name = 'x'\nnode = 1", false);
        check("title = 'x'\nnetwork = 'x'", false);
        check("netwrk = 'x'", false);
        check("[prxy]", false);
        check("data_dir = 'x'", false);
        check("", false);
        check("# nothing is set", false);
        check("title = ", false);
    }
}
