//! Owns both sides of a side push: a few new entries of this node's own log, sent to a peer while an exchange with it
//! takes long, so that what is said now does not wait for a backlog.
//!
//! Before: `sync` says since when an exchange has taken longer than its round trip. A side push says nothing of what this node has, so it
//! may overtake messages of the exchange. Its answer says how far the peer has the log now.
//!
//! Invariant: new entries of this node's own log are on their way to a peer once, by the exchange or by a side push.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::api::error::Problem;
use crate::chain::ids::Origin;
use crate::chain::logs::Logs;
use crate::chain::sync::wire::{EntryRange, Heads, Hello, SyncMessage};
use crate::chain::vector::{LogSpan, Vector};
use crate::node::cluster::arriving_answer::{ArrivingAnswer, silence_max};
use crate::node::cluster::sync::{admit_runs, read_runs};
use crate::node::cluster::{AWAITED_COUNT_MAX, Cluster};
use crate::node::{Node, now_ms};
use crate::replica::pace;
use crate::replica::runs::Wanted;

/// An exchange that takes longer than its round trip by this takes long.
const LONG: Duration = Duration::from_millis(100);
/// Bytes of records in one side push. Further entries follow in the next one.
const BYTES_MAX: usize = pace::FIRST_PUSH_BYTES;
/// A side push may take this much longer than a silence that ends it: so many bytes take it at 1 KiB/s.
const ANSWER_MAX: Duration = Duration::from_secs(16);
/// After one that failed, the next one begins after this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// After one that the peer refused, the entries are left to the exchanges for this long.
const BACK_OFF: Duration = Duration::from_secs(30);

/// Pushes to one peer. `running`: from when on the exchange that is under way takes longer than its round trip. Ends
/// when the node does.
pub async fn run(node: &Node, number: usize, mut running: watch::Receiver<Option<Instant>>) {
    let mut signal = node.logs_signal();
    let mut follows_another = false;
    while running.wait_for(Option::is_some).await.is_ok() {
        // The connection of a side push is open, so the next one need not wait for the exchange to take long.
        if !std::mem::take(&mut follows_another) {
            tokio::time::sleep(LONG).await;
            let is_long = running.borrow_and_update().is_some_and(|began| began.elapsed() >= LONG);
            if !is_long {
                continue;
            }
        }
        let lacks_some = |logs: &_| node.cluster.new_own_entries(number, logs).is_some();
        tokio::select! {
            grown = signal.wait_for(|logs| lacks_some(logs)) => if grown.is_err() { return },
            _ = running.changed() => continue,
        }
        if !node.cluster.reserve_own_push(number) {
            continue; // the exchange has them
        }
        let outcome = push(node, number).await;
        node.cluster.release_own_push(number);
        if running.borrow().is_none()
            && let Some((_, wake)) = node.cluster.peer_address(number)
        {
            wake.notify_one(); // the exchange left entries to this push
        }
        match outcome {
            Ok(true) => follows_another = true,
            Ok(false) => tokio::time::sleep(BACK_OFF).await,
            Err(why) => {
                tracing::debug!(peer = number, why, "a side push failed");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// Pushes what the peer lacks now. False if it did not take them.
async fn push(node: &Node, number: usize) -> Result<bool, String> {
    let (cluster, logs) = (&node.cluster, node.logs());
    let Some((addr, _)) = cluster.peer_address(number) else { return Ok(false) };
    let Some(range) = cluster.new_own_entries(number, &logs) else { return Ok(true) };
    let runs = read_runs(node, vec![Wanted::by_peer(range)], BYTES_MAX).await?.runs;
    if runs.is_empty() {
        return Ok(false); // damaged
    }
    let after: Vec<_> = runs.iter().map(|run| (run.origin, run.log_type, run.after())).collect();
    let mut request = SyncMessage::quiet(cluster.hello(), [0; 16], now_ms());
    (request.entries_only, request.runs) = (true, runs);
    let round_trip = cluster.roster().peer(number).and_then(|peer| peer.rtt).unwrap_or_default();
    let silence = silence_max(round_trip);
    let body =
        cluster.client.sync(&addr, request.encode().into(), ANSWER_MAX + silence, silence, false).await;
    let mut answer = ArrivingAnswer::new(node, &addr, body.map_err(|error| error.to_string())?);
    while answer.next_run().await?.is_some() {} // an honest peer sends none
    let reply = answer.head()?;
    let spans = reply.heads.map_or_else(Vec::new, |heads| heads.changes);
    let mut sent = logs.vector().clone();
    for (origin, log_type, head) in after {
        sent.set_head(origin, log_type, head);
    }
    let is_taken = spans.iter().any(|(origin, span)| is_ahead(&range, *origin, span));
    Ok(cluster.on_side_answer(number, &reply.hello, spans, &sent) && is_taken)
}

fn is_ahead(range: &EntryRange, origin: Origin, span: &LogSpan) -> bool {
    origin == range.origin && span.head.seq >= range.first
}

/// Answers a side push of a peer.
pub async fn answer(node: &Node, request: SyncMessage) -> Result<SyncMessage, Problem> {
    let SyncMessage { hello, runs, .. } = request;
    let sent: Vec<_> = runs.iter().map(|run| (run.origin, run.after())).collect();
    let admitted = admit_runs(node, &hello.address, None, None, runs).await;
    if let Some(why) = admitted.iter().find_map(|(_, admitted)| admitted.not_stored) {
        return Err(why.into());
    }
    let logs = node.logs();
    let span_here = |(origin, _): &(Origin, _)| Some((*origin, *logs.vector().get(*origin)?));
    let spans: Vec<(Origin, LogSpan)> = sent.iter().filter_map(span_here).collect();
    let has = sent.iter().filter_map(|(origin, head)| {
        let span = logs.vector().get(*origin)?;
        (head.seq >= span.floor.seq).then_some((*origin, LogSpan { head: *head, ..*span }))
    });
    node.cluster.on_side_push(&hello, has, logs.vector());
    let mut reply = SyncMessage::quiet(node.cluster.hello(), [0; 16], now_ms());
    (reply.entries_only, reply.heads) = (true, Some(Heads { base: None, changes: spans, cuts: Vec::new() }));
    Ok(reply)
}

impl Cluster {
    /// The entries of this node's own log that a peer lacks, if they are few.
    pub fn new_own_entries(&self, number: usize, logs: &Logs) -> Option<EntryRange> {
        let mut roster = self.roster();
        let origin = logs.own()?;
        let (has, last) = (roster.peer(number)?.vector.as_ref()?.seq(origin), logs.vector().seq(origin));
        let is_few = last > has && last - has <= AWAITED_COUNT_MAX && !roster.peer(number)?.is_full();
        is_few.then(|| EntryRange { origin, first: has + 1, last })
    }

    /// Whether entries of this node's own log may be pushed to a peer now. If so, nothing else does until
    /// [`Cluster::release_own_push`].
    pub fn reserve_own_push(&self, number: usize) -> bool {
        self.roster().peer(number).is_some_and(|peer| !std::mem::replace(&mut peer.is_pushed_own, true))
    }

    pub fn release_own_push(&self, number: usize) {
        if let Some(peer) = self.roster().peer(number) {
            peer.is_pushed_own = false;
        }
    }

    /// A peer has sent entries of these logs aside.
    pub fn on_side_push(
        &self,
        hello: &Hello,
        spans: impl IntoIterator<Item = (Origin, LogSpan)>,
        mine: &Vector,
    ) {
        let mut roster = self.roster();
        let Some(peer) = roster.peer_of_sender(hello) else { return };
        peer.last_request = Some(Instant::now());
        let holders_changed = peer.on_spans(hello.incarnation(), spans, mine);
        self.notify(&roster, false, holders_changed);
    }

    /// A peer has these logs so far, after a side push to it. False if another node answered than the one that was
    /// asked.
    pub fn on_side_answer(
        &self,
        number: usize,
        hello: &Hello,
        spans: impl IntoIterator<Item = (Origin, LogSpan)>,
        mine: &Vector,
    ) -> bool {
        let mut roster = self.roster();
        let Some(peer) = roster.peer(number) else { return false };
        if peer.incarnation != Some(hello.incarnation()) {
            return false;
        }
        peer.last_answer = Some(Instant::now());
        let holders_changed = peer.on_spans(hello.incarnation(), spans, mine);
        self.notify(&roster, false, holders_changed);
        true
    }
}
