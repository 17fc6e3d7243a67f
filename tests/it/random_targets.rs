//! Targets by chance, while several sessions write: every one is reached to the row, or refused for a reason that holds.

use crate::support::{Chance, Ledger, Major, Site, TestServer};

/// Targets tried in one run; the seed is printed.
const TARGETS: usize = 4;

#[test]
fn a_target_by_chance_is_reached_to_the_row_15() {
    a_target_by_chance_is_reached_to_the_row(Major::V15);
}

#[test]
fn a_target_by_chance_is_reached_to_the_row_18() {
    a_target_by_chance_is_reached_to_the_row(Major::V18);
}

fn a_target_by_chance_is_reached_to_the_row(major: Major) {
    let chance = Chance::new();
    let site = Site::of(TestServer::builder(major).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.server.sql("create table noise (n int, words text)");
    site.backup();
    let from = ledger.commits().len();
    for _ in 0..12 {
        // Others roll back, write and make files of their own between the ledger's commits.
        let words = chance.below(60_000);
        site.server.sql(&format!("insert into noise values (1, repeat('n', {words}))"));
        site.server.sql("begin; create table gone (n int); rollback");
        ledger.commit_singly(&site.server, 1 + chance.below(4));
        if chance.below(4) == 0 {
            site.server.archive_all();
        }
    }
    // A moment is told by what follows it.
    site.server.sql("insert into noise values (2, 'the end')");
    site.server.archive_all();

    let commits = &ledger.commits()[from..];
    for number in 0..TARGETS {
        let commit = chance.pick(commits);
        let xid = (commit.xid & u64::from(u32::MAX)).to_string();
        let target = match number % 3 {
            0 => ["--to-xid", &xid],
            1 => ["--to-time", &commit.time],
            _ => ["--to-lsn", &commit.lsn],
        };
        let mut restored = site.restore(&[&target[..], &["--as", "clone"]].concat());
        Ledger::expect_rows(restored.paused(), commit.rows);
        restored.expect_planned_end();
    }
}
