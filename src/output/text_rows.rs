//! Lays out rows of a time, names and a text, such as messages.
//!
//! A text of several lines, or one that is wider than the terminal, continues below its first line. A long name moves
//! the text of its own row only. Must not know what the rows are.

use textwrap::WordSeparator;
use textwrap::core::{Word, display_width};
use textwrap::wrap_algorithms::wrap_first_fit;

use super::{COLUMN_GAP, escape};

/// Rows with wider names do not widen the column of names.
const NAMES_WIDTH_MAX: usize = 24;
/// If fewer columns are left for the text, it begins on a line of its own.
const TEXT_WIDTH_MIN: usize = 30;
/// Such a text is indented by this.
const TEXT_INDENT: usize = 4;
/// Further lines of a text are counted instead of printed. A text can be nothing but line ends.
const LINES_MAX: usize = 200;

/// One row. Its text may have several lines.
#[derive(Debug, Clone)]
pub struct TextRow<'a> {
    pub time: String,
    pub names: String,
    pub text: &'a str,
}

/// The layout of rows that are printed together or one by one.
#[derive(Debug, Default)]
pub struct TextRows {
    names_width: usize,
}

impl TextRows {
    /// Makes the column of names wide enough for these rows, up to a bound.
    pub fn fit(&mut self, rows: &[TextRow<'_>]) {
        let widths = rows.iter().map(|row| display_width(&escape(&row.names)));
        let widest = widths.filter(|width| *width <= NAMES_WIDTH_MAX).max().unwrap_or(0);
        self.names_width = self.names_width.max(widest);
    }

    /// The lines of a row, each with its line end. `terminal`: its columns; `None`: the output is a file or a pipe, and
    /// no line is wrapped.
    pub fn lines(&self, TextRow { time, names, text }: &TextRow<'_>, terminal: Option<usize>) -> String {
        let (gap, names) = (usize::from(COLUMN_GAP), escape(names));
        let text_column = display_width(time) + gap + self.names_width + gap;
        let width_left = terminal.map(|columns| columns.saturating_sub(text_column));
        let is_narrow = width_left.is_some_and(|width| width < TEXT_WIDTH_MIN);
        let indent = if is_narrow { TEXT_INDENT } else { text_column };
        let padding = self.names_width.checked_sub(display_width(&names));
        // In a file, a message of one line stays one line, so that it is found together with its sender.
        let is_beside = terminal.is_none() || (padding.is_some() && !is_narrow);
        let mut out = format!("{time}{:gap$}{names}", "");
        let width = terminal.map(|columns| columns.saturating_sub(indent).max(TEXT_INDENT));
        let mut lines = text.lines().flat_map(|line| wrapped(line, width));
        for (number, line) in lines.by_ref().take(LINES_MAX).enumerate() {
            if number == 0 && is_beside {
                out += &" ".repeat(padding.unwrap_or(0) + gap);
            } else {
                out.truncate(out.trim_end_matches(' ').len());
                out += "\n";
                out += &" ".repeat(indent);
            }
            out += &line;
        }
        match lines.count() {
            0 => {}
            more => {
                out.push('\n');
                out += &" ".repeat(indent);
                out += &["… ", &more.to_string(), " more lines (-o json prints them)"].concat();
            }
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }
}

/// One line of a text, escaped and broken at words. A longer word is broken, too: what the terminal breaks by itself
/// begins in the first column, as a row does. An address is not broken, so that it can be copied.
fn wrapped(line: &str, width: Option<usize>) -> Vec<String> {
    let line = escape(line);
    let Some(width) = width else { return vec![line.into_owned()] };
    let is_address = |word: &Word<'_>| word.contains("://") && word.bytes().all(|b| b.is_ascii_graphic());
    let words = WordSeparator::AsciiSpace.find_words(&line);
    let words: Vec<_> = words
        .flat_map(|word| if is_address(&word) { vec![word] } else { word.break_apart(width).collect() })
        .collect();
    let columns = f64::from(u16::try_from(width).unwrap_or(u16::MAX));
    let pieces = |word: &Word<'_>| [word.word, word.whitespace].concat();
    wrap_first_fit(&words, &[columns]).into_iter().map(|words| words.iter().map(pieces).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<'a>(names: &str, text: &'a str) -> TextRow<'a> {
        TextRow { time: "12:00".into(), names: names.into(), text }
    }

    #[track_caller]
    fn check(terminal: Option<usize>, rows: &[TextRow<'_>], want: &[&str]) {
        let mut layout = TextRows::default();
        layout.fit(rows);
        let printed: String = rows.iter().map(|row| layout.lines(row, terminal)).collect();
        assert_eq!(printed.lines().collect::<Vec<_>>(), want);
    }

    #[test]
    fn texts_begin_in_one_column_and_go_on_below_their_first_line() {
        let rows =
            [row("ana -> #ops", "one"), row("日本 -> b", "two\nthree\r\n\u{1b}[2J"), row("x -> y", "")];
        let want = [
            "12:00  ana -> #ops  one",
            "12:00  日本 -> b    two",
            "                    three",
            "                    \\u{1b}[2J",
            "12:00  x -> y",
        ];
        check(None, &rows, &want);
        check(Some(80), &rows, &want);
    }

    #[test]
    fn one_long_name_moves_the_text_of_its_own_row_only() {
        let long = "a".repeat(40);
        let rows = [row("ana -> #ops", "one"), row(&format!("{long} -> b"), "two\nthree")];
        let (head, below) = (format!("12:00  {long} -> b"), "                    ");
        check(None, &rows, &["12:00  ana -> #ops  one", &format!("{head}  two"), &format!("{below}three")]);
        let on_its_own = ["12:00  ana -> #ops  one", &head, &format!("{below}two"), &format!("{below}three")];
        check(Some(80), &rows, &on_its_own);
    }

    #[test]
    fn a_long_text_is_broken_at_words_and_an_address_is_not() {
        let words = "word ".repeat(12);
        let rows =
            [row("a -> b", words.trim_end()), row("a -> b", "see https://example.org/a/very/long/path")];
        let indent = " ".repeat(15);
        check(
            Some(47),
            &rows,
            &[
                "12:00  a -> b  word word word word word word",
                &format!("{indent}word word word word word word"),
                "12:00  a -> b  see",
                &format!("{indent}https://example.org/a/very/long/path"),
            ],
        );
    }

    #[test]
    fn on_a_narrow_terminal_texts_begin_on_lines_of_their_own() {
        let long = "x".repeat(30);
        let rows = [row("ana -> #ops", "disk full on web3, who can look?"), row("a -> b", &long)];
        check(
            Some(30),
            &rows,
            &[
                "12:00  ana -> #ops",
                "    disk full on web3, who can",
                "    look?",
                "12:00  a -> b",
                "    xxxxxxxxxxxxxxxxxxxxxxxxxx",
                "    xxxx",
            ],
        );
    }

    #[test]
    fn no_text_begins_a_line_in_the_first_column_or_fills_the_screen() {
        let forged = format!("x://{}2026-11-27\u{a0}00:36:59\u{a0}ana", "y".repeat(40));
        let address = format!("日本語://{}", "語".repeat(40));
        for text in [forged.as_str(), &address, &"z".repeat(100)] {
            let printed = TextRows::default().lines(&row("a -> b", text), Some(40));
            assert!(printed.lines().skip(1).all(|line| line.starts_with("    ")), "{printed}");
            assert!(printed.lines().all(|line| display_width(line) <= 40), "{printed}");
        }
        let printed = TextRows::default().lines(&row("a -> b", &"\n".repeat(5_000)), None);
        assert_eq!((printed.lines().count(), printed.len() < 1_000), (LINES_MAX + 1, true));
        assert!(printed.ends_with("… 4800 more lines (-o json prints them)\n"), "{printed}");
    }
}
