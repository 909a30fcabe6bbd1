//! `POST /messages`: what is stored and what the answer says, at a node and through the proxy alike.
//!
//! Requests that are refused are in `refusals`.

use std::net::SocketAddr;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::Response;
use crate::support::servers::{JSON, Servers, check_refusal, get, keys, post};

/// The fields of an answer to a sender that gave no timestamp.
const SENT: [&str; 11] = [
    "id",
    "sender",
    "recipient",
    "text",
    "timestamp",
    "accepted_at",
    "origin",
    "seq",
    "timestamp_from",
    "durable_on",
    "duplicate",
];

fn send(addr: SocketAddr, message: &Value) -> Response {
    post(addr, "/messages", &[JSON], message.to_string())
}

fn with_key(addr: SocketAddr, key: &str, message: &Value) -> Response {
    post(addr, "/messages", &[JSON, ("idempotency-key", key)], message.to_string())
}

/// Milliseconds since the epoch. Panics unless the value is an RFC 3339 time in UTC with exactly three decimals.
#[track_caller]
fn millis(time: &Value) -> i64 {
    let text = time.as_str().expect("a time is text");
    assert!(text.len() == 24 && text.ends_with('Z'), "{text}");
    text.parse::<jiff::Timestamp>().expect("RFC 3339").as_millisecond()
}

#[test]
fn the_answer_has_the_fields_of_the_contract_in_order() {
    let servers = Servers::start();
    for (seq, (server, addr)) in (1..).zip(servers.both()) {
        let id = Uuid::now_v7();
        let text = "Hello \"world\"! \u{1F30D} \\ \n\t\u{1b}";
        let message = json!({ "sender": "user1", "recipient": "user2", "text": text, "timestamp": 1_697_913_600, "id": id });
        let answer = send(addr, &message);
        assert_eq!(
            (answer.status(), answer.header("content-type")),
            (201, Some("application/json")),
            "{server}"
        );
        assert_eq!(answer.header("location"), Some(format!("/messages/{id}").as_str()), "{server}");
        let sent = answer.json();
        let (accepted_at, origin) = (sent["accepted_at"].as_str(), sent["origin"].as_str());
        let want = format!(
            concat!(
                r#"{{"id":"{id}","sender":"user1","recipient":"user2","text":{text},"timestamp":1697913600,"#,
                r#""accepted_at":"{at}","origin":"{origin}","seq":{seq},"durable_on":[0],"duplicate":false}}"#,
                "\n"
            ),
            id = id,
            text = json!(text),
            at = accepted_at.expect("text"),
            origin = origin.expect("text"),
            seq = seq,
        );
        assert_eq!(answer.text(), want, "{server}");
        let age = millis(&servers.history()[0]["accepted_at"]) - millis(&sent["accepted_at"]);
        assert!(age.abs() < 600_000, "{server}: accepted {age} ms apart");
        assert_eq!(
            Uuid::try_parse(origin.expect("text")).map(Uuid::hyphenated).expect("a UUID").to_string(),
            origin.expect("text")
        );
    }
    assert_eq!(servers.count(), 2);
}

#[test]
fn a_repeated_send_succeeds_as_a_duplicate() {
    let servers = Servers::start();
    let message = json!({ "sender": "a", "recipient": "b", "text": "c", "id": Uuid::now_v7() });
    let first = send(servers.node(), &message);
    for (server, addr) in servers.both() {
        let again = send(addr, &message);
        assert_eq!(again.status(), 200, "{server}: {}", again.text());
        assert_eq!(
            again.text(),
            first.text().replace("\"duplicate\":false", "\"duplicate\":true"),
            "{server}"
        );
        assert_eq!(again.header("location"), first.header("location"), "{server}");
    }
    assert_eq!(servers.count(), 1);
}

#[test]
fn a_missing_id_and_timestamp_are_filled_in() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        let before = servers.count();
        let bare = json!({ "sender": "a", "recipient": "b", "text": "the same words" });
        let nulls = json!({ "sender": "a", "recipient": "b", "text": "the same words", "id": null, "timestamp": null });
        let mut ids = Vec::new();
        for message in [&bare, &nulls, &bare] {
            let answer = send(addr, message);
            assert_eq!(answer.status(), 201, "{server}: {}", answer.text());
            assert_eq!(keys(answer.text()), SENT, "{server}");
            let sent = answer.json();
            assert_eq!(sent["timestamp"], millis(&sent["accepted_at"]).div_euclid(1000), "{server}");
            ids.push(sent["id"].to_string());
        }
        ids.dedup();
        assert_eq!((ids.len(), servers.count() - before), (3, 3), "{server}: {ids:?}");
    }
}

#[test]
fn the_idempotency_key_is_the_id_quoted_or_not() {
    let servers = Servers::start();
    let bare = json!({ "sender": "a", "recipient": "b", "text": "c" });
    for (server, addr) in servers.both() {
        let key = Uuid::now_v7();
        let spellings =
            [key.to_string(), format!("\"{key}\""), key.to_string().to_uppercase(), format!("\"{key}\"")];
        for (i, spelling) in spellings.iter().enumerate() {
            let answer = with_key(addr, spelling, &bare);
            assert_eq!(
                answer.status(),
                if i == 0 { 201 } else { 200 },
                "{server} {spelling}: {}",
                answer.text()
            );
            assert_eq!(answer.json()["id"], key.to_string(), "{server} {spelling}");
        }
        let mut agreeing = bare.clone();
        agreeing["id"] = json!(key.to_string().to_uppercase());
        assert_eq!(with_key(addr, &key.to_string(), &agreeing).status(), 200, "{server}");
    }
    assert_eq!(servers.count(), 2);
}

#[test]
fn an_idempotency_key_that_is_no_uuid_or_differs_from_the_id_is_refused() {
    let servers = Servers::start();
    let bare = json!({ "sender": "a", "recipient": "b", "text": "c" });
    let other = json!({ "sender": "a", "recipient": "b", "text": "c", "id": Uuid::now_v7() });
    let key = Uuid::now_v7().to_string();
    for (server, addr) in servers.both() {
        check_refusal(server, &with_key(addr, &key, &other), 422, "invalid_message", &key);
        for wrong in ["", "17", "\"", "\"\"", "not-a-uuid", &format!("\"{key}"), &format!("{key}, {key}")] {
            let what = format!("{server}, key {wrong:?}");
            check_refusal(&what, &with_key(addr, wrong, &bare), 422, "invalid_message", "Idempotency-Key");
        }
        let twice = [JSON, ("idempotency-key", &*key), ("idempotency-key", &*key)];
        let answer = post(addr, "/messages", &twice, bare.to_string());
        check_refusal(server, &answer, 422, "invalid_message", "twice");
    }
    assert_eq!(servers.count(), 0);
}

#[test]
fn an_id_with_other_content_is_refused() {
    let servers = Servers::start();
    let id = Uuid::now_v7();
    let message = json!({ "sender": "a", "recipient": "b", "text": "c", "timestamp": 5, "id": id });
    servers.store(&message);
    for (server, addr) in servers.both() {
        for (field, value) in [
            ("sender", json!("x")),
            ("recipient", json!("x")),
            ("text", json!("C")),
            ("timestamp", json!(6)),
            ("timestamp", json!(null)),
        ] {
            let mut other = message.clone();
            other[field] = value;
            let what = format!("{server}, other {field}");
            check_refusal(&what, &send(addr, &other), 409, "id_conflict", "other content");
        }
        assert_eq!(send(addr, &message).status(), 200, "{server}: the first content is kept");
    }
    assert_eq!(servers.count(), 1);
    assert_eq!(
        servers.cluster.statuses()[0]["conflicts"],
        0,
        "a refused message is not counted as a conflict"
    );
    assert_eq!(get(servers.node(), &format!("/messages/{id}")).json()["text"], "c");
}

#[test]
fn an_id_may_be_any_uuid_in_any_spelling() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        let id = Uuid::new_v4();
        let spellings = [
            id.to_string(),
            id.to_string().to_uppercase(),
            id.simple().to_string(),
            id.braced().to_string(),
            id.urn().to_string(),
        ];
        for (i, spelling) in spellings.iter().enumerate() {
            let answer = send(addr, &json!({ "sender": "a", "recipient": "b", "text": "c", "id": spelling }));
            assert_eq!(
                answer.status(),
                if i == 0 { 201 } else { 200 },
                "{server} {spelling}: {}",
                answer.text()
            );
            assert_eq!(answer.json()["id"], id.to_string(), "{server} {spelling}: lower case, with hyphens");
        }
    }
    for odd in [Uuid::nil(), Uuid::max()] {
        servers.store(&json!({ "sender": "a", "recipient": "b", "text": "c", "id": odd }));
    }
    assert_eq!(servers.count(), 4);
}

#[test]
fn messages_at_the_limits_are_stored_unchanged() {
    let servers = Servers::start();
    let messages = [
        json!({ "sender": "\u{1F30D}".repeat(64), "recipient": "é".repeat(64), "text": "x".repeat(16_384), "timestamp": 0 }),
        json!({ "sender": "a b", "recipient": "#ops", "text": "\u{1F30D}".repeat(4096), "timestamp": 253_402_300_799_u64 }),
        json!({ "sender": "a", "recipient": "a", "text": " \u{1}\u{7f}\u{9b}31m\u{2028}\u{feff}\r\n", "timestamp": 1 }),
        json!({ "sender": "a\u{202e}", "recipient": "\\\"", "text": "\n", "timestamp": 1 }),
    ];
    for (server, addr) in servers.both() {
        for message in &messages {
            let answer = send(addr, message);
            assert_eq!(answer.status(), 201, "{server}: {}", answer.text());
            let location = answer.header("location").expect("a Location").to_owned();
            for got in [answer.json(), get(addr, &location).json()] {
                for field in ["sender", "recipient", "text", "timestamp"] {
                    assert_eq!(got[field], message[field], "{server}");
                }
            }
        }
        // The longest text fits into a body even with every character escaped; a body may have up to 128 KiB.
        let escaped = format!(r#"{{"sender":"a","recipient":"b","text":"{}"}}"#, "\\u0041".repeat(16_384));
        let padded = format!("{}{escaped}", " ".repeat(128 * 1024 - escaped.len()));
        for body in [escaped, padded] {
            assert_eq!(post(addr, "/messages", &[JSON], body).status(), 201, "{server}");
        }
    }
    assert_eq!(servers.count(), 12);
}

#[test]
fn a_lone_node_is_its_own_quorum() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        for query in
            ["?", "?acks=1", "?acks=1&timeout=500ms", "?timeout=20s", "?acks=quorum&timeout=0s", "?acks=all"]
        {
            let body = json!({ "sender": "a", "recipient": "b", "text": "c" }).to_string();
            assert_eq!(
                post(addr, &format!("/messages{query}"), &[JSON], body).status(),
                201,
                "{server} {query}"
            );
        }
    }
}

#[test]
fn a_content_type_may_have_parameters_and_any_case() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        for kind in
            ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=\"utf-8\""]
        {
            let body = json!({ "sender": "a", "recipient": "b", "text": "c" }).to_string();
            let answer = post(addr, "/messages", &[("content-type", kind)], body);
            assert_eq!(answer.status(), 201, "{server} {kind}: {}", answer.text());
        }
    }
}
