//! Links in a data directory: what is behind them comes back, or is named as left out; nothing is lost in silence.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::user::ServerUser;
use crate::support::{Ledger, Major, Scratch, Site, Stop, TestServer, Walvault, tool};

const LATEST: [&str; 5] = ["--to-latest", "--as", "clone", "--target-action", "promote"];

/// Makes a link as the server's user.
fn link(target: &Path, at: &Path) {
    symlink(target, at).unwrap_or_else(|error| panic!("link {at:?}: {error}"));
    ServerUser::get().take_over_itself(at);
}

#[test]
fn pg_wal_elsewhere_and_foreign_links_are_told_at_backup_and_at_restore() {
    let mut site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    site.server.stop(Stop::Fast);
    let (data, far) = (site.server.pgdata().to_owned(), Scratch::new());
    fs::rename(data.join("pg_wal"), far.join("wal")).expect("on one file system");
    link(&far.join("wal"), &data.join("pg_wal"));
    link(&far.create_dir("log"), &data.join("log"));
    fs::write(far.join("log/old.log"), "words").expect("a directory of ours");
    fs::write(far.join("notes"), "to be kept").expect("a directory of ours");
    ServerUser::get().take_over(far.path());
    link(&far.join("notes"), &data.join("notes"));
    link(&far.join("gone"), &data.join("dangling"));
    link(Path::new("circle"), &data.join("circle"));
    site.server.start();
    let mut ledger = Ledger::create(&site.server);
    let taken = site.try_backup(&[]).expect_ok();
    for left_out in ["log to ", "dangling to ", "circle to "] {
        assert!(taken.stderr.contains(&format!("left out with all that it leads to: {left_out}")), "{}", taken.story());
    }
    assert_eq!(taken.stderr.matches("warning").count(), 3, "{}", taken.story());
    let id = taken.json()["id"].as_str().expect("a name").to_owned();
    let links = site.walvault.run(["show", &id, "--json"]).expect_ok().json()["links"].clone();
    let mut kept: Vec<String> =
        links.as_array().expect("a list").iter().map(|l| format!("{} {}", l["path"], l["kept"])).collect();
    kept.sort();
    let expected = ["circle nothing", "dangling nothing", "log nothing", "notes contents", "pg_wal emptied"];
    assert_eq!(kept.iter().map(|text| text.replace('"', "")).collect::<Vec<_>>(), expected);
    let rows = ledger.commit(&site.server, 20).rows;
    site.server.archive_all();

    let place = Scratch::new();
    let said = site.walvault.run(["restore", place.join("data").to_str().expect("plain text")].iter().chain(&LATEST));
    let said = said.expect_ok().stdout;
    for (name, fate) in [("pg_wal", "lies in the data directory now"), ("log", "is not in the backup")] {
        let line = said.lines().find(|line| line.starts_with(&format!("{name} was a link to ")));
        assert!(line.is_some_and(|line| line.ends_with(fate)), "{said}");
    }
    let mut copy = TestServer::over(Major::V17, &place.join("data"));
    copy.start();
    copy.wait_until_writable();
    Ledger::expect_rows(&copy, rows);
    assert!(!copy.pgdata().join("pg_wal").is_symlink() && !copy.pgdata().join("log").exists());
    assert_eq!(fs::read_to_string(copy.pgdata().join("notes")).expect("kept"), "to be kept");

    let wal = place.join("wal");
    let again = site.restore(&[&LATEST[..], &["--waldir", wal.to_str().expect("plain text")]].concat());
    let told = again.report["links"].as_array().expect("a list").iter();
    assert!(!told.clone().any(|link| link["path"] == "pg_wal") && told.count() == 4);
}

#[test]
fn tablespaces_in_each_other_and_in_the_data_directory_come_back() {
    let site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    let places = Scratch::new();
    let inside = site.server.pgdata().join("spaces/inner");
    let around = places.create_dir("around");
    let within = places.create_dir("around/within");
    fs::create_dir_all(&inside).expect("a directory of ours");
    ServerUser::get().take_over(&site.server.pgdata().join("spaces"));
    let spaces = [("around", &around), ("nested", &within), ("among", &inside)];
    for (name, place) in spaces {
        site.server.sql(&format!("create tablespace {name} location '{}'", place.display()));
        site.server
            .sql(&format!("create table in_{name} tablespace {name} as select g from generate_series(1, 1000) g"));
    }
    let oid = |name: &str| site.server.query_one(&format!("select oid from pg_tablespace where spcname = '{name}'"));
    let (outer, nested, inner) = (oid("around"), oid("nested"), oid("among"));
    let mut ledger = Ledger::create(&site.server);
    let files = site.backup();
    let rows = ledger.commit(&site.server, 10).rows;
    site.server
        .sql("insert into in_among values (0); insert into in_nested values (0); insert into in_around values (0)");
    site.server.archive_all();
    let sums =
        "select (select count(*) from in_around), (select count(*) from in_nested), (select count(*) from in_among)";
    let restore = |walvault: &Walvault, more: &[&str]| {
        let place = Scratch::new();
        let data = place.join("data");
        let words = ["restore", data.to_str().expect("plain text")];
        walvault.run(words.iter().chain(&LATEST).chain(more)).expect_ok();
        // PostgreSQL's judge has no idea of such tablespaces: it meets each of their files a second time, and nothing else.
        let judged = tool::verify_backup(Major::V15, &data).expect_code(1).stderr;
        let twice = |line: &str| line.contains("spaces/inner/PG_15_") || line.contains("/within/PG_15_");
        let extra = |line: &str| twice(line) && line.contains("is present on disk but not in the manifest");
        assert!(judged.lines().all(extra), "{judged}");
        let mut copy = TestServer::over(Major::V15, &data);
        copy.start();
        copy.wait_until_writable();
        Ledger::expect_rows(&copy, rows);
        assert_eq!(copy.query_one(sums), "1001|1001|1001");
        let link = |oid: &str| fs::read_link(data.join("pg_tblspc").join(oid)).expect("a link");
        assert_eq!(link(&inner), data.join("spaces/inner"));
        copy.stop(Stop::Fast);
        tool::check_checksums(Major::V15, &data).expect_ok();
        (link(&outer), link(&nested))
    };

    // Each file once: what lies within the data directory is not copied a second time.
    let id = files["id"].as_str().expect("a name");
    let shown = site.walvault.run(["show", id, "--json"]).expect_ok().json();
    let space = shown["tablespaces"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|space| space["oid"].as_u64() == inner.parse().ok());
    assert_eq!(space.expect("it is there")["inside"], "spaces/inner");

    let elsewhere = Scratch::new();
    let mapped =
        [(&outer, "one"), (&nested, "two")].map(|(oid, name)| format!("{oid}={}", elsewhere.join(name).display()));
    let words = ["--tablespace", &mapped[0], "--tablespace", &mapped[1]];
    assert_eq!(restore(&site.walvault, &words), (elsewhere.join("one"), elsewhere.join("two")));

    // A host where nothing of it is left: each goes where it was, one in the other.
    let repo = site.repo.duplicate();
    let walvault = site.walvault.clone().repository(repo.url());
    drop(site);
    fs::remove_dir_all(&around).expect("it is there");
    assert_eq!(restore(&walvault, &[]), (around.clone(), within.clone()));
}

#[test]
fn a_tablespace_that_is_not_there_ends_the_backup() {
    let site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    let place = site.server.create_tablespace("volume");
    site.server.sql("create table far tablespace volume as select g from generate_series(1, 1000) as g; checkpoint");
    let away = place.with_extension("away");
    for put in [false, true] {
        fs::rename(&place, &away).expect("on one file system");
        if put {
            // A mount point without its volume.
            fs::create_dir(&place).expect("a directory of ours");
        }
        let refused = site.try_backup(&[]).expect_code(1);
        assert!(refused.stderr.contains("is its volume mounted?"), "{}", refused.story());
        if put {
            fs::remove_dir(&place).expect("it is empty");
        }
        fs::rename(&away, &place).expect("on one file system");
    }
    assert_eq!(site.listed().len(), 0);
    site.backup();
}
