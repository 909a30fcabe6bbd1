//! Owns reading `config.toml`: from its text to settings that still know the line they stand on.
//!
//! The keys are those of [`settings::SETTINGS`]; any other key is refused. Values stay text here: what they mean is
//! decided only after [`super::Sources`] has chosen the source that wins. Every refusal names the file, the line and
//! the remedy.

use std::{borrow::Cow, collections::BTreeMap, ops::Range, path::PathBuf};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{ConfigError, SourcedValue, settings};
use crate::api::network::NodeId;

#[derive(Debug, Default)]
pub(super) struct FileSettings {
    /// All settings but `nodes`, by the name of their environment variable.
    pub values: BTreeMap<&'static str, SourcedValue>,
    /// The nodes' numbers and addresses.
    pub nodes: Option<Vec<(NodeId, SourcedValue)>>,
}

type TomlKey<'i> = Spanned<Cow<'i, str>>;
type TomlValue<'i> = Spanned<DeValue<'i>>;

/// Reads the text of the file at this path.
pub(super) fn read(path: PathBuf, text: &str) -> Result<FileSettings, ConfigError> {
    let file = ParsedFile { path, text };
    let table = DeTable::parse(text).map_err(|error| {
        let message = error.message().replace('\n', "; ");
        file.error(error.span().unwrap_or(0..0), format!("this is not TOML: {message}"))
    })?;
    let mut settings = FileSettings::default();
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
