//! The door to the network: finds a node that answers. Stateless; it stores and acknowledges nothing itself.
//!
//! `run` owns its life and its paths, `forward` how one request meets the nodes, `watch` what the proxy asks by itself.
//! Pure are `upstreams` (whom to ask first), `course` (when to ask one more), `recent` and `budget` (how late is late,
//! and how much more may be asked). Never knows the store or the log: what a message means is the nodes' business,
//! and a body passes through as it came. Repeating a send is always safe, for every attempt brings the same bytes
//! and ids.

mod budget;
#[cfg(test)]
mod fake;
mod feed;
mod forward;
mod latency_window;
mod plan;
mod prober;
mod run;
mod upstreams;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::serve::Budget;
use forward::Forwarder;

pub use run::run;

/// What handlers hold.
#[derive(Clone)]
struct Proxy {
    forwarder: Arc<Forwarder>,
    budget: Budget,
    warnings: Arc<[String]>,
    /// With this, feeds end.
    stop: CancellationToken,
}

/// Why a proxy ended.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Something that must go on for as long as the proxy serves did not.
    #[error("{0} ended early; the log says why")]
    Ended(&'static str),
}
