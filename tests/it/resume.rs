//! A restore that was cut off goes on by the same command, and comes to the same directory, file for file.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::process::COMMAND_LIMIT;
use crate::support::user::ServerUser;
use crate::support::{Ledger, Major, Moments, Scratch, Site, Snapshot, Stop, TestServer, soaking, tool, within};

/// A server with a table in a tablespace, and where a copy of it goes: data directory, tablespace and `pg_wal` apart.
pub(crate) struct Past {
    pub site: Site,
    pub ledger: Ledger,
    oid: String,
}

impl Past {
    pub fn of(major: Major) -> Self {
        let site = Site::of(TestServer::builder(major).segment_mib(1));
        let place = site.server.create_tablespace("fast");
        assert!(place.exists());
        let mut ledger = Ledger::create(&site.server);
        site.server
            .sql("create table far tablespace fast as select g, md5(g::text) from generate_series(1, 20000) as g");
        ledger.commit(&site.server, 500);
        site.backup();
        ledger.commit(&site.server, 10);
        site.server.archive_all();
        let oid = site.server.query_one("select oid from pg_tablespace where spcname = 'fast'");
        Self { site, ledger, oid }
    }

    /// The words of a restore into `place`.
    pub fn words(&self, place: &Place, target: &[&str]) -> Vec<String> {
        let text = |path: PathBuf| path.to_str().expect("plain text").to_owned();
        let tablespace = format!("{}={}", self.oid, text(place.0.join("fast")));
        let own = ["restore".to_owned(), text(place.data()), "--tablespace".to_owned(), tablespace];
        let rest = ["--waldir".to_owned(), text(place.0.join("wal"))];
        own.into_iter().chain(rest).chain(target.iter().map(|word| (*word).to_owned())).collect()
    }
}

pub(crate) struct Place(pub Scratch);

impl Place {
    pub fn new() -> Self {
        Self(Scratch::new())
    }

    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// What the three directories hold; where they lie differs from place to place.
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        for name in ["data", "fast", "wal"] {
            collect(&self.0.join(name), Path::new(name), &mut found);
        }
        found.sort();
        found
    }
}

fn collect(directory: &Path, name: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}")) {
        let path = entry.expect("an entry").path();
        let name = name.join(path.file_name().expect("a name"));
        if path.is_symlink() {
            found.push((name, Vec::new()));
        } else if path.is_dir() {
            collect(&path, &name, found);
            found.push((name, Vec::new()));
        } else {
            found.push((name, fs::read(&path).expect("a file")));
        }
    }
}

pub(crate) const PROMOTE: [&str; 5] = ["--to-latest", "--as", "clone", "--target-action", "promote"];

#[test]
fn a_restore_that_is_killed_again_and_again_on_15_comes_to_the_same_directory() {
    comes_to_the_same_directory(Major::V15);
}

#[test]
fn a_restore_that_is_killed_again_and_again_on_18_comes_to_the_same_directory() {
    comes_to_the_same_directory(Major::V18);
}

fn comes_to_the_same_directory(major: Major) {
    let past = Past::of(major);
    let site = &past.site;
    let undisturbed = Place::new();
    let started = Instant::now();
    site.walvault.run(past.words(&undisturbed, &PROMOTE)).expect_ok();
    let moments = Moments::within(started.elapsed());
    let expected = undisturbed.files();
    let rounds = if soaking() { 60 } else { 6 };
    let (mut killed, mut next) = (0, 0);
    while next < rounds || (killed == 0 && next < 10 * rounds) {
        let round = next;
        next += 1;
        let place = Place::new();
        let words = past.words(&place, &PROMOTE);
        for _ in 0..3 {
            let mut restore = site.walvault.start(&words);
            moments.wait();
            let over = !restore.is_running();
            moments.was_over(over);
            if over {
                break;
            }
            restore.kill9();
            if place.data().join("global/pg_control").exists() {
                break;
            }
            killed += 1;
            let refusal = TestServer::over(major, &place.data()).try_start();
            assert!(refusal.is_err(), "half a restore starts");
        }
        if !place.data().join("global/pg_control").exists() || place.data().join("walvault.restore").exists() {
            site.walvault.run(&words).expect_ok();
        }
        let found = place.files();
        let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "round {round}");
        for ((name, found), (_, expected)) in found.iter().zip(&expected) {
            // Where the links lead is written nowhere else.
            assert!(found == expected, "round {round}: {} differs", name.display());
        }
        tool::verify_backup(major, &place.data()).expect_ok();
        if round == 0 {
            let mut server = TestServer::over(major, &place.data());
            server.start();
            server.wait_until_writable();
            Ledger::expect_rows(&server, past.ledger.last().rows);
            assert_eq!(server.query_one("select count(*) from far"), "20000");
            server.stop(Stop::Fast);
            tool::check_checksums(major, &place.data()).expect_ok();
        }
    }
    assert!(killed > 0, "no round was killed");
}

/// Cuts a restore off for certain: the pack of the backup is away, so it has begun and cannot go on.
pub(crate) fn cut_off(past: &Past, place: &Place, target: &[&str]) {
    let key = biggest_pack(past);
    let object = past.site.repo.path().join(&key);
    let bytes = fs::read(&object).expect("a pack");
    // The frames in the middle: whatever lies before them has been written.
    past.site.repo.flip_bit(&key, bytes.len() as u64 * 4);
    let failed = past.site.walvault.run(past.words(place, target)).expect_code(1);
    past.site.repo.flip_bit(&key, bytes.len() as u64 * 4);
    assert!(place.data().join("walvault.restore").exists(), "{}", failed.story());
    assert!(!place.data().join("global/pg_control").exists(), "{}", failed.story());
}

fn biggest_pack(past: &Past) -> String {
    let packs = past.site.repo.find_all("main/*/packs/*");
    packs.into_iter().max_by_key(|key| past.site.repo.read(key).len()).expect("there is one")
}

#[test]
fn a_newer_backup_and_a_longer_log_do_not_stand_in_the_way() {
    let mut past = Past::of(Major::V17);
    let place = Place::new();
    cut_off(&past, &place, &PROMOTE);
    let site = &past.site;
    let first = site.listed()[0].clone();
    past.ledger.commit(&site.server, 10);
    site.backup();
    let rows = past.ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    let words = past.words(&place, &PROMOTE);
    let outcome = site.walvault.run([&["--json".to_owned()], &words[..]].concat()).expect_ok();
    assert!(outcome.stderr.contains("going on with the interrupted restore in"), "{}", outcome.story());
    let report = outcome.json();
    assert_eq!(report["backup"], first);
    assert!(report["kept_files"].as_u64().expect("a number") > 0, "{report:#}");
    tool::verify_backup(Major::V17, &place.data()).expect_ok();
    let mut server = TestServer::over(Major::V17, &place.data());
    server.start();
    server.wait_until_writable();
    Ledger::expect_rows(&server, rows);
}

#[test]
fn another_restores_directory_is_refused_and_left_as_it_is() {
    let past = Past::of(Major::V15);
    let (site, oid) = (&past.site, &past.oid);
    let before_lsn = past.ledger.last().lsn.clone();
    let place = Place::new();
    cut_off(&past, &place, &PROMOTE);
    let first = site.listed()[0].clone();
    let second = site.backup()["id"].as_str().expect("a name").to_owned();
    site.server.archive_all();
    let before = Snapshot::of(place.0.path());
    let refused = |words: Vec<String>, said: &[&str]| {
        let refused = site.walvault.run(words).expect_code(1);
        for said in said {
            assert!(refused.stderr.contains(said), "{said:?} was expected\n{}", refused.story());
        }
        before.expect_unchanged(place.0.path());
    };
    let holds = format!("holds an interrupted restore of backup {first} to the latest moment on timeline 1 as clone");
    let hint = "give the first command again to finish that one, or remove what it left";
    let lsn = ["--to-lsn", &before_lsn, "--as", "clone"];
    refused(past.words(&place, &lsn), &[&holds, &format!("position {before_lsn}"), hint]);
    refused(past.words(&place, &["--to-latest", "--as", "primary"]), &[&holds, "as primary", hint]);
    refused(past.words(&place, &["--to-latest", "--as", "clone", "--backup", &second]), &[&holds, &second, hint]);
    let data = place.data();
    let elsewhere = |at: &str| {
        let mapped = format!("{oid}={}", place.0.join(at).display());
        ["restore", data.to_str().expect("plain text"), "--tablespace", &mapped]
            .iter()
            .chain(&PROMOTE)
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    refused(elsewhere("other"), &[&holds, "pg_tblspc/", "/other"]);
    // The place of the tablespace is taken for somebody else's once it does not carry the mark of this restore.
    let mark = place.0.join("fast/walvault.restore");
    let kept = fs::read(&mark).expect("the place is marked");
    fs::remove_file(&mark).expect("it is there");
    if fs::read_dir(place.0.join("fast")).expect("a directory").next().is_some() {
        let refused = site.walvault.run(past.words(&place, &PROMOTE)).expect_code(1);
        assert!(refused.stderr.contains("fast is not empty"), "{}", refused.story());
    }
    fs::write(&mark, kept).expect("it was there");
    site.walvault.run(past.words(&place, &PROMOTE)).expect_ok();
    let refused = site.walvault.run(past.words(&place, &PROMOTE)).expect_code(1);
    assert!(refused.stderr.contains("is not empty"), "{}", refused.story());
}

fn put(place: &Place, mark: &[u8]) {
    let path = place.data().join("walvault.restore");
    fs::write(&path, mark).expect("the data directory is writable");
    ServerUser::get().take_over(&path);
}

#[test]
fn a_complete_directory_that_kept_its_mark_is_gone_on_with_until_a_server_has_started_there() {
    let past = Past::of(Major::V17);
    let place = Place::new();
    cut_off(&past, &place, &PROMOTE);
    let mark = fs::read(place.data().join("walvault.restore")).expect("it is marked");
    let walvault = &past.site.walvault;
    walvault.run(past.words(&place, &PROMOTE)).expect_ok();
    let complete = place.files();
    // Killed between its last two steps.
    put(&place, &mark);
    walvault.run(past.words(&place, &PROMOTE)).expect_ok();
    assert!(place.files() == complete);

    let mut server = TestServer::over(Major::V17, &place.data());
    server.start();
    server.wait_until_writable();
    put(&place, &mark);
    let running = walvault.run(past.words(&place, &PROMOTE)).expect_code(1);
    assert!(running.stderr.contains("a server runs in"), "{}", running.story());
    server.sql("create table written_here as select 1 as one");
    server.stop(Stop::Fast);
    let before = Snapshot::of(place.0.path());
    let started = walvault.run(past.words(&place, &PROMOTE)).expect_code(1);
    assert!(started.stderr.contains("was restored and then started"), "{}", started.story());
    before.expect_unchanged(place.0.path());
}

#[test]
fn a_restore_at_work_is_not_joined_by_another() {
    let past = Past::of(Major::V18);
    // Stopped in the middle of its work; one that was too quick is let go, and another one tried.
    let (place, words, mut first) = (0..100)
        .find_map(|_| {
            let place = Place::new();
            let words = past.words(&place, &PROMOTE);
            let mut first = past.site.walvault.start(&words);
            let mark = place.data().join("walvault.restore");
            within(Duration::from_secs(60), || mark.exists() || !first.is_running(), "it begins");
            first.signal(rustix::process::Signal::STOP);
            within(Duration::from_secs(60), || first.is_stopped() || !first.is_running(), "it is stopped");
            (first.is_running() && mark.exists()).then_some((place, words, first))
        })
        .expect("a restore is stopped before it has ended");
    let refused = past.site.walvault.run(words.iter().map(OsStr::new)).expect_code(1);
    first.signal(rustix::process::Signal::CONT);
    assert!(refused.stderr.contains("another restore is at work in"), "{}", refused.story());
    first.wait(COMMAND_LIMIT).expect_ok();
    tool::verify_backup(Major::V18, &place.data()).expect_ok();
}
