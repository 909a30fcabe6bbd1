//! Owns the keys of a network: their syntax, the `Authorization: Bearer` header that carries one (RFC 6750), and the
//! check of a key that a request carries.
//!
//! A request with a valid key may do everything, a request without one nothing. Several keys are valid at once: a
//! process sends the first and accepts all of them. So a key is replaced without an outage: first all processes accept
//! the new key as well, then all send it, then none accepts the old one. Does not know where keys are stored.
//!
//! Invariants: no `Debug` output and no error contains a key; the time of a check does not depend on the keys.

use std::{fmt, sync::Arc};

use blake3::Hash;
use subtle::{Choice, ConstantTimeEq};

/// A shorter key is refused, because it could be guessed. `chatchain key` makes longer ones.
const KEY_CHARS_MIN: usize = 16;
/// A longer key is refused: more characters add no security.
const KEY_CHARS_MAX: usize = 256;
/// More keys at once are refused. Replacing a key needs two.
const KEYS_MAX: usize = 16;
/// The answer to a request without a valid key; the same whatever the request carries.
pub const REFUSAL: &str =
    "this network is locked, and the request shows none of its keys; send one as `Authorization: Bearer KEY`";

/// One key or more. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// The key that is sent.
    first: Arc<str>,
    /// The hashes of all keys that are accepted. Hashes have one length, so a comparison does not show a key's length.
    hashes: Arc<[Hash]>,
}

/// Why a text is not a list of keys. Does not contain the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidKeys(String);

impl Keys {
    /// Parses a key file: one key per line. Empty lines and lines that begin with `#` are skipped.
    pub fn from_lines(text: &str) -> Result<Self, InvalidKeys> {
        let lines = (1..).zip(text.lines().map(str::trim));
        let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        Self::new(keys.map(|(number, line)| (format!("line {number}"), line)))
    }

    /// Parses keys that are separated by commas or white space.
    pub fn from_list(text: &str) -> Result<Self, InvalidKeys> {
        let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
        Self::new((1..).zip(parts).map(|(number, key)| (format!("key {number}"), key)))
    }

    fn new<'a>(keys: impl Iterator<Item = (String, &'a str)>) -> Result<Self, InvalidKeys> {
        let mut first: Option<Arc<str>> = None;
        let mut hashes = Vec::new();
        for (location, key) in keys {
            check(key).map_err(|why| InvalidKeys(format!("{location}: {why}")))?;
            first.get_or_insert_with(|| key.into());
            hashes.push(blake3::hash(key.as_bytes()));
        }
        if hashes.len() > KEYS_MAX {
            return Err(InvalidKeys(format!("it holds more than {KEYS_MAX} keys")));
        }
        let first = first.ok_or_else(|| InvalidKeys("there is no key in it".into()))?;
        Ok(Keys { first, hashes: hashes.into() })
    }

    /// The `Authorization` header that carries the first key. Secret: do not print it.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.first)
    }

    /// Whether an `Authorization` header carries one of the keys. Compares with all keys, also after a match, so that
    /// the time does not tell which key matches.
    pub fn accepts(&self, authorization: Option<&[u8]>) -> bool {
        let hash = blake3::hash(bearer_token(authorization.unwrap_or_default()));
        let matches = self.hashes.iter().map(|key| key.as_bytes().ct_eq(hash.as_bytes()));
        matches.fold(Choice::from(0), |any, one| any | one).into()
    }
}

fn check(key: &str) -> Result<(), String> {
    if !key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
        return Err("a key is of printable ASCII characters without white space and commas".into());
    }
    if !(KEY_CHARS_MIN..=KEY_CHARS_MAX).contains(&key.len()) {
        return Err(format!("a key has {KEY_CHARS_MIN} to {KEY_CHARS_MAX} characters"));
    }
    Ok(())
}

/// The token of a `Bearer` header; empty for any other header.
fn bearer_token(authorization: &[u8]) -> &[u8] {
    const SCHEME: &[u8] = b"Bearer ";
    match authorization.split_at_checked(SCHEME.len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(SCHEME) => token.trim_ascii(),
        _ => b"",
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} not shown)", self.hashes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "old-key-old-key-old";
    const NEW: &str = "new-key-new-key-new";

    fn keys(list: &str) -> Keys {
        Keys::from_list(list).expect("keys")
    }

    fn accepts(keys: &Keys, authorization: &str) -> bool {
        keys.accepts(Some(authorization.as_bytes()))
    }

    #[track_caller]
    fn refuse(text: &str, part: &str) {
        let complaint = Keys::from_lines(text).expect_err("no keys").to_string();
        assert!(complaint.contains(part), "{complaint:?} lacks {part:?}");
        let secrets = text.lines().filter(|line| line.len() > 3);
        assert!(secrets.into_iter().all(|line| !complaint.contains(line)), "{complaint:?} shows the key");
    }

    #[test]
    fn a_file_has_one_key_per_line_and_a_list_any_separators() {
        let file = Keys::from_lines(&format!("# made on Monday\n\n  {OLD}\r\n#{NEW}\n{NEW}")).expect("keys");
        assert_eq!(file, keys(&format!("{OLD},{NEW}")));
        assert_eq!(file, keys(&format!(" {OLD} ,\n{NEW},")));
        assert_ne!(file, keys(&format!("{NEW} {OLD}")), "the first key is the one that is sent");
        assert_eq!(file.authorization(), format!("Bearer {OLD}"));
    }

    #[test]
    fn an_invalid_key_is_refused_and_not_printed() {
        refuse("", "there is no key in it");
        refuse("# only words\n\n", "there is no key in it");
        refuse(&format!("{OLD}\nfifteen-chars-x"), "line 2: a key has 16 to 256 characters");
        refuse(&"x".repeat(257), "line 1: a key has 16 to 256 characters");
        refuse("two-words-in one-line-of-it", "white space");
        refuse(&format!("{OLD},{NEW}"), "commas");
        refuse("schlüssel-schlüssel", "ASCII");
        refuse("a\u{7f}-control-character", "printable");
        refuse(&format!("{OLD}\n").repeat(17), "more than 16 keys");
        assert!(Keys::from_lines(&"x".repeat(256)).is_ok() && Keys::from_lines(&"x".repeat(16)).is_ok());
        assert!(Keys::from_list(" , ").is_err());
    }

    #[test]
    fn each_of_the_keys_is_accepted_and_nothing_that_resembles_one() {
        let both = keys(&format!("{OLD},{NEW}"));
        for key in [OLD, NEW] {
            assert!(accepts(&both, &format!("Bearer {key}")));
            assert!(accepts(&both, &format!("bearer  {key} ")), "the scheme has no case (RFC 9110, 11.1)");
        }
        let near = [
            &OLD[1..],
            &OLD[..OLD.len() - 1],
            "Old-key-old-key-old",
            "old-key-old-key-olD",
            "old-key-old-key-old\0",
            "old-key-old-key-oldx",
            "",
            &format!("{OLD},{NEW}"),
            &format!("{OLD} {OLD}"),
            &OLD.repeat(100),
        ];
        for key in near {
            assert!(!accepts(&both, &format!("Bearer {key}")), "{key}");
        }
        for other in [OLD, "", "Bearer", "Bearer ", &format!("Basic {OLD}"), &format!("Bearer{OLD}")] {
            assert!(!accepts(&both, other), "{other}");
        }
        assert!(!both.accepts(None));
    }

    #[test]
    fn a_key_as_long_as_allowed_is_not_cut() {
        let long = "x".repeat(KEY_CHARS_MAX);
        assert!(accepts(&keys(&long), &format!("Bearer {long}")));
        assert!(
            !accepts(&keys(&long), &format!("Bearer {long}x")),
            "a longer key is not cut to the allowed length"
        );
    }

    #[test]
    fn debug_output_does_not_contain_keys() {
        let shown = format!("{:?}", Some(keys(&format!("{OLD},{NEW}"))));
        assert_eq!(shown, "Some(Keys(2 not shown))");
    }

    /// Old, then both, then both with the new key first, then new: processes that are one step apart accept each other.
    #[test]
    fn a_key_is_replaced_one_process_at_a_time() {
        let steps = [OLD.into(), format!("{OLD},{NEW}"), format!("{NEW},{OLD}"), NEW.to_owned()];
        let steps = steps.map(|list| keys(&list));
        for two in steps.windows(2) {
            for (sender, receiver) in [(&two[0], &two[1]), (&two[1], &two[0])] {
                assert!(accepts(receiver, &sender.authorization()));
            }
        }
        assert!(!accepts(&steps[3], &steps[0].authorization()), "at the end the old key is refused");
    }

    #[test]
    fn every_one_of_the_most_keys_allowed_is_compared() {
        let same = "k".repeat(KEY_CHARS_MAX - 1);
        let all: Vec<_> = (b'a'..).take(KEYS_MAX).map(|last| format!("{same}{}", char::from(last))).collect();
        let keys = keys(&all.join(","));
        assert!(all.iter().all(|key| accepts(&keys, &format!("Bearer {key}"))));
        assert!(!accepts(&keys, &format!("Bearer {same}")) && !accepts(&keys, &format!("Bearer {same}z")));
    }
}
