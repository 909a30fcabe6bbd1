//! Owns how a send waits for further copies: until enough nodes are known to have it on disk, or its time is over.
//!
//! What is waited for is stored already, so nothing here fails: what was not confirmed in time is only not counted. Nobody
//! polls. Whoever waits is woken when a peer says something new of what it holds, keeps nothing but places in mind, and
//! ends at once when the node closes its store.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::api::error::Problem;
use crate::api::query::SendQuery;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::message::Digest;
use crate::chain::sync::wire::EntryRange;
use crate::node::Node;

/// So long after a request came its answer begins at the latest, for what is stored must not end as `timeout`: where
/// receiving and storing were slow, less is waited for copies. Below the 30 s that a server has.
const RESPONSE_DEADLINE: Duration = Duration::from_secs(27);

/// How many copies a send asks for, and for how long it waits.
#[derive(Debug, Clone, Copy)]
pub struct AckPolicy {
    count: usize,
    timeout: Duration,
    /// When the request came.
    arrived: Instant,
}

impl AckPolicy {
    /// What a query asks of the network as this node knows it.
    pub fn of(query: SendQuery, node: &Node) -> Result<Self, Problem> {
        let (count, timeout, began) =
            (query.acks.of(node.cluster.roster().node_count())?, query.timeout, Instant::now());
        Ok(AckPolicy { count, timeout, arrived: began })
    }

    /// Whether more is asked for than this node alone can give.
    pub fn needs_peers(self) -> bool {
        self.count > 1
    }

    /// Whether so many copies are enough. That a message was stored here was known before it was asked for others.
    pub fn is_met_by(self, copies: usize) -> bool {
        copies >= self.count || !self.needs_peers()
    }

    /// Whether there are enough copies of each of these messages now.
    pub fn is_met(self, node: &Node, messages: &[Vec<EntryRange>]) -> bool {
        messages.iter().all(|copies| self.is_met_by(node.durable_on(copies).len()))
    }

    /// Waits until there are.
    pub async fn wait(self, node: &Node, messages: &[Vec<EntryRange>]) {
        let until = (Instant::now() + self.timeout).min(self.arrived + RESPONSE_DEADLINE);
        let mut held = node.cluster.copies_changed();
        let mut enough = 0; // of the first so many there are
        loop {
            held.mark_unchanged();
            while messages.get(enough).is_some_and(|copies| self.is_met_by(node.durable_on(copies).len())) {
                enough += 1;
            }
            if enough == messages.len() {
                return;
            }
            tokio::select! {
                changed = held.changed() => if changed.is_err() {
                    return;
                },
                () = sleep_until(until) => return,
                () = node.live_feed.stop().cancelled() => return,
            }
        }
    }
}

/// A copy of a message.
pub fn range_of(place: EntryKey) -> EntryRange {
    EntryRange { origin: place.origin, first: place.seq, last: place.seq }
}

/// Of messages that were stored together: what must be held to have all of them, by log.
pub fn ranges_by_log(places: impl IntoIterator<Item = EntryKey>) -> Vec<Vec<EntryRange>> {
    let mut logs: BTreeMap<Origin, EntryRange> = BTreeMap::new();
    for place in places {
        let range = logs.entry(place.origin).or_insert_with(|| range_of(place));
        (range.first, range.last) = (range.first.min(place.seq), range.last.max(place.seq));
    }
    logs.into_values().map(|range| vec![range]).collect()
}

/// All copies of messages that were stored before: any of them counts. What cannot be looked up now is not lost; then the
/// copy that is known counts.
pub async fn all_copies(node: &Node, messages: Vec<(Uuid, Digest, EntryKey)>) -> Vec<Vec<EntryRange>> {
    let (store, logs) = (node.store.clone(), node.logs());
    let known: Vec<Vec<EntryRange>> = messages.iter().map(|(.., place)| vec![range_of(*place)]).collect();
    let looking = move || {
        let copies = |(id, digest, place): (Uuid, Digest, EntryKey)| {
            let standings = store.stored_copies(id, &logs).unwrap_or_default();
            let copies = standings.iter().filter(|standing| standing.digest == digest);
            let others = copies.map(|standing| standing.place).filter(|other| *other != place);
            std::iter::once(place).chain(others).map(range_of).collect()
        };
        messages.into_iter().map(copies).collect()
    };
    tokio::task::spawn_blocking(looking).await.unwrap_or(known)
}
