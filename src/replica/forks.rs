//! Owns whether a log is forked where a bisection says so: a peer's entry is compared with ours.
//!
//! Before: [`exchange`](super::exchange) asked the peer for one entry. After: the outcome, with which the exchange asks
//! again, cuts the log, or leaves it alone. A fork is reported only after our own entries up to there were verified.

use super::runs::undamaged;
use crate::chain::ids::{ChainHash, Origin};
use crate::chain::logs::Logs;
use crate::chain::record::Entry;
use crate::chain::sync::bisect::{Bisection, BisectionOutcome, ChainedEntry};
use crate::chain::sync::wire::Run;
use crate::chain::vector::Head;
use crate::store::{Store, StoreError};

/// Compares a peer's entry with ours. Verifies our own entries before it reports a fork; that read ends early once
/// `is_awaited` is false.
pub fn judge(
    store: &Store,
    logs: &Logs,
    origin: Origin,
    bisection: Bisection,
    run: &Run,
    is_awaited: &dyn Fn() -> bool,
) -> Result<BisectionOutcome, StoreError> {
    let (asked, theirs) = (run.before.seq + 1, &run.entries[0]);
    // The first hash is no claim of the peer: it follows from the type of its log.
    let is_begun_rightly = asked > 1 || run.before == Head::genesis(origin, run.log_type);
    let Some(span) = logs.vector().get(origin).filter(|span| span.holds(asked)) else {
        return Ok(BisectionOutcome::Inconclusive);
    };
    let read = || -> Result<(ChainHash, Entry), StoreError> {
        let mut reader = store.log().read()?;
        Ok((reader.hash_at(origin, span.floor, asked - 1)?, reader.get(origin, asked)?))
    };
    let Some((before, ours)) = undamaged(read())?.filter(|_| is_begun_rightly) else {
        return Ok(BisectionOutcome::Inconclusive);
    };
    let side = |before, entry: &Entry| ChainedEntry { before, stamp: entry.stamp(), leaf: entry.leaf() };
    let outcome = bisection.compare(side(before, &ours), side(run.before.hash, theirs));
    let seq = match outcome {
        BisectionOutcome::Closer(_) => return Ok(outcome),
        BisectionOutcome::Fork(seq) => seq,
        BisectionOutcome::Inconclusive => asked,
    };
    // This read also lists what is damaged here.
    let is_ours_intact =
        undamaged(store.log().matches_chain(origin, span.floor, seq, is_awaited))?.unwrap_or(false);
    Ok(if is_ours_intact { outcome } else { BisectionOutcome::Inconclusive })
}
