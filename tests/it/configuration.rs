//! Configuration outside the data directory, as Debian has it, comes along and comes back beside its original.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::process::{command, run};
use crate::support::scratch::run_directory;
use crate::support::user::ServerUser;
use crate::support::{Ledger, Major, Outcome, Scratch, Site, Snapshot, Stop, TestServer, tool};

const LATEST: [&str; 5] = ["--to-latest", "--as", "clone", "--target-action", "promote"];

/// A site whose configuration lies in `etc/main`, with parts below, beside and far from it.
struct Debian {
    site: Site,
    etc: Scratch,
    rows: u64,
    backup: String,
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a directory of ours");
    fs::write(path, text).unwrap_or_else(|error| panic!("write {path:?}: {error}"));
}

fn debian(major: Major) -> Debian {
    let mut site = Site::of(TestServer::builder(major).segment_mib(1).set("max_connections", "20"));
    site.server.stop(Stop::Fast);
    let etc = Scratch::new();
    let (data, main) = (site.server.pgdata().to_owned(), etc.join("main"));
    fs::create_dir_all(main.join("conf.d/empty.d")).expect("a directory of ours");
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(data.join(name), main.join(name)).expect("on one file system");
    }
    let common = etc.join("common/shared.conf");
    let mut text = fs::read_to_string(main.join("postgresql.conf")).expect("just moved");
    for (name, value) in [("data_directory", &data), ("hba_file", &main.join("pg_hba.conf")), ("include", &common)] {
        text.push_str(&format!("{name} = '{}'\n", value.display()));
    }
    text.push_str(&format!("ident_file = '{}'\ninclude_dir = 'conf.d'\n", main.join("pg_ident.conf").display()));
    text.push_str("include_dir 'conf.d/empty.d'\ninclude_if_exists 'none'\nssl_key_file = '/nowhere/server.key'\n");
    write(&main.join("postgresql.conf"), &text);
    write(&common, "work_mem = '5MB'\n");
    write(&main.join("conf.d/limits.conf"), "max_connections = 77\n");
    write(&main.join("conf.d/limits.conf.old"), "max_connections = broken\n");
    let users = etc.join("users");
    write(&users, "postgres\n");
    write(&main.join("pg_hba.conf"), &format!("local all @{} trust\n", users.display()));
    ServerUser::get().take_over(etc.path());
    site.server.set_config_file(&main.join("postgresql.conf"));
    site.server.start();
    assert_eq!(site.server.query_one("show max_connections"), "77");

    let mut ledger = Ledger::create(&site.server);
    let taken = site.try_backup(&[]).expect_ok();
    assert!(!taken.stderr.contains("warning"), "{}", taken.story());
    let backup = taken.json()["id"].as_str().expect("a name").to_owned();
    let rows = ledger.commit(&site.server, 20).rows;
    site.server.archive_all();
    site.server.stop(Stop::Fast);
    Debian { site, etc, rows, backup }
}

/// Restores in words for people.
fn restore(site: &Site, data: &Path, arguments: &[&str]) -> Outcome {
    let words = [OsStr::new("restore"), data.as_os_str()];
    site.walvault.run(words.into_iter().chain(arguments.iter().map(OsStr::new)))
}

/// Starts a restored server from a configuration that was put up.
fn started(major: Major, data: &Path, configuration: &Path) -> TestServer {
    let mut server = TestServer::over(major, data);
    server.set_config_file(&configuration.join("postgresql.conf"));
    server.start();
    server.wait_until_writable();
    server
}

fn expect_own_places(server: &TestServer, data: &Path, configuration: &Path) {
    let places = "select current_setting('data_directory') || ' ' || current_setting('hba_file') || ' ' \
                  || current_setting('max_connections') || ' ' || current_setting('work_mem')";
    let expected = format!("{} {} 77 5MB", data.display(), configuration.join("pg_hba.conf").display());
    assert_eq!(server.query_one(places), expected);
    // What it reads, it reads from its own directory.
    let foreign = format!(
        "select count(*) from pg_file_settings where sourcefile not like '{}/%' and sourcefile not like '{}/%'",
        configuration.display(),
        data.display()
    );
    assert_eq!(server.query_one(&foreign), "0");
    assert_eq!(server.query_one("select count(*) from pg_hba_file_rules where error is not null"), "0");
}

fn comes_back(major: Major) {
    let Debian { site, etc, rows, backup } = debian(major);
    let production = [site.server.pgdata().to_owned(), etc.path().to_owned()];
    let before: Vec<Snapshot> = production.iter().map(|path| Snapshot::of(path)).collect();
    let main = etc.join("main");
    let shown = site.walvault.run(["show", &backup, "--json"]).expect_ok().json();
    assert_eq!(shown["configuration"]["config_file"], main.join("postgresql.conf").to_str().expect("plain text"));
    assert_eq!(shown["configuration"]["left_out"], serde_json::json!([]));

    // Without a place for it, nothing is started and the last lines say where the configuration was and is to be had.
    let place = Scratch::new();
    let (data, configuration) = (place.join("data"), place.join("conf"));
    site.expect_refused(
        &[&LATEST[..], &["--start"]].concat(),
        64,
        &["--start needs --config-dir", "main/postgresql.conf"],
    );
    let said = restore(&site, &data, &LATEST).expect_ok().stdout;
    let last: Vec<&str> = said.lines().rev().take(2).collect();
    assert!(last[1].contains(main.join("postgresql.conf").to_str().expect("plain text")), "{said}");
    assert!(last[0].ends_with(&format!("next: walvault config {backup} DIR --pgdata {}", data.display())), "{said}");
    assert!(said.contains("raised max_connections = 77"), "{said}");
    assert!(!data.join("postgresql.conf").exists());
    tool::verify_backup(major, &data).expect_ok();

    // It can be had afterwards, and never over what is there.
    let put_up = |directory: &Path, more: &[&OsStr]| {
        let words = [OsStr::new("config"), OsStr::new(&backup), directory.as_os_str()];
        site.walvault.run(words.iter().chain(more))
    };
    let own = [OsStr::new("--pgdata"), data.as_os_str()];
    assert!(put_up(&main, &own).expect_code(1).stderr.contains("is not empty"));
    let said = put_up(&configuration, &own).expect_ok().stdout;
    assert!(!said.contains("ssl_key_file"), "TLS is off: {said}");
    assert!(said.ends_with(&format!("next: pg_ctl -D {} start\n", configuration.display())), "{said}");
    let copy = started(major, &data, &configuration);
    Ledger::expect_rows(&copy, rows);
    expect_own_places(&copy, &data, &configuration);
    drop(copy);
    put_up(&place.join("verbatim"), &[]).expect_ok();
    let verbatim = fs::read(place.join("verbatim/conf.d/limits.conf")).expect("put up");
    assert!(verbatim == fs::read(main.join("conf.d/limits.conf")).expect("production's"));

    // With a place for it, all at once, and the limits are known from it.
    let place = Scratch::new();
    let (data, configuration) = (place.join("data"), place.join("conf"));
    let (text, into) = (configuration.to_str().expect("plain text").to_owned(), main.to_str().expect("plain text"));
    site.expect_refused(&[&LATEST[..], &["--config-dir", into]].concat(), 1, &["is not empty"]);
    let below = data.join("conf");
    let below = ["--config-dir", below.to_str().expect("plain text")];
    assert!(restore(&site, &data, &[&LATEST[..], &below].concat()).expect_code(1).stderr.contains("would hold"));
    let bin = major.program("pg_ctl");
    let bin = bin.parent().and_then(Path::to_str).expect("plain text");
    let socket = format!("unix_socket_directories={}", place.path().display());
    let start = ["--config-dir", &text, "--start", "--pg-bin", bin, "--set", &socket];
    let private = ["--set", "listen_addresses=", "--set", "port=5432"];
    let said = restore(&site, &data, &[&LATEST[..], &start, &private].concat()).expect_ok().stdout;
    assert!(!said.contains("raised") && said.contains("configuration put up in"), "{said}");
    let stop = [OsStr::new("stop"), OsStr::new("-w"), OsStr::new("-D"), data.as_os_str()];
    tool::tool(major, "pg_ctl", stop).expect_ok();
    let copy = started(major, &data, &configuration);
    Ledger::expect_rows(&copy, rows);
    expect_own_places(&copy, &data, &configuration);
    drop(copy);
    for (path, before) in production.iter().zip(&before) {
        before.expect_unchanged(path);
    }
}

#[test]
fn postgresql_15_configuration_in_etc_comes_back() {
    comes_back(Major::V15);
}

#[test]
fn postgresql_18_configuration_in_etc_comes_back() {
    comes_back(Major::V18);
}

#[test]
fn another_reader_finds_the_same_files() {
    let Debian { site, etc, backup, .. } = debian(Major::V17);
    let program = run_directory().join("walvault_reader_of_configuration.py");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/walvault_reader.py"), &program).expect("the reader");
    let place = Scratch::new();
    let mut python = command("/usr/bin/python3");
    python.arg("-B").arg(&program).arg("config").arg(site.repo.path()).args(["main", &backup]).arg(place.join("root"));
    run(python).expect_ok();
    let theirs = |path: &Path| place.join("root").join(path.strip_prefix("/").expect("absolute"));
    for name in ["main/postgresql.conf", "main/pg_hba.conf", "main/conf.d/limits.conf", "common/shared.conf", "users"] {
        let path = etc.join(name);
        let read = |path: PathBuf| fs::read(&path).unwrap_or_else(|error| panic!("read {path:?}: {error}"));
        assert!(read(theirs(&path)) == read(path), "{name}");
    }
    assert!(theirs(&etc.join("main/conf.d/empty.d")).is_dir());
    assert!(!theirs(&etc.join("main/conf.d/limits.conf.old")).exists());
}

#[test]
fn a_part_that_cannot_be_read_is_reported_and_a_whole_one_is_asked_for_in_vain() {
    let Debian { mut site, etc, .. } = debian(Major::V17);
    site.server.start();
    // The server goes on with what it has read.
    fs::remove_file(etc.join("users")).expect("it is there");
    let taken = site.try_backup(&[]).expect_ok();
    let words = format!("warning: configuration file left out: {}", etc.join("users").display());
    assert!(taken.stderr.contains(&words), "{}", taken.story());

    let plain = Site::start(Major::V17);
    plain.backup();
    plain.server.archive_all();
    let place = Scratch::new();
    let directory = place.join("conf");
    let directory = directory.to_str().expect("plain text");
    plain.expect_refused(&[&LATEST[..], &["--config-dir", directory]].concat(), 1, &["leave --config-dir out"]);
    let id = &plain.listed()[0];
    assert!(plain.walvault.run(["config", id, directory]).expect_code(1).stderr.contains("lies in the data directory"));
}

/// Started plainly, the copy's server would run in the directory that its configuration names: production's.
#[test]
fn a_configuration_inside_that_names_production_does_not_lead_there() {
    let mut site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    site.server.set("data_directory", site.server.pgdata().to_str().expect("plain text"));
    site.server.restart();
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    site.server.stop(Stop::Fast);
    let before = Snapshot::of(site.server.pgdata());
    let place = Scratch::new();
    let data = place.join("data");
    let bin = Major::V15.program("pg_ctl");
    let socket = format!("unix_socket_directories={}", place.path().display());
    let start = ["--start", "--pg-bin", bin.parent().and_then(Path::to_str).expect("plain text"), "--set", &socket];
    let private = ["--json", "--set", "listen_addresses=", "--set", "port=5432"];
    let report = restore(&site, &data, &[&LATEST[..], &start, &private].concat()).expect_ok().json();
    let shown = data.display();
    assert_eq!(report["start"], format!("pg_ctl -D {shown} -o \"-c data_directory={shown}\" start"));
    let mut psql = command(Major::V15.program("psql"));
    psql.args(["-X", "-A", "-t", "-U", "postgres", "-p", "5432", "-d", "postgres", "-h"]).arg(place.path());
    psql.args(["-c", "select count(*) || ' ' || current_setting('data_directory') from ledger"]);
    assert_eq!(run(psql).expect_ok().stdout.trim_end(), format!("{rows} {shown}"));
    let stop = [OsStr::new("stop"), OsStr::new("-w"), OsStr::new("-D"), data.as_os_str()];
    tool::tool(Major::V15, "pg_ctl", stop).expect_ok();
    before.expect_unchanged(site.server.pgdata());
}
