//! Owns the asking side of exchanges: one task for each peer.
//!
//! The flow: a task wakes (this node's own log grew, the members changed, a peer that failed before sent a request, or
//! the jittered timer fired) -> `replica::exchange` plans -> read from the store -> `POST /sync` -> the peer's
//! [`answer`](super::answer) -> `cluster` records what the peer holds -> the runs of the reply go to the writer as they
//! arrive.
//!
//! What a message says is decided in `chain::sync` and `replica::exchange`. Entries of peers take a bounded part of
//! each commit, so exchanges delay sends by little.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::address::Addr;
use crate::api::error::ErrorCode;
use crate::chain::ids::Origin;
use crate::chain::sync::NextExchange;
use crate::chain::sync::wire::{self, Hello, Run, SyncMessage};
use crate::chain::vector::{LogSpan, Vector};
use crate::client::ClientError;
use crate::node::cluster::arriving_answer::{ArrivingAnswer, silence_max};
use crate::node::cluster::failure::{ExchangeError, FailureReports};
use crate::node::cluster::side_push;
use crate::node::{Node, blocking, blocking_while_awaited, now_ms};
use crate::replica::exchange::{Exchange, PlannedRequest, Reply, RunActions, Trigger};
use crate::replica::pace::{self, Pace};
use crate::replica::repair::AskedIn;
use crate::replica::runs::{ReadRuns, Wanted};
use crate::replica::write_ops::{Admitted, Maintenance, PeerRecords};
use crate::replica::{forks, runs};

/// Pieces of one exchange that wait for the writer at the same time. At the bound the next ones wait here: one peer
/// with thousands of short logs must not fill the inbox that all peers share.
const PIECES_WAITING_MAX: usize = 128;
/// Bytes of a record, roughly, before one was pushed.
const ENTRY_BYTES: u64 = 500;
/// Reading for one message of an exchange ends after this long, between two ranges. The next message carries the rest.
const READ_TIME: Duration = Duration::from_secs(1);
/// Waits after failures double from the first to the second, with full jitter.
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// Pause after an exchange for which this process had no file descriptor.
const DESCRIPTOR_RETRY: Duration = Duration::from_secs(1);
/// Members that could not be stored are written again after this long.
const MEMBERS_RETRY: Duration = Duration::from_secs(10);
/// Exchanges in a row that ask for another one and bring no entries. After more of them the peer counts as failing.
const IDLE_ROUNDS_MAX: u32 = 8;

/// Runs one task for each peer, and writes the members to disk when they change, until `stop`.
pub async fn run(node: Node, stop: CancellationToken) {
    let mut changed = node.cluster.members_changed.subscribe();
    let mut running: HashMap<usize, CancellationToken> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        changed.mark_unchanged();
        let numbers = node.cluster.roster().numbers();
        let gone = running.extract_if(|number, _| !numbers.contains(number));
        gone.for_each(|(_, end)| end.cancel());
        for number in numbers {
            running.entry(number).or_insert_with(|| {
                let (node, end) = (node.clone(), stop.child_token());
                tasks.spawn(end.clone().run_until_cancelled_owned(run_client(node, number)));
                end
            });
        }
        let stored = node.cluster.store_members(&node).await;
        tokio::select! {
            () = stop.cancelled() => return,
            _ = changed.changed() => {} // never an error: this task has the sending end, too
            () = tokio::time::sleep(MEMBERS_RETRY), if stored.is_err() => {}
            Some(ended) = tasks.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "an exchange task ended early"); // returning before `stop` ends the node
                return;
            },
        }
    }
}

/// Exchanges with one peer until it is not asked any more, and pushes aside while an exchange takes long.
async fn run_client(node: Node, number: usize) {
    let client = SyncClient::new(number);
    let side_pushes = side_push::run(&node, number, client.running.subscribe());
    tokio::select! {
        () = run_exchanges(&node, client) => {}
        () = side_pushes => {}
    }
}

async fn run_exchanges(node: &Node, mut client: SyncClient) {
    let number = client.number;
    let (mut on_timer, mut reports) = (true, FailureReports::default());
    while let Some((peer, wake)) = node.cluster.peer_address(number) {
        let is_usual_until = (!client.usual.is_zero()).then(|| Instant::now() + 2 * client.usual);
        client.running.send_replace(is_usual_until);
        let outcome = client.exchange(node, on_timer).await;
        client.running.send_replace(None);
        client.release_own_push(node);
        match outcome {
            Ok(Some(NextExchange::Again)) => on_timer = false,
            Ok(Some(NextExchange::Wait)) => {
                reports.worked(&peer);
                client.failures = 0;
                on_timer = client.wait(node, &wake).await;
            }
            // This node itself answers there. Another one may later, so the address is tried again.
            Ok(None) => {
                let _either = tokio::time::timeout(jittered(BACK_OFF_MAX), wake.notified()).await;
                on_timer = true;
            }
            Err(error) => {
                reports.failed(&peer, &error, node.cluster.started.elapsed());
                node.cluster.on_failure(number, error.why);
                node.cluster.sessions().release(number);
                client.failures += 1;
                client.back_off(&wake).await;
                on_timer = true;
            }
        }
    }
}

/// The asking side of exchanges with one peer.
pub struct SyncClient {
    exchange: Exchange,
    number: usize,
    failures: u32,
    idle_rounds: u32,
    /// The peer lacks members that this node knows, so the next request lists them.
    sends_members: bool,
    /// It alone may push new entries of this node's own log now.
    has_reserved_push: bool,
    push: Pace,
    pull: Pace,
    /// The shortest time of late from a request to the head of its answer, whatever it carried: at most a little more
    /// than a round trip. Zero: not known.
    usual: Duration,
    /// From when on the exchange that is under way takes longer than its round trip.
    running: watch::Sender<Option<Instant>>,
}

impl SyncClient {
    pub fn new(number: usize) -> Self {
        SyncClient {
            exchange: Exchange::default(),
            number,
            failures: 0,
            idle_rounds: 0,
            sends_members: false,
            has_reserved_push: false,
            push: Pace::new(pace::FIRST_PUSH_BYTES),
            pull: Pace::new(pace::FIRST_PULL_BYTES),
            usual: Duration::ZERO,
            running: watch::Sender::new(None),
        }
    }

    /// One exchange. `None`: this node itself answered, or the peer is not asked any more.
    pub async fn exchange(
        &mut self,
        node: &Node,
        on_timer: bool,
    ) -> Result<Option<NextExchange>, ExchangeError> {
        let cluster = &node.cluster;
        let Some((addr, _)) = cluster.peer_address(self.number) else { return Ok(None) };
        let (planned, request, pushed) = self.request(node, on_timer).await?;
        let wants = request.wants.clone();
        let sent = Instant::now();
        // Where connections are cut, the next large answer on this one would be lost.
        let is_last = request.budget.is_some() && self.pull.is_cut();
        let encoded = node.limits.compute(wire::run_bytes(&request.runs), move || request.encode()).await;
        let encoded = encoded.map_err(|problem| problem.detail)?;
        let silence = silence_max(self.usual);
        let within = silence + Duration::from_millis(self.push.time_max_ms());
        let body = match cluster.client.sync(&addr, encoded.into(), within, silence, is_last).await {
            Ok(body) => body,
            Err(error @ ClientError::NoDescriptor { .. }) => {
                cluster.on_own_lack(self.number, &error);
                tokio::time::sleep(DESCRIPTOR_RETRY).await;
                return Ok(Some(NextExchange::Again));
            }
            Err(error) => {
                match error.problem() {
                    Some(problem) if problem.code == ErrorCode::StorageFull => cluster.on_full(self.number),
                    _ if pushed > 0 => self.push.on_lost(),
                    _ => {}
                }
                return Err(error.into());
            }
        };
        let mut answer = ArrivingAnswer::new(node, &addr, body);
        let first = answer.next_run().await?;
        let rtt = sent.elapsed();
        self.measure_push(pushed, rtt);
        let head = answer.head()?;
        if !self.is_peer(node, &addr, &head.hello).await? {
            return Ok(None);
        }
        let (reply, cuts) = self.exchange.on_reply(planned, &head, &node.logs());
        let clone_address = cluster.roster().clone_address(&head, now_ms());
        if let Some(address) = clone_address {
            take_new_store_id(node, &address).await;
        }
        cluster.on_answer(self.number, &head, self.exchange.theirs(), node.logs().vector(), rtt)?;
        self.verify_own(node, &head.hello).await?;
        self.release_own_push(node);
        self.running.send_replace(Some(Instant::now()));
        for cut in cuts {
            node.writer.maintain(cut).await;
        }
        let (mut next, progress, is_whole) = self.take_runs(node, answer, reply, first, sent).await?;
        if is_whole {
            cluster.on_whole_answer(&wants, &head, self.exchange.theirs(), sent);
        }
        let sent_members = std::mem::replace(&mut self.sends_members, cluster.has_members_missing_in(&head));
        if progress || (self.sends_members && !sent_members) {
            next = NextExchange::Again;
        }
        cluster.sessions().release(self.number);
        // Only entries count as progress: a peer whose words change each time must not keep this task running.
        self.idle_rounds = if next == NextExchange::Again && !progress { self.idle_rounds + 1 } else { 0 };
        if self.idle_rounds > IDLE_ROUNDS_MAX {
            return Err("the exchange does not come to an end".to_owned().into());
        }
        Ok(Some(next))
    }

    /// The next request, and how many bytes of records it pushes.
    async fn request(
        &mut self,
        node: &Node,
        on_timer: bool,
    ) -> Result<(PlannedRequest, SyncMessage, usize), String> {
        let cluster = &node.cluster;
        if let Some(theirs) = cluster.vector_of(self.number) {
            self.exchange.learn(&theirs);
        }
        self.begin_log_if_behind(node).await;
        let logs = node.logs();
        let repairs = cluster.repairs_to_request(node, AskedIn::Request(self.number), self.exchange.theirs());
        let (number, rate) = (self.number, self.pull.rate());
        let skip = |origin| cluster.owner_pushes(origin) || !cluster.sessions().claim(origin, number, rate);
        let peer_has = |origin| cluster.peer_has(number, origin, &logs);
        let (skip, peer_has): (&dyn Fn(_) -> _, &dyn Fn(_) -> _) = (&skip, &peer_has);
        let trigger = Trigger { on_timer, now_ms: cluster.uptime_ms(), skip, peer_has, repair: repairs };
        let planned = self.exchange.plan(&logs, trigger);
        let runs = read_runs(node, planned.reads.clone(), self.push.bytes()).await?;
        let pushed = wire::run_bytes(&runs.runs);
        // Entries of other logs may take long, and those of this node's own log must not wait for them.
        let only_own = !runs.runs.is_empty() && runs.runs.iter().all(|run| Some(run.origin) == logs.own());
        self.has_reserved_push = only_own && cluster.reserve_own_push(number);
        let mut request = self.exchange.request(cluster.hello(), now_ms(), &planned, runs);
        let asks = request.wants_any || !request.wants.is_empty();
        request.budget = u32::try_from(self.pull.bytes()).ok().filter(|_| asks);
        cluster.add_members_to_request(&mut request, self.sends_members);
        Ok((planned, request, pushed))
    }

    /// Finds out whether the peer's copy of this node's own log is no fork, if it is shorter than the log.
    async fn verify_own(&self, node: &Node, hello: &Hello) -> Result<(), String> {
        let logs = node.logs();
        let Some(theirs) = self.exchange.theirs() else { return Ok(()) };
        let Some((own, head)) = node.cluster.unverified_own(self.number, theirs, &logs) else {
            return Ok(());
        };
        let span = *logs.vector().get(own).expect("a log that is compared is here");
        let is_sent = self.exchange.own_head_sent() == Some((own, head));
        let is_same = is_sent || {
            let store = node.store.clone();
            let hash = blocking(move || runs::hash_at(&store, own, span.floor, head.seq)).await?;
            hash == Some(head.hash)
        };
        if is_same {
            node.cluster.on_verified(self.number, hello.incarnation(), own, LogSpan { head, ..span });
        }
        Ok(())
    }

    fn release_own_push(&mut self, node: &Node) {
        if std::mem::take(&mut self.has_reserved_push) {
            node.cluster.release_own_push(self.number);
        }
    }

    /// Whether a node of this network answered that is not this one. An error if it is no peer at all.
    async fn is_peer(&self, node: &Node, addr: &Addr, hello: &Hello) -> Result<bool, String> {
        let cluster = &node.cluster;
        if hello.network != cluster.network {
            return Err("it belongs to another network".into());
        }
        if cluster.roster().is_own(hello) {
            cluster.on_self_found(self.number);
            return Ok(false);
        }
        if hello.is_copied(cluster.roster().own()) {
            take_new_store_id(node, &addr.to_string()).await;
            return Err("it has a copy of this node's store".into());
        }
        Ok(true)
    }

    /// Stores the runs of an answer as they arrive, so that a link that is cut loses the last one only. Second: whether
    /// there was progress, new entries or a step of a bisection. Third: whether the answer came whole.
    async fn take_runs(
        &mut self,
        node: &Node,
        mut answer: ArrivingAnswer,
        mut reply: Reply,
        first: Option<Run>,
        sent: Instant,
    ) -> Result<(NextExchange, bool, bool), String> {
        let (mut bytes, mut progress, mut broken, mut next) = (0, false, None, first);
        while let Some(run) = next.take() {
            let mut runs = vec![run];
            while let Some(run) = answer.decoded_run().await? {
                runs.push(run);
            }
            bytes += wire::run_bytes(&runs);
            let (logs, damage) = (node.logs(), node.store.log().damage());
            let actions = self.exchange.on_runs(&mut reply, runs, &logs, damage);
            progress |= self.apply(node, answer.addr(), actions).await?;
            node.cluster.on_progress(self.number);
            match answer.next_run().await {
                Ok(run) => next = run,
                Err(why) => broken = Some(why),
            }
        }
        let now_ms = node.cluster.uptime_ms();
        let next = self.exchange.on_reply_end(&reply, broken.is_none(), now_ms);
        if broken.is_some() {
            self.pull.on_cut(bytes);
        } else if bytes > 0 {
            let took = millis(sent.elapsed()).saturating_sub(self.pull.round_trip_ms());
            self.pull.on_carried(bytes, took);
        }
        match broken {
            Some(why) if !progress => Err(why),
            broken => Ok((next, progress, broken.is_none())),
        }
    }

    /// Carries out what runs lead to. True if that was progress.
    async fn apply(&mut self, node: &Node, peer: &str, actions: RunActions) -> Result<bool, String> {
        if let Some(repair) = actions.repair {
            node.writer.maintain(repair).await;
        }
        let owner = self.exchange.peer_own().map(|own| (own, self.number));
        let admitted = admit_runs(node, peer, self.exchange.theirs(), owner, actions.runs).await;
        let now_ms = node.cluster.uptime_ms();
        let new = self.exchange.on_admitted(&admitted, now_ms);
        if let Some(why) = admitted.iter().find_map(|(_, admitted)| admitted.not_stored) {
            return Err(format!("this node cannot store what {peer} sent: {why:?}"));
        }
        let mut progress = new > 0;
        for (origin, bisection, run) in actions.probes {
            let (store, logs) = (node.store.clone(), node.logs());
            let outcome = blocking_while_awaited(move |is_awaited| {
                forks::judge(&store, &logs, origin, bisection, &run, is_awaited)
            })
            .await?;
            progress = true; // each step of a bisection halves its range or ends it
            if let Some(maintenance) = self.exchange.on_bisected(origin, outcome, now_ms) {
                if let Maintenance::Cut(origin, _) = maintenance {
                    node.cluster.incidents.add(format!(
                        "log {origin} was forked: {peer} had other content than this node; both are kept"
                    ));
                }
                node.writer.maintain(maintenance).await;
            }
        }
        Ok(progress)
    }

    fn measure_push(&mut self, pushed: usize, took: Duration) {
        let longest = if self.usual.is_zero() { took } else { self.usual * 9 / 8 };
        self.usual = took.min(longest);
        let took = millis(took);
        if pushed == 0 {
            self.push.on_round_trip(took);
            self.pull.on_round_trip(took);
        } else {
            self.push.on_carried(pushed, took.saturating_sub(self.push.round_trip_ms()));
        }
    }

    /// If the peer lacks more of this node's log than its link carries soon, new messages go to a new log, which is
    /// sent first.
    async fn begin_log_if_behind(&self, node: &Node) {
        let logs = node.logs();
        let (lag, own) = (self.exchange.own_lag(&logs), logs.own());
        if let Some(own) = own.filter(|_| self.push.is_lag(lag.saturating_mul(ENTRY_BYTES)))
            && node.cluster.incidents.try_begin_log()
        {
            tracing::info!(
                peer = self.number,
                lag,
                "the link to a peer is slow: new messages go to a new log"
            );
            node.writer.maintain(Maintenance::Abandon(own)).await;
        }
    }

    /// Waits until there is a reason for an exchange. True if it is the timer.
    async fn wait(&self, node: &Node, wake: &Notify) -> bool {
        let mut signal = node.logs_signal();
        // On a slow link, exchanges that say nothing cost more than they tell.
        let interval = node.config.sync_interval.max(2 * self.usual);
        tokio::select! {
            // An error only if the node is ending.
            grown = signal.wait_for(|logs| {
                self.exchange.has_own_to_push(logs, |origin| node.cluster.peer_has(self.number, origin, logs))
            }) => grown.is_err(),
            () = wake.notified() => false,
            () = tokio::time::sleep(jittered(interval)) => true,
        }
    }

    /// After a failure: waits a random part of a growing time, or until the peer sends a request.
    async fn back_off(&mut self, wake: &Notify) {
        let growing = BACK_OFF_MIN.saturating_mul(1 << self.failures.min(16)).min(BACK_OFF_MAX);
        self.idle_rounds = 0;
        tokio::select! {
            () = tokio::time::sleep(growing.mul_f64(fastrand::f64())) => {}
            () = wake.notified() => self.failures = 0,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Between three and five quarters of the interval, so that the timers of nodes do not run in step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.75 + fastrand::f64() / 2.0)
}

/// Gives the store a new id and has it opened again. Of two running nodes with copies of one store, the one that opened
/// its copy later does this, so that each becomes a member of its own.
pub(super) async fn take_new_store_id(node: &Node, peer: &str) {
    if !node.cluster.incidents.try_take_new_id() {
        return; // a peer that claims to be a copy again and again must not keep the store closed
    }
    let store = node.store.clone();
    let renewed = blocking(move || store.renew_id()).await;
    let copied = |()| format!("{peer} runs with a copy of it, so it took a new store id");
    match renewed.map(copied) {
        Ok(why) => node.writer.fault.raise_for_new_id(why),
        Err(error) => node.writer.fault.raise(error),
    }
}

/// Reads the records that a message of an exchange carries.
pub(super) async fn read_runs(node: &Node, ranges: Vec<Wanted>, bytes: usize) -> Result<ReadRuns, String> {
    if ranges.is_empty() {
        return Ok(ReadRuns::default());
    }
    let (store, logs) = (node.store.clone(), node.logs());
    let began = Instant::now();
    blocking(move || runs::read(&store, &logs, &ranges, bytes, || began.elapsed() < READ_TIME)).await
}

/// Has the writer admit runs, in pieces. One result per run. `owner`: the peer that answers, and the log that it appends
/// to.
pub(super) async fn admit_runs(
    node: &Node,
    peer: &str,
    theirs: Option<&Vector>,
    owner: Option<(Origin, usize)>,
    runs: Vec<Run>,
) -> Vec<(Origin, Admitted)> {
    let (bytes, theirs) = (wire::run_bytes(&runs), theirs.cloned());
    let split = move || {
        let mut pieces: Vec<(usize, PeerRecords)> = Vec::new();
        for (index, run) in runs.iter().enumerate() {
            let owner = owner.filter(|(own, _)| *own == run.origin).map(|(_, number)| number);
            pieces.extend(runs::pieces(run, theirs.as_ref(), owner).into_iter().map(|piece| (index, piece)));
        }
        (runs, pieces)
    };
    let (runs, pieces) = node.limits.compute(bytes, split).await.expect("splitting runs does not panic");
    let admit = |(index, piece)| async move { (index, node.writer.admit(piece).await) };
    let mut waiting = stream::iter(pieces.into_iter().map(admit)).buffered(PIECES_WAITING_MAX);
    let mut admitted: Vec<Vec<Admitted>> = vec![Vec::new(); runs.len()];
    while let Some((index, piece)) = waiting.next().await {
        admitted[index].push(piece);
    }
    let of_run = |(run, pieces): (&Run, _)| (run.origin, runs::admitted(run, pieces));
    let admitted: Vec<(Origin, Admitted)> = runs.iter().zip(admitted).map(of_run).collect();
    let mut refused = admitted.iter().filter_map(|(origin, admitted)| Some((origin, admitted.refused?)));
    if let Some((origin, why)) = refused.next() {
        tracing::warn!(%origin, peer, %why, others = refused.count(), "entries of a log were refused");
    }
    admitted
}
