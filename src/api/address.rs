//! Owns the syntax of server addresses: `host:port`, where the host is a name, an IPv4 or an `[IPv6]` address.
//!
//! Must not resolve names. That happens at each connect, so that a machine that moved is found again.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::explain_invalid::quote;

/// The address of a server. Compared as text, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr {
    /// A name in lower case, or an IP address in its one spelling, without brackets.
    host: String,
    port: u16,
}

const HAS_USER: &str = "an address has no user name and no password; a key is given in CHATCHAIN_KEY";

/// Why a text is not an address. Contains the text without a user name and a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{shown} is not an address: {why}")]
pub struct InvalidAddr {
    shown: String,
    why: &'static str,
}

impl InvalidAddr {
    fn new(text: &str, why: &'static str) -> Self {
        let shown = match text.rsplit_once('@') {
            Some((user, host)) => {
                let scheme = user.find("://").map_or("", |at| &user[..at + 3]);
                quote(&format!("{scheme}…@{host}"))
            }
            None => quote(text),
        };
        InvalidAddr { shown, why }
    }
}

impl Addr {
    /// Parses the value of `--server`: `host:port`, or `http://host:port` with or without a slash at the end.
    pub fn from_server_arg(text: &str) -> Result<Self, InvalidAddr> {
        let invalid = |why| InvalidAddr::new(text, why);
        let Some((scheme, rest)) = text.split_once("://") else { return text.parse() };
        if rest.contains('@') {
            return Err(invalid(HAS_USER));
        }
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(invalid("servers speak http; write host:port or http://host:port"));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('/') {
            return Err(invalid("a server's URL has no path"));
        }
        rest.parse().map_err(|e: InvalidAddr| invalid(e.why))
    }

    /// Whether listening on this address means every interface.
    pub fn is_wildcard(&self) -> bool {
        self.ip().is_some_and(|ip| ip.is_unspecified())
    }

    /// Whether only this machine can reach the address. Among names, that is certain for `localhost` alone.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// Listening on port 0 takes a free port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host without brackets, for a resolver.
    pub fn host(&self) -> &str {
        &self.host
    }

    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// The errors of several servers as part of a sentence: `a:1, b:1: connection refused; c:1: no answer within 5 s`.
/// Servers with the same error are grouped.
pub fn grouped_errors<'a>(errors: impl IntoIterator<Item = (&'a Addr, String)>) -> String {
    let mut groups: Vec<(Vec<String>, String)> = Vec::new();
    for (addr, why) in errors {
        match groups.iter_mut().find(|(_, known)| *known == why) {
            Some((addrs, _)) => addrs.push(addr.to_string()),
            None => groups.push((vec![addr.to_string()], why)),
        }
    }
    let groups = groups.into_iter().map(|(addrs, why)| format!("{}: {why}", addrs.join(", ")));
    groups.collect::<Vec<_>>().join("; ")
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        Addr { host: addr.ip().to_string(), port: addr.port() }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl FromStr for Addr {
    type Err = InvalidAddr;

    fn from_str(text: &str) -> Result<Self, InvalidAddr> {
        let invalid = |why| InvalidAddr::new(text, why);
        if text.contains('@') {
            return Err(invalid(HAS_USER));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| invalid("give host:port"))?;
        // `parse` alone would accept "+80".
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits);
        let port = port.ok_or_else(|| invalid("the port must be a number from 0 to 65535"))?;
        Ok(Addr { host: parse_host(host).map_err(invalid)?, port })
    }
}

fn parse_host(host: &str) -> Result<String, &'static str> {
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or("the bracket is not closed")?;
        return inner
            .parse::<Ipv6Addr>()
            .map(|ip| ip.to_string())
            .map_err(|_| "between the brackets must be an IPv6 address");
    }
    if host.contains(':') {
        return Err("an IPv6 address goes in brackets: [::1]:8080");
    }
    if host.is_empty() {
        return Err("the host is missing");
    }
    if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return host
            .parse::<Ipv4Addr>()
            .map(|ip| ip.to_string())
            .map_err(|_| "an IPv4 address has four numbers from 0 to 255");
    }
    // RFC 1123, and the underscore, which container networks use in names.
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if host.len() > 253 || !host.bytes().all(allowed) || host.starts_with(['-', '.']) {
        return Err("the host is neither a name nor an IP address");
    }
    Ok(host.to_ascii_lowercase())
}

impl Serialize for Addr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Addr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: Result<&str, &str>) {
        let got = Addr::from_server_arg(text).map(|addr| addr.to_string()).map_err(|e| e.to_string());
        match want {
            Ok(want) => assert_eq!(got.as_deref(), Ok(want)),
            Err(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{got:?} lacks {part:?}"),
        }
    }

    #[test]
    fn addresses_have_one_spelling() {
        check("127.0.0.1:8080", Ok("127.0.0.1:8080"));
        check("[::1]:8080", Ok("[::1]:8080"));
        check("[0:0::0:1]:80", Ok("[::1]:80"));
        check("Node-3.local:0", Ok("node-3.local:0"));
        check("http://localhost:8080", Ok("localhost:8080"));
        check("http://[::1]:8080/", Ok("[::1]:8080"));
        check("HTTP://Host:8080", Ok("host:8080"));
    }

    #[test]
    fn an_invalid_address_has_a_reason() {
        check("localhost", Err("`localhost` is not an address: give host:port"));
        check("", Err("give host:port"));
        check("localhost:", Err("the port must be"));
        check("localhost:+80", Err("the port must be"));
        check("localhost:65536", Err("the port must be"));
        check(":8080", Err("the host is missing"));
        check("::1:8080", Err("in brackets"));
        check("[::1:8080", Err("not closed"));
        check("[localhost]:80", Err("IPv6"));
        check("300.1.1.1:80", Err("four numbers"));
        check("user@host:80", Err("no user name"));
        check("http://user@host:80", Err("no user name"));
        check(
            "http://user:secret@host:80",
            Err("`http://…@host:80` is not an address: an address has no user"),
        );
        check(
            "https://user:se/c@ret@host",
            Err("`https://…@host` is not an address: an address has no user"),
        );
        check("user:secret@host", Err("`…@host` is not an address: an address has no user"));
        check("ftp://host:80", Err("servers speak http;"));
        check("http://host:80/messages", Err("`http://host:80/messages` is not an address: a server's URL"));
        check("http://host", Err("`http://host` is not an address: give host:port"));
        check("https://host:80", Err("servers speak http;"));
        check("HTTPS://host:80", Err("servers speak http;"));
    }

    #[test]
    fn servers_with_the_same_error_are_grouped() {
        let addrs: Vec<Addr> = ["a:1", "b:2", "c:3"].map(|text| text.parse().expect("valid")).into();
        let errors = addrs.iter().zip(["refused", "no answer", "refused"].map(str::to_owned));
        assert_eq!(grouped_errors(errors), "a:1, c:3: refused; b:2: no answer");
        assert_eq!(grouped_errors([]), "");
    }

    #[test]
    fn loopback_and_wildcard_are_told_apart() {
        let kinds = |text: &str| {
            let addr: Addr = text.parse().expect("valid");
            (addr.is_loopback(), addr.is_wildcard())
        };
        for text in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "LOCALHOST:1"] {
            assert_eq!(kinds(text), (true, false), "{text}");
        }
        for text in ["0.0.0.0:1", "[::]:1"] {
            assert_eq!(kinds(text), (false, true), "{text}");
        }
        for text in ["10.0.0.1:1", "example.org:1"] {
            assert_eq!(kinds(text), (false, false), "{text}");
        }
    }
}
