//! One episode: a network, its clients and readers, the faults of its plan, the calm, and the judgement.
//!
//! Everything that was sent and listed is written into the episode's directory when something is wrong, so that it can
//! be looked at later.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::client::{Client, Door};
use crate::faults::{Faults, all_equal, ask};
use crate::history::History;
use crate::judge::{Listed, Verdict, Violation, Wrong, judge};
use crate::pace;
use crate::reader;
use crate::schedule::{Kind, Need, Plan};
use crate::site::Site;
use crate::support::network::Network;

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const CONVERGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a last listing may be tried for.
const LISTING_TIMEOUT: Duration = Duration::from_secs(30);
/// The same where nodes are known to be in trouble.
const LISTING_TIMEOUT_SHORT: Duration = Duration::from_secs(3);
/// What ends by itself is started again so often, as a service manager does.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const READERS: u64 = 2;
/// After the faults, clients go on sending for so long.
const CALM_SENDING: Duration = Duration::from_secs(1);

/// What an episode came to.
pub struct Outcome {
    pub verdict: Verdict,
    pub faults: BTreeMap<Kind, u32>,
    pub passed_over: Vec<String>,
    /// From the end of sending until all said converged; None: not in time.
    pub converged_after: Option<Duration>,
    /// In milliseconds, one of each whole listing that was read.
    pub stale: Vec<u64>,
}

/// Runs a plan in a directory of its own.
pub fn run(
    plan: &Plan,
    dir: &Path,
    net: Option<Network>,
    can: &dyn Fn(Need) -> bool,
) -> Result<Outcome, String> {
    let mut site = Site::new(dir, plan.nodes, net).map_err(|e| format!("{}: {e}", dir.display()))?;
    if let Some(node) = plan.small_disk.filter(|_| can(Need::Mounts)) {
        site.mount(node)?;
    }
    site.start_all();
    site.start_proxy();
    let doors = doors(&site);
    let ready = |door: &Door| pace::within(READY_TIMEOUT, || ask(door.addr, "/readyz"));
    if !doors.iter().all(|door| ready(door).is_some()) {
        return Err("a process did not get ready".into());
    }
    // One more than there are: the probes.
    let history = History::new(plan.clients + 1);
    let prober = u16::try_from(plan.clients).expect("few");
    let mut faults = Faults::new(site, &history, plan.seed, prober, can);
    std::thread::scope(|scope| {
        for i in 0..plan.clients {
            let client = Client::new(i, plan.clients, plan.seed, &history, &doors);
            scope.spawn(move || client.run());
        }
        for i in 0..READERS {
            let (history, doors) = (&history, &doors);
            scope.spawn(move || reader::run(i, plan.seed, history, doors));
        }
        // However this ends, the others must end as well.
        let _end = End(&history);
        faults.run(&plan.steps);
        pace::rest_until(history.began() + plan.calm);
        faults.calm_down(plan.nodes);
        pace::rest_until(Instant::now() + CALM_SENDING);
    });
    if pace::is_interrupted() {
        return Err("interrupted".into());
    }
    Ok(conclude(faults, &history, dir))
}

struct End<'a>(&'a History);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The proxy is the first.
fn doors(site: &Site) -> Vec<Door> {
    let nodes = site.nodes.iter().enumerate().map(|(i, node)| Door { node: Some(i), addr: node.addr });
    [Door { node: None, addr: site.proxy_addr() }].into_iter().chain(nodes).collect()
}

fn conclude(mut faults: Faults, history: &History, dir: &Path) -> Outcome {
    let began = Instant::now();
    let mut started = began;
    let converged = pace::within(CONVERGE_TIMEOUT, || {
        faults.look_for_ended();
        if started.elapsed() > RESTART_PAUSE {
            faults.site.start_all();
            started = Instant::now();
        }
        is_converged(&faults).then(|| began.elapsed())
    });
    let mut findings = history.findings();
    if converged.is_none() {
        let says = |door: &Door| format!("{:?}", ask(door.addr, "/nodes").map(|status| status.to_string()));
        let says: Vec<_> = doors(&faults.site).iter().map(says).collect();
        let detail = format!("not converged after {CONVERGE_TIMEOUT:?}: {}", says.join("; "));
        findings.push(Violation::new(Wrong::Conduct, detail));
    }
    let mut listings = Vec::new();
    let mut bytes = Vec::new();
    let patience = if converged.is_some() { LISTING_TIMEOUT } else { LISTING_TIMEOUT_SHORT };
    for door in doors(&faults.site) {
        let name = door.node.map_or("proxy".to_owned(), |node| format!("node {node}"));
        match last_listing(door, patience) {
            Ok((messages, raw)) => {
                listings.push((name, messages));
                bytes.push(raw);
            }
            Err(why) => {
                findings.push(Violation::new(Wrong::Conduct, format!("{name} gives no last listing: {why}")));
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
        verdict.violations.push(Violation::new(Wrong::Unequal, detail));
    }
    verdict.violations.splice(0..0, findings);
    if !verdict.violations.is_empty()
        && let Err(e) = write_down(dir, history, &verdict, &listings, &bytes, &faults)
    {
        verdict.violations.push(Violation::new(Wrong::Conduct, format!("{}: {e}", dir.display())));
    }
    let Faults { done, passed_over, .. } = faults;
    Outcome { verdict, faults: done, passed_over, converged_after: converged, stale: history.stale() }
}

/// All nodes answer with one digest, and each says that the network is converged.
fn is_converged(faults: &Faults) -> bool {
    let agree = |node: &crate::site::Node| ask(node.addr, "/network").is_some_and(|n| n["converged"] == true);
    faults.digests().is_some_and(|digests| all_equal(&digests)) && faults.site.nodes.iter().all(agree)
}

fn last_listing(door: Door, patience: Duration) -> Result<(Vec<Listed>, Vec<u8>), String> {
    let mut last = String::new();
    let reading = pace::within(patience, || match reader::read(door.addr, "") {
        Ok(reading) if reading.whole => Some(reading),
        Ok(_) => {
            last = "it broke off".into();
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
    for line in &faults.passed_over {
        let _ = writeln!(report, "passed over: {line}");
    }
    fs::write(dir.join("report.txt"), report)
}
