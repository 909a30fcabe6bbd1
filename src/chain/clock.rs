//! Owns stamps: the hybrid logical clock that orders the display.
//!
//! A stamp is 48 bits of Unix milliseconds and 16 bits of counter. It is strictly increasing within an origin
//! and above every stamp the node has adopted. No decision about data depends on it; clocks only order what
//! is shown. Source: Kulkarni et al., "Logical Physical Clocks", 2014.
//! The wall clock is an argument (`now_ms`, Unix milliseconds) everywhere.

/// A stamp further ahead of the wall clock than this is stored but not adopted: one wrong clock somewhere
/// must not drag every other node's stamps into the future.
pub const AHEAD_MS_MAX: u64 = 5 * 60 * 1000;

const COUNTER_BITS: u32 = 16;

/// A moment of the hybrid clock; compared as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp(pub u64);

impl Stamp {
    pub fn at(ms: u64) -> Self {
        Stamp(ms << COUNTER_BITS)
    }

    /// Unix milliseconds.
    pub fn ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    fn is_far_ahead(self, now_ms: u64) -> bool {
        self.ms() > now_ms.saturating_add(AHEAD_MS_MAX)
    }
}

/// The largest stamp given or adopted. Not a source of time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    last: Stamp,
}

/// A new stamp, and whether the current log may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    pub stamp: Stamp,
    /// The wall clock was set back so far that stamps start again from it. A new log must begin, because the stamps of
    /// a log only increase.
    pub set_back: bool,
}

impl Clock {
    pub fn tick(&mut self, now_ms: u64) -> Tick {
        let set_back = self.last.is_far_ahead(now_ms);
        let floor = if set_back { Stamp::default() } else { Stamp(self.last.0 + 1) };
        self.last = Stamp::at(now_ms).max(floor);
        Tick { stamp: self.last, set_back }
    }

    /// Raises the clock to a stamp seen in a log, unless the stamp is too far ahead of the wall clock.
    pub fn adopt(&mut self, stamp: Stamp, now_ms: u64) {
        if !stamp.is_far_ahead(now_ms) {
            self.last = self.last.max(stamp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    #[test]
    fn stamps_increase_while_the_wall_clock_stands_or_steps_back_a_little() {
        let mut clock = Clock::default();
        let first = clock.tick(NOW).stamp;
        let second = clock.tick(NOW).stamp;
        let third = clock.tick(NOW - AHEAD_MS_MAX).stamp;
        assert!(first < second && second < third);
        assert_eq!(first.ms(), NOW);
    }

    #[test]
    fn a_clock_set_far_back_starts_again_and_says_so() {
        let mut clock = Clock::default();
        clock.tick(NOW);
        let tick = clock.tick(NOW - AHEAD_MS_MAX - 1);
        assert!(tick.set_back);
        assert_eq!(tick.stamp.ms(), NOW - AHEAD_MS_MAX - 1);
        assert!(!clock.tick(NOW - AHEAD_MS_MAX - 1).set_back);
    }

    #[test]
    fn a_stamp_is_adopted_unless_it_is_far_ahead() {
        let mut clock = Clock::default();
        clock.adopt(Stamp::at(NOW + AHEAD_MS_MAX), NOW);
        assert!(clock.tick(NOW).stamp > Stamp::at(NOW + AHEAD_MS_MAX));
        let mut clock = Clock::default();
        clock.adopt(Stamp::at(NOW + AHEAD_MS_MAX + 1), NOW);
        assert_eq!(clock.tick(NOW).stamp, Stamp::at(NOW));
    }
}
