//! Owns the exchanges with peers: one task per peer that starts them, and `POST /sync` that answers.
//!
//! What is said is decided in `chain::sync`; here are the wire, the store and the waiting. A task wakes when
//! this node's own log grew, when the peer spoke to us, or by a jittered timer; so pushing and comparing are
//! one loop with two reasons. Nothing here holds up a send.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::body::Body as HttpBody;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::error::{ErrorCode, Problem};
use crate::api::media;
use crate::api::query::refuse_any;
use crate::chain::ids::Origin;
use crate::chain::logs::AdmitError;
use crate::chain::sync::NextExchange;
use crate::chain::sync::wire::{Malformed, Run, SyncMessage};
use crate::chain::vector::Vector;
use crate::node::Node;
use crate::replica::exchange;
use crate::replica::exchange::{Exchange, ReadRuns, ReplyActions, Trigger, Wanted};
use crate::replica::write_ops::{Admitted, Maintenance, PeerRecords};
use crate::serve;

/// How it is told that a store has another name.
const NEW_STORE_ID: &str = "it took a new name";
/// A request longer than this is refused; ours stay well below.
const BODY_BYTES_MAX: usize = 8 << 20;
/// Pieces of one exchange that wait for the writer at the same time. At the bound the next ones wait here: thousands of
/// short logs must not fill the inbox, where several peers have room beside each other.
const PIECES_WAITING_MAX: usize = 128;
/// A whole exchange takes at most this long; then the peer counts as failing.
const EXCHANGE_TIME: Duration = Duration::from_secs(10);
/// Reading for one message of an exchange ends after this long, between two ranges; the rest goes with the next.
const READ_TIME: Duration = Duration::from_secs(1);
/// Waits after failures double up to this, with full jitter.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// The first of them.
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
/// Exchanges in a row that may bring nothing before the peer counts as failing.
const IDLE_ROUNDS_MAX: u32 = 8;

/// Keeps a link to every peer, and what is known of members on disk, until `stop`.
pub async fn run(node: Node, stop: CancellationToken) {
    let mut changed = node.cluster.members_changed();
    let mut running: HashMap<usize, CancellationToken> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        changed.mark_unchanged();
        let numbers = node.cluster.peer_numbers();
        let gone = running.extract_if(|number, _| !numbers.contains(number));
        gone.for_each(|(_, end)| end.cancel());
        for number in numbers {
            running.entry(number).or_insert_with(|| {
                let end = stop.child_token();
                tasks.spawn(run_client(node.clone(), number, end.clone()));
                end
            });
        }
        node.cluster.store_members(&node).await;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changed.changed() => if changed.is_err() {
                return; // the node is ending
            },
            Some(ended) = tasks.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "a link ended"); // as early as that, it ends the node
                return;
            },
        }
    }
}

/// Talks to one peer until `stop`, or until it is none any more.
async fn run_client(node: Node, index: usize, stop: CancellationToken) {
    let mut talk = SyncClient::new(index);
    let (mut on_timer, mut is_failing) = (true, false);
    loop {
        let Some((peer, wake)) = node.cluster.peer_address(index) else { return };
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = talk.exchange(&node, on_timer) => next,
        };
        match next {
            Ok(Some(NextExchange::Again)) => on_timer = false,
            Ok(Some(NextExchange::Wait)) => {
                if is_failing {
                    tracing::info!(%peer, "exchanges work again");
                }
                (talk.failures, is_failing) = (0, false);
                on_timer = tokio::select! {
                    () = stop.cancelled() => return,
                    on_timer = talk.wait(&node) => on_timer,
                };
            }
            // At this address we meet ourselves. It may be somebody else's one day, or who was there may be found
            // elsewhere, so it is looked at again.
            Ok(None) => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(jittered(BACK_OFF_MAX)) => on_timer = true,
                    () = wake.notified() => on_timer = true,
                }
            }
            Err(why) => {
                // Once, also of one that speaks to us, by which it is tried again each time.
                if !is_failing {
                    tracing::warn!(%peer, why, "exchanges fail");
                }
                is_failing = true;
                node.cluster.on_failure(index, why);
                node.cluster.release(index);
                talk.failures += 1;
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = talk.back_off(&node) => on_timer = true,
                }
            }
        }
    }
}

/// The starting side of exchanges with one peer.
pub(in crate::node) struct SyncClient {
    exchange: Exchange,
    index: usize,
    failures: u32,
    idle_rounds: u32,
    /// The peer lacks members that we know.
    sends_members: bool,
}

impl SyncClient {
    pub(in crate::node) fn new(index: usize) -> Self {
        SyncClient { exchange: Exchange::default(), index, failures: 0, idle_rounds: 0, sends_members: false }
    }

    /// One exchange. `None`: the peer is this node, or none any more.
    pub(in crate::node) async fn exchange(
        &mut self,
        node: &Node,
        on_timer: bool,
    ) -> Result<Option<NextExchange>, String> {
        let (logs, cluster) = (node.logs(), &node.cluster);
        let Some((addr, _)) = cluster.peer_address(self.index) else { return Ok(None) };
        let mend = cluster.repairs_to_request(node, self.exchange.theirs());
        let leave = |origin| cluster.owner_pushes(origin) || !cluster.claim(origin, self.index);
        let occasion = Trigger { on_timer, now_ms: cluster.uptime_ms(), leave: &leave, mend };
        let planned = self.exchange.plan(&logs, occasion);
        let read = read_runs(node, planned.reads.clone()).await?;
        let mut request = self.exchange.request(cluster.hello(), &planned, read);
        cluster.add_members_to_request(&mut request, self.sends_members);
        let began = Instant::now();
        let reply = cluster.client.sync(&addr, request.encode().into(), EXCHANGE_TIME).await;
        let reply = reply.map_err(|error| error.to_string())?;
        let reply = SyncMessage::decode(&reply).map_err(|error| format!("{addr}: {error}"))?;
        if reply.hello.network != cluster.network {
            return Err(format!("{addr} belongs to another network"));
        }
        if cluster.is_self(&reply) {
            cluster.on_self_found(self.index);
            return Ok(None);
        }
        if cluster.is_clone(&reply) {
            take_new_store_id(node, &addr.to_string()).await;
            return Err(format!("{addr} has a copy of this node's store"));
        }
        let rtt = began.elapsed();
        let said = SyncMessage {
            own: reply.own,
            wants: reply.wants.clone(),
            members: reply.members.clone(),
            ..SyncMessage::quiet(reply.hello.clone(), reply.digest)
        };
        let heard = self.exchange.on_reply(planned, reply, &node.logs(), node.store.log().damage());
        if let Some(copy) = cluster.clone_address(&said) {
            take_new_store_id(node, &copy).await;
        }
        cluster.on_answer(self.index, &said, self.exchange.theirs(), rtt, crate::node::now_ms())?;
        let (mut next, progress) = (heard.next, self.apply(node, &addr.to_string(), heard).await?);
        let introduced = std::mem::replace(&mut self.sends_members, cluster.has_members_missing_in(&said));
        if progress || (self.sends_members && !introduced) {
            next = NextExchange::Again;
        }
        cluster.release(self.index);
        // Only entries are progress: a peer that says something new of itself each time must not keep us running.
        self.idle_rounds = if next == NextExchange::Again && !progress { self.idle_rounds + 1 } else { 0 };
        if self.idle_rounds > IDLE_ROUNDS_MAX {
            return Err(format!("{addr}: the exchange does not come to an end"));
        }
        Ok(Some(next))
    }

    /// Does what an answer leads to. Whether anything came of it.
    async fn apply(&mut self, node: &Node, peer: &str, mut heard: ReplyActions) -> Result<bool, String> {
        for care in std::mem::take(&mut heard.care) {
            node.writer.maintain(care).await;
        }
        let admitted = admit_runs(node, self.exchange.theirs(), std::mem::take(&mut heard.runs)).await;
        let new = self.exchange.settle(&heard, &admitted, node.cluster.uptime_ms());
        for (origin, admitted) in &admitted {
            if let Some(why) = &admitted.refused {
                log_refusal(*origin, peer, why);
            }
            if let Some(why) = admitted.not_stored {
                return Err(format!("this node cannot store what {peer} sent: {why:?}"));
            }
        }
        let mut progress = new > 0;
        for (origin, search, run) in heard.probes {
            let store = node.store.clone();
            let judging = move || exchange::judge(&store, origin, search, &run);
            let verdict = tokio::task::spawn_blocking(judging).await.map_err(|error| error.to_string())?;
            progress = true; // a search comes closer with every step, or ends
            if let Some(care) = self.exchange.judged(origin, verdict.map_err(|error| error.to_string())?) {
                if let Maintenance::Cut(origin, _) = care {
                    node.cluster.report_fork(origin, peer);
                }
                node.writer.maintain(care).await;
            }
        }
        Ok(progress)
    }

    /// Until there is something to say: `true` if it was the timer.
    async fn wait(&self, node: &Node) -> bool {
        let mut signal = node.logs_signal();
        let timer = tokio::time::sleep(jittered(node.config.sync_interval));
        let Some((_, wake)) = node.cluster.peer_address(self.index) else { return true };
        tokio::pin!(timer);
        loop {
            if self.exchange.has_own_to_push(&signal.borrow_and_update()) {
                return false;
            }
            tokio::select! {
                () = &mut timer => return true,
                () = wake.notified() => return false,
                changed = signal.changed() => if changed.is_err() {
                    return true; // the node is ending
                },
            }
        }
    }

    /// After a failure: until a random part of a growing time has passed, or the peer speaks to us.
    async fn back_off(&mut self, node: &Node) {
        let growing = BACK_OFF_MIN.saturating_mul(1 << self.failures.min(16)).min(BACK_OFF_MAX);
        self.idle_rounds = 0;
        let Some((_, wake)) = node.cluster.peer_address(self.index) else { return };
        tokio::select! {
            () = tokio::time::sleep(growing.mul_f64(random_part())) => {}
            () = wake.notified() => self.failures = 0,
        }
    }
}

/// A random number from 0 to below 1.
fn random_part() -> f64 {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    let random = u16::from_be_bytes([bytes[0], bytes[1]]);
    f64::from(random) / (f64::from(u16::MAX) + 1.0)
}

/// Between three quarters and five quarters, so that nodes do not fall into step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.75 + random_part() / 2.0)
}

/// Of two running nodes with one store, the one that opened it later takes a new name for it: each is a copy of its own.
async fn take_new_store_id(node: &Node, peer: &str) {
    if !node.cluster.incidents.may_take_new_id() {
        return; // nobody is copied that often: a peer that claims so must not keep the store closed
    }
    let store = node.store.clone();
    let renamed = tokio::task::spawn_blocking(move || store.renew_id()).await;
    let why = match renamed {
        Ok(Ok(())) => format!("{peer} runs with a copy of it, so {NEW_STORE_ID}"),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    node.writer.fault().raise(why);
}

fn log_refusal(origin: Origin, peer: &str, why: &AdmitError) {
    tracing::warn!(%origin, peer, %why, "entries were refused");
}

/// Reads what a message of an exchange is to carry.
async fn read_runs(node: &Node, ranges: Vec<Wanted>) -> Result<ReadRuns, String> {
    if ranges.is_empty() {
        return Ok(ReadRuns::default());
    }
    let store = node.store.clone();
    let began = Instant::now();
    let reading = move || -> Result<_, _> { exchange::read(&store, &ranges, || began.elapsed() < READ_TIME) };
    let read = tokio::task::spawn_blocking(reading).await.map_err(|error| error.to_string())?;
    read.map_err(|error| error.to_string())
}

/// Has the writer take in runs, in pieces; one result per run.
async fn admit_runs(node: &Node, theirs: Option<&Vector>, runs: Vec<Run>) -> Vec<(Origin, Admitted)> {
    let mut pieces: Vec<(usize, PeerRecords)> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        pieces.extend(exchange::pieces(run, theirs).into_iter().map(|piece| (index, piece)));
    }
    let admit = |(index, piece)| async move { (index, node.writer.admit(piece).await) };
    let mut waiting = stream::iter(pieces.into_iter().map(admit)).buffered(PIECES_WAITING_MAX);
    let mut admitted: Vec<Vec<Admitted>> = vec![Vec::new(); runs.len()];
    while let Some((index, piece)) = waiting.next().await {
        admitted[index].push(piece);
    }
    let of_run = |(run, pieces): (&Run, _)| (run.origin, exchange::admitted(run, pieces));
    runs.iter().zip(admitted).map(of_run).collect()
}

/// `POST /sync`.
pub async fn post(
    node: Node,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: HttpBody,
) -> Result<Response, Problem> {
    refuse_any(query.as_deref())?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(|value| media::is(value, media::BINARY)) {
        let detail = format!("an exchange has the Content-Type {}", media::BINARY);
        return Err(Problem::new(ErrorCode::UnsupportedMediaType, detail));
    }
    let bytes = serve::read_body(body, BODY_BYTES_MAX, &node.limits.bodies).await?;
    let request = SyncMessage::decode(&bytes).map_err(|error| {
        let code = match error {
            Malformed::Protocol(_) => ErrorCode::UnsupportedProtocol,
            Malformed::Magic | Malformed::Layout => ErrorCode::InvalidMessage,
        };
        Problem::new(code, error.to_string())
    })?;
    if request.hello.network != node.cluster.network {
        let detail = format!("this node belongs to the network {:?}", node.config.network);
        return Err(Problem::new(ErrorCode::WrongNetwork, detail));
    }
    let reply = answer(&node, request, bytes).await?;
    Ok(([(header::CONTENT_TYPE, media::BINARY)], HttpBody::from(reply.encode())).into_response())
}

/// Answers an exchange. `_bytes` keeps the request's share of the memory budget until its records are stored.
pub(in crate::node) async fn answer(
    node: &Node,
    mut request: SyncMessage,
    _bytes: Bytes,
) -> Result<SyncMessage, Problem> {
    if node.cluster.is_self(&request) {
        return Ok(SyncMessage::quiet(node.cluster.hello(), [0; 16]));
    }
    if node.cluster.is_clone(&request) {
        take_new_store_id(node, &request.hello.address).await;
        let detail = "this node has a copy of your store, and takes another name for it";
        return Err(Problem::new(ErrorCode::Overloaded, detail));
    }
    let mut door = node.cluster.open_door(&request);
    let (care, runs) = exchange::heard(&mut door, &node.logs(), node.store.log().damage(), &mut request);
    if let Some(copy) = node.cluster.clone_address(&request) {
        take_new_store_id(node, &copy).await;
    }
    node.cluster.on_request(&request, door.theirs());
    for care in care {
        node.writer.maintain(care).await;
    }
    let admitted = admit_runs(node, door.theirs(), runs).await;
    for (origin, admitted) in &admitted {
        if let Some(why) = &admitted.refused {
            log_refusal(*origin, &request.hello.address, why);
        }
    }
    if let Some(why) = admitted.iter().find_map(|(_, admitted)| admitted.not_stored) {
        node.cluster.close_door(&request, door);
        return Err(why.into());
    }
    let logs = node.logs();
    let read = read_runs(node, exchange::wanted(&request, &logs)).await;
    let read = read.map_err(|error| Problem::new(ErrorCode::StorageFailed, error))?;
    let mend = node.cluster.repairs_to_request(node, door.theirs());
    let mut reply = exchange::answer(&mut door, &logs, &request, read, mend, node.cluster.hello());
    node.cluster.add_members_to_reply(&request, &mut reply);
    node.cluster.close_door(&request, door);
    Ok(reply)
}
