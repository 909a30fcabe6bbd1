//! `chatchain node` and `chatchain proxy`: one server as a process.
//!
//! The servers themselves take a bound listener and a stop token. Only this file knows signals, the parent process, and
//! the sentences about an address that cannot be used.

use std::{collections::BTreeSet, fs, io, net::SocketAddr, process, thread};

use color_eyre::eyre::{Result, WrapErr, eyre};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Context, Exit};
use crate::{api::address::Addr, cli, node, proxy};

const LISTEN_REMEDY: &str = "choose another address with --listen";

pub async fn run_node(args: &cli::NodeArgs, context: &Context<'_>) -> Result<Exit> {
    let mut config = context.sources.node(args)?;
    let (listener, listen) = bind(&config.listen, LISTEN_REMEDY).await?;
    if config.advertise.port() == 0 {
        config.advertise = config.advertise.with_port(listen.port());
    }
    config.listen = listen;
    run_until_stopped(&args.server, async |stop| Ok(node::run(config, listener, stop).await?)).await
}

pub async fn run_proxy(args: &cli::ProxyArgs, context: &Context<'_>) -> Result<Exit> {
    let mut config = context.sources.proxy(args)?;
    let (listener, listen) = bind(&config.listen, LISTEN_REMEDY).await?;
    config.listen = listen;
    run_until_stopped(&args.server, async |stop| Ok(proxy::run(config, listener, stop).await?)).await
}

/// Listens on an address. Port 0 asks the system for any free port; the address that is returned has the port it chose.
/// `remedy` is what a user can do if that fails.
pub async fn bind(addr: &Addr, remedy: &str) -> Result<(TcpListener, Addr)> {
    let bound = TcpListener::bind((addr.host(), addr.port())).await;
    let listener = bound.map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "another process uses this port; stop that process or",
            io::ErrorKind::AddrNotAvailable => "this machine has no such address;",
            io::ErrorKind::PermissionDenied => {
                "this user may not listen there (ports below 1024 need more rights);"
            }
            _ => &format!("{error};"),
        };
        eyre!("cannot listen on {addr}: {why} {remedy}")
    })?;
    let bound = listener.local_addr().wrap_err("cannot tell which address this server listens on")?;
    warn_of_other_addresses(addr, bound).await;
    let port = bound.port();
    Ok((listener, addr.clone().with_port(port)))
}

/// A name may have several addresses, as `localhost` often has; a server listens on the first of them that is free.
async fn warn_of_other_addresses(addr: &Addr, bound: SocketAddr) {
    let resolved = tokio::net::lookup_host((addr.host(), bound.port())).await.into_iter().flatten();
    let others: BTreeSet<_> =
        resolved.filter(|other| *other != bound).map(|other| other.to_string()).collect();
    if !others.is_empty() {
        let others = others.into_iter().collect::<Vec<_>>().join(", ");
        warn!("{addr} means {bound} here: this server listens there, and not on {others}");
    }
}

/// SIGINT, SIGTERM and SIGHUP: Ctrl-C, a service manager, and a terminal that is closed.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` where SIGHUP was ignored at the start, as `nohup` does: it stays ignored.
    hang_up: Option<Signal>,
}

impl StopSignals {
    /// From now on these signals no longer end the process by themselves.
    pub fn catch() -> Result<Self> {
        let catch = |kind| signal(kind).wrap_err("cannot catch signals");
        Ok(StopSignals {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hang_up: if is_hang_up_ignored() { None } else { Some(catch(SignalKind::hangup())?) },
        })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            Some(()) = async { self.hang_up.as_mut()?.recv().await } => {}
        }
    }
}

/// Whether SIGHUP is ignored. Linux lists the ignored signals in a mask: signal N is bit N - 1. Elsewhere it is not known.
fn is_hang_up_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (SignalKind::hangup().as_raw_value() - 1) & 1 == 1
}

/// Runs a server until it ends. The first signal asks it to stop in order; a second signal ends the process at once.
async fn run_until_stopped(
    args: &cli::ServerArgs,
    server: impl AsyncFnOnce(CancellationToken) -> Result<()>,
) -> Result<Exit> {
    raise_descriptor_limit();
    let mut signals = StopSignals::catch()?;
    let stop = CancellationToken::new();
    if args.exit_with_parent {
        stop_with_parent(stop.clone())?;
    }
    let mut server = std::pin::pin!(server(stop.clone()));
    loop {
        tokio::select! {
            ended = &mut server => return ended.map(|()| Exit::Done),
            () = signals.next() => {
                if stop.is_cancelled() {
                    process::exit(Exit::Failure as i32); // everything acknowledged is on disk already
                }
                info!("stopping; a second signal stops at once");
                stop.cancel();
            }
        }
    }
}

/// Raises the soft limit of file descriptors to the hard one. The soft limit is often 1,024, for old programs that call
/// `select`; a server needs one descriptor for each connection.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        warn!(%error, current = limit.current, "the limit of file descriptors cannot be raised");
    }
}

/// Cancels `stop` when standard input ends. The parent process holds the other end of that pipe, and the kernel closes
/// it however the parent ends.
fn stop_with_parent(stop: CancellationToken) -> Result<()> {
    let wait = move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        stop.cancel();
    };
    // A thread that is never joined: it may wait in `read` for ever, and the runtime would wait for a task of its own.
    thread::Builder::new().name("parent".into()).spawn(wait).wrap_err("cannot start a thread")?;
    Ok(())
}
