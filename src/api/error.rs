//! Every way in which a request can be refused, and the one shape in which it is told (RFC 9457).
//!
//! [`ErrorCode`] is closed: a new code does not compile until it has answered which HTTP status it has,
//! whether a repetition may help, and whether the request surely had no effect. Knows nothing of HTTP
//! libraries; `serve` turns a [`Problem`] into a response.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

/// What went wrong, for programs.
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
    /// A cursor this node cannot expand yet.
    CursorUnknown,
    /// No such path or message.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The body is of a type that is not understood.
    UnsupportedMediaType,
    /// The body is longer than its limit.
    TooLarge,
    /// The id is known, with other content.
    IdConflict,
    /// What is up cannot be forgotten.
    NodeIsUp,
    /// A bound of this server is reached.
    Overloaded,
    /// The disk is nearly full.
    StorageFull,
    /// The store cannot be used just now.
    StorageFailed,
    /// The proxy found no node that answers.
    NoNodeAvailable,
    /// It took too long.
    Timeout,
    /// The exchange came from another network.
    WrongNetwork,
    /// The exchange speaks a version that is not understood.
    UnsupportedProtocol,
    /// Who asks is not known.
    Unauthorized,
    /// Who asks may not.
    Forbidden,
    /// A mistake in this program. Also what a client makes of a code that is newer than itself.
    #[serde(other)]
    Internal,
}

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

    /// The HTTP status it is answered with.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidJson | Self::InvalidQuery | Self::CursorInvalid => 400,
            Self::Unauthorized => 401,
            Self::WrongNetwork | Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::IdConflict | Self::NodeIsUp => 409,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::InvalidMessage => 422,
            Self::UnsupportedProtocol => 426,
            Self::Internal => 500,
            Self::CursorUnknown | Self::Overloaded | Self::StorageFailed | Self::NoNodeAvailable => 503,
            Self::Timeout => 504,
            Self::StorageFull => 507,
        }
    }

    /// Whether the same request may succeed later, or at another node. Repeating a send is always safe.
    pub fn retryable(self) -> bool {
        match self {
            Self::CursorUnknown
            | Self::Overloaded
            | Self::StorageFull
            | Self::StorageFailed
            | Self::NoNodeAvailable
            | Self::Timeout
            | Self::Internal => true,
            Self::InvalidJson
            | Self::InvalidMessage
            | Self::InvalidQuery
            | Self::CursorInvalid
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::UnsupportedMediaType
            | Self::TooLarge
            | Self::IdConflict
            | Self::NodeIsUp
            | Self::WrongNetwork
            | Self::UnsupportedProtocol
            | Self::Unauthorized
            | Self::Forbidden => false,
        }
    }

    /// Whether a send refused with this code is surely not stored.
    pub fn surely_no_effect(self) -> bool {
        match self {
            Self::InvalidJson
            | Self::InvalidMessage
            | Self::InvalidQuery
            | Self::CursorInvalid
            | Self::CursorUnknown
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::UnsupportedMediaType
            | Self::TooLarge
            | Self::IdConflict
            | Self::NodeIsUp
            | Self::Overloaded
            | Self::StorageFull
            | Self::WrongNetwork
            | Self::UnsupportedProtocol
            | Self::Unauthorized
            | Self::Forbidden => true,
            // A commit that failed may have reached the disk; an answer that is missing says nothing.
            Self::StorageFailed | Self::NoNodeAvailable | Self::Timeout | Self::Internal => false,
        }
    }

    /// The phrase of its HTTP status, as RFC 9457 asks for where the type is `about:blank`.
    pub fn title(self) -> &'static str {
        match self {
            Self::InvalidJson | Self::InvalidQuery | Self::CursorInvalid => "Bad Request",
            Self::Unauthorized => "Unauthorized",
            Self::WrongNetwork | Self::Forbidden => "Forbidden",
            Self::NotFound => "Not Found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::IdConflict | Self::NodeIsUp => "Conflict",
            Self::TooLarge => "Content Too Large",
            Self::UnsupportedMediaType => "Unsupported Media Type",
            Self::InvalidMessage => "Unprocessable Content",
            Self::UnsupportedProtocol => "Upgrade Required",
            Self::Internal => "Internal Server Error",
            Self::CursorUnknown | Self::Overloaded | Self::StorageFailed | Self::NoNodeAvailable => {
                "Service Unavailable"
            }
            Self::Timeout => "Gateway Timeout",
            Self::StorageFull => "Insufficient Storage",
        }
    }

    /// Its name in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidMessage => "invalid_message",
            Self::InvalidQuery => "invalid_query",
            Self::CursorInvalid => "cursor_invalid",
            Self::CursorUnknown => "cursor_unknown",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::TooLarge => "too_large",
            Self::IdConflict => "id_conflict",
            Self::NodeIsUp => "node_is_up",
            Self::Overloaded => "overloaded",
            Self::StorageFull => "storage_full",
            Self::StorageFailed => "storage_failed",
            Self::NoNodeAvailable => "no_node_available",
            Self::Timeout => "timeout",
            Self::WrongNetwork => "wrong_network",
            Self::UnsupportedProtocol => "unsupported_protocol",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Internal => "internal",
        }
    }

    /// After how many seconds to try again, where the contract promises a `Retry-After`.
    fn retry_after_seconds(self) -> Option<u32> {
        matches!(self, Self::Overloaded | Self::NoNodeAvailable).then_some(1)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal: the body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail} ({code})")]
pub struct Problem {
    /// Always `about:blank`: the code says more than a URL would.
    #[serde(rename = "type", default = "about_blank")]
    kind: Cow<'static, str>,
    /// The phrase of the status.
    #[serde(default)]
    pub title: Cow<'static, str>,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong, for people.
    #[serde(default)]
    pub detail: String,
    /// What was wrong, for programs.
    pub code: ErrorCode,
    /// Whether the same request may succeed later, or at another node.
    pub retryable: bool,
    /// Goes into the `Retry-After` header, not into the body.
    #[serde(skip)]
    pub retry_after_seconds: Option<u32>,
}

fn about_blank() -> Cow<'static, str> {
    Cow::Borrowed("about:blank")
}

impl Problem {
    /// A refusal with this code; `detail` is a sentence that says what was wrong.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            kind: about_blank(),
            title: Cow::Borrowed(code.title()),
            status: code.status(),
            detail: detail.into(),
            code,
            retryable: code.retryable(),
            retry_after_seconds: code.retry_after_seconds(),
        }
    }

    /// The body.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a problem has only strings, numbers and booleans")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_the_one_of_the_contract() {
        let problem = Problem::new(ErrorCode::IdConflict, "known, with other content");
        assert_eq!(
            String::from_utf8(problem.to_json()).expect("UTF-8"),
            r#"{"type":"about:blank","title":"Conflict","status":409,"detail":"known, with other content","code":"id_conflict","retryable":false}"#
        );
    }

    #[test]
    fn every_code_survives_the_wire_and_has_its_contract_name() {
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
    fn only_full_and_absent_servers_say_when_to_come_back() {
        for code in ErrorCode::ALL {
            let says = Problem::new(code, "").retry_after_seconds.is_some();
            assert_eq!(says, matches!(code, ErrorCode::Overloaded | ErrorCode::NoNodeAvailable), "{code}");
        }
    }
}
