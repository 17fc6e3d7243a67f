//! `walvault demo`: every proof holds on every server, and nothing stays, however it ends.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::process::{COMMAND_LIMIT, Running, command, processes_in, run};
use crate::support::walvault::binary;
use crate::support::{Major, Outcome, Scratch, Walvault, tool, within};

/// What must have been compared before the demonstration may call itself a success.
const PROOFS: [&str; 8] = [
    "✓ the server is up",
    "archive_command has not failed once",
    "segments, no hole",
    "✓ the table is back: 52,500 payments",
    "✓ the books agree: 1,000 balances",
    "✓ the standby streams",
    "payment 52,501, made on the primary, is on the standby",
    "✓ the same rows on both: 52,501 payments",
];

/// A demonstration whose scratch directory is created in `place`.
fn in_place(place: &Scratch) -> Walvault {
    Walvault::bare().env("TMPDIR", place.path())
}

/// The folder of a major's programs, for `--pg-bin`.
fn programs(major: Major) -> PathBuf {
    major.program("postgres").parent().expect("it is in a folder").to_owned()
}

fn found_in(place: &Path) -> Vec<PathBuf> {
    fs::read_dir(place).expect("the place is there").map(|entry| entry.expect("a listed entry").path()).collect()
}

#[track_caller]
fn expect_nothing_left(place: &Scratch) {
    // What was told to end with its server may take a moment more.
    within(Duration::from_secs(60), || processes_in(place.path()).is_empty(), "no process is left");
    assert!(found_in(place.path()).is_empty(), "{:?}", found_in(place.path()));
}

#[track_caller]
fn expect_proofs(told: &str) {
    let missing: Vec<&&str> = PROOFS.iter().filter(|proof| !told.contains(**proof)).collect();
    assert!(missing.is_empty(), "not proven: {missing:?}\n{told}");
}

#[test]
fn the_story_is_proven_to_its_end_fits_the_page_and_leaves_nothing() {
    let place = Scratch::new();
    let outcome = in_place(&place).run(["demo"]).expect_ok();
    expect_proofs(&outcome.stdout);
    assert!(outcome.stdout.contains(&place.path().display().to_string()), "{}", outcome.story());
    for typed in
        ["backup --fast", "list", "timelines", "plan --to-name before_the_accident", "restore rescued --to-lsn"]
    {
        assert!(outcome.stdout.contains(&format!("$ walvault {typed}")), "{typed}\n{}", outcome.story());
    }
    // The place is deeper here than where people have it.
    let told = outcome.stdout.replace(&place.path().display().to_string(), "/tmp");
    let wide: Vec<&str> = told.lines().filter(|line| line.chars().count() > 100).collect();
    assert_eq!(wide, [""; 0]);
    assert!(!outcome.stdout.contains('\x1b') && outcome.stderr.is_empty(), "{}", outcome.story());
    expect_nothing_left(&place);
}

#[test]
fn json_on_stdout_and_words_on_stderr_whatever_stands_in_the_environment() {
    let place = Scratch::new();
    let outcome = in_place(&place)
        .env("WALVAULT_REPO", "file:///nowhere")
        .env("WALVAULT_NO_SUCH_SETTING", "1")
        .env("PGHOST", "nowhere")
        .env("PGDATABASE", "nothing")
        .env("PGOPTIONS", "-c statement_timeout=1")
        .run(["demo", "--json", "--pg-bin", &programs(Major::V18).display().to_string()])
        .expect_ok();
    expect_proofs(&outcome.stderr);
    let summary = outcome.json();
    assert_eq!(summary["rescued_payments"], 52_500);
    assert!(summary["server_version"].as_str().is_some_and(|version| version.starts_with("18")), "{summary}");
    assert!(summary["wal_stored_bytes"].as_u64() < summary["wal_bytes"].as_u64(), "{summary}");
    expect_nothing_left(&place);
}

#[test]
fn what_is_kept_is_whole_and_nothing_runs_in_it() {
    let place = Scratch::new();
    let bin = programs(Major::V17).display().to_string();
    let outcome = in_place(&place).run(["demo", "--keep", "--pg-bin", &bin]).expect_ok();
    let [kept] = &found_in(place.path())[..] else { panic!("one directory is kept\n{}", outcome.story()) };
    assert!(outcome.stdout.contains(&format!("files kept in {}", kept.display())), "{}", outcome.story());
    within(Duration::from_secs(60), || processes_in(place.path()).is_empty(), "no process is left");
    for (data, state) in [("bank", "shut down"), ("rescued", "shut down"), ("standby", "shut down in recovery")] {
        assert_eq!(tool::control_data(Major::V17, &kept.join(data), "Database cluster state"), state, "{data}");
        tool::check_checksums(Major::V17, &kept.join(data)).expect_ok();
    }
}

#[test]
fn an_interrupted_story_leaves_no_process_no_file_and_no_shared_memory() {
    for (moment, signal) in [
        ("bank/global", Signal::INT),
        ("bank/postmaster.pid", Signal::TERM),
        ("rescued/postmaster.pid", Signal::INT),
        ("standby/standby.signal", Signal::HUP),
    ] {
        let place = Scratch::new();
        let mut demo = in_place(&place).start(["demo"]);
        let is_here = || found_in(place.path()).iter().any(|scratch| scratch.join(moment).exists());
        within(Duration::from_secs(60), is_here, moment);
        if moment == "rescued/postmaster.pid" {
            // A starting server writes the file's lines one after the other.
            within(Duration::from_secs(60), || !shared_memory_below(place.path()).is_empty(), "a server runs");
        }
        let memory = shared_memory_below(place.path());
        demo.signal(signal);
        let outcome = demo.wait(COMMAND_LIMIT).expect_code(1);
        assert!(outcome.stderr.contains("interrupted"), "{moment}\n{}", outcome.story());
        expect_nothing_left(&place);
        let left = fs::read_to_string("/proc/sysvipc/shm").expect("Linux says what there is");
        let ids: Vec<&str> = left.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert!(memory.iter().all(|id| !ids.contains(&id.as_str())), "{moment}: {memory:?} of {left}");
    }
}

/// Numbers of the shared memory segments that servers below `place` hold: `postmaster.pid`'s seventh line.
fn shared_memory_below(place: &Path) -> Vec<String> {
    let data = found_in(place).into_iter().flat_map(|scratch| found_in(&scratch));
    let files = data.filter_map(|data| fs::read_to_string(data.join("postmaster.pid")).ok());
    files.filter_map(|text| Some(text.lines().nth(6)?.split_whitespace().nth(1)?.to_owned())).collect()
}

/// Runs the program as whoever runs the tests, from a folder that is closed to everybody else.
fn as_the_caller(place: &Path, arguments: &[&str]) -> Outcome {
    let closed = Scratch::new();
    let program = closed.path().join("walvault");
    let status = Command::new("/usr/bin/install").arg(binary()).arg(&program).status().expect("install runs");
    assert!(status.success());
    if rustix::process::getuid().is_root() {
        std::os::unix::fs::chown(closed.path(), Some(0), Some(0)).expect("root may");
    }
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).expect("it is ours");
    let mut demo = Command::new(program);
    demo.env_clear().env("PATH", "/usr/bin:/bin").env("TMPDIR", place).args(arguments).current_dir("/");
    Running::start(demo).wait(COMMAND_LIMIT)
}

#[test]
fn root_shows_it_as_another_user_from_a_folder_that_is_closed_to_them() {
    let place = Scratch::new();
    let outcome = as_the_caller(place.path(), &["demo"]).expect_ok();
    expect_proofs(&outcome.stdout);
    let root = rustix::process::getuid().is_root();
    assert_eq!(outcome.stdout.contains("as user postgres"), root, "{}", outcome.story());
    expect_nothing_left(&place);
}

#[test]
fn a_step_that_fails_is_named_with_the_servers_last_words() {
    let (place, bin) = (Scratch::new(), Scratch::new());
    for name in ["initdb", "postgres"] {
        symlink(Major::V15.program(name), bin.join(name)).expect("a link");
    }
    let script = "#!/bin/sh\nfor word; do log=$word; done\necho 'FATAL:  the disk is made of cheese' >$log\nexit 1\n";
    crate::support::process::script(&bin.join("pg_ctl"), script);
    let outcome = in_place(&place).run(["demo", "--pg-bin", &bin.path().display().to_string()]).expect_code(1);
    for words in ["step 1 failed", "FATAL:  the disk is made of cheese", "error: step 1: `pg_ctl start"] {
        assert!(outcome.stderr.contains(words), "{words}\n{}", outcome.story());
    }
    assert!(!outcome.stdout.contains("Every proof held"), "{}", outcome.story());
    expect_nothing_left(&place);
}

#[test]
fn without_postgresql_it_says_what_to_do() {
    let place = Scratch::new();
    let outcome = in_place(&place).run(["demo", "--pg-bin", "/nowhere"]).expect_code(1);
    assert!(outcome.stderr.contains("PostgreSQL 13 or newer in /nowhere"), "{}", outcome.story());
    assert!(outcome.stderr.contains("hint: install PostgreSQL"), "{}", outcome.story());
    let refused = in_place(&place).run(["demo", "--repo", "file:///backups"]).expect_code(64);
    assert!(refused.stderr.contains("a repository of its own"), "{}", refused.story());
    expect_nothing_left(&place);
}

#[test]
fn a_reader_that_goes_away_does_not_end_it_half_way() {
    let place = Scratch::new();
    let mut shell = command("/bin/sh");
    shell.args(["-c", "{ \"$0\" demo; echo $? >&2; } | head -n 1"]).arg(binary()).env("TMPDIR", place.path());
    let outcome = run(shell).expect_ok();
    assert!(outcome.stdout.starts_with("walvault demo") && outcome.stderr == "0\n", "{}", outcome.story());
    expect_nothing_left(&place);
}
