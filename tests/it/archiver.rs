//! What PostgreSQL's archiver makes of `wal push`: it counts failures, lives through them, and catches up.

use std::fs;
use std::time::Duration;

use crate::support::process::{command, processes_in, run};
use crate::support::{Ledger, Major, Restored, Scratch, Stop, TestRepo, TestServer, Walvault, within};

/// How long a test waits for what comes in any case.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn postgresql_15_archives_again_after_every_failure() {
    archives_again_after_every_failure(Major::V15);
}

#[test]
fn postgresql_17_archives_again_after_every_failure() {
    archives_again_after_every_failure(Major::V17);
}

#[test]
fn postgresql_18_archives_again_after_every_failure() {
    archives_again_after_every_failure(Major::V18);
}

fn archives_again_after_every_failure(major: Major) {
    let repo = TestRepo::new();
    let walvault = Walvault::on(&repo);
    walvault.run(["init"]).expect_ok();
    let server = TestServer::builder(major).segment_mib(1).archive_command(walvault.archive_command()).start();
    // Where a store hangs or is not there, a push tries as long as it may: for a second then, and for no other push.
    let hasty = format!("WALVAULT_PUSH_TIMEOUT=1 {}", walvault.archive_command());
    server.archive_all();
    let archiver = || server.query_one("select pid from pg_stat_activity where backend_type = 'archiver'");
    let pid = archiver();

    let document = repo.path().join("main/repository.json");
    let kept = repo.read("main/repository.json");
    let away = repo.path().with_extension("away");
    type Step<'a> = Box<dyn Fn() + 'a>;
    let causes: [(&str, Step<'_>, Step<'_>); 4] = [
        (
            "not mounted",
            Box::new(|| fs::rename(repo.path(), &away).expect("one file system")),
            Box::new(|| fs::rename(&away, repo.path()).expect("one file system")),
        ),
        (
            "permission denied",
            Box::new(|| repo.make_unreadable("main/repository.json")),
            Box::new(|| repo.make_readable("main/repository.json")),
        ),
        (
            "stalled",
            Box::new(|| {
                fs::remove_file(&document).expect("it is there");
                let mut mkfifo = self::command("/usr/bin/mkfifo");
                mkfifo.arg(&document);
                run(mkfifo).expect_ok();
            }),
            Box::new(|| {
                fs::remove_file(&document).expect("it is there");
                fs::write(&document, &kept).expect("the repository is writable");
            }),
        ),
        (
            "damaged",
            Box::new(|| repo.flip_bit("main/repository.json", 100)),
            Box::new(|| repo.flip_bit("main/repository.json", 100)),
        ),
    ];
    for (what, begin, mend) in causes {
        let failures: u64 = failed_count(&server);
        server.set_archive_command(&hasty);
        begin();
        let segment = server.switch_wal();
        within(LIMIT, || failed_count(&server) > failures, what);
        assert_eq!(server.query_one("select last_failed_wal from pg_stat_archiver"), segment, "{what}");
        mend();
        server.set_archive_command(&walvault.archive_command());
        // The archiver tries three times, a second apart, and then waits for a minute or the next segment.
        let next = server.switch_wal();
        server.wait_archived(&segment);
        server.wait_archived(&next);
        assert_eq!(archiver(), pid, "{what}: the archiver died\n{}", server.log());
    }
    let log = server.log();
    assert!(log.contains("archive command failed with exit code 1"), "{log}");
    assert!(!log.contains("terminated by signal"), "{log}");
    let lines = log.lines().filter(|line| line.starts_with("walvault"));
    lines.for_each(|line| assert!(line.len() < 500 && line.starts_with("walvault: error: "), "{line}"));
}

fn failed_count(server: &TestServer) -> u64 {
    server.query_one("select failed_count from pg_stat_archiver").parse().expect("a count is a number")
}

#[test]
fn a_signal_to_a_push_is_a_failure_that_is_counted() {
    let repo = TestRepo::new();
    let walvault = Walvault::on(&repo);
    walvault.run(["init"]).expect_ok();
    let mut server = TestServer::builder(Major::V15).segment_mib(1).archive_command(walvault.archive_command()).start();
    let kept = repo.read("main/repository.json");
    let document = repo.path().join("main/repository.json");
    fs::remove_file(&document).expect("it is there");
    let mut mkfifo = command("/usr/bin/mkfifo");
    mkfifo.arg(&document);
    run(mkfifo).expect_ok();
    let segment = server.switch_wal();
    // One that has asked the store has threads; a signal before that comes to a program that has hardly begun.
    let threads = |push: &rustix::process::Pid| {
        fs::read_dir(format!("/proc/{}/task", push.as_raw_nonzero())).map_or(0, Iterator::count)
    };
    let pushing = || pushes_of(&server).iter().any(|push| threads(push) > 2);
    within(LIMIT, pushing, "the archiver calls");
    // A stray signal to the command: the archiver counts a failure and lives.
    let pid = server.query_one("select pid from pg_stat_activity where backend_type = 'archiver'");
    for push in pushes_of(&server) {
        rustix::process::kill_process(push, rustix::process::Signal::TERM).expect("it is there");
    }
    within(LIMIT, || failed_count(&server) > 0, "the failure is counted");
    assert_eq!(server.query_one("select pid from pg_stat_activity where backend_type = 'archiver'"), pid);
    server.stop(Stop::Immediate);

    fs::remove_file(&document).expect("it is there");
    fs::write(&document, &kept).expect("the repository is writable");
    server.start();
    server.wait_archived(&segment);
    server.stop(Stop::Fast);
}

/// Returns the pushes that a server runs.
fn pushes_of(server: &TestServer) -> Vec<rustix::process::Pid> {
    let is_push = |pid: &rustix::process::Pid| {
        fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).is_ok_and(|name| name == "walvault\n")
    };
    processes_in(server.pgdata()).into_iter().filter(is_push).collect()
}

#[test]
fn a_path_with_spaces_quotes_and_signs_of_the_shell_survives_every_command_line() {
    let place = Scratch::new();
    let root = place.create_dir(r#"it's "50%" of $HOME; `all`"#);
    let url = format!("file://{}", root.display()).replace('%', "%25");
    let walvault = Walvault::bare().repository(url).cluster("main");
    walvault.run(["init"]).expect_ok();
    // PostgreSQL takes a percent sign for its own.
    let server = TestServer::builder(Major::V15)
        .segment_mib(1)
        .archive_command(walvault.archive_command().replace('%', "%%").replace("%%p", "%p"))
        .start();
    let mut ledger = Ledger::create(&server);
    ledger.commit(&server, 10);
    crate::support::site::backup_of(&server, &walvault, &[]).expect_ok();
    let rows = ledger.commit(&server, 10).rows;
    server.archive_all();
    let mut restored =
        Restored::by(&walvault, Major::V15, &["--to-latest", "--as", "primary", "--target-action", "promote"]);
    Ledger::expect_rows(restored.promoted(), rows);
}
