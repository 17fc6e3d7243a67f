//! Killed at any moment: what was not finished is invisible or cannot be started, and the next attempt works.

use std::fs;
use std::time::Instant;

use crate::support::process::COMMAND_LIMIT;
use crate::support::{Ledger, Major, Moments, Scratch, Site, TestServer, soaking};

fn rounds() -> u64 {
    if soaking() { 100 } else { 8 }
}

#[test]
fn a_killed_backup_is_invisible_and_the_next_one_works() {
    let site = Site::start(Major::V17);
    let mut ledger = Ledger::create(&site.server);
    ledger.commit(&site.server, 500);
    let started = Instant::now();
    let mut expected = vec![site.backup()["id"].as_str().expect("a name").to_owned()];
    let moments = Moments::within(started.elapsed());
    let (mut killed, mut round) = (0, 0);
    while round < rounds() || (killed == 0 && round < 10 * rounds()) {
        round += 1;
        let conninfo = site.server.conninfo();
        let mut backup = site.walvault.start(["backup", "--json", "--fast", "--dbname", &conninfo]);
        moments.wait();
        let over = !backup.is_running();
        moments.was_over(over);
        if !over {
            backup.kill9();
            killed += 1;
            // It may have been killed between its commit and its last words.
            let listed = site.listed();
            assert!(
                listed.starts_with(&expected) && listed.len() <= expected.len() + 1,
                "{listed:?}, not {expected:?}"
            );
            expected = listed;
        } else {
            let outcome = backup.wait(COMMAND_LIMIT).expect_ok();
            expected.push(outcome.json()["id"].as_str().expect("a name").to_owned());
        }
    }
    assert!(killed > 0, "no round was killed");
    expected.push(site.backup()["id"].as_str().expect("a name").to_owned());
    assert_eq!(site.listed(), expected);
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    for backup in [&expected[expected.len() - 1], &expected[moments.chance().below(expected.len() as u64) as usize]] {
        let mut restored = site.restore(&["--to-latest", "--backup", backup, "--as", "clone"]);
        Ledger::expect_rows(restored.paused(), rows);
    }
}

#[test]
fn a_killed_restore_cannot_be_started() {
    let site = Site::start(Major::V15);
    let mut ledger = Ledger::create(&site.server);
    ledger.commit(&site.server, 500);
    site.backup();
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    let started = Instant::now();
    let target = ["--to-latest", "--as", "clone", "--target-action", "promote"];
    site.restore(&target);
    let moments = Moments::within(started.elapsed());
    let (mut killed, mut round) = (0, 0);
    while round < rounds() || (killed == 0 && round < 10 * rounds()) {
        round += 1;
        let place = Scratch::new();
        let data = place.join("data");
        let words = ["restore", data.to_str().expect("plain text")];
        let mut restore = site.walvault.start(words.iter().chain(&target));
        moments.wait();
        let finished = !restore.is_running();
        moments.was_over(finished);
        restore.kill9();
        let mut server = TestServer::over(Major::V15, &data);
        if finished || data.join("global/pg_control").exists() {
            server.start();
            server.wait_until_writable();
            Ledger::expect_rows(&server, rows);
            continue;
        }
        killed += 1;
        assert!(server.try_start().is_err(), "half a restore starts\n{}", server.log());
        site.try_restore(&data, &target).expect_ok();
        server.start();
        server.wait_until_writable();
        Ledger::expect_rows(&server, rows);
    }
    assert!(killed > 0, "no round was killed");
}

#[test]
fn the_last_step_of_a_restore_is_what_makes_it_startable() {
    let site = Site::start(Major::V18);
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    let mut restored = site.restore(&["--to-latest", "--as", "clone", "--target-action", "promote"]);
    let control = restored.server.pgdata().join("global/pg_control");
    let aside = control.with_extension("walvault");
    fs::rename(&control, &aside).expect("restore wrote it");
    assert!(restored.server.try_start().is_err(), "{}", restored.server.log());
    fs::rename(&aside, &control).expect("it was put there");
    Ledger::expect_rows(restored.promoted(), rows);
}
