//! Requests to a bucket, and what its server answered.
//!
//! Every reply passes here before the library beneath sees it, so that one table decides what an answer means. Only three
//! kinds of answer go on: a success that is whole, *no such key* said by the store itself, and *the condition failed*.
//! Everything else becomes a [`Refused`] with the store's own words: a bucket that does not exist, a proxy's page with
//! status 404, or an error inside a reply of status 200 can so never be taken for an object that is not there.
//!
//! Source: "Error responses" in the S3 API reference; "HTTP status and error codes for XML" in Google Cloud Storage's.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};
use object_store::{Certificate, ClientOptions, RetryConfig};

use super::contents::TwoContents;
use super::error::BackendError;
use crate::error::{ErrorKind, chain, cut};

/// Longest time to reach a server.
const CONNECT: Duration = Duration::from_secs(5);
/// Most bytes of an error's page that are read.
const ERROR_BYTES: usize = 64 << 10;
/// Most bytes of an answer that is read whole; a page of a listing has 1000 names of at most 1 KiB.
const ANSWER_BYTES: usize = 16 << 20;
/// Most bytes of a server's words in a message.
const WORDS: usize = 200;

/// How servers of buckets are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// Proxy for all requests; otherwise `HTTPS_PROXY` and its like count.
    pub proxy: Option<String>,
}

impl Network {
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
        Ok(match &self.proxy {
            Some(proxy) => options.with_proxy_url(proxy),
            None => options,
        })
    }
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
        let code = element(body, "Code").unwrap_or_default();
        let message = element(body, "Message").unwrap_or_default();
        let kind = match asked {
            Asked::Credentials if (400..500).contains(&status) => ErrorKind::Denied,
            _ => kind_of(status, &code),
        };
        let region = region.or_else(|| element(body, "Region"));
        let bucket = (asked != Asked::Credentials).then(|| self.bucket.clone());
        HttpError::new(HttpErrorKind::Unknown, Refused { kind, status, code, message, region, bucket })
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

/// An answer that is none of those the program goes on with.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub kind: ErrorKind,
    status: u16,
    code: String,
    message: String,
    region: Option<String>,
    /// `None` where credentials were asked for.
    bucket: Option<String>,
}

impl Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bucket = self.bucket.as_deref().unwrap_or_default();
        match (self.code.as_str(), &self.region) {
            ("NoSuchBucket", _) => write!(f, "there is no bucket {bucket}")?,
            ("RequestTimeTooSkewed", _) => f.write_str("this host's and the store's clocks differ too much")?,
            (_, Some(region)) if self.kind == ErrorKind::Invalid => {
                write!(f, "bucket {bucket} is in region {region}: set s3_region")?;
            }
            _ if self.bucket.is_none() => f.write_str("credentials were refused")?,
            _ => write!(f, "bucket {bucket} answered")?,
        }
        write!(f, ": {}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", cut(self.code.clone(), WORDS))?;
        }
        if !self.message.is_empty() {
            write!(f, ", {}", cut(self.message.trim_end_matches('.').to_owned(), WORDS))?;
        }
        Ok(())
    }
}

/// No answer at all.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Unreached {
    pub kind: ErrorKind,
    text: String,
}

fn unreached(host: &str, error: &HttpError) -> HttpError {
    // The outermost words only say that there was an error.
    let cause =
        error.source().and_then(Error::source).map_or_else(|| chain(error).to_string(), |e| chain(e).to_string());
    let untrusted = cause.contains("invalid peer certificate");
    let advice = if cause.contains("UnknownIssuer") { "; set ca_file to the certificate of its authority" } else { "" };
    let text = if host.is_empty() { cause } else { format!("{host}: {cause}{advice}") };
    let kind = if untrusted { ErrorKind::Invalid } else { ErrorKind::Unavailable };
    HttpError::new(error.kind(), Unreached { kind, text })
}

/// Returns what a caller can do about an error, by the store's code and else by its status.
fn kind_of(status: u16, code: &str) -> ErrorKind {
    match code {
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "TooManyRequests"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "ServiceUnavailable"
        | "ConditionalRequestConflict"
        | "OperationAborted" => ErrorKind::Busy,
        "RequestTimeout" | "InternalError" | "IncompleteBody" | "BadDigest" | "XAmzContentSHA256Mismatch" => {
            ErrorKind::Unavailable
        }
        "QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded" => ErrorKind::Full,
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "AccessDenied" => ErrorKind::Denied,
        "NoSuchBucket" | "InvalidBucketName" => ErrorKind::Invalid,
        _ => match status {
            401 | 403 => ErrorKind::Denied,
            // Two writers met; the next attempt finds out who won.
            409 | 429 | 503 => ErrorKind::Busy,
            // Neither the key nor the bucket was named: whatever answered may not be the store.
            404 | 408 => ErrorKind::Unavailable,
            507 => ErrorKind::Full,
            300..=499 => ErrorKind::Invalid,
            _ => ErrorKind::Unavailable,
        },
    }
}

/// Returns the text of the first element of that name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let plain = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    Some(plain.iter().fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain)))
}

/// Finds what was judged here in an error of the library.
pub(super) fn judged(error: &(dyn Error + 'static)) -> Option<(ErrorKind, Box<dyn Error + Send + Sync>)> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| {
        let refused = error.downcast_ref::<Refused>().map(|refused| (refused.kind, refused.clone().into()));
        let silent = || error.downcast_ref::<Unreached>().map(|silent| (silent.kind, silent.clone().into()));
        let two = || error.downcast_ref::<TwoContents>().map(|two| (ErrorKind::Conflict, two.clone().into()));
        refused.or_else(silent).or_else(two)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_a_reaction() {
        let table = [
            (403, "AccessDenied", ErrorKind::Denied),
            (403, "SignatureDoesNotMatch", ErrorKind::Denied),
            (403, "RequestTimeTooSkewed", ErrorKind::Denied),
            (403, "QuotaExceeded", ErrorKind::Full),
            (400, "ExpiredToken", ErrorKind::Denied),
            (400, "RequestTimeout", ErrorKind::Unavailable),
            (400, "BadDigest", ErrorKind::Unavailable),
            (400, "AuthorizationHeaderMalformed", ErrorKind::Invalid),
            (301, "PermanentRedirect", ErrorKind::Invalid),
            (404, "NoSuchBucket", ErrorKind::Invalid),
            (404, "", ErrorKind::Unavailable),
            (409, "ConditionalRequestConflict", ErrorKind::Busy),
            (409, "", ErrorKind::Busy),
            (429, "", ErrorKind::Busy),
            (503, "SlowDown", ErrorKind::Busy),
            (200, "SlowDown", ErrorKind::Busy),
            (200, "InternalError", ErrorKind::Unavailable),
            (500, "", ErrorKind::Unavailable),
            (502, "", ErrorKind::Unavailable),
            (507, "XMinioStorageFull", ErrorKind::Full),
        ];
        for (status, code, kind) in table {
            assert_eq!(kind_of(status, code), kind, "{status} {code}");
        }
    }

    #[test]
    fn an_elements_text_is_found_and_unescaped() {
        let page = "<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>a &lt;b&gt; &amp; c</Message></Error>";
        assert_eq!(element(page, "Code").as_deref(), Some("NoSuchKey"));
        assert_eq!(element(page, "Message").as_deref(), Some("a <b> & c"));
        assert_eq!(element("<html>404</html>", "Code"), None);
    }
}
