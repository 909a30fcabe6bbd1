//! Resolves command lines, environments and files, and checks the sentence for each mistake in them.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use clap::{CommandFactory, Parser};

use super::*;
use crate::cli::{Cli, Command};

const SHIPPED: &str = include_str!("../../config.toml");

fn sources(env: &[(&str, &str)], file: Option<&str>) -> Result<Sources, ConfigError> {
    Sources::new(Environment::of(env.iter().copied(), ""), file.map(|text| (FILE_NAME.into(), text.into())))
}

/// The configuration for a command line, as debug text, so that one function serves all commands.
fn resolve(line: &str, env: &[(&str, &str)], file: Option<&str>) -> Result<String, ConfigError> {
    let cli = Cli::try_parse_from(format!("chatchain {line}").split(' ')).expect("the line is good usage");
    let sources = sources(env, file)?;
    Ok(match &cli.command {
        Command::Node(args) => format!("{:?}", sources.node(args)?),
        Command::Proxy(args) => format!("{:?}", sources.proxy(args)?),
        Command::Up(args) => format!("{:?}", sources.up(args)?),
        Command::Send(args) => sources.sender(args.from.as_deref())?,
        Command::Verify(args) => sources.data_dir(args.data_dir.as_ref()).display().to_string(),
        Command::Key(_) | Command::Guide(_) => unreachable!("it has no settings"),
        Command::List(_) | Command::Status(_) | Command::Forget(_) => {
            format!("{:?}", sources.client(&cli.common)?)
        }
    })
}

#[track_caller]
fn check_error(line: &str, env: &[(&str, &str)], file: Option<&str>, parts: &[&str]) {
    let error = resolve(line, env, file).expect_err(line).to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
    assert!(!error.contains('\n'), "{error:?} is more than one line");
}

fn node(line: &str, env: &[(&str, &str)], file: Option<&str>) -> NodeConfig {
    let cli =
        Cli::try_parse_from(format!("chatchain node {line}").split(' ')).expect("the line is good usage");
    let Command::Node(args) = cli.command else { unreachable!("the line says node") };
    sources(env, file).and_then(|sources| sources.node(&args)).expect(line)
}

fn addr(text: &str) -> Addr {
    text.parse().expect(text)
}

fn peers(config: &NodeConfig) -> Vec<(Option<NodeId>, String)> {
    config.peers.iter().map(|peer| (peer.node_id, peer.addr.to_string())).collect()
}

#[test]
fn shipped_file_equals_the_defaults() {
    for line in ["proxy", "status", "up"] {
        assert_eq!(resolve(line, &[], Some(SHIPPED)), resolve(line, &[], None), "{line}");
    }
    for id in 0..4 {
        let line = format!("--node-id {id}");
        let (with, without) = (node(&line, &[], Some(SHIPPED)), node(&line, &[], None));
        assert_eq!(peers(&with).len(), 3, "the file names peers");
        assert_eq!(NodeConfig { peers: Vec::new(), ..with }, without);
    }
}

#[test]
fn shipped_file_shows_every_key_with_its_default() {
    let table: toml::Table = SHIPPED.parse().expect("the shipped file is TOML");
    let mut shown: Vec<String> = Vec::new();
    for (key, value) in &table {
        match value {
            toml::Value::Table(section) => shown.extend(section.keys().map(|inner| format!("{key}.{inner}"))),
            _ => shown.push(key.clone()),
        }
    }
    let mut known: Vec<&str> = settings::file_keys().collect();
    known.sort_unstable();
    shown.sort_unstable();
    assert_eq!(shown, known);
    for setting in settings::SETTINGS.iter().filter(|s| !s.key.is_empty() && s.key != "nodes") {
        assert!(
            SHIPPED.contains(&format!("= {:?}", setting.default)),
            "{} = {}",
            setting.key,
            setting.default
        );
    }
}

#[test]
fn node_needs_nothing_but_its_number() {
    let config = node("--node-id 2", &[], None);
    assert_eq!(
        config,
        NodeConfig {
            node_id: 2,
            network: "chatchain".into(),
            listen: addr("127.0.0.1:8083"),
            advertise: addr("127.0.0.1:8083"),
            peers: Vec::new(),
            store_dir: "data/node-2".into(),
            sync_interval: Duration::from_secs(1),
            scrub_interval: Duration::from_hours(1),
            keys: None,
        }
    );
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = Some("network = 'f'\nnodes = ['f:1']\n[node]\ndata_dir = 'f'\n[proxy]\nlisten = 'f:2'");
    let env = &[
        ("CHATCHAIN_NETWORK", "e"),
        ("CHATCHAIN_NODES", "e:1,e:2"),
        ("CHATCHAIN_NODE_DATA_DIR", "e"),
        ("CHATCHAIN_PROXY_LISTEN", "e:3"),
        ("CHATCHAIN_USER", ""),
    ];
    let flags = "--node-id 0 --data-dir g --peers g:1 --listen g:2";
    let node = |line, env, file| node(&format!("{line} --insecure"), env, file);
    let what = |c: NodeConfig| (c.network, c.listen.to_string(), c.store_dir.display().to_string());
    assert_eq!(what(node("--node-id 0", &[], file)), ("f".into(), "f:1".into(), "f/node-0".into()));
    assert_eq!(what(node("--node-id 0", env, file)), ("e".into(), "e:1".into(), "e/node-0".into()));
    assert_eq!(what(node(flags, env, file)), ("e".into(), "g:2".into(), "g/node-0".into()));
    assert_eq!(peers(&node(flags, env, file)), [(None, "g:1".into())]);
    assert_eq!(peers(&node("--node-id 0", env, file)), [(Some(1), "e:2".into())]);
    let servers = |env, file, line| resolve(line, env, file).expect("servers");
    assert_eq!(servers(env, file, "status"), client(&["e:3", "e:1", "e:2"], &[]));
    assert_eq!(servers(&[], file, "status"), client(&["f:2", "f:1"], &[]));
    assert_eq!(
        servers(&[("CHATCHAIN_SERVER", "s:1,s:2")], file, "status --server t:1"),
        client(&["t:1"], &[])
    );
}

/// The settings of a client that asks these servers. Others belong to the same network.
fn client(servers: &[&str], others: &[&str]) -> String {
    let servers: Vec<_> = servers.iter().map(|text| addr(text)).collect();
    let network_addrs = servers.iter().cloned().chain(others.iter().map(|text| addr(text))).collect();
    format!("{:?}", ClientConfig { servers, network_addrs, keys: None })
}

#[test]
fn a_server_of_the_configured_network_belongs_to_it() {
    let file = Some("nodes = ['f:1', 'f:2']\n[proxy]\nlisten = 'f:3'");
    let check = |line: &str, want: String| assert_eq!(resolve(line, &[], file), Ok(want));
    check("list --server f:2", client(&["f:2"], &["f:3", "f:1"]));
    check("list --server f:2 --server x:1", client(&["f:2", "x:1"], &["f:3", "f:1"]));
    check("list --server x:1", client(&["x:1"], &[]));
    let wrong = Some("nodes = ['f:x']");
    assert_eq!(resolve("list --server f:2", &[], wrong), Ok(client(&["f:2"], &[])));
}

#[test]
fn nodes_as_a_table_keep_their_numbers() {
    let file = Some("nodes = { 0 = 'a:1', 3 = 'd:4' }");
    let config = node("--node-id 3 --insecure", &[], file);
    assert_eq!(config.listen, addr("d:4"));
    assert_eq!(peers(&config), [(Some(0), "a:1".into())]);
    assert_eq!(peers(&node("--node-id 7 --listen localhost:8", &[], file)).len(), 2);
    check_error("node --node-id 1", &[], file, &["holds the nodes 0, 3 and no node 1", "--listen ADDR"]);
    check_error(
        "node --node-id 4",
        &[],
        None,
        &["the default list holds the nodes 0, 1, 2, 3 and no node 4"],
    );
}

#[test]
fn own_address_is_no_peer_and_peers_may_be_empty() {
    let list = "--node-id 1 --peers 127.0.0.1:8081,127.0.0.1:8082,127.0.0.1:8081";
    assert_eq!(peers(&node(list, &[], None)), [(None, "127.0.0.1:8081".into())]);
    let cli = Cli::try_parse_from(["chatchain", "node", "--node-id", "1", "--peers", ""]).expect("usage");
    let Command::Node(args) = cli.command else { unreachable!("the line says node") };
    let config = sources(&[], Some(SHIPPED)).and_then(|sources| sources.node(&args)).expect("no peers");
    assert_eq!(config.peers, []);
}

#[test]
fn wildcard_needs_an_advertised_address() {
    check_error(
        "node --node-id 2 --listen 0.0.0.0:9",
        &[],
        None,
        &["0.0.0.0:9", "--advertise chat1.example:8081"],
    );
    check_error("node --node-id 2 --listen [::]:9", &[], None, &["--advertise"]);
    let file = Some("nodes = ['10.0.0.1:8081']");
    check_error("node --node-id 0 --listen 0.0.0.0:9", &[], file, &["--advertise 10.0.0.1:8081"]);
    check_error("node --node-id 2 --advertise 0.0.0.0:9", &[], None, &["--advertise"]);
    let config = node("--node-id 2 --listen 0.0.0.0:9 --advertise x:9 --insecure", &[], None);
    assert_eq!((config.listen, config.advertise), (addr("0.0.0.0:9"), addr("x:9")));
    let servers =
        resolve("status", &[("CHATCHAIN_PROXY_LISTEN", "0.0.0.0:9"), ("CHATCHAIN_NODES", "x:1")], None);
    assert_eq!(servers, Ok(client(&["127.0.0.1:9", "x:1"], &[])));
}

#[test]
fn mistakes_in_the_file_are_named_with_their_line() {
    let file = |text, parts: &[&str]| check_error("proxy", &[], Some(text), parts);
    file("\n\nnetwrk = 'x'", &["config.toml line 3", "`netwrk`", "did you mean `network`?"]);
    file("[node]\nsync-interval = '1s'", &["line 2", "`node.sync-interval`", "`node.sync_interval`"]);
    file("listen = '127.0.0.1:1'", &["line 1", "did you mean `proxy.listen`?"]);
    file("[nodes]\n0 = 'a:1'\nx = 'b:1'", &["line 3", "`x`", "node ids"]);
    file("nodes = 'a:1'", &["`nodes` must be an array"]);
    file("nodes = [1]", &["`nodes.0` must be text", "integer"]);
    file("nodes = ['a:1', 'b']", &["`nodes.1` in config.toml line 1", "`b`"]);
    file("nodes = ['a:1', 'a:1']", &["this is node 0 already"]);
    file("nodes = []", &["no nodes to forward to", "--nodes"]);
    file("node = 1", &["`node` is a table"]);
    file("network = 7", &["`network` must be text", "integer"]);
    file("network = ''", &["1 to 64 characters"]);
    file("network = ", &["config.toml line 1", "not TOML"]);
    file("[proxy]\nstrategy = 'hegde'", &["`proxy.strategy` in config.toml line 2", "did you mean hedge?"]);
}

#[test]
fn mistakes_elsewhere_are_named_with_their_source() {
    for text in ["5", "1ms", "2h", "-1s", "soon"] {
        let env = &[("CHATCHAIN_NODE_SYNC_INTERVAL", text)];
        check_error("node --node-id 0", env, None, &["CHATCHAIN_NODE_SYNC_INTERVAL is"]);
    }
    check_error("node", &[], None, &["--node-id N"]);
    check_error("node --node-id 0 --listen nonsense", &[], None, &["--listen: `nonsense`"]);
    check_error("node --node-id 0 --peers a:1,b", &[], None, &["--peers: `b`"]);
    check_error("status --server x", &[], None, &["--server: `x`"]);
    check_error(
        "up --base-port 65472 --nodes 64 --data-dir x",
        &[("CHATCHAIN_NETWORK", &"x".repeat(65))],
        None,
        &["ports above 65535"],
    );
}

#[test]
fn no_mistake_shows_a_password() {
    for value in ["user:se@cret@a:1", "http://user:se,cret@a:1", "b:1,http://user:se,cret@a:1"] {
        for variable in ["CHATCHAIN_SERVER", "CHATCHAIN_NODES", "CHATCHAIN_PROXY_LISTEN"] {
            let error = resolve("status", &[(variable, value)], None).expect_err(value).to_string();
            assert!(error.contains("@a:1") && error.contains("no password"), "{error}");
            assert!(!error.contains("user:") && !error.contains("cret@"), "{error}");
        }
    }
}

#[test]
fn durations_have_a_unit() {
    for (text, want) in [("500ms", 500), ("2s", 2000), ("1m 30s", 90_000), ("1h", 3_600_000)] {
        let file = format!("[node]\nsync_interval = '{text}'");
        assert_eq!(node("--node-id 0", &[], Some(&file)).sync_interval, Duration::from_millis(want));
    }
}

#[test]
fn sender_is_the_flag_the_variable_or_the_login_name() {
    let env = &[("CHATCHAIN_USER", "u"), ("USER", "login")];
    assert_eq!(resolve("send --to x --from f hi", env, None), Ok("f".into()));
    assert_eq!(resolve("send --to x hi", env, None), Ok("u".into()));
    assert_eq!(resolve("send --to x hi", &env[1..], None), Ok("login".into()));
    check_error("send --to x hi", &[], None, &["--from NAME", "CHATCHAIN_USER"]);
}

#[test]
fn a_path_of_the_file_is_relative_to_the_file() {
    let path = |file: &str, text: &str, env: &[(&str, &[u8])]| {
        let sources =
            Sources::new(Environment::of(env.iter().copied(), ""), Some((file.into(), text.into())));
        let sources = sources.expect("good sources");
        (sources.named_key_file().map(|setting| setting.path), sources.data_dir(None))
    };
    let text = "key_file = 'k'\n[node]\ndata_dir = 'd'";
    assert_eq!(path("/etc/chat/x.toml", text, &[]), (Some("/etc/chat/k".into()), "/etc/chat/d".into()));
    assert_eq!(path("conf/x.toml", text, &[]), (Some("conf/k".into()), "conf/d".into()));
    assert_eq!(path("x.toml", text, &[]), (Some("k".into()), "d".into()));
    assert_eq!(path("/etc/x.toml", "key_file = '/k'", &[]), (Some("/k".into()), "data".into()));
    let env: [(&str, &[u8]); 2] = [("CHATCHAIN_KEY_FILE", b"k\xe9"), ("CHATCHAIN_NODE_DATA_DIR", b"d\xe9")];
    let bytes = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    assert_eq!(path("/etc/x.toml", text, &env), (Some(bytes(b"k\xe9")), bytes(b"d\xe9")));
}

#[test]
fn up_takes_the_ports_after_the_base_port() {
    let config = resolve("up --nodes 2 --base-port 9000 --data-dir d", &[], None);
    let want = UpConfig {
        proxy: addr("127.0.0.1:9000"),
        nodes: vec![addr("127.0.0.1:9001"), addr("127.0.0.1:9002")],
        data_dir: "d".into(),
        keys: None,
    };
    assert_eq!(config, Ok(format!("{want:?}")));
}

const KEY: &str = "a-key-that-nobody-guesses";

fn in_env(key: &str) -> [(&str, &str); 1] {
    [("CHATCHAIN_KEY", key)]
}

#[test]
fn a_server_for_other_machines_needs_a_key_or_the_flag_insecure() {
    let remedy =
        ["there is no key", "chatchain key > network.key", "key_file = \"network.key\"", "--insecure"];
    for line in [
        "node --node-id 0 --listen 0.0.0.0:1 --advertise x:1",
        "node --node-id 0 --listen [::]:1 --advertise x:1",
        "node --node-id 0 --listen 192.0.2.1:1",
        "node --node-id 0 --listen chat1.example:1",
        "proxy --listen 0.0.0.0:1",
    ] {
        check_error(line, &[], None, &remedy);
        resolve(&format!("{line} --insecure"), &[], None).expect(line);
        resolve(line, &in_env(KEY), None).expect(line);
    }
    check_error("proxy", &[("CHATCHAIN_PROXY_LISTEN", "x:1")], None, &remedy);
    check_error("node --node-id 0", &[], Some("nodes = ['x:1']"), &remedy);
    assert_eq!(node("--node-id 0", &[], None).keys, None, "a server for this machine needs no key");
}

#[test]
fn a_key_comes_from_the_environment_and_is_never_shown() {
    let keys = Keys::from_list(KEY).ok();
    assert_eq!(node("--node-id 0", &in_env(KEY), None).keys, keys);
    for line in ["proxy", "status", "up", "node --node-id 0"] {
        let shown = resolve(line, &in_env(KEY), Some("key_file = 'not-read'")).expect(line);
        assert!(shown.contains("Keys(1 not shown)") && !shown.contains(KEY), "{shown}");
        check_error(
            line,
            &in_env("fifteen-chars-x"),
            None,
            &["CHATCHAIN_KEY: key 1", "16 to 256 characters"],
        );
        check_error(line, &in_env(","), None, &["CHATCHAIN_KEY: there is no key in it"]);
        let both = [("CHATCHAIN_KEY", KEY), ("CHATCHAIN_KEY_FILE", "x")];
        check_error(line, &both, None, &["CHATCHAIN_KEY and CHATCHAIN_KEY_FILE are both set"]);
    }
    resolve("verify", &in_env("short"), None).expect("a command without keys does not check them");
    assert!(!format!("{:?}", sources(&in_env(KEY), None)).contains(KEY));
    assert_eq!(node("--node-id 0", &in_env(""), None).keys, None, "empty is unset");
}

#[test]
fn a_key_file_is_named_by_the_environment_or_the_file() {
    let named = |env: &[(&str, &str)], file| {
        sources(env, Some(file)).expect("sources").named_key_file().map(|setting| setting.path)
    };
    let (file, in_env_too) = ("key_file = 'f'", [("CHATCHAIN_KEY_FILE", "e")]);
    assert_eq!(named(&[], file), Some("f".into()));
    assert_eq!(named(&in_env_too, file), Some("e".into()));
    assert_eq!(named(&in_env(KEY), file), None, "a key in the environment wins");
    assert_eq!(named(&[], "key_file = ''"), None);
    assert_eq!(named(&[], ""), None);
}

#[test]
fn only_a_file_that_was_named_must_exist() {
    let missing =
        cli::CommonArgs { config: Some("/nonexistent/chatchain.toml".into()), ..Default::default() };
    let error = Sources::load(&missing).expect_err("it is missing").to_string();
    assert!(error.contains("cannot read the configuration file /nonexistent/chatchain.toml"), "{error}");
}

/// clap would print the variables by itself, but would also read them: see the head of `cli`.
#[test]
fn help_names_the_variable_of_each_flag() {
    let cli = Cli::command();
    for setting in settings::SETTINGS.iter().filter(|s| !s.env.is_empty() && s.key != "nodes") {
        for flag in setting.flag.split(", ").filter(|flag| !flag.is_empty()) {
            let (command, long) = flag.split_once("--").expect("a flag");
            let command = cli.find_subcommand(command.trim()).unwrap_or(&cli);
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(long)).expect(flag);
            let help = arg.get_help().expect(flag).to_string();
            assert!(help.contains(&format!("[env: {}]", setting.env)), "{flag}: {help}");
        }
    }
}
