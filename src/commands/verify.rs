//! `chatchain verify`: checks every record of the stores on this machine that no node has open.
//!
//! Owns the words for the result; [`crate::store`] does the check. Nothing is repaired here: a node repairs its store
//! by itself, from the intact records of the file and from its peers.

use std::path::{Path, PathBuf};

use color_eyre::eyre::{Result, WrapErr, bail};
use serde::Serialize;

use super::{Context, Exit};
use crate::{
    cli::{self, OutputFormat},
    output::{Output, Row, Tone},
    store::{
        engine::catch_panic::becomes_error,
        recovery::verify::{self, BadEntry, Verified, VerifyReport},
    },
};

const HEADER: [&str; 9] =
    ["STORE", "STATE", "LOGS", "ENTRIES", "BYTES", "DAMAGED", "MISSING", "LOOSE", "UNREADABLE"];

/// The result for one store, as JSON shows it.
#[derive(Debug, Default, Serialize)]
struct Checked {
    store: PathBuf,
    /// The store was read, and nothing in it is damaged or missing.
    whole: bool,
    #[serde(flatten)]
    counts: Option<PrintedCounts>,
    first_bad: Option<PrintedBadEntry>,
    set_aside: Vec<PathBuf>,
    /// Why the store was not read.
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct PrintedCounts {
    logs: u64,
    entries: u64,
    bytes: u64,
    damaged: u64,
    missing: u64,
    loose: u64,
    unreadable: u64,
}

#[derive(Debug, Serialize)]
struct PrintedBadEntry {
    log: String,
    seq: u64,
    why: String,
}

pub async fn run(args: &cli::VerifyArgs, context: &Context<'_>) -> Result<Exit> {
    let output = context.output;
    let dir = context.sources.data_dir(args.data_dir.as_ref());
    if args.only_open {
        tokio::task::spawn_blocking(move || verify::open_log_only(&dir)).await??;
        return Ok(Exit::Done);
    }
    let check_all = move || -> Result<Vec<Checked>> {
        let found = verify::stores_in(&dir);
        let stores = found.wrap_err_with(|| format!("cannot look for stores in {}", dir.display()))?;
        if stores.is_empty() {
            bail!(
                "{} holds no store; name one, or the directory around them, with --data-dir DIR",
                dir.display()
            );
        }
        Ok(stores.iter().map(|store| check(store)).collect())
    };
    let stores = tokio::task::spawn_blocking(check_all).await??;
    match output.format {
        OutputFormat::Json | OutputFormat::Ndjson => output.json_list(&stores)?,
        OutputFormat::Table => {
            output.table(&HEADER, &stores.iter().map(row).collect::<Vec<_>>())?;
            let whole = stores.iter().filter(|store| store.whole).count();
            let tone = if whole == stores.len() { Tone::Good } else { Tone::Bad };
            output.summary(tone, &format!("{whole} of {} stores whole", stores.len()))?;
        }
    }
    for store in &stores {
        print_faults(store, output);
    }
    Ok(if stores.iter().all(|store| store.whole) { Exit::Done } else { Exit::Failure })
}

/// Whether a panic of this thread becomes an error: the storage engine panics on damage, and a damaged store is what
/// these commands are for.
pub fn panic_becomes_error() -> bool {
    becomes_error()
}

fn check(store: &Path) -> Checked {
    let checked = Checked { store: store.to_owned(), ..Checked::default() };
    match verify::verify(store) {
        Ok(Verified::Read(report)) => {
            let whole = report.is_whole();
            let VerifyReport { logs, entries, bytes, damaged, missing, detached, unreadable, .. } = report;
            let counts =
                PrintedCounts { logs, entries, bytes, damaged, missing, loose: detached, unreadable };
            let first_bad = report.first_bad.map(|BadEntry { origin, seq, why }| {
                let log = origin.to_string();
                PrintedBadEntry { log, seq, why }
            });
            Checked { whole, counts: Some(counts), first_bad, set_aside: report.set_aside, ..checked }
        }
        Ok(Verified::NotOpened { why, intact, unread_bytes }) => {
            let rest = if unread_bytes == 0 {
                format!(
                    "{intact} intact records are left in it: start the node, which sets the damaged file aside and \
                     salvages them"
                )
            } else {
                format!(
                    "the disk does not return {unread_bytes} bytes of it, and {intact} intact records are left in the rest: \
                     start the node, which tries for a while, then sets the file aside and salvages them"
                )
            };
            Checked { error: Some(format!("the log cannot be opened: {why}; {rest}")), ..checked }
        }
        Err(error) => Checked { error: Some(error.to_string()), ..checked },
    }
}

fn row(store: &Checked) -> Row {
    let (tone, state) = match (store.whole, &store.counts) {
        (true, Some(counts)) if counts.loose + counts.unreadable > 0 => (Tone::Doubtful, "whole"),
        (true, _) => (Tone::Good, "whole"),
        (false, Some(_)) => (Tone::Bad, "damaged"),
        (false, None) => (Tone::Bad, "not checked"),
    };
    let numbers = store.counts.as_ref().map(|c| {
        [c.logs, c.entries, c.bytes, c.damaged, c.missing, c.loose, c.unreadable].map(|n| n.to_string())
    });
    let mut cells = vec![store.store.display().to_string(), state.into()];
    cells.extend(numbers.unwrap_or_else(|| std::array::from_fn(|_| "-".into())));
    (tone, cells)
}

fn print_faults(store: &Checked, output: &Output) {
    let name = store.store.display();
    if let Some(error) = &store.error {
        output.error(&format!("{name}: {error}"));
    }
    if let Some(PrintedBadEntry { log, seq, why }) = &store.first_bad {
        output
            .error(&format!("{name}: the first damaged or missing entry is entry {seq} of log {log}: {why}"));
    }
    if let Some(counts) = store.counts.as_ref().filter(|counts| counts.loose > 0) {
        output.warn(&format!(
            "{name}: {} intact entries follow a gap: the entries before them were lost",
            counts.loose
        ));
    }
    for file in &store.set_aside {
        output
            .warn(&format!("{} is a damaged log that was salvaged; the file may be removed", file.display()));
    }
}
