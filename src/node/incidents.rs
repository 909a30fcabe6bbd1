//! Owns the warnings about past events that status shows: a fork, a lost entry, a peer that came back with less.
//!
//! They outlive closing and opening the store, until the process ends. No decision depends on them. When the store last
//! took a new id is kept here as well, for the same lifetime.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::time::Time;

/// Incidents that are kept. At the bound the oldest one is dropped.
const INCIDENTS_MAX: usize = 16;

/// A store takes a new id at most this often. Earlier claims that its id is used twice are ignored.
const NEW_ID_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The incidents of this process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Incidents(Arc<Mutex<IncidentLog>>);

#[derive(Debug, Default)]
struct IncidentLog {
    lines: VecDeque<(Time, String)>,
    /// Apart from the incidents, which a peer could push out by causing others.
    last_new_id: Option<Instant>,
}

impl Incidents {
    fn lock(&self) -> MutexGuard<'_, IncidentLog> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // each change is complete before a panic
    }

    /// Logs an incident and keeps it. One that happened before moves to the end.
    pub fn add(&self, what: String) {
        tracing::warn!("{what}");
        let lines = &mut self.lock().lines;
        lines.retain(|(_, earlier)| *earlier != what);
        if lines.len() == INCIDENTS_MAX {
            lines.pop_front();
        }
        lines.push_back((Time(super::now_ms()), what));
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

    /// The incidents as status shows them, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.iter().map(|(at, what)| format!("{what} ({at})")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
