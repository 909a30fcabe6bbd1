//! Owns the splitting of a received body into lines. Must not know what a line means.

use bytes::{Bytes, BytesMut};

/// Received bytes, until they are taken line by line.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: BytesMut,
    /// Bytes at the start that hold no line end.
    searched: usize,
}

impl LineBuffer {
    pub fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
    }

    /// Takes the next complete line, without its end.
    pub fn next_line(&mut self) -> Option<Bytes> {
        let Some(end) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.bytes.len();
            return None;
        };
        let mut line = self.bytes.split_to(self.searched + end + 1);
        line.truncate(line.len() - 1);
        self.searched = 0;
        Some(line.freeze())
    }

    /// Bytes that are not taken yet.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether all bytes are taken.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}
