//! What `node` and `proxy` share as processes: where they listen and when they stop.
//!
//! The servers themselves take a bound listener and a stop token; signals, parents and the sentences about a port
//! in use are known here only.

use std::{io, process, thread};

use color_eyre::eyre::{Report, Result, WrapErr, eyre};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Exit;
use crate::api::address::Addr;

/// Listens there. Gives also the address with the port that the system chose, if it was asked to.
pub async fn bind(addr: &Addr) -> Result<(TcpListener, Addr)> {
    let bound = TcpListener::bind((addr.host(), addr.port())).await;
    let listener = bound.map_err(|error| {
        eyre!("cannot listen on {addr}: {}", why_not(&error, "choose another address with --listen"))
    })?;
    let port = listener.local_addr().map_or(addr.port(), |bound| bound.port());
    Ok((listener, addr.clone().with_port(port)))
}

/// Why one cannot listen there and what to do about it.
pub fn why_not(error: &io::Error, remedy: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("another process uses this port; stop that one or {remedy}"),
        io::ErrorKind::AddrNotAvailable => format!("this machine has no such address; {remedy}"),
        io::ErrorKind::PermissionDenied => {
            format!("this user may not (ports below 1024 need more rights); {remedy}")
        }
        _ => format!("{error}; {remedy}"),
    }
}

/// SIGINT and SIGTERM.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// From now on these signals no longer end the process by themselves.
    pub fn catch() -> Result<Self> {
        let catch = |kind| signal(kind).wrap_err("cannot catch signals");
        Ok(StopSignals {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
        })
    }

    /// The next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Runs a server until it ends. The first signal asks it to stop in order, a second one ends the process.
pub async fn until_stopped<E>(
    exit_with_parent: bool,
    server: impl AsyncFnOnce(CancellationToken) -> Result<(), E>,
) -> Result<Exit>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let mut signals = StopSignals::catch()?;
    let stop = CancellationToken::new();
    if exit_with_parent {
        stop_with_parent(stop.clone())?;
    }
    let mut server = std::pin::pin!(server(stop.clone()));
    loop {
        tokio::select! {
            ended = &mut server => return ended.map(|()| Exit::Done).map_err(Report::from),
            () = signals.next() => {
                if stop.is_cancelled() {
                    process::exit(Exit::Failure as i32); // nothing acknowledged is lost by that
                }
                info!("stopping; a second signal stops at once");
                stop.cancel();
            }
        }
    }
}

/// Stops when standard input ends. The parent holds its other end, which the kernel closes however the parent ends.
fn stop_with_parent(stop: CancellationToken) -> Result<()> {
    let wait = move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        stop.cancel();
    };
    // A thread of its own, which nobody joins: it may wait in `read` for ever, and the runtime would wait for it.
    thread::Builder::new().name("parent".into()).spawn(wait).wrap_err("cannot start a thread")?;
    Ok(())
}
