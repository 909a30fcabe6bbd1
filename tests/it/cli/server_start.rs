//! A server that cannot start prints one sentence with the reason and exits with code 1 or 2.
//!
//! Covers directories, stores, ports, addresses and keys. Errors of the command line alone are in `commands`.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::json;

use crate::cluster::scale;
use crate::support::address::{free_addr, free_ip};
use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::http;
use crate::support::measure;
use crate::support::process::{Finished, Process, block_reads, chatchain, move_clock};
use crate::support::servers::{JSON, check_refusal, get, post};

/// A server that starts although it should not fails the test after this.
const LONG: Duration = Duration::from_secs(30);

/// Runs the program in this directory until it ends.
#[track_caller]
fn start(dir: &Path, args: &[&str]) -> Finished {
    let mut command = chatchain(dir);
    command.args(args);
    Process::spawn("a server that must not start", command).finish(LONG)
}

/// The program exits with this code. Its last line is its only error, holds these parts, and shows no Rust internals.
#[track_caller]
fn check(done: &Finished, code: i32, parts: &[&str]) {
    assert_eq!((done.code, done.stdout.as_str()), (Some(code), ""), "{}", done.stderr);
    let errors: Vec<_> = done.stderr.lines().filter(|line| line.contains("error")).collect();
    assert_eq!(errors.len(), 1, "one error: {}", done.stderr);
    assert_eq!(done.stderr.lines().last(), Some(errors[0]), "the error is the last line: {}", done.stderr);
    for part in parts {
        assert!(errors[0].contains(part), "{:?} lacks {part:?}", errors[0]);
    }
    for dump in ["panicked", "Error {", "Error(", "Os {", "BACKTRACE", "Location:", "src/", "os error"] {
        assert!(!done.stderr.contains(dump), "{:?} is a debug dump: {dump:?}", done.stderr);
    }
}

/// Starts node 0 on this directory. It must fail with an error that holds these parts.
#[track_caller]
fn check_data_dir(data_dir: &Path, parts: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data_dir = data_dir.to_str().expect("a plain path");
    let addr = free_addr().to_string();
    check(
        &start(dir.path(), &["node", "--node-id", "0", "--listen", &addr, "--data-dir", data_dir]),
        1,
        parts,
    );
}

#[test]
fn a_clock_before_1970_is_named_and_is_no_damage() {
    let mut cluster = stopped_node();
    for (data, args) in [("data", ["node", "--node-id", "0"]), ("new", ["node", "--node-id", "1"])] {
        let mut command = chatchain(cluster.dir());
        command.args(args).args(["--listen", &free_addr().to_string(), "--data-dir", data]);
        move_clock(&mut command, cluster.dir(), -95 * 365);
        let done = Process::spawn("a node of the past", command).finish(LONG);
        check(&done, 1, &["clock", "before 1970"]);
    }
    assert!(!cluster.dir().join("new").exists());
    cluster.start_node(0);
    assert!(!cluster.process(0).stderr().contains("damaged"));
}

/// A stopped node with a store.
fn stopped_node() -> Cluster {
    let mut cluster = Cluster::start(1);
    cluster.stop(0);
    cluster
}

#[test]
fn an_unusable_data_directory_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("a file");
    std::fs::write(&file, "words").expect("a file");
    let below = file.join("below");
    check_data_dir(&file, &["data directory", "a file/node-0", "cannot be used"]);
    check_data_dir(&below, &["data directory", "a file/below/node-0", "cannot be used"]);
    check_data_dir(Path::new("/proc/nothing"), &["data directory", "/proc/nothing/node-0", "cannot be used"]);
    check_data_dir(Path::new("/dev/null"), &["data directory", "/dev/null/node-0", "cannot be used"]);

    let taken = dir.path().join("taken");
    std::fs::create_dir(&taken).expect("a directory");
    std::fs::write(taken.join("node-0"), "").expect("a file");
    check_data_dir(&taken, &["taken/node-0", "cannot be used"]);
    let odd = dir.path().join("odd");
    std::fs::create_dir_all(odd.join("node-0/log.redb")).expect("a directory where a file should be");
    check_data_dir(&odd, &["odd/node-0/log.redb"]);
}

/// The directory of a node's store and the files in it.
fn store_paths(cluster: &Cluster) -> Vec<PathBuf> {
    let dir = cluster.node_dir(0);
    let files = std::fs::read_dir(&dir).expect("a directory").map(|file| file.expect("a file").path());
    files.chain([dir.clone()]).collect()
}

/// Earlier programs made stores that every user could read.
#[test]
fn only_the_owner_can_read_a_store() {
    let mut cluster = stopped_node();
    let check = |paths: &[PathBuf]| {
        assert!(paths.len() >= 3, "{paths:?}");
        for path in paths {
            let found = std::fs::metadata(path).expect("it exists");
            let want = if found.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(found.permissions().mode() & 0o777, want, "{}", path.display());
        }
    };
    let mut paths = store_paths(&cluster);
    paths.push(cluster.data_dir());
    check(&paths);
    for path in paths {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("our own store");
    }
    cluster.start_node(0);
    check(&store_paths(&cluster));
    cluster.stop(0);
    check(&store_paths(&cluster));
}

#[test]
fn a_warning_shows_no_number_of_an_error() {
    let mut cluster = stopped_node();
    std::os::unix::fs::symlink("/nowhere/at/all", cluster.node_dir(0).join("pid.unfinished"))
        .expect("a link");
    cluster.start_node(0);
    cluster.process(0).eventually_says("cannot write the process id");
    let said = cluster.process(0).stderr();
    assert!(said.contains("error=No such file or directory\n") && !said.contains("os error"), "{said}");
}

#[test]
fn a_store_in_use_is_refused() {
    let cluster = Cluster::start(1);
    check_data_dir(&cluster.data_dir(), &["node-0", "in use by another process"]);
    assert_eq!(cluster.statuses()[0]["state"], "up");
}

#[test]
fn a_store_of_a_newer_format_is_refused() {
    let cluster = stopped_node();
    let path = cluster.node_dir(0).join("log.redb");
    {
        let table = redb::TableDefinition::<&str, &[u8]>::new("meta");
        let database = redb::Database::open(&path).expect("a database");
        let transaction = database.begin_write().expect("begins");
        transaction
            .open_table(table)
            .expect("opens")
            .insert("format", 9_u32.to_be_bytes().as_slice())
            .expect("inserts");
        transaction.commit().expect("commits");
    }
    check_data_dir(&cluster.data_dir(), &["log.redb", "format 9", "reads format 2 only"]);
}

#[test]
fn a_store_of_another_network_is_refused() {
    let cluster = stopped_node();
    std::fs::write(cluster.dir().join("config.toml"), "network = \"elsewhere\"").expect("a config.toml");
    let addr = free_addr().to_string();
    let data_dir = cluster.data_dir();
    let data_dir = data_dir.to_str().expect("a plain path");
    let done = start(cluster.dir(), &["node", "--node-id", "0", "--listen", &addr, "--data-dir", data_dir]);
    check(&done, 1, &["log.redb", "\"chatchain\"", "\"elsewhere\""]);
}

#[test]
fn a_log_file_that_is_not_a_database_is_kept_under_another_name() {
    let mut cluster = stopped_node();
    let path = cluster.node_dir(0).join("log.redb");
    for garbage in [b"these are not the bytes of a database".to_vec(), vec![0; 100_000], Vec::new()] {
        std::fs::write(&path, &garbage).expect("written");
        cluster.start_node(0);
        cluster.stop(0);
        let files = std::fs::read_dir(cluster.node_dir(0)).expect("a directory");
        let kept = files.map(|file| std::fs::read(file.expect("a file").path()).expect("reads"));
        assert!(kept.into_iter().any(|bytes| bytes == garbage), "{} bytes are gone", garbage.len());
    }
}

/// The index is derived from the log: it is rebuilt, and the node gives the same answers.
#[test]
fn an_index_file_that_is_not_a_database_is_rebuilt() {
    let mut cluster = Cluster::start(1);
    for i in 0..5 {
        let message = serde_json::json!({ "sender": "ann", "recipient": "bob", "text": i.to_string() });
        crate::support::http::post_json(cluster.node(0), "/messages", &message).expect("stored");
    }
    let listed = crate::support::servers::get(cluster.node(0), "/messages?user=bob").body;
    let path = cluster.node_dir(0).join("index.redb");
    for garbage in
        [Some(b"these are not the bytes of a database".to_vec()), Some(vec![0; 100_000]), Some(vec![]), None]
    {
        cluster.stop(0);
        std::fs::remove_file(&path).expect("an index");
        if let Some(garbage) = garbage {
            std::fs::write(&path, garbage).expect("written");
        }
        cluster.start_node(0);
        assert_eq!(crate::support::servers::get(cluster.node(0), "/messages?user=bob").body, listed);
        assert_eq!(cluster.statuses()[0]["messages"], 5);
    }
}

#[test]
fn a_port_in_use_is_named_with_advice() {
    let cluster = Cluster::start_with_proxy(1);
    let (node, proxy) = (cluster.node(0).to_string(), cluster.proxy().to_string());
    let dir = tempfile::tempdir().expect("a temporary directory");
    for taken in [&node, &proxy] {
        let parts = [taken, "another process uses this port", "--listen"];
        check(&start(dir.path(), &["node", "--node-id", "1", "--listen", taken]), 1, &parts);
        check(&start(dir.path(), &["proxy", "--listen", taken, "--nodes", &node]), 1, &parts);
    }
    assert!(!dir.path().join("data").exists(), "no directory is created before the port is known to be free");
}

#[test]
fn an_address_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (addr, part) in
        [("192.0.2.1:7000", "no such address"), ("no-such-host.invalid:7000", "no-such-host.invalid:7000")]
    {
        check(
            &start(dir.path(), &["node", "--node-id", "1", "--listen", addr, "--insecure"]),
            1,
            &["cannot listen on", addr, part],
        );
        let proxy = ["proxy", "--listen", addr, "--insecure"];
        check(&start(dir.path(), &proxy), 1, &["cannot listen on", addr, part]);
    }
    for addr in ["127.0.0.1", "nonsense", ":80", "127.0.0.1:99999", "http://127.0.0.1:80/x", "::1:80"] {
        check(&start(dir.path(), &["node", "--node-id", "1", "--listen", addr]), 2, &["--listen", addr]);
        check(&start(dir.path(), &["proxy", "--listen", addr]), 2, &["--listen", addr]);
        check(&start(dir.path(), &["proxy", "--nodes", addr]), 2, &["--nodes", addr]);
        check(&start(dir.path(), &["node", "--node-id", "1", "--peers", addr]), 2, &["--peers", addr]);
    }
    check(&start(dir.path(), &["proxy", "--nodes", ","]), 2, &["--nodes"]);
}

#[test]
fn a_name_with_two_addresses_says_which_one_is_used() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let own = "127.0.0.1 two.example\n127.0.0.2 two.example\n127.0.0.3 one.example\n";
    std::fs::write(dir.path().join("hosts"), own).expect("a file");
    let start = |name: &str| {
        let command = chatchain(dir.path());
        let node = ["node", "--node-id", "0", "--insecure", "--exit-with-parent", "--listen"];
        let script = "mount --bind hosts /etc/hosts && exec \"$0\" \"$@\"";
        let mut own = Command::new("unshare");
        own.current_dir(dir.path()).args(["-m", "sh", "-c", script]).arg(command.get_program());
        Process::spawn("node", {
            own.args(node).arg(format!("{name}:0"));
            own
        })
        .finish(LONG)
    };
    let two = start("two.example");
    if two.code != Some(0) && !two.stderr.contains("error: ") {
        return measure::say("skipped: a file of hosts needs the right to mount one");
    }
    let (said, ok) = (two.stderr, two.code);
    assert_eq!(ok, Some(0), "{said}");
    let warning =
        said.lines().find(|line| line.contains("WARN two.example") || line.contains("two.example:0 means"));
    let warning = warning.unwrap_or_else(|| panic!("no warning: {said}"));
    assert!(warning.contains("means 127.0.0.1:") && warning.contains("not on 127.0.0.2:"), "{warning}");
    assert!(!start("one.example").stderr.contains("means"));
}

#[test]
fn a_configuration_error_names_its_line_or_setting() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let check = |config: &str, args: &[&str], parts: &[&str]| {
        std::fs::write(dir.path().join("config.toml"), config).expect("a config.toml");
        check(&start(dir.path(), args), 2, parts);
    };
    let node = ["node", "--node-id", "0"];
    check("[node]\ndata_dri = 'x'", &node, &["config.toml line 2", "`node.data_dri`", "`node.data_dir`"]);
    check("[proxy]\nstrategy = 'hegde'", &["proxy"], &["`proxy.strategy`", "\"hegde\"", "hedge"]);
    check("[nodes]\n0 = '127.0.0.1:1'\nx = '127.0.0.1:2'", &node, &["line 3", "`x`"]);
    check("nodes = ['127.0.0.1:1', '127.0.0.1:1']", &node, &["node 0 already"]);
    check("nodes = ['nowhere']", &node, &["`nodes.0`", "`nowhere`", "host:port"]);
    check("nodes = ['127.0.0.1:1']", &["node", "--node-id", "3"], &["node 3", "--listen"]);
    check(
        "nodes = {0 = '127.0.0.1:1', 5 = '127.0.0.1:2'}",
        &["node", "--node-id", "3"],
        &["node 3", "--listen"],
    );
    check("network = 17", &node, &["line 1", "`network`", "text in quotes"]);
    check("network = ''", &node, &["`network`"]);
    check("[node]\nsync_interval = '1'", &node, &["`node.sync_interval`", "500ms"]);
    check("[node]\nsync_interval = '10h'", &node, &["`node.sync_interval`", "between"]);
    check("= broken", &node, &["config.toml line 1", "not TOML"]);
    check("\u{0}\u{1b}[2J", &node, &["config.toml line 1"]);
    std::fs::write(dir.path().join("config.toml"), b"network = '\xff'").expect("a config.toml");
    check_usage(dir.path(), &node, &["config.toml", "UTF-8"]);
    check_usage(dir.path(), &["node", "--node-id", "0", "--config", "elsewhere.toml"], &["elsewhere.toml"]);
    check_usage(dir.path(), &["node", "--node-id", "0", "--config", "/"], &["cannot read"]);
}

#[track_caller]
fn check_usage(dir: &Path, args: &[&str], parts: &[&str]) {
    check(&start(dir, args), 2, parts);
}

#[test]
fn listening_beyond_loopback_without_a_key_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let remedy = ["0.0.0.0:7000", "there is no key", "umask 077; chatchain key > network.key", "--insecure"];
    let node = ["node", "--node-id", "0", "--listen", "0.0.0.0:7000", "--advertise", "a:1"];
    check(&start(dir.path(), &node), 2, &remedy);
    check(&start(dir.path(), &["proxy", "--listen", "0.0.0.0:7000"]), 2, &remedy);
}

/// Starts a node that listens on all addresses. Gives the process, its log at the start, and an address to reach it.
fn start_listening_everywhere(
    dir: &Path,
    prepare: impl FnOnce(&mut Command),
) -> (Process, String, SocketAddr) {
    let mut command = chatchain(dir);
    let ip = free_ip();
    command.args(["node", "--node-id", "0", "--listen", "0.0.0.0:0", "--advertise", &format!("{ip}:0")]);
    prepare(&mut command);
    let mut node = Process::spawn("node", command);
    let said = eventually_blocking(LONG, "the last log line of the start", || {
        assert!(node.ended().is_none(), "{}", node.stderr());
        let said = node.stderr();
        if said.contains("no peers") { Ok(said) } else { Err(said) }
    });
    let port =
        said.split(&format!("address={ip}:")).nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    let port: u16 = port.unwrap_or_else(|| panic!("no port in {said}"));
    (node, said, (ip, port).into())
}

#[test]
fn insecure_mode_warns_at_the_start_and_in_status() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (node, _, addr) = start_listening_everywhere(dir.path(), |command| {
        command.arg("--insecure");
    });
    eventually_blocking(LONG, "the warning", || {
        node.stderr().lines().any(|line| line.contains("WARN") && line.contains("without a key"))
    });
    let status = get(addr, "/nodes").json();
    assert!(status["warnings"].to_string().contains("there is no key"), "{status}");
}

#[test]
fn listening_beyond_loopback_with_a_key_gives_no_warning() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (node, _, addr) = start_listening_everywhere(dir.path(), |command| {
        command.env("CHATCHAIN_KEY", "a-key-that-nobody-guesses");
    });
    let with_key = [("authorization", "Bearer a-key-that-nobody-guesses")];
    let answer = http::request(addr, "GET", "/nodes", &with_key, b"").expect("an answer");
    assert!(!answer.json()["warnings"].to_string().contains("key"), "{}", answer.text());
    assert_eq!(get(addr, "/nodes").status(), 401);
    assert!(!node.stderr().contains("key"), "{}", node.stderr());
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_node_survives_a_closed_standard_error() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (addr, absent) = (free_addr(), free_addr());
    let mut command = chatchain(dir.path());
    command.args(["node", "--node-id", "0", "--listen", &addr.to_string(), "--peers", &absent.to_string()]);
    let (reader, log) = std::io::pipe().expect("a pipe");
    let mut node = KillOnDrop(command.stdin(Stdio::null()).stderr(log).spawn().expect("it starts"));
    drop((reader, command)); // `command` holds a copy of the writing end
    eventually_blocking(LONG, "a failed exchange, which the node logs", || {
        assert_eq!(node.0.try_wait().expect("our own child"), None, "the node has ended");
        let status = http::get(addr, "/nodes").map_err(|error| error.to_string())?.json();
        if status["peers"][0]["error"].is_string() { Ok(()) } else { Err(status.to_string()) }
    });
    rustix::process::kill_process(Pid::from_child(&node.0), Signal::TERM).expect("our own child");
    assert_eq!(node.0.wait().expect("our own child").code(), Some(0));
}

#[test]
fn a_key_file_that_others_can_read_gives_a_warning() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("network.key");
    std::fs::write(&path, "a-key-that-nobody-guesses").expect("a file");
    for (mode, warns) in [(0o644, true), (0o600, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("our own file");
        let mut command = chatchain(dir.path());
        let server = free_addr().to_string();
        command.args(["list", "--server", &server]).env("CHATCHAIN_KEY_FILE", "network.key");
        let said = Process::spawn("list", command).finish(LONG).stderr;
        assert_eq!(said.contains("warning: the key file network.key"), warns, "{said}");
        assert_eq!(said.contains("chmod 600 network.key"), warns, "{said}");
    }
}

#[test]
fn a_node_answers_while_it_opens_its_store() {
    let mut cluster = Cluster::prepare(1);
    scale::build(&cluster.node_dir(0), 200_000, |number| number % 4);
    std::fs::remove_file(cluster.node_dir(0).join("index.redb")).expect("removed");
    cluster.spawn_node(0);
    let addr = cluster.node(0);
    let began = Instant::now();
    eventually_blocking(LONG, "an answer", || http::get(addr, "/livez").is_ok());
    let live = began.elapsed();
    let refused = get(addr, "/messages?limit=1");
    check_refusal("a page", &refused, 503, "starting", "opens its store");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let sent = post(addr, "/messages", &[JSON], r#"{"sender":"a","recipient":"b","text":"c"}"#);
    for (what, answer) in
        [("send", sent), ("status", get(addr, "/nodes")), ("network", get(addr, "/network"))]
    {
        check_refusal(what, &answer, 503, "starting", "opens its store");
    }
    let ready = get(addr, "/readyz");
    let reasons = json!(["starting: this node opens its store"]);
    assert_eq!(
        (ready.status(), ready.json()),
        (503, json!({ "readable": false, "writable": false, "reasons": reasons }))
    );
    assert_eq!(get(addr, "/livez").status(), 200);
    cluster.wait_ready(0);
    measure::say(&format!("a node answered after {live:.1?}, and was ready after {:.1?}", began.elapsed()));
    assert_eq!(cluster.statuses()[0]["messages"], 200_000);
    assert!(cluster.process(0).stop().success());
}

#[test]
fn a_node_that_is_stopped_while_it_opens_its_store_ends_in_order() {
    let mut cluster = Cluster::prepare(1);
    scale::build(&cluster.node_dir(0), 100_000, |number| number % 4);
    std::fs::remove_file(cluster.node_dir(0).join("index.redb")).expect("removed");
    cluster.spawn_node(0);
    let addr = cluster.node(0);
    eventually_blocking(LONG, "an answer", || http::get(addr, "/livez").is_ok());
    cluster.stop(0);
    cluster.start_node(0);
    assert_eq!(cluster.statuses()[0]["messages"], 100_000);
}

/// Starts a node on this store that reads nothing of its databases, and waits until it answers and its crash marker says
/// this. Another process left its id in the directory.
#[track_caller]
fn start_blocked(cluster: &Cluster, marker: &str) -> Process {
    let (store, addr) = (cluster.node_dir(0), cluster.node(0));
    std::fs::write(store.join("pid"), "4194305\n").expect("a file");
    let mut command = cluster.command();
    command.args(["node", "--node-id", "0", "--listen", &addr.to_string()]);
    let first = marker.chars().next().expect("a number");
    block_reads(&mut command, cluster.dir(), &store.join("unproven"), first);
    let node = Process::spawn("node", command);
    eventually_blocking(LONG, "an answer", || http::get(addr, "/livez").is_ok());
    let says = || std::fs::read_to_string(store.join("unproven")).is_ok_and(|there| there == marker);
    eventually_blocking(LONG, "the beginning of the opening", says);
    node
}

fn file_in(dir: &Path, name: &str) -> Option<String> {
    std::fs::read_to_string(dir.join(name)).ok()
}

#[test]
fn a_stop_while_the_store_opens_ends_the_node_soon_and_is_no_bad_end() {
    const SOON: Duration = Duration::from_secs(4);
    let mut cluster = Cluster::start(1);
    cluster.stop(0);
    let store = cluster.node_dir(0);
    for (before, meanwhile) in [("0 0\n", "1 0\n"), ("2 1\n", "3 2\n")] {
        std::fs::write(store.join("unproven"), before).expect("a file");
        let mut node = start_blocked(&cluster, meanwhile);
        let refused = get(cluster.node(0), "/messages");
        check_refusal("a page", &refused, 503, "starting", "opens its store");
        node.terminate();
        assert_eq!(node.wait(SOON).code(), Some(0), "{}", node.stderr());
        assert!(node.stderr().contains("this process ends without it"), "{}", node.stderr());
        let after = file_in(&store, "unproven");
        assert!(after.as_deref().unwrap_or("0 0\n") == before, "{before:?} became {after:?}");
        assert_eq!(file_in(&store, "pid"), None);
    }
    cluster.start_node(0);
}

#[test]
fn the_pid_file_names_a_node_that_opens_its_store_and_never_one_that_may_not() {
    let mut cluster = Cluster::start(1);
    cluster.stop(0);
    let store = cluster.node_dir(0);
    let mut node = start_blocked(&cluster, "1 0\n");
    let pid = Some(format!("{}\n", node.id()));
    assert_eq!(file_in(&store, "pid"), pid);
    let free = free_addr().to_string();
    let second = start(cluster.dir(), &["node", "--node-id", "0", "--listen", &free]);
    check(&second, 1, &["in use by another process"]);
    assert_eq!(file_in(&store, "pid"), pid);
    node.kill9();
    cluster.start_node(0);
    assert_eq!(file_in(&store, "pid"), Some(format!("{}\n", cluster.process(0).id())));
}

#[test]
fn a_database_that_is_no_regular_file_is_refused() {
    for name in ["log.redb", "index.redb"] {
        for kind in ["fifo", "directory", "device"] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let store = dir.path().join("data/node-0");
            std::fs::create_dir_all(&store).expect("a directory");
            let path = store.join(name);
            match kind {
                "fifo" => {
                    let made = Command::new("mkfifo").arg(&path).status().expect("a standard program");
                    assert!(made.success());
                }
                "directory" => std::fs::create_dir(&path).expect("a directory"),
                _ => std::os::unix::fs::symlink("/dev/zero", &path).expect("a link"),
            }
            let parts = [name, "is not a regular file", "move it away"];
            let addr = free_addr().to_string();
            check(&start(dir.path(), &["node", "--node-id", "0", "--listen", &addr]), 1, &parts);
            if name == "log.redb" {
                let verified = start(dir.path(), &["verify"]);
                let is_named = parts.iter().all(|part| verified.stderr.contains(part));
                assert!(verified.code == Some(1) && is_named, "{verified:?}");
            }
        }
    }
}

#[test]
fn a_command_waits_for_a_node_that_opens_its_store() {
    let mut cluster = Cluster::start(1);
    cluster.stop(0);
    let blocked = start_blocked(&cluster, "1 0\n");
    let addr = cluster.node(0).to_string();
    let began = Instant::now();
    let checked = start(cluster.dir(), &["status", "--check", "--server", &addr]);
    assert!(began.elapsed() >= Duration::from_secs(5), "{:?}", began.elapsed());
    check(&checked, 3, &[&format!("error: {addr}: this node opens its store (starting)")]);
    assert_eq!(checked.stderr.matches("starting").count(), 1, "{}", checked.stderr);
    check(&start(cluster.dir(), &["list", "--server", &addr]), 1, &["opens its store (starting)"]);

    let mut send = cluster.command();
    send.args(["send", "--from", "a", "--to", "b", "c", "--server", &addr]);
    let send = Process::spawn("send", send);
    std::fs::write(cluster.node_dir(0).join("unproven"), "0 0\n").expect("a file"); // it reads its databases from now on
    let done = send.finish(LONG);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    drop(blocked);
}
