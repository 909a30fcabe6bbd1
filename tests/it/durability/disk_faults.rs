//! A disk whose reads fail temporarily under a running node, and a disk that is full. Permanent bad sectors are simulated in
//! `tests/sim/sectors.rs`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

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

/// A file system of its own in memory, mounted until this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, with a message, where mounting is not allowed.
    fn mount(at: &Path, megabytes: usize) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a directory");
        let size = format!("size={megabytes}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at);
        if mount.output().is_ok_and(|done| done.status.success()) {
            return Some(SmallDisk(at.to_owned()));
        }
        measure::say("skipped: a small disk needs the right to mount one");
        None
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("fill")).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("fill")).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_node_on_a_full_disk_answers_every_read_and_writes_again_when_there_is_room() {
    const COUNT: u64 = 30_000;
    let mut cluster = Cluster::prepare(1);
    let Some(disk) = SmallDisk::mount(&cluster.data_dir(), 160) else { return };
    cluster.start_all();
    let addr = cluster.node(0);
    send_all(addr, 0..COUNT);
    disk.fill();
    let refused = http::post_json(addr, "/messages", &numbered(COUNT)).expect("answered");
    assert_eq!((refused.status(), &refused.json()["code"]), (507, &"storage_full".into()));
    let reopened =
        |cluster: &mut Cluster| cluster.process(0).stderr().matches("opened its store again").count();
    for (start, grace) in [(0, Duration::from_secs(4)), (1, Duration::ZERO)] {
        let began = Instant::now();
        while began.elapsed() < grace + Duration::from_secs(5) {
            let is_read = http::get(addr, "/messages?limit=5").is_ok_and(|answer| answer.status() == 200);
            assert!(is_read || began.elapsed() < grace, "start {start}");
        }
        assert!(reopened(&mut cluster) <= 1, "a write may have been under way while the disk was filled");
        assert_holds(&history(addr), 0..COUNT);
        cluster.kill9(0);
        cluster.start_node(0);
    }
    disk.empty();
    send(addr, &numbered(COUNT));
    assert_holds(&history(addr), 0..=COUNT);
    assert_eq!(reopened(&mut cluster), 0);
}

#[test]
fn forgetting_a_node_on_a_full_disk_is_not_called_stored() {
    let mut cluster = Cluster::prepare(2);
    let Some(disk) = SmallDisk::mount(&cluster.data_dir(), 100) else { return };
    cluster.start_all();
    let addr = cluster.node(0);
    send_all(cluster.node(1), 0..1);
    cluster.converge(LONG, 1);
    cluster.kill9(1);
    disk.fill();
    let forget = || http::request(addr, "DELETE", "/nodes/1", &[], b"").expect("answered");
    let answer = eventually_blocking(LONG, "node 1 to be down", || {
        let answer = forget();
        (answer.status() == 200).then(|| answer.json())
    });
    assert_eq!(answer["stored"], false, "{answer}");
    disk.empty();
    assert_eq!(forget().json()["stored"], true);
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
