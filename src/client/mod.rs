//! Owns the HTTP client: sends one request to one server. The only file that knows reqwest.
//!
//! Tells apart what a caller must tell apart: no connection, a lost connection, a timeout, a refusal, an invalid
//! answer. Must not know the store or the nodes. `servers` (for commands) and the proxy decide which server is asked
//! next.
//!
//! Invariants: a request is never repeated here; redirects are not followed; proxy variables of the environment are
//! ignored.

#[cfg(test)]
mod fake;
pub mod lines;
pub mod servers;

pub use reqwest::header::HeaderValue;

use std::{fmt, io, os::fd::AsFd as _, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, TryFutureExt, TryStreamExt, stream};
use reqwest::{
    Method, StatusCode, Url,
    header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE},
    redirect,
};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use tokio::time::timeout;

use crate::api::{
    address::{self, Addr},
    error::{ErrorCode, Problem},
    key::{self, Keys},
    media,
    network::Readiness,
    path,
};

/// Without a connection after this time the server counts as unreachable. A server on the same site accepts within
/// milliseconds. Below a second, so that clients of several silent servers get their answer within a second.
const CONNECT_MAX: Duration = Duration::from_millis(800);
/// An idle connection is closed after this time. Less than the 75 s of the servers, so that a server does not close a
/// connection at the moment it is used.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Idle connections kept per server. Further ones are closed after their request.
const IDLE_COUNT_MAX: usize = 256;
/// The same as a part of the file descriptors of this process, where they are few.
const IDLE_FRACTION: usize = 32;
/// The lookup of a name opens at most this many files and sockets at the same time. Fewer free ones may explain that it
/// failed.
const LOOKUP_DESCRIPTORS: usize = 4;
/// A body without data for this long is a timeout. Feeds send something every 15 s.
const READ_MAX: Duration = Duration::from_secs(30);
/// A longer URL is refused, because the HTTP library cannot send it. Escaping makes three bytes of one, so a URL can
/// become too long here.
const URL_BYTES_MAX: usize = 65_534;
/// A longer refusal is an invalid answer.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;
/// The same as [`CONNECT_MAX`] for exchanges: round trips of several seconds are normal on some links.
const PATIENT_CONNECT_MAX: Duration = Duration::from_secs(10);
/// A longer answer to an exchange is invalid. It has at most 8 MiB of entries, and their framing.
const SYNC_BYTES_MAX: usize = 8 * 1024 * 1024 + 64 * 1024;
/// A body of an exchange without a byte for this long is a timeout.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The HTTP client. Cheap to clone; all clones share one connection pool.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    /// For exchanges: links between sites may be slow.
    patient: reqwest::Client,
    /// The header with the key, if the network has keys.
    authorization: Option<HeaderValue>,
}

/// A request, which may be sent to several servers. Clones share the body.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub path_and_query: String,
    /// End-to-end headers only.
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Request {
    pub fn get(path_and_query: impl Into<String>) -> Self {
        let (method, headers, body) = (Method::GET, HeaderMap::new(), Bytes::new());
        Self { method, path_and_query: path_and_query.into(), headers, body }
    }

    pub fn delete(path_and_query: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path_and_query) }
    }

    /// Whether it may store a message.
    fn is_send(&self) -> bool {
        self.method == Method::POST
    }

    pub fn post(path_and_query: impl Into<String>, media: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media))]);
        Self { method: Method::POST, path_and_query: path_and_query.into(), headers, body: body.into() }
    }
}

/// Why there is no usable answer.
#[derive(Debug, Clone)]
pub enum ClientError {
    /// This process has no free file descriptor for a connection: that says nothing about the server.
    NoDescriptor { addr: Addr },
    /// No connection: the request surely had no effect.
    Unreachable { addr: Addr, why: String },
    /// The connection broke before the answer was complete: the request may have had its effect.
    Lost { addr: Addr, why: String },
    /// No answer in time: the request may have had its effect.
    Timeout { addr: Addr, after: Duration },
    /// The server refused, or the request cannot be sent to any server.
    Problem { addr: Addr, problem: Box<Problem> },
    /// The answer is not one of a ChatChain server.
    Malformed { addr: Addr, why: String },
    /// None of several servers answered.
    NoAnswer { tried: Vec<ClientError> },
}

impl std::error::Error for ClientError {}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr() {
            Some(addr) => write!(f, "{addr}: {}", self.why()),
            None => f.write_str(&self.why()),
        }
    }
}

impl ClientError {
    /// Whether the server refuses the client's key, or needs one and got none.
    pub fn is_unauthorized(&self) -> bool {
        self.problem().is_some_and(|problem| problem.code == ErrorCode::Unauthorized)
    }

    /// Whether another server, or the same one later, may answer.
    pub fn retryable(&self) -> bool {
        self.problem().is_none_or(|problem| problem.retryable)
    }

    /// Whether a node refused because it opens its store.
    pub fn is_starting(&self) -> bool {
        self.problem().is_some_and(|problem| problem.code == ErrorCode::Starting)
    }

    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem { problem, .. } => Some(problem),
            _ => None,
        }
    }

    /// The server, unless several were asked.
    pub fn addr(&self) -> Option<&Addr> {
        match self {
            Self::NoDescriptor { addr }
            | Self::Unreachable { addr, .. }
            | Self::Lost { addr, .. }
            | Self::Timeout { addr, .. }
            | Self::Problem { addr, .. }
            | Self::Malformed { addr, .. } => Some(addr),
            Self::NoAnswer { .. } => None,
        }
    }

    pub fn why(&self) -> String {
        match self {
            Self::NoDescriptor { .. } => "this process has no free file descriptor (see ulimit -n)".into(),
            Self::Unreachable { why, .. } => why.clone(),
            Self::Lost { why, .. } => format!("the connection was lost: {why}"),
            Self::Timeout { after, .. } => format!("no answer within {} s", after.as_secs_f32()),
            Self::Problem { problem, .. } => problem.to_string(),
            Self::Malformed { why, .. } => format!("the answer is not one of a ChatChain server: {why}"),
            Self::NoAnswer { tried } => {
                let errors = tried.iter().filter_map(|error| Some((error.addr()?, error.why())));
                format!("no server answered: {}", address::grouped_errors(errors))
            }
        }
    }

    fn from_reqwest(addr: &Addr, e: &reqwest::Error) -> Self {
        let (addr, mut why) = (addr.clone(), root_cause(e));
        if is_descriptor_missing(e) || (is_failed_lookup(e) && lacks_lookup_descriptors()) {
            Self::NoDescriptor { addr }
        } else if e.is_connect() || e.is_builder() {
            if e.is_timeout() {
                why = format!("no connection within {} s", CONNECT_MAX.as_secs_f32());
            }
            Self::Unreachable { addr, why }
        } else if e.is_timeout() {
            Self::Timeout { addr, after: READ_MAX }
        } else {
            Self::Lost { addr, why }
        }
    }
}

/// The numbers of the system's errors among the causes of an error.
fn os_errors(e: &(dyn std::error::Error + 'static)) -> impl Iterator<Item = i32> {
    let causes = std::iter::successors(Some(e), |cause| cause.source());
    causes.filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
}

/// Whether the error is that the process, or the machine, has no free file descriptor.
fn is_descriptor_missing(e: &(dyn std::error::Error + 'static)) -> bool {
    let missing = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    os_errors(e).any(|code| missing.contains(&code))
}

/// Whether no connection was tried, because the name of the server was not found.
fn is_failed_lookup(e: &reqwest::Error) -> bool {
    e.is_connect() && !e.is_timeout() && os_errors(e).next().is_none()
}

/// Whether this process has fewer free file descriptors than the lookup of a name needs. Without them the C library says
/// that there is no such name, as of any other one.
fn lacks_lookup_descriptors() -> bool {
    let input = io::stdin(); // any open file
    let copies = (0..LOOKUP_DESCRIPTORS).map_while(|_| input.as_fd().try_clone_to_owned().ok());
    copies.collect::<Vec<_>>().len() < LOOKUP_DESCRIPTORS
}

/// The innermost error: reqwest's own text only says that something failed.
fn root_cause(e: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = e;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    match cause.downcast_ref::<io::Error>().filter(|io| io.raw_os_error().is_some()) {
        Some(io) => io.kind().to_string(), // "connection refused", without the number
        None => cause.to_string(),
    }
}

impl Client {
    /// A client that sends the first key with every request. Connects with the first request.
    pub fn new(keys: Option<&Keys>) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.and_then(|count| usize::try_from(count).ok());
        let idle_max = descriptors.map_or(IDLE_COUNT_MAX, |count| IDLE_COUNT_MAX.min(count / IDLE_FRACTION));
        let builder = |connect_max| {
            reqwest::Client::builder()
                .user_agent(concat!("chatchain/", env!("CARGO_PKG_VERSION")))
                .no_proxy()
                .redirect(redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .http1_only()
                .tcp_nodelay(true)
                .connect_timeout(connect_max)
                .pool_idle_timeout(IDLE_MAX)
                .pool_max_idle_per_host(idle_max)
        };
        let build = |builder: reqwest::ClientBuilder| {
            builder.build().expect("building cannot fail without TLS and proxies")
        };
        let http = build(builder(CONNECT_MAX).read_timeout(READ_MAX));
        let patient = build(builder(PATIENT_CONNECT_MAX));
        let authorization = keys.map(|keys| {
            let mut value = HeaderValue::try_from(keys.authorization()).expect("a key is of printable ASCII");
            value.set_sensitive(true); // keeps the key out of printed headers
            value
        });
        Self { http, patient, authorization }
    }

    /// Sends a request and waits for the head of the answer, whatever its status. Dropping the future cancels the
    /// request.
    pub async fn forward(
        &self,
        addr: &Addr,
        request: &Request,
        within: Duration,
    ) -> Result<Answer, ClientError> {
        self.send(&self.http, addr, request, within).await
    }

    async fn send(
        &self,
        http: &reqwest::Client,
        addr: &Addr,
        request: &Request,
        within: Duration,
    ) -> Result<Answer, ClientError> {
        let Request { method, path_and_query, mut headers, body } = request.clone();
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let asked = http.request(method, url(addr, &path_and_query)?).headers(headers);
        let asked = if body.is_empty() { asked } else { asked.body(body) };
        let response = asked.send().map_err(|e| ClientError::from_reqwest(addr, &e));
        Ok(Answer { addr: addr.clone(), response: limit(addr, within, response).await? })
    }

    /// Sends one exchange request to a node, and returns the answer as it arrives. Its head must come `within` this
    /// time; then only this long a `silence` ends it. `is_last`: the connection ends with the answer.
    pub async fn sync(
        &self,
        addr: &Addr,
        body: Bytes,
        within: Duration,
        silence: Duration,
        is_last: bool,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        let mut request = Request::post(path::SYNC, media::BINARY, body);
        if is_last {
            request.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let answer = self.send(&self.patient, addr, &request, within).await?;
        let answer = limit(addr, silence, answer.accepted()).await?;
        let (addr, body) = (addr.clone(), Box::pin(answer.into_stream()));
        Ok(stream::unfold((body, 0), move |(mut body, before)| {
            let addr = addr.clone();
            async move {
                let next = limit(&addr, silence, async { Ok(body.next().await) }).await;
                let part = next.transpose()?.flatten();
                let bytes = before + part.as_ref().map_or(0, Bytes::len);
                let why = format!("it is longer than {SYNC_BYTES_MAX} bytes");
                let is_too_long = bytes > SYNC_BYTES_MAX;
                let part = if is_too_long { Err(ClientError::Malformed { addr, why }) } else { part };
                Some((part, (body, bytes)))
            }
        }))
    }

    /// Whether one server can store and read. A server that can do neither is an answer, not an error. Needs no key;
    /// that the server would refuse this client's key elsewhere is an error.
    pub async fn readyz(&self, addr: &Addr, within: Duration) -> Result<Readiness, ClientError> {
        let answer = self.forward(addr, &Request::get(path::READYZ), within).await?;
        if answer.headers().contains_key(WWW_AUTHENTICATE) {
            let problem = Box::new(Problem::new(ErrorCode::Unauthorized, key::REFUSAL));
            return Err(ClientError::Problem { addr: addr.clone(), problem });
        }
        answer.json(PROBLEM_BYTES_MAX).await
    }
}

/// Waits for a call to this server, but not longer than `within`.
async fn limit<T>(
    addr: &Addr,
    within: Duration,
    call: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let late = |_| Err(ClientError::Timeout { addr: addr.clone(), after: within });
    timeout(within, call).await.unwrap_or_else(late)
}

fn url(addr: &Addr, path_and_query: &str) -> Result<Url, ClientError> {
    let url = Url::parse(&format!("http://{addr}{path_and_query}"))
        .map_err(|e| ClientError::Unreachable { addr: addr.clone(), why: e.to_string() })?;
    if url.as_str().len() > URL_BYTES_MAX {
        let detail =
            format!("the URL is longer than {URL_BYTES_MAX} bytes once its special characters are escaped");
        let problem = Box::new(Problem::new(ErrorCode::InvalidQuery, detail));
        return Err(ClientError::Problem { addr: addr.clone(), problem });
    }
    Ok(url)
}

/// An answer whose head has arrived.
#[derive(Debug)]
pub struct Answer {
    addr: Addr,
    response: reqwest::Response,
}

impl Answer {
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// All headers, also those of the connection.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The answer if it is a success, else the refusal as an error.
    pub async fn accepted(self) -> Result<Self, ClientError> {
        let (addr, status) = (self.addr.clone(), self.status());
        if status.is_success() {
            return Ok(self);
        }
        let retry_after = self.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let Ok(mut problem) = serde_json::from_slice::<Problem>(&self.bytes(PROBLEM_BYTES_MAX).await?) else {
            return Err(ClientError::Malformed { addr, why: format!("{status}, without a reason") });
        };
        problem.retry_after_seconds = retry_after;
        Err(ClientError::Problem { addr, problem: Box::new(problem) })
    }

    /// The whole body. A body longer than `max` is an error.
    pub async fn bytes(self, max: usize) -> Result<Bytes, ClientError> {
        let addr = self.addr.clone();
        let mut body = self.into_stream();
        let mut whole = BytesMut::new();
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            if whole.len() + chunk.len() > max {
                return Err(ClientError::Malformed { addr, why: format!("it is longer than {max} bytes") });
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// The whole body as JSON. A body longer than `max` is an error.
    pub async fn json<T: serde::de::DeserializeOwned>(self, max: usize) -> Result<T, ClientError> {
        let addr = self.addr.clone();
        let body = self.bytes(max).await?;
        serde_json::from_slice(&body).map_err(|e| ClientError::Malformed { addr, why: e.to_string() })
    }

    /// The body as it arrives. A truncated body ends with an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, ClientError>> + Send + 'static + use<> {
        let addr = self.addr;
        self.response.bytes_stream().map_err(move |e| ClientError::from_reqwest(&addr, &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Rlimit, setrlimit};

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect")]
    struct ConnectError(#[source] io::Error);

    #[test]
    fn only_missing_descriptors_are_the_fault_of_this_process() {
        let is_own = |errno: Errno| {
            let cause = io::Error::from_raw_os_error(errno.raw_os_error());
            is_descriptor_missing(&ConnectError(io::Error::other(ConnectError(cause))))
        };
        assert!(is_own(Errno::MFILE) && is_own(Errno::NFILE));
        assert!(!is_own(Errno::CONNREFUSED) && !is_own(Errno::NETUNREACH));
    }

    /// In a process of its own, whose limit of descriptors is lowered.
    #[test]
    fn a_name_that_cannot_be_looked_up_without_descriptors_is_the_fault_of_this_process() {
        const IS_CHILD: &str = "LOOKUP_WITHOUT_DESCRIPTORS";
        if std::env::var_os(IS_CHILD).is_none() {
            let name = std::thread::current().name().expect("that of the test").to_owned();
            let mut child = std::process::Command::new(std::env::current_exe().expect("this program"));
            let done = child.args(["--exact", &name]).env(IS_CHILD, "").output().expect("ends");
            let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
            assert!(done.status.success() && out.contains("1 passed"), "{out}{err}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("starts");
        let (client, before) = (Client::new(None), getrlimit(Resource::Nofile));
        let ask = |addr: &str| {
            let (addr, request) = (addr.parse().expect("an address"), Request::get(path::LIVEZ));
            runtime.block_on(client.forward(&addr, &request, READ_MAX)).expect_err("nothing listens there")
        };
        setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).expect("may be lowered");
        let lacking = ask("localhost:1");
        setrlimit(Resource::Nofile, before).expect("may be raised again");
        assert!(matches!(lacking, ClientError::NoDescriptor { .. }), "{lacking:?}");
        let unknown = ask("no-such-name.invalid:1");
        assert!(matches!(unknown, ClientError::Unreachable { .. }), "{unknown:?}");
    }
}
