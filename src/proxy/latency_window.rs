//! Owns how long answers took lately, and so when a request is late enough that a second node is asked.
//!
//! Pure. A request later than the 95th percentile is one of twenty, which is as many as the budget lets hedge.

use std::time::Duration;

/// So many answers say what is usual. At 500 a second that is the last half second; a change is believed soon.
const KEPT: usize = 256;
/// Of fewer answers nothing is concluded.
const LEAST: usize = 20;
/// The percentile is found anew after so many answers, not after each.
const RENEWED_EVERY: usize = 16;
/// Before anything was measured. Above what a healthy node needs even on a busy machine.
const DELAY_START: Duration = Duration::from_millis(200);
/// However fast answers are: a pause of a few milliseconds is a scheduler's or a disk's, and passes by itself.
const DELAY_MIN: Duration = Duration::from_millis(20);
/// However slow answers are: nobody waits longer without a second try, as long as the budget has one.
const DELAY_MAX: Duration = Duration::from_secs(1);

/// The last answers of one kind, whoever gave them.
#[derive(Debug, Default)]
pub(super) struct LatencyWindow {
    times: Vec<Duration>,
    /// How many there were in all.
    count: usize,
    delay: Option<Duration>,
}

impl LatencyWindow {
    /// An answer took so long.
    pub(super) fn note(&mut self, took: Duration) {
        if self.times.len() < KEPT {
            self.times.push(took);
        } else {
            self.times[self.count % KEPT] = took;
        }
        self.count += 1;
        if self.times.len() >= LEAST && self.count.is_multiple_of(RENEWED_EVERY) {
            let mut times = self.times.clone();
            let place = times.len() * 95 / 100;
            let (_, p95, _) = times.select_nth_unstable(place);
            self.delay = Some((*p95).clamp(DELAY_MIN, DELAY_MAX));
        }
    }

    /// How long to wait for one node before a second one is asked too.
    pub(super) fn hedge_delay(&self) -> Duration {
        self.delay.unwrap_or(DELAY_START)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[track_caller]
    fn check(times: impl IntoIterator<Item = u32>, want: Duration) {
        let mut recent = LatencyWindow::default();
        times.into_iter().for_each(|ms| recent.note(ms * MS));
        assert_eq!(recent.hedge_delay(), want);
    }

    #[test]
    fn a_few_answers_say_nothing() {
        check([], DELAY_START);
        check([1; LEAST - 1], DELAY_START);
    }

    #[test]
    fn the_delay_is_the_95th_percentile_within_bounds() {
        check(1..=100, 92 * MS); // of the first 96: found anew after every sixteenth
        check([1; 64], DELAY_MIN);
        check([5_000; 64], DELAY_MAX);
        check([[50; 62].as_slice(), &[900; 2]].concat(), 50 * MS);
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        check([[500; 256].as_slice(), &[30; 256]].concat(), 30 * MS);
    }
}
