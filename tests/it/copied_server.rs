//! A server that is a copy of another one, on the same timeline: what the other one archives is not taken for the copy's log,
//! and nothing of the copy gets into the other one's backups.

use crate::owners::copy_of;
use crate::support::site::backup_of;
use crate::support::{Ledger, Major, Site, TestServer};

const LATEST_CLONE: [&str; 5] = ["--to-latest", "--as", "clone", "--target-action", "promote"];
const WORK: &str = "insert into wide select n, md5(n::text) from generate_series(1, 20000) n; select pg_switch_wal()";

#[test]
fn a_started_snapshot_of_15_gets_no_backup_from_the_log_of_its_original() {
    a_started_snapshot_gets_no_backup(Major::V15, "log", &["local", "remote"]);
}

#[test]
fn a_started_snapshot_of_17_gets_no_backup_by_its_summaries_either() {
    a_started_snapshot_gets_no_backup(Major::V17, "summaries", &["local"]);
}

fn a_started_snapshot_gets_no_backup(major: Major, method: &str, sources: &[&str]) {
    let builder = TestServer::builder(major).segment_mib(1).set("autovacuum", "off");
    let site = Site::of(if method == "summaries" { builder.set("summarize_wal", "on") } else { builder });
    site.server.sql("create table wide (n int, text text)");
    site.server.sql(WORK);
    let mut ledger = Ledger::create(&site.server);
    let first = site.backup();
    site.server.archive_all();

    // For staging, says whoever made it; its archiver is told that all is well, and its timer still runs.
    let mut copy = copy_of(&site.server, "copy");
    copy.set("archive_command", "/bin/true");
    copy.start();
    copy.wait_until_writable();
    copy.sql("update wide set text = 'of the copy' where n % 500 = 0");
    // The original is ahead of it, and all its log is archived.
    for _ in 0..5 {
        site.server.sql(WORK);
    }
    ledger.commit(&site.server, 3);
    site.server.archive_all();
    for source in sources {
        let refused = backup_of(&copy, &site.walvault, &["--from", source]).expect_code(3);
        for word in ["the archived log is not this server's", "back up a copy", "walvault conflict list"] {
            assert!(refused.stderr.contains(word), "{source}: {}", refused.story());
        }
    }
    assert_eq!(site.listed(), [first["id"].as_str().expect("a name")]);

    // The original builds on its own.
    let second = site.backup();
    assert_eq!((second["changes"]["method"].as_str(), &second["parent"]), (Some(method), &first["id"]), "{second:#}");
    site.server.archive_all();
    let mut restored = site.restore(&LATEST_CLONE);
    Ledger::expect_rows(restored.promoted(), ledger.last().rows);
    assert_eq!(restored.server.query_one("select count(*) from wide where text = 'of the copy'"), "0");
}
