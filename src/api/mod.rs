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
pub mod json;
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
    /// Tells nginx to pass an answer on as it arrives.
    pub const ACCEL_BUFFERING: &str = "x-accel-buffering";
    /// The cursor after which an interrupted feed continues.
    pub const LAST_EVENT_ID: &str = "last-event-id";
}

pub mod media {
    use std::cmp::Ordering;

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

    /// Whether an `Accept` header prefers NDJSON to the media type that is sent by default (RFC 9110, 12.5.1). If it
    /// prefers neither, NDJSON is sent only where the header names it.
    pub fn wants_ndjson(accept: &str, default: &str) -> bool {
        let Some((precision, weight)) = accepted(accept, NDJSON) else { return false };
        let other = accepted(accept, default).map_or(0.0, |(_, weight)| weight);
        match weight.total_cmp(&other) {
            Ordering::Greater => true,
            Ordering::Equal => precision == Precision::Named && weight > 0.0,
            Ordering::Less => false,
        }
    }

    /// How precisely a media range names a media type.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Precision {
        Anything,
        TypeOnly,
        Named,
    }

    /// The most precise range of an `Accept` header for this media type, and its weight.
    fn accepted(accept: &str, media: &str) -> Option<(Precision, f32)> {
        let main_type = media.split('/').next().unwrap_or_default();
        let matching = |range: &str| {
            let precision = match range.split(';').next().unwrap_or_default().trim() {
                "*/*" => Precision::Anything,
                name if name.eq_ignore_ascii_case(media) => Precision::Named,
                name => {
                    let wildcard = name.strip_suffix("/*")?;
                    wildcard.eq_ignore_ascii_case(main_type).then_some(Precision::TypeOnly)?
                }
            };
            Some((precision, weight(range)))
        };
        accept.split(',').filter_map(matching).max_by_key(|(precision, _)| *precision)
    }

    /// The weight of a media range, from 0 (not acceptable) to 1, which is the default.
    fn weight(range: &str) -> f32 {
        let mut parameters = range.split(';').skip(1).filter_map(|part| part.split_once('='));
        let q = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
        let q = q.and_then(|(_, value)| value.trim().parse::<f32>().ok());
        q.filter(|q| (0.0..=1.0).contains(q)).map_or(1.0, f32::abs) // -0 is 0
    }

    #[cfg(test)]
    mod tests {
        use super::{EVENTS, JSON, wants_ndjson};

        #[track_caller]
        fn check(accept: &str, default: &str, want: bool) {
            assert_eq!(wants_ndjson(accept, default), want, "{accept:?} beside {default}");
        }

        #[test]
        fn ndjson_must_be_named_and_not_refused() {
            for accept in [
                "application/x-ndjson",
                "text/html, Application/X-NDJSON ;q=0.5",
                "a/b;q=0, application/x-ndjson",
            ] {
                check(accept, JSON, true);
            }
            for accept in
                ["", "*/*", "application/json", "application/x-ndjson;q=0", "application/x-ndjson; Q = 0.000"]
            {
                check(accept, JSON, false);
            }
        }

        #[test]
        fn the_larger_weight_wins() {
            check("application/x-ndjson;q=0.5, application/json", JSON, false);
            check("application/json;q=0.5, application/x-ndjson;q=0.9", JSON, true);
            check("application/json;q=0.9;a=b, application/x-ndjson;q=0.5", EVENTS, true);
            check("text/event-stream, application/x-ndjson;q=0.9", EVENTS, false);
            check("text/*;q=0.3, application/x-ndjson;q=0.2", EVENTS, false);
            check("application/x-ndjson;q=0.2, */*;q=0.1", JSON, true);
            check("application/x-ndjson;q=0.2, */*", JSON, false);
            // Both are named alike: the default can be had without naming NDJSON.
            check("application/json, application/x-ndjson", JSON, true);
            // What is named precisely overrides what a wildcard says.
            check("application/json;q=0, */*", JSON, true);
            check("application/*;q=0.5, application/json;q=0.1", JSON, true);
            check("*/*;q=0.5, application/x-ndjson;q=0", JSON, false);
            // A weight that is none counts as 1.
            check("application/x-ndjson;q=NaN, application/json;q=0.9", JSON, true);
            check("application/x-ndjson;q=7, application/json;q=0.9", JSON, true);
        }
    }
}

/// A longer body of one message is refused as `too_large`.
pub const MESSAGE_BODY_BYTES_MAX: usize = 128 * 1024;
/// A longer body of a batch is refused as `too_large`.
pub const BATCH_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A batch with more lines is refused as `too_large`, and none of its lines is stored.
pub const BATCH_LINES_MAX: usize = 10_000;
