//! Reads the repository and fails when it is not as the house wants it: layers, heads, sleeps, sizes, words.
//!
//! The rules stand in `rules`, with what each forbids and why; here they meet the real files. To license an exception,
//! change the table there, with a reason, rather than the code so that the rule no longer sees it.

mod rules;
mod source;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use source::Source;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What git tracks, from the top; where git does not know this directory, all files but what is built or stored.
fn tracked() -> Vec<String> {
    let git = Command::new("git").args(["ls-files", "-z"]).current_dir(top()).output();
    let listed = git.ok().filter(|done| done.status.success()).map(|done| done.stdout).unwrap_or_default();
    let listed: Vec<String> =
        String::from_utf8_lossy(&listed).split_terminator('\0').map(str::to_owned).collect();
    if listed.is_empty() { walk(top()) } else { listed }
}

/// All files below a directory, from the top of the repository, with slashes.
fn walk(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path: PathBuf = entry.expect("readable").path();
        let name = path.strip_prefix(top()).expect("below the top").to_string_lossy().replace('\\', "/");
        match name.as_str() {
            ".git" | "target" | "data" => {}
            _ if path.is_dir() => found.extend(walk(&path)),
            _ => found.push(name),
        }
    }
    found
}

/// The text of a file; None if it is not text, or deleted and still listed.
fn text(path: &str) -> Option<String> {
    std::fs::read_to_string(top().join(path)).ok()
}

#[track_caller]
fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn sources_are_tidy() {
    // Walked, not listed: a new file obeys before it is tracked.
    let mut files = walk(&top().join("src"));
    files.extend(walk(&top().join("tests")));
    files.retain(|path| Path::new(path).extension().is_some_and(|e| e == "rs"));
    assert!(files.len() > 10 && files.contains(&"src/lib.rs".into()), "these are not the sources: {files:?}");
    let complaints = files.iter().flat_map(|path| {
        let text = text(path).unwrap_or_else(|| panic!("{path} cannot be read"));
        rules::source(&Source::new(path, &text))
    });
    none(&complaints.collect::<Vec<_>>());
}

#[test]
fn the_top_level_is_tidy() {
    let files = tracked();
    let entries: BTreeSet<&str> = files.iter().filter_map(|path| path.split('/').next()).collect();
    none(&rules::top_level(entries));
}

#[test]
fn the_manifest_is_tidy() {
    none(&rules::manifest(&text("Cargo.toml").expect("a manifest")));
}

#[test]
fn tracked_text_is_tidy() {
    let texts = tracked().into_iter().filter_map(|path| text(&path).map(|text| (path, text)));
    let texts: Vec<_> = texts.collect();
    assert!(texts.iter().any(|(path, _)| path == "Cargo.toml"), "these are not the tracked files");
    none(&texts.iter().flat_map(|(path, text)| rules::words(path, text)).collect::<Vec<_>>());
}

#[test]
fn without_git_the_same_files_are_found() {
    let walked = walk(top());
    let missed: Vec<_> =
        tracked().into_iter().filter(|path| text(path).is_some() && !walked.contains(path)).collect();
    none(&missed);
}
