//! Owns what an entry carries (its kind) and what a log is for (its type).
//!
//! Both are bound by the hash chain: the kind through the leaf of an entry, the type through the first hash of a log.
//! So two nodes with equal hashes agree on them, also where one is of an older program and cannot read an entry.
//!
//! Kinds 1 to 127 must be understood: a reader stops before one that it does not know. Kinds 128 to 255 may be passed
//! over. Kinds 3 to 7 (erasure, account, room, retention policy, floor) are reserved; no program writes them yet.

/// The first kind that a reader may pass over.
const OPTIONAL_FROM: u8 = 128;
/// The kinds that only a control log may have.
const CONTROL_KINDS: std::ops::RangeInclusive<u8> = 3..=7;

/// What an entry carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A message's content.
    Message,
    /// A frontier snapshot: how far its writer was in all logs. It keeps cursors short, see
    /// [`frontier`](super::frontier).
    Snapshot,
    /// A kind that this program does not know. The entry is kept and passed on unchanged.
    Other(u8),
}

impl EntryKind {
    pub fn byte(self) -> u8 {
        match self {
            EntryKind::Message => 1,
            EntryKind::Snapshot => 2,
            EntryKind::Other(byte) => byte,
        }
    }

    /// `None`: no version of this program writes that byte.
    pub fn of(byte: u8) -> Option<Self> {
        match byte {
            0 => None,
            1 => Some(EntryKind::Message),
            2 => Some(EntryKind::Snapshot),
            other => Some(EntryKind::Other(other)),
        }
    }

    /// Whether a reader must stop before an entry of this kind, because only a newer program understands it.
    pub fn needs_newer_program(self) -> bool {
        matches!(self, EntryKind::Other(byte) if byte < OPTIONAL_FROM)
    }

    /// Whether a log of this type may have such an entry. Otherwise a peer could hide a message in a log that no
    /// listing reads.
    pub fn belongs_in(self, log_type: LogType) -> bool {
        match self {
            EntryKind::Message | EntryKind::Snapshot => !log_type.is_control,
            EntryKind::Other(byte) => log_type.is_control || !CONTROL_KINDS.contains(&byte),
        }
    }
}

/// The flags in the first byte of a log type.
const CONTROL: u8 = 1;
const BRANCH: u8 = 2;

/// What a log is for, where its entries come from, and for how long they are kept. Fixed with the first hash of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogType {
    /// Its entries are accounts, rooms and rules instead of messages. Control logs are exchanged before all others.
    pub is_control: bool,
    /// Its entries were moved there when another log was cut. Readers may not have seen what that log had.
    pub is_branch: bool,
    /// How many days entries are kept. 0: without limit.
    pub keep_days: u16,
}

impl LogType {
    /// A log of messages that are kept.
    pub const MESSAGES: LogType = LogType { is_control: false, is_branch: false, keep_days: 0 };
    pub const BYTES: usize = 3;

    /// The type of a branch of such a log.
    #[must_use]
    pub fn of_branch(self) -> Self {
        LogType { is_branch: true, ..self }
    }

    pub fn bytes(self) -> [u8; Self::BYTES] {
        let [high, low] = self.keep_days.to_be_bytes();
        let control = if self.is_control { CONTROL } else { 0 };
        let branch = if self.is_branch { BRANCH } else { 0 };
        [control | branch, high, low]
    }

    /// `None`: no version of this program writes these bytes.
    pub fn of([flags, high, low]: [u8; Self::BYTES]) -> Option<Self> {
        (flags & !(CONTROL | BRANCH) == 0).then_some(LogType {
            is_control: flags & CONTROL != 0,
            is_branch: flags & BRANCH != 0,
            keep_days: u16::from_be_bytes([high, low]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNTS: LogType = LogType { is_control: true, is_branch: false, keep_days: 30 };

    #[test]
    fn kinds_and_types_are_read_back() {
        let kinds: Vec<u8> = (0..=255).filter_map(|byte| Some(EntryKind::of(byte)?.byte())).collect();
        assert_eq!(kinds, (1..=255).collect::<Vec<u8>>());
        assert_eq!(
            [LogType::MESSAGES, ACCOUNTS, ACCOUNTS.of_branch()].map(|of| LogType::of(of.bytes())),
            [Some(LogType::MESSAGES), Some(ACCOUNTS), Some(ACCOUNTS.of_branch())]
        );
        assert_eq!(LogType::of([4, 0, 0]), None);
    }

    #[test]
    fn a_kind_below_128_must_be_understood() {
        let kinds = [1, 2, 3, 9, 127, 128, 255].map(|byte| EntryKind::of(byte).expect("a kind"));
        assert_eq!(kinds.map(EntryKind::needs_newer_program), [false, false, true, true, true, false, false]);
    }

    #[test]
    fn control_logs_have_no_messages_and_other_logs_no_accounts() {
        let kinds = [1, 2, 3, 7, 8, 128].map(|byte| EntryKind::of(byte).expect("a kind"));
        assert_eq!(
            kinds.map(|kind| kind.belongs_in(LogType::MESSAGES)),
            [true, true, false, false, true, true]
        );
        assert_eq!(kinds.map(|kind| kind.belongs_in(ACCOUNTS)), [false, false, true, true, true, true]);
    }
}
