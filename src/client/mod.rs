//! Asks servers: the only file that knows reqwest.
//!
//! [`Client`] carries one request to one server, and tells apart what a caller has to tell apart: nobody was
//! there, the connection was lost, it took too long, it was refused, it made no sense. It never follows
//! redirects, obeys no proxy variables of the environment, and never repeats by itself; who may ask whom
//! next is decided by `servers` (commands) and by the proxy.

#[cfg(test)]
mod fake;
pub mod lines;
pub mod servers;

pub use reqwest::header::HeaderValue;

use std::{fmt, io, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, TryStreamExt};
use reqwest::{
    Method, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE},
    redirect,
};
use tokio::time::timeout;

use crate::api::{
    address::{self, Addr},
    error::{ErrorCode, Problem},
    key::{self, Keys},
    media,
    network::Readiness,
    path,
};

/// A server on the same site accepts within milliseconds; one that does not is asked again later. Below a second, so that
/// a client hears within one that none of several silent servers is there.
const CONNECT_MAX: Duration = Duration::from_millis(800);
/// Less than the 5 s after which a server closes an idle connection, so that it does not close one in use.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Idle connections kept per server; further ones are closed when their request is done.
const IDLE_COUNT_MAX: usize = 256;
/// A body that brings nothing for so long is given up. Feeds bring something every 15 s.
const READ_MAX: Duration = Duration::from_secs(30);
/// The HTTP library can send no longer URL. One that needs escapes is written with them here, three bytes for one, so it
/// can become too long although it was not when it came.
const URL_BYTES_MAX: usize = 65_534;
/// A refusal is a few lines; of more than this nothing is made.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;
/// An exchange's answer has at most 8 MiB of entries; the rest is for what frames them.
const SYNC_BYTES_MAX: usize = 8 * 1024 * 1024 + 64 * 1024;

/// Connections to servers. Cheap to clone; all clones share one pool.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    /// What opens the servers, if they are locked.
    authorization: Option<HeaderValue>,
}

/// What to ask. The same request may be sent to several servers: its body is shared, not copied.
#[derive(Debug, Clone)]
pub struct Request {
    /// GET or POST.
    pub method: Method,
    /// As it stands in the request line.
    pub path_and_query: String,
    /// Without those that belong to a connection.
    pub headers: HeaderMap,
    /// Empty for a GET.
    pub body: Bytes,
}

impl Request {
    /// Asks for something.
    pub fn get(path_and_query: impl Into<String>) -> Self {
        let (method, headers, body) = (Method::GET, HeaderMap::new(), Bytes::new());
        Self { method, path_and_query: path_and_query.into(), headers, body }
    }

    /// Has something taken away.
    pub fn delete(path_and_query: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path_and_query) }
    }

    /// Brings something of this media type.
    pub fn post(path_and_query: impl Into<String>, media: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media))]);
        Self { method: Method::POST, path_and_query: path_and_query.into(), headers, body: body.into() }
    }
}

/// Why there is no answer that could be used.
#[derive(Debug, Clone)]
pub enum ClientError {
    /// No connection: surely without effect.
    Unreachable {
        /// Who was asked.
        addr: Addr,
        /// What the system says.
        why: String,
    },
    /// The connection broke before the answer was complete: the request may have had its effect.
    Lost {
        /// Who was asked.
        addr: Addr,
        /// What the system says.
        why: String,
    },
    /// No answer in time: the request may have had its effect.
    Timeout {
        /// Who was asked.
        addr: Addr,
        /// How long was waited.
        after: Duration,
    },
    /// The server refused; or would, for it cannot even be asked this.
    Problem {
        /// Who was asked.
        addr: Addr,
        /// What it says.
        problem: Box<Problem>,
    },
    /// An answer, but not one of a ChatChain server.
    Malformed {
        /// Who was asked.
        addr: Addr,
        /// What is wrong with it.
        why: String,
    },
    /// None of several servers answered.
    NoAnswer {
        /// What happened at each.
        tried: Vec<ClientError>,
    },
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
    /// Whether the server does not take the key that was shown, or wants one and was shown none.
    pub fn is_unauthorized(&self) -> bool {
        self.problem().is_some_and(|problem| problem.code == ErrorCode::Unauthorized)
    }

    /// Whether another server, or the same later, may do better.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Problem { problem, .. } => problem.retryable,
            Self::Unreachable { .. }
            | Self::Lost { .. }
            | Self::Timeout { .. }
            | Self::Malformed { .. }
            | Self::NoAnswer { .. } => true,
        }
    }

    /// What the server said, if it refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem { problem, .. } => Some(problem),
            _ => None,
        }
    }

    /// Who was asked, if it was one.
    pub fn addr(&self) -> Option<&Addr> {
        match self {
            Self::Unreachable { addr, .. }
            | Self::Lost { addr, .. }
            | Self::Timeout { addr, .. }
            | Self::Problem { addr, .. }
            | Self::Malformed { addr, .. } => Some(addr),
            Self::NoAnswer { .. } => None,
        }
    }

    /// What went wrong, without saying where.
    pub fn why(&self) -> String {
        match self {
            Self::Unreachable { why, .. } => why.clone(),
            Self::Lost { why, .. } => format!("the connection was lost: {why}"),
            Self::Timeout { after, .. } => format!("no answer within {} s", after.as_secs_f32()),
            Self::Problem { problem, .. } => problem.to_string(),
            Self::Malformed { why, .. } => format!("the answer makes no sense: {why}"),
            Self::NoAnswer { tried } => {
                let said = tried.iter().filter_map(|error| Some((error.addr()?, error.why())));
                format!("no server answered: {}", address::grouped_errors(said))
            }
        }
    }

    /// Sorts what reqwest reports; `phase` is what was being done.
    fn of(addr: &Addr, e: &reqwest::Error) -> Self {
        let (addr, why) = (addr.clone(), root_cause(e));
        if e.is_connect() && e.is_timeout() {
            let why = format!("no connection within {} s", CONNECT_MAX.as_secs_f32());
            Self::Unreachable { addr, why }
        } else if e.is_connect() || e.is_builder() {
            Self::Unreachable { addr, why }
        } else if e.is_timeout() {
            Self::Timeout { addr, after: READ_MAX }
        } else {
            Self::Lost { addr, why }
        }
    }
}

/// The innermost error: reqwest's own words only say that something failed.
fn root_cause(e: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = e;
    loop {
        if let Some(io) = cause.downcast_ref::<io::Error>()
            && io.raw_os_error().is_some()
        {
            return io.kind().to_string(); // "connection refused", without the number
        }
        match cause.source() {
            Some(deeper) => cause = deeper,
            None => return cause.to_string(),
        }
    }
}

impl Client {
    /// Shows the first of the keys to whomever it asks. No connection is made before the first request.
    pub fn new(keys: Option<&Keys>) -> Self {
        let http = reqwest::Client::builder()
            .user_agent(concat!("chatchain/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_MAX)
            .read_timeout(READ_MAX)
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IDLE_COUNT_MAX)
            .build()
            .expect("without TLS and proxies there is nothing that could fail");
        let authorization = keys.map(|keys| {
            let mut value = HeaderValue::try_from(keys.authorization()).expect("a key is of printable ASCII");
            value.set_sensitive(true); // so that nobody who prints headers prints it
            value
        });
        Self { http, authorization }
    }

    /// Carries a request to a server and waits for the head of the answer, whatever its status. Dropping the
    /// future gives the request up.
    pub async fn forward(
        &self,
        addr: &Addr,
        request: &Request,
        within: Duration,
    ) -> Result<Answer, ClientError> {
        let Request { method, path_and_query, mut headers, body } = request.clone();
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let asked = self.http.request(method, url(addr, &path_and_query)?).headers(headers);
        let asked = if body.is_empty() { asked } else { asked.body(body) };
        let (addr, after) = (addr.clone(), within);
        match timeout(within, asked.send()).await {
            Ok(Ok(response)) => Ok(Answer { addr, response }),
            Ok(Err(e)) => Err(ClientError::of(&addr, &e)),
            Err(_) => Err(ClientError::Timeout { addr, after }),
        }
    }

    /// One exchange with another node.
    pub async fn sync(&self, addr: &Addr, body: Bytes, within: Duration) -> Result<Bytes, ClientError> {
        let request = Request::post(path::SYNC, media::BINARY, body);
        let exchange = async {
            self.forward(addr, &request, within).await?.accepted().await?.bytes(SYNC_BYTES_MAX).await
        };
        let late = |_| Err(ClientError::Timeout { addr: addr.clone(), after: within });
        timeout(within, exchange).await.unwrap_or_else(late)
    }

    /// What one server can do just now; an answer also when that is nothing. Everybody may ask that; that the server
    /// would not let this client do anything else is an error all the same.
    pub async fn readyz(&self, addr: &Addr, within: Duration) -> Result<Readiness, ClientError> {
        let answer = self.forward(addr, &Request::get(path::READYZ), within).await?;
        if answer.headers().contains_key(WWW_AUTHENTICATE) {
            let problem = Box::new(Problem::new(ErrorCode::Unauthorized, key::REFUSAL));
            return Err(ClientError::Problem { addr: addr.clone(), problem });
        }
        answer.json(PROBLEM_BYTES_MAX).await
    }
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

/// An answer whose head has come.
#[derive(Debug)]
pub struct Answer {
    addr: Addr,
    response: reqwest::Response,
}

impl Answer {
    /// Who answered.
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The headers, those of the connection included.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The answer if it is a success, else what the server says against it.
    pub async fn accepted(self) -> Result<Self, ClientError> {
        if self.status().is_success() { Ok(self) } else { Err(self.refusal().await) }
    }

    /// Reads an answer that is not a success.
    pub async fn refusal(self) -> ClientError {
        let (addr, status) = (self.addr.clone(), self.status());
        let retry_after = self.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = match self.bytes(PROBLEM_BYTES_MAX).await {
            Ok(body) => body,
            Err(e) => return e,
        };
        match serde_json::from_slice::<Problem>(&body) {
            Ok(mut problem) => {
                problem.retry_after_seconds = retry_after;
                ClientError::Problem { addr, problem: Box::new(problem) }
            }
            Err(_) => ClientError::Malformed { addr, why: format!("{status}, without a reason") },
        }
    }

    /// The whole body, if it is not longer than `max`.
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

    /// The whole body, not longer than `max`, as JSON.
    pub async fn json<T: serde::de::DeserializeOwned>(self, max: usize) -> Result<T, ClientError> {
        let addr = self.addr.clone();
        let body = self.bytes(max).await?;
        serde_json::from_slice(&body).map_err(|e| ClientError::Malformed { addr, why: e.to_string() })
    }

    /// The body as it comes. A body that is cut ends with an error, never silently.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, ClientError>> + Send + 'static + use<> {
        let addr = self.addr;
        self.response.bytes_stream().map_err(move |e| ClientError::of(&addr, &e))
    }
}
