//! The real messages that the biggest tests import: 303,895 lines of a public chat, as `send --file` takes them.
//!
//! They are not part of the repository. They stand beside the clone, or where CHATCHAIN_CORPUS says. On CI
//! (CI=true) a test that needs them fails without them; elsewhere it says that it is skipped.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// How many messages the corpus holds, each on a line of its own.
pub const MESSAGES: u64 = 303_895;

/// The messages, one JSON object per line; None where they are missing, which is then said.
#[track_caller]
pub fn corpus() -> Option<Vec<u8>> {
    let on_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    // Not eprintln: the test runner would hide that from whoever runs a test that then passes.
    or_skipped(read(&place(std::env::var_os("CHATCHAIN_CORPUS"))), on_ci, std::io::stderr())
}

fn place(configured: Option<OsString>) -> PathBuf {
    match configured {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/irc-zig.ndjson.gz"),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let missing = |e| format!("{}: {e}; set CHATCHAIN_CORPUS to the real messages", path.display());
    let file = std::fs::File::open(path).map_err(missing)?;
    let mut lines = Vec::new();
    flate2::read::MultiGzDecoder::new(file).read_to_end(&mut lines).map_err(missing)?;
    Ok(lines)
}

#[track_caller]
fn or_skipped(read: Result<Vec<u8>, String>, required: bool, mut out: impl Write) -> Option<Vec<u8>> {
    match read {
        Ok(lines) => Some(lines),
        Err(why) if required => panic!("{why}"),
        Err(why) => {
            writeln!(out, "skipped: {why}").expect("somebody reads it");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_is_decompressed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = place(Some(dir.path().join("two.ndjson.gz").into()));
        let file = std::fs::File::create(&path).expect("writable");
        let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gzip.write_all(b"{}\n{}\n").expect("writable");
        gzip.finish().expect("writable");
        assert_eq!(read(&path), Ok(b"{}\n{}\n".to_vec()));
    }

    #[test]
    fn a_missing_corpus_skips_a_test_at_home() {
        let mut said = Vec::new();
        assert_eq!(or_skipped(read(Path::new("/nowhere/irc.gz")), false, &mut said), None);
        assert!(said.starts_with(b"skipped: /nowhere/irc.gz: No such file"));
    }

    #[test]
    #[should_panic(expected = "/nowhere/irc.gz: No such file")]
    fn a_missing_corpus_fails_a_test_on_ci() {
        or_skipped(read(Path::new("/nowhere/irc.gz")), true, Vec::new());
    }

    #[test]
    fn the_corpus_holds_what_the_tests_count_on() {
        if let Some(lines) = corpus() {
            assert_eq!(lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()).count() as u64, MESSAGES);
        }
    }
}
