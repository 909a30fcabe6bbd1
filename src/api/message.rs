//! Messages in JSON: a request becomes a checked [`Message`], and a stored message becomes an answer.
//!
//! First step of a send: here -> `node/http/send` -> the writer. Serde reads a valid request in one pass. Only a
//! refused request is read again, to name the field and the reason; that second pass accepts nothing. Answers have one
//! order of fields and one spelling, so that nodes with equal digests answer equal bytes.

use std::{borrow::Cow, io::Write as _};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, IgnoredAny},
};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    error::{ErrorCode, Problem},
    explain_invalid, json,
    network::NodeId,
    time::Time,
};
use crate::chain::message::{Message, UncheckedMessage};

/// A send, as a client posts it. `timestamp` and `id` may be absent or `null`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SendRequest {
    pub sender: String,
    pub recipient: String,
    pub text: String,
    /// Whole Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
}

/// A send as it is read. The fields that servers add are ignored, so that what a server listed can be posted as it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PostedMessage<'a> {
    sender: String,
    recipient: String,
    text: String,
    /// Read only if it counts.
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    id: Option<Uuid>,
    timestamp_from: Option<TimestampSource>,
    #[serde(rename = "accepted_at")]
    _accepted_at: Option<IgnoredAny>,
    #[serde(rename = "origin")]
    _origin: Option<IgnoredAny>,
    #[serde(rename = "seq")]
    _seq: Option<IgnoredAny>,
    #[serde(rename = "account")]
    _account: Option<IgnoredAny>,
    #[serde(rename = "durable_on")]
    _durable_on: Option<IgnoredAny>,
    #[serde(rename = "duplicate")]
    _duplicate: Option<IgnoredAny>,
}

/// Who gave the timestamp that is shown, if it was not the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestampSource {
    /// The sender gave no timestamp; the second of acceptance is shown in its place.
    Server,
}

impl<'de> Deserialize<'de> for TimestampSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match &*Cow::<str>::deserialize(deserializer)? {
            "server" => Ok(TimestampSource::Server),
            _ => Err(D::Error::custom("`timestamp_from` is not `server`")),
        }
    }
}

impl TryFrom<PostedMessage<'_>> for SendRequest {
    type Error = serde_json::Error;

    fn try_from(posted: PostedMessage<'_>) -> Result<Self, serde_json::Error> {
        let PostedMessage { sender, recipient, text, timestamp, id, timestamp_from, .. } = posted;
        let timestamp = timestamp.filter(|_| timestamp_from.is_none());
        let timestamp = timestamp.map(|value| serde_json::from_str(value.get())).transpose()?;
        Ok(SendRequest { sender, recipient, text, timestamp, id })
    }
}

impl SendRequest {
    /// Reads one JSON object; the limits of the fields are not checked yet.
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        Self::parse_named("body", body)
    }

    /// The same, with another noun for it in the explanation of an error.
    pub(super) fn parse_named(noun: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let detail = format!("the {noun} is not UTF-8: byte {} is wrong", e.valid_up_to());
            Problem::new(ErrorCode::InvalidJson, detail)
        })?;
        // A derived reader takes an array of as many values for an object.
        let is_object = text.trim_ascii_start().starts_with('{');
        let posted = if is_object {
            serde_json::from_str::<PostedMessage<'_>>(text)
        } else {
            Err(serde_json::Error::custom("no object"))
        };
        posted.and_then(Self::try_from).map_err(|e| explain_invalid::explain(noun, text, &e))
    }

    /// The checked message, with its own id, else `default_id()`.
    pub fn into_message(self, default_id: impl FnOnce() -> Uuid) -> Result<Message, Problem> {
        let Self { sender, recipient, text, timestamp, id } = self;
        let id = id.unwrap_or_else(default_id);
        Message::new(UncheckedMessage { id, sender, recipient, text, timestamp })
            .map_err(|invalid| Problem::new(ErrorCode::InvalidMessage, invalid.to_string()))
    }
}

/// Reads the body of a single send. The id is the body's, else `key` (the `Idempotency-Key`), else a fresh one.
pub fn parse_send(body: &[u8], key: Option<Uuid>, fresh: impl FnOnce() -> Uuid) -> Result<Message, Problem> {
    let request = SendRequest::parse(body)?;
    if let (Some(id), Some(key)) = (request.id, key)
        && id != key
    {
        let detail = format!("`id` is {id}, but the header Idempotency-Key says {key}");
        return Err(Problem::new(ErrorCode::InvalidMessage, detail));
    }
    request.into_message(|| key.unwrap_or_else(fresh))
}

/// Reads the value of an `Idempotency-Key` header: a UUID, quoted or not.
pub fn parse_key(value: &[u8]) -> Result<Uuid, Problem> {
    let text = value.trim_ascii();
    let text = text.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(text);
    Uuid::try_parse_ascii(text).map_err(|_| {
        Problem::new(ErrorCode::InvalidMessage, "the header Idempotency-Key is not a UUID (quoted or not)")
    })
}

/// Whether the body of a single send has an id. For the proxy, which forwards bodies unchecked: false for a body that
/// cannot be parsed.
pub fn names_id(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct OnlyId {
        id: Option<IgnoredAny>,
    }
    serde_json::from_slice::<OnlyId>(body).is_ok_and(|body| body.id.is_some())
}

/// A stored message as it is listed: in JSON these fields, in this order. A client reads it with texts of its own; a
/// server writes it as a [`MessageView`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedMessage<T = String> {
    pub id: Uuid,
    pub sender: T,
    pub recipient: T,
    pub text: T,
    /// The sender's claim, else the second of acceptance.
    pub timestamp: u64,
    /// When the earliest copy was accepted.
    pub accepted_at: Time,
    /// The log that holds the earliest copy.
    pub origin: Uuid,
    pub seq: u64,
    /// Absent if the sender gave the timestamp. Posted again with this field, the message is a duplicate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp_from: Option<TimestampSource>,
}

const INFALLIBLE: &str = "strings and numbers are written to memory";

/// A stored message with borrowed texts.
pub type MessageView<'a> = ListedMessage<&'a str>;

impl MessageView<'_> {
    /// Appends the JSON object: the same bytes as serde's, but for line separators, in about 60 % of the time. A listing
    /// of everything is mostly this.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.reserve(320 + self.sender.len() + self.recipient.len() + self.text.len());
        let mut uuid_text = Uuid::encode_buffer();
        out.extend_from_slice(b"{\"id\":\"");
        out.extend_from_slice(self.id.hyphenated().encode_lower(&mut uuid_text).as_bytes());
        out.push(b'"');
        for (key, value) in [
            (&b",\"sender\":"[..], self.sender),
            (b",\"recipient\":", self.recipient),
            (b",\"text\":", self.text),
        ] {
            out.extend_from_slice(key);
            json::write(value, out);
        }
        write!(out, ",\"timestamp\":{},\"accepted_at\":\"", self.timestamp).expect(INFALLIBLE);
        self.accepted_at.write(out);
        out.extend_from_slice(b"\",\"origin\":\"");
        out.extend_from_slice(self.origin.hyphenated().encode_lower(&mut uuid_text).as_bytes());
        write!(out, "\",\"seq\":{}", self.seq).expect(INFALLIBLE);
        if let Some(TimestampSource::Server) = self.timestamp_from {
            out.extend_from_slice(b",\"timestamp_from\":\"server\"");
        }
        out.push(b'}');
    }

    /// Appends the JSON object of a single message (`duplicate` absent) or of the answer to a send.
    pub fn write_answer_json(&self, durable_on: &[NodeId], duplicate: Option<bool>, out: &mut Vec<u8>) {
        self.write_json(out);
        out.pop(); // the closing brace
        out.extend_from_slice(b",\"durable_on\":");
        json::write(durable_on, out);
        if let Some(duplicate) = duplicate {
            write!(out, ",\"duplicate\":{duplicate}").expect(INFALLIBLE);
        }
        out.push(b'}');
    }
}

/// The answer to a send, or a single message, as a client reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendAnswer {
    #[serde(flatten)]
    pub message: ListedMessage,
    /// The nodes known to have it on disk.
    #[serde(default)]
    pub durable_on: Vec<NodeId>,
    /// The message was stored already.
    #[serde(default)]
    pub duplicate: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: Uuid = Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0001);
    const KEY: Uuid = Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0002);

    /// Parses with `KEY` as the key, and a message's id or the code and a part of the detail as the wish.
    #[track_caller]
    fn check(body: &str, key: Option<Uuid>, want: Result<Uuid, (ErrorCode, &str)>) {
        let got = parse_send(body.as_bytes(), key, || ID).map(|message| message.fields().id);
        match want {
            Ok(id) => assert_eq!(got, Ok(id)),
            Err((code, part)) => {
                let problem = got.expect_err("refused");
                assert_eq!(problem.code, code, "{problem}");
                assert!(problem.detail.contains(part), "{:?} lacks {part:?}", problem.detail);
            }
        }
    }

    #[test]
    fn the_id_is_the_bodys_else_the_keys_else_fresh() {
        let plain = r#"{"sender":"a","recipient":"b","text":"c"}"#;
        let with_id = format!(r#"{{"sender":"a","recipient":"b","text":"c","id":"{KEY}"}}"#);
        check(plain, None, Ok(ID));
        check(plain, Some(KEY), Ok(KEY));
        check(&with_id, None, Ok(KEY));
        check(&with_id, Some(KEY), Ok(KEY));
        check(&with_id, Some(ID), Err((ErrorCode::InvalidMessage, "Idempotency-Key says")));
        assert!(names_id(with_id.as_bytes()) && !names_id(plain.as_bytes()) && !names_id(b"[1"));
    }

    #[test]
    fn a_key_may_be_quoted() {
        for text in [KEY.to_string(), format!("\"{KEY}\""), KEY.simple().to_string().to_uppercase()] {
            assert_eq!(parse_key(text.as_bytes()), Ok(KEY));
        }
        for text in ["", "\"", "17", "\"0199"] {
            assert_eq!(parse_key(text.as_bytes()).expect_err("refused").code, ErrorCode::InvalidMessage);
        }
    }

    #[test]
    fn limits_of_the_fields_are_refused_with_their_name() {
        let body = |text: &str, time: &str| {
            format!(r#"{{"sender":"a","recipient":"b","text":"{text}","timestamp":{time}}}"#)
        };
        check(&body("", "1"), None, Err((ErrorCode::InvalidMessage, "`text` must not be empty")));
        check(&body("x", "1697913600000"), None, Err((ErrorCode::InvalidMessage, "looks like milliseconds")));
        check(&body("x", "null"), None, Ok(ID));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_not_json() {
        let problem = parse_send(b"{\"sender\":\"\xff\"}", None, || ID).expect_err("refused");
        assert_eq!(problem.code, ErrorCode::InvalidJson);
    }

    /// The sender of a message with an odd number gave a timestamp.
    fn view<'a>(sender: &'a str, text: &'a str, n: u64) -> MessageView<'a> {
        let accepted_at = Time(n);
        MessageView {
            id: ID,
            sender,
            recipient: "#ops",
            text,
            timestamp: n,
            accepted_at,
            origin: KEY,
            seq: n,
            timestamp_from: n.is_multiple_of(2).then_some(TimestampSource::Server),
        }
    }

    #[test]
    fn a_listed_message_has_the_fields_of_the_contract_in_order() {
        let mut out = Vec::new();
        view("user1", "Hello", 1_697_913_600).write_json(&mut out);
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            r##"{"id":"01990000-0000-7000-8000-000000000001","sender":"user1","recipient":"#ops","text":"Hello","timestamp":1697913600,"accepted_at":"1970-01-20T15:38:33.600Z","origin":"01990000-0000-7000-8000-000000000002","seq":1697913600,"timestamp_from":"server"}"##
        );
    }

    #[test]
    fn an_answer_names_the_copies_and_is_read_back() {
        let mut out = Vec::new();
        view("a", "b", 3).write_answer_json(&[2, 0], Some(true), &mut out);
        assert!(out.ends_with(br#""seq":3,"durable_on":[2,0],"duplicate":true}"#));
        let sent: SendAnswer = serde_json::from_slice(&out).expect("parses");
        assert_eq!((sent.message.seq, sent.durable_on, sent.duplicate), (3, vec![2, 0], true));
        out.clear();
        view("a", "b", 4).write_answer_json(&[1], Some(false), &mut out);
        assert!(out.ends_with(br#""seq":4,"timestamp_from":"server","durable_on":[1],"duplicate":false}"#));
        let sent: SendAnswer = serde_json::from_slice(&out).expect("parses");
        assert_eq!(sent.message.timestamp_from, Some(TimestampSource::Server));
    }

    #[test]
    fn line_separators_are_written_as_escapes() {
        let mut out = Vec::new();
        view("\u{2028}a", "1\u{85}2\u{2028}3\u{2029}4\u{84}\u{2027}\u{e2}\"\n", 3).write_json(&mut out);
        let json = String::from_utf8(out).expect("UTF-8");
        assert!(json.contains(r#""sender":"\u2028a""#), "{json}");
        assert!(json.contains("\"1\\u00852\\u20283\\u20294\u{84}\u{2027}\u{e2}\\\"\\n\""), "{json}");
    }

    #[test]
    fn the_fields_that_servers_add_are_ignored() {
        let added = r#""accepted_at":"2024-01-01T00:00:00.000Z","origin":"x","seq":17,"account":null,"durable_on":[0],"duplicate":true"#;
        let sent = |more: &str| {
            let body = format!(r#"{{"sender":"a","recipient":"b","text":"c","timestamp":5,{added}{more}}}"#);
            parse_send(body.as_bytes(), None, || ID).map(|message| message.fields().timestamp)
        };
        assert_eq!(sent(""), Ok(Some(5)));
        assert_eq!(sent(r#","timestamp_from":null"#), Ok(Some(5)));
        assert_eq!(sent(r#","timestamp_from":"server""#), Ok(None));
        for ignored in
            [r#""x""#, "-1", "1.5", "1e9", "99999999999999999999999", "9999999999999", "[]", "null"]
        {
            let body = format!(
                r#"{{"sender":"a","timestamp":{ignored},"timestamp_from":"server","recipient":"b","text":"c","id":null}}"#
            );
            let sent = parse_send(body.as_bytes(), None, || ID).map(|message| message.fields().timestamp);
            assert_eq!(sent, Ok(None), "{ignored}");
            let problem = SendRequest::parse(body.replace("null}", "7}").as_bytes()).expect_err("the id");
            assert!(problem.detail.contains("`id`"), "{problem}");
        }
        for (more, part) in [
            (r#","timestamp_from":"me""#, "`timestamp_from` is `me`, not `server`"),
            (r#","timestamp_from":1"#, "`timestamp_from` must be a string, not a number"),
            (r#","seq":1"#, "`seq` is given twice"),
            (r#","Seq":1"#, "`Seq` is unknown"),
        ] {
            let problem = sent(more).expect_err("refused");
            assert_eq!(problem.code, ErrorCode::InvalidMessage, "{problem}");
            assert!(problem.detail.contains(part), "{problem}");
        }
    }

    proptest! {
        #[test]
        fn fast_bytes_equal_serdes(sender in ".*", text in "\\PC*|.*", n: u64) {
            let view = view(&sender, &text, n);
            let mut out = Vec::new();
            view.write_json(&mut out);
            let plain = serde_json::to_string(&view).expect("serializes");
            let escaped = plain.replace('\u{85}', "\\u0085").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
            prop_assert_eq!(std::str::from_utf8(&out), Ok(escaped.as_str()));
            let listed: ListedMessage = serde_json::from_slice(&out).expect("parses");
            prop_assert_eq!((listed.sender, listed.text), (sender, text));
        }
    }
}
