//! Owns what a node says of itself and of the network: `GET /nodes`, `GET /network` and `GET /readyz`.
//!
//! All of it is for people and scripts that watch; no decision about data is made from it. A peer is described by
//! its own word where it answers at once, else by what the exchanges know of it.

use std::time::Duration;

use axum::extract::{self, RawQuery};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::Node;
use super::slot::{NodeSlot, SlotState};
use crate::api::error::Problem;
use crate::api::network::{
    NetworkNode, NetworkStatus, NodeState, NodeStatus, PeerStatus, Readiness, ScrubStatus,
};
use crate::api::{path, query};
use crate::chain::vector::Vector;
use crate::client::Request;
use crate::config::NodeConfig;
use crate::serve;
use crate::store::recovery::Recovery;

/// How long a peer is waited for when the whole network is asked. One that takes longer is shown as suspect.
const ASK_TIME: Duration = Duration::from_secs(1);
/// A peer's word on itself is at most this long.
const STATUS_BYTES_MAX: usize = 1 << 20;

/// `GET /nodes`. While the store is closed: the last word, and why.
pub async fn nodes(
    extract::State(seat): extract::State<NodeSlot>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    query::refuse_any(raw.as_deref())?;
    let status = match seat.state() {
        SlotState::Open(node) => status(&node),
        SlotState::Closed(why, mut last) => {
            let (state, node_id) = (NodeState::Suspect, last.node_id);
            last.warnings.retain(|warning| !warning.starts_with(&format!("node {node_id} cannot write")));
            last.warnings
                .insert(0, format!("node {node_id} has closed its store, and tries to open it again: {why}"));
            NodeStatus { state, ..*last }
        }
    };
    let json = serde_json::to_vec(&status).expect("numbers and strings serialise");
    Ok(serve::json(StatusCode::OK, json))
}

/// What is known of a node whose store was never open.
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

/// This node's word on itself.
pub fn status(node: &Node) -> NodeStatus {
    let logs = node.logs();
    let counts = node.store.counts();
    NodeStatus {
        node_id: node.config.node_id,
        address: node.config.advertise.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: NodeState::Up,
        uptime_seconds: node.cluster.started.elapsed().as_secs(),
        messages: counts.messages,
        digest: logs.vector().digest().to_string(),
        origins: logs.vector().origins() as u64,
        conflicts: counts.conflicts,
        damaged: node.cluster.damaged(node),
        unreadable: counts.unreadable,
        scrub: ScrubStatus { total: logs.vector().entries(), ..node.cluster.scrub.status() },
        warnings: warnings(node),
        peers: node.cluster.statuses(logs.vector()),
    }
}

fn warnings(node: &Node) -> Vec<String> {
    let mut warnings = Vec::new();
    let NodeConfig { node_id, listen, keys, .. } = &*node.config;
    if !listen.is_loopback() && keys.is_none() {
        warnings.push(format!(
            "node {node_id} listens on {listen}, beyond this machine, and there is no key: whoever reaches it can \
             read and write everything"
        ));
    }
    if !node.writer.is_writable() {
        warnings.push(format!("node {} cannot write to its disk", node.config.node_id));
    }
    warnings.extend(of_the_store(node));
    warnings.extend(node.cluster.warnings());
    warnings
}

/// What came of damage to the store, or of doubts in it: it stays until an operator has taken the damaged files away.
fn of_the_store(node: &Node) -> impl Iterator<Item = String> {
    let (store, id) = (&node.store, node.config.node_id);
    let doubted = store.unclean_exits_before().and_then(|count| {
        let found = match (store.recovery(), store.has_new_index()) {
            (Some(_), _) => "its log was damaged",
            (None, true) => "its log was in order, and its index was built anew",
            (None, false) => return None, // whoever killed it twice knows; the log says that it was checked
        };
        Some(format!(
            "node {id}: its last {count} runs ended badly, without closing the store (killed, or by damage in it), so every \
             page of it was checked at this start: {found}"
        ))
    });
    let recovery = store.recovery().map(|Recovery { why, salvaged, .. }| {
        let (kept, loose, holes) = (salvaged.entries, salvaged.detached, salvaged.missing);
        let unread = match salvaged.unread_bytes {
            0 => String::new(),
            bytes => format!(", and {bytes} bytes of it can never be read again"),
        };
        format!(
            "node {id}: its store was damaged ({why}){unread}; {kept} entries were salvaged, and {loose} behind {holes} \
             that are missing; what its peers have, it takes from them"
        )
    });
    let set_aside = store.damaged_files().iter().map(move |path| {
        let path = path.display();
        format!("node {id}: {path} was damaged and set aside; remove it once nothing is missing any more")
    });
    doubted.into_iter().chain(recovery).chain(set_aside.collect::<Vec<_>>())
}

/// `GET /network`.
pub async fn network(node: Node, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    query::refuse_any(raw.as_deref())?;
    let json = serde_json::to_vec(&survey(&node).await).expect("numbers and strings serialise");
    Ok(serve::json(StatusCode::OK, json))
}

/// Asks all peers at once and puts their words beside ours.
async fn survey(node: &Node) -> NetworkStatus {
    let logs = node.logs();
    let all = node.cluster.union(logs.vector());
    let peers = node.cluster.surveyed(&all);
    let answers = join_all(peers.iter().map(|(peer, _)| ask(node, peer))).await;
    let own = status(node);
    let mine = node.logs();
    let is_up = |answer: &NodeStatus| answer.state == NodeState::Up;
    let writable = node.writer.is_writable() || answers.iter().flatten().any(is_up);
    let mut warnings = own.warnings.clone();
    let mut healthy = own.damaged + own.unreadable == 0;
    let own = row(own, logs.vector(), &all);
    let mut nodes = Vec::new();
    for ((peer, of), answer) in peers.into_iter().zip(answers) {
        if let Ok(answer) = &answer {
            for has in [&logs, &mine].map(|logs| logs.vector()) {
                if answer.digest == has.digest().to_string() {
                    node.cluster.on_status(of, answer.node_id, has);
                }
            }
            healthy &= answer.damaged + answer.unreadable == 0;
            warnings.extend(answer.warnings.iter().cloned());
        }
        nodes.push(peer_row(&own, peer, answer));
    }
    nodes.push(own);
    warnings.sort();
    warnings.dedup();
    nodes.sort_by(|left, right| {
        (left.node_id.is_none(), left.node_id).cmp(&(right.node_id.is_none(), right.node_id))
    });
    let up: Vec<&NetworkNode> = nodes.iter().filter(|node| node.state == NodeState::Up).collect();
    let converged = healthy && up.iter().all(|node| node.digest == up[0].digest);
    let (up, total) = (up.len() as u64, nodes.len() as u64);
    NetworkStatus { nodes, up, total, writable, converged, warnings }
}

/// What a peer says of itself. An error also if another node answers in its place, which has a row of its own.
async fn ask(node: &Node, PeerStatus { node_id, address, .. }: &PeerStatus) -> Result<NodeStatus, String> {
    let request = Request::get(path::NODES);
    let answer = async {
        node.cluster
            .client
            .forward(address, &request, ASK_TIME)
            .await?
            .accepted()
            .await?
            .json(STATUS_BYTES_MAX)
            .await
    };
    let answer: NodeStatus = match timeout(ASK_TIME, answer).await {
        Ok(answer) => answer.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("{address}: no answer within {} s", ASK_TIME.as_secs_f32())),
    };
    match node_id {
        Some(id) if *id != answer.node_id => Err(format!("node {} answers at {address}", answer.node_id)),
        _ => Ok(answer),
    }
}

fn row(own: NodeStatus, mine: &Vector, all: &Vector) -> NetworkNode {
    NetworkNode {
        node_id: Some(own.node_id),
        address: own.address,
        state: own.state,
        version: Some(own.version),
        uptime_seconds: Some(own.uptime_seconds),
        messages: Some(own.messages),
        behind: Some(all.ahead_of(mine)),
        digest: Some(own.digest),
        last_sync: None,
        rtt_ms: None,
        error: None,
    }
}

fn peer_row(own: &NetworkNode, peer: PeerStatus, answer: Result<NodeStatus, String>) -> NetworkNode {
    let (answer, error) = match answer {
        Ok(answer) => (Some(answer), None),
        Err(why) => (None, Some(why)),
    };
    // Who answers is what it says: one whose store is closed does not call itself up. Who does not answer is not up,
    // whatever the last exchange said.
    let state = match (&answer, peer.state) {
        (Some(answer), _) => answer.state,
        (None, NodeState::Down) => NodeState::Down,
        (None, NodeState::Up | NodeState::Suspect) => NodeState::Suspect,
    };
    // Equal digests prove equal logs, which is fresher than what the last exchange knew.
    let is_equal = answer.as_ref().is_some_and(|answer| Some(&answer.digest) == own.digest.as_ref());
    let behind = if is_equal { own.behind } else { peer.behind };
    NetworkNode {
        node_id: answer.as_ref().map(|answer| answer.node_id).or(peer.node_id),
        address: peer.address,
        state,
        version: answer.as_ref().map(|answer| answer.version.clone()),
        uptime_seconds: answer.as_ref().map(|answer| answer.uptime_seconds),
        messages: answer.as_ref().map(|answer| answer.messages),
        behind,
        digest: answer.map(|answer| answer.digest),
        last_sync: peer.last_sync,
        rtt_ms: peer.rtt_ms,
        error,
    }
}

/// `GET /readyz`: whether it can store and read here.
pub async fn ready(
    extract::State(seat): extract::State<NodeSlot>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    query::refuse_any(raw.as_deref())?;
    let ready = match seat.state() {
        SlotState::Open(node) => Readiness { readable: true, writable: node.writer.is_writable() },
        SlotState::Closed(..) => Readiness { readable: false, writable: false },
    };
    let status = if ready.writable { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok(serve::json(status, serde_json::to_vec(&ready).expect("booleans serialise")))
}
