//! A backup reads what the archived log names: on servers that make no summaries of their log, through changes of every
//! kind; compared with PostgreSQL's own summaries where there are some; and with a block left out, to see that it matters.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use walvault::format::changes::{self, Found};
use walvault::format::object::{Kind, NewObject, Object, Tail};
use walvault::pg::{ChangesChain, Lsn, RelationLocator, Run, SegmentChanges, SegmentName, SegmentSize, TimelineId};

use crate::incremental::{different_files, expect_same_pages, expect_sound};
use crate::support::{Ledger, Major, Scratch, Site, Stop, TestServer};

const LATEST_CLONE: [&str; 5] = ["--to-latest", "--as", "clone", "--target-action", "promote"];

fn site(major: Major) -> Site {
    Site::of(TestServer::builder(major).segment_mib(1).set("autovacuum", "off"))
}

fn method(backup: &Value) -> &str {
    backup["changes"]["method"].as_str().expect("a word")
}

fn text<'a>(backup: &'a Value, member: &str) -> &'a str {
    backup[member].as_str().expect("text")
}

fn number(backup: &Value, member: &str) -> u64 {
    backup["changes"][member].as_u64().expect("a number")
}

/// Tables that most changes leave alone.
const TABLES: &str = "
    create table wide as select n, md5(n::text) as text from generate_series(1, 60000) n;
    create table still as select n, md5(n::text) as text from generate_series(1, 60000) n;
    create table many as select n, md5(n::text) as text, array[n % 100, n % 7] as words,
        point(n % 300, n / 300) as place, n::text || 'x' as path from generate_series(1, 20000) n;
    create table cut as select n, md5(n::text) as text from generate_series(1, 20000) n;
    create index on wide (text); vacuum (freeze) wide; vacuum (freeze) still; vacuum (freeze) many";

/// Every access method, every way for a file to come, go, move and shrink, and a crash in the middle of it.
#[test]
fn every_kind_of_change_is_in_the_log() {
    let mut site = site(Major::V15);
    site.server.create_tablespace("side");
    site.server.sql(TABLES);
    for sql in [
        "create index on many using gin (words)",
        "create index on many using gist (place)",
        "create index on many using spgist (path)",
        "create index on many using brin (n)",
        "create index on many using hash (text)",
        "create index many_n on many (n)",
        "create table gone as select * from many",
        "create table moves as select * from many",
        "create sequence counted",
    ] {
        site.server.sql(sql);
    }
    let mut ledger = Ledger::create(&site.server);
    let first = site.backup();
    assert_eq!(method(&first), "full");
    let before_crash = [
        "update many set text = 'changed', words = array[n], place = point(n, n), path = n || 'y' where n % 401 = 0",
        "insert into many select n, 'new', array[n], point(n, 1), n || 'z' from generate_series(30000, 31000) n",
        "delete from many where n between 100 and 400",
        "vacuum many",
        "cluster many using many_n",
        "drop table gone",
        "alter table moves set tablespace side",
        "create database copied strategy file_copy",
        "create database logged strategy wal_log tablespace side",
        "alter database copied set tablespace side",
        "delete from wide where n > 55000",
        "vacuum (truncate) wide",
        "delete from cut where n > 15000",
        "vacuum (truncate) cut",
    ];
    for sql in before_crash {
        site.server.sql(sql);
    }
    ledger.commit(&site.server, 3);
    site.server.stop(Stop::Immediate);
    site.server.start();
    site.server.wait_until_writable();
    let after_crash = [
        "insert into wide select n, 'over the old end' from generate_series(100000, 101000) n",
        "drop database logged",
        "reindex table many",
        "vacuum full moves",
        "truncate moves",
        "insert into moves select * from many where n < 2000",
        "select nextval('counted') from generate_series(1, 40)",
        "create unlogged table scratch as select * from many where n < 100",
        "alter table scratch set logged",
        "select lo_from_bytea(0, convert_to(repeat('large', 30000), 'UTF8'))",
    ];
    for sql in after_crash {
        site.server.sql(sql);
    }
    ledger.commit(&site.server, 3);
    site.server.archive_all();
    let taken = site.backup();
    assert_eq!((method(&taken), &taken["parent"]), ("log", &first["id"]), "{taken:#}");
    assert!(number(&taken, "unread_bytes") > 2 << 20, "{taken:#}");
    let full = site.try_backup(&["--full"]).expect_ok().json();
    site.server.archive_all();
    expect_same_pages(&site, text(&taken, "id"), text(&full, "id"));
    let places = Scratch::new();
    let root = places.join("tablespaces");
    let places = ["--backup", text(&taken, "id"), "--tablespace-root", root.to_str().expect("plain text")];
    let mut restored = site.restore(&[&LATEST_CLONE[..], &places].concat());
    Ledger::expect_rows(restored.promoted(), ledger.last().rows);
    expect_sound(&mut restored);
}

/// The oldest major and the newest without summaries.
#[test]
fn postgresql_13_and_16_build_on_what_their_log_names() {
    for major in [Major::V13, Major::V16] {
        let site = site(major);
        site.server.sql(TABLES);
        let mut ledger = Ledger::create(&site.server);
        let first = site.backup();
        for sql in [
            "update wide set text = 'changed' where n % 997 = 0",
            "truncate many",
            "insert into many select n, 'again', '{}', point(1, 2), 'p' from generate_series(1, 3000) n",
            "create database copied",
            "vacuum wide",
        ] {
            site.server.sql(sql);
        }
        ledger.commit(&site.server, 3);
        let taken = site.backup();
        assert_eq!((method(&taken), &taken["parent"]), ("log", &first["id"]), "{taken:#}");
        assert!(number(&taken, "unread_bytes") > 2 << 20, "{taken:#}");
        site.server.archive_all();
        let sums = |server: &TestServer| {
            ["wide", "still", "many"].map(|table| {
                server.query_one(&format!("select md5(string_agg(t::text, '' order by n, text)) from {table} t"))
            })
        };
        let mut restored = site.restore(&[&LATEST_CLONE[..], &["--backup", text(&taken, "id")]].concat());
        Ledger::expect_rows(restored.promoted(), ledger.last().rows);
        assert_eq!(sums(&restored.server), sums(&site.server));
        restored.expect_sound_pages();
    }
}

/// What the archived segments between two positions change, by relation: the limit, and blocks.
fn told(site: &Site, start: Lsn, end: Lsn) -> BTreeMap<RelationLocator, (Option<u32>, BTreeSet<u32>)> {
    let mut chain = ChangesChain::new(TimelineId::FIRST, start, end, SegmentSize::new(1 << 20).expect("a size"));
    let mut found: BTreeMap<RelationLocator, (Option<u32>, BTreeSet<u32>)> = BTreeMap::new();
    for name in chain.segments() {
        let (_, stored) = archived(site, name);
        let (changes, _) = read(&stored);
        let added = chain.add(name, &changes, &mut |one| {
            let (limit, blocks) = found.entry(one.relation).or_default();
            *limit = limit.iter().chain(&one.limit).min().copied();
            blocks.extend(one.runs.iter().flat_map(|run| run.first..run.first + run.len));
        });
        added.unwrap_or_else(|problem| panic!("{name}: {problem}"));
    }
    chain.finish().expect("every segment is there");
    found
}

fn archived(site: &Site, name: SegmentName) -> (String, Vec<u8>) {
    let key = site.repo.find(&format!("main/*/wal/*/{name}.zst"));
    let stored = site.repo.read(&key);
    (key, stored)
}

fn read(stored: &[u8]) -> (SegmentChanges, walvault::format::Sha256) {
    match changes::find(stored, stored.len() as u64).expect("sound") {
        Found::Changes(changes, segment) => (*changes, segment),
        other => panic!("{other:?}"),
    }
}

/// PostgreSQL's own summaries are the judge: whatever they name, the archived log names.
#[test]
fn the_log_names_all_that_the_servers_own_summaries_do() {
    let server = TestServer::builder(Major::V17).segment_mib(1).set("autovacuum", "off").set("summarize_wal", "on");
    let site = Site::of(server);
    site.server.create_tablespace("side");
    site.server.sql(TABLES);
    site.server.sql("create index on many using gin (words)");
    let first = site.backup();
    for sql in [
        "update wide set text = 'changed' where n % 997 = 0",
        "insert into many select n, 'new', array[n], point(n, 1), 'z' from generate_series(30000, 39000) n",
        "create index on many using gist (place)",
        "create index on many using spgist (path)",
        "create index on many using hash (text)",
        "delete from cut where n > 15000",
        "vacuum (truncate) cut",
        "create table later as select * from many; alter table later set tablespace side; drop table later",
        "create database copied strategy file_copy",
        "create database logged strategy wal_log",
        "alter database copied set tablespace side",
        "drop database logged",
        "begin; create table never (n int); insert into never values (1); rollback",
        "vacuum full many",
        "checkpoint",
        "update wide set text = 'again' where n % 1003 = 0",
        "reindex table many",
    ] {
        site.server.sql(sql);
    }
    let second = site.backup();
    assert_eq!(method(&second), "summaries", "{second:#}");
    let position = |backup: &Value| text(backup, "start_lsn").parse::<Lsn>().expect("a position");
    let (start, end) = (position(&first), position(&second));
    let found = told(&site, start, end);
    let rows = site.server.sql(&format!(
        "select reltablespace, reldatabase, relfilenode, relblocknumber, is_limit_block
         from pg_available_wal_summaries() s, pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn)
         where relforknumber = 0 and s.start_lsn < '{end}' and s.end_lsn > '{start}'"
    ));
    let (mut blocks, mut limits) = (0, 0);
    for row in rows.lines() {
        let fields: Vec<&str> = row.split('|').collect();
        let number = |place: usize| fields[place].parse::<u32>().expect("a number");
        let relation = RelationLocator { tablespace: number(0), database: number(1), relation: number(2) };
        let whole = found.get(&RelationLocator { relation: 0, ..relation }).is_some_and(|(limit, _)| *limit == Some(0));
        let known = found.get(&relation).unwrap_or_else(|| panic!("nothing is told of {relation:?}"));
        let behind = known.0.is_some_and(|limit| number(3) >= limit);
        if fields[4] == "t" {
            limits += 1;
            assert!(behind || whole, "{row}: {:?}", known.0);
        } else {
            blocks += 1;
            assert!(behind || whole || known.1.contains(&number(3)), "{row}");
        }
    }
    assert!(blocks > 300 && limits > 20, "{blocks} blocks, {limits} limits");
    // Not by naming everything: of the table that nobody touched nothing is told, of another one some of its blocks.
    let file = |table: &str| {
        let path = site.server.query_one(&format!("select pg_relation_filepath('{table}')"));
        path.rsplit('/').next().and_then(|name| name.parse::<u32>().ok()).expect("a number")
    };
    assert!(found.keys().all(|one| one.relation != file("still")));
    let (_, (limit, blocks)) = found.iter().find(|(one, _)| one.relation == file("wide")).expect("it was changed");
    let pages: usize = site.server.query_one("select pg_relation_size('wide') / 8192").parse().expect("a number");
    assert!(limit.is_none() && blocks.len() < pages, "{limit:?}, {} of {pages}", blocks.len());
    let (_, (limit, _)) = found.iter().find(|(one, _)| one.relation == file("cut")).expect("it was changed");
    assert!(limit.is_some_and(|limit| limit > 50), "{limit:?}");
}

/// A block that the log does not name is not read: what was in it is lost, and `--read-all` finds it.
#[test]
fn a_block_left_out_is_missed_by_the_log_and_found_by_reading_all() {
    let site = site(Major::V15);
    site.server.sql(TABLES);
    site.backup();
    site.server.sql("checkpoint");
    site.server.sql("update wide set text = 'changed' where n between 20000 and 20010");
    site.server.archive_all();
    let file = site.server.query_one("select pg_relation_filepath('wide')");
    let relation: u32 = file.rsplit('/').next().and_then(|name| name.parse().ok()).expect("a number");
    let mut left_out = 0;
    for key in site.repo.find_all("main/*/wal/00000001/*/*.zst") {
        let stored = site.repo.read(&key);
        let Ok(Found::Changes(mut told, segment)) = changes::find(&stored, stored.len() as u64) else { continue };
        // What was there before the first backup may stay.
        let wide = told.relations.iter_mut().filter(|one| one.relation.relation == relation && one.limit.is_none());
        for one in wide {
            left_out += one.runs.len();
            // A block far behind its end: of a table that nothing is told of, the time of writing would be looked at.
            one.runs = vec![Run { first: 1 << 20, len: 1 }];
        }
        if left_out > 0 {
            site.repo.replace(&key, &retold(&stored, &key, &told, &segment));
        }
    }
    assert!(left_out > 0, "the update was archived");
    let taken = site.backup();
    assert_eq!(method(&taken), "log", "{taken:#}");
    let read_all = site.try_backup(&["--read-all"]).expect_ok().json();
    assert_eq!(method(&read_all), "hashes", "{read_all:#}");
    let full = site.try_backup(&["--full"]).expect_ok().json();
    site.server.archive_all();
    let different = different_files(&site, text(&taken, "id"), text(&full, "id"));
    assert_eq!(
        different.keys().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
        [file.as_str()],
        "{different:?}"
    );
    expect_same_pages(&site, text(&read_all, "id"), text(&full, "id"));
}

/// Makes a segment's object anew, with other changes.
fn retold(stored: &[u8], key: &str, told: &SegmentChanges, segment: &walvault::format::Sha256) -> Vec<u8> {
    let parts: Vec<&str> = key.split('/').collect();
    let identity = format!("{}/{}", parts[1], parts.last().and_then(|name| name.strip_suffix(".zst")).expect("a name"));
    let object = Object::open(stored, Kind::Wal, &identity).expect("sound");
    let tail = Tail::decode(stored, stored.len() as u64).expect("sound");
    let at = object.body.len();
    let frame = u32::from_le_bytes(object.body[at - 8..at - 4].try_into().expect("4 bytes")) as usize;
    let mut made = NewObject::new(Kind::Wal, identity).expect("a short identity");
    made.body().extend_from_slice(&object.body[..at - frame]);
    changes::append(told, segment, made.body());
    made.finish(tail.raw, tail.raw_len, object.section).0
}
