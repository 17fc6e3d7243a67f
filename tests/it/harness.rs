//! The vocabulary itself: a journey can be no truer than the words it is told in.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::process::{Running, command, processes_in, run};
use crate::support::scratch::{Scratch, keeping};
use crate::support::user::ServerUser;
use crate::support::{Ledger, Major, Snapshot, Stop, TestRepo, TestServer, Walvault, tool, within};

/// Archives into a plain directory.
fn copy_to(archive: &Path) -> String {
    format!("test ! -f {0}/%f && cp \"%p\" {0}/%f", archive.display())
}

#[test]
fn every_major_starts_recovers_from_a_kill_and_passes_its_own_checks() {
    for major in Major::every() {
        let mut server = TestServer::builder(major).start();
        assert!(server.query_one("show server_version").starts_with(&major.to_string()));
        let mut ledger = Ledger::create(&server);
        ledger.commit(&server, 50);
        server.kill9();
        assert_eq!(processes_in(server.pgdata()), []);
        server.start();
        Ledger::expect_rows(&server, 50);
        if major > Major::V16 || major == Major::V15 {
            tool::check_relations(&server).expect_ok();
        }
        server.stop(Stop::Fast);
        tool::check_checksums(major, server.pgdata()).expect_ok();
        assert_eq!(tool::control_data(major, server.pgdata(), "Database cluster state"), "shut down");
    }
}

#[test]
fn segments_have_the_size_that_was_asked_for_and_are_archived_whole() {
    for major in Major::all() {
        for mib in [1, 16, 64] {
            let archive = Scratch::new();
            let command = copy_to(archive.path());
            let server = TestServer::builder(major).segment_mib(mib).archive_command(command).start();
            Ledger::create(&server).commit(&server, 10);
            let segment = server.archive_all();
            let bytes = fs::metadata(archive.join(&segment)).expect("the segment was archived").len();
            assert_eq!(
                (bytes, server.query_one("show wal_segment_size")),
                (u64::from(mib) << 20, format!("{}MB", mib))
            );
        }
    }
}

#[test]
fn identities_tell_clusters_apart_and_copies_of_one_share_it() {
    let of = |identity| TestServer::builder(Major::V15).identity(identity).start().system_id();
    let (first, again, other) = (of(0), of(0), of(1));
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn a_commit_of_the_ledger_is_a_target_that_recovery_hits_exactly() {
    let archive = Scratch::new();
    let mut server = TestServer::builder(Major::V17).archive_command(copy_to(archive.path())).start();
    let mut ledger = Ledger::create(&server);
    let copy = server.beside("").join("copy");
    tool::base_backup(&server, &copy, &[]).expect_ok();
    let pristine = server.beside("").join("pristine");
    run_cp(&copy, &pristine);
    tool::verify_backup(Major::V17, &copy).expect_ok();
    ledger.commit_singly(&server, 20);
    server.archive_all();
    let commit = ledger.commits()[7].clone();
    assert!(commit.position() < ledger.commits()[8].position() && commit.time < ledger.commits()[8].time);
    server.stop(Stop::Fast);

    for (setting, target) in [
        ("recovery_target_lsn", commit.lsn.clone()),
        ("recovery_target_time", commit.time.clone()),
        ("recovery_target_xid", commit.xid.to_string()),
    ] {
        let place = Scratch::new();
        let data = place.join("data");
        run_cp(&pristine, &data);
        let mut restored = TestServer::over(Major::V17, &data);
        restored.set("restore_command", &format!("cp {}/%f \"%p\"", archive.path().display()));
        restored.set("archive_mode", "off");
        restored.set(setting, &target);
        restored.set("recovery_target_action", "promote");
        fs::write(data.join("recovery.signal"), "").expect("the copy is there");
        restored.start();
        restored.wait_until_writable();
        Ledger::expect_rows(&restored, commit.rows);
        assert_eq!(restored.timeline(), 2, "{setting}");
        let lost = Ledger::compare(&restored, commit.rows + 1).expect_err("one row more is not there");
        assert!(lost.contains("was expected"), "{lost}");
    }
}

fn run_cp(from: &Path, to: &Path) {
    let mut cp = command("/usr/bin/cp");
    cp.arg("-a").arg(from).arg(to);
    run(cp).expect_ok();
}

#[test]
fn the_ledger_sees_missing_doubled_and_damaged_rows() {
    let server = TestServer::builder(Major::V15).start();
    Ledger::create(&server).commit(&server, 9);
    assert_eq!(Ledger::compare(&server, 9), Ok(()));
    for damage in [
        "delete from ledger where id = 4",
        "update ledger set contents = reverse(contents) where id = 4",
        "update ledger set id = 12 where id = 9",
    ] {
        server.sql(&format!("begin; create table kept as table ledger; {damage}; commit"));
        assert!(Ledger::compare(&server, 9).is_err(), "{damage}");
        server.sql("truncate ledger; insert into ledger table kept; drop table kept");
    }
    Ledger::expect_rows(&server, 9);
}

#[test]
fn a_killed_server_leaves_what_was_acknowledged_and_at_most_the_commit_in_doubt() {
    let mut server = TestServer::builder(Major::V18).start();
    let writing = Ledger::create(&server).keep_committing(&server, 3);
    server.wait_until("select count(*) > 30 from ledger", "t");
    server.kill9();
    let mut ledger = writing.stop();
    server.start();
    assert!(ledger.after_crash().contains(&Ledger::rows_on(&server)));
    ledger.resume(&server);
    let rows = ledger.commit(&server, 5).rows;
    Ledger::expect_rows(&server, rows);
}

#[test]
fn a_server_that_cannot_start_answers_its_exit_status_and_says_why() {
    let mut server = TestServer::builder(Major::V15).set("no_such_setting", "1").create();
    let status = server.try_start().expect_err("the setting does not exist");
    assert_eq!(status.code(), Some(1));
    assert!(server.log().contains("no_such_setting"), "{}", server.log());
}

#[test]
fn a_dropped_server_leaves_no_process_and_no_directory_even_after_a_panic() {
    let dropped = std::thread::spawn(|| {
        let server = TestServer::builder(Major::V15).archive_command("sleep 600").start();
        server.switch_wal();
        within(Duration::from_secs(60), || commands_below(server.pgdata()) > 0, "the archive command runs");
        std::panic::panic_any(server.pgdata().to_owned());
    });
    let payload = dropped.join().expect_err("it panics");
    let data = payload.downcast::<std::path::PathBuf>().expect("it panics with a path");
    assert_eq!(processes_in(&data), []);
    assert!(keeping() || !data.exists());
}

/// Counts the `sleep` commands that work in a data directory.
fn commands_below(data: &Path) -> usize {
    let is_sleep = |pid: &rustix::process::Pid| {
        fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).is_ok_and(|name| name == "sleep\n")
    };
    processes_in(data).iter().filter(|pid| is_sleep(pid)).count()
}

#[test]
fn tablespaces_and_other_databases_are_within_reach() {
    let server = TestServer::builder(Major::V18).start();
    let place = server.create_tablespace("fast");
    server.sql("create database other tablespace fast");
    server.sql_in("other", "create table t as select 1 as one");
    assert_eq!(server.sql_in("other", "table t"), "1");
    assert!(fs::read_dir(place).expect("the tablespace is there").next().is_some());
}

#[test]
fn commands_report_status_signal_and_words() {
    let shell = |script: &str| {
        let mut shell = command("/bin/sh");
        shell.args(["-c", script]);
        shell
    };
    let outcome = run(shell("echo said; echo complained >&2; exit 7")).expect_code(7);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("said\n", "complained\n"));
    assert_eq!(run(shell("kill -9 $$")).signal, Some(9));
    // A daemon that keeps the output open does not keep the test waiting.
    assert!(run(shell("sleep 600 & exit 0")).expect_ok().elapsed < Duration::from_secs(100));

    let mut asleep = Running::start(shell("exec sleep 600"));
    assert!(asleep.is_running());
    asleep.signal(Signal::TERM);
    assert_eq!(asleep.wait(Duration::from_secs(100)).signal, Some(15));
}

#[test]
fn commands_run_as_the_owner_of_repositories_and_without_the_surroundings_of_the_run() {
    let repo = TestRepo::new();
    let mut shell = command("/bin/sh");
    shell
        .args(["-c", "touch \"$1/mine\" && env | sort && test $(id -u) = $(stat -c %u \"$1\") && id -G", "sh"])
        .arg(repo.path());
    let outcome = run(shell).expect_ok();
    assert!(!outcome.stdout.contains("CARGO"), "{}", outcome.story());
    assert_eq!(outcome.stdout.lines().last().map(|groups| groups.split(' ').count()), Some(1), "{}", outcome.story());
    assert_eq!(repo.objects(), ["mine"]);
}

#[test]
fn the_program_runs_as_the_server_user() {
    let outcome = Walvault::bare().run(["--version"]).expect_ok();
    assert!(outcome.stdout.starts_with("walvault "), "{}", outcome.story());
}

#[test]
fn commands_for_the_server_carry_repository_and_cluster() {
    let repo = TestRepo::new();
    let expected = format!("' '--repo' '{}' '--cluster' 'main' wal push \"%p\"", repo.url());
    let command = Walvault::on(&repo).archive_command();
    assert!(command.ends_with(&expected), "{command}");
}

#[test]
fn a_repository_is_damaged_exactly_as_asked() {
    let repo = TestRepo::new();
    for (name, bytes) in [("a/wal/1", "first"), ("a/wal/2", "second"), ("a/b/3", "third")] {
        let file = repo.path().join(name);
        fs::create_dir_all(file.parent().expect("it has one")).expect("the repository is writable");
        fs::write(file, bytes).expect("the repository is writable");
    }
    assert_eq!(repo.objects(), ["a/b/3", "a/wal/1", "a/wal/2"]);
    assert_eq!(repo.find_all("a/*/*"), repo.objects());
    assert_eq!(repo.find("*wal/2"), "a/wal/2");
    let before = repo.snapshot();
    before.expect_unchanged(repo.path());
    assert_eq!(before, repo.duplicate().snapshot());

    repo.flip_bit("a/wal/1", 8 + 1);
    assert_eq!(repo.read("a/wal/1"), b"fkrst");
    repo.flip_bit("a/wal/1", 8 + 1);
    before.expect_unchanged(repo.path());

    repo.truncate("a/wal/2", 3);
    assert_eq!(repo.read("a/wal/2"), b"sec");
    repo.remove("a/b/3");
    fs::write(repo.path().join("a/new"), "").expect("the repository is writable");
    let differences = before.differences(&repo.snapshot());
    let first_words: Vec<&str> = differences.iter().map(|line| line.split(" (").next().unwrap_or_default()).collect();
    assert_eq!(first_words, ["removed a/b/3", "added a/new", "changed a/wal/2"]);

    let read = |key: &str| {
        let mut cat = command("/bin/cat");
        cat.arg(repo.path().join(key));
        run(cat)
    };
    ServerUser::get().take_over(repo.path());
    repo.make_unreadable("a/wal/1");
    assert!(read("a/wal/1").expect_code(1).stderr.contains("Permission denied"));
    repo.make_readable("a/wal/1");
    assert_eq!(read("a/wal/1").expect_ok().stdout, "first");
}

#[test]
#[should_panic(expected = "describes 0 of these objects")]
fn an_object_that_is_not_there_is_not_found() {
    TestRepo::new().find("a/*");
}

#[test]
#[should_panic(expected = "not within 30ms: it comes true")]
fn waiting_has_a_limit() {
    within(Duration::from_millis(30), || false, "it comes true");
}

#[test]
fn a_snapshot_sees_mode_kind_and_link_target() {
    let scratch = Scratch::new();
    std::os::unix::fs::symlink("here", scratch.join("link")).expect("the directory is writable");
    let before = Snapshot::of(scratch.path());
    fs::remove_file(scratch.join("link")).expect("it is there");
    std::os::unix::fs::symlink("there", scratch.join("link")).expect("the directory is writable");
    assert_eq!(before.differences(&Snapshot::of(scratch.path())).len(), 1);
}
