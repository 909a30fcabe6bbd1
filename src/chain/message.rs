//! Owns what a message is: its content, its limits, its bytes and its digest.
//!
//! A [`Message`] is exactly what the sender decided; nothing that a server adds is part of it. It cannot be built from
//! unchecked input: [`Message::new`] checks a client's input against the limits. [`Content`] is read from bytes that
//! some node has checked, so its limits are not checked again.
//!
//! Content bytes, version 1, big-endian:
//! `version u8 = 1 | id 16 | has timestamp u8 | timestamp u64 (if it has) | sender length u16, sender |
//! recipient length u16, recipient | text (the rest)`. A message is encoded in the oldest version that can
//! express it and digested as received, so these bytes never change for a given message.
//!
//! Version 2 has a block of further fields between recipient and text: `block length u16 | (tag u8 | length u16 |
//! bytes)*`, tags ascending, each once, at least one. This program reads it and skips all tags; no program writes it
//! yet.

use std::{borrow::Cow, fmt};

use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::{CodePointSetData, props::DefaultIgnorableCodePoint};
use uuid::Uuid;

use super::bytes::ByteReader;
use super::clock::Stamp;
use super::kind::EntryKind;

/// Text is 1 to this many bytes of UTF-8; longer text is refused with the field's name.
pub const TEXT_BYTES_MAX: usize = 16_384;
/// Sender and recipient are 1 to this many Unicode scalar values; longer names are refused.
pub const NAME_CHARS_MAX: usize = 64;
/// 9999-12-31T23:59:59Z, in seconds. Anything larger is refused: it is nearly always milliseconds.
pub const TIMESTAMP_MAX: u64 = 253_402_300_799;
/// The newest content version that this program can read. Newer content is kept and passed on, but not shown.
pub const CONTENT_VERSION: u8 = 2;

/// What a sender wrote, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UncheckedMessage {
    /// Chosen by the first program that touched the message.
    pub id: Uuid,
    pub sender: String,
    /// The recipient; by convention `#name` is a room.
    pub recipient: String,
    pub text: String,
    /// Whole Unix seconds, only if the sender gave them.
    pub timestamp: Option<u64>,
}

/// A checked message. Not an entry of a log: the same message may be in several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(UncheckedMessage);

/// Why input is not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {why}")]
pub struct InvalidMessage {
    pub field: &'static str,
    /// What is wrong with it, as the rest of a sentence.
    pub why: String,
}

/// Why content bytes cannot be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableContent {
    #[error("content version {0} is newer than this program")]
    Version(u8),
    /// Not the layout its version promises.
    #[error("content does not have the layout of its version")]
    Layout,
}

/// BLAKE3 of an entry's kind and content bytes. Together with the id it is a message's identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(kind: EntryKind, content: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[kind.byte()]).update(content);
        Digest(*hasher.finalize().as_bytes())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", blake3::Hash::from(self.0).to_hex())
    }
}

/// Folds case and form for comparison: to upper and then to lower case, letter by letter, so that ß equals SS and final
/// sigma equals sigma; then to composed form (NFC), so that é equals e with an accent. The form comes last, since a change
/// of case can leave a text that is not composed. In decomposed form, é would contain e.
pub fn fold(text: &str) -> String {
    let folded: String = text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect();
    match ComposingNormalizerBorrowed::new_nfc().normalize(&folded) {
        Cow::Borrowed(_) => folded,
        Cow::Owned(composed) => composed,
    }
}

/// Whether a character leaves no mark on a screen: white space, what Unicode calls default-ignorable, the marks of
/// interlinear annotation, and the Braille cell without dots.
fn is_invisible(c: char) -> bool {
    let ignorable = CodePointSetData::new::<DefaultIgnorableCodePoint>();
    c.is_whitespace() || ignorable.contains(c) || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{2800}')
}

impl Message {
    /// Checks input against the limits.
    pub fn new(draft: UncheckedMessage) -> Result<Self, InvalidMessage> {
        check_name("sender", &draft.sender)?;
        check_name("recipient", &draft.recipient)?;
        check_text(&draft.text)?;
        if let Some(timestamp) = draft.timestamp {
            check_timestamp(timestamp)?;
        }
        Ok(Message(draft))
    }

    pub fn fields(&self) -> &UncheckedMessage {
        &self.0
    }

    pub fn encode(&self) -> Vec<u8> {
        let UncheckedMessage { id, sender, recipient, text, timestamp } = &self.0;
        let mut out = Vec::with_capacity(32 + sender.len() + recipient.len() + text.len());
        out.push(1);
        out.extend_from_slice(id.as_bytes());
        out.push(u8::from(timestamp.is_some()));
        if let Some(timestamp) = timestamp {
            out.extend_from_slice(&timestamp.to_be_bytes());
        }
        for name in [sender, recipient] {
            let len = u16::try_from(name.len()).expect("a checked name has at most 64 characters");
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(name.as_bytes());
        }
        out.extend_from_slice(text.as_bytes());
        out
    }
}

/// A message as it is read from content bytes, borrowed from them. Readers are shown this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content<'a> {
    pub id: Uuid,
    pub sender: &'a str,
    pub recipient: &'a str,
    pub text: &'a str,
    /// The sender's timestamp, Unix seconds, if the sender gave one.
    pub timestamp: Option<u64>,
}

impl<'a> Content<'a> {
    /// Reads content bytes. Limits are not checked: what one node accepted, every node shows.
    pub fn decode(content: &'a [u8]) -> Result<Self, UnreadableContent> {
        let mut reader = ByteReader::new(content);
        match reader.u8() {
            Some(version @ 1..=CONTENT_VERSION) => {
                Self::decode_fields(reader, version).ok_or(UnreadableContent::Layout)
            }
            Some(newer) if newer > CONTENT_VERSION => Err(UnreadableContent::Version(newer)),
            _ => Err(UnreadableContent::Layout),
        }
    }

    fn decode_fields(mut reader: ByteReader<'a>, version: u8) -> Option<Self> {
        let id = Uuid::from_bytes(reader.array()?);
        let timestamp = match reader.u8()? {
            0 => None,
            // A larger one is no calendar date and could not be shown.
            1 => Some(reader.u64().filter(|seconds| *seconds <= TIMESTAMP_MAX)?),
            _ => return None,
        };
        let length = reader.u16()?;
        let sender = reader.str(length.into())?;
        let length = reader.u16()?;
        let recipient = reader.str(length.into())?;
        if version >= 2 {
            let length = reader.u16()?;
            skip_further_fields(reader.slice(length.into())?)?;
        }
        let text = reader.str(reader.rest().len())?;
        Some(Content { id, sender, recipient, text, timestamp })
    }

    /// The timestamp that readers are shown, in Unix seconds: the sender's, else the second of acceptance.
    pub fn shown_timestamp(&self, accepted: Stamp) -> u64 {
        self.timestamp.unwrap_or(accepted.ms() / 1000)
    }
}

/// Checks the layout of the block that version 2 adds. `None`: it is malformed, or empty, so that version 1 could
/// express the message.
fn skip_further_fields(block: &[u8]) -> Option<()> {
    let (mut reader, mut last) = (ByteReader::new(block), None);
    while !reader.is_empty() {
        let (tag, length) = (reader.u8()?, reader.u16()?);
        reader.slice(length.into())?;
        last.is_none_or(|last| tag > last).then_some(())?;
        last = Some(tag);
    }
    last.map(|_| ())
}

fn check_name(field: &'static str, name: &str) -> Result<(), InvalidMessage> {
    let invalid = |why: String| Err(InvalidMessage { field, why });
    if name.is_empty() {
        return invalid("must not be empty".into());
    }
    // Bytes first, so that the characters of a huge name are not counted.
    if name.len() > 4 * NAME_CHARS_MAX || name.chars().count() > NAME_CHARS_MAX {
        return invalid(format!("is longer than {NAME_CHARS_MAX} characters"));
    }
    if let Some(c) = name.chars().find(|c| c.is_control()) {
        return invalid(format!("contains the control character U+{:04X}", u32::from(c)));
    }
    if name.trim() != name {
        return invalid("starts or ends with white space".into());
    }
    if name.chars().all(is_invisible) {
        return invalid("has only invisible characters".into());
    }
    Ok(())
}

fn check_text(text: &str) -> Result<(), InvalidMessage> {
    let invalid = |why: String| Err(InvalidMessage { field: "text", why });
    if text.is_empty() {
        return invalid("must not be empty".into());
    }
    if text.len() > TEXT_BYTES_MAX {
        return invalid(format!("is {} bytes long; the limit is {TEXT_BYTES_MAX}", text.len()));
    }
    if text.contains('\0') {
        return invalid("contains the character U+0000".into());
    }
    Ok(())
}

fn check_timestamp(timestamp: u64) -> Result<(), InvalidMessage> {
    if timestamp > TIMESTAMP_MAX {
        let why = format!(
            "is {timestamp}, larger than {TIMESTAMP_MAX}: looks like milliseconds; give whole Unix seconds"
        );
        return Err(InvalidMessage { field: "timestamp", why });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draft() -> UncheckedMessage {
        UncheckedMessage {
            id: Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0001),
            sender: "user1".into(),
            recipient: "user2".into(),
            text: "Hello world!".into(),
            timestamp: Some(1_697_913_600),
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut UncheckedMessage), want: Result<(), &str>) {
        let mut draft = draft();
        change(&mut draft);
        let got = Message::new(draft).map(|_| ()).map_err(|e| e.to_string());
        match want {
            Ok(()) => assert_eq!(got, Ok(())),
            Err(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{got:?} lacks {part:?}"),
        }
    }

    #[test]
    fn a_name_shows_at_least_one_character() {
        for name in [
            "\u{200b}",
            "\u{2060}\u{feff}",
            "\u{3164}",
            "\u{ad}",
            "\u{fe0f}",
            "\u{2800}",
            "\u{e0041}",
            "\u{fff9}",
        ] {
            check(|draft| draft.sender = name.into(), Err("`sender` has only invisible characters"));
            check(|draft| draft.recipient = name.into(), Err("`recipient` has only invisible characters"));
            check(|draft| draft.sender = format!("{name}a{name}"), Ok(()));
        }
        check(|draft| draft.sender = "👩\u{200d}🚀".into(), Ok(()));
    }

    #[test]
    fn composed_and_decomposed_forms_fold_alike() {
        for (one, other) in [
            ("é", "e\u{301}"),
            ("É", "e\u{301}"),
            ("각", "\u{1100}\u{1161}\u{11a8}"),
            ("q\u{307}\u{323}", "q\u{323}\u{307}"),
        ] {
            assert_eq!(fold(one), fold(other));
        }
        assert_eq!(fold("Plain ASCII"), "plain ascii");
        assert!(!fold("cafe\u{301}").contains(&fold("cafe")));
    }

    #[test]
    fn limits_hold_to_the_letter() {
        check(|_| {}, Ok(()));
        check(|d| d.text = "x".repeat(TEXT_BYTES_MAX), Ok(()));
        check(|d| d.text = "x".repeat(TEXT_BYTES_MAX + 1), Err("`text` is 16385 bytes"));
        check(|d| d.text = String::new(), Err("`text` must not be empty"));
        check(|d| d.text = "a\0b".into(), Err("U+0000"));
        check(|d| d.text = "\u{1b}[31m\n\t".into(), Ok(()));
        check(|d| d.sender = "é".repeat(NAME_CHARS_MAX), Ok(()));
        check(|d| d.sender = "é".repeat(NAME_CHARS_MAX + 1), Err("`sender` is longer"));
        check(|d| d.recipient = "#ops".into(), Ok(()));
        check(|d| d.recipient = " x".into(), Err("`recipient` starts or ends"));
        check(|d| d.recipient = "a\u{7}".into(), Err("U+0007"));
        check(|d| d.recipient = String::new(), Err("`recipient` must not be empty"));
        check(|d| d.timestamp = Some(TIMESTAMP_MAX), Ok(()));
        check(|d| d.timestamp = Some(TIMESTAMP_MAX + 1), Err("looks like milliseconds"));
    }

    /// Frozen: content bytes of version 1. May be added to, never changed.
    #[test]
    fn content_version_1_is_frozen() {
        let content = Message::new(draft()).expect("valid").encode();
        assert_eq!(
            crate::chain::hex(&content),
            "0101990000000070008000000000000001010000000065341b00000575736572310005757365723248656c6c6f20776f726c6421"
        );
        assert_eq!(
            format!("{:?}", Digest::of(EntryKind::Message, &content)),
            "ed14f0238f316c29cf880a1c8dc0aee2b2953c675daabf436062e8aed6e3593b"
        );
    }

    /// Frozen: how content version 2 is read. `block` is what lies between recipient and text.
    #[test]
    fn content_version_2_is_read_without_its_further_fields() {
        let message = Message::new(draft()).expect("valid");
        let version_1 = message.encode();
        let text_at = version_1.len() - message.fields().text.len();
        let with_block = |block: &[u8]| {
            let length = u16::try_from(block.len()).expect("small").to_be_bytes();
            [&[2], &version_1[1..text_at], &length, block, &version_1[text_at..]].concat()
        };
        let plain = Content::decode(&version_1).expect("encoded just now");
        for block in [&[7, 0, 1, b'x'][..], &[1, 0, 0, 200, 0, 2, 0, 0]] {
            assert_eq!(Content::decode(&with_block(block)), Ok(plain));
        }
        let (empty, cut_off, not_ascending, twice): (&[u8], &[u8], &[u8], &[u8]) =
            (&[], &[7, 0, 2, b'x'], &[7, 0, 0, 6, 0, 0], &[7, 0, 0, 7, 0, 0]);
        for block in [empty, cut_off, not_ascending, twice] {
            assert_eq!(Content::decode(&with_block(block)), Err(UnreadableContent::Layout), "{block:?}");
        }
    }

    #[test]
    fn newer_and_broken_content_is_told_apart() {
        assert_eq!(Content::decode(&[3, 9, 9]), Err(UnreadableContent::Version(3)));
        assert_eq!(Content::decode(&[0, 9, 9]), Err(UnreadableContent::Layout));
        assert_eq!(Content::decode(&[]), Err(UnreadableContent::Layout));
        let content = Message::new(draft()).expect("valid").encode();
        assert_eq!(Content::decode(&content[..20]), Err(UnreadableContent::Layout));
    }

    proptest! {
        #[test]
        fn decode_gives_back_what_was_encoded(
            id: u128, sender in "[a-z]{1,64}", recipient in "#?\\w{1,60}", text in "[^\0]{1,200}",
            timestamp in proptest::option::of(0..=TIMESTAMP_MAX),
        ) {
            let message = Message::new(UncheckedMessage { id: Uuid::from_u128(id), sender, recipient, text, timestamp });
            if let Ok(message) = message {
                let content = message.encode();
                let read = Content::decode(&content).expect("encoded just now");
                let UncheckedMessage { id, sender, recipient, text, timestamp } = message.fields();
                prop_assert_eq!(read, Content { id: *id, sender, recipient, text, timestamp: *timestamp });
            }
        }
    }
}
