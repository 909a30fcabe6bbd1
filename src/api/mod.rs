//! The HTTP contract: the shapes of requests and answers, the paths, and the refusals.
//!
//! Both servers, the client and the commands read and write these shapes, so a public field or code changes in one
//! place. Knows `chain::message`, whose limits it applies. Must not know axum, reqwest, tokio or redb.
//!
//! Invariant: bytes in, values or a [`error::Problem`] out. No clock and no randomness: new ids come from the caller.

pub mod address;
pub mod batch;
pub mod error;
pub mod explain_invalid;
pub mod feed;
pub mod key;
pub mod message;
pub mod network;
pub mod position;
pub mod query;
pub mod time;

/// The paths of the API.
pub mod path {
    pub const MESSAGES: &str = "/messages";
    pub const MESSAGE: &str = "/messages/{id}";
    /// [`MESSAGE`] up to the id.
    pub const MESSAGES_PREFIX: &str = "/messages/";
    pub const FEED: &str = "/feed";
    /// The server's view of its peers or upstreams.
    pub const NODES: &str = "/nodes";
    pub const NODE: &str = "/nodes/{id}";
    /// [`NODE`] up to the id.
    pub const NODES_PREFIX: &str = "/nodes/";
    /// The status of the whole network.
    pub const NETWORK: &str = "/network";
    /// The exchange between nodes. The proxy does not have it.
    pub const SYNC: &str = "/sync";
    /// Whether the process is alive.
    pub const LIVEZ: &str = "/livez";
    /// Whether the server can store and read.
    pub const READYZ: &str = "/readyz";

    /// Whether a request for this path needs a key, where the network has one. A process supervisor has no key. True
    /// for unknown paths, so that a client without a key does not learn which paths exist.
    pub fn needs_key(path: &str) -> bool {
        !matches!(path, LIVEZ | READYZ)
    }

    #[cfg(test)]
    mod tests {
        use super::needs_key;

        #[test]
        fn only_the_health_checks_need_no_key() {
            assert!(!needs_key("/livez") && !needs_key("/readyz"));
            for path in ["/messages", "/livez/", "/LIVEZ", "//livez", "/sync", "/unknown", ""] {
                assert!(needs_key(path), "{path}");
            }
        }
    }
}

/// Header names, in the lower case that HTTP libraries want.
pub mod header {
    /// The id of a message that has none; for a batch, the root of the ids of its lines.
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    /// In a request: what a read must cover. In an answer: what it covers.
    pub const POSITION: &str = "chatchain-position";
    /// How many entries a listing leaves out, because they are damaged at the server that answers.
    pub const MISSING: &str = "chatchain-missing";
    /// The cursor after which an interrupted feed continues.
    pub const LAST_EVENT_ID: &str = "last-event-id";
}

pub mod media {
    pub const JSON: &str = "application/json";
    /// One JSON value per line.
    pub const NDJSON: &str = "application/x-ndjson";
    /// RFC 9457.
    pub const PROBLEM: &str = "application/problem+json";
    pub const EVENTS: &str = "text/event-stream";
    pub const BINARY: &str = "application/octet-stream";

    /// Whether a `Content-Type` names this media type, whatever its parameters and case.
    pub fn is(content_type: &str, media: &str) -> bool {
        content_type.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(media))
    }

    /// Whether an `Accept` header names NDJSON with a weight above 0. A wildcard does not count.
    pub fn wants_ndjson(accept: &str) -> bool {
        let is_refused = |range: &str| {
            let weights = range.split(';').skip(1).filter_map(|part| part.split_once('='));
            let is_zero = |(name, value): (&str, &str)| {
                name.trim().eq_ignore_ascii_case("q") && value.trim().parse() == Ok(0.0)
            };
            weights.into_iter().any(is_zero)
        };
        accept.split(',').any(|range| is(range, NDJSON) && !is_refused(range))
    }

    #[cfg(test)]
    mod tests {
        use super::wants_ndjson;

        #[test]
        fn ndjson_must_be_named_and_not_refused() {
            for accept in [
                "application/x-ndjson",
                "text/html, Application/X-NDJSON ;q=0.5",
                "a/b;q=0, application/x-ndjson",
            ] {
                assert!(wants_ndjson(accept), "{accept}");
            }
            for accept in
                ["", "*/*", "application/json", "application/x-ndjson;q=0", "application/x-ndjson; Q = 0.000"]
            {
                assert!(!wants_ndjson(accept), "{accept}");
            }
        }
    }
}

/// A longer body of one message is refused as `too_large`.
pub const MESSAGE_BODY_BYTES_MAX: usize = 128 * 1024;
/// A longer body of a batch is refused as `too_large`.
pub const BATCH_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A batch with more lines is refused as `too_large`, and none of its lines is stored.
pub const BATCH_LINES_MAX: usize = 10_000;
