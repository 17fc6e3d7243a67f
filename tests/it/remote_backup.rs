//! A backup over the replication protocol is as good as one of the files themselves, or there is none.

use std::fs;
use std::path::Path;

use crate::support::site::backup_of;
use crate::support::{Ledger, Major, Outcome, Site, Snapshot, Stop, TestServer, tool};

const LATEST_CLONE: [&str; 5] = ["--to-latest", "--as", "clone", "--target-action", "promote"];

/// Lets replication connections in, which the template's `pg_hba.conf` may not.
fn remote(site: &Site, arguments: &[&str]) -> Outcome {
    site.try_backup(&[&["--from", "remote"], arguments].concat())
}

#[test]
fn postgresql_15_comes_back_whole_from_a_stream() {
    comes_back_whole(Major::V15);
}

#[test]
fn postgresql_17_comes_back_whole_from_a_stream() {
    comes_back_whole(Major::V17);
}

#[test]
fn postgresql_18_comes_back_whole_from_a_stream() {
    comes_back_whole(Major::V18);
}

/// Under load, with a tablespace, unlogged and temporary relations, and files larger than one stretch.
fn comes_back_whole(major: Major) {
    let site = Site::of(TestServer::builder(major));
    let server = &site.server;
    server.create_tablespace("elsewhere");
    server.sql(
        "create table growing (g int, filling text);
         insert into growing select g, repeat(md5(g::text), 20) from generate_series(1, 20000) as g;
         create table moved tablespace elsewhere as select g from generate_series(1, 1000) as g;
         create unlogged table forgotten as select g from generate_series(1, 1000) as g;
         create table empty (g int);",
    );
    let writing = Ledger::create(server).keep_committing(server, 2);
    server.wait_until("select count(*) > 20 from ledger", "t");
    let taken = remote(&site, &[]).expect_ok();
    let ledger = writing.stop();
    server.archive_all();
    assert!(taken.json()["bytes"].as_u64().is_some_and(|bytes| bytes > 20 << 20), "{}", taken.story());

    let place = crate::support::Scratch::new();
    let oid = server.query_one("select oid from pg_tablespace where spcname = 'elsewhere'");
    let mapping = format!("{oid}={}", place.join("space").display());
    let mut restored = site.restore(&[&LATEST_CLONE[..], &["--tablespace", &mapping]].concat());
    assert!(!restored.server.pgdata().join("tablespace_map").exists());
    let copy = restored.promoted();
    Ledger::expect_rows(copy, ledger.last().rows);
    assert_eq!(copy.query_one("select count(*), sum(length(filling)) from growing"), "20000|12800000");
    assert_eq!(copy.query_one("select (select count(*) from moved), (select count(*) from forgotten)"), "1000|0");
    restored.expect_sound_pages();
}

#[test]
fn files_and_a_stream_of_the_same_moment_restore_to_the_same_bytes() {
    let site = Site::start(Major::V17);
    let server = &site.server;
    server.sql(
        "create table rows as select g, repeat(md5(g::text), 5) as filling from generate_series(1, 30000) as g;
         create unlogged table forgotten (g int); vacuum freeze; checkpoint;",
    );
    server.archive_all();
    let local = site.backup();
    let remote = remote(&site, &[]).expect_ok().json();
    let restored = |backup: &serde_json::Value| {
        let id = backup["id"].as_str().expect("a name").to_owned();
        site.restore(&["--backup", &id, "--to-backup-end", "--as", "clone"])
    };
    let (local, remote) = (restored(&local), restored(&remote));
    // What two backups of one quiet cluster differ in: where each begins, and how often the server counted them.
    let own = ["backup_label", "backup_manifest", "global/pg_control", "postgresql.auto.conf"];
    let kept = |name: &str| !own.contains(&name) && !name.starts_with("pg_wal/");
    let snapshot = |directory: &Path| Snapshot::of(directory).only(kept);
    let (local, remote) = (snapshot(local.server.pgdata()), snapshot(remote.server.pgdata()));
    assert!(local.len() > 500, "{} files", local.len());
    assert_eq!(local.differences(&remote), Vec::<String>::new());
}

#[test]
fn a_stream_is_byte_for_byte_what_the_servers_own_tool_takes() {
    for major in [Major::V15, Major::V18] {
        let site = Site::start(major);
        let server = &site.server;
        server.sql("create table rows as select g from generate_series(1, 30000) as g; vacuum freeze; checkpoint;");
        server.archive_all();
        remote(&site, &[]).expect_ok();
        let place = crate::support::Scratch::new();
        let own = place.join("own");
        tool::base_backup(server, &own, &["-c", "fast", "-X", "none", "--no-sync"]).expect_ok();
        let restored = site.restore(&["--to-backup-end", "--as", "clone"]);
        let differing =
            ["backup_label", "global/pg_control", "postgresql.auto.conf", "backup_manifest", "recovery.signal"];
        let kept = |name: &str| !differing.contains(&name) && !name.starts_with("pg_wal/");
        let differences = Snapshot::of(&own).only(kept).differences(&Snapshot::of(restored.server.pgdata()).only(kept));
        assert_eq!(differences, Vec::<String>::new(), "PostgreSQL {major}");
        // The restored manifest has the server's own checksum of every file.
        let manifest = |directory: &Path| -> std::collections::BTreeMap<String, serde_json::Value> {
            let text = fs::read(directory.join("backup_manifest")).expect("a manifest");
            let manifest: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
            let files = manifest["Files"].as_array().expect("files").iter();
            let files = files.map(|file| (file["Path"].as_str().expect("a path").to_owned(), file["Checksum"].clone()));
            files.filter(|(path, _)| !["backup_label", "global/pg_control"].contains(&path.as_str())).collect()
        };
        assert_eq!(manifest(&own), manifest(restored.server.pgdata()), "PostgreSQL {major}");
    }
}

#[test]
fn every_major_is_understood() {
    for major in [Major::V13, Major::V14, Major::V16] {
        let site = Site::of(TestServer::builder(major));
        let server = &site.server;
        server.create_tablespace("elsewhere");
        server.sql("create table moved tablespace elsewhere as select g from generate_series(1, 1000) as g");
        remote(&site, &["--rate-limit", "1GiB"]).expect_ok();
        server.archive_all();
        let place = crate::support::Scratch::new();
        let oid = server.query_one("select oid from pg_tablespace where spcname = 'elsewhere'");
        let mapping = format!("{oid}={}", place.join("space").display());
        let mut restored = site.restore(&[&LATEST_CLONE[..], &["--tablespace", &mapping]].concat());
        assert_eq!(restored.promoted().query_one("select count(*) from moved"), "1000", "PostgreSQL {major}");
    }
}

#[test]
fn what_a_page_lost_is_said_and_copied_as_it_is() {
    let mut site = Site::start(Major::V15);
    if site.server.query_one("show data_checksums") != "on" {
        panic!("the template has checksums");
    }
    site.server.sql("create table rows as select g from generate_series(1, 3000) as g; vacuum freeze; checkpoint;");
    let path = site.server.query_one("select pg_relation_filepath('rows')");
    site.server.stop(Stop::Fast);
    let file = site.server.pgdata().join(&path);
    let mut bytes = fs::read(&file).expect("a relation");
    bytes[8192 + 5000] ^= 1;
    fs::write(&file, bytes).expect("damage");
    site.server.start();
    let taken = backup_of(&site.server, &site.walvault, &["--from", "remote"]).expect_ok();
    assert!(taken.stderr.contains(&format!("damaged page, copied as it is: {path} page 1")), "{}", taken.story());
    assert!(taken.stderr.contains("the server says: checksum verification failure"), "{}", taken.story());
}
