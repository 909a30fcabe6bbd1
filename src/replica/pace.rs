//! Owns how many bytes of entries one message of an exchange carries over a link, by what the link carried before.
//!
//! A message should take about four round trips, but one second at least, so that waiting for answers costs little, and
//! 20 at most, so that a link that became slow is noticed. The first message over a link is small; each one may
//! be eight times the one before. Where a link was cut, the next messages carry what the one that was cut had carried, and
//! a little more each time: bytes on their way when a link is cut are lost. Bytes are those of records in the store: on the wire they are fewer.
//!
//! No clock here: durations are arguments, in milliseconds.

/// The first message to a peer. On a link of 8 KiB/s it takes two seconds.
pub const FIRST_PUSH_BYTES: usize = 16 << 10;
/// The first answer of a peer. It may be longer: it is taken in as it arrives, and what is said now does not wait for
/// it.
pub const FIRST_PULL_BYTES: usize = 256 << 10;
/// The smallest one. A single entry is sent even if it is larger.
const BYTES_MIN: usize = 1 << 10;
/// The largest one.
pub const BYTES_MAX: usize = 4 << 20;
/// A link that carries fewer bytes than this before it is cut is not adapted to.
const CUT_BYTES_MIN: usize = 16 << 10;
/// Cuts are forgotten when so many messages were carried without another one.
const CUTS_FORGOTTEN_AFTER: u32 = 8;
/// A message may be this many times as long as the one before.
const GROWTH_MAX: usize = 8;
/// How long a message should take, at least and at most.
const TIME_MIN_MS: u64 = 1_000;
const TIME_MAX_MS: u64 = 20_000;
/// A peer behind a far link whose rate is not known may lack this many bytes: what the slowest link that is used carries
/// in half of [`LAG_MS`]. A near link is fast.
const UNKNOWN_CARRIES: u64 = 40 << 10;
/// A link with a longer round trip is far.
const NEAR_MS: u64 = 10;
/// A peer that is this far behind the log that we append to gets new messages in another log.
const LAG_MS: u64 = 10_000;

/// The pace of one direction of a link.
#[derive(Debug, Clone)]
pub struct Pace {
    bytes: usize,
    /// Bytes that a link which is cut again and again carries; the largest message otherwise.
    most: usize,
    /// Cuts of late.
    cuts: u32,
    /// Messages that were carried since the last cut.
    carried_since_cut: u32,
    round_trip_ms: Option<u64>,
    /// Bytes per second, as last measured.
    rate: Option<u64>,
}

impl Pace {
    /// Begins with messages of this many bytes.
    pub fn new(bytes: usize) -> Self {
        let (cuts, carried_since_cut) = (0, 0);
        Pace { bytes, most: BYTES_MAX, cuts, carried_since_cut, round_trip_ms: None, rate: None }
    }

    /// Bytes for the next message.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes per second that the link carried last, 0 if that is not known.
    pub fn rate(&self) -> u64 {
        self.rate.unwrap_or(0)
    }

    /// The round trip, 0 if it is not known.
    pub fn round_trip_ms(&self) -> u64 {
        self.round_trip_ms.unwrap_or(0)
    }

    /// An empty message was answered after this time. The shortest of late is the round trip; others waited for
    /// something else.
    pub fn on_round_trip(&mut self, ms: u64) {
        let longest = self.round_trip_ms.map_or(u64::MAX, |before| before + before / 8 + 1);
        self.round_trip_ms = Some(ms.min(longest));
    }

    /// A message with this many bytes was carried in this time, without the round trip.
    pub fn on_carried(&mut self, bytes: usize, ms: u64) {
        self.carried_since_cut += 1;
        if self.carried_since_cut == CUTS_FORGOTTEN_AFTER {
            self.cuts = 0;
        }
        if bytes < self.bytes / 2 {
            return; // there was not more to send, which says little of the link
        }
        let (carried, ms) = (bytes as u64, ms.max(1));
        self.rate = Some(carried * 1_000 / ms);
        let target = (4 * self.round_trip_ms()).clamp(TIME_MIN_MS, TIME_MAX_MS);
        let wanted = usize::try_from(carried * target / ms).unwrap_or(usize::MAX);
        self.most = (self.most + self.most / 8).min(BYTES_MAX);
        self.bytes = wanted.clamp(self.bytes / 4, self.bytes * GROWTH_MAX).clamp(BYTES_MIN, self.most);
    }

    /// A message was cut off after so many bytes. Few of them say little of the link: its other end may have stopped.
    pub fn on_cut(&mut self, bytes: usize) {
        if bytes >= CUT_BYTES_MIN {
            (self.cuts, self.carried_since_cut) = (self.cuts.saturating_add(1), 0);
            self.most = bytes.min(BYTES_MAX);
            self.bytes = self.bytes.min(self.most);
        }
    }

    /// Whether the link is cut again and again after it has carried much. One cut may be a peer that was started again.
    pub fn is_cut(&self) -> bool {
        self.cuts > 1
    }

    /// A message was lost on its way, and nothing of it arrived.
    pub fn on_lost(&mut self) {
        self.bytes = (self.bytes / 2).max(BYTES_MIN);
    }

    /// How long the next message may be on its way before its link counts as broken: four times what it should take.
    pub fn time_max_ms(&self) -> u64 {
        let expected = self.rate.map_or(TIME_MAX_MS, |rate| self.bytes as u64 * 1_000 / rate.max(1));
        4 * expected.clamp(TIME_MIN_MS, TIME_MAX_MS)
    }

    /// Whether so many bytes take longer than a new message may wait.
    pub fn is_lag(&self, bytes: u64) -> bool {
        match self.rate {
            Some(rate) => bytes > rate * LAG_MS / 1_000,
            None => self.round_trip_ms() > NEAR_MS && bytes > UNKNOWN_CARRIES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends over a link of this rate (bytes a second) and round trip. Returns how long the last message took.
    fn send(pace: &mut Pace, rate: u64, round_trip_ms: u64, messages: usize) -> u64 {
        let mut took = 0;
        for _ in 0..messages {
            pace.on_round_trip(round_trip_ms);
            took = pace.bytes() as u64 * 1_000 / rate;
            pace.on_carried(pace.bytes(), took);
        }
        took
    }

    #[test]
    fn a_message_takes_a_second_or_four_round_trips() {
        for (rate, round_trip, want) in
            [(8 << 10, 50, 1_000), (300 << 10, 1_000, 4_000), (64 << 10, 5_000, 20_000)]
        {
            let took = send(&mut Pace::new(FIRST_PUSH_BYTES), rate, round_trip, 12);
            assert!(
                (want - 100..=want + 100).contains(&took),
                "{took} ms at {rate} bytes/s and {round_trip} ms"
            );
        }
    }

    #[test]
    fn a_fast_link_gets_the_largest_messages_and_one_that_became_slow_smaller_ones() {
        let mut pace = Pace::new(FIRST_PUSH_BYTES);
        send(&mut pace, 100 << 20, 1, 6);
        assert_eq!(pace.bytes(), BYTES_MAX);
        assert!(!pace.is_lag(100 << 20));
        send(&mut pace, 64 << 10, 50, 6);
        assert!((60 << 10..=70 << 10).contains(&pace.bytes()), "{}", pace.bytes());
        assert!(pace.is_lag(700 << 10) && !pace.is_lag(600 << 10));
    }

    #[test]
    fn after_a_cut_messages_carry_what_was_carried_and_grow_slowly() {
        let mut pace = Pace::new(FIRST_PULL_BYTES);
        send(&mut pace, 100 << 20, 50, 6);
        pace.on_cut(80 << 10);
        assert_eq!((pace.bytes(), pace.is_cut()), (80 << 10, false), "it was cut once");
        send(&mut pace, 100 << 20, 50, 3);
        assert!((100 << 10..160 << 10).contains(&pace.bytes()), "{}", pace.bytes());
        send(&mut pace, 100 << 20, 50, 40);
        assert_eq!(pace.bytes(), BYTES_MAX);
        pace.on_cut(80 << 10);
        pace.on_cut(80 << 10);
        assert!(pace.is_cut());
        (0..CUTS_FORGOTTEN_AFTER).for_each(|_| pace.on_carried(100, 1));
        assert!(!pace.is_cut(), "short messages are carried, too");
    }

    #[test]
    fn what_is_lost_again_and_again_becomes_a_single_entry_and_a_short_message_says_nothing() {
        let mut pace = Pace::new(FIRST_PUSH_BYTES);
        (0..20).for_each(|_| pace.on_lost());
        assert_eq!(pace.bytes(), BYTES_MIN);
        pace.on_carried(100, 1);
        assert_eq!(pace.bytes(), BYTES_MIN);
        assert!(!pace.is_lag(u64::MAX), "near and not measured");
        pace.on_round_trip(50);
        assert!(pace.is_lag(UNKNOWN_CARRIES + 1) && !pace.is_lag(UNKNOWN_CARRIES));
    }
}
