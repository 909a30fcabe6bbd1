//! Chaos tests: real processes under faults, with a judge that knows which messages were acknowledged.
//!
//! A test program without Rust's test harness: `cargo test` runs a few short episodes, `scripts/chaos.sh` any number.
//! The plan of an episode follows from its seed (`schedule`). The tests use only the command line, HTTP and the files
//! of the program. As root with `ip`, every node runs in its own network namespace: this process creates the
//! namespaces, runs itself again inside one of them, and always removes them in the end.
#![allow(
    dead_code,
    unused_imports,
    reason = "the unit tests of these files run in tests/it, so parts of them are unused here"
)]

mod client;
mod damage;
mod episode;
mod faults;
mod history;
mod judge;
mod outer;
mod pace;
mod processes;
mod reader;
mod schedule;
#[path = "../it/support/mod.rs"]
mod support;
mod total;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;

use schedule::{Kind, Need, Plan};
use support::network::Network;
use total::Total;

/// The default duration: short enough for CI, long enough for a dozen faults.
const SECONDS: u64 = 20;

/// Runs ChatChain amid kills, partitions, full disks and worse, and checks that nothing acknowledged is lost.
///
/// Prints the plan of each episode, its result, and totals that can be added up over several runs. Exit code 1: a
/// promise was broken. Faults that this machine does not allow (many need root, ip and strace) are skipped with a
/// message.
#[derive(Debug, Parser)]
#[command(name = "chaos", bin_name = "scripts/chaos.sh")]
struct Flags {
    /// The seed of the first episode; the others follow it
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// The number of episodes
    #[arg(long, default_value_t = 3)]
    episodes: u64,
    /// The seconds of faults in each episode
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
    /// Keep the directories of all episodes here (default: only those of failed episodes, in the temporary directory)
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Only these kinds of faults, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// All kinds except these
    #[arg(long, value_delimiter = ',', hide_possible_values = true)]
    without: Vec<Kind>,
    /// Only print the plans
    #[arg(long)]
    plan: bool,
    /// The test filters that `cargo test` passes to every test program: nothing runs unless one matches `chaos`.
    #[arg(hide = true)]
    filters: Vec<String>,
    #[command(flatten)]
    harness: Harness,
}

/// Flags of Rust's test harness, which test runners pass to all test programs.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of Rust's test harness")]
struct Harness {
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    no_capture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<u32>,
    #[arg(long, hide = true)]
    skip: Vec<String>,
    #[arg(long, hide = true)]
    color: Option<String>,
    #[arg(long, hide = true)]
    format: Option<String>,
}

impl Flags {
    fn kinds(&self) -> Vec<Kind> {
        let named = |kind: &Kind| match self.only.as_slice() {
            [] => true,
            only => only.contains(kind),
        };
        Kind::ALL.into_iter().filter(|kind| named(kind) && !self.without.contains(kind)).collect()
    }

    fn plan(&self, seed: u64) -> Plan {
        Plan::draw(seed, Duration::from_secs(self.seconds), &self.kinds())
    }

    /// The command that repeats one episode.
    fn again(&self, seed: u64) -> String {
        let list = |flag: &str, kinds: &[Kind]| match kinds {
            [] => String::new(),
            kinds => format!(" --{flag} {}", kinds.iter().map(Kind::to_string).collect::<Vec<_>>().join(",")),
        };
        let (only, without) = (list("only", &self.only), list("without", &self.without));
        let Flags { seconds, .. } = self;
        format!("scripts/chaos.sh --first-seed {seed} --episodes 1 --seconds {seconds}{only}{without}")
    }

    /// Whether the filters and flags of the test runner select this program.
    fn is_selected(&self) -> bool {
        let fits = |filter: &String| "chaos".contains(filter.as_str());
        let Harness { list, ignored, skip, .. } = &self.harness;
        !list
            && !ignored
            && (self.filters.is_empty() || self.filters.iter().any(fits))
            && !skip.iter().any(fits)
    }
}

/// Prints a line. Not println, which panics if standard output is closed.
fn say(line: &str) {
    // If standard output is closed, no one misses the line.
    drop(writeln!(std::io::stdout().lock(), "{}", line.trim_end()));
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if !flags.is_selected() {
        say(if flags.harness.list { "chaos: test" } else { "0 passed, 0 failed" });
        return ExitCode::SUCCESS;
    }
    if flags.plan {
        (flags.first_seed..flags.first_seed + flags.episodes)
            .for_each(|seed| say(&flags.plan(seed).to_string()));
        return ExitCode::SUCCESS;
    }
    if std::env::var_os(outer::INSIDE_VARIABLE).is_none() {
        return outer::run();
    }
    outer::listen_for_interruption();
    inside(&flags)
}

/// Runs the episodes in the network of this process.
fn inside(flags: &Flags) -> ExitCode {
    let began = Instant::now();
    let net = Network::around_us();
    let can = Capabilities::find(net.is_some());
    let kinds = flags.kinds();
    let cannot: Vec<_> =
        kinds.iter().filter(|kind| kind.needs().is_some_and(|need| !can.has(need))).collect();
    if !cannot.is_empty() {
        let names = cannot.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        say(&format!(
            "chaos: skipped on this machine, because they need root and `ip`, `mount` or `strace`: {names}"
        ));
    }
    let mut total = Total::default();
    for seed in flags.first_seed..flags.first_seed + flags.episodes {
        let plan = flags.plan(seed);
        say(&plan.to_string());
        let dir = episode_dir(flags.keep.as_deref(), seed);
        let outcome = std::fs::create_dir_all(&dir)
            .map_err(|e| format!("{}: {e}", dir.display()))
            .and_then(|()| episode(&plan, &dir, net.clone(), &can));
        if pace::is_interrupted() {
            say(&format!("chaos: seed {seed} interrupted"));
            drop(std::fs::remove_dir_all(&dir));
            break;
        }
        let good = total.add(seed, &outcome);
        if !good {
            say(&format!(
                "chaos: seed {seed} FAILED; repeat: {}; files and logs: {}",
                flags.again(seed),
                dir.display()
            ));
        } else if flags.keep.is_none() {
            drop(std::fs::remove_dir_all(&dir));
        }
    }
    if flags.keep.is_none()
        && let Some(parent) = episode_dir(None, 0).parent()
    {
        drop(std::fs::remove_dir(parent)); // fails if an episode's directory was kept
    }
    total.conclude(flags.first_seed, flags.episodes, began.elapsed())
}

/// Runs an episode. A panic of this program fails the episode, and the next one runs.
fn episode(
    plan: &Plan,
    dir: &Path,
    net: Option<Network>,
    can: &Capabilities,
) -> Result<episode::Outcome, String> {
    let run = || episode::run(plan, dir, net, &|need| can.has(need));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err("the chaos program itself panicked".into()))
}

fn episode_dir(keep: Option<&Path>, seed: u64) -> PathBuf {
    let name = format!("chatchain-chaos-{}", std::process::id());
    let parent = keep.map_or_else(|| std::env::temp_dir().join(name), Path::to_owned);
    std::path::absolute(&parent).unwrap_or(parent).join(format!("seed-{seed}"))
}

/// The kinds of faults that this machine allows.
struct Capabilities {
    namespaces: bool,
    mounts: bool,
    strace: bool,
}

impl Capabilities {
    fn find(namespaces: bool) -> Self {
        let root = rustix::process::geteuid().is_root();
        let works = |program: &str, args: &[&str]| {
            Command::new(program).args(args).output().is_ok_and(|done| done.status.success())
        };
        // strace may always attach to its own child, but to other processes only as root.
        let strace =
            root && works("strace", &["-f", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "true"]);
        let mounts = root && namespaces && works("mount", &["--version"]);
        Capabilities { namespaces, mounts, strace }
    }

    fn has(&self, need: Need) -> bool {
        match need {
            Need::Namespaces => self.namespaces,
            Need::Mounts => self.mounts,
            Need::Strace => self.strace,
            Need::Remounts => self.mounts && self.strace,
        }
    }
}
