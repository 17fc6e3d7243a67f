//! A former primary that went its own way comes back to the archive's history without being copied anew.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::{Ledger, Major, Scratch, Site, Stop, TestServer, tool};

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
