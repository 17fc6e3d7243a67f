//! The backup that the next one builds on: the newest of the lane that can be read and of which every pack is there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::changed::ChangedBlocks;
use super::detection::{Doubt, Method, Situation, Wanted, other_release};
use super::lending::Lending;
use super::log::{self, Between, Told};
use super::renewal::{Liveness, Renewal};
use crate::error::{self, ErrorKind};
use crate::format::manifest::Manifest;
use crate::format::tables::{PackRef, PackSource, Tables};
use crate::instance::BackupServer;
use crate::pg::control::ControlFile;
use crate::pg::lsn::Lsn;
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::pg::wal_summary::Summary;
use crate::repo::{Lane, RepoError, StoredBackup};
use std::time::{Duration, Instant};

/// Backups that are tried, from the newest on.
const TRIED: usize = 8;
/// How long the server may take to summarize the next piece of its log, and how often it is asked: usually it is done at once,
/// since the checkpoint of the backup's start has woken it.
const SUMMARY_PATIENCE: Duration = Duration::from_secs(60);
const SUMMARY_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_SUMMARY_PAUSE: Duration = Duration::from_millis(200);

/// The backup to build on.
#[derive(Debug)]
pub(super) struct Parent {
    pub manifest: Manifest,
    pub tables: Tables,
    pub renewal: Renewal,
}

/// What two backups must have in common for one to name pages of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageShape {
    pub system_id: SystemId,
    pub block_size: u32,
    pub relation_segment_blocks: u32,
}

impl PageShape {
    pub fn of(control: &ControlFile) -> Self {
        let (system_id, block_size) = (control.system_id, control.block_size.bytes());
        Self { system_id, block_size, relation_segment_blocks: control.relation_segment_blocks }
    }
}

/// Finds the backup to build on.
///
/// # Errors
/// [`RepoError`] if the repository fails; the inner error is why there is none.
pub(super) fn choose(lane: &Lane, shape: PageShape, wanted: Wanted) -> Result<Result<Parent, String>, RepoError> {
    if wanted == Wanted::Full {
        return Ok(Err("asked for with --full".to_owned()));
    }
    let backups = lane.backups()?;
    if backups.is_empty() {
        return Ok(Err("there is no backup to build on".to_owned()));
    }
    let there = packs_there(lane)?;
    let mut first = None;
    for backup in newest_first(lane, backups).iter().take(TRIED) {
        match fitting(lane, backup, shape, &there) {
            Ok(Ok(parent)) => return Ok(Ok(parent)),
            Ok(Err(problem)) => drop(first.get_or_insert(format!("backup {}: {problem}", backup.id))),
            Err(problem) if is_parents_fault(&problem) => {
                let problem = error::chain(&problem);
                first.get_or_insert(format!("backup {} cannot be read: {problem}", backup.id));
            }
            Err(problem) => return Err(problem),
        }
    }
    Ok(Err(first.unwrap_or_default()))
}

/// Sorts backups, the newest first: by their names, which begin with the second of their start, and by where they start.
fn newest_first(lane: &Lane, mut backups: Vec<StoredBackup>) -> Vec<StoredBackup> {
    backups.reverse();
    let second = |backup: &StoredBackup| backup.id.split('-').next().unwrap_or_default().to_owned();
    // One that cannot be read is met again when it is tried.
    let start = |backup: &StoredBackup| lane.manifest(backup).map_or(Lsn::INVALID, |found| found.envelope.start_lsn);
    for group in backups.chunk_by_mut(|one, next| second(one) == second(next)).filter(|group| group.len() > 1).take(1) {
        group.sort_by_cached_key(|backup| std::cmp::Reverse(start(backup)));
    }
    backups
}

/// Whether the older backup is damaged, so that a backup without it is the way out.
pub(super) fn is_parents_fault(problem: &RepoError) -> bool {
    matches!(problem.kind(), ErrorKind::Corrupt | ErrorKind::NotFound)
}

fn fitting(
    lane: &Lane,
    backup: &StoredBackup,
    shape: PageShape,
    there: &Packs,
) -> Result<Result<Parent, String>, RepoError> {
    let manifest = lane.manifest(backup)?;
    let root = &manifest.root;
    let PageShape { system_id, block_size, relation_segment_blocks } = shape;
    let same = root.block_size == block_size
        && root.relation_segment_blocks == relation_segment_blocks
        && root.system_id == system_id;
    if !same {
        return Ok(Err("its pages or files have another size".to_owned()));
    }
    let tables = lane.tables(&manifest)?;
    if let Some(missing) = tables.packs.iter().find(|pack| !there.has(pack)) {
        let PackSource::Lane { backup, number } = &missing.source;
        return Ok(Err(format!("pack {backup}/{number} is not there as it was stored, or about to go")));
    }
    let live = Liveness::of(lane, &tables)?;
    let renewal = live.renewal(manifest.envelope.bytes, |pack| lane.frame_lengths(&tables, pack))?;
    Ok(Ok(Parent { manifest, tables, renewal }))
}

/// Packs that a listing found and that stay, with the bytes of each.
pub(super) struct Packs(HashMap<(Arc<str>, u32), u64>);

pub(super) fn packs_there(lane: &Lane) -> Result<Packs, RepoError> {
    let condemned = lane.tombstones()?;
    let mut names: Option<Arc<str>> = None;
    let mut packs = HashMap::new();
    for pack in lane.list_packs()? {
        if condemned.iter().any(|stone| stone.tombstone.condemns_pack(&pack.backup, pack.number)) {
            continue;
        }
        let name = match &names {
            Some(name) if **name == *pack.backup => Arc::clone(name),
            _ => Arc::clone(names.insert(pack.backup.into())),
        };
        packs.insert((name, pack.number), pack.stored_bytes);
    }
    Ok(Packs(packs))
}

impl Packs {
    pub fn has(&self, pack: &PackRef) -> bool {
        let PackSource::Lane { backup, number } = &pack.source;
        self.0.get(&(Arc::clone(backup), *number)) == Some(&pack.stored_bytes)
    }
}

impl Parent {
    /// Decides how changes are found, and asks the server or the archive for them; `pg_wal` is the server's.
    pub fn detect(
        &self,
        lane: &Lane,
        session: &mut impl BackupServer,
        control: &ControlFile,
        start: Lsn,
        wanted: Wanted,
        pg_wal: &Path,
    ) -> Result<(Method, String, Option<ChangedBlocks>), RepoError> {
        let hashes = |reason: String| Ok((Method::Hashes, reason, None));
        let envelope = &self.manifest.envelope;
        let mut situation = self.situation((control.major, control.timeline, control.data_checksums), start, wanted);
        let logged_whole = ControlFile::parse(&self.manifest.root.pg_control).is_ok_and(|then| then.full_page_writes);
        situation.full_page_writes = control.full_page_writes && logged_whole;
        if let Err(reason) = situation.judge(lane)? {
            return hashes(reason);
        }
        let summarized = situation.has_summaries().then(|| {
            match other_release(&self.manifest.root.server_version, &session.facts().version) {
                Some((before, now)) => Err(format!("the server was PostgreSQL {before} then, and is {now} now")),
                None => summarized(session, &situation),
            }
        });
        let unsummarized = match summarized {
            Some(Ok((reason, changed))) => return Ok((Method::Summaries, reason, Some(changed))),
            Some(Err(reason)) => format!("; no summaries of the server's: {reason}"),
            None => String::new(),
        };
        let (start, end, data_bytes) = (envelope.start_lsn, situation.start, envelope.bytes);
        let between = Between { timeline: control.timeline, start, end, data_bytes };
        match log::changed(lane, pg_wal, between)? {
            Ok(Told { changed, segments }) => {
                let reason = format!("{segments} segments of the log tell of every change{unsummarized}");
                Ok((Method::Log, reason, Some(changed)))
            }
            Err(reason) => hashes(format!("the log does not tell of every change: {reason}{unsummarized}")),
        }
    }

    /// Puts together what is known before it is decided how changes are found; `now` is the server's major, timeline, and
    /// whether its pages have checksums.
    pub fn situation(&self, now: (u16, TimelineId, bool), start: Lsn, wanted: Wanted) -> Situation {
        let (envelope, root) = (&self.manifest.envelope, &self.manifest.root);
        let (major, timeline, checksums) = now;
        Situation {
            wanted,
            major,
            parent_timeline: envelope.timeline,
            parent_start: envelope.start_lsn,
            parent_stop: envelope.stop_lsn,
            parent_checksums: root.data_checksums,
            parent_damaged: root.damaged_total,
            timeline,
            start,
            checksums,
            contested: false,
            full_page_writes: true,
        }
    }

    pub fn lending<'a>(&'a self, lane: &'a Lane, changed: Option<ChangedBlocks>) -> Lending<'a> {
        let root = &self.manifest.root;
        Lending::new(lane, &self.tables, (root.block_size, root.relation_segment_blocks), &self.renewal, changed)
    }
}

/// Asks the server what its summaries of the log name; the error is why that is not everything.
fn summarized(session: &mut impl BackupServer, situation: &Situation) -> Result<(String, ChangedBlocks), String> {
    let summaries = wait_for(session, situation)?;
    let mut changed = ChangedBlocks::default();
    for summary in &summaries {
        let read = session.summary_contents(*summary, &mut |row| changed.add(row));
        read.map_err(|problem| error::chain(&problem).to_string())?;
    }
    Ok((format!("{} summaries of the log tell of every change", summaries.len()), changed))
}

impl Situation {
    /// Decides whether the log could do, with what the lane tells of another writer.
    pub fn judge(&mut self, lane: &Lane) -> Result<Result<(), String>, RepoError> {
        if let Err(reason) = self.allows_the_log() {
            return Ok(Err(reason));
        }
        let from = lane.segment_size().segment_of(self.parent_start);
        self.contested = lane.contested()?.iter().any(|kept| match kept.name {
            WalFileName::Segment(name) if name.timeline() == self.timeline => {
                // The first one that is refused stops its archiver: what the server wrote since is in no archive.
                !kept.resolved || name.number(lane.segment_size()).is_ok_and(|number| number >= from)
            }
            _ => false,
        });
        Ok(self.allows_the_log())
    }
}

/// Waits until the server has summarized its log up to the backup's start, as long as it gets on.
fn wait_for(session: &mut impl BackupServer, situation: &Situation) -> Result<Vec<Summary>, String> {
    let (mut reached, mut since, mut pause) = (None, Instant::now(), SUMMARY_PAUSE);
    loop {
        let (summarizing, available) = session.summaries().map_err(|problem| error::chain(&problem).to_string())?;
        let at = match situation.cover(summarizing, &available) {
            Ok(summaries) => return Ok(summaries),
            Err(Doubt::Settled(reason)) => return Err(reason),
            Err(Doubt::Behind(at)) => at,
        };
        if reached != Some(at) {
            (reached, since) = (Some(at), Instant::now());
        }
        if since.elapsed() > SUMMARY_PATIENCE {
            return Err(format!("the server has summarized its log only up to {at}"));
        }
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(LONGEST_SUMMARY_PAUSE);
    }
}
