//! Owns reading `config.toml`: from its text to settings that still know the line they stand on.
//!
//! Knows the file's shape, not what the values mean: those stay text until [`super`] has decided which source
//! wins. Every refusal names the file, the line, and what to write instead.

use std::{ops::Range, path::PathBuf};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{ConfigError, SourcedValue, settings};
use crate::api::network::NodeId;

/// What a configuration file says. All of it may be missing.
#[derive(Debug, Default)]
pub(super) struct FileSettings {
    pub network: Option<SourcedValue>,
    /// Node ids with their addresses.
    pub nodes: Option<Vec<(NodeId, SourcedValue)>>,
    pub key_file: Option<SourcedValue>,
    pub data_dir: Option<SourcedValue>,
    pub sync_interval: Option<SourcedValue>,
    pub scrub_interval: Option<SourcedValue>,
    pub proxy_listen: Option<SourcedValue>,
    pub strategy: Option<SourcedValue>,
}

/// Reads the text of the file at this path.
pub(super) fn read(path: PathBuf, text: &str) -> Result<FileSettings, ConfigError> {
    let file = ParsedFile { path, text };
    let table = DeTable::parse(text).map_err(|error| {
        let message = error.message().replace('\n', "; ");
        file.error(&error.span().unwrap_or(0..0), &format!("this is not TOML: {message}"))
    })?;
    let mut settings = FileSettings::default();
    for (name, span, value) in file.flatten(table.get_ref())? {
        match &*name {
            "network" => settings.network = Some(file.text(&name, value)?),
            "nodes" => settings.nodes = Some(file.nodes(value)?),
            "key_file" => settings.key_file = Some(file.text(&name, value)?),
            "node.data_dir" => settings.data_dir = Some(file.text(&name, value)?),
            "node.sync_interval" => settings.sync_interval = Some(file.text(&name, value)?),
            "node.scrub_interval" => settings.scrub_interval = Some(file.text(&name, value)?),
            "proxy.listen" => settings.proxy_listen = Some(file.text(&name, value)?),
            "proxy.strategy" => settings.strategy = Some(file.text(&name, value)?),
            unknown => {
                let why =
                    format!("unknown key `{unknown}`; did you mean `{}`?", settings::nearest_key(unknown));
                return Err(file.error(&span, &why));
            }
        }
    }
    Ok(settings)
}

type TomlEntry<'t, 'i> = (String, Range<usize>, &'t Spanned<DeValue<'i>>);

struct ParsedFile<'a> {
    path: PathBuf,
    text: &'a str,
}

impl ParsedFile<'_> {
    /// Every key by its dotted name, with where it stands.
    fn flatten<'t, 'i>(&self, top: &'t DeTable<'i>) -> Result<Vec<TomlEntry<'t, 'i>>, ConfigError> {
        let mut entries = Vec::new();
        for (key, value) in top {
            let name = key.get_ref();
            if !settings::SECTIONS.contains(&&**name) {
                entries.push((name.to_string(), key.span(), value));
                continue;
            }
            let DeValue::Table(section) = value.get_ref() else {
                return Err(self.error(&key.span(), &format!("`{name}` is a table: write `[{name}]`")));
            };
            let inner =
                section.iter().map(|(key, value)| (format!("{name}.{}", key.get_ref()), key.span(), value));
            entries.extend(inner);
        }
        Ok(entries)
    }

    fn text(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<SourcedValue, ConfigError> {
        match value.get_ref() {
            DeValue::String(text) => Ok(self.given(key, text, &value.span())),
            other => {
                let (default, kind) = (default_of(key), other.type_str());
                let why = format!(
                    "`{key}` must be text in quotes such as \"{default}\", not a value of type {kind}"
                );
                Err(self.error(&value.span(), &why))
            }
        }
    }

    /// `nodes` as an array, where the place is the node id, or as a table that names the ids.
    fn nodes(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<(NodeId, SourcedValue)>, ConfigError> {
        match value.get_ref() {
            DeValue::Array(array) => {
                (0..).zip(array.iter()).map(|(id, value)| Ok((id, self.address(id, value)?))).collect()
            }
            DeValue::Table(table) => table
                .iter()
                .map(|(key, value)| {
                    let why = || format!("`nodes` has the key `{}`; its keys are node ids such as 0", key.get_ref());
                    let id = key.get_ref().parse().map_err(|_| self.error(&key.span(), &why()))?;
                    Ok((id, self.address(id, value)?))
                })
                .collect(),
            _ => Err(self.error(
                &value.span(),
                "`nodes` must be an array such as [\"127.0.0.1:8081\"] or a table such as { 0 = \"127.0.0.1:8081\" }",
            )),
        }
    }

    fn address(&self, id: NodeId, value: &Spanned<DeValue<'_>>) -> Result<SourcedValue, ConfigError> {
        match value.get_ref() {
            DeValue::String(text) => Ok(self.given(&format!("nodes.{id}"), text, &value.span())),
            _ => {
                Err(self.error(&value.span(), &format!("node {id} must be text such as \"127.0.0.1:8081\"")))
            }
        }
    }

    fn given(&self, key: &str, text: &str, span: &Range<usize>) -> SourcedValue {
        SourcedValue { text: text.to_owned(), origin: format!("`{key}` in {}", self.place(span)) }
    }

    fn error(&self, span: &Range<usize>, why: &str) -> ConfigError {
        ConfigError(format!("{}: {why}", self.place(span)))
    }

    fn place(&self, span: &Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        format!("{} line {line}", self.path.display())
    }
}

fn default_of(key: &str) -> &'static str {
    settings::SETTINGS.iter().find(|setting| setting.key == key).map_or("…", |setting| setting.default)
}
