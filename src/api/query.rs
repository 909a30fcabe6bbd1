//! What stands behind the `?`: read strictly, written back in one way.
//!
//! Unknown and repeated keys, empty values and values out of range are refused with the key's name, for a
//! mistyped filter that is silently ignored would answer the wrong question.

use std::{
    borrow::Cow,
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
use crate::chain::message::TIMESTAMP_MAX;

/// A page holds at most this many messages; a larger `limit` is refused.
pub const LIMIT_MAX: u32 = 10_000;
/// How long a send waits for its acks unless told otherwise.
pub const ACKS_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
/// A longer `timeout` is refused.
pub const ACKS_TIMEOUT_MAX: Duration = Duration::from_secs(20);

/// A message, or one copy of it. Links name copies, for an id can stand for two contents, and its first copy
/// can be another one by the time the link is followed: either would lead a walk past messages or in circles.
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
    /// Who said it.
    pub sender: Option<String>,
    /// Whom it is for.
    pub recipient: Option<String>,
    /// Either of the two.
    pub user: Option<String>,
    /// The other one; only together with `user`.
    pub with: Option<String>,
    /// Contained in the text, without regard to Unicode case.
    pub text: Option<String>,
    /// Inclusive, Unix seconds.
    pub since: Option<u64>,
    /// Exclusive, Unix seconds.
    pub until: Option<u64>,
    /// Without it, everything.
    pub limit: Option<u32>,
    /// Only what is listed before this. With `limit`: the nearest to it.
    pub before: Option<Anchor>,
    /// Only what is listed after this. With `limit` and without `before`: the nearest to it.
    pub after: Option<Anchor>,
}

impl ListQuery {
    /// Reads a raw query string (without the `?`).
    pub fn parse(raw: &str) -> Result<Self, Problem> {
        let mut query = Self::default();
        for (key, value) in pairs(raw)? {
            match key.as_ref() {
                "sender" => query.sender = Some(given("sender", value)?),
                "recipient" => query.recipient = Some(given("recipient", value)?),
                "user" => query.user = Some(given("user", value)?),
                "with" => query.with = Some(given("with", value)?),
                "text" => query.text = Some(given("text", value)?),
                "since" => query.since = Some(second("since", &value)?),
                "until" => query.until = Some(second("until", &value)?),
                "limit" => query.limit = Some(limit(&value)?),
                "before" => query.before = Some(mark("before", &value)?),
                "after" => query.after = Some(mark("after", &value)?),
                _ => {
                    let known = "sender, recipient, user, with, text, since, until, limit, before, after";
                    return Err(unknown(&key, known));
                }
            }
        }
        if query.with.is_some() && query.user.is_none() {
            return Err(invalid("`with` needs `user`: they are the two sides of a conversation"));
        }
        Ok(query)
    }

    /// Writes it as a raw query string, empty if nothing is asked.
    pub fn to_query_string(&self) -> String {
        let mut out = String::new();
        let names = [&self.sender, &self.recipient, &self.user, &self.with, &self.text];
        for (key, value) in ["sender", "recipient", "user", "with", "text"].into_iter().zip(names) {
            if let Some(value) = value {
                push(&mut out, key, &utf8_percent_encode(value, RESERVED));
            }
        }
        for (key, value) in
            [("since", self.since), ("until", self.until), ("limit", self.limit.map(u64::from))]
        {
            if let Some(value) = value {
                push(&mut out, key, &value);
            }
        }
        for (key, mark) in [("before", self.before), ("after", self.after)] {
            if let Some(mark) = mark {
                push(&mut out, key, &mark);
            }
        }
        out
    }
}

/// On how many nodes a message must be before its sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    /// On so many, at least 1.
    Count(usize),
    /// On more than half of the members.
    Quorum,
    /// On all members.
    All,
}

impl Acks {
    /// How many that is of so many members, the node itself included.
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
    /// How many copies to wait for.
    pub acks: Acks,
    /// How long to wait for the acks.
    pub timeout: Duration,
}

impl SendQuery {
    /// Reads a raw query string (without the `?`).
    pub fn parse(raw: &str) -> Result<Self, Problem> {
        let mut query = Self { acks: Acks::Count(1), timeout: ACKS_TIMEOUT_DEFAULT };
        for (key, value) in pairs(raw)? {
            match key.as_ref() {
                "acks" => query.acks = acks(&value)?,
                "timeout" => query.timeout = timeout(&value)?,
                _ => return Err(unknown(&key, "acks, timeout")),
            }
        }
        Ok(query)
    }
}

/// How long a send with this query may rightly take because it asks for further copies. None of a query that no node takes.
pub fn acks_wait(raw: &str) -> Duration {
    let pairs = pairs(raw).unwrap_or_default();
    let find = |name| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_ref());
    match find("acks") {
        None | Some("1") => Duration::ZERO,
        Some(_) => find("timeout")
            .map_or(Some(ACKS_TIMEOUT_DEFAULT), |value| timeout(value).ok())
            .unwrap_or_default(),
    }
}

/// For endpoints that take no query.
pub fn refuse_any(raw: Option<&str>) -> Result<(), Problem> {
    match pairs(raw.unwrap_or(""))?.into_iter().next() {
        None => Ok(()),
        Some((key, _)) => Err(invalid(format!("{} is unknown: this path takes no query", quote(&key)))),
    }
}

/// Reads the id in the raw path `/messages/{id}`. What is no UUID names no message.
pub fn path_id(path: &str) -> Result<Uuid, Problem> {
    let segment = path.strip_prefix(path::MESSAGES_PREFIX).unwrap_or(path);
    let id = decode(segment).ok().and_then(|id| Uuid::try_parse(&id).ok());
    id.ok_or_else(|| {
        let detail = format!("{} is not a UUID, hence not the id of a message", quote(segment));
        Problem::new(ErrorCode::NotFound, detail)
    })
}

/// Reads the node id in the raw path `/nodes/{id}`. What is no number names no node.
pub fn path_node(path: &str) -> Result<NodeId, Problem> {
    let segment = path.strip_prefix(path::NODES_PREFIX).unwrap_or(path);
    digits(segment).ok_or_else(|| {
        let detail = format!("{} is not the number of a node", quote(segment));
        Problem::new(ErrorCode::NotFound, detail)
    })
}

/// Everything that a form encodes, so that a value can stand in a `Link` header too.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn push(out: &mut String, key: &str, value: &dyn std::fmt::Display) {
    let separator = if out.is_empty() { "" } else { "&" };
    write!(out, "{separator}{key}={value}").expect("writing to memory does not fail");
}

/// A decoded key and its value.
pub(super) type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

/// All pairs of a query, no key twice.
pub(super) fn pairs(raw: &str) -> Result<Vec<Pair<'_>>, Problem> {
    let mut pairs: Vec<Pair<'_>> = Vec::new();
    for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decode(key).map_err(|why| invalid(format!("a key {why}")))?;
        let value = decode(value).map_err(|why| invalid(format!("{} {why}", quote(&key))))?;
        if pairs.iter().any(|(known, _)| *known == key) {
            return Err(invalid(format!("{} is given twice", quote(&key))));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// `+` is a space and `%XX` a byte. Says what is wrong as the rest of a sentence.
fn decode(text: &str) -> Result<Cow<'_, str>, &'static str> {
    let escapes = text.split('%').skip(1).map(|rest| rest.as_bytes().first_chunk::<2>());
    if escapes.into_iter().any(|two| two.is_none_or(|two| !two.iter().all(u8::is_ascii_hexdigit))) {
        return Err("has a percent sign without two hexadecimal digits; write the sign itself as `%25`");
    }
    let not_utf8 = "is not UTF-8";
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode(spaced.as_bytes()).decode_utf8().map_err(|_| not_utf8)?;
        return Ok(Cow::Owned(decoded.into_owned()));
    }
    percent_decode(text.as_bytes()).decode_utf8().map_err(|_| not_utf8)
}

pub(super) fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::InvalidQuery, detail)
}

pub(super) fn unknown(key: &str, known: &str) -> Problem {
    invalid(format!("{} is unknown; this path knows {known}", quote(key)))
}

pub(super) fn given(key: &str, value: Cow<'_, str>) -> Result<String, Problem> {
    if value.is_empty() {
        return Err(invalid(format!("`{key}` must not be empty")));
    }
    Ok(value.into_owned())
}

fn mark(key: &str, value: &str) -> Result<Anchor, Problem> {
    let mark = match value.split_once('.') {
        None => Uuid::try_parse(value).ok().map(Anchor::Id),
        Some((origin, seq)) => {
            Uuid::try_parse(origin).ok().zip(digits(seq)).map(|(origin, seq)| Anchor::Entry(origin, seq))
        }
    };
    mark.ok_or_else(|| invalid(format!("`{key}` is {}, not a UUID", quote(value))))
}

/// A number of nothing but digits: `parse` alone would take "+5".
fn digits<T: FromStr>(value: &str) -> Option<T> {
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

fn limit(value: &str) -> Result<u32, Problem> {
    let limit = digits(value).filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| invalid(format!("`limit` is {}, not a number from 1 to {LIMIT_MAX}", quote(value))))
}

/// Unix seconds or RFC 3339. Both bounds compare with whole seconds, so a fraction is rounded up for both:
/// neither an inclusive nor an exclusive bound at 14.5 lets 14 in or keeps 15 out differently from one at 15.
fn second(key: &str, value: &str) -> Result<u64, Problem> {
    if let Some(seconds) = digits::<u64>(value) {
        if seconds > TIMESTAMP_MAX {
            return Err(invalid(format!(
                "`{key}` is {seconds}: looks like milliseconds; give whole seconds"
            )));
        }
        return Ok(seconds);
    }
    second_of(value).ok_or_else(|| {
        let hint = if value.contains(' ') { " (in a query, write `+` as `%2B`)" } else { "" };
        invalid(format!("`{key}` is {}, neither Unix seconds nor an RFC 3339 time{hint}", quote(value)))
    })
}

fn acks(value: &str) -> Result<Acks, Problem> {
    let count = || digits(value).filter(|_| !value.starts_with('0')).map(Acks::Count);
    let acks = match value {
        "quorum" => Some(Acks::Quorum),
        "all" => Some(Acks::All),
        _ => count(),
    };
    acks.ok_or_else(|| {
        invalid(format!("`acks` is {}, neither a number from 1 nor `quorum` nor `all`", quote(value)))
    })
}

fn timeout(value: &str) -> Result<Duration, Problem> {
    let duration = value.parse::<SignedDuration>().ok().and_then(|signed| Duration::try_from(signed).ok());
    duration.filter(|duration| *duration <= ACKS_TIMEOUT_MAX).ok_or_else(|| {
        invalid(format!("`timeout` is {}, not a duration such as 500ms, up to 20s", quote(value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        let user = ListQuery { user: some("a b"), with: some("ü&"), ..ListQuery::default() };
        check("with=%C3%BC%26&user=a+b", Ok(user));
        check("recipient=%23ops", Ok(ListQuery { recipient: some("#ops"), ..ListQuery::default() }));
        check("text=1%2B1", Ok(ListQuery { text: some("1+1"), ..ListQuery::default() }));
    }

    #[test]
    fn what_is_not_in_the_contract_is_refused_by_name() {
        check("colour=red", Err("`colour` is unknown; this path knows sender"));
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
        let since = |since| Ok(ListQuery { since: Some(since), ..ListQuery::default() });
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

    fn mark() -> impl Strategy<Value = Option<Anchor>> {
        let mark = |(id, seq): (u128, Option<u64>)| {
            let id = Uuid::from_u128(id);
            seq.map_or(Anchor::Id(id), |seq| Anchor::Entry(id, seq))
        };
        proptest::option::of(any::<(u128, Option<u64>)>().prop_map(mark))
    }

    fn name() -> impl Strategy<Value = Option<String>> {
        proptest::option::of("\\PC{1,20}|[+%&=# ]{1,5}")
    }

    prop_compose! {
        fn query()(
            names in (name(), name(), name(), name(), name()),
            since in proptest::option::of(0..=TIMESTAMP_MAX), until in proptest::option::of(0..=TIMESTAMP_MAX),
            limit in proptest::option::of(1..=LIMIT_MAX), before in mark(), after in mark(),
        ) -> ListQuery {
            let (sender, recipient, user, with, text) = names;
            let with = with.filter(|_| user.is_some());
            ListQuery { sender, recipient, user, with, text, since, until, limit, before, after }
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
