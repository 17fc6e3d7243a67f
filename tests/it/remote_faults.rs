//! What goes wrong on the way from a server leaves no backup behind, and says what it was.

use std::time::Duration;

use crate::support::process::{COMMAND_LIMIT, run};
use crate::support::replication_proxy::{LARGE, Meddling, ReplicationProxy};
use crate::support::{Chance, Disk, Major, Outcome, Site, Stop, TestServer, soaking, within};

struct Way {
    site: Site,
    proxy: ReplicationProxy,
}

impl Way {
    fn to(major: Major) -> Self {
        let site = Site::of(TestServer::builder(major).segment_mib(1));
        site.server.sql("create table rows as select g, repeat(md5(g::text), 9) from generate_series(1, 3000) as g");
        let proxy = ReplicationProxy::start(site.server.socket_dir());
        Self { site, proxy }
    }

    fn arguments(&self) -> Vec<String> {
        ["backup", "--json", "--fast", "--from", "remote", "--dbname", &self.proxy.conninfo()]
            .map(str::to_owned)
            .to_vec()
    }

    fn backup(&self, meddling: Meddling) -> Outcome {
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
}

/// Returns where the streams of this server can be cut: before each of its messages that is not one of very many.
fn cuts(messages: &[(u8, usize)]) -> Vec<(u8, u64)> {
    let mut seen = std::collections::BTreeMap::new();
    let mut cuts = Vec::new();
    for (tag, _) in messages {
        let nth = seen.entry(*tag).or_insert(0);
        if !matches!(tag, b'd' | b'S' | b'N') {
            cuts.push((*tag, *nth));
        }
        *nth += 1;
    }
    cuts
}

#[test]
fn a_stream_cut_before_any_message_is_no_backup() {
    for major in [Major::V14, Major::V17] {
        let way = Way::to(major);
        way.backup(Meddling::Count).expect_ok();
        let messages = way.proxy.messages();
        let data = messages.iter().filter(|(tag, _)| *tag == b'd').count() as u64;
        let mut cuts = cuts(&messages);
        assert!(cuts.len() > 30 && data > 500, "{messages:?}");
        // The answers to questions are all alike; what a backup consists of comes last.
        let last = cuts.len() - 15;
        let kept = |n: usize| soaking() || n >= last || major == Major::V17 && (n < 4 || n.is_multiple_of(7));
        let mut number = 0..;
        cuts.retain(|_| number.next().is_some_and(kept));
        let chance = Chance::new();
        // Another time it may be somewhat fewer messages.
        cuts.extend((0..if soaking() { 100 } else { 4 }).map(|_| (b'd', chance.below(data / 2))));
        for (tag, nth) in cuts {
            let what = format!("PostgreSQL {major}, cut before {:?} number {nth}", char::from(tag));
            let outcome = way.expect_void(way.backup(Meddling::CutAt(tag, nth)), 1, &what);
            let words = ["the connection to the server was lost", "error: connect to "];
            assert!(words.iter().any(|words| outcome.stderr.contains(words)), "{what}\n{}", outcome.story());
        }
        // What was left behind is in nobody's way.
        way.backup(Meddling::Count).expect_ok();
        assert_eq!(way.site.listed().len(), 2);
    }
}

#[test]
fn a_bit_that_flips_on_the_way_is_found_wherever_it_is() {
    let way = Way::to(Major::V18);
    way.backup(Meddling::Count).expect_ok();
    let large = way.proxy.messages().iter().filter(|(tag, length)| *tag == b'd' && *length > LARGE).count() as u64;
    assert!(large > 50, "{large} large messages");
    let chance = Chance::new();
    for _ in 0..if soaking() { 100 } else { 8 } {
        let (nth, back) = (chance.below(large / 2), chance.below(LARGE as u64 - 1000) as usize);
        let what = format!("message {nth}, byte {back} from its end");
        let outcome = way.expect_void(way.backup(Meddling::Flip(nth, back)), 1, &what);
        assert!(outcome.stderr.contains("the server's manifest"), "{what}\n{}", outcome.story());
    }
}

#[test]
fn a_server_that_stops_in_the_middle_leaves_no_backup() {
    let mut way = Way::to(Major::V15);
    way.backup(Meddling::Count).expect_ok();
    let middle = way.proxy.messages().len() as u64 / 2;
    for how in [Stop::Immediate, Stop::Fast] {
        way.proxy.meddle(Meddling::HoldAfter(middle));
        let backup = way.site.walvault.start(way.arguments());
        within(Duration::from_secs(60), || way.proxy.holds(), "the stream is held");
        way.site.server.stop(how);
        way.proxy.go_on();
        let outcome = backup.wait(COMMAND_LIMIT);
        way.expect_void(outcome, 1, &format!("{how:?}"));
        way.site.server.start();
    }
    way.backup(Meddling::Count).expect_ok();
}

#[test]
fn a_repository_without_room_gets_no_backup() {
    let way = Way::to(Major::V17);
    way.backup(Meddling::Count).expect_ok();
    for (disk, words) in [(Disk::Full, "No space left"), (Disk::ReadOnly, "Read-only file system")] {
        let command = disk.below(way.site.repo.path(), &way.site.walvault.command(way.arguments()));
        let outcome = run(command);
        let outcome = way.expect_void(outcome, 1, words);
        assert!(outcome.stderr.contains(words), "{}", outcome.story());
    }
    way.backup(Meddling::Count).expect_ok();
}
