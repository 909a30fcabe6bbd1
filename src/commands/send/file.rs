//! `chatchain send --file`: a stream of lines into batches, one after the other.
//!
//! The next batch is read while the last is on its way, but only one is on its way: history shows messages in the
//! order in which they were accepted, and a file's order should survive. A file of any length needs the memory of
//! two batches (and of the ids that [`super::import`] made). Trouble that may pass is waited out; every attempt
//! brings the same ids.

use std::{fmt, io, path::Path, time::Duration};

use color_eyre::eyre::{Report, Result, WrapErr};
use serde::Serialize;
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::{
    STDIN, acked,
    import::{BATCH_LINES_MAX, Import, ImportBatch},
};
use crate::{
    api::{
        MESSAGE_BODY_BYTES_MAX,
        batch::{BatchAnswer, Rejected},
    },
    cli::OutputFormat,
    client::{ClientError, servers::Servers},
    commands::{Exit, last_writes::LastWrites},
    output::{Output, ProgressLine},
};

/// For trouble that may pass, such as a node that restarts, a batch is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// Of a longer line no more than this is kept: it is refused anyway.
const LINE_BYTES_MAX: usize = MESSAGE_BODY_BYTES_MAX + 1;

pub async fn run(
    path: &Path,
    acks: Option<&str>,
    servers: &Servers,
    memory: &LastWrites,
    output: &Output,
) -> Result<Exit> {
    let (source, length) = open(path).await.wrap_err_with(|| format!("cannot read {}", path.display()))?;
    let mut reader = LineReader { source: BufReader::new(source), import: Import::default() };
    let progress = output.progress(length);
    let mut transfer = Transfer { servers, acks, output, memory, progress, tally: Tally::default() };
    let outcome = transfer.run(&mut reader).await;
    let Transfer { progress, tally, .. } = transfer;
    drop(progress);
    let fresh = reader.import.fresh;
    if fresh > 0 {
        output.warn(&format!(
            "repeating is not safe for {} {}: with neither id nor timestamp a line becomes a second message",
            grouped(fresh),
            if fresh == 1 { "line" } else { "lines" }
        ));
    }
    let advice = if fresh > 0 { "" } else { "; sending the same again adds only what is missing" };
    outcome.wrap_err_with(|| format!("stopped after {tally}{advice}"))?;
    match output.format() {
        OutputFormat::Table => output.line(&tally.to_string())?,
        OutputFormat::Json | OutputFormat::Ndjson => output.json(&tally)?,
    }
    let exit = acked(tally.below_acks, output);
    Ok(if tally.rejected > 0 { Exit::Failure } else { exit })
}

/// A file or standard input, and its length if that is known.
async fn open(path: &Path) -> io::Result<(Box<dyn AsyncRead + Unpin + Send>, Option<u64>)> {
    if path == Path::new(STDIN) {
        return Ok((Box::new(tokio::io::stdin()), None));
    }
    let file = File::open(path).await?;
    let metadata = file.metadata().await?;
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// What became of the lines so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
struct Tally {
    sent: u64,
    accepted: u64,
    duplicates: u64,
    rejected: u64,
    #[serde(skip)]
    below_acks: bool,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [sent, accepted, duplicates, rejected] =
            [self.sent, self.accepted, self.duplicates, self.rejected].map(grouped);
        write!(f, "{sent} sent: {accepted} accepted, {duplicates} duplicates, {rejected} rejected")
    }
}

/// Lines on their way to the servers.
struct Transfer<'a> {
    servers: &'a Servers,
    acks: Option<&'a str>,
    output: &'a Output,
    memory: &'a LastWrites,
    progress: ProgressLine,
    tally: Tally,
}

impl Transfer<'_> {
    async fn run<R: AsyncRead + Unpin>(&mut self, reader: &mut LineReader<R>) -> Result<()> {
        let mut next = reader.next().await?;
        while let Some(FilePiece { batch, mut refused, bytes }) = next {
            let deliver = async { self.deliver(batch).await.map_err(Report::from) };
            let (mut delivered, following) = tokio::try_join!(deliver, reader.next())?;
            refused.append(&mut delivered.refused);
            self.count(&delivered, refused, bytes);
            next = following;
        }
        Ok(())
    }

    /// Sends a batch, and again those of its lines that may still be taken, until patience ends.
    async fn deliver(&self, mut batch: ImportBatch) -> Result<Delivered, ClientError> {
        let mut delivered = Delivered::default();
        let patient_until = Instant::now() + PATIENCE;
        while !batch.lines.is_empty() {
            // Its lines have ids, so the key of the batch is never used.
            let answer = self.servers.send_batch(batch.body.clone().into(), Uuid::nil(), self.acks).await;
            let patient = Instant::now() < patient_until;
            match answer {
                Ok(acked) => {
                    delivered.below_acks |= acked.below_acks;
                    if let Some(position) = &acked.position {
                        self.memory.add(position).await;
                    }
                    batch = delivered.settle(&batch, acked.answer, patient);
                }
                // If nobody is there at the very start, nobody wants to wait for it.
                Err(error) if !patient || !error.retryable() || self.tally.sent == 0 => return Err(error),
                Err(error) => self.progress.pause(|| self.output.note(&format!("trying again: {error}"))),
            }
            if !batch.lines.is_empty() {
                sleep(PAUSE).await;
            }
        }
        Ok(delivered)
    }

    fn count(&mut self, delivered: &Delivered, mut refused: Vec<Rejected>, bytes: u64) {
        if !refused.is_empty() {
            refused.sort_by_key(|rejected| rejected.line);
            self.progress.pause(|| {
                for Rejected { line, code, detail, .. } in &refused {
                    self.output.warn(&format!("line {line} is rejected: {detail} ({code})"));
                }
            });
        }
        let rejected = u64::try_from(refused.len()).expect("a batch is small");
        self.tally.accepted += delivered.accepted;
        self.tally.duplicates += delivered.duplicates;
        self.tally.rejected += rejected;
        self.tally.sent += delivered.accepted + delivered.duplicates + rejected;
        self.tally.below_acks |= delivered.below_acks;
        self.progress.advance(bytes, format!("{} lines", grouped(self.tally.sent)));
    }
}

/// What became of one batch.
#[derive(Debug, Default)]
struct Delivered {
    accepted: u64,
    duplicates: u64,
    /// With their line numbers in the file.
    refused: Vec<Rejected>,
    below_acks: bool,
}

impl Delivered {
    /// Takes in an answer. Gives what is worth another attempt.
    fn settle(&mut self, batch: &ImportBatch, answer: BatchAnswer, patient: bool) -> ImportBatch {
        self.accepted += answer.accepted;
        self.duplicates += answer.duplicates;
        let mut again = Vec::new();
        for mut rejected in answer.rejected {
            rejected.line = batch.file_line(&rejected).unwrap_or(rejected.line);
            if rejected.retryable && patient {
                again.push(rejected.line);
            } else {
                self.refused.push(rejected);
            }
        }
        batch.only(&again)
    }
}

/// Reads lines and makes batches of them.
struct LineReader<R> {
    source: BufReader<R>,
    import: Import,
}

/// Some lines of the file.
#[derive(Debug, Default)]
struct FilePiece {
    batch: ImportBatch,
    /// What was no message.
    refused: Vec<Rejected>,
    /// How long it was in the file.
    bytes: u64,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    /// The next piece; none at the end of the file.
    async fn next(&mut self) -> Result<Option<FilePiece>> {
        let mut piece = FilePiece::default();
        let mut line = Vec::new();
        while !piece.batch.is_full() && piece.refused.len() < BATCH_LINES_MAX {
            let bytes = self.line(&mut line).await.wrap_err("cannot read on")?;
            if bytes == 0 {
                break;
            }
            piece.bytes += bytes;
            let added = self.import.add(&line, &mut piece.batch, Uuid::now_v7);
            piece.refused.extend(added.err());
        }
        Ok((piece.bytes > 0).then_some(piece))
    }

    /// Reads one line, of which a part is enough if it is too long. Gives its true length, 0 at the end.
    async fn line(&mut self, line: &mut Vec<u8>) -> io::Result<u64> {
        line.clear();
        let mut bytes = 0;
        loop {
            let buffer = self.source.fill_buf().await?;
            let end = buffer.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
            let taken = end.unwrap_or(buffer.len());
            let kept = taken.min(LINE_BYTES_MAX.saturating_sub(line.len()));
            line.extend_from_slice(&buffer[..kept]);
            self.source.consume(taken);
            bytes += u64::try_from(taken).expect("a buffer is small");
            if end.is_some() || taken == 0 {
                return Ok(bytes);
            }
        }
    }
}

/// `303895` as `303,895`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits"));
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::{ErrorCode, Problem};

    fn reader(text: &str) -> LineReader<&[u8]> {
        LineReader { source: BufReader::with_capacity(16, text.as_bytes()), import: Import::default() }
    }

    const MESSAGE: &str = r#"{"sender":"a","recipient":"b","text":"c","timestamp":1}"#;

    #[tokio::test]
    async fn a_file_becomes_pieces_that_together_are_all_of_it() {
        let long = "x".repeat(2 * LINE_BYTES_MAX);
        let text = format!("{}{long}\n{{\n\n{MESSAGE}", format!("{MESSAGE}\n").repeat(BATCH_LINES_MAX));
        let mut reader = reader(&text);
        let first = reader.next().await.expect("read").expect("a piece");
        assert_eq!((first.batch.lines.len(), first.refused.len()), (BATCH_LINES_MAX, 0));
        let second = reader.next().await.expect("read").expect("a piece");
        let refused: Vec<_> = second.refused.iter().map(|rejected| (rejected.line, rejected.code)).collect();
        assert_eq!(refused, [(1001, ErrorCode::TooLarge), (1002, ErrorCode::InvalidJson)]);
        assert_eq!(second.batch.lines, [1004]);
        assert_eq!(first.bytes + second.bytes, text.len() as u64);
        assert!(reader.next().await.expect("read").is_none());
    }

    #[tokio::test]
    async fn only_lines_that_may_be_taken_later_are_sent_again() {
        let piece = reader(&format!("\n{MESSAGE}\n{MESSAGE}\n{MESSAGE}\n")).next().await;
        let batch = piece.expect("read").expect("a piece").batch;
        let rejected = |line, code| Rejected::new(line, Problem::new(code, "why"));
        let answer = BatchAnswer {
            accepted: 1,
            duplicates: 0,
            rejected: vec![rejected(2, ErrorCode::Overloaded), rejected(3, ErrorCode::IdConflict)],
        };
        let mut delivered = Delivered::default();
        assert_eq!(delivered.settle(&batch, answer.clone(), true).lines, [3]);
        assert_eq!(delivered.refused.iter().map(|r| r.line).collect::<Vec<_>>(), [4]);
        assert!(delivered.settle(&batch, answer, false).lines.is_empty());
        assert_eq!(delivered.refused.len(), 3);
    }

    #[test]
    fn counts_are_written_for_people() {
        let tally = Tally { sent: 303_895, accepted: 303_000, duplicates: 895, ..Tally::default() };
        assert_eq!(tally.to_string(), "303,895 sent: 303,000 accepted, 895 duplicates, 0 rejected");
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
