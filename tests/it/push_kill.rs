//! Death in the middle of a push: what was acknowledged is there, what was not is invisible or whole.

use std::fs;
use std::time::Duration;

use crate::support::process::COMMAND_LIMIT;
use crate::support::{Ledger, Major, Moments, Restored, Site, Stop, TestRepo, TestServer, Walvault, soaking};

#[test]
fn a_push_that_dies_at_any_moment_leaves_nothing_half() {
    let mut server = TestServer::builder(Major::V15).segment_mib(1).start();
    Ledger::create(&server).commit(&server, 600);
    let last = server.switch_wal();
    server.stop(Stop::Immediate);
    let mut segments: Vec<String> = fs::read_dir(server.pgdata().join("pg_wal"))
        .expect("it is there")
        .filter_map(|entry| entry.expect("a listed entry").file_name().into_string().ok())
        .filter(|name| name.len() == 24 && *name <= last)
        .collect();
    segments.sort();
    assert!(segments.len() > 2, "{segments:?}");

    // Deaths before, during and after a push's work.
    let moments = Moments::within(Duration::from_millis(30));
    let chance = moments.chance();
    let mut seen = [0u32; 3];
    for _ in 0..if soaking() { 2000 } else { 60 } {
        let segment = chance.pick(&segments);
        let bytes = fs::read(server.pgdata().join("pg_wal").join(segment)).expect("it is there");
        let repo = TestRepo::new();
        let calls = Walvault::on(&repo).in_directory(server.pgdata()).env("WALVAULT_HOLE_TIMEOUT", "0");
        calls.run(["init"]).expect_ok();
        let push = ["wal", "push", &format!("pg_wal/{segment}")];
        let mut dying = calls.start(push);
        moments.wait();
        let acknowledged = !dying.is_running();
        dying.kill9();
        moments.was_over(acknowledged);
        if acknowledged {
            dying.wait(COMMAND_LIMIT).expect_ok();
        }

        let fetch = || {
            let destination = server.pgdata().join("pg_wal/RECOVERYXLOG");
            drop(fs::remove_file(&destination));
            let outcome = calls.run(["wal", "fetch", segment, "pg_wal/RECOVERYXLOG"]);
            assert!(
                !outcome.is_ok() || fs::read(&destination).is_ok_and(|served| served == bytes),
                "{}",
                outcome.story()
            );
            outcome
        };
        let visible = fetch().is_ok();
        assert!(visible || !acknowledged, "{segment} was acknowledged and is not there: {:?}", repo.objects());
        assert_eq!(visible, !repo.find_all(&format!("*/{segment}.zst")).is_empty(), "{:?}", repo.objects());
        seen[usize::from(visible) + usize::from(acknowledged)] += 1;
        // What is left behind is in nobody's way.
        calls.run(push).expect_ok();
        assert!(fetch().is_ok());
        calls.run(["wal", "list"]).expect_ok();
    }
    assert!(seen[0] > 0 && seen[2] > 0, "unseen, unacknowledged, acknowledged: {seen:?}");
}

#[test]
fn a_server_that_loses_power_while_it_archives_loses_nothing_of_the_archive() {
    let mut site = Site::of(TestServer::builder(Major::V17).segment_mib(1).set("autovacuum", "on"));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    for _ in 0..if soaking() { 20 } else { 2 } {
        let writing = ledger.keep_committing(&site.server, 20);
        site.server.wait_until("select archived_count > 5 from pg_stat_archiver", "t");
        site.server.kill9();
        ledger = writing.stop();
        site.server.start();
        assert!(ledger.after_crash().contains(&Ledger::rows_on(&site.server)));
        ledger.resume(&site.server);
    }
    let rows = ledger.commit(&site.server, 5).rows;
    site.server.archive_all();
    let arguments = ["--to-latest", "--as", "clone", "--target-action", "promote"];
    let mut restored = Restored::by(&site.walvault, Major::V17, &arguments);
    Ledger::expect_rows(restored.promoted(), rows);
}
