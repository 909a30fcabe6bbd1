//! The pure part of `send --file`: from the lines of a file to batches that can be sent again without a second message.
//!
//! Every message has its id before the first attempt. A line's own id stays. A line without id but with a timestamp
//! gets an id made from its content and from how often that content came before in the file, so importing a file again
//! adds nothing. A line with neither could be a second message with the same text, so it gets a fresh id.
//!
//! Memory: one batch, and about 40 bytes per line whose id is made from its content.

use std::collections::HashMap;

use uuid::{Uuid, uuid};

use crate::api::{
    batch::{Rejected, parse_line, without_byte_order_mark},
    error::Problem,
    message::SendRequest,
};

/// Namespace of the ids made from content. It never changes.
const NAMESPACE: Uuid = uuid!("eb49b43d-1c03-4f21-a595-3b1961b0d59f");
/// A batch with this many lines is sent; with more lines its answer would only take longer.
pub const BATCH_LINES_MAX: usize = 1_000;
/// A batch of at least this length is sent.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Lines of the file that follow each other: those that are ready to be sent, each with its id, and those that are
/// refused.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ImportBatch {
    /// NDJSON.
    pub body: Vec<u8>,
    /// The line number in the file of each line of the body.
    pub lines: Vec<u64>,
    /// Lines that are no messages, with the errors that a server would answer.
    pub refused: Vec<Rejected>,
    /// Length of all these lines in the file.
    pub bytes: u64,
}

impl ImportBatch {
    pub fn is_full(&self) -> bool {
        self.lines.len().max(self.refused.len()) >= BATCH_LINES_MAX || self.body.len() >= BATCH_BYTES_MAX
    }

    /// The line number in the file for a line number of the batch, which is what a server names.
    pub fn file_line(&self, rejected: &Rejected) -> Option<u64> {
        let index = usize::try_from(rejected.line).ok()?.checked_sub(1)?;
        self.lines.get(index).copied()
    }

    pub fn only(&self, wanted: &[u64]) -> ImportBatch {
        let mut part = ImportBatch::default();
        for (line, text) in self.lines.iter().zip(self.body.split_inclusive(|byte| *byte == b'\n')) {
            if wanted.contains(line) {
                part.lines.push(*line);
                part.body.extend_from_slice(text);
            }
        }
        part
    }
}

/// Reads lines, gives them ids, and forms batches.
#[derive(Debug, Default)]
pub struct Import {
    /// Lines read so far, empty lines included.
    pub line: u64,
    /// Lines read so far that are not empty.
    pub messages: u64,
    /// Messages with a fresh id: importing the file again would make second messages of them.
    pub fresh: u64,
    /// How many lines so far had each content, by the id of the first of them.
    lines_by_content: HashMap<Uuid, u64>,
}

impl Import {
    pub fn add(&mut self, line: &[u8], batch: &mut ImportBatch, fresh: impl FnOnce() -> Uuid) {
        self.line += 1;
        let line = if self.line == 1 { without_byte_order_mark(line) } else { line };
        let line = line.trim_ascii();
        if line.is_empty() {
            return;
        }
        self.messages += 1;
        match self.read(line, fresh) {
            Ok(message) => {
                serde_json::to_writer(&mut batch.body, &message).expect("a message serializes");
                batch.body.push(b'\n');
                batch.lines.push(self.line);
            }
            Err(problem) => batch.refused.push(Rejected::new(self.line, problem)),
        }
    }

    fn read(&mut self, line: &[u8], fresh: impl FnOnce() -> Uuid) -> Result<SendRequest, Problem> {
        let mut request = parse_line(line)?;
        // Checked before an id is made: a refused line must not count as a repetition.
        request.clone().into_message(Uuid::nil)?;
        request.id = Some(match (request.id, request.timestamp) {
            (Some(id), _) => id,
            (None, Some(timestamp)) => self.content_id(timestamp, &request),
            (None, None) => {
                self.fresh += 1;
                fresh()
            }
        });
        Ok(request)
    }

    /// UUID version 5 of [`NAMESPACE`] and the name
    /// `timestamp u64 | sender length u32, sender | recipient length u32, recipient | text length u32, text | repetition u64`,
    /// with big-endian numbers. This must never change.
    fn content_id(&mut self, timestamp: u64, request: &SendRequest) -> Uuid {
        let mut name = timestamp.to_be_bytes().to_vec();
        for field in [&request.sender, &request.recipient, &request.text] {
            let len = u32::try_from(field.len()).expect("a checked field is short");
            name.extend_from_slice(&len.to_be_bytes());
            name.extend_from_slice(field.as_bytes());
        }
        let id = |repetition: u64| {
            Uuid::new_v5(&NAMESPACE, &[name.as_slice(), repetition.to_be_bytes().as_slice()].concat())
        };
        let lines = self.lines_by_content.entry(id(0)).or_default();
        *lines += 1;
        id(*lines - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{MESSAGE_BODY_BYTES_MAX, error::ErrorCode};

    const FRESH: Uuid = Uuid::from_u128(7);

    /// Imports a file and returns the batch, the refused lines and the number of fresh ids.
    fn import(file: &str) -> (ImportBatch, Vec<(u64, ErrorCode)>, u64) {
        let (mut import, mut batch) = (Import::default(), ImportBatch::default());
        for line in file.split('\n') {
            import.add(line.as_bytes(), &mut batch, || FRESH);
        }
        let refused = batch.refused.iter().map(|rejected| (rejected.line, rejected.code)).collect();
        (batch, refused, import.fresh)
    }

    fn ids(batch: &ImportBatch) -> Vec<String> {
        let lines = batch.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| SendRequest::parse(line).expect("valid").id.expect("it has one").to_string())
            .collect()
    }

    fn message(text: &str, timestamp: u64) -> String {
        format!(r##"{{"sender":"user1","recipient":"#zig","text":"{text}","timestamp":{timestamp}}}"##)
    }

    /// Frozen: a file imported with any version must have the same ids. May be added to, never changed.
    #[test]
    fn ids_made_from_content_are_frozen() {
        let file = [message("hi", 1), message("hi", 2), message("hi", 1), message("hi", 1)].join("\n");
        assert_eq!(ids(&import(&file).0), FROZEN);
    }

    const FROZEN: [&str; 4] = [
        "d0909ac4-9f97-5b4c-9867-bcfd18f49aee",
        "21f8eb4f-972a-5f68-85cd-c58247194493",
        "f4efe897-ce06-5347-83c1-efac9bfa2d1c",
        "af11308b-2e40-5158-ba88-4b657a501314",
    ];

    #[test]
    fn importing_again_makes_the_same_batches() {
        let file = [message("a", 1), message("a", 1), message("b", 1)].join("\n");
        let (first, second) = (import(&file).0, import(&file).0);
        assert_eq!(first, second);
        let mut ids = ids(&first);
        ids.dedup();
        assert_eq!(ids.len(), 3, "each is a message of its own");
    }

    #[test]
    fn a_byte_order_mark_is_skipped_at_the_start_only() {
        let line = format!("\u{feff}{}", message("a", 1));
        let (batch, refused, _) = import(&format!("{line}\n{line}"));
        assert_eq!((batch.lines, refused), (vec![1], vec![(2, ErrorCode::InvalidJson)]));
        assert_eq!(import("\u{feff}\n").1, []);
    }

    #[test]
    fn a_line_with_neither_id_nor_time_is_counted_as_fresh() {
        let (batch, refused, fresh) = import(
            "{\"sender\":\"a\",\"recipient\":\"b\",\"text\":\"c\"}\n{\"sender\":\"a\",\"recipient\":\"b\",\"text\":\"c\",\"id\":\"00000000-0000-0000-0000-000000000009\"}",
        );
        assert_eq!(ids(&batch), [FRESH, Uuid::from_u128(9)].map(|id| id.to_string()));
        assert_eq!((refused, fresh), (vec![], 1));
    }

    #[test]
    fn refused_lines_keep_their_number_in_the_file() {
        let long = "x".repeat(MESSAGE_BODY_BYTES_MAX + 1);
        let file = ["", "{", &message("a", 1), "  ", &message("", 1), &long, &message("b", 1)].join("\n");
        let (batch, refused, _) = import(&file);
        assert_eq!(batch.lines, [3, 7]);
        let codes = [(2, ErrorCode::InvalidJson), (5, ErrorCode::InvalidMessage), (6, ErrorCode::TooLarge)];
        assert_eq!(refused, codes);
        let rejected = Rejected::new(2, Problem::new(ErrorCode::IdConflict, ""));
        assert_eq!(batch.file_line(&rejected), Some(7));
        let part = batch.only(&[7]);
        assert_eq!((part.lines.as_slice(), ids(&part).as_slice()), ([7].as_slice(), &ids(&batch)[1..]));
    }
}
