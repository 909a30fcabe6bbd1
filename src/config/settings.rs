//! Owns the table of all settings: key in the file, environment variable, flags and default.
//!
//! The reader of the file, the error that names the nearest key, the defaults and the tests of the guide all use this
//! table, so they cannot disagree. What a setting means to the program is not known here.

/// One setting and its sources. A flag wins over the environment, the environment over the file.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Dotted name in `config.toml`; empty if the file cannot set it.
    pub key: &'static str,
    pub env: &'static str,
    pub flag: &'static str,
    /// The default; empty if there is none. For a setting of the file, as it would be written there.
    pub default: &'static str,
    pub meaning: &'static str,
}

const fn setting([key, env, flag, default, meaning]: [&'static str; 5]) -> Setting {
    Setting { key, env, flag, default, meaning }
}

#[rustfmt::skip] // a table reads best as one
pub const SETTINGS: [Setting; 18] = [
    setting(["", "CHATCHAIN_CONFIG", "--config", "the first that exists", "the configuration file"]),
    setting(["network", "CHATCHAIN_NETWORK", "", "chatchain", "name of the network; nodes of another name are refused"]),
    setting(["nodes", "CHATCHAIN_NODES", "node --peers, proxy --nodes", "127.0.0.1:8081 to 127.0.0.1:8084", "the nodes' addresses: node N listens on the N-th, counted from 0; or a table `{ 0 = \"…\", 3 = \"…\" }`"]),
    setting(["key_file", "CHATCHAIN_KEY_FILE", "", "", "the file with the network's keys, one per line: the first is sent, each of them is accepted; without keys, everybody may read and write"]),
    setting(["", "CHATCHAIN_KEY", "", "", "the keys themselves, separated by commas, instead of the file"]),
    setting(["", "", "node --insecure, proxy --insecure", "", "let other machines connect without a key"]),
    setting(["node.data_dir", "CHATCHAIN_NODE_DATA_DIR", "node --data-dir, up --data-dir, verify --data-dir", "data", "node N keeps its store in node-N below it"]),
    setting(["node.sync_interval", "CHATCHAIN_NODE_SYNC_INTERVAL", "", "1s", "how often a quiet node compares itself with its peers"]),
    setting(["node.scrub_interval", "CHATCHAIN_NODE_SCRUB_INTERVAL", "", "1h", "how often a node reads everything it stores, slowly, to find damage"]),
    setting(["", "CHATCHAIN_NODE_ID", "node --node-id", "none: must be given", "number of this node in the network"]),
    setting(["", "CHATCHAIN_NODE_LISTEN", "node --listen", "its address in `nodes`", "address that a node listens on"]),
    setting(["", "CHATCHAIN_NODE_ADVERTISE", "node --advertise", "the address it listens on", "address that peers and proxies are told"]),
    setting(["", "CHATCHAIN_NODE_PEERS", "node --peers", "the other `nodes` of the file or variable, else none", "nodes that a node syncs with"]),
    setting(["proxy.listen", "CHATCHAIN_PROXY_LISTEN", "proxy --listen", "127.0.0.1:8080", "address that the proxy listens on, and that clients ask first"]),
    setting(["proxy.strategy", "CHATCHAIN_PROXY_STRATEGY", "", "hedge", "`failover`: one node after the other; `hedge`: also ask a second one when the first is slow; `race`: ask two at once"]),
    setting(["", "CHATCHAIN_SERVER", "--server", "the proxy, then the nodes", "servers that a client asks, separated by commas (the flag is repeated instead)"]),
    setting(["", "CHATCHAIN_USER", "send --from", "your login name", "the sender"]),
    setting(["", "CHATCHAIN_STATE_DIR", "", "chatchain in $XDG_STATE_HOME, else in ~/.local/state", "directory in which `send` keeps, for ten minutes, what it sent last, so that `list` waits until the server has it"]),
];

/// The variable with the keys themselves.
pub const KEY_VARIABLE: &str = "CHATCHAIN_KEY";

/// The variables that hold a path, which need not be UTF-8.
pub const PATH_VARIABLES: [&str; 4] =
    ["CHATCHAIN_CONFIG", "CHATCHAIN_KEY_FILE", "CHATCHAIN_NODE_DATA_DIR", "CHATCHAIN_STATE_DIR"];

/// The names of all keys in `config.toml`.
pub fn file_keys() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|s| s.key).filter(|key| !key.is_empty())
}

/// The tables of the file. (`nodes` may be a table too, but its keys are node ids.)
pub const SECTIONS: [&str; 2] = ["node", "proxy"];

/// The default of the setting with this variable, as it would be written in the file.
pub fn default_of(variable: &str) -> &'static str {
    SETTINGS.iter().find(|setting| setting.env == variable).expect("it is a setting").default
}

/// The name among `known` that looks most like this one. A key in the wrong table is as near as its last part: `listen`
/// means `proxy.listen`.
pub fn nearest(typed: &str, known: impl IntoIterator<Item = &'static str>) -> &'static str {
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let distance = |known: &&str| {
        let whole = strsim::damerau_levenshtein(typed, known);
        whole.min(strsim::damerau_levenshtein(&last(typed), &last(known)))
    };
    known.into_iter().min_by_key(distance).expect("there are names")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_the_one_that_was_meant() {
        for (typed, meant) in [
            ("networks", "network"),
            ("node.data-dir", "node.data_dir"),
            ("data_dir", "node.data_dir"),
            ("proxy.stratgey", "proxy.strategy"),
            ("listen", "proxy.listen"),
            ("peers", "nodes"),
            ("keyfile", "key_file"),
            ("prxy", "proxy"),
            ("nod", "node"),
        ] {
            assert_eq!(nearest(typed, file_keys().chain(SECTIONS)), meant, "{typed}");
        }
    }

    #[test]
    fn the_names_of_variables_follow_the_keys() {
        for Setting { key, env, .. } in SETTINGS {
            let derived = format!("CHATCHAIN_{}", key.replace('.', "_").to_uppercase());
            assert!(key.is_empty() || *env == derived, "{key} has {env}");
        }
    }
}
