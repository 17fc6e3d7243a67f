//! Two writers of one timeline in a bucket, whether its server honours conditions or not: what was kept apart, and what an
//! operator makes of it.

use std::fs;

use crate::support::object_server::{Dialect, ObjectServer};
use crate::support::{Major, Outcome, TestServer, Walvault};

/// A server's segments, and two hosts that say they are that server.
struct Rivals {
    bucket: ObjectServer,
    server: TestServer,
}

impl Rivals {
    fn in_(bucket: ObjectServer) -> Self {
        let rivals = Self { bucket, server: TestServer::builder(Major::V15).segment_mib(1).start() };
        rivals.run("a", &["init"]).expect_ok();
        rivals
    }

    fn run(&self, host: &str, words: &[&str]) -> Outcome {
        let bare = Walvault::bare().repository(self.bucket.repository()).cluster("main");
        let environment = [
            ("AWS_ACCESS_KEY_ID", "AKTEST".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "the secret".to_owned()),
            ("STORAGE_EMULATOR_HOST", "here".to_owned()),
            ("WALVAULT_S3_ENDPOINT", self.bucket.url()),
            ("WALVAULT_GCS_ENDPOINT", self.bucket.url()),
            ("WALVAULT_STATE_DIR", self.server.beside(host).display().to_string()),
        ];
        let walvault = environment.into_iter().fold(bare, |walvault, (name, value)| walvault.env(name, value));
        walvault.in_directory(self.server.pgdata()).run(words)
    }

    fn push(&self, host: &str, segment: &str) -> Outcome {
        self.run(host, &["wal", "push", &format!("pg_wal/{segment}")])
    }

    /// Writes another history into a finished segment; returns what undoes that.
    fn rewrite(&self, segment: &str) -> impl FnOnce() + use<> {
        let path = self.server.pgdata().join("pg_wal").join(segment);
        let bytes = fs::read(&path).expect("a finished segment");
        let mut other = bytes.clone();
        *other.last_mut().expect("a segment") ^= 1;
        fs::write(&path, other).expect("a finished segment");
        move || fs::write(path, bytes).expect("a finished segment")
    }
}

#[test]
fn what_two_writers_left_in_a_bucket_is_settled_there_as_on_a_volume() {
    for bucket in [
        ObjectServer::start(Dialect::S3),
        ObjectServer::start(Dialect::Gcs),
        ObjectServer::start(Dialect::S3).ignoring_conditions(),
    ] {
        let rivals = Rivals::in_(bucket);
        let segments: Vec<String> = (0..3).map(|_| rivals.server.switch_wal()).collect();
        rivals.push("a", &segments[0]).expect_ok();
        let undo = rivals.rewrite(&segments[0]);
        for segment in &segments[..2] {
            let refused = rivals.push("b", segment).expect_code(4);
            assert!(refused.stderr.contains("is of a timeline that"), "{}", refused.story());
        }
        undo();
        let stored = rivals.bucket.objects();
        let listed = rivals.run("b", &["conflict", "list", "--json"]).expect_ok().json();
        let conflicts = listed["conflicts"].as_array().expect("an array");
        assert_eq!(conflicts.len(), 2, "{listed}");
        let id = |at: usize| conflicts[at]["id"].as_str().expect("a text");
        let shown = rivals.run("b", &["conflict", "show", id(0)]).expect_ok();
        assert!(shown.stdout.contains("differs   from byte "), "{}", shown.story());

        // The operator believes the second. Its free name is filled with what was kept, the taken one is not.
        rivals.run("b", &["lane", "adopt", "1"]).expect_ok();
        let lanes = rivals.run("b", &["lane", "list", "--json"]).expect_ok().json();
        assert_eq!(lanes["lanes"][0]["timelines"][0]["claim"], "adoption", "{lanes}");
        rivals.run("b", &["conflict", "adopt", id(1)]).expect_ok();
        let refused = rivals.run("b", &["conflict", "adopt", id(0)]).expect_code(1);
        assert!(refused.stderr.contains("nothing is ever overwritten"), "{}", refused.story());
        rivals.run("b", &["conflict", "discard", id(0)]).expect_ok();
        rivals.run("b", &["conflict", "adopt", id(0)]).expect_code(1);
        assert_eq!(rivals.run("b", &["conflict", "list"]).expect_ok().stdout, "no contested file\n");
        rivals.push("b", &segments[1]).expect_ok();
        rivals.push("b", &segments[2]).expect_ok();
        for segment in &segments {
            rivals.run("b", &["wal", "fetch", segment, "pg_wal/again"]).expect_ok();
            let read = |name: &str| fs::read(rivals.server.pgdata().join("pg_wal").join(name)).expect("a segment");
            assert!(read("again") == read(segment), "{segment}");
        }
        let after = rivals.bucket.objects();
        assert!(stored.iter().all(|(key, body)| after.get(key) == Some(body)), "something was changed");
    }
}
