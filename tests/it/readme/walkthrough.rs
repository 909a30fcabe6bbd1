//! Types what a document says, step by step, and compares what is printed with what the document shows.
//!
//! Commands run in a temporary directory and with free ports instead of those that the document names. A command that
//! only reads is repeated until it shows what it should, because other nodes follow a moment later.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::document::{Action, Step};
use super::likeness::Known;
use super::{steps, text};
use crate::support::{
    address::{UP_PORTS, free_base_port},
    eventually::eventually_blocking,
    http,
    process::{Process, run},
};

/// What the guide says once, in its list of topics, and each topic relies on.
pub const ALIAS: &str = "alias chatchain=target/release/chatchain\n";
/// How long to wait for something that should be there soon.
const SOON: Duration = Duration::from_secs(30);
/// The ports of the documents: the proxy's, those of four nodes, and some for further nodes.
const PORTS: std::ops::Range<u16> = 8080..8080 + UP_PORTS;
/// Where `cargo build --release` puts the program, as seen from the top of the repository.
const PROGRAM: &str = "target/release/chatchain";

/// Follows a document from its first command to its last. `typed` is what its user has typed before.
pub fn follow(path: &str, typed: &str) {
    let steps = steps(path);
    if !has_curl() {
        return;
    }
    let commands = steps.iter().filter_map(|step| match &step.action {
        Action::Run { script, .. } => Some(script.as_str()),
        _ => None,
    });
    let mut walkthrough = Walkthrough::new(path, commands.collect(), typed);
    for step in &steps {
        walkthrough.follow(step);
    }
    let running: Vec<_> = walkthrough.servers.iter().map(|(name, _)| name).collect();
    assert!(running.is_empty(), "{path} does not say how to stop {running:?}");
}

/// Whether curl is here; says so if not. On CI (CI=true) it has to be.
fn has_curl() -> bool {
    let found = Command::new("curl").arg("--version").stdout(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    let on_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!on_ci, "the commands of the README and the guide need curl");
    // Not eprintln: the test runner hides that of a test that passes.
    writeln!(std::io::stderr(), "skipped: the commands of the README or the guide, because there is no curl")
        .expect("standard error is open");
    false
}

/// One document that is being followed, and the servers that its commands have started.
pub struct Walkthrough<'a> {
    path: &'a str,
    dir: tempfile::TempDir,
    base_port: u16,
    known: Known,
    /// Aliases that were typed and hold for all that follows.
    aliases: String,
    servers: Vec<(String, Process)>,
}

impl<'a> Walkthrough<'a> {
    /// `commands` is the text of all commands of the document.
    pub fn new(path: &'a str, commands: String, aliases: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = dir.path().join(PROGRAM);
        std::fs::create_dir_all(program.parent().expect("a file in a directory")).expect("a directory");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_chatchain"), program).expect("a link");
        let walkthrough = Walkthrough {
            path,
            dir,
            base_port: free_base_port(),
            known: Known(commands),
            aliases: aliases.into(),
            servers: Vec::new(),
        };
        let config = walkthrough.moved(&text("config.toml"));
        std::fs::write(walkthrough.dir.path().join("config.toml"), config).expect("a config.toml");
        walkthrough
    }

    /// The same text with the ports of this test.
    fn moved(&self, text: &str) -> String {
        let ports = PORTS.zip(self.base_port..);
        ports.fold(text.to_owned(), |text, (theirs, ours)| {
            text.replace(&format!("127.0.0.1:{theirs}"), &format!("127.0.0.1:{ours}"))
        })
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        let script = format!("exec 2>&1\nset -e\n{}{script}", self.aliases);
        command.args(["-c", &script]).current_dir(self.dir.path());
        // No setting of the person who runs the tests. No hedging, so that a slow machine stores no message twice.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("USER", "ana").env("HOME", self.dir.path()).env("CHATCHAIN_PROXY_STRATEGY", "failover");
        command
    }

    /// Carries out one step, and panics if it shows something else than the document.
    pub fn follow(&mut self, Step { line, action }: &Step) {
        match action {
            Action::Run { script, shown, looks } => self.type_in(*line, script, shown, *looks),
            Action::Serve { command, shown } => self.serve(*line, command, shown),
            Action::Told { server, shown } => self.is_told(*line, server, shown),
            Action::CtrlC => self.stop(*line),
            Action::LeftOut { .. } => {}
        }
    }

    fn type_in(&mut self, line: usize, script: &str, shown: &str, looks: bool) {
        if script.starts_with("alias ") {
            self.aliases += script;
        }
        if !looks {
            self.wait_for_nodes();
        }
        let killed = self.killed(script);
        let (script, shown) = (self.moved(script), self.moved(shown));
        let attempt = || {
            let done = run(self.shell(&script), "");
            if done.code == Some(0) && self.known.is_like(&shown, &done.stdout) {
                return Ok(());
            }
            let (want, got) = (self.known.plain(&shown), self.known.plain(&done.stdout));
            Err(format!(
                "{script}exit code {:?}, and it should print\n{want}\nbut prints\n{got}\n",
                done.code
            ))
        };
        let place = format!("{}:{line}", self.path);
        if looks {
            eventually_blocking(SOON, &format!("what {place} shows"), || attempt().map_err(Printed));
        } else if let Err(why) = attempt() {
            panic!("{place}: {why}");
        }
        for process in killed {
            eventually_blocking(SOON, "the end of a killed node", || is_gone(&process));
        }
    }

    /// A person takes longer to type than a node needs to tell the others what it has.
    fn wait_for_nodes(&self) {
        eventually_blocking(SOON, "all know that all have everything", || self.all_know());
    }

    /// The ids of the processes that this script kills, as the files beside their stores say.
    fn killed(&self, script: &str) -> Vec<String> {
        let files = script.split("$(cat ").skip(1).filter_map(|rest| rest.split(')').next());
        let ids = files.filter(|_| script.contains("kill -9")).map(|file| {
            let id = std::fs::read_to_string(self.dir.path().join(file)).expect("a process id");
            id.trim().to_owned()
        });
        ids.collect()
    }

    /// Whether each node that runs has heard from each other one that it lacks nothing.
    fn all_know(&self) -> bool {
        (1..UP_PORTS).all(|offset| {
            let Ok(answer) = http::get(([127, 0, 0, 1], self.base_port + offset).into(), "/nodes") else {
                return true; // it does not run
            };
            let json = answer.json();
            let mut peers = json["peers"].as_array().into_iter().flatten();
            peers.all(|peer| peer["state"] != "up" || peer["behind"] == 0)
        })
    }

    fn serve(&mut self, line: usize, command: &str, shown: &str) {
        let mut typed = command.replace("cargo run --release --", PROGRAM);
        if let Some(rest) = typed.strip_prefix("chatchain ") {
            assert!(self.aliases.contains(PROGRAM), "{}:{line}: nothing said what chatchain is", self.path);
            typed = format!("{PROGRAM} {rest}");
        }
        if typed.ends_with(" up") {
            typed = format!("{typed} --base-port {}", self.base_port);
        }
        let name = typed.split(' ').nth(1).unwrap_or_default().to_owned();
        let process = Process::spawn(command, self.shell(&format!("exec {}", self.moved(&typed))));
        self.servers.push((name, process));
        self.shows(line, self.servers.len() - 1, shown);
    }

    fn is_told(&self, line: usize, server: &str, shown: &str) {
        let at = self.servers.iter().rposition(|(name, _)| name == server);
        self.shows(line, at.unwrap_or_else(|| panic!("{}:{line}: no {server} runs", self.path)), shown);
    }

    fn shows(&self, line: usize, server: usize, shown: &str) {
        let shown = self.moved(shown);
        let what = format!("what {}:{line} shows:\n{}", self.path, self.known.plain(&shown));
        eventually_blocking(SOON, &what, || {
            let printed = self.servers[server].1.stdout();
            if self.known.has_lines(&shown, &printed) {
                return Ok(());
            }
            Err(Printed(format!("it printed\n{}", self.known.plain(&printed))))
        });
    }

    /// Ctrl-C in every terminal. Servers that the document has killed are gone already.
    fn stop(&mut self, line: usize) {
        assert!(!self.servers.is_empty(), "{}:{line}: nothing runs", self.path);
        self.wait_for_nodes();
        for (name, mut server) in self.servers.drain(..).rev() {
            if server.ended().is_none() {
                server.interrupt();
                assert_eq!(server.wait(SOON).code(), Some(0), "{}:{line}: {name}", self.path);
            }
        }
    }
}

/// Whether a process has ended. Its parent may not have noticed yet.
fn is_gone(id: &str) -> bool {
    std::fs::read(format!("/proc/{id}/cmdline")).map_or(true, |line| line.is_empty())
}

/// A failure whose text is printed as it is, with its lines.
struct Printed(String);

impl std::fmt::Debug for Printed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
