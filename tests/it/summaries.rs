//! A server whose summaries of its log lack something: what is missed then, and what finds it.

use std::fs;

use serde_json::Value;

use crate::incremental::{different_files, expect_same_pages, site};
use crate::support::{Major, TestServer};

/// Bytes of an entry: tablespace, database, relation, fork, limit, number of chunks, each 4.
const ENTRY: usize = 24;
/// Blocks of a chunk that is a bitmap.
const BITMAP: u16 = 4096;

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// What is written in place of a relation's number, or of a block's.
enum Omitted {
    Relation(u32),
    Block(u32, u16),
}

/// Changes what summaries say of a main fork; panics unless it is there.
///
/// Source: `src/common/blkreftable.c`: a magic number, entries, each with the lengths of its chunks and the chunks, a list of
/// blocks or a bitmap; an entry of zeros; CRC-32C of all that.
fn omit(server: &TestServer, omitted: &Omitted) {
    let folder = server.pgdata().join("pg_wal/summaries");
    let mut found = 0;
    for summary in fs::read_dir(folder).expect("summaries").map(|entry| entry.expect("a listed entry").path()) {
        let mut bytes = fs::read(&summary).expect("a summary");
        let mut at = 4;
        while bytes[at..at + ENTRY].iter().any(|byte| *byte != 0) {
            let (relation, fork, chunks) =
                (word(&bytes, at + 8), word(&bytes, at + 12), word(&bytes, at + 20) as usize);
            let used = |chunk: usize| {
                let place = at + ENTRY + 2 * chunk;
                u16::from_le_bytes([bytes[place], bytes[place + 1]])
            };
            let contents = at + ENTRY + 2 * chunks;
            let next = contents + (0..chunks).map(|chunk| 2 * usize::from(used(chunk))).sum::<usize>();
            let listed = chunks > 0 && used(0) < BITMAP;
            match *omitted {
                Omitted::Relation(number) if relation == number && fork == 0 => {
                    bytes[at + 8..at + 12].copy_from_slice(&u32::MAX.to_le_bytes());
                    found += 1;
                }
                Omitted::Block(number, block) if relation == number && fork == 0 && listed => {
                    for place in (contents..contents + 2 * usize::from(used(0))).step_by(2) {
                        if bytes[place..place + 2] == block.to_le_bytes() {
                            // One that is far behind the relation's end.
                            bytes[place..place + 2].copy_from_slice(&u16::MAX.to_le_bytes());
                            found += 1;
                        }
                    }
                }
                _ => {}
            }
            at = next;
        }
        let end = bytes.len() - 4;
        let sum = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_le_bytes());
        fs::write(&summary, &bytes).expect("a summary");
    }
    assert!(found > 0, "a summary has it");
}

/// A block that is missing in a summary is missed, as by PostgreSQL's own incremental backups, until everything is read. A
/// relation that is missing with all its blocks is not: its file was written since.
#[test]
fn a_block_that_a_summary_leaves_out_is_found_by_reading_all_and_a_relation_at_once() {
    let site = site(Major::V17);
    let server = &site.server;
    for table in ["wide", "lone"] {
        server.sql(&format!("create table {table} as select n, md5(n::text) as text from generate_series(1, 60000) n"));
        server.sql(&format!("vacuum (freeze) {table}"));
    }
    let file = |table: &str| {
        let path = server.query_one(&format!("select pg_relation_filepath('{table}')"));
        let number: u32 = path.rsplit('/').next().and_then(|name| name.parse().ok()).expect("a number");
        (path, number)
    };
    let ((wide, wide_number), (lone, lone_number)) = (file("wide"), file("lone"));
    let block: u16 =
        server.query_one("select (ctid::text::point)[0]::int from wide where n = 30000").parse().expect("a block");
    site.backup();
    // What is written now is written in another second than the one in which the backup looked at the files.
    let looked = server.query_one("select extract(epoch from clock_timestamp())");
    server.wait_until(&format!("select extract(epoch from clock_timestamp()) > {looked} + 1.5"), "t");
    server.sql("update wide set text = 'changed' where n in (7, 30000)");
    server.sql("update lone set text = 'changed' where n in (7, 30000)");
    let written = server.query_one("select pg_current_wal_insert_lsn()");
    server.sql("checkpoint");
    server.wait_until(&format!("select max(end_lsn) >= '{written}' from pg_available_wal_summaries()"), "t");
    omit(server, &Omitted::Block(wide_number, block));
    omit(server, &Omitted::Relation(lone_number));

    let id = |backup: &Value| backup["id"].as_str().expect("a name").to_owned();
    let outcome = site.try_backup(&[]).expect_ok();
    let taken = outcome.json();
    assert_eq!(taken["changes"]["method"], "summaries", "{taken:#}");
    assert_eq!(taken["changes"]["doubted_files"], 1, "{taken:#}");
    assert!(outcome.stderr.contains(&lone), "{}", outcome.story());
    let read_all = site.try_backup(&["--read-all"]).expect_ok().json();
    assert_eq!(read_all["changes"]["method"], "hashes", "{read_all:#}");
    let full = site.try_backup(&["--full"]).expect_ok().json();
    server.archive_all();
    let different = different_files(&site, &id(&taken), &id(&full));
    assert_eq!(different.into_iter().collect::<Vec<_>>(), [(wide.into(), vec![usize::from(block)])]);
    expect_same_pages(&site, &id(&read_all), &id(&full));
}

/// A page may be torn that was not logged whole: neither the backup that begins without, nor the next one, rests on the log.
#[test]
fn without_full_pages_in_the_log_everything_is_read() {
    let site = site(Major::V17);
    site.backup();
    let changes = |setting: &str| {
        site.server.set("full_page_writes", setting);
        site.server.reload();
        site.server.wait_until("show full_page_writes", setting);
        let taken = site.backup();
        let text = |name: &str| taken["changes"][name].as_str().expect("a word").to_owned();
        (text("method"), text("reason").contains("full_page_writes"))
    };
    assert_eq!(changes("off"), ("hashes".to_owned(), true));
    assert_eq!(changes("on"), ("hashes".to_owned(), true));
    assert_eq!(changes("on"), ("summaries".to_owned(), false));
}
