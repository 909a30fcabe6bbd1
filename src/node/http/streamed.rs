//! Owns an answer that lists messages: its format, and how it is sent step by step.
//!
//! Called by `history` and `page`, whose steps read the store. Must not know which messages are listed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;

use crate::api::error::{ErrorCode, Problem};
use crate::api::media;
use crate::chain::record::Entry;
use crate::node::http::read::{ReadFailure, retry_while_repairing};
use crate::node::http::send::view;
use crate::node::{Limits, Node};
use crate::store::{Store, StoreError};

/// Messages in one chunk of an answer, at most.
pub const CHUNK_COUNT: usize = 1_000;
/// The same for an answer without an iterator permit.
const CHUNK_COUNT_FEW: usize = 100;

/// Messages in the next chunk of an answer with this iterator permit.
pub fn chunk_count(permit: Option<&OwnedSemaphorePermit>) -> usize {
    if permit.is_some() { CHUNK_COUNT } else { CHUNK_COUNT_FEW }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFormat {
    Array,
    Lines,
}

pub struct MessageEncoder {
    format: BodyFormat,
    out: Vec<u8>,
    began: bool,
}

impl MessageEncoder {
    pub fn new(format: BodyFormat) -> Self {
        let out = if format == BodyFormat::Array { b"[".to_vec() } else { Vec::new() };
        MessageEncoder { format, out, began: false }
    }

    pub fn push_all(&mut self, entries: &[Entry]) {
        for entry in entries {
            let Some(content) = entry.message() else { continue };
            if self.format == BodyFormat::Array && self.began {
                self.out.extend_from_slice(b",\n");
            }
            self.began = true;
            view(&content, entry.key()).write_json(&mut self.out);
            if self.format == BodyFormat::Lines {
                self.out.push(b'\n');
            }
        }
    }

    /// The bytes since the last call. `is_end`: they end the body.
    fn take(&mut self, is_end: bool) -> Bytes {
        if is_end && self.format == BodyFormat::Array {
            self.out.extend_from_slice(b"]\n");
        }
        std::mem::take(&mut self.out).into_boxed_slice().into() // shrunk: it may wait in a buffer
    }
}

/// An answer whose body is encoded step by step: each step runs on a blocking thread, once the client has taken what
/// came before. A step returns false when there is no more. A step that meets damage is retried; one that fails aborts
/// the answer, so that half a history is never taken for all of it. `is_long`: the first step takes turns with other
/// long reads, as the further ones do.
pub fn streamed(
    node: &Node,
    encoder: MessageEncoder,
    is_long: bool,
    step: impl FnMut(&mut MessageEncoder) -> Result<bool, StoreError> + Send + 'static,
) -> Response {
    let media = if encoder.format == BodyFormat::Lines { media::NDJSON } else { media::JSON };
    let (limits, store) = (node.limits.clone(), Arc::downgrade(&node.store));
    let steps = Steps { limits, store, is_long, progress: Arc::new(Mutex::new((step, encoder))) };
    let body = stream::try_unfold(Some(steps), async |steps| {
        let Some(mut steps) = steps else { return Ok(None) };
        loop {
            let (bytes, goes_on) = steps.next().await?;
            if !goes_on || !bytes.is_empty() {
                return Ok::<_, Problem>(Some((bytes, goes_on.then_some(steps))));
            }
        }
    });
    ([(header::CONTENT_TYPE, media)], Body::from_stream(body)).into_response()
}

/// The steps of a body.
struct Steps<Step> {
    limits: Limits,
    /// Not held between two steps, so that neither a slow client nor a long search keeps a store open that must close.
    store: Weak<Store>,
    is_long: bool,
    progress: Arc<Mutex<(Step, MessageEncoder)>>,
}

impl<Step: FnMut(&mut MessageEncoder) -> Result<bool, StoreError> + Send + 'static> Steps<Step> {
    /// The bytes of the next step, and whether there are more.
    async fn next(&mut self) -> Result<(Bytes, bool), Problem> {
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        let is_long = std::mem::replace(&mut self.is_long, true);
        let (limits, progress) = (&self.limits, &self.progress);
        let stepping = async |_| {
            let progress = progress.clone();
            let step = move || {
                // Only one step runs at a time. After one that panicked the answer is aborted.
                let (step, encoder) = &mut *progress.lock().unwrap_or_else(PoisonError::into_inner);
                let goes_on = step(encoder).map_err(|error| match error {
                    // No reason to retry here: part of the answer is sent already.
                    StoreError::CutOff { .. } => ReadFailure::Problem(error.into()),
                    error => error.into(),
                })?;
                Ok((encoder.take(!goes_on), goes_on))
            };
            if is_long { limits.scan(step).await } else { limits.read(step).await }
        };
        let stepped = retry_while_repairing(&store, stepping).await;
        if stepped.as_ref().is_err_and(|problem| problem.code == ErrorCode::Damaged) {
            self.limits.check_history.store(true, Ordering::Relaxed);
        }
        stepped
    }
}
