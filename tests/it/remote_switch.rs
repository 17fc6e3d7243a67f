//! A server that is promoted or restarted while it sends leaves no backup, whether it sends everything or what changed.

use std::time::Duration;

use crate::incremental::site;
use crate::support::process::COMMAND_LIMIT;
use crate::support::replication_proxy::{Meddling, ReplicationProxy};
use crate::support::{Ledger, Major, Outcome, Restored, Site, Stop, TestServer, within};

/// The way to a server, and how many messages it sends in a backup.
struct Way {
    proxy: ReplicationProxy,
    messages: u64,
}

impl Way {
    fn to(server: &TestServer) -> Self {
        Self { proxy: ReplicationProxy::start(server.socket_dir()), messages: 0 }
    }

    fn words(&self) -> Vec<String> {
        ["backup", "--json", "--fast", "--from", "remote", "--dbname", &self.proxy.conninfo()]
            .map(str::to_owned)
            .to_vec()
    }

    /// Takes a backup that builds on the one before, and returns its name.
    #[track_caller]
    fn expect_built(&mut self, site: &Site) -> String {
        self.proxy.meddle(Meddling::Count);
        let taken = site.server.while_it_switches(|| site.walvault.run(self.words())).expect_ok();
        assert_eq!(taken.json()["changes"]["method"], "summaries", "{}", taken.story());
        self.messages = self.proxy.messages().len() as u64;
        assert!(self.messages > 500, "{} messages", self.messages);
        taken.json()["id"].as_str().expect("a name").to_owned()
    }

    /// Begins a backup, has something happen to the server in the middle of it, and expects that there is none.
    #[track_caller]
    fn expect_void(&self, site: &mut Site, more: &[&str], happens: impl FnOnce(&mut Site), reasons: &[&str]) {
        let listed = site.listed();
        self.proxy.meddle(Meddling::HoldAfter(self.messages / 2));
        let words = self.words();
        let words: Vec<&str> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let backup = site.walvault.start(words);
        within(Duration::from_secs(60), || self.proxy.holds(), "the stream is held");
        happens(site);
        self.proxy.go_on();
        let outcome: Outcome = backup.wait(COMMAND_LIMIT).expect_code(1);
        assert!(reasons.iter().any(|reason| outcome.stderr.contains(reason)), "{reasons:?}\n{}", outcome.story());
        assert_eq!(site.listed(), listed, "{}", outcome.story());
    }
}

/// A standby that has come past everything that its primary has done, to a restart point.
fn standby_of(site: &Site) -> Restored {
    let mut standby = site.restore(&["--as", "standby", "--primary-conninfo", &site.server.conninfo()]);
    standby.server.start();
    catch_up(site, &standby);
    standby
}

fn catch_up(site: &Site, standby: &Restored) {
    site.server.sql("update rows set g = -g where g % 40 = 0; checkpoint");
    let position = site.server.query_one("select pg_current_wal_lsn()");
    standby.server.wait_until(&format!("select pg_last_wal_replay_lsn() >= '{position}'"), "t");
    standby.server.sql("checkpoint");
}

const PROMOTED: &[&str] = &["the standby was promoted during online backup"];
const RESTARTED: &[&str] = &["terminating connection", "the connection to the server was lost"];

#[test]
fn postgresql_17_that_is_promoted_or_restarted_leaves_no_backup() {
    leaves_no_backup(Major::V17, &[&[]]);
}

#[test]
fn postgresql_18_that_is_promoted_or_restarted_leaves_no_backup() {
    leaves_no_backup(Major::V18, &[&[], &["--full"]]);
}

fn leaves_no_backup(major: Major, promoted: &[&[&str]]) {
    let mut site = site(major);
    let mut ledger = Ledger::create(&site.server);
    ledger.commit(&site.server, 10);
    site.server.sql("create table rows as select g, repeat(md5(g::text), 9) from generate_series(1, 9000) as g");
    site.try_backup(&["--from", "remote"]).expect_ok();
    site.server.archive_all();
    for more in promoted {
        let standby = standby_of(&site);
        let mut way = Way::to(&standby.server);
        way.expect_built(&site);
        catch_up(&site, &standby);
        way.expect_void(&mut site, more, |_| standby.server.promote(), PROMOTED);
    }
    // Its primary goes on, and so do its backups.
    let mut way = Way::to(&site.server);
    way.expect_built(&site);
    for (more, how) in [(&[][..], Stop::Immediate), (&["--full"], Stop::Fast)] {
        site.server.sql("update rows set g = -g where g % 40 = 0");
        let restart = |site: &mut Site| {
            site.server.stop(how);
            site.server.start();
        };
        way.expect_void(&mut site, more, restart, RESTARTED);
    }
    let rows = ledger.commit(&site.server, 10).rows;
    let id = way.expect_built(&site);
    let mut restored =
        site.restore(&["--backup", &id, "--to-backup-end", "--as", "clone", "--target-action", "promote"]);
    Ledger::expect_rows(restored.promoted(), rows);
    restored.expect_sound_pages();
}
