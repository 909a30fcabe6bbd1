//! Mistakes that can be planted on purpose, to see that the tests find them. Never in a program that anybody runs: without
//! the feature `planted-faults` every question here is answered `false` by the compiler.
//!
//! With the feature, the environment variable `CHATCHAIN_FAULT` names the one that is made. `scripts/faults.sh` plants
//! each in turn and fails unless the simulation goes red.

/// A mistake that a program like this one could have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Acknowledge before the commit is on disk.
    EarlyAck,
    /// Go on with a log that was found when the store was opened.
    OldOrigin,
    /// Believe a record without looking at its check.
    SkipCheck,
    /// Advertise heads of entries that are not durable.
    EarlyHead,
    /// Take in an entry although those before it are missing.
    AcceptGap,
    /// Believe what a peer had before its store was opened anew.
    OldHeads,
    /// Let the second of two contents with one id win.
    SecondWins,
    /// Leave a damaged record out of a listing.
    SkipDamage,
    /// Lead a reader of the feed past an entry that cannot be given.
    PastGap,
}

impl Fault {
    /// All of them, by the names that the environment variable has.
    pub const ALL: [(&'static str, Fault); 9] = [
        ("early-ack", Fault::EarlyAck),
        ("old-origin", Fault::OldOrigin),
        ("skip-check", Fault::SkipCheck),
        ("early-head", Fault::EarlyHead),
        ("accept-gap", Fault::AcceptGap),
        ("old-heads", Fault::OldHeads),
        ("second-wins", Fault::SecondWins),
        ("skip-damage", Fault::SkipDamage),
        ("past-gap", Fault::PastGap),
    ];

    /// Whether this mistake is to be made.
    #[cfg(not(feature = "planted-faults"))]
    pub const fn is_planted(self) -> bool {
        false
    }

    /// Whether this mistake is to be made.
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
