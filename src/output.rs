//! The only file that prints: data on standard output, everything else on standard error.
//!
//! Owns the three formats, tables, colors, progress bars, and escaping. Text from users and other machines must not
//! control the terminal: no control, bidirectional or invisible format character of a message, a peer's warning or an
//! error is printed as itself. In JSON it becomes `\u…`, which means the same. This file knows nothing of what is
//! printed. When the reader of standard output closes it, printing fails with a [`PrintError`] on which the program ends
//! without an error.

mod markdown;
mod text_rows;

use std::{
    borrow::Cow,
    env,
    fmt::{self, Write as _},
    future::pending,
    io::{self, IsTerminal, Write as _},
    ops::RangeInclusive,
    os::fd::AsFd as _,
};

use clap::{
    ColorChoice,
    builder::styling::{AnsiColor, Effects, Style},
};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
pub use indicatif::ProgressBar;
use indicatif::{ProgressDrawTarget, ProgressFinish, ProgressStyle};
use serde::Serialize;
pub use text_rows::{TextRow, TextRows};
use tokio::{io::Interest, net::unix::pipe};

use crate::{
    cli::{CommonArgs, OutputFormat},
    error_text,
};

const COLUMN_GAP: u16 = 2;
/// Colors of the tags of processes that share the terminal; after the last color the first comes again.
const TAG_COLORS: [AnsiColor; 6] = {
    use AnsiColor::{Blue, BrightRed, Cyan, Green, Magenta, Yellow};
    [Cyan, Yellow, Green, Magenta, Blue, BrightRed]
};

/// Where and how to print.
#[derive(Debug, Clone)]
pub struct Output {
    pub format: OutputFormat,
    quiet: bool,
    /// Whether standard output is colored.
    colors_data: bool,
    /// Whether standard error is colored.
    pub colors_errors: bool,
}

/// How good or bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    /// Worth a look.
    Doubtful,
    Bad,
}

/// Standard output cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct PrintError(#[from] io::Error);

impl PrintError {
    /// Whether the reader of standard output has closed it.
    pub fn is_closed_pipe(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// A row of a table. The whole row has the color of its tone.
pub type Row = (Tone, Vec<String>);

impl Output {
    /// Follows the common flags, and NO_COLOR and the terminal where the flags say `auto`.
    pub fn new(common: &CommonArgs) -> Self {
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = |is_terminal: bool| match common.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => is_terminal && has_escapes() && !no_color,
        };
        Output {
            format: common.output,
            quiet: common.quiet,
            colors_data: color(io::stdout().is_terminal()),
            colors_errors: color(io::stderr().is_terminal()),
        }
    }

    /// Begins a page. On a terminal it replaces the page before it; elsewhere it follows that page.
    pub fn begin_page(&self) -> Result<(), PrintError> {
        if io::stdout().is_terminal() && has_escapes() && self.format == OutputFormat::Table {
            // Moves to the upper left corner and clears the screen from there (ECMA-48: CUP, ED).
            print_data("\u{1b}[H\u{1b}[J")?;
        }
        Ok(())
    }

    pub fn line(&self, text: &str) -> Result<(), PrintError> {
        print_data(&format!("{}\n", escape(text)))
    }

    pub fn json(&self, value: &impl Serialize) -> Result<(), PrintError> {
        print_data(&format!("{}\n", json(value)?))
    }

    /// One answer: this text for people, or the value as JSON.
    pub fn answer(&self, text: &str, value: &impl Serialize) -> Result<(), PrintError> {
        match self.format {
            OutputFormat::Table => self.line(text),
            OutputFormat::Json | OutputFormat::Ndjson => self.json(value),
        }
    }

    /// Many values: a JSON array with one value per line, or NDJSON.
    pub fn json_list<T: Serialize>(&self, values: &[T]) -> Result<(), PrintError> {
        let mut list = self.begin_json_list();
        list.add(values)?;
        list.end()
    }

    /// The same for values that arrive one after the other.
    pub fn begin_json_list(&self) -> JsonList<'_> {
        JsonList { output: self, is_empty: true }
    }

    /// Columns under a header; an empty header is not printed. Numbers are aligned to the right.
    pub fn table(&self, header: &[&str], rows: &[Row]) -> Result<(), PrintError> {
        let bold = Style::new().effects(Effects::BOLD);
        let styles = (!header.is_empty()).then_some(bold).into_iter();
        let styles = styles.chain(rows.iter().map(|(tone, _)| style_of(*tone)));
        let mut out = io::BufWriter::new(io::stdout().lock());
        for (line, style) in columns(header, rows).lines().zip(styles) {
            writeln!(out, "{}", paint(self.colors_data, style, line.trim_end()))?;
        }
        Ok(out.flush()?)
    }

    /// Prints rows with texts.
    pub fn texts(&self, layout: &TextRows, rows: &[TextRow<'_>]) -> Result<(), PrintError> {
        let is_terminal = io::stdout().is_terminal();
        let size = is_terminal.then(|| rustix::termios::tcgetwinsize(io::stdout()).ok()).flatten();
        let columns = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        let mut out = io::BufWriter::new(io::stdout().lock());
        for row in rows {
            out.write_all(layout.lines(row, columns).as_bytes())?;
        }
        Ok(out.flush()?)
    }

    /// A page of Markdown: as it is, or laid out for reading where standard output is a terminal.
    pub fn page(&self, text: &str) -> Result<(), PrintError> {
        if io::stdout().is_terminal() {
            return print_data(&markdown::for_terminal(text, self.colors_data));
        }
        print_data(text)
    }

    /// A sentence of data for people, with the color of its tone.
    pub fn summary(&self, tone: Tone, text: &str) -> Result<(), PrintError> {
        print_data(&format!("{}\n", paint(self.colors_data, style_of(tone), &escape(text))))
    }

    /// A remark on standard error; `--quiet` suppresses it.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            eprint_line(&escape(text));
        }
    }

    pub fn warn(&self, text: &str) {
        self.labeled("warning", AnsiColor::Yellow, text);
    }

    pub fn error(&self, text: &str) {
        self.labeled("error", AnsiColor::Red, text);
    }

    /// A line of a child process on standard error, after the tag of that process. `index` chooses the color of the
    /// tag.
    pub fn tagged(&self, index: usize, tag: &str, line: &str) {
        let style = TAG_COLORS[index % TAG_COLORS.len()].on_default();
        eprint_line(&format!("{} {line}", paint(self.colors_errors, style, &format!("{tag:>7} |"))));
    }

    /// An error report of several lines on standard error.
    pub fn report(&self, report: &str) {
        for line in report.lines() {
            eprint_line(&escape(line));
        }
    }

    /// A progress bar on standard error over this many bytes, or a counter if the number is not known. It is invisible
    /// where standard error is no terminal (or, by the library, a dumb one), and is removed when it is dropped.
    pub fn progress(&self, bytes: Option<u64>) -> ProgressBar {
        let hidden = self.quiet || !io::stderr().is_terminal() || !has_escapes();
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let template = match bytes {
            Some(_) => "{wide_bar} {percent:>3} %  {msg}  {elapsed} (left: {eta})",
            None => "{spinner} {bytes}  {msg}  {elapsed}",
        };
        let style = ProgressStyle::with_template(template).expect("the template is well-formed");
        ProgressBar::with_draw_target(bytes, target).with_style(style).with_finish(ProgressFinish::AndClear)
    }

    fn labeled(&self, label: &str, color: AnsiColor, text: &str) {
        let style = color.on_default().effects(Effects::BOLD);
        eprint_line(&format!("{} {}", paint(self.colors_errors, style, &format!("{label}:")), escape(text)));
    }
}

/// A list of values in JSON of which a part is printed.
#[derive(Debug)]
pub struct JsonList<'a> {
    output: &'a Output,
    is_empty: bool,
}

impl JsonList<'_> {
    pub fn add<T: Serialize>(&mut self, values: &[T]) -> Result<(), PrintError> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let is_array = self.output.format != OutputFormat::Ndjson;
        for value in values {
            let json = json(value)?;
            match (is_array, std::mem::replace(&mut self.is_empty, false)) {
                (true, true) => write!(out, "[{json}")?,
                (true, false) => write!(out, ",\n{json}")?,
                (false, _) => writeln!(out, "{json}")?,
            }
        }
        Ok(out.flush()?)
    }

    pub fn end(self) -> Result<(), PrintError> {
        match (self.output.format, self.is_empty) {
            (OutputFormat::Ndjson, _) => Ok(()),
            (_, true) => print_data("[]\n"),
            (_, false) => print_data("\n]\n"),
        }
    }
}

/// Whether a terminal understands escape codes. One that names no kind is taken for one that does not.
pub fn has_escapes() -> bool {
    env::var_os("TERM").is_some_and(|kind| !kind.is_empty() && kind != "dumb")
}

/// One JSON value on one line, without a character that could control a terminal.
fn json(value: &impl Serialize) -> io::Result<String> {
    let text = serde_json::to_string(value)?;
    // serde_json leaves such a character only inside a string, where an escape means the same.
    let escaped = escape_with(&text, |c, out| {
        c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
    });
    Ok(escaped.into_owned())
}

/// The text, with every character escaped that could control a terminal or be invisible.
pub fn escape(text: &str) -> Cow<'_, str> {
    escape_with(text, |c, out| match c {
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        c => write!(out, "\\u{{{:x}}}", u32::from(c)),
    })
}

fn escape_with(text: &str, write: impl Fn(char, &mut String) -> fmt::Result) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut flag_end = 0; // end of the flag that the current character belongs to
    for (at, c) in text.char_indices() {
        if c == FLAG {
            flag_end = at + flag_length(&text[at..]);
        }
        if is_unsafe(c) && at >= flag_end {
            write(c, &mut out).expect("writing to memory does not fail");
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// The black flag. Tag characters after it make it the flag of a region, such as Scotland (UTS 51, emoji tag sequence).
const FLAG: char = '\u{1f3f4}';

/// Length in bytes of the flag of a region at the start of the text; 0 if there is none.
fn flag_length(text: &str) -> usize {
    let is_tag = |c: &char| matches!(c, '\u{e0030}'..='\u{e0039}' | '\u{e0061}'..='\u{e007a}');
    let tags = text.chars().skip(1).take_while(is_tag).count();
    let is_flag = REGION_TAGS.contains(&tags) && text.chars().nth(1 + tags) == Some('\u{e007f}');
    if is_flag { (1 + tags + 1) * FLAG.len_utf8() } else { 0 }
}

/// A region is two letters of a country and up to three letters or digits (UTS 51).
const REGION_TAGS: RangeInclusive<usize> = 3..=5;

/// Control characters (C0, DEL, C1), Unicode's fillers, and its format characters (Cf) and separators except for the two
/// joiners, which emoji and several scripts need.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
            | '\u{34f}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{3164}' | '\u{ffa0}'
            | '\u{8e2}' | '\u{180e}' | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Lays out a table. Every cell is escaped, so each row is one line.
fn columns(header: &[&str], rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(header.iter().copied());
    }
    for (_, cells) in rows {
        table.add_row(cells.iter().map(|cell| escape(cell).into_owned()));
    }
    let is_number = |i: usize| {
        let cells = || rows.iter().filter_map(|(_, cells)| cells.get(i));
        let number = |cell: &String| cell == "-" || cell.trim_end_matches(" ms").parse::<f64>().is_ok();
        !header.is_empty() && i > 0 && cells().any(|cell| cell != "-") && cells().all(number)
    };
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, COLUMN_GAP));
        if is_number(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn style_of(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Good => AnsiColor::Green.on_default(),
        Tone::Doubtful => AnsiColor::Yellow.on_default(),
        Tone::Bad => AnsiColor::Red.on_default(),
    }
}

fn paint(colors: bool, style: Style, text: &str) -> String {
    if colors { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

/// Waits until the reader of standard output closes it; for ever if it is no pipe or socket, or keeps open. A command
/// that waits for news would otherwise notice only when it prints.
pub async fn stdout_closed() {
    let copy = io::stdout().as_fd().try_clone_to_owned();
    if let Ok(stdout) = copy.and_then(pipe::Sender::from_owned_fd_unchecked)
        && stdout.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    pending::<()>().await;
}

/// Writes to standard output and flushes, so that a reader on a pipe sees each line at once.
fn print_data(text: &str) -> Result<(), PrintError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes a line to standard error. If that is closed, the error is ignored: there is no place left to report it.
pub fn eprint_line(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", error_text::without_numbers(text));
}

/// Standard error for the lines of a log. Each write is a whole line.
pub struct LogOutput;

impl io::Write for LogOutput {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = error_text::without_numbers(String::from_utf8_lossy(line));
        io::stderr().lock().write_all(text.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        assert_eq!(escape(text), want);
    }

    #[test]
    fn characters_that_control_a_terminal_are_escaped() {
        check("plain, ünïcödé, 日本, 👩‍🚀", "plain, ünïcödé, 日本, 👩‍🚀");
        check("\u{1b}[2J\u{7}", "\\u{1b}[2J\\u{7}");
        check("a\r\n\tb", "a\\r\\n\\tb");
        let scotland = "🏴\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}";
        check(scotland, scotland);
        check(&format!("{scotland}\u{e0067}\u{1b}"), &format!("{scotland}\\u{{e0067}}\\u{{1b}}"));
        check("🏴\u{e0067}\u{e0062}", "🏴\\u{e0067}\\u{e0062}");
        check("🏴\u{e0067}\u{e0062}\u{e007f}", "🏴\\u{e0067}\\u{e0062}\\u{e007f}");
        check("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}");
        check("\u{202e}evil\u{2066}\u{200e}", "\\u{202e}evil\\u{2066}\\u{200e}");
        check("\u{e0041}\u{feff}\u{ad}\u{2028}", "\\u{e0041}\\u{feff}\\u{ad}\\u{2028}");
    }

    #[test]
    fn tables_have_straight_columns_even_with_wide_characters() {
        let rows = [
            (Tone::Good, vec!["0".into(), "日本".into(), "12".into(), "10.5 ms".into(), "1.0.0".into()]),
            (Tone::Bad, vec!["1".into(), "a\nb".into(), "-".into(), "0.1 ms".into(), "-".into()]),
        ];
        let lines: Vec<_> = columns(&["NODE", "NAME", "COUNT", "RTT", "VERSION"], &rows).lines().collect();
        assert_eq!(
            lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>(),
            [
                "NODE  NAME  COUNT      RTT  VERSION",
                "0     日本     12  10.5 ms  1.0.0",
                "1     a\\nb      -   0.1 ms  -"
            ]
        );
    }

    proptest! {
        #[test]
        fn escaped_json_means_the_same_and_controls_no_terminal(text: String, odd in "[\u{80}-\u{9f}\u{202a}-\u{202e}\u{e0001}]{0,3}") {
            let text = text + &odd;
            let json = json(&text).expect("a string serialises");
            prop_assert!(!json.chars().any(is_unsafe));
            prop_assert_eq!(serde_json::from_str::<String>(&json).expect("it parses"), text);
        }

        #[test]
        fn escaped_text_controls_no_terminal(text: String) {
            prop_assert!(!escape(&text).chars().any(is_unsafe));
        }
    }
}
