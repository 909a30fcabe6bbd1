//! Owns history: which messages are listed, in display order, within one vector.
//!
//! A listing is of the logs as they were at its start, so it depends on that vector alone. If one message
//! stands in several logs, the copy that comes first within the vector is shown and the others are not. It is
//! read in chunks, each with transactions of its own, so that a slow reader pins nothing. Where a log of its vector is
//! cut meanwhile, it fails once rows behind the cut are removed, and never goes on without them.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::chain::filter::Filter;
use crate::chain::ids::EntryKey;
use crate::chain::logs::Logs;
use crate::chain::message::Digest;
use crate::chain::record::Entry;
use crate::store::history::merge::Merge;
use crate::store::history::user_scan::UserScan;
use crate::store::index::memtable::{RECIPIENT, SENDER};
use crate::store::log::LogReader;
use crate::store::{Store, StoreError};

/// Entries looked at in one chunk; then the transaction ends.
const CHUNK_ROWS: usize = 1_000;
/// Bytes of shown records in one chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// How long one chunk may pin pages.
const CHUNK_TIME: Duration = Duration::from_millis(20);

/// The name and the sides by which the index finds everything that can match.
fn indexed_name(filter: &Filter) -> Option<(&str, u8)> {
    if let Some(sender) = &filter.sender {
        Some((sender, SENDER))
    } else if let Some(user) = &filter.user {
        Some((user, SENDER | RECIPIENT))
    } else {
        filter.recipient.as_ref().map(|recipient| (recipient.as_str(), RECIPIENT))
    }
}

#[derive(Debug)]
enum Source {
    Logs(Merge),
    User(UserScan),
}

impl Source {
    /// `filter` must be folded.
    fn new(
        store: &Store,
        logs: &Logs,
        filter: &Filter,
        from: Option<EntryKey>,
        backward: bool,
    ) -> Result<Self, StoreError> {
        Ok(match indexed_name(filter) {
            Some((name, sides)) => Source::User(UserScan::new(store, name, sides, from, backward)),
            None => Source::Logs(Merge::new(store, logs, from, backward)?),
        })
    }

    fn next(
        &mut self,
        store: &Store,
        logs: &Logs,
        reader: &mut LogReader,
    ) -> Result<Option<(Entry, bool)>, StoreError> {
        match self {
            Source::Logs(merge) => merge.next(store, reader),
            Source::User(scan) => scan.next(store, logs, reader),
        }
    }
}

/// A walk through history. See the head of this file.
#[derive(Debug)]
pub struct Listing {
    /// Not held between chunks: a slow reader must not keep a store open that is to be closed.
    store: Weak<Store>,
    logs: Arc<Logs>,
    filter: Filter,
    /// `None`: it was put down.
    source: Option<Source>,
    from: Option<EntryKey>,
    backward: bool,
    until: Option<EntryKey>,
    done: bool,
    last_seen: Option<EntryKey>,
}

impl Listing {
    /// Everything in `logs` that matches, after `from` (exclusive) in display order; `backward`: before it,
    /// newest first.
    pub fn new(
        store: &Arc<Store>,
        logs: Arc<Logs>,
        filter: Filter,
        from: Option<EntryKey>,
        backward: bool,
    ) -> Result<Self, StoreError> {
        let filter = filter.folded();
        let source = Some(Source::new(store, &logs, &filter, from, backward)?);
        let store = Arc::downgrade(store);
        let (until, done, last_seen) = (None, false, None);
        Ok(Listing { store, logs, filter, source, from, backward, until, done, last_seen })
    }

    /// Keeps no more in memory than where it is, until the next chunk is asked for.
    pub fn release_buffers(&mut self) {
        self.source = None;
    }

    /// Ends the listing before it reaches this place.
    #[must_use]
    pub fn until(self, place: Option<EntryKey>) -> Self {
        Listing { until: place, ..self }
    }

    /// The next messages, at most `most` of them; maybe none although there are more. See [`Listing::is_done`].
    pub fn next_chunk(&mut self, most: usize) -> Result<Vec<Entry>, StoreError> {
        let began = Instant::now();
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        let mut reader = store.log().read()?;
        let (mut shown, mut bytes) = (Vec::new(), 0);
        for _ in 0..CHUNK_ROWS {
            if shown.len() >= most || bytes >= CHUNK_BYTES || began.elapsed() >= CHUNK_TIME {
                break;
            }
            let source = if let Some(source) = &mut self.source {
                source
            } else {
                let from = self.last_seen.or(self.from);
                self.source.insert(Source::new(&store, &self.logs, &self.filter, from, self.backward)?)
            };
            let next = match source.next(&store, &self.logs, &mut reader) {
                // What was found is given first; the next chunk begins with the damage.
                Err(StoreError::Damaged { .. }) if !shown.is_empty() => break,
                next => next?,
            };
            let Some((entry, has_copy)) = next.filter(|(entry, _)| self.is_before_the_end(entry.key()))
            else {
                self.done = true;
                break;
            };
            self.last_seen = Some(entry.key());
            if self.shows(&store, &entry, has_copy)? {
                bytes += entry.size();
                shown.push(entry);
            }
        }
        store.check_not_purged(&self.logs)?; // the index says nothing where it lacks a row
        Ok(shown)
    }

    fn is_before_the_end(&self, place: EntryKey) -> bool {
        self.until.is_none_or(|until| if self.backward { place > until } else { place < until })
    }

    fn shows(&self, store: &Store, entry: &Entry, has_copy: bool) -> Result<bool, StoreError> {
        let Some(content) = entry.message() else { return Ok(false) };
        if has_copy && !self.is_first_copy(store, content.id, entry.digest(), entry.key())? {
            return Ok(false);
        }
        Ok(self.filter.matches(&content, entry.key()))
    }

    fn is_first_copy(
        &self,
        store: &Store,
        id: Uuid,
        digest: Digest,
        place: EntryKey,
    ) -> Result<bool, StoreError> {
        let copies = store.stored_copies(id, &self.logs)?;
        Ok(!copies.iter().any(|copy| copy.digest == digest && copy.key < place))
    }

    /// Everything was looked at.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The last entry looked at, shown or not: where another listing can go on.
    pub fn last_seen(&self) -> Option<EntryKey> {
        self.last_seen
    }
}
