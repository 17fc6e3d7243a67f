//! Repositories, disks and targets that are not what they should be: a clear error, its exit status, and nothing changed.

use std::fs;
use std::path::Path;
use std::process::Command;

use walvault::format::document;
use walvault::repo::RepositoryDocument;

use crate::support::process::{command, run};
use crate::support::user::ServerUser;
use crate::support::{
    Disk, Ledger, Major, Outcome, Restored, Scratch, Site, Snapshot, Stop, TestRepo, TestServer, Walvault, tool,
};

const END: [&str; 3] = ["--to-backup-end", "--as", "clone"];

/// A server with a backup and some log, stopped: nothing but a command under test can change what is compared.
struct Past {
    site: Site,
    ledger: Ledger,
}

impl Past {
    fn of(major: Major) -> Self {
        let mut site = Site::of(TestServer::builder(major).segment_mib(1));
        let mut ledger = Ledger::create(&site.server);
        ledger.commit(&site.server, 50);
        site.backup();
        ledger.commit(&site.server, 10);
        site.server.archive_all();
        site.server.stop(Stop::Fast);
        Self { site, ledger }
    }

    /// Panics unless a command ends with this status and these words, and changes neither repository nor server.
    #[track_caller]
    fn expect(&self, what: &str, command: Command, code: i32, words: &str) -> Outcome {
        let places = [self.site.repo.path(), self.site.server.pgdata()].map(|path| (path, Snapshot::of(path)));
        let outcome = run(command);
        assert_eq!(outcome.code, Some(code), "{what}: {}", outcome.story());
        assert!(outcome.stderr.contains(words), "{what}: {words:?} was expected: {}", outcome.story());
        assert_eq!(outcome.stdout, "", "{what}: {}", outcome.story());
        // A restore says that it reads, and when it is over.
        places.iter().for_each(|(path, before)| before.expect_only_read(path));
        outcome
    }
}

fn restore(walvault: &Walvault, data: &Path, arguments: &[&str]) -> Command {
    let words = ["restore", data.to_str().expect("plain text")];
    walvault.command(words.iter().chain(arguments))
}

/// Returns a shell that runs a command, and leaves with 99 if what it left could be started.
fn unless_startable(wanted: &Command, data: &Path) -> Command {
    let mut shell = command("/bin/sh");
    shell
        .arg("-c")
        .arg("control=\"$1\"; shift; \"$@\"; code=$?; test ! -e \"$control\" || exit 99; exit $code")
        .arg("sh");
    shell.arg(data.join("global/pg_control")).arg(wanted.get_program()).args(wanted.get_args());
    shell
}

#[test]
fn a_repository_that_cannot_be_used_is_named_and_nothing_is_written() {
    let past = Past::of(Major::V15);
    let empty = TestRepo::new();
    let nowhere = Walvault::bare().repository(format!("{}/nowhere", empty.url())).cluster("main");
    let unknown = Walvault::bare().repository(past.site.repo.url()).cluster("other");
    let changed = |change: &dyn Fn(&TestRepo)| {
        let repo = past.site.repo.duplicate();
        change(&repo);
        repo
    };
    let document = |minimum_reader, sealing: &str| RepositoryDocument {
        format: 1,
        minimum_reader,
        suffix: ".zst".to_owned(),
        create: "conditional".to_owned(),
        sealing: sealing.to_owned(),
    };
    let set = |document: RepositoryDocument| {
        changed(&move |repo| repo.replace("main/repository.json", &document::encode(&document)))
    };
    let newer = set(document(2, "none"));
    let sealed = set(document(1, "age"));
    let foreign = changed(&|repo| repo.replace("main/repository.json", b"{\"name\": \"some other program's\"}\n"));
    let unreadable = changed(&|repo| repo.make_unreadable(&repo.find("main/*/lane.json")));
    let without_lane = changed(&|repo| repo.remove(&repo.find("main/*/lane.json")));
    let table = [
        ("no directory", nowhere, 1, "is the volume mounted?"),
        ("an empty directory", Walvault::on(&empty), 78, "walvault init"),
        ("another cluster's name", unknown, 78, "holds no repository for cluster other"),
        ("a newer repository", Walvault::on(&newer), 78, "upgrade walvault"),
        ("a repository with what is not known", Walvault::on(&sealed), 78, "sealing"),
        ("a document of another program", Walvault::on(&foreign), 1, "repository.json"),
        ("a document that may not be read", Walvault::on(&unreadable), 1, "Permission denied"),
        ("no lane", Walvault::on(&without_lane), 2, "the repository has no lane"),
    ];
    for (what, walvault, code, words) in table {
        let place = Scratch::new();
        past.expect(what, restore(&walvault, &place.join("data"), &END), code, words);
        assert!(!place.join("data").exists(), "{what}");
        past.expect(what, walvault.command(["plan", "--to-latest"]), code, words);
    }
    // Nothing is called sound, or all there is, that was not looked at.
    for command in ["verify", "list", "timelines"] {
        past.expect("no lane", Walvault::on(&without_lane).command([command]), 1, "lane.json is missing");
        let misnamed = past.site.walvault.command([command, "--lane", "1234567890123456789-1"]);
        past.expect("a lane that is not there", misnamed, 1, "no lane 1234567890123456789-1");
        past.expect("no lane's name", past.site.walvault.command([command, "--lane", "typo"]), 64, "typo");
    }
}

#[test]
fn a_disk_that_cannot_be_written_to_leaves_nothing_that_starts() {
    let past = Past::of(Major::V17);
    for (disk, words) in [(Disk::Full, "No space left"), (Disk::ReadOnly, "Read-only file system")] {
        for wal in [false, true] {
            let place = Scratch::new();
            let bad = place.create_dir("bad");
            let (data, waldir) =
                if wal { (place.join("data"), bad.join("wal")) } else { (bad.join("data"), place.join("wal")) };
            let waldir = ["--waldir", waldir.to_str().expect("plain text")];
            let wanted = restore(&past.site.walvault, &data, &[&END[..], &waldir].concat());
            let command = disk.below(&bad, &unless_startable(&wanted, &data));
            let what = format!("{disk:?}, {}", if wal { "of pg_wal" } else { "of the data directory" });
            past.expect(&what, command, 1, words);
            assert!(TestServer::over(Major::V17, &data).try_start().is_err(), "{what}");
        }
    }
    // A restore only reads its repository.
    let place = Scratch::new();
    let command = Disk::ReadOnly.below(past.site.repo.path(), &restore(&past.site.walvault, &place.join("data"), &END));
    run(command).expect_ok();
    tool::verify_backup(Major::V17, &place.join("data")).expect_ok();
}

#[test]
fn a_restore_that_a_limit_ended_goes_on_without_it() {
    let past = Past::of(Major::V18);
    let place = Scratch::new();
    let data = place.join("data");
    let whole = restore(&past.site.walvault, &data, &["--to-latest", "--as", "clone"]);
    let mut limited = command("/usr/bin/prlimit");
    limited.arg("--fsize=300000").arg(whole.get_program()).args(whole.get_args());
    let failed = run(limited);
    assert!(!failed.is_ok(), "{}", failed.story());
    assert!(data.join("walvault.restore").exists() && !data.join("global/pg_control").exists(), "{}", failed.story());
    let goes_on = run(whole).expect_ok();
    assert!(goes_on.stderr.contains("going on with the interrupted restore"), "{}", goes_on.story());
    tool::verify_backup(Major::V18, &data).expect_ok();
    let mut server = TestServer::over(Major::V18, &data);
    server.start();
    server.wait_until("select pg_get_wal_replay_pause_state()", "paused");
    Ledger::expect_rows(&server, past.ledger.last().rows);
}

#[test]
fn a_backup_into_a_repository_that_cannot_be_written_to_is_not_listed() {
    let site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    ledger.commit(&site.server, 500);
    site.backup();
    let listed = site.listed();
    let conninfo = site.server.conninfo();
    // The repository is copied below: nothing may be on its way into it.
    site.server.wait_nothing_waits();
    let backup = site.walvault.command(["backup", "--json", "--fast", "--dbname", &conninfo]);
    for (disk, words) in [(Disk::Full, "No space left"), (Disk::ReadOnly, "Read-only file system")] {
        let outcome = run(disk.below(site.repo.path(), &backup)).expect_code(1);
        assert!(outcome.stderr.contains(words) && outcome.stdout.is_empty(), "{disk:?}: {}", outcome.story());
        assert_eq!(site.listed(), listed, "{disk:?}");
        // A session ends a moment after who opened it.
        let sessions = "select count(*) from pg_stat_activity where application_name = 'walvault'";
        site.server.wait_until(sessions, "0");
    }
    site.backup();
}

#[test]
fn a_place_that_may_not_be_written_to_is_named() {
    let past = Past::of(Major::V15);
    let place = Scratch::new();
    let locked = place.create_dir("locked");
    fs::set_permissions(&locked, std::os::unix::fs::PermissionsExt::from_mode(0o500))
        .expect("the test's own directory");
    let data = locked.join("data");
    let words = format!("{}: Permission denied", data.display());
    past.expect("a directory of others", restore(&past.site.walvault, &data, &END), 1, &words);
    fs::set_permissions(&locked, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("the test's own directory");
    ServerUser::get().take_over(&locked);
    let target = ["--to-latest", "--as", "clone", "--tablespace-root", "/proc/nowhere"];
    // A backup without tablespaces needs no root for them.
    run(restore(&past.site.walvault, &data, &target)).expect_ok();
}

#[test]
fn a_target_that_the_branch_does_not_hold_is_refused_by_name() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    let fork = ledger.commit_singly(&site.server, 5).clone();
    ledger.commit_singly(&site.server, 1);
    site.server.archive_all();
    let promote = ["--as", "primary", "--target-action", "promote"];
    let mut second: Restored = site.restore(&[&["--to-lsn", &fork.lsn][..], &promote].concat());
    second.promoted();
    second.server.sql("select pg_create_restore_point('on the second'); create table second ()");
    // So that its transaction has a number that the first branch has not come to.
    second.server.sql("do $$ begin for n in 1..300 loop perform pg_current_xact_id(); commit; end loop; end $$");
    let mut other = Ledger::over(&second.server);
    let there = other.commit(&second.server, 1).clone();
    second.server.archive_all();
    let xid = there.xid.to_string();
    let neither = format!("transaction {xid} neither commits nor aborts in the archived log on this branch");
    for (target, words) in [
        (["--to-xid", &xid], neither.as_str()),
        (
            ["--to-name", "on the second"],
            "no restore point \"on the second\" lies after the end of a backup on this branch",
        ),
    ] {
        site.expect_refused(&[&target[..], &["--timeline", "1", "--as", "clone"]].concat(), 2, &[words, "TIMELINE"]);
        let restored = site.restore(&[&target[..], &["--timeline", "2", "--as", "clone"]].concat());
        assert_eq!(restored.report["timeline"], 2);
    }
    let two = ["--to-xid", &xid, "--to-lsn", &fork.lsn, "--as", "clone"];
    site.expect_refused(&two, 64, &["cannot be used with"]);
}
