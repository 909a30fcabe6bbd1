//! Owns the command line: its flags, their help, and the checks that need nothing but the command line.
//!
//! Nothing is resolved here: no environment, no file, no default that a file could change; addresses stay text. Help
//! names the variable of a flag, but [`crate::config`] reads it: clap would take an empty variable as set, and refuse
//! `send --file` where CHATCHAIN_USER is set. Wrong usage ends with a sentence and exit code 2.

use std::path::PathBuf;

use clap::{ArgAction, Args, ColorChoice, Parser, Subcommand, ValueEnum, builder::NonEmptyStringValueParser};
use uuid::Uuid;

use crate::api::network::NodeId;

const EXAMPLES: &str = "\
Try it:
  chatchain up                     a whole network on this machine
  chatchain send --to user2 \"hi\"   from a second terminal
  chatchain list
  chatchain status
  chatchain guide                  the manual, topic by topic

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration,
3 `status --check` found something wrong, 5 no node answered,
6 stored, but on fewer nodes than --acks asked for.";

/// A chat and message log that keeps working while at least one of its nodes works
#[derive(Debug, Parser)]
#[command(name = "chatchain", version, after_help = EXAMPLES, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub common: CommonArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Common options")]
pub struct CommonArgs {
    /// Read this configuration file instead of ./chatchain.toml, ./config.toml or the user's [env: CHATCHAIN_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Ask this proxy or node only: host:port or an http URL. May be repeated; servers are tried in order [env:
    /// CHATCHAIN_SERVER]
    #[arg(long, global = true, value_name = "ADDR")]
    pub server: Vec<String>,
    /// Print answers as text for people, as one JSON value, or as one JSON value per line
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub output: OutputFormat,
    /// When to use colors; `auto`: on a terminal, unless NO_COLOR is set or TERM is unset or dumb
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
    /// Print only data, warnings and errors: no progress bar and no notes
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more; repeat for still more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The shape of what is printed on standard output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    // With a doc comment per value, clap would print all of --help in its long form.
    #[default]
    Table,
    Json,
    Ndjson,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole network on this machine: nodes and a proxy
    Up(UpArgs),
    /// Run one node, which stores and syncs messages
    Node(NodeArgs),
    /// Run a proxy, which forwards requests to the nodes that answer
    Proxy(ProxyArgs),
    /// Send one message, or a file of messages
    Send(SendArgs),
    /// List messages, oldest first
    List(ListArgs),
    /// Show every node of the network, and whether all nodes store the same
    Status(StatusArgs),
    /// Remove a node that is gone for good from the list of members
    Forget(ForgetArgs),
    /// Check every record of the stores on this machine whose nodes are stopped
    Verify(VerifyArgs),
    /// Make a key: only programs that have the key can read and write
    Key(KeyArgs),
    /// Print the guide: the list of its topics, or one topic
    Guide(GuideArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Every node and the proxy is a process of its own. All listen on 127.0.0.1: the
proxy on the base port, node N on the base port + 1 + N. Ctrl-C stops them in
order; a second Ctrl-C stops them at once.

Examples:
  chatchain up
  chatchain up --nodes 3 --data-dir /tmp/try --base-port 9000")]
pub struct UpArgs {
    /// Number of nodes
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nodes: u16,
    /// Parent of the stores: node N keeps its store in DIR/node-N [env: CHATCHAIN_NODE_DATA_DIR] [default: data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Port of the proxy; the nodes listen on the ports after it
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub base_port: u16,
}

#[derive(Debug, Default, Args)]
#[command(after_help = "\
On one machine, a node needs only its number: node N listens on
127.0.0.1:(8081 + N) and keeps its store in data/node-N. It syncs with the nodes
of --peers, else with those of `nodes` in the configuration file. A node that
other machines can reach needs a key: see `chatchain help key`.

Examples:
  chatchain node --node-id 2
  chatchain node --node-id 2 --peers 127.0.0.1:8081,127.0.0.1:8082
  chatchain node --node-id 7 --listen 0.0.0.0:8081 \\
      --advertise chat7.example:8081 --peers chat1.example:8081")]
pub struct NodeArgs {
    /// Number of this node (node id) in the network [env: CHATCHAIN_NODE_ID]
    #[arg(long, value_name = "N")]
    pub node_id: Option<NodeId>,
    /// Address to listen on [env: CHATCHAIN_NODE_LISTEN] [default: the address of this node in `nodes`]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Address that peers and proxies are told [env: CHATCHAIN_NODE_ADVERTISE] [default: the address it listens on]
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Nodes to sync with, separated by commas. One node that is up is enough to join a network [env:
    /// CHATCHAIN_NODE_PEERS] [default: the other `nodes` of the file or variable, else none]
    #[arg(long, value_name = "ADDRS")]
    pub peers: Option<String>,
    /// The store is DIR/node-N [env: CHATCHAIN_NODE_DATA_DIR] [default: data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  chatchain proxy
  chatchain proxy --listen 127.0.0.1:9000 --nodes 127.0.0.1:8081,127.0.0.1:8082")]
pub struct ProxyArgs {
    /// Address to listen on [env: CHATCHAIN_PROXY_LISTEN] [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Nodes to forward to, separated by commas [env: CHATCHAIN_NODES] [default: `nodes`]
    #[arg(long, value_name = "ADDRS")]
    pub nodes: Option<String>,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Flags of `node` and `proxy`.
#[derive(Debug, Default, Args)]
pub struct ServerArgs {
    /// Let other machines connect without a key: everybody who reaches the port can read and write everything
    #[arg(long)]
    pub insecure: bool,
    /// Stop when standard input ends. `up` holds the other end of that pipe, so no child outlives it.
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

#[derive(Debug, Default, Args)]
#[command(after_help = "\
The id is chosen before the first attempt, so all attempts store one message.

Examples:
  chatchain send --to user2 \"hi\"
  chatchain send --room ops \"disk full on web3\"   the same as --to '#ops'
  uptime | chatchain send --room ops -            text from standard input
  chatchain send --to user2 -- \"-1 from me\"       text that starts with a hyphen
  chatchain send --file messages.ndjson           one JSON object per line
  tail -f log.ndjson | chatchain send --file -")]
pub struct SendArgs {
    /// Recipient
    #[arg(long, value_name = "NAME", required_unless_present_any = ["room", "file"], conflicts_with_all = ["room", "file"])]
    pub to: Option<String>,
    /// Room to send to: the same as --to '#ROOM'
    #[arg(long, value_name = "ROOM", value_parser = NonEmptyStringValueParser::new(), conflicts_with = "file")]
    pub room: Option<String>,
    /// Sender [env: CHATCHAIN_USER] [default: your login name]
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    pub from: Option<String>,
    /// Id of the message, any UUID. Sending again with the same id never makes a second message
    #[arg(long, value_name = "UUID", conflicts_with = "file")]
    pub id: Option<Uuid>,
    /// Time of the message in whole Unix seconds [default: none; readers see the time of acceptance]
    #[arg(long, value_name = "SECONDS", conflicts_with = "file")]
    pub timestamp: Option<u64>,
    /// How many nodes must have the message on disk before the answer: a number, `quorum` or `all`. Waits at most 2 s
    /// [default: 1]
    #[arg(long, value_name = "N|quorum|all", value_parser = acks)]
    pub acks: Option<String>,
    /// Send every line of this NDJSON file (`-`: standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub file: Option<PathBuf>,
    /// Text of the message (`-`: standard input)
    #[arg(required_unless_present = "file")]
    pub text: Option<String>,
}

/// Refuses what is no count. Whether a count is too large is decided by the node, which knows the members.
fn acks(text: &str) -> Result<String, String> {
    let is_count = text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|n| n > 0);
    if is_count || matches!(text, "quorum" | "all") {
        return Ok(text.to_owned());
    }
    Err("give a number from 1, `quorum` or `all`".into())
}

#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  chatchain list --room ops --since 2h
  chatchain list --user user1 --with user2       the conversation of these two
  chatchain list --text deploy --limit 10 -o json
  chatchain list --follow --room ops             the newest 50, then new ones
  chatchain list --cursor-file seen --room ops   everything since the last run
  chatchain list --all -o ndjson                 everything, to be read by send --file")]
pub struct ListArgs {
    /// Only messages from or to this user
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Only messages between --user and this user
    #[arg(long, value_name = "NAME", requires = "user")]
    pub with: Option<String>,
    /// Only messages to this recipient
    #[arg(long, value_name = "NAME", conflicts_with = "room")]
    pub to: Option<String>,
    /// Only messages of this sender
    #[arg(long, value_name = "NAME")]
    pub from: Option<String>,
    /// Only messages to this room: the same as --to '#ROOM'
    #[arg(long, value_name = "ROOM", value_parser = NonEmptyStringValueParser::new())]
    pub room: Option<String>,
    /// Only messages that contain this text, whatever its case and its Unicode form
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,
    /// Only messages from this time on: 2h (ago), 2026-01-31T12:00:00Z, or Unix seconds
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only messages from before this time, written as for --since
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Then print new messages as they arrive, until Ctrl-C. When a server ends, ask the next one
    #[arg(short, long, conflicts_with = "until")]
    pub follow: bool,
    /// Keep a cursor in this file. If the file exists, list everything since the cursor in it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["since", "until"])]
    pub cursor_file: Option<PathBuf>,
    /// At most this many messages, the newest. Has no effect if the cursor file exists
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// All messages, printed as they arrive. With --cursor-file, a run that stopped can be continued at any node
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,
    /// Print times in UTC instead of the local time
    #[arg(long)]
    pub utc: bool,
}

#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  chatchain status
  chatchain status --watch
  chatchain status --check -q || echo 'look at it'   for monitoring")]
pub struct StatusArgs {
    /// Exit with code 3 unless every node is up, the network is writable, and all nodes store the same
    #[arg(long)]
    pub check: bool,
    /// Show the network again every second, until Ctrl-C
    #[arg(short, long, conflicts_with = "check")]
    pub watch: bool,
}

#[derive(Debug, Default, Args)]
#[command(after_help = "\
All nodes stop waiting for the forgotten node. The messages that it accepted
stay. A node that is up cannot be forgotten: stop it and wait 2 s. A forgotten
node that comes back is a member again.

Examples:
  chatchain forget --node-id 3")]
pub struct ForgetArgs {
    /// Number of the node
    #[arg(long, value_name = "N")]
    pub node_id: NodeId,
}

#[derive(Debug, Default, Args)]
#[command(after_help = "\
Stop the node first: a store that is in use is not checked. Nothing is repaired
here; a node salvages a damaged log by itself when it starts.

Examples:
  chatchain verify
  chatchain verify --data-dir data/node-2")]
pub struct VerifyArgs {
    /// A store, or the parent of the stores node-0, node-1 … [env: CHATCHAIN_NODE_DATA_DIR] [default: data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Only open the log of one store, with a check of every page. A node runs this in a process of its own before it
    /// opens a log that may crash it.
    #[arg(long, hide = true)]
    pub only_open: bool,
}

#[derive(Debug, Default, Args)]
#[command(after_help = "\
Every node, proxy and client of the network needs the same key: in
CHATCHAIN_KEY, or in a file that CHATCHAIN_KEY_FILE or `key_file` in config.toml
names. The variables win over `key_file`; set only one of them. The file may
hold several keys, one per line: the first key is sent, and each of them is
accepted.

Examples:
  umask 077; chatchain key > network.key")]
pub struct KeyArgs {}

#[derive(Debug, Default, Args)]
#[command(after_help = "\
The guide needs no server and no configuration.

Examples:
  chatchain guide
  chatchain guide disks
  chatchain guide http | less")]
pub struct GuideArgs {
    /// The topic to print [default: the list of topics]
    pub topic: Option<String>,
}

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
