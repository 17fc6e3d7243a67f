//! From the first question to the commit.

use super::super::checks::expect_the_end;
use super::super::copy::CopyError;
use super::super::detection::{Basis, Method};
use super::super::leaves::LentLeaves;
use super::super::packs::Shelf;
use super::super::parent::{PageShape, Parent, is_parents_fault};
use super::super::perform::{BackupError, BackupOptions, BackupReport, Draft, backup_id, conclude};
use super::super::relations;
use super::super::remains::Remains;
use super::super::run;
use super::super::wal::Needed;
use super::RemoteError;
use super::base::{self, KeptFiles, Now};
use super::beside::WalBeside;
use super::receive::{Received, Storing, receive};
use super::spaces;
use super::worker::Pages;
use crate::clock;
use crate::error;
use crate::format::tables::Tables;
use crate::instance::replication::{BackupRequest, BaseBackup, Identification, ReplicationClient};
use crate::instance::{ConfigurationPaths, NameSession, ServerFacts, ServerRole, SessionError, StoppedBackup};
use crate::pg::backup_label::{BackupFrom, BackupLabel};
use crate::pg::control::ControlFile;
use crate::pg::data_directory::DataDirectory;
use crate::progress::Progress;
use crate::repo::{Lane, LaneFacts, LaneId, Lease, Purpose, Repository};

/// Takes a backup of a server over the replication protocol and commits it. It builds on the newest one, if the server sends
/// changes; everything is sent if that one turns out to be damaged, or the server cannot do it.
///
/// `names` is a connection of SQL to the same server, or why there is none; `beside` brings its WAL into the archive.
pub fn perform_remote(
    repository: &Repository,
    client: &mut ReplicationClient,
    mut names: Result<NameSession, SessionError>,
    options: &BackupOptions,
    progress: &Progress,
    mut beside: Option<&mut dyn WalBeside>,
) -> Result<BackupReport, BackupError> {
    let identity = client.identify().map_err(RemoteError::from)?;
    names = names.and_then(|session| session.expect_system(identity.system_id).map(|()| session));
    let server = facts(client, &identity, &names)?;
    // What a standby does not archive itself comes from its primary.
    if server.archive_mode == "off" && !server.in_recovery && beside.is_none() {
        return Err(BackupError::NotArchiving { mode: server.archive_mode.clone() });
    }
    let shape = Shape::ask(client)?;
    let lane = lane(repository, &shape, &identity, client.major(), &names)?;
    let lease = Lease::take(&lane, Purpose::Backup)?;
    run::expect_open(&lane, options)?;
    let now = Now { shape: shape.pages_of(&identity), checksums: shape.data_checksums, standby: server.in_recovery };
    let parent = base::choose(&lane, client, &names, (&identity, now), options.basis)?;
    let job =
        Job { lane: &lane, lease: &lease, server: &server, identity: &identity, shape: &shape, options, progress };
    let builds = parent.is_ok();
    let reason = match job.attempt(client, &mut names, parent, &mut beside) {
        Err(Void::Parent(reason)) => reason,
        // A file that somebody left behind has the name that changes have.
        Err(Void::Failed(BackupError::Remote(error @ RemoteError::Twice { .. }))) if builds => error.to_string(),
        Err(Void::Failed(error)) => return Err(error),
        Ok(report) => return Ok(report),
    };
    // It may still be sending.
    client.come_to_rest().map_err(RemoteError::from)?;
    job.attempt(client, &mut names, Err(reason), &mut beside).map_err(|void| match void {
        Void::Failed(error) => error,
        Void::Parent(_) => unreachable!("it builds on no other"),
    })
}

/// What every attempt works with.
struct Job<'a> {
    lane: &'a Lane,
    lease: &'a Lease,
    server: &'a ServerFacts,
    identity: &'a Identification,
    shape: &'a Shape,
    options: &'a BackupOptions,
    progress: &'a Progress,
}

/// Why an attempt gave no backup.
enum Void {
    /// There is nothing to build on after all; the server can be asked for everything.
    Parent(String),
    Failed(BackupError),
}

impl<E: Into<BackupError>> From<E> for Void {
    fn from(error: E) -> Self {
        match error.into() {
            BackupError::Copy(CopyError::Parent { source }) if is_parents_fault(&source) => {
                Self::Parent(format!("the backup to build on cannot be read: {}", error::chain(&source)))
            }
            // What came is of no use: the server forgot blocks, or somebody left a file behind that is named as changes are.
            BackupError::Remote(
                error @ (RemoteError::NoBase { .. } | RemoteError::Unsent { .. } | RemoteError::Changes { .. }),
            ) => Self::Parent(error::chain(&error).to_string()),
            error => Self::Failed(error),
        }
    }
}

impl Job<'_> {
    /// Takes a backup that builds on another or, for the reason given, on none.
    fn attempt(
        &self,
        client: &mut ReplicationClient,
        names: &mut Result<NameSession, SessionError>,
        parent: Result<Parent, String>,
        beside: &mut Option<&mut dyn WalBeside>,
    ) -> Result<BackupReport, Void> {
        let Self { lane, lease, server, identity, shape, options, progress } = *self;
        let (parent, refused) = match parent {
            Ok(parent) => (Some(parent), String::new()),
            Err(reason) => (None, reason),
        };
        let rules = DataDirectory::new(lane.facts().major, lane.facts().catalog_version);
        let kept = match &parent {
            Some(parent) => base::upload(client, lane, parent, &rules)?.map_err(Void::Parent)?,
            None => KeptFiles::default(),
        };
        let begun = clock::now();
        let id = backup_id(begun);
        lease.name(&id)?;
        let lent = parent.as_ref().map(|parent| &parent.tables.packs);
        let alone = if parent.is_some() { options.budget.beside_parent() } else { options.budget };
        let (budget, remains) = Remains::beside(alone, lane, &id, shape.block_size)?;
        let shelf = Shelf::new(lane, &id, shape.block_size, lent).beside(remains).sending(options.send_rate);
        let known = parent.as_ref().map_or_else(LentLeaves::default, |parent| {
            LentLeaves::new(&parent.tables.relations, &parent.renewal.packs)
        });
        let found = gather_names(names, &shelf, options, known)?;
        let request = BackupRequest {
            label: "walvault".to_owned(),
            fast: options.fast,
            max_rate: options.rate.map(|rate| rate.bytes()),
            incremental: parent.is_some(),
        };
        let major = client.major();
        let canceller = client.canceller();
        let mut stream = match client.base_backup(&request) {
            Err(problem) if request.incremental && problem.lacks_prerequisite() => {
                return Err(Void::Parent(format!("the server sends no changes: {}", error::chain(&problem))));
            }
            stream => stream.map_err(RemoteError::from)?,
        };
        if let Some(beside) = beside {
            beside.begin(lane, (stream.start, stream.timeline), canceller);
        }
        progress.expect(stream.tablespaces.iter().map(|tablespace| tablespace.bytes).sum());
        let (start_lsn, start_timeline) = (stream.start, stream.timeline);
        let limits = parent
            .as_ref()
            .map(|parent| base::changes(names, parent, (start_lsn, start_timeline), (major, shape.data_checksums)));
        // A backup is under way: it is void with the connection, and the next one finds out why beforehand.
        let limits = limits.transpose().map_err(|problem| RemoteError::Limits { problem })?;
        let lending = parent.as_ref().map(|parent| parent.lending(lane, limits));
        // The older backup is looked at when the workers are done: what it takes is theirs.
        let (pages, level) = (shape.pages(&stream), options.level);
        let storing =
            Storing { shelf: &shelf, rules: &rules, pages, budget, level, older: lending.as_ref(), kept: &kept };
        let received = receive(&mut stream, storing, progress).map_err(|error| {
            // What ended beside it ended the backup too, and says why.
            let beside = beside.as_mut().and_then(|beside| beside.failure());
            beside.map_or(error, |failure| RemoteError::from(failure).into())
        })?;
        let tablespaces = spaces::linked(&stream.tablespaces, received.map.as_deref(), &server.data_directory)?;
        drop(stream);

        let label = BackupLabel::parse(&received.label).map_err(BackupError::from)?;
        let control = ControlFile::parse(&received.control)
            .map_err(|_| RemoteError::Missing { name: "a pg_control that can be read" })?;
        check(&received, &control, &label, (identity, shape, lane), (start_lsn, start_timeline))?;
        check_base(&label, parent.as_ref())?;
        // By the label: whether the server is still what it was when it was asked, nobody looked.
        let role = match label.from {
            BackupFrom::Primary => ServerRole::Primary,
            BackupFrom::Standby => ServerRole::Standby,
        };
        expect_the_end(role, &label, &control, received.stop)?;
        let ahead = chrono::TimeDelta::seconds(received.ahead);
        // The label's time is cut to the second: a moment too late refuses a target, one too early would promise it.
        let stopped_at = clock::now() + ahead + chrono::TimeDelta::seconds(1);
        let stopped = StoppedBackup { stop_lsn: received.stop, label: restorable(&received.label), stopped_at };
        let mut totals = received.totals;
        let mut remarks = received.notices;
        remarks.extend(received.damaged.map(|refusal| refusal.to_string()));
        totals.damaged.sort_by(|a, b| (&a.path, a.page).cmp(&(&b.path, b.page)));
        let taken_over = shelf.taken_over();
        let mut named = received.named;
        named.join(&found.named);
        let tables = Tables { packs: shelf.table(&named), leaves: received.leaves, relations: found.leaves };
        // A restore to the end of a standby's backup looks for the record behind it, which may lie in the next segment.
        let size = lane.segment_size();
        let mut needed = Needed::of(start_timeline, (start_lsn, received.stop), size);
        if server.in_recovery || role == ServerRole::Standby {
            needed = needed.and_the_next();
        }
        if let Some(beside) = beside {
            beside.end(needed.through, options.wal_patience).map_err(RemoteError::from)?;
        }
        let basis = Basis {
            parent: parent.as_ref().map(|parent| parent.manifest.envelope.backup.clone()),
            method: if parent.is_some() { Method::Summaries } else { Method::Full },
            reason: if parent.is_some() { "the server sent what its log tells of".to_owned() } else { refused },
            compared_bytes: 0,
            unread_bytes: totals.unread,
            doubted: Default::default(),
        };
        let draft = Draft {
            id,
            lane,
            server,
            options,
            parent: basis.parent.clone(),
            control,
            control_bytes: received.control,
            start_lsn,
            started_at: (begun + ahead).min(stopped_at),
            stopped,
            label,
            totals,
            tablespaces,
            links: Vec::new(),
            configuration: None,
            relations: found.counts,
        };
        Ok(BackupReport { remarks, taken_over, ..conclude(draft, &tables, needed, found.unknown, basis, lease)? })
    }
}

/// Checks that the server built on the backup that it was given.
fn check_base(label: &BackupLabel, parent: Option<&Parent>) -> Result<(), BackupError> {
    let from = label.incremental_from.map(|from| (from.lsn, from.timeline));
    let expected = parent.map(|parent| (parent.manifest.envelope.start_lsn, parent.manifest.envelope.timeline));
    match from == expected {
        true => Ok(()),
        false => Err(BackupError::Changed { what: "the backup to build on" }),
    }
}

/// Returns a label without the lines that say what the stream built on. A server refuses to start from a label with them, and
/// what is restored needs no other backup.
fn restorable(label: &[u8]) -> String {
    let label = String::from_utf8_lossy(label);
    label.split_inclusive('\n').filter(|line| !line.starts_with("INCREMENTAL FROM ")).collect()
}

/// Checks that everything that came tells of one server that stayed the same.
fn check(
    received: &Received,
    control: &ControlFile,
    label: &BackupLabel,
    (identity, shape, lane): (&Identification, &Shape, &Lane),
    start: (crate::pg::lsn::Lsn, crate::pg::timeline::TimelineId),
) -> Result<(), BackupError> {
    let changed = |what| Err(BackupError::Changed { what });
    let range = (start.1.number(), start.0, received.stop);
    if received.timeline != start.1 || received.manifest.ranges != [range] {
        return changed("the timeline");
    }
    let same = (label.start_lsn, label.start_timeline) == start
        && control.timeline == start.1
        && control.system_id == identity.system_id
        && received.manifest.system_id.is_none_or(|system_id| system_id == identity.system_id)
        && lane.facts().fits(&LaneFacts::of(control))
        && control.relation_segment_blocks == shape.relation_segment_blocks
        && control.data_checksums == shape.data_checksums;
    if same { Ok(()) } else { changed("the server") }
}

/// Sizes that `pg_control` tells, and that are needed before it comes.
struct Shape {
    block_size: u32,
    relation_segment_blocks: u32,
    wal_block_size: u32,
    segment_size: u32,
    data_checksums: bool,
}

impl Shape {
    fn ask(client: &mut ReplicationClient) -> Result<Self, RemoteError> {
        let block_size = size(client, "block_size")?.max(1);
        Ok(Self {
            block_size,
            relation_segment_blocks: size(client, "segment_size")? / block_size,
            wal_block_size: size(client, "wal_block_size")?,
            segment_size: size(client, "wal_segment_size")?,
            data_checksums: client.show("data_checksums")? == "on",
        })
    }

    fn pages_of(&self, identity: &Identification) -> PageShape {
        let (block_size, relation_segment_blocks) = (self.block_size, self.relation_segment_blocks);
        PageShape { system_id: identity.system_id, block_size, relation_segment_blocks }
    }

    fn pages(&self, stream: &BaseBackup<'_>) -> Pages {
        Pages {
            block_size: self.block_size,
            relation_segment_blocks: self.relation_segment_blocks,
            checksums: self.data_checksums,
            start_lsn: stream.start,
        }
    }
}

/// Reads a setting such as `8192`, `16MB` or `1GB`.
fn size(client: &mut ReplicationClient, name: &'static str) -> Result<u32, RemoteError> {
    let value = client.show(name)?;
    bytes_of(&value).ok_or(RemoteError::Setting { name, value })
}

fn bytes_of(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(factor)
}

fn facts(
    client: &mut ReplicationClient,
    identity: &Identification,
    names: &Result<NameSession, SessionError>,
) -> Result<ServerFacts, RemoteError> {
    Ok(ServerFacts {
        version_number: u32::from(client.major()) * 10_000,
        version: client.version().to_owned(),
        system_id: identity.system_id,
        // Not every user may know it, and nothing rests on it but where a tablespace inside of it lies.
        data_directory: client.show("data_directory").unwrap_or_default(),
        in_recovery: client.in_recovery()?,
        archive_mode: client.show("archive_mode")?,
        configuration: ConfigurationPaths::default(),
        tablespaces: Vec::new(),
        databases: names.as_ref().map_or_else(|_| Vec::new(), |names| names.databases.clone()),
    })
}

/// Opens the lane of the server. A server that the archive knows need not be asked by SQL.
fn lane(
    repository: &Repository,
    shape: &Shape,
    identity: &Identification,
    major: u16,
    names: &Result<NameSession, SessionError>,
) -> Result<Lane, BackupError> {
    let known = repository.lane(LaneId::first(identity.system_id))?;
    let catalog_version = match (&known, names) {
        (Some(lane), _) => lane.facts().catalog_version,
        (None, Ok(names)) => names.catalog_version,
        (None, Err(problem)) => {
            let problem = error::chain(problem).to_string();
            return Err(RemoteError::NothingArchived { system_id: identity.system_id, problem }.into());
        }
    };
    Ok(repository.lane_for(&LaneFacts {
        version: crate::repo::LANE_VERSION,
        system_id: identity.system_id,
        epoch: 1,
        major,
        catalog_version,
        segment_size: shape.segment_size,
        block_size: shape.block_size,
        wal_block_size: shape.wal_block_size,
        parent: None,
    })?)
}

fn gather_names(
    names: &mut Result<NameSession, SessionError>,
    shelf: &Shelf<'_>,
    options: &BackupOptions,
    lent: LentLeaves<'_>,
) -> Result<relations::RelationNames, BackupError> {
    match names {
        Ok(session) => {
            let databases = session.databases.clone();
            let mut ask = |database: &_, found: &mut dyn FnMut(_) -> bool| session.relations(database, found);
            Ok(relations::gather(&databases, &mut ask, shelf, options.level, lent)?)
        }
        Err(problem) => Ok(relations::RelationNames {
            unknown: vec![format!("(all): {}", error::chain(problem))],
            ..Default::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_server_prints_them() {
        for (text, bytes) in
            [("8192", Some(8192)), ("16MB", Some(16 << 20)), ("1GB", Some(1 << 30)), ("64kB", Some(65536))]
        {
            assert_eq!(bytes_of(text), bytes, "{text}");
        }
        for text in ["", "MB", "16 MB", "1TB", "9GB"] {
            assert_eq!(bytes_of(text), None, "{text}");
        }
    }

    #[test]
    fn a_label_is_stored_as_a_server_can_start_from_it() {
        let fixture = |name: &str| {
            let path = format!("{}/fixtures/pgdata/17/{name}", env!("CARGO_MANIFEST_DIR"));
            std::fs::read(path).expect("a fixture")
        };
        let incremental = fixture("backup_label.incremental");
        let expected = BackupLabel { incremental_from: None, ..BackupLabel::parse(&incremental).expect("a label") };
        assert_eq!(BackupLabel::parse(restorable(&incremental).as_bytes()), Ok(expected));
        let full = fixture("backup_label");
        assert_eq!(restorable(&full).into_bytes(), full);
    }
}
