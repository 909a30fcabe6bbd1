//! Owns how a send waits for further copies: until enough nodes are known to have the message on disk, or its time is
//! over.
//!
//! Before it: `http::send`, after the message was stored here. So a wait never fails the send: a copy that is not
//! confirmed in time is not counted. A waiting send is woken when a peer may hold more. It keeps only the ranges of
//! entries, and ends at once when the node closes its store.

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

/// Response deadline, measured from the arrival of the request. Below the server's 30 s, so that a stored message never
/// reports `timeout`: if receiving and storing took long, the wait for copies is shorter.
const RESPONSE_DEADLINE: Duration = Duration::from_secs(27);

/// How many copies a send asks for, and for how long it waits.
#[derive(Debug, Clone, Copy)]
pub struct AckPolicy {
    count: usize,
    timeout: Duration,
    arrived: Instant,
}

impl AckPolicy {
    /// What a query asks for, in a network with as many nodes as this node knows.
    pub fn of(query: SendQuery, node: &Node) -> Result<Self, Problem> {
        let count = query.acks.of(node.cluster.roster().node_count())?;
        Ok(AckPolicy { count, timeout: query.timeout, arrived: Instant::now() })
    }

    /// Whether copies on other nodes are asked for.
    pub fn needs_peers(self) -> bool {
        self.count > 1
    }

    /// Whether this number of holders is enough. Without peers, the entry here counts even if it was damaged meanwhile.
    pub fn is_met_by(self, holders: usize) -> bool {
        holders >= self.count || !self.needs_peers()
    }

    /// Whether there are enough copies of each of these messages now.
    pub fn is_met(self, node: &Node, messages: &[Vec<EntryRange>]) -> bool {
        messages.iter().all(|copies| self.is_met_by(node.durable_on(copies).len()))
    }

    /// Waits until there are enough copies of each of these messages, or the time is over.
    pub async fn wait(self, node: &Node, messages: &[Vec<EntryRange>]) {
        let until = (Instant::now() + self.timeout).min(self.arrived + RESPONSE_DEADLINE);
        let mut holders_changed = node.cluster.holders_changed.subscribe();
        let mut enough = 0; // the number of first messages that have enough copies
        loop {
            holders_changed.mark_unchanged();
            while messages.get(enough).is_some_and(|copies| self.is_met_by(node.durable_on(copies).len())) {
                enough += 1;
            }
            if enough == messages.len() {
                return;
            }
            tokio::select! {
                changed = holders_changed.changed() => changed.expect("the cluster outlives the request"),
                () = sleep_until(until) => return,
                () = node.live_feed.stop.cancelled() => return,
            }
        }
    }
}

/// The range that holds one entry.
pub fn range_of(key: EntryKey) -> EntryRange {
    EntryRange { origin: key.origin, first: key.seq, last: key.seq }
}

/// For messages that were stored together: the range of each log that a node must hold to have all of them.
pub fn ranges_by_log(keys: impl IntoIterator<Item = EntryKey>) -> Vec<Vec<EntryRange>> {
    let mut logs: BTreeMap<Origin, EntryRange> = BTreeMap::new();
    for key in keys {
        let range = logs.entry(key.origin).or_insert_with(|| range_of(key));
        (range.first, range.last) = (range.first.min(key.seq), range.last.max(key.seq));
    }
    logs.into_values().map(|range| vec![range]).collect()
}

/// The copies of messages that were stored before: any of them counts. If the lookup fails, only the known copy counts.
pub async fn all_copies(node: &Node, messages: Vec<(Uuid, Digest, EntryKey)>) -> Vec<Vec<EntryRange>> {
    let (store, logs) = (node.store.clone(), node.logs());
    let known: Vec<Vec<EntryRange>> = messages.iter().map(|(.., key)| vec![range_of(*key)]).collect();
    let lookup = move || {
        let copies = |(id, digest, key): (Uuid, Digest, EntryKey)| {
            let copies = store.copies(id, digest, &logs).unwrap_or_default();
            let others = copies.into_iter().filter(|other| *other != key);
            std::iter::once(key).chain(others).map(range_of).collect()
        };
        messages.into_iter().map(copies).collect()
    };
    tokio::task::spawn_blocking(lookup).await.unwrap_or(known)
}
