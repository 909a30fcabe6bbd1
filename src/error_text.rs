//! Owns the words of the operating system's errors, as people read them: without their numbers.

use std::fmt::Display;

/// The text of an error without the numbers of the operating system, such as in "Not a directory (os error 20)": they
/// help no user.
pub fn without_numbers(error: impl Display) -> String {
    let text = error.to_string();
    let mut parts = text.split(" (os error ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => out += rest,
            _ => out = out + " (os error " + part,
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_shown_without_their_number() {
        let check = |story: &str, want: &str| assert_eq!(without_numbers(story), want);
        check("a: Not a directory (os error 20)", "a: Not a directory");
        check("a (os error 2): b (os error 3); c", "a: b; c");
        check("a (os error x) b (os error 1", "a (os error x) b (os error 1");
        check("", "");
        let broken = std::io::Error::from_raw_os_error(rustix::io::Errno::PIPE.raw_os_error());
        check(&format!("cannot write: {broken}"), "cannot write: Broken pipe");
    }
}
