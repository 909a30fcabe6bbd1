//! Prints measurements, also of tests that pass, so that the log of a run shows the margin to each bound.

use std::io::Write;
use std::time::Duration;

/// Prints a measurement. Not eprintln: the test runner hides its output when the test passes.
pub fn say(measured: &str) {
    writeln!(std::io::stderr(), "measured: {measured}").expect("standard error is open");
}

/// The value that this share of all values do not exceed: 0.5 gives the median.
#[track_caller]
pub fn percentile(times: &[Duration], share: f64) -> Duration {
    assert!(!times.is_empty() && (0.0..=1.0).contains(&share));
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let last = u32::try_from(sorted.len() - 1).expect("few");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the list")]
    let index = (f64::from(last) * share).round() as usize;
    sorted[index]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let times: Vec<_> = (0..=100).rev().map(Duration::from_millis).collect();
        let at = |share| percentile(&times, share).as_millis();
        assert_eq!([at(0.0), at(0.5), at(0.99), at(1.0)], [0, 50, 99, 100]);
        assert_eq!(percentile(&times[..1], 0.5).as_millis(), 100);
    }
}
