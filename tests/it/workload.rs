//! Whatever a cluster goes through while it is backed up, what comes back is what was there: a random sequence of changes
//! of every kind, crashes and new timelines among them, backups that build on each other in between, and restores to
//! moments that were remembered.
//!
//! A moment is a position in the log and a digest of everything that SQL shows at it. Unlogged tables are empty after a
//! recovery, and a sequence may have moved on: PostgreSQL promises no more.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::incremental::expect_same_pages;
use crate::support::session::{Session, words_of};
use crate::support::user::ServerUser;
use crate::support::{Chance, Major, Restored, Site, Stop, TestServer, soaking, tool};

#[test]
fn postgresql_15_comes_back_from_any_workload() {
    comes_back_from_any_workload(Major::V15);
}

#[test]
fn postgresql_17_comes_back_from_any_workload() {
    comes_back_from_any_workload(Major::V17);
}

#[test]
fn postgresql_18_comes_back_from_any_workload() {
    comes_back_from_any_workload(Major::V18);
}

/// A moment that can be returned to.
struct Moment {
    /// A position after everything that is in it and before anything that is not.
    lsn: String,
    contents: String,
}

/// One cluster, and the sequence of changes to it.
struct Workload {
    site: Site,
    chance: Chance,
    /// Names that were given; each is used once.
    names: u32,
    /// What was done, for the message of a failure.
    story: String,
    moments: Vec<Moment>,
}

fn comes_back_from_any_workload(major: Major) {
    for _ in 0..if soaking() { 20 } else { 1 } {
        let chance = Chance::new();
        let server = TestServer::builder(major).segment_mib(1).set("max_prepared_transactions", "10");
        // Each backup builds on the one before, by the server's own summaries where it makes some.
        let server = if major == Major::V15 { server } else { server.set("summarize_wal", "on") };
        let site =
            Site::of(server.set("autovacuum", "on").set("autovacuum_naptime", "1s").set("checkpoint_timeout", "30s"));
        let mut work = Workload { site, chance, names: 0, story: String::new(), moments: Vec::new() };
        work.prepare();
        work.run(if soaking() { 60 } else { 15 });
        for round in 0..if soaking() { 6 } else { 3 } {
            work.back_up_meanwhile();
            work.run(if soaking() { 40 } else { 10 });
            match round % 3 {
                0 => work.crash(),
                1 => work.switch_timeline(),
                _ => {}
            }
            work.run(5);
        }
        work.remember();
        work.site.server.archive_all();
        work.compare();
        work.compare_pages();
    }
}

impl Workload {
    /// The tablespaces come first: replaying their creation beside the living server would be refused.
    fn prepare(&self) {
        for name in ["fast", "slow"] {
            self.site.server.create_tablespace(name);
        }
    }

    /// Makes `steps` changes, and remembers a moment now and then.
    fn run(&mut self, steps: u32) {
        let mut session = self.site.server.session();
        // A prepared transaction holds its locks for longer than anybody wants to wait.
        session.rows("set lock_timeout = '200ms'").expect("it is a setting");
        for _ in 0..steps {
            let sql = self.change(&mut session);
            let _ = writeln!(self.story, "{sql}");
            if let Err(error) = session.rows(&sql) {
                let words = words_of(&error);
                // Two changes may not agree, such as a table that a prepared transaction holds.
                let _ = writeln!(self.story, "-- {words}");
                drop(session.rows("rollback"));
                assert!(words.contains("ERROR"), "{words}\n{}", self.site.server.log());
            }
            if self.chance.below(8) == 0 {
                self.remember();
            }
        }
    }

    fn one_of(&self, session: &mut Session, sql: &str) -> Option<String> {
        let rows = session.rows(sql).unwrap_or_else(|error| panic!("{sql}: {}", words_of(&error)));
        (!rows.is_empty()).then(|| self.chance.pick(&rows)[0].clone())
    }

    /// Returns the next change.
    fn change(&mut self, session: &mut Session) -> String {
        self.names += 1;
        let (new, chance) = (format!("n{}", self.names), &self.chance);
        let many = 1 + chance.below(400);
        let space = *chance.pick(&["pg_default", "fast", "slow"]);
        let table = self.one_of(session, "select relname from pg_class where relkind = 'r' and relname like 'n%'");
        let Some(table) = table else { return create_table(&new, "", space, many) };
        let index = self.one_of(session, "select relname from pg_class where relkind = 'i' and relname like 'n%'");
        let database = self.one_of(session, "select datname from pg_database where datname like 'n%'");
        let sequence = self.one_of(session, "select relname from pg_class where relkind = 'S' and relname like 'n%'");
        let prepared = self.one_of(session, "select gid from pg_prepared_xacts");
        let object = self.one_of(session, "select oid from pg_largeobject_metadata");
        match (chance.below(30), index, database, sequence, prepared, object) {
            (0..=3, ..) => insert(&table, many),
            (4..=5, ..) => format!("update {table} set word = md5(word) where id % {} = 0", 1 + chance.below(5)),
            (6, ..) => format!("delete from {table} where id % {} = 0", 2 + chance.below(5)),
            (7, ..) => format!("vacuum {table}"),
            (8, ..) => format!("vacuum full {table}"),
            (9, ..) => format!("truncate {table}"),
            (10, ..) => format!("drop table {table}"),
            (11..=12, ..) => create_table(&new, "", space, many),
            (13, ..) => create_table(&new, "unlogged", space, many),
            (14..=15, ..) => {
                let method =
                    *chance.pick(&["btree (id)", "hash (word)", "gin (words)", "brin (id)", "btree (word, id)"]);
                format!("create index {new} on {table} using {method} tablespace {space}")
            }
            (16, Some(index), ..) => format!("reindex index {index}"),
            (17, Some(index), ..) => format!("alter index {index} set tablespace {space}"),
            (18..=19, ..) => format!("alter table {table} set tablespace {space}"),
            (20, _, None, ..) | (21, ..) => {
                let strategy = *chance.pick(&["file_copy", "wal_log"]);
                let from = *chance.pick(&["template0", "template1"]);
                format!("create database {new} template {from} strategy {strategy} tablespace {space}")
            }
            (20, _, Some(database), ..) => format!("drop database {database}"),
            (22, _, Some(database), ..) => format!("alter database {database} set tablespace {space}"),
            (23, _, _, Some(sequence), ..) => {
                format!("select nextval('{sequence}') from generate_series(1, {many})")
            }
            (23, ..) => format!("create sequence {new}"),
            (24, _, _, _, Some(prepared), _) => {
                format!("{} prepared '{prepared}'", chance.pick(&["commit", "rollback"]))
            }
            (24, ..) => format!("begin; {}; prepare transaction '{new}'", insert(&table, many)),
            (25, _, _, _, _, Some(object)) => format!("select lo_unlink({object})"),
            (25, ..) => "select lo_from_bytea(0, convert_to(repeat(md5(random()::text), 5000), 'UTF8'))".to_owned(),
            (26, ..) => format!("begin; {}; rollback", insert(&table, many)),
            (27, ..) => format!("alter table {table} set (fillfactor = 70); cluster {table} using {table}_pkey"),
            (28, ..) => format!("alter table {table} alter word type varchar(40)"),
            _ => "checkpoint".to_owned(),
        }
    }

    fn remember(&mut self) {
        let contents = contents_of(&self.site.server);
        let lsn = self.site.server.query_one("select pg_current_wal_insert_lsn()");
        let _ = writeln!(self.story, "-- remembered at {lsn}");
        // What follows has to begin after that position.
        self.site.server.sql("select pg_logical_emit_message(true, 'test', 'after the moment')");
        self.moments.push(Moment { lsn, contents });
    }

    /// Takes a backup while changes go on; the moments in it lie before its end and cannot be returned to.
    fn back_up_meanwhile(&mut self) {
        // The server's files, or what the server sends: each builds on either.
        let from = ["local", "remote"][self.chance.below(2) as usize];
        let _ = writeln!(self.story, "-- backup begins, {from}");
        let (walvault, conninfo) = (self.site.walvault.clone(), self.site.server.conninfo());
        let (ended, mut committed) = (AtomicBool::new(false), false);
        std::thread::scope(|scope| {
            let backup = scope.spawn(|| {
                let outcome = walvault.run(["backup", "--json", "--fast", "--from", from, "--dbname", &conninfo]);
                ended.store(true, Ordering::Relaxed);
                outcome
            });
            while !ended.load(Ordering::Relaxed) {
                self.run(1);
            }
            let outcome = backup.join().expect("a command does not panic");
            // What PostgreSQL could not replay is refused; nothing is wrong with trying again.
            committed = outcome.is_ok();
            assert!(committed || outcome.stderr.contains("and its source dropped"), "{}", outcome.story());
            if committed {
                let method = outcome.json()["changes"]["method"].as_str().expect("a word").to_owned();
                let _ = writeln!(self.story, "-- by {method}");
            }
        });
        if !committed {
            let _ = writeln!(self.story, "-- backup refused");
            return self.back_up_meanwhile();
        }
        let _ = writeln!(self.story, "-- backup ended");
        // A later moment at least.
        self.remember();
    }

    fn crash(&mut self) {
        let _ = writeln!(self.story, "-- crash");
        match self.chance.below(2) {
            0 => self.site.server.kill9(),
            _ => self.site.server.stop(Stop::Immediate),
        }
        self.site.server.start();
        self.site.server.wait_until_writable();
    }

    /// Has the server branch off: it starts as a standby of nobody, and is promoted.
    fn switch_timeline(&mut self) {
        let _ = writeln!(self.story, "-- new timeline");
        self.site.server.stop(Stop::Fast);
        let signal = self.site.server.pgdata().join("standby.signal");
        std::fs::write(&signal, "").expect("a data directory");
        ServerUser::get().take_over(&signal);
        self.site.server.start();
        self.site.server.promote();
        self.site.server.wait_until_writable();
    }

    /// Restores to the latest moment and to one by chance, and compares.
    fn compare(&self) {
        let (last, earlier) = self.moments.split_last().expect("moments were remembered");
        self.expect(&["--to-latest"], last);
        let first = self.site.walvault.run(["list", "--json"]).expect_ok().json()["backups"][0]["stop_lsn"].clone();
        let first = position(first.as_str().expect("a position"));
        let reachable: Vec<&Moment> = earlier.iter().filter(|moment| position(&moment.lsn) > first).collect();
        assert!(!reachable.is_empty(), "no moment lies after the first backup");
        for _ in 0..if soaking() { 5 } else { 1 } {
            let moment = *self.chance.pick(&reachable);
            self.expect(&["--to-lsn", &moment.lsn], moment);
        }
    }

    /// A backup that builds on all the others and one that builds on none come to the same pages.
    fn compare_pages(&self) {
        let [built, full] = [&["--from", "local"][..], &["--from", "local", "--full"]].map(|words| {
            let taken = self.site.try_backup(words).expect_ok().json();
            (taken["id"].as_str().expect("a name").to_owned(), taken["parent"].is_null())
        });
        assert!(!built.1 && full.1);
        expect_same_pages(&self.site, &built.0, &full.0);
    }

    fn expect(&self, target: &[&str], moment: &Moment) {
        let spaces = crate::support::Scratch::new();
        let root = spaces.join("tablespaces");
        let places = ["--tablespace-root", root.to_str().expect("plain text")];
        let arguments = [target, &["--as", "clone", "--target-action", "promote"], &places].concat();
        let mut restored = Restored::by(&self.site.walvault, self.site.server.major(), &arguments);
        let contents = contents_of(restored.promoted());
        assert!(contents == moment.contents, "{target:?}: {}", difference(&moment.contents, &contents));
        restored.expect_planned_end();
        expect_usable(&restored.server);
        tool::check_relations(&restored.server).expect_ok();
        restored.expect_sound_pages();
    }
}

impl Drop for Workload {
    #[allow(clippy::print_stderr, reason = "the test run shows it when the test fails")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what was done:\n{}", self.story);
        }
    }
}

fn create_table(name: &str, unlogged: &str, space: &str, rows: u64) -> String {
    // The sequence of an unlogged table is unlogged since 15. Up to 17 replay does not bring its initial page to the disk
    // before the end of recovery copies it, whoever restored: "bad magic number in sequence".
    let id = match unlogged {
        "unlogged" => "bigint default (random() * 9e15)::bigint",
        _ => "bigserial",
    };
    format!(
        "begin;
         create {unlogged} table {name} (id {id} primary key, word text, words text[]) tablespace {space};
         {};
         commit",
        insert(name, rows)
    )
}

fn insert(table: &str, rows: u64) -> String {
    format!(
        "insert into {table} (word, words)
         select md5(random()::text), array[md5(n::text), repeat('x', (n % 50)::int * 100)] from generate_series(1, {rows}) n"
    )
}

/// Everything that SQL shows: databases, tables with place and contents, indexes, prepared transactions, large objects.
#[track_caller]
fn contents_of(server: &TestServer) -> String {
    let mut contents = server.sql(
        "select 'database', datname, spcname from pg_database join pg_tablespace s on s.oid = dattablespace order by 2;
         select 'prepared', gid from pg_prepared_xacts order by 2;
         select 'object', loid, md5(string_agg(data, '' order by pageno)) from pg_largeobject group by 2 order by 2;
         select 'relation', relname, relkind, relpersistence, coalesce(spcname, '-')
             from pg_class c left join pg_tablespace s on s.oid = reltablespace
             where relname like 'n%' and relnamespace = 'public'::regnamespace order by 2;",
    );
    let tables = server.sql(
        "select format('select ''rows'', %L, count(*), md5(string_agg(t::text, '','' order by id)) from %I t', relname, relname)
         from pg_class where relkind = 'r' and relpersistence = 'p' and relname like 'n%' order by relname",
    );
    for query in tables.lines() {
        let _ = write!(contents, "\n{}", server.sql(&format!("set enable_indexscan = off; {query}")));
    }
    contents
}

/// Every database can be entered, unlogged tables are empty, and every table takes a row: its sequence has not gone back.
#[track_caller]
fn expect_usable(server: &TestServer) {
    for database in server.sql("select datname from pg_database where datallowconn").lines() {
        server.sql_in(database, "select count(*) from pg_class, pg_attribute where attrelid = pg_class.oid");
    }
    let tables = server.sql(
        "select relname, relpersistence from pg_class c where relkind = 'r' and relname like 'n%'
             and not exists (select from pg_locks where relation = c.oid and mode <> 'AccessShareLock' and pid is null)",
    );
    for line in tables.lines() {
        let (table, persistence) = line.split_once('|').expect("two columns");
        if persistence == "u" {
            assert_eq!(server.query_one(&format!("select count(*) from {table}")), "0");
        }
        server.sql(&format!("insert into {table} (word, words) values ('one more', '{{}}')"));
    }
}

fn position(lsn: &str) -> u64 {
    let (high, low) = lsn.split_once('/').expect("an LSN has a slash");
    let half = |digits| u64::from_str_radix(digits, 16).expect("an LSN is hexadecimal");
    half(high) << 32 | half(low)
}

fn difference(expected: &str, found: &str) -> String {
    let missing = expected.lines().filter(|line| !found.lines().any(|other| other == *line));
    let extra = found.lines().filter(|line| !expected.lines().any(|other| other == *line));
    let lines = missing.map(|line| format!("- {line}")).chain(extra.map(|line| format!("+ {line}")));
    lines.collect::<Vec<_>>().join("\n")
}
