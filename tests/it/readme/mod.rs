//! Does what the README says, all of it and in its order, and compares what is printed with what it shows.
//!
//! In a directory of its own with the repository's `config.toml`, with its ports moved to free ones. How a block is
//! understood stands in `document`, what counts as the same output in `likeness`.

mod document;
mod likeness;

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use chatchain::{api::error::ErrorCode, config::settings};

use crate::support::{
    address::free_base_port,
    eventually::eventually_blocking,
    http,
    process::{Process, run},
};
use document::{Action, Step};
use likeness::Known;

/// For what should be there soon.
const SOON: Duration = Duration::from_secs(30);
/// The ports of the README: the proxy's and those of four nodes.
const PORTS: std::ops::Range<u16> = 8080..8085;
/// Where `cargo build --release` puts the program, as seen from the top of the repository.
const PROGRAM: &str = "target/release/chatchain";

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(name: &str) -> String {
    std::fs::read_to_string(top().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Somebody who types what the README says.
struct Reader<'a> {
    dir: tempfile::TempDir,
    base_port: u16,
    known: Known<'a>,
    /// What was typed once for all that follows.
    aliases: String,
    servers: Vec<(String, Process)>,
}

impl<'a> Reader<'a> {
    fn new(readme: &'a str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = dir.path().join(PROGRAM);
        std::fs::create_dir_all(program.parent().expect("a file in a directory")).expect("a directory");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_chatchain"), program).expect("a link");
        let known = Known(readme);
        let reader =
            Reader { dir, base_port: free_base_port(), known, aliases: String::new(), servers: Vec::new() };
        let config = reader.moved(&text("config.toml"));
        std::fs::write(reader.dir.path().join("config.toml"), config).expect("a config.toml");
        reader
    }

    /// The same with our ports.
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
        // Nothing of whoever runs the tests. Without hedging, so that a slow machine does not store a message twice.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("USER", "ana").env("HOME", self.dir.path()).env("CHATCHAIN_PROXY_STRATEGY", "failover");
        command
    }

    fn follow(&mut self, Step { line, action }: &Step) {
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
        if script.starts_with("kill ") {
            // Whoever reads what status said before has taken his time.
            eventually_blocking(SOON, "all know that all have everything", || self.all_know());
        }
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
        if looks {
            eventually_blocking(SOON, &format!("what README.md:{line} shows"), || attempt().map_err(Printed));
        } else if let Err(why) = attempt() {
            panic!("README.md:{line}: {why}");
        }
    }

    /// Whether each node that runs has heard from each other one that it lacks nothing.
    fn all_know(&self) -> bool {
        (1..5).all(|offset| {
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
            assert!(
                self.aliases.contains(PROGRAM),
                "README.md:{line}: nobody has said yet what chatchain is"
            );
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
        self.shows(line, at.unwrap_or_else(|| panic!("README.md:{line}: no {server} runs")), shown);
    }

    fn shows(&self, line: usize, server: usize, shown: &str) {
        let shown = self.moved(shown);
        eventually_blocking(
            SOON,
            &format!("what README.md:{line} shows:\n{}", self.known.plain(&shown)),
            || {
                let printed = self.servers[server].1.stdout();
                if self.known.has_lines(&shown, &printed) {
                    return Ok(());
                }
                Err(Printed(format!("it printed\n{}", self.known.plain(&printed))))
            },
        );
    }

    /// Ctrl-C in every terminal. Servers that the README has killed are gone already.
    fn stop(&mut self, line: usize) {
        assert!(!self.servers.is_empty(), "README.md:{line}: nothing runs");
        for (name, mut server) in self.servers.drain(..).rev() {
            if server.ended().is_none() {
                server.interrupt();
                assert_eq!(server.wait(SOON).code(), Some(0), "README.md:{line}: {name}");
            }
        }
    }
}

/// A failure whose text is printed as it is, with its lines.
struct Printed(String);

impl std::fmt::Debug for Printed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether curl is here; says so if not. On CI (CI=true) it has to be.
fn has_curl() -> bool {
    let found = Command::new("curl").arg("--version").stdout(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    let on_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!on_ci, "the README's commands need curl");
    // Not eprintln: the test runner would hide that from whoever runs a test that then passes.
    writeln!(std::io::stderr(), "skipped: the README's commands, for there is no curl")
        .expect("somebody reads it");
    false
}

fn steps(readme: &str) -> Vec<Step> {
    document::steps(readme).unwrap_or_else(|complaints| panic!("\n{}\n", complaints.join("\n")))
}

#[test]
fn every_command_of_the_readme_does_what_it_shows() {
    if !has_curl() {
        return;
    }
    let readme = text("README.md");
    let steps = steps(&readme);
    let commands: String = steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Run { script, .. } => Some(script.as_str()),
            _ => None,
        })
        .collect();
    let mut reader = Reader::new(&commands);
    for step in &steps {
        reader.follow(step);
    }
    let running: Vec<_> = reader.servers.iter().map(|(name, _)| name).collect();
    assert!(running.is_empty(), "the README does not say how to stop {running:?}");
}

#[test]
fn the_readme_shows_every_command_and_the_tests() {
    let steps = steps(&text("README.md"));
    let typed = |part: &str| {
        steps.iter().any(|step| match &step.action {
            Action::Run { script, .. } | Action::LeftOut { script } => script.contains(part),
            Action::Serve { command, .. } => command.contains(part),
            _ => false,
        })
    };
    let commands =
        ["up", "node --node-id", "proxy", "send --to", "send --file", "list", "status --check", "key"];
    for command in commands.map(|command| format!(" {command}")) {
        assert!(typed(&command), "{command} is not shown");
    }
    for part in
        ["kill -9", "Idempotency-Key", "application/x-ndjson", "&before=", "/network", "/nodes", "cargo test"]
    {
        assert!(typed(part), "{part} is not shown");
    }
    let left_out = steps.iter().filter(|step| matches!(step.action, Action::LeftOut { .. })).count();
    assert_eq!(left_out, document::NOT_RUN.len());
}

#[test]
fn the_readme_has_the_table_of_all_settings() {
    assert!(
        text("README.md").contains(&settings::markdown()),
        "it should hold this:\n{}",
        settings::markdown()
    );
}

#[test]
fn the_readme_has_the_right_status_for_every_code() {
    let readme = text("README.md");
    let rows = readme.lines().filter_map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let code = cells[0].trim_matches('`');
        ErrorCode::ALL.into_iter().find(|known| known.as_str() == code).map(|code| (code, cells))
    });
    let rows: Vec<_> = rows.collect();
    assert!(rows.len() > 10, "these are not all codes: {rows:?}");
    for (code, cells) in rows {
        let again = if code.retryable() { "yes" } else { "no" };
        assert_eq!(cells[1..3], [code.status().to_string().as_str(), again], "{code}");
    }
}

#[test]
fn what_the_readme_points_to_exists() {
    let readme = text("README.md");
    let targets = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let headings: Vec<String> = readme
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')))
        .map(|title| title.to_lowercase().replace(' ', "-").replace([',', '.', '\''], ""))
        .collect();
    let mut checked = 0;
    for target in targets.filter(|target| !target.starts_with("https://")) {
        match target.strip_prefix('#') {
            Some(heading) => assert!(headings.iter().any(|known| known == heading), "{target}: {headings:?}"),
            None => assert!(top().join(target).exists(), "{target} is not there"),
        }
        checked += 1;
    }
    for path in readme.split('`').skip(1).step_by(2).filter(|code| is_path(code)) {
        assert!(top().join(path).exists(), "{path} is not there");
    }
    assert!(checked > 5, "these are not all links");
}

/// Whether inline code names a file of the repository.
fn is_path(code: &str) -> bool {
    ["src/", "tests/", "scripts/", ".ci/"].iter().any(|dir| code.starts_with(dir)) && !code.contains(' ')
}

#[test]
fn a_readme_that_shows_something_else_is_noticed() {
    let wrong = |readme: &'static str| {
        let steps = steps(readme);
        std::panic::catch_unwind(move || {
            let mut reader = Reader::new("");
            for step in &steps {
                reader.follow(step);
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
