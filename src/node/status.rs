//! Owns what a node says of itself and of the network. `http::status` serves it.
//!
//! It is for people and scripts that watch; no decision about messages is made from it. A peer that answers at once is
//! shown by its own status, any other one by what the exchanges know of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{Node, now_ms};
use crate::api::network::{
    NetworkNode, NetworkStatus, NodeId, NodeState, NodeStatus, PeerStatus, ScrubStatus,
};
use crate::api::path;
use crate::api::time::Time;
use crate::chain::clock::AHEAD_MS_MAX;
use crate::client::{ClientError, Request};
use crate::config::NodeConfig;
use crate::store::Store;
use crate::store::recovery::Recovery;

/// How long a peer is waited for when the network is surveyed, or three round trips if that is longer. A peer that takes
/// longer is shown as the exchanges know it.
const ASK_TIME: Duration = Duration::from_secs(1);
/// The longest such wait. Below the time after which the commands ask another server.
const ASK_TIME_MAX: Duration = Duration::from_secs(4);
/// Bytes of a peer's status. A longer one counts as no answer.
const STATUS_BYTES_MAX: usize = 1 << 20;

/// The status of a node whose store was never open.
pub fn unopened(config: &NodeConfig) -> NodeStatus {
    NodeStatus {
        node_id: config.node_id,
        address: config.advertise.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: NodeState::Suspect,
        uptime_seconds: 0,
        messages: 0,
        digest: String::new(),
        origins: 0,
        conflicts: 0,
        damaged: 0,
        unreadable: 0,
        warnings: Vec::new(),
        peers: Vec::new(),
        scrub: ScrubStatus::default(),
    }
}

/// This node's own status.
pub fn status(node: &Node) -> NodeStatus {
    let logs = node.logs();
    let counts = node.store.counts();
    NodeStatus {
        state: NodeState::Up,
        uptime_seconds: node.cluster.started.elapsed().as_secs(),
        messages: counts.messages,
        digest: logs.vector().digest().to_string(),
        origins: logs.vector().origins() as u64,
        conflicts: counts.conflicts,
        damaged: node.cluster.damaged(node),
        unreadable: counts.unreadable,
        scrub: ScrubStatus { total: logs.vector().entries(), ..node.cluster.scrub().clone() },
        warnings: warnings(node),
        peers: node.cluster.peers(logs.vector()).into_iter().map(|peer| peer.status).collect(),
        ..unopened(&node.config)
    }
}

fn warnings(node: &Node) -> Vec<String> {
    let mut warnings = Vec::new();
    let NodeConfig { node_id, listen, keys, .. } = &*node.config;
    if !listen.is_loopback() && keys.is_none() {
        warnings.push(format!(
            "node {node_id} listens on {listen}, beyond this machine, and there is no key: everyone who \
             reaches it can read and write everything"
        ));
    }
    if node.writer.fault.is_suspect() {
        warnings.push(format!("node {node_id} cannot write to its disk"));
    }
    warnings.extend(store_warnings(&node.store, *node_id));
    warnings.extend(node.cluster.warnings(node));
    let latest = node.logs().ranges().map(|(_, stamps)| stamps.last.ms()).max().unwrap_or(0);
    if latest > now_ms().saturating_add(AHEAD_MS_MAX) {
        // The same words on all nodes, so that the network shows it once.
        let until = Time(latest);
        warnings.push(format!(
            "messages are stamped up to {until}, which is in the future: the clock of a node was ahead, or is behind; \
             `list` shows them apart until then"
        ));
    }
    warnings
}

/// What a check of the store at its opening found, and the damaged files that an operator has not removed yet.
fn store_warnings(store: &Store, id: NodeId) -> Vec<String> {
    let mut warnings = Vec::new();
    // Without the files that were set aside, the operator has dealt with the damage.
    let files: Vec<_> = store.damaged_files().iter().filter(|path| path.exists()).collect();
    let is_any_set_aside = !store.damaged_files().is_empty();
    let recovery = store.recovery().filter(|_| !files.is_empty() || !is_any_set_aside);
    if let Some(count) = store.crash_count().exits_to_report()
        // An intact store is not reported: the operator knows of the kills, and the log says that it was checked.
        && (recovery.is_some() || (store.recovery().is_none() && store.index().is_new()))
    {
        let is_damaged = recovery.is_some();
        let found = if is_damaged {
            "its log was damaged"
        } else {
            "its log was in order, and its index was built anew"
        };
        warnings.push(format!(
            "node {id}: its last {count} runs ended badly, without closing the store (killed, or by damage in it), so every page of it \
             was checked at this start: {found}"
        ));
    }
    if let Some(Recovery { why, salvaged, .. }) = recovery {
        let (salvaged_count, detached, gaps) = (salvaged.entries, salvaged.detached, salvaged.missing);
        let unread = match salvaged.unread_bytes {
            0 => String::new(),
            bytes => format!(", and {bytes} bytes of it can never be read again"),
        };
        warnings.push(format!(
            "node {id}: its store was damaged (log.redb: {why}){unread}; {salvaged_count} entries were salvaged, and {detached} after \
             {gaps} that are missing; what its peers have, it takes from them"
        ));
    }
    warnings.extend(files.into_iter().map(|path| {
        let path = path.display();
        format!("node {id}: {path} was damaged and set aside; remove it once nothing is missing any more")
    }));
    warnings
}

/// Surveys of the network, one at a time: all requests that came during one share the next one.
#[derive(Default)]
pub struct Surveys(tokio::sync::Mutex<Option<Survey>>);

struct Survey {
    began: Instant,
    ended: Instant,
    status: Arc<NetworkStatus>,
}

impl Surveys {
    /// The network, as it is after this call; or as it was a moment before if the survey then took long.
    pub async fn network(&self, node: &Node) -> Arc<NetworkStatus> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        let is_late = asked.elapsed() >= ASK_TIME;
        let is_usable = |last: &&Survey| last.began >= asked || (is_late && last.ended >= asked);
        if let Some(last) = last.as_ref().filter(is_usable) {
            return last.status.clone();
        }
        let began = Instant::now();
        let status = Arc::new(survey(node).await);
        *last = Some(Survey { began, ended: Instant::now(), status: status.clone() });
        status
    }
}

/// Asks all peers for their status at once, and shows the network.
pub async fn survey(node: &Node) -> NetworkStatus {
    let logs = node.logs();
    let all = node.cluster.union(logs.vector());
    let peers = node.cluster.peers(&all);
    let answers = join_all(peers.iter().map(|peer| ask(node, &peer.status))).await;
    let own = status(node);
    let logs_now = node.logs();
    let is_up = |answer: &NodeStatus| answer.state == NodeState::Up;
    let writable = !node.writer.fault.is_raised() || answers.iter().flatten().any(is_up);
    let mut warnings = own.warnings.clone();
    let mut healthy = own.damaged + own.unreadable == 0;
    let (digest, behind) = (own.digest.clone(), all.ahead_of(logs.vector()));
    let mut nodes = Vec::new();
    for (peer, answer) in peers.into_iter().zip(answers) {
        if let Ok(answer) = &answer {
            for vector in [logs.vector(), logs_now.vector()] {
                if answer.digest == vector.digest().to_string() {
                    node.cluster.on_status(&peer, answer.node_id, vector);
                }
            }
            healthy &= answer.damaged + answer.unreadable == 0;
            warnings.extend(answer.warnings.iter().cloned());
        }
        // Equal digests prove equal logs now; the last exchange may know less.
        let is_equal = answer.as_ref().is_ok_and(|answer| answer.digest == digest);
        nodes.push(row(
            PeerStatus { behind: if is_equal { Some(behind) } else { peer.status.behind }, ..peer.status },
            answer,
        ));
    }
    nodes.push(row(
        PeerStatus {
            node_id: Some(own.node_id),
            address: own.address.clone(),
            state: own.state,
            last_sync: None,
            rtt_ms: None,
            behind: Some(behind),
            error: None,
        },
        Ok(own),
    ));
    warnings.sort();
    warnings.dedup();
    nodes.sort_by_key(|node| (node.node_id.is_none(), node.node_id));
    let up: Vec<&NetworkNode> = nodes.iter().filter(|node| node.state == NodeState::Up).collect();
    let is_equal = |node: &&NetworkNode| match &node.digest {
        Some(theirs) => *theirs == digest,
        None => node.behind == Some(0) && behind == 0,
    };
    let converged = healthy && up.iter().all(is_equal);
    let (up, total) = (up.len() as u64, nodes.len() as u64);
    NetworkStatus { nodes, up, total, writable, converged, warnings }
}

/// Why a peer's own status is not known.
struct NoStatus {
    why: String,
    /// It may still answer: that says nothing about its state.
    is_late: bool,
}

/// A peer's own status. An error also if another node answers at its address: that node has a row of its own.
async fn ask(node: &Node, peer: &PeerStatus) -> Result<NodeStatus, NoStatus> {
    let PeerStatus { node_id, address, rtt_ms, .. } = peer;
    let round_trips = Duration::try_from_secs_f64(rtt_ms.unwrap_or(0.0) * 3.0 / 1e3).unwrap_or(ASK_TIME_MAX);
    let time = round_trips.clamp(ASK_TIME, ASK_TIME_MAX);
    let request = Request::get(path::NODES);
    let answer = async {
        let answer = node.cluster.client.forward(address, &request, time).await?;
        answer.accepted().await?.json(STATUS_BYTES_MAX).await
    };
    let late =
        || NoStatus { why: format!("{address}: no answer within {} s", time.as_secs_f32()), is_late: true };
    let answer: NodeStatus = match timeout(time, answer).await {
        Ok(Err(ClientError::Timeout { .. })) | Err(_) => return Err(late()),
        Ok(Err(error @ ClientError::NoDescriptor { .. })) => {
            return Err(NoStatus { why: error.to_string(), is_late: true });
        }
        Ok(answer) => answer.map_err(|error| NoStatus { why: error.to_string(), is_late: false })?,
    };
    match node_id {
        Some(id) if *id != answer.node_id => {
            Err(NoStatus { why: format!("node {} answers at {address}", answer.node_id), is_late: false })
        }
        _ => Ok(answer),
    }
}

/// One node as the network is shown: what the exchanges know of it, and its own status if it answered.
fn row(peer: PeerStatus, answer: Result<NodeStatus, NoStatus>) -> NetworkNode {
    // A node that answers is in the state that it tells: one whose store is closed does not call itself up. A node that
    // cannot be reached is not up, whatever the last exchange said. Of one that is slow, the exchanges know more.
    let state = match (&answer, peer.state) {
        (Ok(answer), _) => answer.state,
        (Err(NoStatus { is_late: false, .. }), NodeState::Up) => NodeState::Suspect,
        (Err(_), state) => state,
    };
    let (answer, error) = match answer {
        Ok(answer) => (Some(answer), None),
        Err(NoStatus { why, .. }) => (None, Some(why).filter(|_| state != NodeState::Up)),
    };
    NetworkNode {
        node_id: answer.as_ref().map(|answer| answer.node_id).or(peer.node_id),
        address: peer.address,
        state,
        version: answer.as_ref().map(|answer| answer.version.clone()),
        uptime_seconds: answer.as_ref().map(|answer| answer.uptime_seconds),
        messages: answer.as_ref().map(|answer| answer.messages),
        behind: peer.behind,
        digest: answer.map(|answer| answer.digest),
        last_sync: peer.last_sync,
        rtt_ms: peer.rtt_ms,
        error,
    }
}
