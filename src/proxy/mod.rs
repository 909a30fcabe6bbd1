//! The proxy: forwards each request to a node that answers. Stateless: it stores and acknowledges no message.
//!
//! `run` owns the lifetime and the routes, `forward` the attempts of one request, `feed` a feed that outlives its node,
//! `prober` the proxy's own requests. Pure are `upstreams` (which node to ask next), `plan` (when to ask one more),
//! `latency_window` and `budget` (the hedge delay, and the limit on additional requests). Must not know the store or
//! the log; nodes judge messages, and a body is forwarded as it is.
//!
//! Invariant: every attempt of a request carries the same bytes and ids, so repeating a send is safe.

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

/// What the handlers share.
#[derive(Clone)]
struct Proxy {
    forwarder: Arc<Forwarder>,
    budget: Budget,
    /// Shown in the proxy's status if other machines can reach it without a key.
    open_warning: Option<&'static str>,
    /// Ends feeds when the proxy stops.
    stop: CancellationToken,
}
