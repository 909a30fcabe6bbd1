//! Owns the table of endpoints: which paths exist, with which methods, at which servers, and which need no key.
//!
//! `serve` reads from it which paths need no key. Node and proxy build their routers themselves, because a route is a typed
//! handler; a test compares both routers with this table. Must not know handlers.

use super::path;

/// One path of the API.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// The path; `{id}` stands for any one segment.
    pub path: &'static str,
    /// The allowed methods in alphabetical order, as the `Allow` header lists them.
    pub methods: &'static [&'static str],
    /// Whether the proxy has it. A node has all of them.
    pub on_proxy: bool,
    /// Whether a request needs a key, where the network has one.
    pub needs_key: bool,
}

const fn endpoint(path: &'static str, methods: &'static [&'static str]) -> Endpoint {
    Endpoint { path, methods, on_proxy: true, needs_key: true }
}

/// All endpoints.
pub const ENDPOINTS: [Endpoint; 9] = [
    endpoint(path::MESSAGES, &["GET", "HEAD", "POST"]),
    endpoint(path::MESSAGE, &["GET", "HEAD"]),
    endpoint(path::FEED, &["GET", "HEAD"]),
    endpoint(path::NODES, &["GET", "HEAD"]),
    endpoint(path::NODE, &["DELETE"]),
    endpoint(path::NETWORK, &["GET", "HEAD"]),
    Endpoint { on_proxy: false, ..endpoint(path::SYNC, &["POST"]) },
    // A process supervisor has no key.
    Endpoint { needs_key: false, ..endpoint(path::LIVEZ, &["GET", "HEAD"]) },
    Endpoint { needs_key: false, ..endpoint(path::READYZ, &["GET", "HEAD"]) },
];

/// Whether a request for this path needs a key, where the network has one. True for unknown paths, so that a client
/// without a key does not learn which paths exist.
pub fn needs_key(path: &str) -> bool {
    !ENDPOINTS.iter().any(|endpoint| endpoint.path == path && !endpoint.needs_key)
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
