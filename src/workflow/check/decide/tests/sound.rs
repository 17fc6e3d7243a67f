//! A sound server, and what it is made of.

use super::*;

pub(super) const GIB: u64 = 1 << 30;

pub(super) fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

pub(super) fn ago(seconds: i64) -> DateTime<Utc> {
    now() - chrono::Duration::seconds(seconds)
}

pub(super) fn here() -> Destination {
    Destination { repository: "file:///mnt/backup".to_owned(), cluster: "main".to_owned() }
}

pub(super) fn call(verb: CalledVerb, files: &[&str]) -> WalvaultCall {
    WalvaultCall {
        program: "/usr/bin/walvault".to_owned(),
        binary: Binary::This,
        wrapper: None,
        joined: Joined::Alone,
        understood: Ok(Understood {
            verb,
            files: files.iter().map(|file| (*file).to_owned()).collect(),
            destination: Ok(here()),
        }),
    }
}

pub(super) fn push() -> WalvaultCall {
    call(CalledVerb::Push, &[EXAMPLE_PATH])
}

pub(super) fn fetch() -> WalvaultCall {
    call(CalledVerb::Fetch, &[EXAMPLE_FILE, EXAMPLE_PATH])
}

pub(super) fn sound() -> Facts {
    let settings = [
        ("wal_level", "replica"),
        ("full_page_writes", "on"),
        ("fsync", "on"),
        ("data_checksums", "on"),
        ("max_wal_senders", "10"),
        ("archive_mode", "on"),
        ("archive_library", ""),
        ("archive_timeout", "60"),
        ("wal_keep_size", "0"),
    ];
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let system_id = SystemId::new(7);
    Facts {
        now: now(),
        config: Ok(ConfigFacts { file: None, destination: here(), call: "walvault".to_owned(), unknown: vec![] }),
        user: UserFacts { name: "postgres".to_owned(), owner: None },
        data: Ok(DataFacts { path: "/data".into(), system_id, major: 17, timeline: TimelineId::FIRST, running: true }),
        target: "/run/postgresql:5432".to_owned(),
        server: Ok(Identity {
            version_number: 170_010,
            version: "17.10 (Debian)".to_owned(),
            in_recovery: false,
            system_id: Some(system_id),
            data_directory: Some("/data".to_owned()),
            role: "postgres".to_owned(),
            position: Some("0/5000000".parse().unwrap()),
        }),
        agent: Ok(AgentFacts::Nobody),
        between: Ok(Between::default()),
        rights: Ok(Rights { missing_functions: vec![], all_settings: true, switch_wal: true }),
        settings: Ok(settings.collect()),
        archive_command: Ok(CommandFacts::Walvault(push())),
        restore_command: Ok(CommandFacts::Walvault(fetch())),
        archiver: Ok(ArchiverState {
            last_archived: Some("x".to_owned()),
            archived_ago: Some(5),
            ..Default::default()
        }),
        slots: Ok(vec![]),
        wal: Ok(WalDirectory {
            free_bytes: 60 * GIB,
            total_bytes: 100 * GIB,
            bytes_per_second: Some(1000.0),
            ..Default::default()
        }),
        repository: Ok(RepositoryFacts {
            name: "file:///mnt/backup".to_owned(),
            is_volume: true,
            shares_disk: Some(false),
            roots: None,
            headless: vec![],
        }),
        lane: Ok(Some(lane())),
        probe: Ok(probe()),
        holdings: Ok(Holdings {
            newest_backup: Some(("b".to_owned(), ago(3600))),
            backups: 2,
            newest_segment: None,
            reach: Some(Reach { end: "0/4000000".parse().unwrap(), time: ago(30) }),
            ..Default::default()
        }),
        retention: Ok(Some(Overview {
            policy: true,
            backups: 2,
            kept: 2,
            restorable: 2,
            oldest: Some(ago(86400)),
            newest: Some(ago(3600)),
            last: Some(expired(3600)),
            ..Default::default()
        })),
        round_trip: Ok(RoundTrip {
            segment: "000000010000000000000004".to_owned(),
            took: Duration::from_millis(300),
            outcome: RoundTripEnd::Same,
        }),
        standby_agent: true,
    }
}

pub(super) fn expired(seconds: i64) -> LastExpiry {
    LastExpiry { at: ago(seconds), host: "db2".to_owned(), broke_off: false }
}

pub(super) fn owner(writer: &str) -> Option<Owner> {
    Some(Owner {
        version: 1,
        writer: writer.to_owned(),
        host: "db1".to_owned(),
        since: "0".to_owned(),
        claim: Claim::First,
        waits_for: None,
    })
}

pub(super) fn lane() -> LaneState {
    LaneState {
        id: LaneId::first(SystemId::new(7)),
        misfit: None,
        others: 0,
        timeline: TimelineId::FIRST,
        owner: owner("me"),
        writer: "me".to_owned(),
        contested: vec![],
    }
}

pub(super) fn denied() -> RepoError {
    RepoError::Missing { key: "denied".to_owned() }
}

pub(super) fn probe() -> Probe {
    Probe {
        write: Ok(()),
        read_back: Some(Ok(true)),
        listed: Some(Ok(true)),
        mode: CreateMode::Conditional,
        create_only: Some(Ok(CreateMode::Conditional)),
        clock_ahead: Some(chrono::Duration::zero()),
        delete: Some(Ok(())),
    }
}
