//! A network that breaks, anywhere: there is no backup then, and what had come is not stored a second time.

use serde_json::Value;

use crate::support::network::Network;
use crate::support::site::backup_of;
use crate::support::{Chance, Ledger, Major, Outcome, Site, TestServer, Walvault, soaking};

const LATEST_CLONE: [&str; 5] = ["--to-latest", "--as", "clone", "--target-action", "promote"];

struct Way {
    site: Site,
    network: Network,
    chance: Chance,
}

impl Way {
    fn new() -> Self {
        let site = Site::of(TestServer::builder(Major::V17).segment_mib(1).set("summarize_wal", "on"));
        let network = Network::to(site.server.socket_dir());
        Self { site, network, chance: Chance::new() }
    }

    /// Rows that do not compress to nothing, in a table of their own.
    fn fill(&self, table: &str, rows: u32) {
        self.site.server.sql(&format!(
            "create table {table} as select g, md5(random()::text) || md5(random()::text) || md5(random()::text) as filling \
             from generate_series(1, {rows}) as g"
        ));
        // Else whoever reads the rows first changes their pages.
        self.site.server.sql(&format!("vacuum (freeze) {table}"));
        self.site.server.sql("checkpoint");
    }

    /// Takes a backup over the network, in packs as small as there are.
    fn backup(&self, breaks_after: Option<u64>, more: &[&str]) -> Outcome {
        self.network.break_after(breaks_after);
        let conninfo = self.network.conninfo();
        let words = ["backup", "--json", "--fast", "--memory", "40", "--from", "remote", "--dbname", &conninfo];
        self.site.walvault.run(words.iter().chain(more))
    }

    /// Has the network break early, somewhere, and late in a backup that takes so many bytes of the server's.
    fn break_thrice(&self, bytes: u64, more: &[&str]) {
        let listed = self.site.listed();
        self.wait_for_another_second(listed.last().expect("one to compare with"));
        let mut cuts = vec![
            self.chance.below(bytes / 4),
            bytes / 4 + self.chance.below(bytes / 2),
            bytes / 100 * 88 + self.chance.below(bytes / 20),
        ];
        cuts.splice(1..1, (0..if soaking() { 60 } else { 0 }).map(|_| self.chance.below(bytes / 4 * 3)));
        for cut in cuts {
            let what = format!("broken after {cut} of {bytes} bytes");
            let outcome = self.backup(Some(cut), more).expect_code(1);
            // That of SQL may be the one that notices, in whichever of its driver's words.
            let words = [
                "the connection to the server was lost",
                "error: connect to ",
                "connection closed",
                "error communicating with the server",
            ];
            assert!(words.iter().any(|words| outcome.stderr.contains(words)), "{what}\n{}", outcome.story());
            assert_eq!(self.site.listed(), listed, "{what}\n{}", outcome.story());
        }
    }

    /// Waits until a backup that begins is named as a later one than this. Names begin with a second: what is cut off in the
    /// same one may be named as an older one, which nobody looks at for what it left.
    fn wait_for_another_second(&self, backup: &str) {
        let (second, _) = backup.split_once('-').expect("a second and some chance");
        let now = "to_char(clock_timestamp() at time zone 'UTC', 'YYYYMMDD\"T\"HH24MISS\"Z\"')";
        self.site.server.wait_until(&format!("select {now} > '{second}'"), "t");
    }

    /// Bytes of all packs.
    fn packs(&self) -> u64 {
        let packs = self.site.repo.find_all("*/packs/*");
        packs.iter().map(|key| std::fs::metadata(self.site.repo.path().join(key)).expect("a pack").len()).sum()
    }
}

fn number(outcome: &Value, name: &str) -> u64 {
    outcome[name].as_u64().unwrap_or_else(|| panic!("{name} in {outcome:#}"))
}

#[test]
fn a_network_that_breaks_anywhere_leaves_no_backup_and_what_came_is_not_stored_again() {
    let way = Way::new();
    let server = &way.site.server;
    let mut ledger = Ledger::create(server);
    way.fill("filled", 70_000);
    let whole = way.backup(None, &["--full"]).expect_ok().json();
    let (bytes, stored) = (way.network.passed(), number(&whole, "stored_bytes"));
    assert!(stored > 4 << 20 && bytes > stored, "{bytes} bytes sent, {stored} stored");

    let before = way.packs();
    way.break_thrice(bytes, &["--full"]);
    let resumed = way.backup(None, &["--full"]).expect_ok().json();
    // Four times it was sent, all or in part; stored it was about once. The last two times alone would make twice as much:
    // what is not found of what was left is stored again, and may be.
    let (added, over) = (way.packs() - before, number(&resumed["taken_over"], "bytes"));
    assert!(added * 10 < stored * 18, "{added} bytes were stored, where a whole one takes {stored}\n{resumed:#}");
    assert!(over * 2 > number(&resumed, "bytes"), "{resumed:#}");

    // The same for what changed. How much that is, one backup shows; the next has nearly as much.
    let change = |round: u32| {
        way.fill(&format!("more{round}"), 40_000 + 40_000 * round);
        server.sql("update filled set g = -g where g % 9 = 0 and abs(g) < 20000; checkpoint");
    };
    change(0);
    let built = way.backup(None, &[]).expect_ok().json();
    assert_eq!((&built["parent"], &built["changes"]["method"]), (&resumed["id"], &Value::from("summaries")));
    let (bytes, stored) = (way.network.passed(), number(&built, "stored_bytes"));
    change(1);
    let before = way.packs();
    way.break_thrice(bytes / 20 * 19, &[]);
    let rows = ledger.commit(server, 20).rows;
    let again = way.backup(None, &[]).expect_ok().json();
    assert_eq!((&again["parent"], &again["changes"]["method"]), (&built["id"], &Value::from("summaries")));
    let (added, over) = (way.packs() - before, number(&again["taken_over"], "bytes"));
    assert!(added * 10 < stored * 18, "{added} bytes were stored, where the one before took {stored}\n{again:#}");
    assert!(over > 3 << 20, "{again:#}");

    // What nobody needs of it goes, and what is needed stays.
    server.archive_all();
    let kept = way.packs();
    let one = Walvault::on(&way.site.repo).env("WALVAULT_RETAIN_BACKUPS", "1").env("WALVAULT_EXPIRE_GRACE", "0");
    one.run(["expire"]).expect_ok();
    assert!(way.packs() < kept && way.site.listed().len() == 1, "{} bytes of {kept} are left", way.packs());
    way.site.walvault.run(["verify", "--read"]).expect_ok();
    let mut restored = way.site.restore(&LATEST_CLONE);
    Ledger::expect_rows(restored.promoted(), rows);
    for table in ["filled", "more0", "more1"] {
        let sum = format!("select count(*), sum(g), sum(hashtext(filling)) from {table}");
        assert_eq!(restored.server.query_one(&sum), server.query_one(&sum), "{table}");
    }
    restored.expect_sound_pages();
}

#[test]
fn a_name_that_leads_to_another_cluster_too_is_found_out() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1).set("summarize_wal", "on"));
    let other = TestServer::builder(Major::V17).segment_mib(1).identity(1).set("summarize_wal", "on").start();
    other.sql("create database elsewhere");
    backup_of(&site.server, &site.walvault, &["--from", "remote"]).expect_ok();
    let network = Network::to_several(vec![site.server.socket_dir(), other.socket_dir()]);
    let conninfo = network.conninfo();
    let words = ["backup", "--json", "--fast", "--from", "remote", "--dbname", &conninfo];
    // SQL answers for another cluster: nothing that it says is believed.
    let taken = site.walvault.run(words).expect_ok();
    assert!(taken.stderr.contains("names of relations not kept"), "{}", taken.story());
    assert!(taken.stderr.contains("leads by SQL to system"), "{}", taken.story());
    let reason = taken.json()["changes"]["reason"].as_str().map(str::to_owned);
    assert!(reason.is_some_and(|reason| reason.contains("leads by SQL to system")), "{}", taken.story());
    let shown = site.walvault.run(["show", taken.json()["id"].as_str().expect("a name"), "--json"]).expect_ok();
    assert!(!shown.stdout.contains("elsewhere"), "{}", shown.story());
    // And so does what should stream the WAL.
    network.break_after(None);
    let refused = site.walvault.run(words.iter().chain(&["--with-wal"])).expect_code(1);
    assert!(refused.stderr.contains("and led to"), "{}", refused.story());
    assert!(refused.stderr.contains("hint: name the server itself"), "{}", refused.story());
    assert_eq!(site.listed().len(), 2);
}
