//! Buckets of S3 and its relatives.
//!
//! One object is one PUT with `If-None-Match: *`: nothing that walvault stores comes near the 5 GiB that one PUT may have,
//! so there are no multipart uploads, none to abort and none to be billed for. The body's SHA-256 is part of the
//! signature, so a server that checks signatures refuses bytes that were changed on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::{Attribute, AttributeValue, CredentialProvider, StaticCredentialProvider};

use super::bucket::{Bucket, Place};
use super::error::BackendError;
use super::http::{BadFile, Connector, Meter, Network, no_retries};
use super::profile::Profile;
use crate::error::ErrorKind;

/// Where a bucket's name stands in a URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// In the host's name on AWS, in the path at an endpoint that the operator gave.
    #[default]
    Auto,
    /// In the path.
    Path,
    /// In the host's name.
    VirtualHost,
}

/// How buckets of S3 are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Access {
    /// Region; else that of the environment, of the profile, or `us-east-1`.
    pub region: Option<String>,
    /// Endpoint, with its scheme; else that of the environment or the profile, or AWS.
    pub endpoint: Option<String>,
    /// Where the bucket's name stands.
    pub addressing: Addressing,
    /// Storage class of what is stored; else the bucket's.
    pub storage_class: Option<String>,
    /// Profile of the shared files; else `AWS_PROFILE`, or `default`.
    pub profile: Option<String>,
    /// A file with an access key's id; with the next, before every other credential.
    pub access_key_id_file: Option<PathBuf>,
    /// A file with its secret.
    pub secret_access_key_file: Option<PathBuf>,
}

/// How often files with keys are read again.
const READ_AGAIN: Duration = Duration::from_secs(60);

/// Where credentials come from, in the order of the SDKs.
enum Credentials {
    Keys(AwsCredential),
    Files {
        id: PathBuf,
        secret: PathBuf,
    },
    /// Web identity, container, pod identity or instance: the library fetches and renews them.
    Service,
}

/// Returns the server that the settings, the environment or the profile name.
pub(super) fn endpoint_named(access: &S3Access, environment: &BTreeMap<String, String>) -> Option<String> {
    let profile = || Profile::load(access.profile.as_deref(), environment).ok()?.get("endpoint_url");
    endpoint_set(access, environment).or_else(profile)
}

fn endpoint_set(access: &S3Access, environment: &BTreeMap<String, String>) -> Option<String> {
    let variable = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    let named = access.endpoint.as_ref().or_else(|| variable("AWS_ENDPOINT_URL_S3"));
    named.or_else(|| variable("AWS_ENDPOINT_URL")).cloned()
}

/// Opens a bucket; nothing is asked of it.
pub(super) fn open(
    place: &Place,
    access: &S3Access,
    network: &Network,
    environment: &BTreeMap<String, String>,
    meter: &Arc<Meter>,
) -> Result<Bucket, BackendError> {
    let variable = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
    let profile = Profile::load(access.profile.as_deref(), environment)?;
    let region = access.region.clone().or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
    let region = region.or_else(|| profile.get("region")).unwrap_or_else(|| "us-east-1".to_owned());
    let endpoint = endpoint_set(access, environment).or_else(|| profile.get("endpoint_url"));
    let endpoint = endpoint.map(|endpoint| endpoint.trim_end_matches('/').to_owned());
    let base = base_url(&place.bucket, &region, endpoint.as_deref(), access.addressing)?;
    // A dot in a bucket's name fits no wildcard certificate.
    let network = Network { ca_file: network.ca_file.clone().or_else(|| bundle(environment)), ..network.clone() };
    let connector = Connector { bucket: place.bucket.clone(), endpoint: base.clone(), meter: Arc::clone(meter) };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&place.bucket)
        .with_region(&region)
        .with_endpoint(&base)
        // The bucket's name is in the URL already, wherever it stands there.
        .with_virtual_hosted_style_request(true)
        .with_retry(no_retries())
        .with_client_options(network.options(Some(&base))?)
        .with_http_connector(connector);
    match credentials(access, &profile, &variable)? {
        Credentials::Keys(keys) => {
            builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(keys)));
        }
        Credentials::Files { id, secret } => {
            let keys = KeyFiles { id, secret, read: Mutex::default() };
            keys.load()?;
            builder = builder.with_credentials(Arc::new(keys));
        }
        Credentials::Service => {
            for (name, value) in environment.iter().filter(|(name, _)| of_a_service(name)) {
                if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            if let Some(endpoint) = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
                builder = builder.with_metadata_endpoint(endpoint.trim_end_matches('/'));
            }
            if variable("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value == "true")
                && !environment.keys().any(|name| of_a_service(name))
            {
                return Err(BackendError::new(ErrorKind::Denied, NO_CREDENTIALS));
            }
        }
    }
    let store = builder.build()?;
    let class = access.storage_class.clone().map(|class| (Attribute::StorageClass, AttributeValue::from(class)));
    Ok(Bucket::new(Arc::new(store), place, base, class.into_iter().collect()))
}

/// The file of certificates that AWS's tools believe.
pub(super) fn bundle(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    environment.get("AWS_CA_BUNDLE").filter(|value| !value.is_empty()).map(PathBuf::from)
}

const NO_CREDENTIALS: &str = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or \
     s3_access_key_id_file and s3_secret_access_key_file";

/// Whether a variable names a service that gives credentials.
fn of_a_service(name: &str) -> bool {
    [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_ROLE_SESSION_NAME",
        "AWS_ENDPOINT_URL_STS",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    ]
    .contains(&name)
}

fn credentials(
    access: &S3Access,
    profile: &Profile,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Credentials, BackendError> {
    let invalid = |text: &str| Err(BackendError::new(ErrorKind::Invalid, text));
    match (&access.access_key_id_file, &access.secret_access_key_file) {
        (Some(id), Some(secret)) => return Ok(Credentials::Files { id: id.clone(), secret: secret.clone() }),
        (None, None) => {}
        _ => return invalid("s3_access_key_id_file and s3_secret_access_key_file belong together: one is not set"),
    }
    // A profile that was asked for by name goes before the environment's keys.
    if access.profile.is_none() {
        match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
            (Some(key_id), Some(secret_key)) => {
                let token = variable("AWS_SESSION_TOKEN");
                return Ok(Credentials::Keys(AwsCredential { key_id, secret_key, token }));
            }
            (None, None) => {}
            _ => return invalid("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together: one is not set"),
        }
    }
    Ok(profile.keys()?.map_or(Credentials::Service, Credentials::Keys))
}

/// Returns what every URL of the bucket begins with.
fn base_url(
    bucket: &str,
    region: &str,
    endpoint: Option<&str>,
    addressing: Addressing,
) -> Result<String, BackendError> {
    // A dot in a bucket's name fits no certificate for one more label.
    let on_aws = endpoint.is_none();
    let in_host = match addressing {
        Addressing::Auto => on_aws && !bucket.contains('.'),
        Addressing::Path => false,
        Addressing::VirtualHost => true,
    };
    let aws = || {
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        format!("https://s3.{region}.{domain}")
    };
    let endpoint = endpoint.map_or_else(aws, str::to_owned);
    let Some((scheme, host)) = endpoint.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme))
    else {
        let text = format!("the endpoint {endpoint:?} is no URL; one looks like https://s3.example.com");
        return Err(BackendError::new(ErrorKind::Invalid, text));
    };
    Ok(if in_host { format!("{scheme}://{bucket}.{host}") } else { format!("{scheme}://{host}/{bucket}") })
}

/// Keys in two files, as a container gets its secrets: read again while the program runs, since they may be exchanged.
#[derive(Debug)]
struct KeyFiles {
    id: PathBuf,
    secret: PathBuf,
    read: Mutex<Option<(Instant, Arc<Hidden>)>>,
}

/// A credential whose secret does not show in `{:?}`.
struct Hidden(Arc<AwsCredential>);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl KeyFiles {
    fn load(&self) -> Result<Arc<AwsCredential>, BackendError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, keys)) = &*read
            && when.elapsed() < READ_AGAIN
        {
            return Ok(Arc::clone(&keys.0));
        }
        let (key_id, secret_key) = (secret_of(&self.id)?, secret_of(&self.secret)?);
        let keys = Arc::new(AwsCredential { key_id, secret_key, token: None });
        *read = Some((Instant::now(), Arc::new(Hidden(Arc::clone(&keys)))));
        Ok(keys)
    }
}

#[async_trait]
impl CredentialProvider for KeyFiles {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.load().map_err(|error| object_store::Error::Unauthenticated {
            path: self.id.display().to_string(),
            source: error.into(),
        })
    }
}

/// Returns what a file with a secret holds, without the line's end.
fn secret_of(file: &Path) -> Result<String, BackendError> {
    let failed = |kind, source| {
        let problem = BadFile { doing: "read the credential in", file: file.to_owned(), source };
        Err(BackendError::new(kind, problem))
    };
    match std::fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) => failed(ErrorKind::Denied, "it is empty".into()),
        Err(error) => failed(ErrorKind::Denied, error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_buckets_name_stands_where_its_server_expects_it() {
        let table = [
            ("b", None, Addressing::Auto, "https://b.s3.eu-west-1.amazonaws.com"),
            ("b.c", None, Addressing::Auto, "https://s3.eu-west-1.amazonaws.com/b.c"),
            ("b", None, Addressing::Path, "https://s3.eu-west-1.amazonaws.com/b"),
            ("b", Some("http://minio:9000"), Addressing::Auto, "http://minio:9000/b"),
            ("b", Some("https://minio:9000"), Addressing::VirtualHost, "https://b.minio:9000"),
        ];
        for (bucket, endpoint, addressing, expected) in table {
            assert_eq!(base_url(bucket, "eu-west-1", endpoint, addressing).unwrap(), expected);
        }
        assert_eq!(
            base_url("b", "cn-north-1", None, Addressing::Auto).unwrap(),
            "https://b.s3.cn-north-1.amazonaws.com.cn"
        );
        for text in ["minio:9000", "ftp://minio", ""] {
            assert!(base_url("b", "r", Some(text), Addressing::Auto).is_err(), "{text}");
        }
    }

    #[test]
    fn half_a_pair_of_keys_is_refused() {
        let environment = |name: &str| (name == "AWS_ACCESS_KEY_ID").then(|| "AK".to_owned());
        let refused = credentials(&S3Access::default(), &Profile::default(), &environment).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        let half = S3Access { access_key_id_file: Some("/x".into()), ..S3Access::default() };
        assert!(credentials(&half, &Profile::default(), &|_| None).is_err());
    }
}
