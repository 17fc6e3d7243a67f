//! What goes by policy, what an operator keeps, and two backups that meet.

use std::time::Duration;

use crate::support::process::COMMAND_LIMIT;
use crate::support::scratch::Scratch;
use crate::support::{Ledger, Major, Restored, Site, TestServer, Walvault, within};

const LIMIT: Duration = Duration::from_secs(60);

/// A server with three backups and a number of rows at the end of each; log follows the last.
fn three_backups(major: Major, arguments: &[&str]) -> (Site, Ledger, Vec<(String, u64)>) {
    let site = Site::of(TestServer::builder(major).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    let mut backups = Vec::new();
    for _ in 0..3 {
        let rows = ledger.commit(&site.server, 30).rows;
        let taken = site.try_backup(arguments).expect_ok().json();
        backups.push((taken["id"].as_str().expect("a name").to_owned(), rows));
        for _ in 0..2 {
            ledger.commit(&site.server, 30);
            site.server.archive_all();
        }
    }
    (site, ledger, backups)
}

/// Calls that keep so many backups, and remove at once what goes.
fn keeping(site: &Site, backups: u32) -> Walvault {
    let calls = Walvault::on(&site.repo).env("WALVAULT_RETAIN_BACKUPS", backups.to_string());
    calls.env("WALVAULT_EXPIRE_GRACE", "0")
}

fn restored(site: &Site, target: &[&str], rows: u64) {
    // A copy that is looked at and thrown away holds nothing.
    let purpose = ["--as", "clone", "--target-action", "promote", "--hold-days", "0"];
    let mut copy: Restored = site.restore(&[target, &purpose].concat());
    Ledger::expect_rows(copy.promoted(), rows);
}

#[test]
fn what_the_policy_keeps_is_restored_to_its_first_and_last_moment_and_the_rest_is_gone() {
    let (site, ledger, backups) = three_backups(Major::V18, &[]);
    let ids: Vec<&str> = backups.iter().map(|(id, _)| id.as_str()).collect();
    let refused = site.walvault.run(["expire"]).expect_code(78);
    assert!(refused.stderr.contains("no policy is set") && refused.stderr.contains("hint: set retain_backups"));

    let before = site.repo.objects();
    let plan = keeping(&site, 2).run(["expire", "--dry-run", "--json"]).expect_ok().json();
    let lane = &plan["lanes"][0];
    let kept: Vec<bool> = lane["backups"].as_array().expect("an array").iter().map(|one| one["kept"] == true).collect();
    assert_eq!(kept, [false, true, true], "{plan:#}");
    let going: Vec<&str> =
        lane["objects"].as_array().expect("an array").iter().filter_map(|one| one["key"].as_str()).collect();
    assert!(going.iter().all(|key| before.contains(&(*key).to_owned())), "{plan:#}");
    let text = keeping(&site, 2).run(["expire", "--dry-run", "--verbose"]).expect_ok().stdout;
    assert!(text.contains("log that no backup needs") && text.contains("stays  main/"), "{text}");
    assert_eq!(site.repo.objects(), before, "a dry run changes nothing");

    // With time to think nothing goes, and what would is condemned.
    let patient = Walvault::on(&site.repo).env("WALVAULT_RETAIN_BACKUPS", "2");
    let said = patient.run(["expire"]).expect_ok().stdout;
    assert!(said.contains("condemned ") && said.contains("removed   0 objects"), "{said}");
    assert!(site.walvault.run(["show", ids[0]]).expect_ok().stdout.contains("condemned"));
    keeping(&site, 2).run(["expire"]).expect_ok();
    assert!(going.iter().all(|key| !site.repo.objects().contains(&(*key).to_owned())), "{going:?}");
    assert_eq!(site.listed(), ids[1..]);
    assert!(site.walvault.run(["verify", "--read"]).expect_ok().stdout.contains("every byte"));
    let done = keeping(&site, 2).run(["expire", "--json"]).expect_ok().json();
    // Its own paperwork is all there is.
    let again: Vec<&str> = done["lanes"][0]["objects"]
        .as_array()
        .expect("an array")
        .iter()
        .filter_map(|one| one["key"].as_str())
        .collect();
    assert!(again.iter().all(|key| key.contains("/leases/")), "{again:?}");

    restored(&site, &["--backup", ids[1], "--to-backup-end"], backups[1].1);
    restored(&site, &["--backup", ids[1], "--to-latest"], ledger.last().rows);
    let early = ledger.commits().iter().find(|commit| commit.rows > backups[0].1).expect("rows were written");
    let refused = site.plan(&["--to-time", &early.time], 2);
    assert!(refused.stderr.contains("has expired"), "{}", refused.story());
}

#[test]
fn a_pinned_backup_stays_with_its_own_log_until_it_is_unpinned() {
    let (site, ledger, backups) = three_backups(Major::V15, &["--full"]);
    let (first, rows) = &backups[0];
    let pinned = site.walvault.run(["pin", first, "--reason", "audit", "--until", "2099-12-31"]).expect_ok().stdout;
    assert!(pinned.contains("is pinned until 2100-01-01"), "{pinned}");
    let refused = site.walvault.run(["pin", "nosuchbackup"]).expect_code(1);
    assert!(refused.stderr.contains("there is no backup nosuchbackup"), "{}", refused.story());
    keeping(&site, 1).run(["expire"]).expect_ok();
    assert_eq!(site.listed(), [first.as_str(), backups[2].0.as_str()]);
    assert!(site.walvault.run(["show", first]).expect_ok().stdout.contains("pinned until 2100-01-01 00:00:00Z: audit"));

    restored(&site, &["--backup", first, "--to-backup-end"], *rows);
    restored(&site, &["--to-latest"], ledger.last().rows);
    // What lies between the two is gone, and said to be: it is no hole.
    let between = ledger.commits().iter().find(|commit| commit.rows > backups[1].1).expect("rows were written");
    let refused = site.plan(&["--to-lsn", &between.lsn], 2);
    assert!(refused.stderr.contains("expired"), "{}", refused.story());
    assert!(site.walvault.run(["verify"]).expect_ok().stdout.contains("all of it is there"));
    let shown = site.walvault.run(["timelines"]).expect_ok().stdout;
    assert!(shown.contains("the log has expired") && shown.contains("the newest"), "{shown}");
    let json = site.walvault.run(["timelines", "--json"]).expect_ok().json();
    assert_eq!(json["timelines"][0]["holes"], 0, "{json:#}");

    let forget = |arguments: &[&str], code| keeping(&site, 1).run([&["forget"], arguments].concat()).expect_code(code);
    assert!(forget(&[first], 1).stderr.contains("walvault unpin"));
    site.walvault.run(["unpin", first]).expect_ok();
    keeping(&site, 1).run(["expire"]).expect_ok();
    assert_eq!(site.listed(), [backups[2].0.as_str()]);
    assert!(forget(&[&backups[2].0], 1).stderr.contains("--force"));
    assert!(site.repo.find_all(&format!("main/*/packs/{first}/*")).is_empty());
}

#[test]
fn what_a_restore_reads_stays_until_its_recovery_is_over() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    let first = site.backup()["id"].as_str().expect("a name").to_owned();
    let rows = ledger.commit(&site.server, 30).rows;
    site.server.archive_all();
    ledger.commit(&site.server, 30);
    site.server.archive_all();
    let second = site.try_backup(&["--full"]).expect_ok().json()["id"].as_str().expect("a name").to_owned();
    let target = ledger.commits().iter().find(|commit| commit.rows == rows).expect("a commit").lsn.clone();

    // The files are in place, and the recovery has all its log to fetch yet.
    let words = ["--backup", &first, "--to-lsn", &target, "--as", "clone", "--target-action", "promote"];
    let mut copy: Restored = site.restore(&words);
    let marks = site.repo.find_all("main/*/leases/read/*");
    assert_eq!(marks.len(), 3, "begun, known, left to the recovery: {marks:?}");
    let metrics = site.server.beside("metrics").join("expire.prom").display().to_string();
    keeping(&site, 1).run(["expire", "--metrics-file", &metrics]).expect_ok();
    let said = keeping(&site, 1).run(["expire", "--dry-run"]).expect_ok().stdout;
    let mut going = said.lines().filter(|line| line.starts_with("goes"));
    assert!(said.contains("read on ") && going.all(|line| line.contains("/leases/")), "{said}");
    assert_eq!(site.listed(), [first.as_str(), second.as_str()]);
    assert!(site.walvault.run(["status"]).expect_ok().stdout.contains("expire ran 0 h ago"));
    let values = std::fs::read_to_string(&metrics).expect("a file of values");
    assert!(values.contains("walvault_expire_last_attempt_failed{cluster=\"main\"} 0"), "{values}");
    Ledger::expect_rows(copy.promoted(), rows);
    drop(copy);

    // As if its time had passed; what nobody reads goes.
    site.repo.find_all("main/*/leases/read/*").iter().for_each(|mark| site.repo.remove(mark));
    keeping(&site, 1).run(["expire"]).expect_ok();
    assert_eq!(site.listed(), [second.as_str()]);
    assert!(site.walvault.run(["verify", "--read"]).expect_ok().stdout.contains("every byte"));

    // For as long as an operator says.
    let copy = Scratch::new();
    let to = copy.join("copy").display().to_string();
    let started = ["restore", &to, "--to-backup-end", "--as", "clone", "--json", "--hold-days", "2"];
    let report = site.walvault.run(started).expect_ok().json();
    assert!(report["held_until"].as_str().is_some_and(|until| until.starts_with("20")), "{report:#}");
}

#[test]
fn of_two_backups_at_once_one_is_told_who_is_at_work_and_a_dead_one_is_in_nobodys_way() {
    let site = Site::start(Major::V17);
    let conninfo = site.server.conninfo();
    let slow = ["backup", "--json", "--fast", "--dbname", &conninfo, "--rate-limit", "4MiB"];
    let leases = || site.repo.find_all("main/*/leases/backup/*").len();
    let mut first = site.walvault.start(slow);
    within(LIMIT, || leases() == 2 || !first.is_running(), "the first one has its lease");
    first.signal(rustix::process::Signal::STOP);
    let refused = site.try_backup(&[]).expect_code(2);
    assert!(refused.stderr.contains("another backup of this lane is at work on"), "{}", refused.story());
    assert!(refused.stderr.contains("since 20") && refused.stderr.contains("until 20"), "{}", refused.story());
    // Nothing is removed meanwhile, and nothing condemned.
    let said = keeping(&site, 1).run(["expire"]);
    assert!(said.stderr.contains("no backup is listed"), "{}", said.story());
    first.signal(rustix::process::Signal::CONT);
    let id = first.wait(COMMAND_LIMIT).expect_ok().json()["id"].as_str().expect("a name").to_owned();

    let before = leases();
    let mut second = site.walvault.start(slow);
    within(LIMIT, || leases() == before + 2 || !second.is_running(), "the second one has its lease");
    second.signal(rustix::process::Signal::STOP);
    let said = keeping(&site, 1).run(["expire"]).expect_ok().stdout;
    assert!(said.contains("a backup is at work on"), "{said}");
    second.signal(rustix::process::Signal::KILL);
    drop(second.wait(COMMAND_LIMIT));
    let next = site.backup()["id"].as_str().expect("a name").to_owned();
    assert_eq!(site.listed(), [id.clone(), next.clone()]);
    // What the dead one left goes, and so does the first one, but for the packs that the next one builds on.
    keeping(&site, 1).run(["expire"]).expect_ok();
    assert_eq!(site.listed(), [next.as_str()]);
    let packs = site.repo.find_all("main/*/packs/*");
    let of = |backup: &str| packs.iter().filter(|pack| pack.contains(&format!("/packs/{backup}/"))).count();
    assert!(of(&id) > 0 && of(&next) > 0 && of(&id) + of(&next) == packs.len(), "{packs:?}");
    site.walvault.run(["verify", "--read"]).expect_ok();
}
