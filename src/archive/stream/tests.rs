//! Streams of a server that is played, into a store that fails.

#![allow(clippy::unwrap_used)]

use std::io::{self, Write};

use super::*;
use crate::instance::replication::server_fixture::{Played, copy_data, message, refusal_of, result};
use crate::pg::wal_fixture::segments;
use crate::repo::lane_fixture::{MAJOR, Original, archive, lane_of};
use crate::store::fault::{Fault, When};

const NEVER: Duration = Duration::ZERO;
const PATIENT: Duration = Duration::from_secs(60);

/// A server that streams these segments in pieces of so many bytes, and then says what comes last.
fn server(log: Vec<(SegmentName, Vec<u8>)>, step: usize, last: Vec<u8>) -> Played {
    let start = log[0].0.number(crate::pg::wal_fixture::one_mib()).unwrap().start(crate::pg::wal_fixture::one_mib());
    let log: Vec<u8> = log.into_iter().flat_map(|(_, bytes)| bytes).collect();
    let history =
        std::fs::read(format!("{}/fixtures/wal/{MAJOR}/00000002.history", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let answers = move |command: &str, out: &mut dyn Write| -> io::Result<bool> {
        if command.starts_with("START_REPLICATION") {
            out.write_all(&message(b'W', &[0; 3]))?;
            for (number, bytes) in log.chunks(step).enumerate() {
                let at = start + (number * step) as u64;
                out.write_all(&copy_data(&[b"w", &at.bytes().to_be_bytes()[..], &[0; 16], bytes].concat()))?;
            }
            out.write_all(&last)?;
        } else if command == "TIMELINE_HISTORY 2" {
            let text = String::from_utf8(history.clone()).unwrap();
            out.write_all(&result(&["00000002.history", &text]))?;
        } else {
            out.write_all(&refusal_of("42601", "syntax error"))?;
        }
        Ok(true)
    };
    Played::playing("15.9", Box::new(answers))
}

fn asks() -> Vec<u8> {
    copy_data(&[&b"k"[..], &[0; 16], &[1]].concat())
}

fn writer() -> Writer {
    Writer::streaming("db1:5432", false, Duration::from_secs(900))
}

fn streaming(lane: &Lane, timeline: u32, first: SegmentName) -> WalStreaming {
    let timeline = TimelineId::new(timeline).unwrap();
    WalStreaming {
        lane: lane.clone(),
        slot: None,
        // In the middle of it: what is stored is whole.
        start: first.number(lane.segment_size()).unwrap().start(lane.segment_size()) + 0x28,
        timeline,
        writer: writer(),
        options: PushOptions { level: 1, threads: 1 },
        temporary: true,
        moves_slot: true,
        gives_way: Duration::ZERO,
    }
}

fn goal(through: SegmentName, lane: &Lane, patience: Duration) -> Goal {
    let goal = Goal::default();
    goal.set(through.number(lane.segment_size()).unwrap(), patience);
    goal
}

/// Waits until the server was told that the log came up to here.
fn wait_until_heard(played: &Played, end: Lsn) {
    let deadline = Instant::now() + Duration::from_secs(60);
    // Position received, position durable.
    while !played.heard().iter().any(|said| said[0] == b'r' && said[1..9] == end.bytes().to_be_bytes()) {
        assert!(Instant::now() < deadline, "nothing was heard: {:?}", played.heard());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn stored(lane: &Lane, name: SegmentName) -> Option<Vec<u8>> {
    lane.read_wal(&WalFileName::Segment(name)).unwrap().map(|stored| stored.raw)
}

#[test]
fn segments_are_stored_whole_and_never_half() {
    let all = segments(MAJOR, 1);
    for step in [1 << 17, 100_000, 3 << 20] {
        let lane = lane_of(&all[..1]);
        let mut log = all[1..4].to_vec();
        log[2].1.truncate(700_000);
        let played = server(log.clone(), step, asks());
        let mut client = played.connect().unwrap();
        let streaming = streaming(&lane, 1, all[1].0);
        let archived = streaming.perform(&mut client, &goal(all[2].0, &lane, PATIENT)).unwrap();
        assert_eq!(archived, Archived { segments: 2, left_to_owner: 0 }, "in steps of {step}");
        for (name, bytes) in &all[1..3] {
            assert!(stored(&lane, *name).as_ref() == Some(bytes), "{name}");
        }
        assert_eq!(stored(&lane, all[3].0), None, "it did not come whole");
        // What is wanted and does not come whole is said, and not stored either, when all there is of it has come.
        let played = server(log, step, asks());
        let mut client = played.connect().unwrap();
        let goal = Goal::default();
        let error = std::thread::scope(|scope| {
            let streamed = scope.spawn(|| streaming.perform(&mut client, &goal));
            let end = all[3].0.number(lane.segment_size()).unwrap().start(lane.segment_size()) + 700_000;
            wait_until_heard(&played, end);
            goal.set(all[3].0.number(lane.segment_size()).unwrap(), NEVER);
            streamed.join().unwrap().unwrap_err()
        });
        assert!(matches!(error, StreamError::Unfinished { .. }), "{error}");
        assert_eq!((error.kind(), stored(&lane, all[3].0)), (ErrorKind::NotFound, None));
        assert_eq!(lane.owners(TimelineId::FIRST).unwrap().current.unwrap().owner.writer, writer().token);
    }
}

#[test]
fn a_server_that_asks_is_told_how_far_all_of_it_is_safe() {
    let all = segments(MAJOR, 1);
    let lane = lane_of(&all[..1]);
    let played = server(all[1..3].to_vec(), 1 << 17, asks());
    let goal = Goal::default();
    let streaming = streaming(&lane, 1, all[1].0);
    let mut client = played.connect().unwrap();
    std::thread::scope(|scope| {
        let streamed = scope.spawn(|| streaming.perform(&mut client, &goal));
        let end = SegmentNo(all[2].0.number(lane.segment_size()).unwrap().0 + 1).start(lane.segment_size());
        wait_until_heard(&played, end);
        let durable = played.heard().last().map(|said| u64::from_be_bytes(said[9..17].try_into().unwrap())).unwrap();
        assert!(durable > 0 && durable.is_multiple_of(1 << 20) && durable <= end.bytes(), "{durable:x}");
        goal.give_up();
        assert_eq!(streamed.join().unwrap().unwrap().segments, 2);
    });
}

#[test]
fn other_bytes_under_a_name_end_the_stream_and_stay() {
    let all = segments(MAJOR, 1);
    let lane = lane_of(&all[..1]);
    let mut other = all[1].1.clone();
    *other.last_mut().unwrap() ^= 1;
    archive(&lane, &WalFileName::Segment(all[1].0), &other);
    let played = server(all[1..2].to_vec(), 1 << 17, Vec::new());
    let error = streaming(&lane, 1, all[1].0)
        .perform(&mut played.connect().unwrap(), &goal(all[1].0, &lane, PATIENT))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(stored(&lane, all[1].0) == Some(other));
}

#[test]
fn what_an_owner_at_work_archives_is_waited_for_and_compared_and_not_contested() {
    let all = segments(MAJOR, 1);
    let server_itself = Writer { token: "00000000000000aa".to_owned(), host: "db1".to_owned(), ..writer() };
    let by_itself = |lane: &Lane, (name, bytes): &(SegmentName, Vec<u8>)| {
        let file = scratch().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        let name = WalFileName::Segment(*name);
        let file = OpenWal::received(name.clone(), path_of(&name), file);
        push(|| Ok(lane.clone()), lane.facts(), &file, &server_itself, PushOptions { level: 1, threads: 1 }).unwrap();
    };
    let perform = |lane: &Lane| {
        let played = server(all[1..3].to_vec(), 1 << 17, Vec::new());
        streaming(lane, 1, all[1].0).perform(&mut played.connect().unwrap(), &goal(all[2].0, lane, PATIENT))
    };
    let lane = lane_of(&all[..1]);
    by_itself(&lane, &all[1]);
    let streaming = streaming(&lane, 1, all[1].0);
    let mut pusher = Pusher { streaming: &streaming, left: Vec::new(), gives_way: Duration::ZERO };
    let file = scratch().unwrap();
    file.write_all_at(&all[2].1, 0).unwrap();
    pusher.archive(WalFileName::Segment(all[2].0), file).unwrap();
    assert_eq!(pusher.left.len(), 1);
    let error = pusher.await_owner(&goal(all[2].0, &lane, NEVER)).unwrap_err();
    assert!(matches!(&error, StreamError::NotArchived { owner, .. } if owner == "db1"), "{error}");
    assert_eq!((error.kind(), stored(&lane, all[2].0)), (ErrorKind::NotFound, None));
    by_itself(&lane, &all[2]);
    assert_eq!(perform(&lane).unwrap(), Archived { segments: 2, left_to_owner: 2 });
    assert_eq!(lane.contested().unwrap().len(), 0, "nothing is contested that nobody contests");
    let lane = lane_of(&all[..1]);
    let mut other = all[2].clone();
    *other.1.last_mut().unwrap() ^= 1;
    by_itself(&lane, &all[1]);
    by_itself(&lane, &other);
    let error = perform(&lane).unwrap_err();
    assert!(matches!(&error, StreamError::Other { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[test]
fn on_a_timeline_of_nobody_the_servers_own_archiving_comes_first() {
    let all = segments(MAJOR, 1);
    let lane = lane_of(&all[..1]);
    let server_itself = Writer { token: "00000000000000aa".to_owned(), host: "db1".to_owned(), ..writer() };
    let played = server(all[1..2].to_vec(), 1 << 17, asks());
    let streaming = WalStreaming { gives_way: PATIENT, ..streaming(&lane, 1, all[1].0) };
    let mut client = played.connect().unwrap();
    let (goal, number) = (Goal::default(), all[1].0.number(lane.segment_size()).unwrap());
    std::thread::scope(|scope| {
        let streamed = scope.spawn(|| streaming.perform(&mut client, &goal));
        wait_until_heard(&played, number.end(lane.segment_size()));
        goal.set(number, PATIENT);
        let file = scratch().unwrap();
        file.write_all_at(&all[1].1, 0).unwrap();
        let name = WalFileName::Segment(all[1].0);
        let file = OpenWal::received(name.clone(), path_of(&name), file);
        let options = PushOptions { level: 1, threads: 1 };
        let receipt = push(|| Ok(lane.clone()), lane.facts(), &file, &server_itself, options).unwrap();
        assert_eq!(receipt.pushed, super::super::push::Pushed::Stored);
        assert_eq!(streamed.join().unwrap().unwrap(), Archived { segments: 1, left_to_owner: 1 });
    });
}

#[test]
fn a_timelines_history_is_archived_before_its_log() {
    let (all, lane) = (segments(MAJOR, 2), lane_of(&segments(MAJOR, 1)[..1]));
    let two = TimelineId::new(2).unwrap();
    assert!(lane.history(two).unwrap().is_none());
    let played = server(all[..1].to_vec(), 1 << 17, Vec::new());
    let mut client = played.connect().unwrap();
    streaming(&lane, 2, all[0].0).perform(&mut client, &goal(all[0].0, &lane, PATIENT)).unwrap();
    assert_eq!(lane.history(two).unwrap().unwrap().timeline(), two);
    assert!(stored(&lane, all[0].0).as_ref() == Some(&all[0].1));
}

#[test]
fn a_promotion_ends_the_stream_and_is_told_as_what_it_is() {
    let all = segments(MAJOR, 1);
    let lane = lane_of(&all[..1]);
    let next = result(&["2", "0/A0001C8"]);
    let played = server(all[1..2].to_vec(), 1 << 17, [message(b'c', b""), next].concat());
    let error = streaming(&lane, 1, all[1].0)
        .perform(&mut played.connect().unwrap(), &goal(all[2].0, &lane, PATIENT))
        .unwrap_err();
    let words = "timeline 1 ended on the server at 0/A0001C8, and timeline 2 follows: it was promoted";
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn whatever_fails_in_the_store_nothing_half_is_there_and_success_means_all_of_it() {
    let all = segments(MAJOR, 1);
    let names: Vec<String> = all.iter().map(|(name, _)| name.to_string()).collect();
    let original = Original::without(&names[1..].iter().map(String::as_str).collect::<Vec<_>>());
    let played = server(all[1..3].to_vec(), 1 << 19, Vec::new());
    let take = |lane: &Lane| {
        let mut client = played.connect().unwrap();
        streaming(lane, 1, all[1].0).perform(&mut client, &goal(all[2].0, lane, PATIENT))
    };
    let (_, lane, faulty) = original.copy();
    let before = faulty.operations();
    take(&lane).unwrap();
    let operations = faulty.operations() - before;
    assert!(operations > 4, "{operations} operations");
    let faults = [
        Fault::Before(io::ErrorKind::Other),
        Fault::Before(io::ErrorKind::StorageFull),
        Fault::After(io::ErrorKind::Other),
        Fault::Die,
        Fault::DieAfter,
    ];
    for operation in 1..=operations {
        for fault in faults {
            let (sound, lane, faulty) = original.copy();
            faulty.script(When::nth(operation), fault);
            let result = take(&lane);
            for (name, bytes) in &all[1..3] {
                let there = stored(&sound, *name);
                let what = format!("{fault:?} at {operation}: {name}");
                assert!(there.as_ref().is_none_or(|there| there == bytes), "{what} is half there");
                assert!(there.is_some() || result.is_err(), "{what} is not there, and success was said");
            }
            // The next one goes on where it ended.
            take(&sound).unwrap();
        }
    }
}
