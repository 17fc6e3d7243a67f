//! Changes come back as they went in, and nothing else does.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::format::wal;
use crate::pg::wal_facts::FactsWalk;
use crate::pg::wal_fixture::{MAJORS, one_mib, segments};

fn object(segment: SegmentName, raw: &[u8]) -> (Vec<u8>, SegmentChanges, Sha256) {
    let walk = FactsWalk::new(segment, one_mib(), None);
    let encoded = wal::encode("7-1/x", &raw, raw.len() as u64, 3, 1, Some(walk)).unwrap();
    (encoded.object.to_vec(), SegmentChanges::of_segment(segment, raw, one_mib(), None), encoded.digest)
}

#[test]
fn changes_ride_before_the_trailer_of_every_segment() {
    for major in MAJORS {
        for (segment, raw) in segments(major, 1) {
            let (object, changes, digest) = object(segment, &raw);
            let len = object.len() as u64;
            let expected = Found::Changes(Box::new(changes), digest);
            assert_eq!(find(&object, len), Ok(expected.clone()), "{segment}");
            assert_eq!(zstd::decode_all(&object[..]).unwrap(), raw);
            assert_eq!(wal::decode(&object, "7-1/x", 1 << 20).unwrap().raw, raw);
            // From as few bytes as it takes, asked for step by step.
            let (mut wanted, mut steps) = (150, 0);
            while let Found::Needs(more) = find(&object[object.len() - wanted..], len).unwrap() {
                assert!(more as usize > wanted, "{segment}");
                (wanted, steps) = (more as usize, steps + 1);
            }
            assert_eq!(find(&object[object.len() - wanted..], len), Ok(expected), "{segment}");
            assert!(steps <= 2 && wanted < 64 << 10, "{segment}: {steps} steps, {wanted} bytes");
        }
    }
}

#[test]
fn changes_that_are_damaged_or_of_another_segment_are_refused() {
    let (segment, raw) = segments(15, 1).remove(0);
    let (object, _, digest) = object(segment, &raw);
    let len = object.len() as u64;
    let trailer_at = Tail::decode(&object, len).unwrap().trailer_at as usize;
    let frame_len = u32::from_le_bytes(object[trailer_at - 8..trailer_at - 4].try_into().unwrap()) as usize;
    for at in trailer_at - frame_len..trailer_at {
        let mut flipped = object.clone();
        flipped[at] ^= 0x10;
        let found = find(&flipped, len);
        // Without its name there is no frame; every other flip is found out.
        let refused = found.is_err() || (at >= trailer_at - 4 && found == Ok(Found::Nothing));
        assert!(refused, "byte {at}: {found:?}");
    }
    // Another segment's frame, whole, in this one's object.
    let mut other = NewObject::new(Kind::Wal, "7-1/x").unwrap();
    other.body().extend_from_slice(&object[256..trailer_at]);
    let (other, _) = other.finish(Sha256::of(b"other bytes"), raw.len() as u64, b"");
    assert!(find(&other, other.len() as u64).is_err());
    assert!(find(&object, len).is_ok() && digest != Sha256::of(b"other bytes"));
}

#[test]
fn a_segment_without_changes_says_nothing() {
    let raw = b"0123456789".repeat(1000);
    for (raw, len) in [(&raw[..], 10_000), (&raw[..0], 0)] {
        let encoded = wal::encode("7-1/x", &raw, len, 3, 1, None).unwrap();
        assert_eq!(find(&encoded.object, encoded.object.len() as u64), Ok(Found::Nothing));
    }
    // Of a version to come, compressed or not.
    let (segment, raw) = segments(15, 1).remove(0);
    let mut newer = Vec::new();
    put(&SegmentChanges::of_segment(segment, &raw, one_mib(), None), &mut newer);
    newer[0] = CHANGES_VERSION + 1;
    for (name, payload) in [(PLAIN, newer.clone()), (COMPRESSED, zstd::bulk::compress(&newer, 3).unwrap())] {
        let object = with_frame(name, &payload, &raw);
        assert_eq!(find(&object, object.len() as u64), Ok(Found::Nothing));
    }
}

/// A segment's object with such a frame of changes.
fn with_frame(name: &[u8; 4], payload: &[u8], raw: &[u8]) -> Vec<u8> {
    let mut object = NewObject::new(Kind::Wal, "7-1/x").unwrap();
    append_frame(name, payload, &Sha256::of(raw), object.body());
    object.finish(Sha256::of(raw), raw.len() as u64, &[]).0
}

#[test]
fn changes_are_compressed_where_that_is_smaller_and_read_either_way() {
    let (segment, raw) = segments(15, 1).remove(0);
    let few = SegmentChanges::of_segment(segment, &raw, one_mib(), None);
    let run = |at: u32| Run { first: 7 * at, len: 1 + at % 2 };
    let many = RelationChanges {
        relation: RelationLocator { tablespace: 1663, database: 5, relation: 99_999_999 },
        limit: None,
        runs: (0..1000).map(run).collect(),
    };
    let many = SegmentChanges { relations: vec![many], lead: None, end: ChangesEnd::Whole, ..few.clone() };
    let none = SegmentChanges { relations: Vec::new(), lead: None, end: ChangesEnd::Whole, ..few.clone() };
    for (changes, name) in [(&many, COMPRESSED), (&none, PLAIN)] {
        let (mut plain, mut frame) = (Vec::new(), Vec::new());
        put(changes, &mut plain);
        append(changes, &Sha256::of(&raw), &mut frame);
        assert_eq!(&frame[frame.len() - 4..], name);
        assert_eq!(frame.len() < plain.len(), name == COMPRESSED);
        // As it was stored before, whatever its size.
        let older = with_frame(PLAIN, &plain, &raw);
        let mut newer = NewObject::new(Kind::Wal, "7-1/x").unwrap();
        newer.body().extend_from_slice(&frame);
        let (newer, _) = newer.finish(Sha256::of(&raw), raw.len() as u64, &[]);
        let expected = Found::Changes(Box::new(changes.clone()), Sha256::of(&raw));
        for object in [older, newer] {
            assert_eq!(find(&object, object.len() as u64), Ok(expected.clone()));
        }
    }
}

#[test]
fn compressed_changes_that_hold_too_much_or_something_behind_them_are_refused() {
    let (segment, raw) = segments(15, 1).remove(0);
    let mut plain = Vec::new();
    put(&SegmentChanges::of_segment(segment, &raw, one_mib(), None), &mut plain);
    let good = zstd::bulk::compress(&plain, 3).unwrap();
    let mut bomb = Vec::new();
    frame::append_zeros(LIMIT as usize + 1, &mut bomb);
    for bad in [bomb, [&good[..], &good].concat(), good[..good.len() - 1].to_vec(), plain, Vec::new()] {
        let object = with_frame(COMPRESSED, &bad, &raw);
        assert!(find(&object, object.len() as u64).is_err(), "{} bytes", bad.len());
    }
    let object = with_frame(COMPRESSED, &good, &raw);
    assert!(matches!(find(&object, object.len() as u64), Ok(Found::Changes(..))));
}

fn members() -> Vec<FolderMember> {
    let all = segments(18, 1).into_iter().zip(70..);
    let member = |((segment, raw), stored_bytes): ((SegmentName, Vec<u8>), u64)| {
        let changes = SegmentChanges::of_segment(segment, &raw, one_mib(), None);
        FolderMember { segment, stored_bytes, sha256: Sha256::of(&raw), changes }
    };
    all.map(member).collect()
}

#[test]
fn a_folder_comes_back_and_has_a_name_of_its_own() {
    let members = members();
    let stored = encode_folder("7-1/changes/x", TimelineId::FIRST, one_mib(), &members).unwrap();
    assert_eq!(decode_folder(&stored, "7-1/changes/x"), Ok((TimelineId::FIRST, one_mib(), members.clone())));
    assert!(decode_folder(&stored, "7-1/changes/y").is_err());
    for at in (0..stored.len()).step_by(97) {
        let mut flipped = stored.clone();
        flipped[at] ^= 1;
        assert!(decode_folder(&flipped, "7-1/changes/x").is_err(), "byte {at}");
    }
    let mut other = members.clone();
    other[1].sha256 = Sha256::of(b"other bytes");
    let names = [&members[..], &members[1..], &other].map(folder_digest);
    assert!(names[0] != names[1] && names[0] != names[2] && names[1] != names[2]);
    let mut swapped = members;
    swapped.swap(0, 1);
    assert!(encode_folder("7-1/changes/x", TimelineId::FIRST, one_mib(), &swapped).is_err());
}

fn any_changes() -> impl Strategy<Value = SegmentChanges> {
    let part = (0u64..4000, any::<u32>(), prop::collection::vec(any::<u8>(), 0..1024))
        .prop_map(|(more, checksum, beginning)| RecordPart { len: beginning.len() as u64 + more, checksum, beginning });
    let runs = prop::collection::vec((1u32..100_000, 1u32..300), 0..40).prop_map(|gaps| {
        let mut at = 0;
        let run = |(gap, len): (u32, u32)| {
            let first = at + gap;
            at = first + len;
            Run { first, len }
        };
        gaps.into_iter().map(run).collect::<Vec<_>>()
    });
    let relation = (any::<u32>(), any::<u32>(), any::<u32>());
    let relations = prop::collection::btree_map(relation, (any::<Option<u32>>(), runs), 0..6);
    let end = prop_oneof![
        Just(ChangesEnd::Whole),
        Just(ChangesEnd::Inside),
        any::<u64>().prop_map(|at| ChangesEnd::Stopped { at: Lsn::new(at) }),
        (any::<u64>(), any::<u32>(), part.clone()).prop_map(|(start, total_len, part)| ChangesEnd::Open {
            start: Lsn::new(start),
            total_len,
            part
        }),
    ];
    let place = || (0..u64::MAX).prop_map(Lsn::new);
    let facts = (prop::option::of(place()), prop::option::of(place()), prop::option::of(part), any::<[bool; 4]>());
    (any::<u16>(), relations, facts, end).prop_map(|(magic, relations, (previous, last, lead, flags), end)| {
        let relation = |((tablespace, database, relation), (limit, runs))| RelationChanges {
            relation: RelationLocator { tablespace, database, relation },
            limit,
            runs,
        };
        let [overwrites, unknown, minimal, full_page_writes_off] = flags;
        let (magic, relations) = (WalMagic::new(magic), relations.into_iter().map(relation).collect());
        SegmentChanges {
            magic,
            relations,
            previous,
            lead,
            overwrites,
            last,
            end,
            unknown,
            minimal,
            full_page_writes_off,
        }
    })
}

proptest! {
    #[test]
    fn whatever_is_put_is_read(changes in any_changes()) {
        let mut bytes = Vec::new();
        put(&changes, &mut bytes);
        prop_assert_eq!(read(&bytes), Ok(Some(changes)));
    }

    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_folder(&[&b"WVK\x01"[..], &bytes].concat());
        if let Some(first) = bytes.first_mut() {
            *first = CHANGES_VERSION;
        }
        let _ = read(&bytes);
    }
}
