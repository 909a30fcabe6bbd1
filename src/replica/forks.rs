//! Owns whether a log is forked where a bisection says so: a peer's entry is compared with ours.
//!
//! Before: [`exchange`](super::exchange) asked the peer for one entry. After: a [`Verdict`], with which the exchange
//! asks again, cuts the log, or leaves it alone. A fork is reported only after our own entries up to there were
//! verified.

use super::runs::undamaged;
use crate::chain::ids::{ChainHash, Origin};
use crate::chain::record::Entry;
use crate::chain::sync::bisect::{Bisection, BisectionOutcome, ChainedEntry};
use crate::chain::sync::wire::Run;
use crate::store::{Store, StoreError};

/// What comparing one entry of the peer with ours says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Closer(Bisection),
    /// The log is forked at this seq, and our own entries up to it are verified.
    Fork(u64),
    /// The entries are equal, or ours are damaged.
    Inconclusive,
}

/// Compares a peer's entry with ours. Verifies our own entries before it reports a fork.
pub fn judge(store: &Store, origin: Origin, search: Bisection, run: &Run) -> Result<Verdict, StoreError> {
    let seq = run.before.seq + 1;
    let read = || -> Result<(ChainHash, Entry), StoreError> {
        let mut reader = store.log().read()?;
        Ok((reader.hash_at(origin, seq - 1)?, reader.get(origin, seq)?))
    };
    let Some((before, entry)) = undamaged(read())? else { return Ok(Verdict::Inconclusive) };
    let side = |before, entry: &Entry| ChainedEntry { before, stamp: entry.stamp(), digest: entry.digest() };
    let theirs = &run.entries[0];
    if !theirs.content_matches_digest() {
        return Ok(Verdict::Inconclusive);
    }
    match search.compare(side(before, &entry), side(run.before.hash, theirs)) {
        BisectionOutcome::Closer(closer) => Ok(Verdict::Closer(closer)),
        BisectionOutcome::Fork(seq) => {
            let sound = undamaged(store.log().matches_chain(origin, seq))?.unwrap_or(false);
            Ok(if sound { Verdict::Fork(seq) } else { Verdict::Inconclusive })
        }
        BisectionOutcome::Inconclusive => {
            undamaged(store.log().matches_chain(origin, seq))?;
            Ok(Verdict::Inconclusive)
        }
    }
}
