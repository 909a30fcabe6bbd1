//! Owns how listings and feeds read the store: on blocking threads, a few at a time. A listing that meets damage is
//! retried while a peer may repair it.
//!
//! Called by `history` and `feed`. A read that cannot be completed fails; what a listing leaves out, `history` says in
//! its answer. Short lookups of
//! other files do not wait for these permits. What is read is not known here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::error::{ErrorCode, Problem};
use crate::node::Limits;
use crate::store::{Store, StoreError};

/// How long a read waits for the repair of an entry after the entry was found damaged. Then a listing leaves it out.
pub const REPAIR_TIME: Duration = Duration::from_secs(2);
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum ReadFailure {
    #[error(transparent)]
    Problem(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ReadFailure> for Problem {
    fn from(failure: ReadFailure) -> Self {
        match failure {
            ReadFailure::Problem(problem) => problem,
            ReadFailure::Store(error) => error.into(),
        }
    }
}

/// Repeats a read that meets damage, because a peer may send the entry within [`REPAIR_TIME`], and a read whose log was
/// cut after its vector was taken: a new read finds the entries that moved at their new keys. The argument of `read`
/// says that it is the last attempt.
pub async fn retry_while_repairing<T, Read: Future<Output = Result<T, ReadFailure>>>(
    store: &Store,
    read: impl Fn(bool) -> Read,
) -> Result<T, Problem> {
    let began = Instant::now();
    loop {
        let is_last = began.elapsed() >= REPAIR_TIME;
        let failure = match read(is_last).await {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        let may_succeed = match &failure {
            ReadFailure::Problem(_) => false,
            ReadFailure::Store(StoreError::CutOff { .. }) => true,
            ReadFailure::Store(_) => store.log().damage().count() > 0,
        };
        if !may_succeed || is_last {
            return Err(failure.into());
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

impl Limits {
    /// Runs a short read on a blocking thread, once fewer than the bound run.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ReadFailure> + Send + 'static,
    ) -> Result<T, ReadFailure> {
        run(&self.readers, work).await
    }

    /// The same for a chunk of a long read, which takes turns with other long reads and does not delay short ones.
    pub async fn scan<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ReadFailure> + Send + 'static,
    ) -> Result<T, ReadFailure> {
        run(&self.scans, work).await
    }

    /// A permit to keep an open iterator between chunks. `None` at the bound: the reader then seeks for each chunk.
    pub fn iterator(&self) -> Option<OwnedSemaphorePermit> {
        self.iterators.clone().try_acquire_owned().ok()
    }
}

async fn run<T: Send + 'static>(
    bound: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, ReadFailure> + Send + 'static,
) -> Result<T, ReadFailure> {
    let permit = bound.clone().acquire_owned().await;
    let reading = move || {
        let _permit = permit; // kept to the end of the read even if its request was dropped
        work()
    };
    tokio::task::spawn_blocking(reading).await.unwrap_or_else(|error| {
        tracing::error!(%error, "reading panicked");
        Err(Problem::new(ErrorCode::Internal, "a mistake in this server, which its log describes").into())
    })
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::CutOff { .. } => tracing::warn!(%error, "a read is aborted"),
            StoreError::Damaged { .. } => {
                let detail = format!("this node has no intact copy now ({error}); another node may have one");
                return Problem::new(ErrorCode::Damaged, detail);
            }
            _ => tracing::error!(%error, "reading failed"),
        }
        Problem::new(ErrorCode::StorageFailed, format!("this node cannot read its store: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ids::Origin;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_read_under_which_a_log_was_cut_is_retried_for_a_limited_time() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (store, _) = Store::open(dir.path(), "test", 0).expect("opens");
        let times = &AtomicU32::new(0);
        let read = |fails: u32| {
            move |_| async move {
                let cut_off = StoreError::CutOff { origin: Origin([1; 16]), seq: 7 };
                if times.fetch_add(1, Ordering::Relaxed) < fails { Err(cut_off.into()) } else { Ok("all") }
            }
        };
        assert_eq!(retry_while_repairing(&store, read(1)).await.expect("succeeds when retried"), "all");
        let problem = retry_while_repairing(&store, read(u32::MAX)).await.expect_err("fails each time");
        assert_eq!(problem.code, ErrorCode::StorageFailed);
        assert!(problem.to_string().contains("was cut meanwhile"), "{problem}");
    }
}
