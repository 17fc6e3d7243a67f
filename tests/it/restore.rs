//! Back to a moment: on every server, for every kind of target, exactly the rows of that moment and no others.

use std::time::Duration;

use crate::support::ledger::Commit;
use crate::support::{Chance, Ledger, Major, Restored, Site, TestServer, soaking, tool};

#[test]
fn postgresql_15_comes_back_to_every_target_with_segments_of_16_mib() {
    comes_back_to_every_target(Major::V15, 16);
}

#[test]
fn postgresql_17_comes_back_to_every_target_with_segments_of_1_mib() {
    comes_back_to_every_target(Major::V17, 1);
}

#[test]
fn postgresql_18_comes_back_to_every_target_with_segments_of_64_mib() {
    comes_back_to_every_target(Major::V18, 64);
}

#[test]
fn postgresql_14_comes_back_to_every_target() {
    comes_back_to_every_target(Major::V14, 1);
}

#[test]
fn postgresql_16_comes_back_to_every_target() {
    comes_back_to_every_target(Major::V16, 1);
}

/// A site with a past: rows before the backup, rows after it on both sides of a restore point.
struct Past {
    site: Site,
    ledger: Ledger,
    /// Rows that the backup itself holds.
    backed_up: u64,
    /// Rows at the restore point.
    named: u64,
}

impl Past {
    fn of(major: Major, segment_mib: u32) -> Self {
        let site = Site::of(TestServer::builder(major).segment_mib(segment_mib));
        let mut ledger = Ledger::create(&site.server);
        let backed_up = ledger.commit(&site.server, 200).rows;
        site.backup();
        ledger.commit_singly(&site.server, 20);
        site.server.switch_wal();
        let named = ledger.commit_singly(&site.server, 5).rows;
        site.server.sql("select pg_create_restore_point('before the accident')");
        ledger.commit_singly(&site.server, 20);
        site.server.archive_all();
        Self { site, ledger, backed_up, named }
    }

    /// One of the commits after the backup.
    fn any_commit(&self, chance: &Chance) -> Commit {
        let later: Vec<Commit> =
            self.ledger.commits().iter().filter(|commit| commit.rows > self.backed_up).cloned().collect();
        // Not the last one: PostgreSQL knows that a time is past only by a commit that follows.
        chance.pick(&later[..later.len() - 1]).clone()
    }
}

fn comes_back_to_every_target(major: Major, segment_mib: u32) {
    let chance = Chance::new();
    let mut past = Past::of(major, segment_mib);
    let site = &past.site;
    for _ in 0..if soaking() { 10 } else { 1 } {
        let commit = past.any_commit(&chance);
        let mut restored = site.restore(&["--to-time", &commit.time, "--as", "primary"]);
        expect_rows(&mut restored, Action::Pause, commit.rows);
        restored.expect_sound_pages();

        let commit = past.any_commit(&chance);
        let lsn = ["--to-lsn", &commit.lsn, "--as", "clone", "--target-action", "promote"];
        let mut restored = site.restore(&lsn);
        expect_rows(&mut restored, Action::Promote, commit.rows);
        restored.expect_sound_pages();
    }
    let name = ["--to-name", "before the accident", "--as", "primary", "--target-action", "shutdown"];
    expect_rows(&mut site.restore(&name), Action::Shutdown, past.named);
    let end = ["--to-backup-end", "--as", "clone", "--target-action", "promote"];
    expect_rows(&mut site.restore(&end), Action::Promote, past.backed_up);
    let latest = ["--to-latest", "--as", "clone"];
    expect_rows(&mut site.restore(&latest), Action::Pause, past.ledger.last().rows);

    // The disaster: what was archived comes back, goes on in the place of what was lost, and comes back again.
    past.site.server.kill9();
    let mut next = past.site.restore(&["--to-latest", "--as", "primary", "--target-action", "promote"]);
    expect_rows(&mut next, Action::Promote, past.ledger.last().rows);
    past.ledger.resume(&next.server);
    let rows = past.ledger.commit_singly(&next.server, 10).rows;
    assert_eq!(next.server.timeline(), 2);
    next.server.archive_all();
    next.expect_sound_pages();
    let mut again = past.site.restore(&["--to-latest", "--as", "clone", "--target-action", "promote"]);
    assert_eq!(again.report["timeline"], 2);
    expect_rows(&mut again, Action::Promote, rows);
}

#[derive(Clone, Copy, PartialEq)]
enum Action {
    Pause,
    Promote,
    Shutdown,
}

/// Starts a restored server, and holds it against the ledger, the plan and PostgreSQL's own checks.
fn expect_rows(restored: &mut Restored, action: Action, rows: u64) {
    match action {
        Action::Promote => {
            restored.promoted();
        }
        Action::Pause => {
            restored.paused();
        }
        Action::Shutdown => {
            restored.server.launch();
            restored.server.wait_for_end(Duration::from_secs(180));
            assert!(restored.server.log().contains("shutdown at recovery target"), "{}", restored.server.log());
            restored.set("recovery_target_action", "pause");
            restored.paused();
        }
    }
    Ledger::expect_rows(&restored.server, rows);
    restored.expect_planned_end();
    let major = restored.server.major();
    if action == Action::Promote && (major == Major::V15 || major > Major::V16) {
        tool::check_relations(&restored.server).expect_ok();
    }
}

/// Segments of every size that a server can be made with; those that tests have everywhere else are left out.
#[test]
fn segments_of_any_size_are_archived_and_replayed() {
    let sizes = if soaking() { &[2, 4, 8, 32, 256, 512, 1024][..] } else { &[2, 128] };
    for mib in sizes {
        let site = Site::of(TestServer::builder(Major::V17).segment_mib(*mib));
        let mut ledger = Ledger::create(&site.server);
        site.backup();
        ledger.commit_singly(&site.server, 10);
        let rows = ledger.last().rows;
        site.server.archive_all();
        let mut restored = site.restore(&["--to-latest", "--as", "clone", "--target-action", "promote"]);
        Ledger::expect_rows(restored.promoted(), rows);
        restored.expect_planned_end();
        assert_eq!(
            restored.server.query_one("select pg_size_bytes(current_setting('wal_segment_size')) / 1048576"),
            mib.to_string()
        );
    }
}

/// The oldest server there is: its programs are too old for the checks that the others get.
#[test]
fn postgresql_13_is_archived_backed_up_and_comes_back() {
    let site = Site::of(TestServer::builder(Major::V13).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    ledger.commit(&site.server, 200);
    site.backup();
    let middle = ledger.commit_singly(&site.server, 10).clone();
    ledger.commit_singly(&site.server, 10);
    let rows = ledger.last().rows;
    site.server.archive_all();
    let promote = ["--as", "clone", "--target-action", "promote"];
    for (target, rows) in [(&["--to-latest"][..], rows), (&["--to-lsn", &middle.lsn], middle.rows)] {
        let mut restored = site.restore(&[target, &promote].concat());
        Ledger::expect_rows(restored.promoted(), rows);
        restored.expect_planned_end();
        restored.expect_sound_pages();
    }
}
