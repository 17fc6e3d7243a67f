//! A backup that was cut off costs the next one little, and nothing of it is lost or removed meanwhile.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::process::Running;
use crate::support::{Ledger, Major, Outcome, Site, Walvault};

const LATEST_CLONE: [&str; 5] = ["--to-latest", "--as", "clone", "--target-action", "promote"];
const LIMIT: Duration = Duration::from_secs(60);

/// Starts a full backup that takes a while and returns it, stopped, once so many packs of it are there. One that was faster
/// is taken again, more slowly.
fn under_way(site: &Site, packs: usize) -> Running {
    let conninfo = site.server.conninfo();
    for rate in ["6MiB", "3MiB", "1MiB"] {
        let (before, listed) = (site.repo.find_all("*/packs/*").len(), site.listed());
        let words = ["backup", "--fast", "--full", "--dbname", &conninfo, "--memory", "40", "--rate-limit", rate];
        let mut backup = site.walvault.start(words);
        let began = Instant::now();
        while backup.is_running() && site.repo.find_all("*/packs/*").len() < before + packs {
            assert!(began.elapsed() < LIMIT, "no packs of a backup that is under way");
            std::thread::sleep(Duration::from_millis(5));
        }
        backup.signal(Signal::STOP);
        if backup.is_running() && site.listed() == listed {
            return backup;
        }
    }
    panic!("every backup ended before it could be cut off")
}

fn keeping_one(site: &Site) -> Walvault {
    let calls = Walvault::on(&site.repo).env("WALVAULT_RETAIN_BACKUPS", "1");
    calls.env("WALVAULT_EXPIRE_GRACE", "0")
}

/// Rows that do not compress to nothing, in a table of their own.
fn fill(site: &Site, table: &str, rows: u32) {
    site.server.sql(&format!(
        "create table {table} as select g, md5(random()::text) || md5(random()::text) || md5(random()::text) as filling \
         from generate_series(1, {rows}) as g; checkpoint"
    ));
}

fn again(site: &Site, arguments: &[&str]) -> Outcome {
    let conninfo = site.server.conninfo();
    site.walvault.run(["backup", "--fast", "--dbname", &conninfo].iter().chain(arguments)).expect_ok()
}

#[test]
fn a_killed_backup_is_taken_over_whatever_expire_does_in_between() {
    let site = Site::of(crate::support::TestServer::builder(Major::V17).segment_mib(1));
    let server = &site.server;
    let mut ledger = Ledger::create(server);
    ledger.commit(server, 10);
    site.backup();
    fill(&site, "filled", 300_000);
    let mut first = under_way(&site, 4);
    // While a backup is at work nothing goes, also if it does not move.
    let before = site.repo.find_all("*/packs/*");
    keeping_one(&site).run(["expire"]);
    assert_eq!(site.repo.find_all("*/packs/*"), before);
    first.kill9();

    ledger.commit(server, 10);
    server.sql("update filled set g = -g where g % 5000 = 0; checkpoint");
    let left = site.repo.find_all("*/packs/*").len();
    let resumed = again(&site, &["--full"]);
    assert!(resumed.stdout.contains("taken over from a cut-off backup: "), "{}", resumed.story());
    let rows = ledger.commit(server, 10).rows;
    server.archive_all();
    // What it took over lies where the backup left it that never was one; expire knows who needs it.
    keeping_one(&site).run(["expire"]).expect_ok();
    assert_eq!(site.listed().len(), 1);
    site.walvault.run(["verify", "--read"]).expect_ok();
    let mut restored = site.restore(&LATEST_CLONE);
    Ledger::expect_rows(restored.promoted(), rows);
    assert_eq!(
        restored.server.query_one("select count(*), count(*) filter (where g < 0), sum(length(filling)) from filled"),
        server.query_one("select count(*), count(*) filter (where g < 0), sum(length(filling)) from filled"),
    );
    restored.expect_sound_pages();
    let whole = site.try_backup(&["--full"]).expect_ok().json();
    assert_eq!(whole["taken_over"], serde_json::Value::Null, "{left} packs were there, and all belong to a backup");
}

#[test]
fn a_backup_whose_log_did_not_arrive_has_stored_its_pages_already() {
    let site = Site::start(Major::V15);
    let server = &site.server;
    let mut ledger = Ledger::create(server);
    fill(&site, "filled", 20_000);
    ledger.commit(server, 10);
    server.archive_all();
    let command = server.query_one("show archive_command");
    server.set("archive_command", "false");
    server.reload();
    server.wait_until("show archive_command", "false");
    let impatient = Walvault::on(&site.repo).env("WALVAULT_WAL_TIMEOUT", "1");
    crate::support::site::backup_of(server, &impatient, &[]).expect_code(3);
    server.set("archive_command", &command);
    server.reload();
    for source in ["local", "remote"] {
        let taken = site.try_backup(&["--full", "--from", source]).expect_ok().json();
        if source == "remote" {
            // The one before is committed: nothing was cut off.
            assert_eq!(taken["taken_over"], serde_json::Value::Null, "{taken:#}");
            continue;
        }
        let (bytes, stored) = (taken["bytes"].as_u64(), taken["stored_bytes"].as_u64());
        let over = taken["taken_over"]["bytes"].as_u64();
        assert!(over.zip(bytes).is_some_and(|(over, bytes)| over * 10 > bytes * 8), "{taken:#}");
        assert!(stored.zip(taken["named_bytes"].as_u64()).is_some_and(|(own, all)| own * 5 < all), "{taken:#}");
    }
    let rows = ledger.commit(server, 10).rows;
    server.archive_all();
    let mut restored = site.restore(&[&LATEST_CLONE[..], &["--backup", &site.listed()[0]]].concat());
    Ledger::expect_rows(restored.promoted(), rows);
    restored.expect_sound_pages();
}
