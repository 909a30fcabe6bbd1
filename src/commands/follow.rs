//! `chatchain list` with `--follow` or `--cursor-file`: messages as they come, from where the last run ended.
//!
//! Servers may come and go: the feed is opened again, at whichever answers, with the last cursor. A message is printed
//! before its cursor is kept, so that whatever ends this program, the next run misses nothing; what was printed in the
//! last moments may come again. What is listed first and what then comes overlap, and the overlap is printed once.

use std::{
    collections::HashSet,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use color_eyre::eyre::{Result, WrapErr};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::{Exit, last_writes::LastWrites, list, servers, serving::StopSignals};
use crate::{
    api::{
        feed::{FeedEventKind, FeedLine, FeedQuery, from_text},
        message::ListedMessage,
        query::ListQuery,
    },
    chain::message::fold,
    cli::{self, CommonArgs, OutputFormat},
    client::{
        ClientError,
        servers::{FeedStream, Servers},
    },
    config::{self, Sources},
    output::Output,
};

/// The cursor is kept at most so often, and always before waiting for longer.
const KEEP_EVERY: Duration = Duration::from_millis(200);
/// How long to wait before the feed is opened again, but not the first time; doubled up to the second. A feed that lasts for
/// longer than that is one that goes on.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long a server is looked for that has all messages from before the feed.
const BEGIN_MAX: Duration = Duration::from_secs(5);

pub async fn run(
    args: &cli::ListArgs,
    common: &CommonArgs,
    sources: &Sources,
    output: &Output,
) -> Result<Exit> {
    let listing = list::query(args)?;
    let mut stop = StopSignals::catch()?;
    let servers = servers(common, sources)?;
    let file = args.cursor_file.as_deref().map(resolve).transpose()?;
    let kept = file.as_deref().map(read).transpose()?.flatten();
    file.as_deref().map(check_writable).transpose()?;
    let mut follower = Follower {
        query: FeedQuery {
            cursor: kept.clone(),
            from_start: false,
            sender: listing.sender.clone(),
            recipient: listing.recipient.clone(),
            user: listing.user.clone(),
            with: listing.with.clone(),
        },
        text: listing.text.as_deref().map(fold),
        listed: HashSet::new(),
        collected: Vec::new(),
        collects: !args.follow && output.format() == OutputFormat::Json,
        place: CursorFile { file, unkept: false, due: Instant::now() },
        opened: Instant::now(),
        pause: Duration::ZERO,
        output,
    };
    let follow = async {
        let mut feed = if kept.is_some() {
            servers.feed(&follower.query).await.map_err(|error| hint(args, error))?
        } else {
            let feed = follower.begin(&servers, &listing, &LastWrites::of(sources)).await?;
            if !args.follow {
                return Ok(());
            }
            feed
        };
        follower.follow(&servers, &mut feed, args.follow).await
    };
    tokio::select! {
        ended = follow => ended?,
        () = stop.next() => {}
    }
    if !args.follow && output.format() == OutputFormat::Json {
        output.json_list(&follower.collected)?;
    }
    follower.keep()?;
    Ok(Exit::Done)
}

struct Follower<'a> {
    /// What is asked for, with the last cursor.
    query: FeedQuery,
    /// Folded. Servers do not look at texts in a feed.
    text: Option<String>,
    /// What was listed at first and may come once more.
    listed: HashSet<(Uuid, String, String, String)>,
    /// One JSON value can be printed only once all of it is there.
    collected: Vec<ListedMessage>,
    collects: bool,
    place: CursorFile,
    /// When the feed was opened last, and how long to wait before that is done again.
    opened: Instant,
    pause: Duration,
    output: &'a Output,
}

impl Follower<'_> {
    /// Opens the feed and prints the newest messages from before it. If a server that has all of those is not found, for what
    /// lies between is with a node that cannot be reached, the feed begins where another server is: there it will bring them.
    async fn begin(
        &mut self,
        servers: &Servers,
        query: &ListQuery,
        memory: &LastWrites,
    ) -> Result<FeedStream> {
        let (until, sent) = (Instant::now() + BEGIN_MAX, memory.position().await);
        loop {
            let feed = self.open(servers).await?;
            let mut wanted = feed.position().cloned();
            if let (Some(wanted), Some(sent)) = (&mut wanted, &sent) {
                wanted.join(sent);
            }
            let found = list::find(servers, query, wanted.as_ref()).await?;
            if !found.covers && Instant::now() < until {
                continue;
            }
            if !found.covers {
                if let Some(sent) = &sent {
                    memory.forget(sent).await;
                }
                self.output.warn(&format!(
                    "{} lacks something from before now, and this listing with it; it stands in history once the node that \
                     took it is reached",
                    found.addr
                ));
            }
            for message in found.messages {
                self.listed.insert(key(message.clone()));
                self.print(message)?;
            }
            self.place.unkept = true;
            return Ok(feed);
        }
    }

    /// Opens the feed from now on, and notes where that is: its first word says so. Without that, it would begin later if it
    /// had to be opened again.
    async fn open(&mut self, servers: &Servers) -> Result<FeedStream> {
        self.query.cursor = None;
        let mut feed = servers.feed(&self.query).await?;
        loop {
            match feed.next().await {
                Ok(Some(line)) => {
                    self.query.cursor = Some(line.cursor);
                    return Ok(feed);
                }
                _ => feed = self.again(servers, "before it began".into()).await?,
            }
        }
    }

    async fn follow(&mut self, servers: &Servers, feed: &mut FeedStream, on: bool) -> Result<()> {
        loop {
            let next = tokio::select! {
                biased;
                next = feed.next() => next,
                () = sleep_until(self.place.due), if self.place.unkept => {
                    self.keep()?;
                    continue;
                }
            };
            match next {
                Ok(Some(line)) => {
                    let is_end = line.event == FeedEventKind::CaughtUp && !on;
                    self.take(line)?;
                    if is_end {
                        return Ok(());
                    }
                }
                Err(error) if !error.retryable() => return Err(error.into()),
                Ok(None) => *feed = self.again(servers, "the server ended it".into()).await?,
                Err(error) => *feed = self.again(servers, error.to_string()).await?,
            }
        }
    }

    fn take(&mut self, FeedLine { cursor, message, .. }: FeedLine) -> Result<()> {
        if let Some(message) = message {
            let matches = self.text.as_ref().is_none_or(|text| fold(&message.text).contains(text));
            let is_listed = !self.listed.is_empty() && self.listed.remove(&key(message.clone()));
            if matches && !is_listed {
                self.print(message)?;
            }
        }
        self.query.cursor = Some(cursor);
        if !std::mem::replace(&mut self.place.unkept, true) {
            self.place.due = Instant::now() + KEEP_EVERY;
        }
        Ok(())
    }

    fn print(&mut self, message: ListedMessage) -> io::Result<()> {
        match self.output.format() {
            OutputFormat::Table => self.output.line(&list::columns(&message).join("  ")),
            OutputFormat::Json if self.collects => {
                self.collected.push(message);
                Ok(())
            }
            OutputFormat::Json | OutputFormat::Ndjson => self.output.json(&message),
        }
    }

    /// Opens the feed again, however long it takes.
    async fn again(&mut self, servers: &Servers, why: String) -> Result<FeedStream> {
        self.keep()?;
        self.output.note(&format!("the feed was interrupted ({why}); going on as soon as a server answers"));
        if self.opened.elapsed() > RETRY_MAX {
            self.pause = Duration::ZERO;
        }
        loop {
            sleep(self.pause).await;
            self.pause = (self.pause * 2).clamp(RETRY_MIN, RETRY_MAX);
            match servers.feed(&self.query).await {
                Ok(feed) => {
                    self.opened = Instant::now();
                    return Ok(feed);
                }
                Err(error) if !error.retryable() => return Err(error.into()),
                Err(_) => {}
            }
        }
    }

    fn keep(&mut self) -> Result<()> {
        match &self.query.cursor {
            Some(cursor) if self.place.unkept => self.place.keep(cursor),
            _ => Ok(()),
        }
    }
}

fn key(message: ListedMessage) -> (Uuid, String, String, String) {
    (message.id, message.sender, message.recipient, message.text)
}

/// Where the cursor is kept, if it is.
struct CursorFile {
    file: Option<PathBuf>,
    unkept: bool,
    due: Instant,
}

impl CursorFile {
    fn keep(&mut self, cursor: &str) -> Result<()> {
        if let Some(file) = &self.file {
            write(file, cursor).wrap_err_with(|| format!("cannot keep the place in {}", file.display()))?;
        }
        self.unkept = false;
        Ok(())
    }
}

/// Replaces the file as a whole: whoever reads it finds the old cursor or the new one.
fn write(file: &Path, cursor: &str) -> io::Result<()> {
    let name = new_name(file);
    let replace = || {
        let mut new = fs::File::create(&name)?;
        if let Ok(old) = fs::metadata(file) {
            new.set_permissions(old.permissions())?;
        }
        writeln!(new, "{cursor}")?;
        new.sync_data()?;
        fs::rename(&name, file)
    };
    replace().inspect_err(|_| {
        let _ = fs::remove_file(&name); // it may not have come so far
    })
}

/// The file itself, behind all links: it is replaced, and neither they nor a device must be.
fn resolve(file: &Path) -> Result<PathBuf, config::ConfigError> {
    match fs::canonicalize(file) {
        Ok(real) if real.is_file() => Ok(real),
        Ok(_) => Err(config::ConfigError::new(format!(
            "{} is not a regular file, and only in one can a place be kept",
            file.display()
        ))),
        Err(_) => Ok(file.to_owned()), // not there yet, or what is wrong is said by who reads it
    }
}

/// Said before anything is printed that could then not be kept.
fn check_writable(file: &Path) -> Result<(), config::ConfigError> {
    let name = new_name(file);
    let made = fs::File::create(&name).and_then(|_| fs::remove_file(&name));
    made.map_err(|error| {
        config::ConfigError::new(format!("cannot write beside the cursor file {}: {error}", file.display()))
    })
}

/// Each process has a name of its own, for there may be others with this file.
fn new_name(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.new", process::id()));
    name.into()
}

/// The cursor in a file; `None`: there is no such file.
fn read(file: &Path) -> Result<Option<String>, config::ConfigError> {
    match fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) if from_text(text.trim()).is_some() => Ok(Some(text.trim().to_owned())),
        Ok(_) => Err(config::ConfigError::new(format!(
            "{} is no file in which a place was kept; name another one, or remove it to begin anew",
            file.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(config::ConfigError::new(format!("cannot read the cursor file {}: {error}", file.display())))
        }
    }
}

/// A cursor that is refused came from the file, and cannot be mended.
fn hint(args: &cli::ListArgs, error: ClientError) -> color_eyre::Report {
    let report = color_eyre::Report::from(error);
    match &args.cursor_file {
        Some(file) if report.downcast_ref::<ClientError>().is_some_and(|error| !error.retryable()) => report
            .wrap_err(format!(
                "the place kept in {} cannot be used; another file, or none, begins anew",
                file.display()
            )),
        _ => report,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    };

    use super::*;

    #[test]
    fn a_place_is_kept_as_a_whole_and_read_back() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("seen");
        assert_eq!(read(&file), Ok(None));
        for cursor in ["AbC-", "AAAA"] {
            write(&file, cursor).expect("writes");
            assert_eq!(read(&file), Ok(Some(cursor.into())));
        }
        assert!(read(dir.path()).is_err(), "a directory is no cursor file");
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 1);
    }

    #[test]
    fn links_devices_and_permissions_stay_what_they_are() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (file, link) = (dir.path().join("seen"), dir.path().join("link"));
        fs::write(&file, "").expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("is ours");
        symlink(&file, &link).expect("links");
        write(&resolve(&link).expect("a file"), "AAAA").expect("writes");
        assert!(link.is_symlink());
        assert_eq!(read(&file), Ok(Some("AAAA".into())));
        assert_eq!(fs::metadata(&file).expect("is there").permissions().mode() & 0o777, 0o600);
        let socket = dir.path().join("socket");
        let _bound = UnixListener::bind(&socket).expect("binds");
        assert!(resolve(&socket).is_err() && resolve(dir.path()).is_err());
        let absent = dir.path().join("absent");
        assert_eq!(resolve(&absent), Ok(absent));
    }

    #[test]
    fn where_nothing_can_be_kept_nothing_is_left() {
        let dir = tempfile::tempdir().expect("temp dir");
        let taken = dir.path().join("taken");
        fs::create_dir(&taken).expect("is made");
        assert!(write(&taken, "AAAA").is_err());
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 1);
    }
}
