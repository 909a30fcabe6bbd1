//! The network's keys: who shows one may do everything, who shows none nothing.
//!
//! Owns how a key looks, how it travels (`Authorization: Bearer`, RFC 6750) and how one that is shown is judged. Several may
//! be valid at once: a process sends the first and takes any. So a key is exchanged without an outage: first all
//! take the new one too, then all send it, then none takes the old one. No key is ever shown, by `Debug` or an error
//! neither, and whoever guesses learns nothing from how long the judgement takes.

use std::{fmt, sync::Arc};

use blake3::Hash;

/// A shorter key could be guessed; it is refused. `chatchain key` makes longer ones.
pub const KEY_CHARS_MIN: usize = 16;
/// A longer key is refused: it says no more, and would have to be hashed for every request.
pub const KEY_CHARS_MAX: usize = 256;
/// More keys at once are refused. Two are enough to exchange one.
pub const KEYS_MAX: usize = 16;
/// What whoever shows no key of this network is told; always the same, whatever was shown.
pub const REFUSAL: &str =
    "this network is locked, and the request shows none of its keys; send one as `Authorization: Bearer KEY`";

/// At least one key. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    /// The one that is sent.
    first: Arc<str>,
    /// Those that are taken, each hashed.
    prints: Arc<[Hash]>,
}

/// Why a text holds no keys, as half a sentence that does not hold the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidKeys(String);

impl Keys {
    /// Reads a file of keys: one a line; blank lines and those that begin with `#` say nothing.
    pub fn from_lines(text: &str) -> Result<Self, InvalidKeys> {
        let lines = (1..).zip(text.lines().map(str::trim));
        let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        Self::new(keys.map(|(number, line)| (format!("line {number}"), line)))
    }

    /// Reads keys that commas or white space separate.
    pub fn from_list(text: &str) -> Result<Self, InvalidKeys> {
        let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
        Self::new((1..).zip(parts).map(|(number, key)| (format!("key {number}"), key)))
    }

    fn new<'a>(keys: impl Iterator<Item = (String, &'a str)>) -> Result<Self, InvalidKeys> {
        let mut first: Option<Arc<str>> = None;
        let mut prints = Vec::new();
        for (place, key) in keys {
            check(key).map_err(|why| InvalidKeys(format!("{place}: {why}")))?;
            first.get_or_insert_with(|| key.into());
            prints.push(print(key.as_bytes()));
        }
        if prints.len() > KEYS_MAX {
            return Err(InvalidKeys(format!("it holds more than {KEYS_MAX} keys")));
        }
        let first = first.ok_or_else(|| InvalidKeys("there is no key in it".into()))?;
        Ok(Keys { first, prints: prints.into() })
    }

    /// The `Authorization` header that shows the first key. Whoever holds it must not print it.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.first)
    }

    /// Whether an `Authorization` header shows one of the keys. Takes equally long whatever it shows, or if there is none:
    /// hashes of equally many bytes are compared, each in constant time, and all of them.
    pub fn open_for(&self, authorization: Option<&[u8]>) -> bool {
        let shown = print(token(authorization.unwrap_or_default()));
        self.prints.iter().map(|key| u32::from(*key == shown)).sum::<u32>() > 0
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

/// What the header shows; nothing if it is none of our kind.
fn token(authorization: &[u8]) -> &[u8] {
    const SCHEME: &[u8] = b"Bearer ";
    match authorization.split_at_checked(SCHEME.len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(SCHEME) => token.trim_ascii(),
        _ => b"",
    }
}

/// The hash of a key with its length, padded so that it takes as long for any. One that is too long is none of ours.
fn print(key: &[u8]) -> Hash {
    const LENGTH: usize = size_of::<u64>();
    let mut padded = [0; LENGTH + KEY_CHARS_MAX];
    let taken = &key[..key.len().min(KEY_CHARS_MAX)];
    padded[..LENGTH].copy_from_slice(&(key.len() as u64).to_be_bytes());
    padded[LENGTH..][..taken.len()].copy_from_slice(taken);
    blake3::hash(&padded)
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        self.prints == other.prints
    }
}

impl Eq for Keys {}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} not shown)", self.prints.len())
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use uuid::Uuid;

    use super::*;

    const OLD: &str = "old-key-old-key-old";
    const NEW: &str = "new-key-new-key-new";
    /// Between the quickest and the slowest judgement, where 1 is usual. To hash fewer bytes, to compare fewer hashes, or to
    /// compare keys instead makes a tenth or far more.
    const DIFFERENCE_PERCENT_MAX: u128 = 5;

    fn keys(list: &str) -> Keys {
        Keys::from_list(list).expect("keys")
    }

    fn opens(keys: &Keys, authorization: &str) -> bool {
        keys.open_for(Some(authorization.as_bytes()))
    }

    #[track_caller]
    fn refuse(text: &str, part: &str) {
        let complaint = Keys::from_lines(text).expect_err("no keys").to_string();
        assert!(complaint.contains(part), "{complaint:?} lacks {part:?}");
        let secrets = text.lines().filter(|line| line.len() > 3);
        assert!(secrets.into_iter().all(|line| !complaint.contains(line)), "{complaint:?} shows the key");
    }

    #[test]
    fn a_file_has_one_key_a_line_and_a_list_any_separators() {
        let file = Keys::from_lines(&format!("# made on Monday\n\n  {OLD}\r\n#{NEW}\n{NEW}")).expect("keys");
        assert_eq!(file, keys(&format!("{OLD},{NEW}")));
        assert_eq!(file, keys(&format!(" {OLD} ,\n{NEW},")));
        assert_ne!(file, keys(&format!("{NEW} {OLD}")), "the order says which is sent");
        assert_eq!(file.authorization(), format!("Bearer {OLD}"));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
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
    fn any_of_the_keys_opens_and_nothing_that_resembles_one() {
        let both = keys(&format!("{OLD},{NEW}"));
        for key in [OLD, NEW] {
            assert!(opens(&both, &format!("Bearer {key}")));
            assert!(opens(&both, &format!("bearer  {key} ")), "a scheme is of any case (RFC 9110, 11.1)");
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
            assert!(!opens(&both, &format!("Bearer {key}")), "{key}");
        }
        for other in [OLD, "", "Bearer", "Bearer ", &format!("Basic {OLD}"), &format!("Bearer{OLD}")] {
            assert!(!opens(&both, other), "{other}");
        }
        assert!(!both.open_for(None));
    }

    #[test]
    fn a_key_as_long_as_allowed_is_not_cut() {
        let long = "x".repeat(KEY_CHARS_MAX);
        assert!(opens(&keys(&long), &format!("Bearer {long}")));
        assert!(!opens(&keys(&long), &format!("Bearer {long}x")), "the rest counts");
    }

    #[test]
    fn keys_are_not_shown() {
        let shown = format!("{:?}", Some(keys(&format!("{OLD},{NEW}"))));
        assert_eq!(shown, "Some(Keys(2 not shown))");
    }

    /// Old, then both, then both with the new one first, then new: while some are a step ahead, all understand each other.
    #[test]
    fn a_key_is_exchanged_one_process_at_a_time() {
        let steps = [OLD.into(), format!("{OLD},{NEW}"), format!("{NEW},{OLD}"), NEW.to_owned()];
        let steps = steps.map(|list| keys(&list));
        for two in steps.windows(2) {
            for (sender, receiver) in [(&two[0], &two[1]), (&two[1], &two[0])] {
                assert!(opens(receiver, &sender.authorization()));
            }
        }
        assert!(!opens(&steps[3], &steps[0].authorization()), "in the end the old one is worth nothing");
    }

    /// The least of many times for each of these headers, in nanoseconds. All are judged in every round, in any order, so
    /// what disturbs one disturbs all, and what is left of it in the least one is little.
    fn least_times(keys: &Keys, headers: &[Option<Vec<u8>>]) -> Vec<u128> {
        const ROUNDS: usize = 400;
        /// One call is too short to be measured.
        const CALLS: u128 = 16;
        let mut order: Vec<_> = (0..headers.len()).collect();
        let mut least = vec![u128::MAX; headers.len()];
        for _ in 0..ROUNDS {
            order.sort_by_cached_key(|_| Uuid::new_v4());
            for which in &order {
                let began = Instant::now();
                for _ in 0..CALLS {
                    black_box(black_box(keys).open_for(black_box(headers[*which].as_deref())));
                }
                least[*which] = least[*which].min(began.elapsed().as_nanos() / CALLS);
            }
        }
        least
    }

    #[test]
    fn the_judgement_takes_equally_long_whatever_is_shown() {
        // As long, as many and as like each other as can be, so that whatever depends on them shows most.
        let same = "k".repeat(KEY_CHARS_MAX - 1);
        let many: Vec<_> =
            (b'a'..).take(KEYS_MAX).map(|last| format!("{same}{}", char::from(last))).collect();
        let (first, last) = (&many[0], &many[KEYS_MAX - 1]);
        let bearer = |token: &str| Some(format!("Bearer {token}").into_bytes());
        let shown = [
            ("nothing", None),
            ("an empty header", Some(Vec::new())),
            ("an empty key", bearer("")),
            ("a short key", bearer(NEW)),
            ("a wrong key", bearer(&"x".repeat(KEY_CHARS_MAX))),
            ("a wrong end", bearer(&format!("{same}z"))),
            ("a wrong beginning", bearer(&format!("x{}", &first[1..]))),
            ("a prefix", bearer(&same)),
            ("an extension", bearer(&format!("{first}x"))),
            ("a very long one", bearer(&first.repeat(20))),
            ("another scheme", Some(format!("Basic {first}").into_bytes())),
            ("no text", Some([b"Bearer ".as_slice(), &[0xFF; KEY_CHARS_MAX]].concat())),
            ("the first key", bearer(first)),
            ("the last key", bearer(last)),
        ];
        let (names, headers): (Vec<_>, Vec<_>) = shown.into_iter().unzip();
        let keys = keys(&many.join(","));
        // On a machine whose clock rate jumps one attempt may fail, but not all.
        let mut seen = Vec::new();
        for _ in 0..20 {
            let times = least_times(&keys, &headers);
            let (quickest, slowest) = (times.iter().min().expect("some"), times.iter().max().expect("some"));
            if slowest * 100 <= quickest * (100 + DIFFERENCE_PERCENT_MAX) {
                return;
            }
            seen = names.iter().zip(times).collect();
        }
        panic!("nanoseconds: {seen:?}");
    }
}
