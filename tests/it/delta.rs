//! A former primary that went its own way comes back to the archive's history without being copied anew, and so does a
//! directory that was damaged, or that another restore left half done.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::resume::{PROMOTE, Past, Place, cut_off};
use crate::support::user::ServerUser;
use crate::support::{Ledger, Major, Moments, Scratch, Site, Stop, TestServer, soaking, tool};

const LATEST_PRIMARY: [&str; 6] = ["--to-latest", "--as", "primary", "--target-action", "promote", "--delta"];

#[test]
fn a_primary_that_went_its_own_way_is_brought_back() {
    let mut site = Site::of(TestServer::builder(Major::V17).segment_mib(1).set("summarize_wal", "on"));
    site.server.sql("create table wide as select n, md5(n::text) as text from generate_series(1, 60000) n");
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    ledger.commit(&site.server, 20);
    site.backup();
    ledger.commit(&site.server, 20);
    site.server.archive_all();
    let data = site.server.pgdata().to_owned();
    let running = site.try_restore(&data, &LATEST_PRIMARY).expect_code(1);
    assert!(running.stderr.contains("a server runs in"), "{}", running.story());

    // What the archive never hears of: rows, a table, a whole database, one table less.
    site.server.set("archive_command", "/bin/true");
    site.server.restart();
    site.server.sql("update wide set text = 'astray' where n % 50 = 0");
    site.server.sql("create table astray as select n from generate_series(1, 1000) n");
    site.server.sql("create database astray");
    site.server.sql("drop table ledger");
    site.server.sql("checkpoint");
    let astray = site.server.query_one("select 'base/' || oid from pg_database where datname = 'astray'");
    let kept = data.join(site.server.query_one("select pg_relation_filepath('wide')"));
    site.server.stop(Stop::Fast);
    let inode = fs::metadata(&kept).expect("a table").ino();

    let other = Scratch::new();
    let stranger = TestServer::builder(Major::V17).create();
    site.try_restore(stranger.pgdata(), &LATEST_PRIMARY).expect_code(3);
    site.try_restore(&other.join("data"), &LATEST_PRIMARY[..5]).expect_ok();

    let report = site.try_restore(&data, &LATEST_PRIMARY).expect_ok().json();
    assert!(report["removed_files"].as_u64() > Some(0), "{report:#}");
    assert!(!data.join(astray).exists() && fs::metadata(&kept).expect("a table").ino() == inode);
    tool::verify_backup(Major::V17, &data).expect_ok();
    // Its own archive_command is the backup's again.
    site.server.start();
    site.server.wait_until_writable();
    Ledger::expect_rows(&site.server, ledger.last().rows);
    assert_eq!(site.server.query_one("select count(*) from wide where text = md5(n::text)"), "60000");
    assert_eq!(site.server.query_one("select count(*) from pg_class where relname = 'astray'"), "0");
    tool::check_relations(&site.server).expect_ok();
    // The history goes on from here.
    let next = site.backup();
    assert_eq!(next["changes"]["method"], "hashes", "{next:#}");
    let reason = next["changes"]["reason"].as_str().expect("words");
    assert!(reason.contains("timeline changed"), "{reason}");
    ledger.resume(&site.server);
    ledger.commit(&site.server, 5);
    site.server.archive_all();
    let mut restored = site.restore(&["--to-latest", "--as", "clone", "--target-action", "promote", "--timeline", "2"]);
    Ledger::expect_rows(restored.promoted(), ledger.last().rows);
    tool::check_relations(&restored.server).expect_ok();
}

#[test]
fn a_damaged_directory_is_mended_with_its_tablespaces_wherever_that_is_interrupted() {
    let past = Past::of(Major::V15);
    let walvault = &past.site.walvault;
    let undisturbed = Place::new();
    walvault.run(past.words(&undisturbed, &PROMOTE)).expect_ok();
    let expected = undisturbed.files();
    // Half of a restore to another target.
    let place = Place::new();
    cut_off(&past, &place, &["--to-backup-end", "--as", "clone"]);
    let words = past.words(&place, &[&PROMOTE[..], &["--delta"]].concat());
    let started = Instant::now();
    walvault.run(&words).expect_ok();
    expect_same(&place, &expected, "the half");
    let moments = Moments::within(started.elapsed());
    let rounds = if soaking() { 60 } else { 3 };
    let (mut killed, mut round) = (0, 0);
    while round < rounds || (killed == 0 && round < 10 * rounds) {
        round += 1;
        damage(&place);
        let damaged = place.files();
        let mut delta = walvault.start(&words);
        moments.wait();
        let over = !delta.is_running();
        moments.was_over(over);
        delta.kill9();
        let control = place.data().join("global/pg_control").exists();
        let marked = place.data().join("walvault.restore").exists();
        if control {
            // Before anything was done, or after everything.
            let unmarked = |(name, _): &(PathBuf, Vec<u8>)| !name.to_string_lossy().contains("walvault.restore");
            let found: Vec<_> = place.files().into_iter().filter(unmarked).collect();
            assert!(found == damaged || found == expected, "round {round}: startable, and neither");
        } else {
            killed += 1;
            assert!(marked, "round {round}: nothing says whose the directory is");
            assert!(TestServer::over(Major::V15, &place.data()).try_start().is_err(), "round {round}");
        }
        walvault.run(&words).expect_ok();
        expect_same(&place, &expected, &format!("round {round}"));
    }
    assert!(killed > 0, "no round was killed");
    tool::verify_backup(Major::V15, &place.data()).expect_ok();
    let mut server = TestServer::over(Major::V15, &place.data());
    server.start();
    server.wait_until_writable();
    Ledger::expect_rows(&server, past.ledger.last().rows);
    assert_eq!(server.query_one("select count(*) from far"), "20000");
    tool::check_relations(&server).expect_ok();
}

#[track_caller]
fn expect_same(place: &Place, expected: &[(PathBuf, Vec<u8>)], what: &str) {
    let found = place.files();
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected), "{what}");
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert!(found == expected, "{what}: {} differs", name.display());
    }
}

/// Does what broken disks, operators and other histories do, in the data directory and outside it.
fn damage(place: &Place) {
    let pages = |name: &Path| name.extension().is_none() && name.components().count() > 3;
    let large: Vec<PathBuf> = place
        .files()
        .into_iter()
        .filter(|(name, bytes)| pages(name) && bytes.len() >= 5 * 8192)
        .map(|(name, _)| place.0.path().join(name))
        .collect();
    let (far, near): (Vec<PathBuf>, Vec<PathBuf>) =
        large.into_iter().partition(|path| path.starts_with(place.0.join("fast")));
    let write = |path: &Path, at: u64| {
        let file = fs::File::options().write(true).open(path).expect("a relation");
        file.write_all_at(b"damaged", at).expect("a relation");
    };
    assert!(!far.is_empty() && near.len() > 3, "{far:?} {near:?}");
    write(&far[0], 3 * 8192 + 5000);
    write(&near[0], 0);
    fs::File::options().write(true).open(&near[1]).and_then(|file| file.set_len(3 * 8192 + 100)).expect("a relation");
    fs::remove_file(&near[2]).expect("a relation");
    let longer = fs::metadata(&near[3]).expect("a relation").len();
    write(&near[3], longer + 100_000);
    let release = far[0].parent().and_then(Path::parent).expect("below the release's directory");
    fs::create_dir_all(release.join("99999")).expect("a directory");
    ServerUser::get().take_over(&release.join("99999"));
    let stale =
        [release.join("99999/1"), place.0.join("wal/000000010000000000000FFF"), place.data().join("standby.signal")];
    for path in stale {
        fs::write(&path, "of another history").expect("a file");
        ServerUser::get().take_over(&path);
    }
}
