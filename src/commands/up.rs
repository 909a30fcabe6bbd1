//! `chatchain up`: a whole network on this machine, every server a process of its own.
//!
//! Each child has its own process group, so Ctrl-C reaches only this process, which then stops the children in order.
//! Each child reads from a pipe that this process holds open, and stops when the pipe ends: no child outlives this
//! process, however it ends. A child that dies is reported and not started again, so that a user who kills a node can
//! watch the others.

use std::{env, ffi::OsString, io, process::ExitStatus, process::Stdio, time::Duration};

use color_eyre::eyre::{Result, WrapErr, eyre};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::interval,
};
use tokio_util::sync::CancellationToken;

use super::{
    Context, Exit,
    serving::{StopSignals, bind},
};
use crate::{
    api::address::Addr,
    cli::{self, CommonArgs},
    client::Client,
    config::UpConfig,
    output::{Output, PrintError},
};

/// How often the children are asked whether they are ready, until all of them are.
const READY_INTERVAL: Duration = Duration::from_millis(50);
/// A child that does not answer for this long is not ready.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

pub async fn run(args: &cli::UpArgs, context: &Context<'_>) -> Result<Exit> {
    let &Context { common, sources, output } = context;
    let config = sources.up(args)?;
    let mut signals = StopSignals::catch()?;
    for addr in config.nodes.iter().chain([&config.proxy]) {
        // One sentence; otherwise every child would fail with its own.
        bind(addr, "run a second network beside it with --base-port 9080 --data-dir data2").await?;
    }
    let default_server = sources.client(common)?.servers.first() == Some(&config.proxy);
    let client = Client::new(config.keys.as_ref());
    let mut network = Children::start(&config, common, output)?;
    let failed = tokio::select! {
        ended = network.watch(client, default_server) => {
            let all_ended = || eyre!("all processes of the network have ended; their last lines above say why");
            Some(ended.err().unwrap_or_else(all_ended))
        }
        () = signals.next() => {
            output.note("stopping the proxy, then the nodes; a second Ctrl-C stops at once");
            None
        }
    };
    tokio::select! {
        () = network.stop() => return failed.map_or(Ok(Exit::Done), Err),
        () = signals.next() => {}
    }
    network.running.shutdown().await; // drops the children, which kills them
    Ok(Exit::Failure)
}

/// All child processes: the nodes by their number, then the proxy.
struct Children<'a> {
    config: &'a UpConfig,
    members: Vec<ChildProcess>,
    running: JoinSet<(usize, io::Result<ExitStatus>)>,
    output: &'a Output,
}

struct ChildProcess {
    tag: String,
    addr: Addr,
    restart: String,
    stop: CancellationToken,
    alive: bool,
}

impl<'a> Children<'a> {
    fn start(config: &'a UpConfig, common: &CommonArgs, output: &'a Output) -> Result<Self> {
        let program = env::current_exe().wrap_err("cannot find this program's own file")?;
        let mut network = Children { config, members: Vec::new(), running: JoinSet::new(), output };
        for (index, (tag, addr, args)) in commands(config, common).into_iter().enumerate() {
            let mut command = Command::new(&program);
            command.args(&args).arg("--exit-with-parent");
            command.arg(if output.colors_errors { "--color=always" } else { "--color=never" });
            command.args(common.quiet.then_some("--quiet")).args((0..common.verbose).map(|_| "--verbose"));
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            command.env_remove("CHATCHAIN_NODE_ADVERTISE"); // the nodes cannot share one address
            let child = command.process_group(0).kill_on_drop(true).spawn();
            let child = child.wrap_err_with(|| format!("cannot start {tag}"))?;
            let stop = CancellationToken::new();
            let restart = shell_line(&args);
            network.running.spawn(run_child(index, child, tag.clone(), output.clone(), stop.clone()));
            network.members.push(ChildProcess { tag, addr, restart, stop, alive: true });
        }
        Ok(network)
    }

    /// Reports children that end, until none is left. Announces the network once all children that live are ready. A
    /// child that exits before that is an error: the user has to remove its cause, such as a store in use, and start
    /// again.
    async fn watch(&mut self, client: Client, default_server: bool) -> Result<()> {
        let mut announced = false;
        let mut tick = interval(READY_INTERVAL);
        loop {
            tokio::select! {
                ended = self.ended() => match ended {
                    None => return Ok(()),
                    Some((index, Ok(status))) if !announced && status.code().is_some() => {
                        let tag = &self.members[index].tag;
                        return Err(eyre!("{tag} did not start; its lines above say why"));
                    }
                    Some((index, how)) => {
                        let ChildProcess { tag, restart, .. } = &self.members[index];
                        let how = how.map_or_else(|error| error.to_string(), |status| status.to_string());
                        let again = "start it again, in another terminal, with";
                        self.output.warn(&format!("{tag} ended ({how}); {again}: {restart}"));
                    }
                },
                _ = tick.tick(), if !announced => {
                    announced = self.all_ready(&client).await;
                    if announced {
                        self.announce(default_server)?;
                    }
                }
            }
        }
    }

    /// Stops the proxy, then all nodes.
    async fn stop(&mut self) {
        let proxy = self.members.len() - 1;
        self.members[proxy].stop.cancel();
        while self.members[proxy].alive && self.ended().await.is_some() {}
        self.members.iter().for_each(|node| node.stop.cancel());
        while self.ended().await.is_some() {}
    }

    /// Waits for the next child to end; `None` if all have ended.
    async fn ended(&mut self) -> Option<(usize, io::Result<ExitStatus>)> {
        let (index, how) = self.running.join_next().await?.expect("running a child does not panic");
        self.members[index].alive = false;
        Some((index, how))
    }

    async fn all_ready(&self, client: &Client) -> bool {
        for member in self.members.iter().filter(|member| member.alive) {
            let ready = client.readyz(&member.addr, READY_TIMEOUT).await;
            if !ready.is_ok_and(|ready| ready.readable && ready.writable) {
                return false;
            }
        }
        true
    }

    /// Prints the addresses, the stores, and what to try next.
    fn announce(&self, default_server: bool) -> Result<(), PrintError> {
        let output = self.output;
        let (proxy, nodes) = self.members.split_last().expect("there is always a proxy");
        let (alive, all) = (nodes.iter().filter(|node| node.alive).count(), nodes.len());
        let stores = self.config.data_dir.display();
        output.line(&format!("{alive} of {all} nodes are ready, their stores are in {stores}:"))?;
        for member in self.members.iter().filter(|member| member.alive) {
            output.line(&format!("  {:<7}  http://{}", member.tag, member.addr))?;
        }
        let program = program().display().to_string();
        let server = if default_server { String::new() } else { format!(" --server {}", proxy.addr) };
        output.line("Try this in another terminal:")?;
        for rest in ["send --to user2 \"hi\"", "list", "status"] {
            output.line(&format!("  {program} {rest}{server}"))?;
        }
        output.line("Ctrl-C stops everything.")
    }
}

/// Prints the lines of a child until it ends. `stop` closes its standard input, which asks it to end.
async fn run_child(
    index: usize,
    mut child: Child,
    tag: String,
    output: Output,
    stop: CancellationToken,
) -> (usize, io::Result<ExitStatus>) {
    let mut stdin = child.stdin.take();
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).split(b'\n');
    loop {
        tokio::select! {
            line = lines.next_segment() => match line {
                Ok(Some(line)) => output.tagged(index, &tag, &String::from_utf8_lossy(&line)),
                Ok(None) | Err(_) => break,
            },
            () = stop.cancelled(), if stdin.is_some() => drop(stdin.take()),
        }
    }
    (index, child.wait().await)
}

/// The tag, the address and the arguments of every child. Paths are bytes, so arguments are, too.
fn commands(config: &UpConfig, common: &CommonArgs) -> Vec<(String, Addr, Vec<OsString>)> {
    let args = |command: &str, flags: &[(&str, OsString)]| {
        let file = common.config.iter().map(|file| ("--config", file.into()));
        let flags = flags.iter().cloned().chain(file).flat_map(|(flag, value)| [flag.into(), value]);
        [command.into()].into_iter().chain(flags).collect()
    };
    let nodes_except = |addr: &Addr| {
        let others = config.nodes.iter().filter(|other| *other != addr);
        others.map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    let node = |(id, addr): (usize, &Addr)| {
        let flags = [
            ("--node-id", id.to_string().into()),
            ("--listen", addr.to_string().into()),
            ("--peers", nodes_except(addr).into()),
            ("--data-dir", config.data_dir.clone().into()),
        ];
        (format!("node-{id}"), addr.clone(), args("node", &flags))
    };
    let proxy = &config.proxy;
    let flags = [("--listen", proxy.to_string().into()), ("--nodes", nodes_except(proxy).into())];
    let proxy = ("proxy".to_owned(), proxy.clone(), args("proxy", &flags));
    config.nodes.iter().enumerate().map(node).chain([proxy]).collect()
}

/// The program as the user typed it, so that a printed command line can be typed, too.
fn program() -> OsString {
    env::args_os().next().unwrap_or_else(|| "chatchain".into())
}

/// A command line that a shell reads back as these arguments. Of an argument that is not UTF-8 it shows what it can.
fn shell_line(args: &[OsString]) -> String {
    let plain =
        |arg: &str| !arg.is_empty() && arg.chars().all(|c| c.is_alphanumeric() || "-_./:,=[]".contains(c));
    let quote = |arg: &OsString| {
        let arg = arg.to_string_lossy();
        if plain(&arg) { arg.into_owned() } else { format!("'{}'", arg.replace('\'', "'\\''")) }
    };
    [program()].iter().chain(args).map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn every_child_gets_a_complete_command_line() {
        let config = UpConfig {
            proxy: "127.0.0.1:9000".parse().expect("address"),
            nodes: vec![
                "127.0.0.1:9001".parse().expect("address"),
                "127.0.0.1:9002".parse().expect("address"),
            ],
            data_dir: "my data".into(),
            keys: None,
        };
        let common = CommonArgs { config: Some("x.toml".into()), ..CommonArgs::default() };
        let commands = commands(&config, &common);
        let tags: Vec<_> = commands.iter().map(|(tag, addr, _)| format!("{tag} {addr}")).collect();
        assert_eq!(tags, ["node-0 127.0.0.1:9001", "node-1 127.0.0.1:9002", "proxy 127.0.0.1:9000"]);
        for (_, _, args) in &commands {
            let line = [OsString::from("chatchain")].into_iter().chain(args.iter().cloned());
            cli::Cli::try_parse_from(line).expect("the children understand their command lines");
        }
        let node = shell_line(&commands[1].2);
        assert!(
            node.ends_with(
                " node --node-id 1 --listen 127.0.0.1:9002 --peers 127.0.0.1:9001 --data-dir 'my data' --config x.toml"
            ),
            "{node}"
        );
    }

    #[test]
    fn a_network_of_one_has_no_peers() {
        let addr = |text: &str| text.parse().expect("address");
        let config =
            UpConfig { proxy: addr("a:1"), nodes: vec![addr("a:2")], data_dir: "d".into(), keys: None };
        let line = shell_line(&commands(&config, &CommonArgs::default())[0].2);
        assert!(line.contains("--peers '' "), "{line}");
    }
}
