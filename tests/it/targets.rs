//! What cannot be reached is refused before the first byte is written, with what is in the way and what can be had.

use std::fs;

use crate::support::{Ledger, Major, Restored, Scratch, Site, Snapshot, TestRepo, TestServer, Walvault};

const LATEST: [&str; 3] = ["--to-latest", "--as", "clone"];

#[test]
fn a_restore_never_guesses() {
    let site = Site::start(Major::V15);
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    let newest = ledger.commit(&site.server, 10).clone();
    site.server.archive_all();
    let choices = ["restorable from", "TIMELINE", "LAST TRANSACTION", &newest.time[..10]];

    for (arguments, words) in [
        (&[][..], "restore never guesses: a target and --as must be given"),
        (&["--to-latest"], "restore never guesses: --as must be given"),
        (&["--as", "primary"], "restore never guesses: a target must be given"),
    ] {
        let refused = site.expect_refused(arguments, 64, &choices);
        assert!(refused.stderr.contains(words), "{}", refused.story());
    }
    for (arguments, words) in [
        (&["--to-latest", "--to-backup-end", "--as", "clone"][..], "cannot be used with"),
        (&["--to-time", "2026-11-21 14:30:00", "--as", "clone"], "has no time zone"),
        (&["--to-time", "yesterday", "--as", "clone"], "is not a time"),
        (&["--to-time", "yesterday 14:30 Mars/Olympus", "--as", "clone"], "is no time zone"),
        (&["--to-lsn", "0/xyz", "--as", "clone"], "0/xyz"),
        (&["--to-latest", "--timeline", "0", "--as", "clone"], "there is no timeline 0"),
        (&["--to-latest", "--as", "standby"], "a standby has no target"),
        (&["--as", "standby", "--timeline", "1"], "a standby has no --timeline"),
        (&["--to-latest", "--as", "clone", "--primary-conninfo", "host=x"], "--primary-conninfo is for --as standby"),
        (&["--to-latest", "--as", "clone", "--tablespace", "fast=/x"], "--tablespace fast=/x"),
        (&["--to-latest", "--as", "copy"], "copy"),
    ] {
        site.expect_refused(arguments, 64, &[words]);
    }
    site.expect_refused(&["--to-latest", "--as", "clone", "--tablespace", "7=/x"], 1, &["no tablespace 7"]);
}

#[test]
fn a_target_that_the_archive_does_not_hold_is_refused_with_what_it_holds() {
    let site = Site::start(Major::V17);
    let mut ledger = Ledger::create(&site.server);
    let early = ledger.commit(&site.server, 10).clone();
    let backup = site.backup();
    let (id, stop) = (backup["id"].as_str().expect("a name"), backup["stop_lsn"].as_str().expect("a position"));
    ledger.commit(&site.server, 10);
    site.server.sql("select pg_create_restore_point('twice'); select pg_create_restore_point('twice')");
    let last = ledger.commit(&site.server, 10).clone();
    site.server.archive_all();
    let (day, end) = (&last.time[..10], site.server.query_one("select clock_timestamp()"));

    let earliest = format!("the earliest reachable position is {stop}");
    for (target, words) in [
        (["--to-lsn", &early.lsn], [earliest.as_str(), "restorable from"]),
        (["--to-time", &early.time], [&earliest, "restorable from"]),
        (["--to-time", "2000-01-01 00:00:00Z"], [&earliest, "TIMELINE"]),
        (["--to-time", &end], ["no transaction ended after that moment (the last one ended at", day]),
        (["--to-time", "100 weeks ago"], [&earliest, "\"100 weeks ago\" is taken as 20"]),
        (["--to-time", "2100-01-01 00:00:00+01:00"], ["no transaction ended after that moment", day]),
        (["--to-lsn", "FF/0"], ["the archived log ends at", "before the target"]),
        (["--to-name", "never"], ["no restore point \"never\"", "TIMELINE"]),
        (["--to-name", "twice"], ["was made more than once", "name one with --to-lsn"]),
    ] {
        site.expect_refused(&[&target[..], &["--as", "clone"]].concat(), 2, &words);
        let planned = site.plan(&target, 2);
        assert!(words.iter().all(|word| planned.stderr.contains(word)), "{}", planned.story());
        assert_eq!(planned.stdout, "");
    }
    site.expect_refused(&[&LATEST[..], &["--timeline", "7"]].concat(), 2, &["nothing is archived on that timeline"]);
    site.expect_refused(&[&LATEST[..], &["--backup", "x"]].concat(), 2, &["backup x does not lie on this branch"]);
    assert_eq!(site.plan(&["--to-latest", "--backup", id], 0).json()["backup"], id);
}

#[test]
fn a_directory_that_holds_anything_is_left_alone() {
    let site = Site::start(Major::V18);
    site.backup();
    let taken = Scratch::new();
    fs::write(taken.create_dir("data").join("letter"), "dear").expect("a file");
    fs::write(taken.join("file"), "not a directory").expect("a file");
    let before = Snapshot::of(taken.path());
    for (name, words) in [("data", "is not empty"), ("file", "is not a directory"), ("file/below", "file/below")] {
        let refused = site.try_restore(&taken.join(name), &["--to-backup-end", "--as", "clone"]).expect_code(1);
        assert!(refused.stderr.contains(words), "{}", refused.story());
    }
    before.expect_unchanged(taken.path());

    let refused = site.try_restore(site.server.pgdata(), &["--to-backup-end", "--as", "clone"]).expect_code(1);
    let running = format!("a server runs in {} (pid {})", site.server.pgdata().display(), site.server.pid());
    assert!(refused.stderr.contains(&running), "{}", refused.story());
    site.server.sql("create table still_writable ()");

    // One that is empty is taken as it is, and made as private as the server wants it.
    let mut restored = TestServer::over(site.server.major(), &taken.create_dir("empty"));
    site.try_restore(restored.pgdata(), &["--to-backup-end", "--as", "clone"]).expect_ok();
    restored.start();
}

#[test]
fn a_hole_is_named_and_what_lies_before_it_can_still_be_reached() {
    let site = Site::start(Major::V15);
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    let before = ledger.commit(&site.server, 10).clone();
    site.server.archive_all();
    ledger.commit(&site.server, 10);
    let missing = site.server.archive_all();
    let after = ledger.commit(&site.server, 10).clone();
    ledger.commit(&site.server, 10);
    site.server.archive_all();
    site.repo.remove(&site.repo.find(&format!("main/*/{missing}*")));

    for target in [&["--to-latest"][..], &["--to-lsn", &after.lsn], &["--to-time", &after.time], &["--to-name", "x"]] {
        let words = format!("segment {missing} is missing and must exist");
        site.expect_refused(
            &[target, &["--as", "primary"]].concat(),
            2,
            &[&words, "the last position before the hole is", &before.time[..10]],
        );
    }
    let timelines = site.walvault.run(["timelines", "--json"]).expect_ok().json();
    let restorable = &timelines["timelines"][0]["restorable"];
    assert_eq!((&restorable[0]["end"], &restorable[0]["missing"]), (&"hole".into(), &missing.as_str().into()));
    let reach = restorable[0]["to_lsn"].as_str().expect("a position");
    assert_eq!(site.plan(&["--to-lsn", reach], 0).json()["reach_lsn"], reach);
    let drawn = site.walvault.run(["timelines"]).expect_ok().stdout;
    assert!(drawn.contains(&format!("{missing} is missing")), "{drawn}");
    let mut restored = site.restore(&["--to-lsn", &before.lsn, "--as", "clone", "--target-action", "promote"]);
    Ledger::expect_rows(restored.promoted(), before.rows);
    restored.expect_planned_end();
}

#[test]
fn without_a_backup_there_is_nothing_to_restore() {
    let repo = TestRepo::new();
    let walvault = Walvault::on(&repo);
    let refused = |words: &str, code| {
        let place = Scratch::new();
        let data = place.join("data");
        let restore = ["restore", data.to_str().expect("plain text"), "--to-latest", "--as", "clone"];
        let refused = walvault.run(restore).expect_code(code);
        assert!(refused.stderr.contains(words) && !data.exists(), "{words:?} was expected\n{}", refused.story());
    };
    refused("walvault init", 78);
    walvault.run(["init"]).expect_ok();
    refused("main", 2);
    assert!(walvault.run(["list"]).expect_ok().stdout.contains("no backups yet"));
    let server = TestServer::builder(Major::V17).archive_command(walvault.archive_command()).start();
    server.archive_all();
    refused("there is no backup to restore", 2);
}

#[test]
fn a_damaged_backup_is_listed_as_unreadable_and_never_restored() {
    let site = Site::start(Major::V17);
    let id = site.backup()["id"].as_str().expect("a name").to_owned();
    let manifest = site.repo.find(&format!("main/*/backups/{id}*"));
    let pack = biggest(&site.repo, &format!("main/*/packs/{id}*"));
    let pack_middle = site.repo.read(&pack).len() as u64 * 8 / 2;

    for bit in [3, 8 * 100, site.repo.read(&manifest).len() as u64 * 4, site.repo.read(&manifest).len() as u64 * 8 - 1]
    {
        site.repo.flip_bit(&manifest, bit);
        let list = site.walvault.run(["list", "--json"]).expect_ok().json();
        assert_eq!((&list["backups"], &list["unreadable"][0]["id"]), (&serde_json::json!([]), &id.clone().into()));
        assert!(
            site.walvault.run(["list"]).expect_ok().stdout.contains(&format!("backup {id} was committed and cannot"))
        );
        site.expect_refused(&["--to-backup-end", "--as", "clone"], 2, &[&id, "cannot be read"]);
        site.walvault.run(["show", &id]).expect_code(1);
        site.repo.flip_bit(&manifest, bit);
    }

    site.repo.flip_bit(&pack, pack_middle);
    let place = Scratch::new();
    site.try_restore(&place.join("data"), &["--to-backup-end", "--as", "clone"]).expect_code(1);
    assert!(TestServer::over(Major::V17, &place.join("data")).try_start().is_err());
    site.repo.remove(&pack);
    let place = Scratch::new();
    site.try_restore(&place.join("data"), &["--to-backup-end", "--as", "clone"]).expect_code(1);
    assert!(TestServer::over(Major::V17, &place.join("data")).try_start().is_err());
}

fn biggest(repo: &TestRepo, pattern: &str) -> String {
    repo.find_all(pattern).into_iter().max_by_key(|key| repo.read(key).len()).expect("there is one")
}

#[test]
fn an_older_backup_serves_a_target_before_the_newer_ones_end() {
    let site = Site::start(Major::V18);
    let mut ledger = Ledger::create(&site.server);
    let older = site.backup();
    let between = ledger.commit(&site.server, 10).clone();
    ledger.commit(&site.server, 10);
    let newer = site.backup();
    let last = ledger.commit(&site.server, 10).clone();
    site.server.archive_all();
    assert_eq!(site.listed(), [older["id"].as_str().expect("a name"), newer["id"].as_str().expect("a name")]);

    for (target, backup, rows) in [
        (&["--to-lsn", &between.lsn][..], &older, between.rows),
        (&["--to-time", &between.time], &older, between.rows),
        (&["--to-latest"], &newer, last.rows),
        (&["--to-latest", "--backup", older["id"].as_str().expect("a name")], &older, last.rows),
    ] {
        let arguments = [target, &["--as", "clone"]].concat();
        let mut restored: Restored = site.restore(&arguments);
        assert_eq!(restored.report["backup"], backup["id"]);
        Ledger::expect_rows(restored.paused(), rows);
    }
}
