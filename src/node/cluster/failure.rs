//! Owns why an exchange with a peer failed, and which failures the log reports.
//!
//! Reported is what a person can mend, once until an exchange works again. A peer that opens its store is none, nor one
//! that was never reached in the first seconds: the nodes of a network seldom start in the same moment.

use std::time::Duration;

use crate::api::address::Addr;
use crate::client::ClientError;

/// For a peer to start as well, from the start of this process on. Waits between exchanges that fail are longer than
/// usual then, so a peer that is missing is reported some seconds later.
const FIRST_CONTACT_MAX: Duration = Duration::from_secs(5);

/// Why an exchange failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeError {
    /// Without the peer's address, which is shown beside it.
    pub why: String,
    /// The peer opens its store.
    is_starting: bool,
}

impl From<String> for ExchangeError {
    fn from(why: String) -> Self {
        ExchangeError { why, is_starting: false }
    }
}

impl From<ClientError> for ExchangeError {
    fn from(error: ClientError) -> Self {
        ExchangeError { why: error.why(), is_starting: error.is_starting() }
    }
}

/// What was reported of the exchanges with one peer.
#[derive(Debug, Default)]
pub struct FailureReports {
    was_reached: bool,
    is_reported: bool,
}

impl FailureReports {
    pub fn worked(&mut self, peer: &Addr) {
        self.was_reached = true;
        if std::mem::take(&mut self.is_reported) {
            tracing::info!(%peer, "exchanges work again");
        }
    }

    /// `uptime`: how long this process has been running.
    pub fn failed(&mut self, peer: &Addr, error: &ExchangeError, uptime: Duration) {
        if self.must_report(error, uptime) {
            tracing::warn!(%peer, why = error.why, "exchanges fail");
        }
    }

    fn must_report(&mut self, error: &ExchangeError, uptime: Duration) -> bool {
        let is_early = !self.was_reached && uptime < FIRST_CONTACT_MAX;
        !is_early && !error.is_starting && !std::mem::replace(&mut self.is_reported, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(is_starting: bool) -> ExchangeError {
        ExchangeError { why: "refused".into(), is_starting }
    }

    #[test]
    fn a_peer_that_is_missing_is_reported_once_but_not_in_the_first_seconds() {
        let mut reports = FailureReports::default();
        let mut reported = |seconds| reports.must_report(&error(false), Duration::from_secs(seconds));
        assert_eq!([0, 4, 5, 6, 60].map(&mut reported), [false, false, true, false, false]);
    }

    #[test]
    fn a_peer_that_was_reached_is_reported_at_once() {
        let mut reports = FailureReports::default();
        reports.worked(&"a:1".parse().expect("an address"));
        assert!(reports.must_report(&error(false), Duration::from_secs(1)));
        reports.worked(&"a:1".parse().expect("an address"));
        assert!(reports.must_report(&error(false), Duration::from_secs(2)), "it worked meanwhile");
    }

    #[test]
    fn a_peer_that_starts_is_not_reported() {
        let mut reports = FailureReports::default();
        assert!(!reports.must_report(&error(true), Duration::from_secs(60)));
        assert!(reports.must_report(&error(false), Duration::from_secs(61)), "it failed otherwise");
    }
}
