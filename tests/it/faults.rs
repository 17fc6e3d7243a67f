//! Faults in the middle of the archived log: whatever befalls a segment, PostgreSQL never opens with rows missing.
//!
//! One past for all: rows before a backup, a log of several segments after it. A fault is done to a segment in its
//! middle, once the directory is restored or before anything is planned; then it is mended and the same directory goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crate::support::ledger::Commit;
use crate::support::process::{command, run};
use crate::support::{Ledger, Major, Restored, Scratch, Site, Stop, TestRepo, TestServer, Walvault, tool, within};

/// What befalls a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Removed,
    Cut,
    Flipped,
    Unreadable,
    AnotherClusters,
}

impl Fault {
    const ALL: [Fault; 5] = [Self::Removed, Self::Cut, Self::Flipped, Self::Unreadable, Self::AnotherClusters];
}

/// How the directory recovers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `restore --to-lsn --as primary`.
    Target,
    /// `restore --to-latest --as clone`.
    Latest,
    /// A copy by `pg_basebackup`, `restore_command` by hand, no target, no plan.
    ByHand,
}

/// What happened, once in a test run for each major.
struct Past {
    site: Site,
    /// A copy taken beside the backup.
    copy: PathBuf,
    /// The last commit, which every recovery has to come to.
    last: Commit,
    /// A segment after the backup, with archived ones on both sides that hold rows.
    middle: String,
    /// The last segment that is archived.
    end: String,
    /// Another cluster's object for the middle segment's name.
    foreign: Vec<u8>,
}

impl Past {
    fn of(major: Major) -> &'static Self {
        static MADE: [OnceLock<Past>; 3] = [const { OnceLock::new() }; 3];
        let place = Major::all().iter().position(|known| *known == major).expect("one of the journeys' majors");
        MADE[place].get_or_init(|| Self::make(major))
    }

    fn make(major: Major) -> Self {
        let mut site = Site::of(TestServer::builder(major).segment_mib(1));
        let mut ledger = Ledger::create(&site.server);
        ledger.commit(&site.server, 20);
        site.backup();
        let copy = site.server.beside("copies").join("data");
        tool::base_backup(&site.server, &copy, &["-X", "none"]).expect_ok();
        let mut segments = Vec::new();
        for _ in 0..6 {
            ledger.commit(&site.server, 30);
            segments.push(site.server.archive_all());
        }
        let last = ledger.last().clone();
        site.server.stop(Stop::Fast);
        let middle = segments[2].clone();
        let end = segments[5].clone();

        let other = Site::of(TestServer::builder(major).segment_mib(1).identity(1));
        let mut archived = other.server.archive_all();
        while archived < middle {
            archived = other.server.archive_all();
        }
        let foreign = other.repo.read(&other.repo.find(&format!("*/{middle}.zst")));
        Self { site, copy, last, middle, end, foreign }
    }
}

/// One test's own copy of the repository, to do harm to.
struct Archive {
    past: &'static Past,
    major: Major,
    repo: TestRepo,
}

impl Archive {
    fn of(major: Major) -> Self {
        let past = Past::of(major);
        Self { past, major, repo: past.site.repo.duplicate() }
    }

    fn key(&self, segment: &str) -> String {
        format!(
            "{}/{segment}.zst",
            self.repo.find(&format!("*/{}.zst", self.past.end)).rsplit_once('/').expect("a key").0
        )
    }

    /// Does it, and returns what undoes it.
    fn befall(&self, fault: Fault, segment: &str) -> impl Fn() + '_ {
        let key = self.key(segment);
        let before = self.repo.read(&key);
        match fault {
            Fault::Removed => self.repo.remove(&key),
            Fault::Cut => self.repo.truncate(&key, before.len() as u64 * 2 / 3),
            Fault::Flipped => self.repo.flip_bit(&key, before.len() as u64 * 4),
            Fault::Unreadable => self.repo.make_unreadable(&key),
            Fault::AnotherClusters => self.repo.replace(&key, &self.past.foreign),
        }
        move || {
            fs::write(self.repo.path().join(&key), &before).expect("the repository is writable");
            self.repo.make_readable(&key);
        }
    }

    fn calls(&self) -> Walvault {
        Walvault::on(&self.repo)
    }

    /// Makes a directory that will recover.
    fn restored(&self, way: Way) -> Recovering {
        let by = |purpose, target: &[&str]| {
            let common = ["--as", purpose, "--target-action", "promote"];
            let arguments: Vec<&str> = target.iter().chain(&common).copied().collect();
            let restored = Restored::by(&self.calls(), self.major, &arguments);
            // Every recovery of one past begins the same new timeline; none may stand in the way of the next.
            restored.set("archive_mode", "off");
            restored
        };
        let mut recovering = match way {
            Way::Target => Recovering::Planned(by("primary", &["--to-lsn", &self.past.last.lsn])),
            Way::Latest => Recovering::Planned(by("clone", &["--to-latest"])),
            Way::ByHand => {
                let place = Scratch::new();
                let data = place.join("data");
                let mut cp = command("/usr/bin/cp");
                cp.arg("-a").arg(&self.past.copy).arg(&data);
                run(cp).expect_ok();
                let server = TestServer::over(self.major, &data);
                server.set("restore_command", &self.calls().restore_command());
                server.set("archive_mode", "off");
                fs::write(data.join("recovery.signal"), "").expect("the copy is there");
                Recovering::ByHand { server, _place: place }
            }
        };
        recovering.server().set_env("WALVAULT_HOLE_TIMEOUT", "1");
        recovering
    }
}

enum Recovering {
    Planned(Restored),
    ByHand { server: TestServer, _place: Scratch },
}

impl Recovering {
    fn server(&mut self) -> &mut TestServer {
        match self {
            Self::Planned(restored) => &mut restored.server,
            Self::ByHand { server, .. } => server,
        }
    }

    /// Panics unless the server stops by itself, has not opened for writing, and says why in its log.
    #[track_caller]
    fn expect_refusal(&mut self, what: &str, segment: &str) {
        let server = self.server();
        server.launch();
        let status = server.wait_for_end(Duration::from_secs(180));
        assert!(!status.success(), "{what}\n{}", server.log());
        let log = server.log();
        assert!(!log.contains("archive recovery complete"), "{what}\n{log}");
        let said = |line: &str| line.starts_with("walvault: error: ") && line.contains(segment) && line.len() < 500;
        assert!(log.lines().any(said), "{what}\n{log}");
        assert!(log.contains("FATAL:  could not restore file"), "{what}\n{log}");
        expect_unopened(what, server.major(), server.pgdata());
    }

    /// Panics unless the server, started again, comes to the last row.
    #[track_caller]
    fn expect_every_row(&mut self, rows: u64) {
        let server = self.server();
        server.start();
        server.wait_until_writable();
        Ledger::expect_rows(server, rows);
        assert_eq!(server.timeline(), 2, "{}", server.log());
    }
}

#[track_caller]
fn expect_unopened(what: &str, major: Major, data: &Path) {
    let state = tool::control_data(major, data, "Database cluster state");
    assert!(state.contains("recovery"), "{what}: {state}");
    assert_eq!(tool::control_data(major, data, "Latest checkpoint's TimeLineID"), "1", "{what}");
    assert!(data.join("recovery.signal").exists(), "{what}");
}

fn stops_at_every_fault(major: Major, way: Way, faults: &[Fault]) {
    let archive = Archive::of(major);
    for fault in faults {
        let what = format!("{fault:?}, {way:?}, PostgreSQL {major}");
        let mut recovering = archive.restored(way);
        let mend = archive.befall(*fault, &archive.past.middle);
        recovering.expect_refusal(&what, &archive.past.middle);
        mend();
        recovering.expect_every_row(archive.past.last.rows);
    }
}

#[test]
fn no_fault_passes_for_the_end_with_a_target() {
    stops_at_every_fault(Major::V15, Way::Target, &Fault::ALL);
}

#[test]
fn no_fault_passes_for_the_end_with_the_latest_planned() {
    stops_at_every_fault(Major::V15, Way::Latest, &Fault::ALL);
}

#[test]
fn no_fault_passes_for_the_end_without_target_and_plan() {
    stops_at_every_fault(Major::V15, Way::ByHand, &Fault::ALL);
}

#[test]
fn no_fault_passes_for_the_end_on_postgresql_17() {
    stops_at_every_fault(Major::V17, Way::Latest, &[Fault::Removed]);
    stops_at_every_fault(Major::V17, Way::ByHand, &[Fault::Removed, Fault::Flipped]);
}

#[test]
fn no_fault_passes_for_the_end_on_postgresql_18() {
    stops_at_every_fault(Major::V18, Way::Latest, &[Fault::Flipped]);
    stops_at_every_fault(Major::V18, Way::ByHand, &[Fault::Removed, Fault::Flipped]);
}

#[test]
fn under_a_plan_the_last_segment_is_as_sure_as_every_other() {
    let archive = Archive::of(Major::V15);
    for fault in [Fault::Removed, Fault::Cut] {
        let mut recovering = archive.restored(Way::Latest);
        let mend = archive.befall(fault, &archive.past.end);
        recovering.expect_refusal(&format!("{fault:?} at the end"), &archive.past.end);
        mend();
        recovering.expect_every_row(archive.past.last.rows);
    }
}

#[test]
fn a_fault_before_the_plan_is_named_by_the_plan_or_stops_the_recovery() {
    let archive = Archive::of(Major::V15);
    for fault in Fault::ALL {
        let mend = archive.befall(fault, &archive.past.middle);
        for target in [&["--to-latest"][..], &["--to-lsn", &archive.past.last.lsn]] {
            let planned = archive.calls().run(["plan"].iter().chain(target));
            // What a segment's first and last bytes do not show, only recovery finds: it reads every byte.
            let hidden = matches!(fault, Fault::Flipped | Fault::AnotherClusters);
            if planned.is_ok() && hidden {
                let arguments: Vec<&str> =
                    target.iter().chain(&["--as", "primary", "--target-action", "promote"]).copied().collect();
                let mut restored = Restored::by(&archive.calls(), Major::V15, &arguments);
                restored.server.set_env("WALVAULT_HOLE_TIMEOUT", "0");
                Recovering::Planned(restored)
                    .expect_refusal(&format!("{fault:?} before the plan"), &archive.past.middle);
                continue;
            }
            assert!(!planned.is_ok(), "{fault:?} {target:?}\n{}", planned.story());
            assert!(planned.stderr.contains(&archive.past.middle), "{fault:?}\n{}", planned.story());
            if fault == Fault::Removed {
                assert_eq!(planned.code, Some(2), "{}", planned.story());
            }
        }
        mend();
        archive.calls().run(["plan", "--to-latest"]).expect_ok();
    }
}

#[test]
fn a_standby_waits_at_every_fault_and_goes_on_when_it_is_mended() {
    standby_waits(Major::V15, &Fault::ALL);
}

#[test]
fn a_standby_of_postgresql_17_waits_at_a_fault() {
    standby_waits(Major::V17, &[Fault::Removed]);
}

fn standby_waits(major: Major, faults: &[Fault]) {
    let archive = Archive::of(major);
    for fault in faults {
        let (mut standby, _place) = archive.standby();
        let mend = archive.befall(*fault, &archive.past.middle);
        standby.start();
        let complaints = |standby: &TestServer| {
            let said = |line: &&str| line.starts_with("walvault: error: ") && line.contains(&archive.past.middle);
            standby.log().lines().filter(said).count()
        };
        // Twice: it asked again.
        within(Duration::from_secs(60), || complaints(&standby) > 1, "the standby complains and asks again");
        assert_eq!(standby.query_one("select pg_is_in_recovery()"), "t", "{fault:?}");
        assert!(Ledger::rows_on(&standby) < archive.past.last.rows, "{fault:?}");
        mend();
        standby.wait_until("select count(*) from ledger", &archive.past.last.rows.to_string());
        Ledger::expect_rows(&standby, archive.past.last.rows);
        assert_eq!(standby.query_one("select pg_is_in_recovery()"), "t", "{fault:?}");
    }
}

impl Archive {
    /// A standby that lives on the archive alone.
    fn standby(&self) -> (TestServer, Scratch) {
        let place = Scratch::new();
        let data = place.join("data");
        let words = [Path::new("restore"), &data, Path::new("--as"), Path::new("standby")];
        self.calls().run(words).expect_ok();
        let mut standby = TestServer::over(self.major, &data);
        for (name, value) in [("STANDBY_TIMEOUT", "2"), ("STANDBY_HOLE_TIMEOUT", "0")] {
            standby.set_env(format!("WALVAULT_{name}"), value);
        }
        // Without a primary to stream from it asks the archive again at this interval.
        standby.set("wal_retrieve_retry_interval", "200ms");
        // Promoted, it would archive to where the server did that it was copied from.
        standby.set("archive_mode", "off");
        (standby, place)
    }
}

#[test]
fn a_promotion_waits_for_a_hole_to_close_and_then_has_every_row() {
    let archive = Archive::of(Major::V15);
    let (mut standby, _place) = archive.standby();
    // Far longer than what follows takes: the hole closes before.
    standby.set_env("WALVAULT_STANDBY_HOLE_TIMEOUT", "170");
    let mend = archive.befall(Fault::Removed, &archive.past.middle);
    standby.start();
    standby.query_one("select pg_promote(false)");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(standby.query_one("select pg_is_in_recovery()"), "t", "the promotion waits\n{}", standby.log());
    mend();
    standby.wait_until_writable();
    Ledger::expect_rows(&standby, archive.past.last.rows);
}

#[test]
fn a_promotion_past_a_hole_says_so_when_the_time_to_wait_is_over() {
    let archive = Archive::of(Major::V15);
    let (mut standby, _place) = archive.standby();
    standby.set_env("WALVAULT_STANDBY_HOLE_TIMEOUT", "2");
    let _mend = archive.befall(Fault::Removed, &archive.past.middle);
    standby.start();
    standby.query_one("select pg_promote(true, 60)");
    // The limit of what a restore_command can do: PostgreSQL does not tell it that a promotion has begun.
    assert!(Ledger::rows_on(&standby) < archive.past.last.rows);
    let line = format!("walvault: error: {} is not in the archive, but ", archive.past.middle);
    assert!(standby.log().contains(&line), "{}", standby.log());
}
