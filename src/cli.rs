//! Owns the command line: what was typed, and the help that says what may be typed.
//!
//! Nothing is resolved here: no environment, no file, no default that a file could change, and addresses stay
//! text. [`crate::config`] turns this and the other sources into what will be done. Wrong usage ends with a
//! sentence and exit code 2 before anything else happens.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

use crate::api::network::NodeId;

const EXAMPLES: &str = "\
Try it:
  chatchain up                                   a whole network on this machine, in one terminal
  chatchain send --to user2 \"hi\"                 from a second terminal
  chatchain list
  chatchain status

Exit codes: 0 done, 1 failure, 2 wrong usage or configuration, 3 `status --check` found something,
5 no node reachable, 6 stored below the asked acks.";

/// A chat and message log that keeps working while any one of its nodes does
#[derive(Debug, Parser)]
#[command(name = "chatchain", version, after_help = EXAMPLES, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub common: CommonArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Common options")]
pub struct CommonArgs {
    /// Read this configuration file instead of ./config.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Ask this proxy or node, and no other: host:port or an http URL; repeatable, tried in order
    #[arg(long, global = true, value_name = "ADDR")]
    pub server: Vec<String>,
    /// How answers are printed: for people, as one JSON value, or as one JSON value per line
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub output: OutputFormat,
    /// When to colour; `auto` is where a terminal reads it and NO_COLOR is not set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
    /// Say less: no progress, no notes, only warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more; repeat for even more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The shape of what is printed on standard output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON value.
    Json,
    /// One JSON value per line.
    Ndjson,
}

/// When to colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// Where a terminal reads it and NO_COLOR is not set.
    #[default]
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole network on this machine: nodes and a proxy
    Up(UpArgs),
    /// Run one node, which stores and syncs messages
    Node(NodeArgs),
    /// Run a proxy, which forwards to whichever nodes answer
    Proxy(ProxyArgs),
    /// Send one message, or a file of them
    Send(SendArgs),
    /// List messages, oldest first
    List(ListArgs),
    /// Show every node of the network and whether they agree
    Status(StatusArgs),
    /// Forget a node that is gone for good
    Forget(ForgetArgs),
    /// Check every record of the stores on this machine that are not in use
    Verify(VerifyArgs),
    /// Make a key for a network, so that only those who have it can read and write
    Key(KeyArgs),
}

/// `chatchain up`.
#[derive(Debug, Args)]
#[command(after_help = "\
Every node and the proxy is a process of its own. The proxy listens on the base port, node N on the base
port + 1 + N, all on 127.0.0.1. Ctrl-C stops them in order, a second one at once.

Examples:
  chatchain up
  chatchain up --nodes 3 --data-dir /tmp/try --base-port 9000")]
pub struct UpArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nodes: u16,
    /// Where the stores are: node N keeps its own in DIR/node-N [default: data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The proxy's port; the nodes take the ports after it
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub base_port: u16,
}

/// `chatchain node`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Node N of a network on one machine needs nothing but its number: it listens on 127.0.0.1:(8081 + N) and keeps
its store in data/node-N. It syncs with the peers of --peers or of the configuration file's `nodes`. To listen
beyond this machine it needs a key: see `chatchain help key`.

Examples:
  chatchain node --node-id 2
  chatchain node --node-id 2 --peers 127.0.0.1:8081,127.0.0.1:8082
  chatchain node --node-id 7 --listen 0.0.0.0:8081 --advertise chat7.example:8081 --peers chat1.example:8081")]
pub struct NodeArgs {
    /// Which node of the network this is
    #[arg(long, value_name = "N")]
    pub node_id: Option<NodeId>,
    /// Where to listen [default: the address of this node in `nodes`]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// The address that others are told [default: where it listens]
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Nodes to sync with, separated by commas; replaces the file's `nodes`. One that is up is enough to join
    #[arg(long, value_name = "ADDRS")]
    pub peers: Option<String>,
    /// The store is DIR/node-N [default: data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Listen beyond this machine although there is no key: whoever reaches the port can read and write everything
    #[arg(long)]
    pub insecure: bool,
    /// Stop when standard input ends: `up` holds the other end of it, so no child outlives it.
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

/// `chatchain proxy`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  chatchain proxy
  chatchain proxy --listen 127.0.0.1:9000 --nodes 127.0.0.1:8081,127.0.0.1:8082")]
pub struct ProxyArgs {
    /// Where to listen [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Nodes to forward to, separated by commas; replaces the file's `nodes`
    #[arg(long, value_name = "ADDRS")]
    pub nodes: Option<String>,
    /// Listen beyond this machine although there is no key: whoever reaches the port can read and write everything
    #[arg(long)]
    pub insecure: bool,
    /// Stop when standard input ends: `up` holds the other end of it, so no child outlives it.
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

/// `chatchain send`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
The id is chosen before the first attempt, so a message that is tried again is still one message.

Examples:
  chatchain send --to user2 \"hi\"
  chatchain send --room ops \"disk full on web3\"         the same as --to '#ops'
  uptime | chatchain send --room ops -                  text from standard input
  chatchain send --to user2 -- \"-1 from me\"             text that starts with a hyphen
  chatchain send --file messages.ndjson                 one JSON object per line
  zcat old.ndjson.gz | chatchain send --file -")]
pub struct SendArgs {
    /// Whom it is for
    #[arg(long, value_name = "NAME", required_unless_present_any = ["room", "file"], conflicts_with_all = ["room", "file"])]
    pub to: Option<String>,
    /// The room it is for: the same as --to '#ROOM'
    #[arg(long, value_name = "ROOM", value_parser = NonEmptyStringValueParser::new(), conflicts_with = "file")]
    pub room: Option<String>,
    /// Who says it [default: CHATCHAIN_USER, else your login name]
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    pub from: Option<String>,
    /// The message's id, any UUID; sending again with the same id never makes a second message
    #[arg(long, value_name = "UUID", conflicts_with = "file")]
    pub id: Option<Uuid>,
    /// When it was said, in whole Unix seconds [default: none; readers see when it was accepted]
    #[arg(long, value_name = "SECONDS", conflicts_with = "file")]
    pub timestamp: Option<u64>,
    /// How many nodes must have it on disk before the answer: a number, `quorum` or `all` [default: 1]
    #[arg(long, value_name = "N|quorum|all", value_parser = acks)]
    pub acks: Option<String>,
    /// Send every line of this NDJSON file (`-`: standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub file: Option<PathBuf>,
    /// What to say (`-`: standard input)
    #[arg(required_unless_present = "file")]
    pub text: Option<String>,
}

/// How many is too many only the network knows; nonsense is refused here.
fn acks(text: &str) -> Result<String, String> {
    let counts = text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|n| n > 0);
    if counts || matches!(text, "quorum" | "all") {
        return Ok(text.to_owned());
    }
    Err("give a number from 1, `quorum` or `all`".into())
}

/// `chatchain list`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  chatchain list --room ops --since 2h
  chatchain list --user user1 --with user2              the conversation of these two
  chatchain list --text deploy --limit 10 -o json
  chatchain list --follow --room ops                    the newest 50, and then whatever comes
  chatchain list --cursor-file seen --room ops          everything since the last time")]
pub struct ListArgs {
    /// From or to this user
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Only between --user and this one
    #[arg(long, value_name = "NAME", requires = "user")]
    pub with: Option<String>,
    /// To this recipient
    #[arg(long, value_name = "NAME", conflicts_with = "room")]
    pub to: Option<String>,
    /// From this sender
    #[arg(long, value_name = "NAME")]
    pub from: Option<String>,
    /// In this room: the same as --to '#ROOM'
    #[arg(long, value_name = "ROOM", value_parser = NonEmptyStringValueParser::new())]
    pub room: Option<String>,
    /// Containing this text, upper or lower case
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,
    /// Not older than this: `2h` ago, 2026-01-31T12:00:00Z, or Unix seconds
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Older than this, written as for --since
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Go on with what comes from now on, until interrupted; servers may come and go meanwhile
    #[arg(short, long, conflicts_with = "until")]
    pub follow: bool,
    /// Keep the place in this file: if it is there, list everything since, else begin as without it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["since", "until"])]
    pub cursor_file: Option<PathBuf>,
    /// At most this many, the newest
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
}

/// `chatchain status`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  chatchain status
  chatchain status --watch
  chatchain status --check -q || echo 'look at it'      for monitoring: exit code 3 unless all is well")]
pub struct StatusArgs {
    /// Exit with code 3 unless every node is up, can be written to and all agree
    #[arg(long)]
    pub check: bool,
    /// Show it again every second, until interrupted
    #[arg(short, long, conflicts_with = "check")]
    pub watch: bool,
}

/// `chatchain forget`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
All nodes hear of it. What the node accepted stays. One that is up is not forgotten, and one that speaks again is
a member again.

Examples:
  chatchain forget --node-id 3")]
pub struct ForgetArgs {
    /// Which node
    #[arg(long, value_name = "N")]
    pub node_id: NodeId,
}

/// `chatchain verify`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Stop the node first: a store that is in use is not looked at. Nothing is repaired here; a node whose log is
damaged salvages it by itself when it starts.

Examples:
  chatchain verify
  chatchain verify --data-dir data/node-2")]
pub struct VerifyArgs {
    /// A store, or the directory that holds the stores node-0, node-1 … [default: data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Open the log of the one store that is named, with every page checked, and no more: a node that doubts whether it
    /// can looks how this ends.
    #[arg(long, hide = true)]
    pub only_open: bool,
}

/// `chatchain key`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Every node, proxy and client of the network needs the same key: in a file that `key_file` in config.toml or
CHATCHAIN_KEY_FILE names, or itself in CHATCHAIN_KEY. The file may hold several, one a line: the first is
sent, each of them opens.

Examples:
  umask 077; chatchain key > network.key")]
pub struct KeyArgs {}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, error::ErrorKind};

    #[track_caller]
    fn check(line: &str, want: Result<(), ErrorKind>) {
        let got = Cli::try_parse_from(line.split(' ')).map(|_| ()).map_err(|e| e.kind());
        assert_eq!(got, want, "{line}");
    }

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_is_checked_before_anything_happens() {
        use ErrorKind::{
            ArgumentConflict, InvalidValue, MissingRequiredArgument, UnknownArgument, ValueValidation,
        };
        check("chatchain send --to user2 hi", Ok(()));
        check("chatchain send --room ops -", Ok(()));
        check("chatchain send --file -", Ok(()));
        check("chatchain send hi", Err(MissingRequiredArgument));
        check("chatchain send --to user2", Err(MissingRequiredArgument));
        check("chatchain send --to user2 --room ops hi", Err(ArgumentConflict));
        check("chatchain send --file x hi", Err(ArgumentConflict));
        check("chatchain send --to user2 --id nonsense hi", Err(ValueValidation));
        check("chatchain send --to user2 --acks many hi", Err(ValueValidation));
        check("chatchain send --to user2 --acks quorum hi", Ok(()));
        check("chatchain list --with user2", Err(MissingRequiredArgument));
        check("chatchain list --limit 0", Err(ValueValidation));
        check("chatchain list --output yaml", Err(InvalidValue));
        check("chatchain up --nodes 0", Err(ValueValidation));
        check("chatchain status -q -v", Err(ArgumentConflict));
        check("chatchain status --chekc", Err(UnknownArgument));
        check("chatchain --version", Err(ErrorKind::DisplayVersion));
    }

    #[test]
    fn common_flags_stand_before_or_after_the_command() {
        for line in [
            "chatchain -o json --server a:1 --server b:2 status",
            "chatchain status --server a:1 --server b:2 -o json",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            assert_eq!(
                (cli.common.output, cli.common.server),
                (OutputFormat::Json, vec!["a:1".into(), "b:2".into()])
            );
        }
    }
}
