//! One file per command (`node` and `proxy` share [`serving`]): from the arguments to what is printed. This file has
//! what commands share: context, exit codes, dispatch.
//!
//! A command takes its settings from [`crate::config`], asks servers through [`crate::client`] and prints through
//! [`crate::output`]; it opens no socket to a server and writes no line itself. An exit code follows from the type of
//! an error, never from its text ([`Exit::of`]).

mod cursor_file;
mod follow;
mod forget;
mod guide;
mod key;
mod last_writes;
mod list;
mod list_all;
pub mod preflight;
mod send;
mod serving;
mod status;
mod up;
mod verify;

use color_eyre::eyre::{Report, Result, eyre};
use jiff::Timestamp;

pub use verify::panic_becomes_error;

use self::last_writes::LastWrites;
use crate::{
    cli::{Cli, Command, CommonArgs, KeyArgs},
    client::{Client, ClientError, servers::Servers},
    config::{self, Sources},
    error_text,
    output::{Output, PrintError},
};

/// A longer error loses its middle.
const SENTENCE_CHARS_MAX: usize = 1_000;

/// What every command gets besides its own arguments.
struct Context<'a> {
    common: &'a CommonArgs,
    sources: &'a Sources,
    output: &'a Output,
}

impl Context<'_> {
    fn servers(&self) -> Result<Servers, config::ConfigError> {
        let config = self.sources.client(self.common)?;
        Ok(Servers::new(Client::new(config.keys.as_ref()), config.servers))
    }

    /// What this user sent last to the servers of [`Context::servers`], or to others of their network.
    fn last_writes(&self) -> Result<LastWrites, config::ConfigError> {
        let config = self.sources.client(self.common)?;
        Ok(LastWrites::new(self.sources.state_dir(), config.network_addrs))
    }
}

/// How the program ends. Scripts branch on these numbers; they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
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

/// Whether the reader of standard output has closed it, as `head` does.
pub fn is_closed_pipe(report: &Report) -> bool {
    report.downcast_ref::<PrintError>().is_some_and(PrintError::is_closed_pipe)
}

/// An error as one sentence: what happened, why, and what to do about it.
pub fn error_sentence(report: &Report) -> String {
    let mut sentence = String::new();
    for cause in report.chain().map(error_text::without_numbers) {
        // Some errors repeat their cause in their own text.
        if !sentence.contains(&cause) {
            sentence += if sentence.is_empty() { "" } else { ": " };
            sentence += &cause;
        }
    }
    if Exit::of(report) == Exit::Unreachable {
        sentence += "; run a network with `chatchain up`, or name a server with --server ADDR";
    }
    if report.downcast_ref::<ClientError>().is_some_and(ClientError::is_unauthorized) {
        sentence +=
            "; set CHATCHAIN_KEY to the network's key, or `key_file` in config.toml to a file that holds it";
    }
    shorten(sentence)
}

/// Leaves out the middle of a sentence that repeats a very long value.
fn shorten(sentence: String) -> String {
    let cut = |index| sentence.char_indices().nth(index).map(|(at, _)| at);
    let length = sentence.chars().count();
    match (cut(SENTENCE_CHARS_MAX / 2), cut(length.saturating_sub(SENTENCE_CHARS_MAX / 2))) {
        (Some(start), Some(end)) if length > SENTENCE_CHARS_MAX => {
            format!("{} … {}", &sentence[..start], &sentence[end..])
        }
        _ => sentence,
    }
}

pub async fn run(cli: &Cli, output: &Output) -> Result<Exit> {
    if let Command::Guide(args) = &cli.command {
        return guide::run(args, output); // it must be readable when the configuration is refused
    }
    check_clock(now())?;
    let sources = Sources::load(&cli.common)?;
    sources.warning.iter().for_each(|warning| output.warn(warning));
    if !matches!(&cli.command, Command::Up(_) | Command::Node(_) | Command::Proxy(_)) {
        sources.note().iter().for_each(|note| output.note(&error_text::without_numbers(note)));
    }
    let context = &Context { common: &cli.common, sources: &sources, output };
    match &cli.command {
        Command::Up(args) => up::run(args, context).await,
        Command::Node(args) => serving::run_node(args, context).await,
        Command::Proxy(args) => serving::run_proxy(args, context).await,
        Command::Send(args) => send::run(args, context).await,
        Command::List(args) if args.follow || args.cursor_file.is_some() => follow::run(args, context).await,
        Command::List(args) if args.all => list_all::run(args, context).await,
        Command::List(args) => list::run(args, context).await,
        Command::Status(args) => status::run(args, context).await,
        Command::Forget(args) => forget::run(args, context).await,
        Command::Verify(args) => verify::run(args, context).await,
        Command::Key(KeyArgs {}) => key::run(output),
        Command::Guide(_) => unreachable!("it runs without settings"),
    }
}

/// Ids of messages, logs and stores contain the time since 1970.
fn check_clock(now: Timestamp) -> Result<()> {
    if now < Timestamp::UNIX_EPOCH {
        return Err(eyre!(
            "the clock of this machine says {now:.0}, which is before 1970: set the clock first"
        ));
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the time of a command is measured by the clock of this machine"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

/// The recipient that stands for a room. Its `#` is a convention, and may be typed too.
fn room_recipient(room: &str) -> String {
    if room.starts_with('#') { room.to_owned() } else { format!("#{room}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the file cannot be used: {}", error_text::without_numbers(source))]
    struct WithCause {
        source: std::io::Error,
    }

    #[test]
    fn a_sentence_repeats_no_cause() {
        let missing = || std::io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error());
        let check = |report: Report, want: &str| assert_eq!(error_sentence(&report), want);
        check(WithCause { source: missing() }.into(), "the file cannot be used: No such file or directory");
        check(Report::from(missing()).wrap_err("cannot read"), "cannot read: No such file or directory");
    }

    #[test]
    fn a_long_sentence_loses_its_middle() {
        let sentence = format!("cannot read {}: name too long", "é".repeat(5_000));
        let short = shorten(sentence);
        assert_eq!(short.chars().count(), SENTENCE_CHARS_MAX + 3);
        assert!(short.starts_with("cannot read éé") && short.contains("é … é"), "{short}");
        assert!(short.ends_with("é: name too long"), "{short}");
        let short = "é".repeat(SENTENCE_CHARS_MAX);
        assert_eq!(shorten(short.clone()), short);
    }
}
