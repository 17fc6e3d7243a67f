//! Every file operation of the real program fails, or is the last thing that it does, one after the other: what was
//! stored stays as it is, what was not finished is invisible or cannot be started, and success is never claimed for less.
//!
//! The points are counted by tracing one undisturbed run. `make test` strikes some of them by chance, `make soak` all.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use crate::support::process::command;
use crate::support::strace::{Point, Struck};
use crate::support::walvault::binary;
use crate::support::{
    Chance, Ledger, Major, Restored, Scratch, Site, Snapshot, Stop, TestRepo, TestServer, Walvault, soaking,
};

/// Points to strike: all of them in the long run, else `some` by chance, most of them writes.
fn chosen(what: &str, chance: &Chance, points: Vec<Point>, some: usize) -> Vec<Point> {
    let mut chosen = in_order(what, chance, points, some);
    if !soaking() {
        chosen.truncate(some);
    }
    chosen
}

/// Whether no more need be struck: so many were, and so many of them felt. Which thread makes a call, and so which number
/// the call has, is chance on a busy machine.
fn is_enough((struck, some): (usize, usize), (felt, wanted): (u32, u32)) -> bool {
    !soaking() && struck >= some && felt > wanted
}

/// All points: those that are struck in any case first, then those that are if too few of these were felt.
fn in_order(what: &str, chance: &Chance, points: Vec<Point>, some: usize) -> Vec<Point> {
    let all = points.len();
    let chosen = if soaking() {
        points
    } else {
        let (mut writes, mut reads): (Vec<Point>, Vec<Point>) = points.into_iter().partition(Point::writes);
        let draw = |points: &mut Vec<Point>, some: usize| -> Vec<Point> {
            let some = some.min(points.len());
            (0..some).map(|_| points.swap_remove(chance.below(points.len() as u64) as usize)).collect()
        };
        let first = [draw(&mut writes, some - some / 4), draw(&mut reads, some / 4)].concat();
        let mut left = [writes, reads].concat();
        let left = draw(&mut left, all);
        [first, left].concat()
    };
    say(&format!("{what}: {} of {all} crash points", if soaking() { all } else { some.min(all) }));
    chosen
}

#[allow(clippy::print_stderr, reason = "the test run shows the counts")]
fn say(words: &str) {
    eprintln!("{words}");
}

/// Calls that are not struck, and have the time that they need.
///
/// One worker: then nearly all calls are made by one thread, and each has its own number.
fn calm(repo: &TestRepo) -> Walvault {
    Walvault::on(repo).env("WALVAULT_CPUS", "1").env("WALVAULT_HOLE_TIMEOUT", "0")
}

/// Calls that are struck: what hangs ends soon.
fn calls(repo: &TestRepo) -> Walvault {
    calm(repo).env("WALVAULT_PUSH_TIMEOUT", "5").env("WALVAULT_FETCH_TIMEOUT", "2")
}

/// Panics if anything that was stored has changed or gone; what is new is allowed.
#[track_caller]
fn expect_only_added(before: &Snapshot, repo: &TestRepo, story: &str) {
    let differences = before.differences(&repo.snapshot());
    let other: Vec<&String> = differences.iter().filter(|line| !line.starts_with("added ")).collect();
    assert!(other.is_empty(), "what was stored changed: {other:#?}\n{story}");
}

#[test]
fn a_push_that_is_struck_stores_the_segment_or_says_that_it_did_not() {
    let mut server = TestServer::builder(Major::V17).segment_mib(1).start();
    let segment = server.switch_wal();
    server.stop(Stop::Immediate);
    let bytes = fs::read(server.pgdata().join("pg_wal").join(&segment)).expect("the server wrote it");
    let fresh = TestRepo::new();
    calls(&fresh).run(["init"]).expect_ok();
    let push_by =
        |calls: Walvault| calls.in_directory(server.pgdata()).command(["wal", "push", &format!("pg_wal/{segment}")]);
    let push = |repo: &TestRepo| push_by(calls(repo));
    let served = |repo: &TestRepo| {
        let wanted = server.pgdata().join("pg_wal/RECOVERYXLOG");
        drop(fs::remove_file(&wanted));
        let fetch = calm(repo).in_directory(server.pgdata()).run(["wal", "fetch", &segment, "pg_wal/RECOVERYXLOG"]);
        assert!(!fetch.is_ok() || fs::read(&wanted).is_ok_and(|served| served == bytes), "{}", fetch.story());
        fetch.is_ok()
    };
    let mut felt = 0;
    let points = Point::all_of(&push_by(calm(&fresh.duplicate())));
    for (struck, point) in in_order("wal push", &Chance::new(), points, 40).into_iter().enumerate() {
        if is_enough((struck, 40), (felt, 20)) {
            break;
        }
        let repo = fresh.duplicate();
        let before = repo.snapshot();
        let struck = point.strike(&push(&repo));
        felt += u32::from(struck.felt);
        let story = format!("{point}\n{}", struck.outcome.story());
        expect_only_added(&before, &repo, &story);
        // PostgreSQL tries again after any of these, and ends its archiver above 125 unless a signal came.
        assert!(struck.outcome.code.is_none_or(|code| code < 126 || !struck.felt || code == 127), "{story}");
        assert!(served(&repo) || !struck.outcome.is_ok(), "acknowledged and not there\n{story}");
        let again = crate::support::process::run(push_by(calm(&repo)));
        assert!(again.is_ok(), "{point}: what is left behind is in the way\n{}", again.story());
        assert!(served(&repo), "{story}");
    }
    assert!(felt > 20, "only {felt} points were reached");
}

/// An agent, one push through it, and the agent's end. Whatever is struck, nothing outlives it for long.
const THROUGH_AN_AGENT: &str = r#"
    timeout -s KILL 8 "$0" --repo "$1" --cluster main agent & agent=$!
    turn=0
    until [ -S "$2/main.sock" ] || [ "$turn" -eq 80 ] || ! kill -0 "$agent" 2>/dev/null; do
        turn=$((turn + 1)); sleep 0.1
    done
    "$0" --repo "$1" --cluster main wal push "$3"; pushed=$?
    kill "$agent"; wait "$agent"
    exit "$pushed"
"#;

#[test]
fn a_push_through_an_agent_that_is_struck_stores_the_segment_or_says_that_it_did_not() {
    let mut server = TestServer::builder(Major::V15).segment_mib(1).start();
    let segment = server.switch_wal();
    server.stop(Stop::Immediate);
    let bytes = fs::read(server.pgdata().join("pg_wal").join(&segment)).expect("the server wrote it");
    let fresh = TestRepo::new();
    calls(&fresh).run(["init"]).expect_ok();
    let path = format!("pg_wal/{segment}");
    let push = |repo: &TestRepo, place: &Scratch, seconds: &str| {
        let mut shell = command("/bin/sh");
        shell.args(["-c", THROUGH_AN_AGENT]).arg(binary()).arg(repo.url()).arg(place.path()).arg(&path);
        shell.env("WALVAULT_RUNTIME_DIR", place.path()).env("WALVAULT_SCRATCH_DIR", place.path());
        // What is struck is the agent, and nobody in its place.
        shell.env("WALVAULT_HELPER", "0");
        shell.env("WALVAULT_CPUS", "1").env("WALVAULT_PUSH_TIMEOUT", seconds).current_dir(server.pgdata());
        shell
    };
    let stored = |repo: &TestRepo| {
        let key = repo.find_all(&format!("*/{segment}.zst")).pop()?;
        Some(zstd::decode_all(&repo.read(&key)[..]).expect("what has its name is whole"))
    };
    let mut felt = 0;
    let points = Point::all_of(&push(&fresh.duplicate(), &Scratch::new(), "60"));
    for (struck, point) in in_order("agent", &Chance::new(), points, 10).into_iter().enumerate() {
        if is_enough((struck, 10), (felt, 3)) {
            break;
        }
        let (repo, place) = (fresh.duplicate(), Scratch::new());
        let before = repo.snapshot();
        let struck = point.strike(&push(&repo, &place, "5"));
        felt += u32::from(struck.felt);
        let story = format!("{point}\n{}", struck.outcome.story());
        expect_only_added(&before, &repo, &story);
        let there = stored(&repo);
        assert!(there.as_ref().is_none_or(|there| *there == bytes), "other bytes are archived\n{story}");
        assert!(there.is_some() || !struck.outcome.is_ok(), "acknowledged and not there\n{story}");
        let again = calm(&repo).in_directory(server.pgdata()).run(["wal", "push", &path]);
        assert!(again.is_ok() && stored(&repo) == Some(bytes.clone()), "{point}\n{}", again.story());
    }
    assert!(felt > 3, "only {felt} points were reached");
}

#[test]
fn a_fetch_that_is_struck_never_says_that_the_log_ends() {
    let site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.backup();
    ledger.commit(&site.server, 10);
    let segment = site.server.archive_all();
    let bytes = fs::read(site.server.pgdata().join("pg_wal").join(&segment)).expect("it was not recycled yet");
    let planned = site.restore(&["--to-latest", "--as", "clone"]);
    let bare = Scratch::new();
    let by_hand = bare.create_dir("data");
    fs::create_dir_all(by_hand.join("global")).and_then(|()| fs::create_dir(by_hand.join("pg_wal"))).expect("new");
    fs::copy(planned.server.pgdata().join("global/pg_control"), by_hand.join("global/pg_control")).expect("a file");
    fs::write(by_hand.join("recovery.signal"), "").expect("a file");
    crate::support::user::ServerUser::get().take_over(&by_hand);

    let chance = Chance::new();
    let before = site.repo.snapshot();
    let mut felt = 0;
    for (data, wanted_felt) in [(planned.server.pgdata(), 4), (by_hand.as_path(), 8)] {
        let wanted = data.join("pg_wal/RECOVERYXLOG");
        let fetch_by =
            |calls: Walvault| calls.in_directory(data).command(["wal", "fetch", &segment, "pg_wal/RECOVERYXLOG"]);
        let fetch = fetch_by(calls(&site.repo));
        let points = Point::all_of(&fetch_by(calm(&site.repo)));
        for (struck, point) in in_order("wal fetch", &chance, points, 12).into_iter().enumerate() {
            if is_enough((struck, 12), (felt, wanted_felt)) {
                break;
            }
            drop(fs::remove_file(&wanted));
            let struck = point.strike(&fetch);
            felt += u32::from(struck.felt);
            let story = format!("{point}\n{}", struck.outcome.story());
            match struck.outcome.code {
                Some(0) => {}
                Some(code) => assert!(code > 125, "PostgreSQL would take this for the end of the log\n{story}"),
                None => assert_eq!(struck.outcome.signal, Some(9), "{story}"),
            }
            let there = fs::read(&wanted).ok();
            assert!(there.as_ref().is_none_or(|there| *there == bytes), "half a segment is in place\n{story}");
            assert!(there.is_some() || struck.outcome.code != Some(0), "{story}");
        }
    }
    before.expect_unchanged(site.repo.path());
    assert!(felt > 8, "only {felt} points were reached");
}

/// An agent, two fetches through it, of which the second may have been fetched ahead, and the agent's end.
const FETCHED_THROUGH_AN_AGENT: &str = r#"
    timeout -s KILL 8 "$0" --repo "$1" --cluster main agent & agent=$!
    turn=0
    until [ -S "$2/main.sock" ] || [ "$turn" -eq 80 ] || ! kill -0 "$agent" 2>/dev/null; do
        turn=$((turn + 1)); sleep 0.1
    done
    for name in "$3" "$4"; do
        "$0" --repo "$1" --cluster main wal fetch "$name" "pg_wal/fetched-$name"; echo "fetched $?"
    done
    kill "$agent"; wait "$agent"
    exit 0
"#;

#[test]
fn a_fetch_through_an_agent_that_is_struck_never_says_that_the_log_ends() {
    let site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    let names = [site.server.archive_all(), site.server.archive_all()];
    let wal = |name: &str| fs::read(site.server.pgdata().join("pg_wal").join(name)).expect("it was not recycled yet");
    let bytes = names.each_ref().map(|name| wal(name));
    let bare = Scratch::new();
    let data = bare.create_dir("data");
    fs::create_dir_all(data.join("global")).and_then(|()| fs::create_dir(data.join("pg_wal"))).expect("new");
    fs::copy(site.server.pgdata().join("global/pg_control"), data.join("global/pg_control")).expect("a file");
    fs::write(data.join("recovery.signal"), "").expect("a file");
    crate::support::user::ServerUser::get().take_over(&data);

    let fetch = |place: &Scratch, seconds: &str| {
        let mut shell = command("/bin/sh");
        shell.args(["-c", FETCHED_THROUGH_AN_AGENT]).arg(binary()).arg(site.repo.url()).arg(place.path()).args(&names);
        shell.env("WALVAULT_RUNTIME_DIR", place.path()).env("WALVAULT_SCRATCH_DIR", place.path());
        shell.env("WALVAULT_HELPER", "0").env("WALVAULT_HOLE_TIMEOUT", "0").env("WALVAULT_CPUS", "1");
        shell.env("WALVAULT_FETCH_TIMEOUT", seconds).current_dir(&data);
        shell
    };
    let before = site.repo.snapshot();
    let mut felt = 0;
    let points = Point::all_of(&fetch(&Scratch::new(), "60"));
    for (struck, point) in in_order("agent's fetch", &Chance::new(), points, 8).into_iter().enumerate() {
        if is_enough((struck, 8), (felt, 3)) {
            break;
        }
        let place = Scratch::new();
        let struck = point.strike(&fetch(&place, "4"));
        felt += u32::from(struck.felt);
        let story = format!("{point}\n{}", struck.outcome.story());
        let answers: Vec<&str> =
            struck.outcome.stdout.lines().filter_map(|line| line.strip_prefix("fetched ")).collect();
        for answer in &answers {
            let status: i32 = answer.parse().expect("a number");
            assert!(status == 0 || status > 125, "PostgreSQL would take this for the end of the log\n{story}");
        }
        for (place, (name, bytes)) in names.iter().zip(&bytes).enumerate() {
            let wanted = data.join("pg_wal").join(format!("fetched-{name}"));
            let there = fs::read(&wanted).ok();
            assert!(there.as_ref().is_none_or(|there| there == bytes), "half a segment is in place\n{story}");
            assert!(there.is_some() || answers.get(place) != Some(&"0"), "{story}");
            drop(fs::remove_file(&wanted));
        }
    }
    before.expect_unchanged(site.repo.path());
    assert!(felt > 3, "only {felt} points were reached");
}

#[test]
fn a_backup_that_is_struck_is_whole_or_not_there() {
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
    let walvault = calls(&site.repo);
    let mut ledger = Ledger::create(&site.server);
    let rows = ledger.commit(&site.server, 200).rows;
    let conninfo = site.server.conninfo();
    let backup = || walvault.command(["backup", "--json", "--fast", "--dbname", &conninfo]);
    let mut listed = vec![site.backup()["id"].as_str().expect("a name").to_owned()];
    let points = chosen("backup", &Chance::new(), Point::all_of(&backup()), 10);
    listed = {
        drop(listed);
        site.listed()
    };
    let (mut felt, mut committed) = (0, 0);
    for point in points {
        // The last backup's own `.backup` file may still be on its way.
        site.server.wait_nothing_waits();
        let before = site.repo.snapshot();
        let struck = point.strike(&backup());
        felt += u32::from(struck.felt);
        let story = format!("{point}\n{}", struck.outcome.story());
        site.server.wait_nothing_waits();
        expect_only_added(&before, &site.repo, &story);
        let now = site.listed();
        assert!(now.starts_with(&listed) && now.len() <= listed.len() + 1, "{listed:?}, then {now:?}\n{story}");
        assert!(now.len() > listed.len() || !struck.outcome.is_ok(), "reported and not there\n{story}");
        assert!(struck.outcome.code.is_none_or(|code| code < 126 || code == 127), "{story}");
        if now.len() > listed.len() {
            // A manifest is there, so everything it names must be.
            committed += 1;
            let id = now.last().expect("it was just found");
            let target = ["--to-backup-end", "--backup", id, "--as", "clone", "--target-action", "promote"];
            let mut restored = Restored::by(&site.walvault, Major::V17, &target);
            Ledger::expect_rows(restored.promoted(), rows);
        }
        for name in ["backup_label", "tablespace_map"] {
            assert!(!site.server.pgdata().join(name).exists(), "{name} was left with the server\n{story}");
        }
        listed = now;
    }
    say(&format!("backup: {felt} points were reached, {committed} backups were committed all the same"));
    assert!(felt > 3, "only {felt} points were reached");
    // The server is as it was, and the next backup works.
    Ledger::expect_rows(&site.server, rows);
    site.backup();
}

#[test]
fn a_restore_that_is_struck_is_whole_or_cannot_be_started() {
    let site = Site::of(TestServer::builder(Major::V18).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    ledger.commit(&site.server, 200);
    site.backup();
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    let walvault = calls(&site.repo);
    let target = ["--to-latest", "--as", "clone", "--target-action", "promote"];
    // Always the same place, so that the directories can be compared to the last byte.
    let place = Scratch::new();
    let data = place.join("data");
    let words = [OsStr::new("restore"), data.as_os_str()];
    let restore: Command = walvault.command(words.into_iter().chain(target.iter().map(OsStr::new)));
    let points = chosen("restore", &Chance::new(), Point::all_of(&restore), 24);
    let whole = Snapshot::of(&data);
    let before = site.repo.snapshot();
    let (mut felt, mut finished) = (0, 0);
    for (number, point) in points.into_iter().enumerate() {
        fs::remove_dir_all(&data).expect("the last restore made it");
        let Struck { outcome, felt: reached } = point.strike(&restore);
        felt += u32::from(reached);
        let story = format!("{point}\n{}", outcome.story());
        assert!(outcome.code.is_none_or(|code| code < 126 || code == 127), "{story}");
        fs::create_dir_all(&data).expect("it is there or can be made");
        if outcome.is_ok() || data.join("global/pg_control").exists() {
            finished += 1;
            let differences = whole.differences(&Snapshot::of(&data));
            assert!(differences.is_empty(), "startable and not whole: {differences:#?}\n{story}");
        } else if number % 10 == 0 {
            let mut server = TestServer::over(Major::V18, &data);
            assert!(server.try_start().is_err(), "half a restore starts\n{story}\n{}", server.log());
        }
    }
    say(&format!("restore: {felt} points were reached, {finished} restores were whole all the same"));
    assert!(felt > 6, "only {felt} points were reached");
    before.expect_only_read(site.repo.path());
    fs::remove_dir_all(&data).expect("the last restore made it");
    crate::support::process::run(restore).expect_ok();
    let mut server = TestServer::over(Major::V18, &data);
    server.start();
    server.wait_until_writable();
    Ledger::expect_rows(&server, rows);
}

#[test]
fn a_delta_restore_that_is_struck_leaves_what_was_there_or_what_was_wanted_or_cannot_be_started() {
    let site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    ledger.commit(&site.server, 200);
    site.server.sql("create table wide as select n, md5(n::text) as text from generate_series(1, 20000) n");
    site.backup();
    let rows = ledger.commit(&site.server, 10).rows;
    site.server.archive_all();
    let walvault = calls(&site.repo);
    let place = Scratch::new();
    let data = place.join("data");
    let words = ["restore", data.to_str().expect("plain text"), "--to-latest", "--as", "clone"];
    let words = [&words[..], &["--target-action", "promote"]].concat();
    walvault.run(&words).expect_ok();
    let delta: Command = walvault.command([&words[..], &["--delta"]].concat());
    let table = data.join(site.server.query_one("select pg_relation_filepath('wide')"));
    let diverge = || {
        let mut bytes = fs::read(&table).expect("a table");
        (0..bytes.len()).step_by(30 * 8192).for_each(|at| bytes[at + 5000] ^= 1);
        fs::write(&table, bytes).expect("a table");
        fs::write(data.join("pg_wal/000000010000000000000FFF"), "of another history").expect("a file");
        drop(fs::remove_file(data.join("base/1/PG_VERSION")));
    };
    // The mark itself says only that a restore was at work.
    let looked = || Snapshot::of(&data).only(|name| !name.starts_with("walvault.restore"));
    let whole = looked();
    diverge();
    let astray = looked();
    let points = Point::all_of(&delta);
    assert!(whole.differences(&looked()).is_empty(), "{:#?}", whole.differences(&looked()));
    let before = site.repo.snapshot();
    let (mut felt, mut interrupted) = (0, 0);
    // Every block is read: of those calls, some.
    let (writes, reads): (Vec<Point>, Vec<Point>) = points.into_iter().partition(Point::writes);
    let points = [writes, reads.into_iter().step_by(20).collect()].concat();
    for (number, point) in in_order("restore --delta", &Chance::new(), points, 8).into_iter().enumerate() {
        if is_enough((number, 8), (felt, 1)) {
            break;
        }
        diverge();
        let Struck { outcome, felt: reached } = point.strike(&delta);
        felt += u32::from(reached);
        let story = format!("{point}\n{}", outcome.story());
        assert!(outcome.code.is_none_or(|code| code < 126 || code == 127), "{story}");
        let found = looked();
        let (to_whole, to_astray) = (whole.differences(&found), astray.differences(&found));
        if outcome.is_ok() {
            assert!(to_whole.is_empty(), "reported and not whole: {to_whole:#?}\n{story}");
        } else if data.join("global/pg_control").exists() {
            let as_it_was = to_whole.is_empty() || to_astray.is_empty();
            assert!(as_it_was, "startable, and neither: {to_whole:#?}\n{to_astray:#?}\n{story}");
        } else {
            interrupted += 1;
            if number % 4 == 0 {
                let mut server = TestServer::over(Major::V15, &data);
                assert!(server.try_start().is_err(), "half a restore starts\n{story}\n{}", server.log());
            }
        }
        let again = crate::support::process::run(walvault.command([&words[..], &["--delta"]].concat()));
        assert!(again.is_ok(), "{story}\n{}", again.story());
        assert!(whole.differences(&looked()).is_empty(), "{story}\n{:#?}", whole.differences(&looked()));
    }
    say(&format!("restore --delta: {felt} points were reached, {interrupted} restores were interrupted"));
    assert!(felt > 1, "only {felt} points were reached");
    before.expect_only_read(site.repo.path());
    let mut server = TestServer::over(Major::V15, &data);
    server.start();
    server.wait_until_writable();
    Ledger::expect_rows(&server, rows);
}
