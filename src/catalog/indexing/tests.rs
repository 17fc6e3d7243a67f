//! Indexes of the real log in `fixtures/wal`, and of lanes that hold nothing.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::catalog::{SegmentIndex, TimelineCatalog};
use crate::format::index::{encode, members_digest};
use crate::pg::wal_fixture::{one_mib, segments};
use crate::repo::LaneFacts;
use crate::repo::lane_fixture::{MAJOR, lane_without};
use crate::store::Key;

/// The whole folder of a timeline, though it is not finished.
fn job(catalog: &LaneCatalog, timeline: u32) -> IndexJob {
    let timeline = TimelineId::new(timeline).unwrap();
    let own = catalog.timelines.iter().find(|one| one.timeline == timeline).unwrap();
    IndexJob { timeline, middle: "00000000".to_owned(), segments: own.segments.clone(), again: false }
}

fn indexed(lane: &Lane, catalog: &LaneCatalog) -> Vec<IndexedSegment> {
    let index = SegmentIndex::new(lane);
    let stored =
        catalog.timelines.iter().flat_map(|timeline| &timeline.segments).map(|name| catalog.segment(*name).unwrap());
    stored.filter_map(|stored| index.get(&stored)).collect()
}

#[test]
fn an_index_knows_the_records_that_no_segment_shows_alone() {
    let lane = lane_without(&[]);
    let catalog = LaneCatalog::load(&lane).unwrap();
    assert!(perform_indexing(&lane, &catalog, &job(&catalog, 1)).unwrap());
    assert!(!perform_indexing(&lane, &catalog, &job(&catalog, 1)).unwrap(), "made once");
    let members = indexed(&lane, &catalog);
    let mut walker = Walker::new(None, one_mib());
    let all = segments(MAJOR, 1);
    assert_eq!(members.len(), all.len());
    for ((name, raw), member) in all.iter().zip(&members) {
        let walked = WalFacts::of_walk(&mut walker, *name, raw);
        assert_eq!((member.segment, member.sha256), (*name, Sha256::of(raw)));
        let told = |facts: &WalFacts| {
            let lists = (facts.removals.clone(), facts.files_created.clone(), facts.checkpoints.clone());
            let counts = (facts.commits, facts.aborts, facts.min_xid, facts.max_xid, facts.max_time);
            (lists, counts, facts.restore_points.clone(), facts.parameters)
        };
        assert_eq!(told(&member.facts), told(&walked), "{name}");
    }
    // The fixture's log has messages of transactions' own manager that cross, and a record of three segments.
    let joined = members.iter().filter(|one| one.joined_after.is_some());
    joined.for_each(|one| {
        assert_eq!(one.joined_after.unwrap().number(one_mib()).unwrap().next(), one.segment.number(one_mib()).unwrap())
    });
}

#[test]
fn an_index_that_is_damaged_foreign_or_of_other_segments_is_passed_over() {
    let lane = lane_without(&[]);
    let catalog = LaneCatalog::load(&lane).unwrap();
    perform_indexing(&lane, &catalog, &job(&catalog, 1)).unwrap();
    let members = indexed(&lane, &catalog);
    let store = lane.repository().store();
    let [stored] = lane.indexes(TimelineId::FIRST).unwrap().folders.try_into().unwrap();
    let folder = format!("main/{}/index/00000001/00000000", lane.id());
    let key = |name: String| format!("{folder}/{name}.zst").parse::<Key>().unwrap();
    let own = key(members_digest(&members).to_string());
    let bytes = store.get(&own).unwrap().unwrap();
    assert_eq!(bytes.len() as u64, stored.stored_bytes);
    store.delete(&own).unwrap();
    assert_eq!(indexed(&lane, &catalog), []);

    // Under another name, of another lane, of another folder, with a bit turned.
    let put = |name: String, bytes: Vec<u8>| {
        let key = key(name);
        store.create(&key, vec![bytes.into()]).unwrap();
        let found = indexed(&lane, &catalog);
        store.delete(&key).unwrap();
        found
    };
    let name = members_digest(&members).to_string();
    assert_eq!(put(name.clone(), bytes.to_vec()), members);
    assert_eq!(put(members_digest(&members[1..]).to_string(), bytes.to_vec()), []);
    let mut turned = bytes.to_vec();
    turned[bytes.len() / 2] ^= 1;
    assert_eq!(put(name.clone(), turned), []);
    assert_eq!(put(name.clone(), encode(&format!("8-1/index/00000001/00000000/{name}"), &members).unwrap()), []);
    // Of a segment that has other bytes by now: the others count.
    let mut stale = members.clone();
    stale[2].stored_bytes += 1;
    let identity = format!("{}/index/00000001/00000000/{name}", lane.id());
    let found = put(name, encode(&identity, &stale).unwrap());
    assert_eq!(found.len(), members.len() - 1);
    assert!(found.iter().all(|one| one.segment != stale[2].segment));
}

#[test]
fn a_folder_is_indexed_when_many_segments_came_and_once_it_is_finished_if_any_did() {
    let size = catalog_of(&[]).segment_size();
    let first_timeline = |numbers: std::ops::Range<u64>| -> Vec<SegmentName> {
        numbers.map(|number| SegmentName::from_number(TimelineId::FIRST, SegmentNo(number), size)).collect()
    };
    let jobs = |catalog: &LaneCatalog, made: &[(&str, DateTime<Utc>)]| -> Vec<String> {
        let made = made.iter().map(|(middle, at)| ((TimelineId::FIRST, (*middle).to_owned()), *at)).collect();
        plan_indexing(catalog, &made).into_iter().map(|job| job.middle).collect()
    };
    let none: [String; 0] = [];
    let filling = catalog_of(&first_timeline(3..18));
    assert_eq!(jobs(&filling, &[]), none, "it is being filled, and hardly begun");
    let filling = catalog_of(&first_timeline(3..200));
    assert_eq!(jobs(&filling, &[]), ["00000000"], "many hints are worth one object");
    assert_eq!(jobs(&catalog_of(&first_timeline(0..256)), &[]), ["00000000"], "it is full");
    let three = catalog_of(&first_timeline(250..600));
    assert_eq!(jobs(&three, &[]), ["00000000", "00000001", "00000002"]);
    // The segments of these catalogues were stored at the epoch.
    let (then, later) = (DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(1));
    assert_eq!(jobs(&filling, &[("00000000", later)]), none, "nothing came");
    let last = ("00000002", later);
    assert_eq!(jobs(&three, &[("00000000", later), last]), ["00000001"]);
    let one = [("00000000", then), ("00000001", later), last];
    assert_eq!(jobs(&three, &one), ["00000000"], "one came in the same moment");
}

fn catalog_of(segments: &[SegmentName]) -> LaneCatalog {
    let timeline = TimelineCatalog {
        timeline: TimelineId::FIRST,
        history: None,
        segments: segments.to_vec(),
        owner: None,
        waits_for: None,
    };
    LaneCatalog::of("7-1".parse().unwrap(), LaneFacts::sample(), vec![timeline])
}

#[test]
fn the_last_folder_of_a_timeline_that_was_left_is_finished() {
    let lane = lane_without(&[]);
    let catalog = LaneCatalog::load(&lane).unwrap();
    let left = |timeline: u32| catalog.is_left(TimelineId::new(timeline).unwrap());
    assert_eq!((left(1), left(2)), (true, false));
    let jobs = plan_indexing(&catalog, &HashMap::new());
    let folders: Vec<(u32, usize)> = jobs.iter().map(|job| (job.timeline.number(), job.segments.len())).collect();
    assert_eq!(folders, [(1, catalog.timelines[0].segments.len())], "of the other one too few came");
}

#[test]
fn what_an_index_knows_is_taken_over_and_the_rest_is_asked_for() {
    let whole = lane_without(&[]);
    let all = LaneCatalog::load(&whole).unwrap();
    perform_indexing(&whole, &all, &job(&all, 1)).unwrap();
    let expected = indexed(&whole, &all);
    // Each beginning of the log, indexed; then the rest comes, and the folder is indexed again.
    for first in [1, 2, expected.len() / 2, expected.len() - 1] {
        let lane = lane_without(&[]);
        let catalog = LaneCatalog::load(&lane).unwrap();
        let mut begun = job(&catalog, 1);
        begun.segments.truncate(first);
        assert!(perform_indexing(&lane, &catalog, &begun).unwrap());
        let before = lane.repository().store().requests().of(crate::store::Verb::GetRange);
        let again = IndexJob { again: true, ..job(&catalog, 1) };
        assert!(perform_indexing(&lane, &catalog, &again).unwrap());
        let asked = lane.repository().store().requests().of(crate::store::Verb::GetRange) - before;
        assert_eq!(asked as usize, expected.len() - first, "hints that no index had");
        let found: Vec<IndexedSegment> = indexed(&lane, &catalog);
        assert_eq!(found, expected, "after {first}");
    }
}
