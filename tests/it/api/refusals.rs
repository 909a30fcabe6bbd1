//! Invalid HTTP requests: each gets its error code and a problem document, from a node and from the proxy, and stores
//! nothing.
//!
//! These requests are well-formed HTTP. Requests that an HTTP library cannot send are in `hostile_clients`.

use std::net::SocketAddr;

use chatchain::api::path;
use serde_json::json;
use uuid::Uuid;

use crate::support::http;
use crate::support::servers::{JSON, NDJSON, Servers, check_refusal, get, post};

const GOOD: &str = r#"{"sender":"a","recipient":"b","text":"c"}"#;

/// A valid message with one field replaced by this raw JSON value.
fn with(field: &str, value: &str) -> String {
    let mut fields = vec![("sender", r#""a""#), ("recipient", r#""b""#), ("text", r#""c""#)];
    fields.retain(|(name, _)| *name != field);
    fields.push((field, value));
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{}:{value}", json!(name))).collect();
    format!("{{{}}}", fields.join(","))
}

fn without(field: &str) -> String {
    let mut message = json!({ "sender": "a", "recipient": "b", "text": "c" });
    message.as_object_mut().expect("an object").remove(field);
    message.to_string()
}

/// Both servers refuse this body of a single message.
#[track_caller]
fn check_body(servers: &Servers, body: impl AsRef<[u8]>, status: u16, code: &str, part: &str) {
    for (server, addr) in servers.both() {
        let start = String::from_utf8_lossy(&body.as_ref()[..body.as_ref().len().min(80)]).into_owned();
        let answer = post(addr, "/messages", &[JSON], body.as_ref());
        check_refusal(&format!("{server} {start}"), &answer, status, code, part);
    }
}

/// Both servers refuse a GET of this path.
#[track_caller]
fn check_get(servers: &Servers, path: &str, status: u16, code: &str, part: &str) {
    for (server, addr) in servers.both() {
        check_refusal(&format!("{server} {path}"), &get(addr, path), status, code, part);
    }
}

#[test]
fn a_body_that_is_not_json_gets_invalid_json() {
    let servers = Servers::start();
    let code = "invalid_json";
    for body in
        ["", " \n\t", "hello", "{", GOOD.trim_end_matches('}'), r#"{"sender":"a","#, r#"{"sender":"a"}}"#]
    {
        check_body(&servers, body, 400, code, "");
    }
    check_body(&servers, "", 400, code, "empty");
    check_body(&servers, format!("{GOOD}{GOOD}"), 400, code, "trailing");
    check_body(&servers, format!("\u{feff}{GOOD}"), 400, code, "JSON");
    check_body(&servers, GOOD.replace('"', "'"), 400, code, "JSON");
    check_body(&servers, with("text", "\"a\tb\""), 400, code, "control character");
    check_body(&servers, with("text", "\"\0\""), 400, code, "control character");
    check_body(&servers, with("text", r#""\x41""#), 400, code, "escape");
    check_body(&servers, with("timestamp", "0x10"), 400, code, "JSON");
    check_body(&servers, with("timestamp", "NaN"), 400, code, "JSON");
    check_body(&servers, with("timestamp", "007"), 400, code, "number");
    check_body(&servers, "[".repeat(100_000), 400, code, "JSON");
    check_body(&servers, r#"{"a":"#.repeat(20_000), 400, code, "JSON");
    for wrong in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe9t\xe9"] {
        let body = [br#"{"sender":"a","recipient":"b","text":""#, wrong, br#""}"#].concat();
        check_body(&servers, body, 400, code, "UTF-8");
    }
    let utf16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    check_body(&servers, utf16, 400, code, "");
    assert_eq!(servers.count(), 0);
}

#[test]
fn json_that_is_not_a_message_gets_invalid_message_and_the_field_name() {
    let servers = Servers::start();
    let check = |body: String, part: &str| check_body(&servers, body, 422, "invalid_message", part);
    for (other, kind) in [
        ("[]", "an array"),
        ("17", "a number"),
        ("\"text\"", "a string"),
        ("null", "null"),
        ("true", "a boolean"),
    ] {
        check(other.into(), kind);
    }
    check(format!("[{GOOD}]"), "an array");
    check("{}".into(), "`sender`");
    for field in ["sender", "recipient", "text"] {
        let name = format!("`{field}`");
        check(without(field), &format!("{name} is missing"));
        for (value, part) in [
            ("null", "null"),
            ("17", "a number"),
            ("[\"a\"]", "an array"),
            ("{}", "an object"),
            ("true", "a boolean"),
        ] {
            check(with(field, value), &format!("{name} must be a string, not {part}"));
        }
        for value in ["\"\"", "\"\\u0000\"", "\"a\\u0000b\"", "\"\\ud800\"", "\"\\udc00\\ud800\""] {
            check(with(field, value), &name);
        }
        check(GOOD.replacen('{', &format!("{{\"{field}\":\"x\","), 1), &format!("{name} is given twice"));
    }
    for field in ["sender", "recipient"] {
        for name in [
            " a",
            "a ",
            "\u{a0}a",
            "a\n",
            "a\u{7}b",
            "a\u{7f}",
            "a\u{85}b",
            "\u{2003}",
            &"x".repeat(65),
            &"\u{1F30D}".repeat(65),
        ] {
            check(with(field, &json!(name).to_string()), &format!("`{field}`"));
        }
    }
    check(with("text", &json!("x".repeat(16_385)).to_string()), "`text`");
    check(with("text", &json!("\u{1F30D}".repeat(4097)).to_string()), "`text`");
    assert_eq!(servers.count(), 0);
}

#[test]
fn invalid_timestamps_ids_and_unknown_fields_are_refused_by_name() {
    let servers = Servers::start();
    let check = |body: String, part: &str| check_body(&servers, body, 422, "invalid_message", part);
    for huge in
        ["253402300800", "1697913600000", "9223372036854775808", "18446744073709551616", &"9".repeat(500)]
    {
        check(with("timestamp", huge), "looks like milliseconds");
    }
    for wrong in [
        "-1",
        "-0",
        "1.0",
        "1.5",
        "1e3",
        "1e400",
        "-1e400",
        "1E-400",
        "\"17\"",
        "true",
        "[]",
        "{}",
        "\"2024-01-01T00:00:00Z\"",
    ] {
        check(with("timestamp", wrong), "`timestamp`");
    }
    let id = Uuid::now_v7().to_string();
    for wrong in [
        "",
        "17",
        &id[1..],
        &format!("{id}0"),
        &format!(" {id}"),
        &id.replace('-', "_"),
        "01234567-89ab-cdef-ghij-klmnopqrstuv",
    ] {
        check(with("id", &json!(wrong).to_string()), "not a UUID");
    }
    for wrong in ["17", "[]", "{}", "false"] {
        check(with("id", wrong), "`id` must be a string");
    }
    for (name, shown) in [
        ("colour", "`colour`"),
        ("Text", "`Text`"),
        ("", "``"),
        ("acks", "`acks`"),
        ("__proto__", "`__proto__`"),
    ] {
        check(with(name, "null"), &format!("{shown} is unknown"));
    }
    check(with(&"x".repeat(100_000), "1"), "x…` is unknown");
    check(with("colour", &format!("{}{}", "[".repeat(50_000), "]".repeat(50_000))), "`colour` is unknown");
    check(with("text", &format!("{}{}", "[".repeat(50_000), "]".repeat(50_000))), "`text`");
    check(format!("{}{}", "[".repeat(50_000), "]".repeat(50_000)), "an array");
    check(format!("{}1{}", r#"{"a":"#.repeat(20_000), "}".repeat(20_000)), "`a` is unknown");
    check(GOOD.replacen('{', &format!(r#"{{"id":"{id}","id":"{id}","#), 1), "`id` is given twice");
    assert_eq!(servers.count(), 0);
}

#[test]
fn a_body_over_the_limit_gets_too_large() {
    let servers = Servers::start();
    let length = 128 * 1024;
    let just = format!("{}{GOOD}", " ".repeat(length + 1 - GOOD.len()));
    for body in [
        just,
        "x".repeat(length + 1),
        "x".repeat(4 << 20),
        with("text", &json!("x".repeat(1 << 20)).to_string()),
    ] {
        check_body(&servers, body, 413, "too_large", "131072 bytes");
    }
    assert_eq!(servers.count(), 0);
}

#[test]
fn a_body_of_another_content_type_gets_unsupported_media_type() {
    let servers = Servers::start();
    for (server, addr) in servers.both() {
        let types = [
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/jsonx",
            "json",
            "text/json; application/json",
            "*/*",
            "application/problem+json",
        ];
        for kind in types {
            let what = format!("{server} {kind:?}");
            let answer = post(addr, "/messages", &[("content-type", kind)], GOOD);
            check_refusal(&what, &answer, 415, "unsupported_media_type", "application/json");
        }
        check_refusal(server, &post(addr, "/messages", &[], GOOD), 415, "unsupported_media_type", "missing");
        let twice = post(addr, "/messages", &[JSON, NDJSON], GOOD);
        check_refusal(server, &twice, 415, "unsupported_media_type", "twice");
        let packed = post(addr, "/messages", &[JSON, ("content-encoding", "gzip")], b"\x1f\x8b\x08");
        check_refusal(server, &packed, 415, "unsupported_media_type", "Content-Encoding");
    }
    assert_eq!(servers.count(), 0);
}

/// A sender that still writes a long body must receive the refusal rather than a connection reset.
#[test]
fn a_long_body_does_not_lose_the_refusal() {
    let servers = Servers::start();
    let long = "x".repeat(3 << 20);
    for (server, addr) in servers.both() {
        for _ in 0..10 {
            let answer = post(addr, "/messages", &[("content-type", "text/plain")], &long);
            check_refusal(server, &answer, 415, "unsupported_media_type", "text/plain");
            check_refusal(
                server,
                &post(addr, "/messages?acks=x", &[NDJSON], &long),
                400,
                "invalid_query",
                "acks",
            );
            check_refusal(server, &post(addr, "/nothing", &[NDJSON], &long), 404, "not_found", "/nothing");
            check_refusal(server, &post(addr, "/nodes", &[NDJSON], &long), 405, "method_not_allowed", "POST");
        }
    }
    assert_eq!(servers.count(), 0);
}

#[test]
fn unknown_paths_are_not_found() {
    let servers = Servers::start();
    let paths = [
        "/",
        "/metrics",
        "/openapi.json",
        "/nothing",
        "/messages/",
        "/Messages",
        "//messages",
        "/messages//",
        "/messages/x/y",
        "/%6Dessages",
        "/messages%2F",
        "/..",
        "/../messages",
        "/messages/../nodes",
        "/%00",
        "/%FF",
        "/%",
        "/ä",
        "/nodes/",
        "/livez/x",
    ];
    for path in paths {
        check_get(&servers, path, 404, "not_found", "");
        for (server, addr) in servers.both() {
            check_refusal(
                &format!("{server} {path}"),
                &post(addr, path, &[JSON], GOOD),
                404,
                "not_found",
                "",
            );
        }
    }
    check_get(&servers, &format!("/{}", "x".repeat(30_000)), 404, "not_found", "");
    check_get(&servers, &format!("/messages/{}", "x".repeat(30_000)), 404, "not_found", "");
    check_get(&servers, &format!("/messages/{}", Uuid::now_v7()), 404, "not_found", "");
    check_refusal("sync", &post(servers.proxy(), "/sync", &[], ""), 404, "not_found", "/sync");
    assert_eq!(servers.count(), 0);
}

/// Every path, its methods in alphabetical order, and whether the proxy has it.
const ENDPOINTS: [(&str, &[&str], bool); 9] = [
    (path::MESSAGES, &["GET", "HEAD", "POST"], true),
    (path::MESSAGE, &["GET", "HEAD"], true),
    (path::FEED, &["GET", "HEAD"], true),
    (path::NODES, &["GET", "HEAD"], true),
    (path::NODE, &["DELETE"], true),
    (path::NETWORK, &["GET", "HEAD"], true),
    (path::SYNC, &["POST"], false),
    (path::LIVEZ, &["GET", "HEAD"], true),
    (path::READYZ, &["GET", "HEAD"], true),
];

#[test]
fn wrong_methods_get_the_allowed_methods() {
    let servers = Servers::start();
    let check = |server: &str, addr: SocketAddr, path: &str, allowed: &[&str]| {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "get"] {
            if allowed.contains(&method) {
                continue;
            }
            let answer = http::request(addr, method, path, &[JSON], GOOD.as_bytes()).expect("an answer");
            check_refusal(&format!("{server} {method} {path}"), &answer, 405, "method_not_allowed", method);
            let mut allow: Vec<_> =
                answer.header("allow").unwrap_or_default().split(',').map(str::trim).collect();
            allow.sort_unstable();
            assert_eq!(allow, allowed, "{server} {method} {path}");
        }
    };
    for (path, methods, on_proxy) in ENDPOINTS {
        let path = path.replace("{id}", &Uuid::now_v7().to_string());
        check("node", servers.node(), &path, methods);
        if on_proxy {
            check("proxy", servers.proxy(), &path, methods);
        } else {
            check_refusal(&path, &post(servers.proxy(), &path, &[], ""), 404, "not_found", &path);
        }
    }
    assert_eq!(servers.count(), 0);
}

#[test]
fn an_unknown_or_invalid_query_parameter_is_refused_by_name() {
    let servers = Servers::start();
    let id = Uuid::now_v7();
    let table = [
        ("colour=red", "`colour`"),
        ("Sender=a", "`Sender`"),
        ("sender", "`sender`"),
        ("sender=", "`sender`"),
        ("text=", "`text`"),
        ("=a", "``"),
        ("user=a&user=b", "`user` is given twice"),
        ("with=a", "`user`"),
        ("limit=0", "`limit`"),
        ("limit=-1", "`limit`"),
        ("limit=10001", "`limit`"),
        ("limit=1.0", "`limit`"),
        ("limit=", "`limit`"),
        ("limit=%2B5", "`limit`"),
        ("limit=99999999999999999999", "`limit`"),
        ("limit=1&limit=1", "twice"),
        ("since=yesterday", "`since`"),
        ("since=-1", "`since`"),
        ("since=%2B1", "`since`"),
        ("since=1.5", "`since`"),
        ("since=", "`since`"),
        ("since=1697913600000", "milliseconds"),
        ("since=2023-10-21", "`since`"),
        ("since=2023-10-21T18:40:00", "`since`"),
        ("since=2023-13-21T18:40:00Z", "`since`"),
        ("until=253402300800", "milliseconds"),
        ("until=2023-10-21T18:40:00+02:00", "%2B"),
        ("before=17", "`before`"),
        ("after=", "`after`"),
        ("after=null", "`after`"),
        ("cursor=x", "`cursor`"),
        ("acks=1", "`acks`"),
        ("text=%", "percent"),
        ("text=%4", "percent"),
        ("text=%zz", "percent"),
        ("%=a", "percent"),
        ("user=100%", "percent"),
        ("text=%FF", "UTF-8"),
        ("text=%C3", "UTF-8"),
        ("text=%ED%A0%80", "UTF-8"),
        ("%FF=a", "UTF-8"),
    ];
    for (query, part) in table {
        check_get(&servers, &format!("/messages?{query}"), 400, "invalid_query", part);
    }
    for path in ["/nodes", "/network", "/livez", "/readyz", &format!("/messages/{id}")] {
        check_get(&servers, &format!("{path}?verbose=1"), 400, "invalid_query", "`verbose`");
    }
    check_get(&servers, &format!("/messages?{}=1", "x".repeat(30_000)), 400, "invalid_query", "x…");
    check_get(&servers, &format!("/messages?limit={}", "9".repeat(30_000)), 400, "invalid_query", "9…");
}

#[test]
fn a_send_with_a_bad_query_stores_nothing() {
    let servers = Servers::start();
    let queries = [
        ("acks=0", "`acks`"),
        ("acks=2", "knows 1 nodes"),
        ("acks=many", "`acks`"),
        ("acks=-1", "`acks`"),
        ("acks=", "`acks`"),
        ("acks=01", "`acks`"),
        ("acks=1&acks=1", "twice"),
        ("timeout=5", "`timeout`"),
        ("timeout=21s", "`timeout`"),
        ("timeout=-1s", "`timeout`"),
        ("timeout=", "`timeout`"),
        ("timeout=1+day", "`timeout`"),
        ("sender=a", "`sender`"),
        ("x=%zz", "percent"),
    ];
    for (query, part) in queries {
        for (server, addr) in servers.both() {
            for kind in [JSON, NDJSON] {
                let answer = post(addr, &format!("/messages?{query}"), &[kind], GOOD);
                check_refusal(&format!("{server} {query}"), &answer, 400, "invalid_query", part);
            }
        }
    }
    assert_eq!(servers.count(), 0);
}
