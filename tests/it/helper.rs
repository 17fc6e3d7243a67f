//! The helper: an agent that commands start where none runs, that keeps nothing of theirs, and that ends when idle.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::process::processes_in;
use crate::support::user::ServerUser;
use crate::support::{
    Chance, Ledger, Major, Outcome, Restored, Scratch, Site, Stop, TestServer, Walvault, soaking, within,
};

/// How long a test waits for what comes in any case.
const LIMIT: Duration = Duration::from_secs(60);
/// Seconds after which nobody's helper ends within a test.
const LONG: &str = "3600";

/// A place for a socket and for what is fetched ahead, and calls that know of it. No helper outlives it.
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

    fn variables(&self, idle: &str) -> [(&'static str, String); 3] {
        let path = |name: &str| self.place.join(name).display().to_string();
        [
            ("WALVAULT_RUNTIME_DIR", path("run")),
            ("WALVAULT_SCRATCH_DIR", path("scratch")),
            ("WALVAULT_HELPER", idle.to_owned()),
        ]
    }

    fn calls(&self, walvault: &Walvault, idle: &str) -> Walvault {
        self.variables(idle).into_iter().fold(walvault.clone(), |calls, (name, value)| calls.env(name, value))
    }

    fn socket(&self) -> PathBuf {
        self.place.join("run/main.sock")
    }

    /// Asks whoever listens for a page.
    fn page(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        Some(reply)
    }

    fn metric(&self, name: &str) -> u64 {
        let page = self.page("/metrics").unwrap_or_default();
        page.lines().find_map(|line| line.strip_prefix(&format!("{name} "))?.parse().ok()).unwrap_or(0)
    }

    /// Returns every helper that has, or will have, its socket here: from the moment in which it is started.
    fn helpers(&self) -> Vec<Pid> {
        let here = format!("WALVAULT_RUNTIME_DIR={}", self.place.join("run").display());
        let is_one = |pid: &i32| {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let words = |bytes: &[u8], word: &str| bytes.split(|byte| *byte == 0).any(|found| found == word.as_bytes());
            words(&read("cmdline"), "helper") && words(&read("environ"), &here)
        };
        let listed = fs::read_dir("/proc").expect("there are processes");
        let pids = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(is_one).filter_map(Pid::from_raw).collect()
    }

    /// Waits until a helper answers, and returns it.
    #[track_caller]
    fn helper(&self) -> Pid {
        within(LIMIT, || self.page("/healthz").is_some() && self.helpers().len() == 1, "one helper answers");
        self.helpers()[0]
    }

    fn kill_helpers(&self) {
        for helper in self.helpers() {
            // It may have ended meanwhile.
            let _ = kill_process(helper, Signal::KILL);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill_helpers();
    }
}

/// A stopped server in whose `pg_wal` segments wait, and a way to call what PostgreSQL would call.
struct Backlog {
    place: Place,
    site: Site,
    waiting: Vec<String>,
}

impl Backlog {
    fn new(segments: usize) -> Self {
        let place = Place::new();
        let mut site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
        site.server.archive_all();
        site.server.set_archive_command("false");
        while site.server.waiting().len() < segments {
            site.server.sql("create table if not exists t (one int); insert into t values (1)");
            site.server.switch_wal();
        }
        site.server.stop(Stop::Immediate);
        let waiting = site.server.waiting();
        Self { place, site, waiting }
    }

    fn calls(&self, idle: &str) -> Walvault {
        self.place.calls(&self.site.walvault, idle).in_directory(self.site.server.pgdata())
    }

    fn push(&self, idle: &str, segment: usize, more: &[&str]) -> Outcome {
        let path = format!("pg_wal/{}", self.waiting[segment]);
        self.calls(idle).run([&["wal", "push", &path], more].concat()).expect_ok()
    }
}

#[test]
fn a_backlog_starts_one_helper_that_serves_and_makes_way_and_ends_when_idle() {
    let backlog = Backlog::new(6);
    let (place, status) = (&backlog.place, backlog.site.server.pgdata().join("pg_wal/archive_status"));
    // Not where it is not wanted, and not for what the command does as well itself.
    backlog.push(LONG, 0, &["--no-helper"]);
    backlog.push("0", 0, &[]);
    assert_eq!(place.helpers(), []);
    let put_away: Vec<_> = backlog.waiting[3..].iter().map(|name| status.join(format!("{name}.ready"))).collect();
    put_away.iter().for_each(|file| fs::rename(file, file.with_extension("done")).expect("ours"));
    backlog.push(LONG, 0, &[]);
    assert_eq!(place.helpers(), [], "three segments are no backlog");
    put_away.iter().for_each(|file| fs::rename(file.with_extension("done"), file).expect("ours"));

    // Two at once start one: the other finds the socket taken.
    let backlog = &backlog;
    std::thread::scope(|scope| {
        for segment in 0..4 {
            scope.spawn(move || backlog.push(LONG, segment, &[]));
        }
    });
    let first = place.helper();
    // It serves: what it is asked for, and what comes next.
    backlog.push(LONG, 4, &[]);
    within(LIMIT, || place.metric("walvault_wal_archived_files_total") >= 1, "the helper archives");
    assert_eq!(place.helpers(), [first]);
    let all_archived =
        || backlog.waiting.iter().all(|name| backlog.site.repo.find_all(&format!("*/{name}.zst")).len() == 1);
    let ahead = || {
        // Passed again: what was listed less than a second ago is not listed anew.
        backlog.push(LONG, 4, &[]);
        all_archived()
    };
    within(LIMIT, ahead, "all that waits is archived ahead");

    // Killed: the next command works, and the one after it has another helper.
    kill_process(first, Signal::KILL).expect("it runs");
    within(LIMIT, || place.helpers().is_empty(), "the helper is gone");
    backlog.push(LONG, 5, &[]);
    let second = place.helper();
    assert_ne!(first, second);

    // An agent takes its place, and counts on from what it did.
    backlog.push(LONG, 5, &[]);
    within(LIMIT, || place.metric("walvault_wal_archived_files_total") >= 1, "the helper archives");
    let archived = place.metric("walvault_wal_archived_files_total");
    let mut agent = backlog.calls(LONG).start(["agent"]);
    within(LIMIT, || agent.complaints().contains(" ready ") || !agent.is_running(), "the agent listens");
    assert!(agent.is_running(), "{}", agent.complaints());
    within(LIMIT, || place.helpers().is_empty(), "the helper has ended");
    assert!(place.metric("walvault_wal_archived_files_total") >= archived, "{:?}", place.page("/metrics"));
    let agent_archives = || {
        backlog.push(LONG, 5, &[]);
        place.metric("walvault_wal_archived_files_total") > archived
    };
    within(LIMIT, agent_archives, "the agent archives");
    // And a second agent does not.
    backlog.calls(LONG).run(["agent"]).expect_code(1);
    agent.signal(Signal::TERM);
    agent.wait(LIMIT).expect_ok();

    backlog.push("1", 5, &[]);
    within(LIMIT, || place.helpers().is_empty() && !place.socket().exists(), "an idle helper ends and leaves nothing");
    // But what it counted.
    let kept = fs::read_to_string(place.place.join("run/main.prom")).expect("it is kept");
    assert!(kept.contains("walvault_wal_archived_files_total{cluster=\"main\"} "), "{kept}");
    assert!(fs::read_dir(place.place.join("scratch")).expect("a directory").next().is_none());
}

#[test]
fn a_helper_keeps_nothing_of_the_command_that_started_it() {
    let backlog = Backlog::new(5);
    // What PostgreSQL leaves open for its commands: a file of its own, and the pipe of its log.
    let left_open = backlog.site.server.pgdata().join("pg_wal").join(&backlog.waiting[1]);
    let push = backlog.calls(LONG).command(["wal", "push", &format!("pg_wal/{}", backlog.waiting[0])]);
    let words = std::iter::once(push.get_program()).chain(push.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().expect("plain text"))).collect();
    let mut shell = crate::support::process::command("/bin/sh");
    for (name, value) in push.get_envs() {
        shell.envs(value.map(|value| (name, value)));
    }
    shell.args(["-c", &format!("exec 7<'{}' 8>&1; exec {}", left_open.display(), words.join(" "))]);
    shell.current_dir(backlog.site.server.pgdata()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shell = shell.spawn().expect("sh runs");
    let group = shell.id();
    // Until the last one that holds an end of these pipes has closed it.
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(shell.wait_with_output().expect("our own child")));
    let output = end.recv_timeout(LIMIT).expect("nobody holds the pipes of a command that has ended");
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");

    let helper = backlog.place.helper();
    let about = PathBuf::from(format!("/proc/{}", helper.as_raw_nonzero()));
    for standard in 0..3 {
        let leads_to = fs::read_link(about.join(format!("fd/{standard}"))).expect("it is open");
        assert_eq!(leads_to, Path::new("/dev/null"));
    }
    // The directory of what waits it holds for seconds, and nothing else of the server's.
    let lets_go = || {
        let listed = fs::read_dir(about.join("fd")).expect("our own");
        let open = listed.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        !open.into_iter().any(|path| path.starts_with(backlog.site.server.pgdata()))
    };
    within(LIMIT, lets_go, "nothing of the data directory is open");
    assert_eq!(fs::read_link(about.join("cwd")).expect("our own"), Path::new("/"));
    let stat = fs::read_to_string(about.join("stat")).expect("our own");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("after the name").1.split(' ').collect();
    let own = helper.as_raw_nonzero().to_string();
    assert_eq!((fields[2], fields[3]), (own.as_str(), own.as_str()), "process group and session");
    assert_ne!(own, group.to_string());
}

#[test]
fn a_server_that_ends_does_not_wait_for_its_helper() {
    let place = Place::new();
    let builder = TestServer::builder(Major::V15).segment_mib(1);
    let builder = place.variables(LONG).into_iter().fold(builder, |builder, (name, value)| builder.env(name, value));
    let mut site = Site::of(builder);
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    site.server.wait_nothing_waits();
    site.server.set_archive_command("exit 1");
    ledger.commit(&site.server, 2000);
    site.server.switch_wal();
    assert!(site.server.waiting().len() > 6);
    site.server.set_archive_command(&site.walvault.archive_command());
    let helper = place.helper();
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    site.server.stop(Stop::Fast);
    within(LIMIT, || processes_in(site.server.pgdata()).is_empty(), "nobody works in the data directory");
    assert_eq!(place.helpers(), [helper]);
    assert!(!site.server.log().contains("walvault:"), "{}", site.server.log());

    // The same helper fetches for the copy.
    let arguments = ["--to-latest", "--as", "clone", "--target-action", "promote"];
    let mut restored = Restored::by(&site.walvault, Major::V15, &arguments);
    place.variables(LONG).into_iter().for_each(|(name, value)| restored.server.set_env(name, value));
    Ledger::expect_rows(restored.promoted(), rows);
    assert!(place.metric("walvault_wal_fetched_files_total") > 5, "{:?}", place.page("/metrics"));
}

/// Fetches a segment as a recovery does: under the name that PostgreSQL gives, then kept under its own.
fn recover(calls: &Walvault, data: &Path, name: &str) -> Outcome {
    let outcome = calls.run(["wal", "fetch", name, "pg_wal/RECOVERYXLOG"]);
    if outcome.is_ok() {
        fs::rename(data.join("pg_wal/RECOVERYXLOG"), data.join("pg_wal").join(name)).expect("it was served");
    }
    outcome
}

#[test]
fn a_recovery_starts_a_helper_with_its_third_segment_and_never_hears_of_its_death() {
    let place = Place::new();
    let mut site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    let backup = site.backup();
    let archived: Vec<String> = (0..14).map(|_| site.server.archive_all()).collect();
    site.server.stop(Stop::Fast);
    assert!(backup["id"].is_string());
    let restored = site.restore(&["--to-latest", "--as", "clone"]);
    let data = restored.server.pgdata();
    let calls = place.calls(&site.walvault, LONG).in_directory(data);
    let forget = || archived.iter().for_each(|name| drop(fs::remove_file(data.join("pg_wal").join(name))));
    for name in &archived[..2] {
        recover(&calls, data, name).expect_ok();
        assert_eq!(place.helpers(), [], "two segments are no row");
    }
    recover(&calls, data, &archived[2]).expect_ok();
    let first = place.helper();
    recover(&calls, data, &archived[3]).expect_ok();
    within(LIMIT, || place.metric("walvault_wal_prefetched_bytes") >= 4 << 20, "the next segments are fetched ahead");
    recover(&calls, data, &archived[4]).expect_ok();
    assert!(place.metric("walvault_wal_prefetch_hits_total") >= 1);
    kill_process(first, Signal::KILL).expect("it runs");
    forget();
    // `pg_rewind` has no use for what comes next, and whoever says no, none for a helper.
    for name in &archived[..4] {
        calls.run(["wal", "fetch", "--no-helper", name, &format!("pg_wal/{name}")]).expect_ok();
    }
    within(LIMIT, || place.helpers().is_empty(), "the helper is gone");
    forget();

    // Helpers die at any moment, and every segment is served.
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let chance = Chance::new();
            while !over.load(Ordering::SeqCst) {
                place.kill_helpers();
                std::thread::sleep(Duration::from_millis(chance.below(60)));
            }
        });
        let recovering = || {
            for _ in 0..if soaking() { 200 } else { 4 } {
                forget();
                for name in &archived {
                    let outcome = recover(&calls, data, name).expect_ok();
                    assert_eq!(outcome.stderr, "", "{}", outcome.story());
                }
            }
        };
        let recovered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(recovering));
        over.store(true, Ordering::SeqCst);
        recovered.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_helper_is_started_in_no_directory_but_the_servers_users_own() {
    let backlog = Backlog::new(5);
    let elsewhere = Scratch::new();
    let nobodys = elsewhere.join("no/such/directory");
    let path = format!("pg_wal/{}", backlog.waiting[0]);
    let mut directories = vec![nobodys.clone()];
    if rustix::process::getuid().is_root() {
        // Root's own, which everybody may write to.
        let open = backlog.place.place.join("open");
        fs::create_dir(&open).expect("room");
        let mut chmod = std::process::Command::new("/usr/bin/chmod");
        assert!(chmod.arg("777").arg(&open).status().expect("chmod runs").success());
        directories.push(open);
    }
    for directory in directories {
        let calls = backlog.calls(LONG).env("WALVAULT_RUNTIME_DIR", &directory);
        calls.run(["wal", "push", &path]).expect_ok();
        let started = fs::read_dir("/proc").expect("processes").filter_map(|entry| {
            let environment = fs::read(entry.ok()?.path().join("environ")).ok()?;
            let here = format!("WALVAULT_RUNTIME_DIR={}", directory.display());
            environment.split(|byte| *byte == 0).any(|word| word == here.as_bytes()).then_some(())
        });
        assert_eq!(started.count(), 0, "{directory:?}");
    }
    assert!(!nobodys.exists());
}

#[test]
fn a_server_that_is_the_first_process_inherits_no_helper() {
    let Some(as_the_server) = ServerUser::get().setpriv() else { return };
    let backlog = Backlog::new(5);
    let push = backlog.calls(LONG).command(["wal", "push", &format!("pg_wal/{}", backlog.waiting[0])]);
    let words = std::iter::once(push.get_program()).chain(push.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().expect("plain text"))).collect();
    // Whoever is started is there before the command has ended. A space of processes ends with its first one.
    let script = format!(
        "cd '{}' && {as_the_server} {} && for one in /proc/[0-9]*; do tr '\\0' ' ' < $one/cmdline; echo; done",
        backlog.site.server.pgdata().display(),
        words.join(" ")
    );
    let started = |name: &str| {
        let shell = backlog.place.place.join(name);
        // By another process: a thread that forks meanwhile would have the copy open for writing.
        let copied = std::process::Command::new("/bin/cp").arg("/bin/sh").arg(&shell).status().expect("cp runs");
        assert!(copied.success());
        let mut first = std::process::Command::new("/usr/bin/unshare");
        first.args(["--pid", "--fork", "--mount-proc"]).arg(&shell).args(["-c", &script]);
        let environment = push.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        let output = first.env_clear().envs(environment).stdin(Stdio::null()).output().expect("unshare runs");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let allowed = !String::from_utf8_lossy(&output.stderr).contains("unshare failed")
            && !String::from_utf8_lossy(&output.stderr).contains("Operation not permitted");
        assert!(!allowed || output.status.success(), "{output:?}");
        allowed.then(|| told.lines().any(|words| words.trim_end().ends_with(" helper")))
    };
    // Where nobody may make such a space, as in some containers, there is nothing to be seen.
    let Some(helped) = started("init") else { return };
    assert!(helped, "a first process that is no server inherits one");
    assert_eq!(started("postgres"), Some(false));
}
