//! Links of the README and the guide, which GitHub, `cargo doc` and a terminal show: each leads somewhere in all
//! three.
//!
//! The README links files. The guide links its topics and nothing else, as `[feed]`, with a definition at the end of
//! the file; `topic_links.md` gives the same names their place in the documentation of the code.

use std::collections::BTreeSet;
use std::path::Path;

use chatchain::guide::TOPICS;

use super::{README, documents, text, top, topic_path};

/// The lines of a document that are prose: without code blocks, and without what stands in backticks.
fn prose(markdown: &str) -> String {
    let mut is_code = false;
    let mut out = String::new();
    for line in markdown.lines() {
        let is_fence = line.starts_with("```");
        is_code ^= is_fence;
        if !is_code && !is_fence {
            out.extend(line.split('`').step_by(2).chain(["\n"]));
        }
    }
    out
}

/// The targets of `[text](target)`.
fn targets(prose: &str) -> impl Iterator<Item = &str> {
    prose.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// `[name]: target` at the end of a document.
fn definitions(markdown: &str) -> Vec<(&str, &str)> {
    let lines = markdown.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
    lines.collect()
}

/// The names in `[name]`, definitions and links with a target of their own excepted.
fn names(prose: &str) -> BTreeSet<&str> {
    let pieces = prose.split('[').skip(1).filter_map(|rest| rest.split_once(']'));
    pieces.filter(|(_, after)| !after.starts_with(['(', ':'])).map(|(name, _)| name).collect()
}

#[test]
fn links_to_files_lead_somewhere() {
    let mut checked = 0;
    for path in documents() {
        let folder = top().join(&path).parent().expect("a file in a folder").to_owned();
        let prose = prose(&text(&path));
        for target in targets(&prose).filter(|target| !target.starts_with("https://")) {
            assert!(folder.join(target).exists(), "{path}: {target} is not there");
            assert_eq!(path, README, "{path}: {target}: a topic links topics only, as [feed]");
            checked += 1;
        }
    }
    assert!(checked > TOPICS.len(), "the README links every topic and more: {checked}");
}

#[test]
fn links_between_topics_are_defined_and_used() {
    for path in documents().iter().filter(|path| *path != README) {
        let text = text(path);
        let prose = prose(&text);
        let defined = definitions(&text);
        for (name, target) in &defined {
            assert_eq!(*target, format!("{name}.md"), "{path}: [{name}]");
            assert!(TOPICS.iter().any(|topic| topic.name == *name), "{path}: [{name}] is no topic");
        }
        let defined: BTreeSet<_> = defined.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names(&prose), defined, "{path}: used on the left, defined on the right");
    }
}

#[test]
fn the_documentation_of_the_code_leads_the_same_links_to_its_modules() {
    let want: Vec<_> =
        TOPICS.iter().map(|topic| (topic.name.to_owned(), format!("crate::guide::{}", topic.name))).collect();
    let links = text("src/guide/topic_links.md");
    let got: Vec<_> = definitions(&links).into_iter().map(|(name, to)| (name.into(), to.into())).collect();
    assert_eq!(want, got);
}

#[test]
fn the_list_of_topics_has_all_and_the_readme_links_all() {
    let list = text(&topic_path("README"));
    let rows = list.lines().filter(|line| line.starts_with("| ["));
    let want: Vec<_> =
        TOPICS.iter().map(|topic| format!("| [{}] | {} |", topic.name, topic.title())).collect();
    assert_eq!(rows.collect::<Vec<_>>(), want);
    let readme = text(README);
    for path in TOPICS.iter().map(|topic| topic_path(topic.name)) {
        assert!(readme.contains(&format!("({path})")), "README.md does not link {path}");
    }
}

#[test]
fn every_file_of_the_guide_is_a_topic() {
    let files = std::fs::read_dir(top().join("src/guide")).expect("a folder");
    for name in files.map(|file| file.expect("a file").file_name()) {
        let path = Path::new(&name);
        let stem = path.file_stem().expect("a name").to_string_lossy();
        let is_topic = TOPICS.iter().any(|topic| topic.name == stem);
        assert!(is_topic || ["README", "topic_links", "mod"].contains(&&*stem), "{}", path.display());
    }
}

#[test]
fn files_that_are_named_exist() {
    let mut checked = 0;
    for document in documents() {
        for path in text(&document).split('`').skip(1).step_by(2).filter(|code| is_path(code)) {
            assert!(top().join(path).exists(), "{document}: {path} is not there");
            checked += 1;
        }
    }
    assert!(checked > 10, "these are not all files: {checked}");
}

/// Whether inline code names a file of the repository.
fn is_path(code: &str) -> bool {
    ["src/", "tests/", "scripts/", ".ci/"].iter().any(|dir| code.starts_with(dir)) && !code.contains(' ')
}

#[test]
fn links_are_found_in_prose_and_not_in_code() {
    let text = "see [feed] and [the file](a/b.md), `[no]` and\n```sh\n[no]\n```\n\n[feed]: feed.md\n";
    let prose = prose(text);
    assert_eq!(names(&prose), BTreeSet::from(["feed"]));
    assert_eq!(targets(&prose).collect::<Vec<_>>(), ["a/b.md"]);
    assert_eq!(definitions(text), [("feed", "feed.md")]);
}
