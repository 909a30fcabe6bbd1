//! Owns the exchanges with peers: one task per configured peer that starts them, and `POST /sync` that answers.
//!
//! What is said is decided in `chain::sync`; here are the wire, the store and the waiting. A task wakes when
//! this node's own log grew, when the peer spoke to us, or by a jittered timer; so pushing and comparing are
//! one loop with two reasons. Nothing here holds up a send.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::body::Body as HttpBody;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;

use super::Node;
use super::inbox::Admitted;
use crate::api::error::{ErrorCode, Problem};
use crate::api::media;
use crate::api::query::refuse_any;
use crate::chain::log::{Logs, Refused};
use crate::chain::place::Origin;
use crate::chain::record::Record;
use crate::chain::sync::{self, Link, Next, Plan};
use crate::chain::vector::{Head, Vector};
use crate::chain::wire::{Body, Malformed, Range, Run, short};
use crate::serve;
use crate::store::log::Most;
use crate::store::{Error, Store};

/// Records in one message of an exchange. What does not fit goes with the next.
const RUN_BYTES_MAX: usize = 4 << 20;
/// A request longer than this is refused; ours stay well below.
const BODY_BYTES_MAX: usize = 8 << 20;
/// Records handed to the writer at once, so that clients' commits come between those of a long catch-up.
const PIECE_COUNT: usize = 1_000;
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
/// A log refused on a link, by us or by the peer, rests there for this long.
const REFUSED_TIME: Duration = Duration::from_secs(30);

/// Talks to one peer until `stop`.
pub async fn link(node: Node, index: usize, stop: CancellationToken) {
    let mut talk = Talk::new(index);
    let mut on_timer = true;
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = talk.exchange(&node, on_timer) => next,
        };
        match next {
            Ok(Some(Next::Again)) => on_timer = false,
            Ok(Some(Next::Wait)) => {
                if talk.failures > 0 {
                    tracing::info!(peer = %node.mesh().link(index).0, "exchanges work again");
                }
                talk.failures = 0;
                on_timer = tokio::select! {
                    () = stop.cancelled() => return,
                    on_timer = talk.wait(&node) => on_timer,
                };
            }
            // At this address we meet ourselves. It may be somebody else's one day, so it is looked at again.
            Ok(None) => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(jittered(BACK_OFF_MAX)) => on_timer = true,
                }
            }
            Err(why) => {
                if talk.failures == 0 {
                    tracing::warn!(peer = %node.mesh().link(index).0, why, "exchanges fail");
                }
                node.mesh().failed(index, why);
                node.mesh().release(index);
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
pub(super) struct Talk {
    link: Link,
    index: usize,
    refused: HashMap<Origin, Instant>,
    /// Our own log's head at the end of the last push, so that its hash need not be worked out again.
    sent: Option<(Origin, Head)>,
    failures: u32,
    idle_rounds: u32,
}

impl Talk {
    pub(super) fn new(index: usize) -> Self {
        let (link, refused) = (Link::default(), HashMap::new());
        Talk { link, index, refused, sent: None, failures: 0, idle_rounds: 0 }
    }

    /// One exchange. `None`: the peer is this node.
    pub(super) async fn exchange(&mut self, node: &Node, on_timer: bool) -> Result<Option<Next>, String> {
        let logs = node.logs();
        let (addr, _) = node.mesh().link(self.index);
        let mesh = node.mesh();
        let mut plan =
            self.link.start(logs.vector(), logs.own(), on_timer, |origin| mesh.owner_pushes(origin));
        self.refused.retain(|_, since| since.elapsed() < REFUSED_TIME);
        plan.push.retain(|push| !self.refused.contains_key(&push.origin));
        plan.wants
            .retain(|want| !self.refused.contains_key(&want.origin) && mesh.claim(want.origin, self.index));
        let request = self.request(node, &logs, &plan).await?;
        let began = Instant::now();
        let reply = mesh.client.sync(&addr, request.encode().into(), EXCHANGE_TIME).await;
        let reply = reply.map_err(|error| error.to_string())?;
        let reply = Body::decode(&reply).map_err(|error| format!("{addr}: {error}"))?;
        if reply.hello.network != mesh.hello.network {
            return Err(format!("{addr} belongs to another network"));
        }
        if mesh.is_self(&reply) {
            mesh.found_self(self.index);
            return Ok(None);
        }
        let rtt = began.elapsed();
        let before = self.link.theirs().cloned();
        // Our own log comes first; if it is not among what could be read, it is damaged and must rest as well.
        let own = plan.push.first().map(|push| push.origin).filter(|origin| Some(*origin) == logs.own());
        let pushed: Vec<Origin> = request.runs.iter().map(|run| run.origin).chain(own).collect();
        let mut next = self.link.on_reply(plan, &reply);
        mesh.answered(self.index, &reply, self.link.theirs(), rtt, super::now_ms());
        self.note_forks(node, &addr.to_string());
        self.note_not_taken(&pushed, before.as_ref(), &addr.to_string());
        let new = self.admit(node, &addr.to_string(), reply.runs).await?;
        if new > 0 {
            next = Next::Again;
        }
        mesh.release(self.index);
        // Only entries are progress: a peer that says something new of itself each time must not keep us running.
        self.idle_rounds = if next == Next::Again && new == 0 { self.idle_rounds + 1 } else { 0 };
        if self.idle_rounds > IDLE_ROUNDS_MAX {
            return Err(format!("{addr}: the exchange does not come to an end"));
        }
        Ok(Some(next))
    }

    /// The request that a plan describes, as far as it fits.
    async fn request(&mut self, node: &Node, logs: &Logs, plan: &Plan) -> Result<Body, String> {
        let mut body = Body::quiet(node.mesh().hello.clone(), short(plan.mine.digest()));
        (body.heads, body.need_full) = (plan.heads.clone(), plan.need_full);
        body.wants.clone_from(&plan.wants);
        body.own = if plan.heads.is_some() { logs.own() } else { None };
        if !plan.push.is_empty() {
            let (store, ranges, known) = (node.store().clone(), plan.push.clone(), self.sent);
            let read = tokio::task::spawn_blocking(move || read_runs(&store, &ranges, known));
            let read = read.await.map_err(|error| error.to_string())?;
            (body.runs, body.more) = read.map_err(|error| error.to_string())?;
        }
        for range in &plan.push {
            if Some(range.origin) == logs.own()
                && let Some(head) = plan.mine.get(range.origin)
            {
                self.sent = Some((range.origin, *head));
            }
        }
        Ok(body)
    }

    /// Logs of which the peer took nothing that was pushed rest on this link for a while; everything else goes on.
    fn note_not_taken(&mut self, pushed: &[Origin], before: Option<&Vector>, peer: &str) {
        let (Some(before), Some(now)) = (before, self.link.theirs()) else { return };
        for origin in pushed.iter().filter(|origin| before.seq(**origin) == now.seq(**origin)) {
            tracing::warn!(%origin, peer, "the peer does not take the entries of a log");
            self.refused.insert(*origin, Instant::now());
        }
    }

    fn note_forks(&self, node: &Node, peer: &str) {
        let Some(theirs) = self.link.theirs() else { return };
        for origin in sync::forks(node.logs().vector(), theirs) {
            node.mesh().forked(origin, peer);
        }
    }

    /// Has the writer take in what came; gives the number of new entries.
    async fn admit(&mut self, node: &Node, peer: &str, runs: Vec<Run>) -> Result<u64, String> {
        let origins: Vec<Origin> = runs.iter().map(|run| run.origin).collect();
        let admitted = admit_runs(node, self.link.theirs(), runs).await;
        let mut new = 0;
        for (origin, admitted) in origins.into_iter().zip(admitted) {
            new += admitted.new;
            if let Some(why) = &admitted.refused {
                self.refused.insert(origin, Instant::now());
                report(node, origin, peer, why);
            }
            if let Some(why) = admitted.not_stored {
                return Err(format!("this node cannot store what {peer} sent: {why:?}"));
            }
        }
        Ok(new)
    }

    /// Until there is something to say: `true` if it was the timer.
    async fn wait(&self, node: &Node) -> bool {
        let mut signal = node.logs_signal();
        let timer = tokio::time::sleep(jittered(node.config().sync_interval));
        let (_, wake) = node.mesh().link(self.index);
        tokio::pin!(timer);
        loop {
            if self.has_own_to_push(&signal.borrow_and_update()) {
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

    fn has_own_to_push(&self, logs: &Logs) -> bool {
        match (self.link.theirs(), logs.own()) {
            (Some(theirs), Some(own)) => {
                logs.vector().seq(own) > theirs.seq(own) && !self.refused.contains_key(&own)
            }
            _ => false,
        }
    }

    /// After a failure: until a random part of a growing time has passed, or the peer speaks to us.
    async fn back_off(&mut self, node: &Node) {
        let growing = BACK_OFF_MIN.saturating_mul(1 << self.failures.min(16)).min(BACK_OFF_MAX);
        let (_, wake) = node.mesh().link(self.index);
        self.idle_rounds = 0;
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

fn report(node: &Node, origin: Origin, peer: &str, why: &Refused) {
    tracing::warn!(%origin, peer, %why, "entries were refused");
    if matches!(why, Refused::Fork(_)) {
        node.mesh().forked(origin, peer);
    }
}

/// Reads what was asked for or is pushed, within bounds. `known`: a head whose hash is known already. The
/// second value: there is more than fits.
fn read_runs(
    store: &Store,
    ranges: &[Range],
    known: Option<(Origin, Head)>,
) -> Result<(Vec<Run>, bool), Error> {
    let mut runs = Vec::new();
    let mut left = RUN_BYTES_MAX;
    let began = Instant::now();
    for range in ranges {
        if left == 0 || began.elapsed() >= READ_TIME {
            return Ok((runs, true));
        }
        let Range { origin, first, last } = *range;
        let before = match known {
            Some((of, head)) if of == origin && head.seq == first - 1 => Ok(head.hash),
            _ => store.log().read()?.hash_at(origin, first - 1),
        };
        let Some(hash) = undamaged(before)? else { continue };
        let before = Head { seq: first - 1, hash };
        let mut run = Run { origin, before, records: Vec::new(), broken: None };
        let mut next = first;
        while next <= last && left > 0 {
            let most = Most { rows: PIECE_COUNT, bytes: left };
            let Some(entries) = undamaged(store.log().read()?.forward(origin, next, last, most))? else {
                break;
            };
            for entry in entries {
                left = left.saturating_sub(entry.record.len());
                next = entry.place.seq + 1;
                run.records.push(entry.record.into());
            }
        }
        if !run.records.is_empty() {
            runs.push(run);
        }
        if next <= last && left == 0 {
            return Ok((runs, true));
        }
    }
    Ok((runs, false))
}

/// `None`: damaged. It is never sent; what lies before it and the other logs are, so that one bad page here does not keep
/// a peer from all the rest.
fn undamaged<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error @ Error::Damaged { .. }) => {
            tracing::error!(%error, "not sent to a peer");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Has the writer take in runs, in pieces; one result per run.
async fn admit_runs(node: &Node, theirs: Option<&Vector>, runs: Vec<Run>) -> Vec<Admitted> {
    let mut pieces = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let claimed = sync::claimed(theirs, run.origin);
        let mut before = run.before;
        for piece in run.records.chunks(PIECE_COUNT) {
            pieces.push((index, before, claimed, piece.to_vec()));
            before = head_after(before, piece);
        }
    }
    let admit = |(index, before, claimed, piece)| async move {
        (index, node.writer().admit(before, claimed, piece).await)
    };
    let mut waiting = stream::iter(pieces.into_iter().map(admit)).buffered(PIECES_WAITING_MAX);
    let nothing = Admitted { new: 0, refused: None, not_stored: None };
    let mut all = vec![nothing; runs.len()];
    while let Some((index, admitted)) = waiting.next().await {
        let run: &mut Admitted = &mut all[index];
        run.new += admitted.new;
        run.refused = run.refused.or(admitted.refused);
        run.not_stored = run.not_stored.or(admitted.not_stored);
    }
    for (run, admitted) in runs.iter().zip(&mut all) {
        if run.broken.is_some() && admitted.not_stored.is_none() {
            let last = run.before.seq.saturating_add(run.records.len() as u64);
            admitted.refused = admitted.refused.or(Some(Refused::Broken(last)));
        }
    }
    all
}

/// The peer's head at the end of a piece: each piece is held against our chain by itself.
fn head_after(before: Head, piece: &[Bytes]) -> Head {
    let record = |bytes| Record::parse(bytes).expect("the exchange hands on checked records only").0;
    piece.iter().fold(before, |head, bytes| head.followed_by(&record(bytes)))
}

/// `POST /sync`.
pub async fn post(
    State(node): State<Node>,
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
    let bytes = serve::read_body(body, BODY_BYTES_MAX, node.budget()).await?;
    let request = Body::decode(&bytes).map_err(|error| {
        let code = match error {
            Malformed::Protocol(_) => ErrorCode::UnsupportedProtocol,
            Malformed::Magic | Malformed::Layout => ErrorCode::InvalidMessage,
        };
        Problem::new(code, error.to_string())
    })?;
    if request.hello.network != node.mesh().hello.network {
        let detail = format!("this node belongs to the network {:?}", node.config().network);
        return Err(Problem::new(ErrorCode::WrongNetwork, detail));
    }
    let reply = answer(&node, request, bytes).await?;
    Ok(([(header::CONTENT_TYPE, media::BINARY)], HttpBody::from(reply.encode())).into_response())
}

/// Answers an exchange. `_bytes` keeps the request's share of the memory budget until its records are stored.
pub(super) async fn answer(node: &Node, mut request: Body, _bytes: Bytes) -> Result<Body, Problem> {
    let mut reply = Body::quiet(node.mesh().hello.clone(), [0; 16]);
    if node.mesh().is_self(&request) {
        return Ok(reply);
    }
    let mut door = node.mesh().open_door(&request);
    door.on_request(node.logs().vector(), &request);
    node.mesh().heard(&request, door.theirs());
    let runs = std::mem::take(&mut request.runs);
    let origins: Vec<Origin> = runs.iter().map(|run| run.origin).collect();
    let admitted = admit_runs(node, door.theirs(), runs).await;
    for (origin, admitted) in origins.into_iter().zip(&admitted) {
        if let Some(why) = &admitted.refused {
            report(node, origin, &request.hello.address, why);
        }
    }
    if let Some(why) = admitted.iter().find_map(|admitted| admitted.not_stored) {
        node.mesh().close_door(&request, door);
        return Err(why.into());
    }
    let logs = node.logs();
    let wants = within(&request.wants, logs.vector());
    if !wants.is_empty() {
        let store = node.store().clone();
        let read = tokio::task::spawn_blocking(move || read_runs(&store, &wants, None));
        let read = read.await.map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))?;
        (reply.runs, reply.more) = read?;
    }
    door.answer(logs.vector(), &request, &mut reply);
    reply.own = if reply.heads.is_some() { logs.own() } else { None };
    node.mesh().close_door(&request, door);
    Ok(reply)
}

/// What of the wants we have.
fn within(wants: &[Range], mine: &Vector) -> Vec<Range> {
    let cut = wants.iter().map(|want| Range { last: want.last.min(mine.seq(want.origin)), ..*want });
    cut.filter(|want| want.first <= want.last).collect()
}
