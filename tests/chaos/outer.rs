//! The outer process: creates the network, runs this program again inside it, and always removes the network.
//!
//! On Ctrl-C or SIGTERM the inner process ends its episode and its processes, and the outer one waits for that. The
//! next run removes the leftovers of a run that was killed.

use std::process::{Command, ExitCode};
use std::time::Duration;

use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::schedule::NODES_MAX;
use crate::support::network::{Guard, NAME_VARIABLE, Network};
use crate::{pace, say};

/// Set for the inner process.
pub const INSIDE_VARIABLE: &str = "CHATCHAIN_CHAOS_INSIDE";
/// An interrupted inner process is killed after this.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs this program inside new network namespaces if they can be created, else in the current network.
pub fn run() -> ExitCode {
    let net = match Network::create(NODES_MAX) {
        Ok(net) => Some(net),
        Err(why) => {
            say(&format!("chaos: no network namespaces, so no partitions: {why}"));
            None
        }
    };
    let code = supervise(net.as_ref().map(Guard::network));
    drop(net);
    code.unwrap_or_else(|why| {
        say(&format!("chaos: {why}"));
        ExitCode::FAILURE
    })
}

fn supervise(net: Option<&Network>) -> Result<ExitCode, String> {
    let program = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let mut inner = Command::new(program);
    inner.args(std::env::args_os().skip(1)).env(INSIDE_VARIABLE, "1");
    let inner = match net {
        Some(net) => {
            inner.env(NAME_VARIABLE, net.name());
            net.at_clients(&inner)
        }
        None => inner,
    };
    let runtime = runtime().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let mut interrupts = Interrupts::listen().map_err(|e| e.to_string())?;
        let mut inner =
            tokio::process::Command::from(inner).kill_on_drop(true).spawn().map_err(|e| e.to_string())?;
        let status = tokio::select! {
            status = inner.wait() => status,
            () = interrupts.next() => {
                let pid = inner.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
                if let Some(pid) = pid {
                    let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
                let ended = tokio::time::timeout(END_TIMEOUT, inner.wait()).await;
                ended.map_err(|_| "the inner process did not end when it was interrupted")?
            }
        };
        let good = status.map_err(|e| e.to_string())?.success();
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// From now on, the first SIGINT or SIGTERM ends the run cleanly.
pub fn listen_for_interruption() {
    std::thread::spawn(|| {
        let runtime = runtime().expect("a runtime");
        runtime.block_on(async {
            Interrupts::listen().expect("signal handlers").next().await;
            pace::interrupt();
        });
    });
}

fn runtime() -> std::io::Result<runtime::Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}

struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupts {
    fn listen() -> std::io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Interrupts { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
