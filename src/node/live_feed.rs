//! Owns what all readers of the feed share: a bounded ring of the newest messages, each encoded once.
//!
//! - The ring advances when the durable logs do, while there are readers, and once more when a reader enters. Nothing
//!   is queued for a reader: each keeps its index, and one that falls out of the ring reads the store.
//! - The end of the ring is a frontier, `until`, from which cursors are made. Before a frontier is too long for a
//!   cursor, the node writes a snapshot of it into its own log. Cursors refer to the snapshot as soon as a second node
//!   has it: then a cursor works although this node is gone. If cursors would become too long, they refer to it
//!   earlier.
//!
//! Before it: the writer's change signal and `store::history::feed_scan`. After it: `http::feed`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
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
/// Bytes of these messages as JSON. At the bound, as above.
const RING_BYTES_MAX: usize = 8 << 20;
/// More new entries than this are not put into the ring: readers get them from the store.
const DELTA_COUNT_MAX: u64 = 2_048;
/// Logs that changed since the last snapshot and are written into every cursor, in the worst case twice. With more of
/// them, cursors refer to the next snapshot even if no other node has it.
const CHANGES_MAX: usize = 16;
/// With more changes than this, the next snapshot is written.
const SNAPSHOT_CHANGES: usize = 12;
/// Poll interval for blocked logs: no signal tells that a damaged entry was repaired.
pub const BLOCKED_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The step from one frontier to the next.
#[derive(Debug)]
struct LogsDelta {
    before: ReadState,
    until: Frontier,
    /// What the cursors between the two share; `None`: they would be too long.
    payload: Option<Vec<u8>>,
}

/// A message in the ring, with its entry and its JSON.
#[derive(Debug)]
pub struct RingItem {
    pub item: FeedItem,
    pub json: Bytes,
    delta: Arc<LogsDelta>,
    payload: OnceLock<Option<Bytes>>,
    frames: [OnceLock<Option<Bytes>>; 2],
}

impl RingItem {
    fn new(item: FeedItem, delta: &Arc<LogsDelta>) -> Self {
        let content = item.entry.message().expect("a scan returns messages only");
        let mut json = Vec::new();
        view(&content, item.first).write_json(&mut json);
        let (payload, frames) = (OnceLock::new(), [const { OnceLock::new() }; 2]);
        RingItem { json: json.into(), item, delta: delta.clone(), payload, frames }
    }

    fn key(&self) -> EntryKey {
        self.item.entry.key()
    }

    /// What a reader has seen that read the ring up to this message.
    pub fn read_state(&self) -> ReadState {
        let scan = PartialScan { until: self.delta.until.clone(), at: self.key() };
        ReadState { scans: vec![scan], ..self.delta.before.clone() }
    }

    /// The payload of the cursor for that state; `None`: it would be too long.
    pub fn payload(&self) -> Option<&Bytes> {
        let at_key = |payload: &Vec<u8>| cursor::payload_at(payload, self.key()).into();
        self.payload.get_or_init(|| self.delta.payload.as_ref().map(at_key)).as_ref()
    }

    /// The whole event, shared by all readers without a filter.
    pub fn frame(&self, format: FeedFormat, scope: Scope) -> Option<&Bytes> {
        let make = || {
            let cursor = to_text(&cursor::encode(self.payload()?, scope));
            let mut out = Vec::new();
            FeedEvent::Message(&self.json).write(format, &cursor, &mut out);
            Some(out.into())
        };
        self.frames[usize::from(format == FeedFormat::Lines)].get_or_init(make).as_ref()
    }
}

#[derive(Debug, Default)]
struct Ring {
    items: VecDeque<Arc<RingItem>>,
    bytes: usize,
    end: RingEnd,
    /// Logs that have more entries, which cannot be read now.
    blocked: Vec<Origin>,
    /// The next snapshot, to which no cursor refers yet, and the entry that holds it.
    next_snapshot: Option<(Arc<FrontierSnapshot>, EntryRange)>,
}

impl Ring {
    fn push(&mut self, item: Arc<RingItem>) {
        self.end.index += 1;
        self.bytes += item.json.len();
        self.items.push_back(item);
        while self.items.len() > RING_COUNT_MAX || self.bytes > RING_BYTES_MAX {
            self.bytes -= self.items.pop_front().map_or(0, |item| item.json.len());
        }
    }

    /// Leaves out the new messages. Readers at the end get `Gone`, and read them from the store.
    fn skip(&mut self) {
        (self.end.index, self.bytes) = (self.end.index + 1, 0);
        self.items.clear();
    }
}

/// The end of the ring.
#[derive(Debug, Clone, Default)]
pub struct RingEnd {
    /// Grows with each message, and once when messages are skipped.
    pub index: u64,
    /// What a reader has seen that read all of them.
    pub until: Frontier,
    /// The last stamp in that.
    pub last: Stamp,
    pub logs: Arc<Logs>,
}

/// What the ring has for a reader.
#[derive(Debug)]
pub enum RingRead {
    Items(Vec<Arc<RingItem>>),
    /// No more: the reader is at the end, and has seen this.
    Nothing(ReadState),
    /// Not what the reader lacks: it must read the store.
    Gone,
}

#[derive(Debug)]
pub struct LiveFeed {
    ring: Mutex<Ring>,
    /// Held while the ring advances.
    advancing: tokio::sync::Mutex<()>,
    /// Changes when the ring advances.
    advanced: watch::Sender<()>,
    /// Wakes the task that advances the ring.
    entered: Notify,
    /// Ends all feeds.
    pub stop: CancellationToken,
}

impl LiveFeed {
    pub fn new(stop: CancellationToken) -> Self {
        let (ring, advancing, advanced) =
            (Mutex::default(), tokio::sync::Mutex::default(), watch::Sender::new(()));
        LiveFeed { ring, advancing, advanced, entered: Notify::new(), stop }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner) // each change is complete before a panic
    }

    /// Adds a reader and returns the signal of new messages. The reader counts until it drops the signal.
    pub fn enter(&self) -> watch::Receiver<()> {
        let advanced = self.advanced.subscribe();
        self.entered.notify_one(); // after the reader counts, or the ring would find no reader and sleep again
        advanced
    }

    pub fn readers(&self) -> usize {
        self.advanced.receiver_count()
    }

    pub fn end(&self) -> RingEnd {
        self.ring().end.clone()
    }

    /// At most `most` messages from this index on.
    pub fn after(&self, index: u64, most: usize) -> RingRead {
        let ring = self.ring();
        let Some(count) = ring.end.index.checked_sub(index) else { return RingRead::Gone };
        if count == 0 {
            return RingRead::Nothing(ReadState::all(ring.end.until.clone(), ring.end.last));
        }
        let from = usize::try_from(count).ok().and_then(|count| ring.items.len().checked_sub(count));
        from.map_or(RingRead::Gone, |from| {
            RingRead::Items(ring.items.range(from..).take(most).cloned().collect())
        })
    }

    /// Advances the ring to the durable state of the logs, and returns its end.
    pub async fn advance(&self, node: &Node) -> Result<RingEnd, StoreError> {
        let _advancing = self.advancing.lock().await;
        let logs = node.logs();
        let (before, until) = {
            let ring = self.ring();
            let mut until = ring.end.until.clone();
            for (origin, span) in logs.vector().changes_since(ring.end.logs.vector()) {
                until.raise(origin, span.head.seq);
            }
            for origin in &ring.blocked {
                until.raise(*origin, logs.vector().seq(*origin));
            }
            (ReadState::all(ring.end.until.clone(), ring.end.last), until)
        };
        // Readers do not get snapshots. If trailing ones were not skipped, nodes would answer each other's snapshots
        // with snapshots for ever.
        let until = if until.beyond(&before.full).is_empty() {
            until
        } else {
            let (store, full) = (node.store.clone(), before.full.clone());
            read(move || store.without_trailing_snapshots(&full, until)).await?
        };
        let ahead = until.beyond(&before.full).into_iter();
        let count = ahead.map(|(origin, seq)| seq - before.full.seq(origin)).fold(0, u64::saturating_add);
        if count == 0 {
            self.ring().end.logs = logs;
            return Ok(self.end());
        }
        let (until, last) = (self.shorten(node, until).await, last_stamp(&logs));
        if count > DELTA_COUNT_MAX {
            let mut ring = self.ring();
            ring.skip();
            ring.blocked.clear();
            (ring.end.until, ring.end.last, ring.end.logs) = (until, last, logs);
        } else {
            let (items, until, blocked) = scan(node, logs.clone(), before.clone(), until).await?;
            let payload = cursor::scan_payload(&before, &until);
            let delta = Arc::new(LogsDelta { before, until: until.clone(), payload });
            let mut ring = self.ring();
            for item in items {
                ring.push(Arc::new(RingItem::new(item, &delta)));
            }
            ring.blocked = blocked;
            (ring.end.until, ring.end.last, ring.end.logs) = (until, last, logs);
        }
        self.advanced.send_replace(());
        Ok(self.end())
    }

    /// The same frontier in a form that is short enough for a cursor: as the difference to the next snapshot, once a
    /// second node has that or it is needed. If no snapshot can be written, readers keep their last short cursor: a
    /// reader that reconnects gets some messages twice, and misses none.
    async fn shorten(&self, node: &Node, mut until: Frontier) -> Frontier {
        loop {
            let changes = until.changes().len();
            let mut next = self.ring().next_snapshot.take();
            if next.is_none() && changes > SNAPSHOT_CHANGES {
                next = write_snapshot(node, &until).await;
            }
            let Some((snapshot, entry)) = next else { return until };
            let nodes = node.cluster.roster().node_count();
            let has_spread = nodes == 1 || node.durable_on(&[entry]).len() > 1;
            if changes <= CHANGES_MAX && !has_spread {
                self.ring().next_snapshot = Some((snapshot, entry));
                return until;
            }
            until = until.based_on(&snapshot);
            if until.changes().len() <= CHANGES_MAX {
                return until;
            }
        }
    }
}

/// Reads the messages between two frontiers. Returns them, how far they reach, and the logs that block the rest.
async fn scan(
    node: &Node,
    logs: Arc<Logs>,
    before: ReadState,
    until: Frontier,
) -> Result<(Vec<FeedItem>, Frontier, Vec<Origin>), StoreError> {
    let store = node.store.clone();
    read(move || {
        let mut scan = FeedScan::new(&store, logs, before, until.clone())?;
        let mut items = Vec::new();
        while !scan.is_done() {
            items.extend(scan.next_chunk(usize::MAX, usize::MAX)?);
        }
        let reached = scan.state_at_end().full;
        let blocked = until.beyond(&reached).into_iter().map(|(origin, _)| origin).collect();
        Ok((items, reached, blocked))
    })
    .await
}

/// Runs a read on a blocking thread, whatever else is read: it is short, and all readers wait for it.
async fn read<T: Send + 'static>(
    reading: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(reading)
        .await
        .unwrap_or_else(|error| Err(StoreError::EnginePanicked(error.to_string())))
}

/// Writes a snapshot of this frontier into the own log. Returns it and its entry; `None`: there is no room for it.
async fn write_snapshot(node: &Node, until: &Frontier) -> Option<(Arc<FrontierSnapshot>, EntryRange)> {
    let (contents, snapshots): (Vec<_>, Vec<_>) = until.snapshots().into_iter().unzip();
    let snapshot = snapshots.last()?.clone();
    node.writer.maintain(Maintenance::Snapshots(contents)).await;
    let (store, name) = (node.store.clone(), snapshot.id);
    let key = tokio::task::spawn_blocking(move || store.snapshot_key(name)).await.ok()?.ok()??;
    Some((snapshot, range_of(key)))
}

/// Advances the ring while there are readers, until the store is closed.
pub async fn run(node: Node) {
    let (live_feed, mut signal) = (node.live_feed.clone(), node.logs_signal());
    loop {
        while live_feed.readers() == 0 {
            live_feed.entered.notified().await;
        }
        signal.mark_unchanged();
        if let Err(error) = live_feed.advance(&node).await {
            tracing::error!(%error, "the feed cannot be read");
            node.writer.fault.raise(error.to_string());
            return;
        }
        let is_blocked = !live_feed.ring().blocked.is_empty();
        tokio::select! {
            changed = signal.changed() => if changed.is_err() {
                return; // the node is ending
            },
            () = tokio::time::sleep(BLOCKED_POLL_INTERVAL), if is_blocked => {}
        }
    }
}
