//! Owns the codes with which a request can be refused, and the body of a refusal (RFC 9457).
//!
//! [`ErrorCode`] is closed: a new code compiles only with an HTTP status, with whether a repetition may help, and with
//! whether a refused send surely had no effect. Does not know HTTP libraries: `serve` makes a response of a [`Problem`].

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

/// What went wrong, for programs. Not for people: that is the `detail` of a [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The body is not JSON, or not UTF-8.
    InvalidJson,
    /// JSON, but not a message.
    InvalidMessage,
    /// A query key or value that is not in the contract.
    InvalidQuery,
    /// A cursor that is malformed, or of another filter or network.
    CursorInvalid,
    /// A cursor that refers to an entry this node does not have yet.
    CursorUnknown,
    /// No such path or message.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The `Content-Type` of the body is not supported.
    UnsupportedMediaType,
    /// The body is longer than its limit.
    TooLarge,
    /// A message with this id and other content is stored.
    IdConflict,
    /// The node is up, so it cannot be forgotten.
    NodeIsUp,
    /// A bound of this server is reached.
    Overloaded,
    /// The disk is nearly full.
    StorageFull,
    /// The store cannot be used at present.
    StorageFailed,
    /// The proxy found no node that answers.
    NoNodeAvailable,
    /// The request was not answered in time.
    Timeout,
    /// The exchange comes from another network.
    WrongNetwork,
    /// The exchange uses a protocol version that this node does not support.
    UnsupportedProtocol,
    /// The request carries no valid key.
    Unauthorized,
    /// The request is not permitted.
    Forbidden,
    /// A bug in this program. A client also reads a code that it does not know as this one.
    #[serde(other)]
    Internal,
}

const RETRYABLE: bool = true;
const FINAL: bool = false;
const NOT_STORED: bool = true;
const MAYBE_STORED: bool = false;

impl ErrorCode {
    /// Every code, for tables and tests.
    pub const ALL: [ErrorCode; 21] = [
        Self::InvalidJson,
        Self::InvalidMessage,
        Self::InvalidQuery,
        Self::CursorInvalid,
        Self::CursorUnknown,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::UnsupportedMediaType,
        Self::TooLarge,
        Self::IdConflict,
        Self::NodeIsUp,
        Self::Overloaded,
        Self::StorageFull,
        Self::StorageFailed,
        Self::NoNodeAvailable,
        Self::Timeout,
        Self::WrongNetwork,
        Self::UnsupportedProtocol,
        Self::Unauthorized,
        Self::Forbidden,
        Self::Internal,
    ];

    /// The one table of codes: name, status, title (the phrase of the status, RFC 9457), whether a repetition may help,
    /// whether a send that is refused with this code may be stored all the same.
    fn row(self) -> (&'static str, u16, &'static str, bool, bool) {
        match self {
            Self::InvalidJson => ("invalid_json", 400, "Bad Request", FINAL, NOT_STORED),
            Self::InvalidMessage => ("invalid_message", 422, "Unprocessable Content", FINAL, NOT_STORED),
            Self::InvalidQuery => ("invalid_query", 400, "Bad Request", FINAL, NOT_STORED),
            Self::CursorInvalid => ("cursor_invalid", 400, "Bad Request", FINAL, NOT_STORED),
            Self::CursorUnknown => ("cursor_unknown", 503, "Service Unavailable", RETRYABLE, NOT_STORED),
            Self::NotFound => ("not_found", 404, "Not Found", FINAL, NOT_STORED),
            Self::MethodNotAllowed => ("method_not_allowed", 405, "Method Not Allowed", FINAL, NOT_STORED),
            Self::UnsupportedMediaType => {
                ("unsupported_media_type", 415, "Unsupported Media Type", FINAL, NOT_STORED)
            }
            Self::TooLarge => ("too_large", 413, "Content Too Large", FINAL, NOT_STORED),
            Self::IdConflict => ("id_conflict", 409, "Conflict", FINAL, NOT_STORED),
            Self::NodeIsUp => ("node_is_up", 409, "Conflict", FINAL, NOT_STORED),
            Self::Overloaded => ("overloaded", 503, "Service Unavailable", RETRYABLE, NOT_STORED),
            Self::StorageFull => ("storage_full", 507, "Insufficient Storage", RETRYABLE, NOT_STORED),
            // A commit that failed may have reached the disk.
            Self::StorageFailed => ("storage_failed", 503, "Service Unavailable", RETRYABLE, MAYBE_STORED),
            // A missing answer does not tell whether a node stored the message.
            Self::NoNodeAvailable => {
                ("no_node_available", 503, "Service Unavailable", RETRYABLE, MAYBE_STORED)
            }
            Self::Timeout => ("timeout", 504, "Gateway Timeout", RETRYABLE, MAYBE_STORED),
            Self::WrongNetwork => ("wrong_network", 403, "Forbidden", FINAL, NOT_STORED),
            Self::UnsupportedProtocol => ("unsupported_protocol", 426, "Upgrade Required", FINAL, NOT_STORED),
            Self::Unauthorized => ("unauthorized", 401, "Unauthorized", FINAL, NOT_STORED),
            Self::Forbidden => ("forbidden", 403, "Forbidden", FINAL, NOT_STORED),
            Self::Internal => ("internal", 500, "Internal Server Error", RETRYABLE, MAYBE_STORED),
        }
    }

    /// The name in the contract.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status of the answer.
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

    /// The value of `Retry-After`, for the codes for which the contract promises that header.
    fn retry_after_seconds(self) -> Option<u32> {
        matches!(self, Self::Overloaded | Self::NoNodeAvailable).then_some(1)
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
    /// The phrase of the HTTP status.
    #[serde(default)]
    pub title: Cow<'static, str>,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong, for people.
    #[serde(default)]
    pub detail: String,
    /// What went wrong, for programs.
    pub code: ErrorCode,
    /// Whether the same request may succeed later, or at another node.
    pub retryable: bool,
    /// For the `Retry-After` header; not part of the body.
    #[serde(skip)]
    pub retry_after_seconds: Option<u32>,
}

fn about_blank() -> Cow<'static, str> {
    Cow::Borrowed("about:blank")
}

impl Problem {
    /// A refusal with this code. `detail` says what went wrong.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            kind: about_blank(),
            title: Cow::Borrowed(code.row().2),
            status: code.status(),
            detail: detail.into(),
            code,
            retryable: code.retryable(),
            retry_after_seconds: code.retry_after_seconds(),
        }
    }

    /// The body as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a problem has only strings, numbers and booleans")
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
    fn only_overloaded_and_no_node_available_send_retry_after() {
        for code in ErrorCode::ALL {
            let says = Problem::new(code, "").retry_after_seconds.is_some();
            assert_eq!(says, matches!(code, ErrorCode::Overloaded | ErrorCode::NoNodeAvailable), "{code}");
        }
    }
}
