//! Owns the ways to open a store. Which one is right after what happened before: `recovery/open_rules`.

/// How a store is opened. Each policy after the first costs time; none deletes a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenPolicy {
    /// Check every page of a file that is small enough to check quickly; trust a larger one.
    #[default]
    Default,
    /// Drop the system's page cache of both files and check every page.
    FullCheck,
    /// As [`OpenPolicy::FullCheck`], but a log file with bad sectors is salvaged without them.
    AcceptLoss,
    /// As [`OpenPolicy::FullCheck`] for the log file; the index is rebuilt without reading the old one.
    RebuildIndex,
    /// Salvage the log file without opening it, and rebuild the index.
    SalvageLog,
}

impl OpenPolicy {
    /// Whether it trusts nothing that was not checked: it reads every page, or no page at all.
    pub(in crate::store) fn is_strict(self) -> bool {
        self != OpenPolicy::Default
    }

    pub(in crate::store) fn rebuilds_index(self) -> bool {
        matches!(self, OpenPolicy::RebuildIndex | OpenPolicy::SalvageLog)
    }
}
