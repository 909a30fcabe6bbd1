//! Owns how often something may happen that a peer causes and that stays for ever: a burst, then one in a while.
//!
//! No clock here: the time is an argument. A wall clock that was set back only delays the next one.

/// A token bucket.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    most: u64,
    /// One more after each of these.
    every_ms: u64,
    left: u64,
    /// Until when `left` was counted.
    counted_ms: u64,
}

impl Allowance {
    pub(super) fn new(most: u64, every_ms: u64) -> Self {
        Allowance { most, every_ms, left: most, counted_ms: 0 }
    }

    /// Whether it may happen once more now.
    pub(super) fn has(&mut self, now_ms: u64) -> bool {
        let periods = now_ms.saturating_sub(self.counted_ms) / self.every_ms;
        if self.left.saturating_add(periods) >= self.most || now_ms < self.counted_ms {
            self.counted_ms = now_ms;
        } else {
            self.counted_ms += periods * self.every_ms;
        }
        self.left = self.left.saturating_add(periods).min(self.most);
        self.left > 0
    }

    /// The same, and counts that it happens.
    pub(super) fn take(&mut self, now_ms: u64) -> bool {
        let may = self.has(now_ms);
        self.left -= u64::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_there_is_one_in_a_while() {
        let mut allowance = Allowance::new(3, 1_000);
        let taken = |allowance: &mut Allowance, now_ms| (0..9).filter(|_| allowance.take(now_ms)).count();
        assert_eq!(taken(&mut allowance, 5_000), 3);
        assert_eq!(taken(&mut allowance, 5_999), 0);
        assert_eq!(taken(&mut allowance, 7_500), 2);
        assert_eq!(taken(&mut allowance, 8_000), 1, "the half second is not lost");
        assert_eq!(taken(&mut allowance, 1_000), 0, "the clock was set back");
        assert_eq!(taken(&mut allowance, 2_000), 1);
        assert_eq!(taken(&mut allowance, 99_000), 3);
    }
}
