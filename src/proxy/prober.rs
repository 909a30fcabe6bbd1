//! Owns what the proxy asks on its own account: probes of every node, and rounds in which nodes say whom they know.
//!
//! So a node is known to be gone, or back, before a request depends on it. When each is due is for `upstreams` to say.

use std::time::Duration;

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt, join_all},
    stream::FuturesUnordered,
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use super::forward::Forwarder;
use crate::{
    api::{address::Addr, network::NodeStatus, path},
    client::{ClientError, Request},
};

/// How often to look whether anything is due.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A node that is silent for so long has not answered.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// A node's word on itself and its peers is at most this long.
const WORD_BYTES_MAX: usize = 1 << 20;

/// Probes and asks for as long as it is awaited.
pub(super) async fn watch(forwarder: &Forwarder) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Bounded: each node is asked again at the earliest after a quarter of the time that it has for its answer.
    let mut asked: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let (due, round) = {
                    let (now, mut outlook) = (forwarder.uptime(), forwarder.outlook());
                    (outlook.upstreams.take_due(now, chance()), outlook.upstreams.take_round(now))
                };
                asked.extend(due.into_iter().map(|(place, addr)| probe(forwarder, place, addr).boxed()));
                if !round.is_empty() {
                    asked.push(hear(forwarder, round).boxed());
                }
            }
            Some(()) = asked.next() => {}
        }
    }
}

/// Asks one node whether it is ready.
pub(super) async fn probe(forwarder: &Forwarder, place: usize, addr: Addr) {
    let (began, asked) = (forwarder.uptime(), Instant::now());
    let answer = timeout(ANSWER_MAX, forwarder.client.readyz(&addr, ANSWER_MAX)).await;
    let (now, mut outlook) = (forwarder.uptime(), forwarder.outlook());
    let late = ClientError::Timeout { addr, after: ANSWER_MAX };
    match answer.unwrap_or(Err(late)) {
        Ok(ready) => outlook.upstreams.probed(place, now, asked.elapsed(), ready),
        Err(e @ ClientError::Timeout { .. }) => outlook.upstreams.probe_waits(place, began, now, e.why()),
        Err(e) if e.locked_out() => outlook.upstreams.locked_out(place, now),
        Err(e) => outlook.upstreams.failed(place, now, e.why()),
    }
}

/// Asks all of these for their word, at once. Who does not give it in time says nothing this time.
async fn hear(forwarder: &Forwarder, round: Vec<(usize, Addr)>) {
    let ask = async |(place, addr): (usize, Addr)| {
        let word = async {
            let answer = forwarder.client.forward(&addr, &Request::get(path::NODES), ANSWER_MAX).await?;
            answer.accepted().await?.json::<NodeStatus>(WORD_BYTES_MAX).await
        };
        Some((place, timeout(ANSWER_MAX, word).await.ok()?.ok()?))
    };
    let words: Vec<_> = join_all(round.into_iter().map(ask)).await.into_iter().flatten().collect();
    forwarder.outlook().upstreams.heard(forwarder.uptime(), &words);
}

/// From 0 to 1.
fn chance() -> f64 {
    f64::from(Uuid::new_v4().as_bytes()[0]) / 255.0
}
