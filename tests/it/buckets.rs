//! Buckets of S3 and Google Cloud Storage as stores: what they promise, and what is made of every wrong answer.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use ::walvault::error::{ErrorKind, chain};
use ::walvault::store::{
    Access, Addressing, Created, GcsAccess, Key, Network, RetryPolicy, S3Access, Store, StoreError, conformance,
};
use bytes::Bytes;

use crate::support::http_server::HttpServer;
use crate::support::object_server::{Dialect, ObjectServer, Wrong};

const BOTH: [Dialect; 2] = [Dialect::S3, Dialect::Gcs];

/// Everything that is needed to enter a bucket of `server`.
fn access(server: &ObjectServer) -> Access {
    let keys =
        [("AWS_ACCESS_KEY_ID", "AKTEST"), ("AWS_SECRET_ACCESS_KEY", "the secret"), ("STORAGE_EMULATOR_HOST", "here")];
    Access {
        s3: S3Access { endpoint: Some(server.url()), ..S3Access::default() },
        gcs: GcsAccess { endpoint: Some(server.url()), ..GcsAccess::default() },
        network: Network::default(),
        environment: keys.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    }
}

fn open(server: &ObjectServer, policy: RetryPolicy) -> Store {
    open_with(server, &access(server), policy)
}

fn open_with(server: &ObjectServer, access: &Access, policy: RetryPolicy) -> Store {
    let url = server.repository().parse().expect("a bucket's URL");
    Store::open(&url, access, policy).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn key(text: &str) -> Key {
    text.parse().expect("a key")
}

fn body(text: &'static str) -> Vec<Bytes> {
    vec![Bytes::from(text)]
}

fn told(error: &StoreError) -> String {
    chain(error).to_string()
}

fn expect_conformance(store: &Store) {
    if let Err(violation) = conformance::check(store, &key("suite")) {
        panic!("{}", chain(&violation));
    }
}

#[test]
fn a_server_that_speaks_no_tls_is_told_from_one_that_is_away() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it listens").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
            // Until the client has gone, so that it does read the answer.
            let _ = io::copy(&mut stream, &mut io::sink());
        }
    });
    let server = ObjectServer::start(Dialect::S3);
    let mut access = access(&server);
    access.s3.endpoint = Some(format!("https://127.0.0.1:{port}"));
    let error = open_with(&server, &access, RetryPolicy::brisk(1)).get(&key("a")).expect_err("no TLS there");
    assert!(told(&error).contains("An endpoint without it begins with http://"), "{}", told(&error));
}

#[test]
fn a_bucket_keeps_every_rule_of_a_store() {
    for dialect in BOTH {
        let server = ObjectServer::start(dialect);
        expect_conformance(&open(&server, RetryPolicy::default()));
        assert!(server.keys().iter().all(|key| key.starts_with("pg/suite/")), "{dialect:?}");
    }
}

#[test]
fn listings_are_complete_however_short_their_pages() {
    for dialect in BOTH {
        for page in 1..=3 {
            let server = ObjectServer::start(dialect).paging(page);
            let store = open(&server, RetryPolicy::default());
            let checked = conformance::listings_are_sorted_and_complete(&store, &key("listing"), 20);
            checked.unwrap_or_else(|violation| panic!("pages of {page}: {}", chain(&violation)));
        }
    }
}

#[test]
fn a_page_that_others_follow_is_not_the_last_though_nobody_says_how_to_go_on() {
    for dialect in BOTH {
        let server = ObjectServer::start(dialect).paging(2);
        let store = open(&server, RetryPolicy::brisk(2));
        for name in ["a", "b", "c"] {
            assert_eq!(store.create(&key(name), body("x")).expect("a free name"), Created::New);
        }
        server.go_wrong("GET", "list-type", u64::MAX, Wrong::NoToken);
        for listed in [store.list(None).map(|found| found.len()), store.list_children(None).map(|_| 0)] {
            let error = listed.expect_err("one is missing");
            assert!(told(&error).contains("NextContinuationToken"), "{dialect:?}: {}", told(&error));
        }
        server.heal();
        assert_eq!(store.list(None).expect("whole").len(), 3);
    }
}

#[test]
fn of_many_writers_of_many_names_one_each_wins() {
    for dialect in BOTH {
        let server = ObjectServer::start(dialect);
        let store = open(&server, RetryPolicy::default());
        for name in 0..8 {
            let checked = conformance::one_of_many_creators_wins(&store, &key(&format!("race/{name}")), 32);
            checked.unwrap_or_else(|violation| panic!("{dialect:?}: {}", chain(&violation)));
        }
    }
}

#[test]
fn a_server_that_ignores_conditions_keeps_every_rule_by_contents() {
    for dialect in BOTH {
        let server = ObjectServer::start(dialect).ignoring_conditions().paging(100);
        let store = open(&server, RetryPolicy::default()).by_contents();
        expect_conformance(&store);
        for name in 0..8 {
            let checked = conformance::one_of_many_creators_wins(&store, &key(&format!("race/{name}")), 32);
            checked.unwrap_or_else(|violation| panic!("{dialect:?}: {}", chain(&violation)));
        }
    }
}

#[test]
fn a_thousand_deletes_are_one_request_to_s3() {
    let server = ObjectServer::start(Dialect::S3);
    let keys: Vec<Key> = (0..1001).map(|n| key(&format!("many/{n}"))).collect();
    keys.iter().for_each(|key| server.put(&format!("pg/{key}"), b"x"));
    let store = open(&server, RetryPolicy::brisk(3));
    server.go_wrong("POST", "delete", 1, Wrong::Inside("SlowDown"));
    store.delete_all(&keys).unwrap_or_else(|error| panic!("{}", told(&error)));
    assert_eq!(server.keys(), Vec::<String>::new());
    // Two, and both again; the second is left out the first time if the first's answer comes before it was sent.
    let made = server.take_noted().len();
    assert!((3..=4).contains(&made), "{made} requests");
}

#[test]
fn a_server_that_ignores_conditions_is_found_out() {
    for dialect in BOTH {
        let server = ObjectServer::start(dialect).ignoring_conditions();
        let broken = conformance::check(&open(&server, RetryPolicy::default()), &key("suite"));
        let broken = broken.expect_err("it overwrites").to_string();
        assert!(broken.contains("a create never overwrites"), "{broken}");
    }
}

/// A question whose answer is whether something is there.
type Ask = &'static dyn Fn(&Store) -> Result<bool, StoreError>;

#[test]
fn absence_is_what_the_store_itself_says_of_the_key_and_nothing_else() {
    let asked: [(&str, Ask); 5] = [
        ("GET", &|store| Ok(store.get(&key("gone"))?.is_none())),
        ("GET", &|store| Ok(store.get_range(&key("gone"), 0..1)?.is_none())),
        ("HEAD", &|store| Ok(store.head(&key("gone"))?.is_none())),
        ("GET", &|store| Ok(store.list(Some(&key("gone")))?.is_empty())),
        ("GET", &|store| Ok(store.list_children(None)?.folders.is_empty())),
    ];
    for dialect in BOTH {
        let server = ObjectServer::start(dialect);
        let store = open(&server, RetryPolicy::brisk(2));
        for (method, ask) in asked {
            assert!(ask(&store).unwrap_or_else(|error| panic!("{}", told(&error))), "{dialect:?} {method}");
        }
        for wrong in [
            Wrong::Refuse(404, "NoSuchBucket"),
            Wrong::Refuse(404, ""),
            Wrong::Refuse(403, "AccessDenied"),
            Wrong::Refuse(500, "InternalError"),
            Wrong::Refuse(503, "SlowDown"),
            Wrong::Refuse(301, "PermanentRedirect"),
            Wrong::ForeignPage(404),
            Wrong::Cut(0),
            Wrong::LoseReply,
        ] {
            for (method, ask) in asked {
                server.go_wrong("GET", "", u64::MAX, wrong.clone());
                assert!(ask(&store).is_err(), "{dialect:?} {method} {wrong:?} was taken for absence");
                server.heal();
            }
        }
        // Inside a page of a listing, where an object's own bytes cannot be meant.
        for wrong in [Wrong::Inside("InternalError"), Wrong::ForeignPage(200), Wrong::Cut(60)] {
            server.go_wrong("GET", "list-type", u64::MAX, wrong.clone());
            assert!(store.list(None).is_err(), "{dialect:?} {wrong:?}");
            assert!(store.list_children(None).is_err(), "{dialect:?} {wrong:?}");
            server.heal();
        }
    }
}

#[test]
fn a_lost_reply_becomes_existing_with_our_own_bytes() {
    for dialect in BOTH {
        let server = ObjectServer::start(dialect);
        let store = open(&server, RetryPolicy::brisk(5));
        server.go_wrong("PUT", "", 1, Wrong::LoseReply);
        assert_eq!(store.create(&key("a"), body("ours")).expect("the second attempt"), Created::Existing);
        assert_eq!(store.get(&key("a")).expect("stored"), Some(Bytes::from("ours")));
        assert_eq!(store.traffic().requests, 3);
    }
}

#[test]
fn what_may_pass_is_tried_again_and_nothing_else() {
    let passing = [
        Wrong::Refuse(409, "ConditionalRequestConflict"),
        Wrong::Refuse(429, "TooManyRequests"),
        Wrong::Refuse(500, "InternalError"),
        Wrong::Refuse(502, ""),
        Wrong::Refuse(503, "SlowDown"),
        Wrong::Refuse(400, "RequestTimeout"),
        Wrong::Inside("InternalError"),
        Wrong::Inside("SlowDown"),
    ];
    let lasting = [
        (Wrong::Refuse(403, "AccessDenied"), ErrorKind::Denied),
        (Wrong::Refuse(404, "NoSuchBucket"), ErrorKind::Invalid),
        (Wrong::Refuse(507, "XMinioStorageFull"), ErrorKind::Full),
        (Wrong::Refuse(400, "AuthorizationHeaderMalformed"), ErrorKind::Invalid),
        (Wrong::Refuse(400, "ExpiredToken"), ErrorKind::Denied),
    ];
    for dialect in BOTH {
        let server = ObjectServer::start(dialect);
        let store = open(&server, RetryPolicy::brisk(5));
        for (n, wrong) in passing.iter().enumerate() {
            let key = key(&format!("passing/{n}"));
            server.go_wrong("PUT", "", 2, wrong.clone());
            let created = store.create(&key, body("x")).unwrap_or_else(|error| panic!("{wrong:?}: {}", told(&error)));
            assert_eq!(created, Created::New, "{dialect:?} {wrong:?}");
        }
        for (wrong, kind) in &lasting {
            server.go_wrong("PUT", "", u64::MAX, wrong.clone());
            let error = store.create(&key("lasting"), body("x")).expect_err("it lasts");
            assert_eq!((error.kind(), error.attempts()), (*kind, 1), "{dialect:?} {wrong:?}: {}", told(&error));
            server.heal();
        }
    }
}

#[test]
fn a_body_that_breaks_off_is_read_again_and_never_handed_out_short() {
    for dialect in BOTH {
        let server = ObjectServer::start(dialect);
        let store = open(&server, RetryPolicy::brisk(3));
        store.create(&key("a"), body("one two three")).expect("a free name");
        server.go_wrong("GET", "", 2, Wrong::Cut(5));
        assert_eq!(store.get(&key("a")).expect("the third attempt"), Some(Bytes::from("one two three")));
        server.go_wrong("GET", "", u64::MAX, Wrong::Cut(2));
        let error = store.get_range(&key("a"), 4..9).expect_err("always cut");
        assert_eq!((error.kind(), error.attempts()), (ErrorKind::Unavailable, 3), "{}", told(&error));
    }
}

#[test]
fn a_server_that_hangs_costs_the_budget_and_no_more() {
    let policy = RetryPolicy { attempt: Duration::from_millis(200), ..RetryPolicy::brisk(2) };
    for dialect in BOTH {
        let server = ObjectServer::start(dialect);
        let store = open(&server, policy.clone());
        server.go_wrong("GET", "", u64::MAX, Wrong::Hang);
        assert_eq!(store.get(&key("a")).expect_err("no answer").kind(), ErrorKind::Unavailable);
    }
}

#[test]
fn every_failure_says_what_failed_where_and_why() {
    let server = ObjectServer::start(Dialect::S3);
    let told_of = |access: &Access, url: &str| {
        let store = Store::open(&url.parse().expect("a URL"), access, RetryPolicy::brisk(1))?;
        store.get(&key("main/repository.json")).map(|_| ())
    };
    let refused = |access: &Access, url: &str| {
        let error = told_of(access, url).expect_err("it cannot work");
        let text = told(&error);
        assert!(!text.contains("the secret"), "{text}");
        text
    };
    let plain = access(&server);
    let text = refused(&plain, "s3://another/pg");
    assert!(text.contains("there is no bucket another") && text.contains("main/repository.json"), "{text}");

    server.set_clock_ahead(3600);
    let text = refused(&plain, "s3://bucket/pg");
    assert!(text.contains("clock"), "{text}");
    server.set_clock_ahead(0);

    server.only("OTHER");
    let text = refused(&plain, "s3://bucket/pg");
    assert!(text.contains("403 InvalidAccessKeyId"), "{text}");

    let closed = S3Access { endpoint: Some("http://127.0.0.1:1".to_owned()), ..S3Access::default() };
    let text = refused(&Access { s3: closed, ..plain.clone() }, "s3://bucket/pg");
    assert!(text.contains("127.0.0.1:1: ") && text.contains("refused"), "{text}");

    let nonsense = S3Access { endpoint: Some("127.0.0.1".to_owned()), ..S3Access::default() };
    let text = refused(&Access { s3: nonsense, ..plain.clone() }, "s3://bucket/pg");
    assert!(text.contains("no URL"), "{text}");

    let nobody = Access { environment: BTreeMap::from([no_metadata()]), ..plain };
    let text = refused(&nobody, "s3://bucket/pg");
    assert!(text.contains("no credentials"), "{text}");
}

fn no_metadata() -> (String, String) {
    ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned())
}

#[test]
fn a_private_authority_is_trusted_when_it_is_named_and_only_then() {
    for dialect in BOTH {
        let server = ObjectServer::start_tls(dialect);
        let plain = access(&server);
        let ca_file = Some(HttpServer::ca_file().into());
        let trusting = Access { network: Network { ca_file, ..Network::default() }, ..plain.clone() };
        let store = open_with(&server, &trusting, RetryPolicy::brisk(1));
        assert_eq!(store.create(&key("a"), body("x")).expect("trusted"), Created::New);
        let error = open_with(&server, &plain, RetryPolicy::brisk(3)).get(&key("a")).expect_err("not trusted");
        assert_eq!((error.kind(), error.attempts()), (ErrorKind::Invalid, 1), "{}", told(&error));
        assert!(told(&error).contains("ca_file"), "{}", told(&error));
    }
}

#[test]
fn a_bucket_in_the_hosts_name_and_a_proxy_work() {
    let server = ObjectServer::start(Dialect::S3);
    let mut access = access(&server);
    access.s3.endpoint = Some("http://s3.test".to_owned());
    access.s3.addressing = Addressing::VirtualHost;
    access.network.proxy = Some(server.url());
    let store = open_with(&server, &access, RetryPolicy::brisk(1));
    store.create(&key("a"), body("x")).unwrap_or_else(|error| panic!("{}", told(&error)));
    assert_eq!(store.list(None).expect("a listing").len(), 1);
    let noted = server.take_noted();
    assert!(noted.iter().all(|request| request.by_proxy && request.host == "bucket.s3.test"), "{noted:?}");
}

#[test]
fn region_and_storage_class_reach_the_server() {
    for dialect in BOTH {
        let server = ObjectServer::start(dialect);
        let mut access = access(&server);
        access.s3.region = Some("eu-north-1".to_owned());
        access.s3.storage_class = Some("COLD".to_owned());
        access.gcs.storage_class = Some("COLD".to_owned());
        open_with(&server, &access, RetryPolicy::brisk(1)).create(&key("a"), body("x")).expect("a free name");
        let noted = server.take_noted();
        let headers = format!("{:?}", noted[0].headers);
        assert!(headers.contains("COLD"), "{headers}");
        assert!(dialect == Dialect::Gcs || headers.contains("/eu-north-1/s3/aws4_request"), "{headers}");
    }
}

#[test]
fn threads_share_one_store_without_waiting_for_each_other() {
    let server = ObjectServer::start(Dialect::S3);
    let store = open(&server, RetryPolicy::default());
    thread::scope(|scope| {
        for n in 0..8 {
            let store = &store;
            scope.spawn(move || {
                let name = key(&format!("many/{n}"));
                assert_eq!(store.create(&name, vec![Bytes::from(vec![n; 3 << 20])]).expect("free"), Created::New);
                assert_eq!(store.get(&name).expect("stored").map(|body| body.len()), Some(3 << 20));
            });
        }
    });
    assert_eq!(store.traffic().requests, 16);
    assert!(store.traffic().sent >= 24 << 20 && store.traffic().received >= 24 << 20, "{:?}", store.traffic());
}
