//! Rows whose commits are written down outside the server, so that a restored server can be judged by them.
//!
//! The ledger's rows are numbered 1, 2, 3, ... in the order of their commits. A server recovered to a target must hold
//! exactly the rows up to some number: one fewer is lost data, one more is a wrong target, a gap is corruption.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::pg::TestServer;
use super::session::{Session, words_of};

/// One commit that the server has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Rows in the ledger after it: the number of its last row.
    pub rows: u64,
    /// The transaction's id.
    pub xid: u64,
    /// A position after its commit record and before the next one's, as PostgreSQL spells it.
    pub lsn: String,
    /// A moment after its commit and before the next one: RFC 3339 in UTC, with a numeric offset, because
    /// PostgreSQL knows no zone names yet, not even `Z`, when it reads `recovery_target_time`.
    pub time: String,
}

impl Commit {
    /// Returns [`Commit::lsn`] as a number.
    pub fn position(&self) -> u64 {
        let (high, low) = self.lsn.split_once('/').expect("an LSN has a slash");
        let half = |digits| u64::from_str_radix(digits, 16).expect("an LSN is hexadecimal");
        half(high) << 32 | half(low)
    }
}

/// The workload and its record.
#[derive(Debug)]
pub struct Ledger {
    /// Rows that are known to be there.
    rows: u64,
    commits: Vec<Commit>,
    /// Rows of a commit that was sent and never answered.
    in_doubt: u64,
}

/// Contents that follow from the row's number; some 3.5 kB, hardly compressible, stored in the table itself.
const CONTENTS: &str =
    "(select string_agg(md5(ledger_id::text || '/' || part), '') from generate_series(1, 110) as parts (part))";

impl Ledger {
    /// Creates the ledger's table on `server`, as commit number 0 with no rows.
    #[track_caller]
    pub fn create(server: &TestServer) -> Self {
        server.sql(
            "create table ledger (id bigint primary key, contents text not null);
             alter table ledger alter column contents set storage plain;",
        );
        let mut ledger = Self { rows: 0, commits: Vec::new(), in_doubt: 0 };
        ledger.commit(server, 0);
        ledger
    }

    /// Takes up the ledger that a restored `server` holds.
    #[track_caller]
    pub fn over(server: &TestServer) -> Self {
        let mut ledger = Self { rows: 0, commits: Vec::new(), in_doubt: 0 };
        ledger.resume(server);
        ledger
    }

    /// Commits `rows` further rows in one transaction.
    #[track_caller]
    pub fn commit(&mut self, server: &TestServer, rows: u64) -> &Commit {
        let mut session = server.session();
        self.append(&mut session, rows).unwrap_or_else(|error| panic!("{error}\n{}", server.log()));
        self.last()
    }

    /// Commits `rows` further rows, each in a transaction of its own.
    #[track_caller]
    pub fn commit_singly(&mut self, server: &TestServer, rows: u64) -> &Commit {
        let mut session = server.session();
        for _ in 0..rows {
            self.append(&mut session, 1).unwrap_or_else(|error| panic!("{error}\n{}", server.log()));
        }
        self.last()
    }

    /// Commits one transaction of `rows` rows after the other, in a thread, until it is stopped or the server is gone.
    #[track_caller]
    pub fn keep_committing(mut self, server: &TestServer, rows: u64) -> Writing {
        let mut session = server.session();
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) && self.append(&mut session, rows).is_ok() {}
            self
        });
        Writing { stop, thread: Some(thread) }
    }

    /// Returns every acknowledged commit; the first, with no rows, is the table's.
    pub fn commits(&self) -> &[Commit] {
        &self.commits
    }

    /// Returns the last acknowledged commit.
    pub fn last(&self) -> &Commit {
        self.commits.last().expect("the table's own commit is there")
    }

    /// Returns the numbers of rows that a crash may leave: without and with the commit that was never answered.
    pub fn after_crash(&self) -> std::ops::RangeInclusive<u64> {
        self.rows..=self.rows + self.in_doubt
    }

    /// Takes up again after a crash, or a restore to an earlier moment: `server` tells how many rows there are.
    #[track_caller]
    pub fn resume(&mut self, server: &TestServer) {
        self.rows = Self::rows_on(server);
        self.commits.retain(|commit| commit.rows <= self.rows);
        self.commit(server, 0);
    }

    /// Returns how many rows `server` holds, from the table itself.
    #[track_caller]
    pub fn rows_on(server: &TestServer) -> u64 {
        let answer = server.query_one(
            "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off;
             select count(*) from ledger",
        );
        answer.parse().expect("a count is a number")
    }

    /// Panics unless `server` holds exactly the rows 1 to `rows`, each with its own contents.
    #[track_caller]
    pub fn expect_rows(server: &TestServer, rows: u64) {
        if let Err(difference) = Self::compare(server, rows) {
            panic!("{difference}\n{}", server.log());
        }
    }

    /// Tells whether `server` holds exactly the rows 1 to `rows`, each with its own contents.
    ///
    /// # Errors
    /// What is there instead.
    #[track_caller]
    pub fn compare(server: &TestServer, rows: u64) -> Result<(), String> {
        let found = server.query_one(&format!(
            "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off;
             select count(*), count(distinct id), coalesce(min(id), 1), coalesce(max(id), 0),
                    count(*) filter (where contents is distinct from {contents})
             from (select id, id as ledger_id, contents from ledger) as rows",
            contents = CONTENTS
        ));
        let expected = format!("{rows}|{rows}|1|{rows}|0");
        if found == expected {
            return Ok(());
        }
        Err(format!("rows|distinct|first|last|damaged: {expected} was expected, there is {found}"))
    }

    fn append(&mut self, session: &mut Session, rows: u64) -> Result<(), String> {
        let after = self.rows + rows;
        let statements = format!(
            "begin;
             insert into ledger select ledger_id, {CONTENTS}
                 from generate_series({first}, {after}) as ids (ledger_id);
             select pg_current_xact_id();
             commit;
             select pg_current_wal_insert_lsn(),
                    to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"');",
            first = self.rows + 1,
        );
        self.in_doubt = rows;
        let answers =
            session.rows(&statements).map_err(|error| format!("append to the ledger: {}", words_of(&error)))?;
        (self.rows, self.in_doubt) = (after, 0);
        let [xid, end] = answers.as_slice() else { panic!("two rows were expected: {answers:?}") };
        self.commits.push(Commit {
            rows: after,
            xid: xid[0].parse().expect("a transaction id is a number"),
            lsn: end[0].clone(),
            time: end[1].clone(),
        });
        Ok(())
    }
}

/// A ledger that a thread is writing.
#[derive(Debug)]
pub struct Writing {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Ledger>>,
}

impl Writing {
    /// Ends the writing after the commit under way, and returns the record.
    #[track_caller]
    pub fn stop(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("stopped only once").join().expect("the writer does not panic")
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
