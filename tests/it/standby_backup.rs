//! A backup of a standby's own files is as good as its primary's, or there is none.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::site::backup_of;
use crate::support::{Ledger, Major, Outcome, Restored, Scratch, Site, TestServer};

const LIMIT: Duration = Duration::from_secs(60);

/// A primary that archives, and a standby that follows it.
fn pair(major: Major) -> (Site, Restored, Scratch) {
    let site = Site::of(TestServer::builder(major).segment_mib(1));
    let primary = &site.server;
    primary.create_tablespace("elsewhere");
    primary.sql("create table moved tablespace elsewhere as select g from generate_series(1, 1000) as g");
    site.backup();
    primary.archive_all();
    let place = Scratch::new();
    let oid = primary.query_one("select oid from pg_tablespace where spcname = 'elsewhere'");
    let mapping = format!("{oid}={}", place.join("standbys").display());
    let words = ["--as", "standby", "--primary-conninfo", &primary.conninfo(), "--tablespace", &mapping];
    let mut standby = site.restore(&words);
    standby.server.start();
    catch_up(&site, &standby);
    (site, standby, place)
}

fn catch_up(site: &Site, standby: &Restored) {
    let position = site.server.query_one("select pg_current_wal_lsn()");
    standby.server.wait_until(&format!("select pg_last_wal_replay_lsn() >= '{position}'"), "t");
}

fn local(server: &TestServer, site: &Site, arguments: &[&str]) -> Outcome {
    backup_of(server, &site.walvault, &[&["--from", "local"], arguments].concat())
}

#[test]
fn postgresql_15_standbys_files_come_back_whole() {
    standbys_files_come_back_whole(Major::V15);
}

#[test]
fn postgresql_17_standbys_files_come_back_whole() {
    standbys_files_come_back_whole(Major::V17);
}

fn standbys_files_come_back_whole(major: Major) {
    let (site, standby, place) = pair(major);
    let primary = &site.server;
    let writing = Ledger::create(primary).keep_committing(primary, 2);
    primary.wait_until("select count(*) > 20 from ledger", "t");
    catch_up(&site, &standby);
    let ids = primary.while_it_switches(|| {
        ["--full", "--read-all"].map(|basis| {
            let taken = local(&standby.server, &site, &[basis]).expect_ok().json();
            taken["id"].as_str().expect("a name").to_owned()
        })
    });
    let ledger = writing.stop();
    primary.archive_all();
    let oid = primary.query_one("select oid from pg_tablespace where spcname = 'elsewhere'");
    for (number, id) in ids.iter().enumerate() {
        for (target, end) in [("--to-latest", Some(ledger.last().rows)), ("--to-backup-end", None)] {
            let mapping = format!("{oid}={}", place.join(&format!("{number}{target}")).display());
            let words =
                [target, "--backup", id, "--as", "clone", "--target-action", "promote", "--tablespace", &mapping];
            let mut restored = site.restore(&words);
            let copy = restored.promoted();
            Ledger::expect_rows(copy, end.unwrap_or_else(|| Ledger::rows_on(copy)));
            assert_eq!(copy.query_one("select count(*) from moved"), "1000");
            restored.expect_sound_pages();
        }
    }
}

/// A backup of the standby that has begun, and holds still.
fn begun(standby: &Restored, site: &Site) -> crate::support::process::Running {
    let conninfo = standby.server.conninfo();
    for rate in ["8MiB", "4MiB", "2MiB", "1MiB"] {
        let words =
            ["backup", "--json", "--fast", "--full", "--from", "local", "--dbname", &conninfo, "--rate-limit", rate];
        let mut backup = site.walvault.start(words);
        let since = Instant::now();
        let asked = "select count(*) from pg_stat_activity where application_name = 'walvault' and state = 'idle' \
                     and query ~ 'pg_backup_start'";
        while backup.is_running() {
            if standby.server.query_one(asked) == "1" {
                backup.signal(Signal::STOP);
                if backup.is_running() && standby.server.query_one(asked) == "1" {
                    return backup;
                }
                break;
            }
            assert!(since.elapsed() < LIMIT, "the backup does not begin");
        }
        backup.kill9();
    }
    panic!("every backup ended before it could be held")
}

#[test]
fn a_standby_that_is_promoted_or_lacks_full_pages_gives_no_backup_and_another_ones_files_are_not_taken_for_its_own() {
    let (site, standby, place) = pair(Major::V15);
    let primary = &site.server;
    let before = site.listed();

    // A second standby of the same primary, on the same host: what tells them apart is who writes there.
    let oid = primary.query_one("select oid from pg_tablespace where spcname = 'elsewhere'");
    let mapping = format!("{oid}={}", place.join("seconds").display());
    let words = ["--as", "standby", "--primary-conninfo", &primary.conninfo(), "--tablespace", &mapping];
    let mut second = site.restore(&words);
    second.server.start();
    catch_up(&site, &second);
    for (server, other) in [(&standby.server, &second.server), (&standby.server, primary), (primary, &standby.server)] {
        let theirs = other.pgdata().to_str().expect("plain text");
        let refused = local(server, &site, &["--pgdata", theirs]).expect_code(78);
        assert!(refused.stderr.contains("is not where the server that was connected to"), "{}", refused.story());
    }

    // Pages that were logged only in part cannot be made whole after a torn copy.
    primary.set("full_page_writes", "off");
    primary.reload();
    primary.wait_until("show full_page_writes", "off");
    primary.sql("checkpoint; create table torn as select g from generate_series(1, 1000) as g");
    catch_up(&site, &standby);
    let refused = local(&standby.server, &site, &[]).expect_code(1);
    assert!(refused.stderr.contains("full_page_writes=off"), "{}", refused.story());
    primary.set("full_page_writes", "on");
    primary.reload();
    primary.wait_until("show full_page_writes", "on");
    primary.sql("checkpoint");
    catch_up(&site, &standby);

    let mut backup = begun(&standby, &site);
    standby.server.promote();
    backup.signal(Signal::CONT);
    let refused = backup.wait(LIMIT * 2).expect_code(1);
    assert!(refused.stderr.contains("promoted during online backup"), "{}", refused.story());
    assert_eq!(site.listed(), before);
}

#[test]
fn of_several_hosts_a_standby_that_is_not_too_far_behind_is_taken_and_else_the_primary() {
    let (site, standby, _place) = pair(Major::V17);
    let primary = &site.server;
    // A transaction that the standby knows the age of.
    primary.sql("create table known (g int)");
    catch_up(&site, &standby);
    let word = |server: &TestServer, name: &str| {
        let conninfo = server.conninfo();
        let found = conninfo.split(' ').find_map(|word| word.strip_prefix(name)).map(str::to_owned);
        found.unwrap_or_else(|| panic!("{name} in {conninfo}"))
    };
    let both = |name: &str| format!("{name}{},{}", word(primary, name), word(&standby.server, name));
    let asked = |attrs: &str, more: &[&str]| {
        let conninfo = format!(
            "{} {} user=postgres dbname=postgres connect_timeout=60 target_session_attrs={attrs}",
            both("host="),
            both("port=")
        );
        let words = ["backup", "--json", "--fast", "--dbname", &conninfo];
        primary.while_it_switches(|| site.walvault.run(words.iter().chain(more)))
    };
    let of = |outcome: Outcome| {
        let source = outcome.expect_ok().json()["source"].clone();
        let text = |name: &str| source[name].as_str().expect("a text").to_owned();
        (text("from"), text("role"), text("reason"))
    };
    let seen = "the server's data directory is seen on this host";

    let taken = asked("prefer-standby", &["--max-standby-lag", "3600"]);
    assert!(taken.stderr.contains(", a standby that is "), "{}", taken.story());
    assert_eq!(of(taken), ("local".to_owned(), "standby".to_owned(), seen.to_owned()));
    assert_eq!(of(asked("primary", &[])).1, "primary");

    // It was told of more than it has replayed, and that is too old at once.
    standby.server.sql("select pg_wal_replay_pause()");
    standby.server.wait_until("select pg_get_wal_replay_pause_state()", "paused");
    primary.sql("create table more as select g from generate_series(1, 1000) as g");
    standby.server.wait_until("select pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()", "t");
    let taken = asked("prefer-standby", &["--max-standby-lag", "0"]);
    let words = "the primary, since no standby will do: ";
    assert!(taken.stderr.contains(words), "{}", taken.story());
    assert_eq!(of(taken), ("local".to_owned(), "primary".to_owned(), seen.to_owned()));
    let refused = asked("standby", &["--max-standby-lag", "0"]).expect_code(1);
    assert!(refused.stderr.contains("no host will do for a backup"), "{}", refused.story());
    standby.server.sql("select pg_wal_replay_resume()");

    // The data directory on this host is another's than the one that was chosen.
    catch_up(&site, &standby);
    let theirs = primary.pgdata().to_str().expect("plain text");
    let (from, role, reason) = of(asked("prefer-standby", &["--max-standby-lag", "3600", "--pgdata", theirs]));
    assert_eq!((from.as_str(), role.as_str()), ("remote", "standby"));
    assert!(reason.contains("is not the data directory of the server"), "{reason}");
}
