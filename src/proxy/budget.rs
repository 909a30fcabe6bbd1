//! Owns how much more than what was offered may be asked of the nodes: one bucket of tokens per reason.
//!
//! Pure: `now` is the time since the proxy began. A request that only waits because a bucket is empty is no mistake:
//! where all nodes are slow, asking more of them makes all of them slower.

use std::time::Duration;

/// A bucket that fills with the requests that are offered, and with time, up to a bound.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    tokens: f64,
    filling: Filling,
    at: Duration,
}

/// How a bucket fills.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filling {
    /// More is not kept. A new bucket is full.
    pub(super) most: f64,
    /// Tokens for each request that is offered.
    pub(super) per_request: f64,
    /// Tokens for each second, whatever is offered.
    pub(super) per_second: f64,
}

impl Bucket {
    /// Full.
    pub(super) fn new(filling: Filling) -> Self {
        Self { tokens: filling.most, filling, at: Duration::ZERO }
    }

    /// A client brought a request.
    pub(super) fn offered(&mut self) {
        self.fill(self.filling.per_request);
    }

    /// Takes a token if there is one.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.at);
        self.at = now;
        self.fill(self.filling.per_second * passed.as_secs_f64());
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }

    fn fill(&mut self, tokens: f64) {
        self.tokens = (self.tokens + tokens).min(self.filling.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// How many tokens can be taken at this moment.
    fn drain(bucket: &mut Bucket, now: Duration) -> usize {
        (0..1_000).take_while(|_| bucket.take(now)).count()
    }

    #[test]
    fn a_bucket_gives_its_share_of_what_is_offered_and_no_more_than_it_holds() {
        let mut bucket = Bucket::new(Filling { most: 10.0, per_request: 0.125, per_second: 0.0 });
        assert_eq!(drain(&mut bucket, S), 10);
        assert_eq!(drain(&mut bucket, 1_000 * S), 0, "time alone brings nothing");
        (0..24).for_each(|_| bucket.offered());
        assert_eq!(drain(&mut bucket, S), 3);
        (0..100_000).for_each(|_| bucket.offered());
        assert_eq!(drain(&mut bucket, S), 10);
    }

    #[test]
    fn a_floor_fills_with_time() {
        let mut bucket = Bucket::new(Filling { most: 20.0, per_request: 0.0, per_second: 10.0 });
        assert_eq!(drain(&mut bucket, Duration::ZERO), 20);
        assert_eq!(drain(&mut bucket, S / 2), 5);
        assert_eq!(drain(&mut bucket, S / 4), 0, "a clock that is a little late takes nothing back");
        assert_eq!(drain(&mut bucket, 3600 * S), 20);
    }
}
