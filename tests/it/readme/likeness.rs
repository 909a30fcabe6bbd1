//! Whether a program printed what a document shows, apart from what differs every time.
//!
//! Both sides are brought into one form: new ids, times, durations, numbers that depend on the process, and the
//! widths of columns are replaced; counts and words stay. In a document, `…` stands for any text, also for several
//! lines.

/// Stands for text that the document leaves out.
const GAP: char = '…';
/// JSON members whose value depends on the moment, or on which node was asked.
const MEMBERS: &[&str] =
    &["seq", "uptime_seconds", "rtt_ms", "last_sync", "origins", "durable_on", "timestamp", "cursor"];
/// The same in a log line; and the strategy, because the tests do not use the default.
const FIELDS: &[&str] = &["messages", "origins", "strategy"];

/// The commands of the document. Ids and timestamps that they contain are the same every time.
pub struct Known(pub String);

impl Known {
    /// Whether all that was printed is as shown.
    pub fn is_like(&self, shown: &str, printed: &str) -> bool {
        let (shown, printed) = (self.plain(shown), self.plain(printed));
        let pieces: Vec<_> = shown.split(GAP).map(str::trim).collect();
        let [first, middle @ .., last] = &pieces[..] else { return shown.trim() == printed.trim() };
        let Some(mut rest) = printed.trim().strip_prefix(first).and_then(|rest| rest.strip_suffix(last))
        else {
            return false;
        };
        middle.iter().all(|piece| {
            let found = rest.split_once(piece);
            rest = found.map_or("", |(_, after)| after);
            found.is_some()
        })
    }

    /// Whether the lines shown were printed in this order, perhaps with other lines between them.
    pub fn has_lines(&self, shown: &str, printed: &str) -> bool {
        let mut printed = printed.lines();
        let shown = shown.lines().filter(|line| line.trim() != GAP.to_string());
        shown.into_iter().all(|shown| printed.any(|printed| self.is_like(shown, printed)))
    }

    /// The text without what differs every time.
    pub fn plain(&self, text: &str) -> String {
        let lines = text.lines().map(|line| status_row(line).unwrap_or_else(|| self.plain_line(line)));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn plain_line(&self, line: &str) -> String {
        let mut line =
            replace(line, 36, is_uuid, |id| if self.0.contains(id) { id.into() } else { "ID".into() });
        line = replace(&line, 64, |text| text.bytes().all(|b| b.is_ascii_hexdigit()), |_| "DIGEST".into());
        line = places(&times(&line));
        for name in MEMBERS {
            line = self.member(&line, &format!("\"{name}\":"));
        }
        line = self.member(&line, "before=ID."); // an entry: its log and its number there
        for name in FIELDS {
            line = self.member(&line, &format!(" {name}="));
        }
        for name in ["date: ", "content-length: ", "chatchain-position: ", "id: "] {
            if line.starts_with(name) {
                line = format!("{name}ANY");
            }
        }
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Replaces the value after this name, unless it is a number that the commands contain.
    fn member(&self, line: &str, name: &str) -> String {
        let mut out = String::new();
        let mut rest = line;
        while let Some(at) = rest.find(name) {
            let (before, after) = rest.split_at(at + name.len());
            let ends = |c: char| if after.starts_with('[') { c == ']' } else { ",} ".contains(c) };
            let end = after.find(ends).unwrap_or(after.len());
            let value = &after[..end];
            let is_known =
                value.len() > 6 && value.bytes().all(|b| b.is_ascii_digit()) && self.0.contains(value);
            out += before;
            out += if is_known { value } else { "ANY" };
            rest = &after[end..];
        }
        out + rest
    }
}

/// Replaces every run of `count` ASCII characters that `fits` and does not follow a letter or a digit.
fn replace(line: &str, count: usize, fits: fn(&str) -> bool, by: impl Fn(&str) -> String) -> String {
    let (mut out, mut rest) = (String::new(), line);
    while let Some(c) = rest.chars().next() {
        let free = !out.chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric());
        let found = rest.get(..count).filter(|part| free && part.is_ascii() && fits(part));
        if let Some(part) = found {
            out += &by(part);
        } else {
            out.push(c);
        }
        rest = &rest[found.map_or(c.len_utf8(), str::len)..];
    }
    out
}

fn is_uuid(text: &str) -> bool {
    text.bytes().enumerate().all(|(at, b)| match at {
        8 | 13 | 18 | 23 => b == b'-',
        _ => b.is_ascii_hexdigit(),
    })
}

/// `2026-11-22T13:39:14Z` and `2026-11-22 13:39:14`, with or without a fraction of the second, as `TIME`.
fn times(line: &str) -> String {
    let shape = |text: &str| {
        let fits = |(a, b): (u8, u8)| match b {
            b'0' => a.is_ascii_digit(),
            b'T' => a == b || a == b' ',
            _ => a == b,
        };
        text.bytes().zip(*b"0000-00-00T00:00:00").all(fits)
    };
    let marked = replace(line, 19, shape, |_| "\u{0}".into());
    let mut parts = marked.split('\u{0}');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
        out += "TIME";
        out += rest.strip_prefix('Z').unwrap_or(rest);
    }
    out
}

/// `ORIGIN.SEQ`, as in links, as `ORIGIN.ANY`.
fn places(line: &str) -> String {
    let mut parts = line.split("=ID.");
    let first = parts.next().unwrap_or_default().to_owned();
    let digits = |c: char| c.is_ascii_digit();
    parts.fold(first, |out, part| out + "=ID.ANY" + part.trim_start_matches(digits))
}

/// A row of `status`: node, state, address, version, messages and behind stay.
fn status_row(line: &str) -> Option<String> {
    let words: Vec<_> = line.split_whitespace().collect();
    let (head, rest) = words.split_at_checked(4)?;
    let is_row = head[0].bytes().all(|b| b.is_ascii_digit()) && ["up", "suspect", "down"].contains(&head[1]);
    let is_uptime = |word: &&str| word.trim_end_matches(['s', 'm', 'h', 'd']) != *word;
    // `1m 3s`, or a dash where the uptime is not known.
    let uptime = rest.iter().take_while(|word| is_uptime(word)).count().max(1);
    let counts = rest.get(uptime..uptime + 2).filter(|_| is_row)?;
    Some([head, counts].concat().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known("--id 0199a0e0-0000-7000-8000-000000000001 1697913600".into())
    }

    #[track_caller]
    fn check(shown: &str, printed: &str, want: bool) {
        let known = known();
        let (plain_shown, plain_printed) = (known.plain(shown), known.plain(printed));
        assert_eq!(known.is_like(shown, printed), want, "{plain_shown:?} {plain_printed:?}");
    }

    #[test]
    fn what_differs_every_time_may_differ() {
        check("01a2037b-7d31-751e-8029-4a786087fdbc\n", "01a2037b-7d4c-7593-9706-442d8c633d8a", true);
        check("2026-11-22T13:39:14Z  a -> b  hi", "2027-01-02T03:04:05Z   a -> b hi\n", true);
        check("2026-11-22 13:39:14  a -> b  hi", "2027-01-02 03:04:05Z  a -> b  hi\n", true);
        check(
            "2026-11-22T13:39:14.1Z  INFO x messages=3",
            "2027-01-02T03:04:05.123456Z  INFO x messages=17",
            true,
        );
        check(r#"{"seq":17,"durable_on":[1,0],"a":1}"#, r#"{"seq":4,"durable_on":[2],"a":1}"#, true);
        check(
            r#"{"last_sync":null,"rtt_ms":null}"#,
            r#"{"last_sync":"2027-01-02T03:04:05Z","rtt_ms":0.4}"#,
            true,
        );
        check(
            "<a=01a2037b-7d31-751e-8029-4a786087fdbc.17>",
            "<a=01a2037b-7d4c-7593-9706-442d8c633d8a.4>",
            true,
        );
        let (one, other) =
            ("0 up a:1 0.1.0 1m 3s 5 0 - -", "0   up  a:1  0.1.0  7s 5 0  2027-01-02T03:04:05Z 1.2 ms");
        check(one, other, true);
    }

    #[test]
    fn words_and_counts_may_not() {
        check("hi", "ho", false);
        check("hi", "hi\nho", false);
        check("hi\nho", "hi", false);
        check("a -> b  hi", "a -> c  hi", false);
        check("0199a0e0-0000-7000-8000-000000000001", "0199a0e0-0000-7000-8000-000000000002", false);
        check(r#"{"timestamp":1697913600}"#, r#"{"timestamp":1697913601}"#, false);
        check(r#"{"duplicate":true}"#, r#"{"duplicate":false}"#, false);
        check("0 up a:1 0.1.0 3s 5 0 - -", "0 up a:1 0.1.0 3s 6 0 - -", false);
        check("0 up a:1 0.1.0 3s 5 0 - -", "0 down a:1 - - - 0 - -", false);
        check("3 of 4 nodes up", "4 of 4 nodes up", false);
        check("", "error: x", false);
    }

    #[test]
    fn a_gap_stands_for_anything() {
        check("a … d", "a b c d", true);
        check("a\n…\nd", "a\nb\nc\nd", true);
        check("…\nd", "a\nd", true);
        check("a …", "a b", true);
        check("a … c … e", "a b c d e", true);
        check("a … c … e", "a b d e", false);
        check("a … d", "a b c", false);
        check("a …", "b a", false);
    }

    #[test]
    fn lines_of_a_server_come_in_order_among_others() {
        let has = |shown| known().has_lines(shown, "one\ntwo\nthree\n");
        assert!(has("one\nthree\n") && has("…\ntwo\n") && has("t…o\n"));
        assert!(!has("three\none\n") && !has("four\n") && !has("wo\n"));
    }
}
