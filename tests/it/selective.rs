//! A restore that leaves databases out: the others are whole, whatever the log does to those that are not there, and nobody
//! can take what was left out for a database.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::site::backup_of;
use crate::support::{Major, Restored, Scratch, Site, Stop, TestRepo, TestServer, Walvault, tool};

#[test]
fn postgresql_15_without_checksums_comes_back_without_some_databases() {
    comes_back_without_some_databases(Major::V15, false);
}

#[test]
fn postgresql_18_comes_back_without_some_databases() {
    comes_back_without_some_databases(Major::V18, true);
}

#[test]
fn postgresql_13_comes_back_without_a_database() {
    comes_back_without_a_database(Major::V13);
}

#[test]
fn postgresql_14_comes_back_without_a_database() {
    comes_back_without_a_database(Major::V14);
}

#[test]
fn postgresql_16_comes_back_without_a_database() {
    comes_back_without_a_database(Major::V16);
}

/// Tables with every kind of index, in both databases alike.
const TABLES: &str = "
    create table plain as select n, md5(n::text) as text from generate_series(1, 8000) n;
    create table torn as select n, md5(n::text) as text from generate_series(1, 3000) n;
    create table hashed as select n, 'same' as text from generate_series(1, 3000) n;
    create index on hashed using hash (text);
    create table changed (n int primary key, text text, words text[], at point);
    insert into changed select n, md5(n::text), array[md5(n::text), 'x'], point(n, n) from generate_series(1, 2000) n;
    create index on changed using hash (text);
    create index on changed using gin (words);
    create index on changed using gist (at);
    create index on changed using spgist (text);
    create index on changed using brin (n);
    create table doomed as select n from generate_series(1, 5000) n;
    create unlogged table volatile as select n from generate_series(1, 100) n;
    create sequence counter;";

/// What happens to both after the backup. Setting pages all-visible, and much of what a vacuum does to an index of hashes,
/// brings no page along.
const CHANGES: [&str; 9] = [
    "vacuum plain; delete from hashed where n > 2000; vacuum hashed",
    "insert into changed select n, 'same', array['same'], point(n, 1) from generate_series(10000, 12000) n",
    "delete from changed where n % 3 = 0 or n between 10001 and 11000",
    "vacuum changed",
    "update changed set text = md5(text) where n % 7 = 0; select nextval('counter') from generate_series(1, 50)",
    "drop table doomed; create table later as select n, md5(n::text) as text from generate_series(1, 3000) n",
    "create index on later (text); vacuum full pg_class; reindex index changed_text_idx",
    "checkpoint",
    "delete from plain where n > 6000; vacuum plain; insert into plain select n, 'again' from generate_series(6001, 7000) n",
];

fn comes_back_without_some_databases(major: Major, checksums: bool) {
    let mut site = Site::of(TestServer::builder(major).segment_mib(1));
    if !checksums {
        site.server.stop(Stop::Fast);
        let arguments = [OsStr::new("--disable"), OsStr::new("-D"), site.server.pgdata().as_os_str()];
        tool::tool(major, "pg_checksums", arguments).expect_ok();
        site.server.start();
    }
    site.server.create_tablespace("far");
    site.server.sql("create database keep; create database gone; create database \"GoneToo\" tablespace far");
    for database in ["keep", "gone", "GoneToo"] {
        site.server.sql_in(database, TABLES);
        site.server.sql_in(database, "alter table plain set tablespace far");
    }
    site.backup();
    for database in ["keep", "gone", "GoneToo"] {
        site.server.sql_in(database, &CHANGES.join(";"));
    }
    // Pages are changed that the log does not bring along at all.
    site.server.sql("alter system set full_page_writes = off; select pg_reload_conf(); checkpoint");
    site.server.wait_until("show full_page_writes", "off");
    for database in ["keep", "gone"] {
        site.server.sql_in(database, "update torn set text = 'torn' where n % 10 = 0; vacuum torn");
    }
    site.server.sql("alter system reset full_page_writes; select pg_reload_conf(); checkpoint");
    site.server.wait_until("show full_page_writes", "on");
    // Made of what is not there: file by file, and page by page through the log.
    site.server.sql("create database by_file template gone strategy file_copy");
    site.server.sql("create database by_log template gone strategy wal_log");
    for database in ["by_file", "by_log"] {
        site.server.sql_in(database, "update changed set text = 'mine' where n % 5 = 0");
        site.server.sql_in(database, "vacuum (freeze) changed; vacuum plain; delete from plain where n < 100");
    }
    site.server.sql("alter database \"GoneToo\" set tablespace pg_default");
    site.server.sql_in("GoneToo", "vacuum (freeze) changed; insert into plain values (1, 'moved')");
    site.server.sql("create database made; checkpoint");
    site.server.sql_in("made", TABLES);
    site.server.archive_all();
    let expected = ["keep", "by_log", "made"].map(|database| contents(&site.server, database));

    expect_refusals(&site);
    let spaces = Scratch::new();
    let root = spaces.join("tablespaces");
    let only = ["--as", "clone", "--tablespace-root", root.to_str().expect("plain text"), "--only-database", "keep"];
    let place = Scratch::new();
    let data = place.join("data");
    let socket = format!("unix_socket_directories={}", place.path().display());
    let bin = major.program("pg_ctl").parent().expect("a program lies in a folder").to_owned();
    let start = ["--to-latest", "--start", "--target-action", "promote", "--pg-bin", bin.to_str().expect("plain text")];
    let private = ["--set", &socket, "--set", "listen_addresses=", "--set", "port=5432"];
    let outcome = site.try_restore(&data, &[&only[..], &start, &private].concat()).expect_code(4);
    let report = outcome.json();
    let names = |value: &serde_json::Value| -> Vec<String> {
        let entries = value.as_array().expect("an array").iter();
        entries.map(|entry| entry["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&report["left_out"]), ["gone", "GoneToo"], "{report:#}");
    // What was copied from one file by file is no better than it.
    assert_eq!(names(&report["closed"]), ["GoneToo", "by_file", "gone"], "{report:#}");
    assert!(outcome.stderr.contains("leaves out gone, GoneToo"), "{}", outcome.story());
    let stop = [OsStr::new("stop"), OsStr::new("-w"), OsStr::new("-D"), data.as_os_str()];
    tool::tool(major, "pg_ctl", stop).expect_ok();
    if checksums {
        tool::check_checksums(major, &data).expect_ok();
    }
    let mut copy = TestServer::over(major, &data);
    copy.start();
    for (database, expected) in ["keep", "by_log", "made"].iter().zip(&expected) {
        assert_eq!(contents(&copy, database), *expected, "{database}");
    }
    tool::check_relations(&copy).expect_ok();
    for database in ["gone", "GoneToo", "by_file"] {
        let refused = copy.psql(&format!("\\c \"{database}\"\nselect 1")).expect_err("it was left out");
        assert!(refused.contains(&format!("database \"{database}\"")), "{refused}");
        copy.psql(&format!("create database another template \"{database}\"")).expect_err("it was left out");
        copy.psql(&format!("create database another template \"{database}\" strategy file_copy"))
            .expect_err("it was left out");
    }
    expect_no_backup_before_they_are_dropped(&mut copy);
}

/// The majors that the others do not try, with the words that all of them know.
fn comes_back_without_a_database(major: Major) {
    let site = Site::of(TestServer::builder(major).segment_mib(1));
    site.server.create_tablespace("far");
    site.server.sql("create database keep");
    site.server.sql("create database gone tablespace far");
    for database in ["keep", "gone"] {
        site.server.sql_in(database, TABLES);
        site.server.sql_in(database, "alter table plain set tablespace far");
    }
    site.backup();
    for database in ["keep", "gone"] {
        site.server.sql_in(database, &CHANGES.join(";"));
    }
    site.server.sql("create database copied template gone");
    site.server.sql_in("gone", "vacuum full; vacuum (freeze) changed");
    site.server.archive_all();
    let expected = contents(&site.server, "keep");
    let spaces = Scratch::new();
    let root = spaces.join("tablespaces");
    let target = ["--to-latest", "--as", "clone", "--target-action", "promote", "--exclude-database", "gone"];
    let places = ["--tablespace-root", root.to_str().expect("plain text")];
    let mut restored = Restored::by_with_code(&site.walvault, major, &[&target[..], &places].concat(), 4);
    let close = restored.report["close"].as_str().expect("a statement").to_owned();
    let copy = restored.promoted();
    assert_eq!(contents(copy, "keep"), expected);
    copy.psql("\\c gone\nselect 1").expect_err("it was left out");
    copy.sql(&close);
    copy.psql("\\c gone\nselect 1").expect_err("it is closed");
    copy.psql("create database another template gone").expect_err("it is closed");
    for database in ["gone", "copied"] {
        copy.sql(&format!("drop database {database}"));
    }
    assert_eq!(contents(copy, "keep"), expected);
    // The program of 15 does not find the tablespaces of the older two, whose servers have read these pages with their checksums.
    if major > Major::V14 {
        restored.expect_sound_pages();
    }
}

/// Rows of every table, by the files and by what every index finds.
fn contents(server: &TestServer, database: &str) -> String {
    server.sql_in(
        database,
        "select count(*), md5(string_agg(plain::text, ',' order by n)) from plain;
         select count(*), md5(string_agg(changed::text, ',' order by n)) from changed;
         select count(*), md5(string_agg(torn::text, ',' order by n)) from torn;
         set enable_seqscan = off;
         select count(*) from hashed where text = 'same'; select count(*) from changed where text = 'same'; select count(*) from changed where words @> array['same'];
         select relname, relkind from pg_class where relnamespace = 'public'::regnamespace order by 1",
    )
}

fn expect_refusals(site: &Site) {
    let refused = |arguments: &[&str], words: &[&str]| {
        site.expect_refused(&[&["--to-latest"], arguments].concat(), 64, words);
    };
    let unknown = ["--as", "clone", "--only-database", "Keep"];
    refused(&unknown, &["there was no database Keep", "GoneToo, gone, keep, postgres, template0, template1"]);
    refused(&["--as", "clone", "--exclude-database", "postgres"], &["postgres cannot be left out"]);
    refused(&["--as", "primary", "--exclude-database", "gone"], &["--as clone"]);
    refused(&["--as", "clone", "--exclude-database", "gone", "--only-database", "keep"], &["cannot be used with"]);
    refused(&["--as", "clone", "--exclude-database", "gone", "--delta"], &["cannot be used with"]);
    refused(&["--as", "clone", "--drop-excluded"], &["--start"]);
}

/// The clone begins to archive, as if it were a cluster of its own.
fn expect_no_backup_before_they_are_dropped(copy: &mut TestServer) {
    let repo = TestRepo::new();
    let walvault = Walvault::on(&repo);
    walvault.run(["init"]).expect_ok();
    for (name, value) in [("archive_mode", "on"), ("archive_command", &walvault.archive_command())] {
        copy.sql(&format!("alter system set {name} = $walvault${value}$walvault$"));
    }
    copy.restart();
    for source in ["local", "remote"] {
        let refused = backup_of(copy, &walvault, &["--from", source]).expect_code(78);
        assert!(refused.stderr.contains("marks a database that a restore left out"), "{}", refused.story());
    }
    copy.sql("drop database gone");
    backup_of(copy, &walvault, &[]).expect_code(78);
    copy.sql("drop database \"GoneToo\"");
    copy.sql("drop database by_file");
    // Its timeline began before it archived.
    walvault.clone().in_directory(copy.pgdata()).run(["wal", "push", "pg_wal/00000002.history"]).expect_ok();
    backup_of(copy, &walvault, &[]).expect_ok();
}

#[test]
fn what_was_left_out_is_dropped_or_cannot_be_entered_even_by_a_server_started_by_hand() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    site.server.sql("create database keep; create database gone");
    site.server.sql_in("gone", "create table plain as select n, md5(n::text) as text from generate_series(1, 40000) n");
    site.server.sql_in("keep", "create table plain as select n from generate_series(1, 1000) n");
    site.backup();
    // The catalogues of the one that is left out are written anew, page by page in the log.
    site.server.sql_in("gone", "vacuum full; checkpoint; vacuum (freeze) plain");
    site.server.archive_all();
    let table = site.server.sql_in("gone", "select pg_relation_filepath('plain')");
    let target = ["--to-latest", "--as", "clone", "--target-action", "promote", "--exclude-database", "gone"];

    let mut restored = Restored::by_with_code(&site.walvault, Major::V17, &target, 4);
    let file = fs::metadata(restored.server.pgdata().join(&table));
    // Replay may have made it anew, under another name.
    assert!(file.is_err() || file.is_ok_and(|file| file.blocks() * 512 < file.len()), "zeros take no room");
    let close = restored.report["close"].as_str().expect("a statement").to_owned();
    let copy = restored.promoted();
    assert_eq!(copy.sql_in("keep", "select count(*) from plain"), "1000");
    let refused = copy.psql("\\c gone\nselect 1").expect_err("it was left out");
    assert!(refused.contains("left-out-by-walvault-restore,drop-this-database"), "{refused}");
    // Its catalogues are whole again by the log: one made of it can be entered, whatever there is in its tables.
    copy.sql("create database hollow template gone strategy wal_log");
    assert_eq!(copy.sql_in("hollow", "select 1"), "1");
    copy.sql("drop database hollow");
    copy.sql(&close);
    let refused = copy.psql("create database hollow template gone strategy wal_log").expect_err("it is closed");
    assert!(refused.contains("invalid database"), "{refused}");
    copy.sql("drop database gone");

    let place = Scratch::new();
    let data = place.join("data");
    let socket = format!("unix_socket_directories={}", place.path().display());
    let bin = Major::V17.program("pg_ctl").parent().expect("a program lies in a folder").to_owned();
    let start = ["--start", "--drop-excluded", "--pg-bin", bin.to_str().expect("plain text"), "--set", &socket];
    let private = ["--set", "listen_addresses=", "--set", "port=5432"];
    let report = site.try_restore(&data, &[&target[..], &start, &private].concat()).expect_ok().json();
    assert_eq!(report["closed"][0]["dropped"], true, "{report:#}");
    let stop = [OsStr::new("stop"), OsStr::new("-w"), OsStr::new("-D"), data.as_os_str()];
    tool::tool(Major::V17, "pg_ctl", stop).expect_ok();
    let mut copy = TestServer::over(Major::V17, &data);
    copy.start();
    assert_eq!(copy.query_one("select count(*) from pg_database where datname = 'gone'"), "0");
    assert_eq!(copy.sql_in("keep", "select count(*) from plain"), "1000");
    tool::check_relations(&copy).expect_ok();
}
