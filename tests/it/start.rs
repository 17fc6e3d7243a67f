//! `restore --start`: the server is started, waited for, and compared with the plan.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use walvault::catalog::LaneCatalog;
use walvault::instance::{LibpqEnvironment, Programs};
use walvault::pg::PgTime;
use walvault::repo::Repository;
use walvault::restore::{Plan, Purpose, Request, Target, plan};
use walvault::store::{Access, RetryPolicy, Store, StoreUrl};
use walvault::workflow;

use crate::support::process::Outcome;
use crate::support::scratch::Scratch;
use crate::support::site::Site;
use crate::support::user::ServerUser;
use crate::support::{Ledger, Major, TestServer, tool};

/// Restores into a new directory and starts the server there, on a socket of its own; further arguments come last.
fn start(site: &Site, place: &Scratch, arguments: &[&str]) -> Outcome {
    let bin = programs(site.server.major());
    let data = place.join("data");
    let socket = format!("unix_socket_directories={}", place.path().display());
    let words = [OsStr::new("restore"), OsStr::new("--json"), data.as_os_str()];
    let start = [OsStr::new("--start"), OsStr::new("--pg-bin"), bin.as_os_str()];
    let private = ["--set", &socket, "--set", "listen_addresses=", "--set", "Port=5432"];
    site.walvault.run(words.into_iter().chain(start).chain(private.iter().chain(arguments).map(OsStr::new)))
}

/// Takes over the server that `start` left running.
fn again(site: &Site, place: &Scratch) -> TestServer {
    let data = place.join("data");
    let major = site.server.major();
    let words = [OsStr::new("stop"), OsStr::new("-w"), OsStr::new("-D"), data.as_os_str()];
    tool::tool(major, "pg_ctl", words).expect_ok();
    let mut copy = TestServer::over(major, &data);
    copy.start();
    copy
}

fn programs(major: Major) -> PathBuf {
    major.program("pg_ctl").parent().expect("a program lies in a folder").to_path_buf()
}

#[test]
fn a_recovery_that_ends_as_planned_is_a_success_on_15() {
    ends_as_planned(Major::V15);
}

#[test]
fn a_recovery_that_ends_as_planned_is_a_success_on_18() {
    ends_as_planned(Major::V18);
}

#[test]
fn a_recovery_that_ends_as_planned_is_a_success_on_17() {
    ends_as_planned(Major::V17);
}

#[test]
fn a_recovery_that_ends_as_planned_is_a_success_on_14_and_16() {
    ends_as_planned(Major::V14);
    ends_as_planned(Major::V16);
}

fn ends_as_planned(major: Major) {
    let site = Site::of(TestServer::builder(major).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    let backed_up = ledger.commit_singly(&site.server, 20).clone();
    site.backup();
    ledger.commit_singly(&site.server, 30);
    let chosen = ledger.last().clone();
    site.server.sql("select pg_create_restore_point('chosen')");
    ledger.commit_singly(&site.server, 30);
    site.server.archive_all();
    let (xid, time) = (chosen.xid.to_string(), chosen.time.clone());
    let before = ledger.commits()[ledger.commits().len() - 32].clone();
    assert_eq!(before.rows, chosen.rows - 1);
    let last = ledger.last();
    let commit_end = site.plan(&["--to-xid", &xid], 0).json()["last_commit"]["lsn"].as_str().expect("one").to_owned();
    let cases: [(&[&str], u64, u64); 8] = [
        (&["--to-xid", &xid], chosen.rows, chosen.xid),
        (&["--to-xid", &xid, "--exclusive"], before.rows, before.xid),
        (&["--to-lsn", &chosen.lsn], chosen.rows, chosen.xid),
        // The commit record itself is the last one replayed, and the server does not note its time.
        (&["--to-lsn", &commit_end], chosen.rows, chosen.xid),
        (&["--to-time", &time], chosen.rows, chosen.xid),
        (&["--to-name", "chosen"], chosen.rows, chosen.xid),
        (&["--to-latest"], last.rows, last.xid),
        (&["--to-backup-end"], backed_up.rows, backed_up.xid),
    ];
    for (target, rows, commit) in cases {
        for action in ["pause", "promote"] {
            let place = Scratch::new();
            let words = [target, &["--as", "clone", "--target-action", action]].concat();
            let report = start(&site, &place, &words).expect_ok().json();
            assert_eq!(report["reached_lsn"], report["reach_lsn"], "{words:?}");
            let expected = if action == "promote" { 2.into() } else { serde_json::Value::Null };
            assert_eq!(report["promoted_to"], expected, "{words:?}");
            // One that pauses can be stopped and go on to a later target: it reads again.
            assert_eq!(report["held_until"].is_string(), action == "pause", "{words:?}");
            // Nothing need have been committed while the backup was taken.
            match (report["last_commit"]["xid"].as_u64(), target) {
                (found, ["--to-backup-end"]) => assert!(found.is_none_or(|found| found == commit), "{words:?}"),
                // The newest segments are filled with a transaction of their own.
                (found, ["--to-latest"]) => assert!(found.is_some_and(|found| found >= commit), "{words:?}"),
                (found, _) => assert_eq!(found, Some(commit), "{words:?}"),
            }
            let copy = again(&site, &place);
            if action == "pause" {
                copy.wait_until("select pg_get_wal_replay_pause_state()", "paused");
            }
            Ledger::expect_rows(&copy, rows);
        }
    }
}

/// The plan is made, and then the archive loses what the plan needs: PostgreSQL stops, and so does the restore.
#[test]
fn a_recovery_that_cannot_reach_its_target_is_a_failed_restore() {
    let site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    ledger.commit_singly(&site.server, 10);
    let last = site.server.archive_all();
    // Only the bytes of the log are damaged: the hint in the trailer still stands, and the plan to the backup's end does
    // not read them.
    let stop = site.walvault.run(["list", "--json"]).expect_ok().json()["backups"][0]["stop_lsn"].clone();
    let key = site.repo.find(&format!("*/{last}.zst"));
    site.repo.flip_bit(&key, 8 * 300);
    start(&site, &Scratch::new(), &["--to-lsn", stop.as_str().expect("a position"), "--as", "clone"]).expect_code(1);
    start(&site, &Scratch::new(), &["--to-latest", "--as", "clone"]).expect_code(1);
}

#[test]
fn pg_wal_can_lie_elsewhere() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    ledger.commit(&site.server, 100);
    site.server.archive_all();
    let place = Scratch::new();
    let (data, wal) = (place.join("data"), place.join("wal"));
    let wal_text = wal.to_str().expect("plain text");
    let words = ["--to-latest", "--as", "primary", "--target-action", "promote", "--waldir", wal_text];
    start(&site, &place, &words).expect_ok();
    assert_eq!(std::fs::read_link(data.join("pg_wal")).expect("a link"), wal);
    assert!(wal.join("00000002.history").exists());
    Ledger::expect_rows(&again(&site, &place), 100);
    let inside = place.join("other/wal");
    let words = ["--to-latest", "--as", "clone", "--waldir", inside.to_str().expect("plain text")];
    site.try_restore(&place.join("other"), &words).expect_code(1);
}

/// PostgreSQL's programs as a user that may start servers.
fn programs_as_server_user(major: Major, place: &Scratch) -> Programs {
    let folder = place.create_dir("bin");
    let change_user = ServerUser::get().setpriv().unwrap_or_default();
    for name in ["pg_ctl", "postgres"] {
        let script = format!("#!/bin/sh\nexec {change_user} {} \"$@\"\n", major.program(name).display());
        crate::support::process::script(&folder.join(name), &script);
    }
    Programs::find(major.number() as u16, Some(&folder), &[]).expect("they are there")
}

/// A server stands at the planned position of the planned timeline, and another transaction was its last: that is
/// another history.
#[test]
fn another_last_commit_than_planned_is_a_failed_restore() {
    for (major, action) in [(Major::V15, "pause"), (Major::V17, "promote")] {
        let site = Site::of(TestServer::builder(major).segment_mib(1));
        let mut ledger = Ledger::create(&site.server);
        site.backup();
        let chosen = ledger.commit_singly(&site.server, 5).clone();
        ledger.commit(&site.server, 1);
        site.server.archive_all();
        let url = StoreUrl::volume(site.repo.path()).expect("a plain path");
        let store = Store::open(&url, &Access::default(), RetryPolicy::brisk(1)).expect("the repository");
        let repository = Repository::open(store, "main").expect("it was made");
        let lane = repository.lane(repository.lane_ids().expect("one")[0]).expect("it is there").expect("it is there");
        let request = Request {
            target: Target::Lsn(chosen.lsn.parse().expect("a position")),
            purpose: Purpose::Clone,
            exclusive: false,
            timeline: None,
            backup: None,
        };
        let sound = plan(&lane, &LaneCatalog::load(&lane).expect("a catalogue"), &request).expect("a plan");
        assert_eq!(sound.last_commit.map(|commit| u64::from(commit.xid)), Some(chosen.xid));

        type Change = fn(&mut Plan);
        let changes: [(&str, Change); 4] = [
            ("as it is", |_| {}),
            ("is unknown to the server", |plan| {
                plan.last_commit.as_mut().expect("one").xid += 100;
            }),
            ("the last transaction replayed is of", |plan| {
                plan.last_seen = plan.point.time.or(plan.last_seen).map(later)
            }),
            ("in the plan it is of none", |plan| plan.last_seen = None),
        ];
        for (said, change) in changes {
            let place = Scratch::new();
            let data = place.join("data");
            let socket = format!("unix_socket_directories={}", place.path().display());
            let lsn = ["--to-lsn", &chosen.lsn, "--as", "clone", "--target-action", action];
            let private = ["--set", &socket, "--set", "listen_addresses="];
            site.try_restore(&data, &[&lsn[..], &private].concat()).expect_ok();
            let mut changed = sound.clone();
            change(&mut changed);
            let environment = LibpqEnvironment { user: Some("postgres".to_owned()), ..LibpqEnvironment::default() };
            let started = workflow::start(&workflow::Start {
                configuration_directory: None,
                programs: &programs_as_server_user(major, &place),
                data_directory: &data,
                plan: &changed,
                environment: &environment,
                patience: Duration::from_secs(60),
            });
            let runs = data.join("postmaster.pid").exists();
            match started {
                Ok(_) => assert!(said == "as it is" && runs, "{said}"),
                Err(error) => {
                    let text = walvault::error::chain(&error).to_string();
                    assert!(text.contains(said) && text.contains("this is a failed restore"), "{said}: {text}");
                    assert!(!runs, "the server was stopped again");
                }
            }
            if runs {
                drop(again(&site, &place));
            }
        }
    }
}

fn later(time: PgTime) -> PgTime {
    PgTime::from_micros(time.micros() + 1).expect("a moment")
}
