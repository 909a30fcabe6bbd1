//! Owns the answer to an exchange while it arrives: its bytes become runs, one after the other.
//!
//! Called by `sync`, which has each run stored before the next one is there. What a message means is not known here.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use crate::api::address::Addr;
use crate::chain::sync::wire::{Run, SyncDecoder, SyncMessage};
use crate::client::{ClientError, SILENCE_MAX};
use crate::node::{Limits, Node};

/// The answer to an exchange, as it arrives.
pub struct ArrivingAnswer {
    addr: String,
    body: Pin<Box<dyn Stream<Item = Result<Bytes, ClientError>> + Send>>,
    decoder: SyncDecoder,
    limits: Limits,
}

impl ArrivingAnswer {
    pub fn new(
        node: &Node,
        addr: &Addr,
        body: impl Stream<Item = Result<Bytes, ClientError>> + Send + 'static,
    ) -> Self {
        let (limits, decoder) = (node.limits.clone(), SyncDecoder::default());
        ArrivingAnswer { addr: addr.to_string(), body: Box::pin(body), decoder, limits }
    }

    /// Who answers.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// The next run, once it has arrived; `None` at the end.
    pub async fn next_run(&mut self) -> Result<Option<Run>, String> {
        loop {
            if let Some(run) = self.decoded_run().await? {
                return Ok(Some(run));
            }
            match self.body.next().await {
                Some(bytes) => self.decoder.push(&bytes.map_err(|error| error.why())?),
                None => return Ok(None),
            }
        }
    }

    /// The next run of those that have arrived.
    pub async fn decoded_run(&mut self) -> Result<Option<Run>, String> {
        let (length, mut decoder) = (self.decoder.buffered(), std::mem::take(&mut self.decoder));
        let decoding = move || (decoder.next_run(), decoder);
        let (run, decoder) = self.limits.compute(length, decoding).await.map_err(|problem| problem.detail)?;
        self.decoder = decoder;
        run.map_err(|error| error.to_string())
    }

    /// Everything but the runs, after the first run or at the end.
    pub fn head(&self) -> Result<SyncMessage, String> {
        self.decoder.head().map_err(|error| error.to_string())
    }
}

/// After this long without a byte a link counts as broken. One lost segment costs a round trip or two.
pub(super) fn silence_max(round_trip: Duration) -> Duration {
    SILENCE_MAX + 4 * round_trip
}
