//! `chatchain list`: from filters to messages, oldest first.
//!
//! Of a server that has what was sent from here last, or that has been waited for. What is asked and how it is shown serves
//! [`super::follow`], too.

use color_eyre::eyre::Result;
use jiff::{Span, SpanRelativeTo, Timestamp, fmt::friendly::SpanParser};

use super::{Exit, last_writes::LastWrites, servers};
use crate::{
    api::{address::Addr, message::ListedMessage, position::Position, query::ListQuery, time::second_of},
    chain::message::TIMESTAMP_MAX,
    cli::{self, CommonArgs, OutputFormat},
    client::{ClientError, servers::Servers},
    config::{self, Sources},
    output::{Output, Tone},
};

pub async fn run(
    args: &cli::ListArgs,
    common: &CommonArgs,
    sources: &Sources,
    output: &Output,
) -> Result<Exit> {
    let (query, memory) = (query(args)?, LastWrites::of(sources));
    let wanted = memory.position().await;
    let ListOutcome { messages, covers, addr } =
        find(&servers(common, sources)?, &query, wanted.as_ref()).await?;
    match output.format() {
        OutputFormat::Json | OutputFormat::Ndjson => output.json_list(&messages)?,
        OutputFormat::Table if messages.is_empty() => output.note("no messages match"),
        OutputFormat::Table => {
            let rows: Vec<_> = messages.iter().map(|message| (Tone::Plain, columns(message))).collect();
            output.table(&[], &rows)?;
        }
    }
    if let Some(wanted) = wanted.filter(|_| !covers) {
        memory.forget(&wanted).await;
        output.note(&format!(
            "some of what you sent last is not at {addr} yet; it comes when the node that took it is reached"
        ));
    }
    Ok(Exit::Done)
}

/// What was listed.
pub(super) struct ListOutcome {
    /// Oldest first. At most as many as --limit, for columns can only be laid out over all of them.
    pub messages: Vec<ListedMessage>,
    /// Whether everything was looked through that was to be covered, as far as the server says.
    pub covers: bool,
    /// Who was asked.
    pub addr: Addr,
}

/// Asks for all of it, of a server that has what is to be covered, or has waited for that.
pub(super) async fn find(
    servers: &Servers,
    query: &ListQuery,
    wanted: Option<&Position>,
) -> Result<ListOutcome, ClientError> {
    let mut listing = servers.list(query, wanted).await?;
    let lacks = |wanted: &Position| listing.position().is_some_and(|position| position.lacks(wanted));
    let (covers, mut messages) = (!wanted.is_some_and(lacks), Vec::new());
    while let Some(message) = listing.next().await? {
        messages.push(message);
    }
    Ok(ListOutcome { messages, covers, addr: listing.addr().clone() })
}

/// What the flags ask for.
pub(super) fn query(args: &cli::ListArgs) -> Result<ListQuery, config::ConfigError> {
    query_at(args, now())
}

fn query_at(args: &cli::ListArgs, now: Timestamp) -> Result<ListQuery, config::ConfigError> {
    let time = |flag: &str, text: &Option<String>| {
        text.as_ref().map(|text| parse_time(text, now).ok_or_else(|| not_a_time(flag, text))).transpose()
    };
    Ok(ListQuery {
        sender: args.from.clone(),
        recipient: args.to.clone().or_else(|| args.room.as_deref().map(super::room)),
        user: args.user.clone(),
        with: args.with.clone(),
        text: args.text.clone(),
        since: time("--since", &args.since)?,
        until: time("--until", &args.until)?,
        limit: Some(args.limit),
        before: None,
        after: None,
    })
}

/// Unix seconds, an RFC 3339 time as servers read it, or how long ago.
fn parse_time(text: &str, now: Timestamp) -> Option<u64> {
    if let Ok(seconds) = text.parse() {
        return (seconds <= TIMESTAMP_MAX).then_some(seconds);
    }
    if let Some(second) = second_of(text) {
        return Some(second);
    }
    let time = ago(text, now)?;
    let seconds = time.as_second() + i64::from(time.subsec_nanosecond() > 0);
    Some(u64::try_from(seconds).unwrap_or(0)) // nothing is older than 1970
}

fn ago(text: &str, now: Timestamp) -> Option<Timestamp> {
    let span: Span = SpanParser::new().parse_span(text).ok()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    now.checked_sub(duration.abs()).ok()
}

fn not_a_time(flag: &str, text: &str) -> config::ConfigError {
    config::ConfigError::new(format!(
        "{flag} is {text:?}: give how long ago, such as 2h or 3d, a time such as 2026-01-31T12:00:00Z, or whole Unix seconds"
    ))
}

/// Time, sender -> recipient, text.
pub(super) fn columns(message: &ListedMessage) -> Vec<String> {
    let seconds =
        i64::try_from(message.timestamp).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let time = seconds.map_or_else(|| message.timestamp.to_string(), |time| time.to_string());
    vec![time, format!("{} -> {}", message.sender, message.recipient), message.text.clone()]
}

#[expect(clippy::disallowed_methods, reason = "`2h` ago is counted from the clock of whoever asks")]
fn now() -> Timestamp {
    Timestamp::now()
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
        let query = query_at(&args, Timestamp::UNIX_EPOCH).expect("good flags");
        assert_eq!(query.to_query_string(), "recipient=%23ops&text=%C3%A9&since=7&limit=50");
    }
}
