//! Owns reading the lines of `send --file` and when a batch of them is complete. [`super::import`] knows what a line is.
//!
//! A batch is complete when it is full, when its first line has waited long enough (the source may be `tail -f`), at a
//! signal, and at the end. A line that is only partly read stays for the next batch; a signal drops it. A compressed
//! source is recognized by its first byte.

use std::{future::pending, io, mem, path::Path, time::Duration};

use async_compression::tokio::bufread::GzipDecoder;
use color_eyre::eyre::{Report, Result, bail};
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncRead, BufReader, empty},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    STDIN,
    import::{Import, ImportBatch},
};
use crate::api::{MESSAGE_BODY_BYTES_MAX, batch::without_byte_order_mark, error::ErrorCode};

/// A batch is sent at the latest this long after its first line was read.
const BATCH_WAIT_MAX: Duration = Duration::from_millis(150);
/// Longer lines are cut to this: they are refused in any case.
const LINE_BYTES_MAX: usize = MESSAGE_BODY_BYTES_MAX + 1;
/// If none of the first lines of a file is JSON, not even one that is refused, the rest is not read.
const PROBE_LINES: usize = 100;
/// The first byte of a gzip file (RFC 1952). JSON does not begin with it.
const GZIP_START: u8 = 0x1f;

/// How UTF-16 text begins: with a mark, or with an ASCII character, here those of JSON. UTF-8 has no byte 0.
/// Beside it: its name for iconv.
const UTF_16_STARTS: [([u8; 2], &str); 6] = [
    ([0xff, 0xfe], "utf-16"),
    ([0xfe, 0xff], "utf-16"),
    ([b'{', 0], "utf-16le"),
    ([0, b'{'], "utf-16be"),
    ([b'[', 0], "utf-16le"),
    ([0, b'['], "utf-16be"),
];

type LineSource = Box<dyn AsyncRead + Unpin + Send>;

/// Opens a file or standard input, and returns its length if that is known.
pub async fn open(path: &Path) -> io::Result<(LineSource, Option<u64>)> {
    if path == Path::new(STDIN) {
        return Ok((Box::new(tokio::io::stdin()), None));
    }
    let file = File::open(path).await?;
    let metadata = file.metadata().await?;
    let is_plain = metadata.is_file() && path.extension().is_none_or(|extension| extension != "gz");
    Ok((Box::new(file), is_plain.then_some(metadata.len())))
}

pub struct LineReader {
    source: BufReader<LineSource>,
    /// Whether the first byte of the source was looked at.
    is_begun: bool,
    /// What is read of the next line, cut to [`LINE_BYTES_MAX`].
    line: Vec<u8>,
    /// Length of that without the cut.
    line_bytes: u64,
    pub import: Import,
    stop: CancellationToken,
    is_stopped: bool,
    /// Why the source cannot be read on, once the lines before that are sent.
    fault: Option<Report>,
}

impl LineReader {
    /// Reads this source until its end or until `stop`.
    pub fn new(source: LineSource, stop: CancellationToken) -> Self {
        let source = BufReader::new(source);
        let import = Import::default();
        LineReader {
            source,
            is_begun: false,
            line: Vec::new(),
            line_bytes: 0,
            import,
            stop,
            is_stopped: false,
            fault: None,
        }
    }

    /// The last line that was read, if a signal ended the reading.
    pub fn last_line_before_stop(&self) -> Option<u64> {
        self.is_stopped.then_some(self.import.line)
    }

    /// Reads the next batch; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<ImportBatch>> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let mut batch = ImportBatch::default();
        let mut send_at = None;
        while !batch.is_full() && !self.is_stopped {
            let stop = self.stop.clone();
            let waited = async {
                match send_at {
                    Some(send_at) => sleep_until(send_at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                bytes = self.read_line() => {
                    let bytes = match bytes {
                        Ok(bytes) => bytes,
                        Err(error) => {
                            let after = format!("cannot read on after line {}", self.import.line);
                            self.fault = Some(Report::from(error).wrap_err(after));
                            break;
                        }
                    };
                    if bytes == 0 {
                        break;
                    }
                    batch.bytes += bytes;
                    let line = mem::take(&mut self.line);
                    self.check_start(&line)?;
                    self.import.add(&line, &mut batch, Uuid::now_v7);
                    self.check_shape(&batch)?;
                    send_at.get_or_insert_with(|| Instant::now() + BATCH_WAIT_MAX);
                }
                () = stop.cancelled() => self.is_stopped = true,
                () = waited => break,
            }
        }
        // A source that is read without a pause ends here.
        self.is_stopped |= batch.is_full() && self.stop.is_cancelled();
        if batch.bytes == 0
            && let Some(fault) = self.fault.take()
        {
            return Err(fault);
        }
        Ok((batch.bytes > 0).then_some(batch))
    }

    /// Reads until `line` is complete. Returns its full length, 0 at the end of the file. Nothing is lost if this future
    /// is dropped.
    async fn read_line(&mut self) -> io::Result<u64> {
        loop {
            let buffer = self.source.fill_buf().await?;
            if !mem::replace(&mut self.is_begun, true) && buffer.first() == Some(&GZIP_START) {
                self.decompress();
                continue;
            }
            let end = buffer.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
            let taken = end.unwrap_or(buffer.len());
            let kept = taken.min(LINE_BYTES_MAX.saturating_sub(self.line.len()));
            self.line.extend_from_slice(&buffer[..kept]);
            self.source.consume(taken);
            self.line_bytes += u64::try_from(taken).expect("a buffer is small");
            if end.is_some() || taken == 0 {
                return Ok(mem::take(&mut self.line_bytes));
            }
        }
    }

    /// From now on the source is decompressed. A gzip file may have several members.
    fn decompress(&mut self) {
        let compressed = mem::replace(&mut self.source, BufReader::new(Box::new(empty())));
        let mut decoder = GzipDecoder::new(compressed);
        decoder.multiple_members(true);
        self.source = BufReader::new(Box::new(decoder));
    }

    /// Refuses a source of another kind by its first line.
    fn check_start(&self, line: &[u8]) -> Result<()> {
        let utf_16 = UTF_16_STARTS.iter().find(|(start, _)| line.starts_with(start));
        if self.import.line == 0
            && let Some((_, name)) = utf_16
        {
            bail!("it is UTF-16 text; convert it to UTF-8, for example with `iconv -f {name} -t utf-8`");
        }
        let line = without_byte_order_mark(line).trim_ascii_start();
        if self.import.line == 0 && !line.ends_with(b"\n") && line.windows(3).any(|bytes| bytes == b"}\r{") {
            bail!("its lines end in a carriage return alone; convert it, for example with `tr '\\r' '\\n'`");
        }
        if self.import.messages == 0 && line.starts_with(b"[") {
            bail!(
                "it begins with an array; give one JSON object per line, as `chatchain list -o ndjson` prints them"
            );
        }
        Ok(())
    }

    /// Refuses a source whose first lines are no messages.
    fn check_shape(&self, first: &ImportBatch) -> Result<()> {
        let is_no_json = |code| code == ErrorCode::InvalidJson;
        if self.import.messages == first.refused.len() as u64
            && first.refused.len() == PROBE_LINES
            && first.refused.iter().all(|refused| is_no_json(refused.code))
        {
            let why = &first.refused[0].detail;
            bail!(
                "none of the first {PROBE_LINES} lines is JSON (line 1: {why}); give one JSON object per line"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncWriteExt, duplex},
        time::timeout,
    };

    use super::*;
    use crate::commands::send::import::BATCH_LINES_MAX;

    const MESSAGE: &str = r#"{"sender":"a","recipient":"b","text":"c","timestamp":1}"#;

    fn reader(bytes: impl Into<Vec<u8>>) -> LineReader {
        LineReader::new(Box::new(io::Cursor::new(bytes.into())), CancellationToken::new())
    }

    #[tokio::test]
    async fn the_batches_of_a_file_are_all_of_it() {
        let long = "x".repeat(2 * LINE_BYTES_MAX);
        let text = format!("{}{long}\n{{\n\n{MESSAGE}", format!("{MESSAGE}\n").repeat(BATCH_LINES_MAX));
        let mut reader = reader(&*text);
        let first = reader.next().await.expect("read").expect("a batch");
        assert_eq!((first.lines.len(), first.refused.len()), (BATCH_LINES_MAX, 0));
        let second = reader.next().await.expect("read").expect("a batch");
        let refused: Vec<_> = second.refused.iter().map(|rejected| (rejected.line, rejected.code)).collect();
        assert_eq!(refused, [(1001, ErrorCode::TooLarge), (1002, ErrorCode::InvalidJson)]);
        assert_eq!(second.lines, [1004]);
        assert_eq!(first.bytes + second.bytes, text.len() as u64);
        assert!(reader.next().await.expect("read").is_none());
        assert_eq!(reader.last_line_before_stop(), None);
    }

    async fn next(reader: &mut LineReader) -> Option<ImportBatch> {
        timeout(Duration::from_secs(10), reader.next()).await.expect("it is sent").expect("read")
    }

    #[tokio::test]
    async fn a_slow_source_is_sent_after_a_short_wait() {
        let (mut writer, source) = duplex(1 << 10);
        let stop = CancellationToken::new();
        let mut reader = LineReader::new(Box::new(source), stop.clone());
        let half = &MESSAGE[..9];
        writer.write_all(format!("{MESSAGE}\n{MESSAGE}\n{half}").as_bytes()).await.expect("written");
        let began = Instant::now();
        assert_eq!(next(&mut reader).await.expect("a batch").lines, [1, 2]);
        assert!(began.elapsed() >= BATCH_WAIT_MAX);
        writer.write_all(format!("{}\n{MESSAGE}\n{half}", &MESSAGE[9..]).as_bytes()).await.expect("written");
        stop.cancel();
        assert_eq!(next(&mut reader).await.expect("a batch").lines, [3, 4]);
        assert!(next(&mut reader).await.is_none());
        assert_eq!(reader.last_line_before_stop(), Some(4));
    }

    #[tokio::test]
    async fn a_compressed_file_is_read() {
        let compressed = |text: &str| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut encoder, text.as_bytes()).expect("in memory");
            encoder.finish().expect("in memory")
        };
        let members = [compressed(&format!("{MESSAGE}\n")), compressed(MESSAGE)].concat();
        let batch = reader(&*members).next().await.expect("read").expect("a batch");
        assert_eq!(batch.lines, [1, 2]);
        assert!(reader(&members[..members.len() / 3]).next().await.is_err());
    }

    #[tokio::test]
    async fn what_was_read_before_a_fault_of_the_source_is_sent() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut encoder, format!("{MESSAGE}\n").repeat(40).as_bytes()).expect("in memory");
        let whole = encoder.finish().expect("in memory");
        let mut reader = reader(&whole[..whole.len() - 4]);
        assert_eq!(reader.next().await.expect("read").expect("a batch").lines.len(), 40);
        let fault = reader.next().await.expect_err("its end is missing").to_string();
        assert!(fault.contains("after line 40"), "{fault}");
    }

    #[tokio::test]
    async fn an_array_and_another_encoding_are_named() {
        let check = async |bytes: &[u8], part: &str| {
            let refused = reader(bytes).next().await.expect_err("no messages").to_string();
            assert!(refused.contains(part), "{refused}");
        };
        check(format!("\n[{MESSAGE},\n{MESSAGE}\n]\n").as_bytes(), "-o ndjson").await;
        for mark in ["\u{feff}", ""] {
            let text = format!("{mark}{MESSAGE}\n");
            check(&text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(), "UTF-16").await;
            check(&text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>(), "UTF-16").await;
        }
        check(format!("{MESSAGE}\r").repeat(100).as_bytes(), "carriage return").await;
    }

    #[tokio::test]
    async fn a_file_that_is_no_json_is_refused_as_a_whole() {
        let mut csv = "a;b;c\n".repeat(PROBE_LINES);
        let refused = reader(&*csv).next().await.expect_err("no messages").to_string();
        assert!(
            refused.contains("none of the first 100 lines is JSON (line 1: the line is not JSON"),
            "{refused}"
        );
        assert!(reader(&*format!("\n{csv}")).next().await.is_err(), "an empty line is no message");
        csv.insert_str(0, &format!("{MESSAGE}\n"));
        assert_eq!(reader(&*csv).next().await.expect("read").expect("a batch").refused.len(), PROBE_LINES);
    }
}
