//! Owns the codes with which a request can be refused, and the body of a refusal (RFC 9457).
//!
//! [`ErrorCode`] is closed: a new code compiles only with an HTTP status, with whether a repetition may help, and with
//! whether a refused send surely had no effect. Does not know HTTP libraries: `serve` makes a response of a
//! [`Problem`].

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

use super::json;

const RETRYABLE: bool = true;
const FINAL: bool = false;
const NOT_STORED: bool = true;
const MAYBE_STORED: bool = false;

macro_rules! error_codes {
    ($($(#[$attribute:meta])* $code:ident $name:literal $status:literal $title:literal $retry:ident $effect:ident;)*) => {
        /// What went wrong, for programs. Not for people: that is the `detail` of a [`Problem`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $($(#[$attribute])* $code),* }

        impl ErrorCode {
            /// Every code, for tests.
            pub const ALL: [ErrorCode; [$($name),*].len()] = [$(Self::$code),*];

            fn row(self) -> (&'static str, u16, &'static str, bool, bool) {
                match self { $(Self::$code => ($name, $status, $title, $retry, $effect)),* }
            }
        }
    };
}

// Name, status, title (the phrase of the status, RFC 9457), whether a repetition may help, and whether a send that is
// refused with this code may be stored all the same.
error_codes! {
    /// The body is not JSON, or not UTF-8.
    InvalidJson "invalid_json" 400 "Bad Request" FINAL NOT_STORED;
    /// JSON, but not a message.
    InvalidMessage "invalid_message" 422 "Unprocessable Content" FINAL NOT_STORED;
    InvalidQuery "invalid_query" 400 "Bad Request" FINAL NOT_STORED;
    /// Malformed, or of another filter or network.
    CursorInvalid "cursor_invalid" 400 "Bad Request" FINAL NOT_STORED;
    /// The cursor refers to an entry that this node does not have yet.
    CursorUnknown "cursor_unknown" 503 "Service Unavailable" RETRYABLE NOT_STORED;
    /// The message is damaged here, and no other node has sent it yet.
    Damaged "damaged" 503 "Service Unavailable" RETRYABLE NOT_STORED;
    NotFound "not_found" 404 "Not Found" FINAL NOT_STORED;
    MethodNotAllowed "method_not_allowed" 405 "Method Not Allowed" FINAL NOT_STORED;
    UnsupportedMediaType "unsupported_media_type" 415 "Unsupported Media Type" FINAL NOT_STORED;
    TooLarge "too_large" 413 "Content Too Large" FINAL NOT_STORED;
    /// A message with this id and other content is stored.
    IdConflict "id_conflict" 409 "Conflict" FINAL NOT_STORED;
    /// The node is up, so it cannot be forgotten.
    NodeIsUp "node_is_up" 409 "Conflict" FINAL NOT_STORED;
    /// A bound of this server is reached.
    Overloaded "overloaded" 503 "Service Unavailable" RETRYABLE NOT_STORED;
    /// The server has begun to listen, and opens its store.
    Starting "starting" 503 "Service Unavailable" RETRYABLE NOT_STORED;
    /// The disk is nearly full.
    StorageFull "storage_full" 507 "Insufficient Storage" RETRYABLE NOT_STORED;
    /// The store cannot be used at present. A commit that failed may have reached the disk.
    StorageFailed "storage_failed" 503 "Service Unavailable" RETRYABLE MAYBE_STORED;
    /// The proxy found no node that answers. A missing answer does not tell whether a node stored the message.
    NoNodeAvailable "no_node_available" 503 "Service Unavailable" RETRYABLE MAYBE_STORED;
    Timeout "timeout" 504 "Gateway Timeout" RETRYABLE MAYBE_STORED;
    /// The exchange comes from another network.
    WrongNetwork "wrong_network" 403 "Forbidden" FINAL NOT_STORED;
    /// The exchange uses a protocol version that this node does not support.
    UnsupportedProtocol "unsupported_protocol" 426 "Upgrade Required" FINAL NOT_STORED;
    /// The request carries no valid key.
    Unauthorized "unauthorized" 401 "Unauthorized" FINAL NOT_STORED;
    Forbidden "forbidden" 403 "Forbidden" FINAL NOT_STORED;
    /// A bug in this program. A client also reads a code that it does not know as this one.
    #[serde(other)]
    Internal "internal" 500 "Internal Server Error" RETRYABLE MAYBE_STORED;
}

impl ErrorCode {
    /// The name in the contract.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    pub fn status(self) -> u16 {
        self.row().1
    }

    /// Whether the same request may succeed later, or at another node. Repeating a send is always safe.
    pub fn retryable(self) -> bool {
        self.row().3
    }

    /// Whether a send that is refused with this code is surely not stored.
    pub fn surely_no_effect(self) -> bool {
        self.row().4
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal: the body of every answer whose status is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail} ({code})")]
pub struct Problem {
    /// Always `about:blank`: `code` identifies the problem.
    #[serde(rename = "type", default = "about_blank")]
    kind: Cow<'static, str>,
    #[serde(default)]
    pub title: Cow<'static, str>,
    pub status: u16,
    #[serde(default)]
    pub detail: String,
    pub code: ErrorCode,
    pub retryable: bool,
    /// For the `Retry-After` header; not part of the body.
    #[serde(skip)]
    pub retry_after_seconds: Option<u32>,
}

fn about_blank() -> Cow<'static, str> {
    Cow::Borrowed("about:blank")
}

impl Problem {
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let (_, status, title, retryable, _) = code.row();
        // The contract promises the header for these codes.
        let is_soon =
            matches!(code, ErrorCode::Overloaded | ErrorCode::Starting | ErrorCode::NoNodeAvailable);
        let retry_after = is_soon.then_some(1);
        Self {
            kind: about_blank(),
            title: title.into(),
            status,
            detail: detail.into(),
            code,
            retryable,
            retry_after_seconds: retry_after,
        }
    }

    pub fn to_json(&self) -> Vec<u8> {
        json::to_vec(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_the_one_of_the_contract() {
        let problem = Problem::new(ErrorCode::IdConflict, "stored with other content");
        assert_eq!(
            String::from_utf8(problem.to_json()).expect("UTF-8"),
            r#"{"type":"about:blank","title":"Conflict","status":409,"detail":"stored with other content","code":"id_conflict","retryable":false}"#
        );
    }

    #[test]
    fn every_code_round_trips_and_has_its_contract_name() {
        for code in ErrorCode::ALL {
            let problem = Problem { retry_after_seconds: None, ..Problem::new(code, "why") };
            assert_eq!(serde_json::from_slice::<Problem>(&problem.to_json()).expect("parses"), problem);
            assert_eq!(serde_json::to_value(code).expect("serialises"), code.as_str());
            assert!((400..600).contains(&code.status()));
        }
    }

    #[test]
    fn a_code_of_a_newer_server_keeps_its_status() {
        let newer = r#"{"status":429,"code":"quota","retryable":true,"detail":"slow down","extra":1}"#;
        let problem: Problem = serde_json::from_str(newer).expect("parses");
        assert_eq!((problem.code, problem.status, problem.retryable), (ErrorCode::Internal, 429, true));
    }

    #[test]
    fn only_three_codes_send_retry_after() {
        let saying =
            ErrorCode::ALL.into_iter().filter(|code| Problem::new(*code, "").retry_after_seconds.is_some());
        assert!(saying.map(ErrorCode::as_str).eq(["overloaded", "starting", "no_node_available"]));
    }
}
