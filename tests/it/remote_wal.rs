//! `backup --with-wal`: a server that archives nothing gives backups that restore, and whatever ends the stream of its WAL
//! leaves none. And a backup that is given up is ended on the server too.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::process::COMMAND_LIMIT;
use crate::support::replication_proxy::{Meddling, ReplicationProxy};
use crate::support::site::backup_of;
use crate::support::{Ledger, Major, Outcome, Site, TestRepo, TestServer, Walvault, within};

const WITH_WAL: [&str; 3] = ["--from", "remote", "--with-wal"];

/// A server that archives nothing.
fn silent(major: Major) -> Site {
    silent_with(major, "max_replication_slots", "10")
}

fn silent_with(major: Major, name: &str, value: &str) -> Site {
    let repo = TestRepo::new();
    let walvault = Walvault::on(&repo);
    walvault.run(["init"]).expect_ok();
    let server = TestServer::builder(major).segment_mib(1).set("archive_mode", "off").set(name, value).start();
    Site { server, repo, walvault }
}

fn with_wal(site: &Site, more: &[&str]) -> Outcome {
    site.try_backup(&[&WITH_WAL[..], more].concat())
}

fn id(outcome: &Outcome) -> String {
    outcome.json()["id"].as_str().expect("a name").to_owned()
}

#[track_caller]
fn expect_back(site: &Site, target: &[&str], rows: u64) {
    let arguments = [target, &["--as", "clone", "--target-action", "promote"]].concat();
    let mut restored = site.restore(&arguments);
    Ledger::expect_rows(restored.promoted(), rows);
}

#[test]
fn postgresql_13_that_archives_nothing_comes_back_from_its_stream() {
    comes_back(Major::V13);
}

#[test]
fn postgresql_18_that_archives_nothing_comes_back_from_its_stream() {
    comes_back(Major::V18);
}

fn comes_back(major: Major) {
    let site = silent(major);
    let server = &site.server;
    let mut ledger = Ledger::create(server);
    let first_rows = ledger.commit(server, 50).rows;
    let refused = site.try_backup(&["--from", "remote"]).expect_code(78);
    assert!(refused.stderr.contains("archive_mode is off") && refused.stderr.contains("or add --with-wal"));
    site.try_backup(&["--from", "local", "--with-wal"]).expect_code(64);

    let first = with_wal(&site, &[]).expect_ok();
    assert!(first.stderr.contains("segments of WAL were streamed into the archive"), "{}", first.story());
    // Between them lies log that nobody has.
    ledger.commit(server, 500);
    server.switch_wal();
    server.switch_wal();
    // The second one under load: it ends in the middle of it.
    let writing = ledger.keep_committing(server, 5);
    server.wait_until("select count(*) > 600 from ledger", "t");
    let second = with_wal(&site, &[]).expect_ok();
    let ledger = writing.stop();
    server.wait_until("select count(*) from pg_replication_slots", "0");

    expect_back(&site, &["--to-backup-end", "--backup", &id(&first)], first_rows);
    let mut restored =
        site.restore(&["--to-backup-end", "--backup", &id(&second), "--as", "clone", "--target-action", "promote"]);
    let rows = Ledger::rows_on(restored.promoted());
    assert!((600..=ledger.last().rows).contains(&rows), "{rows} rows of {}", ledger.last().rows);
    Ledger::expect_rows(&restored.server, rows);
    // The gap is no moment that anybody can return to.
    let between = &ledger.commits().iter().find(|commit| commit.rows > first_rows).expect("one between").time;
    site.expect_refused(&["--to-time", between, "--as", "clone"], 2, &[]);
}

#[test]
fn a_slot_of_ones_own_keeps_the_log_and_is_moved_on() {
    let site = silent_with(Major::V17, "max_replication_slots", "1");
    let server = &site.server;
    let mut ledger = Ledger::create(server);
    site.try_backup(&["--slot", "x"]).expect_code(64);
    with_wal(&site, &["--slot", "No-Slot"]).expect_code(64);
    let unknown = with_wal(&site, &["--slot", "backup"]).expect_code(78);
    assert!(unknown.stderr.contains("the server has no replication slot backup"), "{}", unknown.story());
    assert!(unknown.stderr.contains("pg_create_physical_replication_slot"), "{}", unknown.story());
    server.sql("select pg_create_physical_replication_slot('backup', true)");
    // There is no room for another one beside it.
    let full = with_wal(&site, &[]).expect_code(1);
    assert!(full.stderr.contains("hint: raise max_replication_slots"), "{}", full.story());
    let rows = ledger.commit(server, 50).rows;
    let taken = with_wal(&site, &["--slot", "backup"]).expect_ok();
    let stop = taken.json()["stop_lsn"].as_str().expect("a position").to_owned();
    server.wait_until(&format!("select restart_lsn >= '{stop}' and not active from pg_replication_slots"), "t");
    expect_back(&site, &["--to-latest"], rows);
    // A server with a synchronous standby must not take us for it: nothing is called durable before the end.
    server.sql("alter system set synchronous_standby_names = '*'");
    server.reload();
    let again = with_wal(&site, &["--slot", "backup"]).expect_ok();
    let stop = again.json()["stop_lsn"].as_str().expect("a position").to_owned();
    server.wait_until(&format!("select restart_lsn >= '{stop}' from pg_replication_slots"), "t");
}

#[test]
fn where_the_servers_own_archiving_is_at_work_it_stays_the_owner() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.server.archive_all();
    let taken = with_wal(&site, &[]).expect_ok();
    assert!(taken.stderr.contains("0 segments of WAL were streamed"), "{}", taken.story());
    assert!(taken.stderr.contains("compared with what the server archived"), "{}", taken.story());
    let contested = site.walvault.run(["conflict", "list", "--json"]).expect_ok().json();
    assert_eq!(contested["conflicts"], serde_json::json!([]), "{contested:#}");
    // Its archiving breaks: for the grace it is waited for, in vain.
    site.server.set_archive_command("false");
    ledger.commit(&site.server, 10);
    let patience = site.walvault.clone().env("WALVAULT_WAL_TIMEOUT", "1");
    let waited = backup_of(&site.server, &patience, &WITH_WAL).expect_code(3);
    // On a busy machine not even the segment's end came within the second.
    let words = ["archives this timeline, and has not archived", "the server has not finished segment"];
    assert!(words.iter().any(|words| waited.stderr.contains(words)), "{}", waited.story());
    // And after the grace the stream is what archives.
    let at_once = site.walvault.clone().env("WALVAULT_OWNER_GRACE", "0");
    let rows = ledger.commit(&site.server, 10).rows;
    let taken = backup_of(&site.server, &at_once, &WITH_WAL).expect_ok();
    expect_back(&site, &["--to-backup-end", "--backup", &id(&taken)], rows);
}

/// Who is first on a timeline keeps it, and would refuse the other for a grace.
#[test]
fn a_server_that_archives_slowly_still_comes_first() {
    let repo = TestRepo::new();
    let walvault = Walvault::on(&repo);
    walvault.run(["init"]).expect_ok();
    let slow = format!("sleep 1; {}", walvault.archive_command());
    let server = TestServer::builder(Major::V17).segment_mib(1).archive_command(slow).start();
    let site = Site { server, repo, walvault };
    let mut ledger = Ledger::create(&site.server);
    assert_eq!(site.repo.find_all("*/wal/*"), Vec::<String>::new(), "nobody has archived anything");
    let taken = with_wal(&site, &[]).expect_ok();
    assert!(taken.stderr.contains("0 segments of WAL were streamed"), "{}", taken.story());
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    let contested = site.walvault.run(["conflict", "list", "--json"]).expect_ok().json();
    assert_eq!(contested["conflicts"], serde_json::json!([]), "{contested:#}");
    expect_back(&site, &["--to-latest"], rows);
}

#[test]
fn a_stream_of_wal_that_is_cut_leaves_no_backup_and_ends_it_on_the_server() {
    let site = silent(Major::V15);
    let proxy = ReplicationProxy::start(site.server.socket_dir());
    let conninfo = proxy.conninfo();
    let arguments = ["backup", "--json", "--fast", "--from", "remote", "--with-wal", "--dbname", &conninfo];
    proxy.meddle(Meddling::Count);
    site.walvault.run(arguments).expect_ok();
    // The second connection is the one of the WAL.
    for (tag, nth) in [(b'W', 0), (b'd', 0), (b'd', 2)] {
        proxy.meddle_with(1, Meddling::CutAt(tag, nth));
        let outcome = site.walvault.run(arguments).expect_code(1);
        let words = "the WAL that streams beside the backup did not reach the archive; nothing was committed";
        assert!(outcome.stderr.contains(words), "{}", outcome.story());
        assert!(outcome.stderr.contains("stream the server's WAL: the connection to the server was lost"));
        assert_eq!(site.listed().len(), 1, "{}", outcome.story());
    }
    site.server.wait_until("select count(*) from pg_stat_replication", "0");
    proxy.meddle(Meddling::Count);
    site.walvault.run(arguments).expect_ok();
}

#[test]
fn a_standby_that_is_promoted_in_the_middle_leaves_no_backup() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    let primary = &site.server;
    Ledger::create(primary).commit(primary, 100);
    site.backup();
    primary.archive_all();
    let mut standby = site.restore(&["--as", "standby", "--primary-conninfo", &primary.conninfo()]);
    standby.server.start();
    standby.server.wait_until("select count(*) from ledger", "100");
    let proxy = ReplicationProxy::start(standby.server.socket_dir());
    let conninfo = proxy.conninfo();
    for more in [&["--with-wal"][..], &[]] {
        proxy.meddle(Meddling::HoldAfter(200));
        let words = ["backup", "--json", "--fast", "--from", "remote", "--dbname", &conninfo];
        let backup = site.walvault.start(words.iter().chain(more));
        within(Duration::from_secs(60), || proxy.holds(), "the stream is held");
        if standby.server.query_one("select pg_is_in_recovery()") == "t" {
            standby.server.promote();
        } else {
            // The second time it is a primary already, and is restarted instead.
            standby.server.restart();
        }
        proxy.go_on();
        let outcome = backup.wait(COMMAND_LIMIT).expect_code(1);
        let reasons = ["was promoted", "terminating connection", "the connection to the server was lost"];
        let reasons = if more.is_empty() { &reasons[1..] } else { &reasons[..1] };
        assert!(reasons.iter().any(|reason| outcome.stderr.contains(reason)), "{}", outcome.story());
        assert_eq!(site.listed().len(), 1, "{}", outcome.story());
    }
}

#[test]
fn a_signal_ends_the_backup_on_the_server_too_and_gives_the_lease_back() {
    let site = Site::of(
        TestServer::builder(Major::V17)
            .segment_mib(1)
            .set("checkpoint_timeout", "1h")
            .set("checkpoint_completion_target", "0.9"),
    );
    let server = &site.server;
    // A checkpoint that is not asked to hurry takes the better part of an hour for these.
    server.sql("create table dirty as select g, repeat('x', 500) from generate_series(1, 8000) as g");
    let conninfo = server.conninfo();
    for signal in [Signal::TERM, Signal::INT] {
        let mut backup = site.walvault.start(["backup", "--from", "remote", "--dbname", &conninfo]);
        let waiting =
            "select count(*) from pg_stat_activity where backend_type = 'walsender' and wait_event like 'Checkpoint%'";
        server.wait_until(waiting, "1");
        backup.signal(signal);
        let outcome = backup.wait(COMMAND_LIMIT).expect_code(1);
        for words in ["a signal came: the backup is being ended", "canceling statement due to user request"] {
            assert!(outcome.stderr.contains(words), "{}", outcome.story());
        }
        server.wait_until("select count(*) from pg_stat_replication", "0");
    }
    assert_eq!(site.listed().len(), 0);
    // Nobody holds the lease.
    site.try_backup(&["--from", "remote"]).expect_ok();
}
