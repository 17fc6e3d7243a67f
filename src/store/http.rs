//! Requests to a bucket, and what its server answered.
//!
//! Every reply passes here before the library beneath sees it, so that one table decides what an answer means. Only three
//! kinds of answer go on: a success that is whole, *no such key* said by the store itself, and *the condition failed*.
//! Everything else becomes a [`Refused`] with the store's own words: a bucket that does not exist, a proxy's page with
//! status 404, or an error inside a reply of status 200 can so never be taken for an object that is not there. Nor is a
//! page of a listing taken for the last one that says that others follow, without saying how to ask for them.
//!
//! Source: "Error responses" in the S3 API reference; "HTTP status and error codes for XML" in Google Cloud Storage's.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService, ReqwestConnector,
};
use object_store::{Certificate, ClientOptions, RetryConfig};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

use super::error::BackendError;
use super::refusal::{Refused, element, unreached};
use crate::error::ErrorKind;

/// Longest time to reach a server.
const CONNECT: Duration = Duration::from_secs(5);
/// Most bytes of an error's page that are read.
const ERROR_BYTES: usize = 64 << 10;
/// Most bytes of an answer that is read whole; a page of a listing has 1000 names of at most 1 KiB.
const ANSWER_BYTES: usize = 16 << 20;

/// How servers of buckets are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// Proxy for all requests; otherwise `HTTPS_PROXY` and its like count.
    pub proxy: Option<String>,
}

/// Whose signatures on servers' certificates are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those of a file that the operator named.
    File,
    /// The system's.
    System,
    /// Those that every browser believes, as this program was built with them: the system has none.
    BuiltIn,
}

impl fmt::Display for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "the certificates of ca_file",
            Self::System => "the system's certificates",
            Self::BuiltIn => "the certificates built into walvault, since this system has none",
        })
    }
}

impl Network {
    /// Returns whose signatures are believed.
    pub fn roots(&self) -> Roots {
        match &self.ca_file {
            Some(_) => Roots::File,
            None if system_certificates().is_empty() => Roots::BuiltIn,
            None => Roots::System,
        }
    }

    /// Returns what the library wants; plain HTTP is allowed where the operator wrote it.
    pub(super) fn options(&self, endpoint: Option<&str>) -> Result<ClientOptions, BackendError> {
        // Somebody else may have chosen one before; which it is does not matter.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = concat!("walvault/", env!("CARGO_PKG_VERSION"));
        let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let mut options = ClientOptions::new()
            .with_user_agent(object_store::HeaderValue::from_static(agent))
            .with_allow_http(plain)
            // How long a request may take is decided with its retries.
            .with_timeout_disabled()
            .with_connect_timeout(CONNECT);
        if let Some(file) = &self.ca_file {
            let invalid = |error: Box<dyn Error + Send + Sync>| {
                let problem = BadFile { doing: "use the certificates in", file: file.clone(), source: error };
                BackendError::new(ErrorKind::Invalid, problem)
            };
            let pem = std::fs::read(file).map_err(|error| invalid(error.into()))?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| invalid(error.into()))?;
            if certificates.is_empty() {
                return Err(invalid("it holds none".into()));
            }
            options = options.with_no_system_certificates(true);
            options = certificates.into_iter().fold(options, ClientOptions::with_root_certificate);
        }
        // Given to the library, which would read them all once more.
        let believed = match self.roots() {
            Roots::File => &[],
            Roots::System => system_certificates(),
            Roots::BuiltIn => webpki_root_certs::TLS_SERVER_ROOT_CERTS,
        };
        if !believed.is_empty() {
            options = options.with_no_system_certificates(true);
        }
        for der in believed {
            options = options.with_root_certificate(Certificate::from_der(der)?);
        }
        Ok(match &self.proxy {
            Some(proxy) => options.with_proxy_url(proxy),
            None => options,
        })
    }
}

/// Returns the system's certificates, read once; what is no certificate of an authority is left out.
fn system_certificates() -> &'static [CertificateDer<'static>] {
    static READ: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    READ.get_or_init(|| {
        let mut found = rustls_native_certs::load_native_certs().certs;
        // The library takes all or none.
        found.retain(|der| RootCertStore::empty().add(der.clone()).is_ok());
        found
    })
}

/// A file of the operator's that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", file.display())]
pub(super) struct BadFile {
    pub doing: &'static str,
    pub file: std::path::PathBuf,
    pub source: Box<dyn Error + Send + Sync>,
}

/// The library tries nothing again: that is decided in [`super::retry`].
pub(super) fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// What went over the network, by all verbs of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests made of the bucket; a verb may need several, such as one for each page of a listing.
    pub requests: u64,
    /// Requests made for credentials.
    pub for_credentials: u64,
    /// Bytes of bodies sent.
    pub sent: u64,
    /// Bytes of bodies received, as the replies announced them.
    pub received: u64,
    /// What time the last reply told, by the store's clock, UTC, to the second.
    pub store_time: Option<DateTime<Utc>>,
}

impl Traffic {
    /// Returns both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            for_credentials: self.for_credentials + other.for_credentials,
            sent: self.sent + other.sent,
            received: self.received + other.received,
            store_time: self.store_time.max(other.store_time),
        }
    }
}

/// Counts as requests are made.
#[derive(Debug, Default)]
pub(super) struct Meter {
    requests: AtomicU64,
    for_credentials: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// Seconds since 1970; 0 if no reply told.
    store_time: AtomicI64,
}

impl Meter {
    pub(super) fn read(&self) -> Traffic {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            requests: of(&self.requests),
            for_credentials: of(&self.for_credentials),
            sent: of(&self.sent),
            received: of(&self.received),
            store_time: DateTime::from_timestamp(self.store_time.load(Ordering::Relaxed), 0)
                .filter(|time| time.timestamp() != 0),
        }
    }

    fn note(&self, asked: Asked, reply: &HttpResponse) {
        let header = |name: &str| reply.headers().get(name).and_then(|value| value.to_str().ok());
        // To a HEAD it is the length of a body that does not come.
        if let Some(bytes) =
            header("content-length").filter(|_| asked != Asked::Head).and_then(|text| text.parse().ok())
        {
            self.received.fetch_add(bytes, Ordering::Relaxed);
        }
        if let Some(date) = header("date").and_then(|text| DateTime::parse_from_rfc2822(text).ok()) {
            self.store_time.store(date.timestamp(), Ordering::Relaxed);
        }
    }
}

/// Makes clients whose replies are judged here.
#[derive(Debug)]
pub(super) struct Connector {
    /// The bucket's name, for messages.
    pub bucket: String,
    /// What every URL of the bucket begins with.
    pub endpoint: String,
    pub meter: Arc<Meter>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let (bucket, endpoint, meter) = (self.bucket.clone(), self.endpoint.clone(), Arc::clone(&self.meter));
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Judge { client, bucket, endpoint, meter }))
    }
}

#[derive(Debug)]
struct Judge {
    client: HttpClient,
    bucket: String,
    endpoint: String,
    meter: Arc<Meter>,
}

/// What is asked, as far as it decides what an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Put,
    Get,
    Head,
    Listing,
    Delete,
    DeleteMany,
    /// Something of another server: credentials.
    Credentials,
}

impl Judge {
    fn asked(&self, request: &HttpRequest) -> Asked {
        let url = request.uri().to_string();
        let Some(rest) = url.strip_prefix(&self.endpoint) else { return Asked::Credentials };
        match request.method().as_str() {
            "PUT" => Asked::Put,
            "HEAD" => Asked::Head,
            "DELETE" => Asked::Delete,
            "POST" => Asked::DeleteMany,
            _ if rest.starts_with('?') || rest.starts_with("/?") => Asked::Listing,
            _ => Asked::Get,
        }
    }

    fn refused(&self, asked: Asked, status: u16, body: &str, region: Option<String>) -> HttpError {
        let bucket = (asked != Asked::Credentials).then(|| self.bucket.clone());
        Refused::said(bucket, status, body, region).into()
    }
}

#[async_trait]
impl HttpService for Judge {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let asked = self.asked(&request);
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let counter = if asked == Asked::Credentials { &self.meter.for_credentials } else { &self.meter.requests };
        counter.fetch_add(1, Ordering::Relaxed);
        self.meter.sent.fetch_add(request.body().content_length() as u64, Ordering::Relaxed);
        let reply = self.client.execute(request).await.map_err(|error| unreached(&host, &error))?;
        self.meter.note(asked, &reply);
        let status = reply.status().as_u16();
        match (asked, status) {
            (Asked::Credentials, 200..=299) | (Asked::Get | Asked::Head | Asked::Delete, 200..=299) => Ok(reply),
            // The library reads bodies of these two, and an answer without one is a page cut at its very start.
            (Asked::Listing, 200) => self.whole(asked, reply, "</ListBucketResult>").await,
            (Asked::DeleteMany, 200) => self.whole(asked, reply, "</DeleteResult>").await,
            (Asked::Put, 200..=299) => self.whole(asked, reply, "").await,
            (Asked::Put, 412) | (Asked::Get | Asked::Head, 304) => Ok(reply),
            // Without a body; whoever asked asks once more in a way that has one.
            (Asked::Head, 404) => Ok(reply),
            _ => {
                let region = reply.headers().get("x-amz-bucket-region").and_then(|region| region.to_str().ok());
                let region = region.map(str::to_owned);
                let (parts, body) = reply.into_parts();
                let text = read(body, ERROR_BYTES).await.unwrap_or_default();
                let words = String::from_utf8_lossy(&text);
                let absent = status == 404 && element(&words, "Code").as_deref() == Some("NoSuchKey");
                if absent && matches!(asked, Asked::Get | Asked::Delete) {
                    return Ok(HttpResponse::from_parts(parts, text.into()));
                }
                Err(self.refused(asked, status, &words, region))
            }
        }
    }
}

impl Judge {
    /// Reads a success whole; one that holds an error, or does not end as it should, is none.
    async fn whole(&self, asked: Asked, reply: HttpResponse, ending: &str) -> Result<HttpResponse, HttpError> {
        let (parts, body) = reply.into_parts();
        let bytes = read(body, ANSWER_BYTES).await.map_err(|error| unreached("", &error))?;
        let text = String::from_utf8_lossy(&bytes);
        let status = parts.status.as_u16();
        if text.contains("<Error>") || text.contains("<Error ") {
            return Err(self.refused(asked, status, &text, None));
        }
        if !text.trim_end().ends_with(ending) {
            return Err(self.refused(asked, status, "<Code>an answer that is cut off</Code>", None));
        }
        // The library goes by the token alone, and would end there. An interface of the first version has another word.
        let token = element(&text, "NextContinuationToken").is_some_and(|token| !token.is_empty());
        if asked == Asked::Listing && element(&text, "IsTruncated").is_some_and(|more| more.trim() == "true") && !token
        {
            let code =
                "<Code>a page of a listing that more follow, without a NextContinuationToken to ask for them</Code>";
            return Err(self.refused(asked, status, code, None));
        }
        Ok(HttpResponse::from_parts(parts, bytes.into()))
    }
}

async fn read(body: HttpResponseBody, limit: usize) -> Result<Bytes, HttpError> {
    let mut stream = body.bytes_stream();
    let mut bytes = Vec::new();
    while let Some(part) = stream.next().await {
        bytes.extend_from_slice(&part?);
        if bytes.len() > limit {
            break;
        }
    }
    Ok(bytes.into())
}
