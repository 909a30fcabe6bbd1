//! Owns what a node does for its store in the background: the scrub, cutting logs at entries that no member
//! has, and marking the store as healthy.
//!
//! The scrub reads slowly, in small steps, so that requests are not delayed. The damage it finds is requested from
//! peers with the next exchanges. What is done about damage is decided in `replica`.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{Node, blocking, now_ms};
use crate::api::time::Time;
use crate::chain::ids::Origin;
use crate::chain::vector::Vector;
use crate::replica::scrub::Scrub;
use crate::replica::write_ops::Maintenance;
use crate::store::StoreError;

/// Bytes of records that the scrub reads per second, at most.
const SCRUB_BYTES_PER_SECOND: u32 = 4 << 20;
/// The first scrub starts this long after the store was opened, or after one scrub interval if that is shorter.
const FIRST_SCRUB_AFTER: Duration = Duration::from_secs(60);
/// Poll interval for damage that cannot be repaired, and for the first write to the store.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum uptime after which an unclean exit no longer counts against the store. Damage that ends the process mostly
/// does so with the first write to either file, and the scrub reads 2 GB in this time. A longer time would count more
/// kills, which say nothing about the store.
const HEALTHY_AFTER: Duration = Duration::from_secs(10 * 60);

/// Does all of it until the store is closed.
pub async fn run(node: Node) {
    tokio::join!(scrub(&node), give_up_overdue_repairs(&node), mark_healthy(&node));
}

/// Scrubs until the store must not be trusted any more; then the node opens it again.
async fn scrub(node: &Node) {
    let (interval, mut scrub) = (node.config.scrub_interval, Scrub::default());
    let mut due = Instant::now() + interval.min(FIRST_SCRUB_AFTER);
    loop {
        sleep_until(due).await;
        due = Instant::now() + interval;
        if let Err(why) = scrub_round(node, &mut scrub).await {
            return node.writer.fault.raise(why);
        }
    }
}

/// Marks the store as healthy after [`HEALTHY_AFTER`], once it was written to.
async fn mark_healthy(node: &Node) {
    sleep(HEALTHY_AFTER).await;
    while !node.store.crash_count().has_written_both() {
        sleep(POLL_INTERVAL).await;
    }
    let store = node.store.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || store.crash_count().mark_healthy()).await {
        tracing::error!(%error, "marking the store as healthy");
    }
}

/// Reads every entry once. An error if the store must not be trusted any more.
async fn scrub_round(node: &Node, scrub: &mut Scrub) -> Result<(), String> {
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
        let bytes = u32::try_from(step.bytes).unwrap_or(u32::MAX);
        sleep(Duration::from_secs_f64(f64::from(bytes) / f64::from(SCRUB_BYTES_PER_SECOND))).await;
    }
}

/// The logs whose cut was asked for because an entry is given up.
#[derive(Debug, Default)]
struct GivenUp(BTreeSet<(Origin, u64)>);

impl GivenUp {
    /// The cuts that are committed now: their entries are lost. `asked`: those that are asked for now. One that is not
    /// asked for any more is forgotten: its entry came back.
    fn committed(&mut self, asked: &BTreeSet<(Origin, u64)>, vector: &Vector) -> Vec<(Origin, u64)> {
        self.0.extend(asked);
        let cut_of = |origin| vector.cut_of(origin);
        let lost = self.0.iter().filter(|(origin, seq)| cut_of(*origin) == Some(*seq)).copied().collect();
        self.0.retain(|(origin, seq)| {
            asked.contains(&(*origin, *seq)) && cut_of(*origin).is_none_or(|cut| cut > *seq)
        });
        lost
    }
}

/// Abandons the own log while an entry of it is damaged, and cuts logs at damaged entries that no member has.
async fn give_up_overdue_repairs(node: &Node) {
    let (mut given_up, mut seen) = (GivenUp::default(), BTreeSet::new());
    loop {
        sleep(POLL_INTERVAL).await;
        let mut asked = BTreeSet::new();
        for maintenance in node.cluster.overdue_repairs(node) {
            if let Maintenance::Cut(origin, seq) = maintenance {
                asked.insert((origin, seq));
            }
            node.writer.maintain(maintenance).await;
        }
        for (origin, seq) in given_up.committed(&asked, node.logs().vector()) {
            node.cluster.incidents.add_lost(origin, seq);
            seen.clear(); // the branch that the entry is in may have been here before the cut
        }
        withdraw_losses(node, &mut seen).await;
    }
}

/// Withdraws the warnings about lost entries that came back: they begin a log that was not `seen` before.
async fn withdraw_losses(node: &Node, seen: &mut BTreeSet<Origin>) {
    if !node.cluster.incidents.has_lost() {
        return;
    }
    let logs = node.logs();
    let new: Vec<Origin> =
        logs.vector().iter().map(|(origin, _)| origin).filter(|origin| !seen.contains(origin)).collect();
    let (store, incidents, origins) = (node.store.clone(), node.cluster.incidents.clone(), new.clone());
    let reading = move || {
        let mut reader = store.log().read()?;
        for origin in origins {
            reader.peek(origin, 1)?.iter().for_each(|first| incidents.on_log(first));
        }
        Ok::<_, StoreError>(())
    };
    if !new.is_empty() && blocking(reading).await.is_ok() {
        seen.extend(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_lost_once_its_log_is_cut_there() {
        let (mut given_up, mut vector) = (GivenUp::default(), Vector::default());
        let (a, b, c) = (Origin([1; 16]), Origin([2; 16]), Origin([3; 16]));
        assert_eq!(given_up.committed(&[(a, 3), (b, 3), (c, 3)].into(), &vector), []);
        assert_eq!(given_up.committed(&[(a, 3), (c, 3)].into(), &vector), [], "entry 3 of b came back");
        vector.cut(a, 3, None);
        vector.cut(b, 3, None);
        vector.cut(c, 2, None);
        assert_eq!(given_up.committed(&BTreeSet::new(), &vector), [(a, 3)], "c was cut for another reason");
        assert_eq!(given_up.committed(&BTreeSet::new(), &vector), [], "it is said once");
    }
}
