//! `walvault status` for monitors, and the requests that each command makes.

use crate::support::process::Outcome;
use crate::support::scratch::Scratch;
use crate::support::{Major, Site, TestRepo, TestServer, Walvault};

#[test]
fn a_monitor_reads_the_line_and_the_status() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    let data = site.server.pgdata().display().to_string();
    let status = |words: &[&str]| site.walvault.run(["status", "--pgdata", &data].iter().chain(words));
    let line = |outcome: Outcome, code: i32, word: &str| {
        let outcome = outcome.expect_code(code);
        assert!(outcome.stdout.starts_with(word) && outcome.stdout.lines().count() == 1, "{}", outcome.story());
        outcome.stdout
    };
    // Nothing is archived yet: there is no lane.
    line(status(&[]), 2, "CRITICAL: nothing of system");
    site.server.archive_all();
    line(status(&[]), 2, "CRITICAL: no backup, WAL 0000");
    site.backup();
    // The backup's own `.backup` file is archived after the backup has ended.
    site.server.wait_nothing_waits();
    let sound = line(status(&[]), 0, "OK: WAL 0000");
    for number in [
        " | wal_age=",
        "s;900;3600;0 backup_age=",
        "s;93600;691200;0 backlog=0;16;128;0 conflicts=0;0;0;0 given_up=0;0;0;0\n",
    ] {
        assert!(sound.contains(number), "{sound}");
    }
    let report = status(&["--json"]).expect_ok().json();
    assert_eq!(report["level"], "ok");
    assert_eq!(report["measures"][2]["name"], "backlog");

    site.server.set_archive_command("/bin/false");
    site.server.switch_wal();
    line(status(&["--backlog-warn", "0"]), 1, "WARNING: 1 waiting");
    line(status(&["--backlog-warn", "0", "--backlog-fail", "0"]), 2, "CRITICAL: 1 waiting");
    // Without the data directory only the archive tells.
    let elsewhere = site.walvault.run(["status"]).expect_ok().stdout;
    assert!(!elsewhere.contains("backlog"), "{elsewhere}");

    line(Walvault::bare().run(["status"]), 3, "UNKNOWN: no cluster is set");
    line(site.walvault.run(["status", "--no-such-option"]), 3, "UNKNOWN: unexpected argument");
    line(Walvault::on(&TestRepo::new()).run(["status"]), 2, "CRITICAL: ");
}

/// Returns what `-v` says of the requests that a command made.
#[track_caller]
fn requests(outcome: Outcome) -> String {
    let outcome = outcome.expect_ok();
    let line = outcome.stderr.lines().rfind(|line| line.contains("request"));
    let line = line.unwrap_or_else(|| panic!("no requests are told of\n{}", outcome.story()));
    line.strip_prefix("walvault: ").expect("who says it").to_owned()
}

#[test]
fn each_commands_requests_are_told_and_no_more_than_these() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    site.server.set_archive_command("/bin/true");
    let calls = site.walvault.clone().in_directory(site.server.pgdata());
    let counted = |words: &[&str]| requests(calls.run(["-v"].iter().chain(words)));
    let first = site.server.archive_all();
    let second = site.server.archive_all();
    let push = |name: &str| counted(&["wal", "push", &format!("pg_wal/{name}")]);
    let data = site.server.pgdata().display().to_string();
    let mut made = vec![
        ("init, repeated", counted(&["init"])),
        ("the first push", push(&first)),
        ("a push", push(&second)),
        ("the same push again", push(&second)),
        ("a fetch", counted(&["wal", "fetch", &second, "pg_wal/RECOVERYXLOG"])),
    ];
    site.server.set_archive_command(&site.walvault.archive_command());
    // Each worker fills packs of its own; how many find work is chance.
    let one = calls.clone().env("WALVAULT_CPUS", "1");
    let words = ["-v", "backup", "--fast", "--pgdata", &data, "--dbname", &site.server.conninfo()];
    let backup = requests(one.run(words));
    // How often a backup asks for its WAL depends on how soon that is archived.
    site.server.wait_nothing_waits();
    let (own, _) = backup.split_once(" create").expect("a backup creates");
    made.push(("a backup's objects, with one worker", own.rsplit(' ').next().unwrap_or_default().to_owned()));
    let copy = Scratch::new();
    let to = copy.join("copy").display().to_string();
    made.push(("a restore", requests(one.run(["-v", "restore", &to, "--to-backup-end", "--as", "clone"]))));
    made.push(("verify", counted(&["verify", "--read"])));
    made.push(("list", counted(&["list"])));
    made.push(("status", counted(&["status", "--pgdata", &data])));
    assert_eq!(made, REQUESTS.map(|(what, requests)| (what, requests.to_owned())));
    assert!(!calls.run(["list"]).expect_ok().stderr.contains("request"));
}

/// What each command costs. A number that rises is money; one that falls is good news, and is written here.
const REQUESTS: [(&str, &str); 10] = [
    ("init, repeated", "3 requests: 1 open, 2 read"),
    ("the first push", "8 requests: 1 open, 3 create, 3 read, 1 list directly"),
    ("a push", "6 requests: 1 open, 1 create, 3 read, 1 list directly"),
    ("the same push again", "7 requests: 1 open, 1 create, 4 read, 1 list directly"),
    ("a fetch", "6 requests: 1 open, 3 read, 2 list directly"),
    // Four of them are records of its lease.
    ("a backup's objects, with one worker", "8"),
    // Parts: the pack of pages, that of leaves, and the hint of the segment in which the backup ended.
    ("a restore", "19 requests: 1 open, 7 read, 3 read part of, 5 list, 3 list directly"),
    ("verify", "20 requests: 1 open, 8 read, 3 read part of, 5 list, 3 list directly"),
    ("list", "13 requests: 1 open, 5 read, 4 list, 3 list directly"),
    ("status", "9 requests: 1 open, 2 read, 4 list, 2 list directly"),
];
