//! The manifest of a backup that nobody took, for tests and benches: whoever needs one says what matters, and no more.

use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;

use super::manifest::{Envelope, Limits, MANIFEST_VERSION, Manifest, Root};

/// Returns the manifest of an empty backup in segment 2 of timeline 1, of PostgreSQL 17 as `initdb` leaves it.
pub fn manifest(lane: &str, system_id: SystemId, backup: &str) -> Manifest {
    let at = "2026-11-21T00:00:00Z".parse().expect("a time");
    let envelope = Envelope {
        version: MANIFEST_VERSION,
        backup: backup.to_owned(),
        lane: lane.to_owned(),
        generation: 1,
        parent: None,
        major: 17,
        timeline: TimelineId::FIRST,
        start_lsn: "0/2000028".parse().expect("a position"),
        stop_lsn: "0/2000120".parse().expect("a position"),
        started_at: at,
        stopped_at: at,
        segment_size: 16 << 20,
        bytes: 0,
        stored_bytes: 0,
        named_bytes: None,
        files: 0,
        annotations: Default::default(),
        packs: 0,
        wal: Vec::new(),
    };
    let limits = Limits {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
    };
    let root = Root {
        version: MANIFEST_VERSION,
        system_id,
        backup_label: String::new(),
        tablespaces: Vec::new(),
        databases: Vec::new(),
        limits,
        server_version: "17".to_owned(),
        block_size: 8192,
        relation_segment_blocks: 131_072,
        wal_block_size: 8192,
        data_checksums: true,
        configuration: None,
        links: Vec::new(),
        pg_control: Vec::new(),
        damaged_pages: Vec::new(),
        damaged_total: 0,
    };
    Manifest { envelope, root }
}
