//! The way from a segment to a restored server, through buckets instead of a directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use ::walvault::error::chain;
use ::walvault::store::{Access, RetryPolicy, S3Access, Store, conformance};

use crate::support::moto::Moto;
use crate::support::object_server::{Dialect, Noted, ObjectServer, Wrong};
use crate::support::process::Outcome;
use crate::support::scratch::Scratch;
use crate::support::site::backup_of;
use crate::support::{Ledger, Major, Restored, TestServer, Walvault, within};

/// A repository in a bucket, and what enters it.
struct Place {
    repository: String,
    environment: [(&'static str, String); 5],
}

impl Place {
    fn at(repository: String, endpoint: String) -> Self {
        let environment = [
            ("AWS_ACCESS_KEY_ID", "AKTEST".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "the secret".to_owned()),
            ("STORAGE_EMULATOR_HOST", "here".to_owned()),
            ("WALVAULT_S3_ENDPOINT", endpoint.clone()),
            ("WALVAULT_GCS_ENDPOINT", endpoint),
        ];
        Self { repository, environment }
    }

    fn of(server: &ObjectServer) -> Self {
        Self::at(server.repository(), server.url())
    }

    fn walvault(&self) -> Walvault {
        let bare = Walvault::bare().repository(&self.repository).cluster("main");
        self.environment.iter().fold(bare, |walvault, (name, value)| walvault.env(name, value))
    }

    fn enter(&self, server: &mut TestServer) {
        self.environment.iter().for_each(|(name, value)| server.set_env(name, value));
    }
}

fn walvault(server: &ObjectServer) -> Walvault {
    Place::of(server).walvault()
}

/// Starts a server that archives into the bucket.
fn archiving(place: &Place, major: Major) -> TestServer {
    let command = place.walvault().archive_command();
    let mut server = TestServer::builder(major).segment_mib(1).archive_command(command).create();
    place.enter(&mut server);
    server.start();
    server
}

/// Archives, backs up, restores to the last moment, and finds every row; then another backup takes the first one's place.
fn comes_back(place: &Place, major: Major) -> String {
    let walvault = place.walvault();
    walvault.run(["init"]).expect_ok();
    let server = archiving(place, major);
    let mut ledger = Ledger::create(&server);
    ledger.commit(&server, 100);
    let backup = backup_of(&server, &walvault, &[]).expect_ok().json();
    ledger.commit(&server, 20);
    server.archive_all();
    walvault.run(["plan", "--to-latest"]).expect_ok();
    let words = ["--to-latest", "--as", "clone", "--target-action", "promote", "--hold-days", "0"];
    let mut restored = Restored::by(&walvault, major, &words);
    place.enter(&mut restored.server);
    restored.promoted();
    Ledger::expect_rows(&restored.server, ledger.last().rows);
    restored.expect_planned_end();
    replaced(&walvault, &server, backup["id"].as_str().expect("a name"))
}

/// Takes another backup, lets the first one expire, and returns the second one's name.
fn replaced(walvault: &Walvault, server: &TestServer, first: &str) -> String {
    let second = backup_of(server, walvault, &["--full"]).expect_ok().json()["id"].as_str().expect("a name").to_owned();
    let expiring = walvault.clone().env("WALVAULT_RETAIN_BACKUPS", "1").env("WALVAULT_EXPIRE_GRACE", "0");
    let done = expiring.run(["expire", "--json"]).expect_ok().json();
    let removed = &done["lanes"][0]["removed"];
    assert!(
        removed["objects"].as_u64() > Some(3) && removed["refused"].as_array().is_some_and(Vec::is_empty),
        "{done:#}"
    );
    // Gone for every reader, also where the bucket keeps versions: none of it is listed again, or to go again.
    let again = expiring.run(["expire", "--json"]).expect_ok().json();
    let objects = again["lanes"][0]["objects"].as_array().expect("an array").clone();
    let key = |object: &serde_json::Value| object["key"].as_str().expect("a key").to_owned();
    assert!(objects.iter().all(|object| key(object).contains("/leases/")), "{again:#}");
    let listed = walvault.run(["list", "--json"]).expect_ok().stdout;
    assert!(listed.contains(&second) && !listed.contains(first), "{listed}");
    let everything = expiring.run(["expire", "--dry-run", "--verbose"]).expect_ok().stdout;
    assert!(!everything.contains(&format!("/packs/{first}/")) && everything.contains(&format!("/packs/{second}/")));
    assert!(walvault.run(["verify", "--read"]).expect_ok().stdout.contains("every byte"));
    second
}

#[test]
fn a_server_comes_back_from_s3() {
    comes_back(&Place::of(&ObjectServer::start(Dialect::S3).paging(3)), Major::V17);
}

#[test]
fn a_server_comes_back_from_google_cloud_storage() {
    comes_back(&Place::of(&ObjectServer::start(Dialect::Gcs)), Major::V15);
}

#[test]
fn a_server_of_somebody_elses_making_keeps_every_rule_and_gives_a_server_back() {
    let moto = Moto::start();
    let url = format!("s3://{}/suite", moto.make_bucket());
    let place = Place::at(url.clone(), moto.url());
    let environment = place.environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let s3 = S3Access { endpoint: Some(moto.url()), ..S3Access::default() };
    let access = Access { s3, environment: environment.collect(), ..Access::default() };
    // What is right is asked here, and not how fast a server in Python is.
    let patient =
        RetryPolicy { attempt: Duration::from_secs(120), budget: Duration::from_secs(600), ..RetryPolicy::default() };
    let store = Store::open(&url.parse().expect("a URL"), &access, patient).expect("keys and an endpoint");
    for name in 0..8 {
        let key = format!("race/{name}").parse().expect("a key");
        conformance::one_of_many_creators_wins(&store, &key, 32).unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
    conformance::check(&store, &"rules".parse().expect("a key")).unwrap_or_else(|error| panic!("{}", chain(&error)));
    comes_back(&Place::at(format!("s3://{}", moto.make_versioned_bucket()), moto.url()), Major::V18);
}

/// Writes the bucket's objects as files, as a copy of it would lie on a volume.
fn download(bucket: &ObjectServer, root: &Path) {
    for (key, body) in bucket.objects() {
        let file = root.join(key.strip_prefix("pg/").expect("our folder"));
        fs::create_dir_all(file.parent().expect("a folder")).expect("a directory of ours");
        fs::write(&file, body).expect("a directory of ours");
    }
}

#[test]
fn a_server_comes_back_from_a_store_that_ignores_conditions_and_another_reader_understands_it() {
    let bucket = ObjectServer::start(Dialect::S3).ignoring_conditions();
    let said = walvault(&bucket).run(["init"]).expect_ok();
    assert!(said.stderr.contains("content-addressed"), "{}", said.story());
    assert_eq!(bucket.keys(), ["pg/main/repository.json"], "what the store was tried with is gone");
    let backup = comes_back(&Place::of(&bucket), Major::V17);
    let marked = |key: &String| key.ends_with("/repository.json") || key.contains("@/");
    assert!(bucket.keys().iter().all(marked), "{:?}", bucket.keys());

    let place = Scratch::new();
    download(&bucket, &place.create_dir("copy"));
    let reader = crate::reader::reader(&[&"restore", &place.join("copy"), &"main", &backup, &place.join("data")]);
    reader.expect_ok();
    assert!(place.join("data/PG_VERSION").exists());
}

#[test]
fn a_store_that_knows_no_conditions_is_used_by_contents() {
    for dialect in [Dialect::S3, Dialect::Gcs] {
        let bucket = ObjectServer::start(dialect).refusing_conditions();
        let said = walvault(&bucket).run(["init"]).expect_ok();
        assert!(said.stderr.contains("content-addressed"), "{}", said.story());
        assert_eq!(bucket.keys(), ["pg/main/repository.json"]);
        walvault(&bucket).run(["init"]).expect_ok();
        let server = TestServer::builder(Major::V15).segment_mib(1).start();
        let segment = server.switch_wal();
        push(&bucket, &server, &segment).expect_ok();
        push(&bucket, &server, &segment).expect_ok();
        let fetch = walvault(&bucket).in_directory(server.pgdata());
        fetch.run(["wal", "fetch", &segment, "pg_wal/again"]).expect_ok();
        let read = |name: &str| fs::read(server.pgdata().join("pg_wal").join(name)).expect("a segment");
        assert!(read("again") == read(&segment));
    }
}

/// Pushes one segment by hand; returns how it went.
fn push(bucket: &ObjectServer, server: &TestServer, segment: &str) -> Outcome {
    let path = server.pgdata().join("pg_wal").join(segment);
    walvault(bucket).in_directory(server.pgdata()).run([
        Path::new("wal").as_os_str(),
        "push".as_ref(),
        path.as_os_str(),
    ])
}

#[test]
fn a_push_is_right_whatever_its_replies_come_to() {
    for bucket in [
        ObjectServer::start(Dialect::S3),
        ObjectServer::start(Dialect::Gcs),
        ObjectServer::start(Dialect::S3).ignoring_conditions(),
    ] {
        walvault(&bucket).run(["init"]).expect_ok();
        let server = TestServer::builder(Major::V15).segment_mib(1).start();
        let segment = server.switch_wal();
        bucket.go_wrong("PUT", "/wal/", 1, Wrong::LoseReply);
        push(&bucket, &server, &segment).expect_ok();
        push(&bucket, &server, &segment).expect_ok();
        let segment = server.switch_wal();
        bucket.go_wrong("PUT", "/wal/", 2, Wrong::Refuse(503, "SlowDown"));
        push(&bucket, &server, &segment).expect_ok();
        let segment = server.switch_wal();
        bucket.go_wrong("PUT", "/wal/", 1, Wrong::Refuse(403, "AccessDenied"));
        let refused = push(&bucket, &server, &segment).expect_code(1);
        assert!(
            refused.stderr.contains("403 AccessDenied") && refused.stderr.contains(&segment),
            "{}",
            refused.story()
        );
        assert!(!refused.stderr.contains("the secret"));
        bucket.heal();
        push(&bucket, &server, &segment).expect_ok();
    }
}

#[test]
fn a_clock_that_is_an_hour_off_is_named_and_never_an_absence() {
    let bucket = ObjectServer::start(Dialect::S3);
    walvault(&bucket).run(["init"]).expect_ok();
    let server = TestServer::builder(Major::V15).segment_mib(1).start();
    let segment = server.switch_wal();
    bucket.set_clock_ahead(3600);
    let refused = push(&bucket, &server, &segment).expect_code(1);
    assert!(refused.stderr.contains("clock"), "{}", refused.story());
    bucket.set_clock_ahead(0);
    push(&bucket, &server, &segment).expect_ok();
    let fetch =
        || walvault(&bucket).in_directory(server.pgdata()).run(["wal", "fetch", &segment, "pg_wal/RECOVERYXLOG"]);
    bucket.set_clock_ahead(-3600);
    let refused = fetch();
    assert!(refused.code.is_some_and(|code| code > 125) && refused.stderr.contains("clock"), "{}", refused.story());
    bucket.set_clock_ahead(0);
    fetch().expect_ok();
}

#[test]
fn other_bytes_under_a_name_are_refused_and_kept_in_every_mode() {
    for bucket in [ObjectServer::start(Dialect::S3), ObjectServer::start(Dialect::S3).ignoring_conditions()] {
        walvault(&bucket).run(["init"]).expect_ok();
        let server = TestServer::builder(Major::V15).segment_mib(1).start();
        let segment = server.switch_wal();
        push(&bucket, &server, &segment).expect_ok();
        let stored = bucket.objects();
        let path = server.pgdata().join("pg_wal").join(&segment);
        let mut bytes = fs::read(&path).expect("a finished segment");
        *bytes.last_mut().expect("a segment") ^= 1;
        fs::write(&path, bytes).expect("a finished segment");
        push(&bucket, &server, &segment).expect_code(3);
        let after = bucket.objects();
        assert!(stored.iter().all(|(key, body)| after.get(key) == Some(body)), "something was changed");
        assert_eq!(after.keys().filter(|key| key.contains("/contested/")).count(), 1);
    }
}

/// What requests were for, by method and the last part of what was asked that is the same for all servers.
fn kinds(noted: &[Noted]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for request in noted {
        let part =
            ["repository.json", "lane.json", "/owners/", "/wal/"].into_iter().find(|part| request.key.contains(part));
        *kinds.entry(format!("{} {}", request.method, part.unwrap_or("listing"))).or_default() += 1;
    }
    kinds
}

#[test]
fn a_push_in_steady_state_is_one_request_where_a_host_can_remember() {
    for bucket in [ObjectServer::start(Dialect::S3), ObjectServer::start(Dialect::Gcs)] {
        walvault(&bucket).run(["init"]).expect_ok();
        let server = TestServer::builder(Major::V15).segment_mib(1).start();
        push(&bucket, &server, &server.switch_wal()).expect_ok();
        let made = |pushed: &dyn Fn(&str)| {
            let segment = server.switch_wal();
            bucket.take_noted();
            pushed(&segment);
            kinds(&bucket.take_noted())
        };
        let kinds_of = |kinds: &[&str]| kinds.iter().map(|kind| ((*kind).to_owned(), 1)).collect::<BTreeMap<_, _>>();
        let all = ["GET /owners/", "GET lane.json", "GET listing", "GET repository.json", "PUT /wal/"];
        // Without a place to remember in, each push asks for everything.
        for _ in 0..2 {
            assert_eq!(made(&|segment| drop(push(&bucket, &server, segment).expect_ok())), kinds_of(&all));
        }

        let place = Scratch::new();
        // The agent remembers without a directory.
        place.create_dir("run");
        let served = Place::of(&bucket).walvault().env("WALVAULT_RUNTIME_DIR", place.join("run"));
        // Nothing but what is asked for.
        let served = served.env("WALVAULT_LOOK_AHEAD", "0");
        let mut agent = served.start(["agent", "--verbose"]);
        within(
            Duration::from_secs(60),
            || place.join("run/main.sock").exists() || !agent.is_running(),
            "the agent listens",
        );
        let served = served.in_directory(server.pgdata());
        let by_agent = |segment: &str| {
            let told = served.run(["-v", "wal", "push", &format!("pg_wal/{segment}")]).expect_ok().stderr;
            assert_eq!(told, "walvault: no request of the store\n");
        };
        made(&by_agent);
        for _ in 0..2 {
            assert_eq!(made(&by_agent), kinds_of(&["PUT /wal/"]));
        }
        agent.signal(rustix::process::Signal::TERM);
        agent.wait(Duration::from_secs(60)).expect_ok();

        place.create_dir("state");
        let remembering = Place::of(&bucket).walvault().env("WALVAULT_STATE_DIR", place.join("state"));
        let call = |words: &[&str]| remembering.clone().in_directory(server.pgdata()).run(words);
        let by_itself = |segment: &str| drop(call(&["wal", "push", &format!("pg_wal/{segment}")]).expect_ok());
        // It is known by another token from now on, and says so once.
        assert_eq!(made(&by_itself)["PUT /owners/"], 1);
        for _ in 0..2 {
            assert_eq!(made(&by_itself), kinds_of(&["PUT /wal/"]));
        }
        let segment = server.switch_wal();
        let told = call(&["-v", "wal", "push", &format!("pg_wal/{segment}")]).expect_ok().stderr;
        let stored =
            bucket.objects().into_iter().find(|(key, _)| key.contains(&segment)).expect("it was pushed").1.len();
        assert_eq!(told, format!("walvault: 1 request: 1 create; 1 over HTTP, {stored} bytes sent, 0 received\n"));
    }
}

#[test]
fn what_is_pushed_into_a_repository_that_was_just_removed_is_found_again_and_soon_refused() {
    let bucket = ObjectServer::start(Dialect::S3);
    let place = Scratch::new();
    let state = place.create_dir("state");
    let server = TestServer::builder(Major::V15).segment_mib(1).start();
    let walvault = walvault(&bucket).env("WALVAULT_STATE_DIR", &state).in_directory(server.pgdata());
    let push = |segment: &str| walvault.run(["wal", "push", &format!("pg_wal/{segment}")]);
    walvault.run(["init"]).expect_ok();
    push(&server.switch_wal()).expect_ok();
    push(&server.switch_wal()).expect_ok();
    bucket.keys().iter().for_each(|key| bucket.remove(key));

    let (unknowing, refused) = (server.switch_wal(), server.switch_wal());
    push(&unknowing).expect_ok();
    // What is known ends with its time, or with its file.
    fs::remove_dir_all(&state).expect("ours");
    place.create_dir("state");
    let said = push(&refused).expect_code(78);
    assert!(said.stderr.contains("holds no repository for cluster main"), "{}", said.story());
    assert!(!bucket.keys().iter().any(|key| key.contains(&refused)), "{:?}", bucket.keys());
    walvault.run(["init"]).expect_ok();
    push(&refused).expect_ok();
    for segment in [&unknowing, &refused] {
        walvault.run(["wal", "fetch", segment, "pg_wal/again"]).expect_ok();
        let again = fs::read(server.pgdata().join("pg_wal/again")).expect("fetched");
        assert!(again == fs::read(server.pgdata().join("pg_wal").join(segment)).expect("a segment"), "{segment}");
    }
}

#[test]
fn a_host_that_makes_a_repository_again_forgets_the_one_that_was() {
    let bucket = ObjectServer::start(Dialect::S3);
    let place = Scratch::new();
    let state = place.create_dir("state");
    let server = TestServer::builder(Major::V15).segment_mib(1).start();
    let walvault = walvault(&bucket).env("WALVAULT_STATE_DIR", &state).in_directory(server.pgdata());
    let push = |segment: &str| walvault.run(["wal", "push", &format!("pg_wal/{segment}")]);
    walvault.run(["init"]).expect_ok();
    push(&server.switch_wal()).expect_ok();
    bucket.keys().iter().for_each(|key| bucket.remove(key));
    walvault.run(["init"]).expect_ok();
    push(&server.switch_wal()).expect_ok();
    for part in ["/lane.json", "/owners/00000001/1"] {
        assert!(bucket.keys().iter().any(|key| key.ends_with(part)), "{part}: {:?}", bucket.keys());
    }
    // A push that fails forgets as well: whatever it knew may be what is wrong.
    bucket.go_wrong("PUT", "/wal/", 1, Wrong::Refuse(403, "AccessDenied"));
    let segment = server.switch_wal();
    push(&segment).expect_code(1);
    bucket.take_noted();
    push(&segment).expect_ok();
    assert_eq!(kinds(&bucket.take_noted()).len(), 5);
}
