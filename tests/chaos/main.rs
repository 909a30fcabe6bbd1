//! Chaos: real processes, everything that can happen to them, and a judge who has written down what was acknowledged.
//!
//! A test program without the test harness: `cargo test` runs a few short episodes, `scripts/chaos.sh` as many as one
//! likes. The plan of an episode follows from its seed (`schedule`); the program under test is a black box with a command
//! line, HTTP and files.
//! As root with `ip`, every node lives in a network namespace of its own: this process then makes the namespaces, runs
//! itself inside one of them, and removes them whatever happens in there.
#![allow(
    dead_code,
    unused_imports,
    reason = "unit tests of these files run in tests/it; here nothing calls their parts"
)]

mod client;
mod damage;
mod episode;
mod faults;
mod history;
mod judge;
mod outer;
mod pace;
mod reader;
mod schedule;
mod site;
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

/// Short enough for CI, long enough for a dozen faults.
const SECONDS: u64 = 20;

/// Runs ChatChain amid kills, partitions, full disks and worse, and checks that nothing acknowledged is lost.
///
/// Prints the plan of each episode, what became of it, and totals that may be added up over several runs. Exit code 1: a
/// promise was broken. What cannot be done on this machine (much needs root, ip and strace) is skipped, and said so.
#[derive(Debug, Parser)]
#[command(name = "chaos", bin_name = "scripts/chaos.sh")]
struct Flags {
    /// The seed of the first episode; the others follow it
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// How many episodes
    #[arg(long, default_value_t = 3)]
    episodes: u64,
    /// How long the faults of each last
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
    /// Keep the directories of all episodes here (else only of those that failed, in the temporary directory)
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Only these kinds of faults, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// All kinds but these
    #[arg(long, value_delimiter = ',', hide_possible_values = true)]
    without: Vec<Kind>,
    /// Only print the plans
    #[arg(long)]
    plan: bool,
    /// What `cargo test` passes to every test program: what is named and is not us is not run here.
    #[arg(hide = true)]
    filters: Vec<String>,
    #[command(flatten)]
    harness: Harness,
}

/// Flags of the test harness that runners pass to all test programs alike.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of somebody else")]
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

    /// Whether a runner wants something of us at all.
    fn is_wanted(&self) -> bool {
        let us = |filter: &String| "chaos".contains(filter.as_str());
        let Harness { list, ignored, skip, .. } = &self.harness;
        !list && !ignored && (self.filters.is_empty() || self.filters.iter().any(us)) && !skip.iter().any(us)
    }
}

/// Says a line. Not println, which the house leaves to those who have a terminal of their own.
fn say(line: &str) {
    // Nobody reads it: then nobody misses it.
    drop(writeln!(std::io::stdout().lock(), "{}", line.trim_end()));
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if !flags.is_wanted() {
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

/// Runs the episodes, in whatever network this process finds itself.
fn inside(flags: &Flags) -> ExitCode {
    let began = Instant::now();
    let net = Network::around_us();
    let can = Powers::find(net.is_some());
    let kinds = flags.kinds();
    let cannot: Vec<_> =
        kinds.iter().filter(|kind| kind.needs().is_some_and(|need| !can.has(need))).collect();
    if !cannot.is_empty() {
        let names = cannot.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        say(&format!(
            "chaos: skipped on this machine, for they need root and `ip`, `mount` or `strace`: {names}"
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
                "chaos: seed {seed} FAILED; again: {}; files and logs: {}",
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
        drop(std::fs::remove_dir(parent)); // unless something in it was kept
    }
    total.conclude(flags.first_seed, flags.episodes, began.elapsed())
}

/// A mistake of ours is a failed episode, and no reason not to run the next.
fn episode(plan: &Plan, dir: &Path, net: Option<Network>, can: &Powers) -> Result<episode::Outcome, String> {
    let run = || episode::run(plan, dir, net, &|need| can.has(need));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err("the chaos program itself panicked".into()))
}

fn episode_dir(keep: Option<&Path>, seed: u64) -> PathBuf {
    let name = format!("chatchain-chaos-{}", std::process::id());
    let parent = keep.map_or_else(|| std::env::temp_dir().join(name), Path::to_owned);
    std::path::absolute(&parent).unwrap_or(parent).join(format!("seed-{seed}"))
}

/// What this machine lets us do.
struct Powers {
    namespaces: bool,
    mounts: bool,
    strace: bool,
}

impl Powers {
    fn find(namespaces: bool) -> Self {
        let root = rustix::process::geteuid().is_root();
        let works = |program: &str, args: &[&str]| {
            Command::new(program).args(args).output().is_ok_and(|done| done.status.success())
        };
        // Attaching to its own child is always allowed; to others, only for root here.
        let strace =
            root && works("strace", &["-f", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "true"]);
        let mounts = root && namespaces && works("mount", &["--version"]);
        Powers { namespaces, mounts, strace }
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
