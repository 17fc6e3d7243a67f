//! What a server sends of its changes, put over an older backup, is the server; or there is no backup.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::incremental::{builds_on_the_backup_before, site};
use crate::support::process::COMMAND_LIMIT;
use crate::support::replication_proxy::{Meddling, ReplicationProxy};
use crate::support::site::backup_of;
use crate::support::{Chance, Ledger, Major, Outcome, Scratch, Site, Snapshot, Stop, soaking, tool, within};

const REMOTE: &[&str] = &["--from", "remote"];

fn remote(site: &Site, arguments: &[&str]) -> Value {
    site.try_backup(&[REMOTE, arguments].concat()).expect_ok().json()
}

#[test]
fn postgresql_17_sends_what_changed() {
    builds_on_the_backup_before(Major::V17, "summaries", |_| REMOTE);
}

#[test]
fn postgresql_18_sends_what_changed_in_turn_with_its_files_being_read() {
    builds_on_the_backup_before(Major::V18, "summaries", |number| if number % 3 == 0 { &[] } else { REMOTE });
}

/// What a copy has of the same moment, and not in the same words.
fn compared(name: &str) -> bool {
    let own = ["backup_label", "global/pg_control", "postgresql.auto.conf", "backup_manifest", "recovery.signal"];
    !own.contains(&name) && !name.starts_with("pg_wal/")
}

fn snapshot(directory: &Path) -> Snapshot {
    Snapshot::of(directory).only(compared)
}

#[test]
fn changes_give_byte_for_byte_what_the_servers_own_tools_make_of_them() {
    for major in [Major::V17, Major::V18] {
        let site = site(major);
        let server = &site.server;
        server.sql(
            "create table rows as select g, md5(g::text) as text from generate_series(1, 60000) as g;
             create table small as select g from generate_series(1, 2000) as g;
             create index on rows (text); create table gone (g int); vacuum (freeze); checkpoint;",
        );
        let place = Scratch::new();
        let own = |name: &str| place.join(name);
        let copy = |name: &str, words: &[&str]| {
            let words = [&["-c", "fast", "-X", "none", "--no-sync"], words].concat();
            tool::base_backup(server, &own(name), &words).expect_ok();
        };
        let first = remote(&site, &[]);
        copy("full", &[]);
        server.sql(
            "update rows set text = 'changed' where g % 3000 = 0; insert into rows select 7, 'new' from generate_series(1, 900);
             update small set g = -g where g = 3; drop table gone; create table later (g int); insert into later values (1);
             vacuum rows; checkpoint;",
        );
        let taken = remote(&site, &[]);
        assert_eq!((&taken["parent"], &taken["changes"]["method"]), (&first["id"], &Value::from("summaries")));
        let manifest = own("full").join("backup_manifest").display().to_string();
        copy("changes", &["--incremental", &manifest]);
        let words = [own("full"), own("changes"), "-o".into(), own("combined")];
        tool::tool(major, "pg_combinebackup", words).expect_ok();
        let restored = site.restore(&["--to-backup-end", "--as", "clone"]);
        let data = restored.server.pgdata();
        // Of visibility maps the log does not tell every change: theirs are not the server's any more.
        let but_maps = |directory: &Path| snapshot(directory).only(|name| !name.ends_with("_vm"));
        let differences = but_maps(&own("combined")).differences(&but_maps(data));
        assert_eq!(differences, Vec::<String>::new(), "PostgreSQL {major}");
        // Nothing has happened since: every file is the server's own.
        let relations = |directory: &Path| {
            Snapshot::of(&directory.join("base"))
                .only(|name| !name.contains("pg_internal.init") && !name.contains("pgsql_tmp"))
        };
        assert_eq!(
            relations(server.pgdata()).differences(&relations(data)),
            Vec::<String>::new(),
            "PostgreSQL {major}"
        );
    }
}

#[test]
fn deleted_rows_do_not_come_back_with_the_pages_that_were_cut_off() {
    for major in [Major::V17, Major::V18] {
        let site = site(major);
        let server = &site.server;
        server.create_tablespace("elsewhere");
        server.sql(
            "create table rows (n int, filling text) tablespace elsewhere;
             insert into rows select g, repeat('x', 500) from generate_series(1, 30000) as g",
        );
        server.sql("vacuum (freeze) rows");
        let first = remote(&site, &[]);
        server.sql("delete from rows where n > 20000");
        server.sql("vacuum (truncate) rows");
        // A file that grows by several pages at once has empty ones at its end, of which the log does not tell.
        server.sql("copy rows from program $$ seq 100001 101500 | sed 's/$/\\t'$(printf 'y%.0s' $(seq 500))/ $$");
        server.sql("checkpoint");
        let path = server.query_one("select pg_relation_filepath('rows')");
        let pages = fs::read(server.pgdata().join(&path)).expect("a relation");
        let empty = pages.chunks(8192).filter(|page| page.iter().all(|byte| *byte == 0)).count();
        assert!(empty > 0 && pages.len() > 1400 * 8192, "{empty} empty pages of {}", pages.len() / 8192);
        let taken = remote(&site, &[]);
        assert_eq!((&taken["parent"], &taken["changes"]["method"]), (&first["id"], &Value::from("summaries")));
        let place = Scratch::new();
        let oid = server.query_one("select oid from pg_tablespace where spcname = 'elsewhere'");
        let mapping = format!("{oid}={}", place.join("space").display());
        let words = ["--to-backup-end", "--as", "clone", "--target-action", "promote", "--tablespace", &mapping];
        let mut restored = site.restore(&words);
        let copy = fs::read(restored.server.pgdata().join(&path)).expect("a relation");
        let pairs = pages.chunks(8192).zip(copy.chunks(8192)).enumerate();
        let wrong: Vec<usize> = pairs.filter(|(_, (one, other))| one != other).map(|(page, _)| page).collect();
        assert_eq!((copy.len(), wrong), (pages.len(), vec![]), "PostgreSQL {major}");
        let copy = restored.promoted();
        assert_eq!(
            copy.query_one("select count(*), count(*) filter (where n between 20001 and 30000) from rows"),
            "21500|0"
        );
        restored.expect_sound_pages();
    }
}

#[test]
fn no_row_is_missing_however_often_a_relation_is_cut_off_and_grows() {
    let site = site(Major::V17);
    let server = &site.server;
    server.sql(
        "create table rows (n int, filling text);
         insert into rows select g, repeat('x', 500) from generate_series(1, 6000) as g",
    );
    server.sql("vacuum (freeze) rows");
    let first = remote(&site, &[]);
    // A summary ends with each checkpoint. The server puts them together in the order in which their directory is read, and
    // may forget then what grew after a cut.
    for round in 0..6 {
        server.sql("delete from rows where n > 3000");
        server.sql("vacuum (truncate) rows");
        server.sql("checkpoint");
        server.sql(&format!("insert into rows select g, repeat('{round}', 500) from generate_series(3001, 6000) as g"));
        server.sql("checkpoint");
    }
    let taken = remote(&site, &[]);
    let (parent, method) = (&taken["parent"], &taken["changes"]["method"]);
    assert!((*parent == first["id"] && method == "summaries") || (parent.is_null() && method == "full"), "{taken:#}");
    let mut restored = site.restore(&["--to-backup-end", "--as", "clone", "--target-action", "promote"]);
    let rows = "select count(*), count(*) filter (where filling = repeat('5', 500)), sum(n) from rows";
    assert_eq!(restored.promoted().query_one(rows), server.query_one(rows));
    restored.expect_sound_pages();
}

/// Files that are named as changes are, left behind by somebody who unpacked a backup in the wrong place.
#[test]
fn a_stray_file_that_is_named_as_changes_are_costs_a_full_backup_at_most() {
    let site = site(Major::V17);
    let server = &site.server;
    server.sql("create table rows as select g, md5(g::text) from generate_series(1, 20000) as g");
    let path = server.query_one("select pg_relation_filepath('rows')");
    let (directory, number) = path.rsplit_once('/').expect("a path");
    let stray = |name: &str, contents: &[u8]| {
        let path = server.pgdata().join(directory).join(name);
        fs::write(&path, contents).expect("a data directory");
        crate::support::user::ServerUser::get().take_over(&path);
    };
    let first = remote(&site, &[]);
    // What is no main fork, a server sends as it is.
    let others = [format!("INCREMENTAL.{number}_vm"), "INCREMENTAL.notes".to_owned(), "INCREMENTAL.".to_owned()];
    others.iter().for_each(|name| stray(name, b"somebody's"));
    server.sql("update rows set g = -g where g % 500 = 0");
    let built = remote(&site, &[]);
    assert_eq!((&built["parent"], &built["changes"]["method"]), (&first["id"], &Value::from("summaries")));
    // Another backup's changes, under the name that this one's may have; of a relation that is not there any more; nonsense.
    let empty = [0xd3ae_1f0d_u32, 0, 3].map(u32::to_le_bytes).concat();
    for (name, contents) in [
        (format!("INCREMENTAL.{number}"), &empty[..]),
        ("INCREMENTAL.99999".to_owned(), &empty[..]),
        (format!("INCREMENTAL.{number}"), &b"nonsense of a length"[..]),
    ] {
        stray(&name, contents);
        let taken = remote(&site, &[]);
        assert_eq!(taken["changes"]["method"], "full", "{name}: {taken:#}");
        let reason = taken["changes"]["reason"].as_str().expect("words");
        assert!(["twice", "changes of"].iter().any(|words| reason.contains(words)), "{name}: {reason}");
        let restored = site.restore(&["--to-backup-end", "--as", "clone"]);
        for name in others.iter().chain([&name]) {
            let restored = fs::read(restored.server.pgdata().join(directory).join(name)).expect("it came back");
            let expected: &[u8] = if others.contains(name) { b"somebody's" } else { contents };
            assert_eq!(restored, expected, "{name}");
        }
        fs::remove_file(server.pgdata().join(directory).join(&name)).expect("ours");
    }
    assert_eq!(remote(&site, &[])["changes"]["method"], "summaries");
}

#[track_caller]
fn expect_full(outcome: Outcome, reason: &str) -> Value {
    let taken = outcome.expect_ok().json();
    assert_eq!((&taken["parent"], &taken["changes"]["method"]), (&Value::Null, &Value::from("full")), "{taken:#}");
    let found = taken["changes"]["reason"].as_str().expect("words");
    assert!(found.contains(reason), "{reason:?} was expected: {found}");
    taken
}

#[test]
fn everything_is_sent_where_changes_cannot_be_trusted() {
    let mut site = site(Major::V17);
    let again = |site: &Site, words: &[&str]| site.try_backup(&[REMOTE, words].concat());
    expect_full(again(&site, &[]), "there is no backup to build on");
    expect_full(again(&site, &["--full"]), "asked for with --full");
    expect_full(again(&site, &["--read-all"]), "asked for with --read-all");
    // Nobody may ask where relations were cut off.
    site.server.sql(
        "revoke execute on function pg_available_wal_summaries() from public; create role least replication login",
    );
    let least = site.server.conninfo().replace("user=postgres", "user=least");
    let words = ["backup", "--json", "--fast", "--from", "remote", "--dbname", &least];
    expect_full(site.walvault.run(words), "where relations were cut off cannot be asked by SQL");
    site.server.sql("grant execute on function pg_available_wal_summaries() to least");
    let taken = site.walvault.run(words).expect_ok().json();
    assert_eq!(taken["changes"]["method"], "summaries", "{taken:#}");
    // The log is not summarized any more, or was not for a while.
    site.server.sql("alter system set summarize_wal = off");
    site.server.reload();
    site.server.wait_until("show summarize_wal", "off");
    expect_full(again(&site, &[]), "summarize_wal is off");
    site.server.stop(Stop::Fast);
    let summaries = site.server.pgdata().join("pg_wal/summaries");
    for summary in fs::read_dir(&summaries).expect("a directory") {
        fs::remove_file(summary.expect("a listed entry").path()).expect("ours");
    }
    site.server.start();
    site.server.sql("create table rows as select g from generate_series(1, 1000) as g; checkpoint");
    site.server.sql("alter system set summarize_wal = on");
    site.server.reload();
    site.server.wait_until("show summarize_wal", "on");
    let newest = expect_full(again(&site, &["--full"]), "--full");
    let built = again(&site, &[]).expect_ok().json();
    assert_eq!(built["parent"], newest["id"], "{built:#}");
    // Another timeline: the summary that touches the switch may hide changes.
    site.server.archive_all();
    site.server.stop(Stop::Fast);
    let mut next = site.restore(&["--to-latest", "--as", "primary", "--target-action", "promote"]);
    let server = next.promoted();
    let taken = expect_full(backup_of(server, &site.walvault, REMOTE), "the timeline changed from 1 to 2");
    let built = backup_of(server, &site.walvault, REMOTE).expect_ok().json();
    // The first summary of a timeline is not believed; the next backup may build on this one.
    let reason = built["changes"]["reason"].as_str().expect("words");
    assert!(built["parent"] == taken["id"] || reason.contains("touches the switch"), "{built:#}");
}

/// A standby begins at its last restart point, which may lie before the end of the backup that its primary gave.
#[test]
fn a_standby_sends_changes_once_it_has_come_past_the_backup_before() {
    let site = site(Major::V17);
    let primary = &site.server;
    // No checkpoint but those of the backups and the one below: a restart point needs one.
    primary.set("max_wal_size", "4GB");
    primary.set("checkpoint_timeout", "1h");
    primary.reload();
    primary.wait_until("show checkpoint_timeout", "1h");
    let mut ledger = Ledger::create(primary);
    ledger.commit(primary, 10);
    remote(&site, &[]);
    primary.archive_all();
    let mut standby = site.restore(&["--as", "standby", "--primary-conninfo", &primary.conninfo()]);
    standby.server.start();
    let taken_of_standby = || {
        // Its end lies in the segment that its primary writes: that has to reach the archive too.
        primary.while_it_switches(|| backup_of(&standby.server, &site.walvault, REMOTE))
    };
    let position = primary.query_one("select pg_current_wal_lsn()");
    standby.server.wait_until(&format!("select pg_last_wal_replay_lsn() >= '{position}'"), "t");
    // The server itself refuses, once it was asked.
    let taken =
        expect_full(taken_of_standby(), "the server sends no changes: take the base backup: manifest requires WAL");
    let rows = ledger.commit(primary, 10).rows;
    primary.sql("checkpoint");
    let position = primary.query_one("select pg_current_wal_lsn()");
    standby.server.wait_until(&format!("select pg_last_wal_replay_lsn() >= '{position}'"), "t");
    standby.server.sql("checkpoint");
    let built = taken_of_standby().expect_ok().json();
    assert_eq!((&built["parent"], &built["changes"]["method"]), (&taken["id"], &Value::from("summaries")), "{built:#}");
    primary.archive_all();
    let id = built["id"].as_str().expect("a name");
    let words = ["--backup", id, "--to-backup-end", "--as", "clone", "--target-action", "promote"];
    Ledger::expect_rows(site.restore(&words).promoted(), rows);
}

struct Way {
    site: Site,
    proxy: ReplicationProxy,
}

impl Way {
    fn new() -> Self {
        let site = site(Major::V18);
        site.server.sql("create table rows as select g, repeat(md5(g::text), 9) from generate_series(1, 9000) as g");
        remote(&site, &[]);
        let proxy = ReplicationProxy::start(site.server.socket_dir());
        Self { site, proxy }
    }

    fn arguments(&self) -> Vec<String> {
        ["backup", "--json", "--fast", "--from", "remote", "--dbname", &self.proxy.conninfo()]
            .map(str::to_owned)
            .to_vec()
    }

    /// Changes something and takes a backup of it.
    fn backup(&self, meddling: Meddling) -> Outcome {
        self.site.server.sql("update rows set g = -g where g % 40 = 0");
        self.proxy.meddle(meddling);
        self.site.walvault.run(self.arguments())
    }

    #[track_caller]
    fn expect_void(&self, outcome: Outcome, listed: usize, what: &str) -> Outcome {
        let outcome = outcome.expect_code(1);
        assert!(outcome.stderr.starts_with("error: "), "{what}\n{}", outcome.story());
        assert_eq!(self.site.listed().len(), listed, "{what}\n{}", outcome.story());
        outcome
    }

    #[track_caller]
    fn expect_built(&self) -> Value {
        let taken = self.backup(Meddling::Count).expect_ok().json();
        assert_eq!(taken["changes"]["method"], "summaries", "{taken:#}");
        taken
    }
}

#[test]
fn changes_that_are_cut_or_flipped_on_the_way_are_no_backup() {
    let mut way = Way::new();
    way.expect_built();
    let messages = way.proxy.messages();
    let upload = messages.iter().filter(|(tag, _)| *tag == b'G').count();
    let data = messages.iter().filter(|(tag, _)| *tag == b'd').count() as u64;
    assert!(upload == 1 && data > 500, "{messages:?}");
    let chance = Chance::new();
    let count = |tag: u8| messages.iter().filter(|(one, _)| *one == tag).count() as u64;
    // Before the manifest is taken, after it, before the stream, in it, before its end and behind it.
    let mut cuts = vec![(b'G', 0), (b'H', 0), (b'c', 0), (b'C', count(b'C') - 1), (b'Z', count(b'Z') - 1)];
    cuts.extend((0..if soaking() { 100 } else { 3 }).map(|_| (b'd', chance.below(data / 2))));
    for (tag, nth) in cuts {
        let what = format!("cut before {:?} number {nth}", char::from(tag));
        let outcome = way.expect_void(way.backup(Meddling::CutAt(tag, nth)), 2, &what);
        assert!(outcome.stderr.contains("the connection to the server was lost"), "{what}\n{}", outcome.story());
    }
    let large =
        messages.iter().filter(|(tag, length)| *tag == b'd' && *length > crate::support::replication_proxy::LARGE);
    let large = large.count() as u64;
    let mut listed = 2;
    for _ in 0..if soaking() { 100 } else { 3 } {
        let nth = chance.below(large / 2);
        let what = format!("message {nth} of {large}");
        let outcome = way.backup(Meddling::Flip(nth, chance.below(15_000) as usize));
        if outcome.code == Some(0) {
            // A heading that is nonsense is found before its checksum is, and everything is sent.
            expect_full(outcome, "that cannot be taken");
            listed += 1;
            continue;
        }
        let outcome = way.expect_void(outcome, listed, &what);
        assert!(outcome.stderr.contains("the server's manifest"), "{what}\n{}", outcome.story());
    }
    // A server that stops leaves nothing behind, and what was left behind is in nobody's way.
    way.proxy.meddle(Meddling::HoldAfter(messages.len() as u64 / 2));
    let backup = way.site.walvault.start(way.arguments());
    within(Duration::from_secs(60), || way.proxy.holds(), "the stream is held");
    way.site.server.stop(Stop::Immediate);
    way.proxy.go_on();
    way.expect_void(backup.wait(COMMAND_LIMIT), listed, "the server stopped");
    way.site.server.start();
    way.expect_built();
}
