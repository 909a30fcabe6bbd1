//! Owns runs, the consecutive entries of one log in an exchange: reading them for a peer, and handing a peer's to the
//! writer.
//!
//! Before: [`exchange`](super::exchange) says which ranges are wanted. After: the message to the peer, or the writer.
//! What is damaged here is never sent, and does not keep the rest from being sent.

use super::write_ops::{Admitted, PeerRecords};
use crate::chain::ids::{ChainHash, Origin};
use crate::chain::logs::{AdmitError, Logs};
use crate::chain::record::Entry;
use crate::chain::sync::run::PARTS_PER_MESSAGE;
use crate::chain::sync::wire::{EntryRange, Run};
use crate::chain::vector::{Head, Vector};
use crate::store::log::ReadLimit;
use crate::store::{Store, StoreError};

/// A run of fewer bytes is not worth its hashes.
const RUN_BYTES_MIN: usize = 4 << 10;
/// Entries that the writer gets at once, so that clients' commits come between those of a long catch-up.
const PIECE_COUNT: usize = 1_000;

/// A range to read for the peer, and the peer's hash before it, where that is known.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub range: EntryRange,
    /// The hash before the first entry must be this.
    pub before: Option<ChainHash>,
    /// `before` is our hash too; it need not be computed.
    pub known: bool,
}

impl Wanted {
    /// A range whose hash before it is not known of the peer, for example one that it asked for.
    pub fn by_peer(range: EntryRange) -> Self {
        Wanted { range, before: None, known: false }
    }
}

/// The runs for one message.
#[derive(Debug, Default)]
pub struct ReadRuns {
    pub runs: Vec<Run>,
    /// More was wanted than fits.
    pub more: bool,
    /// Logs in which the peer's hash at this seq is not ours.
    pub forks: Vec<(Origin, u64)>,
}

/// Splits a run into pieces; each is compared with our chain by itself. `owner`: as in [`PeerRecords`].
pub fn pieces(run: &Run, theirs: Option<&Vector>, owner: Option<usize>) -> Vec<PeerRecords> {
    let claimed = theirs.and_then(|theirs| theirs.head(run.origin));
    let (mut before, mut pieces) = (run.before, Vec::new());
    let mut chunks = run.entries.chunks(PIECE_COUNT).peekable();
    while let Some(entries) = chunks.next() {
        pieces.push(PeerRecords { before, claimed, owner, entries: entries.to_vec() });
        if chunks.peek().is_some() {
            before = entries.iter().fold(before, Head::followed_by);
        }
    }
    pieces
}

/// The outcome of a run, from the outcomes of its pieces.
pub fn admitted(run: &Run, pieces: impl IntoIterator<Item = Admitted>) -> Admitted {
    let mut all = Admitted { new: 0, refused: None, not_stored: None };
    for piece in pieces {
        all.new += piece.new;
        all.refused = all.refused.or(piece.refused);
        all.not_stored = all.not_stored.or(piece.not_stored);
    }
    if run.is_damaged && all.not_stored.is_none() {
        all.refused = all.refused.or(Some(AdmitError::Damaged(run.before.seq)));
    }
    all
}

/// The parts of the ranges that we have.
pub(super) fn within(wants: &[EntryRange], mine: &Vector) -> Vec<EntryRange> {
    let cut = wants.iter().map(|want| EntryRange { last: want.last.min(mine.seq(want.origin)), ..*want });
    cut.filter(|want| want.first <= want.last).collect()
}

/// Reads ranges, up to this many bytes, but one entry at least. `go_on`: whether there is time for one more range.
pub fn read(
    store: &Store,
    logs: &Logs,
    ranges: &[Wanted],
    bytes: usize,
    go_on: impl Fn() -> bool,
) -> Result<ReadRuns, StoreError> {
    let mut read = ReadRuns::default();
    let (mut left, run_bytes) = (bytes.max(1), (bytes / PARTS_PER_MESSAGE).max(RUN_BYTES_MIN));
    for wanted in ranges {
        if left == 0 || !go_on() {
            read.more = true;
            return Ok(read);
        }
        let EntryRange { origin, last, .. } = wanted.range;
        let Some(span) = logs.vector().get(origin) else { continue };
        let first = wanted.range.first.max(span.floor.seq + 1);
        let before = match wanted {
            Wanted { before: Some(hash), known: true, .. } => Ok(*hash),
            _ => store.log().read()?.hash_at(origin, span.floor, first - 1),
        };
        let Some(hash) = undamaged(before)? else { continue };
        if wanted.before.is_some_and(|theirs| theirs != hash) {
            read.forks.push((origin, first - 1));
            continue;
        }
        let (mut next, mut before) = (first, Head { seq: first - 1, hash });
        while next <= last && left > 0 {
            let most = ReadLimit { rows: PIECE_COUNT, bytes: left.min(run_bytes) };
            let Some(entries) = undamaged(store.log().read()?.forward(origin, next, last, most))? else {
                break;
            };
            next += entries.len() as u64;
            left = left.saturating_sub(entries.iter().map(Entry::size).sum());
            let run = Run { origin, log_type: span.log_type, before, entries, is_damaged: false };
            before = run.after();
            read.runs.push(run);
        }
        if next <= last && left == 0 {
            read.more = true;
            return Ok(read);
        }
    }
    Ok(read)
}

/// The hash of a log's chain at this seq. `None`: it cannot be computed, as an entry before it is damaged.
pub fn hash_at(
    store: &Store,
    origin: Origin,
    floor: Head,
    seq: u64,
) -> Result<Option<ChainHash>, StoreError> {
    undamaged(store.log().read()?.hash_at(origin, floor, seq))
}

/// `None`: damaged, or moved by a cut meanwhile. Such an entry is never sent. The entries before it and the other logs
/// are, so one bad page does not keep a peer from the rest.
pub(super) fn undamaged<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Damaged { .. } | StoreError::CutOff { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
