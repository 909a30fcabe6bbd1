//! How servers describe themselves and each other: `/nodes`, `/network`, `/readyz`, `/livez`.
//!
//! Plain shapes, read by programs that may be older or newer: unknown fields are ignored on reading. What a
//! server does not know (yet) is `null`.

use serde::{Deserialize, Serialize};

use super::{address::Addr, time::Time};

/// Which node; the number by which people call it.
pub type NodeId = u16;

/// Whether a server answers, as seen by whoever says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It answered when last asked.
    Up,
    /// It missed an answer, or was never asked.
    Suspect,
    /// It has not answered for a while.
    Down,
}

impl NodeState {
    /// Its name in the contract.
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
    /// Which node.
    pub node_id: NodeId,
    /// Where others are told to find it.
    pub address: Addr,
    /// Of the program.
    pub version: String,
    /// A node that answers is up.
    pub state: NodeState,
    /// Since the process started.
    pub uptime_seconds: u64,
    /// Distinct (id, content).
    pub messages: u64,
    /// Of the vector, in hexadecimal.
    pub digest: String,
    /// How many logs it holds.
    pub origins: u64,
    /// Ids that stand for more than one content.
    pub conflicts: u64,
    /// Entries that failed their check and are not restored yet.
    pub damaged: u64,
    /// Entries of a newer content version.
    pub unreadable: u64,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// The other nodes.
    pub peers: Vec<PeerStatus>,
    /// The slow walk over everything that is stored. A node of an older version has none.
    #[serde(default)]
    pub scrub: ScrubStatus,
}

/// How far a node is with checking everything it stores.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Entries checked in this round.
    pub checked: u64,
    /// Entries there are.
    pub total: u64,
    /// Rounds since the store was opened.
    pub rounds: u64,
    /// When the last of them ended.
    pub last_finished: Option<Time>,
}

/// A node as one other sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Unknown until it has answered once.
    pub node_id: Option<NodeId>,
    /// Where it is asked.
    pub address: Addr,
    /// Whether it answers.
    pub state: NodeState,
    /// When it last answered an exchange.
    pub last_sync: Option<Time>,
    /// How long that took.
    pub rtt_ms: Option<f64>,
    /// Entries it lacks, as far as known.
    pub behind: Option<u64>,
    /// Why the last exchange failed.
    pub error: Option<String>,
}

/// `GET /nodes` at the proxy. Told apart from a node's by `upstreams`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Of the program.
    pub version: String,
    /// A proxy that answers is up.
    pub state: NodeState,
    /// Since the process started.
    pub uptime_seconds: u64,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// The nodes it forwards to.
    pub upstreams: Vec<UpstreamStatus>,
}

/// A node as the proxy sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Where it is asked.
    pub address: Addr,
    /// Whether it answers.
    pub state: NodeState,
    /// How long answers take, smoothed.
    pub rtt_ms: Option<f64>,
    /// Why the last request failed.
    pub error: Option<String>,
}

/// `DELETE /nodes/{id}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetAnswer {
    /// Which node.
    pub node_id: NodeId,
    /// It is forgotten now, and may have been before.
    pub forgotten: bool,
}

/// `GET /network`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// One row per member.
    pub nodes: Vec<NetworkNode>,
    /// How many of them are up.
    pub up: u64,
    /// How many there are.
    pub total: u64,
    /// Whether some node can store.
    pub writable: bool,
    /// All nodes that are up have equal digests, no damage and nothing unreadable.
    pub converged: bool,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// One member in `GET /network`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkNode {
    /// Unknown until it has answered once.
    pub node_id: Option<NodeId>,
    /// Where it is asked.
    pub address: Addr,
    /// Whether it answers.
    pub state: NodeState,
    /// Of the program.
    pub version: Option<String>,
    /// Since its process started.
    pub uptime_seconds: Option<u64>,
    /// Distinct (id, content).
    pub messages: Option<u64>,
    /// Entries it lacks of the union of all known vectors.
    pub behind: Option<u64>,
    /// Of its vector, in hexadecimal.
    pub digest: Option<String>,
    /// When it last answered an exchange.
    pub last_sync: Option<Time>,
    /// How long that took.
    pub rtt_ms: Option<f64>,
    /// Why it could not be asked.
    pub error: Option<String>,
}

/// `GET /readyz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// History can be read here.
    pub readable: bool,
    /// Messages can be stored here.
    pub writable: bool,
}

/// `GET /livez`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Liveness {
    /// Always true: who is not, does not answer.
    pub live: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_describes_itself_as_the_contract_says() {
        let json = r#"{"node_id":2,"address":"127.0.0.1:8083","version":"0.1.0","state":"up","uptime_seconds":12,"messages":1204,"digest":"9f3c","origins":4,"conflicts":0,"damaged":0,"unreadable":0,"warnings":[],"peers":[{"node_id":0,"address":"127.0.0.1:8081","state":"suspect","last_sync":"2026-11-22T12:31:14.123Z","rtt_ms":0.4,"behind":0,"error":null}],"scrub":{"checked":7,"total":9,"rounds":0,"last_finished":null}}"#;
        let status: NodeStatus = serde_json::from_str(json).expect("parses");
        assert_eq!(serde_json::to_string(&status).expect("serialises"), json);
    }

    #[test]
    fn a_network_is_read_back_and_newer_fields_are_ignored() {
        let json = r#"{"nodes":[{"node_id":null,"address":"node-3:8084","state":"down","version":null,"uptime_seconds":null,"messages":null,"behind":null,"digest":null,"last_sync":null,"rtt_ms":null,"error":"connection refused"}],"up":0,"total":1,"writable":false,"converged":false,"warnings":["none is up"]}"#;
        let status: NetworkStatus = serde_json::from_str(json).expect("parses");
        assert_eq!(serde_json::to_string(&status).expect("serialises"), json);
        let newer = json.replacen('{', "{\"colour\":\"red\",", 1);
        assert_eq!(serde_json::from_str::<NetworkStatus>(&newer).expect("parses"), status);
    }
}
