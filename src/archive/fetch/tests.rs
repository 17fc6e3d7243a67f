//! What is answered, by caller and name, over the real log in `fixtures/wal`: timeline 2 forks off inside segment 11 of
//! timeline 1, which goes on alone to the end of that segment.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::clock;
use crate::format::digest;
use crate::format::recovery_plan::{PlannedStretch, RECOVERY_PLAN_VERSION};
use crate::format::wal;
use crate::repo::lane_fixture::{Original, archive, lane_without};
use crate::repo::{Claim, HOLE_VERSION, Hole as GivenUp, OWNER_VERSION, Owner, WaitsFor};
use crate::store::fault::{Fault, When};

const NOW: FetchBudgets = FetchBudgets { hole: Duration::ZERO, standby_hole: Duration::ZERO };

#[derive(Debug, PartialEq)]
enum Answer {
    InPlace,
    Absent,
    Hole,
    LeftBranch,
}

fn answer(lane: &Lane, caller: &Caller, name: &str) -> Answer {
    // A directory of its own: other tests fetch the same names at the same time.
    let directory = tempfile::tempdir().unwrap();
    let destination = directory.path().join(name);
    let fetched = Fetcher::new(lane, caller.clone(), NOW).fetch(&name.parse().unwrap(), &destination);
    let in_place = destination.exists();
    match fetched {
        Ok(Fetched::InPlace) => {
            assert!(in_place);
            Answer::InPlace
        }
        Ok(Fetched::ProvenAbsent(_)) => {
            assert!(!in_place);
            Answer::Absent
        }
        Err(FetchError::Hole { .. }) => {
            assert!(!in_place);
            Answer::Hole
        }
        Err(FetchError::LeftBranch { .. }) => {
            assert!(!in_place);
            Answer::LeftBranch
        }
        Err(error) => panic!("{name}: {error}"),
    }
}

fn check(lane: &Lane, caller: &Caller, table: &[(&str, Answer)]) {
    for (name, expected) in table {
        assert_eq!(answer(lane, caller, name), *expected, "{name} for {caller:?}");
    }
}

/// The plan of a recovery along timeline 2, to a target in segment 12.
fn plan(lane: &Lane) -> Caller {
    let fork = "0/1110560".parse().unwrap();
    let stretch = |number, begin, end| PlannedStretch { timeline: TimelineId::new(number).unwrap(), begin, end };
    Caller::Recovery(Some(RecoveryPlan {
        primary: None,
        version: RECOVERY_PLAN_VERSION,
        system_id: lane.id().system_id(),
        lane: lane.id().to_string(),
        backup: "b".to_owned(),
        segment_size: 1 << 20,
        path: vec![stretch(1, Lsn::INVALID, Some(fork)), stretch(2, fork, None)],
        needed_before: "0/1200100".parse().unwrap(),
        partial: None,
        target: String::new(),
    }))
}

#[test]
fn a_recovery_without_a_plan_never_takes_the_parent_past_a_fork_and_stops_only_at_a_proven_end() {
    use Answer::{Absent, Hole, InPlace, LeftBranch};
    let table = [
        ("000000010000000000000010", InPlace),
        // The parent's own, from the fork on: archived, and the wrong branch.
        ("000000010000000000000011", LeftBranch),
        ("000000010000000000000012", LeftBranch),
        ("000000010000000000000014", LeftBranch),
        ("000000020000000000000011", InPlace),
        ("000000020000000000000013", InPlace),
        ("000000020000000000000014", Absent),
        ("000000020000000000000020", Hole),
        ("00000001.history", Absent),
        ("00000002.history", InPlace),
        ("00000003.history", Absent),
    ];
    check(&lane_without(&[]), &Caller::Recovery(None), &table);
}

#[test]
fn what_must_exist_is_a_hole_for_a_recovery() {
    use Answer::{Hole, InPlace};
    let lane = lane_without(&["00000001000000000000000A", "000000020000000000000012"]);
    let table = [("00000001000000000000000A", Hole), ("00000001000000000000000B", InPlace)];
    check(&lane, &Caller::Recovery(None), &table);
    check(&lane, &Caller::Recovery(None), &[("000000020000000000000012", Hole)]);
    check(&lane, &plan(&lane), &[("000000020000000000000012", Hole), ("00000001000000000000000A", Hole)]);
    check(&lane, &Caller::Standby, &[("00000001000000000000000A", Hole), ("000000020000000000000012", Hole)]);
}

#[test]
fn a_childs_first_segment_must_exist_once_its_history_is_archived() {
    let lane = lane_without(&["000000020000000000000011", "000000020000000000000012", "000000020000000000000013"]);
    let segment = "000000020000000000000011";
    assert_eq!(answer(&lane, &Caller::Recovery(None), segment), Answer::Hole);
    assert_eq!(answer(&lane, &plan(&lane), segment), Answer::Hole);
    // A standby is told so, and streams it.
    assert_eq!(answer(&lane, &Caller::Standby, segment), Answer::Absent);
    assert_eq!(answer(&lane, &Caller::Standby, "000000010000000000000011"), Answer::LeftBranch);
}

#[test]
fn a_plan_answers_for_what_lies_off_the_branch_or_past_the_target() {
    use Answer::{Absent, InPlace};
    let lane = lane_without(&[]);
    let table = [
        ("000000010000000000000010", InPlace),
        ("000000010000000000000011", Absent),
        ("000000020000000000000011", InPlace),
        ("000000020000000000000012", InPlace),
        ("000000020000000000000013", Absent),
        ("000000020000000000000010", Absent),
        ("00000001.history", Absent),
        ("00000002.history", InPlace),
        ("00000003.history", Absent),
    ];
    check(&lane, &plan(&lane), &table);
}

#[test]
fn who_fetches_ahead_reads_nothing_to_prove_an_absence_and_is_told_none() {
    let lane = lane_without(&[]);
    let ask = |name: &str| {
        Fetcher::new(&lane, Caller::Recovery(None), NOW).only_for_what_is_there().load(&name.parse().unwrap())
    };
    assert!(matches!(ask("000000020000000000000013"), Ok(Loaded::Here(_))));
    assert!(matches!(ask("000000020000000000000014"), Err(FetchError::Hole { .. })));
    assert_eq!(answer(&lane, &Caller::Recovery(None), "000000020000000000000014"), Answer::Absent);
}

#[test]
fn a_part_that_stands_in_for_a_segment_under_a_plan_is_not_fetched_ahead_for_whoever_comes() {
    let name = "000000010000000000000010";
    let raw = lane_without(&[]).read_wal(&name.parse().unwrap()).unwrap().unwrap().raw;
    let lane = lane_without(&[name]);
    archive(&lane, &format!("{name}.partial").parse().unwrap(), &raw);
    let Caller::Recovery(Some(plan)) = plan(&lane) else { panic!("a plan") };
    let stretch = PlannedStretch { timeline: TimelineId::FIRST, begin: Lsn::INVALID, end: None };
    let (needed_before, partial) = ("0/1000100".parse().unwrap(), Some(digest::of_contents(&raw)));
    let caller = Caller::Recovery(Some(RecoveryPlan { path: vec![stretch], needed_before, partial, ..plan }));
    assert_eq!(answer(&lane, &caller, name), Answer::InPlace);
    let ahead = Fetcher::new(&lane, caller, NOW).only_for_what_is_there().load(&name.parse().unwrap());
    assert!(matches!(ahead, Err(FetchError::Hole { .. })), "{ahead:?}");
}

#[test]
fn a_segment_that_is_another_one_inside_never_gets_the_name() {
    let name: WalFileName = "000000010000000000000009".parse().unwrap();
    let other = lane_without(&[]).read_wal(&"000000010000000000000008".parse().unwrap()).unwrap().unwrap().raw;
    for (raw, whole) in [(&other[..], true), (&other[..other.len() / 2], false)] {
        let lane = lane_without(&["000000010000000000000009"]);
        let encoded = wal::encode(&lane.wal_identity(&name), &raw, raw.len() as u64, 1, 1, None).unwrap();
        lane.create_wal(&name, &encoded).unwrap();
        for caller in [Caller::Recovery(None), plan(&lane), Caller::Standby, Caller::Exact] {
            let directory = tempfile::tempdir().unwrap();
            let fetched = Fetcher::new(&lane, caller, NOW).fetch(&name, &directory.path().join("RECOVERYXLOG"));
            let refused = match fetched {
                Err(FetchError::FirstPage { .. }) => whole,
                Err(FetchError::Size { .. }) => !whole,
                _ => false,
            };
            assert!(refused, "{fetched:?}");
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "something is left");
        }
    }
}

#[test]
fn whoever_wants_one_file_gets_it_from_any_branch() {
    use Answer::{Absent, InPlace};
    let table = [("000000010000000000000011", InPlace), ("000000020000000000000011", InPlace)];
    check(&lane_without(&[]), &Caller::Exact, &table);
    check(&lane_without(&[]), &Caller::Exact, &[("000000030000000000000012", Absent)]);
}

#[test]
fn the_end_is_not_proven_where_the_segment_before_it_is_missing() {
    let lane = lane_without(&[
        "000000020000000000000013",
        "000000020000000000000012",
        "000000010000000000000012",
        "000000010000000000000013",
    ]);
    assert_eq!(answer(&lane, &Caller::Recovery(None), "000000020000000000000012"), Answer::Absent);
    assert_eq!(answer(&lane, &Caller::Recovery(None), "000000020000000000000013"), Answer::Hole);
}

/// A lane whose timeline 2 began while the owner of timeline 1 was at work.
fn waiting() -> Lane {
    let lane = lane_without(&[]);
    own(&lane, 1, Some(WaitsFor { timeline: TimelineId::FIRST, host: "db1".to_owned(), grace_seconds: 900 }));
    lane
}

fn own(lane: &Lane, number: u32, waits_for: Option<WaitsFor>) {
    let text = |text: &str| text.to_owned();
    let (writer, host, since) = (text("b"), text("db2"), text("x"));
    let owner = Owner { version: OWNER_VERSION, writer, host, since, claim: Claim::First, waits_for };
    lane.record_owner(TimelineId::new(2).unwrap(), number, &owner).unwrap();
}

#[test]
fn a_branch_that_does_not_count_is_followed_by_nobody_who_was_not_told_to() {
    use Answer::{Absent, InPlace, LeftBranch};
    let lane = waiting();
    let past_the_fork = ("000000010000000000000011", InPlace);
    // The standby stays on its primary's branch, past the fork of the other one.
    check(&lane, &Caller::Standby, &[("00000002.history", Absent), past_the_fork]);
    check(&lane, &Caller::Recovery(None), &[("00000002.history", LeftBranch)]);
    check(&lane, &plan(&lane), &[("00000002.history", InPlace), ("000000020000000000000011", InPlace)]);
    check(&lane, &Caller::Exact, &[("00000002.history", InPlace)]);
    own(&lane, 2, None);
    check(&lane, &Caller::Standby, &[("00000002.history", InPlace), ("000000010000000000000011", LeftBranch)]);
    check(&lane, &Caller::Recovery(None), &[("00000002.history", InPlace)]);
}

#[test]
fn a_branch_that_does_not_count_hides_no_later_one_that_does() {
    let lane = waiting();
    archive(&lane, &"00000003.history".parse().unwrap(), b"1\t0/1200000\tno recovery target specified\n");
    let table = [("00000002.history", Answer::InPlace), ("00000003.history", Answer::InPlace)];
    check(&lane, &Caller::Standby, &table);
    check(&lane, &Caller::Recovery(None), &table);
}

#[test]
fn a_standby_past_the_fork_is_told_of_the_branch_so_that_its_own_gets_another_number() {
    let lane = waiting();
    let fork = "0/1110560".parse::<Lsn>().unwrap().bytes();
    let (one, two) = (TimelineId::FIRST, TimelineId::new(2).unwrap());
    let name = WalFileName::History(two);
    for (timeline, at, told) in [(one, fork, false), (one, fork + 8, true), (one, 0, false), (two, 0, true)] {
        let fetcher = Fetcher::new(&lane, Caller::Standby, NOW).having_replayed(Some((timeline, Lsn::new(at))));
        let loaded = fetcher.load(&name).unwrap();
        assert_eq!(matches!(loaded, Loaded::Here(_)), told, "{timeline} {at}");
    }
}

#[test]
fn what_was_given_up_is_a_hole_whatever_lies_under_its_name() {
    use Answer::{Hole, InPlace};
    let lane = lane_without(&["000000010000000000000009"]);
    let segment = |text: &str| text.parse::<SegmentName>().unwrap();
    let (from, through) = (segment("000000010000000000000009"), segment("00000001000000000000000A"));
    let (reason, host) = ("disk".to_owned(), "db1".to_owned());
    let hole =
        GivenUp { version: HOLE_VERSION, from, through, reason, host, decided_at: clock::now(), disputed: false };
    lane.record_hole(&hole).unwrap();
    let table = [
        ("000000010000000000000008", InPlace),
        ("000000010000000000000009", Hole),
        ("00000001000000000000000A", Hole),
        ("00000001000000000000000B", InPlace),
    ];
    check(&lane, &Caller::Recovery(None), &table);
    check(&lane, &Caller::Standby, &table);
    // A plan that was made before.
    check(&lane, &plan(&lane), &table);
}

/// Every way in which one operation of a store fails, but for a lie.
const FAULTS: [Fault; 8] = [
    Fault::Before(std::io::ErrorKind::Other),
    Fault::Before(std::io::ErrorKind::PermissionDenied),
    Fault::Before(std::io::ErrorKind::TimedOut),
    Fault::After(std::io::ErrorKind::Other),
    Fault::Truncate { to: 100 },
    Fault::FlipBit { bit: 3000 },
    Fault::Die,
    Fault::DieAfter,
];

#[test]
#[allow(clippy::print_stderr, reason = "the test run shows the counts")]
fn no_failure_of_the_store_is_ever_an_absence() {
    // What is there, what is a hole, the end of each branch, histories that are there and that nobody wrote.
    let names = [
        "000000010000000000000010",
        "00000001000000000000000A",
        "000000010000000000000011",
        "000000020000000000000013",
        "000000020000000000000014",
        "00000002.history",
        "00000003.history",
    ];
    let left_out = ["00000001000000000000000A"];
    let original = Original::without(&left_out);
    let (sound, ..) = original.copy();
    let (mut points, mut felt) = (0, 0);
    let soaking = std::env::var_os("WALVAULT_SOAK").is_some();
    for caller in [Caller::Recovery(None), plan(&sound), Caller::Standby, Caller::Exact] {
        for name in names {
            let directory = tempfile::tempdir().unwrap();
            let (_, lane, faulty) = original.copy();
            let ask = |lane: &Lane| {
                Fetcher::new(lane, caller.clone(), NOW).fetch(&name.parse().unwrap(), &directory.path().join(name))
            };
            let before = faulty.operations();
            let undisturbed = ask(&lane);
            let operations = faulty.operations() - before;
            for operation in 1..=operations {
                for fault in crate::store::fault::in_turn(&FAULTS, operation, soaking) {
                    points += 1;
                    let (_, lane, faulty) = original.copy();
                    faulty.script(When::nth(operation), fault);
                    let answer = ask(&lane);
                    let story = format!("{name} for {caller:?}, {fault:?} at {operation} of {operations}: {answer:?}");
                    felt += u32::from(answer.is_err());
                    let absent = |answer: &Result<Fetched, FetchError>| matches!(answer, Ok(Fetched::ProvenAbsent(_)));
                    // A fault may go unnoticed where the answer needs no byte of the reply; then it is the sound one.
                    assert!(!absent(&answer) || absent(&undisturbed), "{story}");
                    let lost = matches!(fault, Fault::Before(_) | Fault::After(_) | Fault::Die | Fault::DieAfter);
                    assert!(!absent(&answer) || !lost, "a request that failed was taken for an answer: {story}");
                }
            }
        }
    }
    eprintln!("fetch over a failing store: {points} points, {felt} of them failures");
    assert!(points > 100 && felt > 80, "only {points} points, {felt} failures");
}
