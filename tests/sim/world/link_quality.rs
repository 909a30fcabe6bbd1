//! Owns the faults of one link that is not broken: slow, cut in the middle of messages, or half-open.
//!
//! A message that does not pass whole arrives as a part, its first bytes. The initiator takes the runs in a part of an
//! answer; a part of a request is lost.

/// The longest silence of one exchange, after which its initiator closes the connection.
pub const SILENCE_MS: u64 = 10_000;
/// The same over a slow link, where a message is on its way for long.
const SLOW_MS: u64 = 120_000;

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
        let bytes = size.min(self.cut_after.unwrap_or(u64::MAX));
        Carried { bytes, ms: self.rate.map_or(0, |rate| bytes * 1_000 / rate) }
    }

    /// How long an exchange waits for an answer that comes over this link.
    pub fn patience_ms(&self) -> u64 {
        if self.rate.is_some() { SLOW_MS } else { SILENCE_MS }
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
    check(Some(1_000), None, 50_000, 50_000, 50_000);
    check(Some(1_000), Some(300), 50_000, 300, 300);
    check(None, Some(300), 300, 300, 0);
}
