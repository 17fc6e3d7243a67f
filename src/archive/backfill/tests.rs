//! Back-fill over the real log in `fixtures/wal`: timeline 2 forks off inside segment 11 of timeline 1. A `pg_wal` as
//! the new primary has it, and archives that lack some of it.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::pg::wal_fixture::{Log, one_mib, segments};
use crate::repo::lane_fixture::{MAJOR, Original, archive, facts_of, lane_of, lane_without};
use crate::store::Verb;
use crate::store::fault::{Fault, When};

/// A `pg_wal`; removed when dropped.
struct Wal(tempfile::TempDir);

impl Wal {
    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// What a promoted server has: its past up to the fork, and its own timeline.
    fn promoted() -> Self {
        let wal = Self::empty();
        let past =
            segments(MAJOR, 1).into_iter().filter(|(name, _)| name.to_string().as_str() < "000000010000000000000011");
        past.chain(segments(MAJOR, 2)).for_each(|(name, raw)| wal.put(&name.to_string(), &raw));
        wal.put("00000002.history", &history());
        wal
    }

    fn put(&self, name: &str, raw: &[u8]) {
        std::fs::write(self.0.path().join(name), raw).unwrap();
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.path().join(name)).unwrap()
    }

    fn run(&self, lane: &Lane, history: History, scope: Scope) -> Backfilled {
        self.try_run(lane, history, scope).unwrap()
    }

    fn try_run(&self, lane: &Lane, history: History, scope: Scope) -> Result<Backfilled, BackfillError> {
        let writer = Writer {
            token: "0123456789abcdef".to_owned(),
            former: None,
            host: "here".to_owned(),
            grace: Duration::from_secs(900),
            takes_over: None,
            follows: false,
        };
        let options = PushOptions { level: 1, threads: 1 };
        let backfill = Backfill { directory: self.0.path(), server: lane.facts(), writer: &writer, options };
        backfill.perform(lane, history, scope, Instant::now() + Duration::from_secs(60))
    }

    fn below_the_fork(&self, lane: &Lane) -> Backfilled {
        self.run(lane, fork(), Scope::BelowTheFork)
    }
}

fn history() -> Vec<u8> {
    std::fs::read(format!("{}/fixtures/wal/{MAJOR}/00000002.history", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn fork() -> History {
    History::parse(TimelineId::new(2).unwrap(), &String::from_utf8(history()).unwrap()).unwrap()
}

fn names(segments: &[SegmentName]) -> Vec<String> {
    segments.iter().map(SegmentName::to_string).collect()
}

fn archived(lane: &Lane, name: &str) -> Option<Vec<u8>> {
    lane.read_wal(&name.parse().unwrap()).unwrap().map(|stored| stored.raw)
}

#[test]
fn what_the_archive_lacks_below_the_fork_is_pushed_and_what_it_has_is_compared() {
    let lacking = ["000000010000000000000009", "00000001000000000000000F", "000000010000000000000010"];
    let lane = lane_without(&lacking);
    let wal = Wal::promoted();
    let done = wal.below_the_fork(&lane);
    assert_eq!(names(&done.pushed), lacking);
    assert_eq!((done.same, done.contested.len(), done.unproven.len(), done.unfinished), (7, 0, 0, false));
    for name in lacking {
        assert!(archived(&lane, name) == Some(wal.bytes(name)), "{name}");
    }
    let again = wal.below_the_fork(&lane);
    assert_eq!((again.pushed.len(), again.same), (0, 10));
    assert!(lane.owners(TimelineId::FIRST).unwrap().current.is_none(), "whoever fills a gap owns nothing");
}

#[test]
fn a_log_that_differs_from_the_archived_one_fills_no_gap_of_it() {
    let (gap, beside) = ("000000010000000000000009", "000000010000000000000010");
    let lane = lane_without(&[gap, beside]);
    let wal = Wal::promoted();
    archive(&lane, &beside.parse().unwrap(), &wal.bytes("00000001000000000000000F"));
    for scope in [Scope::BelowTheFork, Scope::UntouchedSince(SystemTime::now() + Duration::from_secs(60))] {
        let done = wal.run(&lane, fork(), scope);
        assert_eq!((done.pushed.len(), done.contested.len()), (0, 1), "{done:?}");
        assert_eq!(done.contested[0].0.to_string(), beside);
        assert!(archived(&lane, gap).is_none());
    }
}

#[test]
fn the_servers_own_timeline_goes_the_ordinary_way() {
    let lane = lane_without(&["000000020000000000000011", "000000020000000000000012"]);
    let wal = Wal::promoted();
    // The left branch's own part past the fork, which PostgreSQL removes, if it gets to it.
    wal.put("000000010000000000000011", &segments(MAJOR, 1).last().unwrap().1);
    wal.put("000000010000000000000012", &segments(MAJOR, 1).last().unwrap().1);
    assert_eq!(names(&wal.below_the_fork(&lane).pushed), [""; 0]);
    assert!(archived(&lane, "000000020000000000000011").is_none());
    assert!(archived(&lane, "000000010000000000000012").is_none());
}

#[test]
fn a_file_that_is_not_finished_is_never_taken_for_the_log() {
    let name = "00000001000000000000000B";
    let sound = Wal::promoted();
    let (good, other) = (sound.bytes(name), sound.bytes("00000001000000000000000A"));
    let half = [&good[..1 << 19], &other[1 << 19..]].concat();
    let mut zeros = good.clone();
    zeros[8192 * 3..].fill(0);
    let mut bit = good.clone();
    bit[70_000] ^= 1;
    let mut short = good.clone();
    short.truncate(1 << 19);
    let longer = [&good[..], &[0; 8192]].concat();
    let cases = [("recycled", other), ("half received", half), ("not yet written", zeros), ("damaged", bit)];
    for (what, contents) in cases.into_iter().chain([("cut", short), ("longer", longer), ("empty", Vec::new())]) {
        let lane = lane_without(&[name]);
        let wal = Wal::promoted();
        wal.put(name, &contents);
        let done = wal.below_the_fork(&lane);
        assert!(archived(&lane, name).is_none(), "{what}");
        assert_eq!((done.pushed.len(), done.unproven.len(), done.contested.len()), (0, 1, 0), "{what}: {done:?}");
        assert_eq!(done.unproven[0].0.to_string(), name);
    }
}

#[test]
fn a_switch_whose_zeros_have_not_come_yet_is_not_finished() {
    let name = "00000001000000000000000D";
    let lane = lane_without(&[name]);
    let wal = Wal::promoted();
    let mut received = wal.bytes(name);
    assert!(crate::pg::page::zero_tail(&received) < received.len() - 8192, "the fixture's segment was switched early");
    // The file was another segment before: its old bytes stand where zeros will be.
    let old = wal.bytes("00000001000000000000000C");
    received[1 << 19..].copy_from_slice(&old[1 << 19..]);
    wal.put(name, &received);
    let done = wal.below_the_fork(&lane);
    assert_eq!((done.pushed.len(), archived(&lane, name).is_some()), (0, false));
    assert!(done.unproven[0].1.contains("switch"), "{done:?}");
}

#[test]
fn other_bytes_in_the_archive_stay_and_ours_are_kept_apart() {
    let name = "00000001000000000000000A";
    let lane = lane_without(&[name]);
    let mut theirs = segments(MAJOR, 1).into_iter().find(|(found, _)| found.to_string() == name).unwrap().1;
    *theirs.last_mut().unwrap() ^= 1;
    archive(&lane, &name.parse().unwrap(), &theirs);
    let wal = Wal::promoted();
    let done = wal.below_the_fork(&lane);
    assert_eq!(done.contested.len(), 1, "{done:?}");
    assert!(archived(&lane, name) == Some(theirs));
    let kept = lane.repository().store().get(&done.contested[0].1.parse().unwrap()).unwrap().unwrap();
    assert!(zstd::decode_all(&kept[..]).unwrap() == wal.bytes(name));
    // What we have is only a part: that is no other history.
    let mut half = wal.bytes(name);
    half[8192 * 2..].fill(0);
    wal.put(name, &half);
    assert_eq!(wal.below_the_fork(&lane).contested.len(), 0);
}

/// A log whose records cross segments, one of them over a whole one.
fn crossing() -> Log {
    let mut log = Log::new();
    let fill = |log: &mut Log, until: u64| {
        while log.position().bytes() < until {
            log.record(10, 0, &[7; 200]);
        }
    };
    fill(&mut log, (2 << 20) - 4000);
    log.record(10, 0, &vec![9; 5 << 18]);
    fill(&mut log, (5 << 20) - 100);
    log
}

#[test]
fn a_record_that_crosses_segments_is_walked_to_its_end() {
    let all = crossing().segments();
    assert!(all.len() > 3);
    let server = facts_of(&all[0].1);
    let run = |present: &[usize]| {
        let lane = lane_of(&all[..1]);
        let wal = Wal::empty();
        present.iter().for_each(|index| wal.put(&all[*index].0.to_string(), &all[*index].1));
        let past = SystemTime::now() + Duration::from_secs(60);
        let done = wal.run(&lane, History::root(TimelineId::FIRST), Scope::UntouchedSince(past));
        assert_eq!(lane.facts().system_id, server.system_id);
        let pushed: Vec<usize> =
            done.pushed.iter().map(|name| all.iter().position(|(other, _)| other == name).unwrap()).collect();
        pushed
    };
    // The second segment lies inside a record of the first, which the archive has.
    assert_eq!(run(&[0, 1]), [0; 0], "the record ends in the third");
    assert_eq!(run(&[1, 2]), [1]);
    assert_eq!(run(&[0, 1, 2, 3]), [1, 2]);
}

#[test]
fn a_standby_pushes_what_is_old_enough_and_leaves_the_rest() {
    let lane = lane_without(&["00000001000000000000000A", "000000020000000000000012"]);
    let wal = Wal::promoted();
    let before = SystemTime::now() - Duration::from_secs(3600);
    assert_eq!(names(&wal.run(&lane, fork(), Scope::UntouchedSince(before)).pushed), [""; 0]);
    let after = SystemTime::now() + Duration::from_secs(3600);
    // A recycled file under a name that lies in the future.
    wal.put("000000020000000000000020", &wal.bytes("000000010000000000000008"));
    let done = wal.run(&lane, fork(), Scope::UntouchedSince(after));
    assert_eq!(names(&done.pushed), ["00000001000000000000000A", "000000020000000000000012"]);
    assert!(archived(&lane, "000000020000000000000020").is_none());
}

#[test]
fn the_first_files_of_a_timeline_that_forked_off_make_it_due_and_no_others() {
    let wal = Wal::promoted();
    let due = |name: &str| is_due(wal.0.path(), &name.parse().unwrap(), one_mib()).unwrap().is_some();
    for name in ["00000002.history", "000000020000000000000011", "000000020000000000000020"] {
        assert!(due(name), "{name}");
    }
    for name in ["000000020000000000000021", "00000001.history", "000000010000000000000010", "00000003.history"] {
        assert!(!due(name), "{name}");
    }
    wal.put("00000002.history", b"nonsense");
    assert!(is_due(wal.0.path(), &"00000002.history".parse().unwrap(), one_mib()).is_err());
}

#[test]
fn no_time_is_no_harm() {
    let lane = lane_without(&["00000001000000000000000A"]);
    let wal = Wal::promoted();
    let writer = Writer {
        token: "0123456789abcdef".to_owned(),
        former: None,
        host: "here".to_owned(),
        grace: Duration::from_secs(900),
        takes_over: None,
        follows: false,
    };
    let options = PushOptions { level: 1, threads: 1 };
    let backfill = Backfill { directory: wal.0.path(), server: lane.facts(), writer: &writer, options };
    let done = backfill.perform(&lane, fork(), Scope::BelowTheFork, Instant::now()).unwrap();
    assert!(done.unfinished && done.pushed.is_empty());
}

#[test]
#[allow(clippy::print_stderr, reason = "the test run shows the counts")]
fn whatever_fails_what_is_back_filled_is_whole_and_the_next_pass_ends_it() {
    let lacking = ["000000010000000000000009", "000000010000000000000010"];
    let (wal, original) = (Wal::promoted(), Original::without(&lacking));
    for name in ["7", "C", "D", "E", "F"] {
        std::fs::remove_file(wal.0.path().join(format!("00000001000000000000000{name}"))).unwrap();
    }
    let (_, lane, faulty) = original.copy();
    let before = faulty.operations();
    assert_eq!(wal.below_the_fork(&lane).pushed.len(), 2);
    let operations = faulty.operations() - before;
    let faults = [
        Fault::Before(io::ErrorKind::Other),
        Fault::After(io::ErrorKind::Other),
        Fault::Before(io::ErrorKind::TimedOut),
        Fault::Before(io::ErrorKind::StorageFull),
        Fault::Truncate { to: 100 },
        Fault::FlipBit { bit: 3000 },
        Fault::Die,
        Fault::DieAfter,
    ];
    let mut points = 0;
    let soaking = std::env::var_os("WALVAULT_SOAK").is_some();
    for operation in 1..=operations {
        for fault in crate::store::fault::in_turn(&faults, operation, soaking) {
            points += 1;
            let (sound, lane, faulty) = original.copy();
            // A reply can be damaged on its way to us; what a store keeps is its own promise.
            let verb = matches!(fault, Fault::Truncate { .. } | Fault::FlipBit { .. }).then_some(Verb::Get);
            faulty.script(When { verb, ..When::nth(operation) }, fault);
            let done = wal.try_run(&lane, fork(), Scope::BelowTheFork);
            let pushed = done.as_ref().map_or(&[][..], |done| &done.pushed[..]);
            for name in lacking {
                let there = archived(&sound, name);
                assert!(there.as_ref().is_none_or(|there| *there == wal.bytes(name)), "{fault:?} at {operation}");
                let said = pushed.iter().any(|segment| segment.to_string() == name);
                assert!(there.is_some() || !said, "{fault:?} at {operation}: told and not there");
            }
            let again = wal.below_the_fork(&sound);
            assert_eq!(again.same + again.pushed.len() as u64, 5, "{fault:?} at {operation}");
        }
    }
    eprintln!("back-fill over a failing store: {points} points");
    assert!(points > 10, "only {points} points");
}

#[test]
fn a_file_that_was_recycled_after_it_was_proven_is_not_stored() {
    let name = "000000010000000000000010";
    let lane = lane_without(&[name]);
    let writer = Writer {
        token: "0123456789abcdef".to_owned(),
        former: None,
        host: "here".to_owned(),
        grace: Duration::from_secs(900),
        takes_over: None,
        follows: false,
    };
    let options = PushOptions { level: 1, threads: 1 };
    type Recycling = fn(&Wal, &str);
    let recyclings: [(&str, Recycling); 3] = [
        ("renamed away", |wal, name| std::fs::rename(wal.0.path().join(name), wal.0.path().join("later")).unwrap()),
        ("another file in its place", |wal, name| {
            wal.put("other", &wal.bytes(name));
            std::fs::rename(wal.0.path().join("other"), wal.0.path().join(name)).unwrap();
        }),
        ("renamed and written over while it is open", |wal, name| {
            let bytes = wal.bytes("000000010000000000000009");
            std::fs::rename(wal.0.path().join(name), wal.0.path().join("later")).unwrap();
            wal.put("later", &bytes);
        }),
    ];
    for (what, recycle) in recyclings {
        let wal = Wal::promoted();
        let folder = WalFolder::look(wal.0.path(), Branch::new(fork()), one_mib(), lane.facts().system_id).unwrap();
        let Proof::Finished(finished) = folder.prove(name.parse().unwrap(), &|_| None).unwrap() else {
            panic!("the segment is sound")
        };
        assert!(finished.is_unchanged());
        recycle(&wal, name);
        let backfill = Backfill { directory: wal.0.path(), server: lane.facts(), writer: &writer, options };
        let within = InTime { lane: &lane, deadline: Instant::now() + Duration::from_secs(60) };
        let mut done = Backfilled::default();
        backfill.store(&within, &finished, &mut done).unwrap();
        assert!(done.pushed.is_empty() && archived(&lane, name).is_none(), "{what}");
    }
}
