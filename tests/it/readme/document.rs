//! A document (the README or a topic of the guide) as a list of steps, in its order.
//!
//! Owns how a block is understood. A block marked `sh` is typed as it stands; the `text` block after it is what it
//! prints. A block that starts a server stays in its terminal; its `text` block must show what the server prints when
//! it runs. `text NAME` is what the server NAME, started earlier, prints in the meantime. "Press Ctrl-C" in the prose
//! stops all servers. A block that does not fit is a complaint, so that no block is skipped in silence.

/// Blocks that are not run: they would run these tests again, from within.
pub const NOT_RUN: &[&str] = &["cargo test"];
/// What a document types before a command of ChatChain.
const PROGRAMS: &[&str] = &["cargo run --release -- ", "chatchain "];
const SERVERS: &[&str] = &["up", "node", "proxy"];
/// Commands that only read, so they can be repeated.
const LOOKS: &[&str] = &["list", "status"];
/// Kinds of blocks that are neither typed nor printed.
const ILLUSTRATIONS: &[&str] = &["ini", "toml"];

/// One thing to do, and the line of the document on which it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub line: usize,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Runs to its end. `looks`: it only reads, so it may be repeated until it shows what it should.
    Run { script: String, shown: String, looks: bool },
    /// A server, which stays in its terminal.
    Serve { command: String, shown: String },
    /// A server that was started earlier prints this.
    Told { server: String, shown: String },
    /// All servers are stopped.
    CtrlC,
    /// Is in [`NOT_RUN`].
    LeftOut { script: String },
}

struct Block {
    line: usize,
    kind: String,
    text: String,
}

enum Part {
    Block(Block),
    CtrlC(usize),
}

/// All steps, or all complaints, each with the number of its line.
pub fn steps(markdown: &str) -> Result<Vec<Step>, Vec<String>> {
    let (mut steps, mut complaints) = (Vec::new(), Vec::new());
    let mut parts = parts(markdown).into_iter().peekable();
    while let Some(part) = parts.next() {
        let Block { line, kind, text } = match part {
            Part::Block(block) => block,
            Part::CtrlC(line) => {
                steps.push(Step { line, action: Action::CtrlC });
                continue;
            }
        };
        let action = match kind.split_once(' ') {
            Some(("text", server)) => Ok(Action::Told { server: server.into(), shown: text }),
            None if kind == "sh" => {
                let shown = parts.next_if(|next| matches!(next, Part::Block(block) if block.kind == "text"));
                let shown =
                    shown.map(|part| if let Part::Block(block) = part { block.text } else { String::new() });
                command(text, shown.unwrap_or_default())
            }
            None if ILLUSTRATIONS.contains(&kind.as_str()) => continue,
            None if kind == "text" => Err("shows what no command before it has printed".into()),
            _ => Err(format!("is of a kind that is not known here: {kind:?}")),
        };
        match action {
            Ok(action) => steps.push(Step { line, action }),
            Err(why) => complaints.push(format!("{line}: the block {why}")),
        }
    }
    if complaints.is_empty() { Ok(steps) } else { Err(complaints) }
}

fn command(script: String, shown: String) -> Result<Action, String> {
    if NOT_RUN.contains(&script.trim()) {
        return Ok(Action::LeftOut { script });
    }
    let servers = script.lines().filter(|line| is_any(line, SERVERS)).count();
    match (servers, script.lines().count()) {
        (0, _) => Ok(Action::Run { looks: only_looks(&script), script, shown }),
        (1, 1) if shown.is_empty() => Err("starts a server and does not show what the server prints".into()),
        (1, 1) => Ok(Action::Serve { command: script.trim().into(), shown }),
        _ => Err("starts a server and does something else, too".into()),
    }
}

/// Whether the line begins with one of these commands of ChatChain.
fn is_any(line: &str, commands: &[&str]) -> bool {
    let rest = PROGRAMS.iter().find_map(|program| line.strip_prefix(program));
    rest.and_then(|rest| rest.split(' ').next()).is_some_and(|word| commands.contains(&word))
}

fn only_looks(script: &str) -> bool {
    let posts = [" -d ", " --data", " -T ", " -X "];
    let gets = |line: &str| line.starts_with("curl ") && !posts.iter().any(|flag| line.contains(flag));
    let joined = script.replace("\\\n", "");
    // With a cursor file, the next `list` goes on where this one ends.
    let lists = |line: &str| is_any(line, LOOKS) && !line.contains("--cursor-file");
    joined.lines().all(|line| lists(line) || gets(line))
}

/// Fenced blocks, and lines of prose that press Ctrl-C.
fn parts(markdown: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut open: Option<Block> = None;
    for (line, number) in markdown.lines().zip(1..) {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => {
                open = Some(Block { line: number, kind: kind.trim().into(), text: String::new() });
            }
            (None, None) if line.contains("Press Ctrl-C") => parts.push(Part::CtrlC(number)),
            (None, None) => {}
            (Some(_), Some("")) => parts.extend(open.take().map(Part::Block)),
            (Some(block), _) => block.text.extend([line, "\n"]),
        }
    }
    parts.extend(open.map(Part::Block)); // never closed: its end is that of the file, as in a browser
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(markdown: &str, want: &[(usize, Action)]) {
        let got = steps(markdown).expect("no complaints");
        assert_eq!(got.into_iter().map(|step| (step.line, step.action)).collect::<Vec<_>>(), want);
    }

    #[track_caller]
    fn refuse(markdown: &str, complaint: &str) {
        let complaints = steps(markdown).expect_err("a complaint");
        assert!(complaints.iter().any(|line| line.contains(complaint)), "{complaints:?} lack {complaint:?}");
    }

    fn run(script: &str, shown: &str, looks: bool) -> Action {
        Action::Run { script: script.into(), shown: shown.into(), looks }
    }

    #[test]
    fn commands_come_with_what_they_print() {
        check("a\n```sh\necho 1\n```\nb\n```text\n1\n```\n", &[(2, run("echo 1\n", "1\n", false))]);
        check("```sh\na\n```\n```sh\nb\n```\n", &[(1, run("a\n", "", false)), (4, run("b\n", "", false))]);
        check("```sh\ncargo test\n```\n", &[(1, Action::LeftOut { script: "cargo test\n".into() })]);
        check("```toml\na = 1\n```\n", &[]);
    }

    #[test]
    fn what_only_looks_is_told_from_what_changes() {
        for script in ["chatchain list\n", "curl -s a/b?c\nchatchain status --check\n", "curl -s \\\n a\n"] {
            check(&format!("```sh\n{script}```\n"), &[(1, run(script, "", true))]);
        }
        for script in [
            "chatchain list\nchatchain send a\n",
            "chatchain list --cursor-file a\n",
            "curl -s a \\\n -d b\n",
            "kill 1\n",
            "curl -X PUT a\n",
        ] {
            check(&format!("```sh\n{script}```\n"), &[(1, run(script, "", false))]);
        }
    }

    #[test]
    fn servers_stay_until_ctrl_c() {
        let text = "```sh\ncargo run --release -- up\n```\n```text\nready\n```\n```text up\nmore\n```\nPress Ctrl-C.";
        let command = "cargo run --release -- up".into();
        check(
            text,
            &[
                (1, Action::Serve { command, shown: "ready\n".into() }),
                (7, Action::Told { server: "up".into(), shown: "more\n".into() }),
                (10, Action::CtrlC),
            ],
        );
    }

    #[test]
    fn what_does_not_fit_is_a_complaint() {
        refuse("```console\n$ a\n```", "1: the block is of a kind that is not known here: \"console\"");
        refuse("```\na\n```", "not known");
        refuse("x\n```text\na\n```", "2: the block shows what no command");
        refuse("```sh\na\n```\n```text\na\n```\n```text\na\n```", "7:");
        refuse("```sh\nchatchain up\n```\n", "does not show what the server");
        refuse(
            "```sh\nchatchain node --node-id 1\nchatchain list\n```\n```text\na\n```",
            "something else, too",
        );
    }
}
