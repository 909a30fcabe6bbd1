//! What `node` and `proxy` share as processes: the address they listen on and the signals that stop them.
//!
//! The servers themselves take a bound listener and a stop token. Only this file knows signals, the parent process, and the
//! sentences about an address that cannot be used.

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

/// Listens on an address. Port 0 asks the system for any free port; the address that is returned has the port it chose.
pub async fn bind(addr: &Addr) -> Result<(TcpListener, Addr)> {
    let bound = TcpListener::bind((addr.host(), addr.port())).await;
    let listener = bound.map_err(|error| {
        eyre!("cannot listen on {addr}: {}", listen_error(&error, "choose another address with --listen"))
    })?;
    let port = listener.local_addr().map_or(addr.port(), |bound| bound.port());
    Ok((listener, addr.clone().with_port(port)))
}

/// Why an address cannot be listened on, and what to do about it.
pub fn listen_error(error: &io::Error, remedy: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("another process uses this port; stop that process or {remedy}"),
        io::ErrorKind::AddrNotAvailable => format!("this machine has no such address; {remedy}"),
        io::ErrorKind::PermissionDenied => {
            format!("this user may not listen there (ports below 1024 need more rights); {remedy}")
        }
        _ => format!("{error}; {remedy}"),
    }
}

/// SIGINT and SIGTERM, as they arrive.
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

    /// Waits for the next of these signals.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Runs a server until it ends. The first signal asks it to stop in order; a second signal ends the process at once.
pub async fn run_until_stopped<E>(
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
                    process::exit(Exit::Failure as i32); // everything acknowledged is on disk already
                }
                info!("stopping; a second signal stops at once");
                stop.cancel();
            }
        }
    }
}

/// Cancels `stop` when standard input ends. The parent process holds the other end of that pipe, and the kernel closes it
/// however the parent ends.
fn stop_with_parent(stop: CancellationToken) -> Result<()> {
    let wait = move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        stop.cancel();
    };
    // A thread that is never joined: it may wait in `read` for ever, and the runtime would wait for a task of its own.
    thread::Builder::new().name("parent".into()).spawn(wait).wrap_err("cannot start a thread")?;
    Ok(())
}
