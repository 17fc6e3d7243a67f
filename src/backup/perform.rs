//! One backup, from the first question to the commit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Progress;
use super::budget::Budget;
use super::checks::{expect_the_end, expect_the_servers, read_control, usable};
use super::configuration;
use super::copy::{self, CopyError, Source};
use super::detection::{Basis, Method, Wanted};
use super::gather::Totals;
use super::leaves::LentLeaves;
use super::marks::Marks;
use super::pace::{Pace, Slowed};
use super::packs::Shelf;
use super::parent::{self, PageShape, Parent, is_parents_fault};
use super::rate::{Rate, RateLimit};
use super::relations;
use super::remains::{Remains, TakenOver};
use super::remote::RemoteError;
use super::run;
use super::scan::{FoundNode, Walk};
use super::wal::{self, Needed, WalError};
use super::witness::Witness;
use crate::error::{self, ErrorKind};
use crate::format::configuration::{LeftOut, StoredConfiguration};
use crate::format::manifest::{
    Database, Envelope, Limits, Link, LinkKept, MANIFEST_VERSION, Manifest, Root, Tablespace, WalRange,
};
use crate::format::tables::{PackRef, PackSource, Tables};
use crate::instance::{
    BackupServer, DataDirectory, DatabaseFacts, LocateError, ServerFacts, SessionError, StoppedBackup,
};
use crate::pg::backup_label::{BackupLabel, BackupLabelError};
use crate::pg::control::{ControlFile, DbState};
use crate::pg::data_directory;
use crate::pg::lsn::Lsn;
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;
use crate::repo::{Lane, LaneFacts, Lease, LeaseError, Purpose, RepoError, Repository};

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// The data directory, if it is not where the server says.
    pub data_directory: Option<PathBuf>,
    /// Whether to ask for an immediate checkpoint.
    pub fast: bool,
    /// zstd level.
    pub level: i32,
    /// Workers and packs.
    pub budget: Budget,
    /// How long to wait for the WAL to reach the archive.
    pub wal_patience: Duration,
    /// Bytes of the data directory to read in a second, at most.
    pub rate: Option<Rate>,
    /// Bytes to store in a second, at most.
    pub send_rate: Option<Rate>,
    /// Whether to go more slowly while the server's disk answers more slowly.
    pub yielding: bool,
    /// Notes of the operator's.
    pub annotations: BTreeMap<String, String>,
    /// What it builds on.
    pub basis: Wanted,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// What was committed.
    pub envelope: Envelope,
    /// What it builds on, and why.
    pub basis: Basis,
    /// Pages whose checksum does not match, as `path page`.
    pub damaged_pages: Vec<String>,
    /// Links that were left out with all that they lead to.
    pub not_followed: Vec<Link>,
    /// Configuration files that could not be read.
    pub configuration_left_out: Vec<LeftOut>,
    /// Databases whose relations could not be asked for their names, and why.
    pub names_unknown: Vec<String>,
    /// What a server remarked that sent its files: links and special files that it passed over, damage.
    pub remarks: Vec<String>,
    /// What was taken over from backups that were cut off.
    pub taken_over: Option<TakenOver>,
    /// How it slowed itself for the server's sake, if it did.
    pub slowed: Option<Slowed>,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The server did not answer, or refused.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The server's data directory cannot be used.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// The data directory is another server's.
    #[error("{} belongs to system {found}, the server that was connected to is system {expected}", path.display())]
    OtherSystem {
        /// The data directory.
        path: PathBuf,
        /// System identifier in its `pg_control`.
        found: SystemId,
        /// The server's.
        expected: SystemId,
    },
    /// The data directory is that of another server of the same cluster, or a copy.
    #[error(
        "{} is not where the server that was connected to keeps its files: what it just wrote does not show there",
        path.display()
    )]
    OtherServer {
        /// The data directory.
        path: PathBuf,
    },
    /// The server archives nothing.
    #[error("archive_mode is {mode} on the server, so the WAL that a backup needs will not be archived")]
    NotArchiving {
        /// The setting's value.
        mode: String,
    },
    /// A file could not be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The server's label makes no sense.
    #[error("read the backup's label")]
    Label {
        /// Why.
        #[from]
        source: BackupLabelError,
    },
    /// What the server streamed is no backup.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Something changed that must not during a backup.
    #[error("{what} changed while the backup ran; nothing was committed")]
    Changed {
        /// What.
        what: &'static str,
    },
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepoError),
    /// The files are another server's: a standby's, or an old copy's.
    #[error(
        "{} is not where the server that began the backup keeps its files: pg_control there says \"{state}\" and its last \
         checkpoint is at {redo}, the backup's at {start}", path.display()
    )]
    NotItsFiles {
        /// The data directory.
        path: PathBuf,
        /// What its `pg_control` says.
        state: DbState,
        /// Redo point of its last checkpoint.
        redo: Lsn,
        /// Start of the backup.
        start: Lsn,
    },
    /// A timeline that recovery could not find its way to.
    #[error(
        "the archive has no history of timeline {timeline}, without which nothing can be restored on it: run \
         `walvault wal push pg_wal/{timeline:08X}.history` in the data directory, and take the backup again"
    )]
    NoHistory {
        /// The timeline.
        timeline: u32,
    },
    /// The run has its backup.
    #[error("run {run} has taken backup {backup}")]
    RunTaken {
        /// Name of the run.
        run: String,
        /// What it took.
        backup: String,
    },
    /// Another backup of the lane is at work, or this one lost its lease.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The WAL does not make the copy consistent.
    #[error("the copy is complete, but the WAL that it needs is not; nothing was committed")]
    Wal {
        /// Why.
        #[from]
        source: WalError,
    },
}

impl BackupError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BackupError::Session(source) => source.kind(),
            BackupError::Locate(source) => source.kind(),
            BackupError::OtherSystem { .. } | BackupError::OtherServer { .. } | BackupError::NotArchiving { .. } => {
                ErrorKind::Invalid
            }
            BackupError::Changed { .. } | BackupError::Copy(CopyError::Scan(_)) => ErrorKind::Unavailable,
            BackupError::Copy(CopyError::Store { source } | CopyError::Parent { source })
            | BackupError::Repository(source) => source.kind(),
            BackupError::Copy(CopyError::Read { .. }) => ErrorKind::Unavailable,
            BackupError::Label { .. } | BackupError::Copy(CopyError::Encode { .. }) => ErrorKind::Internal,
            BackupError::NotItsFiles { .. } | BackupError::Copy(CopyError::LeftOut { .. }) => ErrorKind::Invalid,
            BackupError::NoHistory { .. } => ErrorKind::NotFound,
            BackupError::RunTaken { .. } => ErrorKind::Conflict,
            BackupError::Lease(source) => source.kind(),
            BackupError::Wal { source } => source.kind(),
            BackupError::Remote(source) => source.kind(),
        }
    }

    /// Whether another backup of the lane is at work, which has an exit code of its own.
    pub fn is_held(&self) -> bool {
        matches!(self, BackupError::Lease(LeaseError::Held { .. }))
    }

    /// Whether what is missing is WAL in the archive, which has an exit code of its own.
    pub fn is_missing_wal(&self) -> bool {
        matches!(
            self,
            BackupError::NoHistory { .. }
                | BackupError::Wal {
                    source: WalError::Missing { .. } | WalError::Broken { .. } | WalError::NotThisServers { .. }
                }
        )
    }

    /// Whether the archive has another server's log in its place.
    pub fn is_anothers_wal(&self) -> bool {
        matches!(self, BackupError::Wal { source: WalError::NotThisServers { .. } })
    }
}

/// Takes a backup of a server and commits it. If the backup that it builds on turns out to be damaged, it builds on none.
pub fn perform(
    repository: &Repository,
    session: &mut impl BackupServer,
    options: &BackupOptions,
    progress: &Progress,
) -> Result<BackupReport, BackupError> {
    let server = session.facts().clone();
    let directory = usable(&server, options)?;
    if !session.lives_in(&directory.path)? {
        return Err(BackupError::OtherServer { path: directory.path });
    }
    let lane = repository.lane_for(&LaneFacts::of(&directory.control))?;
    let lease = Lease::take(&lane, Purpose::Backup)?;
    run::expect_open(&lane, options)?;
    let parent = parent::choose(&lane, PageShape::of(&directory.control), options.basis)?;
    let job = Job { lane: &lane, lease: &lease, server: &server, directory: &directory, options, progress };
    match job.attempt(session, parent) {
        Err(BackupError::Copy(CopyError::Parent { source })) if is_parents_fault(&source) => {
            session.stop()?;
            job.attempt(session, Err(format!("the backup to build on cannot be read: {}", error::chain(&source))))
        }
        result => result,
    }
}

/// What every attempt works with.
struct Job<'a> {
    lane: &'a Lane,
    lease: &'a Lease,
    server: &'a ServerFacts,
    directory: &'a DataDirectory,
    options: &'a BackupOptions,
    progress: &'a Progress,
}

impl Job<'_> {
    /// Takes a backup that builds on another or, for the reason given, on none.
    fn attempt(
        &self,
        session: &mut impl BackupServer,
        parent: Result<Parent, String>,
    ) -> Result<BackupReport, BackupError> {
        let Self { lane, lease, server, directory, options, progress } = *self;
        let (start_lsn, started_at) = session.start("walvault", options.fast)?;
        let (parent, refused) = match parent {
            Ok(parent) => (Some(parent), String::new()),
            Err(reason) => (None, reason),
        };
        // The checkpoint of the start has put a change of timeline into it.
        let at_start = read_control(directory)?.0;
        expect_the_servers(directory, &at_start, (start_lsn, server.role()))?;
        let timeline = at_start.timeline;
        let full_page_writes = at_start.full_page_writes;
        let started = ControlFile { timeline, full_page_writes, ..directory.control.clone() };
        let (method, reason, changed) = match &parent {
            Some(parent) => {
                let pg_wal = directory.path.join("pg_wal");
                parent.detect(lane, session, &started, start_lsn, options.basis, &pg_wal)?
            }
            None => (Method::Full, refused, None),
        };
        let lending = parent.as_ref().map(|parent| {
            let witness = Witness::of(&parent.manifest, server.role(), started.data_checksums);
            parent.lending(lane, changed).before(witness)
        });
        let id = backup_id(started_at);
        lease.name(&id)?;
        let lent = parent.as_ref().map(|parent| &parent.tables.packs);
        let block_size = directory.control.block_size.bytes();
        let alone = if parent.is_some() { options.budget.beside_parent() } else { options.budget };
        let (budget, remains) = Remains::beside(alone, lane, &id, block_size)?;
        let shelf = Shelf::new(lane, &id, block_size, lent).beside(remains).sending(options.send_rate);
        let known = parent.as_ref().map_or_else(LentLeaves::default, |parent| {
            LentLeaves::new(&parent.tables.relations, &parent.renewal.packs)
        });
        let names = relations::gather(
            &server.databases,
            &mut |database, found| session.relations(database, found),
            &shelf,
            options.level,
            known,
        )?;
        let configuration = configuration::find(&server.configuration, &directory.path);
        let configuration = configuration.map(|found| found.store(&shelf, options.level)).transpose()?;
        let pace = options.yielding.then(Pace::new);
        let source = Source {
            root: &directory.path,
            block_size,
            relation_segment_blocks: directory.control.relation_segment_blocks,
            checksums: directory.control.data_checksums,
            start_lsn,
            lending: lending.as_ref(),
            rate: options.rate.map(RateLimit::new),
            pace: pace.as_ref(),
            progress,
        };
        let expected = parent.as_ref().map(|parent| parent.manifest.envelope.bytes);
        let copied = copy_files(directory, &source, &shelf, (budget, options.level), expected)?;
        let (control, control_bytes) = read_control(directory)?;
        let stopped = session.stop()?;
        let label = BackupLabel::parse(stopped.label.as_bytes())?;
        let same = label.start_lsn == start_lsn
            && control.system_id == server.system_id
            && control.timeline == label.start_timeline
            && control.data_checksums == directory.control.data_checksums
            && (!method.rests_on_the_log() || control.timeline == timeline);
        if !same {
            return Err(BackupError::Changed { what: "the server" });
        }
        expect_the_end(server.role(), &label, &control, stopped.stop_lsn)?;
        let taken_over = shelf.taken_over();
        let mut named = copied.named;
        named.join(&names.named);
        let tables = Tables { packs: shelf.table(&named), leaves: copied.leaves, relations: names.leaves };
        let mut needed = Needed::of(label.start_timeline, (start_lsn, stopped.stop_lsn), lane.segment_size());
        if server.in_recovery {
            needed = needed.and_the_next();
        }
        let basis = Basis {
            parent: parent.as_ref().map(|parent| parent.manifest.envelope.backup.clone()),
            method,
            reason,
            compared_bytes: copied.totals.lent,
            unread_bytes: copied.totals.unread,
            doubted: copied.totals.doubted.clone(),
        };
        let draft = Draft {
            id,
            lane,
            server,
            options,
            parent: basis.parent.clone(),
            control,
            control_bytes,
            start_lsn,
            started_at,
            stopped,
            label,
            totals: copied.totals,
            tablespaces: tablespaces(&copied.tablespaces, &directory.path),
            links: copied.links,
            configuration,
            relations: names.counts,
        };
        let slowed = pace.and_then(|pace| pace.slowed());
        Ok(BackupReport { taken_over, slowed, ..conclude(draft, &tables, needed, names.unknown, basis, lease)? })
    }
}

/// The last steps, whatever the source: the WAL looked at in the archive, and only then the manifest.
pub(super) fn conclude(
    draft: Draft<'_>,
    tables: &Tables,
    needed: Needed,
    names_unknown: Vec<String>,
    basis: Basis,
    lease: &Lease,
) -> Result<BackupReport, BackupError> {
    let marks = Marks::of(&draft.label, &draft.control, draft.stopped.stop_lsn);
    wal::verify(draft.lane, needed, marks, draft.options.wal_patience)?;
    if needed.timeline != TimelineId::FIRST && draft.lane.history(needed.timeline)?.is_none() {
        return Err(BackupError::NoHistory { timeline: needed.timeline.number() });
    }
    let manifest = draft.manifest(tables);
    lease.commit(&manifest, tables)?;
    Ok(report(manifest, names_unknown, basis))
}

pub(super) fn backup_id(started_at: DateTime<Utc>) -> String {
    let mut random = [0; 3];
    // Two backups may start in one second; without randomness the second one's create is refused, and nothing is lost.
    let _ = getrandom::fill(&mut random);
    format!("{}-{}", started_at.format("%Y%m%dT%H%M%SZ"), hex::encode(random))
}

fn copy_files(
    directory: &DataDirectory,
    source: &Source<'_>,
    shelf: &Shelf<'_>,
    (budget, level): (Budget, i32),
    expected: Option<u64>,
) -> Result<copy::Copied, BackupError> {
    let rules = data_directory::DataDirectory::new(directory.control.major, directory.control.catalog_version);
    // As many as there were the last time is near enough, and saves a look at every file.
    source.progress.expect(expected.map_or_else(|| count_bytes(&directory.path, &rules), Ok)?);
    Ok(copy::copy(Walk::new(&directory.path, &rules), source, shelf, budget, level)?)
}

/// Counts the bytes to copy, in a walk of its own: remembering the files would take memory for each.
fn count_bytes(root: &Path, rules: &data_directory::DataDirectory) -> Result<u64, CopyError> {
    let mut walk = Walk::new(root, rules);
    let mut bytes = 0;
    while let Some(found) = walk.step()? {
        if let FoundNode::File { size, .. } = found.node {
            bytes += size;
        }
    }
    Ok(bytes)
}

/// Everything that the manifest says, gathered.
pub(super) struct Draft<'a> {
    pub id: String,
    pub lane: &'a Lane,
    pub server: &'a ServerFacts,
    pub options: &'a BackupOptions,
    pub parent: Option<String>,
    pub control: ControlFile,
    pub control_bytes: Vec<u8>,
    pub start_lsn: Lsn,
    pub started_at: DateTime<Utc>,
    pub stopped: StoppedBackup,
    pub label: BackupLabel,
    pub totals: Totals,
    pub tablespaces: Vec<Tablespace>,
    pub links: Vec<Link>,
    pub configuration: Option<StoredConfiguration>,
    /// How many relations of each database have their names in leaves.
    pub relations: BTreeMap<u32, u64>,
}

impl Draft<'_> {
    fn manifest(self, tables: &Tables) -> Manifest {
        let control = &self.control;
        let (timeline, stop_lsn) = (self.label.start_timeline, self.stopped.stop_lsn);
        let own =
            tables.packs.iter().filter(|PackRef { source: PackSource::Lane { backup, .. }, .. }| **backup == *self.id);
        let envelope = Envelope {
            version: MANIFEST_VERSION,
            backup: self.id.clone(),
            lane: self.lane.id().to_string(),
            generation: 1,
            parent: self.parent.clone(),
            major: control.major,
            timeline,
            start_lsn: self.start_lsn,
            stop_lsn,
            started_at: self.started_at,
            stopped_at: self.stopped.stopped_at,
            segment_size: control.segment_size.bytes() as u32,
            bytes: self.totals.bytes + self.control_bytes.len() as u64,
            stored_bytes: own.map(|pack| pack.stored_bytes).sum(),
            named_bytes: Some(tables.packs.iter().map(|pack| pack.stored_bytes).sum()),
            files: self.totals.files + 1,
            packs: tables.packs.iter().count() as u64,
            annotations: self.options.annotations.clone(),
            wal: vec![WalRange { timeline, start_lsn: self.start_lsn, stop_lsn }],
        };
        let root = Root {
            version: MANIFEST_VERSION,
            system_id: control.system_id,
            backup_label: self.stopped.label.clone(),
            databases: self.server.databases.iter().map(|database| self.database(database)).collect(),
            tablespaces: self.tablespaces,
            links: self.links,
            configuration: self.configuration,
            limits: limits(control),
            server_version: self.server.version.clone(),
            block_size: control.block_size.bytes(),
            relation_segment_blocks: control.relation_segment_blocks,
            wal_block_size: control.wal_block_size,
            data_checksums: control.data_checksums,
            pg_control: self.control_bytes,
            damaged_pages: self.totals.damaged,
            damaged_total: self.totals.damaged_total,
        };
        Manifest { envelope, root }
    }

    fn database(&self, database: &DatabaseFacts) -> Database {
        let relations = self.relations.get(&database.oid).copied();
        Database { oid: database.oid, name: database.name.clone(), tablespace: database.tablespace, relations }
    }
}

fn tablespaces(found: &[(u32, PathBuf)], directory: &Path) -> Vec<Tablespace> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let inside = |path: &Path| {
        let (path, directory) = (std::fs::canonicalize(path).ok()?, std::fs::canonicalize(directory).ok()?);
        path.strip_prefix(directory).ok().map(text)
    };
    found.iter().map(|(oid, path)| Tablespace { oid: *oid, path: text(path), inside: inside(path) }).collect()
}

fn limits(control: &ControlFile) -> Limits {
    Limits {
        max_connections: control.max_connections,
        max_worker_processes: control.max_worker_processes,
        max_wal_senders: control.max_wal_senders,
        max_prepared_transactions: control.max_prepared_transactions,
        max_locks_per_transaction: control.max_locks_per_transaction,
    }
}

fn report(manifest: Manifest, names_unknown: Vec<String>, basis: Basis) -> BackupReport {
    let root = &manifest.root;
    let configuration = root.configuration.as_ref();
    let mut damaged: Vec<String> =
        root.damaged_pages.iter().map(|page| format!("{} page {}", page.path, page.page)).collect();
    let further = root.damaged_total - damaged.len() as u64;
    if further > 0 {
        damaged.push(format!("and {further} further pages"));
    }
    BackupReport {
        damaged_pages: damaged,
        not_followed: root.links.iter().filter(|link| link.kept == LinkKept::Nothing).cloned().collect(),
        configuration_left_out: configuration.map_or_else(Vec::new, |configuration| configuration.left_out.clone()),
        names_unknown,
        basis,
        remarks: Vec::new(),
        taken_over: None,
        slowed: None,
        envelope: manifest.envelope,
    }
}

#[cfg(test)]
mod tests;
