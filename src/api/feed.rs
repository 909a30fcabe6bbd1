//! The feed: what may be asked of it, and its events as server-sent events or as lines of JSON.
//!
//! A cursor is opaque here: bytes of `chain::cursor`, written as text. What a filter is, a cursor is bound to, so there
//! is one way to write each. Sources: the HTML standard, "Server-sent events"; RFC 4648, base64url.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::{ErrorCode, Problem};
use super::explain_invalid::quote;
use super::message::ListedMessage;
use super::query::{self, ListQuery};
use crate::chain::cursor::CURSOR_BYTES_MAX;

/// A cursor's text is at most this long; a longer one is none.
pub const CURSOR_TEXT_MAX: usize = 1024;
const _: () = assert!(CURSOR_BYTES_MAX.div_ceil(3) * 4 <= CURSOR_TEXT_MAX);

/// The query of `GET /feed`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeedQuery {
    /// Where to go on.
    pub cursor: Option<String>,
    /// Without a cursor: from the very first message, not only from now on.
    pub from_start: bool,
    /// Who said it.
    pub sender: Option<String>,
    /// Whom it is for.
    pub recipient: Option<String>,
    /// Either of the two.
    pub user: Option<String>,
    /// The other one; only together with `user`.
    pub with: Option<String>,
}

impl FeedQuery {
    /// Reads a raw query string (without the `?`). `last_event_id` is the header of that name, which wins.
    pub fn parse(raw: &str, last_event_id: Option<&str>) -> Result<Self, Problem> {
        let mut feed = Self::default();
        let mut from = None;
        for (key, value) in query::pairs(raw)? {
            let slot = match key.as_ref() {
                "cursor" => &mut feed.cursor,
                "from" => &mut from,
                "sender" => &mut feed.sender,
                "recipient" => &mut feed.recipient,
                "user" => &mut feed.user,
                "with" => &mut feed.with,
                _ => return Err(query::unknown(&key, "cursor, from, sender, recipient, user, with")),
            };
            *slot = Some(query::given(&key, value)?);
        }
        feed.from_start = match from.as_deref() {
            None | Some("now") => false,
            Some("start") => true,
            Some(other) => {
                return Err(query::invalid(format!("`from` is {}, not `start` or `now`", quote(other))));
            }
        };
        if feed.cursor.is_some() && from.is_some() {
            return Err(query::invalid("`cursor` says already where to go on: leave `from` out"));
        }
        if feed.with.is_some() && feed.user.is_none() {
            return Err(query::invalid("`with` needs `user`: they are the two sides of a conversation"));
        }
        if let Some(id) = last_event_id.filter(|id| !id.is_empty()) {
            feed.cursor = Some(id.to_owned());
        }
        Ok(feed)
    }

    /// The filter as it is written, in one way.
    pub fn filter(&self) -> String {
        let Self { sender, recipient, user, with, .. } = self.clone();
        ListQuery { sender, recipient, user, with, ..ListQuery::default() }.to_query_string()
    }

    /// Writes it as a raw query string, empty if nothing is asked.
    pub fn to_query_string(&self) -> String {
        let mut out = self.filter();
        let place = match &self.cursor {
            Some(cursor) => Some(format!("cursor={cursor}")),
            None => self.from_start.then(|| "from=start".into()),
        };
        if let Some(place) = place {
            let separator = if out.is_empty() { "" } else { "&" };
            out = format!("{out}{separator}{place}");
        }
        out
    }
}

/// A cursor or a position as text.
pub fn to_text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The bytes of a cursor or a position; `None`: it is neither.
pub fn from_text(text: &str) -> Option<Vec<u8>> {
    (text.len() <= CURSOR_TEXT_MAX).then(|| URL_SAFE_NO_PAD.decode(text).ok()).flatten()
}

/// A cursor that is refused.
pub fn cursor_invalid(why: impl std::fmt::Display) -> Problem {
    let detail =
        format!("the cursor cannot be used: {why}; without one, a feed begins with `from=start` or now");
    Problem::new(ErrorCode::CursorInvalid, detail)
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedFormat {
    /// Server-sent events.
    Events,
    /// One JSON object per line.
    Lines,
}

/// What is said in a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedEvent<'a> {
    /// A message, as JSON.
    Message(&'a [u8]),
    /// Everything that was stored at the time of connecting is through.
    CaughtUp,
    /// Nothing; only the cursor moves.
    Bookmark,
}

impl FeedEvent<'_> {
    /// Appends the event. `cursor`: after it.
    pub fn write(self, format: FeedFormat, cursor: &str, out: &mut Vec<u8>) {
        let parts: [&[u8]; 5] = match (format, self) {
            (FeedFormat::Events, FeedEvent::Message(json)) => {
                [b"id: ", cursor.as_bytes(), b"\nevent: message\ndata: ", json, b"\n\n"]
            }
            (FeedFormat::Events, FeedEvent::CaughtUp) => {
                [b"id: ", cursor.as_bytes(), b"\nevent: caught-up\ndata: {}", b"", b"\n\n"]
            }
            (FeedFormat::Events, FeedEvent::Bookmark) => [b"id: ", cursor.as_bytes(), b"", b"", b"\n\n"],
            (FeedFormat::Lines, FeedEvent::Message(json)) => {
                [b"{\"event\":\"message\",\"cursor\":\"", cursor.as_bytes(), b"\",\"message\":", json, b"}\n"]
            }
            (FeedFormat::Lines, FeedEvent::CaughtUp) => {
                [b"{\"event\":\"caught-up\",\"cursor\":\"", cursor.as_bytes(), b"\"}", b"", b"\n"]
            }
            (FeedFormat::Lines, FeedEvent::Bookmark) => {
                [b"{\"event\":\"bookmark\",\"cursor\":\"", cursor.as_bytes(), b"\"}", b"", b"\n"]
            }
        };
        out.reserve(parts.iter().map(|part| part.len()).sum());
        for part in parts {
            out.extend_from_slice(part);
        }
    }
}

/// An event as a reader of lines finds it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct FeedLine {
    /// What it is; kinds that are not known are passed over.
    pub event: FeedEventKind,
    /// Where to go on after it.
    pub cursor: String,
    /// With a message.
    pub message: Option<ListedMessage>,
}

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedEventKind {
    /// A message.
    Message,
    /// Everything that was stored at the time of connecting is through.
    CaughtUp,
    /// Only the cursor moves. Also what is made of a kind that is newer than this program.
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
    fn a_feed_is_asked_for_in_one_way() {
        check("", None, "");
        check("from=now", None, "");
        check("from=start&user=a&with=b%20c", None, "user=a&with=b%20c&from=start");
        check("cursor=AA&sender=x", None, "sender=x&cursor=AA");
        check("from=start&sender=x", Some("BB"), "sender=x&cursor=BB");
        check("cursor=AA", Some("BB"), "cursor=BB");
        check("cursor=AA", Some(""), "cursor=AA");
    }

    #[test]
    fn what_is_not_understood_is_named() {
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
    fn bytes_are_text_and_come_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_text(&to_text(&bytes)), Some(bytes));
        assert_eq!(from_text("not base64!"), None);
        assert_eq!(from_text(&"A".repeat(CURSOR_TEXT_MAX + 1)), None);
    }
}
