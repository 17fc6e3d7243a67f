//! The agent: the same answers through it as without it, and whatever befalls it, nothing is lost.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::pg::ServerBuilder;
use crate::support::process::{COMMAND_LIMIT, Running, command, run};
use crate::support::user::ServerUser;
use crate::support::{
    Chance, Ledger, Major, Outcome, Restored, Scratch, Site, Stop, TestRepo, TestServer, Walvault, soaking, within,
};

/// How long a test waits for what comes in any case.
const LIMIT: Duration = Duration::from_secs(60);

/// A place for sockets and scratch, and calls that know of it.
struct Place {
    place: Scratch,
}

impl Place {
    fn new() -> Self {
        let place = Scratch::new();
        place.create_dir("run");
        place.create_dir("scratch");
        Self { place }
    }

    fn socket(&self) -> PathBuf {
        self.place.join("run/main.sock")
    }

    /// Commands start no helper here: it would answer in the agent's place.
    fn variables(&self) -> [(&'static str, String); 3] {
        let path = |name: &str| self.place.join(name).display().to_string();
        let directories = [("WALVAULT_RUNTIME_DIR", path("run")), ("WALVAULT_SCRATCH_DIR", path("scratch"))];
        let [runtime, scratch] = directories;
        [runtime, scratch, ("WALVAULT_HELPER", "0".to_owned())]
    }

    fn calls(&self, walvault: &Walvault) -> Walvault {
        self.variables().into_iter().fold(walvault.clone(), |calls, (name, value)| calls.env(name, value))
    }

    fn server(&self, builder: ServerBuilder) -> ServerBuilder {
        self.variables().into_iter().fold(builder, |builder, (name, value)| builder.env(name, value))
    }

    /// Starts an agent and waits until it answers.
    #[track_caller]
    fn agent(&self, walvault: &Walvault) -> Running {
        let mut agent = self.calls(walvault).start(["agent", "--verbose"]);
        within(LIMIT, || self.page("/healthz").is_some() || !agent.is_running(), "the agent answers");
        if !agent.is_running() {
            panic!("{}", agent.wait(Duration::from_secs(1)).story());
        }
        agent
    }

    /// Asks the agent for a page, as people do with curl.
    fn page(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        Some(reply)
    }

    /// Has the agent archive all that waits, while the archiver itself cannot: the first file is passed by hand.
    #[track_caller]
    fn archive_ahead(&self, site: &Site, waiting: &[String]) {
        let calls = self.calls(&site.walvault).in_directory(site.server.pgdata());
        let first = format!("pg_wal/{}", waiting[0]);
        let ahead = || {
            // Passed again: what was listed less than a second ago is not listed anew.
            calls.run(["wal", "push", &first]).expect_ok();
            self.metric(LOOKED_AHEAD) + 1 >= waiting.len() as u64
        };
        within(LIMIT, ahead, "all that waits is archived ahead");
    }

    /// Has the agent fetch ahead for a directory that has not begun to recover: `names` are fetched by hand, the last one
    /// being a segment, and at least so many after it are waited for.
    #[track_caller]
    fn fetch_ahead(&self, walvault: &Walvault, data: &Path, names: &[&str], segments: u64) {
        let calls = self.calls(walvault).in_directory(data);
        let wanted = data.join("pg_wal/WANTED");
        for name in names {
            calls.run(["wal", "fetch", name, "pg_wal/WANTED"]).expect_ok();
            fs::remove_file(&wanted).expect("it was served");
        }
        let here = || self.metric("walvault_wal_prefetched_bytes") >= segments << 20;
        within(LIMIT, here, "the next segments are fetched ahead");
    }

    #[track_caller]
    fn metric(&self, name: &str) -> u64 {
        let page = self.page("/metrics").expect("the agent answers");
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name}\n{page}")).parse().expect("a number")
    }
}

const LOOKED_AHEAD: &str = "walvault_step_duration_seconds_count{step=\"look_ahead\"}";

/// Returns the segment, of 1 MiB and timeline 1, in which a backup begins.
fn first_segment(backup: &serde_json::Value) -> String {
    let start = backup["start_lsn"].as_str().expect("a position");
    let (high, low) = start.split_once('/').expect("an LSN has a slash");
    let number = u64::from_str_radix(low, 16).expect("an LSN is hexadecimal") >> 20;
    format!("00000001{:0>8}{number:08X}", high)
}

/// A server that archives where an agent may be.
fn site(place: &Place, builder: ServerBuilder) -> Site {
    Site::of(place.server(builder.segment_mib(1)))
}

#[test]
fn archiving_and_recovery_through_the_agent_on_postgresql_15() {
    archiving_and_recovery_through_the_agent(Major::V15);
}

#[test]
fn archiving_and_recovery_through_the_agent_on_postgresql_18() {
    archiving_and_recovery_through_the_agent(Major::V18);
}

fn archiving_and_recovery_through_the_agent(major: Major) {
    let place = Place::new();
    let mut agent;
    let (site, mut ledger, backup) = {
        let repo = TestRepo::new();
        let walvault = Walvault::on(&repo);
        walvault.run(["init"]).expect_ok();
        agent = place.agent(&walvault);
        let builder = place.server(TestServer::builder(major).segment_mib(1));
        let server = builder.archive_command(walvault.archive_command()).start();
        let site = Site { server, repo, walvault };
        let ledger = Ledger::create(&site.server);
        let backup = site.backup();
        (site, ledger, backup)
    };
    site.server.wait_nothing_waits();
    // A backlog, so that there is something to be ahead of.
    site.server.set_archive_command("exit 1");
    ledger.commit(&site.server, 3000);
    site.server.switch_wal();
    let waiting = site.server.waiting();
    assert!(waiting.len() > 10, "{waiting:?}");
    place.archive_ahead(&site, &waiting);
    site.server.set_archive_command(&site.walvault.archive_command());
    site.server.archive_all();
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    site.server.wait_until("select archived_count > 10 from pg_stat_archiver", "t");
    let archived: u64 = site.server.query_one("select archived_count from pg_stat_archiver").parse().expect("a number");
    assert!(place.metric("walvault_wal_archived_files_total") >= archived, "the agent archived them all");
    assert_eq!(place.metric("walvault_wal_backlog_files"), 0);
    assert!(place.metric("walvault_wal_newest_archived_age_seconds") < 600);

    let arguments = ["--to-latest", "--as", "clone", "--target-action", "promote"];
    let mut restored = Restored::by(&site.walvault, major, &arguments);
    place.variables().into_iter().for_each(|(name, value)| restored.server.set_env(name, value));
    place.fetch_ahead(&site.walvault, restored.server.pgdata(), &[&first_segment(&backup)], 10);
    Ledger::expect_rows(restored.promoted(), rows);
    assert!(place.metric("walvault_wal_fetched_files_total") > 10);
    assert!(place.metric("walvault_wal_prefetch_hits_total") > 5, "{:?}", place.page("/metrics"));
    // Silent on success: the servers' logs hold no word of ours.
    for server in [&site.server, &restored.server] {
        assert!(!server.log().contains("walvault:"), "{}", server.log());
    }
    let nothing_left = || fs::read_dir(place.place.join("scratch")).expect("a directory").next().is_none();
    within(LIMIT, nothing_left, "what was fetched ahead is gone");
    agent.signal(Signal::TERM);
    let ended = agent.wait(COMMAND_LIMIT).expect_ok();
    assert!(!place.socket().exists());
    for words in ["INFO  archived ahead segment=", "INFO  fetched segment=", " elapsed_ms="] {
        assert!(ended.stderr.contains(words), "{words}\n{}", ended.story());
    }
    // What was archived ahead is not archived once more when PostgreSQL asks for it.
    assert!(ended.stderr.matches("INFO  was archived ahead segment=").count() > 3, "{}", ended.story());
}

#[test]
fn an_agent_that_is_killed_again_and_again_costs_no_row() {
    let place = Place::new();
    let site = site(&place, TestServer::builder(Major::V17));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    let writing = ledger.keep_committing(&site.server, 30);
    let chance = Chance::new();
    for _ in 0..if soaking() { 100 } else { 8 } {
        let mut agent = place.agent(&site.walvault);
        std::thread::sleep(Duration::from_millis(chance.below(700)));
        agent.kill9();
        assert!(place.socket().exists(), "what a killed agent leaves");
        std::thread::sleep(Duration::from_millis(chance.below(200)));
    }
    ledger = writing.stop();
    let mut agent = place.agent(&site.walvault);
    let rows = ledger.commit(&site.server, 5).rows;
    site.server.archive_all();
    assert_eq!(site.server.query_one("select failed_count from pg_stat_archiver"), "0", "{}", site.server.log());

    // And recovery, with the agent dying under it.
    let arguments = ["--to-latest", "--as", "clone", "--target-action", "promote"];
    let mut restored = Restored::by(&site.walvault, Major::V17, &arguments);
    place.variables().into_iter().for_each(|(name, value)| restored.server.set_env(name, value));
    restored.server.launch();
    std::thread::sleep(Duration::from_millis(chance.below(1000)));
    agent.kill9();
    let _agent = place.agent(&site.walvault);
    restored.server.wait_until_writable();
    Ledger::expect_rows(&restored.server, rows);
}

/// A stopped server with archived segments and one that is not.
struct Stopped {
    site: Site,
    place: Place,
    archived: Vec<String>,
    unarchived: String,
}

impl Stopped {
    fn new() -> Self {
        let place = Place::new();
        let mut site = site(&place, TestServer::builder(Major::V15));
        site.server.sql("create table t as select 1 as one");
        let archived = (0..4).map(|_| site.server.archive_all()).collect();
        site.server.set_archive_command("exit 1");
        let unarchived = site.server.switch_wal();
        site.server.stop(Stop::Immediate);
        Self { site, place, archived, unarchived }
    }

    fn calls(&self) -> Walvault {
        let calls = self.site.walvault.clone().in_directory(self.site.server.pgdata());
        self.place.calls(&calls).env("WALVAULT_HOLE_TIMEOUT", "0").env("WALVAULT_STANDBY_HOLE_TIMEOUT", "0")
    }

    fn push(&self, calls: &Walvault, name: &str) -> Outcome {
        calls.run(["wal", "push", &format!("pg_wal/{name}")])
    }

    fn fetch(&self, calls: &Walvault, signal: &str, name: &str) -> Outcome {
        let data = self.site.server.pgdata();
        for file in ["recovery.signal", "standby.signal"] {
            drop(fs::remove_file(data.join(file)));
            if file == signal {
                fs::write(data.join(file), "").expect("the data directory is writable");
            }
        }
        drop(fs::remove_file(data.join("pg_wal/RECOVERYXLOG")));
        let outcome = calls.run(["wal", "fetch", name, "pg_wal/RECOVERYXLOG"]);
        assert_eq!(outcome.is_ok(), data.join("pg_wal/RECOVERYXLOG").exists(), "{}", outcome.story());
        if outcome.is_ok() {
            let served = fs::read(data.join("pg_wal/RECOVERYXLOG")).expect("it was served");
            assert!(served == fs::read(data.join("pg_wal").join(name)).expect("it is there"), "{name}");
        }
        assert!(!data.join("pg_wal/RECOVERYXLOG.walvault").exists(), "{}", outcome.story());
        outcome
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.site.server.pgdata().join("pg_wal").join(name);
        fs::write(&path, bytes).expect("pg_wal is writable");
        ServerUser::get().take_over(&path);
    }

    /// Statuses and words of a push and a fetch of everything, in every mode.
    fn answers(&self) -> Vec<(String, Option<i32>, String)> {
        let calls = self.calls();
        let mut answers = Vec::new();
        let hole = &self.archived[1];
        for signal in ["recovery.signal", "standby.signal", "none"] {
            let absent = self.unarchived.as_str();
            for name in [&self.archived[0], hole, &self.archived[3], absent, "00000001.history", "00000002.history"] {
                let outcome = self.fetch(&calls, signal, name);
                answers.push((format!("fetch {name} {signal}"), outcome.code, outcome.stderr));
            }
        }
        for name in [self.archived[0].as_str(), "00000003.history", "0000000100000000000000FF"] {
            let outcome = self.push(&calls, name);
            answers.push((format!("push {name}"), outcome.code, outcome.stderr));
        }
        answers
    }
}

#[test]
fn the_answer_is_the_same_with_an_agent_and_without_one() {
    let stopped = Stopped::new();
    // A hole; another file under a taken name; a segment that is none.
    stopped.site.repo.remove(&stopped.site.repo.find(&format!("*/{}.zst", stopped.archived[1])));
    let taken = fs::read(stopped.site.server.pgdata().join("pg_wal").join(&stopped.archived[0])).expect("it is there");
    let mut other = taken.clone();
    *other.last_mut().expect("bytes") ^= 1;
    stopped.write("0000000100000000000000FF", &taken);
    let without = stopped.answers();
    let mut codes: Vec<_> = without.iter().filter_map(|(_, code, _)| *code).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes, [0, 1, 200], "{without:?}");
    let _agent = stopped.place.agent(&stopped.site.walvault);
    let through = stopped.answers();
    assert_eq!(without, through);
    assert!(stopped.place.metric("walvault_wal_fetched_files_total") > 3);

    stopped.write(&stopped.archived[0], &other);
    let conflict = stopped.push(&stopped.calls(), &stopped.archived[0]).expect_code(3);
    assert!(conflict.stderr.contains("is archived with other contents"), "{}", conflict.story());
    assert_eq!(stopped.place.metric("walvault_wal_conflicts_total"), 1);
    assert_eq!(stopped.site.repo.find_all("*/contested/*").len(), 1);
    // Another server's timeline, with and without the agent. The first that gets a state directory stays the owner.
    let known_by = |calls: &Walvault, state: &str| {
        let calls = calls.clone().env("WALVAULT_STATE_DIR", stopped.site.server.beside(state));
        stopped.push(&calls, &stopped.archived[0])
    };
    known_by(&stopped.calls(), "state").expect_code(3);
    let stranger = |calls: &Walvault| {
        let refused = known_by(calls, "another").expect_code(4);
        assert!(refused.stderr.contains("is of a timeline that"), "{}", refused.story());
        refused.stderr.split(", and wrote").next().expect("a beginning").to_owned()
    };
    let alone = stopped.site.walvault.clone().in_directory(stopped.site.server.pgdata());
    assert_eq!(stranger(&stopped.calls()), stranger(&alone));
}

#[test]
fn a_stopped_agent_is_not_waited_for_and_a_dead_ones_socket_is_in_nobodys_way() {
    let stopped = Stopped::new();
    let mut agent = stopped.place.agent(&stopped.site.walvault);
    agent.signal(Signal::STOP);
    let pushed = stopped.push(&stopped.calls(), &stopped.unarchived).expect_ok();
    // It would have been waited for as long as a push may take, and the push have failed.
    assert!(pushed.elapsed < Duration::from_secs(55), "{}", pushed.story());
    stopped.fetch(&stopped.calls(), "recovery.signal", &stopped.unarchived).expect_ok();
    agent.kill9();
    assert!(stopped.place.socket().exists());
    stopped.push(&stopped.calls(), &stopped.archived[0]).expect_ok();
    stopped.fetch(&stopped.calls(), "standby.signal", &stopped.archived[1]).expect_ok();
    // A second agent is refused, the first one's successor is not.
    let _agent = stopped.place.agent(&stopped.site.walvault);
    let refused = stopped.place.calls(&stopped.site.walvault).run(["agent"]).expect_code(1);
    assert!(refused.stderr.contains("an agent for this cluster listens on"), "{}", refused.story());
    stopped.push(&stopped.calls(), &stopped.archived[2]).expect_ok();
    assert!(stopped.place.metric("walvault_wal_archived_files_total") > 0);
}

#[test]
fn another_repositorys_agent_is_not_used_and_another_servers_file_is_refused_as_ever() {
    let stopped = Stopped::new();
    let other = TestRepo::new();
    Walvault::on(&other).run(["init"]).expect_ok();
    let agent = stopped.place.agent(&Walvault::on(&other));
    stopped.push(&stopped.calls(), &stopped.unarchived).expect_ok();
    stopped.fetch(&stopped.calls(), "recovery.signal", &stopped.unarchived).expect_ok();
    assert_eq!(stopped.place.metric("walvault_agent_declined_total"), 2);
    assert_eq!(other.objects(), ["main/repository.json"]);
    drop(agent);

    let _agent = stopped.place.agent(&stopped.site.walvault);
    let stranger = TestServer::builder(Major::V15).segment_mib(1).identity(1).create();
    let calls = stopped.calls().in_directory(stranger.pgdata());
    let path = stopped.site.server.pgdata().join("pg_wal").join(&stopped.unarchived);
    fs::copy(path, stranger.pgdata().join("pg_wal").join(&stopped.unarchived)).expect("room");
    ServerUser::get().take_over(&stranger.pgdata().join("pg_wal").join(&stopped.unarchived));
    let refused = stopped.push(&calls, &stopped.unarchived).expect_code(4);
    assert!(refused.stderr.contains("comes from system"), "{}", refused.story());
}

#[test]
fn an_agent_of_another_user_serves_whom_it_is_told_to_and_the_command_opens_no_store() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let stopped = Stopped::new();
    // Only root may see the repository, and root's agent is the way to it.
    let hidden = |hide: bool| {
        let mut chmod = std::process::Command::new("/usr/bin/chmod");
        chmod.arg(if hide { "700" } else { "755" }).arg(stopped.site.repo.path());
        assert!(chmod.status().expect("chmod runs").success());
        let mut chown = std::process::Command::new("/usr/bin/chown");
        chown.arg(if hide { "root" } else { "postgres" }).arg(stopped.site.repo.path());
        assert!(chown.status().expect("chown runs").success());
    };
    hidden(true);
    stopped.push(&stopped.calls(), &stopped.unarchived).expect_code(1);
    let agent_of_root = |variables: &[(&str, &str)]| {
        let mut agent = std::process::Command::new(crate::support::walvault::binary());
        agent.args(["--repo", &stopped.site.repo.url(), "--cluster", "main", "agent"]).env_clear();
        // A group of its own, as every command of the tests has: that is what ends with it.
        agent.current_dir(stopped.place.place.path()).process_group(0);
        agent.envs(stopped.place.variables()).envs(variables.iter().copied());
        let mut agent = Running::start(agent);
        within(LIMIT, || stopped.place.page("/healthz").is_some(), "the agent answers");
        assert!(agent.is_running());
        agent
    };
    let agent = agent_of_root(&[]);
    stopped.push(&stopped.calls(), &stopped.unarchived).expect_code(1);
    drop(agent);
    // In the group, and not among the users.
    let agent = agent_of_root(&[("WALVAULT_AGENT_GROUP", "postgres")]);
    stopped.push(&stopped.calls(), &stopped.unarchived).expect_code(1);
    assert_eq!(stopped.place.metric("walvault_agent_refused_total"), 1);
    drop(agent);
    let _agent = agent_of_root(&[("WALVAULT_AGENT_GROUP", "postgres"), ("WALVAULT_AGENT_USERS", "postgres")]);
    stopped.push(&stopped.calls(), &stopped.unarchived).expect_ok();
    for name in [&stopped.archived[0], &stopped.archived[1], &stopped.unarchived] {
        stopped.fetch(&stopped.calls(), "recovery.signal", name).expect_ok();
        let served = fs::metadata(stopped.site.server.pgdata().join("pg_wal/RECOVERYXLOG")).expect("it was served");
        use std::os::unix::fs::MetadataExt;
        assert_ne!(served.uid(), 0, "PostgreSQL must own what it will write to");
    }
    hidden(false);
}

#[test]
fn a_standby_follows_the_archive_through_a_switch_with_the_next_segments_ready() {
    let place = Place::new();
    let site = site(&place, TestServer::builder(Major::V17));
    let mut ledger = Ledger::create(&site.server);
    let backup = site.backup();
    let mut first = site.restore(&["--as", "standby", "--primary-conninfo", &site.server.conninfo()]);
    place.variables().into_iter().for_each(|(name, value)| first.server.set_env(name, value));
    first.server.start();
    let rows = ledger.commit(&site.server, 1000).rows;
    site.server.archive_all();
    first.server.wait_until("select count(*) from ledger", &rows.to_string());
    let mut site = site;
    site.server.stop(Stop::Fast);
    first.server.promote();
    ledger.resume(&first.server);
    let rows = ledger.commit(&first.server, 1000).rows;
    first.server.archive_all();
    // The old primary was heard of just now.
    site.walvault.run(["lane", "adopt", "2"]).expect_ok();

    let agent = place.agent(&site.walvault);
    let mut follower = site.restore(&["--as", "standby"]);
    place.variables().into_iter().for_each(|(name, value)| follower.server.set_env(name, value));
    follower.server.set("archive_mode", "off");
    let names = ["00000002.history", &first_segment(&backup)];
    place.fetch_ahead(&site.walvault, follower.server.pgdata(), &names, 8);
    follower.server.start();
    follower.server.wait_until("select count(*) from ledger", &rows.to_string());
    Ledger::expect_rows(&follower.server, rows);
    let hits = place.metric("walvault_wal_prefetch_hits_total");
    assert!(hits > 4, "{:?}", place.page("/metrics"));
    drop(agent);
}

#[test]
fn while_the_store_is_gone_the_agent_refuses_at_once_and_recovery_never_hears_absent() {
    let stopped = Stopped::new();
    let calls = stopped.calls().env("WALVAULT_PUSH_TIMEOUT", "3").env("WALVAULT_FETCH_TIMEOUT", "3");
    let _agent = stopped.place.agent(&stopped.site.walvault);
    let away = stopped.site.repo.path().with_extension("away");
    fs::rename(stopped.site.repo.path(), &away).expect("one file system");
    within(
        LIMIT,
        || stopped.push(&calls, &stopped.unarchived).expect_code(1).stderr.contains("is tried again every 15 s"),
        "the agent refuses",
    );
    // The agent's pages show it a moment after its answers do.
    let ill = || stopped.place.page("/healthz").is_some_and(|page| page.starts_with("HTTP/1.1 503"));
    within(LIMIT, ill, "/healthz says so");
    assert_eq!(stopped.place.metric("walvault_store_breaker_open"), 1);
    for name in [stopped.archived[0].as_str(), &stopped.unarchived, "00000002.history"] {
        stopped.fetch(&calls, "recovery.signal", name).expect_code(200);
        stopped.fetch(&calls, "standby.signal", name).expect_code(1);
    }
    fs::rename(&away, stopped.site.repo.path()).expect("one file system");
    let pushed = || stopped.push(&stopped.calls(), &stopped.unarchived).is_ok();
    within(LIMIT, pushed, "the store is tried again");
    within(LIMIT, || stopped.place.metric("walvault_store_breaker_open") == 0, "the agent hears of it");
}

#[test]
fn a_backlog_whose_agent_dies_is_archived_whole() {
    let place = Place::new();
    let site = site(&place, TestServer::builder(Major::V15).set("archive_timeout", "0"));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    site.server.wait_nothing_waits();
    site.server.set_archive_command("exit 1");
    let rows = ledger.commit(&site.server, 6000).rows;
    let last = site.server.switch_wal();
    let waiting = site.server.waiting();
    assert!(waiting.len() > 20, "{waiting:?}");
    let mut agent = place.agent(&site.walvault);
    // The first is passed by hand: so the agent is ahead of the archiver for certain.
    place.archive_ahead(&site, &waiting[..4]);
    agent.kill9();
    site.server.set_archive_command(&site.walvault.archive_command());
    site.server.wait_archived(&last);
    assert_eq!(site.repo.find_all("*/contested/*"), Vec::<String>::new());
    let arguments = ["--to-latest", "--as", "clone", "--target-action", "promote"];
    let mut restored = Restored::by(&site.walvault, Major::V15, &arguments);
    Ledger::expect_rows(restored.promoted(), rows);
}

#[test]
fn a_volume_that_comes_back_as_an_older_copy_gets_once_more_what_was_archived_ahead() {
    let place = Place::new();
    // So long the agent hopes that the volume which it had open comes back.
    let server = TestServer::builder(Major::V15).env("WALVAULT_PUSH_TIMEOUT", "9");
    let site = site(&place, server.set("archive_timeout", "0"));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    site.server.wait_nothing_waits();
    site.server.set_archive_command("exit 1");
    let older = site.repo.duplicate();
    let rows = ledger.commit(&site.server, 3000).rows;
    let last = site.server.switch_wal();
    let waiting = site.server.waiting();
    assert!(waiting.len() > 10, "{waiting:?}");
    let _agent = place.agent(&site.walvault);
    place.archive_ahead(&site, &waiting);
    let away = site.repo.path().with_extension("away");
    fs::rename(site.repo.path(), &away).expect("one file system");
    fs::rename(older.path(), site.repo.path()).expect("one file system");
    site.server.set_archive_command(&site.walvault.archive_command());
    site.server.wait_archived(&last);
    for name in &waiting {
        assert_eq!(site.repo.find_all(&format!("*/{name}.zst")).len(), 1, "{name} was acknowledged");
    }
    let arguments = ["--to-latest", "--as", "clone", "--target-action", "promote"];
    let mut restored = Restored::by(&site.walvault, Major::V15, &arguments);
    Ledger::expect_rows(restored.promoted(), rows);
}

#[test]
fn unknown_settings_end_the_start_and_only_warn_when_they_are_read_again() {
    let place = Place::new();
    let repo = TestRepo::new();
    let settings = place.place.join("main.toml");
    let write = |text: &str| {
        fs::write(&settings, text).expect("a directory of ours");
        ServerUser::get().take_over(&settings);
    };
    let walvault = Walvault::on(&repo).env("WALVAULT_CONFIG", &settings);
    write("look_ahaed = 16\n");
    Walvault::on(&repo).run(["init"]).expect_ok();
    let refused = place.calls(&walvault).run(["agent"]).expect_code(78);
    assert!(refused.stderr.contains("did you mean look_ahead?"), "{}", refused.story());
    write("look_ahead = 16\n");
    let mut agent = place.agent(&walvault);
    write("look_ahaed = 32\n");
    agent.signal(Signal::HUP);
    within(LIMIT, || agent.complaints().contains("settings were read again"), "it reads its settings again");
    write("look_ahead = 99999999\n");
    agent.signal(Signal::HUP);
    within(LIMIT, || agent.complaints().contains("settings were not read again"), "it refuses them");
    assert!(place.page("/healthz").is_some());
    agent.signal(Signal::INT);
    let ended = agent.wait(COMMAND_LIMIT).expect_ok();
    for words in ["WARN ", "look_ahaed", "settings were read again", "settings were not read again", "stopped"] {
        assert!(ended.stderr.contains(words), "{words}\n{}", ended.story());
    }
    // Not a word that is only the tests': where nothing runs, nothing answers.
    let mut nothing = command("/usr/bin/test");
    nothing.arg("-e").arg(place.socket());
    run(nothing).expect_code(1);
}

#[test]
fn every_metric_that_an_alert_names_is_there() {
    let rules = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/walvault.rules.yml"));
    let rules = rules.expect("alert rules");
    let agents = ::walvault::metrics::METRICS.iter().map(|metric| metric.name);
    let files = [&::walvault::metrics::BACKUP_METRICS[..], &::walvault::metrics::EXPIRE_METRICS[..]].concat();
    let known: Vec<&str> = agents.chain(files.iter().map(|metric| metric.name)).collect();
    let words =
        rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("walvault_"));
    let mut seen = 0;
    for word in words {
        let name = word.strip_suffix("_sum").or(word.strip_suffix("_count")).unwrap_or(word);
        assert!(known.contains(&name), "an alert names {word}, which nothing tells");
        seen += 1;
    }
    assert!(seen > 6, "{seen} names");
}
