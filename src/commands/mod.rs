//! One file per command, from what was asked to what is printed; here is what they share: exit codes and dispatch.
//!
//! A command reads its settings from [`crate::config`], talks through [`crate::client`] and prints through
//! [`crate::output`]. Nothing is decided on the text of an error: [`Exit::of`] looks at its type.

mod follow;
mod forget;
mod key;
mod last_writes;
mod list;
mod node;
mod proxy;
mod send;
mod serving;
mod status;
mod up;
mod verify;

use std::{io, process::ExitCode};

use color_eyre::eyre::{Report, Result};

use crate::{
    cli::{self, Cli, Command, CommonArgs},
    client::{Client, ClientError, servers::Servers},
    config::{self, Sources},
    output::Output,
};

/// How the program ends. Scripts branch on these numbers; they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It did not work.
    Failure = 1,
    /// Wrong usage or configuration; nothing was tried.
    Usage = 2,
    /// `status --check` found the network degraded or not converged.
    CheckFailed = 3,
    /// No node could be reached.
    Unreachable = 5,
    /// Stored, but confirmed by fewer nodes than asked.
    BelowAcks = 6,
}

impl Exit {
    /// What this error means for whoever started the program.
    pub fn of(report: &Report) -> Self {
        if report.is::<config::ConfigError>() {
            return Exit::Usage;
        }
        if is_closed_pipe(report) {
            return Exit::Done;
        }
        match report.downcast_ref::<ClientError>() {
            Some(error) if error.no_node() => Exit::Unreachable,
            _ => Exit::Failure,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Whether whoever read our output went away, as `head` does. Only printing gives a bare I/O error of this kind.
pub fn is_closed_pipe(report: &Report) -> bool {
    report.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The whole story in one sentence: what happened and why.
pub fn sentence(report: &Report) -> String {
    let mut story = String::new();
    for cause in report.chain().map(ToString::to_string) {
        // Some errors say already what their cause says.
        if !story.contains(&cause) {
            story += if story.is_empty() { "" } else { ": " };
            story += &cause;
        }
    }
    if Exit::of(report) == Exit::Unreachable {
        story += "; run a network with `chatchain up`, or say whom to ask with --server ADDR";
    }
    if report.downcast_ref::<ClientError>().is_some_and(ClientError::is_unauthorized) {
        story +=
            "; set CHATCHAIN_KEY to the network's key, or `key_file` in config.toml to a file that holds it";
    }
    without_error_numbers(&story)
}

/// What the system says comes with its number, as in "Not a directory (os error 20)", which helps nobody.
fn without_error_numbers(story: &str) -> String {
    let mut parts = story.split(" (os error ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => out += rest,
            _ => out = out + " (os error " + part,
        }
    }
    out
}

/// Does what was asked for.
pub async fn run(cli: &Cli, output: &Output) -> Result<Exit> {
    let sources = Sources::load(&cli.common)?;
    sources.warnings().for_each(|warning| output.warn(warning));
    match &cli.command {
        Command::Up(args) => up::run(args, &cli.common, &sources, output).await,
        Command::Node(args) => node::run(args, &sources).await,
        Command::Proxy(args) => proxy::run(args, &sources).await,
        Command::Send(args) => send::run(args, &cli.common, &sources, output).await,
        Command::List(args) if args.follow || args.cursor_file.is_some() => {
            follow::run(args, &cli.common, &sources, output).await
        }
        Command::List(args) => list::run(args, &cli.common, &sources, output).await,
        Command::Status(args) => status::run(args, &cli.common, &sources, output).await,
        Command::Forget(args) => forget::run(args, &cli.common, &sources, output).await,
        Command::Verify(args) => verify::run(args, &sources, output).await,
        Command::Key(cli::KeyArgs {}) => key::run(output),
    }
}

/// Whom the client commands ask.
fn servers(common: &CommonArgs, sources: &Sources) -> Result<Servers, config::ConfigError> {
    let config = sources.client(common)?;
    Ok(Servers::new(Client::new(config.keys.as_ref()), config.servers))
}

/// A room is a recipient like any other; its sign is a convention, and may be typed too.
fn room(name: &str) -> String {
    if name.starts_with('#') { name.to_owned() } else { format!("#{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_stands_without_its_number() {
        let check = |story: &str, want: &str| assert_eq!(without_error_numbers(story), want);
        check("a: Not a directory (os error 20)", "a: Not a directory");
        check("a (os error 2): b (os error 3); c", "a: b; c");
        check("said (os error x) by somebody (os error 1", "said (os error x) by somebody (os error 1");
        check("", "");
    }
}
