//! The program needs nothing but itself: no shell, no library, no user, no home, nowhere to write but a volume.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::empty_root::EmptyRoot;
use crate::support::process::{command, run};
use crate::support::{Major, Stop, TestServer};

const INSTALLED: &str = "/volume/bin/walvault";

#[test]
fn one_file_installs_itself_and_moves_wal_in_an_empty_read_only_root() {
    for root in [EmptyRoot::new(), EmptyRoot::new().without_proc()] {
        let root = root.env("WALVAULT_REPO", "file:///volume/repository").env("WALVAULT_CLUSTER", "main");
        fs::create_dir(root.volume().join("bin")).expect("a directory of ours");
        let segment = data_directory_with_a_segment(&root);
        root.hand_over();
        let pg_wal = root.volume().join("data/pg_wal");

        let version = root.run("/walvault", &["--version"]).expect_ok();
        assert_eq!(version.stdout, format!("walvault {}\n", env!("CARGO_PKG_VERSION")));
        let refused = root.run("/walvault", &["install", "/opt"]).expect_code(1);
        assert!(refused.stderr.contains("Read-only file system"), "{}", refused.story());
        let installed = root.run("/walvault", &["install", "/volume/bin"]).expect_ok();
        assert!(installed.stdout.starts_with("installed /volume/bin/walvault (walvault "), "{}", installed.story());
        let copy = fs::metadata(root.volume().join("bin/walvault")).expect("it is installed");
        assert_eq!(copy.mode() & 0o7777, 0o755);
        let again = root.run(INSTALLED, &["install", "/volume/bin"]).expect_ok();
        assert!(again.stdout.starts_with("already there: /volume/bin/walvault"), "{}", again.story());

        root.run(INSTALLED, &["init"]).expect_ok();
        root.run(INSTALLED, &["wal", "push", &format!("/volume/data/pg_wal/{segment}")]).expect_ok();
        let listed = root.run(INSTALLED, &["wal", "list", "--json"]).expect_ok();
        assert!(listed.stdout.contains(&segment), "{}", listed.story());
        root.run(INSTALLED, &["wal", "fetch", &segment, "/volume/data/pg_wal/RECOVERYXLOG"]).expect_ok();
        let read = |name: &str| fs::read(pg_wal.join(name)).expect("a segment");
        assert!(read("RECOVERYXLOG") == read(&segment), "what was fetched is what was pushed");
        let backups = root.run(INSTALLED, &["list", "--json"]).expect_ok().json();
        assert_eq!(backups["backups"], serde_json::json!([]));
    }
}

/// Puts a stopped server's data directory on the volume; returns a segment that waits to be archived.
fn data_directory_with_a_segment(root: &EmptyRoot) -> String {
    let mut server = TestServer::builder(Major::V17).segment_mib(1).start();
    server.sql("create table work as select generate_series(1, 1000)");
    let segment = server.query_one("select pg_walfile_name(pg_switch_wal())");
    server.stop(Stop::Fast);
    let mut copy = command("/usr/bin/cp");
    copy.arg("-a").arg(server.pgdata()).arg(root.volume().join("data"));
    run(copy).expect_ok();
    segment
}
