//! A sound server, one thing wrong at a time: exactly the finding that is meant changes, to the level that is meant.

#![allow(clippy::unwrap_used)]

mod sound;

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::*;
use crate::archive::Promotion;
use crate::format::Sha256;
use crate::instance::{ArchiverState, Between, Identity, Rights, Slot, WalDirectory};
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;
use crate::repo::{Claim, LaneId, Owner, Probe, RepoError, WaitsFor};
use crate::retention::{Amount, LastExpiry, Overview, PinnedBackup};
use crate::store::CreateMode;
use crate::workflow::check::facts::*;
use crate::workflow::check::finding::Level::{Fail, NotChecked, Ok as Fine, Warn};
use crate::workflow::check::{EXAMPLE_FILE, EXAMPLE_PATH, Level, worst};
use sound::*;

/// What differs from a sound server when this is wrong.
fn differences(wrong: impl FnOnce(&mut Facts)) -> Vec<(Code, Level)> {
    let mut facts = sound();
    wrong(&mut facts);
    let findings = decide(&facts);
    for finding in &findings {
        let wants = matches!(finding.level, Warn | Fail);
        assert_eq!(finding.mend.is_some(), wants, "{finding:?}");
        assert!(!finding.text.is_empty() && !finding.text.contains('\n'), "{finding:?}");
    }
    let different = findings.iter().filter(|finding| finding.level != Fine);
    different.map(|finding| (finding.code, finding.level)).collect()
}

#[track_caller]
fn expect(code: Code, level: Level, wrong: impl FnOnce(&mut Facts)) {
    assert_eq!(differences(wrong), [(code, level)]);
}

fn set(facts: &mut Facts, name: &str, value: &str) {
    facts.settings.as_mut().unwrap().insert(name.to_owned(), value.to_owned());
}

fn archive_with(facts: &mut Facts, change: impl FnOnce(&mut WalvaultCall)) {
    let mut call = push();
    change(&mut call);
    facts.archive_command = Ok(CommandFacts::Walvault(call));
}

fn restore_with(facts: &mut Facts, change: impl FnOnce(&mut WalvaultCall)) {
    let mut call = fetch();
    change(&mut call);
    facts.restore_command = Ok(CommandFacts::Walvault(call));
}

fn understood(call: &mut WalvaultCall) -> &mut Understood {
    call.understood.as_mut().unwrap()
}

#[test]
fn a_sound_server_has_one_sound_finding_for_each_code() {
    assert_eq!(differences(|_| {}), []);
    let codes: Vec<Code> = decide(&sound()).iter().map(|finding| finding.code).collect();
    assert_eq!(codes, Code::ALL);
    assert_eq!(worst(&decide(&sound())), Fine);
}

#[test]
fn what_goes_and_whether_it_does() {
    const DAY: i64 = 86400;
    fn overview(facts: &mut Facts) -> &mut Overview {
        facts.retention.as_mut().unwrap().as_mut().unwrap()
    }
    let going = Amount { objects: 7, bytes: 70 };
    expect(Code::Retention, Fail, |facts| overview(facts).restorable = 0);
    expect(Code::Retention, NotChecked, |facts| overview(facts).blocked = Some("x".to_owned()));
    let why = |facts: &mut Facts| {
        overview(facts).restorable = 0;
        facts.holdings.as_mut().unwrap().missing_packs.push("x".to_owned());
    };
    assert_eq!(differences(why), [(Code::Packs, Fail), (Code::Retention, NotChecked)]);
    let unset = |facts: &mut Facts, oldest| {
        let last = None;
        *overview(facts) = Overview { policy: false, oldest: Some(ago(oldest)), last, ..overview(facts).clone() };
    };
    assert_eq!(differences(|facts| unset(facts, 29 * DAY)), []);
    expect(Code::Retention, Warn, |facts| unset(facts, 31 * DAY));
    let pin = |days, endless| PinnedBackup {
        backup: "b".to_owned(),
        words: "pinned".to_owned(),
        since: Some(ago(days * DAY)),
        endless,
    };
    expect(Code::Retention, Warn, |facts| overview(facts).pins.push(pin(366, true)));
    assert_eq!(differences(|facts| overview(facts).pins.extend([pin(364, true), pin(400, false)])), []);

    expect(Code::Expire, Warn, |facts| overview(facts).last.as_mut().unwrap().broke_off = true);
    let ran = |facts: &mut Facts, days: Option<i64>, going| {
        *overview(facts) = Overview { last: days.map(|days| expired(days * DAY)), going, ..overview(facts).clone() };
    };
    expect(Code::Expire, Warn, |facts| ran(facts, None, going));
    expect(Code::Expire, Warn, |facts| ran(facts, Some(9), going));
    assert_eq!(differences(|facts| ran(facts, Some(7), going)), []);
    assert_eq!(differences(|facts| ran(facts, None, Amount::default())), []);
    assert_eq!(differences(|facts| ran(facts, Some(9), Amount::default())), [], "there is nothing to go");
    expect(Code::Expire, Warn, |facts| {
        ran(facts, Some(9), Amount::default());
        overview(facts).policy = false;
    });
    let nothing = differences(|facts| facts.retention = Ok(None));
    assert_eq!(nothing, [(Code::Retention, NotChecked), (Code::Expire, NotChecked)]);
}

#[test]
fn the_program_and_the_server() {
    expect(Code::Config, Warn, |facts| facts.config.as_mut().unwrap().unknown.push("x".to_owned()));
    expect(Code::Config, Fail, |facts| facts.config = Err(Unknown::failed("x")));
    expect(Code::User, Warn, |facts| facts.user.owner = Some("postgres".to_owned()));
    expect(Code::DataDirectory, Fail, |facts| facts.data = Err(Unknown::failed("x")));
    expect(Code::DataDirectory, NotChecked, |facts| facts.data = Err(Unknown::not_checked("x")));
    expect(Code::Server, Fail, |facts| facts.server = Err(Unknown::failed("x")));
    expect(Code::Server, Warn, |facts| facts.server = Err(Unknown::not_checked("no server runs")));
    expect(Code::Server, Fail, |facts| facts.server.as_mut().unwrap().system_id = Some(SystemId::new(8)));
    expect(Code::Server, Fail, |facts| facts.server.as_mut().unwrap().version_number = 120_001);
    expect(Code::Pooler, Fail, |facts| facts.between.as_mut().unwrap().pgpool = Some("4.3".to_owned()));
    expect(Code::Pooler, Fail, |facts| facts.between.as_mut().unwrap().options_lost = true);
    expect(Code::Pooler, Fail, |facts| facts.between.as_mut().unwrap().process_changed = true);
    expect(Code::Privileges, Fail, |facts| facts.rights.as_mut().unwrap().missing_functions.push("f()".to_owned()));
    expect(Code::Privileges, Fail, |facts| facts.rights.as_mut().unwrap().all_settings = false);
    expect(Code::Privileges, Warn, |facts| facts.rights.as_mut().unwrap().switch_wal = false);
}

#[test]
fn the_settings() {
    expect(Code::WalLevel, Fail, |facts| set(facts, "wal_level", "minimal"));
    expect(Code::FullPageWrites, Warn, |facts| set(facts, "full_page_writes", "off"));
    expect(Code::Fsync, Warn, |facts| set(facts, "fsync", "off"));
    expect(Code::Checksums, Warn, |facts| set(facts, "data_checksums", "off"));
    expect(Code::WalSenders, Warn, |facts| set(facts, "max_wal_senders", "0"));
    expect(Code::ArchiveTimeout, Warn, |facts| set(facts, "archive_timeout", "0"));
    expect(Code::ArchiveTimeout, Warn, |facts| set(facts, "archive_timeout", "7200"));
    let mut quiet = sound();
    set(&mut quiet, "archive_timeout", "0");
    let passed_over = |facts: &Facts| judge(Code::ArchiveTimeout, facts).text.contains("takes its place");
    assert!(passed_over(&quiet));
    quiet.agent = Ok(AgentFacts::Agent { version: Some(env!("CARGO_PKG_VERSION").to_owned()), ours: true });
    assert!(!passed_over(&quiet), "it speaks for the server");
    expect(Code::ArchiveMode, Fail, |facts| set(facts, "archive_mode", "off"));
    let mut silent = sound();
    set(&mut silent, "archive_mode", "off");
    let mend = judge(Code::ArchiveMode, &silent).mend.unwrap();
    // The server shows no archive_command then, so nothing else would say it.
    assert!(mend.contains("archive_command = 'walvault wal push \"%p\"'"), "{mend}");
    expect(Code::ArchiveMode, Fail, |facts| set(facts, "archive_library", "basic_archive"));
    assert_eq!(differences(|facts| set(facts, "archive_mode", "always")), []);
    expect(Code::Fsync, NotChecked, |facts| {
        facts.settings.as_mut().unwrap().remove("fsync");
    });
    let slot =
        |active, held_bytes, status: &str| Slot { name: "s".to_owned(), active, held_bytes, status: status.to_owned() };
    expect(Code::Slots, Warn, |facts| facts.slots = Ok(vec![slot(false, 2 * GIB, "extended")]));
    expect(Code::Slots, Warn, |facts| facts.slots = Ok(vec![slot(true, 0, "lost")]));
    assert_eq!(differences(|facts| facts.slots = Ok(vec![slot(true, 2 * GIB, "extended")])), []);
    expect(Code::Slots, Warn, |facts| set(facts, "wal_keep_size", &(80 * GIB).to_string()));
}

#[test]
fn what_archive_command_may_be() {
    let wrong = |level, facts: &dyn Fn(&mut Facts)| expect(Code::ArchiveCommand, level, facts);
    wrong(Fail, &|facts| facts.archive_command = Ok(CommandFacts::Unset));
    wrong(Warn, &|facts| facts.archive_command = Ok(CommandFacts::Opaque("it runs a script")));
    wrong(Fail, &|facts| facts.archive_command = Ok(CommandFacts::Other { program: "cp".to_owned() }));
    wrong(NotChecked, &|facts| facts.archive_command = Err(Unknown::not_checked("archive_mode is off")));
    wrong(Fail, &|facts| archive_with(facts, |call| call.binary = Binary::Missing));
    wrong(Fail, &|facts| archive_with(facts, |call| call.binary = Binary::NotExecutable));
    wrong(Warn, &|facts| archive_with(facts, |call| call.binary = Binary::Other { path: "/x".into() }));
    wrong(Fail, &|facts| archive_with(facts, |call| call.understood = Err("unexpected argument".to_owned())));
    wrong(Fail, &|facts| archive_with(facts, |call| understood(call).verb = CalledVerb::Fetch));
    wrong(Fail, &|facts| archive_with(facts, |call| understood(call).files = vec![EXAMPLE_FILE.to_owned()]));
    wrong(Fail, &|facts| archive_with(facts, |call| understood(call).destination = Err("no cluster".to_owned())));
    let elsewhere = Destination { repository: "file:///other".to_owned(), ..here() };
    let another = Destination { cluster: "other".to_owned(), ..here() };
    wrong(Fail, &|facts| archive_with(facts, |call| understood(call).destination = Ok(elsewhere.clone())));
    wrong(Fail, &|facts| archive_with(facts, |call| understood(call).destination = Ok(another.clone())));
    wrong(Warn, &|facts| archive_with(facts, |call| call.joined = Joined::Honest));
    wrong(Fail, &|facts| archive_with(facts, |call| call.joined = Joined::Hiding));
    wrong(Warn, &|facts| archive_with(facts, |call| call.wrapper = Some("timeout".to_owned())));
}

#[test]
fn what_restore_command_may_be() {
    let wrong = |level, facts: &dyn Fn(&mut Facts)| expect(Code::RestoreCommand, level, facts);
    wrong(Warn, &|facts| facts.restore_command = Ok(CommandFacts::Other { program: "cp".to_owned() }));
    wrong(Warn, &|facts| facts.restore_command = Ok(CommandFacts::Opaque("it runs a script")));
    wrong(Fail, &|facts| restore_with(facts, |call| call.joined = Joined::Hiding));
    wrong(Fail, &|facts| restore_with(facts, |call| call.joined = Joined::Honest));
    wrong(Fail, &|facts| restore_with(facts, |call| call.wrapper = Some("timeout".to_owned())));
    wrong(Fail, &|facts| restore_with(facts, |call| understood(call).verb = CalledVerb::Push));
    wrong(Fail, &|facts| restore_with(facts, |call| understood(call).files = vec![EXAMPLE_FILE.to_owned()]));
    wrong(Warn, &|facts| {
        facts.restore_command = Ok(CommandFacts::Unset);
        facts.server.as_mut().unwrap().in_recovery = true;
    });
    assert_eq!(differences(|facts| facts.restore_command = Ok(CommandFacts::Unset)), []);
}

#[test]
fn wal_on_its_way() {
    fn wal(facts: &mut Facts) -> &mut WalDirectory {
        facts.wal.as_mut().unwrap()
    }
    fn waits(facts: &mut Facts, ready: u64, seconds: u64) {
        wal(facts).ready = ready;
        wal(facts).oldest_ready = Some(("x".to_owned(), Duration::from_secs(seconds)));
    }
    expect(Code::Archiver, Fail, |facts| facts.archiver.as_mut().unwrap().failing = true);
    assert_eq!(differences(|facts| facts.archiver = Ok(ArchiverState::default())), []);
    assert_eq!(differences(|facts| waits(facts, 2, 5)), []);
    expect(Code::Backlog, Warn, |facts| waits(facts, 17, 5));
    expect(Code::Backlog, Warn, |facts| waits(facts, 1, 200));
    expect(Code::Backlog, Fail, |facts| waits(facts, 1, 1000));
    expect(Code::Backlog, Warn, |facts| {
        waits(facts, 1, 1000);
        facts.data.as_mut().unwrap().running = false;
    });
    expect(Code::Disk, Warn, |facts| wal(facts).free_bytes = 5 * GIB);
    expect(Code::Disk, Warn, |facts| wal(facts).bytes_per_second = Some(60.0 * GIB as f64 / 3600.0));
    let stuck = |facts: &mut Facts| {
        waits(facts, 1, 1000);
        wal(facts).bytes_per_second = Some(60.0 * GIB as f64 / 80_000.0);
    };
    assert_eq!(differences(stuck), [(Code::Backlog, Fail), (Code::Disk, Fail)]);

    let ends = |outcome: RoundTripEnd| move |facts: &mut Facts| facts.round_trip.as_mut().unwrap().outcome = outcome;
    let (stored, local) = (Sha256::of(b"a"), Sha256::of(b"b"));
    expect(Code::RoundTrip, Fail, ends(RoundTripEnd::Other { stored, local }));
    expect(Code::RoundTrip, Fail, ends(RoundTripEnd::Absent));
    expect(Code::RoundTrip, Fail, ends(RoundTripEnd::CommandFailed));
    expect(Code::RoundTrip, Fail, ends(RoundTripEnd::TooLate));
    assert_eq!(differences(ends(RoundTripEnd::Intact)), []);
    expect(Code::RoundTrip, NotChecked, |facts| facts.round_trip = Err(Unknown::not_checked("--no-switch")));
}

#[test]
fn the_agent() {
    let agent = |version: &str, ours| AgentFacts::Agent { version: Some(version.to_owned()), ours };
    let own = env!("CARGO_PKG_VERSION");
    assert_eq!(differences(|facts| facts.agent = Ok(agent(own, true))), []);
    let wrong = [
        agent("0.0.9", true),
        agent(own, false),
        AgentFacts::Agent { version: None, ours: true },
        AgentFacts::Stranger,
        AgentFacts::Silent { socket: "/run/walvault/main.sock".into(), problem: "x".to_owned() },
    ];
    for wrong in wrong {
        expect(Code::Agent, Warn, |facts| facts.agent = Ok(wrong));
    }
    expect(Code::Agent, NotChecked, |facts| facts.agent = Err(Unknown::not_checked("x")));
}

#[test]
fn the_repository() {
    assert_eq!(
        differences(|facts| facts.repository = Err(Unknown::failed("x"))),
        [(Code::Repository, Fail), (Code::Place, NotChecked)]
    );
    expect(Code::Place, Warn, |facts| facts.repository.as_mut().unwrap().shares_disk = Some(true));
    expect(Code::Place, NotChecked, |facts| facts.repository.as_mut().unwrap().shares_disk = None);
    expect(Code::Lane, Fail, |facts| facts.repository.as_mut().unwrap().headless.push(lane().id));
    expect(Code::Lane, Fail, |facts| facts.lane = Ok(Some(LaneState { misfit: Some("x".to_owned()), ..lane() })));
    assert_eq!(
        differences(|facts| facts.lane = Ok(None)),
        [(Code::Lane, Warn), (Code::Owner, NotChecked), (Code::Contested, NotChecked)]
    );
    let other = || LaneState { owner: owner("another"), ..lane() };
    expect(Code::Owner, Warn, |facts| facts.lane = Ok(Some(other())));
    assert_eq!(
        differences(|facts| {
            facts.lane = Ok(Some(other()));
            facts.server.as_mut().unwrap().in_recovery = true;
        }),
        []
    );
    assert_eq!(differences(|facts| facts.lane = Ok(Some(LaneState { owner: None, ..lane() }))), []);
    expect(Code::Owner, Warn, |facts| {
        let waits_for = Some(WaitsFor { timeline: TimelineId::FIRST, host: "db1".to_owned(), grace_seconds: 900 });
        let waiting = Owner { waits_for, ..owner("me").unwrap() };
        facts.lane = Ok(Some(LaneState { owner: Some(waiting), ..lane() }));
    });
    expect(Code::Contested, Fail, |facts| {
        facts.lane = Ok(Some(LaneState { contested: vec!["x".to_owned()], ..lane() }))
    });
}

#[test]
fn a_standby_that_nothing_pushes_from_has_a_window() {
    let standby = |change: fn(&mut Facts)| {
        differences(|facts| {
            facts.server.as_mut().unwrap().in_recovery = true;
            facts.standby_agent = false;
            change(facts);
        })
    };
    assert_eq!(standby(|_| ()), [(Code::FailoverWindow, Warn)]);
    let window = |name: &str, value: &str| {
        let mut facts = sound();
        facts.server.as_mut().unwrap().in_recovery = true;
        facts.standby_agent = false;
        set(&mut facts, name, value);
        judge(Code::FailoverWindow, &facts).level
    };
    assert_eq!([window("wal_keep_size", "1024"), window("archive_mode", "always")], [Fine, Fine]);
    assert_eq!(window("wal_keep_size", "0"), Warn);
}

#[test]
fn a_promotion_that_left_rows_out_or_lacks_segments_is_told() {
    let promotion = |end: &str, missing| Promotion {
        timeline: TimelineId::new(2).unwrap(),
        parent: TimelineId::FIRST,
        fork: "0/5000000".parse().unwrap(),
        aimed: false,
        archived_end: Some(end.parse().unwrap()),
        missing,
    };
    let with = |promotion| move |facts: &mut Facts| facts.holdings.as_mut().unwrap().promotion = Some(promotion);
    expect(Code::Promotion, Fail, with(promotion("0/5000100", 0)));
    expect(Code::Promotion, Warn, with(promotion("0/3000000", 1)));
    assert_eq!(differences(with(promotion("0/4FFFF00", 0))), []);
}

#[test]
fn what_this_host_may_do() {
    fn tried(change: impl FnOnce(&mut Probe)) -> impl FnOnce(&mut Facts) {
        |facts| change(facts.probe.as_mut().unwrap())
    }
    let nothing = Probe {
        write: Err(denied()),
        read_back: None,
        listed: None,
        mode: CreateMode::Conditional,
        create_only: None,
        clock_ahead: None,
        delete: None,
    };
    assert_eq!(
        differences(|facts| facts.probe = Ok(nothing)),
        [
            (Code::Write, Fail),
            (Code::Read, NotChecked),
            (Code::CreateOnly, NotChecked),
            (Code::Clock, NotChecked),
            (Code::Delete, NotChecked)
        ]
    );
    expect(Code::Read, Fail, tried(|probe| probe.read_back = Some(Ok(false))));
    expect(Code::Read, Fail, tried(|probe| probe.read_back = Some(Err(denied()))));
    expect(Code::Read, Fail, tried(|probe| probe.listed = Some(Ok(false))));
    expect(Code::Read, Fail, tried(|probe| probe.listed = Some(Err(denied()))));
    expect(Code::CreateOnly, Fail, tried(|probe| probe.create_only = Some(Ok(CreateMode::ContentAddressed))));
    expect(Code::CreateOnly, Warn, tried(|probe| probe.mode = CreateMode::ContentAddressed));
    expect(Code::CreateOnly, Fail, tried(|probe| probe.create_only = Some(Err(denied()))));
    for (seconds, level) in [(61, Warn), (-61, Warn), (901, Fail), (-901, Fail)] {
        expect(Code::Clock, level, tried(|probe| probe.clock_ahead = Some(chrono::Duration::seconds(seconds))));
    }
    assert_eq!(differences(tried(|probe| probe.delete = Some(Err(denied())))), []);
    expect(Code::Delete, Warn, |facts| {
        facts.repository.as_mut().unwrap().is_volume = false;
        facts.repository.as_mut().unwrap().shares_disk = None;
    });
}

#[test]
fn what_can_be_restored() {
    fn held(change: impl FnOnce(&mut Holdings)) -> impl FnOnce(&mut Facts) {
        |facts| change(facts.holdings.as_mut().unwrap())
    }
    let backup = |seconds| held(move |holdings| holdings.newest_backup = Some(("b".to_owned(), ago(seconds))));
    expect(Code::Backup, Warn, backup(27 * 3600));
    expect(Code::Backup, Fail, backup(9 * 86400));
    expect(Code::Manifests, Fail, held(|holdings| holdings.unreadable.push("x".to_owned())));
    expect(Code::Packs, Fail, held(|holdings| holdings.missing_packs.push("x".to_owned())));
    expect(Code::Holes, Fail, held(|holdings| holdings.holes.push("x".to_owned())));
    expect(Code::Restorable, Warn, held(|holdings| holdings.reach.as_mut().unwrap().time = ago(4000)));
    assert_eq!(
        differences(|facts| {
            facts.holdings.as_mut().unwrap().reach.as_mut().unwrap().time = ago(400_000);
            facts.server.as_mut().unwrap().position = Some("0/4000100".parse().unwrap());
        }),
        [],
        "a quiet server"
    );
    assert_eq!(
        differences(|facts| facts.holdings = Ok(Holdings::default())),
        [(Code::Backup, Fail), (Code::Packs, NotChecked), (Code::Holes, NotChecked), (Code::Restorable, NotChecked)]
    );
}

#[test]
fn one_failure_is_one_finding() {
    let failing = |wrong: fn(&mut Facts)| {
        let found = differences(wrong).into_iter();
        found.filter(|(_, level)| *level == Fail).map(|(code, _)| code).collect::<Vec<_>>()
    };
    assert_eq!(failing(|facts| facts.holdings = Err(Unknown::failed("x"))), [Code::Backup]);
    assert_eq!(failing(|facts| facts.lane = Err(Unknown::failed("x"))), [Code::Lane]);
    assert_eq!(failing(|facts| facts.probe = Err(Unknown::failed("x"))), [Code::Write]);
    assert_eq!(failing(|facts| facts.wal = Err(Unknown::failed("x"))), [Code::Backlog]);
}

#[test]
fn with_the_server_down_the_rest_is_judged_all_the_same() {
    let down = || Unknown::not_checked("the server was not reached");
    let found = differences(|facts| {
        facts.server = Err(Unknown::not_checked("no server runs in /data"));
        facts.data.as_mut().unwrap().running = false;
        facts.settings = Err(down());
        facts.rights = Err(down());
        facts.between = Err(down());
        facts.archive_command = Err(down());
        facts.restore_command = Err(down());
        facts.archiver = Err(down());
        facts.slots = Err(down());
        facts.round_trip = Err(down());
    });
    assert_eq!(found.iter().filter(|(_, level)| *level == Warn).collect::<Vec<_>>(), [&(Code::Server, Warn)]);
    assert!(!found.iter().any(|(_, level)| *level == Fail), "{found:?}");
    for judged in [Code::Backlog, Code::Disk, Code::Repository, Code::Lane, Code::Write, Code::Backup, Code::Holes] {
        assert!(!found.iter().any(|(code, _)| *code == judged), "{judged}");
    }
}

#[test]
fn durations_and_sizes_are_said_as_people_do() {
    let said = [5, 130, 8000, 200_000].map(|seconds| spoken(Duration::from_secs(seconds)));
    assert_eq!(said, ["5 s", "2 min", "2 h", "2 days"]);
    assert_eq!([2048, 5 << 20, 3 * GIB / 2].map(size), ["2 KiB", "5 MiB", "1.5 GiB"]);
}
