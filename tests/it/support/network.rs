//! A network of our own: one namespace per node, one for clients and proxy, and one that holds the switch between them.
//!
//! Its maker holds the `Guard` that removes it; a thread of it, or another process, may run in the clients' namespace. Names
//! begin with the maker's process id, so what a killed one left behind is known, and whoever makes the next network
//! removes it. The addresses mean something only in here.

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

/// The maker says so to a process that it runs in the clients' namespace.
pub const NAME_VARIABLE: &str = "CHATCHAIN_CHAOS_NETWORK";

/// Before the maker's process id.
const PREFIX: &str = "chatchain";
/// Where the system keeps namespaces that have names.
const SPACES: &str = "/run/netns";
const SWITCH: &str = "switch";
const CLIENTS: &str = "clients";
const PORT: u16 = 7100;

/// Networks that this process has made.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Its name, by which it is used, wherever that is known.
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
    /// The one this process runs in, if its parent made one.
    pub fn around_us() -> Option<Self> {
        std::env::var(NAME_VARIABLE).ok().map(|name| Network { name })
    }

    /// Makes it, for so many nodes. What was made before an error is removed; so is what a killed run left behind.
    pub fn create(nodes: usize) -> Result<Guard, String> {
        for name in orphans(&spaces(), |pid| Path::new("/proc").join(pid.to_string()).exists()) {
            Network { name }.remove();
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let network = Network { name: format!("{PREFIX}{}.{count}", std::process::id()) };
        network.remove(); // left behind by somebody who had our process id before
        let guard = Guard(network);
        guard.0.build(nodes).map(|()| guard)
    }

    fn build(&self, nodes: usize) -> Result<(), String> {
        ip(&["netns", "add", &self.space(SWITCH)])?;
        self.ip(SWITCH, "link add bridge type bridge")?;
        self.ip(SWITCH, "link set bridge up")?;
        self.attach(CLIENTS, Self::clients_ip())?;
        (0..nodes).try_for_each(|i| self.attach(&node(i), Self::node_ip(i)))
    }

    fn attach(&self, who: &str, address: Ipv4Addr) -> Result<(), String> {
        let (space, switch) = (self.space(who), self.space(SWITCH));
        ip(&["netns", "add", &space])?;
        let cable = ["link", "add", who, "netns", &switch, "type", "veth", "peer", "name", "eth0", "netns"];
        ip(&[&cable[..], &[&space]].concat())?;
        self.ip(SWITCH, &format!("link set {who} master bridge up"))?;
        self.ip(who, &format!("addr add {address}/24 dev eth0"))?;
        self.ip(who, "link set eth0 up")?;
        self.ip(who, "link set lo up")
    }

    /// Ends whatever still runs in it, and removes it.
    fn remove(&self) {
        let ours = spaces().into_iter().filter(|space| network_of(space) == Some(&self.name));
        for space in ours {
            let pids = Command::new("ip").args(["netns", "pids", &space]).output();
            let pids =
                pids.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
            for pid in pids.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
                let _gone = kill_process(pid, Signal::KILL);
            }
            drop(ip(&["netns", "del", &space]));
        }
    }

    /// Runs this in the clients' namespace, with all threads and processes that it starts. In a thread of its own, for the
    /// thread that goes there stays there.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            let space = File::open(Path::new(SPACES).join(self.space(CLIENTS))).expect("our namespace");
            let entered = move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network));
            entered.expect("whoever makes a namespace may enter it");
            run()
        };
        let ended = std::thread::scope(|scope| scope.spawn(enter).join());
        ended.unwrap_or_else(|panicked| resume_unwind(panicked))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn space(&self, who: &str) -> String {
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

    /// The command, run in a node's namespace.
    pub fn at_node(&self, i: usize, command: &Command) -> Command {
        self.at(&node(i), command)
    }

    /// The command, run where the clients are.
    pub fn at_clients(&self, command: &Command) -> Command {
        self.at(CLIENTS, command)
    }

    /// `ip netns exec` becomes the command, which therefore has the process id that we see.
    fn at(&self, who: &str, command: &Command) -> Command {
        let mut wrapped = Command::new("ip");
        wrapped.args(["netns", "exec", &self.space(who)]);
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

    /// Plugs a node's cable in, or out: then its packets and those to it vanish, and nobody is told.
    pub fn link(&self, i: usize, up: bool) -> Result<(), String> {
        let state = if up { "up" } else { "down" };
        self.ip(SWITCH, &format!("link set {} {state}", node(i)))
    }

    /// One node's packets to another vanish.
    pub fn block(&self, from: usize, to: usize) -> Result<(), String> {
        self.ip(&node(from), &format!("route replace blackhole {}/32", Self::node_ip(to)))
    }

    pub fn unblock(&self, from: usize, to: usize) -> Result<(), String> {
        self.ip(&node(from), &format!("route del blackhole {}/32", Self::node_ip(to)))
    }

    fn ip(&self, who: &str, args: &str) -> Result<(), String> {
        let space = self.space(who);
        let args: Vec<_> = ["-n", &space].into_iter().chain(args.split(' ')).collect();
        ip(&args)
    }
}

fn node(i: usize) -> String {
    format!("node{i}")
}

/// To which network a namespace belongs.
fn network_of(space: &str) -> Option<&str> {
    space.rsplit_once('-').map(|(network, _)| network)
}

/// Networks of ours among these namespaces whose maker is gone.
fn orphans(spaces: &[String], lives: impl Fn(u32) -> bool) -> BTreeSet<String> {
    let gone = |name: &&str| {
        let numbers = name.strip_prefix(PREFIX).and_then(|name| name.split_once('.'));
        let pid =
            numbers.filter(|(_, count)| count.parse::<u32>().is_ok()).and_then(|(pid, _)| pid.parse().ok());
        pid.is_some_and(|pid| !lives(pid))
    };
    spaces.iter().filter_map(|space| network_of(space)).filter(gone).map(str::to_owned).collect()
}

/// All namespaces of this machine that have a name.
fn spaces() -> Vec<String> {
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
    fn only_what_a_dead_maker_left_behind_is_an_orphan() {
        let spaces = [
            "chatchain7.0-switch",
            "chatchain7.0-node0",
            "chatchain7.1-node3", // all that is left of it
            "chatchain77.0-switch",
            "chatchain8.0-switch",
            "chatchain-switch",
            "chatchainx.0-switch",
            "chatchain7-switch",
            "somebody7.0-switch",
            "elses",
        ];
        let found = orphans(&spaces.map(str::to_owned), |pid| pid == 77 || pid == 8);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["chatchain7.0", "chatchain7.1"]);
    }
}
