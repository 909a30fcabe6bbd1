//! Does what the README and the guide say, all of it and in their order, and compares what is printed with what they
//! show.
//!
//! Each document is followed in a directory of its own with the repository's `config.toml`, with its ports moved to
//! free ones. The README and the topics of the guide do not depend on each other, so each is one test. How a block is
//! understood stands in `document`, how it is carried out in `walkthrough`, what counts as the same output in
//! `likeness`, what links must do in `links`.

mod document;
mod guide;
mod likeness;
mod links;
mod walkthrough;

use std::path::Path;

use chatchain::{
    api::error::ErrorCode,
    cli::Cli,
    config::settings::{SETTINGS, Setting},
    guide::TOPICS,
};
use clap::CommandFactory;

use document::{Action, Step};
use walkthrough::{Walkthrough, follow};

const README: &str = "README.md";
/// The README is the first page of a visitor; what does not fit is in the guide.
const README_LINES_MAX: usize = 300;
/// Codes that no server answers yet.
const CODES_NOT_USED: &[ErrorCode] = &[ErrorCode::Forbidden];

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file, by its path from the top of the repository.
fn text(path: &str) -> String {
    std::fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The file of a topic.
fn topic_path(name: &str) -> String {
    format!("src/guide/{name}.md")
}

/// All files that a user reads: the README, the topics, and the list of topics.
fn documents() -> Vec<String> {
    let topics = TOPICS.iter().map(|topic| topic_path(topic.name));
    [README.to_owned(), topic_path("README")].into_iter().chain(topics).collect()
}

fn steps(path: &str) -> Vec<Step> {
    document::steps(&text(path)).unwrap_or_else(|complaints| {
        let complaints: Vec<_> = complaints.iter().map(|complaint| format!("{path}:{complaint}")).collect();
        panic!("\n{}\n", complaints.join("\n"))
    })
}

#[test]
fn every_command_of_the_readme_does_what_it_shows() {
    follow(README, "");
}

macro_rules! topics {
    ($($name:ident)*) => {
        /// Every command of a topic does what it shows.
        mod topic {
            use super::walkthrough::{ALIAS, follow};
            use super::topic_path;

            pub(super) const FOLLOWED: &[&str] = &[$(stringify!($name)),*];
            $(
                #[test]
                fn $name() {
                    follow(&topic_path(stringify!($name)), ALIAS);
                }
            )*
        }
    };
}

topics! {
    network send read feed status machines members key proxy disks http configuration commands promises internals development
}

#[test]
fn every_topic_is_followed() {
    let topics: Vec<_> = TOPICS.iter().map(|topic| topic.name).collect();
    assert_eq!(topic::FOLLOWED, topics);
}

#[test]
fn the_readme_fits_on_one_page() {
    let lines = text(README).lines().count();
    assert!(lines <= README_LINES_MAX, "README.md has {lines} lines; {README_LINES_MAX} are the limit");
}

/// Whether one of these steps types this.
fn is_typed(steps: &[Step], part: &str) -> bool {
    steps.iter().any(|step| match &step.action {
        Action::Run { script, .. } | Action::LeftOut { script } => script.contains(part),
        Action::Serve { command, .. } => command.contains(part),
        Action::Told { .. } | Action::CtrlC => false,
    })
}

#[test]
fn the_readme_has_the_two_commands_and_five_requests() {
    let steps = steps(README);
    for part in ["cargo run --release -- up", "cargo test", "kill -9", "Idempotency-Key", "acks=all", "/feed"]
    {
        assert!(is_typed(&steps, part), "{part} is not shown");
    }
    let curls = steps
        .iter()
        .filter(|step| matches!(&step.action, Action::Run { script, .. } if script.starts_with("curl ")));
    assert_eq!(curls.count(), 5);
    let left_out = steps.iter().filter(|step| matches!(step.action, Action::LeftOut { .. })).count();
    assert_eq!(left_out, document::NOT_RUN.len());
}

#[test]
fn every_command_and_path_is_shown() {
    let steps: Vec<Step> = documents().iter().flat_map(|path| steps(path)).collect();
    for command in Cli::command().get_subcommands() {
        assert!(is_typed(&steps, &format!(" {}", command.get_name())), "{} is not shown", command.get_name());
    }
    for part in [
        "node --node-id",
        "send --to",
        "send --room",
        "send --file",
        "send --acks",
        "list --cursor-file",
        "status --check",
        "application/x-ndjson",
        "&before=",
        "ChatChain-Position",
        "cursor=",
        "/network",
        "/nodes",
        "/readyz",
    ] {
        assert!(is_typed(&steps, part), "{part} is not shown");
    }
}

#[test]
fn every_command_has_a_row() {
    let commands = text(&topic_path("commands"));
    for command in Cli::command().get_subcommands() {
        let row = format!("| `chatchain {}", command.get_name());
        assert!(commands.lines().any(|line| line.starts_with(&row)), "no row begins with {row}");
    }
}

/// All settings as the Markdown table that the guide shows.
fn table_of_settings() -> String {
    let head = "| `config.toml` | environment | flag | default | what |\n|---|---|---|---|---|\n";
    let code = |name: &str| if name.is_empty() { String::new() } else { format!("`{name}`") };
    let row = |s: Setting| {
        let flags: Vec<_> = s.flag.split(", ").map(code).collect();
        let default = if s.default.is_empty() { "none" } else { s.default };
        [code(s.key), code(s.env), flags.join(", "), default.into(), s.meaning.into()].join(" | ")
    };
    std::iter::once(head.to_owned()).chain(SETTINGS.map(|s| format!("| {} |\n", row(s)))).collect()
}

#[test]
fn the_guide_has_the_table_of_all_settings() {
    let (configuration, table) = (text(&topic_path("configuration")), table_of_settings());
    assert!(configuration.contains(&table), "it should hold this:\n{table}");
}

#[test]
fn the_guide_has_the_right_row_for_every_code() {
    let http = text(&topic_path("http"));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let rows: Vec<Vec<String>> = http.lines().map(cells).collect();
    for code in ErrorCode::ALL.into_iter().filter(|code| !CODES_NOT_USED.contains(code)) {
        let found: Vec<_> = rows.iter().filter(|row| row[0] == format!("`{code}`")).collect();
        let [row] = found[..] else { panic!("{code} should have one row, and has {}", found.len()) };
        let retry = if code.retryable() { "yes" } else { "no" };
        assert_eq!(row[1..3], [code.status().to_string().as_str(), retry], "{code}");
    }
}

#[test]
fn a_document_that_shows_something_else_is_noticed() {
    let wrong = |text: &'static str| {
        let steps = document::steps(text).expect("it is understood");
        std::panic::catch_unwind(move || {
            let mut walkthrough = Walkthrough::new("wrong.md", String::new(), "");
            for step in &steps {
                walkthrough.follow(step);
            }
        })
        .is_err()
    };
    assert!(!wrong("```sh\necho a; echo b >&2\n```\n```text\na\nb\n```\n"));
    assert!(wrong("```sh\necho a\n```\n```text\nb\n```\n"));
    assert!(wrong("```sh\necho a\n```\n"));
    assert!(wrong("```sh\nfalse\ntrue\n```\n"));
    assert!(wrong("```sh\nchatchain --version\n```\n```text\n…\n```\n"), "there is no alias yet");
    assert!(!wrong(
        "```sh\nalias chatchain=target/release/chatchain\n```\n```sh\nchatchain --version\n```\n```text\nchatchain 0.1.0\n```\n"
    ));
    assert!(wrong("Press Ctrl-C now."));
}
