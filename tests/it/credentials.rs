//! Credentials from where each cloud's users expect them, asked of services on loopback that stand in for the real ones.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};

use ::walvault::error::{ErrorKind, chain};
use ::walvault::store::{Access, GcsAccess, RetryPolicy, S3Access, Store};

use crate::support::Walvault;
use crate::support::http_server::{HttpServer, Reply, Request};
use crate::support::object_server::{Dialect, ObjectServer};
use crate::support::scratch::Scratch;
use crate::support::signature::{is_signed_with, judge_token, to_base64url};

/// A service that gives credentials, and what was asked of it.
struct Service {
    server: HttpServer,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Service {
    fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let asked = Arc::<Mutex<Vec<Request>>>::default();
        let noted = Arc::clone(&asked);
        let server = HttpServer::start(move |request| {
            noted.lock().expect("no test panics in here").push(request.clone());
            answer(request)
        });
        Self { server, asked }
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().expect("no test panics in here").clone()
    }
}

/// Opens the bucket, into which only `key` may enter, with nothing but these variables; returns the error of a read.
fn enter(server: &ObjectServer, key: &str, variables: &[(&str, String)]) -> Result<Store, String> {
    enter_with(server, key, S3Access::default(), GcsAccess::default(), variables)
}

fn enter_with(
    server: &ObjectServer,
    key: &str,
    s3: S3Access,
    gcs: GcsAccess,
    variables: &[(&str, String)],
) -> Result<Store, String> {
    server.only(key);
    let environment: BTreeMap<String, String> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let s3 = S3Access { endpoint: Some(server.url()), ..s3 };
    let gcs = GcsAccess { endpoint: Some(server.url()), ..gcs };
    let access = Access { s3, gcs, environment, ..Access::default() };
    let url = server.repository().parse().expect("a bucket's URL");
    let told = |error| {
        let text = chain(&error).to_string();
        assert!(!text.contains("hidden"), "a secret is shown: {text}");
        text
    };
    let store = Store::open(&url, &access, RetryPolicy::brisk(2)).map_err(told)?;
    assert!(!format!("{access:?} {store:?}").contains("hidden"));
    match store.list(None) {
        Ok(_) => Ok(store),
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::NotFound);
            Err(told(error))
        }
    }
}

/// Credentials as AWS's services give them.
fn aws(key: &str, minutes: i64) -> Reply {
    let until = (chrono::Utc::now() + chrono::Duration::minutes(minutes)).to_rfc3339();
    let text = format!(
        "{{\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"LastUpdated\":\"{until}\",\"AccessKeyId\":\"{key}\",\
         \"SecretAccessKey\":\"hidden\",\"Token\":\"hidden token\",\"Expiration\":\"{until}\"}}"
    );
    Reply::new(200, text)
}

#[test]
fn keys_of_the_environment_of_files_and_of_a_profile_enter() {
    let server = ObjectServer::start(Dialect::S3);
    let place = Scratch::new();
    let keys = |id: &str| [("AWS_ACCESS_KEY_ID", id.to_owned()), ("AWS_SECRET_ACCESS_KEY", "hidden".to_owned())];
    enter(&server, "AKENV", &keys("AKENV")).expect("keys in the environment");

    let file = |name: &str, text: &str| {
        fs::write(place.join(name), text).expect("a directory of ours");
        place.join(name)
    };
    let (id, secret) = (file("id", "AKFILE\n"), file("secret", "hidden\n"));
    let files = S3Access { access_key_id_file: Some(id), secret_access_key_file: Some(secret), ..S3Access::default() };
    let both = enter_with(&server, "AKFILE", files.clone(), GcsAccess::default(), &keys("AKENV"));
    both.expect("files go before the environment");
    fs::write(place.join("secret"), "").expect("a directory of ours");
    let refused = enter_with(&server, "AKFILE", files, GcsAccess::default(), &[]).expect_err("an empty file");
    assert!(refused.contains("secret") && refused.contains("it is empty"), "{refused}");

    let shared = file(
        "credentials",
        "[backup]\naws_access_key_id = AKPROFILE\naws_secret_access_key = hidden\n[person]\nsso_session = x\n",
    );
    let shared = ("AWS_SHARED_CREDENTIALS_FILE", shared.display().to_string());
    let named = ("AWS_PROFILE", "backup".to_owned());
    enter(&server, "AKPROFILE", &[shared.clone(), named]).expect("a profile with keys");
    let person = ("AWS_PROFILE", "person".to_owned());
    let refused = enter(&server, "AKPROFILE", &[shared, person]).expect_err("single sign-on is for people");
    assert!(refused.contains("sso_session"), "{refused}");
}

#[test]
fn the_metadata_service_of_an_instance_is_asked_in_its_second_version() {
    let server = ObjectServer::start(Dialect::S3);
    let service = Service::start(|request| match (request.method.as_str(), request.path.as_str()) {
        ("PUT", "/latest/api/token") => Reply::new(200, "session"),
        ("GET", _) if request.header("x-aws-ec2-metadata-token") != Some("session") => Reply::new(401, ""),
        ("GET", "/latest/meta-data/iam/security-credentials/") => Reply::new(200, "role"),
        ("GET", "/latest/meta-data/iam/security-credentials/role") => aws("AKINSTANCE", 60),
        _ => Reply::new(404, ""),
    });
    let at = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.server.url())];
    let store = enter(&server, "AKINSTANCE", &at).expect("an instance's role");
    store.list(None).expect("the same credentials");
    assert_eq!(service.asked().len(), 3, "they are kept while they last");
    assert_eq!(store.traffic().for_credentials, 3);
}

#[test]
fn credentials_that_end_soon_are_fetched_anew() {
    let server = ObjectServer::start(Dialect::S3);
    let service = Service::start(|request| match request.path.as_str() {
        "/latest/api/token" => Reply::new(200, "session"),
        "/latest/meta-data/iam/security-credentials/" => Reply::new(200, "role"),
        _ => aws("AKSHORT", 0),
    });
    let at = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.server.url())];
    let store = enter(&server, "AKSHORT", &at).expect("an instance's role");
    let before = service.asked().len();
    std::thread::sleep(std::time::Duration::from_millis(200));
    store.list(None).expect("new credentials");
    assert!(service.asked().len() > before);
}

#[test]
fn a_pods_identity_enters() {
    let server = ObjectServer::start(Dialect::S3);
    let place = Scratch::new();
    fs::write(place.join("token"), "hidden pod token").expect("a directory of ours");
    let token = place.join("token").display().to_string();
    let service = Service::start(|request| match request.header("authorization") {
        Some("hidden pod token") => aws("AKPOD", 60),
        _ => Reply::new(403, ""),
    });
    let pod = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/v1/credentials", service.server.url())),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.clone()),
    ];
    enter(&server, "AKPOD", &pod).expect("a pod's identity");

    fs::write(place.join("token"), "hidden wrong token").expect("a directory of ours");
    let refused = enter(&server, "AKPOD", &pod).expect_err("another pod");
    assert!(refused.contains("credentials were refused: 403"), "{refused}");
}

#[test]
fn googles_metadata_server_and_a_key_file_enter() {
    let server = ObjectServer::start(Dialect::Gcs);
    let service = Service::start(|request| match request.header("metadata-flavor") {
        Some("Google") => {
            Reply::new(200, "{\"access_token\":\"hidden-bearer\",\"expires_in\":3600,\"token_type\":\"Bearer\"}")
        }
        _ => Reply::new(403, ""),
    });
    server.only("hidden-bearer");
    let on_google = Walvault::bare()
        .repository(server.repository())
        .cluster("main")
        .env("WALVAULT_GCS_ENDPOINT", server.url())
        .env("GCE_METADATA_HOST", format!("127.0.0.1:{}", service.server.port()));
    on_google.run(["init"]).expect_ok();
    assert_eq!(service.asked().len(), 1, "a token is kept while it lasts");

    server.only("another");
    let refused = on_google.run(["wal", "list"]);
    assert!(refused.stderr.contains("401") && !refused.stderr.contains("hidden"), "{}", refused.story());

    let place = Scratch::new();
    let missing = GcsAccess { credentials_file: Some(place.join("nothing")), ..GcsAccess::default() };
    let refused = enter_with(&server, "any", S3Access::default(), missing, &[]).expect_err("no file");
    assert!(refused.contains("nothing"), "{refused}");
}

#[test]
fn a_web_identity_is_exchanged_for_credentials() {
    let server = ObjectServer::start(Dialect::S3);
    let place = Scratch::new();
    fs::write(place.join("token"), "hidden-identity").expect("a directory of ours");
    let until = (chrono::Utc::now() + chrono::Duration::minutes(60)).to_rfc3339();
    let granted = format!(
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
         <SessionToken>hidden</SessionToken><SecretAccessKey>hidden</SecretAccessKey><Expiration>{until}</Expiration>\
         <AccessKeyId>AKWEB</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResponse>"
    );
    let sts = HttpServer::start_tls(move |request| {
        let all = format!("{:?} {}", request.query, String::from_utf8_lossy(&request.body));
        let right = all.contains("hidden-identity") && all.contains("arn:aws:iam::1:role/backup");
        if right { Reply::new(200, granted.clone()) } else { Reply::new(403, "") }
    });
    server.only("AKWEB");
    let walvault = Walvault::bare()
        .repository(server.repository())
        .cluster("main")
        .env("WALVAULT_S3_ENDPOINT", server.url())
        .env("WALVAULT_CA_FILE", HttpServer::ca_file())
        .env("AWS_ROLE_ARN", "arn:aws:iam::1:role/backup")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", place.join("token"))
        .env("AWS_ENDPOINT_URL_STS", sts.url());
    walvault.run(["init"]).expect_ok();
}

#[test]
fn a_tasks_role_on_ecs_enters() {
    let server = ObjectServer::start(Dialect::S3);
    server.only("AKTASK");
    // The address of the service is fixed; only a proxy brings it here.
    let service = Service::start(|request| match (request.header("host"), request.by_proxy) {
        (Some("169.254.170.2"), true) if request.path == "/v2/credentials/the-task" => aws("AKTASK", 60),
        _ => Reply::new(404, ""),
    });
    let task = Walvault::bare()
        .repository(server.repository())
        .cluster("main")
        .env("WALVAULT_S3_ENDPOINT", server.url())
        .env("HTTP_PROXY", service.server.url())
        .env("NO_PROXY", "127.0.0.1")
        .env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/the-task");
    task.run(["init"]).expect_ok();
    assert_eq!(service.asked().len(), 1, "they are kept while they last");
    task.env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/another").run(["list"]).expect_code(1);
}

#[test]
fn a_request_that_is_not_signed_with_the_secret_is_refused_and_so_is_one_that_was_changed() {
    let server = ObjectServer::start(Dialect::S3);
    let keys = [("AWS_ACCESS_KEY_ID", "AKENV".to_owned()), ("AWS_SECRET_ACCESS_KEY", "hidden".to_owned())];
    server.only_signed_with("hidden");
    enter(&server, "AKENV", &keys).expect("the secret");
    server.only_signed_with("another");
    let refused = enter(&server, "AKENV", &keys).expect_err("not the secret");
    assert!(refused.contains("SignatureDoesNotMatch"), "{refused}");

    // The example of the S3 API reference: "GET Object" under "Authenticating Requests".
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let example = Request {
        method: "GET".to_owned(),
        path: "/test.txt".to_owned(),
        headers: vec![
            header("host", "examplebucket.s3.amazonaws.com"),
            header("range", "bytes=0-9"),
            header("x-amz-content-sha256", empty),
            header("x-amz-date", "20130524T000000Z"),
            header(
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
                 SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
                 Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
        ],
        ..Request::default()
    };
    let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    assert!(is_signed_with(&example, secret) && !is_signed_with(&example, "another"));
    for (place, value) in [(0, "other.s3.amazonaws.com"), (1, "bytes=0-8"), (3, "20130524T000001Z")] {
        let mut changed = example.clone();
        changed.headers[place].1 = value.to_owned();
        assert!(!is_signed_with(&changed, secret), "{value}");
    }
    assert!(!is_signed_with(&Request { path: "/test.tx".to_owned(), ..example.clone() }, secret));
    assert!(!is_signed_with(&Request { query: vec![header("acl", "")], ..example }, secret));
}

const ACCOUNT: &str = "walvault@project.iam.gserviceaccount.com";

fn key_of(name: &str) -> String {
    format!("{}/fixtures/gcs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A key file as Google's console hands it out.
fn key_file(place: &Scratch, email: &str, key: &str) -> std::path::PathBuf {
    let private_key = fs::read_to_string(key_of(key)).expect("a fixture");
    let text = serde_json::json!({
        "type": "service_account", "project_id": "project", "private_key_id": "1f", "private_key": private_key,
        "client_email": email, "client_id": "1", "token_uri": "https://oauth2.googleapis.com/token",
    });
    let file = place.join(&format!("{email}-{key}.json"));
    fs::write(&file, text.to_string()).expect("a directory of ours");
    file
}

#[test]
fn a_service_account_enters_with_a_token_that_its_own_key_signed() {
    let server = ObjectServer::start(Dialect::Gcs);
    server.only_account(ACCOUNT, &fs::read(key_of("account.pub")).expect("a fixture"));
    let place = Scratch::new();
    let enters = |email: &str, key: &str| {
        let gcs = GcsAccess { credentials_file: Some(key_file(&place, email, key)), ..GcsAccess::default() };
        enter_with(&server, "any", S3Access::default(), gcs, &[])
    };
    let store = enters(ACCOUNT, "account.key").expect("its own key");
    assert_eq!(store.traffic().for_credentials, 0, "no service is asked");
    for (email, key, wrong) in [
        (ACCOUNT, "stranger.key", "the signature is wrong"),
        ("another@project.iam.gserviceaccount.com", "account.key", "another account's"),
    ] {
        let refused = enters(email, key).expect_err("somebody else");
        assert!(refused.contains(wrong) && !refused.contains("PRIVATE KEY"), "{refused}");
    }
    // As every tool of Google's finds it.
    let named = [("GOOGLE_APPLICATION_CREDENTIALS", key_file(&place, ACCOUNT, "account.key").display().to_string())];
    enter(&server, "any", &named).expect("the variable");
    fs::write(place.join("half.json"), "{\"client_email\": \"x\"}").expect("a directory of ours");
    let half = GcsAccess { credentials_file: Some(place.join("half.json")), ..GcsAccess::default() };
    enter_with(&server, "any", S3Access::default(), half, &[]).expect_err("no key in it");
}

#[test]
fn a_persons_refresh_token_is_exchanged_with_google() {
    let server = ObjectServer::start(Dialect::Gcs);
    server.only("hidden-bearer");
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let noted = Arc::clone(&asked);
    let google = HttpServer::start_proxy("accounts.google.com", "gcs/accounts", move |request| {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let has = |pair: &str| form.split('&').any(|found| found == pair);
        let fields = ["grant_type=refresh_token", "client_id=the-id", "client_secret=hidden-client"];
        let right = fields.into_iter().chain(["refresh_token=hidden-refresh"]).all(has);
        noted.lock().expect("no test panics in here").push(format!("{} {}", request.method, request.path));
        match right {
            true => {
                Reply::new(200, "{\"access_token\":\"hidden-bearer\",\"expires_in\":3600,\"token_type\":\"Bearer\"}")
            }
            false => Reply::new(400, "{\"error\":\"invalid_grant\"}"),
        }
    });
    let place = Scratch::new();
    let with = |refresh: &str| {
        let text = serde_json::json!({
            "type": "authorized_user", "client_id": "the-id", "client_secret": "hidden-client", "refresh_token": refresh,
        });
        fs::write(place.join("person.json"), text.to_string()).expect("a directory of ours");
        Walvault::bare()
            .repository(server.repository())
            .cluster("main")
            .env("WALVAULT_GCS_ENDPOINT", server.url())
            .env("WALVAULT_CA_FILE", key_of("ca.pem"))
            .env("HTTPS_PROXY", format!("http://127.0.0.1:{}", google.port()))
            .env("GOOGLE_APPLICATION_CREDENTIALS", place.join("person.json"))
    };
    with("hidden-refresh").run(["init"]).expect_ok();
    assert_eq!(*asked.lock().expect("no test panics in here"), ["POST /o/oauth2/token"], "kept while it lasts");
    let refused = with("hidden-wrong").run(["list"]).expect_code(1);
    assert!(refused.stderr.contains("400") && !refused.stderr.contains("hidden"), "{}", refused.story());
}

#[test]
fn the_tests_server_takes_no_token_that_google_would_refuse() {
    let public = fs::read(key_of("account.pub")).expect("a fixture");
    let now = 1_800_000_000;
    let scope = "https://www.googleapis.com/auth/cloud-platform";
    let header = serde_json::json!({"alg": "RS256", "typ": "JWT", "kid": "1f"});
    let claims =
        serde_json::json!({"iss": ACCOUNT, "sub": ACCOUNT, "scope": scope, "iat": now - 10, "exp": now + 3590});
    let judge = |header: &serde_json::Value, claims: &serde_json::Value| {
        judge_token(&signed_token(header, claims), ACCOUNT, &public, now)
    };
    assert_eq!(judge(&header, &claims), Ok(()));
    let with = |name: &str, value: serde_json::Value| {
        let mut changed = claims.clone();
        changed[name] = value;
        changed
    };
    let read_only = "https://www.googleapis.com/auth/devstorage.read_only";
    for (name, value, wrong) in [
        ("iss", "another".into(), "another account's"),
        ("scope", read_only.into(), "not for storage"),
        ("scope", serde_json::Value::Null, "not for storage"),
        ("iat", (now + 600).into(), "not issued yet"),
        ("exp", (now - 1).into(), "expired, or for more than an hour"),
        ("exp", (now + 7200).into(), "expired, or for more than an hour"),
        ("exp", serde_json::Value::Null, "without its times"),
    ] {
        assert_eq!(judge(&header, &with(name, value)), Err(wrong), "{name}");
    }
    let mut for_storage = with("scope", serde_json::Value::Null);
    for_storage["aud"] = "https://storage.googleapis.com/".into();
    assert_eq!(judge(&header, &for_storage), Ok(()), "an audience instead of a scope");
    let none = serde_json::json!({"alg": "none", "typ": "JWT", "kid": "1f"});
    assert_eq!(judge(&none, &claims), Err("not the header of such a token"));
    let token = signed_token(&header, &claims);
    let (message, signature) = token.rsplit_once('.').expect("three parts");
    let other = to_base64url(with("exp", (now + 3000).into()).to_string().as_bytes());
    let changed = format!("{}.{other}.{signature}", message.split_once('.').expect("three parts").0);
    assert_eq!(judge_token(&changed, ACCOUNT, &public, now), Err("the signature is wrong"));
}

/// A token as a service account signs it.
fn signed_token(header: &serde_json::Value, claims: &serde_json::Value) -> String {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    let key = PrivateKeyDer::from_pem_file(key_of("account.key")).expect("a fixture");
    let key = rustls::crypto::ring::sign::any_supported_type(&key).expect("an RSA key");
    let signer = key.choose_scheme(&[rustls::SignatureScheme::RSA_PKCS1_SHA256]).expect("RS256");
    let message = [header, claims].map(|part| to_base64url(part.to_string().as_bytes())).join(".");
    let signature = signer.sign(message.as_bytes()).expect("a signature");
    format!("{message}.{}", to_base64url(&signature))
}
