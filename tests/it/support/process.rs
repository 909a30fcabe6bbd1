//! A real process under test: starts it, captures its output, sends it signals, and kills it at the end of the test.
//!
//! A thread drains each output, so the process never blocks on a full pipe; the output is printed if the test fails.
//! Dropping the `Process` kills the process. Knows no HTTP.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::eventually::eventually_blocking;

/// A process that still runs this long after SIGTERM fails its test.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// A command that still runs after this fails the test that called `run`.
const RUN_TIMEOUT: Duration = Duration::from_secs(300);
/// When a test fails, at most this many trailing bytes of each output are printed.
const PRINTED_BYTES_MAX: usize = 16 * 1024;

/// A child process. Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    stdout: Capture,
    stderr: Capture,
}

/// The exit code and the output of a process that has ended.
#[derive(Debug)]
pub struct Finished {
    /// None if a signal ended the process.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The program under test with working directory `dir` and without the environment variables that configure it.
pub fn chatchain(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatchain"));
    command.current_dir(dir);
    for (name, _) in std::env::vars_os() {
        let ours = name.to_str().is_some_and(|name| name.starts_with("CHATCHAIN_"));
        // Without a home directory, a command stores no state for the next one.
        let others = ["NO_COLOR", "RUST_LOG", "HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"];
        if ours || others.iter().any(|one| name == *one) {
            command.env_remove(name);
        }
    }
    command
}

/// Loaded before the C library, this moves the clock by `DAYS`.
const MOVED_CLOCK: &str = "
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, id, time);
    if (id == CLOCK_REALTIME) time->tv_sec += DAYS * 86400LL;
    return result;
}";

/// Loaded before the C library, this refuses every thread after the first `COUNT`.
const FEW_THREADS: &str = "
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
static int started;
int pthread_create(pthread_t *thread, const pthread_attr_t *with, void *(*run)(void *), void *argument) {
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, \"pthread_create\");
    if (__atomic_add_fetch(&started, 1, __ATOMIC_SEQ_CST) > COUNT) return EAGAIN;
    return create(thread, with, run, argument);
}";

/// Loaded before the C library, this lets reads of files at an offset wait while the file `MARKER` begins with `FIRST`.
const BLOCKED_READS: &str = "
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>
static char first(void) {
    char byte = 0;
    int marker = open(MARKER, O_RDONLY);
    if (marker >= 0) {
        if (read(marker, &byte, 1) < 1) byte = 0;
        close(marker);
    }
    return byte;
}
ssize_t pread64(int file, void *out, size_t count, off_t offset) {
    while (first() == FIRST) usleep(10000);
    return syscall(SYS_pread64, file, out, count, offset);
}";

/// Moves the clock that a command sees by this many days. `dir` is for files that the command needs.
#[track_caller]
pub fn move_clock(command: &mut Command, dir: &Path, days: i64) {
    preload(command, dir, MOVED_CLOCK, &format!("-DDAYS=({days})"));
}

/// Lets a command start only this many threads. `dir` is for files that the command needs.
#[track_caller]
pub fn limit_threads(command: &mut Command, dir: &Path, count: usize) {
    preload(command, dir, FEW_THREADS, &format!("-DCOUNT={count}"));
}

/// Lets a command read no file at an offset while the file `marker` begins with this byte. `dir` is for files that the
/// command needs.
#[track_caller]
pub fn block_reads(command: &mut Command, dir: &Path, marker: &Path, first: char) {
    let source = BLOCKED_READS.replace("FIRST", &format!("'{first}'"));
    preload(command, dir, &source, &format!("-DMARKER=\"{}\"", marker.display()));
}

#[track_caller]
fn preload(command: &mut Command, dir: &Path, source: &str, define: &str) {
    let (file, library) = (dir.join("preloaded.c"), dir.join("preloaded.so"));
    std::fs::write(&file, source).expect("a file");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", define, "-o"]).arg(&library).arg(&file);
    assert!(compiler.status().expect("the linker of every Rust program").success());
    command.env("LD_PRELOAD", &library);
}

/// Runs a command with this standard input until it ends.
#[track_caller]
pub fn run(command: Command, input: impl Into<Vec<u8>>) -> Finished {
    Process::spawn_with_input("command", command, input).finish(RUN_TIMEOUT)
}

impl Process {
    /// Starts the command with an empty standard input. Failure messages show the name.
    #[track_caller]
    pub fn spawn(name: &str, command: Command) -> Self {
        Self::spawn_with_input(name, command, Vec::new())
    }

    /// Starts the command with this standard input.
    #[track_caller]
    pub fn spawn_with_input(name: &str, mut command: Command, input: impl Into<Vec<u8>>) -> Self {
        let input = input.into();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let mut stdin = child.stdin.take().expect("piped");
        // The process may end without reading its input, which is not an error.
        std::thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = Capture::of(child.stdout.take().expect("piped"));
        let stderr = Capture::of(child.stderr.take().expect("piped"));
        Process { name: name.into(), child, stdout, stderr }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// The standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// The exit status if the process has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Waits until standard error contains this.
    #[track_caller]
    pub fn eventually_says(&self, words: &str) {
        let what = format!("{words:?} on standard error of {}", self.name);
        eventually_blocking(STOP_TIMEOUT, &what, || self.stderr().contains(words));
    }

    /// Sends SIGKILL and waits until the process is gone.
    pub fn kill9(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// Sends SIGTERM, as a service manager does.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Sends SIGINT, as Ctrl-C does.
    pub fn interrupt(&self) {
        self.signal(rustix::process::Signal::INT);
    }

    /// Sends SIGHUP, as a terminal does that is closed.
    pub fn hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    /// Sends SIGSTOP, which pauses the process at any instruction without its knowledge.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Sends SIGCONT, after which a paused process continues.
    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap_or_else(|e| panic!("signal to {}: {e}", self.name));
    }

    /// Sends SIGTERM and waits until the process has ended.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.wait(STOP_TIMEOUT)
    }

    /// Waits until the process has ended. Panics if it still runs after `timeout`.
    #[track_caller]
    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        eventually_blocking(timeout, &what, || self.ended())
    }

    /// Waits until the process has ended and its output is complete. Output that stays open means that a child of the
    /// process still runs, and fails the test.
    #[track_caller]
    pub fn finish(mut self, timeout: Duration) -> Finished {
        let code = self.wait(timeout).code();
        let what = format!("the end of the output of {}", self.name);
        eventually_blocking(STOP_TIMEOUT, &what, || self.stdout.ended() && self.stderr.ended());
        Finished { code, stdout: self.stdout(), stderr: self.stderr() }
    }
}

impl Drop for Process {
    #[expect(clippy::print_stderr, reason = "the test runner shows it with the failure")]
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            for (what, output) in [("standard output", self.stdout()), ("standard error", self.stderr())] {
                eprintln!("--- {what} of {}:\n{}", self.name, tail(&output, PRINTED_BYTES_MAX));
            }
        }
    }
}

fn tail(text: &str, bytes: usize) -> &str {
    let mut start = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// One output of a process, read by a thread until all writers have closed the pipe.
struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Capture {
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                sink.lock().expect("no thread panics with the lock").extend_from_slice(&buffer[..count]);
            }
        });
        Capture { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no thread panics with the lock")).into_owned()
    }

    fn ended(&self) -> bool {
        self.reader.is_finished()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn lives(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_finished_command_gives_its_code_and_its_output() {
        let done = run(shell("cat; echo oops >&2; exit 3"), "input\n".repeat(100_000));
        assert_eq!((done.code, done.stdout.len(), done.stderr.as_str()), (Some(3), 600_000, "oops\n"));
    }

    #[test]
    fn output_is_seen_while_the_process_runs() {
        let process = Process::spawn("talker", shell("echo ready >&2; exec sleep 1000"));
        eventually_blocking(LONG, "its line", || process.stderr() == "ready\n");
    }

    #[test]
    fn kill9_runs_no_exit_handler() {
        let script = "trap 'echo bye' TERM EXIT; echo up; while :; do sleep 0.01; done";
        let mut process = Process::spawn("stubborn", shell(script));
        eventually_blocking(LONG, "its trap", || process.stdout().contains("up"));
        process.kill9();
        assert_eq!(process.ended().and_then(|status| status.signal()), Some(9));
        assert!(!process.stdout().contains("bye"));
    }

    #[test]
    fn stop_sends_sigterm_and_waits() {
        let script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done";
        let mut process = Process::spawn("polite", shell(script));
        eventually_blocking(LONG, "its trap", || process.stdout().contains("up"));
        assert_eq!(process.stop().code(), Some(7));
    }

    #[test]
    #[should_panic(expected = "not within 1ms: the end of sleeper")]
    fn waiting_has_a_deadline() {
        Process::spawn("sleeper", shell("exec sleep 1000")).wait(Duration::from_millis(1));
    }

    #[test]
    fn a_dropped_process_is_killed() {
        let process = Process::spawn("dropped", shell("exec sleep 1000"));
        let pid = process.id();
        assert!(lives(pid));
        drop(process);
        assert!(!lives(pid));
    }

    #[test]
    fn a_tail_starts_at_a_character_boundary() {
        assert_eq!(tail("aäb", 2), "b");
        assert_eq!(tail("ab", 9), "ab");
    }
}
