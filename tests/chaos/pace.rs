//! When things happen: the one place of the chaos program that sleeps, and where its loops learn of an interruption.
//!
//! A schedule has times, so keeping them is waiting for nothing but the clock. What can be observed is awaited with
//! `eventually` or with `within`, which gives an answer instead of a panic.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// An interruption is noticed at the latest after this.
const NAP: Duration = Duration::from_millis(50);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Everything ends soon: every wait, every loop.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Does nothing for so long.
#[expect(clippy::disallowed_methods, reason = "a schedule and a rate are kept by the clock")]
pub fn rest(time: Duration) {
    std::thread::sleep(time);
}

/// Waits for a moment of the schedule.
pub fn rest_until(moment: Instant) {
    while !is_interrupted() {
        match moment.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return,
            left => rest(left.min(NAP)),
        }
    }
}

/// Observes until there is an answer; none after `timeout`, or when interrupted.
pub fn within<T>(timeout: Duration, mut observe: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        if let Some(answer) = observe() {
            return Some(answer);
        }
        if began.elapsed() >= timeout || is_interrupted() {
            return None;
        }
        rest(NAP);
    }
}
