//! Polls until a condition holds. The only file of the integration tests that sleeps.
//!
//! An attempt returns `bool`, `Option` or `Result`. Polling ends with the first success, or at the timeout with a panic
//! that names the condition and the result of the last attempt. Only observations are repeated; a test is never
//! retried.

use std::fmt::Debug;
use std::panic::Location;
use std::time::{Duration, Instant};

/// The pause between attempts doubles from the minimum to the maximum: short waits end soon, long waits use little CPU.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The result of one attempt: the value, or a description of what is still missing.
pub trait Outcome {
    type Value;
    fn into_result(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();
    fn into_result(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;
    fn into_result(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".into())
    }
}

impl<T, E: Debug> Outcome for Result<T, E> {
    type Value = T;
    fn into_result(self) -> Result<T, String> {
        self.map_err(|e| format!("{e:?}"))
    }
}

/// Repeats an async attempt until it succeeds. Panics after `timeout`.
#[track_caller]
pub fn eventually<O: Outcome, F: Future<Output = O>>(
    timeout: Duration,
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> impl Future<Output = O::Value> {
    let mut wait = Wait::new(timeout, what, Location::caller());
    async move {
        loop {
            match attempt().await.into_result() {
                Ok(value) => return value,
                Err(missing) => tokio::time::sleep(wait.pause(&missing)).await,
            }
        }
    }
}

/// Repeats a blocking attempt until it succeeds. Panics after `timeout`.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "the only function of the tests that sleeps")]
pub fn eventually_blocking<O: Outcome>(
    timeout: Duration,
    what: &str,
    mut attempt: impl FnMut() -> O,
) -> O::Value {
    let mut wait = Wait::new(timeout, what, Location::caller());
    loop {
        match attempt().into_result() {
            Ok(value) => return value,
            Err(missing) => std::thread::sleep(wait.pause(&missing)),
        }
    }
}

struct Wait {
    what: String,
    caller: &'static Location<'static>,
    began: Instant,
    timeout: Duration,
    pause: Duration,
}

impl Wait {
    fn new(timeout: Duration, what: &str, caller: &'static Location<'static>) -> Self {
        Wait { what: what.into(), caller, began: Instant::now(), timeout, pause: PAUSE_MIN }
    }

    /// The pause before the next attempt. Panics if the timeout has passed; an attempt that began before it still
    /// counts.
    fn pause(&mut self, missing: &str) -> Duration {
        let Wait { what, caller, timeout, .. } = self;
        assert!(self.began.elapsed() < *timeout, "{caller}: not within {timeout:?}: {what}; last: {missing}");
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn the_first_success_ends_the_wait() {
        let mut left = 3;
        let value = eventually_blocking(LONG, "three attempts", || {
            left -= 1;
            (left == 0).then_some("done")
        });
        assert_eq!((value, left), ("done", 0));
    }

    #[test]
    #[should_panic(expected = "not within 5ms: the moon; last: \"still cheese\"")]
    fn a_timeout_names_the_condition_and_the_last_result() {
        eventually_blocking(SHORT, "the moon", || Err::<(), _>("still cheese"));
    }

    #[tokio::test]
    async fn async_attempts_are_awaited() {
        let count = std::cell::Cell::new(0);
        eventually(LONG, "three attempts", || async {
            count.set(count.get() + 1);
            count.get() == 3
        })
        .await;
        assert_eq!(count.get(), 3);
    }

    #[tokio::test]
    #[should_panic(expected = "eventually.rs")]
    async fn a_failed_async_wait_names_the_caller() {
        eventually(SHORT, "never", || async { false }).await;
    }
}
