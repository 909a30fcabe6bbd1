//! `GET /messages` and `GET /messages/{id}`: filters, bounds, order and bytes, at a node and through the proxy alike.
//!
//! The expected result of each filter is computed here from the whole history, independently of the program. Pages and
//! their links are in `pages`.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::cluster::Cluster;
use crate::support::feed::{self, Format, catch_up};
use crate::support::http::{self, Connection, Response};
use crate::support::messages::{self, Sent, send};
use crate::support::servers::{JSON, NDJSON, Servers, array, check_refusal, get, keys, post};

const LISTED: [&str; 8] = ["id", "sender", "recipient", "text", "timestamp", "accepted_at", "origin", "seq"];

/// Stores 24 messages among four users and a room: texts that need Unicode case folding, timestamps out of order.
fn store_conversation(servers: &Servers) {
    let people = ["ann", "bob", "Ann", "#ops", "weiß & söhne"];
    let texts = ["Hello", "GRÜSSE aus der Straße", "ΟΔΥΣΣΕΥΣ", "100% +1 & more?", "\u{1F30D} hello", "a\nb"];
    for i in 0..24_usize {
        let mut message = json!({
            "sender": people[i % 3], "recipient": people[(i * 7 + i / 5 + 1) % 5], "text": texts[i % 6], "id": Uuid::now_v7(),
        });
        if i % 4 != 0 {
            message["timestamp"] = json!(1_700_000_000 - (i as u64 * 37) % 11 * 60);
        }
        servers.store(&message);
    }
}

fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat()
}

/// Both servers list exactly the messages for which `wanted` holds, in the order of the whole history. Gives their
/// count.
#[track_caller]
fn check(servers: &Servers, query: &str, wanted: impl Fn(&Value) -> bool) -> usize {
    let want: Vec<_> = servers.history().into_iter().filter(|message| wanted(message)).collect();
    for (server, addr) in servers.both() {
        let answer = get(addr, &format!("/messages?{query}"));
        assert_eq!(array(&answer), want, "{server} {query}");
        assert_eq!(answer.header("link"), None, "{server} {query}: without limit there is nothing beyond");
    }
    want.len()
}

#[test]
fn a_message_is_listed_only_if_all_filters_match() {
    let servers = Servers::start();
    store_conversation(&servers);
    let is = |field: &'static str, name: &'static str| move |m: &Value| m[field] == name;
    let side = |name: &'static str| move |m: &Value| m["sender"] == name || m["recipient"] == name;
    let pair = |one: &'static str, other: &'static str| {
        move |m: &Value| {
            (m["sender"] == one && m["recipient"] == other) || (m["sender"] == other && m["recipient"] == one)
        }
    };
    let mut found = 0;
    found += check(&servers, "sender=ann", is("sender", "ann"));
    found += check(&servers, "recipient=%23ops", is("recipient", "#ops"));
    found += check(&servers, "user=bob", side("bob"));
    found += check(&servers, "user=ann&with=bob", pair("ann", "bob"));
    found += check(&servers, "with=bob&user=ann", pair("bob", "ann"));
    found +=
        check(&servers, &format!("recipient={}", encode("weiß & söhne")), is("recipient", "weiß & söhne"));
    found += check(&servers, "recipient=wei%C3%9F+%26+s%c3%b6hne", is("recipient", "weiß & söhne"));
    found += check(&servers, "user=ann&sender=bob", |m| m["sender"] == "bob" && m["recipient"] == "ann");
    found += check(&servers, "user=ann&sender=Ann&recipient=ann", |m| {
        m["sender"] == "Ann" && m["recipient"] == "ann"
    });
    found += check(&servers, "sender=bob&recipient=%23ops&text=hello", |m| {
        m["sender"] == "bob"
            && m["recipient"] == "#ops"
            && m["text"].as_str().is_some_and(|t| t.to_lowercase().contains("hello"))
    });
    assert!(found > 30, "the filters match too little to test anything: {found}");
    assert_eq!(check(&servers, "", |_| true), 24);
    assert_eq!(check(&servers, "sender=nobody", |_| false), 0);
    assert_eq!(check(&servers, "sender=ANN", |_| false), 0, "names are compared byte for byte");
}

#[test]
fn text_search_ignores_unicode_case() {
    let servers = Servers::start();
    store_conversation(&servers);
    let text = |want: &'static str| move |m: &Value| m["text"] == want;
    for query in ["HELLO", "hello", "ello"] {
        let found = check(&servers, &format!("text={query}"), |m| {
            m["text"] == "Hello" || m["text"] == "\u{1F30D} hello"
        });
        assert_eq!(found, 8, "{query}");
    }
    for (query, want) in [
        ("grüsse", "GRÜSSE aus der Straße"),
        ("STRASSE", "GRÜSSE aus der Straße"),
        ("straße", "GRÜSSE aus der Straße"),
        ("οδυσσευς", "ΟΔΥΣΣΕΥΣ"),
        ("οδυσσευσ", "ΟΔΥΣΣΕΥΣ"),
        ("100% +1 &", "100% +1 & more?"),
        ("A\nB", "a\nb"),
        ("\u{1F30D}", "\u{1F30D} hello"),
    ] {
        assert_eq!(check(&servers, &format!("text={}", encode(query)), text(want)), 4, "{query}");
    }
    assert_eq!(check(&servers, "text=no+such", |_| false), 0);
    // Some clients do not percent-encode.
    assert_eq!(check(&servers, "text=Grüsse", text("GRÜSSE aus der Straße")), 4);
    assert_eq!(check(&servers, "text=+1+%26+more?", |_| false), 0, "a plus sign is a space");
    assert_eq!(check(&servers, "text=%2B1+%26+more?", text("100% +1 & more?")), 4);
}

#[test]
fn since_is_inclusive_and_until_is_exclusive() {
    let servers = Servers::start();
    store_conversation(&servers);
    let at = |m: &Value| m["timestamp"].as_u64().expect("a timestamp is always shown");
    let mut seconds: Vec<u64> = servers.history().iter().map(at).collect();
    seconds.sort_unstable();
    let rfc3339 = |second: u64| {
        let second = i64::try_from(second).expect("in range");
        jiff::Timestamp::from_second(second).expect("in range").to_string()
    };
    let mut bounds: Vec<(u64, String)> =
        [0, seconds[5], seconds[5] + 1, seconds[20]].map(|second| (second, rfc3339(second))).into();
    bounds.push((253_402_300_799, "9999-12-31T23:59:59Z".into()));
    bounds.push((253_402_300_799, "9999-12-31T12:59:59-11:00".into()));
    for (second, time) in bounds {
        for bound in [second.to_string(), time.clone(), encode(&time)] {
            check(&servers, &format!("since={bound}"), |m| at(m) >= second);
            check(&servers, &format!("until={bound}"), |m| at(m) < second);
        }
    }
    let (low, high) = (seconds[3], seconds[15]);
    let found = check(&servers, &format!("until={high}&user=ann&since={low}"), |m| {
        (m["sender"] == "ann" || m["recipient"] == "ann") && (low..high).contains(&at(m))
    });
    assert!(found > 0);
    assert_eq!(check(&servers, &format!("since={high}&until={low}"), |_| false), 0);
}

#[test]
fn anchors_bound_the_history_and_need_not_match_the_filters() {
    let servers = Servers::start();
    store_conversation(&servers);
    let history = servers.history();
    let index = |m: &Value| history.iter().position(|other| other == m).expect("listed");
    for i in [0, 11, 23] {
        let id = history[i]["id"].as_str().expect("text");
        assert_eq!(check(&servers, &format!("before={id}"), |m| index(m) < i), i);
        assert_eq!(check(&servers, &format!("after={id}"), |m| index(m) > i), 23 - i);
        check(&servers, &format!("after={}&sender=bob", id.to_uppercase()), |m| {
            index(m) > i && m["sender"] == "bob"
        });
        check(&servers, &format!("user=ann&before={id}&text=hello"), |m| {
            let text = m["text"].as_str().unwrap_or_default().to_lowercase();
            index(m) < i && (m["sender"] == "ann" || m["recipient"] == "ann") && text.contains("hello")
        });
    }
    for (server, addr) in servers.both() {
        for query in [format!("before={}", Uuid::nil()), format!("after={}&limit=5", Uuid::nil())] {
            check_refusal(
                server,
                &get(addr, &format!("/messages?{query}")),
                404,
                "not_found",
                &Uuid::nil().to_string(),
            );
        }
    }
}

#[test]
fn all_listings_of_a_message_have_the_same_bytes() {
    let servers = Servers::start();
    store_conversation(&servers);
    let whole = get(servers.node(), "/messages");
    let lines: Vec<String> = {
        let answer =
            http::request(servers.node(), "GET", "/messages", &[("accept", "application/x-ndjson")], b"")
                .expect("an answer");
        assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
        assert!(answer.text().ends_with('\n'));
        answer.text().lines().map(str::to_owned).collect()
    };
    assert_eq!(lines.len(), 24);
    assert_eq!(whole.text().trim_end(), format!("[{}]", lines.join(",\n")), "the array holds the same bytes");
    for (server, addr) in servers.both() {
        assert_eq!(get(addr, "/messages").body, whole.body, "{server}");
        let wanted = [("accept", "text/html, Application/X-NDJSON;q=0.5")];
        let answer = http::request(addr, "GET", "/messages?limit=24", &wanted, b"").expect("an answer");
        assert!(answer.text().lines().eq(lines.iter()), "{server}: {}", answer.text());
        for (i, line) in lines.iter().enumerate() {
            // The sender of every fourth message gave no timestamp.
            let server_fields: &[&str] = if i % 4 == 0 { &["timestamp_from"] } else { &[] };
            assert_eq!(keys(line), [&LISTED[..], server_fields].concat(), "{server}");
            let message: Value = serde_json::from_str(line).expect("JSON");
            let id = message["id"].as_str().expect("text");
            let one = get(addr, &format!("/messages/{id}"));
            let want = format!(
                concat!(r#"{},"durable_on":[0]}}"#, "\n"),
                line.strip_suffix('}').expect("an object")
            );
            assert_eq!(
                (one.status(), one.header("content-type"), one.text()),
                (200, Some("application/json"), &*want),
                "{server}"
            );
        }
    }
}

#[test]
fn a_message_is_one_line_for_every_reader_of_lines() {
    let servers = Servers::start();
    let message = json!({ "sender": "a\u{2028}b", "recipient": "c", "text": "1\u{85}2\u{2028}3\u{2029}4", "id": Uuid::now_v7() });
    let sent = servers.store(&message);
    assert_eq!(sent["text"], message["text"]);
    let want = r#""sender":"a\u2028b","recipient":"c","text":"1\u00852\u20283\u20294""#;
    for (server, addr) in servers.both() {
        let one = format!("/messages/{}", sent["id"].as_str().expect("an id"));
        for path in ["/messages", "/messages?limit=1", &one] {
            let listed = get(addr, path);
            assert!(listed.text().contains(want), "{server} {path}: {}", listed.text());
        }
        for format in [Format::Events, Format::Lines] {
            assert_eq!(catch_up(addr, "?from=start", format).0[0]["text"], message["text"], "{server}");
        }
        let mut line = String::new();
        feed::read_lines(addr, "?from=start", |read| {
            line = read;
            false
        })
        .expect("a feed");
        assert!(line.contains(want), "{server}: {line}");
    }
    let exported = servers.cluster.cli(&["-o", "ndjson", "list"]);
    assert!(exported.stdout.contains(want), "{exported:?}");
}

/// Whatever quotes what a client sent.
#[test]
fn a_refusal_is_one_line_for_every_reader_of_lines() {
    let servers = Servers::start();
    let body = "{\"a\u{2028}\u{85}\u{2029}b\":1}";
    let want = r"a\u2028\u0085\u2029b";
    let is_one_line = |what: &str, answer: &Response| {
        assert!(answer.text().contains(want), "{what}: {}", answer.text());
        assert!(!answer.text().contains(['\u{2028}', '\u{2029}', '\u{85}']), "{what}: {}", answer.text());
    };
    for (server, addr) in servers.both() {
        is_one_line(server, &post(addr, "/messages", &[JSON], body));
        is_one_line(server, &post(addr, "/messages", &[NDJSON], body));
        for path in ["/messages", "/feed", "/nodes", "/network"] {
            is_one_line(path, &get(addr, &format!("{path}?{}=1", encode("a\u{2028}\u{85}\u{2029}b"))));
        }
    }
}

#[test]
fn the_weights_of_accept_choose_the_format_at_every_path_that_has_two() {
    let servers = Servers::start();
    store_conversation(&servers);
    let (json, lines, events) = ("application/json", NDJSON.1, "text/event-stream");
    for (server, addr) in servers.both() {
        for (path, default) in [
            ("/messages", json),
            ("/messages?limit=2", json),
            ("/messages?text=o", json),
            ("/feed?from=start", events),
        ] {
            for (accept, want) in [
                (format!("{lines};q=0.9, {default};q=0.5"), lines),
                (format!("{lines};q=0.5, {default};q=0.9"), default),
                (format!("{lines};q=0, */*"), default),
                (format!("{default};q=0, {lines};q=0.1"), lines),
                ("*/*".to_owned(), default),
            ] {
                let mut connection = Connection::open(addr).expect("connected");
                let asked = http::encode(addr, "GET", path, &[("accept", &accept)], b"");
                connection.send(&asked).expect("sent");
                let head = connection.head().expect("an answer");
                assert_eq!(head.header("content-type"), Some(want), "{server} {path} {accept}");
            }
        }
    }
}

#[test]
fn what_was_exported_can_be_posted_as_it_is() {
    let servers = Servers::start();
    store_conversation(&servers);
    let wanted = [("accept", "application/x-ndjson;q=0.9, application/json;q=0.1")];
    for (server, addr) in servers.both() {
        let export = http::request(addr, "GET", "/messages", &wanted, b"").expect("an answer");
        assert_eq!(export.header("content-type"), Some("application/x-ndjson"), "{server}");
        let other = Cluster::start(1);
        let lines = [b"\xef\xbb\xbf".as_slice(), &export.body].concat();
        for (accepted, duplicates) in [(24, 0), (0, 24)] {
            let answer = post(other.node(0), "/messages", &[NDJSON], &lines).json();
            assert_eq!(
                answer,
                json!({ "accepted": accepted, "duplicates": duplicates, "rejected": [] }),
                "{server}"
            );
        }
        let one = get(addr, &format!("/messages/{}", servers.history()[1]["id"].as_str().expect("an id")));
        assert_eq!(post(addr, "/messages", &[JSON], &one.body).status(), 200, "{server}");
    }
}

/// What is shown as the timestamp of such a message is no content of it: otherwise its own listing would conflict with
/// it.
#[test]
fn a_message_without_timestamp_is_the_same_message_after_export_and_import() {
    let servers = Servers::start();
    let (node, other) = (servers.node(), Cluster::start(1));
    let id = Uuid::now_v7().to_string();
    let message = json!({ "sender": "a", "recipient": "b", "text": "c", "id": id });
    let sent = post(node, "/messages", &[JSON], message.to_string());
    let one = get(node, &format!("/messages/{id}"));
    let lines = http::request(node, "GET", "/messages", &[("accept", NDJSON.1)], b"").expect("an answer");
    let mut event = String::new();
    feed::read_lines(node, "?from=start", |line| {
        event = line;
        false
    })
    .expect("a feed");
    let event: Value = serde_json::from_str(&event).expect("JSON");
    let printed = servers.cluster.cli(&["-o", "ndjson", "list"]);
    for (what, listed) in [
        ("the answer", sent.text()),
        ("one message", one.text()),
        ("a listing", lines.text()),
        ("the feed", &event["message"].to_string()),
        ("list -o ndjson", &printed.stdout),
    ] {
        assert!(listed.contains(r#""timestamp_from":"server""#), "{what}: {listed}");
        assert_eq!(send(node, &serde_json::from_str(listed).expect("one object")), Sent::Duplicate, "{what}");
    }
    for (lines, accepted) in [(lines.text(), 1), (&printed.stdout, 0)] {
        assert_eq!(
            messages::send_lines(other.node(0), lines.as_bytes()),
            (accepted, 1 - accepted),
            "{lines}"
        );
    }
    // The later acceptance is shown there, and the content is the same as that of the sender.
    assert_eq!(send(other.node(0), &message), Sent::Duplicate);
    let imported = servers.cluster.cli_with_input(&["send", "--file", "-"], printed.stdout.as_bytes());
    assert!(imported.stdout.contains("0 accepted, 1 duplicates"), "{imported:?}");
}

#[test]
fn an_empty_history_is_an_empty_array_and_no_lines() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        for path in ["/messages", "/messages?limit=1", "/messages?text=x", "/messages?limit=10000&user=x"] {
            let answer = get(addr, path);
            assert_eq!(array(&answer), Vec::<Value>::new(), "{server} {path}");
            assert_eq!(answer.header("link"), None, "{server} {path}");
            let lines = http::request(addr, "GET", path, &[("accept", "application/x-ndjson")], b"")
                .expect("an answer");
            assert_eq!((lines.status(), lines.text()), (200, ""), "{server} {path}");
        }
    }
}

#[test]
fn one_message_is_found_by_its_id_in_any_spelling() {
    let servers = Servers::start();
    let id = Uuid::now_v7();
    servers.store(&json!({ "sender": "a", "recipient": "b", "text": "c", "id": id }));
    for (server, addr) in servers.both() {
        let found = get(addr, &format!("/messages/{id}"));
        for spelling in [id.to_string().to_uppercase(), id.simple().to_string(), encode(&id.to_string())] {
            assert_eq!(get(addr, &format!("/messages/{spelling}")).body, found.body, "{server} {spelling}");
        }
        for unknown in [
            Uuid::nil().to_string(),
            "17".into(),
            "..".into(),
            format!("{id}%00"),
            "%FF".into(),
            "%zz".into(),
        ] {
            check_refusal(
                &format!("{server} {unknown}"),
                &get(addr, &format!("/messages/{unknown}")),
                404,
                "not_found",
                "",
            );
        }
        check_refusal(server, &get(addr, &format!("/messages/{id}?x=1")), 400, "invalid_query", "`x`");
    }
}

#[test]
fn head_tells_what_get_would_without_the_body() {
    let servers = Servers::start();
    store_conversation(&servers);
    for (server, addr) in servers.both() {
        for path in ["/messages", "/messages?limit=3", "/nodes", "/network", "/livez", "/readyz"] {
            let (get, head) =
                (get(addr, path), http::request(addr, "HEAD", path, &[], b"").expect("an answer"));
            assert_eq!((head.status(), head.body.len()), (200, 0), "{server} {path}");
            for name in ["content-type", "link"] {
                assert_eq!(head.header(name), get.header(name), "{server} {path}");
            }
        }
        let head = http::request(addr, "HEAD", "/messages/17", &[], b"").expect("an answer");
        assert_eq!(
            (head.status(), head.header("content-type")),
            (404, Some("application/problem+json")),
            "{server}"
        );
    }
}
