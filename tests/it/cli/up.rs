//! `chatchain up`: one command starts a whole network, and no process outlives it.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    address::free_base_port,
    eventually::eventually_blocking,
    process::{Finished, Process, chatchain, run},
};

const LONG: Duration = Duration::from_secs(30);

/// A running `up` with three nodes, in a directory of its own.
struct Up {
    process: Process,
    base_port: u16,
    dir: tempfile::TempDir,
}

impl Up {
    #[track_caller]
    fn start() -> Self {
        let (dir, base_port) = (tempfile::tempdir().expect("a temporary directory"), free_base_port());
        let mut command = chatchain(dir.path());
        command.args(["up", "--nodes", "3", "--base-port", &base_port.to_string()]);
        let process = Process::spawn("up", command);
        eventually_blocking(LONG, "a network that is ready", || process.stdout().contains("Ctrl-C stops"));
        Up { process, base_port, dir }
    }

    fn addr(&self, offset: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base_port + offset).into()
    }

    fn cli(&self, args: &[&str]) -> Finished {
        let mut command = chatchain(self.dir.path());
        command.args(args).args(["--server", &self.addr(0).to_string()]);
        run(command, "")
    }

    /// The process whose `--listen` is this port.
    #[track_caller]
    fn child(&self, offset: u16) -> Pid {
        let addr = self.addr(offset).to_string();
        let listens = |pid: &Path| {
            let line = std::fs::read(pid.join("cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).collect();
            words.windows(2).any(|pair| pair[0] == b"--listen" && pair[1] == addr.as_bytes())
        };
        let pids = std::fs::read_dir("/proc").expect("a /proc").filter_map(|entry| Some(entry.ok()?.path()));
        let pid = pids.filter(|pid| listens(pid)).find_map(|pid| pid.file_name()?.to_str()?.parse().ok());
        Pid::from_raw(pid.expect("a process with this --listen")).expect("a pid")
    }

    /// Waits until no process listens on any of the ports.
    #[track_caller]
    fn wait_until_gone(&self) {
        eventually_blocking(LONG, "the end of all children", || {
            (0..4).all(|offset| TcpListener::bind(self.addr(offset)).is_ok())
        });
    }
}

#[test]
fn up_starts_a_network_and_prints_the_next_steps() {
    let mut up = Up::start();
    let printed = up.process.stdout();
    for part in ["3 of 3 nodes are ready", "proxy", "send --to user2 \"hi\"", "status"] {
        assert!(printed.contains(part), "{printed:?} lacks {part:?}");
    }
    assert!((0..4).all(|offset| printed.contains(&format!("http://{}\n", up.addr(offset)))), "{printed}");
    let sent = up.cli(&["send", "--from", "user1", "--to", "user2", "hi"]);
    assert_eq!(sent.code, Some(0), "{sent:?}");
    assert!(up.cli(&["list"]).stdout.contains("user1 -> user2  hi"));

    up.process.interrupt();
    assert_eq!(up.process.wait(LONG).code(), Some(0));
    up.wait_until_gone();
    let logs = up.process.stderr();
    assert!(!logs.contains("WARN"), "a start that goes well: {logs}");
    assert!(["node-0 |", "node-2 |", "proxy |"].iter().all(|tag| logs.contains(tag)), "{logs}");
}

#[test]
fn a_dead_child_is_reported_with_its_restart_command() {
    let mut up = Up::start();
    kill_process(up.child(2), Signal::KILL).expect("our own grandchild");
    let stderr = || up.process.stderr();
    let line = eventually_blocking(LONG, "a report", || {
        stderr().lines().find(|line| line.contains("node-1 ended")).map(str::to_owned)
    });
    assert!(line.contains("SIGKILL"), "{line}");
    let (_, restart) = line.split_once("with: ").expect("a command");
    let words: Vec<_> = restart.split(' ').collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(up.dir.path());
    let again = Process::spawn("node 1 again", command);
    eventually_blocking(LONG, "all three are up", || up.cli(&["status"]).stdout.contains("3 of 3 nodes up"));
    up.process.terminate();
    assert_eq!(up.process.wait(LONG).code(), Some(0));
    drop(again);
    up.wait_until_gone();
}

#[test]
fn no_child_outlives_a_killed_up() {
    let mut up = Up::start();
    up.process.kill9();
    up.wait_until_gone();
}

#[test]
fn a_second_signal_kills_hanging_children() {
    let mut up = Up::start();
    kill_process(up.child(1), Signal::STOP).expect("our own grandchild");
    up.process.interrupt();
    let hangs = || up.process.stderr().contains("a second Ctrl-C stops at once");
    eventually_blocking(LONG, "the reaction to the first signal", hangs);
    up.process.interrupt();
    assert_eq!(up.process.wait(LONG).code(), Some(1));
    up.wait_until_gone();
}

#[test]
fn ports_in_use_are_found_before_anything_starts() {
    let (dir, base_port) = (tempfile::tempdir().expect("a temporary directory"), free_base_port());
    let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, base_port + 2)).expect("a free port");
    let mut command = chatchain(dir.path());
    command.args(["up", "--base-port", &base_port.to_string()]);
    let done = run(command, "");
    assert_eq!((done.code, done.stdout.as_str()), (Some(1), ""), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
    assert!(
        done.stderr.contains(&format!(":{}", base_port + 2)) && done.stderr.contains("--base-port"),
        "{done:?}"
    );
    assert!(!dir.path().join("data").exists(), "nothing was started");
}

#[test]
fn a_store_in_use_is_reported_once_and_no_child_is_left() {
    let up = Up::start();
    let base_port = free_base_port();
    let mut command = chatchain(up.dir.path());
    command.args(["up", "--nodes", "2", "--base-port", &base_port.to_string()]);
    let done = run(command, "");
    assert_eq!((done.code, done.stdout.as_str()), (Some(1), ""), "{done:?}");
    let parts = ["data/node-", "in use by another process", "did not start"];
    assert!(parts.iter().all(|part| done.stderr.contains(part)), "{done:?}");
    assert!((0..3).all(|offset| TcpListener::bind((Ipv4Addr::LOCALHOST, base_port + offset)).is_ok()));
}

#[test]
fn a_running_node_has_a_pid_file() {
    let up = Up::start();
    let pid_file = |n: u16| up.dir.path().join(format!("data/node-{n}/pid"));
    for n in 0..3 {
        let pid = std::fs::read_to_string(pid_file(n)).expect("a pid file");
        assert_eq!(pid.trim().parse().ok(), Some(up.child(n + 1).as_raw_nonzero().get()));
    }
    up.process.interrupt();
    eventually_blocking(LONG, "the end of the pid files", || (0..3).all(|n| !pid_file(n).exists()));
}
