//! A backup over the replication protocol is as good as one of the files themselves, or there is none.

use std::fs;
use std::path::Path;

use crate::support::manifest::deployed;
use crate::support::process::COMMAND_LIMIT;
use crate::support::site::backup_of;
use crate::support::{Ledger, Major, Outcome, Site, Snapshot, Stop, TestServer, tool};

const LATEST_CLONE: [&str; 5] = ["--to-latest", "--as", "clone", "--target-action", "promote"];

fn remote(site: &Site, arguments: &[&str]) -> Outcome {
    site.try_backup(&[&["--from", "remote"], arguments].concat())
}

/// Takes a backup as the role that `deploy/` makes, which needs to be no more than that.
fn remote_as_the_role(site: &Site, arguments: &[&str]) -> Outcome {
    site.server.sql(&fs::read_to_string(deployed("sql/backup-role.sql")).expect("a file of ours"));
    let conninfo = site.server.conninfo().replace("user=postgres", "user=walvault");
    let words = ["backup", "--json", "--fast", "--from", "remote", "--dbname", &conninfo];
    let taken = site.walvault.run(words.iter().chain(arguments)).expect_ok();
    assert!(!taken.stderr.contains("warning"), "{}", taken.story());
    taken
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
    let taken = remote_as_the_role(&site, &[]);
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
    for major in [Major::V15, Major::V17, Major::V18] {
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
        remote_as_the_role(&site, &["--rate-limit", "1GiB"]);
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

#[test]
fn a_standby_gives_a_backup_of_its_cluster() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    let primary = &site.server;
    let mut ledger = Ledger::create(primary);
    ledger.commit(primary, 10);
    site.backup();
    primary.archive_all();
    let mut standby = site.restore(&["--as", "standby", "--primary-conninfo", &primary.conninfo()]);
    standby.server.start();
    ledger.commit(primary, 10);
    let position = primary.query_one("select pg_current_wal_lsn()");
    standby.server.wait_until(&format!("select pg_last_wal_replay_lsn() >= '{position}'"), "t");
    // Asking the primary and reading the standby's files would lack what the standby has not written out.
    let theirs = standby.server.pgdata().to_str().expect("plain text");
    for words in [&["--pgdata", theirs][..], &["--pgdata", theirs, "--from", "local"]] {
        let refused = backup_of(primary, &site.walvault, words).expect_code(78);
        assert!(refused.stderr.contains("is not where the server that was connected to"), "{}", refused.story());
    }
    // Its end lies in the segment that its primary writes: that has to reach the archive too.
    let taken = primary.while_it_switches(|| backup_of(&standby.server, &site.walvault, &["--from", "remote"]));
    let taken = taken.expect_ok().json();
    let rows = ledger.commit(primary, 10).rows;
    primary.archive_all();
    let id = taken["id"].as_str().expect("a name");
    let mut restored = site.restore(&[&LATEST_CLONE[..], &["--backup", id]].concat());
    Ledger::expect_rows(restored.promoted(), rows);
    let mut least = site.restore(&["--backup", id, "--to-backup-end", "--as", "clone", "--target-action", "promote"]);
    Ledger::expect_rows(least.promoted(), rows - 10);
}

#[test]
fn a_run_takes_one_backup_however_often_it_is_called() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    let place = site.server.beside("metrics");
    let file = place.join("backup.prom");
    let shown = file.display().to_string();
    let named = |run: &str| remote(&site, &["--run", run, "--jitter", "1", "--metrics-file", &shown]);
    let value = |name: &str| -> u64 {
        let text = fs::read_to_string(&file).expect("it is written");
        let series = format!("walvault_backup_last_{name}{{cluster=\"main\"}} ");
        let found = text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok());
        found.unwrap_or_else(|| panic!("{name} in {text}"))
    };
    let first = named("backup-29384760").expect_ok().json();
    let committed = value("success_timestamp_seconds");
    assert_eq!((value("attempt_failed"), Some(value("success_bytes"))), (0, first["bytes"].as_u64()));
    assert_eq!(first["annotations"]["run"], "backup-29384760");
    let again = named("backup-29384760").expect_ok();
    let expected =
        serde_json::json!({ "skipped": { "reason": "run", "run": "backup-29384760", "backup": first["id"] } });
    assert_eq!(again.json(), expected, "{}", again.story());
    assert_eq!(site.listed().len(), 1);
    let nowhere = ["backup", "--from", "remote", "--dbname", "host=/nowhere", "--metrics-file", &shown];
    site.walvault.run(nowhere).expect_code(1);
    assert_eq!((value("attempt_failed"), value("success_timestamp_seconds")), (1, committed));
    named("backup-29386200").expect_ok();
    assert_eq!(site.listed().len(), 2);
    let local = site.try_backup(&["--run", "backup-29386200"]).expect_ok();
    assert_eq!(local.json()["skipped"]["reason"], "run");
    site.try_backup(&["--run", "a", "--annotation", "run=b"]).expect_code(64);
    // Two schedulers at one moment: one takes it, the other finds it done, or the lease held and is to come again.
    let conninfo = site.server.conninfo();
    let words = ["backup", "--json", "--fast", "--from", "remote", "--run", "both", "--dbname", &conninfo];
    let both = [site.walvault.start(words), site.walvault.start(words)].map(|one| one.wait(COMMAND_LIMIT));
    let codes: Vec<Option<i32>> = both.iter().map(|one| one.code).collect();
    assert!(codes.contains(&Some(0)) && codes.iter().all(|code| matches!(code, Some(0 | 2))), "{both:#?}");
    assert_eq!(site.listed().len(), 3, "{both:#?}");
    assert_eq!(named("both").expect_ok().json()["skipped"]["run"], "both");
}

#[test]
fn files_are_read_where_they_can_be_seen_and_asked_for_where_not() {
    let site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    let words = "over the replication protocol";
    let seen = site.try_backup(&[]).expect_ok();
    assert!(!seen.stderr.contains(words), "{}", seen.story());
    // A user that may not know where the files are.
    site.server.sql("create role least replication login; grant execute on function pg_backup_start to least");
    let conninfo = site.server.conninfo().replace("user=postgres", "user=least");
    std::fs::write(site.server.pgdata().join("pg_hba.conf"), "local all all trust\nlocal replication all trust\n")
        .expect("ours");
    site.server.reload();
    site.server.wait_until("select count(*) from pg_hba_file_rules where error is null", "2");
    let asked = site.walvault.run(["backup", "--fast", "--dbname", &conninfo]).expect_ok();
    assert!(asked.stderr.contains(words) && asked.stderr.contains("this user may not know"), "{}", asked.story());
    assert_eq!(site.listed().len(), 2);
    let restored = site.restore(&["--to-backup-end", "--as", "clone"]);
    let name = |sql: &str| site.server.query_one(sql);
    assert_eq!(name("select count(*) from pg_database"), "3", "{:?}", restored.report);
}
