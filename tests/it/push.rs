//! `wal push`: what is stored, what is refused, and what becomes of the bytes that were refused.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::user::ServerUser;
use crate::support::{Major, Outcome, Snapshot, Stop, TestRepo, TestServer, Walvault};

/// A server with a finished segment that is not archived yet, and its repository.
struct Ready {
    server: TestServer,
    repo: TestRepo,
    segment: String,
}

impl Ready {
    fn new() -> Self {
        let repo = TestRepo::new();
        Walvault::on(&repo).run(["init"]).expect_ok();
        let server = TestServer::builder(Major::V15).segment_mib(1).start();
        let segment = server.switch_wal();
        Self { server, repo, segment }
    }

    fn wal(&self, name: &str) -> PathBuf {
        self.server.pgdata().join("pg_wal").join(name)
    }

    /// Pushes a file as the server would.
    #[track_caller]
    fn push(&self, name: &str) -> Outcome {
        let outcome =
            Walvault::on(&self.repo).in_directory(self.server.pgdata()).run(["wal", "push", &format!("pg_wal/{name}")]);
        if outcome.is_ok() {
            assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""), "{}", outcome.story());
        }
        outcome
    }

    /// Makes a file in `pg_wal` and pushes it.
    #[track_caller]
    fn push_bytes(&self, name: &str, bytes: impl AsRef<[u8]>) -> Outcome {
        fs::write(self.wal(name), bytes).expect("pg_wal is writable");
        ServerUser::get().take_over(&self.wal(name));
        self.push(name)
    }

    /// Returns the bytes that an object stands for, as any zstd gives them back.
    #[track_caller]
    fn contents(&self, key: &str) -> Vec<u8> {
        zstd::stream::decode_all(&self.repo.read(key)[..]).expect("every object is a zstd file")
    }

    /// Panics unless a second file of a name is refused and kept apart, and the first is as it was.
    #[track_caller]
    fn expect_conflict(&self, name: &str, first: &[u8], second: &[u8]) {
        self.push_bytes(name, first).expect_ok();
        let before = self.repo.snapshot();
        for _ in 0..2 {
            let refused = self.push_bytes(name, second).expect_code(3);
            for word in [name, "archived with other contents", "contested/"] {
                assert!(refused.stderr.contains(word), "{}", refused.story());
            }
            assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.story());
            assert!(refused.stderr.len() <= 500, "{}", refused.story());
        }
        let differences = before.differences(&Snapshot::of(self.repo.path()));
        let added = |line: &String| line.starts_with("added main/") && line.contains("/contested");
        assert!(differences.iter().all(added), "{differences:?}");
        assert_eq!(self.contents(&self.repo.find(&format!("*/contested/*/{name}/*"))), second);
        assert_eq!(self.contents(&self.repo.find(&format!("*/wal/*/{name}.zst"))), first);
        self.push_bytes(name, first).expect_ok();
    }
}

#[test]
fn the_same_bytes_again_are_a_success_and_change_nothing() {
    let ready = Ready::new();
    ready.push(&ready.segment).expect_ok();
    let before = ready.repo.snapshot();
    ready.push(&ready.segment).expect_ok();
    before.expect_unchanged(ready.repo.path());
    let key = ready.repo.find(&format!("*/{}.zst", ready.segment));
    assert_eq!(ready.contents(&key), fs::read(ready.wal(&ready.segment)).expect("it is there"));
}

#[test]
fn other_bytes_under_a_taken_name_are_kept_apart_and_the_first_stay() {
    let ready = Ready::new();
    let first = fs::read(ready.wal(&ready.segment)).expect("it is there");
    let mut second = first.clone();
    let last = second.len() - 1;
    second[last] ^= 1;
    ready.expect_conflict(&ready.segment, &first, &second);
    // Before anything that this server has, so that nothing of it lies below the fork.
    let history = |lsn: &str| format!("1\t{lsn}\tbefore LSN {lsn}\n");
    ready.expect_conflict("00000002.history", history("0/100000").as_bytes(), history("0/100028").as_bytes());
    ready.expect_conflict("000000010000000000000003.00000028.backup", b"START\n", b"STOP\n");
}

#[test]
fn a_damaged_object_is_not_taken_for_the_same_bytes() {
    let ready = Ready::new();
    ready.push(&ready.segment).expect_ok();
    let key = ready.repo.find(&format!("*/{}.zst", ready.segment));
    ready.repo.flip_bit(&key, ready.repo.read(&key).len() as u64 * 4);
    let refused = ready.push(&ready.segment).expect_code(3);
    assert!(refused.stderr.contains("damaged"), "{}", refused.story());
    let kept = ready.repo.find("*/contested/*");
    assert_eq!(ready.contents(&kept), fs::read(ready.wal(&ready.segment)).expect("it is there"));
}

#[test]
fn two_promotions_within_one_segment_leave_two_partials() {
    let ready = Ready::new();
    let whole = fs::read(ready.wal(&ready.segment)).expect("it is there");
    let mut other = whole.clone();
    other[whole.len() - 1] ^= 1;
    let name = format!("{}.partial", ready.segment);
    for bytes in [&whole, &other, &whole] {
        ready.push_bytes(&name, bytes).expect_ok();
    }
    let keys = ready.repo.find_all(&format!("*/{name}/*"));
    assert_eq!(keys.len(), 2, "{keys:?}");
    let mut contents: Vec<Vec<u8>> = keys.iter().map(|key| ready.contents(key)).collect();
    contents.sort();
    let mut expected = vec![whole, other];
    expected.sort();
    assert!(contents == expected);
    assert_eq!(ready.repo.find_all(&format!("*/{}.zst", ready.segment)), [""; 0]);
}

#[test]
fn every_kind_of_file_is_stored_also_those_nobody_knows() {
    let ready = Ready::new();
    let files = [
        ("000000010000000000000003.00000028.backup", "START WAL LOCATION: 0/3000028\n"),
        ("00000005.history", "1\t0/100000\tbefore 2026\n"),
        ("walsummary.4711", "something of a later PostgreSQL"),
        ("A.b.C", ""),
    ];
    for (name, text) in files {
        ready.push_bytes(name, text).expect_ok();
        let key = ready.repo.find(&format!("*/{name}.zst"));
        assert_eq!(ready.contents(&key), text.as_bytes(), "{name}");
    }
}

#[test]
fn a_file_is_found_from_the_data_directory_and_from_elsewhere() {
    let ready = Ready::new();
    let absolute = ready.wal(&ready.segment);
    let push = |walvault: Walvault, path: &Path| walvault.run([Path::new("wal"), Path::new("push"), path]).expect_ok();
    push(Walvault::on(&ready.repo), &absolute);
    let before = ready.repo.snapshot();
    let (parent, data) = (ready.server.pgdata().parent().expect("it has one"), ready.server.pgdata());
    let relative = Path::new(data.file_name().expect("it has one")).join("pg_wal").join(&ready.segment);
    push(Walvault::on(&ready.repo).in_directory(parent), &relative);
    // The settings say where the directory is if the path does not.
    let elsewhere = ready.server.beside("elsewhere").join(&ready.segment);
    fs::copy(&absolute, &elsewhere).expect("a directory of this test");
    ServerUser::get().take_over(&elsewhere);
    push(Walvault::on(&ready.repo).env("WALVAULT_PGDATA", data), &elsewhere);
    before.expect_unchanged(ready.repo.path());

    // `pg_wal` on a volume of its own.
    let volume = ready.server.beside("volume");
    let segment = ready.server.switch_wal();
    let moved = volume.join("wal");
    let mut server = ready.server;
    server.stop(Stop::Fast);
    fs::rename(server.pgdata().join("pg_wal"), &moved).expect("one file system");
    std::os::unix::fs::symlink(&moved, server.pgdata().join("pg_wal")).expect("the name is free");
    push(Walvault::on(&ready.repo), &server.pgdata().join("pg_wal").join(&segment));
    assert_eq!(ready.repo.find_all(&format!("*/{segment}.zst")).len(), 1);
}
