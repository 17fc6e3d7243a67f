//! Owners that archive nothing for a while: a server that nobody writes to, beside a copy that writes, and a primary whose
//! standby is faster.

use std::process::Command;
use std::time::Duration;

use crate::owners::{copy_of, standby_of};
use crate::support::process::Running;
use crate::support::{Ledger, Major, Outcome, Scratch, Site, TestServer, Walvault, within};

/// How long a test waits for what comes in any case.
const LIMIT: Duration = Duration::from_secs(60);
/// Seconds of silence after which the agent's own server would be passed over: a sign comes every second.
const GRACE: &str = "3";

/// Makes what is stored in these folders two hours old.
fn age(site: &Site, folders: &[&str]) {
    let mut touch = Command::new("/usr/bin/touch");
    // What is removed meanwhile is not made anew.
    touch.args(["-c", "-d", "2 hours ago"]);
    let aged = site.repo.objects().into_iter().filter(|key| folders.iter().any(|folder| key.contains(folder)));
    touch.args(aged.map(|key| site.repo.path().join(key)));
    assert!(touch.status().expect("touch runs").success());
}

/// Numbers of the signs that are there; one that has its unfinished name is not.
fn signs(site: &Site) -> Vec<u32> {
    let keys = site.repo.find_all("*/signs/00000001/*/*");
    keys.iter().filter_map(|key| key.rsplit('/').next()?.parse().ok()).collect()
}

fn wait_for_another_sign(site: &Site) {
    let newest = || signs(site).into_iter().max();
    let before = newest();
    within(LIMIT, || newest() > before, "another sign of life");
}

#[test]
fn an_idle_server_with_an_agent_is_not_passed_over_by_a_copy_until_it_is_gone() {
    let place = Scratch::new();
    place.create_dir("run");
    let with = |walvault: &Walvault, more: &[(&str, String)]| {
        let own = [
            ("WALVAULT_RUNTIME_DIR", place.join("run").display().to_string()),
            ("WALVAULT_HELPER", "0".to_owned()),
            ("WALVAULT_OWNER_GRACE", GRACE.to_owned()),
        ];
        own.iter().chain(more).fold(walvault.clone(), |calls, (name, value)| calls.env(*name, value.clone()))
    };
    let builder = TestServer::builder(Major::V17).segment_mib(1);
    let builder = builder.env("WALVAULT_RUNTIME_DIR", place.join("run")).env("WALVAULT_HELPER", "0");
    let mut site = Site::of(builder.env("WALVAULT_OWNER_GRACE", GRACE));
    let socket = place.join("run/main.sock");
    let agent = |more: &[(&str, String)]| -> Running {
        let mut agent = with(&site.walvault, more).start(["agent", "--verbose"]);
        within(LIMIT, || socket.exists() || !agent.is_running(), "the agent listens");
        agent
    };
    let mut first = agent(&[]);
    let mut ledger = Ledger::create(&site.server);
    ledger.commit(&site.server, 10);
    site.server.archive_all();
    // It knows of the server by what it archived.
    wait_for_another_sign(&site);
    assert!(first.complaints().contains("archived"), "{}", first.complaints());

    // A copy with settings of its own, which is patient for 900 s, and writes.
    let mut copy = copy_of(&site.server, "copy");
    copy.set("archive_command", "false");
    copy.start();
    copy.sql("create table stray as select 1 as one");
    let written = copy.switch_wal();
    let push = |name: &str| -> Outcome {
        site.walvault.clone().in_directory(copy.pgdata()).run(["wal", "push", &format!("pg_wal/{name}")])
    };
    age(&site, &["/wal/", "/owners/"]);
    let refused = push(&written).expect_code(4);
    assert!(refused.stderr.contains("is of a timeline that"), "{}", refused.story());

    // A server that was set up by its data directory is spoken for before it archives anything.
    first.kill9();
    let second = agent(&[("WALVAULT_PGDATA", site.server.pgdata().display().to_string())]);
    wait_for_another_sign(&site);
    age(&site, &["/wal/", "/owners/"]);
    push(&written).expect_code(4);
    // There are three until the oldest is gone, and four if the first agent died before it removed one.
    within(LIMIT, || signs(&site).len() <= 2 && signs(&site).into_iter().max() > Some(2), "older signs go");

    // Production wakes up, and was never anybody else.
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    assert_eq!(site.server.query_one("select failed_count from pg_stat_archiver"), "0", "{}", site.server.log());
    Ledger::expect_rows(&site.server, rows);
    let lanes = || site.walvault.run(["lane", "list", "--json"]).expect_ok().json();
    assert_eq!(lanes()["lanes"][0]["timelines"][0]["claim"], "first");

    // Its archiving is switched off: nothing waits, and who does not archive what it finished is not spoken for.
    assert!(!second.complaints().contains("Gone"), "{}", second.complaints());
    site.server.set("archive_mode", "off");
    site.server.restart();
    site.server.switch_wal();
    site.server.sql("checkpoint");
    let told = second.complaints().len();
    within(LIMIT, || second.complaints()[told..].contains("Waits"), "the agent misses a segment");

    // It dies and its agent does not: nobody speaks for it any more.
    let told = second.complaints().len();
    site.server.kill9();
    within(LIMIT, || second.complaints()[told..].contains("Gone"), "the agent finds the server gone");
    age(&site, &["/wal/", "/owners/", "/signs/"]);
    // A segment that production never archived.
    let names: Vec<String> = (0..8).map(|_| copy.switch_wal()).collect();
    let archived = |name: &String| !site.repo.find_all(&format!("*/wal/*/{name}.zst")).is_empty();
    let free = names.iter().find(|name| !archived(name)).expect("the copy is ahead");
    push(free).expect_ok();
    assert_eq!(lanes()["lanes"][0]["timelines"][0]["claim"], "silence");
}

#[test]
fn a_standby_that_archives_too_waits_for_its_primary_and_alarms_nobody() {
    let site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.server.archive_all();
    let mut standby = standby_of(&site, "standby");
    // What the copy had finished would be the first that the standby fails with.
    site.server.wait_nothing_waits();
    standby.set("archive_mode", "always");
    standby.set("archive_command", &site.walvault.archive_command());
    site.server.set_archive_command("false");
    standby.start();
    ledger.commit(&site.server, 10);
    let segment = site.server.switch_wal();
    standby.wait_until(&format!("select count(*) from pg_stat_archiver where last_failed_wal = '{segment}'"), "1");
    let said =
        [format!("error: {segment} is of a timeline that"), "not archived there yet".into(), "exit code 1".into()];
    said.iter().for_each(|words| assert!(standby.log().contains(words), "{words}\n{}", standby.log()));
    assert!(!standby.log().contains("exit code 4"), "{}", standby.log());
    site.server.set_archive_command(&site.walvault.archive_command());
    site.server.archive_all();
    // The archiver rests after three failures, until there is another segment.
    site.server.archive_all();
    standby.wait_until(&format!("select last_archived_wal >= '{segment}' from pg_stat_archiver"), "t");
    assert_eq!(site.repo.find_all("*/contested/*"), [""; 0]);
}
