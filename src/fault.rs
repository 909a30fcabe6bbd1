//! Owns the faults that tests plant, to see that the simulation finds them. Without the feature `planted-faults`, the
//! compiler answers `false` to every question here, so no released program has them.
//!
//! With the feature, the environment variable `CHATCHAIN_FAULT` names the planted fault. `scripts/faults.sh` plants
//! each in turn and fails unless the simulation fails.

/// A mistake that a program of this kind could have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Acknowledge before the commit is on disk.
    EarlyAck,
    /// Append to a log that was in the store when it was opened.
    OldOrigin,
    /// Accept a record without verifying its check.
    SkipCheck,
    /// Advertise heads of entries that are not durable.
    EarlyHead,
    /// Admit an entry although entries before it are missing.
    AcceptGap,
    /// Rely on what a peer had in an earlier incarnation.
    OldHeads,
    /// Accept a second content for one id.
    SecondWins,
    /// Omit a damaged record from a listing.
    SkipDamage,
    /// Move a feed reader's cursor past an entry that it was not sent.
    PastGap,
    /// Cut a log at a damaged entry although a member that is away may have it.
    GiveUpEarly,
    /// Admit a run whose entries do not lead to the hash that closes it.
    SkipChain,
}

impl Fault {
    /// All faults, by their names in the environment variable.
    pub const ALL: [(&'static str, Fault); 11] = [
        ("early-ack", Fault::EarlyAck),
        ("old-origin", Fault::OldOrigin),
        ("skip-check", Fault::SkipCheck),
        ("early-head", Fault::EarlyHead),
        ("accept-gap", Fault::AcceptGap),
        ("old-heads", Fault::OldHeads),
        ("second-wins", Fault::SecondWins),
        ("skip-damage", Fault::SkipDamage),
        ("past-gap", Fault::PastGap),
        ("give-up-early", Fault::GiveUpEarly),
        ("skip-chain", Fault::SkipChain),
    ];

    /// Whether this fault is planted.
    #[cfg(not(feature = "planted-faults"))]
    pub const fn is_planted(self) -> bool {
        false
    }

    #[cfg(feature = "planted-faults")]
    pub fn is_planted(self) -> bool {
        static PLANTED: std::sync::OnceLock<Option<Fault>> = std::sync::OnceLock::new();
        let of_environment = || {
            let wanted = std::env::var("CHATCHAIN_FAULT").ok()?;
            let found = Fault::ALL.into_iter().find(|(name, _)| *name == wanted);
            Some(found.unwrap_or_else(|| panic!("no fault is called {wanted}")).1)
        };
        *PLANTED.get_or_init(of_environment) == Some(self)
    }
}
