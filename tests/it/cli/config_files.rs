//! Which configuration file is read, passed over or refused: files that cannot be read, that belong to another program,
//! and that are no regular files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, mkfifoat};

use crate::support::address::free_addr;
use crate::support::measure;
use crate::support::process::{Finished, Process, chatchain};

const LONG: Duration = Duration::from_secs(20);
/// A user without any rights on this machine.
const NO_USER: u32 = 54_321;
const SERVERS: [&[&str]; 3] = [&["node", "--node-id", "0"], &["proxy"], &["up"]];

fn run_in(dir: &Path, args: &[&str]) -> Finished {
    let mut command = chatchain(dir);
    command.args(args);
    Process::spawn("command", command).finish(LONG)
}

fn make_pipe(path: &Path) {
    mkfifoat(CWD, path, Mode::RUSR).expect("a pipe");
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("our own file");
}

/// A client asks a server that is not there. Before, it prints one note with these parts; without parts, none.
#[track_caller]
fn check_passed_over(done: &Finished, parts: &[&str]) {
    let lines = if parts.is_empty() { 1 } else { 2 };
    assert_eq!((done.code, done.stderr.lines().count()), (Some(5), lines), "{parts:?}: {}", done.stderr);
    for part in parts {
        assert!(done.stderr.contains(part), "{:?} lacks {part:?}", done.stderr);
    }
}

/// The program refuses the configuration with one sentence that has these parts.
#[track_caller]
fn check_refused(done: &Finished, parts: &[&str]) {
    assert_eq!((done.code, done.stderr.lines().count()), (Some(2), 1), "{parts:?}: {}", done.stderr);
    assert!(!done.stderr.contains("passed over"), "{}", done.stderr);
    for part in parts {
        assert!(done.stderr.contains(part), "{:?} lacks {part:?}", done.stderr);
    }
}

#[test]
fn a_home_that_cannot_be_read_has_no_configuration() {
    if !rustix::process::geteuid().is_root() {
        measure::say("skipped: a process of another user needs root");
        return;
    }
    let (dir, home) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    set_mode(dir.path(), 0o777);
    set_mode(home.path(), 0o700);
    let of_user = home.path().join(".config/chatchain");
    fs::create_dir_all(&of_user).expect("made");
    let file = of_user.join("config.toml");
    fs::write(&file, "netwrk = 'x'").expect("written");
    let as_another = |in_dir: &Path, args: &[&str]| {
        let mut command = chatchain(in_dir);
        command.args(args).env("HOME", home.path()).uid(NO_USER);
        Process::spawn("command", command)
    };
    let server = free_addr().to_string();
    let list = ["list", "--server", &server];
    check_passed_over(&as_another(dir.path(), &list).finish(LONG), &[]);
    as_another(dir.path(), &["proxy", "--listen", &server]).eventually_says("serving as a proxy");
    let named = [&list[..], &["--config", file.to_str().expect("a plain path")]].concat();
    let done = as_another(dir.path(), &named).finish(LONG);
    check_refused(&done, &["config.toml", "Permission denied", "--config FILE"]);
    // The file can be seen and not be read: its settings would be lacking.
    for seen in [home.path(), &home.path().join(".config"), &of_user] {
        set_mode(seen, 0o755);
    }
    set_mode(&file, 0o600);
    let done = as_another(dir.path(), &list).finish(LONG);
    check_passed_over(&done, &["config.toml is passed over", "Permission denied", "--config FILE"]);
    let done = as_another(dir.path(), &["proxy", "--listen", &server]).finish(LONG);
    check_refused(&done, &["config.toml", "Permission denied", "--config FILE"]);
}

#[test]
fn a_config_toml_that_cannot_be_ours_stops_servers_only() {
    let server = free_addr().to_string();
    let check = |make: &dyn Fn(&Path), why: &str| {
        let dir = tempfile::tempdir().expect("a directory");
        make(&dir.path().join("config.toml"));
        let done = run_in(dir.path(), &["list", "--server", &server]);
        check_passed_over(&done, &["config.toml in this directory is passed over", why, "--config FILE"]);
        for args in SERVERS {
            let parts = ["config.toml in this directory", why, "--config FILE", "another directory"];
            check_refused(&run_in(dir.path(), args), &parts);
        }
        let dir = tempfile::tempdir().expect("a directory");
        make(&dir.path().join("chatchain.toml"));
        check_refused(&run_in(dir.path(), &["list", "--server", &server]), &["chatchain.toml"]);
    };
    let text = |bytes: &'static [u8]| move |path: &Path| fs::write(path, bytes).expect("written");
    check(&|path| fs::create_dir(path).expect("made"), "not a regular file");
    check(&make_pipe, "not a regular file");
    check(&|path| symlink("/dev/zero", path).expect("made"), "not a regular file");
    check(&|path| symlink(path, path).expect("made"), "symbolic links");
    check(&|path| symlink("/nowhere/at/all", path).expect("made"), "a link to nothing");
    check(&text(b"# caf\xe9\ntitle = 'caf\xe9'"), "line 1: this is not UTF-8");
    check(&text(b"title = x y"), "line 1: this is not TOML");
    check(&text(b"title = 'x'\n[params]\nnetwork = x y"), "line 3: this is not TOML");
    let long = |path: &Path| {
        fs::File::create(path).and_then(|file| file.set_len(1 << 21)).expect("made");
    };
    check(&long, "longer than");
}

#[test]
fn a_config_toml_of_another_user_stops_servers_only() {
    if !rustix::process::geteuid().is_root() {
        measure::say("skipped: a process of another user needs root");
        return;
    }
    let (dir, server) = (tempfile::tempdir().expect("a directory"), free_addr().to_string());
    set_mode(dir.path(), 0o755);
    let as_another = |args: &[&str]| {
        let mut command = chatchain(dir.path());
        command.args(args).uid(NO_USER);
        Process::spawn("command", command).finish(LONG)
    };
    let list = ["list", "--server", &server];
    let file = dir.path().join("config.toml");
    fs::write(&file, "nodes = 'x'").expect("written");
    set_mode(&file, 0o600);
    check_passed_over(&as_another(&list), &["passed over", "Permission denied", "--config FILE"]);
    for args in SERVERS {
        check_refused(&as_another(args), &["config.toml", "Permission denied", "--config FILE"]);
    }
    fs::rename(&file, dir.path().join("chatchain.toml")).expect("moved");
    check_refused(&as_another(&list), &["chatchain.toml", "Permission denied", "--config FILE"]);
}

#[test]
fn a_config_toml_with_a_key_of_ours_and_a_mistake_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let check = |bytes: &[u8], part: &str| {
        fs::write(dir.path().join("config.toml"), bytes).expect("written");
        for args in [&["list", "--server", "127.0.0.1:1"][..], &["proxy"]] {
            check_refused(&run_in(dir.path(), args), &[part]);
        }
    };
    check(b"nodes = ['a:1'", "config.toml line 1: this is not TOML");
    check(b"title = 'x'\nnetwork = x y", "config.toml line 2: this is not TOML");
    check(b"# caf\xe9\n  key_file = 'k'", "config.toml line 1: this is not UTF-8");
    check(b"[ node ]\ndata_dir = 'caf\xe9'", "config.toml line 2: this is not UTF-8");
    check(b"[proxy]\nlisten = 127.0.0.1:8080", "config.toml line 2: this is not TOML");
    check(b"node.data_dir = x y", "config.toml line 1: this is not TOML");
    check(b"\xef\xbb\xbf\"network\" = x y", "config.toml line 1: this is not TOML");
    check(b"[params]\nx = 1\n[nodes]\n0 = a", "config.toml line 4: this is not TOML");
}

#[test]
fn a_file_that_is_named_may_be_a_pipe() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = chatchain(dir.path());
    command.args(["list", "--config", "/dev/stdin"]);
    let done = Process::spawn_with_input("list", command, "\nnetwork = 17").finish(LONG);
    check_refused(&done, &["/dev/stdin line 2"]);
    check_refused(&run_in(dir.path(), &["list", "--config", "/dev/zero"]), &["/dev/zero", "longer than"]);
    let mut command = chatchain(dir.path());
    command.arg("list").env("CHATCHAIN_KEY_FILE", "/dev/stdin");
    let done = Process::spawn_with_input("list", command, "short").finish(LONG);
    check_refused(&done, &["/dev/stdin", "line 1: a key has 16"]);
}

#[test]
fn a_state_that_is_a_pipe_is_ignored() {
    let dir = tempfile::tempdir().expect("a directory");
    make_pipe(&dir.path().join("sent"));
    let mut command = chatchain(dir.path());
    command.args(["list", "--server", "127.0.0.1:1"]).env("CHATCHAIN_STATE_DIR", dir.path());
    assert_eq!(Process::spawn("list", command).finish(LONG).code, Some(5));
}

#[test]
fn a_cursor_file_that_is_a_pipe_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    make_pipe(&dir.path().join("pipe"));
    for file in ["/dev/stdout", "/dev/stdin", "pipe"] {
        let done = run_in(dir.path(), &["list", "--cursor-file", file]);
        check_refused(&done, &[file, "not a regular file"]);
    }
}
