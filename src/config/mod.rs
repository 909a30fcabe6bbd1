//! Owns what a command does: flags, `CHATCHAIN_*` environment, `config.toml` and defaults, checked and resolved.
//!
//! A flag wins over the environment, the environment over the file, the file over the default. Only [`Sources::load`]
//! reads the process environment and the disk; every other function maps values to values. A path of the file is
//! relative to the file, every other path to the working directory. Addresses are checked for
//! their shape and not resolved: names are resolved at each connect. Every refusal is one sentence that says what is
//! wrong, where the mistake is and what to do; the program ends with exit code 2.

mod environment;
mod file;
mod key_file;
pub mod settings;
mod text_file;

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use clap::ValueEnum;
use jiff::fmt::friendly::SpanParser;

use crate::{
    api::{address::Addr, key::Keys, network::NodeId},
    cli,
};
pub use environment::Environment;
pub use file::FILE_NAME;

/// A network's name has 1 to this many characters; a longer one is refused.
const NETWORK_CHARS_MAX: usize = 64;
/// With a shorter interval, the node would do nothing but exchange. With a longer one, a push that was lost would go
/// unnoticed for too long.
const SYNC_INTERVALS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60 * 60);
/// With a shorter interval, the next scrub would start at once. With a longer one, the same entry could become damaged
/// on every node before a scrub finds the first.
const SCRUB_INTERVALS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(31 * 24 * 60 * 60);

const PROXY_PORT_DEFAULT: u16 = 8080;
const NODE_COUNT_DEFAULT: u16 = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    pub node_id: NodeId,
    /// Name of the network. A node of another network is refused.
    pub network: String,
    pub listen: Addr,
    /// Address that peers and proxies are told. Its port is 0 only where `listen` asks for any free port.
    pub advertise: Addr,
    /// Peers that the node knows at its start. An empty list is allowed, and the node warns of it.
    pub peers: Vec<ConfiguredPeer>,
    pub store_dir: PathBuf,
    /// How often a quiet node compares itself with its peers.
    pub sync_interval: Duration,
    /// How often the node reads everything that it stores.
    pub scrub_interval: Duration,
    /// Keys of the network. Without keys, everybody who reaches the node may read and write.
    pub keys: Option<Keys>,
}

/// A node to exchange with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredPeer {
    /// Its number, where the configuration has one. `--peers` has none.
    pub node_id: Option<NodeId>,
    pub addr: Addr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Name of the network whose nodes the proxy forwards to.
    pub network: String,
    pub listen: Addr,
    /// Nodes to forward to; at least one.
    pub nodes: Vec<Addr>,
    pub strategy: Strategy,
    /// Keys of the network. Without keys, everybody who reaches the proxy may read and write.
    pub keys: Option<Keys>,
}

/// How the proxy spreads a request over the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Strategy {
    /// One node after the other.
    Failover,
    /// Also a second node when the first is slow.
    Hedge,
    /// Two nodes at once.
    Race,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().expect("every strategy has a name").get_name())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// In the order in which they are tried: those of `--server`, else the proxy and then the nodes.
    pub servers: Vec<Addr>,
    /// Addresses that this user takes for one network: the servers, and the configured addresses if a server is among
    /// them.
    pub network_addrs: Vec<Addr>,
    pub keys: Option<Keys>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpConfig {
    pub proxy: Addr,
    /// Addresses that the nodes listen on; node N has the N-th.
    pub nodes: Vec<Addr>,
    /// Parent directory of the stores.
    pub data_dir: PathBuf,
    /// Keys for asking the servers whether they are ready. The servers read their keys from the same sources
    /// themselves.
    pub keys: Option<Keys>,
}

/// Why the configuration cannot be used: one sentence for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// Takes a sentence that says what is wrong, where the mistake is and what to do.
    pub fn new(sentence: impl Into<String>) -> Self {
        ConfigError(sentence.into())
    }
}

/// The text of a setting, and its source: a flag, a variable, a line of the file, or the default.
#[derive(Debug, Clone)]
struct SourcedValue {
    text: String,
    source: String,
}

impl SourcedValue {
    /// The value of a flag, if the flag was typed.
    fn of_flag(name: &str, text: Option<&str>) -> Option<Self> {
        text.map(|text| SourcedValue { text: text.into(), source: name.into() })
    }

    /// The parts between commas. A text with a password stays whole and is refused: a comma may be in the password.
    fn split(&self) -> impl Iterator<Item = SourcedValue> {
        let has_user = self.text.contains('@');
        let parts = self.text.split(move |c| c == ',' && !has_user);
        let parts = parts.map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| SourcedValue { text: part.into(), source: self.source.clone() })
    }

    /// An address, or the http URL of one.
    fn addr(&self) -> Result<Addr, ConfigError> {
        Addr::from_server_arg(self.text.trim()).map_err(|why| ConfigError(format!("{}: {why}", self.source)))
    }

    /// Addresses separated by commas, without repetitions. The list may be empty.
    fn addrs(&self) -> Result<Vec<Addr>, ConfigError> {
        let mut addrs = Vec::new();
        for part in self.split() {
            let addr = part.addr()?;
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        Ok(addrs)
    }

    fn duration(&self, allowed: &RangeInclusive<Duration>) -> Result<Duration, ConfigError> {
        let parsed = SpanParser::new().parse_unsigned_duration(&self.text);
        let duration =
            parsed.map_err(|_| self.error("write a duration with its unit, such as 500ms or 2s"))?;
        if !allowed.contains(&duration) {
            let (min, max) = (allowed.start(), allowed.end());
            return Err(self.error(format!("it must be between {min:?} and {max:?}")));
        }
        Ok(duration)
    }

    fn error(&self, why: impl Display) -> ConfigError {
        ConfigError(format!("{} is {:?}: {why}", self.source, self.text))
    }
}

/// A path, and its source. A path is bytes: it need not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SourcedPath {
    path: PathBuf,
    source: String,
}

/// The environment and the configuration file.
#[derive(Debug)]
pub struct Sources {
    env: Environment,
    file: file::FileSettings,
    /// The keys of `CHATCHAIN_KEY`, which `env` lacks so that printing `env` does not print them, or else of the key
    /// file.
    keys: Result<Option<Keys>, ConfigError>,
    /// About a setting that can be used nevertheless.
    pub warning: Option<String>,
    /// A file that was passed over. A server must not start without its settings.
    passed_over: Option<file::PassedOver>,
}

impl Sources {
    /// Reads the process's environment and the configuration file.
    pub fn load(common: &cli::CommonArgs) -> Result<Self, ConfigError> {
        let env = Environment::of_process();
        let found = file::find(common.config.as_deref(), &env)?;
        let mut sources = Self::new(env, found.file)?;
        sources.passed_over = found.passed_over;
        if let Some(setting) = sources.named_key_file() {
            let (keys, warning) = key_file::read(&setting);
            (sources.keys, sources.warning) = (keys.map(Some), warning);
        }
        Ok(sources)
    }

    /// Takes the environment and the text of the configuration file, if there is one.
    pub fn new(mut env: Environment, file: Option<(PathBuf, String)>) -> Result<Self, ConfigError> {
        env.check()?;
        let file = file.map(|(path, text)| file::read(&path, &text)).transpose()?.unwrap_or_default();
        let keys = Self::keys_of_variable(&mut env);
        Ok(Sources { env, file, keys, warning: None, passed_over: None })
    }

    /// A remark for the user of a client, about a file that was passed over.
    pub fn note(&self) -> Option<String> {
        self.passed_over.as_ref().map(file::PassedOver::note)
    }

    /// A server needs the settings that its user wrote.
    fn check_file(&self) -> Result<(), ConfigError> {
        self.passed_over.as_ref().map_or(Ok(()), |file| Err(file.refusal()))
    }

    pub fn node(&self, args: &cli::NodeArgs) -> Result<NodeConfig, ConfigError> {
        self.check_file()?;
        let node_id = match (args.node_id, self.env("CHATCHAIN_NODE_ID")) {
            (Some(id), _) => id,
            (None, Some(value)) => value.text.parse().map_err(|_| value.error("give a number such as 0"))?,
            (None, None) => {
                let why = "a node needs its number: give --node-id N or set CHATCHAIN_NODE_ID";
                return Err(ConfigError::new(why));
            }
        };
        let nodes = self.listed_nodes()?;
        let own = nodes.as_ref().unwrap_or(&default_nodes()).get(&node_id).cloned();
        let listen = match self.flag_or("--listen", args.listen.as_deref(), "CHATCHAIN_NODE_LISTEN") {
            Some(value) => value.addr()?,
            None => own.clone().ok_or_else(|| not_listed(node_id, nodes.as_ref()))?,
        };
        let advertise = self.advertise(args, &listen, own.as_ref())?;
        let keys = self.keys_to_listen(&listen, args.server.insecure)?;
        let named = self.flag_or("--peers", args.peers.as_deref(), "CHATCHAIN_NODE_PEERS");
        let mut peers: Vec<_> = if let Some(value) = named {
            value.addrs()?.into_iter().map(|addr| ConfiguredPeer { node_id: None, addr }).collect()
        } else {
            let nodes = nodes.unwrap_or_default().into_iter();
            nodes.map(|(id, addr)| ConfiguredPeer { node_id: Some(id), addr }).collect()
        };
        // A list that is the same on every machine holds the node itself, too.
        peers.retain(|peer| peer.node_id != Some(node_id) && peer.addr != advertise && peer.addr != listen);
        Ok(NodeConfig {
            node_id,
            network: self.network()?,
            listen,
            advertise,
            peers,
            store_dir: self.data_dir(args.data_dir.as_ref()).join(format!("node-{node_id}")),
            sync_interval: self.value_or_default("CHATCHAIN_NODE_SYNC_INTERVAL").duration(&SYNC_INTERVALS)?,
            scrub_interval: self
                .value_or_default("CHATCHAIN_NODE_SCRUB_INTERVAL")
                .duration(&SCRUB_INTERVALS)?,
            keys,
        })
    }

    pub fn proxy(&self, args: &cli::ProxyArgs) -> Result<ProxyConfig, ConfigError> {
        self.check_file()?;
        let nodes = match SourcedValue::of_flag("--nodes", args.nodes.as_deref()) {
            Some(value) => value.addrs()?,
            None => self.nodes()?,
        };
        if nodes.is_empty() {
            return Err(ConfigError(
                "the proxy has no nodes to forward to; name them with --nodes a,b,c".into(),
            ));
        }
        let listen = self.proxy_listen(args)?;
        let keys = self.keys_to_listen(&listen, args.server.insecure)?;
        Ok(ProxyConfig { network: self.network()?, listen, nodes, strategy: self.strategy()?, keys })
    }

    pub fn client(&self, common: &cli::CommonArgs) -> Result<ClientConfig, ConfigError> {
        let flags = common.server.iter().filter_map(|text| SourcedValue::of_flag("--server", Some(text)));
        let mut servers = flags.map(|value| value.addr()).collect::<Result<Vec<Addr>, _>>()?;
        if servers.is_empty()
            && let Some(value) = self.env("CHATCHAIN_SERVER")
        {
            servers = value.addrs()?;
        }
        if servers.is_empty() {
            servers = self.configured_servers()?;
        }
        let mut network_addrs = servers.clone();
        let configured = self.configured_servers().unwrap_or_default(); // may be wrong, since it is not used
        if configured.iter().any(|addr| servers.contains(addr)) {
            network_addrs.extend(configured.into_iter().filter(|addr| !servers.contains(addr)));
        }
        Ok(ClientConfig { servers, network_addrs, keys: self.keys.clone()? })
    }

    /// The proxy, then the nodes.
    fn configured_servers(&self) -> Result<Vec<Addr>, ConfigError> {
        let proxy = reachable(self.proxy_listen(&cli::ProxyArgs::default())?);
        Ok([proxy].into_iter().chain(self.nodes()?.into_iter().map(reachable)).collect())
    }

    pub fn up(&self, args: &cli::UpArgs) -> Result<UpConfig, ConfigError> {
        self.check_file()?;
        let cli::UpArgs { nodes, base_port, .. } = args;
        let addr = |offset: u16| {
            let port = base_port.checked_add(offset);
            port.map(local).ok_or_else(|| {
                ConfigError(format!("{nodes} nodes from port {base_port} on need ports above 65535"))
            })
        };
        Ok(UpConfig {
            proxy: addr(0)?,
            nodes: (1..=*nodes).map(addr).collect::<Result<_, _>>()?,
            data_dir: self.data_dir(args.data_dir.as_ref()),
            keys: self.keys.clone()?,
        })
    }

    /// The parent of the stores: the flag, else the setting.
    pub fn data_dir(&self, flag: Option<&PathBuf>) -> PathBuf {
        let setting = || self.path("CHATCHAIN_NODE_DATA_DIR").map(|setting| setting.path);
        let default = || settings::default_of("CHATCHAIN_NODE_DATA_DIR").into();
        flag.cloned().or_else(setting).unwrap_or_else(default)
    }

    /// The name of the sender: the flag, else `CHATCHAIN_USER`, else the login name.
    pub fn sender(&self, from: Option<&str>) -> Result<String, ConfigError> {
        match from.or_else(|| self.env.text("CHATCHAIN_USER")) {
            Some(name) => Ok(name.to_owned()),
            None => self.env.login_name(),
        }
    }

    /// The directory for what one command keeps for the next; `None` if the environment names no directory for it.
    pub fn state_dir(&self) -> Option<PathBuf> {
        let of_user = || self.env.user_dir("XDG_STATE_HOME", ".local/state");
        self.env.path("CHATCHAIN_STATE_DIR").map(PathBuf::from).or_else(|| Some(of_user()?.join("chatchain")))
    }

    fn advertise(
        &self,
        args: &cli::NodeArgs,
        listen: &Addr,
        own: Option<&Addr>,
    ) -> Result<Addr, ConfigError> {
        let value = self.flag_or("--advertise", args.advertise.as_deref(), "CHATCHAIN_NODE_ADVERTISE");
        let advertise = value.map_or_else(|| Ok(listen.clone()), |value| value.addr())?;
        if !advertise.is_wildcard() {
            return Ok(advertise);
        }
        let example = own
            .filter(|own| !own.is_wildcard() && !own.is_loopback())
            .map_or("chat1.example:8081".into(), Addr::to_string);
        Err(ConfigError(format!(
            "other machines cannot reach {advertise}; say which address they are told, such as --advertise {example}"
        )))
    }

    fn network(&self) -> Result<String, ConfigError> {
        let value = self.value_or_default("CHATCHAIN_NETWORK");
        let name = &value.text;
        if name.is_empty() || name.chars().count() > NETWORK_CHARS_MAX {
            return Err(value.error(format!("a network's name has 1 to {NETWORK_CHARS_MAX} characters")));
        }
        if name.trim() != name || name.chars().any(char::is_control) {
            return Err(
                value.error("a network's name has no control characters and no white space at its ends")
            );
        }
        Ok(value.text)
    }

    /// The nodes by their number; `None` if neither the environment nor the file lists any.
    fn listed_nodes(&self) -> Result<Option<BTreeMap<NodeId, Addr>>, ConfigError> {
        let listed: Vec<(NodeId, SourcedValue)> = match (self.env("CHATCHAIN_NODES"), &self.file.nodes) {
            (Some(value), _) => (0..).zip(value.split()).collect(),
            (None, Some(nodes)) => nodes.clone(),
            (None, None) => return Ok(None),
        };
        let mut nodes = BTreeMap::new();
        for (id, value) in listed {
            let addr = value.addr()?;
            if let Some((other, _)) = nodes.iter().find(|(_, known)| **known == addr) {
                let why = format!("this is node {other} already; each node needs an address of its own");
                return Err(value.error(why));
            }
            nodes.insert(id, addr);
        }
        Ok(Some(nodes))
    }

    fn nodes(&self) -> Result<Vec<Addr>, ConfigError> {
        Ok(self.listed_nodes()?.unwrap_or_else(default_nodes).into_values().collect())
    }

    fn proxy_listen(&self, args: &cli::ProxyArgs) -> Result<Addr, ConfigError> {
        let flag = SourcedValue::of_flag("--listen", args.listen.as_deref());
        flag.unwrap_or_else(|| self.value_or_default("CHATCHAIN_PROXY_LISTEN")).addr()
    }

    fn strategy(&self) -> Result<Strategy, ConfigError> {
        let value = self.value_or_default("CHATCHAIN_PROXY_STRATEGY");
        Strategy::from_str(&value.text, false).map_err(|_| {
            let nearest = settings::nearest(&value.text, ["failover", "hedge", "race"]);
            value.error(format!("a strategy is failover, hedge or race; did you mean {nearest}?"))
        })
    }

    /// The value of a variable that is set. An empty variable counts as unset.
    fn env(&self, variable: &str) -> Option<SourcedValue> {
        let text = self.env.text(variable)?;
        Some(SourcedValue { text: text.into(), source: variable.into() })
    }

    /// The path in the setting with this variable, from the environment, else from the file. An empty one is unset.
    fn path(&self, variable: &str) -> Option<SourcedPath> {
        if let Some(path) = self.env.path(variable) {
            return Some(SourcedPath { path: path.into(), source: variable.into() });
        }
        let SourcedValue { text, source } = self.file.values.get(variable)?.clone();
        (!text.is_empty()).then(|| SourcedPath { path: self.file.dir.join(text), source })
    }

    /// The setting with this variable, from the environment, else from the file.
    fn value(&self, variable: &str) -> Option<SourcedValue> {
        self.env(variable).or_else(|| self.file.values.get(variable).cloned())
    }

    fn flag_or(&self, flag: &str, text: Option<&str>, variable: &str) -> Option<SourcedValue> {
        SourcedValue::of_flag(flag, text).or_else(|| self.value(variable))
    }

    fn value_or_default(&self, variable: &str) -> SourcedValue {
        self.value(variable).unwrap_or_else(|| SourcedValue {
            text: settings::default_of(variable).into(),
            source: format!("the default of {variable}"),
        })
    }
}

fn local(port: u16) -> Addr {
    Addr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn default_nodes() -> BTreeMap<NodeId, Addr> {
    (0..).zip((1..=NODE_COUNT_DEFAULT).map(|offset| local(PROXY_PORT_DEFAULT + offset))).collect()
}

/// A server that listens on every address of this machine is reached on loopback.
fn reachable(addr: Addr) -> Addr {
    if addr.is_wildcard() { local(addr.port()) } else { addr }
}

fn not_listed(node_id: NodeId, listed: Option<&BTreeMap<NodeId, Addr>>) -> ConfigError {
    let (list, nodes) = match listed {
        Some(nodes) => ("`nodes`", nodes.keys().map(NodeId::to_string).collect::<Vec<_>>().join(", ")),
        None => ("the default list", "0, 1, 2, 3".into()),
    };
    ConfigError(format!(
        "{list} holds the nodes {nodes} and no node {node_id}; add it there or say where it listens with --listen ADDR"
    ))
}

#[cfg(test)]
mod tests;
