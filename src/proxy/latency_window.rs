//! Owns the latencies of recent answers, and the hedge delay that follows: when a second upstream is asked.
//!
//! Pure. A request later than the 95th percentile is one of twenty, which is as many as the budget lets hedge.

use std::collections::VecDeque;
use std::time::Duration;

/// Answers in the window. At 500 per second that is half a second, so a change takes effect soon.
const ANSWERS_MAX: usize = 256;
/// The percentile is computed after this many answers, not for each step of each request, which all wait for one lock.
const COMPUTE_EVERY: usize = 16;
/// With fewer answers the percentile says nothing, and the start value is used.
const ANSWERS_MIN: usize = 20;
/// Before enough was measured. Above what a healthy node needs even on a busy machine.
const DELAY_START: Duration = Duration::from_millis(200);
/// Lower bound: a pause of a few milliseconds comes from a scheduler or a disk and passes without a hedge.
const DELAY_MIN: Duration = Duration::from_millis(20);
/// Upper bound: a request gets a second try after this time however slow answers are, if the budget allows.
const DELAY_MAX: Duration = Duration::from_secs(1);

/// The last latencies of one traffic class, of all upstreams together.
#[derive(Debug, Default)]
pub struct LatencyWindow {
    latencies: VecDeque<Duration>,
    /// All answers so far.
    count: usize,
    hedge_delay: Option<Duration>,
}

impl LatencyWindow {
    pub fn record(&mut self, latency: Duration) {
        if self.latencies.len() == ANSWERS_MAX {
            self.latencies.pop_front();
        }
        self.latencies.push_back(latency);
        self.count += 1;
        if self.latencies.len() >= ANSWERS_MIN && self.count.is_multiple_of(COMPUTE_EVERY) {
            let mut sorted = Vec::from(self.latencies.clone());
            let (_, p95, _) = sorted.select_nth_unstable(self.latencies.len() * 95 / 100);
            self.hedge_delay = Some((*p95).clamp(DELAY_MIN, DELAY_MAX));
        }
    }

    /// How long to wait for one upstream before a second one is asked.
    pub fn hedge_delay(&self) -> Duration {
        self.hedge_delay.unwrap_or(DELAY_START)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[track_caller]
    fn check(latencies: impl IntoIterator<Item = u32>, want: Duration) {
        let mut window = LatencyWindow::default();
        latencies.into_iter().for_each(|ms| window.record(ms * MS));
        assert_eq!(window.hedge_delay(), want);
    }

    #[test]
    fn few_answers_leave_the_start_value() {
        check([], DELAY_START);
        check([1; ANSWERS_MIN - 1], DELAY_START);
    }

    #[test]
    fn the_delay_is_the_95th_percentile_within_bounds() {
        check(1..=100, 92 * MS); // of the first 96: computed after every sixteenth
        check([1; 64], DELAY_MIN);
        check([5_000; 64], DELAY_MAX);
        check([[50; 62].as_slice(), &[900; 2]].concat(), 50 * MS);
    }

    #[test]
    fn old_answers_do_not_count() {
        check([[500; 256].as_slice(), &[30; 256]].concat(), 30 * MS);
    }
}
