//! Every kind of target on real branches: a fork inside a segment, one on a boundary, two in one segment, and a parent that
//! went on past all of them; judged by the ledger, and by where the new timeline says it left the old one.
//!
//! All cells of what can be planned are tried beside the planner, where one costs nothing; here each column and each row
//! is met at least once in a run, and all cells in a long one.

use serde_json::Value;

use crate::support::ledger::Commit;
use crate::support::{Ledger, Major, Restored, Site, TestServer, soaking};

/// A branch as its server wrote it.
struct Branch {
    timeline: &'static str,
    /// Rows, transactions and times of what was committed there, in order.
    commits: Vec<Commit>,
    /// The place of the commit that cells ask for.
    asked: usize,
}

struct History {
    site: Site,
    branches: Vec<Branch>,
    _servers: Vec<Restored>,
}

/// Promotes a copy that ends where `target` says, and commits on it; a restore point follows the commit that is asked for.
fn branch_off(site: &Site, target: &[&str], timeline: &'static str, rows: u64) -> (Restored, Branch, Value) {
    let mut copy = site.restore(&[target, &["--as", "primary", "--target-action", "promote"]].concat());
    let mut ledger = Ledger::over(copy.promoted());
    copy.expect_planned_end();
    assert_eq!(copy.server.timeline().to_string(), timeline);
    ledger.commit_singly(&copy.server, rows);
    copy.server.sql(&format!("select pg_create_restore_point('on {timeline}')"));
    let asked = ledger.commits().len() - 1;
    ledger.commit_singly(&copy.server, 2);
    let report = copy.report.clone();
    let branch = Branch { timeline, commits: ledger.commits().to_vec(), asked };
    (copy, branch, report)
}

fn segment_of(lsn: &str) -> u64 {
    let (high, low) = lsn.split_once('/').expect("an LSN has a slash");
    let half = |digits| u64::from_str_radix(digits, 16).expect("an LSN is hexadecimal");
    (half(high) << 32 | half(low)) >> 20
}

fn history(major: Major) -> History {
    let site = Site::of(TestServer::builder(major).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    ledger.commit_singly(&site.server, 3);
    let finished = site.server.archive_all();
    let inside = ledger.commit_singly(&site.server, 3).clone();
    ledger.commit_singly(&site.server, 2);
    site.server.sql("select pg_create_restore_point('on 1')");
    let asked = ledger.commits().len() - 1;
    ledger.commit_singly(&site.server, 30);
    site.server.archive_all();
    let first = Branch { timeline: "1", commits: ledger.commits().to_vec(), asked };

    let (second, second_branch, report) = branch_off(&site, &["--to-lsn", &inside.lsn], "2", 3);
    let fork = report["reach_lsn"].as_str().expect("a position").to_owned();
    second.server.archive_all();
    // Off the second one, in the segment in which that began.
    let near = second_branch.commits[1].lsn.clone();
    assert_eq!(segment_of(&near), segment_of(&fork), "two forks in one segment");
    let (third, third_branch, report) = branch_off(&site, &["--to-lsn", &near, "--timeline", "2"], "3", 3);
    let again = report["reach_lsn"].as_str().expect("a position");
    assert_eq!(segment_of(again), segment_of(&fork), "two forks in one segment");
    third.server.archive_all();
    // Everything before the segment, and nothing of it.
    let number = u64::from_str_radix(&finished[16..], 16).expect("hexadecimal") + 1;
    let start = format!("0/{:X}", number << 20);
    let (fourth, fourth_branch, report) = branch_off(&site, &["--to-lsn", &start, "--timeline", "1"], "4", 3);
    assert_eq!(segment_of(report["reach_lsn"].as_str().expect("a position")), number, "on the boundary: {report:#}");
    fourth.server.archive_all();
    let branches = vec![first, second_branch, third_branch, fourth_branch];
    History { site, branches, _servers: vec![second, third, fourth] }
}

const KINDS: usize = 8;

/// Target, rows that must be there; `None` for as many as the branch has. `end` is that of the commit's record.
fn cell(branch: &Branch, kind: usize, end: &str) -> (Vec<String>, Option<u64>) {
    let commit = &branch.commits[branch.asked];
    let before = branch.commits[branch.asked - 1].rows;
    let xid = (commit.xid & u64::from(u32::MAX)).to_string();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    match kind {
        0 => (words(&["--to-latest"]), None),
        1 => (words(&["--to-time", &commit.time]), Some(commit.rows)),
        2 => (words(&["--to-time", &commit.time, "--exclusive"]), Some(commit.rows)),
        3 => (words(&["--to-xid", &xid]), Some(commit.rows)),
        4 => (words(&["--to-xid", &xid, "--exclusive"]), Some(before)),
        5 => (words(&["--to-lsn", &commit.lsn]), Some(commit.rows)),
        6 => (words(&["--to-lsn", end, "--exclusive"]), Some(before)),
        _ => (words(&["--to-name", &format!("on {}", branch.timeline)]), Some(commit.rows)),
    }
}

#[test]
fn every_kind_of_target_is_reached_on_every_kind_of_fork() {
    let history = history(Major::V15);
    for (row, branch) in history.branches.iter().enumerate() {
        for kind in 0..KINDS {
            // Every kind on one branch, and every branch with two kinds.
            if !soaking() && kind % history.branches.len() != row {
                continue;
            }
            let xid = (branch.commits[branch.asked].xid & u64::from(u32::MAX)).to_string();
            let found = history.site.plan(&["--to-xid", &xid, "--timeline", branch.timeline], 0).json();
            let end = found["last_commit"]["lsn"].as_str().expect("it is the last one");
            let (target, rows) = cell(branch, kind, end);
            let rows = rows.unwrap_or_else(|| branch.commits.last().expect("there are some").rows);
            let action = if (kind + row).is_multiple_of(2) { "promote" } else { "pause" };
            let mut arguments: Vec<&str> = target.iter().map(String::as_str).collect();
            arguments.extend(["--timeline", branch.timeline, "--as", "clone", "--target-action", action]);
            let mut restored = history.site.restore(&arguments);
            restored.set("recovery_prefetch", if kind < KINDS / 2 { "off" } else { "try" });
            let server = if action == "promote" { restored.promoted() } else { restored.paused() };
            Ledger::expect_rows(server, rows);
            restored.expect_planned_end();
        }
    }
    // Without the child's first segment the branch is refused, and never the parent's rows given for it.
    let (second, repo) = (&history.branches[1], &history.site.repo);
    let first = repo.find_all("*/wal/00000002/*/*.zst").into_iter().find(|key| !key.ends_with(".history.zst"));
    repo.remove(&first.expect("the child's first segment"));
    for kind in 0..KINDS {
        let (target, _) = cell(second, kind, &second.commits[second.asked].lsn);
        let arguments: Vec<&str> =
            target.iter().map(String::as_str).chain(["--timeline", second.timeline, "--as", "clone"]).collect();
        history.site.expect_refused(&arguments, 2, &["is missing and must exist"]);
    }
    // A standby goes to the newest branch, through both of its forks or around them.
    let standby = history.site.plan(&["--to-latest", "--timeline", "3"], 0).json();
    assert_eq!(standby["path"].as_array().map(Vec::len), Some(3), "{standby:#}");
}
