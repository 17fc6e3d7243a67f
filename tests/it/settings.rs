//! What a restored server starts with: what it needs, and nothing that it inherited of another recovery.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use crate::support::user::ServerUser;
use crate::support::{Ledger, Major, Restored, Scratch, Site, Snapshot, Stop, TestServer, tool};

const SETTINGS_OF_A_RECOVERY: [(&str, &str); 10] = [
    ("recovery_target", "immediate"),
    ("recovery_target_time", "2020-01-01 00:00:00+00"),
    ("recovery_target_lsn", "0/1"),
    ("recovery_target_xid", "3"),
    ("recovery_target_name", "elsewhere"),
    ("recovery_target_inclusive", "off"),
    ("recovery_target_action", "shutdown"),
    ("primary_conninfo", "host=/no/such/host"),
    ("primary_slot_name", "nobodys"),
    ("restore_command", "false"),
];

#[test]
fn what_an_earlier_recovery_left_in_the_configuration_has_no_effect() {
    for (major, inherit) in
        [(Major::V15, set_in_postgresql_conf as fn(&Site)), (Major::V18, set_in_postgresql_auto_conf)]
    {
        let site = Site::start(major);
        let mut ledger = Ledger::create(&site.server);
        // After the start: the server would refuse several targets.
        inherit(&site);
        site.backup();
        let commit = ledger.commit(&site.server, 10).clone();
        ledger.commit(&site.server, 10);
        site.server.archive_all();
        for target in [["--to-lsn", &commit.lsn], ["--to-time", &commit.time]] {
            let mut restored = site.restore(&[&target[..], &["--as", "primary"]].concat());
            Ledger::expect_rows(restored.paused(), commit.rows);
            restored.expect_planned_end();
            assert_eq!(restored.report["archiving"], true);
            let in_effect = restored.server.sql(
                "select name from pg_settings where setting <> '' and name ~ '^(recovery_target|primary_(con|slot))'
                 and name not in ('recovery_target_inclusive', 'recovery_target_action') order by name",
            );
            let own = if target[0] == "--to-lsn" { "recovery_target_lsn" } else { "recovery_target_time" };
            assert_eq!(in_effect, format!("{own}\nrecovery_target_timeline"));
            assert_eq!(restored.server.query_one("show recovery_target_timeline"), "1");
        }
    }
}

fn set_in_postgresql_conf(site: &Site) {
    SETTINGS_OF_A_RECOVERY.iter().for_each(|(name, value)| site.server.set(name, value));
}

fn set_in_postgresql_auto_conf(site: &Site) {
    let lines = SETTINGS_OF_A_RECOVERY.map(|(name, value)| format!("{name} = '{value}'\n")).concat();
    fs::write(site.server.pgdata().join("postgresql.auto.conf"), lines).expect("the server's own file");
}

#[test]
fn a_limit_that_was_raised_after_the_backup_is_raised_in_the_copy() {
    for major in [Major::V15, Major::V17] {
        let mut site = Site::start(major);
        let mut ledger = Ledger::create(&site.server);
        site.backup();
        let before = ledger.commit(&site.server, 10).clone();
        site.server.set("max_connections", "71");
        site.server.set("max_locks_per_transaction", "99");
        site.server.restart();
        let rows = ledger.commit(&site.server, 10).rows;
        // Lowered again before the target, and needed on the way there all the same.
        site.server.set("max_connections", "40");
        site.server.restart();
        site.server.archive_all();

        let mut restored = site.restore(&["--to-latest", "--as", "primary"]);
        assert_eq!(
            restored.report["raised"],
            serde_json::json!(["max_connections = 71", "max_locks_per_transaction = 99"])
        );
        Ledger::expect_rows(restored.paused(), rows);
        restored.expect_planned_end();
        assert_eq!(restored.server.query_one("show max_connections"), "71");
        let untouched = site.restore(&["--to-lsn", &before.lsn, "--as", "clone"]);
        assert_eq!(untouched.report["raised"], serde_json::json!([]));
    }
}

#[test]
fn a_copy_without_what_restore_wrote_does_not_start() {
    let site = Site::start(Major::V17);
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    ledger.commit(&site.server, 10);
    site.server.archive_all();
    for removed in [
        &["backup_label"][..],
        &["backup_label", "recovery.signal"],
        &["backup_label", "recovery.signal", "postgresql.auto.conf"],
        &["recovery.signal"],
        &["global/pg_control"],
    ] {
        let mut restored = site.restore(&["--to-latest", "--as", "primary", "--target-action", "promote"]);
        for name in removed {
            fs::remove_file(restored.server.pgdata().join(name)).expect("restore wrote it");
        }
        if removed.contains(&"backup_label") {
            // By hand, as people do: now the log is there to start from a checkpoint that is not the backup's.
            copy_wal(&site, &restored);
        }
        expect_no_start(&mut restored, removed);
    }
}

fn copy_wal(site: &Site, restored: &Restored) {
    let (from, to) = (site.server.pgdata().join("pg_wal"), restored.server.pgdata().join("pg_wal"));
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let copy = to.join(path.file_name().expect("a name"));
            fs::copy(path, &copy).expect("a segment");
            ServerUser::get().take_over(&copy);
        }
    }
}

#[track_caller]
fn expect_no_start(restored: &mut Restored, removed: &[&str]) {
    assert!(restored.server.try_start().is_err(), "it starts without {removed:?}\n{}", restored.server.log());
}

#[test]
fn what_was_set_for_a_standby_does_not_hold_a_recovery_back() {
    for major in [Major::V15, Major::V17] {
        let builder = TestServer::builder(major).segment_mib(1).set("hot_standby", "off");
        let site = Site::of(builder.set("recovery_min_apply_delay", "1h"));
        let mut ledger = Ledger::create(&site.server);
        site.backup();
        let commit = ledger.commit_singly(&site.server, 5).clone();
        ledger.commit(&site.server, 1);
        site.server.archive_all();
        for purpose in ["primary", "clone"] {
            let mut restored = site.restore(&["--to-lsn", &commit.lsn, "--as", purpose]);
            Ledger::expect_rows(restored.paused(), commit.rows);
            restored.expect_planned_end();
        }
    }
}

#[test]
fn a_trigger_file_of_an_earlier_failover_promotes_no_standby_and_no_copy_that_waits() {
    for major in [Major::V14, Major::V15] {
        let site = Site::of(TestServer::builder(major).segment_mib(1));
        let trigger = site.server.beside("triggers").join("promote");
        fs::write(&trigger, "").expect("the test's own directory");
        site.server.set("promote_trigger_file", &trigger.display().to_string());
        let mut ledger = Ledger::create(&site.server);
        site.backup();
        site.server.archive_all();
        let mut standby = site.restore(&["--as", "standby", "--primary-conninfo", &site.server.conninfo()]);
        standby.server.start();
        let rows = ledger.commit(&site.server, 10).rows;
        standby.server.wait_until("select count(*) from ledger", &rows.to_string());
        assert_eq!(standby.server.query_one("select pg_is_in_recovery()"), "t");
        // Nor does it open a copy that is to wait, which would look for it again and again.
        site.server.archive_all();
        let mut clone = site.restore(&["--to-latest", "--as", "clone"]);
        Ledger::expect_rows(clone.paused(), rows);
        assert_eq!(clone.server.query_one("select pg_is_in_recovery()"), "t");
        assert!(trigger.exists(), "nobody took it for his own");
    }
}

#[test]
fn a_clone_leaves_the_files_alone_that_its_original_keeps_elsewhere() {
    for major in [Major::V14, Major::V15, Major::V18] {
        let outside = Scratch::new();
        let place = |name: &str| outside.create_dir(name).display().to_string();
        let mut builder = TestServer::builder(major).segment_mib(1);
        builder = builder.set("logging_collector", "on").set("log_directory", place("log"));
        builder =
            builder.set("log_filename", "postgresql.log").set("external_pid_file", place("run") + "/postgresql.pid");
        if major == Major::V14 {
            builder = builder.set("stats_temp_directory", place("stats"));
        }
        let mut site = Site::of(builder);
        let mut ledger = Ledger::create(&site.server);
        site.backup();
        let rows = ledger.commit(&site.server, 10).rows;
        site.server.archive_all();
        site.server.stop(Stop::Fast);
        // As if it still ran: the files are there.
        for name in ["run/postgresql.pid", "log/postgresql.log", "stats/global.stat"] {
            let path = outside.join(name);
            if path.parent().is_some_and(Path::exists) && !path.exists() {
                fs::write(&path, "the original's").expect("the test's own directory");
                ServerUser::get().take_over(&path);
            }
        }
        let before = Snapshot::of(outside.path());
        // By nothing but its own configuration: the test's servers are given others on the command line.
        let place = Scratch::new();
        let data = place.join("data");
        let socket = format!("unix_socket_directories={}", place.path().display());
        let bin = major.program("pg_ctl").parent().expect("a folder").display().to_string();
        let own = ["--start", "--pg-bin", &bin, "--set", &socket, "--set", "listen_addresses=", "--set", "port=5432"];
        let target = ["--to-latest", "--as", "clone", "--target-action", "promote"];
        site.try_restore(&data, &[&target[..], &own].concat()).expect_ok();
        let stop = [OsStr::new("stop"), OsStr::new("-w"), OsStr::new("-D"), data.as_os_str()];
        tool::tool(major, "pg_ctl", stop).expect_ok();
        before.expect_unchanged(outside.path());
        assert!(data.join("log").is_dir(), "it wrote its own log");
        let mut clone = TestServer::over(major, &data);
        clone.start();
        Ledger::expect_rows(&clone, rows);
    }
}
