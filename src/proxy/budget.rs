//! Owns the token buckets that limit how many more requests the proxy sends than its clients do; one per reason.
//!
//! Pure: `now` is the time since the proxy started. A request that waits because a bucket is empty is not a defect:
//! where all nodes are slow, more requests make all of them slower.

use std::time::Duration;

/// A bucket that fills with requests of clients and with time, up to a bound.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    tokens: f64,
    refill: Refill,
    refilled_at: Duration,
}

#[derive(Debug, Clone, Copy)]
pub struct Refill {
    /// Further tokens are dropped. A new bucket is full.
    pub tokens_max: f64,
    /// Tokens for each request of a client.
    pub per_request: f64,
    /// Tokens for each second.
    pub per_second: f64,
}

impl TokenBucket {
    pub fn new(refill: Refill) -> Self {
        Self { tokens: refill.tokens_max, refill, refilled_at: Duration::ZERO }
    }

    /// A client sent a request.
    pub fn request_arrived(&mut self) {
        self.add(self.refill.per_request);
    }

    pub fn take(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.refilled_at);
        self.refilled_at = now;
        self.add(self.refill.per_second * passed.as_secs_f64());
        let has_token = self.tokens >= 1.0;
        if has_token {
            self.tokens -= 1.0;
        }
        has_token
    }

    fn add(&mut self, tokens: f64) {
        self.tokens = (self.tokens + tokens).min(self.refill.tokens_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Takes all tokens, and counts them.
    fn drain(bucket: &mut TokenBucket, now: Duration) -> usize {
        (0..1_000).take_while(|_| bucket.take(now)).count()
    }

    #[test]
    fn a_bucket_fills_with_requests_up_to_its_bound() {
        let mut bucket = TokenBucket::new(Refill { tokens_max: 10.0, per_request: 0.125, per_second: 0.0 });
        assert_eq!(drain(&mut bucket, S), 10);
        assert_eq!(drain(&mut bucket, 1_000 * S), 0, "time alone does not fill it");
        (0..24).for_each(|_| bucket.request_arrived());
        assert_eq!(drain(&mut bucket, S), 3);
        (0..100_000).for_each(|_| bucket.request_arrived());
        assert_eq!(drain(&mut bucket, S), 10);
    }

    #[test]
    fn a_rate_per_second_fills_with_time() {
        let mut bucket = TokenBucket::new(Refill { tokens_max: 20.0, per_request: 0.0, per_second: 10.0 });
        assert_eq!(drain(&mut bucket, Duration::ZERO), 20);
        assert_eq!(drain(&mut bucket, S / 2), 5);
        assert_eq!(drain(&mut bucket, S / 4), 0, "an earlier `now` removes no tokens");
        assert_eq!(drain(&mut bucket, 3600 * S), 20);
    }
}
