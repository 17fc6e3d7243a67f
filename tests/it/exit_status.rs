//! The exit statuses that `archive_command` and `restore_command` give PostgreSQL, for every way to fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use walvault::format::document;
use walvault::repo::RepositoryDocument;

use crate::support::process::{COMMAND_LIMIT, Running, command, run};
use crate::support::user::ServerUser;
use crate::support::{Disk, Major, Outcome, Scratch, Site, Snapshot, TestRepo, TestServer, Walvault};

/// A data directory whose server has stopped, and the repository that holds its first segments.
struct Stopped {
    site: Site,
    /// An archived segment in the middle; there is one before it and one after it.
    segment: String,
    /// The last archived segment.
    last: String,
    /// A finished segment that is not archived.
    unarchived: String,
}

impl Stopped {
    fn new() -> Self {
        let mut site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
        site.server.sql("create table t as select 1 as one");
        site.server.archive_all();
        let segment = site.server.archive_all();
        let last = site.server.archive_all();
        site.server.set_archive_command("exit 1");
        let unarchived = site.server.switch_wal();
        site.server.stop(crate::support::Stop::Immediate);
        Self { site, segment, last, unarchived }
    }

    fn data(&self) -> &Path {
        self.site.server.pgdata()
    }

    fn wal(&self, name: &str) -> PathBuf {
        self.data().join("pg_wal").join(name)
    }

    /// Puts a file into `pg_wal`.
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.wal(name);
        fs::write(&path, bytes).expect("pg_wal is writable");
        ServerUser::get().take_over(&path);
        path
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.wal(name)).expect("the segment is there")
    }

    fn object(&self, name: &str) -> String {
        self.site.repo.find(&format!("*/{name}.zst"))
    }

    /// Calls as the server does, on a copy of the repository.
    fn calls_on(&self, repo: &TestRepo) -> Walvault {
        Walvault::on(repo)
            .in_directory(self.data())
            .env("WALVAULT_HOLE_TIMEOUT", "0")
            .env("WALVAULT_STANDBY_HOLE_TIMEOUT", "0")
    }

    fn calls(&self) -> Walvault {
        self.calls_on(&self.site.repo)
    }

    /// Makes the data directory one of a server in this mode.
    fn become_one(&self, mode: Mode) {
        let set = |name: &str, there: bool| {
            let path = self.data().join(name);
            if there { drop(fs::write(path, "")) } else { drop(fs::remove_file(path)) }
        };
        set("recovery.signal", mode == Mode::Archive);
        set("standby.signal", mode == Mode::Standby);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Archive,
    Standby,
    NoSignal,
}

/// One way to fail: the call, and a part of what it must say.
struct Failing {
    what: &'static str,
    command: Command,
    words: String,
}

fn failing(what: &'static str, words: &str, command: Command) -> Failing {
    Failing { what, command, words: words.to_owned() }
}

impl Failing {
    fn run(self) -> (&'static str, String, Outcome) {
        (self.what, self.words, run(self.command))
    }
}

/// Panics unless a call said nothing to programs and at most one short line to people.
#[track_caller]
fn expect_one_line(what: &str, words: &str, outcome: &Outcome) {
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!((outcome.stdout.as_str(), lines.len()), ("", 1), "{what}: {}", outcome.story());
    assert!(outcome.stderr.len() <= 500, "{what}: {} bytes: {}", outcome.stderr.len(), outcome.story());
    assert!(outcome.stderr.ends_with('\n'), "{what}: {}", outcome.story());
    assert!(outcome.stderr.contains(words), "{what}: {words:?} was expected: {}", outcome.story());
    // A push that tried as long as it may would take a minute, a fetch five.
    assert!(outcome.elapsed < Duration::from_secs(50), "{what}: {}", outcome.story());
    assert!(!outcome.stderr.contains("topsecret"), "{what}: {}", outcome.story());
}

#[track_caller]
fn expect_silence(what: &str, outcome: &Outcome) {
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""), "{what}: {}", outcome.story());
}

/// Ways to fail that push and fetch share, by the status of a push; `words` is the command with its arguments.
fn shared_failures(stopped: &Stopped, keep: &mut Kept, words: &[&str]) -> Vec<(i32, Failing)> {
    let calls = stopped.calls();
    let on = |repo: &TestRepo| stopped.calls_on(repo).command(words);
    let before = |arguments: &[&str]| calls.command(arguments.iter().chain(words).copied());
    let mut table = vec![
        (64, failing("an unknown flag", "--no-such-flag", before(&["--no-such-flag"]))),
        (
            64,
            failing("an argument too many", "unexpected argument", {
                let mut command = calls.command(words);
                command.arg("and").arg("more");
                command
            }),
        ),
        (64, failing("no arguments", "required", calls.command(&words[..2]))),
        (
            64,
            failing("an option between the words", "--no-such-flag", {
                calls.command([words[0], "--no-such-flag"].iter().chain(&words[1..]).copied())
            }),
        ),
        (
            78,
            failing(
                "a configuration file that is missing",
                "/nonexistent.toml",
                before(&["--config", "/nonexistent.toml"]),
            ),
        ),
        (78, failing("no cluster", "no cluster", Walvault::bare().in_directory(stopped.data()).command(words))),
    ];
    let bare = || Walvault::bare().cluster("main").in_directory(stopped.data());
    table.push((78, failing("no repository", "no repository is set", bare().command(words))));
    table.push((
        78,
        failing("a URL of another kind", "az:// is not supported", {
            bare().repository("az://key:topsecret@bucket/main").command(words)
        }),
    ));
    table.push((
        78,
        failing("a password in a bucket's URL", "a bucket's URL is s3://bucket/folder", {
            bare().repository("s3://key:topsecret@bucket/main").command(words)
        }),
    ));
    table.push((78, failing("no URL", "is written with file://", bare().repository("//topsecret").command(words))));
    for (what, text, said) in [
        ("no TOML", "push_timeout = [\n", "walvault.toml"),
        ("a number out of range", "push_timeout = 0\nfetch_timeout = 0\n", "is not a whole number from 1"),
        ("a text for a number", "compression_level = 'best'\n", "compression_level"),
    ] {
        let file = keep.file("walvault.toml", text);
        let command = calls.clone().env("WALVAULT_CONFIG", file).command(words);
        table.push((78, failing(what, said, command)));
    }
    let variable = calls.clone().env("WALVAULT_ATTEMPT_TIMEOUT", "soon").command(words);
    table.push((78, failing("a variable out of range", "attempt_timeout", variable)));

    table.push((
        1,
        failing("a repository that is not mounted", "is the volume mounted?", {
            calls.clone().repository("file:///nonexistent/walvault").env("WALVAULT_PUSH_TIMEOUT", "5").command(words)
        }),
    ));
    let empty = keep.repo(TestRepo::new());
    table.push((78, failing("an empty mount point", "walvault init", on(empty))));
    let other = calls.clone().cluster("other").command(words);
    table.push((78, failing("another cluster's name", "no repository for cluster other", other)));
    let newer = RepositoryDocument {
        format: 2,
        minimum_reader: 2,
        suffix: ".zst".to_owned(),
        create: "conditional".to_owned(),
        sealing: "none".to_owned(),
    };
    let repo = keep.repo(stopped.site.repo.duplicate());
    repo.replace("main/repository.json", &document::encode(&newer));
    table.push((78, failing("a newer repository", "upgrade walvault", on(repo))));
    for (what, name) in
        [("the repository's document damaged", "repository.json"), ("the lane's document damaged", "*/lane.json")]
    {
        let repo = keep.repo(stopped.site.repo.duplicate());
        repo.flip_bit(&repo.find(&format!("main/{name}")), 8 * 20);
        table.push((1, failing(what, name.trim_start_matches("*/"), on(repo))));
        let repo = keep.repo(stopped.site.repo.duplicate());
        repo.make_unreadable(&repo.find(&format!("main/{name}")));
        table.push((1, failing("permission denied", "Permission denied", on(repo))));
    }
    let repo = keep.repo(stopped.site.repo.duplicate());
    stall(repo, "main/repository.json");
    let hasty = |repo: &TestRepo| {
        let calls = stopped.calls_on(repo).env("WALVAULT_PUSH_TIMEOUT", "1");
        calls.env("WALVAULT_FETCH_TIMEOUT", "1").env("WALVAULT_STANDBY_TIMEOUT", "1").command(words)
    };
    table.push((1, failing("a store that stalls", "", hasty(repo))));
    table.push((
        1,
        failing("a panic: no thread can be started", "internal error", {
            limited("--nproc=1:1", calls.command(words))
        }),
    ));
    table
}

/// Returns a command with less of something than it needs.
fn limited(limit: &str, wanted: Command) -> Command {
    let mut limited = command("/usr/bin/prlimit");
    limited.arg(limit).arg(wanted.get_program()).args(wanted.get_args());
    if let Some(directory) = wanted.get_current_dir() {
        limited.current_dir(directory);
    }
    limited
}

/// What a table needs until it has run.
#[derive(Default)]
struct Kept {
    repos: Vec<TestRepo>,
    files: Vec<Scratch>,
}

impl Kept {
    fn repo(&mut self, repo: TestRepo) -> &TestRepo {
        self.repos.push(repo);
        self.repos.last().expect("just pushed")
    }

    fn file(&mut self, name: &str, text: &str) -> PathBuf {
        self.files.push(Scratch::new());
        let path = self.files.last().expect("just pushed").join(name);
        fs::write(&path, text).expect("a fresh directory is writable");
        ServerUser::get().take_over(&path);
        path
    }
}

/// Makes every access to an object hang, as on a mount whose server is gone: nobody will ever write to the pipe.
fn stall(repo: &TestRepo, key: &str) {
    stall_file(&repo.path().join(key));
}

fn stall_file(path: &Path) {
    drop(fs::remove_file(path));
    let mut mkfifo = command("/usr/bin/mkfifo");
    mkfifo.arg(path);
    run(mkfifo).expect_ok();
}

#[test]
fn a_push_that_fails_is_neither_success_nor_the_archivers_death() {
    let stopped = Stopped::new();
    let path = format!("pg_wal/{}", stopped.unarchived);
    let mut keep = Kept::default();
    let mut table = shared_failures(&stopped, &mut keep, &["wal", "push", &path]);

    let other = Site::of(TestServer::builder(Major::V15).segment_mib(1).identity(1));
    let foreign = other.server.archive_all();
    let foreign_bytes = fs::read(other.server.pgdata().join("pg_wal").join(&foreign)).expect("it is there");
    let calls = stopped.calls();
    let mut offer = |what, words, code, path: &Path| {
        table.push((code, failing(what, words, calls.command([Path::new("wal"), Path::new("push"), path]))));
    };
    let bytes = stopped.read(&stopped.unarchived);
    let elsewhere = stopped.unarchived.replacen("0000000100000000", "0000000100000007", 1);
    offer("a file that is missing", "No such file", 1, Path::new("pg_wal/0000000100000000000000AA"));
    offer("a name that PostgreSQL does not give", "cannot be archived", 1, Path::new("pg_wal/some file"));
    offer("a directory", "not a file", 1, &{
        fs::create_dir(stopped.wal("0000000100000000000000AB")).expect("pg_wal is writable");
        stopped.wal("0000000100000000000000AB")
    });
    offer(
        "a segment that is cut",
        "bytes",
        1,
        &stopped.write("0000000100000000000000AC", &bytes[..bytes.len() - 8192]),
    );
    offer(
        "a segment that is too long",
        "bytes",
        1,
        &stopped.write("0000000100000000000000AD", &[&bytes[..], &[0]].concat()),
    );
    offer("an empty segment", "bytes", 1, &stopped.write("0000000100000000000000AE", b""));
    offer("zeros", "not what its name says", 1, &stopped.write("0000000100000000000000AF", &vec![0; bytes.len()]));
    offer("another segment's name", "not what its name says", 1, &stopped.write(&elsewhere, &bytes));
    // On a timeline of its own, so that the address fits and the name is free.
    let elsewhere = foreign.replacen("00000001", "00000009", 1);
    offer("another cluster's segment", "comes from system", 4, &stopped.write(&elsewhere, &foreign_bytes));
    table.push((
        1,
        failing("no data directory", "no data directory", {
            Walvault::on(&stopped.site.repo).command(["wal", "push", "pg_wal/000000010000000000000001"])
        }),
    ));
    let push = |repo: &TestRepo| stopped.calls_on(repo).command(["wal", "push", &path]);
    for (what, disk, words) in [
        ("a disk that is full", Disk::Full, "No space left"),
        ("a disk that is read-only", Disk::ReadOnly, "Read-only file system"),
    ] {
        let repo = keep.repo(stopped.site.repo.duplicate());
        table.push((1, failing(what, words, disk.below(repo.path(), &push(repo)))));
    }
    // No budget of the store's ends this one.
    stall_file(&stopped.wal("0000000100000000000000EE"));
    let hasty = calls.clone().env("WALVAULT_PUSH_TIMEOUT", "1");
    let hasty = hasty.command(["wal", "push", "pg_wal/0000000100000000000000EE"]);
    table.push((1, failing("a file that stalls", "gave up after 1 s", hasty)));
    // The name's place answers nothing; the rest of the repository does.
    let repo = keep.repo(stopped.site.repo.duplicate());
    let key = stopped.object(&stopped.segment).replace(&stopped.segment, &stopped.unarchived);
    stall(repo, &key);
    let hasty = stopped.calls_on(repo).env("WALVAULT_PUSH_TIMEOUT", "1").command(["wal", "push", &path]);
    table.push((1, failing("an object that stalls", "", hasty)));
    let repo = keep.repo(stopped.site.repo.duplicate());
    let lane = fs::read(repo.path().join(repo.find("main/*/lane.json"))).expect("it is there");
    let mut facts: walvault::repo::LaneFacts = document::decode(&lane, "lane.json").expect("it was just written");
    facts.segment_size *= 2;
    repo.replace(&repo.find("main/*/lane.json"), &document::encode(&facts));
    table.push((4, failing("a lane made for another server", "was made for", push(repo))));

    let before = stopped.site.repo.snapshot();
    for (code, case) in table {
        let (what, words, outcome) = case.run();
        assert_eq!(outcome.code, Some(code), "{what}: {}", outcome.story());
        expect_one_line(what, &words, &outcome);
    }
    // Whatever failed above has left no trace that a reader could take for an archived file.
    let objects: Vec<String> = before.differences(&Snapshot::of(stopped.site.repo.path()));
    assert!(objects.iter().all(|line| line.contains("/owners/")), "{objects:?}");

    let misspelt = calls.clone().env("WALVAULT_COMPRESION_LEVEL", "3").run(["wal", "push", &path]).expect_ok();
    assert!(misspelt.stderr.contains("compresion_level, which is no setting"), "{}", misspelt.story());
    expect_silence("the same bytes again", &calls.run(["wal", "push", &path]).expect_ok());
}

#[test]
fn a_fetch_that_fails_never_looks_like_the_end_of_the_log() {
    let stopped = Stopped::new();
    let (segment, destination) = (stopped.segment.as_str(), "pg_wal/RECOVERYXLOG");
    let words = ["wal", "fetch", segment, destination];
    let mut keep = Kept::default();
    let other = Site::of(TestServer::builder(Major::V15).segment_mib(1).identity(1));
    let foreign = other.repo.read(&other.repo.find(&format!("*/{}.zst", other.server.archive_all())));
    fs::create_dir(stopped.data().join("of nobody")).expect("the data directory is writable");

    for mode in [Mode::Archive, Mode::NoSignal, Mode::Standby] {
        stopped.become_one(mode);
        let mut table: Vec<Failing> =
            shared_failures(&stopped, &mut keep, &words).into_iter().map(|(_, case)| case).collect();
        let calls = stopped.calls();
        table.push(failing("help", "", calls.command(["wal", "fetch", "--help"])));
        let to = |destination: &str| calls.command(["wal", "fetch", segment, destination]);
        table.push(failing("a destination that is no directory", "No such file", to("nowhere/RECOVERYXLOG")));
        table.push(failing("a destination of others", "Permission denied", to("of nobody/RECOVERYXLOG")));
        table.push(failing(
            "a name that PostgreSQL does not ask for",
            "",
            calls.command(["wal", "fetch", "a/b", destination]),
        ));
        let lane = calls.command(["--lane", "1234567890123456789-1", "wal", "fetch", segment, destination]);
        table.push(failing("a lane that is not there", "no lane", lane));
        let full = Disk::Full.below(&stopped.data().join("pg_wal"), &calls.command(words));
        table.push(failing("no room for the segment", "No space left", full));

        let mut damaged = |what, said: &str, damage: &dyn Fn(&TestRepo, &str)| {
            let repo = keep.repo(stopped.site.repo.duplicate());
            damage(repo, &stopped.object(segment));
            // What never answers is given a second; what answers has the time to.
            let budget = if said.is_empty() { "1" } else { "30" };
            let calls = stopped.calls_on(repo);
            let calls = calls.env("WALVAULT_FETCH_TIMEOUT", budget).env("WALVAULT_STANDBY_TIMEOUT", budget);
            table.push(failing(what, said, calls.command(words)));
        };
        damaged("an object that is removed", "is there", &|repo, key| repo.remove(key));
        damaged("an object that is cut", segment, &|repo, key| repo.truncate(key, repo.read(key).len() as u64 / 2));
        damaged("an object that is empty", segment, &|repo, key| repo.truncate(key, 0));
        damaged("an object with one bit flipped", segment, &|repo, key| {
            repo.flip_bit(key, repo.read(key).len() as u64 * 4)
        });
        damaged("an object of zeros", segment, &|repo, key| repo.replace(key, &vec![0; repo.read(key).len()]));
        damaged("an object that may not be read", "Permission denied", &|repo, key| repo.make_unreadable(key));
        damaged("another cluster's object", segment, &|repo, key| repo.replace(key, &foreign));
        damaged("another segment's object", segment, &|repo, key| {
            repo.replace(key, &repo.read(&stopped.object(&stopped.last)));
        });
        damaged("an object that stalls", "", &stall);
        damaged("a directory in its place", "", &|repo, key| {
            repo.remove(key);
            fs::create_dir(repo.path().join(key)).expect("the repository is writable");
        });
        damaged("a repository without lanes", "no lane", &|repo, _| repo.remove(&repo.find("main/*/lane.json")));

        if mode == Mode::Archive {
            stall_file(&stopped.wal("walvault.plan"));
            let hasty = calls.clone().env("WALVAULT_FETCH_TIMEOUT", "1").command(words);
            let stalls = failing("a plan that stalls", "gave up after 1 s", hasty).run();
            assert_eq!(stalls.2.code, Some(200), "{}", stalls.2.story());
            expect_one_line(stalls.0, &stalls.1, &stalls.2);
            fs::remove_file(stopped.wal("walvault.plan")).expect("it was just made");
            stopped.write("walvault.plan", b"no plan");
            let (what, words, outcome) = failing("a plan that is damaged", "", calls.command(words)).run();
            assert_eq!(outcome.code, Some(200), "{}", outcome.story());
            expect_one_line(what, &words, &outcome);
            fs::remove_file(stopped.wal("walvault.plan")).expect("it was just made");
        }
        for case in table {
            let (what, words, outcome) = case.run();
            match mode {
                Mode::Standby => assert_eq!(outcome.code, Some(1), "{what}: {}", outcome.story()),
                Mode::Archive | Mode::NoSignal => {
                    let aborts =
                        outcome.code.is_none_or(|code| code > 125 && code != 143) && outcome.signal != Some(15);
                    assert!(aborts, "{what} of {mode:?}: {}", outcome.story());
                }
            }
            if what != "help" {
                expect_one_line(what, &words, &outcome);
            }
            assert!(!stopped.data().join(destination).exists(), "{what}: {}", outcome.story());
            drop(fs::remove_file(stopped.data().join("pg_wal/RECOVERYXLOG.walvault")));
        }
    }
}

#[test]
fn a_call_that_runs_out_of_memory_says_neither_success_nor_absence() {
    let stopped = Stopped::new();
    stopped.become_one(Mode::Archive);
    let enough_to_begin = (2..)
        .map(|mib| mib << 20)
        .find(|limit| run(limited(&format!("--as={limit}"), Walvault::bare().command(["--version"]))).code == Some(0));
    let begin = enough_to_begin.expect("the numbers do not end");
    let push = ["wal", "push", &format!("pg_wal/{}", stopped.unarchived)];
    let fetch = ["wal", "fetch", &stopped.segment, "pg_wal/RECOVERYXLOG"];
    let mut failed = 0;
    for words in [&push[..], &fetch[..]] {
        for limit in (begin..).step_by(256 << 10) {
            let outcome = run(limited(&format!("--as={limit}"), stopped.calls().command(words)));
            if outcome.is_ok() {
                break;
            }
            failed += 1;
            match words[1] {
                "push" => assert_eq!(outcome.code, Some(1), "{}", outcome.story()),
                _ => assert!(outcome.code.is_none_or(|code| code > 125), "{}", outcome.story()),
            }
        }
    }
    assert!(failed > 4, "{failed}");
}

#[test]
fn a_push_that_is_told_to_stop_leaves_with_a_status() {
    let stopped = Stopped::new();
    stall(&stopped.site.repo, "main/repository.json");
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        let mut push = stopped.calls().start(["wal", "push", &format!("pg_wal/{}", stopped.unarchived)]);
        wait_for_threads(&push);
        push.signal(signal);
        let outcome = push.wait(COMMAND_LIMIT).expect_code(1);
        expect_silence("a stop", &outcome);
    }
}

#[test]
fn a_fetch_that_is_told_to_stop_dies_of_it_in_recovery_and_not_on_a_standby() {
    let stopped = Stopped::new();
    stall(&stopped.site.repo, "main/repository.json");
    for mode in [Mode::Archive, Mode::NoSignal, Mode::Standby] {
        stopped.become_one(mode);
        let mut fetch = stopped.calls().start(["wal", "fetch", &stopped.segment, "pg_wal/RECOVERYXLOG"]);
        wait_for_threads(&fetch);
        fetch.signal(Signal::TERM);
        let outcome = fetch.wait(COMMAND_LIMIT);
        let expected = if mode == Mode::Standby { (Some(1), None) } else { (None, Some(15)) };
        assert_eq!((outcome.code, outcome.signal), expected, "{mode:?}: {}", outcome.story());
        expect_silence("a stop", &outcome);
    }
}

/// Waits until a call has begun to work: it has threads.
fn wait_for_threads(call: &Running) {
    let threads = || fs::read_dir(format!("/proc/{}/task", call.pid())).map_or(0, Iterator::count);
    crate::support::within(Duration::from_secs(60), || threads() > 2, "the call asks the store");
}
