#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const V1: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/15/backup_manifest"));
const V2: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/17/backup_manifest"));

/// Whose manifest [`V2`] is.
const SYSTEM_17: u64 = 7710471105509897003;

fn written(manifest: &BackupManifest) -> Vec<u8> {
    let mut writer = ManifestWriter::new(Vec::new(), manifest.version).unwrap();
    for file in &manifest.files {
        let Some(FileChecksum::Crc32c(crc32c)) = file.checksum else { panic!("{file:?} has another checksum") };
        writer.file(&file.path, file.size, file.last_modified, crc32c).unwrap();
    }
    writer.finish(&manifest.wal_ranges).unwrap()
}

/// The manifest with other text in it, and the checksum to match.
fn rewritten(from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(V2).unwrap();
    let (covered, _) = text.split_once("\"Manifest-Checksum\"").unwrap();
    assert!(covered.contains(from));
    let covered = covered.replacen(from, to, 1);
    format!("{covered}\"Manifest-Checksum\": \"{}\"}}\n", hex::encode(Sha256::digest(&covered))).into_bytes()
}

fn any_manifest() -> impl Strategy<Value = BackupManifest> {
    let time = (0i64..4_000_000_000).prop_map(|seconds| DateTime::from_timestamp(seconds, 0).unwrap());
    let path = prop_oneof![".{0,20}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..20)];
    let file = (path, any::<u64>(), time, any::<u32>()).prop_map(|(path, size, last_modified, crc32c)| ManifestFile {
        path,
        size,
        last_modified,
        checksum: Some(FileChecksum::Crc32c(crc32c)),
    });
    let range = (1u32.., any::<u64>(), any::<u64>())
        .prop_map(|(timeline, start, end)| (TimelineId::new(timeline).unwrap(), Lsn::new(start), Lsn::new(end)));
    let version = prop::option::of(any::<u64>()).prop_map(|system_id| match system_id {
        None => ManifestVersion::V1,
        Some(number) => ManifestVersion::V2(SystemId::new(number)),
    });
    (version, prop::collection::vec(file, 0..5), prop::collection::vec(range, 0..3))
        .prop_map(|(version, files, wal_ranges)| BackupManifest { version, files, wal_ranges })
}

#[test]
fn a_servers_manifest_is_read_and_written_the_same() {
    for (bytes, version) in [(V1, ManifestVersion::V1), (V2, ManifestVersion::V2(SystemId::new(SYSTEM_17)))] {
        let manifest = BackupManifest::parse(bytes).unwrap();
        assert_eq!(manifest.version, version);
        assert!(manifest.files.iter().any(|file| file.path == b"backup_label"));
        assert!(!manifest.wal_ranges.is_empty());
        assert_eq!(String::from_utf8(written(&manifest)).unwrap(), std::str::from_utf8(bytes).unwrap());
    }
}

#[test]
fn the_version_follows_the_major() {
    let id = SystemId::new(7);
    assert_eq!(ManifestVersion::of_major(16, id), ManifestVersion::V1);
    assert_eq!(ManifestVersion::of_major(17, id), ManifestVersion::V2(id));
}

#[test]
fn a_path_is_escaped_or_encoded() {
    let mut writer = ManifestWriter::new(Vec::new(), ManifestVersion::V1).unwrap();
    for path in [&b"a\"b\\c\n\x01"[..], "naïve".as_bytes(), b"\xFF/x"] {
        writer.file(path, 1, DateTime::UNIX_EPOCH, 0x1234_5678).unwrap();
    }
    let text = String::from_utf8(writer.finish(&[]).unwrap()).unwrap();
    assert!(text.contains(r#"{ "Path": "a\"b\\c\n\u0001", "Size": 1, "Last-Modified": "1970-01-01 00:00:00 GMT", "#));
    assert!(text.contains(r#"{ "Path": "naïve", "#));
    assert!(text.contains(r#"{ "Encoded-Path": "ff2f78", "#));
    assert!(text.contains(r#""Checksum-Algorithm": "CRC32C", "Checksum": "78563412" }"#));
}

#[test]
fn values_no_server_writes_are_refused() {
    for (key, from, to) in [
        ("Checksum", "CRC32C", "CRC32"),
        ("Checksum", "CRC32C", "SHA256"),
        ("Last-Modified", " GMT", " CET"),
        ("Timeline", "\"Timeline\": 1", "\"Timeline\": 0"),
        ("Path", "\"Path\": \"backup_label\", ", ""),
        ("Encoded-Path", "\"Path\": \"backup_label\"", "\"Encoded-Path\": \"6\""),
        ("System-Identifier", "Version\": 2", "Version\": 1"),
    ] {
        let error = BackupManifest::parse(&rewritten(from, to));
        assert!(matches!(error, Err(ManifestError::Value { key: found, .. }) if found == key), "{key}: {error:?}");
    }
    let error = BackupManifest::parse(&rewritten("Version\": 2", "Version\": 3"));
    assert!(matches!(error, Err(ManifestError::UnknownVersion { version: 3 })), "{error:?}");
    let error = BackupManifest::parse(&rewritten("\"Files\"", "\"Folders\""));
    assert!(matches!(error, Err(ManifestError::Json(_))), "{error:?}");
}

#[test]
fn other_checksums_are_read() {
    let sum = "00".repeat(32);
    let manifest = rewritten(
        "\"Size\"",
        &format!(
            "\"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"{sum}\", \"Size\": 1, \"Last-Modified\": \"2026-11-21 04:00:00 GMT\" }},\n{{ \"Path\": \"x\", \"Size\""
        ),
    );
    let manifest = BackupManifest::parse(&manifest).unwrap();
    assert_eq!(manifest.files[0].checksum, Some(FileChecksum::Sha2(vec![0; 32])));
}

proptest! {
    #[test]
    fn manifests_round_trip(manifest in any_manifest()) {
        prop_assert_eq!(BackupManifest::parse(&written(&manifest)).unwrap(), manifest);
    }

    #[test]
    fn a_changed_byte_is_refused(at in 0..V2.len(), flip in 1u8..) {
        let mut bytes = V2.to_vec();
        bytes[at] ^= flip;
        prop_assert!(BackupManifest::parse(&bytes).is_err());
    }

    #[test]
    fn a_cut_manifest_is_refused(at in 0..V2.len()) {
        prop_assert!(BackupManifest::parse(&V2[..at]).is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let _ = BackupManifest::parse(&bytes);
    }
}
