//! Buckets of Google Cloud Storage, through its XML interface.
//!
//! Credentials are found as Google's own tools find them: a file that is named, `GOOGLE_APPLICATION_CREDENTIALS` (a
//! service account's key, or an authorised user's), the file that `gcloud auth application-default login` leaves, and
//! last the metadata server, which also stands behind workload identity. Tokens are renewed before they end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use object_store::{Attribute, AttributeValue, Attributes, StaticCredentialProvider};

use super::bucket::{Bucket, Place};
use super::error::BackendError;
use super::http::{Connector, Meter, Network, no_retries};

/// How buckets of Google Cloud Storage are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcsAccess {
    /// Endpoint, with its scheme; else Google's.
    pub endpoint: Option<String>,
    /// A file with a service account's key; else the usual places.
    pub credentials_file: Option<PathBuf>,
    /// Storage class of what is stored; else the bucket's.
    pub storage_class: Option<String>,
}

const GOOGLE: &str = "https://storage.googleapis.com";

/// Opens a bucket; nothing is asked of it.
pub(super) fn open(
    place: &Place,
    access: &GcsAccess,
    network: &Network,
    environment: &BTreeMap<String, String>,
    meter: &Arc<Meter>,
) -> Result<Bucket, BackendError> {
    let variable = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
    let endpoint = access.endpoint.clone().unwrap_or_else(|| GOOGLE.to_owned());
    let endpoint = endpoint.trim_end_matches('/');
    let base = format!("{endpoint}/{}", place.bucket_in_url());
    let connector = Connector { bucket: place.bucket.clone(), endpoint: base.clone(), meter: Arc::clone(meter) };
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&place.bucket)
        .with_base_url(endpoint)
        .with_retry(no_retries())
        .with_client_options(network.options(Some(endpoint))?)
        .with_http_connector(connector);
    let named = access.credentials_file.clone().or_else(|| variable("GOOGLE_APPLICATION_CREDENTIALS").map(Into::into));
    if let Some(file) = named {
        builder = builder.with_application_credentials(file.to_string_lossy());
    } else if variable("STORAGE_EMULATOR_HOST").is_some() {
        // An emulator takes every token, and no metadata server is near one.
        let anyone = GcpCredential { bearer: "emulator".to_owned() };
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(anyone)));
    }
    let store = builder.build()?;
    let class = access.storage_class.clone().map(|class| (Attribute::StorageClass, AttributeValue::from(class)));
    Ok(Bucket::new(Arc::new(store), place, base, class.into_iter().collect::<Attributes>()))
}
