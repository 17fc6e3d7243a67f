//! How long a restore will take: unknown until one was measured here, and then said.

use std::ffi::OsStr;

use crate::support::{Ledger, Major, Scratch, Site, tool};

#[test]
fn a_plan_says_how_long_it_takes_once_that_was_measured_here() {
    let site = Site::start(Major::V15);
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    // Enough log to be measured: two segments of 16 MiB.
    for _ in 0..2 {
        ledger.commit(&site.server, 50);
        site.server.archive_all();
    }
    let state = Scratch::new();
    let walvault = site.walvault.clone().env("WALVAULT_STATE_DIR", state.create_dir("state"));
    let plan =
        |what: &str| walvault.run(["plan", "--json", "--to-latest"]).expect_ok().json()["estimate"][what].clone();
    assert!(plan("restore_seconds").is_null() && plan("replay_seconds").is_null());
    let words = walvault.run(["plan", "--to-latest"]).expect_ok().stdout;
    assert!(words.contains("takes     unknown: nothing was restored and started on this host"), "{words}");

    let place = Scratch::new();
    let (data, major) = (place.join("data"), site.server.major());
    let bin = major.program("pg_ctl");
    let socket = format!("unix_socket_directories={}", place.path().display());
    let words =
        [OsStr::new("restore"), data.as_os_str(), OsStr::new("--pg-bin"), bin.parent().expect("a folder").as_os_str()];
    let rest = ["--to-latest", "--as", "clone", "--start", "--set", &socket, "--set", "listen_addresses="];
    walvault.run(words.into_iter().chain(rest.map(OsStr::new))).expect_ok();
    tool::tool(major, "pg_ctl", [OsStr::new("stop"), OsStr::new("-D"), data.as_os_str()]).expect_ok();

    let (restore, replay) = (plan("restore_seconds"), plan("replay_seconds"));
    assert!(restore.as_f64().is_some_and(|time| time > 0.0) && replay.as_f64().is_some_and(|time| time > 0.0));
    assert!(plan("replay_bytes").as_u64().is_some_and(|bytes| bytes > 16 << 20));
    assert!(plan("fetch_bytes").as_u64() < plan("write_bytes").as_u64());
    let words = walvault.run(["plan", "--to-latest"]).expect_ok().stdout;
    assert!(words.contains("as measured on this host, last 20"), "{words}");
    // What was measured of one cluster says nothing of another one, on another server.
    let other = walvault.clone().cluster("other");
    other.run(["init"]).expect_ok();
    assert_eq!(other.run(["plan", "--to-latest"]).expect_code(2).stdout, "");
}
