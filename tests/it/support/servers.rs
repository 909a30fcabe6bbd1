//! One node and the proxy in front of it: two servers over the same messages, which must answer alike.
//!
//! Tests send each request to both. Knows the problem document of the contract, so that every test of a refusal checks
//! all its fields; shares no code with the program.

use std::net::SocketAddr;

use serde_json::Value;

use super::cluster::Cluster;
use super::http::{self, Response};

pub const JSON: (&str, &str) = ("content-type", "application/json");
pub const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

/// A node, its proxy, and nothing else.
pub struct Servers {
    pub cluster: Cluster,
}

impl Servers {
    #[track_caller]
    pub fn start() -> Self {
        Servers { cluster: Cluster::start_with_proxy(1) }
    }

    pub fn node(&self) -> SocketAddr {
        self.cluster.node(0)
    }

    pub fn proxy(&self) -> SocketAddr {
        self.cluster.proxy()
    }

    /// Both, each with the name that a failure message shows.
    pub fn both(&self) -> [(&'static str, SocketAddr); 2] {
        [("node", self.node()), ("proxy", self.proxy())]
    }

    /// How many messages are stored.
    #[track_caller]
    pub fn count(&self) -> u64 {
        self.cluster.statuses()[0]["messages"].as_u64().expect("a count")
    }

    /// The whole history as the node lists it.
    #[track_caller]
    pub fn history(&self) -> Vec<Value> {
        array(&get(self.node(), "/messages"))
    }

    /// Sends one message to the node; it must be new. Gives the answer.
    #[track_caller]
    pub fn store(&self, message: &Value) -> Value {
        let answer = http::post_json(self.node(), "/messages", message).expect("an answer");
        assert_eq!(answer.status(), 201, "{}", answer.text());
        answer.json()
    }
}

/// Gets a path; there must be an answer.
#[track_caller]
pub fn get(addr: SocketAddr, path: &str) -> Response {
    http::get(addr, path).unwrap_or_else(|e| panic!("GET {path}: {e}"))
}

/// Posts; there must be an answer.
#[track_caller]
pub fn post(addr: SocketAddr, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
    http::post(addr, path, headers, body.as_ref()).unwrap_or_else(|e| panic!("POST {path}: {e}"))
}

/// The elements of an answer that lists.
#[track_caller]
pub fn array(answer: &Response) -> Vec<Value> {
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{e}: {}", answer.text()))
}

/// The names of an object's fields in the order in which they were written.
#[track_caller]
pub fn keys(json: &str) -> Vec<String> {
    struct Keys(Vec<String>);
    impl<'de> serde::Deserialize<'de> for Keys {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Visitor)
        }
    }
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Keys;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
            let mut keys = Vec::new();
            while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                keys.push(key);
            }
            Ok(Keys(keys))
        }
    }
    serde_json::from_str::<Keys>(json).unwrap_or_else(|e| panic!("{e}: {json}")).0
}

/// The answer is this refusal, in the one shape of the contract, and its detail holds this part.
#[track_caller]
pub fn check_refusal(what: &str, answer: &Response, status: u16, code: &str, part: &str) {
    let shown = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status(), status, "{what}: {shown}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}: {shown}");
    assert_eq!(keys(&shown), ["type", "title", "status", "detail", "code", "retryable"], "{what}");
    let problem = answer.json();
    assert_eq!(problem["code"], code, "{what}: {shown}");
    assert_eq!(problem["status"], status, "{what}: {shown}");
    assert_eq!(problem["type"], "about:blank", "{what}");
    assert!(!problem["title"].as_str().unwrap_or_default().is_empty(), "{what}: {shown}");
    let retryable = matches!(status, 500..);
    assert_eq!(problem["retryable"], retryable, "{what}: {shown}");
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(part), "{what}: {detail:?} lacks {part:?}");
    for dump in ["Error(", "Error {", "Some(", "panicked"] {
        assert!(!detail.contains(dump), "{what}: {detail:?} is a debug dump");
    }
    assert!(shown.len() < 1024, "{what}: a refusal is short, not {} bytes", shown.len());
}
