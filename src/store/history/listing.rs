//! Owns a listing: which messages match a filter, in display order, within one vector.
//!
//! Called by the node for `GET /messages`; reads through `merge`, or through `user_scan` if the filter names a user.
//! Read in chunks, each with its own transactions, so that a slow reader pins no pages. Must not know pages, links or
//! JSON.
//!
//! Invariants: a listing depends on its vector alone. Of several copies of one message it shows the first within the
//! vector. If a log of the vector is cut meanwhile, the listing fails once entries are purged; it never skips them. At a
//! damaged entry it fails as well, unless the caller allows to leave that entry out.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::chain::filter::Filter;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::store::history::merge::Merge;
use crate::store::history::user_scan::UserScan;
use crate::store::history::{CHUNK_BYTES, CHUNK_ROWS, CHUNK_TIME, FIRST_CHUNK_TIME, Readers};
use crate::store::index::IndexReader;
use crate::store::index::memtable::{RECIPIENT, SENDER};
use crate::store::{Store, StoreError};

/// The name and roles under which the index has every message that can match, if there are any.
fn indexed_name(filter: &Filter) -> Option<(&str, u8)> {
    let Filter { sender, user, recipient, .. } = filter;
    let names = [(sender, SENDER), (user, SENDER | RECIPIENT), (recipient, RECIPIENT)];
    names.into_iter().find_map(|(name, roles)| Some((name.as_deref()?, roles)))
}

/// Where a listing reads.
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
            Some((name, roles)) => Source::User(UserScan::new(store, name, roles, from, backward)),
            None => Source::Logs(Merge::new(store, logs, from, backward)?),
        })
    }

    fn next(&mut self, logs: &Logs, readers: &mut Readers<'_>) -> Result<Option<(Entry, bool)>, StoreError> {
        match self {
            Source::Logs(merge) => merge.next(readers),
            Source::User(scan) => scan.next(logs, readers),
        }
    }

    fn skip(&mut self, origin: Origin, seq: u64) {
        match self {
            Source::Logs(merge) => merge.skip(origin, seq),
            Source::User(scan) => scan.skip(origin, seq),
        }
    }
}

/// The damaged entries that a listing leaves out. It fails at any other one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skips {
    These(BTreeSet<(Origin, u64)>),
    All,
}

/// The entries that were found damaged, within `logs` and between two keys.
pub fn damaged_between(
    store: &Store,
    logs: &Logs,
    after: Option<EntryKey>,
    before: Option<EntryKey>,
) -> Result<BTreeSet<(Origin, u64)>, StoreError> {
    let mut damaged: BTreeSet<(Origin, u64)> = store.log().damage().all().into_iter().collect();
    let origins: BTreeSet<Origin> = damaged.iter().map(|(origin, _)| *origin).collect();
    for origin in origins {
        let (first, last) = (logs.vector().floor(origin) + 1, logs.vector().seq(origin));
        let mut reader = store.log().read()?;
        let mut first_after = |key| reader.first_after(origin, first, last, key);
        let low = after.map_or(Ok(first), &mut first_after)?;
        let before = before.map(|key| EntryKey { seq: key.seq.saturating_sub(1), ..key });
        let end = before.map_or(Ok(last + 1), &mut first_after)?;
        damaged.retain(|(of, seq)| *of != origin || (low..end).contains(seq));
    }
    Ok(damaged)
}

#[derive(Debug)]
pub struct Listing {
    /// Weak, so that a slow reader does not keep a store open that must close.
    store: Weak<Store>,
    logs: Arc<Logs>,
    filter: Filter,
    /// `None`: its buffers were released.
    source: Option<Source>,
    from: Option<EntryKey>,
    backward: bool,
    until: Option<EntryKey>,
    skips: Skips,
    done: bool,
    last_seen: Option<EntryKey>,
}

impl Listing {
    /// Every message in `logs` that matches, after `from` (exclusive), in display order; `backward`: before `from`,
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
        let (store, until, done, last_seen) = (Arc::downgrade(store), None, false, None);
        let skips = Skips::These(BTreeSet::new());
        Ok(Listing { store, logs, filter, source, from, backward, until, skips, done, last_seen })
    }

    /// Releases all buffers. The next chunk seeks again.
    pub fn release_buffers(&mut self) {
        self.source = None;
    }

    /// Ends the listing before this entry.
    #[must_use]
    pub fn until(self, key: Option<EntryKey>) -> Self {
        Listing { until: key, ..self }
    }

    /// Leaves damaged entries out.
    #[must_use]
    pub fn skipping(self, skips: Skips) -> Self {
        Listing { skips, ..self }
    }

    fn skips(&self, origin: Origin, seq: u64) -> bool {
        match &self.skips {
            Skips::These(entries) => entries.contains(&(origin, seq)),
            Skips::All => true,
        }
    }

    /// The next messages, at most `most`. May be empty although there are more: see [`Listing::is_done`].
    pub fn next_chunk(&mut self, most: usize) -> Result<Vec<Entry>, StoreError> {
        self.chunk_within(CHUNK_TIME, most)
    }

    /// The same, in the time of a short read.
    pub fn first_chunk(&mut self, most: usize) -> Result<Vec<Entry>, StoreError> {
        self.chunk_within(FIRST_CHUNK_TIME, most)
    }

    fn chunk_within(&mut self, time: Duration, most: usize) -> Result<Vec<Entry>, StoreError> {
        let began = Instant::now();
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        let mut readers = Readers::new(&store)?;
        let (mut shown, mut bytes) = (Vec::new(), 0);
        for _ in 0..CHUNK_ROWS {
            if shown.len() >= most || bytes >= CHUNK_BYTES || began.elapsed() >= time {
                break;
            }
            let source = if let Some(source) = &mut self.source {
                source
            } else {
                let from = self.last_seen.or(self.from);
                self.source.insert(Source::new(&store, &self.logs, &self.filter, from, self.backward)?)
            };
            let next = match source.next(&self.logs, &mut readers) {
                Err(StoreError::Damaged { origin, seq }) if self.skips(origin, seq) => {
                    self.source.as_mut().expect("it was read just now").skip(origin, seq);
                    continue;
                }
                // Return what was found; the next chunk starts with the damaged entry and fails.
                Err(StoreError::Damaged { .. }) if !shown.is_empty() => break,
                next => next?,
            };
            let is_before = |key: EntryKey, end| if self.backward { key > end } else { key < end };
            let is_listed = |key| self.until.is_none_or(|until| is_before(key, until));
            let Some((entry, has_copy)) = next.filter(|(entry, _)| is_listed(entry.key())) else {
                self.done = true;
                break;
            };
            self.last_seen = Some(entry.key());
            if self.shows(&store, &mut readers.index, &entry, has_copy)? {
                bytes += entry.size();
                shown.push(entry);
            }
        }
        store.check_not_purged(&self.logs)?; // a scan of the index does not notice purged rows
        Ok(shown)
    }

    fn shows(
        &self,
        store: &Store,
        index: &mut IndexReader<'_>,
        entry: &Entry,
        has_copy: bool,
    ) -> Result<bool, StoreError> {
        let Some(content) = entry.message() else { return Ok(false) };
        if has_copy {
            // Of a message whose first copy is left out, the next one is shown.
            let damage = store.log().damage();
            let is_left_out = |EntryKey { origin, seq, .. }: EntryKey| {
                self.skips(origin, seq) && !damage.within(origin, seq, seq).is_empty()
            };
            let is_shown = |key| !is_left_out(key);
            let first = index.find_copy(content.id, entry.digest(), &self.logs, is_shown)?;
            if first.is_some_and(|first| first < entry.key()) {
                return Ok(false);
            }
        }
        Ok(self.filter.matches(&content, entry.key()))
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The last entry read, returned or not. Another listing can continue from it.
    pub fn last_seen(&self) -> Option<EntryKey> {
        self.last_seen
    }
}
