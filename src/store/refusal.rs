//! Refusals of a bucket's server, and the silence of one: what kind each is, its words, and what stands in the way.

use std::error::Error;
use std::fmt;

use object_store::client::{HttpError, HttpErrorKind};

use super::contents::TwoContents;
use super::error::{Failure, StoreError};
use crate::error::{ErrorKind, chain, cut};

/// Most bytes of a server's words in a message.
const WORDS: usize = 200;

/// What stands between this host and a bucket, where its server or the network told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// There is no such bucket.
    NoBucket,
    /// The bucket lies in another region, this one if the server told.
    OtherRegion(Option<String>),
    /// The clocks of host and store differ too much.
    Clock,
    /// The server's certificate was signed by an authority that is not trusted here.
    Authority,
    /// The server's certificate is for another name.
    CertificateName,
    /// Nothing answered.
    Silence,
    /// Something answered that is no store.
    Stranger,
    /// Whoever asks is not known.
    Credentials,
    /// Whoever asks is known, and may not.
    Permission,
    /// The server does not know what it was asked, such as a condition.
    NotOffered,
}

impl StoreError {
    /// Returns what stands in the way, if it is one of these.
    pub fn obstacle(&self) -> Option<Obstacle> {
        let Failure::Backend(failure) = self.failure() else { return None };
        let found: &(dyn Error + 'static) = failure.origin();
        let refused = || found.downcast_ref::<Refused>().and_then(Refused::obstacle);
        found.downcast_ref::<Unreached>().map_or_else(refused, Unreached::obstacle)
    }
}

/// An answer that is none of those the program goes on with.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    kind: ErrorKind,
    status: u16,
    code: String,
    message: String,
    region: Option<String>,
    /// `None` where credentials were asked for.
    bucket: Option<String>,
}

impl Error for Refused {}

impl Refused {
    /// Takes an answer apart; `bucket` is `None` where credentials were asked for.
    pub(super) fn said(bucket: Option<String>, status: u16, body: &str, region: Option<String>) -> Self {
        let code = element(body, "Code").unwrap_or_default();
        let message = element(body, "Message").unwrap_or_default();
        let kind = match bucket {
            None if (400..500).contains(&status) => ErrorKind::Denied,
            _ => kind_of(status, &code),
        };
        let region = region.or_else(|| element(body, "Region"));
        Self { kind, status, code, message, region, bucket }
    }

    fn obstacle(&self) -> Option<Obstacle> {
        match self.code.as_str() {
            _ if self.bucket.is_none() => Some(Obstacle::Credentials),
            "NotImplemented" => Some(Obstacle::NotOffered),
            _ if self.status == 501 => Some(Obstacle::NotOffered),
            "NoSuchBucket" => Some(Obstacle::NoBucket),
            "RequestTimeTooSkewed" => Some(Obstacle::Clock),
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => {
                Some(Obstacle::OtherRegion(self.region.clone()))
            }
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired" => Some(Obstacle::Credentials),
            // A store names what is wrong.
            "" if self.status < 500 => Some(Obstacle::Stranger),
            _ if self.status == 401 => Some(Obstacle::Credentials),
            _ if self.kind == ErrorKind::Denied => Some(Obstacle::Permission),
            _ => None,
        }
    }
}

impl From<Refused> for HttpError {
    fn from(refused: Refused) -> Self {
        Self::new(HttpErrorKind::Unknown, refused)
    }
}

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
    kind: ErrorKind,
    text: String,
}

impl Unreached {
    fn obstacle(&self) -> Option<Obstacle> {
        match self.text.as_str() {
            text if text.contains("UnknownIssuer") => Some(Obstacle::Authority),
            text if text.contains("not valid for name") || text.contains("NotValidForName") => {
                Some(Obstacle::CertificateName)
            }
            _ if self.kind == ErrorKind::Unavailable => Some(Obstacle::Silence),
            _ => None,
        }
    }
}

pub(super) fn unreached(host: &str, error: &HttpError) -> HttpError {
    // The outermost words only say that there was an error.
    let cause =
        error.source().and_then(Error::source).map_or_else(|| chain(error).to_string(), |e| chain(e).to_string());
    let untrusted = cause.contains("invalid peer certificate");
    let advice = match &cause {
        cause if cause.contains("UnknownIssuer") => "; set ca_file to the certificate of its authority",
        cause if cause.contains("InvalidContentType") => {
            "; does it speak TLS? An endpoint without it begins with http://"
        }
        _ => "",
    };
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
        "NoSuchBucket" | "InvalidBucketName" | "NotImplemented" => ErrorKind::Invalid,
        _ => match status {
            401 | 403 => ErrorKind::Denied,
            // Two writers met; the next attempt finds out who won.
            409 | 429 | 503 => ErrorKind::Busy,
            // Neither the key nor the bucket was named: whatever answered may not be the store.
            404 | 408 => ErrorKind::Unavailable,
            507 => ErrorKind::Full,
            300..=499 | 501 => ErrorKind::Invalid,
            _ => ErrorKind::Unavailable,
        },
    }
}

/// Returns the text of the first element of that name.
pub(super) fn element(xml: &str, name: &str) -> Option<String> {
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
            (501, "NotImplemented", ErrorKind::Invalid),
            (501, "", ErrorKind::Invalid),
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
