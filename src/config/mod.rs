//! Owns what will be done: flags, `CHATCHAIN_*` environment, `config.toml` and defaults, checked and resolved.
//!
//! Flags win over the environment, the environment over the file, the file over the defaults. [`Sources::load`]
//! is the only function here that touches the machine; all others are values in, values out. Addresses are
//! checked for their shape and never looked up: names are resolved at each connect. Every refusal is one sentence
//! that says what, where and what to try, and ends the program with exit code 2.

mod file;
mod key_file;
pub mod settings;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::{self, Display},
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use jiff::fmt::friendly::SpanParser;

use crate::{
    api::{address::Addr, key::Keys, network::NodeId},
    cli,
};
use key_file::KeyFile;

/// A network's name has 1 to this many characters; longer ones are refused.
pub const NETWORK_CHARS_MAX: usize = 64;
/// A shorter sync interval would be all work and no rest; it is refused.
pub const SYNC_INTERVAL_MIN: Duration = Duration::from_millis(10);
/// With a longer one a lost push would go unnoticed for too long; it is refused.
pub const SYNC_INTERVAL_MAX: Duration = Duration::from_secs(3600);
const SCRUB_INTERVAL_DEFAULT: Duration = Duration::from_secs(60 * 60);
/// A scrub is slow; more often would only mean that it never rests.
const SCRUB_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Damage that nobody reads should not grow old on all nodes.
const SCRUB_INTERVAL_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);
/// Looked for in the working directory; it need not be there.
pub const FILE_NAME: &str = "config.toml";

const NETWORK_DEFAULT: &str = "chatchain";
const DATA_DIR_DEFAULT: &str = "data";
const SYNC_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const PROXY_PORT_DEFAULT: u16 = 8080;
const NODE_COUNT_DEFAULT: u16 = 4;

/// What one node does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Which node of the network this is.
    pub node_id: NodeId,
    /// Nodes of another network are refused.
    pub network: String,
    /// Where to listen.
    pub listen: Addr,
    /// The address that others are told. Its port is 0 only where `listen` asks for any free port.
    pub advertise: Addr,
    /// Whom to sync with at first; empty is allowed and worth a warning.
    pub peers: Vec<ConfiguredPeer>,
    /// This node's own store, `<data_dir>/node-<id>`.
    pub store_dir: PathBuf,
    /// How often a quiet node compares itself with its peers.
    pub sync_interval: Duration,
    /// How often it reads everything it stores.
    pub scrub_interval: Duration,
    /// What opens this network; none: everybody may come in.
    pub keys: Option<Keys>,
}

/// A node to sync with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredPeer {
    /// Its id, where the configuration says so. `--peers` does not.
    pub node_id: Option<NodeId>,
    /// Where it listens.
    pub addr: Addr,
}

/// What the proxy does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// The network whose nodes stand behind it.
    pub network: String,
    /// Where to listen.
    pub listen: Addr,
    /// The nodes to forward to; at least one.
    pub nodes: Vec<Addr>,
    /// How a request is spread over them.
    pub strategy: Strategy,
    /// What opens this network; none: everybody may come in.
    pub keys: Option<Keys>,
}

/// How the proxy spreads a request over the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// One node after the other.
    Failover,
    /// Also a second one when the first is slow.
    Hedge,
    /// Two at once.
    Race,
}

/// Whom a client command asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// In the order in which they are tried: those of `--server`, else the proxy and then the nodes.
    pub servers: Vec<Addr>,
    /// What opens them, if they are locked.
    pub keys: Option<Keys>,
}

/// A whole network on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpConfig {
    /// Where the proxy listens.
    pub proxy: Addr,
    /// Where the nodes listen; node N is the N-th.
    pub nodes: Vec<Addr>,
    /// Parent of the stores.
    pub data_dir: PathBuf,
    /// What opens them. The servers are not told: they find it where it was found.
    pub keys: Option<Keys>,
}

/// Why the configuration cannot be used: one sentence for whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// A sentence that says what, where and what to try.
    pub fn new(sentence: impl Into<String>) -> Self {
        ConfigError(sentence.into())
    }
}

/// A value as it was given, and where.
#[derive(Debug, Clone)]
struct SourcedValue {
    text: String,
    origin: String,
}

impl SourcedValue {
    /// The parts between commas.
    fn split(&self) -> impl Iterator<Item = SourcedValue> {
        let parts = self.text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| SourcedValue { text: part.into(), origin: self.origin.clone() })
    }

    /// As an address; also as the http URL of one, which is harmless everywhere.
    fn addr(&self) -> Result<Addr, ConfigError> {
        Addr::from_server_arg(self.text.trim()).map_err(|why| ConfigError(format!("{}: {why}", self.origin)))
    }

    fn error(&self, why: &dyn Display) -> ConfigError {
        ConfigError(format!("{} is {:?}: {why}", self.origin, self.text))
    }
}

/// Everything besides the flags that has a say.
#[derive(Debug, Default)]
pub struct Sources {
    env: BTreeMap<String, String>,
    file: file::FileSettings,
    /// Taken out of the environment, so that nobody who prints that prints them.
    keys: Option<Result<Keys, ConfigError>>,
    /// None is named, or keys stand in the environment.
    key_file: Option<KeyFile>,
    /// Whose account runs this program, as the system has it. In a container the environment seldom says.
    login: Option<String>,
}

impl Sources {
    /// Reads the process's environment and the configuration file.
    pub fn load(common: &cli::CommonArgs) -> Result<Self, ConfigError> {
        // A variable that is not UTF-8 cannot be a setting of ours. A key must not be passed over: it is refused.
        let text = |name: &str, value: OsString| match value.into_string() {
            Err(value) if name == key_file::KEY => Some(value.to_string_lossy().into_owned()),
            text => text.ok(),
        };
        let env: BTreeMap<_, _> = std::env::vars_os()
            .filter_map(|(k, v)| k.into_string().ok().and_then(|k| text(&k, v).map(|v| (k, v))))
            .collect();
        let named = common.config.clone().or_else(|| non_empty(&env, "CHATCHAIN_CONFIG").map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| FILE_NAME.into());
        let sources = match fs::read_to_string(&path) {
            Ok(text) => Self::new(env, Some((path, &text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Self::new(env, None),
            Err(error) => {
                Err(ConfigError(format!("cannot read the configuration file {}: {error}", path.display())))
            }
        };
        let sources = sources?;
        let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
        Ok(Sources {
            login: account(&accounts, rustix::process::getuid().as_raw()),
            key_file: sources.named_key_file().as_ref().map(KeyFile::read),
            ..sources
        })
    }

    /// Takes the environment and the text of the configuration file, if there is one.
    pub fn new(
        mut env: BTreeMap<String, String>,
        file: Option<(PathBuf, &str)>,
    ) -> Result<Self, ConfigError> {
        let file = file.map(|(path, text)| file::read(path, text)).transpose()?.unwrap_or_default();
        let keys =
            env.remove(key_file::KEY).filter(|text| !text.is_empty()).map(|text| key_file::listed(&text));
        Ok(Sources { env, file, keys, key_file: None, login: None })
    }

    /// What `chatchain node` does.
    pub fn node(&self, args: &cli::NodeArgs) -> Result<NodeConfig, ConfigError> {
        let node_id = self.node_id(args)?;
        let known = self.listed_nodes()?;
        let own = known.as_ref().unwrap_or(&default_nodes()).get(&node_id).cloned();
        let listen = match self.pick(args.listen.as_deref(), "--listen", "CHATCHAIN_NODE_LISTEN", None) {
            Some(given) => given.addr()?,
            None => own.clone().ok_or_else(|| not_listed(node_id, known.as_ref()))?,
        };
        let advertise = self.advertise(args, &listen, own.as_ref())?;
        let keys = self.keys_to_listen(&listen, args.insecure)?;
        let mut peers = match self.pick(args.peers.as_deref(), "--peers", "CHATCHAIN_NODE_PEERS", None) {
            Some(given) => {
                addresses(&given)?.into_iter().map(|addr| ConfiguredPeer { node_id: None, addr }).collect()
            }
            None => known.map_or_else(Vec::new, |nodes| {
                nodes.into_iter().map(|(id, addr)| ConfiguredPeer { node_id: Some(id), addr }).collect()
            }),
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
            sync_interval: self.sync_interval()?,
            scrub_interval: self.scrub_interval()?,
            keys,
        })
    }

    /// What `chatchain proxy` does.
    pub fn proxy(&self, args: &cli::ProxyArgs) -> Result<ProxyConfig, ConfigError> {
        let nodes = match &args.nodes {
            Some(text) => addresses(&SourcedValue { text: text.clone(), origin: "--nodes".into() })?,
            None => self.nodes()?,
        };
        if nodes.is_empty() {
            return Err(ConfigError(
                "the proxy has no nodes to forward to; name them with --nodes a,b,c".into(),
            ));
        }
        let listen = self.proxy_listen(args)?;
        let keys = self.keys_to_listen(&listen, args.insecure)?;
        Ok(ProxyConfig { network: self.network()?, listen, nodes, strategy: self.strategy()?, keys })
    }

    /// Whom the client commands ask.
    pub fn client(&self, common: &cli::CommonArgs) -> Result<ClientConfig, ConfigError> {
        let flags =
            common.server.iter().map(|text| SourcedValue { text: text.clone(), origin: "--server".into() });
        let mut servers = flags.map(|given| given.addr()).collect::<Result<Vec<Addr>, _>>()?;
        if servers.is_empty()
            && let Some(given) = self.env("CHATCHAIN_SERVER")
        {
            servers = addresses(&given)?;
        }
        if servers.is_empty() {
            servers.push(reachable(self.proxy_listen(&cli::ProxyArgs::default())?));
            servers.extend(self.nodes()?.into_iter().map(reachable));
        }
        Ok(ClientConfig { servers, keys: self.keys()? })
    }

    /// What `chatchain up` does.
    pub fn up(&self, args: &cli::UpArgs) -> Result<UpConfig, ConfigError> {
        let port = |offset: u16| {
            let why = || {
                ConfigError(format!(
                    "{} nodes from port {} on need ports above 65535",
                    args.nodes, args.base_port
                ))
            };
            Ok(local(args.base_port.checked_add(offset).ok_or_else(why)?))
        };
        Ok(UpConfig {
            proxy: port(0)?,
            nodes: (1..=args.nodes).map(port).collect::<Result<_, ConfigError>>()?,
            data_dir: self.data_dir(args.data_dir.as_ref()),
            keys: self.keys()?,
        })
    }

    /// Where `chatchain verify` finds stores.
    pub fn stores(&self, args: &cli::VerifyArgs) -> PathBuf {
        self.data_dir(args.data_dir.as_ref())
    }

    /// Who sends: the flag, else `CHATCHAIN_USER`, else the login name.
    pub fn sender(&self, from: Option<&str>) -> Result<String, ConfigError> {
        let names = ["CHATCHAIN_USER", "USER", "LOGNAME"];
        let name = from.or_else(|| names.into_iter().find_map(|name| non_empty(&self.env, name)));
        let name = name.or(self.login.as_deref()).map(str::to_owned);
        name.ok_or_else(|| {
            ConfigError("nobody knows who sends: give --from NAME or set CHATCHAIN_USER".into())
        })
    }

    /// Where commands keep what they remember from one run to the next, if anywhere.
    pub fn state_dir(&self) -> Option<PathBuf> {
        let named = |name: &str| non_empty(&self.env, name).map(PathBuf::from);
        let of_user = || named("XDG_STATE_HOME").or_else(|| Some(named("HOME")?.join(".local/state")));
        named("CHATCHAIN_STATE_DIR").or_else(|| Some(of_user()?.join("chatchain")))
    }

    fn node_id(&self, args: &cli::NodeArgs) -> Result<NodeId, ConfigError> {
        match (args.node_id, self.env("CHATCHAIN_NODE_ID")) {
            (Some(id), _) => Ok(id),
            (None, Some(given)) => given.text.parse().map_err(|_| given.error(&"give a number such as 0")),
            (None, None) => {
                Err(ConfigError("a node needs its number: give --node-id N or set CHATCHAIN_NODE_ID".into()))
            }
        }
    }

    fn advertise(
        &self,
        args: &cli::NodeArgs,
        listen: &Addr,
        own: Option<&Addr>,
    ) -> Result<Addr, ConfigError> {
        let given = self.pick(args.advertise.as_deref(), "--advertise", "CHATCHAIN_NODE_ADVERTISE", None);
        let advertise = given.as_ref().map_or_else(|| Ok(listen.clone()), SourcedValue::addr)?;
        if !advertise.is_wildcard() {
            return Ok(advertise);
        }
        let example =
            own.filter(|own| !own.is_wildcard()).map_or("chat1.example:8081".into(), Addr::to_string);
        Err(ConfigError(format!(
            "{advertise} is no address that others could reach; say which one they are told, such as --advertise {example}"
        )))
    }

    fn network(&self) -> Result<String, ConfigError> {
        let Some(given) = self.pick(None, "", "CHATCHAIN_NETWORK", self.file.network.as_ref()) else {
            return Ok(NETWORK_DEFAULT.into());
        };
        let name = &given.text;
        if name.is_empty() || name.chars().count() > NETWORK_CHARS_MAX {
            return Err(given.error(&format!("a network's name has 1 to {NETWORK_CHARS_MAX} characters")));
        }
        if name.trim() != name || name.chars().any(char::is_control) {
            return Err(
                given.error(&"a network's name has no control characters and no white space at its ends")
            );
        }
        Ok(name.clone())
    }

    /// The nodes by id where environment or file names them.
    fn listed_nodes(&self) -> Result<Option<BTreeMap<NodeId, Addr>>, ConfigError> {
        let listed: Vec<(NodeId, SourcedValue)> = match (self.env("CHATCHAIN_NODES"), &self.file.nodes) {
            (Some(given), _) => (0..).zip(given.split()).collect(),
            (None, Some(nodes)) => nodes.clone(),
            (None, None) => return Ok(None),
        };
        let mut nodes = BTreeMap::new();
        for (id, given) in listed {
            let addr = given.addr()?;
            if let Some((other, _)) = nodes.iter().find(|(_, known)| **known == addr) {
                return Err(given
                    .error(&format!("this is node {other} already; each node needs an address of its own")));
            }
            nodes.insert(id, addr);
        }
        Ok(Some(nodes))
    }

    fn nodes(&self) -> Result<Vec<Addr>, ConfigError> {
        Ok(self.listed_nodes()?.unwrap_or_else(default_nodes).into_values().collect())
    }

    fn data_dir(&self, flag: Option<&PathBuf>) -> PathBuf {
        let given = || self.pick(None, "", "CHATCHAIN_NODE_DATA_DIR", self.file.data_dir.as_ref());
        flag.cloned().or_else(|| Some(given()?.text.into())).unwrap_or_else(|| DATA_DIR_DEFAULT.into())
    }

    fn sync_interval(&self) -> Result<Duration, ConfigError> {
        let given = self.pick(None, "", "CHATCHAIN_NODE_SYNC_INTERVAL", self.file.sync_interval.as_ref());
        given.map_or(Ok(SYNC_INTERVAL_DEFAULT), |g| duration(&g, SYNC_INTERVAL_MIN, SYNC_INTERVAL_MAX))
    }

    fn scrub_interval(&self) -> Result<Duration, ConfigError> {
        let given = self.pick(None, "", "CHATCHAIN_NODE_SCRUB_INTERVAL", self.file.scrub_interval.as_ref());
        given.map_or(Ok(SCRUB_INTERVAL_DEFAULT), |g| duration(&g, SCRUB_INTERVAL_MIN, SCRUB_INTERVAL_MAX))
    }

    fn proxy_listen(&self, args: &cli::ProxyArgs) -> Result<Addr, ConfigError> {
        let file = self.file.proxy_listen.as_ref();
        let given = self.pick(args.listen.as_deref(), "--listen", "CHATCHAIN_PROXY_LISTEN", file);
        given.map_or_else(|| Ok(local(PROXY_PORT_DEFAULT)), |given| given.addr())
    }

    fn strategy(&self) -> Result<Strategy, ConfigError> {
        let given = self.pick(None, "", "CHATCHAIN_PROXY_STRATEGY", self.file.strategy.as_ref());
        given.map_or(Ok(Strategy::Hedge), |given| given.text.parse().map_err(|why: String| given.error(&why)))
    }

    fn env(&self, name: &str) -> Option<SourcedValue> {
        non_empty(&self.env, name).map(|text| SourcedValue { text: text.into(), origin: name.into() })
    }

    /// The first of flag, environment and file that says something.
    fn pick(
        &self,
        flag: Option<&str>,
        flag_name: &str,
        env: &str,
        file: Option<&SourcedValue>,
    ) -> Option<SourcedValue> {
        let flag = flag.map(|text| SourcedValue { text: text.into(), origin: flag_name.into() });
        flag.or_else(|| self.env(env)).or_else(|| file.cloned())
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Strategy::Failover => "failover",
            Strategy::Hedge => "hedge",
            Strategy::Race => "race",
        })
    }
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "failover" => Ok(Strategy::Failover),
            "hedge" => Ok(Strategy::Hedge),
            "race" => Ok(Strategy::Race),
            other => {
                let near = settings::nearest(other, ["failover", "hedge", "race"]).unwrap_or("hedge");
                Err(format!("a strategy is failover, hedge or race; did you mean {near}?"))
            }
        }
    }
}

/// An empty variable counts as unset, as everywhere.
fn non_empty<'a>(env: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    env.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// The name of a user in the text of `/etc/passwd`.
fn account(accounts: &str, uid: u32) -> Option<String> {
    let fields = accounts.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut own = fields.filter(|fields| fields.get(2).is_some_and(|field| *field == uid.to_string()));
    own.next().map(|fields| fields[0].to_owned()).filter(|name| !name.is_empty())
}

/// Addresses separated by commas; repeated ones count once, and none at all is allowed.
fn addresses(given: &SourcedValue) -> Result<Vec<Addr>, ConfigError> {
    let mut addresses = Vec::new();
    for one in given.split() {
        let addr = one.addr()?;
        if !addresses.contains(&addr) {
            addresses.push(addr);
        }
    }
    Ok(addresses)
}

fn duration(given: &SourcedValue, min: Duration, max: Duration) -> Result<Duration, ConfigError> {
    let parsed = SpanParser::new().parse_unsigned_duration(&given.text);
    let duration = parsed.map_err(|_| given.error(&"write a duration with its unit, such as 500ms or 2s"))?;
    if duration < min || duration > max {
        return Err(given.error(&format!("it must be between {min:?} and {max:?}")));
    }
    Ok(duration)
}

fn local(port: u16) -> Addr {
    Addr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn default_nodes() -> BTreeMap<NodeId, Addr> {
    (0..).zip((1..=NODE_COUNT_DEFAULT).map(|offset| local(PROXY_PORT_DEFAULT + offset))).collect()
}

/// Who listens everywhere is reached on loopback.
fn reachable(addr: Addr) -> Addr {
    if addr.is_wildcard() { local(addr.port()) } else { addr }
}

fn not_listed(node_id: NodeId, listed: Option<&BTreeMap<NodeId, Addr>>) -> ConfigError {
    let (which, nodes) = match listed {
        Some(nodes) => ("`nodes`", nodes.keys().map(NodeId::to_string).collect::<Vec<_>>().join(", ")),
        None => ("the default list", "0, 1, 2, 3".into()),
    };
    ConfigError(format!(
        "{which} holds the nodes {nodes} and no node {node_id}; add it there or say where it listens with --listen ADDR"
    ))
}

#[cfg(test)]
mod tests;
