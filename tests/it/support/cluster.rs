//! A cluster of real processes: nodes, and a proxy if a test wants one, in a temporary directory.
//!
//! All processes use one loopback IP address, or one network namespace each; each keeps its address over restarts.
//! Knows the command line, `/readyz` and `/nodes`, nothing else. A node that is down keeps its number and its
//! directory.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::eventually::eventually_blocking;
use super::network::Network;
use super::process::{Finished, Process, chatchain, run};
use super::{address, http};

/// A process that is not ready after this fails its test. Long enough for an index rebuild.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Node N listens on this port + N.
const NODE_PORT: u16 = 7100;
const PROXY_PORT: u16 = 7099;
/// Port offset of each move of a node.
const MOVE_PORT_STEP: usize = 100;

/// The nodes 0 to n of one network, and their proxy if it was started.
pub struct Cluster {
    addressing: Addressing,
    nodes: Vec<Node>,
    proxy: Option<Process>,
    /// The limit of file descriptors of servers that are started from now on, as flags of `ulimit`.
    descriptors: Option<String>,
    /// The last field, so that the directory is removed after the processes have ended.
    dir: tempfile::TempDir,
}

/// How the addresses of nodes and proxy are formed.
enum Addressing {
    Loopback(Ipv4Addr),
    /// Each node runs in its own network namespace; proxy and clients run in the clients' namespace.
    Namespaces(Network),
}

impl Addressing {
    fn node(&self, i: usize) -> SocketAddr {
        match self {
            Addressing::Loopback(ip) => (*ip, NODE_PORT + u16::try_from(i).expect("few nodes")).into(),
            Addressing::Namespaces(_) => Network::node(i),
        }
    }

    fn proxy(&self) -> SocketAddr {
        match self {
            Addressing::Loopback(ip) => (*ip, PROXY_PORT).into(),
            Addressing::Namespaces(_) => Network::proxy(),
        }
    }

    /// Flags that every server needs. Outside loopback a server requires a key, but a private namespace does not need
    /// one.
    fn flags(&self) -> &[&str] {
        match self {
            Addressing::Loopback(_) => &[],
            Addressing::Namespaces(_) => &["--insecure"],
        }
    }
}

struct Node {
    /// The node id, if it differs from the index of this node in the cluster.
    id: Option<usize>,
    /// How often the node moved. Each move gives it another port.
    moves: usize,
    peers: Vec<SocketAddr>,
    /// The address that peers are told, if it differs from the one on which the node listens.
    advertised: Option<SocketAddr>,
    process: Option<Process>,
}

impl Node {
    fn new(peers: Vec<SocketAddr>) -> Self {
        Node { id: None, moves: 0, peers, advertised: None, process: None }
    }
}

impl Cluster {
    /// A cluster of `n` nodes that know each other, all ready.
    #[track_caller]
    pub fn start(n: usize) -> Self {
        let mut cluster = Self::prepare(n);
        cluster.start_all();
        cluster
    }

    /// As `start`, with a proxy.
    #[track_caller]
    pub fn start_with_proxy(n: usize) -> Self {
        let mut cluster = Self::start(n);
        cluster.start_proxy();
        cluster
    }

    /// A cluster of `n` nodes that know each other, none started, so that a test can still write `config.toml` to
    /// `dir`.
    #[track_caller]
    pub fn prepare(n: usize) -> Self {
        Self::at(Addressing::Loopback(address::free_ip()), n)
    }

    /// As `prepare`, in these network namespaces. Call it from inside the clients' namespace.
    #[track_caller]
    pub fn prepare_in(network: &Network, n: usize) -> Self {
        Self::at(Addressing::Namespaces(network.clone()), n)
    }

    fn at(addressing: Addressing, n: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let addrs: Vec<_> = (0..n).map(|i| addressing.node(i)).collect();
        let peers = |own| addrs.iter().copied().filter(|addr| *addr != own).collect();
        let nodes = addrs.iter().map(|own| Node::new(peers(*own))).collect();
        Cluster { addressing, nodes, proxy: None, descriptors: None, dir }
    }

    /// Adds a node that has only these nodes as peers, and waits until it is ready. Gives its index.
    #[track_caller]
    pub fn join(&mut self, known: &[usize]) -> usize {
        self.join_peers(known.iter().map(|i| self.node(*i)).collect())
    }

    /// As `join`, with any peer addresses, on which nothing need listen.
    #[track_caller]
    pub fn join_peers(&mut self, peers: Vec<SocketAddr>) -> usize {
        self.nodes.push(Node::new(peers));
        self.start_node(self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    /// Adds a node with node id `id` and its own directory, and waits until it is ready. Gives its index.
    #[track_caller]
    pub fn join_as(&mut self, id: usize, known: &[usize]) -> usize {
        let peers = known.iter().map(|i| self.node(*i)).collect();
        self.nodes.push(Node { id: Some(id), ..Node::new(peers) });
        self.start_node(self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    /// Gives a stopped node these peers, and the address that peers are told.
    #[track_caller]
    pub fn readdress(&mut self, i: usize, peers: Vec<SocketAddr>, advertised: SocketAddr) {
        assert!(!self.is_up(i), "node {i} is up already");
        (self.nodes[i].peers, self.nodes[i].advertised) = (peers, Some(advertised));
    }

    /// Starts a stopped node at another address on its existing directory, and waits until it is ready.
    #[track_caller]
    pub fn move_node(&mut self, i: usize) -> SocketAddr {
        self.nodes[i].moves += 1;
        self.start_node(i);
        self.node(i)
    }

    /// Starts all stopped nodes at the same time, and waits until they are ready.
    #[track_caller]
    pub fn start_all(&mut self) {
        let down: Vec<_> = (0..self.nodes.len()).filter(|i| !self.is_up(*i)).collect();
        for i in &down {
            self.spawn_node(*i);
        }
        for i in down {
            self.wait_ready(i);
        }
    }

    /// Starts a stopped node and waits until it is ready.
    #[track_caller]
    pub fn start_node(&mut self, i: usize) {
        self.spawn_node(i);
        self.wait_ready(i);
    }

    /// Starts a stopped node and does not wait.
    #[track_caller]
    pub fn spawn_node(&mut self, i: usize) {
        assert!(!self.is_up(i), "node {i} is up already");
        let command = self.limited(self.node_command(i));
        self.nodes[i].process = Some(Process::spawn(&format!("node {i}"), command));
    }

    /// Starts servers with this soft and hard limit of file descriptors from now on.
    pub fn limit_descriptors(&mut self, count: u32) {
        self.descriptors = Some(format!("-n {count}"));
    }

    /// The same, but a server may raise the limit.
    pub fn limit_descriptors_softly(&mut self, count: u32) {
        self.descriptors = Some(format!("-S -n {count}"));
    }

    fn limited(&self, command: Command) -> Command {
        let Some(limit) = &self.descriptors else { return command };
        let mut limited = Command::new("/bin/sh");
        limited.args(["-c", &format!("ulimit {limit}; exec \"$0\" \"$@\"")]);
        limited.arg(command.get_program()).args(command.get_args()).current_dir(self.dir());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        limited
    }

    /// Starts a stopped node with these peers instead of its configured ones, and does not wait.
    #[track_caller]
    pub fn spawn_node_with(&mut self, i: usize, peers: &[&str]) {
        assert!(!self.is_up(i), "node {i} is up already");
        self.nodes[i].peers.clear();
        let mut command = self.node_command(i);
        command.args(["--peers", &peers.join(",")]);
        self.nodes[i].process = Some(Process::spawn(&format!("node {i}"), command));
    }

    /// Waits until a started node is ready.
    #[track_caller]
    pub fn wait_ready(&mut self, i: usize) {
        let addr = self.node(i);
        ready(self.process(i), addr, &format!("node {i} is ready"));
    }

    /// The command that runs this node.
    pub fn node_command(&self, i: usize) -> Command {
        let mut command = self.command();
        let (id, addr) = (self.nodes[i].id.unwrap_or(i).to_string(), self.node(i).to_string());
        command.args(["node", "--node-id", &id, "--listen", &addr]).args(self.addressing.flags());
        if !self.nodes[i].peers.is_empty() {
            command.args(["--peers", &join_addrs(&self.nodes[i].peers)]);
        }
        if let Some(advertised) = self.nodes[i].advertised {
            command.args(["--advertise", &advertised.to_string()]);
        }
        command.arg("--data-dir").arg(match self.nodes[i].id {
            Some(_) => self.data_dir().join(format!("instance-{i}")),
            None => self.data_dir(),
        });
        match &self.addressing {
            Addressing::Loopback(_) => command,
            Addressing::Namespaces(network) => network.at_node(i, &command),
        }
    }

    /// Starts a proxy for all nodes added so far, and waits until it is ready.
    #[track_caller]
    pub fn start_proxy(&mut self) {
        assert!(self.proxy.is_none(), "the proxy is up already");
        let nodes: Vec<_> = (0..self.nodes.len()).map(|i| self.node(i)).collect();
        let mut command = self.command();
        command.args(["proxy", "--listen", &self.proxy().to_string(), "--nodes", &join_addrs(&nodes)]);
        command.args(self.addressing.flags());
        let command = self.limited(command);
        let proxy = self.proxy.insert(Process::spawn("proxy", command));
        ready(proxy, self.addressing.proxy(), "the proxy is ready");
    }

    /// Ends the proxy with SIGKILL.
    #[track_caller]
    pub fn kill9_proxy(&mut self) {
        self.proxy.take().expect("the proxy is up").kill9();
    }

    /// Ends the proxy with SIGTERM. It must exit with code 0.
    #[track_caller]
    pub fn stop_proxy(&mut self) {
        let status = self.proxy.take().expect("the proxy is up").stop();
        assert_eq!(status.code(), Some(0), "the proxy was told to stop and ended with {status}");
    }

    /// Ends a node with SIGKILL.
    #[track_caller]
    pub fn kill9(&mut self, i: usize) {
        self.process(i).kill9();
        self.nodes[i].process = None;
    }

    /// Ends a node with SIGTERM. It must exit with code 0.
    #[track_caller]
    pub fn stop(&mut self, i: usize) {
        let status = self.process(i).stop();
        assert_eq!(status.code(), Some(0), "node {i} was told to stop and ended with {status}");
        self.nodes[i].process = None;
    }

    /// Starts a node again that was killed or stopped, on its existing directory.
    #[track_caller]
    pub fn restart(&mut self, i: usize) {
        self.start_node(i);
    }

    /// The process of a node that is up.
    #[track_caller]
    pub fn process(&mut self, i: usize) -> &mut Process {
        self.nodes[i].process.as_mut().unwrap_or_else(|| panic!("node {i} is down"))
    }

    pub fn is_up(&self, i: usize) -> bool {
        self.nodes[i].process.is_some()
    }

    /// How many nodes there are, up or down.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    pub fn node(&self, i: usize) -> SocketAddr {
        self.addressing.node(i + MOVE_PORT_STEP * self.nodes.get(i).map_or(0, |node| node.moves))
    }

    /// The address on which the proxy listens once it is started.
    pub fn proxy(&self) -> SocketAddr {
        self.addressing.proxy()
    }

    /// The working directory of all processes of this cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The value of `--data-dir`.
    pub fn data_dir(&self) -> PathBuf {
        self.dir().join("data")
    }

    /// The directory of a node's store.
    pub fn node_dir(&self, i: usize) -> PathBuf {
        self.data_dir().join(format!("node-{i}"))
    }

    /// The program without arguments, in the directory of this cluster.
    pub fn command(&self) -> Command {
        chatchain(self.dir())
    }

    /// Runs a client command with the proxy as its server if there is one, else with the nodes in their order.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Finished {
        self.cli_with_input(args, b"")
    }

    /// As `cli`, with this standard input.
    #[track_caller]
    pub fn cli_with_input(&self, args: &[&str], input: &[u8]) -> Finished {
        let nodes = (0..self.nodes.len()).map(|i| self.node(i));
        let servers: Vec<_> = if self.proxy.is_some() { vec![self.proxy()] } else { nodes.collect() };
        let mut command = self.command();
        for server in servers {
            command.args(["--server", &server.to_string()]);
        }
        command.args(args);
        run(command, input)
    }

    /// The answer of each running node to `GET /nodes`.
    #[track_caller]
    pub fn statuses(&self) -> Vec<serde_json::Value> {
        let up = (0..self.nodes.len()).filter(|i| self.is_up(*i));
        up.map(|i| {
            let answer = http::get(self.node(i), "/nodes").unwrap_or_else(|e| panic!("node {i}: {e}"));
            assert_eq!(answer.status(), 200, "node {i}: {}", answer.text());
            answer.json()
        })
        .collect()
    }

    /// Waits until all running nodes report the same digest and `messages` messages each. Gives the digest.
    #[track_caller]
    pub fn converge(&self, timeout: Duration, messages: u64) -> String {
        eventually_blocking(timeout, &format!("equal digests over {messages} messages"), || {
            let statuses = self.statuses();
            let seen: Vec<_> =
                statuses.iter().map(|s| (s["digest"].as_str(), s["messages"].as_u64())).collect();
            match seen.first() {
                Some(first @ (Some(digest), Some(count)))
                    if *count == messages && seen.iter().all(|s| s == first) =>
                {
                    Ok((*digest).to_owned())
                }
                _ => Err(format!("{seen:?}")),
            }
        })
    }
}

fn join_addrs(addrs: &[SocketAddr]) -> String {
    addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Waits until `/readyz` answers 200. A process that ends before that fails the test at once.
#[track_caller]
fn ready(process: &mut Process, addr: SocketAddr, what: &str) {
    eventually_blocking(READY_TIMEOUT, what, || {
        if let Some(status) = process.ended() {
            panic!("waiting for: {what}; but the process ended with {status}");
        }
        match http::get(addr, "/readyz") {
            Ok(answer) if answer.status() == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// Copies the files of a directory, as a backup would.
#[allow(dead_code, reason = "not every test program copies directories")]
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let path = entry.expect("readable").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(command: &Command) -> String {
        command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_node_is_started_as_the_contract_says() {
        let cluster = Cluster::prepare(3);
        let (a, b, c) = (cluster.node(0), cluster.node(1), cluster.node(2));
        let data = cluster.data_dir();
        let want = format!("node --node-id 1 --listen {b} --peers {a},{c} --data-dir {}", data.display());
        assert_eq!(args(&cluster.node_command(1)), want);
        let alone = Cluster::prepare(1);
        assert!(!args(&alone.node_command(0)).contains("--peers"), "a lone node has no peers to name");
    }

    #[test]
    fn two_clusters_never_share_an_address() {
        let (one, two) = (Cluster::prepare(1), Cluster::prepare(1));
        assert_ne!(one.node(0).ip(), two.node(0).ip());
    }

    #[test]
    #[should_panic(expected = "waiting for: it is ready; but the process ended with exit status: 4")]
    fn a_process_that_ends_instead_of_getting_ready_fails_at_once() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exit 4"]);
        ready(&mut Process::spawn("short", command), address::free_addr(), "it is ready");
    }
}
