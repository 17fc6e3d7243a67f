//! A backup that builds on another stores what changed, restores alone, and holds what a full one of the same moment does.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use walvault::pg::page::checksum;

use crate::support::{Chance, Ledger, Major, Pages, Restored, Scratch, Site, Stop, TestServer, soaking, tool};

const LATEST_CLONE: [&str; 5] = ["--to-latest", "--as", "clone", "--target-action", "promote"];

#[test]
fn postgresql_15_reads_what_its_log_names() {
    builds_on_the_backup_before(Major::V15, "log", |_| &[]);
}

#[test]
fn postgresql_17_reads_what_its_summaries_name() {
    builds_on_the_backup_before(Major::V17, "summaries", |_| &[]);
}

#[test]
fn postgresql_18_reads_what_its_summaries_name() {
    builds_on_the_backup_before(Major::V18, "summaries", |_| &[]);
}

pub fn site(major: Major) -> Site {
    let server = TestServer::builder(major).segment_mib(1).set("autovacuum", "off");
    Site::of(if major == Major::V15 { server } else { server.set("summarize_wal", "on") })
}

/// Changes of every kind that leave most pages as they are.
const CHANGES: [&str; 8] = [
    "vacuum full wide",
    "update wide set text = 'changed' where n % 997 = 0; vacuum wide",
    "insert into wide select n, md5(n::text) from generate_series(100000, 104000) n",
    "delete from wide where n > 95000; vacuum (truncate) wide",
    "insert into wide select n, 'over the old end' from generate_series(100000, 101000) n",
    "create table later as select n, md5(n::text) as text from generate_series(1, 30000) n; create index on later (text)",
    "truncate later; insert into later select 1, 'one'",
    "create database copied strategy file_copy; update still set text = 'changed' where n % 500 = 0",
];

/// Takes a first backup and eight that build on each other, with the arguments that `words` has for each. Every one of them
/// holds, page for page, what the server did when it was taken; the last is also compared with a full one.
pub fn builds_on_the_backup_before(major: Major, method: &str, words: fn(usize) -> &'static [&'static str]) {
    let site = site(major);
    let backup = |number: usize| site.try_backup(words(number)).expect_ok().json();
    let changes = if major == Major::V15 {
        // Other words for the only way that there was before.
        CHANGES.map(|sql| sql.replace(" strategy file_copy", ""))
    } else {
        CHANGES.map(str::to_owned)
    };
    site.server.sql(
        "create table wide as select n, md5(n::text) as text from generate_series(1, 60000) n;
         create table still as select n, md5(n::text) as text from generate_series(1, 60000) n;
         create index on wide (text); vacuum (freeze) wide; vacuum (freeze) still;",
    );
    let mut ledger = Ledger::create(&site.server);
    let first = backup(0);
    assert_eq!((&first["parent"], &first["changes"]["method"]), (&Value::Null, &Value::from("full")), "{first:#}");
    let mut before = first.clone();
    let mut steps: Vec<Step> = Vec::new();
    for (number, sql) in changes.iter().enumerate() {
        for statement in sql.split("; ") {
            site.server.sql(statement);
        }
        ledger.commit(&site.server, 3);
        // Before the backup: reading tidies pages up, and what is logged behind a backup mends whatever it has wrong.
        let tables = rows_by_name(&site.server);
        let taken = backup(number + 1);
        assert_eq!((&taken["parent"], &taken["changes"]["method"]), (&before["id"], &Value::from(method)), "{taken:#}");
        assert!(taken["changes"]["doubted_files"].as_u64().unwrap_or_default() == 0, "{taken:#}");
        let stored = |backup: &Value| backup["stored_bytes"].as_u64().expect("a number");
        assert!(stored(&taken) < stored(&first), "{sql}: {taken:#}");
        let unread = taken["changes"]["unread_bytes"].as_u64().expect("a number");
        assert!(unread > 5 << 20, "{sql}: {taken:#}");
        let backup = taken["id"].as_str().expect("a name").to_owned();
        // All that is in memory is put into the files, here and later where this is replayed.
        site.server.sql("checkpoint");
        site.server.sql(&format!("select pg_create_restore_point('after {backup}')"));
        steps.push(Step { backup, rows: ledger.last().rows, tables, pages: Pages::of(site.server.pgdata()) });
        before = taken;
    }
    let last = before["id"].as_str().expect("a name").to_owned();
    // Nothing has happened since but a backup: a full one holds the same.
    let full = site.try_backup(&["--full"]).expect_ok().json();
    assert_eq!(full["parent"], Value::Null);
    site.server.archive_all();
    expect_same_pages(&site, &last, full["id"].as_str().expect("a name"));

    // All older ones can go.
    let production = rows_by_name(&site.server);
    let mut restored = site.restore(&[&LATEST_CLONE[..], &["--backup", &last]].concat());
    Ledger::expect_rows(restored.promoted(), ledger.last().rows);
    assert_eq!(rows_by_name(&restored.server), production);
    expect_sound(&mut restored);
    drop(restored);

    // Each alone, whatever was taken after it; by PostgreSQL's own judges one by chance, all in the long run.
    let judged = Chance::new().below(steps.len() as u64) as usize;
    for (number, step) in steps.iter().enumerate() {
        let name = format!("after {}", step.backup);
        let mut restored = site.restore(&["--to-name", &name, "--as", "clone", "--backup", &step.backup]);
        restored.paused();
        Ledger::expect_rows(&restored.server, step.rows);
        assert_eq!(rows_by_name(&restored.server), step.tables, "{name}");
        restored.server.stop(Stop::Fast);
        step.pages.expect_same(&Pages::of(restored.server.pgdata()), &name);
        if soaking() || number == judged {
            restored.server.start();
            restored.server.promote();
            restored.server.wait_until_writable();
            expect_sound(&mut restored);
        }
    }
}

/// A backup that builds on the one before, and what there was just after it.
struct Step {
    backup: String,
    rows: u64,
    tables: Vec<String>,
    pages: Pages,
}

/// A block whose position in the log was set back, and that no record tells of: what a broken disk, another tool, or a
/// summary that leaves it out amounts to. The file system tells of it, if nothing else of the file changed; else only its hash
/// does.
#[test]
fn a_block_that_the_log_does_not_tell_of_is_found_by_its_hash() {
    for (major, method) in [(Major::V15, "log"), (Major::V17, "summaries")] {
        let mut site = site(major);
        for table in ["still", "stirred"] {
            site.server.sql(&format!(
                "create table {table} as select n, md5(n::text) as text from generate_series(1, 60000) n"
            ));
            site.server.sql(&format!("vacuum (freeze) {table}"));
        }
        site.server.sql("checkpoint");
        site.backup();
        let paths =
            ["still", "stirred"].map(|table| site.server.query_one(&format!("select pg_relation_filepath('{table}')")));
        site.server.sql("insert into stirred values (0, 'one more')");
        site.server.stop(Stop::Fast);
        for path in &paths {
            let live = site.server.pgdata().join(path);
            let mut bytes = fs::read(&live).expect("a relation");
            let page = &mut bytes[3 * 8192..4 * 8192];
            page[..8].fill(0);
            page[8000] ^= 1;
            let sum = checksum(page, 3);
            page[8..10].copy_from_slice(&sum.to_le_bytes());
            fs::write(&live, &bytes).expect("a relation");
            // Written in another second than the one in which the backup looked at it.
            set_time_of_writing(&live, 1);
        }
        site.server.start();
        let kept = |arguments: &[&str]| {
            let outcome = site.try_backup(arguments).expect_ok();
            let (taken, warned) = (outcome.json(), outcome.stderr.contains(&paths[0]));
            site.server.archive_all();
            let id = taken["id"].as_str().expect("a name");
            let restored = site.restore(&["--to-backup-end", "--as", "clone", "--backup", id]);
            let same = |path: &String| {
                let pages = [restored.server.pgdata(), site.server.pgdata()].map(|data| fs::read(data.join(path)));
                let [ours, theirs] = pages.map(|bytes| bytes.expect("a relation")[3 * 8192..4 * 8192].to_vec());
                ours == theirs
            };
            let method = taken["changes"]["method"].as_str().expect("a word").to_owned();
            (method, taken["changes"]["doubted_files"].as_u64(), warned, paths.each_ref().map(same))
        };
        // Of a file that the log has something of, what it does not name is not read.
        assert_eq!(kept(&[]), (method.to_owned(), Some(1), true, [true, false]), "{major}");
        assert_eq!(kept(&["--read-all"]), ("hashes".to_owned(), Some(0), false, [true, true]), "{major}");
    }
}

/// Says that a file was written so many seconds after 2001 began.
fn set_time_of_writing(path: &std::path::Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(978_307_200 + seconds);
    let file = fs::File::options().write(true).open(path).expect("a relation");
    file.set_modified(time).expect("its own file");
}

/// A file that somebody put in another's place while the server was down: the log does not know, and the file system does.
#[test]
fn a_file_that_was_put_in_anothers_place_is_read_whole() {
    let mut site = site(Major::V15);
    // Hints are not logged without checksums, and times of writing tell nothing.
    site.server.stop(Stop::Fast);
    let words = ["--disable", "-D", site.server.pgdata().to_str().expect("plain text")];
    tool::tool(Major::V15, "pg_checksums", words).expect_ok();
    site.server.start();
    site.server.sql("create table still as select n, md5(n::text) as text from generate_series(1, 60000) n");
    site.server.sql("vacuum (freeze) still; checkpoint");
    site.backup();
    let path = site.server.query_one("select pg_relation_filepath('still')");
    let live = site.server.pgdata().join(&path);
    let started = site.server.query_one("select floor(extract(epoch from clock_timestamp()))");
    // The file system's clock counts seconds here: the next one.
    site.server.wait_until(&format!("select floor(extract(epoch from clock_timestamp())) > {started}"), "t");
    site.server.stop(Stop::Fast);
    let mut bytes = fs::read(&live).expect("a relation");
    bytes[3 * 8192 + 8000] ^= 1;
    fs::remove_file(&live).expect("a relation");
    fs::write(&live, &bytes).expect("a new file");
    crate::support::user::ServerUser::get().take_over(&live);
    let knows_births = fs::metadata(&live).expect("a file").created().is_ok();
    site.server.start();
    let taken = site.backup();
    assert_eq!(taken["changes"]["method"], "log", "{taken:#}");
    assert_eq!(taken["changes"]["doubted_files"], Value::from(u64::from(knows_births)), "{taken:#}");
    site.server.archive_all();
    let id = taken["id"].as_str().expect("a name");
    let restored = site.restore(&["--to-backup-end", "--as", "clone", "--backup", id]);
    assert_eq!(fs::read(restored.server.pgdata().join(&path)).expect("a relation") == bytes, knows_births);
}

/// Rows of every table, counted and summed up.
fn rows_by_name(server: &TestServer) -> Vec<String> {
    let sum =
        |table: &str| server.query_one(&format!("select count(*), md5(string_agg(text, '' order by n)) from {table}"));
    let there = |table: &&str| server.query_one(&format!("select to_regclass('{table}') is not null")) == "t";
    ["wide", "still", "later"].into_iter().filter(there).map(sum).collect()
}

/// PostgreSQL's own judges: tables, indexes, visibility maps, and the checksum of every page.
#[track_caller]
pub(crate) fn expect_sound(restored: &mut Restored) {
    let server = &restored.server;
    server.sql("create extension if not exists pg_visibility");
    let wrong =
        "select count(*) from pg_class c cross join lateral pg_check_visible(c.oid) where relkind in ('r', 't', 'm')";
    assert_eq!(server.query_one(wrong), "0");
    assert_eq!(server.query_one(&wrong.replace("visible", "frozen")), "0");
    tool::check_relations(server).expect_ok();
    restored.expect_sound_pages();
}

/// Restores two backups to the same moment; panics if a page of a relation is another.
#[track_caller]
pub(crate) fn expect_same_pages(site: &Site, one: &str, other: &str) {
    let different = different_files(site, one, other);
    assert!(different.is_empty(), "{different:#?}");
}

/// Restores two backups to the same moment and compares every page of every relation; returns those that differ.
#[track_caller]
pub(crate) fn different_files(site: &Site, one: &str, other: &str) -> BTreeMap<PathBuf, Vec<usize>> {
    // A recovery that meets no checkpoint but that of its backup's start leaves what it replayed in memory when it is stopped.
    site.server.sql("checkpoint");
    // No two of a server's log have one name.
    let name = site.server.query_one("select 'compared at ' || pg_current_wal_insert_lsn()");
    site.server.sql(&format!("select pg_create_restore_point('{name}')"));
    site.server.archive_all();
    let places = Scratch::new();
    let recovered = |backup: &str| {
        let root = places.join(backup);
        let root = root.to_str().expect("plain text");
        let arguments = ["--to-name", &name, "--as", "clone", "--backup", backup, "--tablespace-root", root];
        let mut restored = site.restore(&arguments);
        restored.paused();
        // Everything that was replayed is brought to the files.
        restored.server.stop(Stop::Fast);
        restored
    };
    let (one, other) = (recovered(one), recovered(other));
    Pages::of(one.server.pgdata()).differences(&Pages::of(other.server.pgdata()))
}
