//! Owns what a node does for its store by itself: the scrub, giving up what nobody has, and saying that the store is proven.
//!
//! One task, a small step at a time. It reads slowly, so that nobody else notices; what it finds damaged is asked of the
//! peers by the exchanges. Knows nothing of what is done about it: that is decided in `replica`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Node, now_ms};
use crate::api::network::ScrubStatus;
use crate::api::time::Time;
use crate::replica::scrub::{Scrub, ScrubStep};
use crate::replica::write_ops::Maintenance;
use crate::store::StoreError;

/// Bytes of records that the scrub reads in a second, at the most.
const SCRUB_BYTES_PER_SECOND: u32 = 4 << 20;
/// A node that has just started has better to do; what it opened was checked as far as the engine can.
const FIRST_SCRUB_AFTER: Duration = Duration::from_secs(60);
/// How often it is looked whether damage is beyond repair, and whether it is time for the next round.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// For so long a store must have been used before a bad end of the process does not count against it. Damage that ends it
/// mostly does with the first write to either file; the scrub, which begins after a minute, reads 2 GB in that time. Longer
/// would count more kills, which say nothing of the store.
const HEALTHY_AFTER: Duration = Duration::from_secs(10 * 60);

/// How far the scrub is, for `GET /nodes`.
#[derive(Debug, Default)]
pub struct ScrubProgress(Mutex<ScrubStatus>);

impl ScrubProgress {
    fn lock(&self) -> MutexGuard<'_, ScrubStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // plain numbers
    }

    /// As it is shown.
    pub fn status(&self) -> ScrubStatus {
        self.lock().clone()
    }
}

/// Takes care until the node ends.
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
        if !scrub_round(&node, &mut scrub).await {
            return; // the alarm is raised; the node opens the store anew
        }
    }
}

/// Says that the store is proven once it is; goes on doing nothing until the node ends.
pub async fn mark_healthy_later(node: Node) {
    tokio::time::sleep(HEALTHY_AFTER).await;
    while !node.store.has_written_both() {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let store = node.store.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || store.mark_healthy()).await {
        tracing::error!(%error, "saying that the store is proven");
    }
    std::future::pending::<()>().await;
}

/// One round over everything. `false`: the store must not be believed.
async fn scrub_round(node: &Node, scrub: &mut Scrub) -> bool {
    let mut last_look = Instant::now();
    loop {
        let logs = node.logs();
        let (store, mut walk) = (node.store.clone(), scrub.clone());
        let stepping = move || -> (Scrub, Result<ScrubStep, StoreError>) {
            let step = walk.step(&store, &logs);
            (walk, step)
        };
        let (walked, step) = match tokio::task::spawn_blocking(stepping).await {
            Ok((walked, Ok(step))) => (walked, step),
            Ok((_, Err(error))) => {
                node.writer.fault().raise(error.to_string());
                return false;
            }
            Err(error) => {
                node.writer.fault().raise(format!("reading panicked: {error}"));
                return false;
            }
        };
        *scrub = walked;
        if let Some((origin, seq)) = step.index_lacks {
            tracing::error!(%origin, seq, "the index does not know an entry");
            node.store.invalidate_index();
            node.writer.fault().raise("the index is damaged".into());
            return false;
        }
        for care in step.care {
            node.writer.maintain(care).await;
        }
        update_progress(node, scrub, step.round_ends);
        if step.round_ends {
            return true;
        }
        if last_look.elapsed() >= POLL_INTERVAL {
            cut_unrepairable(node).await;
            last_look = Instant::now();
        }
        let bytes = u32::try_from(step.bytes).unwrap_or(u32::MAX);
        let share = f64::from(bytes) / f64::from(SCRUB_BYTES_PER_SECOND);
        tokio::time::sleep(Duration::from_secs_f64(share)).await;
    }
}

fn update_progress(node: &Node, scrub: &Scrub, round_ends: bool) {
    let mut progress = node.cluster.scrub.lock();
    progress.checked = scrub.checked();
    if round_ends {
        progress.rounds += 1;
        progress.last_finished = Some(Time(now_ms()));
    }
}

/// Cuts logs where nobody has what is missing.
async fn cut_unrepairable(node: &Node) {
    for (origin, seq) in node.cluster.unrepairable(node) {
        tracing::error!(%origin, seq, "an entry is damaged, and no peer has it: the log is cut there");
        node.cluster.report_lost_entry(origin, seq);
        node.writer.maintain(Maintenance::Cut(origin, seq)).await;
    }
}
