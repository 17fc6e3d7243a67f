//! A backup is taken of a server that does not hold still, and what is not a backup is never listed as one.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::process::COMMAND_LIMIT;
use crate::support::site::backup_of;
use crate::support::{Ledger, Major, Restored, Site, Stop, TestRepo, TestServer, Walvault, tool, within};

const LATEST_CLONE: [&str; 5] = ["--to-latest", "--as", "clone", "--target-action", "promote"];

#[test]
fn postgresql_15_under_load_comes_back_whole() {
    comes_back_whole_under_load(Major::V15);
}

#[test]
fn postgresql_17_under_load_comes_back_whole() {
    comes_back_whole_under_load(Major::V17);
}

#[test]
fn postgresql_18_under_load_comes_back_whole() {
    comes_back_whole_under_load(Major::V18);
}

/// Each line is one statement of the storm, run in turn until the backup is over.
const STORM: [&str; 9] = [
    "create table storm as select g, repeat(md5(g::text), 20) as filling from generate_series(1, 500) as g",
    "create index on storm (g)",
    "insert into growing select g, repeat(md5(g::text), 20) from generate_series(1, 300) as g",
    "insert into forgotten select g from generate_series(1, 300) as g",
    "create temp table passing as select g from generate_series(1, 300) as g; drop table passing",
    "vacuum full storm",
    "truncate storm",
    "checkpoint",
    "drop table storm",
];

fn comes_back_whole_under_load(major: Major) {
    let site = Site::of(TestServer::builder(major).set("autovacuum", "on"));
    let server = &site.server;
    server.sql(
        "create table growing (g int, filling text);
         create unlogged table forgotten (g int, n int primary key generated always as identity);
         select pg_create_physical_replication_slot('left_behind', true);",
    );
    let mut temporary = server.session();
    temporary.rows("create temp table held as select g from generate_series(1, 1000) as g").expect("a table");
    let writing = Ledger::create(server).keep_committing(server, 2);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut session = server.session();
        let over = &over;
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                STORM.iter().for_each(|statement| drop(session.rows(statement).expect("the storm goes on")));
            }
        });
        server.wait_until("select count(*) > 20 from ledger", "t");
        site.backup();
        over.store(true, Ordering::Relaxed);
    });
    let ledger = writing.stop();
    server.archive_all();

    let mut restored = site.restore(&LATEST_CLONE);
    expect_nothing_passing(server, &restored);
    let copy = restored.promoted();
    Ledger::expect_rows(copy, ledger.last().rows);
    assert_eq!(copy.query_one("select count(*) from forgotten"), "0");
    assert_eq!(
        copy.query_one("select count(*), sum(length(filling)) from growing"),
        server.query_one("select count(*), sum(length(filling)) from growing")
    );
    assert_eq!(copy.query_one("select count(*) from pg_replication_slots"), "0");
    restored.expect_planned_end();
    tool::check_relations(&restored.server).expect_ok();
    restored.expect_sound_pages();
}

/// Panics if a copy holds what belongs to the running server only.
fn expect_nothing_passing(server: &TestServer, restored: &Restored) {
    let data = restored.server.pgdata();
    let names = |directory: &str| -> Vec<String> {
        let entries = fs::read_dir(data.join(directory)).unwrap_or_else(|error| panic!("list {directory}: {error}"));
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    for empty in ["pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"]
    {
        assert_eq!(names(empty), [""; 0], "{empty}");
    }
    let mut wal = names("pg_wal");
    wal.retain(|name| name != "summaries");
    assert_eq!(wal, ["archive_status", "walvault.plan"]);
    for absent in ["postmaster.pid", "postmaster.opts", "tablespace_map", "pg_internal.init"] {
        assert!(!data.join(absent).exists(), "{absent}");
    }
    let database = server.query_one("select 'base/' || oid from pg_database where datname = 'postgres'");
    let relations = names(&database);
    assert!(!relations.iter().any(|name| name.starts_with('t') || name == "pg_internal.init"), "{relations:?}");
    // Nothing of an unlogged relation but the fork that recovery makes the others from.
    for relation in ["forgotten", "forgotten_pkey"] {
        let path = server.query_one(&format!("select pg_relation_filepath('{relation}')"));
        let file = path.rsplit('/').next().expect("a path");
        let mut forks = relations.clone();
        forks.retain(|name| name.split(['_', '.']).next() == Some(file));
        assert_eq!(forks, [format!("{file}_init")]);
    }
}

#[test]
fn what_changes_between_listing_and_reading_is_made_good_by_the_log() {
    let site = Site::start(Major::V15);
    let server = &site.server;
    let filling = "(select string_agg(md5(random()::text), '') from generate_series(1, 60 + g % 3))";
    server.sql(&format!("create table first as select g, {filling} as filling from generate_series(1, 20000) as g"));
    for name in ["dropped", "grown", "cut", "rewritten"] {
        server.sql(&format!("create table {name} as select g, {filling} as filling from generate_series(1, 200) as g"));
    }
    let mut ledger = Ledger::create(server);
    ledger.commit(server, 10);
    let gone = server.query_one("select pg_relation_filepath('dropped')");
    let one_thread = site.walvault.clone().env("WALVAULT_CPUS", "1");
    let first: u64 = server.query_one("select pg_relation_size('first')").parse().expect("a number");
    // A pack is there: everything was listed. And less was read than the first table holds, so nothing behind it was; one
    // that was too quick is ended, and another one begun.
    let packs = || site.repo.find_all("main/*/packs/*").len();
    let begun = (0..50).find_map(|_| {
        let before = packs();
        let mut backup = one_thread.start(["backup", "--json", "--fast", "--dbname", &server.conninfo()]);
        within(Duration::from_secs(60), || packs() > before || !backup.is_running(), "a pack is stored");
        backup.signal(Signal::STOP);
        within(Duration::from_secs(60), || backup.is_stopped() || !backup.is_running(), "it is stopped");
        (backup.is_running() && backup.bytes_read() < first).then_some(backup)
    });
    let mut backup = begun.expect("a backup is stopped in its first table");
    server.sql(
        "drop table dropped;
         insert into grown select g, filling from grown, generate_series(1, 5);
         delete from cut where g > 5; vacuum cut; vacuum full rewritten; checkpoint;",
    );
    assert!(!server.pgdata().join(&gone).exists());
    let rows = ledger.commit(server, 10).rows;
    backup.signal(Signal::CONT);
    let backup = backup.wait(COMMAND_LIMIT).expect_ok();
    assert!(!backup.stderr.contains("warning"), "{}", backup.story());
    server.archive_all();

    let mut restored = site.restore(&LATEST_CLONE);
    assert!(!restored.server.pgdata().join(&gone).exists());
    restored.promoted();
    Ledger::expect_rows(&restored.server, rows);
    let digest = "select md5(string_agg(t::text, '' order by t)) from";
    for name in ["first", "grown", "cut", "rewritten"] {
        let digest = format!("{digest} (select g, filling from {name}) as t");
        assert_eq!(restored.server.query_one(&digest), server.query_one(&digest), "{name}");
    }
    tool::check_relations(&restored.server).expect_ok();
    restored.expect_sound_pages();
}

#[test]
fn a_damaged_page_is_reported_and_copied_as_it_is() {
    let mut site = Site::start(Major::V17);
    site.server.sql("create table cold as select g, repeat('x', 500) as filling from generate_series(1, 1000) as g");
    let path = site.server.query_one("select pg_relation_filepath('cold')");
    site.server.stop(Stop::Fast);
    let file = site.server.pgdata().join(&path);
    let open = fs::File::options().read(true).write(true).open(&file).expect("the table's file");
    let (mut byte, at) = ([0], 5 * 8192 + 4000);
    open.read_exact_at(&mut byte, at).expect("page 5 is there");
    open.write_all_at(&[byte[0] ^ 1], at).expect("page 5 is there");
    site.server.start();

    let backup = site.try_backup(&[]).expect_ok();
    assert!(backup.stderr.contains(&format!("damaged page, copied as it is: {path} page 5")), "{}", backup.story());
    let id = backup.json()["id"].as_str().expect("a name").to_owned();
    let shown = site.walvault.run(["show", &id, "--json"]).expect_ok().json();
    assert_eq!(shown["damaged_pages"], serde_json::json!([{ "path": path, "page": 5 }]));

    let restored = site.restore(&["--to-backup-end", "--as", "clone"]);
    let read = |path| fs::read(path).expect("the table's file");
    assert!(read(file) == read(restored.server.pgdata().join(path)), "the copy differs");
}

#[test]
fn a_backup_without_its_wal_is_no_backup() {
    let repo = TestRepo::new();
    let walvault = Walvault::on(&repo).env("WALVAULT_WAL_TIMEOUT", "2");
    walvault.run(["init"]).expect_ok();
    let server = TestServer::builder(Major::V18).archive_command("false").start();
    let refused = backup_of(&server, &walvault, &[]).expect_code(3);
    assert!(refused.stderr.contains("did not reach the archive within 2 s"), "{}", refused.story());
    assert!(refused.stderr.contains("hint: look at archive_command"), "{}", refused.story());
    assert_eq!(refused.stdout, "");
    assert_eq!(walvault.run(["list", "--json"]).expect_ok().json()["backups"], serde_json::json!([]));

    server.set_archive_command(&walvault.archive_command());
    // The archiver may be in one of its pauses after a failure.
    let taken = backup_of(&server, &Walvault::on(&repo), &[]).expect_ok().json();
    assert_eq!(walvault.run(["list", "--json"]).expect_ok().json()["backups"][0]["id"], taken["id"]);
}

#[test]
fn what_cannot_be_backed_up_is_refused_and_nothing_is_stored() {
    let site = Site::start(Major::V15);
    site.backup();
    let mute = TestServer::builder(Major::V15).set("archive_mode", "off").identity(1).start();
    let other = TestServer::builder(Major::V15).identity(2).create();
    let (elsewhere, nowhere) = (other.pgdata().to_str().expect("plain text"), other.beside("empty"));
    let nowhere = nowhere.to_str().expect("plain text");
    site.server.archive_all();

    let before = site.repo.snapshot();
    for (server, arguments, code, words) in [
        (&mute, &[][..], 78, "archive_mode is off on the server"),
        (&site.server, &["--pgdata", elsewhere], 78, "the server that was connected to is system"),
        (&site.server, &["--pgdata", nowhere], 1, nowhere),
        (&site.server, &["--pgdata", "/no/such/directory"], 1, "/no/such/directory"),
        (&site.server, &["--no-such-option"], 64, "--no-such-option"),
    ] {
        let refused = backup_of(server, &site.walvault, arguments).expect_code(code);
        assert!(refused.stderr.contains(words), "{words:?} was expected\n{}", refused.story());
        assert_eq!(refused.stdout, "");
    }
    let refused = site.walvault.run(["backup", "--dbname", "host=/no/such/socket"]).expect_code(1);
    assert!(refused.stderr.contains("connect to /no/such/socket"), "{}", refused.story());
    before.expect_unchanged(site.repo.path());
}

#[test]
fn a_database_that_moves_while_the_backup_runs_is_not_lost() {
    for major in [Major::V15, Major::V18] {
        let site = Site::of(TestServer::builder(major).segment_mib(1));
        site.server.create_tablespace("fast");
        site.server.sql("create database moving");
        site.server.sql_in("moving", "create table precious as select 1 as number");
        let mut session = site.server.session();
        let conninfo = site.server.conninfo();
        let refused = (0..10).any(|round| {
            let mut backup = site.walvault.start(["backup", "--fast", "--dbname", &conninfo]);
            let copying = "select 1 from pg_stat_activity where query like '%pg_backup_start%' and state = 'idle' and \
                           pid <> pg_backend_pid()";
            while backup.is_running() && session.rows(copying).expect("it is a query").is_empty() {}
            backup.signal(rustix::process::Signal::STOP);
            let space = ["fast", "pg_default"][round % 2];
            drop(session.rows(&format!("alter database moving set tablespace {space}")));
            backup.signal(rustix::process::Signal::CONT);
            let outcome = backup.wait(COMMAND_LIMIT);
            let refused = outcome.stderr.contains("was copied or moved to another tablespace, and its source dropped");
            assert_eq!(outcome.code, Some(i32::from(refused)), "{}", outcome.story());
            refused
        });
        assert!(refused, "the database was never moved between start and stop");
        assert!(site.listed().len() < 10, "{:?}", site.listed());
        site.backup();
        let spaces = crate::support::Scratch::new();
        let root = spaces.join("tablespaces");
        let target = ["--to-backup-end", "--as", "clone", "--target-action", "promote", "--tablespace-root"];
        let mut restored = site.restore(&[&target[..], &[root.to_str().expect("plain text")]].concat());
        assert_eq!(restored.promoted().sql_in("moving", "select number from precious"), "1");
    }
}
