//! Owns how answers are spelled as JSON: each value is one line for every reader of lines.
//!
//! Any answer may quote text of users, so all answers are written here. Must not know what they say.

use serde::Serialize;

/// Characters that end a line for some readers of lines, though not in JSON: NEL, LINE and PARAGRAPH SEPARATOR.
const LINE_SEPARATORS: [(char, &str); 3] =
    [('\u{85}', "\\u0085"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")];

/// Appends a value as JSON. Its line separators are written as escapes.
pub fn write(value: &(impl Serialize + ?Sized), out: &mut Vec<u8>) {
    let start = out.len();
    serde_json::to_writer(&mut *out, value).expect("an answer has no map with keys that are not strings");
    if out[start..].is_ascii() {
        return;
    }
    let json = std::str::from_utf8(&out[start..]).expect("JSON is UTF-8");
    if json.contains(LINE_SEPARATORS.map(|(separator, _)| separator)) {
        // Outside of a string, JSON has no such character.
        let escape = |json: String, (separator, escape)| json.replace(separator, escape);
        let escaped = LINE_SEPARATORS.into_iter().fold(json.to_owned(), escape);
        out.truncate(start);
        out.extend_from_slice(escaped.as_bytes());
    }
}

/// A value as JSON, likewise.
pub fn to_vec(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &impl Serialize, want: &str) {
        assert_eq!(String::from_utf8(to_vec(value)).expect("UTF-8"), want);
        let same: serde_json::Value = serde_json::from_str(want).expect("JSON");
        assert_eq!(same, serde_json::to_value(value).expect("JSON"));
    }

    #[test]
    fn line_separators_are_escapes_in_names_and_values() {
        check(
            &serde_json::json!({ "a\u{2028}": ["1\u{85}2\u{2029}3"] }),
            r#"{"a\u2028":["1\u00852\u20293"]}"#,
        );
        check(&"\\\u{2028}\"\u{2029}", r#""\\\u2028\"\u2029""#);
        check(&"\u{84}\u{86}\u{2027}\u{202a}\u{e2}", "\"\u{84}\u{86}\u{2027}\u{202a}\u{e2}\"");
        check(&("plain", 1), r#"["plain",1]"#);
    }
}
