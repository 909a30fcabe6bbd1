//! The HTTP contract: what requests and answers look like, and how a request is refused.
//!
//! Both servers, the client and the commands read and write these shapes, so that a public field or code
//! can change in one place only. Knows `chain::message`, whose limits it applies; knows nothing of axum,
//! reqwest, tokio or redb. Everything here is bytes in, values or a [`error::Problem`] out; fresh ids come
//! from the caller, for there is no randomness here.

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

/// Paths that nodes and the proxy answer.
pub mod path {
    /// Send, and history.
    pub const MESSAGES: &str = "/messages";
    /// One message; the id follows.
    pub const MESSAGES_PREFIX: &str = "/messages/";
    /// Live messages, resumable anywhere.
    pub const FEED: &str = "/feed";
    /// How this server sees its peers or upstreams.
    pub const NODES: &str = "/nodes";
    /// One node; its id follows. It can be forgotten.
    pub const NODES_PREFIX: &str = "/nodes/";
    /// The whole network.
    pub const NETWORK: &str = "/network";
    /// The exchange between nodes; the proxy does not have it.
    pub const SYNC: &str = "/sync";
    /// The process lives.
    pub const LIVEZ: &str = "/livez";
    /// It can store and read.
    pub const READYZ: &str = "/readyz";
}

/// Names of headers, in the lower case that HTTP libraries want.
pub mod header {
    /// An id for a message that brings none; or the root of the ids of a batch.
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    /// How much a read must cover; in an answer: how much it covers.
    pub const POSITION: &str = "chatchain-position";
    /// Where an interrupted reader of the feed goes on.
    pub const LAST_EVENT_ID: &str = "last-event-id";
}

/// Media types.
pub mod media {
    /// One message, or an array.
    pub const JSON: &str = "application/json";
    /// One JSON value per line.
    pub const NDJSON: &str = "application/x-ndjson";
    /// Refusals (RFC 9457).
    pub const PROBLEM: &str = "application/problem+json";
    /// The feed.
    pub const EVENTS: &str = "text/event-stream";
    /// An exchange.
    pub const BINARY: &str = "application/octet-stream";

    /// Whether a `Content-Type` names this media type, whatever its parameters and case.
    pub fn is(content_type: &str, media: &str) -> bool {
        content_type.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(media))
    }

    /// Whether an `Accept` header asks for NDJSON by its name. A wildcard does not, nor does who gives it the weight 0.
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
        fn ndjson_is_for_who_names_it_and_does_not_refuse_it() {
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

/// The body of one message is at most this long; a longer one is `too_large`.
pub const MESSAGE_BODY_BYTES_MAX: usize = 128 * 1024;
/// The body of a batch is at most this long; a longer one is `too_large`.
pub const BATCH_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A batch holds at most this many messages; one with more is `too_large` as a whole.
pub const BATCH_LINES_MAX: usize = 10_000;
