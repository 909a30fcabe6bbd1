//! Query strings of the API: read strictly, and written in one form.
//!
//! Unknown and repeated keys, empty texts and values out of range are refused with the name of the key. A mistyped
//! filter that was ignored would answer another question than the one that was asked.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
    fmt::{self, Write as _},
    str::FromStr,
    time::Duration,
};

use jiff::SignedDuration;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use uuid::Uuid;

use super::{
    error::{ErrorCode, Problem},
    explain_invalid::quote,
    network::NodeId,
    path,
    time::second_of,
};
use crate::chain::{filter::Filter, message::TIMESTAMP_MAX};

/// A page holds at most this many messages; a larger `limit` is refused.
pub const LIMIT_MAX: u32 = 10_000;
/// How long a send waits for its acks unless the query says otherwise.
pub const ACKS_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
/// A longer `timeout` is refused.
pub const ACKS_TIMEOUT_MAX: Duration = Duration::from_secs(20);

/// Where a page begins or ends: a message, or one copy of it. Page links name log entries: the first copy of an id can
/// change, and two contents can have one id, so paging by id would skip or repeat messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The first copy of this id.
    Id(Uuid),
    /// The entry of this origin and seq, written `ORIGIN.SEQ`.
    Entry(Uuid, u64),
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Entry(origin, seq) => write!(f, "{origin}.{seq}"),
        }
    }
}

/// The query of `GET /messages`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    pub filter: Filter,
    /// Accepted at or after this Unix second.
    pub accepted_since: Option<u64>,
    /// Accepted before this Unix second.
    pub accepted_before: Option<u64>,
    /// At most this many messages. Without it, all of them.
    pub limit: Option<u32>,
    /// Only messages that are listed before this one. With `limit`: those nearest to it.
    pub before: Option<Anchor>,
    /// Only messages that are listed after this one. With `limit` and without `before`: those nearest to it.
    pub after: Option<Anchor>,
}

impl ListQuery {
    /// Reads a raw query string (without the `?`).
    pub fn parse(raw: &str) -> Result<Self, Problem> {
        let mut pairs = QueryReader::new(raw)?;
        let mut filter = pairs.names()?;
        filter.text = pairs.text("text")?;
        filter.since = pairs.value("since", unix_second)?;
        filter.until = pairs.value("until", unix_second)?;
        let query = Self {
            filter,
            accepted_since: pairs.value("accepted_since", unix_second)?,
            accepted_before: pairs.value("accepted_before", unix_second)?,
            limit: pairs.value("limit", limit)?,
            before: pairs.value("before", anchor)?,
            after: pairs.value("after", anchor)?,
        };
        pairs.refuse_rest()?;
        with_needs_user(&query.filter)?;
        Ok(query)
    }

    /// Writes it as a raw query string, empty if there is nothing to ask for.
    pub fn to_query_string(&self) -> String {
        let mut out = QueryWriter::of(&self.filter);
        out.value("accepted_since", self.accepted_since);
        out.value("accepted_before", self.accepted_before);
        out.value("limit", self.limit);
        out.value("before", self.before);
        out.value("after", self.after);
        out.0
    }
}

pub(super) fn with_needs_user(filter: &Filter) -> Result<(), Problem> {
    if filter.with.is_some() && filter.user.is_none() {
        return Err(invalid("`with` needs `user`: they are the two sides of a conversation"));
    }
    Ok(())
}

/// On how many nodes a message must be on disk before its send is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    /// On this many, at least 1.
    Count(usize),
    /// On more than half of the members.
    Quorum,
    /// On all members.
    All,
}

impl Acks {
    /// The number of nodes, if there are this many members, the node itself included.
    pub fn of(self, members: usize) -> Result<usize, Problem> {
        match self {
            Self::Count(count) if count > members => Err(invalid(format!(
                "`acks` is {count}, and this node knows {members} nodes, itself included"
            ))),
            Self::Count(count) => Ok(count),
            Self::Quorum => Ok(members / 2 + 1),
            Self::All => Ok(members),
        }
    }
}

/// The query of `POST /messages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendQuery {
    pub acks: Acks,
    /// How long to wait for the acks.
    pub timeout: Duration,
}

impl SendQuery {
    /// Reads a raw query string (without the `?`).
    pub fn parse(raw: &str) -> Result<Self, Problem> {
        let mut pairs = QueryReader::new(raw)?;
        let acks = pairs.value("acks", acks)?.unwrap_or(Acks::Count(1));
        let timeout = pairs.value("timeout", timeout)?.unwrap_or(ACKS_TIMEOUT_DEFAULT);
        pairs.refuse_rest()?;
        Ok(Self { acks, timeout })
    }
}

/// How long a node may wait for further copies before it answers a send with this query. Zero for a query that it
/// refuses.
pub fn acks_wait(raw: &str) -> Duration {
    match SendQuery::parse(raw) {
        Ok(SendQuery { acks: Acks::Count(1), .. }) | Err(_) => Duration::ZERO,
        Ok(SendQuery { timeout, .. }) => timeout,
    }
}

/// Refuses any query, for paths that take none.
pub fn refuse_any(raw: Option<&str>) -> Result<(), Problem> {
    QueryReader::new(raw.unwrap_or(""))?.refuse_rest()
}

/// Reads the id in the raw path `/messages/{id}`. A segment that is no UUID is `not_found`.
pub fn path_id(path: &str) -> Result<Uuid, Problem> {
    let parse = |segment: &str| Uuid::try_parse(&decode(segment).ok()?).ok();
    path_segment(path, path::MESSAGES_PREFIX, parse, "a UUID, hence not the id of a message")
}

/// Reads the node id in the raw path `/nodes/{id}`. A segment that is no number is `not_found`.
pub fn path_node(path: &str) -> Result<NodeId, Problem> {
    path_segment(path, path::NODES_PREFIX, digits, "the number of a node")
}

fn path_segment<T>(
    path: &str,
    prefix: &str,
    parse: impl FnOnce(&str) -> Option<T>,
    what: &str,
) -> Result<T, Problem> {
    let segment = path.strip_prefix(prefix).unwrap_or(path);
    let not_found = || Problem::new(ErrorCode::NotFound, format!("{} is not {what}", quote(segment)));
    parse(segment).ok_or_else(not_found)
}

/// Takes the values of a query by their keys. Remembers the keys that were asked for, to name them in a refusal.
pub(super) struct QueryReader {
    pairs: BTreeMap<String, String>,
    known: Vec<&'static str>,
}

impl QueryReader {
    /// Decodes all pairs. A key that comes twice is refused.
    pub(super) fn new(raw: &str) -> Result<Self, Problem> {
        let mut pairs = BTreeMap::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decode(key).map_err(|why| invalid(format!("a key {why}")))?;
            let value = decode(value).map_err(|why| invalid(format!("{} {why}", quote(&key))))?;
            match pairs.entry(key) {
                Entry::Occupied(known) => {
                    return Err(invalid(format!("{} is given twice", quote(known.key()))));
                }
                Entry::Vacant(new) => new.insert(value),
            };
        }
        Ok(Self { pairs, known: Vec::new() })
    }

    fn take(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        self.pairs.remove(key)
    }

    /// The conditions on sender and recipient.
    pub(super) fn names(&mut self) -> Result<Filter, Problem> {
        Ok(Filter {
            sender: self.text("sender")?,
            recipient: self.text("recipient")?,
            user: self.text("user")?,
            with: self.text("with")?,
            ..Filter::default()
        })
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<String>, Problem> {
        match self.take(key) {
            Some(value) if value.is_empty() => Err(invalid(format!("`{key}` must not be empty"))),
            value => Ok(value),
        }
    }

    fn value<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let why = |why| invalid(format!("`{key}` is {}{why}", quote(&value)));
        parse(&value).map(Some).map_err(why)
    }

    /// Refuses keys that were not asked for.
    pub(super) fn refuse_rest(self) -> Result<(), Problem> {
        let Some((key, _)) = self.pairs.first_key_value() else { return Ok(()) };
        let known = self.known.join(", ");
        Err(invalid(match known.as_str() {
            "" => format!("{} is unknown: this path takes no query", quote(key)),
            known => format!("{} is unknown; this path knows {known}", quote(key)),
        }))
    }
}

pub(super) struct QueryWriter(pub(super) String);

impl QueryWriter {
    /// A query that begins with these conditions.
    pub(super) fn of(filter: &Filter) -> Self {
        let Filter { sender, recipient, user, with, text, since, until } = filter;
        let texts =
            [("sender", sender), ("recipient", recipient), ("user", user), ("with", with), ("text", text)];
        let mut out = Self(String::new());
        for (key, value) in texts {
            out.value(key, value.as_deref().map(|value| utf8_percent_encode(value, RESERVED)));
        }
        out.value("since", *since);
        out.value("until", *until);
        out
    }

    /// Adds a value that needs no escapes.
    pub(super) fn value(&mut self, key: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            let separator = if self.0.is_empty() { "" } else { "&" };
            write!(self.0, "{separator}{key}={value}").expect("writing to memory does not fail");
        }
    }
}

/// The characters that an HTML form escapes. So a value can stand in a `Link` header, too.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Decodes `+` to a space and `%XX` to a byte. The error is the rest of a sentence about the text.
fn decode(text: &str) -> Result<String, &'static str> {
    let escapes = text.split('%').skip(1).map(|rest| rest.as_bytes().first_chunk::<2>());
    if escapes.into_iter().any(|two| two.is_none_or(|two| !two.iter().all(u8::is_ascii_hexdigit))) {
        return Err("has a percent sign without two hexadecimal digits; write the sign itself as `%25`");
    }
    let spaced = text.replace('+', " ");
    percent_decode(spaced.as_bytes()).decode_utf8().map(Cow::into_owned).map_err(|_| "is not UTF-8")
}

pub(super) fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::InvalidQuery, detail)
}

// The parsers of values. An error is what follows after "`key` is `value`".

fn anchor(value: &str) -> Result<Anchor, String> {
    let anchor = match value.split_once('.') {
        None => Uuid::try_parse(value).ok().map(Anchor::Id),
        Some((origin, seq)) => {
            Uuid::try_parse(origin).ok().zip(digits(seq)).map(|(origin, seq)| Anchor::Entry(origin, seq))
        }
    };
    anchor.ok_or_else(|| ", not a UUID".into())
}

/// A number of nothing but digits: `parse` alone would accept "+5".
fn digits<T: FromStr>(value: &str) -> Option<T> {
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

fn limit(value: &str) -> Result<u32, String> {
    let limit = digits(value).filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| format!(", not a number from 1 to {LIMIT_MAX}"))
}

/// Reads Unix seconds or RFC 3339. Both bounds compare with whole seconds, so a fraction is rounded up for both: a
/// bound at 14.5, inclusive or exclusive, means the same as one at 15.
fn unix_second(value: &str) -> Result<u64, String> {
    match digits::<u64>(value) {
        Some(seconds) if seconds > TIMESTAMP_MAX => {
            Err(": looks like milliseconds; give whole seconds".into())
        }
        Some(seconds) => Ok(seconds),
        None => second_of(value).ok_or_else(|| {
            let hint = if value.contains(' ') { " (in a query, write `+` as `%2B`)" } else { "" };
            format!(", neither Unix seconds nor an RFC 3339 time{hint}")
        }),
    }
}

fn acks(value: &str) -> Result<Acks, String> {
    let acks = match value {
        "quorum" => Some(Acks::Quorum),
        "all" => Some(Acks::All),
        _ => digits(value).filter(|_| !value.starts_with('0')).map(Acks::Count),
    };
    acks.ok_or_else(|| ", neither a number from 1 nor `quorum` nor `all`".into())
}

fn timeout(value: &str) -> Result<Duration, String> {
    let duration = value.parse::<SignedDuration>().ok().and_then(|signed| Duration::try_from(signed).ok());
    duration
        .filter(|duration| *duration <= ACKS_TIMEOUT_MAX)
        .ok_or_else(|| ", not a duration such as 500ms, up to 20s".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(filter: Filter) -> ListQuery {
        ListQuery { filter, ..ListQuery::default() }
    }

    #[track_caller]
    fn check(raw: &str, want: Result<ListQuery, &str>) {
        check_refusal(ListQuery::parse(raw), want);
    }

    #[track_caller]
    fn check_refusal<T: PartialEq + std::fmt::Debug>(got: Result<T, Problem>, want: Result<T, &str>) {
        match (got, want) {
            (Err(problem), Err(part)) => {
                assert_eq!(problem.code, ErrorCode::InvalidQuery);
                assert!(problem.detail.contains(part), "{:?} lacks {part:?}", problem.detail);
            }
            (got, want) => assert_eq!(got.map_err(|problem| problem.detail), want.map_err(str::to_owned)),
        }
    }

    #[test]
    fn filters_are_decoded_as_forms_are() {
        let some = |text: &str| Some(text.to_owned());
        check("", Ok(ListQuery::default()));
        check("&&", Ok(ListQuery::default()));
        let user = list(Filter { user: some("a b"), with: some("ü&"), ..Filter::default() });
        check("with=%C3%BC%26&user=a+b", Ok(user));
        check("recipient=%23ops", Ok(list(Filter { recipient: some("#ops"), ..Filter::default() })));
        check("text=1%2B1", Ok(list(Filter { text: some("1+1"), ..Filter::default() })));
    }

    #[test]
    fn a_long_query_takes_time_in_proportion_to_its_length() {
        let long: Vec<_> = (0..13_000).map(|i| format!("{i:x}")).collect();
        let began = std::time::Instant::now();
        check(&long.join("&"), Err("`0` is unknown"));
        check(&format!("{}&1=2", long.join("&")), Err("`1` is given twice"));
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    }

    #[test]
    fn mistakes_are_refused_with_the_name_of_the_key() {
        check("color=red", Err("`color` is unknown; this path knows sender"));
        check("user=a&user=b", Err("`user` is given twice"));
        check("user=%FF", Err("`user` is not UTF-8"));
        check("user=", Err("`user` must not be empty"));
        check("with=a", Err("`with` needs `user`"));
        check("user=100%", Err("`user` has a percent sign without"));
        check("text=%4", Err("`text` has a percent sign without"));
        check("%zz=a", Err("a key has a percent sign without"));
        for value in ["0", "10001", "-1", "ten", "", "1.5", "%2B5", "99999999999999"] {
            check(&format!("limit={value}"), Err("`limit` is"));
        }
        check("before=17", Err("`before` is `17`, not a UUID"));
        let id = Uuid::max();
        for value in [".1", "1.1", &format!("{id}."), &format!("{id}.-1"), &format!("{id}.%2B1")] {
            check(&format!("after={value}"), Err("not a UUID"));
        }
        check(&format!("before={id}&before={id}"), Err("given twice"));
    }

    #[test]
    fn bounds_are_seconds_or_rfc_3339() {
        let since = |since| Ok(list(Filter { since: Some(since), ..Filter::default() }));
        check("since=1697913600", since(1_697_913_600));
        check("since=2023-10-21T18:40:00Z", since(1_697_913_600));
        check("since=2023-10-21T20:40:00%2B02:00", since(1_697_913_600));
        check("since=2023-10-21T18:39:59.5Z", since(1_697_913_600));
        check("since=1950-01-01T00:00:00Z", since(0));
        check("since=2023-10-21T20:40:00+02:00", Err("write `+` as `%2B`"));
        check("since=1697913600000", Err("looks like milliseconds"));
        check("since=yesterday", Err("neither Unix seconds"));
        check("until=-1", Err("`until` is `-1`"));
        check("until=", Err("`until` is ``"));
    }

    #[test]
    fn a_send_waits_for_copies_at_most_twenty_seconds() {
        let check = |raw: &str, want: Result<u64, &str>| {
            check_refusal(SendQuery::parse(raw).map(|query| query.timeout), want.map(Duration::from_millis));
        };
        check("", Ok(2_000));
        check("acks=1&timeout=500ms", Ok(500));
        check("timeout=20s", Ok(20_000));
        check("timeout=0s", Ok(0));
        check("timeout=20001ms", Err("up to 20s"));
        check("timeout=-1s", Err("up to 20s"));
        check("timeout=5", Err("up to 20s"));
        for value in ["0", "01", "-1", "%2B1", "1.0", "many", "Quorum", "", "99999999999999999999"] {
            check(&format!("acks={value}"), Err("neither a number from 1 nor"));
        }
        check("limit=1", Err("`limit` is unknown"));
    }

    #[test]
    fn only_further_copies_are_waited_for() {
        let check = |raw, ms| assert_eq!(acks_wait(raw), Duration::from_millis(ms), "{raw}");
        for raw in
            ["", "acks=1", "timeout=9s", "acks=1&timeout=9s", "acks=all&acks=all", "acks=all&timeout=9h"]
        {
            check(raw, 0);
        }
        check("acks=quorum", 2_000);
        check("timeout=20s&acks=all", 20_000);
    }

    #[test]
    fn acks_are_counted_against_the_members() {
        let check = |raw: &str, members, want| {
            let acks = SendQuery::parse(raw).expect("well-formed").acks;
            check_refusal(acks.of(members), want);
        };
        check("", 1, Ok(1));
        for (members, quorum) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)] {
            check("acks=quorum", members, Ok(quorum));
            check("acks=all", members, Ok(members));
        }
        check("acks=4", 4, Ok(4));
        check("acks=5", 4, Err("knows 4 nodes, itself included"));
    }

    #[test]
    fn paths_without_query_refuse_any() {
        assert_eq!(refuse_any(None), Ok(()));
        assert_eq!(refuse_any(Some("")), Ok(()));
        check_refusal(refuse_any(Some("x=1")), Err("`x` is unknown"));
        let id = Uuid::max();
        assert_eq!(path_id(&format!("/messages/{id}")), Ok(id));
        assert_eq!(path_id(&format!("/messages/{id}").replace('f', "%66")), Ok(id));
        for path in ["/messages/x", "/messages/%FF", "/messages/%", "/messages/..", "/messages/"] {
            assert_eq!(path_id(path).expect_err("refused").code, ErrorCode::NotFound, "{path}");
        }
        assert_eq!(path_node("/nodes/7"), Ok(7));
        for path in ["/nodes/", "/nodes/x", "/nodes/-1", "/nodes/+1", "/nodes/65536"] {
            assert_eq!(path_node(path).expect_err("refused").code, ErrorCode::NotFound, "{path}");
        }
    }

    fn anchor() -> impl Strategy<Value = Option<Anchor>> {
        let anchor = |(id, seq): (u128, Option<u64>)| {
            let id = Uuid::from_u128(id);
            seq.map_or(Anchor::Id(id), |seq| Anchor::Entry(id, seq))
        };
        proptest::option::of(any::<(u128, Option<u64>)>().prop_map(anchor))
    }

    fn name() -> impl Strategy<Value = Option<String>> {
        proptest::option::of("\\PC{1,20}|[+%&=# ]{1,5}")
    }

    prop_compose! {
        fn query()(
            names in (name(), name(), name(), name(), name()),
            since in proptest::option::of(0..=TIMESTAMP_MAX), until in proptest::option::of(0..=TIMESTAMP_MAX),
            limit in proptest::option::of(1..=LIMIT_MAX), before in anchor(), after in anchor(),
        ) -> ListQuery {
            let (sender, recipient, user, with, text) = names;
            let with = with.filter(|_| user.is_some());
            let filter = Filter { sender, recipient, user, with, text, since, until };
            ListQuery { filter, accepted_since: since, accepted_before: until, limit, before, after }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(query in query()) {
            let raw = query.to_query_string();
            prop_assert!(raw.is_ascii() && !raw.contains(['>', '"', ' ', '#']));
            prop_assert_eq!(ListQuery::parse(&raw), Ok(query));
        }
    }
}
