//! Owns what happened to this network that an operator should know, as this process saw it.
//!
//! Kept over closings and openings of the store, until the process ends, and shown among the warnings. Nothing is
//! decided by them, but how often a store may be renamed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::time::Time;

/// Notes that are kept. At the bound the oldest goes.
const INCIDENTS_MAX: usize = 16;

/// A store takes another name at most this often.
const NEW_ID_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// See the head of this file. Clones are the same notes.
#[derive(Debug, Clone, Default)]
pub struct Incidents(Arc<IncidentLog>);

#[derive(Debug, Default)]
struct IncidentLog {
    lines: Mutex<VecDeque<(Time, String)>>,
    last_new_id: Mutex<Option<Instant>>,
}

impl Incidents {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Time, String)>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner) // lines of text, whole at any time
    }

    /// Takes note. What happened before moves up.
    pub fn add(&self, what: String) {
        tracing::warn!("{what}");
        let mut notes = self.lock();
        notes.retain(|(_, earlier)| *earlier != what);
        if notes.len() == INCIDENTS_MAX {
            notes.pop_front();
        }
        notes.push_back((Time(super::now_ms()), what));
    }

    /// Whether the store may be given another name now; if so, not again for a while. Kept apart from the lines, which
    /// a peer could have driven out by others.
    pub fn may_take_new_id(&self) -> bool {
        let mut renamed = self.0.last_new_id.lock().unwrap_or_else(PoisonError::into_inner); // one value
        let may = renamed.is_none_or(|at| at.elapsed() >= NEW_ID_INTERVAL);
        if may {
            *renamed = Some(Instant::now());
        }
        may
    }

    /// As they are shown, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lock().iter().map(|(at, what)| format!("{what} ({at})")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or whoever can make us take notes could have us close the store again and again.
    #[test]
    fn that_a_name_was_taken_is_not_forgotten_over_other_notes() {
        let notes = Incidents::default();
        assert!(notes.may_take_new_id());
        (0..2 * INCIDENTS_MAX).for_each(|n| notes.add(format!("node {n} came back with another store")));
        assert!(!notes.may_take_new_id());
        assert_eq!(notes.lines().len(), INCIDENTS_MAX);
    }
}
