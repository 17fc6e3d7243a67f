#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use chrono::NaiveDateTime;
use proptest::prelude::*;

use super::*;

/// What a `pg_control` was, and what `pg_controldata` says of it.
struct Fixture {
    major: u16,
    bytes: &'static [u8],
    told: &'static str,
}

macro_rules! fixture {
    ($major:literal) => {
        Fixture {
            major: $major,
            bytes: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/", $major, "/pg_control")),
            told: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/", $major, "/pg_controldata.txt")),
        }
    };
}

const FIXTURES: [Fixture; 6] = [fixture!(13), fixture!(14), fixture!(15), fixture!(16), fixture!(17), fixture!(18)];

/// The same file with other bytes at an offset, and the checksum to match.
fn rewritten(fixture: &Fixture, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut control = fixture.bytes.to_vec();
    control[at..][..bytes.len()].copy_from_slice(bytes);
    let crc_at = if fixture.major < 18 { 288 } else { 292 };
    let crc = crc32c::crc32c(&control[..crc_at]);
    control[crc_at..][..4].copy_from_slice(&crc.to_le_bytes());
    control
}

fn on_off(value: bool) -> String {
    if value { "on" } else { "off" }.to_owned()
}

#[test]
fn every_major_is_read_as_pg_controldata_reads_it() {
    for Fixture { major, bytes, told } in FIXTURES {
        let told: HashMap<&str, &str> =
            told.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim())).collect();
        let control = ControlFile::parse(bytes).unwrap();
        let point = control.min_recovery_point;
        let time = NaiveDateTime::parse_from_str(told["Time of latest checkpoint"], "%a %b %e %H:%M:%S %Y").unwrap();
        let lsn = |lsn: Option<Lsn>| lsn.unwrap_or_default().to_string();
        assert_eq!(control.major, major);
        assert_eq!(control.checkpoint_time, time.and_utc(), "{major}");
        for (key, value) in [
            ("pg_control version number", control.control_version.to_string()),
            ("Catalog version number", control.catalog_version.to_string()),
            ("Database system identifier", control.system_id.to_string()),
            ("Database cluster state", control.state.to_string()),
            ("Latest checkpoint location", control.checkpoint.to_string()),
            ("Latest checkpoint's REDO location", control.redo.to_string()),
            ("Latest checkpoint's TimeLineID", control.timeline.to_string()),
            ("Latest checkpoint's full_page_writes", on_off(control.full_page_writes)),
            ("Minimum recovery ending location", lsn(point.map(|point| point.lsn))),
            ("Min recovery ending loc's timeline", point.map_or(0, |point| point.timeline.number()).to_string()),
            ("Backup start location", lsn(control.backup_start_point)),
            ("Backup end location", lsn(control.backup_end_point)),
            ("End-of-backup record required", if control.backup_end_required { "yes" } else { "no" }.to_owned()),
            ("wal_level setting", control.wal_level.to_string()),
            ("wal_log_hints setting", on_off(control.wal_log_hints)),
            ("max_connections setting", control.max_connections.to_string()),
            ("max_worker_processes setting", control.max_worker_processes.to_string()),
            ("max_wal_senders setting", control.max_wal_senders.to_string()),
            ("max_prepared_xacts setting", control.max_prepared_transactions.to_string()),
            ("max_locks_per_xact setting", control.max_locks_per_transaction.to_string()),
            ("track_commit_timestamp setting", on_off(control.track_commit_timestamp)),
            ("Database block size", control.block_size.bytes().to_string()),
            ("Blocks per segment of large relation", control.relation_segment_blocks.to_string()),
            ("WAL block size", control.wal_block_size.to_string()),
            ("Bytes per WAL segment", control.segment_size.bytes().to_string()),
            ("Data page checksum version", u8::from(control.data_checksums).to_string()),
        ] {
            assert_eq!(value, told[key], "{key} of major {major}");
        }
    }
}

#[test]
fn the_fixtures_hold_more_than_defaults() {
    let controls = FIXTURES.map(|fixture| ControlFile::parse(fixture.bytes).unwrap());
    let states: Vec<DbState> = controls.iter().map(|control| control.state).collect();
    for state in [DbState::ShutDown, DbState::InProduction, DbState::InArchiveRecovery] {
        assert!(states.contains(&state), "{state}");
    }
    assert!(controls.iter().any(|control| control.min_recovery_point.is_some()));
    assert!(controls.iter().any(|control| control.track_commit_timestamp != control.wal_log_hints));
}

#[test]
fn a_poisoned_file_differs_in_checkpoint_and_checksum_only() {
    for Fixture { major, bytes, .. } in FIXTURES {
        let poisoned = ControlFile::poisoned(bytes).unwrap();
        let (before, after) = (ControlFile::parse(bytes).unwrap(), ControlFile::parse(&poisoned).unwrap());
        assert!(after.is_poisoned() && !before.is_poisoned(), "{major}");
        assert_eq!(after, ControlFile { checkpoint: POISONED_CHECKPOINT, ..before });
        let crc_at = if major < 18 { 288 } else { 292 };
        let changed: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != poisoned[*at]).collect();
        assert!(changed.iter().all(|at| (32..40).contains(at) || (crc_at..crc_at + 4).contains(at)), "{changed:?}");
        assert_eq!(poisoned.len(), bytes.len());
        assert_eq!(ControlFile::poisoned(&poisoned), Ok(poisoned));
    }
}

#[test]
fn the_poison_is_a_position_the_server_looks_for_and_no_log_holds() {
    let least_segment = 1 << 20;
    assert!(POISONED_CHECKPOINT.bytes() < least_segment);
    assert_eq!(POISONED_CHECKPOINT.bytes() % 8, 0);
    for wal_block_size in (10..=16).map(|power| 1u64 << power) {
        // A page begins with a header of 24 bytes, 40 in the first page of a segment.
        assert!(POISONED_CHECKPOINT.bytes() % wal_block_size >= 40);
    }
}

#[test]
fn a_cut_file_is_refused() {
    for length in [0, 1, CONTROL_DATA_BYTES - 1] {
        let cut = &FIXTURES[2].bytes[..length];
        assert_eq!(ControlFile::parse(cut), Err(ControlError::TooShort { length }));
        assert_eq!(ControlFile::poisoned(cut), Err(ControlError::TooShort { length }));
    }
}

#[test]
fn a_release_that_is_not_known_is_refused_by_its_numbers() {
    for (control_version, catalog_version) in [(1201u32, 201909212u32), (1902, 202605131), (1300, 202406281)] {
        let numbers = [control_version.to_le_bytes(), catalog_version.to_le_bytes()].concat();
        let control = rewritten(&FIXTURES[0], 8, &numbers);
        let error = ControlFile::parse(&control).unwrap_err();
        assert_eq!(error, ControlError::UnknownVersion { control_version, catalog_version });
        assert!(error.to_string().contains(&control_version.to_string()));
        assert!(error.to_string().contains(&catalog_version.to_string()));
    }
}

#[test]
fn values_no_server_writes_are_refused() {
    for (field, at, value) in [
        ("state", 16, 7i32),
        ("checkPointCopy.ThisTimeLineID", 48, 0),
        ("wal_level", 172, 3),
        ("MaxConnections", 180, -1),
        ("blcksz", 216, 65536),
        ("blcksz", 216, 8191),
        ("relseg_size", 220, 0),
        ("xlog_blcksz", 224, 512),
        ("xlog_seg_size", 228, 512 << 10),
        ("data_checksum_version", 252, 2),
    ] {
        let control = rewritten(&FIXTURES[5], at, &value.to_le_bytes());
        let value = value.into();
        assert_eq!(ControlFile::parse(&control), Err(ControlError::Field { field, value }));
        assert_eq!(ControlFile::poisoned(&control), Err(ControlError::Field { field, value }));
    }
    let control = rewritten(&FIXTURES[5], 104, &i64::MAX.to_le_bytes());
    let field = "checkPointCopy.time";
    assert_eq!(ControlFile::parse(&control), Err(ControlError::Field { field, value: i64::MAX }));
    let control = rewritten(&FIXTURES[4], 144, &[0; 4]);
    let field = "minRecoveryPointTLI";
    assert_eq!(ControlFile::parse(&control), Err(ControlError::Field { field, value: 0 }));
}

#[test]
fn checksums_can_be_off() {
    for fixture in FIXTURES {
        let control = rewritten(&fixture, 252, &[0; 4]);
        assert!(ControlFile::parse(fixture.bytes).unwrap().data_checksums);
        assert!(!ControlFile::parse(&control).unwrap().data_checksums);
    }
}

proptest! {
    #[test]
    fn a_flipped_byte_is_always_refused(which in 0..FIXTURES.len(), at in 0usize..292, flip in 1u8..) {
        let fixture = &FIXTURES[which];
        prop_assume!(fixture.major >= 18 || at < 288);
        let mut control = fixture.bytes.to_vec();
        control[at] ^= flip;
        prop_assert!(ControlFile::parse(&control).is_err());
        prop_assert!(ControlFile::poisoned(&control).is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = ControlFile::parse(&bytes);
    }

    #[test]
    fn any_contents_with_a_true_checksum_are_read_or_refused(
        which in 0..FIXTURES.len(), at in 16usize..280, bytes in prop::array::uniform8(any::<u8>()),
    ) {
        let control = rewritten(&FIXTURES[which], at, &bytes);
        let _ = ControlFile::parse(&control);
    }
}
