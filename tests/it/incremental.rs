//! A backup that builds on another stores what changed, restores alone, and holds what a full one of the same moment does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use walvault::pg::page::checksum;

use crate::support::{Chance, Ledger, Major, Restored, Scratch, Site, Stop, TestServer, soaking, tool};

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

/// Takes a first backup and eight that build on each other, with the arguments that `words` has for each, and compares the
/// last with a full one of the same moment.
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
        let taken = backup(number + 1);
        assert_eq!((&taken["parent"], &taken["changes"]["method"]), (&before["id"], &Value::from(method)), "{taken:#}");
        let stored = |backup: &Value| backup["stored_bytes"].as_u64().expect("a number");
        assert!(stored(&taken) < stored(&first), "{sql}: {taken:#}");
        let unread = taken["changes"]["unread_bytes"].as_u64().expect("a number");
        assert!(unread > 5 << 20, "{sql}: {taken:#}");
        let backup = taken["id"].as_str().expect("a name").to_owned();
        site.server.sql(&format!("select pg_create_restore_point('after {backup}')"));
        steps.push(Step { backup, rows: ledger.last().rows, pages: pages_by_name(&site.server) });
        before = taken;
    }
    let last = before["id"].as_str().expect("a name").to_owned();
    // Nothing has happened since but a backup: a full one holds the same.
    let full = site.try_backup(&["--full"]).expect_ok().json();
    assert_eq!(full["parent"], Value::Null);
    site.server.archive_all();
    expect_same_pages(&site, &last, full["id"].as_str().expect("a name"));

    // All older ones can go.
    let production = pages_by_name(&site.server);
    let mut restored = site.restore(&[&LATEST_CLONE[..], &["--backup", &last]].concat());
    Ledger::expect_rows(restored.promoted(), ledger.last().rows);
    assert_eq!(pages_by_name(&restored.server), production);
    expect_sound(&mut restored);
    drop(restored);

    // Each alone, whatever was taken after it: two by chance, all in the long run.
    let chance = Chance::new();
    while steps.len() > if soaking() { 0 } else { CHANGES.len() - 2 } {
        let step = steps.swap_remove(chance.below(steps.len() as u64) as usize);
        let name = format!("after {}", step.backup);
        let target = ["--to-name", &name, "--as", "clone", "--target-action", "promote", "--backup", &step.backup];
        let mut restored = site.restore(&target);
        Ledger::expect_rows(restored.promoted(), step.rows);
        assert_eq!(pages_by_name(&restored.server), step.pages, "{name}");
        expect_sound(&mut restored);
    }
}

/// A backup that builds on the one before, and what there was to see just after it.
struct Step {
    backup: String,
    rows: u64,
    pages: Vec<String>,
}

/// A block whose position in the log was set back, and that no record tells of: what a broken disk, another tool, or a
/// summary that leaves it out amounts to.
#[test]
fn a_block_that_the_log_does_not_tell_of_is_found_by_its_hash_alone() {
    for (major, method) in [(Major::V15, "log"), (Major::V17, "summaries")] {
        let mut site = site(major);
        site.server.sql("create table still as select n, md5(n::text) as text from generate_series(1, 60000) n");
        site.server.sql("vacuum (freeze) still; checkpoint");
        site.backup();
        let path = site.server.query_one("select pg_relation_filepath('still')");
        let live = site.server.pgdata().join(&path);
        site.server.stop(Stop::Fast);
        let mut bytes = fs::read(&live).expect("a relation");
        let page = &mut bytes[3 * 8192..4 * 8192];
        page[..8].fill(0);
        page[8000] ^= 1;
        let sum = checksum(page, 3);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        fs::write(&live, &bytes).expect("a relation");
        site.server.start();
        let kept = |arguments: &[&str]| {
            let taken = site.try_backup(arguments).expect_ok().json();
            site.server.archive_all();
            let id = taken["id"].as_str().expect("a name");
            let restored = site.restore(&["--to-backup-end", "--as", "clone", "--backup", id]);
            let same = fs::read(restored.server.pgdata().join(&path)).expect("a relation") == bytes;
            (taken["changes"]["method"].as_str().expect("a word").to_owned(), same)
        };
        // What the log does not name is not read.
        assert_eq!(kept(&[]), (method.to_owned(), false), "{major}");
        assert_eq!(kept(&["--read-all"]), ("hashes".to_owned(), true), "{major}");
    }
}

/// Rows of every table, counted and summed up.
fn pages_by_name(server: &TestServer) -> Vec<String> {
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
    // No two of a server's log have one name.
    let name = site.server.query_one("select 'compared at ' || pg_current_wal_insert_lsn()");
    let target = site.server.query_one(&format!("select pg_create_restore_point('{name}')"));
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
    let (ours, theirs) = (relation_files(one.server.pgdata()), relation_files(other.server.pgdata()));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{target}");
    let different = ours.iter().map(|(path, bytes)| (path.clone(), different_pages(path, bytes, &theirs[path])));
    different.filter(|(_, pages)| !pages.is_empty()).collect()
}

/// Main forks: maps of free space and visibility are not kept up by replay, and are judged by what they say.
fn relation_files(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let below = |directory: &Path| -> Vec<PathBuf> {
        fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("a listed entry").path()).collect()
    };
    let spaces = below(&data.join("pg_tblspc")).into_iter().flat_map(|space| below(&space));
    let databases = spaces.chain([data.join("base")]).flat_map(|place| below(&place)).chain([data.join("global")]);
    for directory in databases {
        for entry in fs::read_dir(&directory).expect("a directory of relations") {
            let path = entry.expect("a listed entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name.chars().all(|c| c.is_ascii_digit() || c == '.') {
                let short = path.strip_prefix(data).expect("below").to_owned();
                found.insert(short, fs::read(&path).expect("a relation"));
            }
        }
    }
    found
}

fn different_pages(_: &Path, ours: &[u8], theirs: &[u8]) -> Vec<usize> {
    if ours.len() != theirs.len() {
        return vec![ours.len().min(theirs.len()) / 8192];
    }
    let pages = ours.chunks(8192).zip(theirs.chunks(8192)).enumerate();
    pages.filter(|(_, (ours, theirs))| masked(ours) != masked(theirs)).map(|(number, _)| number).collect()
}

/// A page without what replay does not keep: its checksum, hints in the header, free space, and hint bits of rows.
///
/// Source: `mask_page_lsn_and_checksum`, `mask_page_hint_bits`, `mask_unused_space` in
/// `src/backend/access/common/bufmask.c`, `heap_mask` in `src/backend/access/heap/heapam_xlog.c`.
fn masked(page: &[u8]) -> Vec<u8> {
    let mut page = page.to_vec();
    let word = |page: &[u8], at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
    let (lower, upper, special) = (word(&page, 12), word(&page, 14), word(&page, 16));
    // LSN too: a hint may have been logged with the whole page.
    page[..12].fill(0);
    if upper < lower || upper > page.len() || lower < 24 || special > page.len() {
        return page;
    }
    page[20..24].fill(0);
    page[lower..upper].fill(0);
    for at in (24..lower).step_by(4) {
        let item = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let (offset, flags, len) = ((item & 0x7FFF) as usize, item >> 15 & 3, (item >> 17) as usize);
        if special == page.len() && flags == 1 && len >= 23 && offset + len <= page.len() {
            // Hint bits of xmin and xmax in t_infomask, and t_ctid's command id.
            page[offset + 21] &= 0xF0;
            page[offset + 8..offset + 12].fill(0);
        } else if special < page.len() && flags & 1 == 1 {
            // Dead entries of an index are a hint.
            page[at + 1] &= 0x7F;
            page[at + 2] &= 0xFE;
        }
    }
    if special < page.len() {
        // Flags of a B-tree page hold hints: that there is garbage, and the cycle of a vacuum.
        let end = page.len();
        page[end - 4..].fill(0);
    }
    page
}
