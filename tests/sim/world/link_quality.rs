//! Owns the faults of one link that is not broken: slow, cut in the middle of messages, or half-open.
//!
//! A message that does not pass whole arrives as a part, its first bytes. An exchange that decodes messages whole makes
//! nothing of a part; one that reads entry by entry may.

/// The longest time of one exchange, after which its initiator closes the connection.
pub const EXCHANGE_MS: u64 = 10_000;

/// The quality of one direction of a link. The default passes everything at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkQuality {
    /// Bytes per second. Each message has the whole rate.
    pub rate: Option<u64>,
    /// A message that is longer is cut after so many bytes, and its connection is reset.
    pub cut_after: Option<u64>,
    /// Of the exchanges that start at this end.
    pub half_open: Option<HalfOpen>,
}

/// What is lost without an error, so that the initiator waits until its timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfOpen {
    /// Requests arrive, their answers do not.
    Unanswered,
    /// Neither arrives.
    Swallowed,
}

/// How much of a message arrives, and after which time.
#[derive(Debug, PartialEq, Eq)]
pub struct Carried {
    pub bytes: u64,
    pub ms: u64,
}

impl LinkQuality {
    /// What this link carries of a message of this size.
    pub fn carry(&self, size: u64) -> Carried {
        let before_cut = self.cut_after.unwrap_or(u64::MAX);
        let in_time = self.rate.map_or(u64::MAX, |rate| rate * EXCHANGE_MS / 1_000);
        let bytes = size.min(before_cut).min(in_time);
        Carried { bytes, ms: self.rate.map_or(0, |rate| bytes * 1_000 / rate) }
    }
}

#[test]
fn a_link_carries_what_its_rate_and_its_cuts_allow() {
    let check = |rate, cut_after, size, bytes, ms| {
        let quality = LinkQuality { rate, cut_after, half_open: None };
        assert_eq!(quality.carry(size), Carried { bytes, ms });
    };
    check(None, None, 50_000, 50_000, 0);
    check(Some(1_000), None, 5_000, 5_000, 5_000);
    check(Some(1_000), None, 50_000, 10_000, 10_000);
    check(Some(1_000), Some(300), 50_000, 300, 300);
    check(None, Some(300), 300, 300, 0);
}
