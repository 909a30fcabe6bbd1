//! Owns what nodes report of themselves and of their peers: which further upstreams exist, and which ones lack
//! messages.
//!
//! Pure, as all of `upstreams`. `GET /nodes` is asked of all upstreams in rounds. A discovered upstream counts as
//! failing until a probe succeeds.
//!
//! Invariants: a configured upstream is never removed; a node is one upstream, also if it has several addresses.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::info;

use super::{Health, Upstream, UpstreamId, Upstreams};
use crate::api::address::Addr;
use crate::api::network::{NodeId, NodeState, NodeStatus};

/// Time between two rounds while nothing changes: a new node is found after at most this time.
const ROUND_EVERY: Duration = Duration::from_secs(5);
/// The same while an upstream lacks messages, or has just recovered.
const ROUND_SOON: Duration = Duration::from_secs(1);
/// Further nodes are not added. A network is a handful of nodes; a node that names more is mistaken.
const DISCOVERED_MAX: usize = 64;
/// A failing discovered upstream that no node has named for this long is removed.
const REMOVE_AFTER: Duration = Duration::from_secs(300);

/// The last status report of an upstream, and what follows from it.
#[derive(Debug, Default)]
pub struct StatusReport {
    /// When a node last named this upstream; None for a configured one.
    named_at: Option<Duration>,
    /// Node id and address, as the node itself reports them.
    identity: Option<(NodeId, Addr)>,
    /// It lacks messages, or holds damaged ones: reads prefer other upstreams.
    pub is_behind: bool,
    /// A round came since the upstream was added or recovered. Without one, the next round should come soon.
    pub was_requested: bool,
}

impl Upstreams {
    /// The upstreams to ask for their status now; empty if no round is due.
    pub fn take_due_round(&mut self, now: Duration) -> Vec<(UpstreamId, Addr)> {
        let is_urgent = |report: &StatusReport| report.is_behind || !report.was_requested;
        let soon = self.all.values().any(|upstream| is_urgent(&upstream.report));
        if now < self.last_round_at + if soon { ROUND_SOON } else { ROUND_EVERY } {
            return Vec::new();
        }
        let up = self.all.iter().filter(|(_, upstream)| upstream.health == Health::Up);
        let asked: Vec<_> = up.map(|(id, upstream)| (*id, upstream.addr.clone())).collect();
        if !asked.is_empty() {
            self.last_round_at = now;
            self.all.values_mut().for_each(|upstream| upstream.report.was_requested = true);
        }
        asked
    }

    /// Applies the reports of one round.
    pub fn apply_reports(&mut self, now: Duration, reports: &[(UpstreamId, NodeStatus)]) {
        for (id, status) in reports {
            let Some(upstream) = self.all.get_mut(id) else { continue };
            upstream.report.identity = Some((status.node_id, status.address.clone()));
            upstream.report.is_behind = status.messages < self.messages_max || status.damaged > 0;
        }
        self.messages_max = reports.iter().map(|(_, status)| status.messages).max().unwrap_or_default();
        self.remove_duplicates();
        for peer in reports.iter().flat_map(|(_, status)| &status.peers) {
            let known = self.all.values_mut().find(|upstream| upstream.addr == peer.address);
            match (known, peer.node_id) {
                (Some(known), _) => known.report.named_at = known.report.named_at.map(|_| now),
                (None, Some(id)) if peer.state == NodeState::Up => self.add(now, id, &peer.address),
                (None, _) => {}
            }
        }
        let is_forgotten = |upstream: &Upstream| {
            let named_at = upstream.report.named_at;
            upstream.is_failing() && named_at.is_some_and(|at| now.saturating_sub(at) > REMOVE_AFTER)
        };
        self.all.retain(|_, upstream| !is_forgotten(upstream));
    }

    fn add(&mut self, now: Duration, id: NodeId, addr: &Addr) {
        let is_same = |upstream: &Upstream| {
            let identity = upstream.report.identity.as_ref();
            identity.is_some_and(|(known, own)| own == addr || *known == id && !upstream.is_failing())
        };
        let discovered = self.all.values().filter(|upstream| upstream.report.named_at.is_some()).count();
        let is_unusable = addr.is_wildcard() || addr.port() == 0 || *addr == self.own;
        if is_unusable || discovered >= DISCOVERED_MAX || self.all.values().any(is_same) {
            return;
        }
        info!(node = %addr, "discovered a node");
        let mut upstream = Upstream::new(addr.clone(), Health::Failing { since: now });
        upstream.report.named_at = Some(now);
        upstream.is_reported = true; // as what was just discovered
        self.all.insert(self.next_id, upstream);
        self.next_id += 1;
    }

    /// Removes discovered upstreams whose node also answers at another address, or has moved there.
    fn remove_duplicates(&mut self) {
        let mut answering: BTreeMap<NodeId, UpstreamId> = BTreeMap::new();
        for (id, upstream) in self.all.iter().filter(|(_, upstream)| !upstream.is_failing()) {
            if let Some((node, _)) = upstream.report.identity {
                answering.entry(node).or_insert(*id);
            }
        }
        self.all.retain(|id, upstream| match &upstream.report.identity {
            Some((node, _)) if upstream.report.named_at.is_some() => {
                answering.get(node).is_none_or(|other| other == id)
            }
            _ => true,
        });
    }
}
