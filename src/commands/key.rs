//! `chatchain key`: a new key, from the system's randomness.

use std::fmt::Write as _;

use color_eyre::eyre::{Result, WrapErr};
use rustix::rand::{GetRandomFlags, getrandom};

use super::Exit;
use crate::{cli::OutputFormat, output::Output};

/// 256 bits: nobody tries them all.
const KEY_BYTES: usize = 32;

pub fn run(output: &Output) -> Result<Exit> {
    let mut random = [0; KEY_BYTES];
    // Of so few bytes the system never gives a part (getrandom(2)).
    getrandom(&mut random, GetRandomFlags::empty()).wrap_err("the system gives no random numbers")?;
    let mut key = String::new();
    for byte in random {
        write!(key, "{byte:02x}").expect("a string takes everything");
    }
    match output.format() {
        OutputFormat::Table => output.line(&key)?,
        OutputFormat::Json | OutputFormat::Ndjson => output.json(&serde_json::json!({ "key": key }))?,
    }
    Ok(Exit::Done)
}
