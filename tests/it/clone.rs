//! A clone stands beside the server that it was copied from, and reaches out to nothing.

use std::fs;

use crate::support::{Ledger, Major, Site, Stop, TestServer, tool};

#[test]
fn postgresql_15_clones_reach_out_to_nothing() {
    reaches_out_to_nothing(Major::V15);
}

#[test]
fn postgresql_18_clones_reach_out_to_nothing() {
    reaches_out_to_nothing(Major::V18);
}

fn reaches_out_to_nothing(major: Major) {
    let builder = TestServer::builder(major).segment_mib(1).set("wal_level", "logical");
    // So that commits do not wait for a standby that never comes.
    let site = Site::of(builder.set("synchronous_commit", "local").set("synchronous_standby_names", "nobody"));
    let marks = site.server.beside("marks");
    for setting in ["archive_cleanup_command", "recovery_end_command"] {
        site.server.set(setting, &format!("touch {}/{setting}", marks.display()));
    }
    site.server.set("primary_conninfo", &site.server.conninfo());
    site.server.set("primary_slot_name", "taken");
    site.server.sql("select pg_create_physical_replication_slot('taken', true)");
    // A subscription would connect as soon as the clone is up.
    site.server.sql("create database elsewhere");
    site.server.sql("create table shared (n int); create publication everything for table shared");
    site.server.sql_in("elsewhere", "create table shared (n int)");
    let connection = site.server.conninfo().replace('\'', "''");
    site.server.sql("select pg_create_logical_replication_slot('feed', 'pgoutput')");
    site.server.sql_in(
        "elsewhere",
        &format!(
            "create subscription feed connection '{connection}' publication everything
             with (create_slot = false, enabled = true)"
        ),
    );
    site.server.wait_until("select count(*) from pg_stat_replication where application_name = 'feed'", "1");
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();

    let before = site.repo.snapshot();
    let mut clone = site.restore(&["--to-latest", "--as", "clone", "--target-action", "promote"]);
    assert_eq!(clone.report["archiving"], false);
    Ledger::expect_rows(clone.promoted(), rows);
    let in_effect = clone.server.sql(
        "select name, setting from pg_settings where name in ('archive_mode', 'archive_command', 'archive_library',
         'archive_cleanup_command', 'recovery_end_command', 'primary_conninfo', 'primary_slot_name',
         'synchronous_standby_names', 'max_logical_replication_workers') order by name",
    );
    assert_eq!(
        in_effect,
        "archive_cleanup_command|\narchive_command|(disabled)\narchive_library|\narchive_mode|off\n\
         max_logical_replication_workers|0\nprimary_conninfo|\nprimary_slot_name|\nrecovery_end_command|\n\
         synchronous_standby_names|"
    );
    clone.server.sql("create table written_here ()");
    for _ in 0..3 {
        clone.server.switch_wal();
    }
    clone.server.sql("checkpoint");
    assert_eq!(clone.server.query_one("select count(*) from pg_stat_subscription where pid is not null"), "0");
    assert_eq!(
        site.server
            .query_one("select count(*) from pg_stat_replication where application_name !~ '^(feed|pg_.*_sync_.*)$'"),
        "0"
    );
    clone.server.stop(Stop::Fast);
    before.expect_only_read(site.repo.path());
    assert_eq!(fs::read_dir(&marks).expect("a directory").count(), 0);
    tool::check_checksums(major, clone.server.pgdata()).expect_ok();
}
