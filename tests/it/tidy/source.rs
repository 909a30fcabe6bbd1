//! A source file in the form that the rules check: its code without comments and string contents, line by line.
//!
//! Not a parser. It removes comments and strings so that they cause no false alarm, and expands `use std::{fs, io}` so
//! that it mentions `std::fs`.

/// One file of `src` or `tests`.
pub struct Source {
    /// Relative to the top of the repository, with slashes.
    pub path: String,
    pub text: String,
    /// The code; every `use` is expanded to one line per path.
    pub code: Vec<Line>,
}

/// A line of code.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Counted from 1.
    pub number: usize,
    pub text: String,
    /// Whether the line is in a test module or in a file that holds only tests.
    pub test: bool,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let stripped = strip(text);
        let first_test = tests_from(path, &stripped);
        let mut code = Vec::new();
        let mut lines = stripped.lines().zip(1..);
        while let Some((line, number)) = lines.next() {
            let in_tests = number >= first_test;
            let Some(start) = use_tree(line) else {
                code.push(Line { number, text: line.to_owned(), test: in_tests });
                continue;
            };
            let mut tree = start.to_owned();
            while !tree.contains(';') {
                let Some((more, _)) = lines.next() else { break };
                tree.push_str(more);
            }
            let tree = tree.split(';').next().unwrap_or_default();
            code.extend(flatten(tree).into_iter().map(|text| Line { number, text, test: in_tests }));
        }
        Source { path: path.into(), text: text.into(), code }
    }

    /// The number of lines before the test module, comments and blank lines included.
    pub fn lines_before_tests(&self) -> usize {
        (tests_from(&self.path, &strip(&self.text)) - 1).min(self.text.lines().count())
    }

    /// The top-level module of the file: `node` for all files in `src/node/`.
    pub fn module(&self) -> &str {
        let name = self.path.split('/').nth(1).unwrap_or_default();
        name.strip_suffix(".rs").unwrap_or(name)
    }

    /// Whether the file belongs to this module: `src/node` means `src/node.rs` and all files in `src/node/`.
    pub fn is_within(&self, module: &str) -> bool {
        let rest = self.path.strip_prefix(module);
        rest.is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
    }
}

/// Whether the line contains the token as a whole word: `rand` is not in `random` or `operand`.
pub fn mentions(line: &str, token: &str) -> bool {
    let in_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(token).any(|(at, _)| {
        let (before, after) = (line[..at].chars().next_back(), line[at + token.len()..].chars().next());
        let starts_free = !in_word(token.chars().next()) || !in_word(before);
        let ends_free = !in_word(token.chars().next_back()) || !in_word(after);
        starts_free && ends_free
    })
}

/// The line on which the tests begin, counted from 1; one past the last line if there are none.
fn tests_from(path: &str, stripped: &str) -> usize {
    let only_tests = path.starts_with("tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("/fake.rs")
        || path.contains("/tests/");
    if only_tests {
        return 1;
    }
    let lines: Vec<_> = stripped.lines().map(str::trim).collect();
    let begins = |at: usize| {
        let module = lines[at..].iter().find(|line| !line.is_empty() && !line.starts_with("#["));
        lines[at] == "#[cfg(test)]" && module.is_some_and(|l| l.starts_with("mod ") && l.ends_with('{'))
    };
    (0..lines.len()).find(|at| begins(*at)).unwrap_or(lines.len()) + 1
}

/// The rest of a line that begins with `use`, `pub use`, `pub(crate) use` and the like.
fn use_tree(line: &str) -> Option<&str> {
    let mut line = line.trim_start();
    if let Some(public) = line.strip_prefix("pub") {
        line = match public.strip_prefix('(') {
            Some(scope) => scope.split_once(')')?.1.trim_start(),
            None => public.trim_start(),
        };
    }
    line.strip_prefix("use ")
}

/// `a::{b, c::{self, d as e}}` as `a::b`, `a::c`, `a::c::d as e`.
fn flatten(tree: &str) -> Vec<String> {
    let Some((prefix, rest)) = tree.split_once('{') else {
        return vec![tree.trim().trim_end_matches("::self").to_owned()];
    };
    let inside = rest.rsplit_once('}').map_or(rest, |(inside, _)| inside);
    let mut items = vec![String::new()];
    let mut depth = 0;
    for c in inside.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        match (c, depth, items.last_mut()) {
            (',', 0, _) => items.push(String::new()),
            (_, _, Some(item)) => item.push(c),
            _ => {}
        }
    }
    let items = items.iter().map(|item| item.trim()).filter(|item| !item.is_empty());
    items.flat_map(|item| flatten(&format!("{}{item}", prefix.trim()))).collect()
}

/// The text without comments and without the contents of strings and characters. Keeps the line ends.
fn strip(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word_before = code.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        let skipped = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest, '"'),
            '\'' if rest[1..].starts_with('\\') || rest[1..].chars().nth(1) == Some('\'') => {
                quoted(rest, '\'')
            }
            'r' | 'b' | 'c' if !word_before => raw_string(rest),
            _ => 0,
        };
        if skipped == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            let (gone, more) = rest.split_at(skipped);
            code.push(' ');
            code.extend(gone.chars().filter(|c| *c == '\n'));
            rest = more;
        }
    }
    code
}

/// The length of a block comment, which may contain nested ones.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        at += if rest.starts_with("/*") {
            depth += 1;
            2
        } else if rest.starts_with("*/") {
            depth -= 1;
            2
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a string or character literal with its quotes.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a raw string such as `r"…"` or `br#"…"#`; 0 if none begins here.
fn raw_string(text: &str) -> usize {
    let Some(body) = text.trim_start_matches(['b', 'c']).strip_prefix('r') else { return 0 };
    let hashes = body.len() - body.trim_start_matches('#').len();
    if !body[hashes..].starts_with('"') {
        return 0;
    }
    let head = text.len() - body.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    text[head..].find(&end).map_or(text.len(), |at| head + at + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        let words = |s: &str| s.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&strip(text)), words(want), "{text}");
        assert_eq!(strip(text).matches('\n').count(), text.matches('\n').count(), "{text}");
    }

    #[test]
    fn comments_and_strings_are_removed() {
        check("a // b\nc", "a\nc");
        check("a /* b /* c\n */ d */ e", "a e");
        check("/// doc\nf(\"tokio // \\\" x\", y)", "f( , y)");
        check("let c = '\"'; let d = '\\''; x(\"q\")", "let c = ; let d = ; x( )");
        check("fn f<'a>(x: &'a str) -> &'static str", "fn f<'a>(x: &'a str) -> &'static str");
        check("r\"a\\\" + br#\"b\"c\"# + r + bar", "+ + r + bar");
        check("'é' + b'x' + b\"x\" + \"a\nb\"", "+ b + b +");
    }

    #[test]
    fn a_use_mentions_every_path_in_it() {
        let source =
            Source::new("src/a.rs", "use std::{\n    fs,\n    io::{self, Read as R},\n};\npub use b::c;\n");
        let lines: Vec<_> = source.code.iter().map(|l| (l.number, l.text.as_str())).collect();
        assert_eq!(lines, [(1, "std::fs"), (1, "std::io"), (1, "std::io::Read as R"), (5, "b::c")]);
    }

    #[test]
    fn tests_are_recognized() {
        let before = |path, text| Source::new(path, text).lines_before_tests();
        assert_eq!(before("src/a.rs", "a\nb\n#[cfg(test)]\n#[rustfmt::skip]\nmod tests {\n}\n"), 2);
        assert_eq!(before("src/a.rs", "a\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\nuse b;\n"), 5);
        assert_eq!(before("src/a/tests.rs", "a\nb\n"), 0);
        assert_eq!(before("tests/it/main.rs", "a\nb\n"), 0);
    }

    #[test]
    fn only_whole_words_are_found() {
        assert!(mentions("x = rand();", "rand"));
        assert!(!mentions("operand random rand_x", "rand"));
        assert!(mentions("operand + rand", "rand"));
        assert!(mentions("crate::store::Store", "crate::store"));
        assert!(!mentions("crate::stores", "crate::store"));
        assert!(mentions("io::stdout().lock()", "stdout()"));
        assert!(!mentions("eprint!(x)", "print!"));
    }
}
