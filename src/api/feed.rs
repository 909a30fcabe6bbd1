//! The feed: its query, and its events as server-sent events or as lines of JSON.
//!
//! A cursor is opaque here: the bytes of `chain::cursor`, written as text. A cursor is bound to the query string of its
//! filter, so every filter is written in one form. Sources: the HTML standard, "Server-sent events"; RFC 4648,
//! base64url.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::{
    error::{ErrorCode, Problem},
    explain_invalid::quote,
    message::ListedMessage,
    query::{QueryReader, QueryWriter, invalid, with_needs_user},
};
use crate::chain::{cursor::CURSOR_BYTES_MAX, filter::Filter};

/// The text of a cursor is at most this long; a longer text is refused.
pub const CURSOR_TEXT_MAX: usize = 1024;
const _: () = assert!(CURSOR_BYTES_MAX.div_ceil(3) * 4 <= CURSOR_TEXT_MAX);

/// The query of `GET /feed`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeedQuery {
    /// The feed starts after this cursor.
    pub cursor: Option<String>,
    /// Without a cursor: start with the first message of all, not with the next one.
    pub from_start: bool,
    /// Which messages: conditions on sender and recipient only.
    pub filter: Filter,
}

impl FeedQuery {
    /// Reads a raw query string (without the `?`). `last_event_id` is the header of that name, which wins.
    pub fn parse(raw: &str, last_event_id: Option<&str>) -> Result<Self, Problem> {
        let mut pairs = QueryReader::new(raw)?;
        let (cursor, from) = (pairs.text("cursor")?, pairs.text("from")?);
        let mut feed = Self { cursor, from_start: from.as_deref() == Some("start"), filter: pairs.names()? };
        pairs.refuse_rest()?;
        if let Some(other) = from.as_deref().filter(|from| !matches!(*from, "start" | "now")) {
            return Err(invalid(format!("`from` is {}, not `start` or `now`", quote(other))));
        }
        if feed.cursor.is_some() && from.is_some() {
            return Err(invalid("`cursor` says already where to go on: leave `from` out"));
        }
        with_needs_user(&feed.filter)?;
        if let Some(id) = last_event_id.filter(|id| !id.is_empty()) {
            feed.cursor = Some(id.to_owned());
        }
        Ok(feed)
    }

    /// The filter as a query string, in its one form.
    pub fn filter_string(&self) -> String {
        QueryWriter::of(&self.filter).0
    }

    /// Writes it as a raw query string, empty if there is nothing to ask for.
    pub fn to_query_string(&self) -> String {
        let mut out = QueryWriter::of(&self.filter);
        out.value("cursor", self.cursor.as_ref());
        out.value("from", (self.from_start && self.cursor.is_none()).then_some("start"));
        out.0
    }
}

/// A cursor or a position as text.
pub fn to_text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The bytes of a cursor or a position; `None` if the text is neither.
pub fn from_text(text: &str) -> Option<Vec<u8>> {
    (text.len() <= CURSOR_TEXT_MAX).then(|| URL_SAFE_NO_PAD.decode(text).ok()).flatten()
}

pub fn cursor_invalid(why: impl std::fmt::Display) -> Problem {
    let detail =
        format!("the cursor cannot be used: {why}; without one, a feed begins with `from=start` or now");
    Problem::new(ErrorCode::CursorInvalid, detail)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedFormat {
    /// Server-sent events.
    Events,
    /// One JSON object per line.
    Lines,
}

/// An event, as a server writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedEvent<'a> {
    Message(&'a [u8]),
    /// Everything that was stored at the time of connecting has been sent.
    CaughtUp,
    /// Only the cursor moves.
    Bookmark,
}

impl FeedEvent<'_> {
    /// Appends the event. `cursor` is the position after it.
    pub fn write(self, format: FeedFormat, cursor: &str, out: &mut Vec<u8>) {
        let cursor = cursor.as_bytes();
        let (name, json): (&[u8], &[u8]) = match self {
            FeedEvent::Message(json) => (b"message", json),
            FeedEvent::CaughtUp => (b"caught-up", b"{}"),
            FeedEvent::Bookmark => (b"bookmark", b""),
        };
        let parts: &[&[u8]] = match (format, self) {
            (FeedFormat::Events, FeedEvent::Bookmark) => &[b"id: ", cursor, b"\n\n"],
            (FeedFormat::Events, _) => &[b"id: ", cursor, b"\nevent: ", name, b"\ndata: ", json, b"\n\n"],
            (FeedFormat::Lines, FeedEvent::Message(_)) => {
                &[br#"{"event":"message","cursor":""#, cursor, br#"","message":"#, json, b"}\n"]
            }
            (FeedFormat::Lines, _) => &[br#"{"event":""#, name, br#"","cursor":""#, cursor, b"\"}\n"],
        };
        for part in parts {
            out.extend_from_slice(part);
        }
    }
}

/// An event, as a client reads it from a line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FeedLine {
    pub event: FeedEventKind,
    /// The cursor after the event.
    pub cursor: String,
    pub message: Option<ListedMessage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedEventKind {
    Message,
    CaughtUp,
    /// A kind that this program does not know is read as this one.
    #[serde(other)]
    Bookmark,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(raw: &str, header: Option<&str>, want: &str) {
        let got = FeedQuery::parse(raw, header).map(|feed| feed.to_query_string());
        assert_eq!(got.unwrap_or_else(|problem| problem.detail), want, "{raw}");
    }

    #[test]
    fn a_query_has_one_form() {
        check("", None, "");
        check("from=now", None, "");
        check("from=start&user=a&with=b%20c", None, "user=a&with=b%20c&from=start");
        check("cursor=AA&sender=x", None, "sender=x&cursor=AA");
        check("from=start&sender=x", Some("BB"), "sender=x&cursor=BB");
        check("cursor=AA", Some("BB"), "cursor=BB");
        check("cursor=AA", Some(""), "cursor=AA");
    }

    #[test]
    fn mistakes_are_refused_with_the_name_of_the_key() {
        check("from=there", None, "`from` is `there`, not `start` or `now`");
        check("cursor=AA&from=start", None, "`cursor` says already where to go on: leave `from` out");
        check("with=b", None, "`with` needs `user`: they are the two sides of a conversation");
        check(
            "text=b",
            None,
            "`text` is unknown; this path knows cursor, from, sender, recipient, user, with",
        );
        check("cursor=", None, "`cursor` must not be empty");
    }

    #[test]
    fn events_are_written_as_the_contract_says() {
        let check = |format, event: FeedEvent<'_>, want: &str| {
            let mut out = Vec::new();
            event.write(format, "AbC-_", &mut out);
            assert_eq!(String::from_utf8(out).expect("UTF-8"), want);
        };
        let json: &[u8] = br#"{"id":1}"#;
        check(
            FeedFormat::Events,
            FeedEvent::Message(json),
            "id: AbC-_\nevent: message\ndata: {\"id\":1}\n\n",
        );
        check(FeedFormat::Events, FeedEvent::CaughtUp, "id: AbC-_\nevent: caught-up\ndata: {}\n\n");
        check(FeedFormat::Events, FeedEvent::Bookmark, "id: AbC-_\n\n");
        check(
            FeedFormat::Lines,
            FeedEvent::Message(json),
            "{\"event\":\"message\",\"cursor\":\"AbC-_\",\"message\":{\"id\":1}}\n",
        );
        check(FeedFormat::Lines, FeedEvent::CaughtUp, "{\"event\":\"caught-up\",\"cursor\":\"AbC-_\"}\n");
        check(FeedFormat::Lines, FeedEvent::Bookmark, "{\"event\":\"bookmark\",\"cursor\":\"AbC-_\"}\n");
    }

    #[test]
    fn bytes_are_written_as_text_and_read_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_text(&to_text(&bytes)), Some(bytes));
        assert_eq!(from_text("not base64!"), None);
        assert_eq!(from_text(&"A".repeat(CURSOR_TEXT_MAX + 1)), None);
    }
}
