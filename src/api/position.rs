//! Owns positions as clients use them: which log entries a read must cover, or did cover.
//!
//! A position is opaque to a client that only sends it back. A client with several answers joins their positions, and
//! checks whether an answer covers a position. Must not know cursors: the feed refuses a position.
//!
//! Invariant: positions of different networks are never joined, and never cover each other.

use std::collections::BTreeMap;

use super::feed::{from_text, to_text};
use crate::chain::cursor;
use crate::chain::ids::Origin;

/// For some logs of one network, the last entry that is covered. Not a cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    network: [u8; 8],
    seqs: BTreeMap<Origin, u64>,
}

impl Position {
    /// Parses the value of a header; None if it is not a position.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = from_text(text)?;
        let network = cursor::network_of_position(&bytes)?;
        let seqs = cursor::read_position(&bytes, network).ok()?;
        Some(Position { network, seqs: seqs.into_iter().collect() })
    }

    /// The value of a header. If there are too many logs, the oldest ones are left out.
    pub fn to_text(&self) -> String {
        let newest_first = self.seqs.iter().rev().map(|(origin, seq)| (*origin, *seq));
        to_text(&cursor::position(self.network, newest_first))
    }

    /// Adds what the other position covers. False, without a change, if it is of another network.
    pub fn join(&mut self, other: &Self) -> bool {
        if self.network != other.network {
            return false;
        }
        for (origin, seq) in &other.seqs {
            let mine = self.seqs.entry(*origin).or_insert(*seq);
            *mine = (*mine).max(*seq);
        }
        true
    }

    /// Whether this position covers everything that the other one covers.
    pub fn covers(&self, other: &Self) -> bool {
        self.network == other.network && !self.lacks(other)
    }

    /// Whether the other position is of this network and covers something that this one does not.
    pub fn lacks(&self, other: &Self) -> bool {
        let has = |(origin, seq): (&Origin, &u64)| self.seqs.get(origin).is_some_and(|mine| mine >= seq);
        self.network == other.network && !other.seqs.iter().all(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(network: u8, seqs: &[(u8, u64)]) -> Position {
        let seqs = seqs.iter().map(|(origin, seq)| (Origin([*origin; 16]), *seq)).collect();
        Position { network: [network; 8], seqs }
    }

    #[test]
    fn a_position_round_trips() {
        let one = position(1, &[(1, 5), (2, 7)]);
        assert_eq!(Position::parse(&one.to_text()), Some(one));
        assert_eq!(Position::parse("nonsense"), None);
        assert_eq!(Position::parse(""), None);
    }

    #[test]
    fn if_there_are_too_many_logs_the_newest_are_kept() {
        let many = position(1, &(1..=250).map(|origin| (origin, 1)).collect::<Vec<_>>());
        let written = Position::parse(&many.to_text()).expect("a position");
        assert!(many.covers(&written) && !written.covers(&many));
        assert!(written.covers(&position(1, &[(250, 1), (240, 1)])));
    }

    #[test]
    fn two_are_joined_and_compared_within_a_network() {
        let mut one = position(1, &[(1, 5), (2, 7)]);
        assert!(one.covers(&position(1, &[(1, 5)])) && one.covers(&position(1, &[])));
        assert!(!one.covers(&position(1, &[(1, 6)])) && !one.covers(&position(1, &[(3, 1)])));
        assert!(one.lacks(&position(1, &[(1, 6)])) && !one.lacks(&position(1, &[(1, 5)])));
        let elsewhere = position(2, &[(1, 9)]);
        assert!(!one.covers(&elsewhere) && !one.lacks(&elsewhere), "of another network");
        assert!(!one.join(&position(2, &[(9, 9)])));
        assert!(one.join(&position(1, &[(1, 9), (2, 1), (3, 1)])));
        assert_eq!(one, position(1, &[(1, 9), (2, 7), (3, 1)]));
    }
}
