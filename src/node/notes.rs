//! Owns what happened to this network that an operator should know, as this process saw it.
//!
//! Kept over closings and openings of the store, until the process ends, and shown among the warnings. Nothing is
//! decided by it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::time::Time;

/// Notes that are kept. At the bound the oldest goes.
const NOTES_MAX: usize = 16;

/// See the head of this file. Clones are the same notes.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<VecDeque<(Time, String)>>>);

impl Notes {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Time, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // lines of text, whole at any time
    }

    /// Takes note. What happened before moves up.
    pub fn add(&self, what: String) {
        tracing::warn!("{what}");
        let mut notes = self.lock();
        notes.retain(|(_, earlier)| *earlier != what);
        if notes.len() == NOTES_MAX {
            notes.pop_front();
        }
        notes.push_back((Time(super::now_ms()), what));
    }

    /// Whether something with these words happened within the last so many milliseconds.
    pub fn lately(&self, words: &str, ms: u64) -> bool {
        let since = super::now_ms().saturating_sub(ms);
        self.lock().iter().any(|(at, what)| at.0 >= since && what.contains(words))
    }

    /// As they are shown, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lock().iter().map(|(at, what)| format!("{what} ({at})")).collect()
    }
}
