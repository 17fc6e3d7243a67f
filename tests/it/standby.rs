//! A standby bootstrapped from the catalogue follows its primary, and whoever takes the primary's place.

use crate::support::{Ledger, Major, Restored, Site};

fn standby_of(site: &Site) -> Restored {
    let mut standby = site.restore(&["--as", "standby", "--primary-conninfo", &site.server.conninfo()]);
    standby.server.start();
    standby
}

fn expect_follows(standby: &Restored, rows: u64) {
    standby.server.wait_until("select count(*) from ledger", &rows.to_string());
    standby.server.wait_until("select status from pg_stat_wal_receiver", "streaming");
    assert_eq!(standby.server.query_one("select pg_is_in_recovery()"), "t");
}

#[test]
fn postgresql_15_standbys_follow_their_primary_and_the_next_one() {
    follow_their_primary_and_the_next_one(Major::V15);
}

#[test]
fn postgresql_18_standbys_follow_their_primary_and_the_next_one() {
    follow_their_primary_and_the_next_one(Major::V18);
}

fn follow_their_primary_and_the_next_one(major: Major) {
    let mut site = Site::start(major);
    let mut ledger = Ledger::create(&site.server);
    ledger.commit(&site.server, 20);
    // What an earlier recovery left in the configuration must not hold the standby back.
    site.server.set("recovery_target_time", "2020-01-01 00:00:00+00");
    site.server.set("recovery_target_timeline", "current");
    site.backup();
    let archived = ledger.commit(&site.server, 20).rows;
    site.server.archive_all();

    let (first, mut second) = (standby_of(&site), standby_of(&site));
    expect_follows(&first, archived);
    let rows = ledger.commit_singly(&site.server, 10).rows;
    expect_follows(&first, rows);
    expect_follows(&second, rows);
    for name in ["", "_time", "_lsn", "_xid", "_name"] {
        assert_eq!(
            first.server.query_one(&format!("select '[' || current_setting('recovery_target{name}') || ']'")),
            "[]"
        );
    }
    assert_eq!(first.server.query_one("show recovery_target_timeline"), "latest");

    site.server.kill9();
    first.server.promote();
    ledger.resume(&first.server);
    let rows = ledger.commit_singly(&first.server, 10).rows;
    second.server.sql(&format!("alter system set primary_conninfo = '{}'", first.server.conninfo()));
    second.server.reload();
    expect_follows(&second, rows);
    // Its own end comes too: what it was told of the new timeline stands on its disk.
    second.server.restart();
    expect_follows(&second, rows);
    Ledger::expect_rows(&second.server, rows);
    assert_eq!(second.server.query_one("select received_tli from pg_stat_wal_receiver"), "2");

    // And a third one, bootstrapped now from the old backup, finds its way through both timelines.
    first.server.archive_all();
    let mut third = site.restore(&["--as", "standby", "--primary-conninfo", &first.server.conninfo()]);
    third.server.start();
    expect_follows(&third, rows);
    Ledger::expect_rows(&third.server, rows);
}

#[test]
fn a_standby_without_a_connection_follows_the_archive() {
    let site = Site::start(Major::V17);
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    let mut standby = site.restore(&["--as", "standby"]);
    standby.server.start();
    for _ in 0..2 {
        let rows = ledger.commit(&site.server, 20).rows;
        site.server.archive_all();
        standby.server.wait_until("select count(*) from ledger", &rows.to_string());
    }
    assert_eq!(standby.server.query_one("select pg_is_in_recovery(), count(*) from pg_stat_wal_receiver"), "t|0");
}
