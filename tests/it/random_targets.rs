//! Targets by chance, while several sessions write: every one is reached to the row, or refused for a reason that holds.

use crate::support::{Chance, Ledger, Major, Site, TestServer, soaking};

/// Targets tried in one run, and in a long one; the seed is printed.
const TARGETS: [usize; 2] = [5, 1000];

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
    let mut names: Vec<u64> = Vec::new();
    for _ in 0..12 {
        // Others roll back, write and make files of their own between the ledger's commits.
        let words = chance.below(60_000);
        site.server.sql(&format!("insert into noise values (1, repeat('n', {words}))"));
        site.server.sql("begin; create table gone (n int); rollback");
        let rows = ledger.commit_singly(&site.server, 1 + chance.below(4)).rows;
        site.server.sql(&format!("select pg_create_restore_point('after row {rows}')"));
        names.push(rows);
        if chance.below(4) == 0 {
            site.server.archive_all();
        }
    }
    // A moment is told by what follows it.
    site.server.sql("insert into noise values (2, 'the end')");
    site.server.archive_all();

    let commits = &ledger.commits()[from..];
    for number in 0..TARGETS[usize::from(soaking())] {
        let named = *chance.pick(&names);
        let is_named = number % 5 == 3;
        let mut all = commits.iter().filter(|commit| !is_named || commit.rows == named);
        let commit = if is_named { all.next().expect("a commit") } else { chance.pick(commits) };
        let name = format!("after row {named}");
        let xid = (commit.xid & u64::from(u32::MAX)).to_string();
        let target: Vec<&str> = match number % 5 {
            0 => vec!["--to-xid", &xid],
            1 => vec!["--to-time", &commit.time],
            2 => vec!["--to-lsn", &commit.lsn],
            3 => vec!["--to-name", &name],
            _ => vec!["--exclusive", "--to-xid", &xid],
        };
        let rows = commit.rows - u64::from(number % 5 == 4);
        let mut restored = site.restore(&[&target[..], &["--as", "clone"]].concat());
        Ledger::expect_rows(restored.paused(), rows);
        restored.expect_planned_end();
    }
}
