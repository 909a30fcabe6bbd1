//! Do the files of the repository obey its own rules: imports, folders, file heads, sizes, names, sleeps, forbidden
//! words?
//!
//! `rules`, `layout` and `type_names` define what is forbidden and why; the tests here apply them to the real files. To
//! allow an exception, add it to the table of the rule with a reason. Do not rewrite the code to hide it from the rule.

mod layout;
mod rules;
mod source;
mod type_names;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use source::Source;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files that git tracks, relative to the top. Without git, all files except build products and stores.
fn tracked() -> Vec<String> {
    let git = Command::new("git").args(["ls-files", "-z"]).current_dir(top()).output();
    let listed = git.ok().filter(|done| done.status.success()).map(|done| done.stdout).unwrap_or_default();
    let listed: Vec<String> =
        String::from_utf8_lossy(&listed).split_terminator('\0').map(str::to_owned).collect();
    if listed.is_empty() { walk(top()) } else { listed }
}

/// All files below a directory, relative to the top of the repository, with slashes.
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

/// The text of a file. None if the file is not UTF-8, or if it is tracked but deleted.
fn text(path: &str) -> Option<String> {
    std::fs::read_to_string(top().join(path)).ok()
}

#[track_caller]
fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// All Rust files below a directory of the repository.
fn rust_files(dir: &str) -> Vec<Source> {
    // Walked rather than listed by git, so that the rules also apply to files that are not tracked yet.
    let mut files = walk(&top().join(dir));
    files.retain(|path| Path::new(path).extension().is_some_and(|e| e == "rs"));
    let read = |path: &String| text(path).unwrap_or_else(|| panic!("{path} cannot be read"));
    files.iter().map(|path| Source::new(path, &read(path))).collect()
}

#[test]
fn sources_are_tidy() {
    let mut sources = rust_files("src");
    sources.extend(rust_files("tests"));
    let has_lib = sources.iter().any(|source| source.path == "src/lib.rs");
    assert!(sources.len() > 10 && has_lib, "the sources were not found");
    assert_none(&sources.iter().flat_map(rules::source).collect::<Vec<_>>());
}

#[test]
fn every_type_name_is_defined_once() {
    assert_none(&type_names::defined_once(&rust_files("src")));
}

#[test]
fn every_folder_of_the_sources_answers_one_question() {
    assert_none(&layout::folders("src", layout::SOURCES, &walk(&top().join("src"))));
}

#[test]
fn the_rules_name_paths_that_exist() {
    let exists = |path: &String| top().join(path).is_dir() || top().join(format!("{path}.rs")).is_file();
    let gone = rules::named_paths().into_iter().filter(|path| !exists(path));
    assert_none(
        &gone.map(|path| format!("{path}: a rule names it, and it does not exist")).collect::<Vec<_>>(),
    );
}

#[test]
fn the_top_level_is_tidy() {
    let files = tracked();
    let entries: BTreeSet<&str> = files.iter().filter_map(|path| path.split('/').next()).collect();
    assert_none(&rules::top_level(entries));
}

#[test]
fn the_manifest_is_tidy() {
    assert_none(&rules::manifest(&text("Cargo.toml").expect("a manifest")));
}

#[test]
fn tracked_text_is_tidy() {
    let texts = tracked().into_iter().filter_map(|path| text(&path).map(|text| (path, text)));
    let texts: Vec<_> = texts.collect();
    assert!(texts.iter().any(|(path, _)| path == "Cargo.toml"), "the tracked files were not found");
    assert_none(&texts.iter().flat_map(|(path, text)| rules::words(path, text)).collect::<Vec<_>>());
}

#[test]
fn integration_tests_lie_in_the_folder_of_their_area() {
    let mut complaints = layout::folders("tests/it", layout::TESTS, &walk(&top().join("tests/it")));
    let loose = walk(&top().join("tests/it")).into_iter().filter(|path| path.matches('/').count() == 2);
    complaints.extend(
        loose.filter(|path| path != "tests/it/main.rs").map(|path| format!("{path}: is in no folder")),
    );
    assert_none(&complaints);
}

#[test]
fn without_git_the_same_files_are_found() {
    let walked = walk(top());
    let missed: Vec<_> =
        tracked().into_iter().filter(|path| text(path).is_some() && !walked.contains(path)).collect();
    assert_none(&missed);
}
