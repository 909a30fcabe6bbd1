//! The pauses of the chaos program: its only file that sleeps, and the flag that ends its loops after an interruption.
//!
//! Faults and sends happen at fixed times, so the program waits for the clock. For a condition it polls with
//! `eventually` or with `within`, which returns None at the timeout instead of a panic.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest time until an interruption is noticed.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait and every loop end soon.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Sleeps for this time.
#[expect(clippy::disallowed_methods, reason = "a schedule and a send rate follow the clock")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Sleeps until this time, or until an interruption.
pub fn pause_until(moment: Instant) {
    while !is_interrupted() {
        match moment.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return,
            left => pause(left.min(POLL_INTERVAL)),
        }
    }
}

/// Polls until there is a value. None after `timeout` or an interruption.
pub fn within<T>(timeout: Duration, mut observe: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        if let Some(answer) = observe() {
            return Some(answer);
        }
        if began.elapsed() >= timeout || is_interrupted() {
            return None;
        }
        pause(POLL_INTERVAL);
    }
}
