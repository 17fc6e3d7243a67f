//! A server that is played, the repository it is backed up into, and what changes in its directory between two backups.

use super::*;

/// A server that answers as one with the fixture's log would, over a directory that nobody writes to.
pub(super) struct PlayedServer {
    pub facts: ServerFacts,
    pub directory: PathBuf,
    pub segments: Vec<(SegmentName, Vec<u8>)>,
    /// Backups that were started: each a second after the one before.
    started: i64,
}

/// Enough for more than one leaf.
pub(super) const RELATIONS: u32 = 5000;
pub(super) const START: &str = "0/700028";
pub(super) const STOP: &str = "0/700100";

impl PlayedServer {
    pub(super) fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("walvault-backup-{}-{name}", std::process::id()));
        let mut segments = crate::pg::wal_fixture::segments(MAJOR, 1);
        segments[0].1 = with_backup_end(&segments[0].1);
        let system_id = crate::pg::wal_page::FirstPage::parse(&segments[0].1).unwrap().system_id;
        for folder in ["global", "base/1", "pg_wal/archive_status", "pg_tblspc"] {
            std::fs::create_dir_all(directory.join(folder)).unwrap();
        }
        std::fs::write(directory.join("global/pg_control"), control_of(system_id)).unwrap();
        for (name, bytes) in files() {
            std::fs::write(directory.join(name), bytes).unwrap();
        }
        let facts = ServerFacts {
            version_number: 150_000,
            version: "15".to_owned(),
            system_id,
            data_directory: directory.display().to_string(),
            in_recovery: false,
            archive_mode: "on".to_owned(),
            configuration: Default::default(),
            tablespaces: Vec::new(),
            databases: vec![DatabaseFacts {
                oid: 1,
                name: "template1".to_owned(),
                tablespace: 1663,
                connectable: true,
            }],
        };
        Self { facts, directory, segments, started: 0 }
    }
}

impl Drop for PlayedServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Small files, an empty one, zeros, a large one that does not compress and one that does.
pub(super) fn files() -> BTreeMap<&'static str, Vec<u8>> {
    let mut noise = vec![0; 700_000];
    getrandom::fill(&mut noise).unwrap();
    BTreeMap::from([
        ("PG_VERSION", b"15\n".to_vec()),
        ("base/1/PG_VERSION", b"15\n".to_vec()),
        ("base/1/empty", Vec::new()),
        ("base/1/zeros", vec![0; 600_000]),
        ("base/1/noise", noise),
        ("base/1/text", b"a page of text that compresses well; ".repeat(20_000)),
        ("postgresql.conf", b"max_connections = 100\n".repeat(30)),
    ])
}

impl BackupServer for PlayedServer {
    fn facts(&self) -> &ServerFacts {
        &self.facts
    }

    fn start(&mut self, _: &str, _: bool) -> Result<(Lsn, DateTime<Utc>), SessionError> {
        self.started += 1;
        Ok((START.parse().unwrap(), DateTime::from_timestamp(1_795_000_000 + self.started, 0).unwrap()))
    }

    fn relations(
        &mut self,
        database: &DatabaseFacts,
        found: &mut dyn FnMut(Relation) -> bool,
    ) -> Result<(), SessionError> {
        let relation = |n: u32| Relation {
            database: database.oid,
            schema: b"public".to_vec(),
            name: format!("table_{n:06}").into_bytes(),
            oid: 16384 + n,
            file: 16384 + n,
            tablespace: database.tablespace,
            kind: b'r',
        };
        let _ = (0..RELATIONS).all(|n| found(relation(n)));
        Ok(())
    }

    fn stop(&mut self) -> Result<StoppedBackup, SessionError> {
        let label = format!(
            "START WAL LOCATION: {START} (file 000000010000000000000007)\nCHECKPOINT LOCATION: 0/700060\n\
             BACKUP METHOD: streamed\nBACKUP FROM: {}\nSTART TIME: 2026-11-21 04:00:00 UTC\n\
             LABEL: walvault\nSTART TIMELINE: 1\n",
            self.facts.role()
        );
        let stopped_at = DateTime::from_timestamp(1_795_000_001, 0).unwrap();
        Ok(StoppedBackup { stop_lsn: STOP.parse().unwrap(), label, stopped_at })
    }
}

/// A repository with the log archived, and the same one over a store that can be made to fail.
pub(super) fn repositories(server: &PlayedServer) -> (Repository, Repository, FaultStore) {
    let memory = Arc::new(InMemory::new());
    let faulty = FaultStore::new(Arc::<InMemory>::clone(&memory));
    let store = |backend, name| Store::over(backend, name, RetryPolicy::brisk(1)).unwrap();
    let sound = Repository::init(store(memory, "sound"), "main").unwrap().0;
    let control = ControlFile::parse(&control_of(server.facts.system_id)).unwrap();
    let lane = sound.lane_for(&LaneFacts::of(&control)).unwrap();
    for (name, raw) in &server.segments[..2] {
        archive(&lane, &crate::pg::wal_name::WalFileName::Segment(*name), raw);
    }
    let repository = Repository::open(store(Arc::new(faulty.clone()), "faulty"), "main").unwrap();
    (sound, repository, faulty)
}

pub(super) fn options() -> BackupOptions {
    BackupOptions {
        data_directory: None,
        fast: true,
        level: 1,
        budget: Budget::new(48 << 20, 2),
        wal_patience: Duration::ZERO,
        rate: None,
        send_rate: None,
        yielding: true,
        annotations: BTreeMap::new(),
        basis: Wanted::Cheapest,
    }
}

pub(super) fn take(repository: &Repository, server: &mut PlayedServer) -> Result<BackupReport, BackupError> {
    perform(repository, server, &options(), &Progress::default())
}

/// A change of the directory.
pub(super) fn rewrite(server: &PlayedServer, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let path = server.directory.join(name);
    let mut bytes = std::fs::read(&path).unwrap_or_default();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    getrandom::fill(&mut noise).unwrap();
    noise
}

/// Changes of every kind, one for each round.
pub(super) fn change(server: &PlayedServer, round: usize) {
    match round % 9 {
        0 => {}
        1 => rewrite(server, "base/1/noise", |bytes| bytes[8192 * 40] ^= 1),
        2 => rewrite(server, "base/1/noise", |bytes| bytes.extend(noise(300_001))),
        3 => rewrite(server, "base/1/noise", |bytes| bytes.truncate(500_000)),
        4 => rewrite(server, "base/1/zeros", |bytes| bytes[100_000..100_010].fill(7)),
        5 => rewrite(server, "base/1/new", |bytes| bytes.extend(noise(1_000_000))),
        6 => rewrite(server, "base/1/text", |bytes| bytes.iter_mut().step_by(32_000).for_each(|byte| *byte ^= 1)),
        7 => {
            std::fs::remove_file(server.directory.join("base/1/new")).unwrap();
            rewrite(server, "postgresql.conf", |bytes| bytes.extend(b"# changed\n"));
        }
        _ => {
            // Large for small, and small for large; and back.
            for name in ["base/1/text", "base/1/empty"] {
                rewrite(server, name, |bytes| *bytes = noise(if bytes.len() > 200_000 { 1000 } else { 700_000 }));
            }
        }
    }
}
