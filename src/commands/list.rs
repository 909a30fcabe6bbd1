//! `chatchain list`: from filters to messages, oldest first.
//!
//! The server that is asked has, or has waited for, what this user sent last ([`super::last_writes`]). The query of the
//! flags and the columns of a message serve [`super::follow`] and [`super::list_all`], too.

use std::hash::{DefaultHasher, Hash, Hasher};

use color_eyre::eyre::Result;
use jiff::{Span, SpanRelativeTo, Timestamp, fmt::friendly::SpanParser, tz::TimeZone};
use uuid::Uuid;

use super::{Context, Exit, now, room_recipient};
use crate::{
    api::{address::Addr, message::ListedMessage, position::Position, query::ListQuery, time::second_of},
    chain::{clock::AHEAD_MS_MAX, filter::Filter, message::TIMESTAMP_MAX},
    cli::{self, OutputFormat},
    client::{ClientError, servers::Servers},
    config::ConfigError,
    output::{Output, PrintError, TextRow, TextRows, Tone},
};

pub async fn run(args: &cli::ListArgs, context: &Context<'_>) -> Result<Exit> {
    let (query, output) = (query(args, now())?, context.output);
    let last_writes = context.last_writes()?;
    let wanted = last_writes.position().await;
    let servers = context.servers()?;
    let listed = fetch(&servers, &query, wanted.as_ref()).await?;
    warn_of_missing(listed.missing, &listed.addr, output);
    let ListOutcome { mut messages, covers, addr, .. } = listed;
    let future = ListQuery { accepted_since: query.accepted_before, accepted_before: None, ..query.clone() };
    let future = fetch(&servers, &future, wanted.as_ref()).await?.messages;
    match output.format {
        OutputFormat::Json | OutputFormat::Ndjson => {
            messages.extend(future);
            output.json_list(&messages)?;
        }
        OutputFormat::Table if messages.is_empty() && future.is_empty() => output.note("no messages match"),
        OutputFormat::Table => {
            let (mut layout, clock) = (TextRows::default(), clock(args));
            let [now, later] = [&messages, &future].map(|all| rows(all, &clock));
            layout.fit(&now);
            layout.fit(&later);
            output.texts(&layout, &now)?;
            if !future.is_empty() {
                print_future_line(output)?;
                output.texts(&layout, &later)?;
            }
        }
    }
    if let Some(wanted) = wanted.filter(|_| !covers) {
        last_writes.forget(&wanted).await;
        output.note(&format!(
            "some of what you sent last is not at {addr} yet; it comes when the node that took it is reached"
        ));
    }
    Ok(Exit::Done)
}

/// The answer to a listing.
pub(super) struct ListOutcome {
    /// Oldest first. All of them are in memory (--limit bounds them), since columns are laid out over all rows.
    pub messages: Vec<ListedMessage>,
    /// Whether the listing covers the position that was wanted, as far as the server says.
    pub covers: bool,
    pub addr: Addr,
    /// How many entries are left out because they are damaged at the server.
    pub missing: u64,
}

pub(super) fn warn_of_missing(missing: u64, addr: &Addr, output: &Output) {
    if missing > 0 {
        output.warn(&format!(
            "{missing} entries are left out: they are damaged at {addr}, and no node that answers there has them; see \
             `chatchain status`"
        ));
    }
}

/// The line above the messages of the future.
pub(super) fn print_future_line(output: &Output) -> Result<(), PrintError> {
    let line = "accepted more than 5 minutes from now, by nodes whose clocks are ahead of this one:";
    output.summary(Tone::Bad, line)
}

/// Asks for a whole listing. The server first waits a moment until it covers the position that is wanted.
pub(super) async fn fetch(
    servers: &Servers,
    query: &ListQuery,
    wanted: Option<&Position>,
) -> Result<ListOutcome, ClientError> {
    let mut listing = servers.list(query, wanted).await?;
    let lacks = |wanted: &Position| listing.position.as_ref().is_some_and(|position| position.lacks(wanted));
    let (covers, mut messages) = (!wanted.is_some_and(lacks), Vec::new());
    while let Some(message) = listing.next().await? {
        messages.push(message);
    }
    Ok(ListOutcome { messages, covers, missing: listing.missing, addr: listing.addr })
}

/// A message's id, and a hash of what its sender decided. Equal for all copies of a message, unlike the rest of a row.
pub(super) type MessageIdentity = (Uuid, u64);

pub(super) fn identity(message: &ListedMessage) -> MessageIdentity {
    let ListedMessage { id, sender, recipient, text, timestamp, timestamp_from, .. } = message;
    let mut hasher = DefaultHasher::new();
    (sender, recipient, text, timestamp_from.is_none().then_some(timestamp)).hash(&mut hasher);
    (*id, hasher.finish())
}

pub(super) fn query(args: &cli::ListArgs, now: Timestamp) -> Result<ListQuery, ConfigError> {
    let time = |flag: &str, text: Option<&String>| {
        let refusal = |text| {
            ConfigError::new(format!(
                "{flag} is {text:?}: give how long ago, such as 2h or 3d, a time such as 2026-01-31T12:00:00Z, or whole Unix \
             seconds"
            ))
        };
        text.map(|text| parse_time(text, now).ok_or_else(|| refusal(text))).transpose()
    };
    let now_second = u64::try_from(now.as_second()).unwrap_or(0);
    Ok(ListQuery {
        filter: Filter {
            sender: args.from.clone(),
            recipient: args.to.clone().or_else(|| args.room.as_deref().map(room_recipient)),
            user: args.user.clone(),
            with: args.with.clone(),
            text: args.text.clone(),
            since: time("--since", args.since.as_ref())?,
            until: time("--until", args.until.as_ref())?,
        },
        accepted_since: None,
        // Else messages of a node whose clock is ahead would be the newest until that time has come.
        accepted_before: (!args.all).then_some(now_second + AHEAD_MS_MAX / 1_000),
        limit: (!args.all).then_some(args.limit),
        before: None,
        after: None,
    })
}

/// Reads Unix seconds, an RFC 3339 time as servers read it, or a duration before `now`.
fn parse_time(text: &str, now: Timestamp) -> Option<u64> {
    if let Ok(seconds) = text.parse() {
        return (seconds <= TIMESTAMP_MAX).then_some(seconds);
    }
    if let Some(second) = second_of(text) {
        return Some(second);
    }
    let span: Span = SpanParser::new().parse_span(text).ok()?;
    let ago = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?.abs();
    let time = now.checked_sub(ago).ok()?;
    let seconds = time.as_second() + i64::from(time.subsec_nanosecond() > 0);
    Some(u64::try_from(seconds).unwrap_or(0)) // before 1970 there are no messages
}

/// The time zone in which times are printed: UTC if that is asked for, or if this machine does not say where it is.
pub(super) fn clock(args: &cli::ListArgs) -> TimeZone {
    let local = (!args.utc).then(TimeZone::system).filter(|zone| !zone.is_unknown());
    local.unwrap_or(TimeZone::UTC)
}

/// Messages as rows: time, `sender -> recipient`, text.
pub(super) fn rows<'a>(
    messages: impl IntoIterator<Item = &'a ListedMessage>,
    clock: &TimeZone,
) -> Vec<TextRow<'a>> {
    let row = |message: &'a ListedMessage| {
        let second = i64::try_from(message.timestamp).ok();
        let time = second.and_then(|second| Timestamp::from_second(second).ok());
        let time = time.map_or_else(|| message.timestamp.to_string(), |time| in_zone(time, clock));
        TextRow { time, names: format!("{} -> {}", message.sender, message.recipient), text: &message.text }
    };
    messages.into_iter().map(row).collect()
}

/// `2026-01-31 12:00:00`, with a `Z` if UTC is printed and not the local time.
fn in_zone(time: Timestamp, zone: &TimeZone) -> String {
    let format = if *zone == TimeZone::UTC { "%Y-%m-%d %H:%M:%SZ" } else { "%Y-%m-%d %H:%M:%S" };
    time.to_zoned(zone.clone()).strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: Option<u64>) {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        assert_eq!(parse_time(text, now), want, "{text}");
    }

    #[test]
    fn times_are_ago_or_absolute() {
        check("2h", Some(1_000_000 - 7200));
        check("1 day 30 min", Some(1_000_000 - 86_400 - 1800));
        check("1w", Some(1_000_000 - 7 * 86_400));
        check("500ms", Some(1_000_000));
        check("0", Some(0));
        check("1697913600", Some(1_697_913_600));
        check("1970-01-02T00:00:00Z", Some(86_400));
        check("1970-01-02T00:00:00.5+01:00", Some(82_801));
        check("9999-12-31T23:59:59Z", Some(TIMESTAMP_MAX));
        check("1697913600000", None);
        check("yesterday", None);
        check("1 month", None);
        check("", None);
    }

    #[test]
    fn flags_become_the_query_of_the_contract() {
        let args = cli::ListArgs {
            room: Some("ops".into()),
            text: Some("é".into()),
            since: Some("7".into()),
            limit: 50,
            ..Default::default()
        };
        let query = query(&args, Timestamp::UNIX_EPOCH).expect("good flags");
        assert_eq!(
            query.to_query_string(),
            "recipient=%23ops&text=%C3%A9&since=7&accepted_before=300&limit=50"
        );
    }
}
