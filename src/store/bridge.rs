//! The one bridge from synchronous callers to asynchronous backends.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Runtime;

use super::error::BackendError;
use super::retry;
use super::verb::{RequestCounts, Verb};
use crate::error::ErrorKind;

/// The runtime that carries requests, and what is counted of them.
pub(super) struct Bridge {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    seed: u64,
    seeds: AtomicU64,
    verbs: AtomicU64,
    requests: [AtomicU64; Verb::ALL.len()],
}

/// Threads that may block in a file system at once. A hung mount holds one for each abandoned attempt.
const BLOCKING_THREADS: usize = 64;

impl Bridge {
    /// Starts no thread yet; `seed` is drawn from the operating system if it is `None`.
    pub(super) fn new(seed: Option<u64>) -> Result<Self, BackendError> {
        let internal = |error: std::io::Error| BackendError::new(ErrorKind::Internal, error);
        let mut drawn = [0; 8];
        if seed.is_none() {
            getrandom::fill(&mut drawn).map_err(|error| internal(std::io::Error::other(error)))?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .build()
            .map_err(internal)?;
        let seed = seed.unwrap_or_else(|| u64::from_le_bytes(drawn));
        Ok(Self {
            runtime: Some(runtime),
            seed,
            seeds: AtomicU64::new(0),
            verbs: AtomicU64::new(0),
            requests: Default::default(),
        })
    }

    /// Carries `future` out on the calling thread.
    pub(super) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.as_ref().expect("the runtime goes last").block_on(future)
    }

    /// Counts a verb; every attempt but its first was made again.
    pub(super) fn begin(&self) {
        self.verbs.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one attempt.
    pub(super) fn count(&self, verb: Verb) {
        self.requests[verb as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the attempts counted.
    pub(super) fn requests(&self) -> RequestCounts {
        RequestCounts(std::array::from_fn(|verb| self.requests[verb].load(Ordering::Relaxed)))
    }

    /// Returns the attempts that were made again.
    pub(super) fn retries(&self) -> u64 {
        let requests = self.requests();
        (requests.total() - requests.of(Verb::Open)).saturating_sub(self.verbs.load(Ordering::Relaxed))
    }

    /// Returns the seed of the next verb's pauses.
    pub(super) fn next_seed(&self) -> u64 {
        retry::mix(self.seed ^ self.seeds.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A thread may be stuck in a hung mount for ever; the default would wait for it.
            runtime.shutdown_background();
        }
    }
}
