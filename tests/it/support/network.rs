//! A network of our own: one namespace per node, one for clients and proxy, and one that holds the switch between them.
//!
//! Made and removed by the outer process, which outlives whatever happens inside; used by the inner one, which runs in
//! the clients' namespace. Names begin with the outer process id. The addresses mean something only in here.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

/// The outer process says so to the inner one, which then is in the clients' namespace.
pub const NAME_VARIABLE: &str = "CHATCHAIN_CHAOS_NETWORK";

/// Before the outer process id.
const PREFIX: &str = "chaos";
const SWITCH: &str = "switch";
const CLIENTS: &str = "clients";
const PORT: u16 = 7100;

#[derive(Debug, Clone)]
pub struct Network {
    name: String,
}

impl Network {
    /// The one this process runs in, if the outer process made one.
    pub fn around_us() -> Option<Self> {
        std::env::var(NAME_VARIABLE).ok().map(|name| Network { name })
    }

    /// Makes it, for so many nodes. What was made before an error is removed; so is what a killed run left behind.
    pub fn create(nodes: usize) -> Result<Self, String> {
        for name in Self::orphans() {
            Network { name }.remove();
        }
        let network = Network { name: format!("{PREFIX}{}", std::process::id()) };
        network.build(nodes).inspect_err(|_| network.remove())?;
        Ok(network)
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
    pub fn remove(&self) {
        for space in self.spaces() {
            let pids = Command::new("ip").args(["netns", "pids", &space]).output();
            let pids =
                pids.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
            for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            drop(ip(&["netns", "del", &space]));
        }
    }

    /// Networks whose outer process is gone.
    fn orphans() -> Vec<String> {
        let switches =
            spaces().into_iter().filter_map(|space| Some(space.strip_suffix("-switch")?.to_owned()));
        let gone = |name: &String| {
            let pid = name.strip_prefix(PREFIX).filter(|pid| pid.parse::<u32>().is_ok());
            pid.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists())
        };
        switches.filter(gone).collect()
    }

    fn spaces(&self) -> Vec<String> {
        let ours = format!("{}-", self.name);
        spaces().into_iter().filter(|space| space.starts_with(&ours)).collect()
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
