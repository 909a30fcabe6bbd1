//! Owns which messages a reader asks for: one filter for listings, feeds and clients.
//!
//! Listings use every condition. A feed uses the names only; a client that follows a feed compares the text itself. How
//! a filter is written in a query, and which index serves it, is not known here.

use super::ids::EntryKey;
use super::message::{Content, fold};

/// The conditions on a message. All that are set must hold; the default is every message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub sender: Option<String>,
    pub recipient: Option<String>,
    /// Only messages from or to this user.
    pub user: Option<String>,
    /// The other side of a conversation; only together with `user`.
    pub with: Option<String>,
    /// Contained in the text, without regard to Unicode case or form.
    pub text: Option<String>,
    /// Shown timestamp at least this, Unix seconds.
    pub since: Option<u64>,
    /// Shown timestamp below this, Unix seconds.
    pub until: Option<u64>,
}

impl Filter {
    /// The conditions that a feed knows: those on sender and recipient.
    #[must_use]
    pub fn names(&self) -> Self {
        Filter { text: None, since: None, until: None, ..self.clone() }
    }

    /// The same filter with its text folded, as [`Filter::matches`] wants it.
    #[must_use]
    pub fn folded(self) -> Self {
        Filter { text: self.text.map(|text| fold(&text)), ..self }
    }

    /// Whether a message is asked for. The filter must be [folded](Filter::folded).
    pub fn matches(&self, content: &Content<'_>, key: EntryKey) -> bool {
        let is = |want: &Option<String>, name: &str| want.as_deref().is_none_or(|want| want == name);
        let is_between = |user: &String| {
            (content.sender == user && is(&self.with, content.recipient))
                || (content.recipient == user && is(&self.with, content.sender))
        };
        let timestamp = content.shown_timestamp(key.stamp);
        is(&self.sender, content.sender)
            && is(&self.recipient, content.recipient)
            && self.user.as_ref().is_none_or(is_between)
            && self.since.is_none_or(|since| timestamp >= since)
            && self.until.is_none_or(|until| timestamp < until)
            && self.matches_text(content.text)
    }

    /// Whether a text has what is asked for. The filter must be [folded](Filter::folded).
    pub fn matches_text(&self, text: &str) -> bool {
        self.text.as_ref().is_none_or(|wanted| fold(text).contains(wanted.as_str()))
    }
}
