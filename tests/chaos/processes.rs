//! The processes of an episode and their directories: nodes, the proxy, `strace`, and the files that fill disks.
//!
//! Executes single actions and reports which are not possible; knows neither schedule nor messages. The standard error
//! of a process is appended to a file when it has ended. Dropping the `Processes` ends all processes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::address;
use crate::support::network::Network;
use crate::support::process::{Process, chatchain};

/// A small disk. Below 64 MiB free, a node refuses clients.
const SMALL_DISK: &str = "size=256m";
const BALLAST: &str = "ballast";
const MIB: usize = 1 << 20;
/// A stopped node must close its files within this time.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// The system calls for reading and for syncing files.
pub const READS: &str = "pread64";
pub const SYNCS: &str = "fdatasync,fsync";
/// All system calls that change an open file.
const WRITES: &str = "pwrite64,ftruncate,fallocate,fdatasync,fsync";
/// A node that cannot write must close its files within this time.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// `strace` must detach within this time.
const DETACH_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Processes {
    dir: PathBuf,
    net: Option<Network>,
    pub nodes: Vec<Node>,
    proxy: Option<Process>,
    proxy_addr: SocketAddr,
    /// The addresses of the planned nodes, which all processes have in their configuration.
    known: Vec<SocketAddr>,
    mounted: Option<PathBuf>,
}

pub struct Node {
    pub addr: SocketAddr,
    /// The value of `--data-dir`.
    data: PathBuf,
    process: Option<Process>,
    started: Instant,
    frozen: bool,
    trace: Option<Process>,
}

impl Processes {
    /// Prepares the directories. No process runs yet.
    pub fn new(dir: &Path, nodes: usize, net: Option<Network>) -> io::Result<Self> {
        let addr = |i| if net.is_some() { Network::node(i) } else { address::free_addr() };
        let proxy_addr = if net.is_some() { Network::proxy() } else { address::free_addr() };
        let known = (0..nodes).map(addr).collect();
        let (dir, nodes) = (dir.to_owned(), Vec::new());
        let mut processes = Processes { dir, net, nodes, proxy: None, proxy_addr, known, mounted: None };
        for i in 0..processes.known.len() {
            processes.add(processes.known[i])?;
        }
        Ok(processes)
    }

    fn add(&mut self, addr: SocketAddr) -> io::Result<usize> {
        let number = self.nodes.len();
        let data = self.dir.join(format!("disk-{number}"));
        fs::create_dir_all(&data)?;
        let (process, trace, frozen, started) = (None, None, false, Instant::now());
        self.nodes.push(Node { addr, data, process, started, frozen, trace });
        Ok(number)
    }

    /// Adds a node that the others do not have in their configuration. Gives its number.
    pub fn extend(&mut self) -> io::Result<usize> {
        let number = self.nodes.len();
        self.add(if self.net.is_some() { Network::node(number) } else { address::free_addr() })
    }

    pub fn proxy_addr(&self) -> SocketAddr {
        self.proxy_addr
    }

    pub fn net(&self) -> Option<&Network> {
        self.net.as_ref()
    }

    /// The directory of a node's two files.
    pub fn store(&self, i: usize) -> PathBuf {
        self.nodes[i].data.join(format!("node-{i}"))
    }

    pub fn backup(&self, i: usize) -> PathBuf {
        self.dir.join(format!("backup-{i}"))
    }

    /// Mounts a small file system for a node, before it is started.
    pub fn mount(&mut self, i: usize) -> Result<(), String> {
        let target = self.nodes[i].data.clone();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", SMALL_DISK, "chaos"]).arg(&target);
        let done = mount.output().map_err(|e| format!("mount: {e}"))?;
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into_owned());
        }
        self.mounted = Some(target);
        Ok(())
    }

    pub fn has_small_disk(&self, i: usize) -> bool {
        self.mounted.as_ref() == Some(&self.nodes[i].data)
    }

    /// Fills a small disk until only this many MiB are free.
    pub fn fill(&self, i: usize, free_mib: u64) -> io::Result<()> {
        let dir = &self.nodes[i].data;
        let mut ballast = OpenOptions::new().create(true).append(true).open(dir.join(BALLAST))?;
        let chunk = vec![0; MIB];
        loop {
            let fs = rustix::fs::statvfs(dir)?;
            if fs.f_bavail * fs.f_frsize <= free_mib << 20 {
                return Ok(());
            }
            ballast.write_all(&chunk)?;
        }
    }

    /// Makes a file system read-only, as after an error. The kernel refuses that while a file is open for writing, so
    /// the writes of the node fail first, which makes it close its files.
    pub fn make_read_only(&mut self, i: usize) -> Result<(), String> {
        self.trace(i, &[(WRITES, "error=EROFS")])?;
        let mut last = String::new();
        let done = crate::pace::within(CLOSE_TIMEOUT, || {
            self.remount(i, "ro", Command::new("mount")).map_err(|why| last = why).ok()
        });
        self.untrace(i);
        done.ok_or(last)
    }

    pub fn make_writable(&self, i: usize) -> Result<(), String> {
        self.remount(i, "rw", Command::new("mount"))?;
        // In a network namespace, a node that was started meanwhile has its own copy of the read-only mount.
        let Some(process) = &self.nodes[i].process else { return Ok(()) };
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--mount=/proc/{}/ns/mnt", process.id())).arg("mount");
        self.remount(i, "rw", inside)
    }

    fn remount(&self, i: usize, how: &str, mut mount: Command) -> Result<(), String> {
        if !self.has_small_disk(i) {
            return Err(format!("node {i} has no file system of its own"));
        }
        mount.args(["-o", &format!("remount,{how},{SMALL_DISK}")]).arg(&self.nodes[i].data);
        let done = mount.output().map_err(|e| format!("mount: {e}"))?;
        if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
    }

    pub fn free(&self, i: usize) {
        // The file does not exist if the disk was never filled.
        drop(fs::remove_file(self.nodes[i].data.join(BALLAST)));
    }

    pub fn is_up(&self, i: usize) -> bool {
        self.nodes[i].process.is_some()
    }

    /// Whether a node is up and not frozen.
    pub fn answers(&self, i: usize) -> bool {
        self.is_up(i) && !self.nodes[i].frozen
    }

    pub fn uptime(&self, i: usize) -> Duration {
        self.nodes[i].started.elapsed()
    }

    /// Starts a node and does not wait. Does nothing if it is up.
    pub fn start(&mut self, i: usize) {
        if self.is_up(i) {
            return;
        }
        let node = &self.nodes[i];
        let peers: Vec<_> =
            self.known.iter().filter(|addr| **addr != node.addr).map(ToString::to_string).collect();
        let mut command = chatchain(&self.dir);
        command.args(["node", "--node-id", &i.to_string(), "--listen", &node.addr.to_string()]);
        command.arg("--insecure"); // the namespaces are private, so no key is needed
        command.args(["--peers", &peers.join(","), "--data-dir"]).arg(&node.data);
        let command = match &self.net {
            Some(net) => net.at_node(i, &command),
            None => command,
        };
        let node = &mut self.nodes[i];
        node.process = Some(Process::spawn(&format!("node {i}"), command));
        (node.started, node.frozen) = (Instant::now(), false);
    }

    pub fn start_all(&mut self) {
        (0..self.nodes.len()).for_each(|i| self.start(i));
    }

    /// Ends a node with SIGKILL. True if it was up.
    pub fn kill(&mut self, i: usize) -> bool {
        self.kill_many(&[i]) == 1
    }

    /// Ends nodes with SIGKILL, all at the same time. Gives how many were up.
    pub fn kill_many(&mut self, which: &[usize]) -> usize {
        let mut processes = Vec::new();
        for i in which {
            let node = &mut self.nodes[*i];
            processes.extend(node.process.take().map(|process| (*i, process)));
        }
        std::thread::scope(|scope| {
            for (_, process) in &mut processes {
                scope.spawn(|| process.kill9());
            }
        });
        for (i, process) in &processes {
            self.write_log(&format!("node-{i}"), process, "was killed");
            self.untrace(*i);
            self.nodes[*i].frozen = false;
        }
        processes.len()
    }

    /// Ends running nodes with SIGTERM, all at the same time, and waits until they have closed their files.
    pub fn stop_many(&mut self, which: &[usize]) {
        let up = |i: &&usize| self.is_up(**i);
        let which: Vec<_> = which.iter().filter(up).copied().collect();
        let mut processes: Vec<_> =
            which.iter().map(|i| (*i, self.nodes[*i].process.take().expect("it is up"))).collect();
        for (_, process) in &processes {
            process.terminate();
        }
        for (i, process) in &mut processes {
            let status = process.wait(STOP_TIMEOUT);
            self.write_log(&format!("node-{i}"), process, &format!("was stopped: {status}"));
            self.untrace(*i);
        }
    }

    /// The nodes that ended by themselves since the last call, and how. They count as down from now on.
    pub fn reap(&mut self) -> Vec<(usize, String)> {
        let mut ended = Vec::new();
        for i in 0..self.nodes.len() {
            let status = self.nodes[i].process.as_mut().and_then(Process::ended);
            if let Some(status) = status {
                let process = self.nodes[i].process.take().expect("it has ended");
                self.write_log(&format!("node-{i}"), &process, &status.to_string());
                self.untrace(i);
                let said = process.stderr();
                let last = said.lines().last().unwrap_or_default();
                ended.push((i, format!("node {i} ended by itself, {status}: {last}")));
            }
        }
        ended
    }

    pub fn freeze(&mut self, i: usize, frozen: bool) {
        let node = &mut self.nodes[i];
        if let Some(process) = &node.process {
            if frozen {
                process.freeze();
            } else {
                process.thaw();
            }
            node.frozen = frozen;
        }
    }

    /// Injects failures or delays into system calls of a running node, in the notation of `strace --inject`.
    pub fn trace(&mut self, i: usize, tampered: &[(&str, &str)]) -> Result<(), String> {
        let node = &mut self.nodes[i];
        let pid = node.process.as_ref().ok_or("the node is down")?.id().to_string();
        let mut strace = Command::new("strace");
        let calls: Vec<_> = tampered.iter().map(|(calls, _)| *calls).collect();
        strace.args(["-f", "-p", &pid, "-o", "/dev/null", "-e", &format!("trace={}", calls.join(","))]);
        for (calls, how) in tampered {
            strace.args(["-e", &format!("inject={calls}:{how}")]);
        }
        let mut trace = Process::spawn("strace", strace);
        let attached = crate::pace::within(Duration::from_secs(3), || {
            (trace.stderr().contains("attached") || trace.ended().is_some()).then_some(())
        });
        if attached.is_none() || trace.ended().is_some() {
            return Err(format!("strace: {}", trace.stderr()));
        }
        node.trace = Some(trace);
        Ok(())
    }

    pub fn untrace(&mut self, i: usize) {
        if let Some(mut trace) = self.nodes[i].trace.take() {
            if trace.ended().is_none() {
                trace.terminate();
            }
            trace.wait(DETACH_TIMEOUT);
        }
    }

    pub fn start_proxy(&mut self) {
        if self.proxy.is_none() {
            let known: Vec<_> = self.known.iter().map(ToString::to_string).collect();
            let mut command = chatchain(&self.dir);
            command.args(["proxy", "--listen", &self.proxy_addr.to_string(), "--nodes", &known.join(",")]);
            command.arg("--insecure");
            self.proxy = Some(Process::spawn("proxy", command));
        }
    }

    pub fn kill_proxy(&mut self) {
        if let Some(mut proxy) = self.proxy.take() {
            proxy.kill9();
            self.write_log("proxy", &proxy, "was killed");
        }
    }

    fn write_log(&self, name: &str, process: &Process, how: &str) {
        let path = self.dir.join(format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(path);
        // A failure to write the log must not fail the episode.
        drop(file.and_then(|mut file| writeln!(file, "{}--- the process {how}", process.stderr())));
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let all: Vec<_> = (0..self.nodes.len()).collect();
        self.kill_many(&all);
        self.kill_proxy();
        if let Some(target) = &self.mounted {
            drop(Command::new("umount").arg("--lazy").arg(target).output());
        }
    }
}
