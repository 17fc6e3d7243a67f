//! The moment before a table was dropped or emptied.
//!
//! Recovery ends before the *commit* of the transaction that did it, by position: what others committed while it was at
//! work stays, and what it did itself is undone.

use super::{Answer, Candidate, Log, Planner, RemovedTable};
use crate::catalog::Branch;
use crate::format::manifest::Manifest;
use crate::pg::wal_transaction::EndRecord;
use crate::restore::refusal::RefusalReason;
use crate::restore::relation_name::RelationName;
use crate::restore::removal::{Fate, Followed};
use crate::restore::survey::{FoundRecord, SurveyError};

/// The first major whose commits say which relations they drop.
const NAMES_RELATIONS: u16 = 15;

/// A relation by its name and number when a backup began.
struct Known {
    name: String,
    database: String,
    followed: Followed,
}

impl Planner<'_> {
    /// Finds the last time that a relation of this name was dropped, or the only time that it was emptied.
    pub(super) fn before_drop(&self, branch: &Branch, name: &RelationName) -> Answer<Candidate> {
        let mut refusal = RefusalReason::UnknownRelation { name: name.to_string() };
        for manifest in self.backups(branch) {
            let mut fitting = self.relations(manifest, name)?;
            if fitting.len() > 1 {
                let names = fitting.iter().map(|one| format!("{}.{}", one.database, one.name)).collect();
                return Ok(Err(RefusalReason::SeveralRelations { names }));
            }
            let Some(known) = fitting.pop() else { continue };
            let log = self.log(branch, manifest)?;
            let (found, emptied) = match self.removal(&log, known.followed, manifest.envelope.major)? {
                Ok(found) => found,
                Err(reason) => return Ok(Err(reason)),
            };
            let Some((record, ended)) = found else {
                if let Some(reason) = &log.ends {
                    return Ok(Err(reason.clone()));
                }
                // A relation of that name may have been dropped before this one was made.
                refusal = RefusalReason::NotDropped { name: known.name };
                continue;
            };
            if record.start < manifest.envelope.stop_lsn {
                refusal = RefusalReason::BeforeBackup { earliest: manifest.envelope.stop_lsn };
                continue;
            }
            let point = self.before(&log, record)?;
            let backup = manifest.envelope.backup.clone();
            let removed = RemovedTable {
                name: known.name,
                database: known.database,
                emptied,
                xid: ended.xid,
                time: ended.time,
                at: record.start,
            };
            return Ok(Ok(Candidate {
                branch: branch.clone(),
                backup,
                chain: log.segments,
                point,
                removed: Some(removed),
            }));
        }
        Ok(Err(refusal))
    }

    /// Returns the relations that a name stands for in a backup.
    fn relations(&self, manifest: &Manifest, name: &RelationName) -> Result<Vec<Known>, SurveyError> {
        let backup = &manifest.envelope.backup;
        let failed = |source| SurveyError::Names { backup: backup.clone(), source };
        let tables = self.lane.tables(manifest).map_err(failed)?;
        let mut leaves = self.lane.relations(&tables);
        let mut known = Vec::new();
        while let Some(relations) = leaves.next_leaf().map_err(failed)? {
            for relation in relations {
                let database = manifest.root.databases.iter().find(|database| database.oid == relation.database);
                let database = database.map_or_else(|| relation.database.to_string(), |found| found.name.clone());
                if name.fits(&database, &relation.schema, &relation.name) {
                    known.push(Known { name: relation.full_name(), database, followed: Followed::of(&relation) });
                }
            }
        }
        Ok(known)
    }

    /// Returns the commit that dropped a relation, or the only one that emptied it, and whether it was emptied.
    fn removal(
        &self,
        log: &Log,
        mut followed: Followed,
        major: u16,
    ) -> Answer<(Option<(FoundRecord, EndRecord)>, bool)> {
        let mut emptied = Vec::new();
        let mut after = None;
        loop {
            let found = self.survey.removals(&log.segments, |relations, files| followed.is_in(relations, files))?;
            let is_next = |record: &FoundRecord| log.counts(record) && after.is_none_or(|after| record.start > after);
            let next = found.into_iter().find(|(record, _)| is_next(record));
            let Some((record, ended)) = next else { break };
            after = Some(record.start);
            let created = self.survey.created_by(&log.segments, &ended)?;
            match followed.fate(&ended, &created, major >= NAMES_RELATIONS) {
                Fate::Dropped => return Ok(Ok((Some((record, ended)), false))),
                Fate::Emptied(file) => {
                    emptied.push((record, ended));
                    followed.file = file;
                }
                Fate::Moved(file) => followed.file = file,
                Fate::Unclear => return Ok(Err(RefusalReason::UnclearRemoval { at: record.start })),
                Fate::Untouched => {}
            }
        }
        Ok(match emptied.len() {
            0 | 1 => Ok((emptied.pop(), true)),
            _ => Err(RefusalReason::EmptiedRepeatedly { at: emptied.iter().map(|(record, _)| record.start).collect() }),
        })
    }
}
