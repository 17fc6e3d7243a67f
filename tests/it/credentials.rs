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
