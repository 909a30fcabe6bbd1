//! Owns what a node does for its store in the background: the scrub, cutting logs at entries that no reachable peer has, and
//! marking the store as healthy.
//!
//! The scrub reads slowly, in small steps, so that requests are not delayed. The damage it finds is requested from peers
//! with the next exchanges. What is done about damage is decided in `replica`.

use std::time::{Duration, Instant};

use super::{Node, blocking, now_ms};
use crate::api::time::Time;
use crate::replica::scrub::Scrub;
use crate::replica::write_ops::Maintenance;

/// Bytes of records that the scrub reads per second, at most.
const SCRUB_BYTES_PER_SECOND: u32 = 4 << 20;
/// The first scrub starts this long after the store was opened, or after one scrub interval if that is shorter.
const FIRST_SCRUB_AFTER: Duration = Duration::from_secs(60);
/// Poll interval for damage that cannot be repaired, and for the start of the next round.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum uptime after which an unclean exit no longer counts against the store. Damage that ends the process mostly does
/// so with the first write to either file, and the scrub reads 2 GB in this time. A longer time would count more kills,
/// which say nothing about the store.
const HEALTHY_AFTER: Duration = Duration::from_secs(10 * 60);

/// Scrubs and cuts until the node ends, or until the store must not be trusted any more.
pub async fn run(node: Node) {
    let interval = node.config.scrub_interval;
    let (mut scrub, mut due) = (Scrub::default(), Instant::now() + interval.min(FIRST_SCRUB_AFTER));
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        cut_unrepairable(&node).await;
        if Instant::now() < due {
            continue;
        }
        due = Instant::now() + interval;
        if let Err(why) = scrub_round(&node, &mut scrub).await {
            node.writer.fault.raise(why);
            return; // the node opens its store again
        }
    }
}

/// Marks the store as healthy after [`HEALTHY_AFTER`], once it was written to. Then it only waits: a task that returns
/// ends the node.
pub async fn mark_healthy_later(node: Node) {
    tokio::time::sleep(HEALTHY_AFTER).await;
    while !node.store.crash_count().has_written_both() {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let store = node.store.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || store.crash_count().mark_healthy()).await {
        tracing::error!(%error, "marking the store as healthy");
    }
    std::future::pending::<()>().await;
}

/// Reads every entry once. An error if the store must not be trusted any more.
async fn scrub_round(node: &Node, scrub: &mut Scrub) -> Result<(), String> {
    let mut last_poll = Instant::now();
    loop {
        let (store, logs, mut stepped) = (node.store.clone(), node.logs(), scrub.clone());
        let stepping = move || stepped.step(&store, &logs).map(|step| (stepped, step));
        let (stepped, step) = blocking(stepping).await?;
        *scrub = stepped;
        if let Some((origin, seq)) = step.index_lacks {
            tracing::error!(%origin, seq, "the index lacks an entry");
            node.store.index().invalidate();
            return Err("the index is damaged".into());
        }
        for maintenance in step.maintenance {
            node.writer.maintain(maintenance).await;
        }
        node.cluster.scrub().checked = scrub.checked();
        if step.round_ends {
            let mut progress = node.cluster.scrub();
            progress.rounds += 1;
            progress.last_finished = Some(Time(now_ms()));
            return Ok(());
        }
        if last_poll.elapsed() >= POLL_INTERVAL {
            cut_unrepairable(node).await;
            last_poll = Instant::now();
        }
        let bytes = u32::try_from(step.bytes).unwrap_or(u32::MAX);
        let seconds = f64::from(bytes) / f64::from(SCRUB_BYTES_PER_SECOND);
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }
}

/// Cuts logs at entries that are damaged here and that no peer has.
async fn cut_unrepairable(node: &Node) {
    for (origin, seq) in node.cluster.unrepairable(node) {
        tracing::error!(%origin, seq, "an entry is damaged, and no peer has it: the log is cut there");
        node.cluster
            .incidents
            .add(format!("entry {seq} of log {origin} was damaged here, and no peer had it: it is lost"));
        node.writer.maintain(Maintenance::Cut(origin, seq)).await;
    }
}
