//! Batches of messages in one `POST /messages`: each line is accepted or rejected by itself, and the whole batch can be
//! repeated safely.

use std::net::SocketAddr;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::servers::{NDJSON, Servers, check_refusal, keys, post};

const GOOD: &str = r#"{"sender":"a","recipient":"b","text":"c"}"#;

fn send(addr: SocketAddr, key: Option<&str>, body: impl AsRef<[u8]>) -> Value {
    let mut headers = vec![NDJSON];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    let answer = post(addr, "/messages", &headers, body);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(keys(answer.text()), ["accepted", "duplicates", "rejected"]);
    answer.json()
}

/// The answer to a batch has these counts and these rejected lines.
#[track_caller]
fn check(answer: &Value, accepted: u64, duplicates: u64, rejected: &[(u64, &str, &str)]) {
    assert_eq!(
        (&answer["accepted"], &answer["duplicates"]),
        (&accepted.into(), &duplicates.into()),
        "{answer}"
    );
    let lines = answer["rejected"].as_array().expect("an array");
    assert_eq!(lines.len(), rejected.len(), "{answer}");
    for (got, (line, code, part)) in lines.iter().zip(rejected) {
        assert_eq!(keys_of(got), ["code", "detail", "line", "retryable"], "{got}");
        assert_eq!(
            (&got["line"], &got["code"], &got["retryable"]),
            (&(*line).into(), &(*code).into(), &false.into()),
            "{got}"
        );
        assert!(got["detail"].as_str().is_some_and(|detail| detail.contains(part)), "{got} lacks {part:?}");
    }
}

fn keys_of(value: &Value) -> Vec<&String> {
    value.as_object().expect("an object").keys().collect()
}

#[test]
fn each_line_is_accepted_or_rejected_by_itself_with_its_number() {
    let servers = Servers::start();
    for (_, addr) in servers.both() {
        let before = servers.count();
        let id = Uuid::now_v7();
        let known = format!(r#"{{"sender":"a","recipient":"b","text":"c","id":"{id}"}}"#);
        let other = known.replace("\"c\"", "\"d\"");
        let long = format!(r#"{{"sender":"a","recipient":"b","text":"{}"}}"#, "x".repeat(128 * 1024));
        let control = GOOD.replace("\"a\"", "\"a\\u0007\"");
        let lines: [&[u8]; 16] = [
            GOOD.as_bytes(),                                                                           // 1
            b"",                // 2: empty lines are skipped but counted
            known.as_bytes(),   // 3
            b"{\"sender\":",    // 4
            known.as_bytes(),   // 5: a duplicate
            other.as_bytes(),   // 6: the same id with other content
            b"  \t ",           // 7: blank
            b"\xff\xfe",        // 8
            b"[]",              // 9
            long.as_bytes(),    // 10
            b"{}",              // 11
            control.as_bytes(), // 12
            b"null",            // 13
            br#"{"sender":"a","recipient":"b","text":"c","colour":"red"}"#, // 14
            br#"{"sender":"a","recipient":"b","text":"c"} {"sender":"a","recipient":"b","text":"c"}"#, // 15
            GOOD.as_bytes(),    // 16
        ];
        let answer = send(addr, None, lines.join(&b"\r\n"[..]));
        check(
            &answer,
            3,
            1,
            &[
                (4, "invalid_json", "EOF"),
                (6, "id_conflict", "other content"),
                (8, "invalid_json", "UTF-8"),
                (9, "invalid_message", "not an array"),
                (10, "too_large", "131072"),
                (11, "invalid_message", "`sender` is missing"),
                (12, "invalid_message", "`sender`"),
                (13, "invalid_message", "not null"),
                (14, "invalid_message", "`colour` is unknown"),
                (15, "invalid_json", "trailing"),
            ],
        );
        assert_eq!(servers.count() - before, 3);
    }
}

#[test]
fn a_batch_with_a_key_can_be_repeated_through_either_server() {
    let servers = Servers::start();
    let key = Uuid::now_v7().to_string();
    let own = format!(r#"{{"sender":"a","recipient":"b","text":"own id","id":"{}"}}"#, Uuid::now_v7());
    let body = format!("{GOOD}\n\n{GOOD}\nnonsense\n{own}\n{GOOD}");
    check(&send(servers.proxy(), Some(&key), &body), 4, 0, &[(4, "invalid_json", "JSON")]);
    for (_, addr) in servers.both() {
        check(&send(addr, Some(&format!("\"{key}\"")), &body), 0, 4, &[(4, "invalid_json", "JSON")]);
    }
    // The id of a line is derived from the key and the line number: a moved line is another message, and a longer batch
    // only adds its new lines.
    check(&send(servers.node(), Some(&key), format!("{body}\n{GOOD}")), 1, 4, &[(4, "invalid_json", "JSON")]);
    check(
        &send(servers.node(), Some(&key), GOOD.replace("\"c\"", "\"other\"")),
        0,
        0,
        &[(1, "id_conflict", "other content")],
    );
    assert_eq!(servers.count(), 5);
}

#[test]
fn without_a_key_equal_lines_are_different_messages() {
    let servers = Servers::start();
    for (_, addr) in servers.both() {
        let before = servers.count();
        let body = format!("{GOOD}\n").repeat(3);
        check(&send(addr, None, &body), 3, 0, &[]);
        check(&send(addr, None, &body), 3, 0, &[]);
        assert_eq!(servers.count() - before, 6);
    }
}

#[test]
fn an_empty_batch_accepts_nothing() {
    let servers = Servers::start();
    for (_, addr) in servers.both() {
        for body in ["", "\n", "\r\n\r\n  \n"] {
            check(&send(addr, None, body), 0, 0, &[]);
        }
    }
    assert_eq!(servers.count(), 0);
}

#[test]
fn ten_thousand_lines_keep_their_order() {
    let servers = Servers::start();
    let (_, addr) = servers.both()[1];
    let line =
        |i: usize| format!("{}\n\n", json!({ "sender": "a", "recipient": "b", "text": i.to_string() }));
    let body: String = (0..10_000).map(line).collect();
    let key = Uuid::now_v7().to_string();
    check(&send(addr, Some(&key), &body), 10_000, 0, &[]);
    check(&send(addr, Some(&key), &body), 0, 10_000, &[]);
    let texts: Vec<_> =
        servers.history().iter().map(|message| message["text"].as_str().map(str::to_owned)).collect();
    assert!(
        texts.into_iter().eq((0..10_000).map(|i| Some(i.to_string()))),
        "listed in the order in which they were sent"
    );
}

#[test]
fn a_batch_that_is_too_long_is_refused_as_a_whole() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        let lines = format!("{GOOD}\n").repeat(10_001);
        check_refusal(server, &post(addr, "/messages", &[NDJSON], lines), 413, "too_large", "10000 lines");
        let padding = " ".repeat(8 * 1024 * 1024);
        let bytes = format!("{GOOD}\n{padding}");
        check_refusal(server, &post(addr, "/messages", &[NDJSON], bytes), 413, "too_large", "8388608 bytes");
    }
    assert_eq!(servers.count(), 0);
}

#[test]
fn an_invalid_key_or_query_refuses_the_batch() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        let answer = post(addr, "/messages", &[NDJSON, ("idempotency-key", "17")], GOOD);
        check_refusal(server, &answer, 422, "invalid_message", "Idempotency-Key");
        let answer = post(addr, "/messages?acks=2", &[NDJSON], GOOD);
        check_refusal(server, &answer, 400, "invalid_query", "acks");
    }
    assert_eq!(servers.count(), 0);
}
