//! The pure core: messages, stamps, logs, vectors and the exchange. Values in, values out.
//!
//! Knows nothing of tokio, HTTP, redb, files, the wall clock or randomness: the time and new ids are arguments. So a
//! test can run it from a seed.

pub mod bytes;
pub mod clock;
pub mod cursor;
pub mod filter;
pub mod frontier;
pub mod ids;
pub mod kind;
pub mod logs;
pub mod members;
pub mod message;
pub mod record;
pub mod sync;
pub mod vector;

/// Bytes as hex, for frozen fixtures.
#[cfg(test)]
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to memory does not fail");
        out
    })
}
