//! The program reads its environment as bytes: what it cannot use is one sentence, and nothing is skipped in silence.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::support::address::free_addr;
use crate::support::process::{Finished, Process, chatchain};

const LONG: Duration = Duration::from_secs(20);

/// Runs the program in this directory, with these variables, until it ends.
#[track_caller]
fn run_in(dir: &Path, variables: &[(&str, &[u8])], args: &[&str]) -> Finished {
    let mut command = chatchain(dir);
    command.args(args).envs(variables.iter().map(|(name, value)| (name, OsStr::from_bytes(value))));
    Process::spawn("command", command).finish(LONG)
}

/// The program ends with this code and one sentence on standard error, which holds these parts.
#[track_caller]
fn check(done: &Finished, code: i32, parts: &[&str]) {
    assert_eq!((done.code, done.stdout.as_str()), (Some(code), ""), "{}", done.stderr);
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    for part in parts {
        assert!(done.stderr.contains(part), "{:?} lacks {part:?}", done.stderr);
    }
}

#[test]
fn a_key_file_whose_name_is_not_utf8_is_read() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let listen = free_addr().to_string();
    let node = ["node", "--node-id", "0", "--listen", &listen];
    let named: [(&str, &[u8]); 1] = [("CHATCHAIN_KEY_FILE", b"cl\xe9.key")];
    let done = run_in(dir.path(), &named, &node);
    check(&done, 2, &["cannot read the key file", "CHATCHAIN_KEY_FILE", "chatchain key"]);
    let file = dir.path().join(OsStr::from_bytes(b"cl\xe9.key"));
    std::fs::write(&file, "short").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("our own file");
    check(&run_in(dir.path(), &named, &node), 2, &["line 1: a key has 16"]);
}

#[test]
fn a_variable_that_is_not_utf8_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in ["CHATCHAIN_NODES", "CHATCHAIN_SERVER", "CHATCHAIN_NODE_PEERS", "CHATCHAIN_KEY", "RUST_LOG"] {
        check(&run_in(dir.path(), &[(name, b"\xe9")], &["list"]), 2, &[name]);
    }
    let login: [(&str, &[u8]); 1] = [("USER", b"r\xe9mi")];
    check(&run_in(dir.path(), &login, &["send", "--to", "a", "b"]), 2, &["not UTF-8", "--from"]);
}

#[test]
fn a_wrong_log_filter_is_refused_and_an_empty_one_is_unset() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    check(
        &run_in(dir.path(), &[("RUST_LOG", b"chatchain=loud")], &["list"]),
        2,
        &["RUST_LOG", "chatchain=loud"],
    );
    let mut command = chatchain(dir.path());
    let listen = free_addr().to_string();
    command.args(["node", "--node-id", "0", "--listen", &listen]).env("RUST_LOG", "");
    let node = Process::spawn("node", command);
    node.eventually_says("no peers");
}

#[test]
fn a_configuration_of_another_program_stops_servers_only() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = free_addr().to_string();
    std::fs::write(dir.path().join("config.toml"), "baseURL = 'x'\n[params]\nkey = 1").expect("written");
    for args in [&["node", "--node-id", "0"][..], &["proxy"], &["up"]] {
        let done = run_in(dir.path(), &[], args);
        check(
            &done,
            2,
            &["config.toml", "another program", "no key of ChatChain", "--config FILE", "another directory"],
        );
        assert!(!done.stderr.contains("passed over"), "{}", done.stderr);
    }
    let done = run_in(dir.path(), &[], &["list", "--server", &server]);
    assert_eq!((done.code, done.stderr.lines().count()), (Some(5), 2), "{}", done.stderr);
    assert!(done.stderr.contains("passed over"), "{}", done.stderr);
    std::fs::write(dir.path().join("chatchain.toml"), format!("[proxy]\nlisten = '{server}'"))
        .expect("written");
    let done = run_in(dir.path(), &[], &["list"]);
    assert!(
        done.code == Some(5) && done.stderr.contains(&server) && !done.stderr.contains("passed over"),
        "{done:?}"
    );
}

#[test]
fn a_user_has_a_configuration_for_all_directories() {
    let (dir, home) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let server = free_addr().to_string();
    std::fs::create_dir_all(home.path().join(".config/chatchain")).expect("made");
    let file = home.path().join(".config/chatchain/config.toml");
    std::fs::write(&file, format!("key_file = 'k'\n[proxy]\nlisten = '{server}'")).expect("written");
    let home = home.path().as_os_str().as_bytes();
    let done = run_in(dir.path(), &[("HOME", home)], &["list"]);
    check(&done, 2, &["cannot read the key file", ".config/chatchain/k"]);
    std::fs::write(file.with_file_name("k"), "a-key-that-nobody-guesses").expect("written");
    let done = run_in(dir.path(), &[("HOME", home)], &["list"]);
    assert!(done.code == Some(5) && done.stderr.contains(&server), "{done:?}");
    let elsewhere: [(&str, &[u8]); 2] = [("HOME", home), ("XDG_CONFIG_HOME", b"/dev/null")];
    assert!(!run_in(dir.path(), &elsewhere, &["list"]).stderr.contains(&server));
}
