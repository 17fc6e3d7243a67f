//! What is looked for in the log: the end of it, moments, transactions, removals, and what it asks of a host.

use super::{EndedTransaction, FoundRecord, KNOWS_TRANSACTIONS, Survey, SurveyError};
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::segment::SegmentName;
use crate::pg::wal_event::{WalEvent, WalParameters};
use crate::pg::wal_facts::WalFacts;
use crate::pg::wal_record::RelationLocator;
use crate::pg::wal_transaction::{DroppedRelation, EndRecord, created_file};
use crate::restore::glance::Glance;

/// Resource managers whose records can hold a moment: the log's own and transactions.
const MOMENTS: [u8; 2] = [0, 1];
/// Resource managers whose records can ask something of the host: the log's own and tablespaces.
const DEMANDS: [u8; 2] = [0, 5];
/// The resource manager of transactions, and that of files.
const TRANSACTIONS: u8 = 1;
const FILES: u8 = 2;

/// What a log asks of the host that replays it.
#[derive(Debug, Default)]
pub(in crate::restore) struct Demands {
    /// Settings that were recorded.
    pub parameters: Vec<WalParameters>,
    /// Tablespaces that are created, by the place that the record names.
    pub tablespaces: Vec<(u32, String)>,
}

impl Survey<'_> {
    /// Returns the last complete record of a chain.
    pub fn last_record(&self, chain: &[SegmentName]) -> Result<Option<FoundRecord>, SurveyError> {
        let known = self.ends.borrow().iter().find(|(tail, _)| chain.ends_with(tail)).map(|(_, last)| *last);
        if known.is_some() {
            return Ok(known);
        }
        for index in (0..chain.len()).rev() {
            let mut last = None;
            self.walk(chain, index, &mut |record, time| {
                last = Some(FoundRecord { start: record.start, end: record.end, time });
            })?;
            if let Some(last) = last {
                // Many backups and branches lead to the same end.
                if let Some(lead) = self.lead(chain, index)? {
                    self.ends.borrow_mut().push((chain[lead..].to_vec(), last));
                }
                return Ok(Some(last));
            }
        }
        Ok(None)
    }

    /// Returns the last record that ended at or before a position.
    pub fn last_record_until(&self, chain: &[SegmentName], until: Lsn) -> Result<Option<FoundRecord>, SurveyError> {
        for index in (0..chain.len()).rev() {
            let mut last = None;
            self.walk(chain, index, &mut |record, time| {
                if record.end <= until {
                    last = Some(FoundRecord { start: record.start, end: record.end, time });
                }
            })?;
            if last.is_some() {
                return Ok(last);
            }
        }
        Ok(None)
    }

    /// Returns the first commit or abort of a chain whose time is `past` what is asked for.
    pub fn first_past(
        &self,
        chain: &[SegmentName],
        past: impl Fn(PgTime) -> bool,
    ) -> Result<Option<FoundRecord>, SurveyError> {
        let hinted = |facts: &WalFacts| facts.max_time.is_some_and(&past);
        let is_it =
            |event: &WalEvent| matches!(event, WalEvent::TransactionEnd { time: Some(time), .. } if past(*time));
        let worth = self.worth(chain, &MOMENTS, |glance| glance.may_be_past(&past));
        Ok(self.find(chain, &worth, hinted, is_it, true)?.first().copied())
    }

    /// Returns the commit or abort of a transaction.
    pub fn end_of_transaction(&self, chain: &[SegmentName], wanted: u32) -> Result<Option<FoundRecord>, SurveyError> {
        let hinted = |facts: &WalFacts| match (facts.min_xid, facts.max_xid) {
            (Some(least), Some(most)) => (least..=most).contains(&wanted),
            _ => facts.commits + facts.aborts > 0,
        };
        let is_it = |event: &WalEvent| matches!(event, WalEvent::TransactionEnd { xid, .. } if *xid == wanted);
        let worth = self.worth(chain, &MOMENTS, |glance| glance.may_end_transaction(wanted));
        Ok(self.find(chain, &worth, hinted, is_it, true)?.first().copied())
    }

    /// Returns the last transaction of a chain that ended and is `wanted`.
    pub fn last_transaction(
        &self,
        chain: &[SegmentName],
        wanted: impl Fn(&EndedTransaction) -> bool,
    ) -> Result<Option<EndedTransaction>, SurveyError> {
        for index in self.worth(chain, &MOMENTS, Glance::may_end).into_iter().rev() {
            let facts = self.facts(chain[index])?;
            if facts.commits + facts.aborts == 0 && !self.enters_with_a_moment(chain, index)? {
                continue;
            }
            let mut last = None;
            self.walk(chain, index, &mut |record, time| {
                if let Some(WalEvent::TransactionEnd { kind, xid, .. }) = WalEvent::read(record) {
                    let ended = EndedTransaction { xid, kind, record: record.start, end: record.end, time };
                    last = Some(ended).filter(&wanted).or(last);
                }
            })?;
            if last.is_some() {
                return Ok(last);
            }
        }
        Ok(None)
    }

    /// Returns the latest time of a commit or abort in the last segment of a chain that has one, as its hint knows it.
    pub fn latest_time(&self, chain: &[SegmentName]) -> Result<Option<PgTime>, SurveyError> {
        for name in chain.iter().rev() {
            let glance = self.glance(*name);
            let time = if glance.is_blank() { self.facts(*name)?.max_time } else { glance.max_time() };
            if time.is_some() {
                return Ok(time);
            }
        }
        Ok(None)
    }

    /// Returns the restore points of a name.
    pub fn restore_points(&self, chain: &[SegmentName], name: &str) -> Result<Vec<FoundRecord>, SurveyError> {
        let has = |facts: &WalFacts| facts.restore_points.iter().any(|point| point.name == name);
        let is_it = |event: &WalEvent| matches!(event, WalEvent::RestorePoint { name: found, .. } if found == name);
        let worth = self.worth(chain, &MOMENTS, Glance::may_hold_points);
        self.find(chain, &worth, has, is_it, false)
    }

    fn find(
        &self,
        chain: &[SegmentName],
        worth: &[usize],
        hinted: impl Fn(&WalFacts) -> bool,
        is_it: impl Fn(&WalEvent) -> bool,
        only_first: bool,
    ) -> Result<Vec<FoundRecord>, SurveyError> {
        let mut found = Vec::new();
        for index in worth.iter().copied() {
            let facts = self.facts(chain[index])?;
            // A list that was cut short denies nothing.
            if !facts.truncated && !hinted(&facts) && !self.enters_with_a_moment(chain, index)? {
                continue;
            }
            self.walk(chain, index, &mut |record, time| {
                if WalEvent::read(record).as_ref().is_some_and(&is_it) {
                    found.push(FoundRecord { start: record.start, end: record.end, time });
                }
            })?;
            if only_first && !found.is_empty() {
                break;
            }
        }
        Ok(found)
    }

    /// Returns the commits of a chain that remove files or drop relations, and are `wanted`.
    pub fn removals(
        &self,
        chain: &[SegmentName],
        wanted: impl Fn(&[DroppedRelation], &[RelationLocator]) -> bool,
    ) -> Result<Vec<(FoundRecord, EndRecord)>, SurveyError> {
        let mut found = Vec::new();
        for index in self.worth(chain, &[TRANSACTIONS], Glance::may_remove) {
            let facts = self.facts(chain[index])?;
            let hinted = facts.removals.iter().any(|removal| wanted(&removal.relations, &removal.files));
            let unknown = facts.removals_truncated || facts.indexer < KNOWS_TRANSACTIONS;
            if !hinted && !unknown && !self.enters_with(&[TRANSACTIONS], chain, index)? {
                continue;
            }
            self.walk(chain, index, &mut |record, time| {
                let ended = EndRecord::read(record).filter(|ended| ended.kind.commits());
                if let Some(ended) = ended.filter(|ended| wanted(&ended.relations, &ended.files)) {
                    found.push((FoundRecord { start: record.start, end: record.end, time }, ended));
                }
            })?;
        }
        Ok(found)
    }

    /// Returns the files of rows that a transaction created, in the order of the log.
    pub fn created_by(&self, chain: &[SegmentName], ended: &EndRecord) -> Result<Vec<RelationLocator>, SurveyError> {
        let mut created = Vec::new();
        for index in self.worth(chain, &[FILES], Glance::may_make_files) {
            let facts = self.facts(chain[index])?;
            let unknown = facts.removals_truncated || facts.indexer < KNOWS_TRANSACTIONS;
            if unknown || self.enters_with(&[FILES], chain, index)? {
                self.walk(chain, index, &mut |record, _| {
                    created.extend(created_file(record).filter(|_| ended.is(record.xid)));
                })?;
            } else {
                created.extend(facts.files_created.iter().filter(|made| ended.is(made.xid)).map(|made| made.file));
            }
        }
        Ok(created)
    }

    /// Returns what a chain asks of the host that replays it from `start` on: settings, and places for tablespaces.
    pub fn demands(&self, chain: &[SegmentName], start: Lsn, before: Lsn) -> Result<Demands, SurveyError> {
        let mut demands = Demands::default();
        for index in self.worth(chain, &DEMANDS, Glance::may_ask) {
            let facts = self.facts(chain[index])?;
            demands.parameters.extend(facts.parameters);
            let created = facts.tablespaces.iter().filter(|made| made.at >= start && made.at < before);
            if !facts.truncated {
                demands.tablespaces.extend(created.map(|made| (made.oid, made.path.clone())));
            }
            if !facts.truncated && !self.enters_with(&DEMANDS, chain, index)? {
                continue;
            }
            let size = self.catalog.segment_size();
            let begin = chain[index].number(size).map_or(Lsn::INVALID, |number| number.start(size));
            self.walk(chain, index, &mut |record, _| {
                // Those that begin in the segment are in its facts, unless there were too many.
                if (record.start >= begin && !facts.truncated) || record.start >= before {
                    return;
                }
                match WalEvent::read(record) {
                    Some(WalEvent::Parameters(found)) => demands.parameters.push(found),
                    Some(WalEvent::TablespaceCreated { oid, path }) if record.start >= start => {
                        demands.tablespaces.push((oid, path));
                    }
                    _ => {}
                }
            })?;
        }
        Ok(demands)
    }

    /// Whether a record that no single segment shows, and that may be a moment, ends in `chain[index]`.
    fn enters_with_a_moment(&self, chain: &[SegmentName], index: usize) -> Result<bool, SurveyError> {
        self.enters_with(&MOMENTS, chain, index)
    }
}
