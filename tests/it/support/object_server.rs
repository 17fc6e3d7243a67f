//! An object store on loopback: buckets of S3, or of Google Cloud Storage, and the ways such servers fail.
//!
//! Objects live in memory. Conditions are kept, unless the test wants a server that ignores them; pages are as short as
//! wanted; any request can be answered wrongly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::walvault::format::Sha256;
use chrono::{DateTime, Utc};

use super::http_server::{HttpServer, Manner, Reply, Request, decode};
use super::signature::{is_signed_with, judge_token};

/// Whose interface it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    S3,
    Gcs,
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Wrong {
    /// Not carried out; answered with this status and code.
    Refuse(u16, &'static str),
    /// Carried out; the answer is lost.
    LoseReply,
    /// Carried out; of the answer's body only so many bytes arrive.
    Cut(usize),
    /// Not carried out; an error in a reply of status 200.
    Inside(&'static str),
    /// Not carried out; a page of something that is no store, with this status.
    ForeignPage(u16),
    /// Carried out; a page of a listing says that more follow, and not how to ask for them.
    NoToken,
    /// Carried out late.
    Slow(Duration),
    /// Never answered.
    Hang,
}

/// When it goes wrong.
#[derive(Clone, Debug)]
struct Rule {
    method: &'static str,
    /// Part of path and query.
    part: String,
    times: u64,
    wrong: Wrong,
}

/// One request as it was noted.
#[derive(Clone, Debug)]
pub struct Noted {
    pub method: String,
    /// Of the object, with its bucket; empty for the bucket itself.
    pub key: String,
    pub host: String,
    pub by_proxy: bool,
    pub headers: Vec<(String, String)>,
}

struct Stored {
    body: Vec<u8>,
    version: u64,
    /// By the server's clock.
    stamp: DateTime<Utc>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Stored>,
    next: u64,
    rules: Vec<Rule>,
    noted: Vec<Noted>,
    ignore_conditions: bool,
    refuse_conditions: bool,
    page: usize,
    /// Only this access key may enter.
    key: Option<String>,
    /// Only what is signed with this secret is taken; otherwise with one of [`SECRETS`].
    secret: Option<String>,
    /// Only tokens that this service account signed are taken: its name, and the public half of its key.
    account: Option<(String, Vec<u8>)>,
    /// How far this server's clock is ahead.
    skew: i64,
    /// Only requests signed for this region are taken.
    region: Option<String>,
}

/// The server, with one bucket called `bucket`.
#[derive(Clone)]
pub struct ObjectServer {
    server: Arc<HttpServer>,
    state: Arc<Mutex<State>>,
    dialect: Dialect,
}

/// The secrets of the tests' access keys.
const SECRETS: [&str; 2] = ["the secret", "hidden"];
const BUCKET: &str = "bucket";
const HTTP_DATE: &str = "%a, %d %b %Y %H:%M:%S GMT";

impl ObjectServer {
    pub fn start(dialect: Dialect) -> Self {
        Self::with(dialect, false)
    }

    pub fn start_tls(dialect: Dialect) -> Self {
        Self::with(dialect, true)
    }

    /// At an address of loopback that its certificate does not name.
    pub fn start_tls_misnamed(dialect: Dialect) -> Self {
        let state = Arc::new(Mutex::new(State { page: 1000, ..State::default() }));
        let own = Arc::clone(&state);
        let handler = move |request: &Request| answer(&own, dialect, request);
        Self { server: Arc::new(HttpServer::start_tls_at("127.0.0.2", handler)), state, dialect }
    }

    fn with(dialect: Dialect, tls: bool) -> Self {
        let state = Arc::new(Mutex::new(State { page: 1000, ..State::default() }));
        let own = Arc::clone(&state);
        let handler = move |request: &Request| answer(&own, dialect, request);
        let server = if tls { HttpServer::start_tls(handler) } else { HttpServer::start(handler) };
        Self { server: Arc::new(server), state, dialect }
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// A repository in the bucket.
    pub fn repository(&self) -> String {
        format!("{}://{BUCKET}/pg", if self.dialect == Dialect::S3 { "s3" } else { "gs" })
    }

    /// Makes it ignore conditions: the last writer wins.
    pub fn ignoring_conditions(self) -> Self {
        self.lock().ignore_conditions = true;
        self
    }

    /// Makes it answer conditions with 501.
    pub fn refusing_conditions(self) -> Self {
        self.lock().refuse_conditions = true;
        self
    }

    /// Makes pages of listings this short.
    pub fn paging(self, page: usize) -> Self {
        self.lock().page = page;
        self
    }

    /// Lets only this access key in.
    pub fn only(&self, key: &str) {
        self.lock().key = Some(key.to_owned());
    }

    /// Takes only what is signed with this secret.
    pub fn only_signed_with(&self, secret: &str) {
        self.lock().secret = Some(secret.to_owned());
    }

    /// Takes only tokens that this service account signed for itself; `public` is the public half of its key.
    pub fn only_account(&self, email: &str, public: &[u8]) {
        self.lock().account = Some((email.to_owned(), public.to_vec()));
    }

    /// Takes only what is signed for this region, and names it to others.
    pub fn in_region(self, region: &str) -> Self {
        self.lock().region = Some(region.to_owned());
        self
    }

    /// Puts its clock ahead.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.lock().skew = seconds;
    }

    /// Lets the next `times` requests of that method go wrong whose path or query has `part`.
    pub fn go_wrong(&self, method: &'static str, part: &str, times: u64, wrong: Wrong) {
        self.lock().rules.push(Rule { method, part: part.to_owned(), times, wrong });
    }

    pub fn heal(&self) {
        self.lock().rules.clear();
    }

    /// Returns the requests since the last call.
    pub fn take_noted(&self) -> Vec<Noted> {
        std::mem::take(&mut self.lock().noted)
    }

    pub fn keys(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// Returns all objects, by key.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        self.lock().objects.iter().map(|(key, stored)| (key.clone(), stored.body.clone())).collect()
    }

    pub fn put(&self, key: &str, body: &[u8]) {
        self.lock().put(key, body.to_vec());
    }

    pub fn remove(&self, key: &str) {
        assert!(self.lock().objects.remove(key).is_some(), "there is no {key}");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(state: &Mutex<State>, dialect: Dialect, request: &Request) -> Reply {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let host = request.header("host").unwrap_or_default().to_owned();
    let path = decode(request.path.trim_start_matches('/'));
    let whole = match host.strip_suffix(".s3.test").or_else(|| host.strip_suffix(".s3.test:80")) {
        Some(bucket) => format!("{bucket}/{path}"),
        None => path,
    };
    let (bucket, key) = whole.split_once('/').unwrap_or((&whole, ""));
    let (bucket, key) = (bucket.to_owned(), key.to_owned());
    state.noted.push(Noted {
        method: request.method.clone(),
        key: key.clone(),
        host,
        by_proxy: request.by_proxy,
        headers: request.headers.clone(),
    });
    let place = format!("{whole}?{:?}", request.query);
    let found = state
        .rules
        .iter_mut()
        .find(|rule| rule.times > 0 && rule.method == request.method && place.contains(&rule.part));
    let wrong = found.map(|rule| {
        rule.times -= 1;
        rule.wrong.clone()
    });
    let mut reply = match &wrong {
        Some(Wrong::Refuse(status, code)) => error(*status, code),
        Some(Wrong::Inside(code)) => error(200, code),
        Some(Wrong::ForeignPage(status)) => Reply::new(*status, "<html><body>something else</body></html>"),
        Some(Wrong::Hang) => Reply { manner: Manner::Never, ..Reply::new(200, "") },
        _ => match admitted(&state, dialect, request) {
            Err(refused) => refused,
            Ok(()) if bucket != BUCKET => error(404, "NoSuchBucket"),
            Ok(()) => state.carry_out(dialect, request, &key),
        },
    };
    match wrong {
        Some(Wrong::LoseReply) => reply.manner = Manner::Lost,
        Some(Wrong::Cut(bytes)) => reply.manner = Manner::Cut(bytes),
        Some(Wrong::Slow(delay)) => reply.delay = delay,
        Some(Wrong::NoToken) => {
            let page = String::from_utf8_lossy(&reply.body).into_owned();
            let (before, rest) = page.split_once("<NextContinuationToken>").expect("a page that others follow");
            let (_, after) = rest.split_once("</NextContinuationToken>").expect("the element's end");
            reply.body = [before, after].concat().into_bytes();
        }
        _ => {}
    }
    reply.header("date", state.now().format(HTTP_DATE).to_string())
}

fn error(status: u16, code: &str) -> Reply {
    Reply::new(status, format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message></Error>"))
}

/// Checks who asks.
fn admitted(state: &State, dialect: Dialect, request: &Request) -> Result<(), Reply> {
    let authorization = request.header("authorization").unwrap_or_default();
    if dialect == Dialect::Gcs {
        let bearer = authorization.strip_prefix("Bearer ").ok_or_else(|| error(401, "AuthenticationRequired"))?;
        if let Some((email, public)) = &state.account {
            let judged = judge_token(bearer, email, public, state.now().timestamp());
            return judged.map_err(|wrong| error(401, &format!("AuthenticationRequired: {wrong}")));
        }
        return match &state.key {
            Some(key) if key != bearer => Err(error(401, "AuthenticationRequired")),
            _ => Ok(()),
        };
    }
    let Some(signed) = authorization.strip_prefix("AWS4-HMAC-SHA256 Credential=") else {
        return Err(error(403, "AccessDenied"));
    };
    if state.key.as_ref().is_some_and(|key| !signed.starts_with(&format!("{key}/"))) {
        return Err(error(403, "InvalidAccessKeyId"));
    }
    if let Some(region) = state.region.as_ref().filter(|region| !signed.contains(&format!("/{region}/s3/"))) {
        let words = "<Code>AuthorizationHeaderMalformed</Code><Message>the region is wrong</Message>";
        return Err(Reply::new(400, format!("<?xml version=\"1.0\"?><Error>{words}<Region>{region}</Region></Error>")));
    }
    let date = request.header("x-amz-date").unwrap_or_default();
    let time = chrono::NaiveDateTime::parse_from_str(date, "%Y%m%dT%H%M%SZ").map_err(|_| error(403, "AccessDenied"))?;
    if (state.now() - time.and_utc()).num_seconds().abs() > 15 * 60 {
        return Err(error(403, "RequestTimeTooSkewed"));
    }
    let signed = match &state.secret {
        Some(secret) => is_signed_with(request, secret),
        None => SECRETS.iter().any(|secret| is_signed_with(request, secret)),
    };
    if !signed {
        return Err(error(403, "SignatureDoesNotMatch"));
    }
    let digest = Sha256::of(&request.body).to_string();
    match request.header("x-amz-content-sha256") {
        Some(told) if told == digest => Ok(()),
        _ => Err(error(400, "XAmzContentSHA256Mismatch")),
    }
}

impl State {
    fn now(&self) -> DateTime<Utc> {
        Utc::now() + chrono::Duration::seconds(self.skew)
    }

    fn put(&mut self, key: &str, body: Vec<u8>) -> u64 {
        self.next += 1;
        let stored = Stored { body, version: self.next, stamp: self.now() };
        self.objects.insert(key.to_owned(), stored);
        self.next
    }

    fn carry_out(&mut self, dialect: Dialect, request: &Request, key: &str) -> Reply {
        match request.method.as_str() {
            "PUT" => {
                let create_only = match dialect {
                    Dialect::S3 => request.header("if-none-match") == Some("*"),
                    Dialect::Gcs => request.header("x-goog-if-generation-match") == Some("0"),
                };
                if create_only && self.refuse_conditions {
                    return error(501, "NotImplemented");
                }
                if create_only && !self.ignore_conditions && self.objects.contains_key(key) {
                    return error(412, "PreconditionFailed");
                }
                let version = self.put(key, request.body.clone());
                Reply::new(200, "")
                    .header("etag", format!("\"{version}\""))
                    .header("x-goog-generation", version.to_string())
            }
            "GET" | "HEAD" if key.is_empty() => self.list(request),
            "GET" | "HEAD" => self.get(request, key),
            "DELETE" => match (self.objects.remove(key), dialect) {
                (None, Dialect::Gcs) => error(404, "NoSuchKey"),
                _ => Reply::new(204, ""),
            },
            "POST" => {
                let body = String::from_utf8_lossy(&request.body);
                let mut xml = String::from("<?xml version=\"1.0\"?><DeleteResult>");
                for part in body.split("<Key>").skip(1) {
                    let key = part.split("</Key>").next().unwrap_or_default();
                    self.objects.remove(key);
                    xml += &format!("<Deleted><Key>{key}</Key></Deleted>");
                }
                Reply::new(200, xml + "</DeleteResult>")
            }
            _ => error(405, "MethodNotAllowed"),
        }
    }

    fn get(&self, request: &Request, key: &str) -> Reply {
        let Some(Stored { body, version, stamp: stored_at }) = self.objects.get(key) else {
            return error(404, "NoSuchKey");
        };
        let stamp = |reply: Reply| {
            reply
                .header("etag", format!("\"{version}\""))
                .header("x-goog-generation", version.to_string())
                .header("last-modified", stored_at.format(HTTP_DATE).to_string())
        };
        let range = request.header("range").and_then(|range| range.strip_prefix("bytes="));
        let Some((first, last)) = range.and_then(|range| range.split_once('-')) else {
            return stamp(Reply::new(200, body.clone()));
        };
        let first: usize = first.parse().unwrap_or(usize::MAX);
        if first >= body.len() {
            return error(416, "InvalidRange");
        }
        let last = last.parse().unwrap_or(usize::MAX).min(body.len() - 1);
        let told = format!("bytes {first}-{last}/{}", body.len());
        stamp(Reply::new(206, body[first..=last].to_vec())).header("content-range", told)
    }

    fn list(&self, request: &Request) -> Reply {
        let prefix = request.query("prefix").unwrap_or_default();
        let delimiter = request.query("delimiter").unwrap_or_default();
        let after = request.query("continuation-token").or(request.query("start-after")).unwrap_or_default();
        let mut entries = BTreeSet::new();
        let from = prefix.max(after).to_owned();
        for key in self.objects.range(from..).map(|(key, _)| key).take_while(|key| key.starts_with(prefix)) {
            if entries.len() > self.page {
                break;
            }
            let rest = &key[prefix.len()..];
            match rest.find('/') {
                Some(at) if !delimiter.is_empty() => {
                    let folder = format!("{prefix}{}", &rest[..=at]);
                    folder.as_str() > after && entries.insert((folder, true))
                }
                _ => key.as_str() > after && entries.insert((key.clone(), false)),
            };
        }
        let left: Vec<_> = entries.iter().collect();
        let page = &left[..left.len().min(self.page)];
        let mut xml = String::from("<?xml version=\"1.0\"?><ListBucketResult>");
        for (name, folder) in page {
            if *folder {
                xml += &format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>");
                continue;
            }
            let Stored { body, version, stamp } = &self.objects[name];
            xml += &format!(
                "<Contents><Key>{name}</Key><LastModified>{}</LastModified><ETag>\"{version}\"</ETag>\
                 <Size>{}</Size></Contents>",
                stamp.format("%Y-%m-%dT%H:%M:%S.000Z"),
                body.len()
            );
        }
        let more = page.len() < left.len();
        xml += &format!("<IsTruncated>{more}</IsTruncated>");
        if let (true, Some((last, _))) = (more, page.last()) {
            xml += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
        }
        Reply::new(200, xml + "</ListBucketResult>")
    }
}
