//! Owns the ways to open a store.

/// How much a store is trusted when it is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenPolicy {
    /// The last process to have it open left it well, or was killed, or lost its power. Every page is checked unless that
    /// would take long.
    #[default]
    Default,
    /// The same, and no page is checked before it is needed, which may be too late.
    Blind,
    /// A write or an fsync failed, or too many processes in a row ended badly: nothing that the system still keeps of it in
    /// memory is believed, and every page is checked.
    FullCheck,
    /// The same, and so many openings before failed because of the disk that what it does not give now is given up: a log
    /// that cannot be read counts as a damaged one.
    AcceptLoss,
    /// As [`Trust::Suspect`], but whoever checked that did not come to the end of it, and it was not for the log: the index
    /// is built anew without a look at it.
    RebuildIndex,
    /// Whoever opens the log ends with it: it counts as a damaged one without being opened, and the index is built anew.
    SalvageLog,
}

impl OpenPolicy {
    /// Whether every page is checked, at the least.
    pub(in crate::store) fn is_doubt(self) -> bool {
        !matches!(self, OpenPolicy::Default | OpenPolicy::Blind)
    }
}
