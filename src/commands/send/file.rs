//! `chatchain send --file`: sends a stream of lines in batches, one after the other.
//!
//! Only one batch is under way at a time, since history shows messages in the order in which they were accepted, and a
//! file should keep its order. The next batch is read meanwhile. A file of any length needs the memory of two batches,
//! and of the ids that [`super::import`] made. After an error that may pass, a batch is sent again with the same ids.

use std::{collections::HashSet, fmt, mem, path::Path, time::Duration};

use color_eyre::eyre::{Result, WrapErr, eyre};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    exit_after_send,
    import::ImportBatch,
    line_reader::{LineReader, open},
};
use crate::{
    api::{
        batch::{BatchAnswer, Rejected},
        error::ErrorCode,
    },
    client::servers::Servers,
    commands::{Context, Exit, last_writes::LastWrites, serving::StopSignals},
    output::{Output, ProgressBar},
};

/// How long a batch is sent again after an error that may pass, such as a node that restarts. After that the command
/// fails.
const RETRY_MAX: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// A line is printed for each of the first reasons for which lines are rejected; the other lines are only counted.
const REASONS_MAX: usize = 10;

pub async fn run(path: &Path, acks: Option<&str>, context: &Context<'_>) -> Result<Exit> {
    let (servers, output) = (context.servers()?, context.output);
    let (source, length) = open(path).await.wrap_err_with(|| format!("cannot read {}", path.display()))?;
    let mut signals = StopSignals::catch()?;
    let stop = CancellationToken::new();
    let mut reader = LineReader::new(source, stop.clone());
    let mut transfer = Transfer {
        servers: &servers,
        acks,
        output,
        last_writes: context.last_writes()?,
        progress: output.progress(length),
        tally: Tally::default(),
        reasons: HashSet::new(),
        not_printed: 0,
        unanswered: 0,
    };
    let outcome = transfer.run_until_signal(&mut reader, &mut signals, &stop).await;
    let Transfer { progress, tally, not_printed, unanswered, .. } = transfer;
    drop(progress);
    if not_printed > 0 {
        output.warn(&format!("{} more lines are rejected, for reasons such as these", grouped(not_printed)));
    }
    let fresh = reader.import.fresh;
    if fresh > 0 {
        output.warn(&format!(
            "repeating is not safe for {} {}: with neither id nor timestamp a line becomes a second message",
            grouped(fresh),
            if fresh == 1 { "line" } else { "lines" }
        ));
    }
    let unanswered = match unanswered {
        0 => String::new(),
        count => format!(" ({count} more may be stored)", count = grouped(count as u64)),
    };
    let is_begun = tally.sent > 0 || !unanswered.is_empty();
    let advice =
        if fresh > 0 || !is_begun { "" } else { "; sending the same again adds only what is missing" };
    outcome.wrap_err_with(|| format!("stopped after {tally}{unanswered}{advice}"))?;
    output.answer(&tally.to_string(), &tally).inspect_err(|_| output.warn(&tally.to_string()))?;
    let exit = exit_after_send(tally.below_acks, output);
    Ok(if tally.rejected > 0 { Exit::Failure } else { exit })
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
    /// The reasons for which lines were rejected and that were printed.
    reasons: HashSet<(ErrorCode, String)>,
    /// Rejected lines that were not printed, since they repeat a reason or give one too many.
    not_printed: u64,
    /// Lines that were sent at least once and have no answer.
    unanswered: usize,
}

impl Transfer<'_> {
    /// Runs to the end of the file. The first signal ends the file where it is read; a second one ends the command.
    async fn run_until_signal(
        &mut self,
        reader: &mut LineReader,
        signals: &mut StopSignals,
        stop: &CancellationToken,
    ) -> Result<()> {
        {
            let running = self.run(reader);
            tokio::pin!(running);
            loop {
                tokio::select! {
                    ended = &mut running => break ended?,
                    () = signals.next() => {
                        if stop.is_cancelled() {
                            return Err(eyre!("a second signal came"));
                        }
                        stop.cancel();
                    }
                }
            }
        }
        match reader.last_line_before_stop() {
            Some(line) => Err(eyre!("a signal came after line {}", grouped(line))),
            None => Ok(()),
        }
    }

    async fn run(&mut self, reader: &mut LineReader) -> Result<()> {
        let mut next = reader.next().await;
        while let Some(batch) = next? {
            // A fault of the source must not end the send that is under way.
            let reading = async { Ok(reader.next().await) };
            ((), next) = tokio::try_join!(self.send(batch), reading)?;
        }
        Ok(())
    }

    /// Sends a batch, and again those of its lines that a server may still accept, until the time for retries is over.
    /// Then prints the lines that are refused.
    async fn send(&mut self, mut batch: ImportBatch) -> Result<()> {
        let (bytes, mut refused) = (batch.bytes, mem::take(&mut batch.refused));
        self.unanswered = batch.lines.len();
        let (mut may_be_stored, mut said) = (false, String::new());
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
                    self.unanswered = batch.lines.len();
                    may_be_stored = false;
                }
                // If no server answers the first batch, the user has named the wrong one, and would wait for nothing.
                Err(error) if !may_retry || !error.retryable() || self.tally.sent == 0 => {
                    if error.surely_not_stored() && !may_be_stored {
                        self.unanswered = 0;
                    }
                    return Err(error.into());
                }
                Err(error) => {
                    may_be_stored |= !error.surely_not_stored();
                    let note = format!("trying again: {error}");
                    if said != note {
                        self.progress.suspend(|| self.output.note(&note));
                        said = note;
                    }
                }
            }
            if !batch.lines.is_empty() {
                sleep(RETRY_PAUSE).await;
            }
        }
        refused.sort_by_key(|rejected| rejected.line);
        for rejected in &refused {
            self.print_rejected(rejected);
        }
        let rejected = u64::try_from(refused.len()).expect("a batch is small");
        self.tally.rejected += rejected;
        self.tally.sent += rejected;
        self.progress.inc(bytes);
        self.progress.set_message(format!("{} lines", grouped(self.tally.sent)));
        Ok(())
    }

    fn print_rejected(&mut self, rejected: &Rejected) {
        let Rejected { line, code, detail, .. } = rejected;
        if self.reasons.len() < REASONS_MAX && self.reasons.insert(reason(rejected)) {
            let (output, why) = (self.output, format!("line {line} is rejected: {detail} ({code})"));
            self.progress.suspend(|| output.warn(&why));
        } else {
            self.not_printed += 1;
        }
    }
}

/// What lines have in common that are rejected for one mistake.
fn reason(Rejected { code, detail, .. }: &Rejected) -> (ErrorCode, String) {
    // The same mistake is at another column in each line.
    (*code, detail.split(" at column ").next().unwrap_or_default().to_owned())
}

/// `303895` as `303,895`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits"));
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::api::{batch::parse_line, error::Problem};

    const MESSAGE: &str = r#"{"sender":"a","recipient":"b","text":"c","timestamp":1}"#;

    #[tokio::test]
    async fn only_retryable_lines_are_sent_again() {
        let text = format!("\n{MESSAGE}\n{MESSAGE}\n{MESSAGE}\n");
        let mut reader = LineReader::new(Box::new(io::Cursor::new(text)), CancellationToken::new());
        let batch = reader.next().await.expect("read").expect("a batch");
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
    fn mistakes_of_one_kind_are_one_reason() {
        let of = |line: &[u8]| reason(&Rejected::new(1, parse_line(line).expect_err("refused")));
        assert_eq!(of(br#"{"a":}"#), of(br#"{"abc":}"#));
        assert_ne!(of(br#"{"a":}"#), of(br#"{"a""#));
    }

    #[test]
    fn counts_are_written_for_people() {
        let tally = Tally { sent: 303_895, accepted: 303_000, duplicates: 895, ..Tally::default() };
        assert_eq!(tally.to_string(), "303,895 sent: 303,000 accepted, 895 duplicates, 0 rejected");
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
