//! Owns reading bytes from front to back. All formats of the chain are read with it; each maps `None` to an error of
//! its own.

/// The bytes that are not read yet. After a `None` the position is undefined: the input is malformed.
pub struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        ByteReader(bytes)
    }

    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `value`, if everything was read.
    pub fn end<T>(&self, value: T) -> Option<T> {
        self.is_empty().then_some(value)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (slice, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(slice)
    }

    /// The next `length` bytes, which must be UTF-8.
    pub fn str(&mut self, length: usize) -> Option<&'a str> {
        std::str::from_utf8(self.slice(length)?).ok()
    }

    /// A number in LEB128: seven bits a byte, the lowest first. `None` also for a longer form than necessary: bytes are
    /// hashed, so a number has one form.
    pub fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return (byte != 0 || shift == 0).then_some(number);
            }
        }
        None
    }
}

pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_are_read_back(number: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, number);
            prop_assert_eq!(ByteReader::new(&out).varint(), Some(number));
        }
    }

    #[test]
    fn a_number_has_one_form() {
        let read = |bytes: &[u8]| ByteReader::new(bytes).varint();
        assert_eq!(
            [read(&[0]), read(&[5]), read(&[0x85, 0]), read(&[0x80, 0x80, 0])],
            [Some(0), Some(5), None, None]
        );
    }
}
