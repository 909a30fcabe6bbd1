//! `chatchain send --file`: sends a stream of lines in batches, one after the other.
//!
//! Only one batch is under way at a time, since history shows messages in the order in which they were accepted, and a
//! file should keep its order. The next batch is read meanwhile. A file of any length needs the memory of two batches,
//! and of the ids that [`super::import`] made. After an error that may pass, a batch is sent again with the same ids.

use std::{fmt, io, mem, path::Path, time::Duration};

use color_eyre::eyre::{Result, WrapErr};
use serde::Serialize;
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::{
    STDIN, exit_after_send,
    import::{Import, ImportBatch},
};
use crate::{
    api::{
        MESSAGE_BODY_BYTES_MAX,
        batch::{BatchAnswer, Rejected},
    },
    client::servers::Servers,
    commands::{Context, Exit, last_writes::LastWrites},
    output::{Output, ProgressBar},
};

/// How long a batch is sent again after an error that may pass, such as a node that restarts. After that the command
/// fails.
const RETRY_MAX: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Longer lines are cut to this: they are refused in any case.
const LINE_BYTES_MAX: usize = MESSAGE_BODY_BYTES_MAX + 1;

pub async fn run(path: &Path, acks: Option<&str>, context: &Context<'_>) -> Result<Exit> {
    let (servers, output) = (context.servers()?, context.output);
    let (source, length) = open(path).await.wrap_err_with(|| format!("cannot read {}", path.display()))?;
    let mut reader = LineReader { source: BufReader::new(source), import: Import::default() };
    let mut transfer = Transfer {
        servers: &servers,
        acks,
        output,
        last_writes: LastWrites::of(context.sources),
        progress: output.progress(length),
        tally: Tally::default(),
    };
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
    output.answer(&tally.to_string(), &tally).inspect_err(|_| output.warn(&tally.to_string()))?;
    let exit = exit_after_send(tally.below_acks, output);
    Ok(if tally.rejected > 0 { Exit::Failure } else { exit })
}

/// Opens a file or standard input, and returns its length if that is known.
async fn open(path: &Path) -> io::Result<(Box<dyn AsyncRead + Unpin + Send>, Option<u64>)> {
    if path == Path::new(STDIN) {
        return Ok((Box::new(tokio::io::stdin()), None));
    }
    let file = File::open(path).await?;
    let metadata = file.metadata().await?;
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
struct Tally {
    sent: u64,
    accepted: u64,
    duplicates: u64,
    rejected: u64,
    #[serde(skip)]
    below_acks: bool,
}

impl Tally {
    /// Adds an answer. Returns the lines that are worth another attempt; the others that were rejected go to `refused`,
    /// with their line numbers in the file.
    fn add(
        &mut self,
        batch: &ImportBatch,
        answer: BatchAnswer,
        may_retry: bool,
        refused: &mut Vec<Rejected>,
    ) -> ImportBatch {
        self.accepted += answer.accepted;
        self.duplicates += answer.duplicates;
        self.sent += answer.accepted + answer.duplicates;
        let mut again = Vec::new();
        for mut rejected in answer.rejected {
            rejected.line = batch.file_line(&rejected).unwrap_or(rejected.line);
            if rejected.retryable && may_retry {
                again.push(rejected.line);
            } else {
                refused.push(rejected);
            }
        }
        batch.only(&again)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [sent, accepted, duplicates, rejected] =
            [self.sent, self.accepted, self.duplicates, self.rejected].map(grouped);
        write!(f, "{sent} sent: {accepted} accepted, {duplicates} duplicates, {rejected} rejected")
    }
}

/// Sends batches to the servers and counts the results.
struct Transfer<'a> {
    servers: &'a Servers,
    acks: Option<&'a str>,
    output: &'a Output,
    last_writes: LastWrites,
    progress: ProgressBar,
    tally: Tally,
}

impl Transfer<'_> {
    async fn run<R: AsyncRead + Unpin>(&mut self, reader: &mut LineReader<R>) -> Result<()> {
        let mut next = reader.next().await?;
        while let Some(batch) = next {
            ((), next) = tokio::try_join!(self.send(batch), reader.next())?;
        }
        Ok(())
    }

    /// Sends a batch, and again those of its lines that a server may still accept, until the time for retries is over.
    /// Then prints the lines that are refused.
    async fn send(&mut self, mut batch: ImportBatch) -> Result<()> {
        let (bytes, mut refused) = (batch.bytes, mem::take(&mut batch.refused));
        let retry_until = Instant::now() + RETRY_MAX;
        while !batch.lines.is_empty() {
            // Its lines have ids, so the key of the batch is never used.
            let answer = self.servers.send_batch(batch.body.clone().into(), Uuid::nil(), self.acks).await;
            let may_retry = Instant::now() < retry_until;
            match answer {
                Ok(acked) => {
                    self.tally.below_acks |= acked.below_acks;
                    if let Some(position) = &acked.position {
                        self.last_writes.add(position).await;
                    }
                    batch = self.tally.add(&batch, acked.answer, may_retry, &mut refused);
                }
                // If no server answers the first batch, the user has named the wrong one, and would wait for nothing.
                Err(error) if !may_retry || !error.retryable() || self.tally.sent == 0 => {
                    return Err(error.into());
                }
                Err(error) => self.progress.suspend(|| self.output.note(&format!("trying again: {error}"))),
            }
            if !batch.lines.is_empty() {
                sleep(RETRY_PAUSE).await;
            }
        }
        refused.sort_by_key(|rejected| rejected.line);
        self.progress.suspend(|| {
            for Rejected { line, code, detail, .. } in &refused {
                self.output.warn(&format!("line {line} is rejected: {detail} ({code})"));
            }
        });
        let rejected = u64::try_from(refused.len()).expect("a batch is small");
        self.tally.rejected += rejected;
        self.tally.sent += rejected;
        self.progress.inc(bytes);
        self.progress.set_message(format!("{} lines", grouped(self.tally.sent)));
        Ok(())
    }
}

struct LineReader<R> {
    source: BufReader<R>,
    import: Import,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    async fn next(&mut self) -> Result<Option<ImportBatch>> {
        let mut batch = ImportBatch::default();
        let mut line = Vec::new();
        while !batch.is_full() {
            let bytes = self.line(&mut line).await.wrap_err("cannot read on")?;
            if bytes == 0 {
                break;
            }
            batch.bytes += bytes;
            self.import.add(&line, &mut batch, Uuid::now_v7);
        }
        Ok((batch.bytes > 0).then_some(batch))
    }

    /// Reads one line, cut to [`LINE_BYTES_MAX`]. Returns its full length, 0 at the end of the file.
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
    use crate::{
        api::error::{ErrorCode, Problem},
        commands::send::import::BATCH_LINES_MAX,
    };

    fn reader(text: &str) -> LineReader<&[u8]> {
        LineReader { source: BufReader::with_capacity(16, text.as_bytes()), import: Import::default() }
    }

    const MESSAGE: &str = r#"{"sender":"a","recipient":"b","text":"c","timestamp":1}"#;

    #[tokio::test]
    async fn the_batches_of_a_file_are_all_of_it() {
        let long = "x".repeat(2 * LINE_BYTES_MAX);
        let text = format!("{}{long}\n{{\n\n{MESSAGE}", format!("{MESSAGE}\n").repeat(BATCH_LINES_MAX));
        let mut reader = reader(&text);
        let first = reader.next().await.expect("read").expect("a batch");
        assert_eq!((first.lines.len(), first.refused.len()), (BATCH_LINES_MAX, 0));
        let second = reader.next().await.expect("read").expect("a batch");
        let refused: Vec<_> = second.refused.iter().map(|rejected| (rejected.line, rejected.code)).collect();
        assert_eq!(refused, [(1001, ErrorCode::TooLarge), (1002, ErrorCode::InvalidJson)]);
        assert_eq!(second.lines, [1004]);
        assert_eq!(first.bytes + second.bytes, text.len() as u64);
        assert!(reader.next().await.expect("read").is_none());
    }

    #[tokio::test]
    async fn only_retryable_lines_are_sent_again() {
        let batch = reader(&format!("\n{MESSAGE}\n{MESSAGE}\n{MESSAGE}\n")).next().await;
        let batch = batch.expect("read").expect("a batch");
        let rejected = |line, code| Rejected::new(line, Problem::new(code, "why"));
        let answer = BatchAnswer {
            accepted: 1,
            duplicates: 0,
            rejected: vec![rejected(2, ErrorCode::Overloaded), rejected(3, ErrorCode::IdConflict)],
        };
        let (mut tally, mut refused) = (Tally::default(), Vec::new());
        assert_eq!(tally.add(&batch, answer.clone(), true, &mut refused).lines, [3]);
        assert_eq!(refused.iter().map(|r| r.line).collect::<Vec<_>>(), [4]);
        assert!(tally.add(&batch, answer, false, &mut refused).lines.is_empty());
        assert_eq!(refused.len(), 3);
    }

    #[test]
    fn counts_are_written_for_people() {
        let tally = Tally { sent: 303_895, accepted: 303_000, duplicates: 895, ..Tally::default() };
        assert_eq!(tally.to_string(), "303,895 sent: 303,000 accepted, 895 duplicates, 0 rejected");
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
