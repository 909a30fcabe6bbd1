//! The answers in which servers describe themselves and each other: `/nodes`, `/network`, `/readyz`, `/livez`.
//!
//! Programs of other versions read them, so a reader ignores unknown fields. A value that a server does not know (yet)
//! is `null`. Nothing is decided here: the server that answers decides which node is up, behind or damaged.

use serde::{Deserialize, Serialize};

use super::{address::Addr, time::Time};

/// Number of a node, by which users name it.
pub type NodeId = u16;

/// Whether a server answers, as the program that reports it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It answered the last request.
    Up,
    /// It missed an answer a short time ago, or was never asked.
    Suspect,
    /// It has not answered for some time.
    Down,
}

impl NodeState {
    /// The name in JSON and in `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeState::Up => "up",
            NodeState::Suspect => "suspect",
            NodeState::Down => "down",
        }
    }
}

/// `GET /nodes` at a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node_id: NodeId,
    pub address: Addr,
    pub version: String,
    /// `up` while the store is open, otherwise `suspect`.
    pub state: NodeState,
    pub uptime_seconds: u64,
    /// Messages, counted by distinct (id, content).
    pub messages: u64,
    /// Digest of the vector, in hexadecimal.
    pub digest: String,
    pub origins: u64,
    /// Ids with more than one content.
    pub conflicts: u64,
    /// Entries whose checksum fails and that are not repaired yet.
    pub damaged: u64,
    /// Entries of a newer kind, which this program does not know.
    pub unreadable: u64,
    pub warnings: Vec<String>,
    pub peers: Vec<PeerStatus>,
    /// Progress of the scrub. A node of an older version does not report it.
    #[serde(default)]
    pub scrub: ScrubStatus,
}

/// Progress of the scrub.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScrubStatus {
    pub checked: u64,
    pub total: u64,
    /// Rounds since the store was opened.
    pub rounds: u64,
    pub last_finished: Option<Time>,
}

/// A node, as one of its peers sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// `None` until the node has answered once.
    pub node_id: Option<NodeId>,
    pub address: Addr,
    pub state: NodeState,
    /// When the node last answered an exchange.
    pub last_sync: Option<Time>,
    pub rtt_ms: Option<f64>,
    /// Entries that the node lacks, as far as known.
    pub behind: Option<u64>,
    pub error: Option<String>,
}

/// `GET /nodes` at the proxy. Only this answer has the field `upstreams`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyStatus {
    pub version: String,
    /// Always `up`: the proxy answers.
    pub state: NodeState,
    pub uptime_seconds: u64,
    pub warnings: Vec<String>,
    /// The nodes that the proxy forwards to.
    pub upstreams: Vec<UpstreamStatus>,
}

/// A node, as the proxy sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    pub address: Addr,
    pub state: NodeState,
    /// Smoothed time to an answer.
    pub rtt_ms: Option<f64>,
    pub error: Option<String>,
}

/// `DELETE /nodes/{id}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetAnswer {
    pub node_id: NodeId,
    /// Always true, also if the node was forgotten before.
    pub forgotten: bool,
    /// Whether that is on disk at the node that answers. If not, its disk is nearly full or fails, and the node tries
    /// again.
    #[serde(default = "stored")]
    pub stored: bool,
}

/// Answers of earlier programs do not say it.
fn stored() -> bool {
    true
}

/// `GET /network`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkStatus {
    pub nodes: Vec<NetworkNode>,
    pub up: u64,
    pub total: u64,
    /// Whether the store of some node is open. Free disk space is not checked.
    pub writable: bool,
    /// Whether all nodes that are up have equal digests, no damage and nothing unreadable.
    pub converged: bool,
    pub warnings: Vec<String>,
}

/// One member in `GET /network`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkNode {
    /// `None` until the node has answered once.
    pub node_id: Option<NodeId>,
    pub address: Addr,
    pub state: NodeState,
    pub version: Option<String>,
    pub uptime_seconds: Option<u64>,
    pub messages: Option<u64>,
    /// Entries that the node lacks of the union of all known vectors.
    pub behind: Option<u64>,
    pub digest: Option<String>,
    /// When the node last answered an exchange.
    pub last_sync: Option<Time>,
    pub rtt_ms: Option<f64>,
    pub error: Option<String>,
}

/// `GET /readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    pub readable: bool,
    /// Whether the store can be written. Free disk space is not checked.
    pub writable: bool,
    /// Why it is not ready, as sentences.
    #[serde(default)]
    pub reasons: Vec<String>,
}

impl Readiness {
    pub fn ready() -> Self {
        Readiness { readable: true, writable: true, reasons: Vec::new() }
    }
}

/// `GET /livez`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Liveness {
    pub live: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_describes_itself_as_the_contract_says() {
        let json = r#"{"node_id":2,"address":"127.0.0.1:8083","version":"0.1.0","state":"up","uptime_seconds":12,"messages":1204,"digest":"9f3c","origins":4,"conflicts":0,"damaged":0,"unreadable":0,"warnings":[],"peers":[{"node_id":0,"address":"127.0.0.1:8081","state":"suspect","last_sync":"2026-11-22T12:31:14.123Z","rtt_ms":0.4,"behind":0,"error":null}],"scrub":{"checked":7,"total":9,"rounds":0,"last_finished":null}}"#;
        let status: NodeStatus = serde_json::from_str(json).expect("parses");
        assert_eq!(serde_json::to_string(&status).expect("serializes"), json);
    }

    #[test]
    fn a_network_is_read_back_and_newer_fields_are_ignored() {
        let json = r#"{"nodes":[{"node_id":null,"address":"node-3:8084","state":"down","version":null,"uptime_seconds":null,"messages":null,"behind":null,"digest":null,"last_sync":null,"rtt_ms":null,"error":"connection refused"}],"up":0,"total":1,"writable":false,"converged":false,"warnings":["none is up"]}"#;
        let status: NetworkStatus = serde_json::from_str(json).expect("parses");
        assert_eq!(serde_json::to_string(&status).expect("serializes"), json);
        let newer = json.replacen('{', "{\"color\":\"red\",", 1);
        assert_eq!(serde_json::from_str::<NetworkStatus>(&newer).expect("parses"), status);
    }
}
