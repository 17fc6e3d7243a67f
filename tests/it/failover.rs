//! A primary that dies with WAL that it had not archived, and the standby that takes its place: every row is restored.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::process::Running;
use crate::support::site::{backup_of, branched_off};
use crate::support::{Ledger, Major, Restored, Site, Stop, TestServer, tool, within};

/// A primary whose archiver has been down since a backup, and a standby that has received everything.
struct Failing {
    site: Site,
    standby: TestServer,
    ledger: Ledger,
}

impl Failing {
    /// `prepare` has the standby's data directory before it starts.
    fn of(major: Major, prepare: impl FnOnce(&mut TestServer)) -> Self {
        // Little room, so that the standby's checkpoints recycle. The primary's do not: what it wrote is compared later.
        let builder = TestServer::builder(major).segment_mib(1).set("min_wal_size", "2MB").set("max_wal_size", "4MB");
        let site = Site::of(builder.set("wal_keep_size", "1GB"));
        let mut ledger = Ledger::create(&site.server);
        ledger.commit(&site.server, 20);
        site.backup();
        site.server.archive_all();
        let data = site.server.beside("standby").join("data");
        tool::base_backup(&site.server, &data, &["-X", "none"]).expect_ok();
        site.server.wait_nothing_waits();
        site.server.set_archive_command("/bin/false");
        let mut standby = TestServer::over(major, &data);
        standby.set("primary_conninfo", &site.server.conninfo());
        standby.set("restore_command", &site.walvault.restore_command());
        standby.set("archive_command", &site.walvault.archive_command());
        standby.set("wal_keep_size", "0");
        prepare(&mut standby);
        fs::write(data.join("standby.signal"), "").expect("the copy is there");
        standby.start();
        Self { site, standby, ledger }
    }

    /// Commits more, and waits until the standby has it; returns the last segment that was finished.
    fn write(&mut self, rows: u64) -> String {
        let rows = self.ledger.commit(&self.site.server, rows).rows;
        let finished = self.site.server.switch_wal();
        self.expect_caught_up();
        self.standby.wait_until("select count(*) from ledger", &rows.to_string());
        self.standby.wait_until("select status from pg_stat_wal_receiver", "streaming");
        finished
    }

    /// Starts an agent beside the standby, which pushes at once what lies there finished and is not archived.
    fn agent(&self) -> Running {
        let run = self.standby.beside("run");
        let variables = [
            ("RUNTIME_DIR", run.clone()),
            ("SCRATCH_DIR", run),
            ("PGDATA", self.standby.pgdata().to_owned()),
            ("STANDBY_PUSH_DELAY", "0".into()),
        ];
        let walvault = variables.into_iter().fold(self.site.walvault.clone(), |walvault, (name, value)| {
            walvault.env(format!("WALVAULT_{name}"), value)
        });
        walvault.start(["agent"])
    }

    /// Waits until the standby has all that the primary wrote, to the end of a segment that was finished.
    fn expect_caught_up(&self) {
        let end = self.site.server.query_one("select pg_current_wal_lsn()");
        self.standby.wait_until(&format!("select pg_last_wal_replay_lsn() >= '{end}'"), "t");
    }

    /// Makes the standby recycle what it needs no more.
    fn checkpoints(&self) {
        self.site.server.sql("checkpoint");
        self.expect_caught_up();
        self.standby.sql("checkpoint");
    }

    /// Segments of the first timeline that are archived.
    fn archived(&self) -> Vec<String> {
        let keys = self.site.repo.find_all("*/wal/00000001/00000000/*.zst");
        let names = keys.iter().filter_map(|key| key.rsplit('/').next()?.strip_suffix(".zst"));
        names.filter(|name| name.len() == 24).map(str::to_owned).collect()
    }

    /// Kills the primary and promotes the standby; returns the rows of both times.
    fn fail_over(&mut self) -> u64 {
        self.site.server.kill9();
        self.standby.promote();
        self.ledger.resume(&self.standby);
        let rows = self.ledger.commit(&self.standby, 10).rows;
        self.standby.archive_all();
        rows
    }

    /// Panics unless every archived segment of the first timeline is, byte for byte, what the dead primary wrote.
    fn expect_the_primarys_bytes(&self) {
        let mut compared = 0;
        for name in self.archived() {
            let Ok(written) = fs::read(self.site.server.pgdata().join("pg_wal").join(&name)) else { continue };
            let stored = self.site.repo.read(&self.site.repo.find(&format!("*/{name}.zst")));
            let stored = zstd::decode_all(&stored[..]).expect("a sound object");
            assert!(stored == written, "{name} is archived with other bytes than the primary wrote");
            compared += 1;
        }
        assert!(compared > 2, "only {compared} segments were compared");
    }

    /// Restores from the backup before the failover, to the latest moment.
    fn expect_restored(&self, rows: u64) {
        let target = ["--to-latest", "--timeline", "2", "--as", "clone", "--target-action", "promote"];
        let mut restored = Restored::by(&self.site.walvault, self.standby.major(), &target);
        Ledger::expect_rows(restored.promoted(), rows);
        restored.expect_planned_end();
    }
}

#[test]
fn what_only_the_standby_held_is_pushed_by_the_new_primary() {
    let mut failing = Failing::of(Major::V15, |standby| standby.set("wal_keep_size", "1GB"));
    for _ in 0..3 {
        failing.write(100);
    }
    let before = failing.archived();
    let rows = failing.fail_over();
    assert!(failing.archived().len() > before.len() + 2, "{before:?}, then {:?}", failing.archived());
    let said = |line: &&str| line.starts_with("walvault: warning: pushed ") && line.len() < 500;
    assert!(failing.standby.log().lines().any(|line| said(&line)), "{}", failing.standby.log());
    failing.expect_the_primarys_bytes();
    failing.expect_restored(rows);
    assert_eq!(branched_off(&failing.standby).0, 1);
}

#[test]
fn a_standby_that_was_restarted_and_recycled_holds_it_too() {
    let mut failing = Failing::of(Major::V17, |standby| standby.set("wal_keep_size", "1GB"));
    for _ in 0..3 {
        failing.write(100);
        failing.checkpoints();
        failing.standby.restart();
    }
    let rows = failing.fail_over();
    failing.expect_the_primarys_bytes();
    failing.expect_restored(rows);
    failing.standby.stop(Stop::Immediate);
}

#[test]
fn a_store_that_is_gone_at_the_promotion_is_tried_again_with_the_next_file() {
    let mut failing = Failing::of(Major::V18, |standby| {
        standby.set("wal_keep_size", "1GB");
        standby.set_env("WALVAULT_STANDBY_TIMEOUT", "1");
    });
    // Where the store is gone a push tries as long as it may: not for long then, and for no other push.
    let patient = failing.site.walvault.archive_command();
    failing.standby.set_archive_command(&format!("WALVAULT_PUSH_TIMEOUT=5 {patient}"));
    failing.write(100);
    failing.write(100);
    let (place, away) = (failing.site.repo.path().to_owned(), failing.site.repo.path().with_extension("away"));
    fs::rename(&place, &away).expect("one file system");
    failing.site.server.kill9();
    // The former timeline's history is asked for when there is no way back.
    failing.standby.promote();
    let failed = || failing.standby.query_one("select failed_count > 0 from pg_stat_archiver") == "t";
    within(Duration::from_secs(60), failed, "the archiver has tried");
    histories_are_had_without_the_archive(&failing);
    fs::rename(&away, &place).expect("one file system");
    failing.standby.set_archive_command(&patient);
    failing.ledger.resume(&failing.standby);
    let rows = failing.ledger.commit(&failing.standby, 10).rows;
    failing.standby.archive_all();
    failing.expect_the_primarys_bytes();
    failing.expect_restored(rows);
}

#[test]
fn rows_that_are_archived_in_a_partial_alone_are_restored_up_to_the_fork() {
    let mut failing = Failing::of(Major::V17, |standby| standby.set("wal_keep_size", "1GB"));
    failing.write(100);
    // Less than a segment: it is in the last, unfinished one when the primary dies.
    let rows = failing.ledger.commit(&failing.site.server, 10).rows;
    failing.standby.wait_until("select count(*) from ledger", &rows.to_string());
    failing.site.server.kill9();
    failing.standby.promote();
    let archived = |pattern: &str| failing.site.repo.find_all(pattern).len();
    within(Duration::from_secs(60), || archived("*.partial/*.zst") == 1, "the promotion hands over its .partial");
    assert_eq!(archived("*/wal/00000002/00000000/*"), 0, "the new timeline's first segment is not finished");

    // The new timeline begins in a segment that is not archived; what is known ends at its fork.
    failing.site.expect_refused(&["--to-latest", "--as", "clone"], 2, &["timeline 2"]);
    let target = ["--to-latest", "--timeline", "1", "--as", "clone", "--target-action", "promote"];
    let mut restored = Restored::by(&failing.site.walvault, Major::V17, &target);
    Ledger::expect_rows(restored.promoted(), rows);
    assert_eq!(branched_off(&restored.server).0, 1);
    restored.expect_planned_end();
    // Nobody else is given it for the segment.
    let data = failing.standby.pgdata();
    let partial = failing.site.repo.find("*.partial/*.zst");
    let segment = partial.split('/').find_map(|part| part.strip_suffix(".partial")).expect("its folder");
    let unplanned = failing.site.walvault.clone().in_directory(data).env("WALVAULT_HOLE_TIMEOUT", "0");
    let unplanned = unplanned.run(["wal", "fetch", segment, "pg_wal/RECOVERYXLOG"]);
    assert!(unplanned.code.is_some_and(|code| code > 125), "{}", unplanned.story());
}

/// The repository is gone, and the server runs without a signal file.
fn histories_are_had_without_the_archive(failing: &Failing) {
    let data = failing.standby.pgdata();
    let wanted = data.join("pg_wal/RECOVERYHISTORY");
    let calls = failing.site.walvault.clone().in_directory(data).env("WALVAULT_STANDBY_TIMEOUT", "1");
    let fetch = |name: &str, seconds: &str| {
        let calls = calls.clone().env("WALVAULT_FETCH_TIMEOUT", seconds);
        calls.run(["wal", "fetch", name, "pg_wal/RECOVERYHISTORY"])
    };
    fetch("00000001.history", "30").expect_code(1);
    let own = fetch("00000002.history", "30").expect_ok();
    assert!(own.stderr.contains("the server's own 00000002.history was used"), "{}", own.story());
    let stands = fs::read(data.join("pg_wal/00000002.history")).expect("the promotion wrote it");
    assert_eq!(fs::read(&wanted).expect("it was just put there"), stands);
    fs::remove_file(&wanted).expect("it was just put there");
    // Of another nothing is known.
    let unknown = fetch("00000003.history", "1");
    assert!(unknown.code.is_some_and(|code| code > 125) && !wanted.exists(), "{}", unknown.story());
}

#[test]
fn a_standbys_agent_archives_what_a_dead_archiver_left_before_it_is_recycled() {
    let mut failing = Failing::of(Major::V15, |_| ());
    let mut agent = failing.agent();
    for _ in 0..3 {
        let finished = failing.write(100);
        within(Duration::from_secs(60), || failing.archived().contains(&finished), "the agent pushes what is finished");
        failing.checkpoints();
    }
    let kept = failing.standby.pgdata().join("pg_wal").join(&failing.archived()[0]);
    assert!(!kept.exists(), "nothing was recycled, so nothing was proven");
    let rows = failing.fail_over();
    agent.kill9();
    failing.expect_the_primarys_bytes();
    failing.expect_restored(rows);
    // What the standby pushed is no other writer's claim to the primary's timeline.
    let owner = failing.site.repo.read(&failing.site.repo.find("*/owners/00000001/1"));
    assert!(String::from_utf8_lossy(&owner).contains("\"since\""), "the primary claimed it with its first segment");
}

#[test]
fn segments_that_are_recycled_while_they_are_pushed_are_never_mixed_up() {
    let mut failing = Failing::of(Major::V17, |_| ());
    let mut agent = failing.agent();
    // Every other round a restartpoint recycles what the agent may be reading; until enough went through both.
    let (enough, deadline) = (failing.archived().len() + 5, Instant::now() + Duration::from_secs(300));
    for round in 0.. {
        if failing.archived().len() >= enough {
            break;
        }
        failing.write(40);
        if round % 2 == 0 {
            failing.checkpoints();
        }
        assert!(Instant::now() < deadline, "{:?}", failing.archived());
    }
    assert!(agent.is_running());
    agent.kill9();
    failing.expect_the_primarys_bytes();
}

#[test]
fn a_promotion_that_left_archived_rows_out_is_told_by_push_status_and_check() {
    let mut site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    let data = site.server.beside("standby").join("data");
    tool::base_backup(&site.server, &data, &["-X", "stream"]).expect_ok();
    let mut standby = TestServer::over(Major::V15, &data);
    // A standby that cannot reach the archive, and whose primary has gone on.
    standby.set("restore_command", "/bin/false");
    fs::write(data.join("standby.signal"), "").expect("the copy is there");
    standby.start();
    ledger.commit(&site.server, 100);
    site.server.archive_all();
    site.server.stop(Stop::Immediate);
    standby.promote();
    assert!(Ledger::rows_on(&standby) < ledger.last().rows, "the promotion is short");
    let said = || standby.log().lines().any(|line| line.starts_with("walvault: warning: promoted short: timeline 2"));
    within(Duration::from_secs(60), said, "the push of the history tells it");

    let place = data.display().to_string();
    let status = site.walvault.run(["status", "--pgdata", &place]).expect_code(2);
    assert!(
        status.stdout.contains("promoted short") && status.stdout.contains(" promoted_short="),
        "{}",
        status.story()
    );
    let conninfo = standby.conninfo();
    let check = || site.walvault.run(["check", "--json", "--pgdata", &place, "--dbname", &conninfo]).json();
    let level = |report: &serde_json::Value| {
        let mut findings = report["findings"].as_array().expect("an array").iter();
        findings.find(|finding| finding["code"] == "promotion").expect("each code")["level"].clone()
    };
    assert_eq!(level(&check()), "fail");
    // What is missing is there for who looks for it.
    let target = ["--to-latest", "--timeline", "1", "--as", "clone", "--target-action", "promote"];
    let mut former = Restored::by(&site.walvault, Major::V15, &target);
    Ledger::expect_rows(former.promoted(), ledger.last().rows);
    // And a backup says that somebody has seen it.
    backup_of(&standby, &site.walvault, &[]).expect_ok();
    let status = site.walvault.run(["status", "--pgdata", &place]);
    assert!(status.stdout.contains("backed up since"), "{}", status.story());
    assert_eq!(level(&check()), "fail");
}
