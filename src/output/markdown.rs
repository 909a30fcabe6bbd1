//! Lays out Markdown for a terminal: headings in bold, tables in columns, without the definitions of links.
//!
//! Everything else stays as it is written: Markdown is plain text, and code must stay as it can be typed. A table too
//! wide for columns becomes a list, one block for each row.

use clap::builder::styling::{Effects, Style};
use comfy_table::{ColumnConstraint, ContentArrangement};

use super::{COLUMN_GAP, Tone, columns, paint};

/// The last column of a wider table is broken into lines. Most terminals have more columns than this.
const TABLE_WIDTH_MAX: u16 = 100;
/// A table whose last column would be narrower than this is printed as a list.
const LAST_COLUMN_WIDTH_MIN: u16 = 36;

/// The page as a terminal shows it.
pub(super) fn for_terminal(text: &str, colors: bool) -> String {
    let mut out = String::new();
    let mut lines = text.trim_end().lines().peekable();
    let mut is_code = false;
    while let Some(line) = lines.next() {
        is_code ^= line.starts_with("```");
        if !is_code && line.starts_with('|') {
            let mut rows = vec![cells(line)];
            while let Some(line) = lines.next_if(|line| line.starts_with('|')) {
                rows.push(cells(line));
            }
            out += &table(&rows, colors);
        } else if !is_code && line.starts_with('#') {
            out += &bold(line.trim_start_matches(['#', ' ']), colors);
            out.push('\n');
        } else if is_code || !is_definition(line) {
            out += line;
            out.push('\n');
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// `[feed]: feed.md`.
fn is_definition(line: &str) -> bool {
    line.starts_with('[') && line.contains("]: ")
}

fn cells(row: &str) -> Vec<String> {
    let row = row.trim().trim_matches('|');
    row.split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// The first row is the header, the second one the line below it.
fn table(rows: &[Vec<String>], colors: bool) -> String {
    let [header, _, body @ ..] = rows else { return String::new() };
    let names: Vec<&str> = header.iter().map(String::as_str).collect();
    let toned: Vec<_> = body.iter().map(|row| (Tone::Plain, row.clone())).collect();
    let mut table = columns(&names, &toned);
    let widths = table.column_max_content_widths();
    let (last, before) = widths.split_last().map_or((0, &[][..]), |(last, before)| (*last, before));
    let before: u16 = before.iter().map(|width| width + COLUMN_GAP).sum();
    if before + last.min(LAST_COLUMN_WIDTH_MIN) > TABLE_WIDTH_MAX {
        return body.iter().map(|row| block(header, row, colors)).collect::<Vec<_>>().join("\n");
    }
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(TABLE_WIDTH_MAX);
    for column in table.column_iter_mut().rev().skip(1) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    let lines = table.lines().enumerate().map(|(i, line)| match (i, line.trim_end()) {
        (0, line) => bold(line, colors),
        (_, line) => line.to_owned(),
    });
    lines.map(|line| line + "\n").collect()
}

/// The first cell that is not empty, and the others below it with their names.
fn block(header: &[String], row: &[String], colors: bool) -> String {
    let mut filled = header.iter().zip(row).filter(|(_, cell)| !cell.is_empty());
    let title = filled.next().map(|(_, cell)| bold(cell, colors)).unwrap_or_default();
    filled.fold(title + "\n", |out, (name, cell)| out + &format!("    {name}: {cell}\n"))
}

fn bold(text: &str, colors: bool) -> String {
    paint(colors, Style::new().effects(Effects::BOLD), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        assert_eq!(for_terminal(text, false), want);
    }

    #[test]
    fn headings_and_tables_lose_their_marks() {
        check("## Read\n\nSee [feed].\n\n[feed]: feed.md\n", "Read\n\nSee [feed].\n");
        check(
            "| code | what |\n|---|---|\n| `a` | one |\n| `bcd` | two |\n",
            "code   what\n`a`    one\n`bcd`  two\n",
        );
    }

    #[test]
    fn code_stays_as_it_can_be_typed() {
        let code = "```sh\n# a comment\nls | wc\n| x |\n[a]: b\n```\n";
        check(code, code);
    }

    #[test]
    fn a_long_last_column_is_broken_into_lines() {
        let words = "word ".repeat(24);
        let printed = for_terminal(&format!("| code | what |\n|---|---|\n| `a` | {words}|\n"), false);
        let lines: Vec<_> = printed.lines().collect();
        assert_eq!(lines.len(), 3, "{printed}");
        assert!(lines[1].starts_with("`a`   word word ") && lines[2].starts_with("      word "), "{printed}");
        assert!(lines.iter().all(|line| line.len() <= usize::from(TABLE_WIDTH_MAX)), "{printed}");
    }

    #[test]
    fn a_table_of_wide_columns_becomes_a_list() {
        let wide = "x".repeat(40);
        check(
            &format!(
                "| file | flag | what |\n|---|---|---|\n| {wide} | {wide} | one |\n|  | `--b` | {wide} |\n"
            ),
            &format!("{wide}\n    flag: {wide}\n    what: one\n\n`--b`\n    what: {wide}\n"),
        );
    }

    #[test]
    fn headings_are_bold_where_colors_are_wanted() {
        assert_eq!(for_terminal("# Send\n", true), "\u{1b}[1mSend\u{1b}[0m\n");
    }
}
