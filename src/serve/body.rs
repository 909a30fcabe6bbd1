//! Owns request bodies: the limit of one body, the memory limit of all bodies, and the kinds of bodies. Answers of
//! exchanges, which are as large, have such a limit too.
//!
//! Must not know messages beyond their size.
//!
//! Invariants: a handler gets a whole body or none; the bytes of a body count against the [`Budget`] until the last
//! clone is dropped, also while the proxy forwards them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use uuid::Uuid;

use crate::api::error::{ErrorCode, Problem};
use crate::api::explain_invalid::quote;
use crate::api::header::IDEMPOTENCY_KEY;
use crate::api::message::parse_key;
use crate::api::{BATCH_BODY_BYTES_MAX, MESSAGE_BODY_BYTES_MAX, media};

/// Memory for all bodies of one server. Beyond it a request is refused as `overloaded`.
pub const BODIES_BYTES_MAX: u32 = 256 * 1024 * 1024;
/// At most this much of a refused body is read and discarded before the answer: a client that is still sending when the
/// connection closes gets a reset, and does not see the answer. A longer body gets that reset.
const DISCARDED_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// The same as a time.
const DISCARDING_MAX: Duration = Duration::from_secs(5);

/// The memory that is left for bodies. Cheap to clone; all clones share one amount.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Semaphore>);

impl Budget {
    /// A budget of this many bytes, usually [`BODIES_BYTES_MAX`].
    pub fn new(bytes: u32) -> Self {
        Self(Arc::new(Semaphore::new(bytes as usize)))
    }

    /// A share of this many bytes. `None`: too many are held.
    pub fn share(&self, bytes: usize) -> Option<Share> {
        self.take(bytes).ok().map(Share)
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let count = u32::try_from(bytes).ok();
        count.and_then(|count| self.0.clone().try_acquire_many_owned(count).ok()).ok_or_else(|| {
            Problem::new(ErrorCode::Overloaded, "too many bytes of requests are held at the moment")
        })
    }
}

/// A share of the budget. It is free again when it is dropped.
#[derive(Debug)]
pub struct Share(OwnedSemaphorePermit);

impl Share {
    /// Gives bytes this share until their last clone is dropped.
    pub fn hold(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(BudgetedBytes { bytes: bytes.into(), _share: self.0 })
    }
}

/// A body with its share of the budget.
struct BudgetedBytes {
    bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for BudgetedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a whole body. Its share of the budget is released when the last clone of the bytes is dropped.
pub async fn read_body(mut body: Body, limit: usize, budget: &Budget) -> Result<Bytes, Problem> {
    if body.size_hint().lower() > limit as u64 {
        return Err(too_long(limit));
    }
    let mut share = budget.take(0)?;
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|e| Problem::new(ErrorCode::InvalidJson, format!("the body ended early: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + whole.len() + data.len() > limit {
            return Err(too_long(limit));
        }
        share.merge(budget.take(data.len())?);
        if first.is_empty() && whole.is_empty() {
            first = data; // most bodies arrive in one piece, which is not copied
        } else {
            whole.extend_from_slice(&std::mem::take(&mut first));
            whole.extend_from_slice(&data);
        }
    }
    let bytes = if whole.is_empty() { first } else { whole.freeze() };
    Ok(Bytes::from_owner(BudgetedBytes { bytes, _share: share }))
}

fn too_long(limit: usize) -> Problem {
    Problem::new(ErrorCode::TooLarge, format!("the body is longer than {limit} bytes"))
}

/// A request body that the handler and the server share: the server discards the part that the handler does not read.
/// `None`: it was read to its end, or authentication removed it.
#[derive(Clone)]
pub struct SharedBody(Arc<Mutex<Option<Incoming>>>);

impl SharedBody {
    pub fn new(body: Option<Incoming>) -> Self {
        Self(Arc::new(Mutex::new(body)))
    }

    pub fn watch(&self) -> BodyWatch {
        BodyWatch(Arc::downgrade(&self.0))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Incoming>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // no code under the lock panics
    }

    /// Reads and discards the rest, within bounds, so that the client gets to read the answer.
    pub async fn discard_rest(mut self) {
        if self.size_hint().lower() > DISCARDED_BYTES_MAX {
            return;
        }
        let discarding = async {
            let mut count = 0;
            while count < DISCARDED_BYTES_MAX
                && let Some(Ok(frame)) = self.frame().await
            {
                count += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
        };
        let _ = timeout(DISCARDING_MAX, discarding).await; // the answer is the same either way
    }
}

/// Tells whether a body is still being read, and does not keep it: the HTTP library goes on to read the body of an
/// answered request until it is dropped.
pub struct BodyWatch(Weak<Mutex<Option<Incoming>>>);

impl BodyWatch {
    pub fn is_unfinished(&self) -> bool {
        self.0.upgrade().is_some_and(|body| !SharedBody(body).is_end_stream())
    }
}

impl hyper::body::Body for SharedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut body = self.lock();
        let Some(incoming) = &mut *body else { return Poll::Ready(None) };
        let polled = Pin::new(incoming).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            *body = None; // a chunked body does not tell by itself that it has ended
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.lock().as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().as_ref().map_or_else(|| SizeHint::with_exact(0), hyper::body::Body::size_hint)
    }
}

/// What the body of `POST /messages` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendKind {
    /// One message, `application/json`.
    One,
    /// One message per line, `application/x-ndjson`.
    Batch,
}

impl SendKind {
    /// The kind that the headers declare.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let refuse = |detail: String| Err(Problem::new(ErrorCode::UnsupportedMediaType, detail));
        if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
            && encoding != "identity"
        {
            return refuse("a Content-Encoding is not understood here; send the body as it is".into());
        }
        let known = format!("send Content-Type: {} (one message) or {} (many)", media::JSON, media::NDJSON);
        if headers.get_all(header::CONTENT_TYPE).iter().nth(1).is_some() {
            return refuse("the Content-Type is given twice".into());
        }
        match headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default()) {
            Some(value) if media::is(value, media::JSON) => Ok(Self::One),
            Some(value) if media::is(value, media::NDJSON) => Ok(Self::Batch),
            Some(value) => refuse(format!("{} is not understood here; {known}", quote(value))),
            None => refuse(format!("the Content-Type is missing; {known}")),
        }
    }

    /// The length limit of such a body.
    pub fn limit(self) -> usize {
        match self {
            Self::One => MESSAGE_BODY_BYTES_MAX,
            Self::Batch => BATCH_BODY_BYTES_MAX,
        }
    }
}

/// The value of the `Idempotency-Key` header.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<Uuid>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => {
            Err(Problem::new(ErrorCode::InvalidMessage, "the header Idempotency-Key is given twice"))
        }
        (Some(value), None) => parse_key(value.as_bytes()).map(Some),
        (None, None) => Ok(None),
    }
}
