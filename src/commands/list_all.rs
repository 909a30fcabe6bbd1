//! `chatchain list --all`: all of history, oldest first, printed as it arrives.
//!
//! A listing that breaks is asked for again from its start, at a server that answers, and what was printed is skipped. To
//! go on after the last message would leave out a message of which the next server holds an earlier copy. So every
//! message is printed once, though a late one comes after newer ones. Memory: about 32 bytes for each message.

use std::collections::HashSet;
use std::mem;
use std::time::Duration;

use color_eyre::eyre::{Result, eyre};
use jiff::tz::TimeZone;
use tokio::time::sleep;

use super::list::{self, MessageIdentity, identity};
use super::{Context, Exit, now};
use crate::api::message::ListedMessage;
use crate::api::time::Time;
use crate::chain::clock::AHEAD_MS_MAX;
use crate::cli::{self, OutputFormat};
use crate::client::{ClientError, servers::LineStream};
use crate::output::{JsonList, Output, PrintError, TextRows};

/// So many messages are printed together. Their names are aligned.
const PRINTED_TOGETHER: usize = 500;
/// The command fails after this many listings in a row that break and bring no new message.
const RETRIES_MAX: u32 = 5;
/// Before the first of them; then doubled.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

pub async fn run(args: &cli::ListArgs, context: &Context<'_>) -> Result<Exit> {
    let (now, output) = (now(), context.output);
    let query = list::query(args, now)?;
    let servers = context.servers()?;
    let mut printer = Printer {
        output,
        seen: HashSet::new(),
        waiting: Vec::new(),
        json: output.begin_json_list(),
        layout: TextRows::default(),
        clock: list::clock(args),
        future_from: Time(u64::try_from(now.as_millisecond()).unwrap_or(0).saturating_add(AHEAD_MS_MAX)),
        has_future: false,
    };
    let mut retries = 0;
    loop {
        let count = printer.seen.len();
        let ended = match servers.list(&query, None).await {
            Ok(listing) => printer.print_listing(listing).await?,
            Err(error) if count == 0 => return Err(error.into()), // all servers were asked
            Err(error) => Err(error),
        };
        let Err(error) = ended else { break };
        let done = printer.seen.len();
        if done > count || retries == 0 {
            output.note(&format!("the listing was interrupted ({error}); asking again"));
            retries = 0;
        }
        if !error.retryable() || retries == RETRIES_MAX {
            return Err(eyre!(
                "stopped after {done} messages: {error}; a run with --all and --cursor-file can be continued"
            ));
        }
        sleep(RETRY_PAUSE * 2_u32.pow(retries)).await;
        retries += 1;
        servers.prefer_next();
    }
    printer.end()?;
    Ok(Exit::Done)
}

/// Prints every message once, a few hundred together.
struct Printer<'a> {
    output: &'a Output,
    /// The messages that are printed or wait for it.
    seen: HashSet<MessageIdentity>,
    waiting: Vec<ListedMessage>,
    json: JsonList<'a>,
    layout: TextRows,
    clock: TimeZone,
    /// Later times of acceptance are in the future: the clock of a node is ahead.
    future_from: Time,
    /// Whether a line was printed that says so.
    has_future: bool,
}

impl Printer<'_> {
    /// Prints what is new in a listing. The inner error is that of the listing.
    async fn print_listing(
        &mut self,
        mut listing: LineStream<ListedMessage>,
    ) -> Result<Result<(), ClientError>, PrintError> {
        list::warn_of_missing(listing.missing, &listing.addr, self.output);
        loop {
            match listing.next().await {
                Ok(Some(message)) if !self.seen.insert(identity(&message)) => {}
                Ok(Some(message)) => self.waiting.push(message),
                Ok(None) => return self.print().map(Ok),
                Err(error) => return self.print().map(|()| Err(error)),
            }
            if self.waiting.len() == PRINTED_TOGETHER {
                self.print()?;
            }
        }
    }

    fn print(&mut self) -> Result<(), PrintError> {
        let messages = mem::take(&mut self.waiting);
        if self.output.format != OutputFormat::Table {
            return self.json.add(&messages);
        }
        let is_future = |message: &ListedMessage| message.accepted_at > self.future_from;
        let (now, future) = messages.split_at(messages.partition_point(|message| !is_future(message)));
        let [now, future] = [now, future].map(|messages| list::rows(messages, &self.clock));
        self.layout.fit(&now);
        self.layout.fit(&future);
        self.output.texts(&self.layout, &now)?;
        if !future.is_empty() && !mem::replace(&mut self.has_future, true) {
            list::print_future_line(self.output)?;
        }
        self.output.texts(&self.layout, &future)
    }

    fn end(self) -> Result<(), PrintError> {
        match self.output.format {
            OutputFormat::Table if self.seen.is_empty() => self.output.note("no messages match"),
            OutputFormat::Table => {}
            OutputFormat::Json | OutputFormat::Ndjson => self.json.end()?,
        }
        Ok(())
    }
}
