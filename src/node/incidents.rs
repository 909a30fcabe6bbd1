//! Owns the warnings about past events that status shows: a fork, a lost entry, a peer that came back with less.
//!
//! They outlive closing and opening the store, and end after a day or with the process. A lost entry is no past event:
//! its warning stays until the entry comes back. No decision depends on them. When the store last took a new id is kept
//! here as well, for the lifetime of the process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::time::Time;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::record::Entry;

/// Incidents that are kept. At the bound the oldest one is dropped.
const INCIDENTS_MAX: usize = 16;

/// An incident is shown for this long.
const INCIDENT_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Logs that begin within [`SLOW_LOGS_INTERVAL`] because a link is slow: a log is kept for ever.
const SLOW_LOGS_MAX: usize = 4;
const SLOW_LOGS_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// A store takes a new id at most this often. Earlier claims that its id is used twice are ignored.
const NEW_ID_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The incidents of this process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Incidents(Arc<Mutex<IncidentLog>>);

#[derive(Debug, Default)]
struct IncidentLog {
    /// Each with when it happened, as a time of the two clocks.
    lines: VecDeque<(Time, Instant, String)>,
    /// Entries that were given up: the first lost one of each cut, and when.
    lost: VecDeque<(Time, Origin, u64)>,
    /// Apart from the incidents, which a peer could push out by causing others.
    last_new_id: Option<Instant>,
    slow_logs: Vec<Instant>,
}

impl Incidents {
    fn lock(&self) -> MutexGuard<'_, IncidentLog> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // each change is complete before a panic
    }

    /// Logs an incident and keeps it. One that happened before moves to the end.
    pub fn add(&self, what: String) {
        tracing::warn!("{what}");
        let lines = &mut self.lock().lines;
        lines.retain(|(_, _, earlier)| *earlier != what);
        if lines.len() == INCIDENTS_MAX {
            lines.pop_front();
        }
        lines.push_back((Time(super::now_ms()), Instant::now(), what));
    }

    /// Logs that an entry is given up, and keeps that until the entry comes back.
    pub fn add_lost(&self, origin: Origin, seq: u64) {
        tracing::error!(%origin, seq, "an entry is damaged, and no member has it: the log is cut there");
        let lost = &mut self.lock().lost;
        lost.retain(|(_, of, at)| (*of, *at) != (origin, seq));
        if lost.len() == INCIDENTS_MAX {
            lost.pop_front();
        }
        lost.push_back((Time(super::now_ms()), origin, seq));
    }

    pub fn has_lost(&self) -> bool {
        !self.lock().lost.is_empty()
    }

    /// A log has this first entry. If it is the branch of a log that was cut at a lost entry, that entry is back: a node
    /// that came back had it, and moved it there.
    pub fn on_log(&self, first: &Entry) {
        let is_branch = |origin, seq| {
            let key = EntryKey { stamp: first.stamp(), origin, seq };
            Origin::branch(key, first.log_type(), first.leaf()) == first.origin()
        };
        self.lock().lost.retain(|(_, origin, seq)| !is_branch(*origin, *seq));
    }

    /// Whether the store may take a new id now. If so, it may not again for [`NEW_ID_INTERVAL`].
    pub fn try_take_new_id(&self) -> bool {
        let last = &mut self.lock().last_new_id;
        let may = last.is_none_or(|at| at.elapsed() >= NEW_ID_INTERVAL);
        if may {
            *last = Some(Instant::now());
        }
        may
    }

    /// Whether a new log may begin because a link is slow. If so, that counts as one of [`SLOW_LOGS_MAX`].
    pub fn try_begin_log(&self) -> bool {
        let begun = &mut self.lock().slow_logs;
        begun.retain(|at| at.elapsed() < SLOW_LOGS_INTERVAL);
        let may = begun.len() < SLOW_LOGS_MAX;
        if may {
            begun.push(Instant::now());
        }
        may
    }

    /// The incidents as status shows them, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lines_at(Instant::now())
    }

    fn lines_at(&self, now: Instant) -> Vec<String> {
        let mut log = self.lock();
        log.lines.retain(|(_, happened, _)| now.saturating_duration_since(*happened) < INCIDENT_TIME);
        let lost = log.lost.iter().map(|(at, origin, seq)| {
            format!("entry {seq} of log {origin} was damaged here, and no member had it: it is lost ({at})")
        });
        lost.chain(log.lines.iter().map(|(at, _, what)| format!("{what} ({at})"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::clock::Stamp;
    use crate::chain::ids::Leaf;
    use crate::chain::kind::{EntryKind, LogType};
    use crate::chain::message::Digest;

    #[test]
    fn a_lost_entry_is_reported_until_it_is_back_in_a_branch() {
        let (incidents, log) = (Incidents::default(), Origin([1; 16]));
        incidents.add_lost(log, 3);
        incidents.add("a past event".into());
        let digest = Digest::of(EntryKind::Message, b"content");
        let leaf = Leaf::of(EntryKind::Message, "", digest);
        let entry = |origin| {
            let key = EntryKey { stamp: Stamp(7), origin, seq: 1 };
            Entry::new(key, EntryKind::Message, digest, b"content")
        };
        let branch =
            |seq| Origin::branch(EntryKey { stamp: Stamp(7), origin: log, seq }, LogType::MESSAGES, leaf);
        for other in [Origin([2; 16]), branch(4)] {
            incidents.on_log(&entry(other));
        }
        assert_eq!(incidents.lines().len(), 2);
        assert_eq!(incidents.lines_at(Instant::now() + INCIDENT_TIME).len(), 1, "a loss is no past event");
        incidents.on_log(&entry(branch(3)));
        assert!(!incidents.has_lost() && incidents.lines().is_empty());
    }

    /// Otherwise a peer that causes incidents could have the store closed again and again.
    #[test]
    fn other_incidents_do_not_allow_a_new_id_earlier() {
        let incidents = Incidents::default();
        assert!(incidents.try_take_new_id());
        (0..2 * INCIDENTS_MAX).for_each(|n| incidents.add(format!("node {n} came back with another store")));
        assert!(!incidents.try_take_new_id());
        assert_eq!(incidents.lines().len(), INCIDENTS_MAX);
    }
}
