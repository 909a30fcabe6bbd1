//! A disk whose reads fail temporarily under a running node. Permanent bad sectors are simulated in
//! `tests/sim/sectors.rs`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::eventually::eventually_blocking;
use crate::support::http;
use crate::support::measure;
use crate::support::messages::{assert_holds, history, numbered, send, send_all};
use crate::support::process::{Process, run};

const LONG: Duration = Duration::from_secs(60);

/// An `strace` command that fails every read of a file, and its next fsync, which makes a node close the file. None,
/// with a message, without root or `strace`.
fn failing_reads(of: &Path) -> Option<Command> {
    let is_there = Command::new("strace").arg("--version").output().is_ok_and(|done| done.status.success());
    if !is_there || !rustix::process::geteuid().is_root() {
        measure::say("skipped: failing reads need root and strace");
        return None;
    }
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "-e", "trace=pread64,fdatasync", "-e", "inject=pread64:error=EIO"]);
    strace.args(["-e", "inject=fdatasync:error=EIO:when=1", "-P"]).arg(of);
    Some(strace)
}

/// Starts to fail the reads of a running process.
fn fail_reads(process: &Process, file: &Path) -> Option<Process> {
    let mut strace = failing_reads(file)?;
    strace.args(["-p", &process.id().to_string()]);
    let mut trace = Process::spawn("strace", strace);
    eventually_blocking(LONG, "strace to attach", || {
        assert!(trace.ended().is_none(), "strace cannot attach: {}", trace.stderr());
        trace.stderr().contains("attached")
    });
    Some(trace)
}

#[test]
fn a_temporarily_unreadable_log_is_not_salvaged_and_loses_nothing() {
    let mut cluster = Cluster::start(1);
    let addr = cluster.node(0);
    send_all(addr, 0..100);
    let log = cluster.node_dir(0).join("log.redb");
    let Some(mut trace) = fail_reads(cluster.process(0), &log) else { return };
    let answer = http::post_json(addr, "/messages", &numbered(100)).expect("answered");
    assert_eq!((answer.status(), &answer.json()["code"]), (503, &"storage_failed".into()));
    // The node logs this after its normal retries have failed.
    eventually_blocking(LONG, "the node to report the unreadable log", || {
        cluster.process(0).stderr().contains("log.redb cannot be read: the disk gives nothing of it")
    });
    assert_eq!(http::get(addr, "/readyz").expect("answered").status(), 503);
    trace.terminate();
    trace.wait(LONG);
    cluster.wait_ready(0);
    send(addr, &numbered(100)); // the outcome of the first send is unknown
    assert_holds(&history(addr), 0..101);
    let names = std::fs::read_dir(cluster.node_dir(0)).expect("a directory");
    let names: Vec<_> = names.map(|file| file.expect("a file").file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("damaged")), "{names:?}");
}

#[test]
fn verify_reports_a_log_that_cannot_be_read() {
    let mut cluster = Cluster::start(1);
    send_all(cluster.node(0), 0..10);
    cluster.stop(0);
    let Some(mut strace) = failing_reads(&cluster.node_dir(0).join("log.redb")) else { return };
    let verify = cluster.command();
    strace.arg(verify.get_program()).args(["verify", "--data-dir"]).arg(cluster.data_dir());
    let done = run(strace, "");
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.contains("log.redb cannot be read: the disk gives nothing of it"), "{done:?}");
    assert_eq!(cluster.cli(&["verify"]).code, Some(0), "verify changed nothing");
}
