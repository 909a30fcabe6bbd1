//! Owns the start of the runtime, after a check that the system gives the threads and descriptors that it needs.
//!
//! Libraries below panic where they get none, or wait for a thread that never starts. So the program takes as many as
//! a command needs at its start, and ends with a sentence if it cannot have them.

use std::{io, panic::PanicHookInfo, process, sync::mpsc, thread};

use color_eyre::eyre::{Result, WrapErr};
use rustix::process::Signal;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

use super::Exit;
use crate::output::eprint_line;

/// Free file descriptors that a command needs: for its timer, its signals, its files and its connections. With fewer it
/// ends.
const DESCRIPTORS_MIN: usize = 16;
/// Threads besides the workers: for files, names, standard input, and for the writer and the indexer of a node. With
/// fewer the program ends.
const FURTHER_THREADS: usize = 6;
/// A client waits more than it works.
const CLIENT_WORKERS: usize = 2;

/// Starts the runtime of a server, with a worker per core, or of a client.
pub fn runtime(is_server: bool) -> Result<Runtime> {
    let cores = thread::available_parallelism().map_or(1, Into::into);
    let workers = if is_server { cores } else { cores.min(CLIENT_WORKERS) };
    check_descriptors(DESCRIPTORS_MIN).wrap_err("this process may not open enough files (`ulimit -n`)")?;
    let threads = workers + FURTHER_THREADS;
    check_threads(threads).wrap_err_with(|| {
        format!("the system gives no {threads} threads to this process (`ulimit -u`, `ulimit -v`)")
    })?;
    let runtime = Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let runtime = runtime.wrap_err("cannot start")?;
    {
        // A file that may not grow (`ulimit -f`) would end the process by this signal; caught, it is an error of a write.
        let _entered = runtime.enter();
        let _caught = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).wrap_err("cannot catch signals")?;
    }
    Ok(runtime)
}

/// Whether a panic is that of tokio when the system gives it no thread: another process may have taken the threads since
/// the check. The text is all that tells it from another panic.
pub fn is_thread_missing(panic: &PanicHookInfo<'_>) -> bool {
    panic
        .payload()
        .downcast_ref::<String>()
        .is_some_and(|why| why.starts_with("OS can't spawn worker thread"))
}

/// Ends the process with a sentence. A panic would go on, and tokio would wait for ever for the threads that it did start.
pub fn exit_without_threads() -> ! {
    eprint_line("error: the system gives this process too few threads (`ulimit -u`, `ulimit -v`)");
    process::exit(Exit::Failure as i32)
}

/// Opens this many descriptors at the same time: a pipe has two.
fn check_descriptors(count: usize) -> io::Result<()> {
    (0..count / 2).map(|_| io::pipe()).collect::<io::Result<Vec<_>>>().map(drop)
}

/// Starts this many threads that live at the same time.
fn check_threads(count: usize) -> io::Result<()> {
    let mut started = Vec::new();
    for _ in 0..count {
        let (end, ended) = mpsc::sync_channel::<()>(1);
        let thread = thread::Builder::new().spawn(move || ended.recv().is_ok())?;
        started.push((end, thread));
    }
    for (end, thread) in started {
        drop(end);
        let _ended = thread.join();
    }
    Ok(())
}
