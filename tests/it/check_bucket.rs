//! What can be wrong with a bucket, one thing at a time: `walvault check` names it, with the mend, and nothing else.

use crate::support::http_server::HttpServer;
use crate::support::object_server::{Dialect, ObjectServer, Wrong};
use crate::support::{Major, Stop, TestServer, Walvault};

/// A server that is down, so that only the bucket can be in the way, with a backup in the bucket.
struct Stopped {
    bucket: ObjectServer,
    server: TestServer,
}

fn entering(bucket: &ObjectServer) -> Walvault {
    Walvault::bare()
        .repository(bucket.repository())
        .cluster("main")
        .env("AWS_ACCESS_KEY_ID", "AKTEST")
        .env("AWS_SECRET_ACCESS_KEY", "the secret")
        .env("STORAGE_EMULATOR_HOST", "here")
        .env("WALVAULT_S3_ENDPOINT", bucket.url())
        .env("WALVAULT_GCS_ENDPOINT", bucket.url())
}

impl Stopped {
    fn new(bucket: ObjectServer, set: impl FnOnce(Walvault) -> Walvault) -> Self {
        let walvault = set(entering(&bucket));
        walvault.run(["init"]).expect_ok();
        let mut server = TestServer::builder(Major::V17).segment_mib(1).archive_command("/bin/true").start();
        let first = server.switch_wal();
        let push = walvault.clone().in_directory(server.pgdata());
        push.run(["wal", "push", &format!("pg_wal/{first}")]).expect_ok();
        server.set_archive_command("exit 1");
        server.stop(Stop::Fast);
        Self { bucket, server }
    }

    /// Returns what is said of the repository itself.
    #[track_caller]
    fn said(&self, walvault: &Walvault) -> String {
        let data = self.server.pgdata().display().to_string();
        let report = walvault.run(["check", "--json", "--pgdata", &data]).json();
        let mut findings = report["findings"].as_array().expect("an array").iter();
        let finding = findings.find(|finding| finding["code"] == "repository").expect("each code has one");
        finding["text"].as_str().expect("a text").to_owned()
    }

    /// Panics unless the bucket's findings that are no success are these, with these words in their text and mend.
    #[track_caller]
    fn expect(&self, walvault: &Walvault, expected: &[(&str, &str, &str, &str)]) {
        let data = self.server.pgdata().display().to_string();
        let outcome = walvault.run(["check", "--json", "--pgdata", &data]);
        assert!(!outcome.stdout.contains("the secret") && !outcome.stderr.contains("the secret"), "a secret is shown");
        let report = outcome.json();
        let findings = report["findings"].as_array().expect("an array").iter();
        let found: Vec<_> = findings
            .filter(|finding| finding["area"] == "repository" && !["ok", "not checked"].contains(&level(finding)))
            .collect();
        let text = |finding: &serde_json::Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        let codes: Vec<_> = found.iter().map(|finding| (text(finding, "code"), text(finding, "level"))).collect();
        let wanted: Vec<_> =
            expected.iter().map(|(code, level, ..)| ((*code).to_owned(), (*level).to_owned())).collect();
        assert_eq!(codes, wanted, "{}", outcome.story());
        for (finding, (_, _, words, mend)) in found.iter().zip(expected) {
            assert!(text(finding, "text").contains(words), "{words:?} was expected\n{}", outcome.story());
            assert!(text(finding, "mend").contains(mend), "{mend:?} was expected\n{}", outcome.story());
        }
    }
}

fn level(finding: &serde_json::Value) -> &str {
    finding["level"].as_str().expect("a level")
}

/// What a bucket that lets this host do everything is told of.
const MAY_DELETE: (&str, &str, &str, &str) = ("delete", "warn", "may delete objects", "take the right to delete away");

#[test]
fn a_bucket_that_cannot_be_reached_is_told_with_what_to_set() {
    let stopped = Stopped::new(ObjectServer::start(Dialect::S3).in_region("eu-north-1"), |walvault| {
        walvault.env("AWS_REGION", "eu-north-1")
    });
    let bucket = &stopped.bucket;
    let here = || entering(bucket).env("AWS_REGION", "eu-north-1");
    let refused = |walvault: Walvault, words: &str, mend: &str| {
        stopped.expect(&walvault, &[("repository", "fail", words, mend)]);
    };
    stopped.expect(&here(), &[MAY_DELETE]);
    refused(here().repository("s3://another/pg"), "there is no bucket another", "make the bucket, or correct repo");
    refused(
        here().repository("s3://bucket/elsewhere"),
        "holds no repository",
        "are bucket, folder and the cluster's name",
    );
    refused(entering(bucket), "is in region eu-north-1", "set s3_region = \"eu-north-1\"");
    refused(here().env("WALVAULT_S3_ENDPOINT", "http://127.0.0.1:1"), "127.0.0.1:1: ", "is s3_endpoint right");
    refused(here().env("WALVAULT_S3_ENDPOINT", "127.0.0.1"), "is no URL", "check the repository's URL");
    let page = HttpServer::start(|_| crate::support::http_server::Reply::new(404, "<html>nothing here</html>"));
    refused(here().env("WALVAULT_S3_ENDPOINT", page.url()), "404", "what answers is no store");

    bucket.set_clock_ahead(3600);
    refused(here(), "clocks differ too much", "set this host's clock");
    // Not enough to be refused, and worth a word.
    bucket.set_clock_ahead(-300);
    stopped.expect(&here(), &[("clock", "warn", "behind this host's", "run a time service"), MAY_DELETE]);
    bucket.set_clock_ahead(0);

    bucket.only("AKOTHER");
    refused(here(), "403 InvalidAccessKeyId", "correct the credentials: see `S3");
}

#[test]
fn a_certificate_that_is_not_trusted_or_for_another_name_is_told() {
    for dialect in [Dialect::S3, Dialect::Gcs] {
        let trusting = |walvault: Walvault| walvault.env("WALVAULT_CA_FILE", HttpServer::ca_file());
        let stopped = Stopped::new(ObjectServer::start_tls(dialect), trusting);
        let said = stopped.said(&trusting(entering(&stopped.bucket)));
        assert!(said.ends_with("opens, over TLS with the certificates of ca_file"), "{said}");
        let untrusted = ("repository", "fail", "UnknownIssuer", "set ca_file");
        stopped.expect(&entering(&stopped.bucket), &[untrusted]);
        // A system without certificates: an image that holds nothing but the program.
        let bare =
            |walvault: Walvault| walvault.env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
        let untrusted = ("repository", "fail", "believed are the certificates built into walvault", "set ca_file");
        stopped.expect(&bare(entering(&stopped.bucket)), &[untrusted]);
        stopped.expect(&bare(trusting(entering(&stopped.bucket))), &[MAY_DELETE]);
        let misnamed = ObjectServer::start_tls_misnamed(dialect);
        let endpoint = if dialect == Dialect::S3 { "s3_endpoint" } else { "gcs_endpoint" };
        let misnamed = (trusting(entering(&misnamed)), ("repository", "fail", "not valid for name", endpoint));
        stopped.expect(&misnamed.0, &[misnamed.1]);
    }
}

#[test]
fn each_permission_that_is_missing_is_named() {
    let stopped = Stopped::new(ObjectServer::start(Dialect::S3), |walvault| walvault);
    let bucket = &stopped.bucket;
    let without = |method: &'static str, part: &str, expected: &[(&str, &str, &str, &str)]| {
        bucket.go_wrong(method, part, u64::MAX, Wrong::Refuse(403, "AccessDenied"));
        stopped.expect(&entering(bucket), expected);
        bucket.heal();
    };
    let denied = "403 AccessDenied";
    without("PUT", "", &[("write", "fail", denied, "allow these credentials s3:PutObject")]);
    without("GET", "pg/main", &[("repository", "fail", denied, "allow these credentials s3:GetObject")]);
    without("GET", "prefix", &[("repository", "fail", denied, "allow these credentials s3:ListBucket")]);
    // Of one object, as where it may only be read by another account.
    without("GET", "/written", &[("read", "fail", denied, "allow these credentials s3:GetObject"), MAY_DELETE]);
    // That right is not needed, and the better for it. S3 says so of each object in a reply that succeeds.
    bucket.go_wrong("POST", "delete", u64::MAX, Wrong::Inside("AccessDenied"));
    stopped.expect(&entering(bucket), &[]);
    bucket.heal();
    let left: Vec<_> = bucket.keys().into_iter().filter(|key| key.contains("/probe/")).collect();
    assert!(left.len() <= 2, "what cannot be deleted is not strewn about: {left:?}");
}
