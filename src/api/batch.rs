//! Owns batches: many messages in one body, one JSON object per line.
//!
//! Invariants: a refused line does not affect the others; line numbers count all lines from 1, also empty ones, so they
//! match the sender's file; the id of a line without one depends on the `Idempotency-Key` and the line number alone.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    BATCH_LINES_MAX, MESSAGE_BODY_BYTES_MAX,
    error::{ErrorCode, Problem},
    message::SendRequest,
};
use crate::chain::message::Message;

/// One line that is not empty.
#[derive(Debug, PartialEq, Eq)]
pub struct BatchLine {
    pub number: u64,
    pub message: Result<Message, Problem>,
}

/// Parses a batch, one line at a time. The id of a line without one is made from `key` (the `Idempotency-Key`) and the
/// line number, so that a batch can be repeated as a whole. Without a key it is `fresh`.
pub fn parse_batch<F: FnMut() -> Uuid>(
    body: &[u8],
    key: Option<Uuid>,
    mut fresh: F,
) -> Result<impl Iterator<Item = BatchLine> + use<'_, F>, Problem> {
    let body = without_byte_order_mark(body);
    let count = lines(body).take(BATCH_LINES_MAX + 1).count();
    if count > BATCH_LINES_MAX {
        let detail = format!("the batch has more than {BATCH_LINES_MAX} lines; send it in parts");
        return Err(Problem::new(ErrorCode::TooLarge, detail));
    }
    Ok(lines(body).map(move |(number, line)| {
        let message = parse_line(line).and_then(|request| {
            request.into_message(|| key.map_or_else(&mut fresh, |key| line_id(key, number)))
        });
        BatchLine { number, message }
    }))
}

/// The id of a line without one. Must never change: it makes a repeated batch a duplicate.
pub fn line_id(key: Uuid, number: u64) -> Uuid {
    Uuid::new_v5(&key, number.to_string().as_bytes())
}

/// The lines of a file without the byte order mark that some programs write before the first one.
pub fn without_byte_order_mark(lines: &[u8]) -> &[u8] {
    lines.strip_prefix("\u{feff}".as_bytes()).unwrap_or(lines)
}

/// The lines that are not empty, with their numbers, without line ends.
fn lines(body: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let numbered = (1..).zip(body.split(|byte| *byte == b'\n'));
    numbered.map(|(number, line)| (number, line.trim_ascii())).filter(|(_, line)| !line.is_empty())
}

/// Reads one line; the limits of the fields are not checked yet.
pub fn parse_line(line: &[u8]) -> Result<SendRequest, Problem> {
    if line.len() > MESSAGE_BODY_BYTES_MAX {
        let detail = format!("the line is longer than {MESSAGE_BODY_BYTES_MAX} bytes");
        return Err(Problem::new(ErrorCode::TooLarge, detail));
    }
    SendRequest::parse_named("line", line)
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchAnswer {
    /// Lines whose message is stored by this batch.
    pub accepted: u64,
    /// Lines whose message was stored before.
    pub duplicates: u64,
    pub rejected: Vec<Rejected>,
}

/// A line that is not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Counted from 1.
    pub line: u64,
    pub code: ErrorCode,
    pub detail: String,
    /// Whether the line may be stored later.
    pub retryable: bool,
}

impl Rejected {
    pub fn new(line: u64, problem: Problem) -> Self {
        Self { line, code: problem.code, detail: problem.detail, retryable: problem.retryable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Uuid = Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0002);
    const GOOD: &str = r#"{"sender":"a","recipient":"b","text":"c"}"#;

    #[track_caller]
    fn check(body: &[u8], want: &[(u64, Result<Uuid, ErrorCode>)]) {
        let fresh = || Uuid::nil();
        let got: Vec<_> = parse_batch(body, Some(KEY), fresh)
            .expect("not too many lines")
            .map(|line| (line.number, line.message.map(|m| m.fields().id).map_err(|problem| problem.code)))
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn lines_are_independent() {
        let body = format!("{GOOD}\n\n  \r\n{{\"sender\":\n{GOOD}\r\n[]\n{GOOD}");
        check(
            body.as_bytes(),
            &[
                (1, Ok(line_id(KEY, 1))),
                (4, Err(ErrorCode::InvalidJson)),
                (5, Ok(line_id(KEY, 5))),
                (6, Err(ErrorCode::InvalidMessage)),
                (7, Ok(line_id(KEY, 7))),
            ],
        );
        check(b"\xff\n", &[(1, Err(ErrorCode::InvalidJson))]);
        check(b"", &[]);
        let long = format!("{GOOD}\n{{\"text\":\"{}\"}}", "x".repeat(MESSAGE_BODY_BYTES_MAX));
        check(long.as_bytes(), &[(1, Ok(line_id(KEY, 1))), (2, Err(ErrorCode::TooLarge))]);
    }

    #[test]
    fn a_byte_order_mark_before_the_first_line_is_skipped() {
        let body = format!("\u{feff}{GOOD}\n\u{feff}{GOOD}");
        check(body.as_bytes(), &[(1, Ok(line_id(KEY, 1))), (2, Err(ErrorCode::InvalidJson))]);
        check("\u{feff}\n".as_bytes(), &[]);
    }

    #[test]
    fn a_line_keeps_its_own_id() {
        let own = GOOD.replace('}', &format!(",\"id\":\"{}\"}}", Uuid::max()));
        check(own.as_bytes(), &[(1, Ok(Uuid::max()))]);
    }

    #[test]
    fn without_key_ids_are_fresh() {
        let mut last = 0;
        let fresh = || {
            last += 1;
            Uuid::from_u128(last)
        };
        let body = format!("{GOOD}\n{GOOD}");
        let ids: Vec<_> = parse_batch(body.as_bytes(), None, fresh)
            .expect("not too many lines")
            .map(|line| line.message.expect("valid").fields().id.as_u128())
            .collect();
        assert_eq!(ids, [1, 2]);
    }

    #[test]
    fn ids_made_from_a_key_never_change() {
        assert_eq!(line_id(KEY, 17).to_string(), "4455ac91-2700-5111-8cc6-f87d77cee28b");
    }

    #[test]
    fn a_batch_has_at_most_ten_thousand_lines() {
        let full = "[]\n\n".repeat(BATCH_LINES_MAX);
        let count = |body: &str| parse_batch(body.as_bytes(), None, Uuid::nil).map(Iterator::count);
        assert_eq!(count(&full), Ok(BATCH_LINES_MAX));
        assert_eq!(count(&(full + "[]")).map_err(|problem| problem.code), Err(ErrorCode::TooLarge));
    }
}
