//! Owns the requests that the proxy sends of its own accord: readiness probes of every upstream, and rounds of status
//! reports.
//!
//! So the proxy knows that a node failed or recovered before a request depends on it. `upstreams` decides when a probe
//! or a round is due.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt, join_all};
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::forward::Forwarder;
use super::upstreams::UpstreamId;
use crate::api::address::Addr;
use crate::api::network::NodeStatus;
use crate::api::path;
use crate::client::{ClientError, Request};

/// Interval at which due probes and rounds are started.
const CHECK_EVERY: Duration = Duration::from_millis(50);
/// A probe or report that takes longer counts as not answered.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// A longer status report is ignored.
const REPORT_BYTES_MAX: usize = 1 << 20;

/// Probes and asks for status reports for as long as it is awaited.
pub async fn run(forwarder: &Forwarder) -> Infallible {
    let mut tick = interval(CHECK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Bounded: an upstream is probed at most four times within the time limit of one probe.
    let mut running: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let (due, round) = {
                    let (now, mut state) = (forwarder.uptime(), forwarder.state());
                    (state.upstreams.take_due_probes(now, fastrand::f64()), state.upstreams.take_due_round(now))
                };
                running.extend(due.into_iter().map(|(id, addr)| probe(forwarder, id, addr).boxed()));
                if !round.is_empty() {
                    running.push(collect_reports(forwarder, round).boxed());
                }
            }
            Some(()) = running.next() => {}
        }
    }
}

/// Asks one upstream whether it is ready.
pub async fn probe(forwarder: &Forwarder, id: UpstreamId, addr: Addr) {
    let (since, started) = (forwarder.uptime(), Instant::now());
    let answer = timeout(ANSWER_MAX, forwarder.client.readyz(&addr, ANSWER_MAX)).await;
    let (now, mut state) = (forwarder.uptime(), forwarder.state());
    let timed_out = ClientError::Timeout { addr, after: ANSWER_MAX };
    match answer.unwrap_or(Err(timed_out)) {
        Ok(ready) => state.upstreams.probe_answered(id, now, started.elapsed(), &ready),
        Err(e @ ClientError::Timeout { .. }) => state.upstreams.probe_timed_out(id, since, now, e.why()),
        Err(ClientError::NoDescriptor { .. }) => {} // says nothing about the node
        Err(e) if e.is_unauthorized() => state.upstreams.unauthorized(id, now),
        Err(e) => state.upstreams.failed(id, now, e.why()),
    }
}

/// Asks all these upstreams for their status at once. One that does not answer in time is left out of the round.
async fn collect_reports(forwarder: &Forwarder, round: Vec<(UpstreamId, Addr)>) {
    let ask = async |(id, addr): (UpstreamId, Addr)| {
        let report = async {
            let answer = forwarder.client.forward(&addr, &Request::get(path::NODES), ANSWER_MAX).await?;
            answer.accepted().await?.json::<NodeStatus>(REPORT_BYTES_MAX).await
        };
        Some((id, timeout(ANSWER_MAX, report).await.ok()?.ok()?))
    };
    let reports: Vec<_> = join_all(round.into_iter().map(ask)).await.into_iter().flatten().collect();
    forwarder.state().upstreams.apply_reports(forwarder.uptime(), &reports);
}
