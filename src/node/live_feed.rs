//! Owns what all readers of the feed share: the newest messages, encoded once, in a bounded ring.
//!
//! It moves when the durable logs do, and only while somebody reads. Nobody is queued for: a reader remembers how far it
//! is, and one that falls out of the ring reads the store. The ring's end is a state of all logs, `until`, in the words of
//! cursors. Before that could no longer be said briefly, a milestone is put into the own log, and cursors refer to it as soon as
//! a second node has it, so that they outlive this one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Node;
use crate::api::feed::{FeedEvent, FeedFormat, to_text};
use crate::chain::clock::Stamp;
use crate::chain::cursor::{self, PartialScan, ReadState, Scope};
use crate::chain::frontier::{Frontier, FrontierSnapshot};
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::sync::wire::EntryRange;
use crate::node::http::acks::range_of;
use crate::node::http::send::view;
use crate::replica::write_ops::Maintenance;
use crate::store::StoreError;
use crate::store::history::feed_scan::{FeedItem, FeedScan, last_stamp};

/// Messages in the ring. A reader that is further behind reads the store.
const RING_COUNT_MAX: usize = 4_096;
/// Their bytes as JSON; as above.
const RING_BYTES_MAX: usize = 8 << 20;
/// When more entries come at once, they are not put into the ring: whoever wants them reads the store.
const STEP_COUNT_MAX: u64 = 2_048;
/// Changes since the last milestone that are written into every cursor, in the worst case twice. With more, cursors refer to
/// the next milestone whether another node has it or not.
const CHANGES_MAX: usize = 16;
/// With more than these, it is time for another milestone.
const CHANGES_MANY: usize = 12;
/// How often it is looked whether an entry that could not be given can be now: nothing else says so.
const BLOCKED_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// From one state of all logs to the next.
#[derive(Debug)]
struct LogsDelta {
    before: ReadState,
    until: Frontier,
    /// What the cursors on the way share, where they are short enough.
    core: Option<Vec<u8>>,
}

/// A message in the ring.
#[derive(Debug)]
pub struct RingItem {
    next: FeedItem,
    json: Bytes,
    step: Arc<LogsDelta>,
    core: OnceLock<Option<Bytes>>,
    frames: [OnceLock<Option<Bytes>>; 2],
}

impl RingItem {
    fn new(next: FeedItem, step: &Arc<LogsDelta>) -> Self {
        let content = next.entry.message().expect("the walk gives messages only");
        let mut json = Vec::new();
        view(&content, next.first).write_json(&mut json);
        let (core, frames) = (OnceLock::new(), [const { OnceLock::new() }; 2]);
        RingItem { json: json.into(), next, step: step.clone(), core, frames }
    }

    /// The message and its entry.
    pub fn next(&self) -> &FeedItem {
        &self.next
    }

    /// The message as JSON.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    fn place(&self) -> EntryKey {
        self.next.entry.key()
    }

    /// What a reader has seen that read up to here.
    pub fn seen(&self) -> ReadState {
        let walk = PartialScan { until: self.step.until.clone(), at: self.place() };
        ReadState { scans: vec![walk], ..self.step.before.clone() }
    }

    /// The same as the core of a cursor, where it is short enough.
    pub fn core(&self) -> Option<&Bytes> {
        let at_place = |core: &Vec<u8>| cursor::payload_at(core, self.place()).into();
        self.core.get_or_init(|| self.step.core.as_ref().map(at_place)).as_ref()
    }

    /// The whole event for readers without a filter, who share it.
    pub fn frame(&self, format: FeedFormat, purpose: Scope) -> Option<&Bytes> {
        let make = || {
            let cursor = to_text(&cursor::encode(self.core()?, purpose));
            let mut out = Vec::new();
            FeedEvent::Message(&self.json).write(format, &cursor, &mut out);
            Some(out.into())
        };
        self.frames[usize::from(format == FeedFormat::Lines)].get_or_init(make).as_ref()
    }
}

/// The newest messages. See the head of this file.
#[derive(Debug, Default)]
struct Ring {
    items: VecDeque<Arc<RingItem>>,
    bytes: usize,
    /// How many there were before the first of them.
    dropped: u64,
    /// What was walked through to its end, and the last stamp in it.
    until: Frontier,
    last: Stamp,
    logs: Arc<Logs>,
    /// Logs of which there is more that cannot be given now.
    blocked: Vec<Origin>,
    /// The next milestone, to which no cursor refers yet, and where it stands.
    next: Option<(Arc<FrontierSnapshot>, EntryRange)>,
}

impl Ring {
    fn end(&self) -> u64 {
        self.dropped + self.items.len() as u64
    }

    fn push(&mut self, item: Arc<RingItem>) {
        self.bytes += item.json.len();
        self.items.push_back(item);
        while self.items.len() > RING_COUNT_MAX || self.bytes > RING_BYTES_MAX {
            self.bytes -= self.items.pop_front().map_or(0, |item| item.json.len());
            self.dropped += 1;
        }
    }

    /// Leaves out what came now. Who was at the end lacks it, and is at the end no longer.
    fn skip(&mut self) {
        (self.dropped, self.bytes) = (self.end() + 1, 0);
        self.items.clear();
    }
}

/// The end of the ring.
#[derive(Debug, Clone)]
pub struct RingEnd {
    /// How many messages came before it.
    pub index: u64,
    /// What a reader has seen who read all of them.
    pub until: Frontier,
    /// The last stamp among it.
    pub last: Stamp,
    /// The logs in which that can be read.
    pub logs: Arc<Logs>,
}

/// What the ring has for a reader.
#[derive(Debug)]
pub enum RingRead {
    /// These messages.
    Items(Vec<Arc<RingItem>>),
    /// The reader is at its end, so it has seen this.
    Nothing(ReadState),
    /// It fell out, or the ring was left out.
    Gone,
}

/// See the head of this file.
#[derive(Debug)]
pub struct LiveFeed {
    ring: Mutex<Ring>,
    /// One step at a time.
    turn: tokio::sync::Mutex<()>,
    /// Counts the steps.
    moved: watch::Sender<u64>,
    readers: AtomicUsize,
    stop: CancellationToken,
}

impl LiveFeed {
    /// A hub whose feeds end with this signal.
    pub fn new(stop: CancellationToken) -> Self {
        let (ring, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        LiveFeed { ring, turn, moved: watch::Sender::new(0), readers: AtomicUsize::new(0), stop }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Between two assignments under it nothing panics.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a reader for as long as what is given lives.
    pub fn enter(self: &Arc<Self>) -> CountedReader {
        self.readers.fetch_add(1, Ordering::Relaxed);
        self.moved.send_modify(|_| {}); // the first one wakes whoever moves the ring
        CountedReader(self.clone())
    }

    /// How many read now.
    pub fn readers(&self) -> usize {
        self.readers.load(Ordering::Relaxed)
    }

    /// Changes with every step.
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// When this comes, all feeds end.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// The end of the ring as it is.
    pub fn end(&self) -> RingEnd {
        let ring = self.ring();
        RingEnd { index: ring.end(), until: ring.until.clone(), last: ring.last, logs: ring.logs.clone() }
    }

    /// At most `most` messages from this index on.
    pub fn after(&self, index: u64, most: usize) -> RingRead {
        let ring = self.ring();
        if index < ring.dropped || index > ring.end() {
            return RingRead::Gone;
        }
        if index == ring.end() {
            return RingRead::Nothing(ReadState::all(ring.until.clone(), ring.last));
        }
        let from = usize::try_from(index - ring.dropped).expect("an index into memory");
        RingRead::Items(ring.items.iter().skip(from).take(most).cloned().collect())
    }

    /// Brings the ring up to the durable state of the logs, and gives its end.
    pub async fn advance(&self, node: &Node) -> Result<RingEnd, StoreError> {
        let _turn = self.turn.lock().await;
        let logs = node.logs();
        let (before, until) = {
            let ring = self.ring();
            let mut until = ring.until.clone();
            for (origin, head) in logs.vector().changes_since(ring.logs.vector()) {
                until.raise(origin, head.seq);
            }
            for origin in &ring.blocked {
                until.raise(*origin, logs.vector().seq(*origin));
            }
            (ReadState::all(ring.until.clone(), ring.last), until)
        };
        let until = without_trailing_snapshots(node, &before.full, until).await?;
        let ahead = until.beyond(&before.full).into_iter();
        let count = ahead.map(|(origin, seq)| seq - before.full.seq(origin)).fold(0, u64::saturating_add);
        if count == 0 {
            self.ring().logs = logs;
            return Ok(self.end());
        }
        let (until, last) = (self.shorten(node, until).await, last_stamp(&logs));
        if count > STEP_COUNT_MAX {
            let mut ring = self.ring();
            ring.skip();
            (ring.until, ring.last, ring.logs, ring.blocked) = (until, last, logs, Vec::new());
        } else {
            let walked = walk(node, logs.clone(), before.clone(), until).await?;
            let Walked { found, until, blocked: held } = walked;
            let core = cursor::scan_payload(&before, &until);
            let step = Arc::new(LogsDelta { before, until: until.clone(), core });
            let mut ring = self.ring();
            for next in found {
                ring.push(Arc::new(RingItem::new(next, &step)));
            }
            (ring.until, ring.last, ring.logs, ring.blocked) = (until, last, logs, held);
        }
        self.moved.send_modify(|steps| *steps += 1);
        Ok(self.end())
    }

    /// The same, so that it can be written briefly: as a difference to the next milestone, once that has spread or is needed. If
    /// none can be written, cursors stay where they were last brief enough, which repeats messages to who comes back, and
    /// skips none.
    async fn shorten(&self, node: &Node, mut until: Frontier) -> Frontier {
        loop {
            let (changes, mut next) = (until.changes().len(), self.ring().next.take());
            if next.is_none() && changes > CHANGES_MANY {
                next = write_snapshot(node, &until).await;
            }
            let Some((milestone, place)) = next else { return until };
            let has_spread = node.cluster.roster().node_count() == 1 || node.durable_on(&[place]).len() > 1;
            if changes <= CHANGES_MAX && !has_spread {
                self.ring().next = Some((milestone, place));
                return until;
            }
            until = until.based_on(&milestone);
            if until.changes().len() <= CHANGES_MAX {
                return until;
            }
        }
    }
}

/// A reader that counts. See [`Hub::enter`].
#[derive(Debug)]
pub struct CountedReader(Arc<LiveFeed>);

impl Drop for CountedReader {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// There is nothing to be told in milestones, so the ring does not go on for them. Else nodes would answer the milestones of
/// each other with milestones, for ever.
async fn without_trailing_snapshots(
    node: &Node,
    before: &Frontier,
    until: Frontier,
) -> Result<Frontier, StoreError> {
    if until.beyond(before).is_empty() {
        return Ok(until);
    }
    let (store, before) = (node.store.clone(), before.clone());
    on_a_thread(move || store.without_trailing_snapshots(&before, until)).await
}

struct Walked {
    found: Vec<FeedItem>,
    until: Frontier,
    blocked: Vec<Origin>,
}

async fn walk(
    node: &Node,
    logs: Arc<Logs>,
    before: ReadState,
    until: Frontier,
) -> Result<Walked, StoreError> {
    let store = node.store.clone();
    on_a_thread(move || {
        let mut follow = FeedScan::new(&store, logs, before, until.clone())?;
        let mut found = Vec::new();
        while !follow.is_done() {
            found.extend(follow.next_chunk(usize::MAX, usize::MAX)?);
        }
        let reached = follow.state_at_end().full;
        let held = until.beyond(&reached).into_iter().map(|(origin, _)| origin).collect();
        Ok(Walked { found, until: reached, blocked: held })
    })
    .await
}

async fn on_a_thread<T: Send + 'static>(
    reading: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(reading)
        .await
        .unwrap_or_else(|error| Err(StoreError::EnginePanicked(error.to_string())))
}

/// Puts a milestone that says this into the own log. Gives it and where it stands; `None` where there is no room for it.
async fn write_snapshot(node: &Node, until: &Frontier) -> Option<(Arc<FrontierSnapshot>, EntryRange)> {
    let (contents, milestones): (Vec<_>, Vec<_>) = until.snapshots().into_iter().unzip();
    let milestone = milestones.last()?.clone();
    node.writer.maintain(Maintenance::Snapshots(contents)).await;
    let (store, name) = (node.store.clone(), milestone.id);
    let place = tokio::task::spawn_blocking(move || store.snapshot_key(name)).await.ok()?.ok()??;
    Some((milestone, range_of(place)))
}

/// Moves the ring as long as somebody reads, until the node ends.
pub async fn run(node: Node) {
    let (hub, mut signal) = (node.live_feed.clone(), node.logs_signal());
    let mut moved = hub.moved();
    loop {
        if hub.readers() == 0 {
            if moved.changed().await.is_err() {
                return;
            }
            continue;
        }
        signal.mark_unchanged();
        if let Err(error) = hub.advance(&node).await {
            tracing::error!(%error, "the feed cannot be read");
            node.writer.fault().raise(error.to_string());
            return;
        }
        let is_held = !hub.ring().blocked.is_empty();
        tokio::select! {
            changed = signal.changed() => if changed.is_err() {
                return; // the node is ending
            },
            () = tokio::time::sleep(BLOCKED_POLL_INTERVAL), if is_held => {}
        }
    }
}
