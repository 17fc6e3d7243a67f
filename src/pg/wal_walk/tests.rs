#![allow(clippy::unwrap_used)]

use super::*;
use crate::pg::wal_fixture::{Listed, Log, MAJORS, listing, one_mib, segments};
use proptest::prelude::*;

/// What a walk over these segments visits, and how each segment ends.
fn walk(segments: &[(SegmentName, Vec<u8>)]) -> (Vec<Listed>, Vec<SegmentEnd>) {
    let mut walker = Walker::new(None, one_mib());
    let mut records = Vec::new();
    let visit = &mut |record: &Record<'_>| {
        records.push((record.start, record.resource_manager, record.xid, record.data.len()));
    };
    let ends = segments.iter().map(|(name, bytes)| walker.segment(*name, bytes, visit)).collect();
    (records, ends)
}

fn starts(records: &[Listed]) -> Vec<(Lsn, usize)> {
    records.iter().map(|record| (record.0, record.3)).collect()
}

fn stopped(ends: &[SegmentEnd]) -> Option<(Lsn, &StopReason)> {
    ends.iter().find_map(|end| match end {
        SegmentEnd::Stopped { at, why } => Some((*at, why)),
        _ => None,
    })
}

fn first_byte(segments: &[(SegmentName, Vec<u8>)]) -> Lsn {
    segments[0].0.number(one_mib()).unwrap().start(one_mib())
}

/// The path that recovery takes: the parent's segments up to the fork's, then the child's.
fn path(major: u16) -> (Vec<(SegmentName, Vec<u8>)>, Lsn) {
    let child = segments(major, 2);
    let fork = first_byte(&child);
    let parent =
        segments(major, 1).into_iter().filter(|(name, _)| name.number(one_mib()).unwrap().start(one_mib()) < fork);
    (parent.chain(child).collect(), fork)
}

#[test]
fn every_major_is_walked_as_its_own_waldump_lists_it() {
    for major in MAJORS {
        let (records, ends) = walk(&segments(major, 1));
        assert_eq!(records, listing(major, 1), "{major}");
        assert_eq!(stopped(&ends), None, "{major}");
    }
}

#[test]
fn a_record_open_at_the_end_of_the_parent_goes_on_in_the_child() {
    for major in MAJORS {
        let (segments, fork) = path(major);
        let (records, ends) = walk(&segments);
        let mut expected = listing(major, 1);
        expected.retain(|record| record.0 < fork);
        expected.extend(listing(major, 2));
        assert_eq!(records, expected, "{major}");
        let before_fork = segments.iter().position(|(name, _)| name.timeline().number() == 2).unwrap() - 1;
        assert!(matches!(ends[before_fork], SegmentEnd::Open(_)), "{major}: {:?}", ends[before_fork]);
    }
}

#[test]
fn a_walk_that_begins_anywhere_finds_the_same_records() {
    for major in MAJORS {
        let (segments, _) = path(major);
        let (all, _) = walk(&segments);
        for from in 1..segments.len() {
            let (records, ends) = walk(&segments[from..]);
            let first = first_byte(&segments[from..]);
            let expected: Vec<_> = all.iter().copied().filter(|record| record.0 >= first).collect();
            assert_eq!(records, expected, "{major} from {}", segments[from].0);
            assert_eq!(stopped(&ends), None);
        }
    }
}

#[test]
fn a_segment_inside_one_record_says_so() {
    let segments = segments(15, 1);
    let (_, ends) = walk(&segments);
    let open: Vec<_> = ends.iter().map(|end| matches!(end, SegmentEnd::Open(_))).collect();
    // The record of 2.6 MB begins in one segment and fills the next.
    let inside = open.windows(2).position(|pair| pair == [true, true]).unwrap() + 1;
    let (records, ends) = walk(&segments[inside..=inside]);
    assert_eq!((records, ends), (vec![], vec![SegmentEnd::Inside]));
}

#[test]
fn the_log_of_another_cluster_is_not_walked() {
    let segments = segments(16, 1);
    let mut walker = Walker::new(Some(SystemId::new(1)), one_mib());
    let end = walker.segment(segments[0].0, &segments[0].1, &mut |_| panic!("visited"));
    assert!(matches!(end, SegmentEnd::Stopped { why: StopReason::Page(PageError::SystemId { .. }), .. }), "{end:?}");
}

#[test]
fn a_missing_segment_ends_the_walk_for_good() {
    let segments = segments(17, 1);
    let mut walker = Walker::new(None, one_mib());
    walker.segment(segments[0].0, &segments[0].1, &mut |_| ());
    let complete = walker.last_complete();
    for (name, bytes) in &segments[2..4] {
        let end = walker.segment(*name, bytes, &mut |_| panic!("visited"));
        assert!(matches!(end, SegmentEnd::Stopped { why: StopReason::NotNext { .. }, .. }), "{end:?}");
    }
    assert_eq!(walker.last_complete(), complete);
}

#[test]
fn a_newer_format_is_not_walked_and_not_called_garbage() {
    let (name, mut bytes) = segments(18, 1).swap_remove(0);
    bytes[0] = 0xFF;
    let (records, ends) = walk(&[(name, bytes)]);
    assert!(records.is_empty());
    assert_eq!(stopped(&ends).unwrap().1, &StopReason::UnknownFormat(WalMagic::new(0xD1FF)));
}

#[test]
fn a_void_record_must_be_named_by_the_one_that_replaces_it() {
    for wrong in [0, 8] {
        let mut log = Log::new();
        log.record(10, 0, &[1; 5000]);
        let lost = log.position();
        log.record(10, 0, &[2; 5000]);
        log.overwrite(lost + wrong);
        log.record(10, 0, &[3; 100]);
        let (records, ends) = walk(&log.segments());
        if wrong == 0 {
            assert_eq!(starts(&records), log.records);
        } else {
            assert_eq!(records.len(), 1);
            assert_eq!(stopped(&ends), Some((lost, &StopReason::NotVoided { start: lost })));
        }
    }
}

#[test]
fn a_log_ends_where_its_records_do() {
    let mut log = Log::new();
    log.record(10, 0, &[1; 100]);
    let end = log.position();
    let (_, ends) = walk(&log.segments());
    assert_eq!(stopped(&ends), Some((end, &StopReason::Nothing)));
}

#[test]
fn pages_of_a_recycled_segment_end_the_log() {
    let mut log = Log::new();
    (0..200).for_each(|_| log.record(10, 0, &[1; 100]));
    let (name, mut bytes) = log.segments().swap_remove(0);
    // What follows is a valid page, but of an older place in the log.
    let page = bytes[Log::PAGE..2 * Log::PAGE].to_vec();
    bytes[2 * Log::PAGE..3 * Log::PAGE].copy_from_slice(&page);
    let (records, ends) = walk(&[(name, bytes)]);
    assert!(matches!(stopped(&ends).unwrap().1, StopReason::Page(PageError::Address { .. })));
    assert!(!records.is_empty() && starts(&records) == log.records[..records.len()]);
}

#[test]
fn a_page_that_disagrees_about_the_open_record_ends_the_log_before_it() {
    let mut log = Log::new();
    log.record(10, 0, &[1; 100]);
    let open = log.position();
    log.record(10, 0, &[2; 9000]);
    // Flags, and the length that is missing.
    for (offset, mask) in [(2, 1), (16, 8)] {
        let mut segments = log.segments();
        flip(&mut segments, Log::PAGE + offset, mask);
        let (records, ends) = walk(&segments);
        assert_eq!(records.len(), 1);
        let (at, why) = stopped(&ends).unwrap();
        assert!(at == open && matches!(why, StopReason::Continuation { .. }), "{at} {why}");
    }
}

#[test]
fn a_record_that_follows_another_one_ends_the_log() {
    // Left over from an older life of the file: whole, and with a checksum that holds.
    let mut log = Log::new();
    log.record(10, 0, &[1; 100]);
    let (expected, _) = log.records[0];
    let at = log.position();
    log.previous = Lsn::new(0x30);
    log.record(10, 0, &[2; 100]);
    let (records, ends) = walk(&log.segments());
    assert_eq!(records.len(), 1);
    assert_eq!(stopped(&ends), Some((at, &StopReason::Previous { found: Lsn::new(0x30), expected })));

    let mut log = Log::new();
    let at = log.position();
    log.previous = at;
    log.record(10, 0, &[1; 100]);
    let (records, ends) = walk(&log.segments());
    assert!(records.is_empty());
    assert_eq!(stopped(&ends), Some((at, &StopReason::Previous { found: at, expected: at })));
}

#[test]
fn a_page_that_continues_no_record_ends_the_log() {
    let mut log = Log::new();
    log.record(10, 0, &[1; Log::PAGE - PageHeader::LONG - RecordHeader::LEN]);
    assert_eq!(one_mib().offset_of(log.position()), Log::PAGE as u64);
    log.record(10, 0, &[2; 100]);
    let mut segments = log.segments();
    flip(&mut segments, Log::PAGE + 2, 1);
    flip(&mut segments, Log::PAGE + 16, 8);
    let (records, ends) = walk(&segments);
    assert_eq!(records.len(), 1);
    assert!(matches!(stopped(&ends).unwrap().1, StopReason::Continuation { found: 8, expected: 0, .. }));
}

#[test]
fn the_timeline_of_pages_never_falls_and_never_passes_the_files() {
    let mut log = Log::new();
    (0..160).for_each(|_| log.record(10, 0, &[1; 100]));
    let timelines = |file: u32, pages: [u8; 3]| {
        let (name, mut bytes) = log.segments().swap_remove(0);
        pages.iter().enumerate().for_each(|(page, timeline)| bytes[page * Log::PAGE + 4] = *timeline);
        let (_, ends) = walk(&[(name.with_timeline(TimelineId::new(file).unwrap()), bytes)]);
        !matches!(stopped(&ends).unwrap().1, StopReason::Page(PageError::Timeline { .. }))
    };
    assert!(timelines(3, [1, 1, 3]));
    assert!(timelines(3, [3, 3, 3]));
    assert!(!timelines(3, [2, 2, 1]));
    assert!(!timelines(3, [1, 4, 4]));
    assert!(!timelines(1, [2, 2, 2]));
    assert!(!timelines(1, [1, 1, 0]));
}

#[test]
fn an_absurd_length_is_refused_before_anything_is_kept() {
    for length in [1, 23, (1 << 30) + 1, u32::MAX] {
        let (name, mut bytes) = Log::new().segments().swap_remove(0);
        bytes[40..44].copy_from_slice(&length.to_le_bytes());
        let (_, ends) = walk(&[(name, bytes)]);
        assert_eq!(stopped(&ends).unwrap().1, &StopReason::Length(length));
    }
}

#[test]
fn a_flipped_byte_in_a_real_segment_is_noticed() {
    for major in MAJORS {
        let original = segments(major, 1);
        let (records, _) = walk(&original[..1]);
        for (start, _, _, length) in records.iter().step_by(7) {
            for offset in [0, 4, 8, 16, 17, 18, 20, length / 2, length - 1] {
                let (name, mut bytes) = original[0].clone();
                let at = (*start - first_byte(&original)) as usize + offset;
                // Past the page's end the byte is not surely the record's.
                if at / Log::PAGE != at.saturating_sub(offset) / Log::PAGE {
                    continue;
                }
                bytes[at] ^= 0x10;
                let (seen, ends) = walk(&[(name, bytes)]);
                let (stop, _) = stopped(&ends).unwrap_or_else(|| panic!("{major}: byte {offset} of {start} unnoticed"));
                assert!(stop <= *start);
                assert_eq!(seen, records[..seen.len()]);
                assert!(seen.iter().all(|record| record.0 < *start));
            }
        }
    }
}

/// Bodies from empty to several pages, most of them short.
fn any_log() -> impl Strategy<Value = Log> {
    let body = prop_oneof![8 => 0usize..300, 3 => 0usize..9000, 1 => 0usize..40_000];
    prop::collection::vec((body, any::<u8>()), 1..120).prop_map(|bodies| {
        let mut log = Log::new();
        bodies.into_iter().for_each(|(length, fill)| log.record(10, 0, &vec![fill; length]));
        log
    })
}

/// The offset of each byte of a record in the log's first segments, page headers left out.
fn bytes_of(start: Lsn, length: usize) -> Vec<usize> {
    let size = one_mib().bytes() as usize;
    let mut at = (start - SegmentNo(1).start(one_mib())) as usize;
    let mut offsets = Vec::with_capacity(length);
    while offsets.len() < length {
        if at.is_multiple_of(Log::PAGE) {
            at += if at.is_multiple_of(size) { PageHeader::LONG } else { PageHeader::SHORT };
        }
        offsets.push(at);
        at += 1;
    }
    offsets
}

fn flip(segments: &mut [(SegmentName, Vec<u8>)], at: usize, mask: u8) {
    let size = one_mib().bytes() as usize;
    segments[at / size].1[at % size] ^= mask;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_walked(log in any_log()) {
        let (records, ends) = walk(&log.segments());
        prop_assert_eq!(starts(&records), log.records.clone());
        let full = log.position() - SegmentNo(1).start(one_mib());
        prop_assert!(stopped(&ends).is_some() || full.is_multiple_of(one_mib().bytes()));
    }

    #[test]
    fn a_flip_in_a_record_stops_the_walk_there(log in any_log(), which: prop::sample::Index, byte: prop::sample::Index, bit in 0u32..8) {
        let which = which.index(log.records.len());
        let (start, length) = log.records[which];
        let mut segments = log.segments();
        flip(&mut segments, bytes_of(start, length)[byte.index(length)], 1 << bit);
        let (records, ends) = walk(&segments);
        prop_assert_eq!(starts(&records), log.records[..which].to_vec());
        prop_assert!(stopped(&ends).unwrap().0 <= start);
    }

    #[test]
    fn a_flip_anywhere_shows_no_record_that_was_not_written(log in any_log(), byte: prop::sample::Index, mask in 1u8..) {
        let mut segments = log.segments();
        let length = segments.len() << 20;
        flip(&mut segments, byte.index(length), mask);
        let (records, _) = walk(&segments);
        prop_assert_eq!(starts(&records), log.records[..records.len()].to_vec());
    }

    #[test]
    fn a_cut_segment_shows_the_records_before_the_cut(log in any_log(), cut: prop::sample::Index) {
        let (name, bytes) = log.segments().swap_remove(0);
        let cut = cut.index((log.position() - SegmentNo(1).start(one_mib())).min(1 << 20) as usize);
        let (records, ends) = walk(&[(name, bytes[..cut].to_vec())]);
        let whole = log.records.iter().filter(|(start, length)| *bytes_of(*start, *length).last().unwrap() < cut);
        prop_assert_eq!(starts(&records), whole.copied().collect::<Vec<_>>());
        let (_, why) = stopped(&ends).unwrap();
        prop_assert!(matches!(why, StopReason::Cut { .. }), "{}", why);
    }

    #[test]
    fn garbage_is_walked_without_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..20_000), keep in 0usize..3) {
        let (name, real) = Log::new().segments().swap_remove(0);
        let kept = (keep * 24).min(bytes.len());
        bytes[..kept].copy_from_slice(&real[..kept]);
        let (records, ends) = walk(&[(name, bytes)]);
        prop_assert!(records.is_empty() && stopped(&ends).is_some());
    }
}
