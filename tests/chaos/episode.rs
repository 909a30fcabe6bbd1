//! One episode: a network with clients and readers, the faults of its plan, a calm phase, and the verdict.
//!
//! After a violation, all attempts and listings are written to the episode's directory for a later analysis.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::client::{Client, Server};
use crate::faults::{Faults, all_equal, ask};
use crate::history::History;
use crate::judge::{Listed, Verdict, Violation, ViolationKind, judge};
use crate::pace;
use crate::processes::Processes;
use crate::reader;
use crate::schedule::{Kind, Need, Plan};
use crate::support::network::Network;

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const CONVERGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit for a final listing.
const LISTING_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for a final listing if the nodes have not converged.
const LISTING_TIMEOUT_SHORT: Duration = Duration::from_secs(3);
/// Interval at which ended processes are restarted, as a service manager does.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const READERS: u64 = 2;
/// Clients continue to send for this long after the faults.
const CALM_SENDING: Duration = Duration::from_secs(1);

/// The result of an episode.
pub struct Outcome {
    pub verdict: Verdict,
    pub faults: BTreeMap<Kind, u32>,
    pub skipped: Vec<String>,
    /// Time from the last send until all nodes reported convergence. None if they did not in time.
    pub converged_after: Option<Duration>,
    /// The staleness of each complete listing, in milliseconds.
    pub stale: Vec<u64>,
}

/// Runs a plan in this directory.
pub fn run(
    plan: &Plan,
    dir: &Path,
    net: Option<Network>,
    can: &dyn Fn(Need) -> bool,
) -> Result<Outcome, String> {
    let mut processes =
        Processes::new(dir, plan.nodes, net).map_err(|e| format!("{}: {e}", dir.display()))?;
    if let Some(node) = plan.small_disk.filter(|_| can(Need::Mounts)) {
        processes.mount(node)?;
    }
    processes.start_all();
    processes.start_proxy();
    let servers = servers(&processes);
    let ready = |server: &Server| pace::within(READY_TIMEOUT, || ask(server.addr, "/readyz"));
    if !servers.iter().all(|server| ready(server).is_some()) {
        return Err("a process did not become ready".into());
    }
    // The last client number is used for the probes.
    let history = History::new(plan.clients + 1);
    let prober = u16::try_from(plan.clients).expect("few");
    let mut faults = Faults::new(processes, &history, plan.seed, prober, can);
    std::thread::scope(|scope| {
        for i in 0..plan.clients {
            let client = Client::new(i, plan.clients, plan.seed, &history, &servers);
            scope.spawn(move || client.run());
        }
        for i in 0..READERS {
            let (history, servers) = (&history, &servers);
            scope.spawn(move || reader::run(i, plan.seed, history, servers));
        }
        // Clients and readers must end even if this thread panics.
        let _end = EndOnDrop(&history);
        faults.run(&plan.steps);
        pace::pause_until(history.began() + plan.calm);
        faults.end_all_faults(plan.nodes);
        pace::pause_until(Instant::now() + CALM_SENDING);
    });
    if pace::is_interrupted() {
        return Err("interrupted".into());
    }
    Ok(conclude(faults, &history, dir))
}

struct EndOnDrop<'a>(&'a History);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// All servers, the proxy first.
fn servers(processes: &Processes) -> Vec<Server> {
    let nodes = processes.nodes.iter().enumerate().map(|(i, node)| Server { node: Some(i), addr: node.addr });
    [Server { node: None, addr: processes.proxy_addr() }].into_iter().chain(nodes).collect()
}

fn conclude(mut faults: Faults, history: &History, dir: &Path) -> Outcome {
    let began = Instant::now();
    let mut started = began;
    let converged = pace::within(CONVERGE_TIMEOUT, || {
        faults.check_ended();
        if started.elapsed() > RESTART_PAUSE {
            faults.processes.start_all();
            started = Instant::now();
        }
        is_converged(&faults).then(|| began.elapsed())
    });
    let mut findings = history.findings();
    if converged.is_none() {
        let says =
            |server: &Server| format!("{:?}", ask(server.addr, "/nodes").map(|status| status.to_string()));
        let says: Vec<_> = servers(&faults.processes).iter().map(says).collect();
        let detail = format!("not converged after {CONVERGE_TIMEOUT:?}: {}", says.join("; "));
        findings.push(Violation::new(ViolationKind::Contract, detail));
    }
    let mut listings = Vec::new();
    let mut bytes = Vec::new();
    let patience = if converged.is_some() { LISTING_TIMEOUT } else { LISTING_TIMEOUT_SHORT };
    for server in servers(&faults.processes) {
        let name = server.node.map_or("proxy".to_owned(), |node| format!("node {node}"));
        match last_listing(server, patience) {
            Ok((messages, raw)) => {
                listings.push((name, messages));
                bytes.push(raw);
            }
            Err(why) => {
                findings.push(Violation::new(
                    ViolationKind::Contract,
                    format!("{name} gives no final listing: {why}"),
                ));
            }
        }
    }
    let mut verdict = history.show(|attempts| judge(attempts, &listings, &faults.losses));
    for (i, pair) in bytes.windows(2).enumerate().filter(|(_, pair)| pair[0] != pair[1]) {
        let detail = format!(
            "{} ({} bytes), {} ({} bytes)",
            listings[i].0,
            pair[0].len(),
            listings[i + 1].0,
            pair[1].len()
        );
        verdict.violations.push(Violation::new(ViolationKind::ListingsDiffer, detail));
    }
    verdict.violations.splice(0..0, findings);
    if !verdict.violations.is_empty()
        && let Err(e) = write_down(dir, history, &verdict, &listings, &bytes, &faults)
    {
        verdict.violations.push(Violation::new(ViolationKind::Contract, format!("{}: {e}", dir.display())));
    }
    let Faults { done, skipped, .. } = faults;
    Outcome { verdict, faults: done, skipped, converged_after: converged, stale: history.stale() }
}

/// Whether all nodes report the same digest, and each reports that the network is converged.
fn is_converged(faults: &Faults) -> bool {
    let agree =
        |node: &crate::processes::Node| ask(node.addr, "/network").is_some_and(|n| n["converged"] == true);
    faults.digests().is_some_and(|digests| all_equal(&digests)) && faults.processes.nodes.iter().all(agree)
}

fn last_listing(server: Server, patience: Duration) -> Result<(Vec<Listed>, Vec<u8>), String> {
    let mut last = String::new();
    let reading = pace::within(patience, || match reader::read(server.addr, "") {
        Ok(reading) if reading.whole => Some(reading),
        Ok(_) => {
            last = "the listing is truncated".into();
            None
        }
        Err(e) => {
            last = e.to_string();
            None
        }
    });
    reading.map(|reading| (reading.messages, reading.bytes)).ok_or(last)
}

fn write_down(
    dir: &Path,
    history: &History,
    verdict: &Verdict,
    listings: &[(String, Vec<Listed>)],
    bytes: &[Vec<u8>],
    faults: &Faults,
) -> io::Result<()> {
    let mut lines = String::new();
    history.show(|attempts| {
        for attempt in attempts.iter().flat_map(|list| list.iter()) {
            lines += &serde_json::to_string(attempt).expect("plain fields");
            lines.push('\n');
        }
    });
    fs::write(dir.join("attempts.ndjson"), lines)?;
    for ((name, _), bytes) in listings.iter().zip(bytes) {
        fs::write(dir.join(format!("listing {name}.ndjson")), bytes)?;
    }
    let mut report = String::new();
    for violation in &verdict.violations {
        let _ = writeln!(report, "{violation}");
    }
    for loss in &faults.losses {
        let _ = writeln!(report, "loss at {} ms: nodes {:?}; {} kept", loss.at, loss.nodes, loss.kept.len());
    }
    for line in &faults.skipped {
        let _ = writeln!(report, "skipped: {line}");
    }
    fs::write(dir.join("report.txt"), report)
}
