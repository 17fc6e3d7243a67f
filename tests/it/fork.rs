//! A failover whose new primary has archived its history and not yet its first segment, while the old one wrote on.

use std::fs;
use std::time::Duration;

use crate::support::site::branched_off;
use crate::support::{Ledger, Major, Site, Stop, TestServer, tool, within};

#[test]
fn the_branch_that_was_left_is_not_replayed() {
    waits_for_the_new_branch(Major::V15);
}

#[test]
fn the_branch_that_was_left_is_not_replayed_by_postgresql_18() {
    waits_for_the_new_branch(Major::V18);
}

fn waits_for_the_new_branch(major: Major) {
    let site = Site::of(TestServer::builder(major).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    ledger.commit(&site.server, 20);
    let (standby_data, copy) = (site.server.beside("1").join("data"), site.server.beside("2").join("data"));
    for data in [&standby_data, &copy] {
        tool::base_backup(&site.server, data, &["-X", "none"]).expect_ok();
    }
    let mut standby = TestServer::over(major, &standby_data);
    standby.set("primary_conninfo", &site.server.conninfo());
    standby.set("restore_command", &site.walvault.restore_command());
    fs::write(standby_data.join("standby.signal"), "").expect("the copy is there");
    standby.start();
    ledger.commit(&site.server, 300);
    site.server.archive_all();
    let before_the_fork = ledger.commit(&site.server, 10).rows;
    standby.wait_until("select count(*) from ledger", &before_the_fork.to_string());

    standby.promote();
    ledger.resume(&standby);
    let rows = ledger.commit(&standby, 10).rows;
    let archived = |pattern: &str| site.repo.find_all(pattern).len();
    within(Duration::from_secs(60), || archived("*/00000002.history.zst") == 1, "the history is archived");
    // The old primary has not heard of it: it fills the fork's segment and more on its own branch.
    for _ in 0..3 {
        site.server
            .sql("create table if not exists stray (contents text); insert into stray select repeat('x', 100000)");
        site.server.archive_all();
    }
    assert_eq!(archived("*/wal/00000002/00000000/*"), 0, "the new primary is in its first segment");
    // Both were heard of just now: which one counts is an operator's to say.
    site.walvault.run(["lane", "adopt", "2"]).expect_ok();

    let mut recovering = TestServer::over(major, &copy);
    recovering.set("restore_command", &site.walvault.restore_command());
    recovering.set("archive_mode", "off");
    recovering.set_env("WALVAULT_HOLE_TIMEOUT", "1");
    fs::write(copy.join("recovery.signal"), "").expect("the copy is there");
    recovering.launch();
    let status = recovering.wait_for_end(Duration::from_secs(180));
    assert!(!status.success(), "{}", recovering.log());
    assert!(recovering.log().contains("timeline 2 begins in it"), "{}", recovering.log());
    assert!(!recovering.log().contains("archive recovery complete"), "{}", recovering.log());

    standby.archive_all();
    let fork = branched_off(&standby);
    recovering.start();
    recovering.wait_until_writable();
    Ledger::expect_rows(&recovering, rows);
    assert!(recovering.psql("table stray").is_err(), "nothing of the old branch is there");
    let (parent, _) = branched_off(&recovering);
    assert_eq!((recovering.timeline(), parent, fork.0), (3, 2, 1), "{}", recovering.log());
    standby.stop(Stop::Immediate);
}
