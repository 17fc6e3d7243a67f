//! Opening a store: a directory that must be there, or a bucket that is not asked yet.

use std::sync::Arc;

use object_store::ObjectStore;
use tokio::time::timeout;

use super::access::Access;
use super::bridge::Bridge;
use super::error::{BackendError, Failure, StoreError};
use super::http::Meter;
use super::retry::RetryPolicy;
use super::url::StoreUrl;
use super::verb::{Created, Verb};
use super::{Store, gcs, s3, volume};

impl Store {
    /// Opens the store at `url`. A volume's directory must exist; buckets are not contacted.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::error::ErrorKind::Unavailable) if the directory is missing (is it mounted?) or does not answer.
    pub fn open(url: &StoreUrl, access: &Access, policy: RetryPolicy) -> Result<Self, StoreError> {
        let name: Arc<str> = url.to_string().into();
        let meter = Arc::<Meter>::default();
        let failed = |error: BackendError| not_opened(&name, error.into());
        let (bridge, backend, address): (_, Arc<dyn ObjectStore>, _) = match url.clone() {
            StoreUrl::Volume(root) => {
                let (bridge, volume) = Self::reach(&name, &policy, move || volume::Volume::open(&root))?;
                (bridge, Arc::new(volume), None)
            }
            StoreUrl::S3(place) => {
                let bucket = s3::open(&place, &access.s3, &access.network, &access.environment, &meter);
                let bucket = bucket.map_err(failed)?;
                let address: Arc<str> = bucket.address().into();
                (Bridge::new(policy.seed).map_err(failed)?, Arc::new(bucket), Some(address))
            }
            StoreUrl::Gcs(place) => {
                let bucket = gcs::open(&place, &access.gcs, &access.network, &access.environment, &meter);
                let bucket = bucket.map_err(failed)?;
                let address: Arc<str> = bucket.address().into();
                (Bridge::new(policy.seed).map_err(failed)?, Arc::new(bucket), Some(address))
            }
        };
        Ok(Self { backend, bridge: Arc::new(bridge), name, policy, meter, address })
    }

    /// Makes the directory of a store durably; its parent must exist. [`Created::Existing`] if it is there already, and
    /// for a bucket, which is not made here.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::error::ErrorKind::Unavailable) if the parent is missing (is it mounted?) or does not answer.
    pub fn create_root(url: &StoreUrl, policy: &RetryPolicy) -> Result<Created, StoreError> {
        let StoreUrl::Volume(root) = url.clone() else { return Ok(Created::Existing) };
        let (_, made) = Self::reach(&url.to_string().into(), policy, move || volume::create_root(&root))?;
        Ok(if made { Created::New } else { Created::Existing })
    }

    /// Makes a store of any backend; `name` stands for it in messages.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`](crate::error::ErrorKind::Internal) if the operating system gives no runtime.
    pub fn over(backend: Arc<dyn ObjectStore>, name: &str, policy: RetryPolicy) -> Result<Self, StoreError> {
        let name: Arc<str> = name.into();
        let bridge = Bridge::new(policy.seed).map_err(|error| not_opened(&name, error.into()))?;
        Ok(Self { backend, bridge: Arc::new(bridge), name, policy, meter: Arc::default(), address: None })
    }

    /// Makes one attempt at a job that may hang, on the runtime the store will use.
    fn reach<T: Send + 'static>(
        name: &Arc<str>,
        policy: &RetryPolicy,
        job: impl FnOnce() -> object_store::Result<T> + Send + 'static,
    ) -> Result<(Bridge, T), StoreError> {
        let failed = |failure| not_opened(name, failure);
        let bridge = Bridge::new(policy.seed).map_err(|error| failed(error.into()))?;
        bridge.count(Verb::Open);
        let answer = bridge.block_on(async { timeout(policy.attempt, tokio::task::spawn_blocking(job)).await });
        let joined = answer.map_err(|_| failed(Failure::TimedOut(policy.attempt)))?;
        let done = joined.map_err(object_store::Error::from).and_then(|done| done);
        let done = done.map_err(|error| failed(error.into()))?;
        Ok((bridge, done))
    }
}

fn not_opened(name: &Arc<str>, failure: Failure) -> StoreError {
    StoreError { verb: Verb::Open, key: None, store: Arc::clone(name), attempts: 1, failure }
}
