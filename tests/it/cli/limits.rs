//! A process that lacks threads, descriptors, memory, disk or an output ends with one sentence, without a panic or a
//! hang.
//!
//! Each test walks through all values of one limit with all commands below. A node that can start ends in order at
//! once, since its standard input is at its end.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use chatchain::config::settings::{PATH_VARIABLES, SETTINGS};
use tempfile::TempDir;

use crate::support::address::free_addr;
use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::measure;
use crate::support::process::{Finished, Process, chatchain, limit_threads};

/// A command that still runs after this hangs.
const LONG: Duration = Duration::from_secs(30);
/// A user without an entry in /etc/passwd. Limits on processes do not bind root.
const NO_USER: u32 = 54_321;
/// The longest value that Linux passes to a program is 128 KiB with the variable's name.
const LONG_VALUE: usize = 127 << 10;
/// `$C` is the program, `$S` a server that refuses connections.
const COMMANDS: [&str; 9] = [
    "$C --version",
    "$C key",
    "$C guide http",
    "$C status --server $S",
    "$C send --server $S --from a --to b hi",
    "$C send --server $S --file - < messages",
    "$C verify",
    "$C node --node-id 0 --listen $L --exit-with-parent",
    "$C proxy --listen $L --exit-with-parent",
];

/// A directory that every user may write, with a file of messages.
fn open_dir() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("our own directory");
    let message = r#"{"sender":"a","recipient":"b","text":"c","timestamp":1}"#;
    std::fs::write(dir.path().join("messages"), message).expect("written");
    dir
}

fn shell(dir: &Path, script: &str) -> Command {
    let mut command = chatchain(dir);
    let program = command.get_program().to_owned();
    let removed: Vec<OsString> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
    command = Command::new("bash");
    command.current_dir(dir).args(["-c", script]).env("C", program);
    command.env("S", free_addr().to_string()).env("L", free_addr().to_string());
    for name in removed {
        command.env_remove(name);
    }
    command
}

/// The command ended by itself with a code of the contract. On failure its last line says why.
#[track_caller]
fn check_ended(what: &str, done: &Finished) {
    if done.stderr.contains("error while loading shared libraries") || done.stderr.starts_with("bash: ") {
        return; // the program has not begun
    }
    assert!(matches!(done.code, Some(0 | 1 | 2 | 5)), "{what}: {done:?}");
    for dump in ["panicked", "Error {", "BACKTRACE", "Location:"] {
        assert!(!done.stderr.contains(dump), "{what}: {done:?}");
    }
    if done.code != Some(0) {
        let last = done.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && !last.contains("os error"), "{what}: {done:?}");
    }
}

/// Runs all commands after each of these shell commands, in a new directory, with this change of the process.
fn walk(limits: &[String], change: impl Fn(&mut Command)) {
    for limit in limits {
        for command in COMMANDS {
            let (dir, what) = (open_dir(), format!("{limit}; {command}"));
            let mut process = shell(dir.path(), &what);
            change(&mut process);
            check_ended(&what, &Process::spawn(&what, process).finish(LONG));
        }
    }
}

#[test]
fn few_descriptors_end_a_command_with_a_sentence() {
    let limits: Vec<_> = (3..=24).map(|n| format!("ulimit -n {n}")).collect();
    walk(&limits, |_| {});
    let mut few = shell(open_dir().path(), "ulimit -n 8; $C list");
    few.current_dir("/");
    let done = Process::spawn("list", few).finish(LONG);
    assert_eq!(done.code, Some(1));
    assert!(done.stderr.contains("ulimit -n") && done.stderr.lines().count() == 1, "{done:?}");
}

/// Whether this process may run others as another user.
fn may_change_user() -> bool {
    let may = rustix::process::geteuid().is_root();
    if !may {
        measure::say("skipped: a process of another user needs root");
    }
    may
}

#[test]
fn few_threads_end_a_command_with_a_sentence() {
    if !may_change_user() {
        return;
    }
    for n in 1..=16 {
        for command in COMMANDS {
            let (dir, what) = (open_dir(), format!("ulimit -u {n}; exec {command}"));
            let mut process = shell(dir.path(), &what);
            process.uid(NO_USER);
            let done = Process::spawn(&what, process).finish(LONG);
            check_ended(&what, &done);
            if n < 4 && command.contains("-server") {
                assert!(done.code == Some(1) && done.stderr.contains("ulimit -u"), "{what}: {done:?}");
            }
        }
    }
}

/// Another process may take the threads after the program has counted them.
#[test]
fn threads_that_are_taken_meanwhile_end_a_command_with_a_sentence() {
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    for count in 0..cores + 12 {
        for command in COMMANDS {
            let (dir, what) = (open_dir(), format!("exec {command}"));
            let mut process = shell(dir.path(), &what);
            limit_threads(&mut process, dir.path(), count);
            let what = format!("{count} threads: {what}");
            check_ended(&what, &Process::spawn(&what, process).finish(LONG));
        }
    }
}

#[test]
fn short_files_end_a_command_with_a_sentence() {
    let limits: Vec<_> = [0, 1, 8, 64, 512, 2048].iter().map(|n| format!("ulimit -f {n}")).collect();
    walk(&limits, |_| {});
}

#[test]
fn little_memory_ends_a_command_with_a_sentence() {
    let limits: Vec<_> =
        [60_000, 100_000, 200_000, 400_000].iter().map(|n| format!("ulimit -v {n}")).collect();
    walk(&limits, |_| {});
}

/// The walks above end most nodes before their store is open.
#[test]
fn a_node_within_limits_starts_or_says_why() {
    let check = |what: &str, dir: &Path, process: Command| {
        let mut node = Process::spawn(what, process);
        eventually_blocking(LONG, "the node to start or to end", || {
            let ended = node.ended().is_some();
            ended || node.stderr().contains("no peers")
        });
        if node.ended().is_none() {
            node.terminate();
        }
        let done = node.finish(LONG);
        check_ended(what, &done);
        assert!(done.code != Some(0) || dir.join("data/node-0/log.redb").exists(), "{what}: {done:?}");
    };
    let command = "exec $C node --node-id 0 --listen $L";
    for limit in
        ["-n 20", "-n 24", "-n 32", "-f 0", "-f 1", "-f 64", "-f 512", "-f 2048", "-v 60000", "-v 200000"]
    {
        let (dir, what) = (open_dir(), format!("ulimit {limit}; {command}"));
        check(&what, dir.path(), shell(dir.path(), &what));
    }
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    for count in cores..cores + 16 {
        let dir = open_dir();
        let mut process = shell(dir.path(), command);
        limit_threads(&mut process, dir.path(), count);
        check(&format!("{count} threads: {command}"), dir.path(), process);
    }
}

#[test]
fn closed_inputs_and_outputs_change_no_exit_code() {
    let dir = open_dir();
    for command in COMMANDS {
        let plain = Process::spawn(command, shell(dir.path(), command)).finish(LONG);
        for closed in (1..8).filter(|closed| closed & 1 == 0 || !command.contains("< messages")) {
            let parts = ["<&-", ">&-", "2>&-"].iter().enumerate().filter(|(bit, _)| closed >> bit & 1 == 1);
            let closed: Vec<_> = parts.map(|(_, part)| *part).collect();
            let what = format!("{command} {}", closed.join(" "));
            let done = Process::spawn(&what, shell(dir.path(), &what)).finish(LONG);
            assert_eq!(done.code, plain.code, "{what}: {done:?}");
        }
    }
}

#[test]
fn a_full_output_is_named() {
    let dir = open_dir();
    for command in ["$C --version", "$C --help", "$C key", "$C guide", "$C guide http"] {
        let done = Process::spawn(command, shell(dir.path(), &format!("{command} > /dev/full"))).finish(LONG);
        check_ended(command, &done);
        assert!(
            done.code == Some(1) && done.stderr.contains("cannot write to standard output"),
            "{command}: {done:?}"
        );
        let done =
            Process::spawn(command, shell(dir.path(), &format!("{command} 2> /dev/full"))).finish(LONG);
        assert_eq!(done.code, Some(0), "{command}: {done:?}");
    }
}

#[test]
fn a_message_whose_id_cannot_be_printed_is_stored_and_says_so() {
    let mut cluster = Cluster::start(1);
    let server = cluster.node(0).to_string();
    let run = |command: &str| {
        let mut process = shell(cluster.dir(), command);
        process.env("S", &server);
        Process::spawn(command, process).finish(LONG)
    };
    let send = "$C send --server $S --from a --to b";
    for (end, code) in [("> /dev/full", 1), ("| true; exit ${PIPESTATUS[0]}", 0)] {
        let done = run(&format!("{send} 'one {code}' {end}"));
        assert_eq!(done.code, Some(code), "{done:?}");
        let id = done.stderr.split("stored, with the id ").nth(1).map(|rest| rest[..36].to_owned());
        let listed = run("$C list --server $S -o ndjson").stdout;
        assert!(id.as_ref().is_some_and(|id| listed.contains(id)), "{done:?}: {listed}");
    }
    let done = run(
        "echo '{\"sender\":\"a\",\"recipient\":\"b\",\"text\":\"c\",\"timestamp\":1}' | $C send --server $S --file - > /dev/full",
    );
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.contains("1 sent: 1 accepted"), "{done:?}");
    for command in ["list", "status", "list -o ndjson", "status -o json", "list --cursor-file seen"] {
        let done = run(&format!("$C {command} --server $S > /dev/full"));
        check_ended(command, &done);
        assert!(done.code == Some(1) && done.stderr.contains("standard output"), "{command}: {done:?}");
    }
    cluster.stop(0);
    let done = Process::spawn("verify", shell(cluster.dir(), "$C verify > /dev/full")).finish(LONG);
    assert!(done.code == Some(1) && done.stderr.contains("standard output"), "{done:?}");
}

#[test]
fn a_read_only_root_is_enough_for_all_that_stores_nothing() {
    // A mount of its own makes the directory read-only as well, wherever temporary directories are.
    let read_only = "mount -o remount,bind,ro / && mount --bind . . && cd $PWD && mount -o remount,bind,ro .";
    let start = |dir: &Path, command: &str| {
        let script = format!("exec unshare -m bash -c '{read_only} && {command}'");
        Process::spawn(command, shell(dir, &script))
    };
    let run = |command: &str| {
        let dir = open_dir();
        start(dir.path(), command).finish(LONG)
    };
    if run("! touch file").code != Some(0) {
        return measure::say("skipped: a read-only root needs the right to mount one");
    }
    for command in COMMANDS {
        let done = run(command);
        check_ended(command, &done);
        let dir = open_dir();
        let plain = Process::spawn(command, shell(dir.path(), command)).finish(LONG);
        assert_eq!(done.code, plain.code, "{command}: {done:?}");
    }
    // The disk may become writable again, so a node goes on and says what is wrong.
    let dir = open_dir();
    let mut node = start(dir.path(), "exec $C node --node-id 0 --listen $L");
    node.eventually_says("Read-only file system");
    assert_eq!(node.stop().code(), Some(0));
}

#[test]
fn any_value_of_a_variable_is_used_or_refused() {
    let others =
        ["RUST_LOG", "HOME", "USER", "LOGNAME", "TERM", "NO_COLOR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"];
    let further = ["COLUMNS", "LANG", "RUST_BACKTRACE", "PATH", "PWD", "TMPDIR", "http_proxy", "TZ"];
    let names = SETTINGS.iter().map(|setting| setting.env).filter(|name| !name.is_empty());
    let long = "x".repeat(LONG_VALUE);
    for name in names.chain(others).chain(further) {
        for value in [b"cl\xe9".as_slice(), b"", long.as_bytes()] {
            for args in [
                "guide",
                "key",
                "status --server $S",
                "send --server $S --to b hi",
                "verify",
                "proxy --listen $L",
                "node --node-id 0 --listen $L",
            ] {
                let (dir, what) = (open_dir(), format!("{name}={:?}: {args}", &value[..value.len().min(9)]));
                let (server, listen) = (free_addr().to_string(), free_addr().to_string());
                let mut process = chatchain(dir.path());
                process.args(args.replace("$S", &server).replace("$L", &listen).split(' '));
                process.args(args.contains("$L").then_some("--exit-with-parent"));
                process.env(name, OsStr::from_bytes(value));
                let done = Process::spawn(&what, process).finish(LONG);
                check_ended(&what, &done);
                let is_path = PATH_VARIABLES.contains(&name) || matches!(name, "HOME" | "XDG_STATE_HOME");
                assert!(done.stderr.len() < 10_000 || is_path, "{what}: {} bytes", done.stderr.len());
            }
        }
    }
}

#[test]
fn a_user_without_home_and_name_can_use_everything_that_needs_none() {
    if !may_change_user() {
        return;
    }
    let dir = open_dir();
    let run = |command: &str| {
        let mut process = shell(dir.path(), command);
        process.uid(NO_USER).env_remove("USER").env_remove("LOGNAME");
        Process::spawn(command, process).finish(LONG)
    };
    assert_eq!(run("$C key").code, Some(0));
    let done = run("$C send --server $S --to b hi");
    assert!(done.code == Some(2) && done.stderr.contains("--from"), "{done:?}");
    assert_eq!(run("$C node --node-id 0 --listen $L --exit-with-parent").code, Some(0));
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o555)).expect("our own directory");
    let done = run("$C node --node-id 0 --listen $L --data-dir other");
    assert!(done.code == Some(1) && done.stderr.contains("other/node-0"), "{done:?}");
}
