//! Network namespaces: one per node, one for clients and proxy, and one that holds the switch between them.
//!
//! The process that creates a network holds the `Guard` that removes it; its threads and other processes can run in the
//! clients' namespace. Names contain the creator's process id, so the next creator recognizes and removes the networks
//! of processes that were killed. The addresses are valid only inside the namespaces.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Passes the name of the network to a process that runs in the clients' namespace.
pub const NAME_VARIABLE: &str = "CHATCHAIN_CHAOS_NETWORK";

/// Prefix of all network names; the creator's process id follows.
const PREFIX: &str = "chatchain";
/// The directory in which the system keeps named namespaces.
const NAMESPACES: &str = "/run/netns";
const SWITCH: &str = "switch";
const CLIENTS: &str = "clients";
const PORT: u16 = 7100;

/// The number of networks that this process has created.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A handle to a network: its name. Does not remove the network when dropped.
#[derive(Debug, Clone)]
pub struct Network {
    name: String,
}

/// Removes the network when it is dropped.
pub struct Guard(Network);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.remove();
    }
}

impl Guard {
    pub fn network(&self) -> &Network {
        &self.0
    }
}

impl Network {
    /// The network in which this process runs, if its parent created one.
    pub fn around_us() -> Option<Self> {
        std::env::var(NAME_VARIABLE).ok().map(|name| Network { name })
    }

    /// Creates a network for `nodes` nodes. Removes what was created before an error, and the leftovers of killed runs.
    pub fn create(nodes: usize) -> Result<Guard, String> {
        for name in orphans(&namespaces(), |pid| Path::new("/proc").join(pid.to_string()).exists()) {
            Network { name }.remove();
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let network = Network { name: format!("{PREFIX}{}.{count}", std::process::id()) };
        network.remove(); // a leftover of an earlier process with our process id
        let guard = Guard(network);
        guard.0.build(nodes).map(|()| guard)
    }

    fn build(&self, nodes: usize) -> Result<(), String> {
        ip(&["netns", "add", &self.namespace(SWITCH)])?;
        self.ip(SWITCH, "link add bridge type bridge")?;
        self.ip(SWITCH, "link set bridge up")?;
        self.attach(CLIENTS, Self::clients_ip())?;
        (0..nodes).try_for_each(|i| self.attach(&node(i), Self::node_ip(i)))
    }

    fn attach(&self, who: &str, address: Ipv4Addr) -> Result<(), String> {
        let (namespace, switch) = (self.namespace(who), self.namespace(SWITCH));
        ip(&["netns", "add", &namespace])?;
        let cable = ["link", "add", who, "netns", &switch, "type", "veth", "peer", "name", "eth0", "netns"];
        ip(&[&cable[..], &[&namespace]].concat())?;
        self.ip(SWITCH, &format!("link set {who} master bridge up"))?;
        self.ip(who, &format!("addr add {address}/24 dev eth0"))?;
        self.ip(who, "link set eth0 up")?;
        self.ip(who, "link set lo up")
    }

    /// Kills the processes that still run in the network, and removes it.
    fn remove(&self) {
        let ours = namespaces().into_iter().filter(|namespace| network_of(namespace) == Some(&self.name));
        for namespace in ours {
            let pids = Command::new("ip").args(["netns", "pids", &namespace]).output();
            let pids =
                pids.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
            for pid in pids.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
                let _gone = kill_process(pid, Signal::KILL);
            }
            drop(ip(&["netns", "del", &namespace]));
        }
    }

    /// Runs a closure in the clients' namespace, together with all threads and processes that it starts. It runs in a
    /// new thread, because a thread cannot leave the namespace again.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            let namespace =
                File::open(Path::new(NAMESPACES).join(self.namespace(CLIENTS))).expect("our namespace");
            let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
            entered.expect("the creator of a namespace can enter it");
            run()
        };
        let ended = std::thread::scope(|scope| scope.spawn(enter).join());
        ended.unwrap_or_else(|panicked| resume_unwind(panicked))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn namespace(&self, who: &str) -> String {
        format!("{}-{who}", self.name)
    }

    pub fn node(i: usize) -> SocketAddr {
        (Self::node_ip(i), PORT).into()
    }

    pub fn proxy() -> SocketAddr {
        (Self::clients_ip(), PORT).into()
    }

    fn node_ip(i: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 10 + u8::try_from(i).expect("few nodes"))
    }

    fn clients_ip() -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 1)
    }

    /// Wraps a command to run in a node's namespace.
    pub fn at_node(&self, i: usize, command: &Command) -> Command {
        self.at(&node(i), command)
    }

    /// Wraps a command to run in the clients' namespace.
    pub fn at_clients(&self, command: &Command) -> Command {
        self.at(CLIENTS, command)
    }

    /// `ip netns exec` replaces itself with the command, so the process id of the child is that of the command.
    fn at(&self, who: &str, command: &Command) -> Command {
        let mut wrapped = Command::new("ip");
        wrapped.args(["netns", "exec", &self.namespace(who)]);
        wrapped.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            wrapped.current_dir(dir);
        }
        wrapped
    }

    /// Sets a node's link up or down. While it is down, packets from and to the node are dropped without an error.
    pub fn link(&self, i: usize, up: bool) -> Result<(), String> {
        let state = if up { "up" } else { "down" };
        self.ip(SWITCH, &format!("link set {} {state}", node(i)))
    }

    /// Drops the packets of one node to another.
    pub fn block(&self, from: usize, to: usize) -> Result<(), String> {
        self.ip(&node(from), &format!("route replace blackhole {}/32", Self::node_ip(to)))
    }

    pub fn unblock(&self, from: usize, to: usize) -> Result<(), String> {
        self.ip(&node(from), &format!("route del blackhole {}/32", Self::node_ip(to)))
    }

    fn ip(&self, who: &str, args: &str) -> Result<(), String> {
        let namespace = self.namespace(who);
        let args: Vec<_> = ["-n", &namespace].into_iter().chain(args.split(' ')).collect();
        ip(&args)
    }
}

fn node(i: usize) -> String {
    format!("node{i}")
}

/// The network to which a namespace belongs.
fn network_of(namespace: &str) -> Option<&str> {
    namespace.rsplit_once('-').map(|(network, _)| network)
}

/// The networks among these namespaces that a test process created which no longer runs.
fn orphans(namespaces: &[String], is_running: impl Fn(u32) -> bool) -> BTreeSet<String> {
    let gone = |name: &&str| {
        let numbers = name.strip_prefix(PREFIX).and_then(|name| name.split_once('.'));
        let pid =
            numbers.filter(|(_, count)| count.parse::<u32>().is_ok()).and_then(|(pid, _)| pid.parse().ok());
        pid.is_some_and(|pid| !is_running(pid))
    };
    namespaces.iter().filter_map(|namespace| network_of(namespace)).filter(gone).map(str::to_owned).collect()
}

/// All named namespaces of this machine.
fn namespaces() -> Vec<String> {
    let listed = Command::new("ip").args(["netns", "list"]).output();
    let listed = listed.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
    listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn ip(args: &[&str]) -> Result<(), String> {
    let done = Command::new("ip").args(args).output().map_err(|e| format!("cannot run ip: {e}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_an_orphan_only_if_its_creator_is_gone() {
        let namespaces = [
            "chatchain7.0-switch",
            "chatchain7.0-node0",
            "chatchain7.1-node3", // the only namespace left of its network
            "chatchain77.0-switch",
            "chatchain8.0-switch",
            "chatchain-switch",
            "chatchainx.0-switch",
            "chatchain7-switch",
            "somebody7.0-switch",
            "elses",
        ];
        let found = orphans(&namespaces.map(str::to_owned), |pid| pid == 77 || pid == 8);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["chatchain7.0", "chatchain7.1"]);
    }
}
