//! Two histories of one cluster, and two clusters of one name: they are told apart, and never mixed.

use crate::support::ledger::Commit;
use crate::support::site::{backup_of, branched_off};
use crate::support::{Ledger, Major, Restored, Scratch, Site, TestServer};

/// A site whose history has forked: a recovery to the past was promoted and archives beside the server that went on.
struct Forked {
    site: Site,
    /// Where the second branch began.
    fork: Commit,
    /// The last commit on the first branch, after the fork.
    first: Commit,
    /// Rows of the ledger at the end of the second branch.
    second_rows: u64,
    /// The server of the second branch.
    second: Restored,
}

impl Forked {
    fn of(major: Major) -> Self {
        let site = Site::of(TestServer::builder(major).segment_mib(1));
        let mut ledger = Ledger::create(&site.server);
        site.backup();
        let fork = ledger.commit_singly(&site.server, 10).clone();
        ledger.commit_singly(&site.server, 3);
        site.server.archive_all();
        let mut second = site.restore(&["--to-lsn", &fork.lsn, "--as", "primary", "--target-action", "promote"]);
        second.promoted();
        second.expect_planned_end();
        let mut other = Ledger::over(&second.server);
        // Further than the first branch will go, so that every position after the fork lies on both.
        let second_rows = other.commit_singly(&second.server, 20).rows;
        (0..4).for_each(|_| drop(second.server.archive_all()));
        let first = ledger.commit_singly(&site.server, 7).clone();
        site.server.archive_all();
        Self { site, fork, first, second_rows, second }
    }
}

#[test]
fn a_target_on_two_branches_is_refused_with_both_and_a_timeline_chooses() {
    let Forked { site, fork, first, second_rows, second: _second } = Forked::of(Major::V17);
    let refused = site.expect_refused(&["--to-latest", "--as", "clone"], 2, &["choose one with --timeline: 1 or 2"]);
    let mut table = refused.stderr.lines().skip_while(|line| !line.starts_with("TIMELINE"));
    let numbers: Vec<&str> = table.by_ref().skip(1).take(2).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(numbers, ["1", "2"], "{}", refused.story());
    let forked_at = site.restore(&["--to-lsn", &fork.lsn, "--as", "clone"]).report["reach_lsn"].clone();
    assert!(refused.stderr.contains(forked_at.as_str().expect("a position")), "{}", refused.story());
    site.expect_refused(&["--to-lsn", &first.lsn, "--as", "clone"], 2, &["1 or 2"]);

    for (target, timeline, rows) in
        [(["--to-latest", "--timeline", "1"], 1, first.rows), (["--to-latest", "--timeline", "2"], 2, second_rows)]
    {
        let arguments = [&target[..], &["--as", "clone", "--target-action", "promote"]].concat();
        let mut restored = site.restore(&arguments);
        assert_eq!(restored.report["timeline"], timeline);
        Ledger::expect_rows(restored.promoted(), rows);
        restored.expect_planned_end();
    }
    // Before the fork both are one.
    let mut restored = site.restore(&["--to-lsn", &fork.lsn, "--as", "clone"]);
    Ledger::expect_rows(restored.paused(), fork.rows);
}

#[test]
fn one_backup_leads_to_the_branch_that_is_asked_for_however_often() {
    let Forked { site, fork, first, second_rows, second } = Forked::of(Major::V15);
    let promote = ["--as", "primary", "--target-action", "promote"];
    // Beyond where the first attempt left the branch, which `latest` would follow.
    let target = ["--to-lsn", &first.lsn, "--timeline", "1"];
    let mut third = site.restore(&[&target[..], &promote].concat());
    Ledger::expect_rows(third.promoted(), first.rows);
    third.expect_planned_end();
    assert_eq!(third.server.timeline(), 3, "timeline 2 is taken");
    third.server.archive_all();
    // And once more before it.
    let mut fourth = site.restore(&[&["--to-lsn", &fork.lsn][..], &promote].concat());
    Ledger::expect_rows(fourth.promoted(), fork.rows);
    assert_eq!((fourth.server.timeline(), branched_off(&fourth.server).0), (4, 1));
    fourth.server.archive_all();

    let timelines = site.walvault.run(["timelines", "--json"]).expect_ok().json();
    let listed = timelines["timelines"].as_array().expect("an array");
    let timelines = listed.iter();
    let forks: Vec<(u64, Option<u64>)> =
        timelines.map(|line| (line["timeline"].as_u64().expect("a number"), line["parent"].as_u64())).collect();
    assert_eq!(forks, [(1, None), (2, Some(1)), (3, Some(1)), (4, Some(1))]);
    // From the one backup, and to the end that a plan for the newest moment of that branch names.
    for line in listed {
        let [restorable] = line["restorable"].as_array().expect("an array").as_slice() else { panic!("{line:#}") };
        let number = line["timeline"].to_string();
        let plan = site.plan(&["--to-latest", "--timeline", &number], 0).json();
        assert_eq!((&restorable["to_lsn"], &restorable["end"]), (&plan["reach_lsn"], &"newest".into()), "{line:#}");
        assert_eq!((&restorable["backup"], &restorable["backups"]), (&plan["backup"], &1.into()), "{line:#}");
        assert!(restorable["to_time"].is_string() && restorable["from_time"].is_string(), "{line:#}");
    }
    let mut restored = site.restore(&["--to-latest", "--timeline", "2", "--as", "clone"]);
    Ledger::expect_rows(restored.paused(), second_rows);
    drop(second);
}

#[test]
fn a_backup_of_a_later_timeline_and_the_log_of_an_earlier_one_do_not_mix() {
    let Forked { site, first, second_rows, second, .. } = Forked::of(Major::V18);
    let backup = backup_of(&second.server, &site.walvault, &[]).expect_ok().json();
    second.server.archive_all();
    assert_eq!(backup["timeline"], 2);
    let id = backup["id"].as_str().expect("a name");
    site.expect_refused(
        &["--to-latest", "--timeline", "1", "--backup", id, "--as", "clone"],
        2,
        &["does not lie on this branch"],
    );
    for (timeline, rows, from) in [("1", first.rows, None), ("2", second_rows, Some(id))] {
        let mut restored = site.restore(&["--to-latest", "--timeline", timeline, "--as", "clone"]);
        assert_eq!(from.is_some(), restored.report["backup"] == id);
        Ledger::expect_rows(restored.paused(), rows);
    }
}

#[test]
fn two_clusters_of_one_name_have_a_lane_each_and_their_rows_do_not_mix() {
    let site = Site::start(Major::V15);
    let other = TestServer::builder(Major::V15).identity(1).archive_command(site.walvault.archive_command()).start();
    let mut backups = Vec::new();
    for (server, rows) in [(&site.server, 11), (&other, 23)] {
        let mut ledger = Ledger::create(server);
        let backup = backup_of(server, &site.walvault, &[]).expect_ok().json();
        backups.push((server.system_id(), backup["id"].as_str().expect("a name").to_owned(), rows));
        ledger.commit_singly(server, rows);
        server.archive_all();
    }
    let listed = site.listed();
    assert!(backups.iter().all(|(_, id, _)| listed.contains(id)), "{listed:?}");
    let lane = |system: &str| {
        let timelines = site.walvault.run(["timelines", "--json"]).expect_ok().json();
        let lines = timelines["timelines"].as_array().expect("an array").clone();
        let mut lanes = lines.iter().filter_map(|line| line["lane"].as_str()).filter(|lane| lane.starts_with(system));
        lanes.next().expect("each system has a lane").to_owned()
    };
    let lanes: Vec<String> = backups.iter().map(|(system, ..)| lane(system)).collect();
    site.expect_refused(
        &["--to-latest", "--as", "clone"],
        2,
        &["has more than one lane", &lanes[0], &lanes[1], "choose one with --lane"],
    );
    for (lane, (system, id, rows)) in lanes.iter().zip(&backups) {
        let arguments = ["--lane", lane, "--to-latest", "--as", "clone", "--target-action", "promote"];
        let mut restored = site.restore(&arguments);
        assert_eq!(restored.report["backup"], id.as_str());
        Ledger::expect_rows(restored.promoted(), *rows);
        assert_eq!(restored.server.system_id(), *system);
    }
    let place = Scratch::new();
    let stranger = ["--lane", &lanes[0], "--backup", &backups[1].1, "--to-latest", "--as", "clone"];
    site.try_restore(&place.join("data"), &stranger).expect_code(2);
}

#[test]
fn a_recovery_of_a_recovery_is_reached_from_the_first_backup() {
    let site = Site::of(TestServer::builder(Major::V18).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    let first = ledger.commit_singly(&site.server, 5).clone();
    ledger.commit_singly(&site.server, 3);
    site.server.archive_all();
    // Each recovery goes back to a moment of the one before it, and goes on from there.
    let mut target = first;
    let mut rows = 0;
    for timeline in ["1", "2"] {
        let place = ["--to-lsn", &target.lsn, "--timeline", timeline];
        let mut next = site.restore(&[&place[..], &["--as", "primary", "--target-action", "promote"]].concat());
        Ledger::expect_rows(next.promoted(), target.rows);
        next.expect_planned_end();
        let mut ledger = Ledger::over(&next.server);
        target = ledger.commit_singly(&next.server, 4).clone();
        rows = ledger.commit_singly(&next.server, 2).rows;
        next.server.archive_all();
    }
    let drawn = site.walvault.run(["timelines"]).expect_ok().stdout;
    for (line, tree) in drawn.lines().skip(2).zip(["1 ", "└─ 2 ", "   └─ 3 "]) {
        assert!(line.starts_with(tree), "{drawn}");
    }
    assert_eq!(drawn.lines().count(), 5, "{drawn}");
    let mut restored = site.restore(&["--to-latest", "--timeline", "3", "--as", "clone"]);
    assert_eq!(restored.report["path"].as_array().map(Vec::len), Some(3), "{:#}", restored.report);
    Ledger::expect_rows(restored.paused(), rows);
    restored.expect_planned_end();
}

#[test]
fn a_backup_on_a_timeline_whose_history_is_not_archived_is_refused_with_the_mend() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    ledger.commit_singly(&site.server, 3);
    site.server.archive_all();
    let mut next = site.restore(&["--to-latest", "--as", "primary", "--target-action", "promote"]);
    next.promoted();
    let rows = Ledger::over(&next.server).commit_singly(&next.server, 3).rows;
    next.server.archive_all();
    // As in a repository that was made after the promotion.
    site.repo.find_all("*/00000002.history*").iter().for_each(|key| site.repo.remove(key));
    let refused = backup_of(&next.server, &site.walvault, &[]).expect_code(3);
    assert!(refused.stderr.contains("walvault wal push pg_wal/00000002.history"), "{}", refused.story());
    let history = next.server.pgdata().join("pg_wal/00000002.history");
    site.walvault.run(["wal", "push", history.to_str().expect("plain text")]).expect_ok();
    let taken = backup_of(&next.server, &site.walvault, &[]).expect_ok().json();
    next.server.archive_all();
    let from_it = ["--to-latest", "--backup", taken["id"].as_str().expect("a name"), "--as", "clone"];
    Ledger::expect_rows(site.restore(&from_it).paused(), rows);
}
