//! The folders of the repository: each answers one question, and a new folder needs a line in the table here.
//!
//! A reader finds code by its folder, so a folder exists for a question and not because a file grew.

/// A folder, and the one question that it answers.
pub type Folder = (&'static str, &'static str);

/// The folders of `src`.
pub const SOURCES: &[Folder] = &[
    ("api", "Which requests, answers and errors does the HTTP contract have?"),
    ("chain", "What are messages, logs, vectors and cursors, as pure values?"),
    ("chain/sync", "What do two nodes say to each other to become equal?"),
    ("client", "How does a program ask servers, one or several?"),
    ("commands", "What does each command do?"),
    ("commands/send", "How are a message, a file and an import sent?"),
    ("config", "Which settings hold for a process, and where do they come from?"),
    ("guide", "What does a user read about each topic?"),
    ("node", "How does a node start, run, recover and stop?"),
    ("node/cluster", "Which peers does a node have, and when does it exchange with them?"),
    ("node/http", "How does a node answer each request?"),
    ("node/tests", "What may a hostile peer not do to a node?"),
    ("node/writer", "How do requests become commits?"),
    ("output", "How is text laid out and printed?"),
    ("proxy", "How does the proxy answer a request by way of a node?"),
    ("proxy/upstreams", "Which node does the proxy ask next?"),
    ("replica", "What does a node decide and commit to its logs?"),
    ("serve", "How does a server accept connections, authenticate and bound requests?"),
    ("store", "What is on disk, and how is it opened?"),
    ("store/engine", "How are database files opened, read and synced?"),
    ("store/history", "How are messages listed and followed in order?"),
    ("store/index", "How is an entry found by id and by user?"),
    ("store/log", "How are entries stored and read?"),
    ("store/recovery", "What is recovered from a damaged store?"),
];

/// The folders of `tests/it`.
pub const TESTS: &[Folder] = &[
    ("api", "Does every HTTP path answer as the contract says?"),
    ("cli", "Does the command line do what operators and scripts expect?"),
    ("cluster", "Do all nodes hold the same messages and know the same members?"),
    ("durability", "Does every acknowledged message survive?"),
    ("feed", "Does a reader of the feed get every message?"),
    ("proxy", "Do sends through the proxy succeed while nodes fail?"),
    ("readme", "Do the commands of the README print what it shows?"),
    ("support", "How does a test start processes and talk to them?"),
    ("tidy", "Do the files of the repository obey its rules?"),
];

/// Complaints about folders below `root` without a line in the table, and about lines without a folder. Files are
/// relative to the top of the repository. A folder that only holds `tests.rs` belongs to the module beside it and needs
/// no line.
pub fn folders(root: &str, table: &[Folder], files: &[String]) -> Vec<String> {
    let below = files.iter().filter_map(|path| path.strip_prefix(root)?.strip_prefix('/'));
    let with_code = below.filter(|path| !path.ends_with("/tests.rs"));
    let mut found: Vec<&str> = with_code
        .flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at]).collect::<Vec<_>>())
        .collect();
    found.sort_unstable();
    found.dedup();
    let extra = found.iter().filter(|folder| !table.iter().any(|(known, _)| known == *folder));
    let gone = table.iter().filter(|(known, _)| !found.contains(known));
    let extra = extra.map(|folder| {
        format!("{root}/{folder}: a new folder needs a line in tests/it/tidy/layout.rs with its question")
    });
    extra
        .chain(gone.map(|(folder, _)| format!("{root}/{folder}: is in the table but holds no file")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(files: &[&str], want: &[&str]) {
        let table: &[Folder] = &[("a", "Why?"), ("a/b", "How?")];
        let files: Vec<_> = files.iter().map(|path| (*path).to_owned()).collect();
        let complaints = folders("src", table, &files);
        let starts = complaints.iter().map(|complaint| complaint.split(": ").next().unwrap_or_default());
        assert_eq!(starts.collect::<Vec<_>>(), want, "{complaints:?}");
    }

    #[test]
    fn folders_and_table_must_agree() {
        check(&["src/a/x.rs", "src/a/b/x.rs", "src/x.rs", "tests/c/x.rs"], &[]);
        check(&["src/a/b/x.rs"], &[]);
        check(&["src/a/x.rs"], &["src/a/b"]);
        check(&["src/a/b/x.rs", "src/c/x.rs"], &["src/c"]);
        check(&["src/a/b/x.rs", "src/a/c/x.md"], &["src/a/c"]);
        check(&["src/a/b/x.rs", "src/a/b/c/x.rs"], &["src/a/b/c"]);
        check(&["src/a/b/x.rs", "src/a/x/tests.rs"], &[]);
        check(&["src/a/b/x.rs", "srcs/c/x.rs"], &[]);
    }

    #[test]
    fn every_folder_answers_a_question() {
        assert!(SOURCES.iter().chain(TESTS).all(|(_, question)| question.ends_with('?')));
    }
}
