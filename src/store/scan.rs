//! Owns the walk over one user's messages in display order, by way of the index.
//!
//! What the index file holds and what is still in its tail are merged by place; an entry that moved from the
//! one to the other while the walk was under way is met twice and given once.

use std::collections::VecDeque;

use super::index::FileScan;
use super::log::{Entry, Reader};
use super::tail::NameHash;
use super::{Error, Store};
use crate::chain::log::Logs;
use crate::chain::place::Place;

/// Rows of the index read at once.
const ROWS: usize = 512;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Scan {
    name: NameHash,
    sides: u8,
    backward: bool,
    /// Taken before the file is looked at for the first time.
    tail: VecDeque<Place>,
    file: VecDeque<Place>,
    /// Where the file goes on, unless it is at its end.
    file_from: Option<Place>,
    file_done: bool,
}

impl Scan {
    /// The places after (backward: before) `from` where `name` stands on one of `sides`.
    pub(super) fn new(store: &Store, name: &str, sides: u8, from: Option<Place>, backward: bool) -> Self {
        let name = NameHash::of(name);
        let mut tail = store.index().tail_places(name, sides);
        tail.retain(|place| from.is_none_or(|from| if backward { *place < from } else { *place > from }));
        if backward {
            tail.reverse();
        }
        let (tail, file) = (tail.into(), VecDeque::new());
        Scan { name, sides, backward, tail, file, file_from: from, file_done: false }
    }

    /// The next entry within `logs`, and whether it has another copy.
    pub(super) fn next(
        &mut self,
        store: &Store,
        logs: &Logs,
        reader: &mut Reader,
    ) -> Result<Option<(Entry, bool)>, Error> {
        while let Some(Place { origin, seq, .. }) = self.next_place(store)? {
            if seq <= logs.vector().seq(origin) {
                let has_copy = !store.index().copies(origin, seq, seq)?.is_empty();
                return Ok(Some((reader.get(origin, seq)?, has_copy)));
            }
        }
        Ok(None)
    }

    fn next_place(&mut self, store: &Store) -> Result<Option<Place>, Error> {
        while self.file.is_empty() && !self.file_done {
            let scan = FileScan { from: self.file_from, backward: self.backward, rows: ROWS };
            let found = store.index().file_places(self.name, self.sides, scan)?;
            self.file.extend(found.places);
            self.file_done = found.next.is_none();
            self.file_from = found.next;
        }
        let place = match (self.tail.front(), self.file.front()) {
            (Some(tail), Some(file)) if (tail < file) ^ self.backward => *tail,
            (_, Some(file)) => *file,
            (tail, None) => match tail {
                Some(tail) => *tail,
                None => return Ok(None),
            },
        };
        for places in [&mut self.tail, &mut self.file] {
            if places.front() == Some(&place) {
                places.pop_front();
            }
        }
        Ok(Some(place))
    }
}
