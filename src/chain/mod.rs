//! The pure core: messages, stamps, logs, vectors and the exchange. Values in, values out.
//!
//! Knows nothing of tokio, HTTP, redb, files, the wall clock or randomness: `now` and new names are
//! arguments. That is what makes it possible to test it with a seed.

pub mod bytes;
pub mod clock;
pub mod cursor;
pub mod filter;
pub mod frontier;
pub mod ids;
pub mod logs;
pub mod members;
pub mod message;
pub mod record;
pub mod sync;
pub mod vector;

/// Bytes as frozen fixtures have them.
#[cfg(test)]
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to memory does not fail");
        out
    })
}
