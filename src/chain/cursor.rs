//! Owns what a reader of the feed has seen, and the bytes by which it is told so and comes back: the cursor.
//!
//! A reader has seen a beginning of every log ([`Seen::full`]), and of a walk in display order everything up to a place
//! ([`Walk`]). Both mean the same on every node, whatever it holds: an entry is covered or it is not. So a cursor can be
//! small although logs are many: the ends of a walk are milestones with a few changes, and one place says the rest.
//! A reader that moves to a node which lacks a part of an earlier walk keeps that walk until the node has it. Nothing that is
//! stamped after the last thing it saw is covered: a copy of a running machine may use places a second time.
//!
//! A position is how much somebody's read must cover. It is written alike, but is no cursor, and neither serves as the
//! other. Both carry the network and a check; a cursor also what its filter was.

use super::clock::Stamp;
use super::place::{Origin, Place};
use super::seqs::{Bytes, Name, Seqs, put_all, put_number, put_one};

/// A cursor's bytes; as text it then stays below 1 KiB. What would be longer is not written.
pub const CURSOR_BYTES_MAX: usize = 760;
/// Walks in a cursor. A reader that would need more waits until the node has what an earlier one speaks of.
pub const WALKS_MAX: usize = 4;

const CURSOR: u8 = 0x11;
const POSITION: u8 = 0x21;
const CHECK_BYTES: usize = 4;

/// A walk through everything in `until`, in display order, up to and with `at`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// What is walked through.
    pub until: Seqs,
    /// How far.
    pub at: Place,
}

impl Walk {
    /// Whether it has come past this entry.
    pub fn covers(&self, place: Place) -> bool {
        place <= self.at && place.seq <= self.until.seq(place.origin)
    }
}

/// What a reader has seen. See the head of this file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The beginning of every log,
    pub full: Seqs,
    /// as far as it is stamped no later than this.
    pub last: Stamp,
    /// Besides, what walks have come past.
    pub walks: Vec<Walk>,
}

impl Seen {
    /// Everything in these logs up to there, and nothing else. `last`: the largest stamp among it.
    pub fn all(full: Seqs, last: Stamp) -> Self {
        Seen { full, last, walks: Vec::new() }
    }

    /// Where the beginnings end in display order.
    pub fn end(&self) -> Place {
        Place { stamp: self.last, origin: Origin([0xff; 16]), seq: u64::MAX }
    }

    /// Whether an entry is among it.
    pub fn covers(&self, place: Place) -> bool {
        let is_beginning = place.seq <= self.full.seq(place.origin) && place.stamp <= self.last;
        is_beginning || self.walks.iter().any(|walk| walk.covers(place))
    }

    /// What is left to be remembered of it by a reader who has besides seen all of `held`: what lies beyond that.
    #[must_use]
    pub fn beyond(&self, held: &Seqs) -> Vec<Walk> {
        let full = self.full.beyond(held);
        let full = (!full.is_empty()).then(|| Walk { until: full.into_iter().collect(), at: self.end() });
        let walks = self.walks.iter().filter_map(|walk| {
            let beyond = walk.until.beyond(held);
            // Where only a few logs are meant, those are written; where many, what they were a difference to.
            let until = match beyond.len() {
                0 => return None,
                1..=FEW => beyond.into_iter().collect(),
                _ => walk.until.clone(),
            };
            Some(Walk { until, at: walk.at })
        });
        full.into_iter().chain(walks).collect()
    }
}

/// Logs that are rather written down than kept as a difference.
const FEW: usize = 4;

/// Which network and filter a cursor is for, as short hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose {
    /// The first bytes of a hash of the network's name.
    pub network: [u8; 8],
    /// The same of the filter as it is written.
    pub filter: [u8; 8],
}

impl Purpose {
    /// For this network, by the hash that exchanges carry, and a filter as it is written.
    pub fn new(network: [u8; 8], filter: &str) -> Self {
        let filter = *blake3::hash(filter.as_bytes()).as_bytes().first_chunk().expect("32 bytes have 8");
        Purpose { network, filter }
    }
}

/// Seqs as they were written: a difference to something that has to be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// To what.
    pub to: Base,
    /// How far logs are where that is otherwise; 0: not covered.
    pub changes: Vec<(Origin, u64)>,
}

/// What a difference is one to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Nothing: all is written.
    Nothing,
    /// The milestone of this name.
    Milestone(Name),
    /// In a walk: the beginning of every log, which stands before it.
    Full,
}

/// A cursor as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// See [`Seen::full`].
    pub full: Difference,
    /// See [`Seen::last`].
    pub last: Stamp,
    /// See [`Seen::walks`].
    pub walks: Vec<(Difference, Place)>,
}

/// Why bytes are not a cursor or a position that can be used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotACursor {
    /// Not written by us, or cut.
    #[error("it is not one, or it is incomplete")]
    Malformed,
    /// A position where a cursor is wanted, or the other way round.
    #[error("it is a position and a cursor is wanted, or the other way round")]
    OtherUse,
    /// Of another network.
    #[error("it is of another network")]
    Network,
    /// Made with another filter.
    #[error("it was made with another filter")]
    Filter,
}

/// The part of a cursor that does not depend on the filter; `None`: it would be too long. Shared by all who read alike.
pub fn core(seen: &Seen) -> Option<Vec<u8>> {
    match seen.walks.split_last() {
        None => {
            let mut out = Vec::with_capacity(128);
            put_full(&mut out, seen);
            out.push(0);
            (out.len() <= CORE_BYTES_MAX).then_some(out)
        }
        Some((last, others)) => {
            let before = Seen { walks: others.to_vec(), ..seen.clone() };
            Some(at_place(&walk_core(&before, &last.until)?, last.at))
        }
    }
}

/// The core of a cursor on a walk, without the place up to which it has come: all that its cursors share.
pub fn walk_core(before: &Seen, until: &Seqs) -> Option<Vec<u8>> {
    let count = before.walks.len() + 1;
    if count > WALKS_MAX {
        return None;
    }
    let mut out = Vec::with_capacity(128);
    put_full(&mut out, before);
    out.push(u8::try_from(count).ok()?);
    let put_until = |out: &mut Vec<u8>, until: &Seqs| {
        let (by_itself, to_full) = (difference(until), until.changes_to(&before.full));
        let to_full = Difference { to: Base::Full, changes: to_full };
        let is_shorter = to_full.changes.len() <= by_itself.changes.len();
        put_difference(out, if is_shorter { &to_full } else { &by_itself });
    };
    for walk in &before.walks {
        put_until(&mut out, &walk.until);
        put_at(&mut out, walk.at);
    }
    put_until(&mut out, until);
    (out.len() + PLACE_BYTES_MAX <= CORE_BYTES_MAX).then_some(out)
}

/// The core of a cursor on a walk that has come up to this place.
pub fn at_place(walk_core: &[u8], at: Place) -> Vec<u8> {
    let mut out = Vec::with_capacity(walk_core.len() + PLACE_BYTES_MAX);
    out.extend_from_slice(walk_core);
    put_at(&mut out, at);
    out
}

const CORE_BYTES_MAX: usize = CURSOR_BYTES_MAX - HEAD_BYTES - CHECK_BYTES;
/// A stamp, an origin and the longest number.
const PLACE_BYTES_MAX: usize = 8 + 16 + 10;

fn put_full(out: &mut Vec<u8>, seen: &Seen) {
    put_difference(out, &difference(&seen.full));
    out.extend_from_slice(&seen.last.0.to_be_bytes());
}

fn put_at(out: &mut Vec<u8>, at: Place) {
    out.extend_from_slice(&at.stamp.0.to_be_bytes());
    put_one(out, at.origin, at.seq);
}

fn difference(seqs: &Seqs) -> Difference {
    let to = seqs.base().map_or(Base::Nothing, |base| Base::Milestone(base.name));
    Difference { to, changes: seqs.changes() }
}

fn put_difference(out: &mut Vec<u8>, difference: &Difference) {
    match difference.to {
        Base::Nothing => out.push(0),
        Base::Full => out.push(2),
        Base::Milestone(name) => {
            out.push(1);
            out.extend_from_slice(&name.0);
        }
    }
    put_all(out, &difference.changes);
}

const HEAD_BYTES: usize = 17;

/// A cursor's bytes, of its core.
pub fn seal(core: &[u8], purpose: Purpose) -> Vec<u8> {
    sealed(CURSOR, core, purpose)
}

fn sealed(kind: u8, core: &[u8], purpose: Purpose) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + core.len() + CHECK_BYTES);
    out.push(kind);
    out.extend_from_slice(&purpose.network);
    out.extend_from_slice(&purpose.filter);
    out.extend_from_slice(core);
    let check = check(&out);
    out.extend_from_slice(&check);
    out
}

fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    *blake3::hash(bytes).as_bytes().first_chunk().expect("32 bytes have 4")
}

/// Reads a cursor that was made for this purpose.
pub fn open(bytes: &[u8], purpose: Purpose) -> Result<Cursor, NotACursor> {
    let core = opened(CURSOR, bytes, purpose)?;
    read_core(core).ok_or(NotACursor::Malformed)
}

/// The core of a cursor that was opened.
pub fn core_of(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(HEAD_BYTES..bytes.len().checked_sub(CHECK_BYTES)?)
}

fn opened(kind: u8, bytes: &[u8], purpose: Purpose) -> Result<&[u8], NotACursor> {
    let (sealed, check_bytes) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(NotACursor::Malformed)?;
    let (head, core) = sealed.split_first_chunk::<HEAD_BYTES>().ok_or(NotACursor::Malformed)?;
    match head {
        _ if check(sealed) != *check_bytes => Err(NotACursor::Malformed),
        [CURSOR | POSITION, ..] if head[0] != kind => Err(NotACursor::OtherUse),
        _ if head[0] != kind => Err(NotACursor::Malformed),
        _ if head[1..9] != purpose.network => Err(NotACursor::Network),
        _ if head[9..] != purpose.filter => Err(NotACursor::Filter),
        _ => Ok(core),
    }
}

fn read_core(core: &[u8]) -> Option<Cursor> {
    let mut rest = Bytes(core);
    let full = rest.difference(false)?;
    let last = Stamp(u64::from_be_bytes(rest.take()?));
    let count = usize::from(rest.byte()?);
    (count <= WALKS_MAX).then_some(())?;
    let mut walks = Vec::new();
    for _ in 0..count {
        let until = rest.difference(true)?;
        let stamp = Stamp(u64::from_be_bytes(rest.take()?));
        let (origin, seq) = rest.one()?;
        walks.push((until, Place { stamp, origin, seq }));
    }
    rest.0.is_empty().then_some(Cursor { full, last, walks })
}

impl Bytes<'_> {
    fn difference(&mut self, is_walk: bool) -> Option<Difference> {
        let to = match self.byte()? {
            0 => Base::Nothing,
            1 => Base::Milestone(Name(self.take()?)),
            2 if is_walk => Base::Full,
            _ => return None,
        };
        Some(Difference { to, changes: self.all()? })
    }
}

impl Cursor {
    /// The milestones that have to be looked up.
    pub fn milestones(&self) -> impl Iterator<Item = Name> + '_ {
        let all = std::iter::once(&self.full).chain(self.walks.iter().map(|(until, _)| until));
        all.filter_map(|difference| match difference.to {
            Base::Milestone(name) => Some(name),
            Base::Nothing | Base::Full => None,
        })
    }

    /// What it says, given the milestones; `None`: one of them is not there.
    pub fn expand(self, milestone: impl Fn(Name) -> Option<Seqs>) -> Option<Seen> {
        let expand = |difference: Difference, full: Option<&Seqs>| {
            let mut seqs = match difference.to {
                Base::Nothing => Seqs::default(),
                Base::Full => full?.clone(),
                Base::Milestone(name) => milestone(name)?,
            };
            difference.changes.into_iter().for_each(|(origin, seq)| seqs.set(origin, seq));
            Some(seqs)
        };
        let full = expand(self.full, None)?;
        let walks = self.walks.into_iter().map(|(until, at)| {
            let until = expand(until, Some(&full))?;
            Some(Walk { until, at })
        });
        let walks = walks.collect::<Option<_>>()?;
        Some(Seen { full, last: self.last, walks })
    }
}

/// The bytes of a position that covers these entries; as many of the last ones as there is room for, which is a weaker
/// word and still a true one.
pub fn position(network: [u8; 8], seqs: impl IntoIterator<Item = (Origin, u64)>) -> Vec<u8> {
    let room = CURSOR_BYTES_MAX - HEAD_BYTES - CHECK_BYTES - 2;
    let (mut list, mut count) = (Vec::new(), 0);
    for (origin, seq) in seqs {
        let before = list.len();
        put_one(&mut list, origin, seq);
        if list.len() > room {
            list.truncate(before);
            break;
        }
        count += 1;
    }
    let mut core = Vec::with_capacity(list.len() + 2);
    put_number(&mut core, count);
    core.extend_from_slice(&list);
    sealed(POSITION, &core, Purpose { network, filter: [0; 8] })
}

/// Reads a position of this network.
pub fn read_position(bytes: &[u8], network: [u8; 8]) -> Result<Vec<(Origin, u64)>, NotACursor> {
    let mut rest = Bytes(opened(POSITION, bytes, Purpose { network, filter: [0; 8] })?);
    let all = rest.all().filter(|_| rest.0.is_empty());
    all.ok_or(NotACursor::Malformed)
}

/// Of which network a position says that it is. Whether it is one, is seen by who reads it.
pub fn network_of_position(bytes: &[u8]) -> Option<[u8; 8]> {
    bytes.get(1..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests;
