//! Owns the explanation of an invalid body: which field of a message is wrong, and why.
//!
//! Before it: `message`, whose parser has refused the body. Reads raw JSON values, because numbers that fit no type and
//! duplicate names must be explained as well. Must not know the limits of text fields.
//!
//! Invariants: it accepts nothing; an explanation repeats at most a few characters of the request.

use std::fmt;

use serde::{
    Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::error::{ErrorCode, Problem};
use crate::chain::message::TIMESTAMP_MAX;

const QUOTED_CHARS_MAX: usize = 64;

/// A part of a request in backticks. A longer text than [`QUOTED_CHARS_MAX`] is cut and ends in an ellipsis.
pub fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

/// Why `text` is not a send request. `noun`: what it is, a body or a line. `error` is the first error that serde found,
/// and the explanation of last resort.
pub(super) fn explain(noun: &str, text: &str, error: &serde_json::Error) -> Problem {
    if text.trim_ascii().is_empty() {
        let detail = format!("the {noun} is empty; a message is a JSON object");
        return Problem::new(ErrorCode::InvalidJson, detail);
    }
    if let Err(syntax) = serde_json::from_str::<IgnoredAny>(text) {
        let syntax = syntax.to_string();
        // The number of a line within a line is always 1.
        let place =
            if text.contains('\n') { syntax } else { syntax.replace(" at line 1 column ", " at column ") };
        return Problem::new(ErrorCode::InvalidJson, format!("the {noun} is not JSON: {place}"));
    }
    let why = if text.trim_ascii_start().starts_with('{') {
        match serde_json::Deserializer::from_str(text).deserialize_map(FieldsVisitor) {
            Ok(fields) => first_error(&fields),
            Err(_) => Some("a field's name is not valid Unicode".into()),
        }
    } else {
        Some(format!("a message is a JSON object, not {}", kind(text.trim_ascii_start())))
    };
    Problem::new(ErrorCode::InvalidMessage, why.unwrap_or_else(|| error.to_string()))
}

/// Reads the fields of an object in their order, duplicates included.
struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(fields)
    }
}

const FIELDS: [&str; 5] = ["sender", "recipient", "text", TIMESTAMP, "id"];
/// Fields that servers add to a message. Their values are ignored.
const ADDED_FIELDS: [&str; 6] = ["accepted_at", "origin", "seq", "account", "durable_on", "duplicate"];
const TIMESTAMP: &str = "timestamp";
/// Added by servers as well. It says that the timestamp is not the sender's, and is to be ignored.
const TIMESTAMP_FROM: &str = "timestamp_from";

fn first_error(fields: &[(String, &RawValue)]) -> Option<String> {
    let all = || FIELDS.iter().chain(&ADDED_FIELDS).chain([&TIMESTAMP_FROM]);
    if let Some((name, _)) = fields.iter().find(|(name, _)| !all().any(|known| name == known)) {
        let known = FIELDS.join("`, `");
        return Some(format!("the field {} is unknown; a message has `{known}`", quote(name)));
    }
    let is_ignored = fields.iter().any(|(name, value)| name == TIMESTAMP_FROM && value.get() != "null");
    all().filter(|name| !(is_ignored && **name == TIMESTAMP)).find_map(|name| {
        let mut values = fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.get());
        let error = match (values.next(), values.next()) {
            (_, Some(_)) => Some("is given twice".into()),
            (None, None) => required(name).then(|| "is missing".into()),
            (Some(value), None) => field_error(name, value),
        };
        error.map(|why| format!("`{name}` {why}"))
    })
}

fn required(name: &str) -> bool {
    matches!(name, "sender" | "recipient" | "text")
}

fn field_error(name: &str, value: &str) -> Option<String> {
    if ADDED_FIELDS.contains(&name) || (value == "null" && !required(name)) {
        return None;
    }
    if name == TIMESTAMP {
        return timestamp_error(value);
    }
    if !value.starts_with('"') {
        return Some(format!("must be a string, not {}", kind(value)));
    }
    let Ok(text) = serde_json::from_str::<String>(value) else {
        return Some("is not valid Unicode: it has half of a surrogate pair".into());
    };
    match name {
        "id" if Uuid::try_parse(&text).is_err() => Some(format!("is {}, not a UUID", quote(&text))),
        TIMESTAMP_FROM if text != "server" => Some(format!("is {}, not `server`", quote(&text))),
        _ => None,
    }
}

fn timestamp_error(value: &str) -> Option<String> {
    if !value.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return Some(format!("must be a number of whole Unix seconds, not {}", kind(value)));
    }
    let why = if value.starts_with('-') {
        "but must not be negative"
    } else if value.contains(['.', 'e', 'E']) {
        "but must be whole Unix seconds without fraction or exponent"
    } else if value.parse::<u64>().is_err() {
        &format!("larger than {TIMESTAMP_MAX}: looks like milliseconds; give whole Unix seconds")
    } else {
        return None;
    };
    Some(format!("is {}, {why}", quote(value)))
}

fn kind(value: &str) -> &'static str {
    match value.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests {
    use super::{super::message::SendRequest, *};

    #[track_caller]
    fn check(body: &str, code: ErrorCode, part: &str) {
        let problem = SendRequest::parse(body.as_bytes()).expect_err("refused");
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.detail.contains(part), "{:?} lacks {part:?}", problem.detail);
        assert!(problem.detail.len() < 400, "an explanation is short");
    }

    /// A body in which one field is replaced by `field`.
    fn with(field: &str) -> String {
        let name = field.split(':').next().expect("a name");
        let rest = [r#""sender":"a""#, r#""recipient":"b""#, r#""text":"c""#];
        let mut fields: Vec<&str> = rest.into_iter().filter(|known| !known.starts_with(name)).collect();
        fields.push(field);
        format!("{{{}}}", fields.join(","))
    }

    #[test]
    fn invalid_json_is_explained_with_its_position() {
        let code = ErrorCode::InvalidJson;
        check("", code, "empty");
        check("hello", code, "at column 1");
        check("\nhello", code, "at line 2 column 1");
        check(r#"{"sender":"a","#, code, "EOF");
        check(r#"{"sender":"a"} x"#, code, "trailing");
        check("[1, 2", code, "EOF");
        check("{\"text\":\"a\tb\"}", code, "control character");
    }

    #[test]
    fn an_invalid_message_is_explained_with_its_field() {
        let code = ErrorCode::InvalidMessage;
        check("[]", code, "not an array");
        check(r#"["a","b","c",null,null,null,null,null,null,null,null,null]"#, code, "not an array");
        check(&with(r#""timestamp_from":{"server":null}"#), code, "`timestamp_from` must be a string");
        check(" 17", code, "not a number");
        check("{}", code, "`sender` is missing");
        check(r#"{"sender":"a","recipient":"b"}"#, code, "`text` is missing");
        check(&with(r#""text":17"#), code, "`text` must be a string, not a number");
        check(&with(r#""text":null"#), code, "`text` must be a string, not null");
        check(&with(r#""text":"\ud800""#), code, "`text` is not valid Unicode");
        check(&with(r#""colour":"red""#), code, "`colour` is unknown");
        check(&with(&format!(r#""{}":1"#, "x".repeat(9999))), code, "x…` is unknown");
        check(&with(r#""\ud800":1"#), code, "name is not valid Unicode");
        check(r#"{"sender":"a","sender":"a","recipient":"b","text":"c"}"#, code, "`sender` is given twice");
        check(&with(r#""id":"17""#), code, "`id` is `17`, not a UUID");
        check(&with(r#""id":17"#), code, "`id` must be a string");
        check(&with(&format!(r#""text":{}1{}"#, "[".repeat(9999), "]".repeat(9999))), code, "not an array");
    }

    #[test]
    fn timestamps_are_whole_seconds() {
        let code = ErrorCode::InvalidMessage;
        check(&with(r#""timestamp":-1"#), code, "negative");
        check(&with(r#""timestamp":1.0"#), code, "fraction");
        check(&with(r#""timestamp":1e9"#), code, "exponent");
        check(&with(r#""timestamp":1e999"#), code, "exponent");
        check(&with(r#""timestamp":"2024""#), code, "not a string");
        check(&with(r#""timestamp":99999999999999999999999"#), code, "looks like milliseconds");
        check(&with(&format!(r#""timestamp":{}"#, "9".repeat(9999))), code, "looks like milliseconds");
    }
}
