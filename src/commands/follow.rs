//! `chatchain list` with `--follow` or `--cursor-file`: messages as they arrive, from where the last run ended.
//!
//! When a server ends or breaks the feed, it is opened again at any server that answers, with the last cursor. A
//! message is printed before its cursor is saved, so whatever ends this program, the next run misses no message; it may
//! repeat the last few. A run without a saved cursor first lists the newest messages. That listing and the feed
//! overlap, and a message of the overlap is printed once.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use color_eyre::eyre::{Report, Result, eyre};
use jiff::tz::TimeZone;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Context, Exit, cursor_file, last_writes::LastWrites, list, now, serving::StopSignals};
use crate::{
    api::{
        feed::{FeedEventKind, FeedLine, FeedQuery},
        message::ListedMessage,
        query::ListQuery,
    },
    chain::filter::Filter,
    cli::{self, OutputFormat},
    client::servers::{FeedStream, Servers},
    output::{JsonList, Output, PrintError, TextRows, stdout_closed},
};

/// The cursor is saved at most this often while messages arrive.
const SAVE_INTERVAL: Duration = Duration::from_millis(200);
/// Pause before the feed is opened again: none the first time, then this, doubled up to the maximum. A feed that lasted
/// longer than the maximum counts as healthy, and the next pause is none again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// After this, the listing is taken from a server that lacks messages from before the feed, with a warning.
const LIST_WAIT_MAX: Duration = Duration::from_secs(5);

pub async fn run(args: &cli::ListArgs, context: &Context<'_>) -> Result<Exit> {
    let (query, output) = (list::query(args, now())?, context.output);
    let servers = context.servers()?;
    let (cursor_file, saved) = args.cursor_file.as_deref().map(cursor_file::open).transpose()?.unzip();
    let mut stop = StopSignals::catch()?;
    let saved = saved.flatten();
    let is_array = !args.follow && output.format == OutputFormat::Json;
    let from_start = args.all && saved.is_none();
    let mut follower = Follower {
        servers: &servers,
        query: FeedQuery { cursor: saved.clone(), from_start, filter: query.filter.names() },
        filter: query.filter.clone().folded(),
        overlap: HashSet::new(),
        array: is_array.then(|| output.begin_json_list()),
        cursor_file,
        save_at: None,
        opened: Instant::now(),
        pause: Duration::ZERO,
        layout: TextRows::default(),
        clock: list::clock(args),
        output,
    };
    let follow = async {
        let feed = if saved.is_some() || from_start {
            servers.feed(&follower.query).await.map_err(|error| match &args.cursor_file {
                Some(file) if !error.retryable() => Report::from(error).wrap_err(format!(
                    "the cursor in {} cannot be used; another file, or none, starts again",
                    file.display()
                )),
                _ => error.into(),
            })?
        } else {
            let feed = follower.list_newest(&query, &context.last_writes()?).await?;
            if !args.follow {
                return Ok(());
            }
            feed
        };
        follower.follow(feed, args.follow).await
    };
    let mut is_interrupted = false;
    tokio::select! {
        ended = follow => ended?,
        () = stop.next() => is_interrupted = !args.follow,
        () = stdout_closed(), if args.follow => {}
    }
    if let Some(array) = follower.array.take() {
        array.end()?;
    }
    follower.save_cursor()?;
    if is_interrupted {
        return Err(eyre!(
            "a signal came before the end; a further run with this cursor file goes on from here"
        ));
    }
    Ok(Exit::Done)
}

/// Prints a feed. Owns the cursor that the next run starts with.
struct Follower<'a> {
    servers: &'a Servers,
    /// The feed that is asked for, with the cursor after the last event.
    query: FeedQuery,
    /// The folded filter. Servers filter a feed by names only, so the client looks at text and time.
    filter: Filter,
    /// Messages of the listing that the feed may repeat.
    overlap: HashSet<list::MessageIdentity>,
    /// The JSON array that is being printed. `None`: messages are printed each by itself.
    array: Option<JsonList<'a>>,
    cursor_file: Option<PathBuf>,
    /// When to save the cursor; `None` if it is saved.
    save_at: Option<Instant>,
    /// When the feed was last opened again.
    opened: Instant,
    /// Pause before it is opened again.
    pause: Duration,
    /// How messages are printed, and the time zone of their times.
    layout: TextRows,
    clock: TimeZone,
    output: &'a Output,
}

impl Follower<'_> {
    /// Opens the feed and prints the newest messages from before it. The listing must cover the start of the feed. If
    /// no server covers it in time, a node that took messages is away: the listing lacks them, and the feed brings them
    /// once that node is reached.
    async fn list_newest(&mut self, query: &ListQuery, last_writes: &LastWrites) -> Result<FeedStream> {
        let (deadline, sent) = (Instant::now() + LIST_WAIT_MAX, last_writes.position().await);
        loop {
            let feed = self.open_now().await?;
            let mut wanted = feed.position.clone();
            if let (Some(wanted), Some(sent)) = (&mut wanted, &sent) {
                wanted.join(sent);
            }
            let listed = list::fetch(self.servers, query, wanted.as_ref()).await?;
            let list::ListOutcome { messages, covers, addr, missing } = listed;
            list::warn_of_missing(missing, &addr, self.output);
            if !covers && Instant::now() < deadline {
                continue;
            }
            if !covers {
                if let Some(sent) = &sent {
                    last_writes.forget(sent).await;
                }
                self.output.warn(&format!(
                    "{addr} lacks messages from before now, and so does this listing; history shows them once the node that \
                     took them is reached"
                ));
            }
            self.layout.fit(&list::rows(&messages, &self.clock));
            for message in messages {
                self.overlap.insert(list::identity(&message));
                self.print(message)?;
            }
            self.save_at = Some(Instant::now());
            return Ok(feed);
        }
    }

    /// Opens the feed from now on and takes the cursor of its first event. With no cursor, a feed that breaks would be
    /// opened again from a later moment.
    async fn open_now(&mut self) -> Result<FeedStream> {
        self.query.cursor = None;
        let mut feed = self.servers.feed(&self.query).await?;
        loop {
            if let Ok(Some(line)) = feed.next().await {
                self.query.cursor = Some(line.cursor);
                return Ok(feed);
            }
            feed = self.reopen("before it began").await?;
        }
    }

    /// Prints the feed: without end, or until everything is printed that was stored when the feed was opened.
    async fn follow(&mut self, mut feed: FeedStream, endless: bool) -> Result<()> {
        loop {
            let save_at = self.save_at;
            let next = tokio::select! {
                biased;
                next = feed.next() => next,
                () = sleep_until(save_at.unwrap_or_else(Instant::now)), if save_at.is_some() => {
                    self.save_cursor()?;
                    continue;
                }
            };
            match next {
                Ok(Some(line)) => {
                    let is_end = line.event == FeedEventKind::CaughtUp && !endless;
                    self.print_event(line)?;
                    if is_end {
                        return Ok(());
                    }
                }
                Err(error) if !error.retryable() => return Err(error.into()),
                Ok(None) => feed = self.reopen("the server ended it").await?,
                Err(error) => feed = self.reopen(&error.to_string()).await?,
            }
        }
    }

    fn print_event(&mut self, FeedLine { cursor, message, .. }: FeedLine) -> Result<()> {
        if let Some(message) = message {
            let is_printed = !self.overlap.is_empty() && self.overlap.remove(&list::identity(&message));
            let is_recent = self.filter.since.is_none_or(|since| message.timestamp >= since);
            if !is_printed && is_recent && self.filter.matches_text(&message.text) {
                self.print(message)?;
            }
        }
        self.query.cursor = Some(cursor);
        self.save_at.get_or_insert_with(|| Instant::now() + SAVE_INTERVAL);
        Ok(())
    }

    fn print(&mut self, message: ListedMessage) -> Result<(), PrintError> {
        if let Some(array) = &mut self.array {
            return array.add(&[message]);
        }
        match self.output.format {
            OutputFormat::Table => {
                let row = list::rows([&message], &self.clock);
                self.layout.fit(&row);
                self.output.texts(&self.layout, &row)
            }
            OutputFormat::Json | OutputFormat::Ndjson => self.output.json(&message),
        }
    }

    /// Opens the feed again at the last cursor, however long that takes.
    async fn reopen(&mut self, why: &str) -> Result<FeedStream> {
        self.save_cursor()?;
        self.output.note(&format!("the feed was interrupted ({why}); going on as soon as a server answers"));
        if self.opened.elapsed() > RETRY_MAX {
            self.pause = Duration::ZERO;
        }
        loop {
            sleep(self.pause).await;
            self.pause = (self.pause * 2).clamp(RETRY_MIN, RETRY_MAX);
            match self.servers.feed(&self.query).await {
                Ok(feed) => {
                    self.opened = Instant::now();
                    return Ok(feed);
                }
                Err(error) if !error.retryable() => return Err(error.into()),
                Err(_) => {}
            }
        }
    }

    fn save_cursor(&mut self) -> Result<()> {
        if let (Some(_), Some(cursor)) = (self.save_at, &self.query.cursor) {
            self.cursor_file.as_ref().map_or(Ok(()), |file| cursor_file::save(file, cursor))?;
            self.save_at = None;
        }
        Ok(())
    }
}
