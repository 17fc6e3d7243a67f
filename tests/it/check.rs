//! `walvault check` on real servers: all is well where it is, and each thing that goes wrong is found, named and no other.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::Value;

use crate::support::process::{Outcome, command, run};
use crate::support::user::ServerUser;
use crate::support::{Major, Site, Snapshot, Stop, TestRepo, TestServer, Walvault, walvault};

/// A server that is set up as it should be, with a backup; its repository lies beside its data.
fn site(major: Major) -> Site {
    site_of(TestServer::builder(major))
}

fn site_of(builder: crate::support::pg::ServerBuilder) -> Site {
    let sound = [("fsync", "on"), ("archive_timeout", "60")];
    let builder = sound.iter().fold(builder.segment_mib(1), |builder, (name, value)| builder.set(name, value));
    let site = Site::of(builder);
    site.server.set("restore_command", &site.walvault.restore_command());
    site.server.reload();
    site.backup();
    site
}

/// Checks a server; further arguments come last.
fn check(site: &Site, arguments: &[&str]) -> Outcome {
    check_with(&site.walvault, &site.server, arguments)
}

fn check_with(walvault: &Walvault, server: &TestServer, arguments: &[&str]) -> Outcome {
    let data = server.pgdata().display().to_string();
    let conninfo = server.conninfo();
    let words = ["check", "--json", "--pgdata", &data, "--dbname", &conninfo];
    walvault.run(words.iter().chain(arguments))
}

/// Codes that are not ok and not unchecked, with their levels, but for `place`: data and repository of a test lie
/// together.
#[track_caller]
fn found(outcome: &Outcome) -> Vec<(String, String)> {
    let report = outcome.json();
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let findings = report["findings"].as_array().expect("an array").iter();
    let found: Vec<_> = findings.map(|finding| (text(finding, "code"), text(finding, "level"))).collect();
    let wrong = |(code, level): &(String, String)| !["ok", "not checked"].contains(&level.as_str()) && code != "place";
    let status = match report["level"].as_str().expect("a level") {
        "ok" => 0,
        "warn" => 1,
        "fail" => 2,
        other => panic!("{other}"),
    };
    assert_eq!(outcome.code, Some(status), "{}", outcome.story());
    assert!(!outcome.stderr.contains("internal error"), "{}", outcome.story());
    found.into_iter().filter(wrong).collect()
}

/// Panics unless exactly these are found, and these words are in what is said.
#[track_caller]
fn expect(outcome: &Outcome, findings: &[(&str, &str)], words: &[&str]) {
    let owned: Vec<_> = findings.iter().map(|(code, level)| ((*code).to_owned(), (*level).to_owned())).collect();
    assert_eq!(found(outcome), owned, "{}", outcome.story());
    for word in words {
        assert!(outcome.stdout.contains(word), "{word:?} was expected\n{}", outcome.story());
    }
}

fn level(outcome: &Outcome, code: &str) -> String {
    let report = outcome.json();
    let mut findings = report["findings"].as_array().expect("an array").iter();
    let finding = findings.find(|finding| finding["code"] == code).unwrap_or_else(|| panic!("no finding {code}"));
    finding["level"].as_str().expect("a level").to_owned()
}

#[test]
fn all_is_well_on_a_server_that_is_set_up_as_it_should_be() {
    for major in Major::all() {
        let site = site(major);
        let before = site.repo.objects();
        let outcome = check(&site, &[]);
        expect(&outcome, &[], &["the same bytes", "may take backups", "no pooler"]);
        let report = outcome.json();
        let unchecked = report["findings"].as_array().expect("an array").iter().filter(|f| f["level"] == "not checked");
        assert_eq!(unchecked.count(), 0, "{}", outcome.story());
        // Nothing stays of it but the segment that went round, and what PostgreSQL archived meanwhile.
        let new: Vec<String> = site.repo.objects().into_iter().filter(|key| !before.contains(key)).collect();
        assert!(!new.is_empty() && new.iter().all(|key| key.contains("/wal/")), "{new:?}");
        let unswitched = check(&site, &["--no-switch"]);
        expect(&unswitched, &[], &["--no-switch"]);
        assert_eq!(level(&unswitched, "round-trip"), "not checked");
    }
}

#[test]
fn a_repository_on_another_disk_is_no_warning() {
    let place = tempfile::tempdir_in("/var/tmp").expect("a directory");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    ServerUser::get().take_over(place.path());
    let walvault = Walvault::bare().repository(format!("file://{}", place.path().display())).cluster("main");
    walvault.run(["init"]).expect_ok();
    let server = TestServer::builder(Major::V17).segment_mib(1).archive_command(walvault.archive_command()).start();
    let apart = fs::metadata(place.path()).expect("there").dev() != fs::metadata(server.pgdata()).expect("there").dev();
    let expected = if apart { "ok" } else { "warn" };
    assert_eq!(level(&check_with(&walvault, &server, &[]), "place"), expected);
}

#[test]
fn each_setting_that_weakens_the_archive_is_named() {
    let mut site = site(Major::V15);
    let unswitched = ["--no-switch"];
    for (name, wrong, right, code, level) in [
        ("fsync", "off", "on", "fsync", "warn"),
        ("full_page_writes", "off", "on", "full-page-writes", "warn"),
        ("archive_timeout", "0", "60", "archive-timeout", "warn"),
        ("archive_timeout", "2h", "60", "archive-timeout", "warn"),
        ("wal_keep_size", "1000TB", "0", "slots", "warn"),
        ("archive_library", "some_library", "", "archive-mode", "fail"),
    ] {
        site.server.set(name, wrong);
        site.server.reload();
        site.server.wait_until(&format!("select current_setting('{name}') = '{right}'"), "f");
        expect(&check(&site, &unswitched), &[(code, level)], &[]);
        site.server.set(name, right);
        site.server.reload();
    }
    site.server.set("max_slot_wal_keep_size", "1MB");
    site.server.reload();
    site.server.sql("select pg_create_physical_replication_slot('forgotten', true)");
    for _ in 0..4 {
        site.server.archive_all();
    }
    site.server.sql("checkpoint");
    expect(&check(&site, &unswitched), &[("slots", "warn")], &["forgotten", "pg_drop_replication_slot"]);
    site.server.sql("select pg_drop_replication_slot('forgotten')");

    site.server.set("archive_mode", "off");
    site.server.set("wal_level", "minimal");
    site.server.set("max_wal_senders", "0");
    site.server.stop(Stop::Fast);
    let mut checksums = command(Major::V15.program("pg_checksums"));
    checksums.args(["--disable", "--no-sync", "-D"]).arg(site.server.pgdata());
    run(checksums).expect_ok();
    site.server.start();
    let found = [("wal-level", "fail"), ("checksums", "warn"), ("wal-senders", "warn"), ("archive-mode", "fail")];
    expect(&check(&site, &[]), &found, &["archive_mode is off"]);
}

#[test]
fn an_archive_command_that_is_not_this_one_is_named() {
    let site = site(Major::V17);
    let program = walvault::binary().display().to_string();
    let folder = site.server.beside("commands");
    let file = |name: &str, contents: &[u8], mode: u32| {
        let path = folder.join(name);
        fs::write(&path, contents).expect("a directory of ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
        ServerUser::get().take_over(&path);
        path.display().to_string()
    };
    let script = file("archive.sh", b"#!/bin/sh\nexit 1\n", 0o755);
    let mut bytes = fs::read(walvault::binary()).expect("the program");
    let copy = file("same", &bytes, 0o755);
    bytes.push(0);
    let other = file("walvault", &bytes, 0o755);
    let url = site.repo.url();
    let push = format!("--repo {url} --cluster main wal push \"%p\"");
    let set = |name: &str, command: &str| {
        site.server.set(name, command);
        site.server.reload();
        site.server.wait_until(&format!("select current_setting('{name}') = $x${command}$x$"), "t");
    };
    for (command, level, words) in [
        (format!("{copy} {push}"), "ok", "with this program"),
        (format!("env WALVAULT_CLUSTER=main WALVAULT_REPO={url} {program} wal push %p"), "ok", "with this program"),
        (format!("exec {program} {push}"), "ok", "with this program"),
        (String::new(), "fail", "is not set"),
        ("cp %p /nowhere/%f".to_owned(), "fail", "runs cp"),
        (format!("{script} %p"), "warn", "a script"),
        (format!("{program} $OPTIONS wal push %p"), "warn", "a shell has to compute"),
        (format!("/nowhere/walvault {push}"), "fail", "is not there"),
        (format!("{other} {push}"), "warn", "another file"),
        (format!("{program} --repo file:///elsewhere --cluster main wal push %p"), "fail", "file:///elsewhere"),
        (format!("{program} --repo {url} --cluster other wal push %p"), "fail", "cluster other"),
        (format!("{program} --cluster main wal push %p"), "fail", "no repository is set"),
        (format!("{program} --repo {url} --cluster main wal push %f"), "fail", "as %p"),
        (format!("{program} --repo {url} --cluster main wal fetch %f %p"), "fail", "wal push"),
        (format!("{program} --repo {url} --cluster main wal psh %p"), "fail", "refuses"),
        (format!("{program} {push} || true"), "fail", "though walvault fails"),
        (format!("{program} {push} && touch /tmp/x"), "warn", "more than walvault"),
        (format!("timeout 20 {program} {push}"), "warn", "through timeout"),
    ] {
        set("archive_command", &command);
        let outcome = check(&site, &["--no-switch"]);
        assert_eq!(self::level(&outcome, "archive-command"), level, "{command}: {}", outcome.story());
        assert!(outcome.stdout.contains(words), "{command}: {words:?}\n{}", outcome.story());
    }
    let unrunnable = file("walvault", &bytes, 0o644);
    set("archive_command", &format!("{unrunnable} {push}"));
    let outcome = check(&site, &["--no-switch"]);
    assert_eq!(level(&outcome, "archive-command"), "fail", "{}", outcome.story());

    let fetch = format!("--repo {url} --cluster main wal fetch %f \"%p\"");
    for (command, level, words) in [
        (format!("{program} {fetch}"), "ok", "fetches"),
        (String::new(), "ok", "writes its own"),
        (format!("{program} {fetch} || false"), "fail", "end of the log"),
        (format!("timeout 60 {program} {fetch}"), "fail", "through timeout"),
        ("cp /mnt/%f %p".to_owned(), "warn", "runs cp"),
    ] {
        set("restore_command", &command);
        let outcome = check(&site, &["--no-switch"]);
        assert_eq!(self::level(&outcome, "restore-command"), level, "{command}: {}", outcome.story());
        assert!(outcome.stdout.contains(words), "{command}: {words:?}\n{}", outcome.story());
    }
}

#[test]
fn a_segment_that_does_not_come_back_is_told_from_one_that_does() {
    let site = site(Major::V18);
    let set = |command: &str| {
        site.server.set("archive_command", command);
        site.server.reload();
        site.server.wait_until(&format!("select current_setting('archive_command') = '{command}'"), "t");
    };
    set("/bin/true");
    expect(&check(&site, &[]), &[("archive-command", "fail"), ("round-trip", "fail")], &["is not in this repository"]);
    set("/bin/false");
    let failing = [("archive-command", "fail"), ("archiver", "fail"), ("round-trip", "fail")];
    expect(&check(&site, &[]), &failing, &["archiving fails", "archive_command failed on"]);
    // A file that has waited long.
    let status = site.server.pgdata().join("pg_wal/archive_status");
    let ready = fs::read_dir(&status).expect("there").map(|entry| entry.expect("an entry").path());
    let ready = ready.filter(|path| path.extension().is_some_and(|end| end == "ready")).min().expect("one waits");
    let mut touch = command("/usr/bin/touch");
    touch.args(["-d", "2020-01-01"]).arg(&ready);
    run(touch).expect_ok();
    let outcome = check(&site, &["--no-switch"]);
    assert_eq!(level(&outcome, "backlog"), "fail", "{}", outcome.story());
    let late = check(&site, &["--timeout", "0"]);
    assert_eq!(level(&late, "round-trip"), "fail", "{}", late.story());
    assert!(late.stdout.contains("not archived within"), "{}", late.story());
}

#[test]
fn with_the_server_down_what_can_be_said_is_said() {
    let mut site = site(Major::V17);
    site.server.sql("select pg_switch_wal()");
    site.server.stop(Stop::Fast);
    let data = site.server.pgdata().display().to_string();
    let down = |words: &[&str]| site.walvault.run(["check", "--json", "--pgdata", &data].iter().chain(words));
    let outcome = down(&[]);
    expect(&outcome, &[("server", "warn")], &["no server runs in"]);
    for code in ["backlog", "repository", "lane", "owner", "write", "read", "create-only", "backup", "packs", "holes"] {
        assert_eq!(level(&outcome, code), "ok", "{code}: {}", outcome.story());
    }
    for code in ["archive-command", "privileges", "round-trip"] {
        assert_eq!(level(&outcome, code), "not checked", "{code}: {}", outcome.story());
    }
    let ready = site.server.pgdata().join("pg_wal/archive_status/0000000100000000000000F0.ready");
    fs::write(&ready, "").expect("a directory of ours");
    expect(&down(&[]), &[("server", "warn"), ("backlog", "warn")], &["keep this pg_wal"]);
    fs::remove_file(&ready).expect("it was just made");

    if rustix::process::getuid().is_root() {
        let mut root = std::process::Command::new(walvault::binary());
        root.args(["--repo", &site.repo.url(), "--cluster", "main", "check", "--json", "--pgdata", &data]);
        let before = site.repo.snapshot();
        let outcome = run(root);
        expect(&outcome, &[("user", "warn"), ("server", "warn")], &["run by root", "sudo -u postgres"]);
        assert_eq!(level(&outcome, "write"), "not checked");
        assert!(before.differences(&Snapshot::of(site.repo.path())).is_empty());
    }
    let nowhere = site.walvault.run(["check", "--json", "--pgdata", "/nowhere"]);
    assert_eq!(level(&nowhere, "data-directory"), "fail", "{}", nowhere.story());
    let unset = Walvault::bare().run(["check", "--json", "--pgdata", &data]);
    expect(&unset, &[("config", "fail"), ("server", "warn")], &["no cluster is set"]);
    let misspelt = site.walvault.clone().env("WALVAULT_CPUSS", "3");
    let misspelt = misspelt.run(["check", "--json", "--pgdata", &data]);
    expect(&misspelt, &[("config", "warn"), ("server", "warn")], &["did you mean cpus?"]);
    Walvault::bare().run(["check", "--no-such-option"]).expect_code(64);
}

#[test]
fn a_standby_is_checked_as_one() {
    let site = site(Major::V17);
    site.server.archive_all();
    let mut standby = site.restore(&["--as", "standby", "--primary-conninfo", &site.server.conninfo()]);
    standby.server.start();
    standby.server.wait_until("select status from pg_stat_wal_receiver", "streaming");
    let outcome = check_with(&site.walvault, &standby.server, &[]);
    // No agent pushes from it, and nothing holds what its primary may die with.
    let window = ("failover-window", "warn");
    expect(&outcome, &[window], &["standby", "a standby ends no segment", "writes timeline 1"]);
    standby.set("wal_keep_size", "64MB");
    standby.set("restore_command", "");
    standby.server.reload();
    standby.server.wait_until("select current_setting('restore_command') = ''", "t");
    expect(&check_with(&site.walvault, &standby.server, &[]), &[("restore-command", "warn")], &[]);
}

#[test]
fn each_right_that_the_role_lacks_is_named_with_its_grant() {
    for major in [Major::V14, Major::V15, Major::V18] {
        let site = site(major);
        site.server.sql("create role backup login");
        let conninfo = site.server.conninfo().replace("user=postgres", "user=backup");
        let data = site.server.pgdata().display().to_string();
        let check = || site.walvault.run(["check", "--json", "--pgdata", &data, "--dbname", &conninfo]);
        let mend = |outcome: &Outcome| {
            let report = outcome.json();
            let mut findings = report["findings"].as_array().expect("an array").iter();
            let finding = findings.find(|finding| finding["code"] == "privileges").expect("a finding");
            finding["mend"].as_str().map(str::to_owned)
        };
        // Each mend, carried out, leads to the next, until nothing is left to mend.
        let mut levels = Vec::new();
        while let outcome = check()
            && let Some(mend) = mend(&outcome)
        {
            levels.push(level(&outcome, "privileges"));
            assert!(levels.len() < 6, "{mend}");
            site.server.sql(&mend);
        }
        assert_eq!(levels, ["fail", "fail", "warn"], "PostgreSQL {major}");
        expect(&check(), &[], &["backup may take backups"]);
        let backup = crate::support::site::backup_of(&site.server, &site.walvault, &[]);
        backup.expect_ok();
        let own = ["backup", "--fast", "--pgdata", &data, "--dbname", &conninfo];
        site.walvault.run(own).expect_ok();
    }
}

#[test]
fn a_server_that_is_another_one_is_named() {
    let (site, other) = (site(Major::V15), Site::of(TestServer::builder(Major::V15).segment_mib(1).identity(1)));
    let data = site.server.pgdata().display().to_string();
    let outcome =
        site.walvault.run(["check", "--json", "--no-switch", "--pgdata", &data, "--dbname", &other.server.conninfo()]);
    assert_eq!(level(&outcome, "server"), "fail", "{}", outcome.story());
    assert!(outcome.stdout.contains("is another server than the one of"), "{}", outcome.story());
    // Nothing is there of a server that has just begun.
    let fresh = TestRepo::new();
    let walvault = Walvault::on(&fresh);
    walvault.run(["init"]).expect_ok();
    let outcome = check_with(&walvault, &site.server, &["--no-switch"]);
    assert_eq!(level(&outcome, "lane"), "warn", "{}", outcome.story());
    assert_eq!(level(&outcome, "backup"), "fail", "{}", outcome.story());
}
