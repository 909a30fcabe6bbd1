//! The command `chatchain guide`: what it prints, and how it says that there is no such topic.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use chatchain::guide::TOPICS;

use super::{text, topic_path};
use crate::support::process::{Finished, chatchain, run};

/// In a directory whose configuration is refused: the guide must be readable there.
fn guide(args: &[&str]) -> Finished {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("config.toml"), "netwrok = 1\n").expect("a file");
    run(command(dir.path(), args), "")
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = chatchain(dir);
    command.arg("guide").args(args);
    command
}

#[test]
fn the_list_has_every_topic_and_says_how_to_go_on() {
    let listed = guide(&[]);
    assert_eq!((listed.code, listed.stderr.as_str()), (Some(0), ""));
    for topic in TOPICS {
        let is_row =
            |line: &str| line.strip_prefix(topic.name).is_some_and(|rest| rest.trim_start() == topic.title());
        assert!(listed.stdout.lines().any(is_row), "{} is not listed in\n{}", topic.name, listed.stdout);
    }
    assert!(listed.stdout.contains("`chatchain guide TOPIC`"), "{}", listed.stdout);
}

#[test]
fn a_topic_is_printed_as_it_is_written() {
    for topic in TOPICS {
        let printed = guide(&[topic.name]);
        assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""), "{}", topic.name);
        assert_eq!(printed.stdout, text(&topic_path(topic.name)));
    }
    assert_eq!(guide(&["HTTP"]).stdout, guide(&["http"]).stdout);
}

#[test]
fn an_unknown_topic_is_wrong_usage_and_the_nearest_is_named() {
    let refused = guide(&["htpp"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""));
    assert!(refused.stderr.contains("no topic \"htpp\"; did you mean `http`?"), "{}", refused.stderr);
    for topic in TOPICS {
        assert!(refused.stderr.contains(topic.name), "{} is not in {}", topic.name, refused.stderr);
    }
    assert_eq!(guide(&["http", "feed"]).code, Some(2));
}

#[test]
fn a_reader_that_ends_early_is_no_failure() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = command(dir.path(), &["http"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut first = [0];
    child.stdout.take().expect("piped").read_exact(&mut first).expect("it prints"); // then the pipe is closed
    assert_eq!((first, child.wait().expect("it ends").code()), (*b"#", Some(0)));
}
