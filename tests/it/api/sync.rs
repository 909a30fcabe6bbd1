//! `POST /sync` with invalid or foreign requests: each gets its error code and stores nothing.
//!
//! The requests are spelled out byte by byte, so that an accidental change of the protocol, which would separate nodes
//! of two versions, fails a test.

use crate::support::cluster::Cluster;
use crate::support::http::Response;
use crate::support::servers::{check_refusal, post};

const BINARY: (&str, &str) = ("content-type", "application/octet-stream");

/// The head of a sync request: magic, protocol, flags, network, node id, store id, incarnation id, clock, address, digest.
fn exchange(protocol: u16, network: &str) -> Vec<u8> {
    let mut bytes = b"ChSy".to_vec();
    bytes.extend_from_slice(&protocol.to_be_bytes());
    bytes.push(0);
    bytes.extend_from_slice(&blake3::hash(network.as_bytes()).as_bytes()[..8]);
    bytes.extend_from_slice(&7_u16.to_be_bytes());
    bytes.extend_from_slice(&[1; 16]);
    bytes.extend_from_slice(&[2; 16]);
    bytes.extend_from_slice(&[0; 8]);
    bytes.push(11);
    bytes.extend_from_slice(b"127.0.0.1:1");
    bytes.extend_from_slice(&[0; 16]);
    bytes
}

/// A section of a sync request.
fn section(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short");
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

#[test]
fn an_invalid_or_foreign_exchange_is_refused() {
    let cluster = Cluster::start(1);
    let addr = cluster.node(0);
    let ask = |bytes: &[u8]| post(addr, "/sync", &[BINARY], bytes);
    let good = exchange(2, "chatchain");
    let malformed =
        |what: &str, answer: Response| check_refusal(what, &answer, 422, "invalid_message", "exchange");
    malformed("empty", ask(b""));
    malformed("JSON", ask(br#"{"sender":"a","recipient":"b","text":"c"}"#));
    for length in 0..good.len() {
        malformed(&format!("cut at {length}"), ask(&good[..length]));
    }
    let mut not_text = good.clone();
    let address = good.len() - 16 - 11;
    not_text[address] = 0xff;
    malformed("an address that is not UTF-8", ask(&not_text));
    for (what, section) in [
        ("heads cut", section(1, &[0; 20])),
        ("an own log of 15 bytes", section(2, &[0; 15])),
        ("a want cut", section(3, &[0; 31])),
        ("a run without its head", section(4, &[0; 16])),
        ("a section longer than the body", vec![4, 0xff, 0xff, 0xff, 0xff, 0]),
    ] {
        malformed(what, ask(&[&good[..], &section].concat()));
    }
    for protocol in [0, 1, 9, u16::MAX] {
        let answer = ask(&exchange(protocol, "chatchain"));
        check_refusal("protocol", &answer, 426, "unsupported_protocol", &format!("version {protocol}"));
    }
    check_refusal("network", &ask(&exchange(2, "elsewhere")), 403, "wrong_network", "chatchain");
    for headers in [&[][..], &[("content-type", "application/json")], &[("content-type", "text/plain")]] {
        check_refusal(
            "type",
            &post(addr, "/sync", headers, &good),
            415,
            "unsupported_media_type",
            "application/octet-stream",
        );
    }
    check_refusal("query", &post(addr, "/sync?x=1", &[BINARY], &good), 400, "invalid_query", "`x`");
    check_refusal("long", &ask(&vec![0; (8 << 20) + 1]), 413, "too_large", "8388608 bytes");
    assert_eq!(cluster.statuses()[0]["messages"], 0);
}

#[test]
fn a_valid_exchange_is_answered() {
    let cluster = Cluster::start(1);
    let answer = post(cluster.node(0), "/sync", &[BINARY], exchange(2, "chatchain"));
    assert_eq!((answer.status(), answer.header("content-type")), (200, Some("application/octet-stream")));
    let good = exchange(2, "chatchain");
    assert_eq!(
        (&answer.body[..6], &answer.body[7..15]),
        (&good[..6], &good[7..15]),
        "magic, protocol, network"
    );
    let newer = [exchange(2, "chatchain"), section(200, b"of a newer program")].concat();
    assert_eq!(
        post(cluster.node(0), "/sync", &[BINARY], newer).status(),
        200,
        "an unknown section is ignored"
    );
}

#[test]
fn entries_that_do_not_lead_to_the_hash_that_closes_their_run_are_not_stored() {
    let cluster = Cluster::start(1);
    let addr = cluster.node(0);
    let origin = uuid::Uuid::now_v7().into_bytes();
    let first = [&origin[..], &[0; 3], &0_u64.to_be_bytes(), &[0; 32], &[0; 32]].concat();
    for junk in [&b"\x01\0\x01\x02hi"[..], b"not an entry at all", &[0; 4096], &[0xff; 4096]] {
        let run = section(4, &[&first[..], junk].concat());
        let answer = post(addr, "/sync", &[BINARY], [exchange(2, "chatchain"), run].concat());
        assert!(matches!(answer.status(), 200 | 422), "{}", answer.status());
    }
    assert_eq!(
        (&cluster.statuses()[0]["messages"], &cluster.statuses()[0]["origins"]),
        (&0.into(), &0.into())
    );
}
