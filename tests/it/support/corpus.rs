//! The real messages that the largest test imports: 303,895 lines of a public chat, in the format of `send --file`.
//!
//! The file is not part of the repository. It is in a directory beside the clone, or at the path in CHATCHAIN_CORPUS.
//! If it is missing, a test that needs it fails on CI (CI=true) and is skipped with a message elsewhere.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// How many messages the corpus holds, each on a line of its own.
pub const MESSAGES: u64 = 303_895;

/// The messages, one JSON object per line. None, with a message on standard error, if the file is missing.
#[track_caller]
pub fn corpus() -> Option<Vec<u8>> {
    let on_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    // Not eprintln: the test runner hides its output when the test passes.
    or_skipped(read(&corpus_path(std::env::var_os("CHATCHAIN_CORPUS"))), on_ci, std::io::stderr())
}

fn corpus_path(configured: Option<OsString>) -> PathBuf {
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
            writeln!(out, "skipped: {why}").expect("standard error is open");
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
        let path = corpus_path(Some(dir.path().join("two.ndjson.gz").into()));
        let file = std::fs::File::create(&path).expect("writable");
        let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gzip.write_all(b"{}\n{}\n").expect("writable");
        gzip.finish().expect("writable");
        assert_eq!(read(&path), Ok(b"{}\n{}\n".to_vec()));
    }

    #[test]
    fn a_missing_corpus_skips_a_test_outside_ci() {
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
