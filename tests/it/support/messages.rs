//! Numbered messages: what tests send, and the checks of what nodes list.
//!
//! All fields of a numbered message follow from its number, its id included. So a test only keeps numbers, and every
//! field of a listed message can be checked.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use uuid::Uuid;

use super::cluster::Cluster;
use super::http;

/// Lines in one batch: the most that a server accepts.
const BATCH_LINES: usize = 10_000;
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

/// The id of a numbered message, evenly spread as random ids are.
pub fn id(number: u64) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &number.to_be_bytes())
}

/// A message without a timestamp, as most clients send it.
pub fn numbered(number: u64) -> Value {
    json!({
        "id": id(number),
        "sender": format!("user{}", number % 7),
        "recipient": format!("user{}", number % 5),
        "text": format!("message {number} ä"),
    })
}

/// The outcome of one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    New,
    Duplicate,
    Conflict,
}

/// Sends one message. Anything but these three outcomes fails the test.
#[track_caller]
pub fn send(addr: SocketAddr, message: &Value) -> Sent {
    let answer =
        http::post_json(addr, "/messages", message).unwrap_or_else(|e| panic!("{addr}: {message}: {e}"));
    outcome(&answer)
}

/// The outcome that an answer to a send reports.
#[track_caller]
pub fn outcome(answer: &http::Response) -> Sent {
    let json = answer.json();
    match (answer.status(), &json["duplicate"], &json["code"]) {
        (201, Value::Bool(false), _) => Sent::New,
        (200, Value::Bool(true), _) => Sent::Duplicate,
        (409, _, Value::String(code)) if code == "id_conflict" => Sent::Conflict,
        _ => panic!("{answer:?}"),
    }
}

/// Numbered messages as a batch.
pub fn lines(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    numbers.into_iter().flat_map(|number| format!("{}\n", numbered(number)).into_bytes()).collect()
}

/// Sends these lines in one request. Gives the counts of new messages and duplicates; none may be rejected.
#[track_caller]
pub fn send_lines(addr: SocketAddr, lines: &[u8]) -> (u64, u64) {
    let answer =
        http::post(addr, "/messages", &[NDJSON], lines).unwrap_or_else(|e| panic!("{addr}: a batch: {e}"));
    let json = answer.json();
    assert_eq!((answer.status(), &json["rejected"]), (200, &json!([])), "{}", answer.text());
    (json["accepted"].as_u64().expect("a number"), json["duplicates"].as_u64().expect("a number"))
}

/// Sends new numbered messages in batches.
#[track_caller]
pub fn send_all(addr: SocketAddr, numbers: impl IntoIterator<Item = u64>) {
    let numbers: Vec<_> = numbers.into_iter().collect();
    for batch in numbers.chunks(BATCH_LINES) {
        let sent = send_lines(addr, &lines(batch.iter().copied()));
        assert_eq!(sent, (batch.len() as u64, 0), "{addr}: all of a batch are new");
    }
}

/// The raw listing of a node's whole history.
#[track_caller]
pub fn history(addr: SocketAddr) -> Vec<u8> {
    listing(addr, "")
}

/// The raw listing for this query.
#[track_caller]
pub fn listing(addr: SocketAddr, query: &str) -> Vec<u8> {
    let answer = http::get(addr, &format!("/messages{query}")).unwrap_or_else(|e| panic!("{addr}: {e}"));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.body
}

/// The history of all running nodes. Panics unless all give the same bytes.
#[track_caller]
pub fn common_history(cluster: &Cluster) -> Vec<u8> {
    let up: Vec<_> = (0..cluster.count()).filter(|i| cluster.is_up(*i)).collect();
    let first = history(cluster.node(up[0]));
    for i in &up[1..] {
        // Not assert_eq: its message would print both histories.
        assert!(history(cluster.node(*i)) == first, "nodes {} and {i} give different histories", up[0]);
    }
    first
}

/// The listed messages.
#[track_caller]
pub fn parse(listing: &[u8]) -> Vec<Value> {
    serde_json::from_slice(listing).unwrap_or_else(|e| panic!("not a listing: {e}"))
}

/// How often each numbered message is listed. Panics if any other or changed message is listed.
#[track_caller]
pub fn tally(listing: &[u8]) -> BTreeMap<u64, u64> {
    let mut tally = BTreeMap::new();
    for listed in parse(listing) {
        *tally.entry(number(&listed)).or_default() += 1;
    }
    tally
}

/// The number of a listed message. Panics if it is not a numbered message with unchanged fields.
#[track_caller]
pub fn number(listed: &Value) -> u64 {
    let words = listed["text"].as_str().and_then(|text| text.split(' ').nth(1));
    let number = words
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("not a numbered message: {listed}"));
    let sent = numbered(number);
    for field in ["id", "sender", "recipient", "text"] {
        assert_eq!(listed[field], sent[field], "{field} of message {number}");
    }
    number
}

/// Fails unless the listing holds exactly these messages, each once.
#[track_caller]
pub fn assert_holds(listing: &[u8], numbers: impl IntoIterator<Item = u64>) {
    let mut listed = tally(listing);
    let sent: Vec<_> = numbers.into_iter().collect();
    let missing: Vec<_> = sent.iter().filter(|number| !listed.contains_key(number)).collect();
    assert!(missing.is_empty(), "{} messages are missing: {:?}", missing.len(), first(&missing));
    let twice: Vec<_> = listed.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "{} messages are listed more than once: {:?}", twice.len(), first(&twice));
    for number in sent {
        listed.remove(&number);
    }
    assert!(
        listed.is_empty(),
        "{} messages that were not expected: {:?}",
        listed.len(),
        listed.first_entry()
    );
}

/// The first 20 elements, so that a failure message stays short.
fn first<T>(list: &[T]) -> &[T] {
    &list[..list.len().min(20)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().map(|number| numbered(*number)).collect::<Value>().to_string().into_bytes()
    }

    #[test]
    fn a_listing_holds_what_was_sent() {
        assert_holds(&listed(&[3, 1]), [1, 3]);
    }

    #[test]
    #[should_panic(expected = "1 messages are missing: [2]")]
    fn a_missing_message_is_named() {
        assert_holds(&listed(&[1]), [1, 2]);
    }

    #[test]
    #[should_panic(expected = "1 messages are listed more than once: [(1, 2)]")]
    fn a_message_listed_twice_is_named() {
        assert_holds(&listed(&[1, 1]), [1]);
    }

    #[test]
    #[should_panic(expected = "1 messages that were not expected")]
    fn an_unsent_message_is_named() {
        assert_holds(&listed(&[1, 2]), [1]);
    }

    #[test]
    #[should_panic(expected = "sender of message 1")]
    fn a_changed_message_is_named() {
        let text = String::from_utf8(listed(&[1])).expect("text").replace("user1\"", "user2\"");
        assert_holds(text.as_bytes(), [1]);
    }
}
