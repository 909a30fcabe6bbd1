//! Owns how often a node tries to open a store that the disk does not give, before it gives up what it does not get.
//!
//! A cable or a controller may come to its senses within seconds, and then nothing is lost; a bad sector never does.
//! Counted are openings in a row that failed because of the disk. Whether it is reading that fails, and for good, the
//! store finds out itself when it is told to give up; else it refuses as before, and the counting begins anew.

use crate::store::{OpenError, OpenPolicy};

/// So many openings in a row fail because of the disk, a second apart, before one gives up what it does not get.
const OPENINGS_MAX: u32 = 5;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Patience {
    failed: u32,
}

impl Patience {
    /// An opening failed.
    pub fn note(&mut self, error: &OpenError) {
        self.failed = if error.is_disk_error() { self.failed + 1 } else { 0 };
    }

    /// With how much trust the store is opened next, after at least one opening or reading that failed.
    pub fn next(&mut self) -> OpenPolicy {
        if self.failed < OPENINGS_MAX {
            return OpenPolicy::FullCheck;
        }
        self.failed = 0;
        OpenPolicy::AcceptLoss
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(number: i32) -> OpenError {
        OpenError::Directory { path: "log.redb".into(), source: std::io::Error::from_raw_os_error(number) }
    }

    /// How the store is opened after each of these errors.
    fn tries(errors: &[i32]) -> Vec<OpenPolicy> {
        let mut patience = Patience::default();
        let next = |number: &i32| {
            patience.note(&error(*number));
            patience.next()
        };
        errors.iter().map(next).collect()
    }

    #[test]
    fn what_cannot_be_read_many_times_in_a_row_is_given_up_now_and_then() {
        let (usual, given_up) = (vec![OpenPolicy::FullCheck; 4], OpenPolicy::AcceptLoss);
        let want = [usual.clone(), vec![given_up], usual, vec![given_up]].concat();
        assert_eq!(tries(&[5; 10]), want);
    }

    #[test]
    fn a_full_disk_in_between_begins_the_count_anew() {
        const FULL: i32 = 28;
        assert!(tries(&[FULL; 9]).iter().all(|trust| *trust == OpenPolicy::FullCheck));
        assert!(tries(&[5, 5, 5, 5, FULL, 5, 5, 5, 5]).iter().all(|trust| *trust == OpenPolicy::FullCheck));
    }
}
