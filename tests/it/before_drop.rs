//! A table that was dropped or emptied by mistake comes back as it was, and what others committed meanwhile stays.

use crate::support::{Ledger, Major, Site, TestServer};

#[test]
fn a_dropped_table_comes_back_with_what_others_committed_meanwhile_15() {
    a_dropped_table_comes_back_with_what_others_committed_meanwhile(Major::V15);
}

#[test]
fn a_dropped_table_comes_back_with_what_others_committed_meanwhile_18() {
    a_dropped_table_comes_back_with_what_others_committed_meanwhile(Major::V18);
}

fn a_dropped_table_comes_back_with_what_others_committed_meanwhile(major: Major) {
    let site = Site::of(TestServer::builder(major).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.server.sql(
        "create table doomed as select g as n, repeat('d', 100) as words from generate_series(1, 500) g;
         create table vacuumed (n int primary key, words text);
         insert into vacuumed select g, repeat('v', 100) from generate_series(1, 500) g;
         create table twice (n int); create table kept (n int);
         create schema other; create table other.kept (n int)",
    );
    site.backup();
    ledger.commit(&site.server, 5);
    site.server.sql("insert into doomed select g, 'after the backup' from generate_series(501, 600) g");
    // The one table is written anew, which removes files too, and then emptied.
    site.server.sql("vacuum full vacuumed");
    site.server.sql("cluster vacuumed using vacuumed_pkey");
    let before_truncate = ledger.commit(&site.server, 5).rows;
    site.server.sql("truncate vacuumed");
    site.server.sql("insert into vacuumed values (1, 'new')");
    site.server.sql("reindex table vacuumed");
    site.server.sql("truncate twice");
    site.server.sql("truncate twice");
    // The drop is in a subtransaction; the ledger goes on while its transaction is at work.
    let mut dropping = site.server.session();
    dropping.rows("begin; savepoint s; drop table doomed; release s; create table doomed (n int)").expect("it works");
    let before_drop = ledger.commit_singly(&site.server, 5).rows;
    dropping.rows("commit").expect("it works");
    ledger.commit_singly(&site.server, 5);
    site.server.archive_all();

    for (target, by, rows, relation, contents) in [
        ("doomed", "drop", before_drop, "doomed", "600|180300"),
        ("postgres.public.vacuumed", "truncate", before_truncate, "vacuumed", "500|125250"),
    ] {
        let mut restored = site.restore(&["--before-drop", target, "--as", "clone", "--target-action", "promote"]);
        assert_eq!(restored.report["removed"]["by"], by, "{:#}", restored.report);
        assert_eq!(restored.report["removed"]["relation"], format!("public.{relation}"));
        let server = restored.promoted();
        Ledger::expect_rows(server, rows);
        assert_eq!(server.query_one(&format!("select count(*) || '|' || sum(n) from {relation}")), contents);
        restored.expect_planned_end();
    }
    for (name, words) in [
        ("twice", "was truncated more than once, by the commits at"),
        ("kept", "write one in full: postgres.other.kept, postgres.public.kept"),
        ("other.kept", "other.kept is neither dropped nor truncated"),
        ("never", "no backup on this branch knows a relation never"),
    ] {
        site.expect_refused(&["--before-drop", name, "--as", "clone"], 2, &[words, "restorable from"]);
    }
    site.expect_refused(&["--before-drop", "a.b.c.d", "--as", "clone"], 64, &["is no name of a relation"]);

    // Once a newer backup is there, the one from before the drop is used; the table of that name was made later.
    site.backup();
    ledger.commit(&site.server, 1);
    site.server.archive_all();
    assert_eq!(site.plan(&["--before-drop", "doomed"], 0).json()["removed"]["by"], "drop");
}

#[test]
fn a_dropped_database_and_tablespace_come_back_as_they_were_15() {
    a_dropped_database_and_tablespace_come_back_as_they_were(Major::V15);
}

#[test]
fn a_dropped_database_and_tablespace_come_back_as_they_were_18() {
    a_dropped_database_and_tablespace_come_back_as_they_were(Major::V18);
}

fn a_dropped_database_and_tablespace_come_back_as_they_were(major: Major) {
    let site = Site::of(TestServer::builder(major).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.server.sql("create database shop");
    site.server.sql("create database other");
    site.server.sql_in("shop", "create table orders as select g as n from generate_series(1, 100) g");
    let place = site.server.create_tablespace("fast");
    site.backup();
    ledger.commit(&site.server, 5);
    site.server.sql_in("shop", "insert into orders select g from generate_series(101, 150) g");
    // Other rows of the same catalogue are changed in place too, before and after.
    site.server.sql_in("other", "vacuum");
    site.server.sql_in("shop", "vacuum");
    let before = ledger.commit_singly(&site.server, 3).rows;
    site.server.sql("drop database shop");
    site.server.sql_in("other", "vacuum");
    ledger.commit(&site.server, 5);
    let later = ledger.last().rows;
    let oid = site.server.query_one("select oid from pg_tablespace where spcname = 'fast'");
    site.server.sql("drop tablespace fast");
    ledger.commit(&site.server, 5);
    site.server.archive_all();

    let spaces = site.server.beside("spaces");
    let root =
        ["--tablespace-root", spaces.to_str().expect("plain text"), "--as", "clone", "--target-action", "promote"];
    let mut restored = site.restore(&[&["--before-drop-database", "shop"][..], &root].concat());
    let server = restored.promoted();
    Ledger::expect_rows(server, before);
    assert_eq!(server.sql_in("shop", "select count(*) || '|' || sum(n) from orders"), "150|11325");
    restored.expect_planned_end();

    let spaces = site.server.beside("more spaces");
    let root =
        ["--tablespace-root", spaces.to_str().expect("plain text"), "--as", "clone", "--target-action", "promote"];
    for name in [oid.as_str(), place.to_str().expect("plain text")] {
        let plan = site.plan(&["--before-drop-tablespace", name], 0).json();
        assert_eq!(plan["target"].as_str().map(|text| text.contains("was dropped")), Some(true), "{plan:#}");
    }
    let mut restored = site.restore(&[&["--before-drop-tablespace", &oid][..], &root].concat());
    let server = restored.promoted();
    Ledger::expect_rows(server, later);
    assert_eq!(server.query_one("select count(*) from pg_tablespace where spcname = 'fast'"), "1");
    server.sql("create table there (n int) tablespace fast");
    restored.expect_planned_end();

    for (arguments, words) in [
        (["--before-drop-database", "other"], "database other is not dropped"),
        (["--before-drop-database", "never"], "no backup on this branch knows a database never"),
        (["--before-drop-tablespace", "1"], "no backup on this branch knows a tablespace 1"),
    ] {
        site.expect_refused(&[&arguments[..], &["--as", "clone"]].concat(), 2, &[words, "restorable from"]);
    }
}
