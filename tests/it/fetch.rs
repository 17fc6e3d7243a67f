//! `wal fetch`: what is served, what is proven absent, and what is neither.

use std::fs;
use std::path::Path;

use crate::support::process::{Outcome, command, run};
use crate::support::user::ServerUser;
use crate::support::{Ledger, Major, Site, Stop, TestServer, tool};

/// Segments of 1 MiB, a part of timeline 1 archived, and a data directory without a plan whose server is not running.
struct Archive {
    site: Site,
    /// Numbers of the first and the last segment that is archived.
    first: u32,
    last: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Recovery,
    Standby,
}

impl Archive {
    fn new() -> Self {
        let mut site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
        for _ in 0..6 {
            site.server.archive_all();
        }
        site.server.set("archive_command", "exit 1");
        site.server.stop(Stop::Immediate);
        let numbers: Vec<u32> = site
            .repo
            .find_all("*/wal/00000001/*.zst")
            .iter()
            .filter_map(|key| u32::from_str_radix(&key.rsplit('/').next()?.strip_suffix(".zst")?[16..], 16).ok())
            .collect();
        let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
        assert!(last >= first + 5, "{numbers:?}");
        Self { site, first, last }
    }

    /// Archives a timeline's history: its forks, as parent, segment number and offset in the segment.
    fn archive_history(&self, timeline: u32, forks: &[(u32, u32, u32)]) {
        let line = |(parent, segment, offset): &(u32, u32, u32)| {
            format!("{parent}\t0/{:X}\tno recovery target specified\n", (segment << 20) + offset)
        };
        let text: String = forks.iter().map(line).collect();
        self.archive(&format!("{timeline:08X}.history"), text.as_bytes());
    }

    /// Archives the bytes of timeline 1's segment as another timeline's, as a new timeline begins.
    fn archive_copy(&self, timeline: u32, segment: u32) {
        let bytes = fs::read(self.wal(&name(1, segment))).expect("nothing was recycled");
        self.archive(&name(timeline, segment), &bytes);
    }

    fn archive(&self, name: &str, bytes: &[u8]) {
        fs::write(self.wal(name), bytes).expect("pg_wal is writable");
        ServerUser::get().take_over(&self.wal(name));
        let push = ["wal", "push", &format!("pg_wal/{name}")];
        self.site.walvault.clone().in_directory(self.site.server.pgdata()).run(push).expect_ok();
    }

    fn wal(&self, name: &str) -> std::path::PathBuf {
        self.site.server.pgdata().join("pg_wal").join(name)
    }

    fn remove(&self, name: &str) {
        self.site.repo.remove(&self.site.repo.find(&format!("*/wal/*/{name}.zst")));
    }

    /// Fetches as the server would.
    fn fetch(&self, mode: Mode, name: &str) -> Outcome {
        let data = self.site.server.pgdata();
        for (signal, of) in [("recovery.signal", Mode::Recovery), ("standby.signal", Mode::Standby)] {
            drop(fs::remove_file(data.join(signal)));
            if of == mode {
                fs::write(data.join(signal), "").expect("the data directory is writable");
            }
        }
        let destination = if name.ends_with(".history") { "pg_wal/RECOVERYHISTORY" } else { "pg_wal/RECOVERYXLOG" };
        drop(fs::remove_file(data.join(destination)));
        let calls = self.site.walvault.clone().in_directory(data);
        let calls = calls.env("WALVAULT_HOLE_TIMEOUT", "0").env("WALVAULT_STANDBY_HOLE_TIMEOUT", "0");
        let outcome = calls.run(["wal", "fetch", name, destination]);
        assert_eq!(outcome.is_ok(), data.join(destination).exists(), "{}", outcome.story());
        outcome
    }

    /// Panics unless recovery and a standby get the same verdict.
    #[track_caller]
    fn expect(&self, name: &str, verdict: Verdict) {
        for mode in [Mode::Recovery, Mode::Standby] {
            let outcome = self.fetch(mode, name);
            let silent = outcome.stdout.is_empty() && outcome.stderr.is_empty();
            let fits = match (verdict, mode, outcome.code) {
                (Verdict::Served, _, code) => code == Some(0) && silent,
                (Verdict::Absent, _, code) => code == Some(1) && silent,
                // What a standby streams meanwhile is no reason to complain at each poll.
                (Verdict::Unknown, Mode::Standby, code) => code == Some(1),
                (Verdict::Unknown, Mode::Recovery, code) => code == Some(200) && outcome.stderr.lines().count() == 1,
            };
            assert!(fits, "{name} for {mode:?} is not {verdict:?}\n{}", outcome.story());
        }
        if verdict == Verdict::Served && !name.ends_with(".history") {
            let served = fs::read(self.wal("RECOVERYXLOG")).expect("it was served");
            assert!(served == fs::read(self.wal(name)).expect("nothing was recycled"), "{name}");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Served,
    Absent,
    Unknown,
}
use Verdict::{Absent, Served, Unknown};

fn name(timeline: u32, segment: u32) -> String {
    format!("{timeline:08X}00000000{segment:08X}")
}

fn history(timeline: u32) -> String {
    format!("{timeline:08X}.history")
}

#[test]
fn the_end_of_the_archive_is_proven_and_a_hole_is_not_the_end() {
    let archive = Archive::new();
    let (first, last) = (archive.first, archive.last);
    for segment in first..=last {
        archive.expect(&name(1, segment), Served);
    }
    archive.expect(&name(1, last + 1), Absent);
    archive.expect(&history(1), Absent);
    archive.expect(&history(2), Absent);
    archive.expect("000000010000000000000003.00000028.backup", Absent);
    // The segment before it is not there: then nobody knows where the log ends.
    archive.expect(&name(1, last + 2), Unknown);
    archive.remove(&name(1, last - 2));
    archive.expect(&name(1, last - 2), Unknown);
    // Without segments after it the same hole would be the end, and what went before proves it.
    archive.remove(&name(1, last - 1));
    archive.expect(&name(1, last - 1), Unknown);
    archive.remove(&name(1, last));
    archive.expect(&name(1, last - 2), Absent);
    archive.expect(&name(1, last), Unknown);
    let before = archive.site.repo.find(&format!("*/{}.zst", name(1, last - 3)));
    archive.site.repo.flip_bit(&before, archive.site.repo.read(&before).len() as u64 * 4);
    archive.expect(&name(1, last - 3), Unknown);
    let outcome = archive.fetch(Mode::Recovery, &name(1, last - 2));
    assert_eq!(outcome.code, Some(200), "the end is not proven by a damaged segment\n{}", outcome.story());
}

#[test]
fn a_history_proves_its_timelines_first_segment_and_ends_the_parents_branch() {
    let archive = Archive::new();
    let fork = archive.last - 2;
    archive.archive_history(2, &[(1, fork, 0x4c10)]);
    for segment in archive.first..fork {
        archive.expect(&name(1, segment), Served);
    }
    // The parent was overrun on its old branch: its segments from the fork on lead away.
    for segment in fork..=archive.last + 1 {
        archive.expect(&name(1, segment), Unknown);
    }
    archive.expect(&history(2), Served);
    archive.expect(&history(3), Absent);
    archive.expect(&name(2, fork - 1), Absent);
    archive.expect(&name(2, fork), Unknown);
    archive.expect(&name(2, fork + 1), Unknown);

    archive.archive_copy(2, fork);
    archive.expect(&name(2, fork), Served);
    archive.expect(&name(2, fork + 1), Absent);
    archive.expect(&name(1, fork), Unknown);
    // A history that went away is not one that never was, also where the server itself has it no more.
    archive.remove(&history(2));
    fs::remove_file(archive.wal(&history(2))).expect("it was archived from there");
    archive.expect(&history(2), Unknown);
}

#[test]
fn a_fork_on_a_boundary_leaves_the_segment_that_begins_there_to_the_child() {
    let archive = Archive::new();
    let fork = archive.last - 1;
    archive.archive_history(2, &[(1, fork, 0)]);
    archive.expect(&name(1, fork - 1), Served);
    archive.expect(&name(1, fork), Unknown);
    archive.expect(&name(2, fork), Unknown);
    archive.archive_copy(2, fork);
    archive.expect(&name(2, fork), Served);
    archive.expect(&name(2, fork + 1), Absent);
}

#[test]
fn of_two_forks_in_one_segment_only_the_last_timelines_copy_is_served() {
    let archive = Archive::new();
    let fork = archive.last - 1;
    archive.archive_history(2, &[(1, fork, 0x1000)]);
    archive.archive_history(3, &[(1, fork, 0x1000), (2, fork, 0x8000)]);
    archive.archive_copy(2, fork);
    archive.expect(&name(1, fork - 1), Served);
    archive.expect(&name(1, fork), Unknown);
    archive.expect(&name(2, fork), Unknown);
    archive.expect(&name(3, fork), Unknown);
    archive.archive_copy(3, fork);
    archive.expect(&name(3, fork), Served);
    archive.expect(&name(3, fork + 1), Absent);
}

#[test]
fn whoever_stands_between_the_server_and_fetch_gets_no_easier_proof() {
    let archive = Archive::new();
    let missing = name(1, archive.last - 2);
    archive.remove(&missing);
    let data = archive.site.server.pgdata();
    fs::write(data.join("recovery.signal"), "").expect("the data directory is writable");
    fs::write(data.join("postmaster.pid"), "1\n").expect("the data directory is writable");
    let calls = archive.site.walvault.clone().env("WALVAULT_HOLE_TIMEOUT", "0");
    let elsewhere = archive.site.server.beside("elsewhere");
    let own_name = elsewhere.join(&missing);
    let another = elsewhere.join("segment");
    for (directory, destination) in
        [(data, &own_name), (data, &another), (&elsewhere, &own_name), (&elsewhere, &another)]
    {
        let words = [Path::new("wal"), Path::new("fetch"), Path::new(&missing), destination];
        calls.clone().in_directory(directory).run(words).expect_code(200);
    }
}

#[test]
fn pg_rewind_finds_the_old_branch_in_the_archive() {
    rewinds(Major::V15);
}

#[test]
fn pg_rewind_of_17_finds_the_old_branch_in_the_archive() {
    rewinds(Major::V17);
}

/// An old primary that wrote on after its standby was promoted needs its own segments back, past the fork.
fn rewinds(major: Major) {
    let mut site = Site::of(TestServer::builder(major).segment_mib(1).set("wal_log_hints", "on"));
    let mut ledger = Ledger::create(&site.server);
    ledger.commit(&site.server, 50);
    let place = site.server.beside("standby");
    let data = place.join("data");
    tool::base_backup(&site.server, &data, &[]).expect_ok();
    let mut standby = TestServer::over(major, &data);
    fs::write(data.join("standby.signal"), "").expect("the copy is there");
    standby.set("primary_conninfo", &site.server.conninfo());
    standby.start();
    site.server.archive_all();
    let caught_up = site.server.query_one("select pg_current_wal_lsn()");
    standby.wait_until(&format!("select pg_last_wal_replay_lsn() >= '{caught_up}'"), "t");
    standby.promote();
    let kept = Ledger::rows_on(&standby);
    // The old primary's own branch, most of it in the archive only.
    for _ in 0..4 {
        ledger.commit(&site.server, 300);
        site.server.archive_all();
    }
    site.server.sql("checkpoint");
    site.server.archive_all();
    site.server.sql("checkpoint");
    site.server.stop(Stop::Fast);
    let log = site.server.pgdata().join("pg_wal");
    let removed = fs::read_dir(&log).expect("it is there").filter_map(Result::ok).filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let archived = !site.repo.find_all(&format!("*/{name}.zst")).is_empty();
        name.starts_with("00000001") && archived && fs::remove_file(entry.path()).is_ok()
    });
    let removed = removed.count();
    assert!(removed > 0, "the old branch is still in pg_wal");

    site.server.set("restore_command", &site.walvault.restore_command());
    let mut rewind = command(major.program("pg_rewind"));
    rewind.args(["--no-sync", "--restore-target-wal", "--source-server"]).arg(standby.conninfo());
    rewind.arg("-D").arg(site.server.pgdata());
    let outcome = run(rewind).expect_ok();
    assert!(outcome.stderr.contains("Done!"), "{}", outcome.story());
    fs::write(site.server.pgdata().join("standby.signal"), "").expect("the data directory is writable");
    site.server.set("primary_conninfo", &standby.conninfo());
    site.server.start();
    standby.sql("create table after_the_failover as select 1 as one");
    site.server.wait_until("select one from after_the_failover", "1");
    Ledger::expect_rows(&site.server, kept);
}
