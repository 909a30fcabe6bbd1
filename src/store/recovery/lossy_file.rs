//! Owns reading a file with bad sectors: a block that holds one is read as zeros.
//!
//! Zeros are no record, so a search for records finds all before and after a bad block. Used by salvage and verify.
//! Must not know records.
//!
//! Invariant: nothing is given up that the disk may still read. Every bad block is read once more at the end; if the
//! disk reads one of them now, or if it reads nothing of the file, that is an error, and nothing counts as lost.

use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;

use crate::store::OpenError;
use crate::store::engine::files::{FileBytes, Files, is_bad_sector};

/// Bytes read at a time near a bad block. Disks and file systems lose at least this much at once.
const BLOCK_BYTES: usize = 4096;
/// Bytes read in single blocks after an error, before larger reads are tried again.
const NARROW_BYTES: u64 = 1 << 20;
/// Bad blocks of one file at most: 64 MiB. At the bound, reading the file fails: the whole disk is broken, each
/// further block may take seconds to fail, and an operator must look at it.
const UNREAD_BLOCKS_MAX: usize = 16_384;

/// A file that is read from its beginning to its end, with zeros for bad blocks.
pub(in crate::store) struct LossyFile {
    bytes: Box<dyn FileBytes>,
    len: u64,
    offset: u64,
    /// Up to here single blocks are read.
    narrow_until: u64,
    accept_loss: bool,
    unread: Vec<Range<u64>>,
}

impl LossyFile {
    /// Opens a file. Without `accept_loss`, the first bad block is an error.
    pub(in crate::store) fn new(files: &dyn Files, name: &str, accept_loss: bool) -> io::Result<Self> {
        let bytes = files.open_raw(name)?;
        let len = bytes.len()?;
        Ok(LossyFile { bytes, len, offset: 0, narrow_until: 0, accept_loss, unread: Vec::new() })
    }

    /// The bytes of the bad blocks, after the whole file was read.
    pub(in crate::store) fn unread_bytes(&self) -> io::Result<u64> {
        let mut block = [0; BLOCK_BYTES];
        for part in &self.unread {
            match self.bytes.read_at(part.start, &mut block[..length(part)]) {
                Err(error) if is_bad_sector(&error) => {}
                Err(error) => return Err(error),
                Ok(_) => return Err(io::Error::other("the disk reads now what it could not read before")),
            }
        }
        let unread = self.unread.iter().map(|part| part.end - part.start).sum();
        if unread > 0 && unread == self.len {
            return Err(io::Error::other("the disk gives nothing of it"));
        }
        Ok(unread)
    }

    /// Reads the rest of a block as zeros.
    fn fill_with_zeros(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let end = (self.offset + out.len() as u64).min(self.len);
        if end <= self.offset {
            return Ok(0); // some disks fail at the end of the file, too
        }
        if self.unread.len() == UNREAD_BLOCKS_MAX {
            let bytes = UNREAD_BLOCKS_MAX * BLOCK_BYTES;
            return Err(io::Error::other(format!("the disk cannot read {bytes} bytes of it, and more")));
        }
        let part = self.offset..end;
        let count = length(&part);
        out[..count].fill(0);
        self.unread.push(part);
        self.offset = end;
        Ok(count)
    }
}

impl Read for LossyFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let in_block = usize::try_from(self.offset % BLOCK_BYTES as u64).expect("is below that");
        let is_narrow = self.offset < self.narrow_until;
        let most = if is_narrow { out.len().min(BLOCK_BYTES - in_block) } else { out.len() };
        let out = &mut out[..most];
        match self.bytes.read_at(self.offset, out) {
            Ok(count) => {
                self.offset += count as u64;
                Ok(count)
            }
            Err(error) if !(self.accept_loss && is_bad_sector(&error)) => Err(error),
            Err(_) if is_narrow => self.fill_with_zeros(out),
            Err(_) => {
                self.narrow_until = self.offset + NARROW_BYTES;
                self.read(out)
            }
        }
    }
}

fn length(part: &Range<u64>) -> usize {
    usize::try_from(part.end - part.start).expect("at most a block")
}

/// Whether the disk reads all of a file. Stops at the first bad sector.
pub(in crate::store) fn is_whole(files: &dyn Files, name: &str) -> Result<bool, OpenError> {
    let read = LossyFile::new(files, name, false).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
    match read {
        Ok(_) => Ok(true),
        Err(error) if is_bad_sector(&error) => Ok(false),
        Err(error) => Err(read_error(files.path(name), error)),
    }
}

/// The error of a file that could not be read, as a reason why the store does not open.
pub(in crate::store) fn read_error(path: PathBuf, error: io::Error) -> OpenError {
    // Either an error of the disk, or one made in this file.
    if is_bad_sector(&error) || error.get_ref().is_some() {
        OpenError::BadSectors { path, why: error.to_string() }
    } else {
        OpenError::Io { path, source: error }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// 1, 2, … again and again, but for a range; as often as it says.
    struct FlakyFile {
        len: u64,
        bad: Range<u64>,
        refusals: Rc<Cell<u64>>,
    }

    impl FileBytes for FlakyFile {
        fn len(&self) -> io::Result<u64> {
            Ok(self.len)
        }

        fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
            let end = (offset + out.len() as u64).min(self.len).max(offset);
            let is_bad = self.bad.contains(&offset) || offset < self.bad.end && self.bad.start < end;
            if is_bad && self.refusals.get() > 0 {
                self.refusals.set(self.refusals.get() - 1);
                return Err(io::Error::from_raw_os_error(5));
            }
            for (at, byte) in (offset..end).zip(out) {
                *byte = u8::try_from(at % 255).expect("small") + 1;
            }
            Ok(length(&(offset..end)))
        }
    }

    fn open(len: u64, bad: Range<u64>, refusals: u64) -> LossyFile {
        let bytes = Box::new(FlakyFile { len, bad, refusals: Rc::new(Cell::new(refusals)) });
        LossyFile { bytes, len, offset: 0, narrow_until: 0, accept_loss: true, unread: Vec::new() }
    }

    #[track_caller]
    fn check(len: u64, bad: Range<u64>, zeros: Range<u64>) {
        let (mut file, mut read, mut at) = (open(len, bad, u64::MAX), vec![255; length(&(0..len))], 0);
        while let count @ 1.. = file.read(&mut read[at..]).expect("goes on") {
            at += count;
        }
        let want = (0..len)
            .map(|at| if zeros.contains(&at) { 0 } else { u8::try_from(at % 255 + 1).expect("small") });
        assert!(want.eq(read), "{zeros:?}");
        assert_eq!(file.unread_bytes().expect("for good"), zeros.end - zeros.start);
    }

    #[test]
    fn everything_but_the_bad_blocks_is_read() {
        check(3 << 20, 0..0, 0..0);
        check(3 << 20, 5_000..5_001, 4_096..8_192);
        check(3 << 20, 2_000_000..2_100_000, 1_998_848..2_101_248);
        check(10_000, 9_000..9_001, 8_192..10_000);
        check(10_000, 0..1, 0..4_096);
    }

    #[test]
    fn what_can_be_read_a_moment_later_is_not_given_up() {
        let mut file = open(1 << 20, 5_000..5_001, 2 + 10);
        io::copy(&mut file, &mut io::sink()).expect("goes on");
        for _ in 0..10 {
            assert_eq!(file.unread_bytes().expect("for good so far"), 4_096);
        }
        file.unread_bytes().expect_err("the eleventh time");
    }

    #[test]
    fn a_disk_that_reads_nothing_or_too_little_is_an_error_and_no_loss() {
        let mut file = open(10_000, 0..u64::MAX, u64::MAX);
        io::copy(&mut file, &mut io::sink()).expect("goes on");
        assert!(file.unread_bytes().expect_err("nothing").to_string().contains("nothing"));
        let most = (UNREAD_BLOCKS_MAX * BLOCK_BYTES) as u64;
        let mut file = open(most + (1 << 20), 0..most + 1, u64::MAX);
        let error = io::copy(&mut file, &mut io::sink()).expect_err("too much");
        assert!(error.to_string().contains("67108864 bytes"), "{error}");
    }
}
