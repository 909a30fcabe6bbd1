//! `chatchain key`: a new key, from the system's randomness.

use std::fmt::Write as _;

use color_eyre::eyre::{Result, WrapErr};
use rustix::rand::{GetRandomFlags, getrandom};

use super::Exit;
use crate::output::Output;

/// 256 bits: too many keys to try them all.
const KEY_BYTES: usize = 32;

pub fn run(output: &Output) -> Result<Exit> {
    let mut random = [0; KEY_BYTES];
    // A request for up to 256 bytes is always answered in full (getrandom(2)).
    getrandom(&mut random, GetRandomFlags::empty()).wrap_err("the system gives no random numbers")?;
    let mut key = String::new();
    for byte in random {
        write!(key, "{byte:02x}").expect("writing to memory does not fail");
    }
    output.answer(&key, &serde_json::json!({ "key": key }))?;
    Ok(Exit::Done)
}
