//! A copy on the same host never touches the tablespaces of the server that it was copied from.

use std::fs;

use crate::support::user::ServerUser;
use crate::support::{Ledger, Major, Restored, Scratch, Site, Snapshot, Stop, TestServer, tool};

/// A server with a table in a tablespace of its own, and in one inside the data directory.
fn with_tablespaces(major: Major) -> (Site, Scratch, String) {
    let site = Site::start(major);
    let places = Scratch::new();
    let place = places.create_dir("fast");
    site.server.sql(&format!("create tablespace fast location '{}'", place.display()));
    site.server.sql("create table far tablespace fast as select g from generate_series(1, 1000) as g");
    site.server.sql("set allow_in_place_tablespaces = on; create tablespace inside location ''");
    site.server.sql("create table near tablespace inside as select g from generate_series(1, 1000) as g");
    let oid = site.server.query_one("select oid from pg_tablespace where spcname = 'fast'");
    (site, places, oid)
}

#[test]
fn postgresql_15_clones_with_tablespaces_leave_production_alone() {
    leaves_production_alone(Major::V15);
}

#[test]
fn postgresql_18_clones_with_tablespaces_leave_production_alone() {
    leaves_production_alone(Major::V18);
}

fn leaves_production_alone(major: Major) {
    let (mut site, places, oid) = with_tablespaces(major);
    let mut ledger = Ledger::create(&site.server);
    let backup = site.backup();
    site.server.sql("insert into far values (1001); alter table ledger set tablespace fast");
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    // So that nothing but a clone can change what is compared.
    site.server.stop(Stop::Fast);
    let production = [places.path(), site.server.pgdata()].map(|path| (path, Snapshot::of(path)));

    let at = places.join("fast");
    let was_at = format!("tablespace {oid} was at {}, which exists on this host", at.display());
    let hint = format!("--tablespace {oid}=DIR");
    let refused = site.expect_refused(&["--to-latest", "--as", "clone"], 1, &[&was_at, &hint]);
    assert_eq!(refused.stdout, "");
    let onto = format!("{oid}={}", at.display());
    site.expect_refused(&["--to-latest", "--as", "clone", "--tablespace", &onto], 1, &["is not empty"]);
    let unknown = ["--to-latest", "--as", "clone", "--tablespace", "1=/x"];
    site.expect_refused(&unknown, 1, &["the backup has no tablespace 1", &oid]);

    let elsewhere = Scratch::new();
    let mapped = format!("{oid}={}", elsewhere.join("fast").display());
    let promote = ["--to-latest", "--as", "clone", "--target-action", "promote", "--tablespace", &mapped];
    let mut clone = site.restore(&promote);
    let data = clone.server.pgdata().to_owned();
    assert!(!data.join("tablespace_map").exists());
    let link = fs::read_link(data.join("pg_tblspc").join(&oid)).expect("a link");
    assert_eq!(link, elsewhere.join("fast"));
    Ledger::expect_rows(clone.promoted(), rows);
    clone.expect_planned_end();
    assert_eq!(clone.server.query_one("select (select count(*) from far), (select count(*) from near)"), "1001|1000");
    clone.server.sql("insert into far select g from generate_series(1, 5000) as g; vacuum full far; checkpoint");
    tool::check_relations(&clone.server).expect_ok();
    clone.expect_sound_pages();
    assert_eq!(fs::read_link(data.join("pg_tblspc").join(&oid)).expect("a link"), elsewhere.join("fast"));
    for (path, before) in &production {
        before.expect_unchanged(path);
    }

    // A backup can be shown with its tablespaces, to know what to map.
    let id = backup["id"].as_str().expect("a name");
    let shown = site.walvault.run(["show", id, "--json"]).expect_ok().json();
    assert_eq!(shown["tablespaces"][0]["path"], at.to_str().expect("plain text"));
}

#[test]
fn a_log_of_15_that_creates_a_tablespace_is_not_replayed_beside_it() {
    is_not_replayed_beside_it(Major::V15);
}

#[test]
fn a_log_of_17_that_creates_a_tablespace_is_not_replayed_beside_it() {
    is_not_replayed_beside_it(Major::V17);
}

fn is_not_replayed_beside_it(major: Major) {
    let site = Site::start(major);
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    let before = ledger.commit(&site.server, 10).clone();
    let place = site.server.create_tablespace("late");
    site.server.sql("create table far tablespace late as select g from generate_series(1, 1000) as g");
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();

    let oid = site.server.query_one("select oid from pg_tablespace where spcname = 'late'");
    let (at, production) = (place.display().to_string(), Snapshot::of(&place));
    let words = format!(
        "error: the log creates tablespace {oid} at {at}, which exists on this host: replaying it here would write into \
         that directory; restore on another host, or, if that directory is no server's any more, give \
         --allow-tablespace-path {at}\n"
    );
    let planned = site.plan(&["--to-latest"], 1);
    assert_eq!((planned.stdout.as_str(), planned.stderr.as_str()), ("", words.as_str()));
    let elsewhere = ["--to-latest", "--allow-tablespace-path", "/nowhere"];
    assert_eq!(site.plan(&elsewhere, 1).stderr, words);
    let allowed = site.plan(&["--to-latest", "--allow-tablespace-path", &at], 0).json();
    assert_eq!(
        allowed["tablespaces_created"],
        serde_json::json!([{ "oid": oid.parse::<u32>().expect("a number"), "path": at }])
    );
    assert_eq!(site.plan(&["--to-lsn", &before.lsn], 0).json()["tablespaces_created"], serde_json::json!([]));
    for purpose in ["clone", "primary"] {
        site.expect_refused(&["--to-latest", "--as", purpose], 1, &["the log creates tablespace", &words]);
    }
    let standby = ["--as", "standby", "--primary-conninfo", &site.server.conninfo()];
    site.expect_refused(&standby, 1, &["the log creates tablespace", &words]);
    let mut restored = site.restore(&["--to-lsn", &before.lsn, "--as", "clone"]);
    Ledger::expect_rows(restored.paused(), before.rows);
    production.expect_unchanged(&place);

    // A host where the place is not taken: PostgreSQL wants it to be there, and puts the tablespace into it.
    drop(restored);
    let repo = site.repo.duplicate();
    let walvault = site.walvault.clone().repository(repo.url());
    drop(site);
    assert!(!place.exists());
    let promote = ["--to-latest", "--as", "primary", "--target-action", "promote"];
    let later = Restored::by(&walvault, major, &promote);
    drop(later);
    // Or where it is taken and nobody's any more.
    fs::create_dir_all(&place).expect("the run's own directory");
    ServerUser::get().take_over(&place);
    let allow = [&promote[..], &["--allow-tablespace-path", &at]].concat();
    let mut restored = Restored::by(&walvault, major, &allow);
    Ledger::expect_rows(restored.promoted(), rows);
    assert_eq!(restored.server.query_one("select count(*) from far"), "1000");
}

#[test]
fn two_tablespaces_never_share_a_place() {
    let (site, places, oid) = with_tablespaces(Major::V15);
    site.server.sql(&format!("create tablespace second location '{}'", places.create_dir("second").display()));
    let second = site.server.query_one("select oid from pg_tablespace where spcname = 'second'");
    site.backup();
    let elsewhere = Scratch::new();
    let place = |oid: &str, name: &str| format!("{oid}={}", elsewhere.join(name).display());
    let both = |first: String, then: String| {
        let arguments = ["--to-backup-end", "--as", "clone", "--tablespace", &first, "--tablespace", &then];
        site.try_restore(&elsewhere.join("data"), &arguments)
    };
    for (first, then) in [("one", "one"), ("one", "one/below"), ("one", "data"), ("one", "data/below"), ("", "two")] {
        let refused = both(place(&oid, first), place(&second, then)).expect_code(1);
        assert!(refused.stderr.contains("would hold"), "{}", refused.story());
    }
    both(place(&oid, "one"), place(&oid, "two")).expect_code(64);
    assert_eq!(fs::read_dir(elsewhere.path()).expect("a directory").count(), 0);
    both(place(&oid, "one"), place(&second, "two")).expect_ok();
    let mut restored = TestServer::over(Major::V15, &elsewhere.join("data"));
    restored.start();
    assert_eq!(restored.query_one("select count(*) from far"), "1000");
}
